package bigquery

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestHeaders(t *testing.T) {
	for _, h := range []string{"Content-Type", "user-agent", "If-Match", "X-Upload-Content-Type", "content-range", "x-goog-api-client"} {
		if !UpstreamHeader(h) {
			t.Errorf("%s does not go upstream", h)
		}
	}
	for _, h := range []string{"authorization", "Proxy-Authorization", "cookie", "x-goog-user-project", "X-Goog-Quota-User", "x-goog-api-key", "x-goog-fieldmask", "x-goog-iam-authorization-token", "x-goog-request-params",
		"x-http-method-override", "x_goog_user_project", "accept-encoding", "content-encoding", "x-forwarded-for", "forwarded", "via", "host", ":path", "x-verbatim-agent", "x-original-url", "connection", "te", "expect", "content-length", ""} {
		if UpstreamHeader(h) {
			t.Errorf("%s goes upstream", h)
		}
	}
	for _, h := range []string{"Content-Type", "location", "Range", "etag", "X-HTTP-Status-Code-Override"} {
		if !DownstreamHeader(h) {
			t.Errorf("%s does not come back", h)
		}
	}
	for _, h := range []string{"alt-svc", "set-cookie", "www-authenticate", "server", "authorization", "x-goog-upload-url", "content-location", "link", "refresh", "strict-transport-security", "x-verbatim-receipt", ":status"} {
		if DownstreamHeader(h) {
			t.Errorf("%s comes back", h)
		}
	}
}

func TestRewriteLocation(t *testing.T) {
	const up, gw = "https://bigquery.googleapis.com", "http://127.0.0.1:8080/"
	for location, want := range map[string]string{
		"https://bigquery.googleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=AB_c-1": "http://127.0.0.1:8080/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=AB_c-1",
		"https://BigQuery.googleapis.com:443/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A":  "http://127.0.0.1:8080/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"https://www.googleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A":           "http://127.0.0.1:8080/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"/resumable/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A":                           "http://127.0.0.1:8080/resumable/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
	} {
		got, id, err := RewriteLocation(up, gw, location)
		if err != nil || got != want || !strings.HasPrefix(id, "A") {
			t.Errorf("%s: got %s, %s, %v", location, got, id, err)
		}
	}
	for _, location := range []string{
		"", "https://evil.example/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"//evil.example/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"https://bigquery.googleapis.com.evil.example/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"https://evilgoogleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"https://bigquery.googleapis.com@evil.example/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"https://x:y@bigquery.googleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"https://bigquery.googleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable",
		"https://bigquery.googleapis.com/bigquery/v2/projects/p/jobs/j",
		"https://bigquery.googleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A&access_token=x",
		"https://bigquery.googleapis.com/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A#x",
		"https:///upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A",
		"javascript:alert(1)", "https://bigquery.googleapis.com:8443/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=A", "http://[::1",
	} {
		got, _, err := RewriteLocation(up, gw, location)
		if !errors.Is(err, ErrLocation) || got != "" {
			t.Errorf("%s: got %q, %v", location, got, err)
		}
	}
	if _, _, err := RewriteLocation(up, "not a url", "/x"); err == nil || errors.Is(err, ErrLocation) {
		t.Errorf("a bad gateway base: %v", err)
	}
	got, _, err := RewriteLocation("http://127.0.0.1:9050", gw, "http://127.0.0.1:9050/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=1-2")
	if err != nil || got != "http://127.0.0.1:8080/upload/bigquery/v2/projects/p/jobs?uploadType=resumable&upload_id=1-2" {
		t.Errorf("local upstream: %s, %v", got, err)
	}
}

func TestErrorBody(t *testing.T) {
	got := string(ErrorBody(403, ReasonAccessDenied, "Denied: \"x\" <y>."))
	want := `{"error":{"code":403,"message":"Denied: \"x\" \u003cy\u003e.","errors":[{"message":"Denied: \"x\" \u003cy\u003e.","domain":"global","reason":"accessDenied"}],"status":"PERMISSION_DENIED"}}`
	if got != want {
		t.Errorf("got %s", got)
	}
	if b := ErrorBody(500, ReasonInternalError, "\xff"); !json.Valid(b) || strings.Contains(string(b), "\xff") {
		t.Errorf("bad UTF-8 gives %q", b)
	}
	for reason, c := range map[string]struct {
		status int
		name   string
	}{
		ReasonAccessDenied: {403, "PERMISSION_DENIED"}, ReasonAuthError: {401, "UNAUTHENTICATED"}, ReasonInvalid: {400, "INVALID_ARGUMENT"},
		ReasonInvalidQuery: {400, "INVALID_ARGUMENT"}, ReasonNotFound: {404, "NOT_FOUND"}, ReasonDuplicate: {409, "ALREADY_EXISTS"},
		ReasonBackendError: {503, "UNAVAILABLE"}, ReasonResponseTooLarge: {403, "PERMISSION_DENIED"}, ReasonNotImplemented: {501, "UNIMPLEMENTED"},
		ReasonTooLarge: {413, "INVALID_ARGUMENT"}, ReasonInternalError: {500, "INTERNAL"}, "other": {500, "INTERNAL"},
	} {
		if s := StatusFor(reason); s != c.status || canonicalStatus(s) != c.name {
			t.Errorf("%s: got %d %s", reason, s, canonicalStatus(s))
		}
	}
	var f ResponseFacts
	var s Scanner
	s.Write(denied("x", "no").Body())
	if f = s.Facts(); f.ErrorCode != 403 || f.ErrorText() != "no" || f.Errors[0].Reason != ReasonAccessDenied {
		t.Errorf("the scanner reads our own error as %+v", f)
	}
}
