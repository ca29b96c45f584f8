package keyring_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

func tenant(t *testing.T) *keyset.Handle {
	t.Helper()
	h, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// one returns a vault with one exchange, its epoch and its intent.
func one(t *testing.T, of *keyset.Handle) (*ledgertest.Vault, record.Epoch, record.Frame) {
	t.Helper()
	public, err := of.Public()
	if err != nil {
		t.Fatal(err)
	}
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	g.Run(ledgertest.Exchange{Session: "s1", Subject: "alice", SQL: "SELECT 1"})
	g.Cut()
	name := v.Names(vault.SegmentsPrefix)[0]
	r, err := vault.ReadSegment(name, strings.NewReader(string(v.Files[name])))
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == record.KindIntent {
			return v, g.Epoch, f
		}
	}
}

func TestOpen(t *testing.T) {
	own, other := tenant(t), tenant(t)
	tests := []struct {
		name   string
		tenant *keyset.Handle
		do     func(v *ledgertest.Vault, key string, f *record.Frame)
		want   error // nil: it opens
	}{
		{name: "opens", tenant: own},
		{name: "key erased", tenant: own, want: record.ErrNoKey, do: func(v *ledgertest.Vault, key string, _ *record.Frame) { delete(v.Files, key) }},
		{name: "another tenant's keyset", tenant: other, want: keyring.ErrWrong},
		{name: "key changed", tenant: own, want: keyring.ErrWrong, do: func(v *ledgertest.Vault, key string, _ *record.Frame) { v.Files[key][80] ^= 1 }},
		{name: "key file emptied", tenant: own, want: keyring.ErrWrong, do: func(v *ledgertest.Vault, key string, _ *record.Frame) { v.Files[key] = nil }},
		{name: "body changed", tenant: own, want: keyring.ErrBody, do: func(_ *ledgertest.Vault, _ string, f *record.Frame) { f.Body[20] ^= 1 }},
		{name: "body moved", tenant: own, want: keyring.ErrBody, do: func(_ *ledgertest.Vault, _ string, f *record.Frame) { f.Sequence++ }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, epoch, f := one(t, own)
			if tt.do != nil {
				tt.do(v, vault.KeyName(epoch, f.Key), &f)
			}
			k, err := keyring.New(keyring.Config{Source: v, Tenant: tt.tenant})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second answer comes from memory
				b, err := k.Open(context.Background(), epoch, &f)
				if !errors.Is(err, tt.want) || tt.want == nil && !strings.Contains(string(b), "SELECT 1") {
					t.Errorf("got %q, %v, want %v", b, err, tt.want)
				}
			}
		})
	}
}

type down struct {
	keyring.Source
	err error
}

func (d *down) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if d.err != nil {
		return nil, d.err
	}
	return d.Source.Open(ctx, name)
}

// TestVaultDown holds that a vault that does not answer is no missing key, and
// is not remembered as one.
func TestVaultDown(t *testing.T) {
	own := tenant(t)
	v, epoch, f := one(t, own)
	s := &down{v, errors.New("vault does not answer")}
	k, err := keyring.New(keyring.Config{Source: s, Tenant: own})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(context.Background(), epoch, &f); !errors.Is(err, s.err) || errors.Is(err, record.ErrNoKey) || errors.Is(err, keyring.ErrWrong) {
		t.Errorf("got %v", err)
	}
	s.err = nil
	if _, err := k.Open(context.Background(), epoch, &f); err != nil {
		t.Errorf("when the vault is back: %v", err)
	}
}

func TestPublicKeyset(t *testing.T) {
	public, err := tenant(t).Public()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.New(keyring.Config{Source: ledgertest.New(), Tenant: public}); err == nil {
		t.Error("a public keyset opens nothing, and was taken")
	}
}
