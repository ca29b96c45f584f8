package search_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

func TestAccesses(t *testing.T) {
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "auditors-1", public)
	g.Begin()
	x := g.Run(ledgertest.Exchange{Session: "s", Subject: "alice", SQL: "SELECT 1", Response: []byte("x")})
	add := func(session string, a record.Access) record.ID {
		a.Session = session
		b, err := record.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		return g.Append(record.Draft{Kind: record.KindAccess, Session: session, Body: b})
	}
	ada, bob := &record.Principal{Issuer: "corp", Subject: "ada", Email: "ada@corp.example"}, &record.Principal{Issuer: "corp", Subject: "bob"}
	first := add("a", record.Access{Who: ada, What: record.AccessTo{Action: "search"}, Allowed: true, Records: []string{x.String()}})
	g.Now = g.Now.Add(time.Hour)
	middle := g.Now
	second := add("a", record.Access{Who: ada, What: record.AccessTo{Action: "payload", Exchange: x.String()}, Allowed: true})
	third := add("b", record.Access{Who: bob, What: record.AccessTo{Action: "payload", Exchange: x.String()}, Code: "role"})
	g.Close()
	for name, test := range map[string]struct {
		f    search.AccessFilter
		want []record.ID
	}{
		"all":     {search.AccessFilter{}, []record.ID{first, second, third}},
		"who":     {search.AccessFilter{Who: "ADA@corp.example"}, []record.ID{first, second}},
		"action":  {search.AccessFilter{Action: "payload"}, []record.ID{second, third}},
		"refused": {search.AccessFilter{Refused: true}, []record.ID{third}},
		"since":   {search.AccessFilter{Since: middle}, []record.ID{second, third}},
		"until":   {search.AccessFilter{Until: middle}, []record.ID{first}},
		"of":      {search.AccessFilter{Exchange: x.String(), Who: "corp/ada"}, []record.ID{first, second}},
		"id":      {search.AccessFilter{ID: second.String()}, []record.ID{second}},
		"none":    {search.AccessFilter{ID: x.String()}, nil},
	} {
		keys, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		err = search.Accesses(context.Background(), search.Config{Vault: v, Keys: keys}, test.f, func(a *search.Access) error {
			got = append(got, a.ID)
			return nil
		})
		var want []string
		for _, id := range test.want {
			want = append(want, id.String())
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q, %v", name, got, want, err)
		}
	}
	if _, err := search.Find(context.Background(), search.Config{Vault: v}, first, nil); !errors.Is(err, search.ErrAccess) {
		t.Errorf("Find of an access record: %v", err)
	}
	n := 0
	if _, err := search.Scan(context.Background(), search.Config{Vault: v}, search.Filter{}, func(*search.Exchange) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("a search finds %d exchanges, want 1: %v", n, err)
	}
	// Without the keyset: that there are some, and no more.
	if err := search.Accesses(context.Background(), search.Config{Vault: v}, search.AccessFilter{Who: "ada"}, func(a *search.Access) error {
		if a.Unreadable == "" || a.Who != nil {
			t.Errorf("read without a key: %+v", a)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
