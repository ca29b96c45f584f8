package credential

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The kinds of source.
const (
	KindServiceAccountKey = "service_account_key"
	KindADC               = "adc"
	KindMetadata          = "metadata"
	KindImpersonation     = "impersonation"
	KindFederation        = "federation"
	KindTokenFile         = "token_file"
)

// Kinds lists the kinds of source, in the order of the documentation.
func Kinds() []string {
	return []string{KindServiceAccountKey, KindADC, KindMetadata, KindImpersonation, KindFederation, KindTokenFile}
}

// Config describes one source. Which fields a kind uses is said at each; a field
// of another kind is an error. The yaml tags are the keys of the configuration
// file, the path tag marks files that are relative to it.
type Config struct {
	Kind string `yaml:"kind"`

	// File is the key file (service_account_key) or the file that holds the token
	// (token_file). Both are read again when needed, so they can be rotated.
	File string `yaml:"file" path:"file"`

	// Account is the service account to ask the metadata server for (metadata):
	// an email, or "default".
	Account string `yaml:"account"`

	// Source obtains the token that impersonates (impersonation):
	// service_account_key, adc, metadata or token_file.
	Source *Config `yaml:"source"`
	// Target is the email of the service account to act as (impersonation; in
	// federation optional).
	Target string `yaml:"target"`
	// Delegates are emails of the service accounts between, in order
	// (https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken).
	Delegates []string `yaml:"delegates"`
	// Lifetime of an impersonated token; 1h unless set, 12h at most.
	Lifetime time.Duration `yaml:"lifetime"`
	// IAMEndpoint is the base URL of the IAM Credentials API.
	IAMEndpoint string `yaml:"iam_endpoint"`

	// Issuer is the URL of the gateway itself as the OIDC issuer of a workload
	// identity pool's provider (federation).
	Issuer string `yaml:"issuer"`
	// SigningKey is a PEM file with the issuer's private key: RSA of 2048 bits or
	// more, or EC P-256.
	SigningKey string `yaml:"signing_key" path:"file"`
	// PublishedKeys are PEM files of further keys to publish in the JWKS: the one
	// that comes next, the one that was replaced.
	PublishedKeys []string `yaml:"published_keys" path:"file"`
	// Audience is the provider's full resource name,
	// //iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/POOL/providers/PROVIDER.
	Audience string `yaml:"audience"`
	// AssertionAudience is the aud of the assertion; unless set "https:" + Audience,
	// which a provider accepts when it lists no audiences of its own.
	AssertionAudience string `yaml:"assertion_audience"`
	// AssertionLifetime is how long an assertion can be exchanged: 5m unless set, 1h at most.
	AssertionLifetime time.Duration `yaml:"assertion_lifetime"`
	// STSEndpoint is the token exchange endpoint.
	STSEndpoint string `yaml:"sts_endpoint"`
	// Trusts lists the issuer URLs that the pool's providers accept. It is there
	// to be checked: a pool that also trusts the callers' issuers takes the
	// callers' own tokens, and they can go round the gateway.
	Trusts []string `yaml:"trusts"`
	// CacheEntries is for how many callers tokens are kept; 1024 unless set.
	CacheEntries int `yaml:"cache_entries"`

	// Scopes of the tokens; Scope unless set.
	Scopes []string `yaml:"scopes"`
	// Timeout is the longest that one fetch may take; 10s unless set.
	Timeout time.Duration `yaml:"timeout"`
}

const (
	defaultIAMEndpoint = "https://iamcredentials.googleapis.com"
	defaultSTSEndpoint = "https://sts.googleapis.com/v1/token"
)

func (c Config) withDefaults() Config {
	text := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	span := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	if len(c.Scopes) == 0 {
		c.Scopes = []string{Scope}
	}
	span(&c.Timeout, 10*time.Second)
	text(&c.Account, "default")
	span(&c.Lifetime, time.Hour)
	text(&c.IAMEndpoint, defaultIAMEndpoint)
	text(&c.AssertionAudience, "https:"+c.Audience)
	span(&c.AssertionLifetime, 5*time.Minute)
	text(&c.STSEndpoint, defaultSTSEndpoint)
	if c.CacheEntries == 0 {
		c.CacheEntries = 1024
	}
	return c
}

// Problem is one thing wrong with a Config.
type Problem struct {
	// Field is the key it is about, as in the configuration file ("source.file").
	Field string
	// Text says what is wrong and what to do.
	Text string
}

func (p Problem) Error() string { return p.Field + ": " + p.Text }

// kindFields says which keys each kind takes besides kind, scopes and timeout.
// A key that ends in "!" has to be there.
var kindFields = map[string][]string{
	KindServiceAccountKey: {"file!"},
	KindADC:               {},
	KindMetadata:          {"account"},
	KindImpersonation:     {"source!", "target!", "delegates", "lifetime", "iam_endpoint"},
	KindFederation: {"issuer!", "signing_key!", "published_keys", "audience!", "assertion_audience", "assertion_lifetime",
		"sts_endpoint", "trusts!", "cache_entries", "target", "delegates", "lifetime", "iam_endpoint"},
	KindTokenFile: {"file!"},
}

func (c Config) present() map[string]bool {
	return map[string]bool{
		"file": c.File != "", "account": c.Account != "", "source": c.Source != nil, "target": c.Target != "",
		"delegates": len(c.Delegates) > 0, "lifetime": c.Lifetime != 0, "iam_endpoint": c.IAMEndpoint != "",
		"issuer": c.Issuer != "", "signing_key": c.SigningKey != "", "published_keys": len(c.PublishedKeys) > 0,
		"audience": c.Audience != "", "assertion_audience": c.AssertionAudience != "",
		"assertion_lifetime": c.AssertionLifetime != 0, "sts_endpoint": c.STSEndpoint != "",
		"trusts": len(c.Trusts) > 0, "cache_entries": c.CacheEntries != 0,
	}
}

var (
	email    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9]$`)
	provider = regexp.MustCompile(`^//iam\.googleapis\.com/projects/[0-9]+/locations/global/workloadIdentityPools/[a-z0-9-]+/providers/[a-z0-9-]+$`)
)

// Problems lists what is wrong with c, without a look at files or the network.
func (c Config) Problems() []Problem {
	var ps []Problem
	add := func(field, format string, args ...any) {
		ps = append(ps, Problem{field, fmt.Sprintf(format, args...)})
	}
	fields, known := kindFields[c.Kind]
	if c.Kind == "" {
		add("kind", "is missing: set it to one of %s", strings.Join(Kinds(), ", "))
		return ps
	}
	if !known {
		add("kind", "%q is no kind of credential: use one of %s", c.Kind, strings.Join(Kinds(), ", "))
		return ps
	}

	present := c.present()
	names := make([]string, 0, len(present))
	for name := range present {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		required := slices.Contains(fields, name+"!")
		switch {
		case present[name] && !required && !slices.Contains(fields, name):
			add(name, "is not used by kind %s: remove it, or choose the kind that it belongs to", c.Kind)
		case !present[name] && required:
			add(name, "is missing: kind %s needs it%s", c.Kind, missingHint[name])
		}
	}

	if c.Account != "" && c.Account != "default" && !email.MatchString(c.Account) {
		add("account", "%q is no service account: give its email address, or \"default\"", c.Account)
	}
	if c.Target != "" && !email.MatchString(c.Target) {
		add("target", "%q is no service account: give its email address", c.Target)
	}
	for _, d := range c.Delegates {
		if !email.MatchString(d) {
			add("delegates", "%q is no service account: give its email address", d)
		}
	}
	if len(c.Delegates) > 0 && c.Target == "" && c.Kind == KindFederation {
		add("delegates", "leads to no target: set target, or remove delegates")
	}
	if c.Lifetime != 0 && (c.Lifetime < 5*time.Minute || c.Lifetime > 12*time.Hour) {
		add("lifetime", "%s is out of range: choose between 5m and 12h (over 1h the organisation's policy must allow it)", c.Lifetime)
	}
	if c.AssertionLifetime != 0 && (c.AssertionLifetime < time.Minute || c.AssertionLifetime > time.Hour) {
		add("assertion_lifetime", "%s is out of range: choose between 1m and 1h", c.AssertionLifetime)
	}
	if c.Timeout != 0 && (c.Timeout < 100*time.Millisecond || c.Timeout > time.Minute) {
		add("timeout", "%s is out of range: choose between 100ms and 1m", c.Timeout)
	}
	if c.CacheEntries != 0 && (c.CacheEntries < 1 || c.CacheEntries > 100_000) {
		add("cache_entries", "%d is out of range: choose between 1 and 100000", c.CacheEntries)
	}
	for _, s := range c.Scopes {
		if u, err := url.Parse(s); err != nil || u.Scheme != "https" || u.Host == "" || strings.ContainsAny(s, " ,") {
			add("scopes", "%q is no scope: give a URL such as %s", s, Scope)
		}
	}
	for _, f := range [...]struct{ name, url string }{
		{"iam_endpoint", c.IAMEndpoint}, {"sts_endpoint", c.STSEndpoint}, {"issuer", c.Issuer},
	} {
		if f.url == "" {
			continue
		}
		if why := CheckURL(f.url); why != "" {
			add(f.name, "%s", why)
		}
	}
	if c.Audience != "" && !provider.MatchString(c.Audience) {
		add("audience", "%q is no provider: give the full resource name, //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER", c.Audience)
	}
	if c.Kind == KindFederation && c.Issuer != "" && len(c.Trusts) > 0 &&
		!slices.ContainsFunc(c.Trusts, func(t string) bool { return SameIssuer(t, c.Issuer) }) {
		add("trusts", "does not list the gateway's own issuer %s: the pool's provider has to trust it", c.Issuer)
	}
	if c.Source != nil {
		switch c.Source.Kind {
		case KindImpersonation:
			add("source.kind", "an impersonation cannot be the source of another: name the accounts between in delegates")
		case KindFederation:
			add("source.kind", "federation cannot be the source of an impersonation: use kind federation with target")
		default:
			for _, p := range c.Source.Problems() {
				add("source."+p.Field, "%s", p.Text)
			}
		}
	}
	return ps
}

var missingHint = map[string]string{
	"source": ", a credential that may impersonate the target",
	"target": ", the email of the service account to act as",
	"trusts": ", the list of all issuer URLs that the pool's providers accept",
}

// CheckURL says why u cannot be the URL of an issuer or endpoint ("" when it
// can): it has to be https, or http to a loopback host, with no user, query or
// fragment.
func CheckURL(u string) string {
	p, err := url.Parse(u)
	if err != nil || p.Host == "" || p.Hostname() == "" || p.Opaque != "" {
		return fmt.Sprintf("%q is no URL: write https://host/path", redactURL(u))
	}
	switch {
	case p.User != nil:
		return "has a user name or password in it: remove them"
	case p.RawQuery != "" || p.ForceQuery || strings.Contains(u, "#"):
		return fmt.Sprintf("%q has a query or fragment: remove it", p.Scheme+"://"+p.Host+p.Path)
	case p.Scheme == "https":
		return ""
	case p.Scheme == "http" && Loopback(p.Hostname()):
		return ""
	case p.Scheme == "http":
		return fmt.Sprintf("%q is not https: use https (http is for loopback hosts only)", u)
	}
	return fmt.Sprintf("%q is not https: write https://host/path", u)
}

// redactURL keeps what precedes an @ out of an error.
func redactURL(u string) string {
	if i := strings.LastIndex(u, "@"); i >= 0 {
		return "..." + u[i:]
	}
	return u
}

// Loopback reports whether host (no port) is this machine: localhost or a
// loopback address.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// SameIssuer reports whether two issuer URLs would be taken for the same: letter
// case of scheme and host, the default port and a closing slash make no
// difference.
func SameIssuer(a, b string) bool { return normalIssuer(a) == normalIssuer(b) }

func normalIssuer(s string) string {
	s = strings.TrimSpace(s)
	if !strings.Contains(s, "://") { // Google's tokens have known an iss without a scheme
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return s
	}
	host, port := strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), u.Port()
	if (u.Scheme == "https" && port == "443") || (u.Scheme == "http" && port == "80") {
		port = ""
	}
	if port != "" {
		host = net.JoinHostPort(host, port)
	}
	return strings.ToLower(u.Scheme) + "://" + host + strings.TrimRight(u.EscapedPath(), "/")
}
