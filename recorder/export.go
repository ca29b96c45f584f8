package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/bundle"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/place"
)

const exportHelp = `
Usage: recorder export (--exchange ID | --session ID | --since TIME [--until TIME])
                       --out FILE.zip [--no-payload] [--vault DIR] [--keyset FILE]
                       [--why TEXT] [--server URL]

Writes a bundle of evidence: the records of the exchanges asked for as they are stored,
what proves them (Merkle hashes, the signed checkpoint, the epoch's certificate, and that
the sink's log and its witnesses have that checkpoint, where there is a log), the data keys that open them, a plain HTML report and a README. "recorder verify FILE.zip"
checks it with no vault. What lies between the records is in it as digests.

A data key seals what one session recorded in one epoch. The bundle holds the keys of the
selection in clear: keep it like what it shows. With --no-payload the bodies' records are
left out but for their digests; the keys stay, for they open SQL and outcomes too, so
who also has the vault's ciphertext can open that session's payload with them.

That a bundle with keys was made is noted in the vault (exports/), where it can be written:
"recorder erase" lists the bundles that hold a key it destroys.

Without a keyset the bundle has no keys: it proves, and cannot be read. Then only
--exchange selects. With --server a service that holds the keyset (recorder serve) makes
the bundle, for the role auditor and a reason (--why), after it has put on record what
goes into it. With a keyset on this machine that is put on record here, as for show.

Examples:
  recorder export --exchange 06eeq4qag1hqfnwe49a5rg7yac-2 --out evidence.zip
  recorder export --session k5qf2w --no-payload --out session.zip
  recorder export --since 2026-03-14 --until 2026-03-15 --out day.zip
  recorder verify evidence.zip --trust deployment.pub --log-key log.pub --witness w1.pub
  recorder export --session k5qf2w --out s.zip --server https://auditors.corp.example --why 'case 4711'
`

func exportCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("export", exportHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	var far remote
	f.remoteFlags(&far)
	f.readsFlags(&p)
	c := bundle.Config{Now: time.Now()}
	s := &c.Selection
	f.StringVar(&s.Exchange, "exchange", "", "the exchange's `ID`, or its receipt")
	f.StringVar(&s.Session, "session", "", "`ID` of the session")
	since := f.String("since", "", "requests from this `TIME` on")
	until := f.String("until", "", "requests before this `TIME`")
	f.BoolVar(&c.NoPayload, "no-payload", false, "leave the bodies out but for their digests")
	out := f.String("out", "", "the new `FILE` to write, mode 0600")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	for _, t := range []struct {
		name, value string
		to          *time.Time
	}{{"since", *since, &s.Since}, {"until", *until, &s.Until}} {
		if t.value == "" {
			continue
		}
		if *t.to, err = parseTime(t.value, c.Now); err != nil {
			return &usageError{fmt.Sprintf("export: --%s: %v", t.name, err), f.see()}
		}
	}
	ranged := !s.Since.IsZero() || !s.Until.IsZero()
	switch {
	case s.Exchange == "" && s.Session == "" && !ranged:
		return &usageError{"export: which exchanges?", "give --exchange ID, --session ID or --since TIME"}
	case s.Exchange != "" && (s.Session != "" || ranged):
		return &usageError{"export: --exchange stands alone", f.see()}
	case !s.Since.IsZero() && !s.Until.IsZero() && !s.Since.Before(s.Until):
		return &usageError{fmt.Sprintf("export: --since %s is not before --until %s", moment(s.Since), moment(s.Until)), f.see()}
	case *out == "":
		return &usageError{"export: where to?", "give --out FILE.zip"}
	}
	if s.Exchange != "" {
		id, err := record.ParseID(s.Exchange)
		if err != nil {
			return &usageError{"export: " + err.Error(), "recorder search lists exchanges"}
		}
		s.Exchange = id.String()
	}
	client, err := f.client(&far, &p)
	if err != nil {
		return err
	}
	asked := access.NewExportRequest(*s, c.NoPayload, p.why)
	if client != nil {
		if strings.TrimSpace(p.why) == "" {
			return &usageError{"export: evidence is given out for a reason only", "add --why TEXT: it is put on record"}
		}
		return f.failed(fetchExport(ctx, client, asked, *out, stdout, stderr))
	}
	v, err := f.open(ctx, &p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	c.Vault = v
	if c.Tenant, err = f.tenant(ctx, &p); err != nil {
		return err
	}
	if c.Tenant == nil && s.Exchange == "" {
		return &usageError{"export: which keyset?", "what is searched is sealed: give --keyset FILE, or select with --exchange"}
	}
	r, err := f.record(ctx, &p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	c.Chosen = func(ctx context.Context, ids []string) error { return r.each(ctx, asked.What(), ids) }
	held, err := writeExport(ctx, c, *out, stdout)
	if err != nil || len(held) == 0 {
		return err
	}
	if err := register(ctx, &p, *out, held); err != nil {
		fmt.Fprintln(stderr, "recorder: export: the bundle is not registered in the vault, an erasure will not list it:", oneLine(err.Error()))
	}
	return nil
}

// register notes in the vault that a bundle with data keys was made: whoever
// erases one of them is told of it.
func register(ctx context.Context, p *where, out string, keys []string) (err error) {
	file, err := os.Open(out)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return registerExport(ctx, p.spec, account(), hex.EncodeToString(sum.Sum(nil)), keys)
}

func registerExport(ctx context.Context, spec place.Spec, by, digest string, keys []string) (err error) {
	x := vault.Export{Version: 1, ID: digest[:32], Time: time.Now().UTC().Truncate(time.Second), By: by, SHA256: digest, Keys: keys}
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	v, err := place.Open(ctx, place.Config{Spec: spec, Beside: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	return v.Create(ctx, x.Name(), bytes.NewReader(append(b, '\n')))
}

// fetchExport has a service make the bundle.
func fetchExport(ctx context.Context, client *access.Client, req access.ExportRequest, out string, stdout, stderr io.Writer) error {
	err := createBundle(out, func(w io.Writer) error {
		note, err := client.Export(ctx, req, w)
		if note != "" {
			fmt.Fprintln(stderr, "recorder: note:", oneLine(note))
		}
		return err
	})
	if err == nil {
		_, err = fmt.Fprintf(stdout, "%s: made by the service; \"recorder verify %s\" tells what it holds\n", out, out)
	}
	return err
}

// createBundle makes a new file; only what is whole stays.
func createBundle(out string, write func(io.Writer) error) error {
	file, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("export: %s is there already and is not replaced", out)
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err = write(file); err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(out))
	}
	return nil
}

func writeExport(ctx context.Context, c bundle.Config, out string, stdout io.Writer) (keys []string, err error) {
	var stats bundle.Stats
	if err = createBundle(out, func(w io.Writer) (err error) {
		stats, err = bundle.Write(ctx, c, w)
		return err
	}); err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(stdout, "%s: %d exchanges, %d records (%d withheld), %d data keys (%d erased)\n", out, stats.Exchanges, stats.Records, stats.Withheld, stats.Keys, stats.Erased)
	return stats.DataKeys, err
}

// verifyBundle checks a bundle; no vault is needed.
func verifyBundle(ctx context.Context, path string, o ledger.Options, format string, stdout io.Writer) error {
	file, err := os.Open(path)
	if err != nil {
		return &exitError{3, fmt.Errorf("verify: %w", err)}
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return &exitError{3, fmt.Errorf("verify: %w", err)}
	}
	r, err := bundle.Verify(ctx, file, st.Size(), bundle.Options{Trust: o.Trust, Receipts: o.Receipts, Log: o.Log})
	if err != nil {
		return unread(fmt.Errorf("verify: %s: %w", path, err))
	}
	if format == "json" {
		err = writeJSON(stdout, r, "  ")
	} else {
		_, err = io.WriteString(stdout, bundleText(r, path))
	}
	if err != nil {
		return err
	}
	if !r.Sound {
		return &exitError{1, fmt.Errorf("the bundle is not sound: %s", r.Findings[0])}
	}
	return nil
}

func bundleText(r *bundle.Report, path string) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	row("bundle", "%s, made %s", path, moment(r.Made))
	s := r.Selection
	var asked []string
	for _, a := range [][2]string{{"exchange", s.Exchange}, {"session", s.Session}} {
		if a[1] != "" {
			asked = append(asked, a[0]+" "+a[1])
		}
	}
	if !s.Since.IsZero() {
		asked = append(asked, "since "+moment(s.Since))
	}
	if !s.Until.IsZero() {
		asked = append(asked, "until "+moment(s.Until))
	}
	row("selection", "%s (as whoever made it says)", strings.Join(asked, ", "))
	if r.Anchored {
		row("trust", "each epoch's key must be certified by a deployment you trust")
	} else {
		row("trust", "unanchored: no --trust was given, so the bundle's own keys vouch for it")
	}
	for _, e := range r.Epochs {
		row("epoch", "%s of gateway %s, checkpoint of %d records at %s", e.Epoch, e.Gateway, e.Size, moment(e.Time))
		switch {
		case e.Logged != nil:
			row("", "in the sink's log: %s", loggedText(e.Logged))
		case e.InLog:
			row("", "in the sink's log, which was not checked: give --log-key, and --witness")
		}
	}
	x := r.Exchanges
	row("exchanges", "%d: %d ended, %d interrupted, %d pending", x.Total, x.Ended, x.Interrupted, x.Pending)
	row("records", "%d, of which %d are digests only", r.Records, r.Digests)
	if r.Opened {
		row("bodies", "opened with the bundle's keys (%d were erased)", r.Erased)
	} else {
		row("bodies", "not opened, for the bundle has no keys: proven as sealed bytes")
	}
	row("report.html", "%s", r.Page)
	b.WriteString("\n")
	if r.Sound {
		b.WriteString("Sound: these records are in the gateways' logs, unchanged and at their places.\n")
		return b.String()
	}
	for i, f := range r.Findings {
		word := "Also:"
		if i == 0 {
			word = "NOT SOUND. First:"
		}
		fmt.Fprintf(&b, "%s %s\n", word, oneLine(f.String()))
	}
	return b.String()
}
