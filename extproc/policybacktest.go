package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"verbatim.dev/extproc/authoring"
	"verbatim.dev/recorder/record"
)

const policyBacktestHelp = `Usage: extproc policy backtest --vault PLACE --keyset FILE --bundle PATH [--since TIME] [--until TIME]
                               [--no-views] [--format text|json]

Decides every recorded request of a time again under a candidate policy, and lists each
decision that would be another. The SQL is analysed anew from the record; tables behind
views are those that BigQuery named then. Where it was not asked then and the candidate
wants to ask, the line says "dry_run"; with --no-views it is decided as if BigQuery had
named no tables but the text's. What budgets had used is not in the records: they
count as unused. No SQL is shown; "recorder show EXCHANGE" has it.

The exit code is 1 when a decision flips, or could not be made again.

Examples:

  extproc policy backtest --vault ./vault --keyset tenant.json --bundle ./candidate --since 168h
  extproc policy backtest --vault gs://acme-evidence --keyset tenant.json --bundle candidate.tar.gz \
    --since 2026-03-01 --until 2026-04-01 --format json

`

func policyBacktest(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := flag.NewFlagSet("policy backtest", flag.ContinueOnError)
	var source policySource
	source.flags(fs)
	var from records
	from.flags(fs)
	from.times(fs)
	noViews := fs.Bool("no-views", false, "where a dry run would be asked for, decide as if it named no more than the text")
	format := fs.String("format", "text", "`FORMAT` of the output: text or json")
	if err := parse(fs, args, stdout, policyBacktestHelp); err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("%w: --format %q: want text or json", errUsage, *format)
	}
	since, until, err := from.span(time.Now())
	if err != nil {
		return err
	}
	engine, err := source.load(ctx, "backtest")
	if err != nil {
		return err
	}
	c, end, err := from.open(ctx, "backtest", func(err error) { fmt.Fprintln(stderr, "extproc: warning:", oneLine(err.Error())) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	revision := engine.Current()
	emit := func(f authoring.Flip) error {
		if *format == "json" {
			b, err := json.Marshal(f)
			if err == nil {
				_, err = fmt.Fprintln(stdout, string(b))
			}
			return err
		}
		return printFlip(stdout, f)
	}
	told := 0
	unfit := func(id record.ID, err error) {
		if told++; told <= 20 {
			fmt.Fprintf(stderr, "extproc: %s: not decided again: %s\n", id, oneLine(err.Error()))
		}
	}
	s, err := authoring.Backtest(ctx, c, authoring.Trial{Candidate: revision, Since: since, Until: until, NoViews: *noViews}, emit, unfit)
	if err != nil {
		return err
	}
	fmt.Fprintf(stderr, "extproc: %d exchanges, %d decided again by %s: %d would be allowed, %d would be denied, %d need a dry run; %d were decided by others than a policy, %d records are not enough, %d cannot be read\n",
		s.Exchanges, s.Decided, revision.Digest(), s.ToAllow, s.ToDeny, s.Unknown, s.Others, s.Unfit, s.Unreadable)
	if n := s.ToAllow + s.ToDeny + s.Unknown; n > 0 {
		return fmt.Errorf("%d decisions flip", n)
	}
	if n := s.Unfit + s.Unreadable; n > 0 {
		return fmt.Errorf("%d decisions could not be made again", n)
	}
	return nil
}

func printFlip(stdout io.Writer, f authoring.Flip) error {
	who := "-"
	if f.Principal != nil {
		who = f.Principal.Issuer + "/" + f.Principal.Subject
	}
	was := f.Was
	if f.WouldDeny {
		was += " (let pass, observed)"
	}
	_, err := fmt.Fprintf(stdout, "%s %s %s %s: %s -> %s\n", f.Time.UTC().Format("2006-01-02 15:04:05"), f.Exchange, oneLine(who), f.Method, was, f.Now)
	for _, r := range f.WasReasons {
		if err == nil {
			_, err = fmt.Fprintf(stdout, "    was %s: %s\n", r.Code, oneLine(r.Message))
		}
	}
	for _, r := range f.Reasons {
		if err == nil {
			_, err = fmt.Fprintf(stdout, "    now %s: %s\n", r.Code, oneLine(r.Message))
		}
	}
	return err
}
