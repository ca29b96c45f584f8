package ledger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Erasure is an erasure as its note says, and how far it has come.
type Erasure struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Scope  string    `json:"scope"`
	Keys   int       `json:"keys"`
	// SignedBy is the trusted key that signed the note. It is empty where none
	// did, or no trust was given: then anybody who may write the vault can have
	// put the note there.
	SignedBy string `json:"signed_by,omitempty"`
	// Unfinished counts keys that are still there, or have no tombstone: the
	// erasure was cut off, or a key came back.
	Unfinished int `json:"unfinished,omitempty"`
	// Complete is when it was found that nothing can bring a key back.
	Complete *time.Time `json:"complete,omitempty"`
}

// erasures are the notes of a vault.
type erasures struct {
	notes map[string]*Erasure // by id; nil for one that is not right
	keys  map[seenKey]string  // id by key
}

// readErasures reads the notes that are there at the begin. Later ones are read
// when a key is missing.
func (c *verifier) readErasures() error {
	c.erasures = erasures{notes: map[string]*Erasure{}, keys: map[seenKey]string{}}
	for path, err := range c.vault.List(c.ctx, vault.ErasuresPrefix) {
		if err != nil {
			return fmt.Errorf("list the vault's erasures: %w", err)
		}
		id, done, err := vault.ParseErasureName(path)
		if err != nil {
			c.find(ErasureWrong, place{name: Name{Path: path}}, "%v", err)
			continue
		}
		if !done {
			if _, err := c.erasure(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// erasure returns the note of that id, nil where there is none that is right,
// which is found once.
func (c *verifier) erasure(id string) (*Erasure, error) {
	if x, ok := c.erasures.notes[id]; ok {
		return x, nil
	}
	name := vault.ErasureName(id)
	wrong := func(format string, args ...any) (*Erasure, error) {
		c.find(ErasureWrong, place{name: Name{Path: name}}, format, args...)
		c.erasures.notes[id] = nil
		return nil, nil
	}
	b, err := c.small(name, vault.MaxErasure)
	if errors.Is(err, fs.ErrNotExist) {
		return wrong("a key's tombstone says that it was erased by erasure %s, of which there is no note: it was taken away, or somebody else removed the key", id)
	}
	if err != nil {
		return nil, err
	}
	note, err := vault.ParseErasure(b)
	if err != nil {
		return wrong("%v", err)
	}
	if note.ID != id {
		return wrong("the note is that of erasure %s", note.ID)
	}
	x := &Erasure{ID: id, Time: note.Time, By: note.By, Reason: note.Reason, Scope: note.Scope, Keys: len(note.Keys)}
	if c.options.Trust != nil {
		if _, by, err := c.options.Trust.Signed(b, note.Time); err == nil {
			x.SignedBy = by
		}
	}
	for _, k := range note.Keys {
		e, key, err := k.Parse()
		if err != nil {
			return wrong("%v", err)
		}
		c.erasures.keys[seenKey{e, key}] = id
	}
	c.erasures.notes[id] = x
	return x, nil
}

// small reads a note, and of a longer one a byte beyond the limit. An error is
// [fs.ErrNotExist] where there is none.
func (c *verifier) small(name string, limit int64) ([]byte, error) {
	r, err := c.vault.Open(c.ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// missing judges a key that is not there: it was erased, as a note says, or it
// is missing.
func (c *verifier) missing(e *epoch, f *record.Frame, at place) error {
	k := seenKey{e.id, f.Key}
	if _, noted := c.erasures.keys[k]; !noted {
		_, err := keyring.Read(c.ctx, c.vault, e.id, f.Key)
		var erased *keyring.ErasedError
		switch {
		case errors.As(err, &erased):
			id := erased.Tombstone.Erasure
			x, err := c.erasure(id)
			if err != nil || x == nil {
				return err
			}
			if c.erasures.keys[k] != id {
				c.find(ErasureWrong, at, "the tombstone of the record's key %x cites erasure %s, whose note does not have the key", f.Key, id)
				return nil
			}
		case errors.Is(err, keyring.ErrWrong):
			c.find(KeyWrong, at, "the record's %v", err)
			return nil
		case err != nil && !errors.Is(err, record.ErrNoKey):
			return err
		default:
			c.lost(e, f, at)
			return nil
		}
	}
	c.report.KeysErased++
	return nil
}

// finishErasures looks how far each erasure has come.
func (c *verifier) finishErasures() error {
	keys := map[string][]seenKey{}
	for k, id := range c.erasures.keys {
		keys[id] = append(keys[id], k)
	}
	for _, id := range slices.Sorted(maps.Keys(c.erasures.notes)) {
		x := c.erasures.notes[id]
		if x == nil {
			continue
		}
		b, err := c.small(vault.CompletionName(id), vault.MaxErasure)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		default:
			done, err := vault.ParseCompletion(b)
			if err != nil || done.ID != id {
				c.find(ErasureWrong, place{name: Name{Path: vault.CompletionName(id)}}, "is no completion of erasure %s (%v)", id, err)
				break
			}
			x.Complete = &done.Time
		}
		for _, k := range keys[id] {
			_, err := keyring.Read(c.ctx, c.vault, k.epoch, k.key)
			var erased *keyring.ErasedError
			switch {
			case errors.As(err, &erased):
			case err == nil, errors.Is(err, record.ErrNoKey), errors.Is(err, keyring.ErrWrong):
				x.Unfinished++
			default:
				return err
			}
		}
		c.report.Erasures = append(c.report.Erasures, *x)
	}
	return nil
}
