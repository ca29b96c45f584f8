// Package faults breaks every part in turn, with the real Envoy in front, and
// looks at what the caller gets and what is on record afterwards: a clear error
// or an abort, never unrecorded data, never a clean end of a cut response.
package faults

import (
	"testing"

	"verbatim.dev/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
