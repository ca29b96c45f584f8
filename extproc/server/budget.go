package server

import "sync/atomic"

// Budget is the memory that exchanges may hold above their own share, in
// bytes. It never blocks: an exchange without room stops receiving until its
// own bytes have gone out, so exchanges cannot wait for each other.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// take reserves n bytes and reports whether there was room.
func (b *Budget) take(n int64) bool {
	for {
		used := b.used.Load()
		if used+n > b.limit {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// What an exchange counts beside the bytes of bodies that it holds. Together with
// the bytes themselves, this is what the memory formula rests on.
const (
	// outgoing is what gRPC holds of a stream that its reader does not drain: a
	// write quota of 64 KiB and one reply above it, in buffers of 64 KiB.
	outgoing = 128 << 10
	// LeastShare lets an exchange go on with nothing but its share: one message,
	// and the same bytes once more in records that are not durable yet.
	LeastShare = outgoing + 2*expected
	// ahead is the most that an exchange borrows for bodies that stream: enough for
	// large commits, which a slow disk does better, and not so much that a stalled
	// reader holds what others could move with.
	ahead = 12 << 20
	// heldCost is what each byte of a held body counts beyond itself: what it is
	// rewritten to, and both once more in records. A byte of SQL becomes sqlCost
	// more in the intent.
	heldCost = 3
	sqlCost  = 5
)

// Used returns the bytes that are reserved now.
func (b *Budget) Used() int64 { return b.used.Load() }

// holding counts the bytes that one exchange holds against its share and the
// budget. It belongs to the exchange's own goroutine.
type holding struct {
	share    int64
	budget   *Budget
	held     int64
	borrowed int64
}

// newHolding returns the holding of a new exchange.
func newHolding(share int64, b *Budget) holding {
	return holding{share: share, budget: b, held: outgoing}
}

// streams reports whether a body that streams may go on by n bytes: within the
// share always, beyond it up to a quarter of what the budget has left.
func (h *holding) streams(n int64) bool {
	over := h.held + n - h.share
	return over <= 0 || over <= min(ahead, (h.budget.limit-h.budget.Used()+h.borrowed)/4)
}

// reserve makes room for n bytes that are about to be received, or reports
// that there is none now.
func (h *holding) reserve(n int64) bool {
	over := max(h.held+n-h.share, 0)
	if over > h.borrowed {
		if !h.budget.take(over - h.borrowed) {
			return false
		}
		h.borrowed = over
	}
	h.held += n
	return true
}

// change corrects the count by n bytes, up for a message that was larger than
// what was reserved for it, down for bytes that have gone out. It cannot fail:
// the bytes are in memory already.
func (h *holding) change(n int64) {
	h.held += n
	over := max(h.held-h.share, 0)
	h.budget.used.Add(over - h.borrowed)
	h.borrowed = over
}

// free gives everything back.
func (h *holding) free() { h.change(-h.held) }
