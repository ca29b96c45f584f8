// Package journal is the gateway's write-ahead log: a ticket that is settled
// without an error means that its records survive a crash of the process or
// the machine.
//
// # On disk
//
//	DIR/lock                                one process per journal (flock)
//	DIR/EPOCH/FIRST.wal                     frames back to back, preallocated
//	DIR/EPOCH/FIRST.state                   what holds before FIRST: see below
//
// FIRST is the first sequence of the file, 20 digits. A commit is one write
// and one fdatasync: key frames, leaf frames, one checkpoint. All that stands
// in front of a good checkpoint was made durable together; what stands behind
// the last one was never acknowledged, and recovery cuts it off. The records of
// one append are in one commit.
//
// A state file is durable before its segment exists. It holds the gateway, the
// chain's head, the exchanges that had no outcome at that point and when the
// last record before it expires, so earlier segments can be freed without
// forgetting any of it.
//
// # Rules
//
// Nothing is retried. After a write or a sync that failed nobody knows what is
// on disk (the kernel may drop the dirty page and call the next sync good), so
// the journal fails for good and takes no more records: the gateway closes its
// gate and starts again, and recovery finds out.
//
// Sequences have no holes. They are given under a short lock, and the record is
// made outside of it. When that fails (a Render that fails or is too large),
// the sequences are already given, so heartbeats that say so ([record.Heartbeat],
// Void) take them, and the ticket gets the error.
//
// Recovery tells a torn tail from damage. A torn write is the last one, so at
// most one good checkpoint can follow bad bytes; with more, or with a later
// segment, records that were acknowledged would be lost, and Open refuses with a
// [DamageError] instead of cutting.
//
// An epoch's open record and the interrupted outcomes of the exchanges that the
// epoch before it left open are one commit. So only the last epoch that has any
// record can have exchanges that are still to be closed.
package journal
