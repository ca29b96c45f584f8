package ledger_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

// logVault is a vault in memory that a log can be written to.
type logVault struct{ *ledgertest.Vault }

func (v logVault) Create(_ context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if old, ok := v.Files[name]; ok && string(old) != string(b) {
		return fmt.Errorf("create %s: %w", name, vault.ErrConflict)
	}
	v.Files[name] = b
	return nil
}

type logWorld struct {
	vault   *ledgertest.Vault
	key     *witness.Key
	witness *witness.Verifier
	client  *witness.Client

	mu  sync.Mutex // the log and the witness ask for the time from goroutines of theirs
	now time.Time
}

// after moves the world's time on and returns it.
func (w *logWorld) after(d time.Duration) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
	return w.now
}

// grow lets the sink's log take all that is in the vault.
func (w *logWorld) grow(t *testing.T, key *witness.Key, v *ledgertest.Vault, clients ...*witness.Client) {
	t.Helper()
	l, err := sinklog.Open(t.Context(), sinklog.Config{Vault: logVault{v}, Key: key, Witnesses: clients, Interval: time.Hour, Now: func() time.Time { return w.after(time.Second) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	for l.Stats().CosignedTime.IsZero() && l.Stats().Forks == 0 {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func newLogWorld(t *testing.T) (*logWorld, *ledgertest.Gateway, *ledgertest.Gateway) {
	t.Helper()
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	w := &logWorld{vault: ledgertest.New(), now: ledgertest.Start.Add(time.Hour)}
	if w.key, err = witness.NewKey("verbatim.dev/log/test", nil); err != nil {
		t.Fatal(err)
	}
	k, err := witness.NewKey("witness.example/w1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.witness, err = witness.NewVerifier(k.WitnessKey()); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	if err := witness.CreateState(state, k); err != nil {
		t.Fatal(err)
	}
	logKey, err := note.NewVerifier(w.key.LogKey())
	if err != nil {
		t.Fatal(err)
	}
	server, err := witness.Open(witness.Config{Key: k, Logs: []note.Verifier{logKey}, State: state, Now: func() time.Time { return w.after(0) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	h := httptest.NewServer(server)
	t.Cleanup(h.Close)
	if w.client, err = witness.NewClient(h.URL, k.WitnessKey(), nil); err != nil {
		t.Fatal(err)
	}
	a, b := ledgertest.NewGateway(w.vault, "gw-a", public), ledgertest.NewGateway(w.vault, "gw-b", public)
	a.Begin()
	b.Begin()
	for i := range 300 {
		a.Heartbeat()
		a.Cut()
		if i%10 == 0 {
			b.Heartbeat()
			b.Cut()
			w.after(30 * time.Second)
		}
		if i%50 == 0 {
			w.grow(t, w.key, w.vault, w.client)
		}
	}
	a.Close()
	a.Now = a.Now.Add(time.Minute)
	a.Begin()
	a.Heartbeat()
	a.Cut()
	w.grow(t, w.key, w.vault, w.client)
	return w, a, b
}

func (w *logWorld) verify(t *testing.T, v *ledgertest.Vault, more ...func(*ledger.Log)) *ledger.Report {
	t.Helper()
	o := &ledger.Log{Key: w.key.LogKey(), Witnesses: []*witness.Verifier{w.witness}}
	for _, f := range more {
		f(o)
	}
	r, err := ledger.Verify(t.Context(), v, ledger.Options{Log: o, Now: func() time.Time { return w.after(0).Add(45 * time.Second) }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func lastName(v *ledgertest.Vault, prefix string) string {
	names := v.Names(prefix)
	return names[len(names)-1]
}

// dropFrom takes an epoch's segments from a sequence on.
func dropFrom(v *ledgertest.Vault, gateway string, from uint64) {
	for _, name := range v.Names(vault.SegmentsPrefix) {
		if id, err := vault.ParseSegmentName(name); err == nil && id.Gateway == gateway && id.First >= from {
			delete(v.Files, name)
		}
	}
}

func TestLogSound(t *testing.T) {
	w, a, _ := newLogWorld(t)
	r := w.verify(t, w.vault)
	if !r.Sound || r.Log.Matched != 332 || r.Log.Size != 332 || r.Log.Unlogged != 0 || r.Log.CosignedSize != 332 || r.Log.Asserted || r.Log.Behind < 45 || r.Log.Behind > 60 {
		t.Fatalf("%+v, %+v", r.Log, r.Findings)
	}
	// The sink is behind: no fault.
	a.Heartbeat()
	a.Cut()
	if r := w.verify(t, w.vault); !r.Sound || r.Log.Unlogged != 1 {
		t.Fatalf("%+v, %+v", r.Log, r.Findings)
	}
	// Without witnesses it is the log's word.
	if r := w.verify(t, w.vault, func(o *ledger.Log) { o.Witnesses = nil }); !r.Sound || !r.Log.Asserted || r.Log.Cosigned.IsZero() {
		t.Fatalf("%+v, %+v", r.Log, r.Findings)
	}
	// A crash within a step: the stage is there, and not all that follows.
	v := w.vault.Clone()
	for _, prefix := range []string{sinklog.CosignedPrefix + fmt.Sprintf("%020d", 332), sinklog.CheckpointName(332)} {
		for _, name := range v.Names(prefix) {
			delete(v.Files, name)
		}
	}
	if r := w.verify(t, v); !r.Sound || r.Log.Unlogged == 0 {
		t.Fatalf("%+v, %+v", r.Log, r.Findings)
	}
}

func TestLogTampered(t *testing.T) {
	w, _, _ := newLogWorld(t)
	old := w.vault.Files[sinklog.CheckpointName(332)]
	// A second view: the same key signs another log, of a vault without gw-b.
	fork := w.vault.Clone()
	maps.DeleteFunc(fork.Files, func(name string, _ []byte) bool { return strings.HasPrefix(name, sinklog.Prefix) })
	dropFrom(fork, "gw-b", 1)
	w.grow(t, w.key, fork)
	foreign, err := witness.NewKey("verbatim.dev/log/test", nil)
	if err != nil {
		t.Fatal(err)
	}
	remake := func(v *ledgertest.Vault, key *witness.Key) {
		maps.DeleteFunc(v.Files, func(name string, _ []byte) bool { return strings.HasPrefix(name, sinklog.Prefix) })
		w.grow(t, key, v)
	}
	flip := func(prefix string, at int) func(v *ledgertest.Vault) {
		return func(v *ledgertest.Vault) { v.Files[lastName(v, prefix)][at] ^= 1 }
	}
	truncate := func(v *ledgertest.Vault, cosigned bool) {
		for _, name := range v.Names(sinklog.CheckpointPrefix) {
			if size, _ := sinklog.ParseCheckpointName(name); size > 200 {
				delete(v.Files, name)
			}
		}
		for _, name := range v.Names(sinklog.CosignedPrefix) {
			if size, _, _ := sinklog.ParseCosignedName(name); size > 200 && cosigned {
				delete(v.Files, name)
			}
		}
	}
	kept := func(o *ledger.Log) { o.Checkpoints = [][]byte{old} }
	for _, tc := range []struct {
		name string
		do   func(v *ledgertest.Vault)
		know func(*ledger.Log)
		code ledger.Code
		want string
	}{
		{"tail dropped", func(v *ledgertest.Vault) { dropFrom(v, "gw-b", 20) }, nil, ledger.LogAhead, "records 20 to 31 were dropped"},
		{"epoch dropped", func(v *ledgertest.Vault) { dropFrom(v, "gw-b", 1) }, nil, ledger.LogAhead, "the epoch was dropped"},
		{"one segment dropped", func(v *ledgertest.Vault) {
			for _, n := range v.Names(vault.SegmentsPrefix) {
				if id, _ := vault.ParseSegmentName(n); id.Gateway == "gw-b" && id.First == 31 {
					delete(v.Files, n)
				}
			}
		}, nil, ledger.LogAhead, "records 31 to 31"},
		{"no log", func(v *ledgertest.Vault) {
			maps.DeleteFunc(v.Files, func(n string, _ []byte) bool { return strings.HasPrefix(n, sinklog.Prefix) })
		}, nil, ledger.LogMissing, "there is no log"},
		{"tile changed", func(v *ledgertest.Vault) { v.Files["log/tile/0/000"][40] ^= 1 }, nil, ledger.LogWrong, "one of the two was changed"},
		{"partial tile changed", flip("log/tile/0/001.p/76", 40), nil, ledger.LogWrong, "one of the two was changed"},
		{"upper tile changed", flip("log/tile/1/000.p/1", 4), nil, ledger.LogWrong, "not what the log's entries give"},
		{"tile gone", func(v *ledgertest.Vault) { delete(v.Files, "log/tile/0/000") }, nil, ledger.LogWrong, "the tile is missing"},
		{"entry changed", func(v *ledgertest.Vault) { v.Files["log/tile/entries/000"][100] ^= 1 }, nil, ledger.LogWrong, "one of the two was changed"},
		{"entries gone", func(v *ledgertest.Vault) { delete(v.Files, "log/tile/entries/000") }, nil, ledger.LogMissing, "are missing"},
		{"bundle cut", func(v *ledgertest.Vault) {
			v.Files["log/tile/entries/000"] = v.Files["log/tile/entries/000"][:5000]
		}, nil, ledger.LogWrong, "ends within an entry"},
		{"checkpoint changed", func(v *ledgertest.Vault) { v.Files[sinklog.CheckpointName(332)][30] ^= 1 }, nil, ledger.LogWrong, ""},
		{"checkpoint of another size", func(v *ledgertest.Vault) {
			v.Files[sinklog.CheckpointName(333)] = v.Files[sinklog.CheckpointName(332)]
		}, nil, ledger.LogWrong, "states size 332"},
		{"a foreign file", func(v *ledgertest.Vault) { v.Files["log/checkpoint/x"] = nil }, nil, ledger.LogWrong, "nothing of the log's"},
		{"log truncated, cosignatures left", func(v *ledgertest.Vault) { truncate(v, false) }, nil, ledger.LogRolledBack, "signed at size 332, cosigned by witness.example/w1"},
		{"log truncated, kept elsewhere", func(v *ledgertest.Vault) { truncate(v, true) }, kept, ledger.LogRolledBack, "has size 332"},
		{"log truncated, long ago", func(v *ledgertest.Vault) { truncate(v, true) }, func(o *ledger.Log) { o.Behind = 2 * time.Minute }, ledger.LogUncosigned, "put back"},
		{"made anew with another key", func(v *ledgertest.Vault) { remake(v, foreign) }, nil, ledger.LogWrong, "no verifiable signatures"},
		{"made anew by the sink, no witness", func(v *ledgertest.Vault) { dropFrom(v, "gw-b", 20); remake(v, w.key) }, nil, ledger.LogUncosigned, "was cosigned by 1 of the 1"},
		{"made anew, kept elsewhere", func(v *ledgertest.Vault) {
			maps.DeleteFunc(v.Files, func(string, []byte) bool { return true })
			maps.Copy(v.Files, fork.Clone().Files)
		}, func(o *ledger.Log) { kept(o); o.Witnesses = nil }, ledger.LogRolledBack, "has size 332"},
		{"two views", func(v *ledgertest.Vault) {}, func(o *ledger.Log) {
			name := lastName(fork, sinklog.CheckpointPrefix)
			o.Checkpoints = [][]byte{fork.Files[name]}
		}, ledger.LogForked, "the log was forked: at size 302 its entries in the vault have the root"},
		{"two views in one vault", func(v *ledgertest.Vault) {
			name := lastName(fork, sinklog.CosignedPrefix)
			v.Files[name] = fork.Files[name]
		}, nil, ledger.LogForked, "or there are two logs"},
		{"kept of another log", func(v *ledgertest.Vault) {}, func(o *ledger.Log) {
			o.Checkpoints = [][]byte{[]byte(strings.Replace(string(old), "\n332\n", "\n333\n", 1))}
		}, ledger.LogForked, "made by somebody else"},
		{"segment swapped for another history", func(v *ledgertest.Vault) {
			names := v.Names(vault.SegmentsPrefix)
			i := slices.IndexFunc(names, func(n string) bool { return strings.Contains(n, "/gw-b/") })
			b := v.Files[names[i]]
			b[len(b)-20] ^= 1 // within the checkpoint's signature, and the frame's checksum with it
			v.Files[names[i]] = b
		}, nil, ledger.FrameWrong, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := w.vault.Clone()
			tc.do(v)
			know := tc.know
			if know == nil {
				know = func(*ledger.Log) {}
			}
			r := w.verify(t, v, know)
			for _, f := range r.Findings {
				if f.Code == tc.code && strings.Contains(f.String(), tc.want) {
					return
				}
			}
			t.Fatalf("not found; findings: %v", r.Findings)
		})
	}
}
