package record

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
)

// Receipt is what a caller gets for an exchange: its id, the leaf of its first
// record and the epoch's signature. A signed receipt whose record is not in the
// vault proves that it was left out. It is written ID.LEAF.SIGNATURE, the
// latter two in base64url without padding.
type Receipt struct {
	ID        ID
	Leaf      [sha256.Size]byte
	Signature [ed25519.SignatureSize]byte
}

// receiptContext begins what is signed.
const receiptContext = "verbatim/receipt/1\n"

func receiptMessage(origin string, id ID, leaf [sha256.Size]byte) []byte {
	return fmt.Appendf(nil, "%s%s\n%d\n%x\n", receiptContext, origin, id.Sequence, leaf[:])
}

// Receipt signs the receipt of an exchange whose first record has the leaf.
func (k *EpochKey) Receipt(id ID, leaf [sha256.Size]byte) Receipt {
	r := Receipt{ID: id, Leaf: leaf}
	copy(r.Signature[:], ed25519.Sign(k.private, receiptMessage(k.origin, id, leaf)))
	return r
}

// Verify reports whether the key of the gateway's epoch signed the receipt.
func (r Receipt) Verify(gateway string, key ed25519.PublicKey) bool {
	return len(key) == ed25519.PublicKeySize &&
		ed25519.Verify(key, receiptMessage(Origin(gateway, r.ID.Epoch), r.ID, r.Leaf), r.Signature[:])
}

// String returns ID.LEAF.SIGNATURE.
func (r Receipt) String() string {
	return r.ID.String() + "." + base64.RawURLEncoding.EncodeToString(r.Leaf[:]) + "." + base64.RawURLEncoding.EncodeToString(r.Signature[:])
}

// ParseReceipt reads what String wrote.
func ParseReceipt(s string) (Receipt, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 {
		return Receipt{}, fmt.Errorf("receipt: want ID.LEAF.SIGNATURE, as in the x-verbatim-receipt header")
	}
	id, err := ParseID(parts[0])
	if err != nil {
		return Receipt{}, err
	}
	r := Receipt{ID: id}
	for i, to := range [][]byte{r.Leaf[:], r.Signature[:]} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(parts[i+1])
		if err != nil || len(b) != len(to) {
			return Receipt{}, fmt.Errorf("receipt: part %d is not %d bytes in base64url", i+2, len(to))
		}
		copy(to, b)
	}
	return r, nil
}
