package pubsub

import (
	"errors"
	"sync"

	"verbatim.dev/recorder/record"
)

// Appender is a journal, as who records sees it.
type Appender interface {
	Append(drafts ...record.Draft) *record.Ticket
}

// Gate makes durability "published" of a journal's: its tickets are settled when
// the journal has the records and Pub/Sub has confirmed them, with the checkpoint
// for them. It is safe for concurrent use.
type Gate struct {
	journal Appender
	epoch   record.Epoch
	done    chan struct{}

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when something below has changed
	waiting   []waiter
	published uint64
	err       error // why no more is published
}

type waiter struct {
	inner, outer *record.Ticket
}

// errNoSequence is about a journal that this package cannot work with.
var errNoSequence = errors.New("published durability: the journal does not say which records it wrote")

// errUnpublished ends tickets that are still open when the gate is closed.
var errUnpublished = errors.New("published durability: shipping has ended")

// NewGate returns a gate in front of the journal's epoch. Close it when the
// shipping has ended.
func NewGate(journal Appender, epoch record.Epoch) *Gate {
	g := &Gate{journal: journal, epoch: epoch, done: make(chan struct{}), changed: make(chan struct{})}
	go g.run()
	return g
}

// Append appends to the journal. A ticket that the journal refuses at once is
// settled at once.
func (g *Gate) Append(drafts ...record.Draft) *record.Ticket {
	// Under the lock, so that the order is the journal's.
	g.mu.Lock()
	defer g.mu.Unlock()
	inner := g.journal.Append(drafts...)
	select {
	case <-inner.Done():
		if inner.Err() != nil {
			return inner
		}
	default:
	}
	outer := record.NewTicket(inner.ID)
	outer.Last, outer.Receipt = inner.Last, inner.Receipt
	switch {
	case g.err != nil:
		outer.Settle(g.err)
		return outer
	case inner.Last == 0:
		outer.Settle(errNoSequence)
		return outer
	}
	g.waiting = append(g.waiting, waiter{inner, outer})
	g.wake()
	return outer
}

// Published says that Pub/Sub has confirmed an epoch up to the sequence. It does
// not block: it is for [ClientConfig].
func (g *Gate) Published(e record.Epoch, sequence uint64) {
	if e != g.epoch {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if sequence > g.published {
		g.published = sequence
		g.wake()
	}
}

// Close settles what is open with an error.
func (g *Gate) Close() {
	g.mu.Lock()
	if g.err == nil {
		g.err = errUnpublished
		g.wake()
	}
	g.mu.Unlock()
	<-g.done
}

func (g *Gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// run settles tickets in the journal's order.
func (g *Gate) run() {
	defer close(g.done)
	for {
		g.mu.Lock()
		changed, err := g.changed, g.err
		var open []waiter
		if err != nil {
			open, g.waiting = g.waiting, nil
		}
		var head waiter
		if len(g.waiting) > 0 {
			head = g.waiting[0]
		}
		published := g.published
		g.mu.Unlock()
		switch {
		case err != nil:
			for _, w := range open {
				w.outer.Settle(err)
			}
			return
		case head.inner == nil:
			<-changed
			continue
		}
		select {
		case <-head.inner.Done():
			if err := head.inner.Err(); err != nil {
				head.outer.Settle(err)
			} else if published >= head.inner.Last {
				head.outer.Settle(nil)
			} else {
				<-changed
				continue
			}
			g.mu.Lock()
			g.waiting[0] = waiter{}
			g.waiting = g.waiting[1:]
			g.mu.Unlock()
		case <-changed:
		}
	}
}
