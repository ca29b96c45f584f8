package ledger

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// mostExpired is how many expired ranges a report names.
const mostExpired = 100

// tally sums up the records that a file holds.
type tally struct {
	records uint64
	last    time.Time
	forever bool
}

func (t *tally) add(f *record.Frame) {
	t.records++
	if f.Expiry.IsZero() {
		t.forever = true
	} else if f.Expiry.After(t.last) {
		t.last = f.Expiry
	}
}

func (t *tally) expires() time.Time {
	if t.forever {
		return time.Time{}
	}
	return t.last
}

// group are the listed names of one range: a segment's and its parts'.
type group struct {
	epoch *epoch
	of    Name
	parts []Name
	// read: the segment was read, and classes are those of its parts.
	read    bool
	classes []string
}

func (g *group) is(n Name) bool {
	return g.epoch != nil && n.Epoch == g.of.Epoch && n.Day == g.of.Day && n.First == g.of.First && n.Last == g.of.Last
}

// regroup begins a new group where the name is of another range.
func (c *verifier) regroup(n Name) {
	if c.group.is(n) {
		return
	}
	c.ungroup()
	c.group = group{epoch: c.epochs[n.Epoch], of: n}
}

// mostStrays is how many parts without a segment are kept of one epoch until
// its end is known.
const mostStrays = 256

func (c *verifier) ungroup() {
	g := &c.group
	for _, n := range g.parts {
		switch {
		case !g.read && len(g.epoch.strays) < mostStrays:
			// The sink may be about to write the segment.
			g.epoch.strays = append(g.epoch.strays, n)
		case !g.read || !slices.Contains(g.classes, n.Class):
			c.find(FileUnknown, place{name: n}, "is a part of no segment")
		}
	}
	c.group = group{}
}

// part is the name of a segment's part.
func part(n Name, path string) Name {
	if p, err := ParseName(path); err == nil {
		return p
	}
	n.Path = path
	return n
}

// absence judges a record that is not there while its digest is. What the
// segment says of it is no proof yet: see stated. Classes are those about which
// something was said.
func (c *verifier) absence(e *epoch, n Name, f *record.Frame, said map[string]bool) (expired bool, err error) {
	e.gone = true
	if f.Sequence == 1 {
		if err := c.key(e); err != nil {
			return false, err
		}
	}
	where := partOf(n, f.Class)
	if err := c.held(e, where, f); err != nil {
		return false, err
	}
	if !f.Expiry.IsZero() && !c.now.Before(f.Expiry) {
		c.report.Expired.add(ExpiredRange{Gateway: e.gateway, Epoch: e.id.String(), First: f.Sequence, Last: f.Sequence, Class: f.Class, Expiry: f.Expiry, By: "segment"})
		return true, nil
	}
	if said[f.Class] {
		return false, nil
	}
	said[f.Class] = true
	until := "for ever"
	if !f.Expiry.IsZero() {
		until = "until " + f.Expiry.Format(time.RFC3339)
	}
	c.find(SegmentMissing, place{name: where, seq: f.Sequence}, "records of class %s are missing: the file that holds them is not in the vault, and they must be kept %s", f.Class, until)
	return false, nil
}

// partOf names a class's part of a segment.
func partOf(n Name, class string) Name {
	id := n.Segment
	id.Class, id.Part = class, true
	if path, err := vault.SegmentName(id); err == nil {
		return Name{Segment: id, Path: path}
	}
	return n
}

// retained holds what a checkpoint states of the records' retention against
// them: those since the last cut, absences as the segment tells of them, and
// all before. It is what proves that absences have expired.
func (c *verifier) retained(e *epoch, s *record.Statement, span *record.Retained, at place) bool {
	r := s.Retained
	switch {
	case r == nil:
		e.untold = true
		return true
	case !slices.Equal(r.Classes, span.Classes):
		c.find(ExpiryWrong, at, "the checkpoint states %s since the last cut, the segment has %s: a record's class or expiry was changed, or the segment begins elsewhere", classText(r.Classes), classText(span.Classes))
		return false
	case e.told && r.Before != e.until:
		c.find(ExpiryWrong, at, "the checkpoint states that the last record before the segment expires at %s, these say %s", r.Before, e.until)
		return false
	}
	return true
}

func classText(all []record.ClassRetained) string {
	var b strings.Builder
	for i, c := range all {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d records of class %s to %s", c.Records, c.Class, c.Expiry)
	}
	if len(all) == 0 {
		return "no records"
	}
	return b.String()
}

// proven judges a segment's absences that have expired, at its cut checkpoint.
func (c *verifier) proven(e *epoch, s *record.Statement, absent *record.Frame, at place) {
	at.seq = absent.Sequence
	switch {
	case e.verifier == nil && c.old(absent.Time): // known by its age
	case e.verifier == nil:
		c.find(ExpiryUnproven, at, "records of class %s are not here: nothing proves that they have expired, for the key that signed the segment's checkpoint is not here either", absent.Class)
	case s.Retained == nil:
		c.unsigned(e, at)
	}
}

// unsigned notes once that an epoch's gateway did not sign when records expire.
func (c *verifier) unsigned(e *epoch, at place) {
	if !e.noted {
		e.noted = true
		c.notice(ExpiryUnproven, at, "records of the epoch have expired by the vault's word alone: its gateway was of an earlier version, which did not sign when they do")
	}
}

// old reports whether everything that was recorded up to then has expired, as
// the verifier knows.
func (c *verifier) old(recorded time.Time) bool {
	return c.options.Retention > 0 && !recorded.IsZero() && !c.now.Before(recorded.Add(c.options.Retention))
}

func (x *Expired) add(r ExpiredRange) {
	x.Records += int64(r.Last - r.First + 1)
	if n := len(x.Ranges); n > 0 {
		l := &x.Ranges[n-1]
		if l.Epoch == r.Epoch && l.By == r.By && l.Class == r.Class && l.Last+1 == r.First {
			l.Last = r.Last
			if r.Expiry.After(l.Expiry) {
				l.Expiry = r.Expiry
			}
			return
		}
	}
	if len(x.Ranges) < mostExpired {
		x.Ranges = append(x.Ranges, r)
	}
}

// bound is what is known, beside the notes, of when records expire that are not
// here.
type bound struct {
	// signed: an epoch's key, or the sink's log, says that the last of them
	// expires then.
	signed bool
	latest record.Latest
	by     string
	// recorded is when the last of them can have been recorded. It counts where
	// gateways of an earlier version signed no expiry.
	recorded time.Time
}

// ahead reads what the segment says of the records before it, in its first
// checkpoint.
func (c *verifier) ahead(e *epoch, n Name) (b bound, err error) {
	if err := c.key(e); err != nil {
		return b, err
	}
	other, err := OpenSegment(c.ctx, c.vault, n.Path)
	if err != nil {
		return b, nil //nolint:nilerr // reading the segment itself will say so
	}
	defer other.Close()
	var first time.Time
	for {
		f, _, err := other.Next()
		if err != nil {
			return b, nil //nolint:nilerr // the same
		}
		if first.IsZero() {
			first = f.Time
		}
		if f.Kind != record.KindCheckpoint {
			continue
		}
		st, err := record.Stated(&f)
		switch {
		case err != nil:
		case e.verifier == nil && st.Retained == nil:
			b.recorded = first
		case e.verifier == nil:
			c.noKey(e, place{name: n, seq: f.Sequence})
		case st.Gateway != e.gateway || st.Epoch != e.id:
		case c.signed(e, &f) != nil: // a finding when the segment is read
		case st.Retained == nil:
			b.recorded = first
		default:
			if from, _ := st.Span(); from == n.First {
				b = bound{signed: true, latest: st.Retained.Before, by: "checkpoint"}
			}
		}
		return b, nil
	}
}

// noKey finds once that an epoch's key is gone, with the record that names it
// and its copy.
func (c *verifier) noKey(e *epoch, at place) {
	if !e.keyless {
		e.keyless = true
		c.find(SignerWrong, at, "the epoch's first record, which names its key, is not here, and its copy %s, which must be kept, is missing: nothing shows whose checkpoints these are", vault.EpochName(e.gateway, e.id))
	}
}

// signed checks a checkpoint's signature at once: what it states is to prove
// something.
func (c *verifier) signed(e *epoch, f *record.Frame) error {
	_, err := record.Verify(f, e.verifier)
	return err
}

// cited is what an open record says of the epoch before.
func cited(p *record.EpochEnd, began time.Time) bound {
	if p.Expiry == "" {
		return bound{recorded: began}
	}
	latest, err := record.ParseLatest(p.Expiry)
	return bound{signed: err == nil, latest: latest, by: "citation"}
}

// expired moves the epoch on over records that have expired, at most to before
// the given sequence. Expiry notes with what the epoch signed say which, and so
// does the bound.
func (c *verifier) expired(e *epoch, before uint64, b bound) error {
	prefix := vault.ExpiryFolder(e.gateway, e.id)
	var doubts []func()
	for path, err := range c.vault.List(c.ctx, prefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if e.next >= before {
			return nil
		}
		note, err := c.note(path)
		if err != nil {
			return err
		}
		if note == nil {
			continue
		}
		for i, entry := range note.Entries {
			if entry.Part || entry.First != e.next || entry.Last >= before {
				continue
			}
			here := place{name: Name{Segment: segmentOf(e.gateway, e.id), Path: path}, seq: entry.First}
			if e.known && entry.Head != vault.Hex(e.head) {
				c.findNote(here, "the note says that the chain's head before record %d is %s, the records before it give %x", entry.First, entry.Head, e.head)
				return nil
			}
			wrong, unproven, err := c.entry(e, &entry, here)
			if err != nil {
				return err
			}
			if wrong != nil {
				c.findNote(here, "%v", wrong)
				return nil
			}
			if unproven != nil {
				doubts = append(doubts, func() { c.findNote(here, "%v", unproven) })
				break
			}
			after, err := note.HeadAfter(i)
			if err != nil {
				c.findNote(here, "%v", err)
				return nil
			}
			if s, err := record.ParseStatement([]byte(entry.Checkpoint)); err != nil || s.Head != after {
				c.findNote(here, "the note says that the chain's head after record %d is %x, the checkpoint in it states another", entry.Last, after)
				return nil
			}
			c.report.Expired.add(ExpiredRange{Gateway: e.gateway, Epoch: e.id.String(), First: entry.First, Last: entry.Last, Class: entry.Class, Expiry: entry.Expires, By: "note"})
			e.pass(entry.Last, after, true)
		}
	}
	if e.next >= before {
		return nil
	}
	past := ExpiredRange{Gateway: e.gateway, Epoch: e.id.String(), First: e.next, Last: before - 1}
	switch {
	case b.signed && b.latest != (record.Latest{}) && b.latest.Passed(c.now):
		past.Expiry, past.By = b.latest.Time(), b.by
	case !b.signed && c.old(b.recorded):
		past.Expiry, past.By = b.recorded.Add(c.options.Retention), "age"
	default:
		for _, say := range doubts {
			say()
		}
		return nil
	}
	c.report.Expired.add(past)
	e.pass(before-1, record.ChainHead{}, false)
	return nil
}

// entry judges what a note says of one file. It is wrong where it contradicts
// itself, what the epoch signed, or the clock; unproven where nothing that the
// epoch signed bears it out.
func (c *verifier) entry(e *epoch, x *vault.ExpiryEntry, at place) (wrong, unproven, err error) {
	if x.Expires.IsZero() || c.now.Before(x.Expires) {
		return fmt.Errorf("the note says that records %d to %d were deleted, but they must be kept until %s", x.First, x.Last, x.Expires.Format(time.RFC3339)), nil, nil
	}
	if x.Checkpoint == "" {
		return nil, fmt.Errorf("the note says that records %d to %d have expired, and has no checkpoint of the epoch's that proves it", x.First, x.Last), nil
	}
	if err := c.key(e); err != nil {
		return nil, nil, err
	}
	if e.verifier == nil {
		return nil, fmt.Errorf("the note's checkpoint for record %d proves nothing: the epoch's key is not in the vault (%s)", x.Last, vault.EpochName(e.gateway, e.id)), nil
	}
	s, err := record.Verify(&record.Frame{Kind: record.KindCheckpoint, Sequence: x.Last, Body: []byte(x.Checkpoint)}, e.verifier)
	switch {
	case err != nil:
		return fmt.Errorf("the note's checkpoint for record %d is not the epoch's: the note is forged: %w", x.Last, err), nil, nil
	case s.Gateway != e.gateway || s.Epoch != e.id:
		return fmt.Errorf("the note's checkpoint for record %d is about %s", x.Last, record.Origin(s.Gateway, s.Epoch)), nil, nil
	case s.Retained == nil:
		c.unsigned(e, at)
		return nil, nil, nil
	}
	latest, records := s.Retained.Span(), s.Retained.Records()
	if x.Part {
		r, _ := s.Retained.Class(x.Class)
		latest = r.Expiry
		if r.Records != x.Records {
			return fmt.Errorf("the note says that %d records of class %s were deleted, the epoch signed for %d", x.Records, x.Class, r.Records), nil, nil
		}
	}
	switch first, _ := s.Span(); {
	case first != x.First || records != x.Last-x.First+1:
		return fmt.Errorf("the note says that records %d to %d were deleted, its checkpoint is of records %d to %d", x.First, x.Last, first, s.Size), nil, nil
	case !latest.Passed(c.now):
		return fmt.Errorf("the note says that records %d to %d were deleted, but the epoch signed that they must be kept until %s", x.First, x.Last, latest), nil, nil
	case !latest.Time().Equal(x.Expires):
		return fmt.Errorf("the note says that records %d to %d expired at %s, the epoch signed %s", x.First, x.Last, x.Expires.Format(time.RFC3339), latest), nil, nil
	}
	return nil, nil, nil
}

// findNote finds the first thing that is wrong with a note.
func (c *verifier) findNote(at place, format string, args ...any) {
	if !c.notes[at.name.Path] {
		c.notes[at.name.Path] = true
		c.find(ExpiryWrong, at, format, args...)
	}
}

// key takes an epoch's key from the copy of its open record, where the record
// itself is not here.
func (c *verifier) key(e *epoch) error {
	if e.verifier != nil || e.sought {
		return nil
	}
	e.sought = true
	path := vault.EpochName(e.gateway, e.id)
	at := place{name: Name{Segment: segmentOf(e.gateway, e.id), Path: path}, seq: 1}
	f, err := c.copied(path)
	if err != nil || f == nil {
		return err
	}
	var o record.Open
	if err := record.Unmarshal(f.Body, &o); err != nil || o.Gateway != e.gateway {
		c.find(SignerWrong, at, "is no copy of the epoch's open record (%v)", err)
		return nil
	}
	certified := c.report.Certified
	c.openRecord(e, &o, at)
	if c.epochs[e.id] != e {
		c.report.Certified = certified // of those that are here
	}
	return nil
}

// copied reads the copy of an open record, nil where there is none. One that is
// none is a finding.
func (c *verifier) copied(path string) (*record.Frame, error) {
	b, err := c.small(path, maxOpen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, n, err := record.Decode(b)
	if err == nil && (n != len(b) || f.Kind != record.KindOpen || f.Sequence != 1) {
		err = fmt.Errorf("a %s record %d of %d bytes, in %d bytes", f.Kind, f.Sequence, n, len(b))
	}
	if err != nil {
		if !c.notes[path] {
			c.notes[path] = true
			c.find(SignerWrong, place{name: Name{Path: path}}, "is no copy of an open record: %v", err)
		}
		return nil, nil
	}
	return &f, nil
}

// maxOpen bounds the copy of an open record, in bytes.
const maxOpen = 64 << 10

// copies compares the copies of open records with those that are here.
func (c *verifier) copies() error {
	for path, err := range c.vault.List(c.ctx, vault.EpochsPrefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", vault.EpochsPrefix, err)
		}
		gateway, id, err := vault.ParseEpochName(path)
		if err != nil {
			c.find(FileUnknown, place{name: Name{Path: path}}, "is no copy of an open record: %v", err)
			continue
		}
		f, err := c.copied(path)
		if err != nil {
			return err
		}
		e := c.epochs[id]
		if f == nil || e == nil || e.gateway != gateway || e.leaf == ([sha256.Size]byte{}) {
			continue
		}
		if f.Leaf() != e.leaf {
			c.find(SignerWrong, place{name: Name{Segment: segmentOf(gateway, id), Path: path}, seq: 1}, "is not the open record that the epoch has: when that has expired, the epoch's key would be another")
		}
	}
	return nil
}

// vanished reads the notes of what no citation bounds: the end of an epoch, and
// epochs of which nothing else is left. It judges all notes, also those of
// files that are there.
func (c *verifier) vanished(next map[record.Epoch]*epoch) error {
	lost := map[record.Epoch]*epoch{}
	for path, err := range c.vault.List(c.ctx, vault.ExpiryPrefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", vault.ExpiryPrefix, err)
		}
		gateway, id, err := vault.ParseExpiryName(path)
		if err != nil {
			c.find(FileUnknown, place{name: Name{Path: path}}, "is no expiry note: %v", err)
			continue
		}
		e := c.epochs[id]
		switch {
		case e != nil && e.gateway != gateway:
			c.find(ExpiryWrong, place{name: Name{Segment: segmentOf(gateway, id), Path: path}}, "the note is of an epoch of gateway %s", e.gateway)
			continue
		case e != nil:
			if next[id] == nil && !e.damaged && !e.ended {
				e.ended = true
				if err := c.expired(e, math.MaxUint64, bound{}); err != nil {
					return err
				}
			}
		default:
			if e = lost[id]; e == nil {
				e = lostEpoch(id, gateway)
				lost[id] = e
				if _, ok := c.gone[id]; !ok {
					if err := c.expired(e, math.MaxUint64, bound{}); err != nil {
						return err
					}
					c.gone[id] = e.next - 1
				}
			}
		}
		if err := c.everyEntry(e, path); err != nil {
			return err
		}
	}
	return nil
}

func lostEpoch(id record.Epoch, gateway string) *epoch {
	return &epoch{id: id, gateway: gateway, next: 1, head: record.NewChain(id, gateway), known: true}
}

// everyEntry judges all of a note.
func (c *verifier) everyEntry(e *epoch, path string) error {
	note, err := c.note(path)
	if err != nil || note == nil {
		return err
	}
	for i := range note.Entries {
		x := &note.Entries[i]
		at := place{name: Name{Segment: segmentOf(e.gateway, e.id), Path: path}, seq: x.First}
		wrong, unproven, err := c.entry(e, x, at)
		if err != nil {
			return err
		}
		if wrong == nil && unproven != nil && note.Version > 1 {
			wrong = unproven // a note of this version has its proof
		}
		if wrong != nil {
			c.findNote(at, "%v", wrong)
			return nil
		}
		c.heldFile(e, note, x, at)
	}
	return nil
}

// span is a range of sequences.
type span struct{ first, last uint64 }

// outlived reports whether the part's segment has expired. Places expire each
// in their own time, so a part may be there for a while longer.
func (e *epoch) outlived(n Name) bool {
	return slices.ContainsFunc(e.passed, func(s span) bool { return s.first <= n.First && n.Last <= s.last })
}

// pass goes on behind records that have expired.
func (e *epoch) pass(last uint64, head record.ChainHead, known bool) {
	if n := len(e.passed); n > 0 && e.passed[n-1].last+1 == e.next {
		e.passed[n-1].last = last
	} else {
		e.passed = append(e.passed, span{e.next, last})
	}
	e.next, e.head, e.known, e.gone, e.whole, e.told = last+1, head, known, true, false, false
	e.open = map[uint64]*exchange{}
}

// note reads an expiry note. One that is none is a finding.
func (c *verifier) note(path string) (*vault.Expiry, error) {
	b, err := c.small(path, vault.MaxExpiry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	note, err := vault.ParseExpiry(b)
	if err != nil {
		c.findNote(place{name: Name{Path: path}}, "is no expiry note: %v", err)
		return nil, nil
	}
	if want, err := note.Name(); err != nil || want != path {
		c.findNote(place{name: Name{Path: path}}, "the note is about gateway %.80q, epoch %.40q: not what its name says", note.Gateway, note.Epoch)
		return nil, nil
	}
	return note, nil
}
