package envoy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/structpb"

	"verbatim.dev/deploy/local/tools"
	"verbatim.dev/envoy"
)

// envoyBinary returns the Envoy that the tests share.
func envoyBinary(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	path, err := tools.EnsureEnvoy(ctx, "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// processor is an ext_proc server that passes everything on and does to the
// request headers what the test says.
type processor struct {
	extproc.UnimplementedExternalProcessorServer
	headers func(*extproc.HttpHeaders) *extproc.ProcessingResponse
}

func (p *processor) Process(s grpc.BidiStreamingServer[extproc.ProcessingRequest, extproc.ProcessingResponse]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		var r *extproc.ProcessingResponse
		switch m := m.Request.(type) {
		case *extproc.ProcessingRequest_RequestHeaders:
			r = p.headers(m.RequestHeaders)
		case *extproc.ProcessingRequest_ResponseHeaders:
			r = &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extproc.HeadersResponse{}}}
		case *extproc.ProcessingRequest_RequestBody:
			r = &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestBody{RequestBody: &extproc.BodyResponse{Response: streamed(m.RequestBody)}}}
		case *extproc.ProcessingRequest_ResponseBody:
			r = &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: &extproc.BodyResponse{Response: streamed(m.ResponseBody)}}}
		case *extproc.ProcessingRequest_RequestTrailers:
			r = &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestTrailers{RequestTrailers: &extproc.TrailersResponse{}}}
		case *extproc.ProcessingRequest_ResponseTrailers:
			r = &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extproc.TrailersResponse{}}}
		}
		if err := s.Send(r); err != nil {
			return err
		}
	}
}

func streamed(b *extproc.HttpBody) *extproc.CommonResponse {
	return &extproc.CommonResponse{BodyMutation: &extproc.BodyMutation{Mutation: &extproc.BodyMutation_StreamedResponse{
		StreamedResponse: &extproc.StreamedBodyResponse{Body: b.Body, EndOfStream: b.EndOfStream}}}}
}

// reply answers the request headers: set headers, go to a cluster, admit.
func reply(cluster string, admit bool, set map[string]string, remove ...string) *extproc.ProcessingResponse {
	m := &extproc.HeaderMutation{RemoveHeaders: remove}
	for k, v := range set {
		m.SetHeaders = append(m.SetHeaders, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, RawValue: []byte(v)}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD})
	}
	if cluster != "" {
		m.SetHeaders = append(m.SetHeaders, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: envoy.UpstreamHeader, RawValue: []byte(cluster)}, AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD})
	}
	r := &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{
		Response: &extproc.CommonResponse{HeaderMutation: m, ClearRouteCache: true}}}}
	if admit {
		md, err := structpb.NewStruct(map[string]any{envoy.MetadataNamespace: map[string]any{envoy.AdmittedKey: true}})
		if err != nil {
			panic(err)
		}
		r.DynamicMetadata = md
	}
	return r
}

// upstream notes the requests that reach it.
type upstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func newUpstream(t *testing.T, name string) *upstream {
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.seen = append(u.seen, r)
		u.mu.Unlock()
		if r.URL.Path == "/fail" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%s %d %x", name, n, h.Sum(nil))
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) take() []*http.Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.seen
	u.seen = nil
	return s
}

// start runs Envoy with a processor that answers the request headers by fn.
func start(t *testing.T, fn func(*extproc.HttpHeaders) *extproc.ProcessingResponse, connections ...envoy.Connection) (e *tools.Envoy, stopProcessor func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return startWith(t, l, envoy.Processor{Socket: socket}, fn, connections...)
}

// startWith is start with a processor that listens on l.
func startWith(t *testing.T, l net.Listener, at envoy.Processor, fn func(*extproc.HttpHeaders) *extproc.ProcessingResponse, connections ...envoy.Connection) (e *tools.Envoy, stopProcessor func()) {
	t.Helper()
	dir := t.TempDir()
	server := grpc.NewServer(grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(8<<20))
	extproc.RegisterExternalProcessorServer(server, &processor{headers: fn})
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	stopProcessor = func() { server.Stop(); <-served }
	t.Cleanup(stopProcessor)
	b, err := envoy.Render(envoy.Params{Linger: time.Second, Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Processor: at,
		Connections: connections, AccessLog: filepath.Join(dir, "access.log")})
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	e, err = tools.StartEnvoy(ctx, tools.EnvoyConfig{Binary: envoyBinary(t), Bootstrap: b, Dir: dir, Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Stop()
		if t.Failed() {
			access, _ := os.ReadFile(filepath.Join(dir, "access.log"))
			t.Logf("envoy:\n%s\naccess log:\n%s", log.String(), access)
		}
	})
	return e, stopProcessor
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// errorBody is BigQuery's error shape; decoding is strict.
type errorBody struct {
	Error struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Errors  []struct {
			Message, Domain, Reason string
		} `json:"errors"`
		Status string `json:"status"`
	} `json:"error"`
}

// wantError checks that a response is an error in BigQuery's shape.
func wantError(t *testing.T, res *http.Response, status int, reason, in string) {
	t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != status {
		t.Fatalf("status %d, want %d; body %s", res.StatusCode, status, body)
	}
	if ct := res.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		t.Errorf("content type %q", ct)
	}
	var e errorBody
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if e.Error.Code != status || len(e.Error.Errors) != 1 || e.Error.Errors[0].Reason != reason || e.Error.Status == "" ||
		e.Error.Errors[0].Message != e.Error.Message || e.Error.Errors[0].Domain != "global" || !strings.Contains(e.Error.Message, in) {
		t.Errorf("body %s, want reason %s and %q in the message", body, reason, in)
	}
}

func request(t *testing.T, e *tools.Envoy, method, path string, body io.Reader, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+e.Listener+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// raw sends bytes and reads one response.
func raw(t *testing.T, e *tools.Envoy, text string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", e.Listener)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// refused checks that a request that the HTTP/1 codec itself refuses gets no
// success: Envoy closes the connection before the processor, which sees the
// codec's error reply, can pass it on, so there is often no reply at all.
func refused(t *testing.T, e *tools.Envoy, text string) {
	t.Helper()
	c, err := net.Dial("tcp", e.Listener)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	if len(got) > 0 && !bytes.HasPrefix(got, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(got, []byte("HTTP/1.1 5")) {
		t.Errorf("got %q", got)
	}
}

func TestContractWithRealEnvoy(t *testing.T) {
	one, two := newUpstream(t, "one"), newUpstream(t, "two")
	var mu sync.Mutex
	var headers map[string][]string
	denial := []byte(`{"error": {"code": 403, "message": "no \u00e9", "errors": [{"message": "no", "domain": "global", "reason": "accessDenied"}], "status": "PERMISSION_DENIED"}}` + "\n")
	e, stopProcessor := start(t, func(h *extproc.HttpHeaders) *extproc.ProcessingResponse {
		got := map[string][]string{}
		for _, v := range h.Headers.Headers {
			got[v.Key] = append(got[v.Key], string(v.RawValue))
		}
		mu.Lock()
		headers = got
		mu.Unlock()
		switch path, _, _ := strings.Cut(got[":path"][0], "?"); path {
		case "/one", "/fail":
			return reply("one.rest", true, nil)
		case "/two":
			return reply("two.rest", true, nil)
		case "/rewrite":
			return reply("one.rest", true, map[string]string{":path": "/rewritten?a=1", "authorization": "Bearer new"}, "x-drop", "x-envoy-external-address", "x-request-id")
		case "/host":
			return reply("one.rest", true, map[string]string{":authority": "elsewhere"})
		case "/not-admitted":
			return reply("one.rest", false, nil)
		case "/nowhere":
			return reply("none.rest", true, nil)
		case "/no-upstream":
			return reply("", true, nil)
		case "/denied":
			return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extproc.ImmediateResponse{
				Status:  &typev3.HttpStatus{Code: 403},
				Headers: &extproc.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "content-type", RawValue: []byte("application/json; charset=UTF-8")}}, {Header: &corev3.HeaderValue{Key: "x-verbatim-receipt", RawValue: []byte("e-1")}}}},
				Body:    denial, Details: "denied"}}}
		}
		return nil
	}, envoy.Connection{Name: "one", REST: one.URL}, envoy.Connection{Name: "two", REST: two.URL})

	t.Run("the processor chooses the upstream", func(t *testing.T) {
		for path, want := range map[string]string{"/one": "one", "/two": "two"} {
			res := request(t, e, "POST", path, strings.NewReader("hello"), "X-Verbatim-Upstream", "two.rest", "x-verbatim-upstream", "one.rest",
				"X-Envoy-Retry-On", "5xx", "X-Envoy-Anything", "1", "Accept-Encoding", "gzip, br")
			body, _ := io.ReadAll(res.Body)
			if !strings.HasPrefix(string(body), want+" 5 ") {
				t.Errorf("%s: got %q", path, body)
			}
			u := map[string]*upstream{"one": one, "two": two}[want]
			seen := u.take()
			if len(seen) != 1 {
				t.Fatalf("%d requests reached %s", len(seen), want)
			}
			if seen[0].Host != strings.TrimPrefix(u.URL, "http://") {
				t.Errorf("host %q", seen[0].Host)
			}
			if v := seen[0].Header.Values("Accept-Encoding"); !slices.Equal(v, []string{"identity"}) {
				t.Errorf("accept-encoding %q", v)
			}
			for name := range seen[0].Header {
				if strings.HasPrefix(name, "X-Verbatim") || strings.HasPrefix(name, "X-Envoy-Retry") {
					t.Errorf("%s reached the upstream", name)
				}
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for name := range headers {
			if name == envoy.UpstreamHeader || strings.HasPrefix(name, "x-envoy-retry") || name == "x-envoy-anything" {
				t.Errorf("the processor saw the client's %s", name)
			}
		}
	})
	t.Run("no retries even where the client asks", func(t *testing.T) {
		res := request(t, e, "GET", "/fail", nil, "X-Envoy-Retry-On", "5xx", "X-Envoy-Max-Retries", "3")
		res.Body.Close()
		if n := len(one.take()); n != 1 {
			t.Errorf("%d requests reached the upstream", n)
		}
	})
	t.Run("path and authorization are the processor's", func(t *testing.T) {
		res := request(t, e, "GET", "/rewrite", nil, "Authorization", "Bearer old", "X-Drop", "1")
		res.Body.Close()
		seen := one.take()
		if len(seen) != 1 || seen[0].RequestURI != "/rewritten?a=1" || !slices.Equal(seen[0].Header.Values("Authorization"), []string{"Bearer new"}) {
			t.Fatalf("status %d, upstream saw %+v", res.StatusCode, seen)
		}
		for name := range seen[0].Header {
			if !slices.Contains([]string{"Authorization", "Accept-Encoding", "User-Agent"}, name) {
				t.Errorf("the upstream saw %s", name)
			}
		}
	})
	t.Run("the host is not", func(t *testing.T) {
		wantError(t, request(t, e, "GET", "/host", nil), 503, "backendError", "header_mutation")
		if seen := one.take(); len(seen) != 0 {
			t.Error("the request reached the upstream")
		}
	})
	t.Run("large body both ways", func(t *testing.T) {
		body := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		res := request(t, e, "POST", "/one", bytes.NewReader(body))
		got, _ := io.ReadAll(res.Body)
		if want := fmt.Sprintf("one %d %x", len(body), sha256.Sum256(body)); string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
		one.take()
	})
	t.Run("without admission nothing passes", func(t *testing.T) {
		wantError(t, request(t, e, "GET", "/not-admitted", nil), 403, "accessDenied", "rbac")
	})
	t.Run("unknown cluster", func(t *testing.T) {
		wantError(t, request(t, e, "GET", "/nowhere", nil), 503, "backendError", "cluster_not_found")
	})
	t.Run("no cluster", func(t *testing.T) {
		wantError(t, request(t, e, "GET", "/no-upstream", nil), 503, "backendError", "cluster_not_found")
	})
	t.Run("a denial passes byte for byte", func(t *testing.T) {
		res := request(t, e, "GET", "/denied", nil)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != 403 || !bytes.Equal(body, denial) || res.Header.Get("x-verbatim-receipt") != "e-1" || res.Header.Get("content-type") != "application/json; charset=UTF-8" {
			t.Errorf("%d %q %q", res.StatusCode, res.Header, body)
		}
	})
	t.Run("escaped slash", func(t *testing.T) {
		for _, path := range []string{"/one%2ftwo", "/one%5Ctwo", "/one%2Ftwo?x=%2f"} {
			wantError(t, raw(t, e, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n"), 400, "invalid", "path_normalization_failed")
		}
	})
	t.Run("underscore header", func(t *testing.T) {
		refused(t, e, "GET /one HTTP/1.1\r\nHost: a\r\nX_Verbatim_Upstream: one.rest\r\n\r\n")
	})
	t.Run("upgrade", func(t *testing.T) {
		wantError(t, raw(t, e, "GET /one HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), 403, "accessDenied", "upgrade_failed")
	})
	t.Run("no host", func(t *testing.T) {
		wantError(t, raw(t, e, "GET /one HTTP/1.1\r\n\r\n"), 400, "invalid", "missing_host_header")
	})
	t.Run("a token of 100 KB reaches the processor", func(t *testing.T) {
		res := request(t, e, "GET", "/one", nil, "Authorization", "Bearer "+strings.Repeat("x", 100<<10))
		res.Body.Close()
		if n := len(one.take()); res.StatusCode != 200 || n != 1 {
			t.Errorf("status %d, %d requests", res.StatusCode, n)
		}
	})
	t.Run("headers too large", func(t *testing.T) {
		refused(t, e, "GET /one HTTP/1.1\r\nHost: a\r\nX-Big: "+strings.Repeat("x", 200<<10)+"\r\n\r\n")
	})
	if seen := append(one.take(), two.take()...); len(seen) != 0 {
		t.Errorf("%d refused requests reached an upstream", len(seen))
	}

	stopProcessor()
	t.Run("processor dead", func(t *testing.T) {
		wantError(t, request(t, e, "GET", "/one", nil), 503, "backendError", "ext_proc")
	})
	t.Run("gRPC keeps its own errors", func(t *testing.T) {
		p := new(http.Protocols)
		p.SetUnencryptedHTTP2(true)
		tr := &http.Transport{Protocols: p}
		defer tr.CloseIdleConnections()
		r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+e.Listener+"/google.cloud.bigquery.storage.v1.BigQueryRead/ReadRows", nil)
		r.Header.Set("Content-Type", "application/grpc")
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if m := res.Header.Get("grpc-message"); res.Header.Get("grpc-status") != "14" || strings.Contains(m, "{") || strings.Contains(m, "%7B") {
			t.Errorf("headers %v", res.Header)
		}
	})
	if seen := append(one.take(), two.take()...); len(seen) != 0 {
		t.Errorf("%d requests reached an upstream with the processor dead", len(seen))
	}
}

func TestEnvoyAcceptsTheVariants(t *testing.T) {
	binary := envoyBinary(t)
	dir := t.TempDir()
	certificate, key := selfSigned(t, dir)
	for name, p := range map[string]envoy.Params{
		"local": {Listen: "127.0.0.1:8443", Admin: "127.0.0.1:9901", AccessLog: "-", Processor: envoy.Processor{Socket: "/run/verbatim/extproc.sock"},
			Connections: []envoy.Connection{{Name: "emulator", REST: "http://127.0.0.1:9050"}}},
		"tls": {Listen: "[::1]:443", TLS: &envoy.Certificate{Certificate: certificate, Key: key}, AccessLog: filepath.Join(dir, "log"), TrustedHops: 2,
			Processor:   envoy.Processor{Address: "localhost:9443", CA: certificate, Certificate: certificate, Key: key, ServerName: "extproc.test"},
			Connections: []envoy.Connection{{Name: "a", REST: "https://bigquery.googleapis.com"}, {Name: "b", REST: "https://127.0.0.1:8443", CA: certificate}}, Roots: certificate},
		"bare": {Listen: "127.0.0.1:0", Bare: true, Connections: []envoy.Connection{{Name: "a", REST: "http://localhost:1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := envoy.Render(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := tools.ValidateEnvoy(t.Context(), binary, b); err != nil {
				t.Error(err)
			}
		})
	}
	if err := tools.ValidateEnvoy(t.Context(), binary, []byte("static_resources: {listeners: [{}]}")); err == nil {
		t.Error("a broken bootstrap is accepted")
	}
}

// selfSigned writes a certificate for extproc.test, bigquery.test and loopback,
// which is its own CA.
func selfSigned(t *testing.T, dir string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{"extproc.test", "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// TestUpstreamCertificateIsVerified has Envoy reach https upstreams: one whose
// CA it knows, one that it does not trust, and one with another name.
func TestUpstreamCertificateIsVerified(t *testing.T) {
	certificate, key := selfSigned(t, t.TempDir())
	other, _ := selfSigned(t, t.TempDir())
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	u := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, r.TLS.ServerName)
	}))
	u.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	u.EnableHTTP2 = true
	u.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	u.StartTLS()
	t.Cleanup(u.Close)
	_, port, _ := net.SplitHostPort(u.Listener.Addr().String())
	e, _ := start(t, func(h *extproc.HttpHeaders) *extproc.ProcessingResponse {
		for _, v := range h.Headers.Headers {
			if v.Key == ":path" {
				return reply(strings.TrimPrefix(string(v.RawValue), "/")+".rest", true, nil)
			}
		}
		return nil
	}, envoy.Connection{Name: "good", REST: "https://localhost:" + port, CA: certificate},
		envoy.Connection{Name: "address", REST: "https://127.0.0.1:" + port, CA: certificate},
		envoy.Connection{Name: "untrusted", REST: "https://localhost:" + port, CA: other},
		envoy.Connection{Name: "roots", REST: "https://localhost:" + port},
		envoy.Connection{Name: "name", REST: "https://127.0.0.2:" + port, CA: certificate})
	res := request(t, e, "GET", "/good", nil)
	body, _ := io.ReadAll(res.Body)
	if string(body) != "HTTP/2.0 localhost:"+port+" localhost" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	res = request(t, e, "GET", "/address", nil)
	if body, _ = io.ReadAll(res.Body); string(body) != "HTTP/2.0 127.0.0.1:"+port+" " {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	for _, path := range []string{"/untrusted", "/roots"} {
		wantError(t, request(t, e, "GET", path, nil), 503, "backendError", "CERTIFICATE_VERIFY_FAILED")
	}
	wantError(t, request(t, e, "GET", "/name", nil), 503, "backendError", "")
}

func TestProcessorByMutualTLS(t *testing.T) {
	certificate, key := selfSigned(t, t.TempDir())
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(certificate)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	u := newUpstream(t, "one")
	admit := func(*extproc.HttpHeaders) *extproc.ProcessingResponse { return reply("one.rest", true, nil) }
	for name, want := range map[string]int{"extproc.test": 200, "another.test": 503} {
		t.Run(name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			e, _ := startWith(t, l, envoy.Processor{Address: l.Addr().String(), CA: certificate, Certificate: certificate, Key: key, ServerName: name}, admit, envoy.Connection{Name: "one", REST: u.URL})
			res := request(t, e, "GET", "/", nil)
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("status %d, want %d", res.StatusCode, want)
			}
		})
	}
}
