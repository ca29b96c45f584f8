package server

import (
	"fmt"
	"sync"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped here
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Bodies make almost all of the traffic. The usual codec gives each a slice of
// its own, as garbage of the traffic's size, and takes buffers of 1 MiB to send
// pieces of 62 KiB. This one reads large bodies into buffers that are used
// again, and sends from buffers that fit. All else is the usual codec's.

// chunk is a part of a body.
type chunk struct {
	b []byte
	// memory is the pooled buffer that b lies in, nil where it is not pooled.
	// Whoever sends the chunk's last byte gives it back.
	memory []byte
}

// cost is what the chunk counts in an exchange's memory: all of its buffer.
func (c chunk) cost() int64 { return int64(max(len(c.b), len(c.memory))) }

// pooledFrom is the size of the smallest body that gets a pooled buffer.
const pooledFrom = 4 << 10

// bodySizes are the capacities of the buffers, close enough that not much of them
// stays empty. Envoy sends up to 256 KiB at once with the bootstrap of this
// repository.
var bodySizes = [...]int{8 << 10, 16 << 10, 32 << 10, 48 << 10, 64 << 10, 96 << 10, 128 << 10, 192 << 10, expected}

// idleBodies is the most that buffers hold which nobody uses: what a burst
// needed more is for the garbage collector. A sync.Pool would keep all of it
// until the next collections, and they come the later the less garbage there is.
const idleBodies = 16 << 20

var bodies struct {
	sync.Mutex
	free [len(bodySizes)][][]byte
	idle int
}

// getBody returns n bytes and the pooled buffer that they lie in, nil where n is
// too small or too large for one.
func getBody(n int) (b, memory []byte) {
	if n < pooledFrom {
		return make([]byte, n), nil
	}
	for i, size := range bodySizes {
		if n > size {
			continue
		}
		bodies.Lock()
		if free := bodies.free[i]; len(free) > 0 {
			memory, free[len(free)-1] = free[len(free)-1], nil
			bodies.free[i] = free[:len(free)-1]
			bodies.idle -= size
		}
		bodies.Unlock()
		if memory == nil {
			memory = make([]byte, size)
		}
		return memory[:n:n], memory
	}
	return make([]byte, n), nil
}

// putBody gives a pooled buffer back, or nil. Nothing may refer to it any more.
func putBody(memory []byte) {
	for i, size := range bodySizes {
		if len(memory) != size {
			continue
		}
		bodies.Lock()
		defer bodies.Unlock()
		if bodies.idle+size <= idleBodies {
			bodies.free[i] = append(bodies.free[i], memory)
			bodies.idle += size
		}
		return
	}
}

// inbound is a message from Envoy. Its body may lie in memory, a pooled buffer.
type inbound struct {
	msg    *extproc.ProcessingRequest
	memory []byte
}

// codec is the "proto" codec with pooled bodies for *inbound, and replies from
// a pool of their sizes.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Unmarshal implements [encoding.CodecV2].
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*inbound)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	in.msg = &extproc.ProcessingRequest{}
	if data.Len() >= pooledFrom {
		if done, err := in.body(data); done || err != nil {
			return err
		}
	}
	return c.CodecV2.Unmarshal(data, in.msg)
}

// The numbers of the fields in which Envoy puts a body.
var (
	requestBodyField  = field(&extproc.ProcessingRequest{}, "request_body")
	responseBodyField = field(&extproc.ProcessingRequest{}, "response_body")
	bodyField         = field(&extproc.HttpBody{}, "body")
)

func field(m proto.Message, name string) protowire.Number {
	return m.ProtoReflect().Descriptor().Fields().ByTextName(name).Number()
}

// body reads a message that begins with a body, as Envoy's do. It reports false,
// having done nothing, for any other.
func (in *inbound) body(data mem.BufferSlice) (bool, error) {
	total := data.Len()
	var front [32]byte
	head := front[:data.CopyTo(front[:])]
	outer, n := length(head, requestBodyField, responseBodyField)
	if n < 0 {
		return false, nil
	}
	request := head[0]>>3 == byte(requestBodyField) // both numbers are below 16
	inner, m := length(head[n:], bodyField)
	if m < 0 {
		return false, nil
	}
	from := n + m              // of the body
	end := n + outer           // of the message that holds it
	rest := end - from - inner // after the body in that message
	if outer < 0 || inner < 0 || rest < 0 || end > total {
		return false, nil // let the usual codec say what is wrong
	}
	b, memory := getBody(inner)
	tail := make([]byte, total-from-inner)
	copyFrom(data, from, b, tail)
	h := &extproc.HttpBody{}
	if err := proto.Unmarshal(tail[:rest], h); err != nil {
		return false, fmt.Errorf("body message: %w", err)
	}
	if len(h.Body) > 0 { // a body in two fields: nobody sends that
		return false, nil
	}
	if err := proto.Unmarshal(tail[rest:], in.msg); err != nil {
		return false, fmt.Errorf("message after its body: %w", err)
	}
	if in.msg.Request != nil { // two of what can be but one
		in.msg = &extproc.ProcessingRequest{}
		return false, nil
	}
	h.Body = b
	if request {
		in.msg.Request = &extproc.ProcessingRequest_RequestBody{RequestBody: h}
	} else {
		in.msg.Request = &extproc.ProcessingRequest_ResponseBody{ResponseBody: h}
	}
	in.memory = memory
	return true, nil
}

// length reads the tag, which must be one of the fields, and the length of a
// field of bytes. n is how many bytes they took, -1 for anything else.
func length(b []byte, fields ...protowire.Number) (size, n int) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || typ != protowire.BytesType {
		return 0, -1
	}
	for _, f := range fields {
		if num != f {
			continue
		}
		v, m := protowire.ConsumeVarint(b[n:])
		if m < 0 || v > maxMessage {
			return 0, -1
		}
		return int(v), n + m
	}
	return 0, -1
}

// copyFrom copies the bytes from offset on into one destination after another.
func copyFrom(data mem.BufferSlice, offset int, to ...[]byte) {
	for _, buf := range data {
		b := buf.ReadOnlyData()
		if offset >= len(b) {
			offset -= len(b)
			continue
		}
		b = b[offset:]
		offset = 0
		for len(b) > 0 && len(to) > 0 {
			n := copy(to[0], b)
			b = b[n:]
			if to[0] = to[0][n:]; len(to[0]) == 0 {
				to = to[1:]
			}
		}
	}
}

// replies are the buffers that replies are sent from: those of up to maxReply
// fit into the largest.
var replies = mem.NewTieredBufferPool(4<<10, 16<<10, 64<<10)

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*extproc.ProcessingResponse)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	options := proto.MarshalOptions{UseCachedSize: true}
	size := proto.Size(m)
	if mem.IsBelowBufferPoolingThreshold(size) {
		b, err := options.Marshal(m)
		if err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	buf := replies.Get(size)
	if _, err := options.MarshalAppend((*buf)[:0], m); err != nil {
		replies.Put(buf)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(buf, replies)}, nil
}
