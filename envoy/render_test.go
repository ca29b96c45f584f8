package envoy

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

// variants are bootstraps that must hold the contract; they are the golden
// files in testdata too.
var variants = map[string]Params{
	"local": {
		Listen: "127.0.0.1:8443", Admin: "127.0.0.1:9901", AccessLog: "-", Processor: Processor{Socket: "/run/verbatim/extproc.sock"},
		Connections: []Connection{{Name: "emulator", REST: "http://127.0.0.1:9050", Storage: "http://127.0.0.1:9060"}},
	},
	"production": {
		Listen: "0.0.0.0:443", TLS: &Certificate{Certificate: "/etc/verbatim/tls.pem", Key: "/etc/verbatim/tls.key"}, Admin: "[::1]:9901", AccessLog: "/var/log/envoy/access.log",
		Processor:   Processor{Address: "extproc.verbatim.svc:9443", CA: "/etc/verbatim/ca.pem", Certificate: "/etc/verbatim/envoy.pem", Key: "/etc/verbatim/envoy.key", ServerName: "extproc.verbatim.svc"},
		Connections: []Connection{{Name: "analytics", REST: "https://bigquery.googleapis.com", Storage: "https://bigquerystorage.googleapis.com"}, {Name: "eu", REST: "https://bigquery.eu.rep.googleapis.com:8443/"}},
		Roots:       "/etc/ssl/certs/ca-certificates.crt", Idle: 20 * time.Minute, Buffer: 128 << 10, Window: 512 << 10, MaxRequests: 500, MaxConnections: 1000, HeapLimit: 1 << 30, TrustedHops: 1,
	},
	"odd": {
		Listen: "localhost:0", Processor: Processor{Socket: `/tmp/it's "odd": {{ & <>#.sock`},
		Connections: []Connection{{Name: "a", REST: "https://[::1]:8443", CA: "/tmp/ca: #1.pem"}, {Name: "b", REST: "http://localhost:80"}},
	},
}

func TestRenderGolden(t *testing.T) {
	for name, p := range variants {
		t.Run(name, func(t *testing.T) {
			got, err := Render(p)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs: look at it and run go test -update", file)
			}
			for _, f := range Lint(got) {
				t.Errorf("lint: %s", f)
			}
		})
	}
}

func TestRenderRefuses(t *testing.T) {
	good := variants["production"]
	for name, c := range map[string]struct {
		change func(*Params)
		want   string
	}{
		"no listener":          {func(p *Params) { p.Listen = "" }, "listen address"},
		"listener port":        {func(p *Params) { p.Listen = "0.0.0.0:70000" }, "port must be"},
		"admin in the open":    {func(p *Params) { p.Admin = "0.0.0.0:9901" }, "not on loopback"},
		"admin by name":        {func(p *Params) { p.Admin = "envoy.example:9901" }, "not on loopback"},
		"half a certificate":   {func(p *Params) { p.TLS = &Certificate{Certificate: "x"} }, "certificate and a key"},
		"no processor":         {func(p *Params) { p.Processor = Processor{} }, "set a socket or an address"},
		"two processors":       {func(p *Params) { p.Processor.Socket = "/x" }, "not both"},
		"plain processor":      {func(p *Params) { p.Processor.CA = "" }, "mutual TLS"},
		"relative socket":      {func(p *Params) { p.Processor = Processor{Socket: "x.sock"} }, "absolute"},
		"long socket":          {func(p *Params) { p.Processor = Processor{Socket: "/" + strings.Repeat("x", 108)} }, "107 bytes"},
		"no connection":        {func(p *Params) { p.Connections = nil }, "no connection"},
		"name":                 {func(p *Params) { p.Connections[0].Name = "A_b" }, `"A_b"`},
		"name twice":           {func(p *Params) { p.Connections[1].Name = p.Connections[0].Name }, "twice"},
		"scheme":               {func(p *Params) { p.Connections[0].REST = "ftp://x" }, "use a URL like"},
		"storage path":         {func(p *Params) { p.Connections[0].Storage = "https://x/y" }, "storage: upstream"},
		"storage in the open":  {func(p *Params) { p.Connections[0].Storage = "http://x" }, "use https"},
		"path":                 {func(p *Params) { p.Connections[0].REST = "https://x/bigquery" }, "only scheme, host and port"},
		"password":             {func(p *Params) { p.Connections[0].REST = "https://u:hunter2@x" }, "only scheme, host and port"},
		"port":                 {func(p *Params) { p.Connections[0].REST = "https://x:0" }, "port must be"},
		"address without a CA": {func(p *Params) { p.Connections[0].REST = "https://10.0.0.1" }, "needs a CA file"},
		"CA without TLS":       {func(p *Params) { p.Connections[0] = Connection{Name: "x", REST: "http://x", CA: "y"} }, "needs https"},
		"negative":             {func(p *Params) { p.MaxRequests = -1 }, "negative"},
		"window":               {func(p *Params) { p.Window = 10 }, "65535"},
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			p.Connections = append([]Connection(nil), good.Connections...)
			c.change(&p)
			_, err := Render(p)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("a password is in the error")
			}
		})
	}
}
