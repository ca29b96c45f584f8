package search_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

var tenant, public = tenants()

func tenants() (private, public *keyset.Handle) {
	private, err := record.NewTenant()
	if err != nil {
		panic(err)
	}
	if public, err = private.Public(); err != nil {
		panic(err)
	}
	return private, public
}

func config(t *testing.T, v ledger.Vault) search.Config {
	t.Helper()
	k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	return search.Config{Vault: v, Keys: k, Warn: func(err error) { t.Logf("warning: %v", err) }}
}

var (
	alice = ledgertest.Exchange{
		Session: "salice", Subject: "alice", Email: "alice@corp.example", Groups: []string{"corp/analysts"},
		SQL: "SELECT name FROM `p1.sales.orders`", Rows: 3,
		Request: []byte(`{"query":"..."}`), Upstream: []byte(`{"query":"...","labels":{}}`), Response: bytes.Repeat([]byte("0123456789"), 20000),
		Job:        &record.Job{Project: "p1", Location: "US", ID: "job_1"},
		Provenance: &record.Provenance{Profile: "github", Repository: "corp/etl", Commit: "abcdef0123456789", Workflow: "nightly"},
		Headers:    []record.Header{{Name: "user-agent", Value: "python"}},
	}
	bob = ledgertest.Exchange{
		Session: "sbob", Subject: "bob", Groups: []string{"other/analysts"}, Project: "p2", Connection: "finance", SQL: "DROP TABLE x",
		Deny: []record.Reason{{Code: "read_only", Message: "DDL is not allowed"}}, Response: []byte(`{"error":{}}`),
	}
	page = ledgertest.Exchange{
		Session: "salice", Subject: "alice", Method: "bigquery.tabledata.list", Dataset: "sales", Table: "orders", Received: true, Response: []byte(`{"rows":[]}`),
	}
)

// sample holds, in time: alice, bob, page; over night alice cut off, and a
// pending page.
func sample() (*ledgertest.Vault, []record.ID) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	var ids []record.ID
	run := func(x ledgertest.Exchange, finish bool) {
		g.Now = g.Now.Add(time.Minute)
		r := g.Start(x)
		if finish {
			r.Finish()
		}
		ids = append(ids, r.ID)
	}
	run(alice, true)
	g.Cut()
	run(bob, true)
	run(page, true)
	g.Now = time.Date(2026, 3, 15, 8, 0, 0, 0, time.UTC)
	g.Cut()
	run(alice, false)
	g.Crash()
	g.Now = g.Now.Add(72 * time.Hour)
	g.Begin()
	g.Heartbeat()
	run(page, false)
	g.Cut()
	return v, ids
}

func find(t *testing.T, v ledger.Vault, q search.Query) []string {
	t.Helper()
	var got []string
	if _, err := search.Run(context.Background(), config(t, v), q, func(x *search.Exchange) error {
		got = append(got, x.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestFilter(t *testing.T) {
	v, ids := sample()
	at := func(s string) time.Time {
		x, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	tests := []struct {
		name string
		f    search.Filter
		want []int
	}{
		{"all", search.Filter{}, []int{0, 1, 2, 3, 4}},
		{"principal: subject", search.Filter{Principal: "alice"}, []int{0, 2, 3, 4}},
		{"principal: mail", search.Filter{Principal: "Alice@corp.example"}, []int{0, 3}},
		{"principal: issuer", search.Filter{Principal: "corp/bob"}, []int{1}},
		{"principal: pattern", search.Filter{Principal: "*@corp.*"}, []int{0, 3}},
		{"principal: part is not enough", search.Filter{Principal: "alic"}, nil},
		{"group", search.Filter{Group: "corp/analysts"}, []int{0, 3}},
		{"group of any issuer", search.Filter{Group: "analysts"}, []int{0, 1, 3}},
		{"repository", search.Filter{Repository: "corp/*"}, []int{0, 3}},
		{"commit", search.Filter{Commit: "ABCDEF"}, []int{0, 3}},
		{"project", search.Filter{Project: "p2"}, []int{1}},
		{"table in the SQL", search.Filter{Table: "sales.orders"}, []int{0, 2, 3, 4}},
		{"table, quoted", search.Filter{Table: "`p1`.sales"}, []int{0, 2, 3, 4}},
		{"sql", search.Filter{SQL: "select NAME"}, []int{0, 3}},
		{"allowed", search.Filter{Decision: "allow"}, []int{0, 2, 3, 4}},
		{"denied", search.Filter{Decision: "deny"}, []int{1}},
		{"reason", search.Filter{Reason: "read_only"}, []int{1}},
		{"job", search.Filter{Job: "job_1"}, []int{0}},
		{"job, whole", search.Filter{Job: "p1:US.job_1"}, []int{0}},
		{"session", search.Filter{Session: "sbob"}, []int{1}},
		{"connection", search.Filter{Connection: "finance"}, []int{1}},
		{"method", search.Filter{Method: "tabledata.list"}, []int{2, 4}},
		{"method, whole", search.Filter{Method: "bigquery.jobs.query"}, []int{0, 1, 3}},
		{"two at once", search.Filter{Principal: "alice", Method: "jobs.query"}, []int{0, 3}},
		{"since", search.Filter{Since: at("2026-03-14T09:02:00Z")}, []int{1, 2, 3, 4}},
		{"until", search.Filter{Until: at("2026-03-14T09:02:00Z")}, []int{0}},
		{"the day of the crash, closed days later", search.Filter{Since: at("2026-03-15T00:00:00Z"), Until: at("2026-03-15T23:00:00Z")}, []int{3}},
		{"a day without any", search.Filter{Since: at("2026-03-16T00:00:00Z"), Until: at("2026-03-17T00:00:00Z")}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var want []string
			for _, i := range tt.want {
				want = append(want, ids[i].String())
			}
			if got := find(t, v, search.Query{Filter: tt.f}); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestResults(t *testing.T) {
	v, ids := sample()
	results := map[string]*search.Exchange{}
	if _, err := search.Run(context.Background(), config(t, v), search.Query{}, func(x *search.Exchange) error {
		results[x.ID] = x
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []record.Result{record.ResultDelivered, record.ResultDenied, record.ResultDelivered, record.ResultInterrupted, search.Pending} {
		if got := results[ids[i].String()].Result; got != want {
			t.Errorf("exchange %d: result %q, want %q", i, got, want)
		}
	}
	x := results[ids[0].String()]
	if x.Status != 200 || *x.Rows != 3 || *x.Bytes != 200000 || len(x.Digests["response"]) != 64 || x.Job.ID != "job_1" || x.Provenance.Repository != "corp/etl" {
		t.Errorf("%+v", x)
	}
	if x := results[ids[3].String()]; x.ClosedBy == "" || x.SQL == "" || x.Cause == "" {
		t.Errorf("interrupted: %+v", x)
	}
}

// TestClosedLater holds that what ended after the time asked for is read, and
// what cannot matter is not.
func TestClosedLater(t *testing.T) {
	v, ids := sample()
	q := search.Query{Filter: search.Filter{Since: time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC), Until: time.Date(2026, 3, 15, 23, 0, 0, 0, time.UTC)}}
	var got []*search.Exchange
	if _, err := search.Run(context.Background(), config(t, v), q, func(x *search.Exchange) error {
		got = append(got, x)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].ID != ids[3].String() || got[0].Result != record.ResultInterrupted {
		t.Errorf("got %+v", got)
	}
	q.Since, q.Until = q.Since.AddDate(0, 0, -20), q.Since.AddDate(0, 0, -10)
	stats, err := search.Run(context.Background(), config(t, v), q, func(*search.Exchange) error { return nil })
	if err != nil || stats.Segments != 0 {
		t.Errorf("%d segments were read, %v", stats.Segments, err)
	}
}

func TestOrderAndLimit(t *testing.T) {
	v := ledgertest.New()
	var all []string
	// Two gateways whose times cross.
	a, b := ledgertest.NewGateway(v, "a", public), ledgertest.NewGateway(v, "b", public)
	a.Begin()
	b.Begin()
	at := ledgertest.Start
	for i := range 40 {
		g := a
		if i%3 == 0 {
			g = b
		}
		at = at.Add(time.Second)
		g.Now = at
		all = append(all, g.Run(bob).String())
	}
	a.Cut()
	b.Cut()
	for _, limit := range []int{0, 1, 7, 39, 40, 41} {
		want := all
		if limit > 0 && limit < len(all) {
			want = all[len(all)-limit:]
		}
		if got := find(t, v, search.Query{Limit: limit}); !slices.Equal(got, want) {
			t.Errorf("limit %d: got %v, want %v", limit, got, want)
		}
		reversed := slices.Clone(want)
		slices.Reverse(reversed)
		if got := find(t, v, search.Query{Limit: limit, Order: search.NewestFirst}); !slices.Equal(got, reversed) {
			t.Errorf("limit %d, newest first: got %v", limit, got)
		}
	}
	if got := find(t, v, search.Query{Limit: 3, Order: search.Stored}); !slices.Equal(got, []string{all[1], all[2], all[4]}) {
		t.Errorf("stored: got %v", got)
	}
	_, err := search.Run(context.Background(), config(t, v), search.Query{Memory: 20000}, func(*search.Exchange) error { return nil })
	if !errors.Is(err, search.ErrMemory) {
		t.Errorf("over the memory limit: %v", err)
	}
	if got := find(t, v, search.Query{Memory: 20000, Limit: 5}); len(got) != 5 {
		t.Errorf("with a limit that fits: %v", got)
	}
}

func TestErased(t *testing.T) {
	v, ids := sample()
	for _, name := range v.Names("keys/") {
		delete(v.Files, name)
	}
	var got []*search.Exchange
	stats, err := search.Run(context.Background(), config(t, v), search.Query{}, func(x *search.Exchange) error {
		got = append(got, x)
		return nil
	})
	if err != nil || len(got) != len(ids) || stats.Matched != int64(len(ids)) {
		t.Fatalf("%d found, %+v, %v", len(got), stats, err)
	}
	for _, x := range got {
		if !strings.Contains(x.Unreadable, "is missing: no erasure names it") || x.Erased != "" || x.SQL != "" || x.Principal != nil {
			t.Errorf("%+v", x)
		}
	}
	stats, err = search.Run(context.Background(), config(t, v), search.Query{Filter: search.Filter{Principal: "alice"}}, func(*search.Exchange) error {
		return errors.New("nothing fits")
	})
	if err != nil || stats.Unreadable != int64(len(ids)) {
		t.Errorf("%+v, %v", stats, err)
	}

	d, err := search.Find(context.Background(), config(t, v), ids[0], func(record.Direction, []byte) error { return errors.New("no bytes are at hand") })
	if err != nil {
		t.Fatal(err)
	}
	p, ok := d.Payload(record.DirectionResponse)
	if d.Unreadable == "" || d.Result != search.Unknown || !ok || p.Bytes != 200000 || p.SHA256 != "" || p.Intact || len(d.Records) != 3 {
		t.Errorf("%+v", d)
	}
}

func TestDamage(t *testing.T) {
	v, ids := sample()
	names := v.Names("segments/")
	v.Files[names[0]][len(v.Files[names[0]])/2] ^= 1
	var warned []error
	c := config(t, v)
	c.Warn = func(err error) { warned = append(warned, err) }
	var got []string
	if _, err := search.Run(context.Background(), c, search.Query{}, func(x *search.Exchange) error {
		got = append(got, x.ID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(warned) != 1 || !slices.Contains(got, ids[4].String()) {
		t.Errorf("warned %v, got %v", warned, got)
	}
}

func TestFind(t *testing.T) {
	v, ids := sample()
	var response, request, upstream bytes.Buffer
	d, err := search.Find(context.Background(), config(t, v), ids[0], func(d record.Direction, b []byte) error {
		map[record.Direction]*bytes.Buffer{record.DirectionRequest: &request, record.DirectionUpstream: &upstream, record.DirectionResponse: &response}[d].Write(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(response.Bytes(), alice.Response) || !bytes.Equal(request.Bytes(), alice.Request) || !bytes.Equal(upstream.Bytes(), alice.Upstream) {
		t.Error("the bytes are not the recorded ones")
	}
	for _, direction := range []record.Direction{record.DirectionRequest, record.DirectionUpstream, record.DirectionResponse} {
		if p, ok := d.Payload(direction); !ok || !p.Intact || p.SHA256 != d.Digests[direction.String()] {
			t.Errorf("%s: %+v", direction, p)
		}
	}
	if len(d.Records) != 3 || d.Records[0].Sequence != ids[0].Sequence || d.Records[0].Leaf == "" || len(d.Heads) != 1 || d.Source != "10.1.2.3" || d.Intent == nil || d.Outcome == nil {
		t.Errorf("%+v", d)
	}

	if d, err = search.Find(context.Background(), config(t, v), ids[3], nil); err != nil || d.Result != record.ResultInterrupted || d.ClosedBy == "" || d.Records[len(d.Records)-1].Kind != "outcome" {
		t.Errorf("interrupted: %+v, %v", d, err)
	}
	if d, err = search.Find(context.Background(), config(t, v), ids[4], nil); err != nil || d.Result != search.Pending || len(d.Probes) != 1 {
		t.Errorf("pending: %+v, %v", d, err)
	}
	other := ids[0]
	other.Epoch[3] ^= 1
	inner, beyond := ids[0], ids[4]
	inner.Sequence++
	beyond.Sequence += 1000
	for id, want := range map[record.ID]string{other: "nothing of this epoch", inner: "no exchange begins", beyond: "up to record"} {
		if _, err := search.Find(context.Background(), config(t, v), id, nil); !errors.Is(err, search.ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", id, err, want)
		}
	}
}

// TestBounded holds that a scan keeps nothing of what it passed.
func TestBounded(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	for i := range 300 {
		x := bob
		x.Session = fmt.Sprintf("s%d", i)
		g.Run(x)
		g.Cut()
	}
	k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant, Keys: 8})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := search.Scan(context.Background(), search.Config{Vault: v, Keys: k}, search.Filter{}, func(x *search.Exchange) error {
		if x.Unreadable != "" {
			t.Fatal(x.Unreadable)
		}
		n++
		return nil
	}); err != nil || n != 300 {
		t.Errorf("%d, %v", n, err)
	}
	if held := k.Held(); held > 8 {
		t.Errorf("the keyring holds %d keys, limit 8", held)
	}
}
