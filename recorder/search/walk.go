package search

import (
	"context"
	"fmt"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Record is one record as it lies in the vault. Its frame is valid until the
// call that it was given to returns.
type Record struct {
	Segment ledger.Name
	Frame   *record.Frame

	c   *Config
	ctx context.Context
}

// Exchange is the id of the exchange that the record belongs to.
func (r *Record) Exchange() record.ID {
	return record.ID{Epoch: r.Segment.Epoch, Sequence: r.Frame.Exchange}
}

// Open returns the record's body. why says why it cannot be read (its key is
// gone, or is wrong); err is of the reading itself.
func (r *Record) Open() (body []byte, why, err error) {
	return r.c.open(r.ctx, r.Segment.Epoch, r.Frame)
}

// Read opens the record's body and reads it into v.
func (r *Record) Read(v any) (why, err error) {
	return r.c.read(r.ctx, r.Segment.Epoch, r.Frame, v)
}

// Walk calls do for every record of the segments that can hold something of
// the time from since until before until, in stored order: those of the days
// asked for, and one day more on either side. A zero time sets no bound. Damage
// is passed over with a warning. An error of do ends the walk and is returned.
func Walk(ctx context.Context, c Config, since, until time.Time, do func(*Record) error) (segments int64, err error) {
	from, to := "", ""
	if !since.IsZero() {
		from = vault.Day(since.AddDate(0, 0, -1))
	}
	if !until.IsZero() {
		to = vault.Day(until.AddDate(0, 0, 1))
	}
	for path, err := range c.Vault.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return segments, fmt.Errorf("list the vault's segments: %w", err)
		}
		n, err := ledger.ParseName(path)
		if err != nil {
			c.warn(err)
			continue
		}
		if n.Part {
			continue // read with its segment
		}
		if n.Day < from || to != "" && n.Day > to {
			continue
		}
		if ctx.Err() != nil {
			return segments, context.Cause(ctx)
		}
		segments++
		err = c.frames(ctx, n, func(n ledger.Name, f *record.Frame, _ int64) error {
			return do(&Record{Segment: n, Frame: f, c: &c, ctx: ctx})
		})
		if err != nil {
			return segments, err
		}
	}
	return segments, nil
}
