package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/erasure"
	"verbatim.dev/recorder/index"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/place"
)

const eraseHelp = `
Usage: recorder erase [--vault VAULT] --session ID [CHECKS] --reason TEXT [--yes]
       recorder erase [--vault VAULT] --exchange RECEIPT --session-wide [CHECKS] --reason TEXT [--yes]
       recorder erase [--vault VAULT] --principal ISSUER/SUBJECT [--until TIME] [CHECKS] --reason TEXT [--yes]
       recorder erase finish [--vault VAULT] ID [CHECKS]
       recorder erase list   [--vault VAULT]
CHECKS: [--gateway-stats URL]... [--cleared GATEWAY]... [--transport-retention TIME]
        [--index PLACE]...

Makes what was recorded unreadable for good, by destroying the data keys that sealed it:
SQL, parameters, labels, identities and payloads. Nobody can bring them back, you
neither. The sealed bytes stay where they are, so verify still holds, and says which
keys were erased, by whom and why. What survives is in recorder/README.md.

A data key serves one session of one gateway epoch, so that is the least that can be
erased: an exchange goes with its whole session there (--session-wide says that you
know). What a running gateway records of the session later in that epoch is sealed
with the same key, and so unreadable from the begin.

Without --yes it only tells what it would erase. It refuses what a hold covers. The note
and the tombstones, which name who erases and why, are kept for good: write no personal
data into the reason. With --key, deployment.key or a key it was rotated to, the note is
signed, and verify --trust can tell it from one that somebody else put there.

Erased is not complete: a journal or a transport may still have a key. It cannot
come back into the vault, for the sink refuses it, but it lies there. So an erasure
is pending until
  - each gateway's journal has freed the file that held the key: --gateway-stats asks it
    (metrics.address of its configuration); --cleared names a gateway that is gone with
    its journal;
  - the transport has forgotten its messages: --transport-retention 0 for a socket, else
    the longest retention of the topic and its subscriptions, 31d at most.
  - what was erased is out of each index of the vault (recorder index): --index names them,
    else $VERBATIM_INDEX or the vault file does. An index that nobody names is purged by
    its next build.
Ask again with finish, which also goes on with an erasure that was cut off.

Exit code 0: done (or told). 1: failed, or a hold stands against it. 2: wrong arguments.
4: the keys are destroyed, and the erasure is pending.

Examples:
  recorder erase --session k5qf2w... --reason "request 4711"
  recorder erase --principal corp/alice --until 2026-01-01 --reason "request 4711" --yes
  recorder erase --exchange 06eeq4qag1hqfnwe49a5rg7yac-2 --session-wide --reason "secret in SQL" \
      --key deployment.key --gateway-stats http://127.0.0.1:9902 --transport-retention 0 --yes
  recorder erase finish 20260314t090000z-0a1b2c3d4e --cleared gw-1 --transport-retention 7d
`

// eraseFlags are the flags of an erasure.
type eraseFlags struct {
	where                        where
	session, exchange, principal string
	wide, yes                    bool
	until, reason, by, key       string
	stats, cleared, indexes      texts
	transport                    string
	out, log                     io.Writer
	f                            *flags
}

func eraseCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	x := &eraseFlags{out: stdout, log: stderr}
	f := newFlags("erase", eraseHelp)
	x.f = f
	f.vaultFlag(&x.where)
	f.keysetFlag(&x.where)
	f.StringVar(&x.where.reads, "reads", "", "the folder `DIR` where it is put on record what was read with the keyset: see recorder show --help")
	f.StringVar(&x.session, "session", "", "the session `ID`")
	f.StringVar(&x.exchange, "exchange", "", "the exchange's `RECEIPT`")
	f.BoolVar(&x.wide, "session-wide", false, "with --exchange: its whole session in that epoch, which shares its key")
	f.StringVar(&x.principal, "principal", "", "all sessions of the principal: `ISSUER/SUBJECT`")
	f.StringVar(&x.until, "until", "", "with --principal: only what ended before this `TIME`")
	f.StringVar(&x.reason, "reason", "", "`TEXT`: why; kept for good")
	f.StringVar(&x.by, "by", "", "`WHO` erases (default: the user of this machine)")
	f.StringVar(&x.key, "key", "", "the deployment's signing key, to sign the note: `FILE`")
	f.BoolVar(&x.yes, "yes", false, "erase, instead of telling what would be erased")
	f.Var(&x.stats, "gateway-stats", "ask the gateway at this `URL` what its journal holds; several allowed")
	f.Var(&x.cleared, "cleared", "the `GATEWAY`'s journal is gone or clear; several allowed")
	f.StringVar(&x.transport, "transport-retention", "", "how long (`TIME`) the transport keeps messages; 0 for a socket")
	f.Var(&x.indexes, "index", indexUsage+"; several allowed")
	verb, rest := "", args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, rest = args[0], args[1:]
	}
	var names []string
	switch verb {
	case "", "list":
	case "finish":
		names = []string{"the erasure's ID"}
	default:
		return &usageError{fmt.Sprintf("erase: unknown action %q", verb), "want finish or list, or none with what to erase; " + f.see()}
	}
	if names, err = f.parse(rest, stdout, names...); err != nil {
		return err
	}
	if verb == "" {
		if err := x.check(); err != nil {
			return err
		}
	}
	clear, err := x.clear(ctx)
	if err != nil {
		return err
	}
	o := erasure.Options{By: x.by, Reason: x.reason}
	if o.By == "" {
		o.By = account()
	}
	if x.key != "" {
		s, err := readSigner(ctx, x.key)
		if err != nil {
			return fmt.Errorf("erase: --key: %w", err)
		}
		o.Signers = []note.Signer{s}
	}
	if err := f.resolve(&x.where); err != nil {
		return err
	}
	v, err := place.Open(ctx, place.Config{Spec: x.where.spec, Beside: verb == "finish" || x.yes})
	if err != nil {
		return fmt.Errorf("erase: %w", err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if verb == "finish" || x.yes {
		indexes, err := x.openIndexes(ctx)
		for _, i := range indexes {
			defer i.Close()
			clear.Indexes = append(clear.Indexes, &purger{i, stdout})
		}
		if err != nil {
			return fmt.Errorf("erase: %w", err)
		}
	}
	switch verb {
	case "list":
		return x.list(ctx, v)
	case "finish":
		e, done, err := erasure.Read(ctx, v, names[0])
		if err != nil {
			return fmt.Errorf("erase finish: %w", err)
		}
		if done != nil {
			for _, i := range clear.Indexes { // it may be of an older copy, or not have been named
				if _, err := i.Purge(ctx, e.Keys); err != nil {
					return fmt.Errorf("erase finish: index %s: %w", i, err)
				}
			}
			_, err := fmt.Fprintf(stdout, "complete since %s\n", moment(done.Time))
			return err
		}
		return x.finish(ctx, v, e, clear, o)
	}
	return x.erase(ctx, v, clear, o)
}

// openIndexes opens the indexes that are named.
func (x *eraseFlags) openIndexes(ctx context.Context) (all []index.Store, err error) {
	places := x.indexes
	if at := x.where.index(""); len(places) == 0 && at != "" {
		places = texts{at}
	}
	for _, at := range places {
		i, err := index.Open(ctx, at, false)
		if len(x.indexes) == 0 && errors.Is(err, fs.ErrNotExist) {
			continue // where an index would be, and none was built
		}
		if err != nil {
			return all, err
		}
		all = append(all, i)
	}
	return all, nil
}

// purger takes what was erased out of an index, and tells.
type purger struct {
	index.Store
	out io.Writer
}

// Purge implements [erasure.Index].
func (p *purger) Purge(ctx context.Context, keys []vault.ErasedKey) (int64, error) {
	n, err := index.Purge(ctx, p.Store, keys)
	if err != nil {
		return n.Rows, err
	}
	_, err = fmt.Fprintf(p.out, "Index %s: %d rows were taken out, of %d files\n", oneLine(p.String()), n.Rows, n.Files)
	return n.Rows, err
}

// check refuses arguments that do not go together.
func (x *eraseFlags) check() error {
	wrong := func(text, hint string) error { return &usageError{"erase: " + text, hint} }
	n := 0
	for _, s := range []string{x.session, x.exchange, x.principal} {
		if s != "" {
			n++
		}
	}
	switch {
	case n != 1:
		return wrong("erase what?", "give one of --session, --exchange and --principal")
	case x.until != "" && x.principal == "":
		return wrong("--until goes with --principal", x.f.see())
	case x.wide && x.exchange == "":
		return wrong("--session-wide goes with --exchange", x.f.see())
	case strings.TrimSpace(x.reason) == "":
		return wrong("--reason is missing", "it is kept for good: say why, without personal data")
	case len(x.reason) > vault.MaxReason || len(x.by) > vault.MaxReason:
		return wrong(fmt.Sprintf("--reason and --by have at most %d bytes", vault.MaxReason), x.f.see())
	case x.principal != "" && !strings.Contains(x.principal, "/"):
		return wrong(fmt.Sprintf("--principal %q: want ISSUER/SUBJECT", x.principal), "recorder show prints both")
	}
	return nil
}

func (x *eraseFlags) clear(ctx context.Context) (erasure.Clear, error) {
	c := erasure.Clear{Journals: map[string]erasure.Journal{}, Gone: x.cleared}
	if x.transport != "" {
		var d time.Duration
		if x.transport != "0" {
			var err error
			if d, err = place.ParseRetention(x.transport); err != nil {
				return c, &usageError{fmt.Sprintf("erase: --transport-retention: %v", err), "0 for a socket"}
			}
		}
		c.Transport = &d
	}
	for _, url := range x.stats {
		name, j, err := askGateway(ctx, url)
		if err != nil {
			return c, fmt.Errorf("erase: --gateway-stats %s: %w", url, err)
		}
		c.Journals[name] = j
	}
	return c, nil
}

// askGateway asks a gateway what its journal holds.
func askGateway(ctx context.Context, url string) (string, erasure.Journal, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if !strings.HasSuffix(url, "/stats") {
		url = strings.TrimSuffix(url, "/") + "/stats"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", erasure.Journal{}, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", erasure.Journal{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", erasure.Journal{}, fmt.Errorf("answers %s", res.Status)
	}
	var s struct {
		Gateway string `json:"gateway"`
		Epoch   string `json:"epoch"`
		Journal struct {
			Files map[string]uint64
		} `json:"journal"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(&s); err != nil {
		return "", erasure.Journal{}, fmt.Errorf("its answer: %w", err)
	}
	if s.Gateway == "" || s.Journal.Files == nil {
		return "", erasure.Journal{}, errors.New("its answer names no gateway and no files of a journal: is it a gateway of this version?")
	}
	return s.Gateway, erasure.Journal{Epoch: s.Epoch, Files: s.Journal.Files}, nil
}

// what is the erasure as the record of its reading tells it.
func (x *eraseFlags) what() record.AccessTo {
	filter := map[string]string{}
	for name, v := range map[string]string{"session": x.session, "principal": x.principal, "until": x.until} {
		if v != "" {
			filter[name] = v
		}
	}
	return record.AccessTo{Action: access.ActionErase, Exchange: x.exchange, Filter: filter}
}

func (x *eraseFlags) erase(ctx context.Context, v *place.Vault, clear erasure.Clear, o erasure.Options) (err error) {
	s := erasure.Selection{Session: x.session, Principal: x.principal}
	if x.exchange != "" {
		id, _, _ := strings.Cut(x.exchange, ".") // a signed receipt begins with it
		if s.Exchange, err = record.ParseID(id); err != nil {
			return &usageError{"erase: --exchange: " + err.Error(), "recorder search lists exchanges"}
		}
	}
	if x.until != "" {
		if s.Until, err = parseTime(x.until, time.Now()); err != nil {
			return &usageError{fmt.Sprintf("erase: --until: %v", err), x.f.see()}
		}
	}
	keys, err := x.f.keys(ctx, &x.where, v)
	if err != nil {
		return err
	}
	if keys == nil && x.exchange == "" {
		return &usageError{"erase: which keyset?", "whose a record is stands in what is sealed: give --keyset FILE, the tenant's private keyset"}
	}
	var opener ledger.Opener
	if keys != nil {
		opener = keys
	}
	holds, err := retention.Holds(ctx, v)
	if err != nil {
		return fmt.Errorf("erase: %w (nothing is erased while a hold cannot be read)", err)
	}
	x.where.why = x.reason
	r, err := x.f.record(ctx, &x.where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	p, err := erasure.Find(ctx, v, opener, s, holds)
	if err != nil {
		return err
	}
	// What would be erased tells when somebody worked, and how much.
	if err := r.give(ctx, x.what(), nil); err != nil {
		return err
	}
	if _, err := io.WriteString(x.out, planText(p)); err != nil {
		return err
	}
	switch {
	case len(p.Keys) == 0 && len(p.Erased) > 0:
		return nil // told
	case len(p.Keys) == 0:
		return errors.New("erase: nothing in the vault fits (is the sink behind?)")
	case len(p.Conflicts) > 0:
		return fmt.Errorf("erase: %w: nothing is erased; \"recorder hold list\" says why", erasure.ErrHeld)
	case x.exchange != "" && !x.wide:
		n := uint64(0)
		for _, k := range p.Keys {
			n += k.Exchanges
		}
		return &usageError{
			fmt.Sprintf("erase: the exchange shares its data key with its session's others in that epoch: %d exchanges would be erased", n),
			"a key is the least that can be erased: give --session-wide to erase them all",
		}
	case !x.yes:
		_, err := io.WriteString(x.out, "Nothing was erased. --yes erases it, for good.\n")
		return err
	}
	e, err := erasure.Erase(ctx, v, v, p, o)
	if err != nil {
		if e != nil {
			return fmt.Errorf("%w; \"recorder erase finish %s\" goes on", err, e.ID)
		}
		return err
	}
	fmt.Fprintf(x.out, "Erased %d keys: erasure %s\n", len(e.Keys), e.ID)
	if len(o.Signers) == 0 {
		fmt.Fprintln(x.log, "recorder: erase: the note is not signed (--key): verify cannot tell it from somebody else's")
	}
	return x.finish(ctx, v, e, clear, o)
}

func (x *eraseFlags) finish(ctx context.Context, v *place.Vault, e *vault.Erasure, clear erasure.Clear, o erasure.Options) error {
	pending, err := erasure.Finish(ctx, v, v, e, clear, o)
	if err != nil {
		return fmt.Errorf("erase: %w; \"recorder erase finish %s\" goes on", err, e.ID)
	}
	if len(pending) == 0 {
		_, err := fmt.Fprintln(x.out, "Complete: nothing can bring the keys back.")
		return err
	}
	for _, p := range pending {
		fmt.Fprintln(x.out, "pending:", oneLine(p))
	}
	return &exitError{4, fmt.Errorf("erase: the keys are destroyed; the erasure is pending: ask again with \"recorder erase finish %s\"", e.ID)}
}

func (x *eraseFlags) list(ctx context.Context, v *place.Vault) error {
	ids, err := erasure.List(ctx, v)
	if err != nil {
		return fmt.Errorf("erase list: %w", err)
	}
	for _, id := range ids {
		e, done, err := erasure.Read(ctx, v, id)
		if err != nil {
			return fmt.Errorf("erase list: %w", err)
		}
		state := "pending"
		if done != nil {
			state = "complete since " + moment(done.Time)
		}
		fmt.Fprintf(x.out, "%s  %d keys of a %s, %s\n    by %s: %s\n", id, len(e.Keys), e.Scope, state, oneLine(e.By), oneLine(e.Reason))
	}
	if len(ids) == 0 {
		_, err = io.WriteString(x.out, "No erasures.\n")
	}
	return err
}

// mostKeys is how many keys a plan lists.
const mostKeys = 50

func planText(p *erasure.Plan) string {
	var b strings.Builder
	line := func(mark string, k erasure.Key) {
		fmt.Fprintf(&b, "%s %s/%s  %s  %s to %s  %d exchanges, %d records\n", mark, k.Epoch, k.Key, oneLine(k.Gateway), moment(k.From), moment(k.To), k.Exchanges, k.Records)
	}
	for i, k := range p.Keys {
		if i == mostKeys {
			fmt.Fprintf(&b, "and %d keys more\n", len(p.Keys)-i)
			break
		}
		line("erase", k)
	}
	for i, k := range p.Later {
		if i == mostKeys {
			break
		}
		line("keep, it goes on beyond --until:", k)
	}
	if n := len(p.Erased); n > 0 {
		fmt.Fprintf(&b, "%d keys of it were erased before\n", n)
	}
	for _, c := range p.Conflicts {
		fmt.Fprintf(&b, "HELD: hold %s by %s (%s) covers record %s\n", c.Hold.ID, oneLine(c.Hold.By), oneLine(c.Hold.Reason), c.Record)
	}
	for _, e := range p.Exports {
		fmt.Fprintf(&b, "exported: bundle %s of %s, by %s, holds keys of it: it is out of reach here\n", oneLine(e.ID), moment(e.Time), oneLine(e.By))
	}
	if p.Behalf > 0 {
		fmt.Fprintf(&b, "%d sessions of others, who acted on behalf of the principal, stay\n", p.Behalf)
	}
	if n := p.Gone + p.Unread; n > 0 {
		fmt.Fprintf(&b, "%d keys could not be looked at (%d are gone): whose they are is not known\n", n, p.Gone)
	}
	for _, err := range p.Damage {
		fmt.Fprintf(&b, "not read: %s\n", oneLine(err.Error()))
	}
	return b.String()
}
