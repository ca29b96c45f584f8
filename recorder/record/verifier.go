package record

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Verifier checks what an epoch's key signed.
type Verifier struct {
	note.Verifier
	key ed25519.PublicKey
}

// ParseVerifier reads an epoch's verifier key, NAME+HASH+KEY as package note
// writes it, whose name must be the epoch's origin.
func ParseVerifier(vkey, gateway string, e Epoch) (*Verifier, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("verifier key %.100q: %w", vkey, err)
	}
	if v.Name() != Origin(gateway, e) {
		return nil, fmt.Errorf("verifier key is named %.100q, the epoch is %s", v.Name(), Origin(gateway, e))
	}
	// The name holds no plus sign, see note.NewVerifier.
	parts := strings.SplitN(vkey, "+", 3)
	b, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(b) != 1+ed25519.PublicKeySize {
		return nil, errors.New("verifier key: not an Ed25519 key")
	}
	return &Verifier{v, b[1:]}, nil
}

// Receipt reports whether the key signed the receipt of the gateway.
func (v *Verifier) Receipt(gateway string, r Receipt) bool { return r.Verify(gateway, v.key) }
