package issuer_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"verbatim.dev/deploy/local/issuer"
)

const audience = "https://gateway.test"

func verify(t *testing.T, i *issuer.Issuer, token string) error {
	t.Helper()
	p, err := oidc.NewProvider(t.Context(), i.URL())
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Verifier(&oidc.Config{ClientID: audience}).Verify(t.Context(), token)
	return err
}

func listen(t *testing.T, addr, dir string) *issuer.Server {
	t.Helper()
	s, err := issuer.Listen(addr, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func TestCallersVerifyWithAStockClient(t *testing.T) {
	s := listen(t, "127.0.0.1:0", "")
	for _, c := range issuer.Callers(audience) {
		for _, alg := range []string{"RS256", "ES256"} {
			i := s.Issuer(c.Issuer)
			token, err := i.Mint(c.Claims, issuer.Options{Alg: alg})
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(t, i, token); err != nil {
				t.Errorf("%s, %s: %v", c.Name, alg, err)
			}
		}
	}
	expired, err := s.Mint(issuer.Callers(audience)[0], -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, s.Issuer(issuer.CI), expired); err == nil {
		t.Error("a token with a negative TTL passed")
	}
}

func TestIssuersDoNotShareKeys(t *testing.T) {
	s := listen(t, "127.0.0.1:0", "")
	token, err := s.Issuer(issuer.Corp).Mint(map[string]any{"aud": audience, "sub": "x", "iss": s.Issuer(issuer.CI).URL()}, issuer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, s.Issuer(issuer.CI), token); err == nil {
		t.Error("one issuer's key signs for another")
	}
}

func TestRestartKeepsTokensValid(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "issuer")
	s, err := issuer.Listen("127.0.0.1:0", dir)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Issuer(issuer.Corp).Mint(issuer.Analyst(audience), issuer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(s.URL(), "http://")
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = listen(t, addr, dir)
	if err := verify(t, s.Issuer(issuer.Corp), token); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	name := filepath.Join(dir, issuer.Corp, "keys.json")
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the keys: %v", fi.Mode())
	}
	if err := os.WriteFile(name, []byte(`{"keys":[{"kty":"oct","k":"AAAA","kid":"x","alg":"RS256"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.New(issuer.Config{URL: s.URL(), Dir: filepath.Dir(name)}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a broken key file: %v", err)
	}
}

func TestRotateAndRetire(t *testing.T) {
	s := listen(t, "127.0.0.1:0", "")
	i := s.Issuer(issuer.Corp)
	_, oldID, _ := i.PublicKey("RS256")
	old, err := i.Mint(issuer.Analyst(audience), issuer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Rotate(); err != nil {
		t.Fatal(err)
	}
	if _, id, _ := i.PublicKey("RS256"); id == oldID {
		t.Error("the key is the old one")
	}
	if err := verify(t, i, old); err != nil {
		t.Errorf("rotation ended an older token: %v", err)
	}
	byID, err := i.Mint(issuer.Analyst(audience), issuer.Options{KeyID: oldID})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Retire(); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{old, byID} {
		if err := verify(t, i, token); err == nil {
			t.Error("a retired key still verifies")
		}
	}
	if _, err := i.Mint(nil, issuer.Options{KeyID: oldID}); err == nil {
		t.Error("signed with a retired key")
	}
}

func TestDownAndSlow(t *testing.T) {
	i, err := issuer.New(issuer.Config{URL: "http://issuer.test"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(i)
	defer srv.Close()
	get := func(ctx context.Context) (int, error) {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/keys", nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	i.SetDown(true)
	if code, err := get(t.Context()); err != nil || code != 503 {
		t.Errorf("down: %d, %v", code, err)
	}
	i.SetDown(false)
	i.SetSlow(time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := get(ctx); err == nil {
		t.Error("slow: answered at once")
	}
	i.SetSlow(0)
	if code, err := get(t.Context()); err != nil || code != 200 {
		t.Errorf("up again: %d, %v", code, err)
	}
	if _, n := i.Requests(); n != 3 {
		t.Errorf("%d requests counted, want 3", n)
	}
}

func TestKeySetIsPublic(t *testing.T) {
	i, err := issuer.New(issuer.Config{URL: "http://issuer.test/a"})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	i.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/a/keys", nil))
	var set struct{ Keys []map[string]any }
	if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil || len(set.Keys) != 2 {
		t.Fatalf("%s: %v", w.Body, err)
	}
	for _, k := range set.Keys {
		for _, secret := range []string{"d", "p", "q", "dp", "dq", "qi", "k"} {
			if _, ok := k[secret]; ok {
				t.Errorf("the key set publishes %q", secret)
			}
		}
	}
}

func TestListenRefusesOtherThanLoopback(t *testing.T) {
	if s, err := issuer.Listen("0.0.0.0:0", ""); err == nil {
		s.Close(t.Context())
		t.Error("listens on every address")
	}
}
