package search

import (
	"crypto/sha256"
	"encoding/hex"

	"verbatim.dev/recorder/record"
)

// Metadata returns the exchange without what was asked and answered: no SQL but
// its SHA-256, no parameters, and none of the texts that may quote them
// (BigQuery's error, the messages of reasons). What it keeps is listed here,
// so a field that is added later is left out until somebody decides.
func (x *Exchange) Metadata() *Exchange {
	m := &Exchange{
		ID: x.ID, Receipt: x.Receipt, Session: x.Session, Time: x.Time, Gateway: x.Gateway,
		Principal: x.Principal, Provenance: x.Provenance,
		Connection: x.Connection, Recording: x.Recording, Method: x.Method, Project: x.Project, Dataset: x.Dataset, Table: x.Table, DryRun: x.DryRun,
		Status: x.Status, Result: x.Result, Cause: x.Cause, Job: x.Job, JobState: x.JobState,
		Rows: x.Rows, TotalRows: x.TotalRows, Bytes: x.Bytes, BytesBilled: x.BytesBilled, BytesProcessed: x.BytesProcessed, CacheHit: x.CacheHit,
		Digests: x.Digests, Decided: x.Decided, Forwarded: x.Forwarded, FirstByte: x.FirstByte, LastByte: x.LastByte, Ended: x.Ended,
		ClosedBy: x.ClosedBy, Segment: x.Segment, Unreadable: x.Unreadable,
	}
	if a := x.Asserted; a != nil {
		// Labels, the request's reason and its id are free text.
		m.Asserted = &record.Asserted{UserAgent: a.UserAgent, Traceparent: a.Traceparent, Agent: a.Agent, Model: a.Model, Conversation: a.Conversation, ToolCall: a.ToolCall}
	}
	if x.SQL != "" {
		sum := sha256.Sum256([]byte(x.SQL))
		m.SQLSHA256 = hex.EncodeToString(sum[:])
	}
	if d := x.Decision; d != nil {
		m.Decision = &Decision{Allow: d.Allow, By: d.By, Policy: d.Policy, WouldDeny: d.WouldDeny, Reasons: []record.Reason{}}
		for _, r := range d.Reasons {
			m.Decision.Reasons = append(m.Decision.Reasons, record.Reason{Code: r.Code})
		}
	}
	return m
}

// Metadata is [Exchange.Metadata] of all that the vault holds of the exchange:
// without the headers, the query string, what the gateway's own calls were
// answered, and the events as they were recorded.
func (d *Detail) Metadata() *Detail {
	m := &Detail{
		Exchange: *d.Exchange.Metadata(), Source: d.Source, HTTP: d.HTTP, Host: d.Host, Location: d.Location, Retention: d.Retention,
		MaxBytes: d.MaxBytes, Labels: d.Labels, Credential: d.Credential, Payloads: d.Payloads, Records: d.Records, Class: d.Class, Expires: d.Expires,
	}
	for _, p := range d.Probes {
		m.Probes = append(m.Probes, record.Probe{At: p.At, Purpose: p.Purpose, Method: p.Method, Status: p.Status})
	}
	for _, h := range d.Heads {
		m.Heads = append(m.Heads, Head{Direction: h.Direction, Head: record.Head{Status: h.Status, Trailer: h.Trailer, Headers: []record.Header{}}})
	}
	return m
}

// Secret reports whether the filter compares what [Exchange.Metadata] leaves
// out: its answers would tell it letter by letter.
func (f *Filter) Secret() bool { return f.SQL != "" || f.Table != "" }
