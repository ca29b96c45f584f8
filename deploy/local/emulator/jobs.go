package emulator

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// job is what the double knows about a job beyond the emulator.
type job struct {
	project string
	// synthetic jobs and discarded loads are the double's own.
	synthetic *synthetic
	own       map[string]any
	until     time.Time // a job of the double's own is RUNNING before
	cancelled bool
	// alias is the emulator's id of a load whose id the client chose.
	alias string
	// parent is the script that the job, whose resource is own, came from.
	parent string
	// labels are the job's: the emulator forgets them.
	labels map[string]string
	// made counts jobs, for a list in the order of their making.
	made int
	// session is the id of the BigQuery session that it ran in.
	session string
	// refs are what its query referenced when it ran; nil where it is no query,
	// or one that the double does not understand.
	refs *References
}

// Account is as whom jobs run, whatever the token.
const Account = "gateway@verbatim.iam.gserviceaccount.com"

type jobReference struct {
	ProjectID string `json:"projectId"`
	JobID     string `json:"jobId"`
	Location  string `json:"location"`
}

type jobRequest struct {
	JobReference  jobReference    `json:"jobReference"`
	Configuration json.RawMessage `json:"configuration"`
}

type jobConfiguration struct {
	DryRun bool              `json:"dryRun"`
	Labels map[string]string `json:"labels"`
	Query  *queryConfig      `json:"query"`
	Load   *struct {
		DestinationTable tableRef `json:"destinationTable"`
	} `json:"load"`
}

type tableRef struct {
	ProjectID string `json:"projectId"`
	DatasetID string `json:"datasetId"`
	TableID   string `json:"tableId"`
}

func (t tableRef) anonymous() bool { return strings.HasPrefix(t.DatasetID, "_") && t.TableID != "" }

func newID(prefix string) string { return prefix + rand.Text() }

func (d *Double) knownJob(id string) *job {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.jobs[id]
}

// maxJobs bounds what the double remembers.
const maxJobs = 100_000

// addJob remembers a job; false means that the id is taken.
func (d *Double) addJob(id string, j *job) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, taken := d.jobs[id]; taken {
		return false
	}
	if len(d.jobs) >= maxJobs {
		clear(d.jobs)
		clear(d.tables)
	}
	d.made++
	j.made = d.made
	d.jobs[id] = j
	return true
}

// query is jobs.query.
func (d *Double) query(w http.ResponseWriter, r *http.Request, project string) {
	var q struct {
		queryConfig
		DryRun    bool              `json:"dryRun"`
		Labels    map[string]string `json:"labels"`
		RequestID string            `json:"requestId"`
	}
	body, err := readJSON(r, &q)
	if err != nil {
		writeError(w, http.StatusBadRequest, "parseError", err.Error())
		return
	}
	s, ok, err := parseSynthetic(q.Query)
	if err != nil {
		writeError(w, http.StatusBadRequest, "invalidQuery", err.Error())
		return
	}
	if q.DryRun && (ok || d.proxy == nil) {
		writeJSON(w, http.StatusOK, map[string]any{"kind": queryResponse, "jobReference": map[string]any{"projectId": project, "location": "US"}, "jobComplete": true,
			"schema": syntheticSchema, "totalBytesProcessed": "0", "cacheHit": false})
		return
	}
	refs, _ := d.references(r.Context(), project, q.queryConfig)
	if ok || d.proxy == nil {
		session, known := d.session(q.sessionRequest)
		if !known {
			writeError(w, http.StatusBadRequest, "invalid", "Session is not found")
			return
		}
		id := d.idFor(project, q.RequestID)
		resource := syntheticJob(project, id, q.Query, q.Labels, session)
		if refs != nil {
			refs.put(resource)
		}
		d.addJob(id, &job{project: project, synthetic: &s, own: resource, until: time.Now().Add(s.run), session: session})
		if session != "" {
			writeJSON(w, http.StatusOK, map[string]any{"kind": queryResponse, "jobReference": map[string]any{"projectId": project, "jobId": id, "location": "US"},
				"jobComplete": true, "schema": syntheticSchema, "totalRows": "0", "totalBytesProcessed": "0", "cacheHit": false, "sessionInfo": map[string]any{"sessionId": session}})
			return
		}
		if s.run > 0 {
			incomplete(w, queryResponse, project, id)
			return
		}
		stream(w, r, s, queryResponse, project, id)
		return
	}
	replay(r, body)
	res := d.capture(r)
	// The emulator tells a failed query by 200 and errors[].
	var answer struct {
		JobReference jobReference `json:"jobReference"`
		Errors       []struct {
			Reason   string `json:"reason"`
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	if res.status == http.StatusOK && json.Unmarshal(res.body.Bytes(), &answer) == nil {
		if len(answer.Errors) > 0 {
			var errs []any
			for _, e := range answer.Errors {
				m := map[string]any{"message": e.Message, "domain": "global", "reason": e.Reason}
				if e.Location != "" {
					m["location"], m["locationType"] = e.Location, "parameter"
				}
				errs = append(errs, m)
			}
			writeErrors(w, codeOf(answer.Errors[0].Reason), answer.Errors[0].Message, errs)
			return
		}
		if id := answer.JobReference.JobID; id != "" {
			d.created(refs, q.Query)
			d.addJob(id, &job{project: project, labels: q.Labels, refs: refs})
		}
	}
	res.copyTo(w)
}

// insert is jobs.insert without upload.
func (d *Double) insert(w http.ResponseWriter, r *http.Request, project string) {
	var q jobRequest
	var c jobConfiguration
	body, err := readJSON(r, &q)
	if err == nil && len(q.Configuration) > 0 {
		err = json.Unmarshal(q.Configuration, &c)
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, "parseError", err.Error())
		return
	}
	id := q.JobReference.JobID
	var s synthetic
	own := d.proxy == nil
	if c.Query != nil {
		var found bool
		if s, found, err = parseSynthetic(c.Query.Query); err != nil {
			writeError(w, http.StatusBadRequest, "invalidQuery", err.Error())
			return
		}
		own = own || found
		if c.DryRun {
			d.dryRun(w, r, project, c, body, own)
			return
		}
	}
	var refs *References
	if c.Query != nil {
		refs, _ = d.references(r.Context(), project, *c.Query)
	}
	if id == "" {
		id = newID("job_")
		if !own {
			// The emulator chooses its own; it is learnt from the answer.
			replay(r, body)
			res := d.capture(r)
			if c.Query != nil {
				d.created(refs, c.Query.Query)
			}
			var answer struct {
				JobReference jobReference `json:"jobReference"`
			}
			if json.Unmarshal(res.body.Bytes(), &answer) == nil {
				if j := d.knownJob(answer.JobReference.JobID); j != nil {
					d.mu.Lock()
					j.refs = refs
					d.mu.Unlock()
				}
			}
			res.label(c.Labels)
			res.copyTo(w)
			return
		}
	}
	j := &job{project: project, labels: c.Labels, refs: refs}
	if own {
		if c.Query == nil {
			writeError(w, http.StatusNotImplemented, "notImplemented", "no emulator behind: only queries and uploads")
			return
		}
		session, known := d.session(c.Query.sessionRequest)
		if !known {
			writeError(w, http.StatusBadRequest, "invalid", "Session is not found")
			return
		}
		j.session = session
		j.synthetic, j.own, j.until = &s, syntheticJob(project, id, c.Query.Query, c.Labels, session), time.Now().Add(s.run)
		if refs != nil {
			refs.put(j.own)
		}
	}
	// The emulator would overwrite a job; BigQuery refuses. Dry runs leave none.
	if !c.DryRun && !d.addJob(id, j) {
		writeError(w, http.StatusConflict, "duplicate", fmt.Sprintf("Already Exists: Job %s:US.%s", project, id))
		return
	}
	if own {
		writeJSON(w, http.StatusOK, d.stateOf(j))
		return
	}
	replay(r, body)
	res := d.capture(r)
	if c.Query != nil && res.status < 400 {
		d.created(refs, c.Query.Query)
	}
	if res.status >= 400 {
		// It was refused, so the id is free again.
		d.mu.Lock()
		if d.jobs[id] == j {
			delete(d.jobs, id)
		}
		d.mu.Unlock()
	}
	res.label(c.Labels)
	res.copyTo(w)
}

// sessionRequest is what a query says of a BigQuery session.
type sessionRequest struct {
	CreateSession        bool `json:"createSession"`
	ConnectionProperties []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	} `json:"connectionProperties"`
}

// session returns the id of the session that a query runs in, empty for none;
// known is false where it names one that there is not.
func (d *Double) session(q sessionRequest) (id string, known bool) {
	for _, p := range q.ConnectionProperties {
		if p.Key == "session_id" {
			id = p.Value
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case id != "":
		return id, d.sessions[id]
	case q.CreateSession:
		id = newID("session_")
		d.sessions[id] = true
	}
	return id, true
}

// idFor returns the id of a new job of a jobs.query. A repeated requestId is
// answered with the job of the first
// (https://cloud.google.com/bigquery/docs/reference/rest/v2/jobs/query).
func (d *Double) idFor(project, request string) string {
	if request == "" {
		return newID("synthetic_")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := project + "." + request
	if d.asked[key] == "" {
		d.asked[key] = newID("synthetic_")
	}
	return d.asked[key]
}

func syntheticJob(project, id, sql string, labels map[string]string, session string) map[string]any {
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	statistics := map[string]any{"creationTime": now, "startTime": now, "endTime": now, "query": map[string]any{"statementType": "SELECT", "totalBytesProcessed": "0", "cacheHit": false}}
	if session != "" {
		statistics["sessionInfo"] = map[string]any{"sessionId": session}
	}
	return map[string]any{
		"user_email": Account, "statistics": statistics,
		"kind": "bigquery#job", "id": project + ":US." + id, "jobReference": map[string]any{"projectId": project, "jobId": id, "location": "US"},
		"configuration": map[string]any{"jobType": "QUERY", "labels": labels, "query": map[string]any{"query": sql, "useLegacySql": false,
			"destinationTable": map[string]any{"projectId": project, "datasetId": "_synthetic", "tableId": "anon" + id}}},
		"status": map[string]any{"state": "DONE"},
	}
}

// job is jobs.get.
func (d *Double) job(w http.ResponseWriter, r *http.Request, project, id string) {
	j := d.knownJob(id)
	switch {
	case j != nil && j.own != nil:
		writeJSON(w, http.StatusOK, d.stateOf(j))
	case j != nil && j.alias != "":
		r.URL.Path = "/bigquery/v2/projects/" + project + "/jobs/" + j.alias
		res := d.capture(r)
		res.replaceAll(j.alias, id)
		res.label(j.labels)
		res.copyTo(w)
	case d.proxy == nil:
		writeError(w, http.StatusNotFound, "notFound", fmt.Sprintf("Not found: Job %s:%s", project, id))
	default:
		res := d.capture(r)
		var labels map[string]string
		if j != nil {
			labels = j.labels
			d.mu.Lock()
			refs := j.refs
			d.mu.Unlock()
			res.refer(refs)
		}
		res.label(labels)
		res.copyTo(w)
	}
}

// stateOf is a job of the double's own as it stands now.
func (d *Double) stateOf(j *job) map[string]any {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := maps.Clone(j.own)
	switch {
	case j.cancelled:
		why := map[string]any{"reason": "stopped", "message": "Job execution was cancelled: User requested cancellation"}
		now["status"] = map[string]any{"state": "DONE", "errorResult": why, "errors": []any{why}}
	case time.Now().Before(j.until):
		now["status"] = map[string]any{"state": "RUNNING"}
	}
	return now
}

func (d *Double) running(j *job) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !j.cancelled && time.Now().Before(j.until)
}

// incomplete is the answer to who asked for the result of a job that runs.
func incomplete(w http.ResponseWriter, kind, project, id string) {
	writeJSON(w, http.StatusOK, map[string]any{"kind": kind, "jobReference": map[string]any{"projectId": project, "jobId": id, "location": "US"}, "jobComplete": false})
}

// cancel is jobs.cancel: most jobs here are done when they are told of.
func (d *Double) cancel(w http.ResponseWriter, r *http.Request, project, id string) {
	if j := d.knownJob(id); j != nil && j.own != nil {
		d.mu.Lock()
		j.cancelled = j.cancelled || time.Now().Before(j.until)
		d.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]any{"kind": "bigquery#jobCancelResponse", "job": d.stateOf(j)})
		return
	}
	d.forward(w, r)
}

// children is jobs.list with a parentJobId. The emulator makes no jobs of a
// script's statements: the double has one for the last, which the script's
// result is of. It has not the script's labels, for nothing promises them.
func (d *Double) children(w http.ResponseWriter, r *http.Request, project, parent string) {
	list := map[string]any{"kind": "bigquery#jobList", "jobs": []any{}}
	r.URL.Path, r.URL.RawQuery = "/bigquery/v2/projects/"+project+"/jobs/"+parent, ""
	var res captured
	d.job(&res, r, project, parent)
	if res.status != http.StatusOK {
		res.copyTo(w)
		return
	}
	var script map[string]any
	if err := json.Unmarshal(res.body.Bytes(), &script); err != nil {
		writeError(w, http.StatusInternalServerError, "internalError", err.Error())
		return
	}
	field := func(m map[string]any, key string) map[string]any {
		v, _ := m[key].(map[string]any)
		return v
	}
	statistics, config, status := field(script, "statistics"), field(script, "configuration"), field(script, "status")
	if field(statistics, "query")["statementType"] != "SCRIPT" || status["state"] != "DONE" || status["errorResult"] != nil {
		writeJSON(w, http.StatusOK, list)
		return
	}
	id := "script_job_" + parent + "_0"
	field(script, "jobReference")["jobId"] = id
	script["id"] = project + ":US." + id
	field(statistics, "query")["statementType"] = "SELECT"
	statistics["parentJobId"] = parent
	statistics["scriptStatistics"] = map[string]any{"evaluationKind": "STATEMENT",
		"stackFrames": []any{map[string]any{"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1, "text": field(config, "query")["query"]}}}
	delete(config, "labels")
	delete(script, "selfLink")
	d.addJob(id, &job{project: project, own: script, parent: parent})
	list["jobs"] = []any{script}
	writeJSON(w, http.StatusOK, list)
}

// results is jobs.getQueryResults.
func (d *Double) results(w http.ResponseWriter, r *http.Request, project, id string) {
	if j := d.knownJob(id); j != nil && j.parent != "" {
		r.URL.Path = "/bigquery/v2/projects/" + project + "/queries/" + j.parent
		var res captured
		d.results(&res, r, project, j.parent)
		res.replaceAll(`"`+j.parent+`"`, `"`+id+`"`)
		res.copyTo(w)
		return
	}
	if j := d.knownJob(id); j != nil && j.synthetic != nil {
		if d.running(j) {
			incomplete(w, resultsResponse, project, id)
			return
		}
		if r.URL.Query().Get("maxResults") == "0" {
			emptyResults(w, *j.synthetic, project, id)
			return
		}
		stream(w, r, *j.synthetic, resultsResponse, project, id)
		return
	}
	if d.proxy == nil {
		writeError(w, http.StatusNotFound, "notFound", fmt.Sprintf("Not found: Job %s:%s", project, id))
		return
	}
	res := d.capture(r)
	if res.status == http.StatusNotFound {
		// The emulator keeps no result of a failed job; BigQuery answers with
		// the job's error.
		_, b, err := d.ask(r, http.MethodGet, "/bigquery/v2/projects/"+url.PathEscape(project)+"/jobs/"+url.PathEscape(id), nil, nil, 0)
		var failed struct {
			Status struct {
				ErrorResult *struct {
					Reason  string `json:"reason"`
					Message string `json:"message"`
				} `json:"errorResult"`
			} `json:"status"`
		}
		if err == nil && json.Unmarshal(b, &failed) == nil && failed.Status.ErrorResult != nil {
			e := failed.Status.ErrorResult
			writeError(w, codeOf(e.Reason), e.Reason, e.Message)
			return
		}
	}
	res.copyTo(w)
}

// rows is tabledata.list. The emulator does not keep anonymous result tables:
// their rows are read from the job.
func (d *Double) rows(w http.ResponseWriter, r *http.Request, project, dataset, table string) {
	t := tableRef{DatasetID: dataset, TableID: table}
	if !t.anonymous() {
		d.forward(w, r)
		return
	}
	d.mu.Lock()
	id := d.tables[dataset+"."+table]
	if id == "" && d.jobs[strings.TrimPrefix(table, "anon")] != nil {
		id = strings.TrimPrefix(table, "anon")
	}
	d.mu.Unlock()
	if id == "" {
		writeError(w, http.StatusNotFound, "notFound", fmt.Sprintf("Not found: Table %s:%s.%s", project, dataset, table))
		return
	}
	r.URL.Path = "/bigquery/v2/projects/" + project + "/queries/" + id
	var res captured
	d.results(&res, r, project, id)
	var page map[string]json.RawMessage
	if res.status != http.StatusOK || json.Unmarshal(res.body.Bytes(), &page) != nil {
		res.copyTo(w)
		return
	}
	list := map[string]any{"kind": "bigquery#tableDataList"}
	for _, k := range []string{"totalRows", "rows", "pageToken"} {
		if v, ok := page[k]; ok {
			list[k] = v
		}
	}
	writeJSON(w, http.StatusOK, list)
}

// learn reads jobs' answers on their way to the client: which job an anonymous
// table belongs to.
func (d *Double) learn(res *http.Response) error {
	path := res.Request.URL.Path
	if res.StatusCode != http.StatusOK || !strings.Contains(path, "/jobs") {
		return nil
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil {
		return err
	}
	res.Body = io.NopCloser(bytes.NewReader(b))
	var answer struct {
		JobReference  jobReference     `json:"jobReference"`
		Configuration jobConfiguration `json:"configuration"`
	}
	if json.Unmarshal(b, &answer) == nil && answer.JobReference.JobID != "" && !answer.Configuration.DryRun {
		id := answer.JobReference.JobID
		d.addJob(id, &job{project: answer.JobReference.ProjectID, labels: answer.Configuration.Labels})
		if q := answer.Configuration.Query; q != nil && q.DestinationTable.anonymous() {
			d.mu.Lock()
			d.tables[q.DestinationTable.DatasetID+"."+q.DestinationTable.TableID] = id
			d.mu.Unlock()
		}
	}
	return nil
}

// capture forwards a request and keeps the answer.
func (d *Double) capture(r *http.Request) *captured {
	var c captured
	d.forward(&c, r)
	return &c
}

// captured is a response that is held until it is known what to make of it.
type captured struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (c *captured) Header() http.Header {
	if c.header == nil {
		c.header = http.Header{}
	}
	return c.header
}

func (c *captured) WriteHeader(code int) {
	if c.status == 0 && code >= 200 {
		c.status = code
	}
}

func (c *captured) Write(b []byte) (int, error) {
	c.WriteHeader(http.StatusOK)
	return c.body.Write(b)
}

func (c *captured) replaceAll(old, new string) {
	b := bytes.ReplaceAll(c.body.Bytes(), []byte(old), []byte(new))
	c.body = *bytes.NewBuffer(b)
}

// label puts labels, and who ran it, into a job's resource.
func (c *captured) label(labels map[string]string) {
	v, err := decode(c.body.Bytes())
	m, ok := v.(map[string]any)
	if err != nil || !ok || c.status != http.StatusOK || m["jobReference"] == nil {
		return
	}
	m["user_email"] = Account
	if config, ok := m["configuration"].(map[string]any); ok && len(labels) > 0 {
		config["labels"] = labels
	}
	c.encode(m)
}

// decode reads JSON and keeps its numbers as they are.
func decode(b []byte) (any, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return v, d.Decode(&v)
}

// encode replaces the body.
func (c *captured) encode(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	c.body.Reset()
	c.body.Write(b)
}

func (c *captured) copyTo(w http.ResponseWriter) {
	for k, v := range c.header {
		if k != "Content-Length" && k != "Date" {
			w.Header()[k] = v
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(c.body.Len()))
	if c.status == 0 {
		c.status = http.StatusBadGateway
	}
	w.WriteHeader(c.status)
	_, _ = w.Write(c.body.Bytes())
}
