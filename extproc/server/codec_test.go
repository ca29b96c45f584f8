package server

import (
	"bytes"
	"testing"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"verbatim.dev/recorder/record"
)

// split cuts bytes as gRPC hands them over, in frames.
func split(b []byte, size int) (out mem.BufferSlice) {
	for len(b) > 0 {
		n := min(len(b), size)
		out = append(out, mem.SliceBuffer(b[:n]))
		b = b[n:]
	}
	return out
}

func TestCodecReadsWhatTheUsualOneReads(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	attributes := map[string]*structpb.Struct{"a": {Fields: map[string]*structpb.Value{"b": structpb.NewStringValue("c")}}}
	messages := map[string]*extproc.ProcessingRequest{
		"head":              head(":method", "GET", "x", string(big[:10_000])),
		"small body":        resBody("abc", true),
		"no body":           resBody("", true),
		"body":              resBody(string(big[:100_000]), false),
		"last body":         reqBody(string(big[:100_000]), true),
		"body of no buffer": resBody(string(big), false),
		"trailers":          resTrailers(),
	}
	more := resBody(string(big[:50_000]), true)
	more.Attributes, more.ObservabilityMode = attributes, true
	messages["body and more"] = more
	c := newCodec()
	for name, m := range messages {
		// Fields in the order of their numbers, which is how Envoy writes them.
		rest := proto.Clone(m).(*extproc.ProcessingRequest)
		rest.Request = nil
		b, err := proto.Marshal(&extproc.ProcessingRequest{Request: m.Request})
		if err == nil {
			b, err = proto.MarshalOptions{}.MarshalAppend(b, rest)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 7, 16 << 10, 1 << 20} {
			var in inbound
			if err := c.Unmarshal(split(b, size), &in); err != nil {
				t.Errorf("%s in frames of %d: %v", name, size, err)
				continue
			}
			if !proto.Equal(in.msg, m) {
				t.Errorf("%s in frames of %d: another message came out", name, size)
			}
			n := len(m.GetRequestBody().GetBody()) + len(m.GetResponseBody().GetBody())
			if pooled := n >= pooledFrom && n <= expected; pooled != (in.memory != nil) {
				t.Errorf("%s: a body of %d bytes is pooled: %v", name, n, in.memory != nil)
			}
			putBody(in.memory)
		}
	}
}

func FuzzCodec(f *testing.F) {
	big := bytes.Repeat([]byte("x"), pooledFrom)
	for _, m := range []*extproc.ProcessingRequest{resBody(string(big), true), reqBody(string(big), false), reqHead(false), resTrailers()} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	inner := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), big)
	inner = protowire.AppendBytes(protowire.AppendTag(inner, 1, protowire.BytesType), big)
	twice := protowire.AppendBytes(protowire.AppendTag(nil, responseBodyField, protowire.BytesType), inner)
	f.Add(twice)
	f.Add(append(twice, twice...))
	c := newCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < pooledFrom { // what the fuzzer shortens still meets the reader
			var in inbound
			in.msg = &extproc.ProcessingRequest{}
			if done, err := in.body(split(b, 5)); done && err == nil {
				compare(t, b, &in)
			}
		}
		var in inbound
		err := c.Unmarshal(split(b, 1000), &in)
		var want extproc.ProcessingRequest
		if wantErr := proto.Unmarshal(b, &want); (wantErr == nil) != (err == nil) {
			t.Fatalf("error %v, the usual codec's is %v", err, wantErr)
		}
		if err == nil {
			compare(t, b, &in)
		}
	})
}

func compare(t *testing.T, b []byte, in *inbound) {
	t.Helper()
	var want extproc.ProcessingRequest
	if err := proto.Unmarshal(b, &want); err != nil {
		t.Fatalf("read what the usual codec does not: %v", err)
	}
	if !proto.Equal(in.msg, &want) {
		t.Fatal("another message than the usual codec's")
	}
	putBody(in.memory)
}

func TestCodecSendsFromBuffersThatFit(t *testing.T) {
	c := newCodec()
	for _, n := range []int{0, 10, 5000, maxReply} {
		m := bodyReply(record.DirectionResponse, bytes.Repeat([]byte("y"), n), true)
		data, err := c.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var got extproc.ProcessingResponse
		if err := proto.Unmarshal(data.Materialize(), &got); err != nil || !proto.Equal(&got, m) {
			t.Errorf("%d bytes: another message came out: %v", n, err)
		}
		if n == maxReply && data.Len() > 64<<10 {
			t.Errorf("a whole reply takes %d bytes, more than its buffers have", data.Len())
		}
		data.Free()
	}
}

func TestIdleBodiesAreBounded(t *testing.T) {
	var all [][]byte
	for range 2 * idleBodies / expected {
		_, memory := getBody(expected)
		all = append(all, memory)
	}
	for _, m := range all {
		putBody(m)
	}
	bodies.Lock()
	idle, kept := bodies.idle, 0
	for i, free := range bodies.free {
		kept += len(free) * bodySizes[i]
	}
	bodies.Unlock()
	if idle > idleBodies || kept != idle {
		t.Errorf("%d bytes lie idle, counted as %d; the bound is %d", kept, idle, idleBodies)
	}
	seen := map[*byte]bool{}
	for range 2 * idleBodies / expected {
		b, memory := getBody(expected)
		if seen[&b[0]] {
			t.Fatal("a buffer was given out twice")
		}
		seen[&b[0]] = true
		defer putBody(memory)
	}
}
