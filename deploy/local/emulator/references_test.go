package emulator

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestReferences has dry runs and jobs say what is behind views and functions.
func TestReferences(t *testing.T) {
	d, url := newDouble(t, Config{})
	d.SetView("p.d.v", "SELECT a FROM `p.e.base`")
	d.SetView("p.d.w", "SELECT a FROM p.d.v")
	d.SetRoutine("p.d.f", "(SELECT MAX(a) FROM `p.e.hidden`)")
	d.SetBytes("p.e.base", 1000)
	d.SetReferences("SELECT 'told'", &References{StatementType: "SELECT", Tables: []string{"p.d.told"}})
	d.SetReferences("SELECT 'none'", &References{StatementType: "SELECT", Tables: []string{"p.d.told"}, NoTables: true})
	for _, c := range []struct {
		text   string
		status int
		has    []string
		hasNot []string
	}{
		{"SELECT 1", 200, []string{`"statementType":"SELECT"`}, []string{"referenced"}},
		{"SELECT a FROM p.d.w", 200, []string{`"tableId":"w"`, `"tableId":"v"`, `"tableId":"base"`, `"totalBytesProcessed":"1000"`}, nil},
		{"SELECT p.d.f()", 200, []string{`"routineId":"f"`, `"tableId":"hidden"`}, nil},
		{"CREATE TABLE d.x AS SELECT a FROM d.v", 200, []string{`"ddlTargetTable":{"datasetId":"d","projectId":"p","tableId":"x"}`, `"CREATE_TABLE_AS_SELECT"`}, nil},
		{"DELETE FROM d.t WHERE TRUE", 200, []string{`"destinationTable":{"datasetId":"d","projectId":"p","tableId":"t"}`}, []string{"ddlTarget"}},
		{"SELECT 1; SELECT 2", 200, []string{`"statementType":"SCRIPT"`}, nil},
		{"SELECT 'told'", 200, []string{`"tableId":"told"`}, nil},
		{"SELECT 'none'", 200, nil, []string{"referencedTables"}},
		{"SELECT FROM WHERE", 400, []string{"Syntax error"}, nil},
	} {
		for _, dry := range []bool{true, false} {
			b, err := json.Marshal(map[string]any{"configuration": map[string]any{"dryRun": dry, "query": map[string]any{"query": c.text}}})
			if err != nil {
				t.Fatal(err)
			}
			if !dry && c.status != 200 {
				continue
			}
			res, got := do(t, "POST", url+"/bigquery/v2/projects/p/jobs", strings.NewReader(string(b)))
			if res.StatusCode != c.status {
				t.Errorf("%s: %d %s", c.text, res.StatusCode, got)
			}
			for _, s := range c.has {
				if !strings.Contains(string(got), s) {
					t.Errorf("%s (dry %v): %s is not in %s", c.text, dry, s, got)
				}
			}
			for _, s := range c.hasNot {
				if strings.Contains(string(got), s) {
					t.Errorf("%s (dry %v): %s is in %s", c.text, dry, s, got)
				}
			}
		}
	}
}
