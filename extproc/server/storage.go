package server

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// The Storage Read API: a session reads one table, its streams bring the rows.
// BigQuery's names of streams say nothing of the table or of who made the
// session, and replicas share nothing. So the names that callers get hold a proof
// of both, which comes off again on the way upstream.

// fromStorage is how a table of the Storage Read API is used, and known.
const fromStorage = "storage_read"

// streamProof stands behind a stream's name.
type streamProof struct {
	Owner bigquery.Owner `json:"o"`
	// Project is the one that the session is charged to: BigQuery's names may
	// have its number.
	Project string         `json:"p"`
	Table   bigquery.Table `json:"t"`
	// Columns are what the session reads; none means all, or more than fit.
	Columns []string `json:"c,omitempty"`
}

// maxProofColumns bounds the columns in a name, in bytes: names go in headers too.
const maxProofColumns = 1024

const kindStream = "verbatim/stream/1"

// storageRead takes a request to the Storage Read API in: which table it reads,
// whose the stream is, and what goes upstream in its place.
func (g *Gate) storageRead(ctx context.Context, p *plan, body []byte) *refusal {
	s, err := bigquery.ParseStorageRead(p.call.Method, body)
	if err != nil {
		return refused(err, "body")
	}
	project, t, columns := s.Project, s.Table, s.Fields
	switch {
	case s.Job != nil:
		p.route.Kind = bigquery.KindQuery // the rows of a query's result, as jobs.getQueryResults
		p.route.Job, p.call.Job = s.Job, s.Job
	case s.Stream != "":
		var proof streamProof
		if !g.opened(kindStream, s.Stream, s.Proof, &proof) || !isOneOf(proof.Owner, ownersOf(p.identity)) {
			return notOwned("stream")
		}
		project, t, columns = proof.Project, proof.Table, proof.Columns
		p.sealStreams = func(name string) string { return g.sealed(kindStream, name, proof) }
	}
	p.call.Project = project
	if r := g.connect(p); r != nil {
		return r
	}
	if p.conn.Storage == "" {
		return &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "storage_closed", by: "connection",
			message: fmt.Sprintf("The connection %q has no Storage Read API. Read by REST instead (Python: create_bqstorage_client=False), or ask the operator to set upstream.storage.", p.conn.Name)}
	}
	p.cluster = p.conn.Storage
	p.storage = s
	if s.Job == nil {
		use := policy.Table{As: fromStorage, Source: fromStorage, AllColumns: len(columns) == 0, Columns: topColumns(columns)}
		c, r := canonical(t, project)
		if r != nil {
			return r
		}
		if c.Project != t.Project || c.Dataset != t.Dataset || c.Table != t.Table {
			return &refusal{status: http.StatusBadRequest, reason: bigquery.ReasonInvalid, code: "invalid_name", by: "body",
				message: "The table of the read session is not named as BigQuery compares names; write its plain name."}
		}
		use.Project, use.Dataset, use.Table = c.Project, c.Dataset, c.Table
		if t.Project == project {
			p.call.Dataset, p.call.Table = t.Dataset, t.Table
			p.route.Dataset, p.route.Table = t.Dataset, t.Table
		}
		anonymous := strings.HasPrefix(c.Dataset, "_")
		if anonymous && t.Project != project { // whose it is cannot be found out there
			return notOwned("anonymous table")
		}
		if !anonymous {
			p.uses.reads = []policy.Table{use}
			p.tellCall()
		}
		if s.Restriction != "" {
			if r := g.restriction(ctx, s.Restriction, &use); r != nil {
				return r
			}
			if !anonymous {
				p.uses.reads = []policy.Table{use}
			}
		}
		if s.Stream == "" {
			p.begins = func(owner bigquery.Owner) {
				proof := streamProof{Owner: owner, Project: project, Table: t}
				if !use.AllColumns && len(strings.Join(use.Columns, " ")) <= maxProofColumns {
					proof.Columns = use.Columns
				}
				p.sealStreams = func(name string) string { return g.sealed(kindStream, name, proof) }
			}
		}
	}
	if p.call.Method == bigquery.MethodReadRows {
		p.sealStreams = nil // its answer has no names
	}
	if p.body, p.params, err = s.Upstream(); err != nil {
		return refused(err, "body")
	}
	if bytes.Equal(p.body, body) {
		p.body = nil
	}
	return nil
}

// restriction reads row_restriction, an SQL expression, and adds the columns
// that it looks at: a filter tells of a column as well as its values do.
func (g *Gate) restriction(ctx context.Context, text string, use *policy.Table) *refusal {
	if g.SQL == nil {
		return &refusal{status: http.StatusServiceUnavailable, reason: bigquery.ReasonBackendError, code: "sql_unavailable", by: "sql",
			message: "The gateway cannot read SQL now, so it passes none on."}
	}
	limited, cancel := context.WithTimeout(ctx, g.analysisTime())
	defer cancel()
	o := sql.Options{Project: use.Project, DatasetProject: use.Project, Dataset: use.Dataset}
	alone := g.SQL.AnalyzeBody(limited, sql.Body{Kind: sql.BodyFunction}, text, o)
	if alone.Problem != nil {
		return notUnderstood(alone.Problem)
	}
	whole := g.SQL.AnalyzeBody(limited, sql.Body{Kind: sql.BodyView},
		"SELECT 1 FROM `"+use.Project+"`.`"+use.Dataset+"`.`"+use.Table+"` WHERE (\n"+text+"\n)", o)
	if whole.Problem != nil {
		return notUnderstood(whole.Problem)
	}
	foreign := len(alone.Reads)+len(alone.Writes)+len(alone.Externals)+len(alone.Opaque)+len(whole.Writes)+len(whole.Externals)+len(whole.Opaque) > 0 ||
		len(whole.Reads) != 1 || alone.QueryLabel
	for _, f := range slices.Concat(alone.Functions, whole.Functions) {
		foreign = foreign || f.Kind != "builtin"
	}
	if foreign {
		return &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "row_restriction", by: "sql",
			message: "The row_restriction does more than compare columns of its table: it has a subquery, or a function that is not built in. Filter by a plain expression, or run a query."}
	}
	if use.AllColumns {
		return nil
	}
	if r := whole.Reads[0]; r.AllColumns {
		use.AllColumns, use.Columns = true, nil
	} else {
		use.Columns = distinct(append(slices.Clone(use.Columns), r.Columns...))
	}
	return nil
}

// topColumns are the columns that fields lie in, as facts name columns.
func topColumns(fields []string) []string {
	var out []string
	for _, f := range fields {
		top, _, _ := strings.Cut(f, ".")
		out = append(out, strings.ToLower(top))
	}
	return distinct(out)
}

// grpcError is how a gRPC call ended, as its trailers say; empty where well.
func grpcError(trailers []record.Header) string {
	status, message := "", ""
	for _, h := range trailers {
		switch h.Name {
		case "grpc-status":
			status = h.Value
		case "grpc-message":
			message = h.Value
		}
	}
	switch status {
	case "0":
		return ""
	case "":
		return "no grpc-status came"
	}
	return strings.TrimSuffix("grpc-status "+status+": "+clip(message), ": ")
}

// unauthenticated is the gRPC status that is about the gateway's credential.
const unauthenticated = "16"
