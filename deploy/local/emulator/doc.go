// Package emulator is the BigQuery that tests and local runs talk to: the
// bqemulator program behind a double written in Go.
//
// Rule of the folder: the double stands in for the real service where it
// matters to a gateway, and makes nothing up about SQL. It checks the
// credential that the gateway puts in, notes every request, speaks the forms of
// upload of all client libraries, gives errors the status and shape that
// BigQuery gives, serves discovery, and can misbehave on request. Without a
// backend it still answers synthetic queries, which stream bytes at memory
// speed, so that benchmarks measure the gateway and not the emulator.
//
// # Synthetic queries
//
// A query whose text holds a comment like
//
//	/*verbatim:bytes=200000000*/
//	/*verbatim:bytes=1000000,delay=50ms*/
//
// is answered by the double: a complete BigQuery result of one STRING column
// whose response body has exactly that many bytes, after the delay. Without a
// backend a query with no such comment gets one row. With run=DURATION its job
// is RUNNING for so long, or until it is cancelled.
//
// # Dry runs
//
// A dry run by jobs.insert, and jobs.get of a query, say which tables and routines
// the query references, views and SQL functions opened up: those that were made
// through the double, that the emulator shows, or that a test told of
// ([Double.SetView], [Double.SetRoutine], [Double.SetReferences]). It reads with the
// gateway's own parser, and so proves nothing about that.
//
// # Uploads
//
// Without a backend, and with one when the destination's dataset is
// [DiscardDataset], uploaded bytes are counted and hashed ([Double.Uploads])
// and thrown away.
package emulator
