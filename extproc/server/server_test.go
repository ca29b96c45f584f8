package server

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/recorder/record"
)

// wire is a stream whose other end a test plays: what it puts into in is
// received, and when the context ends, so does the stream.
type wire struct {
	grpc.ServerStream
	ctx context.Context
	in  chan *extproc.ProcessingRequest
	out chan *extproc.ProcessingResponse
}

func (w *wire) Context() context.Context { return w.ctx }

func (w *wire) RecvMsg(to any) error {
	select {
	case m, ok := <-w.in:
		if !ok {
			return io.EOF
		}
		to.(*inbound).msg = m
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

func (w *wire) Recv() (*extproc.ProcessingRequest, error) {
	var in inbound
	err := w.RecvMsg(&in)
	return in.msg, err
}

func (w *wire) Send(m *extproc.ProcessingResponse) error {
	select {
	case w.out <- m:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

func head(pairs ...string) *extproc.ProcessingRequest {
	h := &core.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		h.Headers = append(h.Headers, &core.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return &extproc.ProcessingRequest{Request: &extproc.ProcessingRequest_RequestHeaders{RequestHeaders: &extproc.HttpHeaders{Headers: h}}}
}

func testServer(t *testing.T, tp *tape, exchanges int) *Server {
	t.Helper()
	s, err := New(Config{
		Recorder: tp, Refused: func() {}, Logger: slog.New(slog.DiscardHandler),
		Gate: func() *Gate {
			return &Gate{SessionKey: make([]byte, 32), Logger: slog.New(slog.DiscardHandler), Now: time.Now,
				Verifier: proven{}, Revoked: func(*auth.Identity) (string, bool) { return "", false },
				Connections: []*Connection{{Name: "c", Projects: []string{"p"}, Recording: "full"}}}
		},
		Limits: Limits{Exchanges: exchanges, Window: 64 << 10, Share: LeastShare, Budget: 1 << 20, Body: 1 << 20,
			Decision: time.Second, Journal: time.Minute, Idle: time.Minute},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// proven lets every token pass.
type proven struct{}

func (proven) Verify(context.Context, string) (*auth.Identity, error) {
	return &auth.Identity{Principal: record.Principal{Issuer: "i", URL: "https://i", Subject: "s"}}, nil
}

var query = []string{":method", "POST", ":path", "/bigquery/v2/projects/p/queries", "authorization", "Bearer a.b.c", "content-type", "application/json"}

// TestALostStreamEndsItsExchangeAtOnce: a cancelled stream may be seen by the
// receiving goroutine, the sending one, or neither.
func TestALostStreamEndsItsExchangeAtOnce(t *testing.T) {
	for range 50 {
		tp := &tape{t: t, auto: true}
		s := testServer(t, tp, 10)
		ctx, cancel := context.WithCancel(t.Context())
		w := &wire{ctx: ctx, in: make(chan *extproc.ProcessingRequest), out: make(chan *extproc.ProcessingResponse)}
		done := make(chan error, 1)
		go func() { done <- s.Process(w) }()
		w.in <- head(query...)
		cancel()
		select {
		case err := <-done:
			if err == nil {
				t.Fatal("a lost exchange ended without an error")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the exchange outlives its stream")
		}
		s.Wait()
	}
}

// TestOneTooManyIsAnsweredAndOnRecord: without a token being looked at, and
// before its body.
func TestOneTooManyIsAnsweredAndOnRecord(t *testing.T) {
	tp := &tape{t: t, auto: true}
	s := testServer(t, tp, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := &wire{ctx: ctx, in: make(chan *extproc.ProcessingRequest), out: make(chan *extproc.ProcessingResponse)}
	done := make(chan error, 2)
	go func() { done <- s.Process(first) }()
	first.in <- head(query...)
	second := &wire{ctx: ctx, in: make(chan *extproc.ProcessingRequest), out: make(chan *extproc.ProcessingResponse)}
	go func() { done <- s.Process(second) }()
	second.in <- head(query...)
	r := (<-second.out).GetImmediateResponse()
	if r.GetStatus().GetCode() != 503 || r.GetDetails() != "verbatim_at_capacity" {
		t.Errorf("answer %v %s", r.GetStatus(), r.GetDetails())
	}
	for _, a := range tp.appends {
		for _, d := range a {
			if d.Session == "" {
				t.Errorf("a %s record of no session: the journal refuses it", d.Kind)
			}
		}
	}
	if tp.kinds() != "intent response-head response outcome" {
		t.Errorf("on record: %s", tp.kinds())
	}
	cancel()
	<-done
	<-done
	s.Wait()
}

// quota is a stream that takes what fits into gRPC's write quota at once, and
// the rest when the test lets it.
type quota struct {
	grpc.ServerStream
	left  int
	more  chan struct{}
	mu    sync.Mutex
	sizes []int
}

func (q *quota) Recv() (*extproc.ProcessingRequest, error) { return nil, io.EOF }

func (q *quota) Send(m *extproc.ProcessingResponse) error {
	q.mu.Lock()
	q.left -= proto.Size(m)
	full := q.left <= 0
	q.mu.Unlock()
	if full {
		<-q.more
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sizes = append(q.sizes, len(m.GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()))
	return nil
}

// TestRepliesAreSentAtOnceOnlyWithinTheQuota: the loop never waits for a reader.
func TestRepliesAreSentAtOnceOnlyWithinTheQuota(t *testing.T) {
	q := &quota{left: 64 << 10, more: make(chan struct{})}
	o := &sender{stream: q, left: atOnceBytes}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	sizes := []int{10, 2000, 20_000, 5000, 10_000, 10, maxReply, 7}
	atOnce := 0
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for i, n := range sizes {
			r := reply{msg: bodyReply(record.DirectionResponse, make([]byte, n), false), bytes: int64(n)}
			done, err := o.now(r)
			if err != nil {
				t.Error(err)
			}
			if done {
				if i != atOnce {
					t.Errorf("reply %d overtook another", i)
				}
				atOnce++
				continue
			}
			o.later(ctx, &work) <- r
			if res := <-o.sent; res.err != nil || res.bytes != int64(n) {
				t.Errorf("reply %d: %+v", i, res)
			}
		}
	}()
	for open := true; open; {
		select {
		case q.more <- struct{}{}:
		case <-finished:
			open = false
		}
	}
	if atOnce != 4 {
		t.Errorf("%d replies were sent at once, want the 4 within %d bytes", atOnce, atOnceBytes)
	}
	if !slices.Equal(q.sizes, sizes) {
		t.Errorf("sent were %v, want %v", q.sizes, sizes)
	}
	cancel()
	work.Wait()
}
