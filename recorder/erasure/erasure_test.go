package erasure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/erasure"
	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault"
)

var tenant = func() (h tenantKeys) {
	private, err := record.NewTenant()
	if err != nil {
		panic(err)
	}
	h.aged = func(s keyring.Source, most time.Duration, now func() time.Time) *keyring.Keyring {
		k, err := keyring.New(keyring.Config{Source: s, Tenant: private, MaxAge: most, Now: now})
		if err != nil {
			panic(err)
		}
		return k
	}
	h.ring = func(s keyring.Source) *keyring.Keyring { return h.aged(s, 0, nil) }
	h.gateway = func(v *ledgertest.Vault, name string) *ledgertest.Gateway {
		public, err := private.Public()
		if err != nil {
			panic(err)
		}
		return ledgertest.NewGateway(v, name, public)
	}
	return h
}()

type tenantKeys struct {
	ring    func(keyring.Source) *keyring.Keyring
	aged    func(keyring.Source, time.Duration, func() time.Time) *keyring.Keyring
	gateway func(*ledgertest.Vault, string) *ledgertest.Gateway
}

// sample is a vault in a folder: alice in two epochs, with a session of which
// one key only has a received record; bob; and classes in parts.
func sample(t testing.TB) (*vault.Folder, []record.ID) {
	t.Helper()
	mem := ledgertest.New()
	g := tenant.gateway(mem, "gw-1")
	g.Longest = "standard"
	g.Years = map[string]int{"standard": 3}
	var ids []record.ID
	run := func(session, subject, sql, class string, received bool) {
		g.Class = class
		ids = append(ids, g.Run(ledgertest.Exchange{Session: session, Subject: subject, SQL: sql, Received: received, Request: []byte(sql), Response: []byte("rows")}))
	}
	g.Begin()
	run("s-alice", "alice", "SELECT 'canary-a1'", "standard", true)
	run("s-bob", "bob", "SELECT 'b1'", "short", false)
	run("s-alice", "alice", "SELECT 'canary-a2'", "short", false)
	g.Cut()
	run("s-bob", "bob", "SELECT 'b2'", "standard", true)
	g.Cut()
	g.Crash()
	g.Now = g.Now.Add(24 * time.Hour)
	g.Begin()
	run("s-alice", "alice", "SELECT 'canary-a3'", "standard", true)
	run("s-alice2", "alice", "SELECT 'canary-a4'", "standard", false)
	g.Cut()
	g.Close()
	dir := filepath.Join(t.TempDir(), "vault")
	if err := mem.Write(dir); err != nil {
		t.Fatal(err)
	}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Beside: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v, ids
}

// readable lists the exchanges whose SQL can be read, by their place in ids.
func readable(t testing.TB, v erasure.Vault, ids []record.ID) string {
	t.Helper()
	var b strings.Builder
	for i, id := range ids {
		d, err := search.Find(t.Context(), search.Config{Vault: v, Keys: tenant.ring(v)}, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d.SQL != "" {
			fmt.Fprint(&b, i)
		}
	}
	return b.String()
}

func find(t testing.TB, v erasure.Vault, s erasure.Selection) *erasure.Plan {
	t.Helper()
	holds, err := retention.Holds(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	p, err := erasure.Find(t.Context(), v, tenant.ring(v), s, holds)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var options = erasure.Options{By: "dpo", Reason: "request 4711"}

var clear = erasure.Clear{Gone: []string{"gw-1"}, Transport: new(time.Duration)}

func verify(t testing.TB, v ledger.Vault) *ledger.Report {
	t.Helper()
	r, err := ledger.Verify(t.Context(), v, ledger.Options{Keys: tenant.ring(v)})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("finding: %s", f)
	}
	return r
}

func TestScopes(t *testing.T) {
	day2 := ledgertest.Start.Add(20 * time.Hour)
	for _, tt := range []struct {
		name string
		of   func(ids []record.ID) erasure.Selection
		keys int
		left string
		kept int
	}{
		{"a session, of two epochs", func([]record.ID) erasure.Selection { return erasure.Selection{Session: "s-alice"} }, 2, "135", 0},
		{"an exchange, with its session in its epoch", func(ids []record.ID) erasure.Selection { return erasure.Selection{Exchange: ids[2]} }, 1, "1345", 0},
		{"a principal", func([]record.ID) erasure.Selection { return erasure.Selection{Principal: "corp/alice"} }, 3, "13", 0},
		{"a principal, until", func([]record.ID) erasure.Selection {
			return erasure.Selection{Principal: "corp/alice", Until: day2}
		}, 1, "1345", 0},
		{"a principal, until within", func([]record.ID) erasure.Selection {
			return erasure.Selection{Principal: "corp/bob", Until: ledgertest.Start.Add(20 * time.Millisecond)}
		}, 0, "012345", 1},
		{"another's principal of that name", func([]record.ID) erasure.Selection { return erasure.Selection{Principal: "cluster/alice"} }, 0, "012345", 0},
		{"nobody", func([]record.ID) erasure.Selection { return erasure.Selection{Session: "s-ali"} }, 0, "012345", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, ids := sample(t)
			p := find(t, v, tt.of(ids))
			if len(p.Keys) != tt.keys || len(p.Later) != tt.kept || len(p.Damage) != 0 || p.Gone+p.Unread != 0 {
				t.Fatalf("plan %+v", p)
			}
			x, err := erasure.Erase(t.Context(), v, v, p, options)
			if tt.keys == 0 {
				if err == nil || x != nil {
					t.Errorf("erased nothing as %v, %v", x, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if left := readable(t, v, ids); left != tt.left {
				t.Errorf("readable are %s, want %s", left, tt.left)
			}
			r := verify(t, v)
			if r.KeysErased != int64(tt.keys) || r.KeysMissing != 0 || len(r.Erasures) != 1 || r.Erasures[0].Unfinished != 0 || r.Erasures[0].Complete != nil {
				t.Errorf("report: %d erased, %d missing, %+v", r.KeysErased, r.KeysMissing, r.Erasures)
			}
			// Nothing of what is kept names the session or the principal.
			for name, err := range v.List(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				b := content(t, v, name)
				for _, word := range []string{"alice", "canary", "s-alice"} {
					if bytes.Contains(b, []byte(word)) {
						t.Errorf("%s holds %q", name, word)
					}
				}
			}
			// Done again, it is told, and finished.
			if again := find(t, v, erasure.Selection{Exchange: ids[2]}); len(again.Erased) != 1 || len(again.Keys) != 0 {
				t.Errorf("again: %+v", again)
			}
			pending, err := erasure.Finish(t.Context(), v, v, x, clear, options)
			if err != nil || len(pending) != 0 {
				t.Errorf("pending %v, %v", pending, err)
			}
			if r := verify(t, v); r.Erasures[0].Complete == nil {
				t.Error("not complete")
			}
		})
	}
}

func content(t testing.TB, v erasure.Vault, name string) []byte {
	t.Helper()
	r, err := v.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHolds(t *testing.T) {
	for _, tt := range []struct {
		name string
		hold func(v *vault.Folder, ids []record.ID) retention.Hold
		free bool
	}{
		{"on an exchange of the key", func(_ *vault.Folder, ids []record.ID) retention.Hold {
			return retention.Hold{Exchange: ids[2].String()}
		}, false},
		{"on another's exchange", func(_ *vault.Folder, ids []record.ID) retention.Hold {
			return retention.Hold{Exchange: ids[1].String()}
		}, true},
		{"on a time", func(*vault.Folder, []record.ID) retention.Hold {
			return retention.Hold{From: ledgertest.Start.Add(20 * time.Hour)}
		}, false},
		{"on a time before", func(*vault.Folder, []record.ID) retention.Hold { return retention.Hold{Until: ledgertest.Start} }, true},
		{"on the session", func(v *vault.Folder, _ []record.ID) retention.Hold {
			keys, _, err := retention.SessionKeys(t.Context(), v, tenant.ring(v), "s-alice")
			if err != nil || len(keys) != 2 {
				t.Fatalf("the session's keys are %v, %v", keys, err)
			}
			return retention.Hold{Session: "s-alice", Keys: keys}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, ids := sample(t)
			h := tt.hold(v, ids)
			h.By, h.Reason, h.Created = "legal", "case", ledgertest.Start.AddDate(1, 0, 0)
			if err := retention.Add(t.Context(), v, &h); err != nil {
				t.Fatal(err)
			}
			p := find(t, v, erasure.Selection{Session: "s-alice"})
			_, err := erasure.Erase(t.Context(), v, v, p, options)
			if tt.free {
				if err != nil || len(p.Conflicts) != 0 {
					t.Errorf("%v, %+v", err, p.Conflicts)
				}
				return
			}
			if !errors.Is(err, erasure.ErrHeld) || len(p.Conflicts) != 1 || readable(t, v, ids) != "012345" {
				t.Errorf("%v, %+v", err, p.Conflicts)
			}
			if ids, err := erasure.List(t.Context(), v); err != nil || len(ids) != 0 {
				t.Errorf("there are erasures %v, %v", ids, err)
			}
		})
	}
	t.Run("that came after the plan", func(t *testing.T) {
		v, ids := sample(t)
		p := find(t, v, erasure.Selection{Session: "s-alice"})
		h := retention.Hold{Exchange: ids[4].String(), By: "legal", Reason: "case", Created: ledgertest.Start}
		if err := retention.Add(t.Context(), v, &h); err != nil {
			t.Fatal(err)
		}
		x, err := erasure.Erase(t.Context(), v, v, p, options)
		if !errors.Is(err, erasure.ErrHeld) || readable(t, v, ids) != "012345" {
			t.Fatalf("%v", err)
		}
		if _, err := erasure.Finish(t.Context(), v, v, x, clear, options); !errors.Is(err, erasure.ErrHeld) {
			t.Errorf("finish: %v", err)
		}
		if r := verify(t, v); r.Erasures[0].Unfinished != 2 || r.KeysErased != 0 {
			t.Errorf("%+v", r.Erasures)
		}
		if err := retention.Remove(t.Context(), v, retention.Removal{ID: h.ID, Time: time.Now(), By: "legal", Reason: "over"}); err != nil {
			t.Fatal(err)
		}
		if pending, err := erasure.Finish(t.Context(), v, v, x, clear, options); err != nil || len(pending) != 0 || readable(t, v, ids) != "135" {
			t.Errorf("finish: %v, %v", pending, err)
		}
	})
	t.Run("that cannot be read", func(t *testing.T) {
		v, ids := sample(t)
		p := find(t, v, erasure.Selection{Session: "s-alice"})
		if err := v.Create(t.Context(), "holds/x.json", strings.NewReader("{")); err != nil {
			t.Fatal(err)
		}
		if _, err := erasure.Erase(t.Context(), v, v, p, options); err == nil || readable(t, v, ids) != "012345" {
			t.Errorf("%v", err)
		}
	})
}

// faulty fails at one of its writes: before it, or after it was done.
type faulty struct {
	*vault.Folder
	at   int
	done bool
	n    int
}

var errFault = errors.New("injected fault")

func (f *faulty) step(do func() error) error {
	f.n++
	if f.n != f.at {
		if f.n > f.at {
			return errFault // the process is gone
		}
		return do()
	}
	if f.done {
		if err := do(); err != nil {
			return err
		}
	}
	return errFault
}

func (f *faulty) Create(ctx context.Context, name string, r io.Reader) error {
	return f.step(func() error { return f.Folder.Create(ctx, name, r) })
}

func (f *faulty) EraseKey(ctx context.Context, name string) error {
	return f.step(func() error { return f.Folder.EraseKey(ctx, name) })
}

// TestCrash cuts an erasure off at each of its writes. The vault is sound in
// each state, nothing but the selection is touched, and finish ends it.
func TestCrash(t *testing.T) {
	const writes = 5 // a note, two tombstones, two keys
	for at := 1; at <= writes; at++ {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d done=%v", at, done), func(t *testing.T) {
				v, ids := sample(t)
				f := &faulty{Folder: v, at: at, done: done}
				_, err := erasure.Erase(t.Context(), f, f, find(t, v, erasure.Selection{Session: "s-alice"}), options)
				if !errors.Is(err, errFault) {
					t.Fatal(err)
				}
				r := verify(t, v)
				list, err := erasure.List(t.Context(), v)
				if err != nil {
					t.Fatal(err)
				}
				if at == 1 && !done {
					if len(list) != 0 || r.KeysErased != 0 {
						t.Errorf("%v, %+v", list, r)
					}
					return
				}
				if len(list) != 1 || len(r.Erasures) != 1 || r.KeysMissing != 0 {
					t.Fatalf("%v, %+v", list, r.Erasures)
				}
				if whole := at == writes && done; (r.Erasures[0].Unfinished == 0) != whole {
					t.Errorf("unfinished %d", r.Erasures[0].Unfinished)
				}
				for _, i := range "135" {
					if !strings.ContainsRune(readable(t, v, ids), i) {
						t.Errorf("exchange %c cannot be read", i)
					}
				}
				// The process that goes on has nothing but the id.
				x, _, err := erasure.Read(t.Context(), v, list[0])
				if err != nil {
					t.Fatal(err)
				}
				if pending, err := erasure.Finish(t.Context(), v, v, x, clear, options); err != nil || len(pending) != 0 {
					t.Errorf("pending %v, %v", pending, err)
				}
				if r := verify(t, v); r.KeysErased != 2 || r.Erasures[0].Unfinished != 0 || readable(t, v, ids) != "135" {
					t.Errorf("%d erased, %+v", r.KeysErased, r.Erasures)
				}
			})
		}
	}
}

// TestPending holds that an erasure is complete only when nothing can bring a
// key back.
func TestPending(t *testing.T) {
	v, _ := sample(t)
	p := find(t, v, erasure.Selection{Session: "s-alice"})
	x, err := erasure.Erase(t.Context(), v, v, p, options)
	if err != nil {
		t.Fatal(err)
	}
	week := 7 * 24 * time.Hour
	one, two := x.Keys[0], x.Keys[1]
	at := func(d time.Duration) func() time.Time { return func() time.Time { return x.Time.Add(d) } }
	journal := func(epoch string, files map[string]uint64) map[string]erasure.Journal {
		return map[string]erasure.Journal{"gw-1": {Epoch: epoch, Files: files}}
	}
	for _, tt := range []struct {
		name  string
		clear erasure.Clear
		now   func() time.Time
		want  []string
	}{
		{"nothing told", erasure.Clear{}, at(0), []string{"gateway gw-1: not asked", "transport: how long"}},
		{"another gateway told", erasure.Clear{Gone: []string{"gw-2"}, Transport: new(time.Duration)}, at(0), []string{"not asked"}},
		{"the transport keeps it", erasure.Clear{Gone: []string{"gw-1"}, Transport: &week}, at(week - time.Second), []string{"may be delivered again until"}},
		{"the file with the key is there", erasure.Clear{Journals: journal(two.Epoch, map[string]uint64{two.Epoch: two.First}), Transport: &week}, at(week), []string{"holds a key's frame (epoch " + two.Epoch + "): it goes when its records have been shipped and the journal has gone on to the next file, or when the gateway restarts"}},
		{"an index that fails", erasure.Clear{Gone: []string{"gw-1"}, Transport: &week, Indexes: []erasure.Index{&places{}, &places{err: errors.New("is away")}}}, at(week), []string{"index rows: what was erased may still be in it: is away"}},
		{"an old epoch is there", erasure.Clear{Journals: journal("other", map[string]uint64{one.Epoch: 1, "other": 1}), Transport: &week}, at(week), []string{"epoch " + one.Epoch}},
	} {
		pending, err := erasure.Finish(t.Context(), v, v, x, tt.clear, erasure.Options{By: "dpo", Now: tt.now})
		if err != nil {
			t.Fatal(err)
		}
		if len(pending) != len(tt.want) {
			t.Errorf("%s: pending %q", tt.name, pending)
			continue
		}
		for i := range tt.want {
			if !strings.Contains(pending[i], tt.want[i]) {
				t.Errorf("%s: pending %q, want %q", tt.name, pending[i], tt.want[i])
			}
		}
		if _, done, err := erasure.Read(t.Context(), v, x.ID); done != nil || err != nil {
			t.Fatalf("%s: complete %v, %v", tt.name, done, err)
		}
	}
	// Later files of the same epoch do not hold the key's frame.
	index := &places{}
	c := erasure.Clear{Journals: journal(two.Epoch, map[string]uint64{two.Epoch: two.First + 1}), Transport: &week, Indexes: []erasure.Index{index}}
	if pending, err := erasure.Finish(t.Context(), v, v, x, c, erasure.Options{By: "dpo", Now: at(week)}); err != nil || len(pending) != 0 {
		t.Errorf("pending %q, %v", pending, err)
	}
	if _, done, err := erasure.Read(t.Context(), v, x.ID); err != nil || done == nil || len(done.Checks) != 4 || !strings.Contains(done.Checks[1], "index rows holds no row of it (7") {
		t.Errorf("completion %+v, %v", done, err)
	}
	if !slices.Equal(index.keys, x.Keys) {
		t.Errorf("purged %v", index.keys)
	}
}

// places is an index.
type places struct {
	err  error
	keys []vault.ErasedKey
}

func (p *places) Purge(_ context.Context, keys []vault.ErasedKey) (int64, error) {
	p.keys = keys
	return 7, p.err
}

func (p *places) String() string { return "rows" }

// TestForged holds that what somebody else puts in the place of keys is found,
// or told.
func TestForged(t *testing.T) {
	secret, public, err := note.GenerateKey(nil, "acme")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := record.ParseTrust(public)
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, v ledger.Vault) *ledger.Report {
		t.Helper()
		r, err := ledger.Verify(t.Context(), v, ledger.Options{Trust: trust})
		if err != nil {
			t.Fatal(err)
		}
		var left []ledger.Finding
		for _, f := range r.Findings {
			if f.Code != ledger.CertificateMissing {
				left = append(left, f)
			}
		}
		r.Findings = left
		return r
	}
	erase := func(t *testing.T, signers ...note.Signer) (*vault.Folder, *vault.Erasure) {
		t.Helper()
		v, _ := sample(t)
		o := options
		o.Signers = signers
		x, err := erasure.Erase(t.Context(), v, v, find(t, v, erasure.Selection{Session: "s-alice"}), o)
		if err != nil {
			t.Fatal(err)
		}
		return v, x
	}
	t.Run("signed", func(t *testing.T) {
		v, _ := erase(t, signer)
		if r := check(t, v); len(r.Findings) != 0 || !strings.HasPrefix(r.Erasures[0].SignedBy, "acme+") {
			t.Errorf("%v, %+v", r.Findings, r.Erasures)
		}
	})
	t.Run("not signed", func(t *testing.T) {
		v, _ := erase(t)
		if r := check(t, v); len(r.Findings) != 0 || r.Erasures[0].SignedBy != "" {
			t.Errorf("%v, %+v", r.Findings, r.Erasures)
		}
	})
	t.Run("a changed note", func(t *testing.T) {
		v, x := erase(t, signer)
		overwrite(t, v, vault.ErasureName(x.ID), func(b []byte) []byte { return bytes.Replace(b, []byte("dpo"), []byte("ceo"), 1) })
		if r := check(t, v); r.Erasures[0].SignedBy != "" {
			t.Errorf("%+v", r.Erasures)
		}
	})
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, v *vault.Folder, x *vault.Erasure)
		want string
	}{
		{"no note", func(t *testing.T, v *vault.Folder, x *vault.Erasure) { remove(t, v, vault.ErasureName(x.ID)) }, "of which there is no note"},
		{"a note of fewer keys", func(t *testing.T, v *vault.Folder, x *vault.Erasure) {
			y := *x
			y.Keys = x.Keys[:1]
			b, err := y.Sign()
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, v, vault.ErasureName(x.ID), func([]byte) []byte { return b })
		}, "whose note does not have the key"},
		{"a broken note", func(t *testing.T, v *vault.Folder, x *vault.Erasure) {
			overwrite(t, v, vault.ErasureName(x.ID), func(b []byte) []byte { return b[:30] })
		}, "erasure note: want the line"},
		{"another's note", func(t *testing.T, v *vault.Folder, x *vault.Erasure) {
			overwrite(t, v, vault.ErasureName(x.ID), func(b []byte) []byte { return bytes.Replace(b, []byte(x.ID), []byte("x"), 1) })
		}, "is that of erasure x"},
		{"a strange name", func(t *testing.T, v *vault.Folder, _ *vault.Erasure) {
			if err := v.Create(t.Context(), "erasures/readme", strings.NewReader("")); err != nil {
				t.Fatal(err)
			}
		}, "want erasures/ID.note"},
		{"a broken tombstone, and no note", func(t *testing.T, v *vault.Folder, x *vault.Erasure) {
			remove(t, v, vault.ErasureName(x.ID))
			for _, k := range x.Keys {
				e, id, _ := k.Parse()
				overwrite(t, v, vault.TombstoneName(e, id), func([]byte) []byte { return []byte("{}") })
			}
		}, "tombstone keys/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, x := erase(t, signer)
			tt.do(t, v, x)
			r := check(t, v)
			if len(r.Findings) == 0 || !strings.Contains(r.Findings[0].String(), tt.want) {
				t.Errorf("findings %v, want %q", r.Findings, tt.want)
			}
		})
	}
	t.Run("a key that came back", func(t *testing.T) {
		v, ids := sample(t)
		p := find(t, v, erasure.Selection{Exchange: ids[0]})
		e, id, err := p.Keys[0].Parse()
		if err != nil {
			t.Fatal(err)
		}
		key := content(t, v, vault.KeyName(e, id))
		if _, err := erasure.Erase(t.Context(), v, v, p, options); err != nil {
			t.Fatal(err)
		}
		if err := v.Create(t.Context(), vault.KeyName(e, id), bytes.NewReader(key)); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, v); r.Erasures[0].Unfinished != 1 {
			t.Errorf("%+v", r.Erasures)
		}
	})
}

func remove(t testing.TB, v *vault.Folder, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(v.Dir(), name)); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t testing.TB, v *vault.Folder, name string, change func([]byte) []byte) {
	t.Helper()
	b := change(content(t, v, name))
	remove(t, v, name)
	if err := v.Create(t.Context(), name, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// TestAge holds that a program that runs on forgets a key that was erased.
func TestAge(t *testing.T) {
	v, ids := sample(t)
	now := ledgertest.Start
	k := tenant.aged(v, time.Minute, func() time.Time { return now })
	sees := func() bool {
		d, err := search.Find(t.Context(), search.Config{Vault: v, Keys: k}, ids[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		return d.SQL != ""
	}
	if !sees() {
		t.Fatal("cannot be read")
	}
	if _, err := erasure.Erase(t.Context(), v, v, find(t, v, erasure.Selection{Exchange: ids[0]}), options); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		now = now.Add(20 * time.Second)
		sees() // that it is used does not keep it
	}
	if sees() {
		t.Error("a key that was erased more than a minute ago is still used")
	}
}
