package index

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Config says what is indexed, and where.
type Config struct {
	Vault ledger.Vault
	// Keys opens sealed bodies: an index is built and checked by an identity
	// that may decrypt.
	Keys  ledger.Opener
	Store Store
	// Since, where set, leaves out segments of the days before it.
	Since time.Time
	// Warn, where set, is called for each segment that could not be read to its
	// end.
	Warn func(error)
	// Progress, where set, is called after each segment that was read.
	Progress func(Stats)
	Now      func() time.Time // nil: time.Now

	// For tests; 0: the defaults.
	memory       int // bytes of rows that are held
	commitEvery  int // segments
	uncompressed bool
}

func (c *Config) warn(err error) {
	if c.Warn != nil {
		c.Warn(err)
	}
}

func (c *Config) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// Stats count what a build or check met.
type Stats struct {
	Day        string // of the segment that was read last
	Segments   int64  // read
	Skipped    int64  // in the index already
	Bytes      int64  // of the segments that were read
	Damaged    int64  // segments that could not be read to their end
	Exchanges  int64  // begun in the segments that were read
	Rows       int64  // put into the index, those of open exchanges once a commit
	Unreadable int64  // rows with less than the whole exchange, for want of a key
	Erased     int64  // exchanges left out, for their key was erased
	Purged     int64  // rows taken away, for their key was erased since
	Expired    int64  // rows taken away, for their segment is gone
	Files      int64  // written
	Written    int64  // bytes of them
}

// draft is a row on its way.
type draft struct {
	row   *Row
	epoch record.Epoch
	day   string // of the file; from the first record's time
	// last is the record that the row knows last.
	last record.ID
	// erased: a key of it was erased, so there will be no row.
	erased bool
	ended  bool
}

func (d *draft) id() record.ID {
	return record.ID{Epoch: d.epoch, Sequence: uint64(d.row.Sequence)}
}

// reader makes rows of records.
type reader struct {
	ctx   context.Context
	c     *Config
	stats Stats
	open  map[record.ID]*draft
	// begun is called for each exchange's first record, done for each row that
	// is whole.
	begun func(d *draft, size int) error
	done  func(d *draft) error
	// dropped is called where a row that may be in the index must go.
	opened, closed int64 // bodies that opened, and that did not for a wrong key
}

// segment reads a segment and its parts. It reports whether it was there.
func (r *reader) segment(n ledger.Name) (bool, error) {
	s, err := ledger.OpenSegment(r.ctx, r.c.Vault, n.Path)
	var format *vault.SegmentError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // it expired since the listing
	case errors.As(err, &format):
		r.stats.Damaged++
		r.c.warn(err)
		return true, nil
	case err != nil:
		return false, err
	}
	defer s.Close()
	s.OnPart = func(_ string, err error, _ *record.Frame) {
		if !errors.Is(err, fs.ErrNotExist) { // expired, or verify says
			r.stats.Damaged++
			r.c.warn(err)
		}
	}
	for {
		f, _, err := s.Next()
		switch {
		case errors.Is(err, io.EOF):
			r.stats.Segments++
			r.stats.Bytes += s.Size()
			r.stats.Day = n.Day
			return true, nil
		case errors.As(err, &format):
			r.stats.Damaged++
			r.c.warn(err)
			return true, nil
		case err != nil:
			return false, err
		}
		if err := r.frame(n, s.Path(), &f); err != nil {
			return false, err
		}
	}
}

func (r *reader) frame(n ledger.Name, path string, f *record.Frame) error {
	switch f.Kind {
	case record.KindReceived, record.KindIntent, record.KindOutcome:
	default:
		return nil
	}
	id := record.ID{Epoch: n.Epoch, Sequence: f.Exchange}
	here := record.ID{Epoch: n.Epoch, Sequence: f.Sequence}
	if f.Kind == record.KindOutcome && f.Exchange == f.Sequence {
		return r.recovered(n, here, f)
	}
	d := r.open[id]
	if f.Exchange == f.Sequence {
		d = &draft{epoch: n.Epoch, row: &Row{
			Exchange: id.String(), Gateway: n.Gateway, Epoch: n.Epoch.String(), Sequence: int64(f.Exchange),
			Received: micros(f.Time), Result: Pending, Class: f.Class, Expires: micros(f.Expiry), Segment: path,
		}}
		r.open[id] = d
		r.stats.Exchanges++
	}
	if d == nil {
		return nil // its first record is not there
	}
	d.last = here
	var err error
	switch f.Kind {
	case record.KindReceived:
		var v record.Received
		var ok bool
		if ok, err = r.read(n, f, d, &v); ok {
			d.row.received(&v)
			d.first(f, v.At)
		}
	case record.KindIntent:
		var v record.Intent
		var ok bool
		if ok, err = r.read(n, f, d, &v); ok {
			d.row.intent(&v)
			d.first(f, v.Verbatim.Received)
		}
	case record.KindOutcome:
		var v record.Outcome
		var ok bool
		if ok, err = r.read(n, f, d, &v); ok {
			d.row.outcome(&v, f.Time)
		} else {
			d.row.Result = Unknown
			d.row.ends(f.Time)
		}
		d.ended = true
	}
	if err != nil {
		return err
	}
	if f.Exchange == f.Sequence {
		d.day = vault.Day(d.row.Time())
		if err := r.begun(d, len(f.Body)); err != nil {
			return err
		}
	}
	if !d.ended {
		return nil
	}
	delete(r.open, id)
	return r.done(d)
}

// first sets when the request came. That is for its first record to say.
func (d *draft) first(f *record.Frame, t time.Time) {
	if f.Exchange == f.Sequence && !t.IsZero() {
		d.row.Received = micros(t)
	}
}

// recovered joins an outcome with the exchange of an earlier epoch that it
// closes.
func (r *reader) recovered(n ledger.Name, here record.ID, f *record.Frame) error {
	b, why, err := r.body(n, f)
	if why != nil || err != nil {
		return err
	}
	var o record.Outcome
	if err := record.Unmarshal(b, &o); err != nil || o.Verbatim.Interrupted == "" {
		return nil //nolint:nilerr // verify says
	}
	cut, err := record.ParseID(o.Verbatim.Interrupted)
	if err != nil {
		r.c.warn(fmt.Errorf("segment %s: record %d: %w", n.Path, f.Sequence, err))
		return nil
	}
	d := r.open[cut]
	if d == nil || d.row.Gateway != n.Gateway {
		return nil
	}
	d.row.Result, d.row.Cause, d.row.ClosedBy = string(record.ResultInterrupted), o.Verbatim.Cause, here.String()
	d.row.ends(f.Time)
	d.last, d.ended = here, true
	delete(r.open, cut)
	return r.done(d)
}

// read opens a body and reads it into v. What cannot be read it notes on the
// row.
func (r *reader) read(n ledger.Name, f *record.Frame, d *draft, v any) (bool, error) {
	if f.Key != (record.KeyID{}) {
		key := hex.EncodeToString(f.Key[:])
		if !slices.Contains(d.row.Keys, key) {
			d.row.Keys = append(d.row.Keys, key)
		}
	}
	b, why, err := r.body(n, f)
	if err != nil {
		return false, err
	}
	if why == nil {
		if err := record.Unmarshal(b, v); err != nil {
			why = errors.New("a record's body is not understood")
		}
	}
	var erased *keyring.ErasedError
	switch {
	case why == nil:
		return true, nil
	case errors.As(why, &erased):
		d.erased = true
	case d.row.Unreadable == "":
		d.row.Unreadable = why.Error()
	}
	return false, nil
}

// Why a body is not in a row, in fixed words: a row says nothing of a key's
// file that may change.
var (
	errMissing = errors.New("its data key is missing, and no erasure names it")
	errWrong   = errors.New("its data key, or the body, is wrong")
)

// body opens a body. The second error is of the body, the third of the reading.
func (r *reader) body(n ledger.Name, f *record.Frame) (b []byte, why, err error) {
	if f.Key == (record.KeyID{}) {
		return f.Body, nil, nil
	}
	b, err = r.c.Keys.Open(r.ctx, n.Epoch, f)
	var erased *keyring.ErasedError
	switch {
	case err == nil:
		r.opened++
		return b, nil, nil
	case errors.As(err, &erased):
		return nil, erased, nil
	case errors.Is(err, record.ErrNoKey):
		return nil, errMissing, nil
	case errors.Is(err, keyring.ErrWrong), errors.Is(err, keyring.ErrBody):
		r.closed++
		return nil, errWrong, nil
	}
	return nil, nil, err
}

// ErrKeyset means that the keyset opens nothing of the vault.
var ErrKeyset = errors.New("the keyset opens none of the records: is it another tenant's?")

// keyset returns an error where all bodies were wrong.
func (r *reader) keyset() error {
	if r.opened == 0 && r.closed > 0 {
		return fmt.Errorf("index: %w", ErrKeyset)
	}
	return nil
}
