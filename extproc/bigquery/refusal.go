package bigquery

import (
	"encoding/json"
	"net/http"
	"strings"
	"unicode/utf8"
)

// BigQuery's own reasons, as its error reference documents them
// (https://cloud.google.com/bigquery/docs/error-messages). Clients branch on
// them: rateLimitExceeded and quotaExceeded are not here, because clients
// retry them for minutes.
const (
	ReasonAccessDenied     = "accessDenied"
	ReasonAuthError        = "authError"
	ReasonInvalid          = "invalid"
	ReasonInvalidQuery     = "invalidQuery"
	ReasonNotFound         = "notFound"
	ReasonDuplicate        = "duplicate"
	ReasonNotImplemented   = "notImplemented"
	ReasonBackendError     = "backendError"
	ReasonInternalError    = "internalError"
	ReasonResponseTooLarge = "responseTooLarge"
	ReasonTooLarge         = "uploadTooLarge"
	ReasonTimeout          = "timeout"
)

// Refusal is a request that the gateway does not pass on. Its message is for
// the caller and never holds a value of a header or a query parameter.
type Refusal struct {
	Status  int    // HTTP status
	Reason  string // BigQuery's reason, one of the Reason constants
	Code    string // stable, for records, metrics and policy
	Message string // one sentence: what was refused and what to do
	// Stance is true where the request is understood in full and refused only
	// because the route table says deny.
	Stance bool
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }

// Body returns the refusal as BigQuery writes errors.
func (r *Refusal) Body() []byte { return ErrorBody(r.Status, r.Reason, r.Message) }

func invalid(code, message string) *Refusal {
	return &Refusal{Status: http.StatusBadRequest, Reason: ReasonInvalid, Code: code, Message: message}
}

func denied(code, message string) *Refusal {
	return &Refusal{Status: http.StatusForbidden, Reason: ReasonAccessDenied, Code: code, Message: message}
}

func tooLarge(code, message string) *Refusal {
	return &Refusal{Status: http.StatusRequestEntityTooLarge, Reason: ReasonTooLarge, Code: code, Message: message}
}

// StatusFor returns the HTTP status that belongs to a BigQuery reason, 500 for
// one that is not known.
func StatusFor(reason string) int {
	switch reason {
	case ReasonAccessDenied, ReasonResponseTooLarge:
		return http.StatusForbidden
	case ReasonAuthError:
		return http.StatusUnauthorized
	case ReasonInvalid, ReasonInvalidQuery, ReasonTimeout:
		return http.StatusBadRequest
	case ReasonNotFound:
		return http.StatusNotFound
	case ReasonDuplicate:
		return http.StatusConflict
	case ReasonTooLarge:
		return http.StatusRequestEntityTooLarge
	case ReasonNotImplemented:
		return http.StatusNotImplemented
	case ReasonBackendError:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// canonicalStatus maps an HTTP status to the name of google.rpc.Code that
// stands in the envelope
// (https://cloud.google.com/apis/design/errors#error_codes).
func canonicalStatus(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHENTICATED"
	case http.StatusForbidden:
		return "PERMISSION_DENIED"
	case http.StatusNotFound:
		return "NOT_FOUND"
	case http.StatusConflict:
		return "ALREADY_EXISTS"
	case http.StatusPreconditionFailed:
		return "FAILED_PRECONDITION"
	case http.StatusTooManyRequests:
		return "RESOURCE_EXHAUSTED"
	case 499:
		return "CANCELLED"
	case http.StatusNotImplemented:
		return "UNIMPLEMENTED"
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return "UNAVAILABLE"
	case http.StatusGatewayTimeout:
		return "DEADLINE_EXCEEDED"
	}
	if status >= 400 && status < 500 {
		return "INVALID_ARGUMENT"
	}
	return "INTERNAL"
}

type envelope struct {
	Error envelopeError `json:"error"`
}

type envelopeError struct {
	Code    int            `json:"code"`
	Message string         `json:"message"`
	Errors  []envelopeItem `json:"errors"`
	Status  string         `json:"status"`
}

type envelopeItem struct {
	Message string `json:"message"`
	Domain  string `json:"domain"`
	Reason  string `json:"reason"`
}

// ErrorBody returns the whole envelope that BigQuery's clients need to show an
// error's text to their user; its content type is application/json. Without
// errors[] the bq tool says no more than "invalid reply".
func ErrorBody(status int, reason, message string) []byte {
	if !utf8.ValidString(message) {
		message = strings.ToValidUTF8(message, "\uFFFD")
	}
	b, err := json.Marshal(envelope{envelopeError{
		Code: status, Message: message, Status: canonicalStatus(status),
		Errors: []envelopeItem{{Message: message, Domain: "global", Reason: reason}},
	}})
	if err != nil { // strings and an int always marshal
		return []byte(`{"error":{"code":500,"message":"internal error","errors":[{"message":"internal error","domain":"global","reason":"internalError"}],"status":"INTERNAL"}}`)
	}
	return b
}
