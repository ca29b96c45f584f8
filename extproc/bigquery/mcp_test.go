package bigquery

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseMCP(t *testing.T) {
	call := func(tool, arguments string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + tool + `","arguments":` + arguments + `}}`
	}
	for _, c := range []struct{ body, method, target, inner, id string }{
		{call("list_dataset_ids", `{"projectId":"p"}`), "GET", "/bigquery/v2/projects/p/datasets", "bigquery.datasets.list", ""},
		{call("list_dataset_ids", `{"projectId":"p","pageSize":5,"pageToken":"a b"}`), "GET", "/bigquery/v2/projects/p/datasets?maxResults=5&pageToken=a+b", "bigquery.datasets.list", ""},
		{call("get_dataset_info", `{"projectId":"p","datasetId":"d"}`), "GET", "/bigquery/v2/projects/p/datasets/d", "bigquery.datasets.get", ""},
		{call("list_table_ids", `{"projectId":"p","datasetId":"d"}`), "GET", "/bigquery/v2/projects/p/datasets/d/tables", "bigquery.tables.list", ""},
		{call("get_table_info", `{"projectId":"p","datasetId":"d","tableId":"t"}`), "GET", "/bigquery/v2/projects/p/datasets/d/tables/t", "bigquery.tables.get", ""},
		{call("execute_sql", `{"projectId":"p","query":"SELECT 1"}`), "POST", "/bigquery/v2/projects/p/queries", "bigquery.jobs.query", ""},
		{call("execute_sql_readonly", `{"projectId":"p","query":"SELECT 1","dryRun":true}`), "POST", "/bigquery/v2/projects/p/queries", "bigquery.jobs.query", ""},
		{call("get_query_results", `{"projectId":"p","jobId":"j","startIndex":"3","maxResults":10,"location":"EU"}`), "GET", "/bigquery/v2/projects/p/queries/j?location=EU&maxResults=10&startIndex=3", "bigquery.jobs.getQueryResults", ""},
		{call("get_job", `{"projectId":"p","jobId":"j"}`), "GET", "/bigquery/v2/projects/p/jobs/j", "bigquery.jobs.get", ""},
		{call("cancel_job", `{"projectId":"p","jobId":"j","location":"US"}`), "POST", "/bigquery/v2/projects/p/jobs/j/cancel?location=US", "bigquery.jobs.cancel", ""},
	} {
		m, e := ParseMCP([]byte(c.body))
		if e != nil {
			t.Errorf("%s: %v", c.body, e.Refusal)
			continue
		}
		if m.Call.Method != c.method || m.Call.Target != c.target || string(m.ID) != "7" {
			t.Errorf("%s: %s %s, id %s", c.body, m.Call.Method, m.Call.Target, m.ID)
		}
		if inner, ref := Classify(m.Call); ref != nil || inner.Method != c.inner {
			t.Errorf("%s: the call is %s, %v", c.body, inner.Method, ref)
		}
	}
	m, e := ParseMCP([]byte(call("execute_sql", `{"projectId":"p","query":"SELECT \"ü\"","dryRun":true}`)))
	if e != nil {
		t.Fatal(e.Refusal)
	}
	inner, _ := Classify(m.Call)
	f, err := ParseBody(inner, "application/json", "", m.Body)
	if err != nil || f.SQL != `SELECT "ü"` || !f.DryRun || f.Legacy == nil || *f.Legacy || f.Labels["goog-mcp-server"] != "true" {
		t.Errorf("%s: %+v, %v", m.Body, f, err)
	}
}

func TestParseMCPRefuses(t *testing.T) {
	for _, c := range []struct {
		body, code, id string
	}{
		{``, "json_syntax", ""},
		{`[]`, "mcp_batch", ""},
		{`[{"jsonrpc":"2.0","id":1,"method":"ping"}]`, "mcp_batch", ""},
		{`{"jsonrpc":"1.0","id":1,"method":"ping"}`, "mcp_message", "1"},
		{`{"id":1,"method":"ping"}`, "mcp_message", "1"},
		{`{"jsonrpc":"2.0","id":{},"method":"ping"}`, "mcp_message", ""},
		{`{"jsonrpc":"2.0","id":1,"result":{}}`, "mcp_message", "1"},
		{`{"jsonrpc":"2.0","method":"ping"}`, "mcp_message", ""},
		{`{"jsonrpc":"2.0","id":1,"method":"resources/list"}`, "mcp_method", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}`, "mcp_params", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_python"}}`, "mcp_tool", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"Execute_SQL","arguments":{"projectId":"p","query":"SELECT 1"}}}`, "mcp_tool", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"query":"SELECT 1"}}}`, "mcp_params", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"p","query":"SELECT 1","useLegacySql":true}}}`, "mcp_params", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"p","query":"SELECT 1","query":"DROP TABLE x"}}}`, "json_duplicate", ""},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"p","Query":"x"}}}`, "json_twin", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"p","query":7}}}`, "json_type", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":"x"}}`, "json_type", "1"},
		{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","task":{},"arguments":{}}}`, "mcp_params", "1"},
	} {
		_, e := ParseMCP([]byte(c.body))
		if e == nil || e.Refusal.Code != c.code || string(e.ID) != c.id || e.RPC >= 0 {
			t.Errorf("%s: %+v", c.body, e)
			if e != nil {
				t.Logf("%+v", e.Refusal)
			}
		}
	}
	// Names that would lead elsewhere are the route table's to refuse.
	for _, project := range []string{"p/datasets/d", "..", "p%2fq", "p?x", "P", "p#", "p;x", `p\\q`, "p ", ""} {
		m, e := ParseMCP([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_dataset_info","arguments":{"projectId":"` + project + `","datasetId":"d"}}}`))
		if e == nil {
			if inner, ref := Classify(m.Call); ref == nil {
				t.Errorf("project %q: %s %s", project, inner.Method, inner.Path)
			}
		}
	}
}

func TestMCPAnswers(t *testing.T) {
	for _, accept := range []string{"", "application/json, text/event-stream", "*/*", "text/event-stream"} {
		a := NewMCPAnswer(json.RawMessage(`"x"`), accept)
		text := "a \"quoted\" \\ line\nü \x01 end"
		for what, b := range map[string][]byte{"said": a.Said(text, true), "error": a.Error(-32600, text), "result": a.Result(json.RawMessage(`{"a":1}`))} {
			s := string(b)
			if a.Stream {
				var ok bool
				if s, ok = strings.CutPrefix(s, "event: message\ndata: "); !ok || !strings.HasSuffix(s, "\n\n") || strings.Contains(strings.TrimSuffix(s, "\n\n"), "\n") {
					t.Errorf("%s: no event: %q", what, b)
				}
			}
			var m struct {
				JSONRPC, ID string
				Result      struct {
					Content []struct{ Type, Text string }
					IsError bool
					A       int
				}
				Error struct {
					Code    int
					Message string
				}
			}
			if err := json.Unmarshal([]byte(s), &m); err != nil || m.ID != "x" || m.JSONRPC != "2.0" {
				t.Errorf("%s: %v: %s", what, err, b)
			}
			switch what {
			case "said":
				if len(m.Result.Content) != 1 || m.Result.Content[0].Text != text || !m.Result.IsError {
					t.Errorf("said %+v", m.Result)
				}
			case "error":
				if m.Error.Code != -32600 || m.Error.Message != text {
					t.Errorf("error %+v", m.Error)
				}
			case "result":
				if m.Result.A != 1 {
					t.Errorf("result %+v", m.Result)
				}
			}
		}
		if a.Stream != (accept == "text/event-stream") {
			t.Errorf("accept %q: stream %v", accept, a.Stream)
		}
	}
	m, e := ParseMCP([]byte(`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`))
	if e != nil {
		t.Fatal(e.Refusal)
	}
	if r := string(m.Result("v1")); !strings.Contains(r, `"protocolVersion":"2025-06-18"`) {
		t.Errorf("initialize: %s", r)
	}
}

// FuzzMCP: no panic, and a tool's call is one that the route table knows how to
// judge.
func FuzzMCP(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_sql","arguments":{"projectId":"p","query":"SELECT 1"}}}`))
	f.Add([]byte(`{"jsonrpc":"2.0","id":"a","method":"initialize","params":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, e := ParseMCP(body)
		if (m == nil) == (e == nil) {
			t.Fatal("neither a message nor an error, or both")
		}
		if e != nil {
			if e.Refusal == nil || e.Refusal.Message == "" {
				t.Fatal("an error without a text")
			}
			return
		}
		if m.Tool != nil {
			if inner, ref := Classify(m.Call); ref == nil && inner.Method == "" {
				t.Fatalf("%s is no method", m.Call.Target)
			}
		}
		if !json.Valid(NewMCPAnswer(m.ID, "").Said(string(body), false)) {
			t.Fatal("the answer is no JSON")
		}
	})
}

// FuzzEscapeJSON: in any two pieces, the same string.
func FuzzEscapeJSON(f *testing.F) {
	f.Add("a\"b\\c\n", 2)
	f.Fuzz(func(t *testing.T, s string, at int) {
		if at < 0 || at > len(s) || strings.ToValidUTF8(s, "") != s {
			t.Skip()
		}
		b := append(EscapeJSON([]byte{'"'}, []byte(s[:at])), EscapeJSON(nil, []byte(s[at:]))...)
		var got string
		if err := json.Unmarshal(append(b, '"'), &got); err != nil || got != s {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
	})
}
