// Package usage counts what principals and their runs use up over time: what a
// policy's budgets are held against.
//
// Rule of the folder: a count may be too high, never too low. It survives the
// end of the process to the last query; where the machine itself went down, what
// was counted in the last minute before counts twice, for as much may be lost.
// A count that cannot be kept is not known, and what is not known a policy with
// budgets refuses.
//
// Replicas share nothing: each gives out its share of every budget. A replica of
// share 0.5 tells the policy twice of what it saw, so that it reaches a budget at
// half of it.
package usage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"verbatim.dev/policy"
)

// Use is what one exchange used.
type Use struct {
	Queries int64
	// Bytes processed, or billed, by Job as far as it is known: a job's bytes
	// count once, however often they are told.
	Bytes int64
	Job   string
	Rows  int64 // delivered
}

// Config is what a Book needs.
type Config struct {
	File string // made when it is not there, mode 0600
	// Share is the part of each budget that this replica gives out, above 0 and
	// at most 1; 1 where 0.
	Share  float64
	Now    func() time.Time // time.Now where nil
	Logger *slog.Logger
}

// Longest is the longest window that is kept.
const Longest = 31 * 24 * time.Hour

const (
	fine        = 60   // seconds of a bucket ...
	fineFor     = 7200 // ... for windows up to so many seconds
	coarse      = 3600
	maxKeys     = 200_000
	maxJobs     = 50_000
	syncEvery   = 250 * time.Millisecond
	compactFrom = 8 << 20 // bytes of the file
	maxLine     = 4096
)

// Book holds the counts. It is safe for concurrent use.
type Book struct {
	cfg Config

	mu        sync.Mutex
	keys      map[string]*series
	jobs, old map[string]int64 // bytes of jobs that were counted
	file      *os.File
	size      int64 // of the file
	compacted int64 // size after the last compaction
	dirty     bool
	broken    error
	line      []byte
}

// series are the buckets of one principal or run, oldest first.
type series struct{ fine, coarse []bucket }

type bucket struct {
	Start                int64
	Queries, Bytes, Rows int64
}

// entry is a line of the file. The first of each start has Boot; the last has
// End where it closed in order.
type entry struct {
	Time      int64  `json:"t,omitempty"` // Unix seconds
	Principal string `json:"p,omitempty"`
	Run       string `json:"r,omitempty"`
	Queries   int64  `json:"q,omitempty"`
	Bytes     int64  `json:"b,omitempty"`
	Rows      int64  `json:"n,omitempty"`
	Version   int    `json:"v,omitempty"`
	Boot      string `json:"boot,omitempty"`
	End       bool   `json:"end,omitempty"`
}

// Open reads the file, or makes it.
func Open(c Config) (*Book, error) {
	if c.Share == 0 {
		c.Share = 1
	}
	if c.Share < 0 || c.Share > 1 || math.IsNaN(c.Share) {
		return nil, fmt.Errorf("usage: share %v: want a part above 0 and at most 1", c.Share)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Book{cfg: c, keys: map[string]*series{}, jobs: map[string]int64{}}
	f, err := os.Open(c.File)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("usage: %w", err)
	default:
		err := b.load(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("usage: %s: %w", c.File, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.compact(); err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	return b, nil
}

// load reads what the file holds. Its last line may be cut: its write was.
func (b *Book) load(f io.Reader) error {
	r := bufio.NewReaderSize(f, 64<<10)
	boot, ended := "", true
	var recent []entry
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			break // what follows the last newline was not written to its end
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		var e entry
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil || e.Queries < 0 || e.Bytes < 0 || e.Rows < 0 {
			return fmt.Errorf("line %d is no count of this gateway's: move the file away to begin at zero, knowingly", n)
		}
		switch {
		case e.Version > 1:
			return fmt.Errorf("line %d is of version %d: it was written by a newer gateway", n, e.Version)
		case e.Boot != "" || e.Version > 0:
			boot, ended, recent = e.Boot, false, recent[:0]
		case e.End:
			ended, recent = true, recent[:0]
		default:
			b.count(e)
			for len(recent) > 0 && recent[0].Time < e.Time-fine {
				recent = recent[1:]
			}
			recent = append(recent, e)
		}
	}
	if !ended && boot != bootID() {
		for _, e := range recent {
			b.count(e)
		}
		b.cfg.Logger.Warn("the machine went down while usage was counted: the last minute counts twice", "counts", len(recent))
	}
	return nil
}

// bootID names the running of this machine, so that an end of the process and
// one of the machine can be told apart.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// count needs the mutex, but in Open.
func (b *Book) count(e entry) {
	for _, key := range []string{"p" + e.Principal, "r" + e.Run} {
		if len(key) == 1 {
			continue
		}
		s := b.keys[key]
		if s == nil {
			if len(b.keys) >= maxKeys {
				b.forget(e.Time)
			}
			s = &series{}
			b.keys[key] = s
		}
		s.fine = put(s.fine, e, fine, fineFor+fine)
		s.coarse = put(s.coarse, e, coarse, int64(Longest/time.Second)+coarse)
	}
}

// put adds to the bucket of the entry's time and drops those that are too old.
// A clock that went back counts in the newest.
func put(list []bucket, e entry, width, keep int64) []bucket {
	start := e.Time - e.Time%width
	if n := len(list); n > 0 && list[n-1].Start >= start {
		start = list[n-1].Start
	} else {
		list = append(list, bucket{Start: start})
	}
	last := &list[len(list)-1]
	last.Queries = add(last.Queries, e.Queries)
	last.Bytes = add(last.Bytes, e.Bytes)
	last.Rows = add(last.Rows, e.Rows)
	old := 0
	for old < len(list)-1 && list[old].Start+width < start-keep {
		old++
	}
	if old > len(list)/2 {
		return slices.Clone(list[old:])
	}
	return list[old:]
}

func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// forget drops whom nothing was counted of for longer than any window, and, if
// that makes no room, who was idle longest. It needs the mutex.
func (b *Book) forget(now int64) {
	type idle struct {
		key  string
		last int64
	}
	var all []idle
	for k, s := range b.keys {
		all = append(all, idle{k, s.coarse[len(s.coarse)-1].Start})
	}
	slices.SortFunc(all, func(x, y idle) int { return int(min(max(x.last-y.last, -1), 1)) })
	lost := 0
	for i, k := range all {
		old := k.last+coarse < now-int64(Longest/time.Second)
		if !old && i >= len(all)/10 {
			break
		}
		if !old {
			lost++
		}
		delete(b.keys, k.key)
	}
	if lost > 0 {
		b.cfg.Logger.Warn("too many principals and runs to count: the use of who was idle longest is forgotten", "forgotten", lost)
	}
}

// Add counts. It writes to the file and does not wait for the disk.
func (b *Book) Add(principal, run string, u Use) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bytes := u.Bytes
	if u.Job != "" && bytes > 0 {
		had, ok := b.jobs[u.Job]
		if !ok {
			had = b.old[u.Job]
		}
		if bytes <= had {
			bytes = 0
		} else {
			if len(b.jobs) >= maxJobs {
				b.old, b.jobs = b.jobs, map[string]int64{}
			}
			b.jobs[u.Job] = bytes
			bytes -= had
		}
	}
	if u.Queries == 0 && bytes == 0 && u.Rows == 0 {
		return
	}
	e := entry{Time: b.cfg.Now().Unix(), Principal: principal, Run: run, Queries: u.Queries, Bytes: bytes, Rows: u.Rows}
	b.count(e)
	if b.broken != nil {
		return
	}
	if err := b.write(e); err != nil {
		b.fail(err)
		return
	}
	if b.size > compactFrom && b.size > 2*b.compacted {
		if err := b.compact(); err != nil {
			b.fail(err)
		}
	}
}

// fail needs the mutex.
func (b *Book) fail(err error) {
	if b.broken == nil {
		b.broken = err
		b.cfg.Logger.Error("usage cannot be kept: budgets are not known from now on", "file", b.cfg.File, "error", err)
	}
}

// write needs the mutex.
func (b *Book) write(e entry) error {
	if !e.End && plain(e.Principal) && plain(e.Run) {
		b.line = e.append(b.line[:0])
	} else {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		b.line = append(append(b.line[:0], line...), '\n')
	}
	n, err := b.file.Write(b.line)
	b.size += int64(n)
	b.dirty = true
	return err
}

// append writes the line of a count as encoding/json would.
func (e *entry) append(b []byte) []byte {
	b = append(b, `{"t":`...)
	b = strconv.AppendInt(b, e.Time, 10)
	for _, f := range []struct{ key, value string }{{`,"p":"`, e.Principal}, {`,"r":"`, e.Run}} {
		if f.value != "" {
			b = append(append(append(b, f.key...), f.value...), '"')
		}
	}
	for _, f := range []struct {
		key   string
		value int64
	}{{`,"q":`, e.Queries}, {`,"b":`, e.Bytes}, {`,"n":`, e.Rows}} {
		if f.value != 0 {
			b = strconv.AppendInt(append(b, f.key...), f.value, 10)
		}
	}
	return append(b, '}', '\n')
}

// plain reports whether a text stands in JSON as it is.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

// Of returns what was used within each of the windows. It is not known where
// it could not be kept, or a window is longer than Longest.
func (b *Book) Of(principal, run string, windows []policy.Window) policy.Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.cfg.Now().Unix()
	u := policy.Usage{Known: b.broken == nil}
	for _, w := range windows {
		out := policy.UsageWindow{Of: w.Of, Seconds: w.Seconds}
		key := "p" + principal
		if w.Of == "run" {
			key = "r" + run
		}
		if time.Duration(w.Seconds) > Longest/time.Second {
			u.Known = false
		}
		if s := b.keys[key]; s != nil {
			list, width := s.fine, int64(fine)
			if w.Seconds > fineFor {
				list, width = s.coarse, coarse
			}
			for _, x := range slices.Backward(list) {
				if x.Start+width <= now-w.Seconds {
					break
				}
				out.Queries, out.Bytes, out.Rows = add(out.Queries, x.Queries), add(out.Bytes, x.Bytes), add(out.Rows, x.Rows)
			}
		}
		out.Queries, out.Bytes, out.Rows = b.whole(out.Queries), b.whole(out.Bytes), b.whole(out.Rows)
		u.Windows = append(u.Windows, out)
	}
	return u
}

// whole is what all replicas may have used when this one used n.
func (b *Book) whole(n int64) int64 {
	if b.cfg.Share == 1 {
		return n
	}
	v := math.Ceil(float64(n) / b.cfg.Share)
	if v >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(v)
}

// compact writes the counts anew, each bucket once, in the file's place. It
// needs the mutex, and waits for the disk: once in many thousand counts.
func (b *Book) compact() error {
	dir := filepath.Dir(b.cfg.File)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	next, err := os.OpenFile(b.cfg.File+".next", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	before := b.file
	keep := func(err error) error {
		next.Close()
		os.Remove(next.Name())
		return err
	}
	w := bufio.NewWriterSize(next, 64<<10)
	line := func(e entry) error {
		j, err := json.Marshal(e)
		if err == nil {
			_, err = w.Write(append(j, '\n'))
		}
		return err
	}
	oldest := b.cfg.Now().Unix() - int64(Longest/time.Second) - coarse
	for key, s := range b.keys {
		if len(s.coarse) == 0 || s.coarse[len(s.coarse)-1].Start < oldest {
			delete(b.keys, key)
			continue
		}
		for _, e := range s.entries(key) {
			if err := line(e); err != nil {
				return keep(err)
			}
		}
	}
	if err := line(entry{Version: 1, Boot: bootID()}); err != nil {
		return keep(err)
	}
	if err := w.Flush(); err != nil {
		return keep(err)
	}
	if err := next.Sync(); err != nil {
		return keep(err)
	}
	if err := os.Rename(next.Name(), b.cfg.File); err != nil {
		return keep(err)
	}
	if d, err := os.Open(dir); err == nil {
		err = d.Sync()
		d.Close()
		if err != nil {
			next.Close()
			return err
		}
	}
	size, err := next.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	b.file, b.size, b.compacted, b.dirty = next, size, size, false
	if before != nil {
		before.Close()
	}
	return nil
}

// entries are the buckets as lines from which both kinds come again: the coarse
// ones less what the fine ones of the same hour hold, then the fine ones.
func (s *series) entries(key string) []entry {
	var out []entry
	of := func(x bucket, at int64) entry {
		e := entry{Time: at, Queries: x.Queries, Bytes: x.Bytes, Rows: x.Rows}
		if key[0] == 'p' {
			e.Principal = key[1:]
		} else {
			e.Run = key[1:]
		}
		return e
	}
	for _, c := range s.coarse {
		rest := c
		for _, f := range s.fine {
			if f.Start >= c.Start && f.Start < c.Start+coarse {
				rest.Queries, rest.Bytes, rest.Rows = rest.Queries-f.Queries, rest.Bytes-f.Bytes, rest.Rows-f.Rows
			}
		}
		if rest.Queries > 0 || rest.Bytes > 0 || rest.Rows > 0 {
			rest.Queries, rest.Bytes, rest.Rows = max(rest.Queries, 0), max(rest.Bytes, 0), max(rest.Rows, 0)
			out = append(out, of(rest, c.Start))
		}
		for _, f := range s.fine {
			if f.Start >= c.Start && f.Start < c.Start+coarse {
				out = append(out, of(f, f.Start))
			}
		}
	}
	return out
}

// Run brings what was written to the disk, until ctx ends.
func (b *Book) Run(ctx context.Context) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.sync()
		}
	}
}

func (b *Book) sync() {
	b.mu.Lock()
	dirty, file := b.dirty, b.file
	b.dirty = false
	b.mu.Unlock()
	if !dirty {
		return
	}
	// A compaction may have closed the file: then it was synced there.
	if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		b.mu.Lock()
		b.fail(err)
		b.mu.Unlock()
	}
}

// Close ends the file in order.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	err := b.broken
	if err == nil {
		err = b.write(entry{End: true})
	}
	err = errors.Join(err, b.file.Sync(), b.file.Close())
	b.file, b.broken = nil, errors.Join(b.broken, os.ErrClosed)
	if err != nil {
		return fmt.Errorf("usage: %w", err)
	}
	return nil
}
