// Package ledger proves what a vault holds: it reads every segment and says
// either that the records are the ones the gateways wrote, whole and in order,
// or which record is the first that is wrong, and how.
//
// Its rules: nothing in the vault is trusted, least of all a name or a length;
// no finding stops the reading, since what lies behind it must be judged too;
// and memory does not grow with the number of records, only with that of
// epochs and of exchanges that are open at one time.
//
// What it can prove without signed checkpoints: every byte is bound by a chain
// of digests to the end of its epoch, and each epoch's end is cited by the next
// epoch's first record. So one record cannot be changed without changing all
// that follow. Who may write the whole vault can do just that; only a
// signature, or a head kept elsewhere, stands against it.
package ledger
