package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

const canary = "CANARY-7f3a"

// marked is an exchange with the canary in all that a caller says.
func marked(session, mark string) ledgertest.Exchange {
	x := alice
	x.Session, x.Subject, x.Email, x.Groups = session, mark+"-sub", mark+"@corp.example", []string{"corp/" + mark}
	x.SQL, x.Parameters = "SELECT '"+mark+"-sql'", json.RawMessage(`[{"name":"`+mark+`-param"}]`)
	x.Provenance = &record.Provenance{Profile: "github", Repository: mark + "/repo", Commit: mark, Workflow: mark, Run: mark, Pod: mark, Ref: mark}
	x.Asserted = record.Asserted{UserAgent: mark, RequestReason: mark, Agent: mark, Model: mark, Conversation: mark, ToolCall: mark, Labels: map[string]string{"k": mark}}
	x.Connection, x.Project, x.Dataset, x.Table = mark, mark, mark, mark
	x.Job = &record.Job{Project: mark, ID: mark + "-job"}
	return x
}

// erase does to a vault in memory what an erasure does, and returns its keys.
func erase(t testing.TB, v *ledgertest.Vault, id string, rows ...*Row) []vault.ErasedKey {
	t.Helper()
	x := &vault.Erasure{ID: id, Time: ledgertest.Start, By: "dpo", Reason: "request", Scope: vault.ScopeSession}
	done := map[string]bool{}
	for _, r := range rows {
		for _, key := range r.Keys {
			k := vault.ErasedKey{Epoch: r.Epoch, Key: key, Gateway: r.Gateway, First: 1, Last: 1, Records: 1}
			if done[k.Epoch+k.Key] {
				continue
			}
			done[k.Epoch+k.Key] = true
			x.Keys = append(x.Keys, k)
		}
	}
	b, err := x.Sign()
	if err != nil {
		t.Fatal(err)
	}
	v.Files[vault.ErasureName(id)] = b
	destroy(t, v, x)
	return x.Keys
}

func destroy(t testing.TB, v *ledgertest.Vault, x *vault.Erasure) {
	t.Helper()
	for _, k := range x.Keys {
		epoch, key, err := k.Parse()
		if err != nil {
			t.Fatal(err)
		}
		tomb := vault.Tombstone{Version: 1, Erasure: x.ID, Epoch: k.Epoch, Key: k.Key, Time: x.Time, By: x.By, Reason: x.Reason}
		b, err := tomb.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		v.Files[vault.TombstoneName(epoch, key)] = b
		delete(v.Files, vault.KeyName(epoch, key))
	}
}

// holding names the files that hold the text: as raw bytes, and in any page or
// dictionary of a Parquet file once it is unpacked.
func holding(t testing.TB, dir, text string) []string {
	t.Helper()
	var found []string
	err := filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
		if err != nil || !st.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte(text)) {
			found = append(found, path+" (raw)")
		}
		if strings.HasSuffix(path, ".parquet") && unpacked(t, b, text) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func unpacked(t testing.TB, b []byte, text string) bool {
	f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range f.RowGroups() {
		for _, c := range g.ColumnChunks() {
			pages := c.Pages()
			for {
				p, err := pages.ReadPage()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if d := p.Dictionary(); d != nil {
					for i := range d.Len() {
						if strings.Contains(d.Index(int32(i)).String(), text) {
							return true
						}
					}
				}
				values := make([]parquet.Value, p.NumValues())
				n, _ := p.Values().ReadValues(values)
				for _, v := range values[:n] {
					if strings.Contains(v.String(), text) {
						return true
					}
				}
			}
			pages.Close()
		}
	}
	return false
}

// erasable is a vault in which the canary's session lies among others'.
func erasable() (*ledgertest.Vault, []record.ID) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	var ids []record.ID
	for range 2 { // two epochs
		g.Begin()
		for i := range 6 {
			g.Run(marked(fmt.Sprintf("s%d", i), fmt.Sprintf("other-%d", i)))
			ids = append(ids, g.Run(marked("gone", canary)))
			if i%2 == 0 {
				g.Cut()
			}
		}
		g.Start(marked("gone", canary)) // cut off, or pending
		g.Crash()
		g.Now = g.Now.Add(25 * time.Hour)
	}
	return v, ids
}

func TestPurge(t *testing.T) {
	for _, packed := range []bool{true, false} {
		v, ids := erasable()
		s := folder(t)
		c := config(t, v, s)
		c.uncompressed = !packed
		mustBuild(t, c)
		before := all(t, s)
		if len(before) != 26 || len(holding(t, s.dir, canary)) == 0 {
			t.Fatalf("%d rows; the canary is in %q", len(before), holding(t, s.dir, canary))
		}
		if err := os.WriteFile(filepath.Join(s.dir, tempDir, "left"), []byte(canary), 0o600); err != nil {
			t.Fatal(err)
		}
		keys := erase(t, v, "e1", before[ids[0].String()], before[ids[11].String()])
		if r, err := Check(t.Context(), config(t, v, s)); err != nil || len(r.Findings) != 14 || r.Findings[0].Code != Kept {
			t.Errorf("before the purge: %+v, %v", r, err)
		}
		p, err := Purge(t.Context(), s, keys)
		if err != nil || p.Rows != 14 || p.Files != 2 {
			t.Errorf("%+v, %v", p, err)
		}
		if found := holding(t, s.dir, canary); len(found) > 0 {
			t.Errorf("the canary is still in %q", found)
		}
		if len(holding(t, s.dir, "other-3-sql")) == 0 || len(all(t, s)) != 12 {
			t.Error("others' rows went too")
		}
		c = config(t, v, s)
		sound(t, c)
		if p, err := Purge(t.Context(), s, keys); err != nil || p != (Purged{}) {
			t.Errorf("again: %+v, %v", p, err)
		}
		// A build brings nothing back, nor does one from the start.
		was := objects(t, s)
		mustBuild(t, config(t, v, s))
		equal(t, "build", objects(t, s), was)
		if packed {
			if _, err := Rebuild(t.Context(), config(t, v, s)); err != nil {
				t.Fatal(err)
			}
			equal(t, "rebuild", objects(t, s), was)
		}
		if found := holding(t, s.dir, canary); len(found) > 0 {
			t.Errorf("the canary came back in %q", found)
		}
	}
}

// TestPurgedByBuild: an index that nobody named heals by its next build.
func TestPurgedByBuild(t *testing.T) {
	v, ids := erasable()
	s := folder(t)
	mustBuild(t, config(t, v, s))
	rows := all(t, s)
	one, two := rows[ids[0].String()], rows[ids[11].String()]
	erase(t, v, "e1", one, two)
	if stats := mustBuild(t, config(t, v, s)); stats.Purged != 14 {
		t.Errorf("%+v", stats)
	}
	if found := holding(t, s.dir, canary); len(found) > 0 {
		t.Errorf("the canary is still in %q", found)
	}
	sound(t, config(t, v, s))
}

// TestHeldErasure: a note whose keys a hold kept takes nothing away.
func TestHeldErasure(t *testing.T) {
	v, ids := erasable()
	s := folder(t)
	mustBuild(t, config(t, v, s))
	files := maps.Clone(v.Files)
	first := all(t, s)[ids[0].String()]
	erase(t, v, "e1", first)
	for name, b := range files {
		v.Files[name] = b // the keys
	}
	for _, name := range v.Names(vault.KeysPrefix) {
		if strings.HasSuffix(name, ".erased") {
			delete(v.Files, name)
		}
	}
	if stats := mustBuild(t, config(t, v, s)); stats.Purged != 0 || len(all(t, s)) != 26 {
		t.Errorf("%+v", stats)
	}
	sound(t, config(t, v, s))
	// When the hold is lifted the erasure is gone on with, key by key.
	keys := erase(t, v, "e1", first, all(t, s)[ids[11].String()])
	epoch, key, err := keys[1].Parse()
	if err != nil {
		t.Fatal(err)
	}
	delete(v.Files, vault.TombstoneName(epoch, key))
	v.Files[vault.KeyName(epoch, key)] = files[vault.KeyName(epoch, key)]
	for _, want := range []int64{7, 0} {
		if stats := mustBuild(t, config(t, v, s)); stats.Purged != want {
			t.Errorf("%+v, want %d purged", stats, want)
		}
	}
	destroy(t, v, &vault.Erasure{ID: "e1", Time: ledgertest.Start, Keys: keys})
	if stats := mustBuild(t, config(t, v, s)); stats.Purged != 7 {
		t.Errorf("%+v", stats)
	}
	sound(t, config(t, v, s))
}

// TestEraseBesideBuild erases at each step of a build, and purges before or
// after the build's next write. Whatever comes first, nothing stays.
func TestEraseBesideBuild(t *testing.T) {
	plain, ids := erasable()
	ref := folder(t)
	mustBuild(t, config(t, plain, ref))
	one, two := all(t, ref)[ids[0].String()], all(t, ref)[ids[11].String()]
	steps := 0
	for step := 1; ; step++ {
		v := plain.Clone()
		s := folder(t)
		at := &hooked{Store: s, left: step}
		at.do = func() {
			keys := erase(t, v, "e1", one, two)
			if _, err := Purge(t.Context(), s, keys); err != nil {
				t.Error(err)
			}
		}
		c := config(t, v, at)
		c.commitEvery, c.memory = 3, 1
		_, err := Build(t.Context(), c)
		if err != nil && !errors.Is(err, ErrChanged) {
			t.Fatal(err)
		}
		if at.left > 0 {
			break
		}
		steps++
		if err != nil { // the purge came between: the next build goes on
			if found := holding(t, s.dir, canary); len(found) > 0 {
				t.Errorf("step %d: after a build that gave way the canary is in %q", step, found)
			}
			mustBuild(t, config(t, v, s))
		}
		if found := holding(t, s.dir, canary); len(found) > 0 {
			t.Errorf("step %d: the canary is in %q", step, found)
		}
		sound(t, config(t, v, s))
		if t.Failed() {
			return
		}
	}
	if steps < 8 {
		t.Errorf("only %d steps", steps)
	}
}

// hooked does something before one of the writes.
type hooked struct {
	Store
	left int
	do   func()
}

func (h *hooked) Write(ctx context.Context, name, version string, b []byte) (string, error) {
	if h.left--; h.left == 0 {
		h.do()
	}
	return h.Store.Write(ctx, name, version, b)
}
