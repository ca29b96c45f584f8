// Package record holds the record: the smallest piece of evidence, its sealed
// frame, its digest, and the events that its body carries.
//
// # Life of a record
//
// The gateway fills a [Draft]. The journal gives it the next sequence number of
// the epoch, seals its body with the session's data key ([Sealer]) and stores
// the [Frame]. The frame's bytes never change again: the journal, the
// transport and the vault carry the same bytes, and the leaf ([Frame.Leaf]) is
// the SHA-256 of exactly these. A reader opens the body with the tenant's
// private keyset ([Opener]).
//
// # Frame, version 1
//
// All numbers are big endian.
//
//	offset size
//	0      4    length of what follows this field, in bytes
//	4      1    version, 1
//	5      1    kind
//	6      1    direction
//	7      1    flags
//	8      8    sequence in the epoch, dense from 1; 0 in a key frame
//	16     8    exchange: the sequence of the exchange's first record
//	24     4    piece: index of a payload within its direction, from 0
//	28     8    offset of the piece's first byte in the body
//	36     8    time, Unix nanoseconds
//	44     8    expiry, Unix seconds, 0 for none
//	52     16   key id, zero where the body is not sealed
//	68     1    length of the retention class, at most 32
//	69     n    retention class
//	69+n   m    body: nonce, ciphertext and tag, or plain where the key id is zero
//	end-4  4    CRC32C (Castagnoli) of all the bytes before it
//
// The associated data of the seal is [sealContext], the epoch and the header
// from the version to the class, so a body cannot be moved to another place.
//
// Frames of kind [KindKey] and [KindCheckpoint] have no leaf: a wrapped key
// must be erasable without breaking a proof, and a checkpoint is about leaves.
package record
