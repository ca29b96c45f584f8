package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/user"
	"strings"
	"time"

	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault/place"
)

const holdHelp = `
Usage: recorder hold add    [--vault VAULT] (--session S | --exchange RECEIPT | --since T [--until T]) --reason TEXT [--by WHO]
       recorder hold list   [--vault VAULT] [--all]
       recorder hold remove [--vault VAULT] ID --reason TEXT [--by WHO]
       recorder hold apply  [--vault VAULT]

Keeps records beyond their retention: nothing that a hold covers is deleted by
"recorder expire", and no key of it can be erased. A hold is a file beside the keys that is
never changed; removing one leaves a file that says who and why.

A session's records are known by its data keys, so a hold on a session needs the
keyset. Records younger than the hold are all kept, for any may be the session's:
add the hold again when the session is over, and remove the first. In buckets, add
puts Cloud Storage's own hold on each file that is covered; apply does so for what came
later, and takes it off where no hold is left. Both need storage.objects.update.

Examples:
  recorder hold add --exchange 06eeq4qag1hqfnwe49a5rg7yac-2 --reason "case 4711"
  recorder hold add --since 2026-03-01 --until 2026-04-01 --reason "audit of March" --by legal@corp.example
  recorder hold list
`

func holdCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("hold", holdHelp)
	f.vaultFlag(&p)
	f.keysetFlag(&p)
	session := f.String("session", "", "the `SESSION` to keep")
	exchange := f.String("exchange", "", "the exchange's `RECEIPT`")
	since := f.String("since", "", "keep records from this `TIME` on: a date, RFC 3339, or a time ago like 48h")
	until := f.String("until", "", "and before this `TIME`")
	reason := f.String("reason", "", "`TEXT`: why")
	by := f.String("by", "", "`WHO` asks for it (default: the user of this machine)")
	all := f.Bool("all", false, "list: also holds that were removed")
	verb, rest := "", args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, rest = args[0], args[1:]
	}
	var names []string
	switch verb {
	case "remove":
		names = []string{"the hold's ID"}
	case "add", "list", "apply":
	default:
		if _, err := f.parse(args, stdout); err != nil {
			return err
		}
		return &usageError{"hold: want add, list, remove or apply", f.see()}
	}
	names, err = f.parse(rest, stdout, names...)
	if err != nil {
		return err
	}
	if err := f.resolve(&p); err != nil {
		return err
	}
	v, err := place.Open(ctx, place.Config{Spec: p.spec, Beside: verb != "list"})
	if err != nil {
		return fmt.Errorf("hold: %w", err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if *by == "" {
		*by = account()
	}
	now := time.Now()
	switch verb {
	case "list":
		holds, err := retention.Holds(ctx, v)
		if err != nil {
			return err
		}
		n := 0
		for _, h := range holds {
			if h.Removed == nil || *all {
				n++
				if _, err := io.WriteString(stdout, holdText(h)); err != nil {
					return err
				}
			}
		}
		if n == 0 {
			_, err = io.WriteString(stdout, "No holds.\n")
		}
		return err
	case "apply":
		return apply(ctx, v, stdout)
	case "remove":
		if *reason == "" {
			return &usageError{"hold remove: --reason is missing", f.see()}
		}
		if err := retention.Remove(ctx, v, retention.Removal{ID: names[0], Time: now, By: *by, Reason: *reason}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(stdout, "Removed hold %s.\n", names[0])
		return err
	}
	h := &retention.Hold{Created: now, By: *by, Reason: *reason, Session: *session, Exchange: *exchange}
	for _, t := range []struct {
		name, text string
		to         *time.Time
	}{{"since", *since, &h.From}, {"until", *until, &h.Until}} {
		if t.text == "" {
			continue
		}
		at, err := parseTime(t.text, now)
		if err != nil {
			return &usageError{fmt.Sprintf("hold add: --%s: %v", t.name, err), f.see()}
		}
		*t.to = at.UTC()
	}
	if *reason == "" {
		return &usageError{"hold add: --reason is missing", f.see()}
	}
	if *session != "" {
		keys, err := f.keys(ctx, &p, v)
		if err != nil {
			return err
		}
		if keys == nil {
			return &usageError{"hold add: a session's records are known by its keys: give --keyset", f.see()}
		}
		var unreadable int
		if h.Keys, unreadable, err = retention.SessionKeys(ctx, v, keys, *session); err != nil {
			return fmt.Errorf("hold: %w", err)
		}
		if unreadable > 0 {
			fmt.Fprintf(stderr, "recorder: hold: %d data keys could not be opened: what they seal is not held\n", unreadable)
		}
	}
	if err := retention.Add(ctx, v, h); err != nil {
		return fmt.Errorf("hold add: %w", err)
	}
	if _, err := io.WriteString(stdout, holdText(h)); err != nil {
		return err
	}
	return retention.Covered(ctx, v, h, func(name string) error { return v.Hold(ctx, name, true) })
}

// apply puts Cloud Storage's holds where the holds are.
func apply(ctx context.Context, v *place.Vault, stdout io.Writer) error {
	holds, err := retention.Holds(ctx, v)
	if err != nil {
		return err
	}
	held := map[string]bool{}
	for pass, removed := range []bool{false, true} {
		for _, h := range holds {
			if (h.Removed != nil) != removed {
				continue
			}
			c := *h
			c.Removed = nil // where it was
			err := retention.Covered(ctx, v, &c, func(name string) error {
				if pass == 0 {
					held[name] = true
				} else if held[name] {
					return nil
				}
				return v.Hold(ctx, name, pass == 0)
			})
			if err != nil {
				return fmt.Errorf("hold: %w", err)
			}
		}
	}
	_, err = fmt.Fprintf(stdout, "%d files are held.\n", len(held))
	return err
}

func holdText(h *retention.Hold) string {
	what := ""
	switch {
	case h.Session != "":
		what = fmt.Sprintf("session %s (%d keys)", h.Session, len(h.Keys))
	case h.Exchange != "":
		what = "exchange " + h.Exchange
	default:
		what = moment(h.From) + " to " + moment(h.Until)
	}
	s := fmt.Sprintf("%s  %s\n    since %s, by %s: %s\n", oneLine(h.ID), oneLine(what), moment(h.Created), oneLine(h.By), oneLine(h.Reason))
	if r := h.Removed; r != nil {
		s += fmt.Sprintf("    removed %s, by %s: %s\n", moment(r.Time), oneLine(r.By), oneLine(r.Reason))
	}
	return s
}

// account is the user of this machine, as it says.
func account() string {
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}
