// Package bigquery says what a call to BigQuery means. It does no I/O, knows
// no policy, and keeps one rule: a request has one meaning or is refused.
// Whatever Envoy, a proxy or BigQuery could read in another way than this
// package does (encodings, twin keys, overridden methods, several types of job
// in one body) is not passed on.
//
// [Classify] maps method and path to a row of the route table ([Routes]) and
// gives the one canonical path to send upstream. [ParseBody] reads the JSON
// body into [Facts]; [Rewrite] edits it in place, leaving all other bytes as
// they came. [Scanner] picks facts out of a response as it streams past.
// [ErrorBody] writes errors as BigQuery does. The surface and its stance are
// listed in README.md, which a test holds to the table.
package bigquery
