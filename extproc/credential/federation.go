package credential

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer is the gateway as the OIDC issuer of a workload identity pool: it signs
// the assertions that are exchanged for Google tokens, one caller each. It is
// safe for concurrent use.
type Issuer struct {
	url       string
	algorithm jose.SignatureAlgorithm
	signer    jose.Signer
	jwks      []byte
	discovery []byte
}

// NewIssuer reads the keys that a Config of kind federation names.
func NewIssuer(c Config) (*Issuer, error) {
	b, err := readFile(c.SigningKey, maxAnswer)
	if err != nil {
		return nil, fmt.Errorf("credential federation: signing key: %w", err)
	}
	private, err := parseSigner(b)
	if err != nil {
		return nil, fmt.Errorf("credential federation: signing key %s: %w", c.SigningKey, err)
	}
	public, err := publish(private.Public())
	if err != nil {
		return nil, fmt.Errorf("credential federation: signing key %s: %w", c.SigningKey, err)
	}
	i := &Issuer{url: c.Issuer, algorithm: jose.SignatureAlgorithm(public.Algorithm)}
	i.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: i.algorithm, Key: jose.JSONWebKey{Key: private, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("credential federation: signing key %s cannot sign", c.SigningKey)
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{*public}}
	algorithms := []string{public.Algorithm}
	for _, name := range c.PublishedKeys {
		b, err := readFile(name, maxAnswer)
		if err != nil {
			return nil, fmt.Errorf("credential federation: published key: %w", err)
		}
		other, err := parsePublic(b)
		if err != nil {
			return nil, fmt.Errorf("credential federation: published key %s: %w", name, err)
		}
		k, err := publish(other)
		if err != nil {
			return nil, fmt.Errorf("credential federation: published key %s: %w", name, err)
		}
		if len(set.Key(k.KeyID)) > 0 {
			continue
		}
		set.Keys = append(set.Keys, *k)
		if k.Algorithm != algorithms[0] && len(algorithms) == 1 {
			algorithms = append(algorithms, k.Algorithm)
		}
	}
	if i.jwks, err = json.MarshalIndent(set, "", "  "); err != nil {
		return nil, fmt.Errorf("credential federation: key set: %w", err)
	}
	i.discovery, err = json.MarshalIndent(map[string]any{
		"issuer":                                c.Issuer,
		"jwks_uri":                              strings.TrimRight(c.Issuer, "/") + "/.well-known/jwks.json",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": algorithms,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("credential federation: discovery: %w", err)
	}
	return i, nil
}

// Discovery is the document to host at ISSUER/.well-known/openid-configuration
// (OpenID Connect Discovery 1.0, section 4).
func (i *Issuer) Discovery() []byte { return append([]byte(nil), i.discovery...) }

// JWKS is the key set to host at ISSUER/.well-known/jwks.json, or to upload to
// the provider. It holds public keys only.
func (i *Issuer) JWKS() []byte { return append([]byte(nil), i.jwks...) }

// parseSigner reads a private key in PEM. Its errors quote nothing of the input.
func parseSigner(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("is not PEM: give a private key (PKCS 8)")
	}
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if s, ok := k.(crypto.Signer); ok {
			return s, nil
		}
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	return nil, errors.New("holds no private key that can be read: give an RSA or EC key without a passphrase, in PKCS 8")
}

func parsePublic(b []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("is not PEM: give a public key")
	}
	if k, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
		return k, nil
	}
	s, err := parseSigner(b)
	if err != nil {
		return nil, errors.New("holds no key that can be read: give a public key, RSA or EC")
	}
	return s.Public(), nil
}

// publish makes the JWK of a public key that workload identity pools take
// (RS256 and ES256), with its RFC 7638 thumbprint as the key id.
func publish(k crypto.PublicKey) (*jose.JSONWebKey, error) {
	j := jose.JSONWebKey{Key: k, Use: "sig"}
	switch p := k.(type) {
	case *rsa.PublicKey:
		if p.N.BitLen() < 2048 {
			return nil, errors.New("is an RSA key of fewer than 2048 bits: make a longer one")
		}
		j.Algorithm = string(jose.RS256)
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return nil, errors.New("is an EC key on another curve than P-256: make one on P-256")
		}
		j.Algorithm = string(jose.ES256)
	default:
		return nil, errors.New("is neither RSA nor EC P-256: identity pools take no other")
	}
	sum, err := j.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, errors.New("has no thumbprint")
	}
	j.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	return &j, nil
}

// maxSubject is the longest google.subject that a pool takes
// (https://cloud.google.com/iam/docs/workload-identity-federation#mapping).
const maxSubject = 127

// AssertionSubject is the sub of the assertion for a caller, and so the name
// that IAM bindings use: ISSUER:SUBJECT, or ISSUER:sha256-HEX where the subject
// is too long or has characters that an IAM member cannot hold. Distinct callers
// have distinct ones, given that issuers' names are unique and hold no colon.
func AssertionSubject(issuer, subject string) string {
	plain := !strings.HasPrefix(subject, "sha256-")
	for _, r := range subject {
		if r <= ' ' || r > '~' || r == '"' || r == '\\' {
			plain = false
		}
	}
	if s := issuer + ":" + subject; plain && len(s) <= maxSubject {
		return s
	}
	sum := sha256.Sum256([]byte(subject))
	return issuer + ":sha256-" + hex.EncodeToString(sum[:])
}

// assertion is what the issuer says of a caller. The caller never sees it.
type assertion struct {
	jwt.Claims
	Session       string `json:"session"`
	CallerIssuer  string `json:"caller_issuer"`
	CallerURL     string `json:"caller_issuer_url"`
	CallerSubject string `json:"caller_subject"`
}

func (i *Issuer) mint(c Caller, audience string, life time.Duration, now time.Time) (string, error) {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	return jwt.Signed(i.signer).Claims(assertion{
		Claims: jwt.Claims{
			Issuer:   i.url,
			Subject:  AssertionSubject(c.Principal.Issuer, c.Principal.Subject),
			Audience: jwt.Audience{audience},
			IssuedAt: jwt.NewNumericDate(now),
			Expiry:   jwt.NewNumericDate(now.Add(life)),
			ID:       hex.EncodeToString(id),
		},
		Session:       c.Session,
		CallerIssuer:  c.Principal.Issuer,
		CallerURL:     c.Principal.URL,
		CallerSubject: c.Principal.Subject,
	}).Serialize()
}

// federation has one token per caller (session, issuer and subject).
type federation struct {
	c      Config
	issuer *Issuer
	wire   *wire
	cache  *cache
}

func newFederation(c Config, w *wire, log *slog.Logger) (Source, error) {
	i, err := NewIssuer(c)
	if err != nil {
		return nil, err
	}
	f := &federation{c: c, issuer: i, wire: w}
	f.cache = newCache(cacheConfig{
		name:    c.Kind,
		fetch:   f.fetch,
		key:     func(c Caller) key { return key{c.Session, c.Principal.Issuer, c.Principal.URL, c.Principal.Subject} },
		entries: max(c.CacheEntries, 2), timeout: c.Timeout, logger: log,
	})
	return f, nil
}

func (f *federation) Token(ctx context.Context, c Caller) (Token, error) {
	if c.Principal.Issuer == "" || c.Principal.URL == "" || c.Principal.Subject == "" || c.Session == "" || c.Principal.Issuer == Checker {
		return Token{}, &Error{Name: f.c.Kind, Step: "the caller", Reason: "it is not known who it is, so there is no token for it"}
	}
	// Groups and the like are not asserted: keep no more of the caller than that.
	c.Principal.Groups, c.Principal.OnBehalfOf = nil, nil
	return f.cache.get(ctx, c)
}

// Checker is the issuer's name in the assertion that Check exchanges; no issuer
// of callers may have it.
const Checker = "verbatim"

// Check exchanges an assertion for a caller that does not exist. The
// impersonation is left out: no such caller may impersonate.
func (f *federation) Check(ctx context.Context) error {
	c := Caller{Session: "check"}
	c.Principal.Issuer, c.Principal.URL, c.Principal.Subject = Checker, f.c.Issuer, "check"
	return f.cache.check(ctx, c, f.exchange)
}

func (f *federation) Close() error {
	f.cache.close()
	f.wire.close()
	return nil
}

// The identifiers of RFC 8693, sections 2.1 and 3.
const (
	exchangeGrant   = "urn:ietf:params:oauth:grant-type:token-exchange"
	accessTokenType = "urn:ietf:params:oauth:token-type:access_token"
	jwtType         = "urn:ietf:params:oauth:token-type:jwt"
)

func (f *federation) fetch(ctx context.Context, c Caller) (Token, error) {
	token, err := f.exchange(ctx, c)
	if err != nil || f.c.Target == "" {
		return token, err
	}
	return impersonate(ctx, f.wire, f.c, token.Value, f.c.Kind+":"+f.c.Target)
}

// exchange mints an assertion and trades it for a federated token.
func (f *federation) exchange(ctx context.Context, c Caller) (Token, error) {
	name := f.c.Kind + ":" + AssertionSubject(c.Principal.Issuer, c.Principal.Subject)
	begun := time.Now()
	signed, err := f.issuer.mint(c, f.c.AssertionAudience, f.c.AssertionLifetime, begun)
	if err != nil {
		return Token{}, &Error{Name: name, Step: "the assertion", Reason: "it could not be signed", Hint: "check signing_key"}
	}
	scopes := f.c.Scopes
	if f.c.Target != "" {
		scopes = []string{cloudPlatform}
	}
	// https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token
	form := url.Values{
		"grant_type":           {exchangeGrant},
		"audience":             {f.c.Audience},
		"scope":                {strings.Join(scopes, " ")},
		"requested_token_type": {accessTokenType},
		"subject_token":        {signed},
		"subject_token_type":   {jwtType},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.c.STSEndpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return Token{}, &Error{Name: name, Step: stepSTS, Reason: "the endpoint is no URL"}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	body, _, err := f.wire.send(req, name, stepSTS)
	if err != nil {
		return Token{}, err
	}
	var g grant
	token, err := g.read(body, begun, name, stepSTS)
	if err != nil {
		return Token{}, err
	}
	if g.IssuedTokenType != accessTokenType {
		return Token{}, &Error{Name: name, Step: stepSTS, Reason: "it issued another type of token than an access token"}
	}
	return token, nil
}
