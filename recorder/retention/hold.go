// Package retention ends the retention of records, and holds them beyond it.
//
// Its rules: what is deleted has expired by what the records themselves say,
// never by a name or a header; nothing under a hold is deleted, and where it
// cannot be told whether a hold covers a record it does; a note of what goes is
// durable before it goes. Holds are never changed: one that is lifted has a
// record of that beside it.
package retention

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Vault is the part of a vault that holds and expiry need, see [vault.Vault].
type Vault interface {
	Create(ctx context.Context, name string, r io.Reader) error
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

const (
	holdExt    = ".json"
	removedExt = ".removed.json"
	maxHold    = 4 << 20
)

// Hold keeps records beyond their retention, and their keys from being erased.
// It names one of: a session, an exchange, a range of time.
type Hold struct {
	Version  int       `json:"version"` // 1
	ID       string    `json:"id"`
	Created  time.Time `json:"created"`
	By       string    `json:"by"` // as they say
	Reason   string    `json:"reason"`
	Session  string    `json:"session,omitempty"`
	Exchange string    `json:"exchange,omitempty"` // a receipt, EPOCH-SEQUENCE
	From     time.Time `json:"from,omitzero"`      // of a range; zero: from the first record on
	Until    time.Time `json:"until,omitzero"`     // its end, not in it; zero: for ever
	// Keys are the data keys of the session, EPOCH/KEYID, as far as its records
	// were in the vault when the hold was added. Records that are younger than
	// the hold are all taken for the session's.
	Keys []string `json:"keys,omitempty"`

	Removed *Removal `json:"-"` // how it was lifted, nil while it holds
}

// Removal says that a hold was lifted.
type Removal struct {
	Version int       `json:"version"` // 1
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
}

// ErrNoHold means that there is no hold of that id, or no longer.
var ErrNoHold = errors.New("no such hold")

// check refuses a hold that says not what it is for.
func (h *Hold) check() error {
	n := 0
	for _, set := range []bool{h.Session != "", h.Exchange != "", !h.From.IsZero() || !h.Until.IsZero()} {
		if set {
			n++
		}
	}
	switch {
	case n != 1:
		return errors.New("a hold is on one of: a session, an exchange, a range of time")
	case strings.TrimSpace(h.Reason) == "" || strings.TrimSpace(h.By) == "":
		return errors.New("a hold says why, and who asks for it")
	case !h.Until.IsZero() && !h.From.Before(h.Until):
		return fmt.Errorf("the range ends at %s, before it begins", h.Until.Format(time.RFC3339))
	}
	if h.Exchange != "" {
		if _, err := record.ParseID(h.Exchange); err != nil {
			return err
		}
	}
	return nil
}

// Covers reports whether the hold covers a record, or may.
func (h *Hold) Covers(e record.Epoch, f *record.Frame) bool {
	if h.Removed != nil {
		return false
	}
	switch {
	case h.Exchange != "":
		id, err := record.ParseID(h.Exchange)
		return err != nil || id.Epoch == e && f.Exchange == id.Sequence
	case h.Session != "":
		if !f.Time.Before(h.Created) {
			return true
		}
		return f.Key != (record.KeyID{}) && slices.Contains(h.Keys, KeyText(e, f.Key))
	}
	return !f.Time.Before(h.From) && (h.Until.IsZero() || f.Time.Before(h.Until))
}

// KeyText names a data key as holds do.
func KeyText(e record.Epoch, k record.KeyID) string {
	return e.String() + "/" + hex.EncodeToString(k[:])
}

// Add stores a hold under a fresh id, which it sets.
func Add(ctx context.Context, v Vault, h *Hold) error {
	var random [5]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	h.Version, h.Created = 1, h.Created.UTC().Truncate(time.Second)
	h.ID = h.Created.Format("20060102t150405z") + "-" + hex.EncodeToString(random[:])
	if err := h.check(); err != nil {
		return fmt.Errorf("hold: %w", err)
	}
	return put(ctx, v, vault.HoldsPrefix+h.ID+holdExt, h)
}

// Remove lifts a hold.
func Remove(ctx context.Context, v Vault, r Removal) error {
	all, err := Holds(ctx, v)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(h *Hold) bool { return h.ID == r.ID && h.Removed == nil })
	if i < 0 {
		return fmt.Errorf("hold %s: %w", r.ID, ErrNoHold)
	}
	if strings.TrimSpace(r.Reason) == "" || strings.TrimSpace(r.By) == "" {
		return errors.New("hold: its removal says why, and who asks for it")
	}
	r.Version, r.Time = 1, r.Time.UTC().Truncate(time.Second)
	return put(ctx, v, vault.HoldsPrefix+r.ID+removedExt, r)
}

func put(ctx context.Context, v Vault, name string, value any) error {
	b, err := json.MarshalIndent(value, "", " ")
	if err != nil {
		return err
	}
	return v.Create(ctx, name, bytes.NewReader(append(b, '\n')))
}

// HoldError says what is wrong with a file among the holds.
type HoldError struct {
	Name string // of the file
	Err  error
}

func (e *HoldError) Error() string { return fmt.Sprintf("holds: %s: %v", e.Name, e.Err) }

// Unwrap returns what is wrong.
func (e *HoldError) Unwrap() error { return e.Err }

// Reader is what is needed of a vault to read holds.
type Reader interface {
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Holds returns all holds, also those that were lifted, oldest first. A file
// that is none is a [HoldError]: it may be a hold.
func Holds(ctx context.Context, v Reader) ([]*Hold, error) {
	byID := map[string]*Hold{}
	var removals []Removal
	for name, err := range v.List(ctx, vault.HoldsPrefix) {
		if err != nil {
			return nil, fmt.Errorf("holds: %w", err)
		}
		file := strings.TrimPrefix(name, vault.HoldsPrefix)
		if id, ok := strings.CutSuffix(file, removedExt); ok {
			var r Removal
			if err := get(ctx, v, name, &r); err != nil {
				return nil, err
			}
			if r.Version != 1 || r.ID != id {
				return nil, &HoldError{name, fmt.Errorf("is no removal of hold %s", id)}
			}
			removals = append(removals, r)
			continue
		}
		h := &Hold{}
		if err := get(ctx, v, name, h); err != nil {
			return nil, err
		}
		if err := h.check(); err != nil || h.Version != 1 || h.ID+holdExt != file {
			return nil, &HoldError{name, fmt.Errorf("is no hold: %w", cmp.Or(err, errors.New("its id or version is another")))}
		}
		byID[h.ID] = h
	}
	for _, r := range removals {
		if h := byID[r.ID]; h != nil {
			h.Removed = &r
		}
	}
	var all []*Hold
	for _, h := range byID {
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b *Hold) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

func get(ctx context.Context, v Reader, name string, into any) error {
	r, err := v.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("holds: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxHold))
	if err != nil {
		return fmt.Errorf("holds: %s: %w", name, err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return &HoldError{name, err}
	}
	return nil
}

// Opener opens sealed bodies, see keyring.
type Opener interface {
	Open(ctx context.Context, e record.Epoch, f *record.Frame) ([]byte, error)
}

// SessionKeys finds the data keys of a session: a key is of one session and one
// epoch, so one record of each key is opened. A record that does not open is
// skipped and counted.
func SessionKeys(ctx context.Context, v Vault, o Opener, session string) (keys []string, unread int, err error) {
	seen := map[string]bool{}
	err = files(ctx, v, func(name string, id vault.Segment, r *vault.SegmentReader) error {
		for {
			f, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if f.Kind != record.KindIntent && f.Kind != record.KindReceived && f.Kind != record.KindOutcome && f.Kind != record.KindAccess || f.Key == (record.KeyID{}) {
				continue
			}
			text := KeyText(id.Epoch, f.Key)
			if seen[text] {
				continue
			}
			seen[text] = true
			b, err := o.Open(ctx, id.Epoch, &f)
			if err != nil {
				if ctx.Err() != nil {
					return err
				}
				unread++
				continue
			}
			var body struct {
				Session  string `json:"session"` // of a received or access record
				Verbatim struct {
					Session string `json:"session"`
				} `json:"verbatim"`
			}
			if json.Unmarshal(b, &body) == nil && cmp.Or(body.Session, body.Verbatim.Session) == session {
				keys = append(keys, text)
			}
		}
	})
	return keys, unread, err
}

// files calls do for each file of each segment, in the order of their names.
func files(ctx context.Context, v Vault, do func(name string, id vault.Segment, r *vault.SegmentReader) error) error {
	for name, err := range v.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return err
		}
		id, err := vault.ParseSegmentName(name)
		if err != nil {
			continue // verify says so
		}
		err = func() error {
			f, err := v.Open(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := vault.ReadSegment(name, f)
			if err != nil {
				return err
			}
			return do(name, id, r)
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// Covered calls do for each file of a segment that holds a record which the
// hold covers.
func Covered(ctx context.Context, v Vault, h *Hold, do func(name string) error) error {
	return files(ctx, v, func(name string, id vault.Segment, r *vault.SegmentReader) error {
		for {
			f, err := r.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if f.Kind.Leaf() && h.Covers(id.Epoch, &f) {
				return do(name)
			}
		}
	})
}
