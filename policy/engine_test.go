package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const analystsData = `{"grants": {"analysts": {
  "match": {"issuer": "corp", "group": "analysts"},
  "projects": ["acme"], "datasets": ["*"], "methods": ["read"],
  "limits": {"maximum_bytes_billed": 1000}}}}`

func TestDefaultGrantsNothing(t *testing.T) {
	e := newEngine(t, Config{})
	d, err := e.Decide(context.Background(), rowsInput())
	if err != nil || d.Allow || d.Reasons[0].Code != "no_grant" {
		t.Fatalf("%+v, %v", d, err)
	}
	if !strings.HasPrefix(e.Digest(), "sha256:") || len(e.Digest()) != len("sha256:")+64 {
		t.Errorf("digest %q", e.Digest())
	}
	if changed, err := e.Reload(context.Background()); changed || err != nil {
		t.Errorf("reload: %v, %v", changed, err)
	}
}

// TestDefaultRulesSQL runs the default rules over real texts, through the scanner.
func TestDefaultRulesSQL(t *testing.T) {
	e := newEngine(t, Config{Dir: dirWith(t, map[string]string{"data.json": `{"grants": {
		"reader": {"match": {"issuer": "corp", "group": "analysts"}, "projects": ["acme"], "datasets": ["*"], "methods": ["read"]},
		"writer": {"match": {"issuer": "corp", "group": "writers"}, "projects": ["acme"], "datasets": ["*"], "methods": ["write"]},
		"exporter": {"match": {"issuer": "corp", "group": "exporters"}, "projects": ["acme"], "datasets": ["*"], "methods": ["write"],
			"allow": ["EXPORT DATA", "EXTERNAL_QUERY", "EXECUTE IMMEDIATE", "CALL", "GRANT"]},
		"owner": {"match": {"issuer": "corp", "group": "owners"}, "projects": ["acme"], "datasets": ["*"], "methods": ["admin"]}
	}}`})})
	const ok = "granted"
	for _, tt := range []struct {
		sql                             string
		reader, writer, exporter, owner string
	}{
		{"SELECT 1", ok, ok, ok, ok},
		{"SELECT 'DROP TABLE x; --' AS a -- DELETE", ok, ok, ok, ok},
		{"WITH t AS (SELECT 1) SELECT * FROM t", ok, ok, ok, ok},
		{"FROM t |> SET a = 1 |> DROP b", ok, ok, ok, ok},
		{"FROM t |> EXPORT DATA OPTIONS (uri='x')", "sql_denied", "statement_denied", ok, "statement_denied"},
		{"SELECT 1; SELECT 2", "sql_denied", ok, ok, ok},
		{"INSERT INTO d.t SELECT 1", "sql_denied", ok, ok, ok},
		{"/* SELECT */ DELETE FROM d.t WHERE TRUE", "sql_denied", ok, ok, ok},
		{"SELECT 1 FROM t;\n DROP TABLE t", "sql_denied", ok, ok, ok},
		{"SELECT `drop`, `call` FROM t", ok, ok, ok, ok},
		{"SELECT call FROM t", "sql_denied", "statement_denied", ok, "statement_denied"},
		{"EXPORT DATA OPTIONS (uri='gs://x/*') AS SELECT 1", "sql_denied", "statement_denied", ok, "statement_denied"},
		{"SELECT * FROM EXTERNAL_QUERY('c', 'q')", "statement_denied", "statement_denied", ok, "statement_denied"},
		{"SELECT * FROM `External_Query`('c', 'q')", "statement_denied", "statement_denied", ok, "statement_denied"},
		{"EXECUTE IMMEDIATE 'DROP TABLE x'", "sql_denied", "statement_denied", ok, "statement_denied"},
		{"CREATE TEMP FUNCTION f() RETURNS INT64 LANGUAGE js AS 'return 1'; SELECT f()", "sql_denied", "statement_denied", "statement_denied", "statement_denied"},
		{"GRANT `roles/x` ON SCHEMA d TO 'user:a'", "sql_denied", "statement_denied", ok, "statement_denied"},
		{"CREATE ROW ACCESS POLICY p ON d.t FILTER USING (TRUE)", "statement_denied", "statement_denied", "statement_denied", "statement_denied"},
		{"DROP SCHEMA d CASCADE", "sql_denied", "sql_denied", "sql_denied", ok},
		{"SELECT query FROM `region-eu`.INFORMATION_SCHEMA.JOBS", "sql_denied", "sql_denied", "sql_denied", ok},
		{"SELECT query FROM `region-eu.information_schema.jobs_by_user`", "sql_denied", "sql_denied", "sql_denied", ok},
		{"SELECT * FROM d.INFORMATION_SCHEMA.TABLES", ok, ok, ok, ok},
		{"#legacySQL\nSELECT 1", "legacy_sql_denied", "legacy_sql_denied", "legacy_sql_denied", "legacy_sql_denied"},
		{"SELECT 'a", "sql_unreadable", "sql_unreadable", "sql_unreadable", "sql_unreadable"},
		{"-- nothing", "sql_missing", "sql_missing", "sql_missing", "sql_missing"},
	} {
		for group, want := range map[string]string{"analysts": tt.reader, "writers": tt.writer, "exporters": tt.exporter, "owners": tt.owner} {
			in := queryInput(tt.sql)
			in.Caller.Groups = []string{"corp/" + group}
			d, err := e.Decide(context.Background(), in)
			if err != nil {
				t.Fatalf("%s: %q: %v", group, tt.sql, err)
			}
			if d.Reasons[0].Code != want || d.Allow != (want == ok) {
				t.Errorf("%s: %q: %+v, want %s", group, tt.sql, d, want)
			}
		}
	}
}

func TestDataOnlyFolder(t *testing.T) {
	for name, content := range map[string]string{
		"data.json": analystsData,
		"data.yaml": "grants:\n  analysts:\n    match: {issuer: corp, group: analysts}\n    projects: [acme]\n    datasets: ['*']\n    methods: [read]\n    limits: {maximum_bytes_billed: 1000}\n",
	} {
		e := newEngine(t, Config{Dir: dirWith(t, map[string]string{name: content})})
		d, err := e.Decide(context.Background(), rowsInput())
		if err != nil || !d.Allow || d.Limits.MaximumBytesBilled != 1000 || d.Labels["verbatim_grant"] != "analysts" {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	e := newEngine(t, Config{Dir: dirWith(t, map[string]string{"grants/data.json": `{"analysts": {}}`})})
	if f := e.Current().Findings(); len(f) == 0 || f[0].Where != "grants.analysts" {
		t.Errorf("findings %v", f)
	}
}

func TestLoadErrors(t *testing.T) {
	sound := fixed(denyAll)
	rego := func(body string) map[string]string {
		return map[string]string{"p.rego": "package verbatim.policy\n\n" + body + "\n"}
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"syntax", rego("decision := }"), []string{"p.rego:3", "unexpected"}},
		{"old syntax", rego("decision[x] { x := 1 }"), []string{"p.rego:3"}},
		{"no decision", rego("other := 1"), []string{"no rule named decision"}},
		{"forbidden builtin", rego("x := http.send({\"method\": \"get\", \"url\": \"http://x\"})\n\ndecision := x"), []string{"p.rego:3", "http.send is not offered"}},
		{"environment", rego("decision := opa.runtime().env"), []string{"p.rego:3", "opa.runtime is not offered"}},
		{"clock", rego("decision := time.now_ns()"), []string{"p.rego:3", "time.now_ns is not offered"}},
		{"random", rego("decision := rand.intn(\"a\", 2)"), []string{"p.rego:3", "rand.intn is not offered"}},
		{"network", rego("decision := net.lookup_ip_addr(\"x\")"), []string{"p.rego:3", "net.lookup_ip_addr is not offered"}},
		{"schema from a URL", rego("decision := json.match_schema({}, {\"$ref\": \"http://x\"})"), []string{"p.rego:3", "json.match_schema is not offered"}},
		{"misspelt input", rego("decision := input.callr.issuer"), []string{"p.rego:3", "undefined ref: input.callr.issuer", "caller"}},
		{"misspelt inner input", rego("decision := input.request.projet"), []string{"p.rego:3", "undefined ref", "project"}},
		{"unused variable", rego("decision := 1 if { x := 1 }"), []string{"p.rego:3", "unused"}},
		{"undefined on a sample", rego("decision := " + denyAll + " if input.sql"), []string{"p.rego:3", "policy_undefined", "sample"}},
		{"error on a sample", rego("decision := " + denyAll + " if time.parse_rfc3339_ns(input.caller.subject) > 0"), []string{"p.rego:3", "policy_error", "sample"}},
		{"conflict on a sample", rego("decision := " + denyAll + "\n\ndecision := " + allowAll), []string{"p.rego:5", "policy_error", "conflict"}},
		{"ill-typed on a sample", rego(`decision := {"allow": "yes"}`), []string{"p.rego:3", "ill-typed", "has no field"}},
		{"input in prepare", copyOf(sound, map[string]string{"q.rego": "package verbatim.prepare\n\nimport data.other\n\nx := other.y\n", "r.rego": "package other\n\ny := input.time\n"}), []string{"r.rego:3", "verbatim.prepare"}},
		{"set in prepare", copyOf(sound, map[string]string{"q.rego": "package verbatim.prepare\n\nx contains 1\n"}), []string{"a set"}},
		{"bad findings", copyOf(sound, map[string]string{"q.rego": "package verbatim.prepare\n\nfindings := [1]\n"}), []string{"findings"}},
		{"data beside a package", copyOf(sound, map[string]string{"q.rego": "package other\n\ny := 1\n", "data.json": `{"other": {"y": 2}}`}), []string{"conflict"}},
		{"reserved data", copyOf(sound, map[string]string{"data.json": `{"verbatim": {}}`}), []string{"verbatim is kept"}},
		{"data of another name", copyOf(sound, map[string]string{"grants.json": `{}`}), []string{"grants.json", "data.json"}},
		{"broken JSON", map[string]string{"data.json": "{\n\"grants\": {},,\n}"}, []string{"data.json:2"}},
		{"cut JSON", map[string]string{"data.json": "{\n\"grants\": {"}, []string{"data.json:2", "unexpected EOF"}},
		{"JSON twice", map[string]string{"data.json": "{}\n{}"}, []string{"data.json:2", "more after"}},
		{"key twice", map[string]string{"data.json": "{\"grants\": {\n\"a\": {},\n\"a\": {}}}"}, []string{"data.json:3", `"a" stands twice`}},
		{"key in two files", map[string]string{"data.json": `{"grants": {"a": {}}}`, "grants/data.json": `{"a": 1}`}, []string{"grants/data.json", "grants.a", "another file"}},
		{"no object", map[string]string{"data.json": `[]`}, []string{"data.json:1", "object"}},
		{"deep JSON", map[string]string{"data.json": strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)}, []string{"nested deeper"}},
		{"broken YAML", map[string]string{"data.yaml": "grants: {\n  a: [\n"}, []string{"data.yaml"}},
		{"YAML key twice", map[string]string{"data.yaml": "grants:\n  a: {}\n  a: {}\n"}, []string{"data.yaml", "3:"}},
		{"unknown root", map[string]string{"data.json": `{"grant": {}}`}, []string{`no key "grant"`}},
		{"ill-typed root", map[string]string{"data.json": `{"grants": []}`}, []string{"grants is not an object"}},
		{"empty folder", map[string]string{"readme.txt": ""}, []string{"no .rego"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(context.Background(), Config{Dir: dirWith(t, tt.files)})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want it to hold %q", err, want)
				}
			}
		})
	}
	for _, c := range []Config{{Dir: "a", Bundle: "b"}, {PublicKey: "k"}, {Timeout: -1}, {Dir: filepath.Join(t.TempDir(), "none")}} {
		if _, err := New(context.Background(), c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

func TestTestsAndHiddenFilesAreLeftOut(t *testing.T) {
	files := copyOf(fixed(denyAll), map[string]string{
		"p_test.rego": "package verbatim.policy_test\n\ntest_x if http.send({})\n", ".hidden/data.json": "broken", "input.schema.json": "broken", "README.md": "x",
	})
	a := newEngine(t, Config{Dir: dirWith(t, files)})
	b := newEngine(t, Config{Dir: dirWith(t, fixed(denyAll))})
	if a.Digest() != b.Digest() {
		t.Error("files that decide nothing change the digest")
	}
}

// TestKubernetesVolume reads a folder as a ConfigMap is mounted, and follows
// its swap.
func TestKubernetesVolume(t *testing.T) {
	dir := t.TempDir()
	writeDir(t, dir, map[string]string{"..v1/p.rego": fixed(denyAll)["p.rego"], "..v2/p.rego": fixed(allowAll)["p.rego"]})
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, "tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..v1", "..data")
	link("..data/p.rego", "p.rego")
	e := newEngine(t, Config{Dir: dir})
	if d, err := e.Decide(context.Background(), rowsInput()); err != nil || d.Allow {
		t.Fatalf("%+v, %v", d, err)
	}
	link("..v2", "..data")
	if changed, err := e.Reload(context.Background()); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if d, err := e.Decide(context.Background(), rowsInput()); err != nil || !d.Allow {
		t.Fatalf("%+v, %v", d, err)
	}
}

func TestDigest(t *testing.T) {
	seen := map[string]string{}
	for _, files := range []map[string][]byte{
		{"a": []byte("b")}, {"ab": nil}, {"a": nil, "b": nil}, {"a": []byte("1:b0:")}, {},
	} {
		d := (&source{files: files}).digest()
		if other, ok := seen[d]; ok {
			t.Errorf("%v and %s have one digest", files, other)
		}
		seen[d] = fmt.Sprint(files)
	}
	const want = "sha256:97fdf3f87dc07a5aa83711a27367fc393140675a28fedf5307736beeb9295257"
	if got := (&source{files: map[string][]byte{"data.json": []byte("{}")}}).digest(); got != want {
		t.Errorf("the digest's definition has changed: %s, want %s", got, want)
	}
}

func TestReload(t *testing.T) {
	ctx := context.Background()
	dir := dirWith(t, fixed(denyAll))
	var l log
	e := newEngine(t, Config{Dir: dir, Logger: l.logger()})
	first := e.Current()

	writeDir(t, dir, fixed(allowAll))
	if changed, err := e.Reload(ctx); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if d, err := e.Decide(ctx, rowsInput()); err != nil || !d.Allow {
		t.Fatalf("%+v, %v", d, err)
	}
	if d, err := first.Decide(ctx, rowsInput()); err != nil || d.Allow {
		t.Fatalf("the pinned revision changed: %+v, %v", d, err)
	}
	if first.Digest() == e.Digest() {
		t.Error("two policies have one digest")
	}

	good := e.Digest()
	writeDir(t, dir, map[string]string{"p.rego": "package verbatim.policy\n\ndecision := {\n"})
	for range 3 {
		if changed, err := e.Reload(ctx); changed || err == nil || !strings.Contains(err.Error(), "p.rego:") {
			t.Fatal(changed, err)
		}
	}
	if e.Digest() != good || e.LastError() == nil {
		t.Fatal("a broken policy changed what is in force, or left no error")
	}
	if d, err := e.Decide(ctx, rowsInput()); err != nil || !d.Allow {
		t.Fatalf("%+v, %v", d, err)
	}
	if n := strings.Count(l.String(), "level=ERROR"); n != 1 {
		t.Errorf("the failure was logged %d times: %s", n, l.String())
	}

	writeDir(t, dir, fixed(allowAll))
	if changed, err := e.Reload(ctx); changed || err != nil || e.LastError() != nil {
		t.Fatal(changed, err, e.LastError())
	}
	if err := os.Remove(filepath.Join(dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Reload(ctx); err == nil {
		t.Fatal("an emptied folder was accepted")
	}
	if d, err := e.Decide(ctx, rowsInput()); err != nil || !d.Allow {
		t.Fatalf("%+v, %v", d, err)
	}
}

func TestWatch(t *testing.T) {
	dir := dirWith(t, fixed(denyAll))
	e := newEngine(t, Config{Dir: dir, Poll: 5 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Watch(ctx)
	}()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("timed out: %s", what)
			}
		}
	}
	old := e.Digest()
	writeDir(t, dir, fixed(allowAll))
	wait("the new policy", func() bool { return e.Digest() != old })
	writeDir(t, dir, map[string]string{"p.rego": "broken"})
	wait("the error", func() bool { return e.LastError() != nil })
	writeDir(t, dir, fixed(allowAll))
	wait("the error's end", func() bool { return e.LastError() == nil })
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Watch does not end with its context")
	}
}

// TestDecideDuringReload asks while the policy flips: each decision is whole
// and fits the digest of its revision.
func TestDecideDuringReload(t *testing.T) {
	ctx := context.Background()
	dir := dirWith(t, fixed(denyAll))
	e := newEngine(t, Config{Dir: dir, Timeout: time.Minute})
	allow := map[string]bool{e.Digest(): false}
	writeDir(t, dir, fixed(allowAll))
	if _, err := e.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	allow[e.Digest()] = true
	stop := make(chan struct{})
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := e.Current()
				d, err := r.Decide(ctx, queryInput("SELECT 1"))
				if err != nil || d.Allow != allow[r.Digest()] {
					t.Errorf("%s: %+v, %v", r.Digest(), d, err)
					return
				}
			}
		})
	}
	for i := range 20 {
		writeDir(t, dir, fixed([]string{denyAll, allowAll}[i%2]))
		if changed, err := e.Reload(ctx); !changed || err != nil {
			t.Error(changed, err)
		}
	}
	close(stop)
	g.Wait()
}

// runaway is a policy that takes for ever for one subject, which no sample has.
var runaway = map[string]string{"p.rego": `package verbatim.policy

decision := ` + denyAll + ` if input.caller.subject != "slow"

decision := ` + allowAll + ` if {
	input.caller.subject == "slow"
	count([1 | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); a == b]) > 0
}
`}

func TestTimeout(t *testing.T) {
	e := newEngine(t, Config{Dir: dirWith(t, runaway), Timeout: 50 * time.Millisecond})
	in := rowsInput()
	in.Caller.Subject = "slow"
	start := time.Now()
	d, err := e.Decide(context.Background(), in)
	var pe *Error
	if d != nil || !errors.As(err, &pe) || pe.Code != CodeTimeout {
		t.Fatalf("%+v, %v", d, err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("stopped after %s", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if d, err := e.Decide(ctx, rowsInput()); d != nil || !errors.As(err, &pe) || pe.Code != CodeTimeout {
		t.Fatalf("cancelled: %+v, %v", d, err)
	}
}

// TestErrorsHoldNothingOfTheInput makes each kind of failure happen on an
// input full of secrets.
func TestErrorsHoldNothingOfTheInput(t *testing.T) {
	const canary = "canary-7f3a"
	policy := func(body string) string {
		return "package verbatim.policy\n\ndecision := " + denyAll + " if input.caller.subject != \"" + canary + "\"\n\n" + body
	}
	guard := "input.caller.subject == \"" + canary + "\"\n"
	for _, tt := range []struct {
		name, rego string
		code       Code
	}{
		{"undefined", policy(""), CodeUndefined},
		{"builtin error", policy("decision := x if {\n" + guard + "x := time.parse_rfc3339_ns(input.sql.text)\n}\n"), CodeError},
		{"unmarshal", policy("decision := x if {\n" + guard + "x := json.unmarshal(input.sql.text)\n}\n"), CodeError},
		{"conflict", policy("decision := input.sql.text if {\n" + guard + "}\n\ndecision := input.caller.email if {\n" + guard + "}\n"), CodeError},
		{"ill-typed", policy("decision := input.sql.text if {\n" + guard + "}\n"), CodeError},
		{"ill-typed key", policy("decision := {input.sql.text: 1} if {\n" + guard + "}\n"), CodeError},
		{"ill-typed label", policy("decision := object.union(" + allowAll + ", {\"labels\": {input.sql.text: input.sql.text}}) if {\n" + guard + "}\n"), CodeError},
		{"ill-typed name", policy("decision := object.union(" + allowAll + ", {\"credential\": input.sql.text}) if {\n" + guard + "}\n"), CodeError},
		{"printed", policy("decision := x if {\n" + guard + "print(input.sql.text)\nx := 1\n}\n"), CodeError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l log
			e := newEngine(t, Config{Dir: dirWith(t, map[string]string{"p.rego": tt.rego}), Logger: l.logger()})
			in := queryInput("SELECT '" + canary + "'")
			in.Caller.Subject, in.Caller.Email = canary, canary+"@x"
			in.SQL.Parameters = json.RawMessage(`["` + canary + `"]`)
			_, err := e.Decide(context.Background(), in)
			var pe *Error
			if !errors.As(err, &pe) || pe.Code != tt.code {
				t.Fatalf("error %v, want %s", err, tt.code)
			}
			if s := fmt.Sprintf("%v %s %q", err, err, l.String()); strings.Contains(s, canary) {
				t.Errorf("the input shows: %s", s)
			}
		})
	}
	e := newEngine(t, Config{})
	in := queryInput("SELECT 1")
	in.SQL.Parameters = json.RawMessage(canary)
	for _, bad := range []*Input{nil, {}, in} {
		d, err := e.Decide(context.Background(), bad)
		var pe *Error
		if d != nil || !errors.As(err, &pe) || pe.Code != CodeError || strings.Contains(err.Error(), canary) {
			t.Errorf("%+v, %v", d, err)
		}
	}
}
