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

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault"
)

const accessesHelp = `
Usage: recorder accesses [filters] [--limit N] [--format table|json] [--server URL]
       recorder accesses reconcile --log FILE|- --serve-account EMAIL [flags]

Lists who read the evidence by way of recorder serve: what they asked for, why, what
they were given, and what they were refused. The records lie in the vault among all
others, so verify proves them. The tenant's keyset is needed, or with --server the
role auditor. Times and names are written as for search.

Then come the reads with a keyset on this machine, which lie in a folder of their own
(--reads): who read is only asserted there, and somebody who meant to could have read
without a record.

"recorder accesses reconcile" finds reads of the vault that came from neither, in
Google's own access logs.

Examples:
  recorder accesses --since 7d
  recorder accesses --exchange 06eeq4qag1hqfnwe49a5rg7yac-2
  recorder accesses --who ada@corp.example --action payload --format json
  recorder accesses --refused --server https://auditors.corp.example
`

func accessesCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	if len(args) > 0 && args[0] == "reconcile" {
		return directReadsCommand(ctx, args[1:], stdout, stderr)
	}
	var p where
	var far remote
	var q search.AccessFilter
	f := newFlags("accesses", accessesHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	f.remoteFlags(&far)
	f.readsFlags(&p)
	since := f.String("since", "", "reads from this `TIME` on")
	until := f.String("until", "", "reads before this `TIME`")
	f.StringVar(&q.Who, "who", "", "`NAME` of the reader: subject, e-mail or ISSUER/SUBJECT")
	f.StringVar(&q.Exchange, "exchange", "", "`ID` of an exchange that was given out")
	f.StringVar(&q.Action, "action", "", "`ACTION`: search, show, payload, accesses, export, reconcile or erase")
	f.BoolVar(&q.Refused, "refused", false, "only what was refused")
	limit := f.Int("limit", 0, "give the first `N`; 0: all")
	format := f.String("format", "table", "`FORMAT` of the output: table or json")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if err := errors.Join(f.choice("format", *format, "table", "json"), f.moments(*since, &q.Since, *until, &q.Until)); err != nil {
		return err
	}
	if q.Action != "" {
		if err := f.choice("action", q.Action, access.ActionSearch, access.ActionShow, access.ActionPayload, access.ActionAccesses, access.ActionExport, access.ActionReconcile, access.ActionErase); err != nil {
			return err
		}
	}
	if q.Exchange != "" {
		id, err := record.ParseID(q.Exchange)
		if err != nil {
			return &usageError{"accesses: --exchange: " + err.Error(), f.see()}
		}
		q.Exchange = id.String()
	}
	if *limit < 0 {
		return &usageError{fmt.Sprintf("accesses: --limit %d: want 0 (all) or more", *limit), f.see()}
	}
	client, err := f.client(&far, &p)
	if err != nil {
		return err
	}
	warn := func(err error) { fmt.Fprintln(stderr, "recorder: warning:", oneLine(err.Error())) }
	n := 0
	emit := func(a *search.Access) error {
		n++
		if *format == "json" {
			return writeJSON(stdout, a, "")
		}
		if n == 1 {
			if _, err := io.WriteString(stdout, accessHead()); err != nil {
				return err
			}
		}
		_, err := io.WriteString(stdout, accessRow(a))
		return err
	}
	if client != nil {
		_, err = client.Accesses(ctx, access.NewAccessesRequest(q, *limit, p.why), warn, emit)
	} else {
		err = f.accessesHere(ctx, &p, q, *limit, warn, emit)
	}
	if err != nil {
		return f.failed(err)
	}
	if n == 0 {
		fmt.Fprintln(stderr, "recorder: no access record fits")
	}
	return nil
}

var errLimit = errors.New("as many as were asked for")

func (f *flags) accessesHere(ctx context.Context, p *where, q search.AccessFilter, limit int, warn func(error), emit func(*search.Access) error) (err error) {
	v, err := f.open(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	keys, err := f.keys(ctx, p, v)
	if err != nil {
		return err
	}
	if keys == nil {
		return &usageError{"accesses: which keyset?", "records are sealed: give --keyset FILE, the tenant's private keyset, or set VERBATIM_KEYSET"}
	}
	r, err := f.record(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	asked := access.NewAccessesRequest(q, limit, p.why)
	h := held[*search.Access]{reads: r, what: asked.What(), emit: emit, id: func(a *search.Access) (string, int) { return a.ID, 40 * len(a.Records) }}
	n := 0
	take := func(a *search.Access) error {
		if err := h.add(ctx, a); err != nil {
			return err
		}
		if n++; n == limit {
			return errLimit
		}
		return nil
	}
	err = search.Accesses(ctx, search.Config{Vault: v, Keys: keys, Warn: warn}, q, take)
	if err == nil {
		err = f.assertedHere(ctx, p, r, q, warn, take)
	}
	if err == nil || errors.Is(err, errLimit) {
		err = h.end(ctx)
	}
	return err
}

// assertedHere gives the reads that were put on record beside the vault.
func (f *flags) assertedHere(ctx context.Context, p *where, r *reads, q search.AccessFilter, warn func(error), take func(*search.Access) error) (err error) {
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: r.dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	keys, err := f.keys(ctx, p, v)
	if err != nil {
		return err
	}
	return search.Accesses(ctx, search.Config{Vault: v, Keys: keys, Warn: warn}, q, take)
}

// moments reads the flags since and until.
func (f *flags) moments(since string, from *time.Time, until string, to *time.Time) (err error) {
	now := time.Now()
	for _, t := range []struct {
		name, value string
		to          *time.Time
	}{{"since", since, from}, {"until", until, to}} {
		if t.value == "" {
			continue
		}
		if *t.to, err = parseTime(t.value, now); err != nil {
			return &usageError{fmt.Sprintf("%s: --%s: %v", f.name, t.name, err), f.see()}
		}
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(*to) {
		return &usageError{fmt.Sprintf("%s: --since %s is not before --until %s", f.name, moment(*from), moment(*to)), f.see()}
	}
	return nil
}

func accessHead() string {
	return strings.Join([]string{pad("TIME (UTC)", timeWidth), pad("ACCESS", exchangeWidth), pad("WHO", principalWidth), pad("ACTION", methodWidth), "RESULT"}, " ") + "\n"
}

func reader(a *search.Access) string {
	switch {
	case a.Asserted != nil:
		return a.Asserted.User + " (asserted)"
	case a.Who == nil:
		return "-"
	case a.Who.Email != "":
		return a.Who.Email
	}
	return a.Who.Subject
}

// accessRow is one line, with what was read and why below.
func accessRow(a *search.Access) string {
	var b strings.Builder
	result := fmt.Sprintf("%d records", len(a.Records))
	switch {
	case a.Unreadable != "":
		result = "unreadable"
	case !a.Allowed:
		result = "refused: " + a.Code
	case len(a.Records) == 1:
		result = a.Records[0]
	}
	action := a.What.Action
	if a.What.Direction != "" {
		action = a.What.Direction
	}
	fmt.Fprintf(&b, "%s %s %s %s %s\n", a.Time.Format("2006-01-02 15:04:05"), pad(a.ID, exchangeWidth),
		pad(cut(oneLine(reader(a)), principalWidth), principalWidth), pad(cut(oneLine(action), methodWidth), methodWidth), oneLine(result))
	below := func(s string) { fmt.Fprintf(&b, "    %s\n", cut(oneLine(squeeze(s)), 96)) }
	if a.Why != "" {
		below("why: " + a.Why)
	}
	if len(a.What.Filter) > 0 {
		below(pairs(a.What.Filter))
	}
	if a.Unreadable != "" {
		below(a.Unreadable)
	}
	return b.String()
}

// accessText is everything of an access record, for people.
func accessText(a *search.Access) string {
	var b strings.Builder
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-16s %s\n", name, oneLine(value))
		}
	}
	fmt.Fprintf(&b, "Access %s\n", a.ID)
	row("unreadable", a.Unreadable)
	row("service", a.Gateway)
	row("time", a.Time.Format(time.RFC3339Nano))
	if a.Unreadable != "" {
		row("segment", a.Segment)
		return b.String()
	}
	who := "nobody was proven"
	if u := a.Asserted; u != nil {
		row("who", "nobody was proven: asserted by the machine")
		row("user", join(", ", u.User, labelled("uid ", u.UID), u.Host))
	} else if p := a.Who; p != nil {
		who = join(", ", p.Subject, p.Email, p.Issuer)
		row("who", who)
		row("groups", strings.Join(p.Groups, ", "))
		row("token id", p.TokenID)
	} else {
		row("who", who)
	}
	row("role", a.Role)
	row("from", join(", ", a.From, a.UserAgent))
	row("action", a.What.Action)
	row("exchange", a.What.Exchange)
	row("body", a.What.Direction)
	for _, k := range slices.Sorted(maps.Keys(a.What.Filter)) {
		row("filter "+k, a.What.Filter[k])
	}
	row("why", a.Why)
	if a.Allowed {
		row("result", join(", ", "given out", a.Code))
	} else {
		row("result", join(", ", "refused", a.Code, a.Message))
	}
	if a.Of != "" {
		row("part", fmt.Sprintf("%d of the answer that begins with %s", a.Part+1, a.Of))
	}
	if a.Unrecorded > 0 {
		row("before it", fmt.Sprintf("%d refusals of strangers were not recorded one by one", a.Unrecorded))
	}
	for i, id := range a.Records {
		name := ""
		if i == 0 {
			name = "records"
		}
		fmt.Fprintf(&b, "  %-16s %s\n", name, oneLine(id))
	}
	row("segment", a.Segment)
	return b.String()
}
