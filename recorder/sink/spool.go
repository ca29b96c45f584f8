package sink

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"verbatim.dev/recorder/record"
)

const (
	spoolPattern = "verbatim-spool-*"
	spoolBuffer  = 64 << 10
	markSize     = len(record.ChainHead{}) + 1
)

// spool holds the frames of a segment that is not whole yet, in a file without a name, and
// beside it a mark for each record but the last: the chain's head after it and
// whether a checkpoint followed. So a frame that comes again can be compared
// however long the segment is, with no more memory than the buffers.
type spool struct {
	data, marks     spoolFile
	dataW, marksW   *bufio.Writer
	size, markCount int64
}

// spoolFile is the part of [os.File] that a spool needs.
type spoolFile interface {
	io.Writer
	io.ReaderAt
	io.Seeker
	io.Closer
	Truncate(size int64) error
}

// tempFile makes a file that has no name.
func tempFile(dir string) (spoolFile, error) {
	file, err := os.CreateTemp(dir, spoolPattern)
	if err != nil {
		return nil, err
	}
	err = os.Remove(file.Name())
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a sink that starts cleaned it away
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func newSpool(dir string, create func(dir string) (spoolFile, error)) (*spool, error) {
	s := &spool{}
	for _, f := range []*spoolFile{&s.data, &s.marks} {
		file, err := create(dir)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("sink: spool: %w", err)
		}
		*f = file
	}
	s.dataW = bufio.NewWriterSize(s.data, spoolBuffer)
	s.marksW = bufio.NewWriterSize(s.marks, spoolBuffer)
	return s, nil
}

// reset begins a new segment.
func (s *spool) reset() error {
	for _, f := range []spoolFile{s.data, s.marks} {
		if err := f.Truncate(0); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	s.dataW.Reset(s.data)
	s.marksW.Reset(s.marks)
	s.size, s.markCount = 0, 0
	return nil
}

func (s *spool) append(b []byte) error {
	n, err := s.dataW.Write(b)
	s.size += int64(n)
	return err
}

// mark notes the head after the next record of the segment.
func (s *spool) mark(head record.ChainHead, checked bool) error {
	var b [markSize]byte
	copy(b[:], head[:])
	if checked {
		b[len(head)] = 1
	}
	if _, err := s.marksW.Write(b[:]); err != nil {
		return err
	}
	s.markCount++
	return nil
}

// marked returns the mark of the segment's record with the index, from 0.
func (s *spool) marked(index uint64) (head record.ChainHead, checked bool, err error) {
	if index >= uint64(s.markCount) {
		return head, false, fmt.Errorf("no mark %d of %d", index, s.markCount)
	}
	if err := s.marksW.Flush(); err != nil {
		return head, false, err
	}
	var b [markSize]byte
	if _, err := s.marks.ReadAt(b[:], int64(index)*int64(markSize)); err != nil {
		return head, false, err
	}
	copy(head[:], b[:])
	return head, b[len(head)] == 1, nil
}

// content returns the frames of the segment.
func (s *spool) content() (io.Reader, error) {
	if err := s.dataW.Flush(); err != nil {
		return nil, err
	}
	return io.NewSectionReader(s.data, 0, s.size), nil
}

// from returns what was appended from an offset on.
func (s *spool) from(offset int64) ([]byte, error) {
	if err := s.dataW.Flush(); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(s.data, offset, s.size-offset))
}

// truncate drops what was appended from an offset on. Marks stay.
func (s *spool) truncate(size int64) error {
	if err := s.dataW.Flush(); err != nil {
		return err
	}
	if err := s.data.Truncate(size); err != nil {
		return err
	}
	if _, err := s.data.Seek(size, io.SeekStart); err != nil {
		return err
	}
	s.dataW.Reset(s.data)
	s.size = size
	return nil
}

func (s *spool) close() {
	for _, f := range []spoolFile{s.data, s.marks} {
		if f != nil {
			_ = f.Close()
		}
	}
}
