package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault"
)

// Filter says which rows are wanted.
type Filter struct {
	// Since and Until bound the time of the request, Until excluded; zero: no
	// bound. Files of other days are not read.
	Since, Until time.Time
	// Match, where set, says whether a row of that time is wanted.
	Match func(*Row) bool
}

// ScanStats count what a scan met.
type ScanStats struct {
	Files   int64 // read
	Rows    int64 // of the time asked for
	Matched int64
}

// Scan calls emit for each row that fits, by days and within a day by epochs
// and sequences. The row is the callee's. It holds one file in memory. An error
// of emit ends the scan and is returned. It may run beside a build; then a file
// is read as it was at one moment.
func Scan(ctx context.Context, s Store, f Filter, emit func(*Row) error) (ScanStats, error) {
	var stats ScanStats
	from, to := "", ""
	since, until := micros(f.Since), micros(f.Until)
	if since != 0 {
		from = vault.Day(f.Since)
	}
	if until != 0 {
		to = vault.Day(f.Until)
	}
	var stop error
	for name, err := range s.List(ctx, RowsPrefix) {
		if err != nil {
			return stats, fmt.Errorf("index: %w", err)
		}
		id, err := parseFile(name)
		if err != nil || id.Day < from || to != "" && id.Day > to {
			continue // what is no file of the index is for Check to tell
		}
		content, _, err := s.Read(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			return stats, fmt.Errorf("index: %w", err)
		}
		stats.Files++
		err = decode(content, func(r *Row) error {
			if since != 0 && r.Received < since || until != 0 && r.Received >= until {
				return nil
			}
			stats.Rows++
			if f.Match != nil && !f.Match(r) {
				return nil
			}
			stats.Matched++
			stop = emit(r)
			return stop
		})
		if stop != nil {
			return stats, stop
		}
		if err != nil {
			return stats, fmt.Errorf("index: %s: %w", name, err)
		}
	}
	return stats, nil
}

// Search calls emit for each exchange that fits, as [search.Scan] does of a
// vault; those that were erased since the index was built are in neither. Times
// have microseconds.
func Search(ctx context.Context, s Store, f search.Filter, emit func(*search.Exchange) error) (search.Stats, error) {
	var stats search.Stats
	_, err := Scan(ctx, s, Filter{Since: f.Since, Until: f.Until}, func(r *Row) error {
		stats.Exchanges++
		if r.Unreadable != "" && r.Decision == "" && f.Content() {
			stats.Unreadable++
			return nil
		}
		x := r.Search()
		if !f.Fits(x) {
			return nil
		}
		stats.Matched++
		return emit(x)
	})
	return stats, err
}

// Search returns the row as search gives an exchange.
func (r *Row) Search() *search.Exchange {
	x := &search.Exchange{
		ID: r.Exchange, Receipt: r.Exchange, Session: r.Session, Time: r.Time(), Gateway: r.Gateway,
		Connection: r.Connection, Recording: r.Recording, Method: r.Method, Project: r.Project, Dataset: r.Dataset, Table: r.Table,
		DryRun: r.DryRun, SQL: r.SQL, Status: int(r.Status), Result: record.Result(r.Result), Cause: r.Cause, Error: r.Error, JobState: r.JobState,
		Rows: r.RowCount, TotalRows: r.TotalRows, Bytes: r.BytesOut, BytesBilled: r.BytesBilled, BytesProcessed: r.BytesProcessed, CacheHit: r.CacheHit,
		Decided: atPointer(r.Decided), Forwarded: atPointer(r.Forwarded), FirstByte: atPointer(r.FirstByte), LastByte: atPointer(r.LastByte), Ended: atPointer(r.Ended),
		ClosedBy: r.ClosedBy, Segment: r.Segment, Unreadable: r.Unreadable,
		Statements: r.Kinds, Functions: r.Functions, Opaque: r.Opaque,
	}
	for _, name := range r.Reads { // how that is known, the index does not say
		x.Reads = append(x.Reads, record.TableUse{Table: name})
	}
	for _, name := range r.Writes {
		x.Writes = append(x.Writes, record.TableUse{Table: name})
	}
	if r.Parameters != "" {
		x.Parameters = json.RawMessage(r.Parameters)
	}
	if r.Subject != "" || r.Issuer != "" {
		x.Principal = &record.Principal{Issuer: r.Issuer, URL: r.IssuerURL, Subject: r.Subject, Email: r.Email, Groups: r.GroupNames, TokenID: r.TokenID}
		for _, a := range r.OnBehalfOf {
			issuer, subject, _ := strings.Cut(a, "/")
			x.Principal.OnBehalfOf = append(x.Principal.OnBehalfOf, record.Actor{Issuer: issuer, Subject: subject})
		}
	}
	if r.Profile != "" {
		x.Provenance = &record.Provenance{
			Profile: r.Profile, Pipeline: r.Pipeline, Repository: r.Repository, Ref: r.Ref, Commit: r.Commit, Workflow: r.Workflow, Run: r.Run, Actor: r.Actor,
			Environment: r.Environment, Namespace: r.Namespace, Pod: r.Pod, ServiceAccount: r.ServiceAccount, Node: r.Node, SPIFFE: r.SPIFFE,
		}
	}
	if r.Decision != "" {
		x.Asserted = &record.Asserted{
			UserAgent: r.UserAgent, Traceparent: r.Traceparent, RequestReason: r.RequestReason, RequestID: r.RequestID,
			Agent: r.Agent, Model: r.Model, Conversation: r.Conversation, ToolCall: r.ToolCall,
		}
		for _, l := range r.Labels {
			if x.Asserted.Labels == nil {
				x.Asserted.Labels = map[string]string{}
			}
			name, value, _ := strings.Cut(l, "=")
			x.Asserted.Labels[name] = value
		}
		x.Decision = &search.Decision{Allow: r.Decision == "allow", WouldDeny: r.WouldDeny, By: r.DecidedBy, Policy: r.PolicyDigest, Reasons: []record.Reason{}}
		for i, code := range r.Reasons {
			reason := record.Reason{Code: code}
			if i < len(r.Messages) {
				reason.Message = r.Messages[i]
			}
			x.Decision.Reasons = append(x.Decision.Reasons, reason)
		}
	}
	if r.Job != "" {
		x.Job = &record.Job{Project: r.JobProject, Location: r.JobLocation, ID: r.Job}
	}
	if r.Ended != 0 && r.Result != string(record.ResultInterrupted) && r.Result != Unknown {
		x.Digests = map[string]string{}
		for d, sum := range map[record.Direction]string{record.DirectionRequest: r.RequestSHA256, record.DirectionUpstream: r.UpstreamSHA256, record.DirectionResponse: r.ResponseSHA256} {
			if sum != "" {
				x.Digests[d.String()] = sum
			}
		}
	}
	return x
}
