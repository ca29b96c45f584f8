package vault

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/record"
)

// An erasure destroys wrapped data keys, so that what they sealed can be read
// by nobody any more, while each of its bytes stays where it is and every proof
// holds. It leaves, in this order,
//
//	erasures/ID.note        who erases what, and why, with the list of keys; with
//	                        the segments, where nothing is ever deleted
//	keys/EPOCH/KEYID.erased a tombstone for each key; the sink stores no key that
//	                        has one
//	erasures/ID.done.note   that nothing can bring a key back any more
//
// None of them holds personal data, as far as who erases writes none into the
// reason: a session or a principal is not named.

const (
	erasureHeader = "verbatim.dev/erasure/v1"
	doneHeader    = "verbatim.dev/erasure-complete/v1"
	noteExt       = ".note"
	doneExt       = ".done.note"

	// MaxErasure is the largest erasure note, in bytes; MaxErased is how many
	// keys one may list.
	MaxErasure = 8 << 20
	MaxErased  = 20_000
	// MaxTombstone is the largest tombstone, in bytes.
	MaxTombstone = 16 << 10
	// MaxReason is the longest reason, and name of who erases, in bytes.
	MaxReason = 2000
)

// The scopes of erasures.
const (
	ScopeSession   = "session"
	ScopeExchange  = "exchange"
	ScopePrincipal = "principal"
)

// Tombstone stands in the place of a wrapped key that was erased.
type Tombstone struct {
	Version int       `json:"version"` // 1
	Erasure string    `json:"erasure"` // its id
	Epoch   string    `json:"epoch"`
	Key     string    `json:"key"` // hex
	Time    time.Time `json:"time"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
}

// Marshal returns the tombstone's bytes.
func (t *Tombstone) Marshal() ([]byte, error) {
	b, err := json.Marshal(t)
	return append(b, '\n'), err
}

// ParseTombstone reads the tombstone of a key.
func ParseTombstone(b []byte, e record.Epoch, id record.KeyID) (*Tombstone, error) {
	var t Tombstone
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	switch err := dec.Decode(&t); {
	case err != nil:
		return nil, fmt.Errorf("tombstone %s: %w", TombstoneName(e, id), err)
	case t.Version != 1:
		return nil, fmt.Errorf("tombstone %s: version %d, this program reads 1", TombstoneName(e, id), t.Version)
	case t.Epoch != e.String() || t.Key != hex.EncodeToString(id[:]):
		return nil, fmt.Errorf("tombstone %s: it is that of another key", TombstoneName(e, id))
	case checkErasureID(t.Erasure) != nil:
		return nil, fmt.Errorf("tombstone %s: names no erasure", TombstoneName(e, id))
	}
	return &t, nil
}

// Erasure is what an erasure note says.
type Erasure struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	By     string    `json:"by"` // who erases, as they say
	Reason string    `json:"reason"`
	// Scope is what was selected: [ScopeSession], [ScopeExchange] (with the
	// whole session that shares its key) or [ScopePrincipal].
	Scope    string      `json:"scope"`
	Exchange string      `json:"exchange,omitempty"` // the receipt, where the scope is one
	Keys     []ErasedKey `json:"keys"`               // in the order of epochs and ids
}

// ErasedKey is a data key with what it sealed in the vault when it was erased.
type ErasedKey struct {
	Epoch     string `json:"epoch"`
	Key       string `json:"key"` // hex
	Gateway   string `json:"gateway"`
	First     uint64 `json:"first"` // sequences of the first and last record
	Last      uint64 `json:"last"`
	Records   uint64 `json:"records"`
	Exchanges uint64 `json:"exchanges"`
}

// Parse returns the key's epoch and id.
func (k ErasedKey) Parse() (record.Epoch, record.KeyID, error) {
	return ParseKeyName(KeysPrefix + k.Epoch + "/" + k.Key + keyExt)
}

// Completion says that an erasure is complete.
type Completion struct {
	ID   string    `json:"id"` // of the erasure
	Time time.Time `json:"time"`
	By   string    `json:"by"`
	// Checks say one by one how it is known, in words.
	Checks []string `json:"checks"`
}

// ErasureName returns the name of an erasure's note.
func ErasureName(id string) string { return ErasuresPrefix + id + noteExt }

// CompletionName returns the name of the note that an erasure is complete.
func CompletionName(id string) string { return ErasuresPrefix + id + doneExt }

// ParseErasureName reads what [ErasureName] and [CompletionName] wrote.
func ParseErasureName(name string) (id string, done bool, err error) {
	rest, ok := strings.CutPrefix(name, ErasuresPrefix)
	id, done = strings.CutSuffix(rest, doneExt)
	ok2 := done
	if !done {
		id, ok2 = strings.CutSuffix(rest, noteExt)
	}
	if !ok || !ok2 || checkErasureID(id) != nil {
		return "", false, fmt.Errorf("erasure name %q: want erasures/ID.note or ID.done.note", name)
	}
	return id, done, nil
}

func checkErasureID(id string) error {
	if id == "" || len(id) > 64 || strings.ContainsAny(id, "./=_") || checkElement(id) != nil {
		return fmt.Errorf("erasure id %.80q: want letters, digits and dashes", id)
	}
	return nil
}

// Sign returns the note's bytes. Without a signer it is not signed.
func (x *Erasure) Sign(signers ...note.Signer) ([]byte, error) {
	if err := x.check(); err != nil {
		return nil, err
	}
	return signJSON(erasureHeader, x, signers)
}

// Sign returns the note's bytes. Without a signer it is not signed.
func (c *Completion) Sign(signers ...note.Signer) ([]byte, error) {
	return signJSON(doneHeader, c, signers)
}

func signJSON(header string, v any, signers []note.Signer) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return note.Sign(&note.Note{Text: header + "\n" + string(b) + "\n"}, signers...)
}

func (x *Erasure) check() error {
	switch {
	case checkErasureID(x.ID) != nil:
		return checkErasureID(x.ID)
	case strings.TrimSpace(x.By) == "" || strings.TrimSpace(x.Reason) == "":
		return errors.New("an erasure says who erases, and why")
	case len(x.By) > MaxReason || len(x.Reason) > MaxReason:
		return fmt.Errorf("who erases and why have at most %d bytes", MaxReason)
	case !slices.Contains([]string{ScopeSession, ScopeExchange, ScopePrincipal}, x.Scope):
		return fmt.Errorf("scope %.40q: want session, exchange or principal", x.Scope)
	case len(x.Keys) == 0 || len(x.Keys) > MaxErased:
		return fmt.Errorf("%d keys: want 1 to %d", len(x.Keys), MaxErased)
	}
	for i, k := range x.Keys {
		if _, _, err := k.Parse(); err != nil {
			return fmt.Errorf("key %d: %w", i+1, err)
		}
	}
	return nil
}

// ParseErasure reads an erasure note. Its signature is not looked at.
func ParseErasure(b []byte) (*Erasure, error) {
	x := &Erasure{}
	if err := parseJSON(b, erasureHeader, x); err != nil {
		return nil, fmt.Errorf("erasure note: %w", err)
	}
	if err := x.check(); err != nil {
		return nil, fmt.Errorf("erasure note: %w", err)
	}
	return x, nil
}

// ParseCompletion reads the note that an erasure is complete. Its signature is
// not looked at.
func ParseCompletion(b []byte) (*Completion, error) {
	c := &Completion{}
	if err := parseJSON(b, doneHeader, c); err != nil {
		return nil, fmt.Errorf("erasure's completion: %w", err)
	}
	return c, checkErasureID(c.ID)
}

func parseJSON(b []byte, header string, v any) error {
	if len(b) > MaxErasure {
		return fmt.Errorf("longer than %d bytes", MaxErasure)
	}
	text, _, ok := bytes.Cut(b, []byte("\n\n"))
	first, body, ok2 := bytes.Cut(text, []byte("\n"))
	if !ok || !ok2 || string(first) != header || bytes.IndexByte(body, '\n') >= 0 {
		return fmt.Errorf("want the line %s, a line of JSON, an empty line and signatures", header)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// Export registers an evidence bundle that left the vault with data keys in it:
// exports/ID.json. An erasure lists the bundles that hold a key of its.
type Export struct {
	Version int       `json:"version"` // 1
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	By      string    `json:"by"`
	SHA256  string    `json:"sha256"` // of the bundle's file, hex
	Keys    []string  `json:"keys"`   // EPOCH/KEYID
}

// Name returns the export's name.
func (x *Export) Name() string { return ExportsPrefix + x.ID + ".json" }

// ParseExport reads an export's registration.
func ParseExport(b []byte) (*Export, error) {
	var x Export
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	if x.Version != 1 {
		return nil, fmt.Errorf("export: version %d, this program reads 1", x.Version)
	}
	return &x, nil
}
