package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"sync"
	"time"
)

// proofs remembers tokens whose signatures were verified: a caller brings the
// same token with each of its requests. What is remembered is no more than that
// a key signed these bytes, and what the bytes say. Every use asks anew whether
// the issuer still publishes that key and whether the token is valid now, so a
// rotated key, an expired token or an issuer that is gone counts as if the token
// came for the first time. A Verifier has its own: a new configuration begins with none.
// Revocation is not for this package to see; it follows each Verify.
type proofs = generations[proof]

// generations holds what is known of tokens, by their SHA-256: at most two
// generations. When young is full it becomes old, and what old held is
// forgotten. So memory is bounded, and tokens in use stay.
type generations[T any] struct {
	mu         sync.Mutex
	young, old map[[sha256.Size]byte]*T
}

// maxProofs is how many tokens a generation has.
const maxProofs = 2048

// proof is what a verified token proved.
type proof struct {
	issuer   *issuer
	header   header
	key      crypto.PublicKey // that verified it
	times    claims           // exp, nbf and iat
	identity Identity
}

func newGenerations[T any]() *generations[T] {
	return &generations[T]{young: map[[sha256.Size]byte]*T{}}
}

func (p *generations[T]) get(sum [sha256.Size]byte) *T {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.young[sum]; found != nil {
		return found
	}
	found := p.old[sum]
	if found != nil {
		p.add(sum, found)
	}
	return found
}

func (p *generations[T]) put(sum [sha256.Size]byte, found *T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(sum, found)
}

// add needs the mutex.
func (p *generations[T]) add(sum [sha256.Size]byte, found *T) {
	if len(p.young) >= maxProofs {
		p.old, p.young = p.young, make(map[[sha256.Size]byte]*T, maxProofs)
	}
	p.young[sum] = found
}

// holds reports the identity again, or nil where the token has to be verified
// in full: to find its key among new ones, or to be told what is wrong.
func (p *proof) holds(ctx context.Context, now time.Time) *Identity {
	keys, refusal := p.issuer.keys.lookup(ctx, p.header)
	if refusal != nil {
		return nil
	}
	for i := range keys {
		if !sameKey(keys[i].Key, p.key) {
			continue
		}
		if _, err := p.issuer.times(p.times, now); err != nil {
			return nil
		}
		id := p.identity
		return &id
	}
	return nil
}

// sameKey compares public keys of any of the kinds that key sets hold.
func sameKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) { // until the set is fetched again, it is the very same
	case *rsa.PublicKey:
		if b, ok := b.(*rsa.PublicKey); ok && a == b {
			return true
		}
	case *ecdsa.PublicKey:
		if b, ok := b.(*ecdsa.PublicKey); ok && a == b {
			return true
		}
	}
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
