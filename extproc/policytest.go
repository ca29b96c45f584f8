package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"regexp"
	"time"

	"verbatim.dev/policy"
)

const policyTestHelp = `Usage: extproc policy test --bundle FOLDER [--run REGEXP] [--coverage PERCENT] [--format text|json]

Runs the tests of a policy's folder: rules named test_... in files named *_test.rego.
Needs no OPA. The rules are checked as the gateway checks them, strictly and against
the input's schema, and the tests have the builtins that policies have. In a folder
without rules of its own the tests run against the default rules and the folder's data.
The exit code is 1 when a test fails, or less of the rules than --coverage was used.

Examples:

  extproc policy test --bundle ./policy
  extproc policy test --bundle ./policy --run 'test_export' --coverage 100

`

func policyTest(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("policy test", flag.ContinueOnError)
	dir := fs.String("bundle", "", "`FOLDER` of the policy")
	run := fs.String("run", "", "run the tests whose names match the `REGEXP`")
	least := fs.Float64("coverage", 0, "fail below `PERCENT` of coverage")
	format := fs.String("format", "text", "`FORMAT` of the output: text or json")
	if err := parse(fs, args, stdout, policyTestHelp); err != nil {
		return err
	}
	if *dir == "" {
		return fmt.Errorf("%w: policy test needs --bundle FOLDER", errUsage)
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("%w: --format %q: want text or json", errUsage, *format)
	}
	c := policy.TestConfig{Dir: *dir}
	if *run != "" {
		re, err := regexp.Compile(*run)
		if err != nil {
			return fmt.Errorf("%w: --run: %w", errUsage, err)
		}
		c.Run = re
	}
	report, err := policy.Test(ctx, c)
	if err != nil {
		return err
	}
	failed := 0
	for _, t := range report.Tests {
		if !t.Passed && !t.Skipped {
			failed++
		}
	}
	if *format == "json" {
		b, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, string(b))
	} else {
		printReport(stdout, report)
	}
	switch {
	case len(report.Tests) == 0:
		return fmt.Errorf("no test matches %q", *run)
	case failed > 0:
		return fmt.Errorf("%d of %d tests failed", failed, len(report.Tests))
	case report.Coverage < *least:
		return fmt.Errorf("coverage is %.2f %%, less than %g %%", report.Coverage, *least)
	}
	return nil
}

func printReport(stdout io.Writer, report *policy.TestReport) {
	for _, t := range report.Tests {
		word := "FAIL"
		switch {
		case t.Passed:
			word = "ok  "
		case t.Skipped:
			word = "skip"
		}
		fmt.Fprintf(stdout, "%s %s (%s, %s)\n", word, t.Name, t.At, t.Duration.Round(10*time.Microsecond))
		if t.Error != "" {
			fmt.Fprintf(stdout, "     %s\n", oneLine(t.Error))
		}
		for _, line := range t.Output {
			fmt.Fprintf(stdout, "     %s\n", oneLine(line))
		}
	}
	for _, at := range report.NotCovered {
		fmt.Fprintf(stdout, "not covered: %s\n", at)
	}
	if report.Coverage > 0 || len(report.NotCovered) > 0 {
		fmt.Fprintf(stdout, "coverage: %.2f %%\n", report.Coverage)
	}
}
