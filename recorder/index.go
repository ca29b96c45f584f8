package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"verbatim.dev/recorder/index"
)

const indexHelp = `
Usage: recorder index build   [--index PLACE] [--vault VAULT] [--keyset FILE] [--since TIME]
       recorder index rebuild [--index PLACE] [--vault VAULT] [--keyset FILE]
       recorder index check   [--index PLACE] [--vault VAULT] [--keyset FILE] [--format text|json]

The index has a row for each exchange, with all that search asks for, in Parquet files
that DuckDB and BigQuery read as they are: PLACE/exchanges/dt=YYYY-MM-DD/*.parquet. It
follows from the vault and can be made anew at any time. It holds SQL, parameters and
identities in clear, so it rests apart from the vault, in a folder or bucket of its own
without retention, and whoever may read it may read what was recorded.

  build    adds what came into the vault since the last time, takes away what was erased
           and the rows whose segments expired. It may be cut off at any moment and run
           again. --since looks at the segments of these days only.
  rebuild  removes the index and builds it from the start.
  check    makes the rows anew from the records and names each exchange whose row is
           missing, changed, or that no record tells of. What is newer than the index is
           only counted. Whether the records are sound is for "recorder verify" to say.

Exit code 0: done, the index is what the records say. 1: failed, or check found
something. 2: wrong arguments.

Examples:
  recorder index build --index /var/lib/verbatim/index
  recorder index build --vault vault.yaml --keyset tenant.json
  recorder index check --index gs://acme-index
  recorder search --index /var/lib/verbatim/index --since 2h
  duckdb -c "SELECT subject, count(*) FROM read_parquet('/var/lib/verbatim/index/exchanges/*/*.parquet') GROUP BY ALL"
`

func indexCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("index", indexHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	at := f.String("index", "", indexUsage)
	since := f.String("since", "", "build: only from segments of the days since this `TIME`")
	format := f.String("format", "text", "check: `FORMAT` of the report, text or json")
	names, err := f.parse(args, stdout, "the action build, rebuild or check")
	if err != nil {
		return err
	}
	verb := names[0]
	switch verb {
	case "build", "rebuild", "check":
	default:
		return &usageError{fmt.Sprintf("index: unknown action %q", verb), suggest(verb, []string{"build", "rebuild", "check"}, "", f.see())}
	}
	c := index.Config{}
	switch {
	case *since != "" && verb != "build":
		return &usageError{"index: --since goes with build", f.see()}
	case *format != "text" && verb != "check":
		return &usageError{"index: --format goes with check", f.see()}
	case *since != "":
		if c.Since, err = parseTime(*since, time.Now()); err != nil {
			return &usageError{fmt.Sprintf("index: --since: %v", err), f.see()}
		}
	}
	if err := f.choice("format", *format, "text", "json"); err != nil {
		return err
	}
	v, err := f.open(ctx, &p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if *at = p.index(*at); *at == "" {
		return &usageError{"index: where is the index?", "give --index FOLDER or gs://BUCKET, set VERBATIM_INDEX, or name it in the vault file"}
	}
	keys, err := f.keys(ctx, &p, v)
	if err != nil {
		return err
	}
	if keys == nil {
		return &usageError{"index: which keyset?", "records are sealed: give --keyset FILE, the tenant's private keyset, or set VERBATIM_KEYSET"}
	}
	s, err := index.Open(ctx, *at, verb != "check")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	warned := 0
	c.Vault, c.Keys, c.Store = v, keys, s
	c.Warn = func(err error) {
		if warned++; warned <= 5 {
			fmt.Fprintln(stderr, "recorder: warning:", oneLine(err.Error()))
		}
	}
	next := time.Now().Add(2 * time.Second)
	c.Progress = func(s index.Stats) {
		if now := time.Now(); now.After(next) {
			next = now.Add(2 * time.Second)
			fmt.Fprintf(stderr, "recorder: index: %s: %d segments (%s), %d exchanges\n", s.Day, s.Segments, size(s.Bytes), s.Exchanges)
		}
	}
	if verb == "check" {
		r, err := index.Check(ctx, c)
		if err != nil {
			return err
		}
		return reportIndex(r, *format, stdout, stderr)
	}
	do := index.Build
	if verb == "rebuild" {
		do = index.Rebuild
	}
	stats, err := do(ctx, c)
	if errors.Is(err, index.ErrChanged) {
		return fmt.Errorf("%w: another build, or an erasure, is at work: run it again", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "Indexed %d segments (%s): %d exchanges, %d rows written in %d files (%s)\n", stats.Segments, size(stats.Bytes), stats.Exchanges, stats.Rows, stats.Files, size(stats.Written))
	for _, n := range []struct {
		n    int64
		text string
	}{
		{stats.Purged, "%d rows were taken out: their data keys were erased"},
		{stats.Expired, "%d rows were taken out: their segments expired"},
		{stats.Erased, "%d exchanges have no row: their data keys were erased"},
		{stats.Unreadable, "%d rows say only when and where: their data keys are missing or wrong; run recorder verify"},
		{stats.Damaged, "%d segments could not be read to their end; run recorder verify, and rebuild when they are mended"},
	} {
		if n.n > 0 && err == nil {
			_, err = fmt.Fprintf(stdout, n.text+"\n", n.n)
		}
	}
	return err
}

func reportIndex(r *index.Report, format string, stdout, stderr io.Writer) error {
	if format == "json" {
		if err := writeJSON(stdout, r, " "); err != nil {
			return err
		}
	} else {
		for _, x := range r.Findings {
			what := x.Exchange
			if what == "" {
				what = x.File
			}
			columns := ""
			if len(x.Columns) > 0 {
				columns = fmt.Sprintf(" (%s)", join(", ", x.Columns...))
			}
			fmt.Fprintf(stdout, "%-12s %s%s: %s\n", x.Code, oneLine(what), columns, oneLine(x.Message))
		}
		if r.More > 0 {
			fmt.Fprintf(stdout, "and %d findings more\n", r.More)
		}
		fmt.Fprintf(stdout, "%d rows compared with the records\n", r.Checked)
	}
	if r.Behind > 0 {
		fmt.Fprintf(stderr, "recorder: index: %d exchanges are newer than the index, or have gone on since: run recorder index build\n", r.Behind)
	}
	if r.Expired > 0 {
		fmt.Fprintf(stderr, "recorder: index: %d rows are of segments that expired: run recorder index build\n", r.Expired)
	}
	if r.Stats.Damaged > 0 {
		fmt.Fprintf(stderr, "recorder: index: %d segments could not be read to their end: run recorder verify\n", r.Stats.Damaged)
	}
	if n := int64(len(r.Findings)) + r.More; n > 0 {
		return fmt.Errorf("index: %d rows or files are not what the records say: run recorder index rebuild", n)
	}
	return nil
}
