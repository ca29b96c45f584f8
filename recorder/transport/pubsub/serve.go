package pubsub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	gcp "cloud.google.com/go/pubsub/v2"
	"google.golang.org/api/option"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
)

const (
	defaultAhead       = 64 << 20
	defaultOutstanding = 256 << 20
	defaultMessages    = 20_000
	defaultGap         = 20 * time.Second
	defaultIdle        = 2 * time.Minute
	defaultRefresh     = time.Hour
	defaultSalvage     = 10 * time.Minute
	// defaultAside is longer than any lease on a message, so what has not come
	// by then is not there.
	defaultAside = 3 * time.Hour
	// heirsEvery times Salvage passes between two looks for lost epochs.
	heirsEvery = 6
	// salvageTime bounds one look at an epoch that may be lost.
	salvageTime = 2 * time.Minute
	maxGap      = 10 * time.Minute
	// lastNacks is how long a server that ends gives messages back.
	lastNacks = 3 * time.Second
	// nackPause keeps a message that nobody can use from coming at once again.
	nackPause = time.Second
	// askBefore is how often a gap is asked for before the epoch is given up for a
	// while, for another sink to have.
	askBefore = 4
	// maxGaps are asked for at a time.
	maxGaps = 32
)

// ServerConfig configures a [Server]. Zero values have defaults, but for the
// names.
type ServerConfig struct {
	Project       string
	Subscriptions []string // ids, or projects/P/subscriptions/S
	AckTopic      string   // id, or projects/P/topics/T

	// Ahead is how many bytes of messages that wait for one before them are kept
	// in memory, 64 MiB by default. What is beyond goes back to Pub/Sub. A frame
	// in pieces may take its size more, once for each epoch.
	Ahead int64
	// Outstanding is how many bytes Pub/Sub gives out, for each subscription,
	// without acknowledgement, 256 MiB by default: it must have room for the
	// unfinished segments of all gateways, and bounds what a slow vault holds up
	// in memory. Messages bounds their number, 20,000.
	Outstanding int
	Messages    int
	// Streams is how many streams a subscription is read by, 2. The two bounds
	// above are shared by them.
	Streams int
	// Gap is how long a missing frame is waited for before it is asked for, 20 s,
	// and between two times. After the fourth time in vain the epoch is left to
	// another sink, for so long, then twice as long, up to 10 min.
	Gap time.Duration
	// Idle is when an epoch without messages gives its memory back, 2 min.
	Idle time.Duration
	// Refresh is when the messages of an epoch that waits for the end of its
	// segment are given back once, for another sink may have stored it, 1 h.
	Refresh time.Duration
	// Salvage is how long nothing new of an epoch must have come before it is
	// asked whether its journal is lost, and between two times, 10 min; below 0
	// it is not asked. Aside is how long before what cannot be chained is kept
	// aside, 3 h: it is to be longer than another sink's lease on a message.
	Salvage    time.Duration
	Aside      time.Duration
	MinBackoff time.Duration // 200 ms
	MaxBackoff time.Duration // 10 s

	// Alarm, where set, is called for each message that is none of a gateway's.
	// It must not block. Pub/Sub puts such messages into the dead-letter topic.
	Alarm   func(error)
	Options []option.ClientOption
	Logger  *slog.Logger
}

// ServerStats are counts since the server was made.
type ServerStats struct {
	Messages, Bytes uint64
	Duplicates      uint64 // messages whose frames were there already
	Returned        uint64 // given back to Pub/Sub, to come again
	Poison          uint64 // that are none of a gateway's
	Gaps            uint64 // asked for
	StoodDown       uint64 // epochs left to another sink for a while
	Lost            uint64 // epochs whose journal is lost, and which now end
	Ahead           int64  // bytes now waiting for something before them
	Outstanding     int64  // bytes now not acknowledged, those in the spool included
	Epochs          int
}

// Server is the sink's end of the transport.
type Server struct {
	c   ServerConfig
	log *slog.Logger
	sub *gcp.Client

	receiver transport.Receiver
	acks     *gcp.Publisher
	results  chan *gcp.PublishResult
	cancel   context.CancelCauseFunc

	ahead, outstanding atomic.Int64
	lastMessage        atomic.Int64 // Unix nanoseconds
	stats              struct {
		messages, bytes, duplicates, returned, poison, gaps, stoodDown, lost atomic.Uint64
	}

	mu     sync.Mutex
	epochs map[epochKey]*epoch
	closed bool
	pause  time.Time // the vault failed: nothing is taken before
	wait   time.Duration
}

type epochKey struct {
	gateway string
	epoch   record.Epoch
}

// NewServer returns a server. Close it when Serve has returned.
func NewServer(ctx context.Context, c ServerConfig) (*Server, error) {
	if c.Project == "" || len(c.Subscriptions) == 0 || c.AckTopic == "" {
		return nil, errNoName
	}
	orDefault(&c.Ahead, defaultAhead)
	orDefault(&c.Outstanding, defaultOutstanding)
	orDefault(&c.Messages, defaultMessages)
	orDefault(&c.Streams, 2)
	orDefault(&c.Gap, defaultGap)
	orDefault(&c.Idle, defaultIdle)
	orDefault(&c.Refresh, defaultRefresh)
	orDefault(&c.Salvage, defaultSalvage)
	orDefault(&c.Aside, defaultAside)
	orDefault(&c.MinBackoff, defaultMinBackoff)
	orDefault(&c.MaxBackoff, max(defaultMaxBackoff, c.MinBackoff))
	c.Subscriptions = slices.Clone(c.Subscriptions)
	for i, s := range c.Subscriptions {
		c.Subscriptions[i] = fullName(c.Project, "subscriptions", s)
	}
	c.AckTopic = fullName(c.Project, "topics", c.AckTopic)
	sub, err := connect(ctx, c.Project, c.Options)
	if err != nil {
		return nil, err
	}
	return &Server{c: c, log: orDiscard(c.Logger), sub: sub, epochs: map[epochKey]*epoch{}, results: make(chan *gcp.PublishResult, 1024)}, nil
}

// Close ends the connection to Pub/Sub.
func (s *Server) Close() error { return s.sub.Close() }

// Stats returns the counts of now.
func (s *Server) Stats() ServerStats {
	c := &s.stats
	s.mu.Lock()
	n := len(s.epochs)
	s.mu.Unlock()
	return ServerStats{
		Messages: c.messages.Load(), Bytes: c.bytes.Load(), Duplicates: c.duplicates.Load(), Returned: c.returned.Load(), Poison: c.poison.Load(),
		Gaps: c.gaps.Load(), StoodDown: c.stoodDown.Load(), Lost: c.lost.Load(), Ahead: s.ahead.Load(), Outstanding: s.outstanding.Load(), Epochs: n,
	}
}

// Serve gives the receiver what the subscriptions hold, until ctx ends, whose
// cause it then returns, or until an error of the receiver that wraps
// [transport.ErrStop]. What is not durable then goes back to Pub/Sub. After
// another error of the receiver it waits and tries again. Serve runs once.
func (s *Server) Serve(ctx context.Context, r transport.Receiver) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.receiver, s.cancel = r, cancel
	s.acks = s.sub.Publisher(s.c.AckTopic)
	s.acks.PublishSettings.DelayThreshold = time.Millisecond
	s.acks.PublishSettings.FlowControlSettings = gcp.FlowControlSettings{
		// An answer that is lost is asked for again: nothing waits for it.
		MaxOutstandingMessages: 1000, MaxOutstandingBytes: 16 << 20, LimitExceededBehavior: gcp.FlowControlSignalError,
	}
	var wg sync.WaitGroup
	for _, name := range s.c.Subscriptions {
		wg.Go(func() { s.receive(ctx, name) })
	}
	wg.Go(func() { s.maintain(ctx) })
	wg.Go(func() { s.heirs(ctx) })
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		s.report()
	}()
	<-ctx.Done()
	s.release()
	wg.Wait()
	s.release() // what came in between
	s.acks.Stop()
	close(s.results)
	<-reported
	return context.Cause(ctx)
}

// release gives back all that is not durable.
func (s *Server) release() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, e := range s.all() {
		e.mu.Lock()
		e.give()
		e.mu.Unlock()
	}
}

func (s *Server) receive(ctx context.Context, name string) {
	wait := s.c.MinBackoff
	for {
		sub := s.sub.Subscriber(name)
		sub.ReceiveSettings = gcp.ReceiveSettings{
			MaxOutstandingMessages: max(s.c.Messages/s.c.Streams, 1), MaxOutstandingBytes: max(s.c.Outstanding/s.c.Streams, 10<<20), NumGoroutines: s.c.Streams,
			EnablePerStreamFlowControl: true,
			MaxExtension:               time.Hour, MaxDurationPerAckExtension: time.Minute,
			ShutdownOptions: &gcp.ShutdownOptions{Timeout: lastNacks, Behavior: gcp.ShutdownBehaviorNackImmediately},
		}
		began := time.Now()
		s.log.Info("transport: receiving", "subscription", name)
		err := sub.Receive(ctx, s.take)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > s.c.MaxBackoff {
			wait = s.c.MinBackoff
		}
		s.log.Error("transport: receiving ended, will begin again", "subscription", name, "error", err, "wait", wait)
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, s.c.MaxBackoff)
	}
}

// take handles a message of a subscription.
func (s *Server) take(ctx context.Context, m *gcp.Message) {
	s.lastMessage.Store(time.Now().UnixNano())
	s.stats.messages.Add(1)
	s.stats.bytes.Add(uint64(len(m.Data)))
	f, err := parseFrames(m.Attributes, m.Data)
	if err != nil {
		s.poison(ctx, m, err)
		return
	}
	if !s.ready(ctx) {
		s.back(m)
		return
	}
	e := s.epoch(epochKey{f.gateway, f.epoch})
	if e == nil {
		s.back(m)
		return
	}
	e.take(ctx, f, m)
}

func (s *Server) back(m *gcp.Message) {
	s.stats.returned.Add(1)
	m.Nack()
}

// poison gives back what no gateway wrote, or a newer one, until Pub/Sub puts it
// into the dead-letter topic.
func (s *Server) poison(ctx context.Context, m *gcp.Message, err error) {
	err = fmt.Errorf("message %s is none of a gateway's: %w", m.ID, err)
	attempt := 1
	if m.DeliveryAttempt != nil {
		attempt = *m.DeliveryAttempt
	}
	s.log.Error("transport: alarm: a message cannot be read; it goes to the dead-letter topic", "error", err, "attempt", attempt)
	if attempt <= 1 {
		s.stats.poison.Add(1)
		if s.c.Alarm != nil {
			s.c.Alarm(err)
		}
	}
	sleep(ctx, min(nackPause, s.c.Gap))
	m.Nack()
}

// ready waits while the vault fails.
func (s *Server) ready(ctx context.Context) bool {
	for {
		s.mu.Lock()
		closed, wait := s.closed, time.Until(s.pause)
		s.mu.Unlock()
		if closed || ctx.Err() != nil {
			return false
		}
		if wait <= 0 {
			return true
		}
		sleep(ctx, wait)
	}
}

// failed makes everybody wait, longer each time.
func (s *Server) failed() (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.After(s.pause) {
		s.wait = min(max(2*s.wait, s.c.MinBackoff), s.c.MaxBackoff)
		s.pause = now.Add(s.wait)
	}
	return s.wait
}

func (s *Server) worked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait = 0
}

// epoch returns the state of a message's epoch, nil when the server is closed.
func (s *Server) epoch(k epochKey) *epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	e := s.epochs[k]
	if e == nil {
		now := time.Now()
		e = &epoch{s: s, key: k, seen: now, progress: now, fresh: now, downWait: s.c.Gap}
		s.epochs[k] = e
	}
	return e
}

// tell sends an answer to a gateway.
func (s *Server) tell(a answer) {
	attributes, data := a.encode()
	// Not the context of a message: an answer outlives it.
	r := s.acks.Publish(context.Background(), &gcp.Message{Attributes: attributes, Data: data})
	select {
	case s.results <- r:
	default: // a failure goes unreported
	}
}

// report logs answers that were not sent.
func (s *Server) report() {
	var last time.Time
	for r := range s.results {
		if _, err := r.Get(context.Background()); err != nil && time.Since(last) > time.Second {
			last = time.Now()
			s.log.Warn("transport: an answer was not published; the gateway will ask", "topic", s.c.AckTopic, "error", err)
		}
	}
}

// maintain looks after gaps and what is idle.
func (s *Server) maintain(ctx context.Context) {
	t := time.NewTicker(max(s.c.Gap/4, 5*time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		all := s.all()
		full := s.outstanding.Load() >= int64(s.c.Outstanding)*9/10*int64(len(s.c.Subscriptions)) &&
			time.Since(time.Unix(0, s.lastMessage.Load())) > s.c.Gap
		var largest *epoch
		var size int64
		for _, e := range all {
			if !e.mu.TryLock() {
				continue // it is at work
			}
			e.maintain()
			e.salvage(ctx)
			if e.bytes > size {
				largest, size = e, e.bytes
			}
			e.mu.Unlock()
		}
		if full && largest != nil && largest.mu.TryLock() {
			s.log.Error("transport: all that Pub/Sub may give out waits for the end of segments: raise the outstanding bytes, or lower the gateways' cut_bytes",
				"outstanding", s.outstanding.Load(), "gateway", largest.key.gateway, "epoch", largest.key.epoch, "bytes", size)
			largest.give()
			largest.mu.Unlock()
		}
	}
}

// heirs looks now and then for epochs that the gateways have lost. It is beside
// maintain, for it reads much of the vault.
func (s *Server) heirs(ctx context.Context) {
	heir, ok := s.receiver.(transport.Heir)
	if !ok || s.c.Salvage < 0 {
		return
	}
	asked := map[string]time.Time{}
	t := time.NewTicker(max(s.c.Gap/2, 5*time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		newest := map[string]record.Epoch{}
		for _, e := range s.all() {
			if !e.mu.TryLock() {
				continue
			}
			if n := newest[e.key.gateway]; e.stream != nil && e.held > 0 && bytes.Compare(n[:], e.key.epoch[:]) < 0 {
				newest[e.key.gateway] = e.key.epoch
			}
			e.mu.Unlock()
		}
		for gateway, epoch := range newest {
			if time.Since(asked[gateway]) > heirsEvery*s.c.Salvage {
				asked[gateway] = time.Now()
				s.inherit(ctx, heir, gateway, epoch)
			}
		}
	}
}

func (s *Server) inherit(ctx context.Context, heir transport.Heir, gateway string, epoch record.Epoch) {
	ctx, cancel := context.WithTimeout(ctx, salvageTime)
	defer cancel()
	lost, err := heir.Lost(ctx, gateway, epoch)
	if err != nil {
		s.log.Warn("transport: the gateway's earlier epochs were not looked through, will try again", "gateway", gateway, "epoch", epoch, "error", err)
		return
	}
	for _, id := range lost {
		if old := s.epoch(epochKey{gateway, id}); old != nil {
			old.mu.Lock()
			old.lost = true
			old.mu.Unlock()
		}
	}
}

// all returns the epochs of now.
func (s *Server) all() []*epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*epoch, 0, len(s.epochs))
	for _, e := range s.epochs {
		all = append(all, e)
	}
	return all
}

// entry is a message that waits for one before it.
type entry struct {
	frames
	msg *gcp.Message
}

// taken is a message whose frames are in the spool, or in part, and not durable.
type taken struct {
	seq   uint64
	bytes int64
	msg   *gcp.Message
}

// epoch is the state of one epoch. Whoever holds the lock does the work.
type epoch struct {
	s   *Server
	key epochKey

	mu       sync.Mutex
	sender   string
	stream   transport.Stream
	refused  error
	held     uint64
	at       position // of the last frame that the stream took
	known    position // the epoch goes at least this far
	ahead    []entry  // by after and offset
	taken    []taken
	bytes    int64 // of ahead and taken
	part     []byte
	partUpto position
	partSize int

	seen     time.Time // the last message
	progress time.Time // at moved
	gapAsked time.Time
	gaps     int
	down     time.Time // left to another sink until then
	downWait time.Duration
	gone     bool // no more in the server's map

	best  position  // at was never beyond it
	fresh time.Time // something came that had not come before
	tried time.Time // to salvage it
	lost  bool      // a later epoch's journal does not have it
}

// take handles a message of the epoch.
func (e *epoch) take(ctx context.Context, f *frames, m *gcp.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone || ctx.Err() != nil || e.s.isClosed() {
		e.s.back(m)
		return
	}
	now := time.Now()
	e.seen, e.sender = now, f.sender
	if now.Before(e.down) || e.refused != nil && !f.ask {
		e.mu.Unlock()
		sleep(ctx, min(nackPause, e.s.c.Gap))
		e.mu.Lock()
		e.s.back(m)
		return
	}
	if e.known.less(f.upto) {
		if !e.at.less(e.known) {
			e.progress = now // there is more to come from now on
		}
		e.known, e.fresh = f.upto, now
	}
	if !f.ask {
		e.insert(entry{*f, m})
	}
	err := e.begin(ctx)
	if err == nil {
		err = e.advance(ctx)
	}
	if e.best.less(e.at) {
		e.best, e.fresh = e.at, now
	}
	switch {
	case err == nil:
		if f.ask {
			e.s.tell(answer{kind: typeHeld, gateway: e.sender, epoch: e.key.epoch, sequence: e.held})
			m.Ack()
		}
		e.shed()
		return
	case errors.Is(err, transport.ErrRefused):
		if e.refused == nil {
			e.s.log.Error("transport: epoch refused; its messages go to the dead-letter topic", "gateway", e.key.gateway, "epoch", e.key.epoch, "error", err)
		}
		e.refused = err
		e.s.tell(answer{kind: typeRefused, gateway: e.sender, epoch: e.key.epoch, text: err.Error()})
		e.give()
		if f.ask {
			m.Ack()
		}
		return
	case errors.Is(err, transport.ErrStop):
		e.s.log.Error("transport: the sink stops", "gateway", e.key.gateway, "epoch", e.key.epoch, "error", err)
		e.s.cancel(err)
	case ctx.Err() != nil:
	default:
		wait := e.s.failed()
		e.s.log.Error("transport: the sink failed, will try again", "gateway", e.key.gateway, "epoch", e.key.epoch, "error", err, "wait", wait)
	}
	e.give()
	if f.ask {
		e.s.back(m)
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (e *epoch) count(n int) {
	e.bytes += int64(n)
	e.s.outstanding.Add(int64(n))
}

func compare(a, b entry) int {
	switch {
	case a.after.less(b.after):
		return -1
	case b.after.less(a.after):
		return 1
	}
	return a.offset - b.offset
}

func (e *epoch) insert(n entry) {
	i, _ := slices.BinarySearchFunc(e.ahead, n, compare)
	e.ahead = slices.Insert(e.ahead, i, n)
	e.count(len(n.msg.Data))
	e.s.ahead.Add(int64(len(n.msg.Data)))
}

// remove takes the entry out of those that wait.
func (e *epoch) remove(i int) entry {
	n := e.ahead[i]
	e.ahead = slices.Delete(e.ahead, i, i+1)
	e.count(-len(n.msg.Data))
	e.s.ahead.Add(-int64(len(n.msg.Data)))
	return n
}

// begin opens the stream where there is none.
func (e *epoch) begin(ctx context.Context) error {
	if e.refused != nil {
		return e.refused
	}
	if e.stream != nil {
		return nil
	}
	st, err := e.s.receiver.Begin(ctx, e.key.gateway, e.key.epoch)
	if err != nil {
		return err
	}
	e.stream, e.held = st, st.Held()
	e.at = position{e.held, whole}
	e.progress = time.Now()
	return nil
}

// advance gives the stream all that follows on what it has.
func (e *epoch) advance(ctx context.Context) error {
	for i := 0; i < len(e.ahead); {
		n := &e.ahead[i]
		switch {
		case n.upto.seq <= e.held:
			e.s.stats.duplicates.Add(1)
			e.remove(i).msg.Ack()
		case !e.at.less(n.upto):
			e.s.stats.duplicates.Add(1)
			e.keep(e.remove(i))
		case e.at.less(n.after):
			return nil
		default:
			ok, err := e.apply(ctx, n)
			if err != nil {
				return err
			}
			if !ok { // a piece whose turn has not come
				i++
				continue
			}
			e.keep(e.remove(i))
			e.settle()
			i = 0
		}
	}
	return nil
}

// keep remembers a message until its records are durable. Its data are in the
// spool.
func (e *epoch) keep(n entry) {
	t := taken{n.upto.seq, int64(len(n.msg.Data)), n.msg}
	n.msg.Data, n.msg.Attributes = nil, nil
	e.taken = append(e.taken, t)
	e.count(int(t.bytes))
}

// settle acknowledges what is durable.
func (e *epoch) settle() {
	kept := e.taken[:0]
	for _, t := range e.taken {
		if t.seq <= e.held {
			e.count(-int(t.bytes))
			t.msg.Ack()
			continue
		}
		kept = append(kept, t)
	}
	clear(e.taken[len(kept):])
	e.taken = kept
}

// apply gives a message's frames to the stream, or adds a piece to its body.
func (e *epoch) apply(ctx context.Context, n *entry) (bool, error) {
	body := n.msg.Data
	if len(body) < n.size {
		if e.partUpto != n.upto || e.partSize != n.size {
			e.part, e.partUpto, e.partSize = nil, n.upto, n.size
		}
		if n.offset > len(e.part) {
			return false, nil
		}
		if end := n.offset + len(body); end > len(e.part) {
			e.part = append(e.part, body[len(e.part)-n.offset:]...)
			e.progress = time.Now()
		}
		if len(e.part) < n.size {
			return true, nil
		}
		body = e.part
		e.part, e.partUpto, e.partSize = nil, position{}, 0
	}
	held := e.held
	end, err := walk(body, n.after, func(keys [][]byte, f *record.Frame, at position) error {
		if !e.at.less(at) {
			return nil
		}
		// A key goes only with a record that is not there yet: one that was erased
		// does not come back with an old message.
		for _, k := range keys {
			if _, err := e.stream.Take(ctx, k); err != nil {
				return err
			}
		}
		h, err := e.stream.Take(ctx, f.Raw())
		if err != nil {
			return err
		}
		if e.held, e.at = max(e.held, h), at; e.held >= at.seq {
			// A gateway that began again goes on behind all about the record.
			e.at = position{at.seq, whole}
		}
		return nil
	})
	if err == nil && end != n.upto { // of a body in pieces: others were walked before
		err = fmt.Errorf("%w: the body ends at %s, not at %s", errBody, end, n.upto)
	}
	if errors.Is(err, errBody) {
		err = fmt.Errorf("%w: gateway %s, epoch %s: %w", transport.ErrRefused, e.key.gateway, e.key.epoch, err)
	}
	if err != nil {
		return false, err
	}
	e.progress, e.gaps, e.gapAsked = time.Now(), 0, time.Time{}
	if e.held > held {
		e.downWait = e.s.c.Gap
		e.s.worked()
		e.s.tell(answer{kind: typeHeld, gateway: e.sender, epoch: e.key.epoch, sequence: e.held})
	}
	return true, nil
}

// shed gives back what is furthest ahead while too much waits.
func (e *epoch) shed() {
	for len(e.ahead) > 0 && e.s.ahead.Load() > e.s.c.Ahead {
		e.s.back(e.remove(len(e.ahead) - 1).msg)
	}
}

// give ends the stream and gives back all that is not durable.
func (e *epoch) give() {
	if e.stream != nil {
		e.stream.End()
		e.stream = nil
	}
	for len(e.ahead) > 0 {
		e.s.back(e.remove(len(e.ahead) - 1).msg)
	}
	for _, t := range e.taken {
		e.count(-int(t.bytes))
		e.s.back(t.msg)
	}
	e.taken, e.part, e.partUpto, e.partSize = nil, nil, position{}, 0
}

// maintain asks for what is missing, and ends what is idle.
func (e *epoch) maintain() {
	now := time.Now()
	since := func(t time.Time) time.Duration { return now.Sub(t) }
	switch {
	case len(e.ahead) == 0 && len(e.taken) == 0 && !e.lost && since(e.seen) > e.s.c.Idle:
		e.give()
		e.gone = true
		e.s.mu.Lock()
		delete(e.s.epochs, e.key)
		e.s.mu.Unlock()
	case e.refused != nil, e.stream == nil, now.Before(e.down):
	case !e.at.less(e.known):
		if len(e.taken) > 0 && since(e.progress) > e.s.c.Refresh {
			e.give() // what comes again meets what the vault then holds
		}
	case since(e.progress) < e.s.c.Gap, since(e.gapAsked) < e.s.c.Gap:
	case e.gaps >= askBefore && len(e.ahead)+len(e.taken) > 0:
		down := e.downWait/2 + rand.N(e.downWait)
		e.s.stats.stoodDown.Add(1)
		e.s.log.Warn("transport: a gap does not close; the epoch is left to another sink for a while",
			"gateway", e.key.gateway, "epoch", e.key.epoch, "after", e.at.String(), "wait", down)
		e.give()
		e.down, e.downWait, e.gaps = now.Add(down), min(2*e.downWait, maxGap), 0
	default:
		gaps := e.missing()
		e.s.stats.gaps.Add(uint64(len(gaps)))
		e.s.log.Warn("transport: frames have not come, the gateway is asked for them",
			"gateway", e.key.gateway, "epoch", e.key.epoch, "after", e.at.String(), "gaps", len(gaps))
		for _, g := range gaps {
			e.s.tell(answer{kind: typeMissing, gateway: e.sender, epoch: e.key.epoch, after: g.after, upto: g.upto})
		}
		e.gaps++
		e.gapAsked = now
	}
}

// gap is what is missing between two positions.
type gap struct{ after, upto position }

// missing returns the gaps between what was taken, what waits and what is known,
// the first ones of many.
func (e *epoch) missing() []gap {
	var gaps []gap
	at := e.at
	for i := 0; i < len(e.ahead) && len(gaps) < maxGaps; {
		n := &e.ahead[i]
		if at.less(n.after) {
			gaps = append(gaps, gap{at, n.after})
		}
		have := 0 // of a body in pieces
		if n.upto == e.partUpto && n.size == e.partSize {
			have = len(e.part)
		}
		for ; i < len(e.ahead) && e.ahead[i].upto == n.upto && e.ahead[i].offset <= have; i++ {
			have = max(have, e.ahead[i].offset+len(e.ahead[i].msg.Data))
		}
		if have < n.size {
			gaps = append(gaps, gap{n.after, n.upto})
			for i < len(e.ahead) && e.ahead[i].upto == n.upto {
				i++
			}
		}
		if at.less(n.upto) {
			at = n.upto
		}
	}
	if at.less(e.known) && len(gaps) < maxGaps {
		gaps = append(gaps, gap{at, e.known})
	}
	return gaps
}

// salvage ends an epoch of which nothing new comes, where it is certain that its
// gateway will not end it.
func (e *epoch) salvage(ctx context.Context) {
	now := time.Now()
	quiet := now.Sub(e.fresh)
	switch {
	case e.gone, e.refused != nil, e.s.c.Salvage < 0, quiet < e.s.c.Salvage, now.Sub(e.tried) < e.s.c.Salvage, now.Before(e.down), e.s.isClosed():
		return
	case !e.lost && len(e.taken) == 0 && len(e.ahead) == 0:
		return
	case now.Sub(e.seen) < e.s.c.Gap/2: // what was given back is coming again
		return
	}
	e.tried = now
	ctx, cancel := context.WithTimeout(ctx, salvageTime)
	defer cancel()
	err := e.begin(ctx)
	if err == nil {
		err = e.end(ctx, quiet >= e.s.c.Aside)
	}
	switch {
	case err == nil:
		return
	case errors.Is(err, transport.ErrRefused):
		e.refused = err
	case errors.Is(err, transport.ErrStop):
		e.s.cancel(err)
	default:
		e.s.failed()
	}
	e.s.log.Error("transport: a lost epoch was not salvaged", "gateway", e.key.gateway, "epoch", e.key.epoch, "error", err)
	e.give()
}

// end salvages, and with aside keeps aside what cannot be chained.
func (e *epoch) end(ctx context.Context, aside bool) error {
	st, ok := e.stream.(transport.Salvager)
	if !ok {
		return nil
	}
	before := e.held
	r, err := st.Salvage(ctx, aside)
	e.held = max(e.held, r.Held)
	if err != nil || !r.Over {
		if err == nil {
			e.lost = false // it was cited after all, or that is not known yet
		}
		return err
	}
	first := e.lost && r.Done || e.held > before
	if r.Done {
		e.lost = false
	}
	if aside {
		for _, body := range e.bodies() {
			if err := st.Aside(ctx, body); err != nil {
				return err
			}
		}
		for len(e.ahead) > 0 {
			e.remove(0).msg.Ack()
		}
		e.settle()
		for _, t := range e.taken {
			e.count(-int(t.bytes))
			t.msg.Ack()
		}
		e.taken = nil
		e.give()
	} else if e.held > before {
		// The stream goes on behind the cut. What it took beyond comes again; what
		// waits stays, for what is before it may still come.
		e.settle()
		for _, t := range e.taken {
			e.count(-int(t.bytes))
			e.s.back(t.msg)
		}
		e.taken, e.part, e.partUpto, e.partSize = nil, nil, position{}, 0
		e.at, e.progress = position{e.held, whole}, time.Now()
	}
	if first {
		e.s.stats.lost.Add(1)
		e.s.log.Warn("transport: the journal of an epoch is lost; what came of it is in the vault", "gateway", e.key.gateway, "epoch", e.key.epoch, "sequence", e.held, "messages_left", len(e.ahead)+len(e.taken))
		if e.sender != "" {
			e.s.tell(answer{kind: typeHeld, gateway: e.sender, epoch: e.key.epoch, sequence: e.held})
		}
	}
	return nil
}

// bodies returns what waits for a gap, whole bodies only: a piece alone is no
// frame, and was never confirmed to its gateway.
func (e *epoch) bodies() [][]byte {
	var out [][]byte
	for i := 0; i < len(e.ahead); {
		n := &e.ahead[i]
		var body []byte
		if n.upto == e.partUpto && n.size == e.partSize {
			body = append(body, e.part...)
		}
		for ; i < len(e.ahead) && e.ahead[i].upto == n.upto && e.ahead[i].size == n.size && e.ahead[i].offset <= len(body); i++ {
			if end := e.ahead[i].offset + len(e.ahead[i].msg.Data); end > len(body) {
				body = append(body, e.ahead[i].msg.Data[len(body)-e.ahead[i].offset:]...)
			}
		}
		if len(body) == n.size {
			out = append(out, body)
			continue
		}
		e.s.log.Error("transport: pieces of a record came, and not all; they are dropped", "gateway", e.key.gateway, "epoch", e.key.epoch, "upto", n.upto.String())
		for i < len(e.ahead) && e.ahead[i].upto == n.upto {
			i++
		}
	}
	return out
}
