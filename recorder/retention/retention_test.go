package retention_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
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

var start = ledgertest.Start

// sample makes a vault in a folder: exchanges of sessions s0, s1, s2 in classes
// kept one, two and three years, over two epochs; and one in June.
func sample(t *testing.T) (*vault.Folder, []record.ID) {
	t.Helper()
	m := ledgertest.New()
	g := ledgertest.NewGateway(m, "gw-1", public)
	g.Years = map[string]int{"short": 1, "standard": 2, "long": 3}
	var ids []record.ID
	run := func(i int) {
		g.Class = []string{"short", "standard", "long"}[i%3]
		ids = append(ids, g.Run(ledgertest.Exchange{Session: fmt.Sprintf("s%d", i%3), Subject: "u", SQL: "SELECT 1", Response: bytes.Repeat([]byte("x"), 3000)}))
		g.Class = "short"
	}
	g.Class = "short"
	g.Begin()
	for i := range 6 {
		run(i)
		if i%2 == 1 {
			g.Cut()
		}
	}
	run(0)
	g.Cut()
	g.Crash()
	g.Now = g.Now.AddDate(0, 3, 0)
	g.Begin()
	run(3)
	g.Cut()
	run(0)
	g.Cut()
	dir := filepath.Join(t.TempDir(), "vault")
	if err := m.Write(dir); err != nil {
		t.Fatal(err)
	}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: dir, Beside: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v, ids
}

func names(t *testing.T, v *vault.Folder, prefix string) []string {
	t.Helper()
	var all []string
	for n, err := range v.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

func expire(t *testing.T, v *vault.Folder, now time.Time, do bool) *retention.Report {
	t.Helper()
	holds, err := retention.Holds(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	o := retention.Options{Holds: holds, By: "test", Now: func() time.Time { return now }}
	if do {
		o.Remove = v
	}
	r, err := retention.Expire(t.Context(), v, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func verify(t *testing.T, v ledger.Vault, now time.Time) *ledger.Report {
	t.Helper()
	keys, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ledger.Verify(t.Context(), v, ledger.Options{Keys: keys, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sound(t *testing.T, r *ledger.Report) {
	t.Helper()
	for _, f := range r.Findings {
		t.Errorf("%s: %s", f.Code, f)
	}
}

// Year after year more of the vault goes, verify holds all the way, and knows
// what expired; before its time it would be missing.
func TestExpire(t *testing.T) {
	v, _ := sample(t)
	before := names(t, v, "segments/")
	total := verify(t, v, start).Records
	for _, c := range []struct {
		years, months int
		gone          bool
	}{{0, 0, false}, {1, -1, false}, {1, 1, true}, {1, 4, true}, {2, 1, true}, {3, 1, true}, {10, 0, false}} {
		now := start.AddDate(c.years, c.months, 0)
		dry := expire(t, v, now, false)
		if got := names(t, v, "segments/"); !slices.Equal(got, before) || len(dry.Notes) != 0 {
			t.Fatalf("a dry run deleted something: %v", got)
		}
		r := expire(t, v, now, true)
		after := names(t, v, "segments/")
		if dry.Gone != r.Gone || r.Gone != len(before)-len(after) || c.gone != (r.Gone > 0) {
			t.Errorf("after %d years, %d months: %d gone, announced %d, were %d, are %d", c.years, c.months, r.Gone, dry.Gone, len(before), len(after))
		}
		before = after
		rep := verify(t, v, now)
		sound(t, rep)
		if rep.Expired.Records+rep.Records != total {
			t.Errorf("after %d years: %d expired, %d here, of %d", c.years, rep.Expired.Records, rep.Records, total)
		}
		if again := expire(t, v, now, true); again.Gone != 0 {
			t.Errorf("again: %d gone", again.Gone)
		}
		if r.Gone > 0 {
			// The note alone does not make it so before its time.
			if rep := verify(t, v, start.AddDate(0, 6, 0)); rep.Sound {
				t.Error("deleted before its time, says the note, and nothing was found")
			}
		}
	}
	// The sink goes on from a gateway's last segment.
	if len(before) != 1 {
		t.Errorf("in the end there are %v", before)
	}
}

// A note that lies is found: of another head, or of records that have not
// expired. One that is taken away leaves its records missing.
func TestNotes(t *testing.T) {
	now := start.AddDate(1, 1, 0)
	v, _ := sample(t)
	expire(t, v, now, true)
	sound(t, verify(t, v, now))
	for _, name := range names(t, v, vault.ExpiryPrefix) {
		file := filepath.Join(v.Dir(), name)
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		note, err := vault.ParseExpiry(good)
		if err != nil {
			t.Fatal(err)
		}
		if note.Entries[0].Part {
			continue // the absences say it
		}
		for what, change := range map[string]func(){
			"head before":  func() { note.Entries[0].Head = strings.Repeat("0", 64) },
			"head between": func() { note.Entries[len(note.Entries)-1].Head = strings.Repeat("0", 64) },
			"not expired":  func() { note.Entries[0].Expires = now.AddDate(1, 0, 0) },
			"another":      func() { note.Gateway = "gw-2" },
			"gone":         nil,
			"no note":      nil,
		} {
			note, err = vault.ParseExpiry(good)
			if err != nil {
				t.Fatal(err)
			}
			b := []byte("{}")
			if change != nil {
				change()
				if b, err = note.Marshal(); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if what == "gone" {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
			if verify(t, v, now).Sound {
				t.Errorf("%s: %s: nothing was found", name, what)
			}
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sound(t, verify(t, v, now))
}

// faulty fails at one call, before or after it was done.
type faulty struct {
	*vault.Folder
	n, at int
	done  bool
}

var errFault = errors.New("injected fault")

func (f *faulty) Expire(ctx context.Context, name string) error {
	if f.n++; f.n == f.at {
		if f.done {
			_ = f.Folder.Expire(ctx, name)
		}
		return errFault
	}
	return f.Folder.Expire(ctx, name)
}

// An expiry that is cut off anywhere leaves a vault that verifies, and the next
// finishes it.
func TestExpireCutOff(t *testing.T) {
	now := start.AddDate(3, 1, 0)
	whole, _ := sample(t)
	expire(t, whole, now, true)
	want := len(names(t, whole, "segments/"))
	for at := 1; ; at++ {
		for _, done := range []bool{false, true} {
			v, _ := sample(t)
			f := &faulty{Folder: v, at: at, done: done}
			_, err := retention.Expire(t.Context(), v, retention.Options{By: "test", Now: func() time.Time { return now }, Remove: f})
			if f.n < at {
				if at < 5 {
					t.Fatalf("only %d files were deleted", at)
				}
				return
			}
			if !errors.Is(err, errFault) {
				t.Fatalf("the fault became %v", err)
			}
			sound(t, verify(t, v, now))
			expire(t, v, now.Add(time.Hour), true)
			sound(t, verify(t, v, now))
			if got := len(names(t, v, "segments/")); got != want {
				t.Errorf("cut off at %d: %d files are left, want %d", at, got, want)
			}
		}
	}
}

// A vault that is not sound loses nothing.
func TestExpireDamaged(t *testing.T) {
	now := start.AddDate(5, 0, 0)
	v, _ := sample(t)
	for i, name := range names(t, v, "segments/") {
		w, _ := sample(t)
		file := filepath.Join(w.Dir(), names(t, w, "segments/")[i])
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range [][]byte{b[:len(b)-1], append(slices.Clone(b), 0), flip(b, len(b)/2), flip(b, 30)} {
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := retention.Expire(t.Context(), w, retention.Options{Now: func() time.Time { return now }, Remove: w}); err == nil {
				t.Errorf("%s: deleted what is damaged", name)
			}
			if _, err := os.Stat(file); err != nil {
				t.Error(err)
			}
		}
	}
}

func flip(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1
	return c
}

func TestHolds(t *testing.T) {
	now := start.AddDate(5, 0, 0)
	seq := func(v *vault.Folder) map[string]bool { // EPOCH-EXCHANGE of every record that is there
		have := map[string]bool{}
		for _, name := range names(t, v, "segments/") {
			s, c, err := vault.OpenSegment(t.Context(), v, name)
			if err != nil {
				t.Fatal(err)
			}
			for {
				f, err := s.Next()
				if err != nil {
					break
				}
				if f.Kind.Leaf() && f.Exchange != 0 {
					have[record.ID{Epoch: s.Header().Epoch, Sequence: f.Exchange}.String()] = true
				}
			}
			c.Close()
		}
		return have
	}
	_, ids := sample(t)
	for name, c := range map[string]struct {
		hold func(v *vault.Folder, ids []record.ID) retention.Hold
		kept []int
	}{
		"exchange": {func(_ *vault.Folder, ids []record.ID) retention.Hold {
			return retention.Hold{Exchange: ids[0].String()}
		}, []int{0}},
		"session": {func(v *vault.Folder, _ []record.ID) retention.Hold {
			k, err := keyring.New(keyring.Config{Source: v, Tenant: tenant})
			if err != nil {
				t.Fatal(err)
			}
			keys, unread, err := retention.SessionKeys(t.Context(), v, k, "s1")
			if err != nil || unread != 0 || len(keys) != 1 {
				t.Fatalf("keys %v, %d unread, %v", keys, unread, err)
			}
			return retention.Hold{Session: "s1", Keys: keys}
		}, []int{1, 4}},
		"range": {func(*vault.Folder, []record.ID) retention.Hold {
			return retention.Hold{From: start.AddDate(0, 1, 0), Until: start.AddDate(0, 6, 0)}
		}, []int{7, 8}},
	} {
		t.Run(name, func(t *testing.T) {
			v, ids := sample(t)
			h := c.hold(v, ids)
			h.Reason, h.By, h.Created = "case 4711", "legal", start.AddDate(4, 0, 0)
			if err := retention.Add(t.Context(), v, &h); err != nil {
				t.Fatal(err)
			}
			r := expire(t, v, now, true)
			have := seq(v)
			for _, i := range c.kept {
				if !have[ids[i].String()] {
					t.Errorf("exchange %d is gone under a hold", i)
				}
			}
			if r.Gone == 0 || r.Kept == 0 {
				t.Errorf("%d gone, %d kept", r.Gone, r.Kept)
			}
			if !slices.ContainsFunc(r.Files, func(f retention.File) bool { return strings.HasSuffix(f.Kept, h.ID) }) {
				t.Error("no file is kept for the hold")
			}
			rep := verify(t, v, now)
			sound(t, rep)

			if err := retention.Remove(t.Context(), v, retention.Removal{ID: h.ID, By: "legal", Reason: "closed", Time: now}); err != nil {
				t.Fatal(err)
			}
			if err := retention.Remove(t.Context(), v, retention.Removal{ID: h.ID, By: "legal", Reason: "closed", Time: now}); !errors.Is(err, retention.ErrNoHold) {
				t.Errorf("removed twice: %v", err)
			}
			all, err := retention.Holds(t.Context(), v)
			if err != nil || len(all) != 1 || all[0].Removed == nil || all[0].Removed.Reason != "closed" || all[0].Reason != "case 4711" {
				t.Errorf("holds %+v, %v", all, err)
			}
			expire(t, v, now, true)
			sound(t, verify(t, v, now))
			if got := names(t, v, "segments/"); len(got) != 1 {
				t.Errorf("after the hold: %v", got)
			}
		})
	}
	_ = ids
}

// A session may go on after its hold was added: its later records are not
// known, so all that are younger are kept.
func TestSessionHoldIsOpen(t *testing.T) {
	v, _ := sample(t)
	h := retention.Hold{Session: "s0", Reason: "r", By: "b", Created: start.AddDate(0, 1, 0)}
	if err := retention.Add(t.Context(), v, &h); err != nil {
		t.Fatal(err)
	}
	expire(t, v, start.AddDate(5, 0, 0), true)
	have := map[string]int{}
	for _, n := range names(t, v, "segments/") {
		id, _ := vault.ParseSegmentName(n)
		have[id.Day]++
	}
	if got := slices.Sorted(maps.Keys(have)); len(got) != 1 || got[0] < "2026-06" {
		t.Errorf("left are days %v", got)
	}
}

func TestHoldsRefused(t *testing.T) {
	v, ids := sample(t)
	for what, h := range map[string]retention.Hold{
		"nothing":      {},
		"two things":   {Session: "s", Exchange: ids[0].String()},
		"no reason":    {Session: "s", By: "b"},
		"nobody":       {Session: "s", Reason: "r"},
		"no exchange":  {Exchange: "x", Reason: "r", By: "b"},
		"ends earlier": {From: start, Until: start, Reason: "r", By: "b"},
	} {
		if what != "no reason" && what != "nobody" {
			h.Reason, h.By = "r", "b"
		}
		if err := retention.Add(t.Context(), v, &h); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	// A file that cannot be read may be a hold.
	for _, bad := range []string{"", "{}", `{"version":2}`} {
		file := filepath.Join(v.Dir(), "holds", "x.json")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := retention.Holds(t.Context(), v); err == nil {
			t.Errorf("%q: read", bad)
		}
	}
}
