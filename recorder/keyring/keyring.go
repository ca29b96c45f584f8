// Package keyring opens sealed bodies with the wrapped data keys that rest in
// a vault.
//
// Its rule: a key is fetched when a body needs it and forgotten when it has not
// been needed for long, so that memory does not grow with the vault; a key that
// is not there is never an error of its own, for keys may be erased, but is
// told apart from one that is wrong.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Source is the part of a vault that keys are read from. Open returns an error
// that wraps [fs.ErrNotExist] for a name that is not there.
type Source interface {
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// Config configures a [Keyring].
type Config struct {
	Source Source
	// Tenant is the tenant's private keyset.
	Tenant *keyset.Handle
	// Keys is how many data keys are kept, 4096 where it is 0.
	Keys int
	// MaxAge is how long at most a key is used before the vault is asked again
	// whether it was erased; 0: for good, as it fits a program that ends soon.
	MaxAge time.Duration
	Now    func() time.Time // nil: time.Now
}

// Keyring opens bodies. It is safe for concurrent use.
type Keyring struct {
	source Source
	tenant *keyset.Handle
	limit  int
	maxAge time.Duration
	now    func() time.Time

	mu sync.Mutex
	// young and old are two generations: when young is full it becomes old,
	// and what old held is forgotten.
	young, old *generation
}

type generation struct {
	opener *record.Opener
	made   time.Time
	keys   map[name]error // nil: the opener has the key; else why it has not
}

type name struct {
	epoch record.Epoch
	key   record.KeyID
}

// New returns a keyring over the keys of a vault.
func New(c Config) (*Keyring, error) {
	k := &Keyring{source: c.Source, tenant: c.Tenant, limit: c.Keys/2 + c.Keys%2, maxAge: c.MaxAge / 2, now: c.Now}
	if k.now == nil {
		k.now = time.Now
	}
	if c.Keys <= 0 {
		k.limit = 2048
	}
	var err error
	if k.young, err = k.generation(); err != nil {
		return nil, err
	}
	k.old = k.young
	return k, nil
}

func (k *Keyring) generation() (*generation, error) {
	o, err := record.NewOpener(k.tenant)
	if err != nil {
		return nil, err
	}
	return &generation{opener: o, keys: map[name]error{}, made: k.now()}, nil
}

// Open returns the frame's plain body. It returns an error that wraps
// [record.ErrNoKey] where the vault does not hold the body's key, [ErrWrong] or
// [ErrBody] where the key or the body is not what it must be, and the vault's
// own error where it does not answer.
func (k *Keyring) Open(ctx context.Context, e record.Epoch, f *record.Frame) ([]byte, error) {
	if f.Key == (record.KeyID{}) {
		return f.Body, nil
	}
	o, err := k.opener(ctx, name{e, f.Key})
	if err != nil {
		return nil, err
	}
	b, err := o.Open(e, f)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBody, err)
	}
	return b, nil
}

func (k *Keyring) opener(ctx context.Context, n name) (*record.Opener, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.age(); err != nil {
		return nil, err
	}
	for _, g := range [...]*generation{k.young, k.old} {
		if err, ok := g.keys[n]; ok {
			return g.opener, err
		}
	}
	f, err := Read(ctx, k.source, n.epoch, n.key)
	if err != nil && !errors.Is(err, record.ErrNoKey) && !errors.Is(err, ErrWrong) {
		return nil, err // the vault did not answer: the next body asks again
	}
	if len(k.young.keys) >= k.limit {
		fresh, err := k.generation()
		if err != nil {
			return nil, err
		}
		k.old, k.young = k.young, fresh
	}
	if err == nil {
		if err = k.young.opener.Add(n.epoch, &f); err != nil {
			err = fmt.Errorf("%w: %s: another tenant's keyset, or the key was changed: %w", ErrWrong, vault.KeyName(n.epoch, n.key), err)
		}
	}
	k.young.keys[n] = err
	return k.young.opener, err
}

// age forgets keys that are older than they may be: after half of that time
// what is young becomes old, and after the other half it is forgotten.
func (k *Keyring) age() error {
	for k.maxAge > 0 && k.now().Sub(k.young.made) >= k.maxAge {
		fresh, err := k.generation()
		if err != nil {
			return err
		}
		if k.now().Sub(k.young.made) >= 2*k.maxAge {
			k.young = fresh // both are too old
		}
		k.old, k.young = k.young, fresh
	}
	return nil
}

// ErasedError means that a key was erased, as its tombstone says. It wraps
// [record.ErrNoKey].
type ErasedError struct{ Tombstone vault.Tombstone }

// Error says who erased the key, and why.
func (e *ErasedError) Error() string {
	t := &e.Tombstone
	return fmt.Sprintf("erased on %s by %s: %s (erasure %s, data key %s)", t.Time.UTC().Format(time.RFC3339), t.By, t.Reason, t.Erasure, t.Key)
}

// Unwrap returns [record.ErrNoKey].
func (e *ErasedError) Unwrap() error { return record.ErrNoKey }

// ErrWrong means that a key's file holds something else than that key, or one
// that is wrapped to another tenant.
var ErrWrong = errors.New("key file is wrong")

// ErrBody means that a sealed body is not what was sealed with its key in its
// place.
var ErrBody = errors.New("body is wrong")

// Read reads the stored frame of one wrapped key. It returns an error that
// wraps [record.ErrNoKey] where the vault does not hold the key, an
// [*ErasedError] where a tombstone stands in its place, one that wraps
// [ErrWrong] where what it holds is not that key, and the vault's own error
// where it does not answer.
func Read(ctx context.Context, s Source, e record.Epoch, id record.KeyID) (record.Frame, error) {
	file := vault.KeyName(e, id)
	r, err := s.Open(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return record.Frame{}, gone(ctx, s, e, id)
	}
	if err != nil {
		return record.Frame{}, fmt.Errorf("key %x: %w", id, err)
	}
	defer r.Close()
	// A wrapped key takes some 150 bytes.
	const most = 64 << 10
	b, err := io.ReadAll(io.LimitReader(r, most))
	if err != nil {
		return record.Frame{}, fmt.Errorf("key %x: %w", id, err)
	}
	f, n, err := record.Decode(b)
	switch {
	case err != nil:
		return record.Frame{}, fmt.Errorf("%w: %s: %w", ErrWrong, file, err)
	case n != len(b):
		return record.Frame{}, fmt.Errorf("%w: %s: more bytes follow the key's frame", ErrWrong, file)
	case f.Kind != record.KindKey:
		return record.Frame{}, fmt.Errorf("%w: %s: holds a %s frame", ErrWrong, file, f.Kind)
	case f.Key != id:
		return record.Frame{}, fmt.Errorf("%w: %s: holds the key %x", ErrWrong, file, f.Key)
	}
	return f, nil
}

// gone says why a key is not there.
func gone(ctx context.Context, s Source, e record.Epoch, id record.KeyID) error {
	r, err := s.Open(ctx, vault.TombstoneName(e, id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %x", record.ErrNoKey, id)
	}
	if err != nil {
		return fmt.Errorf("key %x: %w", id, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, vault.MaxTombstone))
	if err != nil {
		return fmt.Errorf("key %x: %w", id, err)
	}
	t, err := vault.ParseTombstone(b, e, id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrWrong, err)
	}
	return &ErasedError{*t}
}

// Held returns how many keys are in memory.
func (k *Keyring) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.old == k.young {
		return len(k.young.keys)
	}
	return len(k.young.keys) + len(k.old.keys)
}
