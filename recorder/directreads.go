package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/directreads"
	"verbatim.dev/recorder/reconcile"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault/gcs"
	"verbatim.dev/recorder/vault/place"
)

const directReadsHelp = `
Usage: recorder accesses reconcile --log FILE|- --serve-account EMAIL [--vault VAULT] [flags]

Holds Google's own logs of who read the vault against the access records. Whoever has
a right on a bucket, on a key or on the keyset can read past recorder serve: that is in
no access record, and in Google's Data Access logs. Named are reads of the vault's
objects, lists of its buckets, decryptions with its keys and reads of its keyset
  - by anybody who is not named with --serve-account, or, for sealed objects alone,
    with --sink-account and --verifier-account;
  - by the service's own identity, where no access record is within --margin.
Refused attempts are named too.

The log is a file of JSON lines, or an array, of Cloud Audit Logs entries: what gcloud
logging read --format=json prints, a log bucket's files, or a sink's table in BigQuery.
Data Access logs are off until somebody turns them on: for Cloud Storage (DATA_READ), Cloud
KMS and Secret Manager, in the projects of buckets, keys and keyset, with no exempted
members. Let them go to a project that those who can read the vault cannot change. Where
there are access records and the log has no read of the service's, that is a finding.

The buckets are the vault's own, and those of --bucket. No keyset is needed: when
something was read stands outside the seal.

Exit code 0: clean. 1: findings. 2: wrong arguments. 3: the log or the vault could not
be read to its end.

Examples:
  gcloud logging read 'log_id("cloudaudit.googleapis.com/data_access") AND timestamp>="2026-03-14T00:00:00Z"
      AND timestamp<"2026-03-15T00:00:00Z"' --project acme-audit --format json > log.json
  recorder accesses reconcile --log log.json --vault vault.yaml --since 2026-03-14 --until 2026-03-15 \
      --serve-account auditors@acme-audit.iam.gserviceaccount.com \
      --sink-account sink@acme-audit.iam.gserviceaccount.com \
      --kms-key projects/acme-audit/locations/europe/keyRings/verbatim/cryptoKeys/tenant
`

func directReadsCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	var c directreads.Config
	f := newFlags("accesses reconcile", directReadsHelp)
	f.vaultFlag(&p)
	log := f.String("log", "", "`FILE` with the log's entries, or - for standard input")
	f.Var((*repeated)(&c.Service), "serve-account", "`EMAIL` of the identity that recorder serve runs as; may be repeated")
	f.Var((*repeated)(&c.Sinks), "sink-account", "`EMAIL` of a sink's identity: it may read objects, and decrypt nothing; may be repeated")
	f.Var((*repeated)(&c.Verifiers), "verifier-account", "`EMAIL` that runs recorder verify with no keyset: likewise; may be repeated")
	f.Var((*repeated)(&c.Buckets), "bucket", "one more `BUCKET` of the vault's, such as a copy; may be repeated")
	f.Var((*repeated)(&c.Keys), "kms-key", "`KEY` in Cloud KMS that opens data keys or the keyset, projects/P/locations/L/keyRings/R/cryptoKeys/K; may be repeated")
	f.Var((*repeated)(&c.Secrets), "keyset-secret", "`SECRET` that holds the keyset, as the log names it: projects/NUMBER/secrets/S; may be repeated")
	since := f.String("since", "", "entries from this `TIME` on")
	until := f.String("until", "", "entries before this `TIME`")
	f.DurationVar(&c.Margin, "margin", 5*time.Minute, "how `LONG` a read may lie from its record, and clocks apart")
	f.IntVar(&c.Limit, "limit", 1000, "name at most `N` findings, the gravest; 0: all. All are counted")
	format := f.String("format", "text", "`FORMAT` of the output: text or json")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if err := f.choice("format", *format, "text", "json"); err != nil {
		return err
	}
	if c.Since, c.Until, err = bounds(f, *since, *until, time.Now()); err != nil {
		return err
	}
	switch {
	case *log == "":
		return &usageError{"accesses reconcile: which log?", "give --log FILE, or - for standard input; " + f.see()}
	case len(c.Service) == 0:
		return &usageError{"accesses reconcile: whose reads are on record?", "give --serve-account EMAIL, the identity of recorder serve"}
	case c.Margin <= 0 || c.Limit < 0:
		return &usageError{"accesses reconcile: --margin wants more than 0, --limit 0 or more", f.see()}
	}
	for _, k := range c.Keys {
		if strings.Contains(k, "/cryptoKeyVersions/") || !strings.HasPrefix(k, "projects/") {
			return &usageError{fmt.Sprintf("accesses reconcile: --kms-key %q: want projects/P/locations/L/keyRings/R/cryptoKeys/K, without a version", k), f.see()}
		}
	}
	v, err := f.open(ctx, &p)
	if err != nil {
		return unread(err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	for _, at := range placesOf(p.spec) {
		if place.IsBucket(at.at) {
			bucket, _, err := gcs.Split(at.at)
			if err != nil {
				return unread(err)
			}
			c.Buckets = append(c.Buckets, bucket)
		}
	}
	if len(c.Buckets)+len(c.Keys)+len(c.Secrets) == 0 {
		return &usageError{"accesses reconcile: the vault is a folder, so the log cannot be of it", "give --bucket BUCKET, where this is a copy; reads of a folder are in no log of Google's"}
	}
	slices.Sort(c.Buckets)
	c.Buckets = slices.Compact(c.Buckets)
	damaged := 0
	warn := func(err error) {
		if damaged++; damaged <= 5 {
			fmt.Fprintln(stderr, "recorder: warning:", oneLine(err.Error()))
		}
	}
	// A read at the edge of the window may have its record beyond it.
	from, to := c.Since, c.Until
	if !from.IsZero() {
		from = from.Add(-c.Margin)
	}
	if !to.IsZero() {
		to = to.Add(c.Margin)
	}
	starts, services := map[string][]time.Time{}, map[string]bool{} // by gateway
	if _, err := search.Walk(ctx, search.Config{Vault: v, Warn: warn}, from, to, func(r *search.Record) error {
		switch r.Frame.Kind {
		case record.KindAccess:
			c.Accesses = append(c.Accesses, r.Frame.Time)
			services[r.Segment.Gateway] = true
		case record.KindOpen:
			starts[r.Segment.Gateway] = append(starts[r.Segment.Gateway], r.Frame.Time)
		}
		return nil
	}); err != nil {
		return unread(fmt.Errorf("accesses reconcile: %w", err))
	}
	for name := range services {
		c.Starts = append(c.Starts, starts[name]...)
	}
	in, err := input(*log)
	if err != nil {
		return &exitError{3, fmt.Errorf("accesses reconcile: %w", err)}
	}
	defer in.Close()
	c.Log = reconcile.Lines(in)
	r, err := directreads.Run(ctx, c)
	if err != nil {
		return unread(fmt.Errorf("accesses reconcile: %w", err))
	}
	if *format == "json" {
		err = writeJSON(stdout, r, "  ")
	} else {
		_, err = io.WriteString(stdout, directReadsText(r, c.Buckets))
	}
	switch {
	case err != nil:
		return err
	case !r.Clean:
		n := int64(0)
		for _, k := range r.Counts {
			n += k
		}
		return &exitError{1, fmt.Errorf("accesses reconcile: %d reads that should not be", n)}
	case damaged > 0:
		return &exitError{3, errors.New("accesses reconcile: the vault is damaged, so records may be missing: run recorder verify")}
	}
	return nil
}

func directReadsText(r *directreads.Report, buckets []string) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	edge := func(t *time.Time, open string) string {
		if t == nil {
			return open
		}
		return moment(*t)
	}
	row("window", "%s to %s, margin %s", edge(r.Since, "the beginning"), edge(r.Until, "now"), r.Margin)
	row("buckets", "%s", strings.Join(buckets, ", "))
	row("log", "%d entries", r.Entries)
	for _, x := range []struct {
		n    int64
		text string
	}{{r.Twice, "were exported twice"}, {r.Outside, "are of another time"}, {r.Elsewhere, "are of other buckets, keys and secrets"}} {
		if x.n > 0 {
			row("", "%d %s", x.n, x.text)
		}
	}
	for _, m := range slices.Sorted(maps.Keys(r.Events)) {
		row("", "%d are no reads: %s", r.Events[m], m)
	}
	row("records", "%d access records", r.Accesses)
	for _, a := range slices.Sorted(maps.Keys(r.Reads)) {
		row("reads", "%d by %s", r.Reads[a], nobody(a))
	}
	b.WriteString("\n")
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s  %s  %s", f.Code, oneLine(nobody(f.Account)), oneLine(f.Where))
		if f.Count > 1 {
			fmt.Fprintf(&b, "  %d times, %s to %s\n", f.Count, moment(f.First), moment(f.Last))
		} else {
			fmt.Fprintf(&b, "  %s\n", moment(f.First))
		}
		fmt.Fprintf(&b, "    %s\n", oneLine(f.Detail))
		for _, x := range [][2]string{{"impersonated by", f.By}, {"from", join(", ", f.Caller, f.Agent)}, {"with", f.Method}, {"objects", strings.Join(f.Objects, " ")}} {
			if x[1] != "" {
				fmt.Fprintf(&b, "    %s: %s\n", x[0], oneLine(x[1]))
			}
		}
		if f.Line > 0 {
			fmt.Fprintf(&b, "    entry %d\n", f.Line)
		}
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d findings more (--limit 0 names all)\n", r.More)
	}
	if r.Clean {
		b.WriteString("Clean: whoever read the vault may, and what the service read is on record.\n")
		return b.String()
	}
	b.WriteString("NOT CLEAN:")
	writeCounts(&b, r.Counts)
	return b.String()
}

func nobody(account string) string {
	if account == "" {
		return "nobody that Google names"
	}
	return account
}
