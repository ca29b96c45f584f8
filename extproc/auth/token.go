package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxDepth  = 16   // of nested JSON
	maxKeyID  = 256  // bytes
	maxClaim  = 1024 // bytes of a claim that names somebody or something
	maxGroups = 1000
)

type header struct {
	alg, kid, typ string
}

type claims map[string]any

// parse takes a token apart without believing any of it. It is stricter than the
// libraries behind it: canonical base64url, no member twice.
func parse(token string) (header, claims, *Error) {
	malformed := func(what string) (header, claims, *Error) {
		return header{}, nil, refuse(TokenMalformed, what)
	}
	switch {
	case token == "":
		return header{}, nil, refuse(TokenMissing, "the token is empty")
	case len(token) > MaxToken:
		return header{}, nil, tooLarge(token)
	}
	if strings.HasPrefix(token, "ya29.") {
		return malformed("this looks like a Google access token; the gateway wants a JWT of one of its issuers")
	}
	first, rest, ok := strings.Cut(token, ".")
	second, third, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(third, ".") {
		return malformed("the token is no JWS in compact form: want three parts with dots between")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(first)
	if err != nil || strings.ContainsAny(first, "\r\n") {
		return malformed("the token's header is not base64url without padding")
	}
	h, refusal := parseHeader(b)
	if refusal != nil {
		return header{}, nil, refusal
	}
	if third == "" {
		return h, nil, refuse(TokenMalformed, "the token has no signature")
	}
	if _, err = base64.RawURLEncoding.Strict().DecodeString(third); err != nil || strings.ContainsAny(third, "\r\n") {
		return h, nil, refuse(TokenMalformed, "the token's signature is not base64url without padding")
	}
	if b, err = base64.RawURLEncoding.Strict().DecodeString(second); err != nil || strings.ContainsAny(second, "\r\n") {
		return h, nil, refuse(TokenMalformed, "the token's payload is not base64url without padding")
	}
	c, err := decodeObject(b)
	if err != nil {
		return h, nil, refuse(TokenMalformed, "the token's payload: "+err.Error())
	}
	return h, c, nil
}

func parseHeader(b []byte) (h header, _ *Error) {
	m, err := decodeObject(b)
	if err != nil {
		return h, refuse(TokenMalformed, "the token's header: "+err.Error())
	}
	for name, to := range map[string]*string{"alg": &h.alg, "kid": &h.kid, "typ": &h.typ} {
		if v, ok := m[name]; ok {
			if *to, ok = v.(string); !ok {
				return h, refuse(TokenMalformed, "the token's header: "+name+" is no string")
			}
		}
	}
	switch {
	case h.alg == "":
		return h, refuse(TokenMalformed, "the token's header has no alg")
	case !slices.Contains(asymmetric, h.alg):
		// none and HS256 end here, whatever the issuer.
		return h, refuse(AlgorithmRefused, "the token is unsigned, or signed with an algorithm that is never accepted")
	case len(h.kid) > maxKeyID:
		return h, refuse(TokenMalformed, fmt.Sprintf("the token's header: kid is longer than %d bytes", maxKeyID))
	}
	// crit: extensions that must be understood, and none is (RFC 7515, 4.1.11).
	// jwk, jku and x5u: a token does not bring its own key. cty: nested tokens.
	for _, name := range []string{"crit", "jwk", "jku", "x5u", "cty", "zip", "b64"} {
		if _, ok := m[name]; ok {
			return h, refuse(TokenMalformed, "the token's header has "+name+", which is not accepted")
		}
	}
	// RFC 8725, 3.11: a type keeps kinds of tokens apart. dpop+jwt, logout+jwt,
	// secevent+jwt and such are no credential.
	switch strings.TrimPrefix(strings.ToLower(h.typ), "application/") {
	case "", "jwt", "jose", "at+jwt":
	default:
		return h, refuse(TokenTypeRefused, "the token's typ is none of JWT, JOSE and at+jwt")
	}
	return h, nil
}

// decodeObject decodes one JSON object with json.Number for numbers. Its errors hold
// nothing of b.
func decodeObject(b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	// The token reader below is laxer than this in places.
	if !json.Valid(b) {
		return nil, errors.New("not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := decodeValue(d, 0)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("no JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return m, nil
}

func decodeValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, errors.New("not JSON")
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for d.More() {
			t, err := d.Token()
			name, ok := t.(string)
			if err != nil || !ok {
				return nil, errors.New("not JSON")
			}
			if _, ok := m[name]; ok {
				return nil, errors.New("a member occurs twice in an object")
			}
			if m[name], err = decodeValue(d, depth+1); err != nil {
				return nil, err
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, errors.New("not JSON")
		}
		return m, nil
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := decodeValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		if _, err := d.Token(); err != nil {
			return nil, errors.New("not JSON")
		}
		return list, nil
	}
	return t, nil
}

// at finds a claim by its name or by a path with dots. Names hold dots themselves
// ("kubernetes.io"), so the longest name that is there wins at each level.
func (c claims) at(path string) (any, bool) {
	if v, ok := c[path]; ok {
		return v, v != nil
	}
	for i := len(path) - 1; i > 0; i-- {
		if path[i] != '.' {
			continue
		}
		if m, ok := c[path[:i]].(map[string]any); ok {
			return claims(m).at(path[i+1:])
		}
	}
	return nil, false
}

// text returns a claim as a string; numbers and booleans become their JSON text.
// Empty where it is not there.
func (c claims) text(path string) (string, *Error) {
	v, ok := c.at(path)
	if !ok {
		return "", nil
	}
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case json.Number:
		s = v.String()
	case bool:
		s = fmt.Sprint(v)
	default:
		return "", refuse(ClaimInvalid, fmt.Sprintf("claim %s is no string", path))
	}
	if !clean(s) {
		return "", refuse(ClaimInvalid, fmt.Sprintf("claim %s is longer than %d bytes or holds control characters", path, maxClaim))
	}
	return s, nil
}

// required is text for a claim that must be there and not be empty.
func (c claims) required(path string) (string, *Error) {
	s, err := c.text(path)
	if err == nil && s == "" {
		err = refuse(ClaimMissing, fmt.Sprintf("the token has no claim %s", path))
	}
	return s, err
}

// clean refuses what would let two names look or compare the same: control
// characters, and U+FFFD, to which the decoder turns every lone surrogate.
func clean(s string) bool {
	if len(s) > maxClaim {
		return false
	}
	for _, r := range s {
		if r == utf8.RuneError || unicode.IsControl(r) {
			return false
		}
	}
	return true
}
