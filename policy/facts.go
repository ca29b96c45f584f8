package policy

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"

	"verbatim.dev/policy/sql"
)

// The values of the tables, the SQL's facts, the dry run and the usage, as a
// policy sees them, and what a revision remembers decisions by. Each type has its
// value and its digest side by side: what the one shows the other counts.

func number(key string, n int64) [2]*ast.Term {
	return field(key, ast.Number(strconv.FormatInt(n, 10)))
}

func texts(key string, list []string) [2]*ast.Term {
	terms := make([]*ast.Term, len(list))
	for i, s := range list {
		terms[i] = ast.StringTerm(s)
	}
	return field(key, ast.NewArray(terms...))
}

// each makes an array of a list.
func each[T any](key string, list []T, value func(*T) ast.Value) [2]*ast.Term {
	terms := make([]*ast.Term, len(list))
	for i := range list {
		terms[i] = ast.NewTerm(value(&list[i]))
	}
	return field(key, ast.NewArray(terms...))
}

func eachDigest[T any](d *digest, list []T, add func(*T, *digest)) {
	d.count(len(list))
	for i := range list {
		add(&list[i], d)
	}
}

func (t *Table) value() ast.Value {
	name, in := t.names()
	return ast.NewObject(
		text("name", name), text("dataset_name", in),
		text("project", t.Project), text("dataset", t.Dataset), text("table", t.Table), text("as", t.As), text("source", t.Source),
		text("kind", t.Kind), text("information_schema", t.InformationSchema), texts("columns", t.Columns),
		field("all_columns", ast.Boolean(t.AllColumns)),
	)
}

// names returns "PROJECT.DATASET.TABLE" and "PROJECT.DATASET", as rules compare
// them with patterns: the name of a whole dataset or project ends with a dot. An
// INFORMATION_SCHEMA view has the name of what it is about.
func (t *Table) names() (name, dataset string) {
	if t.Dataset == "" {
		return t.Project + ".", t.Project + "."
	}
	dataset = t.Project + "." + t.Dataset
	return dataset + "." + t.Table, dataset
}

func (t *Table) digest(d *digest) {
	for _, s := range [...]string{t.Project, t.Dataset, t.Table, t.As, t.Source, t.Kind, t.InformationSchema} {
		d.text(s)
	}
	d.texts(t.Columns)
	d.flag(t.AllColumns)
}

func (w *UsageWindow) value() ast.Value {
	return ast.NewObject(
		text("of", w.Of), number("seconds", w.Seconds), number("queries", w.Queries), number("bytes", w.Bytes), number("rows", w.Rows),
	)
}

func (w *UsageWindow) digest(d *digest) {
	d.text(w.Of)
	for _, n := range [...]int64{w.Seconds, w.Queries, w.Bytes, w.Rows} {
		d.number(n)
	}
}

func statementValue(s *sql.Statement) ast.Value {
	return ast.NewObject(text("kind", s.Kind), number("line", int64(s.Line)), number("column", int64(s.Column)), number("depth", int64(s.Depth)))
}

func statementDigest(s *sql.Statement, d *digest) {
	d.text(s.Kind)
	d.number(int64(s.Line))
	d.number(int64(s.Column))
	d.number(int64(s.Depth))
}

// builtins are the values of functions that are built in, by name: most of what
// texts call. Their number is bounded, in case a reader took any name for one.
var (
	builtins     sync.Map // string to *ast.Term
	builtinCount atomic.Int64
)

const maxBuiltins = 4096

func functionTerm(f *sql.Function) *ast.Term {
	if f.Kind != "builtin" || f.Defined || f.Language != "" {
		return ast.NewTerm(functionValue(f))
	}
	if t, ok := builtins.Load(f.Name); ok {
		return t.(*ast.Term)
	}
	t := ast.NewTerm(functionValue(f))
	if builtinCount.Add(1) <= maxBuiltins {
		builtins.Store(f.Name, t)
	}
	return t
}

func functionValue(f *sql.Function) ast.Value {
	return ast.NewObject(text("name", f.Name), text("kind", f.Kind), field("defined", ast.Boolean(f.Defined)), text("language", f.Language))
}

func functionDigest(f *sql.Function, d *digest) {
	d.text(f.Name)
	d.text(f.Kind)
	d.flag(f.Defined)
	d.text(f.Language)
}

func externalValue(e *sql.External) ast.Value {
	return ast.NewObject(text("kind", e.Kind), text("value", e.Value), text("access", e.Access))
}

func externalDigest(e *sql.External, d *digest) {
	d.text(e.Kind)
	d.text(e.Value)
	d.text(e.Access)
}

func functionsField(list []sql.Function) [2]*ast.Term {
	terms := make([]*ast.Term, len(list))
	for i := range list {
		terms[i] = functionTerm(&list[i])
	}
	return field("functions", ast.NewArray(terms...))
}

// factsValue shows a problem always, with an empty code where there is none.
func factsValue(f *sql.Facts) ast.Value {
	p := f.Problem
	if p == nil {
		p = &sql.Problem{}
	}
	return ast.NewObject(
		text("source", f.Source),
		field("problem", ast.NewObject(
			text("code", p.Code), text("message", p.Message), number("line", int64(p.Line)), number("column", int64(p.Column)),
			field("fallback", ast.Boolean(p.Fallback)),
		)),
		each("statements", f.Statements, statementValue), functionsField(f.Functions),
		each("externals", f.Externals, externalValue), texts("opaque", f.Opaque),
		field("query_label", ast.Boolean(f.QueryLabel)), texts("temporary", f.Temporary),
	)
}

// dryRunValue shows a target always, with empty names where there is none.
func dryRunValue(r *DryRun) ast.Value {
	target := r.Target
	if target == nil {
		target = &Table{}
	}
	return ast.NewObject(
		text("statement_type", r.StatementType), each("tables", r.Tables, (*Table).value), texts("routines", r.Routines),
		field("target", target.value()), number("bytes_processed", r.BytesProcessed), field("complete", ast.Boolean(r.Complete)),
		texts("only_parser", r.OnlyParser), texts("only_dry_run", r.OnlyDryRun), text("error", r.Error),
	)
}

// factsLeaf is a part of the SQL's facts.
func factsLeaf(name string, put func(*digest, *sql.Facts)) leaf {
	return sqlLeaf("sql.facts."+name, func(d *digest, q *SQL, _ *words) {
		d.flag(q.Facts != nil)
		if q.Facts != nil {
			put(d, q.Facts)
		}
	})
}

// dryRunLeaf is a part of the dry run's answer.
func dryRunLeaf(name string, put func(*digest, *DryRun)) leaf {
	return sqlLeaf("sql.dry_run."+name, func(d *digest, q *SQL, _ *words) {
		d.flag(q.DryRun != nil)
		if q.DryRun != nil {
			put(d, q.DryRun)
		}
	})
}

var factLeaves = []leaf{
	{"reads", func(d *digest, in *Input, _ *words) { eachDigest(d, in.Reads, (*Table).digest) }},
	{"writes", func(d *digest, in *Input, _ *words) { eachDigest(d, in.Writes, (*Table).digest) }},
	{"incomplete", func(d *digest, in *Input, _ *words) { d.texts(in.Incomplete) }},
	flagLeaf("usage.known", func(in *Input) bool { return in.Usage.Known }),
	{"usage.windows", func(d *digest, in *Input, _ *words) { eachDigest(d, in.Usage.Windows, (*UsageWindow).digest) }},
	factsLeaf("source", func(d *digest, f *sql.Facts) { d.text(f.Source) }),
	factsLeaf("problem", func(d *digest, f *sql.Facts) {
		d.flag(f.Problem != nil)
		if p := f.Problem; p != nil {
			d.text(p.Code)
			d.text(p.Message)
			d.number(int64(p.Line))
			d.number(int64(p.Column))
			d.flag(p.Fallback)
		}
	}),
	factsLeaf("statements", func(d *digest, f *sql.Facts) { eachDigest(d, f.Statements, statementDigest) }),
	factsLeaf("functions", func(d *digest, f *sql.Facts) { eachDigest(d, f.Functions, functionDigest) }),
	factsLeaf("externals", func(d *digest, f *sql.Facts) { eachDigest(d, f.Externals, externalDigest) }),
	factsLeaf("opaque", func(d *digest, f *sql.Facts) { d.texts(f.Opaque) }),
	factsLeaf("query_label", func(d *digest, f *sql.Facts) { d.flag(f.QueryLabel) }),
	factsLeaf("temporary", func(d *digest, f *sql.Facts) { d.texts(f.Temporary) }),
	dryRunLeaf("statement_type", func(d *digest, r *DryRun) { d.text(r.StatementType) }),
	dryRunLeaf("tables", func(d *digest, r *DryRun) { eachDigest(d, r.Tables, (*Table).digest) }),
	dryRunLeaf("routines", func(d *digest, r *DryRun) { d.texts(r.Routines) }),
	dryRunLeaf("target", func(d *digest, r *DryRun) {
		d.flag(r.Target != nil)
		if r.Target != nil {
			r.Target.digest(d)
		}
	}),
	dryRunLeaf("bytes_processed", func(d *digest, r *DryRun) { d.number(r.BytesProcessed) }),
	dryRunLeaf("complete", func(d *digest, r *DryRun) { d.flag(r.Complete) }),
	dryRunLeaf("only_parser", func(d *digest, r *DryRun) { d.texts(r.OnlyParser) }),
	dryRunLeaf("only_dry_run", func(d *digest, r *DryRun) { d.texts(r.OnlyDryRun) }),
	dryRunLeaf("error", func(d *digest, r *DryRun) { d.text(r.Error) }),
}
