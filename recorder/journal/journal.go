package journal

import (
	"context"

	"verbatim.dev/recorder/record"
)

// Journal is an open journal. It is safe for concurrent use.
type Journal struct{}

// Stats are a journal's figures.
type Stats struct {
	Held, Limit, Reserve, Queued    int64
	Appended, Records, Commits      uint64
	Bytes, Refused, Last, Exchanges uint64
	Waiters, Segments               int
}

// Open opens the journal.
func Open(ctx context.Context, c Config) (*Journal, error) { panic("not yet written") }

// Append appends.
func (j *Journal) Append(drafts ...record.Draft) *record.Ticket { panic("not yet written") }

// Epoch returns the epoch.
func (j *Journal) Epoch() record.Epoch { panic("not yet written") }

// Err returns the error.
func (j *Journal) Err() error { panic("not yet written") }

// Failed is closed on failure.
func (j *Journal) Failed() <-chan struct{} { panic("not yet written") }

// Refuse counts.
func (j *Journal) Refuse() { panic("not yet written") }

// Finish writes the close record; Tail and Acknowledge go on.
func (j *Journal) Finish(ctx context.Context, reason string) error { panic("not yet written") }

// Close finishes and unlocks.
func (j *Journal) Close(ctx context.Context, reason string) error { panic("not yet written") }

// Stats returns the figures.
func (j *Journal) Stats() Stats { panic("not yet written") }

// Tail returns a reader.
func (j *Journal) Tail() *Tail { panic("not yet written") }

// Acknowledge frees.
func (j *Journal) Acknowledge(e record.Epoch, sequence uint64) error { panic("not yet written") }
