package journal

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

// BenchmarkAppend measures durable appends of 4 KB records by w writers that
// each wait for their ticket, and sealing with them. Its folder is where TMPDIR
// is: on a tmpfs the figures say nothing.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("w=%d", writers), func(b *testing.B) {
			c := testConfig(b.TempDir()+"/j", nil)
			c.Limit, c.SegmentSize, c.CutBytes, c.CutInterval = 8<<30, 64<<20, 8<<20, 5*time.Second
			j := mustOpen(b, c)
			body := make([]byte, 4096)
			before := j.Stats()
			var left atomic.Int64
			left.Store(int64(b.N))
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					session := fmt.Sprint(w)
					for left.Add(-1) >= 0 {
						k := j.Append(record.Draft{Kind: record.KindIntent, Session: session, Body: body})
						<-k.Done()
						if err := k.Err(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			after := j.Stats()
			b.ReportMetric(float64(after.Records-before.Records)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(after.Commits-before.Commits)/b.Elapsed().Seconds(), "fsyncs/s")
			b.ReportMetric(float64(after.Records-before.Records)/float64(after.Commits-before.Commits), "records/fsync")
			mustClose(b, j)
		})
	}
}

// BenchmarkDatasync is the disk's own share: one write of 4 KB and its sync.
func BenchmarkDatasync(b *testing.B) {
	f, err := osFS{}.Create(b.TempDir()+"/f", 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Datasync(); err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 4096)
	b.ResetTimer()
	for i := range b.N {
		if _, err := f.WriteAt(body, int64(i*4096)%(64<<20)); err != nil {
			b.Fatal(err)
		}
		if err := f.Datasync(); err != nil {
			b.Fatal(err)
		}
	}
}
