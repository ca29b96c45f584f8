// Package pubsub carries frames from a gateway's journal to the sink over
// Google Cloud Pub/Sub.
//
// The rule of this folder: order and duplicates are resolved by what a message
// says of itself, never by how it was delivered. A message may come twice, late,
// to another sink, or in other pieces after the gateway began again; what the
// vault holds in the end is the same.
//
// # Positions
//
// Frames of an epoch have positions: S.0 is the record with sequence S, S.1 the
// first checkpoint behind it, S.2 the next one (a recovery's cut follows on one
// that was none); S alone is everything about record S. A wrapped key has no
// position: it stands in front of the record that it precedes in the journal,
// and goes where that record goes. Positions follow from the journal alone, so
// they are the same however frames are put into messages.
//
// # Messages, protocol 1
//
// On the topic, from gateways:
//
//	protocol   "1"
//	type       "frames", or "ask": what does the sink hold?
//	gateway    name of the epoch's gateway
//	sender     name of the gateway that ships, and takes the answers
//	epoch      26 characters
//	shard      number from 0, by the epoch's hash
//	after      frames: position that the data follow on
//	upto       frames: position of the last frame; ask: of what was published
//	first,last frames: sequences of the first and last record, 0 for none
//	offset,size frames: where in its body the data begin, and the body's length
//	index      frames: count of this sender's messages of the epoch
//
// The body is frames back to back, as they are stored. It is one message, unless
// a single frame is larger than a message may be: then several messages have the
// same after, upto and size, and the data of each begin at offset.
//
// On the acknowledgement topic, from sinks; each gateway has a subscription of
// its own, best with the filter attributes.gateway = "NAME":
//
//	protocol   "1"
//	type       "held": the vault holds the epoch up to sequence
//	           "missing": frames behind after, up to upto, have not come
//	           "refused": the epoch's evidence is wrong; the data say why
//	gateway    the sender of the frames
//	epoch
//	sequence   held
//	after,upto missing
//
// # What is acknowledged when
//
// A message is acknowledged to Pub/Sub when the vault holds what it carries, so
// a sink that dies gets it again. The journal frees what the sink says is held.
// Neither side keeps anything of its own: a sink begins where the vault ends, a
// gateway begins at the oldest frame that is not held, after it asked. Lost
// answers are asked for again; a gap that does not close is asked for by the
// sink and read from the journal once more.
//
// # A gateway that does not come back
//
// What Pub/Sub confirmed and nobody cut would wait for ever when the gateway's
// disk is lost. So where nothing new of an epoch has come for a while the server
// asks the sink ([transport.Salvager]), which knows whether the epoch is over, to
// make durable what has come up to the last checkpoint; and the beginning of an
// epoch makes it look for those that its journal does not have
// ([transport.Heir]). What lies behind a gap is kept aside much later, when no
// lease on a message can be left: until then it may still be chained.
//
// Two sinks on one subscription would each get a part of an epoch. What they
// write is right, but neither comes on; then each gives its part back after a
// while, for a random time, until one has it all. Run one sink for a shard.
//
// Who may publish on the acknowledgement topic may free journals: give that right
// to the sink alone.
package pubsub
