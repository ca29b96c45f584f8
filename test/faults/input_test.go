package faults

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

// input is a request that must be refused.
type input struct {
	name         string
	method, path string // default: jobs.query
	header       []string
	token        string // default: the agent's; "none": no Authorization header
	body         []byte // default: a good query, where the method is POST
	raw          string // in place of all above: bytes on the wire
	status       int
	code         string // stable, of the gateway; empty where Envoy answers by itself
	// unread is what Envoy's codec cannot or may not read: it closes the
	// connection, with no receipt and no record.
	unread bool
}

func TestBadInput(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	cluster, corp := r.Issuer.Issuer(issuer.Cluster), r.Issuer.Issuer(issuer.Corp)
	mint := func(i *issuer.Issuer, o issuer.Options, change map[string]any) string {
		t.Helper()
		claims := maps.Clone(issuer.Agent(stack.Audience))
		maps.Copy(claims, change)
		token, err := i.Mint(claims, o)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := r.TokenOf("agent")
	var inputs []input

	// Tokens.
	claims, err := json.Marshal(merged(issuer.Agent(stack.Audience), map[string]any{"iss": cluster.URL(), "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()}))
	if err != nil {
		t.Fatal(err)
	}
	public, kid, err := cluster.PublicKey("RS256")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	inputs = append(inputs,
		input{name: "no token", token: "none", status: 401, code: "token_missing"},
		input{name: "an empty Authorization header", token: "none", header: []string{"Authorization", ""}, status: 401, code: "token_missing"},
		input{name: "Bearer and nothing", token: "none", header: []string{"Authorization", "Bearer "}, status: 401, code: "token_missing"},
		input{name: "Basic", token: "none", header: []string{"Authorization", "Basic YWdlbnQ6c2VjcmV0"}, status: 401, code: "scheme_refused"},
		input{name: "two Authorization headers", header: []string{"Authorization", "Bearer " + good}, status: 401, code: "token_malformed"},
		input{name: "no JWT", token: "opaque-token", status: 401, code: "token_malformed"},
		input{name: "alg none", token: encoded(`{"alg":"none","typ":"JWT"}`) + "." + encoded(string(claims)) + ".", status: 401, code: "algorithm_refused"},
		input{name: "alg none with a signature", token: encoded(`{"alg":"none","typ":"JWT"}`) + "." + encoded(string(claims)) + "." + good[strings.LastIndex(good, ".")+1:], status: 401, code: "algorithm_refused"},
		input{name: "HS256 with the public key", token: hs256(kid, string(claims), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), status: 401, code: "algorithm_refused"},
		input{name: "a changed signature", token: good[:len(good)-8] + "AAAAAAAA", status: 401, code: "signature_invalid"},
		input{name: "expired", token: mint(cluster, issuer.Options{TTL: -10 * time.Minute}, nil), status: 401, code: "token_expired"},
		input{name: "not yet valid", token: mint(cluster, issuer.Options{}, map[string]any{"nbf": time.Now().Add(10 * time.Minute).Unix()}), status: 401, code: "token_not_yet_valid"},
		input{name: "no expiry", token: mint(cluster, issuer.Options{}, map[string]any{"exp": nil}), status: 401, code: "claim_missing"},
		input{name: "another audience", token: mint(cluster, issuer.Options{}, map[string]any{"aud": "https://bigquery.googleapis.com/"}), status: 401, code: "audience_mismatch"},
		input{name: "an unknown issuer", token: mint(cluster, issuer.Options{}, map[string]any{"iss": "https://evil.example"}), status: 401, code: "issuer_unknown"},
		input{name: "one issuer's key for another's token", token: mint(corp, issuer.Options{}, map[string]any{"iss": cluster.URL()}), status: 401, code: "key_unknown"},
		input{name: "an unknown key", token: mint(cluster, issuer.Options{Header: map[string]any{"kid": "nobody-knows"}}, nil), status: 401, code: "key_unknown"},
		input{name: "100 KB", token: good + strings.Repeat("A", 100<<10), status: 401, code: "token_too_large"},
	)

	// Headers, parameters and paths.
	many := make([]string, 0, 202)
	for i := range 101 {
		many = append(many, fmt.Sprintf("X-Many-%d", i), "1")
	}
	inputs = append(inputs,
		input{name: "X-HTTP-Method-Override", header: []string{"X-HTTP-Method-Override", "GET"}, status: 403, code: "method_override"},
		input{name: "access_token", path: project + "/queries?access_token=" + good, status: 401, code: "credential_in_query"},
		input{name: "access_token, percent-encoded", token: "none", path: project + "/queries?%61ccess_toke%6E=" + good, status: 401, code: "credential_in_query"},
		input{name: "an API key", path: project + "/queries?key=AIzaNothing", status: 401, code: "credential_in_query"},
		input{name: "an API key in a header", header: []string{"X-Goog-Api-Key", "AIzaNothing"}, status: 401, code: "credential_in_header"},
		input{name: "an unknown parameter", path: project + "/queries?surprise=1", status: 400, code: "query_unknown"},
		input{name: "an underscore in a header's name", header: []string{"X_Http_Method", "GET"}, unread: true},
		input{name: "101 headers", header: many, unread: true},
		input{name: "an escaped slash", path: "/bigquery/v2/projects/a%2F" + harness.Project + "/queries", status: 400, code: "http_invalid"},
		input{name: "an escaped backslash", path: "/bigquery/v2/projects/a%5C" + harness.Project + "/queries", status: 400, code: "http_invalid"},
		input{name: "an escaped percent sign", path: "/bigquery/v2/projects/%2564emo-project/queries", status: 400, code: "path_encoding"},
		input{name: "a trailing slash", path: project + "/queries/", status: 400, code: "path_form"},
		input{name: "a semicolon", path: project + "/queries;x=1", status: 400, code: "path_bytes"},
		input{name: "another project", path: "/bigquery/v2/projects/other-project/queries", status: 403, code: "connection_unknown"},
		input{name: "a path of 20 KB", path: project + "/queries?fields=" + strings.Repeat("a", 20<<10), status: 414, code: "path_long"},
	)

	// Bodies.
	gz := []string{"Content-Encoding", "gzip"}
	whole := zipped(t, harness.QueryBody("SELECT 1"))
	inputs = append(inputs,
		input{name: "no body", body: []byte{}, status: 400, code: "body_missing"},
		input{name: "broken JSON", body: []byte(`{"query":"SELECT 1"`), status: 400, code: "json_syntax"},
		input{name: "two JSON documents", body: []byte(`{"query":"SELECT 1","useLegacySql":false}{}`), status: 400, code: "json_syntax"},
		input{name: "a duplicate key", body: []byte(`{"query":"SELECT 1","query":"DELETE FROM a.b WHERE true","useLegacySql":false}`), status: 400, code: "json_duplicate"},
		input{name: "a duplicate key in another spelling", body: []byte(`{"query":"SELECT 1","\u0071uery":"SELECT 2","useLegacySql":false}`), status: 400, code: "json_duplicate"},
		input{name: "a key in another case", body: []byte(`{"query":"SELECT 1","Query":"SELECT 2","useLegacySql":false}`), status: 400, code: "json_twin"},
		input{name: "a number for a text", body: []byte(`{"query":1,"useLegacySql":false}`), status: 400, code: "json_type"},
		input{name: "a list for an object", body: []byte(`[{"query":"SELECT 1"}]`), status: 400, code: "json_type"},
		input{name: "a text for a truth value", body: []byte(`{"query":"SELECT 1","useLegacySql":"no"}`), status: 400, code: "json_type"},
		input{name: "invalid UTF-8", body: []byte("{\"query\":\"SELECT '\xff\xfe'\",\"useLegacySql\":false}"), status: 400, code: "json_utf8"},
		input{name: "deep nesting", body: []byte(`{"query":"SELECT 1","useLegacySql":false,"queryParameters":[` + strings.Repeat(`{"a":[`, 50_000) + strings.Repeat(`]}`, 50_000) + `]}`), status: 400, code: "json_depth"},
		input{name: "a gzip bomb", header: gz, body: zipped(t, []byte(`{"query":"`+strings.Repeat("A", 64<<20)+`"}`)), status: 413, code: "body_large"},
		input{name: "truncated gzip", header: gz, body: whole[:len(whole)-9], status: 400, code: "gzip"},
		input{name: "something behind the gzip", header: gz, body: append(bytes.Clone(whole), whole...), status: 400, code: "gzip"},
		input{name: "gzip that is none", header: gz, body: harness.QueryBody("SELECT 1"), status: 400, code: "gzip"},
		input{name: "another encoding", header: []string{"Content-Encoding", "br"}, body: whole, status: 400, code: "content_encoding"},
		input{name: "SQL of 50 MB", body: harness.QueryBody("SELECT '" + strings.Repeat("A", 50<<20) + "'"), status: 413, code: "body_too_large"},
		input{name: "another content-type", header: []string{"Content-Type", "text/plain"}, status: 400, code: "content_type"},
		input{name: "a body where none belongs", path: project + "/jobs/j/cancel", body: []byte(`{"a":1}`), status: 400, code: "body_unexpected"},
		input{name: "useLegacySql", body: []byte(`{"query":"SELECT 1","useLegacySql":true}`), status: 403, code: "legacy_sql_denied"},
		input{name: "#legacySQL", body: harness.QueryBody("#legacySQL\nSELECT 1"), status: 403, code: "legacy_sql_denied"},
	)

	// Routes and protocols.
	inputs = append(inputs,
		input{name: "an unknown route", method: http.MethodGet, path: "/bigquery/v2/projects/" + harness.Project + "/nothing", status: 403, code: "route_unknown"},
		input{name: "the root", method: http.MethodGet, path: "/", status: 403, code: "route_unknown"},
		input{name: "another API", method: http.MethodGet, path: "/storage/v1/b", status: 403, code: "route_unknown"},
		input{name: "another method", method: http.MethodPut, path: project + "/queries", status: 403, code: "method_unknown"},
		input{name: "TRACE", method: http.MethodTrace, path: project + "/queries", body: []byte{}, status: 403, code: "method_unknown"},
		input{name: "batch", path: "/batch/bigquery/v2", header: []string{"Content-Type", "multipart/mixed; boundary=b"}, body: []byte("--b--\r\n"), status: 403, code: "route_denied"},
		input{name: "mcp by another method", method: http.MethodPut, path: "/mcp", body: []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`), status: 403, code: "method_unknown"},
		input{name: "an upgrade", raw: "GET " + project + "/datasets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + good + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n", status: 403, code: "http_invalid"},
		input{name: "CONNECT", raw: "CONNECT bigquery.googleapis.com:443 HTTP/1.1\r\nHost: bigquery.googleapis.com:443\r\nAuthorization: Bearer " + good + "\r\n\r\n", status: 403, code: "method_unknown"},
		input{name: "no HTTP", raw: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not for you\r\n\r\n", unread: true},
	)

	seen := map[string]input{}
	answers := map[string]harness.Answer{}
	for _, in := range inputs {
		t.Run(in.name, func(t *testing.T) {
			a := in.send(t, r)
			if in.unread {
				if a.Err == nil && a.Status < 400 || a.Receipt != "" {
					t.Errorf("status %d, receipt %q", a.Status, a.Receipt)
				}
				return
			}
			refused(t, a, in.status, in.code)
			if a.Receipt == "" {
				t.Error("no receipt")
			}
			seen[a.Receipt], answers[a.Receipt] = in, a
		})
	}
	grpc := exchange(t, r.Envoy.Listener, "POST "+project+"/queries HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\nAuthorization: Bearer "+good+"\r\n\r\n")
	if h := grpc.Header; grpc.Status != 200 || h.Get("Grpc-Status") != "7" || !strings.Contains(h.Get("Grpc-Message"), "[content_type, receipt "+grpc.Receipt+"]") || len(grpc.Body) != 0 {
		t.Errorf("gRPC on a REST path: status %d, %v, %q", grpc.Status, h, grpc.Body)
	} else {
		d := onRecord(t, r, grpc)
		if len(d.Heads) != 1 || d.Status != 200 || d.Result != record.ResultDenied {
			t.Fatalf("gRPC on a REST path is on record as %s with status %d, heads %+v", d.Result, d.Status, d.Heads)
		}
		for _, kept := range d.Heads[0].Headers {
			if got := h.Get(kept.Name); got != kept.Value {
				t.Errorf("the caller got %s %q, on record is %q", kept.Name, got, kept.Value)
			}
		}
	}
	if q := r.Double.Requests(); len(q) != 0 {
		t.Errorf("%d requests reached the upstream, the first %s %s", len(q), q[0].Method, q[0].Path)
	}
	all := r.Settled()
	for receipt, x := range all {
		in, ok := seen[receipt]
		if receipt == grpc.Receipt {
			continue
		}
		if !ok {
			t.Errorf("an exchange on record that no client knows of: %s %s", x.Method, x.Cause)
			continue
		}
		if a := answers[receipt]; x.Result != record.ResultDenied || x.Status != in.status || x.Decision == nil || x.Decision.Allow ||
			len(x.Decision.Reasons) == 0 || x.Decision.Reasons[0].Code != in.code || x.Digests["response"] != fmt.Sprintf("%x", sha256.Sum256(a.Body)) {
			t.Errorf("%s is on record as %s with status %d, decision %+v, digests %v", in.name, x.Result, x.Status, x.Decision, x.Digests)
		}
	}
	r.Verify()
	r.NoCanary(good[strings.LastIndex(good, ".")+1:])

	t.Run("paths with one meaning", func(t *testing.T) {
		for _, path := range []string{
			"//bigquery//v2/projects/" + harness.Project + "//queries",
			"/bigquery/v2/projects/%64emo-project/queries",
			"/bigquery/v2/projects/other-project/../" + harness.Project + "/queries",
			"/bigquery/v2/projects/other-project/%2e%2e/" + harness.Project + "/./queries",
		} {
			in := input{raw: "POST " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + good + "\r\nContent-Type: application/json\r\nContent-Length: 41\r\n\r\n" + `{"query":"SELECT 1","useLegacySql":false}`}
			a := in.send(t, r)
			if a.Status != 200 {
				t.Errorf("%s: status %d: %s", path, a.Status, a.Body)
				continue
			}
			q := r.Double.Requests()
			if got := q[len(q)-1].Path; got != project+"/queries" {
				t.Errorf("%s went upstream as %s", path, got)
			}
		}
	})
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
}

func (in input) send(t *testing.T, r *harness.Rig) harness.Answer {
	t.Helper()
	if in.raw != "" {
		return exchange(t, r.Envoy.Listener, in.raw)
	}
	if in.method == "" {
		in.method = http.MethodPost
	}
	if in.path == "" {
		in.path = project + "/queries"
	}
	if in.body == nil && in.method == http.MethodPost {
		in.body = harness.QueryBody("SELECT 1")
	}
	caller := "agent"
	header := in.header
	if in.token != "" {
		caller = ""
		if in.token != "none" {
			header = append([]string{"Authorization", "Bearer " + in.token}, header...)
		}
	}
	var body io.Reader
	if in.body != nil {
		body = bytes.NewReader(in.body)
	}
	return r.Do(t.Context(), caller, in.method, in.path, body, header...)
}

// exchange writes bytes on a connection and reads the response.
func exchange(t *testing.T, address, request string) harness.Answer {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return harness.Answer{Err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	id, _, _ := strings.Cut(res.Header.Get(harness.Receipt), ".")
	return harness.Answer{Status: res.StatusCode, Header: res.Header, Body: b, Err: err, Receipt: id}
}

func merged(a, b map[string]any) map[string]any {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

func encoded(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// hs256 signs with a key that is public: what a verifier that lets the token
// choose the algorithm would take.
func hs256(kid, claims string, key []byte) string {
	text := encoded(fmt.Sprintf(`{"alg":"HS256","typ":"JWT","kid":%q}`, kid)) + "." + encoded(claims)
	mac := hmac.New(sha256.New, key)
	io.WriteString(mac, text)
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
