package reconcile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/reconcile"
	"verbatim.dev/recorder/record"
)

var tenant, public = tenants()

func tenants() (private, public *keyset.Handle) {
	private, err := record.NewTenant()
	if err != nil {
		panic(err)
	}
	if public, err = private.Public(); err != nil {
		panic(err)
	}
	return private, public
}

// call is an exchange that may make a job. Where not said otherwise it is a
// jobs.query of the session s1 that is let through, labelled and answered.
type call struct {
	method, path, query string
	session             string
	sql                 string // of the caller
	up                  string // the upstream body; "-": none, "": with sql and the labels
	named               string // the job's id that the caller chose
	job                 string // the job's id in the answer
	dry, deny           bool
	status              int    // 200 where 0
	result              string // delivered where ""; "pending": no outcome
	credential          string
	unlabelled          bool
	project             string
}

const (
	gateway = "gateway@p1.iam.gserviceaccount.com"
	other   = "mallory@corp.example"
)

func labels(session string) map[string]string {
	return map[string]string{"verbatim_session": session, "verbatim_owner": "o-" + session}
}

func body(t *testing.T, v any) []byte {
	t.Helper()
	b, err := record.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c call) run(t *testing.T, g *ledgertest.Gateway) record.ID {
	t.Helper()
	set := func(to *string, v string) {
		if *to == "" {
			*to = v
		}
	}
	set(&c.method, "bigquery.jobs.query")
	set(&c.session, "s1")
	set(&c.project, "p1")
	set(&c.path, "/bigquery/v2/projects/"+c.project+"/queries")
	set(&c.result, string(record.ResultDelivered))
	if c.deny {
		c.result, c.status = string(record.ResultDenied), 403
	}
	if c.status == 0 {
		c.status = 200
	}
	wrote := labels(c.session)
	if c.unlabelled || c.deny {
		wrote = nil
	}
	at := g.Now
	i := record.Intent{OCSF: record.NewOCSF(record.ClassDatastore, record.ActivityQuery, at, "", c.session)}
	i.Request.URL = record.OCSFURL{Path: c.path, Query: c.query}
	i.Verbatim = record.IntentDetail{
		Session: c.session, Connection: &record.Connection{Name: "a", Project: c.project, Location: "US"}, Received: at,
		Call:     record.Call{Method: c.method, Project: c.project, SQL: c.sql, DryRun: c.dry},
		Decision: record.Decision{Allow: !c.deny, By: "policy", Labels: wrote, Credential: c.credential},
	}
	if c.named != "" {
		i.Verbatim.Call.Job = &record.Job{Project: c.project, ID: c.named}
	}
	id := g.Append(record.Draft{Kind: record.KindIntent, Session: c.session, Body: body(t, i)})
	if c.up != "-" && !c.deny && c.sql != "" {
		if c.up == "" {
			l, _ := json.Marshal(wrote)
			q, _ := json.Marshal(c.sql)
			c.up = fmt.Sprintf(`{"query":%s,"labels":%s}`, q, l)
			if c.method == "bigquery.jobs.insert" {
				c.up = fmt.Sprintf(`{"configuration":{"query":{"query":%s},"labels":%s}}`, q, l)
			}
		}
		half := len(c.up) / 2
		for n, part := range []string{c.up[:half], c.up[half:]} {
			g.Append(record.Draft{Kind: record.KindPayload, Exchange: id.Sequence, Direction: record.DirectionUpstream, Piece: uint32(n), Offset: uint64(n * half), Session: c.session, Body: []byte(part)})
		}
	}
	if c.result == "pending" {
		return id
	}
	o := record.Outcome{OCSF: record.NewOCSF(record.ClassDatastore, record.ActivityQuery, g.Now, id.String(), c.session)}
	o.Response.Code = c.status
	o.Verbatim = record.OutcomeDetail{Session: c.session, Result: record.Result(c.result), Job: i.Verbatim.Call.Job}
	if c.job != "" {
		o.Verbatim.Job = &record.Job{Project: c.project, Location: "US", ID: c.job}
	}
	g.Append(record.Draft{Kind: record.KindOutcome, Exchange: id.Sequence, Session: c.session, Body: body(t, o)})
	return id
}

// row is a row of the jobs view; a session labels it as the gateway does.
type row struct {
	id, sql, session, account, parent, kind, at, project, location string
	extra                                                          string // more fields, or others in their place
}

func (r row) String() string {
	fields := map[string]any{"job_id": r.id, "project_id": "p1", "user_email": gateway, "creation_time": "2026-03-14T09:01:30Z", "job_type": "QUERY", "query": r.sql, "location": "us"}
	for k, v := range map[string]string{"user_email": r.account, "parent_job_id": r.parent, "job_type": r.kind, "creation_time": r.at, "project_id": r.project, "location": r.location} {
		if v != "" {
			fields[k] = v
		}
	}
	list := []map[string]string{}
	if r.session != "" {
		for k, v := range labels(r.session) {
			list = append(list, map[string]string{"key": k, "value": v})
		}
	}
	fields["labels"] = list
	b, _ := json.Marshal(fields)
	if r.extra != "" {
		return strings.TrimSuffix(string(b), "}") + "," + r.extra + "}" // later fields win
	}
	return string(b)
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

// compare runs the calls a minute apart from 09:01 on and compares.
func compare(t *testing.T, calls []call, list string, change func(*reconcile.Config)) *reconcile.Report {
	t.Helper()
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	for n, c := range calls {
		g.Now = ledgertest.Start.Add(time.Duration(n+1) * time.Minute)
		c.run(t, g)
	}
	g.Cut()
	return over(t, v, list, change)
}

func over(t *testing.T, v *ledgertest.Vault, list string, change func(*reconcile.Config)) *reconcile.Report {
	t.Helper()
	k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	c := reconcile.Config{Vault: v, Keys: k, Jobs: reconcile.Lines(strings.NewReader(list)), Now: func() time.Time { return at("2026-03-15T00:00:00Z") }}
	if change != nil {
		change(&c)
	}
	r, err := reconcile.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(len(r.Findings)) + r.More; r.Complete != (n == 0) {
		t.Errorf("complete %v with %d findings", r.Complete, n)
	}
	return r
}

func list(rows ...row) string {
	var b strings.Builder
	for _, r := range rows {
		b.WriteString(r.String() + "\n")
	}
	return b.String()
}

// brief is "code job" of each finding.
func brief(r *reconcile.Report) []string {
	var out []string
	for _, f := range r.Findings {
		out = append(out, strings.TrimSpace(string(f.Code)+" "+f.Job))
	}
	return out
}

func accounts(c *reconcile.Config) { c.Accounts = []string{gateway} }

func TestRun(t *testing.T) {
	insert := "bigquery.jobs.insert"
	one := call{sql: "SELECT 1", job: "j1"}
	jobOne := row{id: "j1", sql: "SELECT 1", session: "s1"}
	long := "SELECT '" + strings.Repeat("é", 40_000) + "'"
	tests := []struct {
		name     string
		calls    []call
		list     string
		change   func(*reconcile.Config)
		want     []string
		coverage string // "recorded of jobs"
		check    func(t *testing.T, r *reconcile.Report)
	}{
		{name: "all is well", calls: []call{one}, list: list(jobOne), change: accounts, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.SQLCompared != 1 || r.SQLNotCompared != 0 || r.Coverage == nil || *r.Coverage != 100 || r.UnboundAccounts {
				t.Errorf("report %+v", r)
			}
		}},
		{name: "nothing", coverage: "0 of 0", check: func(t *testing.T, r *reconcile.Report) {
			if r.Coverage != nil {
				t.Errorf("coverage %v of no jobs", *r.Coverage)
			}
		}},
		{name: "bypass with the gateway's account", calls: []call{one}, list: list(jobOne, row{id: "x", sql: "SELECT secret"}), change: accounts, want: []string{"no_record p1:us.x"}, coverage: "1 of 2"},
		{name: "bypass with a label written by hand", calls: []call{one}, list: list(jobOne, row{id: "x", sql: "SELECT secret", session: "s1"}), want: []string{"no_record p1:us.x"}, coverage: "1 of 2",
			check: func(t *testing.T, r *reconcile.Report) {
				if f := r.Findings[0]; f.Session != "s1" || f.SQL != "SELECT secret" || f.Account != gateway {
					t.Errorf("finding %+v", f)
				}
			}},
		{name: "bypass of another identity", calls: []call{one}, list: list(jobOne, row{id: "x", account: other}), change: accounts, want: []string{"outside_gateway p1:us.x"}, coverage: "1 of 2"},
		{name: "another identity while no account is given", calls: []call{one}, list: list(jobOne, row{id: "x", account: other}), want: []string{"no_record p1:us.x"}, coverage: "1 of 2"},
		{name: "an identity that is known", calls: []call{one}, list: list(jobOne, row{id: "x", account: "Auditor@corp.example"}), change: func(c *reconcile.Config) { c.Others = []string{"auditor@CORP.example"} }, coverage: "1 of 1",
			check: func(t *testing.T, r *reconcile.Report) {
				if r.OtherAccounts["Auditor@corp.example"] != 1 {
					t.Errorf("others %v", r.OtherAccounts)
				}
			}},
		{name: "a record without its job", calls: []call{one, {sql: "SELECT 2", job: "j2"}}, list: list(jobOne), want: []string{"no_job p1:US.j2"}, coverage: "1 of 1"},
		{name: "other SQL", calls: []call{one}, list: list(row{id: "j1", sql: "SELECT 2", session: "s1"}), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if f := r.Findings[0]; f.SQL != "SELECT 2" || f.Recorded != "SELECT 1" || f.Basis != "upstream" || f.Exchange == "" {
				t.Errorf("finding %+v", f)
			}
		}},
		{name: "SQL longer by a space", calls: []call{one}, list: list(row{id: "j1", sql: "SELECT 1 ", session: "s1"}), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "no SQL where the record has some", calls: []call{one}, list: list(row{id: "j1", session: "s1"}), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "what went upstream counts, not what was asked", calls: []call{{sql: "SELECT email", up: `{"query":"SELECT mask(email)","labels":{"verbatim_session":"s1"}}`, job: "j1"}},
			list: list(row{id: "j1", sql: "SELECT mask(email)", session: "s1"}), coverage: "1 of 1"},
		{name: "what was asked ran, not what went upstream", calls: []call{{sql: "SELECT email", up: `{"query":"SELECT mask(email)","labels":{"verbatim_session":"s1"}}`, job: "j1"}},
			list: list(row{id: "j1", sql: "SELECT email", session: "s1"}), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "no upstream payload", calls: []call{{sql: "SELECT 1", up: "-", job: "j1"}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "no upstream payload, other SQL", calls: []call{{sql: "SELECT 9", up: "-", job: "j1"}}, list: list(jobOne), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.Findings[0].Basis != "request" {
				t.Errorf("finding %+v", r.Findings[0])
			}
		}},
		{name: "upstream that is no JSON", calls: []call{{sql: "SELECT 1", up: "{{", job: "j1"}}, list: list(jobOne), coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.SQLNotCompared != 1 || r.SQLCompared != 0 {
				t.Errorf("report %+v", r)
			}
		}},
		{name: "a list without SQL and labels", calls: []call{one}, list: `{"job_id":"j1","project_id":"p1","creation_time":"2026-03-14T09:01:00Z"}`, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.SQLNotCompared != 1 || r.LabelsNotCompared != 1 {
				t.Errorf("report %+v", r)
			}
		}},
		{name: "long SQL, whole", calls: []call{{sql: long, job: "j1"}}, list: list(row{id: "j1", sql: long, session: "s1"}), coverage: "1 of 1"},
		{name: "long SQL, truncated by the audit log", calls: []call{{sql: long, job: "j1"}}, list: metadata("j1", "s1", long[:50_000], true), coverage: "1 of 1"},
		{name: "long SQL, truncated and other", calls: []call{{sql: long, job: "j1"}}, list: metadata("j1", "s1", "x"+long[:50_000], true), want: []string{"sql_differs p1:US.j1"}, coverage: "1 of 1"},
		{name: "short SQL said to be truncated", calls: []call{one}, list: metadata("j1", "s1", "SELECT 12", true), want: []string{"sql_differs p1:US.j1"}, coverage: "1 of 1"},
		{name: "the beginning that is not said to be one", calls: []call{{sql: long, job: "j1"}}, list: metadata("j1", "s1", long[:50_000], false), want: []string{"sql_differs p1:US.j1"}, coverage: "1 of 1"},
		{name: "truncated in one entry, whole in another", calls: []call{{sql: long, job: "j1"}}, list: metadata("j1", "s1", long[:50_000], true) + list(row{id: "j1", sql: long, session: "s1"}), coverage: "1 of 1"},
		{name: "two entries, two texts", calls: []call{one}, list: list(jobOne) + metadata("j1", "s1", "SELECT 2", false), want: []string{"sources_differ p1:us.j1"}, coverage: "1 of 1"},
		{name: "two entries of one job", calls: []call{one}, list: metadata("j1", "s1", "SELECT 1", false) + list(jobOne) + list(jobOne), coverage: "1 of 1"},
		{name: "a label is missing", calls: []call{one}, list: list(row{id: "j1", sql: "SELECT 1"}), want: []string{"labels_differ p1:us.j1"}, coverage: "1 of 1"},
		{name: "the label of another session", calls: []call{one}, list: list(row{id: "j1", sql: "SELECT 1", session: "s2"}), want: []string{"labels_differ p1:us.j1"}, coverage: "1 of 1"},
		{name: "the caller's own label went upstream", calls: []call{{sql: "SELECT 1", up: `{"query":"SELECT 1","labels":{"team":"x"}}`, job: "j1"}}, list: list(jobOne), want: []string{"labels_differ p1:us.j1"}, coverage: "1 of 1"},
		{name: "more labels than the gateway wrote", calls: []call{one}, list: list(row{id: "j1", sql: "SELECT 1", extra: `"labels":[{"key":"a","value":"b"},{"key":"verbatim_owner","value":"o-s1"},{"key":"verbatim_session","value":"s1"}]`}), coverage: "1 of 1"},
		{name: "another account than the gateway's", calls: []call{one}, list: list(row{id: "j1", sql: "SELECT 1", session: "s1", account: other}), change: accounts, want: []string{"account_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "another account than the record's", calls: []call{{sql: "SELECT 1", job: "j1", credential: "service_account_key:" + gateway}}, list: list(row{id: "j1", sql: "SELECT 1", session: "s1", account: other}), want: []string{"account_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "the record's account", calls: []call{{sql: "SELECT 1", job: "j1", credential: "impersonation:" + gateway}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "a credential that is no account", calls: []call{{sql: "SELECT 1", job: "j1", credential: "token_file:/run/t@x"}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "denied and run", calls: []call{{sql: "SELECT 1", named: "j1", deny: true}}, list: list(jobOne), want: []string{"denied_executed p1:us.j1"}, coverage: "0 of 1"},
		{name: "denied", calls: []call{{sql: "SELECT 1", named: "j1", deny: true}, {sql: "SELECT 1", deny: true}}, coverage: "0 of 0"},
		{name: "dry run", calls: []call{{sql: "SELECT 1", dry: true}, {sql: "SELECT 1", dry: true, job: "d1"}}, coverage: "0 of 0", check: func(t *testing.T, r *reconcile.Report) {
			if r.Vault.DryRuns != 2 {
				t.Errorf("%d dry runs", r.Vault.DryRuns)
			}
		}},
		{name: "dry run and run", calls: []call{{sql: "SELECT 1", named: "j1", dry: true}}, list: list(jobOne), want: []string{"dry_run_executed p1:us.j1"}, coverage: "0 of 1"},
		{name: "dry run first, then for real", calls: []call{{sql: "SELECT 1", named: "j1", dry: true}, one}, list: list(jobOne), coverage: "1 of 1"},
		{name: "denied first, then let through", calls: []call{one, {sql: "SELECT 1", named: "j1", deny: true}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "listed as a dry run", list: `{"jobReference":{"projectId":"p1","jobId":"d"},"configuration":{"dryRun":true}}`, coverage: "0 of 0", check: func(t *testing.T, r *reconcile.Report) {
			if r.ListedDryRuns != 1 {
				t.Errorf("report %+v", r)
			}
		}},
		{name: "background", list: `{"job_id":"b","project_id":"p1","job_type":null}`, coverage: "0 of 0", check: func(t *testing.T, r *reconcile.Report) {
			if r.Background != 1 {
				t.Errorf("report %+v", r)
			}
		}},
		{name: "a statement of a script", calls: []call{{sql: "BEGIN SELECT 1; END", job: "j1"}}, change: accounts,
			list: list(row{id: "j1", sql: "BEGIN SELECT 1; END", session: "s1"}, row{id: "c1", sql: "SELECT 1", parent: "j1"}, row{id: "c2", sql: "SELECT 2", parent: "c1"}), coverage: "1 of 1",
			check: func(t *testing.T, r *reconcile.Report) {
				if r.Children != 2 {
					t.Errorf("%d children", r.Children)
				}
			}},
		{name: "a statement of a script as somebody else", calls: []call{{sql: "BEGIN SELECT 1; END", job: "j1"}}, change: accounts,
			list: list(row{id: "j1", sql: "BEGIN SELECT 1; END", session: "s1"}, row{id: "c1", parent: "j1", account: other}), want: []string{"account_differs p1:us.c1"}, coverage: "1 of 1"},
		{name: "a script that is a bypass, with its statement", list: list(row{id: "x"}, row{id: "c1", parent: "x"}), want: []string{"no_record p1:us.x"}, coverage: "0 of 1"},
		{name: "a statement of a script before the window", calls: []call{{sql: "BEGIN SELECT 1; END", job: "j1"}}, list: list(row{id: "c1", parent: "j1"}), want: []string{"no_job p1:US.j1"}, coverage: "0 of 0"},
		{name: "a statement of an unknown script", list: list(row{id: "c1", parent: "nobody"}), want: []string{"no_record p1:us.c1"}, coverage: "0 of 1"},
		{name: "scripts in a circle", list: list(row{id: "a", parent: "b"}, row{id: "b", parent: "a"}, row{id: "c", parent: "c"}), want: []string{"no_record p1:us.a", "no_record p1:us.b", "no_record p1:us.c"}, coverage: "0 of 3"},
		{name: "the answer was lost", calls: []call{{sql: "SELECT 1", result: "aborted", status: 0}}, list: list(jobOne), coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.ByLabels != 1 {
				t.Errorf("%d by labels", r.ByLabels)
			}
		}},
		{name: "the answer was an error, and the job is there", calls: []call{{sql: "SELECT 1", status: 400}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "the answer was an error, and there is no job", calls: []call{{sql: "SELEC 1", status: 400}}, coverage: "0 of 0"},
		{name: "an exchange without an answer makes one job", calls: []call{{sql: "SELECT 1", result: "pending"}}, list: list(jobOne, row{id: "j2", sql: "SELECT 1", session: "s1"}), want: []string{"no_record p1:us.j2"}, coverage: "1 of 2"},
		{name: "an answer was lost, other SQL", calls: []call{{sql: "SELECT 1", result: "aborted"}}, list: list(row{id: "j1", sql: "SELECT 2", session: "s1"}), want: []string{"no_record p1:us.j1"}, coverage: "0 of 1"},
		{name: "an answer was lost, other session", calls: []call{{sql: "SELECT 1", result: "aborted"}}, list: list(row{id: "j1", sql: "SELECT 1", session: "s2"}), want: []string{"no_record p1:us.j1"}, coverage: "0 of 1"},
		{name: "an answer was lost, other owner", calls: []call{{sql: "SELECT 1", result: "aborted"}}, list: list(row{id: "j1", sql: "SELECT 1", extra: `"labels":[{"key":"verbatim_session","value":"s1"},{"key":"verbatim_owner","value":"o-s2"}]`}), want: []string{"no_record p1:us.j1"}, coverage: "0 of 1"},
		{name: "an answer was lost, at another time", calls: []call{{sql: "SELECT 1", result: "aborted"}}, list: list(row{id: "j1", sql: "SELECT 1", session: "s1", at: "2026-03-14T09:20:00Z"}), want: []string{"no_record p1:us.j1"}, coverage: "0 of 1"},
		{name: "an answer was lost, in another project", calls: []call{{sql: "SELECT 1", result: "aborted"}}, list: list(row{id: "j1", sql: "SELECT 1", session: "s1", project: "p2"}), want: []string{"no_record p2:us.j1"}, coverage: "0 of 1"},
		{name: "an answer was lost, the id is known", calls: []call{{method: insert, named: "j1", sql: "SELECT 1", result: "aborted"}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "denied and executed without an id", calls: []call{{sql: "SELECT 1", deny: true}}, list: list(jobOne), want: []string{"no_record p1:us.j1"}, coverage: "0 of 1"},
		{name: "a retry that found the id taken", calls: []call{{method: insert, named: "j1", job: "j1", sql: "SELECT 1"}, {method: insert, named: "j1", sql: "SELECT 2", status: 409}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "the retry's SQL ran", calls: []call{{method: insert, named: "j1", job: "j1", sql: "SELECT 1"}, {method: insert, named: "j1", sql: "SELECT 2", status: 409}},
			list: list(row{id: "j1", sql: "SELECT 2", session: "s1"}), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "the same request twice", calls: []call{one, one}, list: list(jobOne), coverage: "1 of 1"},
		{name: "two lost answers, the second ran", calls: []call{{method: insert, named: "j1", sql: "SELECT 0", result: "aborted", status: 503}, {method: insert, named: "j1", sql: "SELECT 1", result: "pending"}}, list: list(jobOne), coverage: "1 of 1"},
		{name: "an aborted answer that named its job", calls: []call{{sql: "SELECT 1", job: "j1", result: "aborted"}}, coverage: "0 of 0"},
		{name: "the gateway's own refusal is no answer of BigQuery's", calls: []call{{method: insert, named: "j1", sql: "SELECT 0", result: "aborted", status: 401}, {method: insert, named: "j1", sql: "SELECT 1", status: 409}},
			list: list(jobOne), want: []string{"sql_differs p1:us.j1"}, coverage: "1 of 1"},
		{name: "a load by a resumable upload", calls: []call{
			{method: insert, path: "/resumable/upload/bigquery/v2/projects/p1/jobs", query: "uploadType=resumable", named: "l1"},
			{method: insert, path: "/resumable/upload/bigquery/v2/projects/p1/jobs", query: "uploadType=resumable&upload_id=u", unlabelled: true},
			{method: insert, path: "/resumable/upload/bigquery/v2/projects/p1/jobs", query: "uploadType=resumable&upload_id=u", job: "l1", unlabelled: true},
		}, list: list(row{id: "l1", session: "s1", kind: "LOAD"}), coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.SQLCompared+r.SQLNotCompared != 0 {
				t.Errorf("SQL of a load: %+v", r)
			}
		}},
		{name: "an upload that was never finished", calls: []call{{method: insert, path: "/upload/bigquery/v2/projects/p1/jobs", query: "uploadType=resumable", named: "l1"}}, coverage: "0 of 0"},
		{name: "a load whose answer was lost", calls: []call{{method: insert, path: "/upload/bigquery/v2/projects/p1/jobs", query: "uploadType=multipart", result: "aborted"}}, list: list(row{id: "l1", session: "s1", kind: "LOAD"}), want: []string{}, coverage: "1 of 1"},
		{name: "SQL in a job that is on record as a load", calls: []call{{method: insert, named: "l1", job: "l1"}}, list: list(row{id: "l1", session: "s1", sql: "SELECT 1"}), want: []string{"sql_differs p1:us.l1"}, coverage: "1 of 1"},
		{name: "reads make no job", calls: []call{{method: "bigquery.jobs.getQueryResults", job: "j1"}}, list: list(jobOne), want: []string{"no_record p1:us.j1"}, coverage: "0 of 1"},
		{name: "one id in two locations", calls: []call{one}, list: list(jobOne, row{id: "j1", sql: "SELECT 1", session: "s1", location: "eu"}), want: []string{"no_record p1:eu.j1"}, coverage: "1 of 2"},
		{name: "a deleted job", calls: []call{one}, list: list(jobOne) + `{"protoPayload":{"metadata":{"jobDeletion":{"jobName":"projects/p1/jobs/j1"}}}}`, want: []string{"job_deleted p1:j1"}, coverage: "1 of 1"},
		{name: "lines that are not understood", calls: []call{one}, list: "what?\n" + list(jobOne) + "{}\n", want: []string{"not_understood", "not_understood"}, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
			if r.List.Unknown != 2 || r.Findings[0].Line != 1 || r.Findings[1].Line != 3 {
				t.Errorf("report %+v", r)
			}
		}},
		{name: "a window", calls: []call{one, {sql: "SELECT 2", job: "j2"}, {sql: "SELECT 3", job: "j3"}},
			list: list(row{id: "early", at: "2026-03-14T08:59:59Z"}, row{id: "late", at: "2026-03-14T10:00:00Z"}, jobOne),
			change: func(c *reconcile.Config) {
				c.Since, c.Until = at("2026-03-14T09:00:00Z"), at("2026-03-14T10:00:00Z")
				c.Margin = 90 * time.Second
			},
			want: []string{"no_job p1:US.j2", "no_job p1:US.j3"}, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
				if r.OutsideWindow != 2 {
					t.Errorf("%d outside", r.OutsideWindow)
				}
			}},
		{name: "a window's edges", calls: []call{one, {sql: "SELECT 2", job: "j2"}, {sql: "SELECT 3", job: "j3"}, {sql: "SELECT 4", job: "j4"}},
			change: func(c *reconcile.Config) {
				c.Since, c.Until = at("2026-03-14T09:01:30Z"), at("2026-03-14T09:03:30Z")
				c.Margin = 45 * time.Second
			}, coverage: "0 of 0", check: func(t *testing.T, r *reconcile.Report) {
				if r.Unsettled != 2 { // 2 and 3; 1 and 4 are of another time
					t.Errorf("%d unsettled", r.Unsettled)
				}
			}},
		{name: "too new to be judged", calls: []call{one, {sql: "SELECT 2", job: "j2"}}, list: list(jobOne, row{id: "x", at: "2026-03-14T09:02:30Z"}),
			change: func(c *reconcile.Config) { c.Now = func() time.Time { return at("2026-03-14T09:03:00Z") } }, coverage: "1 of 1", check: func(t *testing.T, r *reconcile.Report) {
				if r.Unsettled != 2 {
					t.Errorf("%d unsettled", r.Unsettled)
				}
			}},
		{name: "a list of one project", calls: []call{one, {sql: "SELECT 2", job: "j2", project: "p2"}}, list: list(jobOne), change: func(c *reconcile.Config) { c.Projects = []string{"p1"} }, coverage: "1 of 1"},
		{name: "a list of one location", calls: []call{one}, change: func(c *reconcile.Config) { c.Locations = []string{"eu"} }, coverage: "0 of 0"},
		{name: "a limit", list: list(row{id: "a"}, row{id: "b"}, row{id: "c"}), change: func(c *reconcile.Config) { c.Limit = 2 }, want: []string{"no_record p1:us.a", "no_record p1:us.b"}, coverage: "0 of 3", check: func(t *testing.T, r *reconcile.Report) {
			if r.More != 1 || r.Counts[reconcile.NoRecord] != 3 {
				t.Errorf("report %+v", r)
			}
		}},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			r := compare(t, x.calls, x.list, x.change)
			if got := brief(r); !slices.Equal(got, x.want) {
				t.Errorf("findings %q, want %q", got, x.want)
			}
			if got := fmt.Sprintf("%d of %d", r.Recorded, r.Jobs); got != x.coverage {
				t.Errorf("coverage %s, want %s", got, x.coverage)
			}
			if x.check != nil && !t.Failed() {
				x.check(t, r)
			}
		})
	}
}

// metadata is an audit log's entry.
func metadata(id, session, sql string, truncated bool) string {
	b, _ := json.Marshal(map[string]any{
		"protoPayload": map[string]any{"authenticationInfo": map[string]any{"principalEmail": gateway}, "metadata": map[string]any{"jobInsertion": map[string]any{"job": map[string]any{
			"jobName":   "projects/p1/jobs/" + id,
			"jobConfig": map[string]any{"type": "QUERY", "queryConfig": map[string]any{"query": sql, "queryTruncated": truncated}, "labels": labels(session)},
			"jobStats":  map[string]any{"createTime": "2026-03-14T09:01:00Z"}}}}},
		"resource": map[string]any{"labels": map[string]any{"location": "US"}}})
	return string(b) + "\n"
}

func TestRunWithoutKeys(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	call{sql: "SELECT 1", job: "j1"}.run(t, g)
	g.Cut()
	for _, name := range v.Names("keys/") {
		delete(v.Files, name)
	}
	r := over(t, v, list(row{id: "j1", sql: "SELECT 1", session: "s1"}), nil)
	if len(r.Findings) != 1 || r.Vault.Unreadable != 1 || !strings.Contains(r.Findings[0].Detail, "1 records could not be read") {
		t.Errorf("report %+v", r)
	}
}

func TestRunOverDamage(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	call{sql: "SELECT 1", job: "j1"}.run(t, g)
	g.Cut()
	name := v.Names("segments/")[0]
	v.Files[name][len(v.Files[name])-20] ^= 1
	var warned []error
	r := over(t, v, "", func(c *reconcile.Config) { c.Warn = func(err error) { warned = append(warned, err) } })
	if r.Vault.Warnings == 0 || len(warned) == 0 {
		t.Errorf("no warning of damage: %+v", r.Vault)
	}
}

// TestRunAfterACrash has an exchange that recovery closed in a later epoch.
func TestRunAfterACrash(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	call{sql: "SELECT 1", result: "pending"}.run(t, g)
	g.Crash()
	g.Now = g.Now.Add(time.Minute)
	g.Begin()
	g.Cut()
	r := over(t, v, list(row{id: "j1", sql: "SELECT 1", session: "s1"}), accounts)
	if !r.Complete || r.ByLabels != 1 {
		t.Errorf("report %+v", r)
	}
}

func TestRunErrors(t *testing.T) {
	v := ledgertest.New()
	c := reconcile.Config{Vault: v, Jobs: reconcile.Lines(strings.NewReader(list(row{id: "a"}, row{id: "b"}))), MaxJobs: 1}
	if _, err := reconcile.Run(t.Context(), c); !errors.Is(err, reconcile.ErrTooMany) {
		t.Errorf("two jobs where one may be held: %v", err)
	}
	c.Jobs = reconcile.Lines(strings.NewReader("[{"))
	if _, err := reconcile.Run(t.Context(), c); !errors.Is(err, reconcile.ErrList) {
		t.Errorf("half a list: %v", err)
	}
}

// TestGarbageIsBounded gives a file that is no list.
func TestGarbageIsBounded(t *testing.T) {
	r := compare(t, nil, strings.Repeat("garbage\n", 25_000), func(c *reconcile.Config) { c.Limit = 10 })
	if r.List.Unknown != 25_000 || r.Counts[reconcile.NotUnderstood] != 25_000 || len(r.Findings) != 10 || r.More != 24_990 {
		t.Errorf("%d unknown, counts %v, %d findings and %d more", r.List.Unknown, r.Counts, len(r.Findings), r.More)
	}
}
