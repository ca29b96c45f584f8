package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"time"

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

// Segment reads one segment, record by record, each from the file that holds
// it: the segment's own or, for those of another retention class, a part. A
// record whose part is not there, or does not hold it as it was, comes as
// [vault.KindAbsent] with its leaf digest.
type Segment struct {
	// OnPart, where set, is called once for each part of which not all can be
	// read: with an error that wraps [fs.ErrNotExist] where it is not there,
	// else with a [vault.SegmentError]. The frame is the first absence.
	OnPart func(path string, err error, f *record.Frame)

	ctx   context.Context
	vault Vault
	name  vault.Segment
	path  string
	main  *file
	parts map[string]*file // by class
	from  *file            // of the record that came last
}

// file reads one of a segment's files.
type file struct {
	path string
	src  *source
	r    *vault.SegmentReader
	end  int64
	// of a part:
	bad     bool
	records uint64
	expires time.Time
	forever bool
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
	s := &Segment{ctx: ctx, vault: v, path: path, parts: map[string]*file{}}
	var err error
	if s.main, err = openFile(ctx, v, path); err != nil {
		return nil, err
	}
	s.from = s.main
	h := s.main.r.Header()
	s.name, err = vault.ParseSegmentName(path)
	if err != nil { // a name of no segment, which some other rule allows
		s.name = vault.Segment{Gateway: h.Gateway, Epoch: h.Epoch, First: h.First, Last: h.Last, Class: h.Class}
	}
	return s, nil
}

func openFile(ctx context.Context, v Vault, path string) (*file, error) {
	r, err := v.Open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", path, err)
	}
	f := &file{path: path, src: &source{ReadCloser: r}}
	if f.r, err = vault.ReadSegment(path, f.src); err != nil {
		err = f.fail(err)
		r.Close()
		return nil, err
	}
	f.end = f.r.End()
	return f, nil
}

func (f *file) fail(err error) error {
	if f.src.err != nil {
		return fmt.Errorf("segment %s: %w", f.path, f.src.err)
	}
	return err
}

// next returns the file's next frame.
func (f *file) next() (record.Frame, error) {
	frame, err := f.r.Next()
	if f.src.err != nil || err != nil && !errors.Is(err, io.EOF) {
		return record.Frame{}, f.fail(err)
	}
	if err != nil {
		return record.Frame{}, io.EOF
	}
	f.end = f.r.End()
	return frame, nil
}

// wrong makes an error about the part.
func (f *file) wrong(format string, args ...any) error {
	return &vault.SegmentError{Name: f.path, Offset: f.r.Offset(), Err: fmt.Errorf(format, args...)}
}

// Header returns the segment's header.
func (s *Segment) Header() vault.Header { return s.main.r.Header() }

// Path returns the name of the file that holds the record that came last.
func (s *Segment) Path() string { return s.from.path }

// Next returns the next frame, in memory of its own, and the offset in its file,
// see Path, at which it begins. At the end of the segment it returns [io.EOF],
// for bytes of the segment's own file that are no frame an error that wraps a
// [vault.SegmentError].
func (s *Segment) Next() (record.Frame, int64, error) {
	s.from = s.main
	f, err := s.main.next()
	switch {
	case errors.Is(err, io.EOF):
		if err := s.ends(); err != nil {
			return record.Frame{}, s.main.end, err
		}
		return record.Frame{}, s.main.end, io.EOF
	case err != nil:
		return record.Frame{}, s.main.r.Offset(), err
	case f.Kind != vault.KindAbsent:
		return f, s.main.r.Offset(), nil
	}
	part, err := s.part(&f)
	if err != nil {
		return record.Frame{}, s.main.r.Offset(), err
	}
	if part.bad {
		return f, s.main.r.Offset(), nil
	}
	held, err := part.next()
	var format *vault.SegmentError
	switch {
	case errors.Is(err, io.EOF):
		err = part.wrong("ends before record %d: its last bytes are missing", f.Sequence)
	case errors.As(err, &format):
	case err != nil:
		return record.Frame{}, s.main.r.Offset(), err
	case held.Sequence != f.Sequence || !held.Kind.Leaf():
		err = part.wrong("a %s record %d stands where record %d must", held.Kind, held.Sequence, f.Sequence)
	case held.Leaf() != [32]byte(f.Body):
		err = part.wrong("record %d is not the one whose digest the segment has", f.Sequence)
	case held.Class != f.Class || !held.Time.Equal(f.Time) || !held.Expiry.Equal(f.Expiry):
		err = part.wrong("the segment says that record %d has class %s, time %s and expiry %s: the record says otherwise", f.Sequence, f.Class, f.Time, f.Expiry)
	}
	if err != nil {
		s.lost(part, err, &f)
		return f, s.main.r.Offset(), nil
	}
	part.records++
	if held.Expiry.IsZero() {
		part.forever = true
	} else if held.Expiry.After(part.expires) {
		part.expires = held.Expiry
	}
	s.from = part
	return held, part.r.Offset(), nil
}

func (s *Segment) lost(part *file, err error, f *record.Frame) {
	part.bad = true
	if s.OnPart != nil {
		s.OnPart(part.path, err, f)
	}
}

// part opens the part that holds an absent record.
func (s *Segment) part(f *record.Frame) (*file, error) {
	if p := s.parts[f.Class]; p != nil {
		return p, nil
	}
	id := s.name
	id.Class, id.Part = f.Class, true
	path, err := vault.SegmentName(id)
	if err != nil {
		path = s.path + " (" + f.Class + ")"
	}
	p, err := openFile(s.ctx, s.vault, path)
	var format *vault.SegmentError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &format) {
		p = &file{path: path}
		s.lost(p, err, f)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	s.parts[f.Class] = p
	return p, nil
}

// ends checks that the parts end with the segment, and that headers say what
// was there.
func (s *Segment) ends() error {
	for _, class := range slices.Sorted(maps.Keys(s.parts)) {
		p := s.parts[class]
		if p.bad {
			continue
		}
		f, err := p.next()
		var format *vault.SegmentError
		h := p.r.Header()
		if p.forever {
			p.expires = time.Time{}
		}
		switch {
		case err == nil:
			err = p.wrong("a %s record %d follows on the last one", f.Kind, f.Sequence)
		case errors.As(err, &format):
		case !errors.Is(err, io.EOF):
			return err
		case h.Records != p.records || !h.Expires.Equal(p.expires) || h.Head != s.Header().Head:
			err = p.wrong("the header says %d records, the last of which expires at %s: there are %d, to %s", h.Records, h.Expires, p.records, p.expires)
		default:
			continue
		}
		s.lost(p, err, nil)
	}
	return nil
}

// Size returns how many bytes were read as headers and records, of all files.
func (s *Segment) Size() int64 {
	n := s.main.end
	for _, p := range s.parts {
		n += p.end
	}
	return n
}

// Close ends the reading.
func (s *Segment) Close() error {
	err := s.main.src.Close()
	for _, p := range s.parts {
		if p.src != nil {
			err = errors.Join(err, p.src.Close())
		}
	}
	return err
}
