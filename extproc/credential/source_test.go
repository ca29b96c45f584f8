package credential

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// canary stands in every answer of the fakes: no error or log line may hold it.
const canary = "ya29.CANARY-secret-0123456789"

var (
	testRSA   = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	testEC    = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
	keyMarker = "-----BEGIN PRIVATE KEY-----"
)

func pemOf(t *testing.T, k any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// request is what a fake was sent.
type request struct {
	Method, Path, Query string
	Header              http.Header
	Body                []byte
}

// fake answers with what reply says and keeps what it was sent.
type fake struct {
	*httptest.Server
	mu    sync.Mutex
	got   []request
	reply func(r request) (int, http.Header, string)
}

func newFake(t *testing.T, reply func(r request) (int, http.Header, string)) *fake {
	t.Helper()
	f := &fake{reply: reply}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		q := request{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), b}
		f.mu.Lock()
		f.got = append(f.got, q)
		reply := f.reply
		f.mu.Unlock()
		status, h, body := reply(q)
		for k, v := range h {
			w.Header()[k] = v
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) requests() []request { f.mu.Lock(); defer f.mu.Unlock(); return slices.Clone(f.got) }

func (f *fake) answer(reply func(r request) (int, http.Header, string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reply = reply
}

func granting(token string) func(request) (int, http.Header, string) {
	return func(request) (int, http.Header, string) {
		return 200, http.Header{"Content-Type": {"application/json"}},
			fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","expires_in":3599,"issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`, token)
	}
}

func open(t *testing.T, c Config, d Deps) Source {
	t.Helper()
	s, err := New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func take(t *testing.T, s Source, c Caller, value, name string) Token {
	t.Helper()
	tok, err := s.Token(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if tok.Value != value || tok.Name != name {
		t.Fatalf("token %q named %q; want %q, %q", tok.Value, tok.Name, value, name)
	}
	return tok
}

func keyJSON(t *testing.T, tokenURI string) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p1", "private_key_id": "kid-1", "private_key": string(pemOf(t, testRSA())),
		"client_email": "gateway@p1.iam.gserviceaccount.com", "token_uri": tokenURI,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServiceAccountKey(t *testing.T) {
	oauth := newFake(t, granting("sa-token"))
	file := write(t, "key.json", keyJSON(t, oauth.URL+"/token"))
	s := open(t, Config{Kind: KindServiceAccountKey, File: file}, Deps{})
	for range 3 {
		tok := take(t, s, Caller{}, "sa-token", "service_account_key:gateway@p1.iam.gserviceaccount.com")
		if left := time.Until(tok.Expires); left < 58*time.Minute || left > time.Hour {
			t.Fatalf("expires in %s", left)
		}
	}
	got := oauth.requests()
	if len(got) != 1 || got[0].Method != "POST" || got[0].Path != "/token" {
		t.Fatalf("sent %d requests, the first %s %s; want one POST /token", len(got), got[0].Method, got[0].Path)
	}
	form, err := url.ParseQuery(string(got[0].Body))
	if err != nil || form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || len(form) != 2 {
		t.Fatalf("form %v, %v", form, err)
	}
	signed, err := jwt.ParseSigned(form.Get("assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		jwt.Claims
		Scope string `json:"scope"`
	}
	if err := signed.Claims(testRSA().Public(), &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != "gateway@p1.iam.gserviceaccount.com" || claims.Scope != Scope || !claims.Audience.Contains(oauth.URL+"/token") ||
		signed.Headers[0].KeyID != "kid-1" {
		t.Fatalf("claims %+v, kid %q", claims, signed.Headers[0].KeyID)
	}
	if err := s.Check(t.Context()); err != nil || len(oauth.requests()) != 2 {
		t.Fatalf("check: %v, %d requests; want it to ask afresh", err, len(oauth.requests()))
	}
}

func TestServiceAccountKeyIsReadAgain(t *testing.T) {
	oauth := newFake(t, granting("one"))
	file := write(t, "key.json", keyJSON(t, oauth.URL+"/old"))
	s := open(t, Config{Kind: KindServiceAccountKey, File: file}, Deps{})
	if err := os.WriteFile(file, keyJSON(t, oauth.URL+"/new"), 0o600); err != nil {
		t.Fatal(err)
	}
	take(t, s, Caller{}, "one", "service_account_key:gateway@p1.iam.gserviceaccount.com")
	if got := oauth.requests(); got[0].Path != "/new" {
		t.Fatalf("asked %s with the replaced key file", got[0].Path)
	}
}

func TestKeyFileErrors(t *testing.T) {
	good := string(keyJSON(t, "https://oauth2.googleapis.com/token"))
	for name, tc := range map[string]struct{ file, want string }{
		"not JSON":       {"hello " + canary, "is not JSON"},
		"another type":   {`{"type":"authorized_user","refresh_token":"` + canary + `"}`, "use kind adc"},
		"no email":       {`{"type":"service_account","client_email":"` + canary + `"}`, "client_email"},
		"no key id":      {strings.Replace(good, "kid-1", "", 1), "private_key_id"},
		"broken key":     {strings.Replace(good, "MII", canary, 1), "private_key"},
		"plain endpoint": {strings.Replace(good, "https://oauth2", "http://oauth2", 1), "is not https"},
		"huge":           {strings.Repeat(" ", maxAnswer) + good, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, "key.json", []byte(tc.file))
			_, err := New(Config{Kind: KindServiceAccountKey, File: file}, Deps{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
				t.Fatalf("got %v; want %q and the file's name", err, tc.want)
			}
			if strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), keyMarker) {
				t.Fatalf("the error holds the file's text: %v", err)
			}
		})
	}
	if _, err := New(Config{Kind: KindServiceAccountKey, File: filepath.Join(t.TempDir(), "absent.json")}, Deps{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a missing file: %v", err)
	}
}

func TestADC(t *testing.T) {
	oauth := newFake(t, granting("adc-token"))
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", write(t, "adc.json", keyJSON(t, oauth.URL+"/token")))
	s := open(t, Config{Kind: KindADC}, Deps{})
	take(t, s, Caller{}, "adc-token", "adc:gateway@p1.iam.gserviceaccount.com")
	take(t, s, caller("alice"), "adc-token", "adc:gateway@p1.iam.gserviceaccount.com")
	if n := len(oauth.requests()); n != 1 {
		t.Fatalf("%d requests", n)
	}
	if err := s.Check(t.Context()); err != nil || len(oauth.requests()) != 2 {
		t.Fatalf("check: %v, %d requests", err, len(oauth.requests()))
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "absent"))
	if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Fatalf("a missing file: %v", err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", write(t, "adc.json", []byte(`{"type":"`+canary+`"}`)))
	if err := s.Check(t.Context()); err == nil || strings.Contains(err.Error(), canary) {
		t.Fatalf("a broken file: %v", err)
	}
}

func TestADCIdentity(t *testing.T) {
	for file, want := range map[string]string{
		"": "metadata",
		`{"type":"service_account","client_email":"a@b.example"}`: "a@b.example",
		`{"type":"authorized_user","client_secret":"x"}`:          "authorized_user",
		`{"type":"external_account","service_account_impersonation_url":"https://h/v1/projects/-/serviceAccounts/t@p.x:generateAccessToken"}`: "t@p.x",
		`{"type":"` + canary + `"}`: "unknown",
		`broken`:                    "unknown",
	} {
		if got := adcIdentity([]byte(file)); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

var flavor = http.Header{"Metadata-Flavor": {"Google"}}

func metadataReply(r request) (int, http.Header, string) {
	if r.Header.Get("Metadata-Flavor") != "Google" {
		return 403, flavor, "missing header"
	}
	if strings.HasSuffix(r.Path, "/email") {
		return 200, flavor, "vm@p1.iam.gserviceaccount.com\n"
	}
	return 200, flavor, `{"access_token":"vm-token","expires_in":3000,"token_type":"Bearer"}`
}

func TestMetadata(t *testing.T) {
	server := newFake(t, metadataReply)
	env := func(string) string { return strings.TrimPrefix(server.URL, "http://") }
	s := open(t, Config{Kind: KindMetadata}, Deps{Getenv: env})
	if s.(*single).wire.client.Transport.(*http.Transport).Proxy != nil {
		t.Fatal("the metadata server is asked through a proxy")
	}
	take(t, s, Caller{}, "vm-token", "metadata:vm@p1.iam.gserviceaccount.com")
	got := server.requests()
	last := got[len(got)-1]
	q, _ := url.ParseQuery(last.Query)
	if len(got) != 2 || last.Path != "/computeMetadata/v1/instance/service-accounts/default/token" || q.Get("scopes") != Scope {
		t.Fatalf("asked %d times, last %s?%s", len(got), last.Path, last.Query)
	}

	named := open(t, Config{Kind: KindMetadata, Account: "other@p1.iam.gserviceaccount.com"}, Deps{Getenv: env})
	take(t, named, Caller{}, "vm-token", "metadata:other@p1.iam.gserviceaccount.com")

	for name, tc := range map[string]struct {
		reply func(request) (int, http.Header, string)
		want  string
	}{
		"no account":      {func(request) (int, http.Header, string) { return 404, flavor, canary }, "attach one"},
		"another service": {func(request) (int, http.Header, string) { return 200, nil, canary }, "another service"},
		"an odd email":    {func(request) (int, http.Header, string) { return 200, flavor, "<html>" + canary }, "which service account"},
	} {
		server.answer(tc.reply)
		err := s.Check(t.Context())
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v; want %q", name, err, tc.want)
		}
	}
}

func TestImpersonation(t *testing.T) {
	expire := time.Now().Add(30 * time.Minute).UTC().Truncate(time.Second)
	iam := newFake(t, func(request) (int, http.Header, string) {
		return 200, nil, fmt.Sprintf(`{"accessToken":"target-token","expireTime":%q}`, expire.Format(time.RFC3339))
	})
	base := write(t, "base", []byte("base-token\n"))
	c := Config{
		Kind: KindImpersonation, Source: &Config{Kind: KindTokenFile, File: base}, Target: "reader@p2.iam.gserviceaccount.com",
		Delegates: []string{"d1@p.iam.gserviceaccount.com", "d2@p.iam.gserviceaccount.com"}, Lifetime: 30 * time.Minute, IAMEndpoint: iam.URL + "/",
	}
	s := open(t, c, Deps{})
	tok := take(t, s, caller("alice"), "target-token", "impersonation:reader@p2.iam.gserviceaccount.com")
	take(t, s, caller("bob"), "target-token", tok.Name)
	if !tok.Expires.Equal(expire) {
		t.Fatalf("expires %s, want %s", tok.Expires, expire)
	}
	got := iam.requests()
	if len(got) != 1 || got[0].Method != "POST" ||
		got[0].Path != "/v1/projects/-/serviceAccounts/reader@p2.iam.gserviceaccount.com:generateAccessToken" ||
		got[0].Header.Get("Authorization") != "Bearer base-token" || got[0].Header.Get("Content-Type") != "application/json" {
		t.Fatalf("sent %d: %+v", len(got), got)
	}
	const body = `{"delegates":["projects/-/serviceAccounts/d1@p.iam.gserviceaccount.com","projects/-/serviceAccounts/d2@p.iam.gserviceaccount.com"],` +
		`"scope":["https://www.googleapis.com/auth/bigquery"],"lifetime":"1800s"}`
	if string(got[0].Body) != body {
		t.Fatalf("body\n%s\nwant\n%s", got[0].Body, body)
	}

	for name, reply := range map[string]string{
		"no token":     `{"expireTime":"2099-01-01T00:00:00Z"}`,
		"no expiry":    `{"accessToken":"x"}`,
		"expired":      `{"accessToken":"x","expireTime":"2001-01-01T00:00:00Z"}`,
		"header split": `{"accessToken":"x\r\nX-Evil: 1","expireTime":"2099-01-01T00:00:00Z"}`,
		"no JSON":      canary,
	} {
		iam.answer(func(request) (int, http.Header, string) { return 200, nil, reply })
		if err := s.Check(t.Context()); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The source of an impersonation asks for the scope that the IAM API needs.
func TestImpersonationSourceScope(t *testing.T) {
	oauth := newFake(t, granting("source-token"))
	iam := newFake(t, func(request) (int, http.Header, string) {
		return 200, nil, `{"accessToken":"target-token","expireTime":"2099-01-01T00:00:00Z"}`
	})
	s := open(t, Config{Kind: KindImpersonation, Target: "t@p.example", IAMEndpoint: iam.URL,
		Source: &Config{Kind: KindServiceAccountKey, File: write(t, "k.json", keyJSON(t, oauth.URL))}}, Deps{})
	take(t, s, Caller{}, "target-token", "impersonation:t@p.example")
	form, _ := url.ParseQuery(string(oauth.requests()[0].Body))
	signed, err := jwt.ParseSigned(form.Get("assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := signed.Claims(testRSA().Public(), &claims); err != nil || claims["scope"] != cloudPlatform {
		t.Fatalf("scope %v, %v", claims["scope"], err)
	}
}

const testProvider = "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/verbatim"

func federationConfig(t *testing.T, sts string) Config {
	t.Helper()
	return Config{
		Kind: KindFederation, Issuer: "https://gw.example/oidc", SigningKey: write(t, "sign.pem", pemOf(t, testRSA())),
		Audience: testProvider, Trusts: []string{"https://gw.example/oidc"}, STSEndpoint: sts + "/v1/token",
	}
}

func TestFederationSendsWhatRFC8693Says(t *testing.T) {
	sts := newFake(t, granting("fed-token"))
	c := federationConfig(t, sts.URL)
	s := open(t, c, Deps{})
	alice := caller("alice@example.com")
	alice.Principal.Groups = []string{"corp/security"}
	tok := take(t, s, alice, "fed-token", "federation:corp:alice@example.com")
	take(t, s, alice, "fed-token", tok.Name)
	got := sts.requests()
	if len(got) != 1 || got[0].Method != "POST" || got[0].Path != "/v1/token" || got[0].Header.Get("Authorization") != "" ||
		got[0].Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		t.Fatalf("sent %d: %+v", len(got), got)
	}
	form, err := url.ParseQuery(string(got[0].Body))
	if err != nil {
		t.Fatal(err)
	}
	subject := form.Get("subject_token")
	form.Del("subject_token")
	if want := (url.Values{
		"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"audience":             {testProvider},
		"scope":                {"https://www.googleapis.com/auth/bigquery"},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		"subject_token_type":   {"urn:ietf:params:oauth:token-type:jwt"},
	}).Encode(); form.Encode() != want {
		t.Fatalf("form\n%s\nwant\n%s", form.Encode(), want)
	}

	// The assertion verifies against what is published, and says who calls.
	i, err := NewIssuer(c)
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(i.JWKS(), &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("JWKS %s, %v", i.JWKS(), err)
	}
	signed, err := jwt.ParseSigned(subject, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || signed.Headers[0].KeyID != set.Keys[0].KeyID {
		t.Fatalf("assertion %v, kid %q, published %q", err, signed.Headers[0].KeyID, set.Keys[0].KeyID)
	}
	var claims map[string]any
	if err := signed.Claims(set.Keys[0].Key, &claims); err != nil {
		t.Fatal(err)
	}
	life := claims["exp"].(float64) - claims["iat"].(float64)
	if life != 300 || claims["jti"] == "" {
		t.Fatalf("lives %v s, jti %v", life, claims["jti"])
	}
	delete(claims, "exp")
	delete(claims, "iat")
	delete(claims, "jti")
	gotClaims, _ := json.Marshal(claims)
	const want = `{"aud":"https:` + testProvider + `","caller_issuer":"corp","caller_issuer_url":"https://idp.example",` +
		`"caller_subject":"alice@example.com","iss":"https://gw.example/oidc","session":"s-alice@example.com","sub":"corp:alice@example.com"}`
	if string(gotClaims) != want {
		t.Fatalf("claims\n%s\nwant\n%s", gotClaims, want)
	}
}

func TestFederationPerCaller(t *testing.T) {
	sts := newFake(t, func(r request) (int, http.Header, string) {
		form, _ := url.ParseQuery(string(r.Body))
		signed, err := jwt.ParseSigned(form.Get("subject_token"), []jose.SignatureAlgorithm{jose.RS256})
		if err != nil {
			return 400, nil, `{"error":"invalid_grant"}`
		}
		var c jwt.Claims
		_ = signed.Claims(testRSA().Public(), &c)
		return granting("fed." + strings.ReplaceAll(c.Subject, ":", "."))(r)
	})
	s := open(t, federationConfig(t, sts.URL), Deps{})
	take(t, s, caller("alice"), "fed.corp.alice", "federation:corp:alice")
	take(t, s, caller("bob"), "fed.corp.bob", "federation:corp:bob")
	take(t, s, caller("alice"), "fed.corp.alice", "federation:corp:alice")
	other := caller("alice")
	other.Principal.Issuer = "partner"
	take(t, s, other, "fed.partner.alice", "federation:partner:alice")
	again := caller("alice")
	again.Session = "another run"
	take(t, s, again, "fed.corp.alice", "federation:corp:alice")
	if n := len(sts.requests()); n != 4 {
		t.Fatalf("%d exchanges; want one for each of four callers", n)
	}
	for name, c := range map[string]Caller{
		"nobody":     {},
		"no session": {Principal: caller("a").Principal},
		"no subject": caller(""),
		"reserved":   func() Caller { c := caller("a"); c.Principal.Issuer = Checker; return c }(),
	} {
		if tok, err := s.Token(t.Context(), c); err == nil {
			t.Errorf("%s got %q", name, tok.Value)
		}
	}
	if n := len(sts.requests()); n != 4 {
		t.Fatalf("%d exchanges after callers that are not known", n)
	}
}

func TestFederationWithImpersonation(t *testing.T) {
	sts := newFake(t, granting("fed-token"))
	iam := newFake(t, func(request) (int, http.Header, string) {
		return 200, nil, `{"accessToken":"reader-token","expireTime":"2099-01-01T00:00:00Z"}`
	})
	c := federationConfig(t, sts.URL)
	c.Target, c.IAMEndpoint = "reader@p2.iam.gserviceaccount.com", iam.URL
	s := open(t, c, Deps{})
	take(t, s, caller("alice"), "reader-token", "federation:reader@p2.iam.gserviceaccount.com")
	form, _ := url.ParseQuery(string(sts.requests()[0].Body))
	if form.Get("scope") != cloudPlatform {
		t.Fatalf("scope %q of the token that impersonates", form.Get("scope"))
	}
	if got := iam.requests(); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer fed-token" ||
		!bytes.Contains(got[0].Body, []byte(`"scope":["`+Scope+`"]`)) {
		t.Fatalf("sent %+v", got)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(iam.requests()); n != 1 {
		t.Fatalf("check impersonated: %d requests", n)
	}
}

func TestFederationRefusesOddAnswers(t *testing.T) {
	sts := newFake(t, nil)
	s := open(t, federationConfig(t, sts.URL), Deps{})
	for name, reply := range map[string]string{
		"no expiry":     `{"access_token":"x","token_type":"Bearer","issued_token_type":"` + accessTokenType + `"}`,
		"another type":  `{"access_token":"x","token_type":"Bearer","expires_in":3600,"issued_token_type":"` + jwtType + `"}`,
		"not a bearer":  `{"access_token":"x","token_type":"DPoP","expires_in":3600,"issued_token_type":"` + accessTokenType + `"}`,
		"a space in it": `{"access_token":"x y","token_type":"Bearer","expires_in":3600,"issued_token_type":"` + accessTokenType + `"}`,
		"huge token":    `{"access_token":"` + strings.Repeat("x", maxToken+1) + `","token_type":"Bearer","expires_in":3600,"issued_token_type":"` + accessTokenType + `"}`,
		"huge answer":   strings.Repeat(" ", maxAnswer+1),
		"overflow":      `{"access_token":"x","token_type":"Bearer","expires_in":9223372036854775807,"issued_token_type":"` + accessTokenType + `"}`,
		"empty":         ``,
	} {
		sts.answer(func(request) (int, http.Header, string) { return 200, nil, reply })
		if err := s.Check(t.Context()); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestIssuerDocuments(t *testing.T) {
	c := federationConfig(t, "https://sts.example")
	next := write(t, "next.pem", pemOf(t, testEC()))
	c.PublishedKeys = []string{next, c.SigningKey} // its own key again: once is enough
	i, err := NewIssuer(c)
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(i.Discovery(), &d); err != nil {
		t.Fatal(err)
	}
	if d["issuer"] != c.Issuer || d["jwks_uri"] != c.Issuer+"/.well-known/jwks.json" ||
		fmt.Sprint(d["id_token_signing_alg_values_supported"]) != "[RS256 ES256]" {
		t.Fatalf("discovery %v", d)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(i.JWKS(), &set); err != nil || len(set.Keys) != 2 {
		t.Fatalf("JWKS %s, %v", i.JWKS(), err)
	}
	for _, private := range []string{`"d"`, `"p"`, `"q"`, `"dp"`} {
		if bytes.Contains(i.JWKS(), []byte(private)) {
			t.Fatalf("the published set holds %s", private)
		}
	}

	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	for name, b := range map[string][]byte{"small": pemOf(t, small), "P-384": pemOf(t, p384), "no PEM": []byte(canary), "no key": []byte("-----BEGIN X-----\nAAAA\n-----END X-----\n")} {
		bad := c
		bad.SigningKey = write(t, "bad.pem", b)
		if _, err := NewIssuer(bad); err == nil || !strings.Contains(err.Error(), bad.SigningKey) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAssertionSubject(t *testing.T) {
	long := strings.Repeat("x", 200)
	seen := map[string]string{}
	for _, s := range []string{"alice", "repo:o/r:ref:refs/heads/main", long, long + "y", "with space", "sha256-abc", "ünïcode", `quo"te`,
		strings.TrimPrefix(AssertionSubject("corp", long), "corp:")} {
		got := AssertionSubject("corp", s)
		if len(got) > maxSubject {
			t.Errorf("%q: %d bytes", s, len(got))
		}
		if other, dup := seen[got]; dup {
			t.Errorf("%q and %q are both %q", s, other, got)
		}
		seen[got] = s
	}
	if got := AssertionSubject("corp", "alice"); got != "corp:alice" {
		t.Errorf("got %q", got)
	}
}

func TestTokenFile(t *testing.T) {
	file := write(t, "token", []byte("  one \n"))
	s := open(t, Config{Kind: KindTokenFile, File: file}, Deps{})
	if tok := take(t, s, Caller{}, "one", "token_file:token"); !tok.Expires.IsZero() {
		t.Fatalf("expires %s", tok.Expires)
	}
	replace := func(text string) {
		t.Helper()
		tmp := file + ".tmp"
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, file); err != nil {
			t.Fatal(err)
		}
	}
	replace("two")
	take(t, s, Caller{}, "two", "token_file:token")
	replace(`{"access_token":"three","expiry":"2099-01-01T00:00:00Z"}`)
	take(t, s, Caller{}, "three", "token_file:token")
	// An old file is not read again until it changes.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	take(t, s, Caller{}, "three", "token_file:token")
	if err := os.WriteFile(file, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	take(t, s, Caller{}, "four", "token_file:token")
	// Only its time says that it is another.
	for i, text := range []string{"five", "nine"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := old.Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
		take(t, s, Caller{}, text, "token_file:token")
	}
	for name, text := range map[string]string{
		"expired":   `{"access_token":"` + canary + `","expiry":"2001-01-01T00:00:00Z"}`,
		"soon":      `{"access_token":"` + canary + `","expiry":"` + time.Now().Add(margin-time.Second).UTC().Format(time.RFC3339) + `"}`,
		"empty":     "",
		"two lines": canary + "\n" + canary,
		"JSON":      `{"access_token":"` + canary,
		"huge":      strings.Repeat("x", maxToken+1),
	} {
		replace(text)
		if tok, err := s.Token(t.Context(), Caller{}); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %q, %v", name, tok.Value, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Token(t.Context(), Caller{}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}
	replace("five")
	take(t, s, Caller{}, "five", "token_file:token")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Token(t.Context(), Caller{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Whatever a token endpoint says when it refuses, nothing of it reaches an error
// or the log.
func TestNoSecretInErrors(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	// What a library prints by itself would go here.
	printed, err := os.Create(filepath.Join(t.TempDir(), "printed"))
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = printed, printed
	defer func() {
		os.Stdout, os.Stderr = stdout, stderr
		_ = printed.Close()
		if b, err := os.ReadFile(printed.Name()); err != nil || bytes.Contains(b, []byte("CANARY")) || bytes.Contains(b, []byte("eyJ")) {
			t.Errorf("a library logged secrets (%d bytes), %v", len(b), err)
		}
	}()
	server := newFake(t, nil)
	sources := map[string]Config{
		"service account": {Kind: KindServiceAccountKey, File: write(t, "k.json", keyJSON(t, server.URL))},
		"metadata":        {Kind: KindMetadata, Account: "a@b.example"},
		"impersonation":   {Kind: KindImpersonation, Source: &Config{Kind: KindTokenFile, File: write(t, "base", []byte(canary))}, Target: "t@p.example", IAMEndpoint: server.URL},
		"federation":      federationConfig(t, server.URL),
		"adc":             {Kind: KindADC},
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", sources["service account"].File)
	replies := map[string]struct {
		status int
		body   string
		want   string
	}{
		"echo":          {400, `{"error":"` + canary + `","error_description":"` + canary + `"}`, "answered 400"},
		"known code":    {400, `{"error":"invalid_grant","error_description":"` + canary + `"}`, "invalid_grant"},
		"google":        {403, `{"error":{"code":403,"message":"` + canary + `","status":"PERMISSION_DENIED"}}`, "PERMISSION_DENIED"},
		"html":          {502, "<html>" + canary, "answered 502"},
		"redirect":      {302, canary, "answered 302"},
		"broken JSON":   {200, `{"access_token":` + canary, ""},
		"another shape": {200, `{"access_token":["` + canary + `"],"accessToken":["` + canary + `"]}`, ""},
		"another type":  {200, `{"access_token":"` + canary + ` ` + canary + `","expires_in":1,"accessToken":"` + canary + ` x"}`, ""},
	}
	for kind, c := range sources {
		for name, r := range replies {
			t.Run(kind+"/"+name, func(t *testing.T) {
				server.answer(func(request) (int, http.Header, string) {
					h := flavor.Clone()
					h.Set("Location", "http://"+canary+".example/")
					return r.status, h, r.body
				})
				var log bytes.Buffer
				s := open(t, c, Deps{Getenv: func(string) string { return strings.TrimPrefix(server.URL, "http://") },
					Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
				tok, err := s.Token(t.Context(), caller("alice"))
				if err == nil {
					t.Fatalf("got %q", tok.Value)
				}
				all := fmt.Sprintf("%v %+v %#v %q", err, err, err, err) + log.String()
				for e := err; e != nil; e = errors.Unwrap(e) {
					all += e.Error()
				}
				if strings.Contains(all, "CANARY") || strings.Contains(all, "eyJ") {
					t.Fatalf("a secret stands in %s", all)
				}
				if !strings.Contains(err.Error(), r.want) {
					t.Errorf("%v; want %q", err, r.want)
				}
			})
		}
	}
}

// A client that is handed in follows no redirects either.
func TestRedirectsAreNotFollowed(t *testing.T) {
	other := newFake(t, granting("stolen"))
	sts := newFake(t, func(request) (int, http.Header, string) { return 307, http.Header{"Location": {other.URL}}, "" })
	s := open(t, federationConfig(t, sts.URL), Deps{Client: &http.Client{}})
	if _, err := s.Token(t.Context(), caller("alice")); err == nil || len(other.requests()) != 0 {
		t.Fatalf("%v, %d requests at the redirect's target", err, len(other.requests()))
	}
}

// Go's HTTP client quotes a broken answer in its error.
func TestBrokenHTTPIsNotQuoted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, canary+"\r\n\r\n")
			_ = c.Close()
		}
	}()
	for kind, c := range map[string]Config{
		"federation":      federationConfig(t, "http://"+l.Addr().String()),
		"service account": {Kind: KindServiceAccountKey, File: write(t, "k.json", keyJSON(t, "http://"+l.Addr().String()))},
	} {
		if err := open(t, c, Deps{}).Check(t.Context()); err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	server := newFake(t, nil)
	at := server.URL
	server.Close()
	s := open(t, federationConfig(t, at), Deps{})
	if _, err := s.Token(t.Context(), caller("a")); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("refused: %v", err)
	}
	hang := make(chan struct{})
	slow := newFake(t, func(request) (int, http.Header, string) { <-hang; return 200, nil, "" })
	defer close(hang)
	c := federationConfig(t, slow.URL)
	c.Timeout = 100 * time.Millisecond
	s = open(t, c, Deps{})
	if _, err := s.Token(t.Context(), caller("a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging: %v", err)
	}
}

func TestTokenHidesItself(t *testing.T) {
	tok := Token{Value: canary, Name: "adc:x"}
	j, _ := json.Marshal(struct{ T Token }{tok})
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", tok, "in", struct{ T Token }{tok})
	all := fmt.Sprint(tok, &tok, struct{ T Token }{tok}) + fmt.Sprintf("%v %+v %#v %s %q %x %d", tok, tok, tok, tok, tok, tok, tok) + string(j) + log.String()
	if strings.Contains(all, "CANARY") || strings.Contains(all, fmt.Sprintf("%x", canary)) {
		t.Fatalf("the token stands in %s", all)
	}
	if !strings.Contains(all, "adc:x [redacted]") {
		t.Fatalf("no name in %s", all)
	}
}

func TestProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		c    Config
		want []string
	}{
		"fine":          {Config{Kind: KindADC}, nil},
		"no kind":       {Config{}, []string{"kind: is missing"}},
		"unknown":       {Config{Kind: "magic"}, []string{`kind: "magic" is no kind`}},
		"missing":       {Config{Kind: KindImpersonation}, []string{"source: is missing", "target: is missing"}},
		"foreign":       {Config{Kind: KindADC, File: "f"}, []string{"file: is not used by kind adc"}},
		"nested":        {Config{Kind: KindImpersonation, Target: "t@p.x", Source: &Config{Kind: KindTokenFile}}, []string{"source.file: is missing"}},
		"chain":         {Config{Kind: KindImpersonation, Target: "t@p.x", Source: &Config{Kind: KindImpersonation}}, []string{"source.kind: an impersonation"}},
		"not an email":  {Config{Kind: KindMetadata, Account: "../../x"}, []string{"account: "}},
		"endpoint":      {Config{Kind: KindImpersonation, Target: "t@p.x", Source: &Config{Kind: KindADC}, IAMEndpoint: "http://iam.example"}, []string{"iam_endpoint: "}},
		"user in a URL": {Config{Kind: KindImpersonation, Target: "t@p.x", Source: &Config{Kind: KindADC}, IAMEndpoint: "https://u:p@iam.example"}, []string{"iam_endpoint: has a user name"}},
		"federation": {Config{Kind: KindFederation, Issuer: "https://gw.example", SigningKey: "k", Audience: "pool", Trusts: []string{"https://idp.example"}},
			[]string{"audience: ", "trusts: does not list"}},
	} {
		got := tc.c.Problems()
		if len(got) != len(tc.want) {
			t.Errorf("%s: %v; want %q", name, got, tc.want)
			continue
		}
		for i, w := range tc.want {
			if !strings.HasPrefix(got[i].Error(), w) {
				t.Errorf("%s: %q; want %q", name, got[i], w)
			}
		}
	}
}

func TestSameIssuer(t *testing.T) {
	for _, same := range [][2]string{
		{"https://a.example", "https://a.example/"}, {"https://A.example:443/x", "https://a.example/x/"}, {"accounts.google.com", "https://accounts.google.com"},
		{"https://a.example.", "https://a.example"},
	} {
		if !SameIssuer(same[0], same[1]) {
			t.Errorf("%s and %s differ", same[0], same[1])
		}
	}
	for _, other := range [][2]string{{"https://a.example", "https://b.example"}, {"https://a.example/x", "https://a.example/y"}, {"http://a.example", "https://a.example"}} {
		if SameIssuer(other[0], other[1]) {
			t.Errorf("%s and %s are the same", other[0], other[1])
		}
	}
}
