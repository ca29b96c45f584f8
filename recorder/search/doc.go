// Package search puts exchanges together from the records of a vault, finds
// those that a filter wants, and shows one whole.
//
// Its rules: what is shown was recorded, nothing is guessed, so an exchange
// whose data key is gone shows what stands outside the seal and says so; damage
// is passed over with a warning, for verification is the ledger's part; and
// memory holds the exchanges that are open at one time and the ones that are
// asked for, whatever the vault's size.
package search
