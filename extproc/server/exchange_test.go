package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

// tape is a recorder that a test settles by hand.
type tape struct {
	t       *testing.T
	epoch   record.Epoch
	next    uint64
	tickets []*record.Ticket
	appends [][]record.Draft
	auto    bool  // settle at once
	err     error // that appends get
	full    bool  // only the reserve has room
}

func (r *tape) Append(drafts ...record.Draft) *record.Ticket {
	if r.full && !(drafts[len(drafts)-1].Reserved && drafts[0].Reserved) {
		r.err = record.ErrFull
		defer func() { r.err = nil }()
	}
	if r.err != nil {
		tk := record.NewTicket(record.ID{})
		tk.Settle(r.err)
		return tk
	}
	first := drafts[0].Exchange
	for i := range drafts {
		r.next++
		if first == 0 {
			first = r.next
		}
		id := record.ID{Epoch: r.epoch, Sequence: first}
		if drafts[i].Render != nil {
			b, err := drafts[i].Render(id)
			if err != nil {
				r.t.Fatal(err)
			}
			drafts[i].Body = b
		}
		drafts[i].Body = bytes.Clone(drafts[i].Body)
		drafts[i].Exchange = first
	}
	r.appends = append(r.appends, drafts)
	tk := record.NewTicket(record.ID{Epoch: r.epoch, Sequence: first})
	if r.auto {
		tk.Settle(nil)
	}
	r.tickets = append(r.tickets, tk)
	return tk
}

func (r *tape) kinds() string {
	var out []string
	for _, a := range r.appends {
		var k []string
		for _, d := range a {
			s := d.Kind.String()
			if d.Kind == record.KindPayload {
				s = d.Direction.String()
				if d.Flags&record.FlagHead != 0 {
					s += "-head"
				}
			}
			k = append(k, s)
		}
		out = append(out, strings.Join(k, " "))
	}
	return strings.Join(out, " | ")
}

func (r *tape) outcome(t *testing.T) record.Outcome {
	t.Helper()
	for _, a := range r.appends {
		for _, d := range a {
			if d.Kind == record.KindOutcome {
				var o record.Outcome
				if err := json.Unmarshal(d.Body, &o); err != nil {
					t.Fatal(err)
				}
				return o
			}
		}
	}
	t.Fatal("no outcome on record")
	return record.Outcome{}
}

// payload returns the recorded body of a direction.
func (r *tape) payload(d record.Direction) []byte {
	var b []byte
	for _, a := range r.appends {
		for _, p := range a {
			if p.Kind == record.KindPayload && p.Direction == d && p.Flags == 0 {
				if p.Offset != uint64(len(b)) {
					panic(fmt.Sprintf("piece %d of %s is at %d, want %d", p.Piece, d, p.Offset, len(b)))
				}
				b = append(b, p.Body...)
			}
		}
	}
	return b
}

// fakeGate lets everything pass, or refuses.
type fakeGate struct {
	carries     bigquery.Carries
	full        bool
	refuseHead  *refusal
	refuse      *refusal
	replace     []byte
	refuseRows  *refusal
	settledWith int
}

func (g *fakeGate) head(_ context.Context, r *request) (*plan, *refusal) {
	p := newPlan(r)
	p.carries, p.full, p.session, p.path, p.cluster = g.carries, g.full, "s", r.target, "c.rest"
	p.conn = &Connection{REST: "https://bigquery.googleapis.com", Recording: "full"}
	p.keepHeaders("")
	return p, g.refuseHead
}

func (g *fakeGate) decide(_ context.Context, p *plan, _ []byte, _ prober) *refusal {
	p.body, p.credential = g.replace, "gateway-token"
	p.decide(true, nil)
	return g.refuse
}

func (g *fakeGate) settled(_ *plan, status int, _ bigquery.ResponseFacts) { g.settledWith = status }
func (g *fakeGate) forwarded(*plan)                                       {}
func (g *fakeGate) answered(*plan, record.ID, int)                        {}
func (g *fakeGate) finished(context.Context, *plan, bigquery.ResponseFacts, prober) *refusal {
	return g.refuseRows
}

type rig struct {
	*exchange
	tape    *tape
	refused int
	sent    []*extproc.ProcessingResponse
}

func newRig(t *testing.T, g gate, auto bool) *rig {
	t.Helper()
	tp := &tape{t: t, auto: auto}
	r := &rig{tape: tp}
	now := time.Unix(1_700_000_000, 0)
	r.exchange = &exchange{
		gate: g, recorder: tp, refused: func() { r.refused++ }, now: func() time.Time { return now }, ctx: context.Background(),
		timeout: time.Second, maxBody: 1 << 20, prober: func(*exchange) prober { return nil },
		hold: holding{share: 1 << 20, budget: NewBudget(1 << 20)},
		up:   newLane(record.DirectionRequest), sent: newLane(record.DirectionUpstream), down: newLane(record.DirectionResponse),
	}
	return r
}

// do steps and moves what is to be sent into sent.
func (r *rig) do(events ...event) {
	for _, e := range events {
		r.step(e)
		for _, o := range r.out {
			r.sent = append(r.sent, o.msg)
		}
		r.out = nil
	}
}

// settle settles the oldest ticket that is open.
func (r *rig) settle(err error) {
	for _, tk := range r.tape.tickets {
		select {
		case <-tk.Done():
			continue
		default:
		}
		tk.Settle(err)
		break
	}
	r.do(eventSettled{})
}

// shape names what was sent.
func (r *rig) shape() string {
	var out []string
	for _, m := range r.sent {
		switch v := m.Response.(type) {
		case *extproc.ProcessingResponse_RequestHeaders:
			out = append(out, "req")
		case *extproc.ProcessingResponse_ResponseHeaders:
			out = append(out, "res")
		case *extproc.ProcessingResponse_RequestBody:
			out = append(out, "req"+body(v.RequestBody))
		case *extproc.ProcessingResponse_ResponseBody:
			out = append(out, "res"+body(v.ResponseBody))
		case *extproc.ProcessingResponse_ImmediateResponse:
			out = append(out, fmt.Sprintf("immediate %d", v.ImmediateResponse.Status.Code))
		case *extproc.ProcessingResponse_ResponseTrailers:
			out = append(out, "res-trailers")
		}
	}
	return strings.Join(out, ", ")
}

// sentBody is the response's body as it was sent.
func (r *rig) sentBody() string {
	var out []byte
	for _, m := range r.sent {
		out = append(out, m.GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()...)
	}
	return string(out)
}

func body(b *extproc.BodyResponse) string {
	s := b.Response.BodyMutation.GetStreamedResponse()
	end := ""
	if s.EndOfStream {
		end = "."
	}
	return fmt.Sprintf(":%d%s", len(s.Body), end)
}

func headers(kv ...string) *core.HeaderMap {
	m := &core.HeaderMap{}
	for i := 0; i < len(kv); i += 2 {
		m.Headers = append(m.Headers, &core.HeaderValue{Key: kv[i], RawValue: []byte(kv[i+1])})
	}
	return m
}

func reqHead(end bool) *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{
		Headers: headers(":method", "POST", ":path", "/bigquery/v2/projects/p/queries", ":authority", "gw", "content-type", "application/json"), EndOfStream: end,
	}}}
}

func reqBody(b string, end bool) *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestBody{RequestBody: &extproc.HttpBody{Body: []byte(b), EndOfStream: end}}}
}

func resHead(end bool, kv ...string) *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extproc.HttpHeaders{
		Headers: headers(append([]string{":status", "200", "content-type", "application/json"}, kv...)...), EndOfStream: end,
	}}}
}

func resBody(b string, end bool) *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseBody{ResponseBody: &extproc.HttpBody{Body: []byte(b), EndOfStream: end}}}
}

func resTrailers() *extproc.ProcessingRequest {
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extproc.HttpTrailers{}}}
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func TestNothingGoesUpstreamBeforeTheIntentIsDurable(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, false)
	r.do(reqHead(false), reqBody("he", false), reqBody("llo", false), reqBody("", true))
	check(t, "sent before the commit", r.shape(), "")
	check(t, "on record", r.tape.kinds(), "intent request")
	r.settle(nil)
	check(t, "sent after the commit", r.shape(), "req, req:5.")
}

func TestNoResponseByteGoesOutBeforeItIsDurable(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, false)
	r.do(reqHead(true))
	r.settle(nil)
	check(t, "request", r.shape(), "req")
	r.sent = nil
	r.do(resHead(false), resBody("abc", false))
	check(t, "a small piece waits for its end", r.tape.kinds(), "intent")
	r.do(eventLinger{})
	check(t, "on record", r.tape.kinds(), "intent | response-head response")
	check(t, "sent before the commit", r.shape(), "")
	r.settle(nil)
	check(t, "the last byte stays until the end is known", r.shape(), "res, res:2")
	r.do(resBody("def", false))
	r.settle(nil)
	check(t, "the byte before goes out", r.shape(), "res, res:2, res:3")
	r.do(resBody("", true))
	check(t, "the outcome is not durable", r.shape(), "res, res:2, res:3")
	r.settle(nil)
	check(t, "all out", r.shape(), "res, res:2, res:3, res:1.")
	check(t, "sent bytes", r.sentBody(), "abcdef")
	if r.phase != phaseDone || r.err != nil {
		t.Errorf("phase %d, err %v", r.phase, r.err)
	}
	check(t, "recorded bytes", string(r.tape.payload(record.DirectionResponse)), "abcdef")
	if o := r.tape.outcome(t); o.Verbatim.Result != record.ResultDelivered || o.Response.Code != 200 || o.Response.Length != 6 {
		t.Errorf("outcome %+v", o)
	}
}

func TestSmallExchangeMakesTwoCommits(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true, replace: []byte("rewritten")}, true)
	r.do(reqHead(false), reqBody("hello", true), resHead(false), resBody("answer", true))
	check(t, "on record", r.tape.kinds(), "intent request upstream | response-head response outcome")
	check(t, "sent", r.shape(), "req, req:9., res, res:6.")
}

func TestBodyWithoutEndOfItsOwn(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []event
		want   string
	}{
		{"head is all", []event{resHead(true)}, "req, res"},
		{"end is an empty chunk", []event{resHead(false), resBody("abc", false), resBody("", true)}, "req, res, res:3."},
		{"no body, end apart", []event{resHead(false), resBody("", true)}, "req, res, res:0."},
		{"end is a trailer", []event{resHead(false, "content-type", "application/grpc"), resBody("abc", false), resTrailers()}, "req, res, res:3, res-trailers"},
		{"ends come twice", []event{resHead(false), resBody("abc", true), resBody("", true), resTrailers()}, "req, res, res:3."},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, true)
			r.do(reqHead(true))
			r.do(c.events...)
			check(t, "sent", r.shape(), c.want)
			if r.phase != phaseDone || r.err != nil {
				t.Errorf("phase %d, err %v", r.phase, r.err)
			}
		})
	}
}

func TestUploadStreamsPieceByPiece(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesStream, full: true}, false)
	r.do(reqHead(false))
	check(t, "intent before any byte", r.tape.kinds(), "intent")
	r.do(reqBody("one", false))
	check(t, "sent", r.shape(), "")
	r.settle(nil)
	check(t, "head goes on, the piece is not durable", r.shape(), "req")
	r.settle(nil)
	r.do(reqBody("two", true))
	check(t, "sent", r.shape(), "req, req:3")
	r.settle(nil)
	check(t, "sent", r.shape(), "req, req:3, req:3.")
	check(t, "recorded", string(r.tape.payload(record.DirectionRequest)), "onetwo")
}

func TestDenialIsOneCommitAndCarriesItsReceipt(t *testing.T) {
	no := &refusal{status: 403, reason: "accessDenied", code: "read_only", by: "policy", message: "Writes are not allowed."}
	r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true, refuse: no}, false)
	r.do(reqHead(false), reqBody("drop", true))
	check(t, "on record", r.tape.kinds(), "intent request response-head response outcome")
	check(t, "sent before the commit", r.shape(), "")
	r.settle(nil)
	check(t, "sent", r.shape(), "immediate 403")
	got := r.sent[0].GetImmediateResponse()
	receipt := record.ID{Sequence: 1}.String()
	if !strings.Contains(string(got.Body), receipt) || !strings.Contains(string(got.Body), "Writes are not allowed.") {
		t.Errorf("body %s lacks the receipt %s or the reason", got.Body, receipt)
	}
	if !bytes.Equal(got.Body, r.tape.payload(record.DirectionResponse)) {
		t.Error("the recorded answer is not the one that was sent")
	}
	o := r.tape.outcome(t)
	if o.Verbatim.Result != record.ResultDenied || o.Verbatim.Payloads[len(o.Verbatim.Payloads)-1].Bytes != int64(len(got.Body)) {
		t.Errorf("outcome %+v", o.Verbatim)
	}
}

func TestRefusalAtTheHeadNeedsNoBody(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, refuseHead: &refusal{status: 401, code: "token_missing", by: "authentication"}}, true)
	r.do(reqHead(false))
	check(t, "sent", r.shape(), "immediate 401")
	r.do(reqBody("late", true))
	check(t, "sent", r.shape(), "immediate 401")
}

func TestHeldBodyIsBounded(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, true)
	r.maxBody = 10
	r.do(reqHead(false), reqBody("0123456789", false), reqBody("x", false))
	check(t, "sent", r.shape(), "immediate 413")
}

func TestJournalFailureLetsNothingOut(t *testing.T) {
	t.Run("at the intent", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, false)
		r.do(reqHead(true))
		r.settle(errors.New("disk"))
		check(t, "sent", r.shape(), "immediate 503")
		if r.refused != 1 {
			t.Error("the refusal was not counted")
		}
	})
	t.Run("full at the intent", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, false)
		r.tape.err = record.ErrFull
		r.do(reqHead(true))
		check(t, "sent", r.shape(), "immediate 503")
	})
	t.Run("before the response's head", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, false)
		r.do(reqHead(true))
		r.settle(nil)
		r.do(resHead(false), resBody("secret", true))
		r.settle(errors.New("disk"))
		check(t, "sent", r.shape(), "req, immediate 503")
	})
	t.Run("in mid response", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, false)
		r.do(reqHead(true))
		r.settle(nil)
		r.do(resHead(false), resBody("a", false), eventLinger{})
		r.settle(nil)
		r.do(resBody("b", true))
		r.settle(errors.New("disk"))
		check(t, "sent", r.shape(), "req, res")
		if r.err == nil {
			t.Error("the stream did not end with an error: Envoy would close the response cleanly")
		}
	})
	t.Run("full in mid response", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, false)
		r.do(reqHead(true))
		r.settle(nil)
		r.do(resHead(false), resBody("a", false), eventLinger{})
		r.settle(nil)
		r.tape.full = true
		r.do(resBody("b", false))
		if !strings.HasSuffix(r.tape.kinds(), "| outcome") {
			t.Errorf("on record %s: the outcome did not use the reserve", r.tape.kinds())
		}
		r.settle(nil)
		check(t, "sent", r.shape(), "req, res")
		if o := r.tape.outcome(t); r.err == nil || o.Verbatim.Result != record.ResultAborted || o.Verbatim.Cause != "journal full" {
			t.Errorf("err %v, outcome %+v", r.err, o.Verbatim)
		} else if p := o.Verbatim.Payloads; len(p) != 1 || p[0].Bytes != 1 || p[0].Pieces != 1 {
			t.Errorf("the outcome counts what is not on record: %+v", p)
		}
	})
	t.Run("full at the response's end", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, true)
		r.do(reqHead(true))
		r.tape.full = true
		r.do(resHead(false), resBody("abc", true))
		check(t, "on record", r.tape.kinds(), "intent | response-head response outcome")
		check(t, "sent", r.shape(), "req, immediate 503")
		if o := r.tape.outcome(t); o.Verbatim.Result != record.ResultAborted || o.Verbatim.Cause != "journal_full" {
			t.Errorf("outcome %+v", o.Verbatim)
		}
	})
}

func TestEarlyEndIsOnRecord(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []event
		cause  string
	}{
		{"client leaves within its request", []event{reqHead(false), reqBody("SEL", false), eventLost{io.EOF}}, "client left"},
		{"client leaves while BigQuery works", []event{reqHead(false), reqBody("q", true), eventLost{io.EOF}}, "client left"},
		{"upstream resets", []event{reqHead(false), reqBody("q", true), resHead(false), resBody("part", false), eventLost{io.EOF}}, "client left or upstream reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, true)
			r.do(c.events...)
			if r.err == nil {
				t.Error("the stream ended cleanly")
			}
			if o := r.tape.outcome(t); o.Verbatim.Result != record.ResultAborted || o.Verbatim.Cause != c.cause {
				t.Errorf("outcome %+v", o.Verbatim)
			}
		})
	}
}

func TestKillSwitch(t *testing.T) {
	t.Run("before the response", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, true)
		r.do(reqHead(false), reqBody("q", true), eventKilled{"left the company"})
		check(t, "sent", r.shape(), "req, req:1., immediate 401")
	})
	t.Run("within the response", func(t *testing.T) {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, true)
		r.do(reqHead(false), reqBody("q", true), resHead(false), resBody("rows", false), eventLinger{}, eventKilled{"left"})
		check(t, "sent", r.shape(), "req, req:1., res, res:3")
		if o := r.tape.outcome(t); r.err == nil || o.Verbatim.Cause != "revoked" {
			t.Errorf("err %v, outcome %+v", r.err, o.Verbatim)
		}
	})
}

func TestMessagesThatMakeNoSenseEndTheStream(t *testing.T) {
	for name, events := range map[string][]event{
		"response first":       {resHead(false)},
		"body first":           {reqBody("x", true)},
		"head twice":           {reqHead(false), reqHead(false)},
		"response before go":   {reqHead(false), resHead(false)},
		"body before its head": {reqHead(false), reqBody("q", true), resBody("x", true)},
		"nothing":              {&extproc.ProcessingRequest{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, true)
			r.do(events...)
			if r.err == nil && !strings.Contains(r.shape(), "immediate") {
				t.Errorf("sent %q, no error", r.shape())
			}
			if strings.Contains(r.shape(), "res") {
				t.Errorf("sent %q", r.shape())
			}
		})
	}
}

func TestResponseThatCannotBeRecordedIsRefused(t *testing.T) {
	for name, kv := range map[string][]string{
		"compressed":       {"content-encoding", "gzip"},
		"credential":       {":status", "401"},
		"foreign location": {"location", "https://evil.example/upload?upload_id=x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: true}, true)
			r.do(reqHead(false), reqBody("q", true), resHead(false, kv...))
			want := "req, req:1., immediate 502"
			if name == "credential" {
				want = "req, req:1., immediate 503"
			}
			check(t, "sent", r.shape(), want)
		})
	}
}

func TestMetadataRecordingCountsAndKeepsNothing(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, full: false}, true)
	r.do(reqHead(false), reqBody("query", true), resHead(false), resBody("secret rows", true))
	check(t, "on record", r.tape.kinds(), "intent | response-head outcome")
	o := r.tape.outcome(t)
	if len(o.Verbatim.Payloads) != 2 || o.Verbatim.Payloads[1].Bytes != 11 || o.Verbatim.Payloads[1].Recorded {
		t.Errorf("payloads %+v", o.Verbatim.Payloads)
	}
	check(t, "sent", r.shape(), "req, req:5., res, res:11.")
}

// The memory that an exchange holds goes back to nothing, however it ran.
func TestHeldBytesBalance(t *testing.T) {
	r := newRig(t, &fakeGate{carries: bigquery.CarriesMultipart, full: true}, true)
	r.gate = &fakeGate{carries: bigquery.CarriesStream, full: true}
	feed := func(m *extproc.ProcessingRequest) {
		r.hold.change(int64(len(m.GetRequestBody().GetBody()) + len(m.GetResponseBody().GetBody())))
		r.step(m)
		for _, o := range r.out {
			r.hold.change(-o.bytes)
		}
		r.out = nil
	}
	feed(reqHead(false))
	big := strings.Repeat("x", 200_000)
	for range 5 {
		feed(reqBody(big, false))
	}
	feed(reqBody(big, true))
	feed(resHead(false))
	for range 5 {
		feed(resBody(big, false))
	}
	feed(resBody(big, true))
	if r.hold.held != 0 || r.hold.budget.Used() != 0 {
		t.Errorf("held %d, borrowed %d after the end", r.hold.held, r.hold.budget.Used())
	}
	if r.phase != phaseDone {
		t.Errorf("phase %d", r.phase)
	}
}

// A pooled buffer goes back once, and not before the last reply that reads from
// it; the bytes come out as they went in, whatever their sizes.
func TestReleasedBytesAndTheirMemory(t *testing.T) {
	sizes := []int{1, 2, 1000, maxReply - 1, maxReply, maxReply + 1, 2*maxReply - 1, 2 * maxReply, expected}
	for _, first := range sizes {
		for _, second := range sizes {
			for _, end := range []string{"with the last piece", "alone", "trailers"} {
				r := newRig(t, &fakeGate{carries: bigquery.CarriesNone, full: true}, true)
				r.exchange.lingered = true
				r.do(reqHead(true), resHead(false))
				r.sent = nil
				var want []byte
				sent, given := map[*byte]int{}, map[*byte]int{}
				feed := func(n int, m func(string, bool) *extproc.ProcessingRequest, last bool) {
					msg := m(strings.Repeat(string(rune('a'+len(want)%26)), n), last)
					b := msg.GetResponseBody()
					if n > 0 {
						var memory []byte
						if n >= pooledFrom {
							b.Body, memory = getBody(n)
							copy(b.Body, bytes.Repeat([]byte{byte('a' + len(want)%26)}, n))
							given[&memory[0]]++
						}
						r.exchange.memory = memory
					}
					want = append(want, b.Body...)
					r.hold.change(int64(max(n, len(r.exchange.memory))))
					r.step(msg)
					for _, o := range r.out {
						r.sent = append(r.sent, proto.Clone(o.msg).(*extproc.ProcessingResponse))
						r.hold.change(-o.bytes)
						if o.memory != nil {
							sent[&o.memory[0]]++
							clear(o.memory) // whoever still needs it is wrong
						}
					}
					r.out = nil
				}
				feed(first, resBody, false)
				feed(second, resBody, end == "with the last piece")
				switch end {
				case "alone":
					feed(0, resBody, true)
				case "trailers":
					r.do(resTrailers())
				}
				name := fmt.Sprintf("%d and %d bytes, end %s", first, second, end)
				if got := r.sentBody(); got != string(want) {
					t.Errorf("%s: %d bytes came out as %d others", name, len(want), len(got))
				}
				if r.phase != phaseDone || r.hold.held != 0 {
					t.Errorf("%s: phase %d, %d bytes held", name, r.phase, r.hold.held)
				}
				for p, n := range sent {
					if n != 1 {
						t.Errorf("%s: a buffer went back %d times", name, n)
					}
					delete(given, p)
				}
			}
		}
	}
}

func TestCredentialsStayOut(t *testing.T) {
	const canary = "canary-5f1c-token"
	p := newPlan(&request{
		target: "/bigquery/v2/projects/p/queries?access_token=" + canary + "&fields=" + canary,
		headers: []record.Header{
			{Name: "authorization", Value: "Bearer " + canary}, {Name: "x-goog-api-key", Value: canary}, {Name: "cookie", Value: "a=" + canary},
			{Name: "user-agent", Value: "agent " + canary}, {Name: "x-custom", Value: canary}, {Name: "x-verbatim-agent", Value: canary},
		},
	})
	p.keepHeaders(canary)
	p.session = "s"
	p.identity = &auth.Identity{}
	b, err := record.Marshal(p.intent(record.ID{}, p.request, time.Now(), false))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte(canary)) {
		t.Errorf("the intent holds the caller's token: %s", b)
	}
	p.token, p.credential, p.path = canary, "google", "/x"
	m := requestHeadReply(p, p.request).GetRequestHeaders().Response.HeaderMutation
	removed := strings.Join(m.RemoveHeaders, " ")
	for _, h := range p.request.headers {
		if !strings.Contains(removed, h.Name) {
			t.Errorf("%s would go upstream with the caller's token", h.Name)
		}
	}
}

// TestWhatFailsForACallerWhoLeftIsNotTheServicesFault: the gate's waiting ends
// with the exchange's context.
func TestWhatFailsForACallerWhoLeftIsNotTheServicesFault(t *testing.T) {
	for _, end := range []bool{true, false} {
		r := newRig(t, &fakeGate{carries: bigquery.CarriesJSON, refuseHead: &refusal{status: 503, code: "issuer_unavailable", by: "authentication"}}, true)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r.ctx = ctx
		m := head(query...)
		m.GetRequestHeaders().EndOfStream = end
		r.do(m)
		if r.err == nil || len(r.sent) != 0 || r.tape.kinds() != "intent outcome" {
			t.Errorf("error %v, %d replies, on record %s", r.err, len(r.sent), r.tape.kinds())
		}
		if o := r.tape.outcome(t); o.Verbatim.Result != record.ResultAborted || o.Verbatim.Cause != "client left" {
			t.Errorf("ended as %s (%s)", o.Verbatim.Result, o.Verbatim.Cause)
		}
	}
}
