package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// MaxExpiry is the largest expiry note, in bytes.
const MaxExpiry = 8 << 20

// maxEntries is how many files one expiry note lists.
const maxEntries = 10_000

// Expiry is an expiry note: it is written before the files that it lists are
// deleted because their retention is over. The chain goes over the gap by the
// heads that it states.
type Expiry struct {
	Version int           `json:"version"` // 2; in 1 entries have no checkpoint
	Gateway string        `json:"gateway"`
	Epoch   string        `json:"epoch"`
	Written time.Time     `json:"written"`
	By      string        `json:"by"`   // who ran it, as they say
	Head    string        `json:"head"` // the chain's head after the last segment, hex
	Entries []ExpiryEntry `json:"entries"`
}

// ExpiryEntry is one file. Entries that are no parts follow each other with no
// gap in their ranges.
type ExpiryEntry struct {
	Name    string    `json:"name"`
	First   uint64    `json:"first"`
	Last    uint64    `json:"last"`
	Class   string    `json:"class"`
	Part    bool      `json:"part,omitempty"`
	Head    string    `json:"head"` // before record first, hex
	Expires time.Time `json:"expires"`
	Records uint64    `json:"records"`
	Bytes   int64     `json:"bytes"`
	SHA256  string    `json:"sha256"` // of the file
	// Checkpoint is the signed note that the segment ended with, a part's too: it
	// is what proves that the date has passed.
	Checkpoint string `json:"checkpoint,omitempty"`
}

// Hex returns a head as notes write it.
func Hex(h record.ChainHead) string { return hex.EncodeToString(h[:]) }

// HeadAfter returns the chain's head after an entry that is no part.
func (x *Expiry) HeadAfter(i int) (record.ChainHead, error) {
	text := x.Head
	for _, e := range x.Entries[i+1:] {
		if !e.Part {
			text = e.Head
			break
		}
	}
	var h record.ChainHead
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("head %q: want %d hex digits", text, 2*len(h))
	}
	copy(h[:], b)
	return h, nil
}

// ExpiryFolder is what the names of an epoch's expiry notes begin with.
func ExpiryFolder(gateway string, e record.Epoch) string {
	return ExpiryPrefix + gateway + "/" + e.String() + "/"
}

// ParseExpiryName tells whose expiry note has the name.
func ParseExpiryName(name string) (gateway string, e record.Epoch, err error) {
	rest, ok := strings.CutPrefix(name, ExpiryPrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || !strings.HasSuffix(parts[2], ".json") {
		return "", record.Epoch{}, fmt.Errorf("name %q: want expiry/GATEWAY/EPOCH/FIRST-LAST.KIND-DIGEST.json", name)
	}
	if err := CheckGateway(parts[0]); err != nil {
		return "", record.Epoch{}, err
	}
	e, err = parseEpoch(parts[1])
	return parts[0], e, err
}

// Name returns the note's name: expiry/GATEWAY/EPOCH/FIRST-LAST.KIND-DIGEST.json
// with the kind "segments" or "parts" and a digest of the files' names: parts of
// one range expire class by class.
func (x *Expiry) Name() (string, error) {
	if len(x.Entries) == 0 {
		return "", errors.New("an expiry note without entries")
	}
	e, err := record.ParseEpoch(x.Epoch)
	if err != nil {
		return "", err
	}
	if err := CheckGateway(x.Gateway); err != nil {
		return "", err
	}
	kind := "segments"
	if x.Entries[0].Part {
		kind = "parts"
	}
	if x.Version > 1 {
		h := sha256.New()
		for _, e := range x.Entries {
			fmt.Fprintln(h, e.Name)
		}
		kind += "-" + hex.EncodeToString(h.Sum(nil)[:8])
	}
	first, last := x.Entries[0].First, x.Entries[len(x.Entries)-1].Last
	return fmt.Sprintf("%s%020d-%020d.%s.json", ExpiryFolder(x.Gateway, e), first, last, kind), nil
}

// Marshal returns the note's bytes.
func (x *Expiry) Marshal() ([]byte, error) {
	if err := x.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(x, "", " ")
	return append(b, '\n'), err
}

func (x *Expiry) check() error {
	if x.Version != 1 && x.Version != 2 {
		return fmt.Errorf("version %d, this program reads 1 and 2", x.Version)
	}
	if len(x.Entries) == 0 || len(x.Entries) > maxEntries {
		return fmt.Errorf("%d entries: want 1 to %d", len(x.Entries), maxEntries)
	}
	for i, e := range x.Entries {
		if e.First == 0 || e.Last < e.First {
			return fmt.Errorf("entry %d: records %d to %d", i+1, e.First, e.Last)
		}
		if i > 0 && (e.Part != x.Entries[0].Part || !e.Part && e.First != x.Entries[i-1].Last+1) {
			return fmt.Errorf("entry %d does not follow on entry %d", i+1, i)
		}
	}
	return nil
}

// ParseExpiry reads an expiry note.
func ParseExpiry(b []byte) (*Expiry, error) {
	if len(b) > MaxExpiry {
		return nil, fmt.Errorf("longer than %d bytes", MaxExpiry)
	}
	x := &Expiry{}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(x); err != nil {
		return nil, err
	}
	return x, x.check()
}
