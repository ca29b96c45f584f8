package server

import (
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"verbatim.dev/recorder/record"
)

const (
	// ReceiptHeader carries the exchange's signed receipt to the caller, see
	// [record.Receipt]. Records of heads leave it out: it is about a record.
	ReceiptHeader = "x-verbatim-receipt"
	// UpstreamHeader names the Envoy cluster that the request goes to. Envoy's
	// route reads it; what a client sends under this name is dropped.
	UpstreamHeader = "x-verbatim-upstream"
	// MetadataNamespace and MetadataAdmitted are what the RBAC filter behind
	// the processor demands before a request may go on.
	MetadataNamespace = "verbatim"
	MetadataAdmitted  = "admitted"
)

// headerValue returns a header's value; Envoy fills raw_value.
func headerValue(h *core.HeaderValue) string {
	if len(h.GetRawValue()) > 0 {
		return string(h.GetRawValue())
	}
	return h.GetValue()
}

func setHeader(name, value string) *core.HeaderValueOption {
	return &core.HeaderValueOption{
		Header:       &core.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// routed are headers that Envoy itself needs until it has chosen the route; the
// route removes them.
var routed = map[string]bool{"x-forwarded-proto": true, "x-request-id": true}

// requestHeadReply lets the request go upstream: other headers than those that
// the plan passes are removed, and the gateway's credential is put in.
func requestHeadReply(p *plan, r *request) *extproc.ProcessingResponse {
	m := &extproc.HeaderMutation{}
	gone := map[string]bool{}
	for _, h := range r.headers {
		name := strings.ToLower(h.Name)
		if strings.HasPrefix(name, ":") || gone[name] || routed[name] || p.passes(h) {
			continue
		}
		gone[name] = true
		m.RemoveHeaders = append(m.RemoveHeaders, name)
	}
	m.SetHeaders = append(m.SetHeaders,
		setHeader("authorization", "Bearer "+p.credential),
		setHeader("accept-encoding", "identity"),
		setHeader(UpstreamHeader, p.cluster))
	if p.carries == carriesGRPC {
		m.SetHeaders = append(m.SetHeaders, setHeader("grpc-accept-encoding", "identity"), setHeader("x-goog-request-params", p.params))
	}
	if p.path != r.target {
		m.SetHeaders = append(m.SetHeaders, setHeader(":path", p.path))
	}
	if p.contentType != "" {
		m.SetHeaders = append(m.SetHeaders, setHeader("content-type", p.contentType))
	}
	return &extproc.ProcessingResponse{
		Response: &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{
			Response: &extproc.CommonResponse{HeaderMutation: m, ClearRouteCache: true},
		}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			MetadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				MetadataAdmitted: structpb.NewBoolValue(true),
			}}),
		}},
	}
}

func responseHeadReply(m *extproc.HeaderMutation) *extproc.ProcessingResponse {
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseHeaders{
		ResponseHeaders: &extproc.HeadersResponse{Response: &extproc.CommonResponse{HeaderMutation: m}},
	}}
}

func bodyReply(d record.Direction, b []byte, end bool) *extproc.ProcessingResponse {
	body := &extproc.BodyResponse{Response: &extproc.CommonResponse{BodyMutation: &extproc.BodyMutation{
		Mutation: &extproc.BodyMutation_StreamedResponse{StreamedResponse: &extproc.StreamedBodyResponse{Body: b, EndOfStream: end}},
	}}}
	if d == record.DirectionRequest {
		return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestBody{RequestBody: body}}
	}
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: body}}
}

func responseTrailersReply(m *extproc.HeaderMutation) *extproc.ProcessingResponse {
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extproc.TrailersResponse{HeaderMutation: m}}}
}

// immediateReply answers in BigQuery's place. The text names the id, the header
// holds the whole receipt; both are empty where nothing was recorded.
func immediateReply(r *refusal, id, receipt string) *extproc.ProcessingResponse {
	m := &extproc.HeaderMutation{}
	for _, h := range r.headers(receipt) {
		m.SetHeaders = append(m.SetHeaders, setHeader(h.Name, h.Value))
	}
	i := &extproc.ImmediateResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(r.status)}, Headers: m, Body: r.body(id), Details: "verbatim_" + r.code,
	}
	if r.grpc {
		i.GrpcStatus = &extproc.GrpcStatus{Status: uint32(grpcStatus(r.status))}
	}
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ImmediateResponse{ImmediateResponse: i}}
}

// final reports whether nothing more is to be sent after m. head is whether
// the response's head was the whole response.
func final(m *extproc.ProcessingResponse, head bool) bool {
	switch r := m.Response.(type) {
	case *extproc.ProcessingResponse_ImmediateResponse, *extproc.ProcessingResponse_ResponseTrailers:
		return true
	case *extproc.ProcessingResponse_ResponseHeaders:
		return head
	case *extproc.ProcessingResponse_ResponseBody:
		return r.ResponseBody.GetResponse().GetBodyMutation().GetStreamedResponse().GetEndOfStream()
	}
	return false
}
