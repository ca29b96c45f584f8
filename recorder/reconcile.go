package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/api/option"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/reconcile"
)

const reconcileHelp = `
Usage: recorder reconcile --jobs FILE|- [--since TIME] [--until TIME] [flags]
       recorder reconcile --from-bigquery PROJECT --region REGION [flags]
       recorder reconcile query|ddl --project PROJECT --region REGION [flags]

Holds the records against BigQuery's own list of jobs, by job id and by the labels
that the gateway writes. It finds jobs that no record tells of (somebody went round
the gateway), records whose job BigQuery does not know, other SQL, labels or accounts
than were recorded, and says how many of the jobs are on record, in percent. Dry runs
and denied requests need no job; a script's statements count with the script.

The list is a file of JSON lines, or an array as bq and gcloud print it, with rows of
INFORMATION_SCHEMA.JOBS, entries of Cloud Audit Logs (BigQueryAuditMetadata or the older
AuditData, also as exported to BigQuery), or jobs of the REST API, mixed as they come.
A line that is none of these is a finding. With --from-bigquery the list is asked for,
by Application Default Credentials: use an auditor's identity, not the gateway's.
"reconcile query" prints the SQL to make the list by hand, "reconcile ddl" the statements
that keep it for longer than BigQuery's 180 days.

The list must hold all jobs of its time: give its bounds with --since and --until, and
--project and --location where it is of some only; a record that could have no job in it
is else reported. Times are RFC 3339, a day (UTC), or how long ago.

Give the gateway's service account with --gateway-account: jobs of all others are then
told apart, as outside the gateway, and a record's job must be of that account.

The keyset is needed, for the records are sealed, or with --server the role auditor: a
service (recorder serve) that holds it is sent the list, compares, and puts on record
what it tells. With a keyset on this machine that is put on record here, as for show.

Exit code 0: complete. 1: findings. 2: wrong arguments. 3: the list or the vault could
not be read to its end, or the vault is damaged; then the report proves nothing.

Examples:
  recorder reconcile --jobs jobs.json --since 2026-03-14 --until 2026-03-15
  recorder reconcile --jobs - --gateway-account gateway@p.iam.gserviceaccount.com < audit.jsonl
  recorder reconcile --from-bigquery my-project --region us --since 24h --format json
  recorder reconcile query --project my-project --region us --since 2d |
    bq query --nouse_legacy_sql --format=json --max_rows 1000000 > jobs.json
`

// repeated is a flag that may be given more than once.
type repeated []string

func (r *repeated) String() string { return strings.Join(*r, ",") }

func (r *repeated) Set(v string) error {
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s == "" {
			return errors.New("a value is empty")
		}
		*r = append(*r, s)
	}
	return nil
}

func reconcileCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	if len(args) > 0 && (args[0] == "query" || args[0] == "ddl") {
		return reconcileSQL(args[0], args[1:], stdout)
	}
	var p where
	var c reconcile.Config
	f := newFlags("reconcile", reconcileHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	var far remote
	f.remoteFlags(&far)
	f.readsFlags(&p)
	jobs := f.String("jobs", "", "`FILE` with BigQuery's list of jobs, or - for standard input")
	from := f.String("from-bigquery", "", "ask BigQuery for the jobs of `PROJECT`")
	region := f.String("region", "", "with --from-bigquery, the `REGION` of the jobs: us, eu, europe-west1")
	bill := f.String("billing-project", "", "with --from-bigquery, the `PROJECT` that the query runs in, else the same")
	endpoint := f.String("endpoint", "", "with --from-bigquery, another `URL` of the API, such as that of a private endpoint")
	since := f.String("since", "", "jobs made from this `TIME` on; with --from-bigquery 24h where not given")
	until := f.String("until", "", "jobs made before this `TIME`")
	f.Var((*repeated)(&c.Accounts), "gateway-account", "`EMAIL` of a service account that gateways run jobs as; may be repeated")
	f.Var((*repeated)(&c.Others), "other-account", "`EMAIL` whose jobs are no agent's, such as the auditor's own: counted, no findings; may be repeated")
	f.Var((*repeated)(&c.Projects), "project", "the list is of this `PROJECT`: records of others need no job in it; may be repeated")
	f.Var((*repeated)(&c.Locations), "location", "the list is of this `LOCATION`: records of others need no job in it; may be repeated")
	f.DurationVar(&c.Margin, "margin", 5*time.Minute, "how `LONG` records and jobs may be under way, and clocks apart")
	f.IntVar(&c.MaxJobs, "max-jobs", reconcile.DefaultMaxJobs, "the largest `NUMBER` of jobs to hold, about 600 bytes each")
	f.IntVar(&c.Limit, "limit", 1000, "name at most `N` findings, the gravest; 0: all. All are counted")
	format := f.String("format", "text", "`FORMAT` of the output: text or json")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	wrong := func(format string, args ...any) error {
		return &usageError{"reconcile: " + fmt.Sprintf(format, args...), f.see()}
	}
	if err := f.choice("format", *format, "text", "json"); err != nil {
		return err
	}
	now := time.Now()
	if c.Since, c.Until, err = bounds(f, *since, *until, now); err != nil {
		return err
	}
	switch {
	case *jobs == "" && *from == "":
		return &usageError{"reconcile: which jobs?", "give --jobs FILE or --from-bigquery PROJECT --region REGION; " + f.see()}
	case *jobs != "" && *from != "":
		return wrong("--jobs and --from-bigquery exclude each other")
	case *from != "" && *region == "":
		return wrong("--from-bigquery needs --region, for a list is of one region")
	case *from == "" && (*region != "" || *bill != "" || *endpoint != ""):
		return wrong("--region, --billing-project and --endpoint go with --from-bigquery")
	case c.Margin <= 0:
		return wrong("--margin %s: want more than 0", c.Margin)
	case c.MaxJobs <= 0 || c.Limit < 0:
		return wrong("--max-jobs wants more than 0, --limit 0 or more")
	}
	if *from != "" {
		if c.Since.IsZero() {
			c.Since = now.Add(-24 * time.Hour).UTC()
		}
		if c.Until.IsZero() {
			c.Until = now.UTC()
		}
		c.Projects, c.Locations = []string{*from}, []string{*region}
		ask := reconcile.BigQueryConfig{
			View: reconcile.JobsView{Project: *from, Region: *region, Since: c.Since, Until: c.Until}, Bill: *bill,
			Asked: func(job string) { fmt.Fprintf(stderr, "recorder: asked BigQuery with the job %s\n", oneLine(job)) },
		}
		if *endpoint != "" {
			ask.Options = append(ask.Options, option.WithEndpoint(*endpoint))
		}
		if c.Jobs, err = reconcile.BigQuery(ask); err != nil {
			return wrong("%v", err)
		}
	} else {
		in, err := input(*jobs)
		if err != nil {
			return &exitError{3, fmt.Errorf("reconcile: %w", err)}
		}
		defer in.Close()
		c.Jobs = reconcile.Lines(in)
	}
	client, err := f.client(&far, &p)
	if err != nil {
		return err
	}
	var r *reconcile.Report
	if client != nil {
		r, err = client.Reconcile(ctx, access.NewReconcileRequest(c, p.why), c.Jobs)
		err = f.failed(err)
	} else {
		r, err = f.reconcileHere(ctx, &p, c, stderr)
	}
	if err != nil {
		return unread(err)
	}
	if *format == "json" {
		err = writeJSON(stdout, r, "  ")
	} else {
		_, err = io.WriteString(stdout, reconcileText(r))
	}
	switch {
	case err != nil:
		return err
	case r.Vault.Warnings > 0:
		return &exitError{3, errors.New("reconcile: the vault is damaged, so this proves nothing: run recorder verify")}
	case !r.Complete:
		n := int64(0)
		for _, k := range r.Counts {
			n += k
		}
		return &exitError{1, fmt.Errorf("reconcile: %d findings", n)}
	}
	return nil
}

// reconcileHere compares with the vault and the keyset at hand.
func (f *flags) reconcileHere(ctx context.Context, p *where, c reconcile.Config, stderr io.Writer) (_ *reconcile.Report, err error) {
	v, err := f.open(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	keys, err := f.keys(ctx, p, v)
	if err != nil {
		return nil, err
	}
	if keys == nil {
		return nil, &usageError{"reconcile: which keyset?", "records are sealed: give --keyset FILE, the tenant's private keyset, or set VERBATIM_KEYSET"}
	}
	reads, err := f.record(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reads.Close(ctx)) }()
	c.Vault, c.Keys = v, keys
	warned := 0
	c.Warn = func(err error) {
		if warned++; warned <= 5 {
			fmt.Fprintln(stderr, "recorder: warning:", oneLine(err.Error()))
		}
	}
	r, err := reconcile.Run(ctx, c)
	if errors.Is(err, reconcile.ErrTooMany) {
		err = fmt.Errorf("%w; use a narrower time, or --max-jobs", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	asked := access.NewReconcileRequest(c, p.why)
	return r, reads.each(ctx, asked.What(), access.Found(r))
}

// bounds reads --since and --until.
func bounds(f *flags, since, until string, now time.Time) (from, to time.Time, err error) {
	for _, t := range []struct {
		name, value string
		to          *time.Time
	}{{"since", since, &from}, {"until", until, &to}} {
		if t.value == "" {
			continue
		}
		if *t.to, err = parseTime(t.value, now); err != nil {
			return from, to, &usageError{fmt.Sprintf("%s: --%s: %v", f.name, t.name, err), f.see()}
		}
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		return from, to, &usageError{fmt.Sprintf("%s: --since %s is not before --until %s", f.name, moment(from), moment(to)), f.see()}
	}
	return from, to, nil
}

func input(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(os.Stdin), nil
	}
	return os.Open(name)
}

const reconcileSQLHelp = `
Usage: recorder reconcile query --project PROJECT --region REGION [--since TIME] [--until TIME]
       recorder reconcile ddl --project PROJECT --region REGION --dataset DATASET

query prints the SQL whose rows, as JSON, "recorder reconcile --jobs" reads. ddl prints
the statements that make the table verbatim_jobs in a dataset of the auditors' and add to
it, to be scheduled: the view keeps 180 days. Whoever runs them needs
bigquery.jobs.listAll (roles/bigquery.resourceViewer).

Examples:
  recorder reconcile query --project my-project --region us --since 2026-03-14 --until 2026-03-15
  recorder reconcile ddl --project my-project --region europe-west1 --dataset audit.evidence
`

func reconcileSQL(what string, args []string, stdout io.Writer) error {
	var v reconcile.JobsView
	f := newFlags("reconcile", reconcileSQLHelp)
	f.StringVar(&v.Project, "project", "", "`PROJECT` of the jobs")
	f.StringVar(&v.Region, "region", "", "`REGION` of the jobs: us, eu, europe-west1")
	since := f.String("since", "24h", "jobs made from this `TIME` on")
	until := f.String("until", "now", "jobs made before this `TIME`")
	dataset := f.String("dataset", "", "with ddl, the `DATASET` of the table, or PROJECT.DATASET")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	var err error
	if v.Since, v.Until, err = bounds(f, *since, *until, time.Now()); err != nil {
		return err
	}
	text := ""
	if err = v.Check(); err == nil {
		text = v.SQL() + "\n"
		switch {
		case what == "ddl" && *dataset == "":
			err = errors.New("which dataset? give --dataset DATASET")
		case what == "ddl":
			text, err = v.DDL(*dataset)
		}
	}
	if err != nil {
		return &usageError{fmt.Sprintf("reconcile %s: %v", what, err), f.see()}
	}
	_, err = io.WriteString(stdout, text)
	return err
}

func reconcileText(r *reconcile.Report) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	edge := func(t *time.Time, open string) string {
		if t == nil {
			return open
		}
		return moment(*t)
	}
	row("window", "%s to %s, margin %s", edge(r.Since, "the beginning"), edge(r.Until, "now"), r.Margin)
	forms := []string{}
	for _, f := range slices.Sorted(maps.Keys(r.List.Forms)) {
		forms = append(forms, fmt.Sprintf("%d %s", r.List.Forms[f], f))
	}
	row("list", "%d entries, %d of jobs (%s)", r.List.Entries, r.List.Jobs, strings.Join(forms, ", "))
	for _, e := range slices.Sorted(maps.Keys(r.List.Events)) {
		row("", "%d are of no job: %s", r.List.Events[e], oneLine(e))
	}
	row("records", "%d requests for jobs in %d exchanges; %d denied, %d dry runs", r.Vault.JobRequests, r.Vault.Exchanges, r.Vault.Denied, r.Vault.DryRuns)
	if r.Vault.Last != nil {
		row("", "the last record is of %s", moment(*r.Vault.Last))
	}
	if r.Vault.Unreadable > 0 {
		row("", "%d records could not be read: their keys are gone (erased?)", r.Vault.Unreadable)
	}
	if r.Vault.Warnings > 0 {
		row("", "%d warnings: the vault is damaged", r.Vault.Warnings)
	}
	row("jobs", "%d, of them %d on record (%d by their labels); %d statements of scripts", r.Jobs, r.Recorded, r.ByLabels, r.Children)
	row("sql", "%d compared, %d not, for one side does not hold it", r.SQLCompared, r.SQLNotCompared)
	for _, x := range []struct {
		n    int64
		text string
	}{
		{r.LabelsNotCompared, "jobs on record are listed without their labels, which were not compared"},
		{r.OutsideWindow, "jobs are of another time"},
		{r.Unsettled, "are too near to an edge of the window to be judged: run again later"},
		{r.Background, "are BigQuery's own work"},
		{r.ListedDryRuns, "are listed as dry runs"},
	} {
		if x.n > 0 {
			row("", "%d %s", x.n, x.text)
		}
	}
	for _, a := range slices.Sorted(maps.Keys(r.OtherAccounts)) {
		row("", "%d are of %s, as --other-account allows", r.OtherAccounts[a], oneLine(a))
	}
	if r.UnboundAccounts {
		row("", "no --gateway-account was given: who ran the jobs was compared with the records alone")
	}
	if r.Coverage != nil {
		row("coverage", "%s %%", percent(*r.Coverage))
	} else {
		row("coverage", "none: the list holds no job of this time. Is it the right list?")
	}
	b.WriteString("\n")
	for _, f := range r.Findings {
		b.WriteString(string(f.Code))
		add := func(format string, value string) {
			if value != "" {
				fmt.Fprintf(&b, format, oneLine(value))
			}
		}
		add("  %s", f.Job)
		if f.Line > 0 {
			fmt.Fprintf(&b, "  entry %d", f.Line)
		}
		if f.Created != nil {
			add("  %s", moment(*f.Created))
		}
		add("  %s", f.Account)
		fmt.Fprintf(&b, "\n    %s\n", oneLine(f.Detail))
		add("    exchange: %s\n", f.Exchange)
		add("    ran:      %s\n", squeeze(f.SQL))
		if f.Basis != "" {
			add("    "+f.Basis+": "+strings.Repeat(" ", max(0, 8-len(f.Basis)))+"%s\n", squeeze(f.Recorded))
		}
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d findings more (--limit 0 names all)\n", r.More)
	}
	if len(r.Findings) > 0 {
		b.WriteString("\nNOT COMPLETE:")
		writeCounts(&b, r.Counts)
		return b.String()
	}
	b.WriteString("Complete: every job of the list is on record, and every record has its job.\n")
	return b.String()
}

// percent never rounds up to 100: 99.999 is not complete.
func percent(p float64) string {
	if p < 100 && p > 99.99 {
		p = 99.99
	}
	return fmt.Sprintf("%.2f", p)
}

// writeCounts ends a line with how often each code was found.
func writeCounts[C ~string](b *strings.Builder, counts map[C]int64) {
	for i, c := range slices.Sorted(maps.Keys(counts)) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(b, " %d %s", counts[c], c)
	}
	b.WriteString("\n")
}
