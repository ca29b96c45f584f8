package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"

	"verbatim.dev/recorder/ownreads"
	"verbatim.dev/recorder/record"
)

// partRecords is how many results a record of reading names; a longer answer
// is several records, each durable before what it names is printed.
const (
	partRecords = 500
	partBytes   = 1 << 20 // of what is held meanwhile
)

func (f *flags) readsFlags(p *where) {
	f.StringVar(&p.why, "why", "", "the `REASON` of the reading, which is put on record")
	f.StringVar(&p.reads, "reads", "", "with a keyset: the folder `DIR` where the reading is put on record, in the name of the user of this machine; else $VERBATIM_READS, else VAULT.reads beside a vault that is a folder, else one in the folder of your configuration")
}

// reads puts on record what this command reads with a keyset. Nil, it records
// nothing: without a keyset nothing is read but what stands outside the seal.
type reads struct {
	log   *ownreads.Log
	dir   string
	why   string
	first string
	part  int
}

// readsDir is where reads of the vault are put on record.
func (f *flags) readsDir(p *where) (string, error) {
	if p.reads != "" {
		return p.reads, nil
	}
	if dir := os.Getenv("VERBATIM_READS"); dir != "" {
		return dir, nil
	}
	if dir := p.spec.Folder(); dir != "" {
		dir, err := filepath.Abs(dir)
		return dir + ".reads", err
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(p.vault))
	return filepath.Join(config, "verbatim", "reads", hex.EncodeToString(sum[:8])), nil
}

// record begins to put reads on record. Close it when done. Call open first.
func (f *flags) record(ctx context.Context, p *where) (*reads, error) {
	if p.keyset == "" {
		return nil, nil
	}
	tenant, err := f.tenant(ctx, p)
	if err != nil {
		return nil, err
	}
	dir, err := f.readsDir(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	l, err := ownreads.Open(ctx, ownreads.Config{Dir: dir, Tenant: tenant, Reader: localUser(), UserAgent: "recorder/" + record.Build})
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w (--reads DIR names another folder)", err)
		}
		return nil, fmt.Errorf("%s: nothing is read, for it cannot be put on record: %w", f.name, err)
	}
	return &reads{log: l, dir: dir, why: p.why}, nil
}

// give makes durable that these records are given out. Nothing of them may be
// printed before it returns nil.
func (r *reads) give(ctx context.Context, what record.AccessTo, ids []string) error {
	if r == nil {
		return nil
	}
	a := record.Access{What: what, Role: "keyset", Why: r.why, Records: ids, Part: r.part, Of: r.first}
	id, err := r.log.Record(ctx, a)
	if err != nil {
		return fmt.Errorf("nothing is given out, for it cannot be put on record: %w", err)
	}
	if r.part++; r.first == "" {
		r.first = id.String()
	}
	return nil
}

// each gives an answer of any length in parts.
func (r *reads) each(ctx context.Context, what record.AccessTo, ids []string) error {
	for first := true; first || len(ids) > 0; first = false {
		n := min(len(ids), partRecords)
		if err := r.give(ctx, what, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// Close brings the records into their vault, where the next command does so if
// this one could not: they are durable.
func (r *reads) Close(ctx context.Context) error {
	if r == nil {
		return nil
	}
	if err := r.log.Close(ctx); err != nil && !errors.Is(err, ownreads.ErrBehind) {
		return err
	}
	return nil
}

// localUser is the user as the machine has him.
func localUser() record.LocalUser {
	u := record.LocalUser{UID: fmt.Sprint(os.Getuid())}
	u.User = "uid " + u.UID
	if x, err := user.Current(); err == nil {
		u.User = x.Username
	}
	u.Host, _ = os.Hostname() // empty where it has none
	return u
}

// held holds what is printed until it is on record.
type held[T any] struct {
	reads *reads
	what  record.AccessTo
	emit  func(T) error
	id    func(T) (id string, bytes int)
	items []T
	bytes int
	ids   []string
	given bool
}

func (h *held[T]) add(ctx context.Context, x T) error {
	if h.reads == nil {
		return h.emit(x)
	}
	id, n := h.id(x)
	h.items, h.ids = append(h.items, x), append(h.ids, id)
	if h.bytes += n; len(h.items) >= partRecords || h.bytes >= partBytes {
		return h.give(ctx)
	}
	return nil
}

func (h *held[T]) give(ctx context.Context) error {
	h.given = true
	if err := h.reads.give(ctx, h.what, h.ids); err != nil {
		return err
	}
	for _, x := range h.items {
		if err := h.emit(x); err != nil {
			return err
		}
	}
	clear(h.items)
	h.items, h.ids, h.bytes = h.items[:0], nil, 0
	return nil
}

// end gives the rest; that nothing was found is put on record too.
func (h *held[T]) end(ctx context.Context) error {
	if h.reads == nil || h.given && len(h.items) == 0 {
		return nil
	}
	return h.give(ctx)
}
