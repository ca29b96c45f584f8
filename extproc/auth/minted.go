package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"verbatim.dev/recorder/record"
)

// TokenType is the typ of the gateway's own tokens. No issuer's tokens have it,
// so that neither can pass for the other (RFC 8725, section 3.11).
const TokenType = "verbatim-at+jwt"

// Bounds of the lifetime of the gateway's own tokens.
const (
	DefaultTokenLifetime = time.Hour
	MaxTokenLifetime     = 12 * time.Hour
)

// TokensConfig is what NewTokens needs.
type TokensConfig struct {
	// Issuer is the gateway's address as agents see it, https://host: the iss
	// and aud of its tokens.
	Issuer string
	// SigningKey is a file with an EC P-256 private key in PEM. All replicas have
	// the same.
	SigningKey string
	// AcceptedKeys are files with the public or private keys of tokens that are
	// still valid: the key before, or the next one, in a rotation.
	AcceptedKeys []string
	// Lifetime at most; no token outlives the one that it was given for. Zero:
	// DefaultTokenLifetime.
	Lifetime time.Duration
	Now      func() time.Time // default time.Now
}

// Tokens mints and verifies the gateway's own tokens: what its token endpoint
// gives out (RFC 8693), so that clients which can only exchange a token work with
// the gateway. A token holds the identity that the caller's own token proved,
// the jti of that token, by which it is revoked as well, and no right beyond it.
// It is safe for concurrent use.
type Tokens struct {
	issuer   string
	lifetime time.Duration
	signer   jose.Signer
	keys     map[string]*ecdsa.PublicKey // by key id
	now      func() time.Time
	known    *generations[mintedProof]
}

// mintedProof is a token that was verified: the same bytes need no second look
// at their signature, only at the time and at who is configured.
type mintedProof struct {
	identity Identity
	begins   time.Time
}

// mintedClaims are the claims of a gateway token.
type mintedClaims struct {
	Issuer   string         `json:"iss"`
	Audience string         `json:"aud"`
	Subject  string         `json:"sub"`
	ID       string         `json:"jti"`
	Issued   int64          `json:"iat"`
	Expires  int64          `json:"exp"`
	Identity mintedIdentity `json:"verbatim"`
}

type mintedIdentity struct {
	Principal  record.Principal  `json:"principal"`
	Provenance record.Provenance `json:"provenance"`
	Run        string            `json:"run,omitempty"`
}

// NewTokens reads the keys. Its errors name the field and the file, and hold
// nothing of a key.
func NewTokens(c TokensConfig) (*Tokens, error) {
	if err := checkURL(c.Issuer); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	switch {
	case c.Lifetime == 0:
		c.Lifetime = DefaultTokenLifetime
	case c.Lifetime < time.Minute || c.Lifetime > MaxTokenLifetime:
		return nil, fmt.Errorf("lifetime: want 1m to %s", MaxTokenLifetime)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	t := &Tokens{issuer: c.Issuer, lifetime: c.Lifetime, keys: map[string]*ecdsa.PublicKey{}, now: c.Now, known: newGenerations[mintedProof]()}
	private, _, err := readECKey(c.SigningKey)
	if err == nil && private == nil {
		err = errors.New("holds a public key: the private one is needed to sign")
	}
	if err != nil {
		return nil, fmt.Errorf("signing_key: %s %w", c.SigningKey, err)
	}
	id, err := t.accept(&private.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("signing_key: %s %w", c.SigningKey, err)
	}
	for _, file := range c.AcceptedKeys {
		_, public, err := readECKey(file)
		if err == nil {
			_, err = t.accept(public)
		}
		if err != nil {
			return nil, fmt.Errorf("accepted_keys: %s %w", file, err)
		}
	}
	t.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: id}},
		(&jose.SignerOptions{}).WithType(TokenType))
	if err != nil {
		return nil, fmt.Errorf("signing_key: %s cannot sign", c.SigningKey)
	}
	return t, nil
}

// accept takes a key in and returns its id, the thumbprint of RFC 7638.
func (t *Tokens) accept(key *ecdsa.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", errors.New("has no thumbprint")
	}
	id := base64.RawURLEncoding.EncodeToString(sum)
	t.keys[id] = key
	return id, nil
}

// readECKey reads an EC P-256 key in PEM; private is nil where the file holds a
// public key.
func readECKey(file string) (private *ecdsa.PrivateKey, public *ecdsa.PublicKey, err error) {
	const how = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes one"
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, errors.New("cannot be read")
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, errors.New("is not PEM: " + how)
	}
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		private, _ = k.(*ecdsa.PrivateKey)
	} else if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		private = k
	} else if k, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
		public, _ = k.(*ecdsa.PublicKey)
	}
	if private != nil {
		public = &private.PublicKey
	}
	if public == nil || public.Curve != elliptic.P256() {
		return nil, nil, errors.New("holds no EC P-256 key without a passphrase: " + how)
	}
	return private, public, nil
}

// mint returns a token for an identity that an issuer's own token proved, and
// when it ends. A gateway token's identity is refused: lives would add up.
func (t *Tokens) mint(id *Identity) (token string, minted *Identity, err error) {
	if id.MintedBy != "" {
		return "", nil, refuse(TokenNotExchanged, "the token is one of the gateway's own; exchange the issuer's token")
	}
	now := t.now()
	expires := now.Add(t.lifetime)
	if id.Expires.Before(expires) {
		expires = id.Expires
	}
	// Whole seconds, rounded down: never beyond the subject token's end.
	expires = expires.Truncate(time.Second)
	if !expires.After(now) {
		return "", nil, refuse(TokenExpired, "the token has expired, or is about to; fetch a new one")
	}
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", nil, fmt.Errorf("random token id: %w", err)
	}
	c := mintedClaims{
		Issuer: t.issuer, Audience: t.issuer, Subject: id.Principal.Issuer + ":" + id.Principal.Subject,
		ID: base64.RawURLEncoding.EncodeToString(random[:]), Issued: now.Unix(), Expires: expires.Unix(),
		Identity: mintedIdentity{id.Principal, id.Provenance, id.Run},
	}
	b, err := json.Marshal(c)
	if err != nil {
		return "", nil, fmt.Errorf("claims: %w", err)
	}
	signed, err := t.signer.Sign(b)
	if err != nil {
		return "", nil, errors.New("the token could not be signed")
	}
	if token, err = signed.CompactSerialize(); err != nil {
		return "", nil, errors.New("the token could not be written")
	}
	if len(token) > MaxToken {
		return "", nil, refuse(TokenTooLarge, fmt.Sprintf("the gateway's token would have %d bytes, more than %d: the caller has too many groups; have its issuer name fewer", len(token), MaxToken))
	}
	return token, t.identity(c), nil
}

func (t *Tokens) identity(c mintedClaims) *Identity {
	id := &Identity{Principal: c.Identity.Principal, Provenance: c.Identity.Provenance, Run: c.Identity.Run,
		Expires: time.Unix(c.Expires, 0), MintedBy: t.issuer}
	id.Principal.GatewayToken = c.ID
	return id
}

// minted reports whether a token says of itself that it is a gateway token.
func minted(token string) bool {
	first, _, _ := strings.Cut(token, ".")
	b, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		return false
	}
	var h struct {
		Type string `json:"typ"`
	}
	return json.Unmarshal(b, &h) == nil && h.Type == TokenType
}

// verify returns the identity that a gateway token holds. The issuer that
// proved it must still be configured, under the same name.
func (t *Tokens) verify(token string, sum [sha256.Size]byte, v *Verifier) (*Identity, error) {
	p := t.known.get(sum)
	if p == nil {
		c, err := t.read(token)
		if err != nil {
			return nil, err
		}
		p = &mintedProof{identity: *t.identity(c), begins: time.Unix(c.Issued, 0)}
		t.known.put(sum, p)
	}
	id := p.identity
	now := v.now()
	switch is := v.byURL[id.Principal.URL]; {
	case is == nil || is.Name != id.Principal.Issuer:
		return nil, refuse(IssuerUnknown, "the issuer that the gateway's token was given for is not configured any more; exchange a new token")
	case !now.Before(id.Expires):
		return nil, refuse(TokenExpired, fmt.Sprintf("the token expired %s ago; exchange a new one", now.Sub(id.Expires).Truncate(time.Second)))
	case p.begins.After(now.Add(DefaultLeeway)):
		return nil, refuse(TokenNotYetValid, "the token was given out in the future; compare the replicas' clocks")
	}
	return &id, nil
}

// read checks form and signature.
func (t *Tokens) read(token string) (c mintedClaims, _ error) {
	malformed := refuse(TokenMalformed, "the gateway's token is damaged")
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || len(signed.Signatures) != 1 {
		return c, malformed
	}
	h := signed.Signatures[0].Protected
	key := t.keys[h.KeyID]
	if key == nil {
		return c, refuse(KeyUnknown, "the gateway's token is signed with a key that is not accepted (any more); exchange a new one")
	}
	b, err := signed.Verify(key)
	if err != nil {
		return c, refuse(SignatureInvalid, "the gateway's token has a wrong signature")
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields() // of another version, or made for something else
	if err := d.Decode(&c); err != nil {
		return c, malformed
	}
	if c.Issuer != t.issuer || c.Audience != t.issuer {
		return c, refuse(AudienceMismatch, "the gateway's token is for another gateway; want "+t.issuer)
	}
	if c.ID == "" || c.Identity.Principal.URL == "" || c.Identity.Principal.Subject == "" || c.Expires <= 0 || c.Identity.Principal.GatewayToken != "" {
		return c, malformed
	}
	return c, nil
}

// Mint returns a gateway token for an identity that Verify returned, and the
// identity as that token has it (RFC 8693, section 2). Revocation is for the
// caller to ask.
func (v *Verifier) Mint(id *Identity) (token string, minted *Identity, err error) {
	if v.tokens == nil {
		return "", nil, errors.New("the gateway gives out no tokens")
	}
	return v.tokens.mint(id)
}

// TokenIssuer is the issuer of the gateway's own tokens, empty where it gives
// out none.
func (v *Verifier) TokenIssuer() string {
	if v.tokens == nil {
		return ""
	}
	return v.tokens.issuer
}
