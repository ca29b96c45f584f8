package harness

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/deploy/local/tools"
)

// AuditorsAudience is what tokens for the auditors' service are for.
const AuditorsAudience = "verbatim-auditors"

// Auditors is a recorder serve beside the stack.
type Auditors struct {
	*tools.Process
	URL string
	r   *Rig
}

// Auditors starts the service that reads for auditors: the group corp/security
// are auditors, corp/viewers are viewers. It ends with the test.
func (r *Rig) Auditors(change func(map[string]any)) *Auditors {
	r.t.Helper()
	address, err := freePort()
	if err != nil {
		r.t.Fatal(err)
	}
	c := map[string]any{
		"name": "auditors-1", "listen": address, "vault": r.Vault(), "keyset": r.Keyset(), "deployment_key": r.Path("keys/deployment.key"),
		"journal": map[string]any{"dir": r.Path("auditors"), "cut_interval": "100ms"}, "sink": r.Path("run/sink.sock"),
		"retention": map[string]any{"class": "standard", "keep": "400d"},
		"issuers": []map[string]any{
			{"name": issuer.Corp, "url": r.Issuer.Issuer(issuer.Corp).URL(), "audiences": []string{AuditorsAudience}, "groups_claim": "groups"},
		},
		"roles": map[string]any{"auditor": map[string]any{"groups": []string{"corp/security"}}, "viewer": map[string]any{"groups": []string{"corp/viewers"}}},
	}
	if change != nil {
		change(c)
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Write("auditors.yaml", string(b))
	a := &Auditors{URL: "http://" + address, r: r}
	a.Start()
	r.t.Cleanup(func() { a.Stop() })
	return a
}

// Start starts the service, after a Stop or Kill too, and waits until it
// answers.
func (a *Auditors) Start() {
	a.r.t.Helper()
	var err error
	a.Process, err = tools.Start(tools.Command{
		Path: filepath.Join(Binaries(a.r.t), "recorder"), Args: []string{"serve", "--config", a.r.Path("auditors.yaml")},
		Log: a.r.log, Grace: 30 * time.Second, Env: os.Environ(),
	})
	if err != nil {
		a.r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.URL[len("http://"):])
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-a.Done():
			a.r.t.Fatalf("recorder serve ended: %v", a.Err())
		case <-ctx.Done():
			a.r.t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Token mints a token for somebody in the groups, for the service.
func (a *Auditors) Token(subject string, groups ...string) string {
	a.r.t.Helper()
	token, err := a.r.Issuer.Issuer(issuer.Corp).Mint(map[string]any{
		"sub": subject, "email": subject + "@corp.example", "email_verified": true, "aud": AuditorsAudience, "groups": groups,
	}, issuer.Options{})
	if err != nil {
		a.r.t.Fatal(err)
	}
	return token
}

// Ready says whether the service can record.
func (a *Auditors) Ready() bool {
	res, err := http.Get(a.URL + "/healthz")
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}
