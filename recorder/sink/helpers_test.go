package sink

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

var testTime = time.Date(2026, 3, 1, 23, 59, 50, 0, time.UTC)

func now() time.Time { return testTime.Add(time.Hour) }

func testEpoch(t testing.TB, n byte) record.Epoch {
	t.Helper()
	e, err := record.NewEpoch(testTime, &constant{n})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

type constant struct{ b byte }

func (c *constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.b
	}
	return len(p), nil
}

// script says what an epoch's journal looks like.
type script struct {
	seed    uint64
	epoch   record.Epoch
	batches int
	body    int // largest body in bytes
	perCut  int // batches to a segment
	// classes are the records' retention classes, "standard" alone where empty.
	classes []string
	// recovered makes the last checkpoint one of a recovery: a cut behind a
	// checkpoint that was none, for the same record.
	recovered bool
}

// frames returns the epoch's frames as a journal gives them.
func (s script) frames(t testing.TB) []record.Frame {
	t.Helper()
	r := rand.New(rand.NewPCG(s.seed, 1))
	bytes := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	head := record.NewChain(s.epoch, "gw")
	var seq uint64
	var all []record.Frame
	add := func(f record.Frame) record.Frame {
		if _, err := f.Encode(nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
		return f
	}
	var key record.KeyID
	at := testTime
	for b := range s.batches {
		at = at.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
		if b == 0 || r.IntN(4) == 0 {
			copy(key[:], bytes(16))
			add(record.Frame{Kind: record.KindKey, Key: key, Time: at, Body: bytes(80)})
		}
		for range 1 + r.IntN(5) {
			seq++
			f := record.Frame{Kind: record.KindPayload, Sequence: seq, Exchange: 1, Time: at, Key: key, Class: "standard", Expiry: at.AddDate(1, 0, 0).Truncate(time.Second), Body: bytes(1 + r.IntN(s.body))}
			if n := len(s.classes); n > 0 {
				i := r.IntN(n)
				f.Class, f.Expiry = s.classes[i], at.AddDate(i+1, 0, 0).Truncate(time.Second)
			}
			if seq == 1 {
				f.Kind = record.KindOpen
			}
			f = add(f)
			head = head.Next(f.Leaf())
		}
		last := b == s.batches-1
		add(recordtest.Checkpoint(seq, head, at, !s.recovered && last || !last && b%s.perCut == s.perCut-1))
		if last && s.recovered {
			add(recordtest.Checkpoint(seq, head, at.Add(time.Hour), true))
		}
	}
	return all
}

// reference makes of the frames what the vault must hold, in the plainest way.
// Longest is the class of the segments, empty for the one that expires last.
func reference(t testing.TB, e record.Epoch, frames []record.Frame, longest ...string) map[string]string {
	t.Helper()
	want := map[string]string{}
	head := record.NewChain(e, "gw")
	from := head
	var segment []record.Frame
	put := func() {
		count, last := map[string]uint64{}, map[string]time.Time{}
		for _, f := range segment {
			if f.Kind != record.KindCheckpoint {
				count[f.Class]++
				if was, ok := last[f.Class]; !ok || f.Expiry.After(was) {
					last[f.Class] = f.Expiry
				}
			}
		}
		classes := slices.Sorted(maps.Keys(last))
		main := classes[0]
		for _, c := range classes {
			if last[c].After(last[main]) {
				main = c
			}
		}
		if len(longest) > 0 {
			main = longest[0]
			if count[main] == 0 {
				classes = append(classes, main)
				slices.Sort(classes)
			}
		}
		first, end := segment[0].Sequence, segment[len(segment)-1].Sequence
		for _, c := range classes {
			id := vault.Segment{Day: segment[0].Time.Format("2006-01-02"), Gateway: "gw", Epoch: e, First: first, Last: end, Class: c, Part: c != main}
			h := vault.Header{Gateway: "gw", Epoch: e, First: first, Last: end, Head: from, Class: c, Part: c != main, Records: count[c], Expires: last[c]}
			if c == main {
				h.Classes = slices.DeleteFunc(slices.Clone(classes), func(o string) bool { return o == main })
			}
			b, err := h.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range segment {
				switch {
				case f.Kind == record.KindCheckpoint && c != main:
				case f.Kind == record.KindCheckpoint, f.Class == c:
					b = append(b, f.Raw()...)
				case c == main:
					b = vault.AppendAbsence(b, &f, slices.Index(h.Classes, f.Class))
				}
			}
			name, err := vault.SegmentName(id)
			if err != nil {
				t.Fatal(err)
			}
			want[name] = string(b)
		}
	}
	for _, f := range frames {
		if f.Kind == record.KindKey {
			want[vault.KeyName(e, f.Key)] = string(f.Raw())
			continue
		}
		if f.Kind == record.KindOpen {
			want[vault.EpochName("gw", e)] = string(f.Raw()) // it outlives its segment
		}
		segment = append(segment, f)
		if f.Kind != record.KindCheckpoint {
			head = head.Next(sha256.Sum256(f.Raw()))
			continue
		}
		if f.Flags&record.FlagCut != 0 {
			put()
			segment, from = nil, head
		}
	}
	return want
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
	if maps.Equal(got, want) {
		return
	}
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

func folder(t testing.TB, dir string) *vault.Folder {
	t.Helper()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func newSink(t testing.TB, c Config) *Sink {
	t.Helper()
	if c.Spool == "" {
		c.Spool = filepath.Join(t.TempDir(), "spool")
	}
	if c.Now == nil {
		c.Now = now
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// feed gives frames to a stream, as the transport does: nothing that is held.
func feed(s *Sink, e record.Epoch, frames []record.Frame) (held uint64, err error) {
	st, err := s.Begin(context.Background(), "gw", e)
	if err != nil {
		return 0, err
	}
	defer st.End()
	held = st.Held()
	skip := held
	var keys []record.Frame
	for _, f := range frames {
		if f.Kind == record.KindKey {
			keys = append(keys, f)
			continue
		}
		if f.Sequence > skip {
			for _, f := range append(keys, f) {
				if held, err = st.Take(context.Background(), f.Raw()); err != nil {
					return held, err
				}
			}
		}
		keys = nil
	}
	return held, nil
}

// memory is a vault in memory, for tests that fill many.
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

var errFault = errors.New("injected fault")

// faultVault counts the calls that can fail, and fails one: before it is done,
// or after.
type faultVault struct {
	vault.Vault
	failAt    int
	persisted bool

	mu    sync.Mutex
	calls []string
}

func (f *faultVault) call(what string) (fail bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return len(f.calls) == f.failAt
}

func (f *faultVault) Create(ctx context.Context, name string, r io.Reader) error {
	if f.call("create " + name) {
		if f.persisted {
			_ = f.Vault.Create(ctx, name, r)
		}
		return errFault
	}
	return f.Vault.Create(ctx, name, r)
}

func (f *faultVault) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if f.call("open " + name) {
		return nil, errFault
	}
	r, err := f.Vault.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &faultReader{r, f}, nil
}

func (f *faultVault) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if f.call("list " + prefix) {
			yield("", errFault)
			return
		}
		f.Vault.List(ctx, prefix)(yield)
	}
}

type faultReader struct {
	io.ReadCloser
	f *faultVault
}

func (r *faultReader) Read(p []byte) (int, error) {
	if r.f.call("read") {
		return 0, errFault
	}
	return r.ReadCloser.Read(p)
}

var _ transport.Receiver = (*Sink)(nil)
