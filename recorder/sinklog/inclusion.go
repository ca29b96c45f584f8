package sinklog

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/witness"
)

// Inclusion shows with no vault at hand that a cut checkpoint is in the log: a
// signed checkpoint of the log, with the cosignatures that it has, and the
// hashes from the entry up to its root.
type Inclusion struct {
	Checkpoint string   `json:"checkpoint"` // signed note
	Index      int64    `json:"index"`
	Hashes     []string `json:"hashes"` // base64, RFC 6962, section 2.1.1
}

// Check reports whether the log whose key is given has the entry, and returns
// the checkpoint with the signatures by that key and by the others.
func (i *Inclusion) Check(entry []byte, log note.Verifier, others ...note.Verifier) (witness.Checkpoint, *note.Note, error) {
	c, n, err := witness.OpenCheckpoint([]byte(i.Checkpoint), log, others...)
	if err != nil {
		return c, nil, err
	}
	if i.Index < 0 || i.Index >= c.N || len(i.Hashes) > 64 {
		return c, nil, fmt.Errorf("entry %d with %d hashes, in a log of %d", i.Index, len(i.Hashes), c.N)
	}
	var proof tlog.RecordProof
	for _, text := range i.Hashes {
		b, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || len(b) != tlog.HashSize {
			return c, nil, fmt.Errorf("%.80q is no hash", text)
		}
		proof = append(proof, tlog.Hash(b))
	}
	if err := tlog.CheckRecord(proof, c.N, c.Hash, i.Index, tlog.RecordHash(entry)); err != nil {
		return c, nil, fmt.Errorf("the hashes do not lead from the epoch's checkpoint to the root of the log: %w", err)
	}
	return c, n, nil
}

// Reader is the part of a vault that proves inclusion.
type Reader interface {
	Opener
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// mostTried is how many cosigned checkpoints are looked at, from the newest on,
// for the one that most have signed.
const mostTried = 32

// Prover proves what a log holds. It trusts the vault: whoever checks the proofs
// does not. It is not safe for concurrent use. It takes 16 bytes an entry that
// it read.
type Prover struct {
	ctx    context.Context
	v      Reader
	signed []signedTree // most signatures first, of these the newest
	end    int64        // of the largest tree
	next   int64        // entries from here on were read

	epochs map[record.Epoch][]logged // newest first
	chosen map[record.Epoch]chosen
}

type signedTree struct {
	note       []byte
	tree       tlog.Tree
	signatures int
}

type logged struct {
	index int64
	size  uint64
}

type chosen struct {
	logged
	in *signedTree
}

// NewProver returns nil where the vault has no log, or none that was signed.
func NewProver(ctx context.Context, v Reader) (*Prover, error) {
	var names []string
	for name, err := range v.List(ctx, CosignedPrefix) {
		if err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		if _, _, err := ParseCosignedName(name); err == nil {
			if names = append(names, name); len(names) > 2*mostTried {
				names = append(names[:0], names[mostTried:]...)
			}
		}
	}
	p := &Prover{ctx: ctx, v: v, epochs: map[record.Epoch][]logged{}, chosen: map[record.Epoch]chosen{}}
	for i := len(names) - 1; i >= max(0, len(names)-mostTried); i-- {
		b, err := Read(ctx, v, names[i], witness.MaxCheckpoint)
		if err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		text, signatures, _ := strings.Cut(string(b), "\n\n")
		c, err := witness.ParseCheckpoint(text + "\n")
		if err != nil {
			return nil, fmt.Errorf("log: %s is no checkpoint (%w); recorder verify says what is wrong", names[i], err)
		}
		if c.N > 0 {
			p.signed = append(p.signed, signedTree{b, c.Tree, strings.Count(signatures, "\n")})
			p.end = max(p.end, c.N)
		}
	}
	if len(p.signed) == 0 {
		return nil, nil
	}
	// A witness may have been down when the newest was made.
	slices.SortStableFunc(p.signed, func(a, b signedTree) int { return cmp.Compare(b.signatures, a.signatures) })
	p.next = p.end
	return p, nil
}

// Newest returns the size that the log's newest cut checkpoint of the epoch
// states, under the signed checkpoint of the log that most witnesses vouch for
// among those that have one of at least so much: else false, for the log is
// behind, or the entries have expired.
func (p *Prover) Newest(e record.Epoch, least uint64) (uint64, bool, error) {
	for i := range p.signed {
		l, ok, err := p.below(e, p.signed[i].tree.N)
		if err != nil {
			return 0, false, err
		}
		if ok && l.size >= least {
			p.chosen[e] = chosen{l, &p.signed[i]}
			return l.size, true, nil
		}
	}
	return 0, false, nil
}

// below returns the epoch's newest entry among the log's first n.
func (p *Prover) below(e record.Epoch, n int64) (logged, bool, error) {
	for {
		for _, l := range p.epochs[e] {
			if l.index < n {
				return l, true, nil
			}
		}
		if more, err := p.more(); err != nil || !more {
			return logged{}, false, err
		}
	}
}

// more reads the bundle of entries before those that were read.
func (p *Prover) more() (bool, error) {
	if p.next == 0 {
		return false, nil
	}
	n := (p.next - 1) / TileWidth
	name := BundleName(n, int(p.next-n*TileWidth))
	b, err := Read(p.ctx, p.v, name, MaxBundle)
	if errors.Is(err, fs.ErrNotExist) {
		p.next = 0 // expired, with all before
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("log: %w", err)
	}
	entries, err := ParseBundle(b)
	if err == nil && int64(len(entries)) != p.next-n*TileWidth {
		err = fmt.Errorf("%d entries, want %d", len(entries), p.next-n*TileWidth)
	}
	if err != nil {
		return false, fmt.Errorf("log: %s: %w; recorder verify says what is wrong", name, err)
	}
	for i := len(entries) - 1; i >= 0; i-- {
		s, err := Entry(entries[i])
		if err != nil {
			return false, fmt.Errorf("log: %s: entry %d: %w", name, i, err)
		}
		p.epochs[s.Epoch] = append(p.epochs[s.Epoch], logged{n*TileWidth + int64(i), s.Size})
	}
	p.next = n * TileWidth
	return true, nil
}

// Prove proves the entry that [Prover.Newest] found for the epoch, which must be
// this one.
func (p *Prover) Prove(e record.Epoch, entry []byte) (*Inclusion, error) {
	c, ok := p.chosen[e]
	if !ok {
		return nil, fmt.Errorf("log: no entry of epoch %s was looked for", e)
	}
	proof, err := tlog.ProveRecord(c.in.tree.N, c.index, tlog.TileHashReader(c.in.tree, &proverTiles{p}))
	if err == nil {
		err = tlog.CheckRecord(proof, c.in.tree.N, c.in.tree.Hash, c.index, tlog.RecordHash(entry))
	}
	if err != nil {
		return nil, fmt.Errorf("log: entry %d is not proven to be the checkpoint that the vault's segment of epoch %s ends with (%w); recorder verify says what is wrong", c.index, e, err)
	}
	out := &Inclusion{Checkpoint: string(c.in.note), Index: c.index, Hashes: []string{}}
	for _, h := range proof {
		out.Hashes = append(out.Hashes, h.String())
	}
	return out, nil
}

type proverTiles struct{ p *Prover }

func (t *proverTiles) Height() int { return TileHeight }

func (t *proverTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, x := range tiles {
		b, err := Read(t.p.ctx, t.p.v, TileName(x), TileWidth*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		data = append(data, b)
	}
	return data, nil
}

// SaveTiles keeps nothing: a proof reads a tile a level.
func (t *proverTiles) SaveTiles([]tlog.Tile, [][]byte) {}
