package ledger_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

// TestAccess: records of reading are the recorder's own, stand alone and are
// sealed; anything else of them is a finding.
func TestAccess(t *testing.T) {
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	body, err := record.Marshal(record.Access{Session: "a", At: time.Now(), What: record.AccessTo{Action: "search"}, Allowed: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		draft record.Draft
		want  string
	}{
		"good":           {draft: record.Draft{Kind: record.KindAccess, Session: "a", Body: body}},
		"plain":          {draft: record.Draft{Kind: record.KindAccess, Body: body}, want: "is not sealed"},
		"no JSON":        {draft: record.Draft{Kind: record.KindAccess, Session: "a", Body: []byte("x")}, want: "access record"},
		"of an exchange": {draft: record.Draft{Kind: record.KindAccess, Session: "a", Exchange: 2, Body: body}, want: "has to stand alone"},
	} {
		t.Run(name, func(t *testing.T) {
			v := ledgertest.New()
			g := ledgertest.NewGateway(v, "auditors-1", public)
			g.Begin()
			g.Run(ledgertest.Exchange{Session: "s", Subject: "alice", SQL: "SELECT 1", Response: []byte("x")})
			g.Append(test.draft)
			g.Heartbeat()
			g.Close()
			keys, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
			if err != nil {
				t.Fatal(err)
			}
			r, err := ledger.Verify(context.Background(), v, ledger.Options{Keys: keys})
			if err != nil {
				t.Fatal(err)
			}
			if test.want == "" {
				if !r.Sound || r.Accesses != 1 || r.Exchanges.Total != 1 || r.Exchanges.Pending != 0 {
					t.Errorf("sound %v, %d accesses, %+v: %v", r.Sound, r.Accesses, r.Exchanges, r.Findings)
				}
				return
			}
			found := ""
			for _, f := range r.Findings {
				found += f.String() + "\n"
			}
			if r.Sound || !strings.Contains(found, test.want) {
				t.Errorf("findings %v, want %q", r.Findings, test.want)
			}
		})
	}
}
