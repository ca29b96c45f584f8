package sink

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// openedAt is an epoch that begins so many seconds later than the test's.
func openedAt(t testing.TB, seconds int) record.Epoch {
	t.Helper()
	e, err := record.NewEpoch(testTime.Add(time.Duration(seconds)*time.Second), &constant{byte(seconds)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// opening is an epoch of one open record, which cites the one before.
func opening(t testing.TB, e record.Epoch, previous *record.EpochEnd) []record.Frame {
	t.Helper()
	body, err := record.Marshal(record.Open{Gateway: "gw", Opened: testTime, Previous: previous})
	if err != nil {
		t.Fatal(err)
	}
	at := testTime.Add(time.Minute)
	f := record.Frame{Kind: record.KindOpen, Sequence: 1, Time: at, Class: "standard", Expiry: at.AddDate(1, 0, 0).Truncate(time.Second), Body: body}
	if _, err := f.Encode(nil); err != nil {
		t.Fatal(err)
	}
	cut := recordtest.Checkpoint(1, record.NewChain(e, "gw").Next(f.Leaf()), at, true)
	if _, err := cut.Encode(nil); err != nil {
		t.Fatal(err)
	}
	return []record.Frame{f, cut}
}

// lostAt is what came of an epoch up to a frame, and what a vault must hold of
// it in the end: the segments, the last one up to its last checkpoint.
func lostAt(t testing.TB, e record.Epoch, frames []record.Frame, n int) (came []record.Frame, want map[string]string, first, last uint64) {
	t.Helper()
	came = frames[:n]
	end, cut := -1, -1
	for i, f := range came {
		if f.Kind == record.KindCheckpoint {
			end = i
			if f.Flags&record.FlagCut != 0 {
				cut = i
			}
		}
	}
	kept := slices.Clone(came[:end+1])
	if end >= 0 {
		last = came[end].Sequence
	}
	if cut >= 0 {
		first = came[cut].Sequence
	}
	first++
	if end > cut {
		again, err := record.Recut(&came[end])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Encode(nil); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, again)
	} else {
		first = 0 // nothing to salvage
	}
	for len(kept) > 0 && kept[len(kept)-1].Kind == record.KindKey {
		kept = kept[:len(kept)-1]
	}
	want = reference(t, e, kept)
	for i, f := range came { // keys of what came behind, too; they come with a record
		if f.Kind == record.KindKey && slices.ContainsFunc(came[i:], func(f record.Frame) bool { return f.Kind.Leaf() }) {
			want[vault.KeyName(e, f.Key)] = string(f.Raw())
		}
	}
	return came, want, first, last
}

// noted adds the notes to what the vault must hold.
func noted(t testing.TB, want map[string]string, e record.Epoch, frames []record.Frame, first, last uint64, successor record.Epoch) {
	t.Helper()
	head := record.NewChain(e, "gw")
	for _, f := range frames {
		if f.Kind.Leaf() && f.Sequence <= last {
			head = head.Next(sha256.Sum256(f.Raw()))
		}
	}
	put := func(s vault.Salvage) {
		s.Version, s.Gateway, s.Epoch, s.Last, s.Head, s.Successor = 1, "gw", e.String(), last, vault.Hex(head), successor.String()
		name, err := s.Name()
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		want[name] = string(b)
	}
	if first > 0 {
		put(vault.Salvage{Kind: vault.SalvageCut, First: first})
	}
	if last > 0 {
		put(vault.Salvage{Kind: vault.SalvageEnd})
	}
}

// take begins a stream and gives it the frames.
func take(t testing.TB, s *Sink, e record.Epoch, frames []record.Frame) (transport.Stream, error) {
	t.Helper()
	st, err := s.Begin(t.Context(), "gw", e)
	if err != nil {
		return nil, err
	}
	var keys []record.Frame
	held := st.Held()
	for _, f := range frames {
		if f.Kind == record.KindKey {
			keys = append(keys, f)
			continue
		}
		if f.Sequence > held {
			for _, f := range append(keys, f) {
				if _, err := st.Take(t.Context(), f.Raw()); err != nil {
					st.End()
					return nil, err
				}
			}
		}
		keys = nil
	}
	return st, nil
}

// salvageAll gives a sink what came, and has it salvaged.
func salvageAll(t testing.TB, s *Sink, e record.Epoch, frames []record.Frame, aside bool) (transport.Salvage, error) {
	t.Helper()
	st, err := take(t, s, e, frames)
	if err != nil {
		return transport.Salvage{}, err
	}
	defer st.End()
	return st.(transport.Salvager).Salvage(t.Context(), aside)
}

var lostScript = script{seed: 31, batches: 14, body: 200, perCut: 4}

// An epoch is lost behind each of its frames. What a checkpoint confirmed comes
// into the vault, in one way only; and when the gateway comes back after all, so
// does the rest, behind it.
func TestSalvageBehindEachFrame(t *testing.T) {
	for _, classes := range [][]string{nil, {"short", "standard", "long"}} {
		sc := lostScript
		sc.epoch, sc.classes = openedAt(t, 1), classes
		frames := sc.frames(t)
		heir := openedAt(t, 9)
		for n := range len(frames) + 1 {
			came, want, first, last := lostAt(t, sc.epoch, frames, n)
			v := inMemory()
			s := newSink(t, Config{Vault: v})
			if r, err := salvageAll(t, s, sc.epoch, came, false); err != nil || r.Over {
				t.Fatalf("%d frames: over before anything says so: %+v, %v", n, r, err)
			}
			if _, err := feed(s, heir, opening(t, heir, nil)); err != nil {
				t.Fatal(err)
			}
			maps.Copy(want, reference(t, heir, opening(t, heir, nil)))
			for again := range 2 {
				r, err := salvageAll(t, s, sc.epoch, came, false)
				if err != nil || !r.Over || r.Held != last || r.Done != (last > 0) {
					t.Fatalf("%d frames, time %d: %+v, %v, want %d", n, again, r, err, last)
				}
			}
			noted(t, want, sc.epoch, frames, first, last, heir)
			same(t, snapshot(t, v), want)
			if lost, err := s.Lost(t.Context(), "gw", heir); err != nil || len(lost) != 0 {
				t.Fatalf("%d frames: still lost: %v, %v", n, lost, err)
			}
			// It was not lost.
			if held, err := feed(newSink(t, Config{Vault: v}), sc.epoch, frames); err != nil || held != frames[len(frames)-1].Sequence {
				t.Fatalf("%d frames: came back: %d, %v", n, held, err)
			}
			dense(t, v, sc.epoch, frames[len(frames)-1].Sequence)
		}
	}
}

// dense fails where segments of the epoch overlap or leave something out.
func dense(t testing.TB, v vault.Vault, e record.Epoch, last uint64) {
	t.Helper()
	var all []vault.Segment
	for name, err := range v.List(t.Context(), vault.SegmentsPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		if id, err := vault.ParseSegmentName(name); err != nil {
			t.Fatal(err)
		} else if id.Epoch == e && !id.Part {
			all = append(all, id)
			if _, _, err := checkSegment(t.Context(), v, name, id); err != nil {
				t.Error(err)
			}
		}
	}
	slices.SortFunc(all, func(a, b vault.Segment) int { return int(a.First) - int(b.First) })
	next := uint64(1)
	for _, id := range all {
		if id.First != next {
			t.Fatalf("segments %+v", all)
		}
		next = id.Last + 1
	}
	if next != last+1 {
		t.Fatalf("segments end at %d, want %d", next-1, last)
	}
}

// Every call to the vault within a salvage fails, and fails although it was
// done; the process goes on or another begins. The vault ends up the same.
func TestSalvageFaults(t *testing.T) {
	sc := lostScript
	sc.epoch, sc.classes = openedAt(t, 1), []string{"short", "standard"}
	frames := sc.frames(t)
	heir := openedAt(t, 9)
	n := len(frames) - 3
	came, want, first, last := lostAt(t, sc.epoch, frames, n)
	if first == 0 || came[len(came)-1].Kind == record.KindCheckpoint {
		t.Fatal("the test's frames do not end behind a checkpoint")
	}
	rest := len(came) - 1
	for came[rest].Kind != record.KindCheckpoint {
		rest--
	}
	maps.Copy(want, reference(t, heir, opening(t, heir, nil)))
	noted(t, want, sc.epoch, frames, first, last, heir)
	var aside []byte
	var from, to uint64
	for _, f := range came[rest+1:] {
		if f.Kind.Leaf() {
			aside = append(aside, f.Raw()...)
			if from == 0 {
				from = f.Sequence
			}
			to = f.Sequence
		}
	}
	want[vault.AsideName("gw", sc.epoch, from, to, aside)] = string(aside)
	run := func(t *testing.T, v vault.Vault, restart bool) (failed bool) {
		s := newSink(t, Config{Vault: v})
		for tries := 0; ; tries++ {
			if tries > 6 {
				t.Fatal("does not recover")
			}
			_, err := feed(s, heir, opening(t, heir, nil))
			var r transport.Salvage
			if err == nil {
				r, err = salvageAll(t, s, sc.epoch, came, true)
			}
			if err == nil {
				if r.Held != last || !r.Done {
					t.Fatalf("%+v", r)
				}
				return failed
			}
			if !errors.Is(err, errFault) || errors.Is(err, transport.ErrRefused) || errors.Is(err, transport.ErrStop) {
				t.Fatalf("the fault became %v", err)
			}
			failed = true
			if restart {
				s = newSink(t, Config{Vault: v})
			}
		}
	}
	probe := &faultVault{Vault: inMemory()}
	run(t, probe, false)
	for at := 1; at <= len(probe.calls); at++ {
		for _, persisted := range []bool{false, true} {
			for _, restart := range []bool{false, true} {
				v := inMemory()
				if !run(t, &faultVault{Vault: v, failAt: at, persisted: persisted}, restart) {
					t.Errorf("call %d, %s, did not fail", at, probe.calls[at-1])
				}
				same(t, snapshot(t, v), want)
				if t.Failed() {
					t.Fatalf("call %d, %s, persisted=%t restart=%t", at, probe.calls[at-1], persisted, restart)
				}
			}
		}
	}
	t.Logf("%d calls", len(probe.calls))
}

// Two sinks got different parts of what came, and one gets the gateway's own cut
// in between. Whoever is first decides, and the other follows.
func TestSalvageByTwoSinks(t *testing.T) {
	sc := lostScript
	sc.epoch, sc.perCut = openedAt(t, 1), 100
	frames := sc.frames(t)
	heir := openedAt(t, 9)
	var ends []int // behind each checkpoint
	for i, f := range frames {
		if f.Kind == record.KindCheckpoint {
			ends = append(ends, i+1)
		}
	}
	last := frames[len(frames)-1].Sequence
	for _, c := range [][2]int{{3, 7}, {7, 3}, {5, 5}, {5, len(ends) - 1}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			v := inMemory()
			one, two := newSink(t, Config{Vault: v}), newSink(t, Config{Vault: v})
			if _, err := feed(one, heir, opening(t, heir, nil)); err != nil {
				t.Fatal(err)
			}
			a, err := take(t, one, sc.epoch, frames[:ends[c[0]]])
			if err != nil {
				t.Fatal(err)
			}
			b, err := take(t, two, sc.epoch, frames[:ends[min(c[1], len(ends)-2)]])
			if err != nil {
				t.Fatal(err)
			}
			if r, err := a.(transport.Salvager).Salvage(t.Context(), true); err != nil || !r.Done {
				t.Fatal(r, err)
			}
			cut := c[1] == len(ends)-1
			if cut { // the gateway's cut comes to the one that does not know
				for _, f := range frames[ends[len(ends)-2]:] {
					_, err = b.Take(t.Context(), f.Raw())
					if err != nil {
						break
					}
				}
			} else {
				_, err = b.(transport.Salvager).Salvage(t.Context(), true)
			}
			if fine := c[0] == c[1]; fine != (err == nil) && !(c[1] < c[0] && err == nil) || err != nil && !errors.Is(err, errDecided) {
				t.Fatalf("the second sink: %v", err)
			}
			b.End()
			if !cut {
				if r, err := salvageAll(t, two, sc.epoch, frames[:ends[max(c[0], c[1])]], true); err != nil || !r.Done {
					t.Fatal(r, err)
				}
				dense(t, v, sc.epoch, frames[ends[max(c[0], c[1])]-1].Sequence)
			}
			if held, err := feed(two, sc.epoch, frames); err != nil || held != last {
				t.Fatal(held, err)
			}
			dense(t, v, sc.epoch, last)
			if one.Stats().Alarms+two.Stats().Alarms != 0 {
				t.Error("an alarm was raised")
			}
		})
	}
}

// A decision was made and the sink died; the journal that comes is another one.
func TestSalvageForked(t *testing.T) {
	sc := lostScript
	sc.epoch, sc.perCut = openedAt(t, 1), 100
	frames := sc.frames(t)
	n := 0
	for i, f := range frames[:len(frames)-1] {
		if f.Kind == record.KindCheckpoint {
			n = i + 1
		}
	}
	_, want, first, last := lostAt(t, sc.epoch, frames, n)
	noted(t, want, sc.epoch, frames, first, last, openedAt(t, 9))
	v := inMemory()
	decision := vault.SalvageName("gw", sc.epoch, vault.SalvageCut, 1)
	v.objects[decision] = want[decision]
	if held, err := feed(newSink(t, Config{Vault: v}), sc.epoch, frames[:n]); err != nil || held != last {
		t.Fatalf("the decided cut was not made: %d, %v", held, err)
	}
	other := sc
	other.seed++
	for _, c := range []struct {
		note   string
		frames []record.Frame
	}{
		{want[decision], other.frames(t)},
		{strings.Replace(want[decision], `"head": "`, `"head": "00`, 1), nil}, // no note
		{otherHead(t, decision, want[decision]), frames},
	} {
		if c.frames == nil {
			c.frames = frames
		}
		testForked(t, sc.epoch, decision, c.note, c.frames)
	}
}

// otherHead is the note with another head at the same record.
func otherHead(t testing.TB, name, note string) string {
	t.Helper()
	n, err := vault.ParseSalvage(name, []byte(note))
	if err != nil {
		t.Fatal(err)
	}
	n.Head = vault.Hex(record.ChainHead{1})
	b, err := n.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func testForked(t *testing.T, e record.Epoch, decision, note string, frames []record.Frame) {
	t.Helper()
	v := inMemory()
	v.objects[decision] = note
	s := newSink(t, Config{Vault: v})
	_, err := feed(s, e, frames)
	if !errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), "salvaged up to record") && !strings.Contains(err.Error(), "hex digits") || s.Stats().Alarms != 1 {
		t.Fatalf("got %v", err)
	}
	for name := range snapshot(t, v) {
		if strings.HasPrefix(name, vault.SegmentsPrefix) {
			t.Errorf("%s was stored", name)
		}
	}
}

// What comes behind a gap is kept aside, and chained when the gap closes.
func TestAside(t *testing.T) {
	sc := lostScript
	sc.epoch, sc.perCut = openedAt(t, 1), 100
	frames := sc.frames(t)
	heir := openedAt(t, 9)
	v := inMemory()
	s := newSink(t, Config{Vault: v})
	if _, err := feed(s, heir, opening(t, heir, nil)); err != nil {
		t.Fatal(err)
	}
	var ends []int
	for i, f := range frames {
		if f.Kind == record.KindCheckpoint {
			ends = append(ends, i+1)
		}
	}
	st, err := take(t, s, sc.epoch, frames[:ends[2]])
	if err != nil {
		t.Fatal(err)
	}
	r, err := st.(transport.Salvager).Salvage(t.Context(), true)
	if err != nil || !r.Done || r.Held != frames[ends[2]-1].Sequence {
		t.Fatal(r, err)
	}
	var body []byte
	for _, f := range frames[ends[5]:ends[8]] {
		body = append(body, f.Raw()...)
	}
	for range 2 {
		if err := st.(transport.Salvager).Aside(t.Context(), body); err != nil {
			t.Fatal(err)
		}
	}
	st.End()
	for name, content := range snapshot(t, v) {
		o, err := vault.ParseSalvageName(name)
		if err != nil || o.Kind != "" {
			continue
		}
		for _, f := range frames {
			if f.Kind == record.KindKey && strings.Contains(content, string(f.Raw())) {
				t.Error("a wrapped key lies where it cannot be erased")
			}
		}
	}
	for _, f := range frames[ends[5]:ends[8]] {
		if f.Kind == record.KindKey && v.objects[vault.KeyName(sc.epoch, f.Key)] == "" {
			t.Error("a key is missing")
		}
	}
	// The gap closes after all.
	if r, err := salvageAll(t, s, sc.epoch, frames[:ends[5]], false); err != nil || r.Held != frames[ends[8]-1].Sequence {
		t.Fatal(r, err)
	}
	dense(t, v, sc.epoch, frames[ends[8]-1].Sequence)
	if err := take2(t, s, sc.epoch, []byte("no frame")); !errors.Is(err, transport.ErrRefused) {
		t.Errorf("foreign bytes: %v", err)
	}
}

func take2(t testing.TB, s *Sink, e record.Epoch, body []byte) error {
	t.Helper()
	st, err := s.Begin(t.Context(), "gw", e)
	if err != nil {
		t.Fatal(err)
	}
	defer st.End()
	return st.(transport.Salvager).Aside(t.Context(), body)
}

// When it is known that an epoch is over, and when not.
func TestOver(t *testing.T) {
	epoch := openedAt(t, 10)
	cite := func(seconds int) *record.EpochEnd {
		return &record.EpochEnd{Epoch: openedAt(t, seconds).String(), Sequence: 1}
	}
	for _, c := range []struct {
		name  string
		opens map[int]*record.EpochEnd // by when; what they cite
		order bool
		over  bool
	}{
		{name: "nothing came"},
		{name: "an order", order: true, over: true},
		{name: "an empty journal", opens: map[int]*record.EpochEnd{20: nil}, over: true},
		{name: "an earlier one cited", opens: map[int]*record.EpochEnd{20: cite(5)}, over: true},
		{name: "cited", opens: map[int]*record.EpochEnd{20: cite(10)}},
		{name: "cited by way of another", opens: map[int]*record.EpochEnd{20: cite(10), 30: cite(20)}},
		{name: "another that has not come", opens: map[int]*record.EpochEnd{30: cite(20)}},
		{name: "empty by way of another", opens: map[int]*record.EpochEnd{20: nil, 30: cite(20)}, over: true},
		{name: "cited, and lost then", opens: map[int]*record.EpochEnd{20: cite(10), 30: nil}, over: true},
		{name: "lost, cited and lost again", opens: map[int]*record.EpochEnd{20: nil, 30: cite(10), 40: nil}, over: true},
		{name: "it came back", opens: map[int]*record.EpochEnd{20: nil, 30: cite(10)}},
		{name: "only older ones", opens: map[int]*record.EpochEnd{5: nil}},
		{name: "cites itself", opens: map[int]*record.EpochEnd{20: cite(20)}},
		{name: "cites a later one", opens: map[int]*record.EpochEnd{20: cite(30), 30: cite(20)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := inMemory()
			s := newSink(t, Config{Vault: v})
			for at, previous := range c.opens {
				e := openedAt(t, at)
				if _, err := feed(s, e, opening(t, e, previous)); err != nil {
					t.Fatal(err)
				}
			}
			if c.order {
				o := vault.Salvage{Version: 1, Kind: vault.SalvageOrder, Gateway: "gw", Epoch: epoch.String(), By: "ops", Reason: "gone"}
				b, err := o.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				v.objects[vault.SalvageName("gw", epoch, vault.SalvageOrder, 0)] = string(b)
			}
			sc := lostScript
			sc.epoch = epoch
			frames := sc.frames(t)
			r, err := salvageAll(t, s, epoch, frames[:len(frames)-1], false)
			if err != nil || r.Over != c.over || r.Done != c.over {
				t.Errorf("got %+v, %v", r, err)
			}
		})
	}
}

// Each operation on a spool's file fails; the vault ends up the same.
func TestSpoolFaults(t *testing.T) {
	sc := script{seed: 9, epoch: testEpoch(t, 1), batches: 12, body: 9000, perCut: 4}
	frames := sc.frames(t)
	want := reference(t, sc.epoch, frames)
	run := func(t *testing.T, v vault.Vault, failAt int, persisted bool) (steps []string, failed bool) {
		s := newSink(t, Config{Vault: v})
		f := &spoolFaults{failAt: failAt, persisted: persisted}
		s.create = f.create
		for range 4 {
			held, err := feed(s, sc.epoch, frames)
			if err == nil {
				if held != frames[len(frames)-1].Sequence {
					t.Fatalf("holds %d", held)
				}
				return f.steps, failed
			}
			if !errors.Is(err, errFault) || errors.Is(err, transport.ErrRefused) || errors.Is(err, transport.ErrStop) {
				t.Fatalf("the fault became %v", err)
			}
			failed = true
		}
		t.Fatal("does not recover")
		return nil, false
	}
	steps, _ := run(t, inMemory(), 0, false)
	for at := 1; at <= len(steps); at++ {
		for _, persisted := range []bool{false, true} {
			v := inMemory()
			if _, failed := run(t, v, at, persisted); !failed && steps[at-1] != "close" {
				t.Errorf("step %d, %s, did not fail", at, steps[at-1])
			}
			same(t, snapshot(t, v), want)
		}
	}
	for _, step := range []string{"create", "write", "truncate", "seek", "read", "close"} {
		if !slices.Contains(steps, step) {
			t.Errorf("no step %q in %q", step, steps)
		}
	}
}

// spoolFaults counts what is done to a spool's files and fails one step.
type spoolFaults struct {
	failAt    int
	persisted bool
	steps     []string
}

func (f *spoolFaults) step(what string, do func() error) error {
	f.steps = append(f.steps, what)
	if len(f.steps) == f.failAt {
		if f.persisted {
			_ = do()
		}
		return errFault
	}
	return do()
}

func (f *spoolFaults) create(dir string) (file spoolFile, err error) {
	err = f.step("create", func() (err error) {
		file, err = tempFile(dir)
		return err
	})
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		return nil, err
	}
	return &faultSpool{file, f}, nil
}

type faultSpool struct {
	spoolFile
	f *spoolFaults
}

func (s *faultSpool) Write(b []byte) (n int, err error) {
	err = s.f.step("write", func() (err error) { n, err = s.spoolFile.Write(b); return err })
	return n, err
}

func (s *faultSpool) ReadAt(b []byte, at int64) (n int, err error) {
	err = s.f.step("read", func() (err error) { n, err = s.spoolFile.ReadAt(b, at); return err })
	return n, err
}

func (s *faultSpool) Seek(at int64, whence int) (n int64, err error) {
	err = s.f.step("seek", func() (err error) { n, err = s.spoolFile.Seek(at, whence); return err })
	return n, err
}

func (s *faultSpool) Truncate(size int64) error {
	return s.f.step("truncate", func() error { return s.spoolFile.Truncate(size) })
}

func (s *faultSpool) Close() error { return s.f.step("close", s.spoolFile.Close) }
