package journal

import (
	"fmt"
	"path/filepath"
	"time"

	"verbatim.dev/recorder/record"
)

// patience is how long a commit that already has records waits for the next
// one's sealing: about the time of an fdatasync that it may save.
const patience = 200 * time.Microsecond

// gatherBelow is the size up to which frames are gathered into one write, and
// gatherSize is when what was gathered is written.
const (
	gatherBelow = 32 << 10
	gatherSize  = 256 << 10
)

// checkpointSize is the stored size of a checkpoint, with room to spare: a note
// of six lines with two names of 40 characters, and its signature. Each
// retention class takes another line, of classSize and its name at most.
const (
	checkpointSize = 680
	classSize      = 56
	maxCheckpoint  = checkpointSize + record.MaxClasses*(classSize+record.MaxClass)
)

// A segment is allocated when it begins, but its blocks are not written yet, and
// to write a block for the first time costs the file system about as much again
// as the write: it has to note in its own journal that the block holds something
// now. So where commits are small, the blocks ahead are filled with the zeros
// that they read as anyway, many at once, in the sync of one commit. Large
// commits would only write everything twice: they end it.
const (
	zeroAhead   = 1 << 20
	smallCommit = 64 << 10
	calmCommits = 8 // small ones in a row
)

var zeros [zeroAhead]byte

// writer is what the writer goroutine alone touches.
type writer struct {
	todo     []*entry // taken from the queue, in order
	seg      *segment
	file     File
	position // after the last durable commit
	retained record.Retained
	sinceCut int64 // bytes written since the last cut
	lastCut  time.Time
	timer    *time.Timer // fires when a cut is due
	buf      []byte      // gathered for the next write, used again
	wrote    int64       // bytes of this commit that are in the file
	size     int64       // that the segment's file has allocated
	filled   int64       // offset in the segment's file up to which blocks are written
	calm     int         // small commits in a row
}

// run is the writer goroutine. It ends after the close record or the first
// error.
func (j *Journal) run() {
	defer close(j.done)
	w := &j.writer
	w.timer = time.NewTimer(j.cfg.CutInterval)
	defer w.timer.Stop()
	for {
		w.todo = append(w.todo, j.take()...)
		if len(w.todo) == 0 {
			if err := j.rollOver(); err != nil {
				j.fail(err, nil)
				return
			}
			select {
			case <-j.wake:
			case <-w.timer.C:
				if err := j.cut(); err != nil {
					j.fail(err, nil)
					return
				}
			}
			continue
		}
		batch := j.gather()
		if err := j.commit(batch); err != nil {
			j.fail(err, append(batch, w.todo...))
			return
		}
		if batch[len(batch)-1].final {
			j.end()
			return
		}
	}
}

// take empties the queue.
func (j *Journal) take() []*entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	q := j.queue
	j.queue = nil
	return q
}

// gather takes the entries of the next commit from the front of todo, which is
// not empty, and what arrives meanwhile.
func (j *Journal) gather() []*entry {
	var (
		w     = &j.writer
		batch []*entry
		size  int64
	)
	for len(w.todo) > 0 && size < batchBytes {
		e := w.todo[0]
		if !e.wait(len(batch) == 0) {
			break
		}
		for i := range e.frames {
			size += int64(len(e.frames[i].Raw()))
		}
		batch = append(batch, e)
		if w.todo = w.todo[1:]; len(w.todo) == 0 {
			w.todo = j.take()
		}
	}
	return batch
}

// wait waits until the entry's frames are made: without forever, only a while.
func (e *entry) wait(forever bool) bool {
	select {
	case <-e.made:
		return true
	default:
	}
	if forever {
		<-e.made
		return true
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-e.made:
		return true
	case <-t.C:
		return false
	}
}

// commit makes the entries durable with one sync, and settles their tickets.
// The checkpoint comes last and binds all in front of it: recovery takes the
// whole commit or nothing of it, in however many writes it was made.
func (j *Journal) commit(batch []*entry) error {
	w := &j.writer
	cut := false
	var keys []*record.Frame
	size := j.checkpointSize
	records := 0
	for _, e := range batch {
		cut = cut || e.cut
		for _, k := range e.keys {
			if f := k.Announce(); f != nil {
				keys = append(keys, f)
				size += int64(len(f.Raw()))
			}
		}
		records += len(e.frames)
		for i := range e.frames {
			size += int64(len(e.frames[i].Raw()))
		}
	}
	// Rotation writes down what holds before this batch.
	if err := j.makeRoom(size); err != nil {
		return err
	}
	w.begin()
	for _, f := range keys {
		if err := w.add(f.Raw()); err != nil {
			return err
		}
	}
	for _, e := range batch {
		for i := range e.frames {
			f := &e.frames[i]
			if f.Sequence != w.sequence+1 {
				return fmt.Errorf("record %d in the queue where %d belongs", f.Sequence, w.sequence+1)
			}
			w.sequence = f.Sequence
			w.head = w.head.Next(e.leaves[i])
			w.tree.Add(e.leaves[i])
			w.until.Add(f.Expiry)
			w.retained.Add(f.Class, f.Expiry)
			account(w.open, f)
			if err := w.add(f.Raw()); err != nil {
				return err
			}
		}
	}
	w.sinceCut += size
	cut = cut || w.sinceCut >= j.cfg.CutBytes || time.Since(w.lastCut) >= j.cfg.CutInterval
	if err := j.checkpoint(cut); err != nil {
		return err
	}
	if err := j.sync(records, batch); err != nil {
		return err
	}
	for _, e := range batch {
		for _, b := range e.buffers {
			putBuffer(b)
		}
		e.frames, e.buffers, e.leaves = nil, nil, nil
		e.ticket.Settle(nil)
	}
	return nil
}

// cut writes a checkpoint that is a cut behind records that wait for one.
func (j *Journal) cut() error {
	w := &j.writer
	if w.sinceCut == 0 {
		return nil
	}
	if left := j.cfg.CutInterval - time.Since(w.lastCut); left > 0 {
		w.timer.Reset(left)
		return nil
	}
	w.begin()
	if err := j.checkpoint(true); err != nil {
		return err
	}
	return j.sync(0, nil)
}

// checkpoint adds a checkpoint of the writer's position.
func (j *Journal) checkpoint(cut bool) error {
	w := &j.writer
	cp, err := record.Checkpoint(record.Statement{
		Gateway: j.cfg.Gateway, Epoch: j.epoch, Size: w.sequence, Root: w.tree.Root(), Head: w.head, Time: j.clock(), Retained: &w.retained,
	}, j.key.Signer(), cut)
	if err != nil {
		return err
	}
	if w.buf, err = cp.Encode(w.buf); err != nil {
		return err
	}
	if cut {
		w.retained.Cut()
		w.sinceCut, w.lastCut = 0, time.Now()
	} else {
		w.timer.Reset(max(0, j.cfg.CutInterval-time.Since(w.lastCut)))
	}
	return nil
}

// begin begins a commit at the segment's end.
func (w *writer) begin() { w.buf, w.wrote = w.buf[:0], 0 }

// add adds bytes to the commit. Large ones go to the file as they are, without
// a copy.
func (w *writer) add(b []byte) error {
	large := len(b) > gatherBelow
	if large || len(w.buf)+len(b) > gatherSize {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if !large {
		w.buf = append(w.buf, b...)
		return nil
	}
	return w.put(b)
}

// flush writes what was gathered.
func (w *writer) flush() error {
	err := w.put(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (w *writer) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := w.file.WriteAt(b, w.seg.used+w.wrote); err != nil {
		return err
	}
	w.wrote += int64(len(b))
	return nil
}

// fill writes zeros ahead, where the next commits are likely to profit.
func (w *writer) fill() error {
	if w.calm++; w.wrote > smallCommit {
		w.calm = 0
	}
	end := w.seg.used + w.wrote
	if end <= w.filled {
		return nil
	}
	w.filled = end
	n := min(zeroAhead, w.size-end)
	if w.calm < calmCommits || n <= 0 {
		return nil
	}
	if _, err := w.file.WriteAt(zeros[:n], end); err != nil {
		return err
	}
	w.filled += n
	return nil
}

// sync makes the commit durable and publishes it.
func (j *Journal) sync(records int, batch []*entry) error {
	w := &j.writer
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.fill(); err != nil {
		return err
	}
	if err := w.file.Datasync(); err != nil {
		return err
	}
	j.exchanges.Store(uint64(len(w.open)))
	j.mu.Lock()
	defer j.mu.Unlock()
	w.seg.used += w.wrote
	w.seg.last, w.seg.log.last = w.sequence, w.sequence
	j.disk += w.wrote
	for _, e := range batch {
		j.queued -= e.charged
	}
	j.waiting -= len(batch)
	j.stats.Commits++
	j.stats.Records += uint64(records)
	j.stats.Bytes += uint64(w.wrote)
	j.notify()
	return nil
}

// makeRoom begins another segment where the current one has no room for need
// bytes.
func (j *Journal) makeRoom(need int64) error {
	w := &j.writer
	if w.file != nil && (w.seg.used+need <= j.cfg.SegmentSize || w.seg.last < w.seg.first) {
		return nil
	}
	return j.rotate(max(j.cfg.SegmentSize, need))
}

// rollOver begins another segment where Acknowledge asked for it.
func (j *Journal) rollOver() error {
	w := &j.writer
	j.mu.Lock()
	roll := j.roll && w.seg.last >= w.seg.first
	j.roll = false
	j.mu.Unlock()
	if !roll {
		return nil
	}
	if err := j.rotate(j.cfg.SegmentSize); err != nil {
		return err
	}
	if err := j.free(j.live); err != nil { // as for Acknowledge, no reason to fail
		j.log.Warn("journal segment was not freed", "error", err)
	}
	return nil
}

// rotate begins a segment of size bytes.
func (j *Journal) rotate(size int64) error {
	w := &j.writer
	if w.file != nil {
		// Room that is not used is given back; nothing depends on it.
		if err := w.file.Truncate(w.seg.used); err != nil {
			j.log.Warn("journal segment was not cut to its size", "file", w.seg.name, "error", err)
		}
		if err := w.file.Close(); err != nil {
			j.log.Warn("journal segment did not close", "file", w.seg.name, "error", err)
		}
		w.file = nil
	}
	first := w.sequence + 1
	b, err := encodeState(j.epoch, j.cfg.Gateway, w.position)
	if err != nil {
		return err
	}
	name := stateName(j.live.dir, first)
	if err := j.writeFile(name+".tmp", b); err != nil {
		return err
	}
	if err := j.fs.Rename(name+".tmp", name); err != nil {
		return err
	}
	// A segment never exists without its state.
	if err := j.fs.SyncDir(j.live.dir); err != nil {
		return err
	}
	seg := &segment{log: j.live, first: first, name: segmentName(j.live.dir, first), last: w.sequence}
	f, err := j.fs.Create(seg.name, size)
	if err != nil {
		return err
	}
	// The size too, so that later commits need no change of metadata.
	if err := f.Datasync(); err != nil {
		return closing(f, err)
	}
	if err := j.fs.SyncDir(j.live.dir); err != nil {
		return closing(f, err)
	}
	w.file, w.seg, w.size, w.filled = f, seg, size, 0
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.live.segments); n > 0 {
		j.live.segments[n-1].full = true
	}
	if j.newest != nil {
		j.newest.next = seg
	}
	j.newest = seg
	j.live.segments = append(j.live.segments, seg)
	j.notify()
	return nil
}

// writeFile makes a small file durable, up to its folder's entry.
func (j *Journal) writeFile(name string, b []byte) error {
	f, err := j.fs.Create(name, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return closing(f, err)
	}
	if err := f.Datasync(); err != nil {
		return closing(f, err)
	}
	return f.Close()
}

// end is the writer's end in good order.
func (j *Journal) end() {
	w := &j.writer
	if err := w.file.Truncate(w.seg.used); err != nil {
		j.log.Warn("journal segment was not cut to its size", "file", w.seg.name, "error", err)
	}
	if err := w.file.Close(); err != nil {
		j.log.Warn("journal segment did not close", "file", w.seg.name, "error", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	w.seg.full = true
	j.ended = true
	j.notify()
}

// fail poisons the journal and settles everything that waits.
func (j *Journal) fail(err error, entries []*entry) {
	w := &j.writer
	err = fmt.Errorf("journal %s: %w; nothing more can be recorded until the gateway is started again", filepath.Join(j.cfg.Dir, j.epoch.String()), err)
	j.mu.Lock()
	j.err = err
	entries = append(entries, j.queue...)
	j.queue, j.queued, j.waiting = nil, 0, 0
	j.notify()
	j.mu.Unlock()
	close(j.failed)
	for _, e := range entries {
		e.ticket.Settle(err)
	}
	if w.file != nil {
		_ = w.file.Close() // whatever it says, err is worse
	}
	j.log.Error("journal failed: the gate is closed", "error", err)
}

// notify wakes the tails. The mutex must be held.
func (j *Journal) notify() {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}
