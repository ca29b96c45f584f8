package emulator

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite generated files")

// TestDiscoveryMatchesModule holds discovery.json to the document that comes
// with the API's Go module.
func TestDiscoveryMatchesModule(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "google.golang.org/api").Output()
	if err != nil {
		t.Skipf("no Go module at hand: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "bigquery", "v2", "bigquery-api.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(skeleton(doc)); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("discovery.json", out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if out.String() != discoveryText {
		t.Error("discovery.json differs from the module's document: run go test -update -run Discovery")
	}
}

// skeleton keeps the methods, their parameters and the names of the schemas.
func skeleton(doc map[string]any) map[string]any {
	out := map[string]any{
		"kind": "discovery#restDescription", "discoveryVersion": "v1", "id": "bigquery:v2", "name": "bigquery", "version": "v2", "protocol": "rest",
		"title": "BigQuery API", "description": "Methods only.", "rootUrl": discoveryHost + "/", "servicePath": "bigquery/v2/", "basePath": "/bigquery/v2/",
		"baseUrl": discoveryHost + "/bigquery/v2/", "batchPath": "batch/bigquery/v2", "parameters": parameters(doc["parameters"]),
	}
	schemas := map[string]any{}
	for name := range doc["schemas"].(map[string]any) {
		schemas[name] = map[string]any{"id": name, "type": "object", "properties": map[string]any{}}
	}
	out["schemas"] = schemas
	resources := map[string]any{}
	for name, r := range doc["resources"].(map[string]any) {
		methods := map[string]any{}
		for m, v := range r.(map[string]any)["methods"].(map[string]any) {
			keep := map[string]any{}
			for k, v := range v.(map[string]any) {
				switch k {
				case "id", "path", "flatPath", "httpMethod", "parameterOrder", "request", "response", "mediaUpload", "supportsMediaUpload":
					keep[k] = v
				case "parameters":
					keep[k] = parameters(v)
				}
			}
			methods[m] = keep
		}
		resources[name] = map[string]any{"methods": methods}
	}
	out["resources"] = resources
	return out
}

func parameters(v any) map[string]any {
	out := map[string]any{}
	for name, p := range v.(map[string]any) {
		keep := map[string]any{}
		for k, v := range p.(map[string]any) {
			switch k {
			case "type", "location", "required", "repeated", "format", "pattern", "default", "enum":
				keep[k] = v
			}
		}
		out[name] = keep
	}
	return out
}
