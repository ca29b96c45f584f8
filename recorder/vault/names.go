package vault

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// Where objects rest. Each ends with a slash.
const (
	SegmentsPrefix = "segments/"
	KeysPrefix     = "keys/"
	HoldsPrefix    = "holds/"
	ExpiryPrefix   = "expiry/"
	EpochsPrefix   = "epochs/"
	ErasuresPrefix = "erasures/"
	ExportsPrefix  = "exports/"
)

const (
	openExt    = ".open"
	dayForm    = "2006-01-02"
	dayPrefix  = "dt=" // a Hive partition key, which BigQuery and DuckDB read
	segmentExt = ".seg"
	partExt    = ".part"
	keyExt     = ".key"
	erasedExt  = ".erased"
	seqDigits  = 20 // of the largest uint64, so that names sort by sequence

	// MaxGateway is the longest name of a gateway, in bytes: that of a pod.
	MaxGateway = 253
)

// Segment says what a segment, or a part of one, holds. Its name follows from
// it.
type Segment struct {
	Day     string // UTC day of the first leaf frame's time, see [Day]
	Gateway string
	Epoch   record.Epoch
	First   uint64 // sequence of the first record, at least 1
	Last    uint64 // sequence of the last record, at least First
	Class   string // retention class of the records that are held whole
	Part    bool   // only the records of its class, beside the segment of the same range
}

// Day returns the UTC day of t as segment names carry it.
func Day(t time.Time) string { return t.UTC().Format(dayForm) }

// CheckGateway reports whether a gateway's name can stand in a segment's name:
// 1 to [MaxGateway] of A-Z, a-z, 0-9 and ". _ -", beginning with a letter or
// digit.
func CheckGateway(name string) error {
	if name == "" || len(name) > MaxGateway {
		return fmt.Errorf("gateway name of %d bytes: want 1 to %d", len(name), MaxGateway)
	}
	for i := range len(name) {
		if c := name[i]; !nameByte(c) || i == 0 && (c == '.' || c == '_' || c == '-') {
			return fmt.Errorf("gateway name %q: %q is not allowed at place %d (want letters, digits, and later also . _ -)", name, c, i)
		}
	}
	return nil
}

// CheckClass reports whether a retention class can stand in a segment's name: 1
// to [record.MaxClass] of A-Z, a-z, 0-9 and "_ -", beginning with a letter or
// digit.
func CheckClass(class string) error { return record.CheckClass(class) }

// SegmentName returns the segment's name in the vault,
// segments/dt=DAY/GATEWAY/EPOCH/FIRST-LAST.CLASS.seg, or .part.
func SegmentName(s Segment) (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	ext := segmentExt
	if s.Part {
		ext = partExt
	}
	return fmt.Sprintf("%s%020d-%020d.%s%s", SegmentPrefix(s.Day, s.Gateway, s.Epoch), s.First, s.Last, s.Class, ext), nil
}

// SegmentPrefix returns what the names of an epoch's segments of one day begin
// with.
func SegmentPrefix(day, gateway string, e record.Epoch) string {
	return SegmentsPrefix + dayPrefix + day + "/" + gateway + "/" + e.String() + "/"
}

// EpochName returns the name of the copy of an epoch's open record, the frame's
// bytes: epochs/GATEWAY/EPOCH.open. It rests with the class of the longest
// retention and outlives the segment that the record is in, for it names the
// key of the epoch's checkpoints.
func EpochName(gateway string, e record.Epoch) string {
	return EpochsPrefix + gateway + "/" + e.String() + openExt
}

// ParseEpochName reads what EpochName wrote.
func ParseEpochName(name string) (gateway string, e record.Epoch, err error) {
	rest, ok := strings.CutPrefix(name, EpochsPrefix)
	gateway, id, two := strings.Cut(rest, "/")
	id, ext := strings.CutSuffix(id, openExt)
	if !ok || !two || !ext {
		return "", record.Epoch{}, fmt.Errorf("name %q: want epochs/GATEWAY/EPOCH.open", name)
	}
	if err := CheckGateway(gateway); err != nil {
		return "", record.Epoch{}, err
	}
	e, err = parseEpoch(id)
	return gateway, e, err
}

func (s Segment) check() error {
	if err := CheckGateway(s.Gateway); err != nil {
		return err
	}
	if t, err := time.Parse(dayForm, s.Day); err != nil || t.Format(dayForm) != s.Day {
		return fmt.Errorf("day %q: want YYYY-MM-DD", s.Day)
	}
	if s.First == 0 || s.Last < s.First {
		return fmt.Errorf("sequences %d to %d: want the first at least 1 and the last not below it", s.First, s.Last)
	}
	return CheckClass(s.Class)
}

// ParseSegmentName reads what [SegmentName] wrote, and only that.
func ParseSegmentName(name string) (Segment, error) {
	s, err := parseSegmentName(name)
	if err != nil {
		return Segment{}, fmt.Errorf("segment name %q: %w", name, err)
	}
	return s, nil
}

func parseSegmentName(name string) (Segment, error) {
	rest, ok := strings.CutPrefix(name, SegmentsPrefix+dayPrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 4 {
		return Segment{}, errors.New("want segments/dt=DAY/GATEWAY/EPOCH/FIRST-LAST.CLASS.seg")
	}
	s := Segment{Day: parts[0], Gateway: parts[1]}
	var err error
	if s.Epoch, err = parseEpoch(parts[2]); err != nil {
		return Segment{}, err
	}
	file, ok := strings.CutSuffix(parts[3], segmentExt)
	if !ok {
		file, ok = strings.CutSuffix(parts[3], partExt)
		s.Part = true
	}
	file, class, ok2 := strings.Cut(file, ".")
	first, last, ok3 := strings.Cut(file, "-")
	if !ok || !ok2 || !ok3 {
		return Segment{}, fmt.Errorf("%q: want FIRST-LAST.CLASS.seg or .part", parts[3])
	}
	s.Class = class
	if s.First, err = parseSequence(first); err != nil {
		return Segment{}, err
	}
	if s.Last, err = parseSequence(last); err != nil {
		return Segment{}, err
	}
	return s, s.check()
}

func parseSequence(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || len(s) != seqDigits {
		return 0, fmt.Errorf("sequence %q: want %d digits", s, seqDigits)
	}
	return n, nil
}

// parseEpoch is stricter than [record.ParseEpoch]: a name has one spelling.
func parseEpoch(s string) (record.Epoch, error) {
	e, err := record.ParseEpoch(s)
	if err == nil && e.String() != s {
		err = fmt.Errorf("epoch %q: not in its canonical form", s)
	}
	return e, err
}

// KeyName returns the name of a wrapped data key, keys/EPOCH/KEYID.key. The
// object is the key frame as the gateway stored it.
func KeyName(e record.Epoch, id record.KeyID) string {
	return KeysPrefix + e.String() + "/" + hex.EncodeToString(id[:]) + keyExt
}

// TombstoneName returns the name of what stands in the place of a wrapped data
// key that was erased, keys/EPOCH/KEYID.erased, see [Tombstone].
func TombstoneName(e record.Epoch, id record.KeyID) string {
	return KeysPrefix + e.String() + "/" + hex.EncodeToString(id[:]) + erasedExt
}

// ParseKeyName reads what [KeyName] wrote, and only that.
func ParseKeyName(name string) (record.Epoch, record.KeyID, error) {
	var id record.KeyID
	rest, ok := strings.CutPrefix(name, KeysPrefix)
	epoch, file, ok2 := strings.Cut(rest, "/")
	digits, ok3 := strings.CutSuffix(file, keyExt)
	if !ok || !ok2 || !ok3 {
		return record.Epoch{}, id, fmt.Errorf("key name %q: want keys/EPOCH/KEYID.key", name)
	}
	e, err := parseEpoch(epoch)
	if err != nil {
		return record.Epoch{}, id, fmt.Errorf("key name %q: %w", name, err)
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(id) || hex.EncodeToString(b) != digits {
		return record.Epoch{}, id, fmt.Errorf("key name %q: want a key id of %d lower-case hex digits", name, 2*len(id))
	}
	copy(id[:], b)
	return e, id, nil
}

// GatewayPrefix returns what the names of a gateway's segments of one day begin
// with.
func GatewayPrefix(day, gateway string) string {
	return SegmentsPrefix + dayPrefix + day + "/" + gateway + "/"
}
