package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"verbatim.dev/extproc/config"
	"verbatim.dev/extproc/server"
	use "verbatim.dev/extproc/usage"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport/pubsub"
)

const serveHelp = `Usage: extproc serve --config FILE

Runs the gateway until SIGTERM or SIGINT, then lets running exchanges end
(limits.drain), closes its epoch and ships what its journal holds.

The configuration file, the revocations, the policy and the tenant's public keyset
are read again when they change; SIGHUP is not needed. What a broken file would
change stays as it was, and the log says why. listen, limits, journal, sealing.key,
transport, gateway and budgets take effect at the next start.

Example:

  extproc serve --config /etc/verbatim/extproc.yaml

`

// poll is how often files are looked at for changes.
const poll = time.Second

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	path := fs.String("config", "", "configuration `FILE`")
	level := fs.String("log-level", "info", "debug, info, warn or error")
	if err := parse(fs, args, stdout, serveHelp); err != nil {
		return err
	}
	if *path == "" {
		return fmt.Errorf("%w: serve needs --config FILE", errUsage)
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(*level)); err != nil {
		return fmt.Errorf("%w: --log-level %q: want debug, info, warn or error", errUsage, *level)
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: l}))
	seen := config.Look(*path)
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	seen.Add(cfg.Files()...) // before they are read: what changes from here on is read again
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.Limits.Memory().Bytes())
	}
	if os.Getenv("GOGC") == "" {
		defer tuneGC()()
	}
	deployment, err := readDeployment(ctx, cfg.Sealing.Key)
	if err != nil {
		return err
	}
	if deployment == nil {
		log.Warn("no sealing.key: nobody can tell this gateway's records from another's; make one with recorder key new")
	}

	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	g := newGateway(log)
	defer g.close()
	counts, err := use.Open(use.Config{File: cfg.UsageFile(), Share: cfg.Budgets.Share, Logger: log})
	if err != nil {
		return err
	}
	defer func() {
		if err := counts.Close(); err != nil {
			log.Error("usage not closed in order: the next start may count the last minute twice", "error", err)
		}
	}()
	g.usage = counts
	if err := g.load(background, cfg); err != nil {
		return err
	}
	switch err := checkTransport(ctx, cfg); {
	case errors.Is(err, pubsub.ErrUnreachable):
		// The journal holds what comes until Pub/Sub is there.
		log.Warn("the transport was not checked", "error", err)
	case err != nil:
		return err
	}
	var srv *server.Server
	j, err := journal.Open(ctx, journal.Config{
		Dir: cfg.Journal.Dir, Gateway: cfg.Gateway, Version: record.Build, Tenant: g.tenant.keyset, Deployment: deployment,
		Class: cfg.Retention.Default, Retention: cfg.Retention.Classes,
		Limit: cfg.Journal.Limit.Bytes(), Reserve: cfg.Journal.Reserve.Bytes(), SegmentSize: cfg.Journal.Segment.Bytes(),
		CutBytes: cfg.Journal.CutBytes.Bytes(), CutInterval: cfg.Journal.CutInterval, Heartbeat: cfg.Journal.Heartbeat, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	g.recordTo(j.SetTenant)
	carrier, err := newShipper(ctx, cfg, j, log)
	if err != nil {
		return errors.Join(fmt.Errorf("transport: %w", err), j.Close(ctx, "start failed"))
	}
	defer func() {
		if err := carrier.close(); err != nil {
			log.Warn("the transport did not close", "error", err)
		}
	}()
	srv, err = server.New(server.Config{Recorder: carrier.recorder, Refused: j.Refuse, Gate: g.gate, Limits: serverLimits(cfg.Limits), Logger: log})
	if err != nil {
		return errors.Join(err, j.Close(ctx, "start failed"))
	}

	var work sync.WaitGroup
	defer work.Wait()
	defer stopBackground()
	shipping, stopShipping := context.WithCancel(background)
	defer stopShipping()
	shipped := make(chan struct{})
	work.Go(func() {
		defer close(shipped)
		carrier.ship(shipping, j, log)
	})

	listener, creds, err := listen(cfg.Listen)
	if err != nil {
		return errors.Join(err, j.Close(ctx, "start failed"))
	}
	options := srv.Options()
	if creds != nil {
		options = append(options, grpc.Creds(creds))
	}
	gs := grpc.NewServer(options...)
	extproc.RegisterExternalProcessorServer(gs, srv)
	hs := health.NewServer()
	healthpb.RegisterHealthServer(gs, hs)
	hs.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)

	work.Go(func() { counts.Run(background) })
	work.Go(func() { g.follow(background, *path, seen, srv) })
	if cfg.Metrics.Address != "" {
		stop, err := stats(cfg.Metrics.Address, cfg.Gateway, j, srv, log)
		if err != nil {
			return errors.Join(err, j.Close(ctx, "start failed"))
		}
		defer stop()
	}

	served := make(chan error, 1)
	go func() { served <- gs.Serve(listener) }()
	log.Info("serving", "gateway", cfg.Gateway, "epoch", j.Epoch().String(), "listen", listener.Addr().String(),
		"policy", g.engine.Load().Digest(), "memory", cfg.Limits.Memory().String(), "version", record.Build)

	var failed error
	select {
	case <-ctx.Done():
		log.Info("stopping", "drain", cfg.Limits.Drain.String())
	case err := <-served:
		failed = fmt.Errorf("serve: %w", err)
	case <-j.Failed():
		// Nothing can be recorded any more, so nothing passes: the exchanges end
		// by themselves, and the health check sends Envoy elsewhere.
		failed = fmt.Errorf("journal: %w", j.Err())
		log.Error("journal failed", "error", j.Err())
	}
	hs.Shutdown()
	stopServing(gs, cfg.Limits.Drain)
	srv.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Limits.Drain)
	defer cancel()
	if err := finish(end, j, shipped, stopShipping, log); err != nil {
		failed = errors.Join(failed, err)
	}
	return failed
}

func serverLimits(l config.Limits) server.Limits {
	return server.Limits{
		Exchanges: l.Exchanges, Window: int32(l.Window), Share: l.Share.Bytes(), Budget: l.Budget.Bytes(),
		Body: l.RequestBody.Bytes(), Decision: l.Decision, Journal: l.Journal, Idle: l.Idle,
	}
}

// stopServing lets streams end by themselves, for drain at most.
func stopServing(gs *grpc.Server, drain time.Duration) {
	done := make(chan struct{})
	go func() {
		gs.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drain):
		gs.Stop()
		<-done
	}
}

// finish closes the epoch and waits, until ctx ends, for the sink to have all
// of it. What it does not get now it gets at the next start.
func finish(ctx context.Context, j *journal.Journal, shipped <-chan struct{}, stop context.CancelFunc, log *slog.Logger) error {
	err := j.Finish(ctx, "stopped")
	if err == nil {
		select {
		case <-shipped:
		case <-ctx.Done():
			log.Warn("the sink does not have all records yet, they are shipped at the next start")
		}
	}
	stop()
	<-shipped
	return errors.Join(err, j.Close(context.WithoutCancel(ctx), "stopped"))
}

// listen opens the socket (mode 0660), or an address with mutual TLS.
func listen(c config.Listen) (net.Listener, credentials.TransportCredentials, error) {
	network, address := c.Network()
	if network == "unix" {
		if conn, err := net.DialTimeout("unix", address, time.Second); err == nil {
			conn.Close()
			return nil, nil, fmt.Errorf("listen: another process serves %s", address)
		}
		if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("listen: stale socket: %w", err)
		}
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	if network == "unix" {
		if err := os.Chmod(address, 0o660); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
		}
	}
	if c.TLS == nil {
		return l, nil, nil
	}
	if _, err := mutual(*c.TLS); err != nil { // broken files are found now
		return nil, nil, errors.Join(fmt.Errorf("listen: tls: %w", err), l.Close())
	}
	return l, credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		// Files are read at each handshake, so certificates rotate in place.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return mutual(*c.TLS) },
	}), nil
}

// mutual demands a client certificate of the CA with one of the names.
func mutual(c config.TLS) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, err
	}
	ca, err := pool(c.ClientCA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert},
		ClientCAs: ca, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if named(leaf, c.ClientNames) {
				return nil
			}
			return errors.New("the client's certificate has none of the names in client_names")
		},
	}, nil
}

func named(leaf *x509.Certificate, names []string) bool {
	for _, n := range leaf.DNSNames {
		if slices.Contains(names, n) {
			return true
		}
	}
	for _, u := range leaf.URIs {
		if slices.Contains(names, u.String()) {
			return true
		}
	}
	return false
}

// stats serves the gateway's state on loopback: /livez, /readyz and, as JSON,
// /stats.
func stats(address, gateway string, j *journal.Journal, srv *server.Server, log *slog.Logger) (stop func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := j.Err(); err != nil {
			http.Error(w, "journal: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"gateway": gateway, "epoch": j.Epoch().String(), "open": srv.Open(), "budget": srv.Budget(), "journal": j.Stats(),
		})
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // config takes loopback addresses only
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	hs := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics ended", "error", err)
		}
	}()
	return func() {
		hs.Close()
		<-done
	}, nil
}
