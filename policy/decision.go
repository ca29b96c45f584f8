package policy

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Reason is one coded reason of a decision. Codes are stable.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Limits are upper bounds to put into the request.
type Limits struct {
	// MaximumBytesBilled in bytes; 0 puts no limit in.
	MaximumBytesBilled int64 `json:"maximum_bytes_billed"`
}

// Decision is what a policy decided. A decision that is not allowed has at
// least one reason.
type Decision struct {
	Allow      bool              `json:"allow"`
	Reasons    []Reason          `json:"reasons"`
	Limits     Limits            `json:"limits"`
	Labels     map[string]string `json:"labels"`               // to write on the job
	Credential string            `json:"credential,omitempty"` // a credential's name in the configuration; empty for the connection's own
	Retention  string            `json:"retention,omitempty"`  // a retention class; empty for the connection's own
	// Owner is the group of the caller's, qualified, that what the request makes
	// belongs to; empty for the caller alone.
	Owner string `json:"owner,omitempty"`
	// DryRun asks for BigQuery's own word before the decision counts: the
	// gateway makes a dry run and decides again, with input.sql.dry_run there. It
	// is never set once that is there.
	DryRun bool `json:"dry_run,omitempty"`
}

// Code says why there is no decision.
type Code string

// The codes of [Error]. Each of them denies.
const (
	CodeUndefined Code = "policy_undefined" // no rule gave a decision
	CodeError     Code = "policy_error"     // the evaluation failed, or the decision is ill-typed
	CodeTimeout   Code = "policy_timeout"   // the evaluation took longer than it may
)

// Error means that there is no decision: the caller must deny with its code.
// The text holds nothing of the input.
type Error struct {
	Code    Code
	Message string

	at    string // file:line
	cause error  // may quote the input
}

// Error returns "CODE: MESSAGE".
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// The bounds of a decision.
const (
	maxReasons = 32
	maxMessage = 2048 // bytes
	maxLabels  = 64   // BigQuery's own bound for a resource
)

var (
	codePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
)

// readDecision reads a decision strictly: a field that is missing, ill-typed or
// not known is an error. Errors name fields, never values.
func readDecision(v ast.Value) (*Decision, error) {
	o, err := readObject("decision", v, []string{"allow", "reasons", "limits", "labels"}, []string{"credential", "retention", "owner", "dry_run"})
	if err != nil {
		return nil, err
	}
	d := &Decision{}
	allow, ok := o["allow"].(ast.Boolean)
	if !ok {
		return nil, fmt.Errorf("allow is %s, want a boolean", ast.ValueName(o["allow"]))
	}
	d.Allow = bool(allow)
	if d.Reasons, err = readReasons(o["reasons"]); err != nil {
		return nil, err
	}
	if !d.Allow && len(d.Reasons) == 0 {
		return nil, errors.New("allow is false without a reason")
	}
	limits, err := readObject("limits", o["limits"], []string{"maximum_bytes_billed"}, nil)
	if err != nil {
		return nil, err
	}
	if d.Limits.MaximumBytesBilled, err = readInteger("limits.maximum_bytes_billed", limits["maximum_bytes_billed"]); err != nil {
		return nil, err
	}
	if d.Labels, err = readLabels(o["labels"]); err != nil {
		return nil, err
	}
	if d.Credential, err = readName("credential", o["credential"], 64); err != nil {
		return nil, err
	}
	if v := o["owner"]; v != nil {
		owner, ok := v.(ast.String)
		if !ok || owner == "" || len(owner) > 1024 || strings.ContainsFunc(string(owner), unicode.IsControl) {
			return nil, errors.New("owner is no name of a group")
		}
		d.Owner = string(owner)
	}
	if d.Retention, err = readName("retention", o["retention"], 32); err != nil {
		return nil, err
	}
	if v, ok := o["dry_run"]; ok {
		ask, ok := v.(ast.Boolean)
		if !ok {
			return nil, fmt.Errorf("dry_run is %s, want a boolean", ast.ValueName(v))
		}
		d.DryRun = bool(ask)
	}
	return d, nil
}

// CodeUnreadable is the reason's code where the SQL is not understood, in the
// default rules and in what the engine holds against any rules.
const CodeUnreadable = "sql_unreadable"

// hold keeps a text that nobody understands from being allowed, whatever the
// rules say. It returns the decision itself where there is nothing to hold
// against it.
func hold(in *Input, d *Decision) *Decision {
	if in.SQL == nil || in.SQL.Facts == nil || in.SQL.Facts.Problem == nil {
		return d
	}
	p, run := in.SQL.Facts.Problem, in.SQL.DryRun
	deny := func(format string, args ...any) *Decision {
		message := fmt.Sprintf(format, args...)
		return &Decision{Reasons: []Reason{{Code: CodeUnreadable, Message: message}}, Labels: map[string]string{}}
	}
	place := fmt.Sprintf("%s, at %d:%d", oneLine(p.Message), p.Line, p.Column)
	switch {
	case !d.Allow && (!d.DryRun || p.Fallback):
		return d
	case !p.Fallback:
		return deny("the SQL is refused (rule sql_unreadable): %s; write it so that it can be read in one way only", place)
	case run == nil:
		d = deny("the SQL is not decided yet (rule sql_unreadable): %s; BigQuery's dry run has to tell", place)
		d.DryRun = true
		return d
	case run.Error != "" || !run.Complete:
		return deny("the SQL is refused (rule sql_unreadable): %s, and BigQuery's dry run does not tell all of it; write it in simpler words", place)
	}
	return d
}

// oneLine makes a message of a few hundred bytes that a reason can hold.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	const most = 512
	for len(s) > most {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

func readObject(at string, v ast.Value, required, optional []string) (map[string]ast.Value, error) {
	o, ok := v.(ast.Object)
	if !ok {
		return nil, fmt.Errorf("%s is %s, want an object", at, ast.ValueName(v))
	}
	out := make(map[string]ast.Value, o.Len())
	err := o.Iter(func(k, v *ast.Term) error {
		key, ok := k.Value.(ast.String)
		name := string(key)
		if !ok || !slices.Contains(required, name) && !slices.Contains(optional, name) {
			return fmt.Errorf("%s has a field that is not known: its fields are %s", at, strings.Join(slices.Concat(required, optional), ", "))
		}
		out[name] = v.Value
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range required {
		if _, ok := out[name]; !ok {
			return nil, fmt.Errorf("%s has no field %s", at, name)
		}
	}
	return out, nil
}

func readReasons(v ast.Value) ([]Reason, error) {
	var terms []*ast.Term
	switch v := v.(type) {
	case *ast.Array:
		v.Foreach(func(t *ast.Term) { terms = append(terms, t) })
	case ast.Set:
		terms = v.Slice() // sorted
	default:
		return nil, fmt.Errorf("reasons is %s, want an array or a set", ast.ValueName(v))
	}
	if len(terms) > maxReasons {
		return nil, fmt.Errorf("reasons has more than %d members", maxReasons)
	}
	out := make([]Reason, 0, len(terms))
	for i, t := range terms {
		at := fmt.Sprintf("reasons[%d]", i)
		o, err := readObject(at, t.Value, []string{"code", "message"}, nil)
		if err != nil {
			return nil, err
		}
		code, ok := o["code"].(ast.String)
		if !ok || !codePattern.MatchString(string(code)) {
			return nil, fmt.Errorf("%s.code is no word of a-z, 0-9 and _ of at most 64 characters", at)
		}
		message, ok := o["message"].(ast.String)
		if !ok || message == "" || len(message) > maxMessage || !utf8.ValidString(string(message)) || strings.ContainsFunc(string(message), unicode.IsControl) {
			return nil, fmt.Errorf("%s.message is no line of text of 1 to %d bytes", at, maxMessage)
		}
		out = append(out, Reason{Code: string(code), Message: string(message)})
	}
	return out, nil
}

// readInteger reads a whole number from 0 to the largest int64. 1e10 is one.
func readInteger(at string, v ast.Value) (int64, error) {
	n, ok := v.(ast.Number)
	if !ok {
		return 0, fmt.Errorf("%s is %s, want a number", at, ast.ValueName(v))
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	if err != nil {
		// ParseFloat first: an exponent of a billion must not reach big.Rat.
		f, ferr := strconv.ParseFloat(string(n), 64)
		if ferr != nil || f < 0 || f >= math.MaxInt64 || (f != 0 && f < 1) || len(n) > 64 || strings.ContainsAny(string(n), "xX_") {
			return 0, fmt.Errorf("%s is no whole number from 0 to %d", at, int64(math.MaxInt64))
		}
		r, ok := new(big.Rat).SetString(string(n))
		if !ok || !r.IsInt() || !r.Num().IsInt64() {
			return 0, fmt.Errorf("%s is no whole number from 0 to %d", at, int64(math.MaxInt64))
		}
		i = r.Num().Int64()
	}
	if i < 0 {
		return 0, fmt.Errorf("%s is no whole number from 0 to %d", at, int64(math.MaxInt64))
	}
	return i, nil
}

// readLabels reads labels and holds them to BigQuery's rules
// (https://cloud.google.com/bigquery/docs/labels-intro#requirements).
func readLabels(v ast.Value) (map[string]string, error) {
	o, ok := v.(ast.Object)
	if !ok {
		return nil, fmt.Errorf("labels is %s, want an object", ast.ValueName(v))
	}
	if o.Len() > maxLabels {
		return nil, fmt.Errorf("labels has more than %d members", maxLabels)
	}
	out := make(map[string]string, o.Len())
	err := o.Iter(func(k, v *ast.Term) error {
		key, okKey := k.Value.(ast.String)
		value, okValue := v.Value.(ast.String)
		if !okKey || !okValue {
			return errors.New("labels holds something that is not a string")
		}
		if !labelText(string(key)) || key == "" || !labelStart(string(key)) {
			return errors.New("labels has a key that BigQuery does not take: 1 to 63 of lower-case letters, digits, _ and -, a letter first")
		}
		if !labelText(string(value)) {
			return errors.New("labels has a value that BigQuery does not take: at most 63 of lower-case letters, digits, _ and -")
		}
		out[string(key)] = string(value)
		return nil
	})
	return out, err
}

func labelStart(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return unicode.IsLetter(r)
}

func labelText(s string) bool {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > 63 || len(s) > 128 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && r != '-' && !unicode.IsDigit(r) && (!unicode.IsLetter(r) || unicode.IsUpper(r) || unicode.IsTitle(r))
	})
}

// readName reads an optional name; v is nil where it is absent.
func readName(at string, v ast.Value, most int) (string, error) {
	if v == nil {
		return "", nil
	}
	s, ok := v.(ast.String)
	if !ok || len(s) > most || s != "" && !namePattern.MatchString(string(s)) {
		return "", fmt.Errorf("%s is no name of at most %d letters, digits, _, . and -", at, most)
	}
	return string(s), nil
}
