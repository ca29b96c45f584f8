package emulator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// synthetic is what a query's comment asks for.
type synthetic struct {
	bytes int64
	delay time.Duration
	run   time.Duration
}

var directive = regexp.MustCompile(`/\*verbatim:([a-z0-9=,.]+)\*/`)

// parseSynthetic finds the comment in a query.
func parseSynthetic(sql string) (s synthetic, ok bool, err error) {
	m := directive.FindStringSubmatch(sql)
	if m == nil {
		return synthetic{}, false, nil
	}
	for p := range strings.SplitSeq(m[1], ",") {
		k, v, _ := strings.Cut(p, "=")
		switch k {
		case "bytes":
			s.bytes, err = strconv.ParseInt(v, 10, 64)
		case "delay":
			s.delay, err = time.ParseDuration(v)
		case "run":
			s.run, err = time.ParseDuration(v)
		default:
			err = fmt.Errorf("unknown key %q", k)
		}
		if err != nil {
			return synthetic{}, true, fmt.Errorf("synthetic query %s: %w; use bytes=N, delay=DURATION and run=DURATION", m[0], err)
		}
	}
	return s, true, nil
}

var syntheticSchema = json.RawMessage(`{"fields":[{"name":"v","type":"STRING","mode":"NULLABLE"}]}`)

// cell is the value of each full row: 1000 bytes.
var cell = strings.Repeat("The quick brown fox jumps over it. 0123456789 ABCD", 20)

var (
	fullRow = []byte(`{"f":[{"v":"` + cell + `"}]},`)
	// rowChunk is many full rows, so that one write moves much.
	rowChunk = bytes.Repeat(fullRow, 256)
)

// lastRow carries what is left of the size in its value.
const (
	lastRowHead = `{"f":[{"v":"`
	lastRowTail = `"}]}]}`
)

// document is a result of an exact size.
type document struct {
	head  []byte
	rows  int64 // full rows
	last  int   // bytes of the last row's value
	total int64
}

// plan makes a result of size bytes, or the smallest possible one if that is
// larger. kind is BigQuery's word for the response.
func plan(size int64, kind, project, jobID string) document {
	for rows := max(size/int64(len(fullRow)), 0); ; rows-- {
		// totalRows counts the last row too.
		head := fmt.Appendf(nil, `{"kind":%q,"jobReference":{"projectId":%q,"jobId":%q,"location":"US"},"jobComplete":true,"cacheHit":false,"totalBytesProcessed":"0","schema":%s,"totalRows":"%d","rows":[`,
			kind, project, jobID, syntheticSchema, rows+1)
		fixed := int64(len(head)) + rows*int64(len(fullRow)) + int64(len(lastRowHead)+len(lastRowTail))
		if last := size - fixed; last >= 0 || rows == 0 {
			last = max(last, 0)
			return document{head: head, rows: rows, last: int(last), total: fixed + last}
		}
	}
}

func (s document) write(w io.Writer) error {
	if _, err := w.Write(s.head); err != nil {
		return err
	}
	perChunk := int64(len(rowChunk) / len(fullRow))
	for n := s.rows; n > 0; {
		k := min(n, perChunk)
		if _, err := w.Write(rowChunk[:k*int64(len(fullRow))]); err != nil {
			return err
		}
		n -= k
	}
	var tail bytes.Buffer
	tail.WriteString(lastRowHead)
	for left := s.last; left > 0; {
		k := min(left, len(cell))
		tail.WriteString(cell[:k])
		left -= k
	}
	tail.WriteString(lastRowTail)
	_, err := w.Write(tail.Bytes())
	return err
}

// Digest is the SHA-256, in hex, and the length of the body that a synthetic
// query of size bytes is answered with by jobs.query, for the job id that the
// answer names.
func Digest(size int64, project, jobID string) (sum string, length int64) {
	s := plan(size, queryResponse, project, jobID)
	h := sha256.New()
	_ = s.write(h)
	return hex.EncodeToString(h.Sum(nil)), s.total
}

const (
	queryResponse   = "bigquery#queryResponse"
	resultsResponse = "bigquery#getQueryResultsResponse"
)

// stream answers with a synthetic result.
func stream(w http.ResponseWriter, r *http.Request, s synthetic, kind, project, jobID string) {
	if s.delay > 0 {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(s.delay):
		}
	}
	doc := plan(s.bytes, kind, project, jobID)
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.Header().Set("Content-Length", strconv.FormatInt(doc.total, 10))
	w.WriteHeader(http.StatusOK)
	// An error is the client's: it has gone.
	_ = doc.write(w)
}

// emptyResults answers getQueryResults?maxResults=0.
func emptyResults(w http.ResponseWriter, s synthetic, project, jobID string) {
	rows := plan(s.bytes, resultsResponse, project, jobID).rows + 1
	writeJSON(w, http.StatusOK, map[string]any{
		"kind": resultsResponse, "jobReference": map[string]any{"projectId": project, "jobId": jobID, "location": "US"}, "jobComplete": true,
		"schema": syntheticSchema, "totalRows": strconv.FormatInt(rows, 10), "totalBytesProcessed": "0", "cacheHit": false,
	})
}
