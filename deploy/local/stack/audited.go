package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/goccy/go-yaml"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/recorder/witness"
)

// logKeys makes the keys of the sink's log and of its witness, with the
// witness's state, once. Here one hand runs both, which is for trying out: a
// witness is worth what its distance from the sink is.
func (s *Stack) logKeys() error {
	if _, err := os.Stat(s.path("keys/log.key")); errors.Is(err, os.ErrNotExist) {
		k, err := witness.NewKey("verbatim.dev/log/local", nil)
		if err != nil {
			return fmt.Errorf("stack: %w", err)
		}
		if err := writeAll(map[string]string{s.LogKey(): k.LogKey(), s.path("keys/log.key"): k.Private()}); err != nil {
			return err
		}
	}
	if _, err := os.Stat(s.path("witness/state")); errors.Is(err, os.ErrNotExist) {
		k, err := witness.NewKey("witness.localhost/w1", nil)
		if err != nil {
			return fmt.Errorf("stack: %w", err)
		}
		if err := writeAll(map[string]string{s.WitnessKey(): k.WitnessKey(), s.path("witness/key"): k.Private()}); err != nil {
			return err
		}
		if err := witness.CreateState(s.path("witness/state"), k); err != nil {
			return fmt.Errorf("stack: %w", err)
		}
	}
	return nil
}

func writeAll(files map[string]string) error {
	for name, text := range files {
		if err := WriteFile(name, []byte(text+"\n")); err != nil {
			return err
		}
	}
	return nil
}

// listenOn fills in a free port where no address is given.
func listenOn(addr *string) error {
	if *addr != "" {
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("stack: %w", err)
	}
	*addr = l.Addr().String()
	return l.Close()
}

// StartWitness starts the witness and waits until it listens.
func (s *Stack) StartWitness(ctx context.Context) error {
	if err := listenOn(&s.cfg.WitnessListen); err != nil {
		return err
	}
	p, err := s.start("witness", s.cfg.Recorder, "witness", "--listen", s.cfg.WitnessListen, "--state", s.path("witness/state"), "--key", s.path("witness/key"), "--log-key", s.LogKey())
	if err != nil {
		return err
	}
	s.Witness = p
	return s.await(ctx, p, "witness", func() error {
		c, err := net.Dial("tcp", s.cfg.WitnessListen)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// StartServe starts the service for auditors and waits until it can record what
// is read.
func (s *Stack) StartServe(ctx context.Context) error {
	if err := listenOn(&s.cfg.ServeListen); err != nil {
		return err
	}
	b, err := yaml.Marshal(map[string]any{
		"name": "auditors-local", "listen": s.cfg.ServeListen, "vault": s.Vault(), "keyset": s.Keyset(), "deployment_key": s.path("keys/deployment.key"),
		"journal": map[string]any{"dir": s.path("auditors/journal"), "cut_interval": "1s"}, "sink": s.path("run/sink.sock"),
		"retention": map[string]any{"class": "standard", "keep": "400d"},
		"issuers":   []map[string]any{{"name": issuer.Corp, "url": s.Issuer.Issuer(issuer.Corp).URL(), "audiences": []string{AuditAudience}, "groups_claim": "groups"}},
		"roles":     map[string]any{"auditor": map[string]any{"groups": []string{issuer.Corp + "/auditors"}}},
	})
	if err != nil {
		return fmt.Errorf("stack: %w", err)
	}
	if err := WriteFile(s.path("auditors/serve.yaml"), b); err != nil {
		return err
	}
	p, err := s.start("serve", s.cfg.Recorder, "serve", "--config", s.path("auditors/serve.yaml"))
	if err != nil {
		return err
	}
	s.Serve = p
	return s.await(ctx, p, "serve", func() error {
		res, err := http.Get(s.ServeURL() + "/healthz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", res.Status)
		}
		return nil
	})
}
