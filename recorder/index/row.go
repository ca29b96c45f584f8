package index

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// Pending and Unknown are results that no outcome says, as in package search.
const (
	Pending = "pending" // no outcome so far
	Unknown = "unknown" // the outcome cannot be read
)

// Row is one exchange. The parquet names are those of the columns, and are
// stable; new ones may be added. Times are microseconds since 1970 in UTC, 0
// where they are not known. What is not known is null in the file, and the zero
// value or nil here. README.md of recorder explains the columns.
type Row struct {
	Exchange string `parquet:"exchange"`
	Gateway  string `parquet:"gateway,dict"`
	Epoch    string `parquet:"epoch,dict"`
	Sequence int64  `parquet:"sequence"`
	Session  string `parquet:"session,optional,dict"`

	Received  int64 `parquet:"received,timestamp(microsecond)"`
	Decided   int64 `parquet:"decided,optional,timestamp(microsecond)"`
	Forwarded int64 `parquet:"forwarded,optional,timestamp(microsecond)"`
	FirstByte int64 `parquet:"first_byte,optional,timestamp(microsecond)"`
	LastByte  int64 `parquet:"last_byte,optional,timestamp(microsecond)"`
	Ended     int64 `parquet:"ended,optional,timestamp(microsecond)"`
	LatencyUS int64 `parquet:"latency_us,optional"`

	Issuer     string   `parquet:"issuer,optional,dict"`
	IssuerURL  string   `parquet:"issuer_url,optional,dict"`
	Subject    string   `parquet:"subject,optional,dict"`
	Email      string   `parquet:"email,optional,dict"`
	GroupNames []string `parquet:"group_names,list" parquet-element:",dict"`
	OnBehalfOf []string `parquet:"on_behalf_of,list" parquet-element:",dict"`
	TokenID    string   `parquet:"token_id,optional"`
	SourceIP   string   `parquet:"source_ip,optional,dict"`

	Profile        string `parquet:"profile,optional,dict"`
	Pipeline       string `parquet:"pipeline,optional,dict"`
	Repository     string `parquet:"repository,optional,dict"`
	Ref            string `parquet:"ref,optional,dict"`
	Commit         string `parquet:"commit,optional,dict"`
	Workflow       string `parquet:"workflow,optional,dict"`
	Run            string `parquet:"run,optional,dict"`
	Actor          string `parquet:"actor,optional,dict"`
	Environment    string `parquet:"environment,optional,dict"`
	Namespace      string `parquet:"namespace,optional,dict"`
	Pod            string `parquet:"pod,optional,dict"`
	ServiceAccount string `parquet:"service_account,optional,dict"`
	Node           string `parquet:"node,optional,dict"`
	SPIFFE         string `parquet:"spiffe_id,optional,dict"`

	UserAgent     string   `parquet:"user_agent,optional,dict"`
	Traceparent   string   `parquet:"traceparent,optional"`
	RequestReason string   `parquet:"request_reason,optional,dict"`
	RequestID     string   `parquet:"request_id,optional"`
	Labels        []string `parquet:"labels,list" parquet-element:",dict"` // NAME=VALUE, sorted
	Agent         string   `parquet:"agent,optional,dict"`
	Model         string   `parquet:"model,optional,dict"`
	Conversation  string   `parquet:"conversation,optional,dict"`
	ToolCall      string   `parquet:"tool_call,optional"`

	Connection string   `parquet:"connection,optional,dict"`
	Recording  string   `parquet:"recording,optional,dict"`
	Method     string   `parquet:"method,optional,dict"`
	Kinds      []string `parquet:"kinds,list" parquet-element:",dict"` // of the statements
	Project    string   `parquet:"project,optional,dict"`
	Dataset    string   `parquet:"dataset,optional,dict"`
	Table      string   `parquet:"table_name,optional,dict"`
	DryRun     bool     `parquet:"dry_run"`
	SQL        string   `parquet:"sql,optional"`
	SQLSHA256  string   `parquet:"sql_sha256,optional,dict"`
	Parameters string   `parquet:"parameters,optional"` // JSON
	Reads      []string `parquet:"reads,list" parquet-element:",dict"`
	Writes     []string `parquet:"writes,list" parquet-element:",dict"`
	Functions  []string `parquet:"functions,list" parquet-element:",dict"`
	Opaque     []string `parquet:"opaque,list" parquet-element:",dict"`
	Masked     []string `parquet:"masked,list" parquet-element:",dict"`

	Decision     string   `parquet:"decision,optional,dict"` // allow or deny
	WouldDeny    bool     `parquet:"would_deny"`
	DecidedBy    string   `parquet:"decided_by,optional,dict"`
	Reasons      []string `parquet:"reasons,list" parquet-element:",dict"` // codes
	Messages     []string `parquet:"reason_messages,list" parquet-element:",dict"`
	Rule         string   `parquet:"rule,optional,dict"` // the code that decided
	PolicyDigest string   `parquet:"policy_digest,optional,dict"`
	MaxBytes     int64    `parquet:"maximum_bytes_billed,optional"`
	Credential   string   `parquet:"credential,optional,dict"`

	Result         string `parquet:"result,dict"`
	Status         int32  `parquet:"status,optional"`
	Cause          string `parquet:"cause,optional,dict"`
	Error          string `parquet:"error,optional"`
	Job            string `parquet:"job,optional"` // its id
	JobProject     string `parquet:"job_project,optional,dict"`
	JobLocation    string `parquet:"job_location,optional,dict"`
	ParentJob      string `parquet:"parent_job,optional"`
	JobState       string `parquet:"job_state,optional,dict"`
	RowCount       *int64 `parquet:"row_count"`
	TotalRows      *int64 `parquet:"total_rows"`
	BytesIn        *int64 `parquet:"bytes_in"`  // of the request's body
	BytesOut       *int64 `parquet:"bytes_out"` // of the response's
	BytesBilled    *int64 `parquet:"bytes_billed"`
	BytesProcessed *int64 `parquet:"bytes_processed"`
	CacheHit       *bool  `parquet:"cache_hit"`
	RequestSHA256  string `parquet:"request_sha256,optional"`
	UpstreamSHA256 string `parquet:"upstream_sha256,optional"`
	ResponseSHA256 string `parquet:"response_sha256,optional"`
	ClosedBy       string `parquet:"closed_by,optional"` // recovery's outcome

	Class   string   `parquet:"class,dict"` // retention
	Expires int64    `parquet:"expires,optional,timestamp(microsecond)"`
	Keys    []string `parquet:"keys,list" parquet-element:",dict"` // data keys that sealed it, hex
	Segment string   `parquet:"segment,dict"`                      // the file of the vault that holds the first record
	// Unreadable says why not all of it could be opened.
	Unreadable string `parquet:"unreadable,optional,dict"`
}

// Time returns when the request came.
func (r *Row) Time() time.Time { return at(r.Received) }

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func at(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func atPointer(us int64) *time.Time {
	if us == 0 {
		return nil
	}
	t := at(us)
	return &t
}

func (r *Row) principal(p *record.Principal) {
	if p == nil {
		return
	}
	r.Issuer, r.IssuerURL, r.Subject, r.Email, r.TokenID = p.Issuer, p.URL, p.Subject, p.Email, p.TokenID
	r.GroupNames, r.OnBehalfOf = slices.Clone(p.Groups), nil
	for _, a := range p.OnBehalfOf {
		r.OnBehalfOf = append(r.OnBehalfOf, a.Issuer+"/"+a.Subject)
	}
}

func (r *Row) call(c *record.Call) {
	r.Method, r.Project, r.Dataset, r.Table = c.Method, c.Project, c.Dataset, c.Table
	r.DryRun, r.SQL, r.Parameters, r.Kinds, r.Opaque = c.DryRun, c.SQL, string(c.Parameters), c.Statements, c.Opaque
	if r.SQLSHA256 = ""; c.SQL != "" {
		sum := sha256.Sum256([]byte(c.SQL))
		r.SQLSHA256 = hex.EncodeToString(sum[:])
	}
	r.Reads, r.Writes, r.Functions = nil, nil, nil
	r.uses(c.Reads, c.Writes, c.Functions)
	r.job(c.Job)
}

// uses adds tables and functions, each once and in order of their names: what
// the outcome knows adds to the intent's.
func (r *Row) uses(reads, writes []record.TableUse, functions []string) {
	add := func(to *[]string, names ...string) {
		for _, n := range names {
			if i, ok := slices.BinarySearch(*to, n); !ok {
				*to = slices.Insert(*to, i, n)
			}
		}
	}
	for _, t := range reads {
		add(&r.Reads, t.Table)
	}
	for _, t := range writes {
		add(&r.Writes, t.Table)
	}
	add(&r.Functions, functions...)
}

func (r *Row) job(j *record.Job) {
	if j != nil {
		r.Job, r.JobProject, r.JobLocation = j.ID, j.Project, j.Location
	}
}

func (r *Row) received(v *record.Received) {
	r.Session = v.Session
	r.principal(v.Principal)
	r.call(&v.Call)
}

func (r *Row) intent(i *record.Intent) {
	v := &i.Verbatim
	r.Session, r.SourceIP = v.Session, i.Source.IP
	r.principal(v.Principal)
	if p := v.Provenance; p != nil {
		r.Profile, r.Pipeline, r.Repository, r.Ref, r.Commit, r.Workflow, r.Run = p.Profile, p.Pipeline, p.Repository, p.Ref, p.Commit, p.Workflow, p.Run
		r.Actor, r.Environment, r.Namespace, r.Pod = p.Actor, p.Environment, p.Namespace, p.Pod
		r.ServiceAccount, r.Node, r.SPIFFE = p.ServiceAccount, p.Node, p.SPIFFE
	}
	a := &v.Asserted
	r.UserAgent, r.Traceparent, r.RequestReason, r.RequestID = a.UserAgent, a.Traceparent, a.RequestReason, a.RequestID
	r.Agent, r.Model, r.Conversation, r.ToolCall, r.Labels = a.Agent, a.Model, a.Conversation, a.ToolCall, nil
	for k, v := range a.Labels {
		r.Labels = append(r.Labels, k+"="+v)
	}
	slices.Sort(r.Labels)
	if c := v.Connection; c != nil {
		r.Connection, r.Recording = c.Name, c.Recording
	}
	r.call(&v.Call)
	d := &v.Decision
	if r.Decision = "deny"; d.Allow {
		r.Decision = "allow"
	}
	r.WouldDeny, r.DecidedBy, r.PolicyDigest, r.MaxBytes, r.Credential = d.WouldDeny, d.By, d.Policy, d.MaxBytes, d.Credential
	r.Reasons, r.Messages, r.Rule = nil, nil, ""
	for _, reason := range d.Reasons {
		r.Reasons, r.Messages = append(r.Reasons, reason.Code), append(r.Messages, reason.Message)
	}
	if len(r.Reasons) > 0 {
		r.Rule = r.Reasons[0]
	}
	r.Decided = micros(v.Decided)
}

func (r *Row) outcome(o *record.Outcome, ended time.Time) {
	v := &o.Verbatim
	r.Status, r.Result, r.Cause, r.Error = int32(o.Response.Code), string(v.Result), v.Cause, v.Error
	if r.Session == "" {
		r.Session = v.Session
	}
	r.job(v.Job)
	r.uses(v.Reads, v.Writes, v.Functions)
	r.JobState, r.RowCount, r.TotalRows = v.State, v.Rows, v.TotalRows
	r.BytesBilled, r.BytesProcessed, r.CacheHit = v.BytesBilled, v.Processed, v.CacheHit
	for to, t := range map[*int64]*time.Time{&r.Forwarded: v.Forwarded, &r.FirstByte: v.FirstByte, &r.LastByte: v.LastByte} {
		if t != nil {
			*to = micros(*t)
		}
	}
	out := o.Response.Length
	r.BytesOut = &out
	for _, t := range v.Payloads {
		switch t.Direction {
		case record.DirectionRequest.String():
			in := t.Bytes
			r.BytesIn, r.RequestSHA256 = &in, t.SHA256
		case record.DirectionUpstream.String():
			r.UpstreamSHA256 = t.SHA256
		case record.DirectionResponse.String():
			r.ResponseSHA256 = t.SHA256
		}
	}
	r.ends(ended)
}

// ends sets when it ended, and how long it took: to the last byte where that is
// known, else to the outcome.
func (r *Row) ends(t time.Time) {
	r.Ended = micros(t)
	last := r.LastByte
	if last == 0 {
		last = r.Ended
	}
	r.LatencyUS = max(0, last-r.Received)
}

// size is about how many bytes of memory the row takes.
func (r *Row) size() int {
	n := int(reflect.TypeFor[Row]().Size()) + 1024 // names, digests and times that are alike in all
	for _, s := range []string{r.SQL, r.Parameters, r.Error, r.UserAgent, r.RequestReason, r.ToolCall, r.Subject, r.Conversation} {
		n += len(s)
	}
	for _, l := range [][]string{r.GroupNames, r.OnBehalfOf, r.Labels, r.Reads, r.Writes, r.Functions, r.Messages, r.Keys} {
		for _, s := range l {
			n += len(s) + 16
		}
	}
	return n
}

// differences names the columns in which two rows are not the same.
func differences(a, b *Row) []string {
	var names []string
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		f, g := x.Field(i), y.Field(i)
		if f.Kind() == reflect.Slice && f.Len() == 0 && g.Len() == 0 {
			continue // a list has no null
		}
		if !reflect.DeepEqual(f.Interface(), g.Interface()) {
			name, _, _ := strings.Cut(x.Type().Field(i).Tag.Get("parquet"), ",")
			names = append(names, name)
		}
	}
	return names
}
