package sql

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sqlc-dev/zetajones/lexer"
	"github.com/sqlc-dev/zetajones/token"
)

// unaccounted reads a text's tokens with no grammar and returns the names after
// FROM, JOIN, INTO and their like that stand neither in the facts nor can be a CTE
// or a range variable's. A text with a Problem accounts for everything.
func unaccounted(text string, f *Facts) []string {
	if f.Problem != nil {
		return nil
	}
	toks, err := lexer.Lex(text)
	if err != nil {
		return []string{"tokens"}
	}
	word := func(i int, words ...string) bool { return i >= 0 && i < len(toks) && isAny(toks[i], words...) }
	name := func(i int) string { return strings.ToLower(strings.Trim(toks[i].Image, "`")) }
	isName := func(i int) bool {
		return i >= 0 && i < len(toks) && (toks[i].Kind == token.QUOTED_IDENT || toks[i].Kind == token.IDENT && !token.IsReservedKeyword(toks[i].Image))
	}
	ctes, vars := map[string]bool{}, map[string]bool{}
	for i := range toks {
		if !isName(i) {
			continue
		}
		// name AS (query): a CTE. A parameter that is a table: name TABLE<...>.
		if word(i+1, "AS") && i+2 < len(toks) && toks[i+2].Kind == token.LPAREN || word(i+1, "TABLE") || word(i+1, "ANY") && word(i+2, "TABLE") {
			ctes[name(i)] = true
		}
		vars[name(i)] = true // any name may be a range variable somewhere
	}
	found := map[string]bool{}
	for _, l := range [][]Table{f.Reads, f.Writes} {
		for _, t := range l {
			found[strings.ToLower(t.Table)] = true
			found[strings.ToLower(t.InformationSchema)] = true
		}
	}
	for _, fn := range f.Functions {
		found[strings.ToLower(fn.Name[strings.LastIndexByte(fn.Name, '.')+1:])] = true
	}
	for _, o := range f.Opaque {
		if o == "graph" {
			return nil
		}
	}
	var bad []string
	var open []int
	for i, t := range toks {
		switch t.Kind {
		case token.LPAREN:
			open = append(open, i)
			continue
		case token.RPAREN:
			if len(open) > 0 {
				open = open[:len(open)-1]
			}
			continue
		}
		if i > 0 && toks[i-1].Kind == token.DOT || !isAny(t, "FROM", "JOIN", "INTO", "UPDATE", "TABLE", "CLONE", "COPY", "MODEL") {
			continue
		}
		if isWord(t, "FROM") && (word(i-1, "DISTINCT") || len(open) > 0 && word(open[len(open)-1]-1, "EXTRACT", "TRIM", "SUBSTRING")) {
			continue
		}
		if isAny(t, "COPY", "CLONE", "MODEL") && !word(i-1, "CREATE", "DROP") && isName(i-1) == false {
			continue // an alias or a column, perhaps
		}
		j := i + 1
		if word(j, "IF") {
			j++
		}
		if word(j, "NOT") {
			j++
		}
		if word(j, "EXISTS") {
			j++
		}
		path, _ := tokenPath(text, toks, j)
		if path == nil || isWord(t, "TABLE") && word(j, "FUNCTION") || isWord(t, "FROM") && word(j, "FILES") {
			continue
		}
		if isWord(t, "INTO") && !word(i-1, "INSERT", "MERGE") || isWord(t, "UPDATE") && word(i-1, "ON") {
			continue // EXECUTE IMMEDIATE ... INTO variable, ON UPDATE CASCADE
		}
		parts := strings.Split(strings.ToLower(strings.NewReplacer(":", ".").Replace(strings.Join(path, "."))), ".")
		last := parts[len(parts)-1]
		if k := strings.IndexAny(last, "$@"); k >= 0 {
			last = last[:k]
		}
		switch {
		case found[last], len(parts) == 1 && ctes[last], len(parts) > 1 && len(path) > 1 && vars[parts[0]] && !strings.Contains(path[0], ".") && rangeVariable(toks, parts[0]):
		default:
			bad = append(bad, strings.Join(path, "."))
		}
	}
	return bad
}

// rangeVariable reports whether a name stands somewhere as an alias or as the
// last part of a table's path.
func rangeVariable(toks []token.Token, name string) bool {
	for i, t := range toks {
		if !strings.EqualFold(strings.Trim(t.Image, "`"), name) || i == 0 {
			continue
		}
		p := toks[i-1]
		next := at(toks, i+1)
		switch {
		case isAny(p, "AS"), p.Kind == token.RPAREN, p.Kind == token.RBRACE:
			return true
		case (p.Kind == token.IDENT && !token.IsReservedKeyword(p.Image) || p.Kind == token.QUOTED_IDENT) && next.Kind != token.DOT:
			return true
		case isAny(p, "FROM", "JOIN", "UPDATE", "INTO", "MERGE", "DELETE") && next.Kind != token.DOT, p.Kind == token.COMMA && next.Kind != token.DOT:
			return true
		case p.Kind == token.DOT && next.Kind != token.DOT:
			return true
		}
	}
	return false
}

// parserTexts are the texts of the parser's own tests, which are GoogleSQL's. It
// returns nothing where the module's source is not at hand.
func parserTexts(t testing.TB) []string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/sqlc-dev/zetajones").Output()
	if err != nil {
		t.Skipf("the parser's source: %v", err)
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "parser/testdata/*.test"))
	var texts []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range strings.Split(string(b), "\n==\n") {
			text, _, _ := strings.Cut(c, "\n--\n")
			var lines []string
			for _, l := range strings.Split(text, "\n") {
				if !strings.HasPrefix(l, "[") && !strings.HasPrefix(l, "#") {
					lines = append(lines, l)
				}
			}
			if text = strings.TrimSpace(strings.Join(lines, "\n")); text != "" {
				texts = append(texts, text)
			}
		}
	}
	return texts
}

// TestGoogleSQL reads GoogleSQL's own test texts: none may make the reader fail,
// and no name may be lost.
func TestGoogleSQL(t *testing.T) {
	texts := parserTexts(t)
	if len(texts) < 2000 {
		t.Skipf("%d texts", len(texts))
	}
	understood := 0
	for _, text := range texts {
		f := Analyze(context.Background(), text, Options{Project: "p", Dataset: "d"})
		if f.Problem == nil {
			understood++
		} else if f.Problem.Code == "parser_failed" || f.Problem.Code == "timeout" || f.Problem.Line < 1 || f.Problem.Column < 1 || f.Problem.Message == "" {
			t.Errorf("%s\n%+v", text, *f.Problem)
		}
		if bad := unaccounted(text, f); bad != nil {
			t.Errorf("%s\nlost: %q\n%s", text, bad, render(f))
		}
	}
	t.Logf("%d of %d understood", understood, len(texts))
}

func TestCasesAccount(t *testing.T) {
	for _, c := range readCases(t) {
		f := Analyze(context.Background(), c.sql, c.options)
		if bad := unaccounted(c.sql, f); bad != nil {
			t.Errorf("%s:%d\n%s\nlost: %q\n%s", c.file, c.line, c.sql, bad, render(f))
		}
	}
}

func FuzzAnalyze(f *testing.F) {
	for _, c := range readCases(f) {
		f.Add(c.sql)
	}
	a := New(Config{CacheEntries: -1, Timeout: 20 * time.Second, Limit: 64 << 10})
	f.Fuzz(func(t *testing.T, text string) {
		begin := time.Now()
		facts := a.Analyze(context.Background(), text, Options{Project: "p", Dataset: "d"})
		if d := time.Since(begin); d > 10*time.Second {
			t.Fatalf("it took %v", d)
		}
		if p := facts.Problem; p != nil {
			if p.Code == "parser_failed" || p.Line < 1 || p.Column < 1 || p.Message == "" {
				t.Fatalf("%+v", *p)
			}
			return
		}
		if len(facts.Statements) == 0 {
			t.Fatal("no statement and no problem")
		}
		for _, l := range [][]Table{facts.Reads, facts.Writes} {
			for _, x := range l {
				if x.As == "" || x.Object == "" || x.Line < 1 || x.Column < 1 || x.Project == "" {
					t.Fatalf("%+v", x)
				}
			}
		}
		if bad := unaccounted(text, facts); bad != nil {
			t.Fatalf("lost: %q\n%s", bad, render(facts))
		}
	})
}
