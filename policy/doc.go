// Package policy decides, by Rego, what a request to BigQuery may do.
//
// The rule of this folder: no decision means deny. Whatever keeps a policy
// from giving a complete, well-typed decision in time (undefined, an error, a
// missing field, one too many, the deadline) is an [Error], and who gets an
// Error must deny.
//
// An [Engine] holds one [Revision] at a time and swaps it whole. An exchange
// takes [Engine.Current] once and asks that revision only, so a reload in
// mid-exchange changes nothing for it.
//
// The package imports no other part of the product.
package policy
