package ownreads

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault"
)

func open(t *testing.T, dir string, tenant *keyset.Handle) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{Dir: dir, Tenant: tenant, Reader: record.LocalUser{User: "ada", UID: "7", Host: "h"}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// listed are the access records of the folder's vault, which must be sound.
func listed(t *testing.T, dir string, tenant *keyset.Handle) []*search.Access {
	t.Helper()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	keys, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ledger.Verify(t.Context(), v, ledger.Options{Keys: keys})
	if err != nil || !r.Sound {
		t.Fatalf("%v %+v", err, r)
	}
	var list []*search.Access
	if err := search.Accesses(t.Context(), search.Config{Vault: v, Keys: keys}, search.AccessFilter{}, func(a *search.Access) error {
		list = append(list, a)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestKilled: what was given out before a process died is durable, and the next
// one brings it into the vault.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vault.reads")
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, tenant)
	id, err := l.Record(t.Context(), record.Access{What: record.AccessTo{Action: "show", Exchange: "x"}, Why: "case 1"})
	if err != nil {
		t.Fatal(err)
	}
	// It dies: its journal is let go, and nothing was brought into the vault.
	if err := l.journal.Close(t.Context(), "killed"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "segments")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("it is in the vault: %v", err)
	}
	l = open(t, dir, tenant)
	if _, err := l.Record(t.Context(), record.Access{What: record.AccessTo{Action: "search"}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := listed(t, dir, tenant)
	if len(list) != 2 || list[0].ID != id.String() || list[0].Why != "case 1" || list[0].Who != nil || list[0].Asserted == nil || *list[0].Asserted != (record.LocalUser{User: "ada", UID: "7", Host: "h"}) {
		t.Fatalf("%+v", list)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".journal", "*.open")); len(left) > 0 {
		t.Errorf("marks are left: %s", left)
	}
}

// TestTogether: processes that read at once do not hinder each other.
func TestTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vault.reads")
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	const n = 5
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			l, err := Open(t.Context(), Config{Dir: dir, Tenant: tenant, Reader: record.LocalUser{User: fmt.Sprint("u", i)}})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := l.Record(t.Context(), record.Access{What: record.AccessTo{Action: "search"}}); err != nil {
				t.Error(err)
			}
			if err := l.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if list := listed(t, dir, tenant); len(list) != n {
		t.Errorf("%d records, want %d", len(list), n)
	}
}

// TestBusy: a writer that does not end leaves the records durable, and says so.
func TestBusy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vault.reads")
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, tenant)
	l.c.Wait = 50 * time.Millisecond
	if _, err := l.Record(t.Context(), record.Access{}); err != nil {
		t.Fatal(err)
	}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); !errors.Is(err, ErrBehind) {
		t.Fatalf("closed: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, tenant).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list := listed(t, dir, tenant); len(list) != 1 {
		t.Errorf("%d records", len(list))
	}
}

// TestNotDurable: a record that is not durable is an error.
func TestNotDurable(t *testing.T) {
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, filepath.Join(t.TempDir(), "r"), tenant)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := l.journal.Close(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Record(ctx, record.Access{}); err == nil {
		t.Error("it was taken")
	}
}
