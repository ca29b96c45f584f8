package search

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/record"
)

// What the result of an exchange is where no outcome says it.
const (
	Pending record.Result = "pending" // the vault holds no outcome yet
	Unknown record.Result = "unknown" // the outcome cannot be read
)

// Exchange is one exchange in short. The JSON field names are stable; they are
// explained in recorder/README.md.
type Exchange struct {
	ID         string             `json:"exchange"`
	Receipt    string             `json:"receipt"` // the same id, as the caller got it
	Session    string             `json:"session,omitempty"`
	Time       time.Time          `json:"time"` // when the request came
	Gateway    string             `json:"gateway"`
	Principal  *record.Principal  `json:"principal"`
	Provenance *record.Provenance `json:"provenance"`
	Asserted   *record.Asserted   `json:"asserted,omitempty"`
	Connection string             `json:"connection,omitempty"`
	Recording  string             `json:"recording,omitempty"`
	Method     string             `json:"method,omitempty"`
	Project    string             `json:"project,omitempty"`
	Dataset    string             `json:"dataset,omitempty"`
	Table      string             `json:"table,omitempty"`
	DryRun     bool               `json:"dry_run,omitempty"`
	// SQLSHA256 stands in the place of SQL in what [Exchange.Metadata] returns.
	SQLSHA256  string          `json:"sql_sha256,omitempty"`
	SQL        string          `json:"sql,omitempty"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	// Statements are the kinds of the SQL's statements. Reads, Writes and Functions
	// are what it used, with how that is known: of the request when it was decided,
	// and of the finished job where the gateway asked. Opaque says what nobody
	// could see through.
	Statements []string          `json:"statements,omitempty"`
	Reads      []record.TableUse `json:"reads,omitempty"`
	Writes     []record.TableUse `json:"writes,omitempty"`
	Functions  []string          `json:"functions,omitempty"`
	Opaque     []string          `json:"opaque,omitempty"`
	// Decision is nil where the exchange ended before one fell.
	Decision *Decision     `json:"decision"`
	Status   int           `json:"status,omitempty"` // HTTP, as the caller got it
	Result   record.Result `json:"result"`
	Cause    string        `json:"cause,omitempty"`
	Error    string        `json:"error,omitempty"` // BigQuery's
	Job      *record.Job   `json:"job"`
	JobState string        `json:"job_state,omitempty"`

	Rows           *int64 `json:"rows,omitempty"`
	TotalRows      *int64 `json:"total_rows,omitempty"`
	Bytes          *int64 `json:"bytes,omitempty"` // of the response's body
	BytesBilled    *int64 `json:"bytes_billed,omitempty"`
	BytesProcessed *int64 `json:"bytes_processed,omitempty"`
	CacheHit       *bool  `json:"cache_hit,omitempty"`
	// Digests are the SHA-256 of the bodies, in hex, by direction.
	Digests map[string]string `json:"digests,omitempty"`

	Decided   *time.Time `json:"decided,omitempty"`
	Forwarded *time.Time `json:"forwarded,omitempty"`
	FirstByte *time.Time `json:"first_byte,omitempty"`
	LastByte  *time.Time `json:"last_byte,omitempty"`
	Ended     *time.Time `json:"ended,omitempty"` // when the outcome was recorded

	// ClosedBy is recovery's outcome, in a later epoch, of an exchange that a
	// crash cut off.
	ClosedBy string `json:"closed_by,omitempty"`
	Segment  string `json:"segment"` // that holds the first record
	// Unreadable says why sealed bodies could not be opened: the fields that
	// come from them are then missing.
	Unreadable string `json:"unreadable,omitempty"`
	// Erased is the id of the erasure that destroyed a key of it.
	Erased string `json:"erased,omitempty"`
}

// unread notes why a body could not be read.
func (x *Exchange) unread(why error) {
	var erased *keyring.ErasedError
	if errors.As(why, &erased) {
		x.Erased = erased.Tombstone.Erasure
	}
	if x.Unreadable == "" {
		x.Unreadable = why.Error()
	}
}

// Decision is what was decided.
type Decision struct {
	Allow   bool            `json:"allow"`
	Reasons []record.Reason `json:"reasons"`
	By      string          `json:"by,omitempty"`
	Policy  string          `json:"policy_digest,omitempty"`
	// WouldDeny: the policy denied, and only observed.
	WouldDeny bool `json:"would_deny,omitempty"`
}

func (x *Exchange) call(c record.Call) {
	x.Method, x.Project, x.Dataset, x.Table = c.Method, c.Project, c.Dataset, c.Table
	x.DryRun, x.SQL, x.Parameters, x.Job = c.DryRun, c.SQL, c.Parameters, c.Job
	x.Statements, x.Reads, x.Writes, x.Functions, x.Opaque = c.Statements, c.Reads, c.Writes, c.Functions, c.Opaque
}

func (x *Exchange) received(r *record.Received) {
	x.Session, x.Principal = r.Session, r.Principal
	if !r.At.IsZero() {
		x.Time = r.At.UTC()
	}
	x.call(r.Call)
}

func (x *Exchange) intent(i *record.Intent) {
	v := &i.Verbatim
	x.Session, x.Principal, x.Provenance = v.Session, v.Principal, v.Provenance
	asserted := v.Asserted
	x.Asserted = &asserted
	if v.Connection != nil {
		x.Connection, x.Recording = v.Connection.Name, v.Connection.Recording
	}
	x.call(v.Call)
	x.Decision = &Decision{Allow: v.Decision.Allow, Reasons: v.Decision.Reasons, By: v.Decision.By, Policy: v.Decision.Policy, WouldDeny: v.Decision.WouldDeny}
	if x.Decision.Reasons == nil {
		x.Decision.Reasons = []record.Reason{}
	}
	if !v.Received.IsZero() {
		x.Time = v.Received.UTC()
	}
	if !v.Decided.IsZero() {
		x.Decided = utc(&v.Decided)
	}
}

// joined returns the members of both lists, each once.
func joined[T comparable](a, b []T) []T {
	for _, v := range b {
		if !slices.Contains(a, v) {
			a = append(a[:len(a):len(a)], v)
		}
	}
	return a
}

func (x *Exchange) outcome(o *record.Outcome, at time.Time) {
	v := &o.Verbatim
	x.Status, x.Result, x.Cause, x.Error = o.Response.Code, v.Result, v.Cause, v.Error
	if v.Job != nil {
		x.Job = v.Job
	}
	x.JobState, x.Rows, x.TotalRows = v.State, v.Rows, v.TotalRows
	x.BytesBilled, x.BytesProcessed, x.CacheHit = v.BytesBilled, v.Processed, v.CacheHit
	x.Reads, x.Writes, x.Functions = joined(x.Reads, v.Reads), joined(x.Writes, v.Writes), joined(x.Functions, v.Functions)
	x.Forwarded, x.FirstByte, x.LastByte = utc(v.Forwarded), utc(v.FirstByte), utc(v.LastByte)
	x.Ended = utc(&at)
	bytes := o.Response.Length
	x.Bytes = &bytes
	x.Digests = map[string]string{}
	for _, t := range v.Payloads {
		x.Digests[t.Direction] = t.SHA256
	}
}

// interrupted closes an exchange that a crash cut off.
func (x *Exchange) interrupted(o *record.Outcome, by record.ID, at time.Time) {
	x.Result, x.Cause, x.ClosedBy, x.Ended = record.ResultInterrupted, o.Verbatim.Cause, by.String(), utc(&at)
}

// size is about how many bytes of memory the exchange takes.
func (x *Exchange) size() int {
	n := 2048 + len(x.SQL) + len(x.Parameters) + len(x.Error)
	if x.Principal != nil {
		for _, g := range x.Principal.Groups {
			n += len(g) + 16
		}
	}
	if x.Asserted != nil {
		for k, v := range x.Asserted.Labels {
			n += len(k) + len(v) + 32
		}
	}
	return n
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}
