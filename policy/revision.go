package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Finding is a fault of the policy's configuration that does not keep the
// policy from working: a grant that matches nobody.
type Finding struct {
	Where   string // "grants.analysts"
	Message string
}

// Revision is one policy, compiled and tried. It never changes, and its
// methods may be called concurrently.
type Revision struct {
	digest     string
	findings   []Finding
	timeout    time.Duration
	query      rego.PreparedEvalQuery
	decisionAt string // file:line of the decision rule
}

// Digest returns "sha256:" and the hex SHA-256 over the policy's files.
func (r *Revision) Digest() string { return r.digest }

// Findings returns the faults of the policy's configuration, for a human.
func (r *Revision) Findings() []Finding { return r.findings }

// Decide evaluates the policy. An error is an [*Error] and denies; its text
// holds nothing of the input.
func (r *Revision) Decide(ctx context.Context, in *Input) (*Decision, error) {
	return r.decide(ctx, in, r.timeout)
}

func (r *Revision) decide(ctx context.Context, in *Input, timeout time.Duration) (*Decision, error) {
	value, err := in.value()
	if err != nil {
		return nil, &Error{Code: CodeError, Message: "input: " + err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	results, err := r.query.Eval(ctx, rego.EvalParsedInput(value))
	if err != nil {
		return nil, failure(ctx, err, timeout)
	}
	if ctx.Err() != nil {
		return nil, failure(ctx, ctx.Err(), timeout)
	}
	if len(results) == 0 {
		return nil, &Error{Code: CodeUndefined, Message: "no rule gave a decision", at: r.decisionAt}
	}
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return nil, &Error{Code: CodeError, Message: "more than one decision", at: r.decisionAt}
	}
	term, ok := results[0].Expressions[0].Value.(*ast.Term)
	if !ok {
		return nil, &Error{Code: CodeError, Message: "the decision is no term", at: r.decisionAt}
	}
	d, err := readDecision(term.Value)
	if err != nil {
		return nil, &Error{Code: CodeError, Message: "ill-typed decision: " + err.Error(), at: r.decisionAt}
	}
	return d, nil
}

// failure says what kept the evaluation from a decision. OPA's own messages can
// quote the input (a string that would not parse), so only their code and
// place are taken; the cause is kept for samples.
func failure(ctx context.Context, err error, timeout time.Duration) *Error {
	if ctx.Err() != nil || topdown.IsCancel(err) {
		if errors.Is(ctx.Err(), context.Canceled) {
			return &Error{Code: CodeTimeout, Message: "the evaluation was cancelled"}
		}
		return &Error{Code: CodeTimeout, Message: fmt.Sprintf("no decision in %s", timeout)}
	}
	var e *topdown.Error
	if errors.As(err, &e) {
		at := where(e.Location)
		return &Error{Code: CodeError, Message: fmt.Sprintf("%s: %s", at, e.Code), at: at, cause: evalError(err)}
	}
	return &Error{Code: CodeError, Message: "the evaluation failed", cause: err}
}
