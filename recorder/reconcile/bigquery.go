package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	bigquery "google.golang.org/api/bigquery/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
)

// JobsView says which jobs to ask BigQuery for.
type JobsView struct {
	Project string
	Region  string // us, eu, europe-west1, ...
	// Since and Until bound the time of creation, Until excluded. The view is
	// partitioned by it and holds 180 days.
	Since, Until time.Time
}

// The forms of names that are put into SQL
// (https://cloud.google.com/resource-manager/docs/creating-managing-projects,
// https://cloud.google.com/bigquery/docs/information-schema-intro#syntax).
var (
	projectForm = regexp.MustCompile(`^([a-z0-9.-]{1,100}:)?[a-z][a-z0-9-]{4,61}[a-z0-9]$`)
	regionForm  = regexp.MustCompile(`^[a-z][a-z0-9-]{1,40}$`)
	datasetForm = regexp.MustCompile(`^[A-Za-z0-9_]+$`)
)

// Check reports what of the view cannot be asked for.
func (v JobsView) Check() error {
	switch {
	case !projectForm.MatchString(v.Project):
		return fmt.Errorf("project %q is no project id", v.Project)
	case !regionForm.MatchString(v.region()):
		return fmt.Errorf("region %q is no region of BigQuery such as us, eu or europe-west1", v.Region)
	case v.Since.IsZero() || v.Until.IsZero() || !v.Since.Before(v.Until):
		return errors.New("the time of the jobs is not bounded")
	}
	return nil
}

func (v JobsView) region() string { return strings.TrimPrefix(strings.ToLower(v.Region), "region-") }

// columns of the view that are compared. The view is of one region and has no
// column that names it.
const columns = `job_id, project_id, parent_job_id, user_email, creation_time, job_type, statement_type, query, labels, destination_table`

// SQL returns the query whose rows, as JSON, are a list that this package
// reads. Check the view first.
func (v JobsView) SQL() string {
	const form = "2006-01-02 15:04:05.999999+00"
	return fmt.Sprintf("SELECT %s,\n  '%s' AS location\nFROM `%s`.`region-%s`.INFORMATION_SCHEMA.JOBS_BY_PROJECT\nWHERE creation_time >= TIMESTAMP '%s'\n  AND creation_time < TIMESTAMP '%s'",
		columns, v.region(), v.Project, v.region(), v.Since.UTC().Format(form), v.Until.UTC().Format(form))
}

// DDL returns the statements that make a table of jobs in the auditors' own
// dataset and add to it what the view holds, so that the list outlives the
// view's 180 days and is not BigQuery's alone to keep. The second is to be
// scheduled; what is there already is not added again.
func (v JobsView) DDL(dataset string) (string, error) {
	project, name, ok := strings.Cut(dataset, ".")
	if !ok {
		project, name = v.Project, dataset
	}
	if !projectForm.MatchString(project) || !datasetForm.MatchString(name) {
		return "", fmt.Errorf("dataset %q: want DATASET or PROJECT.DATASET", dataset)
	}
	if !projectForm.MatchString(v.Project) || !regionForm.MatchString(v.region()) {
		return "", v.Check()
	}
	table := fmt.Sprintf("`%s.%s.verbatim_jobs`", project, name)
	from := fmt.Sprintf("`%s`.`region-%s`.INFORMATION_SCHEMA.JOBS_BY_PROJECT", v.Project, v.region())
	return fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %[1]s
PARTITION BY DATE(creation_time)
CLUSTER BY project_id, user_email
AS SELECT %[3]s, '%[4]s' AS location
FROM %[2]s
WHERE FALSE;

-- Every hour, in the region of the jobs. Jobs that are not done yet come with a later run.
INSERT INTO %[1]s
  (%[3]s, location)
SELECT %[3]s, '%[4]s'
FROM %[2]s AS job
WHERE creation_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY)
  AND state = 'DONE'
  AND NOT EXISTS (
    SELECT 1 FROM %[1]s AS kept
    WHERE kept.creation_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 1 DAY)
      AND kept.project_id = job.project_id AND kept.job_id = job.job_id AND kept.location = '%[4]s');
`, table, from, columns, v.region()), nil
}

// BigQueryConfig says how to ask BigQuery.
type BigQueryConfig struct {
	View JobsView
	// Bill is the project that the query runs in; the view's where empty.
	Bill string
	// Options are those of the client. Application Default Credentials are used
	// where they name no other.
	Options []option.ClientOption
	// Asked, where set, is told the id of the query's own job: it will stand in
	// later lists.
	Asked func(job string)
}

// pageRows is how many rows one answer brings; BigQuery sends fewer where they
// are large (https://cloud.google.com/bigquery/docs/paging-results).
const pageRows = 2000

// BigQuery is the list as BigQuery itself gives it. It needs
// bigquery.jobs.listAll in the view's project (roles/bigquery.resourceViewer)
// and bigquery.jobs.create in the one that pays.
func BigQuery(c BigQueryConfig) (Source, error) {
	if err := c.View.Check(); err != nil {
		return nil, err
	}
	bill := c.Bill
	if bill == "" {
		bill = c.View.Project
	}
	if !projectForm.MatchString(bill) {
		return nil, fmt.Errorf("project %q is no project id", bill)
	}
	return func(ctx context.Context, add func(int64, []byte) error) error {
		s, err := bigquery.NewService(ctx, append([]option.ClientOption{option.WithScopes(bigquery.BigqueryScope), option.WithUserAgent("verbatim-recorder")}, c.Options...)...)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrList, err)
		}
		return c.ask(ctx, s, bill, add)
	}, nil
}

// marker stands on the query's own job, so that people see what it was. It is
// no proof: anybody can write labels.
const marker = "verbatim_reconcile"

func (c *BigQueryConfig) ask(ctx context.Context, s *bigquery.Service, bill string, add func(int64, []byte) error) error {
	no := false
	// Each row comes as one column of JSON, and so in the form that files have.
	q := &bigquery.QueryRequest{
		Query:        "SELECT TO_JSON_STRING(job) FROM (\n" + c.View.SQL() + "\n) AS job",
		UseLegacySql: &no, UseQueryCache: &no, Location: c.View.region(), MaxResults: pageRows, TimeoutMs: 60_000,
		Labels: map[string]string{marker: "1"}, JobCreationMode: "JOB_CREATION_REQUIRED",
	}
	res, err := s.Jobs.Query(bill, q).Context(ctx).Do()
	if err != nil {
		return listError(err)
	}
	if res.JobReference == nil {
		return fmt.Errorf("%w: BigQuery's answer names no job", ErrList)
	}
	if c.Asked != nil {
		c.Asked((&job{project: res.JobReference.ProjectId, location: res.JobReference.Location, id: res.JobReference.JobId}).String())
	}
	n := int64(0)
	take := func(rows []*bigquery.TableRow) error {
		for _, r := range rows {
			n++
			text, ok := "", len(r.F) == 1
			if ok {
				text, ok = r.F[0].V.(string)
			}
			if !ok {
				return fmt.Errorf("%w: row %d is not one column of text", ErrList, n)
			}
			if err := add(n, []byte(text)); err != nil {
				return err
			}
		}
		return nil
	}
	done, token, total := res.JobComplete, res.PageToken, res.TotalRows
	if done {
		if err := take(res.Rows); err != nil {
			return err
		}
	}
	for !done || token != "" {
		page := s.Jobs.GetQueryResults(res.JobReference.ProjectId, res.JobReference.JobId).Location(res.JobReference.Location).
			MaxResults(pageRows).TimeoutMs(60_000).Context(ctx)
		if token != "" {
			page = page.PageToken(token)
		}
		r, err := page.Do()
		if err != nil {
			return listError(err)
		}
		if !r.JobComplete {
			continue
		}
		done, token, total = true, r.PageToken, r.TotalRows
		if err := take(r.Rows); err != nil {
			return err
		}
	}
	if uint64(n) != total {
		return fmt.Errorf("%w: BigQuery spoke of %d rows and gave %d", ErrList, total, n)
	}
	return nil
}

func listError(err error) error {
	var api *googleapi.Error
	if errors.As(err, &api) && api.Code == http.StatusForbidden {
		return fmt.Errorf("%w: %w (it needs bigquery.jobs.listAll, which roles/bigquery.resourceViewer holds, and bigquery.jobs.create)", ErrList, err)
	}
	return fmt.Errorf("%w: %w", ErrList, err)
}
