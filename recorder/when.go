package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// forms are the ways to write a moment; without a zone it is UTC.
var forms = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly}

// units of the short form. A day has 24 hours.
var units = map[byte]time.Duration{
	's': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour,
}

// mostAgo is far enough, and added to itself still fits a duration.
const mostAgo = 100 * 365 * 24 * time.Hour

// parseTime reads a moment: RFC 3339, a day, "now", or how long ago: "90m",
// "2h30m", "3d ago".
func parseTime(s string, now time.Time) (time.Time, error) {
	s = strings.TrimSpace(s)
	if s == "now" {
		return now.UTC(), nil
	}
	for _, f := range forms {
		if t, err := time.Parse(f, s); err == nil {
			return t.UTC(), nil
		}
	}
	ago := strings.TrimSpace(strings.TrimSuffix(s, "ago"))
	d, ok := span(ago)
	if !ok {
		return time.Time{}, fmt.Errorf("%q is no time: want RFC 3339 (2026-03-14T09:00:00Z), a day (2026-03-14, UTC), or how long ago (90m, 2h, 3d, 1w)", s)
	}
	return now.Add(-d).UTC(), nil
}

// span reads numbers with units, the larger first or not.
func span(s string) (time.Duration, bool) {
	var total time.Duration
	for first := true; s != "" || first; first = false {
		n := 0
		for n < len(s) && '0' <= s[n] && s[n] <= '9' {
			n++
		}
		if n == 0 || n == len(s) {
			return 0, false
		}
		count, err := strconv.ParseInt(s[:n], 10, 64)
		unit, ok := units[s[n]]
		if err != nil || !ok || count > int64(mostAgo/unit) {
			return 0, false
		}
		if total += time.Duration(count) * unit; total > mostAgo {
			return 0, false
		}
		s = strings.TrimLeft(s[n+1:], " ")
	}
	return total, true
}
