package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/config"
	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault/place"
)

const serveHelp = `
Usage: recorder serve --config FILE

Reads the evidence for auditors: it holds the tenant's private keyset, so that nobody
else needs it, and answers search, show and accesses of those who have a role. Before
anything is given out, a record of it is durable: who, what and why. So are refusals.
What cannot be recorded is not given out (503).

  auditor   reads everything; payloads for a reason (--why) only
  viewer    reads metadata, and of the SQL its SHA-256

Who somebody is comes from a token of an OIDC issuer, checked as the gateway checks
callers. The records go to the sink of this machine, or over Pub/Sub, into the vault,
in an epoch of the service's own that the deployment's key certifies: verify proves them
like all others, and recorder accesses lists them. FILE is explained in
serve.example.yaml. Issuers and roles in it are read again when it changes.

Runs until SIGTERM or SIGINT. Prints one line when it listens; logs are JSON on
standard error.

Examples:
  recorder serve --config /etc/verbatim/serve.yaml
  recorder login --server https://auditors.corp.example --token-file token
  recorder search --server https://auditors.corp.example --since 2h
`

const (
	// serveDrain is how long a stop waits for running answers, and then for the
	// sink.
	serveDrain = 10 * time.Second
	headerTime = 10 * time.Second
	readTime   = 30 * time.Second
)

func serveCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := newFlags("serve", serveHelp)
	path := f.String("config", "", "configuration `FILE`")
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if *path == "" {
		return &usageError{"serve: which configuration?", "give --config FILE; serve.example.yaml explains it"}
	}
	c, err := readServeConfig(*path)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	if err := serve(ctx, *path, c, stdout, slog.New(slog.NewJSONHandler(stderr, nil))); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func serve(ctx context.Context, path string, c *serveConfig, stdout io.Writer, log *slog.Logger) (err error) {
	tenant, err := openLiveKeyset(ctx, c.Keyset, log)
	if err != nil {
		return err
	}
	public, err := tenant.public()
	if err != nil {
		return err
	}
	var deployment note.Signer
	if c.DeploymentKey != "" {
		if deployment, err = readSigner(ctx, c.DeploymentKey); err != nil {
			return fmt.Errorf("deployment_key: %w", err)
		}
	} else {
		log.Warn("no deployment_key: nobody can tell this service's records from another's")
	}
	spec, err := place.Parse(c.Vault)
	if err != nil {
		return err
	}
	v, err := place.Open(ctx, place.Config{Spec: spec, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	door, err := newDoor(ctx, c, log)
	if err != nil {
		return err
	}
	defer door.close()
	if err := c.checkPubSub(ctx, log); err != nil {
		return err
	}

	j, err := journal.Open(ctx, journal.Config{
		Dir: c.Journal.Dir, Gateway: c.Name, Version: record.Build, Tenant: public, Deployment: deployment,
		Class: c.Retention.Class, Retention: map[string]time.Duration{c.Retention.Class: c.keep}, Limit: c.limit, CutInterval: c.cut, Logger: log,
	})
	if err != nil {
		return err
	}
	stopped := func(why error) error {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveDrain)
		defer cancel()
		return errors.Join(why, j.Close(end, "stopped"))
	}
	shipper, err := c.shipper(ctx, j, log)
	if err != nil {
		return stopped(err)
	}
	defer func() { err = errors.Join(err, shipper.close()) }()
	service, err := access.New(access.Config{
		Name: c.Name, Vault: v, Recorder: shipper.recorder, Refused: j.Refuse, Authenticate: door.authenticate,
		Keys: func() (ledger.Opener, error) {
			return keyring.New(keyring.Config{Source: v, Tenant: tenant.current.Load()})
		},
		Tenant: tenant.current.Load,
		Exported: func(ctx context.Context, by, sum string, keys []string) error {
			return registerExport(ctx, spec, by, sum, keys)
		},
		Requests: c.Limits.Requests, Memory: int(c.memory), Logger: log,
	})
	if err != nil {
		return stopped(err)
	}
	listener, scheme, err := c.listen()
	if err != nil {
		return stopped(err)
	}

	background, stopShipping := context.WithCancel(context.WithoutCancel(ctx))
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		tenant.follow(background, j.SetTenant)
	}()
	defer func() { <-followed }()
	defer stopShipping()
	shipped := make(chan struct{})
	go func() {
		defer close(shipped)
		err := shipper.client.Ship(background, transport.Journal{Acknowledge: j.Acknowledge, Tail: func() transport.Source { return transport.NewSource(j.Tail()) }})
		if err != nil && background.Err() == nil {
			log.Error("shipping ended", "error", err)
		}
	}()
	server := &http.Server{
		Handler: health(service, j), ReadHeaderTimeout: headerTime, ReadTimeout: readTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	following, stopFollowing := context.WithCancel(background)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		door.follow(following, path)
	}()
	defer func() { stopFollowing(); <-watched }()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	_, err = fmt.Fprintf(stdout, "recorder serve: ready, %s at %s://%s, epoch %s\n", c.Name, scheme, listener.Addr(), j.Epoch())
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-served:
		case <-j.Failed():
			// Nothing can be recorded any more, so nothing is given out. The next
			// start recovers the journal.
			err = fmt.Errorf("journal: %w", j.Err())
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveDrain)
	defer cancel()
	if shut := server.Shutdown(end); shut != nil {
		err = errors.Join(err, server.Close())
	}
	end, cancel = context.WithTimeout(context.WithoutCancel(ctx), serveDrain)
	defer cancel()
	if finish := j.Finish(end, "stopped"); finish != nil {
		err = errors.Join(err, finish)
	} else {
		select {
		case <-shipped:
		case <-end.Done():
			log.Warn("the sink does not have all records yet, they are shipped at the next start")
		}
	}
	stopShipping()
	<-shipped
	return stopped(err)
}

// roomForRecord is what a common record of reading takes of the journal.
const roomForRecord = 4 << 10

// health answers /healthz before the service.
func health(service http.Handler, j *journal.Journal) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := j.Stats()
		if j.Err() != nil || s.Held+roomForRecord > s.Limit {
			http.Error(w, "reads cannot be recorded", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n") // a prober that left needs none
	})
	mux.Handle("/", service)
	return mux
}

// listen opens the address. Certificate and key are read anew for each
// handshake, so that they can be replaced in place.
func (c *serveConfig) listen() (net.Listener, string, error) {
	l, err := net.Listen("tcp", c.Listen)
	if err != nil || c.TLS == nil {
		return l, "http", err
	}
	pair := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(c.TLS.Certificate, c.TLS.Key)
		return &cert, err
	}
	if _, err := pair(nil); err != nil {
		return nil, "", errors.Join(fmt.Errorf("tls: %w", err), l.Close())
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair, NextProtos: []string{"http/1.1"}}), "https", nil
}

// reloadPoll is how often the files that say who may read are looked at.
const reloadPoll = time.Second

// door proves who asks.
type door struct {
	session []byte // the key of sessions, of this process alone
	log     *slog.Logger

	mu  sync.Mutex
	now *who
}

// who says who may read; it does not change.
type who struct {
	c        *serveConfig
	verifier *auth.Verifier
	using    sync.WaitGroup // requests
}

func newDoor(ctx context.Context, c *serveConfig, log *slog.Logger) (*door, error) {
	d := &door{session: make([]byte, 32), log: log}
	if _, err := rand.Read(d.session); err != nil {
		return nil, err
	}
	w, err := newWho(ctx, c, nil, log)
	if err != nil {
		return nil, err
	}
	d.now = w
	return d, nil
}

func newWho(ctx context.Context, c *serveConfig, before *auth.Verifier, log *slog.Logger) (*who, error) {
	issuers, err := c.issuers()
	if err != nil {
		return nil, err
	}
	w := &who{c: c}
	if w.verifier, err = auth.New(context.WithoutCancel(ctx), auth.Config{Issuers: issuers, Logger: log}, before); err != nil {
		return nil, err
	}
	if _, err := w.revocations(); err != nil {
		w.verifier.Close()
		return nil, err
	}
	return w, nil
}

func (d *door) close() {
	d.now.using.Wait()
	d.now.verifier.Close()
}

// follow reads issuers and roles again whenever the configuration changes,
// until ctx ends.
func (d *door) follow(ctx context.Context, path string) {
	files := func() []string { return d.now.c.files(path) }
	config.Look(files()...).Follow(ctx, reloadPoll, files, func([]string) {
		if err := d.reload(ctx, path); err != nil {
			d.log.Error("configuration not loaded, who may read stays as it was", "error", err)
		}
	})
}

// reload is called by one goroutine.
func (d *door) reload(ctx context.Context, path string) error {
	c, err := readServeConfig(path)
	if err != nil {
		return err
	}
	w, err := newWho(ctx, c, d.now.verifier, d.log)
	if err != nil {
		return err
	}
	if before, after := d.now.c.fixed(), c.fixed(); !reflect.DeepEqual(before, after) {
		d.log.Warn("the configuration changed beyond issuers, roles and revocations: that takes effect at the next start")
	}
	d.mu.Lock()
	before := d.now
	d.now = w
	d.mu.Unlock()
	d.log.Info("configuration loaded: who may read", "issuers", len(c.Issuers))
	before.using.Wait()
	before.verifier.Close()
	return nil
}

// take returns who may read now; call Done on using.
func (d *door) take() *who {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now.using.Add(1)
	return d.now
}

// revocations are read for each request: who is taken off the list of readers
// is so at once.
func (w *who) revocations() (*auth.Revocations, error) {
	if w.c.Revocations == "" {
		return &auth.Revocations{}, nil
	}
	list, err := auth.LoadRevocations(w.c.Revocations)
	if err != nil {
		return nil, err
	}
	return list.For(w.verifier)
}

func (d *door) authenticate(r *http.Request) (*access.Reader, error) {
	w := d.take()
	defer w.using.Done()
	var headers []record.Header
	for name, values := range r.Header {
		for _, v := range values {
			headers = append(headers, record.Header{Name: name, Value: v})
		}
	}
	token, err := auth.Bearer(headers, r.URL.RawQuery)
	if err != nil {
		return nil, refusal(err)
	}
	id, err := w.verifier.Verify(r.Context(), token)
	if err != nil {
		return nil, refusal(err)
	}
	list, err := w.revocations()
	if err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	if err := list.Check(id); err != nil {
		return nil, refusal(err)
	}
	return &access.Reader{
		Principal: id.Principal, Provenance: id.Provenance, Role: w.c.role(id), Session: auth.Session(d.session, id, time.Now()), Expires: id.Expires,
	}, nil
}

func refusal(err error) error {
	var no *auth.Error
	if errors.As(err, &no) {
		return &access.Refusal{Code: string(no.Code), Message: no.Message, Unavailable: no.Unavailable}
	}
	return err
}
