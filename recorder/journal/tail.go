package journal

import (
	"context"

	"verbatim.dev/recorder/record"
)

// Item is one durable frame.
type Item struct {
	Epoch   record.Epoch
	Gateway string       // that wrote the epoch
	Frame   record.Frame // in memory of its own; Raw returns the stored bytes
}

// Tail reads a journal from its oldest frame that is not acknowledged.
type Tail struct{ j *Journal }

// Next returns the next durable frame and waits until there is one.
func (t *Tail) Next(ctx context.Context) (Item, error) { panic("not yet written") }
