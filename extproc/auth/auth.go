package auth

import (
	"context"
	"errors"
	"log/slog"
	"time"

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
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct{}

// New checks the configuration, without any request to an issuer. Key sets of
// issuers that previous (may be nil) reaches in the same way are taken over;
// previous stays usable until its own Close.
func New(ctx context.Context, cfg Config, previous *Verifier) (*Verifier, error) {
	return nil, errors.New("not built yet")
}

// Verify returns the identity that token proves, or an *Error.
func (v *Verifier) Verify(ctx context.Context, token string) (*Identity, error) {
	return nil, refuse(TokenMissing, "not built yet")
}

// Close ends the fetches of key sets that no other verifier shares, and waits for them.
func (v *Verifier) Close() {}

// Bearer returns the token of a request. It refuses requests that carry a
// credential in another place or more than one.
func Bearer(headers []record.Header, rawQuery string) (token string, err error) {
	return "", refuse(TokenMissing, "not built yet")
}

// RedactQuery returns the query with the values of credentials replaced.
func RedactQuery(rawQuery string) string { return "" }

// CredentialHeader reports whether a header of this name may hold a credential.
func CredentialHeader(name string) bool { return true }

// CredentialValue reports whether a value holds a JWT or a Google token.
func CredentialValue(value string) bool { return true }

// Session returns the session of an identity: 52 characters of lower-case base32.
func Session(key []byte, id *Identity, now time.Time) string { return "" }

// Explanation says step by step what Verify makes of a token.
type Explanation struct {
	Steps    []Step
	Identity *Identity // nil where refused
	Err      error
}

// Step is one check.
type Step struct {
	Name   string
	OK     bool
	Detail string
}

// Explain is Verify with its steps.
func (v *Verifier) Explain(ctx context.Context, token string) Explanation { return Explanation{} }

// Revocations is a deny list of tokens and subjects.
type Revocations struct{}

// LoadRevocations reads the list from a YAML file.
func LoadRevocations(file string) (*Revocations, error) { return nil, errors.New("not built yet") }

// For resolves issuers' names against v; an entry that names no issuer is an error.
func (r *Revocations) For(v *Verifier) (*Revocations, error) { return r, nil }

// Revoked reports whether id is on the list, and why.
func (r *Revocations) Revoked(id *Identity) (reason string, ok bool) { return "", true }

// Check is Revoked as an *Error.
func (r *Revocations) Check(id *Identity) error { return refuse(Revoked, "not built yet") }
