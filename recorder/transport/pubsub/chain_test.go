package pubsub

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

// roundsEnv says how many rounds TestKilledChain has.
const roundsEnv = "VERBATIM_KILL_ROUNDS"

const mirrorName = "projects/p/subscriptions/mirror"

// chainLog is where the chain's processes say what they do, where that is wanted.
func chainLog() *slog.Logger {
	if os.Getenv("VERBATIM_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
}

// chainServer is the sink's end in the chain.
func chainServer(ctx context.Context, address, subscription string, gap, salvage time.Duration) (*Server, error) {
	// The fake gives a stream a message each 10 ms, in any order.
	return NewServer(ctx, ServerConfig{
		Project: project, Subscriptions: []string{subscription}, AckTopic: ackTopic, Gap: gap, Streams: 32, Salvage: salvage, Aside: time.Hour,
		Options: optionsFor(address, nil), Logger: chainLog(),
	})
}

// chainSink is a sink with its own log, until it is killed.
func chainSink(ctx context.Context, address, dir string) error {
	return runChainSink(ctx, address, dir, 500*time.Millisecond, 300*time.Millisecond)
}

func runChainSink(ctx context.Context, address, dir string, gap, salvage time.Duration) (err error) {
	b, err := os.ReadFile(filepath.Join(dir, "log.key"))
	if err != nil {
		return err
	}
	key, err := witness.ParseKey(string(b))
	if err != nil {
		return err
	}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault"), Write: true})
	if err != nil {
		return err
	}
	defer v.Close()
	l, err := sinklog.Open(ctx, sinklog.Config{Vault: v, Key: key, Interval: 40 * time.Millisecond})
	if err != nil {
		return err
	}
	s, err := sink.New(sink.Config{Vault: v, Spool: filepath.Join(dir, "spool"), Log: l, Logger: chainLog()})
	if err != nil {
		return err
	}
	server, err := chainServer(ctx, address, subName, gap, salvage)
	if err != nil {
		return err
	}
	defer server.Close()
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	logged := make(chan error, 1)
	go func() { logged <- l.Run(run) }()
	defer func() { stop(); err = errors.Join(err, <-logged) }()
	return server.Serve(ctx, s)
}

func chainJournal(ctx context.Context, dir string) (*journal.Journal, error) {
	f, err := os.Open(filepath.Join(dir, "tenant.pub"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tenant, err := record.ReadTenant(f, false)
	if err != nil {
		return nil, err
	}
	return journal.Open(ctx, journal.Config{
		Dir: filepath.Join(dir, "journal"), Gateway: "gw", Version: "test", Tenant: tenant, Class: "standard", Retention: map[string]time.Duration{"standard": time.Hour},
		Limit: 64 << 20, SegmentSize: 256 << 10, CutBytes: 24 << 10, CutInterval: 60 * time.Millisecond, Heartbeat: 25 * time.Millisecond,
	})
}

func chainShip(ctx context.Context, address string, j *journal.Journal, gate *Gate) error {
	c, err := NewClient(ctx, ClientConfig{
		Project: project, Topic: topic, AckSubscription: ackSub, Gateway: "gw", Message: 8 << 10, AskAfter: 300 * time.Millisecond, AskWait: 50 * time.Millisecond,
		Published: gate.Published, Options: optionsFor(address, nil), Logger: chainLog(),
	})
	if err != nil {
		return err
	}
	return c.Ship(ctx, transport.Journal{Tail: func() transport.Source { return transport.NewSource(j.Tail()) }, Acknowledge: j.Acknowledge})
}

// chainGateway is a gateway under load, until it is killed. What its callers are
// given, it writes down as they would.
func chainGateway(ctx context.Context, address, dir string) error {
	j, err := chainJournal(ctx, dir)
	if err != nil {
		return err
	}
	given, err := os.OpenFile(filepath.Join(dir, "receipts"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	gate := NewGate(j, j.Epoch())
	for w := range 4 {
		go func() {
			for n := 0; ; n++ {
				session := fmt.Sprint("s-", w)
				k := gate.Append(
					record.Draft{Kind: record.KindIntent, Session: session, Body: []byte(`{"verbatim":{"session":"` + session + `"}}`)},
					record.Draft{Kind: record.KindPayload, Direction: record.DirectionResponse, Session: session, Body: []byte(strings.Repeat("x", 50+97*w+n%1000))},
				)
				err := k.Wait(ctx)
				if err == nil {
					// One write, so that a kill leaves whole lines.
					_, err = fmt.Fprintln(given, k.Receipt)
				}
				if err == nil && n%4 != 0 {
					err = gate.Append(record.Draft{Kind: record.KindOutcome, Exchange: k.ID.Sequence, Session: session, Body: []byte("{}")}).Wait(ctx)
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		}()
	}
	return chainShip(ctx, address, j, gate)
}

func chainRounds(t testing.TB) int {
	if v := os.Getenv(roundsEnv); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("%s=%s: want a number", roundsEnv, v)
		}
		return n
	}
	if testing.Short() {
		return 20
	}
	return 40
}

// The whole way under SIGKILL: a gateway's journal with its publisher, Pub/Sub, a
// sink with its log, the vault. One of the processes, or both, is killed round
// after round under load, and now and then the gateway's disk is lost with it.
// Then nothing that a caller was given is missing, nothing is found twice, the
// vault verifies at every look, and its bytes are those that a sink without any
// crash makes of the same topic.
func TestKilledChain(t *testing.T) {
	rounds := chainRounds(t)
	address, expire, mirror := remoteCloud(t, "slow")
	dir := t.TempDir()
	tenant := writeTenant(t, dir)
	logKey, err := witness.NewKey("verbatim.dev/log/chain", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log.key"), []byte(logKey.Private()), 0o600); err != nil {
		t.Fatal(err)
	}
	options := func() ledger.Options { return ledger.Options{Log: &ledger.Log{Key: logKey.LogKey()}} }

	random := rand.New(rand.NewPCG(11, uint64(rounds)))
	children := map[string]*exec.Cmd{}
	var said lockedBuilder
	kill := func(side string) {
		if p := children[side]; p != nil {
			_ = p.Process.Kill()
			_ = p.Wait()
			delete(children, side)
		}
	}
	defer kill("chain-sink")
	defer kill("chain-gateway")
	look := func() *ledger.Report {
		t.Helper()
		v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault")})
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		r := verified(t, v, options())
		for _, f := range r.Findings {
			// A disk was lost, and its tail is yet to be salvaged.
			if f.Code != ledger.TailLost && f.Code != ledger.ExchangeUnended {
				t.Fatalf("%s\n%s", f, said.String())
			}
		}
		return r
	}
	lost, kills, looks := 0, 0, 0
	for round := range rounds {
		for _, side := range []string{"chain-sink", "chain-gateway"} {
			if children[side] == nil {
				p := exec.Command(os.Args[0])
				p.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{side, address, dir}, " "))
				p.Stderr = &said
				if err := p.Start(); err != nil {
					t.Fatal(err)
				}
				children[side] = p
			}
		}
		time.Sleep(time.Duration(60+random.IntN(340)) * time.Millisecond)
		switch random.IntN(5) {
		case 0, 1:
			kill("chain-sink")
			kills++
		case 2, 3:
			kill("chain-gateway")
			kills++
		default:
			kill("chain-sink")
			kill("chain-gateway")
			kills += 2
		}
		expire() // what the dead held
		if children["chain-gateway"] == nil && random.IntN(8) == 0 {
			if _, err := os.Stat(filepath.Join(dir, "journal")); err == nil {
				if err := os.RemoveAll(filepath.Join(dir, "journal")); err != nil {
					t.Fatal(err)
				}
				lost++
			}
		}
		if round%5 == 4 {
			if r := look(); r != nil {
				looks++
			}
		}
	}
	kill("chain-sink")
	kill("chain-gateway")
	expire()

	// The fake may have given something to a dead stream after that.
	patiently := func(t testing.TB, what string, f func() bool, said func() string) {
		t.Helper()
		released := time.Now()
		patiently(t, what, func() bool {
			if time.Since(released) > 20*time.Second {
				expire()
				released = time.Now()
			}
			return f()
		}, said)
	}

	// Both come back for good.
	// With more patience: hundreds of rounds have left the fake a backlog, and what
	// is asked for too soon makes it larger.
	serving, stopSink := start(t, func(ctx context.Context) error { return runChainSink(ctx, address, dir, 4*time.Second, time.Second) })
	j, err := chainJournal(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	gate := NewGate(j, j.Epoch())
	_, stopShip := start(t, func(ctx context.Context) error { return chainShip(ctx, address, j, gate) })
	if err := j.Finish(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	patiently(t, "the vault holds the journal", func() bool { s := j.Stats(); return s.Acked == s.Last && s.Epochs <= 1 }, func() string { return fmt.Sprintf("%+v", j.Stats()) })
	stopShip()
	gate.Close()
	if err := j.Close(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	receipts := readReceipts(t, filepath.Join(dir, "receipts"))
	var r *ledger.Report
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	o := options()
	o.Receipts = receipts
	patiently(t, "lost tails are salvaged", func() bool {
		if r = verified(t, v, o); r.Sound && r.Log != nil && r.Log.Unlogged == 0 {
			return true
		}
		time.Sleep(100 * time.Millisecond)
		return false
	}, func() string { return fmt.Sprintf("%v %+v", r.Findings, r.Log) })
	stopSink()
	if err := serving(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r = verified(t, v, o)
	if !r.Sound || len(r.LostTails) > 2*lost {
		t.Fatalf("%d tails of %d lost disks: %v", len(r.LostTails), lost, r.Findings)
	}
	for _, x := range r.Receipts {
		if x.State != "recorded" {
			t.Errorf("receipt %s is %s: %s", x.Receipt, x.State, x.Message)
		}
	}
	found := searched(t, v, tenant)
	for id, n := range found {
		if n != 1 {
			t.Errorf("exchange %s is found %d times", id, n)
		}
	}
	for _, x := range receipts {
		if found[x.ID.String()] != 1 {
			t.Errorf("exchange %s is found %d times", x.ID, found[x.ID.String()])
		}
	}
	if int64(len(found)) != r.Exchanges.Total {
		t.Errorf("%d exchanges are found, verify counts %d", len(found), r.Exchanges.Total)
	}

	mirror()
	tails := map[string]bool{}
	for _, l := range r.LostTails {
		tails[l.Epoch] = true
	}
	// So are those whose journal was lost after another epoch took it over: the
	// gateway's own cut was never published.
	for name := range snapshot(t, v) {
		if o, err := vault.ParseSalvageName(name); err == nil && o.Kind == vault.SalvageCut {
			tails[o.Epoch.String()] = true
		}
	}
	want := evidence(t, mirrored(t, address), tails)
	got := evidence(t, v, tails)
	for name, b := range want {
		if got[name] != b {
			t.Errorf("%s: %d bytes, a sink without a crash writes %d", name, len(got[name]), len(b))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: a sink without a crash does not write it", name)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "spool")); err != nil || len(left) != 0 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
	if len(receipts) == 0 || looks == 0 {
		t.Errorf("%d receipts, %d looks: nothing was under way: %s", len(receipts), looks, said.String())
	}
	t.Logf("%d rounds, %d kills, %d disks lost (%d tails), %d epochs, %d segments, %d records, %d receipts given, %d exchanges found, %d objects compared of %d epochs, %d looks",
		rounds, kills, lost, len(r.LostTails), r.Gateways[0].Epochs, r.Segments, r.Records, len(receipts), len(found), len(want), r.Gateways[0].Epochs-len(tails), looks)
}

// lockedBuilder takes what several processes say.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > 64<<10 {
		return len(p), nil
	}
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func writeTenant(t testing.TB, dir string) *keyset.Handle {
	t.Helper()
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	b, err := record.MarshalTenant(tenant, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tenant.pub"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return tenant
}

func readReceipts(t testing.TB, path string) (out []record.Receipt) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		r, err := record.ParseReceipt(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// searched counts how often each exchange is found.
func searched(t testing.TB, v vault.Vault, tenant *keyset.Handle) map[string]int {
	t.Helper()
	keys, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	_, err = search.Run(t.Context(), search.Config{Vault: v, Keys: keys, Warn: func(err error) { t.Error(err) }}, search.Query{Order: search.Stored}, func(x *search.Exchange) error {
		found[x.ID]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// evidence is what must be the same whatever crashed: segments and keys. A lost
// tail is cut by a sink, and the mirror cuts nothing itself, so its epoch is left
// out.
func evidence(t testing.TB, v vault.Vault, tails map[string]bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, b := range snapshot(t, v) {
		parts := strings.Split(name, "/")
		if (parts[0] == "segments" && !tails[parts[3]]) || (parts[0] == "keys" && !tails[parts[1]]) {
			out[name] = b
		}
	}
	return out
}

// mirrored is what a sink that nothing disturbs makes of all that was published.
func mirrored(t testing.TB, address string) vault.Vault {
	t.Helper()
	v := openFolder(t, filepath.Join(t.TempDir(), "mirror"), true)
	s := sinkOf(t, v)
	server, err := chainServer(t.Context(), address, mirrorName, 10*time.Second, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	last, quiet := uint64(0), time.Now()
	for end := time.Now().Add(10 * time.Minute); time.Since(quiet) < 5*time.Second; time.Sleep(20 * time.Millisecond) {
		if n := server.Stats().Messages; n != last {
			last, quiet = n, time.Now()
		}
		if time.Now().After(end) {
			t.Fatal("the mirror does not come to an end")
		}
	}
	stop()
	if s.Stats().Alarms != 0 {
		t.Errorf("the mirror alarms: %+v", s.Stats())
	}
	return v
}

// patiently waits for what takes its time after hundreds of rounds.
func patiently(t testing.TB, what string, f func() bool, said func() string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s\n%s", what, said())
		}
	}
}
