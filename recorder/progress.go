package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"verbatim.dev/recorder/ledger"
)

// progressLine is how often a line of progress is written where it is not
// redrawn.
const progressLine = 5 * time.Second

// progress shows on stderr how far a long verification has come: on a terminal
// in one line that is redrawn, else in a line at times. It is for one goroutine.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time
	began    time.Time
	last     time.Time // of the last line
	drawn    bool
}

func newProgress(stderr io.Writer) *progress {
	p := &progress{w: stderr, now: time.Now}
	if f, ok := stderr.(*os.File); ok {
		s, err := f.Stat()
		p.terminal = err == nil && s.Mode()&os.ModeCharDevice != 0
	}
	p.began = p.now()
	p.last = p.began
	return p
}

// show implements [ledger.Options].Progress.
func (p *progress) show(x ledger.Progress) {
	now := p.now()
	if !p.terminal && now.Sub(p.last) < progressLine {
		return
	}
	p.last, p.drawn = now, true
	rate := ""
	if s := now.Sub(p.began).Seconds(); s > 0 {
		rate = ", " + size(int64(float64(x.Bytes)/s)) + "/s"
	}
	text := fmt.Sprintf("verify: %d segments, %d records, %s%s", x.Segments, x.Records, size(x.Bytes), rate)
	if n, err := ledger.ParseName(x.Segment); err == nil {
		text += ", at " + n.Day + " " + n.Gateway
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", cut(oneLine(text), 79))
	} else {
		fmt.Fprintln(p.w, oneLine(text))
	}
}

// end takes the line away.
func (p *progress) end() {
	if p.terminal && p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
