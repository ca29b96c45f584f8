package sinklog

import (
	"context"
	"fmt"
	"time"

	"verbatim.dev/recorder/record"
)

// How the time from a record to its cosignature is made up. Each part has its
// share, so that each can be checked where it is configured.
const (
	// DefaultBehind is the longest that a record may wait for its cosignature.
	DefaultBehind = 60 * time.Second
	// CutShare is for the gateway's cut, Carry for its way into the vault.
	CutShare = 15 * time.Second
	Carry    = 5 * time.Second
)

// CheckBehind reports whether a log with this interval and these witnesses can
// keep within behind.
func CheckBehind(behind, interval, timeout time.Duration) error {
	if need := CutShare + Carry + interval + timeout; need > behind {
		return fmt.Errorf("a record may wait %s for its cosignature (%s for the gateway's cut, %s on its way, %s for the log, %s for the witnesses), longer than the %s that are promised",
			need, CutShare, Carry, interval, timeout, behind)
	}
	return nil
}

// lag is what waits for its cosignature. It is guarded by the log's mutex.
type lag struct {
	// oldest is when the oldest cut that is not cosigned was made, by its
	// gateway's clock; zero for none.
	oldest time.Time
	// cosigned is when a quorum cosigned last, or the log was opened.
	cosigned time.Time
	late     bool
}

// arrived takes note of cuts that wait from now on.
func (l *Log) arrived(cuts ...cut) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range cuts {
		if s, err := record.ParseStatement(c.Note); err == nil && (l.lag.oldest.IsZero() || s.Time.Before(l.lag.oldest)) {
			l.lag.oldest = s.Time
		}
	}
}

// cosigned takes note that all but what is pending has enough cosignatures.
func (l *Log) cosigned(now time.Time) {
	l.mu.Lock()
	l.lag.oldest, l.lag.cosigned = time.Time{}, now
	l.mu.Unlock()
	l.arrived(l.pending...)
}

// behind is how long the oldest of what is not cosigned has waited, or where
// nothing waits how long ago the log was cosigned. The mutex must be held.
func (l *Log) behind(now time.Time) time.Duration {
	since := l.lag.cosigned
	if o := l.lag.oldest; !o.IsZero() && o.Before(since) {
		since = o
	}
	return max(0, now.Sub(since))
}

// watch alarms while cosigning is late, until ctx ends. It is beside Run, which
// may itself wait for a vault or a witness that does not answer.
func (l *Log) watch(ctx context.Context) {
	tick := time.NewTicker(max(l.c.Behind/20, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.judge(l.c.Now())
		}
	}
}

func (l *Log) judge(now time.Time) {
	l.mu.Lock()
	was, behind := l.lag.late, l.behind(now)
	// Of a cut's records the first is older than the cut.
	limit := l.c.Behind - CutShare
	if l.lag.oldest.IsZero() {
		limit = l.c.Behind
	}
	late := behind > limit
	l.lag.late = late
	if late && !was {
		l.stats.Late++
		l.stats.Alarms++
	}
	l.mu.Unlock()
	switch {
	case late && !was:
		err := fmt.Errorf("log: records wait for their cosignature for more than %s (the oldest cut for %s): a change of them would not show", l.c.Behind, behind.Round(time.Second))
		l.log.Error("log: alarm", "about", "behind", "error", err)
		if l.c.Alarm != nil {
			l.c.Alarm(err)
		}
	case was && !late:
		l.log.Info("log: right again", "about", "behind")
	}
}
