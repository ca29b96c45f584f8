package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
)

// JSON returns the input as a policy sees it.
func (in *Input) JSON() ([]byte, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	v, err := in.value(in.scan())
	if err != nil {
		return nil, err
	}
	j, err := ast.JSON(v)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(j, "", "  ")
}

// Schema returns the JSON schema of the input (draft 7).
func Schema() []byte { return bytes.Clone(inputSchema) }

// TestResult is one test of a policy.
type TestResult struct {
	Name     string // data.PACKAGE.test_NAME
	At       string // file:line
	Passed   bool
	Skipped  bool
	Duration time.Duration
	Error    string   // why it could not be run
	Output   []string // what it printed
}

// TestReport is what the tests of a policy gave.
type TestReport struct {
	Tests      []TestResult
	Coverage   float64  // of the rules in percent; without the tests, and without the default rules where they are the embedded ones
	NotCovered []string // file:line or file:line-line
}

// TestConfig says which tests to run.
type TestConfig struct {
	// Dir is a policy's folder, with *_test.rego files in it. Without rules of its
	// own its tests run against the default rules and its own data.
	Dir string
	// Run matches the names of the tests to run; nil: all.
	Run *regexp.Regexp
	// Timeout of one test; 0: 30 s.
	Timeout time.Duration
}

// Test runs the tests of a policy's folder, as opa test does, with the builtins
// that policies have. What does not compile is an error with file and line; a
// test that fails is in the report.
func Test(ctx context.Context, c TestConfig) (*TestReport, error) {
	s, err := readDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if len(s.files) == 0 {
		s.files["data.json"] = []byte("{}")
	}
	if err := s.withDefaultRules(); err != nil {
		return nil, err
	}
	data, err := s.data()
	if err != nil {
		return nil, err
	}
	rules, err := parse(s)
	if err != nil {
		return nil, err
	}
	// The rules alone first: strict, against the schema.
	if _, err := compile(ctx, rules, data); err != nil {
		return nil, err
	}
	tests, err := readTests(c.Dir)
	if err != nil {
		return nil, err
	}
	if len(tests.files) == 0 {
		return nil, fmt.Errorf("policy: %s: no file named *%s there", c.Dir, testSuffix)
	}
	modules, err := parse(tests)
	if err != nil {
		return nil, err
	}
	covered := maps.Clone(rules)
	if s.defaultRules {
		clear(covered)
	}
	for name, m := range rules {
		modules[name] = m
	}
	coverage := cover.New()
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false))
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithDefaultRegoVersion(ast.RegoV1).WithEnablePrintStatements(true)
	runner := tester.NewRunner().SetCompiler(compiler).SetStore(store).SetModules(modules).CapturePrintOutput(true).
		SetTimeout(timeout).SetCoverageQueryTracer(coverage).RaiseBuiltinErrors(false)
	if c.Run != nil {
		runner = runner.Filter(c.Run.String())
	}
	report := &TestReport{}
	err = storage.Txn(ctx, store, storage.TransactionParams{}, func(txn storage.Transaction) error {
		results, err := runner.RunTests(ctx, txn)
		if err != nil {
			return compileError(err)
		}
		for r := range results {
			t := TestResult{Name: r.Package + "." + r.Name, At: where(r.Location), Passed: r.Pass(), Skipped: r.Skip, Duration: r.Duration}
			if r.Error != nil {
				t.Error = r.Error.Error()
			}
			if out := strings.TrimRight(string(r.Output), "\n"); out != "" {
				t.Output = strings.Split(out, "\n")
			}
			report.Tests = append(report.Tests, t)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	slices.SortStableFunc(report.Tests, func(a, b TestResult) int { return strings.Compare(a.Name, b.Name) })
	r := coverage.Report(covered)
	report.Coverage = r.Coverage
	for _, file := range slices.Sorted(maps.Keys(r.Files)) {
		if _, ok := covered[file]; !ok {
			continue
		}
		for _, n := range r.Files[file].NotCovered {
			at := fmt.Sprintf("%s:%d", file, n.Start.Row)
			if n.End.Row != n.Start.Row {
				at += fmt.Sprintf("-%d", n.End.Row)
			}
			report.NotCovered = append(report.NotCovered, at)
		}
	}
	report.NotCovered = slices.Compact(report.NotCovered)
	return report, nil
}

// readTests reads the tests of a folder, which are no part of the policy.
func readTests(dir string) (*source, error) {
	s := &source{name: dir, files: map[string][]byte{}}
	total := 0
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && file != dir {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !strings.HasSuffix(d.Name(), testSuffix) {
			return nil
		}
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			return errors.Join(err, fmt.Errorf("%s: not a regular file", file))
		}
		b, err := readLimited(file, maxFile)
		if err != nil {
			return err
		}
		if total += len(b); total > maxTotal || len(s.files) == maxFiles {
			return fmt.Errorf("%s: more than %d files or %d bytes", dir, maxFiles, maxTotal)
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		s.files[path.Clean(filepath.ToSlash(name))] = b
		return nil
	})
	return s, err
}
