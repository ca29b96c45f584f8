package bigquery

import (
	"bytes"
	"fmt"
	"mime"
	"strings"
)

const (
	maxPartHeaders = 8 << 10
	maxBoundary    = 70 // RFC 2046, section 5.1.1
)

// Part reads the first part of a multipart/related upload, the job in JSON, as
// the body's bytes come. Once it is done, [Part.Replace] gives what goes
// upstream in place of the bytes so far; all later bytes pass as they come. It
// belongs to one goroutine.
//
// The framing that goes upstream is written anew: what stands before the
// media is this package's own, whatever the caller's looked like, but for the
// boundary and the line ends, which the rest of the body shares.
type Part struct {
	boundary    string
	contentType string // of the part
	newline     string // CRLF, or LF where the caller ends lines so throughout
	limit       int
	buf         []byte
	searched    int // bytes of buf in which the delimiter is known not to begin
	json        []byte
	rest        []byte // from behind the line of the second delimiter
	state       partState
	mixed       bool
}

type partState uint8

const (
	partOpening partState = iota // before the first delimiter
	partHeaders
	partBody
	partDone
)

// NewPart reads the upload's content-type. limit bounds the JSON part in bytes.
// An error is always a *[Refusal].
func NewPart(contentType string, limit int) (*Part, error) {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "multipart/related" {
		return nil, invalid("content_type", "A multipart upload's content-type must be multipart/related with a boundary.")
	}
	b := params["boundary"]
	if b == "" || len(b) > maxBoundary || strings.HasSuffix(b, " ") || strings.Trim(b, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? ") != "" {
		return nil, invalid("multipart", "The boundary of the upload is no boundary (RFC 2046, at most 70 characters).")
	}
	return &Part{boundary: b, limit: limit}, nil
}

// Write takes the next bytes. It returns done once the JSON part has ended.
// After that, or after an error, it must not be called again. An error is
// always a *[Refusal].
func (p *Part) Write(b []byte) (done bool, err error) {
	p.buf = append(p.buf, b...)
	for p.state != partDone {
		more, ref := p.step()
		if ref == nil && p.mixed {
			ref = invalid("multipart", "The upload mixes CRLF and LF line ends; use CRLF.")
		}
		if ref != nil {
			p.buf, p.rest = nil, nil
			return false, ref
		}
		if more {
			return false, nil
		}
	}
	return true, nil
}

// step reads one piece of structure; more says that bytes are missing.
func (p *Part) step() (more bool, ref *Refusal) {
	switch p.state {
	case partOpening:
		line, rest, ok := p.cutLine(p.buf)
		if !ok {
			if len(p.buf) > len(p.boundary)+64 {
				return false, invalid("multipart", "The upload does not begin with its boundary.")
			}
			return true, nil
		}
		p.buf = rest
		if len(line) == 0 && p.searched == 0 {
			p.searched = 1 // one blank line before the first delimiter is common
			return false, nil
		}
		if strings.TrimRight(string(line), " \t") != "--"+p.boundary {
			return false, invalid("multipart", "The upload does not begin with its boundary.")
		}
		p.state, p.searched = partHeaders, 0
	case partHeaders:
		line, rest, ok := p.cutLine(p.buf)
		if p.searched += len(line); p.searched > maxPartHeaders || !ok && len(p.buf) > maxPartHeaders {
			return false, invalid("multipart", "The headers of the upload's first part are too long.")
		}
		if !ok {
			return true, nil
		}
		p.buf = rest
		if len(line) == 0 {
			if ref := checkJSONType(p.contentType); ref != nil {
				return false, invalid("multipart", "The first part of the upload must be application/json.")
			}
			p.state, p.searched = partBody, 0
			return false, nil
		}
		name, value, ok := strings.Cut(string(line), ":")
		switch name = strings.ToLower(name); {
		case !ok:
			return false, invalid("multipart", "The headers of the upload's first part are damaged.")
		case name == "content-type" && p.contentType == "":
			p.contentType = strings.TrimSpace(value)
		case name == "mime-version", name == "content-id", name == "content-length":
		case name == "content-transfer-encoding":
			switch strings.ToLower(strings.TrimSpace(value)) {
			case "7bit", "8bit", "binary":
			default:
				return false, invalid("multipart", "The first part of the upload must not be transfer-encoded.")
			}
		default:
			return false, invalid("multipart", "The first part of the upload has a header that is refused.")
		}
	case partBody:
		delimiter := []byte("\n--" + p.boundary)
		from := max(p.searched-len(delimiter), 0)
		i := bytes.Index(p.buf[from:], delimiter)
		if i < 0 {
			if p.searched = len(p.buf); p.searched > p.limit+len(delimiter) {
				return false, tooLarge("body_large", fmt.Sprintf("The job of the upload is larger than %d bytes.", p.limit))
			}
			return true, nil
		}
		i += from
		if i > p.limit+1 {
			return false, tooLarge("body_large", fmt.Sprintf("The job of the upload is larger than %d bytes.", p.limit))
		}
		behind := p.buf[i+len(delimiter):]
		line, rest, ok := p.cutLine(behind)
		if !ok && len(behind) < 64 {
			return true, nil
		}
		if !ok || strings.Trim(string(line), " \t") != "" {
			return false, invalid("multipart", "The upload has no second part behind the job, or its boundary stands within the job.")
		}
		head, crlf := bytes.CutSuffix(p.buf[:i:i], []byte("\r"))
		p.json, p.mixed = head, p.mixed || crlf != (p.newline == "\r\n")
		p.rest = rest
		p.state = partDone
	}
	return false, nil
}

// cutLine takes a line. The first line says how lines end: a mixture is read
// in different ways by different readers, and is left uncut.
func (p *Part) cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return nil, b, false
	}
	line, crlf := bytes.CutSuffix(b[:i], []byte("\r"))
	if p.newline == "" {
		if p.newline = "\n"; crlf {
			p.newline = "\r\n"
		}
	}
	if crlf != (p.newline == "\r\n") {
		p.mixed = true
	}
	return line, b[i+1:], true
}

// JSON returns the first part's bytes once done.
func (p *Part) JSON() []byte { return p.json }

// ContentType returns the first part's content-type once done, for ParseBody.
func (p *Part) ContentType() string { return p.contentType }

// Replace returns the upload's bytes up to now with json in the first part.
func (p *Part) Replace(json []byte) []byte {
	var b bytes.Buffer
	n := p.newline
	b.WriteString("--" + p.boundary + n + "content-type: application/json; charset=UTF-8" + n + n)
	b.Write(json)
	b.WriteString(n + "--" + p.boundary + n)
	b.Write(p.rest)
	return b.Bytes()
}

// UpstreamContentType returns the content-type that belongs to Replace.
func (p *Part) UpstreamContentType() string {
	return mime.FormatMediaType("multipart/related", map[string]string{"boundary": p.boundary})
}
