// Package structure holds the repository to its own rules.
package structure

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "verbatim.dev/"

// rules say what the packages below a folder may import of this repository:
// themselves, and what is listed (a trailing slash: the folder and below).
// Tests are not held to it.
var rules = []struct {
	folder  string
	imports []string
	why     string
}{
	{"policy", nil, "rules are written and tested without the gateway"},
	{"envoy", nil, "a mesh operator takes it as it is"},
	{"recorder/record", nil, "everything speaks of records"},
	{"recorder/journal", []string{"recorder/record"}, "the gateway's journal knows no vault"},
	{"recorder/vault", []string{"recorder/record"}, "evidence rests without whoever wrote it"},
	{"recorder/retention", []string{"recorder/record", "recorder/vault"}, "what has expired needs no key"},
	{"recorder/transport", []string{"recorder/record"}, "it carries frames, whatever they hold"},
	{"recorder/sink", []string{"recorder/record", "recorder/vault", "recorder/transport"}, "only the sink writes the vault"},
	{"recorder/kms", nil, "it knows keys, not what they are for"},
	{"recorder/keyring", []string{"recorder/record", "recorder/vault"}, "keys come from the vault and the tenant"},
	{"recorder/witness", nil, "another team runs it, and it sees no record"},
	{"recorder/sinklog", []string{"recorder/record", "recorder/vault", "recorder/witness"}, "it is about what the vault holds, whoever wrote it"},
	{"recorder/ledger", []string{"recorder/record", "recorder/vault", "recorder/keyring", "recorder/retention", "recorder/sinklog", "recorder/witness"}, "evidence is verified with no gateway at hand"},
	{"recorder/erasure", []string{"recorder/record", "recorder/vault", "recorder/ledger", "recorder/keyring", "recorder/retention"}, "what may be erased follows from the vault and its holds"},
	{"recorder/search", []string{"recorder/record", "recorder/vault", "recorder/ledger", "recorder/keyring"}, "auditors read the vault"},
	{"recorder/index", []string{"recorder/record", "recorder/vault", "recorder/vault/gcs", "recorder/ledger", "recorder/keyring", "recorder/search"}, "it is made of the vault's records alone, and rests apart"},
	{"recorder/bundle", []string{"recorder/record", "recorder/vault", "recorder/ledger", "recorder/keyring", "recorder/search", "recorder/sinklog"}, "evidence is made from the vault, and verified without it"},
	{"recorder/access", []string{"recorder/record", "recorder/ledger", "recorder/search", "recorder/bundle", "recorder/reconcile"}, "who a reader is, its caller proves"},
	{"recorder/ownreads", []string{"recorder/record", "recorder/journal", "recorder/transport", "recorder/sink", "recorder/vault"}, "it writes a vault of its own, and reads none"},
	{"recorder/reconcile", []string{"recorder/record", "recorder/ledger", "recorder/search"}, "it reads records as search does, and nothing else of ours"},
	{"recorder/directreads", []string{"recorder/reconcile"}, "it needs times and a log, no vault and no key"},
	{"extproc/bigquery", []string{"recorder/record"}, "what a call means needs no I/O"},
	{"extproc/auth", []string{"recorder/record"}, "identities are the record's words"},
	{"extproc/credential", []string{"recorder/record"}, "a credential knows whom it is for, no more"},
	{"extproc/usage", []string{"policy"}, "counts are told in the policy's words"},
	{"extproc/config", []string{"extproc/credential", "recorder/record"}, "reading a file starts nothing"},
	{"extproc/authoring", []string{"extproc/bigquery", "policy", "policy/sql", "recorder/record", "recorder/search"}, "authors read records as auditors do; the gateway's way of an exchange does not know it"},
	{"extproc/server", []string{"extproc/auth", "extproc/bigquery", "extproc/credential", "extproc/usage", "policy", "policy/sql", "recorder/record"}, "it knows the recorder by its records and one method"},
}

// TestImports fails on an import that the architecture does not have.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if !strings.HasPrefix(path, "test/") && strings.HasPrefix(imp, "test/") {
				t.Errorf("%s imports %s: the product does not need its tests", path, imp)
			}
			for _, r := range rules {
				if path != r.folder && !strings.HasPrefix(path, r.folder+"/") {
					continue
				}
				seen[r.folder] = true
				if imp == r.folder || strings.HasPrefix(imp, r.folder+"/") || slices.Contains(r.imports, imp) {
					continue
				}
				t.Errorf("%s imports %s: %s; it may import %v", path, imp, r.why, r.imports)
			}
		}
		for _, r := range rules {
			if path == r.folder {
				seen[r.folder] = true
			}
		}
	}
	for _, r := range rules {
		if !seen[r.folder] {
			t.Errorf("there is no package %s: the rule about it is stale", r.folder)
		}
	}
}
