package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

// Limits bound what exchanges may use.
type Limits struct {
	Exchanges int           // admitted at once
	Window    int32         // gRPC's receive window of a stream, bytes
	Share     int64         // memory that each exchange owns, bytes
	Budget    int64         // memory that exchanges share above it, bytes
	Body      int64         // largest request body that is held to decide on it, bytes
	Decision  time.Duration // for tokens, policy and credential together
	Journal   time.Duration // longest wait for a commit
	Idle      time.Duration // longest silence while an exchange is open
}

// Config is what a Server needs.
type Config struct {
	Recorder Recorder
	// Refused counts a request that was refused while nothing could be recorded.
	Refused func()
	// Gate returns the snapshot of the configuration that an exchange keeps to.
	Gate   func() *Gate
	Limits Limits
	Logger *slog.Logger
	Now    func() time.Time // time.Now where nil
}

// Server is the external processor. One exchange is one stream.
type Server struct {
	extproc.UnimplementedExternalProcessorServer
	cfg    Config
	budget *Budget
	open   atomic.Int64
	work   sync.WaitGroup // goroutines that outlive their handler for a moment

	mu      sync.Mutex
	running map[*running]struct{}
}

// running is an exchange as the kill switch sees it.
type running struct {
	identity atomic.Pointer[auth.Identity]
	kill     chan string // buffered, 1
}

// maxMessage is the largest message taken from Envoy, in bytes: its buffers
// are 256 KiB in the bootstrap of this repository, and pieces of 1 MB were seen
// with its own defaults.
const maxMessage = 4 << 20

// expected is what one message is reserved for before it came.
const expected = 256 << 10

// linger is how long the first piece of a response waits for the rest.
const linger = 500 * time.Microsecond

// New returns a server. It does not listen; see Options and Register.
func New(c Config) (*Server, error) {
	switch {
	case c.Recorder == nil || c.Gate == nil || c.Logger == nil || c.Refused == nil:
		return nil, errors.New("server: recorder, gate, refused and logger are required")
	case c.Limits.Exchanges < 1 || c.Limits.Share < LeastShare || c.Limits.Body < 1 || c.Limits.Window < 64<<10:
		return nil, fmt.Errorf("server: limits %+v: want at least 1 exchange, a share of %d, a window of %d and a body of 1 byte", c.Limits, LeastShare, 64<<10)
	case c.Limits.Decision <= 0 || c.Limits.Journal <= 0 || c.Limits.Idle <= 0:
		return nil, fmt.Errorf("server: limits %+v: want times above 0", c.Limits)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Server{cfg: c, budget: NewBudget(c.Limits.Budget), running: map[*running]struct{}{}}, nil
}

// Options returns the gRPC options that the guarantees rest on: flow-control
// windows that bound memory, and the interceptor against clean early ends.
func (s *Server) Options() []grpc.ServerOption {
	return append(Transport(s.cfg.Limits.Window, s.cfg.Limits.Exchanges), grpc.ChainStreamInterceptor(NoCleanEarlyEnd),
		grpc.WaitForHandlers(true)) // Stop returns when their outcomes are with the journal
}

// Transport returns the options of a gRPC server that talks to Envoy, for
// streams of the window (bytes). The benchmarks' processors have the same.
func Transport(window int32, exchanges int) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(max(window, 8<<20)),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxMessage),
		// A call to the kernel for each of gRPC's 32 KiB costs a tenth more.
		grpc.ReadBufferSize(128 << 10),
		grpc.WriteBufferSize(128 << 10),
		// Goroutines that stay have stacks that have grown.
		grpc.NumStreamWorkers(64),
		grpc.MaxConcurrentStreams(uint32(exchanges) * 2),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Open returns the number of exchanges that are open.
func (s *Server) Open() uint64 { return uint64(s.open.Load()) }

// Budget returns the bytes that exchanges hold above their shares now.
func (s *Server) Budget() int64 { return s.budget.Used() }

// Kill ends every running exchange whose identity is revoked, and returns how
// many there were.
func (s *Server) Kill(revoked func(*auth.Identity) (reason string, ok bool)) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for r := range s.running {
		id := r.identity.Load()
		if id == nil {
			continue
		}
		if reason, ok := revoked(id); ok {
			select {
			case r.kill <- reason:
				n++
			default:
			}
		}
	}
	return n
}

// Wait returns when the goroutines of all exchanges have ended.
func (s *Server) Wait() { s.work.Wait() }

// NoCleanEarlyEnd is a stream interceptor that turns a handler's clean return
// before its final reply into an error. Envoy takes a clean close of the
// stream as "let the rest pass", whatever failure_mode_allow says.
func NoCleanEarlyEnd(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	w := &watched{ServerStream: stream}
	if err := handler(srv, w); err != nil {
		return err
	}
	if !w.final.Load() {
		return status.Error(codes.Aborted, "verbatim: the exchange ended before its final reply")
	}
	return nil
}

// watched sees whether the final reply was sent.
type watched struct {
	grpc.ServerStream
	head  atomic.Bool // the response's head is the whole response
	final atomic.Bool
}

func (w *watched) RecvMsg(m any) error {
	err := w.ServerStream.RecvMsg(m)
	r, _ := m.(*extproc.ProcessingRequest)
	if in, ok := m.(*inbound); ok {
		r = in.msg
	}
	if err == nil && r.GetResponseHeaders().GetEndOfStream() {
		w.head.Store(true)
	}
	return err
}

func (w *watched) SendMsg(m any) error {
	err := w.ServerStream.SendMsg(m)
	if r, ok := m.(*extproc.ProcessingResponse); ok && err == nil && final(r, w.head.Load()) {
		w.final.Store(true)
	}
	return err
}

type received struct {
	inbound
	err error
}

// Process runs one exchange. It returns nil only after the final reply.
func (s *Server) Process(stream extproc.ExternalProcessor_ProcessServer) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Logger.Error("exchange panicked", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "verbatim: internal error")
		}
	}()
	over := s.open.Add(1) > int64(s.cfg.Limits.Exchanges)
	defer s.open.Add(-1)

	me := &running{kill: make(chan string, 1)}
	s.mu.Lock()
	s.running[me] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.running, me)
		s.mu.Unlock()
	}()

	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	x := s.exchange(ctx, me, over)
	defer x.end()

	in := make(chan received)
	credit := make(chan struct{}, 1)
	s.work.Add(1)
	go func() { // receives, one message for each credit
		defer s.work.Done()
		for {
			select {
			case <-credit:
			case <-ctx.Done():
				return
			}
			var r received
			r.err = stream.RecvMsg(&r.inbound)
			select {
			case in <- r:
			case <-ctx.Done():
				return
			}
			if r.err != nil {
				return
			}
		}
	}()
	return s.loop(ctx, x, me, in, credit, &sender{stream: stream, left: atOnceBytes})
}

// sender sends replies in their order. Those of the first atOnceBytes it sends
// itself, for gRPC takes them without waiting, and most exchanges have no more.
// Later ones go through a goroutine, which waits for a reader that does not
// read.
type sender struct {
	stream extproc.ExternalProcessor_ProcessServer
	left   int             // bytes that can be sent at once
	next   chan reply      // nil until the goroutine runs
	sent   chan sendResult // one for each reply taken from next
}

// atOnceBytes is half of the quota of bytes (64 KiB) that each gRPC stream can
// have waiting to be written.
const atOnceBytes = 32 << 10

type sendResult struct {
	bytes int64
	err   error
}

// now sends a reply if it can be sent at once, and reports whether it was.
func (o *sender) now(r reply) (bool, error) {
	if o.next != nil {
		return false, nil
	}
	size := proto.Size(r.msg)
	if size > o.left {
		return false, nil
	}
	o.left -= size
	err := o.stream.Send(r.msg)
	putBody(r.memory)
	return true, err
}

// later returns where to put the next reply.
func (o *sender) later(ctx context.Context, work *sync.WaitGroup) chan<- reply {
	if o.next == nil {
		o.next, o.sent = make(chan reply), make(chan sendResult, 1)
		work.Add(1)
		go func() {
			defer work.Done()
			o.run(ctx)
		}()
	}
	return o.next
}

func (o *sender) run(ctx context.Context) {
	for {
		select {
		case r := <-o.next:
			err := o.stream.Send(r.msg)
			putBody(r.memory) // Send has copied it
			select {
			case o.sent <- sendResult{r.bytes, err}:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// loop is the goroutine that owns the exchange.
func (s *Server) loop(ctx context.Context, x *exchange, me *running, in <-chan received, credit chan<- struct{}, sends *sender) error {
	limits := s.cfg.Limits
	credited, sending, lost := false, false, false
	gone := ctx.Done() // the stream may end while neither goroutine can tell of it
	lose := func(err error) {
		if lost {
			return
		}
		lost, gone = true, nil
		x.step(eventLost{err})
	}
	timer := time.NewTimer(limits.Idle)
	defer timer.Stop()
	active := time.Now()
	for {
		for !lost && x.err == nil && len(x.out) > 0 {
			r := x.out[0]
			done, err := sends.now(r)
			if !done {
				break
			}
			x.out[0] = reply{}
			x.out = x.out[1:]
			active = time.Now()
			x.hold.change(-r.bytes)
			if err != nil {
				lose(err)
			}
		}
		if lost { // nobody takes replies any more
			x.out, sending = nil, false
		}
		if x.err != nil && len(x.out) == 0 {
			return x.err
		}
		if x.phase == phaseDone && lost {
			return nil
		}
		if !credited && !lost {
			if !x.mayReceive() {
				// It goes on when its own bytes have gone out.
			} else if x.hold.reserve(expected) {
				credited = true
				credit <- struct{}{}
			} else if x.holds() {
				x.step(eventNoRoom{})
				continue
			}
		}
		var out chan<- reply
		var first reply
		if len(x.out) > 0 && !sending {
			if x.err != nil { // nothing more goes out of an exchange that failed
				return x.err
			}
			out, first = sends.later(ctx, &s.work), x.out[0]
		}
		var settled <-chan struct{}
		wait := limits.Idle - time.Since(active)
		if len(x.commits) > 0 && x.commits[0].ticket != nil {
			settled = x.commits[0].ticket.Done()
			wait = min(wait, limits.Journal-s.cfg.Now().Sub(x.commits[0].since))
		}
		if x.linger {
			wait = linger
		}
		if x.phase == phaseDone {
			wait = min(wait, finalWait)
		}
		timer.Reset(max(wait, 0))
		select {
		case r := <-in:
			credited = false
			active = time.Now()
			if r.err != nil {
				x.hold.change(-expected)
				lose(r.err)
				continue
			}
			n := int64(len(r.msg.GetRequestBody().GetBody()) + len(r.msg.GetResponseBody().GetBody()))
			whole := max(n, int64(len(r.memory))) // the buffer, as long as it is one
			x.hold.change(whole - expected)
			x.memory = r.memory
			x.step(r.msg)
			if x.memory != nil { // nobody took it
				x.hold.change(n - whole)
				putBody(x.memory)
				x.memory = nil
			}
		case <-settled:
			active = time.Now()
			x.step(eventSettled{})
		case out <- first:
			sending = true
			x.out[0] = reply{}
			x.out = x.out[1:]
		case r := <-sends.sent:
			sending = false
			active = time.Now()
			x.hold.change(-r.bytes)
			if r.err != nil {
				lose(r.err)
			}
		case <-gone:
			lose(ctx.Err())
		case reason := <-me.kill:
			x.step(eventKilled{reason})
		case <-timer.C:
			switch {
			case x.linger:
				x.step(eventLinger{})
			case x.phase == phaseDone:
				// Envoy has its final reply and no reason to keep the stream.
				return nil
			case settled != nil && s.cfg.Now().Sub(x.commits[0].since) >= limits.Journal:
				x.unrecorded(errors.New("the journal did not answer in time"))
			case time.Since(active) >= limits.Idle:
				active = time.Now() // for the answer to go out
				x.step(eventStuck{"nothing moved for " + limits.Idle.String()})
			}
		}
	}
}

// finalWait is how long a stream is kept open after its final reply for Envoy
// to end it.
const finalWait = 5 * time.Second

func (s *Server) exchange(ctx context.Context, me *running, over bool) *exchange {
	snapshot := s.cfg.Gate()
	var g gate = snapshot
	if over {
		g = full{snapshot, s.cfg.Limits.Exchanges}
	}
	return &exchange{
		prober: s.probe, gate: watch{g, me, s.cfg.Gate}, recorder: s.cfg.Recorder, refused: s.cfg.Refused, now: s.cfg.Now, ctx: ctx,
		timeout: s.cfg.Limits.Decision, maxBody: s.cfg.Limits.Body,
		hold: newHolding(s.cfg.Limits.Share, s.budget),
		up:   newLane(record.DirectionRequest), sent: newLane(record.DirectionUpstream), down: newLane(record.DirectionResponse),
	}
}

// full answers for a gateway that has no place for one more exchange, without
// the work of proving who is calling.
type full struct {
	*Gate
	limit int
}

func (f full) head(_ context.Context, r *request) (*plan, *refusal) {
	p, _, _, _ := f.outline(r)
	p.session = f.anonymous(r)
	return p, &refusal{status: 503, reason: bigquery.ReasonBackendError, code: "at_capacity", by: "capacity",
		message: fmt.Sprintf("The gateway already has its %d exchanges open. Try again in a moment.", f.limit)}
}

// watch shows the kill switch who is calling.
type watch struct {
	gate
	me      *running
	current func() *Gate
}

func (w watch) head(ctx context.Context, r *request) (*plan, *refusal) {
	p, refused := w.gate.head(ctx, r)
	if p.identity == nil {
		return p, refused
	}
	w.me.identity.Store(p.identity)
	if refused == nil {
		// A list that was loaded since the exchange took its snapshot may have
		// missed it: Kill sees only identities that are stored.
		refused = w.current().revoked(p.identity)
	}
	return p, refused
}
