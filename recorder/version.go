package main

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"verbatim.dev/recorder/record"
)

const versionHelp = `
Usage: recorder version

Prints the version, and the version of the record's frame that it reads.

Example:
  recorder version
`

func versionCommand(_ context.Context, args []string, stdout, _ io.Writer) error {
	f := newFlags("version", versionHelp)
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "recorder %s, frame version %d, %s\n", record.Build, record.Version, runtime.Version())
	return err
}
