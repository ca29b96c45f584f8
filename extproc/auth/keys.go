package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	maxDocument = 1 << 20 // of a discovery document or key set, inflated
	maxKeys     = 100
	minRSA      = 2048 // bits; RFC 7518, section 3.3
	maxRSA      = 8192 // bits; above it a verification costs more than it is worth
	maxBackoff  = 30 * time.Second
)

type fetchConfig struct {
	timeout, refresh, lifetime, refetch time.Duration
	now                                 func() time.Time
	logger                              *slog.Logger
}

// keySet is the published keys of one issuer. go-oidc's own RemoteKeySet never
// drops a key that the issuer withdrew, asks the issuer for every bad signature, and
// does not tell a bad signature from an issuer that is down; this one does.
type keySet struct {
	id     string
	name   string // of the issuer, for messages
	issuer string
	jwks   string // configured; empty: by discovery
	svid   bool
	fetchConfig
	client *http.Client
	ctx    context.Context // ends at the last release
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the flight

	mu          sync.Mutex
	refs        int
	keys        []jose.JSONWebKey
	fetched     time.Time // of keys; zero: never
	lastUnknown time.Time // when a token made us ask for keys we did not have
	failures    int       // in a row
	retry       time.Time // not before, after a failure
	found       string    // the jwks_uri that discovery gave
	flight      *flight
}

// flight is one fetch, shared by all who wait for it. err is set before done closes.
type flight struct {
	done chan struct{}
	err  error
}

func newKeySet(ctx context.Context, id string, is *issuer, roots []byte, fetch fetchConfig) *keySet {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: fetch.timeout}).DialContext,
		TLSHandshakeTimeout:    fetch.timeout,
		ResponseHeaderTimeout:  fetch.timeout,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConns:           2,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if roots != nil {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		t.TLSClientConfig.RootCAs.AppendCertsFromPEM(roots)
	}
	k := &keySet{
		id: id, name: is.Name, issuer: is.URL, jwks: is.JWKSURL,
		svid: is.Profile == ProfileSPIFFE, fetchConfig: fetch, refs: 1,
		client: &http.Client{Transport: limited{t}, Timeout: fetch.timeout, CheckRedirect: sameHost},
	}
	// Fetches outlive the request that began them and the context of New; the last
	// release ends them.
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return k
}

func (k *keySet) retain() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refs == 0 {
		return false
	}
	k.refs++
	return true
}

func (k *keySet) release() {
	k.mu.Lock()
	k.refs--
	last := k.refs == 0
	k.mu.Unlock()
	if !last {
		return
	}
	k.cancel()
	k.wg.Wait()
	k.client.CloseIdleConnections()
}

type outcomeKey struct{}

// outcome carries the refusal past go-oidc, which flattens errors to text, and
// the key that verified.
type outcome struct {
	header header
	key    crypto.PublicKey
	err    *Error
}

// VerifySignature implements oidc.KeySet.
func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	o, ok := ctx.Value(outcomeKey{}).(*outcome)
	if !ok {
		return nil, errors.New("called outside of Verify")
	}
	payload, key, err := k.verify(ctx, token, o.header)
	if err != nil {
		o.err = err
		return nil, err
	}
	o.key = key
	return payload, nil
}

func (k *keySet) verify(ctx context.Context, token string, h header) ([]byte, crypto.PublicKey, *Error) {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(h.alg)})
	if err != nil {
		return nil, nil, refuse(TokenMalformed, "the token is no JWS in compact form")
	}
	try := func(keys []jose.JSONWebKey) ([]byte, crypto.PublicKey) {
		for n := range keys {
			if payload, err := jws.Verify(keys[n].Key); err == nil {
				return payload, keys[n].Key
			}
		}
		return nil, nil
	}
	keys, refusal := k.lookup(ctx, h)
	if refusal != nil {
		return nil, nil, refusal
	}
	if payload, key := try(keys); key != nil {
		return payload, key, nil
	}
	// An issuer may have put another key under the same id, or uses none.
	if keys = k.relookup(ctx, h); keys != nil {
		if payload, key := try(keys); key != nil {
			return payload, key, nil
		}
	}
	return nil, nil, refuse(SignatureInvalid, fmt.Sprintf("the token's signature is not one of issuer %q", k.name))
}

// lookup returns the keys that may have signed a token with this header, at least
// one.
func (k *keySet) lookup(ctx context.Context, h header) ([]jose.JSONWebKey, *Error) {
	k.mu.Lock()
	now := k.now()
	age := now.Sub(k.fetched)
	usable := !k.fetched.IsZero() && age < k.lifetime
	var wait *flight
	if usable {
		if age >= k.refresh && (k.flight != nil || !now.Before(k.retry)) {
			f := k.start(now)
			// After a pause the set may be old: a key withdrawn since must not pass.
			// While the issuer fails, nobody is held up for it.
			if age >= 2*k.refresh && k.failures == 0 {
				wait = f
			}
		}
		if wait == nil {
			keys, known := match(k.keys, h)
			if len(keys) > 0 {
				k.mu.Unlock()
				return keys, nil
			}
			if known {
				k.mu.Unlock()
				return nil, k.wrongAlgorithm()
			}
			if wait = k.flight; wait == nil && !now.Before(k.retry) && now.Sub(k.lastUnknown) >= k.refetch {
				k.lastUnknown = now
				wait = k.start(now)
			}
		}
	} else if wait = k.flight; wait == nil && !now.Before(k.retry) {
		wait = k.start(now)
	}
	failing := k.failures > 0
	k.mu.Unlock()

	if wait != nil {
		if err := k.await(ctx, wait); err != nil {
			failing = true
			if ctx.Err() != nil {
				return nil, k.unavailable()
			}
		} else {
			failing = false
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fetched.IsZero() || k.now().Sub(k.fetched) >= k.lifetime {
		return nil, k.unavailable()
	}
	keys, known := match(k.keys, h)
	switch {
	case len(keys) > 0:
		return keys, nil
	case known:
		return nil, k.wrongAlgorithm()
	case failing:
		// The key may be a new one that cannot be fetched now.
		return nil, k.unavailable()
	}
	return nil, refuse(KeyUnknown, fmt.Sprintf("the token's key is not one that issuer %q publishes", k.name))
}

// relookup fetches the set again, at the rate of unknown keys, and returns its keys
// for h, or nil where there was no fetch.
func (k *keySet) relookup(ctx context.Context, h header) []jose.JSONWebKey {
	k.mu.Lock()
	now := k.now()
	if k.flight == nil && (now.Before(k.retry) || now.Sub(k.lastUnknown) < k.refetch) {
		k.mu.Unlock()
		return nil
	}
	k.lastUnknown = now
	f := k.start(now)
	k.mu.Unlock()
	if k.await(ctx, f) != nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	keys, _ := match(k.keys, h)
	return keys
}

func (k *keySet) unavailable() *Error {
	return &Error{Code: IssuerUnavailable, Unavailable: true,
		Message: fmt.Sprintf("the keys of issuer %q cannot be fetched now; try again later", k.name)}
}

func (k *keySet) wrongAlgorithm() *Error {
	return refuse(AlgorithmRefused, fmt.Sprintf("the token's algorithm does not fit the key of issuer %q that it names", k.name))
}

func (k *keySet) await(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start returns the flight under way, or begins one. Held: mu.
func (k *keySet) start(now time.Time) *flight {
	if k.flight != nil {
		return k.flight
	}
	f := &flight{done: make(chan struct{})}
	if k.refs == 0 {
		f.err = errors.New("closed")
		close(f.done)
		return f
	}
	k.flight = f
	jwks := k.jwks
	if jwks == "" {
		jwks = k.found
	}
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		ctx, cancel := context.WithTimeout(k.ctx, k.timeout)
		defer cancel()
		keys, found, err := k.fetch(ctx, jwks)
		k.mu.Lock()
		defer k.mu.Unlock()
		if err != nil {
			f.err = err
			k.failures++
			k.found = "" // the issuer may have moved its keys
			backoff := min(time.Second<<min(k.failures-1, 10), maxBackoff)
			k.retry = k.now().Add(backoff)
			if k.ctx.Err() == nil {
				k.logger.Warn("issuer's keys not fetched", "issuer", k.name, "error", clip(err.Error()), "retry_in", backoff, "have_keys", !k.fetched.IsZero())
			}
		} else {
			k.keys, k.found, k.fetched, k.failures, k.retry = keys, found, now, 0, time.Time{}
			k.logger.Debug("issuer's keys fetched", "issuer", k.name, "keys", len(keys))
		}
		k.flight = nil
		close(f.done)
	}()
	return f
}

// fetch returns the keys at jwks, or where discovery says.
func (k *keySet) fetch(ctx context.Context, jwks string) ([]jose.JSONWebKey, string, error) {
	if jwks == "" {
		p, err := oidc.NewProvider(oidc.ClientContext(ctx, k.client), k.issuer)
		if err != nil {
			return nil, "", fmt.Errorf("discovery: %w", err)
		}
		var doc struct {
			JWKS string `json:"jwks_uri"`
		}
		if err := p.Claims(&doc); err != nil {
			return nil, "", fmt.Errorf("discovery: %w", err)
		}
		if err := checkURL(doc.JWKS); err != nil {
			return nil, "", fmt.Errorf("discovery: jwks_uri: %w", err)
		}
		if strings.HasPrefix(k.issuer, "https:") && !strings.HasPrefix(doc.JWKS, "https:") {
			return nil, "", errors.New("discovery: jwks_uri: http, while the issuer has https")
		}
		jwks = doc.JWKS
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, jwks, nil)
	if err != nil {
		return nil, "", fmt.Errorf("key set: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	req.Header.Set("Cache-Control", "no-cache")
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("key set: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("key set: status %d", resp.StatusCode)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, "", fmt.Errorf("key set: %w", err)
	}
	keys, err := parseKeySet(b, k.svid)
	if err != nil {
		return nil, "", err
	}
	return keys, jwks, nil
}

// parseKeySet returns the usable keys of a set: public, asymmetric, strong enough and
// for signatures. It leaves others out (RFC 7517, section 5), for an issuer may
// publish kinds that we do not know. A set with none left is an error: it would
// turn every token into one with an unknown key.
func parseKeySet(b []byte, svid bool) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("key set: no JSON object with a list of keys")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("key set: %d keys, want at most %d", len(set.Keys), maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) != nil || !k.Valid() || !k.IsPublic() {
			continue
		}
		if k.Use != "" && k.Use != "sig" && !(svid && k.Use == "jwt-svid") {
			continue
		}
		switch p := k.Key.(type) {
		case *rsa.PublicKey:
			if n := p.N.BitLen(); n < minRSA || n > maxRSA {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("key set: no usable key in it")
	}
	return keys, nil
}

// match returns the keys that fit h, and whether its key id is known at all.
func match(keys []jose.JSONWebKey, h header) (fit []jose.JSONWebKey, known bool) {
	for _, k := range keys {
		if h.kid != "" && k.KeyID != h.kid {
			continue
		}
		known = known || h.kid != ""
		if (k.Algorithm == "" || k.Algorithm == h.alg) && fits(k.Key, h.alg) {
			fit = append(fit, k)
		}
	}
	return fit, known
}

func fits(key any, alg string) bool {
	switch p := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		switch alg {
		case oidc.ES256:
			return p.Params().BitSize == 256
		case oidc.ES384:
			return p.Params().BitSize == 384
		case oidc.ES512:
			return p.Params().BitSize == 521
		}
	case ed25519.PublicKey:
		return alg == oidc.EdDSA
	}
	return false
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// sameHost lets an issuer redirect within its own host only: trust was given to
// that host.
func sameHost(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) >= 3:
		return errors.New("more than 3 redirects")
	case !strings.EqualFold(origin(req.URL), origin(first)):
		return errors.New("redirect to another host or scheme")
	}
	return nil
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// limited ends response bodies at maxDocument with an error, after inflation.
type limited struct{ next *http.Transport }

func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(req)
	if err == nil {
		resp.Body = &limitedBody{ReadCloser: resp.Body, left: maxDocument}
	}
	return resp, err
}

// CloseIdleConnections makes http.Client's reach the transport.
func (l limited) CloseIdleConnections() { l.next.CloseIdleConnections() }

type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if n > b.left {
		return 0, fmt.Errorf("answer larger than %d bytes", maxDocument)
	}
	b.left -= n
	return n, err
}

// clip bounds a text that an issuer had a part in.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
