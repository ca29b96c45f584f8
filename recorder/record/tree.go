package record

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// maxLevels is more than an epoch's records can fill.
const maxLevels = 48

// Tree is the right edge of an epoch's Merkle tree (RFC 6962, section 2.1, as
// golang.org/x/mod/sumdb/tlog hashes it): all that is needed to add leaves and
// to state the root. Entry i of the tree is the leaf of the record with
// sequence i+1. The zero value is the empty tree. Trees can be compared.
type Tree struct {
	size uint64
	// edge[i] is the root of the complete subtree of 2^i leaves where bit i of
	// size is set, zero elsewhere.
	edge [maxLevels]tlog.Hash
}

// Size returns the number of leaves.
func (t *Tree) Size() uint64 { return t.size }

// Add appends a leaf.
func (t *Tree) Add(leaf [sha256.Size]byte) {
	h := tlog.RecordHash(leaf[:])
	i := bits.TrailingZeros64(^t.size)
	for k := range i {
		h = tlog.NodeHash(t.edge[k], h)
		t.edge[k] = tlog.Hash{}
	}
	t.edge[i] = h
	t.size++
}

// Root returns the tree's root hash; of the empty tree, the hash of nothing.
func (t *Tree) Root() [sha256.Size]byte {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	i := bits.TrailingZeros64(t.size)
	h := t.edge[i]
	for i++; i < maxLevels; i++ {
		if t.size>>i&1 == 1 {
			h = tlog.NodeHash(t.edge[i], h)
		}
	}
	return h
}

// MarshalText writes the size and the hashes of the edge, lowest level first:
// "5:HEX,HEX".
func (t Tree) MarshalText() ([]byte, error) {
	var edge []string
	for i := range maxLevels {
		if t.size>>i&1 == 1 {
			edge = append(edge, hex.EncodeToString(t.edge[i][:]))
		}
	}
	return fmt.Appendf(nil, "%d:%s", t.size, strings.Join(edge, ",")), nil
}

// UnmarshalText reads what MarshalText wrote.
func (t *Tree) UnmarshalText(b []byte) error {
	size, rest, ok := strings.Cut(string(b), ":")
	var n uint64
	if _, err := fmt.Sscanf(size, "%d", &n); err != nil || !ok || fmt.Sprint(n) != size || n >= 1<<maxLevels {
		return fmt.Errorf("tree %.20q: want SIZE:HASHES", b)
	}
	var hashes []string
	if rest != "" {
		hashes = strings.Split(rest, ",")
	}
	if len(hashes) != bits.OnesCount64(n) {
		return fmt.Errorf("tree of %d leaves: %d hashes in its edge, want %d", n, len(hashes), bits.OnesCount64(n))
	}
	out := Tree{size: n}
	for i := range maxLevels {
		if n>>i&1 == 0 {
			continue
		}
		h, err := hex.DecodeString(hashes[0])
		if err != nil || len(h) != sha256.Size {
			return fmt.Errorf("tree of %d leaves: %.70q is no hash", n, hashes[0])
		}
		out.edge[i], hashes = tlog.Hash(h), hashes[1:]
	}
	*t = out
	return nil
}
