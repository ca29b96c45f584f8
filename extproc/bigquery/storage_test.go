package bigquery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"verbatim.dev/recorder/record"
)

func framed(t testing.TB, m proto.Message, more ...byte) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, more...)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func readSession(change func(*storagepb.CreateReadSessionRequest)) *storagepb.CreateReadSessionRequest {
	q := &storagepb.CreateReadSessionRequest{Parent: "projects/p1", MaxStreamCount: 3, ReadSession: &storagepb.ReadSession{
		Table: "projects/p2/datasets/d/tables/t", DataFormat: storagepb.DataFormat_ARROW,
		ReadOptions:    &storagepb.ReadSession_TableReadOptions{SelectedFields: []string{"a", "s.b"}, RowRestriction: "a > 1"},
		TableModifiers: &storagepb.ReadSession_TableModifiers{SnapshotTime: timestamppb.New(timestamppb.Now().AsTime())},
	}}
	if change != nil {
		change(q)
	}
	return q
}

const stream = "projects/p1/locations/us/sessions/CAIS-de_f=/streams/GgJ="

func TestParseStorageRead(t *testing.T) {
	s, err := ParseStorageRead(MethodCreateReadSession, framed(t, readSession(nil)))
	if err != nil {
		t.Fatal(err)
	}
	if s.Project != "p1" || s.Table != (Table{Project: "p2", Dataset: "d", Table: "t"}) || !slices.Equal(s.Fields, []string{"a", "s.b"}) || s.Restriction != "a > 1" {
		t.Errorf("read %+v", s)
	}
	if _, params, err := s.Upstream(); err != nil || params != "read_session.table=projects/p2/datasets/d/tables/t" {
		t.Errorf("params %q, %v", params, err)
	}

	s, err = ParseStorageRead(MethodReadRows, framed(t, &storagepb.ReadRowsRequest{ReadStream: stream + "~x.y", Offset: 7}))
	if err != nil {
		t.Fatal(err)
	}
	if s.Project != "p1" || s.Stream != stream || s.Proof != "x.y" || s.Job != nil {
		t.Errorf("read %+v", s)
	}
	body, params, err := s.Upstream()
	if err != nil || params != "read_stream=projects/p1/locations/us/sessions/CAIS-de_f%3D/streams/GgJ%3D" {
		t.Errorf("params %q, %v", params, err)
	}
	q := &storagepb.ReadRowsRequest{}
	if err := proto.Unmarshal(body[5:], q); err != nil || q.ReadStream != stream || q.Offset != 7 {
		t.Errorf("upstream gets %v, %v", q, err)
	}

	s, err = ParseStorageRead(MethodReadRows, framed(t, &storagepb.ReadRowsRequest{ReadStream: "projects/p1/locations/US/jobs/j-1/streams/_default"}))
	if err != nil || s.Job == nil || *s.Job != (record.Job{Project: "p1", Location: "US", ID: "j-1"}) {
		t.Errorf("read %+v, %v", s, err)
	}
}

func TestParseStorageReadRefuses(t *testing.T) {
	change := func(f func(*storagepb.CreateReadSessionRequest)) []byte { return framed(t, readSession(f)) }
	table := func(name string) []byte {
		return change(func(q *storagepb.CreateReadSessionRequest) { q.ReadSession.Table = name })
	}
	rows := func(name string) []byte { return framed(t, &storagepb.ReadRowsRequest{ReadStream: name}) }
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 77, protowire.VarintType), 1)
	inner := func() []byte {
		return change(func(q *storagepb.CreateReadSessionRequest) {
			q.ReadSession.ReadOptions.ProtoReflect().SetUnknown(unknown)
		})
	}
	compressed := change(nil)
	compressed[0] = 1
	for name, c := range map[string]struct {
		method string
		body   []byte
		code   string
	}{
		"empty":           {MethodReadRows, nil, "grpc_frame"},
		"cut off":         {MethodCreateReadSession, change(nil)[:40], "grpc_frame"},
		"two messages":    {MethodCreateReadSession, append(change(nil), change(nil)...), "grpc_frame"},
		"compressed":      {MethodCreateReadSession, compressed, "grpc_encoding"},
		"too large":       {MethodCreateReadSession, make([]byte, maxStorageRequest+6), "body_too_large"},
		"no protobuf":     {MethodReadRows, []byte{0, 0, 0, 0, 1, 0xff}, "grpc_message"},
		"unknown field":   {MethodReadRows, framed(t, &storagepb.ReadRowsRequest{ReadStream: stream + "~x"}, unknown...), "grpc_field"},
		"unknown, nested": {MethodCreateReadSession, inner(), "grpc_field"},
		"unknown enum":    {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.ReadSession.DataFormat = 9 }), "grpc_field"},
		"no format":       {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.ReadSession.DataFormat = 0 }), "storage_field"},
		"no session":      {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.ReadSession = nil }), "storage_field"},
		"a name":          {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.ReadSession.Name = "x" }), "storage_field"},
		"streams":         {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.ReadSession.Streams = []*storagepb.ReadStream{{}} }), "storage_field"},
		"field's name": {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) {
			q.ReadSession.ReadOptions.SelectedFields = []string{"a`b"}
		}), "storage_field"},
		"no parent":       {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.Parent = "" }), "name_project"},
		"parent's form":   {MethodCreateReadSession, change(func(q *storagepb.CreateReadSessionRequest) { q.Parent = "projects/p1/locations/us" }), "name_project"},
		"table's form":    {MethodCreateReadSession, table("p2.d.t"), "name_table"},
		"a longer table":  {MethodCreateReadSession, table("projects/p2/datasets/d/tables/t/x/y"), "name_table"},
		"a decorator":     {MethodCreateReadSession, table("projects/p2/datasets/d/tables/t$20240101"), "name_table"},
		"time travel":     {MethodCreateReadSession, table("projects/p2/datasets/d/tables/t@-1000"), "name_table"},
		"a wildcard":      {MethodCreateReadSession, table("projects/p2/datasets/d/tables/t*"), "name_table"},
		"no proof":        {MethodReadRows, rows(stream), "name_stream"},
		"no stream":       {MethodReadRows, rows("projects/p1/locations/us/sessions/x~y.z"), "name_stream"},
		"a long name":     {MethodReadRows, rows(stream + "~" + strings.Repeat("x", maxStreamName)), "name_stream"},
		"a job's, proven": {MethodReadRows, rows("projects/p1/locations/us/jobs/j/streams/_default~x"), "name_stream"},
		"offset":          {MethodReadRows, framed(t, &storagepb.ReadRowsRequest{ReadStream: stream + "~x", Offset: -1}), "storage_field"},
		"a job's, split":  {MethodSplitReadStream, framed(t, &storagepb.SplitReadStreamRequest{Name: "projects/p1/locations/us/jobs/j/streams/_default"}), "name_stream"},
		"another method":  {"google.cloud.bigquery.storage.v1.BigQueryWrite.AppendRows", change(nil), "route_unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseStorageRead(c.method, c.body)
			var r *Refusal
			if !errors.As(err, &r) || r.Code != c.code {
				t.Errorf("got %v, want %s", err, c.code)
			}
		})
	}
}

func TestSealStreams(t *testing.T) {
	seal := func(name string) string { return "proof-" + name[len(name)-1:] }
	in := &storagepb.ReadSession{Name: "s", EstimatedRowCount: 5, Streams: []*storagepb.ReadStream{{Name: "a/1"}, {Name: "a/2"}}}
	in.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	b, err := SealStreams(MethodCreateReadSession, framed(t, in), seal)
	if err != nil {
		t.Fatal(err)
	}
	out := &storagepb.ReadSession{}
	if err := proto.Unmarshal(b[5:], out); err != nil {
		t.Fatal(err)
	}
	in.Streams[0].Name, in.Streams[1].Name = "a/1~proof-1", "a/2~proof-2"
	if !proto.Equal(in, out) {
		t.Errorf("got %v, want %v", out, in)
	}
	b, err = SealStreams(MethodSplitReadStream, framed(t, &storagepb.SplitReadStreamResponse{PrimaryStream: &storagepb.ReadStream{Name: "x/1"}}), seal)
	split := &storagepb.SplitReadStreamResponse{}
	if err != nil || proto.Unmarshal(b[5:], split) != nil || split.PrimaryStream.Name != "x/1~proof-1" || split.RemainderStream != nil {
		t.Errorf("got %v, %v", split, err)
	}
	for name, body := range map[string][]byte{"cut off": framed(t, in)[:9], "proven already": framed(t, in)} {
		if _, err := SealStreams(MethodCreateReadSession, body, seal); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

func TestFrames(t *testing.T) {
	var all []byte
	for _, n := range []int64{3, 0, 300} {
		all = append(all, framed(t, &storagepb.ReadRowsResponse{RowCount: n, UncompressedByteSize: proto.Int64(1 << 40), Stats: &storagepb.StreamStats{},
			Rows: &storagepb.ReadRowsResponse_ArrowRecordBatch{ArrowRecordBatch: &storagepb.ArrowRecordBatch{SerializedRecordBatch: bytes.Repeat([]byte{0x30, 0xff}, 1000)}}})...)
	}
	all = append(all, framed(t, &storagepb.ReadRowsResponse{})...)
	for _, step := range []int{1, 2, 7, 1000, len(all)} {
		var f Frames
		for b := range slices.Chunk(all, step) {
			if err := f.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		if f.Rows() != 303 || f.End() != nil {
			t.Errorf("in steps of %d: %d rows, %v", step, f.Rows(), f.End())
		}
	}
	var f Frames
	_ = f.Write(all[:len(all)-1])
	if f.End() == nil {
		t.Error("cut off and not noticed")
	}
	for name, b := range map[string][]byte{
		"compressed": {1, 0, 0, 0, 0}, "a group": {0, 0, 0, 0, 1, 0x33}, "cut off inside": {0, 0, 0, 0, 2, 0x12, 5},
		"a huge number": append([]byte{0, 0, 0, 0, 12, 0x30}, bytes.Repeat([]byte{0xff}, 11)...),
	} {
		var f Frames
		if err := f.Write(b); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func TestClassifyStorage(t *testing.T) {
	const path = "/google.cloud.bigquery.storage.v1.BigQueryRead/ReadRows"
	grpc := record.Header{Name: "content-type", Value: "application/grpc"}
	for _, c := range []struct {
		method, target, code string
		headers              []record.Header
	}{
		{"POST", path, "", []record.Header{grpc}},
		{"POST", path, "", []record.Header{{Name: "content-type", Value: "application/grpc+proto"}, {Name: "grpc-encoding", Value: "identity"}}},
		{"POST", path, "content_type", nil},
		{"POST", path, "content_type", []record.Header{grpc, grpc}},
		{"POST", path, "content_type", []record.Header{{Name: "content-type", Value: "application/grpc-web"}}},
		{"POST", path, "content_type", []record.Header{{Name: "content-type", Value: "application/json"}}},
		{"POST", path, "grpc_encoding", []record.Header{grpc, {Name: "grpc-encoding", Value: "gzip"}}},
		{"POST", path + "?$.xgafv=1", "query_form", []record.Header{grpc}},
		{"GET", path, "route_denied", []record.Header{grpc}},
		{"POST", path + "/", "path_form", []record.Header{grpc}},
		{"POST", strings.ToLower(path), "route_unknown", []record.Header{grpc}},
		{"POST", "/google.cloud.bigquery.storage.v1.BigQueryRead/Other", "route_denied", []record.Header{grpc}},
		{"POST", "/google.cloud.bigquery.storage.v1beta2.BigQueryRead/ReadRows", "route_denied", []record.Header{grpc}},
		{"POST", "/google.cloud.bigquery.storage.v1.BigQueryWrite/AppendRows", "route_denied", []record.Header{grpc}},
	} {
		call, ref := Classify(Request{Method: c.method, Target: c.target, Headers: c.headers})
		code := ""
		if ref != nil {
			code = ref.Code
		}
		if code != c.code || code == "" && (call.Method != MethodReadRows || call.Path != path || call.Carries != CarriesGRPC) {
			t.Errorf("%s %s %v: %q, %+v; want %q", c.method, c.target, c.headers, code, call, c.code)
		}
	}
}

// FuzzParseStorageRead: no bytes break the reader, and what goes upstream is read
// in the same way again.
func FuzzParseStorageRead(f *testing.F) {
	f.Add(byte(0), framed(f, readSession(nil)))
	f.Add(byte(1), framed(f, &storagepb.ReadRowsRequest{ReadStream: stream + "~a.b"}))
	f.Add(byte(2), framed(f, &storagepb.SplitReadStreamRequest{Name: stream + "~a.b", Fraction: 0.5}))
	f.Fuzz(func(t *testing.T, n byte, b []byte) {
		method := []string{MethodCreateReadSession, MethodReadRows, MethodSplitReadStream}[int(n)%3]
		s, err := ParseStorageRead(method, b)
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("no refusal: %v", err)
			}
			return
		}
		up, _, err := s.Upstream()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(up), "~") && s.Stream != "" {
			t.Fatal("a proof goes upstream")
		}
		if s.Job != nil || s.Stream != "" {
			return
		}
		again, err := ParseStorageRead(method, up)
		if err != nil || again.Table != s.Table || again.Project != s.Project || again.Restriction != s.Restriction || !slices.Equal(again.Fields, s.Fields) {
			t.Fatalf("%+v, %v; first %+v", again, err, s)
		}
	})
}

// FuzzFrames: the counter stands any bytes, in whatever pieces they come.
func FuzzFrames(f *testing.F) {
	f.Add(framed(f, &storagepb.ReadRowsResponse{RowCount: 3}), 2)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		var one, many Frames
		e1 := one.Write(b)
		var e2 error
		for c := range slices.Chunk(b, max(1, step%64)) {
			e2 = many.Write(c)
		}
		if (e1 == nil) != (e2 == nil) || e1 == nil && one.Rows() != many.Rows() {
			t.Fatalf("%d rows, %v in one; %d, %v in pieces", one.Rows(), e1, many.Rows(), e2)
		}
	})
}
