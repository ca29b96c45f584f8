package sink

import (
	"encoding/hex"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// TestErasedKeyStaysAway delivers everything again, from many places on, to a
// vault whose first key was erased: the rest is as it was.
func TestErasedKeyStaysAway(t *testing.T) {
	sc := script{seed: 11, epoch: testEpoch(t, 1), batches: 12, body: 200, perCut: 3}
	frames := sc.frames(t)
	want := reference(t, sc.epoch, frames)
	var key record.KeyID
	for _, f := range frames {
		if f.Kind == record.KindKey {
			key = f.Key
			break
		}
	}
	tomb := vault.Tombstone{Version: 1, Erasure: "20260314t090000z-00", Epoch: sc.epoch.String(), Key: hex.EncodeToString(key[:]), By: "dpo", Reason: "r"}
	b, err := tomb.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	delete(want, vault.KeyName(sc.epoch, key))
	want[vault.TombstoneName(sc.epoch, key)] = string(b)
	for at := 0; at < len(frames); at += 5 {
		dir := t.TempDir()
		v := folder(t, dir)
		if _, err := feed(newSink(t, Config{Vault: v}), sc.epoch, frames[:at]); err != nil {
			t.Fatal(err)
		}
		if err := v.Create(t.Context(), vault.TombstoneName(sc.epoch, key), strings.NewReader(string(b))); err != nil {
			t.Fatal(err)
		}
		if err := v.EraseKey(t.Context(), vault.KeyName(sc.epoch, key)); err != nil {
			t.Fatal(err)
		}
		s := newSink(t, Config{Vault: v})
		st, err := s.Begin(t.Context(), "gw", sc.epoch)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames { // all of them, key frames too
			if _, err := st.Take(t.Context(), f.Raw()); err != nil {
				t.Fatalf("after %d frames: %v", at, err)
			}
		}
		st.End()
		same(t, snapshot(t, v), want)
		if st := s.Stats(); st.Erased != 1 || st.Alarms != 0 {
			t.Errorf("after %d frames: stats %+v", at, st)
		}
	}
}
