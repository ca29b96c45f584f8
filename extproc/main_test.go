package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/recorder/record"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"extproc": func() {
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
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: setup})
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
	return errors.Join(append(errs, write("good.yaml", good), write("tenant.pub.json", string(public)), write("tenant.json", string(private)),
		write("session.key", strings.Repeat("0f", 32)), write("upstream.token", "canary-upstream"),
		write("revocations.yaml", "tokens: []\nsubjects:\n- {issuer: corp, subject: mallory}\n"))...)
}
