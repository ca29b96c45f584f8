// Package transport carries frames from a gateway's journal to the sink.
//
// The rule of this folder: the journal stays the only copy that counts until
// the sink says that it holds the frames durably. So a transport keeps nothing
// of its own: after any break it reads the journal again from the oldest frame
// that is not acknowledged, and the sink drops what it has already.
//
// [Client] and [Server] are the local transport, over a UNIX socket on one
// machine. Another transport has the same two methods, Ship and Serve, over
// the same two sides: [Journal] and [Receiver].
//
// # Local protocol, version 1
//
// Both sides send messages: a length of 4 bytes (big endian, of what follows),
// a type of one byte, and the body.
//
//	type       from     body
//	1 hello    gateway  "verbatim ship", version (2 bytes), gateway's name
//	2 welcome  sink     version (2 bytes)
//	3 epoch    gateway  epoch (16 bytes), name of the epoch's gateway; frames that follow are of it
//	4 held     sink     epoch, sequence (8 bytes): all up to it is durable; answers epoch, then acknowledges
//	5 refused  sink     epoch, text: no more of this epoch is taken on this connection
//	6 frame    gateway  a frame's stored bytes
//	7 ping     both     empty; at least each keepalive interval
//	8 error    sink     text; the connection ends
//
// The gateway waits for held or refused after each epoch message, and sends no
// frame that is held. A wrapped key goes only with a record that is not held:
// a key that was erased from the vault does not come back with a reconnect.
package transport

import (
	"context"
	"errors"
	"io"

	"verbatim.dev/recorder/record"
)

// Item is a durable frame of a journal.
type Item struct {
	Epoch   record.Epoch
	Gateway string
	Frame   record.Frame // decoded or encoded, so that Raw gives the stored bytes
}

// Source reads a journal: the frames of all its epochs, durable ones only, one
// epoch after another, oldest first, beginning with the oldest that is not
// acknowledged. Next blocks until there is a frame. It returns io.EOF or
// [record.ErrClosed] when the journal is closed and all was read. It is used by
// one goroutine. A source that is an [io.Closer] is closed at the end.
//
// Where it has a method Recycle(), a transport may call it when it is done with
// the item that Next returned last: its memory is used again.
type Source interface {
	Next(ctx context.Context) (Item, error)
}

// recycler is a [Source] that uses memory again.
type recycler interface{ Recycle() }

// SourceFunc makes a function a [Source].
type SourceFunc func(ctx context.Context) (Item, error)

// Next calls the function.
func (f SourceFunc) Next(ctx context.Context) (Item, error) { return f(ctx) }

// NewSource makes a [Source] of a journal's tail, whatever package its items
// are of. Where the tail has a Close method, it is called when the connection
// that reads it ends.
func NewSource[I ~struct {
	Epoch   record.Epoch
	Gateway string
	Frame   record.Frame
}](tail interface {
	Next(ctx context.Context) (I, error)
}) Source {
	s := SourceFunc(func(ctx context.Context) (Item, error) {
		i, err := tail.Next(ctx)
		return Item(i), err
	})
	c, closes := tail.(io.Closer)
	r, recycles := tail.(recycler)
	switch {
	case closes && recycles:
		return struct {
			SourceFunc
			io.Closer
			recycler
		}{s, c, r}
	case closes:
		return struct {
			SourceFunc
			io.Closer
		}{s, c}
	}
	return s
}

// Journal is the gateway's side of a transport.
type Journal struct {
	// Tail returns a new source. Each connection reads through its own.
	Tail func() Source
	// Acknowledge tells the journal that the sink holds the epoch durably up to
	// the sequence. Sequences of an epoch may come again, but never fall within
	// one connection.
	Acknowledge func(e record.Epoch, sequence uint64) error
}

// Receiver is the sink's side of a transport. It is safe for concurrent use.
type Receiver interface {
	// Begin opens a stream for an epoch. A stream of the same epoch that is
	// still open ends: the newer connection has it.
	Begin(ctx context.Context, gateway string, epoch record.Epoch) (Stream, error)
}

// Stream takes the frames of one epoch in the order of the journal. It is used
// by one goroutine.
type Stream interface {
	// Held is the sequence up to which everything is durable, 0 for nothing.
	Held() uint64
	// Take takes a frame's stored bytes, which it must not keep, and returns
	// what is held then.
	Take(ctx context.Context, frame []byte) (held uint64, err error)
	// End gives up what was taken and is not durable. The gateway sends it
	// again.
	End()
}

// Salvage says how far a lost tail was salvaged.
type Salvage struct {
	Over bool   // it is certain that the epoch's journal is lost
	Held uint64 // as of [Stream]
	Done bool   // a note says that the epoch ends with Held
}

// Salvager is a [Stream] that can end an epoch whose journal was lost. A transport
// that keeps frames itself calls it when nothing has come for long.
type Salvager interface {
	// Salvage makes durable what was taken up to the last checkpoint, where it is
	// certain that the gateway will make no cut there. With aside, what was taken
	// behind it is kept too, as what it is, and the stream is to be ended. Else it
	// goes on: behind Held where that rose, and where it was before if not.
	Salvage(ctx context.Context, aside bool) (Salvage, error)
	// Aside keeps frames, back to back, that cannot follow on what was taken.
	Aside(ctx context.Context, frames []byte) error
}

// Heir is a [Receiver] that knows which epochs were left without an end.
type Heir interface {
	// Lost returns the earlier epochs of the gateway whose end nothing shows yet:
	// they were not closed, no other cites the end that is held, and they were not
	// salvaged.
	Lost(ctx context.Context, gateway string, epoch record.Epoch) ([]record.Epoch, error)
}

// ErrRefused is wrapped by errors of a [Receiver] that end an epoch but not the
// connection: the epoch's evidence is wrong, other epochs are not concerned.
var ErrRefused = errors.New("epoch is refused")

// ErrStop is wrapped by errors of a [Receiver] after which nothing can be taken
// from anybody. Serve ends with them.
var ErrStop = errors.New("sink has stopped")
