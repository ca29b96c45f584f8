package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/envoy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

// edit changes the running gateway's configuration file.
func edit(t *testing.T, r *harness.Rig, change func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(r.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := yaml.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if b, err = yaml.Marshal(m); err != nil {
		t.Fatal(err)
	}
	r.Write("extproc.yaml", string(b))
}

// eventually polls until ok, for what takes effect at the next look at a file.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}

func TestConfigurationIsReloaded(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	datasets := func(project, caller string) harness.Answer {
		return r.Do(ctx, caller, http.MethodGet, "/bigquery/v2/projects/"+project+"/datasets", nil)
	}

	a := datasets("other-project", "analyst")
	if a.Status != 403 || !strings.Contains(a.Message(), "connection_unknown") {
		t.Errorf("a project that no connection lists: status %d, %q", a.Status, a.Message())
	}

	// A second issuer, whose group of the same name is another group.
	more, err := issuer.Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close(context.WithoutCancel(ctx))
	other := more.Issuer(issuer.Corp)
	token, err := other.Mint(issuer.Analyst("verbatim"), issuer.Options{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	asOther := func() harness.Answer {
		return r.Do(ctx, "", http.MethodGet, "/bigquery/v2/projects/"+harness.Project+"/datasets", nil, "Authorization", "Bearer "+token)
	}
	if a := asOther(); a.Status != 401 || !strings.Contains(a.Message(), "issuer_unknown") {
		t.Errorf("an issuer that is not configured: status %d, %q", a.Status, a.Message())
	}
	edit(t, r, func(m map[string]any) {
		m["issuers"] = append(m["issuers"].([]any), map[string]any{"name": "partner", "url": other.URL(), "audiences": []string{"verbatim"}, "groups_claim": "groups", "profile": "generic"})
		c := m["connections"].([]any)[0].(map[string]any)
		c["projects"] = []string{harness.Project, "other-project"}
		c["recording"] = "metadata"
	})
	eventually(t, "the new issuer is known", func() bool { return asOther().Status == 403 })
	a = asOther()
	if !strings.Contains(a.Message(), "no_grant") {
		t.Errorf("the partner's analysts got corp's grant: %q", a.Message())
	}
	if x, _ := r.Evidence(a.Receipt); x.Principal == nil || x.Principal.Issuer != "partner" || len(x.Principal.Groups) == 0 || x.Principal.Groups[0] != "partner/analysts" {
		t.Errorf("principal %+v", x.Principal)
	}
	if a := datasets("other-project", "analyst"); strings.Contains(a.Message(), "connection_unknown") {
		t.Errorf("the project that was added: %q", a.Message())
	}

	// Metadata recording: counted and hashed, not kept; the head is.
	q := r.Query(ctx, "agent", harness.Synthetic(50_000))
	if q.Status != 200 || len(q.Body) != 50_000 {
		t.Fatalf("status %d, %d bytes", q.Status, len(q.Body))
	}
	x, payloads := r.Evidence(q.Receipt)
	if len(payloads[record.DirectionResponse]) != 0 || x.Bytes == nil || *x.Bytes != 50_000 || x.SQL == "" || x.Recording != "metadata" {
		t.Errorf("recorded %d bytes, bytes %v, recording %s", len(payloads[record.DirectionResponse]), x.Bytes, x.Recording)
	}

	// What is broken changes nothing.
	edit(t, r, func(m map[string]any) { m["issuerz"] = []any{} })
	eventually(t, "the broken file is complained about", func() bool { return strings.Contains(r.Log(), "issuerz") })
	if a := r.Query(ctx, "agent", "SELECT 1"); a.Status != 200 {
		t.Errorf("after a broken configuration: status %d %s", a.Status, a.Message())
	}
	r.Verify()
}

func TestPolicyIsReloaded(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := r.Query(ctx, "agent", "SELECT 1")
	if before.Status != 200 {
		t.Fatalf("status %d: %s", before.Status, before.Message())
	}
	r.Write("policy/data.json", `{"grants": {}}`)
	eventually(t, "the grant is gone", func() bool { return r.Query(ctx, "agent", "SELECT 1").Status == 403 })
	r.Write("policy/data.json", `{"grants": `)
	eventually(t, "the broken policy is complained about", func() bool {
		return strings.Contains(r.Log(), "policy not loaded") || strings.Contains(r.Log(), "data.json")
	})
	if a := r.Query(ctx, "agent", "SELECT 1"); a.Status != 403 || !strings.Contains(a.Message(), "no_grant") {
		t.Errorf("after a broken policy: status %d %s", a.Status, a.Message())
	}
	r.Write("policy/data.json", harness.Grants)
	eventually(t, "the grant is back", func() bool { return r.Query(ctx, "agent", "SELECT 1").Status == 200 })
	a, _ := r.Evidence(before.Receipt)
	if a.Decision == nil || !strings.HasPrefix(a.Decision.Policy, "sha256:") {
		t.Errorf("the record does not name the policy that decided: %+v", a.Decision)
	}
}

func TestProcessorOverMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t)
	serverCert, serverKey := ca.issue(t, dir, "server", "processor.verbatim.internal")
	clientCert, clientKey := ca.issue(t, dir, "client", "envoy.verbatim.internal")
	strangerCert, strangerKey := ca.issue(t, dir, "stranger", "somebody.verbatim.internal")
	caFile := ca.write(t, dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	start := func(t *testing.T, cert, key string) *harness.Rig {
		return harness.Start(t, harness.Options{
			Configure: func(m map[string]any) {
				m["listen"] = map[string]any{"address": address, "tls": map[string]any{
					"certificate": serverCert, "key": serverKey, "client_ca": caFile, "client_names": []string{"envoy.verbatim.internal"}}}
			},
			Bootstrap: func(p *envoy.Params) {
				p.Processor = envoy.Processor{Address: address, CA: caFile, Certificate: cert, Key: key, ServerName: "processor.verbatim.internal"}
			},
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	t.Run("the right client", func(t *testing.T) {
		r := start(t, clientCert, clientKey)
		if a := r.Query(ctx, "agent", harness.Synthetic(10_000)); a.Status != 200 || len(a.Body) != 10_000 {
			t.Errorf("status %d, %d bytes: %s", a.Status, len(a.Body), a.Message())
		}
	})
	t.Run("a stranger of the same CA", func(t *testing.T) {
		r := start(t, strangerCert, strangerKey)
		a := r.Query(ctx, "agent", "SELECT 1")
		if a.Status != 503 || a.Message() == "" {
			t.Errorf("status %d, body %s: want 503 in BigQuery's shape", a.Status, a.Body)
		}
		if n := len(r.Double.Requests()); n != 0 {
			t.Errorf("%d requests reached the upstream", n)
		}
	})
}

func TestSocketIsForTheGroupOnly(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	st, err := os.Stat(r.Socket())
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o660 {
		t.Errorf("mode %o, want 660", st.Mode().Perm())
	}
}

type authority struct {
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert: c, der: der, key: key}
}

func (a *authority) write(t *testing.T, dir string) string {
	t.Helper()
	return writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", a.der)
}

func (a *authority) issue(t *testing.T, dir, file, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, filepath.Join(dir, file+".pem"), "CERTIFICATE", der), writePEM(t, filepath.Join(dir, file+".key"), "PRIVATE KEY", pk)
}

func writePEM(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
