package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault/place"
)

const sinkHelp = `
Usage: recorder sink --vault VAULT --listen unix:PATH

Takes the records of gateways on this machine over a UNIX socket (mode 0660) and
writes them into the vault; a folder it makes where there is none. A gateway's journal
frees what is durable in the vault, and nothing before. One sink writes a vault. In
Cloud Storage it needs to create, get and list objects, and no right beyond that.

Runs until SIGTERM or SIGINT. Prints one line when it listens; logs are JSON on
standard error.

Examples:
  recorder sink --vault /var/lib/verbatim/vault --listen unix:/run/verbatim/sink.sock
  recorder sink --vault vault.yaml --spool /var/spool/verbatim --listen unix:/run/verbatim/sink.sock
`

func sinkCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("sink", sinkHelp)
	f.vaultFlag(&p)
	listen := f.String("listen", "", "where gateways connect: `unix:PATH`")
	spool := f.String("spool", "", "folder `DIR` for segments that are not whole yet, best on the vault's disk (default: .spool in a vault that is a folder)")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if err := f.resolve(&p); err != nil {
		return err
	}
	socket, ok := strings.CutPrefix(*listen, "unix:")
	if !ok || socket == "" {
		return &usageError{fmt.Sprintf("sink: --listen %q: want unix:PATH", *listen), "for example --listen unix:/run/verbatim/sink.sock"}
	}
	if *spool == "" {
		if p.spec.Folder() == "" {
			return &usageError{"sink: where to? a vault that is no folder needs --spool DIR", "a folder of this machine, for some MB a gateway"}
		}
		*spool = filepath.Join(p.spec.Folder(), ".spool")
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	v, err := place.Open(ctx, place.Config{Spec: p.spec, Write: true, Logger: log})
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	s, err := sink.New(sink.Config{Vault: v, Class: v.Longest(), Spool: *spool, Logger: log})
	if err != nil {
		return err
	}
	server, err := transport.Listen(transport.ServerConfig{Socket: socket, Logger: log})
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if _, err := fmt.Fprintf(stdout, "recorder sink: ready, vault %s, socket %s\n", v, socket); err != nil {
		return err
	}
	err = server.Serve(ctx, s)
	stats := s.Stats()
	log.Info("sink: stopped", "segments", stats.Segments, "records", stats.Records, "bytes", stats.Bytes, "alarms", stats.Alarms)
	if ctx.Err() != nil && s.Err() == nil {
		return nil // asked to stop
	}
	return err
}
