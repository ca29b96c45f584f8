package witness

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is what a log states: https://c2sp.org/tlog-checkpoint.
type Checkpoint struct {
	Origin string
	tlog.Tree
}

// MaxCheckpoint is the longest signed checkpoint that is read, in bytes.
const MaxCheckpoint = 64 << 10

// Text returns the text that is signed.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.N, base64.StdEncoding.EncodeToString(c.Hash[:]))
}

// ParseCheckpoint reads the text of a checkpoint. Extension lines may follow.
func ParseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) != 4 || lines[0] == "" || !strings.HasSuffix(text, "\n") {
		return Checkpoint{}, errors.New("checkpoint: want an origin, a size and a root, a line each")
	}
	c := Checkpoint{Origin: lines[0]}
	var err error
	if c.N, err = parseSize(lines[1]); err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	if c.Hash, err = parseHash(lines[2]); err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: root: %w", err)
	}
	if lines[3] != "" {
		for l := range strings.SplitSeq(strings.TrimSuffix(lines[3], "\n"), "\n") {
			if l == "" {
				return Checkpoint{}, errors.New("checkpoint: an extension line is empty")
			}
		}
	}
	return c, nil
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("size %.30q: want a decimal number with no zeroes before it", s)
	}
	return n, nil
}

func parseHash(s string) (tlog.Hash, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != tlog.HashSize || base64.StdEncoding.EncodeToString(b) != s {
		return tlog.Hash{}, fmt.Errorf("%.60q: want the base64 of %d bytes", s, tlog.HashSize)
	}
	return tlog.Hash(b), nil
}

// Origin returns the origin of a signed checkpoint that nothing has verified.
func Origin(signed []byte) string {
	origin, _, _ := strings.Cut(string(signed), "\n")
	return origin
}

// OpenCheckpoint reads a signed checkpoint of the log whose key is given, and
// returns it with the signatures by that key and by others given.
func OpenCheckpoint(signed []byte, log note.Verifier, others ...note.Verifier) (Checkpoint, *note.Note, error) {
	if len(signed) > MaxCheckpoint {
		return Checkpoint{}, nil, fmt.Errorf("checkpoint of %d bytes, at most %d are read", len(signed), MaxCheckpoint)
	}
	n, err := note.Open(signed, note.VerifierList(append([]note.Verifier{log}, others...)...))
	if err != nil {
		return Checkpoint{}, nil, fmt.Errorf("checkpoint: %w", err)
	}
	signs := false
	for _, s := range n.Sigs {
		signs = signs || s.Name == log.Name() && s.Hash == log.KeyHash()
	}
	if !signs {
		return Checkpoint{}, nil, fmt.Errorf("checkpoint: not signed by %s", log.Name())
	}
	c, err := ParseCheckpoint(n.Text)
	if err == nil && c.Origin != log.Name() {
		err = fmt.Errorf("checkpoint: of the log %.80q, not of %s", c.Origin, log.Name())
	}
	return c, n, err
}

// CheckConsistency reports whether the old tree is a prefix of the new one. The
// old tree may be empty, and the proof must then be too.
func CheckConsistency(proof tlog.TreeProof, new, old tlog.Tree) error {
	switch {
	case old.N > new.N:
		return fmt.Errorf("a tree of %d is no prefix of one of %d", old.N, new.N)
	case old.N == 0:
		if len(proof) != 0 {
			return errors.New("the proof from an empty tree must be empty")
		}
		if new.N == 0 && new.Hash != EmptyRoot {
			return errors.New("the root of the empty tree is wrong")
		}
		return nil
	}
	return tlog.CheckTree(proof, new.N, new.Hash, old.N, old.Hash)
}
