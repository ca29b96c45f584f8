package policy

import (
	"context"
	"errors"
	"time"
)

// Finding is a fault of the policy's configuration that does not keep it from
// working: a grant that matches nobody.
type Finding struct {
	Where   string // "grants.analysts"
	Message string
}

// Revision is one policy, compiled and tried. It never changes.
type Revision struct {
	digest   string
	findings []Finding
	timeout  time.Duration
}

// Digest returns "sha256:" and the hex SHA-256 over the policy's files.
func (r *Revision) Digest() string { return r.digest }

// Findings returns the faults of the policy's configuration.
func (r *Revision) Findings() []Finding { return r.findings }

// Decide evaluates the policy. An error is an [*Error] and denies.
func (r *Revision) Decide(ctx context.Context, in *Input) (*Decision, error) {
	return nil, &Error{Code: CodeUndefined, Message: "no policy"}
}

func build(ctx context.Context, s *source, timeout time.Duration) (*Revision, error) {
	return nil, errors.New("not built")
}
