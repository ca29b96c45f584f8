package ledger

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"verbatim.dev/recorder/record"
)

// Judge judges records that were picked out of epochs, whole exchanges at a
// time, and whose digests are proven otherwise: that they make exchanges, and,
// with keys, that bodies open and totals are those of the payload.
type Judge struct {
	c *verifier
	e *epoch
}

// nothing is a vault without anything in it.
type nothing struct{}

func (nothing) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
}

func (nothing) List(context.Context, string) iter.Seq2[string, error] {
	return func(func(string, error) bool) {}
}

// NewJudge returns a judge. keys may be nil. Withheld says that payload was left
// out, so that totals cannot be compared. It must be ended with Finish.
func NewJudge(ctx context.Context, keys Opener, withheld bool) *Judge {
	j := &Judge{c: newVerifier(ctx, nothing{}, defaults(Options{Keys: keys}))}
	j.c.withheld = withheld
	return j
}

// Epoch begins an epoch of so many records. Epochs come in their order.
func (j *Judge) Epoch(gateway string, id record.Epoch, size uint64) {
	j.e = j.c.epoch(Name{Segment: segmentOf(gateway, id)})
	j.e.next = size + 1
}

// Frame judges the next record of the epoch.
func (j *Judge) Frame(f *record.Frame) error {
	return j.c.leaf(j.e, f, place{name: j.e.first, seq: f.Sequence})
}

// Finish returns what was found, and how the exchanges stand.
func (j *Judge) Finish() ([]Finding, Exchanges) {
	for id, p := range j.c.closers {
		j.c.close(id, p, true)
	}
	for _, e := range j.c.epochs {
		j.c.report.Exchanges.Pending += int64(len(e.open))
	}
	j.c.stop()
	j.c.settle()
	return j.c.report.Findings, j.c.report.Exchanges
}
