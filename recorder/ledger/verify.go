package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
)

// Opener opens sealed bodies. It returns an error that wraps [record.ErrNoKey]
// where the body's key is not in the vault.
type Opener interface {
	Open(ctx context.Context, e record.Epoch, f *record.Frame) ([]byte, error)
}

// Options of a verification.
type Options struct {
	// Keys, where set, opens the sealed bodies, so that they can be compared
	// with what the outcomes say of them.
	Keys Opener
	// Trust, where set, are the deployment keys that must have certified each
	// epoch's key. Without it the vault vouches for itself.
	Trust *Trust
	// Checkpoints are heads that were kept elsewhere: the vault must extend them.
	Checkpoints []Head
	// Receipts must have their records in the vault.
	Receipts []record.Receipt
	// Gateways, where not nil, are those that must be there, and no others.
	Gateways []Expected
	// Log, where set, is the sink's own log: what it has must be in the vault.
	Log *Log
	// Findings is how many findings the report keeps, 100 where it is 0.
	Findings int
	// Retention is the longest retention of any class, as the verifier knows
	// it, not the vault; 0: not known. What is missing and must be older has
	// expired, whether or not an expiry note says so.
	Retention time.Duration
	Now       func() time.Time // nil: time.Now
	// Progress, where set, is told at times how far it has come, by the
	// goroutine that called Verify.
	Progress func(Progress)
}

// settling is how long after an epoch began the end of the one before may still
// be on its way: each comes by itself, and what a sink that died held comes when
// its lease has run out, or when a sink that stood down comes back to it.
const settling = 15 * time.Minute

// mostMissing is how many missing keys a report names.
const mostMissing = 20

// Verify reads the whole vault and reports what is wrong with it. The error is
// about the reading alone: a vault that does not answer, or ctx that ended.
// The vault may grow meanwhile.
func Verify(ctx context.Context, v Vault, o Options) (*Report, error) {
	c := newVerifier(ctx, v, defaults(o))
	defer c.stop()
	c.anchors(o.Checkpoints)
	c.receipts(o.Receipts)
	if err := c.readErasures(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err := c.readHolds(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err := c.readLog(); err != nil {
		return nil, fmt.Errorf("verify: the sink's log: %w", err)
	}
	for path, err := range v.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return nil, fmt.Errorf("verify: list the vault's segments: %w", err)
		}
		if err := c.add(path); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	for len(c.queue.names) > 0 {
		if err := c.pop(); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	c.ungroup()
	err := c.finish()
	if err == nil {
		err = c.finishLog()
	}
	if err == nil {
		err = c.finishErasures()
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	c.stop()
	c.settle()
	return c.report, nil
}

func defaults(o Options) Options {
	if o.Findings <= 0 {
		o.Findings = 100
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func newVerifier(ctx context.Context, v Vault, o Options) *verifier {
	ctx, cancel := context.WithCancel(ctx)
	c := &verifier{
		cancel: cancel,
		now:    o.Now(), gone: map[record.Epoch]uint64{}, notes: map[string]bool{},
		ctx: ctx, vault: v, options: o, report: &Report{Opened: o.Keys != nil, Anchored: o.Trust != nil},
		epochs: map[record.Epoch]*epoch{}, closers: map[record.ID]place{}, keys: newSeen(), cited: map[record.Epoch]bool{},
	}
	c.signatures = newSignatures(o.Findings, c.finding)
	if o.Trust != nil {
		c.report.Trust = o.Trust.Names()
	}
	return c
}

// stop ends the workers. It may be called twice.
func (c *verifier) stop() {
	if !c.stopped {
		c.stopped = true
		c.cancel()
		c.readers.Wait()
		c.flush()
		c.signatures.close()
	}
}

// settle puts the findings in order and says what they come to.
func (c *verifier) settle() {
	all := slices.AppendSeq(c.found, maps.Values(c.signatures.wrong))
	c.report.More += c.signatures.more
	slices.SortStableFunc(all, func(a, b ordered) int { return cmp.Compare(a.order, b.order) })
	if n := len(all) - c.options.Findings; n > 0 {
		c.report.More += int64(n)
		all = all[:c.options.Findings]
	}
	tampered := map[string]bool{}
	for _, f := range all {
		c.report.Findings = append(c.report.Findings, f.Finding)
		tampered[f.Gateway] = true
	}
	r := c.report
	r.Sound = len(r.Findings) == 0
	r.Verdict = Complete
	for i := range r.Gateways {
		g := &r.Gateways[i]
		switch {
		case tampered[g.Name]:
			g.Verdict = Tampered
		case !g.Closed || g.pending > 0:
			g.Verdict, r.Verdict = Pending, Pending
		default:
			g.Verdict = Complete
		}
	}
	if !r.Sound {
		r.Verdict = Tampered
	}
}

type verifier struct {
	ctx     context.Context
	vault   Vault
	options Options
	report  *Report

	epochs map[record.Epoch]*epoch
	listed []*epoch // as they appeared
	// closers are the recovery's outcomes that name an exchange of an epoch
	// that has not appeared yet.
	closers  map[record.ID]place
	keys     *seen
	erasures erasures
	salvages map[record.Epoch]*salvage
	now      time.Time
	// gone are epochs of which nothing is left, with the last record that is
	// known to have expired.
	gone map[record.Epoch]uint64
	// notes are those of the expiry about which something was said.
	notes map[string]bool
	holds []*retention.Hold
	// group are the names of the range that was listed last.
	group group

	kept   map[record.Epoch][]*anchor
	wanted map[record.Epoch][]*wanted
	cited  map[record.Epoch]bool // as the one before another

	found      []ordered
	order      int64
	signatures *signatures
	batch      []signature // of one epoch, not handed over yet
	stopped    bool
	cancel     context.CancelFunc // ends the readers
	readers    sync.WaitGroup
	queue      queue
	told       time.Time  // when Progress was told last
	withheld   bool       // payload was left out: totals are not compared
	log        *logReader // nil: not asked for
}

// place is where a record lies.
type place struct {
	name   Name
	seq    uint64
	offset int64
}

// epoch is what is kept of an epoch while others are read.
type epoch struct {
	id       record.Epoch
	gateway  string
	first    Name
	last     Name
	next     uint64
	head     record.ChainHead
	known    bool // head is the chain's after next-1
	tree     record.Tree
	whole    bool              // tree has every record before next
	rootless bool              // a checkpoint's root was wrong
	keyless  bool              // that the key has expired was said
	leaf     [sha256.Size]byte // of the open record, zero until it is read
	sought   bool              // the copy of the open record was looked for
	// until is when the last record before the segment expires, with told.
	until  record.Latest
	told   bool
	untold bool // a checkpoint did not say when records expire
	prior  prior
	noted  bool // that nobody signed when records expired was said
	ended  bool // notes of what follows the end were read
	// verifier is the epoch's key, nil until the open record is read.
	verifier *record.Verifier
	// statement is that of the last checkpoint that fits, signed its note.
	statement record.Statement
	signed    []byte
	stated    time.Time // of the last checkpoint
	kept      []*anchor // not reached yet, by size
	wanted    []*wanted
	quiet     time.Duration // how long it may be silent, 0: not judged
	open      map[uint64]*exchange
	opened    *record.Open // nil until the open record is read
	// damaged: something was wrong or missing on the way, so that exchanges
	// and the end can no longer be judged.
	damaged bool
	// gone: records have expired, or are missing, whose digests the chain has:
	// exchanges can be judged no more, the rest can.
	gone     bool
	began    time.Time // of the first record that was read
	strays   []Name    // parts without a segment
	passed   []span    // what has expired
	live     bool      // something besides recovery was recorded
	closed   bool
	waits    bool      // the epoch before it is still to come
	lostAt   uint64    // the next one cites it up to there, and its journal was lost
	time     time.Time // of the last record
	complete time.Time // of the last record that a checkpoint confirmed
	records  uint64
	// lone counts outcomes that begin an exchange and whose body cannot be
	// read: recovery's, for exchanges of an earlier epoch.
	lone int64
}

func (e *epoch) damage() {
	e.damaged, e.known, e.whole, e.told = true, false, false, false
	e.open = map[uint64]*exchange{}
}

// skip goes on behind a segment that cannot be read to its end.
func (e *epoch) skip(n Name) {
	e.damage()
	e.next = n.Last + 1
}

func (c *verifier) finding(code Code, p place, format string, args ...any) Finding {
	f := Finding{
		Code: code, Segment: p.name.Path, Gateway: p.name.Gateway, Sequence: p.seq, Offset: p.offset,
		Message: fmt.Sprintf(format, args...),
	}
	if p.name.Epoch != (record.Epoch{}) {
		f.Epoch = p.name.Epoch.String()
	}
	return f
}

func (c *verifier) find(code Code, p place, format string, args ...any) {
	if len(c.found) >= c.options.Findings {
		c.report.More++
		return
	}
	c.order++
	c.found = append(c.found, ordered{c.finding(code, p, format, args...), c.order})
}

// notice reports what is no sign of tampering, but worth to be known.
func (c *verifier) notice(code Code, p place, format string, args ...any) {
	if len(c.report.Notices) < c.options.Findings {
		c.report.Notices = append(c.report.Notices, c.finding(code, p, format, args...))
	}
}

func segmentOf(gateway string, e record.Epoch) vault.Segment {
	return vault.Segment{Gateway: gateway, Epoch: e}
}

func sortedEpochs[T any](m map[record.Epoch]T) []record.Epoch {
	return slices.SortedFunc(maps.Keys(m), func(a, b record.Epoch) int { return slices.Compare(a[:], b[:]) })
}

// file judges a file that was listed; r reads it, where it is a segment.
func (c *verifier) file(path string, r *reading) error {
	n, err := ParseName(path)
	if err != nil {
		c.find(FileUnknown, place{name: Name{Path: path}}, "is no segment: %v", err)
		return nil
	}
	e := c.epochs[n.Epoch]
	if e == nil {
		e = c.epoch(n)
		c.listed = append(c.listed, e)
	}
	if n.Gateway != e.gateway {
		c.find(NameWrong, place{name: n}, "the epoch is gateway %s's, not %s's", e.gateway, n.Gateway)
		return nil
	}
	c.regroup(n)
	if n.Part {
		c.group.parts = append(c.group.parts, n)
		return nil
	}
	if n.First > e.next {
		// The sink may have written more since the listing passed there.
		if err := c.again(e, n.Day, n.First); err != nil {
			return err
		}
	}
	return c.segment(e, r)
}

func (c *verifier) epoch(n Name) *epoch {
	e := &epoch{
		id: n.Epoch, gateway: n.Gateway, first: n, next: 1, head: record.NewChain(n.Epoch, n.Gateway), known: true, whole: true,
		open: map[uint64]*exchange{}, kept: c.kept[n.Epoch], wanted: c.wanted[n.Epoch], told: true,
	}
	for _, x := range c.options.Gateways {
		if x.Name == n.Gateway {
			e.quiet = x.Silence
		}
	}
	c.epochs[n.Epoch] = e
	return e
}

// again lists once more where the epoch's next segments should be, up to the
// day and before the sequence given, and reads those that have appeared.
func (c *verifier) again(e *epoch, until string, before uint64) error {
	day, err := time.Parse(time.DateOnly, cmp.Or(e.last.Day, e.first.Day))
	if err != nil {
		return nil
	}
	// A listing and the sink meet within moments, at most across midnight.
	for range 3 {
		d := day.Format(time.DateOnly)
		if d > until {
			return nil
		}
		prefix := vault.SegmentPrefix(d, e.gateway, e.id)
		for path, err := range c.vault.List(c.ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			n, err := ParseName(path)
			if err != nil || n.Part || n.First != e.next || n.First >= before {
				continue
			}
			r := c.start(n)
			err = c.segment(e, r)
			r.end()
			if err != nil {
				return err
			}
		}
		day = day.AddDate(0, 0, 1)
	}
	return nil
}

func (c *verifier) segment(e *epoch, r *reading) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	n := r.name
	<-r.opened
	err := r.err
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it went between the listing and now: judged as missing
	}
	var format *vault.SegmentError
	if err != nil && !errors.As(err, &format) {
		return err
	}
	c.report.Segments++
	c.tell(n.Path)
	here := place{name: n}
	if n.First > e.next {
		b, err := c.ahead(e, n)
		if err == nil {
			err = c.expired(e, n.First, b)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case n.First < e.next:
		c.find(SegmentTwice, here, "holds records from %d on, but %s already ended at %d", n.First, e.last.Path, e.next-1)
		return nil
	case n.First > e.next && e.last.Path == "":
		c.find(SegmentMissing, here, "the epoch's records %d to %d are missing: no segment before this one", e.next, n.First-1)
		e.damage()
	case n.First > e.next:
		c.find(SegmentMissing, here, "records %d to %d are missing between %s and this segment", e.next, n.First-1, e.last.Path)
		e.damage()
	}
	e.next = n.First
	e.last = n

	if err != nil {
		here.offset = format.Offset
		c.find(HeaderWrong, here, "%v", format.Err)
		e.skip(n)
		return nil
	}
	h := r.header
	if c.group.is(n) {
		c.group.read, c.group.classes = true, h.Classes
	}
	switch {
	case !e.known:
		e.head, e.known = h.Head, true
	case h.Head != e.head && n.First == 1:
		c.find(ChainWrong, here, "the header begins the chain with %x, the epoch and gateway give %x", h.Head, e.head)
	case h.Head != e.head:
		c.find(ChainWrong, here, "the header begins the chain with %x, the segment before ends with %x", h.Head, e.head)
	}
	ended, err := c.frames(e, r)
	if err != nil {
		return err
	}
	if !ended {
		e.skip(n)
	}
	c.report.Bytes += r.size
	return nil
}

// frames reads a segment's frames, and reports false where it could not go on
// to the segment's end.
func (c *verifier) frames(e *epoch, r *reading) (bool, error) {
	n := r.name
	var (
		cut       bool          // the cut checkpoint has come
		confirmed = n.First - 1 // the last record that a checkpoint confirmed
		past      bool          // a record above the name's last was reported
		own       tally         // of the records in the segment's own file
		absent    = map[string]bool{}
		span      record.Retained
		gone      *record.Frame // the first absence that has expired
		counted   = true        // what checkpoints state of the retention fits
		begun     = prior{own: n.First, first: n.First, last: n.Last, until: e.until, told: e.told}
	)
	for {
		it := r.next(c.ctx)
		f, at, err := it.frame, it.offset, it.err
		for _, p := range it.parts {
			e.gone = true
			var format *vault.SegmentError
			if errors.As(p.err, &format) {
				c.find(FrameWrong, place{part(n, p.path), e.next, format.Offset}, "%v", format.Err)
				absent[part(n, p.path).Class] = true // said
			}
		}
		here := place{n, e.next, at}
		var format *vault.SegmentError
		switch {
		case errors.Is(err, io.EOF):
			switch {
			case !cut && e.next == n.First:
				c.find(EndWrong, place{n, 0, at}, "the segment holds no records")
				return false, nil
			case !cut:
				c.find(EndWrong, place{n, e.next - 1, 0}, "the segment does not end with its cut checkpoint: its last bytes are missing")
				return false, nil
			case own.records != r.header.Records || !own.expires().Equal(r.header.Expires):
				c.find(HeaderWrong, place{name: n}, "the header says that %d records are held, to %s: there are %d, to %s", r.header.Records, r.header.Expires, own.records, own.expires())
			case e.next-1 != n.Last:
				c.find(NameWrong, place{n, e.next - 1, 0}, "the segment ends with this record, its name says %d", n.Last)
			}
			return true, nil
		case errors.As(err, &format):
			here.offset = format.Offset
			if errors.Is(format.Err, record.ErrTorn) {
				c.find(FrameWrong, here, "the file ends within a record: it was cut off, or a length was changed")
			} else {
				c.find(FrameWrong, here, "%v", format.Err)
			}
			return false, nil
		case err != nil:
			return false, err
		case cut:
			c.find(EndWrong, place{n, f.Sequence, at}, "a %s record follows the cut checkpoint that ends the segment", f.Kind)
			return false, nil
		case f.Kind == record.KindCheckpoint:
			s := it.stated
			here.seq = f.Sequence
			c.tell(n.Path)
			switch {
			case it.wrong != nil:
				c.find(ChainWrong, here, "%v", it.wrong)
				return false, nil
			case f.Sequence != e.next-1:
				c.find(SequenceWrong, here, "a checkpoint for record %d stands after record %d", f.Sequence, e.next-1)
				return false, nil
			case s.Head != e.head:
				c.find(ChainWrong, here, "the checkpoint states the head %x, the records give %x: one of the records %d to %d, or the checkpoint, is not the one that was written", s.Head, e.head, confirmed+1, e.next-1)
				return false, nil
			}
			if !canonical(&f) {
				c.find(ChainWrong, here, "the checkpoint has fields set that a checkpoint does not have, and no digest covers them")
			}
			c.checkpoint(e, &f, s, here)
			if counted && s.Retained != nil && !slices.Equal(s.Retained.Classes, span.Classes) {
				if err := c.goesOn(e, &s, &span, &begun); err != nil {
					return false, err
				}
			}
			counted = counted && c.retained(e, &s, &span, here)
			// The record's time, which the chain covers, not the checkpoint's.
			confirmed, e.complete = f.Sequence, e.time
			if cut = f.Flags&record.FlagCut != 0; cut {
				c.logged(e, &f, here)
				if gone != nil {
					c.proven(e, &s, gone, here)
				}
				if e.told = counted && s.Retained != nil; e.told {
					e.until = s.Retained.Latest()
				}
				begun.span = span
				e.prior = begun
			}
		case !f.Kind.Leaf() && f.Kind != vault.KindAbsent:
			c.find(KindWrong, here, "a %s frame lies in a segment", f.Kind)
			return false, nil
		case f.Sequence != e.next:
			c.find(SequenceWrong, place{n, f.Sequence, at}, "record %d stands where record %d must", f.Sequence, e.next)
			return false, nil
		default:
			if day := f.Time.Format(time.DateOnly); f.Sequence == n.First && day != n.Day {
				c.find(NameWrong, here, "the first record is of %s, the name says %s", day, n.Day)
			}
			if f.Sequence > n.Last && !past {
				past = true
				c.find(NameWrong, here, "the record lies beyond the last of the segment's name, %d", n.Last)
			}
			if f.Time.Before(e.time) {
				c.find(TimeWrong, here, "the record's time is %s, the record before has %s: an epoch's time never goes back", f.Time.Format(time.RFC3339Nano), e.time.Format(time.RFC3339Nano))
			}
			c.silence(e, &f, here)
			e.time = f.Time
			if e.began.IsZero() {
				e.began = f.Time
			}
			e.next++
			absence := f.Kind == vault.KindAbsent
			leaf := it.leaf
			c.hash(e, &f, leaf, here)
			span.Add(f.Class, f.Expiry)
			if absence {
				expired, err := c.absence(e, n, &f, absent)
				if err != nil {
					return false, err
				}
				if expired && gone == nil {
					gone = &f
				}
				continue
			}
			if f.Sequence == 1 {
				e.leaf = leaf
			}
			e.records++
			c.report.Records++
			if it.path == n.Path {
				own.add(&f)
				if f.Class != n.Class {
					c.find(HeaderWrong, here, "the record has the retention class %q, the segment %q", f.Class, n.Class)
				}
			} else {
				here.name = part(n, it.path)
			}
			if err := c.leaf(e, &f, here); err != nil {
				return false, err
			}
		}
	}
}

// canonical reports whether a checkpoint has only the fields that
// [record.Checkpoint] sets.
func canonical(f *record.Frame) bool {
	return f.Exchange == 0 && f.Direction == 0 && f.Piece == 0 && f.Offset == 0 && f.Expiry.IsZero() &&
		f.Key == (record.KeyID{}) && f.Class == "" && f.Flags&^record.FlagCut == 0
}

// finish judges what only the whole vault shows: how epochs follow each other.
func (c *verifier) finish() error {
	if err := c.readSalvage(); err != nil {
		return err
	}
	next := map[record.Epoch]*epoch{} // who cites whom
	for i := 0; i < len(c.listed); i++ {
		if err := c.cites(c.listed[i], next); err != nil {
			return err
		}
	}
	if err := c.vanished(next); err != nil {
		return err
	}
	if err := c.copies(); err != nil {
		return err
	}
	for _, e := range c.listed {
		// Without its key an epoch's checkpoints could be anybody's; the next one's
		// citation covers the records, but not of the last.
		if e.verifier == nil && e.expired(1) && next[e.id] == nil && c.options.Trust != nil {
			c.find(CertificateMissing, place{name: e.first}, "neither the epoch's key is here, whose record has expired (%s), nor a later epoch that cites its end: nothing shows that it is a gateway of the deployment", vault.EpochName(e.gateway, e.id))
		}
	}
	for _, e := range c.listed {
		for _, n := range e.strays {
			if (n.First < e.next || next[e.id] != nil) && !e.outlived(n) {
				c.find(FileUnknown, place{name: n}, "is a part of no segment")
			}
		}
	}
	for id, p := range c.closers {
		c.close(id, p, true)
	}
	gateways := map[string][]*epoch{}
	for _, e := range c.listed {
		gateways[e.gateway] = append(gateways[e.gateway], e)
	}
	for _, name := range slices.Sorted(maps.Keys(gateways)) {
		gateways[name] = succession(gateways[name], next)
		c.gateway(name, gateways[name], next)
	}
	c.complete()
	c.finishAnchors()
	c.finishReceipts()
	c.register(gateways)
	c.heads()
	return nil
}

// heads lists what to keep elsewhere.
func (c *verifier) heads() {
	for _, e := range c.listed {
		if e.signed != nil {
			c.report.Heads = append(c.report.Heads, headOf(e.statement, e.signed))
		}
	}
}

// cites compares the end of the epoch that e's first record cites with what
// the vault holds of it.
func (c *verifier) cites(e *epoch, next map[record.Epoch]*epoch) error {
	if e.opened == nil || e.opened.Previous == nil {
		return nil
	}
	p := e.opened.Previous
	here := place{name: e.first, seq: 1}
	id, err := record.ParseEpoch(p.Epoch)
	if err != nil {
		c.find(EpochWrong, here, "the previous epoch: %v", err)
		return nil
	}
	before := c.epochs[id]
	if before == nil {
		old := lostEpoch(id, e.gateway)
		if err := c.expired(old, p.Sequence+1, cited(p, e.began)); err != nil {
			return err
		}
		if old.next > p.Sequence {
			c.gone[id] = p.Sequence
		} else if p.Sequence > 0 && c.young(e) {
			e.waits = true
			c.notice(EpochAwaited, here, "the epoch before, %s, with records up to %d, has not come yet", id, p.Sequence)
		} else if p.Sequence > 0 {
			c.find(EpochWrong, here, "the epoch before, %s, with records up to %d, is not in the vault", id, p.Sequence)
		}
		return nil
	}
	if other := next[id]; other != nil {
		c.find(EpochWrong, here, "epoch %s is cited as the one before by %s too", id, other.id)
		return nil
	}
	next[id] = e
	c.cited[id] = true
	if before.gateway != e.gateway {
		c.find(EpochWrong, here, "the epoch before, %s, is gateway %s's", id, before.gateway)
		return nil
	}
	if before.next-1 < p.Sequence {
		if err := c.again(before, e.first.Day, p.Sequence+1); err != nil {
			return err
		}
	}
	if before.next-1 < p.Sequence {
		if err := c.expired(before, p.Sequence+1, cited(p, e.began)); err != nil {
			return err
		}
	}
	held := before.next - 1
	end := place{name: before.last, seq: held}
	switch {
	case before.damaged:
		// What is wrong there has been said.
	case held < p.Sequence && c.young(e):
		e.waits = true
		c.notice(EpochAwaited, end, "records %d to %d of epoch %s have not come yet", held+1, p.Sequence, id)
	case held < p.Sequence && c.lostWith(before, e):
		// The journal that held them was lost after this epoch had taken it over.
		before.lostAt = p.Sequence
	case held < p.Sequence:
		c.find(SegmentMissing, end, "records %d to %d are missing: the epoch's last segment in the vault is this one, the next epoch %s cites its end at %d", held+1, p.Sequence, e.id, p.Sequence)
	case held > p.Sequence:
		c.find(EpochWrong, here, "cites the end of epoch %s at record %d, the vault holds %d", id, p.Sequence, held)
	case !before.known:
	case p.Head != hex.EncodeToString(before.head[:]):
		c.find(EpochWrong, here, "cites the head %q of epoch %s at record %d, the vault's records give %x", p.Head, id, held, before.head)
	case before.whole && p.Root != rootText(before.tree):
		c.find(EpochWrong, here, "cites the root %q of epoch %s at record %d, the vault's records give %s", p.Root, id, held, rootText(before.tree))
	case before.told && p.Expiry != "" && p.Expiry != before.until.String():
		c.find(EpochWrong, here, "says that the last record of epoch %s expires at %q, the vault's records say %s", id, p.Expiry, before.until)
	case p.Closed != before.closed && !before.gone:
		c.find(EpochWrong, here, "says that epoch %s was %s, the vault's records say %s", id, endText(p.Closed), endText(before.closed))
	}
	return nil
}

// young reports whether an epoch began so short a time ago that what was before
// it may still come.
func (c *verifier) young(e *epoch) bool {
	age := c.now.Sub(e.opened.Opened)
	return -settling < age && age < settling
}

func rootText(t record.Tree) string {
	root := t.Root()
	return hex.EncodeToString(root[:])
}

func endText(closed bool) string {
	if closed {
		return "closed in order"
	}
	return "cut off"
}

// succession orders a gateway's epochs as they cite each other, and by time
// where they do not.
func succession(epochs []*epoch, next map[record.Epoch]*epoch) []*epoch {
	slices.SortFunc(epochs, func(a, b *epoch) int { return slices.Compare(a.id[:], b.id[:]) })
	cited := map[*epoch]bool{}
	for _, e := range epochs {
		if n := next[e.id]; n != nil {
			cited[n] = true
		}
	}
	var out []*epoch
	done := map[*epoch]bool{}
	follow := func(e *epoch) {
		for ; e != nil && !done[e]; e = next[e.id] {
			done[e] = true
			out = append(out, e)
		}
	}
	// Journals one after another: a folder that was not there for a while, with
	// another in its place, ends later than it, though it began before.
	var first []*epoch
	for _, e := range epochs {
		if !cited[e] {
			first = append(first, e)
		}
	}
	end := func(e *epoch) *epoch {
		for range epochs { // no ring is endless
			if next[e.id] == nil {
				break
			}
			e = next[e.id]
		}
		return e
	}
	slices.SortStableFunc(first, func(a, b *epoch) int {
		x, y := end(a), end(b)
		return slices.Compare(x.id[:], y.id[:])
	})
	for _, e := range first {
		follow(e)
	}
	for _, e := range epochs {
		follow(e) // what is left cites itself in a ring
	}
	return out
}

func (c *verifier) gateway(name string, epochs []*epoch, next map[record.Epoch]*epoch) {
	g := Gateway{Name: name, Epochs: len(epochs)}
	type unended struct {
		seq uint64
		at  place
	}
	// left are exchanges that a crash or a stop cut off and that no later epoch
	// has closed.
	var left []unended
	var leftOf *epoch
	for i, e := range epochs {
		g.Records += e.records
		c.missedTail(e)
		if e.waits {
			g.pending++
		}
		lost := !e.closed && (next[e.id] == nil || e.lostAt > 0) && c.lostTail(e)
		if i < len(epochs)-1 && !e.closed && !e.damaged && next[e.id] == nil && !lost {
			// Where the next epoch's first record has expired, so has its citation.
			if after := epochs[i+1]; !after.waits && (after.opened != nil || !after.gone) {
				salvage := ""
				if s := c.salvages[e.id]; s != nil && s.cut {
					salvage = "; a salvage has begun and is not complete"
				}
				c.find(TailLost, place{name: e.last, seq: e.next - 1}, "the epoch's end is not proven: it has no close record, and the gateway's next epoch %s does not cite it, so records after this one may be lost%s", after.id, salvage)
			}
		}
		// Recovery's outcomes that could not be read close as many as there
		// are of them.
		n := min(e.lone, int64(len(left)))
		c.report.Exchanges.Interrupted += n
		left = left[n:]
		if len(left) > 0 && e.live {
			if !e.damaged && !leftOf.gone && !e.waits {
				c.find(ExchangeUnended, left[0].at, "the exchange %s has no outcome, and epoch %s, which recovered the journal, does not close it (%d such)", record.ID{Epoch: leftOf.id, Sequence: left[0].seq}, e.id, len(left))
			}
			c.report.Exchanges.Pending += int64(len(left))
			left = nil
		}
		if lost { // with their outcomes, if they had any
			c.report.Exchanges.Lost += int64(len(e.open))
			continue
		}
		seqs := slices.Sorted(maps.Keys(e.open))
		if len(seqs) > 0 && len(left) == 0 {
			leftOf = e
		}
		for _, seq := range seqs {
			left = append(left, unended{seq, e.open[seq].at})
		}
	}
	c.report.Exchanges.Pending += int64(len(left))
	g.pending += len(left)
	c.clocks(epochs, next)
	end := epochs[len(epochs)-1]
	g.Last, g.Sequence, g.Head = end.id.String(), end.next-1, hex.EncodeToString(end.head[:])
	g.Complete, g.Closed = end.complete, end.closed
	c.report.Gateways = append(c.report.Gateways, g)
}

func (c *verifier) complete() {
	var open, closed time.Time
	for _, g := range c.report.Gateways {
		switch {
		case g.Closed && g.Complete.After(closed):
			closed = g.Complete
		case !g.Closed && (open.IsZero() || g.Complete.Before(open)):
			open = g.Complete
		}
	}
	c.report.Complete = open
	if open.IsZero() {
		c.report.Complete = closed
	}
}

// seen remembers keys that were looked at, of two generations, so that it does
// not grow with the vault.
type seen struct{ young, old map[seenKey]bool }

type seenKey struct {
	epoch record.Epoch
	key   record.KeyID
}

const mostSeen = 1 << 16

func newSeen() *seen { return &seen{young: map[seenKey]bool{}, old: map[seenKey]bool{}} }

// first reports whether the key was not seen before.
func (s *seen) first(k seenKey) bool {
	if s.young[k] {
		return false
	}
	old := s.old[k]
	if len(s.young) >= mostSeen {
		s.old, s.young = s.young, map[seenKey]bool{}
	}
	s.young[k] = true
	return !old
}

// checkKey asks once whether the vault holds the key of a record.
func (c *verifier) checkKey(e *epoch, f *record.Frame, at place) error {
	if !c.keys.first(seenKey{e.id, f.Key}) {
		return nil
	}
	_, err := keyring.Read(c.ctx, c.vault, e.id, f.Key)
	switch {
	case errors.Is(err, record.ErrNoKey):
		return c.missing(e, f, at)
	case errors.Is(err, keyring.ErrWrong):
		c.find(KeyWrong, at, "the record's %v", err)
	case err != nil:
		return err
	}
	return nil
}

// lost counts a key that is not there, and nothing says why.
func (c *verifier) lost(e *epoch, f *record.Frame, at place) {
	c.report.KeysMissing++
	if len(c.report.Missing) < mostMissing {
		c.report.Missing = append(c.report.Missing, Missing{
			Key: hex.EncodeToString(f.Key[:]), Gateway: e.gateway, Epoch: e.id.String(), Segment: at.name.Path, Sequence: f.Sequence,
		})
	}
}
