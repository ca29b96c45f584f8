package sql

import (
	"errors"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"t", "p.d.t"},
		{"ds.t", "p.ds.t"},
		{"q.ds.t", "q.ds.t"},
		{"Q.ds.t", "q.ds.t"},
		{"q:ds.t", "q.ds.t"},
		{"example.com:q.ds.t", "example.com:q.ds.t"},
		{"EXAMPLE.com:Q:ds.T", "example.com:q.ds.T"},
		{"`q.ds.t`", "q.ds.t"},
		{"`q`.`ds`.`t`", "q.ds.t"},
		{"`q.ds`.t", "q.ds.t"},
		{"q.`ds.t`", "q.ds.t"},
		{"my-q-1.ds.t", "my-q-1.ds.t"},
		{"ds.t$20240101", "p.ds.t | 20240101"},
		{"ds.t$__NULL__", "p.ds.t | __NULL__"},
		{"ds.t@-3600000", "p.ds.t | past"},
		{"ds.t$20240101@1-2", "p.ds.t | 20240101 past"},
		{"ds.events_*", "p.ds.events_*"},
		{"ds.*", "p.ds.*"},
		{"ds.INFORMATION_SCHEMA.tables", "p.ds.INFORMATION_SCHEMA.TABLES"},
		{"Region-EU.information_schema.jobs", "p.region-eu.INFORMATION_SCHEMA.JOBS"},
		{"q.region-eu.INFORMATION_SCHEMA.JOBS", "q.region-eu.INFORMATION_SCHEMA.JOBS"},
		{"q:ds.INFORMATION_SCHEMA.TABLES", "q.ds.INFORMATION_SCHEMA.TABLES"},
		{"INFORMATION_SCHEMA.TABLES", "p.d.INFORMATION_SCHEMA.TABLES"},
		{"INFORMATION_SCHEMA.JOBS", "p.INFORMATION_SCHEMA.JOBS"},
		{"ds.a b", "p.ds.a b"},
		{"ds.таблица", "p.ds.таблица"},
		{"", "! invalid_name"},
		{"123.ds.t", "! project_number"},
		{"123:ds.t", "! project_number"},
		{"example.com:123.ds.t", "! project_number"},
		{"a.b.c.d", "! invalid_name"},
		{".t", "! invalid_name"},
		{"ds.", "! invalid_name"},
		{"d s.t", "! invalid_name"},
		{"d-s.t", "! invalid_name"},
		{"ds.t*x", "! invalid_name"},
		{"ds.t$", "! invalid_name"},
		{"ds.t$x", "! invalid_name"},
		{"ds.a/b", "! invalid_name"},
		{"ds.a`b", "! invalid_name"},
		{"`ds.t", "! invalid_name"},
		{"`ds`t", "! invalid_name"},
		{"`d\\x73.t`", "! invalid_name"},
		{"ds.e\u0301", "! invalid_name"},
		{"ds.t\u200b", "! invalid_name"},
		{"ds.t\x00", "! invalid_name"},
		{"ds.\xff", "! invalid_name"},
		{"дs.t", "! invalid_name"},
		{"-q.ds.t", "! invalid_name"},
		{"ds." + strings.Repeat("x", 1025), "! invalid_name"},
		{"ds." + strings.Repeat("x", 1024), "p.ds." + strings.Repeat("x", 1024)},
		{"a:b:c.t", "! invalid_name"},
		{"example.com:q:d.s.t", "! invalid_name"},
		{"example.com:q.t", "! invalid_name"},
		{":q.ds.t", "! invalid_name"},
		{"ds.INFORMATION_SCHEMA", "! invalid_name"},
		{"ds.INFORMATION_SCHEMA.A.B", "! invalid_name"},
		{"a.b.c.INFORMATION_SCHEMA.T", "! invalid_name"},
	} {
		n, err := Canonical(c.name, "p", "d")
		got := n.String()
		if n.Partition != "" || n.TimeTravel {
			got += " |"
			if n.Partition != "" {
				got += " " + n.Partition
			}
			if n.TimeTravel {
				got += " past"
			}
		}
		var e *NameError
		if errors.As(err, &e) {
			got = "! " + e.Code
		}
		if got != c.want {
			t.Errorf("%q: %q, want %q (%v)", c.name, got, c.want, err)
		}
	}
	if _, err := Canonical("t", "p", ""); err == nil || err.(*NameError).Code != "no_default_dataset" {
		t.Errorf("%v", err)
	}
	if _, err := Canonical("ds.t", "", ""); err == nil {
		t.Error("a name without a project was taken")
	}
}

func TestCanonicalDataset(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"ds", "p.ds"}, {"q.ds", "q.ds"}, {"q:ds", "q.ds"}, {"example.com:q.ds", "example.com:q.ds"}, {"example.com:q:ds", "example.com:q.ds"}, {"`q.ds`", "q.ds"},
		{"q.ds.t", ""}, {"", ""}, {"1.ds", ""}, {"region-eu", ""}, {"q:", ""}, {"example.com:q", ""}, {"a$b", ""},
	} {
		n, err := CanonicalDataset(c.name, "p")
		if got := n.String(); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestCanonicalReference(t *testing.T) {
	for _, c := range []struct{ project, dataset, table, want string }{
		{"p", "d", "t", "p.d.t"}, {"P", "d", "t$20240101", "p.d.t"}, {"p", "d", "", "p.d"}, {"p", "", "", "p"}, {"example.com:p", "d", "t", "example.com:p.d.t"},
		{"p", "INFORMATION_SCHEMA", "jobs", "p.INFORMATION_SCHEMA.JOBS"},
		{"p", "d", "a.b", ""}, {"p", "d.e", "t", ""}, {"p.d", "e", "t", ""}, {"1", "d", "t", ""}, {"", "d", "t", ""}, {"p", "", "t", ""}, {"p", "d", "`t`", ""}, {"p", "d", "t:u", ""},
	} {
		n, err := CanonicalReference(c.project, c.dataset, c.table)
		if got := n.String(); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v, want %q", c, got, err, c.want)
		}
	}
}

func TestFold(t *testing.T) {
	a, _ := Canonical("Ds.T", "P", "")
	b, _ := Canonical("ds.t", "p", "")
	if a == b || a.Fold() != b.Fold() {
		t.Errorf("%v and %v: %q and %q", a, b, a.Fold(), b.Fold())
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"a.b.c", "`a.b`.c", "example.com:a.b.c", "a:b.c$1@2", "region-eu.INFORMATION_SCHEMA.X", "a.*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		n, err := Canonical(name, "p", "d")
		if err != nil {
			return
		}
		if n.Project == "" || n.Table == "" && n.InformationSchema == "" {
			t.Fatalf("%q: %+v", name, n)
		}
		if n.Partition != "" || n.TimeTravel {
			return
		}
		// The canonical form is its own.
		again, err := Canonical(n.String(), "x", "y")
		if err != nil || again != n && n.InformationSchema == "" {
			t.Fatalf("%q: %+v, then %+v, %v", name, n, again, err)
		}
	})
}
