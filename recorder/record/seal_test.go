package record

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
)

var testTenant = sync.OnceValue(func() *keyset.Handle {
	h, err := NewTenant()
	if err != nil {
		panic(err)
	}
	return h
})

func testSealer(t testing.TB, e Epoch, sessions int) *Sealer {
	t.Helper()
	pub, err := testTenant().Public()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(SealerConfig{Epoch: e, Tenant: pub, Sessions: sessions})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testOpener(t testing.TB) *Opener {
	t.Helper()
	o, err := NewOpener(testTenant())
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// sealed returns a sealed frame as it is stored, with its key frame.
func sealed(t *testing.T, s *Sealer, body string) (f, key Frame) {
	t.Helper()
	id, fresh, err := s.Key("session", testTime)
	if err != nil {
		t.Fatal(err)
	}
	f = testFrames()["payload"]
	f.Key, f.Body = id, []byte(body)
	if err := s.Seal(&f, "session"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Encode(nil); err != nil {
		t.Fatal(err)
	}
	if fresh != nil {
		key = *fresh
	}
	return f, key
}

func TestSealAndOpen(t *testing.T) {
	e := Epoch{1}
	s := testSealer(t, e, 0)
	const body = "SELECT canary FROM secrets"
	f, key := sealed(t, s, body)
	if bytes.Contains(f.Raw(), []byte("canary")) || bytes.Contains(key.Raw(), []byte("canary")) {
		t.Error("the body is stored in plain")
	}
	if want := Size(f.Class, len(body)); len(f.Raw()) != want {
		t.Errorf("stored size %d, Size says %d", len(f.Raw()), want)
	}
	if _, again, err := s.Key("session", testTime); err != nil || again != nil {
		t.Errorf("the key is announced twice: %v, %v", again, err)
	}
	o := testOpener(t)
	if _, err := o.Open(e, &f); !errors.Is(err, ErrNoKey) {
		t.Errorf("without its key: %v", err)
	}
	for range 2 { // adding twice is fine
		if err := o.Add(e, &key); err != nil {
			t.Fatal(err)
		}
	}
	stored, _, err := Decode(f.Raw())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := o.Open(e, &stored); err != nil || string(got) != body {
		t.Fatalf("%q, %v", got, err)
	}
	g, _ := sealed(t, s, body)
	if bytes.Equal(g.Body, f.Body) {
		t.Error("the same body is sealed to the same bytes")
	}
	plain := testFrames()["open"]
	if got, err := o.Open(e, &plain); err != nil || !bytes.Equal(got, plain.Body) {
		t.Errorf("a plain body: %q, %v", got, err)
	}
}

// A sealed body opens only in its place: each field of the header counts, and
// so does the epoch.
func TestMovedFrameIsRefused(t *testing.T) {
	e := Epoch{1}
	f, key := sealed(t, testSealer(t, e, 0), "body")
	o := testOpener(t)
	if err := o.Add(e, &key); err != nil {
		t.Fatal(err)
	}
	for name, move := range map[string]func(f *Frame){
		"kind":      func(f *Frame) { f.Kind = KindIntent },
		"direction": func(f *Frame) { f.Direction = DirectionRequest },
		"flags":     func(f *Frame) { f.Flags = 0 },
		"sequence":  func(f *Frame) { f.Sequence++ },
		"exchange":  func(f *Frame) { f.Exchange++ },
		"piece":     func(f *Frame) { f.Piece++ },
		"offset":    func(f *Frame) { f.Offset++ },
		"time":      func(f *Frame) { f.Time = f.Time.Add(1) },
		"expiry":    func(f *Frame) { f.Expiry = f.Expiry.Add(1e9) },
		"class":     func(f *Frame) { f.Class = "other" },
		"body":      func(f *Frame) { f.Body = bytes.Clone(f.Body); f.Body[20] ^= 1 },
		"short":     func(f *Frame) { f.Body = f.Body[:5] },
	} {
		m := f
		move(&m)
		if _, err := o.Open(e, &m); err == nil || errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := o.Open(e, &f); err != nil {
		t.Errorf("in its place: %v", err)
	}
	other := Epoch{2}
	if err := o.Add(other, &key); err == nil {
		t.Error("a key frame is taken into another epoch")
	}
	renamed := key
	renamed.Key[0] ^= 1
	if err := o.Add(e, &renamed); err == nil {
		t.Error("a key frame is taken under another id")
	}
	if err := o.Add(e, &f); err == nil {
		t.Error("a payload frame is taken for a key")
	}
	foreign, err := NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewOpener(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Add(e, &key); err == nil {
		t.Error("another tenant unwraps the key")
	}
}

func TestSealerForgets(t *testing.T) {
	s := testSealer(t, Epoch{1}, 4)
	held, err := s.DataKey("first", testTime)
	if err != nil {
		t.Fatal(err)
	}
	id, fresh, err := s.Key("first", testTime)
	if err != nil || id != held.ID() || fresh == nil {
		t.Fatalf("key %x, frame %v, %v", id, fresh, err)
	}
	if held.Announce() != nil {
		t.Error("the key is announced twice")
	}
	for i := range 10 { // pushes the first out
		if _, _, err := s.Key(fmt.Sprint(i), testTime); err != nil {
			t.Fatal(err)
		}
		if n := len(s.young) + len(s.old); n > 4 {
			t.Fatalf("%d keys are kept", n)
		}
	}
	f := Frame{Kind: KindIntent, Sequence: 1, Time: testTime, Key: id, Body: []byte("x")}
	if err := s.Seal(&f, "first"); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a forgotten key seals: %v", err)
	}
	f.Body = []byte("x")
	if err := held.Seal(&f); err != nil { // who holds it can go on
		t.Fatal(err)
	}
	o := testOpener(t)
	if err := o.Add(Epoch{1}, fresh); err != nil {
		t.Fatal(err)
	}
	if b, err := o.Open(Epoch{1}, &f); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	again, fresh, err := s.Key("first", testTime)
	if err != nil || again == id || fresh == nil {
		t.Errorf("a session that came back has key %x, frame %v, %v", again, fresh, err)
	}
}

// Keys that are pushed out while others seal with them: nothing fails, and each
// key is announced exactly once.
func TestSealerUnderEviction(t *testing.T) {
	e := Epoch{1}
	s := testSealer(t, e, 3)
	var (
		mu     sync.Mutex
		frames []Frame
		keys   []*Frame
		wg     sync.WaitGroup
	)
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				k, err := s.DataKey(fmt.Sprint((w+i)%12), testTime)
				if err != nil {
					t.Error(err)
					return
				}
				f := Frame{Kind: KindIntent, Sequence: uint64(w*1000 + i), Time: testTime, Body: []byte("body")}
				if err := k.Seal(&f); err != nil {
					t.Error(err)
					return
				}
				fresh := k.Announce()
				mu.Lock()
				frames = append(frames, f)
				if fresh != nil {
					keys = append(keys, fresh)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	o := testOpener(t)
	seen := map[KeyID]bool{}
	for _, k := range keys {
		if seen[k.Key] {
			t.Fatalf("key %x is announced twice", k.Key)
		}
		seen[k.Key] = true
		if err := o.Add(e, k); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range frames {
		if b, err := o.Open(e, &f); err != nil || string(b) != "body" {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

type brokenWrap struct{ calls int }

func (w *brokenWrap) Encrypt(_, _ []byte) ([]byte, error) {
	w.calls++
	return nil, errors.ErrUnsupported
}

func TestWrapFails(t *testing.T) {
	s := testSealer(t, Epoch{1}, 0)
	good := s.wrap
	broken := &brokenWrap{}
	s.wrap = broken
	for n := range 2 {
		if _, _, err := s.Key("session", testTime); !errors.Is(err, errors.ErrUnsupported) || broken.calls != n+1 {
			t.Errorf("call %d: %v, %d calls", n, err, broken.calls)
		}
	}
	s.wrap = good
	if _, fresh, err := s.Key("session", testTime); err != nil || fresh == nil {
		t.Errorf("after it is repaired: %v, %v", fresh, err)
	}
}

func TestTenantFiles(t *testing.T) {
	h := testTenant()
	for _, private := range []bool{false, true} {
		b, err := MarshalTenant(h, private)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadTenant(bytes.NewReader(b), private)
		if err != nil {
			t.Fatal(err)
		}
		if private {
			if _, err := NewOpener(got); err != nil {
				t.Error(err)
			}
			// A gateway does not take the private one.
			if _, err := ReadTenant(bytes.NewReader(b), false); err == nil {
				t.Error("a private keyset is read as a public one")
			}
			if _, err := NewSealer(SealerConfig{Tenant: got}); err == nil {
				t.Error("a sealer takes a private keyset")
			}
			continue
		}
		if _, err := NewSealer(SealerConfig{Tenant: got}); err != nil {
			t.Error(err)
		}
		if _, err := NewOpener(got); err == nil {
			t.Error("an opener takes a public keyset")
		}
	}
	for _, bad := range []string{"", "{}", `{"primaryKeyId":1,"key":[]}`, "not json"} {
		for _, private := range []bool{false, true} {
			if _, err := ReadTenant(strings.NewReader(bad), private); err == nil {
				t.Errorf("%q is a keyset", bad)
			}
		}
	}
	if _, err := NewSealer(SealerConfig{}); err == nil {
		t.Error("a sealer without a keyset")
	}
}

func TestAppendIsSealAndEncode(t *testing.T) {
	tenant, err := NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	epoch, err := NewEpoch(time.Unix(1_700_000_000, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(SealerConfig{Epoch: epoch, Tenant: public})
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.DataKey("session", time.Unix(1_700_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(tenant)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Add(epoch, k.Announce()); err != nil {
		t.Fatal(err)
	}
	frame := func(plain []byte) Frame {
		return Frame{Kind: KindPayload, Direction: DirectionResponse, Sequence: 7, Exchange: 5, Piece: 3, Offset: 9,
			Time: time.Unix(1_700_000_001, 2).UTC(), Expiry: time.Unix(1_800_000_000, 0).UTC(), Class: "standard", Body: plain}
	}
	for _, n := range []int{0, 1, 1000, MaxPiece} {
		plain := bytes.Repeat([]byte{'x'}, n)
		f := frame(plain)
		dst := make([]byte, 3, 3+Size("standard", n))
		b, err := k.Append(dst, &f)
		if err != nil {
			t.Fatal(err)
		}
		if &b[0] != &dst[0] || len(b) != 3+Size("standard", n) {
			t.Errorf("%d bytes: the frame of %d did not go into the memory that was given", n, len(b))
		}
		got, _, err := Decode(b[3:])
		if err != nil {
			t.Fatal(err)
		}
		if opened, err := o.Open(epoch, &got); err != nil || !bytes.Equal(opened, plain) {
			t.Errorf("%d bytes: opened %d, %v", n, len(opened), err)
		}
		if f.Leaf() != got.Leaf() || !bytes.Equal(f.Body, got.Body) || f.Key != k.ID() {
			t.Error("the frame is not the one that was appended")
		}
		got.Sequence++
		if _, err := o.Open(epoch, &got); err == nil {
			t.Error("the header is not bound to the body")
		}
	}
	f := frame(make([]byte, MaxBody+1))
	if b, err := k.Append(nil, &f); err == nil || len(b) != 0 {
		t.Errorf("a body above the limit: %d bytes, %v", len(b), err)
	}
}
