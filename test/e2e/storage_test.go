package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bqstorage "cloud.google.com/go/bigquery/storage/apiv1"
	"cloud.google.com/go/bigquery/storage/apiv1/storagepb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/envoy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// storageDouble stands for BigQuery's Storage Read API: it takes the gateway's
// credential alone and sends as many bytes as a table's name says.
type storageDouble struct {
	storagepb.UnimplementedBigQueryReadServer
	address string

	mu   sync.Mutex
	seen []storageCall
}

type storageCall struct {
	method  string
	message proto.Message
	head    metadata.MD
}

func newStorageDouble(t *testing.T) *storageDouble {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &storageDouble{address: l.Addr().String()}
	s := grpc.NewServer()
	storagepb.RegisterBigQueryReadServer(s, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return d
}

func (d *storageDouble) note(ctx context.Context, method string, m proto.Message) error {
	head, _ := metadata.FromIncomingContext(ctx)
	d.mu.Lock()
	d.seen = append(d.seen, storageCall{method, m, head})
	d.mu.Unlock()
	if !slices.Equal(head.Get("authorization"), []string{"Bearer " + harness.UpstreamToken}) {
		return status.Error(codes.Unauthenticated, "no credential of the gateway's")
	}
	return nil
}

func (d *storageDouble) calls() []storageCall {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.seen)
}

func (d *storageDouble) CreateReadSession(ctx context.Context, q *storagepb.CreateReadSessionRequest) (*storagepb.ReadSession, error) {
	if err := d.note(ctx, "create", q); err != nil {
		return nil, err
	}
	table := q.ReadSession.Table[strings.LastIndexByte(q.ReadSession.Table, '/')+1:]
	if table == "absent" {
		return nil, status.Error(codes.NotFound, "no such table: absent")
	}
	// Google's own may come with the project's number.
	name := "projects/123456/locations/us/sessions/CAISDE-" + table
	s := &storagepb.ReadSession{Name: name, Table: q.ReadSession.Table, DataFormat: q.ReadSession.DataFormat}
	for i := range max(q.MaxStreamCount, 1) {
		s.Streams = append(s.Streams, &storagepb.ReadStream{Name: fmt.Sprintf("%s/streams/Gg%d", name, i)})
	}
	return s, nil
}

func (d *storageDouble) ReadRows(q *storagepb.ReadRowsRequest, s storagepb.BigQueryRead_ReadRowsServer) error {
	if err := d.note(s.Context(), "rows", q); err != nil {
		return err
	}
	n := 3
	if strings.Contains(q.ReadStream, "-big/") {
		n = 100
	}
	for i := range n {
		if err := s.Send(storageRows(n, i)); err != nil {
			return err
		}
	}
	if strings.Contains(q.ReadStream, "-broken/") {
		return status.Error(codes.OutOfRange, "it broke off")
	}
	return nil
}

// storageRows is one of n messages: of 1 MB where there are many.
func storageRows(n, i int) *storagepb.ReadRowsResponse {
	size := 1000
	if n > 3 {
		size = 1 << 20
	}
	return &storagepb.ReadRowsResponse{RowCount: int64(i + 1), Rows: &storagepb.ReadRowsResponse_ArrowRecordBatch{
		ArrowRecordBatch: &storagepb.ArrowRecordBatch{SerializedRecordBatch: bytes.Repeat([]byte{byte(i), 0x30}, size/2)}}}
}

func (d *storageDouble) SplitReadStream(ctx context.Context, q *storagepb.SplitReadStreamRequest) (*storagepb.SplitReadStreamResponse, error) {
	if err := d.note(ctx, "split", q); err != nil {
		return nil, err
	}
	return &storagepb.SplitReadStreamResponse{PrimaryStream: &storagepb.ReadStream{Name: q.Name + "a"}, RemainderStream: &storagepb.ReadStream{Name: q.Name + "b"}}, nil
}

// callToken is a token for each call, over plain HTTP/2 too.
type callToken string

func (b callToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (callToken) RequireTransportSecurity() bool { return false }

func storageClient(t *testing.T, r *harness.Rig, token string) *bqstorage.BigQueryReadClient {
	t.Helper()
	c, err := bqstorage.NewBigQueryReadClient(t.Context(), option.WithGRPCConn(storageConn(t, r, token)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// storageConn is a connection to the gateway that sends the token with each call.
func storageConn(t *testing.T, r *harness.Rig, token string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.Envoy.Listener, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(callToken(token)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func readSession(dataset, table string, change ...func(*storagepb.CreateReadSessionRequest)) *storagepb.CreateReadSessionRequest {
	q := &storagepb.CreateReadSessionRequest{Parent: "projects/" + harness.Project, MaxStreamCount: 2, ReadSession: &storagepb.ReadSession{
		Table: "projects/" + harness.Project + "/datasets/" + dataset + "/tables/" + table, DataFormat: storagepb.DataFormat_ARROW}}
	for _, f := range change {
		f(q)
	}
	return q
}

// rows reads a stream: the rows, and a digest of the messages' frames.
func readRows(ctx context.Context, c *bqstorage.BigQueryReadClient, stream string, head *metadata.MD) (rows int64, sum hash.Hash, bytes int64, err error) {
	sum = sha256.New()
	s, err := c.ReadRows(ctx, &storagepb.ReadRowsRequest{ReadStream: stream}, gax.WithGRPCOptions(grpc.Header(head)))
	if err != nil {
		return 0, sum, 0, err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return rows, sum, bytes, nil
		}
		if err != nil {
			return rows, sum, bytes, err
		}
		rows += m.RowCount
		b, err := proto.Marshal(m)
		if err != nil {
			return rows, sum, bytes, err
		}
		f := append([]byte{0, byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...)
		bytes += int64(len(f))
		sum.Write(f)
	}
}

const storageGrants = `{"grants": {
  "all":   {"match": {"issuer": "corp", "group": "writers"}, "projects": ["demo-project"], "read": ["*"]},
  "sales": {"match": {"issuer": "corp", "group": "readers"}, "projects": ["demo-project"], "read": ["demo-project.sales"]}
}}`

// idOf is the exchange's id in the receipt of an answer.
func idOf(head metadata.MD) string {
	return harness.ReceiptID(http.Header{http.CanonicalHeaderKey(harness.Receipt): head.Get(harness.Receipt)})
}

func receiptOf(t *testing.T, err error, code string, grpcCode codes.Code) string {
	t.Helper()
	s, _ := status.FromError(err)
	m := receiptIn.FindStringSubmatch(s.Message())
	if s.Code() != grpcCode || m == nil || m[1] != code {
		t.Errorf("got %v, want %s with %s and a receipt", err, grpcCode, code)
		return ""
	}
	return m[2]
}

// TestStorageRead has Go's client read through the gateway from a double that
// takes the gateway's credential alone.
func TestStorageRead(t *testing.T) {
	d := newStorageDouble(t)
	r := harness.Start(t, harness.Options{Storage: d.address, Policy: storageGrants})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	alice, bob := mint(t, r, "alice", "readers"), mint(t, r, "bob", "readers", "writers")
	a, b := storageClient(t, r, alice), storageClient(t, r, bob)
	var head metadata.MD
	s, err := a.CreateReadSession(ctx, readSession("sales", "orders", func(q *storagepb.CreateReadSessionRequest) {
		q.ReadSession.ReadOptions = &storagepb.ReadSession_TableReadOptions{SelectedFields: []string{"Amount"}, RowRestriction: "region = 'EU'"}
	}), gax.WithGRPCOptions(grpc.Header(&head)))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Streams) != 2 || !strings.Contains(s.Streams[0].Name, "/streams/Gg0~") {
		t.Fatalf("session %v", s)
	}
	created := d.calls()[0]
	if got := created.head.Get("x-goog-request-params"); !slices.Equal(got, []string{"read_session.table=projects/demo-project/datasets/sales/tables/orders"}) {
		t.Errorf("routing header %q", got)
	}
	if !proto.Equal(created.message.(*storagepb.CreateReadSessionRequest).ReadSession.ReadOptions,
		&storagepb.ReadSession_TableReadOptions{SelectedFields: []string{"Amount"}, RowRestriction: "region = 'EU'"}) {
		t.Errorf("upstream got %v", created.message)
	}
	detail, payloads := r.Evidence(idOf(head))
	if got := detail.Reads; len(got) != 1 || got[0] != (record.TableUse{Table: "demo-project.sales.orders", Source: "storage_read"}) {
		t.Errorf("on record is that it reads %v", got)
	}
	if sealed := payloads[record.DirectionResponse]; len(sealed) < 5 || !bytes.Contains(sealed, []byte(s.Streams[1].Name)) {
		t.Errorf("the answer on record is not the caller's: %q", sealed)
	}

	t.Run("rows", func(t *testing.T) {
		head := metadata.MD{}
		rows, sum, n, err := readRows(ctx, a, s.Streams[0].Name, &head)
		if err != nil || rows != 6 {
			t.Fatalf("%d rows, %v", rows, err)
		}
		detail, payloads := r.Evidence(idOf(head))
		if got := sha256.Sum256(payloads[record.DirectionResponse]); !bytes.Equal(got[:], sum.Sum(nil)) || int64(len(payloads[record.DirectionResponse])) != n {
			t.Errorf("on record are %d bytes, the client got %d", len(payloads[record.DirectionResponse]), n)
		}
		if o := detail; o.Rows == nil || *o.Rows != 6 || o.Result != record.ResultDelivered || o.Error != "" || len(o.Reads) != 1 {
			t.Errorf("outcome %s", o.Outcome)
		}
		last := d.calls()[len(d.calls())-1]
		if q := last.message.(*storagepb.ReadRowsRequest); q.ReadStream != "projects/123456/locations/us/sessions/CAISDE-orders/streams/Gg0" {
			t.Errorf("upstream got the stream %q", q.ReadStream)
		}
		if got := last.head.Get("x-goog-request-params"); !slices.Equal(got, []string{"read_stream=projects/123456/locations/us/sessions/CAISDE-orders/streams/Gg0"}) {
			t.Errorf("routing header %q", got)
		}
		for _, h := range []string{"x-goog-user-project", harness.Receipt, "x-forwarded-for"} {
			if len(last.head.Get(h)) > 0 {
				t.Errorf("%s went upstream", h)
			}
		}
		if bytes.Contains([]byte(fmt.Sprint(last.head)), []byte(alice)) {
			t.Error("the caller's token went upstream")
		}
	})
	t.Run("split", func(t *testing.T) {
		q, err := a.SplitReadStream(ctx, &storagepb.SplitReadStreamRequest{Name: s.Streams[1].Name, Fraction: 0.5})
		if err != nil {
			t.Fatal(err)
		}
		rows, _, _, err := readRows(ctx, a, q.RemainderStream.Name, &metadata.MD{})
		if err != nil || rows != 6 {
			t.Errorf("%d rows of the split stream, %v", rows, err)
		}
	})
	t.Run("after a restart", func(t *testing.T) { // as another replica
		r.Extproc.Stop()
		if err := r.StartExtproc(ctx); err != nil {
			t.Fatal(err)
		}
		var rows int64
		var err error
		for range 50 { // Envoy notices by its health check
			if rows, _, _, err = readRows(ctx, a, s.Streams[0].Name, &metadata.MD{}); status.Code(err) != codes.Unavailable {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil || rows != 6 {
			t.Errorf("%d rows, %v", rows, err)
		}
	})
	t.Run("denied", func(t *testing.T) {
		before := len(d.calls())
		name := s.Streams[0].Name
		foreign, proof, _ := strings.Cut(name, "~")
		read := func(c *bqstorage.BigQueryReadClient, stream string) error {
			_, _, _, err := readRows(ctx, c, stream, &metadata.MD{})
			return err
		}
		create := func(c *bqstorage.BigQueryReadClient, q *storagepb.CreateReadSessionRequest) error {
			_, err := c.CreateReadSession(ctx, q)
			return err
		}
		restrict := func(text string) func(*storagepb.CreateReadSessionRequest) {
			return func(q *storagepb.CreateReadSessionRequest) {
				q.ReadSession.ReadOptions = &storagepb.ReadSession_TableReadOptions{RowRestriction: text}
			}
		}
		_, split := b.SplitReadStream(ctx, &storagepb.SplitReadStreamRequest{Name: name})
		write, err := bqstorage.NewBigQueryWriteClient(ctx, option.WithGRPCConn(storageConn(t, r, alice)))
		if err != nil {
			t.Fatal(err)
		}
		_, writes := write.GetWriteStream(ctx, &storagepb.GetWriteStreamRequest{Name: "projects/demo-project/datasets/d/tables/t/streams/_default"})
		var receipts []string
		for _, c := range []struct {
			name, code string
			grpc       codes.Code
			err        error
		}{
			{"another's stream", "not_owner", codes.PermissionDenied, read(b, name)},
			{"another's stream, split", "not_owner", codes.PermissionDenied, split},
			{"no proof", "name_stream", codes.InvalidArgument, read(a, foreign)},
			{"a forged proof", "not_owner", codes.PermissionDenied, read(a, foreign+"~"+proof[:len(proof)-1]+"_")},
			{"the proof of another stream", "not_owner", codes.PermissionDenied, read(a, strings.Replace(foreign, "Gg0", "Gg1", 1)+"~"+proof)},
			{"another's job", "not_owner", codes.PermissionDenied, read(a, "projects/demo-project/locations/US/jobs/job-of-somebody/streams/_default")},
			{"a table without a grant", "dataset_denied", codes.PermissionDenied, create(a, readSession("hr", "salaries"))},
			{"an anonymous table", "not_owner", codes.PermissionDenied, create(a, readSession("_anon", "anon1"))},
			{"another project", "connection_unknown", codes.PermissionDenied, create(a, readSession("sales", "orders", func(q *storagepb.CreateReadSessionRequest) { q.Parent = "projects/elsewhere" }))},
			{"a table elsewhere", "project_denied", codes.PermissionDenied, create(a, readSession("sales", "orders", func(q *storagepb.CreateReadSessionRequest) {
				q.ReadSession.Table = "projects/elsewhere/datasets/sales/tables/orders"
			}))},
			{"a subquery", "row_restriction", codes.PermissionDenied, create(a, readSession("sales", "orders", restrict("id IN (SELECT id FROM hr.salaries)")))},
			{"an unclosed restriction", "sql_syntax", codes.InvalidArgument, create(a, readSession("sales", "orders", restrict("1 = 1) OR (1 = 1")))},
			{"rows in", "route_denied", codes.PermissionDenied, writes},
		} {
			t.Run(c.name, func(t *testing.T) { receipts = append(receipts, receiptOf(t, c.err, c.code, c.grpc)) })
		}
		if n := len(d.calls()); n != before {
			t.Errorf("%d denied calls reached the upstream", n-before)
		}
		for _, receipt := range receipts {
			if receipt == "" {
				continue
			}
			if x, _ := r.Evidence(receipt); x.Decision.Allow || x.Result != record.ResultDenied {
				t.Errorf("on record is %s", x.Outcome)
			}
		}
	})
	t.Run("BigQuery's own errors", func(t *testing.T) {
		if _, err := a.CreateReadSession(ctx, readSession("sales", "absent")); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "no such table") {
			t.Errorf("got %v", err)
		}
		s, err := a.CreateReadSession(ctx, readSession("sales", "broken"))
		if err != nil {
			t.Fatal(err)
		}
		head := metadata.MD{}
		rows, _, _, err := readRows(ctx, a, s.Streams[0].Name, &head)
		if rows != 6 || status.Code(err) != codes.OutOfRange {
			t.Errorf("%d rows, %v", rows, err)
		}
		x, _ := r.Evidence(idOf(head))
		if x.Error != "grpc-status 11: it broke off" || !bytes.Contains(x.Outcome, []byte(`"status":"Failure"`)) {
			t.Errorf("outcome %s", x.Outcome)
		}
		// Told as such, clients would renew their own tokens.
		r.Write("upstream.token", "another")
		defer r.Write("upstream.token", harness.UpstreamToken)
		for range 100 {
			if _, err = a.CreateReadSession(ctx, readSession("sales", "orders"), gax.WithRetry(nil)); err != nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "credential_refused") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a job's own result", func(t *testing.T) {
		q := caller{r, bob}.do(t, "POST", "/bigquery/v2/projects/demo-project/queries", `{"query": "SELECT 1", "useLegacySql": false}`)
		var job struct {
			JobReference struct{ ProjectID, JobID, Location string }
		}
		if err := json.Unmarshal(q.Body, &job); q.Status != 200 || err != nil || job.JobReference.JobID == "" {
			t.Fatalf("%d %s", q.Status, q.Body)
		}
		name := fmt.Sprintf("projects/demo-project/locations/US/jobs/%s/streams/_default", job.JobReference.JobID)
		if rows, _, _, err := readRows(ctx, b, name, &metadata.MD{}); err != nil || rows != 6 {
			t.Errorf("%d rows, %v", rows, err)
		}
		_, _, _, err := readRows(ctx, a, name, &metadata.MD{})
		receiptOf(t, err, "not_owner", codes.PermissionDenied)
		got := caller{r, bob}.do(t, "GET", "/bigquery/v2/projects/demo-project/jobs/"+job.JobReference.JobID, "")
		var of struct {
			Configuration struct {
				Query struct {
					DestinationTable struct{ DatasetID, TableID string }
				}
			}
		}
		if err := json.Unmarshal(got.Body, &of); err != nil || !strings.HasPrefix(of.Configuration.Query.DestinationTable.DatasetID, "_") {
			t.Fatalf("the job's result is in no anonymous table: %s", got.Body)
		}
		anonymous := readSession(of.Configuration.Query.DestinationTable.DatasetID, of.Configuration.Query.DestinationTable.TableID)
		s, err := b.CreateReadSession(ctx, anonymous)
		if err != nil {
			t.Fatal(err)
		}
		if rows, _, _, err := readRows(ctx, b, s.Streams[0].Name, &metadata.MD{}); err != nil || rows != 6 {
			t.Errorf("%d rows of the anonymous table, %v", rows, err)
		}
		_, err = a.CreateReadSession(ctx, anonymous)
		receiptOf(t, err, "not_owner", codes.PermissionDenied)
	})
	t.Run("100 MB", func(t *testing.T) {
		s, err := b.CreateReadSession(ctx, readSession("hr", "big"))
		if err != nil {
			t.Fatal(err)
		}
		head := metadata.MD{}
		rows, sum, n, err := readRows(ctx, b, s.Streams[0].Name, &head)
		if err != nil || rows != 5050 || n < 100<<20 {
			t.Fatalf("%d rows in %d bytes, %v", rows, n, err)
		}
		_, peak := harness.Memory(t, r.Extproc.Pid())
		t.Logf("%d bytes; the gateway's memory was at most %d MB", n, peak>>20)
		if !harness.Race && peak > 200<<20 {
			t.Errorf("the gateway took %d MB", peak>>20)
		}
		x, _ := r.Evidence(idOf(head))
		for _, p := range x.Payloads {
			if p.Direction == record.DirectionResponse.String() && (p.SHA256 != fmt.Sprintf("%x", sum.Sum(nil)) || p.Bytes != n) {
				t.Errorf("on record is %+v", p)
			}
		}
	})
	if got := r.Search(search.Filter{}); len(got) == 0 {
		t.Error("nothing is found")
	}
	r.NoCanary(harness.UpstreamToken, "upstream.token")
	r.Verify()
}

// TestStorageReadPython has Python's clients do what DataFrames are made of, over
// TLS, against the emulator.
func TestStorageReadPython(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t)
	cert, key := ca.issue(t, dir, "server", "localhost")
	r := harness.Start(t, harness.Options{Emulator: true, Policy: grants, Bootstrap: func(p *envoy.Params) {
		p.TLS = &envoy.Certificate{Certificate: cert, Key: key}
	}})
	_, port, err := net.SplitHostPort(r.Envoy.Listener)
	if err != nil {
		t.Fatal(err)
	}
	args := map[string]string{"endpoint": "localhost:" + port, "project": harness.Project,
		"writer": mint(t, r, "w", "writers"), "reader": mint(t, r, "r", "readers"), "stranger": mint(t, r, "s", "everyone")}
	b, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), r.Tools.Python, "clients/storage.py")
	cmd.Stdin = bytes.NewReader(b)
	bundle := ca.write(t, dir)
	cmd.Env = append(os.Environ(), "HOME="+dir, "PYTHONDONTWRITEBYTECODE=1", "REQUESTS_CA_BUNDLE="+bundle, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH="+bundle)
	out, err := cmd.Output()
	if err != nil {
		var failed *exec.ExitError
		errors.As(err, &failed)
		t.Fatalf("%v\n%s%s", err, out, failed.Stderr)
	}
	var got struct {
		Rows, Total       int
		Stranger, Foreign string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if got.Rows != 5000 || got.Total != 5000*4999/2 {
		t.Errorf("read %+v", got)
	}
	for what, text := range map[string]string{"no_grant": got.Stranger, "not_owner": got.Foreign} {
		if m := receiptIn.FindStringSubmatch(text); m == nil || m[1] != what {
			t.Errorf("%s: the user sees %q", what, text)
		}
	}
	const create, rows = "google.cloud.bigquery.storage.v1.BigQueryRead.CreateReadSession", "google.cloud.bigquery.storage.v1.BigQueryRead.ReadRows"
	n := map[string]int{}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) { // until the vault has it
		clear(n)
		for _, x := range r.Search(search.Filter{}) {
			n[x.Method]++
		}
		if n[create] == 3 && n[rows] == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("on record are %v", n)
		}
	}
}
