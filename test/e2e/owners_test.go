package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"verbatim.dev/envoy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

const api = "/bigquery/v2/projects/" + harness.Project

// caller sends requests with one token.
type caller struct {
	r     *harness.Rig
	token string
}

func (c caller) do(t testing.TB, method, path, body string, header ...string) harness.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if c.token != "" {
		header = append(header, "Authorization", "Bearer "+c.token)
	}
	var b io.Reader
	if body != "" {
		b = strings.NewReader(body)
	}
	return c.r.Do(ctx, "", method, path, b, header...)
}

// insert starts a query job with an id and returns it.
func (c caller) insert(t testing.TB, id, sql string) {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"jobReference":  map[string]any{"projectId": harness.Project, "jobId": id, "location": "US"},
		"configuration": map[string]any{"query": map[string]any{"query": sql, "useLegacySql": false}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if a := c.do(t, "POST", api+"/jobs", string(b)); a.Status != 200 {
		t.Fatalf("insert of %s: %d %s", id, a.Status, a.Message())
	}
}

// denied fails the test unless the answer is a denial with the code, as the
// caller reads it and as it is on record.
func denied(t testing.TB, r *harness.Rig, what string, a harness.Answer, status int, code string) *search.Detail {
	t.Helper()
	if a.Status != status || !strings.Contains(a.Message(), "["+code+", receipt "+a.Receipt+"]") {
		t.Errorf("%s: status %d, %q, want %d with %s", what, a.Status, a.Message(), status, code)
		return nil
	}
	x, payloads := r.Evidence(a.Receipt)
	if x.Result != record.ResultDenied || x.Decision == nil || x.Decision.Allow || len(x.Decision.Reasons) == 0 || x.Decision.Reasons[0].Code != code || x.Forwarded != nil {
		t.Errorf("%s: on record is %s with %+v", what, x.Result, x.Decision)
	}
	if !bytes.Equal(payloads[record.DirectionResponse], a.Body) {
		t.Errorf("%s: the recorded denial is not the one that was given", what)
	}
	return x
}

// kinds are the kinds of an exchange's records, without its payloads' pieces.
func kinds(x *search.Detail) []string {
	var out []string
	for _, p := range x.Records {
		out = append(out, p.Kind)
	}
	return out
}

// probed fails the test unless the gateway asked BigQuery about the job, on
// record before the decision.
func probed(t testing.TB, what string, x *search.Detail, job string, status int) {
	t.Helper()
	if x == nil {
		return
	}
	if k := kinds(x); len(k) < 3 || k[0] != "received" || k[1] != "probe" || !slices.Contains(k[2:], "intent") {
		t.Errorf("%s: the records are %v", what, k)
	}
	if len(x.Probes) == 0 || x.Probes[0].Status != status || x.Probes[0].Purpose != "owner of job" || !strings.Contains(x.Probes[0].Path, "/jobs/"+job+"?") {
		t.Errorf("%s: the probes are %+v", what, x.Probes)
	}
}

// restart kills the gateway and starts it again.
func restart(t testing.TB, r *harness.Rig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r.Extproc.Kill()
	if err := r.StartExtproc(ctx); err != nil {
		t.Fatal(err)
	}
	c := caller{r, mint(t, r, "waiting", "readers")}
	for {
		a := c.do(t, "GET", "/$discovery/rest?version=v2", "")
		if a.Status == 200 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the gateway does not come back: %d %v %s", a.Status, a.Err, a.Body)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestOwnership has callers reach for what another made under the one account
// that all of them share, also when the gateway has forgotten who made it.
func TestOwnership(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: grants})
	ada, eve := caller{r, mint(t, r, "ada", "writers")}, caller{r, mint(t, r, "eve", "writers")}
	nobody := caller{r: r}
	ada.insert(t, "ada-1", "SELECT 'ada'")
	ada.insert(t, "ada-2", "SELECT 'ada'")
	eve.insert(t, "eve-1", "SELECT 'eve'")

	doors := func(job string) []struct{ method, path string } {
		return []struct{ method, path string }{
			{"GET", api + "/queries/" + job}, {"GET", api + "/queries/" + job + "?maxResults=0&location=US"}, {"GET", "/projects/" + harness.Project + "/queries/" + job},
			{"GET", api + "/jobs/" + job}, {"GET", api + "/jobs/" + job + "?location=EU"}, {"POST", api + "/jobs/" + job + "/cancel"},
			{"GET", api + "/jobs?parentJobId=" + job},
		}
	}
	for _, d := range doors("ada-1") {
		denied(t, r, d.method+" "+d.path+" by another", eve.do(t, d.method, d.path, ""), 403, "not_owner")
		denied(t, r, d.method+" "+d.path+" by nobody", nobody.do(t, d.method, d.path, ""), 401, "token_missing")
	}
	for _, d := range doors("ada-1")[:6] {
		if a := ada.do(t, d.method, d.path, ""); a.Status != 200 {
			t.Errorf("%s %s by the owner: %d %s", d.method, d.path, a.Status, a.Message())
		}
	}
	onlyOwn(t, "before a restart", ada, "ada-2", "ada-1")
	onlyOwn(t, "before a restart", eve, "eve-1")
	unknown := eve.do(t, "GET", api+"/queries/never-made", "")
	probed(t, "a job that nobody made", denied(t, r, "a job that nobody made", unknown, 403, "not_owner"), "never-made", 404)

	// The same id again: BigQuery refuses it, and it stays Ada's.
	taken := eve.do(t, "POST", api+"/jobs", `{"jobReference":{"jobId":"ada-1"},"configuration":{"query":{"query":"SELECT 1","useLegacySql":false}}}`)
	if taken.Status != 409 {
		t.Errorf("a taken id: %d %s", taken.Status, taken.Message())
	}
	denied(t, r, "a taken id", eve.do(t, "GET", api+"/jobs/ada-1", ""), 403, "not_owner")

	// A caller's own labels cannot pass a job off as another's, nor take one.
	var ownersLabel string
	for _, q := range r.Double.Requests() {
		if i := bytes.Index(q.Body, []byte(`"verbatim_owner":"`)); i >= 0 && bytes.Contains(q.Body, []byte("ada-1")) {
			ownersLabel = string(q.Body[i+18 : i+18+52])
			break
		}
	}
	forged := eve.do(t, "POST", api+"/jobs", fmt.Sprintf(
		`{"jobReference":{"jobId":"eve-2"},"configuration":{"labels":{"verbatim_owner":%q,"mine":"x"},"query":{"query":"SELECT 1","useLegacySql":false}}}`, ownersLabel))
	if forged.Status != 200 || ownersLabel == "" {
		t.Fatalf("labels of one's own: %d %s", forged.Status, forged.Message())
	}

	// The anonymous table of a result: shown to who made the query and was told
	// of the table.
	table := api + "/datasets/_synthetic/tables/anonada-1/data"
	denied(t, r, "the result's table by another", eve.do(t, "GET", table, ""), 403, "not_owner")
	if a := ada.do(t, "GET", table, ""); a.Status != 200 {
		t.Errorf("the result's table by the owner: %d %s", a.Status, a.Message())
	}

	// Another replica, or this one after a crash, knows of nothing.
	restart(t, r)
	denied(t, r, "the result's table by another after a restart", eve.do(t, "GET", table, ""), 403, "not_owner")
	if a := ada.do(t, "GET", table, ""); a.Status != 200 {
		t.Errorf("the result's table after a restart: %d %s", a.Status, a.Message())
	} else if x, _ := r.Evidence(a.Receipt); len(x.Probes) == 0 || x.Probes[0].Purpose != "job of anonymous table" {
		t.Errorf("the result's table after a restart: probes %+v", x.Probes)
	}
	onlyOwn(t, "after a restart", ada, "ada-2", "ada-1")
	for _, d := range doors("ada-2") {
		x := denied(t, r, d.method+" "+d.path+" by another after a restart", eve.do(t, d.method, d.path, ""), 403, "not_owner")
		probed(t, d.method+" "+d.path+" by another after a restart", x, "ada-2", 200)
	}
	denied(t, r, "a job that nobody made, after a restart", eve.do(t, "GET", api+"/jobs/never-made", ""), 403, "not_owner")
	first := ada.do(t, "GET", api+"/jobs/ada-1", "")
	if first.Status != 200 {
		t.Fatalf("the owner after a restart: %d %s", first.Status, first.Message())
	}
	x, payloads := r.Evidence(first.Receipt)
	probed(t, "the owner after a restart", x, "ada-1", 200)
	if !bytes.Equal(payloads[record.DirectionResponse], first.Body) {
		t.Error("the owner after a restart: other bytes are on record")
	}
	again := ada.do(t, "GET", api+"/queries/ada-1", "")
	if x, _ := r.Evidence(again.Receipt); again.Status != 200 || len(x.Probes) != 0 {
		t.Errorf("the owner a second time: %d, %d probes", again.Status, len(x.Probes))
	}
	if a := ada.do(t, "GET", table, ""); a.Status != 200 {
		t.Errorf("the result's table, told of again: %d %s", a.Status, a.Message())
	}
	// Labels that another account copied from a job of Ada's.
	r.Double.RunBy("ada-2", "somebody@else.example")
	restart(t, r)
	denied(t, r, "a job of another account with Ada's labels", ada.do(t, "GET", api+"/jobs/ada-2", ""), 403, "not_owner")
	onlyOwn(t, "without another account's job", ada, "ada-1")
	denied(t, r, "a job with a forged label, by whom it names", ada.do(t, "GET", api+"/jobs/eve-2", ""), 403, "not_owner")
	if a := eve.do(t, "GET", api+"/jobs/eve-2", ""); a.Status != 200 || !bytes.Contains(a.Body, []byte(`"mine":"x"`)) {
		t.Errorf("a job with a forged label, by its owner: %d %s", a.Status, a.Message())
	}
	r.Verify()
}

// TestUploadsBelongToTheirCaller sends chunks to another's upload, and follows
// the address that an upload is given.
func TestUploadsBelongToTheirCaller(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: strings.Replace(grants, `"grants": {`,
		`"grants": {"loaders": {"match": {"issuer": "corp", "group": "loaders"}, "projects": ["demo-project"], "datasets": ["raw"], "methods": ["write"]},`, 1)})
	ada, eve := caller{r, mint(t, r, "ada", "loaders")}, caller{r, mint(t, r, "eve", "writers")}
	start := func(c caller, dataset string) harness.Answer {
		return c.do(t, "POST", "/upload/bigquery/v2/projects/"+harness.Project+"/jobs?uploadType=resumable",
			`{"configuration":{"load":{"sourceFormat":"CSV","destinationTable":{"projectId":"demo-project","datasetId":"`+dataset+`","tableId":"t"}}}}`)
	}
	denied(t, r, "a dataset that is not granted", start(ada, "secret"), 403, "dataset_denied")
	a := start(ada, "raw")
	if a.Status != 200 {
		t.Fatalf("start: %d %s", a.Status, a.Message())
	}
	location, err := url.Parse(a.Header.Get("Location"))
	if err != nil || location.Host != r.Envoy.Listener || location.Scheme != "http" || location.Query().Get("upload_id") == "" {
		t.Fatalf("the upload's address is %q, want one at %s", a.Header.Get("Location"), r.URL())
	}
	x, _ := r.Evidence(a.Receipt)
	if x.Dataset != "raw" || x.Table != "t" {
		t.Errorf("the record names the table %s.%s", x.Dataset, x.Table)
	}
	chunk := func(c caller, target string) harness.Answer {
		return c.do(t, "PUT", target, "1\n2\n", "Content-Range", "bytes 0-3/4")
	}
	target := location.RequestURI()
	denied(t, r, "a chunk by another", chunk(eve, target), 403, "not_owner")
	denied(t, r, "a chunk for an upload that nobody began", chunk(eve, strings.Replace(target, "upload_id=", "upload_id=x", 1)), 403, "not_owner")
	denied(t, r, "a chunk by nobody", chunk(caller{r: r}, target), 401, "token_missing")
	if n := len(r.Double.Uploads()); n != 0 {
		t.Fatalf("%d uploads were finished", n)
	}
	done := chunk(ada, target)
	if done.Status != 200 {
		t.Fatalf("the owner's chunk: %d %s", done.Status, done.Message())
	}
	x, payloads := r.Evidence(done.Receipt)
	if string(payloads[record.DirectionRequest]) != "1\n2\n" || !bytes.Equal(payloads[record.DirectionResponse], done.Body) || x.Dataset != "raw" || x.Table != "t" || x.Job == nil {
		t.Errorf("on record: %s.%s, job %v, %q", x.Dataset, x.Table, x.Job, payloads[record.DirectionRequest])
	}
	if u := r.Double.Uploads(); len(u) != 1 || u[0].Bytes != 4 {
		t.Errorf("uploads: %+v", u)
	}

	open := start(ada, "raw")
	location, err = url.Parse(open.Header.Get("Location"))
	if err != nil || open.Status != 200 {
		t.Fatalf("start: %d %s", open.Status, open.Message())
	}
	restart(t, r)
	target = location.RequestURI()
	proof := strings.Index(target, "verbatim_upload=") + len("verbatim_upload=")
	for what, forged := range map[string]string{
		"with no proof":           target[:proof-len("&verbatim_upload=")],
		"with an empty proof":     target[:proof],
		"with a changed proof":    target[:proof] + "A" + target[proof+1:],
		"with another's proof":    strings.Replace(target, location.Query().Get("upload_id"), "another", 1),
		"with a proof that ended": target[:len(target)-1],
	} {
		denied(t, r, "a chunk after a restart "+what, chunk(ada, forged), 403, "not_owner")
	}
	denied(t, r, "a chunk by another after a restart", chunk(eve, target), 403, "not_owner")
	if a := chunk(ada, target); a.Status != 200 {
		t.Errorf("a chunk after a restart: %d %s", a.Status, a.Message())
	}
	for _, q := range r.Double.Requests() {
		if strings.Contains(q.RawQuery, "verbatim_upload") {
			t.Errorf("the proof went to BigQuery: %s", q.RawQuery)
		}
	}
	r.Verify()
}

// TestNoCallerIsSentElsewhere has BigQuery give an upload an address at another
// host, where a client would send its token.
func TestNoCallerIsSentElsewhere(t *testing.T) {
	const elsewhere = "http://elsewhere.example"
	r := harness.Start(t, harness.Options{Policy: grants, Double: elsewhereIs(elsewhere)})
	ada := caller{r, mint(t, r, "ada", "writers")}
	a := ada.do(t, "POST", "/upload/bigquery/v2/projects/"+harness.Project+"/jobs?uploadType=resumable",
		`{"configuration":{"load":{"destinationTable":{"datasetId":"raw","tableId":"t"}}}}`)
	if a.Status != http.StatusBadGateway || !strings.Contains(a.Message(), "[location_foreign, receipt "+a.Receipt+"]") {
		t.Errorf("status %d: %s", a.Status, a.Message())
	}
	if l := a.Header.Get("Location"); l != "" || bytes.Contains(a.Body, []byte("elsewhere")) {
		t.Errorf("the caller is told of %q: %s", l, a.Body)
	}
	if x, _ := r.Evidence(a.Receipt); x.Result != record.ResultAborted {
		t.Errorf("result %s", x.Result)
	}
	r.Verify()
}

// onlyOwn fails the test unless jobs.list shows the caller these jobs, in this
// order, and no other.
func onlyOwn(t *testing.T, what string, c caller, want ...string) {
	t.Helper()
	for _, path := range []string{"/jobs", "/jobs?projection=full&allUsers=true", "/jobs?maxResults=1&fields=jobs(jobReference)"} {
		var got []string
		token := ""
		for range 20 {
			next := path
			if token != "" {
				sep := "?"
				if strings.Contains(path, "?") {
					sep = "&"
				}
				next += sep + "pageToken=" + url.QueryEscape(token)
			}
			a := c.do(t, "GET", api+next, "")
			var list struct {
				Jobs []struct {
					JobReference  struct{ JobID string }
					Configuration json.RawMessage
				}
				NextPageToken string
			}
			if a.Status != 200 || json.Unmarshal(a.Body, &list) != nil {
				t.Fatalf("%s: %s: %d %s", what, path, a.Status, a.Body)
			}
			for _, j := range list.Jobs {
				got = append(got, j.JobReference.JobID)
				if full := strings.Contains(path, "full"); full != (len(j.Configuration) > 0) {
					t.Errorf("%s: %s: configuration %s", what, path, j.Configuration)
				}
			}
			if token = list.NextPageToken; token == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s: jobs %v, want %v", what, path, got, want)
		}
	}
}

// TestSessionsBelongToTheirCaller has a caller begin a BigQuery session, and
// others come to it.
func TestSessionsBelongToTheirCaller(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: grants})
	ada, eve := caller{r, mint(t, r, "ada", "writers")}, caller{r, mint(t, r, "eve", "writers")}
	begin := ada.do(t, "POST", api+"/queries", `{"query":"SELECT 1","useLegacySql":false,"createSession":true}`)
	var made struct{ SessionInfo struct{ SessionID string } }
	if err := json.Unmarshal(begin.Body, &made); err != nil || begin.Status != 200 || made.SessionInfo.SessionID == "" {
		t.Fatalf("begin: %d %s", begin.Status, begin.Body)
	}
	use := func(c caller, id string) harness.Answer {
		return c.do(t, "POST", api+"/queries", `{"query":"SELECT 2","useLegacySql":false,"connectionProperties":[{"key":"session_id","value":"`+id+`"}]}`)
	}
	asJob := func(c caller, id string) harness.Answer {
		return c.do(t, "POST", api+"/jobs", `{"configuration":{"query":{"query":"SELECT 2","useLegacySql":false,"connectionProperties":[{"key":"session_id","value":"`+id+`"}]}}}`)
	}
	for _, when := range []string{"at first", "after a restart"} {
		denied(t, r, "another's session "+when, use(eve, made.SessionInfo.SessionID), 403, "not_owner")
		denied(t, r, "another's session, as a job, "+when, asJob(eve, made.SessionInfo.SessionID), 403, "not_owner")
		denied(t, r, "no session "+when, use(ada, "nobodys"), 403, "not_owner")
		for _, a := range []harness.Answer{use(ada, made.SessionInfo.SessionID), asJob(ada, made.SessionInfo.SessionID)} {
			if a.Status != 200 {
				t.Errorf("one's own session %s: %d %s", when, a.Status, a.Message())
			}
		}
		restart(t, r)
	}
	r.Verify()
}

// TestRepeatedRequestsAreOne repeats a requestId, as clients do after a lost
// answer: one's own gives the first job's answer, another's a job of its own.
func TestRepeatedRequestsAreOne(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: grants})
	ada, eve := caller{r, mint(t, r, "ada", "readers")}, caller{r, mint(t, r, "eve", "readers")}
	ask := func(c caller) string {
		a := c.do(t, "POST", api+"/queries", `{"query":"SELECT 1","useLegacySql":false,"requestId":"the-same"}`)
		var made struct{ JobReference struct{ JobID string } }
		if err := json.Unmarshal(a.Body, &made); err != nil || a.Status != 200 || made.JobReference.JobID == "" {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		return made.JobReference.JobID
	}
	first, second, other := ask(ada), ask(ada), ask(eve)
	if first != second || first == other {
		t.Errorf("jobs %s, %s and %s", first, second, other)
	}
	for _, q := range r.Double.Requests() {
		if bytes.Contains(q.Body, []byte("the-same")) {
			t.Error("the caller's requestId went to BigQuery")
		}
		if bytes.Contains(q.Body, []byte("SELECT 1")) && !bytes.Contains(q.Body, []byte(`"jobCreationMode":"JOB_CREATION_REQUIRED"`)) && !bytes.Contains(q.Body, []byte("dryRun")) {
			t.Errorf("a job is not required: %s", q.Body)
		}
	}
}

// TestTwoGatewaysShareBigQueryAlone has a caller go on at a second gateway with
// what it began at the first.
func TestTwoGatewaysShareBigQueryAlone(t *testing.T) {
	one := harness.Start(t, harness.Options{Policy: grants})
	b, err := os.ReadFile(one.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	var first map[string]any
	if err := yaml.Unmarshal(b, &first); err != nil {
		t.Fatal(err)
	}
	two := harness.Start(t, harness.Options{Policy: grants,
		Configure: func(m map[string]any) {
			m["gateway"] = "second"
			for _, shared := range []string{"issuers", "connections", "session_key", "tokens"} {
				m[shared] = first[shared]
			}
		},
		Bootstrap: func(p *envoy.Params) { p.Connections[0].REST = one.Upstream.URL }})
	ada, eve := mint(t, one, "ada", "writers"), mint(t, one, "eve", "writers")
	atOne, atTwo := caller{one, ada}, caller{two, ada}
	evesAtOne, evesAtTwo := caller{one, eve}, caller{two, eve}

	atOne.insert(t, "ada-1", "SELECT 'ada'")
	evesAtOne.insert(t, "eve-1", "SELECT 'eve'")
	ok := func(what string, a harness.Answer) harness.Answer {
		t.Helper()
		if a.Status != 200 {
			t.Errorf("%s: %d %s", what, a.Status, a.Message())
		}
		return a
	}
	ok("the job", atTwo.do(t, "GET", api+"/jobs/ada-1", ""))
	ok("its result", atTwo.do(t, "GET", api+"/queries/ada-1", ""))
	ok("its table", atTwo.do(t, "GET", api+"/datasets/_synthetic/tables/anonada-1/data", ""))
	denied(t, two, "another's job", evesAtTwo.do(t, "GET", api+"/jobs/ada-1", ""), 403, "not_owner")
	denied(t, two, "another's result", evesAtTwo.do(t, "GET", api+"/queries/ada-1", ""), 403, "not_owner")
	denied(t, two, "another's table", evesAtTwo.do(t, "GET", api+"/datasets/_synthetic/tables/anonada-1/data", ""), 403, "not_owner")
	onlyOwn(t, "at the second", atTwo, "ada-1")
	onlyOwn(t, "at the second", evesAtTwo, "eve-1")

	begin := ok("begin a session", atOne.do(t, "POST", api+"/queries", `{"query":"SELECT 1","useLegacySql":false,"createSession":true}`))
	var made struct{ SessionInfo struct{ SessionID string } }
	if err := json.Unmarshal(begin.Body, &made); err != nil {
		t.Fatal(err)
	}
	inSession := `{"query":"SELECT 2","useLegacySql":false,"connectionProperties":[{"key":"session_id","value":"` + made.SessionInfo.SessionID + `"}]}`
	ok("the session", atTwo.do(t, "POST", api+"/queries", inSession))
	denied(t, two, "another's session", evesAtTwo.do(t, "POST", api+"/queries", inSession), 403, "not_owner")

	start := ok("begin an upload", atOne.do(t, "POST", "/upload/bigquery/v2/projects/"+harness.Project+"/jobs?uploadType=resumable",
		`{"configuration":{"load":{"sourceFormat":"CSV","destinationTable":{"projectId":"demo-project","datasetId":"raw","tableId":"t"}}}}`))
	location, err := url.Parse(start.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	denied(t, two, "another's upload", evesAtTwo.do(t, "PUT", location.RequestURI(), "1\n2\n", "Content-Range", "bytes 0-3/4"), 403, "not_owner")
	ok("the upload", atTwo.do(t, "PUT", location.RequestURI(), "1\n2\n", "Content-Range", "bytes 0-3/4"))

	// A token that one gateway gave out, at the other.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	token := tokenIn(t, exchangeToken(ctx, one, tokenForm(ada))).Token
	ok("a token of the first", caller{two, token}.do(t, "GET", api+"/jobs/ada-1", ""))
	one.Verify()
	two.Verify()
}

// TestDiscoveryNamesTheGateway reads the document that bq builds itself from.
func TestDiscoveryNamesTheGateway(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: grants})
	c := caller{r, mint(t, r, "ada", "readers")}
	for _, path := range []string{"/$discovery/rest?version=v2", "/discovery/v1/apis/bigquery/v2/rest"} {
		a := c.do(t, "GET", path, "")
		var doc struct{ RootURL, BaseURL, MtlsRootURL, ServicePath, BatchPath string }
		if err := json.Unmarshal(a.Body, &doc); err != nil || a.Status != 200 {
			t.Fatalf("%s: %d %s", path, a.Status, a.Message())
		}
		if doc.RootURL != r.URL()+"/" || doc.BaseURL != r.URL()+"/bigquery/v2/" || doc.MtlsRootURL != "" || doc.BatchPath != "" || !bytes.Contains(a.Body, []byte(`"resources"`)) {
			t.Errorf("%s: %+v", path, doc)
		}
		if x, payloads := r.Evidence(a.Receipt); !bytes.Equal(payloads[record.DirectionResponse], a.Body) || len(x.Probes) != 1 {
			t.Errorf("%s: on record %d bytes, probes %+v", path, len(payloads[record.DirectionResponse]), x.Probes)
		}
	}
}

// TestGroupsShareWhatTheyMake has two members of a group whose grant says that
// its jobs are the group's, and a third caller who is in another.
func TestGroupsShareWhatTheyMake(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: `{"grants": {
		"team": {"match": {"issuer": "corp", "group": "team"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read"], "share": true},
		"others": {"match": {"issuer": "corp", "group": "others"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read"]}
	}}`})
	ada, bob, eve := caller{r, mint(t, r, "ada", "team")}, caller{r, mint(t, r, "bob", "team")}, caller{r, mint(t, r, "eve", "others")}
	ada.insert(t, "shared-1", "SELECT 'team'")
	eve.insert(t, "own-1", "SELECT 'eve'")
	for _, when := range []string{"at first", "after a restart"} {
		for _, c := range []caller{ada, bob} {
			for _, path := range []string{"/jobs/shared-1", "/queries/shared-1", "/datasets/_synthetic/tables/anonshared-1/data"} {
				if a := c.do(t, "GET", api+path, ""); a.Status != 200 {
					t.Errorf("%s %s: %d %s", path, when, a.Status, a.Message())
				}
			}
		}
		denied(t, r, "a group's job by another "+when, eve.do(t, "GET", api+"/jobs/shared-1", ""), 403, "not_owner")
		denied(t, r, "one's own job by a group "+when, bob.do(t, "GET", api+"/jobs/own-1", ""), 403, "not_owner")
		onlyOwn(t, when, bob, "shared-1")
		onlyOwn(t, when, eve, "own-1")
		restart(t, r)
	}
}
