package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"verbatim.dev/policy"
)

const policyCheckHelp = `Usage: extproc policy check --bundle PATH [--public-key FILE] [--strict]
       extproc policy check --schema

Loads a policy as the gateway would: parses it, checks it in strict mode and against
the input's schema, compiles it with the builtins that policies have, and tries it on the
built-in samples. Mistakes are told as FILE:LINE: what; then the exit code is 1. Grants
that match nobody are findings: they are listed, and with --strict are an error too.

Examples:

  extproc policy check --bundle ./policy
  extproc policy check --bundle policy.tar.gz --public-key policy.pub.pem --strict
  extproc policy check --schema > input.schema.json

`

func policyCheck(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("policy check", flag.ContinueOnError)
	var source policySource
	source.flags(fs)
	strict := fs.Bool("strict", false, "findings are errors")
	schema := fs.Bool("schema", false, "print the input's JSON schema, and no more")
	if err := parse(fs, args, stdout, policyCheckHelp); err != nil {
		return err
	}
	if *schema {
		_, err := stdout.Write(policy.Schema())
		return err
	}
	engine, err := source.load(ctx, "check")
	if err != nil {
		return err
	}
	r := engine.Current()
	fmt.Fprintln(stdout, "policy:", r.Digest())
	for _, w := range r.Windows() {
		fmt.Fprintf(stdout, "budget: counts for each %s in %s\n", w.Of, time.Duration(w.Seconds)*time.Second)
	}
	for _, f := range r.Findings() {
		fmt.Fprintf(stdout, "finding: %s: %s\n", oneLine(f.Where), oneLine(f.Message))
	}
	if n := len(r.Findings()); n > 0 && *strict {
		return fmt.Errorf("%d findings", n)
	}
	return nil
}
