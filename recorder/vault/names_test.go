package vault

import (
	"math"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

func testEpoch(t testing.TB) record.Epoch {
	t.Helper()
	e, err := record.ParseEpoch("06be93m200000000000000000g")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// The names are frozen: they are how a vault that was written years ago is read.
func TestNames(t *testing.T) {
	e := testEpoch(t)
	for _, c := range []struct {
		segment Segment
		name    string
	}{
		{Segment{Day: "2026-03-01", Gateway: "gw-0", Epoch: e, First: 1, Last: 1, Class: "standard"}, "segments/dt=2026-03-01/gw-0/06be93m200000000000000000g/00000000000000000001-00000000000000000001.standard.seg"},
		{Segment{Day: "0001-01-01", Gateway: "A.b_c", Epoch: e, First: 7, Last: math.MaxUint64, Class: "7-y_A", Part: true}, "segments/dt=0001-01-01/A.b_c/06be93m200000000000000000g/00000000000000000007-18446744073709551615.7-y_A.part"},
	} {
		name, err := SegmentName(c.segment)
		if err != nil || name != c.name {
			t.Errorf("SegmentName(%+v) = %q, %v; want %q", c.segment, name, err, c.name)
		}
		back, err := ParseSegmentName(c.name)
		if err != nil || back != c.segment {
			t.Errorf("ParseSegmentName(%q) = %+v, %v", c.name, back, err)
		}
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	id := record.KeyID{0xab, 15: 1}
	const key = "keys/06be93m200000000000000000g/ab000000000000000000000000000001.key"
	if name := KeyName(e, id); name != key {
		t.Errorf("KeyName = %q, want %q", name, key)
	}
	if e2, id2, err := ParseKeyName(key); err != nil || e2 != e || id2 != id {
		t.Errorf("ParseKeyName = %v %x %v", e2, id2, err)
	}
	if d := Day(time.Date(2026, 3, 1, 23, 30, 0, 0, time.FixedZone("", -3600))); d != "2026-03-02" {
		t.Errorf("Day = %s: not in UTC", d)
	}
}

func TestNamesRefuse(t *testing.T) {
	e := testEpoch(t)
	good := Segment{Day: "2026-03-01", Gateway: "gw", Epoch: e, First: 1, Last: 2, Class: "standard"}
	for what, change := range map[string]func(*Segment){
		"first 0":           func(s *Segment) { s.First = 0 },
		"last below first":  func(s *Segment) { s.First, s.Last = 3, 2 },
		"day 30 February":   func(s *Segment) { s.Day = "2026-02-30" },
		"day not padded":    func(s *Segment) { s.Day = "2026-3-01" },
		"day with a slash":  func(s *Segment) { s.Day = "2026-03-01/.." },
		"no gateway":        func(s *Segment) { s.Gateway = "" },
		"gateway ..":        func(s *Segment) { s.Gateway = ".." },
		"gateway a/b":       func(s *Segment) { s.Gateway = "a/b" },
		"gateway with NUL":  func(s *Segment) { s.Gateway = "a\x00" },
		"gateway not ASCII": func(s *Segment) { s.Gateway = "gä" },
		"gateway too long":  func(s *Segment) { s.Gateway = strings.Repeat("g", MaxGateway+1) },
		"no class":          func(s *Segment) { s.Class = "" },
		"class with a dot":  func(s *Segment) { s.Class = "a.seg" },
		"class with /":      func(s *Segment) { s.Class = "a/b" },
		"class too long":    func(s *Segment) { s.Class = strings.Repeat("c", record.MaxClass+1) },
		"gateway with =":    func(s *Segment) { s.Gateway = "dt=1" },
	} {
		s := good
		change(&s)
		if name, err := SegmentName(s); err == nil {
			t.Errorf("%s: got the name %q", what, name)
		}
	}
	name, err := SegmentName(good)
	if err != nil {
		t.Fatal(err)
	}
	for what, n := range map[string]string{
		"upper-case epoch": strings.Replace(name, e.String(), strings.ToUpper(e.String()), 1),
		"sign":             strings.Replace(name, "/00000000000000000001", "/+0000000000000000001", 1),
		"short sequence":   strings.Replace(name, "/00000000000000000001", "/1", 1),
		"other folder":     strings.Replace(name, "segments/", "segment/", 1),
		"deeper":           strings.Replace(name, "/gw/", "/gw/gw/", 1),
		"extension":        strings.Replace(name, ".seg", ".tmp", 1),
		"too large":        strings.Replace(name, "00000000000000000002", "99999999999999999999", 1),
		"empty":            "",
	} {
		if s, err := ParseSegmentName(n); err == nil {
			t.Errorf("%s: %q parses to %+v", what, n, s)
		}
	}
	for _, n := range []string{"", "keys/", "keys/" + e.String() + "/", "keys/" + e.String() + "/AB000000000000000000000000000001.key",
		"keys/" + e.String() + "/ab.key", "keys/../ab000000000000000000000000000001.key", "keys/" + e.String() + "/a/ab000000000000000000000000000001.key"} {
		if _, _, err := ParseKeyName(n); err == nil {
			t.Errorf("%q parses as a key's name", n)
		}
	}
	for _, n := range []string{"", "/", "/etc/passwd", "a/", "a//b", ".", "..", "a/../b", "a/..", ".tmp/x", ".lock", "a/.b", "a\\b", "a b", "a\nb", "a\x00", "ä",
		strings.Repeat("a", 256), strings.Repeat("a/", 512) + "a"} {
		if err := CheckName(n); err == nil {
			t.Errorf("CheckName(%q) takes it", n)
		}
	}
}

func FuzzParseSegmentName(f *testing.F) {
	f.Add("segments/dt=2026-03-01/gw-0/06be93m200000000000000000g/00000000000000000001-00000000000000000001.standard.seg")
	f.Add("segments/dt=2026-03-01/../06be93m200000000000000000g/00000000000000000001-00000000000000000001.standard.seg")
	f.Fuzz(func(t *testing.T, name string) {
		s, err := ParseSegmentName(name)
		if err != nil {
			return
		}
		back, err := SegmentName(s)
		if err != nil || back != name {
			t.Fatalf("%q parses to %+v, which is named %q, %v", name, s, back, err)
		}
		if err := CheckName(name); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseKeyName(f *testing.F) {
	f.Add("keys/06be93m200000000000000000g/ab000000000000000000000000000001.key")
	f.Fuzz(func(t *testing.T, name string) {
		e, id, err := ParseKeyName(name)
		if err != nil {
			return
		}
		if back := KeyName(e, id); back != name {
			t.Fatalf("%q is also named %q", name, back)
		}
		if err := CheckName(name); err != nil {
			t.Fatal(err)
		}
	})
}
