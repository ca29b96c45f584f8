package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/config"
	"verbatim.dev/extproc/credential"
	"verbatim.dev/policy"
	"verbatim.dev/recorder/kms"
)

const checkHelp = `Usage: extproc check --config FILE [--online] [--publish FOLDER] [--token FILE]

Reads the configuration, and all that it names, as serve would, and explains it.
Every mistake is told as FILE:LINE: what, and what to do; then the exit code is
1. Nothing is started and nothing is changed.

With --publish it writes what Google's STS must find at the issuer URL of each
federation credential: .well-known/openid-configuration and jwks.json.

With --online it also asks each issuer for its keys and each connection for a
credential, Cloud KMS, where the deployment's key is there, for a signature, and
Pub/Sub, where it is the transport, for topics, subscriptions and permissions; what is missing comes with the command that repairs it. With --token it says step by step what becomes of the token in
FILE ("-": standard input); the token itself is never printed.

Examples:

  extproc check --config /etc/verbatim/extproc.yaml
  extproc check --config extproc.yaml --online
  extproc check --config extproc.yaml --token token.jwt

`

func check(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("check", flag.ContinueOnError)
	path := fs.String("config", "", "configuration `FILE`")
	online := fs.Bool("online", false, "ask issuers and credential sources as well")
	publish := fs.String("publish", "", "write the documents of federation's issuers below `FOLDER`")
	token := fs.String("token", "", "explain the token in `FILE`")
	if err := parse(fs, args, stdout, checkHelp); err != nil {
		return err
	}
	if *path == "" {
		return fmt.Errorf("%w: check needs --config FILE", errUsage)
	}
	cfg, err := config.Load(*path)
	if err != nil {
		return err
	}
	own, err := tokens(cfg.Tokens)
	if err != nil {
		return err
	}
	verifier, err := auth.New(ctx, auth.Config{Issuers: issuers(cfg.Issuers), Tokens: own}, nil)
	if err != nil {
		return fmt.Errorf("issuers: %w", err)
	}
	defer verifier.Close()
	if *token != "" {
		return explain(ctx, cfg, verifier, *token, stdout)
	}
	if err := describe(ctx, cfg, verifier, stdout); err != nil {
		return err
	}
	if *publish != "" {
		if err := publishIssuers(cfg, *publish, stdout); err != nil {
			return err
		}
	}
	if *online {
		return reach(ctx, cfg, stdout)
	}
	return nil
}

// describe checks all that the configuration names and prints what it means.
func describe(ctx context.Context, cfg *config.Config, verifier *auth.Verifier, out io.Writer) error {
	var problems []error
	if _, err := cfg.SessionSecret(); err != nil {
		problems = append(problems, err)
	}
	if _, err := readTenant(cfg.Sealing.Tenant); err != nil {
		problems = append(problems, err)
	}
	deployment, err := readDeployment(ctx, cfg.Sealing.Key)
	if err != nil {
		problems = append(problems, err)
	}
	if _, err := revocations(cfg.Revocations, verifier); err != nil {
		problems = append(problems, err)
	}
	if cfg.Listen.TLS != nil {
		if _, err := mutual(*cfg.Listen.TLS); err != nil {
			problems = append(problems, fmt.Errorf("listen: tls: %w", err))
		}
	}
	engine, err := policy.New(ctx, policy.Config{Dir: cfg.Policy.Dir, Bundle: cfg.Policy.Bundle, PublicKey: cfg.Policy.PublicKey, Timeout: cfg.Policy.Timeout})
	if err != nil {
		problems = append(problems, fmt.Errorf("policy: %w", err))
	}
	for _, c := range cfg.Connections {
		s, err := credential.New(c.Credential, credential.Deps{})
		if err != nil {
			problems = append(problems, fmt.Errorf("connection %s: %w", c.Name, err))
			continue
		}
		s.Close()
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}

	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	network, address := cfg.Listen.Network()
	fmt.Fprintf(w, "gateway\t%s, listens on %s %s\n", cfg.Gateway, network, address)
	l := cfg.Limits
	fmt.Fprintf(w, "memory\t%s = %d exchanges x (%s window + %s share) + %s budget + %s base\n", l.Memory(), l.Exchanges, l.Window, l.Share, l.Budget, config.BaseMemory)
	fmt.Fprintf(w, "journal\t%s, at most %s and %s in reserve; a cut each %s or %s\n", cfg.Journal.Dir, cfg.Journal.Limit, cfg.Journal.Reserve, cfg.Journal.CutBytes, cfg.Journal.CutInterval)
	signed := "epochs certified by " + cfg.Sealing.Key
	switch s, ok := deployment.(*kms.Signer); {
	case deployment == nil:
		signed = "epochs not certified: set sealing.key"
	case ok:
		signed += ", in Cloud KMS: " + s.Reference().Name.String()
	}
	fmt.Fprintf(w, "sealing\tto %s, %s\n", cfg.Sealing.Tenant, signed)
	fmt.Fprintf(w, "transport\t%s\n", describeTransport(cfg.Transport))
	for _, i := range cfg.Issuers {
		groups := "no groups"
		if i.GroupsClaim != "" {
			groups = "groups from " + i.GroupsClaim + " as " + i.Name + "/..."
		}
		fmt.Fprintf(w, "issuer\t%s: %s, profile %s, audiences %s, %s, %s\n", i.Name, i.URL, i.Profile, strings.Join(i.Audiences, " "), strings.Join(i.Algorithms, " "), groups)
	}
	if t := cfg.Tokens; t != nil {
		lifetime := t.Lifetime
		if lifetime == 0 {
			lifetime = auth.DefaultTokenLifetime
		}
		fmt.Fprintf(w, "tokens\tof the gateway's own, issuer %s, %s at most, from %s/sts/v1/token\n", t.Issuer, lifetime, strings.TrimSuffix(t.Issuer, "/"))
	}
	for _, c := range cfg.Connections {
		mode := ""
		if c.Mode == config.ModeObserve {
			mode = ", the policy only observes"
		}
		storage := "no Storage Read API"
		if s := c.Upstream.StorageURL(); s != "" {
			storage = s
		}
		fmt.Fprintf(w, "connection\t%s: projects %s to %s and %s, credential %s, records %s, retention %s%s\n", c.Name, strings.Join(c.Projects, " "), c.Upstream.REST, storage, c.Credential.Kind, c.Recording, c.Retention, mode)
	}
	for _, o := range cfg.Observe {
		fmt.Fprintf(w, "observed\t%s, the policy only observes\n", strings.Join(slices.DeleteFunc([]string{o.Issuer, o.Subject, o.Group, o.Repository, o.Namespace, o.ServiceAccount}, func(s string) bool { return s == "" }), " "))
	}
	fmt.Fprintf(w, "policy\t%s\n", engine.Digest())
	fmt.Fprintf(w, "budgets\tcounted in %s; this replica gives out %v of each\n", cfg.UsageFile(), cfg.Budgets.Share)
	for _, f := range engine.Current().Findings() {
		fmt.Fprintf(w, "policy finding\t%s\n", f)
	}
	fmt.Fprintf(w, "ok\t%s\n", cfg.Path)
	return w.Flush()
}

// reach asks the credential sources for a token each. Issuers are asked when
// the first token of theirs comes.
func reach(ctx context.Context, cfg *config.Config, out io.Writer) error {
	var problems []error
	for _, c := range cfg.Connections {
		s, err := credential.New(c.Credential, credential.Deps{})
		if err != nil {
			problems = append(problems, fmt.Errorf("connection %s: %w", c.Name, err))
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 30*time.Second)
		if err := s.Check(ask); err != nil {
			problems = append(problems, fmt.Errorf("connection %s: %w", c.Name, err))
		} else {
			fmt.Fprintf(out, "credential of %s obtained\n", c.Name)
		}
		cancel()
		s.Close()
	}
	if s, err := readDeployment(ctx, cfg.Sealing.Key); err != nil {
		problems = append(problems, err)
	} else if s, ok := s.(*kms.Signer); ok {
		if err := s.Check(); err != nil {
			problems = append(problems, fmt.Errorf("sealing.key: %w", err))
		} else {
			fmt.Fprintln(out, "Cloud KMS signs with the deployment's key")
		}
	}
	if err := checkTransport(ctx, cfg); err != nil {
		problems = append(problems, err)
	} else if cfg.Transport.PubSub != nil {
		fmt.Fprintln(out, "topics, subscriptions and permissions of the transport are in order")
	}
	return errors.Join(problems...)
}

// publishIssuers writes the discovery document and key set of each federation
// credential to FOLDER/CONNECTION/.well-known/.
func publishIssuers(cfg *config.Config, folder string, out io.Writer) error {
	n := 0
	for _, c := range cfg.Connections {
		if c.Credential.Kind != credential.KindFederation {
			continue
		}
		i, err := credential.NewIssuer(c.Credential)
		if err != nil {
			return fmt.Errorf("connection %s: %w", c.Name, err)
		}
		dir := filepath.Join(folder, c.Name, ".well-known")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		for name, b := range map[string][]byte{"openid-configuration": i.Discovery(), "jwks.json": i.JWKS()} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		}
		fmt.Fprintf(out, "documents of %s are in %s: serve them below %s\n", c.Name, dir, c.Credential.Issuer)
		n++
	}
	if n == 0 {
		return errors.New("publish: no connection has a credential of kind federation")
	}
	return nil
}

// explain says what becomes of a token.
func explain(ctx context.Context, cfg *config.Config, verifier *auth.Verifier, file string, out io.Writer) error {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	e := verifier.Explain(ctx, strings.TrimSpace(string(b)))
	for _, s := range e.Steps {
		mark := "ok     "
		if !s.OK {
			mark = "REFUSED"
		}
		fmt.Fprintf(out, "%s  %-12s %s\n", mark, s.Name, s.Detail)
	}
	if e.Err != nil {
		return fmt.Errorf("the token is refused: %w", e.Err)
	}
	list, err := revocations(cfg.Revocations, verifier)
	if err != nil {
		return err
	}
	if reason, ok := list.Revoked(e.Identity); ok {
		return fmt.Errorf("the token is refused: revoked: %s", reason)
	}
	id := e.Identity
	provenance, err := json.Marshal(id.Provenance)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "principal\t%s of %s (%s)\n", id.Principal.Subject, id.Principal.Issuer, id.Principal.URL)
	fmt.Fprintf(w, "groups\t%s\n", strings.Join(id.Principal.Groups, " "))
	fmt.Fprintf(w, "provenance\t%s\n", provenance)
	fmt.Fprintf(w, "run\t%s\n", id.Run)
	fmt.Fprintf(w, "expires\t%s\n", id.Expires.UTC().Format(time.RFC3339))
	return w.Flush()
}
