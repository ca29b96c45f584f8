package auth_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/extproc/auth"
)

// A token that was verified before passes or fails as if it came for the first
// time.
func TestRememberedTokens(t *testing.T) {
	i := serve(t)
	var c clock
	cfg := auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Now: c.now}
	v := newVerifier(t, cfg, nil)
	token := mint(t, i, issuer.Analyst(audience), issuer.Options{TTL: time.Hour})
	first, err := v.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	first.Principal.Subject, first.Run = "somebody else", "another run" // the caller's own copy
	again, err := v.Verify(t.Context(), token)
	if err != nil || again == first || again.Principal.Subject == first.Principal.Subject || again.Run == first.Run {
		t.Errorf("remembered as %+v, %v", again, err)
	}
	last := token[len(token)-1:]
	for _, b := range []string{"A", "Q", "g"} { // the last two bits of a 256-byte signature are free, so one of these differs
		if b == last {
			continue
		}
		if _, err := v.Verify(t.Context(), token[:len(token)-1]+b); err == nil {
			t.Error("a token with another signature passed as the one that is remembered")
		}
	}
	// Another audience is another configuration: nothing is taken over.
	narrow := corp(i)
	narrow.Audiences = []string{"other"}
	_, err = newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{narrow}, Now: c.now}, v).Verify(t.Context(), token)
	wantCode(t, err, auth.AudienceMismatch)

	c.advance(time.Hour + auth.DefaultLeeway - 10*time.Second)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("within its time and the leeway: %v", err)
	}
	c.advance(10 * time.Second)
	_, err = v.Verify(t.Context(), token)
	wantCode(t, err, auth.TokenExpired)
	c.advance(-2 * time.Hour)
	_, err = v.Verify(t.Context(), token)
	wantCode(t, err, auth.TokenNotYetValid)
}

// The same key under another id, or another key under the same id, is another
// answer.
func TestRememberedTokensAreBoundToTheirKey(t *testing.T) {
	i := serve(t)
	var c clock
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}, Now: c.now}, nil)
	for _, alg := range []string{"RS256", "ES256"} {
		token := mint(t, i, issuer.Analyst(audience), issuer.Options{Alg: alg, TTL: 10 * time.Hour})
		for range 2 {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		if err := i.Rotate(); err != nil {
			t.Fatal(err)
		}
		if err := i.Retire(); err != nil {
			t.Fatal(err)
		}
		c.advance(11 * time.Minute) // the key set is fetched again
		_, err := v.Verify(t.Context(), token)
		wantCode(t, err, auth.KeyUnknown)
	}
}

// Memory is bounded, and what is in use survives a flood.
func TestManyTokens(t *testing.T) {
	if testing.Short() {
		t.Skip("signs thousands of tokens")
	}
	i := serve(t)
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{corp(i)}}, nil)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 1500 {
				claims := with(issuer.Analyst(audience), map[string]any{"sub": fmt.Sprint(w, n)})
				token, err := i.Mint(claims, issuer.Options{Alg: "ES256"})
				if err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					id, err := v.Verify(t.Context(), token)
					if err != nil || id.Principal.Subject != claims["sub"] || !slices.Contains(id.Principal.Groups, "corp/analysts") {
						t.Errorf("%+v, %v", id, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if young, old := v.Remembered(); young+old > 2*auth.MaxProofs || young == 0 || old != auth.MaxProofs {
		t.Errorf("%d and %d tokens are remembered", young, old)
	}
}
