package search

import (
	"regexp"
	"strings"
	"testing"
)

func FuzzLike(f *testing.F) {
	for _, s := range [][2]string{{"corp/*", "corp/etl"}, {"*a*a*", "aba"}, {"a*a", "a"}, {"**", ""}, {"", ""}, {"*x", "x"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		// A regular expression reads invalid UTF-8 otherwise.
		pattern, s = strings.ToValidUTF8(pattern, "?"), strings.ToValidUTF8(s, "?")
		parts := strings.Split(strings.ToLower(pattern), "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		if len(pattern) > 500 {
			return
		}
		want := regexp.MustCompile(`(?s)^` + strings.Join(parts, ".*") + `$`).MatchString(strings.ToLower(s))
		if got := like(pattern, s); got != want {
			t.Errorf("like(%q, %q) = %v", pattern, s, got)
		}
	})
}
