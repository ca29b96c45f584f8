package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/kms/kmstest"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault/gcs/gcstest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"recorder": func() {
		if address := os.Getenv("TEST_KMS"); address != "" {
			kmsConfig = kms.Config{Options: kmstest.Options(address), Timeout: 3 * time.Second}
		}
		main()
	}})
}

func TestScripts(t *testing.T) {
	golden, err := filepath.Abs("testdata/golden")
	if err != nil {
		t.Fatal(err)
	}
	logSample, err := filepath.Abs("directreads/testdata/sample.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("VERBATIM_HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("SAMPLE", logSample)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("HOME", filepath.Join(e.WorkDir, "user")) // else scripts share one
			// Below the ports that connections get, so that it stays free.
			for {
				port := fmt.Sprint(20000 + rand.IntN(12000))
				l, err := net.Listen("tcp", "127.0.0.1:"+port)
				if err == nil {
					e.Setenv("PORT", port)
					_ = l.Close()
					break
				}
			}
			return sample(e.WorkDir)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"golden": func(ts *testscript.TestScript, neg bool, args []string) {
				compare(ts, filepath.Join(golden, args[0]), mask(ts.ReadFile("stdout"), ts.Getenv("WORK")))
			},
			"flip": flip,
			// unhold removes all holds, erasures sets ERASURE to the last one's id.
			"unhold": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(os.RemoveAll(ts.MkAbs("vault/holds")))
			},
			"erasures": func(ts *testscript.TestScript, neg bool, args []string) {
				names, err := filepath.Glob(ts.MkAbs("vault/erasures/*.note"))
				ts.Check(err)
				// Not by name: two of one second differ in what is random.
				newest, made := "", time.Time{}
				for _, name := range names {
					st, err := os.Stat(name)
					ts.Check(err)
					if !st.ModTime().Before(made) {
						newest, made = name, st.ModTime()
					}
				}
				ts.Setenv("ERASURE", strings.TrimSuffix(filepath.Base(newest), ".note"))
			},
			"receipt": firstReceipt,
			// exchange sets a variable to the id of the first line that search printed.
			"exchange": func(ts *testscript.TestScript, neg bool, args []string) {
				var x struct{ Exchange string }
				line, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
				ts.Check(json.Unmarshal([]byte(line), &x))
				ts.Setenv(args[0], x.Exchange)
			},
			"oldest": func(ts *testscript.TestScript, neg bool, args []string) {
				key, _, _ := strings.Cut(ts.ReadFile(args[0]+"/deployment.pub"), "\n")
				ts.Setenv("OLDEST", record.Fingerprint(key))
			},
			"bucket": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Setenv("STORAGE_EMULATOR_HOST", gcstest.New(t).URL)
			},
			"kms": func(ts *testscript.TestScript, neg bool, args []string) {
				doubleKMS(t, ts, args)
			},
			"ship":    ship,
			"waitfor": waitFor,
			"waitgrep": func(ts *testscript.TestScript, neg bool, args []string) {
				for range 1000 {
					if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(b), args[1]) {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				ts.Fatalf("%s does not hold %q", args[0], args[1])
			},
			"auditing": func(ts *testscript.TestScript, neg bool, args []string) {
				auditing(t, ts)
			},
			"reach": reach,
			"setenv": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
			},
			"mode": func(ts *testscript.TestScript, neg bool, args []string) {
				st, err := os.Stat(ts.MkAbs(args[0]))
				ts.Check(err)
				if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[1] {
					ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
				}
			},
			"signal": func(ts *testscript.TestScript, neg bool, args []string) {
				for _, c := range ts.BackgroundCmds() {
					ts.Check(c.Process.Signal(os.Interrupt))
				}
			},
		},
	})
}

// What differs from run to run: nonces make ciphertext, and so digests, new.
var random = []*regexp.Regexp{
	regexp.MustCompile(`(?m)(byte \d+ +)[0-9a-f]{64}$`),
	regexp.MustCompile(`("(?:leaf|head|key)": ")[0-9a-f]+`),
	regexp.MustCompile(`(key )[0-9a-f]{32}`),
	regexp.MustCompile(`(?m)^( {12})[0-9a-f]{32}`),
	regexp.MustCompile(`(deployment\+)[0-9a-f]{8}`),
	regexp.MustCompile(`(made )\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`),
	regexp.MustCompile(`("root": ")[0-9a-f]{64}`),
	regexp.MustCompile(`("checkpoint": ")[^"]+`),
}

func mask(s, work string) string {
	for _, r := range random {
		s = r.ReplaceAllString(s, "${1}RANDOM")
	}
	return strings.ReplaceAll(s, work, "WORK")
}

func compare(ts *testscript.TestScript, file, got string) {
	if *update {
		ts.Check(os.WriteFile(file, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(file)
	ts.Check(err)
	if got != string(want) {
		ts.Fatalf("output is not that of %s (go test -update writes it anew):\n%s", filepath.Base(file), got)
	}
}

// flip changes a bit of a file: flip FILE OFFSET, from the end where negative.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.MkAbs(args[0])
	b, err := os.ReadFile(name)
	ts.Check(err)
	var at int
	_, err = fmt.Sscan(args[1], &at)
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	ts.Check(os.WriteFile(name, b, 0o600))
}

// firstReceipt sets a variable to the first receipt of a file: receipt NAME FILE.
func firstReceipt(ts *testscript.TestScript, neg bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		if line[0] != '#' {
			ts.Setenv(args[0], strings.TrimSpace(line))
			return
		}
	}
	ts.Fatalf("%s holds no receipt", args[1])
}

// waitFor waits until a file is there.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	for range 500 {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s did not appear", args[0])
}

// auditing starts an issuer, and writes readers' tokens and serve.yaml for the
// vault of the script; $SERVER is where the service will be.
func auditing(t *testing.T, ts *testscript.TestScript) {
	s, err := issuer.Listen("127.0.0.1:0", "")
	ts.Check(err)
	t.Cleanup(func() { s.Close(context.Background()) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv("SERVER", "http://"+l.Addr().String())
	for name, groups := range map[string][]string{"ada": {"security"}, "vera": {"analysts"}, "mallory": {"everyone"}} {
		token, err := s.Issuer(issuer.Corp).Mint(map[string]any{"sub": name, "email": name + "@corp.example", "email_verified": true, "aud": "auditors", "groups": groups}, issuer.Options{})
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name+".token"), []byte(token+"\n"), 0o600))
	}
	text := fmt.Sprintf(`name: auditors-1
listen: %s
vault: vault
keyset: tenant.json
journal: {dir: journal, cut_interval: 50ms}
sink: s.sock
retention: {class: standard, keep: 400d}
issuers: [{name: corp, url: %q, audiences: [auditors], groups_claim: groups}]
revocations: revoked.yaml
roles:
  auditor: {groups: [corp/security]}
  viewer: {groups: [corp/analysts]}
`, l.Addr(), s.Issuer(issuer.Corp).URL())
	ts.Check(os.WriteFile(ts.MkAbs("serve.yaml"), []byte(text), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("revoked.yaml"), []byte("subjects: []\n"), 0o600))
}

// reach waits until $SERVER can record.
func reach(ts *testscript.TestScript, neg bool, args []string) {
	for range 500 {
		res, err := http.Get(ts.Getenv("SERVER") + "/healthz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s is not reached", ts.Getenv("SERVER"))
}

// ship runs a gateway's journal against a sink: ship SOCKET JOURNAL KEYSET
// crash|close. It appends an exchange and waits until all is in the vault.
func ship(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := os.Open(ts.MkAbs(args[2]))
	ts.Check(err)
	defer r.Close()
	tenant, err := record.ReadTenant(r, false)
	ts.Check(err)
	j, err := journal.Open(ctx, journal.Config{
		Dir: ts.MkAbs(args[1]), Gateway: "gw-live", Version: "test", Tenant: tenant, Class: "standard",
		Retention: map[string]time.Duration{"standard": time.Hour}, Limit: 1 << 20, SegmentSize: 64 << 10, CutInterval: time.Millisecond, Heartbeat: 20 * time.Millisecond,
	})
	ts.Check(err)
	client, err := transport.NewClient(transport.ClientConfig{Socket: ts.MkAbs(args[0]), Gateway: "gw-live"})
	ts.Check(err)
	acked := make(chan uint64, 1024)
	shipped := make(chan error, 1)
	go func() {
		shipped <- client.Ship(ctx, transport.Journal{
			Tail: func() transport.Source {
				tail := j.Tail()
				return transport.SourceFunc(func(ctx context.Context) (transport.Item, error) {
					i, err := tail.Next(ctx)
					return transport.Item(i), err
				})
			},
			Acknowledge: func(e record.Epoch, seq uint64) error {
				if e == j.Epoch() {
					acked <- seq
				}
				return j.Acknowledge(e, seq)
			},
		})
	}()
	intent, err := record.Marshal(record.Intent{Verbatim: record.IntentDetail{
		Session: "s1", Principal: &record.Principal{Issuer: "corp", Subject: "live"}, Call: record.Call{Method: "bigquery.jobs.query", SQL: "SELECT 42"},
		Decision: record.Decision{Allow: true, By: "policy"}, Received: time.Now(),
	}})
	ts.Check(err)
	drafts := []record.Draft{{Kind: record.KindIntent, Session: "s1", Body: intent}}
	if args[3] == "close" {
		outcome, err := record.Marshal(record.Outcome{Response: record.OCSFResponse{Code: 200}, Verbatim: record.OutcomeDetail{Session: "s1", Result: record.ResultDelivered}})
		ts.Check(err)
		drafts = append(drafts, record.Draft{Kind: record.KindOutcome, Session: "s1", Body: outcome})
	}
	ticket := j.Append(drafts...)
	ts.Check(ticket.Wait(ctx))
	for last := uint64(0); last < ticket.ID.Sequence; {
		select {
		case last = <-acked:
		case <-ctx.Done():
			ts.Fatalf("nothing was acknowledged")
		}
	}
	if args[3] == "close" {
		ts.Check(j.Finish(ctx, "test"))
		ts.Check(<-shipped) // until all of it is acknowledged
	}
	ts.Check(j.Close(ctx, "test"))
}

// sample writes a vault, the tenant's keyset and another's into a folder.
func sample(dir string) error {
	tenant, err := record.NewTenant()
	if err != nil {
		return err
	}
	public, err := tenant.Public()
	if err != nil {
		return err
	}
	v := ledgertest.New()
	signer, trusted := ledgertest.Deployment("deployment")
	_, stranger := ledgertest.Deployment("deployment")
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Deployment = signer
	g.Begin()
	g.Now = g.Now.Add(time.Minute)
	first := g.Run(ledgertest.Exchange{
		Session: "k5qf2w", Subject: "alice", Email: "alice@corp.example", Groups: []string{"corp/analysts", "corp/security"},
		SQL: "SELECT name, total\nFROM `p1.sales.orders`\nWHERE day = @day", Parameters: []byte(`[{"name":"day","parameterValue":{"value":"2026-03-13"}}]`),
		Request: []byte(`{"query":"SELECT name, total ..."}` + "\n"), Upstream: []byte(`{"query":"SELECT name, total ...","labels":{}}` + "\n"),
		Response: bytes.Repeat([]byte(`{"f":[{"v":"x"}]},`), 10000), Rows: 10000, Job: &record.Job{Project: "p1", Location: "US", ID: "job_abc"},
		Provenance: &record.Provenance{Profile: "github", Repository: "corp/etl", Commit: "0123456789abcdef0123456789abcdef01234567", Workflow: "nightly", Run: "77"},
		Asserted:   record.Asserted{UserAgent: "gl-python/3.12", Agent: "etl-agent", Labels: map[string]string{"team": "sales"}},
		Headers:    []record.Header{{Name: "content-type", Value: "application/json"}},
	})
	g.Cut()
	g.Now = g.Now.Add(time.Minute)
	g.Run(ledgertest.Exchange{
		Session: "zz1", Subject: "mallory\x1b[2J", SQL: "DROP TABLE t -- \x1b]0;owned\x07 \u202egnp.exe\nhidden\rline", Request: []byte("{}"), Response: []byte(`{"error":{"code":403}}`),
		Deny:    []record.Reason{{Code: "read_only", Message: "DDL is not allowed\x1b[31m"}},
		Headers: []record.Header{{Name: "x-evil", Value: "a\x1b[2Jb\x9b1m"}},
	})
	g.Now = g.Now.Add(time.Minute)
	g.Run(ledgertest.Exchange{Session: "k5qf2w", Subject: "alice", Email: "alice@corp.example", Method: "bigquery.tabledata.list", Dataset: "sales", Table: "orders", Received: true, Metadata: true, Response: []byte("0123456789")})
	g.Now = g.Now.Add(time.Minute)
	g.Start(ledgertest.Exchange{Session: "k5qf2w", Subject: "alice", Email: "alice@corp.example", SQL: "SELECT 2", Request: []byte(`{"query":"SELECT 2"}`)})
	g.Crash()
	g.Now = g.Now.Add(time.Hour)
	g.Begin()
	g.Heartbeat()
	g.Now = g.Now.Add(time.Minute)
	pending := g.Start(ledgertest.Exchange{Session: "k5qf2w", Subject: "alice", Email: "alice@corp.example", SQL: "SELECT 3"})
	g.Cut()
	for name, text := range map[string]string{
		"deployment.pub": trusted, "stranger.pub": stranger, "gateways.txt": "gw-1 -",
		"receipts.txt": "# of alice\n" + g.Receipt(first).String() + "\n" + g.Receipt(pending.ID).String(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			return err
		}
	}
	if err := v.Write(filepath.Join(dir, "vault")); err != nil {
		return err
	}
	other, err := record.NewTenant()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		private bool
		of      int
	}{{"tenant.json", true, 0}, {"tenant.pub.json", false, 0}, {"other.json", true, 1}} {
		h := tenant
		if f.of == 1 {
			h = other
		}
		b, err := record.MarshalTenant(h, f.private)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f.name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
