// Package server holds the exchange: one HTTP request and its response through
// Envoy, as one ext_proc stream.
//
// # Life of an exchange
//
//	request headers   head: what the call means, who is calling, which
//	                  connection; refused here, it is denied before a body is read
//	request body      held whole (JSON, bounded) or up to the first part of an
//	                  upload; then decide: what the call uses, policy (with
//	                  BigQuery's dry run where it asks), ownership, credential
//	intent            durable, with the request's bytes, before anything goes
//	                  upstream; an upload's later pieces each before they go on
//	response          pieces are journaled as they come and released in order
//	                  when they are durable; the last one is held until the end
//	                  is known
//	outcome           durable in the same commit as the last piece; then the
//	                  last byte goes out
//
// # What a call uses
//
// Each call's tables are found before it is decided, whichever door they come
// through: the SQL by package policy/sql, with the job's project, defaultDataset
// and parameters; view texts and routine bodies likewise; destinations, copies,
// loads, extracts and routes by their names, in the same canonical form. SQL that
// is not understood is denied with line and column, or after a time limit. The
// names go into the policy's input and the intent.
//
// Where the policy asks, or the parser cannot read a text that is otherwise sound,
// the gateway makes a dry run with the caller's own project, location and
// credential: a received record, a probe record, and the policy decides again, once. A dry
// run without a list of tables where one is due, or with 50, does not count.
// Answers are kept for a short time by text, caller, connection, default dataset
// and types of parameters, and asked for once by all who wait. Of BigQuery's
// refusals the caller reads what names nothing beyond its own text.
//
// A decision that rests on what a view or routine reached is held against the
// finished job before the first row goes out: its referenced tables, by another
// probe. The job runs without BigQuery's cache then, for a cached result has no
// such list, and carries the list's HMAC as a label for other replicas. Calls
// that involve neither make no probe and no extra commit.
//
// In the mode observe (of a connection, or of callers) the policy's denials are
// recorded as would_deny and let through. All else denies as ever: who is calling,
// ownership, routes, SQL that is not understood, a policy that fails, recording.
//
// An agent's message (/mcp, the Model Context Protocol) is the REST call that its
// tool stands for, judged and recorded as that; BigQuery's answer goes into the
// message as it streams.
//
// A call to the gateway itself (a token to exchange, who am I) is answered like a
// denial, and on record like one: intent, answer and outcome in one commit. Of a
// form with a token in it the record keeps the harmless fields alone.
//
// A denial is intent, answer and outcome in one commit, then an immediate
// response. A failure after the response's head went out ends the stream with
// an error, which makes Envoy reset the caller's connection: never a clean end.
//
// [exchange.step] takes one event and returns what to send; it knows protobuf
// messages but no stream, no goroutine and no clock of its own, so tables of
// messages test it. [Server.Process] owns the goroutines: one receives, one
// sends, one steps.
//
// # Memory
//
// An exchange counts what it holds: the bytes of bodies that it received and has
// not sent on, the same bytes once more while the journal makes them durable, and
// what gRPC keeps for a reader that does not drain it. It counts them against its
// Share, and beyond that against the global Budget, of which a body that streams
// borrows at most a quarter of what is left. gRPC holds at most Window bytes of a
// stream that were not received yet. So the process stays below
//
//	Exchanges x (Window + Share) + Budget + its base
//
// A body that is held to decide on it counts four times, for what it becomes; one
// that finds no room is answered 503. Because each exchange owns its share, none
// waits for another to make progress. Bodies lie in buffers that are used again
// ([codec]), so that garbage does not come on top.
package server
