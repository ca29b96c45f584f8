package gcs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"

	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs/gcstest"
)

var _ vault.Vault = (*Vault)(nil)

// sinkRole is all that the sink's identity may do.
var sinkRole = []string{"storage.objects.create", "storage.objects.get", "storage.objects.list"}

func open(t testing.TB, s *gcstest.Server, address, token string) *Vault {
	t.Helper()
	v, err := Open(t.Context(), Config{Address: address, Client: s.Client(t, token), Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func read(t testing.TB, v vault.Vault, name string) string {
	t.Helper()
	r, err := v.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func list(t testing.TB, v vault.Vault, prefix string) []string {
	t.Helper()
	var names []string
	for n, err := range v.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, n)
	}
	return names
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>9) ^ seed
	}
	return b
}

func TestCreateOpenList(t *testing.T) {
	for _, address := range []string{"gs://evidence", "gs://evidence/team/a"} {
		t.Run(address, func(t *testing.T) {
			s := gcstest.New(t)
			s.Roles = map[string][]string{"sink": sinkRole}
			s.Bucket(t, "evidence", 24*time.Hour, true)
			v := open(t, s, address, "sink")
			if v.String() != address {
				t.Errorf("address %s", v)
			}
			objects := map[string][]byte{
				"segments/a": nil, "segments/b/c": []byte("x"), "keys/k": pattern(100, 1),
				"segments/large": pattern(2*chunkSize+17, 2), "segments/chunk": pattern(chunkSize, 3),
			}
			for name, b := range objects {
				for range 2 { // the second time it is there already
					if err := v.Create(t.Context(), name, bytes.NewReader(b)); err != nil {
						t.Fatal(err)
					}
				}
				if got := read(t, v, name); got != string(b) {
					t.Errorf("%s: read %d bytes, want %d", name, len(got), len(b))
				}
				// Neither reader can be rewound, and pieces come as they come.
				if err := v.Create(t.Context(), name, iotest.HalfReader(iotest.DataErrReader(bytes.NewReader(b)))); err != nil {
					t.Errorf("%s again: %v", name, err)
				}
				for _, other := range [][]byte{append(slices.Clone(b), 0), pattern(len(b)+1, 9)} {
					if err := v.Create(t.Context(), name, bytes.NewReader(other)); !errors.Is(err, vault.ErrConflict) {
						t.Errorf("%s with other content: %v", name, err)
					}
				}
				if got := read(t, v, name); got != string(b) {
					t.Errorf("%s was changed", name)
				}
			}
			if got, want := list(t, v, "segments/"), []string{"segments/a", "segments/b/c", "segments/chunk", "segments/large"}; !slices.Equal(got, want) {
				t.Errorf("listed %v", got)
			}
			if got := list(t, v, "segments/b"); !slices.Equal(got, []string{"segments/b/c"}) {
				t.Errorf("listed %v", got)
			}
			if got := list(t, v, ""); len(got) != len(objects) {
				t.Errorf("listed %v", got)
			}
			if _, err := v.Open(t.Context(), "segments/none"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open of nothing: %v", err)
			}
			for _, bad := range []string{"", "/a", "a//b", "a/.b", "ä"} {
				if err := v.Create(t.Context(), bad, strings.NewReader("")); err == nil {
					t.Errorf("created %q", bad)
				}
				if _, err := v.Open(t.Context(), bad); err == nil {
					t.Errorf("opened %q", bad)
				}
			}
		})
	}
}

// Content of the same length and CRC32C is told apart by its bytes.
func TestSameChecksum(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", 0, false)
	v := open(t, s, "gs://evidence", "")
	a := pattern(64, 1)
	b := pattern(64, 2)
	forge(b, crc32.Checksum(a, castagnoli))
	if crc32.Checksum(a, castagnoli) != crc32.Checksum(b, castagnoli) || bytes.Equal(a, b) {
		t.Fatal("the test's own forgery failed")
	}
	if err := v.Create(t.Context(), "x", bytes.NewReader(a)); err != nil {
		t.Fatal(err)
	}
	if err := v.Create(t.Context(), "x", bytes.NewReader(b)); !errors.Is(err, vault.ErrConflict) || !strings.Contains(err.Error(), "same CRC32C") {
		t.Errorf("a forgery gives %v", err)
	}
}

// forge sets the last four bytes so that the checksum is as wanted: the effect
// of each of their bits on it is linear.
func forge(b []byte, want uint32) {
	tail := b[len(b)-4:]
	clear(tail)
	base := crc32.Checksum(b, castagnoli)
	var rows [32][2]uint32 // effect, bit
	for i := range 32 {
		binary.LittleEndian.PutUint32(tail, 1<<i)
		rows[i] = [2]uint32{crc32.Checksum(b, castagnoli) ^ base, 1 << i}
	}
	left, bits := want^base, uint32(0)
	for bit := range 32 {
		pivot := -1
		for i := bit; i < 32; i++ {
			if rows[i][0]>>bit&1 == 1 {
				pivot = i
				break
			}
		}
		rows[bit], rows[pivot] = rows[pivot], rows[bit]
		for i := range rows {
			if i != bit && rows[i][0]>>bit&1 == 1 {
				rows[i][0] ^= rows[bit][0]
				rows[i][1] ^= rows[bit][1]
			}
		}
	}
	for bit := range 32 {
		if left>>bit&1 == 1 {
			bits ^= rows[bit][1]
		}
	}
	binary.LittleEndian.PutUint32(tail, bits)
}

// Twenty-four writers of different content, several times over: one wins each
// name, the others are told; and of equal content all are.
func TestRace(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", time.Hour, true)
	v := open(t, s, "gs://evidence", "")
	for round := range 4 {
		var won, conflicts atomic.Int32
		var wg sync.WaitGroup
		name := fmt.Sprintf("segments/%d", round)
		start := make(chan struct{})
		for i := range 24 {
			wg.Go(func() {
				<-start
				content := fmt.Sprintf("writer %d", i%12) // two of each
				switch err := v.Create(t.Context(), name, strings.NewReader(content)); {
				case err == nil:
					won.Add(1)
				case errors.Is(err, vault.ErrConflict):
					conflicts.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		if won.Load() != 2 || conflicts.Load() != 22 {
			t.Errorf("%d won, %d were told of a conflict", won.Load(), conflicts.Load())
		}
	}
}

// Faults of the service, each at each request of a write: in the end the
// object is whole, or there is none.
func TestFaults(t *testing.T) {
	for _, size := range []int{100, chunkSize + 100} {
		for _, fault := range []gcstest.Fault{gcstest.Failed, gcstest.Lost, gcstest.Refused, gcstest.Dropped} {
			for at := 1; ; at++ {
				s := gcstest.New(t)
				s.Bucket(t, "evidence", time.Hour, true)
				v := open(t, s, "gs://evidence", "")
				n := 0
				s.Fault = func(r *http.Request) gcstest.Fault {
					n++
					if n == at {
						return fault
					}
					return gcstest.None
				}
				b := pattern(size, 1)
				err := v.Create(t.Context(), "segments/x", bytes.NewReader(b))
				s.Fault = nil
				retried := fault == gcstest.Failed || fault == gcstest.Lost
				// A resumable upload whose last chunk's answer is lost is asked
				// after; the fake has forgotten it by then.
				if err != nil && retried && size < chunkSize {
					t.Errorf("fault %d at request %d: %v", fault, at, err)
				}
				if errors.Is(err, vault.ErrConflict) {
					t.Errorf("fault %d at request %d is an alarm: %v", fault, at, err)
				}
				if got := s.Objects(t, "evidence"); len(got) == 1 {
					if read(t, v, "segments/x") != string(b) {
						t.Errorf("fault %d at request %d left a partial object", fault, at)
					}
				} else if err == nil {
					t.Errorf("fault %d at request %d: no error and no object", fault, at)
				}
				if err := v.Create(t.Context(), "segments/x", bytes.NewReader(b)); err != nil {
					t.Errorf("fault %d at request %d, then again: %v", fault, at, err)
				}
				if n < at || t.Failed() {
					break
				}
			}
		}
	}
}

// A source that fails leaves no object behind.
func TestSourceFails(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", 0, false)
	v := open(t, s, "gs://evidence", "")
	broken := errors.New("the spool broke")
	for _, n := range []int{0, 10, chunkSize, 2*chunkSize + 5} {
		err := v.Create(t.Context(), "x", io.MultiReader(bytes.NewReader(pattern(n, 1)), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Create(ctx, "x", strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := s.Objects(t, "evidence"); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

// A service that does not answer is given up, and a slow reader is not.
func TestSilence(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", 0, false)
	v := open(t, s, "gs://evidence", "")
	if err := v.Create(t.Context(), "x", bytes.NewReader(pattern(3<<20, 1))); err != nil {
		t.Fatal(err)
	}
	v.timeout = 100 * time.Millisecond
	r, err := v.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.Sleep(3 * v.timeout)
	if n, err := io.Copy(io.Discard, r); err != nil || n != 3<<20 {
		t.Errorf("a slow reader got %d bytes, %v", n, err)
	}
	s.Fault = func(*http.Request) gcstest.Fault { return gcstest.Failed }
	began := time.Now()
	if err := v.Create(t.Context(), "y", strings.NewReader("y")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("create: %v", err)
	}
	if _, err := v.Open(t.Context(), "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
	for _, err := range v.List(t.Context(), "") {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("list: %v", err)
		}
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("gave up after %s", d)
	}
}

// The sink's own identity cannot take back what it wrote, and neither can its
// owner while the bucket's retention lasts.
func TestTamper(t *testing.T) {
	s := gcstest.New(t)
	owner := append(slices.Clone(sinkRole), "storage.objects.delete", "storage.objects.update", "storage.buckets.get", "storage.buckets.update", "storage.buckets.delete")
	s.Roles = map[string][]string{"sink": sinkRole, "owner": owner}
	s.Bucket(t, "evidence", 24*time.Hour, true)
	v := open(t, s, "gs://evidence", "sink")
	if err := v.Create(t.Context(), "segments/x", strings.NewReader("evidence")); err != nil {
		t.Fatal(err)
	}
	attempts := map[string]func(*storage.Client) error{
		"delete": func(c *storage.Client) error { return c.Bucket("evidence").Object("segments/x").Delete(t.Context()) },
		"overwrite": func(c *storage.Client) error {
			w := c.Bucket("evidence").Object("segments/x").NewWriter(t.Context())
			_, err := w.Write([]byte("forgery"))
			return errors.Join(err, w.Close())
		},
		"overwrite in chunks": func(c *storage.Client) error {
			w := c.Bucket("evidence").Object("segments/x").NewWriter(t.Context())
			w.ChunkSize = 256 << 10
			_, err := w.Write(pattern(600<<10, 1))
			return errors.Join(err, w.Close())
		},
		"copy over": func(c *storage.Client) error {
			b := c.Bucket("evidence")
			w := b.Object("other").If(storage.Conditions{DoesNotExist: true}).NewWriter(t.Context())
			if err := w.Close(); err != nil && !precondition(err) {
				return nil // a failure of the test: the attempt must fail, not this
			}
			_, err := b.Object("segments/x").CopierFrom(b.Object("other")).Run(t.Context())
			return err
		},
		"compose over": func(c *storage.Client) error {
			b := c.Bucket("evidence")
			_, err := b.Object("segments/x").ComposerFrom(b.Object("segments/x"), b.Object("segments/x")).Run(t.Context())
			return err
		},
		"shorten the retention": func(c *storage.Client) error {
			_, err := c.Bucket("evidence").Update(t.Context(), storage.BucketAttrsToUpdate{RetentionPolicy: &storage.RetentionPolicy{RetentionPeriod: time.Second}})
			return err
		},
		"remove the retention": func(c *storage.Client) error {
			_, err := c.Bucket("evidence").Update(t.Context(), storage.BucketAttrsToUpdate{RetentionPolicy: &storage.RetentionPolicy{}})
			return err
		},
		"delete the bucket": func(c *storage.Client) error { return c.Bucket("evidence").Delete(t.Context()) },
	}
	for _, who := range []string{"sink", "owner"} {
		c := s.Client(t, who)
		for name, attempt := range attempts {
			err := attempt(c)
			var api *googleapi.Error
			if !errors.As(err, &api) || api.Code != http.StatusForbidden && api.Code != http.StatusConflict {
				t.Errorf("%s: %s: %v", who, name, err)
			}
		}
	}
	if got := read(t, v, "segments/x"); got != "evidence" {
		t.Errorf("now it holds %q", got)
	}
	// After its time it can go.
	s.Advance(25 * time.Hour)
	if err := s.Client(t, "owner").Bucket("evidence").Object("segments/x").Delete(t.Context()); err != nil {
		t.Errorf("delete after the retention: %v", err)
	}
	if s.Count("storage.objects.update") != 0 {
		t.Error("the sink updated an object")
	}
}

func TestOpenRefused(t *testing.T) {
	s := gcstest.New(t)
	s.Roles = map[string][]string{"sink": sinkRole, "blind": {"storage.objects.create"}}
	s.Bucket(t, "evidence", 0, false)
	for _, c := range []struct{ address, token, want string }{
		{"gs://none", "sink", "recorder vault init"},
		{"gs://evidence", "blind", "recorder vault check"},
		{"gs://", "sink", "bucket name"},
		{"gs://Evidence", "sink", "lower-case"},
		{"gs://evidence/.x", "sink", "dot"},
		{"gs://evidence//x", "sink", "empty"},
		{"s3://evidence", "sink", "want gs://"},
	} {
		_, err := Open(t.Context(), Config{Address: c.address, Client: s.Client(t, c.token), Timeout: 5 * time.Second})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.address, err)
		}
	}
}

func TestEmulator(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", 0, false)
	t.Setenv("STORAGE_EMULATOR_HOST", s.URL)
	v, err := Open(t.Context(), Config{Address: "gs://evidence"})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Create(t.Context(), "x", strings.NewReader("y")); err != nil {
		t.Fatal(err)
	}
	if read(t, v, "x") != "y" {
		t.Error("not what was written")
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

// Foreign names are for the reader to judge.
func TestForeign(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", 0, false)
	v := open(t, s, "gs://evidence", "")
	s.Put("evidence", "segments/ä ö", []byte("x"))
	s.Put("evidence", "segments/folder/", nil)
	if got := list(t, v, "segments/"); !slices.Equal(got, []string{"segments/ä ö"}) {
		t.Errorf("listed %q", got)
	}
}
