package sinklog

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

// childEnv makes this test's program a sink's log that runs until it is killed:
// the vault's folder, the log's key and the witness, with a line each.
const childEnv = "VERBATIM_TEST_LOG"

func TestMain(m *testing.M) {
	if v := os.Getenv(childEnv); v != "" {
		parts := strings.Split(v, "\n")
		fmt.Fprintln(os.Stderr, child(parts[0], parts[1], parts[2], parts[3]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func child(dir, key, url, vkey string) error {
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Write: true})
	if err != nil {
		return err
	}
	w, err := witness.NewClient(url, vkey, nil)
	if err != nil {
		return err
	}
	k, err := witness.ParseKey(key)
	if err != nil {
		return err
	}
	l, err := Open(context.Background(), Config{Vault: v, Key: k, Witnesses: []*witness.Client{w}, Interval: 3 * time.Millisecond})
	if err != nil {
		return err
	}
	go func() { fmt.Fprintln(os.Stderr, l.Run(context.Background())); os.Exit(1) }()
	fmt.Println("ready")
	e := must(record.NewEpoch(testTime, rand.Reader))
	g := &gateway{epoch: e, key: must(record.NewEpochKey("gw", e, nil)), head: record.NewChain(e, "gw")}
	for {
		c := g.segment(v)
		if err := l.Append(context.Background(), c.Epoch, c.First, c.Last, c.Note); err != nil {
			return err
		}
		time.Sleep(time.Duration(mathrand.IntN(1500)) * time.Microsecond)
	}
}

// snapshot reads a folder's vault.
func snapshot(t testing.TB, dir string) *memory {
	t.Helper()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	m := inMemory()
	for n, err := range v.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		r, err := v.Open(context.Background(), n)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		m.objects[n] = string(b)
	}
	return m
}

// The sink is killed over and over, under load and with a witness that watches.
// No checkpoint ever changes, the witness never sees a fork, and in the end the
// log has each segment once.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	const rounds = 40
	dir := t.TempDir() + "/vault"
	w, c, s := newWitness(t, "w1", 21)
	before := map[string]string{}
	open := 0
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{dir, testKey().Private(), s.URL, c.Verifier().String()}, "\n"))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			_ = cmd.Wait()
			t.Fatalf("round %d: %v: %s", round, err, stderr.String())
		}
		time.Sleep(time.Duration(mathrand.IntN(60_000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatalf("round %d: %v: %s", round, err, stderr.String())
		}
		_ = cmd.Wait()
		if round%5 != 4 {
			continue
		}
		m := snapshot(t, dir)
		for name, b := range before {
			if m.objects[name] != b {
				t.Fatalf("round %d: %s changed", round, name)
			}
		}
		before = checkpoints(m)
		size := len(logOf(t, m))
		if _, ok := m.objects[stageName(int64(size))]; ok {
			open++
		}
	}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	l, err := tryOpen(v, func(c2 *Config) { c2.Witnesses = []*witness.Client{c}; c2.Now = time.Now })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.begin2(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.work(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	m := snapshot(t, dir)
	segments := 0
	for n := range m.objects {
		if strings.HasPrefix(n, vault.SegmentsPrefix) {
			segments++
		}
	}
	if got := len(logOf(t, m)); got != segments {
		t.Fatalf("%d entries of %d segments", got, segments)
	}
	if st := w.Stats(); st.Forks != 0 || st.Cosigned == 0 || l.Stats().Forks != 0 || l.Stats().CosignedSize != int64(segments) {
		t.Fatalf("%+v, %+v", st, l.Stats())
	}
	t.Logf("%d rounds, %d of %d looked at within a step, %d segments, %d cosignatures", rounds, open, rounds/5, segments, w.Stats().Cosigned)
}
