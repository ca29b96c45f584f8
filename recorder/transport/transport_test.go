package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

func TestShip(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	before := runtime.NumGoroutine()
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	r := &fakeReceiver{}
	served := background(t, func() error { return s.Serve(ctx, r) })
	j := &fakeJournal{closed: true, items: append(epochItems(t, epochOf(1), 3, 10, 100), epochItems(t, epochOf(2), 2, 5, 300<<10)...)}
	c := client(t, ClientConfig{Socket: path})
	if err := c.Ship(ctx, j.journal()); err != nil {
		t.Fatal(err)
	}
	got := r.taken()
	if len(got) != len(j.items) {
		t.Fatalf("%d frames of %d", len(got), len(j.items))
	}
	for i := range got {
		if !bytes.Equal(got[i].Raw(), j.items[i].Frame.Raw()) {
			t.Fatalf("frame %d differs", i)
		}
	}
	if want := []string{"1:10", "1:20", "1:30", "2:5", "2:10"}; !slices.Equal(j.acks, want) {
		t.Errorf("acknowledged %v, want %v", j.acks, want)
	}
	if st := c.Stats(); st.Frames != uint64(len(got)) || st.Acknowledgements != 5 || st.Connections != 1 || st.Connected || st.Unacknowledged != 0 {
		t.Errorf("stats %+v", st)
	}
	stop := errors.New("stop")
	cancel(stop)
	if err := served(); !errors.Is(err, stop) {
		t.Errorf("Serve: %v", err)
	}
	if r.ends != 2 {
		t.Errorf("%d streams ended of 2", r.ends)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+1 })
}

// What is held is not sent, nor are its keys: an erased key does not come back.
func TestShipSkipsWhatIsHeld(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	r := &fakeReceiver{held: map[record.Epoch]uint64{epochOf(1): 20}}
	background(t, func() error { return s.Serve(t.Context(), r) })
	j := &fakeJournal{closed: true, items: epochItems(t, epochOf(1), 3, 10, 10)}
	if err := client(t, ClientConfig{Socket: path}).Ship(t.Context(), j.journal()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range r.taken() {
		got = append(got, fmt.Sprintf("%s %d %d", f.Kind, f.Sequence, f.Key[0]))
	}
	if len(got) != 12 || got[0] != "key 0 2" || got[1] != "payload 21 0" || got[11] != "checkpoint 30 0" {
		t.Errorf("sent %q", got)
	}
	if want := []string{"1:20", "1:30"}; !slices.Equal(j.acks, want) {
		t.Errorf("acknowledged %v, want %v", j.acks, want)
	}
}

type foreignItem struct {
	Epoch   record.Epoch
	Gateway string
	Frame   record.Frame
}

type foreignTail struct {
	items  []foreignItem
	closed bool
}

func (f *foreignTail) Next(context.Context) (foreignItem, error) {
	if len(f.items) == 0 {
		return foreignItem{}, record.ErrClosed
	}
	i := f.items[0]
	f.items = f.items[1:]
	return i, nil
}

func (f *foreignTail) Close() error { f.closed = true; return nil }

func TestNewSource(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	r := &fakeReceiver{}
	background(t, func() error { return s.Serve(t.Context(), r) })
	tail := &foreignTail{}
	for _, i := range epochItems(t, epochOf(1), 1, 2, 1) {
		tail.items = append(tail.items, foreignItem(i))
	}
	j := &fakeJournal{}
	err := client(t, ClientConfig{Socket: path}).Ship(t.Context(), Journal{Tail: func() Source { return NewSource(tail) }, Acknowledge: j.acknowledge})
	if err != nil || len(r.taken()) != 4 || !tail.closed || j.acked[epochOf(1)] != 2 {
		t.Errorf("%v, %d frames, closed %t, acknowledged %v", err, len(r.taken()), tail.closed, j.acks)
	}
}

func TestShipReconnects(t *testing.T) {
	path := socketPath(t)
	j := &fakeJournal{closed: true, items: epochItems(t, epochOf(1), 20, 10, 2000)}
	var log lockedBuffer
	c := client(t, ClientConfig{Socket: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	shipped := background(t, func() error { return c.Ship(t.Context(), j.journal()) })
	var frames atomic.Int64
	r := &fakeReceiver{take: func(context.Context, record.Epoch, *record.Frame) error {
		if frames.Add(1)%37 == 0 {
			return errors.New("vault: no space left on device")
		}
		return nil
	}}
	time.Sleep(20 * time.Millisecond) // no sink yet
	for range 3 {
		s := listen(t, ServerConfig{Socket: path})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_ = s.Serve(ctx, r)
		cancel()
	}
	s := listen(t, ServerConfig{Socket: path})
	background(t, func() error { return s.Serve(t.Context(), r) })
	if err := shipped(); err != nil {
		t.Fatal(err)
	}
	if j.acked[epochOf(1)] != 200 {
		t.Errorf("acknowledged %v", j.acks)
	}
	if c.Stats().Connections < 2 {
		t.Errorf("stats %+v", c.Stats())
	}
	for _, want := range []string{"is the sink running?", "the sink ended the connection: vault: no space left on device"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}

// A slow sink is not given up while it lives, however long it takes.
func TestShipWaitsForSlowSink(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path, Keepalive: 300 * time.Millisecond})
	r := &fakeReceiver{take: func(_ context.Context, _ record.Epoch, f *record.Frame) error {
		if f.Sequence == 2 && f.Kind == record.KindPayload {
			time.Sleep(2 * time.Second) // longer than a silent peer is waited for
		}
		return nil
	}}
	background(t, func() error { return s.Serve(t.Context(), r) })
	j := &fakeJournal{closed: true, items: epochItems(t, epochOf(1), 3, 10, 200<<10)}
	c := client(t, ClientConfig{Socket: path, Keepalive: 300 * time.Millisecond})
	if err := c.Ship(t.Context(), j.journal()); err != nil {
		t.Fatal(err)
	}
	if n := c.Stats().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestRefusedEpoch(t *testing.T) {
	for _, at := range []string{"begin", "take"} {
		t.Run(at, func(t *testing.T) {
			path := socketPath(t)
			s := listen(t, ServerConfig{Socket: path})
			bad := fmt.Errorf("%w: record 5 is wrong", ErrRefused)
			r := &fakeReceiver{}
			if at == "begin" {
				r.begin = func(_ string, e record.Epoch) error {
					if e == epochOf(1) {
						return bad
					}
					return nil
				}
			} else {
				r.take = func(_ context.Context, e record.Epoch, f *record.Frame) error {
					if e == epochOf(1) && f.Sequence == 5 {
						return bad
					}
					return nil
				}
			}
			background(t, func() error { return s.Serve(t.Context(), r) })
			var log lockedBuffer
			j := &fakeJournal{closed: true, items: append(epochItems(t, epochOf(1), 30, 10, 10<<10), epochItems(t, epochOf(2), 2, 10, 10)...)}
			c := client(t, ClientConfig{Socket: path, Window: 20 << 10, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if err := c.Ship(t.Context(), j.journal()); err != nil {
				t.Fatal(err)
			}
			if want := []string{"2:10", "2:20"}; !slices.Equal(j.acks, want) {
				t.Errorf("acknowledged %v, want %v", j.acks, want)
			}
			if !strings.Contains(log.String(), "record 5 is wrong") || !strings.Contains(log.String(), epochOf(1).String()) {
				t.Errorf("log: %s", log.String())
			}
			if n := c.Stats().Connections; n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestStopEndsServe(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	cause := errors.New("conflict")
	r := &fakeReceiver{take: func(context.Context, record.Epoch, *record.Frame) error { return fmt.Errorf("%w: %w", ErrStop, cause) }}
	served := background(t, func() error { return s.Serve(t.Context(), r) })
	ctx, cancel := context.WithCancel(t.Context())
	shipped := background(t, func() error {
		j := &fakeJournal{items: epochItems(t, epochOf(1), 1, 1, 1)}
		return client(t, ClientConfig{Socket: path}).Ship(ctx, j.journal())
	})
	if err := served(); !errors.Is(err, ErrStop) || !errors.Is(err, cause) {
		t.Errorf("Serve: %v", err)
	}
	cancel()
	if err := shipped(); !errors.Is(err, context.Canceled) {
		t.Errorf("Ship: %v", err)
	}
}

func TestServeEndsWhileTaking(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	taking := make(chan struct{}, 100)
	r := &fakeReceiver{take: func(ctx context.Context, _ record.Epoch, _ *record.Frame) error {
		taking <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	served := background(t, func() error { return s.Serve(ctx, r) })
	shipCtx, cancelShip := context.WithCancel(t.Context())
	shipped := background(t, func() error {
		j := &fakeJournal{items: epochItems(t, epochOf(1), 4, 10, 300<<10)}
		return client(t, ClientConfig{Socket: path}).Ship(shipCtx, j.journal())
	})
	<-taking
	began := time.Now()
	cancel()
	if err := served(); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	cancelShip()
	_ = shipped()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestShipFailsOnJournal(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	r := &fakeReceiver{}
	background(t, func() error { return s.Serve(t.Context(), r) })
	var log lockedBuffer
	j := &fakeJournal{closed: true, items: epochItems(t, epochOf(1), 1, 1, 1), ackErr: errors.New("disk on fire")}
	ctx, cancel := context.WithCancel(t.Context())
	c := client(t, ClientConfig{Socket: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	shipped := background(t, func() error { return c.Ship(ctx, j.journal()) })
	eventually(t, "the log says so", func() bool { return strings.Contains(log.String(), "disk on fire") })
	j.mu.Lock()
	j.ackErr = nil
	j.mu.Unlock()
	if err := shipped(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if j.acked[epochOf(1)] != 1 {
		t.Errorf("acknowledged %v", j.acks)
	}
}

// rawSink is a sink's end made by hand.
type rawSink struct {
	t    *testing.T
	conn net.Conn
	r    *messageReader
}

func acceptRaw(t *testing.T, l net.Listener) *rawSink {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	s := &rawSink{t, conn, newMessageReader(conn)}
	s.expect(typeHello)
	return s
}

func (s *rawSink) expect(kind messageType) []byte {
	s.t.Helper()
	got, b, err := s.r.next()
	if err != nil || got != kind {
		s.t.Fatalf("got type %d, %v; want %d", got, err, kind)
	}
	return b
}

func (s *rawSink) send(b []byte) {
	s.t.Helper()
	if _, err := s.conn.Write(b); err != nil {
		s.t.Fatal(err)
	}
}

func listenRaw(t *testing.T) (string, net.Listener) {
	t.Helper()
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, l
}

// Without acknowledgements the client sends the window and one segment.
func TestWindow(t *testing.T) {
	path, l := listenRaw(t)
	const segment = 10 * 10_000
	j := &fakeJournal{closed: true, items: epochItems(t, epochOf(1), 20, 10, 10_000)}
	c := client(t, ClientConfig{Socket: path, Window: 3 * segment})
	shipped := background(t, func() error { return c.Ship(t.Context(), j.journal()) })
	s := acceptRaw(t, l)
	s.send(appendWelcome(nil))
	s.expect(typeEpoch)
	s.send(appendHeld(nil, epochOf(1), 0))
	var bytesIn int
	var cuts []uint64
	read := func(wait time.Duration) {
		for {
			_ = s.conn.SetReadDeadline(time.Now().Add(wait))
			kind, b, err := s.r.next()
			if err != nil {
				return
			}
			if kind != typeFrame {
				continue
			}
			bytesIn += len(b)
			if f, _, _ := record.Decode(b); f.Flags&record.FlagCut != 0 {
				cuts = append(cuts, f.Sequence)
			}
		}
	}
	read(200 * time.Millisecond)
	if bytesIn < 3*segment || bytesIn > 4*segment || len(cuts) != 3 {
		t.Errorf("%d bytes, cuts %v without an acknowledgement", bytesIn, cuts)
	}
	if u := c.Stats().Unacknowledged; u != int64(bytesIn) {
		t.Errorf("%d bytes counted of %d", u, bytesIn)
	}
	for acked := 0; acked < 20; {
		if acked < len(cuts) {
			s.send(appendHeld(nil, epochOf(1), cuts[acked]))
			acked++
			continue
		}
		read(20 * time.Millisecond)
	}
	if err := shipped(); err != nil {
		t.Fatal(err)
	}
}

func TestClientMeetsBadSink(t *testing.T) {
	epoch, held := epochOf(1), func(seq uint64) []byte { return appendHeld(nil, epochOf(1), seq) }
	for what, c := range map[string]struct {
		welcome, answer, later []byte
		text                   string
	}{
		"other version":       {welcome: append(appendHead(nil, typeWelcome, 2), 0, 2), text: "does not speak version 1"},
		"garbage":             {welcome: []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), text: "message type"},
		"refusal":             {welcome: appendError(nil, "go\naway"), text: "go?away"},
		"closed":              {welcome: []byte{}, text: "handshake"},
		"frame from the sink": {welcome: appendWelcome(nil), answer: append(appendHead(nil, typeFrame, 1), 0), text: "message of type 6"},
		"not sent":            {welcome: appendWelcome(nil), answer: held(0), later: held(11), text: "ends no segment under way"},
		"no cut":              {welcome: appendWelcome(nil), answer: held(0), later: held(5), text: "ends no segment under way"},
		"other epoch":         {welcome: appendWelcome(nil), answer: held(0), later: appendHeld(nil, epochOf(9), 10), text: "ends no segment under way"},
		"twice":               {welcome: appendWelcome(nil), answer: held(0), later: append(held(10), held(10)...), text: "ends no segment under way"},
		"silence":             {welcome: appendWelcome(nil), answer: held(0), text: "no sign of the sink"},
	} {
		t.Run(what, func(t *testing.T) {
			path, l := listenRaw(t)
			j := &fakeJournal{items: epochItems(t, epoch, 2, 10, 10)}
			var log lockedBuffer
			ctx, cancel := context.WithCancel(t.Context())
			cl := client(t, ClientConfig{Socket: path, Keepalive: 30 * time.Millisecond, Handshake: time.Second, MinBackoff: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			shipped := background(t, func() error { return cl.Ship(ctx, j.journal()) })
			s := acceptRaw(t, l)
			s.send(c.welcome)
			switch {
			case len(c.welcome) == 0:
				s.conn.Close()
			case c.answer != nil:
				s.expect(typeEpoch)
				s.send(c.answer)
				if c.later != nil {
					for range 24 {
						s.expect(typeFrame)
					}
					s.send(c.later)
				}
			}
			eventually(t, c.text, func() bool { return strings.Contains(log.String(), c.text) })
			cancel()
			if err := shipped(); !errors.Is(err, context.Canceled) {
				t.Errorf("Ship: %v", err)
			}
			j.mu.Lock()
			defer j.mu.Unlock()
			if n := len(j.acks); what == "twice" && n != 1 || what != "twice" && n != 0 {
				t.Errorf("acknowledged %v", j.acks)
			}
		})
	}
}

func TestServerMeetsBadPeer(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path, Handshake: 100 * time.Millisecond, Keepalive: 50 * time.Millisecond})
	r := &fakeReceiver{}
	background(t, func() error { return s.Serve(t.Context(), r) })
	hello := appendHello(nil, "gw")
	begin := append(bytes.Clone(hello), appendEpoch(nil, epochOf(1), "gw")...)
	frame := epochItems(t, epochOf(1), 1, 1, 1)[1].Frame.Raw()
	huge := binary.BigEndian.AppendUint32(bytes.Clone(begin), record.MaxFrame+2)
	for what, c := range map[string]struct {
		b    []byte
		text string
	}{
		"HTTP":              {[]byte("GET / HTTP/1.1\r\n\r\n"), "message type 47 is not known"},
		"length 0":          {[]byte{0, 0, 0, 0, 1}, "length 0"},
		"length of 4 GB":    {[]byte{255, 255, 255, 255, byte(typeFrame)}, "length 4294967295"},
		"frame too large":   {append(huge, byte(typeFrame)), "outside"},
		"huge hello":        {[]byte{0, 1, 0, 0, byte(typeHello)}, "outside"},
		"no hello":          {appendEpoch(nil, epochOf(1), "gw"), "not hello"},
		"other magic":       {append(appendHead(nil, typeHello, 20), bytes.Repeat([]byte("x"), 20)...), "does not speak this protocol"},
		"other version":     {bytes.Replace(hello, []byte{0, 1, 'g'}, []byte{0, 9, 'g'}, 1), "version 9"},
		"name with newline": {appendHello(nil, "g\nw"), "printable"},
		"name not UTF-8":    {appendHello(nil, "g\xff"), "printable"},
		"nothing":           {nil, "handshake"},
		"half a hello":      {hello[:10], "handshake"},
		"second hello":      {append(bytes.Clone(hello), hello...), "type 1 after its hello"},
		"held from gateway": {append(bytes.Clone(hello), appendHeld(nil, epochOf(1), 1)...), "type 4 after its hello"},
		"frame, no epoch":   {append(append(bytes.Clone(hello), appendHead(nil, typeFrame, len(frame))...), frame...), "before an epoch"},
		"frame garbled":     {append(append(bytes.Clone(begin), appendHead(nil, typeFrame, len(frame))...), bytes.Repeat([]byte{7}, len(frame))...), "frame length"},
		"half a frame":      {append(append(bytes.Clone(begin), appendHead(nil, typeFrame, len(frame))...), frame[:20]...), "no whole message within"},
		"silence":           {begin, "no whole message within"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Write(c.b); err != nil {
				t.Fatal(err)
			}
			in := newMessageReader(conn)
			var text string
			for {
				kind, b, err := in.next()
				if err != nil {
					if !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
						t.Errorf("the connection does not end: %v", err)
					}
					break
				}
				if kind == typeError {
					text = string(b)
				}
			}
			if !strings.Contains(text, c.text) {
				t.Errorf("the sink said %q, want %q", text, c.text)
			}
		})
	}
}

func TestServerAfterBadPeer(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path, MaxPeers: 2})
	r := &fakeReceiver{}
	background(t, func() error { return s.Serve(t.Context(), r) })
	for range 10 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("garbage that is no message"))
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
	// All places are given back, and two of them taken by peers that say nothing.
	var quiet []net.Conn
	for end := time.Now().Add(10 * time.Second); len(quiet) < 2; {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(appendHello(nil, "quiet")); err != nil {
			t.Fatal(err)
		}
		kind, _, err := newMessageReader(conn).next()
		switch {
		case err == nil && kind == typeWelcome:
			quiet = append(quiet, conn)
		case err == nil && kind == typeError && time.Now().Before(end): // the place is given back behind the connection's end
			time.Sleep(time.Millisecond)
		default:
			t.Fatalf("type %d, %v", kind, err)
		}
	}
	third, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if kind, b, err := newMessageReader(third).next(); err != nil || kind != typeError || !strings.Contains(string(b), "2 connections") {
		t.Errorf("a third peer: type %d %q, %v", kind, b, err)
	}
	quiet[0].Close()
	j := &fakeJournal{closed: true, items: epochItems(t, epochOf(3), 1, 1, 1)}
	if err := client(t, ClientConfig{Socket: path}).Ship(t.Context(), j.journal()); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	path := socketPath(t)
	s := listen(t, ServerConfig{Socket: path})
	if _, err := Listen(ServerConfig{Socket: path}); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("a living socket: %v", err)
	}
	s.listener.Close() // as a crash does: the path stays
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	s = listen(t, ServerConfig{Socket: path})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("keep me"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(ServerConfig{Socket: path}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "keep me" {
		t.Error("the file was replaced")
	}
	if _, err := Listen(ServerConfig{Socket: "/tmp/" + strings.Repeat("x", 120)}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a long path: %v", err)
	}
	if _, err := Listen(ServerConfig{}); err == nil {
		t.Error("no path")
	}
}

// A length alone costs no memory.
func TestMessageReaderMemory(t *testing.T) {
	b := binary.BigEndian.AppendUint32(nil, record.MaxFrame)
	b = append(b, byte(typeFrame), 1, 2, 3)
	r := newMessageReader(bytes.NewReader(b))
	if _, _, err := r.next(); !errors.Is(err, errProtocol) {
		t.Errorf("got %v", err)
	}
	if cap(r.buf) > growStep {
		t.Errorf("%d bytes for a length", cap(r.buf))
	}
	large := append(appendHead(nil, typeFrame, 20<<20), make([]byte, 20<<20)...)
	r = newMessageReader(bytes.NewReader(append(large, appendPing(nil)...)))
	if kind, b, err := r.next(); err != nil || kind != typeFrame || len(b) != 20<<20 {
		t.Errorf("type %d, %d bytes, %v", kind, len(b), err)
	}
	if cap(r.buf) > record.MaxFrame {
		t.Errorf("a buffer of %d", cap(r.buf))
	}
	if kind, _, err := r.next(); err != nil || kind != typePing || cap(r.buf) > keepBuffer {
		t.Errorf("type %d, %v; a buffer of %d is kept", kind, err, cap(r.buf))
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(appendHello(nil, "gw"))
	f.Add(appendWelcome(nil))
	f.Add(appendEpoch(nil, epochOf(1), "gw"))
	f.Add(append(appendHeld(nil, epochOf(1), 7), appendPing(nil)...))
	f.Add(appendRefused(nil, epochOf(1), "no"))
	f.Add(appendError(nil, "no"))
	f.Add(append(appendHead(nil, typeFrame, 3), 1, 2, 3))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newMessageReader(bytes.NewReader(in))
		var back []byte
		for {
			kind, b, err := r.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errProtocol) {
					t.Fatalf("error of no kind: %v", err)
				}
				break
			}
			if len(b) > record.MaxFrame {
				t.Fatalf("a body of %d bytes", len(b))
			}
			back = append(appendHead(back, kind, len(b)), b...)
			var again []byte
			switch kind {
			case typeHello:
				if v, g, err := parseHello(b); err == nil && v == protocolVersion {
					again = appendHello(nil, g)
				}
			case typeEpoch:
				if e, g, err := parseEpoch(b); err == nil {
					again = appendEpoch(nil, e, g)
				}
			case typeHeld:
				e, n, err := parseHeld(b)
				if err != nil {
					t.Fatal(err)
				}
				again = appendHeld(nil, e, n)
			case typeRefused:
				_, text, err := parseRefused(b)
				if err != nil || len(text) > maxText {
					t.Fatalf("%d bytes, %v", len(text), err)
				}
			case typeError:
				if text := cleanText(string(b)); len(text) > maxText {
					t.Fatalf("%d bytes", len(text))
				}
			}
			if again != nil && !bytes.Equal(again[headSize:], b) {
				t.Fatalf("%x reads as what is written %x", b, again[headSize:])
			}
		}
		if !bytes.HasPrefix(in, back) {
			t.Fatal("the messages are not the input")
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
