package policy

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
)

//go:embed input.schema.json
var inputSchema []byte

var (
	decisionRef = ast.MustParseRef("data.verbatim.policy.decision")
	prepareRef  = ast.MustParseRef("data.verbatim.prepare")
)

const (
	decisionQuery = "data.verbatim.policy.decision"
	grantedQuery  = "data.verbatim.policy.granted"
	prepareQuery  = "data.verbatim.prepare"

	// prepareTimeout bounds the rules that run once at load.
	prepareTimeout = 30 * time.Second
	// sampleTimeout bounds each sample at load, where the first evaluations
	// are slower than those to come.
	sampleTimeout = 5 * time.Second
)

// build compiles the source, runs its rules of package verbatim.prepare, and
// tries the result on the samples.
func build(ctx context.Context, s *source, timeout time.Duration) (*Revision, error) {
	data, err := s.data()
	if err != nil {
		return nil, err
	}
	if s.defaultRules {
		if err := checkDefaultData(data); err != nil {
			return nil, err
		}
	}
	modules, err := parse(s)
	if err != nil {
		return nil, err
	}
	compiler, err := compile(ctx, modules, data)
	if err != nil {
		return nil, err
	}
	rules := compiler.GetRulesExact(decisionRef)
	if len(rules) == 0 {
		return nil, errors.New("no rule named decision in package verbatim.policy: the engine asks that one")
	}
	r := &Revision{digest: s.digest(), timeout: timeout, decisionAt: where(rules[0].Location)}
	prepared := maps.Clone(modules)
	maps.DeleteFunc(prepared, func(_ string, m *ast.Module) bool { return m.Package.Path.HasPrefix(prepareRef) })
	if len(prepared) != len(modules) {
		doc, err := prepare(ctx, compiler, modules, data)
		if err != nil {
			return nil, err
		}
		if r.findings, err = findings(doc); err != nil {
			return nil, err
		}
		if s.defaultRules {
			// A grant with a fault matches nobody; a window with one would stop nobody.
			for _, f := range r.findings {
				if strings.HasPrefix(f.Where, "maintenance.") {
					return nil, fmt.Errorf("data: %s: %s", f.Where, f.Message)
				}
			}
		}
		if r.windows, err = windows(doc); err != nil {
			return nil, err
		}
		data["verbatim"] = map[string]any{"prepare": doc}
		if compiler, err = compile(ctx, prepared, data); err != nil {
			return nil, err
		}
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
	r.query, err = rego.New(
		rego.Query(decisionQuery), rego.Compiler(compiler), rego.Store(store),
		rego.StrictBuiltinErrors(true), rego.EnablePrintStatements(false),
		rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t, nil }),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, compileError(err)
	}
	r.granted, err = rego.New(
		rego.Query(grantedQuery), rego.Compiler(compiler), rego.Store(store),
		rego.StrictBuiltinErrors(true), rego.EnablePrintStatements(false),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, compileError(err)
	}
	r.recall = newRecall(usesOf(compiler))
	if err := r.try(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

func parse(s *source) (map[string]*ast.Module, error) {
	options := ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: capabilities()}
	modules := map[string]*ast.Module{}
	var all ast.Errors
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if path.Ext(name) != ".rego" {
			continue
		}
		m, err := ast.ParseModuleWithOpts(name, string(s.files[name]), options)
		var errs ast.Errors
		switch {
		case errors.As(err, &errs):
			all = append(all, errs...)
		case err != nil:
			return nil, fmt.Errorf("%s: %w", name, err)
		case m == nil:
			return nil, fmt.Errorf("%s:1: an empty module", name)
		default:
			modules[name] = m
		}
	}
	if len(all) > 0 {
		return nil, compileError(all)
	}
	return modules, nil
}

func compile(ctx context.Context, modules map[string]*ast.Module, data map[string]any) (*ast.Compiler, error) {
	var schema any
	if err := json.Unmarshal(inputSchema, &schema); err != nil {
		return nil, fmt.Errorf("input.schema.json: %w", err)
	}
	schemas := ast.NewSchemaSet()
	schemas.Put(ast.SchemaRootRef, schema)                // for all modules
	schemas.Put(ast.MustParseRef("schema.input"), schema) // for authors' annotations
	store := inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Abort(ctx, txn)
	c := ast.NewCompiler().
		WithCapabilities(capabilities()).
		WithDefaultRegoVersion(ast.RegoV1).
		WithSchemas(schemas).
		WithUseTypeCheckAnnotations(true).
		WithStrict(true).
		WithEnablePrintStatements(false).
		WithPathConflictsCheck(storage.NonEmpty(ctx, store, txn))
	c.Compile(modules)
	if c.Failed() {
		return nil, compileError(c.Errors)
	}
	return c, nil
}

// prepare evaluates package verbatim.prepare, once, without an input.
func prepare(ctx context.Context, c *ast.Compiler, modules map[string]*ast.Module, data map[string]any) (map[string]any, error) {
	for name := range modules {
		m := c.Modules[name]
		if !m.Package.Path.HasPrefix(prepareRef) {
			continue
		}
		for _, rule := range m.Rules {
			if at := usesInput(c, rule); at != nil {
				return nil, fmt.Errorf("%s: a rule of package verbatim.prepare uses the input, here: it runs once, when the policy is loaded", where(at))
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	store := inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
	set := false
	results, err := rego.New(
		rego.Query(prepareQuery), rego.Compiler(c), rego.Store(store), rego.EnablePrintStatements(false),
		rego.GenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) {
			ast.WalkTerms(t, func(t *ast.Term) bool {
				if _, ok := t.Value.(ast.Set); ok {
					set = true
				}
				return set
			})
			return ast.JSON(t.Value)
		}),
	).Eval(ctx)
	if err != nil {
		return nil, fmt.Errorf("package verbatim.prepare: %w", evalError(err))
	}
	if set {
		return nil, errors.New("package verbatim.prepare gives a set: use an object or an array, its result is kept as JSON")
	}
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return nil, errors.New("package verbatim.prepare is undefined")
	}
	doc, ok := results[0].Expressions[0].Value.(map[string]any)
	if !ok {
		return nil, errors.New("package verbatim.prepare is not an object")
	}
	return doc, nil
}

// usesInput returns where the rule, or one that it depends on, refers to the
// input; nil where none does.
func usesInput(c *ast.Compiler, rule *ast.Rule) *ast.Location {
	seen := map[*ast.Rule]bool{}
	var visit func(r *ast.Rule) *ast.Location
	visit = func(r *ast.Rule) (at *ast.Location) {
		if seen[r] {
			return nil
		}
		seen[r] = true
		ast.WalkTerms(r, func(t *ast.Term) bool {
			if ref, ok := t.Value.(ast.Ref); ok && at == nil && ref.HasPrefix(ast.InputRootRef) {
				at = t.Location
			}
			return at != nil
		})
		if at != nil {
			return at
		}
		for d := range c.Graph.Dependencies(r) {
			if dep, ok := d.(*ast.Rule); ok {
				if at := visit(dep); at != nil {
					return at
				}
			}
		}
		return nil
	}
	return visit(rule)
}

// findings reads data.verbatim.prepare.findings, which a policy may have.
func findings(doc map[string]any) ([]Finding, error) {
	v, ok := doc["findings"]
	if !ok {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New("data.verbatim.prepare.findings is not an array")
	}
	var out []Finding
	for _, item := range list {
		m, _ := item.(map[string]any)
		at, okAt := m["where"].(string)
		message, okMessage := m["message"].(string)
		if !okAt || !okMessage {
			return nil, errors.New("data.verbatim.prepare.findings: each has to be an object with the strings where and message")
		}
		out = append(out, Finding{Where: at, Message: message})
	}
	return out, nil
}

// maxWindows bounds what the gateway has to count for each caller.
const maxWindows = 64

// windows reads data.verbatim.prepare.windows, which a policy may have.
func windows(doc map[string]any) ([]Window, error) {
	v, ok := doc["windows"]
	if !ok {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, errors.New("data.verbatim.prepare.windows is not an array")
	}
	var out []Window
	for _, item := range list {
		m, _ := item.(map[string]any)
		of, _ := m["of"].(string)
		n, _ := m["seconds"].(json.Number)
		seconds, err := n.Int64()
		if len(m) != 2 || of != "principal" && of != "run" || err != nil || seconds < 1 {
			return nil, errors.New(`data.verbatim.prepare.windows: each has to be an object with of ("principal" or "run") and seconds (a whole number above 0)`)
		}
		out = append(out, Window{Of: of, Seconds: seconds})
	}
	slices.SortFunc(out, func(a, b Window) int {
		return cmp.Or(strings.Compare(a.Of, b.Of), cmp.Compare(a.Seconds, b.Seconds))
	})
	if out = slices.Compact(out); len(out) > maxWindows {
		return nil, fmt.Errorf("data.verbatim.prepare.windows: more than %d windows", maxWindows)
	}
	return out, nil
}

// checkDefaultData refuses what the default rules would not look at.
func checkDefaultData(data map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(data)) {
		switch key {
		case "grants", "limits", "maintenance":
			if _, ok := data[key].(map[string]any); !ok {
				return fmt.Errorf("data: %s is not an object", key)
			}
		default:
			return fmt.Errorf("data: the default rules know no key %q: use grants, limits and maintenance", key)
		}
	}
	return nil
}

// try evaluates the samples. One that gives no decision refuses the policy.
func (r *Revision) try(ctx context.Context) error {
	for _, s := range samples() {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := r.decide(ctx, s.input, s.input.scan(), max(r.timeout, sampleTimeout))
		var e *Error
		if !errors.As(err, &e) {
			continue
		}
		detail := e.Message
		// The sample is ours, so its values may show.
		if e.cause != nil {
			detail = e.cause.Error()
		} else if e.Code == CodeTimeout {
			detail = fmt.Sprintf("no decision in %s", max(r.timeout, sampleTimeout))
		}
		if !strings.HasPrefix(detail, e.at) || e.at == "" {
			detail = r.at(e) + ": " + detail
		}
		return fmt.Errorf("%s (%s, on the built-in sample %q)", detail, e.Code, s.name)
	}
	return nil
}

func (r *Revision) at(e *Error) string {
	if e.at != "" {
		return e.at
	}
	return r.decisionAt
}

// compileError prints the errors of a compilation as file:line: what.
func compileError(err error) error {
	var errs ast.Errors
	if !errors.As(err, &errs) {
		return err
	}
	const most = 10
	var lines []string
	for _, e := range errs {
		if len(lines) == most {
			lines = append(lines, fmt.Sprintf("and %d more", len(errs)-most))
			break
		}
		message := e.Message
		if name, ok := strings.CutPrefix(message, "undefined function "); ok && slices.ContainsFunc(ast.Builtins, func(b *ast.Builtin) bool { return b.Name == name }) {
			message = fmt.Sprintf("%s is not offered to policies: they decide by input and data alone", name)
		}
		if _, drawing := e.Details.(*ast.ParserErrorDetail); e.Details != nil && !drawing {
			message += ": " + strings.TrimSpace(strings.Join(e.Details.Lines(), " "))
		}
		lines = append(lines, fmt.Sprintf("%s: %s", where(e.Location), message))
	}
	return errors.New(strings.Join(lines, "\n"))
}

// evalError puts the place of an evaluation error first.
func evalError(err error) error {
	var e *topdown.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%s: %s: %s", where(e.Location), e.Code, e.Message)
	}
	return err
}

func where(l *ast.Location) string {
	if l == nil || l.File == "" {
		return "policy"
	}
	return fmt.Sprintf("%s:%d", l.File, l.Row)
}
