package e2e

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"verbatim.dev/envoy"
	"verbatim.dev/test/harness"
)

// TestSlowReadersGetAll has a caller stop reading in the middle of a result for
// longer than anything in between may wait for it to go on.
func TestSlowReadersGetAll(t *testing.T) {
	r := harness.Start(t, harness.Options{Bootstrap: func(p *envoy.Params) { p.Linger = 30 * time.Second }})
	for _, pause := range []time.Duration{0, 3 * time.Second, 8 * time.Second} {
		t.Run(pause.String(), func(t *testing.T) {
			t.Parallel()
			const size = 8 << 20
			req, err := http.NewRequestWithContext(t.Context(), "POST", r.URL()+"/bigquery/v2/projects/"+harness.Project+"/queries", bytes.NewReader(harness.QueryBody(harness.Synthetic(size))))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+r.TokenOf("agent"))
			req.Header.Set("Content-Type", "application/json")
			req.Close = true // Envoy closes the connection behind the answer
			res, err := (&http.Client{Transport: &http.Transport{}}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			n, err := io.CopyN(io.Discard, res.Body, 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause)
			m, err := io.Copy(io.Discard, res.Body)
			if err != nil || n+m != size {
				t.Errorf("%d of %d bytes: %v", n+m, size, err)
			}
		})
	}
}
