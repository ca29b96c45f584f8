package policy

import (
	"context"
	"encoding/json"
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

// Window is a window of time in which a policy's budgets count: what the gateway
// has to keep for [Usage].
type Window struct {
	Of      string // principal or run
	Seconds int64  // length, at least 1
}

// Revision is one policy, compiled and tried. It never changes, and its
// methods may be called concurrently.
type Revision struct {
	digest     string
	findings   []Finding
	windows    []Window
	timeout    time.Duration
	query      rego.PreparedEvalQuery
	granted    rego.PreparedEvalQuery
	decisionAt string // file:line of the decision rule
	recall     *recall
}

// Digest returns "sha256:" and the hex SHA-256 over the policy's files.
func (r *Revision) Digest() string { return r.digest }

// Findings returns the faults of the policy's configuration, for a human.
func (r *Revision) Findings() []Finding { return r.findings }

// Windows returns the windows of the policy's budgets, sorted, none twice: what
// the gateway has to put into [Usage]. They are data.verbatim.prepare.windows, an
// array of {"of", "seconds"}, where the policy has it.
func (r *Revision) Windows() []Window { return r.windows }

// Decide evaluates the policy. An error is an [*Error] and denies; its text
// holds nothing of the input.
//
// The same input, as far as the rules can see it, gets the decision that it got
// before. SQL that is not understood (Facts.Problem) is never allowed, unless a
// whole dry run stands in for what the parser could not read.
func (r *Revision) Decide(ctx context.Context, in *Input) (*Decision, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	w := in.scan()
	s, ok := r.recall.digest(in, w)
	if ok {
		if d := r.recall.get(s); d != nil {
			if err := r.asksInVain(in, d); err != nil {
				return nil, err
			}
			return hold(in, d), nil
		}
	}
	d, err := r.decide(ctx, in, w, r.timeout)
	if err != nil {
		return nil, err
	}
	if ok {
		r.recall.put(s, d)
	}
	return hold(in, d), nil
}

// Granted returns what the policy tells a caller of its own rights, as JSON:
// data.verbatim.policy.granted, where the policy has it, nil where it has not. It
// sees the caller and its provenance, and no request.
func (r *Revision) Granted(ctx context.Context, in *Input) (json.RawMessage, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	value, err := in.value(nil)
	if err != nil {
		return nil, &Error{Code: CodeError, Message: "input: " + err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	results, err := r.granted.Eval(ctx, rego.EvalParsedInput(value))
	switch {
	case err != nil:
		return nil, failure(ctx, err, r.timeout)
	case len(results) == 0:
		return nil, nil
	}
	b, err := json.Marshal(results[0].Expressions[0].Value)
	if err != nil {
		return nil, &Error{Code: CodeError, Message: "granted is no JSON"}
	}
	return b, nil
}

// decide asks the rules. The timeout is of the evaluation; ctx bounds the wait
// for it too.
func (r *Revision) decide(ctx context.Context, in *Input, w *words, timeout time.Duration) (d *Decision, err error) {
	value, err := in.value(w)
	if err != nil {
		return nil, &Error{Code: CodeError, Message: "input: " + err.Error()}
	}
	if !shared.do(ctx, func() { d, err = r.evaluate(ctx, value, timeout) }) {
		return nil, failure(ctx, ctx.Err(), timeout)
	}
	if err != nil {
		return nil, err
	}
	return d, r.asksInVain(in, d)
}

// asksInVain refuses a decision that asks for a dry run where there can be no
// other: it would never end.
func (r *Revision) asksInVain(in *Input, d *Decision) error {
	why := ""
	switch {
	case !d.DryRun:
		return nil
	case in.SQL == nil:
		why = "there is no SQL"
	case in.SQL.DryRun != nil:
		why = "there is one already"
	default:
		return nil
	}
	return &Error{Code: CodeError, Message: "ill-typed decision: dry_run asks for a dry run, and " + why, at: r.decisionAt}
}

func (r *Revision) evaluate(ctx context.Context, value ast.Value, timeout time.Duration) (*Decision, error) {
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
