package sinklog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// index reads which cuts the log has, from the newest bundle back to the first
// that is there: older ones may have expired.
func (l *Log) index(ctx context.Context) error {
	entries, err := ParseBundle(l.bundle)
	if err != nil {
		return err
	}
	for _, e := range entries {
		l.note(e)
	}
	for n := l.tree.N/TileWidth - 1; n >= 0; n-- {
		name := BundleName(n, TileWidth)
		b, err := l.read(ctx, name, MaxBundle)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		entries, err := ParseBundle(b)
		if err != nil {
			return broken(name, "%w", err)
		}
		for _, e := range entries {
			l.note(e)
		}
	}
	return nil
}

// scan adds the cuts of the vault's segments that are not in the log: those of
// before there was one, and those that a crash left.
func (l *Log) scan(ctx context.Context) error {
	added := 0
	skip := map[record.Epoch]bool{}
	for name, err := range l.c.Vault.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return err
		}
		id, err := vault.ParseSegmentName(name)
		if err != nil || id.Part || id.Last <= l.logged[id.Epoch] || skip[id.Epoch] {
			continue
		}
		last, err := lastCut(ctx, l.c.Vault, name, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var bad *vault.SegmentError
		if errors.As(err, &bad) {
			skip[id.Epoch] = true
			l.alarm("segment "+name, fmt.Errorf("log: a segment that is not in the log is wrong, its epoch is left out: %w", err))
			continue
		}
		if err != nil {
			return err
		}
		l.pending = append(l.pending, last)
		l.arrived(last)
		added++
		for len(l.pending) >= TileWidth {
			if err := l.commit(ctx); err != nil {
				return err
			}
		}
	}
	if added > 0 {
		l.log.Info("log: segments of before the start are added", "segments", added)
	}
	return nil
}

// gaps looks for the cuts between what the log has of an epoch and what came
// now: another sink may have stored them and died.
func (l *Log) gaps(ctx context.Context) error {
	at := map[record.Epoch]uint64{}
	found := false
	for _, c := range l.pending {
		last := max(at[c.Epoch], l.logged[c.Epoch])
		if c.First > last+1 && c.First > l.judged[c.Epoch] {
			found = true
			l.judged[c.Epoch] = c.First
		}
		at[c.Epoch] = max(last, c.Last)
	}
	if !found {
		return nil
	}
	// What the scan finds goes before what waits.
	waiting := l.pending
	l.pending = nil
	err := l.scan(ctx)
	l.pending = append(l.pending, waiting...)
	if err != nil {
		clear(l.judged)
	}
	return err
}

// lastCut reads a segment to its end and returns its cut checkpoint.
func lastCut(ctx context.Context, v vault.Vault, name string, id vault.Segment) (cut, error) {
	r, closer, err := vault.OpenSegment(ctx, v, name)
	if err != nil {
		return cut{}, err
	}
	defer closer.Close()
	var last record.Frame
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return cut{}, err
		}
		last = f
	}
	s, err := record.Stated(&last)
	if err == nil && (last.Flags&record.FlagCut == 0 || s.Size != id.Last) {
		err = fmt.Errorf("ends with a checkpoint for record %d (cut: %t), its name says %d", s.Size, last.Flags&record.FlagCut != 0, id.Last)
	}
	if err == nil && (s.Epoch != id.Epoch || s.Gateway != id.Gateway) {
		err = fmt.Errorf("its cut checkpoint is of epoch %s of gateway %s", s.Epoch, s.Gateway)
	}
	if err != nil {
		return cut{}, &vault.SegmentError{Name: name, Offset: r.Offset(), Err: err}
	}
	return cut{Epoch: id.Epoch, First: id.First, Last: id.Last, Note: last.Body}, nil
}
