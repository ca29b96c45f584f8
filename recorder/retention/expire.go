package retention

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Remover removes files of segments, see [vault.Folder.Expire].
type Remover interface {
	Expire(ctx context.Context, name string) error
}

// Options of an expiry.
type Options struct {
	Holds []*Hold
	By    string // who runs it
	Now   func() time.Time
	// Remove deletes; where it is nil nothing is written or deleted.
	Remove Remover
	// Skip, where set, is asked about each name: what it returns true for is
	// left to others (a bucket's lifecycle).
	Skip func(name string) bool
}

// File is a file of a segment whose retention is over.
type File struct {
	vault.ExpiryEntry
	// Kept says why it stays nevertheless, empty where it goes.
	Kept string
}

// Report says what an expiry did, or would do.
type Report struct {
	Files []File // expired, in the order of gateways, epochs and sequences
	Bytes int64  // of those that go
	Gone  int
	Kept  int
	Notes []string // names of the expiry notes
}

// Expire deletes what has expired and no hold covers. Notes are durable before
// anything goes; an expiry that is cut off is finished by the next.
func Expire(ctx context.Context, v Vault, o Options) (*Report, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	x := &expiry{ctx: ctx, v: v, o: o, now: o.Now().UTC(), report: &Report{}}
	if err := x.collect(); err != nil {
		return nil, fmt.Errorf("expire: %w", err)
	}
	for _, e := range x.epochs {
		if err := x.epoch(e); err != nil {
			return x.report, fmt.Errorf("expire: %w", err)
		}
	}
	return x.report, nil
}

type expiry struct {
	ctx    context.Context
	v      Vault
	o      Options
	now    time.Time
	report *Report
	epochs []*epoch
}

type epoch struct {
	gateway string
	id      record.Epoch
	names   []named
	newest  bool // of its gateway
}

type named struct {
	name string
	id   vault.Segment
}

// collect lists the segments by epoch.
func (x *expiry) collect() error {
	type key struct {
		gateway string
		epoch   record.Epoch
	}
	by := map[key]*epoch{}
	newest := map[string]*epoch{}
	for name, err := range x.v.List(x.ctx, vault.SegmentsPrefix) {
		if err != nil {
			return err
		}
		id, err := vault.ParseSegmentName(name)
		if err != nil || x.o.Skip != nil && x.o.Skip(name) {
			continue
		}
		k := key{id.Gateway, id.Epoch}
		if by[k] == nil {
			by[k] = &epoch{gateway: id.Gateway, id: id.Epoch}
			x.epochs = append(x.epochs, by[k])
		}
		by[k].names = append(by[k].names, named{name, id})
		if n := newest[id.Gateway]; n == nil || bytes.Compare(n.id[:], id.Epoch[:]) < 0 {
			newest[id.Gateway] = by[k]
		}
	}
	for _, e := range newest {
		e.newest = true
	}
	slices.SortStableFunc(x.epochs, func(a, b *epoch) int {
		if a.gateway != b.gateway {
			if a.gateway < b.gateway {
				return -1
			}
			return 1
		}
		return bytes.Compare(a.id[:], b.id[:])
	})
	return nil
}

// judged is a file with what was read of it.
type judged struct {
	entry vault.ExpiryEntry
	after record.ChainHead
	live  bool // not expired
	kept  string
}

func (x *expiry) epoch(e *epoch) error {
	slices.SortFunc(e.names, func(a, b named) int {
		switch {
		case a.id.First != b.id.First:
			if a.id.First < b.id.First {
				return -1
			}
			return 1
		case a.id.Part != b.id.Part: // a segment's parts come first
			if a.id.Part {
				return -1
			}
			return 1
		case a.id.Class < b.id.Class:
			return -1
		}
		return 1
	})
	last := uint64(0)
	for _, n := range e.names {
		last = max(last, n.id.Last)
	}
	var parts, run []*judged
	stays := map[uint64]string{} // why a part of the segment that begins there stays
	flush := func() error {
		err := x.remove(e, parts)
		if err == nil {
			err = x.remove(e, run)
		}
		parts, run = nil, nil
		return err
	}
	for _, n := range e.names {
		j, err := x.judge(n)
		if err != nil {
			return err
		}
		if j == nil {
			continue
		}
		if j.live {
			if n.id.Part {
				stays[n.id.First] = "one of its parts has not expired"
			} else if err := flush(); err != nil {
				return err
			}
			continue
		}
		switch {
		case j.kept == "" && !n.id.Part && stays[n.id.First] != "":
			j.kept = stays[n.id.First]
		case j.kept == "" && !n.id.Part && e.newest && n.id.Last == last:
			j.kept = "the sink goes on from the gateway's last segment"
		}
		x.report.Files = append(x.report.Files, File{j.entry, j.kept})
		if j.kept != "" {
			x.report.Kept++
			if n.id.Part {
				stays[n.id.First] = "one of its parts is kept"
			} else if err := flush(); err != nil {
				return err
			}
			continue
		}
		x.report.Gone++
		x.report.Bytes += j.entry.Bytes
		if n.id.Part {
			if j.entry.Checkpoint, err = x.cut(e, n.id.First); err != nil {
				return err
			}
			parts = append(parts, j)
			continue
		}
		if k := len(run); k > 0 && run[k-1].entry.Last+1 != n.id.First {
			if err := flush(); err != nil {
				return err
			}
		}
		run = append(run, j)
		if len(run) == mostEntries || len(parts) >= mostEntries {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// mostEntries is how many files one note lists.
const mostEntries = 1000

// judge reads a file and says whether all of it has expired. It returns nil for
// a file that is gone.
func (x *expiry) judge(n named) (*judged, error) {
	f, err := x.v.Open(x.ctx, n.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	in := &counted{r: io.TeeReader(f, sum)}
	r, err := vault.ReadSegment(n.name, in)
	if err != nil {
		return nil, fmt.Errorf("%w: nothing of the epoch is deleted, see recorder verify", err)
	}
	h := r.Header()
	if expired(h.Expires, x.now) != nil && h.Records > 0 {
		return &judged{live: true}, nil
	}
	j := &judged{after: h.Head, entry: vault.ExpiryEntry{
		Name: n.name, First: h.First, Last: h.Last, Class: h.Class, Part: h.Part, Head: vault.Hex(h.Head), Records: h.Records,
	}}
	seq, records := h.First-1, uint64(0)
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: nothing of the epoch is deleted, see recorder verify", err)
		}
		absent := f.Kind == vault.KindAbsent
		if !f.Kind.Leaf() && !absent {
			if head, err := record.CheckpointHead(&f); err != nil || head != j.after {
				return nil, fmt.Errorf("segment %s: its checkpoint for record %d does not fit: nothing of the epoch is deleted, see recorder verify", n.name, f.Sequence)
			}
			j.entry.Checkpoint = string(f.Body)
			continue
		}
		// The record's own expiry counts, not the header's.
		if expired(f.Expiry, x.now) != nil {
			return &judged{live: true}, nil
		}
		if f.Expiry.After(j.entry.Expires) {
			j.entry.Expires = f.Expiry
		}
		if absent {
			j.after = j.after.Next([len(j.after)]byte(f.Body))
		} else {
			j.after = j.after.Next(f.Leaf())
			records++
		}
		if !h.Part && f.Sequence != seq+1 || f.Sequence <= seq {
			return nil, fmt.Errorf("segment %s: record %d follows on record %d: nothing of the epoch is deleted, see recorder verify", n.name, f.Sequence, seq)
		}
		seq = f.Sequence
		if absent || j.kept != "" {
			continue
		}
		for _, hold := range x.o.Holds {
			if hold.Covers(n.id.Epoch, &f) {
				j.kept = "hold " + hold.ID
			}
		}
	}
	if records != h.Records || !h.Part && seq != h.Last {
		return nil, fmt.Errorf("segment %s: ends early: nothing of the epoch is deleted, see recorder verify", n.name)
	}
	j.entry.Bytes, j.entry.SHA256 = in.n, hex.EncodeToString(sum.Sum(nil))
	return j, nil
}

// copyOpen sees to it that there is a copy of the epoch's open record before the
// record goes: it names the key that notes are verified with. A sink of an
// earlier version left none.
func (x *expiry) copyOpen(e *epoch) error {
	name := vault.EpochName(e.gateway, e.id)
	if r, err := x.v.Open(x.ctx, name); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = r.Close()
		}
		return err
	}
	for _, n := range e.names {
		if n.id.First != 1 {
			continue
		}
		open, err := x.find(n, func(f *record.Frame) bool { return f.Kind == record.KindOpen })
		if err != nil {
			return err
		}
		if open != nil {
			return x.v.Create(x.ctx, name, bytes.NewReader(open.Raw()))
		}
	}
	return nil
}

// cut returns the checkpoint that the segment which begins there ends with.
func (x *expiry) cut(e *epoch, first uint64) (string, error) {
	for _, n := range e.names {
		if n.id.First != first || n.id.Part {
			continue
		}
		f, err := x.find(n, func(f *record.Frame) bool {
			return f.Kind == record.KindCheckpoint && f.Flags&record.FlagCut != 0
		})
		if err != nil || f == nil {
			return "", err
		}
		return string(f.Body), nil
	}
	return "", nil
}

// find returns a file's first frame that is wanted, nil where there is none.
func (x *expiry) find(n named, wanted func(*record.Frame) bool) (*record.Frame, error) {
	r, c, err := vault.OpenSegment(x.ctx, x.v, n.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: nothing of the epoch is deleted, see recorder verify", err)
	}
	defer c.Close()
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: nothing of the epoch is deleted, see recorder verify", err)
		}
		if wanted(&f) {
			return &f, nil
		}
	}
}

// expired returns why something has not expired, nil where it has.
func expired(at, now time.Time) error {
	if at.IsZero() || now.Before(at) {
		return errors.New("its retention lasts")
	}
	return nil
}

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// remove notes the files, all parts or all segments that follow each other, and
// deletes them, the first first.
func (x *expiry) remove(e *epoch, files []*judged) error {
	if len(files) == 0 || x.o.Remove == nil {
		return nil
	}
	if err := x.copyOpen(e); err != nil {
		return err
	}
	note := &vault.Expiry{
		Version: 2, Gateway: e.gateway, Epoch: e.id.String(), Written: x.now.Truncate(time.Second), By: x.o.By,
		Head: vault.Hex(files[len(files)-1].after),
	}
	for _, f := range files {
		note.Entries = append(note.Entries, f.entry)
	}
	name, err := note.Name()
	if err != nil {
		return err
	}
	b, err := note.Marshal()
	if err != nil {
		return err
	}
	err = x.v.Create(x.ctx, name, bytes.NewReader(b))
	if errors.Is(err, vault.ErrConflict) {
		err = x.noted(name, note)
	}
	if err != nil {
		return err
	}
	x.report.Notes = append(x.report.Notes, name)
	for _, f := range files {
		if err := x.o.Remove.Expire(x.ctx, f.entry.Name); err != nil {
			return err
		}
	}
	return nil
}

// noted reports an error unless the note that is there says the same: an
// earlier expiry that was cut off wrote it.
func (x *expiry) noted(name string, want *vault.Expiry) error {
	r, err := x.v.Open(x.ctx, name)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, vault.MaxExpiry+1))
	if err != nil {
		return err
	}
	have, err := vault.ParseExpiry(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if have.Head != want.Head || !slices.EqualFunc(have.Entries, want.Entries, func(a, b vault.ExpiryEntry) bool {
		return a.Name == b.Name && a.SHA256 == b.SHA256 && a.Head == b.Head
	}) {
		return fmt.Errorf("%s: another note of the same range is there: nothing of it is deleted, see recorder verify", name)
	}
	return nil
}
