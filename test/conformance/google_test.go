//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	bqstorage "cloud.google.com/go/bigquery/storage/apiv1"
	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"cloud.google.com/go/storage"
	"golang.org/x/oauth2"
	"google.golang.org/api/googleapi"
	logging "google.golang.org/api/logging/v2"
	"google.golang.org/api/option"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/extproc/credential"
	"verbatim.dev/recorder/directreads"
	"verbatim.dev/recorder/reconcile"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs"
)

// google is the real BigQuery.
type google struct {
	t       *testing.T
	project string
	dataset string
	token   string
}

const host = "https://bigquery.googleapis.com"

// env returns a variable's value, or skips the test with what to set.
func env(t *testing.T, name, what string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Skipf("set %s: %s", name, what)
	}
	return v
}

func token(t *testing.T, c credential.Config, caller credential.Caller) string {
	t.Helper()
	s, err := credential.New(c, credential.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tk, err := s.Token(ctx, caller)
	if err != nil {
		t.Fatal(err)
	}
	return tk.Value
}

func real(t *testing.T) *google {
	t.Helper()
	return &google{
		t: t, project: env(t, "CONFORMANCE_PROJECT", "a Google Cloud project in which the caller of Application Default Credentials may run jobs"),
		dataset: os.Getenv("CONFORMANCE_DATASET"),
		token:   token(t, credential.Config{Kind: credential.KindADC}, credential.Caller{}),
	}
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("status %d: %v: %.300s", a.status, err, a.body)
	}
	return m
}

// do sends a request as Envoy sends it: chunked, with accept-encoding identity.
func (g *google) do(method, path string, body []byte, header ...string) answer {
	g.t.Helper()
	var r io.Reader
	if body != nil {
		r = io.NopCloser(bytes.NewReader(body)) // hides the length: chunked
	}
	req, err := http.NewRequestWithContext(g.t.Context(), method, host+path, r)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	req.Header.Set("Accept-Encoding", "identity")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	c := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := c.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, b}
}

func (g *google) query(fields map[string]any) answer {
	g.t.Helper()
	b, err := json.Marshal(fields)
	if err != nil {
		g.t.Fatal(err)
	}
	return g.do("POST", "/bigquery/v2/projects/"+g.project+"/queries", b)
}

// realNames returns BigQuery and a name that nothing has in the dataset for tests.
func realNames(t *testing.T) (*google, string) {
	t.Helper()
	g := real(t)
	g.dataset = env(t, "CONFORMANCE_DATASET", "a dataset of the project that tables and routines may be made in")
	return g, unique()
}

// defaulted runs a query with the default dataset.
func (g *google) defaulted(text string) answer {
	g.t.Helper()
	return g.query(map[string]any{"query": text, "useLegacySql": false, "defaultDataset": map[string]string{"projectId": g.project, "datasetId": g.dataset}})
}

// script is defaulted for a text that must run.
func (g *google) script(text string) answer {
	g.t.Helper()
	a := g.defaulted(text)
	if a.status != 200 {
		g.t.Fatalf("%s: status %d: %.300s", text, a.status, a.body)
	}
	return a
}

// job returns the reference and location of the job in an answer.
func (g *google) job(a answer) (id, location string) {
	g.t.Helper()
	ref, _ := a.json(g.t)["jobReference"].(map[string]any)
	if ref == nil {
		g.t.Fatalf("status %d, no jobReference: %.300s", a.status, a.body)
	}
	location, _ = ref["location"].(string)
	return ref["jobId"].(string), location
}

func (g *google) jobGet(id, location, fields string) map[string]any {
	g.t.Helper()
	a := g.do("GET", "/bigquery/v2/projects/"+g.project+"/jobs/"+id+"?location="+location+fields, nil)
	if a.status != 200 {
		g.t.Fatalf("jobs.get: status %d: %.300s", a.status, a.body)
	}
	return a.json(g.t)
}

func labels(job map[string]any) map[string]any {
	c, _ := job["configuration"].(map[string]any)
	l, _ := c["labels"].(map[string]any)
	return l
}

func unique() string { return fmt.Sprintf("verbatim_conformance_%d", time.Now().UnixNano()) }

const longLabel = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst" // 52 characters

var tests = map[string]func(t *testing.T){
	"chunked-request": func(t *testing.T) {
		if a := real(t).query(map[string]any{"query": "SELECT 1", "useLegacySql": false}); a.status != 200 {
			t.Errorf("status %d: %.300s", a.status, a.body)
		}
	},
	"identity-encoding": func(t *testing.T) {
		a := real(t).query(map[string]any{"query": "SELECT REPEAT('x', 100000)", "useLegacySql": false})
		if e := a.header.Get("Content-Encoding"); e != "" {
			t.Errorf("content-encoding %q", e)
		}
	},
	"standard-sql-forced": func(t *testing.T) {
		g := real(t)
		if a := g.query(map[string]any{"query": "SELECT x FROM UNNEST([1]) AS x", "useLegacySql": false, "dryRun": true}); a.status != 200 {
			t.Errorf("standard SQL: status %d: %.300s", a.status, a.body)
		}
		if a := g.query(map[string]any{"query": "SELECT x FROM UNNEST([1]) AS x", "dryRun": true}); a.status == 200 {
			t.Error("useLegacySql is no longer true by default")
		}
	},
	"labels-on-query": func(t *testing.T) {
		g := real(t)
		id, loc := g.job(g.query(map[string]any{"query": "SELECT 1", "useLegacySql": false, "useQueryCache": false, "jobCreationMode": "JOB_CREATION_REQUIRED", "labels": map[string]string{"verbatim_owner": longLabel}}))
		if got := labels(g.jobGet(id, loc, ""))["verbatim_owner"]; got != longLabel {
			t.Errorf("label %v", got)
		}
	},
	"labels-on-insert": func(t *testing.T) {
		g := real(t)
		body := fmt.Sprintf(`{"configuration":{"labels":{"verbatim_owner":%q},"query":{"query":"SELECT 1","useLegacySql":false}}}`, longLabel)
		id, loc := g.job(g.do("POST", "/bigquery/v2/projects/"+g.project+"/jobs", []byte(body)))
		if got := labels(g.jobGet(id, loc, ""))["verbatim_owner"]; got != longLabel {
			t.Errorf("label %v", got)
		}
	},
	"pubsub-setup":  pubsubSetup,
	"pubsub-carry":  pubsubCarry,
	"kms-sign":      kmsSign,
	"kms-sign-size": kmsSignSize,
	"kms-keyset":    kmsKeyset,
	"kms-refusals":  kmsRefusals,
	"labels-by-fields": func(t *testing.T) {
		g := real(t)
		id, loc := g.job(g.query(map[string]any{"query": "SELECT 1", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED", "labels": map[string]string{"verbatim_owner": longLabel}}))
		if got := labels(g.jobGet(id, loc, "&fields=configuration(labels)"))["verbatim_owner"]; got != longLabel {
			t.Errorf("label %v", got)
		}
	},
	"script-children": func(t *testing.T) {
		g := real(t)
		g.query(map[string]any{"query": "SELECT 'a job of another kind'", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED"})
		id, loc := g.job(g.query(map[string]any{"query": "DECLARE x INT64 DEFAULT 1; SELECT x;", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED"}))
		a := g.do("GET", "/bigquery/v2/projects/"+g.project+"/jobs?parentJobId="+id, nil)
		jobs, _ := a.json(t)["jobs"].([]any)
		if len(jobs) == 0 {
			t.Fatalf("no jobs of the script: status %d: %.300s", a.status, a.body)
		}
		for _, j := range jobs {
			ref, _ := j.(map[string]any)["jobReference"].(map[string]any)
			child, _ := ref["jobId"].(string)
			s, _ := g.jobGet(child, loc, "&fields=configuration(labels),statistics(parentJobId)")["statistics"].(map[string]any)
			if s["parentJobId"] != id {
				t.Errorf("job %s has the parent %v", child, s["parentJobId"])
			}
		}
	},
	"account": func(t *testing.T) {
		g := real(t)
		dry := g.do("POST", "/bigquery/v2/projects/"+g.project+"/jobs?fields=user_email", []byte(`{"configuration":{"dryRun":true,"query":{"query":"SELECT 1","useLegacySql":false}}}`)).json(t)
		id, loc := g.job(g.query(map[string]any{"query": "SELECT 1", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED"}))
		if who := g.jobGet(id, loc, "&fields=user_email")["user_email"]; who == nil || who != dry["user_email"] {
			t.Errorf("the dry run names %v, the job %v", dry["user_email"], who)
		}
	},
	"jobs-list-parts": func(t *testing.T) {
		g := real(t)
		id, _ := g.job(g.query(map[string]any{"query": "SELECT RAND()", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED", "createSession": true, "labels": map[string]string{"verbatim_owner": longLabel}}))
		fields := "nextPageToken,jobs(jobReference,user_email,configuration(labels,query(destinationTable)),statistics(parentJobId,sessionInfo))"
		list := g.do("GET", "/bigquery/v2/projects/"+g.project+"/jobs?projection=full&maxResults=20&fields="+fields, nil).json(t)
		jobs, _ := list["jobs"].([]any)
		for _, j := range jobs {
			job, _ := j.(map[string]any)
			if ref, _ := job["jobReference"].(map[string]any); ref["jobId"] != id {
				continue
			}
			text := fmt.Sprint(job)
			for _, want := range []string{longLabel, "user_email", "destinationTable", "tableId", "sessionId"} {
				if !strings.Contains(text, want) {
					t.Errorf("no %s in %s", want, text)
				}
			}
			return
		}
		t.Errorf("job %s is not among the newest 20", id)
	},
	"session-info": func(t *testing.T) {
		g := real(t)
		a := g.query(map[string]any{"query": "SELECT 1", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED", "createSession": true})
		info, _ := a.json(t)["sessionInfo"].(map[string]any)
		id, loc := g.job(a)
		stats, _ := g.jobGet(id, loc, "&fields=statistics(sessionInfo)")["statistics"].(map[string]any)
		job, _ := stats["sessionInfo"].(map[string]any)
		if info["sessionId"] == nil || info["sessionId"] != job["sessionId"] {
			t.Errorf("the answer names %v, the job %v", info["sessionId"], job["sessionId"])
		}
	},
	"temp-table-first": func(t *testing.T) {
		g, name := realNames(t)
		g.script("CREATE TABLE `" + g.project + "." + g.dataset + "." + name + "` AS SELECT 'dataset' AS x")
		defer g.script("DROP TABLE `" + g.project + "." + g.dataset + "." + name + "`")
		a := g.script("CREATE TEMP TABLE " + name + " AS SELECT 'temporary' AS x; INSERT INTO " + name + " (x) SELECT x FROM " + name + "; SELECT MAX(x) FROM " + name)
		if !strings.Contains(string(a.body), `"temporary"`) || strings.Contains(string(a.body), `"dataset"`) {
			t.Errorf("%.300s", a.body)
		}
	},
	"array-path-first": func(t *testing.T) {
		g, name := realNames(t)
		g.script("CREATE TABLE `" + g.project + "." + g.dataset + "." + name + "` AS SELECT 'table' AS x")
		defer g.script("DROP TABLE `" + g.project + "." + g.dataset + "." + name + "`")
		a := g.query(map[string]any{"useLegacySql": false, "query": "SELECT e FROM (SELECT ['array'] AS " + name + ") AS " + g.dataset + ", " + g.dataset + "." + name + " AS e"})
		if a.status != 200 || !strings.Contains(string(a.body), `"array"`) {
			t.Errorf("status %d: %.300s", a.status, a.body)
		}
	},
	"bare-routine": func(t *testing.T) {
		g, name := realNames(t)
		if a := g.defaulted("SELECT " + name + "(1)"); a.status == 200 {
			t.Errorf("a function that nobody made was called: %.300s", a.body)
		}
		g.script("CREATE FUNCTION `" + g.project + "." + g.dataset + "`." + name + "(x INT64) AS (x + 41)")
		defer g.script("DROP FUNCTION `" + g.project + "." + g.dataset + "`." + name)
		if a := g.defaulted("SELECT " + name + "(1)"); a.status == 200 && !strings.Contains(string(a.body), `"42"`) {
			t.Errorf("%.300s", a.body)
		}
	},
	"discovery": func(t *testing.T) {
		a := real(t).do("GET", "/$discovery/rest?version=v2", nil)
		if a.status != 200 || a.json(t)["id"] != "bigquery:v2" {
			t.Errorf("status %d: %.300s", a.status, a.body)
		}
	},
	"label-limits": func(t *testing.T) {
		if a := real(t).query(map[string]any{"query": "SELECT 1", "useLegacySql": false, "labels": map[string]string{"verbatim_session": longLabel + "01234567890"}}); a.status != 200 {
			t.Errorf("63 characters: status %d: %.300s", a.status, a.body)
		}
	},
	"maximum-bytes-billed": func(t *testing.T) {
		g := real(t)
		table := env(t, "CONFORMANCE_TABLE", "PROJECT.DATASET.TABLE of more than 10 MB that may be read")
		a := g.query(map[string]any{"query": "SELECT * FROM `" + table + "`", "useLegacySql": false, "useQueryCache": false, "maximumBytesBilled": "1"})
		if a.status == 200 || !strings.Contains(string(a.body), "bytesBilledLimitExceeded") && !strings.Contains(string(a.body), "bytes billed") {
			t.Errorf("status %d: %.300s", a.status, a.body)
		}
	},
	"request-id": func(t *testing.T) {
		g := real(t)
		rid := (unique() + longLabel)[:52]
		q := map[string]any{"query": "SELECT RAND()", "useLegacySql": false, "requestId": rid, "jobCreationMode": "JOB_CREATION_REQUIRED"}
		first, _ := g.job(g.query(q))
		if second, _ := g.job(g.query(q)); first != second {
			t.Errorf("jobs %s and %s", first, second)
		}
	},
	"job-creation-required": func(t *testing.T) {
		g := real(t)
		g.job(g.query(map[string]any{"query": "SELECT 1", "useLegacySql": false, "jobCreationMode": "JOB_CREATION_REQUIRED"}))
	},
	"resumable-location": func(t *testing.T) {
		g := real(t)
		a := g.do("POST", "/upload/bigquery/v2/projects/"+g.project+"/jobs?uploadType=resumable", g.load(), "X-Upload-Content-Type", "*/*")
		to, id, err := bigquery.RewriteLocation(host, "https://gateway.example", a.header.Get("Location"))
		if a.status != 200 || err != nil || id == "" || !strings.HasPrefix(to, "https://gateway.example/") {
			t.Errorf("status %d, rewritten %q, id %q, error %v", a.status, to, id, err)
		}
	},
	"storage-streams": func(t *testing.T) {
		g := real(t)
		at := env(t, "CONFORMANCE_TABLE", "PROJECT.DATASET.TABLE, a table with rows that may be read")
		p := strings.Split(at, ".")
		if len(p) != 3 {
			t.Fatalf("CONFORMANCE_TABLE %q is no PROJECT.DATASET.TABLE", at)
		}
		c, err := bqstorage.NewBigQueryReadClient(t.Context(), option.WithTokenSource(oauth2.StaticTokenSource(&oauth2.Token{AccessToken: g.token})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := c.CreateReadSession(t.Context(), &storagepb.CreateReadSessionRequest{Parent: "projects/" + g.project, MaxStreamCount: 1, ReadSession: &storagepb.ReadSession{
			Table: "projects/" + p[0] + "/datasets/" + p[1] + "/tables/" + p[2], DataFormat: storagepb.DataFormat_ARROW}})
		if err != nil || len(s.Streams) == 0 {
			t.Fatalf("session %v, %v", s, err)
		}
		name := s.Streams[0].Name
		b, err := proto.Marshal(&storagepb.ReadRowsRequest{ReadStream: name + "~proof"})
		if err != nil {
			t.Fatal(err)
		}
		q, err := bigquery.ParseStorageRead(bigquery.MethodReadRows, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...))
		if err != nil || q.Stream != name {
			t.Fatalf("the stream %q is read as %+v, %v", name, q, err)
		}
		rows, err := c.ReadRows(t.Context(), &storagepb.ReadRowsRequest{ReadStream: q.Stream})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := rows.Recv(); err != nil || m.RowCount == 0 {
			t.Errorf("the first message counts %d rows, %v", m.GetRowCount(), err)
		}
	},
	"multipart-framing": func(t *testing.T) {
		g := real(t)
		p, err := bigquery.NewPart(`multipart/related; boundary="bb"`, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		media := "--bb\r\nContent-Type: application/json\r\n\r\n" + string(g.load()) + "\r\n--bb\r\nContent-Type: application/octet-stream\r\n\r\n{\"x\": 1}\n{\"x\": 2}\n\r\n--bb--\r\n"
		if done, err := p.Write([]byte(media)); err != nil || !done {
			t.Fatalf("done %v, error %v", done, err)
		}
		a := g.do("POST", "/upload/bigquery/v2/projects/"+g.project+"/jobs?uploadType=multipart", p.Replace(p.JSON()), "Content-Type", p.UpstreamContentType())
		id, loc := g.job(a)
		for range 60 {
			job := g.jobGet(id, loc, "")
			if job["status"].(map[string]any)["state"] == "DONE" {
				if stats, _ := job["statistics"].(map[string]any)["load"].(map[string]any); fmt.Sprint(stats["outputRows"]) != "2" {
					t.Errorf("the job loaded %v rows: %v", stats["outputRows"], job["status"])
				}
				return
			}
			time.Sleep(time.Second)
		}
		t.Error("the load job does not end")
	},
	"cancel": func(t *testing.T) {
		g := real(t)
		body := `{"configuration":{"query":{"query":"SELECT COUNT(*) FROM UNNEST(GENERATE_ARRAY(1,1000000)) a, UNNEST(GENERATE_ARRAY(1,100000)) b","useLegacySql":false,"useQueryCache":false}}}`
		id, loc := g.job(g.do("POST", "/bigquery/v2/projects/"+g.project+"/jobs", []byte(body)))
		if a := g.do("POST", "/bigquery/v2/projects/"+g.project+"/jobs/"+id+"/cancel?location="+loc, nil); a.status != 200 {
			t.Fatalf("status %d: %.300s", a.status, a.body)
		}
		for range 60 {
			status := g.jobGet(id, loc, "")["status"].(map[string]any)
			if status["state"] == "DONE" {
				if !strings.Contains(fmt.Sprint(status["errorResult"]), "stopped") {
					t.Errorf("errorResult %v", status["errorResult"])
				}
				return
			}
			time.Sleep(time.Second)
		}
		t.Error("the job does not end")
	},
	"error-envelope": func(t *testing.T) {
		a := real(t).query(map[string]any{"query": "SELEC 1", "useLegacySql": false})
		var s bigquery.Scanner
		s.Write(a.body)
		f := s.Facts()
		if a.status != 400 || f.ErrorCode != 400 || f.ErrorText() == "" || len(f.Errors) == 0 || f.Errors[0].Reason != "invalidQuery" {
			t.Errorf("status %d, facts %+v", a.status, f)
		}
	},
	"integers-as-strings": func(t *testing.T) {
		a := real(t).query(map[string]any{"query": "SELECT 1", "useLegacySql": false})
		var s bigquery.Scanner
		s.Write(a.body)
		if f := s.Facts(); f.TotalRows == nil || *f.TotalRows != 1 || f.Processed == nil || f.Rows != 1 {
			t.Errorf("facts %+v", f)
		}
	},
	"jobs-view": func(t *testing.T) {
		g := real(t)
		sql := "SELECT /* " + unique() + " ä \t */ 1 \n"
		id, loc := g.job(g.query(map[string]any{"query": sql, "useLegacySql": false, "labels": map[string]string{"verbatim_session": longLabel}}))
		j := g.listed(loc, id)
		if j.SQL == nil {
			t.Fatalf("the job %+v has no SQL", j)
		}
		if *j.SQL != sql || j.Labels["verbatim_session"] != longLabel || j.Account == "" || j.Type != "QUERY" {
			t.Errorf("the job %+v, its SQL %q; want %q", j, *j.SQL, sql)
		}
	},
	"jobs-view-failed": func(t *testing.T) {
		g := real(t)
		sql := "SELECT ERROR('" + unique() + "')"
		if a := g.query(map[string]any{"query": sql, "useLegacySql": false, "labels": map[string]string{"verbatim_session": longLabel}}); a.status < 400 {
			t.Fatalf("status %d: %.300s", a.status, a.body)
		}
		j := g.listedBy(env(t, "CONFORMANCE_REGION", "the region of the project's queries, such as us"), func(j *reconcile.Job) bool { return j.SQL != nil && *j.SQL == sql })
		if j.Labels["verbatim_session"] != longLabel {
			t.Errorf("the job %+v", j)
		}
	},
	"jobs-view-children": func(t *testing.T) {
		g := real(t)
		dry := "SELECT /* " + unique() + " */ 2"
		if a := g.query(map[string]any{"query": dry, "useLegacySql": false, "dryRun": true}); a.status != 200 {
			t.Fatalf("status %d: %.300s", a.status, a.body)
		}
		id, loc := g.job(g.query(map[string]any{"query": "BEGIN SELECT 1; SELECT 2; END", "useLegacySql": false}))
		children := 0
		g.listedBy(loc, func(j *reconcile.Job) bool {
			if j.SQL != nil && *j.SQL == dry {
				t.Errorf("a dry run is listed: %+v", j)
			}
			if j.Parent == id {
				children++
			}
			return children == 2
		})
	},
	"adc-token": func(t *testing.T) { real(t) },
	"impersonation": func(t *testing.T) {
		target := env(t, "CONFORMANCE_TARGET", "a service account that the caller may impersonate")
		token(t, credential.Config{Kind: credential.KindImpersonation, Source: &credential.Config{Kind: credential.KindADC}, Target: target}, credential.Caller{})
	},
	"federation": func(t *testing.T) {
		c := credential.Config{Kind: credential.KindFederation,
			Issuer:     env(t, "CONFORMANCE_ISSUER", "the gateway's issuer URL, published with the key's JWKS"),
			SigningKey: env(t, "CONFORMANCE_SIGNING_KEY", "PEM file of its key"),
			Audience:   env(t, "CONFORMANCE_AUDIENCE", "//iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/POOL/providers/PROVIDER")}
		token(t, c, credential.Caller{Session: "conformance", Principal: record.Principal{Issuer: "test", Subject: "conformance"}})
	},
	"metadata-server": func(t *testing.T) {
		env(t, "CONFORMANCE_ON_GCE", "1 where this runs on Google Cloud")
		token(t, credential.Config{Kind: credential.KindMetadata}, credential.Caller{})
	},
	"dry-run-tables": func(t *testing.T) {
		g := real(t)
		table, view := g.scratchView()
		if got := g.dryRun("SELECT * FROM " + view); !strings.Contains(got, `"tableId":"`+table+`"`) {
			t.Errorf("a dry run over a view says %s", got)
		}
	},
	"dry-run-routines": func(t *testing.T) {
		g := real(t)
		table, _ := g.scratchView()
		name := unique()
		g.script("CREATE FUNCTION " + name + "() AS ((SELECT MAX(a) FROM " + table + "))")
		t.Cleanup(func() { g.defaulted("DROP FUNCTION IF EXISTS " + name) })
		got := g.dryRun("SELECT `" + g.project + "." + g.dataset + "." + name + "`()")
		if !strings.Contains(got, `"routineId":"`+name+`"`) || !strings.Contains(got, `"tableId":"`+table+`"`) {
			t.Errorf("a dry run over a function says %s", got)
		}
	},
	"dry-run-target": func(t *testing.T) {
		g := real(t)
		table, _ := g.scratchView()
		got := g.dryRun("DELETE FROM " + table + " WHERE a = 7")
		if !strings.Contains(got, `"destinationTable":{`) && !strings.Contains(got, `"ddlTargetTable":{`) {
			t.Errorf("a dry run of DML says %s", got)
		}
	},
	"job-tables": func(t *testing.T) {
		g := real(t)
		table, view := g.scratchView()
		a := g.query(map[string]any{"query": "SELECT * FROM " + view, "useLegacySql": false, "useQueryCache": false,
			"defaultDataset": map[string]string{"projectId": g.project, "datasetId": g.dataset}})
		id, location := g.job(a)
		got, _ := json.Marshal(g.jobGet(id, location, "&fields=statistics(query(referencedTables))"))
		if !strings.Contains(string(got), `"tableId":"`+table+`"`) {
			t.Errorf("the finished job says %s", got)
		}
	},
	"gcs-create-only": func(t *testing.T) {
		_, v := bucketVault(t)
		for _, n := range []int{10, 9 << 20} {
			name, b := "conformance/"+unique(), bytes.Repeat([]byte("x"), n)
			for range 2 {
				if err := v.Create(t.Context(), name, bytes.NewReader(b)); err != nil {
					t.Fatal(err)
				}
			}
			b[0] = 'y'
			if err := v.Create(t.Context(), name, bytes.NewReader(b)); !errors.Is(err, vault.ErrConflict) {
				t.Errorf("%d bytes, other content: %v", n, err)
			}
		}
	},
	"gcs-retention": func(t *testing.T) {
		b, v := bucketVault(t)
		name := "conformance/" + unique()
		if err := v.Create(t.Context(), name, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		w := b.Object(name).NewWriter(t.Context())
		_, err := w.Write([]byte("y"))
		for what, err := range map[string]error{"delete": b.Object(name).Delete(t.Context()), "replace": errors.Join(err, w.Close())} {
			var api *googleapi.Error
			if !errors.As(err, &api) || api.Code != http.StatusForbidden || len(api.Errors) == 0 || api.Errors[0].Reason != "retentionPolicyNotMet" {
				t.Errorf("%s: %v", what, err)
			}
		}
	},
	"gcs-bucket": func(t *testing.T) {
		b, _ := bucketVault(t)
		findings, err := gcs.Check(t.Context(), bucketClient(t), gcs.Want{Address: "gs://" + b.BucketName(), Retention: conformanceRetention, Expire: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if !f.OK {
				t.Errorf("%s: %s", f.Property, f.State)
			}
		}
	},
	"gcs-list-order": func(t *testing.T) {
		_, v := bucketVault(t)
		prefix := "conformance/" + unique() + "/"
		var want []string
		for _, n := range []string{"a-", "a.b", "a/b", "a0", "aA", "a_", "aa"} {
			want = append(want, prefix+n)
			if err := v.Create(t.Context(), prefix+n, strings.NewReader(n)); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for n, err := range v.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, n)
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed %v", got)
		}
	},
	"data-access-log": func(t *testing.T) {
		bucket, v := bucketVault(t)
		project := env(t, "CONFORMANCE_LOG_PROJECT", "the bucket's project, with Data Access logs (DATA_READ) of Cloud Storage on; the caller reads them (roles/logging.privateLogViewer)")
		name := "conformance/" + unique() + "/read"
		if err := v.Create(t.Context(), name, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		r, err := v.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		resource := "projects/_/buckets/" + bucket.BucketName() + "/objects/" + name
		logs, err := logging.NewService(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(15 * time.Second) {
			res, err := logs.Entries.List(&logging.ListLogEntriesRequest{
				ResourceNames: []string{"projects/" + project},
				Filter:        fmt.Sprintf(`log_id("cloudaudit.googleapis.com/data_access") AND protoPayload.methodName="storage.objects.get" AND protoPayload.resourceName=%q`, resource),
			}).Context(t.Context()).Do()
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Entries) == 0 {
				continue
			}
			b, err := res.Entries[0].MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			e, err := directreads.Parse(b)
			if err != nil || e.Kind != directreads.Read || e.Bucket != bucket.BucketName() || e.Object != name || e.Account == "" || e.ID == "" || e.Refused {
				t.Errorf("%v: %+v of %s", err, e, b)
			}
			return
		}
		t.Error("the read is not in the log")
	},
}

// listed waits until the jobs view holds a job.
func (g *google) listed(region, id string) *reconcile.Job {
	g.t.Helper()
	return g.listedBy(region, func(j *reconcile.Job) bool { return j.ID == id })
}

// listedBy asks BigQuery for its list, as reconcile does, until it holds what
// is wanted.
func (g *google) listedBy(region string, wanted func(*reconcile.Job) bool) *reconcile.Job {
	g.t.Helper()
	since := time.Now().Add(-10 * time.Minute)
	for range 20 {
		source, err := reconcile.BigQuery(reconcile.BigQueryConfig{View: reconcile.JobsView{Project: g.project, Region: region, Since: since, Until: time.Now().Add(time.Minute)}})
		if err != nil {
			g.t.Fatal(err)
		}
		var found *reconcile.Job
		err = source(g.t.Context(), func(n int64, b []byte) error {
			e, err := reconcile.ParseEntry(b)
			if err != nil {
				g.t.Errorf("row %d is not understood: %v: %s", n, err, b)
				return nil
			}
			if found == nil && wanted(e.Job) {
				found = e.Job
			}
			return nil
		})
		if err != nil {
			g.t.Fatal(err)
		}
		if found != nil {
			return found
		}
		time.Sleep(15 * time.Second)
	}
	g.t.Fatal("the list does not come to hold the job")
	return nil
}

// load is a load job's JSON, into a table of its own.
func (g *google) load() []byte {
	dataset := env(g.t, "CONFORMANCE_DATASET", "a dataset of the project that tables may be loaded into")
	return []byte(fmt.Sprintf(`{"configuration":{"labels":{"verbatim_owner":%q},"load":{"destinationTable":{"projectId":%q,"datasetId":%q,"tableId":%q},"sourceFormat":"NEWLINE_DELIMITED_JSON","autodetect":true}}}`,
		longLabel, g.project, dataset, unique()))
}

// scratchView makes a table and a view over it, and returns their names.
func (g *google) scratchView() (table, view string) {
	g.t.Helper()
	table, view = unique(), unique()
	g.script("CREATE TABLE " + table + " AS SELECT 1 AS a")
	g.script("CREATE VIEW " + view + " AS SELECT a FROM `" + g.project + "." + g.dataset + "." + table + "`")
	g.t.Cleanup(func() { g.defaulted("DROP VIEW IF EXISTS " + view + "; DROP TABLE IF EXISTS " + table) })
	return table, view
}

// dryRun returns what a dry run says, compact.
func (g *google) dryRun(text string) string {
	g.t.Helper()
	b, err := json.Marshal(map[string]any{"configuration": map[string]any{"dryRun": true, "query": map[string]any{"query": text, "useLegacySql": false,
		"defaultDataset": map[string]string{"projectId": g.project, "datasetId": g.dataset}}}})
	if err != nil {
		g.t.Fatal(err)
	}
	a := g.do("POST", "/bigquery/v2/projects/"+g.project+"/jobs", b)
	if a.status != 200 {
		g.t.Fatalf("%s: status %d: %.300s", text, a.status, a.body)
	}
	out, err := json.Marshal(a.json(g.t))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(out)
}

func TestGoogle(t *testing.T) {
	for _, c := range Cases {
		t.Run(c.Name, func(t *testing.T) {
			run := tests[c.Name]
			if run == nil {
				t.Fatal("no test")
			}
			t.Log(c.Assumption)
			run(t)
		})
	}
}

// conformanceRetention is short, so that the bucket can be emptied again.
const conformanceRetention = 10 * time.Minute

func bucketClient(t *testing.T) *storage.Client {
	t.Helper()
	c, err := gcs.NewClient(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// bucketVault is a vault in a bucket of the project, which is made as vault init
// does where it is not there.
func bucketVault(t *testing.T) (*storage.BucketHandle, *gcs.Vault) {
	t.Helper()
	name := env(t, "CONFORMANCE_BUCKET", "a bucket for the cases alone; it is made where it is not there, with a retention of 10 minutes that is not locked")
	c := bucketClient(t)
	w := gcs.Want{Address: "gs://" + name, Retention: conformanceRetention, Expire: true, Project: os.Getenv("CONFORMANCE_PROJECT")}
	if _, err := gcs.Init(t.Context(), c, w); err != nil {
		t.Fatal(err)
	}
	v, err := gcs.Open(t.Context(), gcs.Config{Address: w.Address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return c.Bucket(name), v
}
