package sql

import (
	"strings"

	"github.com/sqlc-dev/zetajones/ast"
)

// cte is a name that WITH (or a routine's table parameter) puts before every table's. The list goes from the nearest outwards.
type cte struct {
	name string // folded
	next *cte
}

func (c *cte) find(name string) bool {
	name = strings.ToLower(name)
	for ; c != nil; c = c.next {
		if c.name == name {
			return true
		}
	}
	return false
}

// binding is a name that FROM puts before the columns.
type binding struct {
	alias string // folded; empty for none
	scan  *scan  // nil for what is no table: a CTE, a subquery, an array
	// weak is true where the alias is not certain: it finds columns, but a path that begins with it stays a table.
	weak bool
	// chosen is true where a pipe's SELECT or AGGREGATE chose of its columns.
	chosen bool
}

// scope is what an expression sees. It holds too little rather than too much: a
// path whose first word is in no scope is read as a table.
type scope struct {
	outer    *scope
	ctes     *cte
	bindings []binding
	aliases  map[string]bool // of the select list, for ORDER BY
}

// weaken returns a copy of a scope that finds columns and no paths.
func weaken(s *scope) *scope {
	if s == nil {
		return nil
	}
	c := &scope{outer: weaken(s.outer), ctes: s.ctes}
	for _, b := range s.bindings {
		b.weak = true
		c.bindings = append(c.bindings, b)
	}
	return c
}

func (s *scope) ctesOf() *cte {
	if s == nil {
		return nil
	}
	return s.ctes
}

// correlated reports whether a path's first word is certainly a range variable.
func (s *scope) correlated(name string) bool {
	name = strings.ToLower(name)
	for ; s != nil; s = s.outer {
		for _, b := range s.bindings {
			if b.alias == name && !b.weak {
				return true
			}
		}
	}
	return false
}

// named reports whether a path's first word may be a range variable.
func (s *scope) named(name string) bool {
	name = strings.ToLower(name)
	for ; s != nil; s = s.outer {
		for _, b := range s.bindings {
			if b.alias == name {
				return true
			}
		}
	}
	return false
}

// column records a path of an expression: for the range variable that it begins
// with, else for every table that it may belong to.
func (w *walker) column(names []string, sc *scope) {
	w.step(0)
	first := strings.ToLower(names[0])
	found := false
	for s := sc; s != nil && !found; s = s.outer {
		for _, b := range s.bindings {
			if b.alias != first {
				continue
			}
			if len(names) > 1 {
				b.scan.column(w, names[1])
				found = found || !b.weak
			} else {
				b.scan.all() // the whole row
			}
		}
	}
	if found {
		return
	}
	for s := sc; s != nil; s = s.outer {
		for _, b := range s.bindings {
			if b.scan == nil {
				continue
			}
			b.scan.column(w, first)
			for _, n := range names[1:] {
				if strings.EqualFold(n, b.scan.Table.Table) {
					b.scan.all() // dataset.table.column, should BigQuery take it
				}
			}
		}
	}
}

func (s *scope) allColumns() {
	if s == nil {
		return
	}
	for _, b := range s.bindings {
		b.scan.all()
	}
}

// query walks a query. outer is what surrounds it.
func (w *walker) query(q *ast.Query, outer *scope, ctes *cte) {
	if q == nil {
		return
	}
	w.seen.queries++
	defer w.descend(q.Pos())()
	if q.WithClause != nil {
		ctes = w.with(q.WithClause, outer, ctes)
	}
	sc := w.queryExpr(q.QueryExpr, outer, ctes)
	if sc == nil {
		sc = &scope{outer: outer, ctes: ctes}
	}
	if q.OrderBy != nil {
		w.orderBy(q.OrderBy, sc)
	}
	if q.Limit != nil {
		w.exprs(q.Limit, sc)
	}
	if len(q.PipeOperators) > 0 {
		if _, ok := q.QueryExpr.(*ast.FromQuery); !ok {
			sc = &scope{outer: outer, ctes: ctes}
		}
		w.pipes(q.PipeOperators, sc)
	} else if _, ok := q.QueryExpr.(*ast.FromQuery); ok {
		sc.allColumns()
	}
}

// with walks the entries of a WITH clause and returns the names that they make.
// An entry sees the ones before it, and all of them after RECURSIVE
// (https://cloud.google.com/bigquery/docs/reference/standard-sql/query-syntax#with_clause).
func (w *walker) with(c *ast.WithClause, outer *scope, ctes *cte) *cte {
	if len(c.Entries) > maxCTE {
		w.fail(c.Pos(), "too_complex", "a WITH clause has more than %d entries", maxCTE)
	}
	add := func(id *ast.Identifier) {
		// With a dot in it, the name could be a table's as well: it stays one.
		if name := w.ident(id); !strings.ContainsAny(name, ".:") {
			ctes = &cte{name: strings.ToLower(name), next: ctes}
		}
	}
	if c.Recursive {
		for _, e := range c.Entries {
			if e.AliasedQuery != nil {
				add(e.AliasedQuery.Identifier)
			}
		}
	}
	outer = weaken(outer) // an entry sees no range variable around it
	for _, e := range c.Entries {
		if e.AliasedQuery == nil {
			w.unsupported(e, "WITH ... AS GROUP ROWS")
		}
		w.query(e.AliasedQuery.Query, outer, ctes)
		if !c.Recursive {
			add(e.AliasedQuery.Identifier)
		}
	}
	return ctes
}

// queryExpr walks a query's body and returns what ORDER BY sees, nil for nothing.
func (w *walker) queryExpr(n ast.Node, outer *scope, ctes *cte) *scope {
	defer w.descend(n.Pos())()
	switch n := n.(type) {
	case *ast.Select:
		return w.selectQuery(n, outer, ctes)
	case *ast.Query:
		w.query(n, outer, ctes)
	case *ast.AliasedQueryExpression:
		w.query(n.Query, outer, ctes)
	case *ast.SetOperation:
		for _, in := range n.Inputs {
			w.queryExpr(in, outer, ctes)
		}
		if n.Metadata != nil {
			w.exprs(n.Metadata, nil)
		}
	case *ast.FromQuery:
		sc := &scope{outer: outer, ctes: ctes}
		w.from(n.From.TableExpression, sc)
		return sc
	case *ast.TableClause:
		w.tableClause(n, &scope{outer: outer, ctes: ctes}, "from")
	case *ast.GqlQuery, *ast.GraphTableQuery:
		w.opaque["graph"] = true
		w.graph(n, &scope{outer: outer, ctes: ctes})
	default:
		w.unsupported(n, "this kind of query")
	}
	return nil
}

func (w *walker) selectQuery(s *ast.Select, outer *scope, ctes *cte) *scope {
	sc := &scope{outer: outer, ctes: ctes}
	if s.From != nil {
		w.from(s.From.TableExpression, sc)
	}
	w.selectParts(s, sc)
	return sc
}

// selectParts walks all of a SELECT but its FROM.
func (w *walker) selectParts(s *ast.Select, sc *scope) {
	if s.WithModifier != nil && s.WithModifier.Options != nil {
		w.exprs(s.WithModifier.Options, sc)
	}
	if s.SelectList != nil {
		for _, c := range s.SelectList.Columns {
			w.expr(c.Expr, sc)
			if c.Alias != nil {
				if sc.aliases == nil {
					sc.aliases = map[string]bool{}
				}
				sc.aliases[strings.ToLower(c.Alias.Identifier.Name)] = true
			}
		}
	}
	if s.Where != nil {
		w.expr(s.Where.Expr, sc)
	}
	if s.GroupBy != nil {
		w.exprs(s.GroupBy, sc)
	}
	if s.Having != nil {
		w.expr(s.Having.Expr, sc)
	}
	if s.Qualify != nil {
		w.expr(s.Qualify.Expr, sc)
	}
	if s.Window != nil {
		w.exprs(s.Window, sc)
	}
	if s.Hint != nil {
		w.exprs(s.Hint, sc)
	}
}

// orderBy skips names that the select list made: those come first there.
func (w *walker) orderBy(o *ast.OrderBy, sc *scope) {
	if o.Hint != nil {
		w.exprs(o.Hint, sc)
	}
	for _, it := range o.Items {
		if p, ok := it.Expr.(*ast.PathExpression); ok && len(p.Names) == 1 && sc.aliases[strings.ToLower(p.Names[0].Name)] {
			continue
		}
		w.exprs(it, sc)
	}
}

// from walks a FROM clause's tree and adds its names to sc from left to right: a
// path may begin with a name that stands before it.
func (w *walker) from(n ast.Node, sc *scope) {
	if n == nil {
		return
	}
	defer w.descend(n.Pos())()
	switch n := n.(type) {
	case *ast.TablePathExpression:
		w.tablePath(n, sc)
	case *ast.TableSubquery:
		outer := sc.outer
		if n.IsLateral {
			outer = sc
		}
		w.query(n.Query, outer, sc.ctes)
		w.bind(sc, n.Alias, nil)
		w.postfix(n.PostfixOperators, sc)
	case *ast.TVF:
		w.tvf(n, sc)
		w.bind(sc, n.Alias, nil)
		w.postfix(n.PostfixOperators, sc)
	case *ast.Join:
		w.from(n.Lhs, sc)
		w.from(n.Rhs, sc)
		if n.Natural {
			sc.allColumns()
		}
		if n.OnOrUsingClause != nil {
			w.joinClause(n.OnOrUsingClause, sc)
		}
		if n.ClauseList != nil {
			for _, c := range n.ClauseList.Clauses {
				w.joinClause(c, sc)
			}
		}
		if n.Hint != nil {
			w.exprs(n.Hint, sc)
		}
	case *ast.ParenthesizedJoin:
		inner := &scope{outer: sc.outer, ctes: sc.ctes}
		w.from(n.Join, inner)
		sc.bindings = append(sc.bindings, inner.bindings...)
		w.postfix(n.PostfixOperators, sc)
	case *ast.GraphTableQuery:
		w.opaque["graph"] = true
		w.graph(n, sc)
		w.bind(sc, n.Alias, nil)
	case *ast.PipeJoinLhsPlaceholder:
	default:
		w.unsupported(n, "this kind of table")
	}
}

func (w *walker) joinClause(n ast.Node, sc *scope) {
	switch c := n.(type) {
	case *ast.OnClause:
		w.expr(c.Expr, sc)
	case *ast.UsingClause:
		for _, k := range c.Keys {
			for _, b := range sc.bindings {
				b.scan.column(w, w.ident(k))
			}
		}
	default:
		w.exprs(n, sc)
	}
}

func (w *walker) bind(sc *scope, a *ast.Alias, s *scan) {
	b := binding{scan: s}
	if a != nil {
		b.alias = strings.ToLower(w.ident(a.Identifier))
	}
	sc.bindings = append(sc.bindings, b)
}

// postfix walks what follows a table: PIVOT, UNPIVOT, TABLESAMPLE, MATCH_RECOGNIZE.
func (w *walker) postfix(ops []ast.Node, sc *scope) {
	for _, op := range ops {
		switch op := op.(type) {
		case *ast.PivotClause, *ast.UnpivotClause, *ast.MatchRecognizeClause:
			sc.allColumns()
			w.exprs(op, sc)
		default:
			w.exprs(op, sc)
		}
	}
}

func (w *walker) tablePath(n *ast.TablePathExpression, sc *scope) {
	w.seen.tables++
	if n.Hint != nil {
		w.exprs(n.Hint, sc)
	}
	if n.UnnestExpr != nil {
		w.exprs(n.UnnestExpr, sc)
		w.bind(sc, n.Alias, nil)
		for _, e := range n.UnnestExpr.Expressions {
			if e.Alias != nil {
				w.bind(sc, e.Alias, nil)
			}
		}
		if n.Offset != nil && n.Offset.Alias != nil {
			w.bind(sc, n.Offset.Alias, nil)
		}
		w.postfix(n.PostfixOperators, sc)
		return
	}
	names := w.names(n.Path)
	dotted := strings.ContainsAny(names[0], ".:")
	if n.ForSystemTime != nil {
		w.expr(n.ForSystemTime.Expr, sc)
	}
	var s *scan
	switch {
	case len(names) == 1 && !dotted && sc.ctes.find(names[0]):
		// A CTE.
	case len(names) > 1 && !dotted && !isSession(names) && sc.correlated(names[0]):
		w.column(names, sc)
	default:
		if len(names) > 1 && sc.named(names[0]) {
			w.column(names, sc) // should it be a path after all
		}
		s = w.tableUse(n.Path, "from", w.read)
		if n.ForSystemTime != nil {
			s.past()
		}
	}
	b := binding{scan: s}
	last := n.Path.Names[len(n.Path.Names)-1].Name
	switch {
	case n.Alias != nil:
		b.alias = strings.ToLower(w.ident(n.Alias.Identifier))
	case strings.ContainsAny(last, ".:"):
		// `project.dataset.table` is known by its last part, but whether a path may begin with that is not certain.
		b.alias, b.weak = strings.ToLower(last[strings.LastIndexAny(last, ".:")+1:]), true
	default:
		b.alias = strings.ToLower(last)
	}
	sc.bindings = append(sc.bindings, b)
	if n.Offset != nil && n.Offset.Alias != nil {
		w.bind(sc, n.Offset.Alias, nil)
	}
	w.postfix(n.PostfixOperators, sc)
}

// tableClause walks TABLE t and TABLE f(...).
func (w *walker) tableClause(n *ast.TableClause, sc *scope, as string) {
	w.seen.clauses++
	switch t := n.Table.(type) {
	case *ast.PathExpression:
		names := w.names(t)
		if len(names) == 1 && !strings.ContainsAny(names[0], ".:") && sc.ctesOf().find(names[0]) {
			return
		}
		w.tableUse(t, as, w.read).all()
	case *ast.TVF:
		w.tvf(t, sc)
	default:
		w.unsupported(n, "this TABLE clause")
	}
}

// tvf walks a call of a table function.
func (w *walker) tvf(n *ast.TVF, sc *scope) {
	w.seen.tvfs++
	outer := sc
	if !n.IsLateral && sc != nil {
		outer = &scope{outer: sc.outer, ctes: sc.ctes}
	}
	name := w.function(n.Name, true)
	if name == "EXTERNAL_QUERY" {
		w.externalQuery(n)
	}
	for _, a := range n.Args {
		w.argument(a.Expr, outer)
	}
	if n.Hint != nil {
		w.exprs(n.Hint, sc)
	}
}

// argument walks an argument that may be a relation.
func (w *walker) argument(n ast.Node, sc *scope) {
	switch a := n.(type) {
	case *ast.NamedArgument:
		w.namedArgument(a)
		w.argument(a.Value, sc)
	case *ast.ExpressionSubquery:
		if t, ok := a.Query.QueryExpr.(*ast.TableClause); ok && t.Pos() == a.Pos() {
			w.seen.queries++ // name => TABLE t
			if sc == nil {
				sc = &scope{}
			}
			w.tableClause(t, sc, "table_argument")
			return
		}
		w.expr(a, sc)
	case *ast.TableClause, *ast.ModelClause, *ast.ConnectionClause:
		w.expr(a, sc)
	case *ast.Descriptor, *ast.InputTableArgument:
	case *ast.PathExpression:
		names := w.names(a)
		if !(len(names) >= 1 && w.vars[strings.ToLower(names[0])]) {
			// A bare name could stand for a table.
			w.opaque["unresolved_table_argument"] = true
		}
		w.column(names, sc)
	default:
		w.expr(n, sc)
	}
}

// connectionArguments name a connection or endpoint in a call.
func (w *walker) namedArgument(a *ast.NamedArgument) {
	switch strings.ToUpper(w.ident(a.Name)) {
	case "CONNECTION_ID", "CONNECTION":
		w.connectionPath(a.Value, "write")
	case "ENDPOINT":
		v, _ := literal(a.Value)
		w.external("uri", v, "write")
	}
}

func (w *walker) externalQuery(n *ast.TVF) {
	for i, kind := range []string{"connection", "query"} {
		v := ""
		if i < len(n.Args) {
			e := n.Args[i].Expr
			if na, ok := e.(*ast.NamedArgument); ok {
				e = na.Value
			}
			v, _ = literal(e)
		}
		// What the query does there nobody here knows: it may write.
		w.external(kind, v, "read")
	}
}

// pipes walks pipe operators. The names of FROM stay for what is certain to keep
// them, and go with the first operator that is not.
// What no SELECT or AGGREGATE chose of goes out whole.
func (w *walker) pipes(ops []ast.Node, sc *scope) {
	drop := func(chosen bool) {
		// Columns are still looked for by these names, paths are not.
		next := &scope{outer: sc.outer, ctes: sc.ctes}
		for _, b := range sc.bindings {
			b.weak, b.chosen = true, b.chosen || chosen
			next.bindings = append(next.bindings, b)
		}
		sc = next
	}
	for _, op := range ops {
		done := w.descend(op.Pos())
		switch op := op.(type) {
		case *ast.PipeWhere:
			w.expr(op.Where.Expr, sc)
		case *ast.PipeOrderBy:
			w.exprs(op.OrderBy, sc)
		case *ast.PipeLimitOffset:
			w.exprs(op.LimitOffset, sc)
		case *ast.PipeTablesample:
			w.exprs(op, sc)
		case *ast.PipeExtend:
			w.selectParts(op.Select, sc)
		case *ast.PipeWindow:
			w.selectParts(op.Select, sc)
		case *ast.PipeSelect:
			w.selectParts(op.Select, sc)
			drop(true)
		case *ast.PipeAggregate:
			w.selectParts(op.Select, sc)
			drop(true)
		case *ast.PipeSet:
			for _, it := range op.Items {
				w.expr(it.Expr, sc)
			}
			drop(false)
		case *ast.PipeDistinct, *ast.PipeRename, *ast.PipeDrop:
			sc.allColumns()
			drop(false)
		case *ast.PipeAs:
			drop(false)
			w.bind(sc, op.Alias, nil)
		case *ast.PipeJoin:
			w.from(op.Join, sc)
		case *ast.PipeWith:
			sc.ctes = w.with(op.With, sc.outer, sc.ctes)
		case *ast.PipeSetOperation:
			sc.allColumns()
			for _, in := range op.Inputs {
				w.queryExpr(in, sc.outer, sc.ctes)
			}
			if op.Metadata != nil {
				w.exprs(op.Metadata, sc)
			}
			drop(false)
		case *ast.PipeCall:
			sc.allColumns()
			w.tvf(op.Call, sc)
			drop(false)
		case *ast.PipeAssert:
			w.exprs(op, sc)
		case *ast.PipePivot, *ast.PipeUnpivot, *ast.PipeMatchRecognize:
			sc.allColumns()
			w.exprs(op, sc)
			drop(false)
		case *ast.PipeInsert:
			sc.allColumns()
			s := w.begin("INSERT", op.Pos())
			w.insert(op.Insert, sc.ctes)
			s()
		case *ast.PipeCreateTable:
			sc.allColumns()
			s := w.begin("CREATE_TABLE_AS_SELECT", op.Pos())
			w.createTable(op.CreateTable, note{})
			s()
		case *ast.PipeExportData:
			sc.allColumns()
			s := w.begin("EXPORT_DATA", op.Pos())
			w.options(op.ExportData.Options, "write")
			w.connection(op.ExportData.WithConnection, "write")
			s()
		case *ast.PipeTee:
			sc.allColumns()
			w.hint(op.Hint)
			for _, sub := range op.Subpipelines {
				w.pipes(sub.PipeOperators, sc)
			}
		case *ast.PipeFork:
			sc.allColumns()
			w.hint(op.Hint)
			for _, sub := range op.Subpipelines {
				w.pipes(sub.PipeOperators, sc)
			}
		default:
			w.unsupported(op, "this pipe operator")
		}
		done()
	}
	for _, b := range sc.bindings {
		if !b.chosen {
			b.scan.all()
		}
	}
}

// exprs walks all children of a node as expressions.
func (w *walker) exprs(n ast.Node, sc *scope) {
	if n == nil {
		return
	}
	defer w.descend(n.Pos())()
	for _, c := range n.Children() {
		w.expr(c, sc)
	}
}

// expr walks an expression.
func (w *walker) expr(n ast.Node, sc *scope) {
	switch n := n.(type) {
	case nil:
	case *ast.PathExpression:
		w.column(w.names(n), sc)
	case *ast.Identifier, *ast.Alias, *ast.StringLiteral, *ast.IntLiteral, *ast.FloatLiteral, *ast.NullLiteral, *ast.BooleanLiteral,
		*ast.BytesLiteral, *ast.ParameterExpr, *ast.Location:
	case *ast.SystemVariableExpr, *ast.SimpleType, *ast.ArrayType, *ast.StructType, *ast.RangeType, *ast.MapType, *ast.FunctionType, *ast.SelectAs:
	case *ast.Star, *ast.StarWithModifiers:
		sc.allColumns()
		w.exprs(n, sc)
	case *ast.DotStar:
		w.dotStar(n.Expr, sc)
	case *ast.DotStarWithModifiers:
		w.dotStar(n.Expr, sc)
		if n.Modifiers != nil {
			w.exprs(n.Modifiers, sc)
		}
	case *ast.FunctionCall:
		w.call(n, sc)
	case *ast.Query:
		w.query(n, sc, sc.ctesOf())
	case *ast.TableClause:
		if sc == nil {
			sc = &scope{}
		}
		w.tableClause(n, sc, "table_argument")
	case *ast.ModelClause:
		w.seen.models++
		w.object(n.Path, "model", "table_argument", w.read)
	case *ast.ConnectionClause:
		w.connectionPath(n.Path, "write")
	case *ast.NamedArgument:
		w.namedArgument(n)
		w.expr(n.Value, sc)
	case *ast.ExtractExpression:
		if _, ok := n.LhsExpr.(*ast.PathExpression); !ok {
			if c, ok := n.LhsExpr.(*ast.FunctionCall); ok && onlyPath(c) {
				w.seen.calls++ // WEEK(MONDAY)
			} else {
				w.expr(n.LhsExpr, sc)
			}
		}
		w.expr(n.RhsExpr, sc)
		w.expr(n.TimeZone, sc)
	case *ast.CastExpression:
		w.expr(n.Expr, sc)
		if n.Format != nil {
			w.exprs(n.Format, sc)
		}
	case *ast.NewConstructor, *ast.BracedNewConstructor, *ast.ReplaceFieldsExpression, *ast.SequenceArg:
		w.unsupported(n, "a construct of protocol buffers")
	case *ast.TVF:
		w.tvf(n, sc)
	case *ast.TablePathExpression, *ast.TableSubquery, *ast.Join, *ast.ParenthesizedJoin, *ast.FromClause:
		// Where a table stands outside of every FROM that is known here.
		w.unsupported(n, "a table in this place")
	case *ast.GraphTableQuery, *ast.GqlQuery, *ast.GraphPattern, *ast.GraphIsLabeledPredicate:
		w.opaque["graph"] = true
		w.exprs(n, sc)
	default:
		w.exprs(n, sc)
	}
}

func (w *walker) dotStar(n ast.Node, sc *scope) {
	if p, ok := n.(*ast.PathExpression); ok {
		if len(p.Names) == 1 {
			for s, name := sc, strings.ToLower(w.ident(p.Names[0])); s != nil; s = s.outer {
				for _, b := range s.bindings {
					if b.alias == name && !b.weak {
						b.scan.all()
						return
					}
				}
			}
		}
		w.column(w.names(p), sc)
		if len(p.Names) > 1 {
			// dataset.table.*: the table
			last := p.Names[len(p.Names)-1].Name
			for s := sc; s != nil; s = s.outer {
				for _, b := range s.bindings {
					if b.alias == strings.ToLower(last) {
						b.scan.all()
					}
				}
			}
		}
		return
	}
	w.expr(n, sc)
}

// call walks a function's call in an expression.
func (w *walker) call(n *ast.FunctionCall, sc *scope) {
	w.seen.calls++
	defer w.descend(n.Pos())()
	name := w.function(n.Function, false)
	part := datePartArgument(name)
	for i, a := range n.Args {
		switch a := a.(type) {
		case *ast.Star:
			continue // COUNT(*) reads no column
		case *ast.PathExpression:
			if i == part && len(a.Names) == 1 && dateParts[strings.ToUpper(a.Names[0].Name)] {
				continue
			}
		case *ast.FunctionCall:
			if i == part && len(a.Function.Names) == 1 && strings.EqualFold(a.Function.Names[0].Name, "WEEK") && onlyPath(a) {
				w.seen.calls++ // WEEK(MONDAY)
				continue
			}
		}
		w.expr(a, sc)
	}
	// The modifiers stand behind the function's name and its arguments.
	for _, c := range n.Children()[1+len(n.Args):] {
		w.expr(c, sc)
	}
}

// onlyPath reports whether a call's arguments are one name.
func onlyPath(c *ast.FunctionCall) bool {
	if len(c.Args) != 1 || len(c.Children()) != 2 {
		return false
	}
	_, ok := c.Args[0].(*ast.PathExpression)
	return ok
}

// graph walks a graph query for what stands in its expressions. The graph's
// own tables are not known.
func (w *walker) graph(n ast.Node, sc *scope) {
	var visit func(ast.Node)
	visit = func(n ast.Node) {
		switch n := n.(type) {
		case *ast.Query:
			w.query(n, sc, sc.ctesOf())
			return
		case *ast.FunctionCall:
			w.call(n, sc)
			return
		case *ast.GraphTableQuery:
			if n.Graph != nil {
				w.object(n.Graph, "graph", "from", w.read)
			}
		case *ast.GqlGraphPatternQuery:
			if n.Graph != nil {
				w.object(n.Graph, "graph", "from", w.read)
			}
		case *ast.GqlLinearOpsQuery:
			if n.Graph != nil {
				w.object(n.Graph, "graph", "from", w.read)
			}
		case *ast.TVF:
			w.tvf(n, sc)
			return
		}
		defer w.descend(n.Pos())()
		for _, c := range n.Children() {
			visit(c)
		}
	}
	visit(n)
}

// function records a called function and returns its name in upper case when it
// is a built-in one.
func (w *walker) function(p *ast.PathExpression, isTable bool) string {
	names := w.names(p)
	plain := true
	for _, n := range names {
		if strings.ContainsAny(n, ".:") {
			plain = false
		}
	}
	line, column := w.lineColumn(p.Pos())
	f := Function{Line: line, Column: column}
	builtin := func(name string) string {
		f.Name, f.Kind = name, namespaceKind(name)
		if name == "EXTERNAL_QUERY" {
			f.Kind = "external_query"
		}
		w.addFunction(f)
		return name
	}
	if plain {
		upper := strings.ToUpper(strings.Join(names, "."))
		base := strings.TrimPrefix(upper, "SAFE.")
		if len(names) == 1 {
			if certain, ok := w.env.routine(names[0]); ok {
				f.Name, f.Kind = names[0], "temporary"
				w.addFunction(f)
				if certain && !w.maybeDropped(names[0]) {
					return ""
				}
			}
		}
		switch {
		case !strings.Contains(base, ".") && (builtins[base] || builtinTVFs[base]), namespaced[base]:
			return builtin(base)
		case upper != base && !strings.Contains(base, "."):
			// SAFE.f, where f is no built-in function: a dataset may be called safe.
			if _, ok := w.env.routine(names[1]); ok {
				f.Name, f.Kind = names[1], "temporary"
				w.addFunction(f)
				return ""
			}
		}
		if len(names) == 1 && w.env.dataset == "" && !w.env.unknown {
			if w.definedTemp(names[0]) {
				return ""
			}
			f.Name, f.Kind = strings.ToUpper(names[0]), "unknown"
			w.addFunction(f)
			return ""
		}
		if len(names) == 1 && w.definedTemp(names[0]) {
			return ""
		}
	}
	n := w.resolveName(names, p.Pos())
	f.Name, f.Kind = n.String(), "udf"
	if isTable {
		f.Kind = "table_function"
	}
	w.addFunction(f)
	return ""
}

// definedTemp reports whether a bare name is a certain temporary function, which was recorded.
func (w *walker) definedTemp(name string) bool {
	certain, ok := w.env.routine(name)
	return ok && certain && !w.maybeDropped(name)
}

func (w *walker) addFunction(f Function) {
	key := Function{Name: f.Name, Kind: f.Kind, Defined: f.Defined}
	if i, ok := w.called[key]; ok {
		if g := &w.facts.Functions[i]; g.Language == "" {
			g.Language = f.Language
		}
		return
	}
	w.called[key] = len(w.facts.Functions)
	w.facts.Functions = append(w.facts.Functions, f)
}
