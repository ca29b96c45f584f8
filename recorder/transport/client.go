package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"verbatim.dev/recorder/record"
)

const (
	defaultWindow     = 64 << 20
	defaultKeepalive  = 10 * time.Second
	defaultHandshake  = 10 * time.Second
	defaultMinBackoff = 100 * time.Millisecond
	defaultMaxBackoff = 10 * time.Second
	// silence is how many keepalive intervals without a byte end a connection.
	silence = 3
	// maxPendingKeys bounds the wrapped keys that wait for their record.
	maxPendingKeys = 1 << 20
)

// ClientConfig configures a [Client]. Zero values have defaults, but for
// Socket and Gateway.
type ClientConfig struct {
	Socket  string // path of the sink's socket
	Gateway string // this gateway's name
	// Window is how many bytes of whole segments may be under way without an
	// acknowledgement, 64 MiB by default. At least one segment always may, so a
	// break costs at most the window and one segment sent again.
	Window     int64
	Keepalive  time.Duration // 10 s; three times as long without a sign of the sink ends a connection
	Handshake  time.Duration // 10 s, to connect and be answered
	MinBackoff time.Duration // 100 ms
	MaxBackoff time.Duration // 10 s
	Logger     *slog.Logger
}

// Client is the gateway's end of the local transport.
type Client struct {
	c     ClientConfig
	log   *slog.Logger
	stats struct {
		connected        atomic.Bool
		connections      atomic.Uint64
		frames, bytes    atomic.Uint64
		acknowledgements atomic.Uint64
		unacknowledged   atomic.Int64
	}
}

// ClientStats are counts since the client was made.
type ClientStats struct {
	Connected        bool
	Connections      uint64
	Frames, Bytes    uint64 // sent, those sent again included
	Acknowledgements uint64
	Unacknowledged   int64 // bytes of whole segments under way now
}

// NewClient returns a client. It connects in Ship.
func NewClient(c ClientConfig) (*Client, error) {
	if c.Socket == "" {
		return nil, errors.New("local transport: no socket given")
	}
	if _, err := parseGateway(c.Gateway); err != nil {
		return nil, fmt.Errorf("local transport: %w", err)
	}
	orDefault(&c.Window, defaultWindow)
	orDefault(&c.Keepalive, defaultKeepalive)
	orDefault(&c.Handshake, defaultHandshake)
	orDefault(&c.MinBackoff, defaultMinBackoff)
	orDefault(&c.MaxBackoff, max(defaultMaxBackoff, c.MinBackoff))
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{c: c, log: c.Logger.With("gateway", c.Gateway, "socket", c.Socket)}, nil
}

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Stats returns the counts of now.
func (c *Client) Stats() ClientStats {
	s := &c.stats
	return ClientStats{
		Connected: s.connected.Load(), Connections: s.connections.Load(), Frames: s.frames.Load(), Bytes: s.bytes.Load(),
		Acknowledgements: s.acknowledgements.Load(), Unacknowledged: s.unacknowledged.Load(),
	}
}

// Ship carries the journal to the sink until ctx ends, whose cause it then
// returns, or until the journal is closed and the sink holds all of it, which
// is nil. It connects again after every break, waiting a little longer each
// time nothing was acknowledged.
func (c *Client) Ship(ctx context.Context, j Journal) error {
	wait := c.c.MinBackoff
	for {
		began := time.Now()
		acked := c.stats.acknowledgements.Load()
		err := c.connection(ctx, j)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c.stats.acknowledgements.Load() > acked || time.Since(began) > c.c.MaxBackoff {
			wait = c.c.MinBackoff
		}
		pause := wait/2 + rand.N(wait/2+1)
		c.log.Warn("transport: connection to the sink ended, will connect again", "error", err, "wait", pause)
		wait = min(2*wait, c.c.MaxBackoff)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// shipment is the state of one connection.
type shipment struct {
	client *Client
	ctx    context.Context
	conn   net.Conn
	j      Journal

	writing sync.Mutex // guards w
	w       *bufio.Writer

	mu       sync.Mutex
	changed  chan struct{} // capacity 1: something below has changed
	asked    *record.Epoch // the epoch that the sink has yet to answer for
	held     uint64        // the answer
	current  record.Epoch
	refused  bool // current is
	underWay []cut
	unacked  int64
}

// cut is a whole segment that was sent and is not acknowledged.
type cut struct {
	epoch    record.Epoch
	sequence uint64
	bytes    int64
}

func (c *Client) connection(ctx context.Context, j Journal) (err error) {
	dialer := net.Dialer{Timeout: c.c.Handshake}
	conn, err := dialer.DialContext(ctx, "unix", c.c.Socket)
	if err != nil {
		return fmt.Errorf("local transport: %w (is the sink running?)", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A read or write that hangs ends with the context.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()

	s := &shipment{client: c, ctx: ctx, conn: conn, j: j, w: bufio.NewWriterSize(conn, bufferSize), changed: make(chan struct{}, 1)}
	r := newMessageReader(conn)
	if err := s.handshake(r); err != nil {
		return err
	}
	c.log.Info("transport: connected to the sink")
	c.stats.connected.Store(true)
	c.stats.connections.Add(1)
	defer func() {
		c.stats.connected.Store(false)
		c.stats.unacknowledged.Store(0)
	}()

	var wg sync.WaitGroup
	wg.Go(func() { cancel(s.receive(r)) })
	wg.Go(func() { cancel(s.ping()) })
	err = s.send()
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		// The sink said why before it closed: let that be read.
		select {
		case <-ctx.Done():
		case <-time.After(lastWords):
		}
	}
	if ctx.Err() != nil { // the first error is the cause, a failed write its consequence
		err = context.Cause(ctx)
	}
	cancel(err)
	_ = conn.Close()
	wg.Wait()
	return err
}

func (s *shipment) handshake(r *messageReader) error {
	if err := s.conn.SetDeadline(time.Now().Add(s.client.c.Handshake)); err != nil {
		return err
	}
	if err := s.write(appendHello(nil, s.client.c.Gateway), true); err != nil {
		return err
	}
	kind, body, err := r.next()
	switch {
	case err != nil:
		return fmt.Errorf("local transport: handshake: %w", err)
	case kind == typeError:
		return fmt.Errorf("local transport: the sink refuses the connection: %s", cleanText(string(body)))
	case kind != typeWelcome || int(body[0])<<8|int(body[1]) != protocolVersion:
		return protocolErrorf("the sink does not speak version %d", protocolVersion)
	}
	// No deadline on writes: a sink that is slow but alive holds them back, and
	// one that is dead is found by its silence.
	return s.conn.SetDeadline(time.Time{})
}

func (s *shipment) write(b []byte, flush bool) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if _, err := s.w.Write(b); err != nil {
		return fmt.Errorf("local transport: %w", err)
	}
	if flush {
		if err := s.w.Flush(); err != nil {
			return fmt.Errorf("local transport: %w", err)
		}
	}
	return nil
}

func (s *shipment) writeFrame(raw []byte, flush bool) error {
	var head [headSize]byte
	s.writing.Lock()
	defer s.writing.Unlock()
	_, err := s.w.Write(appendHead(head[:0], typeFrame, len(raw)))
	if err == nil {
		_, err = s.w.Write(raw)
	}
	if err == nil && flush {
		err = s.w.Flush()
	}
	if err != nil {
		return fmt.Errorf("local transport: %w", err)
	}
	s.client.stats.frames.Add(1)
	s.client.stats.bytes.Add(uint64(len(raw)))
	return nil
}

func (s *shipment) ping() error {
	t := time.NewTicker(s.client.c.Keepalive)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.write(appendPing(nil), true); err != nil {
				return err
			}
		case <-s.ctx.Done():
			return nil
		}
	}
}

// send reads the journal and sends what the sink does not hold. Frames wait in
// the buffer until it is full or a segment is whole: before that the sink can
// make nothing durable.
func (s *shipment) send() error {
	src := s.j.Tail()
	if c, ok := src.(io.Closer); ok {
		defer c.Close()
	}
	recycle := func() {}
	if r, ok := src.(recycler); ok {
		recycle = r.Recycle
	}
	var (
		began     bool
		gateway   string
		refused   bool
		held      uint64
		keys      [][]byte // that precede a record not yet seen
		keyBytes  int
		sinceCut  int64
		sendFrame = func(f *record.Frame, flush bool) error {
			for _, k := range keys {
				if err := s.writeFrame(k, false); err != nil {
					return err
				}
				sinceCut += int64(len(k))
			}
			keys, keyBytes = nil, 0
			if f == nil {
				return nil
			}
			sinceCut += int64(len(f.Raw()))
			return s.writeFrame(f.Raw(), flush)
		}
	)
	for {
		item, err := src.Next(s.ctx)
		if errors.Is(err, io.EOF) || errors.Is(err, record.ErrClosed) {
			return s.drain()
		}
		if err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		if !began || item.Epoch != s.current || item.Gateway != gateway {
			keys, keyBytes, sinceCut = nil, 0, 0
			if held, refused, err = s.begin(item.Epoch, item.Gateway); err != nil {
				return err
			}
			began, gateway = true, item.Gateway
		}
		if !refused {
			refused = s.isRefused()
		}
		if refused {
			continue
		}
		f := &item.Frame
		switch {
		case len(f.Raw()) == 0:
			return fmt.Errorf("read the journal: epoch %s: a %s frame without its stored bytes", item.Epoch, f.Kind)
		case f.Kind == record.KindKey:
			keys, keyBytes = append(keys, bytes.Clone(f.Raw())), keyBytes+len(f.Raw())
			if keyBytes > maxPendingKeys {
				err = sendFrame(nil, false)
			}
		case f.Sequence <= held:
			keys, keyBytes = nil, 0
		case f.Kind == record.KindCheckpoint && f.Flags&record.FlagCut != 0:
			s.mu.Lock()
			n := sinceCut + int64(len(f.Raw())+keyBytes)
			s.underWay = append(s.underWay, cut{item.Epoch, f.Sequence, n})
			s.unacked += n
			s.client.stats.unacknowledged.Store(s.unacked)
			s.mu.Unlock()
			if err = sendFrame(f, true); err == nil {
				sinceCut = 0
				err = s.await(func() bool { return s.unacked <= s.client.c.Window || len(s.underWay) <= 1 })
			}
		default:
			err = sendFrame(f, false)
		}
		if err != nil {
			return err
		}
		recycle()
	}
}

// begin announces an epoch and waits for what the sink holds of it.
func (s *shipment) begin(e record.Epoch, gateway string) (held uint64, refused bool, err error) {
	if _, err := parseGateway(gateway); err != nil {
		return 0, false, err
	}
	s.mu.Lock()
	s.current, s.refused, s.asked, s.held = e, false, &e, 0
	s.mu.Unlock()
	if err := s.write(appendEpoch(nil, e, gateway), true); err != nil {
		return 0, false, err
	}
	if err := s.await(func() bool { return s.asked == nil }); err != nil {
		return 0, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held, s.refused, nil
}

func (s *shipment) isRefused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// drain waits until the sink holds all that was sent.
func (s *shipment) drain() error {
	return s.await(func() bool { return len(s.underWay) == 0 })
}

// await waits until the condition holds, which is asked under the lock.
func (s *shipment) await(holds func() bool) error {
	for {
		s.mu.Lock()
		ok := holds()
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-s.changed:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

func (s *shipment) notify() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// receive handles what the sink says, until the connection ends.
func (s *shipment) receive(r *messageReader) error {
	for {
		if err := s.conn.SetReadDeadline(time.Now().Add(silence * s.client.c.Keepalive)); err != nil {
			return fmt.Errorf("local transport: %w", err)
		}
		kind, body, err := r.next()
		if err != nil {
			switch {
			case errors.Is(err, io.EOF):
				err = errors.New("the sink closed the connection")
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = fmt.Errorf("no sign of the sink within %s", silence*s.client.c.Keepalive)
			}
			return fmt.Errorf("local transport: %w", err)
		}
		switch kind {
		case typePing:
		case typeHeld:
			e, sequence, err := parseHeld(body)
			if err != nil {
				return err
			}
			if err := s.onHeld(e, sequence); err != nil {
				return err
			}
		case typeRefused:
			e, text, err := parseRefused(body)
			if err != nil {
				return err
			}
			s.onRefused(e, text)
		case typeError:
			return fmt.Errorf("local transport: the sink ended the connection: %s", cleanText(string(body)))
		default:
			return protocolErrorf("the sink sent a message of type %d", kind)
		}
	}
}

// onHeld tells the journal before it opens the window, so that a client which
// has drained has also acknowledged.
func (s *shipment) onHeld(e record.Epoch, sequence uint64) error {
	s.mu.Lock()
	answer := s.asked != nil && *s.asked == e
	n := 0
	if !answer {
		for i, c := range s.underWay {
			if c.epoch == e && c.sequence == sequence {
				n = i + 1
				break
			}
		}
	}
	s.mu.Unlock()
	if !answer && n == 0 {
		return protocolErrorf("the sink acknowledges record %d of epoch %s, which ends no segment under way", sequence, e)
	}
	if sequence > 0 {
		if err := s.j.Acknowledge(e, sequence); err != nil {
			return fmt.Errorf("acknowledge record %d of epoch %s: %w", sequence, e, err)
		}
	}
	s.mu.Lock()
	if answer {
		s.asked, s.held = nil, sequence
	} else {
		for _, c := range s.underWay[:n] {
			s.unacked -= c.bytes
		}
		s.underWay = append(s.underWay[:0:0], s.underWay[n:]...)
		s.client.stats.acknowledgements.Add(1)
		s.client.stats.unacknowledged.Store(s.unacked)
	}
	s.mu.Unlock()
	s.notify()
	return nil
}

func (s *shipment) onRefused(e record.Epoch, text string) {
	s.client.log.Error("transport: the sink refuses an epoch; its records stay in the journal", "epoch", e, "error", text)
	s.mu.Lock()
	if s.current == e {
		s.refused = true
		if s.asked != nil {
			s.asked = nil
		}
	}
	kept := s.underWay[:0:0]
	for _, c := range s.underWay {
		if c.epoch == e {
			s.unacked -= c.bytes
			continue
		}
		kept = append(kept, c)
	}
	s.underWay = kept
	s.client.stats.unacknowledged.Store(s.unacked)
	s.mu.Unlock()
	s.notify()
}
