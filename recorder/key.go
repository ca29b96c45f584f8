package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"verbatim.dev/recorder/record"
)

const keyHelp = `
Usage: recorder key new --out DIR

Makes a tenant's keyset (HPKE with X25519, HKDF-SHA256, AES-256-GCM) in two files:

  DIR/tenant.json      the private keyset: who has it can read everything recorded.
                       Keep it like a password, away from gateway and vault, with a
                       backup: without it the records can be proven, but never read.
  DIR/tenant.pub.json  the public part: for the gateways' configuration.

Files that are there already are never replaced.

Example:
  recorder key new --out ./keys
`

const (
	privateFile = "tenant.json"
	publicFile  = "tenant.pub.json"
)

func keyCommand(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := newFlags("key", keyHelp)
	out := f.String("out", "", "the folder `DIR` for the two files; made where it is missing")
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
	if err := newKeyset(*out); err != nil {
		return fmt.Errorf("key new: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "%s (private, keep it secret and keep a backup)\n%s (public, for the gateways)\n",
		filepath.Join(*out, privateFile), filepath.Join(*out, publicFile))
	return err
}

func newKeyset(dir string) error {
	private, public := filepath.Join(dir, privateFile), filepath.Join(dir, publicFile)
	for _, path := range []string{private, public} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is there already and is not replaced; choose another folder", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
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
	return create(public, open, 0o644)
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
