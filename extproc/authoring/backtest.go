package authoring

import (
	"context"
	"errors"
	"time"

	"verbatim.dev/policy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// The verdicts of a decision, recorded or new.
const (
	Allow = "allow"
	Deny  = "deny"
	// Unknown: the policy wants a dry run, and the record holds no answer of
	// BigQuery's.
	Unknown = "dry_run"
)

// Flip is an exchange that the candidate decides in another way than it was, or
// cannot decide from the record.
type Flip struct {
	Exchange   string            `json:"exchange"`
	Time       time.Time         `json:"time"`
	Principal  *record.Principal `json:"principal"`
	Method     string            `json:"method"`
	Was        string            `json:"was"`
	WasReasons []record.Reason   `json:"was_reasons"`
	Now        string            `json:"now"`
	Reasons    []policy.Reason   `json:"reasons"`
	// WouldDeny: the policy denied, and the mode observe let it pass.
	WouldDeny bool `json:"would_deny,omitempty"`
}

// Stats count what a backtest met.
type Stats struct {
	Exchanges  int64 `json:"exchanges"`  // with an intent, in the time asked for
	Decided    int64 `json:"decided"`    // again
	ToAllow    int64 `json:"to_allow"`   // flips
	ToDeny     int64 `json:"to_deny"`    // flips
	Unknown    int64 `json:"unknown"`    // would need a dry run
	Others     int64 `json:"others"`     // no policy decided them: authentication, route, ownership, ...
	Unfit      int64 `json:"unfit"`      // the record is not enough to make the input again
	Unreadable int64 `json:"unreadable"` // their keys are gone, or are not ours
}

// Trial says what to decide again, and how.
type Trial struct {
	Candidate    *policy.Revision
	Since, Until time.Time // zero: no bound
	// NoViews decides, where the candidate wants a dry run and the record holds
	// none, as if it had named no tables but the text's.
	NoViews bool
}

// Backtest decides every recorded request of the time again, by the candidate,
// and calls emit for each that flips. unfit, where set, is told why a record is
// not enough.
func Backtest(ctx context.Context, c search.Config, t Trial, emit func(Flip) error, unfit func(record.ID, error)) (Stats, error) {
	var s Stats
	var err error
	s.Unreadable, err = Each(ctx, c, t.Since, t.Until, func(id record.ID, r Recorded) error {
		s.Exchanges++
		v := &r.Intent.Verbatim
		if v.Decision.By != "policy" {
			s.Others++
			return nil
		}
		f, err := t.repeat(ctx, r)
		if err != nil {
			s.Unfit++
			if unfit != nil {
				unfit(id, err)
			}
			return ctx.Err()
		}
		f.Exchange = id.String()
		s.Decided++
		switch {
		case f.Now == f.Was:
			return nil
		case f.Now == Allow:
			s.ToAllow++
		case f.Now == Deny:
			s.ToDeny++
		default:
			s.Unknown++
		}
		return emit(f)
	})
	return s, err
}

// repeat decides one recorded request again.
func (t *Trial) repeat(ctx context.Context, r Recorded) (Flip, error) {
	v := &r.Intent.Verbatim
	f := Flip{Time: v.Received, Principal: v.Principal, Method: v.Call.Method, Was: Deny, WasReasons: v.Decision.Reasons, WouldDeny: v.Decision.WouldDeny}
	if v.Decision.Allow && !v.Decision.WouldDeny {
		f.Was = Allow
	}
	in, err := Input(ctx, r, t.Candidate.Windows())
	if err != nil {
		return f, err
	}
	d, err := t.Candidate.Decide(ctx, in)
	if err == nil && d.DryRun && t.NoViews && in.SQL.Facts.Problem == nil {
		in.SQL.DryRun = &policy.DryRun{Complete: true, Tables: in.Reads}
		d, err = t.Candidate.Decide(ctx, in)
	}
	var refused *policy.Error
	switch {
	case errors.As(err, &refused):
		f.Now, f.Reasons = Deny, []policy.Reason{{Code: string(refused.Code), Message: refused.Message}}
		return f, nil
	case err != nil:
		return f, err
	}
	f.Now, f.Reasons = Verdict(d), d.Reasons
	return f, nil
}

// Verdict is a decision in a word.
func Verdict(d *policy.Decision) string {
	switch {
	case d.DryRun:
		return Unknown
	case d.Allow:
		return Allow
	}
	return Deny
}
