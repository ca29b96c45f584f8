package gcs

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"

	"verbatim.dev/recorder/vault/gcs/gcstest"
)

func wrong(t *testing.T, c *storage.Client, w Want) []string {
	t.Helper()
	all, err := Check(t.Context(), c, w)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range all {
		if f.OK != (f.Repair == "") || f.State == "" {
			t.Errorf("%+v", f)
		}
		if !f.OK {
			names = append(names, f.Property)
		}
	}
	return names
}

func TestInitCheckLock(t *testing.T) {
	s := gcstest.New(t)
	c := s.Client(t, "")
	evidence := Want{Address: "gs://evidence/x", Retention: 400 * day, Locked: true, Expire: true, KMSKey: "projects/p/locations/l/keyRings/r/cryptoKeys/k", Location: "EU"}
	keys := Want{Address: "gs://the-keys"}

	if got := wrong(t, c, evidence); !slices.Equal(got, []string{"bucket"}) {
		t.Errorf("before: %v", got)
	}
	if _, err := Init(t.Context(), c, evidence); err == nil || !strings.Contains(err.Error(), "--project") {
		t.Errorf("without a project: %v", err)
	}
	for _, w := range []*Want{&evidence, &keys} {
		w.Project = "p"
		if made, err := Init(t.Context(), c, *w); err != nil || !made {
			t.Fatal(made, err)
		}
		if made, err := Init(t.Context(), c, *w); err != nil || made {
			t.Errorf("again: %t, %v", made, err)
		}
	}
	if got := wrong(t, c, keys); len(got) != 0 {
		t.Errorf("keys: %v", got)
	}
	if got := wrong(t, c, evidence); !slices.Equal(got, []string{"lock"}) {
		t.Errorf("unlocked: %v", got)
	}
	a, err := c.Bucket("evidence").Attrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := a.Lifecycle.Rules; len(r) != 1 || r[0].Condition.AgeInDays != 401 || !slices.Equal(r[0].Condition.MatchesPrefix, []string{"x/segments/"}) {
		t.Errorf("lifecycle %+v", r)
	}

	// Only the retention that was asked for is locked, and for good.
	longer := evidence
	longer.Retention++
	longer.Retention += day - 1
	if err := Lock(t.Context(), c, longer); err == nil || !strings.Contains(err.Error(), "nothing is locked") {
		t.Errorf("another retention: %v", err)
	}
	if err := Lock(t.Context(), c, keys); err == nil {
		t.Error("locked what has no retention")
	}
	for range 2 {
		if err := Lock(t.Context(), c, evidence); err != nil {
			t.Fatal(err)
		}
	}
	if got := wrong(t, c, evidence); len(got) != 0 {
		t.Errorf("locked: %v", got)
	}
	shorter := evidence
	shorter.Retention = 10 * day
	if _, err := Init(t.Context(), c, shorter); err != nil {
		t.Errorf("a retention that is longer is kept: %v", err)
	}
	var api *googleapi.Error
	_, err = c.Bucket("evidence").Update(t.Context(), storage.BucketAttrsToUpdate{RetentionPolicy: &storage.RetentionPolicy{RetentionPeriod: day}})
	if !errors.As(err, &api) || api.Code != http.StatusForbidden {
		t.Errorf("shortened a locked policy: %v", err)
	}
	if _, err := Init(t.Context(), c, longer); err != nil {
		t.Errorf("lengthen: %v", err)
	}
	if got := wrong(t, c, longer); !slices.Equal(got, nil) {
		t.Errorf("lengthened: %v", got)
	}
}

// A bucket that somebody made by hand: each property is found, and init sets
// it.
func TestRepair(t *testing.T) {
	s := gcstest.New(t)
	c := s.Client(t, "")
	s.Bucket(t, "evidence", 0, false)
	s.Bucket(t, "the-keys", day, false)
	for _, name := range []string{"evidence", "the-keys"} {
		u := storage.BucketAttrsToUpdate{VersioningEnabled: true}
		if _, err := c.Bucket(name).Update(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	w := Want{Address: "gs://evidence", Retention: 30 * day, Expire: true, KMSKey: "k"}
	if got, want := wrong(t, c, w), []string{"retention", "uniform access", "public access prevention", "versioning", "soft delete", "encryption", "lifecycle"}; !slices.Equal(got, want) {
		t.Errorf("wrong are %v, want %v", got, want)
	}
	if _, err := Init(t.Context(), c, w); err != nil {
		t.Fatal(err)
	}
	if got := wrong(t, c, w); len(got) != 0 {
		t.Errorf("after init: %v", got)
	}
	// A retention of a bucket for keys is not removed by init: somebody meant it.
	keys := Want{Address: "gs://the-keys"}
	if _, err := Init(t.Context(), c, keys); err != nil {
		t.Fatal(err)
	}
	if got := wrong(t, c, keys); !slices.Equal(got, []string{"retention"}) {
		t.Errorf("keys: %v", got)
	}
	// A rule that deletes too early.
	s.Bucket(t, "early", 0, false)
	if _, err := c.Bucket("early").Update(t.Context(), storage.BucketAttrsToUpdate{Lifecycle: &storage.Lifecycle{Rules: []storage.LifecycleRule{
		{Action: storage.LifecycleAction{Type: storage.DeleteAction}, Condition: storage.LifecycleCondition{AgeInDays: 3}},
	}}}); err != nil {
		t.Fatal(err)
	}
	for _, w := range []Want{{Address: "gs://early", Retention: 30 * day}, {Address: "gs://early"}} {
		if got := wrong(t, c, w); !slices.Contains(got, "lifecycle") {
			t.Errorf("a rule deletes after three days: %v", got)
		}
	}
}

func TestInitRefused(t *testing.T) {
	s := gcstest.New(t)
	s.Roles = map[string][]string{"nobody": {}}
	s.Bucket(t, "evidence", 0, false)
	c := s.Client(t, "nobody")
	if _, err := Check(t.Context(), c, Want{Address: "gs://evidence"}); err == nil || !strings.Contains(err.Error(), "roles/storage.admin") {
		t.Errorf("check: %v", err)
	}
	for _, w := range []Want{{Address: "evidence"}, {Address: "gs://evidence", Retention: MaxRetention + time.Second}, {Address: "gs://evidence", Retention: time.Millisecond}} {
		if _, err := Init(t.Context(), c, w); err == nil {
			t.Errorf("%+v: taken", w)
		}
	}
}
