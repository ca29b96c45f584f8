package ledger

import (
	"errors"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
)

// readHolds reads the holds: nothing that they cover may go. They rest where
// keys do, so whoever may erase can take them away; those that are there count.
func (c *verifier) readHolds() error {
	all, err := retention.Holds(c.ctx, c.vault)
	var wrong *retention.HoldError
	if errors.As(err, &wrong) {
		c.find(HoldIgnored, place{name: Name{Path: wrong.Name}}, "a hold cannot be read, so nothing shows what it keeps: %v", wrong.Err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.Removed == nil {
			c.holds = append(c.holds, h)
		}
	}
	return nil
}

// held judges whether a record that is not there, while its digest is, went
// under a hold: it covers the record, and was there before its expiry. A
// session's records of before the hold cannot be told without their keys.
func (c *verifier) held(e *epoch, where Name, f *record.Frame) error {
	for _, h := range c.holds {
		if f.Expiry.IsZero() || !h.Created.Before(f.Expiry) {
			continue
		}
		of := *f
		of.Exchange = 0
		if id, err := record.ParseID(h.Exchange); err == nil && id.Epoch == e.id && id.Sequence == f.Sequence {
			of.Exchange = f.Sequence // the exchange's first
		}
		if h.Covers(e.id, &of) {
			c.ignored(h, place{name: where, seq: f.Sequence}, "the record")
		}
	}
	return nil
}

// heldFile judges whether a file was deleted under a hold, as its note says: the
// hold was there before the note, and covers something that the file held whole.
func (c *verifier) heldFile(e *epoch, note *vault.Expiry, x *vault.ExpiryEntry, at place) {
	if x.Part || x.Records != x.Last-x.First+1 {
		return // which records it held is not known here
	}
	for _, h := range c.holds {
		id, err := record.ParseID(h.Exchange)
		if err == nil && id.Epoch == e.id && x.First <= id.Sequence && id.Sequence <= x.Last && !note.Written.Before(h.Created) {
			at.seq = id.Sequence
			c.ignored(h, at, "the exchange")
		}
	}
}

// ignored finds once for each hold that it was not obeyed.
func (c *verifier) ignored(h *retention.Hold, at place, what string) {
	if c.notes[h.ID] {
		return
	}
	c.notes[h.ID] = true
	c.find(HoldIgnored, at, "%s is not here, and hold %s of %s keeps it beyond its retention", what, h.ID, h.Created.Format(time.RFC3339))
}
