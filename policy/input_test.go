package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

// TestSamplesFitTheSchema holds the input that the engine builds and the
// schema that authors check against to each other, both ways.
func TestSamplesFitTheSchema(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(inputSchema, &schema); err != nil {
		t.Fatal(err)
	}
	for _, s := range samples() {
		v, err := s.input.value(s.input.scan())
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		got, err := ast.JSON(v)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		fits(t, s.name+": input", schema, got)
	}
}

func fits(t *testing.T, at string, schema map[string]any, v any) {
	t.Helper()
	is := ""
	switch v.(type) {
	case map[string]any:
		is = "object"
	case []any:
		is = "array"
	case string:
		is = "string"
	case bool:
		is = "boolean"
	case json.Number:
		is = "integer"
	}
	want, ok := schema["type"].(string)
	if !ok { // anything
		return
	}
	if is != want {
		t.Errorf("%s is %s, want %s", at, is, want)
		return
	}
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			fits(t, at+"[]", schema["items"].(map[string]any), item)
		}
	case map[string]any:
		properties, ok := schema["properties"].(map[string]any)
		if !ok {
			for k, item := range v {
				fits(t, at+"."+k, schema["additionalProperties"].(map[string]any), item)
			}
			return
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s: the schema is open", at)
		}
		for k, item := range v {
			p, ok := properties[k].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is not in the schema", at, k)
				continue
			}
			fits(t, at+"."+k, p, item)
		}
		for k := range properties {
			if _, ok := v[k]; !ok && !slices.Contains([]string{"input.sql", "input.sql.facts", "input.sql.dry_run"}, at[strings.LastIndex(at, "input"):]+"."+k) {
				t.Errorf("%s.%s is in the schema and not in the input", at, k)
			}
		}
	}
}
