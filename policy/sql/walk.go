package sql

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/sqlc-dev/zetajones/ast"
)

// env is what names resolve by at one place of a script.
type env struct {
	project string // of names without one; SET @@dataset_project_id changes it
	// The default dataset; unknown after a SET that is not certain to have run or has no literal.
	datasetProject, dataset string
	unknown                 bool
	// Temporary objects by exact name: whether BigQuery folds it is not documented, and a name that misses is
	// read as the default dataset's. A certain one exists wherever the script comes here; one that is not may be missing,
	// and its name is then the default dataset's.
	tables, routines map[string]bool
	outer            *env // of the block around this one, with its temporary objects
}

// inner returns the env of a block in e.
func (e *env) inner() *env {
	c := *e
	c.tables, c.routines, c.outer = map[string]bool{}, map[string]bool{}, e
	return &c
}

// table says whether a temporary table of that name exists for certain, and whether one may at all.
func (e *env) table(name string) (certain, ok bool) {
	for ; e != nil; e = e.outer {
		if certain, ok := e.tables[name]; ok {
			return certain, true
		}
	}
	return false, false
}

// routine is table for routines.
func (e *env) routine(name string) (certain, ok bool) {
	for ; e != nil; e = e.outer {
		if certain, ok := e.routines[name]; ok {
			return certain, true
		}
	}
	return false, false
}

// leave takes what a block did into account after it: what it created is there
// only where it ran.
func (e *env) leave(block *env) {
	for k := range block.tables {
		if _, ok := e.table(k); !ok {
			e.tables[k] = false
		}
	}
	for k := range block.routines {
		if _, ok := e.routine(k); !ok {
			e.routines[k] = false
		}
	}
	if block.unknown || block.dataset != e.dataset || block.datasetProject != e.datasetProject || block.project != e.project {
		e.unknown = true
	}
}

// scan is one use of a table, whose columns are still being found.
type scan struct {
	Table
	cols map[string]bool
	twin *scan // what the same name may stand for as well
}

func (s *scan) column(w *walker, name string) {
	if s == nil {
		return
	}
	s.twin.column(w, name)
	if !s.AllColumns {
		if w.columns++; w.columns > maxColumns {
			s.all()
			return
		}
		if s.cols == nil {
			s.cols = map[string]bool{}
		}
		s.cols[strings.ToLower(name)] = true
	}
}

func (s *scan) all() {
	if s != nil {
		s.AllColumns, s.cols = true, nil
		s.twin.all()
	}
}

// past marks a use of the table as it was.
func (s *scan) past() {
	if s != nil {
		s.TimeTravel = true
		s.twin.past()
	}
}

// statement is a Statement that is being found.
type statement struct {
	Statement
	reads, writes []*scan
}

// walker turns the parser's tree into facts. It is for one text.
type walker struct {
	text    string // the caller's
	r       *rewritten
	facts   *Facts
	stmts   []*statement
	cur     *statement
	env     *env
	depth   int             // of blocks
	defines int             // bodies that are defined and not run
	vars    map[string]bool // script variables and parameters of routines
	level   int             // of the tree
	dropped map[string]bool // names that the text drops or renames somewhere, lower case
	rebound bool            // the text may change the default dataset: inside of blocks it is then unknown
	unsure  bool            // what the text runs unseen may drop temporary objects
	created map[string]bool // temporary objects
	steps   int
	columns int
	seen    account // what was walked, against what the tree holds
	places  *places
	called  map[Function]int // where a function stands in facts.Functions, by what makes it one
	reached map[External]bool
	// The table arguments of the routine whose body the text is.
	arguments *cte
	opaque    map[string]bool
	nested    int // EXECUTE IMMEDIATE of a literal
	check     func() error
}

// stop carries a Problem out of the walk.
type stop struct{ p *Problem }

func (w *walker) fail(at int, code, format string, args ...any) {
	p := w.problem(at, code, format, args...)
	panic(stop{p})
}

func (w *walker) problem(at int, code, format string, args ...any) *Problem {
	return problemAt(w.text, w.r.original(at), code, fmt.Sprintf(format, args...))
}

// unsupported is a statement whose facts a dry run may tell.
func (w *walker) unsupported(n ast.Node, what string) {
	p := w.problem(n.Pos(), "unsupported", "%s is not understood here", what)
	p.Fallback = true
	panic(stop{p})
}

func (w *walker) lineColumn(at int) (int, int) { return w.place(w.r.original(at)) }

// place returns the line and column of a byte of the caller's text.
func (w *walker) place(at int) (int, int) {
	if w.places == nil {
		w.places = newPlaces(w.text)
	}
	return w.places.at(at)
}

// step counts the work and stops it at the time limit.
func (w *walker) step(at int) {
	if w.steps++; w.steps&1023 == 0 && w.check() != nil {
		w.fail(at, "timeout", "reading the text took too long")
	}
}

func (w *walker) begin(kind string, at int) func() {
	line, column := w.lineColumn(at)
	s := &statement{Statement: Statement{Kind: kind, Line: line, Column: column, Depth: w.depth, Definition: w.defines > 0}}
	w.stmts = append(w.stmts, s)
	before := w.cur
	w.cur = s
	return func() { w.cur = before }
}

func (w *walker) descend(at int) func() {
	if w.level++; w.level > maxWalk {
		w.fail(at, "too_deep", "the text's expressions stand too deep inside of one another")
	}
	w.step(at)
	return func() { w.level-- }
}

// names returns the values of a path's identifiers.
func (w *walker) names(p *ast.PathExpression) []string {
	out := make([]string, len(p.Names))
	for i, id := range p.Names {
		out[i] = w.ident(id)
	}
	return out
}

// ident returns an identifier's value. The parser decodes only some escape
// sequences, and no name needs one.
func (w *walker) ident(id *ast.Identifier) string {
	if strings.Contains(id.Name, `\`) || w.escaped(id) {
		w.fail(id.Pos(), "invalid_name", "a name in backticks holds an escape sequence")
	}
	return id.Name
}

func (w *walker) escaped(id *ast.Identifier) bool {
	if id.Pos() < 0 || id.End() > len(w.r.text) || id.End()-id.Pos() == len(id.Name) {
		return false
	}
	return strings.Contains(w.r.text[id.Pos():id.End()], `\`)
}

// resolveName resolves a path to a table's name by the defaults.
func (w *walker) resolveName(names []string, at int) Name {
	dp := w.env.datasetProject
	if dp == "" {
		dp = w.env.project
	}
	project, dataset := w.env.project, w.env.dataset
	single := len(names) == 1 && !strings.ContainsAny(names[0], ".:")
	infoOnly := len(names) > 0 && strings.EqualFold(names[0], "INFORMATION_SCHEMA")
	if single || infoOnly {
		project = dp
	}
	if w.env.unknown {
		if single || infoOnly {
			w.fail(at, "ambiguous_name", "the default dataset is not certain here, as SET @@dataset_id changes it: write the dataset before the name")
		}
		if !fullyQualified(names) {
			w.fail(at, "ambiguous_name", "the default project is not certain here, as SET @@dataset_project_id changes it: write the project before the name")
		}
	}
	n, err := resolve(names, project, dataset, false)
	if err != nil {
		w.nameError(err, at)
	}
	return n
}

// fullyQualified reports whether a path has a project for certain.
func fullyQualified(names []string) bool {
	joined := strings.Join(names, ".")
	parts := strings.Count(joined, ".") + 1
	if strings.Contains(strings.ToUpper(joined), "INFORMATION_SCHEMA") {
		return parts >= 4
	}
	return parts >= 3
}

func (w *walker) nameError(err error, at int) {
	if e, ok := err.(*NameError); ok {
		w.fail(at, e.Code, "%s", e.Message)
	}
	w.fail(at, "invalid_name", "%v", err)
}

// table makes a scan of a resolved name.
func (w *walker) table(n Name, object, as string, at int) *scan {
	line, column := w.lineColumn(at)
	if w.defines > 0 && as != "create" && as != "replace" {
		as = "definition"
	}
	t := Table{Object: object, Project: n.Project, Dataset: n.Dataset, Table: n.Table, InformationSchema: n.InformationSchema, Region: n.Region,
		As: as, TimeTravel: n.TimeTravel, Line: line, Column: column}
	return &scan{Table: t}
}

func (w *walker) read(s *scan) *scan {
	w.cur.reads = append(w.cur.reads, s)
	return s
}

func (w *walker) write(s *scan) *scan {
	w.cur.writes = append(w.cur.writes, s)
	return s
}

// temporary says how a single name stands to the temporary tables: it is one for
// certain, it may be one, or it is none.
func (w *walker) temporary(names []string) (is, maybe bool) {
	var name string
	switch {
	case len(names) == 1 && !strings.ContainsAny(names[0], ".:"):
		name = names[0]
	case isSession(names):
		return true, false
	default:
		return false, false
	}
	certain, ok := w.env.table(name)
	if !ok {
		return false, false
	}
	if certain && !w.maybeDropped(name) {
		return true, false
	}
	return false, true
}

// maybeDropped reports whether a temporary object may be gone where it is used:
// wherever the text drops its name, as loops run backwards.
func (w *walker) maybeDropped(name string) bool { return w.unsure || w.dropped[strings.ToLower(name)] }

// isSession reports whether a path is _SESSION.name: a temporary table or nothing.
func isSession(names []string) bool {
	parts := strings.Split(strings.Join(names, "."), ".")
	return len(parts) == 2 && strings.EqualFold(parts[0], "_SESSION")
}

// tableUse resolves a path as a table that a statement uses by name and records
// it by put; temporary tables are recorded too, under the dataset _SESSION.
func (w *walker) tableUse(p *ast.PathExpression, as string, put func(*scan) *scan) *scan {
	names := w.names(p)
	is, maybe := w.temporary(names)
	if is || maybe {
		parts := strings.Split(strings.Join(names, "."), ".")
		s := w.table(Name{Project: w.env.project, Dataset: "_SESSION", Table: parts[len(parts)-1]}, "table", as, p.Pos())
		put(s)
		if is {
			return s
		}
		if w.env.dataset == "" && !w.env.unknown {
			return s // no default dataset could hold it
		}
		other := put(w.table(w.resolveName(names, p.Pos()), "table", as, p.Pos()))
		other.twin = s
		return other
	}
	return put(w.table(w.resolveName(names, p.Pos()), "table", as, p.Pos()))
}

// object records another kind of thing with a dataset's name before it.
func (w *walker) object(p *ast.PathExpression, object, as string, put func(*scan) *scan) *scan {
	s := w.table(w.resolveName(w.names(p), p.Pos()), object, as, p.Pos())
	s.all()
	return put(s)
}

func (w *walker) dataset(p *ast.PathExpression, as string) {
	names := w.names(p)
	if w.env.unknown && strings.Count(strings.Join(names, "."), ".") == 0 {
		w.fail(p.Pos(), "ambiguous_name", "the default project is not certain here, as SET @@dataset_project_id changes it: write the project before the name")
	}
	n, err := resolve(names, w.env.project, "", true)
	if err != nil {
		w.nameError(err, p.Pos())
	}
	s := w.table(n, "dataset", as, p.Pos())
	s.all()
	w.write(s)
}

// project records what belongs to a project: reservations, capacity, options.
func (w *walker) project(p *ast.PathExpression, object, as string) {
	joined := strings.Join(w.names(p), ".")
	parts := strings.Split(joined, ".")
	n := Name{Project: w.env.project}
	if len(parts) > 1 || object == "PROJECT" {
		pr, err := canonicalProject(parts[0])
		if err != nil && object != "ORGANIZATION" {
			w.nameError(err, p.Pos())
		}
		if err == nil {
			n.Project = pr
		}
	}
	if len(parts) > 1 {
		n.Table = parts[len(parts)-1]
		if strings.HasPrefix(strings.ToLower(parts[1]), "region-") {
			n.Region = strings.ToLower(parts[1])
		}
	}
	s := w.table(n, object, as, p.Pos())
	s.all()
	w.write(s)
}

func (w *walker) external(kind, value, access string) {
	if value == "" {
		w.opaque["unknown_value"] = true
	}
	e := External{Kind: kind, Value: value, Access: access}
	if w.reached[e] {
		return
	}
	w.reached[e] = true
	w.facts.Externals = append(w.facts.Externals, e)
}

func (w *walker) connection(c *ast.WithConnectionClause, access string) {
	if c != nil && c.Connection != nil {
		w.connectionPath(c.Connection.Path, access)
	}
}

func (w *walker) connectionPath(n ast.Node, access string) {
	switch p := n.(type) {
	case *ast.PathExpression:
		w.external("connection", strings.Join(w.names(p), "."), access)
	case *ast.DefaultLiteral:
		w.external("connection", "DEFAULT", access)
	case *ast.StringLiteral:
		v, _ := literal(p)
		w.external("connection", v, access)
	default:
		w.external("connection", "", access)
	}
}

// optionURIs are options whose value is a place outside of BigQuery's tables.
var optionURIs = words(`URI URIS LIBRARY LIBRARIES ENDPOINT MODEL_PATH STORAGE_URI STORAGE_URIS HIVE_PARTITION_URI_PREFIX EXTERNAL_SOURCE LOCATION_URI
	JAR_URIS PY_FILE_URIS FILE_URIS ARCHIVE_URIS MAIN_FILE_URI CONTAINER_IMAGE CONTAINER_URI REFERENCE_FILE_SCHEMA_URI JSON_EXTENSION_URI DESTINATION_URI`)

// textOptions hold words for people only.
var textOptions = words(`DESCRIPTION FRIENDLY_NAME LABELS TAGS`)

func (w *walker) options(l *ast.OptionsList, access string) {
	if l == nil {
		return
	}
	for _, e := range l.Entries {
		name := strings.ToUpper(w.ident(e.Name))
		switch {
		case optionURIs[name]:
			vs, ok := literals(e.Value)
			if !ok {
				w.external("uri", "", access)
			}
			for _, v := range vs {
				w.external("uri", v, access)
			}
		case strings.Contains(name, "CONNECTION"):
			w.connectionPath(e.Value, access)
		case !textOptions[name]:
			w.optionLiterals(e.Value, access)
		}
		w.expr(e.Value, nil)
	}
}

func (w *walker) optionLiterals(n ast.Node, access string) {
	if n == nil {
		return
	}
	if s, ok := n.(*ast.StringLiteral); ok {
		if v, _ := literal(s); strings.Contains(v, "://") {
			w.external("uri", v, access)
		}
		return
	}
	defer w.descend(n.Pos())()
	for _, c := range n.Children() {
		w.optionLiterals(c, access)
	}
}

// account counts the nodes of a tree that bear facts. A walk that leaves one out,
// or a tree that holds one in a place that the walk does not know, shows in it.
type account struct{ queries, tables, tvfs, calls, clauses, models int }

// count counts all of a tree.
func (a *account) count(w *walker, n ast.Node) {
	switch n.(type) {
	case *ast.Identifier, *ast.PathExpression, *ast.Alias, *ast.StringLiteral, *ast.IntLiteral:
		return
	case *ast.Query:
		a.queries++
	case *ast.TablePathExpression:
		a.tables++
	case *ast.TVF:
		a.tvfs++
	case *ast.FunctionCall:
		a.calls++
	case *ast.TableClause:
		a.clauses++
	case *ast.ModelClause:
		a.models++
	}
	w.step(n.Pos())
	for _, c := range n.Children() {
		a.count(w, c)
	}
}

// optional walks a part that may be a nil pointer.
func (w *walker) optional(n ast.Node) {
	if v := reflect.ValueOf(n); n == nil || v.Kind() == reflect.Pointer && v.IsNil() {
		return
	}
	w.elements(n)
}

// finish builds the facts of what was walked.
func (w *walker) finish() {
	f := w.facts
	var reads, writes []*scan
	for _, s := range w.stmts {
		s.Reads, s.Writes = tables(s.reads), tables(s.writes)
		reads, writes = append(reads, s.reads...), append(writes, s.writes...)
		f.Statements = append(f.Statements, s.Statement)
	}
	f.Reads, f.Writes = tables(reads), tables(writes)
	for o := range w.opaque {
		f.Opaque = append(f.Opaque, o)
	}
	sort.Strings(f.Opaque)
	for t := range w.created {
		f.Temporary = append(f.Temporary, t)
	}
	sort.Strings(f.Temporary)
}

// tables merges the uses of the same table in the same way.
func tables(scans []*scan) []Table {
	type key struct {
		object, project, dataset, table, view, region, as string
		timeTravel                                        bool
	}
	var out []Table
	var cols []map[string]bool
	seen := make(map[key]int, len(scans))
	for _, s := range scans {
		k := key{s.Object, s.Project, s.Dataset, s.Table.Table, s.InformationSchema, s.Region, s.As, s.TimeTravel}
		i, ok := seen[k]
		if !ok {
			i = len(out)
			seen[k] = i
			out = append(out, s.Table)
			cols = append(cols, map[string]bool{})
		}
		out[i].AllColumns = out[i].AllColumns || s.AllColumns
		for c := range s.cols {
			cols[i][c] = true
		}
	}
	for i := range out {
		out[i].Columns = nil
		if out[i].AllColumns {
			continue
		}
		out[i].Columns = make([]string, 0, len(cols[i]))
		for c := range cols[i] {
			out[i].Columns = append(out[i].Columns, c)
		}
		sort.Strings(out[i].Columns)
	}
	return out
}
