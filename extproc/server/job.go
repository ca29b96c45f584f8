package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"verbatim.dev/recorder/record"
)

// What the gateway asks BigQuery of a job, and how it reads the answers.

// jobPath is the path of a job's resource, or of what stands below it, with the
// job's location in the query. q may be nil.
func jobPath(j *record.Job, below string, q url.Values) string {
	path := "/bigquery/v2/projects/" + url.PathEscape(j.Project) + "/jobs/" + url.PathEscape(j.ID) + below
	if j.Location != "" {
		if q == nil {
			q = url.Values{}
		}
		q.Set("location", j.Location)
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path
}

// readJob reads the fields of a job's resource into a struct.
func readJob(ctx context.Context, j *record.Job, purpose, fields string, probe prober, into any) error {
	status, body, err := probe(ctx, purpose, http.MethodGet, jobPath(j, "", url.Values{"fields": {fields}}), nil)
	switch {
	case err != nil:
		return err
	case status != http.StatusOK:
		return fmt.Errorf("jobs.get answered %d", status)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errors.New("jobs.get answered with something that is no job")
	}
	return nil
}

// jobError is one of BigQuery's errors.
type jobError struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// errorIn reads the message and the first reason of an error's answer; both are
// empty where it is none.
func errorIn(answer []byte) (message, reason string) {
	var e struct {
		Error struct {
			Message string     `json:"message"`
			Errors  []jobError `json:"errors"`
		} `json:"error"`
	}
	if json.Unmarshal(answer, &e) != nil {
		return "", ""
	}
	if len(e.Error.Errors) > 0 {
		reason = e.Error.Errors[0].Reason
	}
	return e.Error.Message, reason
}

type tableReference struct {
	ProjectID string `json:"projectId"`
	DatasetID string `json:"datasetId"`
	TableID   string `json:"tableId"`
}
