package sql

import (
	"strings"

	"github.com/sqlc-dev/zetajones/ast"
)

// list walks the statements of a script or block in order.
func (w *walker) list(nodes []ast.Node) {
	for _, n := range nodes {
		w.statement(n)
	}
}

// block walks statements that may run, may not, or may run again.
func (w *walker) block(l *ast.StatementList) {
	if l == nil {
		return
	}
	outer := w.env
	w.env = outer.inner()
	if w.rebound {
		w.env.unknown = true
	}
	w.depth++
	w.list(l.Statements)
	w.depth--
	block := w.env
	w.env = outer
	outer.leave(block)
}

func temp(scope string) bool { return scope == "TEMP" || scope == "TEMPORARY" }

func created(replace bool) string {
	if replace {
		return "replace"
	}
	return "create"
}

// statement walks one statement. Every kind is named here: one that is not is a problem.
func (w *walker) statement(n ast.Node) {
	defer w.descend(n.Pos())()
	if w.check() != nil {
		w.fail(n.Pos(), "timeout", "reading the text took too long")
	}
	at := w.r.original(n.Pos())
	mark, noted := w.r.notes[at]
	kind := func(k string) func() { return w.begin(k, n.Pos()) }
	switch n := n.(type) {
	case *ast.HintedStatement:
		w.hint(n.Hint)
		w.statement(n.Statement)

	// Queries and DML.
	case *ast.QueryStatement:
		defer kind("SELECT")()
		w.query(n.Query, nil, nil)
	case *ast.InsertStatement:
		defer kind("INSERT")()
		w.insert(n, nil)
	case *ast.UpdateStatement:
		defer kind("UPDATE")()
		w.update(n)
	case *ast.DeleteStatement:
		defer kind("DELETE")()
		w.delete(n)
	case *ast.MergeStatement:
		defer kind("MERGE")()
		w.merge(n)
	case *ast.TruncateStatement:
		defer kind("TRUNCATE_TABLE")()
		w.tableUse(n.Target, "truncate", w.write).all()
		w.expr(n.Where, nil)

	// Tables.
	case *ast.CreateTableStatement:
		k := "CREATE_TABLE"
		if n.Query != nil {
			k = "CREATE_TABLE_AS_SELECT"
		}
		if noted && mark.kind == "snapshot" {
			k = "CREATE_SNAPSHOT_TABLE"
		}
		defer kind(k)()
		w.createTable(n, mark)
	case *ast.CreateExternalTableStatement:
		defer kind("CREATE_EXTERNAL_TABLE")()
		w.create(n.Name, "table", n.Scope, n.IsOrReplace)
		w.optional(n.TableElementList)
		w.optional(n.WithPartition)
		w.options(n.Options, "read")
		w.connection(n.WithConnection, "read")
		if !hasURI(n.Options) {
			w.external("uri", "", "read")
		}
	case *ast.CreateViewStatement:
		w.createView(n, kind)
	case *ast.CreateSchemaStatement:
		k, as := "CREATE_SCHEMA", created(n.IsOrReplace)
		if noted && mark.kind == "undrop" {
			k, as = "UNDROP_SCHEMA", "restore"
		}
		defer kind(k)()
		w.dataset(n.Name, as)
		w.options(n.Options, "read")
	case *ast.CreateExternalSchemaStatement:
		defer kind("CREATE_EXTERNAL_SCHEMA")()
		w.dataset(n.Name, created(n.IsOrReplace))
		w.options(n.Options, "read")
		w.connection(n.WithConnection, "read")
		if !hasURI(n.Options) {
			w.external("uri", "", "read")
		}
	case *ast.CreateModelStatement:
		w.createModel(n, kind)
	case *ast.CreateIndexStatement:
		k := "CREATE_INDEX"
		switch {
		case n.IsSearch:
			k = "CREATE_SEARCH_INDEX"
		case n.IsVector:
			k = "CREATE_VECTOR_INDEX"
		}
		defer kind(k)()
		w.indexed(n.TableName)
		w.optional(n.IndexItemList)
		w.optional(n.Storing)
		w.optional(n.PartitionBy)
		w.options(n.Options, "read")
	case *ast.CreateRowAccessPolicyStatement:
		defer kind("CREATE_ROW_ACCESS_POLICY")()
		s := w.tableUse(n.TargetPath, "policy", w.write)
		s.all()
		if n.FilterUsing != nil {
			w.defines++
			w.expr(n.FilterUsing.Predicate, nil)
			w.defines--
		}
	case *ast.AlterStatement:
		w.alter(n, kind)
	case *ast.AlterIndexStatement:
		k := "ALTER_SEARCH_INDEX"
		if n.Vector {
			k = "ALTER_VECTOR_INDEX"
		}
		defer kind(k)()
		if n.Table == nil {
			w.unsupported(n, "ALTER INDEX without a table")
		}
		w.indexed(n.Table)
	case *ast.AlterRowAccessPolicyStatement:
		defer kind("ALTER_ROW_ACCESS_POLICY")()
		w.tableUse(n.Path, "policy", w.write).all()
		w.optional(n.Actions)
	case *ast.AlterAllRowAccessPoliciesStatement:
		defer kind("ALTER_ALL_ROW_ACCESS_POLICIES")()
		w.tableUse(n.Path, "policy", w.write).all()
	case *ast.DropStatement:
		w.drop(n, kind)
	case *ast.DropIndexStatement:
		k := "DROP_SEARCH_INDEX"
		if n.Vector {
			k = "DROP_VECTOR_INDEX"
		}
		defer kind(k)()
		if n.Table == nil {
			w.unsupported(n, "DROP INDEX without a table")
		}
		w.indexed(n.Table)
	case *ast.DropRowAccessPolicyStatement:
		defer kind("DROP_ROW_ACCESS_POLICY")()
		w.tableUse(n.Target, "policy", w.write).all()
	case *ast.DropAllRowAccessPoliciesStatement:
		defer kind("DROP_ALL_ROW_ACCESS_POLICIES")()
		w.tableUse(n.Target, "policy", w.write).all()

	// Routines.
	case *ast.CreateFunctionStatement:
		w.createFunction(n, kind)
	case *ast.CreateTableFunctionStatement:
		defer kind("CREATE_TABLE_FUNCTION")()
		lang := "sql"
		if n.Language != nil {
			lang = strings.ToLower(w.ident(n.Language))
			w.opaque["script_body"] = true
		}
		w.defineRoutine(n.Declaration.Name, n.Scope, n.IsOrReplace, Function{Kind: "table_function", Language: lang})
		w.options(n.Options, "read")
		w.body(n.Declaration.Parameters, func(ctes *cte) {
			w.query(n.Query, nil, ctes)
		})
	case *ast.CreateProcedureStatement:
		w.createProcedure(n, kind)

	// What leaves and what comes in.
	case *ast.ExportDataStatement:
		defer kind("EXPORT_DATA")()
		w.options(n.Options, "write")
		w.connection(n.WithConnection, "write")
		if !hasURI(n.Options) {
			w.external("uri", "", "write")
		}
		w.query(n.Query, nil, nil)
	case *ast.ExportModelStatement:
		defer kind("EXPORT_MODEL")()
		w.object(n.Name, "model", "export", w.read)
		w.options(n.Options, "write")
		w.connection(n.WithConnection, "write")
		if !hasURI(n.Options) {
			w.external("uri", "", "write")
		}
	case *ast.CloneDataStatement:
		defer kind("CLONE_DATA")()
		w.tableUse(n.Target, "target", w.write).all()
		for _, s := range n.Sources.Sources {
			w.cloneSource(s, "clone")
		}

	// Access and capacity.
	case *ast.GrantStatement:
		defer kind("GRANT")()
		w.grant(n.ObjectTypes, n.Path)
	case *ast.RevokeStatement:
		defer kind("REVOKE")()
		w.grant(n.ObjectTypes, n.Path)
	case *ast.CreateEntityStatement:
		t := strings.ToUpper(n.Type.Name)
		defer kind("CREATE_" + t)()
		w.entity(t, n.Name, created(n.IsOrReplace))
		w.options(n.Options, "read")
	case *ast.DropEntityStatement:
		t := strings.ToUpper(n.EntityType.Name)
		defer kind("DROP_" + t)()
		w.entity(t, n.Name, "drop")

	// Scripts.
	case *ast.BeginEndBlock:
		end := kind("BEGIN")
		end()
		w.block(n.Statements)
		if n.Handlers != nil {
			for _, h := range n.Handlers.Handlers {
				w.block(h.Body)
			}
		}
	case *ast.VariableDeclaration:
		defer kind("DECLARE")()
		for _, id := range n.Variables.Identifiers {
			w.vars[strings.ToLower(w.ident(id))] = true
		}
		w.expr(n.DefaultValue, nil)
	case *ast.SingleAssignment:
		defer kind("SET")()
		w.expr(n.Value, nil)
	case *ast.AssignmentFromStruct:
		defer kind("SET")()
		w.expr(n.Value, nil)
	case *ast.ParameterAssignment:
		defer kind("SET")()
		w.expr(n.Value, nil)
	case *ast.SystemVariableAssignment:
		defer kind("SET")()
		w.expr(n.Value, nil)
		w.setSystem(n)
	case *ast.IfStatement:
		k := "IF"
		if noted && mark.kind == "case" {
			k = "CASE"
		}
		end := kind(k)
		w.expr(n.Condition, nil)
		if n.ElseifClauses != nil {
			for _, c := range n.ElseifClauses.Clauses {
				w.expr(c.Condition, nil)
			}
		}
		end()
		w.block(n.ThenList)
		if n.ElseifClauses != nil {
			for _, c := range n.ElseifClauses.Clauses {
				w.block(c.Body)
			}
		}
		w.block(n.ElseList)
	case *ast.WhileStatement:
		k := "WHILE"
		if n.Condition == nil {
			k = "LOOP"
		}
		end := kind(k)
		w.expr(n.Condition, nil)
		end()
		w.block(n.Body)
	case *ast.RepeatStatement:
		end := kind("REPEAT")
		if n.Until != nil {
			w.expr(n.Until.Condition, nil)
		}
		end()
		w.block(n.Body)
	case *ast.ForInStatement:
		end := kind("FOR")
		w.vars[strings.ToLower(w.ident(n.Variable))] = true
		w.query(n.Query, nil, nil)
		end()
		w.block(n.Body)
	case *ast.BreakStatement:
		if noted && mark.kind == "load" {
			defer kind("LOAD_DATA")()
			w.load(mark.load)
			return
		}
		defer kind(strings.ToUpper(n.Keyword))()
	case *ast.ContinueStatement:
		defer kind(strings.ToUpper(n.Keyword))()
	case *ast.ReturnStatement:
		defer kind("RETURN")()
	case *ast.RaiseStatement:
		defer kind("RAISE")()
		w.expr(n.Message, nil)
	case *ast.BeginStatement:
		defer kind("BEGIN_TRANSACTION")()
	case *ast.CommitStatement:
		defer kind("COMMIT_TRANSACTION")()
	case *ast.RollbackStatement:
		defer kind("ROLLBACK_TRANSACTION")()
	case *ast.AssertStatement:
		defer kind("ASSERT")()
		w.expr(n.Expression, nil)
	case *ast.CallStatement:
		defer kind("CALL")()
		w.callProcedure(n)
	case *ast.ExecuteImmediateStatement:
		w.executeImmediate(n, kind)
	default:
		w.unsupported(n, "this statement")
	}
}

// hint refuses a hint that holds more than plain values.
func (w *walker) hint(h *ast.Hint) {
	if h == nil {
		return
	}
	var a account
	a.count(w, h)
	if a != (account{}) {
		w.unsupported(h, "a query or call in a hint")
	}
}

func hasURI(l *ast.OptionsList) bool {
	if l == nil {
		return false
	}
	for _, e := range l.Entries {
		if optionURIs[strings.ToUpper(e.Name.Name)] {
			return true
		}
	}
	return false
}

// target records a DML target; its columns are the caller's to find.
// It returns the name that the target is known by, and whether that is certain.
func (w *walker) target(n ast.Node) (s *scan, name string, certain bool) {
	p, ok := n.(*ast.PathExpression)
	if !ok {
		w.unsupported(n, "a target that is no table's name")
	}
	s = w.tableUse(p, "target", w.write)
	last := p.Names[len(p.Names)-1].Name
	dot := strings.LastIndexAny(last, ".:")
	return s, strings.ToLower(last[dot+1:]), dot < 0
}

// targetScope returns what the expressions of an UPDATE, DELETE or MERGE see of
// its target, which they read as well.
func (w *walker) targetScope(s *scan, alias *ast.Alias, name string, certain bool) *scope {
	again := func(s *scan) *scan {
		r := &scan{Table: s.Table}
		r.AllColumns = false
		return w.read(r)
	}
	var twin *scan
	if s.twin != nil {
		twin = again(s.twin)
	}
	r := again(s)
	r.twin = twin
	b := binding{scan: r, alias: name, weak: !certain}
	if alias != nil {
		b.alias, b.weak = strings.ToLower(w.ident(alias.Identifier)), false
	}
	return &scope{bindings: []binding{b}}
}

func (w *walker) insert(n *ast.InsertStatement, ctes *cte) {
	if n.InsertMode != "" || n.OnConflict != nil || n.Returning != nil {
		w.unsupported(n, "this form of INSERT")
	}
	w.hint(n.Hint)
	s, _, _ := w.target(n.Target)
	if n.Columns == nil {
		s.all()
	} else {
		for _, c := range n.Columns.Identifiers {
			s.column(w, w.ident(c))
		}
	}
	sc := &scope{ctes: ctes}
	if n.Rows != nil {
		w.exprs(n.Rows, sc)
	}
	w.query(n.Query, nil, ctes)
}

// setColumns records what an UPDATE sets, and walks the values.
func (w *walker) setColumns(l *ast.UpdateItemList, s *scan, alias string, sc *scope) {
	if l == nil {
		return
	}
	for _, it := range l.Items {
		if it.SetValue == nil {
			// An UPDATE, INSERT or DELETE inside of an array.
			w.unsupported(it, "DML inside of an array")
		}
		names := pathHead(it.SetValue.Path)
		switch {
		case len(names) > 1 && strings.EqualFold(names[0].Name, alias):
			s.column(w, w.ident(names[1]))
		case len(names) > 0:
			s.column(w, w.ident(names[0]))
		default:
			s.all()
		}
		w.expr(it.SetValue.Value, sc)
	}
}

// pathHead returns the identifiers that a field's path begins with.
func pathHead(n ast.Node) []*ast.Identifier {
	for {
		switch p := n.(type) {
		case *ast.PathExpression:
			return p.Names
		case *ast.DotIdentifier:
			n = p.Expr
		case *ast.ArrayElement:
			n = p.Array
		default:
			return nil
		}
	}
}

func aliasOr(a *ast.Alias, name string) string {
	if a != nil {
		return strings.ToLower(a.Identifier.Name)
	}
	return name
}

func (w *walker) update(n *ast.UpdateStatement) {
	if n.Returning != nil {
		w.unsupported(n, "this form of UPDATE")
	}
	s, name, certain := w.target(n.Target)
	target := w.targetScope(s, n.Alias, name, certain)
	// FROM does not see the target, the expressions see both.
	sc := &scope{}
	if n.From != nil {
		w.from(n.From.TableExpression, sc)
	}
	sc.bindings = append(sc.bindings, target.bindings...)
	w.setColumns(n.UpdateItemList, s, aliasOr(n.Alias, name), sc)
	w.expr(n.Where, sc)
}

func (w *walker) delete(n *ast.DeleteStatement) {
	if n.Returning != nil {
		w.unsupported(n, "this form of DELETE")
	}
	s, name, certain := w.target(n.Target)
	s.all()
	w.expr(n.Where, w.targetScope(s, n.Alias, name, certain))
}

func (w *walker) merge(n *ast.MergeStatement) {
	s, name, certain := w.target(n.Target)
	target := w.targetScope(s, n.Alias, name, certain)
	sc := &scope{}
	w.from(n.Source, sc)
	for _, b := range sc.bindings {
		b.scan.all() // INSERT ROW takes them all
	}
	sc.bindings = append(sc.bindings, target.bindings...)
	w.expr(n.MergeCondition, sc)
	for _, c := range n.WhenClauseList.Clauses {
		w.expr(c.SearchCondition, sc)
		a := c.Action
		if a == nil {
			continue
		}
		w.setColumns(a.UpdateItemList, s, aliasOr(n.Alias, name), sc)
		switch {
		case a.InsertColumnList != nil:
			for _, col := range a.InsertColumnList.Identifiers {
				s.column(w, w.ident(col))
			}
		case a.InsertRow != nil, a.ActionType == "DELETE":
			s.all()
		}
		if a.InsertRow != nil {
			w.exprs(a.InsertRow, sc)
		}
		if a.UpdateItemList == nil {
			s.all()
		}
	}
}

// create records a created table or other object. A temporary one lives beside the datasets.
func (w *walker) create(p *ast.PathExpression, object, scope string, replace bool) *scan {
	names := w.names(p)
	if temp(scope) || isSession(names) {
		parts := strings.Split(strings.Join(names, "."), ".")
		name := parts[len(parts)-1]
		if len(parts) > 2 || len(parts) == 2 && !strings.EqualFold(parts[0], "_SESSION") {
			w.fail(p.Pos(), "invalid_name", "a temporary object has no dataset")
		}
		w.env.tables[name], w.created[name] = true, true
		s := w.table(Name{Project: w.env.project, Dataset: "_SESSION", Table: name}, object, created(replace), p.Pos())
		s.all()
		return w.write(s)
	}
	s := w.table(w.resolveName(names, p.Pos()), object, created(replace), p.Pos())
	s.all()
	return w.write(s)
}

func (w *walker) createTable(n *ast.CreateTableStatement, mark note) {
	// What it is made of exists before it does.
	if n.LikeName != nil {
		w.tableUse(n.LikeName, "like", w.read).all()
	}
	if n.Clone != nil {
		as := "clone"
		if mark.kind != "" {
			as = mark.kind
		}
		w.cloneSource(n.Clone, as)
	}
	w.query(n.Query, nil, nil)
	w.optional(n.TableElementList)
	w.optional(n.PartitionBy)
	w.optional(n.ClusterBy)
	if n.SpannerOptions != nil || n.Ttl != nil {
		w.unsupported(n, "this form of CREATE TABLE")
	}
	w.create(n.Name, "table", n.Scope, n.IsOrReplace)
	w.options(n.Options, "write")
	w.connection(n.WithConnection, "write")
}

// elements walks column definitions: defaults may call functions, and foreign keys name tables.
func (w *walker) elements(n ast.Node) {
	if r, ok := n.(*ast.ForeignKeyReference); ok {
		w.tableUse(r.Reference, "other", w.read).all()
		return
	}
	switch n := n.(type) {
	case *ast.SimpleColumnSchema:
		w.expr(n.DefaultExpression, nil)
		if n.Options != nil {
			w.options(n.Options, "read")
		}
		if n.Attributes != nil {
			w.elements(n.Attributes)
		}
		return
	case *ast.FunctionCall, *ast.Query, *ast.PathExpression, *ast.ExpressionSubquery:
		w.expr(n, nil)
		return
	}
	defer w.descend(n.Pos())()
	for _, c := range n.Children() {
		w.elements(c)
	}
}

func (w *walker) cloneSource(c *ast.CloneDataSource, as string) {
	s := w.tableUse(c.Path, as, w.read)
	s.all()
	if c.ForSystemTime != nil {
		s.past()
	}
	if c.ForSystemTime != nil {
		w.expr(c.ForSystemTime.Expr, nil)
	}
	if c.Where != nil {
		w.expr(c.Where.Expr, nil)
	}
}

func (w *walker) createView(n *ast.CreateViewStatement, kind func(string) func()) {
	k := "CREATE_VIEW"
	if n.ViewKind == "MATERIALIZED" {
		k = "CREATE_MATERIALIZED_VIEW"
	} else if n.ViewKind != "" {
		w.unsupported(n, "this kind of view")
	}
	defer kind(k)()
	if n.ReplicaSource != nil {
		w.tableUse(n.ReplicaSource, "clone", w.read).all()
	}
	var ctes *cte
	if n.Recursive {
		w.unsupported(n, "CREATE RECURSIVE VIEW")
	}
	w.defined(func() { w.query(n.Query, nil, ctes) })
	w.create(n.Name, "table", n.Scope, n.IsOrReplace)
	w.optional(n.PartitionBy)
	w.optional(n.ClusterBy)
	w.options(n.Options, "read")
}

// defined walks a body that is stored: it sees no temporary object of the text around it.
func (w *walker) defined(walk func()) {
	outer := w.env
	w.env = outer.inner()
	w.env.outer = nil
	w.defines++
	w.depth++
	walk()
	w.depth--
	w.defines--
	w.env = outer
}

// body is defined with a routine's parameters: their names, and of those that
// are tables the names that stand before every table's.
func (w *walker) body(params *ast.FunctionParameters, walk func(*cte)) {
	var ctes *cte
	vars := w.vars
	w.vars = map[string]bool{}
	if params != nil {
		for _, p := range params.Parameters {
			if p.Name == nil {
				continue
			}
			name := w.ident(p.Name)
			switch t := p.Type.(type) {
			case *ast.TVFSchema:
				ctes = &cte{name: strings.ToLower(name), next: ctes}
			case *ast.TemplatedParameterType:
				if strings.Contains(strings.ToUpper(t.Kind), "TABLE") {
					ctes = &cte{name: strings.ToLower(name), next: ctes}
				}
			}
			w.vars[strings.ToLower(name)] = true
			w.expr(p.DefaultValue, nil)
		}
	}
	w.defined(func() { walk(ctes) })
	w.vars = vars
}

// defineRoutine records a created routine.
func (w *walker) defineRoutine(p *ast.PathExpression, scope string, replace bool, f Function) {
	f.Defined = true
	f.Line, f.Column = w.lineColumn(p.Pos())
	names := w.names(p)
	if temp(scope) {
		if len(names) != 1 || strings.ContainsAny(names[0], ".:") {
			w.fail(p.Pos(), "invalid_name", "a temporary routine has no dataset")
		}
		f.Name = names[0]
		if f.Kind != "remote" {
			f.Kind = "temporary"
		}
		w.env.routines[names[0]], w.created[names[0]] = true, true
		w.addFunction(f)
		return
	}
	n := w.resolveName(names, p.Pos())
	f.Name = n.String()
	w.addFunction(f)
	s := w.table(n, "routine", created(replace), p.Pos())
	s.all()
	w.write(s)
}

func (w *walker) createFunction(n *ast.CreateFunctionStatement, kind func(string) func()) {
	k, fk := "CREATE_FUNCTION", "udf"
	if n.IsAggregate {
		k, fk = "CREATE_AGGREGATE_FUNCTION", "aggregate_udf"
	}
	defer kind(k)()
	lang := "sql"
	access := "read"
	switch {
	case n.IsRemote:
		lang, fk, access = "remote", "remote", "write"
	case n.Language != nil:
		if lang = strings.ToLower(w.ident(n.Language)); lang != "sql" {
			if lang == "javascript" {
				lang = "js"
			}
			access = "write"
			w.opaque["script_body"] = true
		}
	}
	w.options(n.Options, access)
	w.connection(n.WithConnection, "write")
	if n.IsRemote && !hasURI(n.Options) {
		w.external("uri", "", "write")
	}
	// The body may call what was there before, and (in vain) itself.
	w.body(n.Declaration.Parameters, func(ctes *cte) {
		switch b := n.Body.(type) {
		case nil:
		case *ast.SqlFunctionBody:
			w.expr(b.Expression, &scope{ctes: ctes})
		case *ast.StringLiteral:
			if lang == "sql" {
				w.unsupported(n, "a function whose body is a text")
			}
		default:
			w.expr(n.Body, &scope{ctes: ctes})
		}
	})
	w.defineRoutine(n.Declaration.Name, n.Scope, n.IsOrReplace, Function{Kind: fk, Language: lang})
}

func (w *walker) createProcedure(n *ast.CreateProcedureStatement, kind func(string) func()) {
	end := kind("CREATE_PROCEDURE")
	lang := "sql"
	if n.Language != nil {
		lang = "spark"
		w.opaque["script_body"] = true
	}
	w.defineRoutine(n.Name, n.Scope, n.IsOrReplace, Function{Kind: "procedure", Language: lang})
	w.options(n.Options, "write")
	w.connection(n.WithConnection, "write")
	end()
	if n.Body != nil {
		w.body(n.Parameters, func(*cte) { w.list(n.Body.Statements.Statements) })
	}
}

func (w *walker) createModel(n *ast.CreateModelStatement, kind func(string) func()) {
	defer kind("CREATE_MODEL")()
	w.query(n.Query, nil, nil)
	if n.AliasedQueries != nil {
		for _, q := range n.AliasedQueries.Queries {
			w.query(q.Query, nil, nil)
		}
	}
	if n.Transform != nil {
		w.exprs(n.Transform, nil)
	}
	w.object(n.Name, "model", created(n.IsOrReplace), w.write)
	access := "read"
	if n.IsRemote {
		access = "write"
	}
	w.options(n.Options, access)
	w.connection(n.WithConnection, access)
}

// indexed records a table whose index changes: an index holds its data.
func (w *walker) indexed(p *ast.PathExpression) {
	w.tableUse(p, "index", w.read).all()
	w.tableUse(p, "index", w.write).all()
}

func (w *walker) alter(n *ast.AlterStatement, kind func(string) func()) {
	if n.EntityType != nil {
		t := strings.ToUpper(n.EntityType.Name)
		defer kind("ALTER_" + t)()
		if n.Path == nil {
			s := w.table(Name{Project: w.env.project}, t, "alter", n.Pos())
			s.all()
			w.write(s)
		} else {
			w.entity(t, n.Path, "alter")
		}
		w.alterActions(n)
		return
	}
	if n.Path == nil {
		w.unsupported(n, "this ALTER")
	}
	switch n.NodeName {
	case "AlterTableStatement":
		defer kind("ALTER_TABLE")()
		w.tableUse(n.Path, "alter", w.write).all()
	case "AlterViewStatement":
		defer kind("ALTER_VIEW")()
		w.tableUse(n.Path, "alter", w.write).all()
	case "AlterMaterializedViewStatement":
		defer kind("ALTER_MATERIALIZED_VIEW")()
		w.tableUse(n.Path, "alter", w.write).all()
	case "AlterModelStatement":
		defer kind("ALTER_MODEL")()
		w.object(n.Path, "model", "alter", w.write)
	case "AlterSchemaStatement", "AlterExternalSchemaStatement":
		defer kind("ALTER_SCHEMA")()
		w.dataset(n.Path, "alter")
	default:
		w.unsupported(n, "this ALTER")
	}
	w.alterActions(n)
}

func (w *walker) alterActions(n *ast.AlterStatement) {
	if n.Actions == nil {
		return
	}
	for _, a := range n.Actions.Actions {
		switch a := a.(type) {
		case *ast.RenameToClause:
			// The new name stays in the table's dataset; BigQuery takes no other.
			names := w.names(a.NewName)
			if len(names) == 1 && !strings.ContainsAny(names[0], ".:") {
				old := w.cur.writes[len(w.cur.writes)-1]
				if old.Dataset == "_SESSION" {
					w.env.tables[names[0]], w.created[names[0]] = false, true
					continue
				}
				s := w.table(Name{Project: old.Project, Dataset: old.Dataset, Table: names[0]}, "table", "create", a.Pos())
				s.all()
				w.write(s)
				continue
			}
			w.create(a.NewName, "table", "", false)
		case *ast.SetOptionsAction:
			w.options(a.Options, "read")
		default:
			w.elements(a)
		}
	}
}

func (w *walker) drop(n *ast.DropStatement, kind func(string) func()) {
	switch n.NodeName {
	case "DropMaterializedViewStatement":
		defer kind("DROP_MATERIALIZED_VIEW")()
		w.tableUse(n.Path, "drop", w.write).all()
		return
	case "DropSnapshotTableStatement":
		defer kind("DROP_SNAPSHOT_TABLE")()
		w.tableUse(n.Path, "drop", w.write).all()
		return
	case "DropFunctionStatement", "DropTableFunctionStatement":
		k := "DROP_FUNCTION"
		if n.NodeName == "DropTableFunctionStatement" {
			k = "DROP_TABLE_FUNCTION"
		}
		defer kind(k)()
		w.dropRoutine(n.Path)
		return
	}
	k := "DROP_" + strings.ReplaceAll(n.ObjectKind, " ", "_")
	switch n.ObjectKind {
	case "TABLE", "VIEW", "EXTERNAL TABLE":
		defer kind(k)()
		w.tableUse(n.Path, "drop", w.write).all()
	case "SCHEMA", "EXTERNAL SCHEMA":
		defer kind(k)()
		w.dataset(n.Path, "drop")
	case "MODEL":
		defer kind(k)()
		w.object(n.Path, "model", "drop", w.write)
	case "PROCEDURE":
		defer kind(k)()
		w.dropRoutine(n.Path)
	case "CONNECTION":
		defer kind(k)()
		w.project(n.Path, "CONNECTION", "drop")
	default:
		w.unsupported(n, "this DROP")
	}
}

func (w *walker) dropRoutine(p *ast.PathExpression) {
	names := w.names(p)
	if len(names) == 1 {
		if _, ok := w.env.routine(names[0]); ok && w.env.dataset == "" && !w.env.unknown {
			return // a temporary one, or nothing
		}
	}
	w.object(p, "routine", "drop", w.write)
}

// grant records what GRANT and REVOKE give away.
func (w *walker) grant(types []*ast.Identifier, p *ast.PathExpression) {
	t := ""
	for _, id := range types {
		t += strings.ToUpper(id.Name) + " "
	}
	switch strings.TrimSpace(t) {
	case "SCHEMA":
		w.dataset(p, "policy")
	case "TABLE", "VIEW", "EXTERNAL TABLE", "MATERIALIZED VIEW":
		w.tableUse(p, "policy", w.write).all()
	case "PROJECT":
		w.project(p, "PROJECT", "policy")
	case "CONNECTION":
		w.project(p, "CONNECTION", "policy")
	default:
		w.unsupported(p, "GRANT on this kind of thing")
	}
}

// entityTypes are what BigQuery creates, alters and drops of a project's.
var entityTypes = []string{"CAPACITY", "RESERVATION", "ASSIGNMENT", "PROJECT", "ORGANIZATION", "BI_CAPACITY", "DATA_POLICY"}

func (w *walker) entity(t string, p *ast.PathExpression, as string) { w.project(p, t, as) }

func (w *walker) load(l *loadData) {
	if l == nil {
		return
	}
	as := "load"
	names := l.target
	// The target's byte is the caller's already.
	line, column := w.place(l.targetAt)
	record := func(n Name) {
		s := w.table(n, "table", as, 0)
		s.Line, s.Column = line, column
		s.all()
		w.write(s)
	}
	switch is, maybe := w.temporary(names); {
	case l.temp:
		if len(names) != 1 {
			w.fail(0, "invalid_name", "a temporary table has no dataset")
		}
		w.env.tables[names[0]], w.created[names[0]] = true, true
		record(Name{Project: w.env.project, Dataset: "_SESSION", Table: names[0]})
	case is:
		record(Name{Project: w.env.project, Dataset: "_SESSION", Table: names[len(names)-1]})
	case maybe && w.env.dataset == "" && !w.env.unknown:
		record(Name{Project: w.env.project, Dataset: "_SESSION", Table: names[0]})
	default:
		record(w.resolveName(names, 0))
	}
	for _, u := range l.uris {
		w.external("uri", u, "read")
	}
	if l.unknown {
		w.external("uri", "", "read")
	}
	if l.connection != "" {
		w.external("connection", l.connection, "read")
	}
}

// setSystem takes a SET @@name into account
// (https://cloud.google.com/bigquery/docs/reference/system-variables).
func (w *walker) setSystem(n *ast.SystemVariableAssignment) {
	name := strings.ToLower(strings.Join(w.names(n.SystemVariable.Path), "."))
	v, ok := literal(n.Value)
	switch name {
	case "time_zone":
	case "query_label":
		w.facts.QueryLabel = true
	case "dataset_id":
		w.env.dataset, w.env.datasetProject = "", w.env.project
		if !ok || v == "" || w.depth > 0 {
			w.env.unknown = true
			return
		}
		d, err := canonical(v, w.env.project, "", true)
		if err != nil {
			w.nameError(err, n.Pos())
		}
		w.env.dataset, w.env.datasetProject = d.Dataset, d.Project
	case "dataset_project_id":
		if !ok || w.depth > 0 {
			w.env.unknown = true
			return
		}
		p, err := canonicalProject(v)
		if err != nil {
			w.nameError(err, n.Pos())
		}
		w.env.project, w.env.datasetProject = p, p
	default:
		w.opaque["set_system"] = true
	}
}

func (w *walker) callProcedure(n *ast.CallStatement) {
	names := w.names(n.Procedure)
	line, column := w.lineColumn(n.Procedure.Pos())
	f := Function{Kind: "procedure", Line: line, Column: column}
	joined := strings.ToUpper(strings.Join(names, "."))
	if strings.HasPrefix(joined, "BQ.") {
		f.Name = joined // BQ.ABORT_SESSION, BQ.REFRESH_MATERIALIZED_VIEW, BQ.JOBS.CANCEL
	} else {
		f.Name = w.resolveName(names, n.Procedure.Pos()).String()
	}
	w.addFunction(f)
	w.opaque["call"] = true
	for _, a := range n.Args {
		w.argument(a.Expr, nil)
	}
}

// maxNested is how many EXECUTE IMMEDIATE are read inside of one another.
const maxNested = 3

func (w *walker) executeImmediate(n *ast.ExecuteImmediateStatement, kind func(string) func()) {
	end := kind("EXECUTE_IMMEDIATE")
	w.opaque["dynamic_sql"] = true
	w.expr(n.Sql, nil)
	if n.Using != nil {
		w.exprs(n.Using, nil)
	}
	end()
	text, ok := literal(n.Sql)
	if !ok {
		return
	}
	if w.nested >= maxNested {
		w.fail(n.Sql.Pos(), "too_deep", "EXECUTE IMMEDIATE stands too deep inside of one another")
	}
	line, column := w.lineColumn(n.Sql.Pos())
	inner := newWalker(text, w.check)
	inner.env, inner.depth, inner.defines, inner.nested, inner.vars = w.env, w.depth+1, w.defines, w.nested+1, w.vars
	inner.dropped, inner.rebound, inner.unsure = w.dropped, w.rebound, true
	if p := inner.run(MaxLimit, bodyScript); p != nil {
		p.Line, p.Column, p.Fallback = line, column, false
		p.Message = "in the text of EXECUTE IMMEDIATE: " + p.Message
		panic(stop{p})
	}
	for _, s := range inner.stmts {
		s.Line, s.Column = line, column
		for _, t := range s.reads {
			t.Line, t.Column = line, column
		}
		for _, t := range s.writes {
			t.Line, t.Column = line, column
		}
		w.stmts = append(w.stmts, s)
	}
	for _, f := range inner.facts.Functions {
		f.Line, f.Column = line, column
		w.addFunction(f)
	}
	for _, e := range inner.facts.Externals {
		w.external(e.Kind, e.Value, e.Access)
	}
	for o := range inner.opaque {
		w.opaque[o] = true
	}
	for n := range inner.created {
		w.created[n] = true
	}
	w.facts.QueryLabel = w.facts.QueryLabel || inner.facts.QueryLabel
}

func newWalker(text string, check func() error) *walker {
	return &walker{text: text, facts: &Facts{Source: SourceParser}, vars: map[string]bool{}, opaque: map[string]bool{},
		dropped: map[string]bool{}, created: map[string]bool{}, called: map[Function]int{}, reached: map[External]bool{}, check: check}
}
