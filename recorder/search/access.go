package search

import (
	"context"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// Access is one access record: somebody asked to read the evidence.
type Access struct {
	ID      string    `json:"access"`
	Gateway string    `json:"gateway"` // the service that answered
	Time    time.Time `json:"time"`    // of the record
	record.Access
	Segment string `json:"segment"`
	// Unreadable says why the record could not be opened: the rest is then
	// missing.
	Unreadable string `json:"unreadable,omitempty"`
}

// AccessFilter says which access records are wanted: those that fit everything
// that is set. Names are compared as in [Filter].
type AccessFilter struct {
	Since, Until time.Time
	Who          string // subject, e-mail or ISSUER/SUBJECT of the reader, or the local user's name
	Exchange     string // that was read, or was in what a search gave out
	Action       string // as [record.AccessTo] has it
	Refused      bool   // only what was refused
	// ID is one record's own.
	ID string
}

func (f *AccessFilter) fits(a *Access) bool {
	in := func(t time.Time) bool {
		return (f.Since.IsZero() || !t.Before(f.Since)) && (f.Until.IsZero() || t.Before(f.Until))
	}
	switch {
	case !in(a.Time), f.ID != "" && f.ID != a.ID:
		return false
	case a.Unreadable != "": // it may be one that is looked for
		return true
	}
	return (f.Who == "" || principal(f.Who, a.Who) || a.Asserted != nil && like(f.Who, a.Asserted.User)) &&
		(f.Exchange == "" || a.What.Exchange == f.Exchange || slices.Contains(a.Records, f.Exchange)) &&
		(f.Action == "" || strings.EqualFold(f.Action, a.What.Action)) &&
		(!f.Refused || !a.Allowed)
}

// Accesses calls do for each access record that fits, in stored order. Those
// that cannot be opened are given too, whatever else the filter says of them.
func Accesses(ctx context.Context, c Config, f AccessFilter, do func(*Access) error) error {
	since, until := f.Since, f.Until
	var only record.ID
	if f.ID != "" {
		id, err := record.ParseID(f.ID)
		if err != nil {
			return err
		}
		f.ID, only = id.String(), id
		if since.IsZero() {
			since = id.Epoch.Time()
		}
	}
	_, err := Walk(ctx, c, since, until, func(r *Record) error {
		if r.Frame.Kind != record.KindAccess || f.ID != "" && r.Exchange() != only {
			return nil
		}
		a := &Access{ID: r.Exchange().String(), Gateway: r.Segment.Gateway, Time: r.Frame.Time, Segment: r.Segment.Path}
		why, err := r.Read(&a.Access)
		if err != nil {
			return err
		}
		if why != nil {
			a.Access, a.Unreadable = record.Access{}, why.Error()
		}
		if !f.fits(a) {
			return nil
		}
		return do(a)
	})
	return err
}
