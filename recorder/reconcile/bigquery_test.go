package reconcile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"google.golang.org/api/option"

	"verbatim.dev/recorder/reconcile"
)

func view() reconcile.JobsView {
	return reconcile.JobsView{Project: "my-project", Region: "us", Since: at("2026-03-14T00:00:00Z"), Until: at("2026-03-15T00:00:00.5Z")}
}

func TestSQL(t *testing.T) {
	ddl, err := view().DDL("audit.evidence")
	if err == nil {
		t.Errorf("a project of five letters: %s", ddl)
	}
	if ddl, err = view().DDL("audit-project.evidence"); err != nil {
		t.Fatal(err)
	}
	own, err := view().DDL("evidence")
	if err != nil || !strings.Contains(own, "`my-project.evidence.verbatim_jobs`") {
		t.Errorf("%v: %s", err, own)
	}
	golden(t, "testdata/query.sql", []byte(view().SQL()+"\n"))
	golden(t, "testdata/ddl.sql", []byte(ddl))

	for name, change := range map[string]func(*reconcile.JobsView){
		"project": func(v *reconcile.JobsView) { v.Project = "p`; DROP TABLE x; --" },
		"region":  func(v *reconcile.JobsView) { v.Region = "us'" },
		"window":  func(v *reconcile.JobsView) { v.Until = v.Since },
		"since":   func(v *reconcile.JobsView) { v.Since = at("0001-01-01T00:00:00Z") },
	} {
		v := view()
		change(&v)
		if err := v.Check(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := reconcile.BigQuery(reconcile.BigQueryConfig{View: v}); err == nil {
			t.Errorf("%s: a source of it", name)
		}
	}
	for _, dataset := range []string{"", "a`b", "my-project.", ".x", "a.b.c"} {
		if _, err := view().DDL(dataset); err == nil {
			t.Errorf("dataset %q: no error", dataset)
		}
	}
	v := view()
	v.Region = "REGION-EU"
	if err := v.Check(); err != nil || !strings.Contains(v.SQL(), "`region-eu`") {
		t.Errorf("%v: %s", err, v.SQL())
	}
}

// fake is BigQuery with a result of some rows.
type fake struct {
	t       *testing.T
	rows    []string
	page    int // rows in one answer
	waits   int // answers that say that the job still runs
	total   int // where not 0, what it says instead of the number of rows
	refuse  int // status of every answer
	broken  bool
	queries []map[string]any
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.refuse != 0 {
		w.WriteHeader(f.refuse)
		fmt.Fprintf(w, `{"error":{"code":%d,"message":"Access Denied: Project my-project: User does not have bigquery.jobs.create permission"}}`, f.refuse)
		return
	}
	from := 0
	kind := "bigquery#getQueryResultsResponse"
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/projects/my-project/queries"):
		kind = "bigquery#queryResponse"
		var q map[string]any
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			f.t.Error(err)
		}
		f.queries = append(f.queries, q)
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/projects/my-project/queries/job_1"):
		if r.URL.Query().Get("location") != "US" {
			f.t.Errorf("a page was asked for without its location: %s", r.URL)
		}
		fmt.Sscan(r.URL.Query().Get("pageToken"), &from)
	default:
		f.t.Errorf("unexpected request %s %s", r.Method, r.URL)
	}
	answer := map[string]any{"kind": kind, "jobReference": map[string]any{"projectId": "my-project", "jobId": "job_1", "location": "US"}, "jobComplete": true}
	if f.waits > 0 {
		f.waits--
		answer["jobComplete"] = false
	} else {
		total := len(f.rows)
		if f.total != 0 {
			total = f.total
		}
		answer["totalRows"] = fmt.Sprint(total)
		var rows []any
		to := min(from+f.page, len(f.rows))
		for _, s := range f.rows[from:to] {
			var v any = s
			if f.broken {
				v = nil
			}
			rows = append(rows, map[string]any{"f": []any{map[string]any{"v": v}}})
		}
		answer["rows"] = rows
		if to < len(f.rows) {
			answer["pageToken"] = fmt.Sprint(to)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func TestBigQuery(t *testing.T) {
	rows := []string{row{id: "j1"}.String(), row{id: "j2"}.String(), row{id: "j3"}.String()}
	tests := []struct {
		name string
		fake fake
		want int
		err  string
	}{
		{"one page", fake{rows: rows, page: 10}, 3, ""},
		{"pages", fake{rows: rows, page: 1}, 3, ""},
		{"a query that takes its time", fake{rows: rows, page: 2, waits: 3}, 3, ""},
		{"no jobs", fake{page: 1}, 0, ""},
		{"no permission", fake{refuse: 403}, 0, "bigquery.jobs.listAll"},
		{"an answer that is not whole", fake{rows: rows, page: 10, total: 4}, 3, "4 rows"},
		{"a row of no text", fake{rows: rows, page: 10, broken: true}, 0, "row 1"},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			x.fake.t = t
			s := httptest.NewServer(&x.fake)
			defer s.Close()
			asked := ""
			source, err := reconcile.BigQuery(reconcile.BigQueryConfig{View: view(), Asked: func(job string) { asked = job },
				Options: []option.ClientOption{option.WithEndpoint(s.URL + "/bigquery/v2/"), option.WithoutAuthentication()}})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			err = source(t.Context(), func(n int64, b []byte) error {
				if n != int64(len(got))+1 {
					t.Errorf("entry %d after %d", n, len(got))
				}
				got = append(got, string(b))
				return nil
			})
			if x.err == "" && err != nil || x.err != "" && (!errors.Is(err, reconcile.ErrList) || !strings.Contains(err.Error(), x.err)) {
				t.Errorf("error %v, want one with %q", err, x.err)
			}
			if !slices.Equal(got, x.fake.rows[:x.want]) {
				t.Errorf("%d entries", len(got))
			}
			if x.fake.refuse != 0 {
				return
			}
			q := x.fake.queries[0]
			if len(x.fake.queries) != 1 || asked != "my-project:US.job_1" || q["location"] != "us" || q["useLegacySql"] != false ||
				!strings.HasPrefix(q["query"].(string), "SELECT TO_JSON_STRING(job) FROM (\nSELECT job_id") {
				t.Errorf("asked %s with %v", asked, x.fake.queries)
			}
		})
	}
}

// TestRunWithBigQuery compares with what BigQuery answers.
func TestRunWithBigQuery(t *testing.T) {
	f := &fake{t: t, rows: []string{row{id: "j1", sql: "SELECT 1", session: "s1"}.String(), row{id: "x"}.String()}, page: 1}
	s := httptest.NewServer(f)
	defer s.Close()
	source, err := reconcile.BigQuery(reconcile.BigQueryConfig{View: view(), Options: []option.ClientOption{option.WithEndpoint(s.URL + "/bigquery/v2/"), option.WithoutAuthentication()}})
	if err != nil {
		t.Fatal(err)
	}
	r := compare(t, []call{{sql: "SELECT 1", job: "j1"}}, "", func(c *reconcile.Config) { c.Jobs = source })
	if got := brief(r); !slices.Equal(got, []string{"no_record p1:us.x"}) || r.Recorded != 1 {
		t.Errorf("findings %q, %d on record", got, r.Recorded)
	}
}
