package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

// signedFrames is an epoch of so many segments, each of two records, whose
// checkpoints state what they must for a log.
func signedFrames(t testing.TB, e record.Epoch, segments int) (out []record.Frame) {
	t.Helper()
	key, err := record.NewEpochKey("gw", e, nil)
	if err != nil {
		t.Fatal(err)
	}
	head, tree, seq := record.NewChain(e, "gw"), record.Tree{}, uint64(0)
	add := func(f record.Frame) record.Frame {
		if _, err := f.Encode(nil); err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
		return f
	}
	for s := range segments {
		for n := range 2 {
			seq++
			kind := record.KindHeartbeat
			if seq == 1 {
				kind = record.KindOpen
			}
			f := add(record.Frame{Kind: kind, Sequence: seq, Time: testTime.Add(time.Duration(s) * time.Second), Class: "standard", Body: []byte("{}")})
			head = head.Next(f.Leaf())
			tree.Add(f.Leaf())
			c, err := record.Checkpoint(record.Statement{Gateway: "gw", Epoch: e, Size: seq, Root: tree.Root(), Head: head, Time: f.Time}, key.Signer(), n == 1)
			if err != nil {
				t.Fatal(err)
			}
			add(c)
		}
	}
	return out
}

// Every call to the vault by the sink or its log fails, and fails although it was
// done, and the process begins anew or goes on. Each segment is in the vault and
// in the log in the end, once.
func TestFaultsWithLog(t *testing.T) {
	key, err := witness.NewKey("verbatim.dev/log/test", nil)
	if err != nil {
		t.Fatal(err)
	}
	e := testEpoch(t, 1)
	const segments = 4
	frames := signedFrames(t, e, segments)
	want := reference(t, e, frames)
	// life is one process: it runs until it is done or something fails.
	life := func(v vault.Vault) error {
		l, err := sinklog.Open(context.Background(), sinklog.Config{Vault: v, Key: key, Interval: time.Millisecond, Now: now})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		s := newSink(t, Config{Vault: v, Log: l})
		held, err := feed(s, e, frames)
		if err == nil && held != 2*segments {
			err = fmt.Errorf("holds %d", held)
		}
		for end := time.Now().Add(10 * time.Second); err == nil && l.Stats().Size < segments; time.Sleep(time.Millisecond) {
			if err = l.Err(); err == nil && time.Now().After(end) {
				err = fmt.Errorf("the log does not get on: %+v", l.Stats())
			}
		}
		cancel()
		return errors.Join(err, <-ended)
	}
	probe := &faultVault{Vault: inMemory()}
	if err := life(probe); err != nil {
		t.Fatal(err)
	}
	// Each process makes more calls the longer it idles: what counts is done in
	// the first ones.
	calls := min(len(probe.calls), 60)
	for at := 1; at <= calls; at++ {
		for _, persisted := range []bool{false, true} {
			v := inMemory()
			faulty := &faultVault{Vault: v, failAt: at, persisted: persisted}
			for tries := 0; ; tries++ {
				err := life(faulty)
				if err == nil {
					break
				}
				if errors.Is(err, transport.ErrRefused) || errors.Is(err, transport.ErrStop) || errors.Is(err, vault.ErrConflict) || tries > 2 {
					t.Fatalf("call %d persisted=%t: %v", at, persisted, err)
				}
			}
			got := map[string]string{}
			for name, b := range snapshot(t, v) {
				if !strings.HasPrefix(name, "log/") {
					got[name] = b
				}
			}
			same(t, got, want)
			// Another start finds nothing that is not in the log.
			l, err := sinklog.Open(t.Context(), sinklog.Config{Vault: v, Key: key, Now: now})
			if err != nil || l.Stats().Size != segments {
				t.Fatalf("call %d persisted=%t: the log has %d entries, %v", at, persisted, l.Stats().Size, err)
			}
		}
	}
	t.Logf("%d calls", calls)
}
