package envoy

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"text/template"
	"time"
)

//go:embed bootstrap.yaml.tmpl
var bootstrapText string

var bootstrapTemplate = template.Must(template.New("bootstrap.yaml").Funcs(template.FuncMap{
	"quote":   quote,
	"seconds": func(d time.Duration) string { return fmt.Sprintf("%gs", d.Seconds()) },
	"times":   func(a, b int) int { return a * b },
}).Parse(bootstrapText))

// localReply is how one status of Envoy's own is told to a BigQuery client.
type localReply struct {
	Code           int
	Reason, Status string
}

// The reasons are those of the BigQuery error table
// (https://cloud.google.com/bigquery/docs/error-messages), the status words
// those of google.rpc.Code. None is rateLimitExceeded: clients would retry a
// refusal for minutes.
var localReplies = []localReply{
	{400, "invalid", "INVALID_ARGUMENT"},
	{401, "authError", "UNAUTHENTICATED"},
	{403, "accessDenied", "PERMISSION_DENIED"},
	{404, "notFound", "NOT_FOUND"},
	{405, "invalid", "INVALID_ARGUMENT"},
	{408, "timeout", "DEADLINE_EXCEEDED"},
	{413, "uploadTooLarge", "INVALID_ARGUMENT"},
	{415, "invalid", "INVALID_ARGUMENT"},
	{426, "invalid", "FAILED_PRECONDITION"},
	{431, "invalid", "INVALID_ARGUMENT"},
	{500, "internalError", "INTERNAL"},
	{501, "notImplemented", "UNIMPLEMENTED"},
	{502, "badGateway", "UNAVAILABLE"},
	{503, "backendError", "UNAVAILABLE"},
	{504, "backendError", "DEADLINE_EXCEEDED"},
}

// view is what the template sees.
type view struct {
	Params
	ListenAddress    socketAddress
	AdminAddress     *socketAddress
	ProcessorAddress *socketAddress
	ProcessorIsIP    bool
	Upstreams        []upstream
	Replies          []localReply
	UpstreamHeader   string
	Namespace        string
	AdmittedKey      string
	ProcessorCluster string
}

type socketAddress struct {
	Host string
	Port int
}

type upstream struct {
	endpoint
	Cluster string
	CA      string
	HTTP2   bool // gRPC needs it
}

// Render returns the bootstrap as YAML. Errors name every parameter that is
// wrong and what to do.
func Render(p Params) ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	if p.Linger == 0 {
		p.Linger = 30 * time.Second
	}
	if p.Idle == 0 {
		p.Idle = 660 * time.Second
	}
	if p.Buffer == 0 {
		p.Buffer = 256 << 10
	}
	if p.Window == 0 {
		p.Window = 1 << 20
	}
	if p.MaxRequests == 0 {
		p.MaxRequests = 10000
	}
	if p.MaxConnections == 0 {
		p.MaxConnections = 20000
	}
	if p.HeapLimit == 0 {
		p.HeapLimit = 1536 << 20
	}
	if p.AccessLog == "-" {
		p.AccessLog = "/dev/stdout"
	}
	v := view{
		Params: p, ListenAddress: mustAddress(p.Listen), Replies: localReplies,
		UpstreamHeader: UpstreamHeader, Namespace: MetadataNamespace, AdmittedKey: AdmittedKey, ProcessorCluster: ProcessorCluster,
	}
	if p.Admin != "" {
		a := mustAddress(p.Admin)
		v.AdminAddress = &a
	}
	if p.Processor.Address != "" {
		a := mustAddress(p.Processor.Address)
		v.ProcessorAddress = &a
		_, err := netip.ParseAddr(a.Host)
		v.ProcessorIsIP = err == nil
	}
	for _, c := range p.Connections {
		for _, u := range []struct {
			base, cluster string
			http2         bool
		}{{c.REST, c.Cluster(), false}, {c.Storage, c.StorageCluster(), true}} {
			if u.base == "" {
				continue
			}
			e, err := c.endpoint(u.base)
			if err != nil {
				return nil, fmt.Errorf("envoy bootstrap: connection %q: %w", c.Name, err)
			}
			ca := c.CA
			if e.TLS && ca == "" {
				if p.Roots == "" {
					if p.Roots, err = SystemRoots(); err != nil {
						return nil, fmt.Errorf("envoy bootstrap: connection %q: %w", c.Name, err)
					}
				}
				ca = p.Roots
			}
			v.Upstreams = append(v.Upstreams, upstream{endpoint: e, Cluster: u.cluster, CA: ca, HTTP2: u.http2})
		}
	}
	var out bytes.Buffer
	if err := bootstrapTemplate.Execute(&out, v); err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	return out.Bytes(), nil
}

// rootFiles are where distributions keep their CA bundle.
var rootFiles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, distroless
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem", // openSUSE
	"/etc/ssl/cert.pem",
}

// SystemRoots returns the system's CA bundle. Envoy needs a file: it does not
// implement system_root_certs, and verifies nothing where only that is set.
func SystemRoots() (string, error) {
	for _, name := range rootFiles {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			return name, nil
		}
	}
	return "", fmt.Errorf("no CA bundle in %s: install ca-certificates or set the roots file", strings.Join(rootFiles, ", "))
}

// mustAddress splits an address that check has accepted. Envoy takes
// addresses, not names, to listen on.
func mustAddress(s string) socketAddress {
	host, port, _ := splitAddress(s)
	if host == "localhost" {
		host = "127.0.0.1"
	}
	return socketAddress{host, port}
}

// quote returns s as a JSON string, which is a YAML string too.
func quote(s string) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}
