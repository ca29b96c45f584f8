package ledger_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

func lostVault(t *testing.T) (v *ledgertest.Vault, g *ledgertest.Gateway, lost record.Epoch, receipts []record.Receipt, trust *ledger.Trust) {
	t.Helper()
	v = ledgertest.New()
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	g = ledgertest.NewGateway(v, "gw-1", public)
	signer, key := ledgertest.Deployment("acme")
	g.Deployment = signer
	if trust, err = ledger.ParseTrust(key); err != nil {
		t.Fatal(err)
	}
	exchange := func(end bool) {
		id := g.Append(record.Draft{Kind: record.KindIntent, Session: "s", Body: []byte("{}")})
		receipts = append(receipts, g.Receipt(id))
		if end {
			g.Append(record.Draft{Kind: record.KindOutcome, Session: "s", Exchange: id.Sequence, Body: []byte("{}")})
		}
	}
	g.Begin()
	exchange(true)
	g.Cut()
	exchange(true)
	exchange(false)
	g.Lose(false)
	lost = g.Epoch
	g.Begin()
	exchange(true)
	g.Close()
	return v, g, lost, receipts, trust
}

func TestLostTail(t *testing.T) {
	v, _, lost, receipts, trust := lostVault(t)
	r, err := ledger.Verify(t.Context(), v, ledger.Options{Trust: trust, Receipts: receipts})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Sound || r.Verdict != ledger.Complete || len(r.LostTails) != 1 {
		t.Fatalf("%+v", r)
	}
	if l := r.LostTails[0]; l.Epoch != lost.String() || l.Gateway != "gw-1" || l.Sequence != 6 || l.Exchanges != 1 {
		t.Errorf("lost tail %+v", l)
	}
	if x := r.Exchanges; x.Lost != 1 || x.Ended != 3 || x.Pending != 0 {
		t.Errorf("exchanges %+v", x)
	}
}

// What can be done to a vault with a salvaged tail.
func TestLostTailTampered(t *testing.T) {
	note := func(v *ledgertest.Vault) string { return v.Names(vault.SalvagePrefix)[0] }
	salvaged := func(v *ledgertest.Vault, lost record.Epoch) string {
		var last string
		for _, n := range v.Names(vault.SegmentsPrefix) {
			if strings.Contains(n, lost.String()) {
				last = n
			}
		}
		return last
	}
	for _, c := range []struct {
		name string
		do   func(v *ledgertest.Vault, g *ledgertest.Gateway, lost record.Epoch)
		code ledger.Code
	}{
		{"no note", func(v *ledgertest.Vault, _ *ledgertest.Gateway, _ record.Epoch) { delete(v.Files, note(v)) }, ledger.TailLost},
		{"the salvaged segment dropped", func(v *ledgertest.Vault, _ *ledgertest.Gateway, lost record.Epoch) {
			delete(v.Files, salvaged(v, lost))
		}, ledger.SegmentMissing},
		{"dropped with its note", func(v *ledgertest.Vault, _ *ledgertest.Gateway, lost record.Epoch) {
			delete(v.Files, note(v))
			delete(v.Files, salvaged(v, lost))
		}, ledger.TailLost},
		{"a note of an earlier end", func(v *ledgertest.Vault, g *ledgertest.Gateway, lost record.Epoch) {
			delete(v.Files, note(v))
			g.Salvaged(lost, 3, record.ChainHead{1})
		}, ledger.TailLost},
		{"a note with another head", func(v *ledgertest.Vault, g *ledgertest.Gateway, lost record.Epoch) {
			g.Salvaged(lost, 6, record.ChainHead{1})
		}, ledger.SalvageWrong},
		{"the tail cut to an earlier segment, with a note of the writer's own", func(v *ledgertest.Vault, g *ledgertest.Gateway, lost record.Epoch) {
			seg, err := ledger.OpenSegment(t.Context(), v, salvaged(v, lost))
			if err != nil {
				t.Fatal(err)
			}
			head, first := seg.Header().Head, seg.Header().First
			delete(v.Files, note(v))
			delete(v.Files, salvaged(v, lost))
			g.Salvaged(lost, first-1, head)
		}, ledger.Omitted}, // by the receipts alone; without an anchor no tail shows
		{"no note at all in its place", func(v *ledgertest.Vault, _ *ledgertest.Gateway, _ record.Epoch) {
			v.Files[note(v)] = []byte("{}")
		}, ledger.SalvageWrong},
		{"a foreign file", func(v *ledgertest.Vault, _ *ledgertest.Gateway, _ record.Epoch) {
			v.Files["salvage/x"] = nil
		}, ledger.FileUnknown},
		{"the note of another gateway", func(v *ledgertest.Vault, _ *ledgertest.Gateway, lost record.Epoch) {
			name := note(v)
			b := v.Files[name]
			delete(v.Files, name)
			v.Files[strings.Replace(name, "gw-1", "gw-2", 1)] = bytes.Replace(b, []byte("gw-1"), []byte("gw-2"), 1)
		}, ledger.TailLost},
		{"a byte of the salvaged segment", func(v *ledgertest.Vault, _ *ledgertest.Gateway, lost record.Epoch) {
			b := v.Files[salvaged(v, lost)]
			b[len(b)-900] ^= 1
		}, ledger.FrameWrong},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, g, lost, receipts, trust := lostVault(t)
			c.do(v, g, lost)
			r, err := ledger.Verify(t.Context(), v, ledger.Options{Trust: trust, Receipts: receipts})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range r.Findings {
				found = found || f.Code == c.code
			}
			if r.Sound || !found {
				t.Errorf("want %s, got %v", c.code, r.Findings)
			}
		})
	}
}

// An epoch's first segment is there before the last one of the epoch before, or
// before any of it: for a while that is how things come, later it is a finding.
func TestEpochAwaited(t *testing.T) {
	build := func() (*ledgertest.Vault, []record.Epoch) {
		v := ledgertest.New()
		tenant, err := record.NewTenant()
		if err != nil {
			t.Fatal(err)
		}
		public, err := tenant.Public()
		if err != nil {
			t.Fatal(err)
		}
		g := ledgertest.NewGateway(v, "gw-1", public)
		var epochs []record.Epoch
		for range 3 {
			g.Begin()
			g.Append(record.Draft{Kind: record.KindIntent, Session: "s", Body: []byte("{}")})
			g.Cut()
			g.Append(record.Draft{Kind: record.KindIntent, Session: "s", Body: []byte("{}")})
			g.Crash()
			epochs = append(epochs, g.Epoch)
		}
		return v, epochs
	}
	for _, c := range []struct {
		name string
		drop func(v *ledgertest.Vault, epochs []record.Epoch)
		code ledger.Code
	}{
		{"the end of the one before", func(v *ledgertest.Vault, epochs []record.Epoch) {
			names := v.Names(vault.SegmentsPrefix)
			for i, n := range names {
				if strings.Contains(n, epochs[2].String()) {
					delete(v.Files, names[i-1])
					return
				}
			}
		}, ledger.SegmentMissing},
		{"all of the one before", func(v *ledgertest.Vault, epochs []record.Epoch) {
			for _, n := range v.Names(vault.SegmentsPrefix) {
				if strings.Contains(n, epochs[1].String()) {
					delete(v.Files, n)
				}
			}
		}, ledger.EpochWrong},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, epochs := build()
			c.drop(v, epochs)
			for _, later := range []time.Duration{time.Minute, time.Hour} {
				r, err := ledger.Verify(t.Context(), v, ledger.Options{Now: func() time.Time { return ledgertest.Start.Add(later) }})
				if err != nil {
					t.Fatal(err)
				}
				if later == time.Hour {
					if r.Sound || r.Findings[0].Code != c.code {
						t.Errorf("an hour later: %v", r.Findings)
					}
					continue
				}
				if !r.Sound || r.Verdict != ledger.Pending || len(r.Notices) == 0 || r.Notices[0].Code != ledger.EpochAwaited {
					t.Errorf("%v %v %v", r.Verdict, r.Findings, r.Notices)
				}
			}
		})
	}
}

// A gateway that was thought lost goes on: its checkpoints count records from its
// own cut, which the sink's cuts do not move. Where no note says that the sink
// cut there, the segment begins where it must not.
func TestSalvagedGoesOn(t *testing.T) {
	for _, c := range []struct {
		name string
		drop string // which note
		code ledger.Code
	}{
		{name: "as it comes"},
		{name: "without the note of the first cut", drop: "00000000000000000003.cut.json", code: ledger.ExpiryWrong},
		{name: "without the note of the second cut", drop: "00000000000000000005.cut.json", code: ledger.ExpiryWrong},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := ledgertest.New()
			tenant, err := record.NewTenant()
			if err != nil {
				t.Fatal(err)
			}
			public, err := tenant.Public()
			if err != nil {
				t.Fatal(err)
			}
			g := ledgertest.NewGateway(v, "gw-1", public)
			exchange := func(class string) {
				id := g.Append(record.Draft{Kind: record.KindIntent, Session: "s", Class: class, Body: []byte("{}")})
				g.Append(record.Draft{Kind: record.KindOutcome, Session: "s", Class: class, Exchange: id.Sequence, Body: []byte("{}")})
			}
			g.Begin()
			g.Append(record.Draft{Kind: record.KindHeartbeat, Body: []byte("{}")})
			g.Cut()
			exchange("standard")
			g.Salvage()
			exchange("long")
			g.Salvage()
			exchange("standard")
			exchange("short")
			g.Cut()
			exchange("standard")
			g.Close()
			if c.drop != "" {
				name := vault.SalvageFolder("gw-1", g.Epoch) + c.drop
				if v.Files[name] == nil {
					t.Fatalf("no %s in %q", name, v.Names(vault.SalvagePrefix))
				}
				delete(v.Files, name)
			}
			r, err := ledger.Verify(t.Context(), v, ledger.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if c.code == "" && (!r.Sound || r.Verdict != ledger.Complete) {
				t.Errorf("%v", r.Findings)
			}
			if c.code != "" && (r.Sound || r.Findings[0].Code != c.code) {
				t.Errorf("want %s, got %v", c.code, r.Findings)
			}
		})
	}
}

// A journal is lost after another epoch took it over, with records of the one
// before that Pub/Sub never had. Where the journal was not lost, they are missing.
func TestLostAfterTakeOver(t *testing.T) {
	for _, lost := range []bool{true, false} {
		v := ledgertest.New()
		tenant, err := record.NewTenant()
		if err != nil {
			t.Fatal(err)
		}
		public, err := tenant.Public()
		if err != nil {
			t.Fatal(err)
		}
		g := ledgertest.NewGateway(v, "gw-1", public)
		heartbeat := func() { g.Append(record.Draft{Kind: record.KindHeartbeat, Body: []byte("{}")}) }
		g.Begin()
		heartbeat()
		g.Cut()
		heartbeat()
		g.Salvage()
		heartbeat()
		g.Crash()
		first := g.Epoch
		for _, n := range v.Names(vault.SegmentsPrefix) {
			if id, err := vault.ParseSegmentName(n); err == nil && id.Last == 4 {
				delete(v.Files, n) // it was on the disk alone
			}
		}
		g.Begin()
		heartbeat()
		if lost {
			g.Lose(false)
		} else {
			g.Crash()
		}
		g.Begin()
		g.Close()
		r, err := ledger.Verify(t.Context(), v, ledger.Options{})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case !lost && (r.Sound || r.Findings[0].Code != ledger.SegmentMissing):
			t.Errorf("not lost: %v", r.Findings)
		case lost && (!r.Sound || len(r.LostTails) != 2):
			t.Errorf("lost: %v %+v", r.Findings, r.LostTails)
		case lost:
			if l := r.LostTails[0]; l.Epoch != first.String() || l.Sequence != 3 || l.Cited != 4 {
				t.Errorf("%+v", l)
			}
		}
	}
}
