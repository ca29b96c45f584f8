package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/extproc/config"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// mostMemory is what the gateway's resident memory must stay below, with the
// default limits, whatever passes.
const mostMemory = 256 << 20

var (
	bulk = &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, ReadBufferSize: 256 << 10, WriteBufferSize: 256 << 10}}

	jobIDIn = regexp.MustCompile(`"jobId":"([^"]+)"`)
)

// front keeps the first bytes of what is written to it.
type front struct{ b []byte }

func (f *front) Write(b []byte) (int, error) {
	f.b = append(f.b, b[:min(len(b), 4096-len(f.b))]...)
	return len(b), nil
}

// TestLargeBodiesInLittleMemory passes bodies of any size, and many at once,
// through a gateway with its default limits.
func TestLargeBodiesInLittleMemory(t *testing.T) {
	down, up, each, clients := int64(2<<30), int64(1<<30), int64(50_000_000), 64
	if testing.Short() {
		t.Skip("moves gigabytes")
	}
	if harness.Race { // slower, and its memory is the detector's
		down, up, each, clients = 200<<20, 100<<20, 2_000_000, 32
	}
	r := large{harness.Start(t, harness.Options{Configure: func(m map[string]any) { delete(m, "limits") }})}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	memory := func(what string) {
		t.Helper()
		now, peak := harness.Memory(t, r.Extproc.Pid())
		t.Logf("%s: the gateway has %d MiB, at most %d", what, now>>20, peak>>20)
		if peak >= mostMemory && !harness.Race {
			t.Errorf("%s: the gateway's memory reached %d MiB, the limit is %d", what, peak>>20, mostMemory>>20)
		}
	}
	want := map[string]string{} // digest of the response or upload, by exchange
	memory("idle")

	began := time.Now()
	receipt, sum := r.download(ctx, t, down)
	want[receipt] = sum
	t.Logf("%d MB/s down", down/1e6*1000/max(time.Since(began).Milliseconds(), 1))
	memory("a response of 2 GB")

	began = time.Now()
	receipt, sum = r.upload(ctx, t, up)
	uploaded := receipt
	want[receipt] = sum
	t.Logf("%d MB/s up", up/1e6*1000/max(time.Since(began).Milliseconds(), 1))
	memory("an upload of 1 GB")

	began = time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			receipt, sum := r.download(ctx, t, each)
			mu.Lock()
			defer mu.Unlock()
			want[receipt] = sum
		})
	}
	wg.Wait()
	t.Logf("%d MB/s down to %d clients", each*int64(clients)/1e6*1000/max(time.Since(began).Milliseconds(), 1), clients)
	memory("64 responses of 50 MB at once")

	if s := r.Stats(); s.Open != 0 || s.Budget != 0 {
		t.Errorf("%d exchanges are open and hold %d bytes of the budget after the end", s.Open, s.Budget)
	}
	last := r.Stats().Journal.Last
	for deadline := time.Now().Add(5 * time.Minute); r.Stats().Journal.Acked < last; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the vault holds %d of %d records", r.Stats().Journal.Acked, last)
		}
	}
	found := 0
	for _, x := range r.Search(search.Filter{}) {
		sum, ok := want[x.ID]
		if !ok {
			continue
		}
		found++
		direction := record.DirectionResponse
		if x.ID == uploaded {
			direction = record.DirectionRequest
		}
		if x.Digests[direction.String()] != sum || x.Result != record.ResultDelivered {
			t.Errorf("%s: on record is a %s of digest %q, result %s; it passed with %q", x.ID, direction, x.Digests[direction.String()], x.Result, sum)
		}
	}
	if len(want) != clients+2 || found != len(want) {
		t.Errorf("%d exchanges of %d are on record", found, clients+2)
	}
	r.Verify() // opens every payload and holds it to its digest
	memory("after all")
}

// TestStalledClientsKeepToTheMemoryFormula fills every exchange that there may
// be with a response that nobody reads: the memory stays within the formula, and
// whoever comes when one leaves makes progress on the share that is sure to it.
func TestStalledClientsKeepToTheMemoryFormula(t *testing.T) {
	limits := config.Default().Limits
	limits.Exchanges, limits.Budget, limits.RequestBody = 64, 8<<20, 1<<20
	r := large{harness.Start(t, harness.Options{Configure: func(m map[string]any) {
		m["limits"] = map[string]any{"exchanges": limits.Exchanges, "budget": limits.Budget.String(), "request_body": limits.RequestBody.String()}
	}})}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var streams []*harness.Stream
	defer func() {
		for _, s := range streams {
			s.Close()
		}
	}()
	for range limits.Exchanges {
		s := r.OpenQuery(ctx, "agent", harness.Synthetic(50_000_000))
		if s.Err != nil || s.Status != http.StatusOK {
			t.Fatalf("status %d, %v", s.Status, s.Err)
		}
		streams = append(streams, s)
	}
	// Until nothing moves any more.
	before := r.Stats().Journal.Bytes
	r.Await("the responses stall", func() bool {
		time.Sleep(500 * time.Millisecond)
		now := r.Stats().Journal.Bytes
		moved := now - before
		before = now
		return moved < 1<<20
	})
	if s := r.Stats(); s.Open != uint64(limits.Exchanges) || s.Budget > limits.Budget.Bytes() {
		t.Errorf("%d exchanges are open and hold %d bytes of a budget of %d", s.Open, s.Budget, limits.Budget)
	}
	if a := r.Query(ctx, "agent", "SELECT 1"); a.Status != http.StatusServiceUnavailable || !strings.Contains(a.Message(), "at_capacity") {
		t.Errorf("one too many: status %d, %q", a.Status, a.Message())
	}
	streams[0].Close()
	r.Await("the one that left is gone", func() bool { return r.Stats().Open < uint64(limits.Exchanges) })
	r.download(ctx, t, 20_000_000)
	now, peak := harness.Memory(t, r.Extproc.Pid())
	t.Logf("the gateway has %d MiB, at most %d; the formula says %s", now>>20, peak>>20, limits.Memory())
	if peak > limits.Memory().Bytes() && !harness.Race {
		t.Errorf("the gateway's memory reached %d MiB, the formula says %s", peak>>20, limits.Memory())
	}
}

// large is a rig that moves much.
type large struct{ *harness.Rig }

func (r large) download(ctx context.Context, t *testing.T, size int64) (receipt, sum string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+"/bigquery/v2/projects/"+harness.Project+"/queries", bytes.NewReader(harness.QueryBody(harness.Synthetic(size))))
	if err != nil {
		t.Error(err)
		return "", ""
	}
	req.Header.Set("Authorization", "Bearer "+r.TokenOf("agent"))
	req.Header.Set("Content-Type", "application/json")
	res, err := bulk.Do(req)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	defer res.Body.Close()
	h, head := sha256.New(), &front{}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(h, head)}, struct{ io.Reader }{res.Body}, make([]byte, 256<<10))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("status %d, %d bytes, %v: %.300s", res.StatusCode, n, err, head.b)
		return "", ""
	}
	job := jobIDIn.FindSubmatch(head.b)
	if job == nil {
		t.Errorf("no job in %.300s", head.b)
		return "", ""
	}
	sum = hex.EncodeToString(h.Sum(nil))
	wantSum, wantLength := emulator.Digest(size, harness.Project, string(job[1]))
	if n != wantLength || sum != wantSum {
		t.Errorf("%d bytes with digest %s came, the upstream sent %d with %s", n, sum, wantLength, wantSum)
	}
	return harness.ReceiptID(res.Header), sum
}

// pattern gives bytes that differ everywhere, with no cost to speak of.
type pattern struct {
	block []byte
	at    int
}

func newPattern() *pattern {
	p := &pattern{}
	for i := 0; len(p.block) < 1<<20; i++ {
		p.block = fmt.Appendf(p.block, "%d,row %x,Lorem ipsum dolor sit amet\n", i, i*2654435761)
	}
	return p
}

func (p *pattern) Read(b []byte) (int, error) {
	n := copy(b, p.block[p.at:])
	p.at = (p.at + n) % len(p.block)
	return n, nil
}

func (r large) upload(ctx context.Context, t *testing.T, size int64) (receipt, sum string) {
	start := r.Do(ctx, "pipeline", http.MethodPost, "/upload/bigquery/v2/projects/"+harness.Project+"/jobs?uploadType=resumable",
		strings.NewReader(`{"configuration":{"load":{"sourceFormat":"CSV","destinationTable":{"projectId":"`+harness.Project+`","datasetId":"`+emulator.DiscardDataset+`","tableId":"t"}}}}`))
	if start.Status != http.StatusOK {
		t.Errorf("start of the upload: status %d: %s", start.Status, start.Message())
		return "", ""
	}
	address, err := url.Parse(start.Header.Get("Location"))
	if err != nil {
		t.Error(err)
		return "", ""
	}
	h := sha256.New()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, address.String(), io.TeeReader(io.LimitReader(newPattern(), size), h))
	if err != nil {
		t.Error(err)
		return "", ""
	}
	req.ContentLength = size
	req.Header.Set("Authorization", "Bearer "+r.TokenOf("pipeline"))
	req.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", size-1, size))
	res, err := bulk.Do(req)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("upload: status %d, %v: %.300s", res.StatusCode, err, b)
		return "", ""
	}
	sum = hex.EncodeToString(h.Sum(nil))
	ups := r.Double.Uploads()
	if len(ups) != 1 || ups[0].Bytes != size || ups[0].SHA256 != sum {
		t.Errorf("the upstream got %+v; sent were %d bytes with digest %s", ups, size, sum)
	}
	return harness.ReceiptID(res.Header), sum
}
