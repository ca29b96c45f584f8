package ledger_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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

var tenant, public = tenants()

func tenants() (private, public *keyset.Handle) {
	private, err := record.NewTenant()
	if err != nil {
		panic(err)
	}
	if public, err = private.Public(); err != nil {
		panic(err)
	}
	return private, public
}

func query(n int) ledgertest.Exchange {
	return ledgertest.Exchange{
		Session: fmt.Sprintf("s%d", n%3), Subject: fmt.Sprintf("user%d", n%3), SQL: "SELECT 1", Received: n%2 == 0,
		Request: []byte(`{"query":"SELECT 1"}`), Upstream: []byte(`{"query":"SELECT 1","labels":{}}`), Response: bytes.Repeat([]byte("row,"), 50000),
	}
}

// sample is a vault with two gateways: gw-1 crashes with two exchanges open and
// comes back, twice; gw-2 ends in order.
func sample() *ledgertest.Vault {
	v, _, _ := gateways()
	return v
}

var deployment, deploymentKey = ledgertest.Deployment("deployment")

func gateways() (*ledgertest.Vault, *ledgertest.Gateway, *ledgertest.Gateway) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Deployment = deployment
	g.Begin()
	for i := range 4 {
		g.Run(query(i))
		g.Cut()
	}
	g.Run(query(4))
	g.Start(query(5))
	g.Start(query(6))
	g.Crash()
	g.Now = g.Now.Add(20 * time.Hour) // over midnight
	g.Begin()
	g.Heartbeat()
	g.Run(ledgertest.Exchange{Session: "s1", Subject: "user1", SQL: "DROP TABLE t", Deny: []record.Reason{{Code: "read_only", Message: "no DDL"}}, Request: []byte("{}"), Response: []byte(`{"error":{}}`)})
	g.Cut()
	g.Run(query(7))
	g.Cut()
	g.Start(query(8))
	g.Crash()
	g.Now = g.Now.Add(time.Hour)
	g.Begin()
	g.Run(query(9))
	g.Start(query(10))
	g.Cut()

	h := ledgertest.NewGateway(v, "gw-2", public)
	h.Deployment = deployment
	h.Begin()
	h.Run(query(0))
	m := query(1)
	m.Metadata = true
	h.Run(m)
	h.Close()
	return v, g, h
}

func verify(t *testing.T, v ledger.Vault, private *keyset.Handle) *ledger.Report {
	t.Helper()
	return verifyWith(t, v, private, ledger.Options{})
}

func verifyWith(t *testing.T, v ledger.Vault, private *keyset.Handle, o ledger.Options) *ledger.Report {
	t.Helper()
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

func TestSound(t *testing.T) {
	for _, keys := range []*keyset.Handle{nil, tenant} {
		t.Run(fmt.Sprintf("keys=%v", keys != nil), func(t *testing.T) {
			v := sample()
			r := verify(t, v, keys)
			for _, f := range r.Findings {
				t.Errorf("finding: %s", f)
			}
			if !r.Sound || r.KeysMissing != 0 {
				t.Errorf("sound %v, %d keys missing", r.Sound, r.KeysMissing)
			}
			want := ledger.Exchanges{Total: 14, Ended: 10, Interrupted: 3, Pending: 1}
			if r.Exchanges != want {
				t.Errorf("exchanges %+v, want %+v", r.Exchanges, want)
			}
			if len(r.Gateways) != 2 || r.Gateways[0].Epochs != 3 || r.Gateways[0].Closed || !r.Gateways[1].Closed {
				t.Errorf("gateways %+v", r.Gateways)
			}
			if r.Complete != r.Gateways[0].Complete {
				t.Errorf("complete until %v, want the open gateway's %v", r.Complete, r.Gateways[0].Complete)
			}
			if int(r.Segments) != len(v.Names("segments/")) {
				t.Errorf("%d segments", r.Segments)
			}
		})
	}
}

func TestEmpty(t *testing.T) {
	r := verify(t, ledgertest.New(), nil)
	if !r.Sound || !r.Complete.IsZero() {
		t.Errorf("%+v", r)
	}
}

// TestEveryPrefix holds that a vault is sound at each moment of its making: the
// sink writes segments in order, and may stop after any of them.
func TestEveryPrefix(t *testing.T) {
	full := sample()
	var names []string
	for _, epochs := range [][]string{full.Names("segments/dt=2026-03-14/gw-1/"), full.Names("segments/dt=2026-03-15/gw-1/")} {
		names = append(names, epochs...)
	}
	for n := range len(names) + 1 {
		v := full.Clone()
		for _, name := range names[n:] {
			delete(v.Files, name)
		}
		for _, keys := range []*keyset.Handle{nil, tenant} {
			r := verifyWith(t, v, keys, ledger.Options{Trust: trust(t, deploymentKey)})
			if !r.Sound || len(r.Notices) > 0 {
				t.Errorf("after %d segments: %v, %v", n, r.Findings, r.Notices)
			}
		}
	}
}

// TestErased holds that an erased key is no tampering.
func TestErased(t *testing.T) {
	v := sample()
	n := 0
	for _, name := range v.Names("keys/") {
		delete(v.Files, name)
		n++
	}
	for _, keys := range []*keyset.Handle{nil, tenant} {
		r := verify(t, v, keys)
		if !r.Sound || int(r.KeysMissing) != n || len(r.Missing) != n || r.Missing[0].Sequence == 0 {
			t.Errorf("sound %v, %d keys missing of %d, %v, findings %v", r.Sound, r.KeysMissing, n, r.Missing, r.Findings)
		}
	}
}

// TestGrowing holds that a sink at work raises nothing: segments that appear
// behind the listing's back are read when the next one shows that they exist.
func TestGrowing(t *testing.T) {
	full := sample()
	names := full.Names("segments/dt=2026-03-14/gw-1/")
	v := full.Clone()
	late := names[2:4]
	for _, name := range late {
		delete(v.Files, name)
	}
	v.Listed = func(name string) {
		if name == names[1] {
			for _, name := range late {
				v.Files[name] = full.Files[name]
			}
		}
	}
	if r := verify(t, v, tenant); !r.Sound || int(r.Segments) != len(full.Names("segments/")) {
		t.Errorf("segments %d, findings %v", r.Segments, r.Findings)
	}
	// The end of an epoch, seen first in what the next epoch cites.
	v = full.Clone()
	last := names[len(names)-1]
	delete(v.Files, last)
	v.Listed = func(name string) {
		if strings.Contains(name, "dt=2026-03-15") {
			v.Files[last] = full.Files[last]
		}
	}
	if r := verify(t, v, tenant); !r.Sound {
		t.Errorf("findings %v", r.Findings)
	}
}

type broken struct{ *ledgertest.Vault }

func (b broken) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := b.Vault.Open(ctx, name)
	if err != nil || !strings.HasPrefix(name, "segments/") {
		return r, err
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(r, 1000), failing{})), nil
}

type failing struct{}

var errDisk = errors.New("disk does not answer")

func (failing) Read([]byte) (int, error) { return 0, errDisk }

func TestUnreadable(t *testing.T) {
	if _, err := ledger.Verify(context.Background(), broken{sample()}, ledger.Options{}); !errors.Is(err, errDisk) {
		t.Errorf("a disk that fails gave %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errDisk)
	if _, err := ledger.Verify(ctx, sample(), ledger.Options{}); !errors.Is(err, errDisk) {
		t.Errorf("a context that ended gave %v", err)
	}
}

// tamperer changes a vault. The frames of a segment are in its hands.
type tamperer struct {
	t *testing.T
	v *ledgertest.Vault
}

// segment returns the nth segment of a day and gateway.
func (x tamperer) segment(day, gateway string, n int) string {
	names := x.v.Names("segments/dt=" + day + "/" + gateway + "/")
	if n < 0 {
		n += len(names)
	}
	return names[n]
}

func (x tamperer) first() string  { return x.segment("2026-03-14", "gw-1", 0) }
func (x tamperer) second() string { return x.segment("2026-03-14", "gw-1", 1) }

// edit rewrites a segment from its header and frames.
func (x tamperer) edit(name string, change func(h *vault.Header, frames []record.Frame) []record.Frame) {
	r, err := vault.ReadSegment(name, bytes.NewReader(x.v.Files[name]))
	if err != nil {
		x.t.Fatal(err)
	}
	h := r.Header()
	var frames []record.Frame
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			x.t.Fatal(err)
		}
		frames = append(frames, f)
	}
	frames = change(&h, frames)
	b, err := h.Append(nil)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, f := range frames {
		if b, err = f.Encode(b); err != nil {
			x.t.Fatal(err)
		}
	}
	x.v.Files[name] = b
}

// rechain makes checkpoints fit the frames again, as one with the program in
// hand would.
// attacker is somebody who may write the vault and has a key of his own.
var attacker = func() *record.EpochKey {
	k, err := record.NewEpochKey("gw-1", record.Epoch{}, nil)
	if err != nil {
		panic(err)
	}
	return k
}()

func stated(f record.Frame) record.ChainHead {
	head, err := record.CheckpointHead(&f)
	if err != nil {
		panic(err)
	}
	return head
}

// forged states another head of the chain, under the attacker's signature.
func forged(f *record.Frame, head record.ChainHead) []byte {
	s, err := record.Stated(f)
	if err != nil {
		panic(err)
	}
	s.Head = head
	c, err := record.Checkpoint(s, attacker.Signer(), false)
	if err != nil {
		panic(err)
	}
	return c.Body
}

func rechain(h *vault.Header, frames []record.Frame) []record.Frame {
	head := h.Head
	for i := range frames {
		f := &frames[i]
		if f.Kind == record.KindCheckpoint {
			f.Body = forged(f, head)
			continue
		}
		if _, err := f.Encode(nil); err != nil {
			panic(err)
		}
		head = head.Next(f.Leaf())
	}
	return frames
}

func at(frames []record.Frame, kind record.Kind, n int) int {
	for i, f := range frames {
		if f.Kind == kind {
			if n == 0 {
				return i
			}
			n--
		}
	}
	panic("no such frame")
}

func (x tamperer) rename(from, to string) {
	x.v.Files[to] = x.v.Files[from]
	delete(x.v.Files, from)
}

// later rechains an epoch's whole rest after a change in one of its segments:
// all that one can do who may write the vault, but for what other epochs cite.
func (x tamperer) later(name string, change func(frames []record.Frame) []record.Frame) {
	n, err := vault.ParseSegmentName(name)
	if err != nil {
		x.t.Fatal(err)
	}
	head := record.ChainHead{}
	started := false
	for _, other := range x.v.Names("segments/") {
		if !strings.Contains(other, n.Epoch.String()) || other < name {
			continue
		}
		x.edit(other, func(h *vault.Header, frames []record.Frame) []record.Frame {
			if started {
				h.Head = head
			} else {
				frames = change(frames)
			}
			started = true
			frames = rechain(h, frames)
			head = stated(frames[len(frames)-1])
			return frames
		})
	}
}

func drop(frames []record.Frame, i int) []record.Frame {
	return append(append([]record.Frame(nil), frames[:i]...), frames[i+1:]...)
}

func TestTampered(t *testing.T) {
	type edit = func(h *vault.Header, f []record.Frame) []record.Frame
	inFirst := func(e edit) func(x tamperer) string {
		return func(x tamperer) string { x.edit(x.first(), e); return x.first() }
	}
	tests := []struct {
		name  string
		keyed bool // found only with the tenant's keyset
		code  ledger.Code
		seq   uint64 // of the finding; 0: not compared
		text  string // in the finding's message
		// do returns the segment that the finding must name.
		do func(x tamperer) string
	}{
		{name: "bit flipped in a body", code: ledger.FrameWrong, text: "checksum", do: func(x tamperer) string {
			b := x.v.Files[x.first()]
			b[len(b)/2] ^= 1
			return x.first()
		}},
		{name: "bit flipped in a length", code: ledger.FrameWrong, seq: 1, do: func(x tamperer) string {
			b := x.v.Files[x.first()]
			at := bytes.IndexByte(b, '}') + 2
			b[at+3] ^= 1
			return x.first()
		}},
		{name: "length of 4 GB", code: ledger.FrameWrong, seq: 1, text: "outside", do: func(x tamperer) string {
			b := x.v.Files[x.first()]
			at := bytes.IndexByte(b, '}') + 2
			b[at] = 0xff
			return x.first()
		}},
		{name: "frame version", code: ledger.FrameWrong, seq: 1, text: "version 9", do: func(x tamperer) string {
			b := x.v.Files[x.first()]
			at := bytes.IndexByte(b, '}') + 2
			n := int(binary.BigEndian.Uint32(b[at:])) + 4
			b[at+4] = 9
			binary.BigEndian.PutUint32(b[at+n-4:], crc32.Checksum(b[at:at+n-4], crc32.MakeTable(crc32.Castagnoli)))
			return x.first()
		}},
		{name: "file cut within a record", code: ledger.FrameWrong, text: "cut off", do: func(x tamperer) string {
			b := x.v.Files[x.first()]
			x.v.Files[x.first()] = b[:len(b)-5]
			return x.first()
		}},
		{name: "file cut between records", code: ledger.EndWrong, text: "does not end with its cut checkpoint", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame { return f[:len(f)-2] })},
		{name: "cut checkpoint dropped", code: ledger.EndWrong, text: "cut checkpoint", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame { return f[:len(f)-1] })},
		{name: "file emptied", code: ledger.HeaderWrong, do: func(x tamperer) string { x.v.Files[x.first()] = nil; return x.first() }},
		{name: "all records dropped", code: ledger.EndWrong, text: "no records", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame { return nil })},
		{name: "bytes added at the end", code: ledger.FrameWrong, do: func(x tamperer) string {
			x.v.Files[x.first()] = append(x.v.Files[x.first()], "more"...)
			return x.first()
		}},
		{name: "record added at the end", code: ledger.EndWrong, text: "follows the cut checkpoint", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame { return append(f, f[0]) })},
		{name: "records swapped", code: ledger.SequenceWrong, seq: 3, text: "record 3 stands where record 2 must", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			i := at(f, record.KindReceived, 0)
			j := at(f, record.KindProbe, 0)
			f[i], f[j] = f[j], f[i]
			return f
		})},
		{name: "record dropped", code: ledger.SequenceWrong, seq: 3, text: "a checkpoint for record 3 stands after record 2", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame { return drop(f, at(f, record.KindProbe, 0)) })},
		{name: "record twice", code: ledger.SequenceWrong, seq: 2, do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			i := at(f, record.KindReceived, 0)
			return append(append(append([]record.Frame(nil), f[:i+1]...), f[i]), f[i+1:]...)
		})},
		{name: "record replaced, checksum made right", code: ledger.ChainWrong, seq: 4, text: "one of the records 4 to 4", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			f[at(f, record.KindIntent, 0)].Body[20] ^= 1
			return f
		})},
		{name: "time changed, checksum made right", code: ledger.ChainWrong, seq: 1, do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			f[0].Time = f[0].Time.Add(time.Second)
			return f
		})},
		{name: "record replaced, segment's chain made right", code: ledger.ChainWrong, text: "the segment before ends with", do: func(x tamperer) string {
			x.edit(x.first(), func(h *vault.Header, f []record.Frame) []record.Frame {
				f[at(f, record.KindIntent, 0)].Time = f[0].Time
				return rechain(h, f)
			})
			return x.second()
		}},
		{name: "record replaced, epoch's chain made right", code: ledger.EpochWrong, seq: 1, text: "cites the head", do: func(x tamperer) string {
			x.later(x.first(), func(f []record.Frame) []record.Frame {
				f[at(f, record.KindIntent, 0)].Time = f[0].Time
				return f
			})
			return x.segment("2026-03-15", "gw-1", 0)
		}},
		{name: "sealed body replaced, whole vault made right", keyed: true, code: ledger.BodyWrong, text: "does not open", do: func(x tamperer) string {
			name := x.segment("2026-03-15", "gw-1", -1)
			x.later(name, func(f []record.Frame) []record.Frame {
				f[at(f, record.KindIntent, 0)].Body[20] ^= 1
				return f
			})
			return name
		}},
		{name: "checkpoint of another record", code: ledger.ChainWrong, text: "in a frame of sequence 7", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			f[at(f, record.KindCheckpoint, 0)].Sequence = 7
			return f
		})},
		{name: "checkpoint without a head", code: ledger.ChainWrong, text: "no signature follows", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			f[at(f, record.KindCheckpoint, 0)].Body = []byte("short")
			return f
		})},
		{name: "record and its checkpoint dropped", code: ledger.SequenceWrong, seq: 4, text: "stands where record 3 must", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			i := at(f, record.KindProbe, 0)
			return drop(drop(f, i), i)
		})},
		{name: "checkpoint with more in it", code: ledger.ChainWrong, text: "fields set", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			f[at(f, record.KindCheckpoint, 0)].Offset = 7
			return f
		})},
		{name: "cut checkpoint in the middle", code: ledger.EndWrong, do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			f[at(f, record.KindCheckpoint, 0)].Flags |= record.FlagCut
			return f
		})},
		{name: "key frame in a segment", code: ledger.KindWrong, text: "key frame", do: inFirst(func(_ *vault.Header, f []record.Frame) []record.Frame {
			return append([]record.Frame{{Kind: record.KindKey, Time: f[0].Time, Body: []byte("k")}}, f...)
		})},
		{name: "first segment deleted", code: ledger.SegmentMissing, text: "records 1 to ", do: func(x tamperer) string {
			delete(x.v.Files, x.first())
			return x.first()
		}},
		{name: "segment deleted", code: ledger.SegmentMissing, text: "are missing between", do: func(x tamperer) string {
			delete(x.v.Files, x.second())
			return x.second()
		}},
		{name: "tail of an epoch deleted", code: ledger.SegmentMissing, text: "the next epoch", do: func(x tamperer) string {
			delete(x.v.Files, x.segment("2026-03-14", "gw-1", -1))
			return x.segment("2026-03-14", "gw-1", -1)
		}},
		{name: "epoch deleted", code: ledger.EpochWrong, seq: 1, text: "is not in the vault", do: func(x tamperer) string {
			for _, name := range x.v.Names("segments/dt=2026-03-14/gw-1/") {
				delete(x.v.Files, name)
			}
			return x.segment("2026-03-15", "gw-1", 0)
		}},
		{name: "segment copied under another day", code: ledger.SegmentTwice, do: func(x tamperer) string {
			to := strings.Replace(x.second(), "2026-03-14", "2026-03-17", 1)
			x.v.Files[to] = x.v.Files[x.second()]
			return to
		}},
		{name: "segment copied under another range", code: ledger.SegmentTwice, do: func(x tamperer) string {
			n, _ := vault.ParseSegmentName(x.second())
			n.First++
			to, _ := vault.SegmentName(n)
			x.v.Files[to] = x.v.Files[x.second()]
			return to
		}},
		{name: "segment renamed: day", code: ledger.NameWrong, text: "is of 2026-03-14", do: func(x tamperer) string {
			from := x.first()
			to := strings.Replace(from, "2026-03-14", "2026-03-13", 1)
			x.rename(from, to)
			return to
		}},
		{name: "segment renamed: last", code: ledger.HeaderWrong, text: "not what the name says", do: func(x tamperer) string {
			from := x.first()
			n, _ := vault.ParseSegmentName(from)
			n.Last--
			to, _ := vault.SegmentName(n)
			x.rename(from, to)
			return to
		}},
		{name: "segment renamed: last above", code: ledger.HeaderWrong, text: "not what the name says", do: func(x tamperer) string {
			from := x.segment("2026-03-15", "gw-1", -1)
			n, _ := vault.ParseSegmentName(from)
			n.Last += 3
			to, _ := vault.SegmentName(n)
			x.rename(from, to)
			return to
		}},
		{name: "segment renamed: gateway", code: ledger.HeaderWrong, text: "not what the name says", do: func(x tamperer) string {
			from := x.first()
			to := strings.Replace(from, "gw-1", "gw-0", 1)
			x.rename(from, to)
			return to
		}},
		{name: "segment renamed: epoch", code: ledger.HeaderWrong, text: "not what the name says", do: func(x tamperer) string {
			from := x.first()
			n, _ := vault.ParseSegmentName(from)
			n.Epoch[15] ^= 1
			to, _ := vault.SegmentName(n)
			x.rename(from, to)
			return to
		}},
		{name: "two segments' names swapped", code: ledger.HeaderWrong, do: func(x tamperer) string {
			a, b := x.first(), x.second()
			x.v.Files[a], x.v.Files[b] = x.v.Files[b], x.v.Files[a]
			return a
		}},
		{name: "foreign file among the segments", code: ledger.FileUnknown, do: func(x tamperer) string {
			name := "segments/dt=2026-03-14/gw-1/notes.txt"
			x.v.Files[name] = []byte("hello")
			return name
		}},
		{name: "header: head", code: ledger.ChainWrong, text: "the header begins the chain", do: inFirst(func(h *vault.Header, f []record.Frame) []record.Frame {
			h.Head[0] ^= 1
			return f
		})},
		{name: "header: gateway", code: ledger.HeaderWrong, do: inFirst(func(h *vault.Header, f []record.Frame) []record.Frame {
			h.Gateway = "gw-9"
			return f
		})},
		{name: "header: a space more", code: ledger.HeaderWrong, text: "canonical", do: func(x tamperer) string {
			x.v.Files[x.first()] = bytes.Replace(x.v.Files[x.first()], []byte(`,"first"`), []byte(`, "first"`), 1)
			return x.first()
		}},
		{name: "header: version", code: ledger.HeaderWrong, do: func(x tamperer) string {
			x.v.Files[x.first()] = bytes.Replace(x.v.Files[x.first()], []byte("segment 2"), []byte("segment 7"), 1)
			return x.first()
		}},
		{name: "whole epoch given to another gateway", code: ledger.KindWrong, text: `gateway "gw-1"`, do: func(x tamperer) string {
			old, _ := vault.ParseSegmentName(x.segment("2026-03-15", "gw-1", -1))
			var renamed []string
			head := record.NewChain(old.Epoch, "gw-3")
			for _, name := range x.v.Names("segments/") {
				n, _ := vault.ParseSegmentName(name)
				if n.Epoch != old.Epoch {
					continue
				}
				b := x.v.Files[name]
				n.Gateway = "gw-3"
				to, _ := vault.SegmentName(n)
				delete(x.v.Files, name)
				x.v.Files[to] = bytes.Replace(b, []byte(`"gw-1"`), []byte(`"gw-3"`), 1)
				x.edit(to, func(h *vault.Header, f []record.Frame) []record.Frame {
					h.Head = head
					f = rechain(h, f)
					head = stated(f[len(f)-1])
					return f
				})
				renamed = append(renamed, to)
			}
			return renamed[0]
		}},
		{name: "key file of another key", code: ledger.KeyWrong, text: "holds the key", do: func(x tamperer) string {
			keys := x.v.Names("keys/")
			x.v.Files[keys[0]], x.v.Files[keys[1]] = x.v.Files[keys[1]], x.v.Files[keys[0]]
			return ""
		}},
		{name: "key file changed", code: ledger.KeyWrong, text: "checksum", do: func(x tamperer) string {
			keys := x.v.Names("keys/")
			x.v.Files[keys[0]][40] ^= 1
			return ""
		}},
		{name: "key file with more bytes", code: ledger.KeyWrong, text: "more bytes", do: func(x tamperer) string {
			keys := x.v.Names("keys/")
			x.v.Files[keys[0]] = append(x.v.Files[keys[0]], 0)
			return ""
		}},
		{name: "key file with another frame", code: ledger.KeyWrong, text: "heartbeat frame", do: func(x tamperer) string {
			f := record.Frame{Kind: record.KindHeartbeat, Time: ledgertest.Start}
			x.v.Files[x.v.Names("keys/")[0]], _ = f.Encode(nil)
			return ""
		}},
		{name: "key wrapped anew", keyed: true, code: ledger.KeyWrong, text: "another tenant's keyset, or the key was changed", do: func(x tamperer) string {
			name := x.v.Names("keys/")[0]
			f, _, err := record.Decode(x.v.Files[name])
			if err != nil {
				x.t.Fatal(err)
			}
			f.Body[10] ^= 1
			x.v.Files[name], _ = f.Encode(nil)
			return ""
		}},
		{name: "previous epoch not cited any more", code: ledger.TailLost, do: func(x tamperer) string {
			last := x.segment("2026-03-14", "gw-1", -1)
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous = nil }))
			return last
		}},
		{name: "previous citation: sequence below", code: ledger.EpochWrong, seq: 1, text: "the vault holds", do: func(x tamperer) string {
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous.Sequence-- }))
			return x.segment("2026-03-15", "gw-1", 0)
		}},
		{name: "previous citation: sequence above", code: ledger.SegmentMissing, text: "are missing", do: func(x tamperer) string {
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous.Sequence += 2 }))
			return x.segment("2026-03-14", "gw-1", -1)
		}},
		{name: "previous citation: closed", code: ledger.EpochWrong, text: "closed in order", do: func(x tamperer) string {
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous.Closed = true }))
			return x.segment("2026-03-15", "gw-1", 0)
		}},
		{name: "previous citation: another gateway's epoch", code: ledger.EpochWrong, text: "is gateway gw-2's", do: func(x tamperer) string {
			other, _ := vault.ParseSegmentName(x.segment("2026-03-14", "gw-2", 0))
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous.Epoch = other.Epoch.String() }))
			return x.segment("2026-03-15", "gw-1", 0)
		}},
		{name: "previous citation: no epoch", code: ledger.EpochWrong, do: func(x tamperer) string {
			x.later(x.segment("2026-03-15", "gw-1", 0), cite(func(o *record.Open) { o.Previous.Epoch = "../../etc" }))
			return x.segment("2026-03-15", "gw-1", 0)
		}},
	}
	for _, tt := range tests {
		for _, keys := range []*keyset.Handle{nil, tenant} {
			if tt.keyed && keys == nil {
				continue
			}
			t.Run(fmt.Sprintf("%s/keys=%v", tt.name, keys != nil), func(t *testing.T) {
				v := sample()
				segment := tt.do(tamperer{t, v})
				r := verify(t, v, keys)
				if r.Sound || len(r.Findings) == 0 {
					t.Fatal("nothing was found")
				}
				for _, f := range r.Findings {
					if f.Code != tt.code || !strings.Contains(f.Message, tt.text) || tt.seq != 0 && f.Sequence != tt.seq || segment != "" && f.Segment != segment {
						continue
					}
					return
				}
				t.Errorf("want %s at %s, record %d, %q; found:", tt.code, segment, tt.seq, tt.text)
				for _, f := range r.Findings {
					t.Errorf("  %s: %s", f.Code, f)
				}
			})
		}
	}
}

// cite changes what an epoch's open record says.
func cite(change func(*record.Open)) func([]record.Frame) []record.Frame {
	return func(f []record.Frame) []record.Frame {
		var o record.Open
		if err := record.Unmarshal(f[0].Body, &o); err != nil {
			panic(err)
		}
		change(&o)
		f[0].Body, _ = json.Marshal(o)
		return f
	}
}
