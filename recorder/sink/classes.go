package sink

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// held sums up the records of one class in a segment.
type held struct {
	records uint64
	last    time.Time // the latest expiry
	forever bool      // one never expires
}

// expires is when all of them have expired, zero for never.
func (h *held) expires() time.Time {
	if h.forever {
		return time.Time{}
	}
	return h.last
}

// count takes note of a record's class.
func (st *stream) count(f *record.Frame) error {
	h := st.classes[f.Class]
	if h == nil {
		if err := vault.CheckClass(f.Class); err != nil {
			return st.wrong(fmt.Errorf("record %d: %w", f.Sequence, err))
		}
		if len(st.classes) >= vault.MaxClasses {
			return st.wrong(fmt.Errorf("record %d: its segment has more than %d retention classes", f.Sequence, vault.MaxClasses))
		}
		h = &held{}
		st.classes[f.Class] = h
	}
	h.records++
	if f.Expiry.IsZero() {
		h.forever = true
	} else if f.Expiry.After(h.last) {
		h.last = f.Expiry
	}
	return nil
}

// main returns the class of the segment. It follows from the records and the
// configuration alone.
func (st *stream) main() string {
	if st.sink.c.Class != "" {
		return st.sink.c.Class
	}
	best := ""
	var most *held
	for class, h := range st.classes {
		longer := most == nil || h.forever && !most.forever
		if !longer && h.forever == most.forever {
			longer = !h.forever && h.last.After(most.last) || (h.forever || h.last.Equal(most.last)) && class < best
		}
		if longer {
			best, most = class, h
		}
	}
	return best
}

// ofClass reads the frames of a segment of several classes as the file of one
// of them holds them: a part only those of its class, the segment an absence
// for each other.
type ofClass struct {
	r      *bufio.Reader
	header vault.Header
	left   []byte
	err    error
}

func (o *ofClass) Read(p []byte) (int, error) {
	for len(o.left) == 0 {
		if o.err != nil {
			return 0, o.err
		}
		f, err := record.ReadFrame(o.r)
		switch leaf := f.Kind.Leaf(); {
		case errors.Is(err, io.EOF):
			o.err = io.EOF
		case err != nil:
			o.err = fmt.Errorf("sink: spool: %w", err)
		case leaf && f.Class == o.header.Class, !leaf && !o.header.Part:
			o.left = f.Raw()
		case leaf && !o.header.Part:
			class, _ := slices.BinarySearch(o.header.Classes, f.Class)
			o.left = vault.AppendAbsence(nil, &f, class)
		}
	}
	n := copy(p, o.left)
	o.left = o.left[n:]
	return n, nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
