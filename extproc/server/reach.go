package server

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// A decision that rests on a dry run is about the views and routines of that
// moment. Between it and the job somebody can change one of them. So where a
// view or routine is involved, what the finished job says that it referenced is
// held against what was decided on, before the first row goes out: on the
// replica that decided against its list, on another against the label that the
// list was summed up in.

// labelReach is a job's label that sums the list up.
const labelReach = "verbatim_reach"

// tellReach notes what a job's label says. A script's own jobs have none: they
// are held against what the script is.
func (g *Gate) tellReach(key bigquery.Key, job *jobResource) {
	if g.Reaches != nil && job.Statistics.ParentJobID == "" {
		g.Reaches.told(key, job.Configuration.Labels[labelReach])
	}
}

// askReach asks for a job's label, where this replica does not know of it.
func (g *Gate) askReach(ctx context.Context, j *record.Job, probe prober) error {
	job, err := g.askJob(ctx, j, probe)
	if err == nil {
		g.tellReach(bigquery.JobKey(*j), job)
	}
	return err
}

// reach is what a job may turn out to have used.
type reach struct {
	tables *names // nil on a replica that knows the label alone
	listed []string
	label  string
}

// foundUses is what the finished job used, for the outcome.
type foundUses struct {
	reads, writes []record.TableUse
	functions     []string
}

// reaches notes what the job is held against, where the dry run saw more than
// the text names.
func (p *plan) reaches() {
	dry := p.uses.dry
	if dry == nil || !p.queries() || p.facts.DryRun || len(dry.OnlyDryRun) == 0 && len(dry.Routines) == 0 {
		return
	}
	r := &reach{tables: newNames()}
	for i := range p.uses.reads {
		r.tables.add(p.uses.reads[i].Name())
	}
	for i := range p.uses.writes {
		r.tables.add(p.uses.writes[i].Name())
	}
	for i := range dry.Tables {
		r.tables.add(dry.Tables[i].Name())
		r.listed = append(r.listed, dry.Tables[i].Name())
	}
	p.reach = r
}

// reachLabel sums a list of tables up in a job's label.
func (g *Gate) reachLabel(project string, tables []string) string {
	return g.mac(append([]string{"verbatim/reach/1", project}, slices.Compact(slices.Sorted(slices.Values(tables)))...)...)
}

// nameJob sees to it that the answer names its job, for the job is asked about.
func (p *plan) nameJob() {
	path, query, ok := strings.Cut(p.path, "?")
	if !ok || p.call.Method != "bigquery.jobs.query" {
		return
	}
	q, err := url.ParseQuery(query)
	fields := q.Get("fields")
	if err != nil || fields == "" || fields == "*" {
		return
	}
	q.Set("fields", fields+",jobReference")
	p.path = path + "?" + q.Encode()
}

// reached takes up what is known of a job whose result is asked for. The result
// in a table is that of a finished job, which is held against the list at once.
func (g *Gate) reached(ctx context.Context, p *plan, probe prober) *refusal {
	if g.Reaches == nil {
		return nil
	}
	job, ended := p.route.Job, true
	switch {
	case p.call.Method == "bigquery.jobs.getQueryResults" && job != nil:
		ended = false // its rows tell
	case p.storage != nil && job != nil:
	case p.route.Table != "" && strings.HasPrefix(p.call.Dataset, "_"):
		t := bigquery.Table{Project: p.call.Project, Dataset: p.call.Dataset, Table: p.call.Table}
		behind, ok := g.Reaches.behind(bigquery.TableKey(t))
		if !ok {
			return nil
		}
		job = &behind
	default:
		return nil
	}
	key := bigquery.JobKey(*job)
	r, known := g.Reaches.of(key)
	if !known {
		// It is an own job; nobody has looked at its label yet.
		if err := g.askReach(ctx, job, probe); err != nil {
			return unchecked()
		}
		r, _ = g.Reaches.of(key)
	}
	p.reach = r
	if !ended || r == nil {
		return nil
	}
	defer func() { p.reach = nil }()
	return g.finished(ctx, p, bigquery.ResponseFacts{Job: job}, probe)
}

func unchecked() *refusal {
	return &refusal{status: http.StatusServiceUnavailable, reason: bigquery.ReasonBackendError, code: "job_unchecked", by: "dry_run",
		message: "What the finished query read could not be asked of BigQuery, so its rows are not shown. Ask for the result again in a moment."}
}

// finished compares the finished job with what was decided on.
func (g *Gate) finished(ctx context.Context, p *plan, f bigquery.ResponseFacts, probe prober) *refusal {
	job := f.Job
	if job == nil {
		job = p.call.Job
	}
	if p.reach == nil || job == nil || job.ID == "" {
		return unchecked()
	}
	j, err := g.askFinished(ctx, job, probe)
	var d *dryRun
	if err == nil {
		d, err = j.query(p.call.Project)
	}
	if err != nil {
		g.Logger.Warn("finished job not compared", "job", job.String(), "error", err)
		return unchecked()
	}
	p.found = d.uses()
	same, beyond := len(d.Tables) < mostTables, 0
	if p.reach.tables == nil {
		same = same && g.reachLabel(p.call.Project, d.names()) == p.reach.label
	} else {
		same = same && (len(d.Tables) > 0 || len(p.reach.listed) == 0)
		for _, u := range p.found.reads {
			if !p.reach.tables.has(u.Table) {
				beyond++
			}
		}
	}
	if same && beyond == 0 {
		g.Reaches.held(bigquery.JobKey(*job))
		return nil
	}
	if g.observes(p) {
		return nil // the tables are on record, in the outcome
	}
	g.Logger.Warn("a finished job read other tables than its dry run", "job", job.String(), "tables", beyond)
	return &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "job_reached_more", by: "dry_run",
		message: "What the finished query read is not what was decided on: a view or routine was changed in between, or BigQuery gives no whole list of its tables. Its rows are not shown; run the query again."}
}

// uses is what a finished job says that it used.
func (d *dryRun) uses() *foundUses {
	u := &foundUses{functions: d.Routines}
	for _, n := range d.names() {
		u.reads = append(u.reads, record.TableUse{Table: n, Source: fromJob})
	}
	if d.Target != nil {
		u.writes = []record.TableUse{{Table: fullName(d.Target), Source: fromJob}}
	}
	return u
}

func (d *dryRun) names() []string {
	var out []string
	for i := range d.Tables {
		out = append(out, fullName(&d.Tables[i]))
	}
	return distinct(out)
}

func fullName(t *sql.Table) string {
	return strings.Join([]string{t.Project, t.Dataset, t.Table}, ".")
}

// askFinished asks for what a job referenced.
func (g *Gate) askFinished(ctx context.Context, j *record.Job, probe prober) (*jobFacts, error) {
	const fields = "configuration(query(destinationTable)),status(state),statistics(totalBytesProcessed,query(statementType,totalBytesProcessed,cacheHit,referencedTables,referencedRoutines,ddlTargetTable))"
	var job jobFacts
	if err := readJob(ctx, j, "tables of the finished job", fields, probe, &job); err != nil {
		return nil, err
	}
	if job.Status.State != "DONE" {
		return nil, fmt.Errorf("the job is %q, and its rows are there", job.Status.State)
	}
	return &job, nil
}

// Reaches knows on this replica which jobs are to be held against a list of
// tables. What it has forgotten it says it does not know, and then the job's
// label is asked for. It is safe for concurrent use.
type Reaches struct {
	mu                           sync.Mutex
	recent[bigquery.Key, *reach] // nil: nothing is due
	results                      map[bigquery.Key]record.Job
	order                        []bigquery.Key // of results
}

// NewReaches returns an empty register for about limit jobs.
func NewReaches(limit int) *Reaches {
	return &Reaches{recent: newRecent[bigquery.Key, *reach](limit), results: map[bigquery.Key]record.Job{}}
}

// made notes a job that this replica has made and that is to be compared.
func (r *Reaches) made(key bigquery.Key, what *reach) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(key, what)
}

// told notes what a job's label says, unless this replica knows better.
func (r *Reaches) told(key bigquery.Key, label string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.find(key); known {
		return
	}
	if label == "" {
		r.put(key, nil)
		return
	}
	r.put(key, &reach{label: label})
}

// child notes that a job came of a script: it is held against what that is.
func (r *Reaches) child(key, script bigquery.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what, _ := r.find(script)
	r.put(key, what)
}

// held notes that a job was compared and is what was decided on.
func (r *Reaches) held(key bigquery.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(key, nil)
}

// of returns what a job is to be held against, nil for nothing. known is false
// where this replica cannot say.
func (r *Reaches) of(key bigquery.Key) (what *reach, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what, known = r.find(key)
	// Jobs that others made were told of when their owner was asked for, and of
	// those that were made here only the ones to compare are noted.
	return what, known || !r.forgot
}

// result notes which job a table holds the result of, where that is to be
// compared.
func (r *Reaches) result(table bigquery.Key, job record.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what, known := r.find(bigquery.JobKey(job))
	if what == nil && (known || !r.forgot) {
		delete(r.results, table)
		return
	}
	if _, ok := r.results[table]; !ok {
		r.order = append(r.order, table)
	}
	r.results[table] = job
	for len(r.order) > r.limit {
		delete(r.results, r.order[0])
		r.order = r.order[1:]
	}
}

// behind returns the job whose result a table holds.
func (r *Reaches) behind(table bigquery.Key) (record.Job, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j, ok := r.results[table]
	return j, ok
}
