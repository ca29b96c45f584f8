package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/index"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

const searchHelp = `
Usage: recorder search [filters] [--limit N] [--sort ORDER] [--format table|json]
                       [--why TEXT] [--index PLACE | --server URL]

Finds exchanges that fit all the filters given. Names are compared whole and without
regard to case; "*" in them stands for anything. Times are RFC 3339, a day (UTC), or
how long ago: 90m, 2h, 3d, "3d ago". The tenant's keyset is needed: what is searched
is sealed. With --server a service that holds it (recorder serve) searches instead, and
puts on record who looked for what, and what was found. So does this command where it
has the keyset itself, before it prints; but who reads is then only what this machine
says. "recorder accesses" lists both. With --index an index that "recorder index build"
made is searched: it is as new as its last build, and needs no vault and no keyset; with a
keyset the reading is put on record all the same.

With --format json each line is one object; recorder/README.md explains the fields.

Examples:
  recorder search --since 2h
  recorder search --principal alice@corp.example --decision deny
  recorder search --since 2026-03-14 --until 2026-03-15 --table sales.orders --format json
  recorder search --repository 'corp/*' --sql 'export data' --limit 0
  recorder search --server https://auditors.corp.example --why 'incident 4711' --since 2h
`

func searchCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	var q search.Query
	f := newFlags("search", searchHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	var far remote
	f.remoteFlags(&far)
	f.readsFlags(&p)
	indexed := f.String("index", "", "search the index at this `PLACE`, a folder or gs://BUCKET[/PREFIX], in the vault's stead")
	since := f.String("since", "", "requests from this `TIME` on")
	until := f.String("until", "", "requests before this `TIME`")
	f.StringVar(&q.Principal, "principal", "", "`NAME`: subject, e-mail, ISSUER/SUBJECT, or a subject on whose behalf the call was made")
	f.StringVar(&q.Group, "group", "", "`NAME` of a group of the principal, with its issuer (corp/security) or without")
	f.StringVar(&q.Repository, "repository", "", "`NAME` of the repository that the token proves")
	f.StringVar(&q.Commit, "commit", "", "`SHA` of the commit that the token proves, or its beginning")
	f.StringVar(&q.Project, "project", "", "`ID` of the project called")
	f.StringVar(&q.Table, "table", "", "`TEXT` within the SQL or the name of a table that was called, read (through views and wildcards too) or written")
	f.StringVar(&q.SQL, "sql", "", "`TEXT` within the SQL, in any case")
	f.StringVar(&q.Decision, "decision", "", "`DECISION`: allow, deny, or would_deny (the policy denied and only observed)")
	f.StringVar(&q.Reason, "reason", "", "`CODE` of a reason of the decision")
	f.StringVar(&q.Job, "job", "", "job `ID`, or PROJECT:LOCATION.ID")
	f.StringVar(&q.Session, "session", "", "`ID` of the session")
	f.StringVar(&q.Connection, "connection", "", "`NAME` of the connection")
	f.StringVar(&q.Method, "method", "", "`NAME` of the API method, such as jobs.query")
	f.IntVar(&q.Limit, "limit", 100, "give the newest `N` (with --sort stored the first); 0: all")
	sort := f.String("sort", "time", "`ORDER`: time (newest last), -time (newest first), stored (as they lie in the vault, any number)")
	format := f.String("format", "table", "`FORMAT` of the output: table or json")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if err := errors.Join(f.choice("format", *format, "table", "json"), f.choice("sort", *sort, "time", "-time", "stored"), f.moments(*since, &q.Since, *until, &q.Until)); err != nil {
		return err
	}
	if q.Decision != "" {
		if err := f.choice("decision", q.Decision, "allow", "deny", "would_deny"); err != nil {
			return err
		}
	}
	if q.Limit < 0 {
		return &usageError{fmt.Sprintf("search: --limit %d: want 0 (all) or more", q.Limit), f.see()}
	}
	q.Order = search.Order(*sort)
	var client *access.Client
	if *indexed == "" {
		if client, err = f.client(&far, &p); err != nil {
			return err
		}
	}
	warned := 0
	warn := func(err error) {
		if warned++; warned <= 5 {
			fmt.Fprintln(stderr, "recorder: warning:", oneLine(err.Error()))
		}
	}
	shown := 0
	emit := func(x *search.Exchange) error {
		shown++
		if *format == "json" {
			return writeJSON(stdout, x, "")
		}
		if shown == 1 {
			if _, err := io.WriteString(stdout, tableHead()); err != nil {
				return err
			}
		}
		_, err := io.WriteString(stdout, tableRow(x))
		return err
	}
	var stats search.Stats
	switch {
	case *indexed != "":
		stats, err = f.searchIndex(ctx, &p, *indexed, q, emit, stderr)
	case client != nil:
		var end access.End
		end, err = client.Search(ctx, access.NewSearchRequest(q, p.why), warn, emit)
		stats = search.Stats{Exchanges: end.Exchanges, Matched: end.Matched, Unreadable: end.Unreadable}
	default:
		stats, err = f.searchHere(ctx, &p, q, warn, emit)
	}
	if errors.Is(err, search.ErrMemory) {
		return fmt.Errorf("search: %w; use narrower filters, a lower --limit, or --sort stored", err)
	}
	if err != nil {
		return f.failed(err)
	}
	note := func(format string, args ...any) { fmt.Fprintf(stderr, "recorder: "+format+"\n", args...) }
	if warned > 0 {
		note("%d warnings: the vault is damaged, and something may be missing above; run recorder verify", warned)
	}
	if stats.Erased > 0 {
		note("%d exchanges could not be compared: their data keys were erased", stats.Erased)
	}
	if n := stats.Unreadable - stats.Erased; n > 0 {
		note("%d exchanges could not be compared: their data keys are not in the vault, with no erasure that names them, or are for another keyset, such as one that was rotated since", n)
	}
	switch {
	case shown == 0:
		note("nothing fits (%d exchanges looked at)", stats.Exchanges)
	case q.Order == search.Stored && shown == q.Limit:
		note("stopped after %d; a higher --limit shows more", shown)
	case stats.Matched > int64(shown):
		note("%d of %d that fit; a higher --limit shows more", shown, stats.Matched)
	}
	return nil
}

// searchHere searches the vault with the keyset.
func (f *flags) searchHere(ctx context.Context, p *where, q search.Query, warn func(error), emit func(*search.Exchange) error) (stats search.Stats, err error) {
	v, err := f.open(ctx, p)
	if err != nil {
		return stats, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	keys, err := f.keys(ctx, p, v)
	if err != nil {
		return stats, err
	}
	if keys == nil {
		return stats, &usageError{f.name + ": which keyset?", "records are sealed: give --keyset FILE, the tenant's private keyset, or set VERBATIM_KEYSET"}
	}
	r, err := f.record(ctx, p)
	if err != nil {
		return stats, err
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	h := f.heldSearch(r, p, q, emit)
	stats, err = search.Run(ctx, search.Config{Vault: v, Keys: keys, Warn: warn}, q, func(x *search.Exchange) error { return h.add(ctx, x) })
	if err == nil {
		err = h.end(ctx)
	}
	return stats, err
}

// searchIndex searches an index. It needs no keyset; where one is at hand the
// reading is put on record with it.
func (f *flags) searchIndex(ctx context.Context, p *where, at string, q search.Query, emit func(*search.Exchange) error, stderr io.Writer) (stats search.Stats, err error) {
	s, err := index.Open(ctx, at, false)
	if err != nil {
		return stats, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var wrong *usageError
	if err := f.resolve(p); errors.As(err, &wrong) && p.vault == "" {
		p.vault = at // which vault it is of, nobody says
	} else if err != nil {
		return stats, err
	}
	r, err := f.record(ctx, p)
	if err != nil {
		return stats, err
	}
	if r == nil {
		fmt.Fprintln(stderr, "recorder: what is read here is not on record: no keyset is given")
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	h := f.heldSearch(r, p, q, emit)
	stats, err = search.Collect(q, func(emit func(*search.Exchange) error) (search.Stats, error) {
		return index.Search(ctx, s, q.Filter, emit)
	}, func(x *search.Exchange) error { return h.add(ctx, x) })
	if err == nil {
		err = h.end(ctx)
	}
	return stats, err
}

// heldSearch holds what a search gives until it is on record.
func (f *flags) heldSearch(r *reads, p *where, q search.Query, emit func(*search.Exchange) error) *held[*search.Exchange] {
	asked := access.NewSearchRequest(q, p.why)
	return &held[*search.Exchange]{reads: r, what: asked.What(), emit: emit, id: func(x *search.Exchange) (string, int) { return x.ID, len(x.SQL) + len(x.Parameters) }}
}

// The widths of the table's columns: 100 with the spaces between.
const (
	timeWidth      = 19
	exchangeWidth  = 34
	principalWidth = 18
	methodWidth    = 14
)

func tableHead() string {
	return strings.Join([]string{pad("TIME (UTC)", timeWidth), pad("EXCHANGE", exchangeWidth), pad("PRINCIPAL", principalWidth), pad("METHOD", methodWidth), "RESULT"}, " ") + "\n"
}

// tableRow is one line, with the SQL and the reasons of a denial on lines of
// their own below.
func tableRow(x *search.Exchange) string {
	var b strings.Builder
	who := "-"
	if x.Principal != nil {
		who = x.Principal.Email
		if who == "" {
			who = x.Principal.Subject
		}
	}
	method := strings.TrimPrefix(x.Method, "bigquery.")
	if method == "" {
		method = "-"
	}
	result := string(x.Result)
	if x.Result == record.ResultDelivered {
		result = fmt.Sprint(x.Status)
	}
	fmt.Fprintf(&b, "%s %s %s %s %s\n", x.Time.Format("2006-01-02 15:04:05"), pad(x.ID, exchangeWidth),
		pad(cut(oneLine(who), principalWidth), principalWidth), pad(cut(oneLine(method), methodWidth), methodWidth), result)
	below := func(s string) { fmt.Fprintf(&b, "    %s\n", cut(oneLine(squeeze(s)), 96)) }
	if x.SQL != "" {
		below(x.SQL)
	} else if x.SQLSHA256 != "" {
		below("SQL with SHA-256 " + x.SQLSHA256)
	}
	if x.Decision != nil && (!x.Decision.Allow || x.Decision.WouldDeny) {
		if x.Decision.WouldDeny {
			below("would deny, but the policy only observes:")
		}
		for _, r := range x.Decision.Reasons {
			below(join(": ", r.Code, r.Message))
		}
	}
	if x.Unreadable != "" {
		below("unreadable: " + x.Unreadable)
	}
	return b.String()
}
