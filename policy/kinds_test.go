package policy

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"verbatim.dev/policy/sql"
)

// TestKindsAreKnown holds the default policy to the kinds of statements that the
// analysis gives for its own corpus: one that is not here would be refused as
// unknown.
func TestKindsAreKnown(t *testing.T) {
	rules, err := os.ReadFile("default/uses.rego")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(rules), "reading_kinds := {")
	section, _, ok2 := strings.Cut(section, "known_kind(kind)")
	if !ok || !ok2 {
		t.Fatal("default/uses.rego: no lists of kinds")
	}
	known := map[string]bool{}
	for _, m := range regexp.MustCompile(`"([A-Z_]+)"`).FindAllStringSubmatch(section, -1) {
		known[m[1]] = true
	}
	refused := regexp.MustCompile(`ROW_ACCESS_POLIC|RESERVATION|ASSIGNMENT|CAPACITY|ORGANIZATION|PROJECT|CONNECTION|DATA_POLICY|INDEX$|PROPERTY_GRAPH|TAG|FAILOVER|BACKUP`)
	files, err := filepath.Glob("sql/testdata/facts/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var texts, kinds int
	var unknown []string
	for _, file := range files {
		corpus, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for block := range strings.SplitSeq(string(corpus), "\n====\n") {
			text, _, _ := strings.Cut(block, "\n----\n")
			text = regexp.MustCompile(`(?m)\A(//.*\n)*`).ReplaceAllString(text, "")
			f := sql.Analyze(context.Background(), text, sql.Options{Project: "p", DatasetProject: "p", Dataset: "d"})
			if f.Problem != nil {
				continue
			}
			texts++
			for _, s := range f.Statements {
				kinds++
				if !known[s.Kind] && !refused.MatchString(s.Kind) && !slices.Contains(unknown, s.Kind) {
					unknown = append(unknown, s.Kind)
				}
			}
		}
	}
	if texts < 200 || kinds < texts {
		t.Errorf("%d texts with %d statements: is the corpus elsewhere now?", texts, kinds)
	}
	if len(unknown) > 0 {
		t.Errorf("default/uses.rego does not know %v", unknown)
	}
}
