package ledger

import (
	"context"
	"crypto/sha256"
	"runtime"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Segments are read, decoded and hashed ahead of being judged, several at one
// time, whichever epochs they are of. They are judged one after the other, in
// the order of their names, so that what is found does not depend on how many
// cores there are.

const (
	// batchFrames and batchBytes bound what a reader hands over at once, and
	// batchesAhead how many such batches wait: memory is bounded by the number of
	// readers, not by the size of segments.
	batchFrames  = 256
	batchBytes   = 256 << 10
	batchesAhead = 4
)

// reading is a segment that is being read.
type reading struct {
	name    Name
	opened  chan struct{} // closed when header and err are set
	header  vault.Header
	err     error // of opening
	batches chan []item
	batch   []item // what is left of the one at hand
	end     context.CancelFunc
	size    int64 // bytes up to what next returned last
}

// item is what a reader has of a frame.
type item struct {
	frame  record.Frame
	offset int64
	path   string // of the file that holds it
	leaf   [sha256.Size]byte
	stated record.Statement // of a checkpoint
	wrong  error            // why a checkpoint states nothing
	parts  []partLost
	size   int64 // bytes up to its end, of all files
	err    error // in place of a frame: how reading ended
}

// partLost is what a segment says of a part of which not all can be read.
type partLost struct {
	path string
	err  error
}

// start begins to read a segment. The goroutine ends with the segment, with the
// verification, or with end.
func (c *verifier) start(n Name) *reading {
	ctx, end := context.WithCancel(c.ctx)
	r := &reading{name: n, opened: make(chan struct{}), batches: make(chan []item, batchesAhead), end: end}
	c.readers.Go(func() {
		defer close(r.batches)
		s, err := OpenSegment(ctx, c.vault, n.Path)
		if err != nil {
			r.err = err
			close(r.opened)
			return
		}
		defer s.Close()
		r.header = s.Header()
		close(r.opened)
		r.frames(ctx, s)
	})
	return r
}

func (r *reading) frames(ctx context.Context, s *Segment) {
	var parts []partLost
	s.OnPart = func(path string, err error, _ *record.Frame) { parts = append(parts, partLost{path, err}) }
	var batch []item
	bytes := 0
	for {
		f, at, err := s.Next()
		it := item{frame: f, offset: at, path: s.Path(), parts: parts, err: err, size: s.Size()}
		parts = nil
		switch {
		case err != nil:
		case f.Kind == record.KindCheckpoint:
			it.stated, it.wrong = record.Stated(&f)
		case f.Kind == vault.KindAbsent:
			it.leaf = [sha256.Size]byte(f.Body)
		case f.Kind.Leaf():
			it.leaf = f.Leaf()
		}
		batch = append(batch, it)
		bytes += len(f.Raw())
		if err == nil && len(batch) < batchFrames && bytes < batchBytes {
			continue
		}
		select {
		case r.batches <- batch:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
		batch, bytes = make([]item, 0, len(batch)), 0
	}
}

// next returns the next frame, or how reading ended.
func (r *reading) next(ctx context.Context) *item {
	for len(r.batch) == 0 {
		b, ok := <-r.batches
		if !ok {
			return &item{err: context.Cause(ctx)}
		}
		r.batch = b
	}
	it := &r.batch[0]
	r.batch, r.size = r.batch[1:], it.size
	return it
}

// queue are the names that were listed and not judged yet, with their readers.
type queue struct {
	names   []queued
	readers int
}

type queued struct {
	path string
	read *reading // nil for what is no segment
}

// add puts a name at the queue's end, and judges from its front what makes it
// too long.
func (c *verifier) add(path string) error {
	q := queued{path: path}
	if n, err := ParseName(path); err == nil && !n.Part {
		q.read = c.start(n)
		c.queue.readers++
	}
	c.queue.names = append(c.queue.names, q)
	for c.queue.readers > runtime.GOMAXPROCS(0) {
		if err := c.pop(); err != nil {
			return err
		}
	}
	return nil
}

// pop judges the first name of the queue.
func (c *verifier) pop() error {
	q := c.queue.names[0]
	c.queue.names = c.queue.names[1:]
	if q.read != nil {
		c.queue.readers--
		defer q.read.end()
	}
	return c.file(q.path, q.read)
}

// Progress is how far a verification has come.
type Progress struct {
	Segments int64
	Records  int64
	Bytes    int64  // of segments that were judged
	Segment  string // that is being judged
}

// progressEvery is how often progress is told.
const progressEvery = 200 * time.Millisecond

// tell says how far it has come, at times.
func (c *verifier) tell(segment string) {
	if c.options.Progress == nil {
		return
	}
	if now := time.Now(); now.Sub(c.told) >= progressEvery {
		c.told = now
		c.options.Progress(Progress{c.report.Segments, c.report.Records, c.report.Bytes, segment})
	}
}
