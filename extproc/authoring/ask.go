package authoring

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
)

// Caller is who asks, as far as a policy can match it.
type Caller struct {
	Issuer         string   `json:"issuer"`
	IssuerURL      string   `json:"issuer_url"`
	Subject        string   `json:"subject"`
	Email          string   `json:"email"`
	Groups         []string `json:"groups"` // qualified by the issuer, or not
	Profile        string   `json:"profile"`
	Pipeline       string   `json:"pipeline"`
	Repository     string   `json:"repository"`
	Ref            string   `json:"ref"`
	Commit         string   `json:"commit"`
	Workflow       string   `json:"workflow"`
	Run            string   `json:"run"`
	Environment    string   `json:"environment"`
	Namespace      string   `json:"namespace"`
	ServiceAccount string   `json:"service_account"`
	SPIFFE         string   `json:"spiffe_id"`
}

// Question is a query that somebody might send.
type Question struct {
	Caller     Caller
	Connection string
	Project    string // that the job runs in
	Dataset    string // the default dataset, PROJECT.DATASET or DATASET
	SQL        string
	At         time.Time
	// Behind are tables, PROJECT.DATASET.TABLE, that a dry run would name beside
	// those of the text. Bytes is what it would say is processed. Either stands for a
	// dry run that was made.
	Behind []string
	Bytes  int64
	DryRun bool
}

// Ask makes the input of a question.
func Ask(ctx context.Context, q Question, windows []policy.Window) (*policy.Input, error) {
	c := q.Caller
	switch {
	case c.Issuer == "":
		return nil, errors.New("the caller has no issuer: it is the name that the gateway's configuration gives it")
	case q.Project == "":
		return nil, errors.New("no project that the job runs in")
	case strings.TrimSpace(q.SQL) == "":
		return nil, errors.New("no SQL")
	}
	in := &policy.Input{
		Time:   q.At,
		Caller: policy.Caller{Issuer: c.Issuer, IssuerURL: c.IssuerURL, Subject: c.Subject, Email: c.Email},
		Provenance: policy.Provenance{Profile: c.Profile, Pipeline: c.Pipeline, Repository: c.Repository, Ref: c.Ref, Commit: c.Commit, Workflow: c.Workflow,
			Run: c.Run, Environment: c.Environment, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, SPIFFE: c.SPIFFE},
		Connection: policy.Connection{Name: q.Connection, Recording: "full", Retention: "default"},
		Request: policy.Request{Method: "bigquery.jobs.query", Kind: policy.KindQuery, HTTPMethod: "POST",
			Path: "/bigquery/v2/projects/" + q.Project + "/queries", Project: q.Project, JobType: "query"},
		SQL:   &policy.SQL{Text: q.SQL},
		Usage: usage(windows),
	}
	for _, g := range c.Groups {
		if !strings.HasPrefix(g, c.Issuer+"/") {
			g = c.Issuer + "/" + g
		}
		in.Caller.Groups = append(in.Caller.Groups, g)
	}
	o := sql.Options{Project: q.Project}
	if q.Dataset != "" {
		o.DatasetProject, o.Dataset = q.Project, q.Dataset
		if i := strings.LastIndexByte(q.Dataset, '.'); i >= 0 {
			o.DatasetProject, o.Dataset = q.Dataset[:i], q.Dataset[i+1:]
		}
		in.Request.DefaultDataset = o.DatasetProject + "." + o.Dataset
	}
	in.SQL.Facts = sql.Analyze(ctx, q.SQL, o)
	take(in, in.SQL.Facts, o)
	if !q.DryRun {
		return in, nil
	}
	run := &policy.DryRun{Complete: true, BytesProcessed: q.Bytes}
	if f := in.SQL.Facts; len(f.Statements) == 1 {
		run.StatementType = f.Statements[0].Kind
	}
	run.Tables = append(run.Tables, in.Reads...)
	for _, name := range q.Behind {
		parts := strings.Split(name, ".")
		n := len(parts)
		if n < 3 {
			return nil, fmt.Errorf("%q is no PROJECT.DATASET.TABLE", name)
		}
		t := policy.Table{Project: strings.Join(parts[:n-2], "."), Dataset: parts[n-2], Table: parts[n-1], As: "view", Source: sql.SourceDryRun, AllColumns: true}
		in.Reads, run.Tables, run.OnlyDryRun = append(in.Reads, t), append(run.Tables, t), append(run.OnlyDryRun, name)
	}
	in.SQL.DryRun = run
	return in, nil
}
