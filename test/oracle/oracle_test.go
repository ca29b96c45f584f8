//go:build oracle

// Package oracle compares policy/sql with Google's own parser of GoogleSQL, as
// github.com/goccy/go-googlesql compiles it. It is a module of its own, and behind a
// tag, as that takes minutes and gigabytes of memory to build: `make oracle`.
//
// What is compared is what the parser itself says: whether it accepts a text, how
// many statements stand at the top, and the paths of tables, table functions and
// functions. Its analyser is left alone (it dies of deep texts), and so are
// GetDescendantsWithKinds (which misses a node) and DebugString.
package oracle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	googlesql "github.com/goccy/go-googlesql"

	"verbatim.dev/policy/sql"
)

func TestMain(m *testing.M) {
	if err := googlesql.Init(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// seen is what Google's parser found.
type seen struct {
	statements int
	tables     [][]string // of FROM, TABLE and the like
	functions  [][]string
	names      map[string]bool // CTEs, aliases and the last parts of tables, lower case
}

func parse(text string) (*seen, error) {
	lang, err := googlesql.NewLanguageOptions()
	if err != nil {
		return nil, err
	}
	if err := lang.EnableMaximumLanguageFeatures(); err != nil {
		return nil, err
	}
	if err := lang.EnableReservableKeyword("GRAPH_TABLE", true); err != nil {
		return nil, err
	}
	options, err := googlesql.NewParserOptions()
	if err != nil {
		return nil, err
	}
	if err := options.SetLanguageOptions(lang); err != nil {
		return nil, err
	}
	out, err := googlesql.ParseScript(text, options, &googlesql.ErrorMessageOptions{})
	if err != nil {
		return nil, err
	}
	script, err := out.Script()
	if err != nil {
		return nil, err
	}
	s := &seen{names: map[string]bool{}}
	list, err := script.StatementListNode()
	if err != nil {
		return nil, err
	}
	n, err := list.NumChildren()
	if err != nil {
		return nil, err
	}
	s.statements = int(n)
	err = s.walk(script)
	runtime.KeepAlive(out)
	return s, err
}

func (s *seen) walk(n googlesql.ASTNode) error {
	path := func(p *googlesql.ASTPathExpression, err error) ([]string, error) {
		if err != nil || p == nil {
			return nil, err
		}
		return p.ToIdentifierVector()
	}
	switch n := n.(type) {
	case *googlesql.ASTTablePathExpression:
		p, err := path(n.PathExpr())
		if err != nil {
			return err
		}
		if p != nil {
			s.tables = append(s.tables, p)
			s.names[strings.ToLower(p[len(p)-1])] = true
		}
	case *googlesql.ASTTVF:
		p, err := path(n.Name())
		if err != nil {
			return err
		}
		s.functions = append(s.functions, p)
	case *googlesql.ASTFunctionCall:
		p, err := path(n.Function())
		if err != nil {
			return err
		}
		s.functions = append(s.functions, p)
	case *googlesql.ASTAliasedQuery:
		id, err := n.Alias()
		if err != nil {
			return err
		}
		name, err := id.GetAsString()
		if err != nil {
			return err
		}
		s.names[strings.ToLower(name)] = true
	case *googlesql.ASTAlias:
		name, err := n.GetAsString()
		if err != nil {
			return err
		}
		s.names[strings.ToLower(name)] = true
	}
	count, err := n.NumChildren()
	if err != nil {
		return err
	}
	for i := range count {
		c, err := n.Child(i)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := s.walk(c); err != nil {
			return err
		}
	}
	return nil
}

// beyond are texts that policy/sql understands and Google's parser of this
// version does not: statements of BigQuery's own, and what it has switched off.
var beyond = []string{"LOAD DATA", "UNDROP SCHEMA", "CREATE SNAPSHOT", " COPY ", "CAPACITY", "RESERVATION", "ALTER PROJECT", "ALTER ORGANIZATION", "MATCH_RECOGNIZE"}

func last(path []string) string {
	l := strings.ToLower(path[len(path)-1])
	l = l[strings.LastIndexAny(l, ".:")+1:]
	if i := strings.IndexAny(l, "$@"); i >= 0 {
		l = l[:i]
	}
	return l
}

// compare returns what the two do not agree on.
func compare(text string, f *sql.Facts) []string {
	if f.Problem != nil {
		return nil // refused, whatever Google says
	}
	s, err := parse(text)
	if err != nil {
		for _, b := range beyond {
			if strings.Contains(strings.ToUpper(text), b) {
				return nil
			}
		}
		return []string{"Google's parser refuses it"}
	}
	var out []string
	top, pipes := 0, 0
	for _, st := range f.Statements {
		if st.Depth == 0 {
			top++
		}
	}
	pipes = strings.Count(text, "|>")
	if top != s.statements && (pipes == 0 || top < s.statements) {
		out = append(out, fmt.Sprintf("%d statements, Google has %d", top, s.statements))
	}
	found, called := map[string]bool{}, map[string]bool{}
	for _, l := range [][]sql.Table{f.Reads, f.Writes} {
		for _, t := range l {
			found[strings.ToLower(t.Table)] = true
			found[strings.ToLower(t.InformationSchema)] = true
		}
	}
	for _, fn := range f.Functions {
		called[strings.ToLower(fn.Name[strings.LastIndexByte(fn.Name, '.')+1:])] = true
	}
	if slices.Contains(f.Opaque, "graph") {
		return out
	}
	for _, p := range s.tables {
		switch {
		case found[last(p)], len(p) == 1 && s.names[strings.ToLower(p[0])], len(p) > 1 && s.names[strings.ToLower(p[0])]:
		default:
			out = append(out, "lost the table "+strings.Join(p, "."))
		}
	}
	for _, p := range s.functions {
		// A value that is computed where a literal belongs is opaque as a whole.
		if !called[last(p)] && !strings.EqualFold(last(p), "week") && !slices.Contains(f.Opaque, "unknown_value") {
			out = append(out, "lost the function "+strings.Join(p, "."))
		}
	}
	return out
}

// texts reads the SQL of policy/sql/testdata/facts.
func texts(t testing.TB) []string {
	files, err := filepath.Glob("../../policy/sql/testdata/facts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no texts: %v", err)
	}
	var out []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range strings.Split(string(b), "\n====\n") {
			text, _, _ := strings.Cut(block, "\n----\n")
			title, text, _ := strings.Cut(text, "\n")
			if !strings.Contains(title, "escaped") {
				out = append(out, text)
			}
		}
	}
	return out
}

func TestOracle(t *testing.T) {
	n := 0
	for _, text := range texts(t) {
		f := sql.Analyze(context.Background(), text, sql.Options{Project: "p", Dataset: "d"})
		if f.Problem == nil {
			n++
		}
		for _, d := range compare(text, f) {
			t.Errorf("%s\n  %s", text, d)
		}
		runtime.GC() // handles are freed by finalizers
	}
	t.Logf("%d texts compared", n)
}

func FuzzOracle(f *testing.F) {
	for _, text := range texts(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		facts := sql.Analyze(context.Background(), text, sql.Options{Project: "p", Dataset: "d"})
		if d := compare(text, facts); d != nil {
			t.Fatal(strings.Join(d, "; "))
		}
	})
}
