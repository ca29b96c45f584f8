package server

import (
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"verbatim.dev/recorder/record"
)

// deny answers in BigQuery's place. After the response's head went out nothing
// can be answered any more: the stream is ended.
func (x *exchange) deny(r *refusal) {
	if x.headOut || x.headQueued || x.outcome {
		x.abort(r.code)
		return
	}
	x.phase, x.linger = phaseClosing, false
	if x.req.grpc() {
		own := *r // a refusal may be shared
		own.grpc, r = true, &own
	}
	if x.plan.carries == carriesForm && r.oauth == "" {
		own := *r
		own.oauth, r = "invalid_request", &own
		if r.status >= 500 {
			r.oauth = "temporarily_unavailable"
		}
	}
	if a := x.plan.mcp; a != nil && r.by != "authentication" && r.by != "revocation" {
		// What a tool says, also that it was denied, is for the agent to read; an
		// error of HTTP would not reach it.
		own := *r
		own.mcp, own.status, r = a, http.StatusOK, &own
	}
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
	body := func(id record.ID) []byte { return r.body(id.String()) }
	if r.grpc {
		x.status, body = http.StatusOK, nil
	}
	drafts = x.ownDrafts(drafts, result, r.code, func(id record.ID) record.Head { return r.head(id.String()) }, body)
	x.commit(drafts, func() {
		x.gate.answered(x.plan, x.id, x.status)
		x.send(immediateReply(r, x.id.String(), x.receipt), 0)
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
