package server

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// mcp makes of a message of the Model Context Protocol the call that its tool
// stands for, which goes on like any other, and returns its body. A message that
// is no call of a tool is answered: then the plan has its answer.
func (g *Gate) mcp(p *plan, body []byte) ([]byte, *refusal) {
	r := p.request
	if p.encoded() {
		return nil, &refusal{status: 415, reason: bigquery.ReasonInvalid, code: "content_encoding", by: "body", message: "A message with a content-encoding is not served; send it plain."}
	}
	if media, _, _ := strings.Cut(r.header("content-type"), ";"); !strings.EqualFold(strings.TrimSpace(media), "application/json") {
		return nil, &refusal{status: 415, reason: bigquery.ReasonInvalid, code: "content_type", by: "body", message: "A message is JSON: content-type application/json."}
	}
	m, e := bigquery.ParseMCP(body)
	if e != nil {
		a := bigquery.NewMCPAnswer(e.ID, r.header("accept"))
		p.mcp = &a
		refused := refused(e.Refusal, "body")
		refused.rpc = e.RPC
		return nil, refused
	}
	a := bigquery.NewMCPAnswer(m.ID, r.header("accept"))
	p.mcp = &a
	if m.Tool == nil {
		p.call.Tool = m.Method
		// A body, which the protocol has not: where there is none, Envoy puts an
		// error's into its place, and that would not be what is on record.
		p.answer = &answer{status: http.StatusAccepted, body: []byte("{}")}
		if m.ID != nil {
			p.answer = &answer{contentType: a.ContentType(), body: a.Result(m.Result(record.Build))}
		}
		return nil, nil
	}
	p.tool = m.Tool
	route, unclear := bigquery.Classify(m.Call)
	p.route, p.call = route, route.Record()
	p.call.Tool = m.Tool.Name
	if p.leaks(p.call.Project+p.call.Dataset+p.call.Table, p.token) {
		p.call = record.Call{Method: p.call.Method, Tool: m.Tool.Name}
	}
	if unclear != nil {
		return nil, refused(unclear, "route")
	}
	p.carries, p.path = route.Carries, route.Path
	if refused := g.connect(p); refused != nil {
		return nil, refused
	}
	p.contentType = "application/json"
	if m.Tool.Runs {
		p.wrapped = true
	}
	return m.Body, nil
}

// readOnly refuses what a tool that only reads would change.
func (p *plan) readOnly() *refusal {
	if p.tool == nil || !p.tool.Runs || !p.tool.ReadOnly {
		return nil
	}
	if f := p.uses.facts; f != nil && len(f.Writes) == 0 && len(f.Opaque) == 0 && len(f.Statements) > 0 &&
		!slices.ContainsFunc(f.Statements, func(s sql.Statement) bool { return s.Kind != "SELECT" }) {
		return nil
	}
	return &refusal{status: 403, reason: bigquery.ReasonAccessDenied, code: "tool_read_only", by: "body",
		message: "The tool execute_sql_readonly takes a SELECT alone. Use execute_sql for anything else that your grants allow."}
}

// askTool answers with what BigQuery says to the call of a tool whose answer is
// small: the gateway asks itself.
func (g *Gate) askTool(ctx context.Context, p *plan, probe prober) *refusal {
	status, body, err := probe(ctx, "tool "+p.tool.Name, p.route.HTTP, p.path, nil)
	switch {
	case err != nil:
		g.Logger.Warn("tool not answered", "tool", p.tool.Name, "error", err)
		return &refusal{status: 502, reason: bigquery.ReasonBackendError, code: "tool_unanswered", by: "upstream",
			message: "BigQuery gave no answer that the gateway can pass on: none came, or it is too large. Ask for less at once (maxResults, pageSize), or try again later."}
	case status == http.StatusUnauthorized:
		return &refusalGoogleCredential
	}
	var line json.RawMessage
	if line, err = json.Marshal(json.RawMessage(body)); err != nil { // on one line
		line, _ = json.Marshal(string(body))
	}
	p.answer = &answer{contentType: p.mcp.ContentType(), body: p.mcp.Said(string(line), status >= 400)}
	return nil
}

// wrap puts a piece of BigQuery's answer into the message that the caller gets.
// The first piece brings what stands before it.
func (x *exchange) wrap(b []byte) {
	if !x.plan.wrapped {
		x.down.add(x.chunk(b))
		return
	}
	var out []byte
	if !x.wrapBegun {
		x.wrapBegun = true
		before, _ := x.plan.mcp.Around(x.status >= 400)
		out = slices.Clone(before)
	}
	out = bigquery.EscapeJSON(out, b)
	x.hold.change(int64(len(out) - len(b)))
	x.down.add(chunk{b: out})
}

// wrapEnd adds what stands behind BigQuery's answer.
func (x *exchange) wrapEnd() {
	if !x.plan.wrapped || x.plan.headEnd {
		return
	}
	if !x.wrapBegun {
		x.wrap(nil)
	}
	_, after := x.plan.mcp.Around(x.status >= 400)
	x.hold.change(int64(len(after)))
	x.down.add(chunk{b: slices.Clone(after)})
}
