package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// bearer puts a token on each request and keeps the receipts of the answers.
type bearer struct {
	token    string
	receipts []string
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	res, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		b.receipts = append(b.receipts, harness.ReceiptID(res.Header))
	}
	return res, err
}

func (b *bearer) last() string { return b.receipts[len(b.receipts)-1] }

// agent connects an agent's client of the Model Context Protocol.
func agent(ctx context.Context, t *testing.T, r *harness.Rig, token string) (*mcp.ClientSession, *bearer) {
	t.Helper()
	b := &bearer{token: token}
	c := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil)
	s, err := c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: r.URL() + "/mcp", HTTPClient: &http.Client{Transport: b}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, b
}

// said is the text of a tool's answer.
func said(t *testing.T, res *mcp.CallToolResult) string {
	t.Helper()
	if len(res.Content) != 1 {
		t.Fatalf("%d parts", len(res.Content))
	}
	text, ok := res.Content[0].(*mcp.TextContent)
	if !ok {
		t.Fatalf("a part of type %T", res.Content[0])
	}
	return text.Text
}

func TestAgentsByTheModelContextProtocol(t *testing.T) {
	r := harness.Start(t, harness.Options{Emulator: true, Policy: grants})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ada, adas := agent(ctx, t, r, mint(t, r, "ada", "writers"))
	eve, eves := agent(ctx, t, r, mint(t, r, "eve", "readers"))
	call := func(s *mcp.ClientSession, tool string, arguments map[string]any) (string, bool) {
		t.Helper()
		if arguments["projectId"] == nil {
			arguments["projectId"] = harness.Project
		}
		res, err := s.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: arguments})
		if err != nil {
			t.Fatalf("%s: %v", tool, err)
		}
		return said(t, res), res.IsError
	}

	tools, err := ada.ListTools(ctx, nil)
	if err != nil || len(tools.Tools) != 9 {
		t.Fatalf("tools: %v, %v", tools, err)
	}

	// A write, a read, and what they are called in the evidence.
	text, failed := call(ada, "execute_sql", map[string]any{"query": "CREATE SCHEMA IF NOT EXISTS mcp_shop"})
	if failed {
		t.Fatalf("create: %s", text)
	}
	for _, sql := range []string{"CREATE OR REPLACE TABLE mcp_shop.orders AS SELECT 'ü \"x\" \\\\ \\n' AS a, 41 AS b", "UPDATE mcp_shop.orders SET b = b + 1 WHERE TRUE"} {
		if text, failed := call(ada, "execute_sql", map[string]any{"query": sql}); failed {
			t.Fatalf("%s: %s", sql, text)
		}
	}
	text, failed = call(eve, "execute_sql_readonly", map[string]any{"query": "SELECT a, b FROM mcp_shop.orders"})
	var answer struct {
		Rows         []struct{ F []struct{ V any } }
		JobReference struct{ JobID string }
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil || failed || len(answer.Rows) != 1 || answer.Rows[0].F[1].V != "42" || !strings.HasPrefix(answer.Rows[0].F[0].V.(string), "ü \"x\" \\") {
		t.Fatalf("select: %v %s", err, text)
	}
	x, payloads := r.Evidence(eves.last())
	if x.Method != "bigquery.jobs.query" || x.SQL != "SELECT a, b FROM mcp_shop.orders" || x.Principal.Subject != "eve" || x.Result != record.ResultDelivered || x.Job == nil {
		t.Errorf("on record: %s %q %s %v", x.Method, x.SQL, x.Result, x.Job)
	}
	if got := string(payloads[record.DirectionResponse]); !strings.Contains(got, `"jsonrpc":"2.0"`) || !strings.Contains(got, answer.JobReference.JobID) {
		t.Errorf("the answer on record: %s", got)
	}
	if got := string(payloads[record.DirectionUpstream]); !strings.Contains(got, "verbatim_owner") || !strings.Contains(got, `"goog-mcp-server":"true"`) || strings.Contains(got, "jsonrpc") {
		t.Errorf("what went upstream: %s", got)
	}

	// Results and jobs: one's own.
	results, failed := call(eve, "get_query_results", map[string]any{"jobId": answer.JobReference.JobID, "maxResults": 1})
	if failed || !strings.Contains(results, `"42"`) {
		t.Errorf("results: %s", results)
	}
	if job, failed := call(eve, "get_job", map[string]any{"jobId": answer.JobReference.JobID}); failed || !strings.Contains(job, "statistics") {
		t.Errorf("job: %s", job)
	}
	for _, tool := range []string{"get_query_results", "get_job", "cancel_job"} {
		text, failed := call(ada, tool, map[string]any{"jobId": answer.JobReference.JobID})
		if !failed || !strings.Contains(text, "[not_owner, receipt "+adas.last()+"]") {
			t.Errorf("%s of another's job: %s", tool, text)
		}
		if x, _ := r.Evidence(adas.last()); x.Result != record.ResultDenied {
			t.Errorf("%s of another's job is on record as %s", tool, x.Result)
		}
	}
	for tool, want := range map[string]string{"list_dataset_ids": "mcp_shop", "list_table_ids": "orders", "get_table_info": `"schema"`, "get_dataset_info": "mcp_shop"} {
		text, failed := call(eve, tool, arguments(tool))
		if failed || !strings.Contains(text, want) {
			t.Errorf("%s: %s", tool, text)
		}
	}

	// Denied: the agent reads why, and may do better.
	for _, c := range []struct {
		tool, sql, code string
	}{
		{"execute_sql", "DELETE FROM mcp_shop.orders WHERE TRUE", "sql_denied"},
		{"execute_sql", "EXPORT DATA OPTIONS(uri='gs://x/*', format='CSV') AS SELECT 1", ""},
		{"execute_sql_readonly", "DELETE FROM mcp_shop.orders WHERE TRUE", ""},
		{"execute_sql", "SELECT FROM WHERE", ""},
	} {
		text, failed := call(eve, c.tool, map[string]any{"query": c.sql})
		if !failed || !strings.Contains(text, c.code) {
			t.Errorf("%s: %s", c.sql, text)
		}
		if x, _ := r.Evidence(eves.last()); x.Result != record.ResultDenied || x.Forwarded != nil {
			t.Errorf("%s: on record %s", c.sql, x.Result)
		}
	}
	if text, failed := call(ada, "execute_sql_readonly", map[string]any{"query": "DELETE FROM mcp_shop.orders WHERE TRUE"}); !failed || !strings.Contains(text, "tool_read_only") {
		t.Errorf("a tool that only reads deletes: %s", text)
	}
	if text, failed := call(ada, "execute_sql", map[string]any{"query": "SELECT nothing_such FROM mcp_shop.orders"}); !failed || !strings.Contains(text, "nothing_such") {
		t.Errorf("an error of BigQuery's: %s", text)
	}
	if text, failed := call(ada, "execute_sql", map[string]any{"projectId": "other-project", "query": "SELECT 1"}); !failed || !strings.Contains(text, "connection_unknown") {
		t.Errorf("another project: %s", text)
	}
	if _, err := ada.CallTool(ctx, &mcp.CallToolParams{Name: "execute_python", Arguments: map[string]any{}}); err == nil || !strings.Contains(err.Error(), "mcp_tool") {
		t.Errorf("a tool that is not there: %v", err)
	}
	for _, q := range r.Double.Requests() {
		if strings.HasPrefix(q.Path, "/mcp") {
			t.Errorf("%s %s went upstream", q.Method, q.Path)
		}
	}
	if !slices.ContainsFunc(r.Search(search.Filter{}), func(x *search.Exchange) bool { return x.Method == "mcp" }) {
		t.Error("initialize is not on record")
	}
	r.Verify()
}

func arguments(tool string) map[string]any {
	a := map[string]any{}
	if tool != "list_dataset_ids" {
		a["datasetId"] = "mcp_shop"
	}
	if tool == "get_table_info" {
		a["tableId"] = "orders"
	}
	return a
}

func TestModelContextProtocolByHand(t *testing.T) {
	r := harness.Start(t, harness.Options{Policy: grants})
	c := caller{r, mint(t, r, "ada", "readers")}
	post := func(body string, header ...string) harness.Answer {
		return c.do(t, "POST", "/mcp", body, append([]string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream"}, header...)...)
	}
	for _, k := range []struct {
		body   string
		status int
		want   string
	}{
		{`{"jsonrpc":"2.0","id":1,"method":"ping"}`, 200, `{"jsonrpc":"2.0","id":1,"result":{}}`},
		{`{"jsonrpc":"2.0","method":"notifications/initialized"}`, 202, `{}`},
		{`{"jsonrpc":"2.0","id":"x","method":"prompts/list"}`, 200, `"code":-32601`},
		{`[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, 200, `"code":-32600`},
		{`nonsense`, 200, `"code":-32700`},
		{`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"demo-project","query":"SELECT 1","query":"SELECT 2"}}}`, 200, `json_duplicate`},
	} {
		a := post(k.body)
		if a.Status != k.status || !strings.Contains(string(a.Body), k.want) {
			t.Errorf("%s: %d %s", k.body, a.Status, a.Body)
		}
		if x, payloads := r.Evidence(a.Receipt); x.Status != k.status || string(payloads[record.DirectionResponse]) != string(a.Body) || string(payloads[record.DirectionRequest]) != k.body {
			t.Errorf("%s: answered %q, on record %d, %q for %q", k.body, a.Body, x.Status, payloads[record.DirectionResponse], payloads[record.DirectionRequest])
		}
	}
	if a := post(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"demo-project","query":"SELECT /*verbatim:bytes=3000000*/ 1"}}}`); a.Status != 200 || len(a.Body) < 3_000_000 || !json.Valid(a.Body) {
		t.Errorf("3 MB: %d, %d bytes", a.Status, len(a.Body))
	}
	stream := c.do(t, "POST", "/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"demo-project","query":"SELECT 1"}}}`,
		"Content-Type", "application/json", "Accept", "text/event-stream")
	if stream.Status != 200 || stream.Header.Get("Content-Type") != "text/event-stream" || !strings.HasPrefix(string(stream.Body), "event: message\ndata: {") || !strings.HasSuffix(string(stream.Body), "}\n\n") {
		t.Errorf("an event: %d %s %.200s", stream.Status, stream.Header.Get("Content-Type"), stream.Body)
	}
	for method, want := range map[string]int{"GET": 405, "DELETE": 405, "PUT": 403} {
		if a := c.do(t, method, "/mcp", ""); a.Status != want {
			t.Errorf("%s: %d", method, a.Status)
		}
	}
	if a := (caller{r: r}).do(t, "POST", "/mcp", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, "Content-Type", "application/json"); a.Status != 401 || !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") {
		t.Errorf("nobody: %d %s", a.Status, a.Body)
	}
	r.Verify()
}
