// Package ledger proves what a vault holds: it reads every segment and says
// either that the records are the ones the gateways wrote, whole and in order,
// or which record is the first that is wrong, and how.
//
// Its rules: nothing in the vault is trusted, least of all a name or a length;
// no finding stops the reading, since what lies behind it must be judged too;
// and memory does not grow with the number of records, only with that of
// epochs and of exchanges that are open at one time.
//
// Every byte is bound by a chain of digests to the end of its epoch, each
// checkpoint is signed with a key that lived in the gateway's memory only, and
// each epoch's end is cited by the next epoch's first record. Whose keys these
// are, and how far the vault must reach, it is told by the verifier ([Options]):
// deployment keys, heads kept elsewhere, receipts, a register of gateways.
package ledger
