package bigquery

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// upstreamHeaders is what may go to BigQuery of a caller's headers. Not here,
// and so stripped: every credential, x-goog-user-project and x-goog-quota-user
// (who pays is the gateway's), accept and accept-encoding (the gateway sets
// them), x-goog-fieldmask and other system parameters in header form, cookies,
// forwarding headers, and content-encoding (bodies go plain).
var upstreamHeaders = map[string]bool{
	"content-type":            true,
	"content-range":           true, // chunks of resumable uploads
	"if-match":                true,
	"if-none-match":           true,
	"user-agent":              true,
	"x-goog-api-client":       true,
	"x-goog-request-reason":   true, // shows in Google's own audit log
	"x-guploader-no-308":      true, // Go
	"x-upload-content-length": true,
	"x-upload-content-type":   true,
}

// UpstreamHeader reports whether a caller's header may go upstream. Pseudo
// headers, content-length and the like are the proxy's and not for this list.
func UpstreamHeader(name string) bool { return upstreamHeaders[strings.ToLower(name)] }

// downstreamHeaders is what may come back. Not here, and so stripped: alt-svc
// (it would lead a client past the gateway), set-cookie, www-authenticate, and
// all that describes Google's servers.
var downstreamHeaders = map[string]bool{
	"content-type":                true,
	"content-range":               true,
	"date":                        true,
	"etag":                        true,
	"last-modified":               true,
	"location":                    true, // after RewriteLocation
	"range":                       true, // how much of an upload is there
	"retry-after":                 true,
	"vary":                        true,
	"cache-control":               true,
	"expires":                     true,
	"pragma":                      true,
	"x-content-type-options":      true,
	"x-guploader-uploadid":        true,
	"x-http-status-code-override": true, // the 308 of an upload, for Go
}

// DownstreamHeader reports whether a response header of BigQuery's may go to
// the caller. A location must pass [RewriteLocation] as well.
func DownstreamHeader(name string) bool { return downstreamHeaders[strings.ToLower(name)] }

// ErrLocation means that a Location leads somewhere other than to an upload at
// BigQuery: the response must not reach the caller, who would send its token
// there.
var ErrLocation = errors.New("location leads out of the gateway")

// RewriteLocation turns the Location of an upload into one at the gateway.
// upstream is the base URL that the request went to, gateway the one that the
// caller used; only their scheme and host count. It returns the upload's id as
// well, which belongs to the caller.
func RewriteLocation(upstream, gateway, location string) (rewritten, uploadID string, err error) {
	up, err := url.Parse(upstream)
	if err != nil || up.Host == "" {
		return "", "", fmt.Errorf("upstream base %q is no URL", upstream)
	}
	gw, err := url.Parse(gateway)
	if err != nil || gw.Host == "" || gw.Scheme != "https" && gw.Scheme != "http" {
		return "", "", fmt.Errorf("gateway base %q is no URL", gateway)
	}
	loc, err := url.Parse(location)
	if err != nil { // url's error would hold the location, which holds the upload id
		return "", "", fmt.Errorf("%w: it is no URL", ErrLocation)
	}
	if loc.User != nil || loc.Opaque != "" || loc.Host != "" && !sameHost(loc, up) || loc.Host == "" && loc.Scheme != "" {
		return "", "", fmt.Errorf("%w: its host is not the upstream's", ErrLocation)
	}
	target := loc.EscapedPath()
	if loc.RawQuery != "" {
		target += "?" + loc.RawQuery
	}
	if loc.Fragment != "" {
		target += "#"
	}
	call, ref := Classify(Request{Method: "PUT", Target: target})
	if ref != nil || call.Upload != UploadChunk {
		return "", "", fmt.Errorf("%w: it is no resumable upload", ErrLocation)
	}
	return gw.Scheme + "://" + gw.Host + call.Path, call.UploadID, nil
}

// sameHost compares hosts, with the default ports. All of Google's names for
// one API count as one: the path goes to the configured upstream anyway.
func sameHost(a, b *url.URL) bool {
	if strings.EqualFold(a.Hostname(), b.Hostname()) {
		return port(a) == port(b)
	}
	const google = ".googleapis.com"
	return strings.HasSuffix(strings.ToLower(a.Hostname()), google) && strings.HasSuffix(strings.ToLower(b.Hostname()), google)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}
