package index

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"cloud.google.com/go/storage"

	"verbatim.dev/recorder/vault/gcs/gcstest"
)

func bucket(t *testing.T) (*gcstest.Server, *Bucket) {
	t.Helper()
	s := gcstest.New(t)
	s.Bucket(t, "acme-index", 0, false)
	c := s.Client(t, "")
	// A new bucket has soft delete on.
	if _, err := c.Bucket("acme-index").Update(t.Context(), storage.BucketAttrsToUpdate{SoftDeletePolicy: &storage.SoftDeletePolicy{}}); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBucket(t.Context(), "gs://acme-index/p", c)
	if err != nil {
		t.Fatal(err)
	}
	return s, b
}

func TestBucket(t *testing.T) {
	_, b := bucket(t)
	stores(t, b)
}

func TestBuildInBucket(t *testing.T) {
	v, ids := erasable()
	ref := folder(t)
	mustBuild(t, config(t, v, ref))
	s, b := bucket(t)
	c := config(t, v, b)
	c.commitEvery = 2
	mustBuild(t, c)
	equal(t, "bucket", objects(t, b), objects(t, ref))
	sound(t, config(t, v, b))
	for _, name := range s.Objects(t, "acme-index") {
		if name[:2] != "p/" {
			t.Errorf("%s lies beside the prefix", name)
		}
	}
	before := all(t, b)
	keys := erase(t, v, "e1", before[ids[0].String()], before[ids[11].String()])
	if p, err := Purge(t.Context(), b, keys); err != nil || p.Rows != 14 {
		t.Errorf("%+v, %v", p, err)
	}
	sound(t, config(t, v, b))
	if len(all(t, b)) != 12 {
		t.Errorf("%d rows are left", len(all(t, b)))
	}
	// What the bucket keeps is no erasure.
	client := s.Client(t, "")
	if _, err := client.Bucket("acme-index").Update(t.Context(), storage.BucketAttrsToUpdate{SoftDeletePolicy: &storage.SoftDeletePolicy{RetentionDuration: 7 * 24 * time.Hour}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Purge(t.Context(), b, keys); !errors.Is(err, ErrKept) {
		t.Errorf("with soft delete on: %v", err)
	}
}

// TestLostAnswers: writes whose answers are lost are done once.
func TestLostAnswers(t *testing.T) {
	v, _ := erasable()
	s, b := bucket(t)
	n := 0
	s.Fault = func(r *http.Request) gcstest.Fault {
		if r.Method != "POST" {
			return gcstest.None
		}
		if n++; n%2 == 1 {
			return gcstest.Lost
		}
		return gcstest.None
	}
	mustBuild(t, config(t, v, b))
	s.Fault = nil
	sound(t, config(t, v, b))
	if n < 4 {
		t.Errorf("%d writes", n)
	}
}
