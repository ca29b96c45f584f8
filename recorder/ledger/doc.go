// Package ledger proves what a vault holds: it reads every segment and says
// either that the records are the ones the gateways wrote, whole and in order,
// or which record is the first that is wrong, and how.
//
// Its rules: nothing in the vault is trusted, least of all a name or a length;
// no finding stops the reading, since what lies behind it must be judged too;
// memory does not grow with the number of records, only with that of epochs and
// of exchanges that are open at one time; and what was found does not depend on
// how many segments are read at one time.
//
// Every byte is bound by a chain of digests to the end of its epoch, each
// checkpoint is signed with a key that lived in the gateway's memory only, and
// each epoch's end is cited by the next epoch's first record.
//
// What is not there has expired only where something says so that an epoch's
// key signed: the cut checkpoint of a segment says it of the segment's classes,
// and lies in the segment whose parts have gone, or in the expiry note that took
// the segment's place; every later checkpoint, and the next epoch's citation, say
// it of all that came before, for where a lifecycle leaves no note. The key is
// named by the epoch's first record, and when that has gone by a copy of it,
// which is certified as the record was. Only of gateways of earlier versions,
// which signed no dates, is it told by the verifier's own retention.
//
// Whose keys these are, and how far the vault must reach, it is told by the
// verifier ([Options]): deployment keys, heads kept elsewhere, receipts, a
// register of gateways.
package ledger
