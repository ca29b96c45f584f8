// Package credential obtains the Google access tokens that go upstream in place
// of the caller's own.
//
// The rule of this folder: a token that is expired, or whose source failed, is
// never handed out, and no secret (token, assertion, private key, or the body of
// an answer that may echo one) stands in an error, a log line or a String.
package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"verbatim.dev/recorder/record"
)

// Scope is what tokens are asked for unless Config.Scopes says otherwise
// (https://developers.google.com/identity/protocols/oauth2/scopes#bigquery).
const Scope = "https://www.googleapis.com/auth/bigquery"

// cloudPlatform is what calling the IAM Credentials API needs.
const cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"

// ErrClosed is returned by a source after Close.
var ErrClosed = errors.New("credential source is closed")

// Caller is whom a token is for. Only the kind "federation" looks at it; the
// others have one token for all.
type Caller struct {
	Session   string
	Principal record.Principal
}

// Token is a bearer token for Google's APIs. It prints as "[redacted]".
type Token struct {
	Value string
	// Expires is zero when the source does not say (a plain token file).
	Expires time.Time
	// Name is "kind:identity", for the record; it holds no secret.
	Name string
}

// String hides the value.
func (t Token) String() string { return t.Name + " [redacted]" }

// GoString hides the value from %#v.
func (t Token) GoString() string { return t.String() }

// Format hides the value from every verb.
func (t Token) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(t.String())) }

// LogValue hides the value from slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalJSON hides the value from encoders.
func (t Token) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }

// Source gives out tokens. It is safe for concurrent use.
type Source interface {
	// Token returns a token that is valid for some seconds at least. It waits for
	// a fetch when none is at hand, at most until ctx ends. A caller that cannot
	// have one gets an error, a *Error where a remote service refused.
	Token(ctx context.Context, caller Caller) (Token, error)
	// Check obtains a token afresh and throws it away; federation does so for a
	// caller of its own making, short of the impersonation.
	Check(ctx context.Context) error
	// Close ends the source's goroutines and drops its tokens.
	Close() error
}

// Deps are what a source uses of the world. Zero values mean the real ones.
type Deps struct {
	// Client sends the requests to token endpoints. Redirects are not followed
	// whatever it says. Nil: a client of the source's own.
	Client *http.Client
	Logger *slog.Logger
	// Getenv is asked for GCE_METADATA_HOST.
	Getenv func(string) string
}

// New makes the source that c describes. It reads key files, so that a broken
// one is found now, but asks no remote service.
func New(c Config, d Deps) (Source, error) {
	if p := c.Problems(); len(p) > 0 {
		errs := make([]error, len(p))
		for i := range p {
			errs[i] = p[i]
		}
		return nil, fmt.Errorf("credential: %w", errors.Join(errs...))
	}
	c = c.withDefaults()
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Getenv == nil {
		d.Getenv = os.Getenv
	}
	w := newWire(d.Client)
	switch c.Kind {
	case KindServiceAccountKey:
		return newServiceAccount(c, w, d.Logger)
	case KindADC:
		return newADC(c, w, d.Logger)
	case KindMetadata:
		return newMetadata(c, d)
	case KindImpersonation:
		return newImpersonation(c, w, d)
	case KindFederation:
		return newFederation(c, w, d.Logger)
	case KindTokenFile:
		return newTokenFile(c)
	}
	return nil, fmt.Errorf("credential: unknown kind %q", c.Kind) // Problems has refused it already
}
