package server

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

// Recorder makes records durable. It is all that the server knows of the
// journal. Append does not block on the disk; tickets settle in the order of
// the appends.
type Recorder interface {
	Append(drafts ...record.Draft) *record.Ticket
}

// gate decides. Its methods may block until ctx ends. They never fail open:
// what they return is a plan to carry out, or a refusal.
type gate interface {
	// head decides what the request's head suffices for. The plan is never
	// nil: on a refusal it holds what is known, for the record.
	head(ctx context.Context, r *request) (*plan, *refusal)
	// decide completes the plan with the body, or with its first part.
	decide(ctx context.Context, p *plan, body []byte, probe prober) *refusal
	// forwarded is told that the request goes upstream now.
	forwarded(p *plan)
	// settled is told how an exchange ended upstream, before the caller is.
	settled(p *plan, status int, facts bigquery.ResponseFacts)
	// answered is told what the caller is answered, once that is on record.
	answered(p *plan, id record.ID, status int)
	// finished is asked before the first row of a job's result goes out, when the
	// head of the answer was read: what did the job really use?
	finished(ctx context.Context, p *plan, facts bigquery.ResponseFacts, probe prober) *refusal
}

// prober lets the gate ask BigQuery itself: the request is on record first,
// the answer afterwards.
// asked is the body of the call, JSON, or nil.
type prober func(ctx context.Context, purpose, method, path string, asked []byte) (status int, body []byte, err error)

type phase int

const (
	phaseHead    phase = iota // nothing came yet
	phaseBody                 // the request's body is held until the decision
	phaseIntent               // the intent is being made durable
	phaseOpen                 // the request goes upstream, the response comes back
	phaseClosing              // the outcome is being made durable
	phaseDone                 // the final reply was given out
)

// event is what step takes: one of the types below, or a message.
type event any

type (
	eventLost    struct{ err error } // the stream ended
	eventKilled  struct{ reason string }
	eventSettled struct{} // the first commit's ticket is settled
	eventNoRoom  struct{} // there is no memory for more of a held body
	eventLinger  struct{} // the wait for more of a small response is over
	eventStuck   struct{ cause string }
)

// reply is one message to Envoy, with the number of held bytes that it frees
// when it is sent.
type reply struct {
	msg    *extproc.ProcessingResponse
	bytes  int64
	memory []byte // pooled, of no use once the reply is sent
}

// commit is an append that is under way, and what happens when it is durable.
type commit struct {
	ticket *record.Ticket // nil: nothing had to be recorded
	since  time.Time
	bytes  int64 // that the records hold until then
	then   func()
}

// exchange is the state of one ext_proc stream. It belongs to one goroutine.
type exchange struct {
	gate     gate
	recorder Recorder
	prober   func(*exchange) prober
	refused  func() // counts a refusal that could not be recorded
	now      func() time.Time
	ctx      context.Context
	timeout  time.Duration // of a decision
	maxBody  int64

	phase   phase
	req     *request
	plan    *plan
	id      record.ID // zero until the first record
	receipt string    // signed, of the same record
	begun   bool      // the intent was appended
	commits []commit
	out     []reply
	err     error // ends the stream
	killed  string

	hold  holding
	up    lane // the request as the caller sent it
	upOut bool // the end of the request's body went out or is in a commit
	sent  lane // the request as it went upstream, where it differs
	down  lane // the response as the caller gets it

	memory []byte // pooled buffer of the message in step, nil once somebody has it

	body       []byte // the request's body while it is held
	bodyExtra  int64  // counted for what a held body becomes, see heldCost
	resHead    *record.Head
	headReply  *extproc.ProcessingResponse
	headQueued bool   // the head is in a commit
	headOut    bool   // the head was given to Envoy
	last       []byte // the response's last byte so far: durable, and held until the end is known
	inFlight   int    // commits of the response that are not durable yet
	linger     bool   // a first piece waits for the rest of a small response
	lingered   bool
	facts      *bigquery.Scanner // of an answer in JSON
	frames     *bigquery.Frames  // of ReadRows's answer
	checked    bool              // the gate was asked about the finished job
	wrapBegun  bool              // the message around BigQuery's answer has begun
	status     int
	forwarded  time.Time
	firstByte  time.Time
	lastByte   time.Time
	outcome    bool // the outcome was appended
	starved    bool // the journal's limit ended the exchange
}

// maxReply is the largest body of one reply: Envoy's gRPC client and others
// met RESOURCE_EXHAUSTED above 128 KiB.
const maxReply = 62 << 10

// step takes one event in. Afterwards out holds what to send, err is set when
// the stream must end with an error, and phase is phaseDone when the final
// reply is in out.
func (x *exchange) step(ev event) {
	if x.err != nil {
		return
	}
	switch ev := ev.(type) {
	case *extproc.ProcessingRequest:
		x.message(ev)
	case eventSettled:
		x.advance()
	case eventLinger:
		x.linger, x.lingered = false, true
		x.flushResponse()
	case eventNoRoom:
		x.deny(&refusal{status: 503, reason: "backendError", code: "no_memory", by: "capacity",
			message: "The gateway has no memory left to hold a request or answer of this size now. Try again in a moment."})
	case eventLost:
		x.lost(ev.err)
	case eventKilled:
		x.killed = ev.reason
		x.stop(&refusal{status: 401, reason: "authError", code: "revoked", by: "revocation", message: "The caller's access was revoked: " + ev.reason + "."}, "revoked")
	case eventStuck:
		x.stop(&refusal{status: 503, reason: "backendError", code: "timeout", by: "capacity", message: "The exchange made no progress: " + ev.cause + "."}, ev.cause)
	}
}

func (x *exchange) message(m *extproc.ProcessingRequest) {
	if x.phase == phaseDone {
		return
	}
	switch r := m.Request.(type) {
	case *extproc.ProcessingRequest_RequestHeaders:
		if x.phase != phaseHead {
			x.protocol("request headers came twice")
			return
		}
		x.requestHead(newRequest(m, r.RequestHeaders, x.now()))
	case *extproc.ProcessingRequest_RequestBody:
		x.requestBody(r.RequestBody.GetBody(), r.RequestBody.GetEndOfStream())
	case *extproc.ProcessingRequest_RequestTrailers:
		// BigQuery reads no request trailers: the body's end says it all.
		x.requestBody(nil, true)
	case *extproc.ProcessingRequest_ResponseHeaders:
		if x.phase == phaseHead {
			x.unseen(m, r.ResponseHeaders)
			return
		}
		x.responseHead(r.ResponseHeaders)
	case *extproc.ProcessingRequest_ResponseBody:
		x.responseBody(r.ResponseBody.GetBody(), r.ResponseBody.GetEndOfStream())
	case *extproc.ProcessingRequest_ResponseTrailers:
		x.responseTrailers(r.ResponseTrailers)
	default:
		x.protocol("a message of no known kind came")
	}
}

// protocol ends a stream whose messages make no sense: closed, not guessed at.
func (x *exchange) protocol(what string) { x.stop(nil, "protocol: "+what) }

func (x *exchange) requestHead(r *request) {
	x.req = r
	ctx, cancel := context.WithTimeout(x.ctx, x.timeout)
	defer cancel()
	p, refused := x.gate.head(ctx, r)
	x.plan = p
	x.up.full, x.sent.full, x.down.full = p.full, p.full, p.full
	if refused != nil {
		x.turnDown(refused)
		return
	}
	if r.end {
		x.up.ended = true
		x.decide()
		return
	}
	x.phase = phaseBody
	if p.carries == carriesStream { // nothing in the body bears on the decision
		x.decide()
	}
}

// unseen answers for a request that Envoy refused before the processor could
// see it: a path with an escaped slash, an upgrade. All that is known is Envoy's
// answer, the first message of such a stream.
func (x *exchange) unseen(m *extproc.ProcessingRequest, h *extproc.HttpHeaders) {
	status := 0
	for _, v := range h.GetHeaders().GetHeaders() {
		if v.GetKey() == ":status" {
			status = atoi(headerValue(v))
		}
	}
	reason := bigquery.ReasonInvalid
	switch {
	case status == http.StatusForbidden:
		reason = bigquery.ReasonAccessDenied
	case status < 400 || status > 599: // no refusal; let nothing pass that nobody decided on
		status, reason = http.StatusBadGateway, bigquery.ReasonBackendError
	case status >= 500:
		reason = bigquery.ReasonBackendError
	}
	x.req = newRequest(m, nil, x.now())
	ctx, cancel := context.WithTimeout(x.ctx, x.timeout)
	defer cancel()
	x.plan, _ = x.gate.head(ctx, x.req) // refused for want of a token; the plan is for the record
	x.up.ended = true
	x.deny(&refusal{status: status, reason: reason, code: "http_invalid", by: "route",
		message: "The request is no HTTP that BigQuery's API has: a protocol upgrade, or a path with an escaped slash or another form that can be read in two ways. Send a plain request."})
}

func (x *exchange) requestBody(b []byte, end bool) {
	switch x.phase {
	case phaseHead:
		x.protocol("a request body came before its headers")
		return
	case phaseClosing:
		x.hold.change(-int64(len(b)))
		return
	case phaseBody:
		x.heldBody(b, end)
		return
	}
	if x.up.ended {
		x.hold.change(-int64(len(b)))
		return
	}
	x.up.add(x.chunk(b))
	x.up.ended = end
	if x.phase == phaseOpen {
		x.flushRequest()
	}
}

// heldBody collects the body until it can be decided on.
func (x *exchange) heldBody(b []byte, end bool) {
	extra := heldCost * int64(len(b))
	if !x.hold.reserve(extra) {
		x.step(eventNoRoom{})
		return
	}
	x.bodyExtra += extra
	x.body = append(x.body, b...)
	x.up.ended = end
	if int64(len(x.body)) > x.maxBody {
		x.deny(&refusal{status: 413, reason: "requestTooLarge", code: "body_too_large", by: "body",
			message: fmt.Sprintf("The request's body is larger than the %d bytes that may be held to decide on it.", x.maxBody)})
		return
	}
	switch {
	case end && x.plan.carries != carriesMultipart:
		x.decide()
	case x.plan.carries == carriesMultipart:
		if done, err := x.plan.part.Write(b); err != nil {
			x.deny(refused(err, "body"))
		} else if done || end {
			x.decide()
		}
	}
}

// mayReceive reports whether the next message may be taken, as far as it is for
// this exchange to say. Without a decision there is no other end than all of
// the body, or none.
func (x *exchange) mayReceive() bool {
	return x.phase < phaseIntent || x.holds() || x.hold.streams(expected)
}

// holds reports whether a body is held whole, which does not drain by itself.
func (x *exchange) holds() bool {
	return x.phase == phaseBody || x.phase == phaseOpen && x.plan.sealStreams != nil && x.resHead != nil
}

func (x *exchange) decide() {
	ctx, cancel := context.WithTimeout(x.ctx, x.timeout)
	defer cancel()
	refused := x.gate.decide(ctx, x.plan, x.body, x.prober(x))
	x.up.full, x.sent.full, x.down.full = x.plan.full, x.plan.full, x.plan.full // the body may have said by which connection
	if refused != nil {
		x.turnDown(refused)
		return
	}
	if x.plan.answer != nil {
		x.answer(x.plan.answer)
		return
	}
	if n := sqlCost * int64(len(x.plan.call.SQL)); n > expected {
		if !x.hold.reserve(n) {
			x.step(eventNoRoom{})
			return
		}
		x.bodyExtra += n
	}
	x.phase = phaseIntent
	drafts := x.intentDrafts()
	body, held, whole := x.body, int64(len(x.body)), x.up.ended
	if x.plan.body != nil { // what goes upstream is not what the caller sent
		drafts = append(drafts, x.sent.drafts(x.draft(), chunk{b: x.plan.body})...)
		body = x.plan.body
	}
	x.body, x.plan.body = nil, nil
	x.commit(drafts, func() {
		x.hold.change(-x.bodyExtra)
		x.bodyExtra = 0
		x.phase = phaseOpen
		x.forwarded = x.now()
		x.gate.forwarded(x.plan)
		x.send(requestHeadReply(x.plan, x.req), 0)
		if x.req.end {
			x.upOut = true
			return
		}
		if whole || len(body) > 0 {
			x.sendBody(record.DirectionRequest, chunk{b: body}, whole, held)
		}
		x.upOut = whole
		x.flushRequest()
	})
}

// turnDown denies what the gate refused. A caller who left in the meantime made
// whatever the gate waited for fail: that is no fault of the service.
func (x *exchange) turnDown(r *refusal) {
	if err := x.ctx.Err(); err != nil && r.status == http.StatusServiceUnavailable {
		x.phase = phaseBody // a request did come
		x.lost(err)
		return
	}
	x.deny(r)
}

// flushRequest journals what came of a streaming body, and sends it on when it
// is durable.
func (x *exchange) flushRequest() {
	if x.upOut || (len(x.up.pending) == 0 && !x.up.ended) {
		return
	}
	chunks, end := x.up.take(), x.up.ended
	x.upOut = end
	x.commit(x.up.drafts(x.draft(), chunks...), func() { x.sendChunks(record.DirectionRequest, chunks, end) })
}

// sendChunks sends chunks in order; with end, the last reply ends the stream.
func (x *exchange) sendChunks(d record.Direction, chunks []chunk, end bool) {
	for i, c := range chunks {
		x.sendBody(d, c, end && i == len(chunks)-1, c.cost())
	}
	if end && len(chunks) == 0 {
		x.send(bodyReply(d, nil, true), 0)
	}
}

// sendBody sends one chunk in replies of at most maxReply bytes. held is what
// the chunk counts in the exchange's memory until the last of them is sent.
func (x *exchange) sendBody(d record.Direction, c chunk, end bool, held int64) {
	b := c.b
	for {
		n := min(len(b), maxReply)
		rest := b[n:]
		r := reply{msg: bodyReply(d, b[:n:n], end && len(rest) == 0)}
		if len(rest) == 0 {
			r.bytes, r.memory = held, c.memory
		} else {
			r.bytes = min(held, int64(n))
			held -= r.bytes
		}
		x.out = append(x.out, r)
		if b = rest; len(b) == 0 {
			return
		}
	}
}

// chunk returns bytes of the message in step as a chunk that owns them.
func (x *exchange) chunk(b []byte) chunk {
	c := chunk{b, x.memory}
	x.memory = nil
	return c
}

// end gives back what the exchange holds.
func (x *exchange) end() {
	x.hold.free()
	if x.facts != nil {
		*x.facts = bigquery.Scanner{}
		scanners.Put(x.facts)
		x.facts = nil
	}
}

// scanners are of a few KB each, and every response needs one.
var scanners = sync.Pool{New: func() any { return &bigquery.Scanner{} }}

func (x *exchange) send(m *extproc.ProcessingResponse, held int64) {
	x.out = append(x.out, reply{msg: m, bytes: held})
}
