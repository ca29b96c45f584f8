package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/storage"

	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs"
	"verbatim.dev/recorder/vault/place"
)

const vaultHelp = `
Usage: recorder vault init  [--vault VAULT] [--project P] [--location L] [--kms-key K] [--lock --confirm BUCKET]
       recorder vault check [--vault VAULT] [--kms-key K] [--unlocked]

A VAULT is a folder, gs://BUCKET[/PREFIX], a list CLASS:RETENTION=PLACE,...,keys=PLACE
or a vault file (YAML) that says the same. A bucket has one retention policy, so each
retention class has a bucket of its own; wrapped keys and holds must be erasable, so
they rest in one without retention, and so does the index.

init makes what is not there and sets what can be set: retention, uniform access,
public access prevention, no versions, no soft delete, the key of encryption, and a
lifecycle that deletes segments past their retention. It shortens no retention.
With --lock it locks the retention policy of each bucket that --confirm names. That
cannot be undone by anybody: the retention can then only grow, and the bucket cannot
be deleted while it holds anything in retention.

check prints each property: ok, or WRONG with how it must be and the command that
repairs it. A folder is tamper-evident, not write-once: nothing can lock it.

Exit code 0: all is as it must be. 1: something is not. 2: wrong arguments. 3: a
bucket could not be read.

Examples:
  recorder vault init --vault /var/lib/verbatim/vault
  recorder vault init --vault standard:400d=gs://acme-evidence,keys=gs://acme-keys --project acme-audit --location EU
  recorder vault init --vault vault.yaml --lock --confirm acme-evidence
  recorder vault check --vault vault.yaml
`

func vaultCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var p where
	f := newFlags("vault", vaultHelp)
	f.vaultFlag(&p)
	project := f.String("project", "", "Google Cloud `PROJECT` in which init makes buckets")
	location := f.String("location", "", "`LOCATION` of buckets that init makes, like EU (Google's default: US)")
	kms := f.String("kms-key", "", "Cloud KMS `KEY` that encrypts new objects: projects/P/locations/L/keyRings/R/cryptoKeys/K")
	lock := f.Bool("lock", false, "init: lock the retention policies, for good")
	unlocked := f.Bool("unlocked", false, "check: a retention policy that is not locked is no fault")
	var confirm []string
	f.Func("confirm", "init --lock: the name of the `BUCKET` to lock; may be given again", func(s string) error {
		confirm = append(confirm, strings.TrimPrefix(s, gcs.Scheme))
		return nil
	})
	rest, err := f.parse(args, stdout, "what to do (init or check)")
	if err != nil {
		return err
	}
	if rest[0] != "init" && rest[0] != "check" {
		return &usageError{fmt.Sprintf("vault: %q: want init or check", rest[0]), f.see()}
	}
	if rest[0] == "check" && (*lock || len(confirm) > 0) {
		return &usageError{"vault: check locks nothing: --lock and --confirm are for init", f.see()}
	}
	if err := f.resolve(&p); err != nil {
		return err
	}
	s := p.spec
	override := func(to *string, with string) {
		if with != "" {
			*to = with
		}
	}
	override(&s.Project, *project)
	override(&s.Location, *location)
	override(&s.KMSKey, *kms)
	places := placesOf(s)
	if err := confirmed(places, *lock, confirm); err != nil {
		return err
	}
	a := &admin{ctx: ctx, out: stdout, needLock: rest[0] == "check" && !*unlocked}
	defer a.close()
	for _, pl := range places {
		if rest[0] == "init" {
			if err := a.init(pl, *lock && slices.Contains(confirm, pl.bucket())); err != nil {
				return err
			}
		}
		if err := a.check(pl); err != nil {
			return unread(err)
		}
	}
	if a.wrong > 0 {
		return &exitError{1, fmt.Errorf("vault: %d properties are not as they must be", a.wrong)}
	}
	return nil
}

// placeOf is one of a vault's places, and what it is for.
type placeOf struct {
	what string // "class standard", "keys", "index", "everything"
	at   string
	want gcs.Want
}

func (p placeOf) bucket() string {
	b, _, _ := gcs.Split(p.at)
	return b
}

func placesOf(s place.Spec) []placeOf {
	want := func(at string, retention time.Duration) gcs.Want {
		return gcs.Want{Address: at, Retention: retention, Expire: retention > 0, Project: s.Project, Location: s.Location, KMSKey: s.KMSKey}
	}
	if s.All != "" {
		return []placeOf{{"everything", s.All, want(s.All, 0)}}
	}
	var all []placeOf
	for _, c := range s.Classes {
		all = append(all, placeOf{"class " + c.Name, c.Place, want(c.Place, c.Retention)})
	}
	all = append(all, placeOf{"keys", s.Keys, want(s.Keys, 0)})
	if s.Index != "" && s.Index != s.Keys {
		all = append(all, placeOf{"index", s.Index, want(s.Index, 0)})
	}
	return all
}

// confirmed refuses a lock that nobody asked for by name.
func confirmed(places []placeOf, lock bool, names []string) error {
	var lockable []string
	for _, p := range places {
		if p.want.Retention > 0 && place.IsBucket(p.at) {
			lockable = append(lockable, p.bucket())
		}
	}
	for _, n := range names {
		if !slices.Contains(lockable, n) {
			return &usageError{fmt.Sprintf("vault: --confirm %s: no bucket of this vault with a retention", n), "it has " + strings.Join(lockable, ", ")}
		}
	}
	switch {
	case lock && len(lockable) == 0:
		return &usageError{"vault: --lock: the vault has no bucket with a retention", "only buckets can be locked"}
	case lock && len(names) == 0:
		return &usageError{"vault: --lock cannot be undone: name each bucket to lock", "--confirm " + strings.Join(lockable, " --confirm ")}
	case !lock && len(names) > 0:
		return &usageError{"vault: --confirm without --lock", "add --lock to lock for good"}
	}
	return nil
}

type admin struct {
	ctx      context.Context
	out      io.Writer
	client   *storage.Client
	needLock bool
	wrong    int
}

func (a *admin) close() {
	if a.client != nil {
		_ = a.client.Close()
	}
}

// adminTimeout is for one bucket's administration.
const adminTimeout = 2 * time.Minute

func (a *admin) bucket() (context.Context, context.CancelFunc, error) {
	if a.client == nil {
		c, err := gcs.NewClient(a.ctx)
		if err != nil {
			return nil, nil, err
		}
		a.client = c
	}
	ctx, cancel := context.WithTimeout(a.ctx, adminTimeout)
	return ctx, cancel, nil
}

func (a *admin) init(p placeOf, lock bool) error {
	if !place.IsBucket(p.at) {
		v, err := vault.OpenFolder(vault.FolderConfig{Dir: p.at, Write: true})
		if errors.Is(err, vault.ErrLocked) {
			return nil // a sink is at work in it
		}
		if err != nil {
			return fmt.Errorf("vault: %w", err)
		}
		return v.Close()
	}
	ctx, cancel, err := a.bucket()
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	defer cancel()
	made, err := gcs.Init(ctx, a.client, p.want)
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if made {
		fmt.Fprintf(a.out, "%s: made\n", p.at)
	}
	if lock {
		if err := gcs.Lock(ctx, a.client, p.want); err != nil {
			return fmt.Errorf("vault: %w", err)
		}
		fmt.Fprintf(a.out, "%s: locked for good\n", p.at)
	}
	return nil
}

func (a *admin) check(p placeOf) error {
	fmt.Fprintf(a.out, "%s (%s)\n", oneLine(p.at), p.what)
	if !place.IsBucket(p.at) {
		return a.folder(p)
	}
	ctx, cancel, err := a.bucket()
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	defer cancel()
	w := p.want
	w.Locked = a.needLock
	all, err := gcs.Check(ctx, a.client, w)
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	for _, f := range all {
		a.finding(f)
	}
	if p.what == "everything" {
		a.note("one bucket for everything can give up keys, so its records are not write-once: give each class a bucket of its own")
	}
	a.note("a sink needs " + strings.Join(gcs.Permissions, ", ") + " and no more (roles/storage.objectCreator, roles/storage.objectViewer)")
	return nil
}

func (a *admin) finding(f gcs.Finding) {
	state := "ok"
	if !f.OK {
		state = "WRONG"
		a.wrong++
	}
	fmt.Fprintf(a.out, "  %-5s  %-24s %s\n", state, f.Property, oneLine(f.State))
	if f.Repair != "" {
		fmt.Fprintf(a.out, "         repair: %s\n", f.Repair)
	}
}

func (a *admin) note(text string) { fmt.Fprintf(a.out, "  note   %s\n", text) }

func (a *admin) folder(p placeOf) error {
	st, err := os.Stat(p.at)
	switch {
	case errors.Is(err, os.ErrNotExist):
		a.finding(gcs.Finding{Property: "folder", State: "is not there", Repair: "recorder vault init"})
		return nil
	case err != nil:
		return fmt.Errorf("vault: %w", err)
	case !st.IsDir():
		a.finding(gcs.Finding{Property: "folder", State: "is no folder", Repair: "take another place"})
		return nil
	}
	open := st.Mode().Perm()&0o077 != 0
	f := gcs.Finding{Property: "mode", OK: !open, State: fmt.Sprintf("%04o", st.Mode().Perm())}
	if open {
		f.State, f.Repair = f.State+": others can look at it or change it", "chmod 700 "+p.at
	}
	a.finding(f)
	a.note("a folder is tamper-evident, not write-once: who may write it may change it, and verify then says so")
	if p.want.Retention > 0 {
		a.note("\"recorder expire\" deletes what is past its retention of " + gcs.Period(p.want.Retention))
	}
	return nil
}
