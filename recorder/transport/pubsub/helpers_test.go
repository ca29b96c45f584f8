package pubsub

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

const (
	project  = "p"
	topic    = "projects/p/topics/records"
	subName  = "projects/p/subscriptions/sink"
	ackTopic = "projects/p/topics/acks"
	ackSub   = "projects/p/subscriptions/acks-gw"
	deadName = "projects/p/topics/dead"
)

var testTime = time.Date(2026, 3, 1, 23, 59, 50, 0, time.UTC)

type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

func testEpoch(t testing.TB, n byte) record.Epoch {
	t.Helper()
	e, err := record.NewEpoch(testTime.Add(time.Duration(n)*time.Second), constant(n))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// script says what an epoch's journal looks like.
type script struct {
	epoch     byte
	batches   int
	body      int // largest body in bytes
	perCut    int // batches to a segment
	recovered bool
	large     int // the body of one record in the middle
	uncut     bool
}

func (s script) items(t testing.TB) []transport.Item {
	t.Helper()
	e := testEpoch(t, s.epoch)
	r := rand.New(rand.NewPCG(uint64(s.epoch), 7))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	head := record.NewChain(e, "gw")
	var seq uint64
	var all []transport.Item
	add := func(f record.Frame) record.Frame {
		if _, err := f.Encode(nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, transport.Item{Epoch: e, Gateway: "gw", Frame: f})
		return f
	}
	var key record.KeyID
	at := testTime
	for b := range s.batches {
		at = at.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
		for n := range 1 + r.IntN(5) {
			if b == 0 && n == 0 || r.IntN(12) == 0 {
				copy(key[:], random(16))
				add(record.Frame{Kind: record.KindKey, Key: key, Time: at, Body: random(80)})
			}
			seq++
			size := 1 + r.IntN(s.body)
			if s.large > 0 && b == s.batches/2 && n == 0 {
				size = s.large
			}
			f := record.Frame{Kind: record.KindPayload, Sequence: seq, Exchange: 1, Time: at, Key: key, Class: "standard", Expiry: at.AddDate(1, 0, 0).Truncate(time.Second), Body: random(size)}
			if seq == 1 {
				f.Kind = record.KindOpen
			}
			f = add(f)
			head = head.Next(f.Leaf())
		}
		last := b == s.batches-1
		add(recordtest.Checkpoint(seq, head, at, !s.uncut && !s.recovered && last || !last && b%s.perCut == s.perCut-1))
		if last && s.recovered {
			add(recordtest.Checkpoint(seq, head, at.Add(time.Hour), true))
		}
	}
	return all
}

func items(t testing.TB, scripts ...script) []transport.Item {
	var all []transport.Item
	for _, s := range scripts {
		all = append(all, s.items(t)...)
	}
	return all
}

// memoryJournal gives items, as a journal does, up to a limit that the test
// moves, and ends with io.EOF at the last.
type memoryJournal struct {
	mu     sync.Mutex
	items  []transport.Item
	limit  int
	more   chan struct{}
	acked  map[record.Epoch]uint64
	acks   int
	onAck  func(e record.Epoch, sequence uint64)
	broken error
}

func newJournal(items []transport.Item) *memoryJournal {
	return &memoryJournal{items: items, limit: len(items), more: make(chan struct{}), acked: map[record.Epoch]uint64{}}
}

func (j *memoryJournal) allow(n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.limit = min(n, len(j.items))
	close(j.more)
	j.more = make(chan struct{})
}

func (j *memoryJournal) acknowledge(e record.Epoch, sequence uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if sequence < j.acked[e] {
		j.broken = fmt.Errorf("epoch %s: acknowledged %d after %d", e, sequence, j.acked[e])
	}
	j.acked[e] = sequence
	j.acks++
	if j.onAck != nil {
		j.onAck(e, sequence)
	}
	return nil
}

func (j *memoryJournal) journal() transport.Journal {
	return transport.Journal{Acknowledge: j.acknowledge, Tail: func() transport.Source {
		at := 0
		return transport.SourceFunc(func(ctx context.Context) (transport.Item, error) {
			for {
				if ctx.Err() != nil {
					return transport.Item{}, context.Cause(ctx)
				}
				j.mu.Lock()
				limit, more := j.limit, j.more
				for at < limit {
					item := j.items[at]
					// A key goes with the record behind it.
					n := at
					for n < len(j.items)-1 && j.items[n].Frame.Kind == record.KindKey {
						n++
					}
					at++
					if j.items[n].Frame.Sequence > j.acked[item.Epoch] {
						j.mu.Unlock()
						return item, nil
					}
				}
				j.mu.Unlock()
				if limit == len(j.items) {
					return transport.Item{}, io.EOF
				}
				select {
				case <-more:
				case <-ctx.Done():
					return transport.Item{}, context.Cause(ctx)
				}
			}
		})
	}}
}

// cloud is Google's own fake of Pub/Sub in this process.
type cloud struct {
	*pstest.Server
	ahead atomic.Int64 // of its clock, in nanoseconds
}

func newCloud(t testing.TB) *cloud {
	t.Helper()
	return newCloudWith(t, 100)
}

func newCloudWith(t testing.TB, attempts int32) *cloud {
	t.Helper()
	c, err := startCloud(attempts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func startCloud(attempts int32) (*cloud, error) {
	c := &cloud{Server: pstest.NewServer()}
	c.SetTimeNowFunc(func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) })
	ctx := context.Background()
	for _, n := range []string{topic, ackTopic, deadName} {
		if _, err := c.GServer.CreateTopic(ctx, &pubsubpb.Topic{Name: n}); err != nil {
			return nil, err
		}
	}
	for _, s := range []*pubsubpb.Subscription{
		{Name: subName, Topic: topic, DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: deadName, MaxDeliveryAttempts: attempts}},
		{Name: ackSub, Topic: ackTopic, Filter: `attributes.gateway = "gw"`},
		{Name: "projects/p/subscriptions/dead", Topic: deadName},
	} {
		s.AckDeadlineSeconds, s.ExpirationPolicy = 10, &pubsubpb.ExpirationPolicy{}
		s.MessageRetentionDuration = durationpb.New(24 * time.Hour)
		if _, err := c.GServer.CreateSubscription(ctx, s); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// expire lets all leases of who was killed run out.
func (c *cloud) expire() { c.ahead.Add(int64(61 * time.Second)) }

// release gives back all that the sink's subscription has given out. It leaves
// the clock alone, unlike expire: the fake drops what it has not given out for
// 10 minutes, which Pub/Sub does not.
func (c *cloud) release(ctx context.Context) error {
	r := &pubsubpb.ModifyAckDeadlineRequest{Subscription: subName}
	for _, m := range c.Messages() {
		if m.Topic == topic && m.Acks == 0 && m.Deliveries > 0 {
			r.AckIds = append(r.AckIds, fmt.Sprintf("%s:%d", m.ID, m.Deliveries))
		}
	}
	_, err := c.GServer.ModifyAckDeadline(ctx, r)
	return err
}

// mirror publishes all that the topic ever had on another one, for who comes
// later.
func (c *cloud) mirror(ctx context.Context) error {
	const mirrorTopic = "projects/p/topics/mirror"
	if _, err := c.GServer.CreateTopic(ctx, &pubsubpb.Topic{Name: mirrorTopic}); err != nil {
		return err
	}
	_, err := c.GServer.CreateSubscription(ctx, &pubsubpb.Subscription{Name: mirrorName, Topic: mirrorTopic, AckDeadlineSeconds: 10, ExpirationPolicy: &pubsubpb.ExpirationPolicy{}})
	if err != nil {
		return err
	}
	for _, m := range c.Messages() {
		if m.Topic != topic || m.Attributes["type"] != typeFrames {
			continue
		}
		_, err := c.GServer.Publish(ctx, &pubsubpb.PublishRequest{Topic: mirrorTopic, Messages: []*pubsubpb.PubsubMessage{{Data: m.Data, Attributes: m.Attributes}}})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cloud) options(x *chaos) []option.ClientOption { return optionsFor(c.Addr, x) }

func optionsFor(address string, x *chaos) []option.ClientOption {
	o := []option.ClientOption{
		option.WithEndpoint(address), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
	if x != nil {
		o = append(o, option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(x.unary)), option.WithGRPCDialOption(grpc.WithChainStreamInterceptor(x.stream)))
	}
	return o
}

// chaos disturbs what a client publishes and receives, by chance.
type chaos struct {
	mu     sync.Mutex
	random *rand.Rand
	// twice is how likely a publish is done twice: once with an error to the
	// client, so that it tries again, or just so. lost: it says done and is not.
	twice, lost float64
	// shuffle holds received messages back, and gives them out of order; again
	// gives them once more.
	shuffle                    bool
	again                      float64
	duplicates, dropped, moved atomic.Int64
}

func newChaos(seed uint64) *chaos { return &chaos{random: rand.New(rand.NewPCG(seed, 3))} }

func (x *chaos) chance(p float64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.random.Float64() < p
}

func (x *chaos) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	p, ok := req.(*pubsubpb.PublishRequest)
	if !ok {
		return invoke(ctx, method, req, reply, cc, o...)
	}
	if x.chance(x.lost) {
		x.dropped.Add(int64(len(p.Messages)))
		for i := range p.Messages {
			reply.(*pubsubpb.PublishResponse).MessageIds = append(reply.(*pubsubpb.PublishResponse).MessageIds, fmt.Sprint("lost", i))
		}
		return nil
	}
	err := invoke(ctx, method, req, reply, cc, o...)
	if err == nil && x.chance(x.twice) {
		x.duplicates.Add(1)
		if x.chance(0.5) {
			return status.Error(codes.Unavailable, "after it was done")
		}
		return invoke(ctx, method, req, reply, cc, o...)
	}
	return err
}

func (x *chaos) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, o...)
	if err != nil || !strings.HasSuffix(method, "StreamingPull") || !x.shuffle {
		return s, err
	}
	w := &shuffled{ClientStream: s, x: x, in: make(chan any, 1)}
	go func() {
		for {
			m := &pubsubpb.StreamingPullResponse{}
			if err := s.RecvMsg(m); err != nil {
				w.in <- err
				return
			}
			select {
			case w.in <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return w, nil
}

// shuffled gathers what comes for a few milliseconds and gives it in any order.
type shuffled struct {
	grpc.ClientStream
	x    *chaos
	in   chan any
	held []*pubsubpb.ReceivedMessage
	err  error
}

func (w *shuffled) RecvMsg(m any) error {
	if w.err != nil {
		return w.err
	}
	out := m.(*pubsubpb.StreamingPullResponse)
	out.Reset()
	timer := time.NewTimer(4 * time.Millisecond)
	defer timer.Stop()
	for n := 0; n < 40; n++ {
		var c <-chan time.Time
		if len(w.held) > 0 {
			c = timer.C
		}
		select {
		case v := <-w.in:
			if err, ok := v.(error); ok {
				w.err = err
				return err
			}
			r := v.(*pubsubpb.StreamingPullResponse)
			out.SubscriptionProperties = r.SubscriptionProperties
			w.held = append(w.held, r.ReceivedMessages...)
			if len(r.ReceivedMessages) == 0 {
				n = 40
			}
			continue
		case <-c:
		}
		break
	}
	w.x.mu.Lock()
	defer w.x.mu.Unlock()
	w.x.random.Shuffle(len(w.held), func(i, k int) { w.held[i], w.held[k] = w.held[k], w.held[i] })
	n := (len(w.held) + 1) / 2 // the others may be overtaken by what comes next
	for _, r := range w.held[:n] {
		out.ReceivedMessages = append(out.ReceivedMessages, r)
		if w.x.random.Float64() < w.x.again {
			w.x.duplicates.Add(1)
			out.ReceivedMessages = append(out.ReceivedMessages, r)
		}
	}
	w.x.moved.Add(int64(n))
	w.held = slices.Clone(w.held[n:])
	return nil
}

func testLogger(t testing.TB) *slog.Logger {
	if os.Getenv("VERBATIM_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newClient(t testing.TB, c ClientConfig) *Client {
	t.Helper()
	c.Project, c.Topic, c.AckSubscription, c.Gateway, c.Logger = project, topic, ackSub, "gw", testLogger(t)
	orDefault(&c.AskAfter, 200*time.Millisecond)
	orDefault(&c.AskWait, 50*time.Millisecond)
	orDefault(&c.MinBackoff, 5*time.Millisecond)
	orDefault(&c.MaxBackoff, 50*time.Millisecond)
	cl, err := NewClient(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func newServer(t testing.TB, c ServerConfig) *Server {
	t.Helper()
	c.Project, c.Subscriptions, c.AckTopic, c.Logger = project, []string{subName}, ackTopic, testLogger(t)
	orDefault(&c.Gap, 500*time.Millisecond)
	orDefault(&c.Streams, 8) // pstest gives a stream a message each 10 ms
	orDefault(&c.MinBackoff, 5*time.Millisecond)
	orDefault(&c.MaxBackoff, 50*time.Millisecond)
	s, err := NewServer(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newSink(t testing.TB, v vault.Vault) *sink.Sink {
	t.Helper()
	s, err := sink.New(sink.Config{Logger: testLogger(t), Vault: v, Spool: filepath.Join(t.TempDir(), "spool"), Now: func() time.Time { return testTime.Add(time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openFolder(t testing.TB, dir string, write bool) *vault.Folder {
	t.Helper()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Write: write})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// start runs f and returns how to end it and get its error.
func start(t testing.TB, f func(ctx context.Context) error) (wait func() error, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = f(ctx)
	}()
	wait = func() error {
		t.Helper()
		select {
		case <-done:
			return err
		case <-time.After(60 * time.Second):
			t.Fatal("does not end")
			return nil
		}
	}
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return wait, stop
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// undisturbed is what the vault holds after a run over the local transport.
func undisturbed(t testing.TB, all []transport.Item) map[string]string {
	t.Helper()
	dir, err := os.MkdirTemp("", "verbatim") // short, for the socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	v := openFolder(t, filepath.Join(dir, "vault"), true)
	l, err := transport.Listen(transport.ServerConfig{Socket: filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return l.Serve(ctx, s) })
	c, err := transport.NewClient(transport.ClientConfig{Socket: filepath.Join(dir, "s"), Gateway: "gw"})
	if err != nil {
		t.Fatal(err)
	}
	j := newJournal(all)
	wait, _ := start(t, func(ctx context.Context) error { return c.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	if st := s.Stats(); st.Alarms != 0 || st.Segments == 0 {
		t.Fatalf("over the local transport: %+v", st)
	}
	return snapshot(t, v)
}

func snapshot(t testing.TB, v vault.Vault) map[string]string {
	t.Helper()
	got := map[string]string{}
	for n, err := range v.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		r, err := v.Open(context.Background(), n)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		got[n] = string(b)
	}
	return got
}

// same fails the test where the vault does not hold exactly what it must.
func same(t testing.TB, got, want map[string]string) {
	t.Helper()
	for _, n := range slices.Sorted(maps.Keys(want)) {
		if c, ok := got[n]; !ok {
			t.Errorf("%s is missing", n)
		} else if c != want[n] {
			t.Errorf("%s differs: %d bytes, want %d", n, len(c), len(want[n]))
		}
	}
	for _, n := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[n]; !ok {
			t.Errorf("%s should not be there", n)
		}
	}
}

func unaryOption(i grpc.UnaryClientInterceptor) option.ClientOption {
	return option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(i))
}
