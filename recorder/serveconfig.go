package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/transport/pubsub"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/place"
)

// serveConfig is the file of recorder serve; serve.example.yaml explains it.
type serveConfig struct {
	Name          string    `yaml:"name"`
	Listen        string    `yaml:"listen"`
	TLS           *serveTLS `yaml:"tls"`
	Vault         string    `yaml:"vault"`
	Keyset        string    `yaml:"keyset"`
	DeploymentKey string    `yaml:"deployment_key"`
	Journal       struct {
		Dir         string `yaml:"dir"`
		Limit       string `yaml:"limit"`
		CutInterval string `yaml:"cut_interval"`
	} `yaml:"journal"`
	Sink       string       `yaml:"sink"`
	PubSub     *servePubSub `yaml:"pubsub"`
	Durability string       `yaml:"durability"`
	Retention  struct {
		Class string `yaml:"class"`
		Keep  string `yaml:"keep"`
	} `yaml:"retention"`
	Issuers     []serveIssuer        `yaml:"issuers"`
	Revocations string               `yaml:"revocations"`
	Roles       map[string]serveRole `yaml:"roles"`
	Limits      struct {
		Requests int    `yaml:"requests"`
		Memory   string `yaml:"memory"`
	} `yaml:"limits"`

	limit, memory int64
	cut, keep     time.Duration
}

// servePubSub says how records reach the sink over Pub/Sub, with the keys that
// the gateway's configuration has.
type servePubSub struct {
	Project         string `yaml:"project"`
	Topic           string `yaml:"topic"`
	Subscription    string `yaml:"subscription"`
	AckTopic        string `yaml:"ack_topic"`
	AckSubscription string `yaml:"ack_subscription"`
	Shards          int    `yaml:"shards"`
}

// The durabilities, as the gateway's configuration has them.
const (
	durabilityLocal     = "local"
	durabilityPublished = "published"
)

// serveTLS are the PEM files of the service's certificate.
type serveTLS struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

// serveIssuer is an issuer with the keys that the gateway's configuration has.
type serveIssuer struct {
	Name        string            `yaml:"name"`
	URL         string            `yaml:"url"`
	Audiences   []string          `yaml:"audiences"`
	Algorithms  []string          `yaml:"algorithms"`
	GroupsClaim string            `yaml:"groups_claim"`
	Profile     string            `yaml:"profile"`
	Claims      map[string]string `yaml:"claims"`
	JWKSURL     string            `yaml:"jwks_url"`
	CA          string            `yaml:"ca"`
	TrustDomain string            `yaml:"trust_domain"`
	Leeway      string            `yaml:"leeway"`
}

// serveRole says who has a role.
type serveRole struct {
	Groups   []string `yaml:"groups"`   // ISSUER/GROUP
	Subjects []string `yaml:"subjects"` // ISSUER/SUBJECT
}

var serviceName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// readServeConfig reads the file, fills in defaults and checks it. Paths that
// are not absolute start at the file's folder.
func readServeConfig(path string) (*serveConfig, error) {
	b, err := readSmall(path, 128<<10)
	if err != nil {
		return nil, err
	}
	c := &serveConfig{}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(c); err != nil {
		return nil, fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, false))
	}
	dir := filepath.Dir(path)
	for _, p := range []*string{&c.Keyset, &c.DeploymentKey, &c.Journal.Dir, &c.Sink, &c.Revocations} {
		*p = below(dir, *p)
	}
	if !strings.ContainsAny(c.Vault, "=:") {
		c.Vault = below(dir, c.Vault)
	}
	if c.TLS != nil {
		c.TLS.Certificate, c.TLS.Key = below(dir, c.TLS.Certificate), below(dir, c.TLS.Key)
	}
	for i := range c.Issuers {
		c.Issuers[i].CA = below(dir, c.Issuers[i].CA)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func below(dir, p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

func (c *serveConfig) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !serviceName.MatchString(c.Name) {
		bad("name %q: want 1 to 63 of a-z, 0-9 and -, such as auditors-1: it stands in every record", c.Name)
	}
	host, _, err := net.SplitHostPort(c.Listen)
	switch ip := net.ParseIP(host); {
	case err != nil:
		bad("listen %q: want ADDRESS:PORT, such as 127.0.0.1:8470", c.Listen)
	case c.TLS == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()):
		bad("listen %q is no loopback address: tokens and evidence would go in the clear, so give tls.certificate and tls.key", c.Listen)
	}
	if c.TLS != nil && (c.TLS.Certificate == "" || c.TLS.Key == "") {
		bad("tls: certificate and key are both needed")
	}
	for name, v := range map[string]string{
		"vault": c.Vault, "keyset (the tenant's private one, tenant.json)": c.Keyset, "journal.dir": c.Journal.Dir,
		"retention.class": c.Retention.Class, "retention.keep": c.Retention.Keep,
	} {
		if v == "" {
			bad("%s is missing", name)
		}
	}
	for _, v := range []struct {
		name, text, otherwise string
		to                    *int64
		least                 int64
	}{{"journal.limit", c.Journal.Limit, "256MiB", &c.limit, 64 << 10}, {"limits.memory", c.Limits.Memory, "64MiB", &c.memory, 1 << 20}} {
		if *v.to, err = parseBytes(v.text, v.otherwise); err != nil || *v.to < v.least {
			bad("%s %q: want bytes with a unit, KiB, MiB or GiB, and at least %s", v.name, v.text, size(v.least))
		}
	}
	c.cut = 5 * time.Second
	if text := c.Journal.CutInterval; text != "" {
		if c.cut, err = time.ParseDuration(text); err != nil || c.cut <= 0 {
			bad("journal.cut_interval %q: want a duration such as 5s", text)
		} else if c.cut > sinklog.CutShare {
			bad("journal.cut_interval %q: its share of the time to a cosignature is %s at most", text, sinklog.CutShare)
		}
	}
	if class := c.Retention.Class; class != "" {
		if err := vault.CheckClass(class); err != nil {
			bad("retention.class: %w", err)
		}
	}
	if text := c.Retention.Keep; text != "" {
		if c.keep, err = place.ParseRetention(text); err != nil {
			bad("retention.keep: %w", err)
		}
	}
	if c.Limits.Requests < 0 || c.Limits.Requests > 1000 {
		bad("limits.requests %d: want 1 to 1000", c.Limits.Requests)
	}
	errs = append(errs, c.checkTransport(), c.checkRoles())
	return errors.Join(errs...)
}

func (c *serveConfig) checkTransport() error {
	p := c.PubSub
	switch {
	case c.Sink == "" && p == nil:
		return errors.New("sink (the socket of recorder sink) is missing; or give pubsub")
	case c.Sink != "" && p != nil:
		return errors.New("sink and pubsub exclude each other: keep one")
	case c.Durability != "" && c.Durability != durabilityLocal && c.Durability != durabilityPublished:
		return fmt.Errorf("durability %q: want %s or %s", c.Durability, durabilityLocal, durabilityPublished)
	case c.Durability == durabilityPublished && p == nil:
		return errors.New("durability published goes with pubsub only")
	case p == nil:
		return nil
	}
	if p.Shards == 0 {
		p.Shards = 1
	}
	var errs []error
	if p.Project == "" {
		errs = append(errs, errors.New("pubsub.project is missing"))
	}
	for _, v := range []struct{ name, kind, id string }{
		{"topic", "topics", p.Topic}, {"subscription", "subscriptions", p.Subscription}, {"ack_topic", "topics", p.AckTopic}, {"ack_subscription", "subscriptions", p.AckSubscription},
	} {
		if _, _, err := pubsub.ParseName("projects/"+p.Project+"/"+v.kind+"/"+v.id, v.kind); p.Project != "" && err != nil {
			errs = append(errs, fmt.Errorf("pubsub.%s %q: want an id, without projects/ before it", v.name, v.id))
		}
	}
	if p.Topic == p.AckTopic || p.Subscription == p.AckSubscription {
		errs = append(errs, errors.New("pubsub: records and answers need topics and subscriptions of their own"))
	}
	if p.Shards < 1 || p.Shards > 1024 {
		errs = append(errs, fmt.Errorf("pubsub.shards %d: want 1 to 1024", p.Shards))
	}
	return errors.Join(errs...)
}

// fixed is the configuration without what is read again while the service runs.
func (c *serveConfig) fixed() serveConfig {
	f := *c
	f.Issuers, f.Roles, f.Revocations = nil, nil, ""
	return f
}

// files are those that say who may read.
func (c *serveConfig) files(path string) []string {
	out := []string{path}
	for _, i := range c.Issuers {
		if i.CA != "" {
			out = append(out, i.CA)
		}
	}
	return out
}

func (c *serveConfig) checkRoles() error {
	var errs []error
	issuers := map[string]serveIssuer{}
	for _, i := range c.Issuers {
		issuers[i.Name] = i
	}
	members := 0
	for name, r := range c.Roles {
		if name != string(access.Auditor) && name != string(access.Viewer) {
			errs = append(errs, fmt.Errorf("roles.%s: want auditor or viewer", name))
		}
		for _, list := range [][]string{r.Groups, r.Subjects} {
			for _, m := range list {
				members++
				issuer, rest, ok := strings.Cut(m, "/")
				if _, known := issuers[issuer]; !ok || rest == "" || !known {
					errs = append(errs, fmt.Errorf("roles.%s: %q: want ISSUER/NAME, with the name of an issuer in issuers", name, m))
				}
			}
		}
		for _, g := range r.Groups {
			issuer, _, _ := strings.Cut(g, "/")
			if i, known := issuers[issuer]; known && i.GroupsClaim == "" && i.Profile != auth.ProfileGoogle {
				errs = append(errs, fmt.Errorf("roles.%s: %q: issuer %s has no groups_claim, so nobody of it has groups", name, g, issuer))
			}
		}
	}
	if members == 0 {
		errs = append(errs, errors.New("roles: nobody has one: give auditor or viewer groups or subjects"))
	}
	return errors.Join(errs...)
}

// parseBytes reads a size, or the one that holds otherwise.
func parseBytes(text, otherwise string) (int64, error) {
	if text == "" {
		text = otherwise
	}
	for unit, n := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if digits, ok := strings.CutSuffix(text, unit); ok {
			v, err := strconv.ParseInt(digits, 10, 32)
			return v * n, err
		}
	}
	return 0, errors.New("no unit")
}

// issuers are those of the file for the verifier.
func (c *serveConfig) issuers() ([]auth.IssuerConfig, error) {
	var out []auth.IssuerConfig
	for _, i := range c.Issuers {
		a := auth.IssuerConfig{
			Name: i.Name, URL: i.URL, Audiences: i.Audiences, Algorithms: i.Algorithms, GroupsClaim: i.GroupsClaim, Profile: i.Profile,
			Claims: i.Claims, JWKSURL: i.JWKSURL, CAFile: i.CA, TrustDomain: i.TrustDomain,
		}
		if i.Leeway != "" {
			var err error
			if a.Leeway, err = time.ParseDuration(i.Leeway); err != nil {
				return nil, fmt.Errorf("issuer %q: leeway %q: want a duration such as 30s", i.Name, i.Leeway)
			}
		}
		out = append(out, a)
	}
	return out, nil
}

// role is the highest that somebody has.
func (c *serveConfig) role(id *auth.Identity) access.Role {
	for _, name := range []access.Role{access.Auditor, access.Viewer} {
		r := c.Roles[string(name)]
		if slices.Contains(r.Subjects, id.Principal.Issuer+"/"+id.Principal.Subject) {
			return name
		}
		for _, g := range id.Principal.Groups {
			if slices.Contains(r.Groups, g) {
				return name
			}
		}
	}
	return ""
}
