package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"verbatim.dev/extproc/authoring"
	"verbatim.dev/policy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

const policyEvalHelp = `Usage: extproc policy eval --bundle PATH --sql TEXT --project ID --issuer NAME [caller] [more]
       extproc policy eval --bundle PATH --vault PLACE --keyset FILE --exchange ID

Asks a policy about a SQL text and a caller, and shows the input, the decision and its
reasons. The text is analysed as the gateway does it ("-": standard input, "@FILE":
a file). BigQuery is not asked: --behind names a table that a dry run would name beside
those of the text (behind a view), --bytes what it would process; either of them, or
--dry-run, stands for a dry run that was made.

The caller: --issuer with --subject, --group, --repository, --ref, --workflow,
--environment, --pipeline, --namespace, --service-account or --spiffe-id, or all of
them as a JSON object in --caller FILE.

With --exchange a recorded request is decided again (its id or receipt). The text, its
parameters and labels are left out of what is shown: "recorder show" has them.

With --expect the exit code is 1 when the decision is another.

Examples:

  extproc policy eval --bundle ./policy --issuer corp --group analysts --project acme \
    --sql 'SELECT * FROM sales.orders'
  extproc policy eval --bundle ./policy --caller agent.json --project acme --sql @query.sql \
    --behind acme.hr.salaries --expect deny
  extproc policy eval --bundle ./policy --vault ./vault --keyset tenant.json --exchange 06h0yrzm...-8

`

// list is a flag that may be given more than once.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	if s == "" {
		return errors.New("empty")
	}
	*l = append(*l, s)
	return nil
}

func policyEval(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("policy eval", flag.ContinueOnError)
	var source policySource
	source.flags(fs)
	var from records
	from.flags(fs)
	var q authoring.Question
	var groups, behind list
	exchange := fs.String("exchange", "", "`ID` or receipt of a recorded exchange")
	text := fs.String("sql", "", "the SQL `TEXT`, - or @FILE")
	caller := fs.String("caller", "", "`FILE` with the caller as JSON")
	at := fs.String("at", "", "`TIME` of the request (RFC 3339); now")
	format := fs.String("format", "text", "`FORMAT` of the output: text or json")
	expect := fs.String("expect", "", "fail unless the decision is `allow`, deny or dry_run")
	var c authoring.Caller
	for name, to := range map[string]*string{
		"issuer": &c.Issuer, "subject": &c.Subject, "email": &c.Email, "repository": &c.Repository, "ref": &c.Ref, "workflow": &c.Workflow,
		"environment": &c.Environment, "pipeline": &c.Pipeline, "namespace": &c.Namespace, "service-account": &c.ServiceAccount, "spiffe-id": &c.SPIFFE,
		"run": &c.Run, "commit": &c.Commit,
	} {
		fs.StringVar(to, name, "", "`NAME` of the caller's "+strings.ReplaceAll(name, "-", " "))
	}
	fs.Var(&groups, "group", "`NAME` of a group of the caller's (may be repeated)")
	fs.StringVar(&q.Project, "project", "", "`ID` of the project that the job runs in")
	fs.StringVar(&q.Dataset, "dataset", "", "default `DATASET`, or PROJECT.DATASET")
	fs.StringVar(&q.Connection, "connection", "main", "`NAME` of the connection")
	fs.Var(&behind, "behind", "`PROJECT.DATASET.TABLE` that a dry run would name too (may be repeated)")
	fs.Int64Var(&q.Bytes, "bytes", 0, "`BYTES` that a dry run would say are processed")
	fs.BoolVar(&q.DryRun, "dry-run", false, "a dry run was made, and named no more than the text")
	if err := parse(fs, args, stdout, policyEvalHelp); err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("%w: --format %q: want text or json", errUsage, *format)
	}
	if e := *expect; e != "" && e != authoring.Allow && e != authoring.Deny && e != authoring.Unknown {
		return fmt.Errorf("%w: --expect %q: want allow, deny or dry_run", errUsage, e)
	}
	engine, err := source.load(ctx, "eval")
	if err != nil {
		return err
	}
	revision := engine.Current()
	var in *policy.Input
	if *exchange != "" {
		if in, err = recorded(ctx, &from, *exchange, revision); err != nil {
			return err
		}
	} else {
		if *caller != "" {
			if err := readCaller(*caller, &c); err != nil {
				return err
			}
		}
		c.Groups = append(c.Groups, groups...)
		q.Caller, q.Behind = c, behind
		q.DryRun = q.DryRun || len(behind) > 0 || q.Bytes > 0
		if q.At = time.Now(); *at != "" {
			if q.At, err = time.Parse(time.RFC3339, *at); err != nil {
				return fmt.Errorf("%w: --at %q: want RFC 3339, 2026-03-14T09:00:00Z", errUsage, *at)
			}
		}
		if q.SQL, err = readText(*text); err != nil {
			return err
		}
		if in, err = authoring.Ask(ctx, q, revision.Windows()); err != nil {
			return fmt.Errorf("%w: policy eval: %w", errUsage, err)
		}
	}
	d, err := revision.Decide(ctx, in)
	var refused *policy.Error
	switch {
	case errors.As(err, &refused):
		d = &policy.Decision{Reasons: []policy.Reason{{Code: string(refused.Code), Message: refused.Message}}}
	case err != nil:
		return err
	}
	verdict := authoring.Verdict(d)
	shown := *in
	if *exchange != "" && in.SQL != nil {
		sealed := *in.SQL
		sealed.Text, sealed.Parameters = "(sealed: recorder show)", nil
		shown.SQL, shown.Asserted.Labels = &sealed, nil
	}
	if err := printEval(stdout, *format, &shown, d, verdict, revision.Digest()); err != nil {
		return err
	}
	if *expect != "" && *expect != verdict {
		return fmt.Errorf("the decision is %s, not %s", verdict, *expect)
	}
	return nil
}

func printEval(stdout io.Writer, format string, in *policy.Input, d *policy.Decision, verdict, digest string) error {
	input, err := in.JSON()
	if err != nil {
		return err
	}
	if format == "json" {
		b, err := json.MarshalIndent(map[string]any{"policy": digest, "verdict": verdict, "input": json.RawMessage(input), "decision": d}, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(stdout, string(b))
		return err
	}
	fmt.Fprintf(stdout, "input: %s\n\npolicy: %s\ndecision: %s\n", input, digest, verdict)
	for _, r := range d.Reasons {
		fmt.Fprintf(stdout, "  %s: %s\n", r.Code, r.Message)
	}
	if d.Allow {
		fmt.Fprintf(stdout, "  maximum bytes billed: %d\n", d.Limits.MaximumBytesBilled)
	}
	if d.DryRun {
		fmt.Fprintln(stdout, "  give --behind and --bytes to say what BigQuery's dry run would tell, or --dry-run for nothing more")
	}
	return nil
}

func readText(s string) (string, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("%w: policy eval needs --sql TEXT (or --exchange ID)", errUsage)
	case s == "-":
		b, err := io.ReadAll(io.LimitReader(os.Stdin, 4<<20))
		return string(b), err
	case strings.HasPrefix(s, "@"):
		b, err := os.ReadFile(s[1:])
		return string(b), err
	}
	return s, nil
}

func readCaller(file string, c *authoring.Caller) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// recorded makes the input of a recorded exchange again.
func recorded(ctx context.Context, from *records, exchange string, revision *policy.Revision) (in *policy.Input, err error) {
	id, err := record.ParseID(exchange)
	if err != nil {
		return nil, fmt.Errorf("%w: --exchange: %w", errUsage, err)
	}
	c, end, err := from.open(ctx, "eval --exchange", nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	var r authoring.Recorded
	d, err := search.Find(ctx, c, id, func(way record.Direction, b []byte) error {
		if way == record.DirectionRequest && len(r.Body) < 4<<20 {
			r.Body = append(r.Body, b...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(d.Intent) == 0 {
		return nil, errors.New("the vault holds no intent of this exchange, or its key is gone: no policy can be asked")
	}
	r.Intent = &record.Intent{}
	if err := json.Unmarshal(d.Intent, r.Intent); err != nil {
		return nil, fmt.Errorf("the intent cannot be read: %w", err)
	}
	if len(d.Outcome) > 0 {
		r.Outcome = &record.Outcome{}
		if err := json.Unmarshal(d.Outcome, r.Outcome); err != nil {
			return nil, fmt.Errorf("the outcome cannot be read: %w", err)
		}
	}
	return authoring.Input(ctx, r, revision.Windows())
}
