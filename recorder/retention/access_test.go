package retention_test

import (
	"testing"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
)

// TestSessionKeysOfReaders: a reader's session has the keys of what he read.
func TestSessionKeysOfReaders(t *testing.T) {
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	made := ledgertest.New()
	g := ledgertest.NewGateway(made, "auditors-1", public)
	g.Begin()
	for _, session := range []string{"ada", "vera", "ada"} {
		b, err := record.Marshal(record.Access{Session: session})
		if err != nil {
			t.Fatal(err)
		}
		g.Append(record.Draft{Kind: record.KindAccess, Session: session, Body: b})
	}
	g.Close()
	dir := t.TempDir()
	if err := made.Write(dir); err != nil {
		t.Fatal(err)
	}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	if keys, unread, err := retention.SessionKeys(t.Context(), v, k, "ada"); err != nil || unread != 0 || len(keys) != 1 {
		t.Errorf("keys %v, %d unread, %v", keys, unread, err)
	}
}
