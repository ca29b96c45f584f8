package server

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy"
	"verbatim.dev/recorder/record"
)

// Ownership: one caller cannot reach another's through the account that all of
// them share. Whose a job is, the job itself says, in labels that the gateway
// wrote when it was inserted; BigQuery is all that replicas share. What a label
// says counts on a job of the gateway's own account alone: anybody who may insert
// jobs can copy labels.
const (
	labelSession = "verbatim_session"
	// labelExchange is a nonce of one exchange, in its record too: it joins
	// BigQuery's own audit logs to records, and makes each owner's label another.
	labelExchange = "verbatim_exchange"
	// labelOwner is an HMAC over project, location, owner, session and nonce.
	labelOwner = "verbatim_owner"
)

// groupIssuer is the issuer of owners that are groups: no URL, so that no
// principal can be one.
const groupIssuer = "group"

func ownerOf(id *auth.Identity) bigquery.Owner {
	return bigquery.Owner{Issuer: id.Principal.URL, Subject: id.Principal.Subject}
}

// ownersOf returns who a caller may act as: itself, and each of its groups.
func ownersOf(id *auth.Identity) []bigquery.Owner {
	out := make([]bigquery.Owner, 0, 1+len(id.Principal.Groups))
	out = append(out, ownerOf(id))
	for _, g := range id.Principal.Groups {
		out = append(out, bigquery.Owner{Issuer: groupIssuer, Subject: g})
	}
	return out
}

func isOneOf(o bigquery.Owner, of []bigquery.Owner) bool { return slices.Contains(of, o) }

// ownerFor is whose a thing is that the request makes: the caller's, or the
// group's that the policy names.
func ownerFor(id *auth.Identity, d *policy.Decision) (bigquery.Owner, *refusal) {
	if d.Owner == "" {
		return ownerOf(id), nil
	}
	if !slices.Contains(id.Principal.Groups, d.Owner) {
		return bigquery.Owner{}, policyFailed("it gives the job to the group " + d.Owner + ", which the caller is not in")
	}
	return bigquery.Owner{Issuer: groupIssuer, Subject: d.Owner}, nil
}

// mac returns 52 characters of lower-case base32: an HMAC under the
// deployment's key over the parts, each with its length.
func (g *Gate) mac(parts ...string) string {
	mac := hmac.New(sha256.New, g.SessionKey)
	for _, s := range parts {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(s)))
		mac.Write(n[:])
		mac.Write([]byte(s))
	}
	return lower32(mac.Sum(nil))
}

func lower32(b []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// mark returns the labels of a new job of the owner. location is the request's,
// empty where BigQuery chooses it.
func (g *Gate) mark(project, location, session string, owner bigquery.Owner) map[string]string {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand)
	m := map[string]string{labelSession: session, labelExchange: lower32(nonce[:])}
	m[labelOwner] = g.ownerLabel(project, location, owner, m)
	return m
}

func (g *Gate) ownerLabel(project, location string, owner bigquery.Owner, labels map[string]string) string {
	return g.mac("verbatim/owner/2", project, strings.ToLower(location), owner.Issuer, owner.Subject, labels[labelSession], labels[labelExchange])
}

// owned returns as which of the owners the labels of a job say that it was made.
// The location counted as the request gave it: where it gave none, as empty.
func (g *Gate) ownerIn(labels map[string]string, project, location string, owners []bigquery.Owner) (bigquery.Owner, bool) {
	says := labels[labelOwner]
	if says == "" {
		return bigquery.Owner{}, false
	}
	for _, o := range owners {
		for _, l := range []string{location, ""} {
			if hmac.Equal([]byte(says), []byte(g.ownerLabel(project, l, o, labels))) {
				return o, true
			}
		}
	}
	return bigquery.Owner{}, false
}

func notOwned(what string) *refusal {
	return &refusal{status: 403, reason: bigquery.ReasonAccessDenied, code: "not_owner", by: "ownership",
		message: "This " + what + " is not known to be the caller's own, so its content is not shown. Only who made it through this gateway may use it."}
}

// owned checks every handle in the request that another caller may have made.
// What cannot be proven is denied.
func (g *Gate) owned(ctx context.Context, p *plan, probe prober) *refusal {
	if s := p.facts.SessionID; s != "" {
		owns, err := g.ownsSession(ctx, p, s, probe)
		if err != nil {
			g.Logger.Warn("owner of a BigQuery session not found", "error", err)
		}
		if !owns {
			return notOwned("BigQuery session")
		}
	}
	switch {
	case p.route.Table != "" && strings.HasPrefix(p.call.Dataset, "_"):
		t := bigquery.Table{Project: p.call.Project, Dataset: p.call.Dataset, Table: p.call.Table}
		owns, err := g.ownsTable(ctx, p, t, probe)
		if err != nil {
			g.Logger.Warn("owner of an anonymous table not found", "error", err)
		}
		if !owns {
			return notOwned("anonymous table")
		}
	case p.route.Job != nil:
		owns, err := g.ownsJob(ctx, p, *p.route.Job, probe)
		if err != nil {
			g.Logger.Warn("owner of a job not found", "job", p.route.Job.String(), "error", err)
		}
		if !owns {
			return notOwned("job")
		}
	}
	return nil
}

// ownsAs reports whether one of the caller's owners made key, as far as this
// replica knows.
func (g *Gate) ownsAs(key bigquery.Key, owners []bigquery.Owner) (owns, known bool) {
	for _, o := range owners {
		has, k := g.Owners.Owns(key, o)
		if known = known || k; has {
			return true, true
		}
		if !k {
			return false, known
		}
	}
	return false, known
}

// ownsJob reports whether the caller made a job: as this replica knows, or as
// the labels say that a replica wrote. The jobs that a script makes belong to
// whoever made the script; that they carry its labels is nowhere promised.
func (g *Gate) ownsJob(ctx context.Context, p *plan, j record.Job, probe prober) (bool, error) {
	owners := ownersOf(p.identity)
	asked := []bigquery.Key{}
	for range 2 { // the job, its parent
		key := bigquery.JobKey(j)
		owns, known := g.ownsAs(key, owners)
		var as bigquery.Owner
		if known {
			as, _ = g.Owners.Owner(key)
		} else {
			asked = append(asked, key)
			job, err := g.askJob(ctx, &j, probe)
			if err != nil {
				return false, err
			}
			g.tellReach(key, job)
			if job.Configuration.Labels[labelOwner] == "" && job.Statistics.ParentJobID != "" {
				j.ID = job.Statistics.ParentJobID
				continue
			}
			if as, owns, err = g.madeBy(ctx, p, job, owners, probe); err != nil {
				return false, err
			}
		}
		if owns {
			for _, k := range asked {
				g.Owners.Put(k, as)
				if g.Reaches != nil && k != key {
					g.Reaches.child(k, key)
				}
			}
		}
		return owns, nil
	}
	return false, nil
}

// madeBy returns as which of the owners the gateway's own account made a job.
func (g *Gate) madeBy(ctx context.Context, p *plan, job *jobResource, owners []bigquery.Owner, probe prober) (bigquery.Owner, bool, error) {
	as, ok := g.ownerIn(job.Configuration.Labels, job.JobReference.ProjectID, job.JobReference.Location, owners)
	if !ok {
		return as, false, nil
	}
	account, err := g.account(ctx, p, probe)
	if err != nil {
		return as, false, err
	}
	if job.UserEmail == "" || !strings.EqualFold(job.UserEmail, account) {
		return as, false, errors.New("a job with the gateway's labels was made by another account")
	}
	return as, true, nil
}

// jobResource is what is read of a job
// (https://cloud.google.com/bigquery/docs/reference/rest/v2/Job).
type jobResource struct {
	JobReference struct {
		ProjectID string `json:"projectId"`
		JobID     string `json:"jobId"`
		Location  string `json:"location"`
	} `json:"jobReference"`
	UserEmail     string `json:"user_email"`
	Configuration struct {
		Labels map[string]string `json:"labels"`
		Query  struct {
			DestinationTable tableReference `json:"destinationTable"`
		} `json:"query"`
	} `json:"configuration"`
	Statistics struct {
		ParentJobID string `json:"parentJobId"`
		SessionInfo struct {
			SessionID string `json:"sessionId"`
		} `json:"sessionInfo"`
	} `json:"statistics"`
}

// jobFields are the parts of a job that say whose it is.
const jobFields = "jobReference,user_email,configuration(labels,query(destinationTable)),statistics(parentJobId,sessionInfo)"

// askJob reads a job from BigQuery: another replica may have made it.
func (g *Gate) askJob(ctx context.Context, j *record.Job, probe prober) (*jobResource, error) {
	job := &jobResource{}
	if err := readJob(ctx, j, "owner of job", jobFields, probe, job); err != nil {
		return nil, err
	}
	if job.JobReference.ProjectID == "" {
		job.JobReference.ProjectID = j.Project
	}
	return job, nil
}

// ownsTable reports whether an anonymous table holds the result of a query of
// the caller's own. Its owners are a set: a cache hit gives two callers one table.
func (g *Gate) ownsTable(ctx context.Context, p *plan, t bigquery.Table, probe prober) (bool, error) {
	key := bigquery.TableKey(t)
	owners := ownersOf(p.identity)
	for _, o := range owners {
		if owns, _ := g.Owners.Owns(key, o); owns {
			return true, nil
		}
	}
	var found *jobResource
	as, err := g.findJob(ctx, p, "job of anonymous table", owners, probe, func(job *jobResource) bool {
		d := job.Configuration.Query.DestinationTable
		found = job
		return bigquery.TableKey(bigquery.Table{Project: d.ProjectID, Dataset: d.DatasetID, Table: d.TableID}) == key
	})
	if err != nil || as == nil {
		return false, err
	}
	if g.Reaches != nil {
		j := record.Job{Project: found.JobReference.ProjectID, Location: found.JobReference.Location, ID: found.JobReference.JobID}
		g.tellReach(bigquery.JobKey(j), found)
		g.Reaches.result(key, j)
	}
	g.Owners.Put(key, *as)
	return true, nil
}

// ownsSession reports whether a job of the caller's own began or used a
// BigQuery session.
func (g *Gate) ownsSession(ctx context.Context, p *plan, id string, probe prober) (bool, error) {
	key := bigquery.SessionKey(p.call.Project, id)
	owners := ownersOf(p.identity)
	if owns, known := g.ownsAs(key, owners); known {
		return owns, nil
	}
	as, err := g.findJob(ctx, p, "job of session", owners, probe, func(job *jobResource) bool { return job.Statistics.SessionInfo.SessionID == id })
	if err != nil || as == nil {
		return false, err
	}
	return g.Owners.Put(key, *as), nil
}

// What a search among the account's jobs looks at: anonymous tables live for 24
// hours (https://cloud.google.com/bigquery/docs/cached-results), and so do
// sessions that nobody uses.
const (
	searchBack  = 24 * time.Hour
	searchPages = 10
	searchPage  = 1000
)

// findJob looks for a job of one of the owners among the account's newest.
func (g *Gate) findJob(ctx context.Context, p *plan, purpose string, owners []bigquery.Owner, probe prober, match func(*jobResource) bool) (*bigquery.Owner, error) {
	q := url.Values{"projection": {"full"}, "maxResults": {strconv.Itoa(searchPage)},
		"minCreationTime": {strconv.FormatInt(g.Now().Add(-searchBack).UnixMilli(), 10)},
		"fields":          {"nextPageToken,jobs(" + jobFields + ")"}}
	for range searchPages {
		status, body, err := probe(ctx, purpose, http.MethodGet, "/bigquery/v2/projects/"+url.PathEscape(p.call.Project)+"/jobs?"+q.Encode(), nil)
		if err != nil {
			return nil, err
		}
		var list struct {
			Jobs          []*jobResource `json:"jobs"`
			NextPageToken string         `json:"nextPageToken"`
		}
		if status != http.StatusOK {
			return nil, fmt.Errorf("jobs.list answered %d", status)
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, errors.New("jobs.list answered with something that is no list of jobs")
		}
		for _, job := range list.Jobs {
			if job == nil || !match(job) {
				continue
			}
			as, owns, err := g.madeBy(ctx, p, job, owners, probe)
			if err != nil {
				return nil, err
			}
			if owns {
				return &as, nil
			}
		}
		if list.NextPageToken == "" {
			return nil, nil
		}
		q.Set("pageToken", list.NextPageToken)
	}
	return nil, fmt.Errorf("not among the newest %d jobs", searchPages*searchPage)
}

// Accounts remembers as whom the gateway's credentials run jobs, as BigQuery says
// it. It is safe for concurrent use.
type Accounts struct {
	mu sync.Mutex
	of map[string]account
}

type account struct {
	email string
	until time.Time
}

// What Accounts keeps: entries, and for how long.
const (
	maxAccounts = 4096
	accountLife = time.Hour
)

// NewAccounts returns an empty memory.
func NewAccounts() *Accounts { return &Accounts{of: map[string]account{}} }

// account returns the email of the account that runs the caller's jobs. A dry
// run tells it: whatever the kind of the credential, its answer names who asked.
func (g *Gate) account(ctx context.Context, p *plan, probe prober) (string, error) {
	key := p.conn.Name + "\x00" + p.call.Project
	if p.conn.PerCaller {
		key += "\x00" + p.identity.Principal.URL + "\x00" + p.identity.Principal.Subject
	}
	a := g.Accounts
	a.mu.Lock()
	known, ok := a.of[key]
	a.mu.Unlock()
	if ok && g.Now().Before(known.until) {
		return known.email, nil
	}
	status, body, err := probe(ctx, "account of the gateway", http.MethodPost, "/bigquery/v2/projects/"+url.PathEscape(p.call.Project)+"/jobs?fields=user_email",
		[]byte(`{"configuration":{"dryRun":true,"query":{"query":"SELECT 1","useLegacySql":false}}}`))
	if err != nil {
		return "", err
	}
	var job jobResource
	if status != http.StatusOK || json.Unmarshal(body, &job) != nil || job.UserEmail == "" {
		return "", fmt.Errorf("a dry run that should tell the gateway's account answered %d without user_email", status)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.of) >= maxAccounts {
		clear(a.of)
	}
	a.of[key] = account{job.UserEmail, g.Now().Add(accountLife)}
	return job.UserEmail, nil
}
