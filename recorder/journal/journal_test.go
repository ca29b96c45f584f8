package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"verbatim.dev/recorder/record"
)

var tenant = sync.OnceValue(func() *keyset.Handle {
	h, err := record.NewTenant()
	if err != nil {
		panic(err)
	}
	return h
})

var tenantPublic = sync.OnceValue(func() *keyset.Handle {
	h, err := tenant().Public()
	if err != nil {
		panic(err)
	}
	return h
})

func testConfig(dir string, fs FS) Config {
	return Config{
		Dir: dir, Gateway: "gw-1", Version: "test", Tenant: tenantPublic(), FS: fs,
		Class: "standard", Retention: map[string]time.Duration{"standard": 24 * time.Hour, "short": time.Hour, "long": 0},
		Limit: 1 << 20, Reserve: 64 << 10, SegmentSize: 8 << 10, CutBytes: 4 << 10, CutInterval: time.Hour, Heartbeat: -1,
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustOpen(t testing.TB, c Config) *Journal {
	t.Helper()
	j, err := Open(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// mustAppend waits until the drafts are durable.
func mustAppend(t testing.TB, j *Journal, drafts ...record.Draft) record.ID {
	t.Helper()
	k := j.Append(drafts...)
	if err := k.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return k.ID
}

func mustClose(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(testContext(t), "test ends"); err != nil {
		t.Fatal(err)
	}
}

func received(body string) record.Draft {
	return record.Draft{Kind: record.KindReceived, Session: "s-1", Body: []byte(body)}
}

func outcome(exchange uint64) record.Draft {
	return record.Draft{Kind: record.KindOutcome, Exchange: exchange, Session: "s-1", Body: []byte("{}"), Reserved: true}
}

// stored is what a tail gave, checked.
type stored struct {
	epochs []record.Epoch
	items  map[record.Epoch][]Item
	plain  map[record.ID][]byte // by sequence, opened
	kinds  map[record.ID]record.Kind
	open   map[record.ID]bool // exchanges with no outcome in their epoch
	closed map[string]int     // exchange -> interrupted outcomes
}

// drain reads a finished journal to its end and checks sequences, chains, keys
// and cuts on its way.
func drain(t testing.TB, j *Journal) *stored {
	t.Helper()
	tail := j.Tail()
	defer tail.Close()
	return collect(t, tail, j.Epoch())
}

func collect(t testing.TB, tail *Tail, live record.Epoch) *stored {
	t.Helper()
	s := &stored{items: map[record.Epoch][]Item{}, plain: map[record.ID][]byte{}, kinds: map[record.ID]record.Kind{}, open: map[record.ID]bool{}, closed: map[string]int{}}
	opener, err := record.NewOpener(tenant())
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	for {
		it, err := tail.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(s.epochs) == 0 || s.epochs[len(s.epochs)-1] != it.Epoch {
			if s.items[it.Epoch] != nil {
				t.Fatalf("epoch %s comes twice", it.Epoch)
			}
			s.epochs = append(s.epochs, it.Epoch)
		}
		s.items[it.Epoch] = append(s.items[it.Epoch], it)
	}
	for n, e := range s.epochs {
		if n > 0 && s.epochs[n-1].String() >= e.String() {
			t.Fatalf("epoch %s comes after %s", e, s.epochs[n-1])
		}
		var (
			sequence uint64
			head     *record.ChainHead
			cut      bool
		)
		for i, it := range s.items[e] {
			f := it.Frame
			if it.Gateway != "gw-1" {
				t.Fatalf("gateway %q", it.Gateway)
			}
			switch f.Kind {
			case record.KindKey:
				if err := opener.Add(e, &f); err != nil {
					t.Fatal(err)
				}
			case record.KindCheckpoint:
				stated, err := record.CheckpointHead(&f)
				if err != nil {
					t.Fatal(err)
				}
				if head != nil && *head != stated || f.Sequence != sequence && i > 0 {
					t.Fatalf("epoch %s: checkpoint of %d does not state what its records give", e, f.Sequence)
				}
				head, sequence, cut = &stated, f.Sequence, f.Flags&record.FlagCut != 0
			default:
				if sequence == 0 && f.Sequence == 1 {
					h := record.NewChain(e, "gw-1")
					head = &h
				} else if sequence != 0 && f.Sequence != sequence+1 {
					t.Fatalf("epoch %s: record %d after %d", e, f.Sequence, sequence)
				}
				if head != nil {
					h := head.Next(f.Leaf())
					head = &h
				}
				sequence, cut = f.Sequence, false
				id := record.ID{Epoch: e, Sequence: f.Sequence}
				s.kinds[id] = f.Kind
				plain, err := opener.Open(e, &f)
				if err != nil {
					if errors.Is(err, record.ErrNoKey) && s.items[e][0].Frame.Sequence > 1 {
						break // its key was acknowledged
					}
					t.Fatal(err)
				}
				s.plain[id] = plain
				x := record.ID{Epoch: e, Sequence: f.Exchange}
				switch f.Kind {
				case record.KindReceived, record.KindIntent:
					s.open[x] = true
				case record.KindOutcome:
					delete(s.open, x)
					var o record.Outcome
					if err := record.Unmarshal(plain, &o); err == nil && o.Verbatim.Result == record.ResultInterrupted {
						s.closed[o.Verbatim.Interrupted]++
					}
				}
			}
		}
		if !cut {
			t.Fatalf("epoch %s does not end with a cut", e)
		}
	}
	return s
}

func TestAppendIsStoredAsItWas(t *testing.T) {
	j := mustOpen(t, testConfig(t.TempDir()+"/j", nil))
	at := time.Now()
	body := bytes.Repeat([]byte("canary-7f31 "), 100)
	k := j.Append(
		record.Draft{Kind: record.KindReceived, Session: "s-1", Class: "long", Body: body},
		record.Draft{Kind: record.KindIntent, Session: "s-1", Render: func(id record.ID) ([]byte, error) { return []byte(id.String()), nil }},
	)
	if k.ID != (record.ID{Epoch: j.Epoch(), Sequence: 2}) {
		t.Fatalf("id is %v", k.ID)
	}
	if err := k.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte{7}, record.MaxPiece)
	k2 := j.Append(record.Draft{
		Kind: record.KindPayload, Exchange: k.ID.Sequence, Direction: record.DirectionResponse, Flags: record.FlagHead,
		Piece: 3, Offset: 99, Session: "s-2", Body: piece,
	})
	if k2.ID != k.ID {
		t.Fatalf("id is %v, want the exchange's %v", k2.ID, k.ID)
	}
	if err := k2.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, j, outcome(k.ID.Sequence))
	mustClose(t, j)

	s := drain(t, j)
	var frames []record.Frame
	for _, it := range s.items[j.Epoch()] {
		if bytes.Contains(it.Frame.Raw(), []byte("canary-7f31")) {
			t.Errorf("record %d holds its body in plain", it.Frame.Sequence)
		}
		if it.Frame.Kind.Leaf() {
			frames = append(frames, it.Frame)
		}
	}
	want := []struct {
		kind     record.Kind
		exchange uint64
		class    string
		body     string
	}{
		{record.KindOpen, 0, "long", ""}, // the gateway's own rest longest
		{record.KindReceived, 2, "long", string(body)},
		{record.KindIntent, 2, "standard", k.ID.String()},
		{record.KindPayload, 2, "standard", string(piece)},
		{record.KindOutcome, 2, "standard", "{}"},
		{record.KindClose, 0, "long", ""},
	}
	if len(frames) != len(want) {
		t.Fatalf("%d records, want %d", len(frames), len(want))
	}
	for i, w := range want {
		f := frames[i]
		if f.Kind != w.kind || f.Exchange != w.exchange || f.Class != w.class || f.Sequence != uint64(i+1) {
			t.Errorf("record %d: %s of exchange %d, class %q", f.Sequence, f.Kind, f.Exchange, f.Class)
		}
		if got := string(s.plain[record.ID{Epoch: j.Epoch(), Sequence: f.Sequence}]); w.body != "" && got != w.body {
			t.Errorf("record %d: another body came back", f.Sequence)
		}
		if f.Time.Before(at.Add(-time.Minute)) || f.Time.After(time.Now()) {
			t.Errorf("record %d: time %v", f.Sequence, f.Time)
		}
		switch {
		case f.Class == "long" && !f.Expiry.IsZero():
			t.Errorf("record %d expires", f.Sequence)
		case f.Class == "standard" && (f.Expiry.Before(f.Time.Add(24*time.Hour)) || f.Expiry.After(f.Time.Add(24*time.Hour+time.Second))):
			t.Errorf("record %d expires at %v", f.Sequence, f.Expiry)
		}
	}
	if p := frames[3]; p.Direction != record.DirectionResponse || p.Flags != record.FlagHead || p.Piece != 3 || p.Offset != 99 {
		t.Errorf("payload header is %+v", p)
	}
	var o record.Open
	if err := record.Unmarshal(frames[0].Body, &o); err != nil || o.Gateway != "gw-1" || o.Version != "test" || o.Previous != nil {
		t.Errorf("open record is %+v, %v", o, err)
	}
	if err := j.Append(received("x")).Wait(testContext(t)); !errors.Is(err, record.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if j.Err() != nil {
		t.Errorf("err is %v", j.Err())
	}
}

func TestAppendRefuses(t *testing.T) {
	j := mustOpen(t, testConfig("/j", newMemFS()))
	defer mustClose(t, j)
	for name, c := range map[string]struct {
		draft record.Draft
		want  string
	}{
		"open":             {record.Draft{Kind: record.KindOpen}, "journal's own"},
		"close":            {record.Draft{Kind: record.KindClose}, "journal's own"},
		"key":              {record.Draft{Kind: record.KindKey}, "journal's own"},
		"checkpoint":       {record.Draft{Kind: record.KindCheckpoint}, "journal's own"},
		"kind zero":        {record.Draft{}, "journal's own"},
		"plain intent":     {record.Draft{Kind: record.KindIntent}, "needs a session"},
		"sealed heartbeat": {record.Draft{Kind: record.KindHeartbeat, Session: "s"}, "no session"},
		"plain access":     {record.Draft{Kind: record.KindAccess}, "sealed for a session"},
		"access within":    {record.Draft{Kind: record.KindAccess, Session: "s", Exchange: 1}, "no exchange but its own"},
		"class":            {record.Draft{Kind: record.KindIntent, Session: "s", Class: "nope"}, `"nope" has no retention`},
		"piece":            {record.Draft{Kind: record.KindPayload, Session: "s", Body: make([]byte, record.MaxPiece+1)}, "above the limit"},
		"body":             {record.Draft{Kind: record.KindIntent, Session: "s", Body: make([]byte, record.MaxBody+1)}, "above the limit"},
		"future exchange":  {record.Draft{Kind: record.KindOutcome, Session: "s", Exchange: 99}, "has not begun"},
	} {
		k := j.Append(received("fine"), c.draft)
		if err := k.Wait(testContext(t)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := j.Append().Wait(testContext(t)); err == nil {
		t.Error("no draft: no error")
	}
	if id := mustAppend(t, j, received("x")); id.Sequence != 2 {
		t.Errorf("refused appends consumed sequences: next was %d", id.Sequence)
	}
}

// TestAccessStandsAlone: an access record is its own exchange, and open to
// nobody's outcome.
func TestAccessStandsAlone(t *testing.T) {
	fs := newMemFS()
	j := mustOpen(t, testConfig("/j", fs))
	k := j.Append(received("x"), record.Draft{Kind: record.KindAccess, Session: "a", Body: []byte("{}")})
	if err := k.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n := j.Stats().Exchanges; n != 1 {
		t.Errorf("%d exchanges are open, want the received one alone", n)
	}
	mustClose(t, j)
	j = mustOpen(t, testConfig("/j", fs))
	mustClose(t, j)
	s := drain(t, j)
	access, interrupted := 0, 0
	for _, items := range s.items {
		for _, i := range items {
			switch i.Frame.Kind {
			case record.KindAccess:
				access++
				if i.Frame.Exchange != i.Frame.Sequence || i.Frame.Sequence != 3 {
					t.Errorf("access record %d is of exchange %d", i.Frame.Sequence, i.Frame.Exchange)
				}
			case record.KindOutcome:
				interrupted++
			}
		}
	}
	if access != 1 || interrupted != 1 {
		t.Errorf("%d access records and %d outcomes of recovery, want 1 of each", access, interrupted)
	}
}

func TestRenderFailureLeavesNoHole(t *testing.T) {
	c := testConfig("/j", newMemFS())
	c.Open = func() uint64 { panic("not while a caller may hold its locks") }
	j := mustOpen(t, c)
	broken := errors.New("secret-canary is in the way")
	k := j.Append(received("a"), record.Draft{Kind: record.KindIntent, Session: "s-1", Render: func(record.ID) ([]byte, error) { return nil, broken }})
	if err := k.Wait(testContext(t)); !errors.Is(err, broken) {
		t.Fatalf("ticket: %v", err)
	}
	k = j.Append(record.Draft{Kind: record.KindPayload, Session: "s-1", Render: func(record.ID) ([]byte, error) { return make([]byte, record.MaxPiece+1), nil }})
	if err := k.Wait(testContext(t)); err == nil || !strings.Contains(err.Error(), "above the limit") {
		t.Fatalf("ticket: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic of Render was swallowed")
			}
		}()
		j.Append(record.Draft{Kind: record.KindIntent, Session: "s-1", Render: func(record.ID) ([]byte, error) { panic("no") }})
	}()
	k = j.Append(record.Draft{Kind: record.KindIntent, Session: "s-1", Render: func(record.ID) ([]byte, error) { return make([]byte, 2<<20), nil }})
	if err := k.Wait(testContext(t)); !errors.Is(err, record.ErrFull) {
		t.Fatalf("ticket: %v", err)
	}
	if id := mustAppend(t, j, received("b")); id.Sequence != 7 {
		t.Fatalf("next sequence is %d", id.Sequence)
	}
	if n := j.Stats().Exchanges; n != 1 {
		t.Errorf("%d exchanges are open, want 1", n)
	}
	mustClose(t, j)
	s := drain(t, j)
	for n, want := range map[uint64]string{2: "rendering failed", 3: "rendering failed", 4: "too large", 5: "making it panicked", 6: "journal is full"} {
		id := record.ID{Epoch: j.Epoch(), Sequence: n}
		var h record.Heartbeat
		if err := record.Unmarshal(s.plain[id], &h); err != nil || s.kinds[id] != record.KindHeartbeat || h.Void != want {
			t.Errorf("record %d: %s %s, want a heartbeat with %q", n, s.kinds[id], s.plain[id], want)
		}
	}
	if st := j.Stats(); st.Queued != 0 || st.Waiters != 0 {
		t.Errorf("stats at the end: %+v", st)
	}
}

func TestLimit(t *testing.T) {
	c := testConfig("/j", newMemFS())
	c.Limit, c.Reserve, c.SegmentSize = 64<<10, 8<<10, 8<<10
	j := mustOpen(t, c)
	ctx := testContext(t)
	n := 0
	for {
		k := j.Append(received(strings.Repeat("x", 1000)))
		if err := k.Wait(ctx); err != nil {
			if !errors.Is(err, record.ErrFull) {
				t.Fatal(err)
			}
			break
		}
		n++
	}
	if n < 40 || n > 64 {
		t.Errorf("%d records of 1,000 bytes fit into 64 KiB", n)
	}
	if s := j.Stats(); s.Held > c.Limit || s.Full == 0 {
		t.Errorf("stats: %+v", s)
	}
	// One that is not reserved spoils the call.
	if err := j.Append(outcome(2), received(strings.Repeat("x", 1000))).Wait(ctx); !errors.Is(err, record.ErrFull) {
		t.Errorf("mixed append: %v", err)
	}
	if err := j.Append(outcome(2)).Wait(ctx); err != nil {
		t.Errorf("the reserve: %v", err)
	}
	for {
		if err := j.Append(outcome(2)).Wait(ctx); err != nil {
			if !errors.Is(err, record.ErrFull) {
				t.Fatal(err)
			}
			break
		}
	}
	s := j.Stats()
	if s.Held <= c.Limit || s.Held > c.Limit+c.Reserve {
		t.Errorf("held %d with the reserve used up", s.Held)
	}
	if err := j.Acknowledge(j.Epoch(), s.Last+1); err == nil {
		t.Error("an acknowledgement of what was never written is accepted")
	}
	if err := j.Acknowledge(j.Epoch(), s.Last); err != nil {
		t.Fatal(err)
	}
	if s := j.Stats(); s.Held > c.SegmentSize || s.Segments != 1 || s.Acked != s.Last {
		t.Errorf("after the acknowledgement: %+v", s)
	}
	mustAppend(t, j, received("again"))
	mustClose(t, j)
}

// A commit that is larger than a segment must not block a small journal for good.
func TestLimitAfterLargeCommit(t *testing.T) {
	c := testConfig("/j", newMemFS())
	c.Limit, c.Reserve, c.SegmentSize = 64<<10, 1, 8<<10
	j := mustOpen(t, c)
	mustAppend(t, j, record.Draft{Kind: record.KindReceived, Session: "s-1", Body: make([]byte, 60<<10)})
	big := received(strings.Repeat("x", 8<<10))
	if err := j.Append(big).Wait(testContext(t)); !errors.Is(err, record.ErrFull) {
		t.Fatalf("%v", err)
	}
	if err := j.Acknowledge(j.Epoch(), j.Stats().Last); err != nil {
		t.Fatal(err)
	}
	for stop := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := j.Append(big).Wait(testContext(t))
		if err == nil {
			break
		}
		if !errors.Is(err, record.ErrFull) || time.Now().After(stop) {
			t.Fatal(err)
		}
	}
	mustClose(t, j)
}

func TestReserveOutlivesHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig("/j", newMemFS())
		c.Limit, c.Reserve, c.SegmentSize, c.Heartbeat = 64<<10, 8<<10, 8<<10, time.Second
		j := mustOpen(t, c)
		for j.Append(received(strings.Repeat("x", 1000))).Wait(t.Context()) == nil {
		}
		time.Sleep(time.Hour)
		if s := j.Stats(); s.Held > c.Limit+c.Reserve/2 || s.Held < c.Limit {
			t.Errorf("held %d after an hour of heartbeats", s.Held)
		}
		if err := j.Append(outcome(2)).Wait(t.Context()); err != nil {
			t.Errorf("outcome: %v", err)
		}
		mustClose(t, j)
	})
}

func TestHeartbeatsAndCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testConfig("/j", newMemFS())
		c.Heartbeat, c.CutInterval, c.CutBytes = 20*time.Second, 5*time.Second, 1<<20
		c.Open = func() uint64 { return 7 }
		j := mustOpen(t, c)
		j.Refuse()
		j.Refuse()
		tail := j.Tail()
		defer tail.Close()
		next := func() record.Frame {
			for {
				it, err := tail.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if it.Frame.Kind != record.KindKey {
					return it.Frame
				}
			}
		}
		began := time.Now()
		expect := func(at time.Duration, kind record.Kind, sequence uint64, flags uint8) record.Frame {
			t.Helper()
			f := next()
			if f.Kind != kind || f.Sequence != sequence || f.Flags != flags || time.Since(began) != at {
				t.Fatalf("at %v: %s %d flags %d, want at %v: %s %d flags %d", time.Since(began), f.Kind, f.Sequence, f.Flags, at, kind, sequence, flags)
			}
			return f
		}
		expect(0, record.KindOpen, 1, 0)
		expect(0, record.KindCheckpoint, 1, 0)
		expect(5*time.Second, record.KindCheckpoint, 1, record.FlagCut) // a cut for what waits
		f := expect(20*time.Second, record.KindHeartbeat, 2, 0)
		var h record.Heartbeat
		if err := record.Unmarshal(f.Body, &h); err != nil || h.Open != 7 || h.Refused != 2 || h.Void != "" {
			t.Errorf("heartbeat is %+v, %v", h, err)
		}
		expect(20*time.Second, record.KindCheckpoint, 2, record.FlagCut) // the interval was over: at once
		expect(40*time.Second, record.KindHeartbeat, 3, 0)
		expect(40*time.Second, record.KindCheckpoint, 3, record.FlagCut)
		time.Sleep(time.Second)
		mustAppend(t, j, received("x"))
		expect(41*time.Second, record.KindReceived, 4, 0)
		expect(41*time.Second, record.KindCheckpoint, 4, 0)
		expect(45*time.Second, record.KindCheckpoint, 4, record.FlagCut)
		mustAppend(t, j, received(strings.Repeat("x", 1<<20-100000)))
		expect(45*time.Second, record.KindReceived, 5, 0)
		expect(45*time.Second, record.KindCheckpoint, 5, 0)
		if err := j.Acknowledge(j.Epoch(), 4); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		expect(45*time.Second, record.KindClose, 6, 0)
		expect(45*time.Second, record.KindCheckpoint, 6, record.FlagCut)
		if _, err := tail.Next(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestCutBytes(t *testing.T) {
	c := testConfig("/j", newMemFS())
	c.CutBytes = 10 << 10
	j := mustOpen(t, c)
	for range 40 {
		mustAppend(t, j, received(strings.Repeat("x", 1000)))
	}
	mustClose(t, j)
	cuts, since := 0, 0
	for _, it := range drain(t, j).items[j.Epoch()] {
		since += len(it.Frame.Raw())
		if it.Frame.Flags&record.FlagCut != 0 && it.Frame.Kind == record.KindCheckpoint {
			if since > 12<<10 {
				t.Errorf("%d bytes between cuts", since)
			}
			cuts, since = cuts+1, 0
		}
	}
	if cuts < 4 || cuts > 7 {
		t.Errorf("%d cuts", cuts)
	}
}

func TestTailWaitsAndEnds(t *testing.T) {
	j := mustOpen(t, testConfig("/j", newMemFS()))
	tail := j.Tail()
	ctx, cancel := context.WithTimeout(testContext(t), 20*time.Millisecond)
	defer cancel()
	for {
		_, err := tail.Next(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan uint64)
	go func() {
		defer close(got)
		for {
			it, err := tail.Next(testContext(t))
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				return
			}
			if it.Frame.Kind.Leaf() {
				got <- it.Frame.Sequence
			}
		}
	}()
	for n := range uint64(50) { // over several segments
		mustAppend(t, j, received(strings.Repeat("x", 500)))
		if s := <-got; s != n+2 {
			t.Fatalf("got %d", s)
		}
	}
	go func() {
		if err := j.Finish(testContext(t), "stop"); err != nil {
			t.Error(err)
		}
	}()
	if s := <-got; s != 52 {
		t.Fatalf("got %d", s)
	}
	if _, more := <-got; more {
		t.Fatal("more after the close record")
	}
	// Between Finish and Close what is left can still be acknowledged.
	if err := j.Acknowledge(j.Epoch(), 52); err != nil {
		t.Fatal(err)
	}
	if s := j.Stats(); s.Segments != 1 {
		t.Errorf("%d segments", s.Segments)
	}
	mustClose(t, j)
	if err := j.Acknowledge(j.Epoch(), 52); !errors.Is(err, record.ErrClosed) {
		t.Errorf("acknowledge after close: %v", err)
	}
}

func TestTailStartsBehindAcknowledged(t *testing.T) {
	j := mustOpen(t, testConfig("/j", newMemFS()))
	old := j.Tail()
	if _, err := old.Next(testContext(t)); err != nil { // it stands in a segment that is freed
		t.Fatal(err)
	}
	for range 30 {
		mustAppend(t, j, received(strings.Repeat("x", 1000)))
	}
	if err := j.Acknowledge(j.Epoch(), 20); err != nil {
		t.Fatal(err)
	}
	for _, tail := range []*Tail{j.Tail(), old} {
		for {
			it, err := tail.Next(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if it.Frame.Kind != record.KindKey {
				if it.Frame.Sequence != 21 || !it.Frame.Kind.Leaf() {
					t.Errorf("starts with %s %d", it.Frame.Kind, it.Frame.Sequence)
				}
				break
			}
		}
	}
	mustClose(t, j)
}

func TestRecoveryCitesAndCloses(t *testing.T) {
	fs := newMemFS()
	j := mustOpen(t, testConfig("/j", fs))
	first := j.Epoch()
	a := mustAppend(t, j, record.Draft{Kind: record.KindReceived, Session: "s-1", Class: "short", Body: []byte("a")})
	expiry := time.Now().Add(time.Hour)
	b := mustAppend(t, j, record.Draft{Kind: record.KindIntent, Session: "s-1", Body: []byte("b")})
	mustAppend(t, j, outcome(b.Sequence))
	// Segments that hold the beginning of the open exchange are freed.
	for range 30 {
		mustAppend(t, j, record.Draft{Kind: record.KindPayload, Exchange: a.Sequence, Session: "s-1", Body: make([]byte, 1000)})
	}
	if err := j.Acknowledge(first, 25); err != nil {
		t.Fatal(err)
	}

	fs = fs.crash(loseAll, nil)
	cfg := testConfig("/j", fs)
	cfg.Retention = map[string]time.Duration{"standard": 24 * time.Hour} // "short" is gone
	j = mustOpen(t, cfg)
	second := j.Epoch()
	if n := j.Stats().Last; n != 2 {
		t.Errorf("%d records after recovery, want open and one outcome", n)
	}
	fs = fs.crash(loseAll, nil) // at once again: nothing is closed twice

	j = mustOpen(t, testConfig("/j", fs))
	third := j.Epoch()
	mustClose(t, j)

	s := drain(t, j)
	if len(s.epochs) != 3 || s.epochs[0] != first || s.epochs[1] != second || s.epochs[2] != third {
		t.Fatalf("epochs are %v", s.epochs)
	}
	if n := s.closed[a.String()]; n != 1 || len(s.closed) != 1 {
		t.Errorf("interrupted outcomes: %v, want one for %s", s.closed, a)
	}
	for _, it := range s.items[second] {
		f := it.Frame
		if f.Kind == record.KindOutcome && (f.Class != "short" || f.Exchange != f.Sequence || f.Expiry.Sub(expiry).Abs() > 10*time.Second) {
			t.Errorf("outcome of class %q, exchange %d, expiry %v", f.Class, f.Exchange, f.Expiry)
		}
	}
	for e, prev := range map[record.Epoch]record.Epoch{second: first, third: second} {
		var o record.Open
		if err := record.Unmarshal(s.plain[record.ID{Epoch: e, Sequence: 1}], &o); err != nil || o.Previous == nil {
			t.Fatalf("open of %s: %+v, %v", e, o, err)
		}
		items := s.items[prev]
		end := items[len(items)-1].Frame
		stated, err := record.Stated(&end)
		if err != nil {
			t.Fatal(err)
		}
		if o.Previous.Root != fmt.Sprintf("%x", stated.Root[:]) || o.Previous.Epoch != prev.String() || o.Previous.Sequence != end.Sequence || o.Previous.Head != fmt.Sprintf("%x", stated.Head[:]) || o.Previous.Closed {
			t.Errorf("open cites %+v", o.Previous)
		}
	}

	// Wholly acknowledged epochs disappear, and the last open still cites.
	j = mustOpen(t, testConfig("/j", fs))
	for _, e := range []record.Epoch{first, second, third} {
		if err := j.Acknowledge(e, s.items[e][len(s.items[e])-1].Frame.Sequence); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Acknowledge(first, 1); err != nil { // again, late
		t.Fatal(err)
	}
	if names, _ := fs.ReadDir("/j"); len(names) != 1 || names[0] != j.Epoch().String() {
		t.Errorf("folders left: %v", names)
	}
	mustClose(t, j)
	s = drain(t, j)
	var o record.Open
	if err := record.Unmarshal(s.plain[record.ID{Epoch: j.Epoch(), Sequence: 1}], &o); err != nil || o.Previous == nil || o.Previous.Epoch != third.String() || !o.Previous.Closed {
		t.Errorf("open is %+v, %v", o.Previous, err)
	}
}

// An exchange that begins, is freed but for an empty last segment, and is then
// interrupted.
func TestRecoveryOfEmptyLastSegment(t *testing.T) {
	fs := newMemFS()
	c := testConfig("/j", fs)
	c.Limit, c.SegmentSize = 64<<10, 8<<10
	j := mustOpen(t, c)
	a := mustAppend(t, j, record.Draft{Kind: record.KindReceived, Session: "s-1", Body: make([]byte, 20<<10)})
	if err := j.Acknowledge(j.Epoch(), a.Sequence); err != nil { // makes the writer begin an empty segment
		t.Fatal(err)
	}
	for stop := time.Now().Add(10 * time.Second); j.Stats().Held > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(stop) {
			t.Fatalf("the large segment is not freed: %+v", j.Stats())
		}
	}
	old := j.Epoch()
	fs = fs.crash(loseAll, nil)
	c.FS = fs
	j = mustOpen(t, c)
	mustClose(t, j)
	s := drain(t, j)
	if s.closed[a.String()] != 1 || len(s.epochs) != 1 {
		t.Errorf("interrupted: %v, epochs %v", s.closed, s.epochs)
	}
	if names, _ := fs.ReadDir("/j/" + old.String()); names != nil {
		t.Errorf("left of the acknowledged epoch: %v", names)
	}
	var o record.Open
	if err := record.Unmarshal(s.plain[record.ID{Epoch: j.Epoch(), Sequence: 1}], &o); err != nil || o.Previous == nil || o.Previous.Sequence != a.Sequence {
		t.Errorf("open is %+v, %v", o.Previous, err)
	}
}

// What recovery repaired is durable before anything of it can be shipped: the
// same segment must never have two forms.
func TestRecoveryIsFinal(t *testing.T) {
	fs := newMemFS()
	j := mustOpen(t, testConfig("/j", fs))
	first := j.Epoch()
	mustAppend(t, j, received("a"))
	name := j.live.segments[0].name
	fs = fs.crash(loseAll, nil)
	whole := append([]byte(nil), fs.names[name].data...)
	tail := bytes.TrimRight(whole, "\x00")
	fs.names[name].data = append(tail[:len(tail):len(tail)], strings.Repeat("torn write ", 30)...)

	j = mustOpen(t, testConfig("/j", fs))
	read := j.Tail()
	var shipped [][]byte
	for {
		it, err := read.Next(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if it.Epoch != first {
			break
		}
		shipped = append(shipped, it.Frame.Raw())
	}
	if all := bytes.Join(shipped, nil); !bytes.Equal(all, fs.names[name].data) || !bytes.HasPrefix(all, tail) || len(all) != len(tail)+len(shipped[len(shipped)-1]) {
		t.Errorf("the segment has %d bytes, of which %d were shipped, and had %d", len(fs.names[name].data), len(all), len(tail))
	}
	fs = fs.crash(loseAll, nil)
	j = mustOpen(t, testConfig("/j", fs))
	mustClose(t, j)
	s := drain(t, j)
	for i, it := range s.items[first] {
		if !bytes.Equal(it.Frame.Raw(), shipped[i]) {
			t.Errorf("frame %d (%s) has another form after a second crash", i, it.Frame.Kind)
		}
	}
	var o record.Open
	if err := record.Unmarshal(s.plain[record.ID{Epoch: s.epochs[1], Sequence: 1}], &o); err != nil || o.Previous == nil || o.Previous.Truncated != int64(len("torn write ")*30) {
		t.Errorf("open cites %+v, %v", o.Previous, err)
	}
}

func TestClockSetBack(t *testing.T) {
	fs := newMemFS()
	c := testConfig("/j", fs)
	j := mustOpen(t, c)
	mustClose(t, j)
	c.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	k := mustOpen(t, c)
	if j.Epoch().String() >= k.Epoch().String() {
		t.Error("the later epoch sorts before the earlier")
	}
	mustClose(t, k)
	drain(t, k)
}

func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no folder":    {func(c *Config) { c.Dir = "" }, "no folder"},
		"no gateway":   {func(c *Config) { c.Gateway = "" }, "no name"},
		"no tenant":    {func(c *Config) { c.Tenant = nil }, "no tenant"},
		"segment":      {func(c *Config) { c.SegmentSize = c.Limit }, "quarter"},
		"tiny segment": {func(c *Config) { c.SegmentSize = 10 }, "below"},
		"no class":     {func(c *Config) { c.Class = "nope" }, `"nope" has no retention`},
		"long class":   {func(c *Config) { c.Retention[strings.Repeat("x", 33)] = 0 }, "want 1 to 32"},
		"many classes": {func(c *Config) {
			for i := range record.MaxClasses {
				c.Retention[fmt.Sprint("c", i)] = 0
			}
		}, "at most 64"},
		"class's name": {func(c *Config) { c.Retention["a b"] = 0 }, "not allowed"},
		"negative":     {func(c *Config) { c.Retention["standard"] = -1 }, "negative"},
		"reserve":      {func(c *Config) { c.Reserve = -1 }, "negative"},
		"parent":       {func(c *Config) { c.Dir = "/nowhere/j"; c.FS = osFS{} }, "no such file"},
	} {
		cfg := testConfig("/j", newMemFS())
		c.change(&cfg)
		j, err := Open(testContext(t), cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if j != nil {
			mustClose(t, j)
		}
	}
	if _, err := (Config{Dir: "d", Gateway: "g", Class: "c", Retention: map[string]time.Duration{"c": 0}}).withDefaults(); err != nil {
		t.Errorf("defaults: %v", err)
	}
}

func TestLockedFolder(t *testing.T) {
	dir := t.TempDir() + "/j"
	j := mustOpen(t, testConfig(dir, nil))
	_, err := Open(testContext(t), testConfig(dir, nil))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second open: %v", err)
	}
	mustClose(t, j)
	mustClose(t, mustOpen(t, testConfig(dir, nil)))
}

func TestOpenIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fs := newMemFS()
	mustClose(t, mustOpen(t, testConfig("/j", fs)))
	if _, err := Open(ctx, testConfig("/j", fs)); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
	j := mustOpen(t, testConfig("/j", fs)) // the lock is free
	mustClose(t, j)
	drain(t, j)
}

func TestConcurrentAppends(t *testing.T) {
	c := testConfig(t.TempDir()+"/j", nil)
	c.Limit, c.SegmentSize, c.Sessions = 64<<20, 256<<10, 3
	j := mustOpen(t, c)
	const writers, each = 16, 60
	tail := j.Tail()
	done := make(chan *stored)
	go func() { done <- collect(t, tail, j.Epoch()) }()
	want := make([]map[uint64]string, writers)
	var wg sync.WaitGroup
	for w := range writers {
		want[w] = map[uint64]string{}
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range each {
				n := 1 + rnd.IntN(3)
				drafts := make([]record.Draft, n)
				for d := range drafts {
					body := fmt.Sprintf("%d/%d/%d%s", w, i, d, strings.Repeat(".", rnd.IntN(3000)))
					drafts[d] = record.Draft{Kind: record.KindIntent, Session: fmt.Sprint(rnd.IntN(20)), Body: []byte(body)}
					if rnd.IntN(2) == 0 {
						drafts[d].Render = func(record.ID) ([]byte, error) { return []byte(body), nil }
					}
				}
				k := j.Append(drafts...)
				if err := k.Wait(testContext(t)); err != nil {
					t.Error(err)
					return
				}
				for d := range drafts {
					want[w][k.ID.Sequence+uint64(d)] = string(drafts[d].Body)
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, j)
	s := <-done
	n := 0
	for w := range want {
		for seq, body := range want[w] {
			n++
			if got := s.plain[record.ID{Epoch: j.Epoch(), Sequence: seq}]; string(got) != body {
				t.Fatalf("record %d holds another body", seq)
			}
		}
	}
	st := j.Stats()
	if st.Records != uint64(n)+2 || st.Appended != st.Records || st.Waiters != 0 || st.Queued != 0 {
		t.Errorf("stats %+v, want %d records", st, n+2)
	}
	// The account of what is held equals what lies there.
	var used int64
	names, err := osFS{}.ReadDir(j.live.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if filepath.Ext(name) == ".wal" {
			f, err := osFS{}.Open(filepath.Join(j.live.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			size, err := f.Size()
			if err != nil {
				t.Fatal(err)
			}
			used += size
			f.Close()
		}
	}
	if used != st.Held {
		t.Errorf("held %d, on disk %d", st.Held, used)
	}
}

// A key whose record is acknowledged must not be handed out again: it may have
// been erased from the vault since.
func TestTailKeepsKeysOfAcknowledgedRecordsBack(t *testing.T) {
	j := mustOpen(t, testConfig(filepath.Join(t.TempDir(), "journal"), nil))
	defer mustClose(t, j)
	ctx := t.Context()
	put := func(session string) uint64 {
		tk := j.Append(record.Draft{Kind: record.KindIntent, Session: session, Body: []byte("{}")})
		if err := tk.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		return tk.ID.Sequence
	}
	first := put("one")
	put("two")
	if err := j.Acknowledge(j.Epoch(), first); err != nil {
		t.Fatal(err)
	}
	tail := j.Tail()
	defer tail.Close()
	keys := 0
	for {
		item, err := tail.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if item.Frame.Kind == record.KindKey {
			keys++
			continue
		}
		if item.Frame.Kind == record.KindIntent {
			if item.Frame.Sequence != first+1 {
				t.Errorf("record %d was acknowledged", item.Frame.Sequence)
			}
			break
		}
	}
	if keys != 1 {
		t.Errorf("%d keys before the record of the second session, want its own alone", keys)
	}
}

func TestTailUsesMemoryAgainOnlyWhenTold(t *testing.T) {
	j, err := Open(testContext(t), testConfig("/j", newMemFS()))
	if err != nil {
		t.Fatal(err)
	}
	var first uint64
	for i := range 6 {
		k := j.Append(record.Draft{Kind: record.KindReceived, Session: "s", Body: bytes.Repeat([]byte{byte('a' + i)}, 2000)})
		if err := k.Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if first == 0 {
			first = k.ID.Sequence
		}
	}
	if err := j.Close(testContext(t), "test"); err != nil {
		t.Fatal(err)
	}
	for _, recycle := range []bool{false, true} {
		tail := j.Tail()
		memory := map[*byte]bool{}
		var kept []record.Frame
		for {
			it, err := tail.Next(testContext(t))
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := record.Decode(it.Frame.Raw()); err != nil || got.Sequence != it.Frame.Sequence {
				t.Fatalf("record %d: %v", it.Frame.Sequence, err)
			}
			if recycle {
				tail.Recycle()
			}
			if it.Frame.Kind != record.KindReceived {
				continue
			}
			memory[&it.Frame.Raw()[0]] = true
			if !recycle {
				kept = append(kept, it.Frame)
			}
		}
		if want := map[bool]int{false: 6, true: 1}[recycle]; len(memory) != want {
			t.Errorf("recycle %v: the frames lay in %d places, want %d", recycle, len(memory), want)
		}
		for i, f := range kept {
			if f.Sequence != first+uint64(i) {
				t.Errorf("record %d was overwritten", i)
			}
			if _, _, err := record.Decode(f.Raw()); err != nil {
				t.Error(err)
			}
		}
		if err := tail.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBuffersAreKeptBySize(t *testing.T) {
	for _, n := range []int{1, 4 << 10, 5 << 10, record.Size("standard", record.MaxPiece), 10 << 20} {
		b := getBuffer(n)
		if len(b) != 0 || cap(b) < n {
			t.Errorf("%d: a buffer of %d", n, cap(b))
		}
		putBuffer(b)
		putBuffer(make([]byte, n)) // none of these sizes: not kept
		if b := getBuffer(n); cap(b) < n {
			t.Errorf("%d: a buffer of %d", n, cap(b))
		}
	}
}
