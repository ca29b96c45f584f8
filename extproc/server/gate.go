package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"time"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/extproc/credential"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/record"
)

// Verifier proves who is calling.
type Verifier interface {
	Verify(ctx context.Context, token string) (*auth.Identity, error)
}

// Policy decides; it is one revision of the rules.
type Policy interface {
	Decide(ctx context.Context, in *policy.Input) (*policy.Decision, error)
	Digest() string
}

// Connection is a BigQuery to reach.
type Connection struct {
	Name       string
	Projects   []string
	Location   string
	REST       string // base URL of the upstream's REST API
	Cluster    string // Envoy's cluster for it
	Storage    string // Envoy's cluster for the Storage Read API; empty: closed
	Recording  string // full or metadata
	Retention  string
	Credential credential.Source
	Client     *http.Client // for the gateway's own calls
	// PerCaller: each caller's calls run as an account of its own.
	PerCaller bool
	// Observe lets through what the policy denies, and says so on record.
	Observe bool
}

// Gate is one snapshot of the configuration: an exchange keeps the one that it
// began with. It is not changed once it is in use.
type Gate struct {
	Verifier    Verifier
	Revoked     func(*auth.Identity) (reason string, ok bool)
	Policy      Policy
	Connections []*Connection
	// Observed are callers whose denials by the policy are let through.
	Observed []Observed
	SQL      Analyzer
	// Analysis is how long reading a text may take, 2 seconds where 0.
	Analysis time.Duration
	DryRuns  *DryRuns // nil: none are made
	Reaches  *Reaches
	// Usage counts what callers use up; nil keeps no budgets.
	Usage Usage
	// SessionKey is the deployment's key for sessions and owners.
	SessionKey []byte
	Owners     *bigquery.Owners
	Accounts   *Accounts
	Sessions   *Sessions
	Jobs       *Jobs
	Told       *Told
	Retention  map[string]bool // the retention classes that there are
	Logger     *slog.Logger
	Now        func() time.Time
}

// maxJobPart is the largest job of a multipart upload, in bytes.
const maxJobPart = 1 << 20

// carriers, as the exchange sees them.
const (
	carriesMultipart = bigquery.CarriesMultipart
	carriesStream    = bigquery.CarriesStream
	carriesForm      = bigquery.CarriesForm
	carriesGRPC      = bigquery.CarriesGRPC
)

// connection returns the connection that lists the project. A call without a
// project (the discovery document) goes to the first.
func (g *Gate) connection(project string) *Connection {
	for _, c := range g.Connections {
		if project == "" {
			return c
		}
		for _, p := range c.Projects {
			if p == project {
				return c
			}
		}
	}
	return nil
}

// refused turns an error of package bigquery into an answer.
func refused(err error, by string) *refusal {
	var r *bigquery.Refusal
	if !errors.As(err, &r) {
		r = &bigquery.Refusal{Status: http.StatusBadRequest, Reason: bigquery.ReasonInvalid, Code: "body_invalid", Message: "The request could not be read."}
	}
	return &refusal{status: r.Status, reason: r.Reason, code: r.Code, by: by, message: r.Message}
}

// outline is what a request's head says, before anything in it is proven: the
// plan, the caller's token or why there is none, and why the call cannot be
// understood.
func (g *Gate) outline(r *request) (p *plan, token string, unclear *bigquery.Refusal, err error) {
	p = newPlan(r)
	p.route, unclear = bigquery.Classify(bigquery.Request{Method: r.method, Target: r.target, Headers: r.headers})
	p.call = p.route.Record()
	p.carries = p.route.Carries
	p.path = p.route.Path
	_, query, _ := strings.Cut(r.target, "?")
	token, err = auth.Bearer(r.headers, query)
	p.keepHeaders(token)
	if p.leaks(p.call.Project+p.call.Dataset+p.call.Table, token) {
		p.call = record.Call{Method: p.call.Method}
	}
	return p, token, unclear, err
}

// anonymous is the session of callers who are not proven.
func (g *Gate) anonymous(r *request) string {
	return auth.Session(g.SessionKey, &auth.Identity{Principal: record.Principal{Subject: "anonymous"}}, r.received)
}

// revoked refuses whom the deny list names.
func (g *Gate) revoked(id *auth.Identity) *refusal {
	reason, ok := g.Revoked(id)
	if !ok {
		return nil
	}
	return &refusal{status: http.StatusUnauthorized, reason: bigquery.ReasonAuthError, code: "revoked", by: "revocation",
		message: "The caller's access was revoked: " + reason + "."}
}

func (g *Gate) head(ctx context.Context, r *request) (*plan, *refusal) {
	p, token, unclear, err := g.outline(r)
	if p.carries == carriesForm { // who calls is proven by the body
		p.session = g.anonymous(r)
		if unclear != nil {
			return p, refused(unclear, "route")
		}
		return p, nil
	}
	var id *auth.Identity
	if err == nil {
		id, err = g.Verifier.Verify(ctx, token)
	}
	if err != nil {
		p.session = g.anonymous(r)
		return p, unproven(err)
	}
	p.identity, p.token = id, token
	p.session = auth.Session(g.SessionKey, id, r.received)
	if refused := g.revoked(id); refused != nil {
		return p, refused
	}
	if unclear != nil {
		return p, refused(unclear, "route")
	}
	if p.route.Stance == bigquery.Local {
		return p, nil
	}
	if p.carries == carriesGRPC { // the message names the project
		return p, nil
	}
	if refused := g.connect(p); refused != nil {
		return p, refused
	}
	if p.carries == carriesMultipart {
		if p.part, err = bigquery.NewPart(r.header("content-type"), maxJobPart); err != nil {
			return p, refused(err, "body")
		}
	}
	return p, nil
}

// connect finds the connection that lists the call's project.
func (g *Gate) connect(p *plan) *refusal {
	p.conn = g.connection(p.call.Project)
	if p.conn == nil {
		return &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "connection_unknown", by: "connection",
			message: fmt.Sprintf("No connection of this gateway lists the project %q. Use a project that is served here, or ask the operator to add it.", p.call.Project)}
	}
	p.class, p.cluster, p.full = p.conn.Retention, p.conn.Cluster, p.conn.Recording != "metadata"
	return nil
}

// unproven answers a request whose caller could not be proven.
func unproven(err error) *refusal {
	var e *auth.Error
	if !errors.As(err, &e) {
		return &refusal{status: http.StatusServiceUnavailable, reason: bigquery.ReasonBackendError, code: "authentication_failed", by: "authentication",
			message: "The token could not be checked now. Try again later."}
	}
	r := &refusal{status: http.StatusUnauthorized, reason: bigquery.ReasonAuthError, code: string(e.Code), by: "authentication", message: e.Message}
	if e.Unavailable {
		r.status, r.reason = http.StatusServiceUnavailable, bigquery.ReasonBackendError
	}
	return r
}

// decide is told the body, of an upload only what came of it so far.
func (g *Gate) decide(ctx context.Context, p *plan, body []byte, probe prober) *refusal {
	contentType, encoding := p.request.header("content-type"), p.request.header("content-encoding")
	switch {
	case p.route.Method == bigquery.MethodMCP:
		var refusal *refusal
		if body, refusal = g.mcp(p, body); refusal != nil {
			return refusal
		}
		if p.answer != nil {
			p.decide(true, nil)
			p.decision.By = "route"
			return nil
		}
		contentType, encoding = "application/json", ""
	case p.route.Stance == bigquery.Local:
		return g.local(ctx, p, body)
	}
	job := body
	switch p.carries {
	case carriesMultipart:
		if job = p.part.JSON(); job == nil {
			return &refusal{status: 400, reason: bigquery.ReasonInvalid, code: "multipart", by: "body", message: "The upload ended before its first part, the job's JSON, was whole."}
		}
		if p.encoded() {
			return &refusal{status: 415, reason: bigquery.ReasonInvalid, code: "content_encoding", by: "body", message: "A multipart upload with a content-encoding is not served; send it plain."}
		}
		contentType, encoding = p.part.ContentType(), ""
	case carriesStream:
		if p.encoded() {
			return &refusal{status: 415, reason: bigquery.ReasonInvalid, code: "content_encoding", by: "body", message: "An upload with a content-encoding is not served; send it plain, or as a file that is itself compressed."}
		}
		job = nil
	case carriesGRPC:
		if refusal := g.storageRead(ctx, p, body); refusal != nil {
			return refusal
		}
		job = nil
	}
	facts, err := bigquery.ParseBody(p.route, contentType, encoding, job)
	if err != nil {
		if len(facts.Sources) > 0 { // an extract: what it would have taken away
			p.facts = facts
			_ = p.doors() // what they name is refused already
			p.tellCall()
		}
		return refused(err, "body")
	}
	p.facts = facts
	p.call.SQL, p.call.Parameters, p.call.DryRun = p.facts.SQL, p.facts.Parameters, p.facts.DryRun
	if p.facts.Job != nil {
		p.call.Job = p.facts.Job
	}
	p.asserted.Labels, p.asserted.RequestID = p.facts.Labels, p.facts.RequestID
	if refusal := beyond(&p.facts); refusal != nil {
		return refusal
	}
	switch {
	case p.route.UploadID != "":
		if refusal := g.resume(p); refusal != nil {
			return refusal
		}
	case p.route.Upload == bigquery.UploadStart:
		g.starts(p)
	}
	p.target()
	if refusal := g.understand(ctx, p); refusal != nil {
		return refusal
	}
	decision, refusal := g.policy(ctx, p, probe)
	if refusal != nil {
		return refusal
	}
	if refusal := p.readOnly(); refusal != nil {
		return refusal
	}
	if refusal := g.owned(ctx, p, probe); refusal != nil {
		return refusal
	}
	if refusal := g.reached(ctx, p, probe); refusal != nil {
		return refusal
	}
	if ask := g.instead(p); ask != nil {
		if refusal := ask(ctx, p, probe); refusal != nil {
			return refusal
		}
		p.decide(true, nil)
		p.decision.By = "policy"
		return nil
	}
	if p.owner, refusal = ownerFor(p.identity, decision); refusal != nil {
		return refusal
	}
	if p.begins != nil {
		p.begins(p.owner)
	}
	if refusal := g.rewrite(p, decision); refusal != nil {
		return refusal
	}
	if decision.Retention != "" {
		if !g.Retention[decision.Retention] {
			return policyFailed("the policy names the retention class " + decision.Retention + ", which the gateway does not have")
		}
		p.class = decision.Retention
	}
	token, err := p.conn.Credential.Token(ctx, credential.Caller{Session: p.session, Principal: p.identity.Principal})
	if err != nil {
		g.Logger.Error("no credential", "connection", p.conn.Name, "error", err)
		return &refusalCredential
	}
	p.credential, p.decision.Credential = token.Value, token.Name
	p.decide(true, nil)
	p.decision.By = "policy"
	return nil
}

// instead returns what answers a call in BigQuery's place, from what the gateway
// asks itself; nil where the call goes upstream.
func (g *Gate) instead(p *plan) func(context.Context, *plan, prober) *refusal {
	switch {
	case p.call.Method == "bigquery.jobs.list" && p.route.Job == nil:
		return g.listJobs
	case p.call.Method == "discovery":
		return g.discovery
	case p.tool != nil && !p.tool.Runs:
		return g.askTool
	}
	return nil
}

// analysisTime is the limit of one analysis.
func (g *Gate) analysisTime() time.Duration {
	if g.Analysis > 0 {
		return g.Analysis
	}
	return 2 * time.Second
}

var refusalCredential = refusal{status: 503, reason: bigquery.ReasonBackendError, code: "credential_unavailable", by: "credential",
	message: "The gateway has no credential for BigQuery at the moment. Try again later; the operator finds the cause in the gateway's log."}

var refusalGoogleCredential = refusal{status: http.StatusServiceUnavailable, reason: bigquery.ReasonBackendError, code: "credential_refused", by: "credential",
	message: "BigQuery refused the gateway's own credential; the caller's token is not the cause. Try again later and tell the operator."}

func policyFailed(why string) *refusal {
	return &refusal{status: 403, reason: bigquery.ReasonAccessDenied, code: string(policy.CodeError), by: "policy",
		message: "The policy could not be evaluated, so the request is denied: " + why + "."}
}

// policy asks the rules, once more where they want to hear BigQuery first.
func (g *Gate) policy(ctx context.Context, p *plan, probe prober) (*policy.Decision, *refusal) {
	p.decision.Policy = g.Policy.Digest()
	d, r := g.evaluate(ctx, p)
	if r != nil {
		return nil, r
	}
	asked := d.DryRun || g.unread(p, d)
	if asked {
		if r := g.hear(ctx, p, probe); r != nil {
			return nil, r
		}
		if d, r = g.evaluate(ctx, p); r != nil {
			return nil, r
		}
		if d.DryRun {
			return nil, policyFailed("it asks for a dry run that it has")
		}
	}
	for _, r := range d.Reasons {
		p.decision.Reasons = append(p.decision.Reasons, record.Reason(r))
	}
	var denied *refusal
	switch {
	case !d.Allow:
		denied = &refusal{status: 403, reason: bigquery.ReasonAccessDenied, code: "policy_denied", by: "policy", message: "The policy denies this request.", reasons: p.decision.Reasons}
		if len(d.Reasons) > 0 {
			denied.code, denied.message = d.Reasons[0].Code, d.Reasons[0].Message
		}
	case asked && !p.uses.dry.Complete:
		denied = &refusal{status: 403, reason: bigquery.ReasonAccessDenied, code: "dry_run_incomplete", by: "policy",
			message: fmt.Sprintf("BigQuery's dry run does not list all tables that the query references (it lists at most %d), so nobody can say what it reads. Use fewer tables in one query.", mostTables)}
	}
	if denied != nil {
		if !g.observes(p) {
			return nil, denied
		}
		p.decision.WouldDeny = true
		p.decision.Reasons = denied.reasons
		if len(denied.reasons) == 0 {
			p.decision.Reasons = []record.Reason{{Code: denied.code, Message: denied.message}}
		}
	}
	// Whatever the rules say, and whoever only looks on: what is not understood
	// does not run.
	if f := p.uses.facts; f != nil && f.Problem != nil && f.Source != sql.SourceDryRun {
		return nil, notUnderstood(f.Problem)
	}
	p.reaches()
	p.decision.MaxBytes = d.Limits.MaximumBytesBilled
	return d, nil
}

// unread reports whether the policy denies a text for no other reason than that
// the parser could not read it, and BigQuery may.
func (g *Gate) unread(p *plan, d *policy.Decision) bool {
	f := p.uses.facts
	return f != nil && f.Problem != nil && f.Problem.Fallback && p.uses.dry == nil && p.queries() && g.DryRuns != nil &&
		!d.Allow && len(d.Reasons) > 0 && d.Reasons[0].Code == policy.CodeUnreadable
}

// hear asks BigQuery for the policy.
func (g *Gate) hear(ctx context.Context, p *plan, probe prober) *refusal {
	if p.facts.SessionID != "" { // whose it is comes before BigQuery is asked within it
		if r := g.owned(ctx, p, probe); r != nil {
			return r
		}
	}
	if f := p.uses.facts; f != nil && f.Problem != nil && p.queries() && g.DryRuns != nil {
		return g.standIn(ctx, p, probe)
	}
	return g.askDryRun(ctx, p, probe)
}

// evaluate asks the rules once.
func (g *Gate) evaluate(ctx context.Context, p *plan) (*policy.Decision, *refusal) {
	in := p.input(g.Now())
	g.usage(p, in)
	d, err := g.Policy.Decide(ctx, in)
	if err == nil {
		return d, nil
	}
	r := policyFailed("it failed")
	var e *policy.Error
	if errors.As(err, &e) {
		r.code = string(e.Code)
	}
	g.Logger.Error("policy failed", "code", r.code, "error", err, "policy", p.decision.Policy)
	return nil, r
}

// caller is who calls and from where, as the rules see it.
func (p *plan) caller() (policy.Caller, policy.Provenance) {
	id := p.identity
	c := policy.Caller{Issuer: id.Principal.Issuer, IssuerURL: id.Principal.URL, Subject: id.Principal.Subject,
		Email: id.Principal.Email, Groups: id.Principal.Groups}
	for _, a := range id.Principal.OnBehalfOf {
		c.OnBehalfOf = append(c.OnBehalfOf, policy.Actor(a))
	}
	return c, policy.Provenance{
		Profile: id.Provenance.Profile, Pipeline: id.Provenance.Pipeline, Repository: id.Provenance.Repository, Ref: id.Provenance.Ref,
		Commit: id.Provenance.Commit, Workflow: id.Provenance.Workflow, Run: id.Provenance.Run, Actor: id.Provenance.Actor,
		Environment: id.Provenance.Environment, Namespace: id.Provenance.Namespace, Pod: id.Provenance.Pod,
		ServiceAccount: id.Provenance.ServiceAccount, SPIFFE: id.Provenance.SPIFFE,
	}
}

// input is what the rules see.
func (p *plan) input(now time.Time) *policy.Input {
	caller, provenance := p.caller()
	in := &policy.Input{
		Time: now.UTC(), Caller: caller, Provenance: provenance,
		Asserted: policy.Asserted{UserAgent: p.asserted.UserAgent, Labels: p.asserted.Labels, RequestReason: p.asserted.RequestReason,
			Agent: p.asserted.Agent, Model: p.asserted.Model, Conversation: p.asserted.Conversation, ToolCall: p.asserted.ToolCall},
		Connection: policy.Connection{Name: p.conn.Name, Location: p.conn.Location, Recording: p.conn.Recording, Retention: p.conn.Retention},
		Request: policy.Request{
			Method: p.call.Method, Kind: string(p.route.Kind), HTTPMethod: p.request.method, Path: pathOf(p.path),
			Project: p.call.Project, Dataset: p.call.Dataset, Table: p.call.Table, DryRun: p.call.DryRun,
			JobType: string(p.facts.JobType), ExternalTables: len(p.facts.External) > 0,
		},
	}
	if t := p.facts.Destination; t != nil && t.Table != "" {
		in.Request.Destination = t.Project + "." + t.Dataset + "." + t.Table
	}
	if d := p.facts.DefaultDataset; d != nil {
		in.Request.DefaultDataset = strings.TrimPrefix(d.Project+"."+d.Dataset, ".")
	}
	if p.call.Job != nil {
		in.Request.Job = p.call.Job.ID
	}
	if p.facts.SQL != "" {
		in.SQL = &policy.SQL{Text: p.facts.SQL, Legacy: p.facts.Legacy != nil && *p.facts.Legacy || p.facts.LegacyPrefix, Parameters: p.facts.Parameters,
			Facts: p.uses.facts, DryRun: p.uses.dry}
	}
	in.Reads, in.Writes, in.Incomplete = p.uses.reads, p.uses.writes, p.uses.incomplete
	return in
}

// target names what the call is about where the body says it and the path does
// not: a new dataset or table, and where a load goes.
func (p *plan) target() {
	t := p.facts.Destination
	if t == nil {
		return
	}
	switch {
	case p.facts.JobType == bigquery.JobLoad, p.call.Method == "bigquery.datasets.insert", p.call.Method == "bigquery.tables.insert":
		p.call.Dataset, p.call.Table = t.Dataset, t.Table
	}
}

// rewrite puts the decision's limits and labels into the request, and what
// keeps callers apart who share one account.
func (g *Gate) rewrite(p *plan, d *policy.Decision) *refusal {
	plain := p.facts.Body
	if len(plain) == 0 {
		return nil
	}
	if p.route.Method != "bigquery.jobs.query" && p.route.Method != "bigquery.jobs.insert" {
		if p.encoded() {
			p.body = plain
		}
		return nil
	}
	changes := bigquery.Changes{MaximumBytesBilled: d.Limits.MaximumBytesBilled, ForceStandardSQL: true, Labels: map[string]string{}, Project: p.call.Project}
	for k, v := range d.Labels {
		changes.Labels[k] = v
	}
	location := p.facts.Location
	if location == "" && p.facts.Job != nil {
		location = p.facts.Job.Location
	}
	maps.Copy(changes.Labels, g.mark(p.call.Project, location, p.session, p.owner))
	delete(changes.Labels, labelReach)
	if p.reach != nil {
		changes.Labels[labelReach], changes.NoCache = g.reachLabel(p.call.Project, p.reach.listed), true
		p.nameJob()
	}
	// Without a job there are no labels to tell whose the result is. A project's
	// own default may be another than the API's.
	changes.JobCreationMode = "JOB_CREATION_REQUIRED"
	if p.facts.RequestID != "" {
		// BigQuery answers a repeated request id with the first one's result:
		// another caller's id must not be guessable.
		changes.RequestID = g.mac("verbatim/request/2", p.call.Project, p.owner.Issuer, p.owner.Subject, p.facts.RequestID)
	}
	changed, err := bigquery.Rewrite(p.route, plain, changes)
	if err != nil {
		return refused(err, "body")
	}
	switch {
	case p.carries == carriesMultipart:
		p.body, p.contentType = p.part.Replace(changed), p.part.UpstreamContentType()
	case !bytes.Equal(changed, plain) || p.encoded():
		p.body = changed
	}
	p.decision.Labels = changes.Labels
	return nil
}

// encoded reports whether the request's body is compressed.
func (p *plan) encoded() bool {
	e := p.request.header("content-encoding")
	return e != "" && !strings.EqualFold(e, "identity")
}

// asks reports whether the request makes a job whose id its caller chose.
func (p *plan) asks() bool {
	return p.call.Method == "bigquery.jobs.insert" && p.identity != nil && p.call.Job != nil && !p.call.DryRun && p.route.Upload != bigquery.UploadStart
}

// forwarded notes a job that may run before BigQuery has said so: the kill
// switch reaches it too.
func (g *Gate) forwarded(p *plan) {
	g.spend(p)
	if p.asks() {
		g.Jobs.Asked(RunningJob{Job: *p.call.Job, Identity: p.identity, Session: p.session, Connection: p.conn.Name})
	}
}

// settled notes who owns what the exchange made. An id counts only when
// BigQuery accepted it: a caller could name another's job.
func (g *Gate) settled(p *plan, status int, f bigquery.ResponseFacts) {
	if p.asks() {
		g.Jobs.Answered(*p.call.Job)
	}
	if p.identity == nil || status < 200 || status > 299 {
		return
	}
	g.spent(p, f)
	made := (p.call.Method == "bigquery.jobs.insert" || p.call.Method == "bigquery.jobs.query") && !p.call.DryRun
	if f.Job == nil {
		return
	}
	running := f.State != "DONE" && (f.JobComplete == nil || !*f.JobComplete)
	if made {
		g.Owners.Put(bigquery.JobKey(*f.Job), p.owner)
		id := p.facts.SessionID
		if f.SessionID != "" {
			id = f.SessionID
			key := bigquery.SessionKey(p.call.Project, f.SessionID)
			g.Owners.Put(key, p.owner)
			if facts := p.uses.facts; facts != nil && len(facts.Temporary) > 0 && g.Sessions != nil {
				g.Sessions.Made(key, facts.Temporary)
			}
		}
		if made := p.uses.facts; id != "" && made != nil && len(made.Temporary) > 0 && g.Sessions != nil {
			g.Sessions.Made(bigquery.SessionKey(p.call.Project, id), made.Temporary)
		}
		if p.reach != nil && p.found == nil && g.Reaches != nil {
			g.Reaches.made(bigquery.JobKey(*f.Job), p.reach)
		}
		if running {
			g.Jobs.Started(RunningJob{Job: *f.Job, Identity: p.identity, Session: p.session, Connection: p.conn.Name})
		}
	}
	if !running {
		g.Jobs.Ended(*f.Job)
	}
	// The result of a query whose job is the caller's own, as jobs.get names it.
	if d := f.Destination; d != nil && strings.HasPrefix(d.Dataset, "_") {
		owner, known := g.Owners.Owner(bigquery.JobKey(*f.Job))
		if known && isOneOf(owner, ownersOf(p.identity)) {
			g.Owners.Put(bigquery.TableKey(*d), owner)
			if g.Reaches != nil {
				g.Reaches.result(bigquery.TableKey(*d), *f.Job)
			}
		}
	}
}
