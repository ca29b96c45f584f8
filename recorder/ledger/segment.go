package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Vault is the part of a vault that is read, see [vault.Vault].
type Vault interface {
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Name is a segment's name, in its parts and whole.
type Name struct {
	vault.Segment
	Path string
}

// ParseName reads the name of a segment.
func ParseName(path string) (Name, error) {
	s, err := vault.ParseSegmentName(path)
	return Name{Segment: s, Path: path}, err
}

// Segment reads one segment, frame by frame.
type Segment struct {
	path string
	file *source
	r    *vault.SegmentReader
	end  int64
}

// source remembers that reading failed: a vault that does not answer is not to
// be taken for a file that is cut off.
type source struct {
	io.ReadCloser
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// OpenSegment opens a segment and reads its header. For bytes that are no
// header, or another segment's, the error wraps a [vault.SegmentError].
func OpenSegment(ctx context.Context, v Vault, path string) (*Segment, error) {
	r, err := v.Open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", path, err)
	}
	s := &Segment{path: path, file: &source{ReadCloser: r}}
	if s.r, err = vault.ReadSegment(path, s.file); err != nil {
		err = s.fail(err)
		r.Close()
		return nil, err
	}
	return s, nil
}

func (s *Segment) fail(err error) error {
	if s.file.err != nil {
		return fmt.Errorf("segment %s: %w", s.path, s.file.err)
	}
	return err
}

// Header returns the segment's header.
func (s *Segment) Header() vault.Header { return s.r.Header() }

// Next returns the next frame, in memory of its own, and the offset in the file
// at which it begins. At the end of the file it returns [io.EOF], for bytes
// that are no frame an error that wraps a [vault.SegmentError].
func (s *Segment) Next() (record.Frame, int64, error) {
	f, err := s.r.Next()
	if s.file.err != nil || err != nil && !errors.Is(err, io.EOF) {
		return record.Frame{}, s.r.Offset(), s.fail(err)
	}
	if err != nil {
		return record.Frame{}, s.end, io.EOF
	}
	s.end = s.r.Offset() + int64(len(f.Raw()))
	return f, s.r.Offset(), nil
}

// Size returns how many bytes of the file were read as frames, with the header.
func (s *Segment) Size() int64 { return s.end }

// Close ends the reading.
func (s *Segment) Close() error { return s.file.Close() }
