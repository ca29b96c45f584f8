package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"verbatim.dev/extproc/credential"
)

// Load reads and checks the file at path and the presence of the files that it
// names. What is wrong comes as *Errors.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Errors{List: []Error{{path, 1, "cannot be opened (" + reason(err) + "): give the path of the configuration file"}}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, &Errors{List: []Error{{path, 1, "cannot be read (" + reason(err) + "): give the path of the configuration file"}}}
	}
	return Parse(path, data)
}

// Parse is Load of a file's content; path names it in errors, and its folder is
// where relative paths start.
func Parse(path string, data []byte) (*Config, error) {
	d := newDecoder(path)
	c := Default()
	c.Path = path
	top := d.tree(data)
	if top == nil {
		return nil, d.err()
	}
	d.value(top, reflect.ValueOf(c).Elem(), "", "")
	if !d.broken[""] {
		k := &checker{decoder: d, c: c, decoded: len(d.errs) == 0}
		k.all()
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	if p := c.Transport.PubSub; p != nil && p.Shards == 0 {
		p.Shards = 1
	}
	for i := range c.Connections {
		if c.Connections[i].Retention == "" {
			c.Connections[i].Retention = c.Retention.Default
		}
	}
	return c, nil
}

// Files lists the files that the configuration consists of, itself first: what
// Watch has to look at. A policy folder is in it as such.
func (c *Config) Files() []string {
	files := []string{c.Path}
	add := func(names ...string) {
		for _, n := range names {
			if n != "" && !slices.Contains(files, n) {
				files = append(files, n)
			}
		}
	}
	if t := c.Listen.TLS; t != nil {
		add(t.Certificate, t.Key, t.ClientCA)
	}
	add(c.Sealing.Tenant, c.SessionKey, c.Revocations, c.Policy.Dir, c.Policy.Bundle, c.Policy.PublicKey)
	for _, i := range c.Issuers {
		add(i.CA)
	}
	if t := c.Tokens; t != nil {
		add(t.SigningKey)
		add(t.AcceptedKeys...)
	}
	for _, n := range c.Connections {
		// Key and token files are read again by their source when it needs them.
		add(n.Credential.SigningKey)
		add(n.Credential.PublishedKeys...)
	}
	return files
}

// SessionSecret reads the key that sessions are named with: 32 bytes or more,
// as such or in hexadecimal.
func (c *Config) SessionSecret() ([]byte, error) { return readSecret(c.SessionKey) }

const (
	minSecret = 32
	maxSecret = 1024
)

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 2*maxSecret+2))
	if err != nil {
		return nil, err
	}
	if text := bytes.TrimSpace(b); len(text) >= minSecret {
		if raw, err := hex.DecodeString(string(text)); err == nil {
			b = raw
		}
	}
	if len(b) < minSecret || len(b) > maxSecret {
		return nil, fmt.Errorf("%s holds %d bytes of key: it has to be %d to %d random bytes, as such or in hexadecimal (head -c 32 /dev/urandom > %s)",
			path, len(b), minSecret, maxSecret, filepath.Base(path))
	}
	return b, nil
}

// reason is err without the path, which the message has.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// checker looks at what the keys say together.
type checker struct {
	*decoder
	c *Config
	// decoded says that every value could be read, so that they can be compared.
	decoded bool
}

func (k *checker) has(at string) bool { _, ok := k.lines[at]; return ok }

// required reports a key that the file has not got. A key that is there and
// could not be read has been reported already.
func (k *checker) required(at, what string) bool {
	parent, key := "", at
	if i := strings.LastIndexByte(at, '.'); i >= 0 {
		parent, key = at[:i], at[i+1:]
	}
	if k.broken[at] || k.broken[parent] {
		return false
	}
	if k.has(at) {
		return true
	}
	k.at(parent, "%s is missing%s: add %s", key, in(parent), what)
	return false
}

const maxClasses = 64

var (
	gatewayName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	// A class names files and stands in checkpoints: of [record.CheckClass] the
	// lower case. maxClasses is [record.MaxClasses].
	className  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	issuerName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	// https://cloud.google.com/resource-manager/docs/creating-managing-projects:
	// 6 to 30 characters; emulators take shorter ones. Old projects have a domain
	// before a colon.
	projectID   = regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	location    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,62}$`)
	trustDomain = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
)

// Asymmetric signature algorithms (RFC 7518 section 3.1, RFC 8037). With a
// symmetric one, whoever can verify a token can forge it.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

var (
	profiles    = []string{"generic", "github", "gitlab", "google", "kubernetes", "spiffe"}
	claimFields = []string{"actor", "commit", "email", "environment", "namespace", "node", "pipeline", "pod", "ref", "repository", "run", "service_account", "workflow"}
)

func (k *checker) all() {
	c := k.c
	if k.required("gateway", "a name of this gateway, such as gw-1") && c.Gateway != "" && !gatewayName.MatchString(c.Gateway) {
		k.at("gateway", "gateway %q is no name: use 1 to 40 of a-z, 0-9 and -", short(c.Gateway))
	}
	k.listen()
	k.limits()
	k.journal()
	if k.required("sealing", "tenant, the file with the tenant's public keyset") {
		k.required("sealing.tenant", "the file with the tenant's public keyset")
	}
	k.required("session_key", "a file with 32 random bytes (head -c 32 /dev/urandom > session.key)")
	k.transport()
	k.retention()
	k.issuers()
	k.tokens()
	k.connections()
	k.policy()
	k.observe()
	k.budgets()
	if a := c.Metrics.Address; a != "" {
		if host, ok := k.address("metrics.address", a); ok && !credential.Loopback(host) {
			k.at("metrics.address", "metrics.address %q can be reached from other machines: use 127.0.0.1", a)
		}
	}
	k.files()
}

func (k *checker) listen() {
	l := k.c.Listen
	if !k.required("listen", "socket, a path, or address and tls") {
		return
	}
	if k.broken["listen"] {
		return
	}
	socket, address := k.has("listen.socket") || k.broken["listen.socket"], k.has("listen.address") || k.broken["listen.address"]
	switch {
	case socket && address:
		k.at("listen.address", "listen has both socket and address: keep one")
	case !socket && !address:
		k.at("listen", "listen says neither socket nor address: add socket, a path, or address and tls")
	}
	if socket && l.TLS != nil {
		k.at("listen.tls", "listen.tls goes with address only: remove it, a socket is guarded by its mode")
	}
	if l.Address != "" {
		if host, ok := k.address("listen.address", l.Address); ok && !credential.Loopback(host) && !k.has("listen.tls") {
			k.at("listen.address", "listen.address %q can be reached from other machines, without tls: add listen.tls, or use socket or a loopback address", l.Address)
		}
	}
	if k.has("listen.tls") {
		k.required("listen.tls.certificate", "the file with the server's certificate chain (PEM)")
		k.required("listen.tls.key", "the file with its private key (PEM)")
		k.required("listen.tls.client_ca", "the file with the CA of Envoy's client certificate (PEM)")
		k.required("listen.tls.client_names", "the names that Envoy's client certificate may have")
	}
}

// address checks host:port and returns the host.
func (k *checker) address(at, a string) (string, bool) {
	host, port, err := net.SplitHostPort(a)
	if n, perr := parseDigits(port); err != nil || perr != nil || n > 65535 {
		k.at(at, "%s %q is no address: write host:port, such as 127.0.0.1:9443", at, short(a))
		return "", false
	}
	return host, true
}

func (k *checker) size(at string, got, low, high Size) {
	if k.has(at) && k.decoded && (got < low || got > high) {
		k.at(at, "%s %s is out of range: choose between %s and %s", at, got, low, high)
	}
}

func (k *checker) span(at string, got, low, high time.Duration) {
	if k.has(at) && k.decoded && (got < low || got > high) {
		k.at(at, "%s %s is out of range: choose between %s and %s", at, spell(got), spell(low), spell(high))
	}
}

// spell writes a duration as the file would.
func spell(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= day && d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

func (k *checker) limits() {
	l := k.c.Limits
	if k.has("limits.exchanges") && k.decoded && (l.Exchanges < 1 || l.Exchanges > 100_000) {
		k.at("limits.exchanges", "limits.exchanges %d is out of range: choose between 1 and 100000", l.Exchanges)
	}
	// gRPC's smallest window is 64 KiB less a byte; a window is a signed 32-bit number.
	k.size("limits.window", l.Window, 64<<10, 1<<30)
	k.size("limits.share", l.Share, LeastShare, 1<<30)
	k.size("limits.budget", l.Budget, 0, 1<<40)
	k.size("limits.request_body", l.RequestBody, 1<<10, 1<<30)
	k.span("limits.decision", l.Decision, 10*time.Millisecond, time.Minute)
	k.span("limits.journal", l.Journal, 10*time.Millisecond, 10*time.Minute)
	k.span("limits.idle", l.Idle, time.Second, 24*time.Hour)
	k.span("limits.drain", l.Drain, 0, time.Hour)
	k.span("limits.analysis", l.Analysis, time.Millisecond, time.Minute)
	k.span("limits.dry_run_cache", l.DryRunCache, 0, time.Hour)
	if k.decoded && HeldBody*l.RequestBody > l.Budget {
		k.at("limits.request_body", "limits.request_body %s, which counts %d times while it is held, is more than the budget (%s), so that such a request could never be held: raise budget, or lower request_body",
			l.RequestBody, HeldBody, l.Budget)
	}
}

func (k *checker) journal() {
	j := k.c.Journal
	k.size("journal.limit", j.Limit, 1<<20, 1<<50)
	k.size("journal.reserve", j.Reserve, 1<<20, 1<<40)
	k.size("journal.segment", j.Segment, 512<<10, 1<<40)
	k.size("journal.cut_bytes", j.CutBytes, 64<<10, 1<<40)
	k.span("journal.cut_interval", j.CutInterval, 100*time.Millisecond, time.Hour)
	k.span("journal.heartbeat", j.Heartbeat, 100*time.Millisecond, time.Hour)
	k.span("journal.behind", j.Behind, SinkShare+100*time.Millisecond, 24*time.Hour)
	if !k.decoded {
		return
	}
	if j.Limit < 2*j.Segment {
		k.at("journal.limit", "journal.limit %s is less than two segments of %s: raise it, or lower segment", j.Limit, j.Segment)
	}
	if j.CutInterval+SinkShare > j.Behind {
		k.at("journal.cut_interval", "journal.cut_interval %s, and %s until the sink and its witnesses have cosigned, are more than the %s after which a change of records is to show: lower it to %s, or raise journal.behind and the sink's --behind",
			spell(j.CutInterval), spell(SinkShare), spell(j.Behind), spell(j.Behind-SinkShare))
	}
	if j.CutBytes > j.Segment {
		k.at("journal.cut_bytes", "journal.cut_bytes %s is more than a segment of %s: lower it, or raise segment", j.CutBytes, j.Segment)
	}
}

// pubsubID is how topics and subscriptions are named
// (https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names).
var pubsubID = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$`)

// maxShards is what the transport takes.
const maxShards = 1024

func (k *checker) transport() {
	if !k.required("transport", "local, the path of the sink's socket, or pubsub") || k.broken["transport"] {
		return
	}
	t := k.c.Transport
	local, pubsub := k.has("transport.local") || k.broken["transport.local"], k.has("transport.pubsub") || k.broken["transport.pubsub"]
	switch {
	case local && pubsub:
		k.at("transport.pubsub", "transport has both local and pubsub: keep one")
	case !local && !pubsub:
		k.at("transport", "transport says neither local nor pubsub: add local, the path of the sink's socket, or pubsub")
	}
	if t.Local != "" && t.Local == k.c.Listen.Socket {
		k.at("transport.local", "transport.local is the same socket as listen.socket: give the sink one of its own")
	}
	switch t.Durability {
	case DurabilityLocal, "":
	case DurabilityPublished:
		if !pubsub {
			k.at("transport.durability", "transport.durability published goes with pubsub only: use local, or pubsub")
		}
	default:
		k.at("transport.durability", "transport.durability %q does not exist: use %s or %s", short(t.Durability), DurabilityLocal, DurabilityPublished)
	}
	if !k.has("transport.pubsub") || k.broken["transport.pubsub"] {
		return
	}
	p := PubSub{}
	if t.PubSub != nil {
		p = *t.PubSub
	}
	const at = "transport.pubsub"
	if k.required(at+".project", "the id of the Google Cloud project") && p.Project != "" && !projectID.MatchString(p.Project) {
		k.at(at+".project", "project %q is no project id: write the id (lower-case letters, digits, -), not the name or number", short(p.Project))
	}
	for _, n := range []struct{ key, what, value string }{
		{"topic", "the topic for records", p.Topic},
		{"subscription", "the sink's subscription on it", p.Subscription},
		{"ack_topic", "the topic for the sink's answers", p.AckTopic},
		{"ack_subscription", "this gateway's own subscription on it", p.AckSubscription},
	} {
		if k.required(at+"."+n.key, n.what) && n.value != "" && (!pubsubID.MatchString(n.value) || strings.HasPrefix(n.value, "goog")) {
			k.at(at+"."+n.key, "%s %q is no id: use 3 to 255 of letters, digits and -._~+%%, the first a letter, without projects/ before it", n.key, short(n.value))
		}
	}
	if p.Topic != "" && p.Topic == p.AckTopic {
		k.at(at+".ack_topic", "ack_topic is the topic for records: give the sink's answers one of their own")
	}
	if p.Subscription != "" && p.Subscription == p.AckSubscription {
		k.at(at+".ack_subscription", "ack_subscription is the sink's subscription: give this gateway one of its own on ack_topic")
	}
	if k.has(at+".shards") && k.decoded && (p.Shards < 1 || p.Shards > maxShards) {
		k.at(at+".shards", "shards %d is out of range: choose between 1 and %d", p.Shards, maxShards)
	}
}

func (k *checker) retention() {
	r := k.c.Retention
	for _, name := range slices.Sorted(maps.Keys(r.Classes)) {
		d := r.Classes[name]
		at := "retention.classes." + name
		if !className.MatchString(name) {
			k.at(at, "retention class %q is no name: use 1 to 32 of a-z, 0-9 and -, the first a letter or digit", short(name))
		}
		k.span(at, d, 24*time.Hour, 36500*24*time.Hour)
	}
	if n := len(r.Classes); n > maxClasses {
		k.at("retention.classes", "retention.classes has %d classes: at most %d have room in a checkpoint", n, maxClasses)
	}
	if _, ok := r.Classes[r.Default]; !ok && k.decoded {
		k.at("retention.default", "retention.default %q is no class: add it to retention.classes, or use one of %s", short(r.Default), k.classes())
	}
}

func (k *checker) classes() string {
	var names []string
	for n := range k.c.Retention.Classes {
		names = append(names, n)
	}
	slices.Sort(names)
	return short(strings.Join(names, ", "))
}

func (k *checker) issuers() {
	if !k.required("issuers", "the OIDC issuers whose tokens callers bring") {
		return
	}
	names, urls := map[string]int{}, map[string]string{}
	for n, i := range k.c.Issuers {
		at := fmt.Sprintf("issuers[%d]", n)
		if k.required(at+".name", "a short name, which qualifies its groups") && i.Name != "" {
			k.name(at+".name", "issuer", i.Name, names, issuerName, "1 to 63 of a-z, 0-9, -, _ and ., the first a letter or digit")
			if i.Name == credential.Checker {
				k.at(at+".name", "issuer name %q is the gateway's own: choose another", i.Name)
			}
		}
		if k.required(at+".url", "the exact iss of its tokens") && i.URL != "" {
			spiffe := i.Profile == "spiffe" && i.JWKSURL != "" && i.URL == "spiffe://"+i.TrustDomain
			if why := credential.CheckURL(i.URL); why != "" && !spiffe {
				k.at(at+".url", "issuer url %s", clip(why, 300))
			} else {
				for other, first := range urls {
					if credential.SameIssuer(other, i.URL) {
						k.at(at+".url", "issuer url %q is that of %s already: give each issuer once, with all its audiences", short(i.URL), first)
						break
					}
				}
			}
			urls[i.URL] = fmt.Sprintf("issuer %q", short(i.Name))
		}
		k.required(at+".audiences", "the aud that its tokens for this gateway have")
		for m, a := range i.Algorithms {
			if a != "" && !slices.Contains(algorithms, a) {
				what := "is none that is known"
				if strings.HasPrefix(a, "HS") || strings.EqualFold(a, "none") {
					what = "is not asymmetric, so that tokens could be forged"
				}
				k.at(fmt.Sprintf("%s.algorithms[%d]", at, m), "algorithm %q %s: use some of %s", short(a), what, strings.Join(algorithms, ", "))
			}
		}
		if i.Profile != "" && !slices.Contains(profiles, i.Profile) {
			k.at(at+".profile", "profile %q does not exist: use one of %s", short(i.Profile), strings.Join(profiles, ", "))
		}
		if len(i.Claims) > 0 && i.Profile != "generic" {
			k.at(at+".claims", "claims go with profile generic only: profile %s has its own, remove them", short(i.Profile))
		} else {
			for _, field := range slices.Sorted(maps.Keys(i.Claims)) {
				if !slices.Contains(claimFields, field) {
					k.at(at+".claims."+field, "claims cannot fill %q: %s", short(field), suggest(nearest(field, claimFields), claimFields))
				}
			}
		}
		if i.JWKSURL != "" {
			if why := credential.CheckURL(i.JWKSURL); why != "" {
				k.at(at+".jwks_url", "jwks_url %s", clip(why, 300))
			}
		}
		switch {
		case i.Profile == "spiffe" && !k.has(at+".trust_domain"):
			k.at(at, "issuer %q has profile spiffe and no trust_domain: add it, such as prod.example.com", short(i.Name))
		case i.Profile != "spiffe" && k.has(at+".trust_domain"):
			k.at(at+".trust_domain", "trust_domain goes with profile spiffe only: remove it")
		case i.TrustDomain != "" && !trustDomain.MatchString(i.TrustDomain):
			k.at(at+".trust_domain", "trust_domain %q is none: write it without spiffe://, such as prod.example.com", short(i.TrustDomain))
		}
		k.span(at+".leeway", i.Leeway, time.Second, 5*time.Minute)
	}
}

// name checks the form of a name and that it is the first of its kind.
func (k *checker) name(at, what, name string, seen map[string]int, form *regexp.Regexp, rule string) {
	if !form.MatchString(name) {
		k.at(at, "%s name %q cannot be used: use %s", what, short(name), rule)
		return
	}
	if line, dup := seen[name]; dup {
		k.at(at, "%s %q is there twice (first in line %d): give each a name of its own", what, name, line)
		return
	}
	seen[name] = k.line(at)
}

func (k *checker) connections() {
	if !k.required("connections", "the BigQuery projects to reach; what no connection lists is denied") {
		return
	}
	names := map[string]int{}
	type use struct {
		connection string
		line       int
	}
	projects := map[string]use{}
	for n, c := range k.c.Connections {
		at := fmt.Sprintf("connections[%d]", n)
		if k.required(at+".name", "a short name") && c.Name != "" {
			k.name(at+".name", "connection", c.Name, names, gatewayName, "1 to 40 of a-z, 0-9 and -")
		}
		if k.required(at+".projects", "the ids of the projects to reach") {
			for m, p := range c.Projects {
				pat := fmt.Sprintf("%s.projects[%d]", at, m)
				if p == "" {
					continue
				}
				if !projectID.MatchString(p) {
					k.at(pat, "project %q is no project id: write the id (lower-case letters, digits, -), not the name or number", short(p))
				} else if first, dup := projects[p]; dup {
					k.at(pat, "project %q is in connection %q already (line %d): list each project once, or nobody knows whose credential is meant",
						p, short(first.connection), first.line)
				} else {
					projects[p] = use{c.Name, k.line(pat)}
				}
			}
		}
		if c.Location != "" && !location.MatchString(c.Location) {
			k.at(at+".location", "location %q is none: write one such as US, EU or europe-west1", short(c.Location))
		}
		if k.has(at+".upstream") && c.Upstream.REST != "" {
			if why := credential.CheckURL(c.Upstream.REST); why != "" {
				k.at(at+".upstream.rest", "upstream.rest %s", clip(why, 300))
			} else if strings.Count(strings.TrimSuffix(c.Upstream.REST, "/"), "/") != 2 {
				k.at(at+".upstream.rest", "upstream.rest %q has a path: give scheme and host only", short(c.Upstream.REST))
			}
		}
		if s := c.Upstream.Storage; k.has(at+".upstream") && s != "" && s != StorageNone {
			if why := credential.CheckURL(s); why != "" {
				k.at(at+".upstream.storage", "upstream.storage %s", clip(why, 300))
			} else if strings.Count(strings.TrimSuffix(s, "/"), "/") != 2 {
				k.at(at+".upstream.storage", "upstream.storage %q has a path: give scheme and host only", short(s))
			}
		}
		switch c.Recording {
		case RecordingFull, RecordingMetadata, "":
		case "off", "none", "false":
			k.at(at+".recording", "recording cannot be turned off: use %s, or %s to leave out response payloads", RecordingFull, RecordingMetadata)
		default:
			k.at(at+".recording", "recording %q does not exist: use %s or %s", short(c.Recording), RecordingFull, RecordingMetadata)
		}
		if c.Mode != ModeEnforce && c.Mode != ModeObserve && c.Mode != "" {
			k.at(at+".mode", "mode %q does not exist: use %s, or %s to let through what the policy denies and put it on record", short(c.Mode), ModeEnforce, ModeObserve)
		}
		if c.Retention != "" && k.decoded {
			if _, ok := k.c.Retention.Classes[c.Retention]; !ok {
				k.at(at+".retention", "retention class %q does not exist: add it to retention.classes, or use one of %s", short(c.Retention), k.classes())
			}
		}
		k.credential(at, c)
	}
}

func (k *checker) credential(at string, c Connection) {
	at += ".credential"
	if !k.required(at, "kind, one of "+strings.Join(credential.Kinds(), ", ")) || !k.decoded {
		return
	}
	for _, p := range c.Credential.Problems() {
		k.at(at+"."+p.Field, "credential.%s %s", p.Field, clip(p.Text, 500))
	}
	if c.Credential.Kind != credential.KindFederation {
		return
	}
	for _, i := range k.c.Issuers {
		if i.URL == "" {
			continue
		}
		if c.Credential.Issuer != "" && credential.SameIssuer(c.Credential.Issuer, i.URL) {
			k.at(at+".issuer", "the federation's issuer %q is the callers' issuer %q: the gateway has to be an issuer of its own, with a key that only it has",
				short(c.Credential.Issuer), i.Name)
		}
		for n, t := range c.Credential.Trusts {
			if credential.SameIssuer(t, i.URL) && !credential.SameIssuer(t, c.Credential.Issuer) {
				k.at(fmt.Sprintf("%s.trusts[%d]", at, n), "the identity pool trusts %q, the callers' issuer %q, so that a caller could exchange its own token and go round the gateway: remove that provider from the pool, or use a pool that trusts the gateway alone",
					short(t), i.Name)
			}
		}
	}
}

// MaxTokenLifetime is the longest life of a gateway token.
const MaxTokenLifetime = 12 * time.Hour

// tokens checks the gateway's own tokens. Nobody else may take them: not an
// issuer of callers of the same name, not a pool of Google's.
func (k *checker) tokens() {
	t := k.c.Tokens
	if t == nil {
		return
	}
	k.required("tokens.signing_key", "a file with an EC P-256 private key (openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out token-key.pem)")
	if !k.required("tokens.issuer", "the gateway's address as agents see it, such as https://bigquery.example.com") || t.Issuer == "" {
		return
	}
	if why := credential.CheckURL(t.Issuer); why != "" {
		k.at("tokens.issuer", "tokens.issuer %s", clip(why, 300))
	}
	for _, i := range k.c.Issuers {
		if i.URL != "" && credential.SameIssuer(i.URL, t.Issuer) {
			k.at("tokens.issuer", "tokens.issuer is the callers' issuer %q: the gateway has to be an issuer of its own", short(i.Name))
		}
	}
	for _, c := range k.c.Connections {
		f := c.Credential
		if f.Issuer != "" && credential.SameIssuer(f.Issuer, t.Issuer) || slices.ContainsFunc(f.Trusts, func(u string) bool { return credential.SameIssuer(u, t.Issuer) }) {
			k.at("tokens.issuer", "tokens.issuer is an issuer that the identity pool of connection %q trusts, so that a caller could exchange its gateway token at Google: give the federation an issuer of its own, such as %s/oidc", short(c.Name), clip(strings.TrimSuffix(t.Issuer, "/"), 200))
		}
		if f.SigningKey != "" && (f.SigningKey == t.SigningKey || slices.Contains(t.AcceptedKeys, f.SigningKey)) {
			k.at("tokens.signing_key", "tokens have the signing key of connection %q's federation: give them a key of their own", short(c.Name))
		}
	}
	if k.has("tokens.lifetime") {
		k.span("tokens.lifetime", t.Lifetime, time.Minute, MaxTokenLifetime)
	}
}

func (k *checker) policy() {
	dir, bundle, key := k.has("policy.dir"), k.has("policy.bundle"), k.has("policy.public_key")
	switch {
	case dir && bundle:
		k.at("policy.bundle", "policy has both dir and bundle: keep one")
	case bundle && !key:
		k.at("policy.bundle", "policy.bundle has no public_key: add the file with the key that the bundle is signed with")
	case key && !bundle:
		k.at("policy.public_key", "policy.public_key goes with bundle only: remove it, or name a bundle")
	}
	k.span("policy.timeout", k.c.Policy.Timeout, time.Millisecond, 10*time.Second)
}

// observe checks that each entry says who, of an issuer that there is.
func (k *checker) observe() {
	for n, o := range k.c.Observe {
		at := fmt.Sprintf("observe[%d]", n)
		if k.required(at+".issuer", "the name of the issuer that the callers are of") && o.Issuer != "" &&
			!slices.ContainsFunc(k.c.Issuers, func(i Issuer) bool { return i.Name == o.Issuer }) {
			k.at(at+".issuer", "issuer %q is none of issuers: use the name of one", short(o.Issuer))
		}
		if k.decoded && o.Subject == "" && o.Group == "" && o.Repository == "" && o.Namespace == "" && o.ServiceAccount == "" {
			k.at(at, "this observes every caller of the issuer: add subject, group, repository, namespace or service_account, or set the connection's mode")
		}
		if o.Group != "" && strings.HasPrefix(o.Group, o.Issuer+"/") {
			k.at(at+".group", "group %q begins with the issuer: write it without, the issuer stands beside it", short(o.Group))
		}
	}
}

func (k *checker) budgets() {
	if s := k.c.Budgets.Share; k.has("budgets.share") && k.decoded && (s <= 0 || s > 1) {
		k.at("budgets.share", "budgets.share %v is out of range: choose a part above 0 and at most 1; the shares of all replicas add up to 1", s)
	}
}

// maxSocket is the longest path that a UNIX socket can have (unix(7)).
const maxSocket = 107

func (k *checker) files() {
	for _, p := range k.paths {
		name := p.at[strings.LastIndexByte(p.at, '.')+1:]
		if p.kind == "socket" {
			if len(p.path) > maxSocket {
				k.at(p.at, "%s is a path of %d bytes: a socket's has %d at most, choose a shorter one", name, len(p.path), maxSocket)
			}
			continue
		}
		st, err := os.Stat(p.path)
		switch {
		case (p.kind == "dir" || p.kind == "new") && errors.Is(err, fs.ErrNotExist): // it will be made
		case err != nil:
			k.at(p.at, "%s %s cannot be read (%s): create it, or correct the path", name, clip(p.path, 300), reason(err))
		case strings.HasPrefix(p.kind, "dir") && !st.IsDir():
			k.at(p.at, "%s %s is not a folder: correct the path", name, clip(p.path, 300))
		case (p.kind == "file" || p.kind == "new") && !st.Mode().IsRegular():
			k.at(p.at, "%s %s is not a file: correct the path", name, clip(p.path, 300))
		case p.kind == "file":
			f, err := os.Open(p.path)
			if err != nil {
				k.at(p.at, "%s %s cannot be read (%s): give this user the right to", name, clip(p.path, 300), reason(err))
				continue
			}
			_ = f.Close()
			if p.at == "session_key" {
				if _, err := readSecret(p.path); err != nil {
					k.at(p.at, "session_key: %v", err)
				}
			}
		}
	}
}
