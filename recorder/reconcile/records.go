package reconcile

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// maxUpstream is the largest upstream body that is put together to read its
// SQL, in bytes. SQL is at most 1 MB at BigQuery, parameters the rest.
const maxUpstream = 32 << 20

// rank says how surely an exchange made the job that it names.
type rank int

const (
	rankDenied  rank = iota // the request was denied
	rankDryRun              // it asked for no execution
	rankRefused             // BigQuery answered with a 4xx
	rankUnknown             // no answer, or one that says nothing
	rankDone                // BigQuery answered with success
)

// made is an exchange that could have made a job.
type made struct {
	id         string
	session    string
	begun      time.Time
	ended      time.Time // zero where there is no outcome
	job        *record.Job
	project    string
	location   string
	rank       rank
	delivered  bool
	begins     bool // the first request of a resumable upload: another makes the job
	dryRun     bool
	allow      bool
	sql        string
	basis      string // "upstream", or "request" where that is what went upstream or all that is known
	unread     bool   // the upstream body could not be read as JSON
	labels     map[string]string
	credential string
}

// upstream is the part of a request's body that is compared.
type upstream struct {
	Query         json.RawMessage   `json:"query"`
	Labels        map[string]string `json:"labels"`
	Configuration *struct {
		Labels map[string]string `json:"labels"`
		Query  *struct {
			Query string `json:"query"`
		} `json:"query"`
	} `json:"configuration"`
}

// reader puts the exchanges together that could have made jobs.
type reader struct {
	c    *Config
	emit func(*made)
	open map[record.ID]*partial
	r    *Report
	last time.Time // of any record
}

type partial struct {
	made
	upstream []byte
	pieces   bool // the upstream body is wanted
	over     bool // it is larger than what is read
}

// read walks the vault. It calls emit for each exchange when it ends, and at
// last for those that have not.
func (x *reader) read(ctx context.Context) error {
	c := search.Config{Vault: x.c.Vault, Keys: x.c.Keys, Warn: func(err error) {
		x.r.Vault.Warnings++
		if x.c.Warn != nil {
			x.c.Warn(err)
		}
	}}
	var err error
	x.r.Vault.Segments, err = search.Walk(ctx, c, x.c.Since, x.c.Until, x.record)
	if err != nil {
		return err
	}
	for _, p := range x.open {
		x.done(p, nil)
	}
	return nil
}

func (x *reader) record(r *search.Record) error {
	f := r.Frame
	if f.Time.After(x.last) {
		x.last = f.Time
	}
	switch f.Kind {
	case record.KindIntent:
		return x.intent(r)
	case record.KindPayload:
		p := x.open[r.Exchange()]
		if p == nil || !p.pieces || f.Direction != record.DirectionUpstream || f.Flags&record.FlagHead != 0 {
			return nil
		}
		body, why, err := r.Open()
		switch {
		case err != nil:
			return err
		case why != nil, len(p.upstream)+len(body) > maxUpstream:
			p.over, p.pieces, p.upstream = true, false, nil
		default:
			p.upstream = append(p.upstream, body...)
		}
	case record.KindOutcome:
		p := x.open[r.Exchange()]
		if p == nil {
			return nil
		}
		delete(x.open, r.Exchange())
		var o record.Outcome
		why, err := r.Read(&o)
		if err != nil {
			return err
		}
		p.ended = f.Time
		if why != nil {
			x.r.Vault.Unreadable++
			x.done(p, nil)
			return nil
		}
		x.done(p, &o)
	}
	return nil
}

func (x *reader) intent(r *search.Record) error {
	var i record.Intent
	why, err := r.Read(&i)
	if err != nil {
		return err
	}
	x.r.Vault.Exchanges++
	if why != nil {
		x.r.Vault.Unreadable++
		return nil
	}
	v := &i.Verbatim
	if v.Call.Method != "bigquery.jobs.query" && v.Call.Method != "bigquery.jobs.insert" {
		return nil
	}
	x.r.Vault.JobRequests++
	p := &partial{made: made{
		id: r.Exchange().String(), session: v.Session, begun: v.Received, job: v.Call.Job, project: v.Call.Project,
		dryRun: v.Call.DryRun, allow: v.Decision.Allow, sql: v.Call.SQL, basis: "request", labels: v.Decision.Labels,
		credential: v.Decision.Credential,
	}}
	if p.begun.IsZero() {
		p.begun = r.Frame.Time
	}
	if v.Connection != nil {
		p.location = v.Connection.Location
	}
	query := i.Request.URL.Query
	p.begins = strings.Contains(i.Request.URL.Path, "/upload/") && strings.Contains(query, "uploadType=resumable") && !strings.Contains(query, "upload_id=")
	p.pieces = p.allow && p.sql != ""
	x.open[r.Exchange()] = p
	return nil
}

// done judges an exchange that ended; o is nil where no outcome says how.
func (x *reader) done(p *partial, o *record.Outcome) {
	m := &p.made
	if len(p.upstream) > 0 {
		m.upstream(p.upstream)
		p.upstream = nil // the exchange may be kept for long
	}
	m.unread = m.unread || p.over
	switch {
	case !m.allow:
		m.rank = rankDenied
	case m.dryRun:
		m.rank = rankDryRun
	case o == nil:
		m.rank = rankUnknown
	default:
		m.delivered = o.Verbatim.Result == record.ResultDelivered
		code := o.Response.Code
		switch {
		case code >= 200 && code < 300:
			m.rank = rankDone
		case m.delivered && code >= 400 && code < 500:
			m.rank = rankRefused
		default:
			m.rank = rankUnknown
		}
		if o.Verbatim.Job != nil {
			m.job = o.Verbatim.Job
		}
	}
	if m.begins {
		m.rank = min(m.rank, rankUnknown)
	}
	switch m.rank {
	case rankDenied:
		x.r.Vault.Denied++
	case rankDryRun:
		x.r.Vault.DryRuns++
	}
	x.emit(m)
}

// upstream reads the SQL and the labels of what went upstream.
func (m *made) upstream(b []byte) {
	var u upstream
	if json.Unmarshal(b, &u) != nil {
		m.unread = true
		return
	}
	var sql string
	switch {
	case u.Configuration != nil && u.Configuration.Query != nil:
		sql = u.Configuration.Query.Query
	case json.Unmarshal(u.Query, &sql) != nil:
		m.unread = true
		return
	}
	m.sql, m.basis = sql, "upstream"
	labels := u.Labels
	if u.Configuration != nil {
		labels = u.Configuration.Labels
	}
	for k, v := range labels {
		if m.labels == nil {
			m.labels = map[string]string{}
		}
		if _, ours := m.labels[k]; !ours {
			m.labels[k] = v
		}
	}
}

// account is the e-mail address of the credential that the record names,
// "kind:identity", where it is one.
func (m *made) account() string {
	kind, who, ok := strings.Cut(m.credential, ":")
	switch {
	case !ok, strings.ContainsAny(who, "/ "), !strings.Contains(who, "@"):
		return ""
	case kind == "service_account_key", kind == "impersonation", kind == "metadata":
		return who
	}
	return ""
}
