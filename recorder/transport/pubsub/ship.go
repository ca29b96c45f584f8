package pubsub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	defaultMessage = 512 << 10
	// maxMessage keeps messages under 1 MB, attributes and all.
	maxMessage        = 900 << 10
	defaultDelay      = time.Millisecond
	defaultWindow     = 64 << 20
	defaultTimeout    = time.Minute
	defaultAskAfter   = 30 * time.Second
	defaultAskWait    = 2 * time.Second
	defaultMinBackoff = 200 * time.Millisecond
	defaultMaxBackoff = 10 * time.Second
	maxAskAfter       = 10 * time.Minute
	// repairTime bounds one reading of the journal for a gap.
	repairTime = time.Minute
)

// ClientConfig configures a [Client]. Zero values have defaults, but for the
// names.
type ClientConfig struct {
	Project         string
	Topic           string // id, or projects/P/topics/T
	AckSubscription string // this gateway's own, on the acknowledgement topic
	Gateway         string // this gateway's name
	Shards          int    // 1

	Message    int           // 512 KiB: largest body of a message, in bytes; at most 900 KiB
	Delay      time.Duration // 1 ms: how long a frame waits for others to share its message
	Window     int64         // 64 MiB published and not yet confirmed by Pub/Sub, in bytes
	Timeout    time.Duration // 1 min: of one attempt to publish; there is always another
	AskAfter   time.Duration // 30 s without an answer of the sink, and it is asked; then twice as long, up to 10 min
	AskWait    time.Duration // 2 s: how long an epoch that may be held already waits for that answer
	MinBackoff time.Duration // 200 ms
	MaxBackoff time.Duration // 10 s

	// Published, where set, is called when Pub/Sub has confirmed all of an epoch
	// up to the sequence, with the checkpoint for it. It must not block.
	Published func(e record.Epoch, sequence uint64)
	Options   []option.ClientOption
	Logger    *slog.Logger
}

// Client is the gateway's end of the transport.
type Client struct {
	c   ClientConfig
	log *slog.Logger
	pub *gcp.Client
	// stopping are publishers that wait for attempts nobody waits for.
	stopping sync.WaitGroup
	stats    struct {
		messages, frames, bytes, failures, acknowledgements, asks, repairs atomic.Uint64
		unconfirmed                                                        atomic.Int64
	}
}

// ClientStats are counts since the client was made.
type ClientStats struct {
	Messages, Frames, Bytes uint64 // published, those published again included
	Failures                uint64 // attempts to publish that failed
	Acknowledgements        uint64 // of the sink
	Asks, Repairs           uint64
	Unconfirmed             int64 // bytes that Pub/Sub has not confirmed, now
}

// NewClient returns a client. Close it when Ship has returned.
func NewClient(ctx context.Context, c ClientConfig) (*Client, error) {
	if c.Project == "" || c.Topic == "" || c.AckSubscription == "" {
		return nil, errNoName
	}
	a := &attrs{m: map[string]string{"gateway": c.Gateway}}
	if a.name("gateway"); a.err != nil {
		return nil, fmt.Errorf("pub/sub: %w", a.err)
	}
	orDefault(&c.Shards, 1)
	if c.Shards > maxShards {
		return nil, fmt.Errorf("pub/sub: %d shards are more than %d", c.Shards, maxShards)
	}
	orDefault(&c.Message, defaultMessage)
	c.Message = min(c.Message, maxMessage)
	orDefault(&c.Delay, defaultDelay)
	orDefault(&c.Window, defaultWindow)
	orDefault(&c.Timeout, defaultTimeout)
	orDefault(&c.AskAfter, defaultAskAfter)
	orDefault(&c.AskWait, defaultAskWait)
	orDefault(&c.MinBackoff, defaultMinBackoff)
	orDefault(&c.MaxBackoff, max(defaultMaxBackoff, c.MinBackoff))
	c.Topic = fullName(c.Project, "topics", c.Topic)
	c.AckSubscription = fullName(c.Project, "subscriptions", c.AckSubscription)
	pub, err := connect(ctx, c.Project, c.Options)
	if err != nil {
		return nil, err
	}
	return &Client{c: c, log: orDiscard(c.Logger).With("gateway", c.Gateway, "topic", c.Topic), pub: pub}, nil
}

// Close ends the connection to Pub/Sub.
func (c *Client) Close() error {
	err := c.pub.Close()
	c.stopping.Wait()
	return err
}

// Stats returns the counts of now.
func (c *Client) Stats() ClientStats {
	s := &c.stats
	return ClientStats{
		Messages: s.messages.Load(), Frames: s.frames.Load(), Bytes: s.bytes.Load(), Failures: s.failures.Load(),
		Acknowledgements: s.acknowledgements.Load(), Asks: s.asks.Load(), Repairs: s.repairs.Load(), Unconfirmed: s.unconfirmed.Load(),
	}
}

// shipment is one run of Ship.
type shipment struct {
	*Client
	ctx       context.Context
	cancel    context.CancelCauseFunc
	j         transport.Journal
	publisher *gcp.Publisher

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when something below has changed
	inFlight  int64
	queue     []*sent // not yet confirmed, in the journal's order
	epochs    map[record.Epoch]*shipped
	held      map[record.Epoch]uint64
	repairs   map[record.Epoch][]gap
	current   record.Epoch
	sinkAlive bool
	asked     bool // an answer was waited for and did not come

	acknowledging sync.Mutex // keeps answers in order
}

// shipped is what is known of an epoch on its way.
type shipped struct {
	gateway  string
	upto     position // confirmed by Pub/Sub
	cut      uint64   // last cut that was read
	refused  bool
	answered bool
	progress time.Time
	wait     time.Duration
}

// sent is a message on its way to Pub/Sub.
type sent struct {
	frames
	msg        *gcp.Message
	result     *gcp.PublishResult
	checkpoint uint64 // last checkpoint in it, 0 for none
	repair     bool
}

// Ship carries the journal to Pub/Sub and the sink's answers to the journal,
// until ctx ends, whose cause it then returns, or until the journal is closed
// and the sink holds all of it, which is nil. What Pub/Sub does not take is
// published again until it does. Ship runs once at a time.
func (c *Client) Ship(ctx context.Context, j transport.Journal) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &shipment{
		Client: c, ctx: ctx, cancel: cancel, j: j, changed: make(chan struct{}),
		epochs: map[record.Epoch]*shipped{}, held: map[record.Epoch]uint64{}, repairs: map[record.Epoch][]gap{},
	}
	s.publisher = c.pub.Publisher(c.c.Topic)
	s.publisher.PublishSettings.DelayThreshold = c.c.Delay
	s.publisher.PublishSettings.ByteThreshold = 1 << 20
	s.publisher.PublishSettings.CountThreshold = 100
	s.publisher.PublishSettings.Timeout = c.c.Timeout
	s.publisher.PublishSettings.FlowControlSettings = gcp.FlowControlSettings{
		// Twice the window, which this package keeps itself until the journal's
		// order is confirmed: what is published again must not wait for itself.
		MaxOutstandingMessages: -1, MaxOutstandingBytes: int(2*c.c.Window) + maxMessage, LimitExceededBehavior: gcp.FlowControlBlock,
	}
	var wg sync.WaitGroup
	wg.Go(s.confirm)
	wg.Go(s.listen)
	wg.Go(s.ask)
	wg.Go(s.repair)
	err := s.send()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(err)
	wg.Wait()
	c.stopping.Go(s.publisher.Stop)
	return err
}

// update changes the state under the lock and wakes who waits for it.
func (s *shipment) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until the condition holds, which is asked under the lock.
func (s *shipment) await(ctx context.Context, holds func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := holds(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// read is what a tail gave.
type read struct {
	item transport.Item
	err  error
}

// send reads the journal and publishes it.
func (s *shipment) send() error {
	src := s.j.Tail()
	items := make(chan read)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	wg.Go(func() {
		if c, ok := src.(io.Closer); ok {
			defer c.Close()
		}
		for {
			item, err := src.Next(ctx)
			select {
			case items <- read{item, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	b := &batch{s: s}
	timer := time.NewTimer(s.c.Delay)
	timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-timer.C:
			if err := b.flush(); err != nil {
				return err
			}
		case r := <-items:
			if errors.Is(r.err, io.EOF) || errors.Is(r.err, record.ErrClosed) {
				if err := b.flush(); err != nil {
					return err
				}
				return s.drain()
			}
			if r.err != nil {
				return fmt.Errorf("read the journal: %w", r.err)
			}
			if !b.begun || r.item.Epoch != b.epoch {
				if err := b.flush(); err != nil {
					return err
				}
				if err := s.begin(r.item.Epoch, r.item.Gateway); err != nil {
					return err
				}
			}
			empty := len(b.body) == 0
			if err := b.add(r.item); err != nil {
				return err
			}
			if empty && len(b.body) > 0 {
				timer.Reset(s.c.Delay)
			}
		}
	}
}

// begin asks the sink what it holds of an epoch, for this gateway may have been
// here before, and waits a little for the answer.
func (s *shipment) begin(e record.Epoch, gateway string) error {
	a := &attrs{m: map[string]string{"gateway": gateway}}
	if a.name("gateway"); a.err != nil {
		return fmt.Errorf("read the journal: %w", a.err)
	}
	wait := false
	s.update(func() {
		s.current = e
		s.epochs[e] = &shipped{gateway: gateway, progress: time.Now(), wait: s.c.AskAfter}
		wait = !s.asked || s.sinkAlive
	})
	s.publishAsk(e)
	if !wait {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.c.AskWait)
	defer cancel()
	if s.await(ctx, func() bool { return s.epochs[e] == nil || s.epochs[e].answered }) != nil {
		s.update(func() { s.asked, s.sinkAlive = true, false })
	}
	return s.ctx.Err()
}

func (s *shipment) publishAsk(e record.Epoch) {
	s.mu.Lock()
	x := s.epochs[e]
	if x == nil {
		s.mu.Unlock()
		return
	}
	m := frames{ask: true, gateway: x.gateway, sender: s.c.Gateway, epoch: e, shard: shardOf(e, s.c.Shards), upto: x.upto}
	s.mu.Unlock()
	s.stats.asks.Add(1)
	// Nobody waits for the result: an ask that is lost is asked again.
	s.publisher.Publish(s.ctx, &gcp.Message{Attributes: m.attributes()})
}

// batch makes messages of an epoch's frames.
type batch struct {
	s      *shipment
	repair bool
	begun  bool
	epoch  record.Epoch
	gaps   []gap // what a repair publishes, nothing else

	gateway    string
	at         position // of the last frame that was read
	base, end  position // that the body follows on, and of its last frame
	body       []byte
	frames     int
	first      uint64
	last       uint64
	checkpoint uint64
	keys       [][]byte
	keyBytes   int
	index      uint64
}

func (b *batch) add(item transport.Item) error {
	f := &item.Frame
	if len(f.Raw()) == 0 {
		return fmt.Errorf("read the journal: epoch %s: a %s frame without its stored bytes", item.Epoch, f.Kind)
	}
	if !b.begun || b.epoch != item.Epoch {
		*b = batch{s: b.s, repair: b.repair, gaps: b.gaps, begun: true, epoch: item.Epoch, gateway: item.Gateway, at: position{sub: whole}}
	}
	if f.Kind == record.KindKey {
		b.keys, b.keyBytes = append(b.keys, f.Raw()), b.keyBytes+len(f.Raw())
		if b.keyBytes > maxBody-record.MaxFrame {
			return fmt.Errorf("read the journal: epoch %s: %d bytes of keys without a record", item.Epoch, b.keyBytes)
		}
		return nil
	}
	keys := b.keys
	b.keys, b.keyBytes = nil, 0
	next := b.at
	switch {
	case f.Kind.Leaf() && f.Sequence == 0:
		return fmt.Errorf("read the journal: epoch %s: a %s frame without a sequence", item.Epoch, f.Kind)
	case f.Kind.Leaf():
		if f.Sequence != b.at.seq+1 { // the tail left out what is held
			if err := b.flush(); err != nil {
				return err
			}
			b.at = position{f.Sequence - 1, whole}
		}
		next = position{seq: f.Sequence}
	case b.at.sub == whole: // about a record that is held
		return nil
	case f.Sequence != b.at.seq || len(keys) > 0:
		return fmt.Errorf("read the journal: epoch %s: a %s for record %d stands behind position %s", item.Epoch, f.Kind, f.Sequence, b.at)
	default:
		next.sub++
	}
	after := b.at
	b.at = next
	s := b.s
	s.mu.Lock()
	skip := f.Sequence <= s.held[b.epoch]
	if x := s.epochs[b.epoch]; x != nil {
		skip = skip || x.refused
		if f.Kind == record.KindCheckpoint && f.Flags&record.FlagCut != 0 {
			x.cut = max(x.cut, f.Sequence)
		}
	}
	s.mu.Unlock()
	if b.repair {
		skip = !slices.ContainsFunc(b.gaps, func(g gap) bool { return g.after.less(next) && !g.upto.less(next) })
	}
	if skip {
		return b.flush()
	}
	size := len(f.Raw())
	for _, k := range keys {
		size += len(k)
	}
	if len(b.body)+size > s.c.Message {
		if err := b.flush(); err != nil {
			return err
		}
	}
	if len(b.body) == 0 {
		b.base, b.body = after, make([]byte, 0, max(size, min(s.c.Message, 64<<10)))
	}
	for _, k := range keys {
		b.body = append(b.body, k...)
	}
	b.body = append(b.body, f.Raw()...)
	b.end, b.frames = next, b.frames+1+len(keys)
	if f.Kind.Leaf() {
		if b.first == 0 {
			b.first = f.Sequence
		}
		b.last = f.Sequence
	} else {
		b.checkpoint = f.Sequence
	}
	if len(b.body) >= s.c.Message {
		return b.flush()
	}
	return nil
}

// flush publishes what was gathered, in pieces where it is one frame that is too
// large for a message.
func (b *batch) flush() error {
	if len(b.body) == 0 {
		return nil
	}
	body, s := b.body, b.s
	m := sent{checkpoint: b.checkpoint, repair: b.repair, frames: frames{
		gateway: b.gateway, sender: s.c.Gateway, epoch: b.epoch, shard: shardOf(b.epoch, s.c.Shards),
		after: b.base, upto: b.end, first: b.first, last: b.last, size: len(body),
	}}
	s.stats.frames.Add(uint64(b.frames))
	b.body, b.frames, b.first, b.last, b.checkpoint = nil, 0, 0, 0, 0
	for at := 0; at < len(body); at += s.c.Message {
		p := m
		p.offset, p.index = at, b.index
		b.index++
		p.msg = &gcp.Message{Data: body[at:min(at+s.c.Message, len(body))]}
		p.msg.Attributes = p.attributes()
		if at+s.c.Message < len(body) {
			p.checkpoint = 0
		}
		if err := s.publish(&p); err != nil {
			return err
		}
	}
	return nil
}

// publish hands a message to Pub/Sub once the window has room.
func (s *shipment) publish(m *sent) error {
	n := int64(len(m.msg.Data))
	if err := s.await(s.ctx, func() bool { return s.inFlight == 0 || s.inFlight+n <= s.c.Window }); err != nil {
		return err
	}
	m.result = s.publisher.Publish(s.ctx, m.msg)
	s.stats.messages.Add(1)
	s.stats.bytes.Add(uint64(n))
	s.update(func() {
		s.inFlight += n
		s.queue = append(s.queue, m)
		s.stats.unconfirmed.Store(s.inFlight)
	})
	return nil
}

// confirm waits for Pub/Sub's word on each message, in the journal's order, and
// publishes again what failed.
func (s *shipment) confirm() {
	wait := s.c.MinBackoff
	for {
		if s.await(s.ctx, func() bool { return len(s.queue) > 0 }) != nil {
			return
		}
		s.mu.Lock()
		m := s.queue[0]
		s.mu.Unlock()
		if _, err := m.result.Get(s.ctx); err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.stats.failures.Add(1)
			s.log.Warn("transport: Pub/Sub does not take records, they stay in the journal", "error", err, "epoch", m.epoch, "sequence", m.last, "wait", wait)
			if !sleep(s.ctx, wait) {
				return
			}
			wait = min(2*wait, s.c.MaxBackoff)
			s.again()
			continue
		}
		wait = s.c.MinBackoff
		whole := m.offset+len(m.msg.Data) == m.size
		s.update(func() {
			s.queue[0] = nil
			s.queue = s.queue[1:]
			s.inFlight -= int64(len(m.msg.Data))
			s.stats.unconfirmed.Store(s.inFlight)
			if x := s.epochs[m.epoch]; x != nil && whole && !m.repair {
				x.upto = m.upto
			}
		})
		if s.c.Published != nil && m.checkpoint > 0 && !m.repair {
			s.c.Published(m.epoch, m.checkpoint)
		}
	}
}

// again publishes all that has failed so far.
func (s *shipment) again() {
	s.mu.Lock()
	queue := append([]*sent(nil), s.queue...)
	s.mu.Unlock()
	for _, m := range queue {
		select {
		case <-m.result.Ready():
			if _, err := m.result.Get(s.ctx); err != nil {
				m.result = s.publisher.Publish(s.ctx, m.msg)
				s.stats.messages.Add(1)
				s.stats.bytes.Add(uint64(len(m.msg.Data)))
			}
		default:
		}
	}
}

// drain waits until the sink holds all that was read.
func (s *shipment) drain() error {
	return s.await(s.ctx, func() bool {
		for e, x := range s.epochs {
			if !x.refused && s.held[e] < x.cut {
				return false
			}
		}
		return len(s.queue) == 0
	})
}

// listen takes the sink's answers.
func (s *shipment) listen() {
	wait := s.c.MinBackoff
	for {
		sub := s.pub.Subscriber(s.c.AckSubscription)
		sub.ReceiveSettings = gcp.ReceiveSettings{
			MaxOutstandingMessages: 1000, MaxOutstandingBytes: 16 << 20, NumGoroutines: 1, MaxDurationPerAckExtension: time.Minute,
			ShutdownOptions: &gcp.ShutdownOptions{Timeout: time.Second, Behavior: gcp.ShutdownBehaviorNackImmediately},
		}
		began := time.Now()
		err := sub.Receive(s.ctx, func(_ context.Context, m *gcp.Message) {
			if err := s.onAnswer(m); err != nil {
				s.log.Error("transport: an answer of the sink is dropped", "error", err)
			}
			m.Ack() // what cannot be used now is asked for again
		})
		if s.ctx.Err() != nil {
			return
		}
		if time.Since(began) > s.c.MaxBackoff {
			wait = s.c.MinBackoff
		}
		s.log.Warn("transport: the sink's answers do not come", "subscription", s.c.AckSubscription, "error", err, "wait", wait)
		if !sleep(s.ctx, wait) {
			return
		}
		wait = min(2*wait, s.c.MaxBackoff)
	}
}

func (s *shipment) onAnswer(m *gcp.Message) error {
	a, err := parseAnswer(m.Attributes, m.Data)
	if err != nil {
		return err
	}
	if a.gateway != s.c.Gateway {
		return nil // the subscription has no filter
	}
	switch a.kind {
	case typeHeld:
		return s.onHeld(a)
	case typeMissing:
		s.update(func() {
			x := s.epochs[a.epoch]
			if x != nil && (x.refused || x.upto.less(a.upto)) {
				return // still under way
			}
			if g := (gap{a.after, a.upto}); len(s.repairs[a.epoch]) < maxGaps && !slices.Contains(s.repairs[a.epoch], g) {
				s.repairs[a.epoch] = append(s.repairs[a.epoch], g)
			}
		})
	case typeRefused:
		s.log.Error("transport: the sink refuses an epoch; its records stay in the journal", "epoch", a.epoch, "error", a.text)
		s.update(func() {
			if x := s.epochs[a.epoch]; x != nil {
				x.refused, x.answered = true, true
			}
		})
	}
	return nil
}

// onHeld tells the journal before it counts, so that a client which has drained
// has also acknowledged.
func (s *shipment) onHeld(a *answer) error {
	s.acknowledging.Lock()
	defer s.acknowledging.Unlock()
	s.mu.Lock()
	old := s.held[a.epoch]
	s.mu.Unlock()
	if a.sequence > old {
		if err := s.j.Acknowledge(a.epoch, a.sequence); err != nil {
			return fmt.Errorf("acknowledge record %d of epoch %s: %w", a.sequence, a.epoch, err)
		}
		s.stats.acknowledgements.Add(1)
	}
	s.update(func() {
		s.held[a.epoch] = max(old, a.sequence)
		s.sinkAlive = true
		if x := s.epochs[a.epoch]; x != nil {
			x.answered, x.refused, x.progress, x.wait = true, false, time.Now(), s.c.AskAfter
		}
	})
	return nil
}

// ask asks for what the sink does not say.
func (s *shipment) ask() {
	t := time.NewTicker(max(s.c.AskAfter/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		var late []record.Epoch
		s.mu.Lock()
		for e, x := range s.epochs {
			switch {
			case x.cut <= s.held[e]:
				if e != s.current {
					delete(s.epochs, e)
				}
			case time.Since(x.progress) > x.wait:
				late = append(late, e)
				x.progress, x.wait = time.Now(), min(2*x.wait, maxAskAfter)
				// After a refusal the sink may have been put right.
				if x.refused {
					x.wait = maxAskAfter
				}
			}
		}
		s.mu.Unlock()
		for _, e := range late {
			s.publishAsk(e)
		}
	}
}

// repair reads from the journal what the sink misses.
func (s *shipment) repair() {
	for {
		if s.await(s.ctx, func() bool { return len(s.repairs) > 0 }) != nil {
			return
		}
		var epoch record.Epoch
		var gaps []gap
		s.mu.Lock()
		for epoch, gaps = range s.repairs {
			delete(s.repairs, epoch)
			break
		}
		held := s.held[epoch]
		s.mu.Unlock()
		gaps = slices.DeleteFunc(gaps, func(g gap) bool { return g.upto.seq <= held })
		if len(gaps) == 0 {
			continue
		}
		s.stats.repairs.Add(1)
		s.log.Warn("transport: the sink misses frames, they are published again", "epoch", epoch, "after", gaps[0].after.String(), "upto", gaps[0].upto.String(), "gaps", len(gaps))
		if err := s.republish(epoch, gaps); err != nil && s.ctx.Err() == nil {
			s.log.Error("transport: frames that the sink misses were not published again", "epoch", epoch, "error", err)
		}
	}
}

func (s *shipment) republish(epoch record.Epoch, gaps []gap) error {
	ctx, cancel := context.WithTimeout(s.ctx, repairTime)
	defer cancel()
	src := s.j.Tail()
	if c, ok := src.(io.Closer); ok {
		defer c.Close()
	}
	b := &batch{s: s, repair: true, gaps: gaps}
	var end position
	for _, g := range gaps {
		if end.less(g.upto) {
			end = g.upto
		}
	}
	for {
		item, err := src.Next(ctx)
		if errors.Is(err, io.EOF) || errors.Is(err, record.ErrClosed) {
			return b.flush()
		}
		if err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		switch {
		case item.Epoch == epoch:
			if err := b.add(item); err != nil {
				return err
			}
			if !b.at.less(end) {
				return b.flush()
			}
		case b.begun, bytes.Compare(item.Epoch[:], epoch[:]) > 0: // epochs sort by time
			return b.flush()
		}
	}
}
