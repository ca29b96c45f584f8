package conformance

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestReadmeListsEveryCase fails when the README and the cases differ.
func TestReadmeListsEveryCase(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, c := range Cases {
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s | unproven |\n", c.Name, c.Assumption, c.Where, c.Otherwise)
	}
	if !strings.Contains(string(b), want.String()) {
		t.Errorf("README.md does not hold this table:\n%s", want.String())
	}
}

// TestEveryCaseHasATest reads the test file that runs with a real project.
func TestEveryCaseHasATest(t *testing.T) {
	b, err := os.ReadFile("google_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Cases {
		if !strings.Contains(string(b), `"`+c.Name+`":`) {
			t.Errorf("google_test.go has no test for the case %s", c.Name)
		}
	}
}
