package index

import (
	"fmt"
	"testing"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

// busy is a vault of small queries of many sessions.
func busy(exchanges int) *ledgertest.Vault {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	for i := range exchanges {
		x := alice
		x.Session, x.Subject = fmt.Sprintf("s%d", i/50), fmt.Sprintf("user-%d", i%97)
		x.SQL = fmt.Sprintf("SELECT customer_id, SUM(amount) AS total, COUNT(*) AS n FROM `p1.sales.orders` WHERE day = DATE '2026-03-%02d' AND region IN ('r%d', 'r%d') GROUP BY customer_id ORDER BY total DESC LIMIT %d", i%28+1, i%13, i%7, i%1000)
		x.Job = &record.Job{Project: "p1", Location: "US", ID: fmt.Sprintf("job_%08d", i)}
		x.Request, x.Upstream = fmt.Appendf(nil, `{"query":"... %d"}`, i), fmt.Appendf(nil, `{"query":"... %d","labels":{}}`, i)
		x.Response = fmt.Appendf(nil, `{"rows":[],"n":%d}`, i)
		g.Run(x)
		if i%500 == 499 {
			g.Cut()
		}
	}
	g.Close()
	return v
}

// BenchmarkBuild says rows a second of a build from the start, and bytes a row.
func BenchmarkBuild(b *testing.B) {
	const n = 30_000
	v := busy(n)
	b.ResetTimer()
	var stats Stats
	for range b.N {
		s := folder(b)
		c := config(b, v, s)
		stats = mustBuild(b, c)
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(stats.Written)/float64(stats.Rows), "bytes/row")
}

// BenchmarkScan says rows a second of a scan of all columns.
func BenchmarkScan(b *testing.B) {
	const n = 30_000
	s := folder(b)
	mustBuild(b, config(b, busy(n), s))
	b.ResetTimer()
	for range b.N {
		stats, err := Scan(b.Context(), s, Filter{}, func(*Row) error { return nil })
		if err != nil || stats.Rows != n {
			b.Fatal(stats, err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkCheck says rows a second of a check.
func BenchmarkCheck(b *testing.B) {
	const n = 30_000
	v := busy(n)
	s := folder(b)
	mustBuild(b, config(b, v, s))
	b.ResetTimer()
	for range b.N {
		k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
		if err != nil {
			b.Fatal(err)
		}
		r, err := Check(b.Context(), Config{Vault: v, Keys: k, Store: s, Now: func() time.Time { return ledgertest.Start }})
		if err != nil || r.Checked != n || len(r.Findings) != 0 {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
