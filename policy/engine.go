package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// The defaults of [Config].
const (
	DefaultTimeout = 250 * time.Millisecond
	DefaultPoll    = 5 * time.Second
)

// Config says where the policy comes from. With neither Dir nor Bundle it is
// the embedded default with its own data, which grants nothing.
type Config struct {
	// Dir is a folder with *.rego, data.json and data.yaml. Without any .rego
	// but tests, its data feeds the default rules.
	Dir string
	// Bundle is an OPA bundle, a .tar.gz file. Only one of Dir and Bundle may be set.
	Bundle string
	// PublicKey is a PEM file. When it is set, the bundle must carry a
	// signature that it verifies. It needs Bundle.
	PublicKey string
	// Timeout bounds one evaluation; 0 means [DefaultTimeout].
	Timeout time.Duration
	// Poll is how often [Engine.Watch] looks for a change; 0 means [DefaultPoll].
	Poll   time.Duration
	Logger *slog.Logger // nil discards
}

// Engine holds the policy in force. Its methods may be called concurrently.
type Engine struct {
	config  Config
	log     *slog.Logger
	current atomic.Pointer[Revision]
	lastErr atomic.Pointer[error]

	mu     sync.Mutex // serialises Reload
	failed string     // digest or error text of the last failure, so that it is logged once
}

// New loads the policy and tries it. It fails when there is no policy that can
// be put in force.
func New(ctx context.Context, c Config) (*Engine, error) {
	switch {
	case c.Dir != "" && c.Bundle != "":
		return nil, errors.New("policy: both a folder and a bundle are set: set one")
	case c.PublicKey != "" && c.Bundle == "":
		return nil, errors.New("policy: a public key is set without a bundle: only bundles are signed")
	case c.Timeout < 0 || c.Poll < 0:
		return nil, errors.New("policy: timeout and poll must not be negative")
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Poll == 0 {
		c.Poll = DefaultPoll
	}
	e := &Engine{config: c, log: c.Logger}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if _, err := e.Reload(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// Current returns the revision in force. It stays valid after a reload: an
// exchange asks the revision that it began with.
func (e *Engine) Current() *Revision { return e.current.Load() }

// Digest returns the digest of the revision in force.
func (e *Engine) Digest() string { return e.Current().Digest() }

// Decide asks the revision in force. An error is an [*Error] and denies.
func (e *Engine) Decide(ctx context.Context, in *Input) (*Decision, error) {
	return e.Current().Decide(ctx, in)
}

// LastError returns why the last reload failed, nil when it did not. While it
// is not nil, the policy in force is older than its source.
func (e *Engine) LastError() error {
	if p := e.lastErr.Load(); p != nil {
		return *p
	}
	return nil
}

// Reload reads the source and, when it has changed, builds a new revision,
// tries it on the samples and puts it in force. On an error the revision in
// force stays. changed is true when another revision is in force afterwards.
func (e *Engine) Reload(ctx context.Context) (changed bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	changed, failing, err := e.reload(ctx)
	if err != nil {
		e.lastErr.Store(&err)
		if old := e.Current(); old != nil && failing != e.failed {
			e.log.LogAttrs(ctx, slog.LevelError, "new policy refused, the old one stays in force",
				slog.String("error", err.Error()), slog.String("digest", old.Digest()))
		}
		e.failed = failing
		return false, err
	}
	e.lastErr.Store(nil)
	if e.failed != "" && !changed {
		e.log.LogAttrs(ctx, slog.LevelInfo, "policy source is back to the policy in force", slog.String("digest", e.Digest()))
	}
	e.failed = ""
	return changed, nil
}

// reload returns, with an error, a text that stays the same as long as the
// failure does.
func (e *Engine) reload(ctx context.Context) (changed bool, failing string, err error) {
	s, err := e.read(ctx)
	if err != nil {
		err = fmt.Errorf("policy: %w", err)
		return false, err.Error(), err
	}
	digest := s.digest()
	old := e.Current()
	if old != nil && old.digest == digest {
		return false, "", nil
	}
	if e.failed == digest {
		// Known to be bad: do not compile it again at each poll.
		return false, digest, e.LastError()
	}
	r, err := build(ctx, s, e.config.Timeout)
	if err != nil {
		err = fmt.Errorf("policy: %w", err)
		if ctx.Err() != nil {
			return false, err.Error(), err
		}
		return false, digest, err
	}
	e.current.Store(r)
	attrs := []slog.Attr{slog.String("digest", digest), slog.String("source", s.name), slog.Int("files", len(s.files))}
	if old != nil {
		attrs = append(attrs, slog.String("previous", old.digest))
	}
	e.log.LogAttrs(ctx, slog.LevelInfo, "policy in force", attrs...)
	for _, f := range r.findings {
		e.log.LogAttrs(ctx, slog.LevelWarn, "policy configuration finding", slog.String("where", f.Where), slog.String("finding", f.Message))
	}
	return true, "", nil
}

// Watch looks for a change at each poll until ctx ends. A policy that fails is
// logged once, and the one in force stays; see [Engine.LastError]. It blocks:
// the caller owns the goroutine.
func (e *Engine) Watch(ctx context.Context) {
	if e.config.Dir == "" && e.config.Bundle == "" {
		<-ctx.Done()
		return
	}
	t := time.NewTicker(e.config.Poll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			_, _ = e.Reload(ctx) // logged and kept for LastError
		}
	}
}
