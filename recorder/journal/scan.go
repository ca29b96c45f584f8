package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"verbatim.dev/recorder/record"
)

// exchange is what must be remembered of an exchange that has no outcome yet.
type exchange struct {
	class  string
	expiry time.Time
}

// position is what holds at a place between two commits of an epoch.
type position struct {
	sequence uint64 // of the last leaf before it
	head     record.ChainHead
	tree     record.Tree
	open     map[uint64]exchange
	// until is when the last of the records up to here expires, as far as it was
	// stated: an earlier version's checkpoints and state files do not.
	until  record.Latest
	stated bool
}

// account takes a leaf frame into account.
func account(open map[uint64]exchange, f *record.Frame) {
	switch f.Kind {
	case record.KindReceived, record.KindIntent:
		open[f.Exchange] = exchange{class: f.Class, expiry: f.Expiry}
	case record.KindOutcome:
		delete(open, f.Exchange)
	}
}

// scanned is what a scan of a segment found.
type scanned struct {
	position              // at the last good checkpoint
	offset   int64        // behind the last good checkpoint
	cut      bool         // the last good checkpoint is a cut
	closed   bool         // the last leaf is a close record
	last     record.Frame // the last good checkpoint, in memory of its own
	commits  int          // good checkpoints
	// bad says what is wrong with the bytes at the offset badAt, nil where only
	// zeros follow. later counts good checkpoints behind it, up to 2.
	bad   error
	badAt int64
	later int
	lost  int64 // bytes behind the offset, without the zeros at the end
}

// scanSegment reads a segment of size bytes from its beginning, at which from
// holds, with cut and closed as the segment before it left them. It checks every
// frame, the sequence and the chain. The error is one of reading; what is wrong
// with the bytes is in the result. Memory is bounded by the largest frame.
func scanSegment(r io.ReaderAt, size int64, from scanned) (scanned, error) {
	s := scanned{position: from.position, cut: from.cut, closed: from.closed, last: from.last}
	s.open = maps.Clone(from.open)
	if s.open == nil {
		s.open = map[uint64]exchange{}
	}
	var (
		in       = bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 256<<10)
		buf      []byte
		at       int64
		sequence = s.sequence
		head     = s.head
		tree     = s.tree
		closed   = s.closed
		pending  []record.Frame // headers only
	)
	stop := func(err error) { s.bad, s.badAt = err, at }
	for s.bad == nil {
		f, n, err := readFrame(in, &buf)
		if errors.Is(err, io.EOF) {
			if at != s.offset {
				stop(errors.New("no checkpoint follows the last records"))
			}
			break
		}
		var foreign *readError
		if errors.As(err, &foreign) {
			return s, foreign.err
		}
		if err != nil {
			stop(err)
			break
		}
		switch {
		case f.Kind == record.KindKey:
			if f.Sequence != 0 {
				stop(fmt.Errorf("key frame with sequence %d", f.Sequence))
			}
		case f.Kind == record.KindCheckpoint:
			stated, err := record.Stated(&f)
			switch {
			case err != nil:
				stop(err)
			case f.Sequence != sequence:
				stop(fmt.Errorf("checkpoint of sequence %d behind sequence %d", f.Sequence, sequence))
			case stated.Head != head || stated.Root != tree.Root():
				stop(fmt.Errorf("checkpoint of sequence %d states another chain or tree than its records give", sequence))
			default:
				for i := range pending {
					account(s.open, &pending[i])
				}
				pending = pending[:0]
				s.sequence, s.head, s.tree, s.closed = sequence, head, tree, closed
				if s.stated = stated.Retained != nil; s.stated {
					s.until = stated.Retained.Latest()
				}
				s.last = f
				s.last.Body = bytes.Clone(f.Body)
				s.offset, s.cut = at+int64(n), f.Flags&record.FlagCut != 0
				s.commits++
			}
		case f.Sequence != sequence+1:
			stop(fmt.Errorf("record %d where %d belongs", f.Sequence, sequence+1))
		default:
			sequence++
			leaf := f.Leaf()
			head = head.Next(leaf)
			tree.Add(leaf)
			closed = f.Kind == record.KindClose
			if f.Kind == record.KindReceived || f.Kind == record.KindIntent || f.Kind == record.KindOutcome {
				pending = append(pending, record.Frame{Kind: f.Kind, Exchange: f.Exchange, Class: f.Class, Expiry: f.Expiry})
			}
		}
		at += int64(n)
	}
	if s.bad == nil {
		return s, nil
	}
	if s.bad != nil && s.badAt > size {
		s.badAt = size
	}
	return s, s.examine(r, size)
}

// examine looks at what follows the last good checkpoint.
func (s *scanned) examine(r io.ReaderAt, size int64) error {
	// A checkpoint frame holds its version and kind behind its length.
	var (
		mark    = []byte{record.Version, byte(record.KindCheckpoint)}
		overlap = maxCheckpoint - 1
		buf     = make([]byte, 256<<10)
		last    = s.offset // behind the last byte that is not zero
	)
	for at := s.offset; at < size; {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			break
		}
		b := buf[:n]
		if t := bytes.TrimRight(b, "\x00"); len(t) > 0 {
			last = max(last, at+int64(len(t)))
		}
		for i := 4; s.later < 2 && i < n; i++ {
			k := bytes.Index(b[i:], mark)
			if k < 0 {
				break
			}
			i += k
			if at+int64(i-4) < s.badAt {
				continue
			}
			if f, m, err := record.Decode(b[i-4:]); err == nil && m <= maxCheckpoint && f.Kind == record.KindCheckpoint {
				s.later++
			}
		}
		if at+int64(n) >= size || n <= overlap {
			break
		}
		at += int64(n - overlap)
	}
	s.lost = last - s.offset
	if s.lost == 0 {
		s.bad, s.badAt = nil, 0
	}
	return nil
}

// readError is a failure of reading, apart from bytes that are wrong.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }

// readFrame reads one frame into *buf, which it grows, and returns its length.
// The frame is good until the next call.
func readFrame(in *bufio.Reader, buf *[]byte) (record.Frame, int, error) {
	head, err := in.Peek(4)
	if err != nil {
		switch {
		case !errors.Is(err, io.EOF):
			return record.Frame{}, 0, &readError{err}
		case len(head) == 0:
			return record.Frame{}, 0, io.EOF
		}
		return record.Frame{}, 0, record.ErrTorn
	}
	n := int(binary.BigEndian.Uint32(head)) + 4
	if n > record.MaxFrame {
		return record.Frame{}, 0, fmt.Errorf("frame length %d is above %d", n, record.MaxFrame)
	}
	// Grown as bytes come, so that a wrong length costs no memory.
	b := (*buf)[:0]
	for len(b) < n {
		k := min(n-len(b), 1<<20)
		if cap(b) < len(b)+k {
			b = append(make([]byte, 0, min(n, 2*(len(b)+k))), b...)
		}
		m, err := io.ReadFull(in, b[len(b):len(b)+k])
		b = b[:len(b)+m]
		if err != nil {
			*buf = b
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return record.Frame{}, 0, record.ErrTorn
			}
			return record.Frame{}, 0, &readError{err}
		}
	}
	*buf = b
	return record.Decode(b)
}
