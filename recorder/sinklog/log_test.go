package sinklog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// constant is random bytes that are the same in every run.
type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var testKey = sync.OnceValue(func() *witness.Key {
	return must(witness.ParseKey(must(witness.NewKey("verbatim.dev/log/test", constant(7))).Private()))
})

// gateway makes segments of one record each.
type gateway struct {
	epoch record.Epoch
	key   *record.EpochKey
	tree  record.Tree
	head  record.ChainHead
	seq   uint64
}

func newGateway(n byte) *gateway {
	e := must(record.NewEpoch(testTime, constant(n)))
	return &gateway{epoch: e, key: must(record.NewEpochKey("gw", e, constant(n))), head: record.NewChain(e, "gw")}
}

// segment stores the next segment and returns its cut.
func (g *gateway) segment(v vault.Vault) cut {
	g.seq++
	f := record.Frame{Kind: record.KindHeartbeat, Sequence: g.seq, Time: testTime, Class: "standard", Body: []byte("{}")}
	must(f.Encode(nil))
	h := vault.Header{Gateway: "gw", Epoch: g.epoch, First: g.seq, Last: g.seq, Head: g.head, Class: "standard", Records: 1}
	g.head = g.head.Next(f.Leaf())
	g.tree.Add(f.Leaf())
	c := must(record.Checkpoint(record.Statement{Gateway: "gw", Epoch: g.epoch, Size: g.seq, Root: g.tree.Root(), Head: g.head, Time: testTime}, g.key.Signer(), true))
	must(c.Encode(nil))
	b := append(append(must(h.Append(nil)), f.Raw()...), c.Raw()...)
	name := must(vault.SegmentName(vault.Segment{Day: vault.Day(testTime), Gateway: "gw", Epoch: g.epoch, First: g.seq, Last: g.seq, Class: "standard"}))
	if err := v.Create(context.Background(), name, bytes.NewReader(b)); err != nil {
		panic(err)
	}
	return cut{Epoch: g.epoch, First: g.seq, Last: g.seq, Note: bytes.Clone(c.Body)}
}

// memory is a vault in memory.
type memory struct {
	mu      sync.Mutex
	objects map[string]string
}

func inMemory() *memory { return &memory{objects: map[string]string{}} }

func (m *memory) Create(_ context.Context, name string, r io.Reader) error {
	if err := vault.CheckName(name); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.objects[name]; ok && old != string(b) {
		return fmt.Errorf("create %s: %w", name, vault.ErrConflict)
	}
	m.objects[name] = string(b)
	return nil
}

func (m *memory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(strings.NewReader(b)), nil
}

func (m *memory) List(_ context.Context, prefix string) iter.Seq2[string, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := slices.Sorted(maps.Keys(m.objects))
	return func(yield func(string, error) bool) {
		for _, n := range names {
			if strings.HasPrefix(n, prefix) && !yield(n, nil) {
				return
			}
		}
	}
}

func (m *memory) clone() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{objects: maps.Clone(m.objects)}
}

func open(t testing.TB, v vault.Vault, more ...func(*Config)) *Log {
	t.Helper()
	l, err := tryOpen(v, more...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func tryOpen(v vault.Vault, more ...func(*Config)) (*Log, error) {
	c := Config{Vault: v, Key: testKey(), Now: func() time.Time { return testTime }, Interval: time.Hour}
	for _, f := range more {
		f(&c)
	}
	return Open(context.Background(), c)
}

// commit puts cuts into the log as Run does.
func commit(ctx context.Context, l *Log, cuts ...cut) error {
	l.pending = append(l.pending, cuts...)
	return l.commitAll(ctx, true)
}

// logOf reads a log from front to back in the plainest way, and returns its
// entries. All its checkpoints must fit.
func logOf(t testing.TB, m *memory) [][]byte {
	t.Helper()
	m = m.clone()
	var all [][]byte
	var last int64
	for name := range m.objects {
		if strings.HasPrefix(name, CheckpointPrefix) {
			last = max(last, must(ParseCheckpointName(name)))
		}
	}
	for n := int64(0); n*TileWidth < last; n++ {
		width := int(min(TileWidth, last-n*TileWidth))
		b, ok := m.objects[BundleName(n, width)]
		if !ok {
			t.Fatalf("%s is missing", BundleName(n, width))
		}
		entries, err := ParseBundle([]byte(b))
		if err != nil || len(entries) != width {
			t.Fatalf("bundle %d: %d entries, %v", n, len(entries), err)
		}
		all = append(all, entries...)
	}
	// The tree of package tlog, from the entries alone.
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(x []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(x))
		for i := range x {
			out[i] = stored[x[i]]
		}
		return out, nil
	})
	v := must(note.NewVerifier(testKey().LogKey()))
	seen := 0
	for n := range all {
		stored = append(stored, must(tlog.StoredHashes(int64(n), all[n], reader))...)
		b, ok := m.objects[CheckpointName(int64(n)+1)]
		if !ok {
			continue
		}
		seen++
		c, _, err := witness.OpenCheckpoint([]byte(b), v)
		if err != nil {
			t.Fatal(err)
		}
		if want := must(tlog.TreeHash(int64(n)+1, reader)); c.Hash != want || c.N != int64(n)+1 {
			t.Fatalf("checkpoint of size %d: states %d, %s, the entries give %s", n+1, c.N, c.Hash, want)
		}
		for _, tile := range tlog.NewTiles(TileHeight, 0, int64(n)+1) {
			if got := m.objects[TileName(tile)]; got != string(must(tlog.ReadTileData(tile, reader))) {
				t.Fatalf("size %d: tile %s is not what the entries give", n+1, TileName(tile))
			}
		}
	}
	if last > 0 && seen == 0 {
		t.Fatal("no checkpoint was looked at")
	}
	// Each epoch's cuts are there, once and in order.
	at := map[record.Epoch]uint64{}
	for i, e := range all {
		s := must(Entry(e))
		if s.Size <= at[s.Epoch] {
			t.Fatalf("entry %d: record %d of epoch %s after record %d", i, s.Size, s.Epoch, at[s.Epoch])
		}
		at[s.Epoch] = s.Size
	}
	return all
}

func TestLog(t *testing.T) {
	v := inMemory()
	l := open(t, v)
	a, b := newGateway(1), newGateway(2)
	want := 0
	for i := range 700 {
		cuts := []cut{a.segment(v)}
		if i%3 == 0 {
			cuts = append(cuts, b.segment(v))
		}
		if i%100 == 50 { // comes again
			cuts = append(cuts, cuts[0])
		}
		want += 1
		if i%3 == 0 {
			want++
		}
		if i%10 == 0 || i == 699 {
			if err := commit(t.Context(), l, append(l.pending, cuts...)...); err != nil {
				t.Fatal(err)
			}
		} else {
			l.pending = append(l.pending, cuts...)
		}
		if i%97 == 0 { // starts anew with nothing but the vault
			if err := l.commitAll(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			l = open(t, v)
			if err := l.begin(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := logOf(t, v); len(got) != want {
		t.Fatalf("%d entries, want %d", len(got), want)
	}
	if s := l.Stats(); s.Size != int64(want) || s.Pending != 0 {
		t.Fatalf("%+v", s)
	}
}

// What lies in the vault from before there was a log comes into it, with what
// comes while the start reads it.
func TestScan(t *testing.T) {
	v := inMemory()
	a, b := newGateway(1), newGateway(2)
	for range 600 {
		a.segment(v)
		b.segment(v)
	}
	live := a.segment(v)
	l := open(t, v, func(c *Config) { c.Interval = time.Millisecond })
	if err := l.append(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	for l.Stats().Size < 1201 {
		time.Sleep(time.Millisecond)
	}
	if err := l.append(t.Context(), b.segment(v)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := len(logOf(t, v)); got != 1202 {
		t.Fatalf("%d entries", got)
	}
	if err := l.append(t.Context(), a.segment(v)); err == nil {
		for range queueSize {
			if err = l.append(t.Context(), live); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrStopped) {
			t.Fatalf("a log that has ended takes cuts: %v", err)
		}
	}
}

// Another sink stored segments and died before it logged them.
func TestGap(t *testing.T) {
	v := inMemory()
	a := newGateway(1)
	l := open(t, v)
	if err := commit(t.Context(), l, a.segment(v)); err != nil {
		t.Fatal(err)
	}
	a.segment(v)
	a.segment(v)
	if err := commit(t.Context(), l, a.segment(v)); err != nil {
		t.Fatal(err)
	}
	if got := len(logOf(t, v)); got != 4 {
		t.Fatalf("%d entries", got)
	}
}

// Two sinks with one log: whoever is late takes the other's steps.
func TestTwoSinks(t *testing.T) {
	v := inMemory()
	logs := []*Log{open(t, v), open(t, v)}
	gws := []*gateway{newGateway(1), newGateway(2)}
	for i := range 300 {
		if err := commit(t.Context(), logs[i%2], gws[i%2].segment(v)); err != nil {
			t.Fatal(err)
		}
	}
	// At the very same time.
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for range 100 {
				if err := commit(context.Background(), logs[i], gws[i].segment(v)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(logOf(t, v)); got != 500 {
		t.Fatalf("%d entries", got)
	}
}

// The other sink takes the step between this one's look and its own: this one
// goes the other's way, then its own.
func TestStageTaken(t *testing.T) {
	v := inMemory()
	a, b := open(t, v), open(t, v)
	x, y := newGateway(1), newGateway(2)
	if err := commit(t.Context(), b, y.segment(v), y.segment(v)); err != nil {
		t.Fatal(err)
	}
	a.pending = []cut{x.segment(v)}
	for want := int64(2); want <= 3; want++ {
		if err := a.commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a.tree.N != want || len(a.pending) != int(3-want) {
			t.Fatalf("size %d, %d pending", a.tree.N, len(a.pending))
		}
	}
	if err := commit(t.Context(), b, y.segment(v)); err != nil {
		t.Fatal(err)
	}
	if got := len(logOf(t, v)); got != 4 {
		t.Fatalf("%d entries", got)
	}
}

var errFault = errors.New("injected fault")

// faultVault fails one call: before it is done, or after.
type faultVault struct {
	*memory
	failAt, calls int
	persisted     bool
	dead          bool // every call after the fault fails, as in a process that died
}

func (f *faultVault) fail() bool {
	f.calls++
	return f.calls == f.failAt || f.dead && f.calls > f.failAt && f.failAt > 0
}

func (f *faultVault) Create(ctx context.Context, name string, r io.Reader) error {
	if f.fail() {
		if f.persisted && f.calls == f.failAt {
			_ = f.memory.Create(ctx, name, r)
		}
		return errFault
	}
	return f.memory.Create(ctx, name, r)
}

func (f *faultVault) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if f.fail() {
		return nil, errFault
	}
	return f.memory.Open(ctx, name)
}

func (f *faultVault) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if f.fail() {
			yield("", errFault)
			return
		}
		f.memory.List(ctx, prefix)(yield)
	}
}

// Each call to the vault fails once, before it is done or after, and the
// process goes on or starts anew. Every checkpoint that was ever there is a
// prefix of what is there in the end, and nothing is missing or twice.
func TestFaults(t *testing.T) {
	for _, start := range []int{0, 251, 510} {
		base := inMemory()
		g := newGateway(1)
		l := open(t, base)
		for range start {
			l.pending = append(l.pending, g.segment(base))
		}
		if err := l.commitAll(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		faults := 0
		for _, persisted := range []bool{false, true} {
			for _, dead := range []bool{false, true} {
				for at := 1; ; at++ {
					v := &faultVault{memory: base.clone(), failAt: at, persisted: persisted, dead: dead}
					gw := *g
					run := func(v vault.Vault) error {
						l, err := tryOpen(v)
						if err != nil {
							return err
						}
						if err := l.begin2(t.Context()); err != nil {
							return err
						}
						for range 8 {
							if err := commit(t.Context(), l, gw.segment(v.(*faultVault).memory)); err != nil {
								if dead || permanent(err) {
									return err
								}
							}
						}
						l.cosign(t.Context())
						return l.commitAll(t.Context(), true)
					}
					err := run(v)
					if permanent(err) {
						t.Fatalf("start %d, fault %d: %v", start, at, err)
					}
					if v.calls < at {
						break
					}
					faults++
					roots := checkpoints(v.memory)
					// Restarted, with more that came meanwhile.
					gw.segment(v.memory)
					again := &faultVault{memory: v.memory}
					if err := run(again); err != nil {
						t.Fatalf("start %d, fault %d (persisted %t, dead %t): %v", start, at, persisted, dead, err)
					}
					all := logOf(t, v.memory)
					if len(all) != int(gw.seq) {
						t.Fatalf("start %d, fault %d (persisted %t, dead %t): %d entries of %d", start, at, persisted, dead, len(all), gw.seq)
					}
					for name, c := range roots {
						if v.objects[name] != c {
							t.Fatalf("start %d, fault %d: %s changed", start, at, name)
						}
					}
				}
			}
		}
		t.Logf("start %d: %d faults", start, faults)
	}
}

func (l *Log) append(ctx context.Context, c cut) error {
	return l.Append(ctx, c.Epoch, c.First, c.Last, c.Note)
}

// begin2 is begin without trying again.
func (l *Log) begin2(ctx context.Context) error {
	if err := l.index(ctx); err != nil {
		return err
	}
	return l.scan(ctx)
}

func checkpoints(m *memory) map[string]string {
	out := map[string]string{}
	for n, c := range m.objects {
		if strings.HasPrefix(n, Prefix) {
			out[n] = c
		}
	}
	return out
}

// What the vault holds is not trusted.
func TestBroken(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(m *memory)
		want string
	}{
		{"tile changed", func(m *memory) { flip(m, "log/tile/0/000.p/5") }, "inconsistent"},
		{"bundle changed", func(m *memory) { flip(m, "log/tile/entries/000.p/5") }, "not the one that the checkpoint is about"},
		{"bundle gone", func(m *memory) { delete(m.objects, "log/tile/entries/000.p/5") }, "does not exist"},
		{"checkpoint changed", func(m *memory) { flip(m, CheckpointName(5)) }, "another key"},
		{"checkpoint moved", func(m *memory) { m.objects[CheckpointName(9)] = m.objects[CheckpointName(5)] }, "states size 5"},
		{"another key", func(m *memory) {
			other := must(witness.NewKey("verbatim.dev/log/test", constant(8)))
			c := witness.Checkpoint{Origin: other.Name(), Tree: tlog.Tree{N: 6}}
			m.objects[CheckpointName(6)] = string(must(note.Sign(&note.Note{Text: c.Text()}, other.Signer())))
		}, "another key"},
		{"stage forged", func(m *memory) {
			s := m.objects[stageName(4)]
			m.objects[stageName(5)] = s
		}, "the checkpoint states 5 entries"},
		{"stage is nothing", func(m *memory) { m.objects[stageName(5)] = "x" }, "no stage"},
		{"stage is cut", func(m *memory) { m.objects[stageName(5)] = m.objects[stageName(4)][:300] }, "ends within an entry"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := inMemory()
			g := newGateway(1)
			l := open(t, m)
			for range 5 {
				if err := commit(t.Context(), l, g.segment(m)); err != nil {
					t.Fatal(err)
				}
			}
			tc.do(m)
			if _, err := tryOpen(m); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func flip(m *memory, name string) {
	b := []byte(m.objects[name])
	if len(b) == 0 {
		panic(name)
	}
	b[len(b)-5] ^= 1
	m.objects[name] = string(b)
}

// A conflict that is no race ends the log, and Append then says so.
func TestConflict(t *testing.T) {
	m := inMemory()
	g := newGateway(1)
	l := open(t, m)
	m.objects[BundleName(0, 1)] = "other"
	if err := l.append(t.Context(), g.segment(m)); err != nil {
		t.Fatal(err)
	}
	var alarms []string
	l.c.Alarm = func(err error) { alarms = append(alarms, err.Error()) }
	if err := l.Run(t.Context()); !errors.Is(err, vault.ErrConflict) {
		t.Fatal(err)
	}
	if err := l.append(t.Context(), g.segment(m)); !errors.Is(err, vault.ErrConflict) {
		t.Fatal(err)
	}
	if len(alarms) != 1 || l.Stats().Alarms != 1 {
		t.Fatalf("alarms: %q", alarms)
	}
}

// newWitness serves a witness of the test's log.
func newWitness(t testing.TB, name string, n byte) (*witness.Witness, *witness.Client, *httptest.Server) {
	t.Helper()
	k := must(witness.NewKey(name, constant(n)))
	state := filepath.Join(t.TempDir(), "state")
	if err := witness.CreateState(state, k); err != nil {
		t.Fatal(err)
	}
	w, err := witness.Open(witness.Config{Key: k, Logs: []note.Verifier{must(note.NewVerifier(testKey().LogKey()))}, State: state})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	s := httptest.NewServer(w)
	t.Cleanup(s.Close)
	return w, must(witness.NewClient(s.URL, k.WitnessKey(), nil)), s
}

func TestWitnesses(t *testing.T) {
	m := inMemory()
	g := newGateway(1)
	_, c1, _ := newWitness(t, "w1", 21)
	_, c2, s2 := newWitness(t, "w2", 22)
	now := testTime
	var alarms []string
	config := func(c *Config) {
		c.Witnesses, c.Quorum = []*witness.Client{c1, c2}, 2
		c.Now = func() time.Time { now = now.Add(time.Second); return now }
		c.Alarm = func(err error) { alarms = append(alarms, err.Error()) }
	}
	l := open(t, m, config)
	latest := func() (signed string) {
		for _, n := range slices.Sorted(maps.Keys(m.objects)) {
			if strings.HasPrefix(n, CosignedPrefix) {
				signed = m.objects[n]
			}
		}
		return signed
	}
	signers := func(signed string) int {
		t.Helper()
		v := must(note.NewVerifier(testKey().LogKey()))
		_, n, err := witness.OpenCheckpoint([]byte(signed), v, must(witness.NewTimes(testKey().LogKey())), c1.Verifier(), c2.Verifier())
		if err != nil {
			t.Fatal(err)
		}
		return len(n.Sigs)
	}
	l.cosign(t.Context()) // an empty log
	if n := signers(latest()); n != 4 {
		t.Fatalf("%d signatures", n)
	}
	for range 300 {
		l.pending = append(l.pending, g.segment(m))
	}
	if err := l.work(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for range 3 { // idle
		if err := l.work(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	if n := signers(latest()); n != 4 || l.Stats().CosignedSize != 300 || len(alarms) != 0 {
		t.Fatalf("%d signatures, %+v, %q", n, l.Stats(), alarms)
	}
	// One witness is down: an alarm once, and the log goes on.
	s2.Close()
	for range 3 {
		if err := commit(t.Context(), l, g.segment(m)); err != nil {
			t.Fatal(err)
		}
		l.cosign(t.Context())
	}
	s := l.Stats()
	if n := signers(latest()); n != 3 || s.WitnessFailures != 3 || s.QuorumMissed != 3 || s.Size != 303 || s.CosignedSize != 300 || len(alarms) != 2 {
		t.Fatalf("%d signatures, %+v, %q", n, s, alarms)
	}
	// A log that starts anew does not know how far the witness is, and learns it.
	_, c3, s3 := newWitness(t, "w3", 23)
	defer s3.Close()
	for _, to := range []int{1, 2} {
		l = open(t, m, func(c *Config) {
			config(c)
			c.Witnesses = []*witness.Client{c1, must(witness.NewClient(s3.URL, c3.Verifier().String(), nil))}
		})
		if err := l.begin2(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := commit(t.Context(), l, g.segment(m)); err != nil {
			t.Fatal(err)
		}
		l.cosign(t.Context())
		if s := l.Stats(); s.QuorumMissed != 0 || s.CosignedSize != int64(303+to) {
			t.Fatalf("%+v", s)
		}
	}
}

// The vault is rolled back: the log goes another way, which the witness does
// not cosign.
func TestRolledBack(t *testing.T) {
	m := inMemory()
	g := newGateway(1)
	w, c1, _ := newWitness(t, "w1", 21)
	with := func(c *Config) { c.Witnesses = []*witness.Client{c1} }
	l := open(t, m, with)
	for range 3 {
		if err := commit(t.Context(), l, g.segment(m)); err != nil {
			t.Fatal(err)
		}
	}
	back := m.clone()
	old := *g
	for range 3 {
		if err := commit(t.Context(), l, g.segment(m)); err != nil {
			t.Fatal(err)
		}
	}
	l.cosign(t.Context())
	before := w.Stats()

	// As it was: the witness has seen more.
	l = open(t, back, with)
	if err := l.begin2(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.cosign(t.Context())
	if s := l.Stats(); s.Forks != 1 || s.Alarms != 2 {
		t.Fatalf("%+v", s)
	}
	// Other entries up to the same size, and beyond it.
	other := newGateway(9)
	for range 3 {
		if err := commit(t.Context(), l, other.segment(back)); err != nil {
			t.Fatal(err)
		}
	}
	l.cosign(t.Context())
	if s := l.Stats(); s.Forks != 2 {
		t.Fatalf("%+v", s)
	}
	if s := w.Stats(); s.Forks != 1 {
		t.Fatalf("%+v", s)
	}
	if err := commit(t.Context(), l, old.segment(back)); err != nil {
		t.Fatal(err)
	}
	l.cosign(t.Context())
	if s := l.Stats(); s.Forks != 3 || w.Stats().Cosigned != before.Cosigned {
		t.Fatalf("%+v", s)
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		CheckpointName(70000):                               "log/checkpoint/00000000000000070000",
		CosignedName(5, 1700000000123456789):                "log/cosigned/00000000000000000005-01700000000123456789",
		stageName(5):                                        "log/stage/00000000000000000005",
		TileName(tlog.Tile{H: 8, L: 0, N: 273, W: 112}):     "log/tile/0/273.p/112",
		TileName(tlog.Tile{H: 8, L: 2, N: 1234067, W: 256}): "log/tile/2/x001/x234/067",
		BundleName(1234067, 256):                            "log/tile/entries/x001/x234/067",
		BundleName(0, 1):                                    "log/tile/entries/000.p/1",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if err := vault.CheckName(got); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "log/checkpoint/5", "log/checkpoint/-0000000000000000005", "log/cosigned/00000000000000000005"} {
		if _, err := ParseCheckpointName(bad); err == nil {
			t.Errorf("%q is taken for a checkpoint's name", bad)
		}
		if _, _, err := ParseCosignedName(bad); err == nil {
			t.Errorf("%q is taken for a cosigned checkpoint's name", bad)
		}
	}
}

func FuzzStage(f *testing.F) {
	m := inMemory()
	g := newGateway(1)
	l := must(tryOpen(m))
	if err := commit(context.Background(), l, g.segment(m), g.segment(m)); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(m.objects[stageName(0)]))
	f.Add([]byte("verbatim log stage 1 0\n\x00\x01a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		signed, entries, err := parseStage(b)
		if err != nil {
			return
		}
		s := &step{signed: signed, entries: entries}
		if _, e2, err := parseStage(s.marshal()); err != nil || !slices.EqualFunc(entries, e2, bytes.Equal) {
			t.Fatalf("not the same again: %v", err)
		}
		for _, e := range entries {
			_, _ = Entry(e)
		}
	})
}
