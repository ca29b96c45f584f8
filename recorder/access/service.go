package access

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
)

// Recorder takes records; a journal is one.
type Recorder interface {
	Append(drafts ...record.Draft) *record.Ticket
}

// Reader is who asks, as a verified token proves it.
type Reader struct {
	Principal  record.Principal
	Provenance record.Provenance
	Role       Role // empty: none
	// Session chooses the data key that access records are sealed with.
	Session string
	Expires time.Time // of the token
}

// Refusal is why a request proves nobody. Its texts hold nothing of a token.
type Refusal struct {
	Code, Message string
	// Unavailable: the fault is not the token's, and it may pass later.
	Unavailable bool
}

func (r *Refusal) Error() string { return r.Code + ": " + r.Message }

// Config configures a [Service].
type Config struct {
	Name  string // of the service, as its records have it
	Vault ledger.Vault
	// Keys returns what opens bodies, anew for each request: a key that was
	// erased must not live on in a cache.
	Keys func() (ledger.Opener, error)
	// Tenant returns the tenant's private keyset as it is now, for bundles. Nil:
	// they hold no keys.
	Tenant func() *keyset.Handle
	// Exported, where set, notes in the vault that a bundle with data keys left:
	// who made it, the file's SHA-256 in hex, and the keys, EPOCH/KEYID.
	Exported func(ctx context.Context, by, sha256 string, keys []string) error
	// Recorder takes the access records.
	Recorder Recorder
	// Refused, where set, counts what was refused because nothing could be
	// recorded.
	Refused func()
	// Authenticate proves who asks, or returns a [*Refusal].
	Authenticate func(*http.Request) (*Reader, error)

	Requests int           // served at once; default 8
	Memory   int           // bytes that one search may sort; default 64 MiB
	Durable  time.Duration // the longest wait for a record to be durable; default 10 s
	Stall    time.Duration // the longest wait for a reader to take a piece; default 30 s
	Logger   *slog.Logger
	Now      func() time.Time
}

// Service answers reads. It is safe for concurrent use.
type Service struct {
	c     Config
	log   *slog.Logger
	slots chan struct{}
	mux   *http.ServeMux
	slow  refusals
}

// New returns a service.
func New(c Config) (*Service, error) {
	if c.Vault == nil || c.Keys == nil || c.Recorder == nil || c.Authenticate == nil {
		return nil, errors.New("access: vault, keys, recorder and authenticate must be set")
	}
	if c.Requests <= 0 {
		c.Requests = 8
	}
	if c.Memory <= 0 {
		c.Memory = 64 << 20
	}
	if c.Durable <= 0 {
		c.Durable = 10 * time.Second
	}
	if c.Stall <= 0 {
		c.Stall = 30 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Service{c: c, log: c.Logger, slots: make(chan struct{}, c.Requests), mux: http.NewServeMux()}
	s.mux.HandleFunc("POST /v1/search", s.read(ActionSearch, (*call).search))
	s.mux.HandleFunc("POST /v1/show", s.read(ActionShow, (*call).show))
	s.mux.HandleFunc("POST /v1/payload", s.read(ActionPayload, (*call).payload))
	s.mux.HandleFunc("POST /v1/accesses", s.read(ActionAccesses, (*call).accesses))
	s.mux.HandleFunc("POST /v1/export", s.read(ActionExport, (*call).export))
	s.mux.HandleFunc("POST /v1/reconcile", s.read(ActionReconcile, (*call).reconcile))
	s.mux.HandleFunc("GET /v1/whoami", s.read(actionWhoami, (*call).whoami))
	return s, nil
}

// ServeHTTP answers one request.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	s.mux.ServeHTTP(w, r)
}

// call is one request of a reader who has a role.
type call struct {
	s       *Service
	w       http.ResponseWriter
	r       *http.Request
	reader  *Reader
	action  string
	control *http.ResponseController
}

// read authenticates before anything of the request is read, and refuses on
// record.
func (s *Service) read(action string, do func(*call) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{s: s, w: w, r: r, action: action, control: http.NewResponseController(w)}
		err := c.authenticate()
		if err == nil {
			select {
			case s.slots <- struct{}{}:
				err = func() error {
					defer func() { <-s.slots }()
					return do(c)
				}()
			default:
				err = &Error{Status: http.StatusServiceUnavailable, Code: CodeBusy, Message: "the service answers as many as it may: try again"}
			}
		}
		if err != nil {
			c.fail(err)
		}
	}
}

func (c *call) authenticate() error {
	reader, err := c.s.c.Authenticate(c.r)
	var no *Refusal
	switch {
	case errors.As(err, &no) && no.Unavailable:
		return c.stranger(&Error{Status: http.StatusServiceUnavailable, Code: no.Code, Message: no.Message})
	case errors.As(err, &no):
		return c.stranger(&Error{Status: http.StatusUnauthorized, Code: no.Code, Message: no.Message})
	case err != nil:
		c.s.log.Error("access: authentication failed", "error", err)
		return &Error{Status: http.StatusServiceUnavailable, Code: CodeFailed, Message: "who asks cannot be proven now: try again"}
	}
	c.reader = reader
	if reader.Role != Viewer && reader.Role != Auditor {
		return c.stranger(&Error{Status: http.StatusForbidden, Code: CodeNoRole, Message: "you have no role here: an auditor's or viewer's group is needed"})
	}
	return nil
}

// stranger refuses somebody without a role, on record unless they come too fast.
func (c *call) stranger(e *Error) error {
	skipped, ok := c.s.slow.take(c.s.c.Now())
	if !ok {
		return &Error{Status: http.StatusTooManyRequests, Code: CodeSlow, Message: "too many requests were refused: come later"}
	}
	a := c.access(record.AccessTo{Action: c.action}, "")
	a.Code, a.Message, a.Unrecorded = e.Code, e.Message, skipped
	if _, err := c.record(a); err != nil {
		c.s.slow.back(skipped)
		return err
	}
	return e
}

// refuse refuses a reader who has a role, on record.
func (c *call) refuse(what record.AccessTo, why string, e *Error) error {
	a := c.access(what, why)
	a.Code, a.Message = e.Code, e.Message
	if _, err := c.record(a); err != nil {
		return err
	}
	return e
}

// access begins a record of this call.
func (c *call) access(what record.AccessTo, why string) *record.Access {
	a := &record.Access{
		Session: "nobody", At: c.s.c.Now().UTC(), From: c.r.RemoteAddr, UserAgent: c.r.UserAgent(), What: what, Why: why,
	}
	if len(a.UserAgent) > 256 {
		a.UserAgent = a.UserAgent[:256]
	}
	if r := c.reader; r != nil {
		p, v := r.Principal, r.Provenance
		a.Session, a.Who, a.Provenance, a.Role = r.Session, &p, &v, string(r.Role)
	}
	return a
}

// record makes the record durable. Its error is what the caller gets: nothing
// may be given out.
func (c *call) record(a *record.Access) (record.ID, error) {
	none := &Error{Status: http.StatusServiceUnavailable, Code: CodeNotRecorded, Message: "the reading cannot be recorded now, so nothing is given out: try again"}
	failed := func(err error) (record.ID, error) {
		if c.s.c.Refused != nil {
			c.s.c.Refused()
		}
		c.s.log.Error("access: not recorded, nothing is given out", "action", a.What.Action, "error", err)
		return record.ID{}, none
	}
	body, err := record.Marshal(a)
	if err != nil {
		return failed(err)
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), c.s.c.Durable)
	defer cancel()
	t := c.s.c.Recorder.Append(record.Draft{Kind: record.KindAccess, Session: a.Session, Body: body})
	if err := t.Wait(ctx); err != nil {
		return failed(err)
	}
	c.s.log.Info("access: recorded", "access", t.ID.String(), "action", a.What.Action, "allowed", a.Allowed, "code", a.Code, "records", len(a.Records))
	return t.ID, nil
}

// fail answers with an error. Where the answer has begun it ends the
// connection, so that nobody takes it for whole.
func (c *call) fail(err error) {
	var e *Error
	if !errors.As(err, &e) {
		if c.r.Context().Err() == nil {
			c.s.log.Error("access: failed", "action", c.action, "error", err)
		}
		e = &Error{Status: http.StatusInternalServerError, Code: CodeFailed, Message: "the vault could not be read: the service's log says why"}
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	if e.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	b, err := json.Marshal(errorBody{e})
	if err != nil { // two strings
		b = nil
	}
	c.deadline()
	c.w.WriteHeader(e.Status)
	_, _ = c.w.Write(append(b, '\n'))
}

// deadline gives the reader time for the next piece.
func (c *call) deadline() {
	_ = c.control.SetWriteDeadline(time.Now().Add(c.s.c.Stall)) // recorders of tests have none
}

// body reads the request's JSON.
func (c *call) body(v any) error {
	bad := func(format string, args ...any) error {
		return &Error{Status: http.StatusBadRequest, Code: CodeBad, Message: fmt.Sprintf(format, args...)}
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxRequest))
	if err != nil {
		return bad("the request's body cannot be read, or has more than %d bytes", maxRequest)
	}
	if err := strict(b, v); err != nil {
		return badRequest(err)
	}
	return nil
}

// strict reads one JSON value that has no fields but those of v.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the request's body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request's body: more follows its JSON")
	}
	return nil
}

func badRequest(err error) error {
	return &Error{Status: http.StatusBadRequest, Code: CodeBad, Message: err.Error()}
}

func (c *call) whoami() error {
	p := c.reader.Principal
	return c.json(Whoami{Issuer: p.Issuer, Subject: p.Subject, Email: p.Email, Groups: p.Groups, Role: c.reader.Role, Service: c.s.c.Name, Expires: c.reader.Expires})
}

// json answers one object.
func (c *call) json(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	for b = append(b, '\n'); len(b) > 0; {
		n := min(len(b), 256<<10)
		c.deadline()
		if _, err := c.w.Write(b[:n]); err != nil {
			return nil // the reader left
		}
		b = b[n:]
	}
	return nil
}
