package auth_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/extproc/auth"
	"verbatim.dev/recorder/record"
)

const audience = "https://gateway.test"

// clock is a time that tests move.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

func serve(t testing.TB) *issuer.Issuer {
	t.Helper()
	var i *issuer.Issuer
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { i.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	var err error
	if i, err = issuer.New(issuer.Config{URL: srv.URL}); err != nil {
		t.Fatal(err)
	}
	return i
}

func newVerifier(t testing.TB, cfg auth.Config, previous *auth.Verifier) *auth.Verifier {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	v, err := auth.New(context.Background(), cfg, previous)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func corp(i *issuer.Issuer) auth.IssuerConfig {
	return auth.IssuerConfig{Name: "corp", URL: i.URL(), Audiences: []string{"other", audience}, GroupsClaim: "groups"}
}

func mint(t testing.TB, i *issuer.Issuer, claims map[string]any, o issuer.Options) string {
	t.Helper()
	token, err := i.Mint(claims, o)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func with(claims map[string]any, more map[string]any) map[string]any {
	c := maps.Clone(claims)
	maps.Copy(c, more)
	return c
}

func wantCode(t testing.TB, err error, want auth.Code) *auth.Error {
	t.Helper()
	var e *auth.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v, want code %s", err, want)
		return &auth.Error{}
	}
	if e.Code != want {
		t.Errorf("error %v, want code %s", e, want)
	}
	if e.Unavailable != (want == auth.IssuerUnavailable) {
		t.Errorf("%s: Unavailable %t", e.Code, e.Unavailable)
	}
	return e
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// forge signs any bytes as header and payload.
func forge(t testing.TB, header, payload string, sign func([]byte) []byte) string {
	t.Helper()
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(sign([]byte(input)))
}

func rs256(t testing.TB, k *rsa.PrivateKey) func([]byte) []byte {
	return func(b []byte) []byte {
		sum := sha256.Sum256(b)
		s, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// static serves one key set, and signs with its RSA key whatever a test wants.
type static struct {
	url string
	key *rsa.PrivateKey
}

var staticKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func jwk(kid string, k *rsa.PublicKey) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":"AQAB"}`, kid, b64(k.N.Bytes()))
}

func serveStatic(t testing.TB) static {
	k := staticKey()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk("k1", &k.PublicKey))
	}))
	t.Cleanup(srv.Close)
	return static{url: srv.URL, key: k}
}

func (s static) verifier(t testing.TB) *auth.Verifier {
	return newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{{
		Name: "static", URL: s.url, Audiences: []string{audience}, JWKSURL: s.url + "/keys", GroupsClaim: "groups",
	}}}, nil)
}

func (s static) payload(more string) string {
	return fmt.Sprintf(`{"iss":%q,"sub":"ada","aud":%q,"exp":%d%s}`, s.url, audience, time.Now().Add(time.Hour).Unix(), more)
}

func TestProfiles(t *testing.T) {
	i := serve(t)
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	base := map[string]any{"jti": "t1", "exp": exp.Unix(), "aud": audience, "sub": "s"}
	principal := func(p record.Principal) record.Principal {
		p.Issuer, p.URL, p.TokenID = "it", i.URL(), "t1"
		if p.Subject == "" {
			p.Subject = "s"
		}
		return p
	}
	k8s := with(issuer.Agent(audience), nil)
	for _, tt := range []struct {
		name   string
		cfg    auth.IssuerConfig
		claims map[string]any
		want   auth.Identity
		code   auth.Code
	}{
		{name: "github", cfg: auth.IssuerConfig{Profile: "github"}, claims: with(issuer.Pipeline(audience), map[string]any{"environment": "prod"}),
			want: auth.Identity{Run: "9182736450", Principal: principal(record.Principal{Subject: "repo:acme/reports:ref:refs/heads/main"}),
				Provenance: record.Provenance{Profile: "github", Repository: "acme/reports", Ref: "refs/heads/main", Commit: "4f7a1c2be0d94c55a3e8b6f1d27c9e30a81b5d62",
					Workflow: "acme/reports/.github/workflows/nightly.yml@refs/heads/main", Pipeline: "nightly", Run: "9182736450/1", Actor: "octavia", Environment: "prod"}}},
		{name: "github without run", cfg: auth.IssuerConfig{Profile: "github"}, claims: with(issuer.Pipeline(audience), map[string]any{"run_id": nil}), code: auth.ClaimMissing},
		{name: "github without repository", cfg: auth.IssuerConfig{Profile: "github"}, claims: with(issuer.Pipeline(audience), map[string]any{"repository": ""}), code: auth.ClaimMissing},
		{name: "gitlab", cfg: auth.IssuerConfig{Profile: "gitlab"},
			claims: map[string]any{"sub": "project_path:acme/etl:ref_type:branch:ref:main", "project_path": "acme/etl", "ref": "main", "ref_path": "refs/heads/main", "ref_type": "branch",
				"sha": "714a629c0b401fdce83e847fc9589983fc6f46bc", "pipeline_id": "455", "job_id": "1123", "user_login": "root", "user_email": "root@acme.test", "environment": "prod",
				"ci_config_ref_uri": "gitlab.test/acme/etl//.gitlab-ci.yml@refs/heads/main"},
			want: auth.Identity{Run: "455", Principal: principal(record.Principal{Subject: "project_path:acme/etl:ref_type:branch:ref:main", Email: "root@acme.test"}),
				Provenance: record.Provenance{Profile: "gitlab", Repository: "acme/etl", Ref: "refs/heads/main", Commit: "714a629c0b401fdce83e847fc9589983fc6f46bc", Pipeline: "455",
					Run: "455/1123", Workflow: "gitlab.test/acme/etl//.gitlab-ci.yml@refs/heads/main", Actor: "root", Environment: "prod"}}},
		{name: "gitlab, ids as numbers, no ref_path, no sha", cfg: auth.IssuerConfig{Profile: "gitlab"}, claims: map[string]any{"project_path": "a/b", "ref": "v1", "pipeline_id": 455},
			want: auth.Identity{Run: "455", Principal: principal(record.Principal{}), Provenance: record.Provenance{Profile: "gitlab", Repository: "a/b", Ref: "v1", Pipeline: "455", Run: "455"}}},
		{name: "kubernetes", cfg: auth.IssuerConfig{Profile: "kubernetes"}, claims: k8s,
			want: auth.Identity{Run: "5a1f8f0c-55c3-4b0e-8f0e-93a4f6f3f0a2", Principal: principal(record.Principal{Subject: "system:serviceaccount:agents:researcher"}),
				Provenance: record.Provenance{Profile: "kubernetes", Namespace: "agents", Pod: "researcher-7d9c5b6f4-x2x8k", ServiceAccount: "researcher", Node: "node-3", Run: "5a1f8f0c-55c3-4b0e-8f0e-93a4f6f3f0a2"}}},
		{name: "kubernetes, no pod", cfg: auth.IssuerConfig{Profile: "kubernetes"},
			claims: map[string]any{"sub": "system:serviceaccount:a:b", "kubernetes.io": map[string]any{"namespace": "a", "serviceaccount": map[string]any{"name": "b"}}},
			want: auth.Identity{Principal: principal(record.Principal{Subject: "system:serviceaccount:a:b"}),
				Provenance: record.Provenance{Profile: "kubernetes", Namespace: "a", ServiceAccount: "b"}}},
		{name: "kubernetes, sub of another account", cfg: auth.IssuerConfig{Profile: "kubernetes"}, claims: with(k8s, map[string]any{"sub": "system:serviceaccount:agents:admin"}), code: auth.ClaimInvalid},
		{name: "kubernetes, no private claims", cfg: auth.IssuerConfig{Profile: "kubernetes"}, claims: with(k8s, map[string]any{"kubernetes.io": nil}), code: auth.ClaimMissing},
		{name: "kubernetes, private claims of another type", cfg: auth.IssuerConfig{Profile: "kubernetes"}, claims: with(k8s, map[string]any{"kubernetes.io": []string{"x"}}), code: auth.ClaimMissing},
		{name: "google", cfg: auth.IssuerConfig{Profile: "google"}, claims: map[string]any{"sub": "1079", "email": "ada@corp.example", "email_verified": true, "hd": "corp.example"},
			want: auth.Identity{Principal: principal(record.Principal{Subject: "1079", Email: "ada@corp.example", Groups: []string{"it/corp.example"}}), Provenance: record.Provenance{Profile: "google"}}},
		{name: "google service account", cfg: auth.IssuerConfig{Profile: "google"}, claims: map[string]any{"email": "etl@p.iam.gserviceaccount.com", "email_verified": true},
			want: auth.Identity{Principal: principal(record.Principal{Email: "etl@p.iam.gserviceaccount.com"}), Provenance: record.Provenance{Profile: "google", ServiceAccount: "etl@p.iam.gserviceaccount.com"}}},
		{name: "google, address not verified", cfg: auth.IssuerConfig{Profile: "google"}, claims: map[string]any{"email": "boss@p.iam.gserviceaccount.com", "email_verified": false},
			want: auth.Identity{Principal: principal(record.Principal{}), Provenance: record.Provenance{Profile: "google"}}},
		{name: "spiffe", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"sub": "spiffe://prod.test/ns/a/sa/b"},
			want: auth.Identity{Principal: principal(record.Principal{Subject: "spiffe://prod.test/ns/a/sa/b"}), Provenance: record.Provenance{Profile: "spiffe", SPIFFE: "spiffe://prod.test/ns/a/sa/b"}}},
		{name: "spiffe without iss", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"iss": nil, "sub": "spiffe://prod.test/b"},
			want: auth.Identity{Principal: principal(record.Principal{Subject: "spiffe://prod.test/b"}), Provenance: record.Provenance{Profile: "spiffe", SPIFFE: "spiffe://prod.test/b"}}},
		{name: "spiffe, other domain", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"sub": "spiffe://dev.test/b"}, code: auth.TrustDomainMismatch},
		{name: "spiffe, other domain without iss", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"iss": nil, "sub": "spiffe://dev.test/b"}, code: auth.IssuerUnknown},
		{name: "spiffe, no path", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"sub": "spiffe://prod.test"}, code: auth.ClaimInvalid},
		{name: "spiffe, dots", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"sub": "spiffe://prod.test/a/../b"}, code: auth.ClaimInvalid},
		{name: "spiffe, escapes", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"sub": "spiffe://prod.test/a%2fb"}, code: auth.ClaimInvalid},
		{name: "spiffe, no sub", cfg: auth.IssuerConfig{Profile: "spiffe", TrustDomain: "prod.test"}, claims: map[string]any{"sub": nil}, code: auth.ClaimMissing},
		{name: "generic", cfg: auth.IssuerConfig{GroupsClaim: "realm.access.roles", Claims: map[string]string{"run": "ci.build.id", "repository": "https://ci.test/repo", "email": "upn", "actor": "n"}},
			claims: map[string]any{"ci.build": map[string]any{"id": 77}, "https://ci.test/repo": "a/b", "upn": "x@y.test", "email": "no@no.test", "n": true,
				"realm": map[string]any{"access": map[string]any{"roles": []string{"r1", "r2", "r1"}}}},
			want: auth.Identity{Run: "77", Principal: principal(record.Principal{Email: "x@y.test", Groups: []string{"it/r1", "it/r2"}}), Provenance: record.Provenance{Profile: "generic", Run: "77", Repository: "a/b", Actor: "true"}}},
		{name: "generic, one group as a string, nothing mapped", cfg: auth.IssuerConfig{GroupsClaim: "g"}, claims: map[string]any{"g": "one group", "email": "x@y.test"},
			want: auth.Identity{Principal: principal(record.Principal{Groups: []string{"it/one group"}}), Provenance: record.Provenance{Profile: "generic"}}},
		{name: "groups as an object", cfg: auth.IssuerConfig{GroupsClaim: "g"}, claims: map[string]any{"g": map[string]any{"a": 1}}, code: auth.ClaimInvalid},
		{name: "a group as a number", cfg: auth.IssuerConfig{GroupsClaim: "g"}, claims: map[string]any{"g": []any{"a", 1}}, code: auth.ClaimInvalid},
		{name: "an empty group", cfg: auth.IssuerConfig{GroupsClaim: "g"}, claims: map[string]any{"g": []any{""}}, code: auth.ClaimInvalid},
		{name: "a list where a name belongs", cfg: auth.IssuerConfig{Claims: map[string]string{"run": "r"}}, claims: map[string]any{"r": []string{"a"}}, code: auth.ClaimInvalid},
		{name: "no sub", claims: map[string]any{"sub": nil}, code: auth.ClaimMissing},
		{name: "control character in sub", claims: map[string]any{"sub": "ada\nadmin"}, code: auth.ClaimInvalid},
		{name: "act", claims: map[string]any{"act": map[string]any{"sub": "agent", "iss": "https://a.test", "act": map[string]any{"sub": "tool", "client_id": "x"}}},
			want: auth.Identity{Principal: principal(record.Principal{OnBehalfOf: []record.Actor{{Issuer: "https://a.test", Subject: "agent"}, {Subject: "tool"}}}), Provenance: record.Provenance{Profile: "generic"}}},
		{name: "act as a string", claims: map[string]any{"act": "agent"}, code: auth.ActorChainInvalid},
		{name: "act without sub", claims: map[string]any{"act": map[string]any{"iss": "https://a.test"}}, code: auth.ActorChainInvalid},
		{name: "act with sub as a number", claims: map[string]any{"act": map[string]any{"sub": 7}}, code: auth.ActorChainInvalid},
		{name: "inner act malformed", claims: map[string]any{"act": map[string]any{"sub": "a", "act": []string{}}}, code: auth.ActorChainInvalid},
		{name: "act of eight", claims: map[string]any{"act": chain(8)},
			want: auth.Identity{Principal: principal(record.Principal{OnBehalfOf: []record.Actor{{Subject: "a"}, {Subject: "a"}, {Subject: "a"}, {Subject: "a"}, {Subject: "a"}, {Subject: "a"}, {Subject: "a"}, {Subject: "a"}}}), Provenance: record.Provenance{Profile: "generic"}}},
		{name: "act of nine", claims: map[string]any{"act": chain(9)}, code: auth.ActorChainInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Name, tt.cfg.URL, tt.cfg.Audiences = "it", i.URL(), []string{audience}
			v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{tt.cfg}}, nil)
			id, err := v.Verify(t.Context(), mint(t, i, with(base, tt.claims), issuer.Options{}))
			if tt.code != "" {
				wantCode(t, err, tt.code)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Expires = exp
			if !reflect.DeepEqual(*id, tt.want) {
				got, _ := json.MarshalIndent(id, "", " ")
				want, _ := json.MarshalIndent(tt.want, "", " ")
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
}

func chain(n int) map[string]any {
	m := map[string]any{"sub": "a"}
	for range n - 1 {
		m = map[string]any{"sub": "a", "act": m}
	}
	return m
}

func TestBadTokens(t *testing.T) {
	i := serve(t)
	other := serve(t)
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i),
		{Name: "ec", URL: other.URL(), Audiences: []string{audience}, Algorithms: []string{"ES256"}}}}, nil)
	good := issuer.Analyst(audience)
	token := mint(t, i, good, issuer.Options{})
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatalf("the good token: %v", err)
	}
	parts := strings.Split(token, ".")
	pub, kid, err := i.PublicKey("RS256")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	hs := func(key []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			m := hmac.New(sha256.New, key)
			m.Write(b)
			return m.Sum(nil)
		}
	}
	payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
	hsHeader := fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"JWT"}`, kid)
	_, ecKid, _ := i.PublicKey("ES256")
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	opt := func(h map[string]any) issuer.Options { return issuer.Options{Header: h} }
	flip := func(s string) string {
		c := byte('A')
		if s[10] == c {
			c = 'B'
		}
		return s[:10] + string(c) + s[11:]
	}
	for _, tt := range []struct {
		name, token string
		want        auth.Code
	}{
		{"empty", "", auth.TokenMissing},
		{"a word", "secret", auth.TokenMalformed},
		{"Google access token", "ya29.a0AfH6SMBxxxxxxxxxxxxxxxxxxxxx", auth.TokenMalformed},
		{"two parts", parts[0] + "." + parts[1], auth.TokenMalformed},
		{"four parts", token + ".AAAA", auth.TokenMalformed},
		{"JSON serialisation", `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`, auth.TokenMalformed},
		{"space within", parts[0] + ". " + parts[1] + "." + parts[2], auth.TokenMalformed},
		{"newline within", parts[0] + ".\n" + parts[1] + "." + parts[2], auth.TokenMalformed},
		{"padding", parts[0] + "." + parts[1] + "." + parts[2] + "==", auth.TokenMalformed},
		{"alg none", forge(t, `{"alg":"none"}`, string(payload), func([]byte) []byte { return nil }), auth.AlgorithmRefused},
		{"alg none, signed", forge(t, `{"alg":"none"}`, string(payload), hs([]byte("x"))), auth.AlgorithmRefused},
		{"alg None", forge(t, `{"alg":"None"}`, string(payload), func([]byte) []byte { return nil }), auth.AlgorithmRefused},
		{"no alg", forge(t, `{}`, string(payload), hs([]byte("x"))), auth.TokenMalformed},
		{"HS256 with the public key, PEM", forge(t, hsHeader, string(payload), hs(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))), auth.AlgorithmRefused},
		{"HS256 with the public key, DER", forge(t, hsHeader, string(payload), hs(der)), auth.AlgorithmRefused},
		{"HS256 with the modulus", forge(t, hsHeader, string(payload), hs(pub.(*rsa.PublicKey).N.Bytes())), auth.AlgorithmRefused},
		{"RS256 not allowed for this issuer", mint(t, other, issuer.Analyst(audience), issuer.Options{}), auth.AlgorithmRefused},
		{"PS256 never allowed here", forge(t, fmt.Sprintf(`{"alg":"PS256","kid":%q}`, kid), string(payload), hs([]byte("x"))), auth.AlgorithmRefused},
		{"RS256 with the id of the EC key", forge(t, fmt.Sprintf(`{"alg":"RS256","kid":%q}`, ecKid), string(payload), rs256(t, staticKey())), auth.AlgorithmRefused},
		{"signature removed", parts[0] + "." + parts[1] + ".", auth.TokenMalformed},
		{"signature changed", parts[0] + "." + parts[1] + "." + flip(parts[2]), auth.SignatureInvalid},
		{"signature of another key", forge(t, fmt.Sprintf(`{"alg":"RS256","kid":%q}`, kid), string(payload), rs256(t, staticKey())), auth.SignatureInvalid},
		{"payload of another token", parts[0] + "." + strings.Split(mint(t, i, with(good, map[string]any{"sub": "root"}), issuer.Options{}), ".")[1] + "." + parts[2], auth.SignatureInvalid},
		{"unknown kid", forge(t, `{"alg":"RS256","kid":"nobody"}`, string(payload), rs256(t, staticKey())), auth.KeyUnknown},
		{"no kid, foreign key", forge(t, `{"alg":"RS256"}`, string(payload), rs256(t, staticKey())), auth.SignatureInvalid},
		{"kid of 10 KB", forge(t, `{"alg":"RS256","kid":"`+strings.Repeat("k", 10<<10)+`"}`, `{}`, hs([]byte("x"))), auth.TokenMalformed},
		{"expired", mint(t, i, good, issuer.Options{TTL: -time.Minute}), auth.TokenExpired},
		{"exp within leeway no more", mint(t, i, with(good, map[string]any{"exp": at(-31 * time.Second)}), issuer.Options{}), auth.TokenExpired},
		{"no exp", mint(t, i, with(good, map[string]any{"exp": nil}), issuer.Options{}), auth.ClaimMissing},
		{"exp as a string", mint(t, i, with(good, map[string]any{"exp": "9999999999"}), issuer.Options{}), auth.TokenMalformed},
		{"exp beyond all time", mint(t, i, with(good, map[string]any{"exp": json.Number("1e300")}), issuer.Options{}), auth.TokenMalformed},
		{"negative exp", mint(t, i, with(good, map[string]any{"exp": -1}), issuer.Options{}), auth.TokenMalformed},
		{"not yet valid", mint(t, i, with(good, map[string]any{"nbf": at(time.Hour)}), issuer.Options{}), auth.TokenNotYetValid},
		{"issued in the future", mint(t, i, with(good, map[string]any{"iat": at(time.Hour), "nbf": nil}), issuer.Options{}), auth.TokenNotYetValid},
		{"wrong audience", mint(t, i, issuer.Analyst("https://bigquery.googleapis.com/"), issuer.Options{}), auth.AudienceMismatch},
		{"audience prefix", mint(t, i, issuer.Analyst(audience+"/"), issuer.Options{}), auth.AudienceMismatch},
		{"no audience", mint(t, i, with(good, map[string]any{"aud": nil}), issuer.Options{}), auth.AudienceMismatch},
		{"empty audiences", mint(t, i, with(good, map[string]any{"aud": []string{}}), issuer.Options{}), auth.AudienceMismatch},
		{"audience as an object", mint(t, i, with(good, map[string]any{"aud": map[string]any{audience: true}}), issuer.Options{}), auth.TokenMalformed},
		{"wrong issuer", mint(t, i, with(good, map[string]any{"iss": "https://evil.test"}), issuer.Options{}), auth.IssuerUnknown},
		{"issuer with a slash", mint(t, i, with(good, map[string]any{"iss": i.URL() + "/"}), issuer.Options{}), auth.IssuerUnknown},
		{"issuer in capitals", mint(t, i, with(good, map[string]any{"iss": strings.ToUpper(i.URL())}), issuer.Options{}), auth.IssuerUnknown},
		{"no issuer", mint(t, i, with(good, map[string]any{"iss": nil}), issuer.Options{}), auth.IssuerUnknown},
		{"issuer as a list", mint(t, i, with(good, map[string]any{"iss": []string{i.URL()}}), issuer.Options{}), auth.TokenMalformed},
		{"another configured issuer's iss", mint(t, i, with(good, map[string]any{"iss": other.URL()}), issuer.Options{Alg: "ES256"}), auth.KeyUnknown},
		{"100 KB", mint(t, i, with(good, map[string]any{"x": strings.Repeat("x", 100<<10)}), issuer.Options{}), auth.TokenTooLarge},
		{"DPoP proof", mint(t, i, good, opt(map[string]any{"typ": "dpop+jwt"})), auth.TokenTypeRefused},
		{"logout token by type", mint(t, i, good, opt(map[string]any{"typ": "logout+jwt"})), auth.TokenTypeRefused},
		{"logout token by event", mint(t, i, with(good, map[string]any{"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}), issuer.Options{}), auth.TokenTypeRefused},
		{"key-bound", mint(t, i, with(good, map[string]any{"cnf": map[string]any{"jkt": "x"}}), issuer.Options{}), auth.TokenTypeRefused},
		{"crit", forge(t, `{"alg":"RS256","crit":["x"],"x":1}`, string(payload), hs([]byte("x"))), auth.TokenMalformed},
		{"own key in the header", forge(t, `{"alg":"RS256","jwk":`+jwk("x", &staticKey().PublicKey)+`}`, string(payload), rs256(t, staticKey())), auth.TokenMalformed},
		{"own key set in the header", forge(t, `{"alg":"RS256","jku":"https://evil.test"}`, string(payload), rs256(t, staticKey())), auth.TokenMalformed},
		{"header no JSON", forge(t, `alg`, string(payload), hs([]byte("x"))), auth.TokenMalformed},
		{"header with alg twice", forge(t, `{"alg":"RS256","alg":"none"}`, string(payload), hs([]byte("x"))), auth.TokenMalformed},
		{"header with alg as a list", forge(t, `{"alg":["RS256"]}`, string(payload), hs([]byte("x"))), auth.TokenMalformed},
		{"payload a list", forge(t, `{"alg":"RS256"}`, `[]`, hs([]byte("x"))), auth.TokenMalformed},
		{"payload and more", forge(t, `{"alg":"RS256"}`, `{}{}`, hs([]byte("x"))), auth.TokenMalformed},
		{"payload not UTF-8", forge(t, `{"alg":"RS256"}`, "{\"a\":\"\xff\"}", hs([]byte("x"))), auth.TokenMalformed},
		{"payload deep", forge(t, `{"alg":"RS256"}`, `{"a":`+strings.Repeat("[", 2000)+strings.Repeat("]", 2000)+`}`, hs([]byte("x"))), auth.TokenMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, err := v.Verify(t.Context(), tt.token)
			wantCode(t, err, tt.want)
			if id != nil {
				t.Error("an identity with an error")
			}
		})
	}
}

// Tokens that the issuer did sign, with a payload that only a careless reader takes.
func TestSignedButAmbiguous(t *testing.T) {
	s := serveStatic(t)
	v := s.verifier(t)
	sign := func(payload string) string { return forge(t, `{"alg":"RS256","kid":"k1"}`, payload, rs256(t, s.key)) }
	if _, err := v.Verify(t.Context(), sign(s.payload(""))); err != nil {
		t.Fatalf("the plain one: %v", err)
	}
	if _, err := v.Verify(t.Context(), forge(t, `{"alg":"RS256"}`, s.payload(""), rs256(t, s.key))); err != nil {
		t.Errorf("without kid: %v", err)
	}
	for _, tt := range []struct {
		name, more string
		want       auth.Code
	}{
		{"sub twice", `,"sub":"root"`, auth.TokenMalformed},
		{"sub twice, escaped", `,"s\u0075b":"root"`, auth.TokenMalformed},
		{"twice within", `,"x":{"a":1,"a":2}`, auth.TokenMalformed},
		{"lone surrogate in a group", `,"groups":["\ud800"]`, auth.ClaimInvalid},
		{"standard claims in capitals, of other types", `,"EXP":"x"`, auth.TokenMalformed},
		{"act null within", `,"act":{"sub":"a","act":null}`, auth.ActorChainInvalid},
	} {
		_, err := v.Verify(t.Context(), sign(s.payload(tt.more)))
		t.Log(tt.name)
		wantCode(t, err, tt.want)
	}
	// Capitals make another claim, and never the subject.
	id, err := v.Verify(t.Context(), sign(s.payload(`,"SUB":"root"`)))
	if err != nil || id.Principal.Subject != "ada" {
		t.Errorf("%+v, %v", id, err)
	}
	// Bits that the encoding does not use must be zero, or one token has many spellings.
	token := sign(s.payload(""))
	last := token[len(token)-1]
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	respelled := token[:len(token)-1] + string(alphabet[strings.IndexByte(alphabet, last)|1])
	if respelled == token {
		t.Fatal("nothing respelled")
	}
	_, err = v.Verify(t.Context(), respelled)
	wantCode(t, err, auth.TokenMalformed)
}

func TestClockSkew(t *testing.T) {
	i := serve(t)
	var c clock
	cfg := corp(i)
	cfg.Leeway = time.Minute
	strict := cfg
	strict.Leeway = -1
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{cfg}, Now: c.now}, nil)
	sv := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{strict}, Now: c.now}, nil)
	token := mint(t, i, issuer.Analyst(audience), issuer.Options{TTL: 10 * time.Minute})
	for _, tt := range []struct {
		offset        time.Duration
		leeway, exact auth.Code
	}{
		{0, "", ""},
		{-50 * time.Second, "", auth.TokenNotYetValid},
		{-70 * time.Second, auth.TokenNotYetValid, auth.TokenNotYetValid},
		{9 * time.Minute, "", ""},
		{10*time.Minute + 50*time.Second, "", auth.TokenExpired},
		{11*time.Minute + 5*time.Second, auth.TokenExpired, auth.TokenExpired},
	} {
		c.offset.Store(int64(tt.offset))
		for v, want := range map[*auth.Verifier]auth.Code{v: tt.leeway, sv: tt.exact} {
			_, err := v.Verify(t.Context(), token)
			if want == "" && err != nil {
				t.Errorf("offset %s: %v", tt.offset, err)
			} else if want != "" {
				wantCode(t, err, want)
			}
		}
	}
}

func TestNoPartOfATokenLeaves(t *testing.T) {
	const canary = "CANARY7f3a"
	i := serve(t)
	var logs bytes.Buffer
	var mu sync.Mutex
	logger := slog.New(slog.NewTextHandler(lockedWriter{&mu, &logs}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Logger: logger}, nil)
	s := serveStatic(t)
	sv := s.verifier(t)
	good := with(issuer.Analyst(audience), map[string]any{"sub": canary, "jti": canary, "x": canary})
	secret := map[string]string{}
	add := func(name, token string) { secret[name] = token }
	for name, more := range map[string]map[string]any{
		"iss": {"iss": "https://" + canary + ".test"}, "aud": {"aud": canary}, "aud list": {"aud": []string{canary}}, "exp": {"exp": canary},
		"exp time": {"exp": 1}, "act": {"act": map[string]any{"sub": canary, "act": canary}}, "group": {"groups": []any{canary, 7}}, "sub": {"sub": canary + "\n"},
		"nbf": {"nbf": canary}, "names": {"_claim_names": map[string]any{"a": canary}}, "nonce": {"nonce": []string{canary}}, "good": {},
	} {
		add(name, mint(t, i, with(good, more), issuer.Options{}))
	}
	add("typ", mint(t, i, good, issuer.Options{Header: map[string]any{"typ": canary}}))
	add("alg", forge(t, `{"alg":"`+canary+`"}`, `{}`, func([]byte) []byte { return []byte("x") }))
	add("kid", forge(t, `{"alg":"RS256","kid":"`+canary+`"}`, `{"iss":"`+i.URL()+`"}`, func([]byte) []byte { return []byte("x") }))
	add("kid, EC", forge(t, `{"alg":"ES256","kid":"`+canary+`"}`, `{"iss":"`+i.URL()+`"}`, func([]byte) []byte { return []byte("x") }))
	add("member", forge(t, `{"alg":"RS256","`+canary+`":1,"`+canary+`":2}`, `{}`, func([]byte) []byte { return []byte("x") }))
	add("no JSON", forge(t, canary, canary, func([]byte) []byte { return []byte("x") }))
	add("no token", canary)
	add("static", forge(t, `{"alg":"RS256","kid":"k1"}`, s.payload(`,"SUB":["`+canary+`"],"EXP":"`+canary+`"`), rs256(t, s.key)))
	refused := 0
	for name, token := range secret {
		for _, v := range []*auth.Verifier{v, sv} {
			_, err := v.Verify(t.Context(), token)
			if err != nil {
				refused++
				for _, part := range append(strings.Split(token, "."), canary) {
					if len(part) > 3 && strings.Contains(err.Error(), part) {
						t.Errorf("%s: the error holds a part of the token: %v", name, err)
					}
				}
			}
			var out bytes.Buffer
			if _, err := v.Explain(t.Context(), token).WriteTo(&out); err != nil {
				t.Fatal(err)
			}
			for _, part := range strings.Split(token, ".") {
				if len(part) > 3 && strings.Contains(out.String(), part) {
					t.Errorf("%s: the explanation prints a part of the token:\n%s", name, out.String())
				}
			}
		}
	}
	if refused < len(secret) {
		t.Errorf("only %d refusals", refused)
	}
	mu.Lock()
	defer mu.Unlock()
	if logs.Len() == 0 || strings.Contains(logs.String(), canary) {
		t.Errorf("logs: %s", logs.String())
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestRotation(t *testing.T) {
	i := serve(t)
	var c clock
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Now: c.now}, nil)
	old := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	check := func(token string) {
		t.Helper()
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Error(err)
		}
	}
	check(old)
	for range 3 {
		check(mint(t, i, issuer.Analyst(audience), issuer.Options{Alg: "ES256"}))
	}
	if d, n := i.Requests(); d != 1 || n != 1 {
		t.Errorf("%d discoveries and %d fetches for the first tokens, want 1 and 1", d, n)
	}
	if err := i.Rotate(); err != nil {
		t.Fatal(err)
	}
	fresh := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	check(fresh)
	check(old)
	if _, n := i.Requests(); n != 2 {
		t.Errorf("%d fetches after a rotation, want 2", n)
	}
	// A withdrawn key passes until the set is refreshed, and not after, however long
	// nobody called in between.
	if err := i.Retire(); err != nil {
		t.Fatal(err)
	}
	check(old)
	c.advance(11 * time.Minute)
	_, err := v.Verify(t.Context(), old)
	wantCode(t, err, auth.KeyUnknown)
	check(fresh)
}

// A busy gateway refreshes in the background and nobody waits.
func TestRefreshDoesNotHoldUp(t *testing.T) {
	i := serve(t)
	var c clock
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Now: c.now}, nil)
	token := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	i.SetSlow(time.Hour)
	c.advance(6 * time.Minute)
	began := time.Now()
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("waited %s for a refresh", d)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, n := i.Requests(); n == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no refresh in the background")
		}
		time.Sleep(5 * time.Millisecond)
	}
	// Close ends the fetch that hangs.
	began = time.Now()
	v.Close()
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("Close took %s", d)
	}
	i.SetSlow(0)
}

func TestFloodOfUnknownKeys(t *testing.T) {
	i := serve(t)
	var c clock
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Now: c.now}, nil)
	good := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	attack := func() {
		for n := range 50 {
			header := fmt.Sprintf(`{"alg":"RS256","kid":"k%d"}`, n)
			_, err := v.Verify(t.Context(), forge(t, header, `{"iss":"`+i.URL()+`"}`, func([]byte) []byte { return []byte("x") }))
			wantCode(t, err, auth.KeyUnknown)
			// A bad signature under a known key id costs the issuer no more.
			_, err = v.Verify(t.Context(), good[:len(good)-20]+strings.Repeat("A", 20))
			wantCode(t, err, auth.SignatureInvalid)
		}
	}
	attack()
	if _, n := i.Requests(); n != 2 {
		t.Errorf("%d fetches under attack, want 2", n)
	}
	// A rotation during the attack is seen an interval later.
	if err := i.Rotate(); err != nil {
		t.Fatal(err)
	}
	fresh := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	_, err := v.Verify(t.Context(), fresh)
	wantCode(t, err, auth.KeyUnknown)
	c.advance(11 * time.Second)
	if _, err := v.Verify(t.Context(), fresh); err != nil {
		t.Error(err)
	}
	attack()
	if _, n := i.Requests(); n != 3 {
		t.Errorf("%d fetches, want 3", n)
	}
}

func TestIssuerDown(t *testing.T) {
	i, healthy := serve(t), serve(t)
	var c clock
	hc := corp(healthy)
	hc.Name = "healthy"
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i), hc}, Now: c.now}, nil)
	token := mint(t, i, issuer.Analyst(audience), issuer.Options{TTL: 100 * time.Hour})
	other := mint(t, healthy, issuer.Analyst(audience), issuer.Options{})
	i.SetDown(true)
	for range 20 {
		_, err := v.Verify(t.Context(), token)
		wantCode(t, err, auth.IssuerUnavailable)
	}
	if d, _ := i.Requests(); d != 1 {
		t.Errorf("%d requests to an issuer that is down, want 1", d)
	}
	if _, err := v.Verify(t.Context(), other); err != nil {
		t.Errorf("another issuer is affected: %v", err)
	}
	i.SetDown(false)
	_, err := v.Verify(t.Context(), token)
	wantCode(t, err, auth.IssuerUnavailable) // still waiting
	c.advance(2 * time.Second)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("up again: %v", err)
	}
	// With keys at hand, an issuer that is down stops only tokens with keys that are not.
	i.SetDown(true)
	c.advance(time.Hour)
	for range 3 {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Errorf("down with keys at hand: %v", err)
		}
	}
	if err := i.Rotate(); err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(t.Context(), mint(t, i, issuer.Analyst(audience), issuer.Options{TTL: 100 * time.Hour}))
	wantCode(t, err, auth.IssuerUnavailable)
	// Not for ever: keys that nobody could check for a day are not trusted.
	c.advance(25 * time.Hour)
	_, err = v.Verify(t.Context(), token)
	wantCode(t, err, auth.IssuerUnavailable)
}

func TestSlowIssuer(t *testing.T) {
	i := serve(t)
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, FetchTimeout: 200 * time.Millisecond}, nil)
	token := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	i.SetSlow(time.Hour)
	began := time.Now()
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			_, err := v.Verify(t.Context(), token)
			wantCode(t, err, auth.IssuerUnavailable)
		})
	}
	wg.Wait()
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %s", d)
	}
	if d, _ := i.Requests(); d != 1 {
		t.Errorf("%d requests, want one flight", d)
	}
	// The caller's own deadline counts.
	v = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, FetchTimeout: time.Minute}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began = time.Now()
	_, err := v.Verify(ctx, token)
	wantCode(t, err, auth.IssuerUnavailable)
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %s past the caller's deadline", d)
	}
	i.SetSlow(0)
}

func TestReloadKeepsKeys(t *testing.T) {
	i, added := serve(t), serve(t)
	first := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}}, nil)
	token := mint(t, i, issuer.Analyst(audience), issuer.Options{})
	if _, err := first.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	changed := corp(i)
	changed.Audiences = []string{"elsewhere"}
	ac := corp(added)
	ac.Name = "added"
	second := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{changed, ac}}, first)
	first.Close()
	first.Close()
	_, err := second.Verify(t.Context(), token)
	wantCode(t, err, auth.AudienceMismatch)
	third := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}}, second)
	second.Close()
	if _, err := third.Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
	if d, n := i.Requests(); d != 1 || n != 1 {
		t.Errorf("%d and %d requests over two reloads, want 1 and 1", d, n)
	}
	// Closed, nothing is fetched any more.
	_, err = second.Verify(t.Context(), mint(t, added, issuer.Analyst(audience), issuer.Options{}))
	wantCode(t, err, auth.IssuerUnavailable)
	// A configuration that is refused lets go of what it took.
	if _, err := auth.New(t.Context(), auth.Config{Issuers: []auth.IssuerConfig{corp(i), {Name: "Bad"}}}, third); err == nil {
		t.Error("a bad configuration passed")
	}
	third.Close()
	last := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}}, third)
	if _, err := last.Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
	if _, n := i.Requests(); n != 2 {
		t.Errorf("%d fetches after all had been closed, want 2", n)
	}
}

func TestKeySetsThatAreWrong(t *testing.T) {
	k := staticKey()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	var elsewhere atomic.Int64
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Add(1)
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk("k1", &k.PublicKey))
	}))
	defer evil.Close()
	var hops atomic.Int64
	good := jwk("k1", &k.PublicKey)
	for _, tt := range []struct {
		name  string
		serve http.HandlerFunc
		want  auth.Code // empty: the token passes
	}{
		{"plain", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"keys":[%s]}`, good) }, ""},
		{"among strange ones", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"keys":[{"kty":"XYZ","kid":"k0"},{"kty":"OKP","crv":"Ed448","x":"AA"},7,%s]}`, good)
		}, ""},
		{"redirect on the same host", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, "/moved", http.StatusFound)
				return
			}
			fmt.Fprintf(w, `{"keys":[%s]}`, good)
		}, ""},
		{"redirect to another host", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, evil.URL, http.StatusFound) }, auth.IssuerUnavailable},
		{"redirect for ever", func(w http.ResponseWriter, r *http.Request) {
			hops.Add(1)
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		}, auth.IssuerUnavailable},
		{"empty", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"keys":[]}`) }, auth.IssuerUnavailable},
		{"HTML", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `<html>`) }, auth.IssuerUnavailable},
		{"404", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }, auth.IssuerUnavailable},
		{"symmetric", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"keys":[{"kty":"oct","kid":"k1","k":"AAAA"}]}`)
		}, auth.IssuerUnavailable},
		{"for encryption", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"keys":[%s]}`, strings.Replace(good, `{`, `{"use":"enc",`, 1))
		}, auth.IssuerUnavailable},
		{"for SPIFFE", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"keys":[%s]}`, strings.Replace(good, `{`, `{"use":"jwt-svid",`, 1))
		}, auth.IssuerUnavailable},
		{"for another algorithm", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"keys":[%s]}`, strings.Replace(good, `{`, `{"alg":"PS256",`, 1))
		}, auth.AlgorithmRefused},
		{"RSA of 1024 bits", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"keys":[%s]}`, jwk("k1", &small.PublicKey))
		}, auth.IssuerUnavailable},
		{"101 keys", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"keys":[%s%s]}`, strings.Repeat(good+",", 100), good)
		}, auth.IssuerUnavailable},
		{"2 MB", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"x":"%s","keys":[%s]}`, strings.Repeat("x", 2<<20), good)
		}, auth.IssuerUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(tt.serve)
			defer srv.Close()
			s := static{url: srv.URL, key: k}
			v := s.verifier(t)
			_, err := v.Verify(t.Context(), forge(t, `{"alg":"RS256","kid":"k1"}`, s.payload(""), rs256(t, k)))
			if tt.want != "" {
				wantCode(t, err, tt.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("another host was asked")
	}
	if hops.Load() > 4 {
		t.Errorf("%d redirects followed", hops.Load())
	}
}

// Discovery must speak for the issuer itself, and a fetch that failed finds keys
// that moved.
func TestDiscovery(t *testing.T) {
	k := staticKey()
	var issuerURL, jwks atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuerURL.Load(), jwks.Load())
		case "/keys":
			fmt.Fprintf(w, `{"keys":[%s]}`, jwk("k1", &k.PublicKey))
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	var c clock
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{{Name: "a", URL: srv.URL, Audiences: []string{audience}}}, Now: c.now}, nil)
	token := forge(t, `{"alg":"RS256","kid":"k1"}`, static{url: srv.URL}.payload(""), rs256(t, k))
	verify := func() error { _, err := v.Verify(t.Context(), token); c.advance(time.Minute); return err }

	issuerURL.Store("https://evil.test")
	jwks.Store(srv.URL + "/keys")
	wantCode(t, verify(), auth.IssuerUnavailable)
	issuerURL.Store(srv.URL)
	for _, bad := range []string{"", "http://192.0.2.1/keys", "file:///etc/passwd", "https://user@evil.test/"} {
		jwks.Store(bad)
		wantCode(t, verify(), auth.IssuerUnavailable)
	}
	jwks.Store(srv.URL + "/old")
	wantCode(t, verify(), auth.IssuerUnavailable)
	jwks.Store(srv.URL + "/keys?policy=p") // some issuers tell key sets apart so
	if err := verify(); err != nil {
		t.Error(err)
	}
}

func TestPrivateCA(t *testing.T) {
	k := staticKey()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk("k1", &k.PublicKey))
	}))
	defer srv.Close()
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	token := forge(t, `{"alg":"RS256","kid":"k1"}`, static{url: srv.URL}.payload(""), rs256(t, k))
	cfg := auth.IssuerConfig{Name: "a", URL: srv.URL, Audiences: []string{audience}, JWKSURL: srv.URL}
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{cfg}}, nil)
	_, err := v.Verify(t.Context(), token)
	wantCode(t, err, auth.IssuerUnavailable)
	cfg.CAFile = ca
	v = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{cfg}}, v)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
}

// A SPIFFE issuer may be nothing but a bundle, whose keys have a use of their own.
func TestSPIFFEBundle(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"spiffe_sequence":1,"keys":[{"kty":"EC","crv":"P-256","kid":"b1","use":"jwt-svid","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:]))
	}))
	defer srv.Close()
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{{Name: "mesh", URL: "spiffe://prod.test", TrustDomain: "prod.test",
		Profile: "spiffe", Audiences: []string{audience}, JWKSURL: srv.URL}}}, nil)
	sign := func(b []byte) []byte {
		sum := sha256.Sum256(b)
		r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	payload := fmt.Sprintf(`{"sub":"spiffe://prod.test/agent","aud":[%q],"exp":%d}`, audience, time.Now().Add(time.Minute).Unix())
	id, err := v.Verify(t.Context(), forge(t, `{"alg":"ES256","kid":"b1","typ":"JOSE"}`, payload, sign))
	if err != nil || id.Provenance.SPIFFE != "spiffe://prod.test/agent" || id.Principal.URL != "spiffe://prod.test" || id.Run != "" {
		t.Errorf("%+v, %v", id, err)
	}
}

// Google's documents allow iss without the scheme, and nobody else may do so.
func TestGoogleWithoutScheme(t *testing.T) {
	s := serveStatic(t)
	for profile, want := range map[string]auth.Code{"google": "", "generic": auth.IssuerUnknown} {
		v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{{Name: "g", URL: "https://accounts.google.com", Profile: profile,
			Audiences: []string{audience}, JWKSURL: s.url}}}, nil)
		payload := strings.Replace(s.payload(""), s.url, "accounts.google.com", 1)
		id, err := v.Verify(t.Context(), forge(t, `{"alg":"RS256","kid":"k1"}`, payload, rs256(t, s.key)))
		if want != "" {
			wantCode(t, err, want)
		} else if err != nil || id.Principal.URL != "https://accounts.google.com" {
			t.Errorf("%+v, %v", id, err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	ok := auth.IssuerConfig{Name: "corp", URL: "https://i.test", Audiences: []string{audience}}
	edit := func(f func(*auth.IssuerConfig)) []auth.IssuerConfig {
		c := ok
		f(&c)
		return []auth.IssuerConfig{c}
	}
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		issuers []auth.IssuerConfig
		field   string
	}{
		{"none", nil, ""},
		{"name with a slash", edit(func(c *auth.IssuerConfig) { c.Name = "corp/x" }), "Name"},
		{"no name", edit(func(c *auth.IssuerConfig) { c.Name = "" }), "Name"},
		{"same name", []auth.IssuerConfig{ok, {Name: "corp", URL: "https://j.test", Audiences: ok.Audiences}}, "Name"},
		{"same URL", []auth.IssuerConfig{ok, {Name: "two", URL: ok.URL, Audiences: ok.Audiences}}, "URL"},
		{"http", edit(func(c *auth.IssuerConfig) { c.URL = "http://i.test" }), "URL"},
		{"no URL", edit(func(c *auth.IssuerConfig) { c.URL = "" }), "URL"},
		{"URL with a query", edit(func(c *auth.IssuerConfig) { c.URL = "https://i.test?x=1" }), "URL"},
		{"spiffe URL for another profile", edit(func(c *auth.IssuerConfig) { c.URL = "spiffe://i.test" }), "URL"},
		{"issuer URL of another user", edit(func(c *auth.IssuerConfig) { c.URL = "https://u@i.test" }), "URL"},
		{"keys over http", edit(func(c *auth.IssuerConfig) { c.JWKSURL = "http://i.test/keys" }), "JWKSURL"},
		{"no audience", edit(func(c *auth.IssuerConfig) { c.Audiences = nil }), "Audiences"},
		{"empty audience", edit(func(c *auth.IssuerConfig) { c.Audiences = []string{""} }), "Audiences"},
		{"HS256", edit(func(c *auth.IssuerConfig) { c.Algorithms = []string{"RS256", "HS256"} }), "Algorithms"},
		{"none", edit(func(c *auth.IssuerConfig) { c.Algorithms = []string{"none"} }), "Algorithms"},
		{"profile", edit(func(c *auth.IssuerConfig) { c.Profile = "gitea" }), "Profile"},
		{"mapping for github", edit(func(c *auth.IssuerConfig) { c.Profile = "github"; c.Claims = map[string]string{"run": "x"} }), "Claims"},
		{"mapping of an unknown field", edit(func(c *auth.IssuerConfig) { c.Claims = map[string]string{"subject": "x"} }), "Claims"},
		{"mapping to nothing", edit(func(c *auth.IssuerConfig) { c.Claims = map[string]string{"run": ""} }), "Claims"},
		{"no CA file", edit(func(c *auth.IssuerConfig) { c.CAFile = "/does/not/exist" }), "CAFile"},
		{"CA file of something else", edit(func(c *auth.IssuerConfig) { c.CAFile = notPEM }), "CAFile"},
		{"spiffe without trust domain", edit(func(c *auth.IssuerConfig) { c.Profile = "spiffe" }), "TrustDomain"},
		{"trust domain in capitals", edit(func(c *auth.IssuerConfig) { c.Profile = "spiffe"; c.TrustDomain = "Prod" }), "TrustDomain"},
		{"trust domain elsewhere", edit(func(c *auth.IssuerConfig) { c.TrustDomain = "prod.test" }), "TrustDomain"},
		{"leeway of an hour", edit(func(c *auth.IssuerConfig) { c.Leeway = time.Hour }), "Leeway"},
	} {
		_, err := auth.New(t.Context(), auth.Config{Issuers: tt.issuers}, nil)
		var ce *auth.ConfigError
		if !errors.As(err, &ce) || ce.Field != tt.field {
			t.Errorf("%s: %v, want field %q", tt.name, err, tt.field)
		}
	}
	if v, err := auth.New(t.Context(), auth.Config{Issuers: []auth.IssuerConfig{ok}}, nil); err != nil {
		t.Error(err)
	} else {
		v.Close()
	}
}

func TestSession(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	now := time.Date(2026, 3, 1, 23, 59, 59, 0, time.UTC)
	id := func(url, sub, run string) *auth.Identity {
		return &auth.Identity{Principal: record.Principal{Issuer: "corp", URL: url, Subject: sub, TokenID: "t"}, Run: run}
	}
	base := auth.Session(key, id("https://i.test", "ada", "7"), now)
	// Frozen: replicas of two versions must agree, and labels on jobs name it.
	if want := "rmwwpgpdi7cc257sinhlz43htm6kzzlb2kh25jbgflzu6w4c6jlq"; base != want {
		t.Errorf("session %s, want %s", base, want)
	}
	if len(base) != 52 || strings.Trim(base, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		t.Errorf("session %q", base)
	}
	renewed := id("https://i.test", "ada", "7")
	renewed.Principal.TokenID, renewed.Principal.Issuer = "t2", "renamed"
	if auth.Session(key, renewed, now.Add(48*time.Hour)) != base {
		t.Error("a refreshed token is another session")
	}
	day := auth.Session(key, id("https://i.test", "ada", ""), now)
	if auth.Session(key, id("https://i.test", "ada", ""), now.Add(-23*time.Hour)) != day {
		t.Error("the same day is another session")
	}
	seen := map[string]string{base: "base", day: "day"}
	for name, s := range map[string]string{
		"next day":       auth.Session(key, id("https://i.test", "ada", ""), now.Add(time.Second)),
		"day as run":     auth.Session(key, id("https://i.test", "ada", "2026-03-01"), now),
		"issuer":         auth.Session(key, id("https://j.test", "ada", "7"), now),
		"subject":        auth.Session(key, id("https://i.test", "bob", "7"), now),
		"run":            auth.Session(key, id("https://i.test", "ada", "8"), now),
		"moved boundary": auth.Session(key, id("https://i.test", "ada7", ""), now),
		"moved":          auth.Session(key, id("https://i.testa", "da", "7"), now),
		"key":            auth.Session([]byte("another"), id("https://i.test", "ada", "7"), now),
	} {
		if s2, ok := seen[s]; ok {
			t.Errorf("%s and %s are one session", name, s2)
		}
		seen[s] = name
	}
}

func TestExplain(t *testing.T) {
	i := serve(t)
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}}, nil)
	print := func(token string) (string, auth.Explanation) {
		e := v.Explain(t.Context(), token)
		var b bytes.Buffer
		if n, err := e.WriteTo(&b); err != nil || n != int64(b.Len()) {
			t.Fatal(n, err)
		}
		return b.String(), e
	}
	out, e := print(mint(t, i, issuer.Analyst(audience), issuer.Options{}))
	if e.Err != nil || e.Identity == nil || !strings.Contains(out, "corp/analysts") || strings.Contains(out, "FAIL") {
		t.Errorf("a good token:\n%s", out)
	}
	for _, tt := range []struct {
		claims map[string]any
		o      issuer.Options
		failed string
		want   []string
	}{
		{map[string]any{"iss": "https://typo.test"}, issuer.Options{}, "issuer", []string{`"https://typo.test"`, i.URL()}},
		{map[string]any{"aud": []string{"x.test", "y.test"}}, issuer.Options{}, "audience", []string{`"x.test"`, audience}},
		{nil, issuer.Options{TTL: -time.Hour}, "time", []string{"expired", "ago"}},
		{map[string]any{"sub": nil}, issuer.Options{}, "identity", []string{"no claim sub"}},
		{map[string]any{"iss": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.secretsecret"}, issuer.Options{}, "issuer", []string{"not shown"}},
	} {
		out, e := print(mint(t, i, with(issuer.Analyst(audience), tt.claims), tt.o))
		failed := ""
		for _, s := range e.Steps {
			if !s.OK {
				failed = s.Name
			}
		}
		if failed != tt.failed || e.Err == nil || e.Identity != nil {
			t.Errorf("failed at %q, want %q:\n%s", failed, tt.failed, out)
		}
		for _, w := range tt.want {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in\n%s", w, out)
			}
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	i := serve(b)
	cfg := corp(i)
	v := newVerifier(b, auth.Config{Issuers: []auth.IssuerConfig{cfg}}, nil)
	for _, alg := range []string{"RS256", "ES256"} {
		token := mint(b, i, with(issuer.Pipeline(audience), map[string]any{"groups": []string{"a", "b"}}), issuer.Options{Alg: alg})
		b.Run(alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	hostile := forge(b, `{"alg":"RS256"}`, `{"iss":"`+strings.Repeat("x", 11<<10)+`"}`, func([]byte) []byte { return []byte("x") })
	b.Run("refused", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := v.Verify(b.Context(), hostile); err == nil {
				b.Fatal("passed")
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	s := serveStatic(f)
	v := s.verifier(f)
	sign := rs256(f, s.key)
	f.Add(`{"alg":"RS256","kid":"k1"}`, s.payload(""), false)
	f.Add(`{"alg":"RS256","kid":"k1"}`, s.payload(`,"groups":["a"],"act":{"sub":"b"}`), true)
	f.Add(`{"alg":"none"}`, s.payload(""), true)
	f.Add(`{"alg":"HS256"}`, s.payload(`,"sub":"x"`), true)
	f.Add(`{"alg":"RS256","typ":"dpop+jwt"}`, `{"iss":1}`, false)
	f.Add("\xff", "{}{}", false)
	f.Fuzz(func(t *testing.T, header, payload string, signed bool) {
		token := forge(t, header, payload, func(b []byte) []byte {
			if signed {
				return sign(b)
			}
			return []byte("no signature")
		})
		id, err := v.Verify(t.Context(), token)
		if (id == nil) == (err == nil) {
			t.Fatalf("%v and %v", id, err)
		}
		if err == nil {
			if !signed {
				t.Fatal("a token without a signature passed")
			}
			var c struct {
				Sub string `json:"sub"`
			}
			if json.Unmarshal([]byte(payload), &c) != nil || id.Principal.Subject == "" || id.Principal.URL != s.url {
				t.Fatalf("%+v from %q", id, payload)
			}
		}
		var e *auth.Error
		if err != nil && (!errors.As(err, &e) || e.Code == "" || e.Message == "") {
			t.Fatalf("%v is no usable *auth.Error", err)
		}
		// The raw bytes as they are, too.
		if _, err := v.Verify(t.Context(), header+payload); err == nil {
			t.Fatal("raw bytes passed")
		}
	})
}
