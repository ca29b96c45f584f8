package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/envoy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// one returns the one exchange whose SQL is exactly that, once it has ended.
func one(t *testing.T, r *harness.Rig, sql string) *search.Exchange {
	t.Helper()
	var found []*search.Exchange
	r.For(t).Await("an exchange on record of "+sql, func() bool {
		found = nil
		for _, x := range r.Search(search.Filter{}) {
			if x.SQL == sql && x.Ended != nil {
				found = append(found, x)
			}
		}
		return len(found) > 0
	})
	if len(found) != 1 {
		t.Errorf("%d exchanges of %q", len(found), sql)
	}
	return found[0]
}

// idle waits until no exchange is open.
func idle(t *testing.T, r *harness.Rig) {
	t.Helper()
	r.For(t).Await("no exchange is open", func() bool { return r.Stats().Open == 0 })
}

func TestUpstreamFails(t *testing.T) {
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) { m["limits"].(map[string]any)["idle"] = "2s" }})
	ctx := withTimeout(t)
	fault := func(f emulator.Fault) {
		f.Path, f.Count = "/queries", 1
		r.Double.SetFault(&f)
	}
	const size = 3_000_000
	n := 0
	sql := func() string { n++; return fmt.Sprintf("%s + %d", harness.Synthetic(size), n) }

	t.Run("reset in the middle of the response", func(t *testing.T) {
		fault(emulator.Fault{Kind: emulator.FaultReset, AfterBytes: 1_500_000, Duration: 500 * time.Millisecond})
		a := r.OpenQuery(ctx, "agent", sql()).Rest()
		aborted(t, a, size)
		ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "upstream reset")
	})
	t.Run("reset before the head", func(t *testing.T) {
		fault(emulator.Fault{Kind: emulator.FaultReset, AfterBytes: -1})
		a := r.Query(ctx, "agent", sql())
		refused(t, a, 503, "")
		x := onRecord(t, r, a)
		ended(t, &x.Exchange, record.ResultDelivered, "")
		if x.Status != 503 {
			t.Errorf("on record with status %d", x.Status)
		}
	})
	t.Run("silent before the head", func(t *testing.T) {
		fault(emulator.Fault{Kind: emulator.FaultStall, AfterBytes: -1})
		a := r.Query(ctx, "agent", sql())
		refused(t, a, 503, "timeout")
		ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "timeout")
	})
	t.Run("silent in the middle of the response", func(t *testing.T) {
		fault(emulator.Fault{Kind: emulator.FaultStall, AfterBytes: 1_500_000})
		a := r.OpenQuery(ctx, "agent", sql()).Rest()
		aborted(t, a, size)
		ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "timeout")
	})
	t.Run("an error of its own", func(t *testing.T) {
		fault(emulator.Fault{Kind: emulator.FaultStatus, Status: 503})
		a := r.Query(ctx, "agent", sql())
		refused(t, a, 503, "")
		if a.Message() != "fault on request" {
			t.Errorf("message %q, want BigQuery's own", a.Message())
		}
		ended(t, &onRecord(t, r, a).Exchange, record.ResultDelivered, "")
	})
	idle(t, r)
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	t.Run("refused connections", func(t *testing.T) {
		r.Upstream.Close()
		a := r.Query(ctx, "agent", sql())
		refused(t, a, 503, "")
		x := onRecord(t, r, a)
		ended(t, &x.Exchange, record.ResultDelivered, "")
		if x.Status != 503 {
			t.Errorf("on record with status %d", x.Status)
		}
	})
	r.Settled()
	r.Verify()
}

// TestEnvoyLosesPatience: Envoy's own idle timeout is the shorter one.
func TestEnvoyLosesPatience(t *testing.T) {
	r := harness.Start(t, harness.Options{Bootstrap: func(p *envoy.Params) { p.Idle = time.Second }})
	ctx := withTimeout(t)
	const size = 3_000_000
	r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: -1})
	a := r.Query(ctx, "agent", harness.Synthetic(1001))
	refused(t, a, 504, "")
	one(t, r, harness.Synthetic(1001))
	r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: 1_500_000})
	a = r.OpenQuery(ctx, "agent", harness.Synthetic(size)).Rest()
	aborted(t, a, size)
	ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "")
	idle(t, r)
	r.Settled()
	r.Verify()
}

func TestClientLeaves(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	const size = 3_000_000
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)

	t.Run("in the middle of its request", func(t *testing.T) {
		seen := len(r.Double.Requests())
		pr, pw := io.Pipe()
		answer := later(func() harness.Answer { return r.Do(ctx, "agent", http.MethodPost, project+"/queries", pr) })
		io.WriteString(pw, `{"query":"SELECT 'half of it`)
		r.Await("the gateway holds the request", func() bool { return r.Stats().Open == 1 })
		pw.CloseWithError(errors.New("the client leaves")) // closes its connection
		<-answer
		idle(t, r)
		var found []*search.Exchange
		r.Await("it is on record", func() bool {
			found = nil
			for _, x := range r.Search(search.Filter{Method: "jobs.query", Decision: "deny"}) {
				if x.Ended != nil {
					found = append(found, x)
				}
			}
			return len(found) == 1
		})
		ended(t, found[0], record.ResultAborted, "client left")
		if found[0].Decision == nil || found[0].Decision.Allow {
			t.Errorf("decision %+v", found[0].Decision)
		}
		if _, payloads := r.Evidence(found[0].ID); string(payloads[record.DirectionRequest]) != `{"query":"SELECT 'half of it` {
			t.Errorf("of the request is on record %q", payloads[record.DirectionRequest])
		}
		if len(r.Double.Requests()) != seen {
			t.Error("half of a request went upstream")
		}
	})
	t.Run("in the middle of an upload", func(t *testing.T) {
		pr, pw := io.Pipe()
		answer := later(func() harness.Answer {
			return r.Do(ctx, "pipeline", http.MethodPost, "/upload"+project+"/jobs?uploadType=multipart", pr, "Content-Type", "multipart/related; boundary=b")
		})
		fmt.Fprintf(pw, "--b\r\nContent-Type: application/json\r\n\r\n%s\r\n--b\r\nContent-Type: text/csv\r\n\r\n",
			`{"configuration":{"load":{"destinationTable":{"projectId":"`+harness.Project+`","datasetId":"d","tableId":"t"},"sourceFormat":"CSV"}}}`)
		for range 30 {
			io.WriteString(pw, strings.Repeat("a,b,c\n", 10_000))
		}
		r.Await("the upload goes upstream", func() bool {
			q := r.Double.Requests()
			return len(q) > 0 && strings.HasPrefix(q[len(q)-1].Path, "/upload/")
		})
		pw.CloseWithError(errors.New("the client leaves")) // closes its connection
		<-answer
		idle(t, r)
		if len(r.Double.Uploads()) != 0 {
			t.Error("half of an upload was taken for a whole one upstream")
		}
		var found []*search.Exchange
		r.Await("it is on record", func() bool {
			found = nil
			for _, x := range r.Search(search.Filter{}) {
				if x.Method == "bigquery.jobs.insert" && x.Ended != nil {
					found = append(found, x)
				}
			}
			return len(found) == 1
		})
		ended(t, found[0], record.ResultAborted, "client left")
	})
	t.Run("while it waits", func(t *testing.T) {
		const sql = "SELECT /*verbatim:bytes=1000,delay=60s*/ 'waits'"
		leaving, leave := context.WithCancel(ctx)
		seen := len(r.Double.Requests())
		answer := later(func() harness.Answer { return r.Query(leaving, "agent", sql) })
		r.Await("the request is upstream", func() bool { return len(r.Double.Requests()) == seen+1 })
		leave()
		<-answer
		ended(t, one(t, r, sql), record.ResultAborted, "client left")
	})
	t.Run("in the middle of the response", func(t *testing.T) {
		s := r.OpenQuery(ctx, "agent", harness.Synthetic(200_000_000))
		s.ReadTo(size)
		s.Close()
		idle(t, r)
		ended(t, &onRecord(t, r, s.Answer).Exchange, record.ResultAborted, "client left")
	})
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	r.Settled()
	r.Verify()
}

// TestStalledClient reads nothing of a huge response for a while, then leaves:
// nobody buffers it.
func TestStalledClient(t *testing.T) {
	const bound = 64 << 20 // bytes that may be under way or grow
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(5_000_000)), 5_000_000)
	extproc, _ := harness.Memory(t, r.Extproc.Pid())
	front, _ := harness.Memory(t, r.Envoy.Pid())
	written := r.Stats().Journal.Bytes

	s := r.OpenQuery(ctx, "agent", harness.Synthetic(2_000_000_000))
	s.ReadTo(100_000)
	var flows uint64
	r.Await("the upstream is stopped", func() bool {
		before := r.Stats().Journal.Bytes
		time.Sleep(500 * time.Millisecond)
		flows = r.Stats().Journal.Bytes
		return flows == before
	})
	time.Sleep(3 * time.Second)
	if now := r.Stats().Journal.Bytes; now-written > bound || now-flows > 1<<20 {
		t.Errorf("%d bytes were recorded for a client that reads nothing, %d of them after they had stopped", now-written, now-flows)
	}
	if _, peak := harness.Memory(t, r.Extproc.Pid()); peak-extproc > bound {
		t.Errorf("the gateway grew from %d to %d bytes", extproc, peak)
	}
	if _, peak := harness.Memory(t, r.Envoy.Pid()); peak-front > bound {
		t.Errorf("Envoy grew from %d to %d bytes", front, peak)
	}
	if n := r.Stats().Open; n != 1 {
		t.Errorf("%d exchanges are open", n)
	}
	// It still works: the client reads on, then leaves.
	s.ReadTo(20_000_000)
	if s.Err != nil {
		t.Errorf("after the pause: %v", s.Err)
	}
	s.Close()
	idle(t, r)
	ended(t, &onRecord(t, r, s.Answer).Exchange, record.ResultAborted, "client left")
	r.Settled()
	r.Verify()
}
