package policy

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
}

// Error returns "CODE: MESSAGE".
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }
