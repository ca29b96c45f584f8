package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"verbatim.dev/recorder/record"
)

// MaxToken is the longest token that is looked at, in bytes.
const MaxToken = 16 << 10

// DefaultLeeway is the clock skew allowed where IssuerConfig.Leeway is zero.
const DefaultLeeway = 30 * time.Second

// MaxLeeway is the largest clock skew that can be configured.
const MaxLeeway = 5 * time.Minute

// The profiles: which claims of an issuer's tokens prove where a call comes from.
const (
	ProfileGitHub     = "github"
	ProfileGitLab     = "gitlab"
	ProfileKubernetes = "kubernetes"
	ProfileGoogle     = "google"
	ProfileSPIFFE     = "spiffe"
	ProfileGeneric    = "generic"
)

// IssuerConfig is one issuer that is trusted.
type IssuerConfig struct {
	// Name qualifies groups and stands in policies and records: lower-case letters,
	// digits, '-', '_' and '.', at most 63.
	Name string
	// URL is the exact iss of its tokens. Plain http is for loopback only.
	URL string
	// Audiences: a token must name at least one of them.
	Audiences []string
	// Algorithms allowed, asymmetric ones only; empty: RS256 and ES256.
	Algorithms []string
	// GroupsClaim names the claim that holds the groups, a string or a list of strings.
	// Members of objects are reached with dots. Empty: no groups, but hd (the
	// hosted domain) for the google profile.
	GroupsClaim string
	// Profile is one of the profiles; empty: generic.
	Profile string
	// Claims maps fields of record.Provenance by their JSON names, and "email", to
	// claims. For the generic profile only.
	Claims map[string]string
	// JWKSURL is where the keys are; empty: found by discovery.
	JWKSURL string
	// CAFile holds the PEM certificates to trust for this issuer in place of the system's.
	CAFile string
	// TrustDomain is the SPIFFE trust domain; required by the spiffe profile.
	TrustDomain string
	// Leeway is the clock skew allowed for exp, nbf and iat. Zero: DefaultLeeway;
	// negative: none.
	Leeway time.Duration
}

// Config is what New needs. Zero durations take the defaults.
type Config struct {
	Issuers []IssuerConfig
	// Tokens are the gateway's own; nil where it gives out none. Their issuer must
	// be none of Issuers.
	Tokens *Tokens

	FetchTimeout    time.Duration // of discovery and keys together; default 5 s
	KeyRefresh      time.Duration // age at which a key set is fetched again; default 5 min
	KeyLifetime     time.Duration // age beyond which no key is trusted; default 24 h
	RefetchInterval time.Duration // least time between fetches for unknown key ids; default 10 s

	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()
}

// Identity is what a verified token proves.
type Identity struct {
	Principal  record.Principal
	Provenance record.Provenance
	// Run is the run that the token proves, which keeps a session together; empty
	// where it proves none.
	Run string
	// Expires is the token's exp, without leeway.
	Expires time.Time
	// MintedBy is the issuer of the gateway's own tokens where the caller brought
	// one of them, and not the issuer's own.
	MintedBy string
}

// ConfigError says what is wrong in a configuration. Issuer is the index in
// Config.Issuers, or -1; Field is a field of IssuerConfig by its Go name, or empty.
type ConfigError struct {
	Issuer  int
	Name    string
	Field   string
	Message string
}

func (e *ConfigError) Error() string {
	if e.Issuer < 0 {
		return "issuers: " + e.Message
	}
	if e.Field == "" {
		return fmt.Sprintf("issuer %q: %s", e.Name, e.Message)
	}
	return fmt.Sprintf("issuer %q: %s: %s", e.Name, e.Field, e.Message)
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	now      func() time.Time
	issuers  []*issuer
	byURL    map[string]*issuer
	byDomain map[string]*issuer // SPIFFE issuers, for tokens without iss
	proofs   *proofs
	tokens   *Tokens // nil: the gateway gives out none of its own
	close    sync.Once
}

type issuer struct {
	IssuerConfig
	algorithms map[string]bool
	groups     string
	leeway     time.Duration
	oidc       *oidc.IDTokenVerifier
	keys       *keySet
}

// asymmetric holds every algorithm that can be allowed. A symmetric one would make
// each holder of the verification key a signer.
var asymmetric = []string{
	oidc.RS256, oidc.RS384, oidc.RS512,
	oidc.PS256, oidc.PS384, oidc.PS512,
	oidc.ES256, oidc.ES384, oidc.ES512,
	oidc.EdDSA,
}

var issuerName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// New checks the configuration, without any request to an issuer. Key sets of
// issuers that previous (may be nil) reaches in the same way are taken over, so a
// reload asks nobody for keys again; previous stays usable until its own Close.
// An error about the configuration is a *ConfigError.
func New(ctx context.Context, cfg Config, previous *Verifier) (*Verifier, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(cfg.Issuers) == 0 {
		return nil, &ConfigError{Issuer: -1, Message: "none configured: nobody could be proven"}
	}
	fetch := fetchConfig{
		timeout:  or(cfg.FetchTimeout, 5*time.Second),
		refresh:  or(cfg.KeyRefresh, 5*time.Minute),
		lifetime: or(cfg.KeyLifetime, 24*time.Hour),
		refetch:  or(cfg.RefetchInterval, 10*time.Second),
		now:      cfg.Now,
		logger:   cfg.Logger,
	}
	if fetch.timeout < 0 || fetch.refresh < 0 || fetch.refetch < 0 || fetch.lifetime < fetch.refresh {
		return nil, &ConfigError{Issuer: -1, Message: "durations must be positive, and KeyLifetime at least KeyRefresh"}
	}
	if fetch.now == nil {
		fetch.now = time.Now
	}
	if fetch.logger == nil {
		fetch.logger = slog.Default()
	}
	v := &Verifier{now: fetch.now, byURL: map[string]*issuer{}, byDomain: map[string]*issuer{}, proofs: newGenerations[proof](), tokens: cfg.Tokens}
	names := map[string]bool{}
	for n, ic := range cfg.Issuers {
		is, err := newIssuer(ic)
		if err == nil {
			switch {
			case names[is.Name]:
				err = &ConfigError{Field: "Name", Message: "two issuers have it"}
			case v.byURL[is.URL] != nil:
				err = &ConfigError{Field: "URL", Message: "two issuers have it"}
			case is.Profile == ProfileSPIFFE && v.byDomain[is.TrustDomain] != nil:
				err = &ConfigError{Field: "TrustDomain", Message: "two issuers have it"}
			}
		}
		var roots []byte
		if err == nil {
			roots, err = readCA(is.CAFile)
		}
		if err != nil {
			err.Issuer, err.Name = n, ic.Name
			v.Close()
			return nil, err
		}
		names[is.Name] = true
		v.byURL[is.URL] = is
		if is.Profile == ProfileSPIFFE {
			v.byDomain[is.TrustDomain] = is
		}
		is.keys = keysFor(ctx, is, roots, fetch, previous)
		v.issuers = append(v.issuers, is)
		if cfg.Tokens != nil && is.URL == cfg.Tokens.issuer {
			v.Close()
			return nil, &ConfigError{Issuer: n, Name: ic.Name, Field: "URL", Message: "it is the issuer of the gateway's own tokens"}
		}
		is.oidc = oidc.NewVerifier(is.URL, is.keys, &oidc.Config{
			SupportedSigningAlgs: slices.Sorted(maps.Keys(is.algorithms)),
			// Any of several audiences, leeway and codes are beyond the library, and the
			// issuer was picked by an exact match: Verify does these checks.
			SkipClientIDCheck: true,
			SkipExpiryCheck:   true,
			SkipIssuerCheck:   true,
		})
	}
	return v, nil
}

func or(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func newIssuer(c IssuerConfig) (*issuer, *ConfigError) {
	bad := func(field, format string, args ...any) (*issuer, *ConfigError) {
		return nil, &ConfigError{Field: field, Message: fmt.Sprintf(format, args...)}
	}
	if !issuerName.MatchString(c.Name) {
		return bad("Name", "want 1 to 63 of a-z, 0-9, '-', '_', '.', the first a letter or digit")
	}
	if c.Profile == "" {
		c.Profile = ProfileGeneric
	}
	if profiles[c.Profile] == nil {
		return bad("Profile", "no profile %q: want one of %s", c.Profile, strings.Join(slices.Sorted(maps.Keys(profiles)), ", "))
	}
	// A SPIFFE issuer may have no URL of its own: its tokens need no iss.
	if !(c.Profile == ProfileSPIFFE && c.JWKSURL != "" && c.URL == "spiffe://"+c.TrustDomain) {
		err := checkURL(c.URL)
		if err == nil && strings.Contains(c.URL, "?") {
			err = errors.New("want no query in the URL")
		}
		if err != nil {
			return bad("URL", "%v", err)
		}
	}
	if c.JWKSURL != "" {
		if err := checkURL(c.JWKSURL); err != nil {
			return bad("JWKSURL", "%v", err)
		}
	}
	if len(c.Audiences) == 0 || slices.Contains(c.Audiences, "") {
		return bad("Audiences", "want at least one, none empty: else tokens made for other services would pass")
	}
	is := &issuer{IssuerConfig: c, algorithms: map[string]bool{}, groups: c.GroupsClaim}
	algorithms := c.Algorithms
	if len(algorithms) == 0 {
		algorithms = []string{oidc.RS256, oidc.ES256}
	}
	for _, a := range algorithms {
		if !slices.Contains(asymmetric, a) {
			return bad("Algorithms", "%q is not allowed: want some of %s", a, strings.Join(asymmetric, ", "))
		}
		is.algorithms[a] = true
	}
	if c.Profile == ProfileGoogle && is.groups == "" {
		is.groups = "hd"
	}
	if len(c.Claims) > 0 && c.Profile != ProfileGeneric {
		return bad("Claims", "the %s profile has its own; a mapping is for the generic profile", c.Profile)
	}
	for _, field := range slices.Sorted(maps.Keys(c.Claims)) {
		if mapped[field] == nil {
			return bad("Claims", "no field %q: want some of %s", field, strings.Join(slices.Sorted(maps.Keys(mapped)), ", "))
		}
		if c.Claims[field] == "" {
			return bad("Claims", "%s: want the name of a claim", field)
		}
	}
	if c.Profile == ProfileSPIFFE {
		if !validTrustDomain(c.TrustDomain) {
			return bad("TrustDomain", "want the trust domain of the spiffe profile, like prod.example.com")
		}
	} else if c.TrustDomain != "" {
		return bad("TrustDomain", "only for the spiffe profile")
	}
	switch {
	case c.Leeway > MaxLeeway:
		return bad("Leeway", "want at most %s", MaxLeeway)
	case c.Leeway == 0:
		is.leeway = DefaultLeeway
	case c.Leeway > 0:
		is.leeway = c.Leeway
	}
	return is, nil
}

// checkURL wants https, or http on loopback: keys fetched in the clear could be
// anybody's.
func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Host == "", u.Opaque != "":
		return fmt.Errorf("%q is no URL: want https://host/path", s)
	case u.User != nil, u.Fragment != "":
		return errors.New("want no user or fragment in the URL")
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q: want https (http is for loopback only)", s)
}

func readCA(file string) ([]byte, *ConfigError) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, &ConfigError{Field: "CAFile", Message: err.Error()}
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return nil, &ConfigError{Field: "CAFile", Message: file + " holds no PEM certificate"}
	}
	return b, nil
}

// keysFor returns the previous key set that is fetched in the very same way, or a
// new one.
func keysFor(ctx context.Context, is *issuer, roots []byte, fetch fetchConfig, previous *Verifier) *keySet {
	sum := sha256.Sum256(roots)
	id := fmt.Sprintf("%q %q %q %s %t %v %v %v %v", is.Name, is.URL, is.JWKSURL, hex.EncodeToString(sum[:]), is.Profile == ProfileSPIFFE,
		fetch.timeout, fetch.refresh, fetch.lifetime, fetch.refetch)
	if previous != nil {
		for _, p := range previous.issuers {
			if p.keys.id == id && p.keys.retain() {
				return p.keys
			}
		}
	}
	return newKeySet(ctx, id, is, roots, fetch)
}

// Issuers returns the names of the configured issuers and their URLs.
func (v *Verifier) Issuers() map[string]string {
	m := map[string]string{}
	for _, is := range v.issuers {
		m[is.Name] = is.URL
	}
	return m
}

// Close ends the fetches of key sets that no other verifier shares, and waits for them.
func (v *Verifier) Close() {
	v.close.Do(func() {
		for _, is := range v.issuers {
			is.keys.release()
		}
	})
}
