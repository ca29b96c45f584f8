package bundle

import (
	"bytes"
	"context"
	"fmt"
	"html/template"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// opener opens a body.
type opener = func(ctx context.Context, e record.Epoch, f *record.Frame) ([]byte, error)

// report is what report.html shows, gathered from the records alone, so that
// whoever verifies the bundle can make it again.
type report struct {
	list  []*exchange
	index map[record.ID]*exchange
}

// exchange is one exchange, for people.
type exchange struct {
	ID         string
	Begun      time.Time
	Ended      time.Time
	Who        string
	Email      string
	Provenance string
	Method     string
	Project    string
	SQL        string
	Decision   string
	Result     string
	Status     int
	Totals     []record.Total
	Records    []line
	Unreadable string
}

// line is one record of an exchange.
type line struct {
	Sequence  uint64
	Kind      string
	Direction string
	Time      time.Time
	Leaf      string
}

// most is how many records of one exchange the page lists.
const most = 200

// add takes in a record, in order.
func (r *report) add(ctx context.Context, e record.Epoch, f *record.Frame, open opener) error {
	if f.Exchange == 0 {
		return nil
	}
	if r.index == nil {
		r.index = map[record.ID]*exchange{}
	}
	id := record.ID{Epoch: e, Sequence: f.Exchange}
	x := r.index[id]
	if x == nil {
		x = &exchange{ID: id.String(), Begun: f.Time, Result: "pending"}
		r.index[id] = x
		if f.Kind != record.KindOutcome { // recovery's is of an earlier exchange
			r.list = append(r.list, x)
		}
	}
	leaf := f.Leaf()
	if len(x.Records) < most {
		l := line{Sequence: f.Sequence, Kind: f.Kind.String(), Time: f.Time, Leaf: hexText(leaf[:])}
		if f.Direction != record.DirectionNone {
			l.Direction = f.Direction.String()
		}
		x.Records = append(x.Records, l)
	}
	if f.Kind != record.KindIntent && f.Kind != record.KindOutcome && f.Kind != record.KindReceived {
		return nil
	}
	b, err := open(ctx, e, f)
	if err != nil {
		x.Unreadable = "its data key is not at hand"
		return nil
	}
	x.body(f, b, r)
	return nil
}

func (x *exchange) body(f *record.Frame, b []byte, r *report) {
	wrong := func(err error) { x.Unreadable = err.Error() }
	switch f.Kind {
	case record.KindReceived:
		var v record.Received
		if err := record.Unmarshal(b, &v); err != nil {
			wrong(err)
			return
		}
		x.who(v.Principal)
		x.Method, x.Project, x.SQL = v.Call.Method, v.Call.Project, v.Call.SQL
	case record.KindIntent:
		var v record.Intent
		if err := record.Unmarshal(b, &v); err != nil {
			wrong(err)
			return
		}
		d := v.Verbatim
		x.who(d.Principal)
		if p := d.Provenance; p != nil {
			x.Provenance = strings.Join(strings.Fields(strings.Join([]string{p.Profile, p.Repository, p.Ref, p.Commit, p.Workflow, p.Run, p.Namespace, p.Pod, p.SPIFFE}, " ")), " ")
		}
		x.Method, x.Project, x.SQL = d.Call.Method, d.Call.Project, d.Call.SQL
		x.Decision = "denied by " + d.Decision.By
		if d.Decision.Allow {
			x.Decision = "allowed by " + d.Decision.By
		}
		for _, reason := range d.Decision.Reasons {
			x.Decision += fmt.Sprintf("; %s: %s", reason.Code, reason.Message)
		}
	case record.KindOutcome:
		var v record.Outcome
		if err := record.Unmarshal(b, &v); err != nil {
			wrong(err)
			return
		}
		to := x
		if v.Verbatim.Interrupted != "" {
			if id, err := record.ParseID(v.Verbatim.Interrupted); err == nil && r.index[id] != nil {
				to = r.index[id]
				to.Records = append(to.Records, x.Records...)
			}
		}
		to.Result, to.Status, to.Totals, to.Ended = string(v.Verbatim.Result), v.Response.Code, v.Verbatim.Payloads, f.Time
		if v.Verbatim.Cause != "" {
			to.Result += ": " + v.Verbatim.Cause
		}
	}
}

func (x *exchange) who(p *record.Principal) {
	if p != nil {
		x.Who, x.Email = p.Issuer+" / "+p.Subject, p.Email
	}
}

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"at": func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format(time.RFC3339Nano)
	},
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Evidence</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}pre{background:#f4f4f4;padding:.8em;white-space:pre-wrap;overflow-wrap:anywhere}table{border-collapse:collapse}td,th{text-align:left;padding:.1em .8em .1em 0;vertical-align:top;overflow-wrap:anywhere}code{font-size:85%}</style>
</head><body>
<h1>Evidence</h1>
<p>This page is for reading. It proves nothing: verify the bundle, see README.txt.</p>
<table>
<tr><th>made</th><td>{{at .Manifest.Made}}</td></tr>
{{with .Manifest.Selection}}<tr><th>selection</th><td>{{with .Exchange}}exchange {{.}} {{end}}{{with .Session}}session {{.}} {{end}}{{if not .Since.IsZero}}since {{at .Since}} {{end}}{{if not .Until.IsZero}}until {{at .Until}}{{end}}</td></tr>{{end}}
<tr><th>exchanges</th><td>{{len .Manifest.Exchanges}}</td></tr>
<tr><th>payload</th><td>{{if .Manifest.Payload}}in the bundle{{else}}withheld: digests only{{end}}</td></tr>
</table>
{{range .List}}<h2>{{.ID}}</h2>
<table>
<tr><th>began</th><td>{{at .Begun}}</td></tr><tr><th>ended</th><td>{{at .Ended}}</td></tr>
<tr><th>who</th><td>{{.Who}} {{.Email}}</td></tr>
<tr><th>provenance</th><td>{{.Provenance}}</td></tr>
<tr><th>call</th><td>{{.Method}} in {{.Project}}</td></tr>
<tr><th>decision</th><td>{{.Decision}}</td></tr>
<tr><th>result</th><td>{{.Result}} {{with .Status}}({{.}}){{end}}</td></tr>
{{range .Totals}}<tr><th>{{.Direction}}</th><td>{{.Bytes}} bytes in {{.Pieces}} pieces{{if not .Recorded}}, not recorded{{end}}, SHA-256 <code>{{.SHA256}}</code></td></tr>
{{end}}{{with .Unreadable}}<tr><th>unreadable</th><td>{{.}}</td></tr>{{end}}
</table>
{{with .SQL}}<pre>{{.}}</pre>{{end}}
<table><tr><th>record</th><th>kind</th><th>time</th><th>leaf</th></tr>
{{range .Records}}<tr><td>{{.Sequence}}</td><td>{{.Kind}} {{.Direction}}</td><td>{{at .Time}}</td><td><code>{{.Leaf}}</code></td></tr>
{{end}}</table>
{{end}}</body></html>
`))

// render makes the page.
func (r *report) render(m *manifest) ([]byte, error) {
	var b bytes.Buffer
	if err := page.Execute(&b, struct {
		Manifest *manifest
		List     []*exchange
	}{m, r.list}); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return b.Bytes(), nil
}

func readme(m *manifest, keys int) string {
	var b strings.Builder
	b.WriteString(`Evidence of a Verbatim gateway
==============================

Verify it with no vault and no network at hand, with the deployment's public key
(deployment.pub), which must come from the deployment, not with this bundle:

    recorder verify BUNDLE.zip --trust deployment.pub

With the public keys of the sink's log and of its witnesses (--log-key, --witness, from
those who run them) it also checks that they vouch for each epoch's checkpoint, so that
not even who holds the deployment's key made it up later. It checks that the deployment certified the key of each epoch, that this key signed
the checkpoint, that the records lead to the checkpoint's Merkle root (RFC 6962) at their
places, that they make exchanges, and that the bodies open and are those that the
outcomes state.

manifest.json         what was asked for; for each epoch its checkpoint (C2SP
                      tlog-checkpoint), the records' sequences, the hashes of
                      the subtrees between them: digests of all that was left out,
                      and the log's cosigned checkpoint with the inclusion proof
records/EPOCH.frames  the records as they are stored, sealed; the first is the
                      epoch's open record, with its key and certificate
keys.json             data keys
report.html           for reading; it proves nothing by itself

`)
	switch {
	case keys == 0:
		b.WriteString("There are no data keys: the records are proven, and cannot be read.\n")
	default:
		fmt.Fprintf(&b, "KEEP IT SECRET: with the %d data keys in it whoever has it can read these records.\n", keys)
	}
	if !m.Payload && keys > 0 {
		b.WriteString(`
Payload was withheld: its records are here as digests only. A data key seals all that one
session recorded in one epoch, so these keys would also open the withheld payload, and
that session's other exchanges, to somebody who comes by their ciphertext in the vault.
`)
	}
	if len(m.Erased) > 0 {
		fmt.Fprintf(&b, "\n%d data keys were not in the vault any more (erased): what they sealed is proven, and cannot be read.\n", len(m.Erased))
	}
	return b.String()
}
