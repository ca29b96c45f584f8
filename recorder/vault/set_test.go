package vault

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

func segmentOf(t *testing.T, class string, part bool, first uint64) string {
	t.Helper()
	n, err := SegmentName(Segment{Day: "2026-03-01", Gateway: "gw", Epoch: testEpoch(t), First: first, Last: first, Class: class, Part: part})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func allNames(t *testing.T, v Vault, prefix string) []string {
	t.Helper()
	var all []string
	for n, err := range v.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

func TestSet(t *testing.T) {
	short, long, keys := openTest(t, t.TempDir(), true), openTest(t, t.TempDir(), true), openTest(t, t.TempDir(), true)
	s, err := NewSet(keys, Member{"short", time.Hour, short}, Member{"long", 2 * time.Hour, long})
	if err != nil {
		t.Fatal(err)
	}
	if s.Longest() != "long" || s.Retention() != 2*time.Hour {
		t.Errorf("the longest class is %s, %s", s.Longest(), s.Retention())
	}
	var id record.KeyID
	id[0] = 1
	places := map[string]*Folder{
		segmentOf(t, "long", false, 1): long, segmentOf(t, "short", true, 1): short, segmentOf(t, "short", false, 2): short,
		KeyName(testEpoch(t), id): keys, "holds/x.json": keys, "expiry/gw/x.json": long, "ledger/tile": long,
	}
	var want []string
	for name, at := range places {
		want = append(want, name)
		if err := s.Create(t.Context(), name, strings.NewReader(name)); err != nil {
			t.Fatal(err)
		}
		for _, v := range []*Folder{short, long, keys} {
			r, err := v.Open(t.Context(), name)
			if (err == nil) != (v == at) {
				t.Errorf("%s: in %s: %v", name, v.Dir(), err)
			}
			if err == nil {
				r.Close()
			}
		}
		r, err := s.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != name {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
		r.Close()
	}
	slices.Sort(want)
	if got := allNames(t, s, ""); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if got := allNames(t, s, "segments/"); len(got) != 3 || !slices.IsSorted(got) {
		t.Errorf("listed %v", got)
	}

	// What lies in the wrong place is not there; what is in no class's is listed
	// for the reader to judge, and can be read.
	wrong, lost := segmentOf(t, "long", false, 9), segmentOf(t, "retired", false, 9)
	for _, name := range []string{wrong, lost, "keys/x"} {
		if err := short.Create(t.Context(), name, strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}
	if got := allNames(t, s, ""); slices.Contains(got, wrong) || slices.Contains(got, "keys/x") || !slices.Contains(got, lost) {
		t.Errorf("listed %v", got)
	}
	if r, err := s.Open(t.Context(), lost); err != nil {
		t.Error(err)
	} else {
		r.Close()
	}
	if _, err := s.Open(t.Context(), segmentOf(t, "retired", false, 10)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.Create(t.Context(), lost, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "retired") {
		t.Error(err)
	}
	if err := s.Create(t.Context(), "segments/x", strings.NewReader("")); err == nil {
		t.Error("created what is no segment")
	}
	// A place that serves for two things is listed once.
	s, err = NewSet(short, Member{"short", time.Hour, short})
	if err != nil {
		t.Fatal(err)
	}
	if got := allNames(t, s, ""); len(got) != len(slices.Compact(slices.Clone(got))) {
		t.Errorf("listed %v", got)
	}
}

func TestSetRefuses(t *testing.T) {
	v := openTest(t, t.TempDir(), true)
	for what, m := range map[string][]Member{
		"no class":     nil,
		"a name":       {{"a/b", time.Hour, v}},
		"twice":        {{"a", time.Hour, v}, {"a", time.Hour, v}},
		"no retention": {{"a", time.Hour, v}, {"b", 0, v}},
	} {
		if _, err := NewSet(v, m...); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if _, err := NewSet(nil, Member{"a", time.Hour, v}); err == nil {
		t.Error("no keys: taken")
	}
}

// A member that does not answer ends the listing with its error.
func TestSetFault(t *testing.T) {
	v := openTest(t, t.TempDir(), true)
	s, err := NewSet(v, Member{"a", time.Hour, broken{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range s.List(t.Context(), "") {
		if !errors.Is(err, errFault) {
			t.Errorf("got %v", err)
		}
	}
}

type broken struct{ Vault }

func (broken) List(context.Context, string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("", errFault) }
}

func TestExpire(t *testing.T) {
	dir := t.TempDir()
	v := openTest(t, dir, true)
	name := segmentOf(t, "a", false, 1)
	if err := v.Create(t.Context(), name, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	reader := openTest(t, dir, false)
	if err := reader.Expire(t.Context(), name); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	beside, err := OpenFolder(FolderConfig{Dir: dir, Beside: true})
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	if err := beside.Create(t.Context(), "holds/x.json", strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := beside.Expire(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if got := allNames(t, v, "segments/"); len(got) != 0 {
		t.Errorf("left %v", got)
	}
	for _, other := range []string{"holds/x.json", "../x", "keys/" + testEpoch(t).String() + "/ab000000000000000000000000000001.key"} {
		if err := beside.Expire(t.Context(), other); err == nil {
			t.Errorf("removed %s", other)
		}
	}
}

func TestParseExpiry(t *testing.T) {
	good := &Expiry{Version: 1, Gateway: "gw", Epoch: testEpoch(t).String(), Head: strings.Repeat("0a", 32), Entries: []ExpiryEntry{
		{First: 1, Last: 5, Head: strings.Repeat("0b", 32)}, {First: 6, Last: 6, Head: strings.Repeat("0c", 32)},
	}}
	b, err := good.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	x, err := ParseExpiry(b)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := x.Name(); err != nil || n != "expiry/gw/"+testEpoch(t).String()+"/00000000000000000001-00000000000000000006.segments.json" {
		t.Errorf("name %s, %v", n, err)
	}
	for i, want := range []byte{0x0c, 0x0a} {
		if h, err := x.HeadAfter(i); err != nil || h[0] != want {
			t.Errorf("head after entry %d: %x, %v", i, h, err)
		}
	}
	for what, change := range map[string]func(*Expiry){
		"version": func(x *Expiry) { x.Version = 3 },
		"none":    func(x *Expiry) { x.Entries = nil },
		"gap":     func(x *Expiry) { x.Entries[1].First = 7; x.Entries[1].Last = 7 },
		"mixed":   func(x *Expiry) { x.Entries[1].Part = true },
		"range":   func(x *Expiry) { x.Entries[0].First = 0 },
	} {
		y := *good
		y.Entries = slices.Clone(good.Entries)
		change(&y)
		if _, err := y.Marshal(); err == nil {
			t.Errorf("%s: written", what)
		}
	}
	for _, bad := range []string{"", "{}", "[]", strings.Replace(string(b), `"by"`, `"boo"`, 1)} {
		if _, err := ParseExpiry([]byte(bad)); err == nil {
			t.Errorf("read %.20q", bad)
		}
	}
}

func FuzzParseExpiry(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"first":1,"last":2,"head":"00"},{"first":3,"last":3}],"head":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseExpiry(b)
		if err != nil {
			return
		}
		for i := range x.Entries {
			_, _ = x.HeadAfter(i)
		}
		_, _ = x.Name()
		if _, err := x.Marshal(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestLongestHoldsTheLedger: whatever is no segment of a class and not erasable
// rests with the class of the longest retention.
func TestLongestHoldsTheLedger(t *testing.T) {
	place := map[string]Vault{}
	for _, name := range []string{"short", "long", "standard", "keys"} {
		f, err := OpenFolder(FolderConfig{Dir: filepath.Join(t.TempDir(), name), Write: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		place[name] = f
	}
	s, err := NewSet(place["keys"], Member{"short", 24 * time.Hour, place["short"]}, Member{"long", 72 * time.Hour, place["long"]}, Member{"standard", 48 * time.Hour, place["standard"]})
	if err != nil {
		t.Fatal(err)
	}
	e := testEpoch(t)
	name := func(class string, part bool) string {
		n, err := SegmentName(Segment{Day: "2026-03-14", Gateway: "gw", Epoch: e, First: 1, Last: 2, Class: class, Part: part})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for n, want := range map[string]string{
		EpochName("gw", e): "long", ExpiryFolder("gw", e) + "x.segments-0.json": "long", ErasuresPrefix + "x.note": "long",
		SalvagePrefix + "x": "long", ExportsPrefix + "x.json": "long", "log/checkpoint/1": "long", "log/tile/0/000": "long",
		name(s.Longest(), false): "long", name("short", true): "short", name("standard", true): "standard",
		KeyName(e, [16]byte{1}): "keys", HoldsPrefix + "x.json": "keys",
	} {
		if s.Place(n) != place[want] {
			t.Errorf("%s does not rest with %s", n, want)
		}
	}
}
