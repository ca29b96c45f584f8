// Package sinklog is the sink's own log: the cut checkpoints of all epochs, in
// the order in which their segments came into the vault, as one Merkle tree with
// signed checkpoints that witnesses cosign. It makes an end that is cut off, an
// epoch that is dropped and a vault that is rolled back visible up to the last
// cosigned checkpoint.
//
// An entry is the signed note of one cut checkpoint; its leaf is the RFC 6962
// hash of these bytes. The objects, all in the vault and none ever overwritten:
//
//	log/checkpoint/SIZE        the signed checkpoint (C2SP tlog-checkpoint)
//	log/cosigned/SIZE-TIME     the same with cosignatures, the log's own included,
//	                           which states the time; one each interval, also idle
//	log/tile/L/N[.p/W]         hashes (C2SP tlog-tiles)
//	log/tile/entries/N[.p/W]   entries
//	log/stage/SIZE             the step from SIZE: the next checkpoint and its entries
//
// The rule of this folder: there is one step from each size. It is decided by the
// creation of the stage, whose name is taken only once; whoever finds it taken,
// be it after a crash or because another sink was faster, takes that step. All
// else follows from the stage, byte for byte, so it can be done again at any
// time. A checkpoint is written when all that it needs is there, and nothing is
// shown to a witness before. So no crash, and no second sink, makes a fork.
package sinklog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

const (
	// DefaultInterval is how often the log commits and asks for cosignatures. A
	// record is cosigned after the gateway's next cut (5 s by default, 15 s at
	// most), its way into the vault, this, and the witnesses' answers: within
	// DefaultBehind.
	DefaultInterval = 30 * time.Second
	// DefaultTimeout is how long the witnesses may take.
	DefaultTimeout = 10 * time.Second

	queueSize  = 16 << 10
	finalGrace = 15 * time.Second
	minRetry   = 500 * time.Millisecond
)

// ErrTooLong means that an object of the log is longer than it can be.
var ErrTooLong = errors.New("object is too long")

// ErrStopped means that the log takes no more.
var ErrStopped = errors.New("the sink's log has stopped")

// Config configures a [Log].
type Config struct {
	Vault vault.Vault
	// Key signs the log; its name is the origin. The log of another key must
	// not lie in the vault.
	Key *witness.Key
	// Witnesses are asked for cosignatures, and Quorum of them is wanted: less
	// is an alarm and stops nothing. 0 is all of them.
	Witnesses []*witness.Client
	Quorum    int
	Interval  time.Duration // 0: DefaultInterval
	Timeout   time.Duration // of the witnesses; 0: DefaultTimeout
	// Delay, where set, is how long after a new entry the log is committed and
	// cosigned, not only at the next Interval. Each costs some objects.
	Delay time.Duration
	// Behind is how long a record may wait for its cosignature before that is an
	// alarm; 0: DefaultBehind.
	Behind time.Duration
	Logger *slog.Logger
	// Alarm, where set, is called when something begins to be wrong, not each
	// time it still is. It must not block.
	Alarm func(error)
	Now   func() time.Time // nil: time.Now
}

// cut is a segment that is in the vault, with its cut checkpoint.
type cut struct {
	Epoch       record.Epoch
	First, Last uint64
	Note        []byte
}

// Stats are counts since the log was opened, and how it stands.
type Stats struct {
	Size     int64 // entries
	Pending  int   // cuts that are not in the log yet
	Commits  uint64
	Failures uint64 // commits and cosigned checkpoints that could not be written
	// CosignedSize is the size of the last checkpoint that a quorum cosigned,
	// CosignedTime when. Without witnesses it is the log's own word.
	CosignedSize    int64
	CosignedTime    time.Time
	WitnessFailures uint64 // answers that did not come, or were no cosignature
	QuorumMissed    uint64 // checkpoints without enough cosignatures
	Forks           uint64 // answers that the witness knows another log
	Alarms          uint64
	// Behind is how long the oldest record that is not cosigned has waited since
	// its gateway cut it, or how long ago the log was cosigned. Late counts how
	// often that became more than it may; IsLate says that it is now.
	Behind time.Duration
	Late   uint64
	IsLate bool
}

// Log is the log of one vault. Append and Stats are safe for concurrent use.
type Log struct {
	c     Config
	log   *slog.Logger
	queue chan cut
	done  chan struct{} // closed when Run has ended

	mu    sync.Mutex
	stats Stats
	lag   lag
	err   error

	// What follows is Run's alone.
	tree     tlog.Tree
	signed   []byte            // the checkpoint of tree
	bundle   []byte            // the entries of the last bundle, if it is not full
	tiles    map[string][]byte // by name
	staged   *step             // decided, but not written whole
	logged   map[record.Epoch]uint64
	pending  []cut
	judged   map[record.Epoch]uint64 // up to where a gap was looked into
	wrong    map[string]bool         // what has been alarmed and still is
	awaiting time.Duration           // before the next try
}

// Open reads how far the log in the vault is, and finishes a step that was
// begun. Call Run then.
func Open(ctx context.Context, c Config) (*Log, error) {
	if c.Vault == nil || c.Key == nil {
		return nil, errors.New("log: a vault and a key are needed")
	}
	if c.Quorum == 0 {
		c.Quorum = len(c.Witnesses)
	}
	if c.Quorum < 0 || c.Quorum > len(c.Witnesses) {
		return nil, fmt.Errorf("log: a quorum of %d of %d witnesses", c.Quorum, len(c.Witnesses))
	}
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Behind <= 0 {
		c.Behind = DefaultBehind
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Log{
		c: c, log: c.Logger, queue: make(chan cut, queueSize), done: make(chan struct{}), tiles: map[string][]byte{},
		logged: map[record.Epoch]uint64{}, judged: map[record.Epoch]uint64{}, wrong: map[string]bool{},
	}
	l.lag.cosigned = c.Now()
	if err := l.load(ctx); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return l, nil
}

// Origin returns the log's name.
func (l *Log) Origin() string { return l.c.Key.Name() }

// Append takes the cut checkpoint, a signed note, of a segment that is durable
// in the vault and holds these records. It keeps the note. It waits while the log
// is too far behind. After an error the sink must not go on.
func (l *Log) Append(ctx context.Context, e record.Epoch, first, last uint64, note []byte) error {
	c := cut{e, first, last, note}
	if err := l.Err(); err != nil {
		return err
	}
	select {
	case l.queue <- c:
		return nil
	default:
	}
	select {
	case l.queue <- c:
		return nil
	case <-l.done:
		return cmpErr(l.Err(), ErrStopped)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Err returns why the log stopped for good, nil while it works.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Stats returns the counts of now.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Pending += len(l.queue)
	s.Behind, s.IsLate = l.behind(l.c.Now()), l.lag.late
	return s
}

func (l *Log) count(f func(*Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.stats)
	l.stats.Size, l.stats.Pending = l.tree.N, len(l.pending)
}

// alarm says that something is wrong, once until it is right again.
func (l *Log) alarm(what string, err error) {
	if l.wrong[what] {
		return
	}
	l.wrong[what] = true
	l.count(func(s *Stats) { s.Alarms++ })
	l.log.Error("log: alarm", "about", what, "error", err)
	if l.c.Alarm != nil {
		l.c.Alarm(err)
	}
}

func (l *Log) right(what string) {
	if l.wrong[what] {
		delete(l.wrong, what)
		l.log.Info("log: right again", "about", what)
	}
}

// fail ends the log for good.
func (l *Log) fail(err error) error {
	err = fmt.Errorf("log: %w", err)
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.alarm("log", err)
	return err
}

// permanent reports whether trying again is of no use: what the vault holds is
// not what this log wrote.
func permanent(err error) bool {
	var broken *brokenError
	return errors.Is(err, vault.ErrConflict) || errors.As(err, &broken)
}

// brokenError says that an object of the log is wrong.
type brokenError struct {
	name string
	err  error
}

func (e *brokenError) Error() string { return fmt.Sprintf("%s: %v", e.name, e.err) }
func (e *brokenError) Unwrap() error { return e.err }

func broken(name, format string, args ...any) error {
	return &brokenError{name, fmt.Errorf(format, args...)}
}

func (l *Log) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	return Read(ctx, l.c.Vault, name, limit)
}

// Opener is the part of a vault that gives objects.
type Opener interface {
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// Read reads an object of at most so many bytes.
func Read(ctx context.Context, v Opener, name string, limit int64) ([]byte, error) {
	r, err := v.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, broken(name, "%w: more than %d bytes", ErrTooLong, limit)
	}
	return b, nil
}

func (l *Log) create(ctx context.Context, name string, b []byte) error {
	return l.c.Vault.Create(ctx, name, bytes.NewReader(b))
}

// load finds the last checkpoint and goes on from there.
func (l *Log) load(ctx context.Context) error {
	l.tree.Hash = witness.EmptyRoot
	last := ""
	for name, err := range l.c.Vault.List(ctx, CheckpointPrefix) {
		if err != nil {
			return err
		}
		last = name
	}
	if last == "" {
		signed, err := note.Sign(&note.Note{Text: l.checkpoint().Text()}, l.c.Key.Signer())
		if err != nil {
			return err
		}
		l.signed = signed
		return l.follow(ctx)
	}
	size, err := ParseCheckpointName(last)
	if err != nil {
		return broken(last, "%w", err)
	}
	signed, err := l.read(ctx, last, witness.MaxCheckpoint)
	if err != nil {
		return err
	}
	c, err := l.open(signed)
	if err != nil {
		return broken(last, "%w", err)
	}
	if c.N != size {
		return broken(last, "states size %d", c.N)
	}
	l.tree, l.signed = c.Tree, signed
	// The reader checks each hash against the root.
	reader := l.reader(ctx)
	if n := c.N % TileWidth; n > 0 {
		name := BundleName(c.N/TileWidth, int(n))
		if l.bundle, err = l.read(ctx, name, MaxBundle); err != nil {
			return err
		}
		entries, err := ParseBundle(l.bundle)
		if err != nil || len(entries) != int(n) {
			return broken(name, "%d entries, want %d: %w", len(entries), n, err)
		}
		var at []int64
		for i := range n {
			at = append(at, tlog.StoredHashIndex(0, c.N-n+i))
		}
		hashes, err := reader.ReadHashes(at)
		if err != nil {
			return err
		}
		for i, e := range entries {
			if tlog.RecordHash(e) != hashes[i] {
				return broken(name, "entry %d is not the one that the checkpoint is about", c.N-n+int64(i))
			}
		}
	} else if _, err := tlog.TreeHash(c.N, reader); err != nil {
		return err
	}
	l.count(func(*Stats) {})
	return l.follow(ctx)
}

func (l *Log) checkpoint() witness.Checkpoint {
	return witness.Checkpoint{Origin: l.c.Key.Name(), Tree: l.tree}
}

// open reads a checkpoint that this log signed.
func (l *Log) open(signed []byte) (witness.Checkpoint, error) {
	v, err := note.NewVerifier(l.c.Key.LogKey())
	if err != nil {
		return witness.Checkpoint{}, err
	}
	c, _, err := witness.OpenCheckpoint(signed, v)
	if err != nil {
		return c, fmt.Errorf("%w (is the log that of another key?)", err)
	}
	return c, nil
}

// Run puts the vault's segments that are not in the log yet into it, then takes
// what Append brings, until ctx ends. It commits once more then. It returns nil
// when ctx ended, else why the log failed.
func (l *Log) Run(ctx context.Context) error {
	defer close(l.done)
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); l.watch(watching) }()
	defer func() { stop(); <-watched }()
	err := l.run(ctx)
	if err == nil || l.Err() != nil || ctx.Err() == nil {
		return err
	}
	final, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalGrace)
	defer cancel()
	l.drain()
	for len(l.pending) > 0 || l.staged != nil {
		if err := l.commit(final); err != nil {
			if permanent(err) {
				return l.fail(err)
			}
			l.log.Warn("log: the last cuts are not in the log, the next start adds them", "pending", len(l.pending), "error", err)
			break
		}
	}
	l.cosign(final)
	return nil
}

// run returns ctx's error, or why the log failed.
func (l *Log) run(ctx context.Context) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(l.c.Interval)
	defer tick.Stop()
	if err := l.work(ctx, true); err != nil {
		return err
	}
	var retry, soon <-chan time.Time
	for {
		queue := l.queue
		if len(l.pending) >= queueSize {
			queue = nil
		}
		due := false
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case c := <-queue:
			l.pending = append(l.pending, c)
			l.arrived(c)
			l.drain()
			if l.c.Delay > 0 && soon == nil {
				soon = time.After(l.c.Delay)
			}
			if len(l.pending) < TileWidth || retry != nil {
				continue
			}
		case <-soon:
			soon, due = nil, true
		case <-retry:
		case <-tick.C:
			due = true
		}
		retry = nil
		if err := l.work(ctx, due); err != nil {
			return err
		}
		if l.awaiting > 0 {
			retry = time.After(l.awaiting)
		}
	}
}

// begin looks up what is in the log, and adds what is not.
func (l *Log) begin(ctx context.Context) error {
	for {
		err := l.index(ctx)
		if err == nil {
			err = l.scan(ctx)
		}
		switch {
		case err == nil:
			l.right("scan")
			l.awaiting = 0
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case permanent(err):
			return l.fail(err)
		}
		l.count(func(s *Stats) { s.Failures++ })
		l.alarm("scan", fmt.Errorf("log: look for what is not in it yet: %w", err))
		if err := l.wait(ctx); err != nil {
			return err
		}
	}
}

func (l *Log) backoff() time.Duration {
	l.awaiting = min(max(2*l.awaiting, minRetry), l.c.Interval)
	return l.awaiting
}

func (l *Log) wait(ctx context.Context) error {
	select {
	case <-time.After(l.backoff()):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// drain takes what is in the queue, as far as there is room.
func (l *Log) drain() {
	for len(l.pending) < queueSize {
		select {
		case c := <-l.queue:
			l.pending = append(l.pending, c)
			l.arrived(c)
			continue
		default:
		}
		break
	}
	l.count(func(*Stats) {})
}

// work commits: whole bundles, or, when it is due, all, and asks for
// cosignatures then.
func (l *Log) work(ctx context.Context, due bool) error {
	err := l.commitAll(ctx, due)
	switch {
	case err == nil:
		l.awaiting = 0
		l.right("commit")
		if due {
			l.cosign(ctx)
		}
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case permanent(err):
		return l.fail(err)
	}
	l.count(func(s *Stats) { s.Failures++ })
	l.alarm("commit", fmt.Errorf("log: commit: %w", err))
	l.backoff()
	return nil
}

func (l *Log) commitAll(ctx context.Context, due bool) error {
	if due {
		if err := l.follow(ctx); err != nil { // another sink's steps
			return err
		}
	}
	if err := l.gaps(ctx); err != nil {
		return err
	}
	for l.staged != nil || len(l.pending) >= TileWidth || due && len(l.pending) > 0 {
		if err := l.commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

// take drops the pending cuts that the log has.
func (l *Log) take() {
	l.pending = slices.DeleteFunc(l.pending, func(c cut) bool { return c.Last <= l.logged[c.Epoch] })
	l.count(func(*Stats) {})
}

// commit takes one step, within one bundle.
func (l *Log) commit(ctx context.Context) error {
	if l.staged == nil {
		l.take()
		n := min(len(l.pending), int(TileWidth-l.tree.N%TileWidth))
		if n == 0 {
			return nil
		}
		// Within the batch an epoch's cuts may come twice as well.
		last := map[record.Epoch]uint64{}
		var entries [][]byte
		for _, c := range l.pending[:n] {
			if c.Last > last[c.Epoch] {
				last[c.Epoch] = c.Last
				entries = append(entries, c.Note)
			}
		}
		s, err := l.build(ctx, entries)
		if err != nil {
			return err
		}
		if s.signed, err = note.Sign(&note.Note{Text: witness.Checkpoint{Origin: l.Origin(), Tree: s.to}.Text()}, l.c.Key.Signer()); err != nil {
			return err
		}
		err = l.create(ctx, stageName(l.tree.N), s.marshal())
		if errors.Is(err, vault.ErrConflict) {
			// Decided already: by a step of this process that was thought to have
			// failed, or by another sink.
			if s, err = l.stage(ctx); err == nil && s == nil {
				err = fmt.Errorf("%s: taken, and not there", stageName(l.tree.N))
			}
		}
		if err != nil {
			return err
		}
		l.staged = s
	}
	return l.finish(ctx)
}

// follow takes all steps that are decided already.
func (l *Log) follow(ctx context.Context) error {
	for {
		if l.staged == nil {
			s, err := l.stage(ctx)
			if err != nil {
				return err
			}
			if s == nil {
				return nil
			}
			l.staged = s
		}
		if err := l.finish(ctx); err != nil {
			return err
		}
	}
}

// stage reads the step that was decided from here, nil where there is none.
func (l *Log) stage(ctx context.Context) (*step, error) {
	name := stageName(l.tree.N)
	b, err := l.read(ctx, name, maxStage)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	signed, entries, err := parseStage(b)
	if err != nil {
		return nil, broken(name, "%w", err)
	}
	// The vault is not trusted: the step must be signed by this log's key.
	c, err := l.open(signed)
	if err != nil {
		return nil, broken(name, "%w", err)
	}
	if n := int64(len(entries)); n == 0 || l.tree.N%TileWidth+n > TileWidth {
		return nil, broken(name, "%d entries from %d on", n, l.tree.N)
	}
	s, err := l.build(ctx, entries)
	if err != nil {
		return nil, err
	}
	if s.to != c.Tree {
		return nil, broken(name, "the checkpoint states %d entries with the root %s, its entries give %d and %s", c.N, c.Hash, s.to.N, s.to.Hash)
	}
	s.signed = signed
	return s, nil
}

// step goes from one checkpoint to the next.
type step struct {
	to      tlog.Tree
	signed  []byte
	entries [][]byte
	bundle  []byte
	tiles   []tlog.Tile
	data    [][]byte
}

const (
	stageMagic = "verbatim log stage 1 "
	maxStage   = witness.MaxCheckpoint + MaxBundle + 64
)

func (s *step) marshal() []byte {
	b := fmt.Appendf(nil, "%s%d\n", stageMagic, len(s.signed))
	b = append(b, s.signed...)
	for _, e := range s.entries {
		b = appendEntry(b, e)
	}
	return b
}

func parseStage(b []byte) (signed []byte, entries [][]byte, err error) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	var n int
	if _, err := fmt.Sscanf(string(line), stageMagic+"%d", &n); !ok || err != nil || n < 0 || n > len(rest) {
		return nil, nil, fmt.Errorf("begins with %.40q: no stage of version 1", line)
	}
	entries, err = ParseBundle(rest[n:])
	return rest[:n], entries, err
}

// build computes what follows from the entries.
func (l *Log) build(ctx context.Context, entries [][]byte) (*step, error) {
	base, fresh := l.reader(ctx), map[int64]tlog.Hash{}
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		var old []int64
		for i, x := range indexes {
			if h, ok := fresh[x]; ok {
				out[i] = h
			} else {
				old = append(old, x)
			}
		}
		if len(old) == 0 {
			return out, nil
		}
		have, err := base.ReadHashes(old)
		if err != nil {
			return nil, err
		}
		for i, x := range indexes {
			if _, ok := fresh[x]; !ok {
				out[i], have = have[0], have[1:]
			}
		}
		return out, nil
	})
	s := &step{entries: entries, to: tlog.Tree{N: l.tree.N}, bundle: bytes.Clone(l.bundle)}
	for _, e := range entries {
		if len(e) > MaxEntry {
			return nil, fmt.Errorf("an entry of %d bytes, at most %d fit", len(e), MaxEntry)
		}
		hashes, err := tlog.StoredHashes(s.to.N, e, reader)
		if err != nil {
			return nil, err
		}
		first := tlog.StoredHashIndex(0, s.to.N)
		for i, h := range hashes {
			fresh[first+int64(i)] = h
		}
		s.bundle = appendEntry(s.bundle, e)
		s.to.N++
	}
	var err error
	if s.to.Hash, err = tlog.TreeHash(s.to.N, reader); err != nil {
		return nil, err
	}
	s.tiles = tlog.NewTiles(TileHeight, l.tree.N, s.to.N)
	for _, t := range s.tiles {
		data, err := tlog.ReadTileData(t, reader)
		if err != nil {
			return nil, err
		}
		s.data = append(s.data, data)
	}
	return s, nil
}

// finish writes what the decided step needs, its checkpoint last.
func (l *Log) finish(ctx context.Context) error {
	s := l.staged
	n := (s.to.N - 1) / TileWidth
	if err := l.create(ctx, BundleName(n, int(s.to.N-n*TileWidth)), s.bundle); err != nil {
		return err
	}
	for i, t := range s.tiles {
		if err := l.create(ctx, TileName(t), s.data[i]); err != nil {
			return err
		}
	}
	if err := l.create(ctx, CheckpointName(s.to.N), s.signed); err != nil {
		return err
	}
	l.tree, l.signed, l.staged = s.to, s.signed, nil
	l.bundle = nil
	if s.to.N%TileWidth != 0 {
		l.bundle = s.bundle
	}
	for i, t := range s.tiles {
		l.remember(TileName(t), s.data[i])
	}
	for _, e := range s.entries {
		l.note(e)
	}
	l.take()
	l.count(func(st *Stats) { st.Commits++ })
	l.log.Debug("log: committed", "size", s.to.N, "root", s.to.Hash.String())
	return nil
}

// note takes down that the log has an entry.
func (l *Log) note(entry []byte) {
	if s, err := Entry(entry); err == nil && s.Size > l.logged[s.Epoch] {
		l.logged[s.Epoch] = s.Size
	}
}

// Entry reads an entry: a cut checkpoint of an epoch. Its signature is not
// looked at.
func Entry(b []byte) (record.Statement, error) {
	text, _, ok := bytes.Cut(b, []byte("\n\n"))
	if !ok {
		return record.Statement{}, errors.New("no signature follows the text")
	}
	c, err := witness.ParseCheckpoint(string(text) + "\n")
	if err != nil {
		return record.Statement{}, err
	}
	return record.Stated(&record.Frame{Kind: record.KindCheckpoint, Sequence: uint64(c.N), Body: b})
}

// mostTiles is how many tiles are kept in memory, of 8 KiB at most.
const mostTiles = 128

func (l *Log) remember(name string, data []byte) {
	if len(l.tiles) >= mostTiles {
		clear(l.tiles)
	}
	l.tiles[name] = data
}

// reader gives the hashes of the tree as it is, checked against its root.
func (l *Log) reader(ctx context.Context) tlog.HashReader {
	return tlog.TileHashReader(l.tree, &tileReader{ctx, l})
}

type tileReader struct {
	ctx context.Context
	l   *Log
}

func (r *tileReader) Height() int { return TileHeight }

func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, t := range tiles {
		name := TileName(t)
		b, ok := r.l.tiles[name]
		if !ok {
			var err error
			if b, err = r.l.read(r.ctx, name, TileWidth*tlog.HashSize); err != nil {
				return nil, err
			}
			if len(b) != t.W*tlog.HashSize {
				return nil, broken(name, "%d bytes, want %d", len(b), t.W*tlog.HashSize)
			}
		}
		data = append(data, b)
	}
	return data, nil
}

func (r *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	for i, t := range tiles {
		r.l.remember(TileName(t), data[i])
	}
}

// cosign asks the witnesses, and stores what they answered with the log's own
// word of the time.
func (l *Log) cosign(ctx context.Context) {
	now := l.c.Now()
	text, _, _ := bytes.Cut(l.signed, []byte("\n\n"))
	own, err := witness.Line(string(text)+"\n", l.c.Key.Cosigner(now))
	if err != nil {
		l.alarm("cosign", err)
		return
	}
	out := append(bytes.Clone(l.signed), own...)
	lines := l.ask(ctx)
	for _, i := range slices.Sorted(maps.Keys(lines)) {
		out = append(out, lines[i]...)
	}
	enough := len(lines) >= l.c.Quorum
	if enough {
		l.right("quorum")
	} else {
		l.count(func(s *Stats) { s.QuorumMissed++ })
		l.alarm("quorum", fmt.Errorf("log: %d of %d witnesses cosigned the checkpoint of size %d, %d are needed", len(lines), len(l.c.Witnesses), l.tree.N, l.c.Quorum))
	}
	if l.tree.N == 0 && len(lines) == 0 {
		return // nothing that anybody could hold against anything
	}
	if err := l.create(ctx, CosignedName(l.tree.N, now.UnixNano()), out); err != nil {
		l.count(func(s *Stats) { s.Failures++ })
		l.alarm("cosign", fmt.Errorf("log: store a cosigned checkpoint: %w", err))
		return
	}
	l.right("cosign")
	if enough {
		l.cosigned(now)
		l.count(func(s *Stats) { s.CosignedSize, s.CosignedTime = l.tree.N, now })
	}
}

// ask returns the cosignatures by the place of their witnesses.
func (l *Log) ask(ctx context.Context) map[int][]byte {
	if len(l.c.Witnesses) == 0 {
		return nil
	}
	// Proofs are made here: the tiles in memory are not for several at once.
	var proving sync.Mutex
	prove := func(old int64) (tlog.TreeProof, error) {
		proving.Lock()
		defer proving.Unlock()
		if old == 0 || old == l.tree.N {
			return nil, nil
		}
		return tlog.ProveTree(l.tree.N, old, l.reader(ctx))
	}
	ctx, cancel := context.WithTimeout(ctx, l.c.Timeout)
	defer cancel()
	lines, errs := make([][]byte, len(l.c.Witnesses)), make([]error, len(l.c.Witnesses))
	var wg sync.WaitGroup
	for i, w := range l.c.Witnesses {
		wg.Go(func() { lines[i], errs[i] = w.Cosign(ctx, l.signed, l.tree.N, prove) })
	}
	wg.Wait()
	out := map[int][]byte{}
	for i, w := range l.c.Witnesses {
		err := errs[i]
		if err == nil {
			l.right("witness " + w.Name())
			l.right("fork " + w.Name())
			out[i] = lines[i]
			continue
		}
		if errors.Is(err, witness.ErrFork) {
			l.count(func(s *Stats) { s.Forks++ })
			l.alarm("fork "+w.Name(), fmt.Errorf("log: %w: the vault was rolled back, or two sinks write two logs with one key", err))
			continue
		}
		l.count(func(s *Stats) { s.WitnessFailures++ })
		l.alarm("witness "+w.Name(), fmt.Errorf("log: %w", err))
	}
	return out
}
