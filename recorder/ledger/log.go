package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/witness"
)

// The codes of findings about the sink's own log.
const (
	LogMissing    Code = "log_missing"     // there is no log, or it lacks what the vault or a note says it has
	LogWrong      Code = "log_wrong"       // an object of the log is not what it must be
	LogForked     Code = "log_forked"      // two checkpoints of the log contradict each other
	LogRolledBack Code = "log_rolled_back" // the log ends before a checkpoint of it that was signed
	LogOmitted    Code = "log_omitted"     // the vault has a segment that the log leaves out
	LogAhead      Code = "log_ahead"       // the log has a segment that the vault has not: dropped, or rolled back
	LogUncosigned Code = "log_uncosigned"  // no checkpoint has a quorum, or the last one is too old
)

// Log is what a verifier knows of the sink's own log, see package sinklog.
type Log struct {
	// Key is the log's verifier key.
	Key string
	// Witnesses are those whose cosignatures count, Quorum how many are needed:
	// 0 is all of them.
	Witnesses []*witness.Verifier
	Quorum    int
	// Checkpoints are signed checkpoints of the log that were kept elsewhere.
	Checkpoints [][]byte
	// Behind is how old the last cosigned checkpoint may be, 0: any age.
	Behind time.Duration
}

// LogReport says how the sink's own log stands.
type LogReport struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"` // entries
	Root   string `json:"root"` // base64
	// Expired counts entries that are gone, with all of their bundles before.
	Expired int64 `json:"expired_entries,omitempty"`
	// Matched counts segments that are in the log, Unlogged those behind its
	// end: the sink had not come so far.
	Matched  int64 `json:"matched_segments"`
	Unlogged int64 `json:"unlogged_segments"`
	// Kept counts the checkpoints from elsewhere that it was held against.
	Kept int `json:"kept_checkpoints,omitempty"`
	// Cosigned is the time of the last checkpoint that a quorum cosigned,
	// CosignedSize its size, and Behind how many seconds ago that was. Where no
	// witnesses were given it is the log's own word: Asserted.
	Quorum       int          `json:"quorum"`
	Asserted     bool         `json:"asserted,omitempty"`
	Cosigned     time.Time    `json:"cosigned_until,omitzero"`
	CosignedSize int64        `json:"cosigned_size"`
	Behind       int64        `json:"behind_seconds"`
	Witnesses    []LogWitness `json:"witnesses,omitempty"`
}

// LogWitness is the last cosignature of one witness.
type LogWitness struct {
	Name string    `json:"name"`
	Size int64     `json:"size"`
	Time time.Time `json:"time,omitzero"` // zero: none was found
}

// logCut is an entry: so much of it as its segment's checkpoint is compared by.
type logCut struct {
	size uint64
	hash [16]byte
}

// logEpoch is what the log has of an epoch. It takes 24 bytes a segment.
type logEpoch struct {
	gateway string
	cuts    []logCut // not met yet
	all     int
	last    record.Statement
	index   int64 // of the last entry
}

// logReader reads the log once, from front to back.
type logReader struct {
	c      *verifier
	o      *Log
	log    note.Verifier
	times  *witness.Verifier
	quorum int
	report *LogReport
	epochs map[record.Epoch]*logEpoch

	head   witness.Checkpoint
	name   string  // of head
	sizes  []int64 // of checkpoints, ascending
	signed []cosignedName
	kept   []keptCheckpoint
	roots  map[int64]tlog.Hash // at the sizes in signed

	size   int64
	edge   [64]tlog.Hash
	levels [][]tlog.Hash // the tiles under way
	parted bool          // a root was wrong: the rest need not be said
	begun  bool          // an entry was read
}

type cosignedName struct{ size, nano int64 }

type keptCheckpoint struct {
	witness.Checkpoint
	index int
}

func logCutOf(size uint64, note []byte) logCut {
	h := sha256.Sum256(note)
	return logCut{size, [16]byte(h[:16])}
}

func logPlace(name string) place { return place{name: Name{Path: name}} }

// readLog reads the sink's log, before the segments are listed: what it has
// must then be there.
func (c *verifier) readLog() error {
	if c.options.Log == nil {
		return nil
	}
	o := c.options.Log
	r := &logReader{c: c, o: o, epochs: map[record.Epoch]*logEpoch{}, roots: map[int64]tlog.Hash{}, quorum: o.Quorum}
	if r.quorum == 0 {
		r.quorum = len(o.Witnesses)
	}
	var err error
	if r.times, err = witness.NewTimes(o.Key); err != nil {
		return err
	}
	if r.log, err = note.NewVerifier(r.times.String()); err != nil {
		return err
	}
	r.report = &LogReport{Origin: r.log.Name(), Quorum: r.quorum, Asserted: len(o.Witnesses) == 0}
	c.report.Log, c.log = r.report, r
	if err := r.list(); err != nil {
		return err
	}
	r.keep()
	if len(r.sizes) == 0 {
		c.find(LogMissing, place{}, "there is no log of %s in the vault", r.log.Name())
		return nil
	}
	if ok, err := r.last(); err != nil || !ok {
		return err
	}
	if err := r.entries(); err != nil {
		return err
	}
	return r.cosigned()
}

func (r *logReader) list() error {
	list := func(prefix string, take func(name string) error) error {
		for name, err := range r.c.vault.List(r.c.ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			if err := take(name); err != nil {
				r.c.find(LogWrong, logPlace(name), "is nothing of the log's: %v", err)
			}
		}
		return nil
	}
	// Cosigned checkpoints first: each of them has its plain one.
	err := list(sinklog.CosignedPrefix, func(name string) error {
		size, nano, err := sinklog.ParseCosignedName(name)
		if err == nil {
			r.signed = append(r.signed, cosignedName{size, nano})
		}
		return err
	})
	if err != nil {
		return err
	}
	return list(sinklog.CheckpointPrefix, func(name string) error {
		size, err := sinklog.ParseCheckpointName(name)
		if err == nil {
			r.sizes = append(r.sizes, size)
		}
		return err
	})
}

// keep reads the checkpoints that the verifier kept.
func (r *logReader) keep() {
	for i, signed := range r.o.Checkpoints {
		c, _, err := witness.OpenCheckpoint(signed, r.log)
		if err != nil {
			r.c.find(LogForked, place{}, "checkpoint %d of the log that was kept elsewhere: %v: it is of another log, or was made by somebody else", i+1, err)
			continue
		}
		r.report.Kept++
		r.kept = append(r.kept, keptCheckpoint{c, i})
	}
	slices.SortStableFunc(r.kept, func(a, b keptCheckpoint) int { return cmp.Compare(a.N, b.N) })
}

// read returns an object, nil where it is not there. An object that is too
// long is a finding, and not there.
func (r *logReader) read(name string, limit int64) ([]byte, error) {
	b, err := sinklog.Read(r.c.ctx, r.c.vault, name, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, sinklog.ErrTooLong):
		r.c.find(LogWrong, logPlace(name), "%v", err)
		return nil, nil
	}
	return b, err
}

// open reads a checkpoint of the log, of a size, with the signatures of its
// time and of the witnesses. It is nil where something is wrong.
func (r *logReader) open(name string, size int64) (*witness.Checkpoint, *note.Note, error) {
	b, err := r.read(name, witness.MaxCheckpoint)
	if err != nil || b == nil {
		return nil, nil, err
	}
	others := []note.Verifier{r.times}
	for _, w := range r.o.Witnesses {
		others = append(others, w)
	}
	c, n, err := witness.OpenCheckpoint(b, r.log, others...)
	switch {
	case err != nil:
		r.c.find(LogWrong, logPlace(name), "%v", err)
		return nil, nil, nil
	case c.N != size:
		r.c.find(LogWrong, logPlace(name), "states size %d", c.N)
		return nil, nil, nil
	}
	return &c, n, nil
}

// last reads the last checkpoint, and holds the log's end against what was
// signed beyond it.
func (r *logReader) last() (bool, error) {
	size := r.sizes[len(r.sizes)-1]
	r.name = sinklog.CheckpointName(size)
	c, _, err := r.open(r.name, size)
	if err != nil || c == nil {
		return false, err
	}
	r.head = *c
	r.report.Size, r.report.Root = c.N, c.Hash.String()
	for i := len(r.signed) - 1; i >= 0 && r.signed[i].size > size; i-- {
		name := sinklog.CosignedName(r.signed[i].size, r.signed[i].nano)
		beyond, n, err := r.open(name, r.signed[i].size)
		if err != nil {
			return false, err
		}
		if beyond != nil {
			r.c.find(LogRolledBack, logPlace(name), "the log was signed at size %d%s with the root %s, in the vault it ends at %d with %s", beyond.N, r.by(n), beyond.Hash, size, r.head.Hash)
			break
		}
	}
	for _, k := range r.kept {
		if k.N > size {
			r.c.find(LogRolledBack, logPlace(r.name), "the log ends here, at size %d with the root %s; the checkpoint that was kept elsewhere has size %d with %s", size, r.head.Hash, k.N, k.Hash)
		}
	}
	return true, nil
}

// by names the witnesses that cosigned.
func (r *logReader) by(n *note.Note) string {
	var names []string
	for _, s := range n.Sigs {
		for _, w := range r.o.Witnesses {
			if s.Name == w.Name() && s.Hash == w.KeyHash() {
				names = append(names, w.Name())
			}
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ", cosigned by " + strings.Join(names, ", ")
}

// entries reads all entries and compares tiles, checkpoints, and what was
// cosigned or kept, with the tree that they make.
func (r *logReader) entries() error {
	if err := r.at(); err != nil { // the empty log
		return err
	}
	for r.size < r.head.N {
		if err := r.c.ctx.Err(); err != nil {
			return context.Cause(r.c.ctx)
		}
		n := r.size / sinklog.TileWidth
		width := int(min(sinklog.TileWidth, r.head.N-r.size))
		name := sinklog.BundleName(n, width)
		b, err := r.read(name, sinklog.MaxBundle)
		if err != nil {
			return err
		}
		tile := tlog.Tile{H: sinklog.TileHeight, N: n, W: width}
		hashes, err := r.tile(tile)
		if err != nil {
			return err
		}
		if b == nil {
			if ok, err := r.gone(name, n, width, hashes); err != nil || !ok {
				return err
			}
			continue
		}
		entries, err := sinklog.ParseBundle(b)
		if err != nil || len(entries) != width {
			r.c.find(LogWrong, logPlace(name), "%d entries, want %d (%v)", len(entries), width, err)
			return nil
		}
		if hashes == nil {
			r.c.find(LogWrong, logPlace(sinklog.TileName(tile)), "the tile is missing, or has not %d hashes", width)
		}
		for i, e := range entries {
			leaf := tlog.RecordHash(e)
			if hashes != nil && leaf != hashes[i] {
				r.c.find(LogWrong, logPlace(name), "entry %d is not the one whose hash is in %s: one of the two was changed", r.size, sinklog.TileName(tile))
				hashes = nil // said
			}
			r.entry(name, e)
			if err := r.add(leaf); err != nil {
				return err
			}
		}
	}
	// The partial tiles of the upper levels.
	for l := 1; l < len(r.levels); l++ {
		if w := len(r.levels[l]); w > 0 {
			if err := r.compare(tlog.Tile{H: sinklog.TileHeight, L: l, N: r.head.N >> (8 * (l + 1)), W: w}, r.levels[l]); err != nil {
				return err
			}
		}
	}
	return nil
}

// tile returns a tile's hashes, nil where it is not there or not so wide.
func (r *logReader) tile(t tlog.Tile) ([]tlog.Hash, error) {
	b, err := r.read(sinklog.TileName(t), sinklog.TileWidth*tlog.HashSize)
	if err != nil || len(b) != t.W*tlog.HashSize {
		return nil, err
	}
	hashes := make([]tlog.Hash, t.W)
	for i := range hashes {
		hashes[i] = tlog.Hash(b[i*tlog.HashSize:])
	}
	return hashes, nil
}

func (r *logReader) compare(t tlog.Tile, want []tlog.Hash) error {
	got, err := r.tile(t)
	if err == nil && !slices.Equal(got, want) {
		r.c.find(LogWrong, logPlace(sinklog.TileName(t)), "the tile is missing, or is not what the log's entries give")
	}
	return err
}

// gone goes on over a bundle that is not there: at the log's beginning it may
// have expired. Its hashes come from the tiles.
func (r *logReader) gone(name string, n int64, width int, hashes []tlog.Hash) (bool, error) {
	if r.begun || r.c.options.Retention <= 0 || width < sinklog.TileWidth {
		r.c.find(LogMissing, logPlace(name), "the entries from %d on are missing", r.size)
		return false, nil
	}
	r.report.Expired += sinklog.TileWidth
	if hashes != nil {
		for _, h := range hashes {
			if err := r.add(h); err != nil {
				return false, err
			}
		}
		return true, nil
	}
	up := tlog.Tile{H: sinklog.TileHeight, L: 1, N: n / sinklog.TileWidth, W: int(min(sinklog.TileWidth, r.head.N/sinklog.TileWidth-n/sinklog.TileWidth*sinklog.TileWidth))}
	hashes, err := r.tile(up)
	if err != nil {
		return false, err
	}
	if hashes == nil {
		r.c.find(LogMissing, logPlace(name), "the entries from %d on are missing, and so are their hashes in %s", r.size, sinklog.TileName(up))
		return false, nil
	}
	return true, r.grow(sinklog.TileHeight, hashes[n%sinklog.TileWidth])
}

// entry takes down what an entry says.
func (r *logReader) entry(name string, b []byte) {
	s, err := sinklog.Entry(b)
	if err != nil {
		r.c.find(LogWrong, logPlace(name), "entry %d is no checkpoint of an epoch: %v", r.size, err)
		return
	}
	if !r.begun && r.report.Expired > 0 {
		// What is gone is older than the first that is there; a lifecycle deletes
		// by whole days.
		if age := r.c.now.Sub(s.Time); age < r.c.options.Retention-2*24*time.Hour {
			r.c.find(LogMissing, logPlace(name), "the %d entries before are missing, and not known to have expired: the first that is there is of %s", r.report.Expired, s.Time.Format(time.RFC3339))
		}
	}
	r.begun = true
	e := r.epochs[s.Epoch]
	if e == nil {
		e = &logEpoch{gateway: s.Gateway}
		r.epochs[s.Epoch] = e
	}
	cut := logCutOf(s.Size, b)
	here := place{name: Name{Segment: segmentOf(s.Gateway, s.Epoch), Path: name}, seq: s.Size}
	if n := len(e.cuts); n > 0 && s.Size <= e.last.Size {
		i, same := slices.BinarySearchFunc(e.cuts, s.Size, func(c logCut, size uint64) int { return cmp.Compare(c.size, size) })
		switch {
		case same && e.cuts[i] == cut: // two sinks logged it
		case same && s.Size == e.last.Size:
			r.c.find(LogForked, here, "entry %d states the root %x for record %d, entry %d states %x: the epoch was forked", r.size, s.Root, s.Size, e.index, e.last.Root)
		case same:
			r.c.find(LogForked, here, "entry %d states the root %x for record %d, an entry before states another: the epoch was forked", r.size, s.Root, s.Size)
		default:
			r.c.find(LogWrong, here, "entry %d stands after that of record %d (entry %d)", r.size, e.last.Size, e.index)
		}
		return
	}
	e.cuts, e.last, e.index = append(e.cuts, cut), s, r.size
	e.all++
}

// add appends a leaf's hash to the tree.
func (r *logReader) add(leaf tlog.Hash) error { return r.grow(0, leaf) }

// grow appends the hash of a complete subtree of 2^height leaves.
func (r *logReader) grow(height int, h tlog.Hash) error {
	level := height / sinklog.TileHeight
	up := h
	for i := height; ; i++ {
		if r.size>>i&1 == 0 {
			r.edge[i] = up
			break
		}
		up = tlog.NodeHash(r.edge[i], up)
	}
	r.size += 1 << height
	for {
		for len(r.levels) <= level {
			r.levels = append(r.levels, nil)
		}
		r.levels[level] = append(r.levels[level], h)
		if len(r.levels[level]) < sinklog.TileWidth {
			break
		}
		// The lowest tiles were compared entry by entry.
		full := r.levels[level]
		if level > 0 {
			t := tlog.Tile{H: sinklog.TileHeight, L: level, N: r.size>>(8*(level+1)) - 1, W: sinklog.TileWidth}
			if err := r.compare(t, full); err != nil {
				return err
			}
		}
		for len(full) > 1 {
			half := make([]tlog.Hash, len(full)/2)
			for i := range half {
				half[i] = tlog.NodeHash(full[2*i], full[2*i+1])
			}
			full = half
		}
		h, r.levels[level] = full[0], r.levels[level][:0]
		level++
	}
	return r.at()
}

func (r *logReader) root() tlog.Hash {
	if r.size == 0 {
		return witness.EmptyRoot
	}
	i := bits.TrailingZeros64(uint64(r.size))
	h := r.edge[i]
	for i++; i < 64; i++ {
		if r.size>>i&1 == 1 {
			h = tlog.NodeHash(r.edge[i], h)
		}
	}
	return h
}

// at compares with the tree as it is now all that was said of this size.
func (r *logReader) at() error {
	for len(r.sizes) > 0 && r.sizes[0] < r.size {
		r.sizes = r.sizes[1:] // within what has expired
	}
	for len(r.signed) > 0 && r.signed[0].size < r.size {
		r.signed = r.signed[1:]
	}
	for len(r.kept) > 0 && r.kept[0].N < r.size {
		r.kept = r.kept[1:]
	}
	if len(r.sizes) > 0 && r.sizes[0] == r.size {
		name := sinklog.CheckpointName(r.size)
		c, _, err := r.open(name, r.size)
		if err != nil {
			return err
		}
		if c != nil {
			r.judge(name, c.Hash, "", "the checkpoint")
		}
	}
	if len(r.signed) > 0 && r.signed[0].size == r.size {
		r.roots[r.size] = r.root()
		// The last of them stands for the others, which only differ in time.
		n := 1
		for n < len(r.signed) && r.signed[n].size == r.size {
			n++
		}
		name := sinklog.CosignedName(r.size, r.signed[n-1].nano)
		c, signed, err := r.open(name, r.size)
		if err != nil {
			return err
		}
		if c != nil {
			r.judge(name, c.Hash, r.by(signed), "the checkpoint")
		}
	}
	for _, k := range r.kept {
		if k.N != r.size {
			break
		}
		if k.Hash != r.root() {
			r.c.find(LogForked, logPlace(sinklog.CheckpointName(r.size)), "the log was forked: at size %d its entries in the vault have the root %s, the checkpoint that was kept elsewhere, signed by %s, states %s", r.size, r.root(), r.log.Name(), k.Hash)
		}
	}
	return nil
}

func (r *logReader) judge(name string, stated tlog.Hash, by, what string) {
	if root := r.root(); stated != root && !r.parted {
		r.parted = true
		r.c.find(LogForked, logPlace(name), "%s, signed by %s%s, states the root %s at size %d, the log's entries give %s: they were changed, or there are two logs", what, r.log.Name(), by, stated, r.size, root)
	}
}

// mostCosigned is how many cosigned checkpoints are read, from the newest on,
// to find one with a quorum and the last of each witness.
const mostCosigned = 4096

// cosigned finds the last checkpoint that a quorum cosigned.
func (r *logReader) cosigned() error {
	var names []cosignedName
	for name, err := range r.c.vault.List(r.c.ctx, sinklog.CosignedPrefix) {
		if err != nil {
			return err
		}
		if size, nano, err := sinklog.ParseCosignedName(name); err == nil && size <= r.head.N {
			if names = append(names, cosignedName{size, nano}); len(names) > 2*mostCosigned {
				names = slices.Delete(names, 0, mostCosigned)
			}
		}
	}
	for _, w := range r.o.Witnesses {
		r.report.Witnesses = append(r.report.Witnesses, LogWitness{Name: w.Name()})
	}
	found, left := false, len(r.o.Witnesses)
	for i := len(names) - 1; i >= 0 && len(names)-i <= mostCosigned && (!found || left > 0); i-- {
		size := names[i].size
		c, n, err := r.open(sinklog.CosignedName(size, names[i].nano), size)
		if err != nil {
			return err
		}
		if c == nil || r.roots[size] != c.Hash {
			continue
		}
		var times []time.Time
		for _, s := range n.Sigs {
			if t, ok := r.times.Time(s); ok && r.report.Asserted {
				times = append(times, t)
			}
			for j, w := range r.o.Witnesses {
				t, ok := w.Time(s)
				if !ok {
					continue
				}
				times = append(times, t)
				if x := &r.report.Witnesses[j]; x.Time.IsZero() {
					x.Time, x.Size = t, size
					left--
				}
			}
		}
		if need := max(1, r.quorum); !found && len(times) >= need {
			found = true
			slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
			r.report.Cosigned, r.report.CosignedSize = times[need-1], size
			r.report.Behind = max(0, int64(r.c.now.Sub(times[need-1])/time.Second))
		}
	}
	switch {
	case !found && !r.report.Asserted:
		r.c.find(LogUncosigned, place{}, "no checkpoint of the log was cosigned by %d of the %d witnesses that were given", r.quorum, len(r.o.Witnesses))
	case r.o.Behind > 0 && r.c.now.Sub(r.report.Cosigned) > r.o.Behind:
		r.c.find(LogUncosigned, place{}, "the last cosigned checkpoint of the log is of %s, %s ago: the sink does not run, its witnesses refuse it, or the vault was put back to how it was then", r.report.Cosigned.Format(time.RFC3339), r.c.now.Sub(r.report.Cosigned).Round(time.Second))
	}
	return nil
}

// logged holds a segment's cut checkpoint against the log.
func (c *verifier) logged(e *epoch, f *record.Frame, here place) {
	if c.log == nil {
		return
	}
	l := c.log.epochs[e.id]
	if l == nil || f.Sequence > l.last.Size {
		c.report.Log.Unlogged++
		return
	}
	// Entries before: of segments that have expired, or are missing, which was said.
	for len(l.cuts) > 0 && l.cuts[0].size < f.Sequence {
		if first := here.name.First; l.cuts[0].size >= first {
			c.find(LogForked, here, "the log says that a segment ends with record %d, within this one", l.cuts[0].size)
		}
		l.cuts = l.cuts[1:]
	}
	switch {
	case len(l.cuts) == 0 || l.cuts[0].size > f.Sequence:
		if c.report.Log.Expired == 0 {
			c.find(LogOmitted, here, "the segment is not in the sink's log, which has a later one of the epoch: it was added, or left out of the log")
		}
	case l.cuts[0] != logCutOf(f.Sequence, f.Body):
		c.find(LogForked, here, "the segment's cut checkpoint is not the one that the sink's log has for record %d: two histories of the epoch", f.Sequence)
		l.cuts = l.cuts[1:]
	default:
		c.report.Log.Matched++
		l.cuts = l.cuts[1:]
	}
}

// finishLog judges what the log has and the vault has not.
func (c *verifier) finishLog() error {
	if c.log == nil {
		return nil
	}
	for _, id := range sortedEpochs(c.log.epochs) {
		l, e := c.log.epochs[id], c.epochs[id]
		s := l.last
		if c.lapsed(&s) || c.gone[id] >= s.Size {
			continue // expired
		}
		b := bound{recorded: s.Time}
		if s.Retained != nil {
			b = bound{signed: true, latest: s.Retained.Latest(), by: "log"}
		}
		here := place{name: Name{Segment: segmentOf(l.gateway, id)}}
		if e == nil {
			old := lostEpoch(id, l.gateway)
			if err := c.expired(old, s.Size+1, b); err != nil {
				return err
			}
			if old.next <= s.Size {
				c.find(LogAhead, here, "the vault has nothing of the epoch; the sink's log has %d of its segments, up to record %d of %s (entry %d): the epoch was dropped", l.all, s.Size, s.Time.Format(time.RFC3339), l.index)
			}
			continue
		}
		if e.gateway != l.gateway {
			c.find(LogForked, place{name: e.first}, "the epoch is gateway %s's, the sink's log says %s's", e.gateway, l.gateway)
			continue
		}
		if held := e.next - 1; held < s.Size {
			if err := c.expired(e, s.Size+1, b); err != nil {
				return err
			}
			if e.next <= s.Size {
				c.find(LogAhead, place{name: e.last, seq: held}, "the epoch ends here in the vault, the sink's log has it up to record %d of %s (entry %d): records %d to %d were dropped, or the vault was rolled back", s.Size, s.Time.Format(time.RFC3339), l.index, held+1, s.Size)
			}
		}
	}
	return nil
}
