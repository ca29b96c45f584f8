package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
)

// segmentBytes returns a segment of an epoch with commits of the given numbers
// of records, and where each commit ends.
func segmentBytes(t testing.TB, e record.Epoch, commits ...int) (b []byte, ends []int) {
	t.Helper()
	head, sequence := record.NewChain(e, "gw-1"), uint64(0)
	var tree record.Tree
	key, err := record.NewEpochKey("gw-1", e, nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	add := func(f record.Frame) {
		var err error
		if b, err = f.Encode(b); err != nil {
			t.Fatal(err)
		}
		if f.Kind.Leaf() {
			head = head.Next(f.Leaf())
			tree.Add(f.Leaf())
		}
	}
	for c, n := range commits {
		add(record.Frame{Kind: record.KindKey, Key: record.KeyID{byte(c + 1)}, Time: at, Body: []byte("wrapped")})
		for i := range n {
			sequence++
			f := record.Frame{Kind: record.KindReceived, Sequence: sequence, Exchange: sequence, Time: at, Class: "standard", Body: []byte(strings.Repeat("x", 40*i))}
			if i%2 == 1 {
				f.Kind, f.Exchange = record.KindOutcome, sequence-1
			}
			add(f)
		}
		cp, err := record.Checkpoint(record.Statement{Gateway: "gw-1", Epoch: e, Size: sequence, Root: tree.Root(), Head: head, Time: at}, key.Signer(), c%2 == 1)
		if err != nil {
			t.Fatal(err)
		}
		add(cp)
		ends = append(ends, len(b))
	}
	return b, ends
}

func begin(e record.Epoch) scanned {
	return scanned{position: position{head: record.NewChain(e, "gw-1")}}
}

func TestScanSegment(t *testing.T) {
	e := record.Epoch{1, 2, 3}
	good, ends := segmentBytes(t, e, 1, 3, 2, 4)
	end := func(i int) int { return ends[i] }
	clone := func() []byte { return append([]byte(nil), good...) }
	flip := func(at int) []byte { b := clone(); b[at] ^= 1; return b }
	fill := func(b []byte, from, to int) []byte { clear(b[from:to]); return b }
	for name, c := range map[string]struct {
		b      []byte
		offset int
		seq    uint64
		bad    bool
		later  int
		lost   int64
	}{
		"whole":                        {good, end(3), 10, false, 0, 0},
		"preallocated":                 {append(clone(), make([]byte, 300_000)...), end(3), 10, false, 0, 0},
		"empty":                        {nil, 0, 0, false, 0, 0},
		"zeros":                        {make([]byte, 5000), 0, 0, false, 0, 0},
		"cut off in the last commit":   {good[:end(3)-1], end(2), 6, true, 0, int64(end(3) - 1 - end(2))},
		"cut off before a checkpoint":  {good[:end(3)-105], end(2), 6, true, 0, int64(end(3) - 105 - end(2))},
		"last commit torn at its head": {fill(clone(), end(2), end(2)+100), end(2), 6, true, 1, int64(end(3) - end(2))},
		"last commit torn at its end":  {fill(clone(), end(3)-60, end(3)), end(2), 6, true, 0, -1},
		"bit in the last commit":       {flip(end(2) + 200), end(2), 6, true, 1, int64(end(3) - end(2))},
		"bit in the last checkpoint":   {flip(end(3) - 50), end(2), 6, true, 0, int64(end(3) - end(2))},
		"bit in the third commit":      {flip(end(1) + 100), end(1), 4, true, 2, int64(end(3) - end(1))},
		"bit in the first length":      {flip(1), 0, 0, true, 2, int64(end(3))},
		"garbage behind":               {append(clone(), strings.Repeat("\x00\x00\x00\x65\x01\x41", 100)...), end(3), 10, true, 0, 600},
		"a commit missing":             {append(clone()[:end(0)], good[end(1):]...), end(0), 1, true, 2, int64(end(3) - end(1))},
		"a commit twice":               {append(clone()[:end(1)], good[end(0):]...), end(1), 4, true, 2, -1},
		"far garbage":                  {append(append(clone(), make([]byte, 600_000)...), 1), end(3), 10, true, 0, 600_001},
	} {
		s, err := scanSegment(bytes.NewReader(c.b), int64(len(c.b)), begin(e))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.offset != int64(c.offset) || s.sequence != c.seq || (s.bad != nil) != c.bad || s.later != c.later || c.lost >= 0 && s.lost != c.lost {
			t.Errorf("%s: offset %d, sequence %d, later %d, lost %d, bad %v; want %d, %d, %d, %d", name, s.offset, s.sequence, s.later, s.lost, s.bad, c.offset, c.seq, c.later, c.lost)
		}
	}
	s, err := scanSegment(bytes.NewReader(good), int64(len(good)), begin(e))
	if err != nil {
		t.Fatal(err)
	}
	if got := sortedKeys(s.open); !reflect.DeepEqual(got, []uint64{1, 4}) { // without an outcome
		t.Errorf("open exchanges %v", got)
	}
	if s.commits != 4 || !s.cut || s.closed {
		t.Errorf("%+v", s)
	}
	// Another gateway's chain, or epoch, does not fit.
	other := scanned{position: position{head: record.NewChain(e, "gw-2")}}
	if s, err := scanSegment(bytes.NewReader(good), int64(len(good)), other); err != nil || s.bad == nil || s.offset != 0 {
		t.Errorf("chain of another gateway: %+v, %v", s.bad, err)
	}
}

type brokenReader struct{ *bytes.Reader }

func (r brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 {
		return 0, errInjected
	}
	return r.Reader.ReadAt(p[:min(len(p), 300)], off)
}

func TestScanReadError(t *testing.T) {
	e := record.Epoch{1}
	b, _ := segmentBytes(t, e, 5)
	if _, err := scanSegment(brokenReader{bytes.NewReader(b)}, int64(len(b)), begin(e)); !errors.Is(err, errInjected) {
		t.Errorf("a failing disk is taken for a torn tail: %v", err)
	}
}

func FuzzScanSegment(f *testing.F) {
	e := record.Epoch{1, 2, 3}
	good, ends := segmentBytes(f, e, 1, 3, 2)
	f.Add(good)
	f.Add(good[:ends[1]+7])
	f.Add(append(good[:len(good):len(good)], make([]byte, 1000)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := scanSegment(bytes.NewReader(b), int64(len(b)), begin(e))
		if err != nil {
			t.Fatal(err)
		}
		if s.offset > int64(len(b)) || s.lost > int64(len(b))-s.offset || s.bad == nil && s.lost != 0 {
			t.Fatalf("%+v of %d bytes", s, len(b))
		}
		// What is kept is whole: a scan of it alone finds the same.
		k, err := scanSegment(bytes.NewReader(b), s.offset, begin(e))
		if err != nil || k.bad != nil || k.offset != s.offset || k.sequence != s.sequence || k.head != s.head || k.cut != s.cut || !reflect.DeepEqual(k.open, s.open) {
			t.Fatalf("first %+v, then %+v, %v", s, k, err)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	e := record.Epoch{9}
	p := position{sequence: 41, head: record.ChainHead{1, 2}, tree: treeOf(41), open: map[uint64]exchange{7: {class: "long"}, 3: {class: "standard", expiry: time.Unix(1_800_000_000, 0).UTC()}}}
	b, err := encodeState(e, "gw-1", p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("00000000\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		gateway, q, err := decodeState(b, e, 42)
		if err != nil {
			return
		}
		again, err := encodeState(e, gateway, q)
		if err != nil {
			t.Fatal(err)
		}
		g2, q2, err := decodeState(again, e, 42)
		if err != nil || g2 != gateway || !reflect.DeepEqual(q, q2) {
			t.Fatalf("%+v became %+v, %v", q, q2, err)
		}
	})
}

func treeOf(n int) (t record.Tree) {
	for i := range n {
		t.Add([32]byte{byte(i)})
	}
	return t
}

func TestDecodeState(t *testing.T) {
	e := record.Epoch{9}
	p := position{sequence: 41, head: record.ChainHead{1, 2}, tree: treeOf(41), open: map[uint64]exchange{7: {class: "long"}, 3: {class: "standard", expiry: time.Unix(1_800_000_000, 0).UTC()}}}
	b, err := encodeState(e, "gw-1", p)
	if err != nil {
		t.Fatal(err)
	}
	gateway, q, err := decodeState(b, e, 42)
	if err != nil || gateway != "gw-1" || !reflect.DeepEqual(p, q) {
		t.Fatalf("%q %+v %v", gateway, q, err)
	}
	for name, c := range map[string]struct {
		b     []byte
		e     record.Epoch
		first uint64
		want  string
	}{
		"empty":          {nil, e, 42, "checksum"},
		"bit":            {append(b[:len(b)-1:len(b)-1], 'x'), e, 42, "checksum"},
		"another epoch":  {b, record.Epoch{8}, 42, "it is for"},
		"another number": {b, e, 43, "it is for"},
	} {
		if _, _, err := decodeState(c.b, c.e, c.first); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Damage in front of acknowledged records is reported, not cut away.
func TestDamage(t *testing.T) {
	build := func() (*memFS, []string) {
		fs := newMemFS()
		j := mustOpen(t, testConfig("/j", fs))
		for range 30 {
			mustAppend(t, j, received(strings.Repeat("x", 1000)))
		}
		mustClose(t, j)
		var segments []string
		for _, seg := range j.live.segments {
			segments = append(segments, seg.name)
		}
		if len(segments) < 4 {
			t.Fatalf("%d segments", len(segments))
		}
		return fs, segments
	}
	for name, harm := range map[string]func(fs *memFS, seg []string) (file string){
		"bit in an early segment": func(fs *memFS, seg []string) string { fs.names[seg[1]].data[2000] ^= 1; return seg[1] },
		"early segment cut":       func(fs *memFS, seg []string) string { i := fs.names[seg[1]]; i.data = i.data[:3000]; return seg[1] },
		"segment missing":         func(fs *memFS, seg []string) string { delete(fs.names, seg[1]); return seg[2] },
		"segments swapped": func(fs *memFS, seg []string) string {
			fs.names[seg[1]], fs.names[seg[2]] = fs.names[seg[2]], fs.names[seg[1]]
			return seg[1]
		},
		"bit in the last segment": func(fs *memFS, seg []string) string {
			last := seg[len(seg)-1]
			fs.names[last].data[100] ^= 1
			return last
		},
		"state missing": func(fs *memFS, seg []string) string {
			n := strings.TrimSuffix(seg[2], "wal") + "state"
			delete(fs.names, n)
			return n
		},
		"state altered": func(fs *memFS, seg []string) string {
			n := strings.TrimSuffix(seg[0], "wal") + "state"
			fs.names[n].data[50] ^= 1
			return n
		},
		"newer version": func(fs *memFS, seg []string) string {
			// A whole frame of version 2 behind the last checkpoint.
			f := recordtest.Checkpoint(1, record.ChainHead{}, time.Unix(1, 0), false)
			b, err := f.Encode(nil)
			if err != nil {
				t.Fatal(err)
			}
			b[4] = 2
			last := seg[len(seg)-1]
			fs.names[last].data = append(fs.names[last].data, resum(b)...)
			return last
		},
	} {
		fs, segments := build()
		file := harm(fs, segments)
		sizes := map[string]int{}
		for n, i := range fs.names {
			sizes[n] = len(i.data)
		}
		_, err := Open(testContext(t), testConfig("/j", fs))
		var damage *DamageError
		if !errors.As(err, &damage) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if damage.File != file || !strings.Contains(err.Error(), "move the folder") {
			t.Errorf("%s: %v, want it to name %s", name, err, file)
		}
		for n, i := range fs.names {
			if sizes[n] != len(i.data) {
				t.Errorf("%s: %s was changed", name, n)
			}
		}
		// With the folder away the gateway starts.
		for n := range fs.names {
			if strings.HasPrefix(n, segments[0][:len("/j/")+26]) {
				delete(fs.names, n)
			}
		}
		mustClose(t, mustOpen(t, testConfig("/j", fs)))
	}
}

// resum puts a frame's checksum right.
func resum(b []byte) []byte {
	n := len(b) - 4
	binary.BigEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
	return b
}
