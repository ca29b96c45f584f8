package authoring

import (
	"errors"
	"slices"
	"testing"
	"time"

	"verbatim.dev/policy"
	"verbatim.dev/recorder/record"
)

func TestTableOf(t *testing.T) {
	for name, want := range map[string]policy.Table{
		"p.d.t":                         {Project: "p", Dataset: "d", Table: "t"},
		"p.d.t*":                        {Project: "p", Dataset: "d", Table: "t*"},
		"example.com:p.d.t":             {Project: "example.com:p", Dataset: "d", Table: "t"},
		"p.d":                           {Project: "p", Dataset: "d"},
		"p.d.INFORMATION_SCHEMA.TABLES": {Project: "p", Dataset: "d", InformationSchema: "TABLES"},
		"p.INFORMATION_SCHEMA.JOBS":     {Project: "p", InformationSchema: "JOBS"},
		"p.region-eu.INFORMATION_SCHEMA.SCHEMATA": {Project: "p", Dataset: "region-eu", InformationSchema: "SCHEMATA"},
	} {
		got, ok := tableOf(record.TableUse{Table: name, Source: "x"})
		want.Source, want.AllColumns = "x", true
		if !ok || got.Project != want.Project || got.Dataset != want.Dataset || got.Table != want.Table || got.InformationSchema != want.InformationSchema {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
		if got.Name() != name {
			t.Errorf("%s became %s", name, got.Name())
		}
	}
	for _, name := range []string{"", "t", ".", ".d.t", "..t"} {
		if got, ok := tableOf(record.TableUse{Table: name}); ok {
			t.Errorf("%q: %+v", name, got)
		}
	}
}

// intent is one that the policy decided.
func intent(method, path, query string, call record.Call) *record.Intent {
	i := &record.Intent{}
	i.Request = record.OCSFRequest{Method: method, URL: record.OCSFURL{Path: path, Query: query}, Headers: []record.Header{{Name: "Content-Type", Value: "application/json"}}}
	i.Verbatim = record.IntentDetail{
		Principal: &record.Principal{Issuer: "corp", Subject: "ann", Groups: []string{"corp/a"}}, Connection: &record.Connection{Name: "main", Recording: "full"},
		Call: call, Decision: record.Decision{Allow: true, By: "policy"}, Decided: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	return i
}

func names(list []policy.Table) (out []string) {
	for _, t := range list {
		out = append(out, t.As+" "+t.Source+" "+t.Name())
	}
	return out
}

func TestInput(t *testing.T) {
	const base = "/bigquery/v2/projects/p"
	for _, c := range []struct {
		name                      string
		r                         Recorded
		job                       string
		reads, writes, incomplete []string
		dry                       bool
	}{
		{"rows", Recorded{Intent: intent("GET", base+"/datasets/d/tables/t/data", "maxResults=5", record.Call{Method: "bigquery.tabledata.list", Project: "p", Dataset: "d", Table: "t"})},
			"", []string{"route route p.d.t"}, nil, nil, false},
		{"a table is deleted", Recorded{Intent: intent("DELETE", base+"/datasets/d/tables/t", "", record.Call{Method: "bigquery.tables.delete", Project: "p", Dataset: "d", Table: "t"})},
			"", nil, []string{"route route p.d.t"}, nil, false},
		{"a copy job", Recorded{Intent: intent("POST", base+"/jobs", "", record.Call{Method: "bigquery.jobs.insert", Project: "p"}),
			Body: []byte(`{"configuration":{"copy":{"sourceTable":{"projectId":"p","datasetId":"d","tableId":"t"},"destinationTable":{"projectId":"p","datasetId":"e","tableId":"u"}}}}`)},
			"copy", []string{"copy body p.d.t"}, []string{"copy body p.e.u"}, nil, false},
		{"a query with a default dataset", Recorded{Intent: intent("POST", base+"/queries", "", record.Call{Method: "bigquery.jobs.query", Project: "p", SQL: "SELECT * FROM t"}),
			Body: []byte(`{"query":"SELECT * FROM t","useLegacySql":false,"defaultDataset":{"datasetId":"d"}}`)},
			"query", []string{"from parser p.d.t"}, nil, nil, false},
		{"the same without its body", Recorded{Intent: intent("POST", base+"/queries", "", record.Call{Method: "bigquery.jobs.query", Project: "p", SQL: "SELECT * FROM t",
			Reads: []record.TableUse{{Table: "p.d.t", Source: "parser"}}})},
			"", []string{"view parser p.d.t"}, nil, nil, false},
		{"a view that a dry run looked behind", Recorded{Intent: intent("POST", base+"/queries", "", record.Call{Method: "bigquery.jobs.query", Project: "p", SQL: "SELECT * FROM d.v",
			Reads: []record.TableUse{{Table: "p.d.v", Source: "parser"}, {Table: "p.e.t", Source: "dry_run"}}}), Body: []byte(`{"query":"SELECT * FROM d.v","useLegacySql":false}`)},
			"query", []string{"from parser p.d.v", "view dry_run p.e.t"}, nil, nil, true},
		{"a text that is not understood", Recorded{Intent: intent("POST", base+"/queries", "", record.Call{Method: "bigquery.jobs.query", Project: "p", SQL: "SELECT ("}), Body: []byte(`{"query":"SELECT (","useLegacySql":false}`)},
			"query", nil, nil, []string{"sql_problem"}, false},
	} {
		in, err := Input(t.Context(), c.r, []policy.Window{{Of: "run", Seconds: 60}})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(names(in.Reads), c.reads) || !slices.Equal(names(in.Writes), c.writes) || !slices.Equal(in.Incomplete, c.incomplete) || in.Request.JobType != c.job {
			t.Errorf("%s: %s reads %q, writes %q, incomplete %q", c.name, in.Request.JobType, names(in.Reads), names(in.Writes), in.Incomplete)
		}
		if dry := in.SQL != nil && in.SQL.DryRun != nil; dry != c.dry {
			t.Errorf("%s: dry run %v", c.name, dry)
		}
		if in.Caller.Groups[0] != "corp/a" || in.Connection.Name != "main" || len(in.Usage.Windows) != 1 {
			t.Errorf("%s: %+v", c.name, in)
		}
	}
	nobody := intent("GET", base+"/datasets", "", record.Call{})
	nobody.Verbatim.Principal = nil
	if _, err := Input(t.Context(), Recorded{Intent: nobody}, nil); !errors.Is(err, errNoPolicy) {
		t.Errorf("no principal: %v", err)
	}
	if _, err := Input(t.Context(), Recorded{Intent: intent("GET", "/nowhere", "", record.Call{})}, nil); err == nil {
		t.Error("a route that is not there")
	}
	if _, err := Input(t.Context(), Recorded{Intent: intent("POST", base+"/queries", "", record.Call{}), Body: []byte(`{"query"`)}, nil); err == nil {
		t.Error("half a body")
	}
}

// TestObserved: what the mode observe let pass was denied by the policy.
func TestObserved(t *testing.T) {
	e, err := policy.New(t.Context(), policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	i := intent("GET", "/bigquery/v2/projects/p/datasets", "", record.Call{Method: "bigquery.datasets.list", Project: "p"})
	i.Verbatim.Decision.WouldDeny = true
	trial := Trial{Candidate: e.Current()}
	f, err := trial.repeat(t.Context(), Recorded{Intent: i})
	if err != nil || f.Was != Deny || f.Now != Deny || !f.WouldDeny {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestSuggestedNames(t *testing.T) {
	for want, match := range map[string]map[string]string{
		"acme-etl":         {"repository": "acme/etl", "ref": "refs/heads/main"},
		"agents-runner":    {"namespace": "agents", "service_account": "runner"},
		"g-7":              {"subject": "7"},
		"g":                {"subject": "§"},
		"ann-corp-example": {"subject": "Ann@corp.example"},
	} {
		s := newSeen(match)
		if got := s.name(); got != want {
			t.Errorf("%v: %q, want %q", match, got, want)
		}
	}
}

func TestGather(t *testing.T) {
	few := map[string]int64{"p.d.a": 1, "p.d.b": 2}
	if got := gather(few); len(got) != 2 {
		t.Errorf("%v", got)
	}
	many := map[string]int64{"p.e.a": 1}
	for _, n := range "abcdefgh" {
		many["p.d."+string(n)] = 2
	}
	if got := gather(many); len(got) != 2 || got["p.d"] != 16 || got["p.e.a"] != 1 {
		t.Errorf("%v", got)
	}
	whole := map[string]int64{"p.d": 1, "p.d.a": 2}
	if got := gather(whole); len(got) != 1 || got["p.d"] != 3 {
		t.Errorf("%v", got)
	}
}
