package vault

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"verbatim.dev/recorder/record"
)

const (
	segmentMagic   = "verbatim segment 1\n"
	maxHeaderLine  = 1024
	readBufferSize = 64 << 10
)

// Header is what a segment says of itself.
type Header struct {
	Gateway string
	Epoch   record.Epoch
	First   uint64           // sequence of the first record
	Head    record.ChainHead // the epoch's chain head before that record
}

type headerJSON struct {
	Gateway string `json:"gateway"`
	Epoch   string `json:"epoch"`
	First   uint64 `json:"first"`
	Head    string `json:"head"`
}

// Append appends the bytes that a segment with this header begins with.
func (h Header) Append(dst []byte) ([]byte, error) {
	if err := CheckGateway(h.Gateway); err != nil {
		return dst, fmt.Errorf("segment header: %w", err)
	}
	if h.First == 0 {
		return dst, errors.New("segment header: the first sequence is 0")
	}
	line, err := json.Marshal(headerJSON{h.Gateway, h.Epoch.String(), h.First, hex.EncodeToString(h.Head[:])})
	if err != nil {
		return dst, fmt.Errorf("segment header: %w", err)
	}
	return append(append(append(dst, segmentMagic...), line...), '\n'), nil
}

// SegmentError says where a segment is wrong.
type SegmentError struct {
	Name   string // of the object
	Offset int64  // byte where the header or frame that is wrong begins
	Err    error
}

func (e *SegmentError) Error() string {
	return fmt.Sprintf("segment %s, byte %d: %v", e.Name, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *SegmentError) Unwrap() error { return e.Err }

// SegmentReader reads one segment from front to back, with one frame in memory
// at a time. It checks each frame's form and checksum; sequence, chain and
// checkpoints are for the caller to judge. It is not safe for concurrent use.
type SegmentReader struct {
	name   string
	source *source
	r      *bufio.Reader
	header Header
	start  int64 // of the frame that Next returned last
	next   int64 // of the frame after it
	err    error
}

// ReadSegment reads the segment's header from r. Name is used in errors; where
// it is a segment's name, header and name must agree. All errors but those of r
// are of type [*SegmentError].
func ReadSegment(name string, r io.Reader) (*SegmentReader, error) {
	src := &source{r: r}
	s := &SegmentReader{name: name, source: src, r: bufio.NewReaderSize(src, readBufferSize)}
	if err := s.readHeader(); err != nil {
		return nil, s.fail(err)
	}
	if id, err := ParseSegmentName(name); err == nil {
		if h := s.header; id.Gateway != h.Gateway || id.Epoch != h.Epoch || id.First != h.First {
			return nil, &SegmentError{Name: name, Offset: int64(len(segmentMagic)),
				Err: fmt.Errorf("the header is of gateway %s, epoch %s, first %d: not what the name says", h.Gateway, h.Epoch, h.First)}
		}
	}
	return s, nil
}

// OpenSegment opens the segment with the given name. Close the closer when done.
func OpenSegment(ctx context.Context, v Vault, name string) (*SegmentReader, io.Closer, error) {
	f, err := v.Open(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	s, err := ReadSegment(name, f)
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return s, f, nil
}

// source remembers that reading failed: that says nothing about the segment.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *SegmentReader) fail(err error) error {
	if s.source.err != nil {
		return fmt.Errorf("segment %s: read: %w", s.name, s.source.err)
	}
	return &SegmentError{Name: s.name, Offset: s.next, Err: err}
}

func (s *SegmentReader) readHeader() error {
	var magic [len(segmentMagic)]byte
	if _, err := io.ReadFull(s.r, magic[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if string(magic[:]) != segmentMagic {
		return fmt.Errorf("begins with %q: no segment of version 1", magic[:])
	}
	s.next = int64(len(segmentMagic))
	var line []byte
	for {
		c, err := s.r.ReadByte()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("header: %w", record.ErrTorn)
		}
		if err != nil {
			return fmt.Errorf("header: %w", err)
		}
		if c == '\n' {
			break
		}
		if line = append(line, c); len(line) > maxHeaderLine {
			return fmt.Errorf("header: longer than %d bytes", maxHeaderLine)
		}
	}
	h, err := parseHeader(line)
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	s.header = h
	s.next += int64(len(line)) + 1
	s.start = s.next
	return nil
}

func parseHeader(line []byte) (Header, error) {
	var j headerJSON
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return Header{}, fmt.Errorf("%q: %w", line, err)
	}
	h := Header{Gateway: j.Gateway, First: j.First}
	var err error
	if h.Epoch, err = record.ParseEpoch(j.Epoch); err != nil {
		return Header{}, err
	}
	head, err := hex.DecodeString(j.Head)
	if err != nil || len(head) != len(h.Head) {
		return Header{}, fmt.Errorf("head %q: want %d hex digits", j.Head, 2*len(h.Head))
	}
	copy(h.Head[:], head)
	// One spelling only: bytes that nothing checks are a place to hide changes.
	want, err := h.Append(nil)
	if err != nil {
		return Header{}, err
	}
	if string(want[len(segmentMagic):len(want)-1]) != string(line) {
		return Header{}, fmt.Errorf("%q: not in its canonical form", line)
	}
	return h, nil
}

// Header returns the segment's header.
func (s *SegmentReader) Header() Header { return s.header }

// Offset returns the byte where the frame that Next returned last begins.
func (s *SegmentReader) Offset() int64 { return s.start }

// Next returns the next frame, in memory of its own, or io.EOF after the last
// one. After an error it returns the same error again.
func (s *SegmentReader) Next() (record.Frame, error) {
	if s.err != nil {
		return record.Frame{}, s.err
	}
	f, err := record.ReadFrame(s.r)
	if errors.Is(err, io.EOF) {
		s.err = io.EOF
		return record.Frame{}, io.EOF
	}
	if err != nil {
		s.err = s.fail(err)
		return record.Frame{}, s.err
	}
	s.start = s.next
	s.next += int64(len(f.Raw()))
	return f, nil
}
