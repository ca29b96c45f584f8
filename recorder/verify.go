package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"verbatim.dev/recorder/ledger"
)

const verifyHelp = `
Usage: recorder verify [--vault DIR] [--keyset FILE] [--format text|json]

Reads the whole vault and proves that its records are whole, in order and
unchanged: checksums, digests, the chain of each epoch with every checkpoint, dense
sequences, names, how epochs follow each other, and that the records of each
exchange make one. With the tenant's keyset the bodies are opened too, and compared
with the totals and digests that the outcomes state. No gateway is needed.

Exit code 0: sound. 1: not sound; the first record that is wrong is named, with its
segment, sequence and byte. 2: wrong arguments. 3: the vault could not be read.
A missing data key is reported, and is no fault: keys may be erased.

Examples:
  recorder verify
  recorder verify --vault /mnt/vault
  recorder verify --vault /mnt/vault --keyset tenant.json --format json
`

func verifyCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("verify", verifyHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	format := f.String("format", "text", "`FORMAT` of the output: text or json")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if err := f.choice("format", *format, "text", "json"); err != nil {
		return err
	}
	v, err := f.open(ctx, &p)
	if err != nil {
		return unread(err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	keys, err := f.keys(&p, v)
	if err != nil {
		return unread(err)
	}
	o := ledger.Options{Retention: v.Retention()}
	if keys != nil {
		o.Keys = keys
	}
	r, err := ledger.Verify(ctx, v, o)
	if err != nil {
		return unread(err)
	}
	if *format == "json" {
		err = writeJSON(stdout, r, "  ")
	} else {
		_, err = io.WriteString(stdout, verifyText(r, v.String(), p.keyset))
	}
	if err != nil {
		return err
	}
	if !r.Sound {
		return &exitError{1, fmt.Errorf("the vault is not sound: %s", r.Findings[0])}
	}
	return nil
}

// unread keeps a vault that could not be read apart from one that is not sound.
func unread(err error) error {
	var wrong *usageError
	if errors.As(err, &wrong) || errors.Is(err, context.Canceled) {
		return err
	}
	return &exitError{3, err}
}

func verifyText(r *ledger.Report, dir, keyset string) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	epochs := 0
	for _, g := range r.Gateways {
		epochs += g.Epochs
	}
	row("vault", "%s", oneLine(dir))
	if r.Opened {
		row("bodies", "opened with %s and compared with their totals", oneLine(keyset))
	} else {
		row("bodies", "not opened, for no keyset was given: proven as sealed bytes")
	}
	row("gateways", "%d", len(r.Gateways))
	row("epochs", "%d", epochs)
	row("segments", "%d, %s", r.Segments, size(r.Bytes))
	row("records", "%d", r.Records)
	x := r.Exchanges
	row("exchanges", "%d: %d ended, %d interrupted, %d pending", x.Total, x.Ended, x.Interrupted, x.Pending)
	if x := r.Expired; x.Records > 0 {
		row("expired", "%d records, past their retention", x.Records)
		for _, e := range x.Ranges {
			class := ""
			if e.Class != "" {
				class = ", class " + oneLine(e.Class)
			}
			fmt.Fprintf(&b, "           %s-%d to %d%s, %s, known by its %s\n", e.Epoch, e.First, e.Last, class, moment(e.Expiry), e.By)
		}
	}
	if r.KeysMissing == 0 {
		row("keys", "all there")
	} else {
		row("keys", "%d missing (erased?): what they sealed is proven, but cannot be read", r.KeysMissing)
		for _, m := range r.Missing {
			fmt.Fprintf(&b, "           %s, first needed by record %d of %s\n", m.Key, m.Sequence, m.Segment)
		}
		if n := r.KeysMissing - int64(len(r.Missing)); n > 0 {
			fmt.Fprintf(&b, "           and %d more\n", n)
		}
	}
	if len(r.Gateways) > 0 {
		fmt.Fprintf(&b, "\n%-20s %6s %9s  %-20s  %s\n", "GATEWAY", "EPOCHS", "RECORDS", "COMPLETE UNTIL", "LAST RECORD")
		for _, g := range r.Gateways {
			state := "open"
			if g.Closed {
				state = "closed"
			}
			fmt.Fprintf(&b, "%s %6d %9d  %-20s  %s-%d, %s\n", pad(cut(g.Name, 20), 20), g.Epochs, g.Records, moment(g.Complete), g.Last, g.Sequence, state)
		}
	}
	b.WriteString("\n")
	if !r.Sound {
		fmt.Fprintf(&b, "NOT SOUND. First: %s\n", oneLine(r.Findings[0].String()))
		for _, f := range r.Findings[1:] {
			fmt.Fprintf(&b, "Also: %s\n", oneLine(f.String()))
		}
		if r.More > 0 {
			fmt.Fprintf(&b, "And %d findings more.\n", r.More)
		}
		return b.String()
	}
	if r.Complete.IsZero() {
		b.WriteString("Nothing is wrong, for there are no records. Is this the vault?\n")
		return b.String()
	}
	fmt.Fprintf(&b, "Sound: complete until %s.\n", moment(r.Complete))
	b.WriteString(`
What this proves: no record was changed, removed, added or moved without changing all
that follow it. Checkpoints are not signed yet, so someone who may write the whole vault
could rewrite all of it, or cut off the end of a gateway's last epoch, and this would not
show. Keep the heads that --format json prints elsewhere to hold a later run against.
`)
	return b.String()
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}
