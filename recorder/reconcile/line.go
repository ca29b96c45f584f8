package reconcile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Form is what an entry of a job list is.
type Form string

// The forms of entries. They are told apart by their fields.
const (
	// FormJobs is a row of INFORMATION_SCHEMA.JOBS, JOBS_BY_PROJECT and the like
	// (https://cloud.google.com/bigquery/docs/information-schema-jobs).
	FormJobs Form = "information_schema"
	// FormMetadata is an entry of Cloud Audit Logs whose protoPayload.metadata is
	// a BigQueryAuditMetadata with jobInsertion, jobChange or jobDeletion
	// (https://cloud.google.com/bigquery/docs/reference/auditlogs/rest/Shared.Types/BigQueryAuditMetadata).
	FormMetadata Form = "audit_metadata"
	// FormAuditData is the older entry whose protoPayload.serviceData is an
	// AuditData with jobCompletedEvent, jobInsertResponse or jobQueryResponse
	// (https://cloud.google.com/bigquery/docs/reference/auditlogs/rest/Shared.Types/AuditData).
	FormAuditData Form = "audit_data"
	// FormResource is a job as jobs.get and jobs.list of the REST API give it
	// (https://cloud.google.com/bigquery/docs/reference/rest/v2/Job).
	FormResource Form = "job_resource"
)

// Entry is what one entry says: a job, the deletion of one, or, where both are
// nil, an event of another kind.
type Entry struct {
	Form    Form
	Job     *Job
	Deleted *Job
	Event   string // the event's name where it is of no job
}

// ParseEntry reads one entry of a job list, a JSON object of one of the forms.
// Both kinds of audit logs are read as Cloud Logging writes them into files and
// buckets (protoPayload) and as its sinks write them into BigQuery tables
// (protopayload_auditlog, with metadataJson). Numbers may be strings. The error
// says what is wrong with it.
func ParseEntry(b []byte) (Entry, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return Entry{}, fmt.Errorf("no JSON object: %w", short(err))
	}
	has := func(name string) bool {
		v, ok := fields[name]
		return ok && !bytes.Equal(bytes.TrimSpace(v), []byte("null"))
	}
	switch {
	case has("job_id"):
		return jobsRow(b, fields)
	case has("protoPayload"):
		return audit(b, fields["protoPayload"])
	case has("protopayload_auditlog"):
		return audit(b, fields["protopayload_auditlog"])
	case has("jobReference"):
		return resource(b)
	}
	return Entry{}, errors.New("neither job_id, protoPayload, protopayload_auditlog nor jobReference stands in it")
}

// short leaves out what encoding/json quotes of the input's Go types.
func short(err error) error {
	var t *json.UnmarshalTypeError
	if errors.As(err, &t) {
		if t.Field == "" {
			return fmt.Errorf("a JSON %s stands where an object is wanted", t.Value)
		}
		return fmt.Errorf("%s: a JSON %s has no place there", t.Field, t.Value)
	}
	return err
}

func jobsRow(b []byte, fields map[string]json.RawMessage) (Entry, error) {
	var r struct {
		JobID     word  `json:"job_id"`
		Project   word  `json:"project_id"`
		Location  word  `json:"location"`
		User      word  `json:"user_email"`
		Principal word  `json:"principal_subject"`
		Query     *word `json:"query"`
		Labels    pairs `json:"labels"`
		Created   stamp `json:"creation_time"`
		Parent    word  `json:"parent_job_id"`
		Statement word  `json:"statement_type"`
		Type      word  `json:"job_type"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Entry{}, fmt.Errorf("job row: %w", short(err))
	}
	j := &Job{
		Project: string(r.Project), Location: string(r.Location), ID: string(r.JobID), Account: string(r.User), Created: r.Created.Time,
		Parent: string(r.Parent), Type: string(r.Type), Statement: string(r.Statement), Labels: r.Labels,
	}
	if j.Account == "" {
		j.Account = string(r.Principal)
	}
	if r.Query != nil {
		s := string(*r.Query)
		j.SQL = &s
	} else if _, ok := fields["query"]; ok {
		j.SQL = new(string) // NULL: a job that has none
	}
	if _, ok := fields["labels"]; ok && j.Labels == nil {
		j.Labels = map[string]string{}
	}
	// "A NULL value indicates a background job."
	_, typed := fields["job_type"]
	j.Background = typed && j.Type == ""
	return Entry{Form: FormJobs, Job: j}, j.check()
}

// check refuses a job that cannot be named.
func (j *Job) check() error {
	switch {
	case j.ID == "":
		return errors.New("the job has no id")
	case j.Project == "":
		return errors.New("the job has no project")
	}
	return nil
}

// sqlOf keeps the SQL of query jobs: an empty one is one that is not told.
func (j *Job) sqlOf(s word, truncated bool) {
	if s != "" {
		text := string(s)
		j.SQL, j.Truncated = &text, truncated
	}
}

func resource(b []byte) (Entry, error) {
	var r struct {
		Reference struct {
			Project  word `json:"projectId"`
			ID       word `json:"jobId"`
			Location word `json:"location"`
		} `json:"jobReference"`
		User          word `json:"user_email"`
		Principal     word `json:"principal_subject"`
		Configuration *struct {
			Type   word  `json:"jobType"`
			DryRun flag  `json:"dryRun"`
			Labels pairs `json:"labels"`
			Query  *struct {
				Query word `json:"query"`
			} `json:"query"`
		} `json:"configuration"`
		Statistics struct {
			Created stamp `json:"creationTime"`
			Parent  word  `json:"parentJobId"`
			Query   struct {
				Statement word `json:"statementType"`
			} `json:"query"`
		} `json:"statistics"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Entry{}, fmt.Errorf("job: %w", short(err))
	}
	j := &Job{
		Project: string(r.Reference.Project), Location: string(r.Reference.Location), ID: string(r.Reference.ID), Account: string(r.User),
		Created: r.Statistics.Created.Time, Parent: string(r.Statistics.Parent), Statement: string(r.Statistics.Query.Statement),
	}
	if j.Account == "" {
		j.Account = string(r.Principal)
	}
	if c := r.Configuration; c != nil {
		j.Type, j.DryRun, j.Labels = string(c.Type), bool(c.DryRun), c.Labels
		if j.Labels == nil {
			j.Labels = map[string]string{} // the API leaves an empty map out
		}
		if c.Query != nil {
			j.sqlOf(c.Query.Query, false)
		}
	}
	return Entry{Form: FormResource, Job: j}, j.check()
}

// payload is an AuditLog.
type payload struct {
	Service        word `json:"serviceName"`
	Method         word `json:"methodName"`
	Authentication struct {
		Email   word `json:"principalEmail"`
		Subject word `json:"principalSubject"`
	} `json:"authenticationInfo"`
	Status struct {
		Code number `json:"code"`
	} `json:"status"`
	Metadata     json.RawMessage `json:"metadata"`
	MetadataJSON word            `json:"metadataJson"`
	ServiceData  json.RawMessage `json:"serviceData"`
	Exported     json.RawMessage `json:"servicedata_v1_bigquery"`
}

// alreadyExists is ALREADY_EXISTS of google.rpc.Code.
const alreadyExists = 6

func audit(b, raw []byte) (Entry, error) {
	var p payload
	if err := json.Unmarshal(raw, &p); err != nil {
		return Entry{}, fmt.Errorf("audit log: %w", short(err))
	}
	var entry struct {
		Resource struct {
			Labels struct {
				Location word `json:"location"`
			} `json:"labels"`
		} `json:"resource"`
		Timestamp stamp `json:"timestamp"`
	}
	if err := json.Unmarshal(b, &entry); err != nil {
		return Entry{}, fmt.Errorf("audit log: %w", short(err))
	}
	if s := string(p.Service); s != "" && s != "bigquery.googleapis.com" {
		return Entry{Form: FormMetadata, Event: "service " + s}, nil
	}
	metadata := []byte(p.Metadata)
	if p.MetadataJSON != "" {
		metadata = []byte(p.MetadataJSON)
	}
	var e Entry
	var err error
	switch {
	case object(metadata):
		e, err = auditMetadata(metadata, &p)
	case object(p.ServiceData):
		e, err = auditData(p.ServiceData)
	case object(p.Exported):
		e, err = auditData(p.Exported)
	case p.Status.Code != 0:
		return Entry{Form: FormMetadata, Event: "request that failed, without details"}, nil
	default:
		return Entry{}, fmt.Errorf("the audit log of %q has neither metadata nor serviceData", p.Method)
	}
	if err != nil || e.Job == nil {
		return e, err
	}
	j := e.Job
	if j.Account = string(p.Authentication.Email); j.Account == "" {
		j.Account = string(p.Authentication.Subject)
	}
	if j.Location == "" {
		j.Location = string(entry.Resource.Labels.Location)
	}
	if j.Created.IsZero() {
		j.Created = entry.Timestamp.Time
	}
	return e, j.check()
}

func object(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) }

// auditJob is BigQueryAuditMetadata.Job.
type auditJob struct {
	Name   word `json:"jobName"` // projects/PROJECT/jobs/ID
	Config struct {
		Type  word `json:"type"` // QUERY, COPY, EXPORT, IMPORT
		Query *struct {
			Query     word `json:"query"`
			Truncated flag `json:"queryTruncated"`
			Statement word `json:"statementType"`
		} `json:"queryConfig"`
		Labels pairs `json:"labels"`
	} `json:"jobConfig"`
	Stats struct {
		Created stamp `json:"createTime"`
		Parent  word  `json:"parentJobName"`
	} `json:"jobStats"`
}

// auditTypes are the words of the job list for those of the audit log.
var auditTypes = map[string]string{"EXPORT": "EXTRACT", "IMPORT": "LOAD", "TYPE_UNSPECIFIED": ""}

func auditMetadata(b []byte, p *payload) (Entry, error) {
	var m struct {
		Insertion *struct {
			Job *auditJob `json:"job"`
		} `json:"jobInsertion"`
		Change *struct {
			Job *auditJob `json:"job"`
		} `json:"jobChange"`
		Deletion *struct {
			Name word `json:"jobName"`
		} `json:"jobDeletion"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return Entry{}, fmt.Errorf("audit metadata: %w", short(err))
	}
	e := Entry{Form: FormMetadata}
	var from *auditJob
	switch {
	case m.Deletion != nil:
		project, id, err := jobName(string(m.Deletion.Name))
		e.Deleted = &Job{Project: project, ID: id, Account: string(p.Authentication.Email)}
		return e, err
	case m.Insertion != nil && p.Status.Code == alreadyExists:
		// It names the job that was there before, with the SQL of this request.
		e.Event = "jobInsertion refused, the id is taken"
		return e, nil
	case m.Insertion != nil:
		from = m.Insertion.Job
	case m.Change != nil:
		from = m.Change.Job
	default:
		e.Event = event(b)
		return e, nil
	}
	if from == nil {
		return e, errors.New("audit metadata: the event names no job")
	}
	project, id, err := jobName(string(from.Name))
	if err != nil {
		return e, err
	}
	kind := string(from.Config.Type)
	if t, ok := auditTypes[kind]; ok {
		kind = t
	}
	j := &Job{Project: project, ID: id, Type: kind, Created: from.Stats.Created.Time, Labels: from.Config.Labels}
	if j.Labels == nil {
		j.Labels = map[string]string{} // JSON of a message leaves an empty map out
	}
	if q := from.Config.Query; q != nil {
		j.Statement = string(q.Statement)
		j.sqlOf(q.Query, bool(q.Truncated))
	}
	if from.Stats.Parent != "" {
		if _, j.Parent, err = jobName(string(from.Stats.Parent)); err != nil {
			return e, err
		}
	}
	e.Job = j
	return e, nil
}

// event names the event of an entry that is of no job.
func event(b []byte) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return "unnamed"
	}
	name := ""
	for k, v := range fields {
		if k != "@type" && k != "firstPartyAppMetadata" && object(v) && (name == "" || k < name) {
			name = k
		}
	}
	if name == "" {
		return "unnamed"
	}
	if len(name) > 64 {
		name = name[:64]
	}
	return name
}

// jobName reads "projects/PROJECT/jobs/ID".
func jobName(s string) (project, id string, err error) {
	rest, ok := strings.CutPrefix(s, "projects/")
	project, id, found := strings.Cut(rest, "/jobs/")
	if !ok || !found || project == "" || id == "" || strings.Contains(id, "/") || strings.Contains(project, "/") {
		return "", "", fmt.Errorf("audit metadata: the job's name %.80q is not projects/PROJECT/jobs/ID", s)
	}
	return project, id, nil
}

// dataJob is Job of AuditData.
type dataJob struct {
	Name struct {
		Project  word `json:"projectId"`
		ID       word `json:"jobId"`
		Location word `json:"location"`
	} `json:"jobName"`
	Configuration struct {
		Query *struct {
			Query     word `json:"query"`
			Statement word `json:"statementType"`
		} `json:"query"`
		Load    json.RawMessage `json:"load"`
		Extract json.RawMessage `json:"extract"`
		Copy    json.RawMessage `json:"tableCopy"`
		DryRun  flag            `json:"dryRun"`
		Labels  pairs           `json:"labels"`
	} `json:"jobConfiguration"`
	Statistics struct {
		Created stamp `json:"createTime"`
	} `json:"jobStatistics"`
}

func auditData(b []byte) (Entry, error) {
	type holder struct {
		Job      *dataJob `json:"job"`
		Resource *dataJob `json:"resource"`
	}
	var m struct {
		Completed *holder `json:"jobCompletedEvent"`
		Inserted  *holder `json:"jobInsertResponse"`
		Queried   *holder `json:"jobQueryResponse"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return Entry{}, fmt.Errorf("audit data: %w", short(err))
	}
	e := Entry{Form: FormAuditData}
	var from *dataJob
	switch {
	case m.Completed != nil:
		from = m.Completed.Job
	case m.Inserted != nil:
		from = m.Inserted.Resource
	case m.Queried != nil:
		from = m.Queried.Job
	default:
		e.Event = event(b)
		return e, nil
	}
	if from == nil || from.Name.ID == "" && m.Completed == nil {
		// A request that was refused, or a dry run, made no job.
		e.Event = "request that made no job"
		return e, nil
	}
	c := &from.Configuration
	j := &Job{
		Project: string(from.Name.Project), Location: string(from.Name.Location), ID: string(from.Name.ID),
		Created: from.Statistics.Created.Time, Labels: c.Labels, DryRun: bool(c.DryRun),
	}
	if j.Labels == nil {
		j.Labels = map[string]string{}
	}
	switch {
	case c.Query != nil:
		j.Type, j.Statement = "QUERY", string(c.Query.Statement)
		j.sqlOf(c.Query.Query, false)
	case object(c.Load):
		j.Type = "LOAD"
	case object(c.Extract):
		j.Type = "EXTRACT"
	case object(c.Copy):
		j.Type = "COPY"
	}
	e.Job = j
	return e, nil
}

// word is a string; a number or bool is taken as it is written.
type word string

func (w *word) UnmarshalJSON(b []byte) error {
	switch {
	case bytes.Equal(b, []byte("null")):
		return nil
	case len(b) > 0 && b[0] == '"':
		return json.Unmarshal(b, (*string)(w))
	case len(b) > 0 && (b[0] == '{' || b[0] == '['):
		return errors.New("an object or array stands where text is wanted")
	}
	*w = word(b)
	return nil
}

// flag is a bool, or one as a string.
type flag bool

func (f *flag) UnmarshalJSON(b []byte) error {
	var w word
	if err := w.UnmarshalJSON(b); err != nil {
		return err
	}
	switch w {
	case "", "false":
	case "true":
		*f = true
	default:
		return fmt.Errorf("%.20q is neither true nor false", string(w))
	}
	return nil
}

// number is a whole number, or one as a string.
type number int64

func (n *number) UnmarshalJSON(b []byte) error {
	var w word
	if err := w.UnmarshalJSON(b); err != nil || w == "" {
		return err
	}
	v, err := strconv.ParseInt(string(w), 10, 64)
	if err != nil {
		return fmt.Errorf("%.20q is no whole number", string(w))
	}
	*n = number(v)
	return nil
}

// pairs are labels: an object, or an array of objects with key and value.
type pairs map[string]string

func (p *pairs) UnmarshalJSON(b []byte) error {
	if object(b) {
		m := map[string]word{}
		if err := json.Unmarshal(b, &m); err != nil {
			return err
		}
		*p = pairs{}
		for k, v := range m {
			(*p)[k] = string(v)
		}
		return nil
	}
	var list []struct {
		Key   word `json:"key"`
		Value word `json:"value"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return errors.New("labels are neither an object nor an array of key and value")
	}
	if list == nil {
		return nil
	}
	*p = pairs{}
	for _, l := range list {
		(*p)[string(l.Key)] = string(l.Value)
	}
	return nil
}

// stamp is a moment: RFC 3339, as BigQuery prints timestamps, or a number of
// seconds, milliseconds, microseconds or nanoseconds since 1970, which their
// size tells apart.
type stamp struct{ time.Time }

var stampForms = []string{
	time.RFC3339Nano, "2006-01-02 15:04:05 MST", "2006-01-02 15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05-07",
	"2006-01-02T15:04:05",
}

func (s *stamp) UnmarshalJSON(b []byte) error {
	var w word
	if err := w.UnmarshalJSON(b); err != nil || w == "" {
		return err
	}
	t := string(w)
	for _, f := range stampForms {
		if at, err := time.Parse(f, t); err == nil {
			if strings.HasSuffix(f, "MST") && !strings.HasSuffix(t, " UTC") {
				continue // other abbreviations do not say how far they are off
			}
			s.Time = at.UTC()
			return nil
		}
	}
	if n, err := strconv.ParseInt(t, 10, 64); err == nil {
		if n < 0 {
			return fmt.Errorf("%.40q is no time", t)
		}
		switch {
		case n < 1e11:
			s.Time = time.Unix(n, 0).UTC()
		case n < 1e14:
			s.Time = time.UnixMilli(n).UTC()
		case n < 1e17:
			s.Time = time.UnixMicro(n).UTC()
		default:
			s.Time = time.Unix(0, n).UTC()
		}
		return nil
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || !(f >= 0 && f < 1e11) {
		return fmt.Errorf("%.40q is no time", t)
	}
	whole, part := math.Modf(f)
	s.Time = time.Unix(int64(whole), int64(math.Round(part*1e6))*1000).UTC()
	return nil
}
