package reconcile_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"verbatim.dev/recorder/reconcile"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestParseEntry holds what is read of every form against a golden file.
func TestParseEntry(t *testing.T) {
	b, err := os.ReadFile("testdata/entries.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	n := 0
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		n++
		e, err := reconcile.ParseEntry(s.Bytes())
		if err != nil {
			fmt.Fprintf(&got, "%d: not understood: %v\n", n, err)
			continue
		}
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%d: %s\n", n, out)
	}
	golden(t, "testdata/entries.golden", got.Bytes())
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("output is not that of %s (go test -update writes it anew):\n%s", file, got)
	}
}

func TestLines(t *testing.T) {
	long := `{"job_id":"` + strings.Repeat("x", 17<<20) + `"}`
	tests := []struct {
		name, in string
		want     []string
		err      string
	}{
		{"empty", "", nil, ""},
		{"blank", " \n\r\n\t", nil, ""},
		{"lines", "{\"a\":1}\n\n  {\"b\":2}  \r\n{\"c\":3}", []string{`1 {"a":1}`, `3 {"b":2}`, `4 {"c":3}`}, ""},
		{"byte order mark", "\ufeff{\"a\":1}\n", []string{`1 {"a":1}`}, ""},
		{"array", "\n [ {\"a\":1},\n {\"b\":[2]} ]\n", []string{`1 {"a":1}`, `2 {"b":[2]}`}, ""},
		{"empty array", "[]", nil, ""},
		{"array that ends early", `[{"a":1},`, []string{`1 {"a":1}`}, "array"},
		{"array without an end", `[{"a":1}`, []string{`1 {"a":1}`}, "array"},
		{"array with damage", `[{"a":1},{"b":}]`, []string{`1 {"a":1}`}, "entry 2"},
		{"a line that is too long", "{}\n" + long + "\n{}\n", []string{"1 {}", "2 " + long[:64], "3 {}"}, ""},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			var got []string
			err := reconcile.Lines(strings.NewReader(x.in))(t.Context(), func(n int64, b []byte) error {
				got = append(got, fmt.Sprintf("%d %s", n, b))
				return nil
			})
			if fmt.Sprint(got) != fmt.Sprint(x.want) {
				t.Errorf("entries %.300q, want %.300q", got, x.want)
			}
			if (err != nil) != (x.err != "") || err != nil && (!errors.Is(err, reconcile.ErrList) || !strings.Contains(err.Error(), x.err)) {
				t.Errorf("error %v, want one with %q", err, x.err)
			}
		})
	}
	broken := errors.New("disk")
	for _, in := range []string{"", "{}\n", "[{}"} {
		err := reconcile.Lines(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(in+"{"))))(t.Context(), func(int64, []byte) error { return nil })
		if !errors.Is(err, reconcile.ErrList) {
			t.Errorf("after %q a failing reader gives %v", in, err)
		}
	}
	if err := reconcile.Lines(strings.NewReader("{}"))(t.Context(), func(int64, []byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("the error of add became %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, in := range []string{"{}", "[{}]"} {
		if err := reconcile.Lines(strings.NewReader(in))(ctx, func(int64, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled reading of %s gave %v", in, err)
		}
	}
}

// FuzzParseEntry holds that no bytes make the reader panic, and that what it
// takes for a job can be named.
func FuzzParseEntry(f *testing.F) {
	b, err := os.ReadFile("testdata/entries.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		f.Add(bytes.TrimSpace(line))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := reconcile.ParseEntry(b)
		if err != nil {
			return
		}
		if e.Form == "" || e.Job == nil && e.Deleted == nil && e.Event == "" {
			t.Errorf("an entry of nothing: %+v", e)
		}
		for _, j := range []*reconcile.Job{e.Job, e.Deleted} {
			if j != nil && (j.ID == "" || j.Project == "") {
				t.Errorf("a job without a name: %+v", j)
			}
		}
		if e.Job != nil && !e.Job.Created.IsZero() && e.Job.Created.Year() < 1 {
			t.Errorf("created %v", e.Job.Created)
		}
	})
}
