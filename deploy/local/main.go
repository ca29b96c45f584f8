// Command local runs Verbatim on this machine: `make run`.
//
// It installs what it needs into a tools folder, starts the BigQuery emulator,
// an issuer of tokens, the gateway, the sink and Envoy on loopback, lets an
// agent run a few queries, shows what was recorded, and stays up until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/deploy/local/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "verbatim:", err)
		os.Exit(1)
	}
}

// settings are what the environment says.
type settings struct {
	home     string // VERBATIM_HOME
	bin      string // where extproc and recorder are
	upstream string // UPSTREAM: the real BigQuery; empty: the emulator
	project  string // PROJECT
	issuer   string // ISSUER: the user's own
	audience string // AUDIENCE of its tokens
	listen   string // LISTEN: Envoy's address
	local    bool   // the local issuer's ready-made callers are trusted
	once     bool   // demonstrate and stop
}

func read(args []string, stderr io.Writer) (settings, error) {
	s := settings{home: env("VERBATIM_HOME", ".verbatim"), bin: "bin", upstream: os.Getenv("UPSTREAM"), project: os.Getenv("PROJECT"),
		issuer: os.Getenv("ISSUER"), audience: env("AUDIENCE", stack.Audience), listen: env("LISTEN", "127.0.0.1:9050")}
	fs := flag.NewFlagSet("local", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&s.once, "once", false, "demonstrate, then stop")
	fs.StringVar(&s.bin, "bin", s.bin, "`folder` of extproc and recorder")
	if err := fs.Parse(args); err != nil {
		return s, err
	}
	s.local = s.upstream == "" || os.Getenv("LOCAL_ISSUER") == "1"
	switch {
	case s.upstream == "" && s.project == "":
		s.project = "demo-project"
	case s.upstream != "" && s.project == "":
		return s, errors.New("UPSTREAM needs PROJECT: the Google Cloud project that queries run in")
	case s.upstream != "" && s.issuer == "" && !s.local:
		return s, errors.New("UPSTREAM needs ISSUER=https://... (your own OpenID Connect issuer; AUDIENCE names its tokens' audience), or LOCAL_ISSUER=1 to trust the local one's ready-made callers")
	}
	home, err := filepath.Abs(s.home)
	if err != nil {
		return s, err
	}
	s.home = home
	return s, os.MkdirAll(home, 0o700)
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	s, err := read(args, stderr)
	if err != nil {
		return err
	}
	// What an earlier run left is not this one's: nobody may take it for ready.
	for _, f := range []string{"run.json", "env.sh"} {
		if err := os.Remove(filepath.Join(s.home, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	fmt.Fprintln(stdout, "Verbatim on loopback. Data: "+s.home)
	t, err := tools.Ensure(ctx, "", stdout)
	if err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()

	c := stack.Config{
		Home: s.home, Extproc: filepath.Join(s.bin, "extproc"), Recorder: filepath.Join(s.bin, "recorder"),
		Envoy: t.Envoy, Project: s.project, Listen: s.listen, IssuerListen: env("ISSUER_LISTEN", "127.0.0.1:9051"), Progress: stdout,
		Audited: true, WitnessListen: env("WITNESS_LISTEN", "127.0.0.1:9052"), ServeListen: env("SERVE_LISTEN", "127.0.0.1:9053"),
	}
	if c.Policy, err = writePolicy(s); err != nil {
		return err
	}
	if s.upstream == "" {
		fmt.Fprintln(stdout, "starting the BigQuery emulator")
		e, err := startEmulator(start, s, t)
		if err != nil {
			return err
		}
		defer e.Close()
		c.Upstream, c.Storage = e.URL, "http://"+e.GRPC
		c.Credential = map[string]any{"kind": "token_file", "file": filepath.Join(s.home, "keys/upstream.token")}
	} else {
		if strings.TrimSuffix(s.upstream, "/") == "https://bigquery.googleapis.com" {
			c.Storage = "https://bigquerystorage.googleapis.com"
		}
		c.Upstream, c.Credential = s.upstream, map[string]any{"kind": "adc"}
	}
	if s.issuer != "" {
		c.Issuers = append(c.Issuers, map[string]any{"name": "own", "url": s.issuer, "audiences": []string{s.audience}, "groups_claim": "groups", "profile": "generic"})
	}
	st, err := stack.Start(start, c)
	if err != nil {
		return err
	}
	defer st.Stop()

	tokens := &tokens{stack: st, dir: filepath.Join(s.home, "tokens"), callers: s.local}
	if err := tokens.write(); err != nil {
		return err
	}
	fresh, stopFresh := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tokens.keep(fresh, stderr)
	}()
	defer func() { stopFresh(); <-done }()
	d := &demo{settings: s, stack: st, tokens: tokens, tools: t, out: stdout}
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("demonstration: %w", err)
	}
	if err := writeRun(s, st, tokens); err != nil {
		return err
	}
	if s.once {
		return nil
	}
	d.howTo()
	fmt.Fprintln(stdout, "\nReady. Ctrl-C stops everything.")
	select {
	case <-ctx.Done():
		fmt.Fprintln(stdout, "\nstopping")
		return nil
	case <-st.Extproc.Done():
		return fmt.Errorf("extproc ended: %v; see %s", st.Extproc.Err(), filepath.Join(s.home, "log/extproc.log"))
	case <-st.Sink.Done():
		return fmt.Errorf("the sink ended: %v; see %s", st.Sink.Err(), filepath.Join(s.home, "log/sink.log"))
	case <-st.Witness.Done():
		return fmt.Errorf("the witness ended: %v; see %s", st.Witness.Err(), filepath.Join(s.home, "log/witness.log"))
	case <-st.Serve.Done():
		return fmt.Errorf("the service for auditors ended: %v; see %s", st.Serve.Err(), filepath.Join(s.home, "log/serve.log"))
	case <-st.Envoy.Done():
		return fmt.Errorf("the proxy Envoy ended: %v; see %s", st.Envoy.Err(), filepath.Join(s.home, "log/envoy.log"))
	}
}

// startEmulator starts the emulator behind its double. Both forget their data
// at the end: the sample is loaded anew at each start.
func startEmulator(ctx context.Context, s settings, t tools.Tools) (*emulator.Emulator, error) {
	for _, d := range []string{"keys", "log"} {
		if err := os.MkdirAll(filepath.Join(s.home, d), 0o700); err != nil {
			return nil, err
		}
	}
	token := "upstream-" + stack.RandomHex(24)
	if err := os.WriteFile(filepath.Join(s.home, "keys/upstream.token"), []byte(token), 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.home, "log/emulator.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	e, err := emulator.Start(ctx, emulator.RunConfig{Tools: t, Project: s.project, Double: emulator.Config{Token: token}, Log: log})
	if err != nil {
		return nil, err
	}
	return e, loadSample(ctx, e.URL, token, s.project)
}
