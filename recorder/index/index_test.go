package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault"
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

func folder(t testing.TB) *Folder {
	t.Helper()
	f, err := OpenFolder(filepath.Join(t.TempDir(), "index"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func config(t testing.TB, v *ledgertest.Vault, s Store) Config {
	t.Helper()
	k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	return Config{Vault: v, Keys: k, Store: s, Warn: func(err error) { t.Logf("warning: %v", err) }, Now: func() time.Time { return ledgertest.Start.AddDate(0, 1, 0) }}
}

func mustBuild(t testing.TB, c Config) Stats {
	t.Helper()
	s, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sound fails the test where the index is not what the vault says.
func sound(t testing.TB, c Config) *Report {
	t.Helper()
	r, err := Check(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("%+v", f)
	}
	return r
}

func all(t testing.TB, s Store) map[string]*Row {
	t.Helper()
	rows := map[string]*Row{}
	if _, err := Scan(t.Context(), s, Filter{}, func(r *Row) error {
		if rows[r.Exchange] != nil {
			t.Errorf("%s is there twice", r.Exchange)
		}
		rows[r.Exchange] = r
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// objects are the files of rows by name, with their digests.
func objects(t testing.TB, s Store) map[string]string {
	t.Helper()
	m := map[string]string{}
	for name, err := range s.List(t.Context(), RowsPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := s.Read(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		m[name] = digest(b)
	}
	return m
}

func equal(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for name, d := range want {
		if got[name] != d {
			t.Errorf("%s: %s is not the same file", what, name)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%s: %s should not be there", what, name)
		}
	}
}

var (
	alice = ledgertest.Exchange{
		Session: "salice", Subject: "alice", Email: "alice@corp.example", Groups: []string{"corp/analysts", "corp/all"},
		SQL: "SELECT name FROM `p1.sales.orders`", Parameters: []byte(`[{"name":"x"}]`), Rows: 3,
		Request: []byte(`{"query":"..."}`), Upstream: []byte(`{"query":"...","labels":{}}`), Response: bytes.Repeat([]byte("0123456789"), 20000),
		Job:        &record.Job{Project: "p1", Location: "US", ID: "job_1"},
		Provenance: &record.Provenance{Profile: "github", Repository: "corp/etl", Commit: "abcdef0123456789", Workflow: "nightly"},
		Asserted:   record.Asserted{Agent: "etl", Model: "m-1", Labels: map[string]string{"team": "sales", "a": "b"}},
	}
	bob = ledgertest.Exchange{
		Session: "sbob", Subject: "bob", Groups: []string{"other/analysts"}, Project: "p2", Connection: "finance", SQL: "DROP TABLE x",
		Deny: []record.Reason{{Code: "read_only", Message: "DDL is not allowed"}}, Response: []byte(`{"error":{}}`),
	}
	page = ledgertest.Exchange{
		Session: "salice", Subject: "alice", Method: "bigquery.tabledata.list", Dataset: "sales", Table: "orders", Received: true, Response: []byte(`{"rows":[]}`),
	}
)

// world is a vault with two gateways, several classes, exchanges over segments,
// midnight and a crash.
type world struct {
	v   *ledgertest.Vault
	ids map[string]record.ID
}

func newWorld() *world {
	w := &world{v: ledgertest.New(), ids: map[string]record.ID{}}
	g := ledgertest.NewGateway(w.v, "gw-1", public)
	g.Years = map[string]int{"long": 7}
	g.Begin()
	w.ids["alice"] = g.Run(alice)
	g.Cut()
	long := g.Start(alice) // its outcome comes two segments later
	w.ids["long"] = long.ID
	g.Cut()
	g.Class = "long"
	w.ids["bob"] = g.Run(bob) // in a part of its own
	g.Class = "standard"
	g.Cut()
	long.Finish()
	w.ids["page"] = g.Run(page)
	g.Now = time.Date(2026, 3, 14, 23, 59, 59, 999e6, time.UTC)
	over := g.Start(page) // received before midnight
	w.ids["midnight"] = over.ID
	over.Finish()
	g.Cut()
	w.ids["crashed"] = g.Start(alice).ID
	g.Crash()
	g.Now = g.Now.Add(72 * time.Hour)
	g.Begin()
	w.ids["next"] = g.Run(bob)
	w.ids["pending"] = g.Start(page).ID
	g.Cut()

	h := ledgertest.NewGateway(w.v, "gw-2", public)
	h.Begin()
	for i := range 20 {
		x := bob
		x.Session = fmt.Sprintf("s%d", i)
		h.Run(x)
		if i%3 == 0 {
			h.Cut()
		}
	}
	h.Close()
	return w
}

func TestBuild(t *testing.T) {
	w := newWorld()
	s := folder(t)
	c := config(t, w.v, s)
	stats := mustBuild(t, c)
	rows := all(t, s)
	if len(rows) != 28 || stats.Exchanges != 28 || stats.Unreadable != 0 {
		t.Errorf("%d rows, %+v", len(rows), stats)
	}
	for name, want := range map[string]string{"alice": "delivered", "long": "delivered", "bob": "denied", "page": "delivered", "midnight": "delivered", "crashed": "interrupted", "next": "denied", "pending": "pending"} {
		r := rows[w.ids[name].String()]
		if r == nil || r.Result != want {
			t.Errorf("%s: %+v, want %s", name, r, want)
		}
	}
	a := rows[w.ids["alice"].String()]
	if a.Subject != "alice" || a.Issuer != "corp" || a.SQL != alice.SQL || a.Repository != "corp/etl" || a.Decision != "allow" || *a.RowCount != 3 ||
		*a.BytesOut != 200000 || *a.BytesIn != int64(len(alice.Request)) || a.Job != "job_1" || a.Status != 200 || a.LatencyUS <= 0 || a.Agent != "etl" ||
		!slices.Equal(a.GroupNames, alice.Groups) || !slices.Equal(a.Labels, []string{"a=b", "team=sales"}) || len(a.Keys) != 1 || a.Class != "standard" ||
		a.Time() != ledgertest.Start.Add(time.Millisecond) && a.Time().Sub(ledgertest.Start) > time.Second || len(a.SQLSHA256) != 64 || a.Expires == 0 {
		t.Errorf("%+v", a)
	}
	if r := rows[w.ids["bob"].String()]; r.Class != "long" || r.Rule != "read_only" || !strings.HasSuffix(r.Segment, ".long.seg") && !strings.HasSuffix(r.Segment, ".part") {
		t.Errorf("%+v", r)
	}
	if r := rows[w.ids["crashed"].String()]; r.ClosedBy == "" || r.SQL == "" || r.Cause == "" {
		t.Errorf("%+v", r)
	}
	if r := rows[w.ids["page"].String()]; r.Decided == 0 || r.Table != "orders" {
		t.Errorf("%+v", r)
	}
	if r := sound(t, c); r.Checked != 28 || r.Behind != 0 || r.Expired != 0 {
		t.Errorf("%+v", r)
	}
	// A second build has nothing to do; one from the start makes the same files.
	was := objects(t, s)
	if again := mustBuild(t, c); again.Segments != 0 || again.Files != 0 {
		t.Errorf("the second build: %+v", again)
	}
	if _, err := Rebuild(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	equal(t, "rebuild", objects(t, s), was)
	// Rows lie in the partition of their day.
	for name := range was {
		if strings.Contains(name, "dt=2026-03-15") && !strings.Contains(name, w.ids["crashed"].Epoch.String()) {
			t.Errorf("file %s", name)
		}
	}
	// So they do whatever is held in memory, and however often it is committed.
	for _, small := range []struct{ memory, commit int }{{1, 1}, {1, 100}, {1 << 30, 1}, {20000, 3}} {
		s := folder(t)
		c := config(t, w.v, s)
		c.memory, c.commitEvery = small.memory, small.commit
		mustBuild(t, c)
		equal(t, fmt.Sprint(small), objects(t, s), was)
		sound(t, c)
	}
}

// TestIncremental builds after each segment that comes, in whichever order.
func TestIncremental(t *testing.T) {
	w := newWorld()
	whole := folder(t)
	mustBuild(t, config(t, w.v, whole))
	want := objects(t, whole)
	segments := w.v.Names(vault.SegmentsPrefix)
	for name, order := range map[string][]string{"in order": segments, "backwards": reversed(segments), "mixed": mixed(segments)} {
		s := folder(t)
		v := w.v.Clone()
		for _, n := range segments {
			delete(v.Files, n)
		}
		for _, n := range order {
			v.Files[n] = w.v.Files[n]
			if strings.HasSuffix(n, ".part") {
				continue // parts come before their segment
			}
			c := config(t, v, s)
			mustBuild(t, c)
			all(t, s)
		}
		c := config(t, v, s)
		mustBuild(t, c)
		sound(t, c)
		equal(t, name, objects(t, s), want)
	}
}

func reversed(names []string) []string {
	r := slices.Clone(names)
	slices.Reverse(r)
	return partsFirst(r)
}

func mixed(names []string) []string {
	var r []string
	for i := range names {
		r = append(r, names[(i*5+3)%len(names)])
	}
	if len(slices.Compact(slices.Sorted(slices.Values(r)))) != len(names) {
		panic("not a permutation")
	}
	return partsFirst(r)
}

func partsFirst(names []string) []string {
	var parts, rest []string
	for _, n := range names {
		if strings.HasSuffix(n, ".part") {
			parts = append(parts, n)
		} else {
			rest = append(rest, n)
		}
	}
	return append(parts, rest...)
}

// faulty fails at one write, before it was done or after.
type faulty struct {
	Store
	left  int
	after bool
}

var errFault = errors.New("fault")

func (f *faulty) Write(ctx context.Context, name, version string, b []byte) (string, error) {
	if f.left--; f.left == 0 && !f.after {
		return "", errFault
	}
	v, err := f.Store.Write(ctx, name, version, b)
	if f.left == 0 && err == nil {
		return "", errFault
	}
	return v, err
}

func (f *faulty) Remove(ctx context.Context, name, version string) error {
	if f.left--; f.left == 0 && !f.after {
		return errFault
	}
	err := f.Store.Remove(ctx, name, version)
	if f.left == 0 && err == nil {
		return errFault
	}
	return err
}

// TestCrash cuts builds and rebuilds off at each step, before it and after it.
func TestCrash(t *testing.T) {
	w := newWorld()
	whole := folder(t)
	mustBuild(t, config(t, w.v, whole))
	want := objects(t, whole)
	for _, how := range []string{"build", "rebuild"} {
		for _, after := range []bool{false, true} {
			for step := 1; ; step += 1 + step/20 {
				s := folder(t)
				c := config(t, w.v, &faulty{Store: s, left: step, after: after})
				c.memory, c.commitEvery = 1, 4
				run := Build
				if how == "rebuild" {
					mustBuild(t, config(t, w.v, s))
					stray(t, s)
					run = Rebuild
				}
				_, err := run(t.Context(), c)
				if err == nil {
					if step < 10 {
						t.Errorf("only %d steps", step)
					}
					break
				}
				if !errors.Is(err, errFault) {
					t.Fatal(err)
				}
				if how == "build" {
					all(t, s) // nothing is doubled
				}
				if how == "rebuild" && step == 1 && !after {
					continue // nothing says yet that it began
				}
				c = config(t, w.v, s)
				mustBuild(t, c)
				equal(t, fmt.Sprintf("%s, step %d, after %t", how, step, after), objects(t, s), want)
				if t.Failed() {
					return
				}
			}
		}
	}
}

// stray puts rows where they do not belong: only a rebuild takes them away.
func stray(t testing.TB, s Store) {
	t.Helper()
	for name := range objects(t, s) {
		b, _, err := s.Read(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		id, err := parseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		id.Day = "2026-01-01"
		if _, err := s.Write(t.Context(), id.name(), "", b); err != nil {
			t.Fatal(err)
		}
		return
	}
}

func TestTampered(t *testing.T) {
	w := newWorld()
	base := folder(t)
	mustBuild(t, config(t, w.v, base))
	id := w.ids["alice"]
	home := func(s Store, name string) string {
		for n := range s.List(t.Context(), RowsPrefix) {
			if strings.Contains(n, id.Epoch.String()) {
				return n
			}
		}
		return name
	}
	edit := func(s Store, name string, do func([]*Row) []*Row) {
		b, v, err := s.Read(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		var rows []*Row
		if err := decode(b, func(r *Row) error { rows = append(rows, r); return nil }); err != nil {
			t.Fatal(err)
		}
		b, err = encode(do(rows), packed)
		if err == nil {
			_, err = s.Write(t.Context(), name, v, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	one := func(rows []*Row, do func(*Row)) []*Row {
		for _, r := range rows {
			if r.Exchange == id.String() {
				do(r)
			}
		}
		return rows
	}
	for name, test := range map[string]struct {
		do   func(s Store)
		code Code
		ids  []string
	}{
		"SQL changed": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row { return one(r, func(r *Row) { r.SQL = "SELECT 1" }) })
		}, Differs, []string{id.String()}},
		"principal changed": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row { return one(r, func(r *Row) { r.Subject = "bob" }) })
		}, Differs, []string{id.String()}},
		"time changed": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row { return one(r, func(r *Row) { r.Received++ }) })
		}, Differs, []string{id.String()}},
		"list cut": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row { return one(r, func(r *Row) { r.GroupNames = nil }) })
		}, Differs, []string{id.String()}},
		"expiry changed": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row { return one(r, func(r *Row) { r.Expires = 1 }) })
		}, Differs, []string{id.String()}},
		"row removed": {func(s Store) { edit(s, home(s, ""), func(r []*Row) []*Row { return r[1:] }) }, Missing, []string{id.String()}},
		"row doubled": {func(s Store) { edit(s, home(s, ""), func(r []*Row) []*Row { return append(r, r[0]) }) }, Extra, []string{id.String()}},
		"row invented": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row {
				x := *r[0]
				x.Sequence, x.Exchange = 7777, record.ID{Epoch: id.Epoch, Sequence: 7777}.String()
				return append(r, &x)
			})
		}, Extra, []string{record.ID{Epoch: id.Epoch, Sequence: 7777}.String()}},
		"file copied to another day": {func(s Store) {
			b, _, _ := s.Read(t.Context(), home(s, ""))
			f, _ := parseFile(home(s, ""))
			f.Day = "2026-02-01"
			if _, err := s.Write(t.Context(), f.name(), "", b); err != nil {
				t.Fatal(err)
			}
		}, Extra, nil},
		"file renamed": {func(s Store) {
			if _, err := s.Write(t.Context(), "exchanges/dt=2026-03-14/other.parquet", "", []byte("x")); err != nil {
				t.Fatal(err)
			}
		}, Broken, nil},
		"file removed": {func(s Store) {
			if err := remove(t.Context(), s, home(s, "")); err != nil {
				t.Fatal(err)
			}
		}, Missing, nil},
		"bytes changed": {func(s Store) {
			b, v, _ := s.Read(t.Context(), home(s, ""))
			b[len(b)-20] ^= 0xff
			if _, err := s.Write(t.Context(), home(s, ""), v, b); err != nil {
				t.Fatal(err)
			}
		}, Broken, nil},
		"row changed, and the state set back": {func(s Store) {
			edit(s, home(s, ""), func(r []*Row) []*Row { return one(r, func(r *Row) { r.SQL = "SELECT 1" }) })
			if err := remove(t.Context(), s, stateName("gw-1", id.Epoch)); err != nil {
				t.Fatal(err)
			}
		}, Differs, []string{id.String()}},
	} {
		t.Run(name, func(t *testing.T) {
			s := folder(t)
			if err := os.CopyFS(s.dir, os.DirFS(base.dir)); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
			test.do(s)
			r, err := Check(t.Context(), config(t, w.v, s))
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Findings) == 0 || r.Findings[0].Code != test.code || test.ids != nil && (len(r.Findings) != 1 || r.Findings[0].Exchange != test.ids[0]) {
				t.Errorf("%+v", r.Findings)
			}
			if _, err := Rebuild(t.Context(), config(t, w.v, s)); err != nil {
				t.Fatal(err)
			}
			sound(t, config(t, w.v, s))
		})
	}
}

func TestBehind(t *testing.T) {
	w := newWorld()
	s := folder(t)
	segments := w.v.Names(vault.SegmentsPrefix)
	v := w.v.Clone()
	for _, n := range segments[2:] {
		delete(v.Files, n)
	}
	mustBuild(t, config(t, v, s))
	r := sound(t, config(t, w.v, s))
	if r.Behind == 0 || r.Checked == 0 {
		t.Errorf("%+v", r)
	}
}

func TestKeys(t *testing.T) {
	w := newWorld()
	// Another tenant's keyset opens nothing: nothing is written.
	other, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	s := folder(t)
	c := config(t, w.v, s)
	if c.Keys, err = keyring.New(keyring.Config{Source: w.v, Tenant: other}); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), c); !errors.Is(err, ErrKeyset) || len(all(t, s)) != 0 {
		t.Errorf("another's keyset: %v", err)
	}
	// A key that is missing leaves a row of what is not sealed.
	v := w.v.Clone()
	for _, name := range v.Names(vault.KeysPrefix) {
		if strings.Contains(name, w.ids["next"].Epoch.String()) {
			delete(v.Files, name)
		}
	}
	c = config(t, v, s)
	if stats := mustBuild(t, c); stats.Unreadable == 0 {
		t.Errorf("%+v", stats)
	}
	r := all(t, s)[w.ids["next"].String()]
	if r == nil || r.Unreadable == "" || r.SQL != "" || r.Subject != "" || r.Result != Unknown || len(r.Keys) != 1 {
		t.Errorf("%+v", r)
	}
	sound(t, c)
}

func TestExpired(t *testing.T) {
	w := newWorld()
	s := folder(t)
	c := config(t, w.v, s)
	mustBuild(t, c)
	// Two years on all but what is kept for seven has expired; one segment is
	// still there, under a hold.
	now := func() time.Time { return ledgertest.Start.AddDate(2, 0, 0) }
	held := all(t, s)[w.ids["alice"].String()].Segment
	for _, n := range w.v.Names(vault.SegmentsPrefix) {
		if !strings.Contains(n, ".long.") && n != held {
			delete(w.v.Files, n)
		}
	}
	c = config(t, w.v, s)
	c.Now = now
	if r := sound(t, c); r.Expired != 26 {
		t.Errorf("%+v", r)
	}
	if stats := mustBuild(t, c); stats.Expired != 26 {
		t.Errorf("%+v", stats)
	}
	rows := all(t, s)
	if len(rows) != 2 || rows[w.ids["alice"].String()] == nil || rows[w.ids["bob"].String()] == nil {
		t.Errorf("%v", rows)
	}
	sound(t, c)
	if stats := mustBuild(t, c); stats.Expired != 0 || stats.Files != 0 {
		t.Errorf("again: %+v", stats)
	}
}

func TestScan(t *testing.T) {
	w := newWorld()
	s := folder(t)
	mustBuild(t, config(t, w.v, s))
	midnight := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)
	n := 0
	stats, err := Scan(t.Context(), s, Filter{Since: midnight, Until: midnight.AddDate(0, 0, 10), Match: func(r *Row) bool { return r.Decision == "deny" }}, func(*Row) error { n++; return nil })
	if err != nil || n != 1 || stats.Matched != 1 {
		t.Errorf("%d, %+v, %v", n, stats, err)
	}
	if stats, err = Scan(t.Context(), s, Filter{Since: midnight.AddDate(1, 0, 0)}, func(*Row) error { return nil }); err != nil || stats.Files != 0 {
		t.Errorf("%+v, %v", stats, err)
	}
	if _, err = Scan(t.Context(), s, Filter{}, func(*Row) error { return errFault }); !errors.Is(err, errFault) {
		t.Errorf("%v", err)
	}
}

func TestSearch(t *testing.T) {
	r := full(1)
	r.Decision, r.Result = "allow", "delivered"
	x := r.Search()
	for _, f := range []search.Filter{{Table: r.Reads[0]}, {Table: r.Writes[0]}, {Decision: "would_deny"}, {Principal: r.Issuer + "/" + r.Subject}, {Group: r.GroupNames[0]}, {Commit: r.Commit}, {Job: r.Job}, {Reason: r.Reasons[1]}, {SQL: r.SQL}} {
		if !f.Fits(x) {
			t.Errorf("%+v does not fit %+v", f, x)
		}
	}
	if (&search.Filter{Decision: "deny"}).Fits(x) {
		t.Error("a denial fits")
	}
}

// TestSplit holds that files are cut by sequences, and by bytes within.
func TestSplit(t *testing.T) {
	s := &epochState{}
	for _, test := range []struct {
		seq  uint64
		size int
		file uint64
	}{{1, 10, 1}, {100, fileBytes - 20, 1}, {200, 11, 200}, {65536, 1, 200}, {65537, fileBytes, 65537}, {65540, 1, 65540}, {65541, 1, 65540}, {200000, 1, 196609}} {
		s.begin(test.seq, test.size)
		if got := s.file(test.seq); got != test.file {
			t.Errorf("%d: file %d, want %d", test.seq, got, test.file)
		}
	}
	was := *s
	s.begin(200, fileBytes)
	if s.High != was.High || s.Bytes != was.Bytes || len(s.Splits) != len(was.Splits) || s.file(150) != 1 {
		t.Errorf("reading again changed it: %+v", s)
	}
}

func TestFolder(t *testing.T) {
	s := folder(t)
	stores(t, s)
	if err := os.WriteFile(filepath.Join(s.dir, tempDir, "left"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, tempDir)); len(left) != 0 {
		t.Errorf("%v", left)
	}
	v := t.TempDir()
	if err := os.Mkdir(filepath.Join(v, "segments"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFolder(v, true); err == nil || !strings.Contains(err.Error(), "that is a vault") {
		t.Errorf("a vault was taken: %v", err)
	}
}

// stores holds a store to its contract.
func stores(t *testing.T, s Store) {
	t.Helper()
	ctx := t.Context()
	v1, err := s.Write(ctx, "a/b", "", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(ctx, "a/b", "", []byte("two")); !errors.Is(err, ErrChanged) {
		t.Errorf("made anew: %v", err)
	}
	v2, err := s.Write(ctx, "a/b", v1, []byte("two"))
	if err != nil || v2 == v1 {
		t.Fatalf("%q, %v", v2, err)
	}
	if _, err := s.Write(ctx, "a/b", v1, []byte("three")); !errors.Is(err, ErrChanged) {
		t.Errorf("in the place of an old version: %v", err)
	}
	if err := s.Remove(ctx, "a/b", v1); !errors.Is(err, ErrChanged) {
		t.Errorf("an old version removed: %v", err)
	}
	if b, v, err := s.Read(ctx, "a/b"); string(b) != "two" || v != v2 || err != nil {
		t.Errorf("%q, %q, %v", b, v, err)
	}
	if _, err := s.Write(ctx, "a/c", "", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := names(ctx, s, "a/"); err != nil || !slices.Equal(got, []string{"a/b", "a/c"}) {
		t.Errorf("%q, %v", got, err)
	}
	for range 2 {
		if err := s.Remove(ctx, "a/b", v2); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := s.Read(ctx, "a/b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read of what is not there: %v", err)
	}
	if got, err := names(ctx, s, "nothing/"); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}
