package emulator

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what the double does.
type Config struct {
	// Backend is the URL of bqemulator's REST port; empty serves synthetic
	// queries and discards uploads.
	Backend string
	// Token is the only bearer token that is let in; empty lets all in. See
	// also [Double.SetToken].
	Token string
	// Gzip compresses responses for clients that accept it.
	Gzip bool
	// PublicURL is the scheme, host and port that Location headers and discovery
	// name; empty takes the host of the request.
	PublicURL string
	// Keep is how many requests the log keeps, default 10000; older ones go.
	Keep int
	// KeepBody is the size in bytes up to which a request's body is kept in
	// the log, default 64 KiB; larger ones have only length and digest.
	KeepBody int64
	// SpoolDir holds uploads on their way to the backend; empty is the system's.
	SpoolDir string
	// Logger gets what goes wrong in the double itself; nil discards it.
	Logger *slog.Logger
}

// Double is the HTTP handler in front of the emulator. It is safe for
// concurrent use.
type Double struct {
	cfg          Config
	backend      *url.URL
	proxy        *httputil.ReverseProxy
	client       *http.Client
	unauthorized atomic.Int64

	mu       sync.Mutex
	token    string
	requests []Request
	dropped  int
	fault    *Fault
	jobs     map[string]*job      // by job id
	tables   map[string]string    // anonymous table to job id
	uploads  map[string]*resuming // by upload id
	sessions map[string]bool
	asked    map[string]string // job id by project and requestId
	made     int               // jobs, ever
	finished []Upload
	// What the double was told of SQL; the maps of texts are replaced, not changed.
	views, routines map[string]string
	bytes           map[string]int64
	told            map[string]*References
}

// Request is what the double saw of one request.
type Request struct {
	Time   time.Time
	Method string
	// Host, Path and RawQuery are as they came.
	Host, Path, RawQuery string
	// Header has all but the values of Authorization, each of which is
	// "sha256:" and the hex digest of the value.
	Header http.Header
	// Length and BodySHA256 are of the body's bytes as they came, compressed
	// or not; -1 and empty until it was read to its end.
	Length     int64
	BodySHA256 string
	// Body is kept when it is small.
	Body []byte
	// Status is the response's, 0 until it began.
	Status int
}

// TokenDigest is how the log shows the Authorization header of a bearer token.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte("Bearer " + token))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// NewDouble returns a double.
func NewDouble(c Config) (*Double, error) {
	if c.Keep == 0 {
		c.Keep = 10000
	}
	if c.KeepBody == 0 {
		c.KeepBody = 64 << 10
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Double{cfg: c, token: c.Token, jobs: map[string]*job{}, tables: map[string]string{}, uploads: map[string]*resuming{}, sessions: map[string]bool{}, asked: map[string]string{}}
	if c.Backend == "" {
		return d, nil
	}
	u, err := url.Parse(c.Backend)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("backend %q: use a URL like http://127.0.0.1:9050", c.Backend)
	}
	d.backend = u
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, IdleConnTimeout: 30 * time.Second}
	d.client = &http.Client{Transport: transport}
	d.proxy = &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			// The emulator must not see a credential that it does not check.
			r.Out.Header.Del("Authorization")
			r.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: d.learn,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				c.Logger.Error("emulator does not answer", "path", r.URL.Path, "error", err)
			}
			writeError(w, http.StatusServiceUnavailable, "backendError", "the emulator does not answer: "+err.Error())
		},
	}
	return d, nil
}

// Close frees what the double holds: unfinished uploads and idle connections.
func (d *Double) Close() {
	d.mu.Lock()
	uploads := d.uploads
	d.uploads = map[string]*resuming{}
	d.mu.Unlock()
	for _, u := range uploads {
		u.mu.Lock()
		u.drop()
		u.mu.Unlock()
	}
	if d.client != nil {
		d.client.CloseIdleConnections()
	}
}

// SetToken changes the token that is let in.
func (d *Double) SetToken(token string) {
	d.mu.Lock()
	d.token = token
	d.mu.Unlock()
}

// Unauthorized is how many requests were refused with 401.
func (d *Double) Unauthorized() int64 { return d.unauthorized.Load() }

// Requests returns the log, oldest first. Headers and bodies are shared and
// must not be changed.
func (d *Double) Requests() []Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.requests)
}

// Uploads returns the uploads that were finished, oldest first.
func (d *Double) Uploads() []Upload {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.finished)
}

// Reset forgets the log, the finished uploads, the counts and the fault, not
// the jobs.
func (d *Double) Reset() {
	d.unauthorized.Store(0)
	d.mu.Lock()
	d.dropped += len(d.requests)
	d.requests, d.finished, d.fault = nil, nil, nil
	d.mu.Unlock()
}

// ServeHTTP implements [http.Handler].
func (d *Double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	entry, body := d.note(r)
	r.Body = body
	cw := &countingWriter{ResponseWriter: w, ctx: r.Context(), status: func(code int) { d.update(entry, func(q *Request) { q.Status = code }) }}
	w = cw
	if f := d.takeFault(r); f != nil {
		if f.Kind == FaultStatus {
			// Read the body first: else the client may see a reset in its place.
			_, _ = io.Copy(io.Discard, r.Body)
			writeError(w, f.Status, reasonOf(f.Status), "fault on request")
			return
		}
		cw.fault = f
	}
	if !d.authorized(r) {
		d.unauthorized.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/", error="invalid_token"`)
		writeError(w, http.StatusUnauthorized, "authError", "Request had invalid authentication credentials.")
		return
	}
	if d.cfg.Gzip && r.Method != http.MethodHead && acceptsGzip(r) {
		gz := &gzipWriter{ResponseWriter: w}
		defer gz.finish()
		w = gz
	}
	d.route(w, r)
	// What a handler left unread still counts in the log.
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
}

func (d *Double) authorized(r *http.Request) bool {
	d.mu.Lock()
	token := d.token
	d.mu.Unlock()
	if token == "" {
		return true
	}
	v := r.Header.Values("Authorization")
	return len(v) == 1 && v[0] == "Bearer "+token
}

// route finds what a path means. Clients write paths in several forms.
func (d *Double) route(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch {
	case path == "/$discovery/rest" || path == "/discovery/v1/apis/bigquery/v2/rest":
		d.discovery(w, r)
		return
	case strings.HasPrefix(path, "/resumable/upload/bigquery/v2/"):
		path = strings.TrimPrefix(path, "/resumable")
	case strings.HasPrefix(path, "/projects"):
		path = "/bigquery/v2" + path
	case strings.HasPrefix(path, "/upload/projects/"):
		path = "/upload/bigquery/v2" + strings.TrimPrefix(path, "/upload")
	}
	r.URL.Path, r.URL.RawPath = path, ""
	if rest, ok := strings.CutPrefix(path, "/upload/bigquery/v2/projects/"); ok {
		if project, ok := strings.CutSuffix(rest, "/jobs"); ok && !strings.Contains(project, "/") {
			d.upload(w, r, project)
			return
		}
		writeError(w, http.StatusNotFound, "notFound", "Not found: "+path)
		return
	}
	rest, ok := strings.CutPrefix(path, "/bigquery/v2/projects")
	if !ok {
		writeError(w, http.StatusNotFound, "notFound", "Not found: "+path)
		return
	}
	part := strings.Split(strings.TrimPrefix(rest, "/"), "/")
	if fields := r.URL.Query().Get("fields"); fields != "" && !(len(part) == 3 && d.synthetic(part[2])) {
		var whole captured
		defer func(w http.ResponseWriter) {
			whole.filter(fields)
			whole.copyTo(w)
		}(w)
		w = &whole
	}
	switch {
	case len(part) == 2 && part[1] == "queries" && r.Method == http.MethodPost:
		d.query(w, r, part[0])
	case len(part) == 3 && part[1] == "queries" && r.Method == http.MethodGet:
		d.results(w, r, part[0], part[2])
	case len(part) == 2 && part[1] == "jobs" && r.Method == http.MethodPost:
		d.insert(w, r, part[0])
	case len(part) == 2 && part[1] == "jobs" && r.Method == http.MethodGet && r.URL.Query().Get("parentJobId") != "":
		d.children(w, r, part[0], r.URL.Query().Get("parentJobId"))
	case len(part) == 2 && part[1] == "jobs" && r.Method == http.MethodGet:
		d.list(w, r, part[0])
	case len(part) == 3 && part[1] == "jobs" && r.Method == http.MethodGet:
		d.job(w, r, part[0], part[2])
	case len(part) == 4 && part[1] == "jobs" && part[3] == "cancel" && r.Method == http.MethodPost:
		d.cancel(w, r, part[0], part[2])
	case len(part) == 4 && part[1] == "datasets" && part[3] == "tables" && r.Method == http.MethodPost:
		d.insertTable(w, r, part[0], part[2])
	case len(part) == 6 && part[1] == "datasets" && part[3] == "tables" && part[5] == "data" && r.Method == http.MethodGet:
		d.rows(w, r, part[0], part[2], part[4])
	default:
		d.forward(w, r)
	}
}

// forward passes a request on to the emulator.
func (d *Double) forward(w http.ResponseWriter, r *http.Request) {
	if d.proxy == nil {
		writeError(w, http.StatusNotFound, "notFound", "Not found: "+r.URL.Path+" (no emulator behind)")
		return
	}
	d.proxy.ServeHTTP(w, r)
}

// ask sends a request of the double's own to the emulator and returns the
// whole answer.
func (d *Double) ask(r *http.Request, method, path string, header http.Header, body io.Reader, length int64) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(r.Context(), method, d.backend.Scheme+"://"+d.backend.Host+path, body)
	if err != nil {
		return nil, nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.ContentLength = length
	res, err := d.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, nil, err
	}
	return res, b, nil
}

// note adds a request to the log. The body that it returns fills in length
// and digest as it is read.
func (d *Double) note(r *http.Request) (entry int, body io.ReadCloser) {
	q := Request{Time: time.Now(), Method: r.Method, Host: r.Host, Path: r.URL.EscapedPath(), RawQuery: r.URL.RawQuery, Header: r.Header.Clone(), Length: -1}
	for i, v := range q.Header["Authorization"] {
		sum := sha256.Sum256([]byte(v))
		q.Header["Authorization"][i] = "sha256:" + hex.EncodeToString(sum[:])
	}
	d.mu.Lock()
	d.requests = append(d.requests, q)
	if n := len(d.requests) - d.cfg.Keep; n > 0 {
		d.requests = slices.Delete(d.requests, 0, n)
		d.dropped += n
	}
	entry = d.dropped + len(d.requests) - 1
	d.mu.Unlock()
	return entry, &notedBody{ReadCloser: r.Body, d: d, entry: entry, hash: sha256.New()}
}

func (d *Double) update(entry int, change func(*Request)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := entry - d.dropped; i >= 0 && i < len(d.requests) {
		change(&d.requests[i])
	}
}

type notedBody struct {
	io.ReadCloser
	d     *Double
	entry int
	hash  hash.Hash
	n     int64
	kept  []byte
	done  bool
}

func (b *notedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.hash.Write(p[:n])
		if b.n += int64(n); b.n <= b.d.cfg.KeepBody {
			b.kept = append(b.kept, p[:n]...)
		} else {
			b.kept = nil
		}
	}
	if errors.Is(err, io.EOF) && !b.done {
		b.done = true
		b.d.update(b.entry, func(q *Request) {
			q.Length, q.BodySHA256, q.Body = b.n, hex.EncodeToString(b.hash.Sum(nil)), b.kept
		})
	}
	return n, err
}

// readJSON reads a request's JSON body, inflated if need be.
func readJSON(r *http.Request, into any) ([]byte, error) {
	var body io.Reader = r.Body
	if strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip") {
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, fmt.Errorf("request body: %w", err)
		}
		body = z
	}
	b, err := io.ReadAll(io.LimitReader(body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("request body: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return nil, fmt.Errorf("request body: %w", err)
	}
	return b, nil
}

// replay puts a body that was read back into a request.
func replay(r *http.Request, body []byte) {
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.TransferEncoding = nil
	r.Header.Del("Content-Encoding")
	r.Header.Set("Content-Length", fmt.Sprint(len(body)))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		writeError(w, http.StatusInternalServerError, "internalError", err.Error())
		return
	}
	writeBody(w, status, b)
}

func writeBody(w http.ResponseWriter, status int, b []byte) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// writeError answers in BigQuery's error shape.
func writeError(w http.ResponseWriter, code int, reason, message string) {
	writeErrors(w, code, message, []any{map[string]any{"message": message, "domain": "global", "reason": reason}})
}

func writeErrors(w http.ResponseWriter, code int, message string, errs []any) {
	writeJSON(w, code, map[string]any{"error": map[string]any{"code": code, "message": message, "errors": errs, "status": statusWords[code]}})
}

var statusWords = map[int]string{
	400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 412: "FAILED_PRECONDITION",
	429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}

// codeOf is the HTTP status of a reason, by the BigQuery error table
// (https://cloud.google.com/bigquery/docs/error-messages).
func codeOf(reason string) int {
	switch reason {
	case "accessDenied", "billingNotEnabled", "blocked", "quotaExceeded", "rateLimitExceeded", "responseTooLarge":
		return http.StatusForbidden
	case "notFound":
		return http.StatusNotFound
	case "duplicate":
		return http.StatusConflict
	case "internalError":
		return http.StatusInternalServerError
	case "backendError":
		return http.StatusServiceUnavailable
	case "notImplemented":
		return http.StatusNotImplemented
	}
	return http.StatusBadRequest
}

func reasonOf(code int) string {
	switch code {
	case 403:
		return "accessDenied"
	case 404:
		return "notFound"
	case 409:
		return "duplicate"
	case 500:
		return "internalError"
	case 502, 503, 504:
		return "backendError"
	}
	return "invalid"
}

// publicURL is what the client should think it talks to.
func (d *Double) publicURL(r *http.Request) string {
	if d.cfg.PublicURL != "" {
		return strings.TrimSuffix(d.cfg.PublicURL, "/")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

func acceptsGzip(r *http.Request) bool {
	for _, v := range r.Header.Values("Accept-Encoding") {
		for p := range strings.SplitSeq(v, ",") {
			name, q, _ := strings.Cut(strings.TrimSpace(p), ";")
			if strings.EqualFold(name, "gzip") && strings.ReplaceAll(q, " ", "") != "q=0" {
				return true
			}
		}
	}
	return false
}

type gzipWriter struct {
	http.ResponseWriter
	z     *gzip.Writer
	wrote bool
}

func (g *gzipWriter) WriteHeader(code int) {
	if g.wrote {
		return
	}
	g.wrote = true
	if code != http.StatusNoContent && code >= 200 && code != http.StatusNotModified && code != 308 {
		g.Header().Del("Content-Length")
		g.Header().Set("Content-Encoding", "gzip")
		g.Header().Add("Vary", "Accept-Encoding")
		g.z = gzip.NewWriter(g.ResponseWriter)
	}
	g.ResponseWriter.WriteHeader(code)
}

func (g *gzipWriter) Write(b []byte) (int, error) {
	g.WriteHeader(http.StatusOK)
	if g.z == nil {
		return g.ResponseWriter.Write(b)
	}
	return g.z.Write(b)
}

func (g *gzipWriter) Unwrap() http.ResponseWriter { return g.ResponseWriter }

func (g *gzipWriter) finish() {
	if g.z != nil {
		_ = g.z.Close()
	}
}

// tempFile makes a spool file that is gone when it is closed.
func (d *Double) tempFile() (*os.File, error) {
	f, err := os.CreateTemp(d.cfg.SpoolDir, "verbatim-upload-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
