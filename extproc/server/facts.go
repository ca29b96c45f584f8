package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// Analyzer reads SQL: [sql.Analyzer]. Its answer is never nil, and shared with
// whoever asks for the same text: it is not changed. What it does not
// understand, or not before ctx ends, is a problem in the answer.
type Analyzer interface {
	AnalyzeBody(ctx context.Context, b sql.Body, text string, o sql.Options) *sql.Facts
}

// how an input's or a record's table came to be known, beside the sources of
// package sql.
const (
	fromRoute  = "route"
	fromBody   = "body"
	fromJob    = "job"
	fromUpload = "upload"
)

// asView is the use of a table that a dry run saw and the text does not name:
// a view or a routine reaches it.
const asView = "view"

// uses are the tables and functions of a call as far as they are known.
type uses struct {
	facts         *sql.Facts // nil where there is no SQL
	reads, writes []policy.Table
	incomplete    []string
	dry           *policy.DryRun // nil while nobody asked
	routines      []string       // that the dry run saw
	refusedText   bool           // the dry run took the place of facts
}

// understand finds out what the call uses: its SQL, its body and its route. It
// refuses what it does not understand, but for a text that is sound and only
// beyond the parser: there BigQuery's dry run can stand in.
func (g *Gate) understand(ctx context.Context, p *plan) *refusal {
	r := p.doors()
	p.tellCall()
	if r != nil {
		return r
	}
	if p.facts.SQL == "" {
		return nil
	}
	if r := g.analyse(ctx, p); r != nil {
		return r
	}
	problem := p.uses.facts.Problem
	switch {
	case problem == nil:
		return nil
	case problem.Code == "legacy" || p.facts.LegacyPrefix:
		return nil // the policy says why not, and else the rewriting does
	case problem.Fallback && p.queries():
		return nil // the policy asks for a dry run if it would allow what the parser cannot read
	}
	return notUnderstood(problem)
}

// queries reports whether the call asks for a query job.
func (p *plan) queries() bool {
	return p.facts.JobType == bigquery.JobQuery
}

// analyse reads the SQL.
func (g *Gate) analyse(ctx context.Context, p *plan) *refusal {
	if g.SQL == nil {
		return &refusal{status: http.StatusServiceUnavailable, reason: bigquery.ReasonBackendError, code: "sql_unavailable", by: "sql",
			message: "The gateway cannot read SQL now, so it passes none on."}
	}
	body, readable, r := p.kind()
	if r != nil {
		return r
	}
	o := sql.Options{Project: p.call.Project, Parameters: p.facts.ParameterNames()}
	if d := p.facts.DefaultDataset; d != nil {
		t, r := canonical(bigquery.Table{Project: d.Project, Dataset: d.Dataset}, p.call.Project)
		if r != nil {
			return r
		}
		o.DatasetProject, o.Dataset = t.Project, t.Dataset
	}
	if id := p.facts.SessionID; id != "" && g.Sessions != nil {
		o.Temporary = g.Sessions.Temporary(bigquery.SessionKey(p.call.Project, id))
	}
	if !readable {
		p.uses.facts = &sql.Facts{Source: sql.SourceParser, Opaque: []string{"script_body"},
			Functions: []sql.Function{{Name: p.routineName(), Kind: "udf", Defined: true, Language: language(p.facts.Language)}}}
		p.uses.incomplete = []string{"script_body"}
		p.tellCall()
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, g.analysisTime())
	defer cancel()
	f := g.SQL.AnalyzeBody(limited, body, p.facts.SQL, o)
	p.uses.facts = f
	if f.Problem == nil {
		p.takeFacts(f)
	} else {
		p.uses.incomplete = []string{"sql_problem"}
	}
	p.tellCall()
	return inSession(p, f)
}

// kind is what the text is: a query, or what a view or routine is made of.
// Bodies in other languages than SQL cannot be read.
func (p *plan) kind() (body sql.Body, readable bool, r *refusal) {
	switch p.call.Method {
	case "bigquery.tables.insert", "bigquery.tables.update", "bigquery.tables.patch":
		if legacy := p.facts.Legacy; p.facts.View && (legacy == nil || *legacy) {
			return body, false, &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "legacy_sql", by: "body",
				message: "A view in legacy SQL is refused, and BigQuery takes a view for one that does not say otherwise: set view.useLegacySql to false and write GoogleSQL."}
		}
		return sql.Body{Kind: sql.BodyView}, true, nil
	case "bigquery.routines.insert", "bigquery.routines.update":
		if !strings.EqualFold(p.facts.Language, "SQL") {
			return body, false, nil
		}
		body = sql.Body{Arguments: p.facts.Arguments, TableArguments: p.facts.TableArguments}
		switch strings.ToUpper(p.facts.RoutineType) {
		case "SCALAR_FUNCTION", "AGGREGATE_FUNCTION":
			body.Kind = sql.BodyFunction
		case "TABLE_VALUED_FUNCTION":
			body.Kind = sql.BodyTableFunction
		case "PROCEDURE":
			body.Kind = sql.BodyProcedure
		default:
			return body, false, &refusal{status: http.StatusBadRequest, reason: bigquery.ReasonInvalid, code: "routine_type", by: "body",
				message: "routineType must be SCALAR_FUNCTION, AGGREGATE_FUNCTION, TABLE_VALUED_FUNCTION or PROCEDURE, so that the gateway knows how to read the body."}
		}
		return body, true, nil
	}
	return body, true, nil
}

// takeFacts adds what the text uses to what the route and the body say. What a
// view or routine is defined by is used by whoever calls it.
func (p *plan) takeFacts(f *sql.Facts) {
	from := func(list []sql.Table) []policy.Table {
		out := make([]policy.Table, 0, len(list))
		for _, t := range list {
			u := policy.Table{Project: t.Project, Dataset: t.Dataset, Table: t.Table, As: t.As, Source: f.Source,
				InformationSchema: t.InformationSchema, Columns: t.Columns, AllColumns: t.AllColumns}
			out = append(out, u)
		}
		return out
	}
	p.uses.reads = append(p.uses.reads, from(f.Reads)...)
	p.uses.writes = append(p.uses.writes, from(f.Writes)...)
	for _, o := range f.Opaque {
		if word := incomplete[o]; word != "" && !slices.Contains(p.uses.incomplete, word) {
			p.uses.incomplete = append(p.uses.incomplete, word)
		}
	}
}

// incomplete are the policy's words for what facts cannot see through. A
// system variable that could rebind names is the parser's to follow.
var incomplete = map[string]string{
	"dynamic_sql": "dynamic_sql", "call": "call", "script_body": "script_body", "graph": "graph",
	"unresolved": "unresolved", "unresolved_table_argument": "unresolved",
}

// doors are the tables that the route and the body name, each in the one form
// that names are compared in.
func (p *plan) doors() *refusal {
	var failed *refusal
	use := func(list *[]policy.Table, t bigquery.Table, as, source string) {
		c, r := canonical(t, p.call.Project)
		if r != nil {
			failed = r
			return
		}
		// BigQuery's own tables for results are their owners', see Gate.owned.
		if !strings.HasPrefix(c.Dataset, "_") {
			*list = append(*list, policy.Table{Project: c.Project, Dataset: c.Dataset, Table: c.Table, As: as, Source: source, AllColumns: true})
		}
	}
	if p.storage != nil {
		return nil // it has told
	}
	u := &p.uses
	named := bigquery.Table{Project: p.call.Project, Dataset: p.call.Dataset, Table: p.call.Table}
	switch p.route.Kind {
	case bigquery.KindRead, bigquery.KindMetadata:
		if named.Dataset != "" {
			use(&u.reads, named, fromRoute, fromRoute)
		}
	case bigquery.KindWrite:
		if named.Dataset != "" {
			source := fromRoute
			if p.route.Dataset == "" || p.route.Table == "" && named.Table != "" {
				source = fromBody
			}
			use(&u.writes, named, source, source)
		}
	}
	if p.facts.JobType == "" {
		return failed
	}
	for _, t := range p.facts.Sources {
		use(&u.reads, t, string(p.facts.JobType), fromBody)
	}
	if t := p.facts.Destination; t != nil {
		as := string(p.facts.JobType)
		if p.queries() {
			as = "destination"
		}
		use(&u.writes, *t, as, fromBody)
	}
	return failed
}

// canonical returns a table's name as names are compared, whichever door it
// came through: no decorator, the project's id, and never its number.
func canonical(t bigquery.Table, project string) (sql.Table, *refusal) {
	if t.Project == "" {
		t.Project = project
	}
	n, err := sql.CanonicalReference(t.Project, t.Dataset, t.Table)
	if err != nil {
		r := &refusal{status: http.StatusBadRequest, reason: bigquery.ReasonInvalid, code: "invalid_name", by: "body",
			message: fmt.Sprintf("The name of a table or dataset in the request is refused: %s.", err)}
		var e *sql.NameError
		if errors.As(err, &e) {
			r.code = e.Code
		}
		return sql.Table{}, r
	}
	return sql.Table{Project: n.Project, Dataset: n.Dataset, Table: n.Table, InformationSchema: n.InformationSchema, Region: n.Region, TimeTravel: n.TimeTravel}, nil
}

// notUnderstood refuses a text, with the place in it.
func notUnderstood(problem *sql.Problem) *refusal {
	r := &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "sql_" + problem.Code, by: "sql"}
	switch problem.Code {
	case "syntax", "no_default_dataset", "not_utf8", "control_character", "ambiguous_name":
		r.status, r.reason = http.StatusBadRequest, bigquery.ReasonInvalidQuery
	case "timeout":
		r.status, r.reason = http.StatusServiceUnavailable, bigquery.ReasonBackendError
	}
	hint := hints[problem.Code]
	if hint == "" {
		hint = "write it so that it can be read in one way only"
	}
	place := ""
	if problem.Line > 0 {
		place = fmt.Sprintf(" at %d:%d", problem.Line, max(problem.Column, 1))
	}
	r.message = fmt.Sprintf("The SQL is not understood%s, and what is not understood is not run: %s; %s.", place, strings.TrimSuffix(problem.Message, "."), hint)
	return r
}

// hints say what to do about a problem.
var hints = map[string]string{
	"too_large":          "send less text",
	"too_deep":           "nest less deeply, with WITH in the place of subqueries",
	"not_utf8":           "send UTF-8",
	"control_character":  "take the control character out",
	"legacy":             "set useLegacySql to false and write GoogleSQL",
	"syntax":             "correct the syntax",
	"unsupported":        "say it in another form, such as a subquery in the place of a bare name",
	"ambiguous_name":     "write the table's name in full, `project.dataset.table`",
	"no_default_dataset": "write the table's name with its dataset, or set defaultDataset",
	"project_number":     "write the project's id in the place of its number",
	"timeout":            "send less text, or try again later",
}

// tellCall puts what is known into the call as it goes on record.
func (p *plan) tellCall() {
	u := &p.uses
	p.call.Reads, p.call.Writes = p.tableUses(u.reads), p.tableUses(u.writes)
	f := u.facts
	if f == nil {
		return
	}
	p.call.Statements = nil
	for _, s := range f.Statements {
		p.call.Statements = append(p.call.Statements, s.Kind)
	}
	names := make([]string, 0, len(f.Functions)+len(u.routines))
	for _, fn := range f.Functions {
		names = append(names, fn.Name)
	}
	p.call.Functions = distinct(append(names, u.routines...))
	p.call.Opaque = slices.Clone(f.Opaque)
	if f.Problem != nil && !slices.Contains(p.call.Opaque, "sql_problem") {
		p.call.Opaque = append(p.call.Opaque, "sql_problem")
	}
}

// tableUses are tables as a record names them, each once.
func (p *plan) tableUses(list []policy.Table) []record.TableUse {
	var out []record.TableUse
	seen := make(map[record.TableUse]bool, len(list))
	for i := range list {
		u := record.TableUse{Table: list[i].Name(), Source: list[i].Source}
		switch as := list[i].As; as {
		case "copy", "extract", "load":
			if u.Source = as; p.route.Upload != bigquery.UploadNone {
				u.Source = fromUpload
			}
		}
		if !seen[u] {
			seen[u] = true
			out = append(out, u)
		}
	}
	return out
}

// distinct returns the names in their order, each once.
func distinct(names []string) []string {
	seen := make(map[string]bool, len(names))
	out := names[:0:0]
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

func (p *plan) routineName() string {
	if t := p.facts.Destination; t != nil {
		return t.Project + "." + t.Dataset + "." + t.Table
	}
	return ""
}

func language(s string) string {
	switch strings.ToUpper(s) {
	case "JAVASCRIPT":
		return "js"
	}
	return strings.ToLower(s)
}
