package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	// settled is told how an exchange ended upstream, before the caller is.
	settled(p *plan, status int, facts bigquery.ResponseFacts)
	// upload is told the id of an upload that BigQuery gave out an address for.
	upload(p *plan, id string)
}

// prober lets the gate ask BigQuery itself: the request is on record first,
// the answer afterwards.
type prober func(ctx context.Context, purpose, method, path string) (status int, body []byte, err error)

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
	msg   *extproc.ProcessingResponse
	bytes int64
}

// commit is an append that is under way, and what happens when it is durable.
type commit struct {
	ticket *record.Ticket // nil: nothing had to be recorded
	since  time.Time
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

	body       []byte // the request's body while it is held
	resHead    *record.Head
	headReply  *extproc.ProcessingResponse
	headQueued bool     // the head is in a commit
	headOut    bool     // the head was given to Envoy
	held       [][]byte // durable, not released: the end is not known yet
	inFlight   int      // commits of the response that are not durable yet
	linger     bool     // a first piece waits for the rest of a small response
	lingered   bool
	facts      *bigquery.Scanner
	status     int
	forwarded  time.Time
	firstByte  time.Time
	lastByte   time.Time
	outcome    bool // the outcome was appended
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
			message: "The gateway has no memory left to hold a request of this size now. Try again in a moment."})
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
		x.responseHead(r.ResponseHeaders)
	case *extproc.ProcessingRequest_ResponseBody:
		x.responseBody(r.ResponseBody.GetBody(), r.ResponseBody.GetEndOfStream())
	case *extproc.ProcessingRequest_ResponseTrailers:
		x.responseTrailers()
	default:
		x.protocol("a message of no known kind came")
	}
}

// protocol ends a stream whose messages make no sense: closed, not guessed at.
func (x *exchange) protocol(what string) { x.stop(nil, "protocol: "+what) }

// --- request ---

func (x *exchange) requestHead(r *request) {
	x.req = r
	ctx, cancel := context.WithTimeout(x.ctx, x.timeout)
	defer cancel()
	p, refused := x.gate.head(ctx, r)
	x.plan = p
	x.up.full, x.sent.full, x.down.full = p.full, p.full, p.full
	if refused != nil {
		x.deny(refused)
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
	x.up.add(b)
	x.up.ended = end
	if x.phase == phaseOpen {
		x.flushRequest()
	}
}

// heldBody collects the body until it can be decided on.
func (x *exchange) heldBody(b []byte, end bool) {
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

func (x *exchange) decide() {
	ctx, cancel := context.WithTimeout(x.ctx, x.timeout)
	defer cancel()
	if refused := x.gate.decide(ctx, x.plan, x.body, x.prober(x)); refused != nil {
		x.deny(refused)
		return
	}
	x.phase = phaseIntent
	drafts := x.intentDrafts()
	body, held, whole := x.body, int64(len(x.body)), x.up.ended
	if x.plan.body != nil { // what goes upstream is not what the caller sent
		drafts = append(drafts, x.sent.drafts(x.draft(), [][]byte{x.plan.body})...)
		body = x.plan.body
	}
	x.body = nil
	x.commit(drafts, func() {
		x.phase = phaseOpen
		x.forwarded = x.now()
		x.send(requestHeadReply(x.plan, x.req), 0)
		if x.req.end {
			x.upOut = true
			return
		}
		if whole || len(body) > 0 {
			x.sendBody(record.DirectionRequest, body, whole, held)
		}
		x.upOut = whole
		x.flushRequest()
	})
}

// flushRequest journals what came of a streaming body, and sends it on when it
// is durable.
func (x *exchange) flushRequest() {
	if x.upOut || (len(x.up.pending) == 0 && !x.up.ended) {
		return
	}
	chunks, end := x.up.take(), x.up.ended
	x.upOut = end
	x.commit(x.up.drafts(x.draft(), chunks), func() { x.sendChunks(record.DirectionRequest, chunks, end) })
}

// sendChunks sends chunks in order; with end, the last reply ends the stream.
func (x *exchange) sendChunks(d record.Direction, chunks [][]byte, end bool) {
	for i, c := range chunks {
		x.sendBody(d, c, end && i == len(chunks)-1, int64(len(c)))
	}
	if end && len(chunks) == 0 {
		x.send(bodyReply(d, nil, true), 0)
	}
}

// sendBody sends one chunk in replies of at most maxReply bytes. held is what
// the chunk counts in the exchange's memory until the last of them is sent.
func (x *exchange) sendBody(d record.Direction, c []byte, end bool, held int64) {
	for {
		n := min(len(c), maxReply)
		rest := c[n:]
		r := reply{msg: bodyReply(d, c[:n:n], end && len(rest) == 0)}
		if len(rest) == 0 {
			r.bytes = held
		} else {
			r.bytes = min(held, int64(n))
			held -= r.bytes
		}
		x.out = append(x.out, r)
		if c = rest; len(c) == 0 {
			return
		}
	}
}

func (x *exchange) send(m *extproc.ProcessingResponse, held int64) {
	x.out = append(x.out, reply{msg: m, bytes: held})
}

// --- response ---

func (x *exchange) responseHead(h *extproc.HttpHeaders) {
	if x.phase != phaseOpen || x.resHead != nil {
		// Envoy answers some requests itself without having shown them (a
		// refused upgrade), and then the first message is a response.
		x.protocol("a response came for a request that was not let through")
		return
	}
	x.firstByte = x.now()
	head, mutation, refused := x.plan.responseHead(h, x.id.String())
	x.resHead, x.status = head, head.Status
	if refused != nil {
		x.deny(refused)
		return
	}
	x.headReply = responseHeadReply(mutation)
	x.facts = &bigquery.Scanner{}
	if x.plan.uploadID != "" {
		x.gate.upload(x.plan, x.plan.uploadID)
	}
	if h.GetEndOfStream() {
		x.finish(nil)
	}
}

func (x *exchange) responseBody(b []byte, end bool) {
	if x.phase != phaseOpen || x.resHead == nil {
		if x.phase != phaseClosing {
			x.protocol("a response body came before its headers")
		}
		x.hold.change(-int64(len(b)))
		return
	}
	if len(b) > 0 {
		x.down.add(b)
		x.facts.Write(b)
	}
	if end {
		x.finish(nil)
		return
	}
	x.flushResponse()
}

func (x *exchange) responseTrailers() {
	if x.phase != phaseOpen || x.resHead == nil {
		if x.phase != phaseClosing {
			x.protocol("response trailers came before the headers")
		}
		return
	}
	x.finish(responseTrailersReply())
}

// flushResponse journals what came of the response. While a commit is under
// way it lets more gather, up to a piece, so that commits grow under load
// instead of queueing.
func (x *exchange) flushResponse() {
	if x.phase != phaseOpen || x.resHead == nil || (x.headQueued && len(x.down.pending) == 0) {
		return
	}
	if x.inFlight > 0 && (x.down.waiting < record.MaxPiece || x.inFlight > 1) {
		return
	}
	if !x.lingered && x.down.waiting < record.MaxPiece {
		// The end of a small response follows its only piece at once: waiting a
		// moment for it makes two commits of three.
		x.linger = true
		return
	}
	x.linger, x.lingered = false, true
	drafts := x.headDrafts()
	chunks := x.down.take()
	drafts = append(drafts, x.down.drafts(x.draft(), chunks)...)
	x.inFlight++
	x.commit(drafts, func() {
		x.inFlight--
		x.releaseHead()
		if len(chunks) > 0 { // the newest chunk stays until the end is known
			x.sendChunks(record.DirectionResponse, x.held, false)
			x.sendChunks(record.DirectionResponse, chunks[:len(chunks)-1], false)
			x.held = chunks[len(chunks)-1:]
			if x.plan.framed { // the end of a gRPC message stream is its trailers
				x.sendChunks(record.DirectionResponse, x.held, false)
				x.held = nil
			}
		}
		x.flushResponse()
	})
}

// headDrafts returns the record of the response's head, once.
func (x *exchange) headDrafts() []record.Draft {
	if x.headQueued || x.resHead == nil {
		return nil
	}
	x.headQueued = true
	d := x.draft()
	head := x.resHead
	d.Kind, d.Direction, d.Flags = record.KindPayload, record.DirectionResponse, record.FlagHead
	d.Render = func(record.ID) ([]byte, error) { return record.Marshal(head) }
	return []record.Draft{d}
}

func (x *exchange) releaseHead() {
	if !x.headOut {
		x.headOut = true
		x.send(x.headReply, 0)
	}
}

// finish makes the rest of the response and the outcome durable together, and
// then lets the last byte go.
func (x *exchange) finish(trailers *extproc.ProcessingResponse) {
	x.phase, x.linger = phaseClosing, false
	x.lastByte = x.now()
	x.dropUpload()
	x.gate.settled(x.plan, x.status, x.facts.Facts())
	drafts := x.headDrafts()
	chunks := x.down.take()
	drafts = append(drafts, x.down.drafts(x.draft(), chunks)...)
	drafts = append(drafts, x.outcomeDraft(record.ResultDelivered, "")...)
	headersOnly := len(chunks) == 0 && x.down.offset == 0 && x.plan.headEnd
	x.commit(drafts, func() {
		x.releaseHead()
		rest := append(x.held, chunks...)
		x.held = nil
		switch {
		case trailers != nil:
			x.sendChunks(record.DirectionResponse, rest, false)
			x.send(trailers, 0)
		case headersOnly:
		default:
			x.sendChunks(record.DirectionResponse, rest, true)
		}
		x.phase = phaseDone
	})
}

// dropUpload forgets request bytes that came after the response ended.
func (x *exchange) dropUpload() {
	x.hold.change(-x.up.waiting)
	x.up.take()
	x.upOut = true
}

// --- ends ---

// deny answers in BigQuery's place. After the response's head went out nothing
// can be answered any more: the stream is ended.
func (x *exchange) deny(r *refusal) {
	if x.headOut || x.headQueued || x.outcome {
		x.abort(r.code)
		return
	}
	x.phase, x.linger = phaseClosing, false
	x.plan.decide(false, r)
	var drafts []record.Draft
	result := record.ResultDenied
	if x.begun {
		result = record.ResultAborted // the request had gone upstream
	} else {
		drafts = x.intentDrafts()
	}
	x.status = r.status
	x.dropUpload()
	var body []byte
	head := x.draft()
	head.Kind, head.Direction, head.Flags = record.KindPayload, record.DirectionResponse, record.FlagHead
	head.Render = func(id record.ID) ([]byte, error) {
		return record.Marshal(record.Head{Status: r.status, Headers: r.headers(id.String())})
	}
	piece := x.draft()
	piece.Kind, piece.Direction = record.KindPayload, record.DirectionResponse
	piece.Render = func(id record.ID) ([]byte, error) {
		body = r.body(id.String())
		return body, nil
	}
	outcome := x.outcomeDraft(result, r.code)[0]
	render := outcome.Render
	down := &x.down
	outcome.Render = func(id record.ID) ([]byte, error) {
		// The answer is always kept whole: it is the gateway's own.
		down.full, down.piece, down.offset = true, 1, int64(len(body))
		down.sum.Reset()
		down.sum.Write(body)
		return render(id)
	}
	x.commit(append(drafts, head, piece, outcome), func() {
		x.send(immediateReply(r, x.id.String()), 0)
		x.phase = phaseDone
	})
}

// abort ends the stream with an error once the outcome is durable, which makes
// Envoy reset the caller's connection.
func (x *exchange) abort(cause string) {
	x.phase, x.linger = phaseClosing, false
	ended := func() { x.err = status.Error(codes.Aborted, "verbatim: "+cause) }
	if x.outcome {
		ended()
		return
	}
	// Bytes that wait for their commit do not go out any more.
	for i := range x.commits {
		x.commits[i].then = func() {}
	}
	drafts := x.headDrafts()
	drafts = append(drafts, x.outcomeDraft(record.ResultAborted, cause)...)
	x.commit(drafts, ended)
}

// stop ends the exchange from outside: with an answer while one is possible,
// with a reset otherwise. A nil refusal never answers.
func (x *exchange) stop(r *refusal, cause string) {
	switch {
	case x.phase == phaseDone:
		return
	case x.phase == phaseHead || x.plan == nil:
		x.err = status.Error(codes.Aborted, "verbatim: "+cause)
	case x.outcome:
		x.err = status.Error(codes.Aborted, "verbatim: "+cause)
	case r != nil && x.phase != phaseIntent:
		x.deny(r)
	case x.begun:
		x.abort(cause)
	default:
		x.deny(&refusal{status: 400, reason: "invalid", code: "interrupted", by: "body", message: "The request ended early: " + cause + "."})
	}
}

// lost takes note that the stream ended: the caller left, the upstream reset,
// or, after the final reply, all is well.
func (x *exchange) lost(err error) {
	if x.phase == phaseDone || x.phase == phaseHead {
		if x.phase == phaseHead {
			x.err = status.Error(codes.Canceled, "verbatim: the stream ended before a request came")
		}
		return
	}
	cause := "client left"
	if x.resHead != nil && !x.down.ended && x.phase == phaseOpen {
		cause = "client left or upstream reset"
	}
	if x.outcome {
		// Its last byte may not have gone out: the outcome says delivered to
		// Envoy, which is all that can be known.
		x.err = status.Error(codes.Aborted, "verbatim: "+cause)
		return
	}
	if !x.begun {
		x.plan.decide(false, &refusal{code: "interrupted", by: "body", message: "The caller left before its request was whole."})
		x.phase = phaseClosing
		drafts := append(x.intentDrafts(), x.outcomeDraft(record.ResultAborted, cause)...)
		x.commit(drafts, func() { x.err = status.Error(codes.Aborted, "verbatim: "+cause) })
		return
	}
	x.abort(cause)
}

// --- records ---

// draft returns a draft that belongs to this exchange.
func (x *exchange) draft() record.Draft {
	return record.Draft{Exchange: x.id.Sequence, Session: x.plan.session, Class: x.plan.class, Reserved: x.begun}
}

// commit appends the drafts and does then when they are durable, after all
// earlier commits.
func (x *exchange) commit(drafts []record.Draft, then func()) {
	c := commit{since: x.now(), then: then}
	if len(drafts) > 0 {
		if x.id.Sequence == 0 {
			for i := range drafts {
				drafts[i].Exchange = 0
			}
		}
		for i := range drafts {
			// Only what ends an exchange may use the journal's reserve.
			drafts[i].Reserved = drafts[len(drafts)-1].Kind == record.KindOutcome && drafts[0].Kind != record.KindIntent
		}
		c.ticket = x.recorder.Append(drafts...)
		if x.id.Sequence == 0 {
			x.id = c.ticket.ID
		}
	}
	x.commits = append(x.commits, c)
	x.advance()
}

// advance does what follows from the commits that are settled.
func (x *exchange) advance() {
	for len(x.commits) > 0 && x.err == nil {
		c := x.commits[0]
		if c.ticket != nil {
			select {
			case <-c.ticket.Done():
			default:
				return
			}
		}
		x.commits = x.commits[1:]
		if c.ticket != nil {
			if err := c.ticket.Err(); err != nil {
				x.unrecorded(err)
				return
			}
		}
		c.then()
	}
}

// unrecorded ends an exchange whose records did not become durable. Nothing
// that they hold goes out.
func (x *exchange) unrecorded(err error) {
	x.commits = nil
	full := errors.Is(err, record.ErrFull)
	if full && x.begun && !x.outcome && x.id.Sequence != 0 && x.headOut {
		x.abort("journal full")
		return
	}
	if x.headOut {
		x.err = status.Error(codes.Aborted, "verbatim: journal failed")
		return
	}
	x.refused()
	r := &refusal{status: 503, reason: "backendError", code: "not_recorded", by: "capacity",
		message: "The gateway cannot record this request now and therefore does not pass it on. Try again later."}
	if full {
		r.message = "The gateway's journal is full, so this request cannot be recorded and is not passed on. Try again later."
	}
	x.send(immediateReply(r, ""), 0)
	x.phase = phaseDone
}

func (x *exchange) intentDrafts() []record.Draft {
	x.begun = true
	p, at := x.plan, x.now()
	d := x.draft()
	d.Kind = record.KindIntent
	streams := !x.up.ended
	d.Render = func(id record.ID) ([]byte, error) { return record.Marshal(p.intent(id, x.req, at, streams)) }
	drafts := []record.Draft{d}
	if len(x.body) > 0 {
		drafts = append(drafts, x.up.drafts(x.draft(), [][]byte{x.body})...)
	}
	return drafts
}

func (x *exchange) outcomeDraft(result record.Result, cause string) []record.Draft {
	x.outcome = true
	d := x.draft()
	d.Kind = record.KindOutcome
	at := x.now()
	code := x.status
	d.Render = func(id record.ID) ([]byte, error) {
		o := record.Outcome{
			OCSF:     record.NewOCSF(x.plan.ocsfClass(), x.plan.ocsfActivity(), at, id.String(), x.plan.session),
			Response: record.OCSFResponse{Code: code, Length: x.down.offset},
			Verbatim: record.OutcomeDetail{
				Session: x.plan.session, Result: result, Cause: cause,
				Forwarded: moment(x.forwarded), FirstByte: moment(x.firstByte), LastByte: moment(x.lastByte),
			},
		}
		o.Succeeded(result == record.ResultDelivered && code < 400)
		for _, l := range []*lane{&x.up, &x.sent, &x.down} {
			if t, ok := l.total(); ok {
				o.Verbatim.Payloads = append(o.Verbatim.Payloads, t)
			}
		}
		if x.facts != nil {
			tell(&o.Verbatim, x.facts.Facts())
		}
		if o.Verbatim.Job == nil {
			o.Verbatim.Job = x.plan.call.Job
		}
		return record.Marshal(o)
	}
	return []record.Draft{d}
}

// tell puts what the response said into the outcome.
func tell(o *record.OutcomeDetail, f bigquery.ResponseFacts) {
	o.Job, o.State, o.Error = f.Job, f.State, f.ErrorText()
	if f.HasRows {
		o.Rows = &f.Rows
	}
	o.TotalRows, o.BytesBilled, o.Processed, o.CacheHit = f.TotalRows, f.Billed, f.Processed, f.CacheHit
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
