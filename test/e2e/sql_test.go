package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/bigquery"
	"golang.org/x/oauth2"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// datasetGrants give people of the group open no more than the dataset open,
// and a scratch dataset.
const datasetGrants = `{"grants": {
  "open": {"match": {"issuer": "corp", "group": "open"}, "projects": ["demo-project"], "read": ["demo-project.open"], "scratch": ["demo-project.scratch"]}
}}`

// tables are the names of a record's uses, sorted.
func tables(list []record.TableUse) string {
	var out []string
	for _, u := range list {
		out = append(out, strings.TrimPrefix(u.Table, harness.Project+".")+"/"+u.Source)
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}

// post sends a body as JSON.
func (c caller) post(t testing.TB, path string, body map[string]any) harness.Answer {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return c.do(t, "POST", path, string(b))
}

// attack is a request, what becomes of it and what is on record of it.
type attack struct {
	name, path string
	body       map[string]any
	status     int    // of a denial; 0: it is allowed
	code       string // of the reason, or the beginning of it
	reads      string // tables with their sources, of the intent
}

// TestTablesDecide is a table of texts and doors for a caller who may read one
// dataset: what the text does decides, however it is written, and it is on
// record whether it was allowed or not.
func TestTablesDecide(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: datasetGrants})
	const p = harness.Project + "."
	r.Double.SetView(p+"open.safe", "SELECT a FROM `demo-project.open.base`")
	r.Double.SetView(p+"open.leaky", "SELECT a FROM `demo-project.secret.t`")
	r.Double.SetView(p+"open.deep", "SELECT a FROM `demo-project.open.leaky`")
	r.Double.SetRoutine(p+"open.peek", "(SELECT MAX(a) FROM `demo-project.secret.t`)")
	ada := caller{r, mint(t, r, "ada", "open")}
	job := func(config map[string]any) map[string]any { return map[string]any{"configuration": config} }
	query := func(text string, more ...any) map[string]any {
		m := map[string]any{"query": text, "useLegacySql": false}
		for i := 0; i+1 < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	ref := func(dataset, table string) map[string]any {
		return map[string]any{"projectId": harness.Project, "datasetId": dataset, "tableId": table}
	}
	const queries, jobs, open = api + "/queries", api + "/jobs", api + "/datasets/open"
	for _, c := range []attack{
		{"the granted dataset", queries, query("SELECT a FROM open.t"), 0, "", "open.t/parser"},
		{"in full", queries, query("SELECT a FROM `demo-project`.open.t JOIN `demo-project.open.u` USING (a)"), 0, "", "open.t/parser open.u/parser"},
		{"by default dataset", queries, query("SELECT a FROM t", "defaultDataset", map[string]any{"datasetId": "open"}), 0, "", "open.t/parser"},
		{"a wildcard", queries, query("SELECT a FROM `demo-project.open.e_*`"), 0, "", "open.e_*/parser"},
		{"a CTE of a granted table", queries, query("WITH t AS (SELECT a FROM open.t) SELECT * FROM t"), 0, "", "open.t/parser"},
		{"no table", queries, query("SELECT 1"), 0, "", ""},
		{"a safe view", queries, query("SELECT a FROM open.safe"), 0, "", "open.base/dry_run open.base/job open.safe/job open.safe/parser"},
		{"a table of one's own", queries, query("CREATE TABLE scratch.mine AS SELECT a FROM open.t"), 0, "", "open.t/parser"},

		{"another dataset", queries, query("SELECT a FROM secret.t"), 403, "", "secret.t/parser"},
		{"in a comment's shadow", queries, query("SELECT a FROM /* open.t */ secret . `t` -- open.t"), 403, "", "secret.t/parser"},
		{"in a subquery", queries, query("SELECT (SELECT MAX(a) FROM secret.t) FROM open.t"), 403, "", "open.t/parser secret.t/parser"},
		{"in a CTE", queries, query("WITH x AS (SELECT * FROM secret.t) SELECT a FROM open.t, x"), 403, "", "open.t/parser secret.t/parser"},
		{"a CTE of the same name", queries, query("WITH t AS (SELECT * FROM t) SELECT * FROM t", "defaultDataset", map[string]any{"datasetId": "secret"}), 403, "", "secret.t/parser"},
		{"default dataset", queries, query("SELECT a FROM t", "defaultDataset", map[string]any{"datasetId": "secret"}), 403, "", "secret.t/parser"},
		{"a wildcard of another", queries, query("SELECT a FROM `demo-project.secret.*`"), 403, "", "secret.*/parser"},
		{"another project", queries, query("SELECT a FROM `other-project.open.t`"), 403, "", "other-project.open.t/parser"},
		{"a view over it", queries, query("SELECT a FROM open.leaky"), 403, "", "open.leaky/parser secret.t/dry_run"},
		{"a view over a view over it", queries, query("SELECT a FROM open.deep"), 403, "", "open.deep/parser open.leaky/dry_run secret.t/dry_run"},
		{"a function over it", queries, query("SELECT `demo-project.open.peek`()"), 403, "", ""},
		{"a pipe", queries, query("FROM open.t |> JOIN secret.t USING (a) |> SELECT a"), 403, "", "open.t/parser secret.t/parser"},
		{"a script", queries, query("SELECT 1; BEGIN SELECT a FROM secret.t; END"), 403, "", "secret.t/parser"},
		{"the default rebound", queries, query("SET @@dataset_id = 'secret'; SELECT a FROM t", "defaultDataset", map[string]any{"datasetId": "open"}), 403, "", "secret.t/parser"},
		{"time travel", queries, query("SELECT a FROM secret.t FOR SYSTEM_TIME AS OF CURRENT_TIMESTAMP()"), 403, "", "secret.t/parser"},
		{"INFORMATION_SCHEMA of jobs", queries, query("SELECT query FROM `region-us`.INFORMATION_SCHEMA.JOBS"), 403, "", "INFORMATION_SCHEMA.JOBS/parser"},
		{"a Unicode look-alike", queries, query("SELECT a FROM оpen.t"), 400, "sql_syntax", ""},

		{"dynamic SQL", queries, query("EXECUTE IMMEDIATE CONCAT('SELECT a FROM sec', 'ret.t')"), 403, "", ""},
		{"EXTERNAL_QUERY", queries, query("SELECT * FROM EXTERNAL_QUERY('us.c', 'SELECT 1')"), 403, "", ""},
		{"EXPORT DATA", queries, query("EXPORT DATA OPTIONS (uri='gs://b/*', format='CSV') AS SELECT a FROM open.t"), 403, "", "open.t/parser"},
		{"CTAS into another", queries, query("CREATE TABLE secret.mine AS SELECT a FROM open.t"), 403, "", "open.t/parser"},
		{"CTAS of another", queries, query("CREATE TABLE scratch.mine AS SELECT a FROM secret.t"), 403, "", "secret.t/parser"},
		{"a clone of another", queries, query("CREATE TABLE scratch.mine CLONE secret.t"), 403, "", "secret.t/parser"},
		{"a view's definition", queries, query("CREATE VIEW scratch.v AS SELECT a FROM secret.t"), 403, "", "secret.t/parser"},
		{"a function's definition", queries, query("CREATE FUNCTION scratch.f() AS ((SELECT MAX(a) FROM secret.t))"), 403, "", "secret.t/parser"},
		{"a procedure", queries, query("CALL open.p()"), 403, "", ""},
		{"DML", queries, query("INSERT INTO open.t SELECT a FROM open.u"), 403, "", "open.u/parser"},
		{"MERGE", queries, query("MERGE open.t USING open.s s ON FALSE WHEN NOT MATCHED THEN INSERT ROW"), 403, "", "open.s/parser open.t/parser"},
		{"JavaScript", queries, query("CREATE TEMP FUNCTION f() RETURNS INT64 LANGUAGE js AS 'return 1'; SELECT f()"), 403, "", ""},
		{"legacy SQL", queries, map[string]any{"query": "#legacySQL\nSELECT a FROM [demo-project:secret.t]"}, 403, "legacy_sql", ""},
		{"legacy SQL by flag", queries, map[string]any{"query": "SELECT a FROM open.t", "useLegacySql": true}, 403, "legacy_sql", "open.t/parser"},
		{"a syntax error", queries, query("SELECT a FROM open.t WHERE"), 400, "", ""},
		{"no default dataset", queries, query("SELECT a\nFROM t"), 400, "sql_no_default_dataset", ""},
		{"too deep", queries, query("SELECT " + strings.Repeat("(", 3000) + "1" + strings.Repeat(")", 3000)), 403, "sql_too_deep", ""},

		{"a destination", jobs, job(map[string]any{"query": query("SELECT a FROM open.t", "destinationTable", ref("secret", "t"))}), 403, "", "open.t/parser"},
		{"a scratch destination", jobs, job(map[string]any{"query": query("SELECT a FROM secret.t", "destinationTable", ref("scratch", "t"))}), 403, "", "secret.t/parser"},
		{"a copy", jobs, job(map[string]any{"copy": map[string]any{"sourceTable": ref("secret", "t$20240101"), "destinationTable": ref("scratch", "t")}}), 403, "", "secret.t/copy"},
		{"an extract", jobs, job(map[string]any{"extract": map[string]any{"sourceTable": ref("open", "t"), "destinationUri": "gs://b/o"}}), 403, "job_extract", "open.t/extract"},
		{"a view by tables.insert", open + "/tables", map[string]any{"tableReference": ref("open", "v"), "view": query("SELECT a FROM secret.t")}, 403, "", "secret.t/parser"},
		{"a view in scratch", api + "/datasets/scratch/tables", map[string]any{"tableReference": ref("scratch", "v"), "view": query("SELECT a FROM secret.t")}, 403, "", "secret.t/parser"},
		{"a legacy view", api + "/datasets/scratch/tables", map[string]any{"tableReference": ref("scratch", "v"), "view": map[string]any{"query": "SELECT a FROM open.t"}}, 403, "legacy_sql", ""},
		{"a routine's body", api + "/datasets/scratch/routines", map[string]any{"routineReference": map[string]any{"projectId": harness.Project, "datasetId": "scratch", "routineId": "f"},
			"routineType": "SCALAR_FUNCTION", "language": "SQL", "definitionBody": "(SELECT MAX(a) FROM secret.t)"}, 403, "", "secret.t/parser"},
	} {
		a := ada.post(t, c.path, c.body)
		x, _ := r.Evidence(a.Receipt)
		if got := tables(x.Reads); got != c.reads {
			t.Errorf("%s: on record it reads %q, want %q", c.name, got, c.reads)
		}
		if c.status == 0 {
			if strings.HasPrefix(a.Message(), "Verbatim") || x.Decision == nil || !x.Decision.Allow || a.Status != 200 {
				t.Errorf("%s: %d %s", c.name, a.Status, a.Message())
			}
			continue
		}
		code := ""
		if x.Decision != nil && len(x.Decision.Reasons) > 0 {
			code = x.Decision.Reasons[0].Code
		}
		if a.Status != c.status || !strings.HasPrefix(a.Message(), "Verbatim: ") || x.Forwarded != nil || x.Result != record.ResultDenied || !strings.HasPrefix(code, c.code) {
			t.Errorf("%s: %d %s; on record %s, %+v", c.name, a.Status, a.Message(), x.Result, x.Decision)
			continue
		}
		t.Logf("%s: %s", c.name, a.Message())
	}
	for _, q := range r.Double.Requests() {
		if strings.Contains(string(q.Body), "secret") && !strings.Contains(string(q.Body), `"dryRun":true`) {
			t.Errorf("upstream came %s", q.Body)
		}
	}
	var found []string
	for _, x := range r.Search(search.Filter{Table: "secret.t", Decision: "deny"}) {
		if x.SQL == "SELECT a FROM open.deep" {
			found = append(found, x.ID)
		}
	}
	if len(found) != 1 {
		t.Errorf("a search for the table finds %d reads through views, want 1", len(found))
	}
	r.Verify()
}

// TestViewThatIsChangedInBetween has a view changed while BigQuery's word on it
// is remembered: the finished job tells, and no row goes out.
func TestViewThatIsChangedInBetween(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: datasetGrants})
	const p = harness.Project + "."
	ada := caller{r, mint(t, r, "ada", "open")}
	run := func(text string) harness.Answer {
		t.Helper()
		return ada.post(t, api+"/queries", map[string]any{"query": text, "useLegacySql": false})
	}
	const small, large = "SELECT a FROM open.v", "SELECT a FROM open.v /*verbatim:bytes=20000000*/"
	for _, text := range []string{small, large} {
		r.Double.SetView(p+"open.v", "SELECT a FROM `demo-project.open.base`")
		a := run(text)
		if a.Status != 200 {
			t.Fatalf("the view as it was: %d %s", a.Status, a.Message())
		}
		x, _ := r.Evidence(a.Receipt)
		if got := tables(x.Reads); got != "open.base/dry_run open.base/job open.v/job open.v/parser" {
			t.Errorf("on record it reads %q", got)
		}
		r.Double.SetView(p+"open.v", "SELECT a FROM `demo-project.secret.t`")
		a = run(text)
		if a.Status != 403 || !strings.Contains(a.Message(), "[job_reached_more, ") {
			t.Errorf("the view that was changed: %d, %d bytes, %s", a.Status, len(a.Body), a.Message())
		}
		x, _ = r.Evidence(a.Receipt)
		if got := tables(x.Reads); x.Result != record.ResultAborted || !strings.Contains(got, "secret.t/job") {
			t.Errorf("on record is %s, and it reads %q", x.Result, got)
		}
	}
	// The same by jobs.insert and the pages of its result, also where the gateway
	// has forgotten what it decided.
	for _, again := range []bool{false, true} {
		id := fmt.Sprint("changed-", again)
		text := "SELECT a FROM open.v -- " + id
		r.Double.SetView(p+"open.v", "SELECT a FROM `demo-project.open.base`")
		ada.insert(t, id+"-before", text)
		r.Double.SetView(p+"open.v", "SELECT a FROM `demo-project.secret.t`")
		ada.insert(t, id, text)
		if again {
			restartFor(t, r)
		}
		a := ada.do(t, "GET", api+"/queries/"+id, "")
		if a.Status != 403 || !strings.Contains(a.Message(), "[job_reached_more, ") {
			t.Errorf("a page, forgotten %v: %d %s", again, a.Status, a.Message())
		}
	}
	r.Verify()
}

// restartFor kills the gateway and starts it again.
func restartFor(t testing.TB, r *harness.Rig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r.Extproc.Kill()
	if err := r.StartExtproc(ctx); err != nil {
		t.Fatal(err)
	}
	c := caller{r, mint(t, r, "waiting", "open")}
	for c.do(t, "GET", "/$discovery/rest?version=v2", "").Status != 200 {
		if ctx.Err() != nil {
			t.Fatal("the gateway does not come back")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestObserveMode brings a fleet in: the policy's denials go through and are on
// record, those of others are not.
func TestObserveMode(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: datasetGrants, Configure: func(m map[string]any) {
		m["observe"] = []any{map[string]any{"issuer": "corp", "group": "migrating"}}
	}})
	ada, eve := caller{r, mint(t, r, "ada", "open", "migrating")}, caller{r, mint(t, r, "eve", "open")}
	body := map[string]any{"query": "SELECT a FROM secret.t", "useLegacySql": false}
	denied(t, r, "who is not observed", eve.post(t, api+"/queries", body), 403, "dataset_denied")
	a := ada.post(t, api+"/queries", body)
	x, _ := r.Evidence(a.Receipt)
	if a.Status != 200 || x.Decision == nil || !x.Decision.Allow || !x.Decision.WouldDeny || len(x.Decision.Reasons) == 0 || x.Decision.Reasons[0].Code == "granted" {
		t.Errorf("who is observed: %d %s, %+v", a.Status, a.Message(), x.Decision)
	}
	for what, a := range map[string]harness.Answer{
		"SQL that is not understood": ada.post(t, api+"/queries", map[string]any{"query": "SELECT a\nFROM t", "useLegacySql": false}),
		"an unknown route":           ada.do(t, "GET", "/bigquery/v2/nothing", ""),
		"another's job":              ada.do(t, "GET", api+"/queries/none", ""),
	} {
		if a.Status < 400 || !strings.HasPrefix(a.Message(), "Verbatim: ") {
			t.Errorf("%s: %d %s", what, a.Status, a.Message())
		}
	}
}

// TestBudgets spends a budget of queries, and finds it spent after a crash.
func TestBudgets(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: `{"grants": {"open": {"match": {"issuer": "corp", "group": "open"}, "projects": ["demo-project"], "read": ["demo-project.open"],
	  "budgets": [{"of": "principal", "window": "24h", "queries": 3}]}}}`})
	ada, bob := caller{r, mint(t, r, "ada", "open")}, caller{r, mint(t, r, "bob", "open")}
	run := func(c caller) harness.Answer {
		t.Helper()
		return c.post(t, api+"/queries", map[string]any{"query": "SELECT a FROM open.t", "useLegacySql": false})
	}
	for i := range 3 {
		if a := run(ada); a.Status != 200 {
			t.Fatalf("query %d: %d %s", i, a.Status, a.Message())
		}
		if i == 1 {
			restartFor(t, r)
		}
	}
	a := run(ada)
	if a.Status != 403 || !strings.Contains(a.Message(), "budget") {
		t.Errorf("the fourth query: %d %s", a.Status, a.Message())
	}
	restartFor(t, r)
	if a := run(ada); a.Status != 403 {
		t.Errorf("after a crash: %d %s", a.Status, a.Message())
	}
	if a := run(bob); a.Status != 200 {
		t.Errorf("another caller: %d %s", a.Status, a.Message())
	}
}

// TestViewsWithClients has Go's and Python's clients query views of the emulator
// through the gateway.
func TestViewsWithClients(t *testing.T) {
	r := harness.Start(t, harness.Options{Emulator: true, Policy: strings.Replace(grants, `"grants": {`,
		`"grants": {"open": {"match": {"issuer": "corp", "group": "open"}, "projects": ["demo-project"], "read": ["demo-project.open"]},`, 1)})
	client := func(who string, groups ...string) *bigquery.Client {
		c, err := bigquery.NewClient(t.Context(), harness.Project, option.WithEndpoint(r.URL()+"/bigquery/v2/"),
			option.WithTokenSource(oauth2.StaticTokenSource(&oauth2.Token{AccessToken: mint(t, r, who, groups...)})))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	run := func(c *bigquery.Client, text string) (int, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		it, err := c.Query(text).Read(ctx)
		if err != nil {
			return 0, err
		}
		for n := 0; ; n++ {
			var row []bigquery.Value
			if err := it.Next(&row); err == iterator.Done {
				return n, nil
			} else if err != nil {
				return n, err
			}
		}
	}
	owner, ada := client("owner", "writers"), client("ada", "open")
	for _, text := range []string{
		"CREATE SCHEMA open", "CREATE SCHEMA secret", "CREATE TABLE open.base AS SELECT 1 AS a UNION ALL SELECT 2", "CREATE TABLE secret.t AS SELECT 'canary' AS a",
		"CREATE VIEW open.safe AS SELECT a FROM `demo-project.open.base`", "CREATE VIEW open.leaky AS SELECT a FROM `demo-project.secret.t`",
	} {
		if _, err := run(owner, text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	for text, rows := range map[string]int{"SELECT a FROM open.base": 2, "SELECT a FROM open.safe": 2} {
		if n, err := run(ada, text); err != nil || n != rows {
			t.Errorf("%s: %d rows, %v", text, n, err)
		}
	}
	for _, text := range []string{"SELECT a FROM secret.t", "SELECT a FROM open.leaky", "SELECT a FROM open.base UNION ALL SELECT a FROM open.leaky"} {
		_, err := run(ada, text)
		if err == nil || !receiptIn.MatchString(err.Error()) {
			t.Errorf("%s: %v", text, err)
		}
	}
	dir := t.TempDir()
	token := mint(t, r, "ada", "open")
	file := filepath.Join(dir, "reader.token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	j := job{URL: r.URL(), Project: harness.Project, Tokens: map[string]string{"reader": file}, Steps: []step{
		{Name: "safe", Do: "query", As: "reader", SQL: "SELECT a FROM open.safe ORDER BY a"},
		{Name: "leaky", Do: "query", As: "reader", SQL: "SELECT a FROM open.leaky"},
	}}
	got := script(t, dir, j, r.Tools.Python, "clients/agent.py")
	if len(got) != 2 || len(got[0].Rows) != 2 || got[0].Error != "" || !receiptIn.MatchString(got[1].Error) {
		t.Errorf("Python sees %+v", got)
	}
	eventually(t, "a search for the table finds four denials", func() bool {
		return len(r.Search(search.Filter{Table: "secret.t", Decision: "deny"})) >= 4
	})
	r.Verify()
}
