// Command extproc is the gateway: the external processor that Envoy asks about
// every exchange with BigQuery.
//
// Its folders, in the order in which an exchange meets them:
//
//	config      the configuration file, every error with its line
//	authoring   what helps who writes a policy; no part of the exchange
//	server      the exchange: phases, memory, what is recorded when
//	bigquery    what a call means; no I/O
//	auth        from a token to a principal and its provenance
//	credential  the Google token that goes upstream in the caller's place
//
// The rules are in package policy, the journal in recorder/journal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"verbatim.dev/recorder/record"
)

const usage = `extproc is Verbatim's gateway between Envoy and BigQuery.

Usage:

  extproc serve   --config FILE              run the gateway
  extproc check   --config FILE [--token F]  explain a configuration, or a token
  extproc policy  test|check|eval|backtest|suggest   write a policy, and try it
  extproc version

"extproc COMMAND --help" tells more. An annotated configuration is
extproc/example.yaml in the sources.
`

// errUsage is an error in the arguments: exit code 2.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
		return
	case errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "extproc:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "extproc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return fmt.Errorf("%w: name a command: serve, check, policy or version", errUsage)
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:], stdout, stderr)
	case "check":
		return check(ctx, args[1:], stdout, stderr)
	case "policy":
		return policyCommand(ctx, args[1:], stdout, stderr)
	case "version":
		fmt.Fprintln(stdout, "extproc", record.Build)
		return nil
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	return fmt.Errorf("%w: unknown command %q: want serve, check, policy or version", errUsage, args[0])
}

// parse reads a command's flags. It prints help to stdout and complains with
// errUsage.
func parse(fs *flag.FlagSet, args []string, stdout io.Writer, help string) error {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return flag.ErrHelp
	case err != nil:
		return fmt.Errorf("%w: %w; see extproc %s --help", errUsage, err, fs.Name())
	case fs.NArg() > 0:
		return fmt.Errorf("%w: unexpected argument %q; see extproc %s --help", errUsage, fs.Arg(0), fs.Name())
	}
	return nil
}
