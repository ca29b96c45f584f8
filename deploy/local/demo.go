package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/deploy/local/tools"
)

//go:embed agent.py
var agent []byte

// demo lets an agent query through the gateway, then reads the evidence as an
// auditor would.
type demo struct {
	settings
	stack  *stack.Stack
	tokens *tokens
	tools  tools.Tools
	out    io.Writer
}

func (d *demo) run(ctx context.Context) error {
	if d.upstream != "" {
		if err := d.credential(ctx); err != nil {
			return err
		}
	}
	if d.upstream != "" && !d.local {
		return d.selectOne(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	script := filepath.Join(d.home, "run/agent.py")
	if err := os.WriteFile(script, agent, 0o600); err != nil {
		return err
	}
	mode := "sample"
	if d.upstream != "" {
		mode = "one"
	}
	fmt.Fprintln(d.out, "\nAn agent works (Python, google-cloud-bigquery, nothing changed but host and token):")
	cmd := exec.CommandContext(ctx, d.tools.Python, script, d.stack.URL(), d.project, d.tokens.file("agent"), mode)
	out := &indent{w: d.out}
	cmd.Stdout, cmd.Stderr = out, out
	since := time.Now().Add(-time.Second)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the agent: %w", err)
	}
	return d.evidence(ctx, since)
}

// credential makes sure that the gateway has one: without it every query waits
// in its client's retries.
func (d *demo) credential(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "extproc"), "check", "--config", d.stack.ConfigFile(), "--online")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		return fmt.Errorf("the gateway has no credential for %s: %s", d.upstream, lines[len(lines)-1])
	}
	fmt.Fprintln(d.out, "the gateway's credential is good")
	return nil
}

// selectOne tells how to try it with a token of one's own: there is none here.
func (d *demo) selectOne(ctx context.Context) error {
	fmt.Fprintf(d.out, `
The gateway fronts %s for project %s, read-only, with a limit on bytes billed.
It trusts %s. With a token of that issuer in token.jwt, try:

  curl -sS -H "Authorization: Bearer $(cat token.jwt)" -H 'Content-Type: application/json' \
    -d '{"query": "SELECT 1", "useLegacySql": false}' %s/bigquery/v2/projects/%s/queries
`, d.upstream, d.project, d.issuer, d.stack.URL(), d.project)
	return nil
}

// evidence shows what was recorded, once the vault has it, and verifies it.
func (d *demo) evidence(ctx context.Context, since time.Time) error {
	recorder := filepath.Join(d.bin, "recorder")
	search := []string{"search", "--server", d.stack.ServeURL(), "--token-file", d.tokens.file(auditor), "--why", "demonstration"}
	at := since.UTC().Format(time.RFC3339)
	for { // the vault is at most a cut and a moment behind
		out, err := exec.CommandContext(ctx, recorder, append(search, "--since", at, "--decision", "deny", "--format", "json")...).Output()
		if err == nil && bytes.Contains(out, []byte("DELETE")) || d.upstream != "" && err == nil && len(out) > 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the vault does not show the agent's exchanges: %w %v", ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
	fmt.Fprintln(d.out, "\nWhat the flight recorder has of it (recorder search):")
	if err := d.tool(ctx, recorder, append(search, "--since", at)...); err != nil {
		return err
	}
	verify := []string{"verify", "--vault", d.stack.Vault(), "--keyset", d.stack.Keyset(), "--trust", d.stack.Trust(), "--log-key", d.stack.LogKey(), "--witness", d.stack.WitnessKey()}
	if err := d.cosigned(ctx, recorder, verify); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "\nAnd it has not been tampered with (recorder verify):")
	return d.tool(ctx, recorder, verify...)
}

// cosigned waits until the witness has seen what the agent did.
func (d *demo) cosigned(ctx context.Context, recorder string, verify []string) error {
	for {
		var r struct {
			Log struct {
				Size     int64 `json:"size"`
				Cosigned int64 `json:"cosigned_size"`
				Unlogged int64 `json:"unlogged_segments"`
			} `json:"log"`
		}
		out, err := exec.CommandContext(ctx, recorder, append(verify, "--format", "json")...).Output()
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		if err == nil && r.Log.Size > 0 && r.Log.Cosigned == r.Log.Size && r.Log.Unlogged == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the witness has cosigned nothing of it: %w %v", ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (d *demo) tool(ctx context.Context, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	out := &indent{w: d.out}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(path), args[0], err)
	}
	return nil
}

func (d *demo) howTo() {
	url, bin := d.stack.URL(), d.bin
	fmt.Fprintf(d.out, `
Point your own client here (BigQuery at %s, project %s):

  source %s/env.sh                # sets the variables that the clients below read
  Python   bigquery.Client(project, client_options={"api_endpoint": "%s"}, credentials=...)
  Go       option.WithEndpoint("%s/bigquery/v2/")
  Node     new BigQuery({apiEndpoint: "%s", projectId: "%s"})
  bq       bq --api %s --project_id %s query --use_legacy_sql=false 'SELECT 1'
  curl     curl -H "Authorization: Bearer $(cat %s)" ...

Tokens of ready-made callers: %s
Evidence:                     %s/recorder search | show RECEIPT | verify   (they read %s/run.json)
The same, the reader proven:  %s/recorder search --server %s --token-file %s
Who read what:                %s/recorder accesses
Witness of the sink's log:    %s   (recorder verify --log-key %s --witness %s)
`, url, d.project, d.home, url, url, url, d.project, url, d.project, d.tokens.file("analyst"), d.tokens.dir, bin, d.home,
		bin, d.stack.ServeURL(), d.tokens.file(auditor), bin, d.stack.WitnessURL(), d.stack.LogKey(), d.stack.WitnessKey())
}

// indent writes lines two columns to the right, however they are cut up.
type indent struct {
	w      io.Writer
	within bool // a line
}

func (i *indent) Write(b []byte) (int, error) {
	for _, line := range strings.SplitAfter(string(b), "\n") {
		if line == "" {
			continue
		}
		if !i.within {
			line = "  " + line
		}
		i.within = !strings.HasSuffix(line, "\n")
		if _, err := io.WriteString(i.w, line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// loadSample makes a small shop in the emulator, past the gateway: nobody's
// doing but the emulator's.
func loadSample(ctx context.Context, url, token, project string) error {
	ref := func(table string) map[string]any {
		return map[string]any{"projectId": project, "datasetId": "shop", "tableId": table}
	}
	field := func(name, kind string) map[string]any {
		return map[string]any{"name": name, "type": kind, "mode": "NULLABLE"}
	}
	base := "/bigquery/v2/projects/" + project
	customers := []map[string]any{
		{"id": 1, "name": "Ana Souza", "email": "ana@example.com", "country": "BR"},
		{"id": 2, "name": "Bo Lind", "email": "bo@example.com", "country": "SE"},
		{"id": 3, "name": "Chidi Obi", "email": "chidi@example.com", "country": "NG"},
	}
	var orders []map[string]any
	for i := range 60 {
		orders = append(orders, map[string]any{"id": i + 1, "customer": i%3 + 1, "amount": float64(10+(i*37)%90) + 0.5, "day": fmt.Sprintf("2026-11-%02d", i%28+1)})
	}
	rows := func(list []map[string]any) map[string]any {
		var out []map[string]any
		for _, r := range list {
			out = append(out, map[string]any{"json": r})
		}
		return map[string]any{"rows": out}
	}
	for _, c := range []struct {
		path string
		body map[string]any
	}{
		{base + "/datasets", map[string]any{"datasetReference": map[string]any{"projectId": project, "datasetId": "shop"}, "location": "US"}},
		{base + "/datasets", map[string]any{"datasetReference": map[string]any{"projectId": project, "datasetId": "scratch"}, "location": "US"}},
		{base + "/datasets/shop/tables", map[string]any{"tableReference": ref("customers"), "schema": map[string]any{"fields": []any{field("id", "INTEGER"), field("name", "STRING"), field("email", "STRING"), field("country", "STRING")}}}},
		{base + "/datasets/shop/tables", map[string]any{"tableReference": ref("orders"), "schema": map[string]any{"fields": []any{field("id", "INTEGER"), field("customer", "INTEGER"), field("amount", "FLOAT"), field("day", "DATE")}}}},
		{base + "/datasets/shop/tables/customers/insertAll", rows(customers)},
		{base + "/datasets/shop/tables/orders/insertAll", rows(orders)},
	} {
		if err := post(ctx, url+c.path, token, c.body); err != nil {
			return fmt.Errorf("sample data: %s: %w", c.path, err)
		}
	}
	return nil
}

func post(ctx context.Context, url, token string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return errors.New(res.Status + ": " + string(text))
	}
	return nil
}
