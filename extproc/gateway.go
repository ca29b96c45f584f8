package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/api/option"

	"verbatim.dev/envoy"
	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/extproc/config"
	"verbatim.dev/extproc/credential"
	"verbatim.dev/extproc/server"
	"verbatim.dev/policy"
	"verbatim.dev/policy/sql"
	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/record"
)

// gateway holds what changes when the configuration is read again: the
// snapshot that new exchanges begin with, and what the snapshot is made of.
type gateway struct {
	log    *slog.Logger
	owners *bigquery.Owners
	jobs   *server.Jobs
	// What is remembered across configurations, of SQL, of BigQuery's dry runs and
	// of the jobs that rest on them.
	sql     *sql.Analyzer
	dryRuns *server.DryRuns
	reaches *server.Reaches
	usage   server.Usage // nil: budgets are not kept
	told    *server.Told
	// Of what other replicas made, this one asks BigQuery: accounts, sessions.
	accounts *server.Accounts
	sessions *server.Sessions

	snapshot atomic.Pointer[server.Gate]
	engine   atomic.Pointer[policy.Engine]

	mu       sync.Mutex // held while a snapshot is made
	cfg      *config.Config
	verifier *auth.Verifier
	sources  map[string]credential.Source // by the configuration that made them
	tenant   tenant
	seal     func(*keyset.Handle) error // makes the journal wrap to a tenant's keyset; nil before it is open
	watching context.CancelFunc         // of the engine's folder
}

// maxOwned is how many jobs, uploads and tables this replica remembers the
// owners of. What was forgotten is asked of BigQuery.
const maxOwned = 100_000

// What is remembered of SQL: bytes of texts whose facts are kept (the facts are a
// few times as large), and how many of BigQuery's answers to dry runs.
const (
	maxTexts   = 4 << 20
	maxDryRuns = 1024
)

func newGateway(log *slog.Logger) *gateway {
	return &gateway{
		log: log, owners: bigquery.NewOwners(maxOwned), jobs: server.NewJobs(20_000), sql: sql.New(sql.Config{CacheBytes: maxTexts}), reaches: server.NewReaches(maxOwned),
		told: server.NewTold(4096), accounts: server.NewAccounts(), sessions: server.NewSessions(10_000), sources: map[string]credential.Source{},
	}
}

// gate returns the snapshot for a new exchange, with the policy of this moment.
func (g *gateway) gate() *server.Gate {
	snapshot := *g.snapshot.Load()
	snapshot.Policy = g.engine.Load().Current()
	return &snapshot
}

// load makes cfg the configuration of new exchanges. When it fails, the one
// before stays.
func (g *gateway) load(ctx context.Context, cfg *config.Config) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	key, err := cfg.SessionSecret()
	if err != nil {
		return err
	}
	own, err := tokens(cfg.Tokens)
	if err != nil {
		return err
	}
	verifier, err := auth.New(ctx, auth.Config{Issuers: issuers(cfg.Issuers), Tokens: own, Logger: g.log}, g.verifier)
	if err != nil {
		return fmt.Errorf("issuers: %w", err)
	}
	revoked, err := revocations(cfg.Revocations, verifier)
	if err != nil {
		verifier.Close()
		return err
	}
	to, err := readTenant(cfg.Sealing.Tenant)
	if err != nil {
		verifier.Close()
		return err
	}
	connections, sources, err := g.connections(cfg)
	if err != nil {
		verifier.Close()
		return err
	}
	if g.cfg == nil || g.cfg.Policy != cfg.Policy {
		engine, err := policy.New(ctx, policy.Config{Dir: cfg.Policy.Dir, Bundle: cfg.Policy.Bundle, PublicKey: cfg.Policy.PublicKey, Timeout: cfg.Policy.Timeout, Logger: g.log})
		if err != nil {
			verifier.Close()
			return fmt.Errorf("policy: %w", err)
		}
		if g.watching != nil {
			g.watching()
		}
		watch, cancel := context.WithCancel(ctx)
		g.watching = cancel
		g.engine.Store(engine)
		go engine.Watch(watch)
	}
	if err := g.sealTo(to); err != nil {
		verifier.Close()
		return err
	}
	retention := map[string]bool{}
	for class := range cfg.Retention.Classes {
		retention[class] = true
	}
	if g.dryRuns == nil {
		g.dryRuns = server.NewDryRuns(cfg.Limits.DryRunCache, maxDryRuns)
	}
	g.snapshot.Store(&server.Gate{
		Verifier: verifier, Revoked: revoked.Revoked, Connections: connections, SessionKey: key,
		Owners: g.owners, Jobs: g.jobs, Told: g.told, Accounts: g.accounts, Sessions: g.sessions, Retention: retention, Logger: g.log, Now: time.Now,
		SQL: g.sql, Analysis: cfg.Limits.Analysis, DryRuns: g.dryRuns, Reaches: g.reaches, Usage: g.usage, Observed: observed(cfg.Observe),
	})
	g.retire(cfg, verifier, sources)
	return nil
}

// sealTo makes new exchanges be sealed to the tenant's keyset, where it is
// another than before: each change costs every session a fresh data key.
func (g *gateway) sealTo(to tenant) error {
	if g.seal != nil && !bytes.Equal(to.text, g.tenant.text) {
		if err := g.seal(to.keyset); err != nil {
			return fmt.Errorf("sealing: %w", err)
		}
		g.log.Info("sealing to another tenant key", "key", to.keyset.KeysetInfo().GetPrimaryKeyId())
	}
	g.tenant = to
	return nil
}

// recordTo names who makes the journal wrap to another keyset. The journal wraps
// to g.tenant, as load read it.
func (g *gateway) recordTo(seal func(*keyset.Handle) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seal = seal
}

// retire lets go of what only earlier snapshots used, after the longest time
// that an exchange may still need it.
func (g *gateway) retire(cfg *config.Config, verifier *auth.Verifier, sources map[string]credential.Source) {
	old := g.verifier
	var gone []credential.Source
	for k, s := range g.sources {
		if _, ok := sources[k]; !ok {
			gone = append(gone, s)
		}
	}
	g.cfg, g.verifier, g.sources = cfg, verifier, sources
	if old == nil && len(gone) == 0 {
		return
	}
	time.AfterFunc(cfg.Limits.Idle, func() {
		if old != nil {
			old.Close()
		}
		for _, s := range gone {
			s.Close()
		}
	})
}

// close ends the goroutines of the snapshot's parts.
func (g *gateway) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.watching != nil {
		g.watching()
	}
	if g.verifier != nil {
		g.verifier.Close()
	}
	for _, s := range g.sources {
		s.Close()
	}
}

// revoke reads the deny list again, ends the exchanges of whom it names and
// cancels their jobs.
func (g *gateway) revoke(ctx context.Context, s *server.Server) error {
	g.mu.Lock()
	list, err := revocations(g.cfg.Revocations, g.verifier)
	if err != nil {
		g.mu.Unlock()
		return err
	}
	next := *g.snapshot.Load()
	next.Revoked = list.Revoked
	g.snapshot.Store(&next)
	g.mu.Unlock()
	ended := s.Kill(list.Revoked)
	cancelled := s.Cancel(ctx, g.gate(), g.jobs.Of(list.Revoked))
	g.log.Info("revocations loaded", "exchanges_ended", ended, "jobs_cancelled", cancelled)
	return nil
}

// follow reads everything again that may change while the gateway runs,
// whenever one of the configuration's files is other than it was seen, until ctx
// ends.
func (g *gateway) follow(ctx context.Context, path string, seen config.Seen, s *server.Server) {
	files := func() []string {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.cfg.Files()
	}
	seen.Follow(ctx, poll, files, func([]string) { g.reload(ctx, path, s) })
}

func (g *gateway) reload(ctx context.Context, path string, s *server.Server) {
	cfg, err := config.Load(path)
	if err == nil {
		err = g.load(ctx, cfg)
	}
	if err != nil {
		g.log.Error("configuration not loaded, the one before stays", "error", err)
	} else {
		g.log.Info("configuration loaded", "policy", g.engine.Load().Digest())
	}
	if err := g.revoke(ctx, s); err != nil {
		g.log.Error("revocations not loaded, the list before stays", "error", err)
	}
}

// connections makes the snapshot's connections. Credential sources whose
// configuration did not change are kept, with their cached tokens.
func (g *gateway) connections(cfg *config.Config) ([]*server.Connection, map[string]credential.Source, error) {
	sources := map[string]credential.Source{}
	var out []*server.Connection
	fail := func(err error) ([]*server.Connection, map[string]credential.Source, error) {
		for k, s := range sources {
			if _, kept := g.sources[k]; !kept {
				s.Close()
			}
		}
		return nil, nil, err
	}
	for _, c := range cfg.Connections {
		b, err := json.Marshal(c.Credential)
		if err != nil {
			return fail(fmt.Errorf("connection %s: %w", c.Name, err))
		}
		key := string(b)
		if sources[key] == nil {
			if sources[key] = g.sources[key]; sources[key] == nil {
				if sources[key], err = credential.New(c.Credential, credential.Deps{Logger: g.log}); err != nil {
					delete(sources, key)
					return fail(fmt.Errorf("connection %s: %w", c.Name, err))
				}
			}
		}
		storage := ""
		if c.Upstream.StorageURL() != "" {
			storage = envoy.Connection{Name: c.Name}.StorageCluster()
		}
		out = append(out, &server.Connection{
			Name: c.Name, Projects: c.Projects, Location: c.Location, REST: strings.TrimSuffix(c.Upstream.REST, "/"),
			Cluster: envoy.Connection{Name: c.Name}.Cluster(), Storage: storage, Observe: c.Mode == config.ModeObserve, Recording: c.Recording, Retention: c.Retention,
			Credential: sources[key], Client: upstreamClient,
			PerCaller: c.Credential.Kind == credential.KindFederation && c.Credential.Target == "",
		})
	}
	return out, sources, nil
}

func observed(list []config.Observe) []server.Observed {
	var out []server.Observed
	for _, o := range list {
		out = append(out, server.Observed(o))
	}
	return out
}

// upstreamClient sends the gateway's own calls. It follows no redirects: they
// would carry the credential elsewhere.
var upstreamClient = &http.Client{
	Timeout:       30 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func issuers(list []config.Issuer) []auth.IssuerConfig {
	var out []auth.IssuerConfig
	for _, i := range list {
		out = append(out, auth.IssuerConfig{
			Name: i.Name, URL: i.URL, Audiences: i.Audiences, Algorithms: i.Algorithms, GroupsClaim: i.GroupsClaim, Profile: i.Profile,
			Claims: i.Claims, JWKSURL: i.JWKSURL, CAFile: i.CA, TrustDomain: i.TrustDomain, Leeway: i.Leeway,
		})
	}
	return out
}

// tokens reads the keys of the gateway's own tokens; nil for none.
func tokens(c *config.Tokens) (*auth.Tokens, error) {
	if c == nil {
		return nil, nil
	}
	t, err := auth.NewTokens(auth.TokensConfig{Issuer: c.Issuer, SigningKey: c.SigningKey, AcceptedKeys: c.AcceptedKeys, Lifetime: c.Lifetime})
	if err != nil {
		return nil, fmt.Errorf("tokens.%w", err)
	}
	return t, nil
}

func revocations(file string, v *auth.Verifier) (*auth.Revocations, error) {
	if file == "" {
		return &auth.Revocations{}, nil
	}
	list, err := auth.LoadRevocations(file)
	if err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	if list, err = list.For(v); err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	return list, nil
}

// tenant is the tenant's public keyset, and its file.
type tenant struct {
	text   []byte
	keyset *keyset.Handle
}

// maxKeyFile bounds the files of keys and keysets.
const maxKeyFile = 1 << 20

func readTenant(file string) (tenant, error) {
	b, err := readKeyFile(file)
	if err != nil {
		return tenant{}, fmt.Errorf("sealing: %w", err)
	}
	h, err := record.ReadTenant(bytes.NewReader(b), false)
	if err != nil {
		return tenant{}, fmt.Errorf("sealing: %s: %w; it must be the public keyset that \"recorder key new\" wrote", file, err)
	}
	if _, err := record.NewSealer(record.SealerConfig{Tenant: h}); err != nil {
		return tenant{}, fmt.Errorf("sealing: %s: %w", file, err)
	}
	return tenant{b, h}, nil
}

func readKeyFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(b) > maxKeyFile {
		err = fmt.Errorf("%s has more than %d bytes, so it holds no key", file, maxKeyFile)
	}
	return b, err
}

// kmsOptions say how Cloud KMS is reached; tests have a double of it.
var kmsOptions []option.ClientOption

// readDeployment reads the deployment's signing key, or the reference to one in
// Cloud KMS, which is asked when it signs; nil for no file.
func readDeployment(ctx context.Context, file string) (note.Signer, error) {
	if file == "" {
		return nil, nil
	}
	b, err := readKeyFile(file)
	if err != nil {
		return nil, fmt.Errorf("sealing.key: %w", err)
	}
	s, err := kms.NewSigner(ctx, kms.Config{Options: kmsOptions}, string(b))
	if err != nil { // it does not hold the key
		return nil, fmt.Errorf("sealing.key: %s holds no key: %w; \"recorder key new\" makes one", file, err)
	}
	return s, nil
}

// pool reads PEM certificates.
func pool(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(b) {
		return nil, errors.New(file + " holds no PEM certificate")
	}
	return p, nil
}
