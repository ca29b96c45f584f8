package ledgertest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"verbatim.dev/recorder/record"
)

// Exchange describes an exchange for a test.
type Exchange struct {
	Session    string
	Subject    string
	Email      string
	Groups     []string
	Provenance *record.Provenance
	Asserted   record.Asserted
	Connection string // "analytics" where empty
	Metadata   bool   // the connection records no payload
	Method     string // bigquery.jobs.query where empty
	Project    string // "p1" where empty
	Dataset    string
	Table      string
	SQL        string
	Parameters json.RawMessage
	Deny       []record.Reason
	Request    []byte
	Upstream   []byte
	Response   []byte
	Headers    []record.Header // of the request
	Piece      int             // bytes of a piece, 64 KiB where 0
	Job        *record.Job
	Rows       int64
	Status     int // 200 where 0, 403 when denied
	Received   bool
}

// Run appends a whole exchange.
func (g *Gateway) Run(x Exchange) record.ID {
	r := g.Start(x)
	r.Finish()
	return r.ID
}

// Running is an exchange on its way.
type Running struct {
	ID record.ID

	g     *Gateway
	x     Exchange
	began time.Time
}

// Start appends an exchange up to its intent and request.
func (g *Gateway) Start(x Exchange) *Running {
	if x.Connection == "" {
		x.Connection = "analytics"
	}
	if x.Method == "" {
		x.Method = "bigquery.jobs.query"
	}
	if x.Project == "" {
		x.Project = "p1"
	}
	if x.Piece == 0 {
		x.Piece = 64 << 10
	}
	if x.Status == 0 {
		x.Status = 200
		if x.Deny != nil {
			x.Status = 403
		}
	}
	r := &Running{g: g, x: x, began: g.Now}
	principal := &record.Principal{Issuer: "corp", URL: "https://login.corp.example", Subject: x.Subject, Email: x.Email, Groups: x.Groups}
	call := record.Call{Method: x.Method, Project: x.Project, Dataset: x.Dataset, Table: x.Table, SQL: x.SQL, Parameters: x.Parameters}
	var exchange uint64
	if x.Received {
		id := g.Append(record.Draft{Kind: record.KindReceived, Session: x.Session, Body: body(record.Received{Session: x.Session, At: g.Now, Principal: principal, Call: call})})
		exchange = id.Sequence
		g.Append(record.Draft{Kind: record.KindProbe, Exchange: exchange, Session: x.Session, Body: body(record.Probe{At: g.Now, Purpose: "owner of job", Method: "GET", Path: "/bigquery/v2/projects/p1/jobs/j1", Status: 200})})
	}
	recording := "full"
	if x.Metadata {
		recording = "metadata"
	}
	intent := record.Draft{Kind: record.KindIntent, Exchange: exchange, Session: x.Session, Render: func(id record.ID) ([]byte, error) {
		i := record.Intent{OCSF: record.NewOCSF(record.ClassDatastore, record.ActivityQuery, r.began, id.String(), x.Session)}
		i.Succeeded(x.Deny == nil)
		i.Actor = record.OCSFActor{User: record.OCSFUser{UID: x.Subject, Email: x.Email}, Session: record.OCSFSession{UID: x.Session, Issuer: principal.URL}}
		i.Source.IP = "10.1.2.3"
		i.Request = record.OCSFRequest{Method: "POST", URL: record.OCSFURL{Hostname: "bigquery.internal", Path: "/bigquery/v2/projects/" + x.Project + "/queries"}, Headers: x.Headers}
		i.Verbatim = record.IntentDetail{
			Session: x.Session, Principal: principal, Provenance: x.Provenance, Asserted: x.Asserted,
			Connection: &record.Connection{Name: x.Connection, Project: x.Project, Location: "US", Recording: recording, Retention: "standard"},
			Call:       call, Received: r.began, Decided: r.began.Add(2 * time.Millisecond),
			Decision: record.Decision{Allow: x.Deny == nil, Reasons: x.Deny, By: "policy", Policy: "sha256:0011", Credential: "reader"},
		}
		return record.Marshal(i)
	}}
	r.ID = g.Append(intent)
	r.pieces(record.DirectionRequest, x.Request)
	r.pieces(record.DirectionUpstream, x.Upstream)
	return r
}

func (r *Running) pieces(d record.Direction, b []byte) {
	if r.x.Metadata {
		return
	}
	for i, offset := uint32(0), 0; offset < len(b); i++ {
		n := min(r.x.Piece, len(b)-offset)
		r.Piece(d, i, uint64(offset), b[offset:offset+n])
		offset += n
	}
}

// Piece appends one payload record.
func (r *Running) Piece(d record.Direction, piece uint32, offset uint64, b []byte) {
	r.g.Append(record.Draft{Kind: record.KindPayload, Exchange: r.ID.Sequence, Direction: d, Piece: piece, Offset: offset, Session: r.x.Session, Body: b})
}

// Finish appends the response and the outcome.
func (r *Running) Finish() {
	head := record.Head{Status: r.x.Status, Headers: []record.Header{{Name: "content-type", Value: "application/json"}, {Name: "x-verbatim-receipt", Value: r.ID.String()}}}
	r.g.Append(record.Draft{Kind: record.KindPayload, Exchange: r.ID.Sequence, Direction: record.DirectionResponse, Flags: record.FlagHead, Session: r.x.Session, Body: body(head)})
	r.pieces(record.DirectionResponse, r.x.Response)
	r.Outcome(r.Totals())
}

// Totals returns the true totals of the payloads.
func (r *Running) Totals() []record.Total {
	var totals []record.Total
	for i, b := range [][]byte{r.x.Request, r.x.Upstream, r.x.Response} {
		d := record.DirectionRequest + record.Direction(i)
		if b == nil {
			continue
		}
		sum := sha256.Sum256(b)
		t := record.Total{Direction: d.String(), Bytes: int64(len(b)), SHA256: hex.EncodeToString(sum[:]), Recorded: !r.x.Metadata}
		if !r.x.Metadata {
			t.Pieces = uint32((len(b) + r.x.Piece - 1) / r.x.Piece)
		}
		totals = append(totals, t)
	}
	return totals
}

// Outcome appends the outcome.
func (r *Running) Outcome(totals []record.Total) {
	x, g := r.x, r.g
	o := record.Outcome{OCSF: record.NewOCSF(record.ClassDatastore, record.ActivityQuery, g.Now, r.ID.String(), x.Session)}
	o.Response = record.OCSFResponse{Code: x.Status, Length: int64(len(x.Response))}
	o.Verbatim = record.OutcomeDetail{Session: x.Session, Result: record.ResultDelivered, Job: x.Job, Payloads: totals}
	if x.Deny != nil {
		o.Verbatim.Result, o.Verbatim.Cause = record.ResultDenied, "policy"
	} else {
		forwarded, first, last := r.began.Add(3*time.Millisecond), g.Now.Add(-time.Millisecond), g.Now
		o.Verbatim.Forwarded, o.Verbatim.FirstByte, o.Verbatim.LastByte = &forwarded, &first, &last
		rows, billed := x.Rows, int64(10<<20)
		o.Verbatim.Rows, o.Verbatim.TotalRows, o.Verbatim.BytesBilled = &rows, &rows, &billed
	}
	g.Append(record.Draft{Kind: record.KindOutcome, Exchange: r.ID.Sequence, Session: x.Session, Body: body(o)})
}
