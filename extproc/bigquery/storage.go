package bigquery

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"verbatim.dev/recorder/record"
)

// The methods of the Storage Read API
// (https://cloud.google.com/bigquery/docs/reference/storage/rpc/google.cloud.bigquery.storage.v1).
const (
	storageService          = "google.cloud.bigquery.storage.v1.BigQueryRead"
	MethodCreateReadSession = storageService + ".CreateReadSession"
	MethodReadRows          = storageService + ".ReadRows"
	MethodSplitReadStream   = storageService + ".SplitReadStream"
)

const (
	frameHead = 5 // bytes before a gRPC message: its compression flag and length
	// maxStorageRequest is the largest message that is taken: a row restriction
	// has at most 1 MB (https://cloud.google.com/bigquery/quotas#storage-limits).
	maxStorageRequest = 1<<20 + 64<<10
	// MaxStorageAnswer is the largest answer in bytes that names streams. It is
	// held whole, for the names in it are changed.
	MaxStorageAnswer = 4 << 20
	// maxFields bounds selected_fields, a table's most columns.
	maxFields = 10000
	// maxStreamName is the longest name of a stream, with what the gateway added.
	maxStreamName = 4096
)

// StorageRead is a request to the Storage Read API.
type StorageRead struct {
	// Project is the one that is charged: that of parent, or of the stream.
	Project string
	// Table and what is read of it, of CreateReadSession. The names are as the
	// request has them: no part of one holds a slash.
	Table       Table
	Fields      []string // selected_fields; none: all
	Restriction string   // row_restriction, an SQL expression
	// Stream is the name of the stream of ReadRows and SplitReadStream without
	// the proof that the gateway put behind it, and Proof that.
	Stream, Proof string
	// Job is the job whose result the stream is; nil for a session's stream.
	Job *record.Job

	message proto.Message
	name    *string // of the stream within message
}

// checkGRPC refuses what is no plain gRPC request in protobuf.
func checkGRPC(r Request) *Refusal {
	types := 0
	for _, h := range r.Headers {
		switch strings.ToLower(h.Name) {
		case "content-type":
			if types++; types > 1 || h.Value != "application/grpc" && h.Value != "application/grpc+proto" {
				return &Refusal{Status: http.StatusUnsupportedMediaType, Reason: ReasonInvalid, Code: "content_type",
					Message: "The Storage Read API is served by gRPC only: content-type application/grpc."}
			}
		case "grpc-encoding", "content-encoding":
			if h.Value != "identity" && h.Value != "" {
				return invalid("grpc_encoding", "A compressed gRPC message is refused; send it plain (grpc-encoding: identity).")
			}
		}
	}
	if types == 0 {
		return &Refusal{Status: http.StatusUnsupportedMediaType, Reason: ReasonInvalid, Code: "content_type",
			Message: "The Storage Read API is served by gRPC only: content-type application/grpc."}
	}
	return nil
}

// ParseStorageRead reads the one message that a request to the Storage Read API
// has, in its gRPC frame. What the messages of the API do not have is refused:
// it could say something else to BigQuery than to the gateway. Errors are a
// *[Refusal].
func ParseStorageRead(method string, body []byte) (*StorageRead, error) {
	m, err := unframe(body, maxStorageRequest)
	if err != nil {
		return nil, err
	}
	s := &StorageRead{}
	var read func() error
	switch method {
	case MethodCreateReadSession:
		q := &storagepb.CreateReadSessionRequest{}
		s.message, read = q, func() error { return s.session(q) }
	case MethodReadRows:
		q := &storagepb.ReadRowsRequest{}
		s.message, s.name, read = q, &q.ReadStream, func() error {
			if q.GetOffset() < 0 {
				return invalid("storage_field", "The offset of ReadRows is negative.")
			}
			return s.stream(q.GetReadStream(), true)
		}
	case MethodSplitReadStream:
		q := &storagepb.SplitReadStreamRequest{}
		s.message, s.name, read = q, &q.Name, func() error { return s.stream(q.GetName(), false) }
	default:
		return nil, denied("route_unknown", "This gRPC method is not served by the gateway.")
	}
	if err := proto.Unmarshal(m, s.message); err != nil {
		return nil, invalid("grpc_message", "The gRPC message is not one of this method.")
	}
	if unknownFields(s.message.ProtoReflect()) {
		return nil, denied("grpc_field", "The gRPC message has a field that the gateway does not know, and what is not understood is not passed on; use a released version of the client library.")
	}
	return s, read()
}

func (s *StorageRead) session(q *storagepb.CreateReadSessionRequest) error {
	r := q.GetReadSession()
	if r == nil {
		return invalid("storage_field", "CreateReadSession names no read_session.")
	}
	parent, ok := segments(q.GetParent(), "projects")
	if !ok || !validProject(parent[0]) {
		return invalid("name_project", "The parent of CreateReadSession must be projects/PROJECT_ID.")
	}
	s.Project = parent[0]
	table, ok := segments(r.GetTable(), "projects", "datasets", "tables")
	if !ok || !validProject(table[0]) || !validID(table[1]) || table[2] == "" {
		return invalid("name_table", "The table of a read session must be projects/PROJECT_ID/datasets/DATASET/tables/TABLE.")
	}
	if strings.ContainsAny(table[2], "$@*") {
		return invalid("name_table", "The table of a read session has a decorator or wildcard; use row_restriction, or table_modifiers.snapshot_time.")
	}
	s.Table = Table{Project: table[0], Dataset: table[1], Table: table[2]}
	// Of the session's own fields, those that only an answer has mean nothing here.
	if r.GetName() != "" || len(r.GetStreams()) > 0 || r.GetSchema() != nil || r.GetExpireTime() != nil {
		return invalid("storage_field", "A read session that is to be made cannot have a name, streams, schema or expire_time yet.")
	}
	if f := r.GetDataFormat(); f != storagepb.DataFormat_ARROW && f != storagepb.DataFormat_AVRO {
		return invalid("storage_field", "The data_format of a read session must be ARROW or AVRO.")
	}
	o := r.GetReadOptions()
	if s.Fields = o.GetSelectedFields(); len(s.Fields) > maxFields {
		return invalid("storage_field", fmt.Sprintf("A read session selects more than %d fields.", maxFields))
	}
	for _, f := range s.Fields {
		if f == "" || len(f) > 4096 || strings.ContainsAny(f, "`\\\x00\n\r") {
			return invalid("storage_field", "A selected field of the read session is no column's name.")
		}
	}
	s.Restriction = o.GetRowRestriction()
	return nil
}

// stream reads a stream's name:
// projects/P/locations/L/sessions/S/streams/X~PROOF, or of a job's result
// projects/P/locations/L/jobs/J/streams/X.
func (s *StorageRead) stream(name string, jobs bool) error {
	bad := invalid("name_stream", "The stream's name is not one that this gateway gave out: take it as it stands in the answer of CreateReadSession.")
	if len(name) > maxStreamName {
		return bad
	}
	name, s.Proof, _ = strings.Cut(name, "~")
	s.Stream = name
	if p, ok := segments(name, "projects", "locations", "jobs", "streams"); ok && jobs && s.Proof == "" {
		if !validProject(p[0]) || !validID(p[1]) || !validID(p[2]) || !validID(p[3]) {
			return bad
		}
		s.Project, s.Job = p[0], &record.Job{Project: p[0], Location: p[1], ID: p[2]}
		return nil
	}
	p, ok := segments(name, "projects", "locations", "sessions", "streams")
	if !ok || s.Proof == "" {
		return bad
	}
	for _, v := range p {
		if v == "" || strings.ContainsFunc(v, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
			return bad
		}
	}
	s.Project = p[0]
	return nil
}

// segments takes a resource's name apart.
func segments(name string, collections ...string) ([]string, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 2*len(collections) {
		return nil, false
	}
	var out []string
	for i, c := range collections {
		if parts[2*i] != c || parts[2*i+1] == "" {
			return nil, false
		}
		out = append(out, parts[2*i+1])
	}
	return out, true
}

// Upstream returns the request's body as BigQuery gets it, encoded anew from what
// was understood and without the proof, and the value of x-goog-request-params
// that goes with it.
func (s *StorageRead) Upstream() (body []byte, params string, err error) {
	if s.name != nil {
		*s.name = s.Stream
	}
	switch q := s.message.(type) {
	case *storagepb.CreateReadSessionRequest:
		params = "read_session.table=" + escapeParam(q.GetReadSession().GetTable())
	case *storagepb.ReadRowsRequest:
		params = "read_stream=" + escapeParam(q.GetReadStream())
	case *storagepb.SplitReadStreamRequest:
		params = "name=" + escapeParam(q.GetName())
	}
	body, err = frame(s.message)
	return body, params, err
}

// escapeParam encodes a value of a routing header
// (https://google.aip.dev/client-libraries/4222): RFC 3986.
func escapeParam(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if unreserved(s[i]) || s[i] == '/' {
			b.WriteByte(s[i])
			continue
		}
		b.WriteByte('%')
		b.WriteByte(digits[s[i]>>4])
		b.WriteByte(digits[s[i]&15])
	}
	return b.String()
}

// SealStreams puts a proof behind each stream's name in an answer of
// CreateReadSession or SplitReadStream, which body is whole.
func SealStreams(method string, body []byte, seal func(stream string) string) ([]byte, error) {
	m, err := unframe(body, MaxStorageAnswer)
	if err != nil {
		return nil, err
	}
	var message proto.Message
	var streams func() []*storagepb.ReadStream
	switch method {
	case MethodCreateReadSession:
		a := &storagepb.ReadSession{}
		message, streams = a, a.GetStreams
	case MethodSplitReadStream:
		a := &storagepb.SplitReadStreamResponse{}
		message, streams = a, func() []*storagepb.ReadStream {
			return []*storagepb.ReadStream{a.GetPrimaryStream(), a.GetRemainderStream()}
		}
	default:
		return nil, fmt.Errorf("%s names no streams", method)
	}
	if err := proto.Unmarshal(m, message); err != nil {
		return nil, invalid("grpc_message", "The answer is not one of this method.")
	}
	for _, s := range streams() {
		if s.GetName() != "" {
			if strings.Contains(s.Name, "~") {
				return nil, invalid("name_stream", "A stream of the answer has a tilde in its name.")
			}
			s.Name += "~" + seal(s.Name)
		}
	}
	return frame(message)
}

// unframe returns the message of a body that is one plain gRPC frame
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
func unframe(body []byte, limit int) ([]byte, error) {
	switch {
	case len(body) > limit+frameHead:
		return nil, tooLarge("body_too_large", fmt.Sprintf("The gRPC message is larger than %d bytes.", limit))
	case len(body) < frameHead || int(binary.BigEndian.Uint32(body[1:])) != len(body)-frameHead:
		return nil, invalid("grpc_frame", "The body is not one whole gRPC message.")
	case body[0] != 0:
		return nil, invalid("grpc_encoding", "A compressed gRPC message is refused; send it plain (grpc-encoding: identity).")
	}
	return body[frameHead:], nil
}

func frame(m proto.Message) ([]byte, error) {
	b := make([]byte, frameHead, frameHead+proto.Size(m))
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
	if err != nil {
		return nil, fmt.Errorf("gRPC message: %w", err)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-frameHead))
	return b, nil
}

// unknownFields reports whether a message or one within it holds what its
// definition does not, or an enum's value that has no name.
func unknownFields(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		one := func(v protoreflect.Value) {
			switch f.Kind() {
			case protoreflect.MessageKind, protoreflect.GroupKind:
				found = found || unknownFields(v.Message())
			case protoreflect.EnumKind:
				found = found || f.Enum().Values().ByNumber(v.Enum()) == nil
			}
		}
		switch {
		case f.IsMap(): // none of these messages has one
			found = true
		case f.IsList():
			for i := range v.List().Len() {
				one(v.List().Get(i))
			}
		default:
			one(v)
		}
		return !found
	})
	return found
}

// Frames counts the rows in a stream of ReadRows's answers as it passes, holding
// no more of it than a few bytes. The zero value is ready.
type Frames struct {
	rows int64
	err  error

	head [frameHead]byte
	have int    // bytes of head
	left uint32 // bytes of the message that are still to come

	tag, value uint64 // of the field that is being read
	shift      uint
	state      byte
	skip       uint64 // bytes of the field that are passed over
	count      uint64 // row_count of the message
}

// States within a message.
const (
	inTag byte = iota
	inVarint
	inLength
	inSkip
)

// rowCount is the field ReadRowsResponse.row_count.
const rowCount = 6

// Rows returns how many rows came in messages that are whole.
func (f *Frames) Rows() int64 { return f.rows }

// Write takes in what came next. It fails for good where the bytes are not plain
// gRPC messages.
func (f *Frames) Write(b []byte) error {
	for len(b) > 0 && f.err == nil {
		if f.left == 0 {
			n := copy(f.head[f.have:], b)
			f.have += n
			b = b[n:]
			if f.have < frameHead {
				break
			}
			if f.head[0] != 0 {
				f.err = fmt.Errorf("a message of the answer is compressed")
				break
			}
			f.have, f.left = 0, binary.BigEndian.Uint32(f.head[1:])
			f.state, f.tag, f.value, f.shift, f.count = inTag, 0, 0, 0, 0
			continue
		}
		n := min(uint64(len(b)), uint64(f.left))
		f.message(b[:n])
		b, f.left = b[n:], f.left-uint32(n)
		if f.left == 0 && f.err == nil {
			if f.state != inTag || f.shift != 0 {
				f.err = fmt.Errorf("a message of the answer is cut off")
				break
			}
			f.rows += int64(f.count)
		}
	}
	return f.err
}

// End reports whether the bytes ended at the end of a message.
func (f *Frames) End() error {
	if f.err == nil && (f.left > 0 || f.have > 0) {
		return fmt.Errorf("the answer ended within a message")
	}
	return f.err
}

func (f *Frames) message(b []byte) {
	for len(b) > 0 && f.err == nil {
		if f.state == inSkip {
			n := min(uint64(len(b)), f.skip)
			if b, f.skip = b[n:], f.skip-n; f.skip == 0 {
				f.state = inTag
			}
			continue
		}
		c := b[0]
		b = b[1:]
		if f.shift >= 64 || f.shift == 63 && c > 1 {
			f.err = fmt.Errorf("a number in the answer is too large")
			return
		}
		f.value |= uint64(c&0x7f) << f.shift
		f.shift += 7
		if c&0x80 != 0 {
			continue
		}
		v := f.value
		f.value, f.shift = 0, 0
		switch f.state {
		case inTag:
			f.tag = v
			switch v & 7 {
			case 0:
				f.state = inVarint
			case 1:
				f.state, f.skip = inSkip, 8
			case 2:
				f.state = inLength
			case 5:
				f.state, f.skip = inSkip, 4
			default:
				f.err = fmt.Errorf("a message of the answer is no protobuf")
			}
		case inVarint:
			if f.tag>>3 == rowCount {
				if f.count = v; v > 1<<40 {
					f.err = fmt.Errorf("a message of the answer counts an impossible number of rows")
				}
			}
			f.state = inTag
		case inLength:
			if f.state, f.skip = inSkip, v; v == 0 {
				f.state = inTag
			}
		}
	}
}

// grpcHeaders go upstream with a gRPC call beside upstreamHeaders. The gateway
// writes x-goog-request-params itself.
var grpcHeaders = map[string]bool{"grpc-timeout": true, "te": true}

// grpcTrailers come back with one beside downstreamHeaders: as trailers, or in
// the head of an answer without a body.
var grpcTrailers = map[string]bool{"grpc-status": true, "grpc-message": true, "grpc-status-details-bin": true}

// UpstreamGRPCHeader is [UpstreamHeader] for a gRPC call.
func UpstreamGRPCHeader(name string) bool {
	return grpcHeaders[strings.ToLower(name)] || UpstreamHeader(name)
}

// DownstreamTrailer reports whether a trailer of a gRPC answer may go to the caller.
func DownstreamTrailer(name string) bool { return grpcTrailers[strings.ToLower(name)] }
