package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"verbatim.dev/recorder/vault"
)

// Filter says which rows are wanted.
type Filter struct {
	// Since and Until bound the time of the request, Until excluded; zero: no
	// bound. Files of other days are not read.
	Since, Until time.Time
	// Match, where set, says whether a row of that time is wanted.
	Match func(*Row) bool
}

// ScanStats count what a scan met.
type ScanStats struct {
	Files   int64 // read
	Rows    int64 // of the time asked for
	Matched int64
}

// Scan calls emit for each row that fits, by days and within a day by epochs
// and sequences. The row is the callee's. It holds one file in memory. An error
// of emit ends the scan and is returned. It may run beside a build; then a file
// is read as it was at one moment.
func Scan(ctx context.Context, s Store, f Filter, emit func(*Row) error) (ScanStats, error) {
	var stats ScanStats
	from, to := "", ""
	since, until := micros(f.Since), micros(f.Until)
	if since != 0 {
		from = vault.Day(f.Since)
	}
	if until != 0 {
		to = vault.Day(f.Until)
	}
	var stop error
	for name, err := range s.List(ctx, RowsPrefix) {
		if err != nil {
			return stats, fmt.Errorf("index: %w", err)
		}
		id, err := parseFile(name)
		if err != nil || id.Day < from || to != "" && id.Day > to {
			continue // what is no file of the index is for Check to tell
		}
		content, _, err := s.Read(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			return stats, fmt.Errorf("index: %w", err)
		}
		stats.Files++
		err = decode(content, func(r *Row) error {
			if since != 0 && r.Received < since || until != 0 && r.Received >= until {
				return nil
			}
			stats.Rows++
			if f.Match != nil && !f.Match(r) {
				return nil
			}
			stats.Matched++
			stop = emit(r)
			return stop
		})
		if stop != nil {
			return stats, stop
		}
		if err != nil {
			return stats, fmt.Errorf("index: %s: %w", name, err)
		}
	}
	return stats, nil
}
