package bigquery

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

type discoveryDoc struct {
	Parameters map[string]json.RawMessage `json:"parameters"`
	Resources  map[string]discoveryRes    `json:"resources"`
	Schemas    map[string]struct {
		Properties map[string]json.RawMessage `json:"properties"`
	} `json:"schemas"`
}

type discoveryRes struct {
	Methods   map[string]discoveryMethod `json:"methods"`
	Resources map[string]discoveryRes    `json:"resources"`
}

type discoveryMethod struct {
	ID         string `json:"id"`
	HTTP       string `json:"httpMethod"`
	FlatPath   string `json:"flatPath"`
	Path       string `json:"path"`
	Parameters map[string]struct {
		Location string `json:"location"`
	} `json:"parameters"`
	Request json.RawMessage `json:"request"`
	Media   struct {
		Protocols map[string]struct {
			Path string `json:"path"`
		} `json:"protocols"`
	} `json:"mediaUpload"`
}

func discovery(t *testing.T) discoveryDoc {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "google.golang.org/api").Output()
	if err != nil {
		t.Fatalf("find the module google.golang.org/api: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "bigquery", "v2", "bigquery-api.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d discoveryDoc
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d discoveryDoc) methods() []discoveryMethod {
	var out []discoveryMethod
	var walk func(discoveryRes)
	walk = func(r discoveryRes) {
		out = slices.AppendSeq(out, maps.Values(r.Methods))
		for _, sub := range r.Resources {
			walk(sub)
		}
	}
	for _, r := range d.Resources {
		walk(r)
	}
	return out
}

var variable = regexp.MustCompile(`\{[^}]*\}`)

func plainTemplate(s string) string { return variable.ReplaceAllString(s, "{}") }

func TestTableHoldsEveryMethod(t *testing.T) {
	d := discovery(t)
	methods := d.methods()
	if len(methods) < 47 {
		t.Fatalf("the discovery document has %d methods, want 47 or more", len(methods))
	}
	find := func(id, http, path string) *compiled {
		for i := range compiledTable {
			if c := &compiledTable[i]; c.ID == id && c.HTTP == http && plainTemplate(c.Path) == plainTemplate(path) {
				return c
			}
		}
		return nil
	}
	for _, m := range methods {
		c := find(m.ID, m.HTTP, "/bigquery/v2/"+m.FlatPath)
		if c == nil {
			t.Errorf("%s (%s %s) has no row", m.ID, m.HTTP, m.FlatPath)
			continue
		}
		for name, p := range m.Parameters {
			if p.Location == "query" && !c.params[name] {
				t.Errorf("%s: the query parameter %s is not in its row", m.ID, name)
			}
		}
		if hasBody := m.Request != nil; hasBody != (c.Carries == CarriesJSON) {
			t.Errorf("%s: carries %s, but a request schema is there: %v", m.ID, c.Carries, hasBody)
		}
		for kind, p := range m.Media.Protocols {
			if find(m.ID, m.HTTP, p.Path) == nil {
				t.Errorf("%s: the %s upload path %s has no row", m.ID, kind, p.Path)
			}
		}
	}
	// And the other way: no row of bigquery.* that Google does not have.
	for _, r := range Routes() {
		if strings.HasPrefix(r.ID, "bigquery.") && !slices.ContainsFunc(methods, func(m discoveryMethod) bool { return m.ID == r.ID }) {
			t.Errorf("row %s is no method of BigQuery", r.ID)
		}
		if (r.Stance == Deny) != (r.Reason != "") {
			t.Errorf("row %s: a reason belongs to a Deny and to nothing else", r.ID)
		}
	}
	refused := []string{"access_token", "oauth_token", "key", "callback", "upload_protocol", "uploadType"} // uploadType: uploads only
	for name := range d.Parameters {
		if !slices.Contains(commonParams, name) && !slices.Contains(refused, name) {
			t.Errorf("the common parameter %s is neither known nor refused", name)
		}
	}
}

func TestShapesKnowEveryField(t *testing.T) {
	d := discovery(t)
	for name, s := range map[string]*shape{
		"QueryRequest": queryRequestShape, "Job": jobRequestShape, "JobConfiguration": configShape, "JobConfigurationQuery": queryConfigShape,
		"JobConfigurationLoad": loadConfigShape, "JobConfigurationTableCopy": copyConfigShape, "JobConfigurationExtract": extractConfigShape,
		"Table": tableRequestShape, "ViewDefinition": viewShape, "MaterializedViewDefinition": materializedViewShape, "Dataset": datasetRequestShape,
		"Routine": routineRequestShape, "TableDataInsertAllRequest": insertAllShape, "Model": modelRequestShape, "TableReference": tableShape,
		"DatasetReference": datasetShape, "JobReference": jobShape, "ModelReference": modelShape, "RoutineReference": routineShape,
		"UserDefinedFunctionResource": functionShape.elem, "ConnectionProperty": propertyShape.elem,
	} {
		google := d.Schemas[name].Properties
		if len(google) == 0 {
			t.Errorf("schema %s is not in the discovery document", name)
		}
		for field := range google {
			if s.fields[field] == nil {
				t.Errorf("%s.%s is not known", name, field)
			}
		}
		for field := range s.fields {
			if google[field] == nil {
				t.Errorf("%s.%s is not in the discovery document", name, field)
			}
		}
		if len(s.folded) != len(s.fields) {
			t.Errorf("%s: two fields fold to one", name)
		}
	}
}

func surfaceTable() string {
	var b strings.Builder
	b.WriteString("| method | path | kind | carries | stance |\n|---|---|---|---|---|\n")
	for _, r := range Routes() {
		s := string(r.Stance)
		if r.Reason != "" {
			s += ": " + r.Reason
		}
		fmt.Fprintf(&b, "| `%s` | `%s %s` | %s | %s | %s |\n", r.ID, r.HTTP, r.Path, r.Kind, r.Carries, s)
	}
	return b.String()
}

func TestREADMEHoldsTheTable(t *testing.T) {
	const begin, end = "<!-- surface: go test -run README -update -->\n", "<!-- end of surface -->\n"
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("README.md has lost the marks around the surface table")
	}
	if old == surfaceTable() {
		return
	}
	if !*update {
		t.Fatal("README.md differs from the route table; run go test -run README -update")
	}
	if err := os.WriteFile("README.md", []byte(head+begin+surfaceTable()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
