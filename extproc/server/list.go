package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"verbatim.dev/extproc/bigquery"
)

// What one jobs.list looks at: pages of BigQuery's own until one holds a job of
// the caller's. A list without jobs has a page token as long as there may be more.
const (
	listPages    = 10
	listMinimal  = 200 // jobs of a page, without their configurations
	listFull     = 50  // with them, and so with their SQL
	listDefault  = 50  // what a caller gets who does not say
	minimalParts = "id,kind,jobReference,state,errorResult,statistics,status,user_email,configuration(labels)"
)

// listJobs answers jobs.list with the caller's own jobs: BigQuery's list is of
// all that the account runs. The gateway asks itself, each page on record, since
// whose a job is stands in a part of it that the caller may not have asked for.
func (g *Gate) listJobs(ctx context.Context, p *plan, probe prober) *refusal {
	asked := p.route.Query
	full := asked.Get("projection") == "full" || asked.Get("projection") == "FULL"
	want, err := strconv.Atoi(asked.Get("maxResults"))
	if err != nil || want < 1 {
		want = listDefault
	}
	page := min(want, listMinimal)
	q := url.Values{"projection": {"full"}, "fields": {"nextPageToken,jobs(" + minimalParts + ")"}}
	if full {
		page = min(want, listFull)
		q.Del("fields")
	}
	for _, name := range []string{"pageToken", "minCreationTime", "maxCreationTime", "stateFilter"} {
		if v := asked[name]; len(v) > 0 {
			q[name] = v
		}
	}
	fail := func(err error) *refusal {
		g.Logger.Warn("jobs not listed", "error", err)
		return &refusal{status: 502, reason: bigquery.ReasonBackendError, code: "jobs_unlisted", by: "ownership",
			message: "BigQuery did not list the jobs in a form that the gateway can filter. Ask for your own jobs by their id."}
	}
	owners := ownersOf(p.identity)
	list := struct {
		Kind string            `json:"kind"`
		Jobs []json.RawMessage `json:"jobs,omitempty"`
		Next string            `json:"nextPageToken,omitempty"`
	}{Kind: "bigquery#jobList"}
	for range listPages {
		q.Set("maxResults", strconv.Itoa(page))
		status, body, err := probe(ctx, "jobs of the caller", http.MethodGet, "/bigquery/v2/projects/"+url.PathEscape(p.call.Project)+"/jobs?"+q.Encode(), nil)
		if err != nil {
			if page == 1 {
				return fail(err)
			}
			page = max(page/8, 1) // the SQL of these jobs may be long
			continue
		}
		if status != http.StatusOK {
			return g.listRefused(status, body)
		}
		var got struct {
			Jobs []json.RawMessage `json:"jobs"`
			Next string            `json:"nextPageToken"`
		}
		if err := json.Unmarshal(body, &got); err != nil {
			return fail(errors.New("the list is no JSON"))
		}
		for _, raw := range got.Jobs {
			job := &jobResource{}
			if err := json.Unmarshal(raw, job); err != nil {
				return fail(errors.New("a job of the list is none"))
			}
			_, owns, err := g.madeBy(ctx, p, job, owners, probe)
			if err != nil {
				g.Logger.Warn("job not listed", "job", job.JobReference.JobID, "error", err)
			}
			if !owns {
				continue
			}
			if !full {
				if raw, err = without(raw, "configuration"); err != nil {
					return fail(err)
				}
			}
			list.Jobs = append(list.Jobs, raw)
		}
		list.Next = got.Next
		if len(list.Jobs) > 0 || got.Next == "" {
			break
		}
		q.Set("pageToken", got.Next)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return fail(err)
	}
	p.answer = &answer{body: b}
	return nil
}

// listRefused passes BigQuery's own refusal on.
func (g *Gate) listRefused(status int, body []byte) *refusal {
	r := &refusal{status: status, reason: bigquery.ReasonInvalid, code: "jobs_unlisted", by: "upstream", message: "BigQuery refused to list the jobs."}
	if message, reason := errorIn(body); message != "" && status != http.StatusUnauthorized {
		r.message = "BigQuery refused to list the jobs: " + message
		if reason != "" {
			r.reason = reason
		}
	}
	if status == http.StatusUnauthorized || status < 400 || status > 599 { // about the gateway's credential, not the caller's
		r.status, r.reason = http.StatusServiceUnavailable, bigquery.ReasonBackendError
	}
	return r
}

func without(raw json.RawMessage, key string) (json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	delete(m, key)
	return json.Marshal(m)
}
