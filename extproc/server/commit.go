package server

import (
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

// draft returns a draft that belongs to this exchange.
func (x *exchange) draft() record.Draft {
	return record.Draft{Exchange: x.id.Sequence, Session: x.plan.session, Class: x.plan.class}
}

// commit appends the drafts and does then when they are durable, after all
// earlier commits.
func (x *exchange) commit(drafts []record.Draft, then func()) {
	c := commit{since: x.now(), then: then}
	for i := range drafts { // until they are durable, the records hold the bytes once more
		c.bytes += int64(len(drafts[i].Body))
	}
	if len(drafts) > 0 {
		if x.id.Sequence == 0 {
			for i := range drafts {
				drafts[i].Exchange = 0
			}
		}
		reserved := endsOnly(drafts)
		for i := range drafts {
			drafts[i].Reserved = reserved
		}
		c.ticket = x.recorder.Append(drafts...)
		if err := atOnce(c.ticket); err != nil {
			// The journal took nothing of it. Nothing later may be appended as if
			// it had: that would leave a hole.
			x.takeBack(drafts)
			x.unrecorded(err)
			return
		}
		for _, l := range x.lanes() {
			l.taken()
		}
		if x.id.Sequence == 0 {
			x.id, x.receipt = c.ticket.ID, c.ticket.Receipt
		}
	}
	x.hold.change(c.bytes)
	x.commits = append(x.commits, c)
	x.advance()
}

// endsOnly reports whether the drafts do no more than end an exchange that is
// on record: only these may use the journal's reserve, never traffic.
func endsOnly(drafts []record.Draft) bool {
	if drafts[len(drafts)-1].Kind != record.KindOutcome || drafts[0].Kind == record.KindIntent {
		return false
	}
	for _, d := range drafts {
		if d.Body != nil { // a piece of traffic; the gateway's own answer is rendered
			return false
		}
	}
	return true
}

// atOnce returns the error of a ticket that failed in the append itself.
func atOnce(t *record.Ticket) error {
	select {
	case <-t.Done():
		return t.Err()
	default:
		return nil
	}
}

// takeBack forgets drafts that the journal refused.
func (x *exchange) takeBack(drafts []record.Draft) {
	for _, d := range drafts {
		switch {
		case d.Kind == record.KindIntent:
			x.begun = false
		case d.Kind == record.KindOutcome:
			x.outcome = false
		case d.Flags&record.FlagHead != 0:
			x.headQueued = false
		}
	}
	for _, l := range x.lanes() {
		l.refused()
	}
}

func (x *exchange) lanes() []*lane { return []*lane{&x.up, &x.sent, &x.down} }

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
		x.commits[0] = commit{} // it holds chunks
		x.commits = x.commits[1:]
		x.hold.change(-c.bytes)
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
	full := errors.Is(err, record.ErrFull)
	r := &refusal{status: 503, reason: "backendError", code: "not_recorded", by: "capacity",
		message: "The gateway cannot record this request now and therefore does not pass it on. Try again later."}
	if full {
		r.message = "The gateway's journal is full, so this request cannot be recorded and is not passed on. Try again later."
	}
	if full && x.begun && !x.starved {
		// The intent is on record: the journal's reserve holds how it ended.
		x.starved = true
		if x.headOut {
			x.abort("journal full")
		} else {
			r.code = "journal_full"
			x.deny(r)
		}
		return
	}
	x.commits = nil
	if x.headOut {
		x.err = status.Error(codes.Aborted, "verbatim: journal failed")
		return
	}
	x.refused()
	x.send(immediateReply(r, "", ""), 0)
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
	body := x.body
	if p.carries == carriesForm {
		body = keptForm(body)
	}
	if len(body) > 0 {
		drafts = append(drafts, x.up.drafts(x.draft(), chunk{b: body})...)
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
		ended := ""
		if x.plan.carries == carriesGRPC && result == record.ResultDelivered {
			ended = grpcError(x.plan.trailers)
		}
		o.Succeeded(result == record.ResultDelivered && code < 400 && ended == "")
		for _, l := range x.lanes() {
			if t, ok := l.total(); ok {
				o.Verbatim.Payloads = append(o.Verbatim.Payloads, t)
			}
		}
		if x.facts != nil || x.frames != nil {
			tell(&o.Verbatim, x.told())
		}
		if ended != "" {
			o.Verbatim.Error = ended
		}
		if f := x.plan.found; f != nil {
			o.Verbatim.Reads, o.Verbatim.Writes, o.Verbatim.Functions = f.reads, f.writes, f.functions
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
