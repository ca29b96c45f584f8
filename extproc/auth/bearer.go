package auth

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"verbatim.dev/recorder/record"
)

// Redacted stands where a credential was.
const Redacted = "REDACTED"

// queryCredentials are parameters that carry a credential, lower-case, without the
// leading $ that Google allows before each of its system parameters
// (https://cloud.google.com/apis/docs/system-parameters). httpHeaders smuggles whole
// headers.
var queryCredentials = set(
	"access_token", "oauth_token", "bearer_token", "id_token", "refresh_token", "token", "jwt",
	"key", "api_key", "apikey", "authorization", "httpheaders",
	"client_secret", "assertion", "client_assertion", "subject_token", "actor_token", "password",
	"x-goog-signature", "x-goog-credential", "x-amz-signature", "x-amz-credential", "x-amz-security-token", "sig",
)

// refusedHeaders are credentials to Google or to a proxy. They are refused, not
// dropped: their sender believes that they count.
var refusedHeaders = set("x-goog-api-key", "x-goog-iam-authorization-token", "x-serverless-authorization", "proxy-authorization", "x-authorization")

// refusedCookies name a Google sign-in or a token.
var refusedCookies = set(
	"sid", "hsid", "ssid", "apisid", "sapisid", "lsid", "osid", "sidcc",
	"access_token", "id_token", "refresh_token", "oauth_token", "bearer_token", "token", "jwt", "authorization",
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Bearer returns the token of a request: of its one Authorization header, scheme
// Bearer (RFC 6750, section 2.1). A request that carries a credential in another
// place, or more than one, is refused with an *Error, whatever that credential is
// worth; the package comment lists the places. The token itself is not looked into.
func Bearer(headers []record.Header, rawQuery string) (token string, err error) {
	if InQuery(rawQuery) {
		return "", refuse(CredentialInQuery, "the URL carries a credential, which logs and proxies would keep; send the token in the Authorization header")
	}
	var value string
	found := 0
	for _, h := range headers {
		switch name := headerName(h.Name); {
		case name == "authorization":
			value = h.Value
			found++
		case refusedHeaders[name]:
			return "", refuse(CredentialInHeader, "header "+name+" carries another credential; send only the Authorization header")
		case name == "cookie" && cookieCredential(h.Value):
			return "", refuse(CredentialInHeader, "a cookie carries another credential; send only the Authorization header")
		}
	}
	switch {
	case found == 0:
		return "", refuse(TokenMissing, "the request has no Authorization header; send Authorization: Bearer TOKEN")
	case found > 1:
		return "", refuse(CredentialDuplicate, "the request has more than one Authorization header")
	}
	scheme, token, _ := strings.Cut(strings.Trim(value, " \t"), " ")
	token = strings.TrimLeft(token, " ")
	switch {
	case scheme == "":
		return "", refuse(TokenMissing, "the Authorization header is empty")
	case !strings.EqualFold(scheme, "bearer"):
		return "", refuse(SchemeRefused, "the Authorization header's scheme is not Bearer")
	case token == "":
		return "", refuse(TokenMissing, "the Authorization header has no token after Bearer")
	case len(token) > MaxToken:
		return "", refuse(TokenTooLarge, fmt.Sprintf("the token has %d bytes, more than the %d that are looked at", len(token), MaxToken))
	case !token68(token):
		return "", refuse(TokenMalformed, "the Authorization header holds more than one token, or characters that no token has")
	}
	return token, nil
}

// token68 reports whether s has the form of a bearer token (RFC 6750, section 2.1).
func token68(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		if c := s[i]; !base64url(c) && c != '.' && c != '~' && c != '+' && c != '/' {
			return false
		}
	}
	return s != ""
}

func base64url(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func headerName(name string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "_", "-")
}

func cookieCredential(value string) bool {
	if CredentialValue(value) {
		return true
	}
	for pair := range strings.SplitSeq(value, ";") {
		name, _, _ := strings.Cut(pair, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		name = strings.TrimPrefix(strings.TrimPrefix(name, "__secure-"), "__host-")
		name = strings.TrimPrefix(strings.TrimPrefix(name, "1p"), "3p")
		if refusedCookies[strings.TrimPrefix(name, "p")] || refusedCookies[name] {
			return true
		}
	}
	return false
}

// CredentialHeader reports whether a header of this name, in a request or response,
// may hold a credential of the caller. Such a header goes neither upstream nor into a
// record or log. It errs on the side of yes.
func CredentialHeader(name string) bool {
	name = headerName(name)
	for _, part := range []string{"authorization", "cookie", "api-key", "apikey", "secret", "password", "credential", "jwt", "access-token"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return strings.HasSuffix(name, "-token") || name == "token" || name == "dpop"
}

// CredentialValue reports whether a value, of a header whose name says nothing, holds
// a JWT, a bearer credential, or a Google token or API key.
func CredentialValue(value string) bool {
	if len(value) < 20 {
		return false
	}
	for rest := value; ; {
		i := indexFold(rest, "bearer ")
		if i < 0 {
			break
		}
		rest = strings.TrimLeft(rest[i+len("bearer "):], " ")
		n := 0
		for n < len(rest) && (base64url(rest[n]) || strings.IndexByte(".~+/=", rest[n]) >= 0) {
			n++
		}
		if n >= 16 {
			return true
		}
	}
	for i := 0; i < len(value); {
		// A run of what tokens are made of.
		n := i
		for n < len(value) && (base64url(value[n]) || value[n] == '.') {
			n++
		}
		if n-i >= 20 && credentialRun(value[i:n]) {
			return true
		}
		i = n + 1
	}
	if i := strings.Index(value, "1//0"); i >= 0 {
		rest := value[i+len("1//0"):]
		return len(strings.TrimLeftFunc(rest, func(r rune) bool { return r < 0x80 && base64url(byte(r)) }))+30 <= len(rest) // a Google refresh token
	}
	return false
}

func indexFold(s, lower string) int {
	for i := 0; i+len(lower) <= len(s); i++ {
		if strings.EqualFold(s[i:i+len(lower)], lower) {
			return i
		}
	}
	return -1
}

func credentialRun(run string) bool {
	for _, prefix := range []string{"ya29.", "AIza"} {
		if i := strings.Index(run, prefix); i >= 0 && len(run)-i >= 20 {
			return true
		}
	}
	// The header of a JWS or JWE is a JSON object with alg in it, with a part behind it.
	for rest := run; ; {
		part, more, ok := strings.Cut(rest, ".")
		if !ok {
			return false
		}
		if more != "" && joseHeader(part) {
			return true
		}
		rest = more
	}
}

// joseHeader reports whether an encoded object with alg in it begins anywhere in part,
// for text may be glued before it. It is linear in part: one decoding for each
// alignment.
func joseHeader(part string) bool {
	for shift := range min(4, len(part)) {
		aligned := part[shift:]
		if len(aligned)%4 == 1 {
			aligned = aligned[:len(aligned)-1]
		}
		b, err := base64.RawURLEncoding.DecodeString(aligned)
		if err != nil {
			continue
		}
		if i := bytes.IndexByte(b, '{'); i >= 0 && bytes.Contains(b[i:], []byte(`"alg"`)) {
			return true
		}
	}
	return false
}

// InQuery reports whether a query carries a credential.
func InQuery(rawQuery string) bool {
	found := false
	eachPair(rawQuery, func(pair, _ string) {
		_, credential := redactPair(pair)
		found = found || credential
	})
	return found
}

// RedactQuery returns the query as it is, but for credentials, which become
// [Redacted]. A query that InQuery says no to comes back unchanged.
func RedactQuery(rawQuery string) string {
	var b strings.Builder
	eachPair(rawQuery, func(pair, separator string) {
		pair, _ = redactPair(pair)
		b.WriteString(pair)
		b.WriteString(separator)
	})
	return b.String()
}

func redactPair(pair string) (redacted string, credential bool) {
	rawName, rawValue, equals := strings.Cut(pair, "=")
	name, value := decode(rawName), decode(rawValue)
	named := false
	for n, piece := range pieces(name) {
		named = named || credentialName(piece)
		if n > 0 || strings.Contains(piece, "=") {
			// The name may hold a value itself, for a server that decodes before it splits.
			rawName = Redacted
		}
	}
	if CredentialValue(name) {
		named, rawName = true, Redacted
	}
	if !named {
		valued := CredentialValue(value)
		for n, piece := range pieces(value) {
			valued = valued || n > 0 && strings.Contains(piece, "=") && credentialName(piece)
		}
		if !valued {
			return pair, false
		}
	}
	if !equals {
		return rawName, true
	}
	return rawName + "=" + Redacted, true
}

// pieces splits where a server that decodes before it splits would.
func pieces(s string) []string {
	return strings.Split(separators.Replace(s), "&")
}

var separators = strings.NewReplacer("?", "&", ";", "&", "#", "&")

// eachPair splits at & and at ;, which some servers take for & as well.
func eachPair(rawQuery string, f func(pair, separator string)) {
	for {
		i := strings.IndexAny(rawQuery, "&;")
		if i < 0 {
			f(rawQuery, "")
			return
		}
		f(rawQuery[:i], rawQuery[i:i+1])
		rawQuery = rawQuery[i+1:]
	}
}

// credentialName reports whether a decoded parameter, with or without its value, is
// one of queryCredentials in some spelling.
func credentialName(name string) bool {
	if i := strings.IndexAny(name, "=["); i >= 0 {
		name = name[:i]
	}
	name = strings.ToLower(strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f {
			return -1
		}
		return r
	}, name))
	return queryCredentials[strings.TrimLeft(name, "$")]
}

// decode undoes percent encoding, several times over and past what is malformed, as
// the laxest server on the way might.
func decode(s string) string {
	for range 4 {
		next := decodeOnce(s)
		if next == s {
			break
		}
		s = next
	}
	return s
}

func decodeOnce(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b = append(b, ' ')
		case s[i] == '%' && i+2 < len(s) && hexDigit(s[i+1]) >= 0 && hexDigit(s[i+2]) >= 0:
			b = append(b, byte(hexDigit(s[i+1])<<4|hexDigit(s[i+2])))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return string(b)
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
