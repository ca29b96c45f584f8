package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"verbatim.dev/deploy/local/issuer"
)

// TestSignIn plays a browser and an issuer with the code flow: the token is
// the one for this sign-in, or there is none.
func TestSignIn(t *testing.T) {
	for name, test := range map[string]struct {
		nonce, state string // instead of the right ones
		audience     string
		refuse       bool
		want         string
	}{
		"good":          {audience: "recorder"},
		"replayed":      {audience: "recorder", nonce: "another", want: "not the answer to this sign-in"},
		"other client":  {audience: "other", want: "not valid for this client"},
		"refused":       {audience: "recorder", refuse: true, want: "access_denied"},
		"forged answer": {audience: "recorder", state: "forged"},
	} {
		t.Run(name, func(t *testing.T) {
			var is *issuer.Issuer
			var mu sync.Mutex
			var asked url.Values
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/.well-known/openid-configuration":
					json.NewEncoder(w).Encode(map[string]any{
						"issuer": is.URL(), "jwks_uri": is.JWKSURL(), "authorization_endpoint": is.URL() + "/authorize", "token_endpoint": is.URL() + "/token",
						"id_token_signing_alg_values_supported": []string{"RS256"},
					})
				case "/token":
					mu.Lock()
					q := asked
					mu.Unlock()
					sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
					if r.FormValue("code") != "the-code" || base64.RawURLEncoding.EncodeToString(sum[:]) != q.Get("code_challenge") || q.Get("code_challenge_method") != "S256" {
						http.Error(w, `{"error":"invalid_grant"}`, 400)
						return
					}
					nonce := q.Get("nonce")
					if test.nonce != "" {
						nonce = test.nonce
					}
					token, err := is.Mint(map[string]any{"sub": "ada", "aud": test.audience, "nonce": nonce}, issuer.Options{})
					if err != nil {
						t.Error(err)
					}
					w.Header().Set("Content-Type", "application/json")
					json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": token})
				default:
					is.ServeHTTP(w, r)
				}
			}))
			defer server.Close()
			var err error
			if is, err = issuer.New(issuer.Config{URL: server.URL}); err != nil {
				t.Fatal(err)
			}
			printed, screen := io.Pipe()
			go func() { // the browser
				var b bytes.Buffer
				buf := make([]byte, 4096)
				for !strings.Contains(b.String(), "\n\n  http") || !strings.HasSuffix(b.String(), "\n\n") {
					n, err := printed.Read(buf)
					if err != nil {
						return
					}
					b.Write(buf[:n])
				}
				u, err := url.Parse(regexp.MustCompile(`http://\S+/authorize\S+`).FindString(b.String()))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				asked = u.Query()
				mu.Unlock()
				back := u.Query().Get("redirect_uri")
				get := func(q url.Values, want int) {
					res, err := http.Get(back + "?" + q.Encode())
					if err != nil {
						t.Error(err)
						return
					}
					res.Body.Close()
					if res.StatusCode != want {
						t.Errorf("the callback answers %d, want %d", res.StatusCode, want)
					}
				}
				state := u.Query().Get("state")
				if test.state != "" { // somebody else's page sends a code of theirs
					get(url.Values{"code": {"evil"}, "state": {test.state}}, 400)
				}
				if test.refuse {
					get(url.Values{"error": {"access_denied"}, "state": {state}}, 200)
					return
				}
				get(url.Values{"code": {"the-code"}, "state": {state}}, 200)
			}()
			token, err := signIn{issuer: server.URL, client: "recorder", scopes: "openid"}.run(t.Context(), screen)
			screen.Close()
			if test.want == "" {
				if err != nil || strings.Count(token, ".") != 2 {
					t.Fatalf("token %q, %v", token, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || token != "" {
				t.Errorf("got %q, %v, want %q", token, err, test.want)
			}
		})
	}
}
