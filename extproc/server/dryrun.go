package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
)

// mostTables is how many tables a list of referenced tables can hold before
// BigQuery says no more that it is complete
// (https://cloud.google.com/bigquery/docs/reference/rest/v2/Job#JobStatistics2).
const mostTables = 50

// maxAsked is the largest body of a call of the gateway's own, in bytes.
const maxAsked = 4 << 20

// dryRun is what BigQuery said of a text. It is shared, and not changed.
type dryRun struct {
	StatementType string
	Tables        []sql.Table // referencedTables
	HasTables     bool        // the list was there
	Routines      []string    // "project.dataset.name"
	Target        *sql.Table
	Processed     int64
	// Refused is BigQuery's refusal of the text; Status and Reason are its own.
	Refused string
	Status  int
	Reason  string
}

// standIn asks BigQuery about a text that the parser cannot read. The policy
// has released nothing yet, so of a refusal no more than syntax is told.
func (g *Gate) standIn(ctx context.Context, p *plan, probe prober) *refusal {
	problem := p.uses.facts.Problem
	d, r := g.dryRun(ctx, p, probe)
	if r != nil {
		return r
	}
	if d.Refused != "" {
		if syntaxError(d.Refused) {
			return refusedText(d, d.Refused)
		}
		return notUnderstood(problem)
	}
	if !stands[d.StatementType] {
		return notUnderstood(problem)
	}
	f := &sql.Facts{Source: sql.SourceDryRun, Problem: problem, Statements: []sql.Statement{{Kind: d.StatementType, Line: 1, Column: 1}}}
	for _, t := range d.Tables {
		t.As, t.AllColumns = "from", true
		f.Reads = append(f.Reads, t)
	}
	complete := d.complete(true)
	if d.StatementType != "SELECT" {
		if d.Target == nil {
			complete = false // what is written is among what is referenced, and which it is nobody says
		} else {
			t := *d.Target
			t.As, t.AllColumns = "target", true
			f.Writes = []sql.Table{t}
		}
	}
	for _, name := range d.Routines {
		f.Functions = append(f.Functions, sql.Function{Name: name, Kind: "udf"})
	}
	p.uses.facts, p.uses.refusedText = f, true
	p.uses.incomplete = nil
	p.takeFacts(f)
	p.learn(d)
	if p.uses.dry.Complete = complete; !complete {
		return notUnderstood(problem)
	}
	return nil
}

// stands are the statements for which a dry run can stand in: one statement,
// which reads tables and at most writes one. A script's dry run does not vouch
// for its later statements.
var stands = map[string]bool{
	"SELECT": true, "INSERT": true, "UPDATE": true, "DELETE": true, "MERGE": true, "CREATE_TABLE_AS_SELECT": true, "CREATE_VIEW": true,
}

// askDryRun makes the dry run that the policy wants, and tells the plan of it.
// A policy asks when it would allow what the text itself names.
func (g *Gate) askDryRun(ctx context.Context, p *plan, probe prober) *refusal {
	view := p.facts.View || p.facts.SQL != "" && strings.HasPrefix(p.call.Method, "bigquery.tables.")
	if !p.queries() && !view || p.facts.SQL == "" || g.DryRuns == nil {
		return policyFailed("it asks for a dry run of what is no query")
	}
	d, r := g.dryRun(ctx, p, probe)
	if r != nil {
		return r
	}
	if d.Refused != "" {
		return refusedText(d, quotable(d.Refused, p))
	}
	p.learn(d)
	return nil
}

// learn takes a dry run into what is known of the call, and compares it with
// what the parser saw.
func (p *plan) learn(d *dryRun) {
	u := &p.uses
	dry := &policy.DryRun{StatementType: d.StatementType, Routines: d.Routines, BytesProcessed: d.Processed}
	source := func(t sql.Table, as string) policy.Table {
		return policy.Table{Project: t.Project, Dataset: t.Dataset, Table: t.Table, As: as, Source: sql.SourceDryRun, AllColumns: true}
	}
	if d.Target != nil {
		t := source(*d.Target, "target")
		dry.Target = &t
	}
	due := false
	named := newNames()
	seen := newNames()
	for _, t := range u.writes {
		named.add(t.Name())
	}
	for _, t := range u.reads {
		named.add(t.Name())
	}
	for i := range u.facts.Reads {
		due = due || listable(&u.facts.Reads[i])
	}
	if d.Target != nil {
		seen.add(dry.Target.Name())
	}
	for _, t := range d.Tables {
		use := source(t, "from")
		n := use.Name()
		seen.add(n)
		if !named.has(n) {
			use.As = asView
			dry.OnlyDryRun = append(dry.OnlyDryRun, n)
			u.reads = append(u.reads, use)
		}
		dry.Tables = append(dry.Tables, use)
	}
	if d.Target != nil && !named.has(dry.Target.Name()) {
		dry.OnlyDryRun = append(dry.OnlyDryRun, dry.Target.Name())
		u.writes = append(u.writes, *dry.Target)
	}
	for i := range u.facts.Reads {
		if t := &u.facts.Reads[i]; listable(t) && !seen.has(fullName(t)) {
			dry.OnlyParser = append(dry.OnlyParser, fullName(t))
		}
	}
	dry.OnlyDryRun, dry.OnlyParser = distinct(dry.OnlyDryRun), distinct(dry.OnlyParser)
	dry.Complete = d.complete(due)
	if d.StatementType == "SCRIPT" && len(dry.OnlyParser) > 0 {
		dry.Complete = false // it stopped before the statement that names them
	}
	if !dry.Complete {
		u.incomplete = append(u.incomplete, "dry_run_list")
	}
	u.dry, u.routines = dry, d.Routines
	p.tellCall()
}

// listable reports whether a table that the parser saw is one that BigQuery
// lists as referenced.
func listable(t *sql.Table) bool {
	return t.InformationSchema == "" && t.Table != "" && (t.Object == "" || t.Object == "table")
}

// complete reports whether the list of tables is one to rely on; due says that
// there must be one.
func (d *dryRun) complete(due bool) bool {
	if len(d.Tables) >= mostTables {
		return false
	}
	return !due || d.HasTables && len(d.Tables) > 0
}

// names are tables by their full name; one that ends with a star stands for
// all that begin so.
type names struct {
	exact    map[string]bool
	prefixes []string
}

func newNames() *names { return &names{exact: map[string]bool{}} }

func (n *names) add(name string) {
	n.exact[name] = true
	if p, ok := strings.CutSuffix(name, "*"); ok && !slices.Contains(n.prefixes, p) {
		n.prefixes = append(n.prefixes, p)
	}
}

// has reports whether name is one of them, or a wildcard that one of them
// belongs to.
func (n *names) has(name string) bool {
	if n.exact[name] {
		return true
	}
	for _, p := range n.prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	if p, ok := strings.CutSuffix(name, "*"); ok {
		for e := range n.exact {
			if strings.HasPrefix(e, p) {
				return true
			}
		}
	}
	return false
}

// refusedText answers for BigQuery, which refused the text in the dry run.
func refusedText(d *dryRun, message string) *refusal {
	r := &refusal{status: http.StatusBadRequest, reason: bigquery.ReasonInvalidQuery, code: "dry_run_refused", by: "dry_run"}
	switch d.Status {
	case http.StatusNotFound:
		r.status, r.reason = d.Status, bigquery.ReasonNotFound
	case http.StatusForbidden:
		r.status, r.reason = d.Status, bigquery.ReasonAccessDenied
	}
	if message == "" {
		r.message = "BigQuery refuses the query. Its message may name what the caller may not see, so it is not shown; an auditor finds it on record. Check the names of tables, columns and functions."
		return r
	}
	r.message = "BigQuery refuses the query: " + message
	return r
}

// maxQuoted is how much of BigQuery's message a caller is shown, in bytes.
const maxQuoted = 1024

func syntaxError(message string) bool {
	return strings.HasPrefix(message, "Syntax error:") && len(message) <= maxQuoted
}

var (
	suggestion = regexp.MustCompile(`;? ?Did you mean [^?]*\?`)
	// nameInText finds what may be the name of a table, in either spelling:
	// project.dataset.table, project:dataset.table, dataset.table.
	nameInText = regexp.MustCompile("[A-Za-z0-9_-]+(?:[.:][A-Za-z0-9_*$@-]+)+")
)

// quotable is what a caller may see of BigQuery's refusal, empty for nothing:
// all but suggestions, unless the message names what the text does not, such as
// a view's own table.
func quotable(message string, p *plan) string {
	if syntaxError(message) {
		return message
	}
	if len(message) > maxQuoted {
		return ""
	}
	text := strings.ToLower(p.facts.SQL)
	for _, n := range nameInText.FindAllString(message, -1) {
		if _, err := strconv.ParseFloat(n, 64); err == nil {
			continue
		}
		if place.MatchString(n) {
			continue
		}
		parts := strings.FieldsFunc(strings.ToLower(n), func(r rune) bool { return r == '.' || r == ':' })
		for i, part := range parts {
			if i == 0 && len(parts) > 2 && part == strings.ToLower(p.call.Project) {
				continue
			}
			if d := p.facts.DefaultDataset; d != nil && part == strings.ToLower(d.Dataset) {
				continue
			}
			if !strings.Contains(text, strings.TrimRight(part, "*$@-")) {
				return ""
			}
		}
	}
	return suggestion.ReplaceAllString(message, "")
}

// place is the end of most messages: "at [1:8]".
var place = regexp.MustCompile(`^[0-9]+:[0-9]+$`)

// dryRun asks BigQuery about the SQL, or remembers what it said.
func (g *Gate) dryRun(ctx context.Context, p *plan, probe prober) (*dryRun, *refusal) {
	body, err := p.dryRunBody(g)
	if err == nil && len(body) > maxAsked {
		err = fmt.Errorf("the question is larger than %d bytes", maxAsked)
	}
	var d *dryRun
	if err == nil {
		d, err = g.DryRuns.get(ctx, g.dryRunKey(p), g.Now, func() (*dryRun, error) { return g.askBigQuery(ctx, p, probe, body) })
	}
	if err != nil {
		g.Logger.Warn("dry run failed", "connection", p.conn.Name, "error", err)
		return nil, &refusal{status: http.StatusServiceUnavailable, reason: bigquery.ReasonBackendError, code: "dry_run_failed", by: "dry_run",
			message: "What the query does could not be asked of BigQuery by a dry run now, so it is not run. Try again in a moment."}
	}
	return d, nil
}

// dryRunBody is the caller's query as a dry run of the gateway's.
func (p *plan) dryRunBody(g *Gate) ([]byte, error) {
	f := &p.facts
	query := map[string]any{"query": f.SQL, "useLegacySql": false}
	if d := f.DefaultDataset; d != nil {
		query["defaultDataset"] = map[string]any{"projectId": orDefault(d.Project, p.call.Project), "datasetId": d.Dataset}
	}
	if len(f.Parameters) > 0 {
		query["queryParameters"] = f.Parameters
		if f.ParameterMode != "" {
			query["parameterMode"] = f.ParameterMode
		}
	}
	var properties []map[string]string
	for _, c := range f.ConnectionProperties {
		if harmless[c.Key] || c.Value == f.SessionID && strings.EqualFold(c.Key, "session_id") {
			properties = append(properties, map[string]string{"key": c.Key, "value": c.Value})
		}
	}
	if properties != nil {
		query["connectionProperties"] = properties
	}
	if t := f.Destination; t != nil && p.queries() {
		query["destinationTable"] = map[string]any{"projectId": orDefault(t.Project, p.call.Project), "datasetId": t.Dataset, "tableId": t.Table}
		if f.WriteDisposition != "" {
			query["writeDisposition"] = f.WriteDisposition
		}
		if f.CreateDisposition != "" {
			query["createDisposition"] = f.CreateDisposition
		}
	}
	job := map[string]any{"configuration": map[string]any{"dryRun": true, "query": query,
		"labels": g.mark(p.call.Project, f.Location, p.session, ownerOf(p.identity))}}
	if f.Location != "" {
		job["jobReference"] = map[string]any{"projectId": p.call.Project, "location": f.Location}
	}
	return json.Marshal(job)
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// askBigQuery makes the dry run, on record.
func (g *Gate) askBigQuery(ctx context.Context, p *plan, probe prober, body []byte) (*dryRun, error) {
	path := "/bigquery/v2/projects/" + url.PathEscape(p.call.Project) + "/jobs"
	status, answer, err := probe(ctx, "dry run", http.MethodPost, path, body)
	if err != nil {
		return nil, err
	}
	return readDryRun(status, answer, p.call.Project)
}

// jobFacts is what a job's resource says of its query.
type jobFacts struct {
	Configuration struct {
		Labels map[string]string `json:"labels"`
		Query  struct {
			DestinationTable tableReference `json:"destinationTable"`
		} `json:"query"`
	} `json:"configuration"`
	Status struct {
		State       string          `json:"state"`
		ErrorResult *jobError       `json:"errorResult"`
		Errors      json.RawMessage `json:"errors"`
	} `json:"status"`
	Statistics struct {
		TotalBytesProcessed number `json:"totalBytesProcessed"`
		Query               struct {
			StatementType       string             `json:"statementType"`
			TotalBytesProcessed number             `json:"totalBytesProcessed"`
			CacheHit            bool               `json:"cacheHit"`
			ReferencedTables    *[]tableReference  `json:"referencedTables"`
			ReferencedRoutines  []routineReference `json:"referencedRoutines"`
			DDLTargetTable      tableReference     `json:"ddlTargetTable"`
		} `json:"query"`
	} `json:"statistics"`
}

type routineReference struct {
	ProjectID string `json:"projectId"`
	DatasetID string `json:"datasetId"`
	RoutineID string `json:"routineId"`
}

// number is an int64 as BigQuery writes one: a string, or a number.
type number int64

func (n *number) UnmarshalJSON(b []byte) error {
	i, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	if err != nil && string(b) != "null" {
		return errors.New("no whole number")
	}
	*n = number(i)
	return nil
}

// readDryRun reads the answer to a dry run. An error means that BigQuery said
// nothing of the text.
func readDryRun(status int, answer []byte, project string) (*dryRun, error) {
	if status != http.StatusOK {
		message, reason := errorIn(answer)
		if message == "" {
			return nil, fmt.Errorf("jobs.insert answered %d and no text", status)
		}
		if status != http.StatusBadRequest && status != http.StatusNotFound && status != http.StatusForbidden {
			return nil, fmt.Errorf("jobs.insert answered %d", status)
		}
		d := &dryRun{Refused: message, Status: status, Reason: reason}
		switch d.Reason {
		case "rateLimitExceeded", "quotaExceeded", "backendError", "internalError":
			return nil, fmt.Errorf("jobs.insert answered %d %s", status, d.Reason)
		}
		return d, nil
	}
	var job jobFacts
	if err := json.Unmarshal(answer, &job); err != nil {
		return nil, errors.New("jobs.insert answered with something that is no job")
	}
	if e := job.Status.ErrorResult; e != nil {
		return &dryRun{Refused: e.Message, Status: http.StatusBadRequest, Reason: e.Reason}, nil
	}
	return job.query(project)
}

// query is what a job's statistics say of its query.
func (j *jobFacts) query(project string) (*dryRun, error) {
	q := &j.Statistics.Query
	d := &dryRun{StatementType: q.StatementType, HasTables: q.ReferencedTables != nil, Processed: int64(max(q.TotalBytesProcessed, j.Statistics.TotalBytesProcessed))}
	table := func(r tableReference) (*sql.Table, error) {
		c, problem := canonical(bigquery.Table{Project: r.ProjectID, Dataset: r.DatasetID, Table: r.TableID}, project)
		if problem != nil {
			return nil, errors.New("the job names a table in a form that the gateway does not know")
		}
		return &c, nil
	}
	if q.ReferencedTables != nil {
		for _, r := range *q.ReferencedTables {
			t, err := table(r)
			if err != nil {
				return nil, err
			}
			d.Tables = append(d.Tables, *t)
		}
	}
	for _, r := range q.ReferencedRoutines {
		d.Routines = append(d.Routines, r.ProjectID+"."+r.DatasetID+"."+r.RoutineID)
	}
	for _, r := range []tableReference{q.DDLTargetTable, j.Configuration.Query.DestinationTable} {
		if r.TableID != "" && !strings.HasPrefix(r.DatasetID, "_") && d.Target == nil {
			t, err := table(r)
			if err != nil {
				return nil, err
			}
			d.Target = t
		}
	}
	return d, nil
}

// dryRunKey is what an answer holds for: who asks where, and all of the
// question but the parameters' values.
func (g *Gate) dryRunKey(p *plan) [sha256.Size]byte {
	f := &p.facts
	q := sha256.Sum256([]byte(f.SQL))
	parts := []string{p.conn.Name, p.identity.Principal.URL, p.identity.Principal.Subject, p.call.Project, f.Location, string(q[:]), f.ParameterMode, parameterTypes(f.Parameters), f.WriteDisposition}
	if d := f.DefaultDataset; d != nil {
		parts = append(parts, d.Project, d.Dataset)
	}
	if t := f.Destination; t != nil {
		parts = append(parts, t.Project, t.Dataset, t.Table)
	}
	for _, c := range f.ConnectionProperties {
		parts = append(parts, c.Key, c.Value)
	}
	h := sha256.New()
	for _, s := range parts {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// parameterTypes are names and types of parameters; their values do not bear on
// which tables a query references.
func parameterTypes(parameters json.RawMessage) string {
	if len(parameters) == 0 {
		return ""
	}
	var list []struct {
		Name string          `json:"name"`
		Type json.RawMessage `json:"parameterType"`
	}
	if err := json.Unmarshal(parameters, &list); err != nil {
		return string(parameters)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return string(parameters)
	}
	return string(b)
}

// DryRuns remembers what BigQuery said, for a short time, and lets callers who
// ask the same at the same time wait for one answer. It is safe for concurrent
// use.
type DryRuns struct {
	keep time.Duration

	mu sync.Mutex
	recent[[sha256.Size]byte, *flight]
}

// flight is a question: under way until done is closed.
type flight struct {
	done    chan struct{}
	answer  *dryRun // nil where it failed
	expires time.Time
}

// NewDryRuns returns an empty memory of at most limit answers, each kept for
// that long. With a time of 0 nothing is kept.
func NewDryRuns(keep time.Duration, limit int) *DryRuns {
	return &DryRuns{keep: keep, recent: newRecent[[sha256.Size]byte, *flight](limit)}
}

// get returns the answer that there is or is under way, or asks.
func (d *DryRuns) get(ctx context.Context, key [sha256.Size]byte, now func() time.Time, ask func() (*dryRun, error)) (*dryRun, error) {
	for {
		d.mu.Lock()
		f, ok := d.find(key)
		if !ok {
			f = &flight{done: make(chan struct{})}
			d.put(key, f)
			d.mu.Unlock()
			return d.fly(key, f, now, ask)
		}
		d.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f.answer != nil && now().Before(f.expires) {
			return f.answer, nil
		}
		// It failed, for whoever asked may have left; or it is too old.
		d.mu.Lock()
		d.forget(key, f)
		d.mu.Unlock()
	}
}

func (d *DryRuns) fly(key [sha256.Size]byte, f *flight, now func() time.Time, ask func() (*dryRun, error)) (answer *dryRun, err error) {
	defer func() {
		f.expires = now().Add(d.keep)
		if answer == nil || answer.Refused != "" || d.keep == 0 {
			// A refusal is told to all who wait, and asked anew by the next.
			d.mu.Lock()
			d.forget(key, f)
			d.mu.Unlock()
			f.expires = now().Add(time.Second)
		}
		f.answer = answer
		close(f.done)
	}()
	return ask()
}

// forget needs the mutex.
func (d *DryRuns) forget(key [sha256.Size]byte, f *flight) {
	if d.young[key] == f {
		delete(d.young, key)
	}
	if d.old[key] == f {
		delete(d.old, key)
	}
}
