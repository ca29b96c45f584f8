package credential

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cloud.google.com/go/auth"
)

// maxAnswer bounds what is read of an answer; a token is a few KiB at most.
const maxAnswer = 64 << 10

// Error says why a remote service or a file gave no token. It holds a status, a
// code from a known list and words of this package, never bytes of the answer.
type Error struct {
	Name   string // the source, "kind:identity"
	Step   string // who was asked: "token endpoint", "metadata server", ...
	Status int    // HTTP status; 0 when there was no answer
	Code   string // OAuth or Google status code, when it is one that is known
	Reason string
	Hint   string // what to do
	cause  error  // context.Canceled, context.DeadlineExceeded or nil
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "credential %s: %s", e.Name, e.Step)
	if e.Status != 0 {
		fmt.Fprintf(&b, " answered %d", e.Status)
		if e.Code != "" {
			fmt.Fprintf(&b, " (%s)", e.Code)
		}
	}
	if e.Reason != "" {
		fmt.Fprintf(&b, ": %s", e.Reason)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, ": %s", e.Hint)
	}
	return b.String()
}

// Unwrap gives context.Canceled or context.DeadlineExceeded when that ended the fetch.
func (e *Error) Unwrap() error { return e.cause }

const (
	stepFile     = "file"
	stepOAuth    = "token endpoint"
	stepMetadata = "metadata server"
	stepIAM      = "IAM Credentials API"
	stepSTS      = "token exchange"
	stepADC      = "application default credentials"
)

// knownCodes are the codes that an error may quote: RFC 6749 section 5.2, RFC
// 8693 section 2.2.2, and google.rpc.Code.
var knownCodes = func() map[string]bool {
	m := map[string]bool{}
	for _, c := range strings.Fields(`invalid_request invalid_client invalid_grant unauthorized_client
		unsupported_grant_type invalid_scope invalid_target access_denied server_error temporarily_unavailable
		CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED
		UNAUTHENTICATED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL
		UNAVAILABLE DATA_LOSS`) {
		m[c] = true
	}
	return m
}()

// answerCode finds a known error code in an answer: {"error":"invalid_grant"} or
// {"error":{"status":"PERMISSION_DENIED"}}.
func answerCode(body []byte) string {
	var a struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(body, &a) != nil {
		return ""
	}
	var code string
	if json.Unmarshal(a.Error, &code) != nil {
		var g struct {
			Status string `json:"status"`
		}
		if json.Unmarshal(a.Error, &g) != nil {
			return ""
		}
		code = g.Status
	}
	if knownCodes[code] {
		return code
	}
	return ""
}

// wire sends requests to token endpoints.
type wire struct {
	client *http.Client
	own    bool
}

func newWire(c *http.Client) *wire {
	if c != nil {
		copied := *c
		copied.CheckRedirect = noRedirect
		return &wire{client: &copied}
	}
	return &wire{client: &http.Client{Transport: newTransport(http.ProxyFromEnvironment), CheckRedirect: noRedirect}, own: true}
}

func newTransport(proxy func(*http.Request) (*url.URL, error)) *http.Transport {
	return &http.Transport{
		Proxy:                  proxy,
		DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           16,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// noRedirect: a redirected token request would carry its secret elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (w *wire) close() {
	if w.own {
		w.client.CloseIdleConnections()
	}
}

// send does one request and returns the body of a 200 answer.
func (w *wire) send(req *http.Request, name, step string) ([]byte, http.Header, error) {
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, nil, cleaned(err, name, step)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, cleaned(err, name, step)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, &Error{Name: name, Step: step, Status: resp.StatusCode, Code: answerCode(body), Hint: statusHint(step, resp.StatusCode)}
	}
	if len(body) > maxAnswer {
		return nil, nil, &Error{Name: name, Step: step, Reason: fmt.Sprintf("the answer is longer than %d bytes", maxAnswer)}
	}
	return body, resp.Header, nil
}

func statusHint(step string, status int) string {
	switch {
	case status >= 300 && status < 400:
		return "redirects are not followed; check the endpoint's URL"
	case status == http.StatusTooManyRequests || status >= 500:
		return "it may pass; it is tried again"
	case step == stepIAM && status == http.StatusForbidden:
		return "give the source roles/iam.serviceAccountTokenCreator on the target (federation: roles/iam.workloadIdentityUser)"
	case step == stepIAM && status == http.StatusNotFound:
		return "check the email of the target"
	case step == stepIAM:
		return "check the target, the delegates and the lifetime"
	case step == stepSTS:
		return "check the provider's issuer, its keys, its allowed audiences and its attribute mapping"
	case step == stepMetadata && status == http.StatusNotFound:
		return "the machine has no such service account; attach one, or set account"
	case step == stepOAuth:
		return "check that the key still exists and its service account is enabled"
	}
	return ""
}

var statusText = regexp.MustCompile(`\b(?:status code|Received) (\d{3})\b`)

// cleaned turns an error of a transport or library into one that is known to
// hold no secret: only kinds of error whose text comes from this machine are
// quoted.
func cleaned(err error, name, step string) *Error {
	e := &Error{Name: name, Step: step}
	var (
		own        *Error
		library    *auth.Error
		dns        *net.DNSError
		op         *net.OpError
		errno      syscall.Errno
		path       *fs.PathError
		hostname   x509.HostnameError
		authority  x509.UnknownAuthorityError
		invalid    x509.CertificateInvalidError
		verify     *tls.CertificateVerificationError
		recordHead tls.RecordHeaderError
		timeout    net.Error
	)
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, context.Canceled):
		e.Reason, e.cause = "gave up waiting", context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		e.Reason, e.cause = "no answer in time", context.DeadlineExceeded
		e.Hint = "check the network, or raise timeout"
	case errors.As(err, &library):
		if library.Response != nil {
			e.Status = library.Response.StatusCode
		}
		e.Code = answerCode(library.Body)
		e.Hint = statusHint(step, e.Status)
	case errors.As(err, &path):
		e.Step, e.Reason = stepFile, fmt.Sprintf("%s %s: %s", path.Op, path.Path, errnoText(path.Err))
	case errors.As(err, &dns):
		e.Reason = "no address for host " + strconv.Quote(dns.Name)
		e.Hint = "check the host name and the resolver"
	case errors.As(err, &hostname), errors.As(err, &authority), errors.As(err, &invalid), errors.As(err, &verify):
		e.Reason = "its certificate is not trusted"
		e.Hint = "check the host and the machine's CA certificates"
	case errors.As(err, &recordHead):
		e.Reason = "it does not speak TLS"
		e.Hint = "check the URL's scheme and port"
	case errors.As(err, &timeout) && timeout.Timeout():
		e.Reason, e.cause = "no answer in time", context.DeadlineExceeded
		e.Hint = "check the network, or raise timeout"
	case errors.As(err, &op) && errors.As(op.Err, &errno):
		e.Reason = op.Op + ": " + errno.Error()
		if op.Addr != nil {
			e.Reason = op.Op + " " + op.Addr.String() + ": " + errno.Error()
		}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		e.Reason = "the answer broke off"
	default:
		// The text may hold the answer's body; a status in a known place is all
		// that is safe to take.
		if m := statusText.FindStringSubmatch(err.Error()); m != nil {
			e.Status, _ = strconv.Atoi(m[1])
			e.Hint = statusHint(step, e.Status)
			break
		}
		e.Reason = "no answer that can be used"
	}
	return e
}

func errnoText(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "no such file"
	}
	return "cannot be read"
}

// tokenBytes is RFC 6750's b64token: what can stand in an Authorization header.
var tokenBytes = regexp.MustCompile(`^[A-Za-z0-9\-._~+/]+=*$`)

// maxToken bounds a token so that it fits a request header with room to spare.
const maxToken = 16 << 10

func checkToken(value string) error {
	switch {
	case value == "":
		return errors.New("there is no token in it")
	case len(value) > maxToken:
		return fmt.Errorf("the token is longer than %d bytes", maxToken)
	case !tokenBytes.MatchString(value):
		return errors.New("the token has characters that no bearer token may have (RFC 6750)")
	}
	return nil
}

// grant is the answer of an OAuth token endpoint, RFC 6749 section 5.1.
type grant struct {
	AccessToken     string `json:"access_token"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	IssuedTokenType string `json:"issued_token_type"`
}

// read checks body and returns the token; begun is when the request was sent.
func (g *grant) read(body []byte, begun time.Time, name, step string) (Token, error) {
	fail := func(reason string) (Token, error) {
		return Token{}, &Error{Name: name, Step: step, Reason: reason}
	}
	if json.Unmarshal(body, g) != nil {
		return fail("the answer is not the JSON that was expected")
	}
	if err := checkToken(g.AccessToken); err != nil {
		return fail(err.Error())
	}
	if !strings.EqualFold(g.TokenType, "Bearer") {
		return fail("the token's type is not Bearer")
	}
	const year = 366 * 24 * 60 * 60
	if g.ExpiresIn <= 0 || g.ExpiresIn > year {
		return fail("it does not say when the token expires")
	}
	return Token{Value: g.AccessToken, Expires: expiry(begun, time.Duration(g.ExpiresIn)*time.Second), Name: name}, nil
}

// expiry counts from before the request, so that the true one is never earlier.
func expiry(begun time.Time, life time.Duration) time.Time { return begun.Round(0).Add(life) }

// silent keeps libraries from logging requests when GOOGLE_SDK_GO_LOGGING_LEVEL
// is set: their debug lines hold tokens.
func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }
