// Package vault is where records rest for good: objects with names, written
// once, never changed.
//
// The rule of this folder: what [Vault.Create] has returned nil for is durable
// and complete under its name, and nothing ever changes it. Nothing removes it
// either, but for [Folder.Expire] a segment whose retention is over, and for
// [Folder.EraseKey] a wrapped key, whose [Tombstone] stays. The names are pure
// functions ([SegmentName], [KeyName]) of what the objects hold, so a sink that
// crashed and does its work again writes the same bytes under the same names.
//
// A segment covers the records of one epoch from after one cut checkpoint to
// and including the next. Its file is
//
//	verbatim segment 2\n
//	{"gateway":"G","epoch":"E","first":N,"last":N,"head":"HEX","class":"C","expires":T,"records":N}\n
//	frames, back to back, as the gateway stored them, without key frames
//
// where head is the epoch's chain head before the record first, records counts
// the records that are held whole and expires is when the retention of the last
// of them ends (Unix seconds, 0 for never).
//
// A file holds whole records of one retention class only. Where a segment's
// records are of several, those of each other class lie in a part, a file of
// the same form and range that ends in .part and has neither checkpoints nor
// anything in place of what it leaves out. The segment itself has, in the place
// of each such record, an absence: its sequence, time, class, expiry and leaf
// digest ([KindAbsent]). So every segment is dense, its chain can be verified by
// itself, and goes on to be when the parts are gone. The header's classes lists
// the classes of absences, which refer to it by index. The class of the segment
// itself is the one with the longest retention: the vault's ([Set.Longest]), or
// where places are not told apart the one of its records that expires last. Most
// segments are of one class and have no part. Parts are written first, so that
// a segment that is there has its parts.
//
// Bodies are sealed and so do not compress; a segment is not compressed either,
// for then its bytes would depend on the version of the compressor, and two
// sinks would not write the same ones.
//
// A copy of each epoch's open record rests beside the segments ([EpochName]): no
// retention ends it, so that the epoch's checkpoints can be verified as long as
// any is left.
//
// Wrapped data keys rest apart, one object each, so that a key can be erased
// without touching a segment; so do holds. Both must be erasable, so in Cloud
// Storage they need a bucket without retention, while each retention class has
// a bucket of its own: a [Set] puts these places together to one vault.
//
// Under salvage/ rest notes about epochs whose journal was lost ([Salvage]), and
// what came of them and cannot be chained ([AsideName]).
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
