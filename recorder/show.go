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

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

const showHelp = `
Usage: recorder show EXCHANGE [--payload request|upstream|response] [--out FILE]
                     [--format text|json] [--why TEXT] [--server URL]

Shows everything that the vault holds of one exchange: who called and what proves it,
the SQL, the decision, the times, headers, totals, and where each record lies with its
digest. EXCHANGE is the receipt: the caller got it in the x-verbatim-receipt header,
and it stands in every error text.

With --payload it writes the exact bytes of a body instead: of the request as the
caller sent it, of what went upstream to BigQuery where that differs, or of the
response as the caller got it. They are compared with the recorded totals.

With --server a service that holds the keyset (recorder serve) answers, after it has put
on record who reads what, and why: --why must be given for a body. Whoever has a keyset
reads without it: that is put on record as well, before anything is shown, in a folder
beside the vault (--reads), in the name that this machine has for the user.

The id of an access record (recorder accesses) is shown too, of the vault's own.

Examples:
  recorder show 06eeq4qag1hqfnwe49a5rg7yac-2
  recorder show 06eeq4qag1hqfnwe49a5rg7yac-2 --format json
  recorder show 06eeq4qag1hqfnwe49a5rg7yac-2 --payload response --out rows.json
  recorder show 06eeq4qag1hqfnwe49a5rg7yac-2 --payload response --out rows.json \\
    --server https://auditors.corp.example --why 'incident 4711'
`

func showCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("show", showHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	var far remote
	f.remoteFlags(&far)
	f.readsFlags(&p)
	payload := f.String("payload", "", "write the bytes of a `BODY`: request, upstream or response")
	out := f.String("out", "", "with --payload, write to a new `FILE` (mode 0600) instead of standard output")
	format := f.String("format", "text", "`FORMAT` of the output: text or json")
	rest, err := f.parse(args, stdout, "EXCHANGE, a receipt,")
	if err != nil {
		return err
	}
	id, err := record.ParseID(rest[0])
	if err != nil {
		return &usageError{"show: " + err.Error(), "recorder search lists exchanges"}
	}
	if err := f.choice("format", *format, "text", "json"); err != nil {
		return err
	}
	direction := map[string]record.Direction{"request": record.DirectionRequest, "upstream": record.DirectionUpstream, "response": record.DirectionResponse}[*payload]
	if *payload != "" {
		if err := f.choice("payload", *payload, "request", "upstream", "response"); err != nil {
			return err
		}
	} else if *out != "" {
		return &usageError{"show: --out goes with --payload", f.see()}
	}
	client, err := f.client(&far, &p)
	if err != nil {
		return err
	}
	var from shower
	warn := func(err error) { fmt.Fprintln(stderr, "recorder: warning:", oneLine(err.Error())) }
	if client != nil {
		if *payload != "" && strings.TrimSpace(p.why) == "" {
			return &usageError{"show: payloads are given out for a reason only", "add --why TEXT: it is put on record"}
		}
		from = &serverShower{client: client, why: p.why, warn: warn}
	} else {
		v, err := f.open(ctx, &p)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.Close()) }()
		keys, err := f.keys(ctx, &p, v)
		if err != nil {
			return err
		}
		c := search.Config{Vault: v, Warn: warn}
		if keys != nil {
			c.Keys = keys
		}
		r, err := f.record(ctx, &p)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close(ctx)) }()
		from = &vaultShower{c: c, reads: r, stderr: stderr}
	}
	if *payload != "" {
		return f.failed(showPayload(ctx, from, id, direction, *out, stdout, stderr))
	}
	d, err := from.detail(ctx, id)
	if errors.Is(err, search.ErrAccess) {
		return f.failed(showAccess(ctx, from, id, *format, stdout))
	}
	if err != nil {
		return f.failed(err)
	}
	if *format == "json" {
		return writeJSON(stdout, d, "  ")
	}
	_, err = io.WriteString(stdout, showText(d))
	return err
}

// shower is where exchanges are shown from: the vault, or a service.
type shower interface {
	detail(context.Context, record.ID) (*search.Detail, error)
	access(context.Context, record.ID, func(*search.Access) error) error
	// payload writes a body; note is to be known of it.
	payload(context.Context, record.ID, record.Direction, io.Writer) (note string, err error)
}

type vaultShower struct {
	c      search.Config
	reads  *reads
	stderr io.Writer
}

func (s *vaultShower) detail(ctx context.Context, id record.ID) (*search.Detail, error) {
	d, err := search.Find(ctx, s.c, id, nil)
	if err != nil {
		return nil, err
	}
	return d, s.reads.give(ctx, record.AccessTo{Action: access.ActionShow, Exchange: id.String()}, []string{id.String()})
}

func (s *vaultShower) access(ctx context.Context, id record.ID, do func(*search.Access) error) error {
	return search.Accesses(ctx, s.c, search.AccessFilter{ID: id.String()}, func(a *search.Access) error {
		if err := s.reads.give(ctx, record.AccessTo{Action: access.ActionAccesses, Filter: map[string]string{"id": a.ID}}, []string{a.ID}); err != nil {
			return err
		}
		return do(a)
	})
}

func (s *vaultShower) payload(ctx context.Context, id record.ID, direction record.Direction, w io.Writer) (string, error) {
	if s.c.Keys == nil {
		return "", &usageError{"show: which keyset?", "bodies are sealed: give --keyset FILE, the tenant's private keyset, or set VERBATIM_KEYSET"}
	}
	what := record.AccessTo{Action: access.ActionPayload, Exchange: id.String(), Direction: direction.String()}
	if err := s.reads.give(ctx, what, []string{id.String()}); err != nil {
		return "", err
	}
	u := localUser()
	fmt.Fprintf(s.stderr, "recorder: note: this reading is on record in %s, and who reads is only asserted (user %s); recorder serve proves who\n", oneLine(s.reads.dir), oneLine(u.User))
	d, err := search.Find(ctx, s.c, id, func(of record.Direction, b []byte) error {
		if of != direction {
			return nil
		}
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		return "", err
	}
	return d.Body(direction)
}

type serverShower struct {
	client *access.Client
	why    string
	warn   func(error)
}

func (s *serverShower) detail(ctx context.Context, id record.ID) (*search.Detail, error) {
	return s.client.Show(ctx, access.ShowRequest{Why: s.why, Exchange: id.String()}, s.warn)
}

func (s *serverShower) access(ctx context.Context, id record.ID, do func(*search.Access) error) error {
	_, err := s.client.Accesses(ctx, access.NewAccessesRequest(search.AccessFilter{ID: id.String()}, 1, s.why), s.warn, do)
	return err
}

func (s *serverShower) payload(ctx context.Context, id record.ID, direction record.Direction, w io.Writer) (string, error) {
	return s.client.Payload(ctx, id, direction, s.why, w)
}

func showPayload(ctx context.Context, from shower, id record.ID, direction record.Direction, out string, stdout, stderr io.Writer) (err error) {
	write := func(w io.Writer) error {
		note, err := from.payload(ctx, id, direction, w)
		if note != "" {
			fmt.Fprintln(stderr, "recorder: note:", oneLine(note))
		}
		return err
	}
	if out == "" {
		return write(stdout)
	}
	file, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already and is not replaced", out)
	}
	if err != nil {
		return err
	}
	if err = errors.Join(write(file), file.Close()); err != nil {
		// Only what is known to be right stays.
		err = errors.Join(err, os.Remove(out))
	}
	return err
}

func showAccess(ctx context.Context, from shower, id record.ID, format string, stdout io.Writer) error {
	return from.access(ctx, id, func(a *search.Access) error {
		if format == "json" {
			return writeJSON(stdout, a, "  ")
		}
		_, err := io.WriteString(stdout, accessText(a))
		return err
	})
}

// showText is everything of an exchange, for people. Recorded text is made
// safe: nothing in it reaches the terminal as a control.
func showText(d *search.Detail) string {
	var b strings.Builder
	// A title stands only where something follows it.
	heading := ""
	title := func(s string) { heading = "\n" + s + "\n" }
	put := func(format string, args ...any) {
		fmt.Fprintf(&b, heading+format, args...)
		heading = ""
	}
	row := func(name, value string) {
		if value != "" {
			put("  %-16s %s\n", name, oneLine(value))
		}
	}
	headers := func(list []record.Header) {
		for _, h := range list {
			put("    %s: %s\n", oneLine(h.Name), oneLine(h.Value))
		}
	}
	instant := func(name string, t *time.Time) {
		if t == nil {
			return
		}
		text := t.Format(time.RFC3339Nano)
		if after := t.Sub(d.Time); after > 0 {
			text = fmt.Sprintf("%-30s (+%s)", text, after.Round(time.Microsecond))
		}
		row(name, text)
	}

	fmt.Fprintf(&b, "Exchange %s\n", d.ID)
	if d.Unreadable != "" {
		row("unreadable", d.Unreadable)
		row("", "only what stands outside the seal is shown for these records")
	}
	result := string(d.Result)
	if d.Status != 0 {
		result += fmt.Sprintf(", HTTP %d", d.Status)
	}
	if d.Cause != "" {
		result += ", " + d.Cause
	}
	row("result", result)
	row("error", d.Error)
	row("closed by", d.ClosedBy)
	row("session", d.Session)
	row("gateway", d.Gateway)
	row("connection", join(", ", d.Connection, d.Location, labelled("recording ", d.Recording), labelled("retention ", d.Retention)))

	if p := d.Principal; p != nil {
		title("Principal (verified)")
		row("subject", p.Subject)
		row("e-mail", p.Email)
		row("issuer", join(", ", p.Issuer, p.URL))
		row("groups", strings.Join(p.Groups, ", "))
		for _, a := range p.OnBehalfOf {
			row("on behalf of", join(", ", a.Subject, a.Issuer))
		}
		row("token id", p.TokenID)
	}
	if p := d.Provenance; p != nil {
		title("Provenance (verified)")
		for _, v := range [][2]string{
			{"profile", p.Profile}, {"repository", p.Repository}, {"ref", p.Ref}, {"commit", p.Commit}, {"pipeline", p.Pipeline},
			{"workflow", p.Workflow}, {"run", p.Run}, {"actor", p.Actor}, {"environment", p.Environment}, {"namespace", p.Namespace},
			{"pod", p.Pod}, {"service account", p.ServiceAccount}, {"node", p.Node}, {"spiffe id", p.SPIFFE},
		} {
			row(v[0], v[1])
		}
	}
	if a := d.Asserted; a != nil {
		title("Asserted by the client (not verified)")
		for _, v := range [][2]string{
			{"user agent", a.UserAgent}, {"agent", a.Agent}, {"model", a.Model}, {"conversation", a.Conversation}, {"tool call", a.ToolCall},
			{"traceparent", a.Traceparent}, {"request reason", a.RequestReason}, {"request id", a.RequestID}, {"labels", pairs(a.Labels)},
		} {
			row(v[0], v[1])
		}
	}

	title("Request")
	row("method", d.Method)
	path := d.Path
	if d.Query != "" {
		path += "?" + d.Query
	}
	row("http", join(" ", d.HTTP, path))
	row("host", d.Host)
	row("from", d.Source)
	row("project", d.Project)
	row("table", join(".", d.Dataset, d.Table))
	if d.DryRun {
		row("dry run", "yes")
	}
	row("sql sha-256", d.SQLSHA256)
	if d.SQL != "" {
		put("  sql\n%s\n", lines(d.SQL, "    "))
	}
	row("parameters", string(d.Parameters))
	row("statements", strings.Join(d.Statements, ", "))
	for _, u := range d.Reads {
		row("reads", fmt.Sprintf("%s (%s)", u.Table, u.Source))
	}
	for _, u := range d.Writes {
		row("writes", fmt.Sprintf("%s (%s)", u.Table, u.Source))
	}
	row("functions", strings.Join(d.Functions, ", "))
	row("not seen through", strings.Join(d.Opaque, ", "))
	if len(d.Headers) > 0 {
		put("  headers\n")
		headers(d.Headers)
	}

	if x := d.Decision; x != nil {
		title("Decision")
		row("decision", map[bool]string{true: "allow", false: "deny"}[x.Allow])
		if x.WouldDeny {
			row("would deny", "yes: the policy denied, and only observed")
		}
		row("by", x.By)
		for _, r := range x.Reasons {
			row("reason", join(": ", r.Code, r.Message))
		}
		row("policy", x.Policy)
		row("credential", d.Credential)
		if d.MaxBytes > 0 {
			row("bytes billed at most", fmt.Sprint(d.MaxBytes))
		}
		row("labels written", pairs(d.Labels))
	}
	title("The gateway's own calls")
	for _, p := range d.Probes {
		row(p.Purpose, join(", ", join(" ", p.Method, p.Path), fmt.Sprintf("HTTP %d", p.Status), p.Error))
	}

	title("Response")
	if d.Job != nil {
		row("job", join(", ", d.Job.String(), d.JobState))
	}
	number := func(name string, n *int64) {
		if n != nil {
			row(name, fmt.Sprint(*n))
		}
	}
	number("rows", d.Rows)
	number("total rows", d.TotalRows)
	number("bytes processed", d.BytesProcessed)
	number("bytes billed", d.BytesBilled)
	for _, h := range d.Heads {
		what := h.Direction + " head"
		if h.Trailer {
			what = h.Direction + " trailer"
		}
		status := ""
		if h.Status != 0 {
			status = fmt.Sprintf("HTTP %d", h.Status)
		}
		put("  %-16s %s\n", what, status)
		headers(h.Headers)
	}

	title("Times")
	at := d.Time
	instant("received", &at)
	instant("decided", d.Decided)
	instant("forwarded", d.Forwarded)
	instant("first byte", d.FirstByte)
	instant("last byte", d.LastByte)
	instant("ended", d.Ended)

	title("Payload")
	for _, p := range d.Payloads {
		state := "as its outcome states"
		switch {
		case !p.Recorded && p.Bytes == 0:
			state = "empty"
		case !p.Recorded:
			state = "not recorded, only counted and hashed"
		case d.Unreadable != "":
			state = "cannot be read"
		case d.Result == search.Pending || d.Result == record.ResultInterrupted:
			state = "no outcome states the total"
		case !p.Intact:
			state = "NOT WHAT ITS OUTCOME STATES"
		}
		text := fmt.Sprintf("%d bytes, %s", p.Bytes, state)
		switch {
		case p.Pieces == 1:
			text = fmt.Sprintf("%d bytes in record %d, %s", p.Bytes, p.First, state)
		case p.Recorded:
			text = fmt.Sprintf("%d bytes in %d pieces from record %d to %d, %s", p.Bytes, p.Pieces, p.First, p.Last, state)
		}
		row(p.Direction, text)
		row("", labelled("SHA-256 ", p.SHA256))
	}

	title("Records")
	segment := ""
	for _, r := range d.Records {
		if r.Segment != segment {
			segment = r.Segment
			put("  %s\n", oneLine(segment))
		}
		put("    %-8d %-18s byte %-10d %s\n", r.Sequence, join(" ", r.Kind, r.Direction), r.Offset, r.Leaf)
	}
	row("class", d.Class)
	if d.Expires != nil {
		row("expires", d.Expires.Format(time.RFC3339))
	} else {
		row("expires", "never")
	}
	return b.String()
}

// join joins what is not empty.
func join(by string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), by)
}

// labelled puts a label before a value that is not empty.
func labelled(label, value string) string {
	if value == "" {
		return ""
	}
	return label + value
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}
