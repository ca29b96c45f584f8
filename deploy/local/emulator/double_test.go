package emulator

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func newDouble(t *testing.T, c Config) (*Double, string) {
	t.Helper()
	d, err := NewDouble(c)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(d)
	t.Cleanup(func() { s.Close(); d.Close() })
	return d, s.URL
}

// do sends a request with no decompression of its own.
func do(t *testing.T, method, url string, body io.Reader, header ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "identity")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, b
}

type result struct {
	JobReference jobReference
	JobComplete  bool
	TotalRows    string
	Rows         []struct {
		F []struct{ V string }
	}
}

func TestSyntheticSizes(t *testing.T) {
	_, url := newDouble(t, Config{})
	for _, size := range []int64{0, 300, 1000, 2048, 10_000, 1_000_000, 1_000_001, 1_013_999, 20_000_000} {
		res, b := do(t, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(fmt.Sprintf(`{"query":"SELECT /*verbatim:bytes=%d*/ 1"}`, size)))
		var r result
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatalf("%d: %v", size, err)
		}
		if int64(len(b)) != size && size > 400 || res.ContentLength != int64(len(b)) {
			t.Errorf("%d: %d bytes, length %d", size, len(b), res.ContentLength)
		}
		if r.TotalRows != fmt.Sprint(len(r.Rows)) || !r.JobComplete {
			t.Errorf("%d: %s rows told, %d came", size, r.TotalRows, len(r.Rows))
		}
		sum := sha256.Sum256(b)
		if want, n := Digest(size, "p", r.JobReference.JobID); want != hex.EncodeToString(sum[:]) || n != int64(len(b)) {
			t.Errorf("%d: Digest does not agree", size)
		}
		// The job's results are there by id as well.
		_, b = do(t, "GET", url+"/projects/p/queries/"+r.JobReference.JobID, nil)
		var again result
		if err := json.Unmarshal(b, &again); err != nil || size > 400 && int64(len(b)) != size {
			t.Errorf("%d: results by id: %v, %d bytes", size, err, len(b))
		}
		_, b = do(t, "GET", url+"/bigquery/v2/projects/p/queries/"+r.JobReference.JobID+"?maxResults=0", nil)
		if json.Unmarshal(b, &again) != nil || len(b) > 500 {
			t.Errorf("%d: maxResults=0 gave %d bytes", size, len(b))
		}
	}
}

func TestSyntheticJobs(t *testing.T) {
	_, url := newDouble(t, Config{})
	insert := func(sql string) (*http.Response, []byte) {
		return do(t, "POST", url+"/bigquery/v2/projects/p/jobs", strings.NewReader(`{"jobReference":{"projectId":"p","jobId":"j1"},"configuration":{"query":{"query":"`+sql+`"}}}`))
	}
	if res, b := insert("SELECT 1 /*verbatim:bytes=5000,delay=1ms*/"); res.StatusCode != 200 || !strings.Contains(string(b), `"DONE"`) {
		t.Fatalf("%d %s", res.StatusCode, b)
	}
	if _, b := do(t, "GET", url+"/bigquery/v2/projects/p/queries/j1", nil); len(b) != 5000 {
		t.Errorf("%d bytes", len(b))
	}
	if res, b := do(t, "GET", url+"/bigquery/v2/projects/p/jobs/j1", nil); res.StatusCode != 200 || !strings.Contains(string(b), "_synthetic") {
		t.Errorf("jobs.get: %s", b)
	}
	if res, b := do(t, "GET", url+"/bigquery/v2/projects/p/datasets/_synthetic/tables/anonj1/data", nil); res.StatusCode != 200 || !strings.Contains(string(b), "tableDataList") {
		t.Errorf("tabledata.list: %d %.100s", res.StatusCode, b)
	}
	if res, _ := insert("SELECT 2"); res.StatusCode != http.StatusConflict {
		t.Errorf("the same job id again: %d", res.StatusCode)
	}
	if res, _ := do(t, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(`{"query":"/*verbatim:size=1*/"}`)); res.StatusCode != 400 {
		t.Errorf("bad comment: %d", res.StatusCode)
	}
	if res, b := do(t, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(`{"query":"/*verbatim:bytes=1000000*/","dryRun":true}`)); res.StatusCode != 200 || len(b) > 1000 {
		t.Errorf("dry run: %d, %d bytes", res.StatusCode, len(b))
	}
}

func TestJobsThatRun(t *testing.T) {
	_, url := newDouble(t, Config{})
	jobs := url + "/bigquery/v2/projects/p/jobs"
	for id, sql := range map[string]string{"long": "SELECT /*verbatim:run=10m*/ 1", "short": "SELECT /*verbatim:run=1ms*/ 1"} {
		body := fmt.Sprintf(`{"jobReference":{"projectId":"p","jobId":%q},"configuration":{"query":{"query":%q}}}`, id, sql)
		if res, b := do(t, "POST", jobs, strings.NewReader(body)); res.StatusCode != 200 {
			t.Fatalf("%s: %s", res.Status, b)
		}
	}
	time.Sleep(2 * time.Millisecond)
	state := func(id, want string) {
		t.Helper()
		if _, b := do(t, "GET", jobs+"/"+id, nil); !strings.Contains(string(b), want) {
			t.Errorf("job %s: %s, want %s", id, b, want)
		}
	}
	state("short", `"DONE"`)
	state("long", `"RUNNING"`)
	if _, b := do(t, "GET", url+"/bigquery/v2/projects/p/queries/long", nil); !strings.Contains(string(b), `"jobComplete":false`) {
		t.Errorf("the result of a job that runs: %s", b)
	}
	for _, id := range []string{"long", "short"} {
		do(t, "POST", jobs+"/"+id+"/cancel", nil)
	}
	state("long", `"stopped"`)
	if _, b := do(t, "GET", jobs+"/short", nil); strings.Contains(string(b), "stopped") {
		t.Error("a job that was done was cancelled")
	}
}

func TestCredentialAndLog(t *testing.T) {
	d, url := newDouble(t, Config{Token: "good-secret", KeepBody: 100})
	for _, h := range []string{"", "Bearer bad-secret", "good-secret", "Bearer good-secret "} {
		res, b := do(t, "GET", url+"/bigquery/v2/projects/p/jobs/none", nil, "Authorization", h)
		// A trailing space is trimmed by HTTP itself.
		if strings.TrimSpace(h) == "Bearer good-secret" {
			continue
		}
		if res.StatusCode != 401 || !strings.Contains(string(b), `"UNAUTHENTICATED"`) {
			t.Errorf("%q: %d %s", h, res.StatusCode, b)
		}
	}
	if d.Unauthorized() != 3 {
		t.Errorf("%d refused", d.Unauthorized())
	}
	body := `{"query":"SELECT 1"}`
	if res, _ := do(t, "POST", url+"/bigquery/v2/projects/p/queries?x=1", strings.NewReader(body), "Authorization", "Bearer good-secret", "X-Some", "v"); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	log := d.Requests()
	q := log[len(log)-1]
	sum := sha256.Sum256([]byte(body))
	if q.Method != "POST" || q.Path != "/bigquery/v2/projects/p/queries" || q.RawQuery != "x=1" || q.Header.Get("X-Some") != "v" || q.Status != 200 ||
		q.Header.Get("Authorization") != TokenDigest("good-secret") || q.BodySHA256 != hex.EncodeToString(sum[:]) || string(q.Body) != body || q.Length != int64(len(body)) {
		t.Errorf("%+v", q)
	}
	if text := fmt.Sprintf("%+v", log); strings.Contains(text, "secret") {
		t.Error("a credential is in the log")
	}
	big := `{"query":"SELECT 1 /* ` + strings.Repeat("x", 200) + ` */"}`
	do(t, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(big), "Authorization", "Bearer good-secret")
	log = d.Requests()
	if q := log[len(log)-1]; q.Body != nil || q.Length != int64(len(big)) {
		t.Errorf("large body: kept %d of %d", len(q.Body), q.Length)
	}
	d.SetToken("other")
	if res, _ := do(t, "GET", url+"/bigquery/v2/projects/p/jobs/none", nil, "Authorization", "Bearer good-secret"); res.StatusCode != 401 {
		t.Errorf("after SetToken: %d", res.StatusCode)
	}
	d.Reset()
	if len(d.Requests()) != 0 || d.Unauthorized() != 0 {
		t.Error("Reset left something")
	}
}

func TestLogIsBounded(t *testing.T) {
	d, url := newDouble(t, Config{Keep: 3})
	for i := range 10 {
		do(t, "POST", fmt.Sprintf("%s/bigquery/v2/projects/p%d/queries", url, i), strings.NewReader(`{"query":"SELECT 1"}`))
	}
	log := d.Requests()
	if len(log) != 3 || log[2].Path != "/bigquery/v2/projects/p9/queries" || log[2].Length < 0 || log[0].Status != 200 {
		t.Errorf("%+v", log)
	}
}

func TestGzip(t *testing.T) {
	_, url := newDouble(t, Config{Gzip: true})
	body := `{"query":"/*verbatim:bytes=100000*/"}`
	res, b := do(t, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(body), "Accept-Encoding", "gzip")
	if res.Header.Get("Content-Encoding") != "gzip" {
		t.Fatal(res.Header)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || len(plain) != 100000 {
		t.Errorf("%d bytes, %v", len(plain), err)
	}
	for _, accept := range []string{"identity", "gzip;q=0"} {
		res, b = do(t, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(body), "Accept-Encoding", accept)
		if res.Header.Get("Content-Encoding") != "" || len(b) != 100000 {
			t.Errorf("%s: %v", accept, res.Header)
		}
	}
	// A gzipped request, as Java sends it.
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = io.WriteString(w, body)
	_ = w.Close()
	res, _ = do(t, "POST", url+"/bigquery/v2/projects/p/queries", &packed, "Content-Encoding", "gzip")
	if res.StatusCode != 200 {
		t.Errorf("gzipped request: %d", res.StatusCode)
	}
}

func TestFaults(t *testing.T) {
	d, url := newDouble(t, Config{})
	send := func(ctx context.Context) (int, int64, error) {
		r, _ := http.NewRequestWithContext(ctx, "POST", url+"/bigquery/v2/projects/p/queries", strings.NewReader(`{"query":"/*verbatim:bytes=5000000*/"}`))
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			return 0, 0, err
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		return res.StatusCode, n, err
	}
	t.Run("reset in mid-body", func(t *testing.T) {
		d.SetFault(&Fault{Kind: FaultReset, Path: "/queries", AfterBytes: 100_000, Count: 1})
		if _, n, err := send(t.Context()); err == nil || n > 100_000 {
			t.Errorf("%d bytes, %v", n, err)
		}
		if code, n, err := send(t.Context()); code != 200 || n != 5_000_000 || err != nil {
			t.Errorf("after the fault: %d, %d bytes, %v", code, n, err)
		}
	})
	t.Run("reset before headers", func(t *testing.T) {
		d.SetFault(&Fault{Kind: FaultReset, AfterBytes: -1})
		if code, _, err := send(t.Context()); err == nil {
			t.Errorf("got %d", code)
		}
	})
	t.Run("stall, then go on", func(t *testing.T) {
		d.SetFault(&Fault{Kind: FaultStall, AfterBytes: 1000, Duration: 200 * time.Millisecond})
		start := time.Now()
		if _, n, err := send(t.Context()); err != nil || n != 5_000_000 || time.Since(start) < 200*time.Millisecond {
			t.Errorf("%d bytes, %v, %s", n, err, time.Since(start))
		}
	})
	t.Run("stall until the client goes", func(t *testing.T) {
		d.SetFault(&Fault{Kind: FaultStall, AfterBytes: 1000})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, n, err := send(ctx); !errors.Is(err, context.DeadlineExceeded) || n != 1000 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	t.Run("status", func(t *testing.T) {
		d.SetFault(&Fault{Kind: FaultStatus, Method: "POST", Status: 503})
		if code, _, err := send(t.Context()); code != 503 || err != nil {
			t.Errorf("%d %v", code, err)
		}
		if res, _ := do(t, "GET", url+"/bigquery/v2/projects/p/jobs/x", nil); res.StatusCode != 404 {
			t.Errorf("another method: %d", res.StatusCode)
		}
		d.SetFault(nil)
		if code, _, err := send(t.Context()); code != 200 || err != nil {
			t.Errorf("%d %v", code, err)
		}
	})
}

const loadJob = `{"configuration":{"load":{"destinationTable":{"projectId":"p","datasetId":"d","tableId":"t"},"sourceFormat":"CSV"}}}`

func TestUploadsAreCounted(t *testing.T) {
	d, url := newDouble(t, Config{})
	data := bytes.Repeat([]byte("0123456789\n"), 100_000)
	sum := sha256.Sum256(data)
	want := hex.EncodeToString(sum[:])
	check := func(t *testing.T, kind string, requests int) {
		t.Helper()
		u := d.Uploads()
		if len(u) != 1 || u[0].Bytes != int64(len(data)) || u[0].SHA256 != want || u[0].Kind != kind || u[0].Requests != requests || !u[0].Discarded || u[0].Project != "p" {
			t.Errorf("%+v", u)
		}
		d.Reset()
	}
	begin := func(t *testing.T, path string) string {
		t.Helper()
		res, b := do(t, "POST", url+path, strings.NewReader(loadJob), "Content-Type", "application/json")
		location := res.Header.Get("Location")
		if res.StatusCode != 200 || !strings.HasPrefix(location, url+"/upload/bigquery/v2/") {
			t.Fatalf("%d %q %s", res.StatusCode, location, b)
		}
		return location
	}
	t.Run("multipart with */*", func(t *testing.T) {
		body := "--b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" + loadJob + "\r\n--b\r\nContent-Type: */*\r\n\r\n" + string(data) + "\r\n--b--\r\n"
		res, b := do(t, "POST", url+"/upload/bigquery/v2/projects/p/jobs?uploadType=multipart", strings.NewReader(body), "Content-Type", `multipart/related; boundary="b"`)
		if res.StatusCode != 200 || !strings.Contains(string(b), "bigquery#job") {
			t.Fatalf("%d %s", res.StatusCode, b)
		}
		check(t, "multipart", 1)
	})
	t.Run("resumable by PUT, with a probe", func(t *testing.T) {
		location := begin(t, "/resumable/upload/bigquery/v2/projects/p/jobs?uploadType=resumable")
		half := len(data) / 2
		res, _ := do(t, "PUT", location, bytes.NewReader(data[:half]), "Content-Range", fmt.Sprintf("bytes 0-%d/*", half-1))
		if res.StatusCode != 308 || res.Header.Get("Range") != fmt.Sprintf("bytes=0-%d", half-1) {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
		res, _ = do(t, "PUT", location, nil, "Content-Range", "bytes */*")
		if res.StatusCode != 308 || res.Header.Get("Range") != fmt.Sprintf("bytes=0-%d", half-1) {
			t.Fatalf("probe: %d %v", res.StatusCode, res.Header)
		}
		if res, _ = do(t, "PUT", location, bytes.NewReader(data[half:]), "Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(data)-1, len(data))); res.StatusCode != 400 {
			t.Errorf("wrong offset: %d", res.StatusCode)
		}
		res, b := do(t, "PUT", location, bytes.NewReader(data[half:]), "Content-Range", fmt.Sprintf("bytes %d-%d/%d", half, len(data)-1, len(data)))
		if res.StatusCode != 200 || !strings.Contains(string(b), "bigquery#job") {
			t.Fatalf("%d %s", res.StatusCode, b)
		}
		check(t, "resumable", 4)
	})
	t.Run("resumable by POST, as Go does", func(t *testing.T) {
		location := begin(t, "/upload/bigquery/v2/projects/p/jobs?uploadType=resumable")
		res, _ := do(t, "POST", location, bytes.NewReader(data), "Content-Range", fmt.Sprintf("bytes 0-%d/*", len(data)-1), "X-GUploader-No-308", "yes")
		if res.StatusCode != 200 || res.Header.Get("X-Http-Status-Code-Override") != "308" {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
		res, b := do(t, "POST", location, nil, "Content-Range", fmt.Sprintf("bytes */%d", len(data)), "X-GUploader-No-308", "yes")
		if res.StatusCode != 200 || !strings.Contains(string(b), "bigquery#job") {
			t.Fatalf("%d %s", res.StatusCode, b)
		}
		check(t, "resumable", 2)
	})
	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct{ path, body, contentType string }{
			{"?uploadType=media", "x", "text/csv"},
			{"?uploadType=resumable", "{", "application/json"},
			{"?uploadType=resumable", "{}", "application/json"},
			{"?uploadType=multipart", "x", "text/plain"},
			{"?uploadType=multipart", "--b\r\n\r\n" + loadJob + "\r\n--b--\r\n", "multipart/related; boundary=b"},
			{"?uploadType=multipart", "--b\r\n\r\n" + loadJob + "\r\n--b\r\n\r\nx", "multipart/related; boundary=b"},
		} {
			if res, b := do(t, "POST", url+"/upload/bigquery/v2/projects/p/jobs"+c.path, strings.NewReader(c.body), "Content-Type", c.contentType); res.StatusCode != 400 {
				t.Errorf("%s %q: %d %s", c.path, c.body, res.StatusCode, b)
			}
		}
		if res, _ := do(t, "PUT", url+"/upload/bigquery/v2/projects/p/jobs?upload_id=none", nil); res.StatusCode != 404 {
			t.Errorf("unknown upload: %d", res.StatusCode)
		}
		if u := d.Uploads(); len(u) != 0 {
			t.Errorf("%+v", u)
		}
	})
}

func TestDiscovery(t *testing.T) {
	_, url := newDouble(t, Config{})
	for _, path := range []string{"/$discovery/rest?version=v2", "/discovery/v1/apis/bigquery/v2/rest"} {
		res, b := do(t, "GET", url+path, nil)
		var doc struct {
			RootURL   string `json:"rootUrl"`
			Resources map[string]any
		}
		if err := json.Unmarshal(b, &doc); err != nil || res.StatusCode != 200 || doc.RootURL != url+"/" || doc.Resources["jobs"] == nil {
			t.Errorf("%s: %d %v %q", path, res.StatusCode, err, doc.RootURL)
		}
		if bytes.Contains(b, []byte(discoveryHost)) {
			t.Error("the placeholder is left")
		}
	}
}

func BenchmarkSynthetic(b *testing.B) {
	d, err := NewDouble(Config{})
	if err != nil {
		b.Fatal(err)
	}
	s := httptest.NewServer(d)
	defer s.Close()
	const size = 200_000_000
	b.SetBytes(size)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		res, err := http.Post(s.URL+"/bigquery/v2/projects/p/queries", "application/json", strings.NewReader(fmt.Sprintf(`{"query":"/*verbatim:bytes=%d*/"}`, size)))
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, buf)
		if err != nil || n != size {
			b.Fatal(n, err)
		}
		res.Body.Close()
	}
}
