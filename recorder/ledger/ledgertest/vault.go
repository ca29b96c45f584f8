// Package ledgertest makes vaults for tests: sealed, chained and cut as
// gateways and the sink make them, with times and epochs that are the same in
// every run. Only keys and nonces differ.
package ledgertest

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Vault is a vault in memory, open to every change.
type Vault struct {
	Files map[string][]byte
	// Listed, where set, is called after each name that List gives. It may change
	// Files while others read.
	Listed func(name string)

	mu sync.RWMutex
}

// New returns an empty vault.
func New() *Vault { return &Vault{Files: map[string][]byte{}} }

// Open returns a file's content.
func (v *Vault) Open(_ context.Context, name string) (io.ReadCloser, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	b, ok := v.Files[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// List gives the names that were there when it began.
func (v *Vault) List(_ context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		v.mu.RLock()
		names := slices.Sorted(maps.Keys(v.Files))
		v.mu.RUnlock()
		for _, name := range names {
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			if !yield(name, nil) {
				return
			}
			if v.Listed != nil {
				v.mu.Lock()
				v.Listed(name)
				v.mu.Unlock()
			}
		}
	}
}

// Clone returns a copy that shares nothing.
func (v *Vault) Clone() *Vault {
	c := New()
	for name, b := range v.Files {
		c.Files[name] = bytes.Clone(b)
	}
	return c
}

// Names gives the names with a prefix, sorted.
func (v *Vault) Names(prefix string) []string {
	var names []string
	for name := range v.Files {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Write writes the vault into a folder.
func (v *Vault) Write(dir string) error {
	for name, b := range v.Files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Start is when the first gateway of a test opens.
var Start = time.Date(2026, 3, 14, 9, 0, 0, 0, time.UTC)

// Gateway plays a gateway and its sink.
type Gateway struct {
	Name  string
	Now   time.Time // each record takes a millisecond
	Vault *Vault
	Epoch record.Epoch
	// Class is the retention class of the records.
	Class string
	// Longest is the class of the segments, where it is empty the one that
	// expires last. Years is each class's retention, 1 where it is not there.
	Longest string
	Years   map[string]int
	// Old: an earlier version's gateway and sink, which do not state when
	// records expire, and keep no copy of the open record.
	Old bool
	// Deployment certifies the epochs that begin; nil: none does.
	Deployment note.Signer

	tenant *keyset.Handle
	random *rand.ChaCha8
	sealer *record.Sealer
	next   uint64
	head   record.ChainHead
	tree   record.Tree
	key    *record.EpochKey
	end    *record.EpochEnd
	open   map[uint64]string // exchanges without an outcome, with their class
	// receipts are those of every exchange of every epoch.
	receipts map[record.ID]record.Receipt

	retained record.Retained
	segment  []record.Frame // since the last cut
	first    uint64
	from     record.ChainHead
	day      string
}

// NewGateway returns a gateway that has not begun an epoch.
func NewGateway(v *Vault, name string, tenant *keyset.Handle) *Gateway {
	var seed [32]byte
	copy(seed[:], name)
	return &Gateway{Name: name, Now: Start, Vault: v, Class: "standard", tenant: tenant, receipts: map[record.ID]record.Receipt{}, random: rand.NewChaCha8(seed)}
}

// Begin opens an epoch and closes what a crash left open.
func (g *Gateway) Begin() {
	crashed := g.Epoch
	id := func(seq uint64) string { return record.ID{Epoch: crashed, Sequence: seq}.String() }
	var left []record.Draft
	for _, seq := range slices.Sorted(maps.Keys(g.open)) {
		o := record.Outcome{OCSF: record.NewOCSF(record.ClassAPI, record.ActivityOther, g.Now, id(seq), "recovery")}
		o.Verbatim = record.OutcomeDetail{Session: "recovery", Result: record.ResultInterrupted, Cause: "gateway crashed", Interrupted: id(seq)}
		left = append(left, record.Draft{Kind: record.KindOutcome, Session: "recovery", Class: g.open[seq], Body: body(o)})
	}
	g.Epoch = must(record.NewEpoch(g.Now, g.random))
	g.sealer = must(record.NewSealer(record.SealerConfig{Epoch: g.Epoch, Tenant: g.tenant}))
	g.key = must(record.NewEpochKey(g.Name, g.Epoch, nil))
	g.tree = record.Tree{}
	g.next, g.head, g.open = 1, record.NewChain(g.Epoch, g.Name), map[uint64]string{}
	g.segment, g.first, g.from, g.retained = nil, 1, g.head, record.Retained{}
	o := record.Open{Gateway: g.Name, Version: "test", Opened: g.Now, Previous: g.end, Key: g.key.Public()}
	if g.Deployment != nil {
		o.Certificate = must(record.Certificate{Gateway: g.Name, Epoch: g.Epoch, Key: o.Key, Opened: g.Now}.Certify(g.Deployment))
	}
	g.put(record.Draft{Kind: record.KindOpen, Body: body(o)}, 0)
	for _, d := range left {
		g.put(d, g.next)
	}
	g.commit()
}

// Append stores the drafts as one commit.
func (g *Gateway) Append(drafts ...record.Draft) record.ID {
	begun := g.next
	for _, d := range drafts {
		exchange := d.Exchange
		if exchange == 0 && d.Session != "" {
			exchange = begun
		}
		g.put(d, exchange)
	}
	g.commit()
	exchange := drafts[0].Exchange
	if exchange == 0 {
		exchange = begun
	}
	return record.ID{Epoch: g.Epoch, Sequence: exchange}
}

func (g *Gateway) put(d record.Draft, exchange uint64) {
	g.Now = g.Now.Add(time.Millisecond)
	f := record.Frame{
		Kind: d.Kind, Direction: d.Direction, Flags: d.Flags, Sequence: g.next, Exchange: exchange,
		Piece: d.Piece, Offset: d.Offset, Time: g.Now, Class: d.Class, Body: d.Body,
	}
	if f.Class == "" {
		f.Class = g.Class
	}
	f.Expiry = g.Now.AddDate(max(1, g.Years[f.Class]), 0, 0).Truncate(time.Second)
	if d.Render != nil {
		f.Body = must(d.Render(record.ID{Epoch: g.Epoch, Sequence: exchange}))
	}
	if d.Session != "" {
		id, fresh, err := g.sealer.Key(d.Session, g.Now)
		check(err)
		f.Key = id
		if fresh != nil {
			g.Vault.Files[vault.KeyName(g.Epoch, id)] = must(fresh.Encode(nil))
		}
		check(g.sealer.Seal(&f, d.Session))
		switch d.Kind {
		case record.KindOutcome:
			delete(g.open, exchange)
		case record.KindAccess: // stands alone
		default:
			g.open[exchange] = f.Class
		}
	}
	if g.segment == nil {
		g.day = vault.Day(g.Now)
	}
	must(f.Encode(nil))
	if f.Kind == record.KindOpen && !g.Old {
		g.Vault.Files[vault.EpochName(g.Name, g.Epoch)] = bytes.Clone(f.Raw())
	}
	g.retained.Add(f.Class, f.Expiry)
	g.segment = append(g.segment, f)
	g.head = g.head.Next(f.Leaf())
	g.tree.Add(f.Leaf())
	if exchange == g.next {
		id := record.ID{Epoch: g.Epoch, Sequence: exchange}
		g.receipts[id] = g.key.Receipt(id, f.Leaf())
	}
	g.next++
}

func (g *Gateway) commit() {
	c := g.checkpoint(false)
	must(c.Encode(nil))
	g.segment = append(g.segment, c)
}

func (g *Gateway) checkpoint(cut bool) record.Frame {
	s := record.Statement{Gateway: g.Name, Epoch: g.Epoch, Size: g.next - 1, Root: g.tree.Root(), Head: g.head, Time: g.Now}
	if !g.Old {
		s.Retained = g.retained.Clone()
	}
	return must(record.Checkpoint(s, g.key.Signer(), cut))
}

// Cut ends the segment and puts it into the vault.
func (g *Gateway) Cut() {
	if g.next == g.first {
		return
	}
	g.cut(g.checkpoint(true))
}

// cut ends the segment with the checkpoint.
func (g *Gateway) cut(end record.Frame) {
	must(end.Encode(nil))
	g.segment = append(g.segment, end)
	last := map[string]time.Time{}
	count := map[string]uint64{}
	for _, f := range g.segment {
		if f.Kind.Leaf() {
			count[f.Class]++
			if f.Expiry.After(last[f.Class]) {
				last[f.Class] = f.Expiry
			}
		}
	}
	longest := g.Longest
	for _, c := range slices.Sorted(maps.Keys(last)) {
		if g.Longest == "" && (longest == "" || last[c].After(last[longest])) {
			longest = c
		}
	}
	if _, ok := last[longest]; !ok {
		last[longest] = time.Time{} // with nothing of its own it holds absences
	}
	for c := range last {
		h := vault.Header{Gateway: g.Name, Epoch: g.Epoch, First: g.first, Last: g.next - 1, Head: g.from, Class: c, Expires: last[c], Records: count[c], Part: c != longest}
		if !h.Part {
			for _, other := range slices.Sorted(maps.Keys(last)) {
				if other != c {
					h.Classes = append(h.Classes, other)
				}
			}
		}
		b := must(h.Append(nil))
		for _, f := range g.segment {
			switch leaf := f.Kind.Leaf(); {
			case leaf && f.Class == c, !leaf && !h.Part:
				b = append(b, f.Raw()...)
			case leaf && !h.Part:
				b = vault.AppendAbsence(b, &f, slices.Index(h.Classes, f.Class))
			}
		}
		name := must(vault.SegmentName(vault.Segment{Day: g.day, Gateway: g.Name, Epoch: g.Epoch, First: g.first, Last: g.next - 1, Class: c, Part: h.Part}))
		g.Vault.Files[name] = b
	}
	g.segment, g.first, g.from = nil, g.next, g.head
	g.retained.Cut()
}

// Crash ends the epoch where it stands. What is not cut reaches the vault, as
// it does when the next process recovers the journal.
func (g *Gateway) Crash() {
	g.Cut()
	g.end = &record.EpochEnd{Epoch: g.Epoch.String(), Sequence: g.next - 1, Head: hex.EncodeToString(g.head[:]), Root: root(g.tree), Truncated: 17}
	if !g.Old {
		g.end.Expiry = g.retained.Latest().String()
	}
}

func root(t record.Tree) string {
	r := t.Root()
	return hex.EncodeToString(r[:])
}

// Lose ends the epoch with the loss of the gateway's disk: the next one begins in
// an empty journal, and does not know of it. What is not cut is salvaged, as the
// sink does, with a note, unless drop is set.
func (g *Gateway) Lose(drop bool) {
	first := g.first
	if !drop && g.next > first {
		last := g.segment[len(g.segment)-1]
		g.cut(must(record.Recut(&last)))
	}
	g.segment, g.end, g.open = nil, nil, nil
	if !drop {
		g.Salvaged(g.Epoch, g.first-1, g.from)
	}
}

// Salvage has the sink cut where the gateway has not, as if it were lost. The
// gateway does not know, and goes on.
func (g *Gateway) Salvage() {
	first, retained := g.first, g.retained.Clone()
	last := g.segment[len(g.segment)-1]
	g.cut(must(record.Recut(&last)))
	g.retained = *retained
	n := vault.Salvage{Version: 1, Kind: vault.SalvageCut, Gateway: g.Name, Epoch: g.Epoch.String(), First: first, Last: g.first - 1, Head: vault.Hex(g.from)}
	g.Vault.Files[must(n.Name())] = must(n.Marshal())
	g.Salvaged(g.Epoch, n.Last, g.from)
}

// Salvaged puts a note into the vault that says where a lost epoch ends.
func (g *Gateway) Salvaged(e record.Epoch, last uint64, head record.ChainHead) {
	n := vault.Salvage{Version: 1, Kind: vault.SalvageEnd, Gateway: g.Name, Epoch: e.String(), Last: last, Head: vault.Hex(head)}
	g.Vault.Files[must(n.Name())] = must(n.Marshal())
}

// Close ends the epoch in order.
func (g *Gateway) Close() {
	g.Append(record.Draft{Kind: record.KindClose, Body: body(record.Close{Reason: "stop"})})
	g.Crash()
	g.end.Closed, g.end.Truncated = true, 0
}

// Receipt is what the caller of an exchange got.
func (g *Gateway) Receipt(id record.ID) record.Receipt { return g.receipts[id] }

// Key is the key of the present epoch.
func (g *Gateway) Key() *record.EpochKey { return g.key }

// Deployment makes a deployment's key, and its public part.
func Deployment(name string) (note.Signer, string) {
	secret, public, err := note.GenerateKey(nil, name)
	check(err)
	return must(note.NewSigner(secret)), public
}

// Forget makes recovery miss an exchange that is open.
func (g *Gateway) Forget(id record.ID) { delete(g.open, id.Sequence) }

// Remember makes recovery take an exchange for open.
func (g *Gateway) Remember(id record.ID) { g.open[id.Sequence] = g.Class }

// Heartbeat records that the gateway is alive.
func (g *Gateway) Heartbeat() {
	g.Append(record.Draft{Kind: record.KindHeartbeat, Body: body(record.Heartbeat{Open: uint64(len(g.open))})})
}

func body(v any) []byte { return must(record.Marshal(v)) }

func must[T any](v T, err error) T {
	check(err)
	return v
}

// check ends the test: what it is given cannot fail in a generator.
func check(err error) {
	if err != nil {
		panic(err)
	}
}
