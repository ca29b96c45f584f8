package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"verbatim.dev/recorder/record"
)

// tailBuffer is how much a tail reads ahead, in bytes.
const tailBuffer = 256 << 10

// Item is one durable frame.
type Item struct {
	Epoch   record.Epoch
	Gateway string       // that wrote the epoch
	Frame   record.Frame // in memory of its own, unless Recycle is called; Raw returns the stored bytes
}

// Tail reads a journal from its oldest frame that is not acknowledged. It is
// not safe for concurrent use; a journal may have several.
type Tail struct {
	j    *Journal
	seg  *segment
	file File
	at   int64 // offset in file
	end  int64 // to which in was opened
	in   *bufio.Reader

	keys  []tailItem // wrapped keys that wait for the record behind them
	queue []tailItem // to be returned next
	last  []byte     // memory of the item that was returned last
	spare []byte     // for the next frame
}

// tailItem is an item with the memory that its frame is in.
type tailItem struct {
	Item
	memory []byte
}

// Tail returns a new reader of everything that is not acknowledged, oldest
// epoch first. Records that are acknowledged while it reads may be left out.
func (j *Journal) Tail() *Tail {
	return &Tail{j: j, in: bufio.NewReaderSize(nil, tailBuffer)}
}

// Next returns the next durable frame, key frames and checkpoints among them,
// and waits until there is one or ctx ends. After the last frame it returns
// io.EOF when the journal is finished or closed, and its error when it failed.
// An error of reading or ctx leaves the tail where it was. Memory is bounded by
// the largest frame.
//
// Wrapped keys come right before the record that is sealed with them, and not
// at all where that record is acknowledged: a key that was erased from the
// vault must not come back with a reconnect.
func (t *Tail) Next(ctx context.Context) (Item, error) {
	for {
		if len(t.queue) > 0 {
			next := t.queue[0]
			t.queue = t.queue[1:]
			t.last = next.memory
			return next.Item, nil
		}
		if err := ctx.Err(); err != nil {
			return Item{}, context.Cause(ctx)
		}
		limit, err := t.wait(ctx)
		if err != nil {
			return Item{}, err
		}
		if t.file == nil {
			err := t.open()
			if errors.Is(err, os.ErrNotExist) && t.freed() {
				continue // freed since wait looked
			}
			if err != nil {
				return Item{}, err
			}
		}
		if t.at == t.end || t.end == 0 {
			t.end = limit
			t.in.Reset(io.NewSectionReader(t.file, t.at, limit-t.at))
		}
		f, memory, err := t.read()
		if err != nil {
			at := t.at
			t.end = 0 // read it again next time
			return Item{}, fmt.Errorf("journal %s: byte %d: %w", t.seg.name, at, err)
		}
		t.at += int64(len(f.Raw()))
		t.j.mu.Lock()
		acked := t.seg.log.acked
		t.j.mu.Unlock()
		item := tailItem{Item{Epoch: t.seg.log.id, Gateway: t.seg.log.gateway, Frame: f}, memory}
		switch {
		case f.Kind == record.KindKey:
			t.keys = append(t.keys, item)
		case f.Sequence <= acked:
			t.keys, t.spare = nil, memory
		default:
			if len(t.keys) == 0 {
				t.last = memory
				return item.Item, nil
			}
			t.queue, t.keys = append(t.keys, item), nil
		}
	}
}

// read reads a frame, and returns the memory that it is in.
func (t *Tail) read() (record.Frame, []byte, error) {
	spare := t.spare
	t.spare = nil
	f, err := record.ReadFrameInto(t.in, spare)
	if err != nil {
		return f, nil, err
	}
	raw := f.Raw()
	if cap(spare) >= len(raw) {
		return f, spare, nil
	}
	return f, raw, nil
}

// Recycle says that nobody uses the frame of the last Next any more: its memory
// is for a frame to come.
func (t *Tail) Recycle() {
	if cap(t.last) > cap(t.spare) && cap(t.last) <= pieceSize {
		t.spare = t.last
	}
	t.last = nil
}

// Close frees the tail's file. The journal is not affected.
func (t *Tail) Close() error {
	f := t.file
	t.file, t.end = nil, 0
	if f == nil {
		return nil
	}
	return f.Close()
}

func (t *Tail) open() error {
	f, err := t.j.fs.Open(t.seg.name)
	if err != nil {
		return err
	}
	t.file, t.end = f, 0
	return nil
}

func (t *Tail) freed() bool {
	t.j.mu.Lock()
	defer t.j.mu.Unlock()
	return t.seg.gone
}

// wait moves to the segment that has the next frame and returns the number of
// its durable bytes.
func (t *Tail) wait(ctx context.Context) (limit int64, err error) {
	j := t.j
	for {
		j.mu.Lock()
		moved := false
		if t.seg == nil {
			t.seg = j.oldest()
		}
		for t.seg.next != nil && (t.seg.gone || t.seg.full && t.at == t.seg.used) {
			t.seg, t.at, moved, t.keys = t.seg.next, 0, true, nil
		}
		limit = t.seg.used
		ready := t.at < limit && !t.seg.gone
		var changed <-chan struct{}
		if !ready {
			switch {
			case j.err != nil:
				err = j.err
			case j.ended:
				err = io.EOF
			case j.changed == nil:
				j.changed = make(chan struct{})
			}
			changed = j.changed
		}
		j.mu.Unlock()
		if moved {
			if err := t.Close(); err != nil {
				j.log.Warn("journal segment did not close", "error", err)
			}
		}
		if ready || err != nil {
			return limit, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
