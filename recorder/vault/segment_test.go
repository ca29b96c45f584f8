package vault

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
)

// testSegment returns a segment's bytes and where its frames begin.
func testSegment(t testing.TB, records int) (b []byte, offsets []int64) {
	t.Helper()
	e := testEpoch(t)
	head := record.NewChain(e, "gw")
	b, err := Header{Gateway: "gw", Epoch: e, First: 1, Last: uint64(records), Head: head, Class: "standard", Records: uint64(records)}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range records {
		f := record.Frame{Kind: record.KindHeartbeat, Sequence: uint64(i + 1), Time: at, Class: "standard", Body: []byte(`{"open_exchanges":0}`)}
		offsets = append(offsets, int64(len(b)))
		if b, err = f.Encode(b); err != nil {
			t.Fatal(err)
		}
		head = head.Next(f.Leaf())
	}
	c := recordtest.Checkpoint(uint64(records), head, at, true)
	offsets = append(offsets, int64(len(b)))
	if b, err = c.Encode(b); err != nil {
		t.Fatal(err)
	}
	return b, offsets
}

func testSegmentName(t testing.TB, records int) string {
	name, err := SegmentName(Segment{Day: "2026-03-01", Gateway: "gw", Epoch: testEpoch(t), First: 1, Last: uint64(records), Class: "standard"})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReadSegment(t *testing.T) {
	b, offsets := testSegment(t, 3)
	s, err := ReadSegment(testSegmentName(t, 3), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if h := s.Header(); h.Gateway != "gw" || h.First != 1 || h.Epoch != testEpoch(t) || h.Head != record.NewChain(testEpoch(t), "gw") {
		t.Errorf("header %+v", h)
	}
	var got []byte
	for i := 0; ; i++ {
		f, err := s.Next()
		if errors.Is(err, io.EOF) {
			if i != 4 {
				t.Errorf("%d frames, want 4", i)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s.Offset() != offsets[i] {
			t.Errorf("frame %d at %d, want %d", i, s.Offset(), offsets[i])
		}
		got = append(got, f.Raw()...)
	}
	if !bytes.Equal(got, b[offsets[0]:]) {
		t.Error("the frames are not the stored bytes")
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func TestReadSegmentErrors(t *testing.T) {
	good, offsets := testSegment(t, 3)
	name := testSegmentName(t, 3)
	replace := func(old, new string) []byte { return bytes.Replace(good, []byte(old), []byte(new), 1) }
	flip := func(at int64) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	header := int64(len(segmentMagic))
	for what, c := range map[string]struct {
		b    []byte
		at   int64
		text string
	}{
		"empty":                  {nil, 0, "no segment of version 2"},
		"other version":          {replace("segment 2\n", "segment 1\n"), 0, "no segment of version 2"},
		"no header":              {good[:header], header, "cut off"},
		"header without end":     {append([]byte(segmentMagic), bytes.Repeat([]byte("x"), 9000)...), header, "longer than"},
		"header no JSON":         {replace(`{"gateway"`, `["gateway"`), header, "header"},
		"header, unknown field":  {replace(`"first":1`, `"first":1,"x":2`), header, "unknown field"},
		"header, space":          {replace(`"first":1`, `"first": 1`), header, "canonical"},
		"header, duplicate":      {replace(`"first":1`, `"first":2,"first":1`), header, "canonical"},
		"header, first 0":        {replace(`"first":1`, `"first":0`), header, "sequences 0 to 3"},
		"header, trailing":       {replace("}\n", "}{}\n"), header, "canonical"},
		"header of another":      {replace(`"last":3`, `"last":4`), header, "not what the name says"},
		"header, gateway":        {replace(`"gw"`, `"gx"`), header, "not what the name says"},
		"header, bad gateway":    {replace(`"gw"`, `"../gw"`), header, "gateway name"},
		"bit in the first frame": {flip(offsets[0] + 30), offsets[0], "checksum"},
		"bit in a length":        {flip(offsets[2]), offsets[2], "cut off"},
		"no length":              {append(bytes.Clone(good[:offsets[1]]), 0xff, 0xff, 0xff, 0xff), offsets[1], "length"},
		"cut in a frame":         {good[:offsets[2]+10], offsets[2], "cut off"},
		"cut in a length":        {good[:offsets[1]+2], offsets[1], "cut off"},
		"trailing bytes":         {append(bytes.Clone(good), 0, 0, 0), int64(len(good)), "cut off"},
	} {
		t.Run(what, func(t *testing.T) {
			s, err := ReadSegment(name, bytes.NewReader(c.b))
			for err == nil {
				_, err = s.Next()
			}
			var bad *SegmentError
			if !errors.As(err, &bad) {
				t.Fatalf("got %v", err)
			}
			if bad.Offset != c.at || bad.Name != name || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want %q at byte %d", err, c.text, c.at)
			}
			if s != nil {
				if _, again := s.Next(); again != err {
					t.Errorf("the error changes to %v", again)
				}
			}
		})
	}
}

// absences returns a segment of two records, one of which lies in a part.
func absences(t testing.TB) []byte {
	t.Helper()
	e := testEpoch(t)
	b, err := Header{Gateway: "gw", Epoch: e, First: 1, Last: 2, Class: "standard", Records: 1, Expires: time.Unix(2e9, 0), Classes: []string{"long", "short"}}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 7, time.UTC)
	f := record.Frame{Kind: record.KindOpen, Sequence: 1, Time: at, Class: "standard", Body: []byte("{}")}
	if b, err = f.Encode(b); err != nil {
		t.Fatal(err)
	}
	g := record.Frame{Kind: record.KindHeartbeat, Sequence: 2, Time: at, Expiry: time.Unix(3e9, 0), Class: "short", Body: []byte("{}")}
	if _, err = g.Encode(nil); err != nil {
		t.Fatal(err)
	}
	return AppendAbsence(b, &g, 1)
}

func TestReadAbsence(t *testing.T) {
	b := absences(t)
	s, err := ReadSegment("x", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	f, err := s.Next()
	want := record.Frame{Kind: record.KindHeartbeat, Sequence: 2, Time: time.Date(2026, 3, 1, 12, 0, 0, 7, time.UTC), Expiry: time.Unix(3e9, 0), Class: "short", Body: []byte("{}")}
	if _, e := want.Encode(nil); err != nil || e != nil {
		t.Fatal(err, e)
	}
	leaf := want.Leaf()
	if f.Kind != KindAbsent || f.Kind.Leaf() || f.Sequence != 2 || f.Class != "short" || !f.Time.Equal(want.Time) || !f.Expiry.Equal(want.Expiry) || !bytes.Equal(f.Body, leaf[:]) {
		t.Errorf("got %+v", f)
	}
	if s.End() != int64(len(b)) || s.Offset() != int64(len(b)-absenceSize) {
		t.Errorf("from %d to %d of %d", s.Offset(), s.End(), len(b))
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	// Every bit counts, and so does every byte's being there.
	for i := len(b) - absenceSize; i < len(b); i++ {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		for _, c := range [][]byte{c, b[:i]} {
			s, err := ReadSegment("x", bytes.NewReader(c))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Next()
			var bad *SegmentError
			if _, err := s.Next(); !errors.As(err, &bad) && !(len(c) == len(b)-absenceSize && errors.Is(err, io.EOF)) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
}

func TestHeaderRefuses(t *testing.T) {
	good := Header{Gateway: "gw", Epoch: testEpoch(t), First: 1, Last: 3, Class: "b", Records: 3}
	if _, err := good.Append(nil); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Header){
		"no class":         func(h *Header) { h.Class = "" },
		"class with a dot": func(h *Header) { h.Class = "a.b" },
		"too many records": func(h *Header) { h.Records = 4 },
		"own class absent": func(h *Header) { h.Classes = []string{"b"} },
		"out of order":     func(h *Header) { h.Classes = []string{"c", "a"} },
		"twice":            func(h *Header) { h.Classes = []string{"c", "c"} },
		"part with others": func(h *Header) { h.Part, h.Classes = true, []string{"c"} },
	} {
		h := good
		change(&h)
		if _, err := h.Append(nil); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

// A disk that fails is no segment that is wrong.
func TestReadSegmentFault(t *testing.T) {
	b, offsets := testSegment(t, 3)
	for _, at := range []int64{0, 5, 40, offsets[0], offsets[1] + 2, offsets[1] + 20, int64(len(b))} {
		s, err := ReadSegment("x", io.MultiReader(bytes.NewReader(b[:at]), &brokenReader{}))
		for err == nil {
			_, err = s.Next()
		}
		var bad *SegmentError
		if !errors.Is(err, errFault) || errors.As(err, &bad) {
			t.Errorf("broken at %d: %v", at, err)
		}
	}
}

// A segment of any size is read with one frame in memory.
func TestReadSegmentMemory(t *testing.T) {
	e := testEpoch(t)
	head, err := Header{Gateway: "gw", Epoch: e, First: 1, Last: 1, Class: "standard", Records: 1}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	f := record.Frame{Kind: record.KindPayload, Sequence: 1, Body: make([]byte, record.MaxPiece)}
	raw, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	const n = 2000 // 500 MB
	r := io.MultiReader(bytes.NewReader(head), &repeat{b: raw, n: n})
	s, err := ReadSegment("", r)
	if err != nil {
		t.Fatal(err)
	}
	var most uint64
	for i := range n {
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if most > 32<<20 {
		t.Errorf("heap of %d bytes", most)
	}
}

type repeat struct {
	b     []byte
	n, at int
}

func (r *repeat) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b[r.at:])
	if r.at += n; r.at == len(r.b) {
		r.at = 0
		r.n--
	}
	return n, nil
}

func TestOpenSegment(t *testing.T) {
	v := openTest(t, t.TempDir(), true)
	b, _ := testSegment(t, 2)
	name := testSegmentName(t, 2)
	if err := v.Create(context.Background(), name, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	s, c, err := OpenSegment(context.Background(), v, name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if f, err := s.Next(); err != nil || f.Sequence != 1 {
		t.Errorf("got %+v, %v", f, err)
	}
}

func FuzzReadSegment(f *testing.F) {
	b, offsets := testSegment(f, 2)
	f.Add(b)
	f.Add(b[:offsets[1]])
	f.Add(absences(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ReadSegment("x", bytes.NewReader(b))
		if err != nil {
			return
		}
		head, err := s.Header().Append(nil)
		if err != nil || !bytes.HasPrefix(b, head) {
			t.Fatalf("the header reads as %+v, which is written differently: %v", s.Header(), err)
		}
		rest := b[len(head):]
		for {
			fr, err := s.Next()
			if err != nil {
				var bad *SegmentError
				if !errors.Is(err, io.EOF) && !errors.As(err, &bad) {
					t.Fatalf("error without a place: %v", err)
				}
				if errors.Is(err, io.EOF) && len(rest) != 0 {
					t.Fatalf("the end is reported %d bytes early", len(rest))
				}
				return
			}
			if fr.Kind == KindAbsent {
				rest = rest[absenceSize:]
				continue
			}
			if !bytes.HasPrefix(rest, fr.Raw()) {
				t.Fatal("a frame that is not in the input")
			}
			rest = rest[len(fr.Raw()):]
		}
	})
}
