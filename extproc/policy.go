package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/policy"
	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault/place"
)

const policyHelp = `Usage: extproc policy COMMAND [flags]

Helps to write a policy. Nothing here touches a running gateway.

  test      run a policy's tests (*_test.rego), with coverage
  check     load a policy as the gateway would, and say what is wrong with it
  eval      a SQL text and a caller in: input, decision and reasons out
  backtest  decide recorded requests again, and list what would change
  suggest   draft the least grants that let what was recorded

policy/README.md in the sources explains grants, the input and the reason codes.
"extproc policy COMMAND --help" tells more.
`

// policyCommand runs a subcommand of policy.
func policyCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	const names = "test, check, eval, backtest or suggest"
	if len(args) == 0 {
		fmt.Fprint(stderr, policyHelp)
		return fmt.Errorf("%w: name a command of policy: %s", errUsage, names)
	}
	switch args[0] {
	case "test":
		return policyTest(ctx, args[1:], stdout)
	case "check":
		return policyCheck(ctx, args[1:], stdout)
	case "eval":
		return policyEval(ctx, args[1:], stdout)
	case "backtest":
		return policyBacktest(ctx, args[1:], stdout, stderr)
	case "suggest":
		return policySuggest(ctx, args[1:], stdout, stderr)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, policyHelp)
		return nil
	}
	return fmt.Errorf("%w: unknown command policy %q: want %s", errUsage, args[0], names)
}

// policySource are the flags that name a policy.
type policySource struct {
	path, key string
}

func (s *policySource) flags(fs *flag.FlagSet) {
	fs.StringVar(&s.path, "bundle", "", "`PATH` of the policy: a folder or a bundle (.tar.gz)")
	fs.StringVar(&s.key, "public-key", "", "`FILE` with the key that the bundle is signed for")
}

// load loads the policy as the gateway does.
func (s *policySource) load(ctx context.Context, command string) (*policy.Engine, error) {
	if s.path == "" {
		return nil, fmt.Errorf("%w: policy %s needs --bundle PATH, a folder or a bundle", errUsage, command)
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return nil, err
	}
	c := policy.Config{PublicKey: s.key, Timeout: 10 * time.Second}
	if info.IsDir() {
		c.Dir = s.path
	} else {
		c.Bundle = s.path
	}
	return policy.New(ctx, c)
}

// records are the flags that name recorded exchanges.
type records struct {
	vault, keyset, since, until string
}

func (r *records) flags(fs *flag.FlagSet) {
	fs.StringVar(&r.vault, "vault", os.Getenv("VERBATIM_VAULT"), "the vault's `PLACE`: a folder, or gs://BUCKET (or VERBATIM_VAULT)")
	fs.StringVar(&r.keyset, "keyset", os.Getenv("VERBATIM_KEYSET"), "`FILE` with the tenant's private keyset (or VERBATIM_KEYSET)")
}

func (r *records) times(fs *flag.FlagSet) {
	fs.StringVar(&r.since, "since", "", "requests from this `TIME` on: RFC 3339, a day (UTC), or how long ago (36h)")
	fs.StringVar(&r.until, "until", "", "requests before this `TIME`")
}

// open opens the vault. The keyset opens what is sealed: it stays on this machine.
func (r *records) open(ctx context.Context, command string, warn func(error)) (c search.Config, end func() error, err error) {
	if r.vault == "" || r.keyset == "" {
		return c, nil, fmt.Errorf("%w: policy %s needs --vault PLACE and --keyset FILE, the tenant's private keyset", errUsage, command)
	}
	spec, err := place.Parse(r.vault)
	if err != nil {
		return c, nil, fmt.Errorf("%w: --vault: %w", errUsage, err)
	}
	v, err := place.Open(ctx, place.Config{Spec: spec})
	if err != nil {
		return c, nil, err
	}
	tenant, err := privateKeyset(ctx, r.keyset)
	if err == nil {
		var keys *keyring.Keyring
		if keys, err = keyring.New(keyring.Config{Source: v, Tenant: tenant}); err == nil {
			return search.Config{Vault: v, Keys: keys, Warn: warn}, v.Close, nil
		}
		err = fmt.Errorf("keyset %s: %w (want the private keyset, tenant.json)", r.keyset, err)
	}
	return c, nil, errors.Join(err, v.Close())
}

func privateKeyset(ctx context.Context, path string) (*keyset.Handle, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	w, wrapped, err := kms.ParseWrapped(b)
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w", path, err)
	}
	if wrapped {
		return w.Open(ctx, kms.Config{Options: kmsOptions})
	}
	h, err := record.ReadTenant(bytes.NewReader(b), true)
	if err != nil {
		return nil, fmt.Errorf("keyset %s: %w (\"recorder key new\" makes one)", path, err)
	}
	return h, nil
}

// span reads --since and --until.
func (r *records) span(now time.Time) (since, until time.Time, err error) {
	if since, err = moment("--since", r.since, now); err != nil {
		return since, until, err
	}
	until, err = moment("--until", r.until, now)
	if err == nil && !since.IsZero() && !until.IsZero() && !since.Before(until) {
		err = fmt.Errorf("%w: --since is not before --until", errUsage)
	}
	return since, until, err
}

func moment(name, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t.UTC(), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	return time.Time{}, fmt.Errorf("%w: %s %q: want RFC 3339 (2026-03-14T09:00:00Z), a day (2026-03-14, UTC), or how long ago (36h)", errUsage, name, s)
}

// oneLine keeps what came from a caller from breaking a line or a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
