package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
)

const verifyHelp = `
Usage: recorder verify [--vault DIR] [--keyset FILE] [--trust FILE|KEY]...
                       [--checkpoint FILE]... [--receipt RECEIPT|FILE]...
                       [--gateways FILE] [--format text|json]
                       [--log-key FILE [--witness KEY|FILE]... [--quorum N]
                        [--log-checkpoint FILE]... [--behind DURATION]]
       recorder verify --proof FILE [--trust ...] [--receipt RECEIPT]
                       [--log-key FILE [--witness KEY|FILE]... [--quorum N]]
       recorder verify BUNDLE.zip [the same]

Reads the whole vault and proves that its records are whole, in order and
unchanged: checksums, digests, the chain and Merkle tree of each epoch with every
signed checkpoint, dense sequences, names, how epochs follow each other, and that the
records of each exchange make one. With the tenant's keyset the bodies are opened too,
and compared with the totals and digests that the outcomes state. No gateway is needed.

What is trusted comes from you, never from the vault:

  --trust       the deployment's public key: each epoch's key must be certified with it.
                Without it the report says "unanchored": who may write the whole vault
                could have made all of it with keys of his own.
  --checkpoint  what you kept elsewhere: an earlier report (--format json) or a
                checkpoint's note. The vault must extend it: finds a vault rolled back,
                and a tail cut off, up to then.
  --receipt     an x-verbatim-receipt that a caller got, or a file with one a line. Its
                record must be there: a signed receipt without one proves an omission.
  --gateways    a file of the gateways that must be there, one a line, with how long each
                may be silent ("gw-1 15m"; "gw-old -" for ever).
  --log-key     the public key of the sink's own log (recorder sink --log-key). Each segment
                that it has must be in the vault, in its order: finds a tail or an epoch
                dropped, a vault rolled back, a forked log. With --witness, whose public
                keys come from those who run them, the report says up to when a quorum
                cosigned it, and how long ago; --behind makes too long ago a finding.
  --log-checkpoint  a checkpoint of the log from elsewhere, best from a witness (GET
                /checkpoint): the log in the vault must go on from it.

What is not there has expired only where an epoch's key signed when it does, and that is
past; see the table in recorder/README.md. All cores are used, and progress goes to
stderr: a line that is redrawn on a terminal, else one every 5 s; --quiet leaves it out.

With --proof it checks a proof that "recorder prove" wrote instead, and with a file an
evidence bundle of "recorder export"; neither needs a vault. With --log-key each must show
that the sink's log has the epoch's checkpoint, with --witness that a quorum cosigned it.

Exit code 0: sound. 1: not sound; the first record that is wrong is named, with its
segment, sequence and byte. 2: wrong arguments. 3: the vault could not be read.
A tail that was lost with its gateway's disk is reported with how far it was salvaged.
A data key that was erased, or is missing, is reported, and is no fault of the records:
each of them is there. So is a clock that was set back.

Examples:
  recorder verify
  recorder verify --vault /mnt/vault --trust deployment.pub
  recorder verify --trust deployment.pub --format json >kept/$(date -I).json
  recorder verify --trust deployment.pub --checkpoint kept/2026-03-14.json
  recorder verify --trust deployment.pub --receipt "$RECEIPT" --gateways gateways.txt
  recorder verify --proof query.tlog-proof --trust deployment.pub
  recorder verify evidence.zip --trust deployment.pub
  recorder verify --trust deployment.pub --log-key log.pub --witness w1.pub --behind 5m
`

// mostAnchors bounds the files of checkpoints and receipts that are read.
const mostAnchors = 256 << 20

// anchors are the flags of what a verifier trusts.
type anchors struct {
	trust, checkpoints, receipts texts
	gateways                     string
}

func (a *anchors) options(f *flags, vault string) (o ledger.Options, err error) {
	wrong := func(flag string, err error) (ledger.Options, error) {
		return o, &usageError{fmt.Sprintf("%s: --%s: %v", f.name, flag, err), f.see()}
	}
	if o.Trust, err = f.trust(a.trust, vault); err != nil {
		return o, err
	}
	for _, path := range a.checkpoints {
		b, err := readSmall(path, mostAnchors)
		if err != nil {
			return wrong("checkpoint", err)
		}
		heads, err := ledger.ParseHeads(b)
		if err != nil {
			return wrong("checkpoint", fmt.Errorf("%s: %w", path, err))
		}
		o.Checkpoints = append(o.Checkpoints, heads...)
	}
	for _, text := range a.receipts {
		list, err := receipts(text)
		if err != nil {
			return wrong("receipt", err)
		}
		o.Receipts = append(o.Receipts, list...)
	}
	if a.gateways != "" {
		b, err := readSmall(a.gateways, mostAnchors)
		if err != nil {
			return wrong("gateways", err)
		}
		if o.Gateways, err = ledger.ParseRegister(string(b)); err != nil {
			return wrong("gateways", fmt.Errorf("%s: %w", a.gateways, err))
		}
	}
	return o, nil
}

// receipts reads one receipt, or a file with one a line.
func receipts(text string) ([]record.Receipt, error) {
	r, err := record.ParseReceipt(text)
	if err == nil {
		return []record.Receipt{r}, nil
	}
	if _, idErr := record.ParseID(text); idErr == nil {
		return nil, fmt.Errorf("%w; the id alone proves nothing, the whole header does", err)
	}
	b, readErr := readSmall(text, mostAnchors)
	if readErr != nil {
		return nil, fmt.Errorf("%w, or a file of such: %w", err, readErr)
	}
	var list []record.Receipt
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		r, err := record.ParseReceipt(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", text, n, err)
		}
		list = append(list, r)
	}
	return list, nil
}

func verifyCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	var a anchors
	f := newFlags("verify", verifyHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	f.trustFlag(&a.trust)
	f.Var(&a.checkpoints, "checkpoint", "an earlier report or a checkpoint's note, kept elsewhere: `FILE`; several allowed")
	f.Var(&a.receipts, "receipt", "a caller's `RECEIPT`, or a file with one a line; several allowed")
	f.StringVar(&a.gateways, "gateways", "", "the register of gateways: `FILE`")
	proof := f.String("proof", "", "check this proof `FILE` instead of a vault")
	var la logAnchors
	f.logAnchors(&la)
	format := f.String("format", "text", "`FORMAT` of the output: text or json")
	quiet := f.Bool("quiet", false, "show no progress on stderr")
	rest, err := f.parse(args, stdout, "BUNDLE.zip?")
	if err != nil {
		return err
	}
	if err := f.choice("format", *format, "text", "json"); err != nil {
		return err
	}
	if len(rest) > 0 || *proof != "" {
		if len(rest) > 0 && *proof != "" || p.vault != "" || a.gateways != "" || len(a.checkpoints) > 0 || len(la.checkpoints) > 0 || la.behind != 0 {
			return &usageError{"verify: a proof or a bundle goes with --trust, --receipt, --log-key, --witness, --quorum and --format only", f.see()}
		}
		o, err := a.options(f, "")
		if err != nil {
			return err
		}
		if o.Log, err = f.logTrust(&la); err != nil {
			return err
		}
		if *proof != "" {
			return verifyProof(*proof, o, *format, stdout)
		}
		return verifyBundle(ctx, rest[0], o, *format, stdout)
	}
	v, err := f.open(ctx, &p)
	if err != nil {
		return unread(err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	o, err := a.options(f, p.vault)
	if err != nil {
		return unread(err)
	}
	if o.Log, err = f.logTrust(&la); err != nil {
		return err
	}
	keys, err := f.keys(ctx, &p, v)
	if err != nil {
		return unread(err)
	}
	o.Retention = v.Retention()
	if keys != nil {
		o.Keys = keys
	}
	shown := newProgress(stderr)
	if !*quiet {
		o.Progress = shown.show
	}
	r, err := ledger.Verify(ctx, v, o)
	shown.end()
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
		fmt.Fprintf(&b, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	epochs := 0
	for _, g := range r.Gateways {
		epochs += g.Epochs
	}
	row("vault", "%s", oneLine(dir))
	if r.Anchored {
		row("trust", "%s: certified %d of %d epochs", oneLine(strings.Join(r.Trust, ", ")), r.Certified, epochs)
	} else {
		row("trust", "unanchored: no --trust was given, so the vault's own keys vouch for it")
	}
	if r.Opened {
		row("bodies", "opened with %s and compared with their totals", oneLine(keyset))
	} else {
		row("bodies", "not opened, for no keyset was given: proven as sealed bytes")
	}
	row("gateways", "%d", len(r.Gateways))
	row("epochs", "%d", epochs)
	row("segments", "%d, %s", r.Segments, size(r.Bytes))
	row("records", "%d", r.Records)
	row("signatures", "%d checkpoints", r.Checkpoints)
	if r.Kept > 0 {
		row("kept", "held against %d checkpoints that were kept elsewhere", r.Kept)
	}
	b.WriteString(logText(r.Log))
	x := r.Exchanges
	row("exchanges", "%d: %d ended, %d interrupted, %d pending", x.Total, x.Ended, x.Interrupted, x.Pending)
	for _, l := range r.LostTails {
		why := "the gateway's next epoch " + l.Successor + " does not have it"
		if l.Successor == "" {
			why = "given up by " + l.By + ": " + l.Reason
		}
		if l.Cited > 0 {
			why += fmt.Sprintf("; its end was record %d", l.Cited)
		}
		if l.Aside > 0 {
			why += fmt.Sprintf("; %d records kept aside, not proven", l.Aside)
		}
		row("lost tail", "%s", oneLine(fmt.Sprintf("%s of gateway %s, salvaged up to sequence %d, %d exchanges without an end: %s", l.Epoch, l.Gateway, l.Sequence, l.Exchanges, why)))
	}
	if r.Accesses > 0 {
		row("accesses", "%d records of reading", r.Accesses)
	}
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
	switch {
	case r.KeysMissing == 0 && r.KeysErased == 0:
		row("keys", "all there")
	case r.KeysErased > 0:
		row("keys", "%d erased: what they sealed is proven, but can be read by nobody", r.KeysErased)
	}
	for _, x := range r.Erasures {
		signed := ""
		switch {
		case x.SignedBy != "":
			signed = ", signed by " + x.SignedBy
		case r.Anchored:
			signed = ", not signed by a trusted key"
		}
		state := "not known to be complete"
		switch {
		case x.Unfinished > 0:
			state = fmt.Sprintf("UNFINISHED: %d keys are still there (recorder erase finish %s)", x.Unfinished, x.ID)
		case x.Complete != nil:
			state = "complete since " + moment(*x.Complete)
		}
		row("erasure", "%s", oneLine(fmt.Sprintf("%s, %d keys of a %s, by %s%s: %s; %s", x.ID, x.Keys, x.Scope, x.By, signed, x.Reason, state)))
	}
	if r.KeysMissing > 0 {
		row("missing", "%d keys, and nothing says that they were erased: what they sealed is proven, but cannot be read", r.KeysMissing)
		for _, m := range r.Missing {
			fmt.Fprintf(&b, "            %s, first needed by record %d of %s\n", m.Key, m.Sequence, m.Segment)
		}
		if n := r.KeysMissing - int64(len(r.Missing)); n > 0 {
			fmt.Fprintf(&b, "            and %d more\n", n)
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
	if len(r.Receipts) > 0 {
		fmt.Fprintf(&b, "\n%-34s %s\n", "RECEIPT", "STATE")
		for _, x := range r.Receipts {
			fmt.Fprintf(&b, "%s %s\n", pad(x.Receipt, 34), x.State)
		}
	}
	b.WriteString("\n")
	for _, f := range r.Notices {
		fmt.Fprintf(&b, "Note (%s): %s\n", f.Code, oneLine(f.String()))
	}
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
	fmt.Fprintf(&b, "Sound: complete until %s; later is unproven.\n", moment(r.Complete))
	b.WriteString(proves(r))
	return b.String()
}

// proves says what a sound report proves, and what it does not.
func proves(r *ledger.Report) string {
	var b strings.Builder
	if r.Anchored {
		b.WriteString(`
What this proves: each record up to each gateway's last checkpoint is the one that a
gateway of the deployment wrote, none is missing between, and none was added or moved.
`)
	} else {
		b.WriteString(`
Unanchored: the records fit their checkpoints and these their keys, but the keys come from
the vault. Someone who may write the whole vault could have made all of it with keys of
his own, and this would not show. Give the deployment's public key: --trust deployment.pub.
`)
	}
	switch {
	case r.Log != nil && !r.Log.Asserted:
		fmt.Fprintf(&b, `The sink's log has nothing that the vault has not; witnesses saw it up to %s.
`, moment(r.Log.Cosigned))
	case r.Log != nil:
		b.WriteString(`The sink's log has nothing that the vault has not. Nobody but the sink's key says so: a vault
and its log that were put back together do not show. Give --witness, or --log-checkpoint.
`)
	case r.Kept == 0:
		b.WriteString(`A tail that was cut off a gateway's last epoch does not show: keep what --format json prints
elsewhere, and give it to a later run as --checkpoint; or give receipts (--receipt).
`)
	}
	return b.String()
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}
