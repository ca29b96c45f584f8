package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"verbatim.dev/recorder/record"
)

// DamageError means that a journal holds acknowledged records that can no
// longer be read. Open does not repair it: cutting them off would be a loss that
// nobody hears of.
type DamageError struct {
	File   string
	Offset int64
	Err    error
}

// Error says what is wrong and what to do.
func (e *DamageError) Error() string {
	return fmt.Sprintf("journal %s is damaged at byte %d: %v; this is no torn tail, records that were acknowledged are affected: check the disk, move the folder %s away, keep it as evidence, and start again",
		e.File, e.Offset, e.Err, filepath.Dir(e.File))
}

// Unwrap returns what is wrong.
func (e *DamageError) Unwrap() error { return e.Err }

// epochLog is the log of one epoch. Its fields, but for those that never
// change, are guarded by the journal's mutex.
type epochLog struct {
	id      record.Epoch
	dir     string
	gateway string

	last     uint64 // last durable sequence
	acked    uint64 // everything up to it is durable elsewhere
	segments []*segment
}

// segment is a segment file. Its fields, but for log, first and name, are
// guarded by the journal's mutex.
type segment struct {
	log   *epochLog
	first uint64
	name  string

	last uint64 // last durable sequence, first-1 for none
	used int64  // durable bytes
	full bool   // it gets no more bytes
	gone bool   // acknowledged; its file is removed or about to be
	next *segment
}

func segmentName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.wal", first))
}

func stateName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.state", first))
}

// parseName reads a segment's or state file's name.
func parseName(name string) (first uint64, ext string, ok bool) {
	base, ext, ok := strings.Cut(name, ".")
	if !ok || len(base) != 20 || ext != "wal" && ext != "state" {
		return 0, "", false
	}
	first, err := strconv.ParseUint(base, 10, 64)
	return first, ext, err == nil && first > 0
}

// recovered is an epoch as it was found.
type recovered struct {
	log       *epochLog // nil where nothing of the epoch was ever durable
	position            // at its end
	closed    bool
	truncated int64
}

// recoverEpoch reads an older epoch, cuts off what no checkpoint covers and
// ends it with a cut.
func (j *Journal) recoverEpoch(ctx context.Context, id record.Epoch) (recovered, error) {
	dir := filepath.Join(j.cfg.Dir, id.String())
	names, err := j.fs.ReadDir(dir)
	if err != nil {
		return recovered{}, err
	}
	log := &epochLog{id: id, dir: dir}
	r := recovered{log: log}
	states := map[uint64]bool{}
	for _, name := range names {
		first, ext, ok := parseName(name)
		switch {
		case !ok && strings.HasSuffix(name, ".tmp"):
			if err := j.fs.Remove(filepath.Join(dir, name)); err != nil {
				return recovered{}, err
			}
		case !ok:
			j.log.Warn("journal folder holds a file that is not the journal's", "file", filepath.Join(dir, name))
		case ext == "state":
			states[first] = true
		default:
			log.segments = append(log.segments, &segment{log: log, first: first, name: segmentName(dir, first), full: true})
		}
	}
	if len(log.segments) == 0 {
		return recovered{}, j.removeEpoch(dir)
	}
	var at scanned
	for i, seg := range log.segments {
		if err := ctx.Err(); err != nil {
			return recovered{}, err
		}
		if at, err = j.recoverSegment(seg, at, i == 0, i == len(log.segments)-1); err != nil {
			return recovered{}, err
		}
		delete(states, seg.first)
	}
	for first := range states { // of segments that are freed, or were never made
		if err := j.fs.Remove(stateName(dir, first)); err != nil {
			return recovered{}, err
		}
	}
	r.position, r.closed, r.truncated = at.position, at.closed, at.lost
	log.last, log.acked = at.sequence, log.segments[0].first-1
	if log.last == 0 {
		// The process died before its open record was durable.
		return recovered{}, j.removeEpoch(dir)
	}
	return r, nil
}

// recoverSegment scans one segment, to whose beginning the epoch was read, and
// repairs its end if it is the last.
func (j *Journal) recoverSegment(seg *segment, from scanned, oldest, last bool) (at scanned, err error) {
	gateway, p, err := j.readState(seg)
	if err != nil {
		return at, err
	}
	if oldest {
		seg.log.gateway = gateway
		// What was freed before it was acknowledged, so it ended with a cut.
		from = scanned{position: p, cut: true}
		if p.sequence == 0 && p.head != record.NewChain(seg.log.id, gateway) {
			return at, &DamageError{File: seg.name, Err: errors.New("its state file does not begin the epoch's chain")}
		}
	} else if p.sequence != from.sequence || p.head != from.head || p.tree != from.tree || gateway != seg.log.gateway {
		return at, &DamageError{File: seg.name, Err: fmt.Errorf("it does not follow sequence %d: a segment before it is missing or cut", from.sequence)}
	}
	f, err := j.fs.Open(seg.name)
	if err != nil {
		return at, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return at, err
	}
	if at, err = scanSegment(f, size, from); err != nil {
		return at, fmt.Errorf("journal %s: %w", seg.name, err)
	}
	if at.bad != nil && (!last || at.later > 1 || errors.Is(at.bad, record.ErrUnknown)) {
		return at, &DamageError{File: seg.name, Offset: at.badAt, Err: at.bad}
	}
	if at.bad != nil {
		j.log.Warn("journal's torn tail is cut off", "file", seg.name, "offset", at.offset, "bytes", at.lost, "sequence", at.sequence, "error", at.bad)
	}
	seg.used, seg.last = at.offset, at.sequence
	if !last || at.sequence == 0 {
		return at, nil
	}
	if size != at.offset {
		if err := f.Truncate(at.offset); err != nil {
			return at, err
		}
	}
	if !at.cut {
		// Its key is gone: the last checkpoint is stated again, as a cut.
		last := at.last
		if last.Kind != record.KindCheckpoint {
			return at, &DamageError{File: seg.name, Offset: at.offset, Err: errors.New("the segment before it does not end with a cut")}
		}
		cp, err := record.Recut(&last)
		if err != nil {
			return at, err
		}
		b, err := cp.Encode(nil)
		if err != nil {
			return at, err
		}
		if _, err := f.WriteAt(b, at.offset); err != nil {
			return at, err
		}
		seg.used += int64(len(b))
	}
	if size != at.offset || !at.cut {
		return at, f.Datasync()
	}
	return at, nil
}

func (j *Journal) readState(seg *segment) (string, position, error) {
	name := stateName(seg.log.dir, seg.first)
	damaged := func(err error) (string, position, error) {
		return "", position{}, &DamageError{File: name, Err: err}
	}
	f, err := j.fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return damaged(errors.New("the segment's state file is missing"))
	}
	if err != nil {
		return "", position{}, err
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxState+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", position{}, err
	}
	if len(b) > maxState {
		return damaged(fmt.Errorf("it is larger than %d bytes", maxState))
	}
	gateway, p, err := decodeState(b, seg.log.id, seg.first)
	if err != nil {
		return damaged(fmt.Errorf("state file: %w", err))
	}
	return gateway, p, nil
}

// removeEpoch removes an epoch's folder with what is left in it. It may be
// called again after an error.
func (j *Journal) removeEpoch(dir string) error {
	names, err := j.fs.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return j.fs.SyncDir(j.cfg.Dir)
	}
	if err != nil {
		return err
	}
	// Segments first: without any, the folder is no epoch to recovery.
	for _, segments := range []bool{true, false} {
		for _, name := range names {
			if strings.HasSuffix(name, ".wal") != segments {
				continue
			}
			if err := j.fs.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if err := j.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	if err := j.fs.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return j.fs.SyncDir(j.cfg.Dir)
}
