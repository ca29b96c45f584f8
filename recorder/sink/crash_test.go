package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// childEnv makes this test's program a sink that serves until it is killed.
const childEnv = "VERBATIM_TEST_SINK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, serve(context.Background(), dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serve(ctx context.Context, dir string) error {
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault"), Write: true})
	if err != nil {
		return err
	}
	defer v.Close()
	s, err := New(Config{Vault: v, Spool: filepath.Join(dir, "spool")})
	if err != nil {
		return err
	}
	l, err := transport.Listen(transport.ServerConfig{Socket: filepath.Join(dir, "s")})
	if err != nil {
		return err
	}
	return l.Serve(ctx, s)
}

// memoryJournal gives the items up to a limit that the test moves.
type memoryJournal struct {
	mu     sync.Mutex
	items  []transport.Item
	limit  int
	more   chan struct{}
	acked  map[record.Epoch]uint64
	broken error
}

func newMemoryJournal(items []transport.Item) *memoryJournal {
	return &memoryJournal{items: items, more: make(chan struct{}), acked: map[record.Epoch]uint64{}}
}

func (j *memoryJournal) allow(n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.limit = min(n, len(j.items))
	close(j.more)
	j.more = make(chan struct{})
}

func (j *memoryJournal) journal() transport.Journal {
	return transport.Journal{
		Acknowledge: func(e record.Epoch, sequence uint64) error {
			j.mu.Lock()
			defer j.mu.Unlock()
			if sequence < j.acked[e] {
				j.broken = fmt.Errorf("epoch %s: acknowledged %d after %d", e, sequence, j.acked[e])
			}
			j.acked[e] = sequence
			return nil
		},
		Tail: func() transport.Source {
			at := 0
			return transport.SourceFunc(func(ctx context.Context) (transport.Item, error) {
				for {
					j.mu.Lock()
					// Whole epochs that are acknowledged are gone, as in a journal.
					for at < j.limit && at < len(j.items) && j.acked[j.items[at].Epoch] == lastOf(j.items, j.items[at].Epoch) {
						at++
					}
					limit, more := j.limit, j.more
					if at < limit {
						defer j.mu.Unlock()
						at++
						return j.items[at-1], nil
					}
					j.mu.Unlock()
					if limit == len(j.items) {
						return transport.Item{}, io.EOF
					}
					select {
					case <-more:
					case <-ctx.Done():
						return transport.Item{}, context.Cause(ctx)
					}
				}
			})
		},
	}
}

func lastOf(items []transport.Item, e record.Epoch) uint64 {
	for i := len(items) - 1; i >= 0; i-- {
		if items[i].Epoch == e {
			return items[i].Frame.Sequence
		}
	}
	return 0
}

// The sink is killed over and over under load, and the gateway's connection
// with it. The vault never holds anything but what an undisturbed run writes,
// all that was acknowledged is there, and in the end it holds all of it.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	const rounds = 36
	var items []transport.Item
	want := map[string]string{}
	for n := byte(1); n <= 3; n++ {
		sc := script{seed: uint64(20 + n), epoch: testEpoch(t, n), batches: 700, body: 2000, perCut: 5, recovered: n < 3}
		frames := sc.frames(t)
		for name, c := range reference(t, sc.epoch, frames) {
			want[name] = c
		}
		for _, f := range frames {
			items = append(items, transport.Item{Epoch: sc.epoch, Gateway: "gw", Frame: f})
		}
	}
	dir, err := os.MkdirTemp("", "verbatim") // short, for the socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	j := newMemoryJournal(items)
	client, err := transport.NewClient(transport.ClientConfig{
		Socket: filepath.Join(dir, "s"), Gateway: "gw", Window: 256 << 10, MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func() (objects int) {
		j.mu.Lock()
		acked := map[record.Epoch]uint64{}
		for e, n := range j.acked {
			acked[e] = n
		}
		err := j.broken
		j.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault")})
		if errors.Is(err, os.ErrNotExist) {
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		got := snapshot(t, v)
		for name, c := range got {
			if w, ok := want[name]; !ok || w != c {
				t.Fatalf("%s: %d bytes that no undisturbed run writes (expected at all: %t)", name, len(c), ok)
			}
		}
		for name := range want {
			if id, err := vault.ParseSegmentName(name); err == nil && id.Last <= acked[id.Epoch] {
				if _, ok := got[name]; !ok {
					t.Fatalf("%s is acknowledged and gone", name)
				}
			}
		}
		return len(got)
	}
	random := rand.New(rand.NewPCG(1, 2))
	ship := func(ctx context.Context) func() {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = client.Ship(ctx, j.journal())
		}()
		return func() { cancel(); <-done }
	}
	stop := ship(t.Context())
	middle := 0
	for round := range rounds {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+dir)
		var out strings.Builder
		child.Stderr = &out
		connections := client.Stats().Connections
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); client.Stats().Connections == connections; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				_ = child.Process.Kill()
				_ = child.Wait()
				t.Fatalf("round %d: the client does not connect: %s", round, out.String())
			}
		}
		j.allow(len(items) * (round + 1) / (rounds + 1))
		time.Sleep(time.Duration(random.IntN(60_000)) * time.Microsecond)
		if random.IntN(4) == 0 { // the gateway is killed as well
			stop()
			stop = ship(t.Context())
		}
		if client.Stats().Unacknowledged > 0 {
			middle++
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatalf("round %d: %v: %s", round, err, out.String())
		}
		_ = child.Wait()
		check()
	}
	stop()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	served := make(chan error, 1)
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	go func() { served <- serve(serving, dir) }()
	j.allow(len(items))
	if err := client.Ship(ctx, j.journal()); err != nil {
		t.Fatal(err)
	}
	stopServing()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	check()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault"), Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	same(t, snapshot(t, v), want)
	for _, d := range []string{"vault/.tmp", "spool"} {
		if left, err := os.ReadDir(filepath.Join(dir, d)); err != nil || len(left) != 0 {
			t.Errorf("%s holds %v, %v", d, left, err)
		}
	}
	t.Logf("%d rounds, %d of them killed with a segment under way, %d objects", rounds, middle, len(want))
}

// Two sinks on one vault: the second says why it does not start.
func TestSecondSink(t *testing.T) {
	dir, err := os.MkdirTemp("", "verbatim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	folder(t, filepath.Join(dir, "vault"))
	if err := serve(t.Context(), dir); !errors.Is(err, vault.ErrLocked) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkShip carries records of 1 KB from a journal in memory through the
// local transport and the sink into a folder, in segments of 8 MiB.
func BenchmarkShip(b *testing.B) {
	e := testEpoch(b, 1)
	head := record.NewChain(e, "gw")
	const batch, perCut = 16, 512
	items := make([]transport.Item, 0, b.N*9/8+8)
	add := func(f record.Frame) *record.Frame {
		if _, err := f.Encode(nil); err != nil {
			b.Fatal(err)
		}
		items = append(items, transport.Item{Epoch: e, Gateway: "gw", Frame: f})
		return &items[len(items)-1].Frame
	}
	body := make([]byte, 1024-overhead)
	for n := 1; n <= b.N; n++ {
		f := add(record.Frame{Kind: record.KindPayload, Sequence: uint64(n), Time: testTime, Class: "standard", Body: body})
		head = head.Next(f.Leaf())
		if n%batch == 0 || n == b.N {
			add(recordtest.Checkpoint(uint64(n), head, testTime, n%(batch*perCut) == 0 || n == b.N))
		}
	}
	dir, err := os.MkdirTemp("", "verbatim")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, dir) }()
	client, err := transport.NewClient(transport.ClientConfig{Socket: filepath.Join(dir, "s"), Gateway: "gw", MinBackoff: time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	j := newMemoryJournal(items)
	j.limit = len(items)
	b.SetBytes(1024)
	b.ResetTimer()
	if err := client.Ship(ctx, j.journal()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	cancel()
	<-served
}

// overhead is what a frame of the benchmark has beside its body.
const overhead = 69 + len("standard") + 4
