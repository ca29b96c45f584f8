// Package issuer is a small OpenID Connect issuer for tests and for the local
// stack: discovery, a key set, and tokens with any claims for whoever holds the
// process. It has no login and must never be trusted outside the machine it
// runs on.
package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// DefaultTTL is how long a token lives where Options.TTL is zero.
const DefaultTTL = time.Hour

const keyFile = "keys.json"

// Config is what New needs.
type Config struct {
	// URL is the iss of the tokens, without a trailing slash. Its path is the prefix
	// of the handler's paths.
	URL string
	// Dir keeps the keys, so that a restart leaves tokens valid; empty: in memory.
	Dir string
	Now func() time.Time // default time.Now
}

// Options of a token.
type Options struct {
	Alg    string         // RS256 (the default) or ES256
	KeyID  string         // one of the published keys; empty: the newest for Alg
	TTL    time.Duration  // from now to exp; zero: DefaultTTL; negative: expired already
	Header map[string]any // more header members, or other values for alg's companions (typ, kid)
}

// Issuer is an OpenID Connect issuer. It is safe for concurrent use.
type Issuer struct {
	url, prefix, dir string
	now              func() time.Time

	mu   sync.Mutex
	keys []key // oldest first

	down      atomic.Bool
	slow      atomic.Int64
	discovery atomic.Int64
	jwks      atomic.Int64
}

type key struct {
	alg     string
	id      string
	private crypto.Signer
}

// New loads the keys of Config.Dir, or makes the first ones.
func New(cfg Config) (*Issuer, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme == "" || u.Host == "" || strings.HasSuffix(cfg.URL, "/") {
		return nil, fmt.Errorf("issuer URL %q: want scheme://host[/path] without a trailing slash", cfg.URL)
	}
	i := &Issuer{url: cfg.URL, prefix: u.Path, dir: cfg.Dir, now: cfg.Now}
	if i.now == nil {
		i.now = time.Now
	}
	if err := i.load(); err != nil {
		return nil, err
	}
	if len(i.keys) == 0 {
		if err := i.Rotate(); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// URL is the issuer's iss.
func (i *Issuer) URL() string { return i.url }

// JWKSURL is where the key set is.
func (i *Issuer) JWKSURL() string { return i.url + "/keys" }

// SetDown makes every request fail with 503 until it is called with false.
func (i *Issuer) SetDown(down bool) { i.down.Store(down) }

// SetSlow delays every answer; zero ends it.
func (i *Issuer) SetSlow(d time.Duration) { i.slow.Store(int64(d)) }

// Requests says how often discovery and the key set were asked for, failures included.
func (i *Issuer) Requests() (discovery, jwks int) {
	return int(i.discovery.Load()), int(i.jwks.Load())
}

// Rotate makes new keys and signs with these from now on. The older ones stay
// published until Retire.
func (i *Issuer) Rotate() error {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make an RSA key: %w", err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make an EC key: %w", err)
	}
	var made []key
	for _, k := range []key{{alg: "RS256", private: r}, {alg: "ES256", private: e}} {
		if k.id, err = keyID(k.private); err != nil {
			return err
		}
		made = append(made, k)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	next := append(append([]key(nil), i.keys...), made...)
	if err := i.save(next); err != nil {
		return err
	}
	i.keys = next
	return nil
}

// Retire withdraws all keys but the newest of each algorithm: tokens signed with
// them are not valid any more.
func (i *Issuer) Retire() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	newest := map[string]int{}
	for n, k := range i.keys {
		newest[k.alg] = n
	}
	var next []key
	for n, k := range i.keys {
		if newest[k.alg] == n {
			next = append(next, k)
		}
	}
	if err := i.save(next); err != nil {
		return err
	}
	i.keys = next
	return nil
}

// PublicKey returns the newest public key for alg and its id.
func (i *Issuer) PublicKey(alg string) (crypto.PublicKey, string, error) {
	k, err := i.find(alg, "")
	if err != nil {
		return nil, "", err
	}
	return k.private.Public(), k.id, nil
}

func (i *Issuer) find(alg, id string) (key, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := len(i.keys) - 1; n >= 0; n-- {
		if k := i.keys[n]; k.alg == alg && (id == "" || k.id == id) {
			return k, nil
		}
	}
	if id != "" {
		return key{}, fmt.Errorf("no %s key with id %q", alg, id)
	}
	return key{}, fmt.Errorf("no key for algorithm %q: want RS256 or ES256", alg)
}

// Mint signs a token. iss, iat, nbf, exp and jti are filled in where claims has
// none; a claim whose value is nil is left out.
func (i *Issuer) Mint(claims map[string]any, o Options) (string, error) {
	if o.Alg == "" {
		o.Alg = "RS256"
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	k, err := i.find(o.Alg, o.KeyID)
	if err != nil {
		return "", err
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", fmt.Errorf("make a token id: %w", err)
	}
	now := i.now()
	all := map[string]any{
		"iss": i.url,
		"iat": now.Unix(),
		"nbf": now.Unix(),
		"exp": now.Add(o.TTL).Unix(),
		"jti": hex.EncodeToString(id[:]),
	}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		return "", fmt.Errorf("encode the claims: %w", err)
	}
	so := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", k.id)
	for name, v := range o.Header {
		so = so.WithHeader(jose.HeaderKey(name), v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(k.alg), Key: k.private}, so)
	if err != nil {
		return "", fmt.Errorf("make a signer: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return jws.CompactSerialize()
}

// ServeHTTP answers discovery (OpenID Connect Discovery 1.0, section 4) and the key set.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, i.prefix)
	if !ok || (path != "/.well-known/openid-configuration" && path != "/keys") {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if path == "/keys" {
		i.jwks.Add(1)
	} else {
		i.discovery.Add(1)
	}
	if d := time.Duration(i.slow.Load()); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	if i.down.Load() {
		http.Error(w, "the issuer is down", http.StatusServiceUnavailable)
		return
	}
	var body any
	if path == "/keys" {
		body = i.keySet()
	} else {
		body = map[string]any{
			"issuer":                                i.url,
			"jwks_uri":                              i.JWKSURL(),
			"response_types_supported":              []string{"id_token"},
			"subject_types_supported":               []string{"public"},
			"id_token_signing_alg_values_supported": []string{"RS256", "ES256"},
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	// An error here is the client gone.
	_ = json.NewEncoder(w).Encode(body)
}

func (i *Issuer) keySet() jose.JSONWebKeySet {
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: k.alg, Use: "sig"})
	}
	return set
}

// keyID is the key's RFC 7638 thumbprint.
func keyID(k crypto.Signer) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: k.Public()}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

func (i *Issuer) load() error {
	if i.dir == "" {
		return nil
	}
	name := filepath.Join(i.dir, keyFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the issuer's keys: %w", err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(b, &set); err != nil {
		return fmt.Errorf("%s: not a key set; remove it to start with new keys", name)
	}
	for n, k := range set.Keys {
		s, ok := k.Key.(crypto.Signer)
		if !ok || k.KeyID == "" || (k.Algorithm != "RS256" && k.Algorithm != "ES256") {
			return fmt.Errorf("%s: key %d is no private RS256 or ES256 key; remove the file to start with new keys", name, n)
		}
		i.keys = append(i.keys, key{alg: k.Algorithm, id: k.KeyID, private: s})
	}
	return nil
}

// save replaces the key file whole, readable by its owner only. Held: mu.
func (i *Issuer) save(keys []key) error {
	if i.dir == "" {
		return nil
	}
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.private, KeyID: k.id, Algorithm: k.alg, Use: "sig"})
	}
	b, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the issuer's keys: %w", err)
	}
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return fmt.Errorf("keep the issuer's keys: %w", err)
	}
	f, err := os.CreateTemp(i.dir, keyFile+".*") // 0600
	if err != nil {
		return fmt.Errorf("keep the issuer's keys: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(i.dir, keyFile))
	}
	if err != nil {
		return fmt.Errorf("keep the issuer's keys: %w", err)
	}
	return nil
}
