package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"verbatim.dev/recorder/record"
)

// SalvagePrefix is where the notes about lost tails rest, see [Salvage].
const SalvagePrefix = "salvage/"

// MaxSalvage is the largest note under it, in bytes.
const MaxSalvage = 16 << 10

// SalvageKind says what an object under [SalvagePrefix] is.
type SalvageKind string

// The kinds.
const (
	// SalvageOrder: an operator gives up an epoch whose gateway will not come
	// back. One an epoch.
	SalvageOrder SalvageKind = "order"
	// SalvageCut: the segment that begins with First ends with Last, where the
	// gateway made no cut. It is written before the segment, and its name says
	// First alone, so whoever takes the name decides for everybody.
	SalvageCut SalvageKind = "cut"
	// SalvageEnd: of an epoch that is over, all that came rests in the vault,
	// and it ends with Last. It is written after the segment.
	SalvageEnd SalvageKind = "end"
)

const (
	orderFile = "order.json"
	cutExt    = ".cut.json"
	endExt    = ".end.json"
	asideExt  = ".aside"
	maxWords  = 1 << 10
)

// Salvage is a note about an epoch whose journal was lost, so that its tail will
// never be cut by its gateway. It holds no time, for it is to follow from what
// it is about alone.
type Salvage struct {
	Version int         `json:"version"` // 1
	Kind    SalvageKind `json:"kind"`
	Gateway string      `json:"gateway"`
	Epoch   string      `json:"epoch"`
	First   uint64      `json:"first,omitempty"` // of the segment, with cut
	Last    uint64      `json:"last,omitempty"`  // with cut and end
	Head    string      `json:"head,omitempty"`  // the chain's, hex, after Last
	// Successor is the gateway's later epoch that shows that the journal was
	// lost, empty where an order says so.
	Successor string `json:"successor,omitempty"`
	// By and Reason are of whoever ordered it, as they say.
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// SalvageFolder is what the names of an epoch's salvage begin with.
func SalvageFolder(gateway string, e record.Epoch) string {
	return SalvagePrefix + gateway + "/" + e.String() + "/"
}

// SalvageName returns the name of a note of that kind; n is First of a cut and
// Last of an end.
func SalvageName(gateway string, e record.Epoch, kind SalvageKind, n uint64) string {
	switch kind {
	case SalvageOrder:
		return SalvageFolder(gateway, e) + orderFile
	case SalvageEnd:
		return fmt.Sprintf("%s%020d%s", SalvageFolder(gateway, e), n, endExt)
	}
	return fmt.Sprintf("%s%020d%s", SalvageFolder(gateway, e), n, cutExt)
}

// AsideName returns the name of frames, back to back, that came of an epoch and
// cannot be chained to its records: those from first to last. The name has their
// SHA-256, so it can have one content only.
func AsideName(gateway string, e record.Epoch, first, last uint64, frames []byte) string {
	sum := sha256.Sum256(frames)
	return fmt.Sprintf("%s%020d-%020d.%s%s", SalvageFolder(gateway, e), first, last, hex.EncodeToString(sum[:16]), asideExt)
}

// SalvageObject is what a name under [SalvagePrefix] says.
type SalvageObject struct {
	Gateway     string
	Epoch       record.Epoch
	Kind        SalvageKind // empty for frames that were set aside
	First, Last uint64      // of frames; of a note as its name has it
}

// ParseSalvageName reads a name under [SalvagePrefix].
func ParseSalvageName(name string) (SalvageObject, error) {
	var o SalvageObject
	wrong := fmt.Errorf("name %q: want %sGATEWAY/EPOCH/ and what SalvageName and AsideName give", name, SalvagePrefix)
	rest, ok := strings.CutPrefix(name, SalvagePrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || CheckGateway(parts[0]) != nil {
		return o, wrong
	}
	o.Gateway = parts[0]
	var err error
	if o.Epoch, err = parseEpoch(parts[1]); err != nil {
		return o, err
	}
	file := parts[2]
	number := func(s string) uint64 {
		n, e := strconv.ParseUint(s, 10, 64)
		if e != nil || len(s) != seqDigits {
			err = wrong
		}
		return n
	}
	switch {
	case file == orderFile:
		o.Kind = SalvageOrder
	case strings.HasSuffix(file, cutExt):
		o.Kind, o.First = SalvageCut, number(strings.TrimSuffix(file, cutExt))
	case strings.HasSuffix(file, endExt):
		o.Kind, o.Last = SalvageEnd, number(strings.TrimSuffix(file, endExt))
	case strings.HasSuffix(file, asideExt):
		span, sum, _ := strings.Cut(strings.TrimSuffix(file, asideExt), ".")
		first, last, _ := strings.Cut(span, "-")
		o.First, o.Last = number(first), number(last)
		if b, e := hex.DecodeString(sum); e != nil || len(b) != 16 || o.First == 0 || o.Last < o.First {
			err = wrong
		}
	default:
		err = wrong
	}
	return o, err
}

// Name returns the note's name.
func (s *Salvage) Name() (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	e, err := parseEpoch(s.Epoch)
	if err != nil {
		return "", err
	}
	n := s.First
	if s.Kind == SalvageEnd {
		n = s.Last
	}
	return SalvageName(s.Gateway, e, s.Kind, n), nil
}

func (s *Salvage) check() error {
	if s.Version != 1 {
		return fmt.Errorf("version %d, this program reads 1", s.Version)
	}
	if err := CheckGateway(s.Gateway); err != nil {
		return err
	}
	if _, err := parseEpoch(s.Epoch); err != nil {
		return err
	}
	if s.Successor != "" {
		if _, err := parseEpoch(s.Successor); err != nil {
			return err
		}
	}
	if len(s.By) > maxWords || len(s.Reason) > maxWords {
		return fmt.Errorf("who and why take more than %d bytes", maxWords)
	}
	head, err := hex.DecodeString(s.Head)
	switch s.Kind {
	case SalvageOrder:
		if s.By == "" || s.Reason == "" {
			return errors.New("an order says who and why")
		}
		return nil
	case SalvageCut:
		if s.First == 0 || s.Last < s.First {
			return fmt.Errorf("records %d to %d", s.First, s.Last)
		}
	case SalvageEnd:
		if s.Last == 0 {
			return errors.New("an end without a record")
		}
	default:
		return fmt.Errorf("kind %q is not known", s.Kind)
	}
	if err != nil || len(head) != len(record.ChainHead{}) {
		return fmt.Errorf("head %q: want %d hex digits", s.Head, 2*len(record.ChainHead{}))
	}
	return nil
}

// Marshal returns the note's bytes.
func (s *Salvage) Marshal() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("salvage note: %w", err)
	}
	b, err := json.MarshalIndent(s, "", " ")
	return append(b, '\n'), err
}

// ParseSalvage reads a note, which must be that of the name.
func ParseSalvage(name string, b []byte) (*Salvage, error) {
	if len(b) > MaxSalvage {
		return nil, fmt.Errorf("longer than %d bytes", MaxSalvage)
	}
	s := &Salvage{}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil {
		return nil, err
	}
	own, err := s.Name()
	if err != nil {
		return nil, err
	}
	if own != name {
		return nil, fmt.Errorf("it is the note %s", own)
	}
	return s, nil
}
