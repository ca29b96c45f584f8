package pubsub

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

// childEnv makes this test's program a gateway's or a sink's end, until it is
// killed: "SIDE ADDRESS DIR".
const childEnv = "VERBATIM_TEST_PUBSUB"

func TestMain(m *testing.M) {
	if v := os.Getenv(childEnv); v != "" {
		var side, address, dir string
		if _, err := fmt.Sscan(v, &side, &address, &dir); err != nil {
			panic(err)
		}
		go func() { // who started it may be killed itself
			for parent := os.Getppid(); os.Getppid() == parent; {
				time.Sleep(time.Second)
			}
			os.Exit(1)
		}()
		err := map[string]func(context.Context, string, string) error{"sink": childSink, "gateway": childGateway, "cloud": childCloud, "chain-sink": chainSink, "chain-gateway": chainGateway}[side](context.Background(), address, dir)
		fmt.Fprintln(os.Stderr, side, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func childSink(ctx context.Context, address, dir string) error {
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault"), Write: true})
	if err != nil {
		return err
	}
	defer v.Close()
	s, err := sink.New(sink.Config{Vault: v, Spool: filepath.Join(dir, "spool"), Now: func() time.Time { return testTime.Add(time.Hour) }})
	if err != nil {
		return err
	}
	server, err := NewServer(ctx, ServerConfig{
		Project: project, Subscriptions: []string{subName}, AckTopic: ackTopic, Gap: time.Second, Streams: 8, Options: optionsFor(address, nil),
	})
	if err != nil {
		return err
	}
	defer server.Close()
	return server.Serve(ctx, s)
}

// childCloud is the fake of Pub/Sub, in a process of its own: it has data races
// with itself when leases run out. It prints its address; a line that it reads
// lets all leases run out, or copies the topic.
func childCloud(ctx context.Context, _, clock string) error {
	c, err := startCloud(100_000)
	if err != nil {
		return err
	}
	if clock == "slow" {
		// The fake drops what it has not given out for 10 minutes, which Pub/Sub
		// does not: its clock hardly goes. Leases end by release.
		began := time.Now()
		c.SetTimeNowFunc(func() time.Time { return began.Add(time.Since(began) / 100) })
	}
	fmt.Println(c.Addr)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		do := c.release
		if lines.Text() == "mirror" {
			do = c.mirror
		}
		if err := do(ctx); err != nil {
			return err
		}
		fmt.Println("expired")
	}
	return c.Close()
}

// remoteCloud starts a childCloud.
func remoteCloud(t *testing.T, clock string) (address string, expire, mirror func()) {
	t.Helper()
	p := exec.Command(os.Args[0])
	p.Env = append(os.Environ(), childEnv+"=cloud - "+clock, "GORACE=exitcode=0")
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the cloud does not start")
	}
	say := func(what string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, what); err != nil || !lines.Scan() {
			t.Fatal("the cloud has died", err)
		}
	}
	return lines.Text(), func() { t.Helper(); say("expire") }, func() { t.Helper(); say("mirror") }
}

// killScripts are the journal of a gateway that is killed.
var killScripts = []script{
	{epoch: 1, batches: 120, body: 1500, perCut: 6, recovered: true, large: 200 << 10},
	{epoch: 2, batches: 120, body: 1500, perCut: 6, recovered: true},
	{epoch: 3, batches: 120, body: 1500, perCut: 6, large: 90 << 10},
}

func childGateway(ctx context.Context, address, dir string) error {
	j, err := fileJournal(dir)
	if err != nil {
		return err
	}
	go func() { // what the gateway appends while it runs
		for n := 0; ; n += 4 {
			j.allow(max(n, 1))
			time.Sleep(4 * time.Millisecond)
		}
	}()
	c, err := NewClient(ctx, ClientConfig{
		Project: project, Topic: topic, AckSubscription: ackSub, Gateway: "gw", Message: 8 << 10, AskAfter: 300 * time.Millisecond, AskWait: 50 * time.Millisecond,
		Options: optionsFor(address, nil),
	})
	if err != nil {
		return err
	}
	return c.Ship(ctx, j.journal())
}

// writeFrames writes the journal that both runs carry: epochs one after another,
// each frame behind its epoch.
func writeFrames(t *testing.T, dir string, all []transport.Item) {
	t.Helper()
	var b []byte
	for _, i := range all {
		b = append(append(b, i.Epoch[:]...), i.Frame.Raw()...)
	}
	if err := os.WriteFile(filepath.Join(dir, "frames"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFrames(dir string) ([]transport.Item, error) {
	b, err := os.ReadFile(filepath.Join(dir, "frames"))
	if err != nil {
		return nil, err
	}
	var all []transport.Item
	for len(b) > 0 {
		e := record.Epoch(b[:16])
		f, n, err := record.Decode(b[16:])
		if err != nil {
			return nil, err
		}
		all = append(all, transport.Item{Epoch: e, Gateway: "gw", Frame: f})
		b = b[16+n:]
	}
	return all, nil
}

// fileJournal is the journal whose acknowledgements are in a file.
func fileJournal(dir string) (*memoryJournal, error) {
	all, err := readFrames(dir)
	if err != nil {
		return nil, err
	}
	j := newJournal(all)
	j.limit = 0
	f, err := os.OpenFile(filepath.Join(dir, "acks"), os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	acked, err := readAcks(f)
	if err != nil {
		return nil, err
	}
	j.acked = acked
	j.onAck = func(e record.Epoch, sequence uint64) {
		if _, err := fmt.Fprintln(f, e, sequence); err != nil {
			panic(err)
		}
	}
	return j, nil
}

func readAcks(f *os.File) (map[record.Epoch]uint64, error) {
	acked := map[record.Epoch]uint64{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var name string
		var sequence uint64
		if _, err := fmt.Sscan(lines.Text(), &name, &sequence); err != nil {
			return nil, err
		}
		e, err := record.ParseEpoch(name)
		if err != nil {
			return nil, err
		}
		acked[e] = max(acked[e], sequence)
	}
	return acked, nil
}

// Both ends are killed over and over. The vault never holds anything but what an
// undisturbed run over the local transport writes, all that was acknowledged is
// there, and in the end it holds all of it.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	const rounds = 30
	all := items(t, killScripts...)
	want := undisturbed(t, all)
	address, expire, _ := remoteCloud(t, "-")
	dir := t.TempDir()
	writeFrames(t, dir, all)
	check := func() int {
		t.Helper()
		v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault")})
		if errors.Is(err, fs.ErrNotExist) {
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		got := snapshot(t, v)
		for name, content := range got {
			if want[name] != content {
				t.Fatalf("%s: %d bytes that no undisturbed run writes", name, len(content))
			}
		}
		f, err := os.Open(filepath.Join(dir, "acks"))
		if errors.Is(err, fs.ErrNotExist) {
			return len(got)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		acked, err := readAcks(f)
		if err != nil {
			t.Fatal(err)
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
	random := rand.New(rand.NewPCG(5, 6))
	children := map[string]*exec.Cmd{}
	var said strings.Builder
	kill := func(side string) {
		if p := children[side]; p != nil {
			_ = p.Process.Kill()
			_ = p.Wait()
			delete(children, side)
		}
	}
	defer kill("sink")
	defer kill("gateway")
	progress := 0
	for round := range rounds {
		for _, side := range []string{"sink", "gateway"} {
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
		time.Sleep(time.Duration(150+random.IntN(250)) * time.Millisecond)
		switch random.IntN(3) {
		case 0:
			kill("sink")
		case 1:
			kill("gateway")
		default:
			kill("sink")
			kill("gateway")
		}
		expire() // what the dead held
		n := check()
		if n > progress {
			progress = n
		}
		if testing.Verbose() && round%10 == 9 {
			t.Logf("round %d: %d of %d objects", round, n, len(want))
		}
	}
	kill("sink")
	kill("gateway")
	expire()
	if progress == 0 || progress == len(want) {
		t.Errorf("the rounds wrote %d of %d objects: nothing was under way: %s", progress, len(want), said.String())
	}

	serving, stop := start(t, func(ctx context.Context) error { return childSink(ctx, address, dir) })
	j, err := fileJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	j.allow(1 << 30)
	client := newClient(t, ClientConfig{Options: optionsFor(address, nil), AskWait: time.Second})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := serving(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if n := check(); n != len(want) {
		t.Errorf("the vault holds %d objects, want %d", n, len(want))
	}
	if left, err := os.ReadDir(filepath.Join(dir, "spool")); err != nil || len(left) != 0 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
	t.Logf("%d rounds, %d of %d objects before the end", rounds, progress, len(want))
}
