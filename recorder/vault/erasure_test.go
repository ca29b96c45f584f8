package vault

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
)

func testErasure() *Erasure {
	return &Erasure{
		ID: "20260314t090000z-0a1b2c3d4e", Time: time.Date(2026, 3, 14, 9, 0, 0, 0, time.UTC), By: "dpo", Reason: "a\nb \"c\" <\u2028>", Scope: ScopeSession,
		Keys: []ErasedKey{{Epoch: record.Epoch{1}.String(), Key: strings.Repeat("ab", 16), Gateway: "gw", First: 2, Last: 9, Records: 8, Exchanges: 1}},
	}
}

func TestErasureNote(t *testing.T) {
	x := testErasure()
	b, err := x.Sign()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseErasure(b)
	if err != nil || got.Reason != x.Reason || got.Keys[0] != x.Keys[0] || !got.Time.Equal(x.Time) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, change := range map[string]func(x *Erasure){
		"no keys":     func(x *Erasure) { x.Keys = nil },
		"a wrong key": func(x *Erasure) { x.Keys[0].Key = "../../segments" },
		"no reason":   func(x *Erasure) { x.Reason = " " },
		"nobody":      func(x *Erasure) { x.By = "" },
		"long reason": func(x *Erasure) { x.Reason = strings.Repeat("x", MaxReason+1) },
		"scope":       func(x *Erasure) { x.Scope = "all" },
		"id":          func(x *Erasure) { x.ID = "../x" },
		"id with dot": func(x *Erasure) { x.ID = "a.done" },
	} {
		x := testErasure()
		change(x)
		if _, err := x.Sign(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, done := range map[string]bool{ErasureName("a-1"): false, CompletionName("a-1"): true} {
		id, is, err := ParseErasureName(name)
		if err != nil || id != "a-1" || is != done {
			t.Errorf("%s: %s, %v, %v", name, id, is, err)
		}
	}
	for _, name := range []string{"erasures/a", "erasures/.note", "erasures/a/b.note", "keys/a.note", "erasures/a.b.note"} {
		if _, _, err := ParseErasureName(name); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzErasure holds that no bytes break the readers, and that what they take
// is written again as it was read.
func FuzzErasure(f *testing.F) {
	b, err := testErasure().Sign()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	c := Completion{ID: "a", By: "dpo", Checks: []string{"x"}}
	if b, err = c.Sign(); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	tomb := Tombstone{Version: 1, Erasure: "a", Epoch: record.Epoch{1}.String(), Key: strings.Repeat("00", 16)}
	if b, err = tomb.Marshal(); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"id":"x","keys":["a/b"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, err := ParseErasure(b); err == nil {
			again, err := x.Sign()
			if err != nil {
				t.Fatal(err)
			}
			y, err := ParseErasure(again)
			if err != nil || y.ID != x.ID || len(y.Keys) != len(x.Keys) {
				t.Fatalf("%+v, %v", y, err)
			}
		}
		if c, err := ParseCompletion(b); err == nil && c.ID == "" {
			t.Error("a completion of nothing")
		}
		if x, err := ParseTombstone(b, record.Epoch{1}, record.KeyID{}); err == nil {
			if again, err := x.Marshal(); err != nil || bytes.IndexByte(again[:len(again)-1], '\n') >= 0 {
				t.Errorf("%q, %v", again, err)
			}
		}
		_, _ = ParseExport(b)
	})
}
