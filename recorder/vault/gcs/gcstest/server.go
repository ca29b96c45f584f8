// Package gcstest is Cloud Storage for tests: fake-gcs-server, which keeps the
// objects, behind a handler of its own that enforces what the fake does not:
// retention policies and their lock, holds, metagenerations, the rules of
// buckets, and permissions.
//
// The rules are those of the public documentation: Bucket Lock
// (https://cloud.google.com/storage/docs/bucket-lock), object holds
// (https://cloud.google.com/storage/docs/object-holds) and the errors of the
// JSON API (https://cloud.google.com/storage/docs/json_api/v1/status-codes).
package gcstest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/googleapis/gax-go/v2"
	"golang.org/x/oauth2"
	"google.golang.org/api/option"
)

// Fault is what happens to a request.
type Fault int

// The faults.
const (
	None    Fault = iota
	Failed        // 503, and nothing was done
	Lost          // done, and the answer is 503
	Refused       // 400, and nothing was done: the client does not try again
	Dropped       // done, and the answer is 400
)

// Server is a Cloud Storage. Its fields are set before the first request.
type Server struct {
	// URL is the server's, for STORAGE_EMULATOR_HOST.
	URL string
	// Roles gives permissions ("storage.objects.create") to tokens. Where it
	// is nil everybody may do everything.
	Roles map[string][]string
	// Fault, where set, is asked about each request.
	Fault func(r *http.Request) Fault

	fake *fakestorage.Server
	next http.Handler

	mu      sync.Mutex
	ahead   time.Duration // of the clock
	buckets map[string]map[string]any
	holds   map[string]string    // by bucket/object: the kind
	created map[string]time.Time // by bucket/object
	uploads map[string]*upload   // resumable, by id
	counts  map[string]int
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		buckets: map[string]map[string]any{}, holds: map[string]string{}, created: map[string]time.Time{},
		uploads: map[string]*upload{}, counts: map[string]int{},
	}
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	s.URL = ts.URL
	host, err := url.Parse(ts.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.fake, err = fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, ExternalURL: ts.URL, PublicHost: host.Host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.fake.Stop)
	s.next = s.fake.HTTPHandler()
	return s
}

// Client returns a client that carries the token, empty for none.
func (s *Server) Client(t testing.TB, token string) *storage.Client {
	t.Helper()
	auth := option.WithoutAuthentication()
	if token != "" {
		auth = option.WithHTTPClient(oauth2.NewClient(context.Background(), oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token})))
	}
	c, err := storage.NewClient(context.Background(), option.WithEndpoint(s.URL+"/storage/v1/"), auth)
	if err != nil {
		t.Fatal(err)
	}
	c.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithBackoff(gax.Backoff{Initial: 5 * time.Millisecond, Max: 50 * time.Millisecond}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Bucket makes a bucket with a retention period, 0 for none.
func (s *Server) Bucket(t testing.TB, name string, retention time.Duration, locked bool) {
	t.Helper()
	doc := map[string]any{"name": name}
	if retention > 0 {
		doc["retentionPolicy"] = map[string]any{
			"retentionPeriod": strconv.FormatInt(int64(retention/time.Second), 10),
			"effectiveTime":   s.Now().Format(time.RFC3339), "isLocked": locked,
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fake.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: name})
	s.fill(doc)
	s.buckets[name] = doc
}

// Now returns the server's time.
func (s *Server) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

func (s *Server) now() time.Time { return time.Now().UTC().Add(s.ahead) }

// Advance sets the server's clock forward.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

// Count returns how many requests of a permission were allowed.
func (s *Server) Count(permission string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[permission]
}

// Objects returns the names in a bucket, sorted.
func (s *Server) Objects(t testing.TB, bucket string) []string {
	t.Helper()
	list, err := s.fake.ListObjectsWithOptionsPaginated(bucket, fakestorage.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range list.Objects {
		names = append(names, o.Name)
	}
	slices.Sort(names)
	return names
}

// Put replaces an object whatever the rules say: Google itself, or a bug.
func (s *Server) Put(bucket, name string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fake.CreateObject(fakestorage.Object{ObjectAttrs: fakestorage.ObjectAttrs{BucketName: bucket, Name: name}, Content: content})
	if _, ok := s.created[bucket+"/"+name]; !ok {
		s.created[bucket+"/"+name] = s.now()
	}
}

// upload is a resumable upload that has begun.
type upload struct {
	object   string
	creates  bool // only where there is no object
	received int64
	done     *httptest.ResponseRecorder // the answer to the last chunk
}

// call is a request and what it wants.
type call struct {
	permissions []string
	bucket      string
	object      string // of the target
	replaces    bool   // the target, where there is one
	do          func(w http.ResponseWriter)
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	fault := None
	if s.Fault != nil {
		fault = s.Fault(r)
	}
	switch fault {
	case Failed:
		fail(w, http.StatusServiceUnavailable, "backendError", "injected fault")
		return
	case Refused:
		fail(w, http.StatusBadRequest, "invalid", "injected fault")
		return
	case Lost, Dropped:
		s.serve(httptest.NewRecorder(), r, body)
		if fault == Lost {
			fail(w, http.StatusServiceUnavailable, "backendError", "injected fault")
		} else {
			fail(w, http.StatusBadRequest, "invalid", "injected fault")
		}
		return
	}
	s.serve(w, r, body)
}

func fail(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": code, "message": message,
		"errors": []any{map[string]any{"message": message, "domain": "global", "reason": reason}},
	}})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	_ = json.NewEncoder(w).Encode(v)
}

// serve decides under the lock, so that what is decided is what is done.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	c, ok := s.classify(r, body)
	if !ok {
		fail(w, http.StatusNotFound, "notFound", "no such route in this server: "+r.Method+" "+r.URL.Path)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := c.bucket + "/" + c.object
	_, exists := s.created[key]
	if c.object != "" && c.replaces && exists {
		c.permissions = append(c.permissions, "storage.objects.delete")
	}
	if s.Roles != nil {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		for _, p := range c.permissions {
			if !slices.Contains(s.Roles[token], p) {
				fail(w, http.StatusForbidden, "forbidden", fmt.Sprintf("%s@example.com does not have %s access. Permission '%s' denied on resource (or it may not exist).", token, p, p))
				return
			}
		}
	}
	for _, p := range c.permissions {
		s.counts[p]++
	}
	if c.replaces && exists {
		if hold := s.holds[key]; hold != "" {
			fail(w, http.StatusForbidden, "objectUnderActiveHold", fmt.Sprintf("Object '%s' is under active %s hold and cannot be deleted, overwritten or archived until hold is removed.", key, hold))
			return
		}
		if until := s.created[key].Add(s.retention(c.bucket)); s.now().Before(until) {
			fail(w, http.StatusForbidden, "retentionPolicyNotMet", fmt.Sprintf("Object '%s' is subject to bucket's retention policy or object retention and cannot be deleted or overwritten until %s", key, until.Format(time.RFC3339Nano)))
			return
		}
	}
	c.do(w)
}

func (s *Server) retention(bucket string) time.Duration {
	policy, _ := s.buckets[bucket]["retentionPolicy"].(map[string]any)
	n, _ := strconv.ParseInt(fmt.Sprint(policy["retentionPeriod"]), 10, 64)
	return time.Duration(n) * time.Second
}

// classify says what a request is.
func (s *Server) classify(r *http.Request, body []byte) (call, bool) {
	path := r.URL.EscapedPath()
	pass := func(w http.ResponseWriter) { s.forward(w, r, body) }
	if rest, ok := strings.CutPrefix(path, "/upload/storage/v1/b/"); ok {
		bucket, _, _ := strings.Cut(rest, "/")
		c := call{permissions: []string{"storage.objects.create"}, bucket: bucket, replaces: !creates(r)}
		if id := r.URL.Query().Get("upload_id"); id != "" {
			s.mu.Lock()
			u := s.uploads[id]
			s.mu.Unlock()
			if u == nil {
				return call{}, false
			}
			c.object, c.replaces = u.object, !u.creates && r.Method != http.MethodDelete
			c.do = func(w http.ResponseWriter) { s.chunk(w, r, body, bucket, u) }
			return c, true
		}
		c.object = uploadName(r, body)
		key := bucket + "/" + c.object
		c.do = func(w http.ResponseWriter) {
			rec := httptest.NewRecorder()
			s.forward(rec, r, body)
			if l, err := url.Parse(rec.Header().Get("Location")); err == nil && l.Query().Get("upload_id") != "" {
				s.uploads[l.Query().Get("upload_id")] = &upload{object: c.object, creates: creates(r)}
			} else if rec.Code == http.StatusOK {
				s.created[key] = s.now()
			}
			copyTo(w, rec)
		}
		return c, true
	}
	rest, ok := strings.CutPrefix(path, "/storage/v1/b")
	if !ok {
		// The XML API, by which the client reads.
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return call{permissions: []string{"storage.objects.get"}, do: pass}, true
		}
		return call{}, false
	}
	rest = strings.Trim(rest, "/")
	if rest == "" {
		if r.Method == http.MethodPost {
			return call{permissions: []string{"storage.buckets.create"}, do: func(w http.ResponseWriter) { s.insertBucket(w, r, body) }}, true
		}
		return call{permissions: []string{"storage.buckets.list"}, do: pass}, true
	}
	bucket, rest, _ := strings.Cut(rest, "/")
	c := call{bucket: bucket, do: pass}
	what, object, _ := strings.Cut(rest, "/")
	switch {
	case rest == "" && r.Method == http.MethodGet:
		c.permissions, c.do = []string{"storage.buckets.get"}, func(w http.ResponseWriter) { s.getBucket(w, bucket) }
	case rest == "" && r.Method == http.MethodPatch:
		c.permissions, c.do = []string{"storage.buckets.update"}, func(w http.ResponseWriter) { s.patchBucket(w, r, bucket, body) }
	case rest == "" && r.Method == http.MethodDelete:
		c.permissions, c.do = []string{"storage.buckets.delete"}, func(w http.ResponseWriter) { s.deleteBucket(w, r, bucket, body) }
	case rest == "lockRetentionPolicy" && r.Method == http.MethodPost:
		c.permissions, c.do = []string{"storage.buckets.update"}, func(w http.ResponseWriter) { s.lock(w, r, bucket) }
	case what == "o" && object == "":
		c.permissions = []string{"storage.objects.list"}
	case what == "o" && strings.Contains(object, "/rewriteTo/b/") || what == "o" && strings.Contains(object, "/copyTo/b/"):
		_, to, _ := strings.Cut(object, "To/b/")
		dest, name, _ := strings.Cut(to, "/o/")
		c.permissions, c.bucket, c.object, c.replaces = []string{"storage.objects.create", "storage.objects.get"}, dest, unescape(name), true
		c.do = s.creating(c.bucket+"/"+c.object, r, body)
	case what == "o" && strings.HasSuffix(object, "/compose"):
		c.permissions, c.object, c.replaces = []string{"storage.objects.create", "storage.objects.get"}, unescape(strings.TrimSuffix(object, "/compose")), true
		c.do = s.creating(bucket+"/"+c.object, r, body)
	case what == "o" && r.Method == http.MethodGet:
		c.permissions, c.object = []string{"storage.objects.get"}, unescape(object)
		c.do = func(w http.ResponseWriter) { s.getObject(w, r, body, bucket+"/"+c.object) }
	case what == "o" && r.Method == http.MethodDelete:
		c.permissions, c.object, c.replaces = []string{"storage.objects.delete"}, unescape(object), true
		c.do = func(w http.ResponseWriter) {
			// The fake does not look at the condition.
			if want := r.URL.Query().Get("ifGenerationMatch"); want != "" {
				o, err := s.fake.GetObject(bucket, c.object)
				if err == nil && strconv.FormatInt(o.Generation, 10) != want {
					fail(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
					return
				}
			}
			s.forward(w, r, body)
			delete(s.created, bucket+"/"+c.object)
		}
	case what == "o" && (r.Method == http.MethodPatch || r.Method == http.MethodPut || r.Method == http.MethodPost):
		c.permissions, c.object = []string{"storage.objects.update"}, unescape(object)
		c.do = func(w http.ResponseWriter) { s.patchObject(w, r, body, bucket+"/"+c.object) }
	default:
		return call{}, false
	}
	return c, true
}

// creates reports whether the request is about an object that is not there.
func creates(r *http.Request) bool { return r.URL.Query().Get("ifGenerationMatch") == "0" }

func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

// chunk takes a part of a resumable upload. The fake appends what comes; the
// service knows what it has.
// https://cloud.google.com/storage/docs/performing-resumable-uploads
func (s *Server) chunk(w http.ResponseWriter, r *http.Request, body []byte, bucket string, u *upload) {
	if u.done != nil {
		copyTo(w, u.done)
		return
	}
	var from, to int64
	if n, _ := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/", &from, &to); r.Method != http.MethodDelete && (n == 2 && to < u.received || strings.HasPrefix(r.Header.Get("Content-Range"), "bytes */*")) {
		if u.received > 0 {
			w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", u.received-1))
		}
		w.Header().Set("X-Http-Status-Code-Override", "308")
		w.WriteHeader(http.StatusOK)
		return
	}
	rec := httptest.NewRecorder()
	s.forward(rec, r, body)
	u.received += int64(len(body))
	if rec.Code == http.StatusOK && rec.Header().Get("X-Http-Status-Code-Override") == "" && r.Method != http.MethodDelete {
		s.created[bucket+"/"+u.object] = s.now()
		u.done = rec
	}
	copyTo(w, rec)
}

func copyTo(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	maps.Copy(w.Header(), rec.Header())
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

// uploadName finds the object's name in the query or in the metadata.
func uploadName(r *http.Request, body []byte) string {
	if n := r.URL.Query().Get("name"); n != "" {
		return n
	}
	var meta struct{ Name string }
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if b := params["boundary"]; err == nil && b != "" {
		part, err := multipart.NewReader(bytes.NewReader(body), b).NextPart()
		if err == nil {
			_ = json.NewDecoder(part).Decode(&meta)
		}
		return meta.Name
	}
	_ = json.Unmarshal(body, &meta)
	return meta.Name
}

func (s *Server) forward(w http.ResponseWriter, r *http.Request, body []byte) {
	r.Body = io.NopCloser(bytes.NewReader(body))
	s.next.ServeHTTP(w, r)
}

func (s *Server) creating(key string, r *http.Request, body []byte) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		rec := httptest.NewRecorder()
		s.forward(rec, r, body)
		if rec.Code == http.StatusOK {
			s.created[key] = s.now()
		}
		copyTo(w, rec)
	}
}

// getObject adds what the fake does not know.
func (s *Server) getObject(w http.ResponseWriter, r *http.Request, body []byte, key string) {
	rec := httptest.NewRecorder()
	s.forward(rec, r, body)
	var doc map[string]any
	if rec.Code != http.StatusOK || r.URL.Query().Get("alt") == "media" || json.Unmarshal(rec.Body.Bytes(), &doc) != nil {
		copyTo(w, rec)
		return
	}
	answer(w, s.object(doc, key))
}

func (s *Server) object(doc map[string]any, key string) map[string]any {
	doc["temporaryHold"] = s.holds[key] == "Temporary"
	doc["eventBasedHold"] = s.holds[key] == "Event-Based"
	doc["timeCreated"] = s.created[key].Format(time.RFC3339Nano)
	if d := s.retention(strings.SplitN(key, "/", 2)[0]); d > 0 {
		doc["retentionExpirationTime"] = s.created[key].Add(d).Format(time.RFC3339Nano)
	}
	return doc
}

func (s *Server) patchObject(w http.ResponseWriter, r *http.Request, body []byte, key string) {
	var patch map[string]any
	if json.Unmarshal(body, &patch) != nil {
		fail(w, http.StatusBadRequest, "parseError", "Parse Error")
		return
	}
	rec := httptest.NewRecorder()
	s.forward(rec, r, body)
	var doc map[string]any
	if rec.Code != http.StatusOK || json.Unmarshal(rec.Body.Bytes(), &doc) != nil {
		copyTo(w, rec)
		return
	}
	for field, kind := range map[string]string{"temporaryHold": "Temporary", "eventBasedHold": "Event-Based"} {
		switch patch[field] {
		case true:
			s.holds[key] = kind
		case false:
			delete(s.holds, key)
		}
	}
	answer(w, s.object(doc, key))
}
