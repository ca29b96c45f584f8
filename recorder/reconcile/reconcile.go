package reconcile

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
)

// Config says what to compare.
type Config struct {
	Vault ledger.Vault
	Keys  ledger.Opener
	// Jobs is BigQuery's list.
	Jobs Source
	// Since and Until bound the jobs, Until excluded; zero sets no bound. Where
	// the list was itself made for a window these must be its bounds: a record
	// without a job is only one where the list would have to hold the job.
	Since, Until time.Time
	// Projects and Locations bound the records that must have a job in the list;
	// empty sets no bound.
	Projects, Locations []string
	// Accounts are the identities that gateways run jobs as.
	Accounts []string
	// Others are identities whose jobs are known to be no agent's. Their jobs
	// without a record are counted and are no findings.
	Others []string
	// Margin, 5 minutes where 0, is how long a record may take to reach the
	// vault and a job the list, and how far their clocks are apart.
	Margin time.Duration
	// MaxJobs is [DefaultMaxJobs] where 0.
	MaxJobs int
	// Limit is how many findings the report names; 0: all.
	Limit int
	Warn  func(error) // see [search.Config]
	Now   func() time.Time
}

// Source gives a list of jobs: entries in any of the forms of [ParseEntry].
// number counts them from 1. An error of add ends the source and is returned.
type Source func(ctx context.Context, add func(number int64, entry []byte) error) error

// maxEntry is the longest entry that is read, in bytes: the SQL of a job is at
// most 1 MB at BigQuery.
const maxEntry = 16 << 20

// ErrList means that the job list could not be read to its end.
var ErrList = errors.New("the job list could not be read")

// Lines is a list in a file: JSON lines, or one JSON array, as bq and gcloud
// print it with --format=json. number is the line, or the place in the array.
func Lines(r io.Reader) Source {
	return func(ctx context.Context, add func(int64, []byte) error) error {
		b := bufio.NewReaderSize(r, 64<<10)
		for {
			c, err := b.ReadByte()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrList, err)
			}
			if c == '[' {
				return array(ctx, b, add)
			}
			if !strings.ContainsRune(" \t\r\n\ufeff", rune(c)) && c < 0x80 {
				if err := b.UnreadByte(); err != nil {
					return fmt.Errorf("%w: %w", ErrList, err)
				}
				return lines(ctx, b, add)
			}
		}
	}
}

func array(ctx context.Context, r io.Reader, add func(int64, []byte) error) error {
	d := json.NewDecoder(io.MultiReader(strings.NewReader("["), r))
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrList, err)
	}
	n := int64(0)
	for d.More() {
		var e json.RawMessage
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("%w: entry %d of the array: %w", ErrList, n+1, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n++
		if err := add(n, e); err != nil {
			return err
		}
	}
	end, err := d.Token()
	if err == nil && end != json.Delim(']') {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%w: the array does not end: %w", ErrList, err)
	}
	return nil
}

func lines(ctx context.Context, r *bufio.Reader, add func(int64, []byte) error) error {
	var line []byte
	for n := int64(1); ; n++ {
		line = line[:0]
		long := false
		for {
			part, err := r.ReadSlice('\n')
			if long = long || len(line)+len(part) > maxEntry; long {
				line = line[:min(len(line), 64)]
			} else {
				line = append(line, part...)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: line %d: %w", ErrList, n, err)
			}
			if err != nil && len(line) == 0 {
				return nil
			}
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entry := bytes.TrimSpace(line)
		if len(entry) == 0 {
			continue
		}
		if err := add(n, entry); err != nil {
			return err
		}
	}
}

// run is one comparison.
type run struct {
	c       Config
	now     time.Time
	l       *list
	r       *Report
	gateway map[string]bool
	others  map[string]bool
	loose   map[string][]*made // exchanges that never learnt their job's id, by session
	// wanted are parents of children that are not in the list themselves; a
	// record of one is noted.
	wanted   map[jobKey]bool
	findings []Finding
}

// Run compares. The error is of the reading: one that wraps [ErrList] or
// [ErrTooMany] is of the list, another of the vault.
func Run(ctx context.Context, c Config) (*Report, error) {
	if c.Margin == 0 {
		c.Margin = 5 * time.Minute
	}
	c.MaxJobs = cmp.Or(c.MaxJobs, DefaultMaxJobs)
	if c.Now == nil {
		c.Now = time.Now
	}
	x := &run{
		c: c, now: c.Now(), l: newList(c.MaxJobs), gateway: set(c.Accounts), others: set(c.Others),
		loose: map[string][]*made{}, wanted: map[jobKey]bool{},
		r: &Report{
			Since: moment(c.Since), Until: moment(c.Until), Margin: c.Margin.String(), UnboundAccounts: len(c.Accounts) == 0,
			OtherAccounts: map[string]int64{}, Counts: map[Code]int64{}, Findings: []Finding{},
			List: ListReport{Forms: map[Form]int64{}, Events: map[string]int64{}},
		},
	}
	if err := c.Jobs(ctx, x.entry); err != nil {
		return nil, err
	}
	for _, j := range x.l.jobs {
		if j.parent != "" {
			if _, missing := x.l.root(j); missing != "" {
				x.wanted[jobKey{j.project, missing}] = false
			}
		}
	}
	records := &reader{c: &x.c, emit: x.made, open: map[record.ID]*partial{}, r: x.r}
	if err := records.read(ctx); err != nil {
		return nil, err
	}
	x.r.Vault.Last = moment(records.last)
	x.byLabels()
	x.judge()
	x.finish()
	return x.r, nil
}

func set(names []string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[strings.ToLower(n)] = true
	}
	return m
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// maxUnknown is how many entries that were not understood are named; all are
// counted. A file that is no list at all must not fill the memory.
const maxUnknown = 10_000

// entry takes in one entry of the list.
func (x *run) entry(n int64, b []byte) error {
	x.r.List.Entries++
	e, err := ParseEntry(b)
	if err != nil {
		if x.r.List.Unknown++; x.r.List.Unknown <= maxUnknown {
			x.find(Finding{Code: NotUnderstood, Line: n, Detail: err.Error()})
		}
		return nil
	}
	x.r.List.Forms[e.Form]++
	switch {
	case e.Deleted != nil:
		x.find(Finding{Code: JobDeleted, Job: e.Deleted.Project + ":" + e.Deleted.ID, Account: e.Deleted.Account, Line: n,
			Detail: "the metadata of this job was deleted from BigQuery"})
		return nil
	case e.Job == nil:
		if len(x.r.List.Events) >= 100 {
			e.Event = "others"
		}
		x.r.List.Events[e.Event]++
		return nil
	}
	x.r.List.Jobs++
	return x.l.add(e.Job)
}

// match is the record of a job.
type match struct {
	rank     rank
	exchange string
	session  string
	byLabels bool

	sqlCompared, sqlDiffers bool
	recorded, basis         string
	recordedBytes           int
	label                   string // that the job lacks
	account                 string // of the record's credential
}

// clean reports whether nothing differs.
func (m *match) clean() bool { return !m.sqlDiffers && m.label == "" }

// compare holds a job against an exchange.
func (x *run) compare(j *job, m *made) *match {
	t := &match{rank: m.rank, exchange: m.id, session: m.session, account: m.account()}
	if j.sql.known && !m.unread && (m.sql != "" || j.sql.n > 0) {
		t.sqlCompared = true
		if !j.sql.is(m.sql) {
			t.sqlDiffers, t.recorded, t.recordedBytes, t.basis = true, head(m.sql), len(m.sql), m.basis
		}
	}
	if j.labelled {
		t.label = j.lacks(m.labels)
	}
	return t
}

// made takes in an exchange.
func (x *run) made(m *made) {
	if m.job == nil {
		if m.rank >= rankRefused {
			x.loose[m.session] = append(x.loose[m.session], m)
		}
		return
	}
	project := cmp.Or(m.job.Project, m.project)
	if j := x.l.find(project, m.job.Location, m.job.ID); j != nil {
		t := x.compare(j, m)
		// The surest record counts. Of equals, which are retries, the one that fits.
		if o := j.match; o == nil || t.rank > o.rank || t.rank == o.rank && t.clean() && !o.clean() {
			j.match = t
		}
		return
	}
	if m.rank < rankRefused {
		return
	}
	k := jobKey{project, m.job.ID}
	if _, ok := x.wanted[k]; ok {
		x.wanted[k] = true
	}
	if m.rank == rankDone && m.delivered && x.expected(m, project) {
		x.find(Finding{Code: NoJob, Job: (&job{project: project, location: m.job.Location, id: m.job.ID}).String(), Exchange: m.id, Session: m.session,
			Created: moment(m.begun), Recorded: head(m.sql), Basis: m.basis, Detail: "the record says that BigQuery made this job, and BigQuery's list does not hold it"})
	}
}

// expected reports whether the list would have to hold the exchange's job.
func (x *run) expected(m *made, project string) bool {
	location := cmp.Or(m.job.Location, m.location)
	fold := func(want string) bool { return strings.EqualFold(want, location) }
	if len(x.c.Projects) > 0 && !slices.Contains(x.c.Projects, project) ||
		len(x.c.Locations) > 0 && location != "" && !slices.ContainsFunc(x.c.Locations, fold) {
		return false
	}
	if !x.c.Since.IsZero() && m.ended.Before(x.c.Since) || !x.c.Until.IsZero() && !m.begun.Before(x.c.Until) {
		return false
	}
	end := x.now
	if !x.c.Until.IsZero() && x.c.Until.Before(end) {
		end = x.c.Until
	}
	if !x.c.Since.IsZero() && m.begun.Before(x.c.Since.Add(x.c.Margin)) || m.ended.After(end.Add(-x.c.Margin)) {
		x.r.Unsettled++
		return false
	}
	return true
}

// sessionLabel is the label by which a gateway names the session of a job.
const sessionLabel = "verbatim_session"

// byLabels joins jobs that no record names with the exchanges that could have
// made them and never learnt their id. An exchange makes one job.
func (x *run) byLabels() {
	var left []*job
	for _, j := range x.l.jobs {
		if s, ok := j.label(sessionLabel); ok && j.match == nil && j.parent == "" && len(x.loose[s]) > 0 {
			left = append(left, j)
		}
	}
	slices.SortStableFunc(left, func(a, b *job) int { return a.created.Compare(b.created) })
	for _, list := range x.loose {
		slices.SortFunc(list, func(a, b *made) int { return cmp.Or(a.begun.Compare(b.begun), cmp.Compare(a.id, b.id)) })
	}
	for _, j := range left {
		s, _ := j.label(sessionLabel)
		i := slices.IndexFunc(x.loose[s], func(m *made) bool { return x.could(m, j) })
		if i < 0 {
			continue
		}
		j.match = x.compare(j, x.loose[s][i])
		j.match.byLabels = true
		x.loose[s] = slices.Delete(x.loose[s], i, i+1)
	}
}

// could reports whether an exchange that never learnt its job's id can have
// made the job: project, labels, SQL and time agree.
func (x *run) could(m *made, j *job) bool {
	last := m.ended
	if last.IsZero() {
		last = m.begun.Add(24 * time.Hour)
	}
	if m.project != j.project || m.unread || j.lacks(m.labels) != "" || m.labels[sessionLabel] == "" {
		return false
	}
	if j.created.IsZero() || j.created.Before(m.begun.Add(-x.c.Margin)) || j.created.After(last.Add(x.c.Margin)) {
		return false
	}
	if !j.sql.known {
		return m.sql == "" && j.kind != "QUERY"
	}
	return j.sql.is(m.sql)
}

// judge goes through the jobs of the list.
func (x *run) judge() {
	for _, j := range x.l.jobs {
		if !j.created.IsZero() && (!x.c.Since.IsZero() && j.created.Before(x.c.Since) || !x.c.Until.IsZero() && !j.created.Before(x.c.Until)) {
			x.r.OutsideWindow++
			continue
		}
		recorded := j.match != nil && j.match.rank >= rankRefused
		switch {
		case j.background:
			x.r.Background++
		case j.dryRun:
			x.r.ListedDryRuns++
		case j.parent != "" && !recorded:
			x.child(j)
		case recorded:
			x.count(j)
			x.r.Recorded++
			x.recorded(j)
		case !j.created.IsZero() && j.created.After(x.now.Add(-x.c.Margin)):
			x.r.Unsettled++
		case x.others[strings.ToLower(j.account)]:
			x.r.OtherAccounts[j.account]++
		default:
			x.count(j)
			x.bypass(j)
		}
	}
}

func (x *run) count(j *job) {
	x.r.Jobs++
	if j.created.IsZero() {
		return
	}
	if x.r.From == nil || j.created.Before(*x.r.From) {
		x.r.From = moment(j.created)
	}
	if x.r.To == nil || j.created.After(*x.r.To) {
		x.r.To = moment(j.created)
	}
}

// child judges a statement of a script: what covers the script covers it, and
// where the script is a finding, it is named there.
func (x *run) child(j *job) {
	root, missing := x.l.root(j)
	switch {
	case root != nil && root != j:
		x.r.Children++
		if root.match != nil && root.match.rank >= rankRefused {
			x.account(j, root.match)
		}
	case x.wanted[jobKey{j.project, missing}]:
		x.r.Children++
	case x.others[strings.ToLower(j.account)]:
		x.r.OtherAccounts[j.account]++
	case !j.created.IsZero() && j.created.After(x.now.Add(-x.c.Margin)):
		x.r.Unsettled++
	default:
		x.count(j)
		f := x.about(j)
		f.Code, f.Detail = x.unrecorded(j), fmt.Sprintf("a statement of the script %s, which is neither in the list nor on record", missing)
		x.find(f)
	}
}

// about begins a finding about a job.
func (x *run) about(j *job) Finding {
	f := Finding{Job: j.String(), Created: moment(j.created), Account: j.account, SQL: j.sql.head}
	if j.match != nil {
		f.Exchange, f.Session = j.match.exchange, j.match.session
	}
	return f
}

func (x *run) unrecorded(j *job) Code {
	if len(x.gateway) > 0 && !x.gateway[strings.ToLower(j.account)] {
		return OutsideGateway
	}
	return NoRecord
}

func (x *run) bypass(j *job) {
	f := x.about(j)
	f.Code = x.unrecorded(j)
	switch {
	case j.match != nil && j.match.rank == rankDenied:
		f.Code, f.Detail = DeniedExecuted, "the only request that names this job was denied, and BigQuery ran it"
	case j.match != nil:
		f.Code, f.Detail = DryRunExecuted, "the only request that names this job was a dry run, and BigQuery ran it"
	case f.Code == OutsideGateway:
		f.Detail = "another identity than the gateway's ran this job, and no record tells of it"
	default:
		f.Detail = "no record tells of this job"
		if s, ok := j.label(sessionLabel); ok {
			f.Session = s
			f.Detail = "no record tells of this job, though it has the label of a session"
		}
	}
	if x.r.Vault.Unreadable > 0 && j.match == nil {
		f.Detail += fmt.Sprintf(" (%d records could not be read: their keys are gone)", x.r.Vault.Unreadable)
	}
	x.find(f)
}

// recorded compares a job with its record.
func (x *run) recorded(j *job) {
	m := j.match
	if m.byLabels {
		x.r.ByLabels++
	}
	switch {
	case m.sqlCompared:
		x.r.SQLCompared++
	case j.kind == "" || j.kind == "QUERY":
		x.r.SQLNotCompared++
	}
	if m.sqlDiffers {
		f := x.about(j)
		f.Code, f.Recorded, f.Basis = SQLDiffers, m.recorded, m.basis
		f.Detail = "BigQuery ran other SQL than the record says went upstream"
		if m.basis == "request" {
			f.Detail = "BigQuery ran other SQL than the caller's request holds, and what went upstream is not on record"
		}
		f.Detail += fmt.Sprintf(" (%d bytes, recorded %d)", j.sql.n, m.recordedBytes)
		x.find(f)
	}
	switch {
	case !j.labelled:
		x.r.LabelsNotCompared++
	case m.label != "":
		f := x.about(j)
		f.Code, f.Detail = LabelsDiffer, fmt.Sprintf("the job has not the label %s as it went upstream", m.label)
		x.find(f)
	}
	if j.conflict {
		f := x.about(j)
		f.Code, f.Detail = SourcesDiffer, "two entries of the list have different SQL for this job"
		x.find(f)
	}
	x.account(j, m)
}

// account compares who ran a job with who should have.
func (x *run) account(j *job, m *match) {
	who := strings.ToLower(j.account)
	detail := ""
	switch {
	case who == "":
	case len(x.gateway) > 0 && !x.gateway[who]:
		detail = "the job is on record, and an identity that is not the gateway's ran it"
	case m.account != "" && !strings.EqualFold(m.account, who):
		detail = fmt.Sprintf("the record says that the gateway's credential was %s", m.account)
	}
	if detail == "" {
		return
	}
	f := x.about(j)
	f.Code, f.Exchange, f.Session, f.Detail = AccountDiffers, m.exchange, m.session, detail
	x.find(f)
}

// find notes a finding. They are put in order at the end.
func (x *run) find(f Finding) { x.findings = append(x.findings, f) }

// codes in the order of the report: the gravest first.
var codes = []Code{
	NoRecord, DeniedExecuted, DryRunExecuted, OutsideGateway, SQLDiffers, AccountDiffers, LabelsDiffer, NoJob, JobDeleted, SourcesDiffer, NotUnderstood,
}

func (x *run) finish() {
	at := func(f *Finding) time.Time {
		if f.Created == nil {
			return time.Time{}
		}
		return *f.Created
	}
	slices.SortStableFunc(x.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(codes, a.Code), slices.Index(codes, b.Code)), at(&a).Compare(at(&b)),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Job, b.Job), cmp.Compare(a.Exchange, b.Exchange))
	})
	for _, f := range x.findings {
		x.r.add(x.c.Limit, f)
	}
	if more := x.r.List.Unknown - maxUnknown; more > 0 {
		x.r.Counts[NotUnderstood] += more
		x.r.More += more
	}
	x.r.Complete = len(x.findings) == 0
	if x.r.Jobs > 0 {
		p := 100 * float64(x.r.Recorded) / float64(x.r.Jobs)
		x.r.Coverage = &p
	}
}
