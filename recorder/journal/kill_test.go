package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

// childDir, where it is set, makes the test binary a gateway under load.
const childDir = "VERBATIM_TEST_JOURNAL_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child appends without end and prints the id of each record once it is
// durable.
func child(dir string) error {
	pub, err := os.Open(dir + ".keyset")
	if err != nil {
		return err
	}
	h, err := record.ReadTenant(pub, false)
	if err != nil {
		return err
	}
	c := testConfig(dir, nil)
	c.Tenant, c.Limit, c.SegmentSize, c.CutBytes, c.CutInterval = h, 1<<30, 64<<10, 16<<10, 3*time.Millisecond
	j, err := Open(context.Background(), c)
	if err != nil {
		return err
	}
	fmt.Printf("%s open\n", j.Epoch())
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				k := j.Append(
					record.Draft{Kind: record.KindReceived, Session: fmt.Sprint(w), Body: []byte("begins")},
					record.Draft{Kind: record.KindPayload, Session: fmt.Sprint(w), Body: []byte(strings.Repeat("x", 97*w+n%1000))},
				)
				err := k.Wait(context.Background())
				if err == nil && n%2 == 0 {
					err = j.Append(outcome(k.ID.Sequence)).Wait(context.Background())
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Printf("%s settled\n", k.ID)
			}
		})
	}
	wg.Wait()
	return nil
}

// A process that is killed at any moment loses nothing that was settled.
func TestKilledProcess(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() + "/j"
	pub, err := record.MarshalTenant(tenant(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".keyset", pub, 0o600); err != nil {
		t.Fatal(err)
	}
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	total, torn := 0, 0
	for round := range rounds {
		settled, opened := killChild(t, exe, dir, time.Duration(rnd.IntN(30_000))*time.Microsecond, round%5 == 4)
		total += len(settled)
		j, err := Open(testContext(t), testConfig(dir, nil))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		mustClose(t, j)
		s := drain(t, j)
		for _, id := range settled {
			if s.kinds[id] != record.KindReceived || s.kinds[record.ID{Epoch: id.Epoch, Sequence: id.Sequence + 1}] != record.KindPayload {
				t.Fatalf("round %d: record %s was settled and is lost", round, id)
			}
		}
		if opened != (record.Epoch{}) && s.items[opened] == nil {
			t.Fatalf("round %d: epoch %s is lost", round, opened)
		}
		for id := range s.open {
			if s.closed[id.String()] != 1 {
				t.Fatalf("round %d: exchange %s has %d interrupted outcomes", round, id, s.closed[id.String()])
			}
		}
		var o record.Open
		if err := record.Unmarshal(s.plain[record.ID{Epoch: j.Epoch(), Sequence: 1}], &o); err != nil {
			t.Fatal(err)
		}
		if o.Previous != nil && o.Previous.Truncated > 0 {
			torn++
		}
		// Ship everything, so that the next round begins small.
		k := mustOpen(t, testConfig(dir, nil))
		for _, e := range s.epochs {
			items := s.items[e]
			if err := k.Acknowledge(e, items[len(items)-1].Frame.Sequence); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, k)
	}
	t.Logf("%d settled appends in %d rounds, %d with a torn tail", total, rounds, torn)
	if total == 0 {
		t.Error("no round settled anything")
	}
}

// killChild runs a child and kills it a while after it opened its journal, or
// while it opens it, and returns what it said was settled.
func killChild(t *testing.T, exe, dir string, after time.Duration, early bool) (settled []record.ID, opened record.Epoch) {
	t.Helper()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) }
	if early {
		kill()
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil { // a last line without its end was cut by the kill
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			break
		}
		name, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch what {
		case "open":
			if opened, err = record.ParseEpoch(name); err != nil {
				t.Fatal(err)
			}
			if !early {
				kill()
			}
		case "settled":
			id, err := record.ParseID(name)
			if err != nil {
				t.Fatal(err)
			}
			settled = append(settled, id)
		}
	}
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("child: %s", stderr.String())
	}
	return settled, opened
}
