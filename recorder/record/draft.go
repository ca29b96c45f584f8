package record

import (
	"context"
	"errors"
	"sync"
)

// Draft is a record before it has a sequence.
type Draft struct {
	Kind Kind
	// Exchange is the sequence of the exchange's first record. Zero means: the
	// exchange that begins with the first draft of the same append. The
	// gateway's own kinds (open, heartbeat, close) belong to no exchange.
	Exchange  uint64
	Direction Direction
	Flags     uint8
	Piece     uint32
	Offset    uint64
	// Session chooses the data key. Empty only for the gateway's own kinds,
	// whose bodies hold nothing of a caller and are stored plain.
	Session string
	// Class is the retention class, empty for the journal's default.
	Class string
	// Body is the plain body. It must not change until the ticket is done.
	Body []byte
	// Render, where set, makes the body once the exchange's id is known: a
	// denial's text names its own receipt.
	Render func(ID) ([]byte, error)
	// Reserved lets the record use the journal's reserve: outcomes of
	// exchanges that already began, heartbeats and close.
	Reserved bool
}

// ErrFull means that the journal is at its limit: the gate is closed.
var ErrFull = errors.New("journal is full")

// ErrClosed means that the journal takes no more records.
var ErrClosed = errors.New("journal is closed")

// Ticket stands for an append that is under way. ID is known at once; the
// records are durable when Done is closed and Err is nil.
type Ticket struct {
	ID ID // of the exchange of the first draft
	// Last is the sequence of the last draft's record, 0 where the journal gave
	// none. The journal sets it before anybody else has the ticket.
	Last uint64
	// Receipt is signed by the epoch's key, where the append began an exchange.
	// It is valid when Append returns.
	Receipt string

	done chan struct{}
	once sync.Once
	err  error
}

// NewTicket returns a ticket that is not settled. Journals make them.
func NewTicket(id ID) *Ticket { return &Ticket{ID: id, done: make(chan struct{})} }

// Settle ends the ticket; err is nil when the records are durable. Only the
// first call counts.
func (t *Ticket) Settle(err error) {
	t.once.Do(func() {
		t.err = err
		close(t.done)
	})
}

// Done is closed when the ticket is settled.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Err returns why the records are not durable. It is valid after Done.
func (t *Ticket) Err() error {
	select {
	case <-t.done:
		return t.err
	default:
		return errors.New("ticket is not settled")
	}
}

// Wait blocks until the ticket is settled or ctx ends, and returns nil only
// when the records are durable.
func (t *Ticket) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
