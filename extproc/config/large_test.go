package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A large deployment's file is read in good time, and what could lead the parser
// deep or make it slow ends soon.
func TestLargeFiles(t *testing.T) {
	var b strings.Builder
	b.WriteString(minimal)
	b.Reset()
	b.WriteString(strings.SplitAfter(minimal, "connections:")[0] + "\n")
	for i := 0; b.Len() < maxFile-300; i++ {
		fmt.Fprintf(&b, "  - name: team-%d\n    projects: [team-%d-prod, team-%d-dev]\n    location: EU\n    credential:\n      kind: impersonation\n      source: {kind: adc}\n      target: t%d@p.iam.gserviceaccount.com\n", i, i, i, i)
	}
	nest := ""
	for i := range 200 {
		nest += strings.Repeat(" ", i) + "a:\n"
	}
	for name, text := range map[string]string{
		"large":    b.String(),
		"too long": strings.Repeat("#", maxFile+1),
		"brackets": strings.Repeat("[", maxFile), "braces": strings.Repeat("{", maxFile), "items": strings.Repeat("- ", maxFile/2),
		"maps in maps": "{" + strings.Repeat("a: {", maxFile/5), "colons": strings.Repeat(":", maxFile), "quotes": strings.Repeat("'", maxFile-1),
		"complex keys": strings.Repeat("? ", maxFile/2), "indented": nest, "tags": strings.Repeat("!a ", maxFile/3), "anchors": strings.Repeat("&a ", maxFile/3),
	} {
		begun := time.Now()
		_, err := Parse("x.yaml", []byte(text))
		if err == nil {
			t.Errorf("%s is taken", name)
		}
		if name == "large" && strings.Contains(err.Error(), "connection") {
			t.Errorf("large: %v", err)
		}
		if d := time.Since(begun); d > 20*time.Second {
			t.Errorf("%s took %s", name, d)
		} else {
			t.Logf("%s: %s, %.100s", name, d, err)
		}
	}
}
