package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// lookBack is how many days before an epoch its gateway's earlier ones are
// looked for: Pub/Sub keeps nothing longer (31 days), so nothing of older ones
// can still come.
const lookBack = 32

// errDecided means that a sink has decided where a lost tail's segment ends. The
// epoch is begun again, and follows that.
var errDecided = errors.New("the end of the epoch's segment was decided meanwhile")

// sure is the last checkpoint of the spool, which a segment can end with.
type sure struct {
	seq  uint64
	head record.ChainHead
	size int64  // of the spool behind it
	raw  []byte // the frame
}

// remember takes note of a checkpoint that was put into the spool.
func (st *stream) remember(f *record.Frame) {
	st.sure = sure{st.seq, st.head, st.spool.size, append(st.sure.raw[:0], f.Raw()...)}
}

// decision reads what was decided about the segment that is next, nil for
// nothing.
func (st *stream) decision(ctx context.Context) (*vault.Salvage, error) {
	name := vault.SalvageName(st.gateway, st.epoch, vault.SalvageCut, st.durable+1)
	s, err := st.sink.note(ctx, name)
	var bad *noteError
	if errors.As(err, &bad) {
		return nil, st.wrong(err)
	}
	return s, err
}

// noteError says that an object is no salvage note.
type noteError struct {
	name string
	err  error
}

func (e *noteError) Error() string { return fmt.Sprintf("%s: %v", e.name, e.err) }
func (e *noteError) Unwrap() error { return e.err }

// note reads a salvage note, nil where there is none.
func (s *Sink) note(ctx context.Context, name string) (*vault.Salvage, error) {
	r, err := s.c.Vault.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, vault.MaxSalvage+1))
	if err != nil {
		return nil, fmt.Errorf("sink: read %s: %w", name, err)
	}
	n, err := vault.ParseSalvage(name, b)
	if err != nil {
		return nil, &noteError{name, err}
	}
	return n, nil
}

// follow compares a checkpoint with what was decided, and ends the segment where
// that says so.
func (st *stream) follow(ctx context.Context) error {
	d := st.decided
	switch {
	case d == nil || st.seq < d.Last:
		return nil
	case st.seq > d.Last || d.Head != vault.Hex(st.head):
		return st.forked()
	}
	return st.cutHere(ctx)
}

func (st *stream) forked() error {
	d := st.decided
	return st.wrong(fmt.Errorf("a lost tail was salvaged up to record %d with the chain's head %s, the records that came now do not have it there: the gateway's journal is not the one that those came from", d.Last, d.Head))
}

// cutHere ends the segment with the checkpoint that stands last in the spool. It
// is stated again as a cut, as a journal's recovery does, so the segment has the
// bytes that the journal's own would have had if it had come back there.
func (st *stream) cutHere(ctx context.Context) error {
	f, _, err := record.Decode(st.sure.raw)
	if err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	cut, err := record.Recut(&f)
	if err != nil {
		return st.wrong(err)
	}
	b, err := cut.Encode(nil)
	if err != nil {
		return st.wrong(err)
	}
	if err := st.logs(&cut); err != nil {
		return err
	}
	if err := st.spool.append(b); err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	first := st.durable + 1
	st.salvaging = true
	err = st.store(ctx)
	st.salvaging = false
	if err != nil {
		return err
	}
	st.sink.stats.salvaged.Add(1)
	st.sink.log.Warn("sink: a lost tail was salvaged", "gateway", st.gateway, "epoch", st.epoch, "first", first, "sequence", st.durable)
	if err := st.toLog(ctx, first, &cut); err != nil {
		return err
	}
	st.decided, err = st.decision(ctx)
	return err
}

// Salvage implements [transport.Salvager].
func (st *stream) Salvage(ctx context.Context, aside bool) (transport.Salvage, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err == nil {
		st.err = st.sink.Err()
	}
	if st.err != nil {
		return transport.Salvage{Held: st.durable}, st.err
	}
	r, err := st.salvage(ctx, aside)
	r.Held = st.durable
	if err != nil {
		st.err = err
	}
	return r, err
}

func (st *stream) salvage(ctx context.Context, aside bool) (r transport.Salvage, err error) {
	note, err := st.over(ctx)
	if err != nil || note == nil {
		return r, err
	}
	r.Over = true
	if err := st.chain(ctx); err != nil {
		return r, err
	}
	note.Version, note.Gateway, note.Epoch = 1, st.gateway, st.epoch.String()
	if st.sure.seq > st.durable && st.decided == nil {
		// The decision: whoever takes its name first decides for everybody.
		note.Kind, note.First, note.Last, note.Head = vault.SalvageCut, st.durable+1, st.sure.seq, vault.Hex(st.sure.head)
		if st.decided, err = st.settle(ctx, note); err != nil {
			return r, err
		}
		if st.decided.Last < st.sure.seq {
			return r, fmt.Errorf("sink: epoch %s, record %d: %w", st.epoch, st.decided.Last, errDecided)
		}
	}
	cut := st.decided != nil && st.decided.Last == st.sure.seq
	if cut && st.decided.Head != vault.Hex(st.sure.head) {
		return r, st.forked()
	}
	if aside && st.seq > max(st.durable, st.sure.seq) && (cut || st.decided == nil) {
		// Records behind the last checkpoint: nobody was given anything on them.
		rest, err := st.spool.from(st.sureSize())
		if err == nil {
			err = st.aside(ctx, rest)
		}
		if err != nil {
			return r, err
		}
	}
	if cut {
		if err := st.back(); err != nil {
			return r, err
		}
		if err := st.cutHere(ctx); err != nil {
			return r, err
		}
	}
	if st.durable == 0 || st.decided != nil {
		return r, nil // more is to come
	}
	note.Kind, note.First, note.Last, note.Head = vault.SalvageEnd, 0, st.durable, vault.Hex(st.base)
	if _, err = st.settle(ctx, note); err == nil {
		r.Done = true
	}
	return r, err
}

// sureSize is where in the spool that begins which no checkpoint confirms.
func (st *stream) sureSize() int64 {
	if st.sure.seq > st.durable {
		return st.sure.size
	}
	return 0
}

// settle writes a note, or returns the one that has its name.
func (st *stream) settle(ctx context.Context, note *vault.Salvage) (*vault.Salvage, error) {
	name, err := note.Name()
	if err != nil {
		return nil, st.wrong(err)
	}
	b, err := note.Marshal()
	if err != nil {
		return nil, st.wrong(err)
	}
	err = st.sink.c.Vault.Create(ctx, name, bytes.NewReader(b))
	if errors.Is(err, vault.ErrConflict) {
		n, err := st.sink.note(ctx, name)
		if err == nil && n == nil {
			err = fmt.Errorf("sink: %s: taken, and not there", name)
		}
		if err == nil && n.Kind == vault.SalvageEnd && n.Head != note.Head {
			err = st.wrong(fmt.Errorf("%s says that record %d has the chain's head %s, the vault's records give %s", name, n.Last, n.Head, note.Head))
		}
		return n, err
	}
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	return note, nil
}

// back takes what no checkpoint confirms out of the spool.
func (st *stream) back() error {
	if st.seq == st.sure.seq {
		return nil
	}
	if err := st.spool.truncate(st.sure.size); err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	frames, err := st.spool.content()
	if err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	st.classes = map[string]*held{}
	for {
		f, err := record.ReadFrame(frames)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("sink: spool: %w", err)
		}
		if f.Kind.Leaf() {
			if err := st.count(&f); err != nil {
				return err
			}
		}
	}
	st.seq, st.head, st.checked = st.sure.seq, st.sure.head, true
	return nil
}

// Aside implements [transport.Salvager].
func (st *stream) Aside(ctx context.Context, frames []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	return st.aside(ctx, frames)
}

// aside keeps frames that cannot be chained. Their keys go where keys are, so
// that they can be erased.
func (st *stream) aside(ctx context.Context, frames []byte) error {
	var out []byte
	var first, last uint64
	for rest := frames; len(rest) > 0; {
		f, n, err := record.Decode(rest)
		if err != nil {
			return st.wrong(fmt.Errorf("frames that cannot be chained: %w", err))
		}
		rest = rest[n:]
		if f.Kind == record.KindKey {
			if err := st.key(ctx, &f); err != nil {
				return err
			}
			continue
		}
		out = append(out, f.Raw()...)
		if first == 0 {
			first = f.Sequence
		}
		last = max(last, f.Sequence)
	}
	if first == 0 {
		return nil
	}
	name := vault.AsideName(st.gateway, st.epoch, first, last, out)
	if err := st.create(ctx, name, bytes.NewReader(out)); err != nil {
		return err
	}
	st.sink.stats.aside.Add(last - first + 1)
	st.sink.log.Error("sink: records came that cannot be chained, for records before them have not; they are kept aside", "gateway", st.gateway, "epoch", st.epoch,
		"first", first, "sequence", last, "object", name)
	return nil
}

// chain takes what was set aside and follows on what has come since.
func (st *stream) chain(ctx context.Context) error {
	for name, err := range st.sink.c.Vault.List(ctx, vault.SalvageFolder(st.gateway, st.epoch)) {
		if err != nil {
			return fmt.Errorf("sink: %w", err)
		}
		o, err := vault.ParseSalvageName(name)
		if err != nil || o.Kind != "" || o.First > st.seq+1 || o.Last <= st.seq {
			continue
		}
		r, err := st.sink.c.Vault.Open(ctx, name)
		if err != nil {
			return fmt.Errorf("sink: %w", err)
		}
		err = st.chainOne(ctx, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (st *stream) chainOne(ctx context.Context, r io.Reader) error {
	for {
		f, err := record.ReadFrame(r)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("sink: %w", err)
		case f.Kind.Leaf() && f.Sequence <= st.seq, f.Kind == record.KindCheckpoint && f.Sequence != st.seq:
			continue
		case f.Kind.Leaf() && f.Sequence == st.seq+1, f.Kind == record.KindCheckpoint:
			if err := st.take(ctx, f.Raw()); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// over tells how it is known that no more of the epoch will be cut: by an
// operator's order, or by a later epoch of the gateway whose journal does not
// have it. It returns the beginning of a note that says so, nil where it is not known.
func (st *stream) over(ctx context.Context) (*vault.Salvage, error) {
	order, err := st.sink.note(ctx, vault.SalvageName(st.gateway, st.epoch, vault.SalvageOrder, 0))
	var bad *noteError
	switch {
	case errors.As(err, &bad):
		st.sink.log.Error("sink: an order to salvage cannot be read", "gateway", st.gateway, "epoch", st.epoch, "error", err)
	case err != nil:
		return nil, err
	case order != nil:
		return &vault.Salvage{By: order.By, Reason: order.Reason}, nil
	}
	from := st.epoch.Time()
	if t, err := time.Parse(time.DateOnly, st.lastDay); err == nil && t.After(from) {
		from = t
	}
	opens, err := st.sink.opens(ctx, st.gateway, from, st.sink.c.Now(), func(e record.Epoch) bool { return bytes.Compare(e[:], st.epoch[:]) > 0 })
	if err != nil {
		return nil, err
	}
	// The latest word counts: a journal may be lost after another epoch took it
	// over, and it may come back.
	successor := ""
	for _, e := range slices.SortedFunc(maps.Keys(opens), compareEpochs) {
		switch heir(opens, e, st.epoch) {
		case cites:
			successor = ""
		case without:
			if successor == "" {
				successor = e.String()
			}
		}
	}
	if successor == "" {
		return nil, nil
	}
	return &vault.Salvage{Successor: successor}, nil
}

func compareEpochs(a, b record.Epoch) int { return bytes.Compare(a[:], b[:]) }

type heirship int

const (
	unknown heirship = iota
	cites            // the epoch was in the later one's journal
	without          // it was not
)

// heir follows the citations of a later epoch back to where the epoch must stand
// if it was in the same journal: there epochs are in the order of their times.
func heir(opens map[record.Epoch]*record.Open, later, epoch record.Epoch) heirship {
	for at := later; ; {
		o, ok := opens[at]
		if !ok || o == nil {
			return unknown // its first segment has not come yet
		}
		if o.Previous == nil {
			return without
		}
		before, err := record.ParseEpoch(o.Previous.Epoch)
		switch {
		case err != nil || compareEpochs(before, at) >= 0:
			return unknown
		case before == epoch:
			return cites
		case compareEpochs(before, epoch) < 0:
			return without
		}
		at = before
	}
}

// opens reads the open records of the gateway's epochs that are wanted and have
// segments of these days; nil for one that is not there.
func (s *Sink) opens(ctx context.Context, gateway string, from, to time.Time, want func(record.Epoch) bool) (map[record.Epoch]*record.Open, error) {
	out := map[record.Epoch]*record.Open{}
	err := s.days(ctx, gateway, from, to, func(name string, id vault.Segment) error {
		if !want(id.Epoch) {
			return nil
		}
		if _, ok := out[id.Epoch]; !ok {
			out[id.Epoch] = nil
		}
		if id.First != 1 || id.Part {
			return nil
		}
		o, err := s.open(ctx, name)
		out[id.Epoch] = o
		return err
	})
	return out, err
}

// open reads the open record that a segment begins with, nil where it has none
// that can be read.
func (s *Sink) open(ctx context.Context, name string) (*record.Open, error) {
	r, closer, err := vault.OpenSegment(ctx, s.c.Vault, name)
	var bad *vault.SegmentError
	if errors.As(err, &bad) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	defer closer.Close()
	f, err := r.Next()
	if errors.As(err, &bad) || errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	o := &record.Open{}
	if f.Kind != record.KindOpen || f.Key != (record.KeyID{}) || record.Unmarshal(f.Body, o) != nil {
		return nil, nil
	}
	return o, nil
}

// days lists a gateway's segments of these days, a day more at both ends.
func (s *Sink) days(ctx context.Context, gateway string, from, to time.Time, do func(name string, id vault.Segment) error) error {
	from, to = from.UTC().Add(-day).Truncate(day), to.UTC().Add(day).Truncate(day)
	if to.Sub(from) > maxDays*day {
		return fmt.Errorf("sink: gateway %s: %d days to look through", gateway, to.Sub(from)/day)
	}
	for t := from; !t.After(to); t = t.Add(day) {
		for name, err := range s.c.Vault.List(ctx, vault.GatewayPrefix(vault.Day(t), gateway)) {
			if err != nil {
				return fmt.Errorf("sink: %w", err)
			}
			id, err := vault.ParseSegmentName(name)
			if err != nil {
				continue
			}
			if err := do(name, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// Lost implements [transport.Heir]. It looks through the gateway's epochs of the
// last lookBack days.
func (s *Sink) Lost(ctx context.Context, gateway string, epoch record.Epoch) ([]record.Epoch, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	type last struct {
		name string
		id   vault.Segment
	}
	ends, cited := map[record.Epoch]last{}, map[record.Epoch]uint64{}
	opened := epoch.Time()
	err := s.days(ctx, gateway, opened.Add(-lookBack*day), s.c.Now(), func(name string, id vault.Segment) error {
		if id.Part {
			return nil
		}
		if id.Last > ends[id.Epoch].id.Last {
			ends[id.Epoch] = last{name, id}
		}
		if id.First != 1 {
			return nil
		}
		o, err := s.open(ctx, name)
		if err != nil || o == nil || o.Previous == nil {
			return err
		}
		if before, err := record.ParseEpoch(o.Previous.Epoch); err == nil && compareEpochs(before, id.Epoch) < 0 {
			cited[before] = o.Previous.Sequence
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var lost []record.Epoch
	for _, e := range slices.SortedFunc(maps.Keys(ends), compareEpochs) {
		end := ends[e]
		if compareEpochs(e, epoch) >= 0 || cited[e] > 0 && end.id.Last >= cited[e] {
			continue
		}
		n, err := s.note(ctx, vault.SalvageName(gateway, e, vault.SalvageEnd, end.id.Last))
		var bad *noteError
		if err != nil && !errors.As(err, &bad) {
			return nil, err
		}
		if n != nil {
			continue
		}
		closed, err := s.closed(ctx, end.name)
		if err != nil {
			return nil, err
		}
		if !closed {
			lost = append(lost, e)
		}
	}
	return lost, nil
}

// closed reports whether a segment's last record is a close record.
func (s *Sink) closed(ctx context.Context, name string) (bool, error) {
	r, closer, err := vault.OpenSegment(ctx, s.c.Vault, name)
	var bad *vault.SegmentError
	if errors.As(err, &bad) || errors.Is(err, fs.ErrNotExist) {
		return true, nil // nothing is put behind what is wrong
	}
	if err != nil {
		return false, fmt.Errorf("sink: %w", err)
	}
	defer closer.Close()
	closed := false
	for {
		f, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return closed, nil
		case errors.As(err, &bad):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("sink: %w", err)
		case f.Kind.Leaf() || f.Kind == vault.KindAbsent:
			closed = f.Kind == record.KindClose
		}
	}
}
