package faults

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

// later is the answer to a request that runs meanwhile.
func later(f func() harness.Answer) <-chan harness.Answer {
	c := make(chan harness.Answer, 1)
	go func() { c <- f() }()
	return c
}

// TestKilledGateway kills the gateway (SIGKILL) at every kind of moment of an
// exchange. The next one takes over its journal.
func TestKilledGateway(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	// fine shows that the gateway serves; it also warms up what is lazy.
	fine := func(t *testing.T) {
		t.Helper()
		a := r.Query(ctx, "agent", harness.Synthetic(50_000))
		delivered(t, a, 50_000)
		onRecord(t, r, a)
	}
	kill := func() { r.Extproc.Kill() }
	fine(t)
	interrupted := map[string]bool{} // SQL whose exchange must be closed by recovery

	t.Run("before the head is answered", func(t *testing.T) {
		pr, pw := io.Pipe()
		seen := len(r.Double.Requests())
		answer := later(func() harness.Answer { return r.Do(ctx, "agent", http.MethodPost, project+"/queries", pr) })
		io.WriteString(pw, `{"query":"SELECT 'never whole'`)
		r.Await("the gateway holds the request", func() bool { return r.Stats().Open == 1 })
		kill()
		refused(t, <-answer, 503, "")
		pw.Close()
		if len(r.Double.Requests()) != seen {
			t.Error("something went upstream")
		}
		r.Restart()
		fine(t)
	})

	t.Run("between intent and response", func(t *testing.T) {
		sql := "SELECT /*verbatim:bytes=1000,delay=60s*/ 'between'"
		seen := len(r.Double.Requests())
		answer := later(func() harness.Answer { return r.Query(ctx, "agent", sql) })
		r.Await("the request is upstream", func() bool { return len(r.Double.Requests()) == seen+1 })
		kill()
		refused(t, <-answer, 503, "")
		interrupted[sql] = true
		r.Restart()
		fine(t)
	})

	t.Run("in the middle of the response", func(t *testing.T) {
		const size = 4_000_001
		r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: 2_000_000})
		s := r.OpenQuery(ctx, "agent", harness.Synthetic(size))
		s.ReadTo(1_000_000)
		kill()
		a := s.Rest()
		aborted(t, a, size)
		interrupted[harness.Synthetic(size)] = true
		r.Restart()
		x := onRecord(t, r, a)
		ended(t, &x.Exchange, record.ResultInterrupted, "crash")
		fine(t)
	})

	t.Run("before the last byte comes", func(t *testing.T) {
		const size = 1_000_002
		r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: size - 1})
		s := r.OpenQuery(ctx, "agent", harness.Synthetic(size))
		s.ReadTo(size - 600_000) // the gateway holds back the newest piece
		time.Sleep(200 * time.Millisecond)
		kill()
		a := s.Rest()
		aborted(t, a, size)
		interrupted[harness.Synthetic(size)] = true
		r.Restart()
		x := onRecord(t, r, a)
		ended(t, &x.Exchange, record.ResultInterrupted, "crash")
		fine(t)
	})

	t.Run("in the middle of an upload", func(t *testing.T) {
		pr, pw := io.Pipe()
		finished := len(r.Double.Uploads())
		answer := later(func() harness.Answer {
			return r.Do(ctx, "pipeline", http.MethodPost, "/upload"+project+"/jobs?uploadType=multipart", pr, "Content-Type", "multipart/related; boundary=b")
		})
		fmt.Fprintf(pw, "--b\r\nContent-Type: application/json\r\n\r\n%s\r\n--b\r\nContent-Type: text/csv\r\n\r\n",
			`{"configuration":{"load":{"destinationTable":{"projectId":"`+harness.Project+`","datasetId":"d","tableId":"t"},"sourceFormat":"CSV"}}}`)
		row := strings.Repeat("a,b,c\n", 10_000)
		for range 20 {
			io.WriteString(pw, row)
		}
		r.Await("the upload goes upstream", func() bool {
			q := r.Double.Requests()
			return strings.HasPrefix(q[len(q)-1].Path, "/upload/")
		})
		kill()
		a := <-answer
		if a.Err == nil {
			refused(t, a, 503, "")
		}
		pw.CloseWithError(context.Canceled)
		if len(r.Double.Uploads()) != finished {
			t.Error("the upload was finished upstream")
		}
		r.Restart()
		fine(t)
	})

	all := r.Settled()
	for sql := range interrupted {
		found := bySQL(all, sql)
		if len(found) != 1 {
			t.Errorf("%d exchanges of %q on record", len(found), sql)
			continue
		}
		ended(t, found[0], record.ResultInterrupted, "crash")
	}
	report := r.Verify()
	if got := report.Exchanges.Interrupted; got != int64(len(interrupted))+1 { // and the upload
		t.Errorf("%d exchanges were closed by recovery, want %d", got, len(interrupted)+1)
	}
}

// TestKilledUnderLoad kills the gateway at chance moments while several
// callers are busy, so that also those are hit that nothing can hold: between a
// commit and the reply that it lets go, between the outcome and the last byte.
func TestKilledUnderLoad(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	sizes := []int{1_000, 60_000, 200_000, 1_500_000}
	var whole, cut, none int
	digests := map[string]string{} // of whole responses, by receipt
	for range 4 {
		stop := make(chan struct{})
		answers := make(chan answer, 1024)
		var callers sync.WaitGroup
		for i, size := range sizes {
			callers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					answers <- answer{size, r.Query(ctx, "agent", fmt.Sprintf("%s + %d.%d", harness.Synthetic(int64(size)), i, n))}
				}
			})
		}
		time.Sleep(100*time.Millisecond + time.Duration(random.IntN(150_000))*time.Microsecond)
		r.Extproc.Kill()
		close(stop)
		callers.Wait()
		close(answers)
		r.Restart()
		for a := range answers {
			switch {
			case a.Err == nil && a.Status == 200:
				whole++
				delivered(t, a.Answer, a.size)
				digests[a.Receipt] = fmt.Sprintf("%x", sha256.Sum256(a.Body))
			case a.Err == nil:
				none++
				refused(t, a.Answer, 503, "")
			default:
				cut++
				aborted(t, a.Answer, a.size)
				onRecord(t, r, a.Answer)
			}
		}
	}
	t.Logf("%d whole, %d aborted, %d refused", whole, cut, none)
	if whole == 0 || cut+none == 0 {
		t.Error("no kill hit anything")
	}
	all := r.Settled()
	for receipt, digest := range digests {
		if x := all[receipt]; x == nil || x.Result != record.ResultDelivered || x.Digests["response"] != digest {
			t.Errorf("%s: a whole response is not on record as the caller got it: %+v", receipt, x)
		}
	}
	r.Verify()
}

type answer struct {
	size int
	harness.Answer
}
