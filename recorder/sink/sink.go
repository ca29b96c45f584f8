// Package sink makes vault segments of the frames that gateways send.
//
// The rule of this folder: what is acknowledged is durable in the vault, and
// what is in the vault is right. Frames are judged as they come (checksum,
// dense sequence, chain, the head in each checkpoint); one that is wrong ends
// its epoch with an alarm and nothing of its segment is stored or
// acknowledged. What lies between the last cut and the end of a connection is
// forgotten, for the gateway's journal has it still. Segments follow from the
// frames alone, so a sink that dies at any point and does its work again
// writes the same bytes under the same names.
//
// Where a gateway's journal is lost, so that it will cut no more, a segment ends
// with the last checkpoint that came. Where that is depends on what came, so it
// is decided by a note whose name can be taken once, and everybody follows that
// (see [vault.Salvage]).
package sink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

const (
	day = 24 * time.Hour
	// maxDays is how far an epoch's time may lie from now, in days: each costs
	// a listing when the epoch is opened.
	maxDays = 3660
)

// Config configures a [Sink].
type Config struct {
	// Vault is where segments and keys go. No other sink may write it.
	Vault vault.Vault
	// Spool is a folder for the segments that are not whole yet, best on the
	// vault's disk. It is made where there is none. Its files are nameless as
	// soon as they are open.
	Spool string
	// Class is the retention class of the segments, [vault.Set.Longest]: they
	// outlast the parts of the other classes. Where it is empty it is each
	// time the class of the segment's record that expires last.
	Class string
	// Log, where set, takes each cut checkpoint once its segment is durable.
	// When it refuses one the sink stops.
	Log    Log
	Logger *slog.Logger
	// Alarm, where set, is called for each [Alarm], once, from the goroutine
	// that takes the frame. It must not block.
	Alarm func(Alarm)
	Now   func() time.Time // nil: time.Now
}

// Log is the sink's own log, see package sinklog.
type Log interface {
	// Append takes the cut checkpoint, a signed note, of the segment that holds
	// these records.
	Append(ctx context.Context, e record.Epoch, first, last uint64, note []byte) error
}

// Alarm says that evidence is wrong: an epoch is refused, or the sink stopped.
type Alarm struct {
	Gateway string
	Epoch   record.Epoch
	Err     error // wraps transport.ErrRefused or transport.ErrStop
}

// Stats are counts since the sink was made.
type Stats struct {
	Segments, Records, Bytes uint64 // stored durably
	Keys                     uint64 // key frames stored, those already there included
	Duplicates               uint64 // frames that came again and were dropped
	Erased                   uint64 // key frames refused, for their key was erased
	Salvaged                 uint64 // segments that end where a journal was lost
	Aside                    uint64 // records that could not be chained
	Alarms                   uint64
}

// Sink is a [transport.Receiver].
type Sink struct {
	c   Config
	log *slog.Logger
	// create makes the spool's files.
	create func(dir string) (spoolFile, error)
	stats  struct {
		segments, records, bytes, keys, duplicates, erased, salvaged, aside, alarms atomic.Uint64
	}

	mu      sync.Mutex
	err     error // why the sink stopped
	streams map[streamKey]*stream
}

type streamKey struct {
	gateway string
	epoch   record.Epoch
}

// New returns a sink.
func New(c Config) (*Sink, error) {
	if c.Vault == nil {
		return nil, errors.New("sink: no vault given")
	}
	if c.Class != "" {
		if err := vault.CheckClass(c.Class); err != nil {
			return nil, fmt.Errorf("sink: %w", err)
		}
	}
	if c.Spool == "" {
		return nil, errors.New("sink: no spool folder given")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := os.MkdirAll(c.Spool, 0o700); err != nil {
		return nil, fmt.Errorf("sink: spool: %w", err)
	}
	// A crash between making a spool file and taking its name away leaves it.
	left, err := filepath.Glob(filepath.Join(c.Spool, spoolPattern))
	if err != nil {
		return nil, fmt.Errorf("sink: spool: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("sink: spool: %w", err)
		}
	}
	return &Sink{c: c, log: c.Logger, create: tempFile, streams: map[streamKey]*stream{}}, nil
}

// Err returns why the sink stopped, nil while it works.
func (s *Sink) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stats returns the counts of now.
func (s *Sink) Stats() Stats {
	c := &s.stats
	return Stats{
		Segments: c.segments.Load(), Records: c.records.Load(), Bytes: c.bytes.Load(),
		Keys: c.keys.Load(), Duplicates: c.duplicates.Load(), Erased: c.erased.Load(),
		Salvaged: c.salvaged.Load(), Aside: c.aside.Load(), Alarms: c.alarms.Load(),
	}
}

// Begin implements [transport.Receiver]. It looks up where the vault's last
// segment of the epoch ends, and reads that segment to go on from its head.
func (s *Sink) Begin(ctx context.Context, gateway string, epoch record.Epoch) (transport.Stream, error) {
	st := &stream{sink: s, gateway: gateway, epoch: epoch}
	if err := vault.CheckGateway(gateway); err != nil {
		return nil, st.wrong(err)
	}
	key := streamKey{gateway, epoch}
	st.mu.Lock()
	defer st.mu.Unlock()
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return nil, s.err
	}
	old := s.streams[key]
	s.streams[key] = st
	s.mu.Unlock()
	if old != nil {
		old.supersede()
	}
	err := st.resume(ctx)
	if err == nil {
		st.spool, err = newSpool(s.c.Spool, s.create)
	}
	if err != nil {
		st.close(err)
		return nil, err
	}
	if st.durable > 0 {
		s.log.Info("sink: epoch goes on", "gateway", gateway, "epoch", epoch, "sequence", st.durable)
	}
	return st, nil
}

// stop ends the sink for everybody.
func (s *Sink) stop(st *stream, cause error) error {
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return s.err
	}
	err := fmt.Errorf("%w: %w", transport.ErrStop, cause)
	s.err = err
	s.mu.Unlock()
	s.alarm(st, err)
	return err
}

func (s *Sink) alarm(st *stream, err error) {
	s.stats.alarms.Add(1)
	s.log.Error("sink: alarm", "gateway", st.gateway, "epoch", st.epoch, "sequence", st.seq, "error", err)
	if s.c.Alarm != nil {
		s.c.Alarm(Alarm{Gateway: st.gateway, Epoch: st.epoch, Err: err})
	}
}

// stream assembles the segments of one epoch. Its state is the vault's (durable,
// base) and the spool's (seq, head); they are equal between two segments.
type stream struct {
	sink    *Sink
	gateway string
	epoch   record.Epoch

	mu      sync.Mutex
	err     error // why it takes no more
	durable uint64
	base    record.ChainHead // after record durable
	seq     uint64
	head    record.ChainHead // after record seq
	// checked says that a checkpoint for seq is in the spool.
	checked bool
	day     string // of the segment's first record
	lastDay string // of the vault's last segment when the stream began
	classes map[string]*held
	spool   *spool
	sure    sure
	// decided is where the segment ends, where a sink has decided that.
	decided   *vault.Salvage
	salvaging bool   // another sink may store the segment with the gateway's cut
	open      []byte // the open record's frame, until it is stored
}

// resume finds where the vault's segments of the epoch end.
func (st *stream) resume(ctx context.Context) error {
	st.base = record.NewChain(st.epoch, st.gateway)
	name, id, err := st.lastSegment(ctx)
	if err != nil {
		return err
	}
	if name != "" {
		head, end, err := checkSegment(ctx, st.sink.c.Vault, name, id)
		if err != nil {
			var bad *vault.SegmentError
			if errors.As(err, &bad) {
				return st.wrong(fmt.Errorf("the vault's last segment of the epoch is wrong, nothing is put behind it: %w", err))
			}
			return fmt.Errorf("sink: %w", err)
		}
		st.durable, st.base, st.lastDay = id.Last, head, id.Day
		// Whoever stored it may not have come to log it.
		if err := st.toLog(ctx, id.First, &end); err != nil {
			return err
		}
	}
	st.seq, st.head = st.durable, st.base
	st.decided, err = st.decision(ctx)
	return err
}

// lastSegment lists day after day, from now back to the epoch's opening; a day
// more at both ends forgives clocks that differ.
func (st *stream) lastSegment(ctx context.Context) (string, vault.Segment, error) {
	now, opened := st.sink.c.Now().UTC(), st.epoch.Time()
	from := opened.Add(-day).Truncate(day)
	to := now
	if opened.After(now) {
		to = opened
	}
	to = to.Add(day).Truncate(day)
	if to.Sub(from) > maxDays*day || from.After(now.Add(maxDays*day)) {
		return "", vault.Segment{}, st.wrong(fmt.Errorf("the epoch says it began on %s, which cannot be", vault.Day(opened)))
	}
	for t := to; !t.Before(from); t = t.Add(-day) {
		var last vault.Segment
		var lastName string
		for name, err := range st.sink.c.Vault.List(ctx, vault.SegmentPrefix(vault.Day(t), st.gateway, st.epoch)) {
			if err != nil {
				return "", last, fmt.Errorf("sink: %w", err)
			}
			id, err := vault.ParseSegmentName(name)
			if err != nil {
				st.sink.log.Error("sink: a foreign object lies among the vault's segments", "gateway", st.gateway, "epoch", st.epoch, "error", err)
				continue
			}
			if id.Last > last.Last && !id.Part {
				last, lastName = id, name
			}
		}
		if lastName != "" {
			return lastName, last, nil
		}
	}
	return "", vault.Segment{}, nil
}

// checkSegment reads a segment, checks it as Take checked its frames, and
// returns the chain's head at its end and its cut checkpoint. What is wrong with
// the segment itself is a [vault.SegmentError].
func checkSegment(ctx context.Context, v vault.Vault, name string, id vault.Segment) (head record.ChainHead, end record.Frame, err error) {
	r, closer, err := vault.OpenSegment(ctx, v, name)
	if err != nil {
		return head, end, err
	}
	defer closer.Close()
	seq, ended := id.First-1, false
	head = r.Header().Head
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return head, end, err
		}
		bad := func(format string, args ...any) error {
			return &vault.SegmentError{Name: name, Offset: r.Offset(), Err: fmt.Errorf(format, args...)}
		}
		switch {
		case ended:
			return head, end, bad("a %s frame after the cut checkpoint", f.Kind)
		case f.Kind == record.KindKey:
			return head, end, bad("a key frame within a segment")
		case f.Kind == record.KindCheckpoint:
			if want, err := record.CheckpointHead(&f); err != nil || f.Sequence != seq || want != head {
				return head, end, bad("the checkpoint for record %d does not fit the chain up to record %d", f.Sequence, seq)
			}
			ended, end = f.Flags&record.FlagCut != 0, f
		case f.Sequence != seq+1:
			return head, end, bad("record %d follows on record %d", f.Sequence, seq)
		case f.Kind == vault.KindAbsent:
			seq, head = f.Sequence, head.Next([len(head)]byte(f.Body))
		default:
			seq, head = f.Sequence, head.Next(f.Leaf())
		}
	}
	if !ended || seq != id.Last {
		return head, end, &vault.SegmentError{Name: name, Offset: r.Offset(), Err: fmt.Errorf("ends at record %d (cut checkpoint: %t), its name says %d", seq, ended, id.Last)}
	}
	return head, end, ctx.Err()
}

// Held implements [transport.Stream].
func (st *stream) Held() uint64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.durable
}

// Take implements [transport.Stream].
func (st *stream) Take(ctx context.Context, raw []byte) (uint64, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err == nil {
		st.err = st.sink.Err()
	}
	if st.err != nil {
		return st.durable, st.err
	}
	if err := st.take(ctx, raw); err != nil {
		st.err = err // what is in the spool may be half of something
		return st.durable, err
	}
	return st.durable, nil
}

func (st *stream) take(ctx context.Context, raw []byte) error {
	f, n, err := record.Decode(raw)
	if err == nil && n != len(raw) {
		err = fmt.Errorf("%d bytes follow on a frame of %d", len(raw)-n, n)
	}
	if err != nil {
		return st.wrong(fmt.Errorf("after record %d: %w", st.seq, err))
	}
	switch {
	case f.Kind == record.KindKey:
		return st.key(ctx, &f)
	case f.Kind == record.KindCheckpoint:
		return st.checkpoint(ctx, &f)
	}
	return st.leaf(&f)
}

// key stores a wrapped key at once: it comes before the records that need it,
// so before their segment too.
func (st *stream) key(ctx context.Context, f *record.Frame) error {
	if f.Key == (record.KeyID{}) || f.Sequence != 0 {
		return st.wrong(fmt.Errorf("after record %d: a key frame with key id %x and sequence %d", st.seq, f.Key, f.Sequence))
	}
	switch erased, err := st.erased(ctx, f.Key); {
	case err != nil:
		return err
	case erased:
		// What is sealed with it goes on to be stored: it is evidence that
		// nobody can read.
		st.sink.stats.erased.Add(1)
		st.sink.log.Warn("sink: a key came again that was erased, it is not stored", "gateway", st.gateway, "epoch", st.epoch, "key", hex.EncodeToString(f.Key[:]))
		return nil
	}
	if err := st.create(ctx, vault.KeyName(st.epoch, f.Key), bytes.NewReader(f.Raw())); err != nil {
		return err
	}
	st.sink.stats.keys.Add(1)
	return nil
}

// erased reports whether a key has a tombstone, so that a journal or a
// transport that delivers its frame again does not bring it back.
func (st *stream) erased(ctx context.Context, key record.KeyID) (bool, error) {
	r, err := st.sink.c.Vault.Open(ctx, vault.TombstoneName(st.epoch, key))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sink: %w", err)
	}
	return true, r.Close()
}

func (st *stream) leaf(f *record.Frame) error {
	switch {
	case f.Sequence == 0:
		return st.wrong(fmt.Errorf("after record %d: a %s frame without a sequence", st.seq, f.Kind))
	case f.Sequence <= st.durable:
		st.sink.stats.duplicates.Add(1)
		return nil
	case f.Sequence <= st.seq:
		return st.again(f)
	case f.Sequence > st.seq+1:
		return st.wrong(fmt.Errorf("record %d came, but %d is next (the vault holds the epoch up to %d): records are missing or out of order", f.Sequence, st.seq+1, st.durable))
	}
	if d := st.decided; d != nil && f.Sequence > d.Last {
		return st.forked()
	}
	if st.seq == st.durable {
		if err := st.spool.reset(); err != nil {
			return fmt.Errorf("sink: spool: %w", err)
		}
		st.day, st.classes = vault.Day(f.Time), map[string]*held{}
	} else if err := st.spool.mark(st.head, st.checked); err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	if err := st.count(f); err != nil {
		return err
	}
	if f.Sequence == 1 && f.Kind == record.KindOpen {
		st.open = bytes.Clone(f.Raw())
	}
	if err := st.spool.append(f.Raw()); err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	st.seq, st.head, st.checked = f.Sequence, st.head.Next(f.Leaf()), false
	return nil
}

// at returns the chain's head after the record, from durable to seq, and
// whether a checkpoint followed it.
func (st *stream) at(sequence uint64) (record.ChainHead, bool, error) {
	switch sequence {
	case st.seq:
		return st.head, st.checked, nil
	case st.durable:
		return st.base, true, nil
	}
	head, checked, err := st.spool.marked(sequence - st.durable - 1)
	if err != nil {
		err = fmt.Errorf("sink: spool: %w", err)
	}
	return head, checked, err
}

// again handles a record that is in the spool: it must be the same.
func (st *stream) again(f *record.Frame) error {
	before, _, err := st.at(f.Sequence - 1)
	if err != nil {
		return err
	}
	after, _, err := st.at(f.Sequence)
	if err != nil {
		return err
	}
	if before.Next(f.Leaf()) != after {
		return st.wrong(fmt.Errorf("record %d came twice with different content", f.Sequence))
	}
	st.sink.stats.duplicates.Add(1)
	return nil
}

func (st *stream) checkpoint(ctx context.Context, f *record.Frame) error {
	claimed, err := record.CheckpointHead(f)
	if err != nil {
		return st.wrong(err)
	}
	cut := f.Flags&record.FlagCut != 0
	if f.Sequence < st.durable {
		st.sink.stats.duplicates.Add(1)
		return nil
	}
	if f.Sequence > st.seq {
		return st.wrong(fmt.Errorf("a checkpoint for record %d came, but the last record is %d: records are missing or out of order", f.Sequence, st.seq))
	}
	head, checked, err := st.at(f.Sequence)
	if err != nil {
		return err
	}
	switch {
	case claimed != head:
		return st.wrong(fmt.Errorf("the checkpoint for record %d states the chain's head %x, its records give %x", f.Sequence, claimed, head))
	case f.Sequence == st.durable:
		if f.Sequence == 0 {
			return st.wrong(errors.New("a checkpoint came before the first record"))
		}
		st.sink.stats.duplicates.Add(1)
		return nil
	case f.Sequence < st.seq && (cut || !checked):
		return st.wrong(fmt.Errorf("a checkpoint for record %d came after record %d: out of order", f.Sequence, st.seq))
	case checked && !cut:
		st.sink.stats.duplicates.Add(1)
		return nil
	}
	if err := st.spool.append(f.Raw()); err != nil {
		return fmt.Errorf("sink: spool: %w", err)
	}
	st.checked = true
	if !cut {
		st.remember(f)
		return st.follow(ctx)
	}
	if err := st.logs(f); err != nil {
		return err
	}
	if st.decided != nil { // and the records up to there are not in the vault yet
		return st.forked()
	}
	switch d, err := st.decision(ctx); {
	case err != nil:
		return err
	case d != nil:
		return fmt.Errorf("sink: epoch %s, record %d: %w", st.epoch, d.Last, errDecided)
	}
	first := st.durable + 1
	if err := st.store(ctx); err != nil {
		return err
	}
	return st.toLog(ctx, first, f)
}

// logs refuses a cut checkpoint that would stand in the log for another epoch.
func (st *stream) logs(f *record.Frame) error {
	if st.sink.c.Log == nil {
		return nil
	}
	s, err := record.Stated(f)
	if err == nil && (s.Gateway != st.gateway || s.Epoch != st.epoch) {
		err = fmt.Errorf("the checkpoint for record %d is of epoch %s of gateway %s", f.Sequence, s.Epoch, s.Gateway)
	}
	if err != nil {
		return st.wrong(err)
	}
	return nil
}

// toLog puts the cut checkpoint of a stored segment into the log.
func (st *stream) toLog(ctx context.Context, first uint64, f *record.Frame) error {
	if st.sink.c.Log == nil {
		return nil
	}
	if err := st.logs(f); err != nil {
		return err
	}
	err := st.sink.c.Log.Append(ctx, st.epoch, first, f.Sequence, bytes.Clone(f.Body))
	if err != nil && ctx.Err() == nil {
		return st.sink.stop(st, err)
	}
	return err
}

// store makes the spool's segment durable: its parts first, for what follows a
// segment in the vault takes them to be there.
func (st *stream) store(ctx context.Context) error {
	began := time.Now()
	main := st.main()
	if st.classes[main] == nil {
		st.classes[main] = &held{} // absences only
	}
	if st.open != nil {
		// It outlives its segment: a verifier needs the key that it names.
		if err := st.create(ctx, vault.EpochName(st.gateway, st.epoch), bytes.NewReader(st.open)); err != nil {
			return err
		}
		st.open = nil
	}
	var size int64
	for _, class := range slices.Sorted(maps.Keys(st.classes)) {
		if class == main {
			continue
		}
		n, err := st.write(ctx, class, true)
		if err != nil {
			return err
		}
		size += n
	}
	n, err := st.write(ctx, main, false)
	if err != nil {
		return err
	}
	size += n
	records := st.seq - st.durable
	st.sink.stats.segments.Add(1)
	st.sink.stats.records.Add(records)
	st.sink.stats.bytes.Add(uint64(size))
	st.sink.log.Debug("sink: segment stored", "gateway", st.gateway, "epoch", st.epoch, "sequence", st.seq, "class", main,
		"parts", len(st.classes)-1, "records", records, "bytes", size, "took", time.Since(began))
	st.durable, st.base = st.seq, st.head
	return nil
}

// write stores the segment, or the part of a class, and returns its size.
func (st *stream) write(ctx context.Context, class string, part bool) (int64, error) {
	id := vault.Segment{Day: st.day, Gateway: st.gateway, Epoch: st.epoch, First: st.durable + 1, Last: st.seq, Class: class, Part: part}
	name, err := vault.SegmentName(id)
	if err != nil {
		return 0, st.wrong(err)
	}
	c := st.classes[class]
	h := vault.Header{
		Gateway: st.gateway, Epoch: st.epoch, First: id.First, Last: id.Last, Head: st.base,
		Class: class, Expires: c.expires(), Records: c.records, Part: part,
	}
	if !part {
		for _, other := range slices.Sorted(maps.Keys(st.classes)) {
			if other != class {
				h.Classes = append(h.Classes, other)
			}
		}
	}
	head, err := h.Append(nil)
	if err != nil {
		return 0, st.wrong(err)
	}
	frames, err := st.spool.content()
	if err != nil {
		return 0, fmt.Errorf("sink: spool: %w", err)
	}
	if len(st.classes) > 1 {
		frames = &ofClass{r: bufio.NewReaderSize(frames, spoolBuffer), header: h}
	}
	r := &counter{r: io.MultiReader(bytes.NewReader(head), frames)}
	if err := st.create(ctx, name, r); err != nil {
		return 0, err
	}
	return r.n, nil
}

func (st *stream) create(ctx context.Context, name string, r io.Reader) error {
	err := st.sink.c.Vault.Create(ctx, name, r)
	if errors.Is(err, vault.ErrConflict) && !st.salvaging {
		return st.sink.stop(st, err)
	}
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	return nil
}

// wrong refuses the epoch with an alarm.
func (st *stream) wrong(cause error) error {
	err := fmt.Errorf("%w: gateway %s, epoch %s: %w", transport.ErrRefused, strings.ToValidUTF8(st.gateway, "?"), st.epoch, cause)
	st.sink.alarm(st, err)
	return err
}

func (st *stream) supersede() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.close(fmt.Errorf("sink: a newer connection took over epoch %s", st.epoch))
}

// End implements [transport.Stream].
func (st *stream) End() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.close(errors.New("sink: the stream has ended"))
}

func (st *stream) close(err error) {
	if st.err == nil {
		st.err = err
	}
	if st.spool != nil {
		st.spool.close()
		st.spool = nil
	}
	s := st.sink
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := (streamKey{st.gateway, st.epoch}); s.streams[key] == st {
		delete(s.streams, key)
	}
}
