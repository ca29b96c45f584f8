package ledger_test

import (
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

// BenchmarkVerify reads a vault whose records have 1 KB each. A gateway that is
// idle but for one caller commits each alone; a busy one many at once.
func BenchmarkVerify(b *testing.B) {
	for _, batch := range []int{1, 50} {
		b.Run(fmt.Sprintf("records=%d per checkpoint", batch), func(b *testing.B) {
			v := ledgertest.New()
			g := ledgertest.NewGateway(v, "gw-1", public)
			g.Deployment = deployment
			g.Begin()
			piece := make([]byte, 900)
			for n := 0; n < 20000; {
				r := g.Start(ledgertest.Exchange{Session: "s1", Subject: "u", SQL: "SELECT 1"})
				drafts := make([]record.Draft, batch)
				for i := range drafts {
					drafts[i] = record.Draft{Kind: record.KindPayload, Exchange: r.ID.Sequence, Direction: record.DirectionResponse, Piece: uint32(i), Offset: uint64(i * len(piece)), Session: "s1", Body: piece}
				}
				g.Append(drafts...)
				sum := sha256.Sum256(make([]byte, batch*len(piece)))
				r.Outcome([]record.Total{{Direction: "response", Pieces: uint32(batch), Bytes: int64(batch * len(piece)), SHA256: fmt.Sprintf("%x", sum), Recorded: true}})
				if n += batch + 2; n/4000 != (n-batch-2)/4000 {
					g.Cut()
				}
			}
			g.Close()
			o := ledger.Options{Trust: trust(b, deploymentKey), Now: clock(ledgertest.Start.Add(time.Hour))}
			var records int64
			// Memory is bounded by the readers, not by the vault.
			var peak atomic.Uint64
			o.Progress = func(ledger.Progress) {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapInuse))
			}
			for b.Loop() {
				r, err := ledger.Verify(b.Context(), v, o)
				if err != nil || !r.Sound {
					b.Fatal(r, err)
				}
				b.SetBytes(r.Bytes)
				records += r.Records
			}
			b.ReportMetric(float64(peak.Load())/(1<<20), "heap-MB")
			b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
