package auth

// MaxProofs is maxProofs, for tests.
const MaxProofs = maxProofs

// Remembered returns how many tokens each generation holds.
func (v *Verifier) Remembered() (young, old int) {
	v.proofs.mu.Lock()
	defer v.proofs.mu.Unlock()
	return len(v.proofs.young), len(v.proofs.old)
}
