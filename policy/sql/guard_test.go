package sql

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHostile gives texts that are deep, long or slow to read. Each must be
// refused or read, in time; the parser would die of some, and take the process with it.
func TestHostile(t *testing.T) {
	r := strings.Repeat
	size := 256 << 10
	if testing.Short() {
		size = 32 << 10
	}
	fill := func(s string) string { return r(s, size/len(s)) }
	nest := func(n int, open, middle, end string) string { return r(open, n) + middle + r(end, n) }
	const read = "" // understood
	cases := []struct{ name, text, code string }{
		{"brackets to the limit", "SELECT " + nest(maxDepth, "(", "1", ")"), read},
		{"one bracket more", "SELECT " + nest(maxDepth+1, "(", "1", ")"), "too_deep"},
		{"square brackets", "SELECT " + nest(maxDepth+1, "[", "1", "]"), "too_deep"},
		{"brackets of both kinds", "SELECT " + nest(maxDepth, "[(", "1", ")]"), "too_deep"},
		{"250,000 brackets", "SELECT " + r("(", 120_000), "too_deep"},
		{"subqueries", "SELECT * FROM " + nest(100, "(SELECT * FROM ", "t", ")"), read},
		{"deep subqueries", "SELECT * FROM " + nest(300, "(SELECT * FROM ", "t", ")"), "too_deep"},
		{"CASE", "SELECT " + nest(250, "CASE WHEN a THEN ", "1", " END"), read},
		{"deep CASE", "SELECT " + nest(300, "CASE WHEN a THEN ", "1", " END"), "too_deep"},
		{"deep CASE with names called end", "SELECT " + nest(300, "CASE WHEN a.end THEN ", "1", " END"), "too_deep"},
		{"deep CASE without END", "SELECT " + fill("CASE WHEN "), "too_deep"},
		{"many CASE in a row", "SELECT " + fill("CASE WHEN a THEN 1 END, ") + "1", read},
		{"BETWEEN", "SELECT a" + fill(" BETWEEN a"), "too_deep"},
		{"many BETWEEN in a row", "SELECT a BETWEEN 1 AND 2" + fill(" AND a BETWEEN 1 AND 2"), read},
		{"NOT", "SELECT " + fill("NOT ") + "a", "too_deep"},
		{"minus", "SELECT " + fill("- ") + "1", "too_deep"},
		{"tilde", "SELECT " + fill("~") + "1", "too_deep"},
		{"mixed signs", "SELECT " + fill("-+~") + "1", "too_deep"},
		{"INTERVAL", "SELECT " + fill("INTERVAL ") + "1 DAY", "too_deep"},
		{"EXPLAIN", fill("EXPLAIN ") + "SELECT 1", "too_deep"},
		{"hints", fill("@{a=1} ") + "SELECT 1", "too_deep"},
		{"integer hints", fill("@1 ") + "SELECT 1", "too_deep"},
		{"IF", nest(300, "IF a THEN ", "SELECT 1;", " END IF;"), "too_deep"},
		{"BEGIN", nest(300, "BEGIN ", "SELECT 1;", " END;"), "too_deep"},
		{"LOOP", nest(300, "LOOP ", "SELECT 1;", " END LOOP;"), "too_deep"},
		{"WHILE", nest(300, "WHILE a DO ", "SELECT 1;", " END WHILE;"), "too_deep"},
		{"FOR", nest(300, "FOR r IN (SELECT 1) DO ", "SELECT 1;", " END FOR;"), "too_deep"},
		{"procedures", nest(300, "CREATE PROCEDURE p() BEGIN ", "SELECT 1;", " END;"), "too_deep"},
		{"types", "SELECT CAST(a AS " + nest(300, "STRUCT<", "INT64", ">") + ")", "too_deep"},
		{"types that close by two", "SELECT CAST(a AS " + nest(100, "ARRAY<STRUCT<", "INT64", ">>") + ")", read},
		{"columns of types", "CREATE TABLE t (a " + nest(300, "STRUCT<x ", "INT64", ">") + ")", "too_deep"},
		{"pipes in pipes", "FROM a " + nest(300, "|> TEE (|> WHERE b ", "", ")"), "too_deep"},
		// The parser reads each of these again for each level around it.
		{"joins in brackets", "SELECT * FROM " + nest(40, "((SELECT * FROM ", "a", ") JOIN b ON c)"), "too_complex"},
		{"joins in more brackets", "SELECT * FROM " + nest(20, "((((SELECT * FROM ", "a", ") JOIN b ON c)))"), "too_complex"},
		{"IN lists", "SELECT a IN " + nest(40, "((SELECT a IN ", "(1)", "),1)"), "too_complex"},
		{"ANY", "SELECT a = ANY " + nest(40, "((SELECT a = ANY ", "(1)", "),1)"), "too_complex"},
		{"sums", "SELECT " + nest(40, "((SELECT ", "1", ")+1)"), "too_complex"},
		{"WITH sums", "SELECT " + nest(40, "((WITH x AS (SELECT 1) SELECT ", "1", ")+1)"), "too_complex"},
		{"FROM sums", "SELECT " + nest(40, "((FROM x |> SELECT ", "1", ")+1)"), "too_complex"},
		{"TABLE", "SELECT " + nest(40, "((TABLE x) + (SELECT ", "1", "))"), "too_complex"},
		{"a few joins in brackets", "SELECT * FROM " + nest(8, "((SELECT * FROM ", "a", ") AS x JOIN b ON c)"), read},
		{"positional parameters", "SELECT ?" + fill(",?"), "too_complex"},
		{"some positional parameters", "SELECT ?" + r(",?", 1000), read},
		// Long, and read.
		{"plus", "SELECT 1" + r("+1", 900), read},
		{"a long plus", "SELECT 1" + fill("+1"), "too_deep"},
		{"AND", "SELECT a" + fill(" AND a"), read},
		{"dots", "SELECT a" + fill(".a"), read},
		{"dots in FROM", "SELECT a FROM a" + fill(".a"), "invalid_name"},
		{"elements", "SELECT a" + fill("[0]"), "too_deep"},
		{"joins", "SELECT 1 FROM a" + r(" JOIN a ON b", 900), read},
		{"too many joins", "SELECT 1 FROM a" + r(" JOIN a ON b", 4000), "too_deep"},
		{"ON after ON", "SELECT 1 FROM a" + r(" JOIN a", 900) + r(" ON b", 900), read},
		{"commas", "SELECT 1 FROM a" + r(",a", 900), read},
		{"UNION", "SELECT 1" + fill(" UNION ALL SELECT 1"), read},
		{"pipes", "FROM a" + fill(" |> WHERE a"), read},
		{"statements", fill("SELECT 1;"), read},
		{"RAISE", fill("RAISE;"), read},
		{"strings", "SELECT " + fill("'a' "), read},
		{"CTEs", "WITH a AS (SELECT 1)" + fill(",a AS (SELECT 1)") + " SELECT 1", "too_complex"},
		{"arguments", "SELECT ds.f(1" + fill(",1") + ")", read},
		{"functions", "SELECT 1" + func() string {
			var b strings.Builder
			for i := 0; b.Len() < size-100; i++ {
				fmt.Fprintf(&b, ",ds.f%d()", i)
			}
			return b.String()
		}(), read},
		{"columns times tables", "SELECT 1" + func() string {
			var b strings.Builder
			for i := 0; b.Len() < size/2; i++ {
				fmt.Fprintf(&b, ",c%d", i)
			}
			return b.String() + " FROM t0" + func() string {
				var b strings.Builder
				for i := range 900 {
					fmt.Fprintf(&b, ",t%d", i)
				}
				return b.String()
			}()
		}(), read},
		{"temporary tables and blocks", func() string {
			var b strings.Builder
			for i := range 2000 {
				fmt.Fprintf(&b, "CREATE TEMP TABLE t%d (a INT64); BEGIN SELECT a FROM t%d; END;", i, i)
			}
			return b.String()
		}(), read},
		{"long lines of other letters", "SELECT 1" + fill(", 'é' || f.x(a)"), read},
		{"labels", fill("a: BEGIN SELECT 1; END a;"), read},
		{"CASE statements", nest(100, "CASE WHEN a THEN ", "SELECT 1;", " END CASE;"), read},
		{"many CASE without end", fill("CASE WHEN a THEN SELECT 1; "), "too_deep"},
		{"MERGE", fill("MERGE a USING b c ON TRUE WHEN MATCHED THEN DELETE;"), read},
		{"LOAD DATA", fill("LOAD DATA INTO a FROM FILES (uris = ['gs://b']);"), read},
		{"comments", "SELECT 1 " + fill("/**/"), read},
		{"too large", "SELECT '" + r("a", DefaultLimit) + "'", "too_large"},
	}
	a := New(Config{CacheEntries: -1, Timeout: time.Minute, Limit: 512 << 10})
	small := New(Config{CacheEntries: -1})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			use := a
			if c.code == "too_large" {
				use = small
			}
			begin := time.Now()
			f := use.Analyze(context.Background(), c.text, Options{Project: "p", Dataset: "d"})
			took := time.Since(begin)
			code := ""
			if f.Problem != nil {
				code = f.Problem.Code
			}
			if code != c.code {
				t.Errorf("%q, want %q: %+v", code, c.code, f.Problem)
			}
			// Generous: the machine may be busy. What the guard is there for takes hours or the process.
			if took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			if took > time.Second {
				t.Logf("it took %v for %d bytes", took, len(c.text))
			}
			if f.Problem != nil && f.Problem.Fallback && c.code != "syntax" {
				t.Error("a text that is too much must not be sent on")
			}
		})
	}
}

func TestPosition(t *testing.T) {
	text := "ab\ncé𝄞x\n\n\tz" + strings.Repeat("é", 700) + "q"
	p := newPlaces(text)
	for i := 0; i <= len(text); i++ {
		l1, c1 := position(text, i)
		if l2, c2 := p.at(i); l1 != l2 || c1 != c2 {
			if strings.HasPrefix(text[i:], "\x80") || i < len(text) && text[i]&0xc0 == 0x80 {
				continue // inside of a character
			}
			t.Fatalf("%d: %d:%d and %d:%d", i, l1, c1, l2, c2)
		}
	}
	if l, c := p.at(strings.Index(text, "x")); l != 2 || c != 4 {
		t.Errorf("%d:%d", l, c)
	}
	if l, c := p.at(len(text) - 1); l != 4 || c != 703 {
		t.Errorf("%d:%d", l, c)
	}
}
