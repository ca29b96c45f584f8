package vault

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"verbatim.dev/recorder/record"
)

const (
	segmentMagic  = "verbatim segment 2\n"
	maxHeaderLine = 8 << 10
	// MaxClasses is how many retention classes one segment can have.
	MaxClasses     = record.MaxClasses
	readBufferSize = 64 << 10
)

// Header is what a segment, or a part, says of itself.
type Header struct {
	Gateway string
	Epoch   record.Epoch
	First   uint64           // sequence of the first record
	Last    uint64           // sequence of the last record
	Head    record.ChainHead // the epoch's chain head before the first record
	Class   string           // of the records that are held whole
	Expires time.Time        // when the last of these expires, to the second; zero: never, or there are none
	Records uint64           // how many are held whole
	Part    bool
	// Classes are those of the records that are absent, in byte order.
	Classes []string
}

type headerJSON struct {
	Gateway string   `json:"gateway"`
	Epoch   string   `json:"epoch"`
	First   uint64   `json:"first"`
	Last    uint64   `json:"last"`
	Head    string   `json:"head"`
	Class   string   `json:"class"`
	Expires int64    `json:"expires"`
	Records uint64   `json:"records"`
	Part    bool     `json:"part,omitempty"`
	Classes []string `json:"classes,omitempty"`
}

func (h Header) check() error {
	if err := CheckGateway(h.Gateway); err != nil {
		return err
	}
	if h.First == 0 || h.Last < h.First {
		return fmt.Errorf("sequences %d to %d: want the first at least 1 and the last not below it", h.First, h.Last)
	}
	if h.Records > h.Last-h.First+1 {
		return fmt.Errorf("%d records in a range of %d", h.Records, h.Last-h.First+1)
	}
	if h.Part && len(h.Classes) > 0 || len(h.Classes) > MaxClasses {
		return fmt.Errorf("%d classes of absent records", len(h.Classes))
	}
	for i, c := range h.Classes {
		if err := CheckClass(c); err != nil {
			return err
		}
		if c == h.Class || i > 0 && c <= h.Classes[i-1] {
			return fmt.Errorf("class %q is out of order", c)
		}
	}
	return CheckClass(h.Class)
}

// Append appends the bytes that a segment with this header begins with.
func (h Header) Append(dst []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return dst, fmt.Errorf("segment header: %w", err)
	}
	j := headerJSON{
		Gateway: h.Gateway, Epoch: h.Epoch.String(), First: h.First, Last: h.Last, Head: hex.EncodeToString(h.Head[:]),
		Class: h.Class, Records: h.Records, Part: h.Part, Classes: h.Classes,
	}
	if !h.Expires.IsZero() {
		j.Expires = h.Expires.Unix()
	}
	line, err := json.Marshal(j)
	if err != nil {
		return dst, fmt.Errorf("segment header: %w", err)
	}
	return append(append(append(dst, segmentMagic...), line...), '\n'), nil
}

// KindAbsent is the kind of what stands in a segment for a record that lies in
// the part of another class. It is no kind of frame: its Sequence, Time, Class
// and Expiry are the record's, its Body is the record's leaf digest.
const KindAbsent record.Kind = 66

// An absence is stored as
//
//	offset size
//	0      4    length of what follows this field, 61: less than any frame's
//	4      1    index into the header's classes
//	5      8    sequence
//	13     8    time, Unix nanoseconds
//	21     8    expiry, Unix seconds, 0 for none
//	29     32   leaf
//	61     4    CRC32C of all the bytes before it
const absenceSize = 65

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendAbsence appends what stands for the record f, which was encoded or
// decoded, where its class is the header's class with the given index.
func AppendAbsence(dst []byte, f *record.Frame, class int) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, absenceSize-4)
	dst = append(dst, byte(class))
	dst = binary.BigEndian.AppendUint64(dst, f.Sequence)
	dst = binary.BigEndian.AppendUint64(dst, uint64(f.Time.UnixNano()))
	var expiry int64
	if !f.Expiry.IsZero() {
		expiry = f.Expiry.Unix()
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(expiry))
	leaf := f.Leaf()
	dst = append(dst, leaf[:]...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func (s *SegmentReader) absence() (record.Frame, error) {
	var b [absenceSize]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		return record.Frame{}, fmt.Errorf("%w: %w", record.ErrTorn, err)
	}
	if got, want := binary.BigEndian.Uint32(b[61:]), crc32.Checksum(b[:61], castagnoli); got != want {
		return record.Frame{}, fmt.Errorf("the checksum of an absent record is %08x, its bytes give %08x", got, want)
	}
	if int(b[4]) >= len(s.header.Classes) {
		return record.Frame{}, fmt.Errorf("an absent record has class %d of %d", b[4], len(s.header.Classes))
	}
	f := record.Frame{
		Kind: KindAbsent, Class: s.header.Classes[b[4]], Sequence: binary.BigEndian.Uint64(b[5:]),
		Time: time.Unix(0, int64(binary.BigEndian.Uint64(b[13:]))).UTC(), Body: bytes.Clone(b[29:61]),
	}
	if t := int64(binary.BigEndian.Uint64(b[21:])); t != 0 {
		f.Expiry = time.Unix(t, 0).UTC()
	}
	return f, nil
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
		if h := s.header; id.Gateway != h.Gateway || id.Epoch != h.Epoch || id.First != h.First || id.Last != h.Last || id.Class != h.Class || id.Part != h.Part {
			return nil, &SegmentError{Name: name, Offset: int64(len(segmentMagic)),
				Err: fmt.Errorf("the header is of gateway %s, epoch %s, records %d to %d, class %s, part %t: not what the name says", h.Gateway, h.Epoch, h.First, h.Last, h.Class, h.Part)}
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
		return fmt.Errorf("begins with %q: no segment of version 2", magic[:])
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
	h := Header{Gateway: j.Gateway, First: j.First, Last: j.Last, Class: j.Class, Records: j.Records, Part: j.Part, Classes: j.Classes}
	if j.Expires != 0 {
		h.Expires = time.Unix(j.Expires, 0).UTC()
	}
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

// End returns the byte behind what Next returned last.
func (s *SegmentReader) End() int64 { return s.next }

// Next returns the next frame, in memory of its own, or io.EOF after the last
// one. For a record that is absent the frame is of kind [KindAbsent]. After an error it returns the same error again.
func (s *SegmentReader) Next() (record.Frame, error) {
	if s.err != nil {
		return record.Frame{}, s.err
	}
	var f record.Frame
	size, err := s.r.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = s.fail(err)
		return record.Frame{}, s.err
	}
	if err == nil && binary.BigEndian.Uint32(size) == absenceSize-4 {
		if f, err = s.absence(); err != nil {
			s.err = s.fail(err)
			return record.Frame{}, s.err
		}
		s.start, s.next = s.next, s.next+absenceSize
		return f, nil
	}
	f, err = record.ReadFrame(s.r)
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
