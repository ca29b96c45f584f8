package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/kms/kmstest"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"extproc": func() {
			if address := os.Getenv("TEST_KMS"); address != "" {
				kmsOptions = kmstest.Options(address)
			}
			switch err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); {
			case err == nil, errors.Is(err, flag.ErrHelp):
			default:
				fmt.Fprintln(os.Stderr, "extproc:", err)
				os.Exit(1)
			}
		},
	})
}

// TestScripts runs the binary as an operator does. Each script finds a
// configuration that is in order, good.yaml, and tokens of a live issuer.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: setup, Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"kms": func(ts *testscript.TestScript, _ bool, args []string) { doubleKMS(t, ts, args) },
		"waitgrep": func(ts *testscript.TestScript, _ bool, args []string) {
			want := regexp.MustCompile(args[1])
			for range 1000 {
				if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && want.Match(b) {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			ts.Fatalf("%s does not hold %q: %s", args[0], args[1], ts.ReadFile(args[0]))
		},
	}})
}

var doubles sync.Map // of Cloud KMS, by the script's folder

// doubleKMS starts a double of Cloud KMS, with a configuration whose key is
// there, kms.yaml, or makes it fail: kms fail FAULT METHOD TIMES.
func doubleKMS(t *testing.T, ts *testscript.TestScript, args []string) {
	if args[0] == "fail" {
		s, _ := doubles.Load(ts.Getenv("WORK"))
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		s.(*kmstest.Server).Fail(kmstest.Fault(args[1]), args[2], n)
		return
	}
	s := kmstest.New(t)
	doubles.Store(ts.Getenv("WORK"), s)
	ts.Setenv("TEST_KMS", s.Address)
	version, err := kms.ParseVersion(s.Key("gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/deployment", true) + "/cryptoKeyVersions/1")
	ts.Check(err)
	ref, err := kms.Find(t.Context(), kms.Config{Options: s.Options()}, "acme", version)
	ts.Check(err)
	other, err := record.NewTenant()
	ts.Check(err)
	public, err := record.MarshalTenant(other, false)
	ts.Check(err)
	for name, text := range map[string]string{
		"deployment.key": ref.Text(), "other.pub.json": string(public),
		"kms.yaml": strings.Replace(ts.ReadFile("good.yaml"), "sealing: {", "sealing: {key: deployment.key, ", 1),
	} {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

// vaultOf holds what was recorded of an agent: a SELECT that was let, a DELETE and a
// text without a body that were let by a policy since changed, and a denial.
func vaultOf(tenant *keyset.Handle) *ledgertest.Vault {
	v := ledgertest.New()
	public, err := tenant.Public()
	if err != nil {
		panic(err)
	}
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	x := func(sql string) ledgertest.Exchange {
		body, err := json.Marshal(map[string]any{"query": sql, "useLegacySql": false, "defaultDataset": map[string]string{"datasetId": "sales"}})
		if err != nil {
			panic(err)
		}
		return ledgertest.Exchange{
			Session: "s", Subject: "agent-7", SQL: sql, Request: body, Rows: 1, Response: []byte("{}"), Connection: "main",
			Provenance: &record.Provenance{Profile: "kubernetes", Namespace: "agents", ServiceAccount: "runner"},
			Headers:    []record.Header{{Name: "content-type", Value: "application/json"}},
		}
	}
	g.Run(x("SELECT name FROM orders JOIN `p1.web.hits` USING (id)"))
	g.Run(x("DELETE FROM orders WHERE id = 'canary-literal'"))
	denied := x("EXPORT DATA OPTIONS (uri='gs://b/*', format='CSV') AS SELECT * FROM orders")
	denied.Deny = []record.Reason{{Code: "statement_denied", Message: "no"}}
	g.Run(denied)
	g.Cut()
	g.Close()
	return v
}

func setup(e *testscript.Env) error {
	s, err := issuer.Listen("127.0.0.1:0", "")
	if err != nil {
		return err
	}
	e.Defer(func() { s.Close(context.Background()) })
	write := func(name, text string) error {
		return os.WriteFile(filepath.Join(e.WorkDir, name), []byte(text), 0o600)
	}
	h, err := record.NewTenant()
	if err != nil {
		return err
	}
	public, err := record.MarshalTenant(h, false)
	if err != nil {
		return err
	}
	private, err := record.MarshalTenant(h, true)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range issuer.Callers("verbatim") {
		token, err := s.Mint(c, time.Hour)
		errs = append(errs, err, write(c.Name+".jwt", token))
	}
	expired, err := s.Issuer(issuer.Corp).Mint(issuer.Analyst("verbatim"), issuer.Options{TTL: -time.Hour})
	errs = append(errs, err, write("expired.jwt", expired))
	good := strings.ReplaceAll(`gateway: test
listen: {socket: extproc.sock}
journal: {dir: journal}
sealing: {tenant: tenant.pub.json}
session_key: session.key
transport: {local: sink.sock}
issuers:
- {name: cluster, url: ISSUER/cluster, audiences: [verbatim], profile: kubernetes}
- {name: corp, url: ISSUER/corp, audiences: [verbatim], groups_claim: groups}
revocations: revocations.yaml
connections:
- {name: main, projects: [p1], upstream: {rest: http://127.0.0.1:1}, credential: {kind: token_file, file: upstream.token}}
`, "ISSUER", s.URL())
	errs = append(errs, vaultOf(h).Write(filepath.Join(e.WorkDir, "vault")))
	return errors.Join(append(errs, write("good.yaml", good), write("tenant.pub.json", string(public)), write("tenant.json", string(private)),
		write("session.key", strings.Repeat("0f", 32)), write("upstream.token", "canary-upstream"),
		write("revocations.yaml", "tokens: []\nsubjects:\n- {issuer: corp, subject: mallory}\n"))...)
}
