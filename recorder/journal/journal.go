package journal

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/record"
)

// recoverySession is the session under which interrupted outcomes are sealed:
// the real one is not known to a gateway, which cannot open what it sealed.
const recoverySession = "recovery"

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	cfg    Config
	fs     FS
	log    *slog.Logger
	lock   io.Closer
	epoch  record.Epoch
	live   *epochLog
	sealer *record.Sealer
	key    *record.EpochKey
	opened time.Time
	// checkpointSize is what a checkpoint takes at most.
	checkpointSize int64

	refused   atomic.Uint64
	exchanges atomic.Uint64 // without a durable outcome

	wake   chan struct{} // of capacity 1: the queue has entries, or roll is set
	failed chan struct{}
	done   chan struct{} // the writer has ended
	writer writer

	finish   sync.Once
	finished *record.Ticket
	stopBeat chan struct{}
	beatDone chan struct{}
	freeing  sync.Mutex // one goroutine removes files; taken before mu

	mu       sync.Mutex // guards what follows, and logs and segments
	err      error
	stopping bool // the close record is queued
	ended    bool // the close record is durable
	released bool
	roll     bool   // the writer is to begin another segment
	next     uint64 // sequence
	queue    []*entry
	queued   int64 // bytes charged for entries that are not durable
	waiting  int   // entries that are not durable
	disk     int64 // bytes in segments that are not freed
	epochs   []*epochLog
	newest   *segment
	running  map[uint64]running // exchanges that have begun and have no outcome
	changed  chan struct{}      // closed at the next change, nil when no tail waits
	stats    Stats
}

// running is the data key that an exchange began with. It keeps it to its end,
// so that what is erased with a session's keys is all of its exchanges.
type running struct {
	session string
	key     *record.DataKey
}

// Stats are a journal's figures. Sizes are in bytes; counts are since Open.
type Stats struct {
	Held    int64 // in segments that are not freed, and queued
	Queued  int64
	Limit   int64
	Reserve int64

	Appended uint64 // sequences given
	Records  uint64 // durable
	Commits  uint64 // writes with their sync
	Bytes    uint64 // written
	Full     uint64 // appends that got ErrFull
	Refused  uint64 // see Refuse

	Waiters   int    // appends that are not durable yet
	Exchanges uint64 // without a durable outcome
	Epochs    int    // with segments that are not freed, this one too
	Segments  int    // that are not freed
	Last      uint64 // last durable sequence of this epoch
	Acked     uint64 // last acknowledged sequence of this epoch
	// Files has, for each epoch with files that are not freed, the first
	// sequence in the oldest of them.
	Files map[string]uint64
}

// Open takes the journal's lock, recovers the epochs of earlier processes and
// begins another. When it returns, the open record and the interrupted outcomes
// of what the last process left open are durable. It fails with [ErrLocked]
// where another process has the journal, and with a [DamageError] where
// acknowledged records cannot be read.
func Open(ctx context.Context, c Config) (*Journal, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	j := &Journal{
		cfg: c, fs: c.FS, log: c.Logger, opened: c.Now(), next: 1,
		wake: make(chan struct{}, 1), failed: make(chan struct{}), done: make(chan struct{}),
		stopBeat: make(chan struct{}), beatDone: make(chan struct{}), running: map[uint64]running{},
	}
	if err := j.fs.Mkdir(c.Dir); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if j.lock, err = j.fs.Lock(filepath.Join(c.Dir, "lock")); err != nil {
		return nil, fmt.Errorf("journal %s: %w: each gateway process needs a journal folder of its own", c.Dir, err)
	}
	if err := j.open(ctx); err != nil {
		return nil, errors.Join(err, j.lock.Close())
	}
	return j, nil
}

func (j *Journal) open(ctx context.Context) error {
	if err := j.fs.SyncDir(filepath.Dir(j.cfg.Dir)); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	last, err := j.recoverAll(ctx)
	if err != nil {
		return err
	}
	at := j.opened
	if last.log != nil && !at.After(last.log.id.Time().Add(time.Millisecond)) {
		// Epochs sort by time, also when the clock was set back.
		j.log.Warn("clock stands before the last epoch's beginning", "now", at, "epoch", last.log.id.String())
		at = last.log.id.Time().Add(time.Millisecond)
	}
	if j.epoch, err = record.NewEpoch(at, nil); err != nil {
		return err
	}
	j.live = &epochLog{id: j.epoch, dir: filepath.Join(j.cfg.Dir, j.epoch.String()), gateway: j.cfg.Gateway}
	j.sealer, err = record.NewSealer(record.SealerConfig{Epoch: j.epoch, Tenant: j.cfg.Tenant, Sessions: j.cfg.Sessions})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if j.key, err = record.NewEpochKey(j.cfg.Gateway, j.epoch, nil); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	first, err := j.firstDrafts(last)
	if err != nil {
		return err
	}
	classes := slices.Collect(maps.Keys(j.cfg.Retention))
	for i := range first { // a class that is configured no more
		if class := first[i].Class; class != "" && !slices.Contains(classes, class) {
			classes = append(classes, class)
		}
	}
	if j.checkpointSize = checkpointSize; len(classes) > record.MaxClasses {
		return fmt.Errorf("journal: the last epoch left exchanges of so many retention classes open that with those configured there are %d, at most %d have room: start once with fewer", len(classes), record.MaxClasses)
	}
	for _, class := range classes {
		j.checkpointSize += classSize + int64(len(class))
	}
	if err := j.fs.Mkdir(j.live.dir); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := j.fs.SyncDir(j.cfg.Dir); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	w := &j.writer
	w.stated = true
	w.head, w.open, w.lastCut = record.NewChain(j.epoch, j.cfg.Gateway), map[uint64]exchange{}, time.Now()
	if err := j.rotate(j.cfg.SegmentSize); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.epochs = append(j.epochs, j.live)
	go j.run()
	t := j.append(first, appendOptions{force: true})
	if err := t.Wait(ctx); err != nil {
		j.abandon()
		return err
	}
	// What was wholly acknowledged before goes now that this epoch has taken
	// over what it left open.
	for _, log := range append([]*epochLog(nil), j.epochs[:len(j.epochs)-1]...) {
		if err := j.free(log); err != nil {
			j.abandon()
			return err
		}
	}
	go j.beat()
	return nil
}

// abandon ends the writer of a journal that Open does not return.
func (j *Journal) abandon() {
	close(j.stopBeat)
	close(j.beatDone)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := j.Finish(ctx, "open failed"); err != nil {
		j.log.Warn("journal did not end", "error", err)
	}
}

// recoverAll recovers the older epochs, and returns the last that has records.
func (j *Journal) recoverAll(ctx context.Context) (last recovered, err error) {
	names, err := j.fs.ReadDir(j.cfg.Dir)
	if err != nil {
		return last, fmt.Errorf("journal: %w", err)
	}
	for _, name := range names { // sorted, so oldest first
		id, err := record.ParseEpoch(name)
		if err != nil || id.String() != name {
			if name != "lock" {
				j.log.Warn("journal folder holds a file that is not the journal's", "file", filepath.Join(j.cfg.Dir, name))
			}
			continue
		}
		r, err := j.recoverEpoch(ctx, id)
		if err != nil {
			return last, fmt.Errorf("journal: recover epoch %s: %w", name, err)
		}
		if r.log == nil {
			continue
		}
		for _, seg := range r.log.segments {
			j.disk += seg.used
			if j.newest != nil {
				j.newest.next = seg
			}
			j.newest = seg
		}
		j.epochs = append(j.epochs, r.log)
		last = r
		j.log.Info("journal epoch recovered", "epoch", name, "sequence", r.sequence, "closed", r.closed, "open_exchanges", len(r.position.open), "truncated_bytes", r.truncated)
	}
	return last, nil
}

func rootHex(t record.Tree) string {
	root := t.Root()
	return hex.EncodeToString(root[:])
}

// firstDrafts are the open record and the outcomes of what the last epoch left
// open. They are one append, and so one commit: a later recovery that finds this
// epoch knows that the earlier ones are dealt with.
func (j *Journal) firstDrafts(last recovered) ([]draft, error) {
	body := record.Open{Gateway: j.cfg.Gateway, Version: j.cfg.Version, Opened: j.opened.UTC(), Key: j.key.Public()}
	if j.cfg.Deployment != nil {
		var err error
		c := record.Certificate{Gateway: j.cfg.Gateway, Epoch: j.epoch, Key: j.key.Public(), Opened: body.Opened}
		if body.Certificate, err = c.Certify(j.cfg.Deployment); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	if last.log != nil {
		body.Previous = &record.EpochEnd{
			Epoch: last.log.id.String(), Sequence: last.sequence, Head: hex.EncodeToString(last.head[:]), Root: rootHex(last.tree),
			Closed: last.closed, Truncated: last.truncated,
		}
		if last.stated {
			body.Previous.Expiry = last.until.String()
		}
	}
	b, err := record.Marshal(body)
	if err != nil {
		return nil, err
	}
	drafts := []draft{{Draft: record.Draft{Kind: record.KindOpen, Body: b}}}
	cause := "gateway crashed"
	if last.closed {
		cause = "gateway stopped"
	}
	for _, n := range sortedKeys(last.position.open) {
		old := record.ID{Epoch: last.log.id, Sequence: n}
		x := last.position.open[n]
		d := draft{alone: true, Draft: record.Draft{
			Kind: record.KindOutcome, Session: recoverySession, Class: x.class,
			Render: func(id record.ID) ([]byte, error) {
				o := record.Outcome{OCSF: record.NewOCSF(record.ClassDatastore, record.ActivityOther, j.clock(), id.String(), recoverySession)}
				o.Succeeded(false)
				o.Verbatim = record.OutcomeDetail{
					Session: recoverySession, Result: record.ResultInterrupted, Cause: cause, Interrupted: old.String(),
				}
				return record.Marshal(o)
			},
		}}
		if _, ok := j.cfg.Retention[x.class]; !ok {
			d.expiry = &x.expiry // the class is no longer configured
		}
		drafts = append(drafts, d)
	}
	return drafts, nil
}

// clock is the wall clock at Open plus the time since: it does not jump.
func (j *Journal) clock() time.Time { return j.opened.Add(j.cfg.Now().Sub(j.opened)).UTC() }

// Epoch returns this process's epoch.
func (j *Journal) Epoch() record.Epoch { return j.epoch }

// SetTenant makes the journal wrap data keys to another public keyset from now
// on, while it runs: an exchange that begins after it returns is sealed with a
// data key that only that keyset's private part opens. One that has begun keeps
// its data key to its end. After an error nothing has changed.
func (j *Journal) SetTenant(public *keyset.Handle) error {
	if err := j.sealer.SetTenant(public); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Err returns nil while the journal is healthy, and for good the error that
// ended it.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Failed is closed when the journal fails; Err then says why.
func (j *Journal) Failed() <-chan struct{} { return j.failed }

// Refuse counts a request that was refused while nothing could be recorded. The
// count stands in heartbeats and in the close record.
func (j *Journal) Refuse() { j.refused.Add(1) }

// Stats returns the journal's figures.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Held, s.Queued, s.Limit, s.Reserve = j.disk+j.queued, j.queued, j.cfg.Limit, j.cfg.Reserve
	s.Appended, s.Refused, s.Exchanges = j.next-1, j.refused.Load(), j.exchanges.Load()
	s.Waiters, s.Epochs, s.Files = j.waiting, len(j.epochs), make(map[string]uint64, len(j.epochs))
	for _, log := range j.epochs {
		s.Segments += len(log.segments)
		if len(log.segments) > 0 {
			s.Files[log.id.String()] = log.segments[0].first
		}
	}
	s.Last, s.Acked = j.live.last, j.live.acked
	return s
}

// Finish writes the close record with a cut and waits until it is durable.
// Append then gives [record.ErrClosed], and tails end with io.EOF, but
// Acknowledge goes on until Close: so a gateway that stops can still ship what
// it holds.
func (j *Journal) Finish(ctx context.Context, reason string) error {
	j.finish.Do(func() {
		body, err := record.Marshal(record.Close{Reason: reason, Refused: j.refused.Load()})
		if err != nil { // a struct of a string and a number
			body = nil
		}
		j.finished = j.append([]draft{{Draft: record.Draft{Kind: record.KindClose, Body: body}}}, appendOptions{force: true, final: true})
	})
	if err := j.finished.Wait(ctx); err != nil {
		return err
	}
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close does what Finish does, unless it was done, ends the journal's
// goroutines and gives its folder free for another process. Of a journal that
// failed it returns the error. When ctx ends first, the folder stays locked.
func (j *Journal) Close(ctx context.Context, reason string) error {
	err := j.Finish(ctx, reason)
	j.mu.Lock()
	if j.released {
		j.mu.Unlock()
		return err
	}
	broken := j.err != nil
	j.mu.Unlock()
	if err != nil && !broken {
		return err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	j.freeing.Lock() // an Acknowledge that is under way ends first
	defer j.freeing.Unlock()
	j.mu.Lock()
	again := j.released
	j.released = true
	j.mu.Unlock()
	if again {
		return err
	}
	close(j.stopBeat)
	<-j.beatDone
	return errors.Join(err, j.lock.Close())
}

// beat writes heartbeats until the journal ends.
func (j *Journal) beat() {
	defer close(j.beatDone)
	if j.cfg.Heartbeat < 0 {
		return
	}
	tick := time.NewTicker(j.cfg.Heartbeat)
	defer tick.Stop()
	var last *record.Ticket
	for {
		select {
		case <-tick.C:
		case <-j.stopBeat:
			return
		case <-j.done:
			return
		}
		if last != nil {
			select {
			case <-last.Done():
			default:
				continue // the disk is slow: one that waits is enough
			}
		}
		body, err := record.Marshal(record.Heartbeat{Open: j.openExchanges(), Refused: j.refused.Load()})
		if err != nil {
			j.log.Error("heartbeat was not made", "error", err)
			continue
		}
		last = j.append([]draft{{Draft: record.Draft{Kind: record.KindHeartbeat, Body: body, Reserved: true}}}, appendOptions{half: true})
	}
}

func (j *Journal) openExchanges() uint64 {
	if j.cfg.Open != nil {
		return j.cfg.Open()
	}
	return j.exchanges.Load()
}

// oldest returns the first segment that is not freed. The mutex must be held.
func (j *Journal) oldest() *segment {
	for _, log := range j.epochs {
		if len(log.segments) > 0 {
			return log.segments[0]
		}
	}
	return j.newest
}

// Acknowledge says that everything of the epoch up to the sequence is durable
// elsewhere, keys too, and frees the segment files that hold nothing else. An
// epoch that the journal does not hold (any more) needs nothing. A sequence that
// was never written is an error: somebody mixed up journals.
func (j *Journal) Acknowledge(e record.Epoch, sequence uint64) error {
	j.mu.Lock()
	if j.released {
		j.mu.Unlock()
		return fmt.Errorf("acknowledge: %w", record.ErrClosed)
	}
	var log *epochLog
	for _, l := range j.epochs {
		if l.id == e {
			log = l
		}
	}
	if log == nil {
		j.mu.Unlock()
		return nil
	}
	if sequence > log.last {
		last := log.last
		j.mu.Unlock()
		return fmt.Errorf("acknowledge: sequence %d of epoch %s, whose last is %d: this is not the journal that it came from", sequence, e, last)
	}
	log.acked = max(log.acked, sequence)
	j.mu.Unlock()
	return j.free(log)
}

// free removes the files of an epoch that are wholly acknowledged, oldest first
// and each durably, so that a crash leaves no gap.
func (j *Journal) free(log *epochLog) error {
	j.freeing.Lock()
	defer j.freeing.Unlock()
	for {
		j.mu.Lock()
		if j.released {
			j.mu.Unlock()
			return fmt.Errorf("free: %w", record.ErrClosed)
		}
		var seg *segment
		if len(log.segments) > 0 {
			seg = log.segments[0]
		}
		// The live epoch keeps its last segment: recovery needs its state.
		if seg != nil && !seg.full && seg.used > j.cfg.SegmentSize && seg.last <= log.acked {
			// A large commit went into it. The journal may be full with what it
			// holds, and nothing would be appended that makes it end.
			j.roll = true
			j.signal()
		}
		if seg == nil || !seg.full || seg.last > log.acked || log == j.live && len(log.segments) == 1 {
			j.mu.Unlock()
			return nil
		}
		seg.gone = true // tails pass it by from here on
		only := len(log.segments) == 1
		j.notify()
		j.mu.Unlock()

		var err error
		if only {
			err = j.removeEpoch(log.dir)
		} else {
			err = j.removeSegment(seg)
		}
		if err != nil {
			return fmt.Errorf("journal: free %s: %w", seg.name, err)
		}
		j.mu.Lock()
		log.segments = log.segments[1:]
		j.disk -= seg.used
		if only {
			for i, l := range j.epochs {
				if l == log {
					j.epochs = append(j.epochs[:i:i], j.epochs[i+1:]...)
					break
				}
			}
		}
		j.mu.Unlock()
	}
}

func (j *Journal) removeSegment(seg *segment) error {
	if err := j.fs.Remove(seg.name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// A state file may outlive its segment, but not the other way round.
	if err := j.fs.SyncDir(seg.log.dir); err != nil {
		return err
	}
	if err := j.fs.Remove(stateName(seg.log.dir, seg.first)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// signal wakes the writer.
func (j *Journal) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// closing closes a file after an error, which is the one that counts.
func closing(f io.Closer, err error) error { return errors.Join(err, f.Close()) }
