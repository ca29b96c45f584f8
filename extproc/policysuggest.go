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
)

const policySuggestHelp = `Usage: extproc policy suggest --vault PLACE --keyset FILE [--since TIME] [--until TIME]

Drafts data.json for the default rules: the least grants that let what was recorded as
let, one for each repository, workload or person, over the tables that it used. What was
denied is not in it, unless the mode observe let it pass. Each description says how often
a table was used. A draft is a beginning: read it, put groups in the place of subjects,
add "expires", and try it with "extproc policy backtest".

Example:

  extproc policy suggest --vault ./vault --keyset tenant.json --since 720h > candidate/data.json

`

func policySuggest(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := flag.NewFlagSet("policy suggest", flag.ContinueOnError)
	var from records
	from.flags(fs)
	from.times(fs)
	if err := parse(fs, args, stdout, policySuggestHelp); err != nil {
		return err
	}
	since, until, err := from.span(time.Now())
	if err != nil {
		return err
	}
	c, end, err := from.open(ctx, "suggest", func(err error) { fmt.Fprintln(stderr, "extproc: warning:", oneLine(err.Error())) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	d, err := authoring.Suggest(ctx, c, since, until)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, string(b))
	s := d.Stats
	fmt.Fprintf(stderr, "extproc: %d grants of %d of %d exchanges; %d were denied or decided by others than a policy, %d records are not enough, %d cannot be read\n",
		len(d.Grants), s.Decided, s.Exchanges, s.Others, s.Unfit, s.Unreadable)
	for _, n := range d.Notes {
		fmt.Fprintln(stderr, "extproc: note:", oneLine(n))
	}
	if s.Decided == 0 {
		return errors.New("nothing to draft from: no allowed request in that time")
	}
	return nil
}
