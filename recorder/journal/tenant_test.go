package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/record"
)

// TestSetTenant rotates the tenant's key twice while exchanges are recorded: what
// begins after a rotation opens with the new key alone, what was before it opens
// with the rotated keyset, an exchange has one data key to its end, and no
// sequence is missing.
func TestSetTenant(t *testing.T) {
	c := testConfig(t.TempDir(), nil)
	c.Limit, c.SegmentSize = 64<<20, 1<<20
	j := mustOpen(t, c)
	privates := []*keyset.Handle{tenant()}
	for range 2 {
		next, err := record.RotateTenant(privates[len(privates)-1])
		if err != nil {
			t.Fatal(err)
		}
		privates = append(privates, next)
	}
	primary := func(i int) uint32 { return privates[i].KeysetInfo().GetPrimaryKeyId() }

	var (
		rotated atomic.Int64 // how many rotations have returned
		mu      sync.Mutex
		least   = map[record.ID]int{} // by record: the rotations before it was appended
		work    sync.WaitGroup
		stop    = make(chan struct{})
	)
	appendOne := func(session string, n int) error {
		before := int(rotated.Load())
		k := j.Append(record.Draft{Kind: record.KindReceived, Session: session, Body: fmt.Appendf(nil, "%s %d", session, n)})
		if err := k.Wait(testContext(t)); err != nil {
			return err
		}
		o := j.Append(record.Draft{Kind: record.KindOutcome, Exchange: k.ID.Sequence, Session: session, Body: []byte("{}")})
		if err := o.Wait(testContext(t)); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		least[record.ID{Epoch: k.ID.Epoch, Sequence: k.Last}] = before
		least[record.ID{Epoch: k.ID.Epoch, Sequence: o.Last}] = before
		return nil
	}
	// One that outlasts both rotations.
	long := j.Append(record.Draft{Kind: record.KindReceived, Session: "s-long", Body: []byte("begin")})
	if err := long.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	least[long.ID] = 0
	for i := range 8 {
		work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := appendOne(fmt.Sprintf("s-%d", i%5), n); err != nil { // sessions are shared
					t.Error(err)
					return
				}
			}
		})
	}
	for i := 1; i < len(privates); i++ {
		time.Sleep(60 * time.Millisecond)
		public, err := privates[i].Public()
		if err != nil {
			t.Fatal(err)
		}
		if err := j.SetTenant(public); err != nil {
			t.Fatal(err)
		}
		rotated.Add(1)
	}
	time.Sleep(60 * time.Millisecond)
	// What is no public keyset changes nothing.
	for _, bad := range []*keyset.Handle{nil, privates[0]} {
		if err := j.SetTenant(bad); err == nil {
			t.Error("no public keyset is taken")
		}
	}
	if err := appendOne("s-last", 0); err != nil {
		t.Error(err)
	}
	end := j.Append(record.Draft{Kind: record.KindOutcome, Exchange: long.ID.Sequence, Session: "s-long", Body: []byte("{}")})
	if err := end.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	// One that cannot be made is not kept.
	void := j.Append(record.Draft{Kind: record.KindReceived, Session: "s-void", Render: func(record.ID) ([]byte, error) { return nil, errors.New("no") }})
	if err := void.Wait(testContext(t)); err == nil {
		t.Error("what cannot be rendered is durable")
	}
	close(stop)
	work.Wait()
	mu.Lock()
	least[record.ID{Epoch: end.ID.Epoch, Sequence: end.Last}] = 0
	mu.Unlock()
	if n := len(j.running); n != 0 {
		t.Errorf("%d exchanges are kept that have ended", n)
	}
	mustClose(t, j)

	var openers []*record.Opener
	for _, p := range privates {
		o, err := record.NewOpener(p)
		if err != nil {
			t.Fatal(err)
		}
		openers = append(openers, o)
	}
	tail := j.Tail()
	defer tail.Close()
	wrappedTo := map[record.KeyID]int{}
	began := map[uint64]record.KeyID{}
	checked, next := make([]int, len(privates)), uint64(1)
	for {
		it, err := tail.Next(testContext(t))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		f := &it.Frame
		if f.Kind == record.KindKey {
			id := binary.BigEndian.Uint32(f.Body[1:]) // Tink's prefix names the key that opens
			to := -1
			for i := range privates {
				if primary(i) == id {
					to = i
				}
			}
			wrappedTo[f.Key] = to
			for i, o := range openers {
				if err := o.Add(it.Epoch, f); (err == nil) != (i >= to) {
					t.Errorf("a data key wrapped to the keyset of %d rotations, opened with that of %d: %v", to, i, err)
				}
			}
			continue
		}
		if f.Kind.Leaf() {
			if f.Sequence != next {
				t.Fatalf("sequence %d, want %d", f.Sequence, next)
			}
			next++
		}
		if f.Key == (record.KeyID{}) {
			continue
		}
		if _, err := openers[len(openers)-1].Open(it.Epoch, f); err != nil {
			t.Errorf("record %d: %v", f.Sequence, err)
		}
		if first, ok := began[f.Exchange]; ok && first != f.Key {
			t.Errorf("record %d is sealed with another data key than the beginning of its exchange", f.Sequence)
		}
		began[f.Exchange] = f.Key
		want, ok := least[record.ID{Epoch: it.Epoch, Sequence: f.Sequence}]
		if !ok {
			t.Fatalf("record %d is nobody's", f.Sequence)
		}
		if wrappedTo[f.Key] < want {
			t.Errorf("record %d, appended after %d rotations, is sealed for the keyset of %d", f.Sequence, want, wrappedTo[f.Key])
		}
		checked[wrappedTo[f.Key]]++
	}
	for i, n := range checked {
		if n < 10 {
			t.Errorf("%d records are sealed for the keyset of %d rotations: the test had no load", n, i)
		}
	}
}
