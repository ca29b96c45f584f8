package authoring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// Recorded is one exchange as the vault holds it.
type Recorded struct {
	Intent  *record.Intent
	Outcome *record.Outcome // nil where there is none
	// Body is the request's as the caller sent it; nil where it is not recorded,
	// or longer than what a policy can be about.
	Body []byte
}

// errNoPolicy means that no policy was asked about an exchange.
var errNoPolicy = errors.New("the policy was not asked")

// Input makes the input that the policy decided over again: the text is analysed
// anew, and tables that only BigQuery named come from the record. What a budget
// had used is not in a record: it counts as nothing.
func Input(ctx context.Context, r Recorded, windows []policy.Window) (*policy.Input, error) {
	v := &r.Intent.Verbatim
	if v.Principal == nil || v.Connection == nil {
		return nil, errNoPolicy
	}
	target := r.Intent.Request.URL.Path
	if q := r.Intent.Request.URL.Query; q != "" {
		target += "?" + q
	}
	call, refusal := bigquery.Classify(bigquery.Request{Method: r.Intent.Request.Method, Target: target, Headers: r.Intent.Request.Headers})
	if refusal != nil {
		return nil, fmt.Errorf("the request is none that this version lets to the policy: %s", refusal.Message)
	}
	var facts bigquery.Facts
	if r.Body != nil {
		var err error
		if facts, err = bigquery.ParseBody(call, header(r.Intent, "content-type"), header(r.Intent, "content-encoding"), r.Body); err != nil {
			return nil, fmt.Errorf("the request's body is none that this version lets to the policy: %w", err)
		}
	}
	in := &policy.Input{
		Time: v.Decided,
		Asserted: policy.Asserted{UserAgent: v.Asserted.UserAgent, Labels: v.Asserted.Labels, RequestReason: v.Asserted.RequestReason,
			Agent: v.Asserted.Agent, Model: v.Asserted.Model, Conversation: v.Asserted.Conversation, ToolCall: v.Asserted.ToolCall},
		Connection: policy.Connection{Name: v.Connection.Name, Location: v.Connection.Location, Recording: v.Connection.Recording, Retention: v.Connection.Retention},
		Request: policy.Request{
			Method: v.Call.Method, Kind: string(call.Kind), HTTPMethod: r.Intent.Request.Method, Path: r.Intent.Request.URL.Path,
			Project: v.Call.Project, Dataset: v.Call.Dataset, Table: v.Call.Table, DryRun: v.Call.DryRun,
			JobType: string(facts.JobType), ExternalTables: len(facts.External) > 0,
		},
		Usage: usage(windows),
	}
	if in.Time.IsZero() {
		in.Time = v.Received
	}
	who(in, v.Principal, v.Provenance)
	if v.Call.Job != nil {
		in.Request.Job = v.Call.Job.ID
	}
	if t := facts.Destination; t != nil && t.Table != "" && facts.JobType != "" {
		in.Request.Destination = t.Project + "." + t.Dataset + "." + t.Table
	}
	o := sql.Options{Project: v.Call.Project}
	if d := facts.DefaultDataset; d != nil {
		o.DatasetProject, o.Dataset = orDefault(d.Project, v.Call.Project), d.Dataset
		in.Request.DefaultDataset = o.DatasetProject + "." + o.Dataset
	}
	doors(in, call, &facts)
	if v.Call.SQL != "" {
		text(ctx, in, v, &facts, o)
	}
	known(in, r, v)
	return in, nil
}

func header(i *record.Intent, name string) string {
	for _, h := range i.Request.Headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// usage is that of a caller who has used nothing.
func usage(windows []policy.Window) policy.Usage {
	u := policy.Usage{Known: true}
	for _, w := range windows {
		u.Windows = append(u.Windows, policy.UsageWindow{Of: w.Of, Seconds: w.Seconds})
	}
	return u
}

func who(in *policy.Input, p *record.Principal, from *record.Provenance) {
	in.Caller = policy.Caller{Issuer: p.Issuer, IssuerURL: p.URL, Subject: p.Subject, Email: p.Email, Groups: p.Groups}
	for _, a := range p.OnBehalfOf {
		in.Caller.OnBehalfOf = append(in.Caller.OnBehalfOf, policy.Actor(a))
	}
	if from != nil {
		in.Provenance = policy.Provenance{
			Profile: from.Profile, Pipeline: from.Pipeline, Repository: from.Repository, Ref: from.Ref, Commit: from.Commit, Workflow: from.Workflow,
			Run: from.Run, Actor: from.Actor, Environment: from.Environment, Namespace: from.Namespace, Pod: from.Pod,
			ServiceAccount: from.ServiceAccount, SPIFFE: from.SPIFFE,
		}
	}
}

// doors are the tables that the route and the body name.
func doors(in *policy.Input, call bigquery.Call, facts *bigquery.Facts) {
	add := func(list *[]policy.Table, project, dataset, table, as, source string) {
		c, err := sql.CanonicalReference(orDefault(project, in.Request.Project), dataset, table)
		if err != nil || strings.HasPrefix(c.Dataset, "_") {
			return
		}
		*list = append(*list, policy.Table{Project: c.Project, Dataset: c.Dataset, Table: c.Table, As: as, Source: source, AllColumns: true})
	}
	r := &in.Request
	switch {
	case r.Dataset == "" || facts.JobType != "":
	case call.Kind == bigquery.KindWrite:
		add(&in.Writes, r.Project, r.Dataset, r.Table, "route", "route")
	case call.Kind == bigquery.KindRead || call.Kind == bigquery.KindMetadata:
		add(&in.Reads, r.Project, r.Dataset, r.Table, "route", "route")
	}
	if facts.JobType == "" {
		return
	}
	for _, t := range facts.Sources {
		add(&in.Reads, t.Project, t.Dataset, t.Table, string(facts.JobType), "body")
	}
	if t := facts.Destination; t != nil {
		as := string(facts.JobType)
		if facts.JobType == bigquery.JobQuery {
			as = "destination"
		}
		add(&in.Writes, t.Project, t.Dataset, t.Table, as, "body")
	}
}

// text analyses the SQL.
func text(ctx context.Context, in *policy.Input, v *record.IntentDetail, facts *bigquery.Facts, o sql.Options) {
	q := &policy.SQL{Text: v.Call.SQL, Parameters: v.Call.Parameters, Legacy: facts.Legacy != nil && *facts.Legacy || facts.LegacyPrefix}
	in.SQL = q
	if o.Dataset == "" && facts.Body == nil && len(v.Call.Reads)+len(v.Call.Writes) > 0 {
		// The body, and with it the default dataset, is not recorded; the tables are.
		o.DatasetProject, o.Dataset = v.Call.Project, "unrecorded"
	}
	q.Facts = sql.Analyze(ctx, v.Call.SQL, o)
	take(in, q.Facts, o)
}

// take puts the facts' tables into the input.
func take(in *policy.Input, f *sql.Facts, o sql.Options) {
	if f.Problem != nil {
		in.Incomplete = append(in.Incomplete, "sql_problem")
		return
	}
	from := func(list []sql.Table) (out []policy.Table) {
		for _, t := range list {
			if t.Dataset == "unrecorded" && o.Dataset == "unrecorded" {
				continue
			}
			out = append(out, policy.Table{Project: t.Project, Dataset: t.Dataset, Table: t.Table, As: t.As, Source: f.Source,
				InformationSchema: t.InformationSchema, Columns: t.Columns, AllColumns: t.AllColumns})
		}
		return out
	}
	in.Reads, in.Writes = append(in.Reads, from(f.Reads)...), append(in.Writes, from(f.Writes)...)
	for _, word := range f.Opaque {
		switch word {
		case "dynamic_sql", "call", "script_body", "graph":
		case "unresolved_table_argument":
			word = "unresolved"
		default:
			continue
		}
		if !slices.Contains(in.Incomplete, word) {
			in.Incomplete = append(in.Incomplete, word)
		}
	}
}

// known adds the tables that the record names and the text does not, and what
// BigQuery told of the job.
func known(in *policy.Input, r Recorded, v *record.IntentDetail) {
	reads, writes, routines := v.Call.Reads, v.Call.Writes, v.Call.Functions
	var processed int64
	told := false // by a dry run or the finished job
	if r.Outcome != nil {
		d := &r.Outcome.Verbatim
		reads, writes, routines = slices.Concat(reads, d.Reads), slices.Concat(writes, d.Writes), slices.Concat(routines, d.Functions)
		if d.Processed != nil {
			processed = *d.Processed
		}
	}
	run := &policy.DryRun{Complete: true}
	add := func(list *[]policy.Table, uses []record.TableUse, as string) {
		named := map[string]bool{}
		for _, t := range *list {
			named[t.Name()] = true
		}
		for _, u := range uses {
			told = told || u.Source == "dry_run" || u.Source == "job"
			if named[u.Table] {
				continue
			}
			t, ok := tableOf(u)
			if !ok {
				continue
			}
			named[u.Table] = true
			t.As = as
			*list = append(*list, t)
			if as == "view" {
				run.Tables, run.OnlyDryRun = append(run.Tables, t), append(run.OnlyDryRun, u.Table)
			}
		}
	}
	add(&in.Writes, writes, "target")
	add(&in.Reads, reads, "view")
	if in.SQL == nil || !told && processed == 0 {
		return
	}
	run.BytesProcessed = processed
	for _, name := range routines {
		if strings.Count(name, ".") >= 2 && !slices.Contains(run.Routines, name) {
			run.Routines = append(run.Routines, name)
		}
	}
	if !told && len(in.Reads) > 0 {
		return // the cost alone is known, and a dry run is more than that
	}
	in.SQL.DryRun = run
	if p := in.SQL.Facts.Problem; p != nil && p.Fallback {
		f := &sql.Facts{Source: sql.SourceDryRun, Problem: p}
		for _, kind := range v.Call.Statements {
			f.Statements = append(f.Statements, sql.Statement{Kind: kind, Line: 1, Column: 1})
		}
		in.SQL.Facts, in.Incomplete = f, nil
	}
}

// tableOf takes a recorded name apart: from its end, for a project can hold dots.
func tableOf(u record.TableUse) (policy.Table, bool) {
	t := policy.Table{Source: u.Source, AllColumns: true}
	rest, view, ok := strings.Cut(u.Table, ".INFORMATION_SCHEMA.")
	if ok {
		t.InformationSchema = view
		u.Table = rest + "."
		if !strings.Contains(rest, ".") {
			t.Project = rest
			return t, true
		}
	}
	i := strings.LastIndexByte(u.Table, '.')
	if i < 0 {
		return t, false
	}
	t.Table = u.Table[i+1:]
	j := strings.LastIndexByte(u.Table[:i], '.')
	if j < 0 {
		t.Project, t.Dataset, t.Table = u.Table[:i], t.Table, ""
		return t, t.Project != "" && t.Dataset != ""
	}
	t.Project, t.Dataset = u.Table[:j], u.Table[j+1:i]
	return t, t.Project != "" && t.Dataset != ""
}
