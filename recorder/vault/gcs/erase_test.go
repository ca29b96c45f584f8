package gcs

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs/gcstest"
)

func TestEraseKey(t *testing.T) {
	s := gcstest.New(t)
	s.Roles = map[string][]string{
		"sink":   sinkRole,
		"eraser": append([]string{"storage.objects.delete", "storage.buckets.get"}, sinkRole...),
		"admin":  {"storage.buckets.get", "storage.buckets.update", "storage.objects.list"},
	}
	s.Bucket(t, "keys", 0, false)
	s.Bucket(t, "locked", 24*time.Hour, true)
	e := record.Epoch{1}
	one, other := vault.KeyName(e, record.KeyID{1}), vault.KeyName(e, record.KeyID{2})
	sink := open(t, s, "gs://keys/p", "sink")
	for _, name := range []string{one, other, vault.TombstoneName(e, record.KeyID{1})} {
		if err := sink.Create(t.Context(), name, strings.NewReader("wrapped")); err != nil {
			t.Fatal(err)
		}
	}
	if err := sink.EraseKey(t.Context(), one); err == nil || read(t, sink, one) != "wrapped" {
		t.Errorf("the sink's identity erased a key: %v", err)
	}
	v := open(t, s, "gs://keys/p", "eraser")
	// A new bucket has soft delete on: the key is gone, and the bucket keeps it.
	if err := v.EraseKey(t.Context(), one); !errors.Is(err, ErrKept) || !strings.Contains(err.Error(), "7 days") {
		t.Errorf("with soft delete on: %v", err)
	}
	if _, err := Init(t.Context(), s.Client(t, "admin"), Want{Address: "gs://keys/p"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := v.EraseKey(t.Context(), one); err != nil {
			t.Errorf("erase: %v", err)
		}
	}
	if _, err := v.Open(t.Context(), one); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key is there: %v", err)
	}
	if read(t, v, other) != "wrapped" || read(t, v, vault.TombstoneName(e, record.KeyID{1})) != "wrapped" {
		t.Error("something else went too")
	}
	// Keys alone are erased.
	for _, name := range []string{"segments/x", vault.TombstoneName(e, record.KeyID{1}), "keys/../segments/x", "holds/x.json"} {
		if err := v.EraseKey(t.Context(), name); err == nil {
			t.Errorf("erased %s", name)
		}
	}
	locked := open(t, s, "gs://locked", "eraser")
	if err := locked.Create(t.Context(), one, strings.NewReader("wrapped")); err != nil {
		t.Fatal(err)
	}
	if err := locked.EraseKey(t.Context(), one); err == nil || read(t, locked, one) != "wrapped" {
		t.Errorf("a bucket with retention gave up a key: %v", err)
	}
}
