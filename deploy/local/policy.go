package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/deploy/local/stack"
)

// readLimit is what one query of a reader may bill, in bytes: 1 GiB.
const readLimit = 1 << 30

// writePolicy writes the grants that the default rules read, and returns their
// folder. A folder that is there already is the user's: it stays.
func writePolicy(s settings) (string, error) {
	dir := filepath.Join(s.home, "policy")
	file := filepath.Join(dir, "data.json")
	if _, err := os.Stat(file); err == nil {
		return dir, nil
	}
	read := func(match map[string]any, datasets ...string) map[string]any {
		return map[string]any{"match": match, "projects": []string{s.project}, "datasets": datasets, "methods": []string{"read"},
			"limits": map[string]any{"maximum_bytes_billed": readLimit}}
	}
	grants := map[string]any{}
	if s.local {
		grants["agents"] = read(map[string]any{"issuer": issuer.Cluster, "namespace": "agents"}, "*")
		grants["analysts"] = read(map[string]any{"issuer": issuer.Corp, "group": "analysts"}, "*")
		if s.upstream == "" { // the real BigQuery is read only
			grants["reports"] = map[string]any{"match": map[string]any{"issuer": issuer.CI, "repository": "acme/reports", "ref": "refs/heads/main"},
				"projects": []string{s.project}, "datasets": []string{"*"}, "methods": []string{"read", "write"},
				"limits": map[string]any{"maximum_bytes_billed": 10 * readLimit}}
		}
	}
	if s.issuer != "" {
		match := map[string]any{"issuer": "own"}
		switch group, subject := os.Getenv("GROUP"), os.Getenv("SUBJECT"); {
		case group != "":
			match["group"] = group
		case subject != "":
			match["subject"] = subject
		default:
			return "", errors.New("ISSUER needs GROUP=... or SUBJECT=...: who of that issuer may read (see policy/README.md, or put grants of your own in " + file + ")")
		}
		grants["own"] = read(match, "*")
	}
	b, err := json.MarshalIndent(map[string]any{"grants": grants, "limits": map[string]any{"maximum_bytes_billed": readLimit}}, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, stack.WriteFile(file, append(b, '\n'))
}
