// Package witness cosigns checkpoints of logs, and asks others to.
//
// A witness remembers for each log the last checkpoint that it cosigned, and
// cosigns another only where that one is a prefix of it. So whoever trusts
// enough witnesses knows that everybody was shown the same log: a log that is
// forked, or rolled back, gets no further cosignature from them.
//
// The rule of this folder: the new state is durable before a cosignature leaves
// the process, and after a failure to make it durable nothing is signed any
// more.
//
// Formats and protocol are those of C2SP: https://c2sp.org/tlog-witness,
// https://c2sp.org/tlog-cosignature (cosignature/v1, Ed25519),
// https://c2sp.org/tlog-checkpoint and https://c2sp.org/signed-note.
package witness

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// The algorithm bytes of signed notes.
const (
	algorithmSignature   = 1 // Ed25519
	algorithmCosignature = 4 // timestamped Ed25519, cosignature/v1
)

const (
	privatePrefix = "PRIVATE+KEY+"
	timeSize      = 8
	maxName       = 255
)

// Key is an Ed25519 key with a name. It signs as a log does and, with a time,
// as a witness does; the two kinds of signature are told apart by their key id
// and by what is signed.
type Key struct {
	name    string
	private ed25519.PrivateKey
}

// NewKey makes a key. Random is nil for the system's.
func NewKey(name string, random io.Reader) (*Key, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if random == nil {
		random = rand.Reader
	}
	_, private, err := ed25519.GenerateKey(random)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return &Key{name, private}, nil
}

func checkName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.Contains(name, "+") || strings.IndexFunc(name, unicode.IsSpace) >= 0 {
		return fmt.Errorf("key name %.80q: want 1 to %d bytes with no space and no plus sign", name, maxName)
	}
	return nil
}

// ParseKey reads the private text of a signing key, as package note writes it,
// of a log or of a witness. Errors do not hold any of it.
func ParseKey(text string) (*Key, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), privatePrefix)
	name, algorithm, seed, err := parseKey(rest)
	if !ok || err != nil || len(seed) != ed25519.SeedSize {
		return nil, errors.New("no signing key: want one line " + privatePrefix + "NAME+ID+BASE64")
	}
	k := &Key{name, ed25519.NewKeyFromSeed(seed)}
	if !strings.HasPrefix(rest, fmt.Sprintf("%s+%08x+", name, keyID(name, algorithm, k.public()))) {
		return nil, errors.New("no signing key: its id does not fit it")
	}
	return k, nil
}

// parseKey reads NAME+ID+BASE64. Whether the id fits is not looked at.
func parseKey(text string) (name string, algorithm byte, key []byte, err error) {
	parts := strings.SplitN(text, "+", 3)
	if len(parts) != 3 {
		return "", 0, nil, errors.New("want NAME+ID+BASE64")
	}
	if err := checkName(parts[0]); err != nil {
		return "", 0, nil, err
	}
	if _, err := strconv.ParseUint(parts[1], 16, 32); err != nil || len(parts[1]) != 8 {
		return "", 0, nil, errors.New("want an id of 8 hex digits")
	}
	b, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(b) != 1+ed25519.PublicKeySize || base64.StdEncoding.EncodeToString(b) != parts[2] {
		return "", 0, nil, errors.New("want the base64 of an algorithm's byte and 32 bytes")
	}
	if b[0] != algorithmSignature && b[0] != algorithmCosignature {
		return "", 0, nil, fmt.Errorf("algorithm %d is not known (1 is Ed25519, 4 an Ed25519 cosignature)", b[0])
	}
	return parts[0], b[0], b[1:], nil
}

func keyID(name string, algorithm byte, public ed25519.PublicKey) uint32 {
	h := sha256.New()
	h.Write([]byte(name))
	h.Write([]byte{'\n', algorithm})
	h.Write(public)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

func (k *Key) public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// Name returns the key's name: a log's origin.
func (k *Key) Name() string { return k.name }

// Private returns the secret text that ParseKey reads.
func (k *Key) Private() string {
	return privatePrefix + k.text(algorithmSignature, k.private.Seed())
}

func (k *Key) text(algorithm byte, key []byte) string {
	return fmt.Sprintf("%s+%08x+%s", k.name, keyID(k.name, algorithm, k.public()), base64.StdEncoding.EncodeToString(append([]byte{algorithm}, key...)))
}

// LogKey returns the verifier key of what Signer signs.
func (k *Key) LogKey() string { return k.text(algorithmSignature, k.public()) }

// WitnessKey returns the verifier key of what Cosigner signs.
func (k *Key) WitnessKey() string { return k.text(algorithmCosignature, k.public()) }

// Signer signs a log's checkpoints.
func (k *Key) Signer() note.Signer {
	return signer{k.name, keyID(k.name, algorithmSignature, k.public()), func(msg []byte) []byte { return ed25519.Sign(k.private, msg) }}
}

// Cosigner cosigns checkpoints as of a time, which counts in seconds.
func (k *Key) Cosigner(at time.Time) note.Signer {
	return signer{k.name, keyID(k.name, algorithmCosignature, k.public()), func(msg []byte) []byte {
		stamp := uint64(max(0, at.Unix()))
		return append(binary.BigEndian.AppendUint64(nil, stamp), ed25519.Sign(k.private, cosigned(stamp, msg))...)
	}}
}

func cosigned(stamp uint64, msg []byte) []byte {
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", stamp), msg...)
}

type signer struct {
	name string
	id   uint32
	sign func(msg []byte) []byte
}

func (s signer) Name() string                    { return s.name }
func (s signer) KeyHash() uint32                 { return s.id }
func (s signer) Sign(msg []byte) ([]byte, error) { return s.sign(msg), nil }

// Line returns the signature line of a note's text.
func Line(text string, s note.Signer) ([]byte, error) {
	sig, err := s.Sign([]byte(text))
	if err != nil {
		return nil, err
	}
	b := append(binary.BigEndian.AppendUint32(nil, s.KeyHash()), sig...)
	return fmt.Appendf(nil, "— %s %s\n", s.Name(), base64.StdEncoding.EncodeToString(b)), nil
}

// Verifier checks cosignatures. It is a [note.Verifier].
type Verifier struct {
	name   string
	id     uint32
	public ed25519.PublicKey
	text   string
}

// NewVerifier reads a witness's verifier key, NAME+ID+BASE64 with algorithm 4.
func NewVerifier(vkey string) (*Verifier, error) {
	v, algorithm, err := newVerifier(vkey)
	if err == nil && algorithm != algorithmCosignature {
		err = errors.New("the key of a log, not of a witness: want algorithm 4")
	}
	if err != nil {
		return nil, fmt.Errorf("witness key %.80q: %w", vkey, err)
	}
	return v, nil
}

// NewTimes reads a log's verifier key and returns what checks the times that
// the log itself puts to its checkpoints, with the same key.
func NewTimes(vkey string) (*Verifier, error) {
	v, algorithm, err := newVerifier(vkey)
	if err == nil && algorithm != algorithmSignature {
		err = errors.New("the key of a witness, not of a log: want algorithm 1")
	}
	if err != nil {
		return nil, fmt.Errorf("log key %.80q: %w", vkey, err)
	}
	v.id = keyID(v.name, algorithmCosignature, v.public)
	return v, nil
}

func newVerifier(vkey string) (*Verifier, byte, error) {
	vkey = strings.TrimSpace(vkey)
	name, algorithm, public, err := parseKey(vkey)
	if err != nil {
		return nil, 0, err
	}
	v := &Verifier{name: name, id: keyID(name, algorithm, public), public: public, text: vkey}
	if !strings.HasPrefix(vkey, fmt.Sprintf("%s+%08x+", name, v.id)) {
		return nil, 0, errors.New("its id does not fit it")
	}
	return v, algorithm, nil
}

// Name implements [note.Verifier].
func (v *Verifier) Name() string { return v.name }

// KeyHash implements [note.Verifier].
func (v *Verifier) KeyHash() uint32 { return v.id }

// Verify implements [note.Verifier].
func (v *Verifier) Verify(msg, sig []byte) bool {
	if len(sig) != timeSize+ed25519.SignatureSize {
		return false
	}
	stamp := binary.BigEndian.Uint64(sig)
	return stamp>>63 == 0 && ed25519.Verify(v.public, cosigned(stamp, msg), sig[timeSize:])
}

// String returns the verifier key's text.
func (v *Verifier) String() string { return v.text }

// Time returns when the signature, which must be verified, says it was made.
func (v *Verifier) Time(s note.Signature) (time.Time, bool) {
	b, err := base64.StdEncoding.DecodeString(s.Base64)
	if s.Name != v.name || s.Hash != v.id || err != nil || len(b) < 4+timeSize {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint64(b[4:])&(1<<63-1)), 0).UTC(), true
}
