// Command recorder keeps and reads the evidence: it writes what gateways
// deliver into a vault, searches it, shows it and proves it.
//
// Its folders, in the order in which a record meets them:
//
//	record     the record: its frame, its seal, its digest; no I/O
//	journal    the gateway's own log: durable before anything is released
//	transport  from the journal to the sink
//	sink       from frames to segments
//	sinklog    the sink's own log of all segments' checkpoints
//	witness    cosigns logs, so that none is forked or rolled back
//	vault      where segments and keys rest; written once, never changed
//	retention  holds, and the end of retention
//	keyring    opens bodies with the vault's keys and the tenant's keyset
//	ledger     proves what a vault holds
//	bundle     evidence to hand out: a selection with what proves and opens it
//	index      all exchanges as rows of Parquet, apart from the vault
//	search     finds exchanges and shows one whole
//	access     reads for others, each read on record first
//	ownreads   puts on record what is read with a keyset at hand
//	reconcile  holds records against BigQuery's own list of jobs
//	directreads holds access records against Google's own logs of reads
//
// The rule of this folder itself: a subcommand is a file, and reads flags,
// calls a package and prints. README.md tells a record's life.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// command is one subcommand.
type command struct {
	name  string
	short string
	run   func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

func commands() []command {
	return []command{
		{"sink", "write what gateways deliver into a vault", sinkCommand},
		{"index", "build an index of the exchanges to search, or check it", indexCommand},
		{"search", "find exchanges", searchCommand},
		{"show", "show everything of one exchange, or its exact bytes", showCommand},
		{"accesses", "list who read the evidence, and why", accessesCommand},
		{"serve", "read the evidence for auditors, each read on record", serveCommand},
		{"login", "keep a token for a service that reads", loginCommand},
		{"verify", "prove that a vault's records are whole and unchanged", verifyCommand},
		{"vault", "make a vault's buckets or folder, or check them", vaultCommand},
		{"salvage", "give up an epoch whose gateway will not come back", salvageCommand},
		{"hold", "keep records beyond their retention", holdCommand},
		{"erase", "make what was recorded unreadable for good", eraseCommand},
		{"expire", "delete what is past its retention", expireCommand},
		{"reconcile", "hold the records against BigQuery's own list of jobs", reconcileCommand},
		{"prove", "write a proof of one record, which needs no vault to verify", proveCommand},
		{"export", "write a bundle of evidence that verifies with no vault", exportCommand},
		{"key", "make, rotate, retire and compare keys", keyCommand},
		{"witness", "cosign the log of a sink, for another team", witnessCommand},
		{"version", "print the version", versionCommand},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := exitCode(run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr)
	stop()
	os.Exit(code)
}

// run runs one command. Errors that are a [*usageError] or an [*exitError]
// have an exit code of their own.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return &usageError{text: "no command given", hint: "recorder --help lists them"}
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		if len(args) > 1 && args[0] == "help" {
			return run(ctx, []string{args[1], "--help"}, stdout, stderr)
		}
		return usage(stdout)
	case "-version", "--version":
		args[0] = "version"
	}
	var names []string
	for _, c := range commands() {
		if c.name == args[0] {
			err := c.run(ctx, args[1:], stdout, stderr)
			if errors.Is(err, errHelp) {
				return nil
			}
			return err
		}
		names = append(names, c.name)
	}
	return &usageError{text: fmt.Sprintf("unknown command %q", args[0]), hint: suggest(args[0], names, "", "recorder --help lists the commands")}
}

func usage(w io.Writer) error {
	var b strings.Builder
	b.WriteString("recorder keeps and reads the evidence of a Verbatim gateway.\n\nUsage: recorder COMMAND [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-9s  %s\n", c.name, c.short)
	}
	b.WriteString(`
"recorder COMMAND --help" tells more, with examples. Every command that reads a
vault takes --vault VAULT (else $VERBATIM_VAULT, else the vault of a running
"make run") and --keyset FILE (else $VERBATIM_KEYSET, else likewise).

Exit codes: 0 done; 1 failed, or the vault is not sound; 2 wrong arguments;
3 verify or reconcile could not read to the end; 4 an erasure is pending.
`)
	_, err := io.WriteString(w, b.String())
	return err
}

// usageError says that the arguments are wrong: exit code 2.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

// exitError ends the program with a code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// exitCode prints the error and returns the exit code.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "recorder:", oneLine(err.Error()))
	var wrong *usageError
	var exit *exitError
	switch {
	case errors.As(err, &wrong):
		if wrong.hint != "" {
			fmt.Fprintln(stderr, "hint:", wrong.hint)
		}
		return 2
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, context.Canceled):
		return 130
	}
	return 1
}
