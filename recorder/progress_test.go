package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/ledger"
)

func TestProgress(t *testing.T) {
	at := time.Unix(1000, 0)
	x := ledger.Progress{Segments: 7, Records: 2000, Bytes: 40_000_000, Segment: "segments/dt=2026-03-14/gw-1/06eeq4qag1hqfnwe49a5rg7yac/00000000000000000001-00000000000000000009.standard.seg"}
	for _, terminal := range []bool{false, true} {
		var b bytes.Buffer
		p := newProgress(&b)
		p.terminal, p.now, p.began, p.last = terminal, func() time.Time { return at }, at, at
		for range 60 { // 12 seconds
			at = at.Add(200 * time.Millisecond)
			p.show(x)
		}
		p.end()
		lines, redrawn := strings.Count(b.String(), "\n"), strings.Count(b.String(), "\r\x1b[K")
		if !terminal && (lines != 2 || redrawn != 0) || terminal && (lines != 0 || redrawn != 61) {
			t.Errorf("terminal %t: %d lines, %d redrawn: %q", terminal, lines, redrawn, b.String())
		}
		if !strings.Contains(b.String(), "verify: 7 segments, 2000 records, 40.0 MB, ") || !strings.Contains(b.String(), "at 2026-03-14 gw-1") {
			t.Errorf("%q", b.String())
		}
	}
}
