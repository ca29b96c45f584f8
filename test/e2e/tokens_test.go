package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

// tokenForm is what Google's libraries send to a token endpoint.
func tokenForm(subject string) url.Values {
	return url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "audience": {stack.TokenIssuer},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "subject_token": {subject},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}, "scope": {"https://www.googleapis.com/auth/bigquery"},
	}
}

func exchangeToken(ctx context.Context, r *harness.Rig, form url.Values) harness.Answer {
	return r.Do(ctx, "", http.MethodPost, "/sts/v1/token", strings.NewReader(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
}

type tokenAnswer struct {
	Token       string `json:"access_token"`
	Expires     int    `json:"expires_in"`
	Type        string `json:"token_type"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

func tokenIn(t *testing.T, a harness.Answer) tokenAnswer {
	t.Helper()
	var out tokenAnswer
	if err := json.Unmarshal(a.Body, &out); err != nil {
		t.Fatalf("status %d: %v: %s", a.Status, err, a.Body)
	}
	return out
}

func TestTokenEndpoint(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: grants})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	own := mint(t, r, "ada", "readers")
	a := exchangeToken(ctx, r, tokenForm(own))
	got := tokenIn(t, a)
	if a.Status != 200 || got.Token == "" || got.Type != "Bearer" || got.Expires < 60 || got.Expires > 3600 || a.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("status %d: %s", a.Status, a.Body)
	}
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }

	// It is on record, with who asked, and with neither token.
	x, payloads := r.Evidence(a.Receipt)
	if x.Principal == nil || x.Principal.Subject != "ada" || x.Principal.GatewayToken == "" || x.Method != "verbatim.token" {
		t.Errorf("on record: %+v", x.Principal)
	}
	if sent := string(payloads[record.DirectionRequest]); !strings.Contains(sent, "subject_token=[redacted]") || !strings.Contains(sent, "token-exchange") {
		t.Errorf("the request on record: %s", sent)
	}
	if said := string(payloads[record.DirectionResponse]); !strings.Contains(said, "[redacted]") {
		t.Errorf("the answer on record: %s", said)
	}

	// With it the caller is who it was, in the same session.
	body := harness.QueryBody("SELECT 1")
	q := r.Do(ctx, "", http.MethodPost, "/bigquery/v2/projects/"+harness.Project+"/queries", strings.NewReader(string(body)), append(bearer(got.Token), "Content-Type", "application/json")...)
	o := r.Do(ctx, "", http.MethodPost, "/bigquery/v2/projects/"+harness.Project+"/queries", strings.NewReader(string(body)), append(bearer(own), "Content-Type", "application/json")...)
	if q.Status != 200 || o.Status != 200 {
		t.Fatalf("status %d and %d: %s", q.Status, o.Status, q.Body)
	}
	byGateway, _ := r.Evidence(q.Receipt)
	byIssuer, _ := r.Evidence(o.Receipt)
	if byGateway.Session != byIssuer.Session || byGateway.Principal.Subject != "ada" || byGateway.Principal.GatewayToken != x.Principal.GatewayToken || byIssuer.Principal.GatewayToken != "" {
		t.Errorf("sessions %s and %s, principal %+v", byGateway.Session, byIssuer.Session, byGateway.Principal)
	}

	// Who am I, and what became of that?
	who := r.Do(ctx, "", http.MethodGet, "/verbatim/whoami", nil, bearer(got.Token)...)
	var me struct {
		Principal record.Principal
		Session   string
		Token     string
		Grants    map[string]any
	}
	if err := json.Unmarshal(who.Body, &me); err != nil || who.Status != 200 || me.Principal.Subject != "ada" || me.Session != byGateway.Session || me.Token != "gateway" ||
		me.Grants["readers"] == nil || me.Grants["writers"] != nil {
		t.Errorf("whoami: status %d: %s", who.Status, who.Body)
	}
	denied := r.Do(ctx, "", http.MethodPost, "/bigquery/v2/projects/"+harness.Project+"/queries", strings.NewReader(string(harness.QueryBody("DELETE FROM a.b WHERE true"))), append(bearer(own), "Content-Type", "application/json")...)
	if denied.Status != 403 {
		t.Fatalf("status %d", denied.Status)
	}
	about := func(receipt, token string) (int, string) {
		a := r.Do(ctx, "", http.MethodGet, "/verbatim/exchanges/"+receipt, nil, bearer(token)...)
		return a.Status, string(a.Body)
	}
	for _, receipt := range []string{denied.Receipt, denied.Header.Get(harness.Receipt)} {
		status, text := about(receipt, got.Token)
		if status != 200 || !strings.Contains(text, "sql_denied") {
			t.Errorf("about the denial: status %d: %s", status, text)
		}
	}
	if status, text := about(denied.Receipt, mint(t, r, "bob", "readers")); status != 404 || strings.Contains(text, "sql_denied") || strings.Contains(text, "ada") {
		t.Errorf("another caller asks: status %d: %s", status, text)
	}
	if status, _ := about("0000", own); status != 400 {
		t.Errorf("no receipt: status %d", status)
	}
	if a := r.Do(ctx, "", http.MethodGet, "/verbatim/whoami", nil); a.Status != 401 {
		t.Errorf("nobody asks who it is: status %d", a.Status)
	}

	// Refused, in the words of OAuth, and on record without the token.
	for _, c := range []struct {
		name   string
		change func(url.Values)
		status int
		code   string
	}{
		{"a gateway token", func(f url.Values) { f.Set("subject_token", got.Token) }, 401, "token_not_exchanged"},
		{"a stranger's token", func(f url.Values) { f.Set("subject_token", own[:len(own)-8]+"AAAAAAAA") }, 401, "signature_invalid"},
		{"no token", func(f url.Values) { f.Del("subject_token") }, 400, "token_missing"},
		{"another audience", func(f url.Values) { f.Set("audience", "https://bigquery.googleapis.com") }, 400, "token_audience"},
	} {
		f := tokenForm(own)
		c.change(f)
		a := exchangeToken(ctx, r, f)
		out := tokenIn(t, a)
		if a.Status != c.status || out.Error == "" || !strings.Contains(out.Description, c.code) || out.Token != "" {
			t.Errorf("%s: status %d: %s", c.name, a.Status, a.Body)
		}
		if x, _ := r.Evidence(a.Receipt); x.Method != "verbatim.token" || x.Decision.Allow {
			t.Errorf("%s: on record %s", c.name, x.Method)
		}
	}

	// A revoked subject gets no token, and its tokens end.
	if err := os.WriteFile(r.Revocations(), []byte("subjects: [{issuer: corp, subject: ada}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token is refused", func() bool {
		return r.Do(ctx, "", http.MethodGet, "/verbatim/whoami", nil, bearer(got.Token)...).Status == 401
	})
	if a := exchangeToken(ctx, r, tokenForm(own)); a.Status != 401 || !strings.Contains(string(a.Body), "revoked") {
		t.Errorf("a revoked subject: status %d: %s", a.Status, a.Body)
	}
	r.NoCanary(own)
	r.NoCanary(own[strings.LastIndexByte(own, '.')+1:])
	r.NoCanary(got.Token)
	r.NoCanary(got.Token[strings.LastIndexByte(got.Token, '.')+1:])
}

// Application Default Credentials and the endpoint, and nothing else: clients
// exchange their token themselves.
func TestClientsWithDefaultCredentials(t *testing.T) {
	r := harness.Start(t, harness.Options{Emulator: true, Policy: grants})
	for _, c := range clients(r) {
		if c.bare || c.name == "bq" { // bq has a file for its access token, and no exchange of its own
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			j := job{URL: r.URL(), Project: harness.Project, ADC: true, Tokens: map[string]string{}, Steps: []step{
				{Name: "query", Do: "query", As: "reader", SQL: "SELECT 41 + 1 AS a"},
				{Name: "job", Do: "job", As: "reader", SQL: "SELECT 1 AS a"},
				{Name: "denied", Do: "query", As: "reader", SQL: "DELETE FROM a.b WHERE true"},
			}}
			subject := "adc-" + c.name
			for name, text := range map[string]string{
				"subject": mint(t, r, subject, "readers"),
				"reader": `{"type": "external_account", "audience": "` + stack.TokenIssuer + `", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
					"token_url": "` + r.URL() + `/sts/v1/token", "credential_source": {"file": "` + filepath.Join(dir, "subject") + `"}}`,
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			j.Tokens["reader"] = filepath.Join(dir, "reader")
			got := c.run(t, dir, j)
			if len(got) != 3 || got[0].Error != "" || got[1].Error != "" || len(got[0].Rows) != 1 || got[0].Rows[0][0] != "42" {
				t.Fatalf("got %+v", got)
			}
			if m := receiptIn.FindStringSubmatch(got[2].Error); m == nil || m[1] != "sql_denied" {
				t.Errorf("denied: %s", got[2].Error)
			} else if x, _ := r.Evidence(m[2]); x.Principal.Subject != subject || x.Principal.GatewayToken == "" {
				t.Errorf("on record: %+v", x.Principal)
			}
		})
	}
}
