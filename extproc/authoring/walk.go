package authoring

import (
	"context"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// maxBody is the longest request body that a policy is about, in bytes; of an
// upload the first piece holds the job.
const maxBody = 4 << 20

// maxHeld bounds the bodies of exchanges that are under way, in bytes.
const maxHeld = 256 << 20

// Each calls do for every exchange that began from since until before until and
// has an intent, in the order in which they ended; those without an outcome come
// last. Exchanges whose keys are gone are counted in unreadable.
func Each(ctx context.Context, c search.Config, since, until time.Time, do func(record.ID, Recorded) error) (unreadable int64, err error) {
	open := map[record.ID]*Recorded{}
	var order []record.ID
	held := 0
	_, err = search.Walk(ctx, c, since, until, func(r *search.Record) error {
		id := r.Exchange()
		switch r.Frame.Kind {
		case record.KindIntent:
			var i record.Intent
			if why, err := r.Read(&i); err != nil || why != nil {
				unreadable++
				return err
			}
			at := i.Verbatim.Received
			if at.IsZero() {
				at = r.Frame.Time
			}
			if !since.IsZero() && at.Before(since) || !until.IsZero() && !at.Before(until) {
				delete(open, id)
				return nil
			}
			if open[id] == nil {
				open[id] = &Recorded{}
			}
			open[id].Intent = &i
			order = append(order, id)
		case record.KindPayload:
			if r.Frame.Direction != record.DirectionRequest || r.Frame.Flags&record.FlagHead != 0 {
				return nil
			}
			x := open[id]
			if x == nil {
				x = &Recorded{}
				open[id] = x
			}
			b, why, err := r.Open()
			if err != nil || why != nil {
				return err
			}
			if len(x.Body)+len(b) > maxBody || held+len(b) > maxHeld {
				return nil // what is cut is not parsed: it is no whole JSON
			}
			held += len(b)
			x.Body = append(x.Body, b...)
		case record.KindOutcome:
			x := open[id]
			if x == nil || x.Intent == nil {
				delete(open, id)
				return nil
			}
			var o record.Outcome
			if why, err := r.Read(&o); err != nil {
				return err
			} else if why == nil {
				x.Outcome = &o
			}
			delete(open, id)
			held -= len(x.Body)
			return do(id, *x)
		}
		return nil
	})
	if err != nil {
		return unreadable, err
	}
	for _, id := range order {
		if x := open[id]; x != nil {
			if err := do(id, *x); err != nil {
				return unreadable, err
			}
		}
	}
	return unreadable, nil
}
