package access

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// Role is what a reader may read.
type Role string

// The roles.
const (
	// Viewer reads metadata, and of the SQL its SHA-256.
	Viewer Role = "viewer"
	// Auditor reads everything.
	Auditor Role = "auditor"
)

// The actions, as access records name them.
const (
	ActionSearch    = "search"
	ActionShow      = "show"
	ActionPayload   = "payload"
	ActionAccesses  = "accesses"
	ActionExport    = "export"
	ActionReconcile = "reconcile"
	// ActionErase is of a keyset at hand alone: no service erases.
	ActionErase  = "erase"
	actionWhoami = "whoami"
)

// The codes of errors.
const (
	CodeNotRecorded = "not_recorded" // the reading could not be recorded: nothing is given out
	CodeNoRole      = "no_role"      // the reader is proven and has no role
	CodeRole        = "role"         // the reader's role does not allow it
	CodeWhy         = "why_required"
	CodeBusy        = "busy"
	CodeSlow        = "too_many_refusals"
	CodeBad         = "bad_request"
	CodeNotFound    = "not_found"
	CodeAccess      = "access_record" // the id is of an access record
	CodeNoBody      = "no_body"       // the body is not there, or not what was recorded
	CodeMemory      = "too_much"      // more was found than can be sorted
	CodeFailed      = "failed"        // the vault did not answer
)

const (
	// maxRequest is the largest request body, in bytes.
	maxRequest = 64 << 10
	// maxWhy is the longest reason, in bytes.
	maxWhy = 1000
)

// The names of a payload's header and trailer.
const (
	headerAccess = "Verbatim-Access"
	trailerEnd   = "Verbatim-End"
	trailerNote  = "Verbatim-Note"
	endWhole     = "whole"
)

// SearchRequest asks for exchanges.
type SearchRequest struct {
	Why        string    `json:"why,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	Until      time.Time `json:"until,omitzero"`
	Principal  string    `json:"principal,omitempty"`
	Group      string    `json:"group,omitempty"`
	Repository string    `json:"repository,omitempty"`
	Commit     string    `json:"commit,omitempty"`
	Project    string    `json:"project,omitempty"`
	Table      string    `json:"table,omitempty"`
	SQL        string    `json:"sql,omitempty"`
	Decision   string    `json:"decision,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Job        string    `json:"job,omitempty"`
	Session    string    `json:"session,omitempty"`
	Connection string    `json:"connection,omitempty"`
	Method     string    `json:"method,omitempty"`
	Order      string    `json:"order,omitempty"`
	Limit      int       `json:"limit,omitempty"`
}

// NewSearchRequest asks for what a query asks for.
func NewSearchRequest(q search.Query, why string) SearchRequest {
	f := q.Filter
	return SearchRequest{
		Why: why, Since: f.Since, Until: f.Until, Principal: f.Principal, Group: f.Group, Repository: f.Repository, Commit: f.Commit,
		Project: f.Project, Table: f.Table, SQL: f.SQL, Decision: f.Decision, Reason: f.Reason, Job: f.Job, Session: f.Session,
		Connection: f.Connection, Method: f.Method, Order: string(q.Order), Limit: q.Limit,
	}
}

func (r *SearchRequest) query() (search.Query, error) {
	q := search.Query{Order: search.Order(r.Order), Limit: r.Limit, Filter: search.Filter{
		Since: r.Since, Until: r.Until, Principal: r.Principal, Group: r.Group, Repository: r.Repository, Commit: r.Commit,
		Project: r.Project, Table: r.Table, SQL: r.SQL, Decision: r.Decision, Reason: r.Reason, Job: r.Job, Session: r.Session,
		Connection: r.Connection, Method: r.Method,
	}}
	switch q.Order {
	case "", search.OldestFirst, search.NewestFirst, search.Stored:
	default:
		return q, fmt.Errorf("order %q: want time, -time or stored", r.Order)
	}
	switch {
	case r.Limit < 0:
		return q, fmt.Errorf("limit %d: want 0 (all) or more", r.Limit)
	case r.Decision != "" && r.Decision != "allow" && r.Decision != "deny" && r.Decision != "would_deny":
		return q, fmt.Errorf("decision %q: want allow, deny or would_deny", r.Decision)
	}
	return q, nil
}

// What is the search as its access record tells it.
func (r *SearchRequest) What() record.AccessTo {
	f := map[string]string{}
	for name, v := range map[string]string{
		"principal": r.Principal, "group": r.Group, "repository": r.Repository, "commit": r.Commit, "project": r.Project, "table": r.Table,
		"sql": r.SQL, "decision": r.Decision, "reason": r.Reason, "job": r.Job, "session": r.Session, "connection": r.Connection,
		"method": r.Method, "order": r.Order, "since": stamp(r.Since), "until": stamp(r.Until),
	} {
		if v != "" {
			f[name] = v
		}
	}
	if r.Limit > 0 {
		f["limit"] = fmt.Sprint(r.Limit)
	}
	return record.AccessTo{Action: ActionSearch, Filter: f}
}

// AccessesRequest asks for access records.
type AccessesRequest struct {
	Why      string    `json:"why,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Until    time.Time `json:"until,omitzero"`
	Who      string    `json:"who,omitempty"`
	Exchange string    `json:"exchange,omitempty"`
	Action   string    `json:"action,omitempty"`
	Refused  bool      `json:"refused,omitempty"`
	ID       string    `json:"id,omitempty"`
	Limit    int       `json:"limit,omitempty"`
}

// NewAccessesRequest asks for what a filter lets through; the first limit
// records, or with 0 all.
func NewAccessesRequest(f search.AccessFilter, limit int, why string) AccessesRequest {
	return AccessesRequest{Why: why, Since: f.Since, Until: f.Until, Who: f.Who, Exchange: f.Exchange, Action: f.Action, Refused: f.Refused, ID: f.ID, Limit: limit}
}

func (r *AccessesRequest) filter() (search.AccessFilter, error) {
	f := search.AccessFilter{Since: r.Since, Until: r.Until, Who: r.Who, Exchange: r.Exchange, Action: r.Action, Refused: r.Refused, ID: r.ID}
	if r.ID != "" {
		if _, err := record.ParseID(r.ID); err != nil {
			return f, err
		}
	}
	if r.Limit < 0 {
		return f, fmt.Errorf("limit %d: want 0 (all) or more", r.Limit)
	}
	return f, nil
}

// What is the request as its access record tells it.
func (r *AccessesRequest) What() record.AccessTo {
	f := map[string]string{}
	for name, v := range map[string]string{"who": r.Who, "exchange": r.Exchange, "action": r.Action, "id": r.ID, "since": stamp(r.Since), "until": stamp(r.Until)} {
		if v != "" {
			f[name] = v
		}
	}
	if r.Refused {
		f["refused"] = "true"
	}
	return record.AccessTo{Action: ActionAccesses, Filter: f}
}

// ShowRequest asks for everything of an exchange but its bodies.
type ShowRequest struct {
	Why      string `json:"why,omitempty"`
	Exchange string `json:"exchange"`
}

// PayloadRequest asks for the bytes of a body. Why must be given.
type PayloadRequest struct {
	Why       string `json:"why"`
	Exchange  string `json:"exchange"`
	Direction string `json:"direction"` // request, upstream or response
}

// Directions are the bodies by name.
var directions = map[string]record.Direction{"request": record.DirectionRequest, "upstream": record.DirectionUpstream, "response": record.DirectionResponse}

// Whoami says who a token proves.
type Whoami struct {
	Issuer  string    `json:"issuer"`
	Subject string    `json:"subject"`
	Email   string    `json:"email,omitempty"`
	Groups  []string  `json:"groups,omitempty"`
	Role    Role      `json:"role"`
	Service string    `json:"service"`
	Expires time.Time `json:"expires,omitzero"`
}

// line is a line of an answer.
type line struct {
	Access   string           `json:"access,omitempty"`
	Exchange *search.Exchange `json:"exchange,omitempty"`
	Entry    *search.Access   `json:"entry,omitempty"`
	Warning  string           `json:"warning,omitempty"`
	Error    *Error           `json:"error,omitempty"`
	End      *End             `json:"end,omitempty"`
}

// End sums up an answer.
type End struct {
	Exchanges  int64 `json:"exchanges"` // looked at
	Matched    int64 `json:"matched"`
	Unreadable int64 `json:"unreadable,omitempty"` // could not be compared
	Warnings   int64 `json:"warnings,omitempty"`
}

// shown is the answer to a ShowRequest.
type shown struct {
	Access   string         `json:"access"`
	Detail   *search.Detail `json:"detail"`
	Warnings []string       `json:"warnings,omitempty"`
}

// Error is what a service answers instead of what was asked for.
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message + " (" + e.Code + ")" }

type errorBody struct {
	Error *Error `json:"error"`
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// CheckWhy refuses a reason that is too long to be one.
func CheckWhy(why string) error {
	if len(why) > maxWhy || !utf8.ValidString(why) {
		return fmt.Errorf("the reason has %d bytes: want at most %d of UTF-8", len(why), maxWhy)
	}
	return nil
}

func given(why string) bool { return strings.TrimSpace(why) != "" }
