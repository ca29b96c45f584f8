// Package e2e tests Verbatim as its users meet it: through the real Envoy, with
// real clients.
package e2e

import (
	"testing"

	"verbatim.dev/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
