package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"verbatim.dev/policy/sql"
)

// manyGrants returns data with a grant for each of 500 groups, over 20
// datasets each.
func manyGrants(tb testing.TB) string {
	tb.Helper()
	grants := map[string]any{}
	for g := range 500 {
		var datasets []string
		for d := range 20 {
			datasets = append(datasets, fmt.Sprintf("d%d", (g+d)%520))
		}
		grants[fmt.Sprintf("g%d", g)] = map[string]any{
			"match":    map[string]any{"issuer": "corp", "group": fmt.Sprintf("team%d", g)},
			"projects": []string{"acme"}, "datasets": datasets, "methods": []string{"read"},
		}
	}
	b, err := json.Marshal(map[string]any{"grants": grants})
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.json"), b, 0o600); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func manyInput(groups int) *Input {
	in := &Input{
		Time:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Caller:     Caller{Issuer: "corp", IssuerURL: "https://corp.example", Subject: "u"},
		Connection: Connection{Name: "main", Recording: "full", Retention: "default"},
		Request: Request{
			Method: "bigquery.tabledata.list", Kind: KindRead, HTTPMethod: "GET", Path: "/bigquery/v2/projects/acme/datasets/d5/tables/t/data",
			Project: "acme", Dataset: "d5", Table: "t",
		},
	}
	for g := range groups {
		in.Caller.Groups = append(in.Caller.Groups, fmt.Sprintf("corp/team%d", g))
	}
	return in
}

func BenchmarkDecide(b *testing.B) {
	ctx := context.Background()
	start := time.Now()
	e, err := New(ctx, Config{Dir: manyGrants(b)})
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("load: %s", time.Since(start))
	query := manyInput(10)
	query.Request.Method, query.Request.Kind, query.Request.Dataset, query.Request.Table = "bigquery.jobs.query", KindQuery, "", ""
	query.SQL = &SQL{Facts: benchFacts(), Text: "SELECT a.id, COUNT(*) AS n FROM `acme.d5.t` AS a JOIN `acme.d6.u` AS b ON a.id = b.id WHERE a.day > '2026-01-01' GROUP BY 1 ORDER BY n DESC"}
	for i := range 6 {
		query.Reads = append(query.Reads, Table{Project: "acme", Dataset: fmt.Sprintf("d%d", 9+i), Table: "t", As: "from", Source: "parser", Kind: "TABLE", Columns: []string{"a", "b"}})
	}
	one := *query
	one.Reads = slices.Clone(query.Reads)
	for i := range one.Reads {
		one.Reads[i].Dataset = "d28" // of the last group's grant alone
	}
	ask := *query
	ask.Reads = slices.Clone(query.Reads)
	for i := range ask.Reads {
		ask.Reads[i].Kind = ""
	}
	seen := ask
	seen.SQL = &SQL{Text: query.SQL.Text, Facts: query.SQL.Facts, DryRun: &DryRun{StatementType: "SELECT", Tables: query.Reads, Complete: true}}
	refused := *query
	refused.Reads = append(slices.Clone(query.Reads), Table{Project: "acme", Dataset: "secret", Table: "t", As: "from", Source: "parser"})
	denied := manyInput(10)
	denied.Request.Project = "nowhere"
	r := e.Current()
	for _, c := range []struct {
		name  string
		in    *Input
		allow bool
		again bool // it was asked before
	}{
		{"rows/groups=10", manyInput(10), true, false},
		{"rows/groups=500", manyInput(500), true, false},
		{"query/one grant of 10 covers", &one, true, false},
		{"query/10 grants cover", query, true, false},
		{"query/asks for a dry run", &ask, false, false},
		{"query/with its dry run", &seen, true, false},
		{"denied/groups=10", denied, false, false},
		{"denied query/groups=10", &refused, false, false},
		{"again/query/groups=10", query, true, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				ask := func() (*Decision, error) { return r.decide(ctx, c.in, c.in.scan(), r.timeout) }
				if c.again {
					ask = func() (*Decision, error) { return r.Decide(ctx, c.in) }
				}
				d, err := ask()
				if err != nil || d.Allow != c.allow {
					b.Fatal(d, err)
				}
			}
			// Wall time says little on a machine that others use too.
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// benchFacts are those of a query that calls 25 functions.
func benchFacts() *sql.Facts {
	f := &sql.Facts{Source: sql.SourceParser, Statements: []sql.Statement{{Kind: "SELECT", Line: 1, Column: 1}}}
	for i := range 25 {
		f.Functions = append(f.Functions, sql.Function{Name: fmt.Sprintf("F%d", i), Kind: "builtin"})
	}
	return f
}

// cpu returns the processor time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkScanWords(b *testing.B) {
	text := ""
	for len(text) < 2700 {
		text += "SELECT a.id, 'some literal' AS x FROM `acme.d5.t` AS a -- comment\n WHERE a.day > 5 AND "
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		scanWords(text)
	}
}
