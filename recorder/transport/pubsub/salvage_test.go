package pubsub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// gateway is a real journal that ships over Pub/Sub and gives its callers
// nothing before Pub/Sub has it.
type gateway struct {
	dir  string
	j    *journal.Journal
	gate *Gate
	stop func() // shipping
}

var testTenant = sync.OnceValues(func() (*journal.Config, error) {
	t, err := record.NewTenant()
	if err != nil {
		return nil, err
	}
	public, err := t.Public()
	return &journal.Config{Tenant: public}, err
})

func startGateway(t testing.TB, c *cloud, dir string) *gateway {
	t.Helper()
	tenant, err := testTenant()
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(t.Context(), journal.Config{
		Dir: dir, Gateway: "gw", Version: "test", Tenant: tenant.Tenant, Class: "standard", Retention: map[string]time.Duration{"standard": time.Hour},
		Limit: 32 << 20, SegmentSize: 1 << 20, CutBytes: 48 << 10, CutInterval: 150 * time.Millisecond, Heartbeat: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{dir: dir, j: j, gate: NewGate(j, j.Epoch())}
	client := newClient(t, ClientConfig{Options: c.options(nil), Published: g.gate.Published, Message: 16 << 10})
	_, g.stop = start(t, func(ctx context.Context) error {
		return client.Ship(ctx, transport.Journal{Tail: func() transport.Source { return transport.NewSource(j.Tail()) }, Acknowledge: j.Acknowledge})
	})
	return g
}

// load appends exchanges, some of which stay open, until ctx ends, and returns
// the receipts that callers got.
func (g *gateway) load(ctx context.Context) []record.Receipt {
	var mu sync.Mutex
	var got []record.Receipt
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				session := fmt.Sprint("s-", w)
				k := g.gate.Append(record.Draft{Kind: record.KindIntent, Session: session, Body: []byte(strings.Repeat("x", 200+97*w+n%900))})
				if k.Wait(ctx) != nil {
					return
				}
				r, err := record.ParseReceipt(k.Receipt)
				if err != nil {
					panic(err)
				}
				mu.Lock()
				got = append(got, r)
				mu.Unlock()
				if n%3 != 0 {
					_ = g.gate.Append(record.Draft{Kind: record.KindOutcome, Exchange: k.ID.Sequence, Session: session, Body: []byte("{}")}).Wait(ctx)
				}
			}
		})
	}
	wg.Wait()
	return got
}

// die ends the gateway as a crash does: nothing is shipped any more, and its
// folder stays as it is.
func (g *gateway) die() {
	g.stop()
	g.gate.Close()
	// The close record that this writes is never shipped.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = g.j.Close(ctx, "test")
}

func (g *gateway) end(t testing.TB) {
	t.Helper()
	if err := g.j.Finish(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is held", func() bool { s := g.j.Stats(); return s.Acked == s.Last && s.Epochs <= 1 })
	g.stop()
	g.gate.Close()
	if err := g.j.Close(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
}

func verified(t testing.TB, v vault.Vault, o ledger.Options) *ledger.Report {
	t.Helper()
	r, err := ledger.Verify(t.Context(), v, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sinkOf is a sink whose clock is right.
func sinkOf(t testing.TB, v vault.Vault) *sink.Sink {
	t.Helper()
	s, err := sink.New(sink.Config{Logger: testLogger(t), Vault: v, Spool: filepath.Join(t.TempDir(), "spool")})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var salvaging = ServerConfig{Gap: 100 * time.Millisecond, Salvage: 400 * time.Millisecond, Aside: 1500 * time.Millisecond, Idle: 10 * time.Second}

// The gateway's disk is lost at random moments. All that callers were given is
// in the vault, which is sound, and the report names each lost tail.
func TestLostJournals(t *testing.T) {
	c := newCloud(t)
	v := openFolder(t, filepath.Join(t.TempDir(), "vault"), true)
	s := sinkOf(t, v)
	s2 := salvaging
	s2.Options = c.options(nil)
	server := newServer(t, s2)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	random := rand.New(rand.NewPCG(8, 9))
	var receipts []record.Receipt
	var lost []record.Epoch
	for range rounds {
		g := startGateway(t, c, filepath.Join(t.TempDir(), "journal"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50+random.IntN(600))*time.Millisecond)
		receipts = append(receipts, g.load(ctx)...)
		cancel()
		g.die()
		lost = append(lost, g.j.Epoch())
		if err := os.RemoveAll(g.dir); err != nil {
			t.Fatal(err)
		}
	}
	g := startGateway(t, c, filepath.Join(t.TempDir(), "journal"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	receipts = append(receipts, g.load(ctx)...)
	cancel()
	g.end(t)
	var r *ledger.Report
	eventually(t, "all tails are salvaged", func() bool {
		r = verified(t, v, ledger.Options{Receipts: receipts})
		return r.Sound && len(r.LostTails) == rounds
	})
	stop()
	for i, l := range r.LostTails {
		if l.Epoch != lost[i].String() || l.Sequence == 0 {
			t.Errorf("lost tail %d: %+v, want epoch %s", i, l, lost[i])
		}
	}
	for _, x := range r.Receipts {
		if x.State != "recorded" {
			t.Errorf("receipt %s is %s: %s", x.Receipt, x.State, x.Message)
		}
	}
	if x := r.Exchanges; x.Lost == 0 || x.Pending > int64(len(receipts)) {
		t.Errorf("exchanges %+v", x)
	}
	if s.Stats().Salvaged == 0 || s.Stats().Alarms != 0 {
		t.Errorf("stats %+v", s.Stats())
	}
	t.Logf("%d receipts, %d tails, %+v, %d segments salvaged, %d records aside", len(receipts), len(r.LostTails), r.Exchanges, s.Stats().Salvaged, s.Stats().Aside)
}

// A gateway that was thought lost comes back with its journal: what follows on
// the salvaged part is put behind it, and nothing is there twice.
func TestLostJournalComesBack(t *testing.T) {
	c := newCloud(t)
	v := openFolder(t, filepath.Join(t.TempDir(), "vault"), true)
	s := sinkOf(t, v)
	s2 := salvaging
	s2.Options = c.options(nil)
	server := newServer(t, s2)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	load := func(g *gateway) []record.Receipt {
		ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
		defer cancel()
		return g.load(ctx)
	}
	first := startGateway(t, c, filepath.Join(t.TempDir(), "journal"))
	receipts := load(first)
	first.die() // its close record stays on the disk that is away
	other := startGateway(t, c, filepath.Join(t.TempDir(), "other"))
	receipts = append(receipts, load(other)...)
	eventually(t, "the first tail is salvaged", func() bool {
		r := verified(t, v, ledger.Options{})
		return r.Sound && len(r.LostTails) == 1 && r.LostTails[0].Epoch == first.j.Epoch().String()
	})
	other.die()
	if err := os.RemoveAll(other.dir); err != nil {
		t.Fatal(err)
	}
	back := startGateway(t, c, first.dir)
	receipts = append(receipts, load(back)...)
	back.end(t)
	var r *ledger.Report
	eventually(t, "only the other's tail is lost", func() bool {
		r = verified(t, v, ledger.Options{Receipts: receipts})
		return r.Sound && len(r.LostTails) == 1 && r.LostTails[0].Epoch == other.j.Epoch().String()
	})
	stop()
	if g := r.Gateways[0]; g.Epochs != 3 || !g.Closed {
		t.Errorf("gateway %+v", g)
	}
	if s.Stats().Alarms != 0 {
		t.Errorf("stats %+v", s.Stats())
	}
}
