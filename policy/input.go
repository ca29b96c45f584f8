package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"verbatim.dev/policy/sql"
)

// InputVersion is the version of the input that this package builds.
const InputVersion = 1

// Input is what a policy decides over. Every field is described in README.md
// and in input.schema.json. The policy sees empty fields as empty strings,
// arrays and objects; only SQL is left out where there is none, and of it Facts
// and DryRun.
type Input struct {
	Time       time.Time
	Caller     Caller
	Provenance Provenance
	Asserted   Asserted
	Connection Connection
	Request    Request
	SQL        *SQL
	// Reads and Writes are the tables that the call uses, whichever door it comes
	// through: of its SQL, its body or its route. They are complete where
	// Incomplete is empty.
	Reads, Writes []Table
	// Incomplete says in fixed words why Reads and Writes may lack tables:
	// sql_problem, dynamic_sql, call, script_body, graph, unresolved, dry_run_list.
	Incomplete []string
	Usage      Usage
}

// Table is a table that a call uses, its names as BigQuery compares them.
type Table struct {
	Project, Dataset string
	Table            string // empty for a whole dataset; ends with * for a wildcard
	// As says how: see the constants of package policy/sql, and route, body, copy, extract, load, destination.
	As string
	// Source says how it is known: parser, dry_run, route, body.
	Source string
	// Kind is TABLE, VIEW, MATERIALIZED_VIEW, EXTERNAL, SNAPSHOT, ... where BigQuery
	// told it; empty where nobody asked.
	Kind              string
	InformationSchema string   // the view's name in upper case
	Columns           []string // lower case; empty where AllColumns is true or they are not known
	AllColumns        bool
}

// Name is the table's full name, as records have it: "PROJECT.DATASET.TABLE". A
// view of INFORMATION_SCHEMA belongs to its dataset or project.
func (t *Table) Name() string {
	parts := []string{t.Project}
	if t.Dataset != "" {
		parts = append(parts, t.Dataset)
	}
	if t.InformationSchema != "" {
		parts = append(parts, "INFORMATION_SCHEMA", t.InformationSchema)
	} else if t.Table != "" {
		parts = append(parts, t.Table)
	}
	return strings.Join(parts, ".")
}

// Usage is what the caller used up in the windows of its budgets, before this
// request.
type Usage struct {
	Known   bool // false where the gateway keeps no budgets
	Windows []UsageWindow
}

// UsageWindow is the use within one window of time, of the principal or of its run.
type UsageWindow struct {
	Of      string // principal or run
	Seconds int64  // length of the window
	Queries int64
	Bytes   int64 // processed, or billed where BigQuery said so
	Rows    int64
}

// Caller is the verified identity.
type Caller struct {
	Issuer     string // the issuer's name in the gateway's configuration
	IssuerURL  string
	Subject    string
	Email      string
	Groups     []string // qualified by the issuer's name, "corp/security"
	OnBehalfOf []Actor  // verified act chain, outermost first
}

// Actor is one member of an act chain (RFC 8693, section 4.1).
type Actor struct {
	Issuer  string
	Subject string
}

// Provenance is what verified claims prove of where the call comes from.
type Provenance struct {
	Profile        string
	Pipeline       string
	Repository     string
	Ref            string
	Commit         string
	Workflow       string
	Run            string
	Actor          string
	Environment    string
	Namespace      string
	Pod            string
	ServiceAccount string
	SPIFFE         string // spiffe_id
}

// Asserted is what the client says of itself. Nobody verified it: a policy
// must not allow by it.
type Asserted struct {
	UserAgent     string
	Labels        map[string]string
	RequestReason string
	Agent         string
	Model         string
	Conversation  string
	ToolCall      string
}

// Connection is the BigQuery that the request is for.
type Connection struct {
	Name      string
	Location  string
	Recording string // full or metadata
	Retention string // retention class
}

// The kinds of a request.
const (
	KindQuery    = "query"
	KindRead     = "read"
	KindWrite    = "write"
	KindMetadata = "metadata"
	KindJob      = "job"
	KindUpload   = "upload"
	KindOther    = "other"
)

// Request is what the call means.
type Request struct {
	Method     string // as Google documents it, "bigquery.jobs.query"; empty for an unknown route
	Kind       string // one of the Kind constants
	HTTPMethod string
	Path       string // without the query string
	Project    string
	Dataset    string
	Table      string
	Job        string
	DryRun     bool
	JobType    string // query, load, copy, extract or empty
	// Destination is the table that a query, load or copy job writes as its
	// body says (destinationTable), "PROJECT.DATASET.TABLE"; empty for none.
	// A SELECT with a destination is a write.
	Destination string
	// DefaultDataset is the body's defaultDataset, "PROJECT.DATASET" or "DATASET".
	DefaultDataset string
	// ExternalTables is true when the body defines external tables of its own
	// (tableDefinitions).
	ExternalTables bool
}

// SQL is the statement text of a query.
type SQL struct {
	Text       string
	Legacy     bool            // useLegacySql is true, or the caller left it to its default of true
	Parameters json.RawMessage // the request's queryParameters as they came; nil for none
	// Facts are what the text does; nil only where there is none to read.
	Facts *sql.Facts
	// DryRun is what BigQuery said of the text, nil where nobody asked.
	DryRun *DryRun
}

// DryRun is BigQuery's own word on a query
// (https://cloud.google.com/bigquery/docs/reference/rest/v2/Job#JobStatistics2).
type DryRun struct {
	StatementType  string
	Tables         []Table // referencedTables, with Source dry_run
	Routines       []string
	Target         *Table // ddlTargetTable, or the DML's
	BytesProcessed int64
	// Complete is false where the list of tables is missing, or as long as the
	// documented bound of 50.
	Complete bool
	// OnlyParser and OnlyDryRun are tables that one of the two saw and the
	// other did not, "PROJECT.DATASET.TABLE".
	OnlyParser, OnlyDryRun []string
	Error                  string // BigQuery's refusal of the text, empty where it took it
}

// keys are the terms of the input's keys, made once.
var keys = func() map[string]*ast.Term {
	m := map[string]*ast.Term{}
	for _, k := range []string{
		"version", "time", "caller", "provenance", "asserted", "connection", "request", "sql",
		"issuer", "issuer_url", "subject", "email", "groups", "on_behalf_of",
		"profile", "pipeline", "repository", "ref", "commit", "workflow", "run", "actor", "environment", "namespace", "pod", "service_account", "spiffe_id",
		"user_agent", "labels", "request_reason", "agent", "model", "conversation", "tool_call",
		"name", "location", "recording", "retention",
		"method", "kind", "http_method", "path", "project", "dataset", "table", "job", "dry_run", "job_type", "destination", "default_dataset", "external_tables",
		"text", "legacy", "parameters", "words", "names", "statements", "problem",
		"reads", "writes", "incomplete", "usage", "as", "source", "information_schema", "dataset_name", "columns", "all_columns",
		"known", "windows", "of", "seconds", "queries", "bytes", "rows",
		"facts", "code", "message", "line", "column", "fallback", "depth", "functions", "defined", "language",
		"externals", "value", "access", "opaque", "query_label", "temporary",
		"statement_type", "tables", "routines", "target", "bytes_processed", "complete", "only_parser", "only_dry_run", "error",
	} {
		m[k] = ast.StringTerm(k)
	}
	return m
}()

func field(key string, v ast.Value) [2]*ast.Term { return [2]*ast.Term{keys[key], {Value: v}} }

func text(key, v string) [2]*ast.Term {
	if t := usual[v]; t != nil {
		return [2]*ast.Term{keys[key], t}
	}
	return field(key, ast.String(v))
}

// usual are terms of texts that stand in most inputs.
var usual = func() map[string]*ast.Term {
	m := map[string]*ast.Term{}
	for _, s := range []string{
		"", "main", "full", "default", "GET", "POST", "query", "read", "bigquery.jobs.query", "bigquery.jobs.insert", "bigquery.tabledata.list",
		"parser", "dry_run", "route", "body", "from", "target", "TABLE", "VIEW", "SELECT", "udf", "sql",
	} {
		m[s] = ast.StringTerm(s)
	}
	return m
}()

// check refuses what is no input.
func (in *Input) check() error {
	switch {
	case in == nil:
		return &Error{Code: CodeError, Message: "input: there is none"}
	case in.Time.IsZero():
		return &Error{Code: CodeError, Message: "input: it has no time"}
	}
	return nil
}

// scan returns the words of the SQL, nil where there is none.
func (in *Input) scan() *words {
	if in.SQL == nil {
		return nil
	}
	w := scanWords(in.SQL.Text)
	return &w
}

// value returns the input as the policy sees it, with the words that scan
// returned. The error holds nothing of the input.
func (in *Input) value(w *words) (ast.Value, error) {
	groups := make([]*ast.Term, len(in.Caller.Groups))
	for i, g := range in.Caller.Groups {
		groups[i] = ast.StringTerm(g)
	}
	chain := make([]*ast.Term, len(in.Caller.OnBehalfOf))
	for i, a := range in.Caller.OnBehalfOf {
		chain[i] = ast.ObjectTerm(text("issuer", a.Issuer), text("subject", a.Subject))
	}
	labels := ast.NewObject()
	for k, v := range in.Asserted.Labels {
		labels.Insert(ast.StringTerm(k), ast.StringTerm(v))
	}
	c, p, a, n, r := &in.Caller, &in.Provenance, &in.Asserted, &in.Connection, &in.Request
	fields := [][2]*ast.Term{
		field("version", ast.Number("1")),
		text("time", seconds(in.Time)),
		field("caller", ast.NewObject(
			text("issuer", c.Issuer), text("issuer_url", c.IssuerURL), text("subject", c.Subject), text("email", c.Email),
			field("groups", ast.NewArray(groups...)), field("on_behalf_of", ast.NewArray(chain...)),
		)),
		field("provenance", ast.NewObject(
			text("profile", p.Profile), text("pipeline", p.Pipeline), text("repository", p.Repository), text("ref", p.Ref),
			text("commit", p.Commit), text("workflow", p.Workflow), text("run", p.Run), text("actor", p.Actor),
			text("environment", p.Environment), text("namespace", p.Namespace), text("pod", p.Pod),
			text("service_account", p.ServiceAccount), text("spiffe_id", p.SPIFFE),
		)),
		field("asserted", ast.NewObject(
			text("user_agent", a.UserAgent), field("labels", labels), text("request_reason", a.RequestReason),
			text("agent", a.Agent), text("model", a.Model), text("conversation", a.Conversation), text("tool_call", a.ToolCall),
		)),
		field("connection", ast.NewObject(
			text("name", n.Name), text("location", n.Location), text("recording", n.Recording), text("retention", n.Retention),
		)),
		field("request", ast.NewObject(
			text("method", r.Method), text("kind", r.Kind), text("http_method", r.HTTPMethod), text("path", r.Path),
			text("project", r.Project), text("dataset", r.Dataset), text("table", r.Table), text("job", r.Job),
			field("dry_run", ast.Boolean(r.DryRun)), text("job_type", r.JobType), text("destination", r.Destination),
			text("default_dataset", r.DefaultDataset), field("external_tables", ast.Boolean(r.ExternalTables)),
		)),
		each("reads", in.Reads, (*Table).value), each("writes", in.Writes, (*Table).value), texts("incomplete", in.Incomplete),
		field("usage", ast.NewObject(
			field("known", ast.Boolean(in.Usage.Known)), each("windows", in.Usage.Windows, (*UsageWindow).value),
		)),
	}
	if in.SQL != nil {
		sql, err := in.SQL.value(w)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field("sql", sql))
	}
	return ast.NewObject(fields...), nil
}

func (q *SQL) value(w *words) (ast.Value, error) {
	var parameters ast.Value = ast.Null{}
	if len(q.Parameters) > 0 {
		d := json.NewDecoder(bytes.NewReader(q.Parameters))
		d.UseNumber()
		var v any
		err := d.Decode(&v)
		if err == nil && d.More() {
			err = errors.New("more")
		}
		if err != nil {
			return nil, errors.New("the query parameters are not one JSON value")
		}
		if parameters, err = ast.InterfaceToValue(v); err != nil {
			return nil, errors.New("the query parameters are not one JSON value")
		}
	}
	statements := make([]*ast.Term, len(w.statements))
	for i, s := range w.statements {
		statements[i] = ast.StringTerm(s)
	}
	fields := [][2]*ast.Term{
		text("text", q.Text), field("legacy", ast.Boolean(q.Legacy || w.legacy)), field("parameters", parameters),
		field("words", counts(w.count)), field("names", counts(w.names)),
		field("statements", ast.NewArray(statements...)), text("problem", w.problem),
	}
	if q.Facts != nil {
		fields = append(fields, field("facts", factsValue(q.Facts)))
	}
	if q.DryRun != nil {
		fields = append(fields, field("dry_run", dryRunValue(q.DryRun)))
	}
	return ast.NewObject(fields...), nil
}

func counts(m map[string]int) ast.Object {
	pairs := make([][2]*ast.Term, 0, len(m))
	for k, n := range m {
		pairs = append(pairs, [2]*ast.Term{ast.StringTerm(k), ast.IntNumberTerm(n)})
	}
	return ast.NewObject(pairs...)
}
