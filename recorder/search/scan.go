package search

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Config says where to search.
type Config struct {
	Vault ledger.Vault
	// Keys opens sealed bodies. Where it is nil all are unreadable.
	Keys ledger.Opener
	// Warn, where set, is called for each segment that could not be read to its
	// end, and each key or body that is wrong.
	Warn func(error)
}

func (c *Config) warn(err error) {
	if c.Warn != nil {
		c.Warn(err)
	}
}

var errNoKeyset = errors.New("no keyset was given")

// open returns a body. The second error is of the reading itself.
func (c *Config) open(ctx context.Context, e record.Epoch, f *record.Frame) (body []byte, why, err error) {
	if f.Key == (record.KeyID{}) {
		return f.Body, nil, nil
	}
	if c.Keys == nil {
		return nil, errNoKeyset, nil
	}
	b, err := c.Keys.Open(ctx, e, f)
	var erased *keyring.ErasedError
	switch {
	case err == nil:
		return b, nil, nil
	case errors.As(err, &erased):
		return nil, erased, nil
	case errors.Is(err, record.ErrNoKey):
		return nil, fmt.Errorf("the data key %x is missing: no erasure names it", f.Key), nil
	case errors.Is(err, keyring.ErrWrong), errors.Is(err, keyring.ErrBody):
		return nil, err, nil
	}
	return nil, nil, err
}

// read opens a body and reads it into v.
func (c *Config) read(ctx context.Context, e record.Epoch, f *record.Frame, v any) (why, err error) {
	b, why, err := c.open(ctx, e, f)
	if why != nil || err != nil {
		return why, err
	}
	if err := record.Unmarshal(b, v); err != nil {
		return fmt.Errorf("record %d: %s %w", f.Sequence, f.Kind, err), nil
	}
	return nil, nil
}

// frames calls do for each leaf frame of a segment and its parts, in order,
// with the name of the file that holds it. Damage ends the segment with a
// warning, what is not there any more is left out; do may end it with errStop.
func (c *Config) frames(ctx context.Context, n ledger.Name, do func(n ledger.Name, f *record.Frame, offset int64) error) error {
	s, err := ledger.OpenSegment(ctx, c.Vault, n.Path)
	var format *vault.SegmentError
	if errors.As(err, &format) {
		c.warn(err)
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it expired since the listing
	}
	if err != nil {
		return err
	}
	defer s.Close()
	s.OnPart = func(_ string, err error, _ *record.Frame) {
		if !errors.Is(err, fs.ErrNotExist) { // expired, or verify says
			c.warn(err)
		}
	}
	from := n
	for {
		f, at, err := s.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &format):
			c.warn(err)
			return nil
		case err != nil:
			return err
		case !f.Kind.Leaf():
			continue
		}
		if s.Path() != from.Path {
			if from, err = ledger.ParseName(s.Path()); err != nil {
				return err
			}
		}
		if err := do(from, &f, at); err != nil {
			return err
		}
	}
}

var errStop = errors.New("enough")

// Stats count what a scan met.
type Stats struct {
	Segments  int64
	Exchanges int64 // looked at, in the time asked for
	Matched   int64
	// Unreadable exchanges could not be compared with the filter.
	Unreadable int64
	// Erased are those of them whose key was erased.
	Erased int64
}

// Scan calls emit for each exchange that fits the filter, in the order in which
// they ended; those that have no outcome come last. An error of emit ends the
// scan and is returned.
func Scan(ctx context.Context, c Config, f Filter, emit func(*Exchange) error) (Stats, error) {
	s := &scan{ctx: ctx, c: c, f: f, emit: emit, open: map[record.Epoch]map[uint64]*partial{}, left: map[string]int{}}
	from, until := "", ""
	if !f.Since.IsZero() {
		from = vault.Day(f.Since.AddDate(0, 0, -1))
	}
	if !f.Until.IsZero() {
		until = vault.Day(f.Until.AddDate(0, 0, 1))
	}
	for path, err := range c.Vault.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return s.stats, fmt.Errorf("search: list the vault's segments: %w", err)
		}
		n, err := ledger.ParseName(path)
		if err != nil {
			c.warn(err)
			continue
		}
		if n.Part {
			continue // read with its segment
		}
		// A segment begins on its day and ends soon after.
		if n.Day < from || until != "" && n.Day > until && s.left[n.Gateway] == 0 {
			continue
		}
		if ctx.Err() != nil {
			return s.stats, context.Cause(ctx)
		}
		s.stats.Segments++
		err = c.frames(ctx, n, func(n ledger.Name, f *record.Frame, _ int64) error { return s.frame(n, f) })
		if err != nil {
			return s.stats, err
		}
	}
	return s.stats, s.pending()
}

type scan struct {
	ctx   context.Context
	c     Config
	f     Filter
	emit  func(*Exchange) error
	stats Stats
	open  map[record.Epoch]map[uint64]*partial
	left  map[string]int // open exchanges by gateway
}

// partial is an exchange that has no outcome yet.
type partial struct {
	x      Exchange
	intent bool
}

func (s *scan) frame(n ledger.Name, f *record.Frame) error {
	id := record.ID{Epoch: n.Epoch, Sequence: f.Exchange}
	switch {
	case f.Kind == record.KindOutcome && f.Exchange == f.Sequence:
		return s.recovered(n, id, f)
	case f.Exchange == f.Sequence && (f.Kind == record.KindReceived || f.Kind == record.KindIntent):
		if s.open[n.Epoch] == nil {
			s.open[n.Epoch] = map[uint64]*partial{}
		}
		p := &partial{x: Exchange{ID: id.String(), Receipt: id.String(), Gateway: n.Gateway, Time: f.Time, Result: Pending, Segment: n.Path}}
		if s.open[n.Epoch][f.Exchange] == nil {
			s.left[n.Gateway]++
		}
		s.open[n.Epoch][f.Exchange] = p
	}
	p := s.open[n.Epoch][f.Exchange]
	if p == nil {
		return nil // began before the time asked for, or does not fit
	}
	switch f.Kind {
	case record.KindReceived:
		var r record.Received
		ok, err := s.read(n, f, p, &r)
		if ok {
			p.x.received(&r)
		}
		return err
	case record.KindIntent:
		var i record.Intent
		ok, err := s.read(n, f, p, &i)
		if err != nil {
			return err
		}
		if !ok {
			if !s.f.inTime(p.x.Time) {
				s.drop(n.Gateway, id)
			}
			return nil
		}
		p.x.intent(&i)
		p.intent = true
		if s.f.inTime(p.x.Time) {
			s.stats.Exchanges++
		}
		if !s.f.begun(&p.x) {
			s.drop(n.Gateway, id)
		}
	case record.KindOutcome:
		s.drop(n.Gateway, id)
		var o record.Outcome
		ok, err := s.read(n, f, p, &o)
		if err != nil {
			return err
		}
		if ok {
			p.x.outcome(&o, f.Time)
		} else {
			p.x.Result, p.x.Ended = Unknown, utc(&f.Time)
		}
		return s.done(p)
	}
	return nil
}

// read reads a body, and notes on the exchange why it could not.
func (s *scan) read(n ledger.Name, f *record.Frame, p *partial, v any) (bool, error) {
	why, err := s.c.read(s.ctx, n.Epoch, f, v)
	if why != nil {
		p.x.unread(why)
	}
	return why == nil && err == nil, err
}

func (s *scan) drop(gateway string, id record.ID) {
	if s.open[id.Epoch][id.Sequence] == nil {
		return
	}
	s.left[gateway]--
	delete(s.open[id.Epoch], id.Sequence)
	if len(s.open[id.Epoch]) == 0 {
		delete(s.open, id.Epoch)
	}
}

// recovered joins an outcome with the exchange of an earlier epoch that it
// closes.
func (s *scan) recovered(n ledger.Name, id record.ID, f *record.Frame) error {
	if s.left[n.Gateway] == 0 {
		return nil
	}
	var o record.Outcome
	why, err := s.c.read(s.ctx, n.Epoch, f, &o)
	if err != nil || why != nil || o.Verbatim.Interrupted == "" {
		return err
	}
	cut, err := record.ParseID(o.Verbatim.Interrupted)
	if err != nil {
		s.c.warn(fmt.Errorf("segment %s: record %d: %w", n.Path, f.Sequence, err))
		return nil
	}
	p := s.open[cut.Epoch][cut.Sequence]
	if p == nil {
		return nil
	}
	s.drop(n.Gateway, cut)
	p.x.interrupted(&o, id, f.Time)
	return s.done(p)
}

// done gives out an exchange if it fits.
func (s *scan) done(p *partial) error {
	switch {
	case p.x.Unreadable != "" && !p.intent:
		if !s.f.inTime(p.x.Time) {
			return nil
		}
		s.stats.Exchanges++
		if s.f.content() {
			s.stats.Unreadable++
			if p.x.Erased != "" {
				s.stats.Erased++
			}
			return nil
		}
	case !p.intent:
		// It ended, or is, before its decision: what is known came with the
		// received record.
		if s.f.inTime(p.x.Time) {
			s.stats.Exchanges++
		}
		if !s.f.begun(&p.x) || !s.f.ended(&p.x) {
			return nil
		}
	case !s.f.ended(&p.x):
		return nil
	}
	s.stats.Matched++
	return s.emit(&p.x)
}

func (s *scan) pending() error {
	epochs := slices.SortedFunc(maps.Keys(s.open), func(a, b record.Epoch) int { return slices.Compare(a[:], b[:]) })
	for _, e := range epochs {
		for _, seq := range slices.Sorted(maps.Keys(s.open[e])) {
			if err := s.done(s.open[e][seq]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Order is how found exchanges are ordered.
type Order string

// The orders.
const (
	OldestFirst Order = "time"   // the newest last
	NewestFirst Order = "-time"  // the newest first
	Stored      Order = "stored" // as they lie in the vault, without waiting for the end
)

// Query is a search.
type Query struct {
	Filter
	Order Order // OldestFirst where empty
	// Limit is how many exchanges are given: the newest, or in stored order the
	// first. 0: all.
	Limit int
	// Memory bounds what is held to be sorted, in bytes, 256 MiB where it is 0.
	Memory int
}

// ErrMemory means that more was found than can be sorted in memory.
var ErrMemory = errors.New("too much was found to sort it in memory")

// Run calls emit for the exchanges that fit, in order.
func Run(ctx context.Context, c Config, q Query, emit func(*Exchange) error) (Stats, error) {
	return Collect(q, func(emit func(*Exchange) error) (Stats, error) { return Scan(ctx, c, q.Filter, emit) }, emit)
}

// Collect does what [Run] does with what scan gives, in any order: the
// exchanges that fit the query's filter.
func Collect(q Query, scan func(emit func(*Exchange) error) (Stats, error), emit func(*Exchange) error) (Stats, error) {
	if q.Order == Stored {
		n := 0
		stats, err := scan(func(x *Exchange) error {
			if err := emit(x); err != nil {
				return err
			}
			if n++; n == q.Limit {
				return errStop
			}
			return nil
		})
		if errors.Is(err, errStop) {
			err = nil
		}
		return stats, err
	}
	top := collector{limit: q.Limit, memory: cmp.Or(q.Memory, 256<<20)}
	stats, err := scan(top.add)
	if err != nil {
		return stats, err
	}
	slices.SortFunc(top.held, compare)
	if q.Order == NewestFirst {
		slices.Reverse(top.held)
	}
	for _, x := range top.held {
		if err := emit(x); err != nil {
			return stats, err
		}
	}
	return stats, nil
}

// collector keeps the newest exchanges: a heap with the oldest on top.
type collector struct {
	limit, memory int
	held          []*Exchange
	size          int
}

func (c *collector) add(x *Exchange) error {
	if c.limit > 0 && len(c.held) == c.limit {
		if compare(x, c.held[0]) <= 0 {
			return nil
		}
		c.size -= c.held[0].size()
		c.held[0] = x
		heap.Fix(c, 0)
	} else {
		heap.Push(c, x)
	}
	if c.size += x.size(); c.size > c.memory {
		return fmt.Errorf("%w: %d exchanges take more than %d MB", ErrMemory, len(c.held), c.memory>>20)
	}
	return nil
}

// The methods of [heap.Interface].
func (c *collector) Len() int           { return len(c.held) }
func (c *collector) Less(i, j int) bool { return compare(c.held[i], c.held[j]) < 0 }
func (c *collector) Swap(i, j int)      { c.held[i], c.held[j] = c.held[j], c.held[i] }
func (c *collector) Push(x any)         { c.held = append(c.held, x.(*Exchange)) }
func (c *collector) Pop() any {
	x := c.held[len(c.held)-1]
	c.held = c.held[:len(c.held)-1]
	return x
}

func compare(a, b *Exchange) int {
	if n := a.Time.Compare(b.Time); n != 0 {
		return n
	}
	x, errX := record.ParseID(a.ID)
	y, errY := record.ParseID(b.ID)
	if errX != nil || errY != nil {
		return cmp.Compare(a.ID, b.ID)
	}
	return cmp.Or(slices.Compare(x.Epoch[:], y.Epoch[:]), cmp.Compare(x.Sequence, y.Sequence))
}
