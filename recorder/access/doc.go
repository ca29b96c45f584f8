// Package access answers auditors' reads of the evidence over HTTP, and is the
// client that asks.
//
// The rule of this folder: nothing of a record leaves before a record of the
// reading is durable: who, what, why, and which records are given out. Where
// that record cannot be made, nobody gets anything (503). Refusals are on
// record too. What a role does not allow is left out by a list of what it does.
//
// # Protocol
//
// All reads are POST with a JSON body and Authorization: Bearer TOKEN, so that
// neither a filter nor a token stands in a URL.
//
//	POST /v1/search    a [SearchRequest]; answers lines of JSON
//	POST /v1/accesses  an [AccessesRequest]; likewise
//	POST /v1/show      a [ShowRequest]; answers one object
//	POST /v1/payload   a [PayloadRequest]; answers the bytes
//	POST /v1/export    an [ExportRequest]; answers a bundle, a zip file
//	POST /v1/reconcile a [ReconcileRequest] in one line, then BigQuery's list of
//	                   jobs, an entry a line; answers a report
//	GET  /v1/whoami    who the token says is asking, and with which role
//	GET  /healthz      200 while reads can be recorded
//
// Lines of JSON hold one member each: access (the id of the record that what
// follows is given out on), exchange or entry, warning, error, end. Only an
// answer that ends with end is whole. The trailer Verbatim-End of a payload or
// a bundle says whether what was sent is what was recorded: "whole", or the error, quoted.
//
// Errors before the first byte are an HTTP status and {"error": {"code",
// "message"}}. Codes are stable.
package access
