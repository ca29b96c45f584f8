package policy

import (
	"encoding/json"
	"strings"
	"time"

	facts "verbatim.dev/policy/sql"
)

type sample struct {
	name  string
	input *Input
}

// samples returns the inputs that every policy must decide before it is put in
// force. What it decides does not matter, only that it does.
func samples() []sample {
	base := func(method, kind string) *Input {
		return &Input{
			Time:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Caller:     Caller{Issuer: "sample", IssuerURL: "https://issuer.example", Subject: "sample"},
			Connection: Connection{Name: "sample", Recording: "full", Retention: "default"},
			Request:    Request{Method: method, Kind: kind, HTTPMethod: "GET", Path: "/bigquery/v2/projects/sample", Project: "sample"},
		}
	}
	sql := func(text string, legacy bool) *Input {
		in := base("bigquery.jobs.query", KindQuery)
		in.Request.HTTPMethod = "POST"
		in.SQL = &SQL{Text: text, Legacy: legacy}
		return in
	}
	full := sql("SELECT name FROM `sample.d.t` WHERE id = @id", false)
	full.Caller.Email = "sample@issuer.example"
	full.Caller.Groups = []string{"sample/a", "sample/b"}
	full.Caller.OnBehalfOf = []Actor{{Issuer: "sample", Subject: "agent"}, {Subject: "tool"}}
	full.Provenance = Provenance{
		Profile: "github", Pipeline: "p", Repository: "o/r", Ref: "refs/heads/main", Commit: strings.Repeat("0", 40), Workflow: "w", Run: "1",
		Actor: "a", Environment: "e", Namespace: "n", Pod: "pod", ServiceAccount: "sa", SPIFFE: "spiffe://issuer.example/sa",
	}
	full.Asserted = Asserted{
		UserAgent: "ua", Labels: map[string]string{"team": "x"}, RequestReason: "why", Agent: "a", Model: "m", Conversation: "c", ToolCall: "t",
	}
	full.Request.DryRun = true
	full.Request.DefaultDataset = "sample.d"
	full.SQL.Parameters = json.RawMessage(`[{"name":"id","parameterType":{"type":"INT64"},"parameterValue":{"value":"1"}}]`)

	full.Reads = []Table{{Project: "sample", Dataset: "d", Table: "t", As: "from", Source: "parser", Columns: []string{"id", "name"}}}
	full.Usage = Usage{Known: true, Windows: []UsageWindow{{Of: "principal", Seconds: 86400, Queries: 1, Bytes: 2, Rows: 3}}}
	full.SQL.Facts = &facts.Facts{
		Source: facts.SourceParser, Statements: []facts.Statement{{Kind: "SELECT", Line: 1, Column: 1}},
		Functions: []facts.Function{{Name: "COUNT", Kind: "builtin"}, {Name: "sample.d.f", Kind: "udf"}}, Temporary: []string{"x"},
	}
	dry := *full
	dry.SQL = &SQL{Text: full.SQL.Text, Facts: full.SQL.Facts, DryRun: &DryRun{
		StatementType: "SELECT", Tables: []Table{{Project: "sample", Dataset: "e", Table: "u", Source: "dry_run"}}, Routines: []string{"sample.d.f"},
		Target: &Table{Project: "sample", Dataset: "d", Table: "t"}, BytesProcessed: 1, Complete: true,
		OnlyParser: []string{"sample.d.t"}, OnlyDryRun: []string{"sample.e.u"},
	}}
	beyond := sql("MERGE t", false)
	beyond.Incomplete = []string{"sql_problem"}
	beyond.SQL.Facts = &facts.Facts{Source: facts.SourceParser, Problem: &facts.Problem{Code: "syntax", Message: "beyond the parser", Line: 1, Column: 7, Fallback: true}}
	taught := *beyond
	taught.SQL = &SQL{Text: "MERGE t", Facts: &facts.Facts{Source: facts.SourceDryRun, Problem: beyond.SQL.Facts.Problem, Statements: []facts.Statement{{Kind: "MERGE"}}}, DryRun: dry.SQL.DryRun}
	refused := *beyond
	refused.SQL = &SQL{Text: "MERGE t", Facts: beyond.SQL.Facts, DryRun: &DryRun{Error: "no"}}
	opaque := sql("EXECUTE IMMEDIATE @q", false)
	opaque.Incomplete = []string{"dynamic_sql"}
	opaque.SQL.Facts = &facts.Facts{
		Source: facts.SourceParser, Statements: []facts.Statement{{Kind: "EXECUTE_IMMEDIATE", Line: 1, Column: 1}}, Opaque: []string{"dynamic_sql"}, QueryLabel: true,
		Externals: []facts.External{{Kind: "uri", Value: "gs://b/o", Access: "write"}},
	}

	job := func(kind string) *Input {
		in := base("bigquery.jobs.insert", KindJob)
		in.Request.HTTPMethod, in.Request.JobType = "POST", kind
		if kind == "load" || kind == "copy" {
			in.Request.Destination = "sample.d.t"
		}
		return in
	}
	insertQuery := job("query")
	insertQuery.SQL = &SQL{Text: "SELECT 1"}
	insertQuery.Request.Destination = "sample.d.t"
	insertQuery.Request.ExternalTables = true
	upload := job("load")
	upload.Request.Kind = KindUpload
	rows := base("bigquery.tabledata.list", KindRead)
	rows.Request.Dataset, rows.Request.Table = "d", "t"
	insert := base("bigquery.tabledata.insertAll", KindWrite)
	insert.Request.Dataset, insert.Request.Table = "d", "t"
	results := base("bigquery.jobs.getQueryResults", KindRead)
	results.Request.Job = "job"
	dataset := base("bigquery.datasets.get", KindMetadata)
	dataset.Request.Dataset = "d"
	nobody := &Input{Time: time.Unix(1, 0)}

	return []sample{
		{"a SELECT with every field filled", full},
		{"the same with its dry run", &dry},
		{"a text beyond the parser", beyond},
		{"the same as its dry run tells it", &taught},
		{"a text that BigQuery refuses", &refused},
		{"dynamic SQL", opaque},
		{"SELECT 1", sql("SELECT 1", false)},
		{"legacy SQL", sql("SELECT 1", true)},
		{"an empty text", sql("", false)},
		{"a text that cannot be read", sql("SELECT '", false)},
		{"a script", sql("BEGIN INSERT INTO d.t VALUES (1); SELECT 1; END;", false)},
		{"EXPORT DATA", sql("EXPORT DATA OPTIONS (uri='gs://b/*') AS SELECT 1", false)},
		{"a query without SQL", base("bigquery.jobs.query", KindQuery)},
		{"a query job", insertQuery},
		{"a load job", job("load")},
		{"a copy job", job("copy")},
		{"an extract job", job("extract")},
		{"a job of no type", job("")},
		{"an upload", upload},
		{"reading rows", rows},
		{"inserting rows", insert},
		{"reading results", results},
		{"a dataset's metadata", dataset},
		{"listing datasets", base("bigquery.datasets.list", KindMetadata)},
		{"an unknown method", base("", KindOther)},
		{"a caller of whom nothing is known", nobody},
	}
}
