package erasure

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
)

// Options of an erasure.
type Options struct {
	By     string
	Reason string
	// Signers sign the note; without one it is not signed, and verification
	// says so.
	Signers []note.Signer
	Now     func() time.Time // nil: time.Now
}

// ErrHeld means that a legal hold stands against the erasure.
var ErrHeld = errors.New("under a legal hold")

// Erase does what the plan says. After an error the erasure may be half done:
// where an Erasure is returned too, [Finish] goes on.
func Erase(ctx context.Context, v Vault, e Eraser, p *Plan, o Options) (*vault.Erasure, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case len(p.Keys) == 0:
		return nil, errors.New("erasure: nothing is selected")
	case len(p.Conflicts) > 0:
		return nil, fmt.Errorf("erasure: %w: %s", ErrHeld, p.Conflicts[0].Hold.ID)
	}
	var random [5]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	now := o.Now().UTC().Truncate(time.Second)
	x := &vault.Erasure{
		ID: now.Format("20060102t150405z") + "-" + hex.EncodeToString(random[:]), Time: now,
		By: o.By, Reason: o.Reason, Scope: p.Scope, Exchange: p.Exchange,
	}
	for _, k := range p.Keys {
		x.Keys = append(x.Keys, k.ErasedKey)
	}
	b, err := x.Sign(o.Signers...)
	if err != nil {
		return nil, fmt.Errorf("erasure: %w", err)
	}
	if err := v.Create(ctx, vault.ErasureName(x.ID), bytes.NewReader(b)); err != nil {
		return nil, fmt.Errorf("erasure: %w", err)
	}
	// A hold that came while the vault was read.
	if err := heldNow(ctx, v, x); err != nil {
		return x, err
	}
	return x, destroy(ctx, v, e, x)
}

// heldNow returns an error where a hold covers a key that is still there.
func heldNow(ctx context.Context, v Vault, x *vault.Erasure) error {
	holds, err := retention.Holds(ctx, v)
	if err != nil {
		return fmt.Errorf("erasure: %w (nothing is erased while a hold cannot be read)", err)
	}
	left := map[keyID]bool{}
	for _, k := range x.Keys {
		epoch, id, err := k.Parse()
		if err != nil {
			return fmt.Errorf("erasure %s: %w", x.ID, err)
		}
		there, err := exists(ctx, v, vault.KeyName(epoch, id))
		if err != nil {
			return fmt.Errorf("erasure %s: %w", x.ID, err)
		}
		if there {
			left[keyID{epoch, id}] = true
		}
	}
	if len(left) == 0 {
		return nil
	}
	found, err := conflicts(ctx, v, holds, func(id keyID) bool { return left[id] })
	if err != nil {
		return fmt.Errorf("erasure %s: %w", x.ID, err)
	}
	if len(found) > 0 {
		return fmt.Errorf("erasure %s: %w: hold %s covers record %s", x.ID, ErrHeld, found[0].Hold.ID, found[0].Record)
	}
	return nil
}

func exists(ctx context.Context, v Vault, name string) (bool, error) {
	r, err := v.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// destroy puts the tombstones, and then removes the keys: a sink that gets a
// key meanwhile finds its tombstone. It may be done again.
func destroy(ctx context.Context, v Vault, e Eraser, x *vault.Erasure) error {
	for _, k := range x.Keys {
		epoch, id, err := k.Parse()
		if err != nil {
			return fmt.Errorf("erasure %s: %w", x.ID, err)
		}
		t := vault.Tombstone{Version: 1, Erasure: x.ID, Epoch: k.Epoch, Key: k.Key, Time: x.Time, By: x.By, Reason: x.Reason}
		b, err := t.Marshal()
		if err != nil {
			return fmt.Errorf("erasure %s: %w", x.ID, err)
		}
		name := vault.TombstoneName(epoch, id)
		err = v.Create(ctx, name, bytes.NewReader(b))
		if errors.Is(err, vault.ErrConflict) {
			// Another erasure's: it does as well, if it is one.
			var have []byte
			if have, err = read(ctx, v, name, vault.MaxTombstone); err == nil {
				_, err = vault.ParseTombstone(have, epoch, id)
			}
		}
		if err == nil {
			err = e.EraseKey(ctx, vault.KeyName(epoch, id))
		}
		if err != nil {
			return fmt.Errorf("erasure %s: key %s: %w", x.ID, retention.KeyText(epoch, id), err)
		}
	}
	return nil
}

// Read returns an erasure, and its completion, nil where it is not complete.
func Read(ctx context.Context, v Vault, id string) (*vault.Erasure, *vault.Completion, error) {
	name := vault.ErasureName(id)
	if _, _, err := vault.ParseErasureName(name); err != nil {
		return nil, nil, err
	}
	b, err := read(ctx, v, name, vault.MaxErasure)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no erasure %s: %w", id, fs.ErrNotExist)
	}
	if err != nil {
		return nil, nil, err
	}
	x, err := vault.ParseErasure(b)
	if err == nil && x.ID != id {
		err = fmt.Errorf("is of erasure %s", x.ID)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	b, err = read(ctx, v, vault.CompletionName(id), vault.MaxErasure)
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	c, err := vault.ParseCompletion(b)
	if err == nil && c.ID != id {
		err = fmt.Errorf("is of erasure %s", c.ID)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", vault.CompletionName(id), err)
	}
	return x, c, nil
}

// List returns the ids of all erasures, oldest first.
func List(ctx context.Context, v Vault) ([]string, error) {
	var ids []string
	for name, err := range v.List(ctx, vault.ErasuresPrefix) {
		if err != nil {
			return nil, err
		}
		id, done, err := vault.ParseErasureName(name)
		if err != nil {
			return nil, err
		}
		if !done {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids) // they begin with the time
	return ids, nil
}

// Clear says how it is known that no key can come back.
type Clear struct {
	// Journals asks the gateways: for each name of a gateway, what its journal
	// holds.
	Journals map[string]Journal
	// Gone are gateways whose journals are gone, or clear, as who erases says.
	Gone []string
	// Transport is how long the transport keeps messages: the longest of the
	// topic's and the subscriptions' retention, 0 for a socket; nil: not told.
	Transport *time.Duration
	// Indexes are those that were built of the vault: what was erased is taken
	// out of each.
	Indexes []Index
}

// Index is a place that holds content of records in clear, and can take out of
// it what was sealed with the keys. To do so again is no error.
type Index interface {
	Purge(ctx context.Context, keys []vault.ErasedKey) (rows int64, err error)
	String() string
}

// Journal is the part of a gateway's figures that an erasure looks at.
type Journal struct {
	// Epoch is the one that the gateway runs.
	Epoch string
	// Files has for each epoch the first sequence in the oldest file that the
	// journal has not freed.
	Files map[string]uint64
}

// Finish goes on with an erasure that was cut off, and completes it where
// nothing can bring a key back any more. What stands against that is returned.
func Finish(ctx context.Context, v Vault, e Eraser, x *vault.Erasure, c Clear, o Options) (pending []string, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	now := o.Now().UTC().Truncate(time.Second)
	if err := heldNow(ctx, v, x); err != nil {
		return nil, err
	}
	if err := destroy(ctx, v, e, x); err != nil {
		return nil, err
	}
	// Whatever was on its way to the key store when the tombstones came.
	for _, k := range x.Keys {
		epoch, id, err := k.Parse()
		if err != nil {
			return nil, err
		}
		var erased *keyring.ErasedError
		if _, err := keyring.Read(ctx, v, epoch, id); !errors.As(err, &erased) {
			if err != nil && !errors.Is(err, record.ErrNoKey) && !errors.Is(err, keyring.ErrWrong) {
				return nil, err
			}
			pending = append(pending, fmt.Sprintf("the key %s is there again", retention.KeyText(epoch, id)))
		}
	}
	checks := []string{fmt.Sprintf("%d wrapped keys are gone from the key store, a tombstone stands for each", len(x.Keys))}
	for _, i := range c.Indexes {
		rows, err := i.Purge(ctx, x.Keys)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			pending = append(pending, fmt.Sprintf("index %s: what was erased may still be in it: %v", i, err))
		default:
			checks = append(checks, fmt.Sprintf("index %s holds no row of it (%d were taken out now)", i, rows))
		}
	}
	if len(c.Indexes) == 0 {
		checks = append(checks, "no index was named")
	}
	for _, gateway := range gateways(x) {
		ok, bad := c.journal(x, gateway)
		checks, pending = append(checks, ok...), append(pending, bad...)
	}
	switch end := x.Time; {
	case c.Transport == nil:
		pending = append(pending, "transport: how long it keeps messages is not told: --transport-retention 0 for a socket, else the longest retention of the topic and its subscriptions")
	case now.Before(end.Add(*c.Transport)):
		pending = append(pending, fmt.Sprintf("transport: its messages may be delivered again until %s", end.Add(*c.Transport).Format(time.RFC3339)))
	default:
		checks = append(checks, fmt.Sprintf("the transport keeps messages for %s, which is over", *c.Transport))
	}
	if len(pending) > 0 {
		return pending, nil
	}
	done := vault.Completion{ID: x.ID, Time: now, By: o.By, Checks: checks}
	b, err := done.Sign(o.Signers...)
	if err != nil {
		return nil, err
	}
	err = v.Create(ctx, vault.CompletionName(x.ID), bytes.NewReader(b))
	if errors.Is(err, vault.ErrConflict) {
		err = nil // completed before
	}
	return nil, err
}

func gateways(x *vault.Erasure) []string {
	var names []string
	for _, k := range x.Keys {
		if !slices.Contains(names, k.Gateway) {
			names = append(names, k.Gateway)
		}
	}
	slices.Sort(names)
	return names
}

// journal judges whether a gateway's journal may still hold a key.
func (c *Clear) journal(x *vault.Erasure, gateway string) (ok, pending []string) {
	if slices.Contains(c.Gone, gateway) {
		return []string{"journal of gateway " + gateway + ": clear, as who erases says"}, nil
	}
	j, asked := c.Journals[gateway]
	if !asked {
		return nil, []string{fmt.Sprintf("journal of gateway %s: not asked: give --gateway-stats URL, or --cleared %s where the gateway and its journal are gone", gateway, gateway)}
	}
	var held []string
	runs := false
	for _, k := range x.Keys {
		if k.Gateway != gateway {
			continue
		}
		// The key's frame lies right before the first record that it sealed.
		if first, there := j.Files[k.Epoch]; there && first <= k.First {
			if !slices.Contains(held, k.Epoch) {
				held = append(held, k.Epoch)
			}
		}
		runs = runs || k.Epoch == j.Epoch
	}
	if len(held) == 0 {
		return []string{"journal of gateway " + gateway + ": holds no file with a key of it"}, nil
	}
	text := fmt.Sprintf("journal of gateway %s: a file that is not freed yet holds a key's frame (epoch %s): it goes when its records have been shipped and the journal has gone on to the next file", gateway, strings.Join(held, ", "))
	if runs {
		text += ", or when the gateway restarts"
	}
	return nil, []string{text}
}
