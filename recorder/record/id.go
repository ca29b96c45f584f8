package record

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Epoch names one run of one gateway process. Its first 6 bytes are the Unix
// time of its opening in milliseconds, so epochs sort by time; the other 10
// are random.
type Epoch [16]byte

// epochEncoding is Crockford's alphabet in lower case, which keeps the order
// of the bytes and has no letters that read as digits.
var epochEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewEpoch returns a fresh epoch for the time now. It fails only when random,
// usually nil for the system's source, fails.
func NewEpoch(now time.Time, random io.Reader) (Epoch, error) {
	if random == nil {
		random = rand.Reader
	}
	var e Epoch
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(e[:6], ms[2:])
	if _, err := io.ReadFull(random, e[6:]); err != nil {
		return Epoch{}, fmt.Errorf("epoch: %w", err)
	}
	return e, nil
}

// String returns the 26 characters that stand for the epoch in receipts and
// file names.
func (e Epoch) String() string { return epochEncoding.EncodeToString(e[:]) }

// Time returns the moment of the epoch's opening, to the millisecond.
func (e Epoch) Time() time.Time {
	var ms [8]byte
	copy(ms[2:], e[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC()
}

// ParseEpoch reads what [Epoch.String] wrote.
func ParseEpoch(s string) (Epoch, error) {
	var e Epoch
	b, err := epochEncoding.DecodeString(strings.ToLower(s))
	if err != nil || len(b) != len(e) {
		return e, fmt.Errorf("epoch %q: want 26 characters of 0-9 and a-z without i, l, o, u", s)
	}
	copy(e[:], b)
	if e.String() != strings.ToLower(s) { // trailing bits that encode nothing
		return Epoch{}, fmt.Errorf("epoch %q: not in its canonical form", s)
	}
	return e, nil
}

// ID names an exchange: its epoch and the sequence of its first record. It is
// the receipt that every caller gets, on denials too.
type ID struct {
	Epoch    Epoch
	Sequence uint64
}

// String returns the receipt, "EPOCH-SEQUENCE".
func (id ID) String() string { return id.Epoch.String() + "-" + strconv.FormatUint(id.Sequence, 10) }

// ParseID reads what [ID.String] wrote, or the id of a whole receipt.
func ParseID(s string) (ID, error) {
	id, _, _ := strings.Cut(strings.TrimSpace(s), ".")
	e, n, ok := strings.Cut(id, "-")
	if !ok {
		return ID{}, fmt.Errorf("exchange %q: want EPOCH-SEQUENCE, as in the x-verbatim-receipt header", s)
	}
	epoch, err := ParseEpoch(e)
	if err != nil {
		return ID{}, fmt.Errorf("exchange %q: %w", s, err)
	}
	seq, err := strconv.ParseUint(n, 10, 64)
	if err != nil || seq == 0 {
		return ID{}, fmt.Errorf("exchange %q: the sequence %q is not a whole number above 0", s, n)
	}
	return ID{Epoch: epoch, Sequence: seq}, nil
}
