package e2e

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

func TestAnExchangeFromClientToVerifiedRecord(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	a := r.Query(ctx, "agent", harness.Synthetic(100_000))
	if a.Err != nil || a.Status != 200 || len(a.Body) != 100_000 {
		t.Fatalf("status %d, %d bytes, %v: %s", a.Status, len(a.Body), a.Err, a.Message())
	}
	x, payloads := r.Evidence(a.Receipt)
	if !bytes.Equal(payloads[record.DirectionResponse], a.Body) {
		t.Error("the recorded response is not what the client got")
	}
	if !strings.Contains(string(payloads[record.DirectionRequest]), "verbatim:bytes=100000") || x.SQL != harness.Synthetic(100_000) {
		t.Errorf("the recorded request is %s, its SQL %q", payloads[record.DirectionRequest], x.SQL)
	}
	if x.Principal == nil || x.Principal.Subject != "system:serviceaccount:agents:researcher" || x.Provenance.Namespace != "agents" {
		t.Errorf("principal %+v, provenance %+v", x.Principal, x.Provenance)
	}
	if x.Result != record.ResultDelivered || x.Status != 200 || x.Job == nil {
		t.Errorf("result %s, status %d, job %v", x.Result, x.Status, x.Job)
	}
	seen := r.Double.Requests()
	if len(seen) != 1 || !strings.Contains(string(seen[0].Body), `"verbatim_session":"`+x.Session+`"`) {
		t.Errorf("the upstream saw %d requests; labels must name the session", len(seen))
	}
	if !bytes.Equal(payloads[record.DirectionUpstream], seen[0].Body) {
		t.Error("what went upstream is not what is on record")
	}

	denied := r.Query(ctx, "agent", "DELETE FROM a.b WHERE true")
	if denied.Status != 403 || !strings.Contains(denied.Message(), denied.Receipt) {
		t.Errorf("status %d, message %q, receipt %s", denied.Status, denied.Message(), denied.Receipt)
	}
	d, payloads := r.Evidence(denied.Receipt)
	if d.Decision == nil || d.Decision.Allow || d.Result != record.ResultDenied || !bytes.Equal(payloads[record.DirectionResponse], denied.Body) {
		t.Errorf("decision %+v, result %s", d.Decision, d.Result)
	}
	if len(r.Double.Requests()) != 1 {
		t.Error("a denied request reached the upstream")
	}
	if got := r.Search(search.Filter{Decision: "deny"}); len(got) != 1 || got[0].ID != denied.Receipt {
		t.Errorf("search for denials found %d", len(got))
	}
	r.Verify()
}

func TestCredentialsStayWhereTheyBelong(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	token := r.TokenOf("agent")
	signature := token[strings.LastIndex(token, ".")+1:]

	ok := r.Do(ctx, "", http.MethodPost, "/bigquery/v2/projects/"+harness.Project+"/queries", strings.NewReader(`{"query":"SELECT 1","useLegacySql":false}`),
		"Authorization", "Bearer "+token, "X-Custom", token, "User-Agent", "agent "+token, "X-Verbatim-Agent", token)
	if ok.Status != 200 {
		t.Fatalf("status %d: %s", ok.Status, ok.Message())
	}
	inQuery := r.Do(ctx, "", http.MethodGet, "/bigquery/v2/projects/"+harness.Project+"/datasets?access_token="+token, nil)
	if inQuery.Status < 400 {
		t.Errorf("a token in the query was let in: status %d", inQuery.Status)
	}
	twice := r.Do(ctx, "agent", http.MethodGet, "/bigquery/v2/projects/"+harness.Project+"/datasets", nil, "Authorization", "Bearer "+token)
	if twice.Status != 401 {
		t.Errorf("two Authorization headers: status %d", twice.Status)
	}
	cookie := r.Do(ctx, "agent", http.MethodGet, "/bigquery/v2/projects/"+harness.Project+"/datasets", nil, "Cookie", "t="+token)
	if cookie.Status != 401 {
		t.Errorf("a token in a cookie: status %d", cookie.Status)
	}
	for _, a := range []harness.Answer{ok, inQuery, twice, cookie} {
		x, payloads := r.Evidence(a.Receipt)
		for d, b := range payloads {
			if bytes.Contains(b, []byte(signature)) || bytes.Contains(b, []byte(harness.UpstreamToken)) {
				t.Errorf("%s: the %s holds a credential", x.ID, d)
			}
		}
		b, err := record.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(signature)) || bytes.Contains(b, []byte(harness.UpstreamToken)) {
			t.Errorf("%s: its record holds a credential: %s", x.ID, b)
		}
		for name, v := range a.Header {
			if strings.Contains(strings.Join(v, " "), harness.UpstreamToken) {
				t.Errorf("the caller got the gateway's credential in %s", name)
			}
		}
	}
	for _, q := range r.Double.Requests() {
		for name, v := range q.Header {
			if strings.Contains(strings.Join(v, " "), signature) {
				t.Errorf("the caller's token reached the upstream in %s", name)
			}
		}
		if strings.Contains(q.RawQuery+string(q.Body), signature) {
			t.Error("the caller's token reached the upstream")
		}
	}
	r.NoCanary(signature)
	r.NoCanary(harness.UpstreamToken, "upstream.token")
	r.Verify()
}
