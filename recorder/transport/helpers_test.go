package transport

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
)

func epochOf(n byte) record.Epoch { return record.Epoch{0: 1, 15: n} }

func encode(t testing.TB, f record.Frame) record.Frame {
	t.Helper()
	if _, err := f.Encode(nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// epochItems returns an epoch's frames: segments of perSegment records each,
// every segment with a key frame in front of its first record.
func epochItems(t testing.TB, e record.Epoch, segments, perSegment, body int) []Item {
	t.Helper()
	at := time.Unix(1_800_000_000, 0).UTC()
	head := record.NewChain(e, "gw")
	var items []Item
	add := func(f record.Frame) { items = append(items, Item{Epoch: e, Gateway: "gw", Frame: f}) }
	seq := uint64(0)
	for s := range segments {
		add(encode(t, record.Frame{Kind: record.KindKey, Key: record.KeyID{0: byte(s), 1: byte(s >> 8), 15: 1}, Time: at, Body: []byte("wrapped")}))
		for range perSegment {
			seq++
			f := encode(t, record.Frame{Kind: record.KindPayload, Sequence: seq, Time: at, Body: make([]byte, body)})
			head = head.Next(f.Leaf())
			add(f)
		}
		add(encode(t, recordtest.Checkpoint(seq, head, at, true)))
	}
	return items
}

// fakeJournal is a journal in memory. Its sources end with io.EOF when it is
// closed.
type fakeJournal struct {
	mu     sync.Mutex
	items  []Item
	closed bool
	acks   []string
	acked  map[record.Epoch]uint64
	tails  int
	ackErr error
}

func (j *fakeJournal) journal() Journal {
	return Journal{Tail: j.tail, Acknowledge: j.acknowledge}
}

func (j *fakeJournal) acknowledge(e record.Epoch, sequence uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ackErr != nil {
		return j.ackErr
	}
	if j.acked == nil {
		j.acked = map[record.Epoch]uint64{}
	}
	j.acked[e] = sequence
	j.acks = append(j.acks, fmt.Sprintf("%d:%d", e[15], sequence))
	return nil
}

// tail begins at the oldest segment that is not acknowledged.
func (j *fakeJournal) tail() Source {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.tails++
	start := 0
	for i, it := range j.items {
		if it.Frame.Kind == record.KindCheckpoint && it.Frame.Flags&record.FlagCut != 0 && it.Frame.Sequence <= j.acked[it.Epoch] && start == i-segmentLen(j.items, i) {
			start = i + 1
		}
	}
	return SourceFunc(func(ctx context.Context) (Item, error) {
		if ctx.Err() != nil {
			return Item{}, context.Cause(ctx)
		}
		j.mu.Lock()
		if start < len(j.items) {
			defer j.mu.Unlock()
			start++
			return j.items[start-1], nil
		}
		closed := j.closed
		j.mu.Unlock()
		if closed {
			return Item{}, io.EOF
		}
		<-ctx.Done()
		return Item{}, context.Cause(ctx)
	})
}

// segmentLen is how many items lie between the cut at i and the one before.
func segmentLen(items []Item, i int) int {
	n := 0
	for i--; i >= 0 && items[i].Frame.Flags&record.FlagCut == 0; i-- {
		n++
	}
	return n
}

// fakeReceiver notes what it is given. A cut makes everything durable.
type fakeReceiver struct {
	mu     sync.Mutex
	held   map[record.Epoch]uint64
	frames []record.Frame
	ends   int
	begin  func(gateway string, e record.Epoch) error
	take   func(ctx context.Context, e record.Epoch, f *record.Frame) error // called without the lock
}

func (r *fakeReceiver) Begin(_ context.Context, gateway string, e record.Epoch) (Stream, error) {
	if r.begin != nil {
		if err := r.begin(gateway, e); err != nil {
			return nil, err
		}
	}
	return &fakeStream{r, e}, nil
}

type fakeStream struct {
	r *fakeReceiver
	e record.Epoch
}

func (s *fakeStream) Held() uint64 {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return s.r.held[s.e]
}

func (s *fakeStream) Take(ctx context.Context, b []byte) (uint64, error) {
	f, _, err := record.Decode(slices.Clone(b))
	if err != nil {
		return 0, err
	}
	if s.r.take != nil {
		if err := s.r.take(ctx, s.e, &f); err != nil {
			return s.Held(), err
		}
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.frames = append(s.r.frames, f)
	if f.Kind == record.KindCheckpoint && f.Flags&record.FlagCut != 0 {
		if s.r.held == nil {
			s.r.held = map[record.Epoch]uint64{}
		}
		s.r.held[s.e] = f.Sequence
	}
	return s.r.held[s.e], nil
}

func (s *fakeStream) End() {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.ends++
}

func (r *fakeReceiver) taken() []record.Frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.frames)
}

func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "sink.sock") }

func listen(t testing.TB, c ServerConfig) *Server {
	t.Helper()
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func client(t testing.TB, c ClientConfig) *Client {
	t.Helper()
	c.Gateway = "gw"
	if c.MinBackoff == 0 {
		c.MinBackoff, c.MaxBackoff = time.Millisecond, 10*time.Millisecond
	}
	cl, err := NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

// background runs f and returns how to wait for its end.
func background(t testing.TB, f func() error) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return func() error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("does not end")
			return nil
		}
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
