package ledger_test

import (
	"fmt"
	"strings"
	"testing"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/witness"
)

// TestIncluded: a proof shows that the sink's log and its witness have the
// epoch's checkpoint, and one that shows less is refused.
func TestIncluded(t *testing.T) {
	w, a, b := newLogWorld(t)
	b.Heartbeat()
	b.Cut() // the log has not come so far
	stranger, err := witness.NewKey("witness.example/w1", nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := witness.NewVerifier(stranger.WitnessKey())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := witness.NewKey("verbatim.dev/log/test", nil)
	if err != nil {
		t.Fatal(err)
	}
	prove := func(g interface{ Key() *record.EpochKey }, e record.Epoch, seq uint64) *ledger.Proof {
		t.Helper()
		p, err := ledger.Prove(t.Context(), w.vault, record.ID{Epoch: e, Sequence: seq})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if p, err = ledger.ParseProof(raw); err != nil {
			t.Fatal(err)
		}
		return p
	}
	log := &ledger.Log{Key: w.key.LogKey(), Witnesses: []*witness.Verifier{w.witness}}
	for _, seq := range []uint64{1, 2, 17, 31} {
		p := prove(b, b.Epoch, seq)
		if p.Extra.Log == nil {
			t.Fatalf("record %d: the log is left out", seq)
		}
		r, err := p.Verify(nil, log)
		if err != nil || r.Logged == nil || r.Logged.Cosigned.IsZero() || len(r.Logged.Witnesses) != 1 || r.Logged.Asserted || r.Size != 31 {
			t.Fatalf("record %d: %v %+v", seq, err, r)
		}
		if r, err = p.Verify(nil, &ledger.Log{Key: w.key.LogKey()}); err != nil || !r.Logged.Asserted || r.Logged.Cosigned.IsZero() {
			t.Errorf("record %d, no witness: %v %+v", seq, err, r)
		}
	}
	// The record behind the log's end is proven by the epoch alone.
	late := prove(b, b.Epoch, 32)
	if _, err := late.Verify(nil, nil); err != nil || late.Extra.Log != nil {
		t.Errorf("behind the log: %v %+v", err, late.Extra.Log)
	}
	if _, err := late.Verify(nil, log); err == nil || !strings.Contains(err.Error(), "had not yet") {
		t.Errorf("behind the log: %v", err)
	}

	good := prove(b, b.Epoch, 5)
	elsewhere := prove(a, a.Epoch, 1)
	older := []byte(string(w.vault.Files[w.vault.Names(sinklog.CheckpointPrefix)[1]]))
	for name, c := range map[string]struct {
		change func(i *sinklog.Inclusion)
		log    *ledger.Log
		want   string
	}{
		"another index":           {change: func(i *sinklog.Inclusion) { i.Index-- }, want: "do not lead"},
		"beyond the log":          {change: func(i *sinklog.Inclusion) { i.Index = 1 << 40 }, want: "in a log of"},
		"below it":                {change: func(i *sinklog.Inclusion) { i.Index = -1 }, want: "in a log of"},
		"a hash changed":          {change: func(i *sinklog.Inclusion) { i.Hashes[0] = i.Hashes[1] }, want: "do not lead"},
		"a hash dropped":          {change: func(i *sinklog.Inclusion) { i.Hashes = i.Hashes[1:] }, want: "do not lead"},
		"no hash":                 {change: func(i *sinklog.Inclusion) { i.Hashes[0] = "AAAA" }, want: "is no hash"},
		"of another entry":        {change: func(i *sinklog.Inclusion) { *i = *elsewhere.Extra.Log }, want: "do not lead"},
		"an older checkpoint":     {change: func(i *sinklog.Inclusion) { i.Checkpoint = string(older) }, want: "in a log of"},
		"cosignature cut off":     {change: func(i *sinklog.Inclusion) { i.Checkpoint = cutLine(i.Checkpoint, "witness.example/w1") }, want: "cosigned by 0 of the 1"},
		"signature cut off":       {change: func(i *sinklog.Inclusion) { i.Checkpoint = cutLine(i.Checkpoint, "verbatim.dev/log/test") }, want: "checkpoint"},
		"another witness's key":   {log: &ledger.Log{Key: w.key.LogKey(), Witnesses: []*witness.Verifier{other}}, want: "cosigned by 0 of the 1"},
		"a quorum of two":         {log: &ledger.Log{Key: w.key.LogKey(), Witnesses: []*witness.Verifier{w.witness, other}}, want: "cosigned by 1 of the 2"},
		"another log of the name": {log: &ledger.Log{Key: foreign.LogKey()}, want: "checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			p, i := *good, *good.Extra.Log
			i.Hashes = append([]string{}, i.Hashes...)
			if c.change != nil {
				c.change(&i)
			}
			p.Extra.Log = &i
			o := c.log
			if o == nil {
				o = log
			}
			if _, err := p.Verify(nil, o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, err := p.Verify(nil, nil); err != nil {
				t.Errorf("the epoch's own proof: %v", err)
			}
		})
	}

	// A checkpoint that was kept elsewhere: the same, and one of a fork.
	kept := *log
	kept.Checkpoints = [][]byte{[]byte(good.Extra.Log.Checkpoint)}
	if _, err := good.Verify(nil, &kept); err != nil {
		t.Error(err)
	}
	text, _, _ := strings.Cut(good.Extra.Log.Checkpoint, "\n\n")
	lines := strings.Split(text, "\n")
	lines[2] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	forked := strings.Join(lines, "\n") + "\n"
	line, err := witness.Line(forked, w.key.Signer())
	if err != nil {
		t.Fatal(err)
	}
	kept.Checkpoints = [][]byte{fmt.Appendf(nil, "%s\n%s", forked, line)}
	if _, err := good.Verify(nil, &kept); err == nil || !strings.Contains(err.Error(), "forked") {
		t.Errorf("a fork: %v", err)
	}
}

// cutLine takes the signature lines by a name out of a note.
func cutLine(signed, name string) string {
	var out strings.Builder
	for l := range strings.Lines(signed) {
		if !strings.HasPrefix(l, "— "+name+" ") {
			out.WriteString(l)
		}
	}
	return out.String()
}
