// Package vault is where records rest for good: objects with names, written
// once, never changed.
//
// The rule of this folder: what [Vault.Create] has returned nil for is durable
// and complete under its name, and no call of this package ever changes or
// removes it. The names are pure functions ([SegmentName], [KeyName]) of what
// the objects hold, so a sink that crashed and does its work again writes the
// same bytes under the same names.
//
// A segment holds the frames of one epoch from after one cut checkpoint to
// and including the next, without key frames. Its file is
//
//	verbatim segment 1\n
//	{"gateway":"G","epoch":"E","first":N,"head":"HEX"}\n
//	frames, back to back, as the gateway stored them
//
// where head is the epoch's chain head before the record N. Wrapped data keys
// rest apart, one object each, so that a key can be erased without touching a
// segment.
//
// A folder is tamper-evident, not write-once storage: who may write the folder
// may change it, and verification then says so.
package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Vault keeps objects. Implementations are safe for concurrent use.
type Vault interface {
	// Create stores what r gives under the name and returns nil when it is
	// durable. It never replaces an object: where the name is taken, equal
	// content is success and other content is [ErrConflict]. After another
	// error the object is absent or complete, never partial; the caller may try
	// again with the same bytes.
	Create(ctx context.Context, name string, r io.Reader) error
	// Open returns the object's content. It wraps [fs.ErrNotExist] when there
	// is none.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List gives the names that begin with prefix, in byte order. An error ends
	// the listing: what came before it is then not the whole. Objects created
	// meanwhile may or may not be in it.
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// ErrConflict means that the name is taken by other content. Names follow from
// content, so this is an alarm: two writers, or an alteration.
var ErrConflict = errors.New("object exists with other content")

// ErrLocked means that another process writes the vault.
var ErrLocked = errors.New("vault is in use by another writer")

// ErrReadOnly means that the vault was opened for reading.
var ErrReadOnly = errors.New("vault was opened for reading only")

const (
	maxName    = 1024 // the limit of Cloud Storage, in bytes
	maxElement = 255  // NAME_MAX of Linux's file systems
)

// CheckName reports whether a vault takes the name: elements of A-Z, a-z, 0-9
// and ". _ = -", separated by "/", none empty or with a leading dot.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("object name of %d bytes: want 1 to %d", len(name), maxName)
	}
	for e := range strings.SplitSeq(name, "/") {
		if err := checkElement(e); err != nil {
			return fmt.Errorf("object name %q: %w", name, err)
		}
	}
	return nil
}

func checkElement(e string) error {
	switch {
	case e == "":
		return errors.New("an element is empty")
	case e[0] == '.':
		return fmt.Errorf("element %q begins with a dot", e)
	case len(e) > maxElement:
		return fmt.Errorf("an element of %d bytes is longer than %d", len(e), maxElement)
	}
	for i := range len(e) {
		if !nameByte(e[i]) && e[i] != '=' {
			return fmt.Errorf("element %q holds the byte %q", e, e[i])
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}
