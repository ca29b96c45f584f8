package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/witness"
)

const witnessHelp = `
Usage: recorder witness --init --state FILE --key FILE [--name NAME]
       recorder witness --listen ADDR --state FILE --key FILE --log-key FILE...

Cosigns the log of a sink. It is a small process that another team runs, on another
machine: it sees checkpoints, no records, and needs nothing of the vault. It remembers
the last checkpoint that it cosigned and refuses one that does not go on from it, so a
log that is forked or rolled back gets no further cosignature.

--init makes the witness's key (mode 0600), where there is none, and an empty state, and
prints the public key, for sinks and auditors. It never replaces a state: a witness that
lost its state could cosign a fork, so give its successor a new key and a new name.

The protocol is C2SP tlog-witness (POST /add-checkpoint) with cosignature/v1; and
GET /checkpoint?origin=LOG gives the last checkpoint that was cosigned, which auditors
hold the vault against: recorder verify --log-checkpoint. It speaks plain HTTP, for
requests are signed: put a proxy before it for TLS. When two checkpoints prove a fork they
are kept in STATE.fork-SIZE. Runs until SIGTERM or SIGINT; logs are JSON on standard error.

Examples:
  recorder witness --init --state /var/lib/witness/state --key witness.key --name witness.example/w1
  recorder witness --listen :8447 --state /var/lib/witness/state --key witness.key --log-key log.pub
  curl http://witness.example:8447/checkpoint > kept.txt
`

func witnessCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	f := newFlags("witness", witnessHelp)
	begin := f.Bool("init", false, "make a new witness: its key, where there is none, and an empty state")
	name := f.String("name", "", "with --init: the `NAME` of a new key, best HOST/NAME; not to be used twice")
	listen := f.String("listen", "", "where to listen, `HOST:PORT`")
	state := f.String("state", "", "the `FILE` that holds what was cosigned last")
	keyFile := f.String("key", "", "the witness's signing key `FILE`")
	var logKeys []string
	f.Func("log-key", "the public key `FILE` of a log to cosign (log.pub); may be given again", func(s string) error {
		logKeys = append(logKeys, s)
		return nil
	})
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if *state == "" || *keyFile == "" {
		return &usageError{"witness: --state FILE and --key FILE are needed", f.see()}
	}
	if *begin {
		if *listen != "" || len(logKeys) > 0 {
			return &usageError{"witness: --init takes --state, --key and --name alone", f.see()}
		}
		return initWitness(*state, *keyFile, *name, stdout)
	}
	if *listen == "" || len(logKeys) == 0 {
		return &usageError{"witness: --listen ADDR and --log-key FILE are needed", f.see()}
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	c := witness.Config{State: *state, Logger: log}
	if c.Key, err = readSigningKey(*keyFile); err != nil {
		return fmt.Errorf("witness: --key: %w", err)
	}
	for _, path := range logKeys {
		v, _, err := readLogKey(path)
		if err != nil {
			return fmt.Errorf("witness: --log-key: %w", err)
		}
		c.Logs = append(c.Logs, v)
	}
	w, err := witness.Open(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	if _, err := fmt.Fprintf(stdout, "recorder witness: ready, address %s, key %s\n", l.Addr(), c.Key.WitnessKey()); err != nil {
		return errors.Join(err, l.Close())
	}
	return serveHTTP(ctx, l, w, log)
}

// serveHTTP serves until ctx ends, and lets what is under way finish.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 15 * time.Second,
		IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("witness: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := s.Shutdown(stop)
	<-served
	return err
}

func initWitness(state, keyFile, name string, stdout io.Writer) error {
	k, err := readSigningKey(keyFile)
	switch {
	case err == nil && name != "" && name != k.Name():
		return fmt.Errorf("witness: %s is the key of %s, not of %s", keyFile, k.Name(), name)
	case errors.Is(err, fs.ErrNotExist):
		if name == "" {
			return &usageError{"witness: what is the new key's name?", "give --name, for example --name witness.example/w1"}
		}
		if _, err := os.Lstat(state); err == nil {
			return fmt.Errorf("witness: %s is there already, and the key %s is not: a state goes with its key", state, keyFile)
		}
		if k, err = witness.NewKey(name, nil); err != nil {
			return fmt.Errorf("witness: %w", err)
		}
		if err := create(keyFile, []byte(k.Private()+"\n"), 0o600); err != nil {
			return fmt.Errorf("witness: --key: %w", err)
		}
	case err != nil:
		return fmt.Errorf("witness: --key: %w", err)
	}
	if err := witness.CreateState(state, k); err != nil {
		return fmt.Errorf("witness: --state: %w", err)
	}
	_, err = fmt.Fprintln(stdout, k.WitnessKey())
	return err
}

// readLogKey reads a log's public key: what checks its checkpoints, and its
// text.
func readLogKey(path string) (note.Verifier, string, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return nil, "", err
	}
	t, err := witness.NewTimes(string(b))
	if err != nil {
		return nil, "", fmt.Errorf("%s: no public key of a log (log.pub of \"recorder key new\")", path)
	}
	v, err := note.NewVerifier(t.String())
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	return v, t.String(), nil
}
