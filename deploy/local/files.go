package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/deploy/local/stack"
)

// tokens are the auditor's and the ready-made callers' tokens, each in a file
// that is kept fresh.
type tokens struct {
	stack   *stack.Stack
	dir     string
	callers bool // false: the gateway trusts none of them
}

// auditor reads the evidence by way of recorder serve.
const auditor = "auditor"

func (t *tokens) names() []string {
	names := []string{auditor}
	if t.callers {
		for _, c := range issuer.Callers(stack.Audience) {
			names = append(names, c.Name)
		}
	}
	return names
}

const (
	tokenLife  = time.Hour
	tokenFresh = 10 * time.Minute
)

func (t *tokens) file(name string) string { return filepath.Join(t.dir, name+".jwt") }

func (t *tokens) write() error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	for _, name := range t.names() {
		token, err := t.stack.Token(name, tokenLife)
		if err != nil {
			return err
		}
		if err := stack.WriteFile(t.file(name), []byte(token)); err != nil {
			return err
		}
	}
	return nil
}

// keep writes new tokens until ctx ends.
func (t *tokens) keep(ctx context.Context, stderr io.Writer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tokenFresh):
			if err := t.write(); err != nil {
				fmt.Fprintln(stderr, "verbatim: tokens not renewed:", err)
			}
		}
	}
}

// runFile is run.json: where everything is.
type runFile struct {
	BigQuery string `json:"bigquery"`
	Issuer   string `json:"issuer"`
	Vault    string `json:"vault"`
	Keyset   string `json:"keyset"`
	Trust    string `json:"trust"`
	// Serve is where auditors read, Witness where the sink's log is cosigned;
	// the files hold the public keys of that log and of the witness.
	Serve      string            `json:"serve"`
	Witness    string            `json:"witness"`
	LogKey     string            `json:"log_key"`
	WitnessKey string            `json:"witness_key"`
	Project    string            `json:"project"`
	Config     string            `json:"config"`
	Tokens     map[string]string `json:"tokens"`
}

// writeRun writes run.json and env.sh; that they are there means that
// everything is ready.
func writeRun(s settings, st *stack.Stack, t *tokens) error {
	r := runFile{BigQuery: st.URL(), Issuer: st.Issuer.Issuer(issuer.Corp).URL(), Vault: st.Vault(), Keyset: st.Keyset(), Trust: st.Trust(),
		Serve: st.ServeURL(), Witness: st.WitnessURL(), LogKey: st.LogKey(), WitnessKey: st.WitnessKey(),
		Project: s.project, Config: st.ConfigFile(), Tokens: map[string]string{}}
	for _, name := range t.names() {
		r.Tokens[name] = t.file(name)
	}
	if s.issuer != "" {
		r.Issuer = s.issuer
	}
	var sh strings.Builder
	fmt.Fprintln(&sh, "# Settings for BigQuery clients that go through Verbatim: source this file.")
	for _, kv := range [][2]string{
		{"VERBATIM_HOME", s.home}, {"VERBATIM_VAULT", r.Vault}, {"VERBATIM_KEYSET", r.Keyset}, {"VERBATIM_TRUST", r.Trust},
		{"BIGQUERY_EMULATOR_HOST", r.BigQuery}, {"CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERY", r.BigQuery + "/"},
		{"CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", r.Tokens["analyst"]}, {"GOOGLE_CLOUD_PROJECT", r.Project}, {"CLOUDSDK_CORE_PROJECT", r.Project},
	} {
		if kv[1] != "" {
			fmt.Fprintf(&sh, "export %s='%s'\n", kv[0], strings.ReplaceAll(kv[1], "'", `'\''`))
		}
	}
	if err := stack.WriteFile(filepath.Join(s.home, "env.sh"), []byte(sh.String())); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return stack.WriteFile(filepath.Join(s.home, "run.json"), append(b, '\n'))
}
