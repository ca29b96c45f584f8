package faults

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

// TestDeadSink: exchanges go on without a sink, the journal holds them, and a
// sink that is back gets each of them once.
func TestDeadSink(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	digests := map[string]string{}
	query := func(size int) {
		t.Helper()
		a := r.Query(ctx, "agent", harness.Synthetic(int64(size)))
		delivered(t, a, size)
		digests[a.Receipt] = fmt.Sprintf("%x", sha256.Sum256(a.Body))
	}
	for round := range 3 {
		query(1000)
		// It dies while it is busy.
		busy := later(func() harness.Answer { return r.Query(ctx, "agent", harness.Synthetic(6_000_000)) })
		time.Sleep(time.Duration(5+10*round) * time.Millisecond)
		r.Sink.Kill()
		a := <-busy
		delivered(t, a, 6_000_000)
		digests[a.Receipt] = fmt.Sprintf("%x", sha256.Sum256(a.Body))
		for _, size := range []int{500, 70_000, 3_000_000} {
			query(size)
		}
		s := r.Stats().Journal
		if s.Acked >= s.Last || s.Held < 3_000_000 {
			t.Errorf("without a sink the journal holds %d bytes, and %d of %d records are acknowledged", s.Held, s.Acked, s.Last)
		}
		if round == 1 { // the gateway dies too, before the sink is back
			r.Extproc.Kill()
			r.Restart()
		}
		if err := r.StartSink(ctx); err != nil {
			t.Fatal(err)
		}
	}
	all := r.Settled()
	for receipt, digest := range digests {
		if x := all[receipt]; x == nil || x.Result != record.ResultDelivered || x.Digests["response"] != digest {
			t.Errorf("%s: not on record as the caller got it: %+v", receipt, x)
		}
	}
	r.Verify()
	last := r.Stats().Journal.Last
	r.Await("the journal lets go of what is shipped", func() bool { return r.Stats().Journal.Acked >= last })
}

// TestFullJournal: at its limit the gateway refuses, and takes up again when
// the sink has caught up.
func TestFullJournal(t *testing.T) {
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) {
		j := m["journal"].(map[string]any)
		j["limit"], j["reserve"], j["segment"], j["cut_bytes"] = "8MiB", "1MiB", "1MiB", "256KiB"
	}})
	ctx := withTimeout(t)
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	r.Sink.Kill()

	const size = 20_000_000
	s := r.OpenQuery(ctx, "agent", harness.Synthetic(size))
	a := s.Rest()
	aborted(t, a, size)
	// Near the limit a request still finds room and its response does not.
	r.Await("small requests are refused as well", func() bool {
		a := r.Query(ctx, "agent", harness.Synthetic(100_000))
		if a.Status != 200 {
			refused(t, a, 503, "")
		}
		return strings.Contains(a.Message(), "[not_recorded")
	})
	seen := len(r.Double.Requests())
	for range 20 {
		a := r.Query(ctx, "agent", harness.Synthetic(100_000))
		refused(t, a, 503, "not_recorded")
		if !strings.Contains(a.Message(), "journal is full") {
			t.Errorf("message %q", a.Message())
		}
	}
	if len(r.Double.Requests()) != seen {
		t.Error("what could not be recorded went upstream")
	}
	if s := r.Stats().Journal; s.Refused < 20 || s.Held > 9<<20 {
		t.Errorf("journal %+v", s)
	}
	if err := r.StartSink(ctx); err != nil {
		t.Fatal(err)
	}
	r.Await("the gateway takes up again", func() bool { return r.Query(ctx, "agent", harness.Synthetic(1000)).Status == 200 })
	x := onRecord(t, r, a)
	ended(t, &x.Exchange, record.ResultAborted, "journal full")
	r.Settled()
	r.Verify()
}

// smallDisk mounts a file system of size bytes at the journal's folder.
func smallDisk(t *testing.T, size string) (dir string, resize func(string)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a disk that is full takes a file system of its own, and mounting one takes root")
	}
	dir, err := os.MkdirTemp("", "verbatim-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mount a small file system: %v (it takes root with CAP_SYS_ADMIN)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func(size string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk: the disk ends before the journal's limit. Nothing passes any
// more, the gateway ends, and the next one goes on from what is there.
func TestFullDisk(t *testing.T) {
	dir, resize := smallDisk(t, "7m")
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) {
		j := m["journal"].(map[string]any)
		j["dir"], j["limit"], j["reserve"], j["segment"] = filepath.Join(dir, "journal"), "1GiB", "64MiB", "1MiB"
		j["cut_bytes"] = "256KiB"
	}})
	ctx := withTimeout(t)
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	r.Sink.Kill()
	const size = 20_000_000
	a := r.OpenQuery(ctx, "agent", harness.Synthetic(size)).Rest()
	aborted(t, a, size)
	seen := len(r.Double.Requests())
	refused(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 503, "")
	if len(r.Double.Requests()) != seen {
		t.Error("what could not be recorded went upstream")
	}
	select {
	case <-r.Extproc.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the gateway goes on without a journal")
	}
	if r.Extproc.Err() == nil {
		t.Error("the gateway ended as if all were well")
	}
	refused(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 503, "")

	resize("64m")
	if err := r.StartSink(ctx); err != nil {
		t.Fatal(err)
	}
	r.Restart()
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	x := onRecord(t, r, a)
	ended(t, &x.Exchange, record.ResultInterrupted, "")
	r.Settled()
	r.Verify()
}

// TestJournalWriteError: a write of the journal fails in the middle of a
// response.
func TestJournalWriteError(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	const size = 3_000_000
	r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: 1_500_000, Duration: time.Second})
	s := r.OpenQuery(ctx, "agent", harness.Synthetic(size))
	s.ReadTo(800_000)
	// From here on each write beyond the file's first bytes fails with EFBIG.
	if err := unix.Prlimit(r.Extproc.Pid(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4096, Max: unix.RLIM_INFINITY}, nil); err != nil {
		t.Skipf("limit the size of the gateway's files: %v", err)
	}
	a := s.Rest()
	aborted(t, a, size)
	seen := len(r.Double.Requests())
	refused(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 503, "")
	if len(r.Double.Requests()) != seen {
		t.Error("what could not be recorded went upstream")
	}
	select {
	case <-r.Extproc.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the gateway goes on without a journal")
	}
	if r.Extproc.Err() == nil {
		t.Error("the gateway ended as if all were well")
	}
	if !strings.Contains(r.Log(), "file too large") {
		t.Error("the log does not say why")
	}
	r.Restart()
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	x := onRecord(t, r, a)
	ended(t, &x.Exchange, record.ResultInterrupted, "")
	r.Settled()
	r.Verify()
}
