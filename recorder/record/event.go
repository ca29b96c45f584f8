package record

import (
	"encoding/json"
	"fmt"
	"time"
)

// Principal says who the verified token says is calling.
type Principal struct {
	Issuer  string `json:"issuer"`     // the issuer's name in the gateway's configuration
	URL     string `json:"issuer_url"` // the token's iss
	Subject string `json:"subject"`    // the token's sub
	Email   string `json:"email,omitempty"`
	// Groups are qualified by the issuer's name, "corp/security".
	Groups []string `json:"groups,omitempty"`
	// OnBehalfOf is the chain of verified act claims (RFC 8693, section 4.1),
	// outermost first.
	OnBehalfOf []Actor `json:"on_behalf_of,omitempty"`
	TokenID    string  `json:"token_id,omitempty"` // jti
	// GatewayToken is the jti of the gateway's own token, where the caller brought
	// one that was given out for the token of TokenID.
	GatewayToken string `json:"gateway_token_id,omitempty"`
}

// Actor is one member of a verified act chain.
type Actor struct {
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject"`
}

// Provenance says what the verified claims prove of where the call comes from.
type Provenance struct {
	Profile        string `json:"profile"` // github, gitlab, kubernetes, google, spiffe, generic
	Pipeline       string `json:"pipeline,omitempty"`
	Repository     string `json:"repository,omitempty"`
	Ref            string `json:"ref,omitempty"`
	Commit         string `json:"commit,omitempty"`
	Workflow       string `json:"workflow,omitempty"`
	Run            string `json:"run,omitempty"`
	Actor          string `json:"actor,omitempty"`
	Environment    string `json:"environment,omitempty"`
	Namespace      string `json:"namespace,omitempty"`
	Pod            string `json:"pod,omitempty"`
	ServiceAccount string `json:"service_account,omitempty"`
	Node           string `json:"node,omitempty"`
	SPIFFE         string `json:"spiffe_id,omitempty"`
}

// Asserted is what the client says of itself, and nobody verified.
type Asserted struct {
	UserAgent     string            `json:"user_agent,omitempty"`
	Traceparent   string            `json:"traceparent,omitempty"`
	RequestReason string            `json:"request_reason,omitempty"` // x-goog-request-reason
	RequestID     string            `json:"request_id,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	Agent         string            `json:"agent,omitempty"`        // x-verbatim-agent
	Model         string            `json:"model,omitempty"`        // x-verbatim-model
	Conversation  string            `json:"conversation,omitempty"` // x-verbatim-conversation
	ToolCall      string            `json:"tool_call,omitempty"`    // x-verbatim-tool-call
}

// Connection names the BigQuery that the exchange is for.
type Connection struct {
	Name      string `json:"name"`
	Project   string `json:"project"`
	Location  string `json:"location,omitempty"`
	Recording string `json:"recording"` // full or metadata
	Retention string `json:"retention"`
}

// Call is what the request means.
type Call struct {
	Method  string `json:"method"` // as Google documents it, "bigquery.jobs.query"; empty for a route that is not known
	Project string `json:"project,omitempty"`
	Dataset string `json:"dataset,omitempty"`
	Table   string `json:"table,omitempty"`
	Job     *Job   `json:"job,omitempty"`
	DryRun  bool   `json:"dry_run,omitempty"`
	// Tool is the tool, or the method, of the Model Context Protocol that the
	// caller named.
	Tool string `json:"tool,omitempty"`
	SQL  string `json:"sql,omitempty"` // the whole text as the caller sent it
	// Parameters are the query parameters as the caller sent them.
	Parameters json.RawMessage `json:"parameters,omitempty"`
	// Statements are the kinds of the text's statements, in order, as BigQuery
	// names statement types.
	Statements []string `json:"statements,omitempty"`
	// Reads and Writes are the tables of the call as they were known when it was
	// decided; Functions are the functions that its SQL calls.
	Reads     []TableUse `json:"reads,omitempty"`
	Writes    []TableUse `json:"writes,omitempty"`
	Functions []string   `json:"functions,omitempty"`
	// Opaque says in fixed words what the facts cannot see through
	// (dynamic_sql, call, script_body, ...).
	Opaque []string `json:"opaque,omitempty"`
}

// TableUse is one table that a call reads or writes.
type TableUse struct {
	Table string `json:"table"` // PROJECT.DATASET.TABLE; ends with * for a wildcard
	// Source says how it is known: parser, dry_run, job (the finished job's own
	// statistics), route, body, upload, copy, extract, load, storage_read.
	Source string `json:"source"`
}

// Job names a BigQuery job.
type Job struct {
	Project  string `json:"project"`
	Location string `json:"location,omitempty"`
	ID       string `json:"id"`
}

// String returns "PROJECT:LOCATION.ID", the form that the bq tool prints.
func (j Job) String() string {
	if j.Location == "" {
		return j.Project + ":" + j.ID
	}
	return j.Project + ":" + j.Location + "." + j.ID
}

// Reason is one coded reason of a decision. Codes are stable.
type Reason struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Decision is what was decided, by what.
type Decision struct {
	Allow   bool     `json:"allow"`
	Reasons []Reason `json:"reasons,omitempty"`
	// By is the part that decided: policy, authentication, route, body, sql,
	// dry_run, connection, credential, capacity, revocation, ownership.
	By string `json:"by"`
	// Policy is the digest of the policy bundle that decided, where it did.
	Policy     string            `json:"policy_digest,omitempty"`
	MaxBytes   int64             `json:"maximum_bytes_billed,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"` // that the gateway wrote on the job
	Credential string            `json:"credential,omitempty"`
	// WouldDeny is true where the policy denied and the mode observe let the
	// request through; Reasons are the denial's.
	WouldDeny bool `json:"would_deny,omitempty"`
}

// The part of the Open Cybersecurity Schema Framework (OCSF 1.9.0) that the
// events use. Datastore Activity is class 6005, API Activity class 6003, both
// of category 6 (https://schema.ocsf.io/1.9.0/classes/datastore_activity).
const (
	ocsfVersion       = "1.9.0"
	ocsfCategory      = 6
	ClassDatastore    = 6005
	ClassAPI          = 6003
	ActivityQuery     = 4 // Datastore Activity: Query
	ActivityRead      = 1
	ActivityWrite     = 5
	ActivityOther     = 99
	severityInfo      = 1
	severityMedium    = 3
	statusIDSuccess   = 1
	statusIDFailure   = 2
	statusIDOther     = 99
	statusTextSuccess = "Success"
	statusTextFailure = "Failure"
)

// OCSF is what every event begins with.
type OCSF struct {
	ClassUID    int          `json:"class_uid"`
	CategoryUID int          `json:"category_uid"`
	ActivityID  int          `json:"activity_id"`
	TypeUID     int          `json:"type_uid"`
	SeverityID  int          `json:"severity_id"`
	StatusID    int          `json:"status_id,omitempty"`
	Status      string       `json:"status,omitempty"`
	Time        int64        `json:"time"` // Unix milliseconds
	Metadata    OCSFMetadata `json:"metadata"`
}

// OCSFMetadata names the event and the product that wrote it.
type OCSFMetadata struct {
	Version       string      `json:"version"`
	UID           string      `json:"uid"`             // the record: EPOCH-SEQUENCE of the exchange
	CorrelationID string      `json:"correlation_uid"` // the session
	Product       OCSFProduct `json:"product"`
}

// OCSFProduct names the product.
type OCSFProduct struct {
	Name    string `json:"name"`
	Vendor  string `json:"vendor_name"`
	Version string `json:"version,omitempty"`
}

// NewOCSF returns the head of an event.
func NewOCSF(class, activity int, at time.Time, uid, session string) OCSF {
	return OCSF{
		ClassUID: class, CategoryUID: ocsfCategory, ActivityID: activity, TypeUID: class*100 + activity,
		SeverityID: severityInfo, Time: at.UnixMilli(),
		Metadata: OCSFMetadata{Version: ocsfVersion, UID: uid, CorrelationID: session, Product: OCSFProduct{Name: "Verbatim", Vendor: "Verbatim"}},
	}
}

// Succeeded sets the status.
func (o *OCSF) Succeeded(ok bool) {
	if ok {
		o.StatusID, o.Status = statusIDSuccess, statusTextSuccess
		return
	}
	o.StatusID, o.Status, o.SeverityID = statusIDFailure, statusTextFailure, severityMedium
}

// OCSFActor is the actor object.
type OCSFActor struct {
	User    OCSFUser    `json:"user"`
	Session OCSFSession `json:"session"`
}

// OCSFUser is the user object.
type OCSFUser struct {
	UID    string      `json:"uid"`
	Name   string      `json:"name,omitempty"`
	Email  string      `json:"email_addr,omitempty"`
	Groups []OCSFGroup `json:"groups,omitempty"`
}

// OCSFGroup is the group object.
type OCSFGroup struct {
	Name string `json:"name"`
}

// OCSFSession is the session object.
type OCSFSession struct {
	UID    string `json:"uid"`
	Issuer string `json:"issuer,omitempty"`
}

// OCSFEndpoint is the source endpoint object.
type OCSFEndpoint struct {
	IP string `json:"ip,omitempty"`
}

// OCSFRequest is the http_request object. Headers hold no credential.
type OCSFRequest struct {
	Method    string   `json:"http_method"`
	URL       OCSFURL  `json:"url"`
	UserAgent string   `json:"user_agent,omitempty"`
	Headers   []Header `json:"http_headers,omitempty"`
}

// OCSFURL is the url object. The query has its credential parameters removed.
type OCSFURL struct {
	Hostname string `json:"hostname,omitempty"`
	Path     string `json:"path"`
	Query    string `json:"query_string,omitempty"`
}

// Header is one header as it stood on the wire; duplicates stay apart.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// OCSFQuery is the query_info object.
type OCSFQuery struct {
	Text string `json:"query_string,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// Open is the body of an open record.
type Open struct {
	Gateway string    `json:"gateway"`
	Version string    `json:"version"`
	Opened  time.Time `json:"opened"`
	// Key verifies the epoch's checkpoints and receipts, in the form of package
	// golang.org/x/mod/sumdb/note; Certificate is the deployment's signed note
	// that says so, empty where the gateway has no deployment key.
	Key         string `json:"key"`
	Certificate string `json:"certificate,omitempty"`
	// Previous is the epoch before this one in the same journal, if any, with
	// the sequence and head that it was recovered or closed to.
	Previous *EpochEnd `json:"previous,omitempty"`
}

// EpochEnd says where an epoch ended.
type EpochEnd struct {
	Epoch    string `json:"epoch"`
	Sequence uint64 `json:"sequence"`
	Head     string `json:"head"`   // hex of the chain's head
	Root     string `json:"root"`   // hex of the tree's root
	Closed   bool   `json:"closed"` // with a close record, not by a crash
	// Truncated is how many bytes after the last checkpoint were dropped:
	// they were never acknowledged.
	Truncated int64 `json:"truncated_bytes,omitempty"`
	// Expiry is when the last of the epoch's records expires, see [Latest];
	// empty: its gateway did not say.
	Expiry string `json:"expiry,omitempty"`
}

// Heartbeat is the body of a heartbeat record.
type Heartbeat struct {
	Open uint64 `json:"open_exchanges"`
	// Refused counts requests that were refused while nothing could be
	// recorded, since the epoch began.
	Refused uint64 `json:"refused_unrecorded,omitempty"`
	// Void says in a fixed word or two that this heartbeat took the sequence of
	// a record that could not be made, and why. The append of that record
	// failed, so nothing was released on it.
	Void string `json:"void,omitempty"`
}

// Close is the body of a close record.
type Close struct {
	Reason  string `json:"reason"`
	Refused uint64 `json:"refused_unrecorded,omitempty"`
}

// Received is the body of a received record: durable before the gateway asks
// BigQuery anything about the request.
type Received struct {
	Session   string     `json:"session"`
	At        time.Time  `json:"at"`
	Principal *Principal `json:"principal,omitempty"`
	Call      Call       `json:"call"`
}

// Probe is the body of a probe record: a call that the gateway made itself.
type Probe struct {
	At       time.Time       `json:"at"`
	Purpose  string          `json:"purpose"` // "owner of job", "dry run", "tables of the finished job", "cancel of a revoked caller's job"
	Method   string          `json:"method"`
	Path     string          `json:"path"`
	Request  json.RawMessage `json:"request,omitempty"` // the body that was sent
	Status   int             `json:"status,omitempty"`
	Error    string          `json:"error,omitempty"`
	Response json.RawMessage `json:"response,omitempty"`
}

// Intent is the body of an intent record, an OCSF event: everything that is
// known before the request goes upstream, with the decision.
type Intent struct {
	OCSF
	Actor   OCSFActor    `json:"actor"`
	Source  OCSFEndpoint `json:"src_endpoint"`
	Request OCSFRequest  `json:"http_request"`
	Query   *OCSFQuery   `json:"query_info,omitempty"`

	Verbatim IntentDetail `json:"verbatim"`
}

// IntentDetail is what OCSF has no place for.
type IntentDetail struct {
	Session    string      `json:"session"`
	Principal  *Principal  `json:"principal,omitempty"` // nil: nobody was proven
	Provenance *Provenance `json:"provenance,omitempty"`
	Asserted   Asserted    `json:"asserted"`
	Connection *Connection `json:"connection,omitempty"`
	Call       Call        `json:"call"`
	Decision   Decision    `json:"decision"`
	Received   time.Time   `json:"received"`
	Decided    time.Time   `json:"decided"`
	// Streams is true where the request's body was still coming when the
	// decision fell: its pieces follow, each durable before it goes upstream.
	Streams bool `json:"streams,omitempty"`
}

// Head is the body of a payload record with [FlagHead]: the status and headers
// of the response as the caller got them, or the headers that went upstream,
// without the credential.
type Head struct {
	Status  int      `json:"status,omitempty"`
	Headers []Header `json:"headers"`
	Trailer bool     `json:"trailer,omitempty"`
}

// Result says how an exchange ended.
type Result string

// The results of an exchange.
const (
	// ResultDelivered: the whole response was handed to Envoy. That the caller
	// received it is not known.
	ResultDelivered Result = "delivered"
	// ResultDenied: the gateway answered in BigQuery's place.
	ResultDenied Result = "denied"
	// ResultAborted: the exchange was ended before its response was whole.
	ResultAborted Result = "aborted"
	// ResultInterrupted: the gateway crashed; a later epoch says so.
	ResultInterrupted Result = "interrupted"
)

// Outcome is the body of an outcome record, an OCSF event: how the exchange
// ended. It is durable before the response's last byte goes out.
type Outcome struct {
	OCSF
	Response OCSFResponse `json:"http_response"`

	Verbatim OutcomeDetail `json:"verbatim"`
}

// OCSFResponse is the http_response object.
type OCSFResponse struct {
	Code   int   `json:"code"`
	Length int64 `json:"length"`
}

// OutcomeDetail is what OCSF has no place for.
type OutcomeDetail struct {
	Session string `json:"session"`
	Result  Result `json:"result"`
	// Cause says why the exchange was aborted or denied, in a fixed word or two
	// ("client left", "revoked", "upstream reset", "journal full", ...).
	Cause string `json:"cause,omitempty"`
	// Interrupted names the exchange of an earlier epoch that this outcome
	// closes.
	Interrupted string `json:"interrupted,omitempty"`
	Job         *Job   `json:"job,omitempty"`
	State       string `json:"job_state,omitempty"`
	Error       string `json:"error,omitempty"` // BigQuery's own error text
	Rows        *int64 `json:"rows,omitempty"`  // in this response
	TotalRows   *int64 `json:"total_rows,omitempty"`
	BytesBilled *int64 `json:"bytes_billed,omitempty"`
	Processed   *int64 `json:"bytes_processed,omitempty"`
	CacheHit    *bool  `json:"cache_hit,omitempty"`
	// Reads, Writes and Functions are what the call was found to use in the end,
	// with what BigQuery said of the finished job; they add to the intent's.
	Reads     []TableUse `json:"reads,omitempty"`
	Writes    []TableUse `json:"writes,omitempty"`
	Functions []string   `json:"functions,omitempty"`
	Forwarded *time.Time `json:"forwarded,omitempty"`
	FirstByte *time.Time `json:"first_byte,omitempty"`
	LastByte  *time.Time `json:"last_byte,omitempty"`
	Payloads  []Total    `json:"payloads,omitempty"`
}

// Access is the body of an access record: somebody asked to read what is
// recorded, and was let or refused. It is durable before anything is given out.
// The record stands alone: it is sealed, and its exchange is its own sequence.
type Access struct {
	// Session chooses the data key: one reader, one day, one process.
	Session string    `json:"session"`
	At      time.Time `json:"at"`
	// Who is the reader whose token was verified, nil where nobody was proven.
	Who        *Principal  `json:"who,omitempty"`
	Provenance *Provenance `json:"provenance,omitempty"`
	// Asserted is who the reader's own machine says he is, where he read with a
	// keyset and no token proved anything. Who is nil then.
	Asserted  *LocalUser `json:"asserted,omitempty"`
	Role      string     `json:"role,omitempty"` // that the reader has: auditor or viewer
	From      string     `json:"from"`           // network address, or local
	UserAgent string     `json:"user_agent,omitempty"`
	What      AccessTo   `json:"what"`
	Why       string     `json:"why,omitempty"` // in the reader's own words
	Allowed   bool       `json:"allowed"`
	// Code says why it was refused, in a stable word; Message for people.
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	// Records are the ids of what is given out after this record: of exchanges,
	// or of access records where these are read.
	Records []string `json:"records,omitempty"`
	// Part counts the records of one answer that is given out in several parts,
	// from 0, and Of is the id of the first.
	Part int    `json:"part,omitempty"`
	Of   string `json:"of,omitempty"`
	// Unrecorded counts refusals of strangers before this one that came too fast
	// to be recorded one by one. They were answered nothing but to come later.
	Unrecorded uint64 `json:"unrecorded_refusals,omitempty"`
}

// LocalUser is a user as a machine has it.
type LocalUser struct {
	User string `json:"user"`
	UID  string `json:"uid,omitempty"`
	Host string `json:"host,omitempty"`
}

// AccessTo says what somebody asked to read.
type AccessTo struct {
	Action    string            `json:"action"` // search, show, payload, accesses, export, reconcile, erase; empty where the request was not read
	Exchange  string            `json:"exchange,omitempty"`
	Direction string            `json:"direction,omitempty"` // of a payload
	Filter    map[string]string `json:"filter,omitempty"`    // of a search, by the names of its fields
}

// Total sums up the payload records of one direction.
type Total struct {
	Direction string `json:"direction"`
	Pieces    uint32 `json:"pieces"`
	Bytes     int64  `json:"bytes"`
	SHA256    string `json:"sha256"` // hex, of the body's bytes
	// Recorded is false where the connection records metadata only: the bytes
	// were counted and hashed, not kept.
	Recorded bool `json:"recorded"`
}

// Marshal returns a body's stored bytes.
func Marshal(body any) ([]byte, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("record body: %w", err)
	}
	return b, nil
}

// Unmarshal reads a body. Fields that this version does not know are kept out
// of the way: an older reader must read newer records.
func Unmarshal(b []byte, body any) error {
	if err := json.Unmarshal(b, body); err != nil {
		return fmt.Errorf("record body: %w", err)
	}
	return nil
}
