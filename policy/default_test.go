package policy

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/format"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
)

// TestDefaultPolicy runs the default policy's own tests and holds their
// coverage at 100 %. The modules are compiled with the capabilities and the
// schema that the engine uses, tests included.
func TestDefaultPolicy(t *testing.T) {
	ctx := context.Background()
	files, err := filepath.Glob("default/*.rego")
	if err != nil || len(files) == 0 {
		t.Fatalf("default/*.rego: %v, %d files", err, len(files))
	}
	modules := map[string]*ast.Module{}
	rules := map[string]*ast.Module{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		formatted, err := format.SourceWithOpts(file, b, format.Opts{RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatal(err)
		}
		if string(formatted) != string(b) {
			t.Errorf("%s is not formatted: opa fmt -w %s", file, file)
		}
		modules[file] = ast.MustParseModuleWithOpts(string(b), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1})
		// The coverage goes by the file's name in the locations.
		m, err := ast.ParseModuleWithOpts(file, string(b), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatal(err)
		}
		modules[file] = m
		if !strings.HasSuffix(file, testSuffix) {
			rules[file] = m
		}
	}
	if _, err := compile(ctx, rules, map[string]any{}); err != nil {
		t.Fatal(err)
	}
	c := cover.New()
	store := inmem.NewFromObject(map[string]any{})
	var tests int
	err = storage.Txn(ctx, store, storage.TransactionParams{}, func(txn storage.Transaction) error {
		results, err := tester.NewRunner().SetCompiler(ast.NewCompiler().WithDefaultRegoVersion(ast.RegoV1)).
			SetStore(store).SetModules(modules).SetCoverageQueryTracer(c).RaiseBuiltinErrors(false).RunTests(ctx, txn)
		if err != nil {
			return err
		}
		for r := range results {
			tests++
			if !r.Pass() {
				t.Errorf("%v", r)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if tests == 0 {
		t.Fatal("no test ran")
	}
	report := c.Report(rules)
	t.Logf("%d tests, coverage %.2f %%", tests, report.Coverage)
	for file, r := range report.Files {
		if strings.HasSuffix(file, testSuffix) {
			continue
		}
		for _, n := range r.NotCovered {
			t.Errorf("%s:%d-%d is not covered", file, n.Start.Row, n.End.Row)
		}
	}
}

// TestReasonCodesAreListed holds the default rules and the list in README.md to
// each other.
func TestReasonCodesAreListed(t *testing.T) {
	rules, err := os.ReadFile("default/policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "### Reason codes")
	if !ok {
		t.Fatal("README.md has no list of reason codes")
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(section, -1) {
		listed[m[1]] = true
	}
	used := map[string]bool{"granted": true}
	for _, m := range regexp.MustCompile(`reason\(\s*"([a-z_]+)"`).FindAllStringSubmatch(string(rules), -1) {
		used[m[1]] = true
	}
	if len(used) < 20 || !maps.Equal(listed, used) {
		t.Errorf("README.md lists %v, the rules use %v", slices.Sorted(maps.Keys(listed)), slices.Sorted(maps.Keys(used)))
	}
}
