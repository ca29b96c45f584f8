package bigquery

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		method, target string
		id, path       string
		check          func(Call) bool
	}{
		{"POST", "/bigquery/v2/projects/p/queries?prettyPrint=false", "bigquery.jobs.query", "/bigquery/v2/projects/p/queries?prettyPrint=false", func(c Call) bool {
			return c.Project == "p" && c.Kind == KindQuery && c.Carries == CarriesJSON
		}},
		{"POST", "/projects/p/queries?alt=json", "bigquery.jobs.query", "/bigquery/v2/projects/p/queries?alt=json", nil},
		{"GET", "/projects?maxResults=10", "bigquery.projects.list", "/bigquery/v2/projects?maxResults=10", func(c Call) bool { return c.Project == "" }},
		{"GET", "/bigquery/v2/projects/p/queries/J_1-2?maxResults=0&location=US&formatOptions.useInt64Timestamp=True&fields=jobReference,totalRows", "bigquery.jobs.getQueryResults",
			"/bigquery/v2/projects/p/queries/J_1-2?fields=jobReference%2CtotalRows&formatOptions.useInt64Timestamp=True&location=US&maxResults=0", func(c Call) bool {
				return *c.Job == record.Job{Project: "p", Location: "US", ID: "J_1-2"}
			}},
		{"GET", "/bigquery/v2/projects/p/jobs/j?projection=full", "bigquery.jobs.get", "/bigquery/v2/projects/p/jobs/j?projection=full", nil},
		{"GET", "/bigquery/v2/projects/p/jobs?stateFilter=done&stateFilter=running&quotaUser=me&autoPaginate=false&maxApiCalls=1", "bigquery.jobs.list", "/bigquery/v2/projects/p/jobs?stateFilter=done&stateFilter=running", nil},
		{"GET", "/bigquery/v2/projects/p/jobs?parentJobId=j", "bigquery.jobs.list", "/bigquery/v2/projects/p/jobs?parentJobId=j", func(c Call) bool {
			return *c.Job == record.Job{Project: "p", ID: "j"}
		}},
		{"POST", "/bigquery/v2/projects/p/jobs/j/cancel", "bigquery.jobs.cancel", "/bigquery/v2/projects/p/jobs/j/cancel", nil},
		{"GET", "/bigquery/v2/projects/example.com:p/datasets", "bigquery.datasets.list", "/bigquery/v2/projects/example.com:p/datasets", func(c Call) bool { return c.Project == "example.com:p" }},
		{"GET", "/bigquery/v2/projects/example.com%3Ap/datasets", "bigquery.datasets.list", "/bigquery/v2/projects/example.com:p/datasets", nil},
		{"GET", "/bigquery/v2/projects/p/datasets/d/tables/t%2420240101/data?selectedFields=a%2Cb", "bigquery.tabledata.list", "/bigquery/v2/projects/p/datasets/d/tables/t$20240101/data?selectedFields=a%2Cb", func(c Call) bool {
			return c.Dataset == "d" && c.Table == "t" && c.Decorator == "$20240101" && c.Kind == KindRead
		}},
		{"GET", "/bigquery/v2/projects/p/datasets/d/tables/t@-3600000/data", "bigquery.tabledata.list", "/bigquery/v2/projects/p/datasets/d/tables/t@-3600000/data", func(c Call) bool {
			return c.Table == "t" && c.Decorator == "@-3600000"
		}},
		{"POST", "/bigquery/v2/projects/p/datasets/d/tables/t:testIamPermissions", "bigquery.tables.testIamPermissions", "/bigquery/v2/projects/p/datasets/d/tables/t:testIamPermissions", nil},
		{"POST", "/bigquery/v2/projects/p/datasets/d/routines/r%3AgetIamPolicy", "bigquery.routines.getIamPolicy", "/bigquery/v2/projects/p/datasets/d/routines/r:getIamPolicy", func(c Call) bool { return c.Routine == "r" }},
		{"POST", "/upload/bigquery/v2/projects/p/jobs?uploadType=multipart", "bigquery.jobs.insert", "/upload/bigquery/v2/projects/p/jobs?uploadType=multipart", func(c Call) bool {
			return c.Upload == UploadMultipart && c.Carries == CarriesMultipart && c.Kind == KindUpload
		}},
		{"POST", "/resumable/upload/bigquery/v2/projects/p/jobs?uploadType=resumable", "bigquery.jobs.insert", "/resumable/upload/bigquery/v2/projects/p/jobs?uploadType=resumable", func(c Call) bool {
			return c.Upload == UploadStart && c.Carries == CarriesJSON
		}},
		{"PUT", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=AB-_9", "bigquery.jobs.insert", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=AB-_9", func(c Call) bool {
			return c.Upload == UploadChunk && c.Carries == CarriesStream && c.UploadID == "AB-_9"
		}},
		{"POST", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=x&alt=json", "bigquery.jobs.insert", "/upload/bigquery/v2/projects/p/jobs?alt=json&uploadType=resumable&upload_id=x", func(c Call) bool { return c.Upload == UploadChunk }},
		{"GET", "/$discovery/rest?version=v2", "discovery", "/$discovery/rest?version=v2", nil},
		{"GET", "/%24discovery/rest?version=v2", "discovery", "/$discovery/rest?version=v2", nil},
		{"GET", "/discovery/v1/apis/bigquery/v2/rest", "discovery", "/discovery/v1/apis/bigquery/v2/rest", nil},
		{"GET", "/bigquery/v2/projects/p/datasets?", "bigquery.datasets.list", "/bigquery/v2/projects/p/datasets", nil},
		{"GET", "/bigquery/v2/projects/p/datasets?filter=labels.a%3Ab+c", "bigquery.datasets.list", "/bigquery/v2/projects/p/datasets?filter=labels.a%3Ab+c", nil},
	} {
		call, ref := Classify(Request{Method: c.method, Target: c.target})
		if ref != nil {
			t.Errorf("%s %s: refused: %s: %s", c.method, c.target, ref.Code, ref.Message)
			continue
		}
		if call.Method != c.id || call.Path != c.path || c.check != nil && !c.check(call) {
			t.Errorf("%s %s: got %+v", c.method, c.target, call)
		}
	}
}

func TestClassifyRefuses(t *testing.T) {
	const canary = "ya29canarytoken"
	q := "/bigquery/v2/projects/p/queries"
	for _, c := range []struct {
		method, target string
		header         string
		code, id       string
	}{
		{"GET", "/", "", "route_unknown", ""},
		{"GET", "/bigquery/v2", "", "route_unknown", ""},
		{"GET", "/favicon.ico", "", "route_unknown", ""},
		{"POST", "/bigquery/v2/projects/p/queries/", "", "path_form", ""},
		{"POST", "//bigquery/v2/projects/p/queries", "", "path_form", ""},
		{"POST", "/bigquery/v2//projects/p/queries", "", "path_form", ""},
		{"POST", "/bigquery/v2/projects/../queries", "", "path_form", ""},
		{"POST", "/bigquery/v2/projects/%2e%2e/queries", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/./projects/p/queries", "", "path_form", ""},
		{"POST", "/bigquery/v2/projects/p%2Fqueries", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/projects/p/%71ueries", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/projects/p/queries%2f", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/projects/p/%2571ueries", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/projects/p/queries%00", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/projects/p/queries%", "", "path_encoding", ""},
		{"POST", "/bigquery/v2/projects/p/queries%4", "", "path_encoding", ""},
		{"POST", "/BigQuery/v2/projects/p/queries", "", "route_unknown", ""},
		{"POST", "/bigquery/V2/projects/p/queries", "", "route_unknown", ""},
		{"POST", "/bigquery/v2/Projects/p/queries", "", "route_unknown", ""},
		{"POST", "/bigquery/v2/projects/p/Queries", "", "route_unknown", ""},
		{"POST", "/bigquery/v2/projects/P/queries", "", "name_project", "bigquery.jobs.query"},
		{"POST", "/bigquery/v2/projects/p:q/queries", "", "name_project", "bigquery.jobs.query"},
		{"POST", "/bigquery/v2/projects/p;x=1/queries", "", "path_bytes", ""},
		{"POST", q + ";x", "", "path_bytes", ""},
		{"POST", q + "?alt=json;alt=media", "", "path_bytes", ""},
		{"POST", q + "#x", "", "path_bytes", ""},
		{"POST", q + "?fields=a#x", "", "path_bytes", ""},
		{"POST", "/bigquery\\v2/projects/p/queries", "", "path_bytes", ""},
		{"POST", "/bigquery/v2/projects/p/quéries", "", "path_bytes", ""},
		{"POST", "/bigquery/v2/projects/p/queries\x00", "", "path_bytes", ""},
		{"POST", "/bigquery/v2/projects/p /queries", "", "path_bytes", ""},
		{"POST", "https://bigquery.googleapis.com" + q, "", "path_form", ""},
		{"POST", "bigquery/v2/projects/p/queries", "", "path_form", ""},
		{"OPTIONS", "*", "", "method_unknown", ""},
		{"TRACE", q, "", "method_unknown", ""},
		{"post", q, "", "method_unknown", ""},
		{"GET", q, "", "method_unknown", ""},
		{"HEAD", q, "", "method_unknown", ""},
		{"POST", q, "X-HTTP-Method-Override", "method_override", ""},
		{"POST", q, "x_http_method_override", "method_override", ""},
		{"POST", q, "X-Http-MethodOverride", "method_override", ""},
		{"POST", q, "X-HTTP-Method", "method_override", ""},
		{"POST", q, "X-Method-Override", "method_override", ""},
		{"POST", q + "?alt=media", "", "query_alt", "bigquery.jobs.query"},
		{"POST", q + "?alt=proto", "", "query_alt", "bigquery.jobs.query"},
		{"POST", q + "?alt=JSON", "", "query_alt", "bigquery.jobs.query"},
		{"POST", q + "?alt=", "", "query_alt", "bigquery.jobs.query"},
		{"POST", q + "?Alt=json", "", "query_unknown", "bigquery.jobs.query"},
		{"POST", q + "?%61lt=media", "", "query_form", "bigquery.jobs.query"},
		{"POST", q + "?alt=json&alt=json", "", "query_twice", "bigquery.jobs.query"},
		{"POST", q + "?callback=f", "", "query_callback", "bigquery.jobs.query"},
		{"POST", q + "?access_token=" + canary, "", "query_credential", "bigquery.jobs.query"},
		{"POST", q + "?Access-Token=" + canary, "", "query_credential", "bigquery.jobs.query"},
		{"POST", q + "?oauth_token=" + canary, "", "query_credential", "bigquery.jobs.query"},
		{"POST", q + "?key=" + canary, "", "query_credential", "bigquery.jobs.query"},
		{"POST", q + "?" + canary + "=1", "", "query_unknown", "bigquery.jobs.query"},
		{"POST", q + "?" + canary, "", "query_form", "bigquery.jobs.query"},
		{"POST", q + "?a=%zz", "", "query_unknown", "bigquery.jobs.query"},
		{"POST", q + "?fields=%ff", "", "query_form", "bigquery.jobs.query"},
		{"POST", q + "?fields=%0a", "", "query_form", "bigquery.jobs.query"},
		{"POST", q + "?fields=a&&alt=json", "", "query_form", "bigquery.jobs.query"},
		{"POST", q + "?$.xgafv=3", "", "query_value", "bigquery.jobs.query"},
		{"POST", q + "?prettyPrint=2", "", "query_value", "bigquery.jobs.query"},
		{"POST", q + "?uploadType=media", "", "query_unknown", "bigquery.jobs.query"},
		{"POST", "/upload/bigquery/v2/projects/p/jobs", "", "upload_type", "bigquery.jobs.insert"},
		{"POST", "/upload/bigquery/v2/projects/p/jobs?uploadType=media", "", "upload_type", "bigquery.jobs.insert"},
		{"POST", "/upload/bigquery/v2/projects/p/jobs?uploadType=Multipart", "", "upload_type", "bigquery.jobs.insert"},
		{"POST", "/upload/bigquery/v2/projects/p/jobs?upload_protocol=raw", "", "upload_type", "bigquery.jobs.insert"},
		{"POST", "/upload/bigquery/v2/projects/p/jobs?uploadType=multipart&upload_id=x", "", "upload_type", "bigquery.jobs.insert"},
		{"PUT", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable", "", "upload_id", "bigquery.jobs.insert"},
		{"PUT", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=a%2Fb", "", "upload_id", "bigquery.jobs.insert"},
		{"PUT", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=", "", "upload_id", "bigquery.jobs.insert"},
		{"POST", "/upload/projects/p/jobs?uploadType=multipart", "", "route_unknown", ""},
		{"POST", "/upload/bigquery/v2/projects/p/queries", "", "route_unknown", ""},
		{"DELETE", "/bigquery/v2/projects/p/jobs/j/delete", "", "route_denied", "bigquery.jobs.delete"},
		{"POST", "/bigquery/v2/projects/p/datasets/d:undelete", "", "route_denied", "bigquery.datasets.undelete"},
		{"POST", "/bigquery/v2/projects/p/datasets/d:Undelete", "", "route_unknown", ""},
		{"POST", "/bigquery/v2/projects/p/datasets/d:undelete:undelete", "", "route_unknown", ""},
		{"GET", "/bigquery/v2/projects/p/datasets/d:undelete", "", "method_unknown", ""},
		{"GET", "/bigquery/v2/projects/p/datasets/d:x", "", "route_unknown", ""},
		{"PATCH", "/bigquery/v2/projects/p/datasets/d", "", "route_denied", "bigquery.datasets.patch"},
		{"POST", "/bigquery/v2/projects/p/datasets/d/tables/t:setIamPolicy", "", "route_denied", "bigquery.tables.setIamPolicy"},
		{"POST", "/bigquery/v2/projects/p/datasets/d/tables/t/rowAccessPolicies:batchDelete", "", "route_denied", "bigquery.rowAccessPolicies.batchDelete"},
		{"GET", "/bigquery/v2/projects/p/datasets/d/tables/t$/data", "", "name_table", "bigquery.tabledata.list"},
		{"GET", "/bigquery/v2/projects/p/datasets/d/tables/$20240101/data", "", "name_table", "bigquery.tabledata.list"},
		{"GET", "/bigquery/v2/projects/p/datasets/d$x/tables", "", "name_dataset", "bigquery.tables.list"},
		{"POST", "/batch/bigquery/v2", "", "route_denied", "batch"},
		{"PUT", "/mcp", "", "method_unknown", ""},
		{"POST", "/mcp/x", "", "route_unknown", ""},
		{"POST", "/token", "", "route_denied", "oauth2.token"},
		{"GET", "/sts/v1/token", "", "method_unknown", ""},
		{"POST", "/sts/v1/token/", "", "path_form", ""},
		{"POST", "/sts/v1/token?subject_token=x", "", "query_unknown", "verbatim.token"},
		{"POST", "/sts/v1/introspect", "", "route_unknown", ""},
		{"POST", "/verbatim/whoami", "", "method_unknown", ""},
		{"GET", "/verbatim/exchanges", "", "route_unknown", ""},
		{"GET", "/verbatim/exchanges/a$b", "", "name_exchange", "verbatim.exchanges.get"},
		{"POST", "/google.cloud.bigquery.storage.v1.BigQueryRead/ReadRows", "", "content_type", "google.cloud.bigquery.storage.v1.BigQueryRead.ReadRows"},
		{"POST", "/google.cloud.bigquery.storage.v1.BigQueryRead/Other", "", "route_denied", "google.cloud.bigquery.storage.v1.BigQueryRead"},
		{"POST", "/google.cloud.bigquery.storage.v1.BigQueryWrite/AppendRows", "", "route_denied", "google.cloud.bigquery.storage.v1.BigQueryWrite"},
		{"POST", "/google.cloud.bigquery.v2.JobService/Query", "", "route_denied", "google.cloud.bigquery.v2.JobService"},
		{"POST", "/v1/projects/p/locations/l/connections", "", "route_denied", "another Google API"},
		{"GET", "/$discovery/rest?version=v1", "", "query_value", "discovery"},
		{"POST", q + "?fields=" + strings.Repeat("a", MaxTarget), "", "path_long", ""},
	} {
		var headers []record.Header
		if c.header != "" {
			headers = append(headers, record.Header{Name: c.header, Value: "DELETE"})
		}
		call, ref := Classify(Request{Method: c.method, Target: c.target, Headers: headers})
		if ref == nil {
			t.Errorf("%s %.80q: allowed as %s %s", c.method, c.target, call.Method, call.Path)
			continue
		}
		if ref.Code != c.code || call.Method != c.id {
			t.Errorf("%s %.80q: got %s (%s) for %q, want %s for %q", c.method, c.target, ref.Code, ref.Message, call.Method, c.code, c.id)
		}
		if ref.Stance != (c.code == "route_denied") {
			t.Errorf("%s %.80q: Stance is %v", c.method, c.target, ref.Stance)
		}
		if strings.Contains(ref.Message, canary) || strings.Contains(call.Path, canary) {
			t.Errorf("%s: the credential shows in %q or %q", c.target, ref.Message, call.Path)
		}
		if ref.Status < 400 || ref.Reason == "" || ref.Message == "" {
			t.Errorf("%s %.80q: incomplete refusal %+v", c.method, c.target, ref)
		}
	}
}

// plainRouter is what any Go program would make of the table: net/http's own
// router, with the verbs behind a colon told apart by hand, for it has none.
func plainRouter() *http.ServeMux {
	mux := http.NewServeMux()
	type verbs map[string]string // verb -> id
	withVerbs := map[string]verbs{}
	done := map[string]bool{}
	answer := func(id string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("id", id) }
	}
	for _, r := range Routes() {
		method := r.HTTP + " "
		if r.HTTP == "*" {
			method = ""
		}
		if base, verb, ok := strings.Cut(r.Path, "}:"); ok {
			p := method + base + "}"
			if withVerbs[p] == nil {
				withVerbs[p] = verbs{}
			}
			withVerbs[p][verb] = r.ID
			continue
		}
		p := method + r.Path
		if !done[p] {
			done[p] = true
			mux.HandleFunc(p, answer(r.ID))
		}
	}
	for p, v := range withVerbs {
		mux.HandleFunc(p, func(w http.ResponseWriter, r *http.Request) {
			last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
			_, verb, _ := strings.Cut(last, ":")
			w.Header().Set("id", v[verb])
		})
	}
	return mux
}

func FuzzClassify(f *testing.F) {
	for _, r := range Routes() {
		m := r.HTTP
		if m == "*" {
			m = "POST"
		}
		f.Add(m, strings.ReplaceAll(plainTemplate(r.Path), "{}", "x1"), "")
	}
	f.Add("POST", "/projects/p/queries?alt=json&fields=a", "X-HTTP-Method-Override")
	f.Add("GET", "/bigquery/v2/projects/p/datasets/d/tables/t%2420240101/data?pageToken=%2B%26", "")
	f.Add("PUT", "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=x", "content-type")
	f.Add("GET", "/bigquery/v2/projects/p/%2e%2e/q?access_token=x", "")
	f.Add("POST", "/bigquery/v2/projects/a.b:c/datasets/d/routines/r:getIamPolicy", "")
	mux := plainRouter()
	f.Fuzz(func(t *testing.T, method, target, header string) {
		call, ref := Classify(Request{Method: method, Target: target, Headers: []record.Header{{Name: header, Value: "x"}}})
		for _, forbidden := range []string{"token", "key="} {
			if _, query, _ := strings.Cut(call.Path, "?"); strings.Contains(query, forbidden) && len(call.Query["access_token"])+len(call.Query["key"])+len(call.Query["oauth_token"]) > 0 {
				t.Fatalf("credential parameter in %q", call.Path)
			}
		}
		if ref != nil {
			if ref.Status < 400 || ref.Code == "" {
				t.Fatalf("incomplete refusal %+v", ref)
			}
			return
		}
		u, err := url.ParseRequestURI(call.Path)
		if err != nil {
			t.Fatalf("emitted %q: %v", call.Path, err)
		}
		req := httptest.NewRequest(method, "http://bigquery"+call.Path, nil)
		_, pattern := mux.Handler(req)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		if got := w.Header().Get("id"); got != call.Method || w.Code != 200 {
			t.Fatalf("%s %q is %s here; a plain router reads %q as %q (%s, %d)", method, target, call.Method, call.Path, got, pattern, w.Code)
		}
		if strings.Contains(u.Path, "//") || strings.Contains(u.EscapedPath(), "%") {
			t.Fatalf("emitted %q is not canonical", call.Path)
		}
		again, ref := Classify(Request{Method: method, Target: call.Path})
		if ref != nil || again.Path != call.Path || again.Method != call.Method || again.Project != call.Project || again.Table != call.Table || again.Upload != call.Upload {
			t.Fatalf("%q does not read as itself: %+v, %v", call.Path, again, ref)
		}
		for name := range call.Query {
			if strings.Contains(strings.ToLower(name), "token") && name != "pageToken" {
				t.Fatalf("parameter %q passed", name)
			}
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	r := Request{Method: "GET", Target: "/bigquery/v2/projects/p/queries/job_abc?maxResults=0&location=US&prettyPrint=false", Headers: []record.Header{{Name: "content-type", Value: "application/json"}, {Name: "user-agent", Value: "x"}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, ref := Classify(r); ref != nil {
			b.Fatal(ref)
		}
	}
}
