package server

import (
	"sync"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

// RunningJob is a job that was started through this gateway and was not seen
// to end.
type RunningJob struct {
	Job        record.Job
	Identity   *auth.Identity
	Session    string
	Connection string
	// Asked: the caller asked for a job of this id and BigQuery has not answered.
	// It may not be there, or be another's.
	Asked bool
}

// Jobs knows the running jobs that this replica started, up to a limit: the
// oldest is forgotten first. It is safe for concurrent use.
type Jobs struct {
	limit int

	mu    sync.Mutex
	byKey map[bigquery.Key]RunningJob
	order []bigquery.Key
}

// NewJobs returns an empty register for at most limit jobs.
func NewJobs(limit int) *Jobs {
	return &Jobs{limit: limit, byKey: map[bigquery.Key]RunningJob{}}
}

// Asked notes a job that is on its way to BigQuery, unless one of its id is
// known.
func (j *Jobs) Asked(job RunningJob) {
	j.mu.Lock()
	_, known := j.byKey[bigquery.JobKey(job.Job)]
	j.mu.Unlock()
	if !known {
		job.Asked = true
		j.Started(job)
	}
}

// Answered forgets a job that was only asked for.
func (j *Jobs) Answered(job record.Job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if key := bigquery.JobKey(job); j.byKey[key].Asked {
		delete(j.byKey, key)
	}
}

// Started notes a job.
func (j *Jobs) Started(job RunningJob) {
	key := bigquery.JobKey(job.Job)
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.byKey[key]; !ok {
		j.order = append(j.order, key)
	}
	j.byKey[key] = job
	for len(j.byKey) > j.limit || len(j.order) > 2*j.limit {
		delete(j.byKey, j.order[0])
		j.order = j.order[1:]
	}
}

// Ended forgets a job.
func (j *Jobs) Ended(job record.Job) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.byKey, bigquery.JobKey(job))
}

// Of returns the running jobs whose identity is revoked.
func (j *Jobs) Of(revoked func(*auth.Identity) (string, bool)) []RunningJob {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []RunningJob
	for _, r := range j.byKey {
		if _, ok := revoked(r.Identity); ok {
			out = append(out, r)
		}
	}
	return out
}
