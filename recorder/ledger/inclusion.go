package ledger

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/witness"
)

// Logged says that the sink's own log has an epoch's checkpoint.
type Logged struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Index  int64  `json:"index"`
	// Cosigned is when the last of a quorum cosigned the log with it, Witnesses
	// who did. Where no witnesses were given it is the log's own word: Asserted.
	Cosigned  time.Time `json:"cosigned,omitzero"`
	Witnesses []string  `json:"witnesses,omitempty"`
	Quorum    int       `json:"quorum"`
	Asserted  bool      `json:"asserted,omitempty"`
}

// Included checks that the log, and a quorum of its witnesses, vouch for an
// epoch's signed checkpoint. The code says what is wrong where there is an
// error. Checkpoints that were kept elsewhere count where they are of the same
// size; how old the cosignatures are is not judged.
func (o *Log) Included(signed []byte, i *sinklog.Inclusion) (*Logged, Code, error) {
	times, err := witness.NewTimes(o.Key)
	if err != nil {
		return nil, LogWrong, err
	}
	log, err := note.NewVerifier(times.String())
	if err != nil {
		return nil, LogWrong, err
	}
	others := []note.Verifier{times}
	for _, w := range o.Witnesses {
		others = append(others, w)
	}
	c, n, err := i.Check(signed, log, others...)
	if err != nil {
		return nil, LogWrong, err
	}
	l := &Logged{Origin: log.Name(), Size: c.N, Index: i.Index, Quorum: o.Quorum, Asserted: len(o.Witnesses) == 0}
	if l.Quorum == 0 {
		l.Quorum = len(o.Witnesses)
	}
	for k, b := range o.Checkpoints {
		kept, _, err := witness.OpenCheckpoint(b, log)
		if err != nil {
			return nil, LogForked, fmt.Errorf("checkpoint %d of the log that was kept elsewhere: %w", k+1, err)
		}
		if kept.N == c.N && kept.Hash != c.Hash {
			return nil, LogForked, fmt.Errorf("the log was forked: at size %d it has the root %s here, the checkpoint that was kept elsewhere states %s", c.N, c.Hash, kept.Hash)
		}
	}
	var at []time.Time
	for _, s := range n.Sigs {
		if t, ok := times.Time(s); ok && l.Asserted {
			at = append(at, t)
		}
		for _, w := range o.Witnesses {
			if t, ok := w.Time(s); ok && !slices.Contains(l.Witnesses, w.Name()) {
				at = append(at, t)
				l.Witnesses = append(l.Witnesses, w.Name())
			}
		}
	}
	slices.SortFunc(at, func(a, b time.Time) int { return a.Compare(b) })
	if !l.Asserted && len(at) < l.Quorum {
		return nil, LogUncosigned, fmt.Errorf("the log's checkpoint was cosigned by %d of the %d witnesses that were given, want %d", len(at), len(o.Witnesses), l.Quorum)
	}
	if len(at) > 0 {
		l.Cosigned = at[max(1, l.Quorum)-1]
	}
	return l, "", nil
}
