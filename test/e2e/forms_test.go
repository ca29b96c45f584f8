package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"strings"
	"testing"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

func elsewhereIs(url string) func(*emulator.Config) {
	return func(c *emulator.Config) { c.PublicURL = url }
}

func zipped(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestForms sends one query in the forms that clients have for it: the record
// holds what the caller sent, and BigQuery sees one form.
func TestForms(t *testing.T) {
	// The double compresses for who asks, as BigQuery does.
	r := harness.Start(t, harness.Options{Policy: grants, Double: func(c *emulator.Config) { c.Gzip = true }})
	ada := caller{r, mint(t, r, "ada", "writers")}
	const body = `{"query": "SELECT 1 AS a", "useLegacySql": false, "location":  "U\u0053"}`
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
	}{
		{"plain", "POST", api + "/queries?prettyPrint=false", body, nil},
		{"no prefix", "POST", "/projects/" + harness.Project + "/queries?prettyPrint=false", body, nil},
		{"gzip", "POST", api + "/queries?prettyPrint=false", zipped(t, body), []string{"Content-Encoding", "gzip", "Accept-Encoding", "gzip"}},
		{"gzip, no prefix", "POST", "/projects/" + harness.Project + "/queries?prettyPrint=false", zipped(t, body), []string{"Content-Encoding", "gzip"}},
		{"who pays", "POST", api + "/queries?prettyPrint=false&quotaUser=somebody", body, []string{"X-Goog-User-Project", "other-project", "Accept-Encoding", "gzip, deflate"}},
	} {
		r.Double.Reset()
		a := ada.do(t, c.method, c.path, c.body, c.header...)
		if a.Status != 200 || a.Header.Get("Content-Encoding") != "" || !json.Valid(a.Body) {
			t.Errorf("%s: %d %s", c.name, a.Status, a.Message())
			continue
		}
		x, payloads := r.Evidence(a.Receipt)
		if string(payloads[record.DirectionRequest]) != c.body || !bytes.Equal(payloads[record.DirectionResponse], a.Body) {
			t.Errorf("%s: the record does not hold what the caller sent and got", c.name)
		}
		if x.SQL != "SELECT 1 AS a" || x.Method != "bigquery.jobs.query" {
			t.Errorf("%s: on record is %s, %q", c.name, x.Method, x.SQL)
		}
		seen := r.Double.Requests()
		if len(seen) != 1 {
			t.Errorf("%s: %d requests went upstream", c.name, len(seen))
			continue
		}
		q := seen[0]
		if q.Path != api+"/queries" || q.RawQuery != "prettyPrint=false" || q.Header.Get("Content-Encoding") != "" || q.Header.Get("X-Goog-User-Project") != "" || q.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("%s: upstream came %s?%s with %v", c.name, q.Path, q.RawQuery, q.Header)
		}
		if !bytes.Equal(q.Body, payloads[record.DirectionUpstream]) || !bytes.Contains(q.Body, []byte(`"location":  "U\u0053"`)) || !bytes.Contains(q.Body, []byte(`"verbatim_session":"`+x.Session+`"`)) {
			t.Errorf("%s: upstream came %s, on record is %s", c.name, q.Body, payloads[record.DirectionUpstream])
		}
	}

	// A body that holds no job goes as it came, but for its compression.
	for _, c := range []struct {
		name, body string
		header     []string
	}{
		{"plain", `{"rows": [ {"json": {"a": 1}} ]}`, nil},
		{"gzip", zipped(t, `{"rows": [ {"json": {"a": 1}} ]}`), []string{"Content-Encoding", "gzip"}},
	} {
		r.Double.Reset()
		a := ada.do(t, "POST", api+"/datasets/d/tables/t/insertAll", c.body, c.header...)
		if a.Status != 404 || strings.Contains(a.Message(), "Verbatim") { // the double alone has no tables
			t.Errorf("insertAll, %s: %d %s", c.name, a.Status, a.Message())
		}
		if seen := r.Double.Requests(); len(seen) != 1 || string(seen[0].Body) != `{"rows": [ {"json": {"a": 1}} ]}` {
			t.Errorf("insertAll, %s: upstream came %+v", c.name, seen)
		}
		if _, payloads := r.Evidence(a.Receipt); string(payloads[record.DirectionRequest]) != c.body {
			t.Errorf("insertAll, %s: the record does not hold what the caller sent", c.name)
		}
	}
	r.Verify()
}
