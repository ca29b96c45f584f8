package sql

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sqlc-dev/zetajones/parser"
)

func TestCache(t *testing.T) {
	a := New(Config{CacheEntries: 2})
	o := Options{Project: "p", Dataset: "d"}
	f := a.Analyze(context.Background(), "SELECT a FROM t", o)
	g := a.Analyze(context.Background(), "SELECT a FROM t", o)
	if !reflect.DeepEqual(f, g) || len(a.kept) != 1 {
		t.Fatalf("%+v and %+v, %d kept", f, g, len(a.kept))
	}
	// Who appends to what the cache gave does not reach the others.
	_ = append(g.Reads, Table{Table: "x"})
	g.Reads = append(g.Reads, Table{Table: "y"})
	if h := a.Analyze(context.Background(), "SELECT a FROM t", o); len(h.Reads) != 1 {
		t.Errorf("%+v", h.Reads)
	}
	// Every option is part of the key.
	for _, o := range []Options{{Project: "q", Dataset: "d"}, {Project: "p", Dataset: "e"}, {Project: "p", DatasetProject: "q", Dataset: "d"}, {Project: "p", Dataset: "d", Temporary: []string{"t"}}} {
		if h := a.Analyze(context.Background(), "SELECT a FROM t", o); reflect.DeepEqual(h, f) {
			t.Errorf("%+v: the same facts", o)
		}
	}
	v := a.AnalyzeBody(context.Background(), Body{Kind: BodyView}, "SELECT a FROM t", o)
	if v.Reads[0].As != "definition" {
		t.Errorf("%+v", v.Reads)
	}
	if len(a.kept) != 2 || a.order.Len() != 2 {
		t.Errorf("%d kept, %d in order, want 2", len(a.kept), a.order.Len())
	}
	// By bytes, too.
	a = New(Config{CacheBytes: 2000})
	for i := range 10 {
		a.Analyze(context.Background(), fmt.Sprintf("SELECT %d", i), o)
	}
	if a.bytes > 2000 || len(a.kept) != 3 {
		t.Errorf("%d bytes, %d kept", a.bytes, len(a.kept))
	}
	a.Analyze(context.Background(), "SELECT '"+strings.Repeat("x", 3000)+"'", o)
	if len(a.kept) != 3 {
		t.Errorf("what is larger than the cache drove others out: %d kept", len(a.kept))
	}
}

func TestNoTimeoutKept(t *testing.T) {
	a := New(Config{})
	a.keep([32]byte{1}, &Facts{Problem: &Problem{Code: "timeout"}}, 1)
	a.keep([32]byte{2}, &Facts{Problem: &Problem{Code: "syntax"}}, 1)
	if len(a.kept) != 1 {
		t.Errorf("%d kept, want the syntax problem alone", len(a.kept))
	}
}

// TestAccount holds that a tree which was not walked whole is a Problem.
func TestAccount(t *testing.T) {
	for _, text := range []string{"SELECT 1", "SELECT f(1)", "SELECT 1 FROM t", "SELECT 1 FROM f()", "SELECT * FROM f(TABLE t)", "SELECT * FROM f(MODEL m)"} {
		script, err := parser.ParseScriptWithOptions(text, features)
		if err != nil {
			t.Fatal(err)
		}
		w := newWalker(text, func() error { return nil })
		w.r = &rewritten{text: text}
		w.env = &env{project: "p", dataset: "d", tables: map[string]bool{}, routines: map[string]bool{}}
		if p := w.guarded(func() { w.list(script.Statements.Statements); w.settle(script) }); p != nil {
			t.Errorf("%s: %+v", text, *p)
		}
		for _, n := range []*int{&w.seen.queries, &w.seen.tables, &w.seen.tvfs, &w.seen.calls, &w.seen.clauses, &w.seen.models} {
			*n--
			if p := w.guarded(func() { w.settle(script) }); p == nil || p.Code != "unsupported" {
				t.Errorf("%s: one too few is no problem", text)
			}
			*n++
		}
	}
}

// TestKey tells apart what only a length does.
func TestKey(t *testing.T) {
	k1 := cacheKey(Body{}, "ab", Options{Project: "c"})
	k2 := cacheKey(Body{}, "a", Options{Project: "bc"})
	k3 := cacheKey(Body{}, "ab", Options{Project: "c", Temporary: []string{""}})
	if k1 == k2 || k1 == k3 {
		t.Error("two requests have one key")
	}
}

func TestConcurrent(t *testing.T) {
	a := New(Config{CacheEntries: 8, Timeout: time.Minute})
	cases := readCases(t)[:60]
	want := make([]string, len(cases))
	for i, c := range cases {
		want[i] = render(Analyze(context.Background(), c.sql, c.options))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, c := range cases {
				if got := render(a.Analyze(context.Background(), c.sql, c.options)); got != want[i] {
					t.Errorf("%s: %s", c.title, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestTimeout(t *testing.T) {
	long := "SELECT 1" + strings.Repeat(" UNION ALL SELECT a FROM t", 5000)
	a := New(Config{Timeout: time.Microsecond})
	f := a.Analyze(context.Background(), long, Options{Project: "p", Dataset: "d"})
	if f.Problem == nil || f.Problem.Code != "timeout" || f.Problem.Fallback {
		t.Fatalf("%+v", f.Problem)
	}
	if len(a.kept) != 0 {
		t.Error("a timeout is kept")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := New(Config{})
	if f := b.Analyze(ctx, long, Options{Project: "p", Dataset: "d"}); f.Problem == nil || f.Problem.Code != "timeout" {
		t.Errorf("cancelled: %+v", f.Problem)
	}
	// All slots taken: the time limit holds for the waiting too.
	c := New(Config{Parallel: 1, Timeout: 20 * time.Millisecond})
	c.slots <- struct{}{}
	if f := c.Analyze(context.Background(), "SELECT 1", Options{}); f.Problem == nil || f.Problem.Code != "timeout" {
		t.Errorf("no slot: %+v", f.Problem)
	}
	<-c.slots
	if f := c.Analyze(context.Background(), "SELECT 1", Options{}); f.Problem != nil {
		t.Errorf("a slot: %+v", f.Problem)
	}
}

// TestStops holds that a walk looks at the clock, not only the parser's caller.
func TestStops(t *testing.T) {
	n := 0
	w := newWalker("SELECT "+strings.Repeat("f(a), ", 20000)+"1", func() error {
		if n++; n > 5 {
			return context.DeadlineExceeded
		}
		return nil
	})
	w.env = &env{project: "p", dataset: "d"}
	if p := w.run(MaxLimit, bodyScript); p == nil || p.Code != "timeout" {
		t.Errorf("%+v", p)
	}
}

// TestPanic holds that a defect becomes a Problem.
func TestPanic(t *testing.T) {
	f := func() (f *Facts) {
		ctx := badContext{context.Background()}
		return find(ctx, Body{}, "SELECT 1", Options{}, DefaultLimit)
	}()
	if f.Problem == nil || f.Problem.Code != "parser_failed" || f.Problem.Fallback || len(f.Statements) != 0 {
		t.Errorf("%+v", f)
	}
}

type badContext struct{ context.Context }

func (badContext) Err() error { panic("SELECT secret") }

func TestBodies(t *testing.T) {
	o := Options{Project: "p", Dataset: "d"}
	for _, c := range []struct {
		name string
		body Body
		text string
		want string
	}{
		{"a view", Body{Kind: BodyView}, "SELECT a FROM ds.t", "s: SELECT\nr: definition:p.ds.t(a)"},
		{"a view of two statements", Body{Kind: BodyView}, "SELECT 1; DROP TABLE x", "p: unsupported 1:1"},
		{"a view that writes", Body{Kind: BodyView}, "DROP TABLE x", "p: unsupported 1:1"},
		{"a view in legacy SQL", Body{Kind: BodyView}, "#legacySQL\nSELECT 1", "p: legacy 1:1"},
		{"a function", Body{Kind: BodyFunction, Arguments: []string{"x"}}, "x + 1", "s: EXPRESSION"},
		{"a function that reads", Body{Kind: BodyFunction, Arguments: []string{"x"}}, "(SELECT MAX(a) FROM secret.t WHERE b = x)", "s: EXPRESSION\nr: definition:p.secret.t(a,b,x)\nf: MAX"},
		{"a function that is a query", Body{Kind: BodyFunction}, "SELECT a FROM t", "p: syntax! 1:1"},
		{"a function with a tail", Body{Kind: BodyFunction}, "1; DROP TABLE x", "p: syntax! 1:2"},
		{"a filter", Body{Kind: BodyFunction}, "region IN (SELECT r FROM q.ds.u)", "s: EXPRESSION\nr: definition:q.ds.u(r)"},
		{"a table function", Body{Kind: BodyTableFunction, Arguments: []string{"x"}, TableArguments: []string{"src"}}, "SELECT a FROM SRC JOIN t USING (k) WHERE b = x", "s: SELECT\nr: definition:p.d.t(a,b,k,x)"},
		{"a procedure", Body{Kind: BodyProcedure, Arguments: []string{"x"}}, "BEGIN CREATE TEMP TABLE y AS SELECT a FROM t; EXECUTE IMMEDIATE x; END", "s: BEGIN CREATE_TABLE_AS_SELECT+ EXECUTE_IMMEDIATE+\nr: definition:p.d.t(a)\nw: create:p._SESSION.y(*)\no: dynamic_sql\nt: y"},
		{"nothing", Body{Kind: BodyFunction}, "", "p: empty 1:1"},
	} {
		f := AnalyzeBody(context.Background(), c.body, c.text, o)
		got := render(f)
		if f.Problem == nil {
			for _, s := range f.Statements {
				if !s.Definition {
					t.Errorf("%s: %s is no definition", c.name, s.Kind)
				}
			}
		}
		if got != c.want {
			t.Errorf("%s:\n got:\n%s\nwant:\n%s", c.name, got, c.want)
		}
	}
	if f := AnalyzeView(context.Background(), "SELECT a FROM t", o); f.Problem != nil || f.Reads[0].As != "definition" {
		t.Errorf("%+v", f)
	}
}

// TestSilent holds that no Problem says what the text's literals hold.
func TestSilent(t *testing.T) {
	const canary = "canary4711"
	for _, text := range []string{
		"SELECT '" + canary, "SELECT '" + canary + "' '", "SELECT 1 '" + canary + "' FROM", "SELECT b'\\q" + canary + "'", "SELECT \"\"\"" + canary,
		"LOAD DATA INTO x FROM FILES (" + canary, "SELECT * FROM `" + canary + "..`", "EXECUTE IMMEDIATE 'x " + canary + "'", "SET @@dataset_id = '" + canary + "-'",
		"SELECT * FROM `" + canary + "*x`", "SET @@dataset_project_id = '12345'", "SELECT FROM '" + canary + "'", "CREATE TEMP TABLE a.`" + canary + "` (x INT64)",
	} {
		f := Analyze(context.Background(), text, Options{Project: "p", Dataset: "d"})
		if f.Problem == nil {
			t.Errorf("%s: no problem", text)
		} else if strings.Contains(f.Problem.Message, canary) {
			t.Errorf("%s: %s", text, f.Problem.Message)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, c := range []struct {
		o    Options
		code string
	}{
		{Options{Project: "123"}, "project_number"}, {Options{Project: "p", Dataset: "a-b"}, "invalid_name"}, {Options{Project: "p", Dataset: "a.b"}, "invalid_name"},
		{Options{Project: "p", DatasetProject: "1", Dataset: "d"}, "project_number"}, {Options{Project: "p q"}, "invalid_name"},
	} {
		if f := Analyze(context.Background(), "SELECT 1", c.o); f.Problem == nil || f.Problem.Code != c.code {
			t.Errorf("%+v: %+v", c.o, f.Problem)
		}
	}
	// No project at all: only a name that has one is understood.
	if f := Analyze(context.Background(), "SELECT a FROM ds.t", Options{}); f.Problem == nil {
		t.Errorf("%+v", f.Reads)
	}
	if f := Analyze(context.Background(), "SELECT a FROM q.ds.t", Options{}); f.Problem != nil {
		t.Errorf("%+v", f.Problem)
	}
}
