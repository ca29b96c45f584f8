package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/place"
)

const salvageHelp = `
Usage: recorder salvage [--vault VAULT] --gateway NAME EPOCH --reason TEXT [--by WHO] --confirm EPOCH

Gives up an epoch whose gateway's disk is lost and that has no successor: a gateway that
was taken away for good. What Pub/Sub still holds of it, behind its last cut, then comes
into the vault up to the last signed checkpoint, and "recorder verify" names it as a lost
tail. Without this order the sink does so by itself once a later epoch of the same gateway
shows that the journal was lost.

Writes an order beside the evidence, which the running sink follows when nothing of the
epoch has come for a while (recorder sink --salvage-after). Without --confirm it says what
the vault holds, and orders nothing. Should the journal come back after all, nothing is
wrong: what follows on the salvaged part is put behind it.

Examples:
  recorder salvage --gateway gw-7 06eeq4qag1hqfnwe49a5rg7yac
  recorder salvage --gateway gw-7 06eeq4qag1hqfnwe49a5rg7yac --reason "node lost, not replaced" \
    --confirm 06eeq4qag1hqfnwe49a5rg7yac
`

func salvageCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("salvage", salvageHelp)
	f.vaultFlag(&p)
	gateway := f.String("gateway", "", "the gateway's `NAME`")
	reason := f.String("reason", "", "`TEXT`: why it is given up")
	by := f.String("by", "", "`WHO` orders it (default: the user of this machine)")
	confirm := f.String("confirm", "", "the `EPOCH` again: it is given up")
	rest, err := f.parse(args, stdout, "the EPOCH")
	if err != nil {
		return err
	}
	if err := vault.CheckGateway(*gateway); err != nil {
		return &usageError{fmt.Sprintf("salvage: --gateway: %v", err), f.see()}
	}
	epoch, err := record.ParseEpoch(rest[0])
	if err != nil {
		return &usageError{fmt.Sprintf("salvage: %v", err), "the epoch is what a receipt begins with, up to the dash"}
	}
	if *confirm != "" && *confirm != rest[0] {
		return &usageError{fmt.Sprintf("salvage: --confirm %s is not the epoch %s", *confirm, rest[0]), f.see()}
	}
	if *confirm != "" && *reason == "" {
		return &usageError{"salvage: --reason is missing", f.see()}
	}
	if err := f.resolve(&p); err != nil {
		return err
	}
	v, err := place.Open(ctx, place.Config{Spec: p.spec, Beside: *confirm != ""})
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	last, err := lastRecord(ctx, v, *gateway, epoch)
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	held := fmt.Sprintf("The vault holds epoch %s of gateway %s up to record %d.\n", epoch, *gateway, last)
	if *confirm == "" {
		_, err = io.WriteString(stdout, held+"Nothing is ordered: give --reason and --confirm "+epoch.String()+".\n")
		return err
	}
	if *by == "" {
		*by = account()
	}
	order := vault.Salvage{Version: 1, Kind: vault.SalvageOrder, Gateway: *gateway, Epoch: epoch.String(), By: *by, Reason: *reason}
	b, err := order.Marshal()
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	err = v.Create(ctx, vault.SalvageName(*gateway, epoch, vault.SalvageOrder, 0), bytes.NewReader(b))
	if errors.Is(err, vault.ErrConflict) {
		_, err = io.WriteString(stdout, held+"It is given up already, by another order.\n")
		return err
	}
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	_, err = io.WriteString(stdout, held+"It is given up: the sink salvages what Pub/Sub has of it.\n")
	return err
}

// lastRecord is the last record of the epoch that the vault holds, 0 for none.
func lastRecord(ctx context.Context, v vault.Vault, gateway string, e record.Epoch) (last uint64, err error) {
	const day = 24 * time.Hour
	for t := e.Time().Add(-day); !t.After(time.Now().Add(day)); t = t.Add(day) {
		for name, err := range v.List(ctx, vault.SegmentPrefix(vault.Day(t), gateway, e)) {
			if err != nil {
				return 0, err
			}
			if id, err := vault.ParseSegmentName(name); err == nil && !id.Part {
				last = max(last, id.Last)
			}
		}
	}
	return last, nil
}
