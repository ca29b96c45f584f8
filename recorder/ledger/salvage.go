package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// LostTail is an epoch whose journal was lost: its gateway neither closed it nor
// did a later one cite its end. What had come of it was salvaged.
type LostTail struct {
	Gateway string `json:"gateway"`
	Epoch   string `json:"epoch"`
	// Sequence is the last record that was salvaged. With durability "published"
	// no caller was given anything on a later one; with "local" it may be that
	// some were.
	Sequence uint64 `json:"salvaged_up_to"`
	Salvaged uint64 `json:"salvaged_records"` // that the gateway never cut
	// Cited is the end that the gateway's next epoch cites, where its journal was
	// lost only after that: the records up to there existed and are lost.
	Cited uint64 `json:"cited_up_to,omitempty"`
	// Exchanges have no outcome, and none will come.
	Exchanges int64 `json:"open_exchanges"`
	// Aside are records that came and cannot be chained: nothing proves them.
	Aside uint64 `json:"kept_aside,omitempty"`
	// Successor is the gateway's next epoch, which does not have it; else By says
	// who gave it up, and Reason why.
	Successor string `json:"successor,omitempty"`
	By        string `json:"by,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// salvage are the notes about an epoch.
type salvage struct {
	end   *vault.Salvage // the one that reaches furthest
	path  string
	cut   bool   // one of a segment that may not be there yet
	cuts  uint64 // records in segments that the sink cut
	aside uint64
}

// readSalvage reads what the vault says of lost tails. It is the sink's word,
// and counts for no more than: nothing came behind this record.
func (c *verifier) readSalvage() error {
	c.salvages = map[record.Epoch]*salvage{}
	for path, err := range c.vault.List(c.ctx, vault.SalvagePrefix) {
		if err != nil {
			return fmt.Errorf("list %s: %w", vault.SalvagePrefix, err)
		}
		here := place{name: Name{Path: path}}
		o, err := vault.ParseSalvageName(path)
		if err != nil {
			c.find(FileUnknown, here, "is no note of a salvage: %v", err)
			continue
		}
		s := c.salvages[o.Epoch]
		if s == nil {
			s = &salvage{}
			c.salvages[o.Epoch] = s
		}
		if o.Kind == "" {
			s.aside += o.Last - o.First + 1
			continue
		}
		b, err := c.small(path, vault.MaxSalvage)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		n, err := vault.ParseSalvage(path, b)
		switch {
		case err != nil:
			c.find(SalvageWrong, here, "is no note of a salvage: %v", err)
		case n.Kind == vault.SalvageCut:
			s.cut = true
			s.cuts += n.Last - n.First + 1
		case n.Kind == vault.SalvageEnd && (s.end == nil || n.Last > s.end.Last):
			s.end, s.path = n, path
		}
	}
	// The sink may have written the segments since the listing passed there.
	for _, e := range c.listed {
		if s := c.salvages[e.id]; s != nil && s.end != nil && s.end.Last >= e.next && s.end.Last < math.MaxUint64 {
			if err := c.again(e, "9999-12-31", s.end.Last+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// lost judges an epoch that ended neither in order nor by a citation, and
// reports whether a salvage explains it.
func (c *verifier) lostTail(e *epoch) bool {
	s := c.salvages[e.id]
	if s == nil || s.end == nil || s.end.Gateway != e.gateway || e.damaged {
		return false
	}
	held := e.next - 1
	here := place{name: Name{Segment: segmentOf(e.gateway, e.id), Path: s.path}, seq: s.end.Last}
	switch {
	case s.end.Last < held:
		return false // it came back, and was lost again
	case s.end.Last > held:
		return true // missedTail says so
	case e.known && s.end.Head != vault.Hex(e.head):
		c.find(SalvageWrong, here, "the note says that the chain's head at its end is %s, the vault's records give %x", s.end.Head, e.head)
		return true
	}
	c.report.LostTails = append(c.report.LostTails, LostTail{
		Gateway: e.gateway, Epoch: e.id.String(), Sequence: held, Salvaged: s.cuts, Exchanges: int64(len(e.open)), Aside: s.aside, Cited: e.lostAt,
		Successor: s.end.Successor, By: s.end.By, Reason: s.end.Reason,
	})
	return true
}

// lostWith reports whether a note ends the epoch where the vault does, and its
// journal was lost after the later epoch had taken it over: a yet later one of the
// gateway, that does not go back to it, is in the vault.
func (c *verifier) lostWith(e, later *epoch) bool {
	s := c.salvages[e.id]
	if s == nil || s.end == nil || s.end.Gateway != e.gateway || s.end.Last != e.next-1 || s.end.Head != vault.Hex(e.head) {
		return false
	}
	// Follow the journal to its last epoch.
	at := later
	for again := true; again; {
		again = false
		for _, x := range c.listed {
			if x.opened != nil && x.opened.Previous != nil && x.opened.Previous.Epoch == at.id.String() && slices.Compare(x.id[:], at.id[:]) > 0 {
				at, again = x, true
				break
			}
		}
	}
	if at.closed {
		return false
	}
	return slices.ContainsFunc(c.listed, func(x *epoch) bool {
		return x.gateway == e.gateway && x.opened != nil && slices.Compare(x.id[:], at.id[:]) > 0
	})
}

// missedTail finds an epoch's end that a note has and the vault has not.
func (c *verifier) missedTail(e *epoch) {
	s := c.salvages[e.id]
	if s == nil || s.end == nil || s.end.Gateway != e.gateway || e.damaged || s.end.Last < e.next {
		return
	}
	if c.options.Retention > 0 && !e.time.IsZero() && !c.now.Before(e.time.Add(c.options.Retention)) {
		return
	}
	here := place{name: Name{Segment: segmentOf(e.gateway, e.id), Path: s.path}, seq: s.end.Last}
	c.find(SegmentMissing, here, "records %d to %d are missing: the note says that they were salvaged", e.next, s.end.Last)
}

// prior is the segment before, with what its records say of their retention.
type prior struct {
	own, first, last uint64 // own is its first record; first is that of the gateway's span
	span             record.Retained
	until            record.Latest // before first, with told
	told             bool
}

// goesOn takes the segment before into the span where the sink, not the gateway,
// cut there: the gateway's checkpoints go on counting from its own cut.
func (c *verifier) goesOn(e *epoch, s *record.Statement, span *record.Retained, begun *prior) error {
	p := e.prior
	if from, _ := s.Span(); p.own == 0 || from != p.first || p.last+1 != begun.own || begun.first != begun.own {
		return nil
	}
	name := vault.SalvageName(e.gateway, e.id, vault.SalvageCut, p.own)
	b, err := c.small(name, vault.MaxSalvage)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if n, err := vault.ParseSalvage(name, b); err != nil || n.Last != p.last {
		return nil //nolint:nilerr // readSalvage says so
	}
	span.Merge(&p.span)
	begun.first, begun.until, begun.told = p.first, p.until, p.told
	e.until, e.told = p.until, p.told
	return nil
}
