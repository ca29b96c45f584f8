package gcs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
)

const day = 24 * time.Hour

// MaxRetention is the longest retention period of a bucket: 100 years.
// https://cloud.google.com/storage/docs/bucket-lock#retention-periods
const MaxRetention = 3_155_760_000 * time.Second

// Want says how a bucket must be.
type Want struct {
	Address string // gs://BUCKET[/PREFIX]
	// Retention is how long no object may be changed or deleted. 0: the bucket
	// holds what must be erasable (wrapped keys, the index), and then no
	// retention policy, no versions and no soft delete may keep it.
	Retention time.Duration
	// Locked: the retention policy must be locked. Nothing locks it but [Lock].
	Locked bool
	// Expire: objects are deleted by the bucket's lifecycle once their
	// retention is over. Objects under a hold are not.
	Expire   bool
	Project  string // where a bucket that is not there is made
	Location string // of a new bucket, "EU"; empty: Google's default, US
	KMSKey   string // projects/P/locations/L/keyRings/R/cryptoKeys/K; empty: Google's own keys
}

// Finding is one property of a bucket.
type Finding struct {
	Property string
	OK       bool
	// State says how it is, and where it is not OK also how it must be.
	State string
	// Repair is the command that repairs it, empty where it is OK.
	Repair string
}

// Init makes the bucket where there is none and sets what can be set. It
// shortens no retention and locks nothing. Its calls need storage.buckets.create,
// .get and .update (roles/storage.admin).
func Init(ctx context.Context, c *storage.Client, w Want) (made bool, err error) {
	bucket, _, err := Split(w.Address)
	if err != nil {
		return false, err
	}
	if w.Retention > MaxRetention || w.Retention%time.Second != 0 {
		return false, fmt.Errorf("bucket %s: retention %s: want whole seconds, at most %d days", bucket, w.Retention, MaxRetention/day)
	}
	b := c.Bucket(bucket)
	a, err := b.Attrs(ctx)
	switch {
	case errors.Is(err, storage.ErrBucketNotExist):
		if w.Project == "" {
			return false, fmt.Errorf("bucket %s is not there, and making it needs a project (--project)", bucket)
		}
		fresh := &storage.BucketAttrs{
			Name: bucket, Location: w.Location,
			UniformBucketLevelAccess: storage.UniformBucketLevelAccess{Enabled: true},
			PublicAccessPrevention:   storage.PublicAccessPreventionEnforced,
			SoftDeletePolicy:         &storage.SoftDeletePolicy{},
			Lifecycle:                storage.Lifecycle{Rules: w.rules()},
		}
		if w.Retention > 0 {
			fresh.RetentionPolicy = &storage.RetentionPolicy{RetentionPeriod: w.Retention}
		}
		if w.KMSKey != "" {
			fresh.Encryption = &storage.BucketEncryption{DefaultKMSKeyName: w.KMSKey}
		}
		if err := b.Create(ctx, w.Project, fresh); err != nil {
			return false, fmt.Errorf("bucket %s: %w", bucket, explain(err))
		}
		return true, nil
	case err != nil:
		return false, fmt.Errorf("bucket %s: %w", bucket, explain(err))
	}
	var u storage.BucketAttrsToUpdate
	change := false
	set := func(wrong bool, do func()) {
		if wrong {
			change = true
			do()
		}
	}
	set(!a.UniformBucketLevelAccess.Enabled, func() { u.UniformBucketLevelAccess = &storage.UniformBucketLevelAccess{Enabled: true} })
	set(a.PublicAccessPrevention != storage.PublicAccessPreventionEnforced, func() { u.PublicAccessPrevention = storage.PublicAccessPreventionEnforced })
	set(a.VersioningEnabled, func() { u.VersioningEnabled = false })
	set(softDelete(a) != 0, func() { u.SoftDeletePolicy = &storage.SoftDeletePolicy{} })
	set(retention(a) < w.Retention, func() { u.RetentionPolicy = &storage.RetentionPolicy{RetentionPeriod: w.Retention} })
	set(w.KMSKey != "" && kmsKey(a) != w.KMSKey, func() { u.Encryption = &storage.BucketEncryption{DefaultKMSKeyName: w.KMSKey} })
	set(w.Expire && !w.expires(a) && !w.early(a), func() {
		u.Lifecycle = &storage.Lifecycle{Rules: append(a.Lifecycle.Rules, w.rules()...)}
	})
	if !change {
		return false, nil
	}
	if _, err := b.If(storage.BucketConditions{MetagenerationMatch: a.MetaGeneration}).Update(ctx, u); err != nil {
		return false, fmt.Errorf("bucket %s: %w", bucket, explain(err))
	}
	return false, nil
}

// Lock locks the bucket's retention policy for good: from then on nobody can
// shorten or remove it, and the bucket cannot be deleted while an object is in
// its retention. It locks the policy that w describes and no other.
func Lock(ctx context.Context, c *storage.Client, w Want) error {
	bucket, _, err := Split(w.Address)
	if err != nil {
		return err
	}
	b := c.Bucket(bucket)
	a, err := b.Attrs(ctx)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", bucket, explain(err))
	}
	switch {
	case w.Retention <= 0:
		return fmt.Errorf("bucket %s has no retention to lock", bucket)
	case a.RetentionPolicy != nil && a.RetentionPolicy.IsLocked && retention(a) >= w.Retention:
		return nil
	case retention(a) != w.Retention:
		return fmt.Errorf("bucket %s has a retention of %s, not of %s: nothing is locked", bucket, Period(retention(a)), Period(w.Retention))
	}
	// Only what was just read is locked.
	if err := b.If(storage.BucketConditions{MetagenerationMatch: a.MetaGeneration}).LockRetentionPolicy(ctx); err != nil {
		return fmt.Errorf("bucket %s: lock: %w", bucket, explain(err))
	}
	return nil
}

// Check reports on each property of the bucket.
func Check(ctx context.Context, c *storage.Client, w Want) ([]Finding, error) {
	bucket, _, err := Split(w.Address)
	if err != nil {
		return nil, err
	}
	url := Scheme + bucket
	a, err := c.Bucket(bucket).Attrs(ctx)
	if errors.Is(err, storage.ErrBucketNotExist) {
		create := "gcloud storage buckets create " + url + " --uniform-bucket-level-access --public-access-prevention --soft-delete-duration=0"
		if w.Location != "" {
			create += " --location=" + w.Location
		}
		if w.Retention > 0 {
			create += fmt.Sprintf(" --retention-period=%ds", w.Retention/time.Second)
		}
		if w.KMSKey != "" {
			create += " --default-encryption-key=" + w.KMSKey
		}
		return []Finding{{"bucket", false, "is not there", create}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucket, explain(err))
	}
	var all []Finding
	update := "gcloud storage buckets update " + url + " "
	add := func(property string, ok bool, state, must, repair string) {
		f := Finding{Property: property, OK: ok, State: state}
		if !ok {
			f.State, f.Repair = state+": "+must, repair
		}
		all = append(all, f)
	}
	add("bucket", true, "in "+a.Location, "", "")
	have := retention(a)
	locked := a.RetentionPolicy != nil && a.RetentionPolicy.IsLocked
	if w.Retention > 0 {
		add("retention", have >= w.Retention, Period(have), "must be "+Period(w.Retention), update+fmt.Sprintf("--retention-period=%ds", w.Retention/time.Second))
		state := "unlocked"
		if locked {
			state = "locked"
		}
		add("lock", locked || !w.Locked, state, "who may update the bucket can shorten the retention", update+"--lock-retention-period")
	} else {
		repair := update + "--clear-retention-period"
		if locked {
			repair = "take another bucket: a locked policy cannot be removed"
		}
		add("retention", have == 0, Period(have), "what is kept here must be erasable", repair)
	}
	add("uniform access", a.UniformBucketLevelAccess.Enabled, onOff(a.UniformBucketLevelAccess.Enabled), "object ACLs would grant what no policy shows", update+"--uniform-bucket-level-access")
	pap := a.PublicAccessPrevention == storage.PublicAccessPreventionEnforced
	add("public access prevention", pap, a.PublicAccessPrevention.String(), "must be enforced", update+"--public-access-prevention")
	must := "nothing is overwritten, and a version would outlive its retention"
	if w.Retention == 0 {
		must = "a version would keep what was erased"
	}
	add("versioning", !a.VersioningEnabled, onOff(a.VersioningEnabled), must, update+"--no-versioning")
	must = "a copy would outlive its retention"
	if w.Retention == 0 {
		must = "a copy would keep what was erased"
	}
	soft := softDelete(a)
	add("soft delete", soft == 0, Period(soft), must, update+"--clear-soft-delete")
	key, state := kmsKey(a), "Google's own key"
	if key != "" {
		state = key
	}
	add("encryption", w.KMSKey == "" || key == w.KMSKey, state, "must be "+w.KMSKey, update+"--default-encryption-key="+w.KMSKey)
	switch {
	case w.early(a):
		add("lifecycle", false, "deletes objects before "+Period(max(w.Retention, have)), "evidence must outlast its retention", "gcloud storage buckets describe "+url+" --format='value(lifecycle_config)', take the rule away, then "+update+"--lifecycle-file=FILE")
	case w.Expire:
		add("lifecycle", w.expires(a), "keeps what is past its retention", "segments must expire", "recorder vault init")
		if f := &all[len(all)-1]; f.OK {
			f.State = "deletes what is past its retention"
		}
	default:
		add("lifecycle", true, fmt.Sprintf("%d rules", len(a.Lifecycle.Rules)), "", "")
	}
	return all, nil
}

// age is how old an object is when the lifecycle deletes it, in whole days: not
// before its retention is over.
func (w Want) age() int64 { return int64(math.Ceil(float64(w.Retention)/float64(day))) + 1 }

func (w Want) rules() []storage.LifecycleRule {
	if !w.Expire || w.Retention <= 0 {
		return nil
	}
	return []storage.LifecycleRule{{
		Action:    storage.LifecycleAction{Type: storage.DeleteAction},
		Condition: storage.LifecycleCondition{AgeInDays: w.age(), MatchesPrefix: []string{w.segments()}},
	}}
}

// segments is the prefix of what expires. Notes, checkpoints and whatever else
// proves that it was there stay.
func (w Want) segments() string {
	_, prefix, _ := Split(w.Address)
	if prefix != "" {
		prefix += "/"
	}
	return prefix + "segments/"
}

// expires reports whether a rule deletes what is past its retention.
func (w Want) expires(a *storage.BucketAttrs) bool {
	for _, r := range a.Lifecycle.Rules {
		if c := r.Condition; r.Action.Type == storage.DeleteAction && c.AgeInDays >= w.age() && len(c.MatchesSuffix) == 0 {
			for _, p := range c.MatchesPrefix {
				if p == w.segments() {
					return true
				}
			}
		}
	}
	return false
}

// early reports whether a rule deletes what must still be there. Rules cannot
// delete within the bucket's own retention, so it is about a bucket that has a
// shorter one, or none.
func (w Want) early(a *storage.BucketAttrs) bool {
	for _, r := range a.Lifecycle.Rules {
		if r.Action.Type != storage.DeleteAction || r.Condition.Liveness == storage.Archived {
			continue
		}
		if w.Retention == 0 {
			return true // keys go when they are erased, by nothing else
		}
		if time.Duration(r.Condition.AgeInDays)*day < w.Retention && retention(a) < w.Retention {
			return true
		}
	}
	return false
}

func retention(a *storage.BucketAttrs) time.Duration {
	if a.RetentionPolicy == nil {
		return 0
	}
	return a.RetentionPolicy.RetentionPeriod
}

func softDelete(a *storage.BucketAttrs) time.Duration {
	if a.SoftDeletePolicy == nil {
		return 0
	}
	return a.SoftDeletePolicy.RetentionDuration
}

func kmsKey(a *storage.BucketAttrs) string {
	if a.Encryption == nil {
		return ""
	}
	return a.Encryption.DefaultKMSKeyName
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// Period prints a duration in days where it is whole days, "none" for 0.
func Period(d time.Duration) string {
	switch {
	case d == 0:
		return "none"
	case d%day == 0:
		return fmt.Sprintf("%d days", d/day)
	}
	return d.String()
}

// explain says what an error of the service is about.
func explain(err error) error {
	var api *googleapi.Error
	if !errors.As(err, &api) {
		return err
	}
	switch {
	case api.Code == http.StatusForbidden && strings.Contains(api.Message, "Permission"):
		return fmt.Errorf("%w (roles/storage.admin on the bucket has the right)", err)
	case api.Code == http.StatusPreconditionFailed:
		return fmt.Errorf("%w (the bucket was changed meanwhile: try again)", err)
	case api.Code == http.StatusConflict:
		return fmt.Errorf("%w (bucket names are taken for all of Google Cloud)", err)
	}
	return err
}

// Permissions are what an identity needs to write a vault, beyond that to read
// it.
var Permissions = []string{"storage.objects.create", "storage.objects.get", "storage.objects.list"}
