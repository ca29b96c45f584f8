package sql

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// Three sizes of what agents send.
func benchTexts() map[string]string {
	small := "SELECT id, name, total FROM sales.orders WHERE day >= '2024-01-01' AND total > 100 ORDER BY total DESC LIMIT 50"
	var b strings.Builder
	b.WriteString("WITH base AS (\n  SELECT o.id, o.customer_id, o.total, DATE_TRUNC(o.created, MONTH) AS month\n  FROM `shop-prod.sales.orders` AS o\n  WHERE o.created >= TIMESTAMP '2024-01-01' AND o.status IN ('paid', 'shipped')\n)")
	for i := range 9 {
		fmt.Fprintf(&b, ",\nstep%d AS (\n  SELECT b.customer_id, b.month, SUM(b.total) AS total, COUNT(DISTINCT b.id) AS orders\n  FROM base AS b JOIN sales.customers AS c ON b.customer_id = c.id\n  LEFT JOIN UNNEST(c.tags) AS tag ON tag = 'vip%d'\n  WHERE c.country = 'CH' AND c.segment NOT IN (SELECT s.name FROM ref.segments AS s WHERE s.hidden)\n  GROUP BY 1, 2\n)", i, i)
	}
	b.WriteString("\nSELECT s0.customer_id, s0.total, RANK() OVER (PARTITION BY s0.month ORDER BY s0.total DESC) AS r FROM step0 AS s0 JOIN step1 AS s1 USING (customer_id)")
	medium := b.String()
	return map[string]string{"108B": small, "2.7KB": medium, "52KB": strings.Repeat(medium+";\n", 52*1024/len(medium))}
}

func BenchmarkAnalyze(b *testing.B) {
	texts := benchTexts()
	for _, name := range []string{"108B", "2.7KB", "52KB"} {
		text := texts[name]
		a := New(Config{CacheEntries: -1})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if f := a.Analyze(context.Background(), text, Options{Project: "p", Dataset: "d"}); f.Problem != nil {
					b.Fatal(*f.Problem)
				}
			}
		})
	}
}

func BenchmarkCached(b *testing.B) {
	texts := benchTexts()
	for _, name := range []string{"108B", "2.7KB", "52KB"} {
		text := texts[name]
		a := New(Config{})
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if f := a.Analyze(context.Background(), text, Options{Project: "p", Dataset: "d"}); f.Problem != nil {
					b.Fatal(*f.Problem)
				}
			}
		})
	}
}
