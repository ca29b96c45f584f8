package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"

	"verbatim.dev/recorder/vault/gcs"
)

const (
	bucketTimeout = 2 * time.Minute // of one request, with the client's own retries
	writeTries    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Bucket is a [Store] in a bucket of Cloud Storage. The bucket must be one that
// forgets: no retention, no versions, no soft delete, as "recorder vault init"
// makes the index's. A version is the object's generation.
type Bucket struct {
	address string
	bucket  *storage.BucketHandle
	prefix  string
	client  *storage.Client
	own     bool
}

// OpenBucket opens an index at gs://BUCKET[/PREFIX]. The client is used and not
// closed; nil for one of the index's own.
func OpenBucket(ctx context.Context, address string, client *storage.Client) (*Bucket, error) {
	name, prefix, err := gcs.Split(address)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	b := &Bucket{address: address, client: client}
	if prefix != "" {
		b.prefix = prefix + "/"
	}
	if client == nil {
		if b.client, err = gcs.NewClient(ctx); err != nil {
			return nil, fmt.Errorf("index %s: %w", address, err)
		}
		b.own = true
	}
	b.bucket = b.client.Bucket(name)
	// A bucket that is not there is not to be taken for an empty index.
	for _, err := range b.List(ctx, "") {
		if err != nil {
			_ = b.Close()
			return nil, err
		}
		break
	}
	return b, nil
}

// String returns the address.
func (b *Bucket) String() string { return b.address }

// Close closes the client where it is the index's own.
func (b *Bucket) Close() error {
	if !b.own {
		return nil
	}
	return b.client.Close()
}

// List implements [Store].
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		q := &storage.Query{Prefix: b.prefix + prefix, Projection: storage.ProjectionNoACL}
		if err := q.SetAttrSelection([]string{"Name", "Size"}); err != nil {
			yield("", fmt.Errorf("index %s: list: %w", b.address, err))
			return
		}
		objects := b.bucket.Objects(ctx, q)
		for {
			a, err := objects.Next()
			switch {
			case errors.Is(err, iterator.Done):
				return
			case err != nil:
				if errors.Is(err, storage.ErrBucketNotExist) {
					err = fmt.Errorf("%w (\"recorder vault init\" makes the bucket that a vault file names as its index)", err)
				}
				yield("", fmt.Errorf("index %s: list: %w", b.address, err))
				return
			case a.Size == 0 && strings.HasSuffix(a.Name, "/"):
				continue // a console's folder
			}
			if !yield(strings.TrimPrefix(a.Name, b.prefix), nil) {
				return
			}
		}
	}
}

// Read implements [Store].
func (b *Bucket) Read(ctx context.Context, name string) ([]byte, string, error) {
	if err := check(ctx, b.prefix+name); err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	r, err := b.bucket.Object(b.prefix + name).ReadCompressed(true).NewReader(ctx)
	if errors.Is(err, storage.ErrObjectNotExist) {
		err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, "", fmt.Errorf("index %s: read %s: %w", b.address, name, err)
	}
	defer r.Close()
	if r.Attrs.Size > maxObject {
		return nil, "", fmt.Errorf("index %s: %s has %d bytes: no file of an index", b.address, name, r.Attrs.Size)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return nil, "", fmt.Errorf("index %s: read %s: %w", b.address, name, err)
	}
	return content, strconv.FormatInt(r.Attrs.Generation, 10), nil
}

func conditions(version string) (storage.Conditions, error) {
	if version == "" {
		return storage.Conditions{DoesNotExist: true}, nil
	}
	n, err := strconv.ParseInt(version, 10, 64)
	return storage.Conditions{GenerationMatch: n}, err
}

// Write implements [Store]. It is one request, so that nothing of an upload
// that was cut off stays with the service.
func (b *Bucket) Write(ctx context.Context, name, version string, content []byte) (string, error) {
	if err := check(ctx, b.prefix+name); err != nil {
		return "", err
	}
	made, err := b.write(ctx, name, version, content)
	if err != nil {
		return "", fmt.Errorf("index %s: write %s: %w", b.address, name, err)
	}
	return made, nil
}

func (b *Bucket) write(ctx context.Context, name, version string, content []byte) (string, error) {
	c, err := conditions(version)
	if err != nil {
		return "", err
	}
	object := b.bucket.Object(b.prefix + name)
	for try := 1; ; try++ {
		one, cancel := context.WithTimeout(ctx, bucketTimeout)
		w := object.If(c).NewWriter(one)
		w.ContentType, w.ChunkSize = "application/octet-stream", 0
		_, err = io.Copy(w, bytes.NewReader(content))
		if e := w.Close(); err == nil {
			err = e
		}
		cancel()
		if err == nil {
			return strconv.FormatInt(w.Attrs().Generation, 10), nil
		}
		var api *googleapi.Error
		switch known := errors.As(err, &api); {
		case known && api.Code == http.StatusPreconditionFailed:
			// It may be the echo of a write whose answer was lost.
			a, e := object.Attrs(ctx)
			if try > 1 && e == nil && a.Size == int64(len(content)) && a.CRC32C == crc32.Checksum(content, castagnoli) {
				return strconv.FormatInt(a.Generation, 10), nil
			}
			return "", fmt.Errorf("%w (%w)", ErrChanged, err)
		case ctx.Err() != nil, try == writeTries, known && api.Code < 500 && api.Code != http.StatusTooManyRequests && api.Code != http.StatusRequestTimeout:
			return "", err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try*try) * 100 * time.Millisecond):
		}
	}
}

// Remove implements [Store].
func (b *Bucket) Remove(ctx context.Context, name, version string) error {
	if err := check(ctx, b.prefix+name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bucketTimeout)
	defer cancel()
	c, err := conditions(version)
	if err == nil {
		err = b.bucket.Object(b.prefix + name).If(c).Delete(ctx)
	}
	var api *googleapi.Error
	switch {
	case errors.Is(err, storage.ErrObjectNotExist):
		return nil
	case errors.As(err, &api) && api.Code == http.StatusPreconditionFailed:
		err = fmt.Errorf("%w (%w)", ErrChanged, err)
	}
	if err != nil {
		return fmt.Errorf("index %s: remove %s: %w", b.address, name, err)
	}
	return nil
}

// Forget implements [Store]: it takes away generations that versioning kept. It
// needs storage.buckets.get besides the rights on objects.
func (b *Bucket) Forget(ctx context.Context) error {
	if err := b.forget(ctx); err != nil {
		return fmt.Errorf("index %s: %w", b.address, err)
	}
	return nil
}

func (b *Bucket) forget(ctx context.Context) error {
	a, err := b.bucket.Attrs(ctx)
	if err != nil {
		return fmt.Errorf("whether the bucket keeps copies is not known: %w", err)
	}
	live := map[string]int64{}
	for pass := range 2 { // the live generation first: what is older goes
		objects := b.bucket.Objects(ctx, &storage.Query{Prefix: b.prefix, Versions: pass == 1, Projection: storage.ProjectionNoACL})
		for a.VersioningEnabled {
			o, err := objects.Next()
			if errors.Is(err, iterator.Done) {
				break
			}
			if err != nil {
				return err
			}
			switch {
			case pass == 0:
				live[o.Name] = o.Generation
			case o.Generation < live[o.Name] || live[o.Name] == 0 && !o.Deleted.IsZero():
				if err := b.bucket.Object(o.Name).Generation(o.Generation).Delete(ctx); err != nil && !errors.Is(err, storage.ErrObjectNotExist) {
					return err
				}
			}
		}
	}
	switch {
	case a.SoftDeletePolicy != nil && a.SoftDeletePolicy.RetentionDuration > 0:
		return fmt.Errorf("%w: soft delete is on, for %s (\"recorder vault check\" says how to end it)", ErrKept, gcs.Period(a.SoftDeletePolicy.RetentionDuration))
	case a.RetentionPolicy != nil && a.RetentionPolicy.RetentionPeriod > 0:
		return fmt.Errorf("%w: the bucket has a retention policy: an index needs one without", ErrKept)
	}
	return nil
}

// Open opens an index at a place: a folder or gs://BUCKET[/PREFIX].
func Open(ctx context.Context, at string, write bool) (Store, error) {
	if strings.HasPrefix(at, gcs.Scheme) {
		return OpenBucket(ctx, at, nil)
	}
	if scheme, _, ok := strings.Cut(at, "://"); ok {
		return nil, fmt.Errorf("index: %s:// is no place for an index: want a folder or gs://BUCKET", scheme)
	}
	return OpenFolder(at, write)
}
