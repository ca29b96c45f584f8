package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"verbatim.dev/recorder/record"
)

// story runs a gateway's life on the file system until it ends or a fault stops
// it. It notes what was promised: bodies of settled records by id, and what was
// acknowledged as shipped.
type story struct {
	promised map[record.ID]string
	shipped  map[record.Epoch]uint64
	failed   error
}

func (s *story) run(t *testing.T, fs *memFS, lives int) {
	t.Helper()
	for life := range lives {
		c := testConfig("/j", fs)
		j, err := Open(testContext(t), c)
		if err != nil {
			s.failed = err
			return
		}
		if err := s.live(t, j, life); err != nil {
			s.failed = err
			checkPoisoned(t, j, err)
			return
		}
	}
}

func (s *story) live(t *testing.T, j *Journal, life int) error {
	ctx := testContext(t)
	do := func(bodies ...string) (record.ID, error) {
		var drafts []record.Draft
		for i, b := range bodies {
			d := record.Draft{Kind: record.KindPayload, Session: "s-" + b[:1], Body: []byte(b)}
			if i == 0 {
				d.Kind = record.KindReceived
			}
			drafts = append(drafts, d)
		}
		k := j.Append(drafts...)
		if err := k.Wait(ctx); err != nil {
			return k.ID, err
		}
		for i, b := range bodies {
			s.promised[record.ID{Epoch: k.ID.Epoch, Sequence: k.ID.Sequence + uint64(i)}] = b
		}
		return k.ID, nil
	}
	for i := range 9 {
		size := 1500
		if i == 4 { // a commit in several writes
			size = gatherBelow
		}
		id, err := do(fmt.Sprintf("a %d.%d", life, i), fmt.Sprintf("b %d.%d %s", life, i, strings.Repeat("x", size)))
		if err != nil {
			return err
		}
		if i%2 == 0 { // the others stay open
			if err := j.Append(outcome(id.Sequence)).Wait(ctx); err != nil {
				return err
			}
		}
		if i == 6 {
			if err := s.acknowledge(j, j.Epoch(), id.Sequence-4); err != nil {
				return err
			}
		}
	}
	if life > 0 { // everything of the first epoch is shipped
		if log := j.epochs[0]; log != j.live {
			if err := s.acknowledge(j, log.id, log.last); err != nil {
				return err
			}
		}
	}
	return j.Close(ctx, "story ends")
}

func (s *story) acknowledge(j *Journal, e record.Epoch, sequence uint64) error {
	s.shipped[e] = max(s.shipped[e], sequence) // before: the files may go
	if err := j.Acknowledge(e, sequence); err != nil && j.Err() == nil {
		// The journal goes on; the next acknowledgement tries again.
		if err := j.Acknowledge(e, sequence); err != nil {
			return err
		}
	}
	return j.Err()
}

// checkPoisoned checks that a journal whose append failed takes nothing more.
func checkPoisoned(t *testing.T, j *Journal, cause error) {
	t.Helper()
	if !errors.Is(cause, errInjected) && !errors.Is(cause, syscall.ENOSPC) {
		t.Fatalf("stopped by %v", cause)
	}
	select {
	case <-j.Failed():
	default:
		if j.Err() == nil {
			return // an error of Acknowledge twice, or of unlocking
		}
		t.Fatal("Err is set and Failed is open")
	}
	before := j.fs.(*memFS).step
	for range 3 {
		if err := j.Append(received("more")).Wait(testContext(t)); err == nil {
			t.Fatal("a poisoned journal took a record")
		}
	}
	if err := j.Close(testContext(t), "poisoned"); err == nil {
		t.Fatal("a poisoned journal closed without an error")
	}
	if after := j.fs.(*memFS).step; after != before {
		t.Fatal("a poisoned journal wrote more")
	}
	if s := j.Stats(); s.Waiters != 0 || s.Queued != 0 {
		t.Fatalf("a poisoned journal has waiters: %+v", s)
	}
}

// check opens the journal that a crash left and compares it with the promises.
func (s *story) check(t *testing.T, fs *memFS) {
	t.Helper()
	j, err := Open(testContext(t), testConfig("/j", fs))
	if err != nil {
		t.Fatalf("open after the crash: %v", err)
	}
	if err := j.Close(testContext(t), "check ends"); err != nil {
		t.Fatal(err)
	}
	got := drain(t, j)
	for id, body := range s.promised {
		if id.Sequence <= s.shipped[id.Epoch] {
			continue
		}
		if plain, ok := got.plain[id]; !ok {
			if _, there := got.kinds[id]; !there {
				t.Fatalf("record %s was settled and is lost", id)
			}
		} else if string(plain) != body {
			t.Fatalf("record %s holds another body", id)
		}
	}
	for id := range got.open {
		if got.closed[id.String()] != 1 {
			t.Fatalf("exchange %s was left open and has %d interrupted outcomes", id, got.closed[id.String()])
		}
	}
}

func TestFaultAtEveryStep(t *testing.T) {
	const lives = 3
	clean := newMemFS()
	s := &story{promised: map[record.ID]string{}, shipped: map[record.Epoch]uint64{}}
	s.run(t, clean, lives)
	if s.failed != nil {
		t.Fatal(s.failed)
	}
	if len(s.promised) != lives*18 {
		t.Fatalf("%d promises", len(s.promised))
	}
	s.check(t, clean.crash(loseAll, nil))
	seen := map[string]bool{}
	for step := 1; step <= clean.step; step++ {
		if testing.Short() && step%7 != 0 {
			continue
		}
		for mode := failed; mode <= failedTorn; mode++ {
			for crash := loseAll; crash <= keepSome; crash++ {
				if crash == keepAll && step%3 != 0 {
					continue // the mildest
				}
				fs := newMemFS()
				fs.failAt, fs.mode = step, mode
				if step%2 == 0 {
					fs.err = syscall.ENOSPC
				}
				s := &story{promised: map[record.ID]string{}, shipped: map[record.Epoch]uint64{}}
				s.run(t, fs, lives)
				seen[fs.hit] = true
				rnd := rand.New(rand.NewPCG(uint64(step), uint64(crash)))
				t.Run(fmt.Sprintf("%d %s/%d/%d", step, fs.hit, mode, crash), func(t *testing.T) {
					s.check(t, fs.crash(crash, rnd))
				})
			}
		}
	}
	for _, what := range []string{"mkdir", "create .wal", "create .tmp", "rename", "remove", "syncdir", "write", "datasync", "truncate"} {
		if !seen[what] && !testing.Short() {
			t.Errorf("no fault hit a %s", what)
		}
	}
}

// The machine may also crash with no error before it, in the middle of things.
func TestCrashAtEveryStep(t *testing.T) {
	clean := newMemFS()
	s := &story{promised: map[record.ID]string{}, shipped: map[record.Epoch]uint64{}}
	s.run(t, clean, 2)
	for step := 1; step <= clean.step; step++ {
		// A fault stops the process at the step; what is left is what a crash
		// at this moment leaves. Then recovery itself crashes at each of its
		// first steps.
		fs := newMemFS()
		fs.failAt = step
		s := &story{promised: map[record.ID]string{}, shipped: map[record.Epoch]uint64{}}
		s.run(t, fs, 2)
		for second := 1 + step%3; second < 16; second += 3 {
			rnd := rand.New(rand.NewPCG(uint64(step), uint64(second)))
			again := fs.crash(keepSome, rnd)
			again.failAt, again.mode = second, faultMode(step%3)
			if j, err := Open(testContext(t), testConfig("/j", again)); err == nil {
				_ = j.Close(testContext(t), "not reached where a fault hits")
			}
			s.check(t, again.crash(keepSome, rnd))
		}
	}
}

func TestFailedCloses(t *testing.T) {
	fs := newMemFS()
	j := mustOpen(t, testConfig("/j", fs))
	tail := j.Tail()
	mustAppend(t, j, received("good"))
	fs.failAt = fs.step + 2 // the sync of the next commit
	k := j.Append(received("bad"))
	<-j.Failed()
	if err := k.Wait(testContext(t)); !errors.Is(err, errInjected) || !errors.Is(j.Err(), errInjected) {
		t.Errorf("ticket %v, journal %v", err, j.Err())
	}
	// What was durable can still be shipped, and no more.
	var last uint64
	for {
		it, err := tail.Next(testContext(t))
		if err != nil {
			if !errors.Is(err, errInjected) {
				t.Error(err)
			}
			break
		}
		last = max(last, it.Frame.Sequence)
	}
	if last != 2 {
		t.Errorf("tail ends at %d", last)
	}
	if err := j.Acknowledge(j.Epoch(), 2); err != nil {
		t.Error(err)
	}
	if err := j.Finish(testContext(t), "x"); !errors.Is(err, errInjected) {
		t.Errorf("finish: %v", err)
	}
	if err := j.Close(testContext(t), "x"); !errors.Is(err, errInjected) {
		t.Errorf("close: %v", err)
	}
	if fs.locked {
		t.Error("the folder is still locked")
	}
}
