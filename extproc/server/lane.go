package server

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"

	"verbatim.dev/recorder/record"
)

// lane is the body of one direction: its pieces in order, with their sums.
type lane struct {
	direction record.Direction
	full      bool // pieces are recorded, not only counted and hashed
	piece     uint32
	offset    int64
	sum       hash.Hash
	pending   []chunk // received, not yet given to the journal
	waiting   int64   // bytes in pending
	ended     bool
	before    *laneSums // before drafts that the journal has not taken yet
}

// laneSums is what a lane's total is made of.
type laneSums struct {
	piece  uint32
	offset int64
	sum    hash.Hash
}

func newLane(d record.Direction) lane { return lane{direction: d, sum: sha256.New()} }

// add takes in bytes that were received.
func (l *lane) add(c chunk) {
	if len(c.b) == 0 {
		return
	}
	l.pending = append(l.pending, c)
	l.waiting += int64(len(c.b))
}

// take empties pending.
func (l *lane) take() []chunk {
	b := l.pending
	l.pending, l.waiting = nil, 0
	return b
}

// drafts counts and hashes the chunks and returns the payload records that
// keep them, none where the lane is not recorded.
func (l *lane) drafts(base record.Draft, chunks ...chunk) []record.Draft {
	var out []record.Draft
	if l.before == nil && len(chunks) > 0 {
		l.before = &laneSums{l.piece, l.offset, clone(l.sum)}
	}
	for _, next := range chunks {
		c := next.b
		l.sum.Write(c)
		if !l.full {
			l.offset += int64(len(c))
			continue
		}
		for len(c) > 0 {
			n := min(len(c), record.MaxPiece)
			d := base
			d.Kind, d.Direction, d.Piece, d.Offset, d.Body = record.KindPayload, l.direction, l.piece, uint64(l.offset), c[:n:n]
			out = append(out, d)
			l.piece++
			l.offset += int64(n)
			c = c[n:]
		}
	}
	return out
}

// clone copies a SHA-256 of the standard library, which always can.
func clone(h hash.Hash) hash.Hash {
	c, err := h.(hash.Cloner).Clone()
	if err != nil {
		panic(err) // not foreign bytes: a hash that has no copy is a bug
	}
	return c
}

// taken notes that the journal took the drafts.
func (l *lane) taken() { l.before = nil }

// refused takes the drafts back that the journal refused: a total counts what
// is on record.
func (l *lane) refused() {
	if l.before != nil {
		l.piece, l.offset, l.sum, l.before = l.before.piece, l.before.offset, l.before.sum, nil
	}
}

// total sums the lane up; it is false for a body that never was.
func (l *lane) total() (record.Total, bool) {
	if l.offset == 0 {
		return record.Total{}, false
	}
	return record.Total{
		Direction: l.direction.String(), Pieces: l.piece, Bytes: l.offset,
		SHA256: hex.EncodeToString(l.sum.Sum(nil)), Recorded: l.full,
	}, true
}
