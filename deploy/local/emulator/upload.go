package emulator

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DiscardDataset is the dataset whose loads are counted and thrown away.
const DiscardDataset = "verbatim_discard"

// maxUploads bounds the uploads that are under way.
const maxUploads = 1000

// Upload is a finished upload.
type Upload struct {
	Project, JobID string
	// Kind is multipart or resumable; Requests is how many carried it.
	Kind     string
	Requests int
	Bytes    int64
	SHA256   string
	// Configuration is the job's, as the client sent it.
	Configuration json.RawMessage
	Discarded     bool
}

// resuming is an upload that is under way.
type resuming struct {
	mu       sync.Mutex
	project  string
	request  jobRequest
	kind     string
	requests int
	hash     hash.Hash
	n        int64
	spool    *os.File // nil: discard
	done     []byte   // the answer, once it is complete
	status   int
}

func (u *resuming) drop() {
	if u.spool != nil {
		_ = u.spool.Close()
		u.spool = nil
	}
}

func (u *resuming) Write(b []byte) (int, error) {
	u.hash.Write(b)
	u.n += int64(len(b))
	if u.spool != nil {
		return u.spool.Write(b)
	}
	return len(b), nil
}

// upload is jobs.insert with media, in the forms of all clients: multipart
// with any part types; resumable by PUT, or by POST with X-GUploader-No-308
// (Go).
func (d *Double) upload(w http.ResponseWriter, r *http.Request, project string) {
	if id := r.URL.Query().Get("upload_id"); id != "" {
		switch r.Method {
		case http.MethodPut, http.MethodPost:
			d.chunk(w, r, id)
		case http.MethodDelete:
			d.mu.Lock()
			u := d.uploads[id]
			delete(d.uploads, id)
			d.mu.Unlock()
			if u != nil {
				u.mu.Lock()
				u.drop()
				u.mu.Unlock()
			}
			w.WriteHeader(499)
		default:
			writeError(w, http.StatusMethodNotAllowed, "invalid", "use PUT or POST")
		}
		return
	}
	if r.Method != http.MethodPost {
		writeError(w, http.StatusMethodNotAllowed, "invalid", "use POST")
		return
	}
	switch kind := r.URL.Query().Get("uploadType"); kind {
	case "multipart":
		d.multipart(w, r, project)
	case "resumable":
		d.begin(w, r, project)
	default:
		writeError(w, http.StatusBadRequest, "invalid", fmt.Sprintf("uploadType %q: use multipart or resumable", kind))
	}
}

func (d *Double) newUpload(project, kind string, body []byte) (*resuming, error) {
	u := &resuming{project: project, kind: kind, hash: sha256.New()}
	var c jobConfiguration
	if err := json.Unmarshal(body, &u.request); err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	if err := json.Unmarshal(u.request.Configuration, &c); err != nil || c.Load == nil {
		return nil, errors.New("job: configuration.load is missing")
	}
	if d.proxy != nil && c.Load.DestinationTable.DatasetID != DiscardDataset {
		f, err := d.tempFile()
		if err != nil {
			return nil, err
		}
		u.spool = f
	}
	return u, nil
}

func (d *Double) multipart(w http.ResponseWriter, r *http.Request, project string) {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(mediaType, "multipart/") || params["boundary"] == "" {
		writeError(w, http.StatusBadRequest, "badRequest", "a multipart upload needs a multipart content type with a boundary")
		return
	}
	parts := multipart.NewReader(r.Body, params["boundary"])
	meta, err := parts.NextRawPart()
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(meta, 16<<20))
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, "badRequest", "multipart upload, first part: "+err.Error())
		return
	}
	u, err := d.newUpload(project, "multipart", body)
	if err != nil {
		writeError(w, http.StatusBadRequest, "invalid", err.Error())
		return
	}
	defer u.drop()
	u.requests = 1
	media, err := parts.NextRawPart()
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{u}, media, make([]byte, 256<<10))
	}
	if err == nil {
		if _, end := parts.NextRawPart(); !errors.Is(end, io.EOF) {
			err = errors.New("more than two parts, or no closing boundary")
		}
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, "badRequest", "multipart upload, second part: "+err.Error())
		return
	}
	status, answer := d.load(r, u)
	writeBody(w, status, answer)
}

// begin opens a resumable upload.
func (d *Double) begin(w http.ResponseWriter, r *http.Request, project string) {
	var raw json.RawMessage
	body, err := readJSON(r, &raw)
	if err != nil {
		writeError(w, http.StatusBadRequest, "parseError", err.Error())
		return
	}
	u, err := d.newUpload(project, "resumable", body)
	if err != nil {
		writeError(w, http.StatusBadRequest, "invalid", err.Error())
		return
	}
	id := newID("u")
	d.mu.Lock()
	full := len(d.uploads) >= maxUploads
	if !full {
		d.uploads[id] = u
	}
	d.mu.Unlock()
	if full {
		u.drop()
		writeError(w, http.StatusServiceUnavailable, "backendError", "too many uploads under way")
		return
	}
	w.Header().Set("Location", d.publicURL(r)+"/upload/bigquery/v2/projects/"+url.PathEscape(project)+"/jobs?uploadType=resumable&upload_id="+id)
	w.Header().Set("X-GUploader-UploadID", id)
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
}

var contentRange = regexp.MustCompile(`^bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$`)

// chunk takes a piece of a resumable upload, or tells how far it is.
func (d *Double) chunk(w http.ResponseWriter, r *http.Request, id string) {
	d.mu.Lock()
	u := d.uploads[id]
	d.mu.Unlock()
	if u == nil {
		writeError(w, http.StatusNotFound, "notFound", "Not found: upload "+id)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.requests++
	if u.done != nil {
		writeBody(w, u.status, u.done)
		return
	}
	total := int64(-1) // unknown
	probe := false
	start := u.n
	if h := r.Header.Get("Content-Range"); h != "" {
		m := contentRange.FindStringSubmatch(h)
		if m == nil {
			writeError(w, http.StatusBadRequest, "badRequest", fmt.Sprintf("Content-Range %q", h))
			return
		}
		if m[1] == "" {
			probe = true
		} else {
			start, _ = strconv.ParseInt(m[1], 10, 64)
		}
		if m[3] != "*" {
			total, _ = strconv.ParseInt(m[3], 10, 64)
		}
	} else {
		// No range: the whole body, to its end.
		total = -2
	}
	if start != u.n {
		writeError(w, http.StatusBadRequest, "badRequest", fmt.Sprintf("upload is at %d, the piece begins at %d", u.n, start))
		return
	}
	if !probe {
		if _, err := io.CopyBuffer(struct{ io.Writer }{u}, r.Body, make([]byte, 256<<10)); err != nil {
			if u.spool != nil {
				// The client is gone; it will ask how far the upload is.
				d.cfg.Logger.Warn("upload cut off", "upload", id, "error", err)
			}
			return
		}
	}
	if total == -2 {
		total = u.n
	}
	if total < 0 || u.n < total {
		d.incomplete(w, r, u)
		return
	}
	if u.n > total {
		writeError(w, http.StatusBadRequest, "badRequest", fmt.Sprintf("%d bytes came, %d were told", u.n, total))
		return
	}
	u.status, u.done = d.load(r, u)
	u.drop()
	writeBody(w, u.status, u.done)
}

// incomplete tells how far an upload is: 308, or 200 with the status in a
// header for clients that cannot take 308.
func (d *Double) incomplete(w http.ResponseWriter, r *http.Request, u *resuming) {
	if u.n > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", u.n-1))
	}
	w.Header().Set("Content-Length", "0")
	if strings.EqualFold(r.Header.Get("X-GUploader-No-308"), "yes") {
		w.Header().Set("X-Http-Status-Code-Override", "308")
		w.WriteHeader(http.StatusOK)
		return
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

// load runs the load job of a complete upload and returns the answer.
func (d *Double) load(r *http.Request, u *resuming) (status int, answer []byte) {
	id := u.request.JobReference.JobID
	chosen := id != ""
	if !chosen {
		id = newID("job_")
	}
	var c jobConfiguration
	_ = json.Unmarshal(u.request.Configuration, &c) // it was read when the upload began
	j := &job{project: u.project, labels: c.Labels}
	if !d.addJob(id, j) {
		return errorBody(http.StatusConflict, "duplicate", fmt.Sprintf("Already Exists: Job %s:US.%s", u.project, id))
	}
	done := Upload{Project: u.project, JobID: id, Kind: u.kind, Requests: u.requests, Bytes: u.n, SHA256: hex.EncodeToString(u.hash.Sum(nil)),
		Configuration: u.request.Configuration, Discarded: u.spool == nil}
	if u.spool == nil {
		now := strconv.FormatInt(time.Now().UnixMilli(), 10)
		own := map[string]any{
			"kind": "bigquery#job", "id": u.project + ":US." + id, "jobReference": map[string]any{"projectId": u.project, "jobId": id, "location": "US"},
			"configuration": u.request.Configuration, "status": map[string]any{"state": "DONE"},
			"statistics": map[string]any{"creationTime": now, "startTime": now, "endTime": now,
				"load": map[string]any{"inputFiles": "1", "inputFileBytes": strconv.FormatInt(u.n, 10), "outputRows": "0", "outputBytes": "0"}},
		}
		d.mu.Lock()
		j.own = own
		d.finished = append(d.finished, done)
		d.mu.Unlock()
		b, err := json.Marshal(own)
		if err != nil {
			return errorBody(http.StatusInternalServerError, "internalError", err.Error())
		}
		return http.StatusOK, b
	}
	status, answer, real := d.loadBackend(r, u)
	d.mu.Lock()
	d.finished = append(d.finished, done)
	if real != "" {
		j.alias = real
		d.jobs[real] = j
	} else {
		delete(d.jobs, id)
	}
	d.mu.Unlock()
	if real != "" {
		answer = bytes.ReplaceAll(answer, []byte(real), []byte(id))
	}
	return status, answer
}

// loadBackend hands the bytes to the emulator in the one form that it takes
// for all: a resumable upload with a single PUT.
func (d *Double) loadBackend(r *http.Request, u *resuming) (status int, answer []byte, jobID string) {
	fail := func(err error) (int, []byte, string) {
		d.cfg.Logger.Error("upload to the emulator failed", "error", err)
		s, b := errorBody(http.StatusServiceUnavailable, "backendError", "the emulator does not take the upload: "+err.Error())
		return s, b, ""
	}
	path := "/upload/bigquery/v2/projects/" + url.PathEscape(u.project) + "/jobs"
	job, err := json.Marshal(map[string]any{"configuration": u.request.Configuration})
	if err != nil {
		return fail(err)
	}
	res, body, err := d.ask(r, http.MethodPost, path+"?uploadType=resumable", http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(job), int64(len(job)))
	if err != nil {
		return fail(err)
	}
	if res.StatusCode != http.StatusOK {
		return res.StatusCode, body, ""
	}
	id := res.Header.Get("X-Guploader-Uploadid")
	if id == "" {
		return fail(errors.New("no upload id"))
	}
	h := http.Header{"Content-Type": {"application/octet-stream"}}
	media, length, err := u.media()
	if err != nil {
		return fail(err)
	}
	if length > 0 {
		h.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", length-1, length))
	} else {
		// The emulator cannot end an empty upload: a line break has no rows either.
		media, length = strings.NewReader("\n"), 1
		h.Set("Content-Range", "bytes 0-0/1")
	}
	res, body, err = d.ask(r, http.MethodPut, path+"?uploadType=resumable&upload_id="+url.QueryEscape(id), h, media, length)
	if err != nil {
		return fail(err)
	}
	var answered struct {
		JobReference jobReference `json:"jobReference"`
	}
	if res.StatusCode == http.StatusOK && json.Unmarshal(body, &answered) == nil {
		jobID = answered.JobReference.JobID
	}
	return res.StatusCode, body, jobID
}

// media is the upload as the emulator reads it. It takes the first line of any
// CSV for a header, whatever skipLeadingRows says: a file without one gets its
// first line twice, and of several lines to skip all but one are left out.
func (u *resuming) media() (io.Reader, int64, error) {
	whole := io.NewSectionReader(u.spool, 0, u.n)
	var c struct {
		Load struct {
			SourceFormat    string `json:"sourceFormat"`
			SkipLeadingRows any    `json:"skipLeadingRows"` // number or string
		} `json:"load"`
	}
	if err := json.Unmarshal(u.request.Configuration, &c); err != nil {
		return nil, 0, err
	}
	if (c.Load.SourceFormat != "" && !strings.EqualFold(c.Load.SourceFormat, "CSV")) || u.n == 0 {
		return whole, u.n, nil
	}
	skip := 0
	if c.Load.SkipLeadingRows != nil {
		n, err := strconv.Atoi(fmt.Sprint(c.Load.SkipLeadingRows))
		if err != nil || n < 0 {
			return nil, 0, fmt.Errorf("skipLeadingRows %v", c.Load.SkipLeadingRows)
		}
		skip = n
	}
	lines := bufio.NewReader(io.NewSectionReader(u.spool, 0, u.n))
	if skip == 0 {
		first, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		if !strings.HasSuffix(first, "\n") {
			first += "\n"
		}
		return io.MultiReader(strings.NewReader(first), whole), int64(len(first)) + u.n, nil
	}
	var left int64
	for range skip - 1 {
		line, err := lines.ReadString('\n')
		left += int64(len(line))
		if err != nil {
			break
		}
	}
	return io.NewSectionReader(u.spool, left, u.n-left), u.n - left, nil
}

func errorBody(code int, reason, message string) (int, []byte) {
	var c captured
	writeError(&c, code, reason, message)
	return code, c.body.Bytes()
}
