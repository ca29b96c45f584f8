package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault/place"
)

const expireHelp = `
Usage: recorder expire [--vault VAULT] [--delete] [--by WHO]

Lists the files of a vault's folders whose records are all past their retention, as
the records themselves say. With --delete it deletes them, after it has written a
note of each (expiry/ in the vault), so that verify can tell what expired from what
is missing. Nothing under a hold is deleted, and a segment whose parts stay stays
with them. Buckets delete what expired by their lifecycle, see recorder vault.

It may run beside a sink. What was cut off is finished by the next run.

Exit code 0: done, or nothing to do. 1: failed. 2: wrong arguments.

Examples:
  recorder expire --vault /var/lib/verbatim/vault
  recorder expire --vault /var/lib/verbatim/vault --delete
`

func expireCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("expire", expireHelp)
	f.vaultFlag(&p)
	del := f.Bool("delete", false, "delete what expired (default: only list it)")
	by := f.String("by", "", "`WHO` runs it, for the note (default: the user of this machine)")
	at := f.String("at", "", "list what will have expired at this `TIME`; not with --delete")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	o := retention.Options{By: *by}
	if o.By == "" {
		o.By = account()
	}
	if *at != "" {
		t, err := parseTime(*at, time.Now())
		if err != nil || *del {
			return &usageError{fmt.Sprintf("expire: --at %s: want a time, without --delete", *at), f.see()}
		}
		o.Now = func() time.Time { return t }
	}
	if err := f.resolve(&p); err != nil {
		return err
	}
	v, err := place.Open(ctx, place.Config{Spec: p.spec, Beside: *del})
	if err != nil {
		return fmt.Errorf("expire: %w", err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if o.Holds, err = retention.Holds(ctx, v); err != nil {
		return fmt.Errorf("expire: %w (nothing is deleted while a hold cannot be read)", err)
	}
	o.Skip = v.Bucket
	if *del {
		o.Remove = v
	}
	r, err := retention.Expire(ctx, v, o)
	if err != nil {
		return err
	}
	for _, x := range r.Files {
		state := "expired " + moment(x.Expires)
		if x.Kept != "" {
			state = "kept: " + x.Kept
		}
		fmt.Fprintf(stdout, "%s  %s\n", oneLine(x.Name), oneLine(state))
	}
	verb := "would be deleted (--delete does it)"
	if *del {
		verb = "deleted"
	}
	_, err = fmt.Fprintf(stdout, "%d files, %s, %s; %d kept.\n", r.Gone, size(r.Bytes), verb, r.Kept)
	return err
}
