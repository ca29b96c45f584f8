package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

func (x *exchange) responseHead(h *extproc.HttpHeaders) {
	if x.phase != phaseOpen || x.resHead != nil {
		// Envoy answers some requests itself without having shown them (a
		// refused upgrade), and then the first message is a response.
		x.protocol("a response came for a request that was not let through")
		return
	}
	x.firstByte = x.now()
	head, mutation, refused := x.plan.responseHead(h, x.receipt)
	x.resHead, x.status = head, head.Status
	if x.plan.wrapped && !x.plan.headEnd && refused == nil {
		head.Status = http.StatusOK // whether a tool failed is for its answer to say
		mutation.SetHeaders = append(mutation.SetHeaders, setHeader(":status", "200"))
	}
	if refused != nil {
		x.deny(refused)
		return
	}
	x.headReply = responseHeadReply(mutation)
	switch {
	case !x.plan.framed || x.plan.carries != carriesGRPC:
		x.plan.sealStreams = nil // no message that could name streams
		x.facts = scanners.Get().(*bigquery.Scanner)
	case x.plan.call.Method == bigquery.MethodReadRows:
		x.frames = &bigquery.Frames{}
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
		x.wrap(b)
		if !x.understood(b) || !x.rowsMayGo() {
			return
		}
	}
	if end {
		x.finish(nil)
		return
	}
	x.flushResponse()
}

// understood looks at what came of an answer and reports whether the exchange
// goes on.
func (x *exchange) understood(b []byte) bool {
	switch {
	case x.facts != nil:
		x.facts.Write(b)
	case x.frames != nil:
		if err := x.frames.Write(b); err != nil {
			x.unreadable(err)
			return false
		}
	case x.plan.sealStreams != nil:
		if x.down.waiting > bigquery.MaxStorageAnswer {
			x.unreadable(fmt.Errorf("it is larger than %d bytes", bigquery.MaxStorageAnswer))
			return false
		}
		extra := heldCost * int64(len(b))
		if !x.hold.reserve(extra) {
			x.step(eventNoRoom{})
			return false
		}
		x.bodyExtra += extra // until the exchange ends
	}
	return true
}

// unreadable ends an exchange whose gRPC answer is not what its method has.
func (x *exchange) unreadable(err error) {
	x.deny(&refusal{status: http.StatusBadGateway, reason: bigquery.ReasonBackendError, code: "response_unreadable", by: "body",
		message: "BigQuery's answer is not one that the gateway can read and record, so it is not passed on: " + err.Error() + "."})
}

// told is what the answer says of itself.
func (x *exchange) told() bigquery.ResponseFacts {
	switch {
	case x.facts != nil:
		return x.facts.Facts()
	case x.frames != nil:
		return bigquery.ResponseFacts{HasRows: true, Rows: x.frames.Rows()}
	}
	return bigquery.ResponseFacts{}
}

// rowsMayGo asks the gate about the finished job when the first row has come
// and not gone out, where the decision rested on a dry run. It reports whether
// the exchange goes on.
func (x *exchange) rowsMayGo() bool {
	if x.checked || x.plan.reach == nil {
		return true
	}
	f := x.told()
	if !f.HasRows && !f.Arrow {
		return true
	}
	x.checked = true
	ctx, cancel := context.WithTimeout(x.ctx, x.timeout)
	defer cancel()
	if refused := x.gate.finished(ctx, x.plan, f, x.prober(x)); refused != nil {
		x.deny(refused)
		return false
	}
	return true
}

func (x *exchange) responseTrailers(t *extproc.HttpTrailers) {
	if x.phase != phaseOpen || x.resHead == nil {
		if x.phase != phaseClosing {
			x.protocol("response trailers came before the headers")
		}
		return
	}
	if x.plan.carries != carriesGRPC {
		x.finish(responseTrailersReply(nil))
		return
	}
	m := &extproc.HeaderMutation{}
	for _, v := range t.GetTrailers().GetHeaders() {
		name := strings.ToLower(v.GetKey())
		if !bigquery.DownstreamTrailer(name) {
			m.RemoveHeaders = append(m.RemoveHeaders, name)
			continue
		}
		h := record.Header{Name: name, Value: headerValue(v)}
		x.plan.trailers = append(x.plan.trailers, h)
		if name == "grpc-status" && h.Value == unauthenticated {
			x.deny(&refusalGoogleCredential)
			return
		}
	}
	x.finish(responseTrailersReply(m))
}

// seal puts the proofs into an answer that names streams, which came whole.
func (x *exchange) seal() error {
	if x.plan.sealStreams == nil || len(x.down.pending) == 0 {
		return nil
	}
	chunks := x.down.take()
	var whole []byte
	var held int64
	for _, c := range chunks {
		whole = append(whole, c.b...)
		held += c.cost()
		putBody(c.memory)
	}
	sealed, err := bigquery.SealStreams(x.plan.call.Method, whole, x.plan.sealStreams)
	if err != nil {
		sealed = nil
	}
	x.hold.change(int64(len(sealed)) - held)
	x.down.add(chunk{b: sealed})
	return err
}

// flushResponse journals what came of the response. While a commit is under
// way it lets more gather, up to a piece, so that commits grow under load
// instead of queueing.
func (x *exchange) flushResponse() {
	if x.plan.sealStreams != nil { // held until it is whole
		return
	}
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
	drafts = append(drafts, x.down.drafts(x.draft(), chunks...)...)
	x.inFlight++
	x.commit(drafts, func() {
		x.inFlight--
		x.releaseHead()
		x.release(chunks, x.plan.framed, false) // the end of a gRPC message stream is its trailers
		x.flushResponse()
	})
}

// release sends chunks of the response on, all but the last byte of them, which
// stays until the end is known; whole sends that too. With end, the last reply
// ends the response.
func (x *exchange) release(chunks []chunk, whole, end bool) {
	for i, c := range chunks {
		held, newest := c.cost(), i == len(chunks)-1
		var last []byte
		if newest && !whole {
			last = []byte{c.b[len(c.b)-1]}
			c.b = c.b[:len(c.b)-1]
		}
		end := end && newest
		switch {
		case len(x.last) > 0: // it goes in front, within the first reply
			n := min(len(c.b), maxReply-1)
			front := chunk{}
			front.b, front.memory = getBody(n + 1)
			front.b[0] = x.last[0]
			copy(front.b[1:], c.b[:n])
			if c.b = c.b[n:]; len(c.b) > 0 {
				x.sendBody(record.DirectionResponse, front, false, 0)
				x.sendBody(record.DirectionResponse, c, end, held)
			} else {
				x.sendBody(record.DirectionResponse, front, end, held)
				putBody(c.memory)
			}
		case len(c.b) > 0:
			x.sendBody(record.DirectionResponse, c, end, held)
		default: // one byte, which stays
			x.hold.change(-held)
			putBody(c.memory)
		}
		x.last = last
	}
	if len(chunks) == 0 && whole && (end || len(x.last) > 0) {
		x.send(bodyReply(record.DirectionResponse, x.last, end), 0)
		x.last = nil
	}
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
	if x.frames != nil {
		if err := x.frames.End(); err != nil && grpcError(x.plan.trailers) == "" {
			x.unreadable(err)
			return
		}
	}
	if err := x.seal(); err != nil {
		x.unreadable(err)
		return
	}
	x.phase, x.linger = phaseClosing, false
	x.lastByte = x.now()
	x.dropUpload()
	x.gate.settled(x.plan, x.status, x.told())
	x.wrapEnd()
	drafts := x.headDrafts()
	chunks := x.down.take()
	drafts = append(drafts, x.down.drafts(x.draft(), chunks...)...)
	drafts = append(drafts, x.outcomeDraft(record.ResultDelivered, "")...)
	headersOnly := len(chunks) == 0 && x.down.offset == 0 && x.plan.headEnd
	x.commit(drafts, func() {
		x.gate.answered(x.plan, x.id, x.status)
		x.releaseHead()
		switch {
		case trailers != nil:
			x.release(chunks, true, false)
			x.send(trailers, 0)
		case headersOnly:
		default:
			x.release(chunks, true, true)
		}
		x.phase = phaseDone
	})
}

// dropUpload forgets request bytes that came after the response ended.
func (x *exchange) dropUpload() {
	for _, c := range x.up.take() {
		x.hold.change(-c.cost())
	}
	x.upOut = true
}
