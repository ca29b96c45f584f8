package record

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// Kind says what a record is.
type Kind uint8

// The kinds of records. Those below [KindKey] carry a sequence and a leaf.
const (
	KindOpen      Kind = 1 // the gateway began the epoch: [Open]
	KindReceived  Kind = 2 // a request came, and the gateway is about to ask BigQuery about it: [Received]
	KindProbe     Kind = 3 // a call that the gateway made itself: [Probe]
	KindIntent    Kind = 4 // before the request goes upstream, or is denied: [Intent]
	KindPayload   Kind = 5 // a piece of a body, at most [MaxPiece] bytes, or with [FlagHead] a head: [Head]
	KindOutcome   Kind = 6 // how the exchange ended: [Outcome]
	KindHeartbeat Kind = 7 // the gateway is alive: [Heartbeat]
	KindClose     Kind = 8 // the gateway ended the epoch in order: [Close]
	KindAccess    Kind = 9 // somebody asked to read the evidence: [Access]

	KindKey        Kind = 64 // a wrapped data key; no sequence, no leaf
	KindCheckpoint Kind = 65 // the chain's head after the leaves up to its sequence; no leaf
)

var kindNames = map[Kind]string{
	KindOpen: "open", KindReceived: "received", KindProbe: "probe", KindIntent: "intent",
	KindPayload: "payload", KindOutcome: "outcome", KindHeartbeat: "heartbeat", KindClose: "close", KindAccess: "access",
	KindKey: "key", KindCheckpoint: "checkpoint",
}

// String returns the kind's name, or "kind(N)" for one that is not known.
func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Leaf reports whether records of this kind have a sequence and a leaf.
func (k Kind) Leaf() bool { return k < KindKey }

// Direction says which way a payload went.
type Direction uint8

// The directions of a payload.
const (
	DirectionNone     Direction = 0
	DirectionRequest  Direction = 1 // as the caller sent it
	DirectionUpstream Direction = 2 // as it went to BigQuery, where that differs from what the caller sent
	DirectionResponse Direction = 3 // as the caller got it
)

// String returns the direction's name.
func (d Direction) String() string {
	switch d {
	case DirectionNone:
		return "none"
	case DirectionRequest:
		return "request"
	case DirectionUpstream:
		return "upstream"
	case DirectionResponse:
		return "response"
	}
	return fmt.Sprintf("direction(%d)", uint8(d))
}

// Flags of a frame.
const (
	FlagHead uint8 = 1 << 0 // payload: the body is a [Head], not bytes of the message's body
	FlagCut  uint8 = 1 << 1 // checkpoint: a vault segment ends here
)

const (
	// Version is the frame version that this package writes.
	Version = 1
	// MaxPiece is the largest body of a payload record, in bytes.
	MaxPiece = 256 << 10
	// MaxBody is the largest body of any record, in bytes: an intent with the
	// largest request that BigQuery takes (10 MB) as its SQL, twice over.
	MaxBody = 24 << 20
	// MaxClass is the longest name of a retention class, in bytes.
	MaxClass = 32

	fixedHeader = 69
	trailer     = 4
	sealCost    = 12 + 16 // AES-GCM's nonce and tag
	minFrame    = fixedHeader + trailer
	// MaxFrame is the largest frame, in bytes.
	MaxFrame = minFrame + MaxClass + MaxBody + sealCost
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrTorn means that the bytes end before the frame does: a write that was cut
// off, or more is still to come.
var ErrTorn = errors.New("frame is cut off")

// ErrUnknown means that the bytes are whole but of a version or kind that this
// program does not know: a newer one wrote them.
var ErrUnknown = errors.New("written by a newer program")

// KeyID names a data key. The zero value means that a body is not sealed.
type KeyID [16]byte

// Frame is a record as it is stored. Decoded frames share the memory of the
// bytes they were decoded from.
type Frame struct {
	Kind      Kind
	Direction Direction
	Flags     uint8
	Sequence  uint64
	Exchange  uint64
	Piece     uint32
	Offset    uint64
	Time      time.Time // to the nanosecond, UTC
	Expiry    time.Time // to the second; zero: never
	Key       KeyID
	Class     string
	Body      []byte // sealed where Key is not zero

	raw []byte // the whole frame, set by Decode and Encode
}

// header appends the header without the length field.
func (f *Frame) header(b []byte) []byte {
	b = append(b, Version, byte(f.Kind), byte(f.Direction), f.Flags)
	b = binary.BigEndian.AppendUint64(b, f.Sequence)
	b = binary.BigEndian.AppendUint64(b, f.Exchange)
	b = binary.BigEndian.AppendUint32(b, f.Piece)
	b = binary.BigEndian.AppendUint64(b, f.Offset)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Time.UnixNano()))
	var expiry int64
	if !f.Expiry.IsZero() {
		expiry = f.Expiry.Unix()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(expiry))
	b = append(b, f.Key[:]...)
	b = append(b, byte(len(f.Class)))
	return append(b, f.Class...)
}

// Size returns the length in bytes of the frame that a body of n plain bytes
// becomes when it is sealed.
func Size(class string, n int) int { return minFrame + len(class) + n + sealCost }

// Encode appends the stored form to dst and returns the extended slice. The
// body must already be sealed. Afterwards Raw and Leaf answer for these bytes,
// which must not be changed.
func (f *Frame) Encode(dst []byte) ([]byte, error) {
	if err := f.check(len(f.Body)); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, f.length(len(f.Body)))
	dst = f.header(dst)
	dst = append(dst, f.Body...)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	f.raw = dst[start:len(dst):len(dst)]
	return dst, nil
}

// check refuses what no frame can hold; n is the length of the stored body.
func (f *Frame) check(n int) error {
	if len(f.Class) > MaxClass {
		return fmt.Errorf("retention class %q: longer than %d bytes", f.Class, MaxClass)
	}
	if n > MaxBody+sealCost {
		return fmt.Errorf("%s record: body of %d bytes is above the limit of %d", f.Kind, n, MaxBody)
	}
	return nil
}

// length is the value of the frame's first field for a stored body of n bytes.
func (f *Frame) length(n int) uint32 {
	return uint32(fixedHeader - 4 + len(f.Class) + n + trailer)
}

// Decode reads the first frame of b and returns it with its length in bytes.
// It returns [ErrTorn] when b ends too early, and another error, saying what is
// wrong, for bytes that are no frame. The frame shares b's memory.
func Decode(b []byte) (Frame, int, error) {
	if len(b) < 4 {
		return Frame{}, 0, ErrTorn
	}
	n := int(binary.BigEndian.Uint32(b)) + 4
	if n < minFrame || n > MaxFrame {
		return Frame{}, 0, fmt.Errorf("frame length %d is outside %d to %d", n, minFrame, MaxFrame)
	}
	if len(b) < n {
		return Frame{}, 0, ErrTorn
	}
	b = b[:n:n]
	if got, want := binary.BigEndian.Uint32(b[n-4:]), crc32.Checksum(b[:n-4], castagnoli); got != want {
		return Frame{}, 0, fmt.Errorf("frame checksum is %08x, its bytes give %08x", got, want)
	}
	if b[4] != Version {
		return Frame{}, 0, fmt.Errorf("frame version %d is not known, this program reads version %d: %w", b[4], Version, ErrUnknown)
	}
	classLen := int(b[68])
	if classLen > MaxClass || fixedHeader+classLen+trailer > n {
		return Frame{}, 0, fmt.Errorf("frame's retention class of %d bytes does not fit", classLen)
	}
	f := Frame{
		Kind: Kind(b[5]), Direction: Direction(b[6]), Flags: b[7],
		Sequence: binary.BigEndian.Uint64(b[8:]), Exchange: binary.BigEndian.Uint64(b[16:]),
		Piece: binary.BigEndian.Uint32(b[24:]), Offset: binary.BigEndian.Uint64(b[28:]),
		Time:  time.Unix(0, int64(binary.BigEndian.Uint64(b[36:]))).UTC(),
		Class: string(b[69 : 69+classLen]), Body: b[69+classLen : n-4], raw: b,
	}
	if s := int64(binary.BigEndian.Uint64(b[44:])); s != 0 {
		f.Expiry = time.Unix(s, 0).UTC()
	}
	copy(f.Key[:], b[52:68])
	if _, ok := kindNames[f.Kind]; !ok {
		return Frame{}, 0, fmt.Errorf("frame kind %d is not known: %w", uint8(f.Kind), ErrUnknown)
	}
	return f, n, nil
}

// ReadFrame reads one frame from r into memory of its own. At the end of r
// between two frames it returns io.EOF, within a frame [ErrTorn].
func ReadFrame(r io.Reader) (Frame, error) { return ReadFrameInto(r, nil) }

// ReadFrameInto is ReadFrame into the memory of buf, up to its capacity; a
// larger frame gets memory of its own.
func ReadFrameInto(r io.Reader, buf []byte) (Frame, error) {
	if cap(buf) < minFrame {
		buf = make([]byte, minFrame)
	}
	head := buf[:4]
	if _, err := io.ReadFull(r, head); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return Frame{}, ErrTorn
		}
		return Frame{}, err
	}
	n := int(binary.BigEndian.Uint32(head)) + 4
	if n < minFrame || n > MaxFrame {
		return Frame{}, fmt.Errorf("frame length %d is outside %d to %d", n, minFrame, MaxFrame)
	}
	b := buf[:min(n, cap(buf))]
	if len(b) < n {
		b = make([]byte, n)
		copy(b, head)
	}
	if _, err := io.ReadFull(r, b[4:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Frame{}, ErrTorn
		}
		return Frame{}, err
	}
	f, _, err := Decode(b)
	return f, err
}

// Raw returns the stored bytes of a frame that was encoded or decoded.
func (f *Frame) Raw() []byte { return f.raw }

// Leaf returns the SHA-256 of the stored frame.
func (f *Frame) Leaf() [sha256.Size]byte { return sha256.Sum256(f.raw) }

// Head is the value of an epoch's hash chain after some of its leaves.
type ChainHead [sha256.Size]byte

// chainContext begins every chain, so that it cannot be taken for another hash.
const chainContext = "verbatim/chain/1"

// NewChain returns the head of an epoch's chain before its first leaf. It
// binds the gateway's name: a chain cannot be passed off as another gateway's.
func NewChain(e Epoch, gateway string) ChainHead {
	h := sha256.New()
	h.Write([]byte(chainContext))
	h.Write(e[:])
	h.Write([]byte(gateway))
	return ChainHead(h.Sum(nil))
}

// Next returns the head after one more leaf.
func (h ChainHead) Next(leaf [sha256.Size]byte) ChainHead {
	var b [2 * sha256.Size]byte
	copy(b[:], h[:])
	copy(b[sha256.Size:], leaf[:])
	return sha256.Sum256(b[:])
}
