package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/vault"
)

// Purged says what a purge took away.
type Purged struct {
	Rows  int64
	Files int64 // that were written anew or removed
}

// mostTries is how often a file is read anew because a build changed it.
const mostTries = 20

// Purge takes away the rows that the erased keys sealed: each file that held
// one is written anew, with new dictionaries and statistics, in the place of
// the old. It may run beside a build, and be done again. Where the place keeps
// what was there the error wraps [ErrKept].
//
// A row goes where one of its keys was erased. Call it when the note of the
// erasure is durable: builds then find the note, or leave their rows to this.
func Purge(ctx context.Context, s Store, keys []vault.ErasedKey) (Purged, error) {
	e := erased{}
	e.add(keys)
	p, err := purge(ctx, &Config{Store: s}, e)
	if err == nil {
		err = s.Forget(ctx)
	}
	if err != nil {
		return p, fmt.Errorf("purge: %w", err)
	}
	return p, nil
}

func purge(ctx context.Context, c *Config, e erased) (Purged, error) {
	var p Purged
	for name, err := range c.Store.List(ctx, RowsPrefix) {
		if err != nil {
			return p, err
		}
		f, err := parseFile(name)
		if err == nil && e[f.Epoch.String()] == nil {
			continue
		}
		if err != nil {
			return p, fmt.Errorf("%w: it may hold what was erased: take it away", err)
		}
		n, err := rewrite(ctx, c, name, func(r *Row) bool { return !e.of(r) })
		if n > 0 {
			p.Rows += int64(n)
			p.Files++
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// rewrite writes a file anew without the rows that are not kept, and returns
// how many these were. keep may be called several times for a row.
func rewrite(ctx context.Context, c *Config, name string, keep func(*Row) bool) (int, error) {
	for try := 1; ; try++ {
		content, v, err := c.Store.Read(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		n := 0
		var left []*Row
		err = decode(content, func(r *Row) error {
			if keep(r) {
				left = append(left, r)
			} else {
				n++
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("%s: %w: run recorder index rebuild", name, err)
		}
		if n == 0 {
			return 0, nil
		}
		_, _, err = store(ctx, c, name, v, left)
		if errors.Is(err, ErrChanged) && try < mostTries {
			continue
		}
		return n, err
	}
}

func readErasure(ctx context.Context, v ledger.Vault, name string) (*vault.Erasure, error) {
	r, err := v.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, vault.MaxErasure+1))
	if err != nil {
		return nil, err
	}
	x, err := vault.ParseErasure(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return x, nil
}
