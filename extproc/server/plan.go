package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

// request is the head of a request as it stood on the wire. Its headers are a
// list: duplicates matter.
type request struct {
	method, target, authority, scheme string
	headers                           []record.Header
	source                            string // the caller's address
	received                          time.Time
	end                               bool // no body follows
}

func newRequest(m *extproc.ProcessingRequest, h *extproc.HttpHeaders, now time.Time) *request {
	r := &request{received: now, end: h.GetEndOfStream()}
	for _, v := range h.GetHeaders().GetHeaders() {
		value := headerValue(v)
		switch v.GetKey() {
		case ":method":
			r.method = value
		case ":path":
			r.target = value
		case ":authority":
			r.authority = value
		case ":scheme":
			r.scheme = value
		default:
			if !strings.HasPrefix(v.GetKey(), ":") {
				r.headers = append(r.headers, record.Header{Name: v.GetKey(), Value: value})
			}
		}
	}
	for _, s := range m.GetAttributes() {
		if a := s.GetFields()["source.address"].GetStringValue(); a != "" {
			r.source = a
		}
	}
	return r
}

// header returns the value of the last header of that name, which is written
// in lower case as HTTP/2 has it.
func (r *request) header(name string) string {
	v := ""
	for _, h := range r.headers {
		if strings.EqualFold(h.Name, name) {
			v = h.Value
		}
	}
	return v
}

// grpc reports whether the caller speaks gRPC.
func (r *request) grpc() bool {
	return strings.HasPrefix(r.header("content-type"), "application/grpc")
}

// base returns the gateway's own address as the caller sees it.
func (r *request) base() string {
	scheme := r.header("x-forwarded-proto")
	if scheme != "http" && scheme != "https" {
		scheme = "https"
	}
	return scheme + "://" + r.authority
}

// plan is what becomes of a request: first what is known of it, in the end
// what goes upstream. It never holds the caller's token for longer than the
// request's head needs.
type plan struct {
	request  *request
	call     record.Call
	route    bigquery.Call
	facts    bigquery.Facts
	carries  bigquery.Carries
	identity *auth.Identity
	asserted record.Asserted
	conn     *Connection
	session  string
	class    string
	full     bool // payloads are recorded
	framed   bool // the response is a gRPC message stream
	headers  []record.Header
	query    string
	decision record.Decision
	owner    bigquery.Owner // of what the request makes
	uses     uses
	reach    *reach     // what the job's list of tables is held against; nil: nothing
	found    *foundUses // what the finished job was found to use

	token       string                 // the caller's, until the head has gone upstream
	path        string                 // :path for upstream
	body        []byte                 // where it differs from what the caller sent
	contentType string                 // for upstream, where it differs
	part        *bigquery.Part         // of a multipart upload
	sealUpload  func(id string) string // makes the proof of whose an upload is
	storage     *bigquery.StorageRead  // of a call of the Storage Read API
	begins      func(bigquery.Owner)   // told who will own what the request makes
	sealStreams func(string) string    // makes the proof of a stream in the answer; nil: it names none
	params      string                 // x-goog-request-params for upstream
	cluster     string
	credential  string              // the gateway's, for upstream
	headEnd     bool                // the response is its head alone
	trailers    []record.Header     // of a gRPC answer
	mcp         *bigquery.MCPAnswer // the caller speaks the Model Context Protocol
	tool        *bigquery.MCPTool   // that it calls
	wrapped     bool                // BigQuery's answer goes into a message of the protocol
	answer      *answer             // of the gateway's own, to a call that does not go upstream
}

func newPlan(r *request) *plan {
	return &plan{request: r, full: true}
}

// decide notes the decision.
func (p *plan) decide(allow bool, r *refusal) {
	p.decision.Allow = allow
	if r != nil {
		p.decision.By = r.by
		p.decision.Reasons = r.reasons
		if len(r.reasons) == 0 {
			p.decision.Reasons = []record.Reason{{Code: r.code, Message: r.message}}
		}
	}
}

// recordedHeaders are the request headers whose values are kept. Of all others
// only the name is: a token can hide under any of them.
var recordedHeaders = map[string]bool{
	"accept": true, "accept-encoding": true, "content-encoding": true, "content-length": true, "content-range": true,
	"content-type": true, "expect": true, "if-match": true, "if-none-match": true, "transfer-encoding": true,
	"traceparent": true, "tracestate": true, "user-agent": true, "x-goog-api-client": true, "x-goog-request-params": true,
	"x-goog-request-reason": true, "x-goog-gcs-idempotency-token": true, "x-goog-user-project": true, "x-upload-content-length": true,
	"x-upload-content-type": true, "x-guploader-no-308": true, "x-goog-upload-command": true, "x-goog-upload-protocol": true,
	"x-request-id": true, "x-forwarded-for": true, "x-forwarded-proto": true,
	"x-verbatim-agent": true, "x-verbatim-model": true, "x-verbatim-conversation": true, "x-verbatim-tool-call": true,
}

const redacted = "[redacted]"

// keepHeaders fills in the headers for the record, with no credential in them.
func (p *plan) keepHeaders(token string) {
	for _, h := range p.request.headers {
		name, value := strings.ToLower(h.Name), h.Value
		if !recordedHeaders[name] || auth.CredentialHeader(name) || p.leaks(value, token) {
			value = redacted
		}
		p.headers = append(p.headers, record.Header{Name: name, Value: value})
	}
	_, q, _ := strings.Cut(p.request.target, "?")
	p.query = auth.RedactQuery(q)
	if p.leaks(p.query, token) {
		p.query = redacted
	}
	get := func(name string) string {
		if v := p.request.header(name); !p.leaks(v, token) {
			return clip(v)
		}
		return redacted
	}
	p.asserted = record.Asserted{
		UserAgent: get("user-agent"), Traceparent: get("traceparent"), RequestReason: get("x-goog-request-reason"),
		Agent: get("x-verbatim-agent"), Model: get("x-verbatim-model"),
		Conversation: get("x-verbatim-conversation"), ToolCall: get("x-verbatim-tool-call"),
	}
}

// maxAsserted is the longest asserted value that is kept, in bytes; the header
// itself is on record whole.
const maxAsserted = 1024

func clip(s string) string {
	if len(s) > maxAsserted {
		return s[:maxAsserted]
	}
	return s
}

// leaks reports whether a value holds the caller's token or looks like one.
func (p *plan) leaks(value, token string) bool {
	return auth.CredentialValue(value) || (token != "" && strings.Contains(value, token))
}

// passes reports whether a request header goes upstream.
func (p *plan) passes(h record.Header) bool {
	name := strings.ToLower(h.Name)
	known := bigquery.UpstreamHeader
	if p.carries == carriesGRPC {
		known = bigquery.UpstreamGRPCHeader
	}
	return known(name) && !auth.CredentialHeader(name) && !p.leaks(h.Value, p.token)
}

// responseHead makes of the upstream's response head what the caller gets, and
// keeps that for the record. A response that is still compressed cannot be
// recorded as what the caller reads: it is refused.
func (p *plan) responseHead(h *extproc.HttpHeaders, receipt string) (*record.Head, *extproc.HeaderMutation, *refusal) {
	head := &record.Head{}
	m := &extproc.HeaderMutation{SetHeaders: []*core.HeaderValueOption{setHeader(ReceiptHeader, receipt)}}
	var refused *refusal
	p.headEnd = h.GetEndOfStream()
	wrapped := p.wrapped && !p.headEnd
	for _, v := range h.GetHeaders().GetHeaders() {
		name, value := strings.ToLower(v.GetKey()), headerValue(v)
		switch {
		case name == ":status":
			head.Status = atoi(value)
			if head.Status == http.StatusUnauthorized {
				// It is about the gateway's credential. Passed on, the caller would
				// take it for its own token's fault and renew that.
				refused = &refusalGoogleCredential
			}
			continue
		case strings.HasPrefix(name, ":"):
			continue
		case (name == "content-encoding" || name == "grpc-encoding") && value != "" && !strings.EqualFold(value, "identity"):
			refused = &refusal{status: 502, reason: "backendError", code: "response_encoded", by: "body",
				message: "BigQuery answered with a compressed body although none was asked for; the gateway cannot record it and does not pass it on."}
		case name == "content-type" && wrapped:
			value = p.mcp.ContentType()
			m.SetHeaders = append(m.SetHeaders, setHeader(name, value))
		case name == "content-type":
			p.framed = strings.HasPrefix(strings.ToLower(value), "application/grpc")
		case strings.HasPrefix(name, "x-verbatim-"):
			m.RemoveHeaders = append(m.RemoveHeaders, name)
			continue
		case p.carries == carriesGRPC && bigquery.DownstreamTrailer(name): // of an answer without a body
			p.trailers = append(p.trailers, record.Header{Name: name, Value: value})
			if name == "grpc-status" && value == unauthenticated {
				refused = &refusalGoogleCredential
			}
		case !bigquery.DownstreamHeader(name):
			m.RemoveHeaders = append(m.RemoveHeaders, name)
			continue
		case name == "location":
			// Clients follow an absolute Location and send their token there.
			to, id, err := bigquery.RewriteLocation(p.conn.REST, p.request.base(), value)
			if err != nil {
				refused = &refusal{status: 502, reason: "backendError", code: "location_foreign", by: "body",
					message: "BigQuery's answer points to another host; the gateway does not send callers there."}
				continue
			}
			if p.sealUpload != nil {
				to += "&" + bigquery.UploadProofParam + "=" + p.sealUpload(id)
			}
			value = to
			m.SetHeaders = append(m.SetHeaders, setHeader(name, value))
		}
		head.Headers = append(head.Headers, record.Header{Name: name, Value: value})
	}
	return head, m, refused
}

func atoi(s string) int {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' || n > 9999 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// intent is the body of the intent record.
func (p *plan) intent(id record.ID, r *request, decided time.Time, streams bool) record.Intent {
	i := record.Intent{
		OCSF:   record.NewOCSF(p.ocsfClass(), p.ocsfActivity(), r.received, id.String(), p.session),
		Source: record.OCSFEndpoint{IP: r.source},
		Request: record.OCSFRequest{
			Method: r.method, UserAgent: p.asserted.UserAgent, Headers: p.headers,
			URL: record.OCSFURL{Hostname: r.authority, Path: pathOf(r.target), Query: p.query},
		},
		Verbatim: record.IntentDetail{
			Session: p.session, Asserted: p.asserted, Call: p.call, Decision: p.decision,
			Received: r.received.UTC(), Decided: decided.UTC(), Streams: streams,
		},
	}
	i.Actor.Session.UID = p.session
	i.Succeeded(p.decision.Allow)
	if p.call.SQL != "" {
		i.Query = &record.OCSFQuery{Text: p.call.SQL}
	}
	if p.identity != nil {
		principal, provenance := p.identity.Principal, p.identity.Provenance
		i.Verbatim.Principal, i.Verbatim.Provenance = &principal, &provenance
		i.Actor.User = record.OCSFUser{UID: principal.Subject, Email: principal.Email}
		i.Actor.Session.Issuer = principal.URL
		for _, g := range principal.Groups {
			i.Actor.User.Groups = append(i.Actor.User.Groups, record.OCSFGroup{Name: g})
		}
	}
	if p.conn != nil {
		i.Verbatim.Connection = &record.Connection{
			Name: p.conn.Name, Project: p.call.Project, Location: p.conn.Location, Recording: p.conn.Recording, Retention: p.class,
		}
	}
	return i
}

// pathOf returns the path of a target. A token in a path segment would be a
// credential in a place that means nothing: the segment is not kept.
func pathOf(target string) string {
	path, _, _ := strings.Cut(target, "?")
	parts := strings.Split(path, "/")
	for i, s := range parts {
		if d, err := url.PathUnescape(s); auth.CredentialValue(s) || (err == nil && auth.CredentialValue(d)) {
			parts[i] = redacted
		}
	}
	return strings.Join(parts, "/")
}

func (p *plan) ocsfClass() int {
	switch p.route.Kind {
	case bigquery.KindQuery, bigquery.KindRead, bigquery.KindWrite, bigquery.KindUpload, bigquery.KindJob:
		return record.ClassDatastore
	}
	return record.ClassAPI
}

func (p *plan) ocsfActivity() int {
	switch p.route.Kind {
	case bigquery.KindQuery:
		return record.ActivityQuery
	case bigquery.KindJob:
		if p.call.SQL != "" {
			return record.ActivityQuery
		}
	case bigquery.KindRead:
		return record.ActivityRead
	case bigquery.KindWrite, bigquery.KindUpload:
		return record.ActivityWrite
	}
	return record.ActivityOther
}

// refusal is an answer that the gateway gives in BigQuery's place.
type refusal struct {
	status  int
	reason  string // BigQuery's
	code    string // stable, Verbatim's
	by      string // the part that refused, see record.Decision
	message string
	reasons []record.Reason     // of a policy, where there are several
	grpc    bool                // the caller speaks gRPC: Envoy puts the text into its trailers
	mcp     *bigquery.MCPAnswer // the caller speaks the Model Context Protocol
	rpc     int                 // the error code of JSON-RPC, where the message is none; 0: what a tool says
	oauth   string              // the error code of RFC 6749, where the caller asked for a token
}

// headers of the answer.
func (r *refusal) headers(receipt string) []record.Header {
	if r.grpc {
		if receipt == "" {
			return nil
		}
		return []record.Header{{Name: ReceiptHeader, Value: receipt}}
	}
	h := []record.Header{{Name: "content-type", Value: "application/json; charset=UTF-8"}}
	if r.mcp != nil {
		h[0].Value = r.mcp.ContentType()
	}
	if receipt != "" {
		h = append(h, record.Header{Name: ReceiptHeader, Value: receipt})
	}
	if r.status == 401 {
		h = append(h, record.Header{Name: "www-authenticate", Value: `Bearer realm="verbatim"`})
	}
	return h
}

// text of the answer. It ends with the code and the receipt, so that whoever
// sees it can ask an auditor about it.
func (r *refusal) text(receipt string) string {
	text := "Verbatim: " + r.message + " [" + r.code
	if receipt != "" {
		text += ", receipt " + receipt
	}
	return text + "]"
}

// body of the answer.
func (r *refusal) body(receipt string) []byte {
	if r.grpc {
		return []byte(r.text(receipt))
	}
	switch {
	case r.mcp != nil && r.rpc != 0:
		return r.mcp.Error(r.rpc, r.text(receipt))
	case r.mcp != nil:
		return r.mcp.Said(r.text(receipt), true)
	}
	if r.oauth != "" {
		b, _ := json.Marshal(map[string]string{"error": r.oauth, "error_description": r.text(receipt)})
		return b
	}
	return bigquery.ErrorBody(r.status, r.reason, r.text(receipt))
}

// head is the answer's head as the caller gets it, but for the receipt.
func (r *refusal) head(receipt string) record.Head {
	if !r.grpc {
		return record.Head{Status: r.status, Headers: r.headers("")}
	}
	return record.Head{Status: http.StatusOK, Headers: []record.Header{
		{Name: "content-type", Value: "application/grpc"},
		{Name: "grpc-status", Value: strconv.Itoa(int(grpcStatus(r.status)))},
		{Name: "grpc-message", Value: grpcMessage(r.text(receipt))},
	}}
}

// grpcStatus is the gRPC code of an HTTP status, by
// https://cloud.google.com/apis/design/errors#handling_errors.
func grpcStatus(status int) codes.Code {
	switch status {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.NotFound
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return codes.Unavailable
	}
	if status < 500 {
		return codes.InvalidArgument
	}
	return codes.Internal
}

// grpcMessage encodes a text for the header grpc-message, as Envoy does
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
func grpcMessage(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
