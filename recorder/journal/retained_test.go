package journal

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

// TestRetained: each checkpoint, recovery's too, states when the records before
// it expire, through rotation, freeing and crashes; and the next epoch's open
// record cites it.
func TestRetained(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	fs := newMemFS()
	cfg := testConfig("/j", fs)
	cfg.SegmentSize, cfg.CutBytes, cfg.Limit = 16<<10, 4<<10, 1<<20
	type end struct {
		sequence uint64
		until    record.Latest
	}
	ends := map[record.Epoch]end{}
	checkpoints, cuts := 0, 0
	for round := range 9 {
		cfg.FS = fs
		cfg.Retention = map[string]time.Duration{"standard": 24 * time.Hour, "short": time.Hour, "long": 48 * time.Hour}
		if round == 8 {
			cfg.Retention["long"] = 0
		}
		j := mustOpen(t, cfg)
		for range 20 + rng.IntN(40) {
			class := []string{"short", "standard", "long"}[rng.IntN(3)]
			mustAppend(t, j, record.Draft{Kind: record.KindReceived, Session: "s-1", Class: class, Body: make([]byte, rng.IntN(900))})
		}
		if round%2 == 1 {
			// What was freed goes on to be stated, by the state file too.
			if err := j.Acknowledge(j.Epoch(), j.Stats().Last/2); err != nil {
				t.Fatal(err)
			}
		}
		if round%3 != 2 {
			fs = fs.crash([]crashMode{loseAll, keepAll, keepSome}[rng.IntN(3)], rng)
			continue
		}
		mustClose(t, j)
		s := drain(t, j)
		for _, e := range s.epochs {
			var r record.Retained
			var frames []record.Frame
			for _, it := range s.items[e] {
				frames = append(frames, it.Frame)
			}
			// Of what was freed the first span's beginning is not here.
			first := slices.IndexFunc(frames, func(f record.Frame) bool { return f.Kind.Leaf() })
			partial := frames[first].Sequence > 1
			for i := range frames {
				f := &frames[i]
				if f.Kind.Leaf() {
					if f.Sequence == 1 {
						var o record.Open
						if err := record.Unmarshal(s.plain[record.ID{Epoch: e, Sequence: 1}], &o); err != nil {
							t.Fatal(err)
						}
						if o.Previous != nil {
							id, _ := record.ParseEpoch(o.Previous.Epoch)
							if x, ok := ends[id]; ok && (x.sequence != o.Previous.Sequence || x.until.String() != o.Previous.Expiry) {
								t.Errorf("the open record cites %s of record %d, the epoch ended with %s at %d", o.Previous.Expiry, o.Previous.Sequence, x.until, x.sequence)
							}
						}
					}
					r.Add(f.Class, f.Expiry)
					continue
				}
				if f.Kind != record.KindCheckpoint {
					continue
				}
				checkpoints++
				st, err := record.Stated(f)
				if err != nil || st.Retained == nil {
					t.Fatalf("checkpoint of %d: %v, %v", f.Sequence, st.Retained, err)
				}
				if partial {
					if f.Flags&record.FlagCut != 0 {
						partial, r = false, record.Retained{Before: st.Retained.Latest()}
					}
					ends[e] = end{f.Sequence, st.Retained.Latest()}
					continue
				}
				if !st.Retained.Equal(&r) {
					t.Fatalf("round %d: the checkpoint of record %d states %+v, its records give %+v", round, f.Sequence, st.Retained, r)
				}
				ends[e] = end{f.Sequence, r.Latest()}
				if f.Flags&record.FlagCut != 0 {
					cuts++
					r.Cut()
				}
			}
		}
	}
	if checkpoints < 100 || cuts < 10 || len(ends) < 9 {
		t.Errorf("only %d checkpoints, %d cuts, epochs %v", checkpoints, cuts, slices.Collect(maps.Keys(ends)))
	}
}

// TestOwnClass: of several classes that are kept as long the first by name is
// the gateway's, whatever the default is.
func TestOwnClass(t *testing.T) {
	for want, classes := range map[string]map[string]time.Duration{
		"standard": {"standard": 24 * time.Hour, "a": time.Hour},
		"long":     {"standard": 24 * time.Hour, "long": 25 * time.Hour, "zlong": 25 * time.Hour},
		"ever":     {"standard": 24 * time.Hour, "ever": 0, "long": 1000 * time.Hour},
	} {
		c := testConfig("/j", newMemFS())
		c.Retention = classes
		c, err := c.withDefaults()
		if err != nil || c.own != want {
			t.Errorf("%v: the gateway's own class is %q (%v), want %q", classes, c.own, err, want)
		}
	}
}
