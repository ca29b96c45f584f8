package auth

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

const maxActors = 8

// Verify returns the identity that token proves, or an *Error. It waits for the
// issuer's keys where it has none, at most Config.FetchTimeout or until ctx ends.
func (v *Verifier) Verify(ctx context.Context, token string) (*Identity, error) {
	if len(token) > MaxToken {
		return nil, tooLarge(token)
	}
	sum := sha256.Sum256([]byte(token))
	if p := v.proofs.get(sum); p != nil {
		if id := p.holds(ctx, v.now()); id != nil {
			return id, nil
		}
	}
	if v.tokens != nil && minted(token) {
		return v.tokens.verify(token, sum, v)
	}
	p := &proof{}
	id, err := v.verify(ctx, token, nil, p)
	if err != nil {
		return nil, err
	}
	if p.key != nil {
		p.identity = *id
		v.proofs.put(sum, p)
	}
	return id, nil
}

func tooLarge(token string) *Error {
	return refuse(TokenTooLarge, fmt.Sprintf("the token has %d bytes, more than the %d that are looked at", len(token), MaxToken))
}

// verify does the checks in order. Where tr is not nil each of them leaves a step;
// where p is not nil it learns what the signature proved.
func (v *Verifier) verify(ctx context.Context, token string, tr *trace, p *proof) (*Identity, *Error) {
	h, c, err := parse(token)
	if tr.step("form", err, func() string {
		return fmt.Sprintf("JWS in compact form, %d bytes, algorithm %s, key id %s", len(token), h.alg, quote(h.kid))
	}) {
		return nil, err
	}
	is, err := v.pick(c)
	if tr.step("issuer", err, func() string {
		if err != nil {
			return "the token's iss is " + show(c["iss"])
		}
		return fmt.Sprintf("%q, %s, profile %s", is.Name, is.URL, is.Profile)
	}) {
		return nil, err
	}
	if !is.algorithms[h.alg] {
		err = refuse(AlgorithmRefused, fmt.Sprintf("the token's algorithm is not one allowed for issuer %q", is.Name))
	}
	if tr.step("algorithm", err, func() string { return h.alg }) {
		return nil, err
	}
	key, err := is.signature(ctx, token, h)
	if tr.step("signature", err, func() string { return "verified with a key that the issuer publishes" }) {
		return nil, err
	}
	if p != nil {
		p.issuer, p.header, p.key, p.times = is, h, key, claims{}
		for _, name := range []string{"exp", "nbf", "iat"} {
			if t, ok := c[name]; ok {
				p.times[name] = t
			}
		}
	}
	// From here on the claims are the issuer's own words.
	err = c.kind()
	if tr.step("kind", err, func() string { return "a bearer token" }) {
		return nil, err
	}
	err = is.audience(c)
	if tr.step("audience", err, func() string {
		return fmt.Sprintf("the token is for %s; accepted are %q", show(c["aud"]), is.Audiences)
	}) {
		return nil, err
	}
	expires, err := is.times(c, v.now())
	if tr.step("time", err, func() string { return "valid until " + expires.UTC().Format(time.RFC3339) }) {
		return nil, err
	}
	id, err := is.identity(c, expires)
	tr.step("identity", err, func() string { return "subject " + quote(id.Principal.Subject) })
	return id, err
}

// pick chooses the issuer by the unverified iss. A JWT-SVID needs no iss (JWT-SVID,
// section 3): there the trust domain of sub chooses.
func (v *Verifier) pick(c claims) (*issuer, *Error) {
	iss, ok := c["iss"]
	if !ok {
		if sub, ok := c["sub"].(string); ok {
			if domain, _, ok := splitSPIFFE(sub); ok && v.byDomain[domain] != nil {
				return v.byDomain[domain], nil
			}
		}
		return nil, refuse(IssuerUnknown, "the token has no iss")
	}
	s, ok := iss.(string)
	if !ok {
		return nil, refuse(TokenMalformed, "the token's iss is no string")
	}
	is := v.byURL[s]
	if is == nil && s == "accounts.google.com" {
		// Google's documents name both spellings.
		if g := v.byURL["https://"+s]; g != nil && g.Profile == ProfileGoogle {
			is = g
		}
	}
	if is == nil {
		return nil, refuse(IssuerUnknown, "the token's issuer is none of those configured here (iss must match exactly)")
	}
	return is, nil
}

// signature returns the key that made it. It drops go-oidc's errors, which quote
// the token's claims.
func (is *issuer) signature(ctx context.Context, token string, h header) (crypto.PublicKey, *Error) {
	o := &outcome{header: h}
	_, err := is.oidc.Verify(context.WithValue(ctx, outcomeKey{}, o), token)
	if err == nil {
		return o.key, nil
	}
	if o.err != nil {
		return nil, o.err
	}
	return nil, refuse(TokenMalformed, "the token's standard claims have the wrong types")
}

// kind refuses what is signed by the issuer, but is no bearer credential.
func (c claims) kind() *Error {
	if events, ok := c["events"].(map[string]any); ok {
		for name := range events {
			if strings.HasPrefix(name, "http://schemas.openid.net/event/") || strings.HasPrefix(name, "https://schemas.openid.net/") {
				return refuse(TokenTypeRefused, "the token is a logout or security event token")
			}
		}
	}
	// RFC 9449, 7.1: a key-bound token must not be taken without proof of the key.
	if _, ok := c["cnf"]; ok {
		return refuse(TokenTypeRefused, "the token is bound to a key of its holder (cnf), which a bearer cannot prove")
	}
	return nil
}

func (is *issuer) audience(c claims) *Error {
	var got []string
	switch aud := c["aud"].(type) {
	case nil:
		return refuse(AudienceMismatch, fmt.Sprintf("the token names no audience; want one of %q", is.Audiences))
	case string:
		got = []string{aud}
	case []any:
		for _, a := range aud {
			s, ok := a.(string)
			if !ok {
				return refuse(TokenMalformed, "the token's aud is no string or list of strings")
			}
			got = append(got, s)
		}
	default:
		return refuse(TokenMalformed, "the token's aud is no string or list of strings")
	}
	for _, a := range is.Audiences {
		if slices.Contains(got, a) {
			return nil
		}
	}
	return refuse(AudienceMismatch, fmt.Sprintf("the token is for another audience; want one of %q", is.Audiences))
}

func (is *issuer) times(c claims, now time.Time) (expires time.Time, _ *Error) {
	expires, ok, err := c.time("exp")
	if err == nil && !ok {
		err = refuse(ClaimMissing, "the token has no claim exp: it would be valid for ever")
	}
	if err != nil {
		return expires, err
	}
	// exp is the first moment at which it is not valid any more (RFC 7519, 4.1.4).
	if !now.Before(expires.Add(is.leeway)) {
		return expires, refuse(TokenExpired, fmt.Sprintf("the token expired %s ago; fetch a new one", now.Sub(expires).Truncate(time.Second)))
	}
	for _, name := range []string{"nbf", "iat"} {
		t, ok, err := c.time(name)
		if err != nil {
			return expires, err
		}
		if ok && t.After(now.Add(is.leeway)) {
			return expires, refuse(TokenNotYetValid, fmt.Sprintf("the token is valid from %s in the future (%s); compare the clocks", t.Sub(now).Truncate(time.Second), name))
		}
	}
	return expires, nil
}

// time reads a NumericDate (RFC 7519, section 2), whole seconds, rounded down.
func (c claims) time(name string) (time.Time, bool, *Error) {
	v, ok := c[name]
	if !ok {
		return time.Time{}, false, nil
	}
	n, ok := v.(json.Number)
	if ok {
		f, err := n.Float64()
		// Up to the year 9999, beyond which time cannot be marshalled.
		if err == nil && f >= 0 && f < 253402300800 {
			return time.Unix(int64(math.Floor(f)), 0), true, nil
		}
	}
	return time.Time{}, false, refuse(TokenMalformed, fmt.Sprintf("the token's %s is no time in seconds since 1970", name))
}

func (is *issuer) identity(c claims, expires time.Time) (*Identity, *Error) {
	id := &Identity{Expires: expires}
	id.Principal.Issuer, id.Principal.URL = is.Name, is.URL
	var err *Error
	if id.Principal.Subject, err = c.required("sub"); err != nil {
		return nil, err
	}
	if id.Principal.TokenID, err = c.text("jti"); err != nil {
		return nil, err
	}
	if id.Principal.Groups, err = is.groupsOf(c); err != nil {
		return nil, err
	}
	if id.Principal.OnBehalfOf, err = actors(c["act"]); err != nil {
		return nil, err
	}
	id.Provenance.Profile = is.Profile
	if err := profiles[is.Profile](is, c, id); err != nil {
		return nil, err
	}
	return id, nil
}

// groupsOf qualifies the groups with the issuer's name: another issuer's "security"
// is another group.
func (is *issuer) groupsOf(c claims) ([]string, *Error) {
	if is.groups == "" {
		return nil, nil
	}
	v, ok := c.at(is.groups)
	if !ok {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) > maxGroups {
		return nil, refuse(ClaimInvalid, fmt.Sprintf("claim %s has more than %d groups", is.groups, maxGroups))
	}
	var groups []string
	seen := map[string]bool{}
	for _, g := range list {
		s, ok := g.(string)
		if !ok || s == "" || !clean(s) {
			return nil, refuse(ClaimInvalid, fmt.Sprintf("claim %s: want a group's name or a list of names, none empty", is.groups))
		}
		if !seen[s] {
			seen[s] = true
			groups = append(groups, is.Name+"/"+s)
		}
	}
	return groups, nil
}

// actors reads the act chain (RFC 8693, section 4.1): act is the current actor, its
// own act the one before. Outermost first.
func actors(v any) ([]record.Actor, *Error) {
	var chain []record.Actor
	for ; v != nil; v = v.(map[string]any)["act"] {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, refuse(ActorChainInvalid, "the token's act is no object")
		}
		if len(chain) == maxActors {
			return nil, refuse(ActorChainInvalid, fmt.Sprintf("the token's act chain is longer than %d", maxActors))
		}
		c := claims(m)
		for _, name := range []string{"sub", "iss"} {
			if _, ok := c[name].(string); c[name] != nil && !ok {
				return nil, refuse(ActorChainInvalid, "an actor's "+name+" in the token's act chain is no string")
			}
		}
		sub, err := c.required("sub")
		if err != nil {
			return nil, refuse(ActorChainInvalid, "an actor in the token's act chain has no usable sub")
		}
		iss, err := c.text("iss")
		if err != nil {
			return nil, refuse(ActorChainInvalid, "an actor in the token's act chain has no usable iss")
		}
		if next, ok := m["act"]; ok && next == nil {
			return nil, refuse(ActorChainInvalid, "the token's act is no object")
		}
		chain = append(chain, record.Actor{Issuer: iss, Subject: sub})
	}
	return chain, nil
}
