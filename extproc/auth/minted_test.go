package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/extproc/auth"
)

const gatewayIssuer = "https://gateway.test"

// ecKey writes a new EC key and returns it with its file.
func ecKey(t testing.TB, curve elliptic.Curve) (string, *ecdsa.PrivateKey) {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "PRIVATE KEY", b), k
}

func writePEM(t testing.TB, kind string, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func newTokens(t testing.TB, c auth.TokensConfig) *auth.Tokens {
	t.Helper()
	if c.Issuer == "" {
		c.Issuer = gatewayIssuer
	}
	tokens, err := auth.NewTokens(c)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func TestMintedTokenHoldsTheSubjectsIdentity(t *testing.T) {
	i, now := serve(t), &clock{}
	file, _ := ecKey(t, elliptic.P256())
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Now: now.now, Tokens: newTokens(t, auth.TokensConfig{SigningKey: file, Now: now.now})}, nil)
	own := mint(t, i, map[string]any{"sub": "ada", "aud": audience, "jti": "t-1", "groups": []string{"x", "y"}}, issuer.Options{TTL: 20 * time.Minute})
	subject, err := v.Verify(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	token, minted, err := v.Mint(subject)
	if err != nil {
		t.Fatal(err)
	}
	if minted.Expires.After(subject.Expires) {
		t.Errorf("the token ends at %v, after the subject token, %v", minted.Expires, subject.Expires)
	}
	for range 2 { // verified, and remembered
		got, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, minted) {
			t.Errorf("got %+v, want %+v", got, minted)
		}
		if got.MintedBy != gatewayIssuer || got.Principal.GatewayToken == "" || got.Principal.TokenID != "t-1" {
			t.Errorf("token ids %+v", got)
		}
		p := got.Principal
		p.GatewayToken = ""
		if !reflect.DeepEqual(p, subject.Principal) || got.Provenance != subject.Provenance || got.Run != subject.Run {
			t.Errorf("identity %+v, want %+v", got, subject)
		}
		if auth.Session([]byte("k"), got, time.Unix(0, 0)) != auth.Session([]byte("k"), subject, time.Unix(0, 0)) {
			t.Error("another session than the subject token's")
		}
	}
	_, _, err = v.Mint(minted)
	wantCode(t, err, auth.TokenNotExchanged)

	now.advance(20*time.Minute + time.Second)
	_, err = v.Verify(t.Context(), token)
	wantCode(t, err, auth.TokenExpired)
	_, _, err = v.Mint(subject)
	wantCode(t, err, auth.TokenExpired)
}

func TestMintedTokenEndsWithItsLifetime(t *testing.T) {
	i := serve(t)
	file, _ := ecKey(t, elliptic.P256())
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: file, Lifetime: 5 * time.Minute})}, nil)
	id, err := v.Verify(t.Context(), mint(t, i, map[string]any{"sub": "ada", "aud": audience}, issuer.Options{TTL: 10 * time.Hour}))
	if err != nil {
		t.Fatal(err)
	}
	_, minted, err := v.Mint(id)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(minted.Expires); left > 5*time.Minute || left < 4*time.Minute {
		t.Errorf("lives for %v", left)
	}
}

func TestMintedTokensRefused(t *testing.T) {
	i := serve(t)
	file, key := ecKey(t, elliptic.P256())
	strangerFile, stranger := ecKey(t, elliptic.P256())
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: file})}, nil)
	id, err := v.Verify(t.Context(), mint(t, i, map[string]any{"sub": "ada", "aud": audience}, issuer.Options{TTL: time.Hour}))
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := v.Mint(id)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	kid := func() string {
		h, _ := base64.RawURLEncoding.DecodeString(parts[0])
		var m map[string]string
		_ = json.Unmarshal(h, &m)
		return m["kid"]
	}()
	sign := func(k *ecdsa.PrivateKey, kid, typ string, change func(map[string]any)) string {
		c := maps.Clone(claims)
		change(c)
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k, KeyID: kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
		if err != nil {
			t.Fatal(err)
		}
		signed, err := s.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		out, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	same := func(map[string]any) {}
	for _, c := range []struct {
		name, token string
		code        auth.Code
	}{
		{"a stranger's key under our id", sign(stranger, kid, auth.TokenType, same), auth.SignatureInvalid},
		{"a stranger's key", sign(stranger, "x", auth.TokenType, same), auth.KeyUnknown},
		{"no key id", sign(key, "", auth.TokenType, same), auth.KeyUnknown},
		{"our key, another type", sign(key, kid, "JWT", same), auth.IssuerUnknown},
		{"another gateway's", sign(key, kid, auth.TokenType, func(m map[string]any) { m["iss"] = "https://other.test" }), auth.AudienceMismatch},
		{"another audience", sign(key, kid, auth.TokenType, func(m map[string]any) { m["aud"] = "https://other.test" }), auth.AudienceMismatch},
		{"a claim that is not known", sign(key, kid, auth.TokenType, func(m map[string]any) { m["more"] = 1 }), auth.TokenMalformed},
		{"no identity", sign(key, kid, auth.TokenType, func(m map[string]any) { delete(m, "verbatim") }), auth.TokenMalformed},
		{"no end", sign(key, kid, auth.TokenType, func(m map[string]any) { delete(m, "exp") }), auth.TokenMalformed},
		{"no id", sign(key, kid, auth.TokenType, func(m map[string]any) { delete(m, "jti") }), auth.TokenMalformed},
		{"ended", sign(key, kid, auth.TokenType, func(m map[string]any) { m["exp"] = time.Now().Add(-time.Second).Unix() }), auth.TokenExpired},
		{"from the future", sign(key, kid, auth.TokenType, func(m map[string]any) { m["iat"] = time.Now().Add(time.Hour).Unix() }), auth.TokenNotYetValid},
		{"cut", token[:len(token)-2], auth.SignatureInvalid},
		{"no signature", parts[0] + "." + parts[1] + ".", auth.SignatureInvalid},
		{"two parts", parts[0] + "." + parts[1], auth.TokenMalformed},
	} {
		_, err := v.Verify(t.Context(), c.token)
		var e *auth.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if e.Code != c.code && !(c.name == "cut" && e.Code == auth.TokenMalformed) {
			t.Errorf("%s: %s, want %s", c.name, e, c.code)
		}
		if strings.Contains(e.Message, "ada") || strings.Contains(e.Message, parts[1][:20]) {
			t.Errorf("%s: the error quotes the token: %s", c.name, e.Message)
		}
	}

	// An issuer that is gone, or has another name, vouches for nobody any more.
	renamed := corp(i)
	renamed.Name = "other"
	w := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{renamed}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: file})}, nil)
	_, err = w.Verify(t.Context(), token)
	wantCode(t, err, auth.IssuerUnknown)

	// Without the endpoint its tokens are nobody's.
	w = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}}, nil)
	_, err = w.Verify(t.Context(), token)
	wantCode(t, err, auth.TokenTypeRefused)

	// Rotation: the new key signs, the old one is accepted until it is taken out.
	w = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: strangerFile, AcceptedKeys: []string{file}})}, nil)
	if _, err := w.Verify(t.Context(), token); err != nil {
		t.Errorf("the key before: %v", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	w = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: strangerFile, AcceptedKeys: []string{writePEM(t, "PUBLIC KEY", public)}})}, nil)
	if _, err := w.Verify(t.Context(), token); err != nil {
		t.Errorf("the key before, its public half: %v", err)
	}
	w = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: strangerFile})}, nil)
	_, err = w.Verify(t.Context(), token)
	wantCode(t, err, auth.KeyUnknown)
}

// Revoked by the subject token's id, the gateway token's own, or the subject.
func TestMintedTokensAreRevoked(t *testing.T) {
	i := serve(t)
	file, _ := ecKey(t, elliptic.P256())
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{SigningKey: file})}, nil)
	id, err := v.Verify(t.Context(), mint(t, i, map[string]any{"sub": "ada", "aud": audience, "jti": "t-1"}, issuer.Options{TTL: time.Hour}))
	if err != nil {
		t.Fatal(err)
	}
	_, minted, err := v.Mint(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		list         string
		subject, own bool
	}{
		{"tokens: [{issuer: corp, id: t-1}]", true, true},
		{"subjects: [{issuer: corp, subject: ada}]", true, true},
		{"tokens: [{issuer: '" + gatewayIssuer + "', id: '" + minted.Principal.GatewayToken + "'}]", false, true},
		{"tokens: [{issuer: corp, id: t-2}]", false, false},
	} {
		name := filepath.Join(t.TempDir(), "revocations.yaml")
		if err := os.WriteFile(name, []byte(c.list), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := auth.LoadRevocations(name)
		if err == nil {
			list, err = list.For(v)
		}
		if err != nil {
			t.Fatalf("%s: %v", c.list, err)
		}
		if _, ok := list.Revoked(id); ok != c.subject {
			t.Errorf("%s: the subject token is revoked: %v", c.list, ok)
		}
		if _, ok := list.Revoked(minted); ok != c.own {
			t.Errorf("%s: the gateway token is revoked: %v", c.list, ok)
		}
	}
}

func TestTokensConfig(t *testing.T) {
	good, _ := ecKey(t, elliptic.P256())
	other, _ := ecKey(t, elliptic.P384())
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("canary-key-text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		cfg        auth.TokensConfig
	}{
		{"no issuer", "issuer", auth.TokensConfig{SigningKey: good}},
		{"http", "https", auth.TokensConfig{Issuer: "http://gateway.test", SigningKey: good}},
		{"no key", "signing_key", auth.TokensConfig{Issuer: gatewayIssuer}},
		{"another curve", "P-256", auth.TokensConfig{Issuer: gatewayIssuer, SigningKey: other}},
		{"no PEM", "openssl", auth.TokensConfig{Issuer: gatewayIssuer, SigningKey: text}},
		{"accepted key", "accepted_keys", auth.TokensConfig{Issuer: gatewayIssuer, SigningKey: good, AcceptedKeys: []string{text}}},
		{"short", "lifetime", auth.TokensConfig{Issuer: gatewayIssuer, SigningKey: good, Lifetime: time.Second}},
		{"long", "lifetime", auth.TokensConfig{Issuer: gatewayIssuer, SigningKey: good, Lifetime: 24 * time.Hour}},
	} {
		_, err := auth.NewTokens(c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
	i := serve(t)
	_, err := auth.New(t.Context(), auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Tokens: newTokens(t, auth.TokensConfig{Issuer: i.URL(), SigningKey: good})}, nil)
	var e *auth.ConfigError
	if !errors.As(err, &e) || e.Field != "URL" {
		t.Errorf("the callers' issuer as the gateway's: %v", err)
	}
}
