package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/record"
)

const keyHelp = `
Usage: recorder key new --out DIR [--name NAME]

Makes a deployment's two pairs of keys.

The tenant's keyset (HPKE with X25519, HKDF-SHA256, AES-256-GCM), which records are
sealed to:

  DIR/tenant.json      the private keyset: who has it can read everything recorded.
                       Keep it like a password, away from gateway and vault, with a
                       backup: without it the records can be proven, but never read.
  DIR/tenant.pub.json  the public part: for the gateways' configuration.

The deployment's key (Ed25519), which certifies the key of each gateway's epoch:

  DIR/deployment.key   the signing key: for the gateways, as sealing.key.
  DIR/deployment.pub   the public part: what auditors trust (recorder verify --trust).

Files that are there already are never replaced.

Example:
  recorder key new --out ./keys
`

const (
	privateFile = "tenant.json"
	publicFile  = "tenant.pub.json"
	signingFile = "deployment.key"
	trustFile   = "deployment.pub"
)

func keyCommand(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := newFlags("key", keyHelp)
	out := f.String("out", "", "the folder `DIR` for the files; made where it is missing")
	name := f.String("name", "deployment", "the `NAME` of the deployment's key, as verify shows it")
	rest, err := f.parse(args, stdout, "the action (new)")
	if err != nil {
		return err
	}
	if rest[0] != "new" {
		return &usageError{fmt.Sprintf("key: unknown action %q", rest[0]), "the only one is: recorder key new --out DIR"}
	}
	if *out == "" {
		return &usageError{"key new: where to?", "give --out DIR"}
	}
	if err := newKeys(*out, *name); err != nil {
		return fmt.Errorf("key new: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "%s (private, keep it secret and keep a backup)\n%s (public, for the gateways)\n%s (secret, for the gateways)\n%s (public, for auditors)\n",
		filepath.Join(*out, privateFile), filepath.Join(*out, publicFile), filepath.Join(*out, signingFile), filepath.Join(*out, trustFile))
	return err
}

func newKeys(dir, name string) error {
	private, public := filepath.Join(dir, privateFile), filepath.Join(dir, publicFile)
	signing, trust := filepath.Join(dir, signingFile), filepath.Join(dir, trustFile)
	for _, path := range []string{private, public, signing, trust} {
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
	return errors.Join(create(public, open, 0o644), create(signing, []byte(sign+"\n"), 0o600), create(trust, []byte(verify+"\n"), 0o644))
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
