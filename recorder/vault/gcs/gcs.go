// Package gcs keeps a vault in a bucket of Cloud Storage.
//
// The rule of this folder: an object is written with the condition that there
// is none of its name (ifGenerationMatch=0), and never updated or deleted, but
// for [Vault.EraseKey] a wrapped key. So an identity that may create, get and
// list objects is enough for the sink (storage.objects.create, .get, .list:
// roles/storage.objectCreator and roles/storage.objectViewer), and what makes
// the bucket write-once is its own retention policy, see [Init] and [Check].
//
// An answer 412 may be the echo of a write that succeeded and whose answer was
// lost. Equal content is therefore success: size and CRC32C are compared, then
// the bytes, by their SHA-256. Other content is [vault.ErrConflict].
//
// Where STORAGE_EMULATOR_HOST is set the client talks to that emulator without
// credentials.
package gcs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"verbatim.dev/recorder/vault"
)

// Scheme begins the address of a vault in Cloud Storage.
const Scheme = "gs://"

const (
	defaultTimeout = 2 * time.Minute
	// chunkSize is what one write holds in memory: larger objects go in several
	// requests (a resumable upload), smaller ones in one.
	chunkSize  = 4 << 20
	copyBuffer = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Config configures a [Vault].
type Config struct {
	// Address is gs://BUCKET or gs://BUCKET/PREFIX.
	Address string
	// Timeout is how long a request, with the client's own retries, may go
	// without progress; 2 minutes where it is 0.
	Timeout time.Duration
	// Client is used and not closed; nil for one of the vault's own.
	Client *storage.Client
	Logger *slog.Logger // nil: none
}

// Vault is a [vault.Vault] in a bucket. It is safe for concurrent use.
type Vault struct {
	address string
	bucket  *storage.BucketHandle
	prefix  string // "" or ending with a slash
	timeout time.Duration
	client  *storage.Client
	own     bool
	log     *slog.Logger
}

// Split takes the address of a vault apart. The prefix is empty, or without a
// slash at either end.
func Split(address string) (bucket, prefix string, err error) {
	rest, ok := strings.CutPrefix(address, Scheme)
	if !ok {
		return "", "", fmt.Errorf("%q: want gs://BUCKET or gs://BUCKET/PREFIX", address)
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	if err := checkBucket(bucket); err != nil {
		return "", "", fmt.Errorf("%q: %w", address, err)
	}
	if prefix = strings.TrimSuffix(prefix, "/"); prefix != "" {
		if err := vault.CheckName(prefix); err != nil {
			return "", "", fmt.Errorf("%q: prefix: %w", address, err)
		}
	}
	return bucket, prefix, nil
}

// checkBucket holds names to https://cloud.google.com/storage/docs/buckets#naming,
// as far as it is about characters.
func checkBucket(name string) error {
	if len(name) < 3 || len(name) > 222 {
		return fmt.Errorf("bucket name of %d characters: want 3 to 222", len(name))
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && (c != '-' && c != '_' && c != '.' || i == 0 || i == len(name)-1) {
			return fmt.Errorf("bucket name %q: want lower-case letters, digits, and within it also -, _ and dots", name)
		}
	}
	return nil
}

// NewClient returns a client with the credentials of the environment, or for
// the emulator of STORAGE_EMULATOR_HOST.
func NewClient(ctx context.Context, o ...option.ClientOption) (*storage.Client, error) {
	c, err := storage.NewClient(ctx, o...)
	if err != nil {
		return nil, fmt.Errorf("cloud storage: %w (\"gcloud auth application-default login\" gives a user credentials)", err)
	}
	// Every call is either a read or carries a condition, so that trying again
	// is safe; until when is up to the context.
	c.SetRetry(storage.WithPolicy(storage.RetryAlways))
	return c, nil
}

// Open opens the vault and asks once whether it can be listed, so that a
// bucket that is not there is not taken for an empty vault. Close it when done.
func Open(ctx context.Context, c Config) (*Vault, error) {
	bucket, prefix, err := Split(c.Address)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	v := &Vault{address: Scheme + bucket, timeout: c.Timeout, client: c.Client, log: c.Logger}
	if prefix != "" {
		v.prefix = prefix + "/"
		v.address += "/" + prefix
	}
	if v.timeout <= 0 {
		v.timeout = defaultTimeout
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	if v.client == nil {
		if v.client, err = NewClient(ctx); err != nil {
			return nil, fmt.Errorf("vault %s: %w", v.address, err)
		}
		v.own = true
	}
	v.bucket = v.client.Bucket(bucket)
	for _, err := range v.List(ctx, "") {
		if err != nil {
			_ = v.Close()
			return nil, err
		}
		break
	}
	return v, nil
}

// Close closes the client where it is the vault's own.
func (v *Vault) Close() error {
	if !v.own {
		return nil
	}
	return v.client.Close()
}

// String returns the vault's address.
func (v *Vault) String() string { return v.address }

// hint says what an error of the service is about.
func (v *Vault) hint(err error) error {
	var api *googleapi.Error
	switch {
	case errors.Is(err, storage.ErrBucketNotExist):
		return fmt.Errorf("%w (\"recorder vault init\" makes the bucket)", err)
	case errors.As(err, &api) && api.Code == http.StatusForbidden:
		return fmt.Errorf("%w (\"recorder vault check\" says which rights are needed)", err)
	}
	return err
}

// watch ends a context when nothing moves.
type watch struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
}

func (v *Vault) watch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{ctx: ctx, cancel: cancel, timeout: v.timeout}
	w.timer = time.AfterFunc(w.timeout, func() {
		cancel(fmt.Errorf("no answer within %s: %w", w.timeout, context.DeadlineExceeded))
	})
	return w
}

// moved says that there was progress.
func (w *watch) moved() { w.timer.Reset(w.timeout) }

// rest stops the clock until moved is called: it is the caller's turn.
func (w *watch) rest() { w.timer.Stop() }

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// cause tells why the context ended, if that is why err came.
func (w *watch) cause(err error) error {
	if err != nil && w.ctx.Err() != nil {
		if c := context.Cause(w.ctx); !errors.Is(err, c) {
			return fmt.Errorf("%w (%w)", c, err)
		}
	}
	return err
}

// content sums up what was read of the source.
type content struct {
	r    io.Reader
	w    *watch
	size int64
	crc  uint32
	sum  hash.Hash
	err  error // of the source
}

func (c *content) Read(p []byte) (int, error) {
	if c.w.ctx.Err() != nil {
		return 0, context.Cause(c.w.ctx)
	}
	n, err := c.r.Read(p)
	c.size += int64(n)
	c.crc = crc32.Update(c.crc, castagnoli, p[:n])
	c.sum.Write(p[:n])
	c.w.moved()
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// Create implements [vault.Vault].
func (v *Vault) Create(ctx context.Context, name string, r io.Reader) error {
	if err := vault.CheckName(v.prefix + name); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	w := v.watch(ctx)
	defer w.end()
	if err := v.create(w, name, r); err != nil {
		return fmt.Errorf("vault %s: create %s: %w", v.address, name, v.hint(w.cause(err)))
	}
	return nil
}

func (v *Vault) create(w *watch, name string, r io.Reader) error {
	object := v.bucket.Object(v.prefix + name)
	// A write of its own context: cancelling it is how a write is given up
	// without making an object of what was sent so far.
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	out := object.If(storage.Conditions{DoesNotExist: true}).NewWriter(ctx)
	out.ContentType = "application/octet-stream"
	out.ChunkSize = chunkSize
	out.ChunkRetryDeadline = v.timeout
	out.ProgressFunc = func(int64) { w.moved() }
	in := &content{r: r, w: w, sum: sha256.New()}
	buffer := make([]byte, copyBuffer)
	_, err := io.CopyBuffer(struct{ io.Writer }{out}, in, buffer)
	if err != nil {
		cancel()
	}
	if e := out.Close(); err == nil {
		err = e
	}
	switch {
	case in.err != nil:
		return in.err
	case err == nil:
		// The service compared the checksum that the client sent; this holds
		// where it did not.
		if a := out.Attrs(); a.Size != in.size || a.CRC32C != in.crc {
			return fmt.Errorf("%w: sent were %d bytes with CRC32C %08x, stored are %d with %08x", vault.ErrConflict, in.size, in.crc, a.Size, a.CRC32C)
		}
		return nil
	case !precondition(err):
		return err
	}
	// The rest of what should be there, for the comparison.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{in}, buffer); err != nil {
		return err
	}
	return v.same(w, object, in)
}

func precondition(err error) bool {
	var api *googleapi.Error
	return errors.As(err, &api) && api.Code == http.StatusPreconditionFailed
}

// same compares an object that is there with what was read of the source.
func (v *Vault) same(w *watch, object *storage.ObjectHandle, in *content) error {
	w.moved()
	a, err := object.Attrs(w.ctx)
	if err != nil {
		return fmt.Errorf("compare with what is there: %w", err)
	}
	if a.Size != in.size || a.CRC32C != in.crc {
		return fmt.Errorf("%w: there are %d bytes with CRC32C %08x of %s, new are %d with %08x",
			vault.ErrConflict, a.Size, a.CRC32C, a.Created.UTC().Format(time.RFC3339), in.size, in.crc)
	}
	r, err := object.Generation(a.Generation).ReadCompressed(true).NewReader(w.ctx)
	if err != nil {
		return fmt.Errorf("compare with what is there: %w", err)
	}
	defer r.Close()
	there := &content{r: r, w: w, sum: sha256.New()}
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{there}, make([]byte, copyBuffer)); err != nil {
		return fmt.Errorf("compare with what is there: %w", err)
	}
	if string(there.sum.Sum(nil)) != string(in.sum.Sum(nil)) {
		return fmt.Errorf("%w: %d bytes of %s with the same CRC32C", vault.ErrConflict, a.Size, a.Created.UTC().Format(time.RFC3339))
	}
	return nil
}

// Open implements [vault.Vault]. The client checks the CRC32C of an object that
// is read to its end.
func (v *Vault) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := vault.CheckName(v.prefix + name); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	w := v.watch(ctx)
	r, err := v.bucket.Object(v.prefix + name).ReadCompressed(true).NewReader(w.ctx)
	if err != nil {
		err = w.cause(err)
		w.end()
		if errors.Is(err, storage.ErrObjectNotExist) {
			err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
		}
		return nil, fmt.Errorf("vault %s: open %s: %w", v.address, name, v.hint(err))
	}
	w.rest()
	return &reader{r: r, w: w}, nil
}

// reader gives up where the service stays silent, not where the caller does.
type reader struct {
	r *storage.Reader
	w *watch
}

func (r *reader) Read(p []byte) (int, error) {
	r.w.moved()
	n, err := r.r.Read(p)
	r.w.rest()
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.w.cause(err)
	}
	return n, err
}

func (r *reader) Close() error {
	err := r.r.Close()
	r.w.end()
	return err
}

// Hold sets or removes the object's temporary hold: while it is set neither
// lifecycle nor anybody else can delete it. This is not for the sink: it needs
// storage.objects.update.
func (v *Vault) Hold(ctx context.Context, name string, on bool) error {
	if err := vault.CheckName(v.prefix + name); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	w := v.watch(ctx)
	defer w.end()
	_, err := v.bucket.Object(v.prefix+name).Update(w.ctx, storage.ObjectAttrsToUpdate{TemporaryHold: on})
	if errors.Is(err, storage.ErrObjectNotExist) {
		err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	}
	if err != nil {
		return fmt.Errorf("vault %s: hold %s: %w", v.address, name, v.hint(w.cause(err)))
	}
	return nil
}

// EraseKey removes a wrapped data key with all its generations. The bucket must
// keep no copies: no retention, and neither versions nor soft delete, which
// "recorder vault check" looks at; with versions on, those that are there go
// too. Where soft delete keeps what was deleted, the error is [ErrKept]. It
// needs storage.objects.delete and storage.buckets.get, on the key store alone.
func (v *Vault) EraseKey(ctx context.Context, name string) error {
	if _, _, err := vault.ParseKeyName(name); err != nil {
		return fmt.Errorf("vault: erase: %w", err)
	}
	w := v.watch(ctx)
	defer w.end()
	if err := v.erase(w, name); err != nil {
		return fmt.Errorf("vault %s: erase %s: %w", v.address, name, v.hint(w.cause(err)))
	}
	return nil
}

// ErrKept means that the bucket keeps what was deleted.
var ErrKept = errors.New("the bucket keeps what is deleted")

func (v *Vault) erase(w *watch, name string) error {
	full := v.prefix + name
	it := v.bucket.Objects(w.ctx, &storage.Query{Prefix: full, Versions: true, Projection: storage.ProjectionNoACL})
	for {
		a, err := it.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			return err
		}
		w.moved()
		if a.Name != full {
			continue
		}
		if err := v.bucket.Object(full).Generation(a.Generation).Delete(w.ctx); err != nil && !errors.Is(err, storage.ErrObjectNotExist) {
			return err
		}
	}
	a, err := v.bucket.Attrs(w.ctx)
	if err != nil {
		return fmt.Errorf("deleted, but whether the bucket keeps a copy is not known: %w", err)
	}
	if soft := softDelete(a); soft > 0 {
		return fmt.Errorf("%w: soft delete is on, for %s (\"recorder vault check\" says how to end it)", ErrKept, Period(soft))
	}
	return nil
}

// List implements [vault.Vault]. A bucket is no place where only the recorder
// writes names, and in a locked one a foreign object stays for years: so names
// that no vault could have written are listed too, for the reader to judge.
// Only the empty objects that consoles make to show a folder are left out.
func (v *Vault) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		q := &storage.Query{Prefix: v.prefix + prefix, Projection: storage.ProjectionNoACL}
		if err := q.SetAttrSelection([]string{"Name", "Size"}); err != nil {
			yield("", fmt.Errorf("vault %s: list: %w", v.address, err))
			return
		}
		w := v.watch(ctx)
		defer w.end()
		objects := v.bucket.Objects(w.ctx, q)
		for {
			w.moved()
			a, err := objects.Next()
			w.rest()
			if errors.Is(err, iterator.Done) {
				return
			}
			if err != nil {
				yield("", fmt.Errorf("vault %s: list: %w", v.address, v.hint(w.cause(err))))
				return
			}
			if a.Size == 0 && strings.HasSuffix(a.Name, "/") {
				continue
			}
			if !yield(strings.TrimPrefix(a.Name, v.prefix), nil) {
				return
			}
		}
	}
}
