package ledger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
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

// absence judges a record that is not there while its digest is. Classes are
// those about which something was said.
func (c *verifier) absence(e *epoch, n Name, f *record.Frame, said map[string]bool) {
	e.gone = true
	if !f.Expiry.IsZero() && !c.now.Before(f.Expiry) {
		c.report.Expired.add(ExpiredRange{Gateway: e.gateway, Epoch: e.id.String(), First: f.Sequence, Last: f.Sequence, Class: f.Class, Expiry: f.Expiry, By: "segment"})
		return
	}
	if said[f.Class] {
		return
	}
	said[f.Class] = true
	id := n.Segment
	id.Class, id.Part = f.Class, true
	where := n
	if path, err := vault.SegmentName(id); err == nil {
		where = Name{Segment: id, Path: path}
	}
	until := "for ever"
	if !f.Expiry.IsZero() {
		until = "until " + f.Expiry.Format(time.RFC3339)
	}
	c.find(SegmentMissing, place{name: where, seq: f.Sequence}, "records of class %s are missing: the file that holds them is not in the vault, and they must be kept %s", f.Class, until)
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

// first returns a time that no record before the segment is younger than, zero
// where none can be told: that of the segment's first record.
func (c *verifier) first(e *epoch, s *Segment) time.Time {
	if s == nil {
		return time.Time{}
	}
	other, err := OpenSegment(c.ctx, c.vault, s.path)
	if err != nil {
		return time.Time{}
	}
	defer other.Close()
	f, _, err := other.Next()
	if err != nil {
		return time.Time{}
	}
	return f.Time
}

// expired moves the epoch on over records that have expired, at most to before
// the given sequence. Expiry notes say which; without one, all that is older
// than the longest retention has. The latest is when the last of them can have
// been recorded.
func (c *verifier) expired(e *epoch, before uint64, latest time.Time) error {
	prefix := vault.ExpiryFolder(e.gateway, e.id)
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
		if note == nil || note.Gateway != e.gateway || note.Epoch != e.id.String() {
			continue
		}
		for i, entry := range note.Entries {
			if entry.Part || entry.First != e.next || entry.Last >= before {
				continue
			}
			here := place{name: Name{Segment: vault.Segment{Gateway: e.gateway, Epoch: e.id}, Path: path}, seq: entry.First}
			switch {
			case entry.Expires.IsZero() || c.now.Before(entry.Expires):
				c.find(ExpiryWrong, here, "the note says that records %d to %d were deleted, but they must be kept until %s", entry.First, entry.Last, entry.Expires.Format(time.RFC3339))
				return nil
			case e.known && entry.Head != vault.Hex(e.head):
				c.find(ExpiryWrong, here, "the note says that the chain's head before record %d is %s, the records before it give %x", entry.First, entry.Head, e.head)
				return nil
			}
			after, err := note.HeadAfter(i)
			if err != nil {
				c.find(ExpiryWrong, here, "%v", err)
				return nil
			}
			c.report.Expired.add(ExpiredRange{Gateway: e.gateway, Epoch: e.id.String(), First: entry.First, Last: entry.Last, Class: entry.Class, Expiry: entry.Expires, By: "note"})
			e.pass(entry.Last, after, true)
		}
	}
	if e.next < before && c.options.Retention > 0 && !latest.IsZero() && !c.now.Before(latest.Add(c.options.Retention)) {
		c.report.Expired.add(ExpiredRange{Gateway: e.gateway, Epoch: e.id.String(), First: e.next, Last: before - 1, Expiry: latest.Add(c.options.Retention), By: "age"})
		e.pass(before-1, record.ChainHead{}, false)
	}
	return nil
}

// vanished reads the notes of what no citation bounds: the end of an epoch, and
// epochs of which nothing else is left.
func (c *verifier) vanished(next map[record.Epoch]*epoch) error {
	for path, err := range c.vault.List(c.ctx, vault.ExpiryPrefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", vault.ExpiryPrefix, err)
		}
		gateway, id, err := vault.ParseExpiryName(path)
		if err != nil {
			c.find(FileUnknown, place{name: Name{Path: path}}, "is no expiry note: %v", err)
			continue
		}
		if e := c.epochs[id]; e != nil {
			if next[id] == nil && !e.damaged {
				if err := c.expired(e, math.MaxUint64, time.Time{}); err != nil {
					return err
				}
			}
			continue
		}
		if _, ok := c.gone[id]; ok {
			continue
		}
		old := &epoch{id: id, gateway: gateway, next: 1, head: record.NewChain(id, gateway), known: true}
		if err := c.expired(old, math.MaxUint64, time.Time{}); err != nil {
			return err
		}
		c.gone[id] = old.next - 1
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
	e.next, e.head, e.known, e.gone, e.whole = last+1, head, known, true, false
	e.open = map[uint64]*exchange{}
}

// note reads an expiry note. One that is none is a finding.
func (c *verifier) note(path string) (*vault.Expiry, error) {
	r, err := c.vault.Open(c.ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, vault.MaxExpiry+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	note, err := vault.ParseExpiry(b)
	if err != nil {
		c.find(ExpiryWrong, place{name: Name{Path: path}}, "is no expiry note: %v", err)
		return nil, nil
	}
	return note, nil
}
