// Package index keeps one row for each exchange in Parquet files, for engines
// that search many: DuckDB, BigQuery external tables, and [Scan].
//
// Its rules: the index follows from the vault's segments alone and may be lost;
// whatever crashes, late segments or settings of memory there were, the same
// vault gives the same rows, and one that only grew the same files; no exchange
// has two rows; and what was erased is in none of its bytes. It holds in clear
// what the vault seals, so it rests apart from it, where it can be erased, and
// is built by an identity that may decrypt.
//
//	exchanges/dt=DAY/EPOCH-FIRST.parquet   rows; DAY is the UTC day of the request
//	state/epochs/GATEWAY/EPOCH.json        what of an epoch was read, which exchanges are open
//	state/files.json                       when the first row of each file expires
//	state/erasures.json                    erasures whose rows are gone
//	state/rebuild.json                     a rebuild is under way
//
// # Which row lies where
//
// A row lies in the file of its first record: of the epoch, the day of the
// request, and the block of 65,536 sequences that the exchange's id is in, cut
// where what begins in it grows beyond 32 MB of sealed bodies. So a name follows
// from the records, and an exchange's outcome, which may come segments or epochs
// later, finds the row again. Rows without an outcome are there with the result
// "pending" and are listed in the state; the outcome, or recovery's in a later
// epoch, writes the file anew. A file is replaced whole.
//
// # What makes it safe to stop anywhere
//
// A build writes files first and then the state that says which segments they
// hold. What was written without being said is written again, the same rows in
// the same places. Objects are replaced only in the place of the version that
// was read (a generation in Cloud Storage, a digest and a lock in a folder), so
// two builds, or a build and a purge, cannot undo each other's work: one gives
// way with [ErrChanged]. A segment that comes after those behind it makes these
// be read again.
//
// # Erased, expired, damaged
//
// An exchange of which a key was erased has no row. [Purge] takes rows out when
// an erasure is made, and each build those of erasures that it has not heard of.
// A build looks for erasures after it has written, and a purge comes after the
// erasure's tombstones are durable: so either the build sees the erasure or the
// purge sees its files. Only a build that is killed between its write and its look, during
// an erasure, leaves rows; "recorder erase finish" or the next build takes them.
//
// Rows whose segment is gone when their retention is over are taken out by the
// next build; what a hold keeps in the vault stays in the index. Where a key is
// missing without an erasure, the row has what stands outside the seal. What of
// a damaged segment cannot be read is left out, and it is not read again: after
// it was mended, rebuild.
//
// Memory is 128 MB of rows and the file that is written, whatever the vault's size, besides the
// exchanges that are open at one time; a check adds a bit for each row.
package index
