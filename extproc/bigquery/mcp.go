package bigquery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// The Model Context Protocol as agents speak it with BigQuery: JSON-RPC 2.0 over
// HTTP, one message a request (https://modelcontextprotocol.io/specification,
// transport Streamable HTTP). The gateway serves BigQuery's tools
// (https://cloud.google.com/bigquery/docs/reference/mcp) by calls of the REST
// API, so that each goes through the route table, the policy and the record like
// any other, and the jobs carry the gateway's labels.

// MethodMCP is the route's ID. What a message means, [ParseMCP] says.
const MethodMCP = "mcp"

// MCPVersions are the protocol's versions that are served, newest first.
var MCPVersions = []string{"2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"}

// MCPMessage is a message of a client.
type MCPMessage struct {
	ID      json.RawMessage // nil for a notification
	Method  string
	Version string // of initialize: what the client asks for
	Tool    *MCPTool
	// Call is the call of the REST API that a tool stands for, Body its JSON; set
	// for tools/call alone.
	Call Request
	Body []byte
}

// MCPTool is one of BigQuery's tools.
type MCPTool struct {
	Name        string
	Description string
	// ReadOnly tools change nothing: SQL that is more than a SELECT is refused.
	ReadOnly bool
	// Runs is true for the tools whose answer streams from BigQuery.
	Runs bool

	fields []mcpField
	shape  *shape
	call   func(a *node) (method, target string, body any)
}

type mcpField struct {
	name, kind, description string
	required                bool
}

var (
	mcpProject  = mcpField{"projectId", "string", "The Google Cloud project.", true}
	mcpDataset  = mcpField{"datasetId", "string", "The dataset.", true}
	mcpTable    = mcpField{"tableId", "string", "The table.", true}
	mcpQuery    = mcpField{"query", "string", "The text, in GoogleSQL.", true}
	mcpDryRun   = mcpField{"dryRun", "boolean", "Only check the query, and say what it would process.", false}
	mcpJob      = mcpField{"jobId", "string", "The job.", true}
	mcpLocation = mcpField{"location", "string", "The job's location.", false}
	mcpSize     = mcpField{"pageSize", "integer", "The most entries of a page.", false}
	mcpToken    = mcpField{"pageToken", "string", "Of an earlier answer: the next page.", false}
)

// mcpLabel is the label that BigQuery's own server puts on jobs of its tools.
const mcpLabel = "goog-mcp-server"

var mcpTools = []*MCPTool{
	mcpTool("list_dataset_ids", "List the ids of a project's datasets.", true, []mcpField{mcpProject, mcpSize, mcpToken}, func(a *node) (string, string, any) {
		return "GET", mcpPath(a, "datasets") + mcpPage(a), nil
	}),
	mcpTool("get_dataset_info", "Get a dataset's metadata.", true, []mcpField{mcpProject, mcpDataset}, func(a *node) (string, string, any) {
		return "GET", mcpPath(a, "datasets", "datasetId"), nil
	}),
	mcpTool("list_table_ids", "List the ids of a dataset's tables.", true, []mcpField{mcpProject, mcpDataset, mcpSize, mcpToken}, func(a *node) (string, string, any) {
		return "GET", mcpPath(a, "datasets", "datasetId", "tables") + mcpPage(a), nil
	}),
	mcpTool("get_table_info", "Get a table's metadata, with its schema.", true, []mcpField{mcpProject, mcpDataset, mcpTable}, func(a *node) (string, string, any) {
		return "GET", mcpPath(a, "datasets", "datasetId", "tables", "tableId"), nil
	}),
	mcpTool("execute_sql_readonly", "Run a SELECT and return its result. Use this tool unless the query has to change something.", true, []mcpField{mcpProject, mcpQuery, mcpDryRun}, mcpRun),
	mcpTool("execute_sql", "Run any SQL that your grants allow, and return its result. Prefer execute_sql_readonly.", false, []mcpField{mcpProject, mcpQuery, mcpDryRun}, mcpRun),
	mcpTool("get_query_results", "Get the result of a query that was not complete, or its next rows.", true, []mcpField{mcpProject, mcpJob,
		{"startIndex", "string", "The first row, from 0.", false}, mcpToken, {"maxResults", "integer", "The most rows.", false},
		{"timeoutMs", "integer", "How long to wait for the query, in milliseconds.", false}, mcpLocation},
		func(a *node) (string, string, any) {
			return "GET", mcpPath(a, "queries", "jobId") + mcpParams(a, "startIndex", "pageToken", "maxResults", "timeoutMs", "location"), nil
		}),
	mcpTool("get_job", "Get a job's state and statistics.", true, []mcpField{mcpProject, mcpJob, mcpLocation}, func(a *node) (string, string, any) {
		return "GET", mcpPath(a, "jobs", "jobId") + mcpParams(a, "location"), nil
	}),
	mcpTool("cancel_job", "Cancel a running job.", false, []mcpField{mcpProject, mcpJob, mcpLocation}, func(a *node) (string, string, any) {
		return "POST", mcpPath(a, "jobs", "jobId") + "/cancel" + mcpParams(a, "location"), nil
	}),
}

func mcpRun(a *node) (string, string, any) {
	return "POST", mcpPath(a, "queries"), map[string]any{
		"query": a.str("query"), "useLegacySql": false, "dryRun": a.boolean("dryRun"), "labels": map[string]string{mcpLabel: "true"},
	}
}

func mcpTool(name, description string, readOnly bool, fields []mcpField, call func(a *node) (string, string, any)) *MCPTool {
	t := &MCPTool{Name: name, Description: description, ReadOnly: readOnly, fields: fields, call: call, Runs: strings.HasPrefix(name, "execute_sql")}
	shapes := map[string]*shape{}
	for _, f := range fields {
		shapes[f.name] = map[string]*shape{"string": stringShape, "integer": integerShape, "boolean": boolShape}[f.kind]
	}
	t.shape = object(shapes, "")
	return t
}

// mcpPath makes a path below the project; names that are arguments stand for
// their values.
func mcpPath(a *node, parts ...string) string {
	path := apiPrefix + "/projects/" + url.PathEscape(a.str("projectId"))
	for _, p := range parts {
		if strings.HasSuffix(p, "Id") {
			p = url.PathEscape(a.str(p))
		}
		path += "/" + p
	}
	return path
}

func mcpPage(a *node) string {
	q := url.Values{}
	if n := a.integer("pageSize"); n != nil {
		q.Set("maxResults", fmt.Sprint(*n))
	}
	if t := a.str("pageToken"); t != "" {
		q.Set("pageToken", t)
	}
	return mcpEncode(q)
}

func mcpParams(a *node, names ...string) string {
	q := url.Values{}
	for _, name := range names {
		if n := a.get(name); n == nil {
			continue
		} else if n.kind == nodeString {
			q.Set(name, a.str(name))
		} else if i := a.integer(name); i != nil {
			q.Set(name, fmt.Sprint(*i))
		}
	}
	return mcpEncode(q)
}

func mcpEncode(q url.Values) string {
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// The codes of JSON-RPC 2.0, section 5.1.
const (
	rpcParse    = -32700
	rpcInvalid  = -32600
	rpcNoMethod = -32601
	rpcParams   = -32602
)

// MCPError is a message that cannot be understood. ID is what can be told of the
// message's id.
type MCPError struct {
	ID      json.RawMessage
	RPC     int
	Refusal *Refusal
}

var (
	mcpMessageShape = object(map[string]*shape{"jsonrpc": stringShape, "method": stringShape, "id": anyShape, "params": anyShape}, "")
	mcpCallShape    = object(map[string]*shape{"name": stringShape, "arguments": anyShape, "_meta": anyShape}, "")
	mcpInitShape    = object(map[string]*shape{"protocolVersion": stringShape}, "capabilities clientInfo _meta")
)

// ParseMCP reads one message. Batches, answers of a client and tools that are not
// known are refused.
func ParseMCP(body []byte) (*MCPMessage, *MCPError) {
	fail := func(id json.RawMessage, rpc int, ref *Refusal) (*MCPMessage, *MCPError) {
		return nil, &MCPError{id, rpc, ref}
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) > 0 && b[0] == '[' {
		return fail(nil, rpcInvalid, invalid("mcp_batch", "A batch of messages is refused; send them one by one."))
	}
	root, unknown, ref := readJSON(body, mcpMessageShape)
	if ref != nil {
		return fail(nil, rpcParse, ref)
	}
	m := &MCPMessage{Method: root.str("method")}
	if n := root.get("id"); n != nil {
		id := body[n.start:n.end]
		if n.kind != nodeString && n.kind != nodeNumber || len(id) > 256 {
			return fail(nil, rpcInvalid, invalid("mcp_message", "The message's id must be a string or a number, of 256 bytes at most."))
		}
		m.ID = slices.Clone(id)
	}
	if root.kind != nodeObject || root.str("jsonrpc") != "2.0" || m.Method == "" || len(unknown) > 0 {
		return fail(m.ID, rpcInvalid, invalid("mcp_message", "The body is no JSON-RPC 2.0 request of a client."))
	}
	params := []byte("{}")
	if n := root.get("params"); n != nil {
		if params = body[n.start:n.end]; n.kind != nodeObject {
			return fail(m.ID, rpcParams, invalid("mcp_params", "params must be an object."))
		}
	}
	switch m.Method {
	case "initialize":
		n, _, ref := readJSON(params, mcpInitShape)
		if ref != nil {
			return fail(m.ID, rpcParams, ref)
		}
		m.Version = n.str("protocolVersion")
		fallthrough
	case "ping", "tools/list":
		if m.ID == nil {
			return fail(nil, rpcInvalid, invalid("mcp_message", m.Method+" needs an id."))
		}
		return m, nil
	case "tools/call":
		if m.ID == nil {
			return fail(nil, rpcInvalid, invalid("mcp_message", "tools/call needs an id."))
		}
		if ref := m.tool(params); ref != nil {
			return fail(m.ID, rpcParams, ref)
		}
		return m, nil
	}
	if m.ID == nil && strings.HasPrefix(m.Method, "notifications/") {
		return m, nil
	}
	return fail(m.ID, rpcNoMethod, denied("mcp_method", "This gateway serves initialize, ping, tools/list and tools/call, and no other method of the protocol."))
}

func (m *MCPMessage) tool(params []byte) *Refusal {
	call, unknown, ref := readJSON(params, mcpCallShape)
	switch {
	case ref != nil:
		return ref
	case len(unknown) > 0:
		return invalid("mcp_params", "tools/call takes name and arguments, and nothing else.")
	}
	name := call.str("name")
	i := slices.IndexFunc(mcpTools, func(t *MCPTool) bool { return t.Name == name })
	if i < 0 {
		names := make([]string, len(mcpTools))
		for i, t := range mcpTools {
			names[i] = t.Name
		}
		return denied("mcp_tool", "This tool is not open through this gateway; there are "+strings.Join(names, ", ")+".")
	}
	m.Tool = mcpTools[i]
	raw := []byte("{}")
	if n := call.get("arguments"); n != nil {
		raw = params[n.start:n.end]
	}
	a, unknown, ref := readJSON(raw, m.Tool.shape)
	switch {
	case ref != nil:
		return ref
	case a.kind != nodeObject:
		return invalid("mcp_params", "arguments must be an object.")
	case len(unknown) > 0:
		return invalid("mcp_params", fmt.Sprintf("%s does not take the argument %q.", name, unknown[0]))
	}
	for _, f := range m.Tool.fields {
		if f.required && a.str(f.name) == "" {
			return invalid("mcp_params", fmt.Sprintf("%s needs the argument %s.", name, f.name))
		}
	}
	method, target, body := m.Tool.call(a)
	m.Call = Request{Method: method, Target: target}
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return invalid("mcp_params", "The arguments cannot be written.")
		}
		m.Body = b
	}
	return nil
}

// Result returns what the gateway answers to a message that is no call of a
// tool: the result of JSON-RPC.
func (m *MCPMessage) Result(version string) json.RawMessage {
	var v any = struct{}{}
	switch m.Method {
	case "initialize":
		speak := MCPVersions[0]
		if slices.Contains(MCPVersions, m.Version) {
			speak = m.Version
		}
		v = map[string]any{
			"protocolVersion": speak, "capabilities": map[string]any{"tools": map[string]any{}},
			"serverInfo":   map[string]any{"name": "verbatim", "title": "BigQuery, by way of Verbatim", "version": version},
			"instructions": "BigQuery behind a gateway that records every call and denies what policy does not allow; a denial says what to do.",
		}
	case "tools/list":
		list := []any{}
		for _, t := range mcpTools {
			properties, required := map[string]any{}, []string{}
			for _, f := range t.fields {
				properties[f.name] = map[string]any{"type": f.kind, "description": f.description}
				if f.required {
					required = append(required, f.name)
				}
			}
			list = append(list, map[string]any{
				"name": t.Name, "description": t.Description,
				"inputSchema": map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false},
				"annotations": map[string]any{"readOnlyHint": t.ReadOnly, "destructiveHint": !t.ReadOnly, "openWorldHint": false},
			})
		}
		v = map[string]any{"tools": list}
	}
	b, _ := json.Marshal(v) // of strings, booleans, lists and maps
	return b
}

// MCPAnswer frames what the gateway says in a message: JSON, or an event of a
// stream where the client takes nothing else.
type MCPAnswer struct {
	ID     json.RawMessage
	Stream bool // text/event-stream
}

// NewMCPAnswer reads the client's Accept header.
func NewMCPAnswer(id json.RawMessage, accept string) MCPAnswer {
	accept = strings.ToLower(accept)
	json := accept == "" || strings.Contains(accept, "application/json") || strings.Contains(accept, "*/*") || strings.Contains(accept, "application/*")
	return MCPAnswer{ID: id, Stream: !json && strings.Contains(accept, "text/event-stream")}
}

// ContentType of the answer.
func (a MCPAnswer) ContentType() string {
	if a.Stream {
		return "text/event-stream"
	}
	return "application/json"
}

func (a MCPAnswer) frame(parts ...string) []byte {
	id := string(a.ID)
	if id == "" {
		id = "null"
	}
	text := `{"jsonrpc":"2.0","id":` + id + "," + strings.Join(parts, "") + "}"
	if a.Stream {
		text = "event: message\ndata: " + text + "\n\n"
	}
	return []byte(text)
}

// Result is the answer with a result, which is JSON without line breaks.
func (a MCPAnswer) Result(result json.RawMessage) []byte { return a.frame(`"result":`, string(result)) }

// Error is the answer to what could not be understood.
func (a MCPAnswer) Error(code int, message string) []byte {
	return a.frame(`"error":`, fmt.Sprintf(`{"code":%d,"message":%s}`, code, quote(message)))
}

// Said is the answer of a tool that is one text.
func (a MCPAnswer) Said(text string, failed bool) []byte {
	before, after := a.Around(failed)
	return slices.Concat(before, EscapeJSON(nil, []byte(text)), after)
}

// Around returns what stands before and behind the text of a tool's answer,
// which goes through [EscapeJSON] in between.
func (a MCPAnswer) Around(failed bool) (before, after []byte) {
	const mark = "\x00"
	whole := a.frame(`"result":{"content":[{"type":"text","text":"`, mark, `"}],"isError":`, fmt.Sprint(failed), "}")
	before, after, _ = bytes.Cut(whole, []byte(mark))
	return before, after
}

// EscapeJSON appends text to to as the inside of a JSON string. It looks at one
// byte at a time, so that a text may come in any pieces.
func EscapeJSON(to, text []byte) []byte {
	const hex = "0123456789abcdef"
	from := 0
	for i, c := range text {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		to = append(to, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			to = append(to, '\\', c)
		case '\n':
			to = append(to, '\\', 'n')
		case '\r':
			to = append(to, '\\', 'r')
		case '\t':
			to = append(to, '\\', 't')
		default:
			to = append(to, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(to, text[from:]...)
}
