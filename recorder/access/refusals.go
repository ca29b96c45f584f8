package access

import (
	"sync"
	"time"
)

const (
	refusalBurst    = 20
	refusalInterval = time.Second
)

// refusals keeps strangers from filling the journal: of those without a role so
// many are recorded one by one, and the others counted. The count stands in the
// next one that is recorded.
type refusals struct {
	mu      sync.Mutex
	spent   int // of the burst
	since   time.Time
	skipped uint64
}

// take returns true where the refusal is to be recorded, with the count of
// those before it that were not.
func (r *refusals) take(now time.Time) (skipped uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if back := int(now.Sub(r.since) / refusalInterval); back > 0 {
		r.spent = max(0, r.spent-back)
		r.since = now
	}
	if r.spent >= refusalBurst {
		r.skipped++
		return 0, false
	}
	r.spent++
	skipped, r.skipped = r.skipped, 0
	return skipped, true
}

// back gives a count back whose record was not made.
func (r *refusals) back(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skipped += n
}
