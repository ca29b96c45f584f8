package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// grants: writers do all, readers read, and strangers have none.
const grants = `{"grants": {
  "writers": {"match": {"issuer": "corp", "group": "writers"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read", "write", "admin"]},
  "readers": {"match": {"issuer": "corp", "group": "readers"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read"]}
}}`

// receiptIn finds the reason code and the receipt at the end of a denial.
var receiptIn = regexp.MustCompile(`\[([a-z_]+), receipt ([0-9A-Za-z-]+)\]`)

// mint makes a token for a person of the issuer corp.
func mint(t testing.TB, r *harness.Rig, subject string, groups ...string) string {
	t.Helper()
	token, err := r.Issuer.Mint(issuer.Caller{Name: subject, Issuer: issuer.Corp, Claims: map[string]any{
		"sub": subject, "aud": stack.Audience, "groups": groups,
	}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

var roles = map[string][]string{"writer": {"writers"}, "reader": {"readers"}, "stranger": {"everyone"}}

// client is one way to call BigQuery.
type client struct {
	name string
	// bare: it finds the gateway by an endpoint without a path, or by the
	// variable for emulators. It does the short steps only.
	bare bool
	// prefixless: its paths then have no /bigquery/v2.
	prefixless bool
	run        func(t *testing.T, dir string, j job) []result
	// large is how it uploads a large file.
	large string
}

func clients(r *harness.Rig) []client {
	python := func(t *testing.T, dir string, j job) []result {
		return script(t, dir, j, r.Tools.Python, "clients/agent.py")
	}
	node := func(t *testing.T, dir string, j job) []result {
		return script(t, dir, j, "node", "clients/agent.mjs", nodeModules(t))
	}
	golang := func(t *testing.T, _ string, j job) []result {
		out, err := runGo(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	bq := func(t *testing.T, dir string, j job) []result {
		program, err := exec.LookPath("bq")
		if err != nil {
			t.Skip("no bq on this machine: it is not tested")
		}
		out, err := runBQ(t.Context(), program, dir, j)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	return []client{
		{name: "bq", run: bq, large: "resumable"},
		{name: "python", run: python, large: "resumable"},
		{name: "node", run: node, large: "multipart"},
		{name: "go", run: golang, large: "resumable"},
		{name: "python_bare", bare: true, run: python},
		{name: "node_bare", bare: true, prefixless: true, run: node},
		{name: "go_bare", bare: true, prefixless: true, run: golang},
	}
}

// script runs a client's script and reads what it prints.
func script(t *testing.T, dir string, j job, program string, args ...string) []result {
	t.Helper()
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "job.json")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, append(args, name)...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "PYTHONDONTWRITEBYTECODE=1")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", args[0], err, out, errs.Bytes())
	}
	var results []result
	for line := range bytes.Lines(out) {
		var r result
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s printed %.300q: %v", args[0], line, err)
		}
		results = append(results, r)
	}
	return results
}

// TestClients has every client do the same steps through the gateway, and
// compares what it saw, what passed on its wire and what is on record.
func TestClients(t *testing.T) {
	r := harness.Start(t, harness.Options{Emulator: true, Policy: grants})
	f := writeFiles(t, t.TempDir())
	var signatures []string
	t.Run("run", func(t *testing.T) {
		for _, c := range clients(r) {
			dir, wire := t.TempDir(), newTap(t, r.Envoy.Listener)
			j := job{URL: wire.url, Project: harness.Project, Bare: c.bare, Tokens: map[string]string{}}
			for role, groups := range roles {
				token := mint(t, r, role+"-"+c.name, groups...)
				signatures = append(signatures, token[strings.LastIndex(token, ".")+1:])
				j.Tokens[role] = filepath.Join(dir, role+".token")
				if err := os.WriteFile(j.Tokens[role], []byte(token), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range steps("e2e_"+c.name, f) {
				if s.As == "" {
					s.As = "writer"
				}
				if s.short && c.bare || !c.bare && !(s.again && c.name == "bq") {
					j.Steps = append(j.Steps, s)
				}
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				r := r.For(t)
				start := time.Now()
				got := c.run(t, dir, j)
				t.Logf("the client took %s", time.Since(start).Round(time.Millisecond))
				receipts := check(t, j.Steps, got)
				onRecord(t, r, c, wire, receipts)
				uploaded(t, r, c, f)
			})
		}
	})
	t.Run("a script's jobs", func(t *testing.T) { scriptJobs(t, r.For(t)) })
	upstream(t, r)
	for _, s := range signatures {
		r.NoCanary(s)
	}
	r.NoCanary(harness.UpstreamToken, "upstream.token")
	r.Verify()
}

// onRecord compares what passed on a client's wire with the vault: every
// exchange is there, with the very bytes, and no other is.
func onRecord(t *testing.T, r *harness.Rig, c client, wire *tap, receipts map[string]string) {
	t.Helper()
	passed := map[string]bool{}
	host := strings.TrimPrefix(wire.url, "http://")
	for _, s := range wire.exchanges(t) {
		id, _, _ := strings.Cut(s.header.Get(harness.Receipt), ".")
		what := fmt.Sprintf("%s %s (%d, receipt %s)", s.method, s.target, s.status, id)
		if id == "" || passed[id] {
			t.Errorf("%s: no receipt, or one that was given before", what)
			continue
		}
		passed[id] = true
		if l := s.header.Get("Location"); l != "" {
			if u, err := url.Parse(l); err != nil || u.Host != host {
				t.Errorf("%s: the client is sent to %s", what, l)
			}
		}
		if strings.Contains(s.target, "/bigquery/v2/") == c.prefixless && !strings.HasPrefix(s.target, "/upload/") && !strings.HasPrefix(s.target, "/$discovery/") && !strings.HasPrefix(s.target, "/resumable/") {
			t.Errorf("%s: not the form of paths that was to be tried", what)
		}
		x, payloads := r.Evidence(id)
		if x.Status != s.status || x.HTTP != s.method || x.Host != s.host || x.Unreadable != "" {
			t.Errorf("%s: on record are %s, status %d, host %s %s", what, x.HTTP, x.Status, x.Host, x.Unreadable)
		}
		if want := "-" + c.name; x.Principal == nil || !strings.HasSuffix(x.Principal.Subject, want) {
			t.Errorf("%s: the principal is %+v", what, x.Principal)
		}
		same(t, what, "response", s.got, payloads[record.DirectionResponse], x)
		sent := payloads[record.DirectionRequest]
		if x.Result == record.ResultDenied && bytes.HasPrefix(s.sent, sent) {
			s.sent = sent // a denial may come before the body was read to its end
		}
		same(t, what, "request", s.sent, sent, x)
		if s.status == 403 && x.Result != record.ResultDenied || s.status != 403 && x.Result != record.ResultDelivered {
			t.Errorf("%s: result %s", what, x.Result)
		}
	}
	for name, id := range receipts {
		if !passed[id] {
			t.Errorf("%s: the receipt that the user sees, %s, was not on the wire", name, id)
			continue
		}
		if x, _ := r.Evidence(id); x.Decision == nil || x.Decision.Allow || x.Forwarded != nil {
			t.Errorf("%s: the record of receipt %s shows no denial: %+v", name, id, x.Decision)
		}
	}
	methods := map[string]int{}
	for role := range roles {
		for _, x := range r.Search(search.Filter{Principal: role + "-" + c.name}) {
			methods[x.Method]++
			if !passed[x.ID] {
				t.Errorf("%s of %s is on record, and did not pass on the wire", x.Method, role)
			}
			delete(passed, x.ID)
		}
	}
	if len(passed) > 0 {
		t.Errorf("search does not find %d exchanges", len(passed))
	}
	t.Logf("on record: %v", methods)
}

// same compares a body on the wire with its record, byte by byte and by the
// outcome's digest.
func same(t *testing.T, what, direction string, wire, recorded []byte, x *search.Detail) {
	t.Helper()
	if !bytes.Equal(wire, recorded) {
		t.Errorf("%s: the %s had %d bytes, %d others are on record", what, direction, len(wire), len(recorded))
	}
	if len(wire) == 0 {
		return
	}
	sum := sha256.Sum256(wire)
	if x.Digests[direction] != hex.EncodeToString(sum[:]) {
		t.Errorf("%s: the outcome has another digest of the %s", what, direction)
	}
}

// uploaded checks that BigQuery got the files as they are.
func uploaded(t *testing.T, r *harness.Rig, c client, f files) {
	t.Helper()
	forms := map[string]int{}
	for _, u := range r.Double.Uploads() {
		var config struct {
			Load struct {
				DestinationTable struct{ DatasetID, TableID string }
			}
		}
		if err := json.Unmarshal(u.Configuration, &config); err != nil {
			t.Fatal(err)
		}
		d := config.Load.DestinationTable
		name := f.small
		switch {
		case d.DatasetID == emulator.DiscardDataset && d.TableID == "e2e_"+c.name:
			name = f.large
			if u.Kind != c.large {
				t.Errorf("the large file went as %s", u.Kind)
			}
		case d.DatasetID != "e2e_"+c.name:
			continue
		}
		forms[u.Kind]++
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if u.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s arrived as %d other bytes", name, u.Bytes)
		}
	}
	want := 3
	if c.bare {
		want = 2
	}
	if n := forms["multipart"] + forms["resumable"]; n != want {
		t.Errorf("uploads: %v, want %d", forms, want)
	}
	t.Logf("uploads: %v", forms)
}

// upstream checks the other side: what reached BigQuery was forwarded by an
// exchange that is on record, with the gateway's credential and labels.
func upstream(t *testing.T, r *harness.Rig) {
	t.Helper()
	forwarded, sessions := 0, map[string]bool{}
	for _, x := range r.Search(search.Filter{}) {
		if x.Forwarded != nil {
			forwarded++
		}
		d, _ := r.Evidence(x.ID)
		forwarded += len(d.Probes) // what the gateway asked itself
		sessions[x.Session] = true
	}
	requests := r.Double.Requests()
	if len(requests) != forwarded {
		t.Errorf("%d requests reached BigQuery, and %d are on record as forwarded or asked", len(requests), forwarded)
	}
	if n := r.Double.Unauthorized(); n != 0 {
		t.Errorf("%d requests had another credential than the gateway's", n)
	}
	label := regexp.MustCompile(`"verbatim_session": ?"([a-z2-7]+)"`)
	for _, q := range requests {
		makesJob := q.Method == "POST" && (strings.HasSuffix(q.Path, "/queries") || strings.HasSuffix(q.Path, "/jobs")) && !strings.Contains(q.RawQuery, "upload_id=")
		if !makesJob || q.Body == nil {
			continue
		}
		if m := label.FindSubmatch(q.Body); m == nil || !sessions[string(m[1])] {
			t.Errorf("%s %s went without its session's label: %.300s", q.Method, q.Path, q.Body)
		}
		if q.Header.Get("Content-Encoding") != "" || q.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("%s %s: encodings %q, %q", q.Method, q.Path, q.Header.Get("Content-Encoding"), q.Header.Get("Accept-Encoding"))
		}
	}
}

// scriptJobs reaches for the jobs of a script's statements, as bq does to print
// their rows: they are the script's owner's.
func scriptJobs(t *testing.T, r *harness.Rig) {
	ada, eve := caller{r, mint(t, r, "ada", "writers")}, caller{r, mint(t, r, "eve", "writers")}
	ada.insert(t, "ada-script", "DECLARE x INT64 DEFAULT 1; SET x = x + 41; SELECT x AS a;")
	a := ada.do(t, "GET", api+"/jobs?parentJobId=ada-script&projection=full", "")
	var list struct {
		Jobs []struct{ JobReference struct{ JobID string } }
	}
	if err := json.Unmarshal(a.Body, &list); err != nil || a.Status != 200 || len(list.Jobs) != 1 {
		t.Fatalf("the script's jobs: %d %s", a.Status, a.Body)
	}
	child := list.Jobs[0].JobReference.JobID
	denied(t, r, "another's script", eve.do(t, "GET", api+"/jobs?parentJobId=ada-script", ""), 403, "not_owner")
	theirs := denied(t, r, "a job of another's script", eve.do(t, "GET", api+"/queries/"+child, ""), 403, "not_owner")
	probed(t, "a job of another's script", theirs, child, 200)
	rows := ada.do(t, "GET", api+"/queries/"+child, "")
	if rows.Status != 200 || !strings.Contains(string(rows.Body), `"42"`) {
		t.Errorf("a job of one's own script: %d %s", rows.Status, rows.Body)
	}
	x, _ := r.Evidence(rows.Receipt)
	probed(t, "a job of one's own script", x, child, 200)
}
