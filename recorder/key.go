package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/witness"
)

const keyHelp = `
Usage: recorder key new --out DIR [--name NAME]
       recorder key show --dir DIR
       recorder key rotate --dir DIR [--tenant]
       recorder key retire --dir DIR KEY [--at TIME]
       recorder key fingerprint FILE|KEY
       recorder key accept --trust FILE NEWER

new makes a tenant's keyset. A gateway seals what it records with data keys, and
wraps these to the tenant's public key; the private one opens them. X25519 and
AES-256-GCM (HPKE, RFC 9180). It writes what a gateway needs to seal and sign, and
what auditors need to read and verify. The tenant's keyset, to which the records are
sealed to:

  DIR/tenant.json      the private keyset: who has it can read everything recorded.
                       Keep it like a password, away from gateway and vault, with a
                       backup: without it the records can be proven, but never read.
  DIR/tenant.pub.json  the public part: for the gateways' configuration.

The deployment's key (Ed25519), which certifies the key of each gateway's epoch:

  DIR/deployment.key   the signing key: for the gateways, as sealing.key.
  DIR/deployment.pub   the trust file: what auditors trust (recorder verify --trust).

The log's key (Ed25519), which signs the sink's own log of what is in the vault:

  DIR/log.key          the signing key: for the sink (recorder sink --log-key). The log is
                       named verbatim.dev/log/NAME by it, so NAME should be yours alone.
  DIR/log.pub          the public part: for witnesses and auditors (--log-key).

Files that are there already are never replaced by new.

rotate makes a new deployment key. The old one signs for it in deployment.pub, and is
then gone from deployment.key: hand both files out, restart the gateways, and retire
the old key when the last gateway has restarted. With --tenant it adds a new key to
the tenant's keyset, to which gateways wrap after their next start; the older keys stay
in tenant.json and open what they have sealed.

retire ends a deployment key: what it certified before TIME (default: now) verifies,
what it certifies afterwards does not. KEY is its fingerprint, name or hash, as show
prints it. The note is signed with deployment.key.

fingerprint prints a short form of each key, to compare over the telephone.

accept takes over what a newer deployment.pub adds to a trust file: only what keys that
are trusted already have signed for.

Examples:
  recorder key new --out ./keys
  recorder key rotate --dir ./keys
  recorder key retire --dir ./keys deployment+1b5ea4a3
  recorder key fingerprint ./keys/deployment.pub
  recorder key accept --trust my-deployment.pub downloaded/deployment.pub
`

const (
	privateFile = "tenant.json"
	publicFile  = "tenant.pub.json"
	signingFile = "deployment.key"
	trustFile   = "deployment.pub"
	logKeyFile  = "log.key"
	logPubFile  = "log.pub"

	// logPrefix begins the name of a deployment's log.
	logPrefix = "verbatim.dev/log/"
)

func keyCommand(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := newFlags("key", keyHelp)
	out := f.String("out", "", "new: the folder `DIR` for the files; made where it is missing")
	name := f.String("name", "deployment", "new: the `NAME` of the deployment's key, as verify shows it")
	dir := f.String("dir", "", "show, rotate, retire: the folder `DIR` with the files that new made")
	tenant := f.Bool("tenant", false, "rotate: the tenant's keyset instead of the deployment's key")
	at := f.String("at", "", "retire: from this `TIME` on (default: now)")
	trust := f.String("trust", "", "accept: the trust `FILE` to add to")
	verbs := map[string][]string{"new": nil, "show": nil, "rotate": nil, "retire": {"the KEY"}, "fingerprint": {"FILE or KEY"}, "accept": {"the NEWER file"}}
	verb, rest := "", args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, rest = args[0], args[1:]
	}
	names, known := verbs[verb]
	if !known {
		if verb == "" {
			names = []string{"the action (new, show, rotate, retire, fingerprint or accept)"}
		}
		if _, err := f.parse(rest, stdout, names...); errors.Is(err, errHelp) || verb == "" {
			return err
		}
		return &usageError{fmt.Sprintf("key: unknown action %q", verb), suggest(verb, slices.Sorted(maps.Keys(verbs)), "recorder key ", f.see())}
	}
	rest, err := f.parse(rest, stdout, names...)
	if err != nil {
		return err
	}
	need := func(flag, value string) error {
		if value == "" {
			return &usageError{fmt.Sprintf("key %s: where?", verb), "give --" + flag}
		}
		return nil
	}
	switch verb {
	case "new":
		if *out == "" {
			return &usageError{"key new: where to?", "give --out DIR"}
		}
		if err = newKeys(*out, *name); err == nil {
			_, err = fmt.Fprintf(stdout, "%s (private, keep it secret and keep a backup)\n%s (public, for the gateways)\n%s (secret, for the gateways)\n%s (public, for auditors)\n%s (secret, for the sink)\n%s (public, for witnesses and auditors)\n",
				filepath.Join(*out, privateFile), filepath.Join(*out, publicFile), filepath.Join(*out, signingFile), filepath.Join(*out, trustFile),
				filepath.Join(*out, logKeyFile), filepath.Join(*out, logPubFile))
		}
	case "show":
		if err = need("dir DIR", *dir); err == nil {
			err = showKeys(*dir, stdout)
		}
	case "rotate":
		rotate := rotateDeployment
		if *tenant {
			rotate = rotateTenant
		}
		if err = need("dir DIR", *dir); err == nil {
			err = rotate(*dir, time.Now(), stdout)
		}
	case "retire":
		from := time.Now()
		if *at != "" {
			if from, err = parseTime(*at, from); err != nil {
				return &usageError{fmt.Sprintf("key retire: --at: %v", err), f.see()}
			}
		}
		if err = need("dir DIR", *dir); err == nil {
			err = retireKey(*dir, rest[0], from, stdout)
		}
	case "fingerprint":
		err = fingerprints(rest[0], stdout)
	case "accept":
		if err = need("trust FILE", *trust); err == nil {
			err = acceptKeys(*trust, rest[0], stdout)
		}
	}
	var usage *usageError
	if err != nil && !errors.As(err, &usage) {
		err = fmt.Errorf("key %s: %w", verb, err)
	}
	return err
}

func newKeys(dir, name string) error {
	private, public := filepath.Join(dir, privateFile), filepath.Join(dir, publicFile)
	signing, trust := filepath.Join(dir, signingFile), filepath.Join(dir, trustFile)
	logKey, logPub := filepath.Join(dir, logKeyFile), filepath.Join(dir, logPubFile)
	for _, path := range []string{private, public, signing, trust, logKey, logPub} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is there already and is not replaced; choose another folder", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	sign, verify, err := note.GenerateKey(nil, name)
	if err != nil {
		return fmt.Errorf("--name %q: %w: no spaces and no plus signs", name, err)
	}
	log, err := witness.NewKey(logPrefix+name, nil)
	if err != nil {
		return err
	}
	h, err := record.NewTenant()
	if err != nil {
		return err
	}
	secret, err := record.MarshalTenant(h, true)
	if err != nil {
		return err
	}
	open, err := record.MarshalTenant(h, false)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := create(private, secret, 0o600); err != nil {
		return err
	}
	return errors.Join(create(public, open, 0o644), create(signing, []byte(sign+"\n"), 0o600), create(trust, []byte(verify+"\n"), 0o644),
		create(logKey, []byte(log.Private()+"\n"), 0o600), create(logPub, []byte(log.LogKey()+"\n"), 0o644))
}

// create writes a file that must not exist, durably.
func create(path string, b []byte, mode fs.FileMode) error {
	w, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil {
		err = w.Sync()
	}
	return errors.Join(err, w.Close())
}
