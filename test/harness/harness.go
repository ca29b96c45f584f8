// Package harness starts the whole of Verbatim for a test: the real Envoy, the
// binaries of this tree, an issuer, a sink with a vault in a folder of the
// test's own, and as the upstream either the double alone or the emulator
// behind it.
//
// Rule of the folder: everything is a real process on a free port of loopback,
// everything ends with the test, and logs show only when a test fails.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/deploy/local/tools"
	"verbatim.dev/envoy"
	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/vault"
)

// Project is the project that the connection lists.
const Project = "demo-project"

// UpstreamToken is the gateway's credential at the upstream: a canary that no
// caller and no record may ever see.
const UpstreamToken = "canary-upstream-4b1d9f52c7"

// Receipt is the header that names an exchange.
const Receipt = "x-verbatim-receipt"

// Grants are what tests run with: agents read, analysts read and write, the
// pipeline reads and writes; the intruder has none.
const Grants = `{"grants": {
  "agents":   {"match": {"issuer": "cluster", "namespace": "agents"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read"]},
  "analysts": {"match": {"issuer": "corp", "group": "analysts"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read", "write", "admin"]},
  "reports":  {"match": {"issuer": "ci", "repository": "acme/reports"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read", "write"]}
}}`

// Options say what a test needs.
type Options struct {
	// Emulator runs bqemulator behind the double; otherwise the double answers
	// alone (synthetic queries, uploads that are counted).
	Emulator bool
	// NoSink leaves the sink out.
	NoSink bool
	// Policy replaces Grants.
	Policy string
	// Configure changes extproc's configuration, Bootstrap Envoy's parameters.
	Configure func(map[string]any)
	Bootstrap func(*envoy.Params)
	// Storage is the address of a Storage Read API to have in place of the
	// emulator's; without either there is none.
	Storage string
	// Double changes the double's configuration.
	Double func(*emulator.Config)
	// Env is added to the environment of extproc and recorder.
	Env []string
}

// Rig is a running stack.
type Rig struct {
	*stack.Stack
	t     testing.TB
	Tools tools.Tools
	// Upstream is the double with its emulator.
	Upstream *emulator.Emulator
	Double   *emulator.Double
	Home     string
	log      *logs
	stats    string // address of the gateway's figures
	seen     *receipts
}

var (
	buildOnce sync.Once
	buildDir  string
	buildErr  error
)

// Binaries builds extproc and recorder, once in a process, and returns their
// folder. With the race detector on in the test, they have it too.
func Binaries(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "verbatim-bin-")
		if err != nil {
			buildErr = err
			return
		}
		buildDir = dir
		args := []string{"build", "-o", dir + "/"}
		if raceEnabled {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "verbatim.dev/extproc", "verbatim.dev/recorder")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return buildDir
}

// Main runs a package's tests and removes what they built.
func Main(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// Start starts a stack that ends with the test.
func Start(t testing.TB, o Options) *Rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // the first run installs tools
	defer cancel()
	bin := Binaries(t)
	r := &Rig{t: t, log: &logs{}, seen: &receipts{}}
	var err error
	if o.Emulator {
		r.Tools, err = tools.Ensure(ctx, "", io.Discard)
	} else {
		r.Tools.Envoy, err = tools.EnsureEnvoy(ctx, "", io.Discard)
	}
	if err != nil {
		t.Fatal(err)
	}
	// t.TempDir's names are too long for a UNIX socket.
	if r.Home, err = os.MkdirTemp("", "verbatim-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, report, ok := strings.Cut(r.log.all(), "WARNING: DATA RACE"); ok {
			t.Errorf("a data race in a program:%.8000s", report)
		}
		if t.Failed() {
			t.Logf("what the processes wrote last:\n%s", r.log.tail())
		}
		os.RemoveAll(r.Home)
	})
	double := emulator.Config{Token: UpstreamToken, SpoolDir: r.Home}
	if o.Double != nil {
		o.Double(&double)
	}
	run := emulator.RunConfig{Double: double, Project: Project, Log: r.log}
	if o.Emulator {
		run.Tools = r.Tools
	}
	if r.Upstream, err = emulator.Start(ctx, run); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Upstream.Close() })
	r.Double = r.Upstream.Double

	if r.stats, err = freePort(); err != nil {
		t.Fatal(err)
	}
	if o.Policy == "" {
		o.Policy = Grants
	}
	r.write("policy/data.json", o.Policy)
	r.write("upstream.token", UpstreamToken)
	c := stack.Config{
		Home: r.Home, Extproc: filepath.Join(bin, "extproc"), Recorder: filepath.Join(bin, "recorder"), Envoy: r.Tools.Envoy,
		Project: Project, Upstream: r.Upstream.URL, Credential: map[string]any{"kind": "token_file", "file": r.Path("upstream.token")},
		Policy: r.Path("policy"), Log: r.log, Env: o.Env,
		Bootstrap: func(p *envoy.Params) {
			p.Linger = time.Second // tests wait for Envoy to close
			if o.Bootstrap != nil {
				o.Bootstrap(p)
			}
		},
		Configure: func(m map[string]any) {
			m["journal"].(map[string]any)["cut_interval"] = "200ms"
			m["metrics"] = map[string]any{"address": r.stats}
			if o.Configure != nil {
				o.Configure(m)
			}
		},
	}
	switch {
	case o.Storage != "":
		c.Storage = "http://" + o.Storage
	case r.Upstream.GRPC != "":
		c.Storage = "http://" + r.Upstream.GRPC
	}
	if o.NoSink {
		c.Recorder = ""
	}
	if r.Stack, err = stack.Start(ctx, c); err != nil {
		t.Fatalf("%v\n%s", err, r.log.tail())
	}
	t.Cleanup(r.Stack.Stop)
	return r
}

// Path names a file under Home.
func (r *Rig) Path(name string) string { return filepath.Join(r.Home, name) }

func (r *Rig) write(name, text string) {
	r.t.Helper()
	p := r.Path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := stack.WriteFile(p, []byte(text)); err != nil {
		r.t.Fatal(err)
	}
}

// Write replaces a file under Home in one step.
func (r *Rig) Write(name, text string) { r.t.Helper(); r.write(name, text) }

// Log returns what the processes wrote.
func (r *Rig) Log() string { return r.log.all() }

// TokenOf mints a token for a ready-made caller: agent, analyst, pipeline or
// intruder.
func (r *Rig) TokenOf(caller string) string {
	r.t.Helper()
	token, err := r.Token(caller, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	return token
}

// Answer is a response that was read whole, or as far as it came.
type Answer struct {
	Status  int
	Header  http.Header
	Body    []byte
	Err     error  // of the request, or of reading the body: an abort
	Receipt string // the exchange's id in the receipt
	Signed  string // the whole receipt
}

// Message returns BigQuery's error text in the body.
func (a Answer) Message() string {
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(a.Body, &e)
	return e.Error.Message
}

// Do sends a request for the caller ("" sends no token) and reads the answer.
func (r *Rig) Do(ctx context.Context, caller, method, path string, body io.Reader, header ...string) Answer {
	r.t.Helper()
	a := Send(r.request(ctx, caller, method, path, body, header...))
	r.seen.add(a.Receipt)
	return a
}

func (r *Rig) request(ctx context.Context, caller, method, path string, body io.Reader, header ...string) *http.Request {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, r.URL()+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if caller != "" {
		req.Header.Set("Authorization", "Bearer "+r.TokenOf(caller))
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	if body != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

// idIn returns the exchange's id, which a receipt begins with.
func idIn(h http.Header) string {
	id, _, _ := strings.Cut(h.Get(Receipt), ".")
	return id
}

// ReceiptID returns the id of the exchange that answered with these headers.
func ReceiptID(h http.Header) string { return idIn(h) }

// Race says that the binaries have the race detector: they are slower, and their
// memory says nothing.
const Race = raceEnabled

// client does not follow redirects, and asks for no compression.
var client = &http.Client{
	Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Send sends a request and reads the answer.
func Send(req *http.Request) Answer {
	res, err := client.Do(req)
	if err != nil {
		return Answer{Err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return Answer{Status: res.StatusCode, Header: res.Header, Body: b, Err: err, Receipt: idIn(res.Header), Signed: res.Header.Get(Receipt)}
}

// Query runs SQL by jobs.query.
func (r *Rig) Query(ctx context.Context, caller, sql string) Answer {
	r.t.Helper()
	return r.Do(ctx, caller, http.MethodPost, queries, bytes.NewReader(QueryBody(sql)))
}

// queries is the path of jobs.query.
const queries = "/bigquery/v2/projects/" + Project + "/queries"

// QueryBody is a body of jobs.query.
func QueryBody(sql string) []byte {
	b, err := json.Marshal(map[string]any{"query": sql, "useLegacySql": false})
	if err != nil {
		panic(err) // a string and a bool always marshal
	}
	return b
}

// Synthetic returns SQL that the double answers with n bytes.
func Synthetic(n int64) string { return fmt.Sprintf("SELECT /*verbatim:bytes=%d*/ 1", n) }

func (r *Rig) searchConfig() (search.Config, func()) {
	r.t.Helper()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: r.Vault()})
	if err != nil {
		r.t.Fatal(err)
	}
	f, err := os.Open(r.Keyset())
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	h, err := record.ReadTenant(f, true)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := keyring.New(keyring.Config{Source: v, Tenant: h})
	if err != nil {
		r.t.Fatal(err)
	}
	return search.Config{Vault: v, Keys: keys}, func() { v.Close() }
}

// Evidence waits until the vault holds the whole exchange, and returns it with
// its payloads by direction.
func (r *Rig) Evidence(receipt string) (*search.Detail, map[record.Direction][]byte) {
	r.t.Helper()
	id, err := record.ParseID(receipt)
	if err != nil {
		r.t.Fatal(err)
	}
	c, closeVault := r.searchConfig()
	defer closeVault()
	deadline := time.Now().Add(60 * time.Second)
	for {
		payloads := map[record.Direction][]byte{}
		d, err := search.Find(context.Background(), c, id, func(dir record.Direction, b []byte) error {
			payloads[dir] = append(payloads[dir], b...)
			return nil
		})
		if err == nil && d.Ended != nil {
			return d, payloads
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("exchange %s is not whole in the vault: %v", receipt, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Search returns the exchanges in the vault that the filter lets through.
func (r *Rig) Search(f search.Filter) []*search.Exchange {
	r.t.Helper()
	c, closeVault := r.searchConfig()
	defer closeVault()
	var out []*search.Exchange
	if _, err := search.Scan(context.Background(), c, f, func(x *search.Exchange) error {
		out = append(out, x)
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// Verify fails the test when the vault is not sound.
func (r *Rig) Verify() *ledger.Report {
	r.t.Helper()
	c, closeVault := r.searchConfig()
	defer closeVault()
	report, err := ledger.Verify(context.Background(), c.Vault, ledger.Options{Keys: c.Keys})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range report.Findings {
		r.t.Errorf("verify: %s", f)
	}
	return report
}

// NoCanary fails the test when the text stands anywhere it must not: in any
// file of the stack but the named ones, or in what a process wrote.
func (r *Rig) NoCanary(canary string, except ...string) {
	r.t.Helper()
	if strings.Contains(r.Log(), canary) {
		r.t.Errorf("a log holds the canary")
	}
	err := filepath.WalkDir(r.Home, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // files come and go
		}
		for _, e := range except {
			if strings.HasSuffix(path, e) {
				return nil
			}
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(canary)) {
			r.t.Errorf("%s holds the canary", path)
		}
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
}

// Memory returns the resident memory of a process, now and at its peak, in
// bytes.
func Memory(t testing.TB, pid int) (now, peak int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return now, peak
}

// logs keeps what the processes wrote.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) tail() string {
	s := l.all()
	if len(s) > 16<<10 {
		s = "..." + s[len(s)-16<<10:]
	}
	return s
}

// For returns the rig for a subtest: what fails there fails the subtest.
func (r *Rig) For(t testing.TB) *Rig {
	c := *r
	c.t = t
	return &c
}
