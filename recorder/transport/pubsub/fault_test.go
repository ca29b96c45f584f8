package pubsub

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// wire is a TCP proxy that can be cut.
type wire struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	down     bool
	conns    []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, to: to}
	t.Cleanup(func() { _ = l.Close(); w.cut(true) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			down := w.down
			w.mu.Unlock()
			up, err := net.Dial("tcp", to)
			if down || err != nil {
				_ = c.Close()
				if err == nil {
					_ = up.Close()
				}
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, c, up)
			w.mu.Unlock()
			go func() { _, _ = io.Copy(c, up); _ = c.Close() }()
			go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
		}
	}()
	return w
}

func (w *wire) cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// While Pub/Sub is away the journal keeps all, and what waits for publication
// waits; when it is back everything ships.
func TestOutage(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 200, body: 2000, perCut: 10})
	want := undisturbed(t, all)
	c := newCloud(t)
	w := newWire(t, c.Addr)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, s := newServer(t, ServerConfig{Options: optionsFor(w.listener.Addr().String(), nil)}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	j.allow(len(all) / 3)
	var published atomic.Uint64
	client := newClient(t, ClientConfig{
		Options: optionsFor(w.listener.Addr().String(), nil), Message: 4000, Window: 20000, Timeout: 300 * time.Millisecond,
		Published: func(_ record.Epoch, n uint64) {
			if n < published.Swap(n) {
				t.Error("published sequences fall")
			}
		},
	})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	third := all[len(all)/3-1].Frame.Sequence
	eventually(t, "a third is published", func() bool { return published.Load() >= third-5 })
	eventually(t, "some of it is acknowledged", func() bool { j.mu.Lock(); defer j.mu.Unlock(); return j.acks > 0 })
	w.cut(true)
	j.allow(len(all))
	eventually(t, "publishing fails", func() bool { return client.Stats().Failures > 0 })
	time.Sleep(200 * time.Millisecond)
	if p := published.Load(); p > third {
		t.Errorf("record %d was published while Pub/Sub was away, %d were there before", p, third)
	}
	if st := client.Stats(); st.Unconfirmed > 20000 || st.Unconfirmed < 15000 {
		t.Errorf("%d bytes are unconfirmed, the window is 20000", st.Unconfirmed)
	}
	w.cut(false)
	c.expire()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	same(t, snapshot(t, v), want)
	if p := published.Load(); p != all[len(all)-1].Frame.Sequence {
		t.Errorf("published up to %d", p)
	}
}

// A gateway that begins again publishes again what is not held, and no more.
func TestRestartedGateway(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 120, body: 2000, perCut: 10, recovered: true}, script{epoch: 2, batches: 60, body: 2000, perCut: 10})
	want := undisturbed(t, all)
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, s := newServer(t, ServerConfig{Options: c.options(nil)}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	var frames uint64
	for n := 1; n <= 6; n++ {
		j.allow(len(all) * n / 6)
		// Other sizes each time: the same frames lie in other messages.
		client := newClient(t, ClientConfig{Options: c.options(nil), Message: 3000 + 1000*n, AskWait: 5 * time.Second})
		wait, end := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
		if n == 6 {
			if err := wait(); err != nil {
				t.Fatal(err)
			}
		} else {
			e, cut := record.Epoch{}, uint64(0)
			for _, i := range all[:len(all)*n/6] {
				if i.Frame.Flags&record.FlagCut != 0 {
					e, cut = i.Epoch, i.Frame.Sequence
				}
			}
			eventually(t, "it comes on", func() bool { j.mu.Lock(); defer j.mu.Unlock(); return j.acked[e] >= cut })
		}
		end()
		frames += client.Stats().Frames
	}
	stop()
	same(t, snapshot(t, v), want)
	if st := server.Stats(); st.Poison != 0 {
		t.Errorf("%+v", st)
	}
	if limit := uint64(len(all) + 5*60); frames > limit { // an unfinished segment each time
		t.Errorf("%d frames were published for %d", frames, len(all))
	}
}

// Pub/Sub keeps what is in no whole segment, also when the sink stops.
func TestAcknowledgedWhenDurable(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 50, body: 2000, perCut: 20, uncut: true})
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, s := newServer(t, ServerConfig{Options: c.options(nil)}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	client := newClient(t, ClientConfig{Options: c.options(nil), Message: 4000})
	_, end := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	eventually(t, "two segments and a part are taken", func() bool {
		server.mu.Lock()
		epochs := slices.Collect(maps.Values(server.epochs))
		server.mu.Unlock()
		for _, e := range epochs {
			e.mu.Lock()
			at := e.at.seq
			e.mu.Unlock()
			if at == all[len(all)-1].Frame.Sequence {
				return true
			}
		}
		return false
	})
	eventually(t, "some are acknowledged", func() bool {
		return slices.ContainsFunc(c.Messages(), func(m *pstest.Message) bool { return m.Acks > 0 && m.Attributes["type"] == typeFrames })
	})
	end()
	stop()
	var held uint64
	for n := range snapshot(t, v) {
		if id, err := vault.ParseSegmentName(n); err == nil {
			held = max(held, id.Last)
		}
	}
	var durable, kept int
	for _, m := range c.Messages() {
		f, err := parseFrames(m.Attributes, m.Data)
		if err != nil || f.ask {
			continue
		}
		switch {
		case f.upto.seq > held && m.Acks > 0:
			t.Errorf("message %s to %s is acknowledged, the vault holds %d", f.after, f.upto, held)
		case f.upto.seq > held:
			kept++
		case m.Acks > 0:
			durable++
		}
	}
	if durable == 0 || kept == 0 {
		t.Errorf("%d messages are acknowledged, %d kept", durable, kept)
	}
}

// An acknowledgement that was lost is asked for and comes from the vault.
func TestLostAnswers(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 40, body: 2000, perCut: 10})
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	deaf := newChaos(1)
	deaf.lost = 1
	server, s := newServer(t, ServerConfig{Options: c.options(deaf)}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	client := newClient(t, ClientConfig{Options: c.options(nil)})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	eventually(t, "all is stored", func() bool { return s.Stats().Segments == 4 })
	if st := client.Stats(); st.Acknowledgements != 0 {
		t.Fatalf("%+v", st)
	}
	stop()
	server = newServer(t, ServerConfig{Options: c.options(nil)})
	start(t, func(ctx context.Context) error { return server.Serve(ctx, newSink(t, v)) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if j.acked[all[0].Epoch] != all[len(all)-1].Frame.Sequence || client.Stats().Frames != uint64(len(all)) {
		t.Errorf("acknowledged %v, %+v", j.acked, client.Stats())
	}
}

// What no gateway wrote goes to the dead-letter topic, with an alarm, and hinders
// nobody.
func TestPoison(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 20, body: 2000, perCut: 5})
	want := undisturbed(t, all)
	c := newCloudWith(t, 5)
	good := frames{gateway: "gw", sender: "gw", epoch: testEpoch(t, 9), after: position{0, whole}, upto: position{seq: 1}, first: 1, last: 1, size: 5}
	c.Publish(topic, []byte("hello"), nil)
	c.Publish(topic, []byte("hello"), good.attributes())
	newer := good.attributes()
	newer["protocol"] = "2"
	c.Publish(topic, []byte("hello"), newer)
	v := openFolder(t, t.TempDir()+"/vault", true)
	var alarms atomic.Int64
	server, s := newServer(t, ServerConfig{Options: c.options(nil), Gap: 20 * time.Millisecond, Alarm: func(error) { alarms.Add(1) }}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	client := newClient(t, ClientConfig{Options: c.options(nil)})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dead letters", func() bool {
		r, err := c.GServer.Pull(context.Background(), &pubsubpb.PullRequest{Subscription: "projects/p/subscriptions/dead", MaxMessages: 10})
		dead.Add(int64(len(r.GetReceivedMessages())))
		return err == nil && dead.Load() >= 3
	})
	stop()
	same(t, snapshot(t, v), want)
	if alarms.Load() != 3 || server.Stats().Poison != 3 {
		t.Errorf("%d alarms, %+v", alarms.Load(), server.Stats())
	}
}

var dead atomic.Int64

// An epoch whose evidence is wrong is refused, and stays in the journal; others
// go on.
func TestRefused(t *testing.T) {
	bad := script{epoch: 1, batches: 20, body: 2000, perCut: 5}.items(t)
	good := script{epoch: 2, batches: 20, body: 2000, perCut: 5}.items(t)
	want := undisturbed(t, good)
	for i, x := range bad { // a record that is not the one in the chain
		if x.Frame.Sequence == 2 && x.Frame.Kind.Leaf() {
			f := record.Frame{Kind: record.KindPayload, Sequence: 2, Time: testTime, Class: "standard", Expiry: testTime.AddDate(1, 0, 0).Truncate(time.Second), Body: []byte("forged")}
			if _, err := f.Encode(nil); err != nil {
				t.Fatal(err)
			}
			bad[i].Frame = f
		}
	}
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, s := newServer(t, ServerConfig{Options: c.options(nil), Gap: 50 * time.Millisecond}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(append(bad, good...))
	client := newClient(t, ClientConfig{Options: c.options(nil)})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	got := snapshot(t, v)
	for n := range got {
		if strings.Contains(n, bad[0].Epoch.String()) && strings.HasPrefix(n, vault.SegmentPrefix(vault.Day(testTime), "gw", bad[0].Epoch)) {
			t.Errorf("%s is stored", n)
		}
		if strings.HasPrefix(n, "keys/"+bad[0].Epoch.String()) {
			delete(got, n)
		}
	}
	same(t, got, want)
	if s.Stats().Alarms == 0 || j.acked[bad[0].Epoch] != 0 || j.acked[good[0].Epoch] == 0 {
		t.Errorf("%d alarms, acknowledged %v", s.Stats().Alarms, j.acked)
	}
}

// failing is a vault whose first calls of Create fail, before or after the deed.
type failing struct {
	vault.Vault
	mu   sync.Mutex
	left int
}

var errFault = errors.New("injected fault")

func (f *failing) Create(ctx context.Context, name string, r io.Reader) error {
	f.mu.Lock()
	fail := f.left > 0 && strings.HasPrefix(name, "segments/")
	if fail {
		f.left--
	}
	odd := f.left%2 == 1
	f.mu.Unlock()
	if fail && odd {
		return errFault
	}
	err := f.Vault.Create(ctx, name, r)
	if fail && err == nil {
		return errFault
	}
	return err
}

func TestVaultFails(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 60, body: 2000, perCut: 10}, script{epoch: 2, batches: 30, body: 2000, perCut: 10})
	want := undisturbed(t, all)
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, s := newServer(t, ServerConfig{Options: c.options(nil)}), newSink(t, &failing{Vault: v, left: 6})
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	client := newClient(t, ClientConfig{Options: c.options(nil), Message: 8000})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	same(t, snapshot(t, v), want)
	if server.Stats().Returned == 0 {
		t.Error("nothing was given back")
	}
}

// A conflict in the vault stops the sink.
func TestConflict(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 10, body: 2000, perCut: 5})
	want := undisturbed(t, all)
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	for n := range want {
		if strings.HasPrefix(n, "keys/") {
			if err := v.Create(context.Background(), n, strings.NewReader("something else")); err != nil {
				t.Fatal(err)
			}
		}
	}
	server, s := newServer(t, ServerConfig{Options: c.options(nil)}), newSink(t, v)
	wait, _ := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	client := newClient(t, ClientConfig{Options: c.options(nil)})
	start(t, func(ctx context.Context) error { return client.Ship(ctx, newJournal(all).journal()) })
	if err := wait(); !errors.Is(err, transport.ErrStop) || !errors.Is(err, vault.ErrConflict) {
		t.Errorf("Serve: %v", err)
	}
}

// A key that was erased does not come back with an old message.
func TestErasedKey(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 10, body: 2000, perCut: 5})
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, s := newServer(t, ServerConfig{Options: c.options(nil)}), newSink(t, v)
	start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	client := newClient(t, ClientConfig{Options: c.options(nil)})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, newJournal(all).journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Keys
	for _, m := range c.Messages() {
		c.Publish(topic, m.Data, m.Attributes)
	}
	eventually(t, "the old messages come", func() bool { st := server.Stats(); return st.Duplicates > 0 && st.Outstanding == 0 })
	if before == 0 || s.Stats().Keys != before {
		t.Errorf("%d keys were stored, then %d", before, s.Stats().Keys)
	}
}

// Two sinks on one subscription hinder each other, and come through.
func TestTwoSinks(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 60, body: 2000, perCut: 15})
	want := undisturbed(t, all)
	c := newCloud(t)
	dir := t.TempDir() + "/vault"
	v := openFolder(t, dir, true)
	var servers []*Server
	for range 2 {
		server := newServer(t, ServerConfig{Options: c.options(nil), Gap: 150 * time.Millisecond, Streams: 2})
		servers = append(servers, server)
		start(t, func(ctx context.Context) error { return server.Serve(ctx, newSink(t, v)) })
	}
	j := newJournal(all)
	client := newClient(t, ClientConfig{Options: c.options(nil), Message: 8000})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	same(t, snapshot(t, v), want)
	t.Logf("%+v\n%+v", servers[0].Stats(), servers[1].Stats())
}

// Memory for what waits is bounded: the rest goes back and comes again.
func TestAheadIsBounded(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 60, body: 2000, perCut: 60})
	want := undisturbed(t, all)
	c := newCloud(t)
	v := openFolder(t, t.TempDir()+"/vault", true)
	const limit = 20000
	server, s := newServer(t, ServerConfig{Options: c.options(nil), Ahead: limit, Gap: 10 * time.Second}), newSink(t, v)
	// The first message comes last.
	var first *pubsubpb.PubsubMessage
	var mu sync.Mutex
	hold := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
		if p, ok := req.(*pubsubpb.PublishRequest); ok {
			mu.Lock()
			for i, m := range p.Messages {
				if first == nil && m.Attributes["type"] == typeFrames {
					first = m
					p.Messages[i] = &pubsubpb.PubsubMessage{Attributes: (&frames{ask: true, gateway: "gw", sender: "gw", epoch: all[0].Epoch}).attributes()}
				}
			}
			mu.Unlock()
		}
		return invoke(ctx, method, req, reply, cc, o...)
	}
	x := newChaos(1)
	options := append(c.options(x)[:3], unaryOption(hold))
	client := newClient(t, ClientConfig{Options: options, Message: 3000})
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	eventually(t, "messages go back", func() bool { return server.Stats().Returned > 10 })
	if a := server.Stats().Ahead; a > limit+3000 {
		t.Errorf("%d bytes wait", a)
	}
	mu.Lock()
	c.Publish(topic, first.Data, first.Attributes)
	mu.Unlock()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	same(t, snapshot(t, v), want)
}

// appender is a journal whose tickets the test settles.
type appender struct {
	next    uint64
	tickets []*record.Ticket
	refuse  error
}

func (a *appender) Append(drafts ...record.Draft) *record.Ticket {
	if a.refuse != nil {
		t := record.NewTicket(record.ID{})
		t.Settle(a.refuse)
		return t
	}
	t := record.NewTicket(record.ID{Sequence: a.next + 1})
	a.next += uint64(len(drafts))
	t.Last = a.next
	a.tickets = append(a.tickets, t)
	return t
}

func TestGate(t *testing.T) {
	e := testEpoch(t, 1)
	a := &appender{}
	g := NewGate(a, e)
	settled := func(k *record.Ticket) bool {
		select {
		case <-k.Done():
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	}
	one, two, three, four := g.Append(record.Draft{}, record.Draft{}), g.Append(record.Draft{}), g.Append(record.Draft{}), g.Append(record.Draft{})
	if one.ID.Sequence != 1 || one.Last != 2 || two.ID.Sequence != 3 {
		t.Errorf("tickets %+v, %+v", one, two)
	}
	g.Published(e, 2)
	g.Published(testEpoch(t, 2), 99)
	if settled(one) {
		t.Error("published is not enough")
	}
	a.tickets[0].Settle(nil)
	if !settled(one) || one.Err() != nil {
		t.Error("one is open")
	}
	a.tickets[1].Settle(nil)
	if settled(two) {
		t.Error("the journal is not enough")
	}
	g.Published(e, 1) // late
	a.tickets[2].Settle(errFault)
	g.Published(e, 3)
	if !settled(two) || two.Err() != nil || !settled(three) || !errors.Is(three.Err(), errFault) {
		t.Errorf("two: %v, three: %v", two.Err(), three.Err())
	}
	a.refuse = record.ErrFull
	if full := g.Append(record.Draft{}); !settled(full) || !errors.Is(full.Err(), record.ErrFull) {
		t.Error("a full journal's ticket is open")
	}
	a.refuse = nil
	if settled(four) {
		t.Error("four is settled")
	}
	g.Close()
	if !settled(four) || four.Err() == nil {
		t.Error("four is open")
	}
	if after := g.Append(record.Draft{}); !settled(after) || after.Err() == nil {
		t.Error("a ticket after Close is open")
	}
	g.Close()
}
