package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

const project = "/bigquery/v2/projects/" + harness.Project

// withTimeout bounds what a test does against the stack.
func withTimeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// refused fails the test unless the answer is a whole error in BigQuery's shape
// with the status and, where it is not empty, the stable code.
func refused(t *testing.T, a harness.Answer, status int, code string) {
	t.Helper()
	if a.Err != nil {
		t.Errorf("no answer: %v", a.Err)
		return
	}
	if a.Status != status {
		t.Errorf("status %d, want %d: %.400s", a.Status, status, a.Body)
	}
	var e struct {
		Error struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
			Status  string `json:"status"`
			Errors  []struct {
				Message string `json:"message"`
				Reason  string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if err := json.Unmarshal(a.Body, &e); err != nil {
		t.Errorf("the error's body is no JSON: %.400q", a.Body)
		return
	}
	if !strings.HasPrefix(a.Header.Get("Content-Type"), "application/json") {
		t.Errorf("content-type %q", a.Header.Get("Content-Type"))
	}
	if e.Error.Code != a.Status || e.Error.Message == "" || e.Error.Status == "" || len(e.Error.Errors) != 1 || e.Error.Errors[0].Reason == "" || e.Error.Errors[0].Message != e.Error.Message {
		t.Errorf("not BigQuery's shape of an error: %s", a.Body)
	}
	if code != "" && !strings.Contains(e.Error.Message, "["+code) {
		t.Errorf("message %q, want the code %s", e.Error.Message, code)
	}
	if a.Receipt != "" && code != "" && !strings.Contains(e.Error.Message, a.Receipt) {
		t.Errorf("message %q does not name the receipt %s", e.Error.Message, a.Receipt)
	}
}

// aborted fails the test unless a response that had begun broke off before its
// full size.
func aborted(t *testing.T, a harness.Answer, full int) {
	t.Helper()
	switch {
	case a.Err == nil:
		t.Errorf("the response ended cleanly: status %d, %d of %d bytes: %.300s", a.Status, len(a.Body), full, a.Body)
	case a.Status != 200:
		t.Errorf("status %d, %v", a.Status, a.Err)
	case len(a.Body) >= full:
		t.Errorf("all %d bytes came before the abort", full)
	case json.Valid(a.Body):
		t.Error("what came of the response is whole JSON")
	}
}

// delivered fails the test unless the answer is whole.
func delivered(t *testing.T, a harness.Answer, size int) {
	t.Helper()
	if a.Err != nil || a.Status != 200 || len(a.Body) != size || !json.Valid(a.Body) {
		t.Errorf("status %d, %d of %d bytes, %v: %.300s", a.Status, len(a.Body), size, a.Err, a.Body)
	}
}

// onRecord fails the test unless what the caller got is, as far as it goes,
// what the vault holds.
func onRecord(t *testing.T, r *harness.Rig, a harness.Answer) *search.Detail {
	t.Helper()
	if a.Receipt == "" {
		t.Fatal("the caller got no receipt")
	}
	d, payloads := r.For(t).Evidence(a.Receipt)
	if kept := payloads[record.DirectionResponse]; !bytes.HasPrefix(kept, a.Body) {
		t.Errorf("%s: the caller got %d bytes that are no prefix of the %d on record", a.Receipt, len(a.Body), len(kept))
	}
	return d
}

// bySQL returns the exchanges whose SQL is exactly that.
func bySQL(all map[string]*search.Exchange, sql string) []*search.Exchange {
	var out []*search.Exchange
	for _, x := range all {
		if x.SQL == sql {
			out = append(out, x)
		}
	}
	return out
}

// ended fails the test unless the exchange ended like that.
func ended(t *testing.T, x *search.Exchange, result record.Result, cause string) {
	t.Helper()
	if x.Result != result || !strings.Contains(x.Cause, cause) {
		t.Errorf("%s ended as %s (%s), want %s (%s)", x.ID, x.Result, x.Cause, result, cause)
	}
}
