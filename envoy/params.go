package envoy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Names that Envoy and the processor share.
const (
	// UpstreamHeader names the cluster that a request goes to. Only the
	// processor may set it; it never leaves Envoy.
	UpstreamHeader = "x-verbatim-upstream"
	// MetadataNamespace and AdmittedKey are the dynamic metadata without which
	// the RBAC filter refuses a request.
	MetadataNamespace = "verbatim"
	AdmittedKey       = "admitted"
	// ProcessorCluster is the cluster of the ext_proc server.
	ProcessorCluster = "verbatim.processor"
)

// Params are what a bootstrap is rendered from. Zero values of the optional
// fields take the defaults that their comments name.
type Params struct {
	// Listen is the host:port that clients connect to. Port 0 lets the kernel
	// choose (for tests).
	Listen string
	// TLS is the listener's certificate; nil serves plain HTTP, for loopback or
	// behind a mesh that terminates TLS.
	TLS *Certificate
	// Admin is the host:port of Envoy's admin endpoint, loopback only; empty
	// means no admin endpoint.
	Admin string
	// Processor is where the ext_proc server listens.
	Processor Processor
	// Connections are the upstreams, at least one; names are unique.
	Connections []Connection
	// Roots is the PEM file of the CAs that https upstreams are verified with;
	// empty means the first of [SystemRoots]'s places that exists.
	Roots string
	// AccessLog is the file of the JSON access log, "-" for standard output,
	// empty for none.
	AccessLog string
	// Idle is the longest silence within an exchange, default 660 s, a minute above the processor's own. It must
	// exceed the processor's own deadlines.
	Idle time.Duration
	// Linger is how long a connection that Envoy closes stays for its caller to read
	// the rest, default 30 s. A caller that pauses for longer in the last answer of a
	// connection loses the rest; one whose bytes are no HTTP waits so long for the end.
	Linger time.Duration
	// Buffer is the soft limit of bytes buffered for each connection, default
	// 256 KiB.
	Buffer int
	// Window is the HTTP/2 stream window towards the processor and the
	// upstreams, default 1 MiB; connections get eight times that.
	Window int
	// MaxRequests bounds the concurrent exchanges, default 10000.
	MaxRequests int
	// MaxConnections bounds the clients' connections, default 20000.
	MaxConnections int
	// HeapLimit is where the overload manager stops taking requests, in bytes,
	// default 1.5 GiB.
	HeapLimit int64
	// TrustedHops is how many proxies in front append to X-Forwarded-For.
	TrustedHops int
	// Bare leaves ext_proc and RBAC out and routes all to the first
	// connection: the baseline of the benchmarks. Lint refuses the result.
	Bare bool
}

// Certificate names PEM files.
type Certificate struct{ Certificate, Key string }

// Processor is the address of the ext_proc server: a UNIX socket, or a TCP
// address with mutual TLS.
type Processor struct {
	// Socket is an absolute path.
	Socket string
	// Address is a host:port. CA, Certificate, Key (PEM files) and ServerName
	// (the DNS name in the server's certificate) are required with it.
	Address              string
	CA, Certificate, Key string
	ServerName           string
}

// Connection is one upstream.
type Connection struct {
	// Name is the connection's name: [a-z0-9-], at most 63.
	Name string
	// REST is the URL of the BigQuery REST host, without a path:
	// https://bigquery.googleapis.com. With https, the host's certificate is
	// verified against its name; http is for local emulators.
	REST string
	// Storage is the URL of the BigQuery Storage host, spoken to in HTTP/2:
	// https://bigquerystorage.googleapis.com. Empty means none.
	Storage string
	// CA is a PEM file to verify the hosts with in place of [Params.Roots].
	CA string
}

// Cluster is the name of the connection's REST cluster, the value of
// [UpstreamHeader].
func (c Connection) Cluster() string { return c.Name + ".rest" }

// StorageCluster is the name of the connection's cluster for gRPC.
func (c Connection) StorageCluster() string { return c.Name + storageSuffix }

const storageSuffix = ".storage"

var connectionName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// check reports everything that is wrong with p.
func (p Params) check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if _, _, err := splitAddress(p.Listen); err != nil {
		bad("listen address %q: %w", p.Listen, err)
	}
	if p.Admin != "" {
		host, _, err := splitAddress(p.Admin)
		switch {
		case err != nil:
			bad("admin address %q: %w", p.Admin, err)
		case !loopback(host):
			bad("admin address %q is not on loopback: whoever reaches it controls Envoy; use 127.0.0.1 or ::1", p.Admin)
		}
	}
	if p.TLS != nil && (p.TLS.Certificate == "" || p.TLS.Key == "") {
		bad("TLS needs both a certificate and a key file")
	}
	if !p.Bare {
		if err := p.Processor.check(); err != nil {
			errs = append(errs, err)
		}
	}
	if len(p.Connections) == 0 {
		bad("no connection: name at least one upstream")
	}
	seen := map[string]bool{}
	for _, c := range p.Connections {
		if !connectionName.MatchString(c.Name) {
			bad("connection name %q: use 1 to 63 of a-z, 0-9 and -, not - at the ends", c.Name)
		}
		if seen[c.Name] {
			bad("connection name %q is used twice", c.Name)
		}
		seen[c.Name] = true
		rest, err := c.endpoint(c.REST)
		if err != nil {
			bad("connection %q: %w", c.Name, err)
		}
		if c.Storage != "" {
			switch s, err := c.endpoint(c.Storage); {
			case err != nil:
				bad("connection %q: storage: %w", c.Name, err)
			case rest.TLS && !s.TLS:
				bad("connection %q: storage upstream %q: use https, as the REST upstream does", c.Name, c.Storage)
			}
		}
	}
	if p.Idle < 0 || p.Linger < 0 || p.Buffer < 0 || p.Window < 0 || p.MaxRequests < 0 || p.MaxConnections < 0 || p.HeapLimit < 0 || p.TrustedHops < 0 {
		bad("limits must not be negative")
	}
	if p.Window != 0 && (p.Window < 65535 || p.Window > 1<<28) {
		bad("window %d: use 65535 to %d bytes", p.Window, 1<<28)
	}
	return errors.Join(errs...)
}

func (p Processor) check() error {
	switch {
	case p.Socket != "" && p.Address != "":
		return errors.New("processor: set a socket or an address, not both")
	case p.Socket != "":
		if !filepath.IsAbs(p.Socket) {
			return fmt.Errorf("processor socket %q: use an absolute path", p.Socket)
		}
		if len(p.Socket) > 107 {
			return fmt.Errorf("processor socket %q: a UNIX socket's path has at most 107 bytes", p.Socket)
		}
		return nil
	case p.Address != "":
		if _, _, err := splitAddress(p.Address); err != nil {
			return fmt.Errorf("processor address %q: %w", p.Address, err)
		}
		if p.CA == "" || p.Certificate == "" || p.Key == "" || p.ServerName == "" {
			return errors.New("processor address needs mutual TLS: set CA, certificate, key and server name")
		}
		return nil
	}
	return errors.New("processor: set a socket or an address")
}

// endpoint is an upstream's address as the template needs it.
type endpoint struct {
	Host     string
	Port     int
	HostName string // value of the host header
	TLS      bool
	IP       bool
}

func (c Connection) endpoint(base string) (endpoint, error) {
	u, err := url.Parse(base)
	if err != nil {
		return endpoint{}, errors.New("upstream is not a URL: use one like https://bigquery.googleapis.com")
	}
	if (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" {
		return endpoint{}, fmt.Errorf("upstream %q: use a URL like https://bigquery.googleapis.com", u.Redacted())
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
		return endpoint{}, fmt.Errorf("upstream %q: only scheme, host and port belong here", u.Redacted())
	}
	e := endpoint{Host: u.Hostname(), TLS: u.Scheme == "https", HostName: u.Host, Port: 80}
	if e.TLS {
		e.Port = 443
	}
	if s := u.Port(); s != "" {
		if e.Port, err = strconv.Atoi(s); err != nil || e.Port < 1 || e.Port > 65535 {
			return endpoint{}, fmt.Errorf("upstream %q: port must be 1 to 65535", u.Redacted())
		}
	}
	if c.CA != "" && !e.TLS {
		return endpoint{}, fmt.Errorf("upstream %q: a CA file needs https", u.Redacted())
	}
	_, ipErr := netip.ParseAddr(e.Host)
	e.IP = ipErr == nil
	if e.IP && e.TLS && c.CA == "" {
		return endpoint{}, fmt.Errorf("upstream %q: https to an IP address needs a CA file; use the host's name otherwise", u.Redacted())
	}
	return e, nil
}

func splitAddress(s string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errors.New("use host:port")
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, errors.New("port must be 0 to 65535")
	}
	if host == "" || strings.ContainsAny(host, " \t\r\n\"'\\") {
		return "", 0, errors.New("use host:port")
	}
	return host, port, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
