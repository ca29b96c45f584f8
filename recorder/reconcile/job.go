package reconcile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"
	"unicode/utf8"
	"unique"
)

// Job is one job as BigQuery tells of it.
type Job struct {
	Project  string
	Location string // empty where the entry does not say
	ID       string
	Account  string    // who ran it: an e-mail address, or a principal's name
	Created  time.Time // zero where the entry does not say
	Parent   string    // id of the script's job that made this one
	Type     string    // QUERY, LOAD, EXTRACT, COPY
	// Statement is the statement's type, SELECT, SCRIPT, ...
	Statement string
	// SQL is the query's text, nil where the entry does not say. Truncated says
	// that it is the beginning of the text.
	SQL       *string
	Truncated bool
	// Labels is nil where the entry does not say.
	Labels     map[string]string
	DryRun     bool
	Background bool // BigQuery's own work, of no caller
}

// DefaultMaxJobs is how many jobs a list may hold.
const DefaultMaxJobs = 2_000_000

// ErrTooMany means that the list of jobs is longer than was allowed.
var ErrTooMany = errors.New("the list holds too many jobs")

// job is what is kept of a [Job].
type job struct {
	project, location, id string
	account, parent       string
	created               time.Time
	kind, statement       string
	sql                   text
	labels                []label // sorted by key
	labelled              bool    // the labels are known
	dryRun, background    bool
	conflict              bool // two entries have different SQL

	match *match
}

type label struct{ key, value string }

func (j *job) String() string {
	if j.location == "" {
		return j.project + ":" + j.id
	}
	return j.project + ":" + j.location + "." + j.id
}

// label returns the value of a label.
func (j *job) label(key string) (string, bool) {
	i := sort.Search(len(j.labels), func(i int) bool { return j.labels[i].key >= key })
	if i < len(j.labels) && j.labels[i].key == key {
		return j.labels[i].value, true
	}
	return "", false
}

// lacks returns the first of the labels that the job does not have so.
func (j *job) lacks(labels map[string]string) string {
	missing := ""
	for k, v := range labels {
		if got, ok := j.label(k); (!ok || got != v) && (missing == "" || k < missing) {
			missing = k
		}
	}
	return missing
}

// text is a digest of SQL with its beginning.
type text struct {
	known, truncated bool
	n                int
	sum              [sha256.Size]byte
	head             string
}

func textOf(sql string, truncated bool) text {
	return text{known: true, truncated: truncated, n: len(sql), sum: sha256.Sum256([]byte(sql)), head: head(sql)}
}

// is reports whether the text is that of the SQL, as far as it is known.
func (t *text) is(sql string) bool {
	switch {
	case !t.known:
		return false
	case t.truncated && len(sql) > t.n:
		return sha256.Sum256([]byte(sql[:t.n])) == t.sum
	}
	return len(sql) == t.n && sha256.Sum256([]byte(sql)) == t.sum
}

// headBytes is how much of a text is kept to be shown.
const headBytes = 120

func head(s string) string {
	if len(s) <= headBytes {
		return strings.Clone(s)
	}
	n := headBytes
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

type jobKey struct{ project, id string }

// list is the job list, indexed by id.
type list struct {
	max   int
	jobs  []*job
	byKey map[jobKey][]*job // of several locations
}

func newList(limit int) *list { return &list{max: limit, byKey: map[jobKey][]*job{}} }

// same makes one string of equal ones: projects, locations and accounts repeat.
func same(s string) string { return unique.Make(s).Value() }

// find returns the job of that name. An unknown location fits every other.
func (l *list) find(project, location, id string) *job {
	for _, j := range l.byKey[jobKey{project, id}] {
		if location == "" || j.location == "" || strings.EqualFold(location, j.location) {
			return j
		}
	}
	return nil
}

// add takes a job in, or joins what it says with what an earlier entry said of
// the same job: audit logs tell of a job more than once.
func (l *list) add(j *Job) error {
	if old := l.find(j.Project, j.Location, j.ID); old != nil {
		old.join(j)
		return nil
	}
	if len(l.jobs) >= l.max {
		return fmt.Errorf("%w: more than %d", ErrTooMany, l.max)
	}
	n := &job{project: same(j.Project), id: strings.Clone(j.ID)}
	n.join(j)
	l.jobs = append(l.jobs, n)
	k := jobKey{n.project, n.id}
	l.byKey[k] = append(l.byKey[k], n)
	return nil
}

// join fills in what is not known yet.
func (n *job) join(j *Job) {
	set := func(to *string, v string) {
		if *to == "" {
			*to = same(v)
		}
	}
	set(&n.location, j.Location)
	set(&n.account, j.Account)
	set(&n.parent, j.Parent)
	set(&n.kind, j.Type)
	set(&n.statement, j.Statement)
	if n.created.IsZero() || !j.Created.IsZero() && j.Created.Before(n.created) {
		n.created = j.Created
	}
	if j.SQL != nil {
		t := textOf(*j.SQL, j.Truncated)
		switch {
		case !n.sql.known, n.sql.truncated && !t.truncated:
			n.sql = t
		case n.sql.truncated == t.truncated && n.sql.sum != t.sum:
			n.conflict = true
		}
	}
	if j.Labels != nil && !n.labelled {
		n.labelled = true
		for k, v := range j.Labels {
			n.labels = append(n.labels, label{same(k), same(v)})
		}
		sort.Slice(n.labels, func(i, k int) bool { return n.labels[i].key < n.labels[k].key })
	}
	n.dryRun = n.dryRun || j.DryRun
	n.background = n.background || j.Background
}

// root returns the job that has no parent, and the name of the first parent
// that is not in the list.
func (l *list) root(j *job) (root *job, missing string) {
	for range 16 { // scripts call procedures, but not without end
		if j.parent == "" {
			return j, ""
		}
		p := l.find(j.project, j.location, j.parent)
		if p == nil || p == j {
			return nil, j.parent
		}
		j = p
	}
	return nil, j.id
}
