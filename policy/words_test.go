package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestScanWords(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		words      string // sorted, WORD or WORD*N
		statements string
		names      string
		problem    string
		legacy     bool
	}{
		{name: "empty", text: ""},
		{name: "only comments", text: "-- DROP\n# DROP\n/* DROP ' */"},
		{name: "select", text: "select A, a from t;", words: "A*2 FROM SELECT T", statements: "SELECT"},
		{name: "brackets first", text: "((SELECT 1))", words: "SELECT", statements: "SELECT"},
		{name: "two", text: "SELECT 1; ; drop table t", words: "DROP SELECT T TABLE", statements: "SELECT DROP"},
		{name: "not a word first", text: "1 SELECT", words: "SELECT", statements: "?"},
		{name: "quoted name first", text: "`SELECT` 1", statements: "?", names: "SELECT"},
		{name: "semicolon in quotes", text: `SELECT ';', ";", '''; ''', """;""" FROM` + "`a;b`", words: "FROM SELECT", statements: "SELECT", names: "A;B"},
		{name: "prefixes", text: `SELECT r'CALL\'', B"x", rb'''it's SET''', bR"""UPDATE"""`, words: "B BR R RB SELECT", statements: "SELECT"},
		{name: "escaped quote", text: `SELECT 'a\'; DROP TABLE t; --'`, words: "SELECT", statements: "SELECT"},
		{name: "escaped backslash", text: `SELECT 'a\\'; DROP TABLE t; --'`, words: "DROP SELECT T TABLE", statements: "SELECT DROP"},
		{name: "empty literal", text: `SELECT '' , "", ''''''`, words: "SELECT", statements: "SELECT"},
		{name: "triple keeps lines", text: "SELECT '''a\n'b' ''\n; DROP''' FROM t", words: "FROM SELECT T", statements: "SELECT"},
		{name: "adjacent literal", text: "SELECT'a'FROM`t`", words: "FROM SELECT", statements: "SELECT", names: "T"},
		{name: "comment splits a word", text: "INS/**/ERT", words: "ERT INS", statements: "INS"},
		{name: "comments do not nest", text: "/* /* */ SELECT */ 1", words: "SELECT", statements: "SELECT"},
		{name: "slash star slash", text: "/*/ DROP */ SELECT 1", words: "SELECT", statements: "SELECT"},
		{name: "windows lines", text: "SELECT 1 -- x\r\nFROM t\r\n", words: "FROM SELECT T", statements: "SELECT"},
		{name: "parameters are no words", text: "SELECT @set, @drop FROM t", words: "FROM SELECT T", statements: "SELECT"},
		{name: "system variable", text: "SELECT @@project_id", words: "@@PROJECT_ID SELECT", statements: "SELECT"},
		{name: "hint", text: "SELECT @{a=1} 1", words: "A SELECT", statements: "SELECT"},
		{name: "number and word", text: "SELECT 1DROP, 0xff, 1e10", words: "DROP E10 SELECT XFF", statements: "SELECT"},
		{name: "pipe", text: "FROM t |> SET a = 1 |> /* x */ drop b |> (select)", words: "A B FROM SELECT T |> DROP |> SET", statements: "FROM"},
		{name: "not a pipe", text: "FROM t | SET", words: "FROM SET T", statements: "FROM"},
		{name: "quoted call", text: "SELECT * FROM `EXTERNAL_QUERY` /* x */ ('c', 'q')", words: "EXTERNAL_QUERY FROM SELECT", statements: "SELECT", names: "EXTERNAL_QUERY"},
		{name: "quoted path call", text: "SELECT `p.d.f`(1), `x`.`g`(2)", words: "F G SELECT", statements: "SELECT", names: "D F G P X"},
		{name: "quoted name is no call", text: "SELECT `set` , (1)", words: "SELECT", statements: "SELECT", names: "SET"},
		{name: "information schema", text: "SELECT 1 FROM `region-eu.INFORMATION_SCHEMA.JOBS`", words: "FROM SELECT", statements: "SELECT", names: "INFORMATION_SCHEMA JOBS REGION-EU"},
		{name: "legacy prefix", text: "#legacySQL\nSELECT 1", words: "SELECT", statements: "SELECT", legacy: true},
		{name: "legacy prefix, spaced", text: "# LegacySql x\nSELECT 1", words: "SELECT", statements: "SELECT", legacy: true},
		{name: "standard prefix", text: "#standardSQL\nSELECT 1", words: "SELECT", statements: "SELECT"},
		{name: "other letters in literals", text: "SELECT 'é', `tablé` -- ü\n", words: "SELECT", statements: "SELECT", names: "TABLÉ"},
		{name: "open literal", text: "SELECT 'a", problem: "a literal is not closed"},
		{name: "line end in literal", text: "SELECT 'a\n'", problem: "not closed on its line"},
		{name: "escaped line end in literal", text: "SELECT 'a\\\n'", problem: "not closed on its line"},
		{name: "open triple", text: "SELECT '''a''", problem: "a literal is not closed"},
		{name: "backslash last", text: `SELECT 'a\`, problem: "a literal is not closed"},
		{name: "open comment", text: "SELECT 1 /* x", problem: "a comment is not closed"},
		{name: "open name", text: "SELECT `a", problem: "a quoted name is not closed"},
		{name: "escape in name", text: "SELECT `a\\u0062`(1)", problem: "escape"},
		{name: "line end in name", text: "SELECT `a\n`", problem: "control character"},
		{name: "return in comment", text: "SELECT 1 -- x\rDROP\n", problem: "line break"},
		{name: "line separator in comment", text: "SELECT 1 # x\u2028DROP\n", problem: "line break"},
		{name: "form feed", text: "SELECT\f1", problem: "control character"},
		{name: "nul", text: "SELECT\x001", problem: "control character"},
		{name: "no-break space", text: "SELECT\u00a01", problem: "not ASCII"},
		{name: "byte order mark", text: "\ufeffSELECT 1", problem: "not ASCII"},
		{name: "fullwidth", text: "ＤＲＯＰ", problem: "not ASCII"},
		{name: "dollar", text: "SELECT $x", problem: "no use for"},
		{name: "backslash", text: `SELECT \x`, problem: "no use for"},
		{name: "not UTF-8", text: "SELECT '\xff'", problem: "UTF-8"},
		{name: "too long", text: strings.Repeat(" ", maxSQL+1), problem: "longer than"},
		{name: "too deep", text: strings.Repeat("(", maxNesting+1), problem: "nest deeper"},
		{name: "not closed", text: "SELECT (1", problem: "bracket is not closed"},
		{name: "not opened", text: "SELECT 1)", problem: "not opened"},
		{name: "statement in brackets", text: "SELECT (1; DROP)", problem: "inside of brackets"},
		{name: "too many statements", text: strings.Repeat("a;", maxStatements+1), problem: "statements"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := scanWords(tt.text)
			if tt.problem != "" {
				if !strings.Contains(w.problem, tt.problem) {
					t.Errorf("problem %q, want one with %q", w.problem, tt.problem)
				}
				return
			}
			if w.problem != "" {
				t.Fatalf("problem %q", w.problem)
			}
			if got := list(w.count); got != tt.words {
				t.Errorf("words %q, want %q", got, tt.words)
			}
			if got := list(w.names); got != tt.names {
				t.Errorf("names %q, want %q", got, tt.names)
			}
			if got := strings.Join(w.statements, " "); got != tt.statements {
				t.Errorf("statements %q, want %q", got, tt.statements)
			}
			if w.legacy != tt.legacy {
				t.Errorf("legacy %v, want %v", w.legacy, tt.legacy)
			}
		})
	}
}

func list(m map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] > 1 {
			k = fmt.Sprintf("%s*%d", k, m[k])
		}
		out = append(out, k)
	}
	return strings.Join(out, " ")
}

func TestScanWordsTooMany(t *testing.T) {
	var text strings.Builder
	for i := range maxWords + 1 {
		fmt.Fprintf(&text, "a%d ", i)
	}
	if w := scanWords(text.String()); !strings.Contains(w.problem, "different words") {
		t.Errorf("problem %q", w.problem)
	}
	text.Reset()
	for i := range maxWords + 1 {
		fmt.Fprintf(&text, "`a%d` ", i)
	}
	if w := scanWords(text.String()); !strings.Contains(w.problem, "different names") {
		t.Errorf("problem %q", w.problem)
	}
}

// FuzzScanWords holds the scanner to what a policy builds on: no panic, bounds,
// a statement appended to a readable text is seen, and one put into a literal
// or comment is not.
func FuzzScanWords(f *testing.F) {
	for _, s := range []string{
		"", "SELECT 1", "SELECT 'a' -- b", "#legacySQL\nSELECT 1", "/* a */ SELECT `x`(1)", `SELECT r'\'', """a"b"""`, "FROM t |> SET a=1",
		"SELECT 'a\\'", "'''", "SELECT @@x, @y", "((", "a;b;c", "`", "\"\"\"\\\"\"\"\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w := scanWords(text)
		if len(w.count) > maxWords || len(w.names) > maxWords || len(w.statements) > maxStatements {
			t.Fatal("bounds exceeded")
		}
		if !utf8.ValidString(text) && w.problem == "" {
			t.Fatal("invalid UTF-8 without a problem")
		}
		if w.problem != "" {
			return
		}
		if len(w.statements) == 0 && len(w.count) > 0 {
			t.Fatal("words without a statement")
		}
		if len(text) > maxSQL-64 || len(w.count) == maxWords || len(w.statements) == maxStatements {
			return
		}
		more := scanWords(text + "\n; ZZDROP")
		if more.problem == "" && (more.count["ZZDROP"] != w.count["ZZDROP"]+1 || more.statements[len(more.statements)-1] != "ZZDROP") {
			t.Fatalf("an appended statement is not seen: %+v", more)
		}
		if more.problem != "" {
			t.Fatalf("readable, but not with a statement after it: %s", more.problem)
		}
		hidden := scanWords(text + "\n'ZZDROP' /* ZZDROP */ -- ZZDROP")
		if hidden.problem == "" && hidden.count["ZZDROP"] != w.count["ZZDROP"] {
			t.Fatal("a word in a literal or comment is counted")
		}
	})
}
