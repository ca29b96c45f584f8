package record

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Statement is what a checkpoint states of an epoch after some of its records.
// It is stored as a signed note in the form of C2SP tlog-checkpoint
// (https://c2sp.org/tlog-checkpoint), with extension lines:
//
//	verbatim.dev/GATEWAY/EPOCH
//	SIZE
//	ROOT in base64
//	chain HEX
//	time RFC 3339 with nanoseconds
//	before EXPIRY
//	class NAME RECORDS EXPIRY
//
// The last ones, a line for each class, are of the records since the last cut;
// before is the latest expiry of those in front of them. An expiry is a time in
// RFC 3339, "never", or "none" where there is no record. Checkpoints of earlier
// versions end with the time.
type Statement struct {
	Gateway string
	Epoch   Epoch
	Size    uint64            // leaves, which is the last record's sequence
	Root    [sha256.Size]byte // of the Merkle tree over the leaves
	Head    ChainHead
	Time    time.Time
	// Retained says when the records expire; nil: the gateway did not say.
	Retained *Retained
}

const originPrefix = "verbatim.dev/"

// maxStatement bounds a checkpoint's body, with room for cosignatures.
const maxStatement = 8 << 10

// Origin names an epoch's log, and its key.
func Origin(gateway string, e Epoch) string { return originPrefix + gateway + "/" + e.String() }

// text returns the note's text.
func (s Statement) text() string {
	b := make([]byte, 0, 512)
	b = append(append(b, Origin(s.Gateway, s.Epoch)...), '\n')
	b = append(strconv.AppendUint(b, s.Size, 10), '\n')
	b = append(base64.StdEncoding.AppendEncode(b, s.Root[:]), "\nchain "...)
	b = append(hex.AppendEncode(b, s.Head[:]), "\ntime "...)
	b = append(s.Time.UTC().AppendFormat(b, time.RFC3339Nano), '\n')
	if s.Retained != nil {
		b = s.Retained.append(b)
	}
	return string(b)
}

// parseText reads what text wrote, and nothing else.
func parseText(text string) (Statement, error) {
	var s Statement
	lines := strings.Split(text, "\n")
	if len(lines) < 6 || lines[len(lines)-1] != "" {
		return s, errors.New("checkpoint: want five lines or more")
	}
	gateway, epoch, ok := strings.Cut(strings.TrimPrefix(lines[0], originPrefix), "/")
	if !ok {
		return s, fmt.Errorf("checkpoint: origin %.80q names no gateway and epoch", lines[0])
	}
	var err error
	if s.Epoch, err = ParseEpoch(epoch); err != nil {
		return s, fmt.Errorf("checkpoint: %w", err)
	}
	s.Gateway = gateway
	if s.Size, err = strconv.ParseUint(lines[1], 10, 64); err != nil {
		return s, fmt.Errorf("checkpoint: size %.30q is no number", lines[1])
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != len(s.Root) {
		return s, errors.New("checkpoint: the root is no hash")
	}
	copy(s.Root[:], root)
	head, err := hex.DecodeString(strings.TrimPrefix(lines[3], "chain "))
	if err != nil || len(head) != len(s.Head) {
		return s, errors.New("checkpoint: the chain's head is no hash")
	}
	copy(s.Head[:], head)
	if s.Time, err = time.Parse(time.RFC3339Nano, strings.TrimPrefix(lines[4], "time ")); err != nil {
		return s, errors.New("checkpoint: the time is not in RFC 3339")
	}
	s.Time = s.Time.UTC()
	if len(lines) > 6 {
		if s.Retained, err = parseRetained(lines[5 : len(lines)-1]); err != nil {
			return s, fmt.Errorf("checkpoint: %w", err)
		}
		if s.Retained.Records() > s.Size {
			return s, errors.New("checkpoint: more records since the last cut than there are")
		}
	}
	if s.text() != text { // one spelling only
		return s, errors.New("checkpoint: not in its canonical form")
	}
	return s, nil
}

// Checkpoint returns the frame that states s, signed. With cut, a vault segment
// ends with it.
func Checkpoint(s Statement, signer note.Signer, cut bool) (Frame, error) {
	if s.Retained != nil {
		if err := s.Retained.check(); err != nil {
			return Frame{}, fmt.Errorf("checkpoint: %w", err)
		}
	}
	b, err := note.Sign(&note.Note{Text: s.text()}, signer)
	if err != nil {
		return Frame{}, fmt.Errorf("checkpoint: %w", err)
	}
	return checkpoint(s, b, cut), nil
}

func checkpoint(s Statement, signed []byte, cut bool) Frame {
	f := Frame{Kind: KindCheckpoint, Sequence: s.Size, Time: s.Time, Body: signed}
	if cut {
		f.Flags = FlagCut
	}
	return f
}

// Recut returns the same checkpoint as a cut: what recovery ends an epoch with,
// whose key is gone with its process.
func Recut(f *Frame) (Frame, error) {
	s, err := Stated(f)
	if err != nil {
		return Frame{}, err
	}
	return checkpoint(s, f.Body, true), nil
}

// Stated returns what a checkpoint frame states. Its signature is not looked
// at: see [Verify].
func Stated(f *Frame) (Statement, error) {
	if f.Kind != KindCheckpoint {
		return Statement{}, fmt.Errorf("a %s frame is no checkpoint", f.Kind)
	}
	s, err := ParseStatement(f.Body)
	if err != nil {
		return Statement{}, err
	}
	if s.Size != f.Sequence {
		return Statement{}, fmt.Errorf("checkpoint of %d records in a frame of sequence %d", s.Size, f.Sequence)
	}
	return s, nil
}

// Span returns the first record since the last cut, and false where the
// checkpoint does not say.
func (s *Statement) Span() (first uint64, ok bool) {
	if s.Retained == nil {
		return 0, false
	}
	return s.Size - s.Retained.Records() + 1, true
}

// ParseStatement reads a checkpoint's signed note, a checkpoint frame's body.
// Its signature is not looked at.
func ParseStatement(signed []byte) (Statement, error) {
	if len(signed) > maxStatement {
		return Statement{}, fmt.Errorf("checkpoint of %d bytes, at most %d are read", len(signed), maxStatement)
	}
	text, signatures, ok := strings.Cut(string(signed), "\n\n")
	if !ok {
		return Statement{}, errors.New("checkpoint: no signature follows its text")
	}
	for line := range strings.Lines(signatures) {
		// Package note reads base64 whose last bits, which encode nothing, are set.
		b64 := strings.TrimSuffix(line[strings.LastIndexByte(line, ' ')+1:], "\n")
		if _, err := base64.StdEncoding.Strict().DecodeString(b64); err != nil {
			return Statement{}, errors.New("checkpoint: a signature is not in its canonical form")
		}
	}
	return parseText(text + "\n")
}

// CheckpointHead returns the chain's head that a checkpoint frame states.
func CheckpointHead(f *Frame) (ChainHead, error) {
	s, err := Stated(f)
	return s.Head, err
}

// Verify returns what a checkpoint frame states, once its signature is the
// verifier's.
func Verify(f *Frame, v note.Verifier) (Statement, error) {
	s, err := Stated(f)
	if err != nil {
		return s, err
	}
	n, err := note.Open(f.Body, note.VerifierList(v))
	if err != nil {
		return s, fmt.Errorf("checkpoint of %d records: the signature is not that of %s: %w", s.Size, v.Name(), err)
	}
	// No leaf covers a checkpoint: it must have one spelling, or its bytes could
	// be changed unseen.
	sig, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64)
	if err != nil || string(f.Body) != fmt.Sprintf("%s\n\u2014 %s %s\n", n.Text, n.Sigs[0].Name, base64.StdEncoding.EncodeToString(sig)) {
		return s, fmt.Errorf("checkpoint of %d records: its note is not in the one form that the gateway writes", s.Size)
	}
	return s, nil
}

// EpochKey is an epoch's signing key. It lives in the gateway's memory only and
// is gone with the process.
type EpochKey struct {
	signer  note.Signer
	private ed25519.PrivateKey
	public  string
	origin  string
}

// NewEpochKey makes the key of an epoch.
func NewEpochKey(gateway string, e Epoch, random io.Reader) (*EpochKey, error) {
	if random == nil {
		random = rand.Reader
	}
	public, private, err := ed25519.GenerateKey(random)
	if err != nil {
		return nil, fmt.Errorf("epoch key: %w", err)
	}
	k := &EpochKey{private: private, origin: Origin(gateway, e)}
	if k.public, err = note.NewEd25519VerifierKey(k.origin, public); err != nil {
		return nil, fmt.Errorf("epoch key: %w", err)
	}
	v, err := note.NewVerifier(k.public)
	if err != nil {
		return nil, fmt.Errorf("epoch key: %w", err)
	}
	k.signer = noteSigner{v.Name(), v.KeyHash(), private}
	return k, nil
}

// noteSigner signs notes with an Ed25519 key.
type noteSigner struct {
	name    string
	hash    uint32
	private ed25519.PrivateKey
}

func (s noteSigner) Name() string                    { return s.name }
func (s noteSigner) KeyHash() uint32                 { return s.hash }
func (s noteSigner) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.private, msg), nil }

// Signer signs checkpoints.
func (k *EpochKey) Signer() note.Signer { return k.signer }

// Public is the verifier key, as package note writes it.
func (k *EpochKey) Public() string { return k.public }

// certificateHeader begins a certificate's text.
const certificateHeader = "verbatim.dev/certificate/v1"

// Certificate is a deployment's word that a key is the key of one of its
// gateways' epochs.
type Certificate struct {
	Gateway string
	Epoch   Epoch
	Key     string // verifier key
	Opened  time.Time
}

func (c Certificate) text() string {
	return fmt.Sprintf("%s\ngateway %s\nepoch %s\nkey %s\nopened %s\n", certificateHeader, c.Gateway, c.Epoch, c.Key, c.Opened.UTC().Format(time.RFC3339Nano))
}

// Certify signs the certificate with the deployment's key.
func (c Certificate) Certify(deployment note.Signer) (string, error) {
	b, err := note.Sign(&note.Note{Text: c.text()}, deployment)
	if err != nil {
		return "", fmt.Errorf("certificate of epoch %s: %w", c.Epoch, err)
	}
	return string(b), nil
}

// VerifyCertificate checks that one of the deployment's keys signed that
// certificate, and returns that key's name.
func VerifyCertificate(signed string, c Certificate, deployment note.Verifiers) (string, error) {
	if len(signed) > maxStatement {
		return "", fmt.Errorf("certificate of %d bytes, at most %d are read", len(signed), maxStatement)
	}
	n, err := note.Open([]byte(signed), deployment)
	if err != nil {
		return "", fmt.Errorf("certificate of epoch %s: no trusted deployment key signed it: %w", c.Epoch, err)
	}
	if n.Text != c.text() {
		return "", fmt.Errorf("certificate of epoch %s: it is about something else", c.Epoch)
	}
	return n.Sigs[0].Name, nil
}
