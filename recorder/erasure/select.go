// Package erasure makes recorded content unreadable for good, by destroying the
// wrapped data keys that sealed it, and leaves a note of it.
//
// Its rules: no byte of evidence changes, so that every proof holds; nothing
// under a hold is erased; the decision is durable before the first key goes, so
// that what a crash cut off is finished, and verification can tell what was
// erased from what is missing; and an erasure is complete only when nothing can
// bring a key back.
//
// A data key serves one session in one epoch. That is the smallest thing that
// can be erased: an exchange goes with its session.
package erasure

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
)

// Vault is the part of a vault that an erasure reads and writes.
type Vault interface {
	Create(ctx context.Context, name string, r io.Reader) error
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Eraser removes wrapped keys, and nothing else, with all copies that the store
// has of them. To remove what is not there is no error.
type Eraser interface {
	EraseKey(ctx context.Context, name string) error
}

// Selection says what to erase: one of a session, an exchange, a principal.
type Selection struct {
	Session  string
	Exchange record.ID // zero: none
	// Principal is ISSUER/SUBJECT as the records have it.
	Principal string
	// Until, with a principal, leaves out keys that sealed anything from then
	// on.
	Until time.Time
}

func (s *Selection) scope() (string, error) {
	var scopes []string
	if s.Session != "" {
		scopes = append(scopes, vault.ScopeSession)
	}
	if s.Exchange != (record.ID{}) {
		scopes = append(scopes, vault.ScopeExchange)
	}
	if s.Principal != "" {
		scopes = append(scopes, vault.ScopePrincipal)
	}
	switch {
	case len(scopes) != 1:
		return "", errors.New("an erasure is of one of: a session, an exchange, a principal")
	case !s.Until.IsZero() && s.Principal == "":
		return "", errors.New("a time goes with a principal only")
	case s.Principal != "" && !strings.Contains(s.Principal, "/"):
		return "", fmt.Errorf("principal %q: want ISSUER/SUBJECT", s.Principal)
	}
	return scopes[0], nil
}

// Key is a data key that is selected.
type Key struct {
	vault.ErasedKey
	From, To time.Time // of the first and the last record that it sealed
}

// Conflict is a hold that stands against an erasure.
type Conflict struct {
	Hold   *retention.Hold
	Key    vault.ErasedKey
	Record record.ID // the first that the hold covers
}

// Plan is what an erasure would do.
type Plan struct {
	Scope    string
	Exchange string
	Keys     []Key
	// Later are keys of the principal that sealed records of the given time or
	// later too, and so stay.
	Later []Key
	// Erased are keys of the selection that were erased before.
	Erased []vault.ErasedKey
	// Behalf counts keys of others that acted on behalf of the principal: they
	// stay.
	Behalf int
	// Gone and Unread count keys that could not be opened, because they are
	// not there or for another reason: whether they are of the selection is
	// not known.
	Gone, Unread int
	// Damage says what could not be read: something of the selection may be
	// in it.
	Damage    []error
	Conflicts []Conflict
	Exports   []*vault.Export // evidence bundles that hold a key of the selection
}

// keyID names a data key.
type keyID struct {
	epoch record.Epoch
	key   record.KeyID
}

// sealed is what a data key sealed.
type sealed struct {
	id       keyID
	gateway  string
	from, to time.Time
	first    uint64
	last     uint64
	records  uint64
	begun    uint64 // exchanges

	known    bool // a body told whose it is
	selected bool
	behalf   bool
	why      error // why its bodies do not open
}

func (s *sealed) erased() vault.ErasedKey {
	return vault.ErasedKey{
		Epoch: s.id.epoch.String(), Key: hex.EncodeToString(s.id.key[:]), Gateway: s.gateway,
		First: s.first, Last: s.last, Records: s.records, Exchanges: s.begun,
	}
}

// Find reads the vault and plans the erasure. Keys opens bodies; it may be nil
// where an exchange is selected, which the frames name in clear. Holds are all
// that there are.
func Find(ctx context.Context, v Vault, keys ledger.Opener, s Selection, holds []*retention.Hold) (*Plan, error) {
	scope, err := s.scope()
	if err != nil {
		return nil, fmt.Errorf("erasure: %w", err)
	}
	if keys == nil && scope != vault.ScopeExchange {
		return nil, errors.New("erasure: whose a record is stands in what is sealed: the tenant's keyset is needed")
	}
	p := &Plan{Scope: scope}
	if scope == vault.ScopeExchange {
		p.Exchange = s.Exchange.String()
	}
	all := map[keyID]*sealed{}
	p.Damage, err = frames(ctx, v, func(n ledger.Name, f *record.Frame) error {
		k := all[keyID{n.Epoch, f.Key}]
		if k == nil {
			k = &sealed{id: keyID{n.Epoch, f.Key}, gateway: n.Gateway, first: f.Sequence, from: f.Time}
			all[k.id] = k
		}
		k.last, k.to = f.Sequence, f.Time
		k.records++
		if f.Exchange == f.Sequence {
			k.begun++
		}
		if scope == vault.ScopeExchange {
			k.selected = k.selected || n.Epoch == s.Exchange.Epoch && f.Exchange == s.Exchange.Sequence
			return nil
		}
		return s.look(ctx, keys, k, f)
	})
	if err != nil {
		return nil, fmt.Errorf("erasure: %w", err)
	}
	chosen := map[keyID]*sealed{}
	for _, id := range slices.SortedFunc(maps.Keys(all), compareKeys) {
		k := all[id]
		switch {
		case k.behalf:
			p.Behalf++
		case errors.Is(k.why, record.ErrNoKey) && !k.known:
			p.Gone++
		case k.why != nil && !k.known:
			p.Unread++
		}
		if !k.selected {
			continue
		}
		_, err := keyring.Read(ctx, v, id.epoch, id.key)
		var erased *keyring.ErasedError
		switch {
		case errors.As(err, &erased):
			p.Erased = append(p.Erased, k.erased())
			continue
		case err != nil && !errors.Is(err, record.ErrNoKey) && !errors.Is(err, keyring.ErrWrong):
			return nil, fmt.Errorf("erasure: %w", err)
		}
		if !s.Until.IsZero() && !k.to.Before(s.Until) {
			if k.from.Before(s.Until) {
				p.Later = append(p.Later, Key{k.erased(), k.from, k.to})
			}
			continue
		}
		p.Keys = append(p.Keys, Key{k.erased(), k.from, k.to})
		chosen[id] = k
	}
	if len(chosen) == 0 {
		return p, nil
	}
	if p.Conflicts, err = conflicts(ctx, v, holds, func(id keyID) bool { return chosen[id] != nil }); err != nil {
		return nil, fmt.Errorf("erasure: %w", err)
	}
	p.Exports, err = exports(ctx, v, chosen)
	if err != nil {
		return nil, fmt.Errorf("erasure: %w", err)
	}
	return p, nil
}

func compareKeys(a, b keyID) int {
	if c := slices.Compare(a.epoch[:], b.epoch[:]); c != 0 {
		return c
	}
	return slices.Compare(a.key[:], b.key[:])
}

// look finds out whose a key is, from the first record that tells.
func (s *Selection) look(ctx context.Context, keys ledger.Opener, k *sealed, f *record.Frame) error {
	if k.known || k.why != nil && errors.Is(k.why, record.ErrNoKey) {
		return nil
	}
	var session string
	var principal *record.Principal
	switch f.Kind {
	case record.KindReceived, record.KindIntent:
	case record.KindOutcome:
		if s.Session == "" {
			return nil // it names no principal
		}
	default:
		return nil
	}
	b, err := keys.Open(ctx, k.id.epoch, f)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, record.ErrNoKey) && !errors.Is(err, keyring.ErrWrong) && !errors.Is(err, keyring.ErrBody) {
			return err // the vault does not answer
		}
		k.why = err
		return nil
	}
	switch f.Kind {
	case record.KindReceived:
		var r record.Received
		if err = record.Unmarshal(b, &r); err == nil {
			session, principal = r.Session, r.Principal
		}
	case record.KindIntent:
		var i record.Intent
		if err = record.Unmarshal(b, &i); err == nil {
			session, principal = i.Verbatim.Session, i.Verbatim.Principal
		}
	case record.KindOutcome:
		var o record.Outcome
		if err = record.Unmarshal(b, &o); err == nil {
			session = o.Verbatim.Session
		}
	}
	if err != nil {
		k.why = err
		return nil
	}
	if s.Session != "" {
		k.known, k.selected = true, session == s.Session
		return nil
	}
	if principal == nil {
		return nil // nobody was proven, so far
	}
	k.known, k.selected = true, principal.Issuer+"/"+principal.Subject == s.Principal
	for _, a := range principal.OnBehalfOf {
		k.behalf = k.behalf || !k.selected && a.Issuer+"/"+a.Subject == s.Principal
	}
	return nil
}

// frames calls do for each sealed record of the vault, in order. What cannot be
// read is returned as damage.
func frames(ctx context.Context, v Vault, do func(n ledger.Name, f *record.Frame) error) (damage []error, err error) {
	for path, err := range v.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return damage, err
		}
		n, err := ledger.ParseName(path)
		if err != nil {
			damage = append(damage, err)
			continue
		}
		if n.Part {
			continue // read with its segment
		}
		err = segment(ctx, v, n, do, func(err error) { damage = append(damage, err) })
		if err != nil {
			return damage, err
		}
	}
	return damage, nil
}

func segment(ctx context.Context, v Vault, n ledger.Name, do func(n ledger.Name, f *record.Frame) error, damaged func(error)) error {
	var format *vault.SegmentError
	s, err := ledger.OpenSegment(ctx, v, n.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // it expired since the listing
	case errors.As(err, &format):
		damaged(err)
		return nil
	case err != nil:
		return err
	}
	defer s.Close()
	s.OnPart = func(_ string, err error, _ *record.Frame) {
		if !errors.Is(err, fs.ErrNotExist) {
			damaged(err)
		}
	}
	for {
		f, _, err := s.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &format):
			damaged(err)
			return nil
		case err != nil:
			return err
		case !f.Kind.Leaf() || f.Key == (record.KeyID{}):
			continue
		}
		if err := do(n, &f); err != nil {
			return err
		}
	}
}

// conflicts finds the holds that cover a record of the keys, each once.
func conflicts(ctx context.Context, v Vault, holds []*retention.Hold, of func(keyID) bool) ([]Conflict, error) {
	var live []*retention.Hold
	for _, h := range holds {
		if h.Removed == nil {
			live = append(live, h)
		}
	}
	if len(live) == 0 {
		return nil, nil
	}
	var found []Conflict
	said := map[*retention.Hold]bool{}
	// What cannot be read, a hold may be on: but then it is no reading that an
	// erasure takes away. Damage was told already.
	_, err := frames(ctx, v, func(n ledger.Name, f *record.Frame) error {
		if !of(keyID{n.Epoch, f.Key}) {
			return nil
		}
		for _, h := range live {
			if !said[h] && h.Covers(n.Epoch, f) {
				said[h] = true
				k := sealed{id: keyID{n.Epoch, f.Key}, gateway: n.Gateway}
				found = append(found, Conflict{h, k.erased(), record.ID{Epoch: n.Epoch, Sequence: f.Sequence}})
			}
		}
		return nil
	})
	return found, err
}

// exports lists the evidence bundles that hold a key of the selection.
func exports(ctx context.Context, v Vault, chosen map[keyID]*sealed) ([]*vault.Export, error) {
	want := map[string]bool{}
	for id := range chosen {
		want[retention.KeyText(id.epoch, id.key)] = true
	}
	var list []*vault.Export
	for name, err := range v.List(ctx, vault.ExportsPrefix) {
		if err != nil {
			return nil, err
		}
		b, err := read(ctx, v, name, vault.MaxErasure)
		if err != nil {
			return nil, err
		}
		x, err := vault.ParseExport(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if slices.ContainsFunc(x.Keys, func(k string) bool { return want[k] }) {
			list = append(list, x)
		}
	}
	return list, nil
}

func read(ctx context.Context, v Vault, name string, most int64) ([]byte, error) {
	r, err := v.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s: longer than %d bytes", name, most)
	}
	return b, err
}
