// Package config reads the gateway's configuration file.
//
// The rule of this folder: a configuration that is not understood to the last
// key is not used, and whoever wrote it learns all that is wrong with it at
// once, each as "file:line: what, and what to do".
package config

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"verbatim.dev/extproc/credential"
)

// Config is the whole file. Paths are absolute or relative to the working
// directory: Load has resolved those that were relative to the file. Durations
// are time.Duration, written "30s" or "400d" (a day is 24 hours).
type Config struct {
	// Path is the file that it was read from.
	Path string `yaml:"-"`

	Gateway     string       `yaml:"gateway"`
	Listen      Listen       `yaml:"listen"`
	Limits      Limits       `yaml:"limits"`
	Journal     Journal      `yaml:"journal"`
	Sealing     Sealing      `yaml:"sealing"`
	SessionKey  string       `yaml:"session_key" path:"file"`
	Transport   Transport    `yaml:"transport"`
	Retention   Retention    `yaml:"retention"`
	Issuers     []Issuer     `yaml:"issuers"`
	Tokens      *Tokens      `yaml:"tokens"`                  // nil: the gateway gives out none
	Revocations string       `yaml:"revocations" path:"file"` // empty: none
	Connections []Connection `yaml:"connections"`
	Policy      Policy       `yaml:"policy"`
	Observe     []Observe    `yaml:"observe"` // callers whom the policy only looks at
	Budgets     Budgets      `yaml:"budgets"`
	Metrics     Metrics      `yaml:"metrics"`
}

// Listen says where Envoy reaches the processor: a UNIX socket or an address.
type Listen struct {
	Socket  string `yaml:"socket" path:"socket"`
	Address string `yaml:"address"`
	TLS     *TLS   `yaml:"tls"` // nil: none, on loopback addresses only
}

// Network returns what net.Listen wants.
func (l Listen) Network() (network, address string) {
	if l.Socket != "" {
		return "unix", l.Socket
	}
	return "tcp", l.Address
}

// TLS is mutual: the client proves itself by a certificate of ClientCA that has
// one of ClientNames as a DNS name, or URI.
type TLS struct {
	Certificate string   `yaml:"certificate" path:"file"`
	Key         string   `yaml:"key" path:"file"`
	ClientCA    string   `yaml:"client_ca" path:"file"`
	ClientNames []string `yaml:"client_names"`
}

// Limits bound what the processor takes on.
type Limits struct {
	Exchanges   int           `yaml:"exchanges"`    // admitted at once
	Window      Size          `yaml:"window"`       // gRPC flow-control window of a stream
	Share       Size          `yaml:"share"`        // sure to each exchange
	Budget      Size          `yaml:"budget"`       // shared by the exchanges above their share
	RequestBody Size          `yaml:"request_body"` // of a JSON request, inflated
	Decision    time.Duration `yaml:"decision"`     // authentication, policy and credential
	Journal     time.Duration `yaml:"journal"`      // the longest wait for durability
	Idle        time.Duration `yaml:"idle"`         // the longest silence within an exchange
	Drain       time.Duration `yaml:"drain"`        // of a graceful stop
	Analysis    time.Duration `yaml:"analysis"`     // of reading one SQL text
	// DryRunCache is how long BigQuery's answer to a dry run is good for; 0 asks
	// each time.
	DryRunCache time.Duration `yaml:"dry_run_cache"`
}

// Budgets says how the use is counted that a policy's budgets are held against.
type Budgets struct {
	File  string  `yaml:"file" path:"new"` // empty: beside journal.dir, see UsageFile
	Share float64 `yaml:"share"`           // the part of each budget that this replica gives out
}

// UsageFile is where use is counted.
func (c *Config) UsageFile() string {
	if c.Budgets.File != "" {
		return c.Budgets.File
	}
	return filepath.Clean(c.Journal.Dir) + ".usage"
}

// Observe names callers: every field that is there has to match.
type Observe struct {
	Issuer         string `yaml:"issuer"`
	Subject        string `yaml:"subject"`
	Group          string `yaml:"group"` // without its issuer
	Repository     string `yaml:"repository"`
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"service_account"`
}

// Modes of a connection.
const (
	ModeEnforce = "enforce" // what the policy denies is denied
	ModeObserve = "observe" // what the policy denies goes through and is on record as such
)

// BaseMemory is what the process takes with no exchange: the program, policy,
// keys and caches.
const BaseMemory Size = 128 << 20

// LeastShare is the smallest share with which an exchange can go on alone: one
// message of Envoy's, the same bytes once more in records that are not durable
// yet, and what gRPC holds for a reader that does not drain it.
const LeastShare Size = 640 << 10

// HeldBody is how often a request body counts that is held to decide on it: as
// it came, as it goes on, and both in records.
const HeldBody = 4

// Memory is the most that the process holds by design:
//
//	exchanges x (window + share) + budget + base
//
// Each admitted exchange can have a full flow-control window that gRPC has taken
// in and nobody has read, and holds its share; beyond the shares all of them
// together hold the budget; base is BaseMemory. The garbage collector keeps to
// it: serve sets it as the limit, unless GOMEMLIMIT is set.
func (l Limits) Memory() Size {
	each := l.Window + l.Share
	rest := l.Budget + BaseMemory
	if each > 0 && Size(l.Exchanges) > (math.MaxInt64-rest)/each {
		return math.MaxInt64
	}
	return Size(l.Exchanges)*each + rest
}

// Journal is the gateway's write-ahead log.
type Journal struct {
	Dir         string        `yaml:"dir" path:"dir"` // made when it is not there
	Limit       Size          `yaml:"limit"`
	Reserve     Size          `yaml:"reserve"` // beside Limit, for outcomes and the gateway's own records
	Segment     Size          `yaml:"segment"`
	CutBytes    Size          `yaml:"cut_bytes"`
	CutInterval time.Duration `yaml:"cut_interval"`
	Heartbeat   time.Duration `yaml:"heartbeat"`
	// Behind is how long a record may wait for the witnesses' cosignature, as the
	// sink has it (recorder sink --behind). Of it CutInterval must leave
	// SinkShare.
	Behind time.Duration `yaml:"behind"`
}

// SinkShare is what of Behind is not the gateway's: 5 s for the way into the
// vault, 30 s until the sink's log is committed, 10 s for the witnesses.
const SinkShare = 45 * time.Second

// Sealing names whom records are sealed to.
type Sealing struct {
	Tenant string `yaml:"tenant" path:"file"` // the tenant's public keyset
	// Key is the deployment's signing key, as "recorder key new" wrote it. It
	// certifies each epoch's own key. Empty: epochs are nobody's.
	Key string `yaml:"key" path:"file"`
}

// Durabilities of a record that the gate waits for.
const (
	// DurabilityLocal is an fsync of the journal: it survives a crash of process
	// or machine, not loss of the disk.
	DurabilityLocal = "local"
	// DurabilityPublished waits for Pub/Sub's acknowledgement as well, and
	// survives both.
	DurabilityPublished = "published"
)

// Transport says how records get to the sink: by exactly one way.
type Transport struct {
	Local      string  `yaml:"local" path:"socket"` // UNIX socket of the sink
	PubSub     *PubSub `yaml:"pubsub"`
	Durability string  `yaml:"durability"`
}

// PubSub names what was made for the records in Google Cloud Pub/Sub. Names are
// ids within Project.
type PubSub struct {
	Project         string `yaml:"project"`
	Topic           string `yaml:"topic"`
	Subscription    string `yaml:"subscription"` // the sink's; with more shards than one SUBSCRIPTION-0, -1, ...
	AckTopic        string `yaml:"ack_topic"`
	AckSubscription string `yaml:"ack_subscription"` // this gateway's own
	Shards          int    `yaml:"shards"`
}

// Retention has the classes that records rest in.
type Retention struct {
	Default string                   `yaml:"default"`
	Classes map[string]time.Duration `yaml:"classes"`
}

// Issuer is an OIDC issuer whose tokens callers bring.
type Issuer struct {
	Name        string            `yaml:"name"`
	URL         string            `yaml:"url"`
	Audiences   []string          `yaml:"audiences"`
	Algorithms  []string          `yaml:"algorithms"`
	GroupsClaim string            `yaml:"groups_claim"`
	Profile     string            `yaml:"profile"`
	Claims      map[string]string `yaml:"claims"` // field of record.Provenance -> claim
	JWKSURL     string            `yaml:"jwks_url"`
	CA          string            `yaml:"ca" path:"file"`
	TrustDomain string            `yaml:"trust_domain"`
	Leeway      time.Duration     `yaml:"leeway"`
}

// Tokens are the gateway's own, which its token endpoint gives out for the
// issuers' (RFC 8693).
type Tokens struct {
	Issuer       string        `yaml:"issuer"` // the gateway's address as agents see it
	SigningKey   string        `yaml:"signing_key" path:"file"`
	AcceptedKeys []string      `yaml:"accepted_keys" path:"file"`
	Lifetime     time.Duration `yaml:"lifetime"` // zero: auth.DefaultTokenLifetime
}

// Recordings of a connection. There is no way to record nothing.
const (
	RecordingFull     = "full"
	RecordingMetadata = "metadata"
)

// Connection is a BigQuery to reach.
type Connection struct {
	Name       string            `yaml:"name"`
	Projects   []string          `yaml:"projects"`
	Location   string            `yaml:"location"`
	Upstream   Upstream          `yaml:"upstream"`
	Credential credential.Config `yaml:"credential"`
	Recording  string            `yaml:"recording"`
	Retention  string            `yaml:"retention"` // a class; Retention.Default when the file has none
	Mode       string            `yaml:"mode"`
}

// Upstream has the base URLs of BigQuery's APIs.
type Upstream struct {
	REST string `yaml:"rest"`
	// Storage is that of the Storage Read API, or StorageNone; StorageURL says
	// what it comes to where it is left out.
	Storage string `yaml:"storage"`
}

// StorageNone closes the Storage Read API.
const StorageNone = "none"

const (
	restDefault    = "https://bigquery.googleapis.com"
	storageDefault = "https://bigquerystorage.googleapis.com"
)

// StorageURL is the base URL of the Storage Read API, empty for none: where
// another REST host than Google's own is set, it has to be told.
func (u Upstream) StorageURL() string {
	switch {
	case u.Storage == StorageNone:
		return ""
	case u.Storage == "" && strings.TrimSuffix(u.REST, "/") == restDefault:
		return storageDefault
	}
	return u.Storage
}

// Policy says where the policy is: a folder, or a bundle and the key that it is
// signed with. With neither the built-in policy holds.
type Policy struct {
	Dir       string        `yaml:"dir" path:"dir!"`
	Bundle    string        `yaml:"bundle" path:"file"`
	PublicKey string        `yaml:"public_key" path:"file"`
	Timeout   time.Duration `yaml:"timeout"`
}

// Metrics are served on loopback, when there is an address.
type Metrics struct {
	Address string `yaml:"address"`
}

// Default returns a configuration with every default set. The lists (issuers,
// connections) have theirs in newIssuer and newConnection.
func Default() *Config {
	return &Config{
		Limits: Limits{
			Exchanges: 512, Window: 256 << 10, Share: 640 << 10, Budget: 48 << 20, RequestBody: 10 << 20,
			Decision: 10 * time.Second, Journal: 10 * time.Second, Idle: 600 * time.Second, Drain: 20 * time.Second,
			Analysis: 2 * time.Second, DryRunCache: 60 * time.Second,
		},
		Journal: Journal{
			Dir: "/var/lib/verbatim/journal", Limit: 10 << 30, Reserve: 64 << 20, Segment: 64 << 20,
			CutBytes: 8 << 20, CutInterval: 5 * time.Second, Heartbeat: 15 * time.Second, Behind: 60 * time.Second,
		},
		Transport: Transport{Durability: DurabilityLocal},
		Retention: Retention{Default: "standard", Classes: map[string]time.Duration{"standard": 400 * 24 * time.Hour}},
		Policy:    Policy{Timeout: 250 * time.Millisecond},
		Budgets:   Budgets{Share: 1},
	}
}

func newIssuer() Issuer {
	return Issuer{Algorithms: []string{"RS256", "ES256"}, Profile: "generic", Leeway: 30 * time.Second}
}

func newConnection() Connection {
	return Connection{Upstream: Upstream{REST: restDefault}, Recording: RecordingFull, Mode: ModeEnforce}
}

// Connection returns the connection that lists project, or nil.
func (c *Config) Connection(project string) *Connection {
	for i := range c.Connections {
		for _, p := range c.Connections[i].Projects {
			if p == project {
				return &c.Connections[i]
			}
		}
	}
	return nil
}

// Size is a number of bytes, written as such ("65536") or with a unit: KiB, MiB,
// GiB and TiB are powers of 1024; KB, MB, GB and TB powers of 1000.
type Size int64

// Bytes returns s as an int64.
func (s Size) Bytes() int64 { return int64(s) }

var units = []struct {
	name string
	size Size
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// String writes s with the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range units[:4] {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// ParseSize reads a size.
func ParseSize(text string) (Size, error) {
	digits, factor := text, Size(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			digits, factor = strings.TrimSuffix(rest, " "), u.size
			break
		}
	}
	n, err := parseDigits(digits)
	if err != nil || Size(n) > math.MaxInt64/factor {
		return 0, fmt.Errorf("%q is no size: write bytes, or a whole number with a unit, such as 256KiB or 10GiB", text)
	}
	return Size(n) * factor, nil
}

func parseDigits(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}

// ParseDuration reads a duration as time.ParseDuration does, and whole days: "400d".
func ParseDuration(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	if digits, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := parseDigits(digits); err == nil && n <= int64(math.MaxInt64/day) {
			return time.Duration(n) * day, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d >= 0 && text != "0" {
		return d, nil
	}
	return 0, fmt.Errorf("%q is no duration: write a number with a unit, such as 50ms, 30s, 10m, 12h or 400d", text)
}
