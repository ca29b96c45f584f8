package record

import (
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/hybrid"
	"github.com/tink-crypto/tink-go/v2/keyset"
)

// Unwrap returns the data key of a key frame in clear, to hand out what it
// sealed and nothing else of the tenant's.
func Unwrap(tenant *keyset.Handle, e Epoch, f *Frame) ([]byte, error) {
	if f.Kind != KindKey {
		return nil, fmt.Errorf("a %s frame carries no key", f.Kind)
	}
	h, err := hybrid.NewHybridDecrypt(tenant)
	if err != nil {
		return nil, fmt.Errorf("the keyset is no private keyset for hybrid encryption: %w", err)
	}
	raw, err := h.Decrypt(f.Body, wrapInfo(e, f.Key))
	if err != nil {
		return nil, fmt.Errorf("data key %x: cannot be unwrapped with this keyset: %w", f.Key, err)
	}
	return raw, nil
}

// AddKey takes in a data key in clear. An opener without a tenant's keyset,
// the zero value, has these alone. It must not be called while others use it.
func (o *Opener) AddKey(e Epoch, id KeyID, raw []byte) error {
	if len(raw) != keySize {
		return fmt.Errorf("data key %x: %d bytes, want %d", id, len(raw), keySize)
	}
	aead, err := subtle.NewAESGCM(raw)
	if err != nil {
		return fmt.Errorf("data key %x: %w", id, err)
	}
	if o.keys == nil {
		o.keys = map[openKey]*subtle.AESGCM{}
	}
	o.keys[openKey{e, id}] = aead
	return nil
}
