package record

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

var testTime = time.Unix(1_700_000_000, 123_456_789).UTC()

// testFrames are frames that use every field.
func testFrames() map[string]Frame {
	return map[string]Frame{
		"payload": {
			Kind: KindPayload, Direction: DirectionResponse, Flags: FlagHead, Sequence: 0x0102030405060708, Exchange: 0x1112131415161718,
			Piece: 0x21222324, Offset: 0x3132333435363738, Time: testTime, Expiry: time.Unix(1_800_000_000, 0).UTC(),
			Key: KeyID{1, 2, 3, 15: 16}, Class: "standard", Body: []byte("sealed bytes"),
		},
		"open":       {Kind: KindOpen, Sequence: 1, Time: testTime, Class: "standard", Body: []byte(`{"gateway":"gw-1"}`)},
		"key":        {Kind: KindKey, Time: testTime, Key: KeyID{9}, Body: []byte("wrapped")},
		"checkpoint": goldenCheckpoint(7, ChainHead{1, 31: 2}, true),
		"empty":      {Kind: KindClose, Sequence: 2, Time: testTime},
		"long class": {Kind: KindIntent, Sequence: 3, Exchange: 3, Time: testTime, Class: strings.Repeat("c", MaxClass)},
	}
}

// goldenCheckpoint is signed by a key that is always the same.
func goldenCheckpoint(size uint64, head ChainHead, cut bool) Frame {
	k, err := NewEpochKey("gw-1", Epoch{}, bytes.NewReader(make([]byte, 64)))
	if err != nil {
		panic(err)
	}
	k.private = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	k.signer = noteSigner{k.signer.Name(), k.signer.KeyHash(), k.private}
	f, err := Checkpoint(Statement{Gateway: "gw-1", Size: size, Root: [32]byte{3, 31: 4}, Head: head, Time: testTime}, k.Signer(), cut)
	if err != nil {
		panic(err)
	}
	return f
}

// The stored form never changes: records of years ago must still verify.
func TestFrameGolden(t *testing.T) {
	for name, f := range testFrames() {
		b, err := f.Encode([]byte("in front"))
		if err != nil {
			t.Fatal(err)
		}
		b = b[len("in front"):]
		leaf := f.Leaf()
		file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".frame")
		got := hex.Dump(b) + "leaf " + hex.EncodeToString(leaf[:]) + "\n"
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: stored form changed:\n%s", name, got)
		}
		d, n, err := Decode(append(b[:len(b):len(b)], "behind"...))
		if err != nil || n != len(b) || !bytes.Equal(d.Raw(), b) || d.Leaf() != leaf {
			t.Errorf("%s: decode: %d of %d bytes, %v", name, n, len(b), err)
		}
		d.raw, f.raw = nil, nil
		if f.Body == nil {
			f.Body = []byte{}
		}
		if !reflect.DeepEqual(d, f) {
			t.Errorf("%s: %+v came back as %+v", name, f, d)
		}
		if want := Size(f.Class, len(f.Body)) - sealCost; want != len(b) {
			t.Errorf("%s: Size says %d, it is %d", name, want, len(b))
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for want, f := range map[string]Frame{
		"retention class": {Kind: KindOpen, Class: strings.Repeat("c", MaxClass+1)},
		"above the limit": {Kind: KindIntent, Body: make([]byte, MaxBody+sealCost+1)},
	} {
		b, err := f.Encode([]byte("kept"))
		if err == nil || !strings.Contains(err.Error(), want) || string(b) != "kept" {
			t.Errorf("%q: %q, %v", want, b, err)
		}
	}
	f := Frame{Kind: KindIntent, Sequence: 1, Class: strings.Repeat("c", MaxClass), Body: make([]byte, MaxBody+sealCost)}
	b, err := f.Encode(nil)
	if err != nil || len(b) != MaxFrame {
		t.Fatalf("largest frame: %d bytes, %v, want %d", len(b), err, MaxFrame)
	}
	if _, n, err := Decode(b); err != nil || n != MaxFrame {
		t.Errorf("largest frame: %d, %v", n, err)
	}
}

// resum puts the checksum of a frame right.
func resum(b []byte) []byte {
	n := len(b) - 4
	binary.BigEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
	return b
}

func TestDecodeRefuses(t *testing.T) {
	f := testFrames()["payload"]
	good, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	with := func(at int, v byte) []byte { b := bytes.Clone(good); b[at] = v; return b }
	for name, c := range map[string]struct {
		b    []byte
		is   error
		want string
	}{
		"nothing":      {nil, ErrTorn, ""},
		"length only":  {good[:4], ErrTorn, ""},
		"cut":          {good[:len(good)-1], ErrTorn, ""},
		"zeros":        {make([]byte, 200), nil, "frame length 4 is outside"},
		"huge":         {[]byte{0xff, 0xff, 0xff, 0xff}, nil, "is outside"},
		"body bit":     {with(80, 0), nil, "checksum"},
		"sequence bit": {with(15, 0), nil, "checksum"},
		"version":      {resum(with(4, 2)), ErrUnknown, "version 2"},
		"kind":         {resum(with(5, 99)), ErrUnknown, "kind 99"},
		"kind zero":    {resum(with(5, 0)), ErrUnknown, "kind 0"},
		"class length": {resum(with(68, 33)), nil, "does not fit"},
		"class beyond": {resum(with(68, 31)), nil, "does not fit"},
	} {
		_, n, err := Decode(c.b)
		if err == nil || n != 0 || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	// Every single bit is covered.
	for i := range len(good) * 8 {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if _, _, err := Decode(b); err == nil {
			t.Fatalf("bit %d can be flipped", i)
		}
	}
}

func TestReadFrame(t *testing.T) {
	var all []byte
	var want []Frame
	for _, name := range []string{"open", "key", "payload", "checkpoint"} {
		f := testFrames()[name]
		var err error
		if all, err = f.Encode(all); err != nil {
			t.Fatal(err)
		}
		want = append(want, f)
	}
	r := iotest.OneByteReader(bytes.NewReader(all))
	for _, w := range want {
		f, err := ReadFrame(r)
		if err != nil || !bytes.Equal(f.Raw(), w.Raw()) {
			t.Fatalf("%s: %v", w.Kind, err)
		}
	}
	if _, err := ReadFrame(r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for n := 1; n < len(want[0].Raw()); n++ {
		if _, err := ReadFrame(bytes.NewReader(all[:n])); !errors.Is(err, ErrTorn) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if _, err := ReadFrame(iotest.ErrReader(errors.ErrUnsupported)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a failing reader: %v", err)
	}
	if _, err := ReadFrame(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff, 0})); err == nil || errors.Is(err, ErrTorn) {
		t.Errorf("a foreign length: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, fr := range testFrames() {
		b, err := fr.Encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-3])
	}
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A fuzzer does not find checksums: try with the right one as well.
		if len(b) >= minFrame && len(b) <= 1<<16 {
			c := bytes.Clone(b)
			binary.BigEndian.PutUint32(c, uint32(len(c)-4))
			decodeOne(t, resum(c))
		}
		decodeOne(t, b)
	})
}

// decodeOne checks that what is read is written in the same way again.
func decodeOne(t *testing.T, b []byte) {
	f, n, err := Decode(b)
	r, rerr := ReadFrame(bytes.NewReader(b))
	if err != nil {
		if rerr == nil {
			t.Fatalf("Decode: %v, ReadFrame reads it", err)
		}
		return
	}
	if rerr != nil || !bytes.Equal(r.Raw(), b[:n]) {
		t.Fatalf("Decode reads it, ReadFrame: %v", rerr)
	}
	leaf := f.Leaf()
	again, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, b[:n]) || f.Leaf() != leaf {
		t.Fatalf("%x became %x", b[:n], again)
	}
}

func TestChain(t *testing.T) {
	a, b := [32]byte{1}, [32]byte{2}
	e := Epoch{5}
	base := NewChain(e, "gw")
	heads := map[ChainHead]string{}
	for name, h := range map[string]ChainHead{
		"base": base, "epoch": NewChain(Epoch{6}, "gw"), "gateway": NewChain(e, "gx"),
		"a": base.Next(a), "b": base.Next(b), "ab": base.Next(a).Next(b), "ba": base.Next(b).Next(a),
	} {
		if other, ok := heads[h]; ok {
			t.Errorf("%s and %s have one head", name, other)
		}
		heads[h] = name
	}
	for _, cut := range []bool{false, true} {
		f := goldenCheckpoint(7, base, cut)
		got, err := CheckpointHead(&f)
		if err != nil || got != base || f.Kind.Leaf() || (f.Flags&FlagCut != 0) != cut {
			t.Errorf("checkpoint: %v, %+v", err, f)
		}
	}
	for _, f := range []Frame{{Kind: KindOpen, Body: base[:]}, {Kind: KindCheckpoint, Body: base[:31]}} {
		if _, err := CheckpointHead(&f); err == nil {
			t.Errorf("%s of %d bytes is a checkpoint", f.Kind, len(f.Body))
		}
	}
}

func TestKinds(t *testing.T) {
	for k, name := range kindNames {
		if k.String() != name || k.Leaf() != (k < 64) {
			t.Errorf("%d: %s, leaf %v", k, k, k.Leaf())
		}
	}
	if Kind(200).String() != "kind(200)" || Direction(9).String() != "direction(9)" || DirectionUpstream.String() != "upstream" {
		t.Error("names")
	}
}
