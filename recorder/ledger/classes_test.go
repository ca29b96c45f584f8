package ledger_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// classes is a vault with exchanges of three classes, kept for one, two and
// three years; gw-1 crashes with one open and comes back a day later.
func classes(longest string) *ledgertest.Vault { return classesOf(longest, false) }

// classesOf is classes as an earlier version's gateway and sink made it, or
// this one's.
func classesOf(longest string, old bool) *ledgertest.Vault {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Old = old
	g.Longest, g.Years = longest, map[string]int{"short": 1, "standard": 2, "long": 3}
	g.Begin()
	for i := range 9 {
		g.Class = []string{"short", "standard", "long"}[i%3]
		g.Run(query(i))
		g.Class = "standard"
		if i%4 == 3 {
			g.Cut()
		}
	}
	g.Cut()
	g.Class = "short"
	g.Run(query(10)) // a segment of one class
	g.Cut()
	g.Start(query(11))
	g.Class = "standard"
	g.Crash()
	g.Now = g.Now.Add(24 * time.Hour)
	g.Begin()
	g.Heartbeat()
	g.Cut()
	return v
}

func verifyAt(t *testing.T, v ledger.Vault, private *keyset.Handle, o ledger.Options, now time.Time) *ledger.Report {
	t.Helper()
	o.Now = func() time.Time { return now }
	if private != nil {
		k, err := keyring.New(keyring.Config{Source: v, Tenant: private})
		if err != nil {
			t.Fatal(err)
		}
		o.Keys = k
	}
	r, err := ledger.Verify(context.Background(), v, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sound(t *testing.T, r *ledger.Report) {
	t.Helper()
	for _, f := range r.Findings {
		t.Errorf("%s: %s", f.Code, f)
	}
}

func parts(v *ledgertest.Vault, class string) (names []string) {
	for _, n := range v.Names("segments/") {
		if strings.HasSuffix(n, "."+class+".part") {
			names = append(names, n)
		}
	}
	return names
}

func TestClasses(t *testing.T) {
	for _, longest := range []string{"", "long", "ledger"} {
		for _, keys := range []*keyset.Handle{nil, tenant} {
			t.Run(fmt.Sprintf("longest=%s keys=%t", longest, keys != nil), func(t *testing.T) {
				v := classes(longest)
				if len(parts(v, "short")) == 0 || len(parts(v, "standard")) == 0 {
					t.Fatalf("no parts: %v", v.Names("segments/"))
				}
				r := verifyAt(t, v, keys, ledger.Options{}, ledgertest.Start.AddDate(0, 0, 2))
				sound(t, r)
				if want := (ledger.Exchanges{Total: 11, Ended: 10, Interrupted: 1}); r.Exchanges != want || r.Expired.Records != 0 {
					t.Errorf("exchanges %+v, want %+v; expired %d", r.Exchanges, want, r.Expired.Records)
				}
				var size int64
				for _, n := range v.Names("segments/") {
					size += int64(len(v.Files[n]))
				}
				if r.Bytes != size {
					t.Errorf("read %d bytes of %d", r.Bytes, size)
				}
			})
		}
	}
}

// A class's parts are gone: missing before their time, expired after it; and
// the other classes stay proven.
func TestPartsExpire(t *testing.T) {
	for _, longest := range []string{"long", "ledger"} {
		for _, keys := range []*keyset.Handle{nil, tenant} {
			v := classes(longest)
			for _, n := range parts(v, "short") {
				delete(v.Files, n)
			}
			r := verifyAt(t, v, keys, ledger.Options{}, ledgertest.Start.AddDate(1, 0, 2))
			sound(t, r)
			if r.Expired.Records == 0 || r.Expired.Ranges[0].By != "segment" || r.Expired.Ranges[0].Class != "short" {
				t.Errorf("expired: %+v", r.Expired)
			}
			r = verifyAt(t, v, keys, ledger.Options{}, ledgertest.Start.AddDate(0, 11, 0))
			if r.Sound || r.Findings[0].Code != ledger.SegmentMissing || !strings.Contains(r.Findings[0].Message, "must be kept until 2027-03-14") {
				t.Errorf("before its time: %+v", r.Findings)
			}
			if !strings.HasSuffix(r.Findings[0].Segment, ".short.part") {
				t.Errorf("the finding names %s", r.Findings[0].Segment)
			}
			for _, n := range parts(v, "standard") {
				delete(v.Files, n)
			}
			sound(t, verifyAt(t, v, keys, ledger.Options{}, ledgertest.Start.AddDate(2, 0, 2)))
		}
	}
}

// Whole segments are gone, as a bucket's lifecycle takes them, with no note of
// it: the oldest first, up to all of an epoch. What is left of what the epochs
// signed tells expired from missing, and for gateways of earlier versions, which
// signed nothing, the longest retention, which the verifier knows.
func TestSegmentsExpire(t *testing.T) {
	all := classes("long").Names("segments/")
	year := 365 * 24 * time.Hour
	for _, old := range []bool{false, true} {
		for n := 1; n < len(all); n++ {
			v := classesOf("long", old)
			left := 0
			for _, name := range v.Names("segments/") {
				if name <= all[n] && strings.Contains(name, "dt=2026-03-14") {
					delete(v.Files, name)
				} else {
					left++
				}
			}
			if left == 0 {
				continue
			}
			due, early := ledgertest.Start.AddDate(3, 0, 30), ledgertest.Start.AddDate(2, 11, 0)
			for _, keys := range []*keyset.Handle{nil, tenant} {
				o := ledger.Options{}
				if old {
					o.Retention = 3 * year
				}
				r := verifyAt(t, v, keys, o, due)
				sound(t, r)
				want := []string{"checkpoint", "citation", "segment"}
				if old {
					want = []string{"age", "segment"}
				}
				if r.Expired.Records == 0 || !slices.Contains(want, r.Expired.Ranges[0].By) {
					t.Errorf("expired: %+v", r.Expired)
				}
				if r := verifyAt(t, v, keys, o, early); r.Sound && strings.HasSuffix(all[n], ".seg") {
					t.Errorf("%d files are missing before their time, and nothing was found", n)
				}
				// Whoever takes a retention for shorter than what was signed errs.
				o.Retention = year
				if r := verifyAt(t, v, keys, o, early); !old && r.Sound && strings.HasSuffix(all[n], ".seg") {
					t.Errorf("%d files are missing before the signed time, and nothing was found", n)
				}
				if r := verifyAt(t, v, keys, ledger.Options{}, due); old && r.Sound && strings.HasSuffix(all[n], ".seg") {
					t.Errorf("nothing says that %d files expired, and nothing was found", n)
				}
			}
		}
	}
}

func TestPartsTampered(t *testing.T) {
	part := func(v *ledgertest.Vault) string { return parts(v, "short")[0] }
	main := func(v *ledgertest.Vault) string {
		return strings.Replace(part(v), ".short.part", ".long.seg", 1)
	}
	// absence is where the segment's first absence begins.
	absence := func(t *testing.T, v *ledgertest.Vault) int64 {
		r, err := vault.ReadSegment("", bytes.NewReader(v.Files[main(v)]))
		if err != nil {
			t.Fatal(err)
		}
		for {
			f, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if f.Kind == vault.KindAbsent {
				return r.Offset()
			}
		}
	}
	// reabsent rewrites it with a right checksum.
	reabsent := func(t *testing.T, v *ledgertest.Vault, change func(*record.Frame)) {
		at := absence(t, v)
		b := v.Files[main(v)]
		r, err := vault.ReadSegment("", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		class := int(b[at+4])
		name := strings.Replace(main(v), ".long.seg", "."+r.Header().Classes[class]+".part", 1)
		p, err := vault.ReadSegment("", bytes.NewReader(v.Files[name]))
		if err != nil {
			t.Fatal(err)
		}
		f, err := p.Next()
		if err != nil {
			t.Fatal(err)
		}
		change(&f)
		if _, err := f.Encode(nil); err != nil {
			t.Fatal(err)
		}
		fresh := vault.AppendAbsence(nil, &f, class)
		copy(b[at:], fresh)
	}
	for name, c := range map[string]struct {
		code ledger.Code
		text string
		do   func(t *testing.T, v *ledgertest.Vault)
	}{
		"bit in a part":       {ledger.FrameWrong, "checksum", func(t *testing.T, v *ledgertest.Vault) { v.Files[part(v)][500] ^= 1 }},
		"part is cut off":     {ledger.FrameWrong, "", func(t *testing.T, v *ledgertest.Vault) { v.Files[part(v)] = v.Files[part(v)][:600] }},
		"part is empty":       {ledger.FrameWrong, "", func(t *testing.T, v *ledgertest.Vault) { v.Files[part(v)] = nil }},
		"part is longer":      {ledger.FrameWrong, "", func(t *testing.T, v *ledgertest.Vault) { v.Files[part(v)] = append(v.Files[part(v)], 0, 0, 0, 0, 0) }},
		"another's part":      {ledger.FrameWrong, "not what the name says", func(t *testing.T, v *ledgertest.Vault) { v.Files[part(v)] = v.Files[parts(v, "short")[1]] }},
		"part is the segment": {ledger.FrameWrong, "not what the name says", func(t *testing.T, v *ledgertest.Vault) { v.Files[part(v)] = v.Files[main(v)] }},
		"frame changed, with its checksum": {ledger.FrameWrong, "not the one whose digest", func(t *testing.T, v *ledgertest.Vault) {
			reframe(t, v, part(v), func(f []record.Frame) []record.Frame { f[0].Body[20] ^= 1; return f })
		}},
		"frame left out": {ledger.FrameWrong, "stands where", func(t *testing.T, v *ledgertest.Vault) {
			reframe(t, v, part(v), func(f []record.Frame) []record.Frame { return f[1:] })
		}},
		"last frame left out": {ledger.FrameWrong, "ends before", func(t *testing.T, v *ledgertest.Vault) {
			reframe(t, v, part(v), func(f []record.Frame) []record.Frame { return f[:len(f)-1] })
		}},
		"frame twice": {ledger.FrameWrong, "follows on the last", func(t *testing.T, v *ledgertest.Vault) {
			reframe(t, v, part(v), func(f []record.Frame) []record.Frame { return append(f, f[len(f)-1]) })
		}},
		"frames swapped": {ledger.FrameWrong, "stands where", func(t *testing.T, v *ledgertest.Vault) {
			reframe(t, v, part(v), func(f []record.Frame) []record.Frame { f[0], f[1] = f[1], f[0]; return f })
		}},
		"part removed":    {ledger.SegmentMissing, "class short are missing", func(t *testing.T, v *ledgertest.Vault) { delete(v.Files, part(v)) }},
		"segment removed": {ledger.SegmentMissing, "", func(t *testing.T, v *ledgertest.Vault) { delete(v.Files, main(v)) }},
		"part of no segment": {ledger.FileUnknown, "part of no segment", func(t *testing.T, v *ledgertest.Vault) {
			v.Files[strings.Replace(part(v), ".short.", ".other.", 1)] = v.Files[part(v)]
		}},
		"part of another range": {ledger.FileUnknown, "part of no segment", func(t *testing.T, v *ledgertest.Vault) {
			n, _ := vault.ParseSegmentName(part(v))
			n.Last++
			to, _ := vault.SegmentName(n)
			v.Files[to] = v.Files[part(v)]
		}},
		"bit in an absence": {ledger.FrameWrong, "checksum", func(t *testing.T, v *ledgertest.Vault) { v.Files[main(v)][absence(t, v)+30] ^= 1 }},
		"absence expires earlier": {ledger.FrameWrong, "says otherwise", func(t *testing.T, v *ledgertest.Vault) {
			at := absence(t, v)
			b := v.Files[main(v)]
			old := bytes.Clone(b[at+29 : at+61])
			reabsent(t, v, func(f *record.Frame) { f.Expiry = f.Expiry.AddDate(-1, 0, 0) })
			// the digest of the record as it was, and a checksum that fits
			copy(b[at+29:], old)
			fixCRC(b[at : at+65])
		}},
		"absence of another digest": {ledger.FrameWrong, "digest", func(t *testing.T, v *ledgertest.Vault) {
			reabsent(t, v, func(f *record.Frame) { f.Body[0] ^= 1 })
		}},
		"header counts less": {ledger.HeaderWrong, "records are held", func(t *testing.T, v *ledgertest.Vault) {
			b := v.Files[main(v)]
			h := header(t, b)
			old, _ := h.Append(nil)
			h.Records--
			fresh, _ := h.Append(nil)
			v.Files[main(v)] = append(fresh, b[len(old):]...)
		}},
		"header expires earlier": {ledger.HeaderWrong, "records are held", func(t *testing.T, v *ledgertest.Vault) {
			b := v.Files[main(v)]
			h := header(t, b)
			old, _ := h.Append(nil)
			h.Expires = h.Expires.AddDate(-2, 0, 0)
			fresh, _ := h.Append(nil)
			v.Files[main(v)] = append(fresh, b[len(old):]...)
		}},
		"part's header expires earlier": {ledger.FrameWrong, "the last of which expires", func(t *testing.T, v *ledgertest.Vault) {
			b := v.Files[part(v)]
			h := header(t, b)
			old, _ := h.Append(nil)
			h.Expires = h.Expires.AddDate(0, -2, 0)
			fresh, _ := h.Append(nil)
			v.Files[part(v)] = append(fresh, b[len(old):]...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v := classes("long")
			c.do(t, v)
			r := verifyAt(t, v, tenant, ledger.Options{}, ledgertest.Start.AddDate(0, 0, 2))
			found := false
			for _, f := range r.Findings {
				found = found || f.Code == c.code && strings.Contains(f.Message, c.text)
			}
			if !found {
				t.Errorf("want %s %q, found %v", c.code, c.text, r.Findings)
			}
		})
	}
}

func header(t *testing.T, b []byte) vault.Header {
	t.Helper()
	r, err := vault.ReadSegment("", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return r.Header()
}

// reframe rewrites a part with other frames under the same header.
func reframe(t *testing.T, v *ledgertest.Vault, name string, change func([]record.Frame) []record.Frame) {
	t.Helper()
	h := header(t, v.Files[name])
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var frames []record.Frame
	for rest := v.Files[name][len(b):]; len(rest) > 0; {
		f, n, err := record.Decode(bytes.Clone(rest))
		if err != nil {
			t.Fatal(err)
		}
		frames, rest = append(frames, f), rest[n:]
	}
	for _, f := range change(frames) {
		if b, err = f.Encode(b); err != nil {
			t.Fatal(err)
		}
	}
	v.Files[name] = b
}

// fixCRC sets the checksum at the end of the bytes.
func fixCRC(b []byte) {
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli)))
}
