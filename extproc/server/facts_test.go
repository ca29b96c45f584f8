package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/extproc/credential"
	"verbatim.dev/extproc/usage"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// rules is a policy of one function.
type rules func(in *policy.Input) *policy.Decision

func (r rules) Decide(_ context.Context, in *policy.Input) (*policy.Decision, error) {
	return r(in), nil
}
func (r rules) Digest() string { return "sha256:test" }
func (r rules) Windows() []policy.Window {
	return []policy.Window{{Of: "principal", Seconds: 3600}, {Of: "run", Seconds: 60}}
}

func allow(*policy.Input) *policy.Decision { return &policy.Decision{Allow: true} }

// forbids denies what reads or writes a table of the dataset, and hears BigQuery
// about every query first.
func forbids(dataset string) rules {
	return func(in *policy.Input) *policy.Decision {
		for _, t := range slices.Concat(in.Reads, in.Writes) {
			if t.Dataset == dataset {
				return &policy.Decision{Reasons: []policy.Reason{{Code: "dataset_denied", Message: "no " + t.Name()}}}
			}
		}
		if in.SQL != nil && in.SQL.DryRun == nil && in.Request.JobType == "query" {
			return &policy.Decision{Allow: true, DryRun: true}
		}
		return &policy.Decision{Allow: true, Reasons: []policy.Reason{{Code: "granted", Message: "yes"}}}
	}
}

type fixedToken struct{}

func (fixedToken) Token(context.Context, credential.Caller) (credential.Token, error) {
	return credential.Token{Value: "up", Name: "n"}, nil
}
func (fixedToken) Check(context.Context) error { return nil }
func (fixedToken) Close() error                { return nil }

// bq is a BigQuery that answers dry runs by the text, and says of jobs what a
// test tells it to.
type bq struct {
	mu     sync.Mutex
	asked  []string          // bodies of dry runs
	answer map[string]string // by text: "TYPE table table ...", or "!STATUS message"
	jobs   map[string]string // by id: the same
	labels map[string]map[string]string
	wait   chan struct{}
}

func (b *bq) resource(what string) map[string]any {
	parts := strings.Fields(what)
	q := map[string]any{"statementType": parts[0], "totalBytesProcessed": "1000"}
	var tables []any
	for _, t := range parts[1:] {
		p := strings.Split(strings.TrimPrefix(t, ">"), ".")
		ref := map[string]any{"projectId": p[0], "datasetId": p[1], "tableId": p[2]}
		if strings.HasPrefix(t, ">") {
			q["ddlTargetTable"] = ref
			continue
		}
		tables = append(tables, ref)
	}
	if tables != nil {
		q["referencedTables"] = tables
	}
	return map[string]any{"status": map[string]any{"state": "DONE"}, "statistics": map[string]any{"query": q}}
}

func (b *bq) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if b.wait != nil {
		<-b.wait
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	what, labels := "", map[string]string(nil)
	if r.Method == http.MethodPost {
		b.asked = append(b.asked, string(body))
		var job struct {
			Configuration struct {
				DryRun bool
				Query  struct{ Query string }
			}
		}
		if json.Unmarshal(body, &job) != nil || !job.Configuration.DryRun {
			http.Error(w, "no dry run", http.StatusTeapot)
			return
		}
		what = b.answer[job.Configuration.Query.Query]
	} else {
		id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		what, labels = b.jobs[id], b.labels[id]
	}
	if what == "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if refusal, ok := strings.CutPrefix(what, "!"); ok {
		status, message, _ := strings.Cut(refusal, " ")
		w.WriteHeader(atoi(status))
		json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": message, "errors": []any{map[string]any{"reason": "invalidQuery"}}}})
		return
	}
	res := b.resource(what)
	res["configuration"], res["user_email"] = map[string]any{"labels": labels}, "gateway@example.com"
	json.NewEncoder(w).Encode(res)
}

type sqlRig struct {
	t    *testing.T
	gate *Gate
	bq   *bq
}

func newSQLRig(t *testing.T, p Policy) *sqlRig {
	t.Helper()
	b := &bq{answer: map[string]string{}, jobs: map[string]string{}, labels: map[string]map[string]string{}}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	return &sqlRig{t: t, bq: b, gate: &Gate{
		SessionKey: make([]byte, 32), Logger: slog.New(slog.DiscardHandler), Now: time.Now, Policy: p,
		Verifier: proven{}, Revoked: func(*auth.Identity) (string, bool) { return "", false }, Retention: map[string]bool{},
		Connections: []*Connection{{Name: "c", Projects: []string{"p"}, Recording: "full", REST: srv.URL, Credential: fixedToken{}, Client: srv.Client()}},
		Owners:      bigquery.NewOwners(0), Jobs: NewJobs(10), SQL: sql.New(sql.Config{}), DryRuns: NewDryRuns(time.Minute, 100), Reaches: NewReaches(100),
		Accounts: NewAccounts(), Sessions: NewSessions(10),
	}}
}

// exchange is one, with a recorder that settles at once.
func (s *sqlRig) exchange() *rig {
	tp := &tape{t: s.t, auto: true}
	srv, err := New(Config{Recorder: tp, Refused: func() {}, Logger: s.gate.Logger, Gate: func() *Gate { return s.gate },
		Limits: Limits{Exchanges: 10, Window: 64 << 10, Share: LeastShare, Budget: 1 << 20, Body: 1 << 20, Decision: 5 * time.Second, Journal: time.Minute, Idle: time.Minute}})
	if err != nil {
		s.t.Fatal(err)
	}
	r := &rig{tape: tp}
	r.exchange = srv.exchange(s.t.Context(), &running{kill: make(chan string, 1)}, false)
	return r
}

// send sends a request and returns the exchange as it stands then.
func (s *sqlRig) send(method, path, body string) *rig {
	s.t.Helper()
	r := s.exchange()
	h := head(":method", method, ":path", path, ":authority", "gw", "authorization", "Bearer a.b.c", "content-type", "application/json")
	if body == "" {
		h.GetRequestHeaders().EndOfStream = true
		r.do(h)
		return r
	}
	r.do(h, reqBody(body, true))
	return r
}

const queriesPath = "/bigquery/v2/projects/p/queries"

func (s *sqlRig) query(text string) *rig {
	s.t.Helper()
	b, _ := json.Marshal(map[string]any{"query": text, "useLegacySql": false})
	return s.send("POST", queriesPath, string(b))
}

func (r *rig) intent(t *testing.T) record.Intent {
	t.Helper()
	for _, a := range r.tape.appends {
		for _, d := range a {
			if d.Kind == record.KindIntent {
				var i record.Intent
				if err := json.Unmarshal(d.Body, &i); err != nil {
					t.Fatal(err)
				}
				return i
			}
		}
	}
	t.Fatalf("no intent on record: %s", r.tape.kinds())
	return record.Intent{}
}

// verdict is "allow", or the code and the answer's status.
func (r *rig) verdict(t *testing.T) string {
	t.Helper()
	d := r.intent(t).Verbatim.Decision
	if d.Allow {
		if d.WouldDeny {
			return "would deny " + d.Reasons[0].Code
		}
		return "allow"
	}
	return fmt.Sprintf("%d %s", r.status, d.Reasons[0].Code)
}

func shown(list []record.TableUse) string {
	var out []string
	for _, u := range list {
		out = append(out, u.Table+"/"+u.Source)
	}
	return strings.Join(out, " ")
}

func TestTablesOfEveryDoor(t *testing.T) {
	s := newSQLRig(t, rules(allow))
	const ds = "/bigquery/v2/projects/p/datasets/d"
	jobs := func(config string) string { return `{"configuration":` + config + `}` }
	ref := func(t string) string { return `{"projectId":"p","datasetId":"d","tableId":"` + t + `"}` }
	for _, c := range []struct{ what, method, path, body, verdict, reads, writes string }{
		{"a query", "POST", queriesPath, `{"query":"SELECT a FROM d.t JOIN q.e.u USING (a)","useLegacySql":false}`, "allow", "p.d.t/parser q.e.u/parser", ""},
		{"its default dataset", "POST", queriesPath, `{"query":"SELECT 1 FROM t","useLegacySql":false,"defaultDataset":{"datasetId":"d"}}`, "allow", "p.d.t/parser", ""},
		{"a wildcard", "POST", queriesPath, "{\"query\":\"SELECT 1 FROM `p.d.e_*`\",\"useLegacySql\":false}", "allow", "p.d.e_*/parser", ""},
		{"a destination", "POST", "/bigquery/v2/projects/p/jobs", jobs(`{"query":{"query":"SELECT 1 FROM d.t","useLegacySql":false,"destinationTable":` + ref("x$20240101") + `}}`), "allow", "p.d.t/parser", "p.d.x/body"},
		{"DML", "POST", queriesPath, `{"query":"INSERT INTO d.w SELECT * FROM d.t","useLegacySql":false}`, "allow", "p.d.t/parser", "p.d.w/parser"},
		{"a copy", "POST", "/bigquery/v2/projects/p/jobs", jobs(`{"copy":{"sourceTables":[` + ref("t@-3600") + `],"destinationTable":` + ref("x") + `}}`), "allow", "p.d.t/copy", "p.d.x/copy"},
		{"a copy by project number", "POST", "/bigquery/v2/projects/p/jobs", jobs(`{"copy":{"sourceTable":{"projectId":"123","datasetId":"d","tableId":"t"},"destinationTable":` + ref("x") + `}}`), "400 project_number", "", "p.d.x/copy"},
		{"a load", "POST", "/bigquery/v2/projects/p/jobs", jobs(`{"load":{"sourceUris":["gs://b/o"],"destinationTable":` + ref("x") + `}}`), "allow", "", "p.d.x/load"},
		{"an extract", "POST", "/bigquery/v2/projects/p/jobs", jobs(`{"extract":{"sourceTable":` + ref("t$2024") + `,"destinationUris":["gs://b/o"]}}`), "403 job_extract", "p.d.t/extract", ""},
		{"rows", "GET", ds + "/tables/t$20240101/data", "", "allow", "p.d.t/route", ""},
		{"metadata", "GET", ds + "/tables/t", "", "allow", "p.d.t/route", ""},
		{"a dataset", "GET", ds + "/tables", "", "allow", "p.d/route", ""},
		{"insertAll", "POST", ds + "/tables/t/insertAll", `{"rows":[{"json":{}}]}`, "allow", "", "p.d.t/route"},
		{"delete", "DELETE", ds + "/tables/t", "", "allow", "", "p.d.t/route"},
		{"a view", "POST", ds + "/tables", `{"tableReference":` + ref("v") + `,"view":{"query":"SELECT * FROM e.t","useLegacySql":false}}`, "allow", "p.e.t/parser", "p.d.v/body"},
		{"a legacy view", "POST", ds + "/tables", `{"tableReference":` + ref("v") + `,"view":{"query":"SELECT * FROM e.t"}}`, "403 legacy_sql", "", "p.d.v/body"},
		{"a materialized view", "POST", ds + "/tables", `{"tableReference":` + ref("v") + `,"materializedView":{"query":"SELECT * FROM e.t"}}`, "allow", "p.e.t/parser", "p.d.v/body"},
		{"a function", "POST", ds + "/routines", `{"routineReference":{"projectId":"p","datasetId":"d","routineId":"f"},"routineType":"SCALAR_FUNCTION","language":"SQL","definitionBody":"(SELECT MAX(a) FROM e.t) -- x"}`, "allow", "p.e.t/parser", "p.d/route"},
		{"a function that is more", "POST", ds + "/routines", `{"routineReference":{"projectId":"p","datasetId":"d","routineId":"f"},"routineType":"SCALAR_FUNCTION","language":"SQL","definitionBody":"1); DROP TABLE e.t; SELECT (1"}`, "400 sql_syntax", "", "p.d/route"},
		{"a procedure", "POST", ds + "/routines", `{"routineReference":{"projectId":"p","datasetId":"d","routineId":"f"},"routineType":"PROCEDURE","language":"SQL","definitionBody":"BEGIN INSERT INTO e.w SELECT * FROM e.t; END"}`, "allow", "p.e.t/parser", "p.d/route p.e.w/parser"},
		{"JavaScript", "POST", ds + "/routines", `{"routineReference":{"projectId":"p","datasetId":"d","routineId":"f"},"routineType":"SCALAR_FUNCTION","language":"JAVASCRIPT","definitionBody":"return 1"}`, "allow", "", "p.d/route"},
	} {
		r := s.send(c.method, c.path, c.body)
		i := r.intent(t).Verbatim.Call
		check(t, c.what, r.verdict(t), c.verdict)
		check(t, c.what+": reads", shown(i.Reads), c.reads)
		check(t, c.what+": writes", shown(i.Writes), c.writes)
	}
}

func TestNamesGoUpstreamInFull(t *testing.T) {
	s := newSQLRig(t, rules(allow))
	r := s.send("POST", queriesPath, `{"query":"SELECT 1 FROM t","defaultDataset":{"datasetId":"d"}}`)
	up := string(r.tape.payload(record.DirectionUpstream))
	if !strings.Contains(up, `"defaultDataset":{"projectId":"p","datasetId":"d"}`) {
		t.Errorf("upstream goes %s", up)
	}
}

func TestWhatIsNotUnderstoodIsDenied(t *testing.T) {
	s := newSQLRig(t, rules(allow))
	for _, c := range []struct{ text, verdict, says string }{
		{"SELECT 1 FROM d.t WHERE", "400 sql_syntax", "1:"},
		{"SELECT 1\n\n FROM t", "400 sql_no_default_dataset", "at 3:7"},
		{strings.Repeat("(", 5000) + "1", "403 sql_too_deep", "at 1:"},
		{"SELECT '\x01'", "400 sql_control_character", "at 1:"},
	} {
		r := s.query(c.text)
		check(t, c.text[:min(20, len(c.text))], r.verdict(t), c.verdict)
		if m := r.intent(t).Verbatim.Decision.Reasons[0].Message; !strings.Contains(m, c.says) {
			t.Errorf("%.20s: the caller is told %q", c.text, m)
		}
	}
}

func TestDryRunShowsWhatIsBehindAView(t *testing.T) {
	s := newSQLRig(t, forbids("secret"))
	const view, open = "SELECT * FROM d.v", "SELECT * FROM d.w"
	s.bq.answer[view] = "SELECT p.d.v p.secret.t"
	s.bq.answer[open] = "SELECT p.d.w p.e.t"
	r := s.query(view)
	check(t, "a view over a forbidden table", r.verdict(t), "403 dataset_denied")
	check(t, "its records", r.tape.kinds(), "received | probe | intent request response-head response outcome")
	check(t, "its reads", shown(r.intent(t).Verbatim.Call.Reads), "p.d.v/parser p.secret.t/dry_run")

	r = s.query(open)
	check(t, "a view over an open table", r.verdict(t), "allow")
	check(t, "its records", r.tape.kinds(), "received | probe | intent request upstream")
	up := string(r.tape.payload(record.DirectionUpstream))
	if !strings.Contains(up, `"useQueryCache":false`) || !strings.Contains(up, `"verbatim_reach":"`) {
		t.Errorf("upstream goes %s", up)
	}
	r = s.query(open)
	check(t, "again", r.tape.kinds(), "intent request upstream")
	check(t, "again: reads", shown(r.intent(t).Verbatim.Call.Reads), "p.d.w/parser p.e.t/dry_run")
	var asked struct {
		Configuration struct {
			DryRun bool
			Labels map[string]string
			Query  struct {
				Query        string
				UseLegacySQL *bool `json:"useLegacySql"`
			}
		}
	}
	if err := json.Unmarshal([]byte(s.bq.asked[1]), &asked); err != nil || !asked.Configuration.DryRun || asked.Configuration.Query.Query != open || *asked.Configuration.Query.UseLegacySQL || len(asked.Configuration.Labels) != 3 {
		t.Errorf("BigQuery was asked %s", s.bq.asked[1])
	}
	if len(s.bq.asked) != 2 {
		t.Errorf("BigQuery was asked %d times", len(s.bq.asked))
	}
}

func TestDryRunsThatDoNotTellAll(t *testing.T) {
	s := newSQLRig(t, forbids("secret"))
	many := "SELECT"
	for i := range mostTables {
		many += fmt.Sprintf(" p.d.t%d", i)
	}
	for text, c := range map[string]struct{ answer, verdict, says string }{
		"SELECT 1":                             {"SELECT", "allow", ""},
		"SELECT 2 FROM d.t":                    {"SELECT", "403 dry_run_incomplete", ""},
		"SELECT 3 FROM d.t0":                   {many, "403 dry_run_incomplete", ""},
		"SELECT 4 FROM d.t":                    {"!400 Syntax error: Unexpected keyword", "400 dry_run_refused", "Unexpected keyword"},
		"SELECT 5 FROM d.t":                    {"!400 Unrecognized name: a; Did you mean ssn? at [1:8]", "400 dry_run_refused", "Unrecognized name: a at [1:8]"},
		"SELECT 6 FROM d.t":                    {"!403 Access Denied: Table p:secret.t: no permission", "403 dry_run_refused", "may name what"},
		"SELECT 7 FROM d.t":                    {"!404 Not found: Table p:d.t was not found", "404 dry_run_refused", "p:d.t was not found"},
		"SELECT 8 FROM d.t":                    {"!500 boom", "503 dry_run_failed", "could not be asked"},
		"SELECT 9 FROM d.t":                    {"", "503 dry_run_failed", "could not be asked"},
		"SELECT 10 FROM `d.e_*`":               {"SELECT p.d.e_1 p.d.e_2", "allow", ""},
		"SELECT 1 FROM d.t; SELECT 1 FROM d.u": {"SCRIPT p.d.t", "403 dry_run_incomplete", ""},
	} {
		s.bq.answer[text] = c.answer
		r := s.query(text)
		check(t, text, r.verdict(t), c.verdict)
		if reasons := r.intent(t).Verbatim.Decision.Reasons; c.says != "" && (!strings.Contains(reasons[0].Message, c.says) || strings.Contains(reasons[0].Message, "secret") || strings.Contains(reasons[0].Message, "ssn")) {
			t.Errorf("%s: the caller is told %q", text, reasons[0].Message)
		}
	}
}

func TestAPolicyThatAsksTwice(t *testing.T) {
	s := newSQLRig(t, rules(func(*policy.Input) *policy.Decision { return &policy.Decision{Allow: true, DryRun: true} }))
	s.bq.answer["SELECT 1"] = "SELECT"
	check(t, "a query", s.query("SELECT 1").verdict(t), "403 policy_error")
	check(t, "what is no query", s.send("GET", "/bigquery/v2/projects/p/datasets/d/tables", "").verdict(t), "403 policy_error")
}

// unread is an analyzer that cannot read a text which a dry run can tell of.
type unread struct{}

func (unread) AnalyzeBody(context.Context, sql.Body, string, sql.Options) *sql.Facts {
	return &sql.Facts{Source: sql.SourceParser, Problem: &sql.Problem{Code: "unsupported", Message: "this is beyond the parser", Line: 2, Column: 3, Fallback: true}}
}

func TestDryRunStandsInForTheParser(t *testing.T) {
	s := newSQLRig(t, forbids("secret"))
	s.gate.SQL = unread{}
	for _, c := range []struct{ text, answer, verdict, reads, writes string }{
		{"MERGE 1", "MERGE p.d.s p.d.t >p.d.t", "allow", "p.d.s/dry_run p.d.t/dry_run", "p.d.t/dry_run"},
		{"MERGE 2", "MERGE p.secret.s p.d.t >p.d.t", "403 dataset_denied", "p.secret.s/dry_run p.d.t/dry_run", "p.d.t/dry_run"},
		{"MERGE 3", "MERGE p.d.s p.d.t", "403 sql_unsupported", "p.d.s/dry_run p.d.t/dry_run", ""},
		{"SELECT 4", "SELECT", "403 sql_unsupported", "", ""},
		{"SCRIPT 5", "SCRIPT p.d.t", "403 sql_unsupported", "", ""},
		{"CALL 6", "CALL p.d.t", "403 sql_unsupported", "", ""},
		{"TYPO 7", "!400 Syntax error: Unexpected TYPO at [1:1]", "400 dry_run_refused", "", ""},
		{"SELECT 8", "!403 Access Denied: Table p:secret.t", "403 sql_unsupported", "", ""},
	} {
		s.bq.answer[c.text] = c.answer
		r := s.query(c.text)
		check(t, c.text, r.verdict(t), c.verdict)
		i := r.intent(t).Verbatim
		check(t, c.text+": reads", shown(i.Call.Reads), c.reads)
		check(t, c.text+": writes", shown(i.Call.Writes), c.writes)
		if m := i.Decision.Reasons[0].Message; c.verdict == "403 sql_unsupported" && !strings.Contains(m, "2:3") {
			t.Errorf("%s: %q names no place", c.text, m)
		}
	}
	// Nor does a policy have to ask that denies for that reason alone.
	s.gate.Policy = rules(func(in *policy.Input) *policy.Decision {
		if in.SQL.Facts.Source == sql.SourceParser {
			return &policy.Decision{Reasons: []policy.Reason{{Code: policy.CodeUnreadable, Message: "unreadable"}}}
		}
		return &policy.Decision{Allow: true}
	})
	check(t, "a policy that cannot read", s.query("MERGE 1").verdict(t), "allow")
	// A policy that asks for nothing cannot let through what nobody understands.
	s.gate.Policy = rules(allow)
	check(t, "no dry run asked for", s.query("MERGE 9").verdict(t), "403 sql_unsupported")
}

func (s *sqlRig) answered(r *rig, body string) {
	r.do(resHead(false, "content-type", "application/json"), resBody(body, true))
}

func TestFinishedJobIsHeldAgainstItsDryRun(t *testing.T) {
	const text, rows = "SELECT * FROM d.v", `{"jobReference":{"projectId":"p","jobId":"j1"},"rows":[{"f":[{"v":"canary"}]}],"jobComplete":true}`
	for _, c := range []struct{ what, job, shape string }{
		{"the same tables", "SELECT p.d.v p.e.t", ""},
		{"fewer tables", "SELECT p.d.v", ""},
		{"another table", "SELECT p.d.v p.secret.t", "403"},
		{"no list", "SELECT", "403"},
		{"no answer", "", "503"},
	} {
		s := newSQLRig(t, forbids("secret"))
		s.bq.answer[text], s.bq.jobs["j1"] = "SELECT p.d.v p.e.t", c.job
		r := s.query(text)
		s.answered(r, rows)
		if c.shape == "" {
			check(t, c.what, r.sentBody()[len(r.sentBody())-len(rows):], rows)
			o := r.tape.outcome(t).Verbatim
			if !strings.HasPrefix(shown(o.Reads), "p.d.v/job") {
				t.Errorf("%s: the outcome reads %s", c.what, shown(o.Reads))
			}
			continue
		}
		if strings.Contains(fmt.Sprint(r.sent), "canary") || !strings.Contains(fmt.Sprint(r.sent), "not shown") {
			t.Errorf("%s: the caller gets %v", c.what, r.sent)
		}
		check(t, c.what+": the answer", fmt.Sprint(r.status), c.shape)
	}
}

// A job's later pages, on the replica that made it and on one that knows of
// nothing.
func TestLaterPagesAreHeldAgainstTheDryRun(t *testing.T) {
	const text, page = "SELECT * FROM d.v", `{"rows":[{"f":[{"v":"canary"}]}],"jobComplete":true}`
	s := newSQLRig(t, forbids("secret"))
	s.bq.answer[text] = "SELECT p.d.v p.e.t"
	r := s.query(text)
	s.answered(r, `{"jobReference":{"projectId":"p","jobId":"j1"},"jobComplete":false}`)
	var up struct{ Labels map[string]string }
	if err := json.Unmarshal(r.tape.payload(record.DirectionUpstream), &up); err != nil {
		t.Fatal(err)
	}
	s.bq.labels["j1"] = up.Labels
	get := func(s *sqlRig) *rig {
		r := s.send("GET", queriesPath+"/j1", "")
		s.answered(r, page)
		return r
	}
	other := func() *sqlRig {
		o := newSQLRig(t, forbids("secret"))
		o.bq.answer["SELECT 1"] = "SELECT" // which tells the gateway's account
		o.bq.labels, o.bq.jobs = s.bq.labels, s.bq.jobs
		return o
	}
	s.bq.jobs["j1"] = "SELECT p.d.v p.secret.t"
	for what, rig := range map[string]*sqlRig{"here": s, "on another replica": other()} {
		r := get(rig)
		check(t, "a changed view "+what, fmt.Sprint(r.status), "403")
		if strings.Contains(fmt.Sprint(r.sent), "canary") {
			t.Errorf("a changed view %s: rows went out", what)
		}
	}
	s.bq.jobs["j1"] = "SELECT p.d.v p.e.t"
	for what, rig := range map[string]*sqlRig{"here": s, "on another replica": other()} {
		for range 2 {
			r = get(rig)
			if !strings.Contains(r.sentBody(), "canary") {
				t.Errorf("the same view %s: %v", what, r.sent)
			}
		}
		if strings.Contains(r.tape.kinds(), "probe") {
			t.Errorf("the same view %s: each page is asked about: %s", what, r.tape.kinds())
		}
	}
}

func TestObserveLetsThroughWhatThePolicyDenies(t *testing.T) {
	s := newSQLRig(t, forbids("secret"))
	s.bq.answer["SELECT 1 FROM d.t"] = "SELECT"
	deny := func(what, verdict string) {
		t.Helper()
		r := s.query("SELECT * FROM secret.t")
		check(t, what, r.verdict(t), verdict)
		r = s.query("SELECT 1 FROM d.t")
		check(t, what+": an incomplete dry run", r.verdict(t), strings.Replace(verdict, "dataset_denied", "dry_run_incomplete", 1))
	}
	deny("enforced", "403 dataset_denied")
	s.gate.Observed = []Observed{{Issuer: "i", Subject: "another"}, {Issuer: "other", Subject: "s"}}
	deny("others are observed", "403 dataset_denied")
	s.gate.Observed = []Observed{{Issuer: "i", Subject: "s"}}
	deny("the caller is observed", "would deny dataset_denied")
	s.gate.Observed = nil
	s.gate.Connections[0].Observe = true
	deny("the connection is observed", "would deny dataset_denied")
	s.bq.answer["SELECT FROM WHERE"] = "!400 Syntax error: Unexpected keyword WHERE"
	check(t, "SQL that is not understood", s.query("SELECT FROM WHERE").verdict(t), "400 dry_run_refused")
	check(t, "SQL that nobody can read", s.query("SELECT '\x01'").verdict(t), "400 sql_control_character")
	check(t, "another's job", s.send("GET", queriesPath+"/j9", "").verdict(t), "403 not_owner")
	check(t, "an unknown route", s.send("GET", "/bigquery/v2/nothing", "").verdict(t), "403 route_unknown")
	s.gate.Policy = rules(func(*policy.Input) *policy.Decision { return &policy.Decision{DryRun: true} })
	check(t, "a policy that fails", s.send("GET", "/bigquery/v2/projects/p/datasets/d/tables", "").verdict(t), "403 policy_error")
}

func TestUseIsCountedAndShownToThePolicy(t *testing.T) {
	var seen []policy.Usage
	s := newSQLRig(t, rules(func(in *policy.Input) *policy.Decision {
		seen = append(seen, in.Usage)
		return &policy.Decision{Allow: true}
	}))
	book, err := usage.Open(usage.Config{File: t.TempDir() + "/usage"})
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	s.gate.Usage = book
	r := s.query("SELECT 1")
	s.answered(r, `{"jobReference":{"projectId":"p","jobId":"j"},"rows":[{},{}],"totalBytesProcessed":"500","jobComplete":true}`)
	r = s.send("GET", queriesPath+"/j", "")
	s.answered(r, `{"jobReference":{"projectId":"p","jobId":"j"},"rows":[{}],"totalBytesProcessed":"500","jobComplete":true}`)
	s.send("POST", queriesPath, `{"query":"SELECT 1","dryRun":true}`)
	s.query("SELECT 2")
	want := "[{true [{principal 3600 0 0 0} {run 60 0 0 0}]} {true [{principal 3600 1 500 2} {run 60 1 500 2}]} {true [{principal 3600 1 500 3} {run 60 1 500 3}]} {true [{principal 3600 1 500 3} {run 60 1 500 3}]}]"
	check(t, "use", fmt.Sprint(seen), want)
}

func TestDryRunsFlyOnce(t *testing.T) {
	d := NewDryRuns(time.Minute, 10)
	var mu sync.Mutex
	n, start := 0, make(chan struct{})
	now := time.Unix(0, 0)
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	ask := func() (*dryRun, error) {
		<-start
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 1 {
			return nil, context.Canceled // the first left
		}
		return &dryRun{StatementType: "SELECT"}, nil
	}
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	for range 8 {
		wg.Go(func() {
			_, err := d.get(t.Context(), [32]byte{1}, clock, ask)
			failed <- err
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(start)
	wg.Wait()
	close(failed)
	errs := 0
	for err := range failed {
		if err != nil {
			errs++
		}
	}
	if n != 2 || errs != 1 {
		t.Errorf("asked %d times, %d failed", n, errs)
	}
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	if _, err := d.get(t.Context(), [32]byte{1}, clock, ask); err != nil || n != 3 {
		t.Errorf("after its time: asked %d times, %v", n, err)
	}
	for i := range 100 {
		if _, err := d.get(t.Context(), [32]byte{2, byte(i)}, clock, ask); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.young)+len(d.old) > 10 {
		t.Errorf("%d answers are kept", len(d.young)+len(d.old))
	}
}
