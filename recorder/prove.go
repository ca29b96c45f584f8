package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
)

const proveHelp = `
Usage: recorder prove RECEIPT|EXCHANGE [--vault DIR] [--out FILE]

Writes a proof that the record is in its epoch's log: its leaf, the Merkle hashes that
lead from there to the root, the checkpoint that states and signs the root, and the
certificate of the key that signed it; and, where the sink keeps a log, that the log has
that checkpoint, with its witnesses' cosignatures. The file is a C2SP tlog-proof
(https://c2sp.org/tlog-proof). "recorder verify --proof" checks it with no vault.

With a whole receipt, as the caller got it, the receipt's signature is checked first,
and the record must be the one that it is about.

Exit code 1: there is no such record, it is another one than the receipt says, or the
vault cannot prove it.

Examples:
  recorder prove 06eeq4qag1hqfnwe49a5rg7yac-2 --out query.tlog-proof
  recorder prove "$RECEIPT" --out query.tlog-proof
  recorder verify --proof query.tlog-proof --trust deployment.pub --receipt "$RECEIPT"
`

func proveCommand(ctx context.Context, args []string, stdout, _ io.Writer) (err error) {
	var p where
	f := newFlags("prove", proveHelp)
	f.vaultFlag(&p)
	out := f.String("out", "", "write to a new `FILE` instead of standard output")
	rest, err := f.parse(args, stdout, "RECEIPT or EXCHANGE")
	if err != nil {
		return err
	}
	receipt, err := record.ParseReceipt(rest[0])
	whole := err == nil
	id, err := record.ParseID(rest[0])
	if err != nil {
		return &usageError{"prove: " + err.Error(), "recorder search lists exchanges"}
	}
	if !whole && strings.Contains(rest[0], ".") {
		return &usageError{fmt.Sprintf("prove: the receipt %.60s... is cut off or changed", rest[0]), "give the whole x-verbatim-receipt header, or EPOCH-SEQUENCE alone"}
	}
	v, err := f.open(ctx, &p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	proof, err := ledger.Prove(ctx, v, id)
	if err != nil {
		return err
	}
	proven, err := proof.Verify(nil, nil)
	if err != nil {
		return fmt.Errorf("prove: %w", err)
	}
	if whole {
		if err := proven.Receipt(receipt); err != nil {
			return fmt.Errorf("prove: %w", err)
		}
	}
	b, err := proof.Marshal()
	if err != nil {
		return err
	}
	if *out == "" {
		_, err = stdout.Write(b)
		return err
	}
	if err := create(*out, b, 0o644); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("prove: %s is there already and is not replaced", *out)
	} else if err != nil {
		return fmt.Errorf("prove: %w", err)
	}
	return nil
}

// verifyProof checks a proof file; no vault is needed.
func verifyProof(path string, o ledger.Options, format string, stdout io.Writer) error {
	b, err := readSmall(path, ledger.MaxProof)
	if err != nil {
		return &exitError{3, fmt.Errorf("verify: %w", err)}
	}
	proof, err := ledger.ParseProof(b)
	if err != nil {
		return &exitError{1, fmt.Errorf("verify: %s: %w", path, err)}
	}
	proven, err := proof.Verify(o.Trust, o.Log)
	if err != nil {
		return &exitError{1, fmt.Errorf("verify: %s: %w", path, err)}
	}
	for _, r := range o.Receipts {
		if err := proven.Receipt(r); err != nil {
			return &exitError{1, fmt.Errorf("verify: %s: %w", path, err)}
		}
	}
	if format == "json" {
		return writeJSON(stdout, proven, "  ")
	}
	var t strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&t, "%-11s %s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	row("record", "%s of gateway %s", proven.Exchange, proven.Gateway)
	row("leaf", "%s", proven.Leaf)
	row("log", "%d records, checkpoint of %s", proven.Size, moment(proven.Time))
	if proven.Anchored {
		row("trust", "the epoch's key is certified by a deployment you trust")
	} else {
		row("trust", "unanchored: no --trust was given, so the proof's own key vouches for it")
	}
	switch l := proven.Logged; {
	case l != nil:
		row("sink's log", "%s", loggedText(l))
	case proven.InLog:
		row("sink's log", "not checked: give --log-key, and --witness")
	}
	if len(o.Receipts) > 0 {
		row("receipt", "is of this record, and signed with the epoch's key")
	}
	t.WriteString("\nProven: the log holds a record with this leaf at this place.\n")
	_, err = io.WriteString(stdout, t.String())
	return err
}
