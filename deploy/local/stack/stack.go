// Package stack runs the whole of Verbatim on loopback: the upstream (the
// emulator behind its double, or a BigQuery that is named), an OpenID Connect
// issuer, the gateway, the sink and Envoy; where asked for, also the sink's log
// with a witness, and the service that reads for auditors. `make run` and the
// end-to-end tests start the same thing.
//
// Rule of the folder: real processes, started in the order in which they need
// each other and stopped in the opposite one; all files under one folder.
package stack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/deploy/local/tools"
	"verbatim.dev/envoy"
	"verbatim.dev/recorder/record"
)

// Audience is what the local tokens are for, AuditAudience what those of auditors
// are for: one is worth nothing where the other is asked for.
const (
	Audience      = "verbatim"
	AuditAudience = "verbatim-auditors"
)

// TokenIssuer is the issuer of the gateway's own tokens, and the audience that
// clients name at its token endpoint. It is a name: nothing listens there.
const TokenIssuer = "https://gateway.local"

// Config says what to run.
type Config struct {
	// Home holds every file of the stack: journal, vault, keys, configuration,
	// sockets, logs.
	Home string
	// Extproc and Recorder are the binaries. Without Recorder there is no sink,
	// and the journal keeps all.
	Extproc, Recorder string
	// Envoy is Envoy's binary.
	Envoy string
	// Project is the BigQuery project that the one connection lists.
	Project string
	// Upstream is the base URL of BigQuery's REST API.
	Upstream string
	// Storage is that of its Storage Read API; empty: none.
	Storage string
	// Credential is the connection's credential, as in extproc's configuration.
	Credential map[string]any
	// Listen is Envoy's address; 127.0.0.1:0 where empty. IssuerListen is the
	// issuer's.
	Listen, IssuerListen string
	// Audited has the sink keep its log, with a witness, and starts recorder
	// serve. Their addresses are WitnessListen and ServeListen, free ports of
	// 127.0.0.1 where empty.
	Audited                    bool
	WitnessListen, ServeListen string
	// Issuers are more issuers to trust, as in extproc's configuration.
	Issuers []map[string]any
	// Policy is a folder of Rego and data, or of data alone.
	Policy string
	// Configure, where set, changes extproc's configuration before it is written.
	Configure func(map[string]any)
	// Bootstrap, where set, changes Envoy's parameters.
	Bootstrap func(*envoy.Params)
	// Log takes the programs' output; nil writes it to files under Home/log.
	Log io.Writer
	// Progress takes lines of text for a human; nil discards them.
	Progress io.Writer
	// Env is added to the environment of extproc and recorder.
	Env []string
}

// Stack is a running stack. Its methods are not safe for concurrent use,
// except URL and Token.
type Stack struct {
	cfg     Config
	Issuer  *issuer.Server
	Envoy   *tools.Envoy
	Extproc *tools.Process
	Sink    *tools.Process
	Witness *tools.Process // nil unless Audited, as Serve
	Serve   *tools.Process

	address string // of extproc, where Configure took it off its socket

	mu     sync.Mutex
	closed bool
	files  []*os.File
}

// Paths under Home.
func (s *Stack) path(name string) string { return filepath.Join(s.cfg.Home, name) }

// Vault is the folder of the evidence.
func (s *Stack) Vault() string { return s.path("vault") }

// Journal is the gateway's journal.
func (s *Stack) Journal() string { return s.path("journal") }

// Keyset is the tenant's private keyset.
func (s *Stack) Keyset() string { return s.path("keys/tenant.json") }

// Trust is the deployment's public key.
func (s *Stack) Trust() string { return s.path("keys/deployment.pub") }

// LogKey is the public key of the sink's log.
func (s *Stack) LogKey() string { return s.path("keys/log.pub") }

// WitnessKey is the witness's public key.
func (s *Stack) WitnessKey() string { return s.path("witness/key.pub") }

// WitnessURL and ServeURL are where the two listen.
func (s *Stack) WitnessURL() string { return "http://" + s.cfg.WitnessListen }
func (s *Stack) ServeURL() string   { return "http://" + s.cfg.ServeListen }

// ConfigFile is extproc's configuration.
func (s *Stack) ConfigFile() string { return s.path("extproc.yaml") }

// Revocations is the deny list.
func (s *Stack) Revocations() string { return s.path("revocations.yaml") }

// Socket is where extproc listens.
func (s *Stack) Socket() string { return s.path("run/extproc.sock") }

// URL is where clients find BigQuery.
func (s *Stack) URL() string { return "http://" + s.Envoy.Listener }

// Start starts everything, and stops what it had started when something fails.
func Start(ctx context.Context, c Config) (_ *Stack, err error) {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.IssuerListen == "" {
		c.IssuerListen = "127.0.0.1:0"
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	if c.Home, err = filepath.Abs(c.Home); err != nil {
		return nil, fmt.Errorf("stack: %w", err)
	}
	s := &Stack{cfg: c}
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	for _, d := range []string{"journal", "vault", "keys", "run", "log", "envoy", "witness", "auditors"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("stack: %w", err)
		}
	}
	if len(s.Socket()) > 100 { // sun_path holds 108 bytes
		return nil, fmt.Errorf("stack: %s is too long for a UNIX socket; choose a shorter VERBATIM_HOME", s.Socket())
	}
	if err := s.keys(); err != nil {
		return nil, err
	}
	if s.Issuer, err = issuer.Listen(c.IssuerListen, s.path("issuer")); err != nil {
		return nil, err
	}
	if err := s.configure(); err != nil {
		return nil, err
	}
	if c.Audited {
		fmt.Fprintln(c.Progress, "starting the witness")
		if err := s.StartWitness(ctx); err != nil {
			return nil, err
		}
	}
	if c.Recorder != "" {
		fmt.Fprintln(c.Progress, "starting the sink")
		if err := s.StartSink(ctx); err != nil {
			return nil, err
		}
	}
	if c.Audited {
		fmt.Fprintln(c.Progress, "starting the service for auditors")
		if err := s.StartServe(ctx); err != nil {
			return nil, err
		}
	}
	fmt.Fprintln(c.Progress, "starting the gateway")
	if err := s.StartExtproc(ctx); err != nil {
		return nil, err
	}
	fmt.Fprintln(c.Progress, "starting Envoy")
	if err := s.StartEnvoy(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// keys makes the tenant's keyset and the deployment's session key, once.
func (s *Stack) keys() error {
	if _, err := os.Stat(s.Keyset()); errors.Is(err, os.ErrNotExist) {
		h, err := record.NewTenant()
		if err != nil {
			return err
		}
		for name, private := range map[string]bool{"keys/tenant.pub.json": false, "keys/tenant.json": true} {
			b, err := record.MarshalTenant(h, private)
			if err != nil {
				return err
			}
			if err := os.WriteFile(s.path(name), b, 0o600); err != nil {
				return fmt.Errorf("stack: %w", err)
			}
		}
	}
	if _, err := os.Stat(s.path("keys/deployment.key")); errors.Is(err, os.ErrNotExist) {
		secret, public, err := note.GenerateKey(nil, "local")
		if err != nil {
			return fmt.Errorf("stack: %w", err)
		}
		for name, key := range map[string]string{"keys/deployment.pub": public, "keys/deployment.key": secret} {
			if err := os.WriteFile(s.path(name), []byte(key+"\n"), 0o600); err != nil {
				return fmt.Errorf("stack: %w", err)
			}
		}
	}
	if _, err := os.Stat(s.path("keys/token.pem")); errors.Is(err, os.ErrNotExist) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("stack: %w", err)
		}
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return fmt.Errorf("stack: %w", err)
		}
		if err := os.WriteFile(s.path("keys/token.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}), 0o600); err != nil {
			return fmt.Errorf("stack: %w", err)
		}
	}
	if s.cfg.Audited {
		if err := s.logKeys(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(s.path("keys/session.key")); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(s.path("keys/session.key"), []byte(RandomHex(32)+"\n"), 0o600); err != nil {
			return fmt.Errorf("stack: %w", err)
		}
	}
	return nil
}

// configure writes extproc's configuration.
func (s *Stack) configure() error {
	if _, err := os.Stat(s.Revocations()); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(s.Revocations(), []byte("# Callers to refuse at once. extproc reads changes without a restart.\ntokens: []\nsubjects: []\n"), 0o600); err != nil {
			return fmt.Errorf("stack: %w", err)
		}
	}
	issuers := []map[string]any{
		{"name": issuer.CI, "url": s.Issuer.Issuer(issuer.CI).URL(), "audiences": []string{Audience}, "profile": "github"},
		{"name": issuer.Cluster, "url": s.Issuer.Issuer(issuer.Cluster).URL(), "audiences": []string{Audience}, "profile": "kubernetes"},
		{"name": issuer.Corp, "url": s.Issuer.Issuer(issuer.Corp).URL(), "audiences": []string{Audience}, "groups_claim": "groups", "profile": "generic"},
	}
	upstream := map[string]any{"rest": s.cfg.Upstream, "storage": "none"}
	if s.cfg.Storage != "" {
		upstream["storage"] = s.cfg.Storage
	}
	cfg := map[string]any{
		"gateway": "local",
		"listen":  map[string]any{"socket": s.Socket()},
		"limits":  map[string]any{"exchanges": 256},
		"journal": map[string]any{"dir": s.Journal(), "limit": "4GiB", "reserve": "64MiB", "segment": "64MiB",
			"cut_bytes": "8MiB", "cut_interval": "1s", "heartbeat": "15s"},
		"sealing":     map[string]any{"tenant": s.path("keys/tenant.pub.json"), "key": s.path("keys/deployment.key")},
		"session_key": s.path("keys/session.key"),
		"transport":   map[string]any{"local": s.path("run/sink.sock")},
		"retention":   map[string]any{"default": "standard", "classes": map[string]any{"standard": "400d"}},
		"issuers":     append(issuers, s.cfg.Issuers...),
		"tokens":      map[string]any{"issuer": TokenIssuer, "signing_key": s.path("keys/token.pem")},
		"revocations": s.Revocations(),
		"connections": []map[string]any{{
			"name": "local", "projects": []string{s.cfg.Project}, "location": "US",
			"upstream": upstream, "credential": s.cfg.Credential,
			"recording": "full", "retention": "standard",
		}},
		"policy": map[string]any{"dir": s.cfg.Policy},
	}
	if s.cfg.Configure != nil {
		s.cfg.Configure(cfg)
	}
	if l, ok := cfg["listen"].(map[string]any); ok {
		s.address, _ = l["address"].(string)
	}
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("stack: %w", err)
	}
	return WriteFile(s.ConfigFile(), b)
}

// StartSink starts the sink and waits until it listens.
func (s *Stack) StartSink(ctx context.Context) error {
	args := []string{"sink", "--vault", s.Vault(), "--listen", "unix:" + s.path("run/sink.sock")}
	if s.cfg.Audited {
		key, err := os.ReadFile(s.WitnessKey())
		if err != nil {
			return fmt.Errorf("stack: %w", err)
		}
		args = append(args, "--log-key", s.path("keys/log.key"), "--witness", s.WitnessURL()+"="+strings.TrimSpace(string(key)), "--log-delay", "200ms")
	}
	p, err := s.start("sink", s.cfg.Recorder, args...)
	if err != nil {
		return err
	}
	s.Sink = p
	return s.await(ctx, p, "sink", func() error {
		c, err := net.Dial("unix", s.path("run/sink.sock"))
		if err == nil {
			c.Close()
		}
		return err
	})
}

// StartExtproc starts the gateway and waits until it says that it serves.
func (s *Stack) StartExtproc(ctx context.Context) error {
	p, err := s.start("extproc", s.cfg.Extproc, "serve", "--config", s.ConfigFile())
	if err != nil {
		return err
	}
	s.Extproc = p
	if s.address != "" { // a health check would need a client's certificate
		return s.await(ctx, p, "extproc", func() error {
			c, err := net.Dial("tcp", s.address)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	conn, err := grpc.NewClient("unix:"+s.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("stack: %w", err)
	}
	defer conn.Close()
	return s.await(ctx, p, "extproc", func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && r.Status != healthpb.HealthCheckResponse_SERVING {
			err = fmt.Errorf("it says %s", r.Status)
		}
		return err
	})
}

// StartEnvoy starts Envoy and waits until it serves.
func (s *Stack) StartEnvoy(ctx context.Context) error {
	p := envoy.Params{
		Listen: s.cfg.Listen, Admin: "127.0.0.1:0", Processor: envoy.Processor{Socket: s.Socket()},
		Connections: []envoy.Connection{{Name: "local", REST: s.cfg.Upstream, Storage: s.cfg.Storage}},
		AccessLog:   s.path("log/access.json"),
	}
	if s.cfg.Bootstrap != nil {
		s.cfg.Bootstrap(&p)
	}
	b, err := envoy.Render(p)
	if err != nil {
		return err
	}
	log, err := s.log("envoy")
	if err != nil {
		return err
	}
	s.Envoy, err = tools.StartEnvoy(ctx, tools.EnvoyConfig{Binary: s.cfg.Envoy, Bootstrap: b, Dir: s.path("envoy"), Log: log, Grace: 5 * time.Second})
	return err
}

func (s *Stack) log(name string) (io.Writer, error) {
	if s.cfg.Log != nil {
		return s.cfg.Log, nil
	}
	f, err := os.OpenFile(s.path("log/"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("stack: %w", err)
	}
	s.files = append(s.files, f)
	return f, nil
}

func (s *Stack) start(name, path string, args ...string) (*tools.Process, error) {
	log, err := s.log(name)
	if err != nil {
		return nil, err
	}
	return tools.Start(tools.Command{Path: path, Args: args, Log: log, Grace: 15 * time.Second, Env: append(os.Environ(), s.cfg.Env...)})
}

// await polls until ready answers nil, the process ends or ctx does.
func (s *Stack) await(ctx context.Context, p *tools.Process, name string, ready func() error) error {
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("stack: %s ended before it was ready (%v); its log is %s", name, p.Err(), s.path("log/"+name+".log"))
		case <-ctx.Done():
			return fmt.Errorf("stack: %s is not ready: %w", name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Token mints a token for one of the ready-made callers.
func (s *Stack) Token(name string, ttl time.Duration) (string, error) {
	for _, c := range issuer.Callers(Audience) {
		if c.Name == name {
			return s.Issuer.Mint(c, ttl)
		}
	}
	if c := issuer.Auditor(AuditAudience); c.Name == name {
		return s.Issuer.Mint(c, ttl)
	}
	return "", fmt.Errorf("stack: no ready-made caller %q", name)
}

// Stop stops everything that runs.
func (s *Stack) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.Envoy != nil {
		s.Envoy.Stop()
	}
	if s.Extproc != nil {
		s.Extproc.Stop() // ships what it holds before it ends
	}
	if s.Serve != nil {
		s.Serve.Stop()
	}
	if s.Sink != nil {
		s.Sink.Stop()
	}
	if s.Witness != nil { // the sink's last checkpoint is cosigned
		s.Witness.Stop()
	}
	if s.Issuer != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		s.Issuer.Close(ctx)
	}
	for _, f := range s.files {
		f.Close()
	}
}
