package sink

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

func TestSegments(t *testing.T) {
	for what, sc := range map[string]script{
		"one record":   {seed: 1, batches: 1, body: 10, perCut: 1},
		"each a cut":   {seed: 2, batches: 20, body: 100, perCut: 1},
		"over two day": {seed: 3, batches: 60, body: 1000, perCut: 7},
		"one segment":  {seed: 4, batches: 50, body: 200 << 10, perCut: 1000},
		"recovered":    {seed: 5, batches: 20, body: 100, perCut: 6, recovered: true},
	} {
		t.Run(what, func(t *testing.T) {
			sc.epoch = testEpoch(t, 1)
			frames := sc.frames(t)
			v := folder(t, t.TempDir())
			s := newSink(t, Config{Vault: v})
			held, err := feed(s, sc.epoch, frames)
			if err != nil {
				t.Fatal(err)
			}
			want := reference(t, sc.epoch, frames)
			same(t, snapshot(t, v), want)
			last := frames[len(frames)-1].Sequence
			if st := s.Stats(); held != last || st.Records != last || st.Alarms != 0 || int(st.Segments+st.Keys)+1 != len(want) { // and the copy of the open record
				t.Errorf("held %d of %d, stats %+v", held, last, st)
			}
			if left, err := os.ReadDir(s.c.Spool); err != nil || len(left) != 0 {
				t.Errorf("the spool holds %v, %v", left, err)
			}
		})
	}
}

// The sink starts anew before each frame: what it acknowledged is there, and
// in the end the vault holds the same bytes.
func TestRestartAtEachFrame(t *testing.T) {
	sc := script{seed: 7, epoch: testEpoch(t, 1), batches: 25, body: 300, perCut: 4, recovered: true}
	frames := sc.frames(t)
	want := reference(t, sc.epoch, frames)
	for at := range frames {
		v := inMemory()
		held, err := feed(newSink(t, Config{Vault: v}), sc.epoch, frames[:at])
		if err != nil {
			t.Fatal(err)
		}
		s := newSink(t, Config{Vault: v})
		st, err := s.Begin(t.Context(), "gw", sc.epoch)
		if err != nil || st.Held() != held {
			t.Fatalf("at %d: holds %d, %v; acknowledged %d", at, st.Held(), err, held)
		}
		st.End()
		if _, err := feed(s, sc.epoch, frames); err != nil {
			t.Fatal(err)
		}
		same(t, snapshot(t, v), want)
	}
}

// Frames that come again change nothing, on one connection or another.
func TestDuplicates(t *testing.T) {
	sc := script{seed: 8, epoch: testEpoch(t, 1), batches: 20, body: 300, perCut: 5, recovered: true}
	frames := sc.frames(t)
	want := reference(t, sc.epoch, frames)
	for back := 1; back < len(frames); back += 3 {
		v := inMemory()
		s := newSink(t, Config{Vault: v})
		st, err := s.Begin(t.Context(), "gw", sc.epoch)
		if err != nil {
			t.Fatal(err)
		}
		var held uint64
		for i := range frames {
			if i%back == back-1 { // as after a break: some of what came, all of it known
				for _, f := range frames[max(0, i-back):i] {
					if h, err := st.Take(t.Context(), f.Raw()); err != nil || h != held {
						t.Fatalf("frame %d again: held %d, then %d, %v", i, held, h, err)
					}
				}
			}
			if held, err = st.Take(t.Context(), frames[i].Raw()); err != nil {
				t.Fatal(err)
			}
		}
		st.End()
		same(t, snapshot(t, v), want)
		if s.Stats().Duplicates == 0 {
			t.Error("no duplicates counted")
		}
	}
}

func rebuilt(t *testing.T, f record.Frame, change func(*record.Frame)) []byte {
	t.Helper()
	change(&f)
	b, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is wrong ends its epoch with an alarm, and its segment is not stored.
func TestWrong(t *testing.T) {
	e := testEpoch(t, 1)
	// Two segments; the second has records 4, 5, a checkpoint, 6, 7, a cut.
	head := record.NewChain(e, "gw")
	var fr []record.Frame
	add := func(f record.Frame) {
		if _, err := f.Encode(nil); err != nil {
			t.Fatal(err)
		}
		if f.Kind.Leaf() {
			head = head.Next(f.Leaf())
		}
		fr = append(fr, f)
	}
	leaf := func(n uint64) {
		add(record.Frame{Kind: record.KindHeartbeat, Sequence: n, Time: testTime, Class: "standard", Body: fmt.Appendf(nil, "record %d", n)})
	}
	leaf(1)
	leaf(2)
	leaf(3)
	add(recordtest.Checkpoint(3, head, testTime, true)) // 3
	leaf(4)
	leaf(5)
	head5 := head
	add(recordtest.Checkpoint(5, head, testTime, false)) // 6
	leaf(6)
	leaf(7)
	add(recordtest.Checkpoint(7, head, testTime, true)) // 9
	key := record.Frame{Kind: record.KindKey, Key: record.KeyID{1}, Time: testTime, Body: []byte("k")}
	if _, err := key.Encode(nil); err != nil {
		t.Fatal(err)
	}
	raws := func(from, to int) (all [][]byte) {
		for _, f := range fr[from:to] {
			all = append(all, f.Raw())
		}
		return all
	}
	flipped := bytes.Clone(fr[5].Raw())
	flipped[len(flipped)-6] ^= 1
	for what, c := range map[string]struct {
		rest [][]byte // after the first segment
		text string
	}{
		"bit":                       {append(raws(4, 5), flipped), "checksum"},
		"cut off":                   {[][]byte{fr[4].Raw()[:40]}, "cut off"},
		"empty":                     {[][]byte{{}}, "cut off"},
		"bytes behind":              {[][]byte{append(bytes.Clone(fr[4].Raw()), 0)}, "follow on a frame"},
		"record removed":            {append(raws(4, 5), raws(6, 10)...), "for record 5 came, but the last record is 4"},
		"gap":                       {append(raws(4, 5), raws(7, 10)...), "record 6 came, but 5 is next"},
		"reordered":                 {[][]byte{fr[5].Raw(), fr[4].Raw()}, "record 5 came, but 4 is next"},
		"record altered":            {append([][]byte{fr[4].Raw(), rebuilt(t, fr[5], func(f *record.Frame) { f.Body = []byte("forged") })}, raws(6, 10)...), "chain's head"},
		"altered in the last part":  {append(append(raws(4, 8), rebuilt(t, fr[8], func(f *record.Frame) { f.Body = []byte("forged") })), raws(9, 10)...), "chain's head"},
		"twice, different":          {append(raws(4, 8), rebuilt(t, fr[4], func(f *record.Frame) { f.Time = f.Time.Add(1) })), "twice with different content"},
		"last twice, different":     {append(raws(4, 8), rebuilt(t, fr[7], func(f *record.Frame) { f.Class = "x" })), "twice with different content"},
		"second twice, different":   {append(raws(4, 8), rebuilt(t, fr[5], func(f *record.Frame) { f.Class = "x" })), "twice with different content"},
		"checkpoint of other head":  {append(raws(4, 6), rebuilt(t, recordtest.Checkpoint(5, record.ChainHead{}, testTime, false), func(*record.Frame) {})), "chain's head"},
		"checkpoint of other seq":   {append(raws(4, 6), rebuilt(t, fr[6], func(f *record.Frame) { f.Sequence = 4 })), "in a frame of sequence 4"},
		"checkpoint late":           {append(append(raws(4, 6), raws(7, 8)...), fr[6].Raw()), "out of order"},
		"checkpoint of no form":     {append(raws(4, 6), rebuilt(t, fr[6], func(f *record.Frame) { f.Body = make([]byte, 33) })), "no signature follows"},
		"cut in the middle":         {append(raws(4, 8), rebuilt(t, recordtest.Checkpoint(5, head5, testTime, true), func(*record.Frame) {})), "out of order"},
		"cut of the last, forged":   {[][]byte{rebuilt(t, recordtest.Checkpoint(3, record.ChainHead{}, testTime, true), func(*record.Frame) {})}, "chain's head"},
		"record without a sequence": {[][]byte{rebuilt(t, fr[4], func(f *record.Frame) { f.Sequence = 0 })}, "without a sequence"},
		"key without an id":         {[][]byte{rebuilt(t, key, func(f *record.Frame) { f.Key = record.KeyID{} })}, "key frame"},
		"key with a sequence":       {[][]byte{rebuilt(t, key, func(f *record.Frame) { f.Sequence = 4 })}, "key frame"},
	} {
		t.Run(what, func(t *testing.T) {
			v := inMemory()
			var alarms []Alarm
			s := newSink(t, Config{Vault: v, Alarm: func(a Alarm) { alarms = append(alarms, a) }})
			st, err := s.Begin(t.Context(), "gw", e)
			if err != nil {
				t.Fatal(err)
			}
			defer st.End()
			for _, b := range append(raws(0, 4), c.rest...) {
				if _, err = st.Take(t.Context(), b); err != nil {
					break
				}
			}
			if !errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), e.String()) {
				t.Fatalf("got %v, want %q", err, c.text)
			}
			if len(alarms) != 1 || alarms[0].Epoch != e || !errors.Is(alarms[0].Err, transport.ErrRefused) {
				t.Errorf("alarms %+v", alarms)
			}
			// Nothing makes it go on.
			for _, b := range raws(4, 10) {
				if held, again := st.Take(t.Context(), b); again == nil || held != 3 {
					t.Fatalf("after the alarm: held %d, %v", held, again)
				}
			}
			same(t, snapshot(t, v), reference(t, e, fr[:4]))
			// Another epoch, and the right frames on a new stream, are taken.
			if held, err := feed(s, e, fr); err != nil || held != 7 {
				t.Errorf("the right frames: held %d, %v", held, err)
			}
		})
	}
	t.Run("before the first record", func(t *testing.T) {
		s := newSink(t, Config{Vault: inMemory()})
		st, err := s.Begin(t.Context(), "gw", e)
		if err != nil {
			t.Fatal(err)
		}
		c := recordtest.Checkpoint(0, record.NewChain(e, "gw"), testTime, true)
		if _, err := st.Take(t.Context(), rebuilt(t, c, func(*record.Frame) {})); !errors.Is(err, transport.ErrRefused) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("other gateway", func(t *testing.T) { // the chain binds the name
		s := newSink(t, Config{Vault: inMemory()})
		st, err := s.Begin(t.Context(), "other", e)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range raws(0, 4) {
			_, err = st.Take(t.Context(), b)
		}
		if !errors.Is(err, transport.ErrRefused) {
			t.Errorf("got %v", err)
		}
	})
}

// Every call to the vault fails, and fails although it was done. The gateway
// connects again, or the sink starts again; the vault ends up the same.
func TestVaultFaults(t *testing.T) {
	t.Run("one class", func(t *testing.T) {
		testVaultFaults(t, script{seed: 9, epoch: testEpoch(t, 1), batches: 14, body: 300, perCut: 4})
	})
	t.Run("three classes", func(t *testing.T) {
		testVaultFaults(t, script{seed: 9, epoch: testEpoch(t, 1), batches: 10, body: 300, perCut: 4, classes: []string{"short", "standard", "long"}})
	})
	t.Run("another class", func(t *testing.T) {
		testVaultFaults(t, script{seed: 9, epoch: testEpoch(t, 1), batches: 10, body: 300, perCut: 4, classes: []string{"short", "standard"}}, "ledger")
	})
}

func testVaultFaults(t *testing.T, sc script, longest ...string) {
	frames := sc.frames(t)
	want := reference(t, sc.epoch, frames, longest...)
	class := strings.Join(longest, "")
	half := len(frames) / 2
	run := func(t *testing.T, v vault.Vault, restart bool) (failed bool) {
		t.Helper()
		s := newSink(t, Config{Vault: v, Class: class})
		var acked uint64
		for tries, upTo := 0, half; ; tries++ {
			if tries > 5 {
				t.Fatal("does not recover")
			}
			held, err := feed(s, sc.epoch, frames[:upTo])
			if err != nil {
				if !errors.Is(err, errFault) || errors.Is(err, transport.ErrRefused) || errors.Is(err, transport.ErrStop) {
					t.Fatalf("the fault became %v", err)
				}
				failed = true
			}
			if held > 0 && held < acked {
				t.Fatalf("acknowledged %d, then holds %d", acked, held)
			}
			acked = max(acked, held)
			if restart {
				s = newSink(t, Config{Vault: v, Class: class})
			}
			if err != nil {
				continue
			}
			if upTo == len(frames) {
				if acked != frames[len(frames)-1].Sequence {
					t.Fatalf("acknowledged %d", acked)
				}
				return failed
			}
			upTo = len(frames)
		}
	}
	probe := &faultVault{Vault: inMemory()}
	run(t, probe, false)
	for at := 1; at <= len(probe.calls); at++ {
		for _, persisted := range []bool{false, true} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d persisted=%t restart=%t", at, persisted, restart), func(t *testing.T) {
					v := inMemory()
					if !run(t, &faultVault{Vault: v, failAt: at, persisted: persisted}, restart) {
						t.Errorf("%s did not fail", probe.calls[at-1])
					}
					same(t, snapshot(t, v), want)
				})
			}
		}
	}
}

// Every key that a segment's records need was durable before the segment.
func TestKeysComeFirst(t *testing.T) {
	sc := script{seed: 10, epoch: testEpoch(t, 1), batches: 40, body: 50, perCut: 6}
	frames := sc.frames(t)
	v := &faultVault{Vault: inMemory()}
	if _, err := feed(newSink(t, Config{Vault: v}), sc.epoch, frames); err != nil {
		t.Fatal(err)
	}
	stored := map[string]bool{}
	segments := 0
	for _, c := range v.calls {
		name, ok := strings.CutPrefix(c, "create ")
		if !ok {
			continue
		}
		stored[name] = true
		id, err := vault.ParseSegmentName(name)
		if err != nil {
			continue
		}
		segments++
		for _, f := range frames {
			if f.Kind.Leaf() && f.Sequence >= id.First && f.Sequence <= id.Last && !stored[vault.KeyName(sc.epoch, f.Key)] {
				t.Errorf("segment %d-%d was stored before the key of record %d", id.First, id.Last, f.Sequence)
			}
		}
	}
	if segments < 5 {
		t.Errorf("%d segments", segments)
	}
}

// A name that is taken by other content stops the sink for everybody.
func TestConflict(t *testing.T) {
	sc := script{seed: 11, epoch: testEpoch(t, 1), batches: 8, body: 50, perCut: 2}
	other := script{seed: 12, epoch: testEpoch(t, 2), batches: 8, body: 50, perCut: 2}
	frames := sc.frames(t)
	for _, prefix := range []string{"segments/", "keys/"} {
		t.Run(prefix, func(t *testing.T) {
			v := inMemory()
			var alarms []Alarm
			s := newSink(t, Config{Vault: v, Alarm: func(a Alarm) { alarms = append(alarms, a) }})
			bystander, err := s.Begin(t.Context(), "gw", other.epoch)
			if err != nil {
				t.Fatal(err)
			}
			st, err := s.Begin(t.Context(), "gw", sc.epoch)
			if err != nil {
				t.Fatal(err)
			}
			for name := range reference(t, sc.epoch, frames) {
				if strings.HasPrefix(name, prefix) {
					if err := v.Create(t.Context(), name, strings.NewReader("planted")); err != nil {
						t.Fatal(err)
					}
				}
			}
			var held uint64
			for _, f := range frames {
				if held, err = st.Take(t.Context(), f.Raw()); err != nil {
					break
				}
			}
			if held != 0 || !errors.Is(err, transport.ErrStop) || !errors.Is(err, vault.ErrConflict) || !strings.Contains(err.Error(), prefix) {
				t.Errorf("held %d, %v", held, err)
			}
			if len(alarms) != 1 || s.Stats().Alarms != 1 || !errors.Is(s.Err(), vault.ErrConflict) {
				t.Errorf("alarms %v, Err %v", alarms, s.Err())
			}
			if _, err := bystander.Take(t.Context(), other.frames(t)[0].Raw()); !errors.Is(err, transport.ErrStop) {
				t.Errorf("another stream: %v", err)
			}
			if _, err := s.Begin(t.Context(), "gw", other.epoch); !errors.Is(err, transport.ErrStop) {
				t.Errorf("a new stream: %v", err)
			}
		})
	}
}

// Nothing is put behind a segment that was altered or removed.
func TestVaultAltered(t *testing.T) {
	sc := script{seed: 13, epoch: testEpoch(t, 1), batches: 12, body: 300, perCut: 4}
	frames := sc.frames(t)
	ref := reference(t, sc.epoch, frames)
	var segments []string
	for n := range ref {
		if strings.HasPrefix(n, "segments/") {
			segments = append(segments, n)
		}
	}
	slices.SortFunc(segments, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	second, last := segments[1], segments[2]
	id, err := vault.ParseSegmentName(last)
	if err != nil {
		t.Fatal(err)
	}
	// A chain that is whole in itself is still not the one that the name says.
	var shorter []byte
	{
		head := record.NewChain(sc.epoch, "gw")
		for _, f := range frames {
			if f.Kind.Leaf() && f.Sequence < id.First {
				head = head.Next(f.Leaf())
			}
		}
		if shorter, err = (vault.Header{Gateway: "gw", Epoch: sc.epoch, First: id.First, Last: id.Last, Class: "standard", Head: head}).Append(nil); err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if f.Kind.Leaf() && f.Sequence == id.First {
				shorter = append(shorter, f.Raw()...)
				c := recordtest.Checkpoint(f.Sequence, head.Next(f.Leaf()), testTime, true)
				if shorter, err = c.Encode(shorter); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	good := []byte(ref[last])
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for what, b := range map[string][]byte{"bit": flipped, "cut": good[:len(good)-10], "empty": {}, "other segment": []byte(ref[second]), "shorter": shorter,
		"longer": append(bytes.Clone(good), frames[1].Raw()...)} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			v := folder(t, dir)
			s := newSink(t, Config{Vault: v})
			if _, err := feed(s, sc.epoch, frames); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, last), b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := s.Begin(t.Context(), "gw", sc.epoch)
			if !errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), last) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("removed, and the journal has freed it", func(t *testing.T) {
		dir := t.TempDir()
		v := folder(t, dir)
		s := newSink(t, Config{Vault: v})
		cut := slices.IndexFunc(frames, func(f record.Frame) bool { return f.Kind.Leaf() && f.Sequence == id.First })
		if _, err := feed(s, sc.epoch, frames[:cut]); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, second)); err != nil {
			t.Fatal(err)
		}
		_, err := feed(s, sc.epoch, frames[cut:])
		if !errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), "is next") {
			t.Errorf("got %v", err)
		}
	})
}

func TestBeginRefuses(t *testing.T) {
	s := newSink(t, Config{Vault: inMemory()})
	for _, gateway := range []string{"", "..", "a/b", "a b", strings.Repeat("x", 300)} {
		if _, err := s.Begin(t.Context(), gateway, testEpoch(t, 1)); !errors.Is(err, transport.ErrRefused) {
			t.Errorf("gateway %q: %v", gateway, err)
		}
	}
	for _, at := range []time.Time{time.UnixMilli(0), testTime.AddDate(20, 0, 0), time.UnixMilli(1<<48 - 1)} {
		e, err := record.NewEpoch(at, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Begin(t.Context(), "gw", e); !errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), "cannot be") {
			t.Errorf("epoch of %s: %v", at, err)
		}
	}
	if len(s.streams) != 0 {
		t.Errorf("%d streams stay", len(s.streams))
	}
}

// A newer connection has the epoch; the older one can do no harm.
func TestTakeOver(t *testing.T) {
	sc := script{seed: 14, epoch: testEpoch(t, 1), batches: 9, body: 50, perCut: 3}
	frames := sc.frames(t)
	v := inMemory()
	s := newSink(t, Config{Vault: v})
	old, err := s.Begin(t.Context(), "gw", sc.epoch)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames[:4] {
		if _, err := old.Take(t.Context(), f.Raw()); err != nil {
			t.Fatal(err)
		}
	}
	st, err := s.Begin(t.Context(), "gw", sc.epoch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Take(t.Context(), frames[4].Raw()); err == nil || errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), "newer connection") {
		t.Errorf("the older connection: %v", err)
	}
	old.End()
	for _, f := range frames {
		if _, err := st.Take(t.Context(), f.Raw()); err != nil {
			t.Fatal(err)
		}
	}
	st.End()
	same(t, snapshot(t, v), reference(t, sc.epoch, frames))
	if len(s.streams) != 0 {
		t.Errorf("%d streams stay", len(s.streams))
	}
}

func TestNewCleansSpool(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"verbatim-spool-123", "other"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newSink(t, Config{Vault: inMemory(), Spool: dir})
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("%v, %v", left, err)
	}
}

// A segment of any size takes the same memory, duplicates included.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 250 MB")
	}
	e := testEpoch(t, 1)
	s := newSink(t, Config{Vault: folder(t, t.TempDir())})
	st, err := s.Begin(t.Context(), "gw", e)
	if err != nil {
		t.Fatal(err)
	}
	defer st.End()
	head := record.NewChain(e, "gw")
	body := make([]byte, record.MaxPiece)
	var buf []byte
	var most uint64
	const n = 1000
	for seq := uint64(1); seq <= n; seq++ {
		f := record.Frame{Kind: record.KindPayload, Sequence: seq, Time: testTime, Class: "standard", Body: body}
		if buf, err = f.Encode(buf[:0]); err != nil {
			t.Fatal(err)
		}
		head = head.Next(f.Leaf())
		for range 1 + seq%2 {
			if _, err := st.Take(t.Context(), buf); err != nil {
				t.Fatal(err)
			}
		}
		if seq%100 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
	}
	c := recordtest.Checkpoint(n, head, testTime, true)
	if buf, err = c.Encode(buf[:0]); err != nil {
		t.Fatal(err)
	}
	if held, err := st.Take(t.Context(), buf); err != nil || held != n {
		t.Fatalf("held %d, %v", held, err)
	}
	if most > 16<<20 {
		t.Errorf("heap of %d bytes", most)
	}
}
