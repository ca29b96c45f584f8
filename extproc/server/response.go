package server

import (
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
