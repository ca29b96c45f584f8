package faults

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/deploy/local/issuer"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// denied fails the test unless the answer is that refusal, is on record as the
// caller got it, and nothing went upstream for it.
func denied(t *testing.T, r *harness.Rig, ask func() harness.Answer, status int, code string) *search.Detail {
	t.Helper()
	seen := len(r.Double.Requests())
	a := ask()
	refused(t, a, status, code)
	if n := len(r.Double.Requests()) - seen; n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	x := onRecord(t, r, a)
	ended(t, &x.Exchange, record.ResultDenied, code)
	if x.Decision == nil || x.Decision.Allow || x.Status != status {
		t.Errorf("on record with status %d and the decision %+v", x.Status, x.Decision)
	}
	return x
}

// unruly fails at run time, and only for texts that no sample has.
const unruly = `package verbatim.policy

allow := {"allow": true, "reasons": [{"code": "open", "message": "all may"}], "limits": {"maximum_bytes_billed": 0}, "labels": {}}

has(word) if contains(object.get(input, ["sql", "text"], ""), word)

decision := allow if not has("NOTHING")

decision := object.union(allow, {"limits": {"maximum_bytes_billed": 1}}) if has("CONFLICT")

decision := object.union(allow, {"limits": {"maximum_bytes_billed": 1}}) if {
	has("FOREVER")
	numbers := array.concat([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
	count([1 | numbers[a]; numbers[b]; numbers[c]; numbers[d]; numbers[e]; numbers[f]; a + b + c + d + e + f > 1000]) > 0
}
`

// TestPolicyFails: a policy that cannot be put in force changes nothing, and
// one that fails for a request denies it.
func TestPolicyFails(t *testing.T) {
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) { m["policy"].(map[string]any)["timeout"] = "1s" }})
	ctx := withTimeout(t)
	query := func(sql string) func() harness.Answer {
		return func() harness.Answer { return r.Query(ctx, "agent", sql) }
	}
	a := r.Query(ctx, "agent", harness.Synthetic(1000))
	delivered(t, a, 1000)
	before := onRecord(t, r, a)

	r.Write("policy/data.json", `{"grants": {"agents": {"match": `)
	r.Await("the broken policy is refused", func() bool { return strings.Contains(r.Log(), "new policy refused") })
	a = r.Query(ctx, "agent", harness.Synthetic(1000))
	delivered(t, a, 1000)
	if after := onRecord(t, r, a); after.Decision.Policy != before.Decision.Policy {
		t.Errorf("decided by %s, want the policy before, %s", after.Decision.Policy, before.Decision.Policy)
	}
	denied(t, r, query("DELETE FROM a.b WHERE true"), 403, "")

	r.Write("policy/unruly.rego", unruly)
	r.Write("policy/data.json", "{}")
	r.Await("the other policy is in force", func() bool { return strings.Count(r.Log(), `"policy in force"`) == 2 })
	a = r.Query(ctx, "intruder", harness.Synthetic(1000)) // whom the policy before had denied
	delivered(t, a, 1000)
	for word, code := range map[string]string{"NOTHING": "policy_undefined", "CONFLICT": "policy_error", "FOREVER": "policy_timeout"} {
		t.Run(code, func(t *testing.T) {
			x := denied(t, r.For(t), query("SELECT '"+word+"'"), 403, code)
			if x.Decision.By != "policy" || x.Decision.Policy == before.Decision.Policy || len(x.Decision.Reasons) != 1 {
				t.Errorf("decision %+v", x.Decision)
			}
		})
	}
	r.Settled()
	r.Verify()
}

// TestNoCredential: without a credential of its own the gateway denies.
func TestNoCredential(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	ask := func() harness.Answer { return r.Query(ctx, "agent", harness.Synthetic(1000)) }
	delivered(t, ask(), 1000)
	if err := os.Remove(r.Path("upstream.token")); err != nil {
		t.Fatal(err)
	}
	denied(t, r, ask, 503, "credential_unavailable")
	r.Write("upstream.token", "two words")
	denied(t, r, ask, 503, "credential_unavailable")
	r.Write("upstream.token", harness.UpstreamToken)
	delivered(t, ask(), 1000)
	r.Settled()
	r.Verify()
}

// TestIssuerDown: keys that are known go on, a gateway that has none answers
// 503, and other issuers are not touched.
func TestIssuerDown(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	agent := func() harness.Answer { return r.Query(ctx, "agent", harness.Synthetic(1000)) }
	delivered(t, agent(), 1000)
	down := r.Issuer.Issuer(issuer.Cluster)
	down.SetDown(true)
	delivered(t, agent(), 1000)
	r.Extproc.Stop()
	r.Restart()
	denied(t, r, agent, 503, "issuer_unavailable")
	delivered(t, r.Query(ctx, "analyst", harness.Synthetic(1000)), 1000)
	denied(t, r, agent, 503, "issuer_unavailable")
	down.SetDown(false)
	r.Await("the issuer's callers are back", func() bool { return agent().Status == 200 })
	r.Settled()
	r.Verify()
}

// TestKillSwitch: who is revoked is out at once, with what runs.
func TestKillSwitch(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := withTimeout(t)
	insert := func(caller, id, sql string) harness.Answer {
		return r.Do(ctx, caller, http.MethodPost, project+"/jobs", strings.NewReader(fmt.Sprintf(
			`{"jobReference":{"projectId":%q,"jobId":%q,"location":"US"},"configuration":{"query":{"query":%q,"useLegacySql":false}}}`, harness.Project, id, sql)))
	}
	for caller, id := range map[string]string{"agent": "agents-job", "analyst": "analysts-job"} {
		if a := insert(caller, id, "SELECT /*verbatim:run=10m*/ 1"); a.Status != 200 {
			t.Fatalf("status %d: %s", a.Status, a.Body)
		}
	}
	if a := insert("agent", "ended-job", "SELECT 1"); a.Status != 200 {
		t.Fatalf("status %d: %s", a.Status, a.Body)
	}
	// A job that no gateway made.
	direct, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Upstream.URL+project+"/jobs", strings.NewReader(
		`{"jobReference":{"projectId":"`+harness.Project+`","jobId":"foreign-job"},"configuration":{"query":{"query":"SELECT /*verbatim:run=10m*/ 1"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	direct.Header.Set("Authorization", "Bearer "+harness.UpstreamToken)
	if a := harness.Send(direct); a.Status != 200 {
		t.Fatalf("status %d: %s", a.Status, a.Body)
	}
	incomplete := r.Query(ctx, "agent", "SELECT /*verbatim:run=10m*/ 2")
	if incomplete.Status != 200 {
		t.Fatalf("status %d: %s", incomplete.Status, incomplete.Body)
	}
	byQuery := onRecord(t, r, incomplete).Job.ID

	// A response that streams, a request that waits for its response, one whose
	// body is not whole, and one of somebody else.
	const size = 3_000_000
	stalled := func(caller string) *harness.Stream {
		r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: 1_500_000, Duration: 5 * time.Second})
		s := r.OpenQuery(ctx, caller, harness.Synthetic(size))
		s.ReadTo(800_000)
		return s
	}
	streams, other := stalled("agent"), stalled("analyst")
	waits := later(func() harness.Answer { return r.Query(ctx, "agent", "SELECT /*verbatim:bytes=1000,delay=60s*/ 3") })
	// A job that BigQuery has not told of yet, and one whose id is another's.
	r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Method: http.MethodPost, Path: "/jobs", Count: 2, AfterBytes: -1})
	named := later(func() harness.Answer { return insert("agent", "job-on-its-way", "SELECT /*verbatim:run=10m*/ 4") })
	theirs := later(func() harness.Answer { return insert("agent", "foreign-job", "SELECT /*verbatim:run=10m*/ 5") })
	pr, pw := io.Pipe()
	half := later(func() harness.Answer { return r.Do(ctx, "agent", http.MethodPost, project+"/queries", pr) })
	io.WriteString(pw, `{"query":"SELECT`)
	r.Await("all of them run", func() bool { return r.Stats().Open == 6 && len(r.Double.Requests()) == 10 })

	revoked := time.Now()
	r.Write("revocations.yaml", "subjects:\n- {issuer: cluster, subject: \"system:serviceaccount:agents:researcher\", reason: the test says so}\n")
	a := streams.Rest()
	aborted(t, a, size)
	if d := time.Since(revoked); d > 5*time.Second {
		t.Errorf("the response went on for %s", d)
	}
	ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "revoked")
	a = <-waits
	refused(t, a, 401, "revoked")
	ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "revoked")
	for _, c := range []<-chan harness.Answer{named, theirs} {
		refused(t, <-c, 401, "revoked")
	}
	a = <-half
	refused(t, a, 401, "revoked")
	ended(t, &onRecord(t, r, a).Exchange, record.ResultDenied, "revoked")
	pw.Close()
	cancelled := map[string]int{}
	r.Await("the jobs are cancelled", func() bool {
		clear(cancelled)
		for _, q := range r.Double.Requests() {
			if id, ok := strings.CutSuffix(strings.TrimPrefix(q.Path, project+"/jobs/"), "/cancel"); ok {
				cancelled[id]++
				if got := q.Header.Values("Authorization"); len(got) != 1 || got[0] != emulator.TokenDigest(harness.UpstreamToken) {
					t.Errorf("cancelled with the credential %q", got)
				}
			}
		}
		return len(cancelled) == 3
	})
	if cancelled["agents-job"] != 1 || cancelled[byQuery] != 1 || cancelled["job-on-its-way"] != 1 {
		t.Errorf("cancelled are %v", cancelled)
	}
	x := denied(t, r, func() harness.Answer { return r.Query(ctx, "agent", "SELECT 5") }, 401, "revoked")
	if x.Principal == nil || x.Decision.By != "revocation" {
		t.Errorf("principal %v, decision %+v", x.Principal, x.Decision)
	}
	delivered(t, other.Rest(), size)
	delivered(t, r.Query(ctx, "analyst", harness.Synthetic(1000)), 1000)

	found := map[string]*search.Exchange{}
	for _, x := range r.Settled() {
		if x.Method != "bigquery.jobs.cancel" {
			continue
		}
		found[x.Job.ID] = x
	}
	for id, probes := range map[string]int{"agents-job": 1, byQuery: 1, "job-on-its-way": 3, "foreign-job": 1} { // whose is it, and as whom the gateway runs jobs; cancel
		x := found[id]
		if x == nil {
			t.Errorf("no cancel of %s on record", id)
			continue
		}
		result, cause := record.ResultDelivered, "revoked"
		if id == "foreign-job" {
			result, cause = record.ResultAborted, "cancel failed"
		}
		ended(t, x, result, cause)
		if d, _ := r.Evidence(x.ID); len(d.Probes) != probes || d.Probes[0].Status != 200 || x.Principal == nil || !strings.Contains(x.Principal.Subject, "researcher") {
			t.Errorf("cancel of %s on record: principal %+v, probes %+v", id, x.Principal, d.Probes)
		}
	}
	if len(found) != 4 {
		t.Errorf("%d calls of jobs.cancel on record", len(found))
	}
	r.Verify()

	r.Write("revocations.yaml", "subjects: []\n")
	r.Await("the caller is back", func() bool { return r.Query(ctx, "agent", "SELECT 6").Status == 200 })
}

// TestCapacity: one exchange more than there are places is refused before its
// body is read.
func TestCapacity(t *testing.T) {
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) { m["limits"].(map[string]any)["exchanges"] = 2 }})
	ctx := withTimeout(t)
	type open struct {
		answer <-chan harness.Answer
		body   *io.PipeWriter
	}
	begin := func() open {
		pr, pw := io.Pipe()
		return open{later(func() harness.Answer { return r.Do(ctx, "agent", http.MethodPost, project+"/queries", pr) }), pw}
	}
	first, second := begin(), begin()
	r.Await("both places are taken", func() bool { return r.Stats().Open == 2 })
	third := begin() // sends no byte of its body
	a := <-third.answer
	third.body.Close()
	refused(t, a, 503, "at_capacity")
	x := onRecord(t, r, a)
	ended(t, &x.Exchange, record.ResultDenied, "at_capacity")
	if x.Method != "bigquery.jobs.query" || x.Project != harness.Project || x.Decision.By != "capacity" {
		t.Errorf("on record as %s of %s, decision %+v", x.Method, x.Project, x.Decision)
	}
	for _, o := range []open{first, second} {
		o.body.Write(harness.QueryBody(harness.Synthetic(1000)))
		o.body.Close()
		delivered(t, <-o.answer, 1000)
	}
	delivered(t, r.Query(ctx, "agent", harness.Synthetic(1000)), 1000)
	r.Settled()
	r.Verify()
}

// TestGracefulStop: what runs is finished, up to a limit of time.
func TestGracefulStop(t *testing.T) {
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) { m["limits"].(map[string]any)["drain"] = "3s" }})
	ctx := withTimeout(t)
	const size = 3_000_000
	begin := func(stall time.Duration) *harness.Stream {
		r.Double.SetFault(&emulator.Fault{Kind: emulator.FaultStall, Path: "/queries", Count: 1, AfterBytes: 1_500_000, Duration: stall})
		s := r.OpenQuery(ctx, "agent", harness.Synthetic(size))
		s.ReadTo(800_000)
		return s
	}
	stop := func() chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Extproc.Stop()
		}()
		return done
	}
	s := begin(time.Second)
	done := stop()
	r.Await("new requests are refused", func() bool {
		a := r.Query(ctx, "agent", "SELECT 1")
		if a.Status != 200 {
			refused(t, a, 503, "")
		}
		return a.Status == 503
	})
	delivered(t, s.Rest(), size)
	ended(t, &onRecord(t, r, s.Answer).Exchange, record.ResultDelivered, "")
	<-done
	r.Restart()

	s = begin(0)
	stopping := time.Now()
	done = stop()
	a := s.Rest()
	aborted(t, a, size)
	if d := time.Since(stopping); d < 2*time.Second || d > 10*time.Second {
		t.Errorf("cut off after %s, drain is 3 s", d)
	}
	<-done
	r.Restart()
	ended(t, &onRecord(t, r, a).Exchange, record.ResultAborted, "")
	r.Settled()
	if n := r.Verify().Exchanges.Interrupted; n != 0 {
		t.Errorf("%d exchanges were left to recovery", n)
	}
}
