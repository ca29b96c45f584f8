package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/reconcile"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

const gatewayAccount = "gateway@demo-project.iam.gserviceaccount.com"

// TestReconcileWithBigQuerysJobs lets callers make jobs in every way that there
// is, and holds the vault against the upstream's own account of them: it is
// whole; and each thing that an intruder, or a gateway that lies, would do
// differently is named.
func TestReconcileWithBigQuerysJobs(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const api = "/bigquery/v2/projects/" + harness.Project
	must := func(want int, a harness.Answer) harness.Answer {
		t.Helper()
		if a.Err != nil || a.Status != want {
			t.Fatalf("status %d, want %d: %v %s", a.Status, want, a.Err, a.Message())
		}
		return a
	}
	post := func(caller, path, body string) harness.Answer {
		return r.Do(ctx, caller, http.MethodPost, path, strings.NewReader(body))
	}

	must(200, r.Query(ctx, "agent", harness.Synthetic(2000)))
	must(200, r.Query(ctx, "agent", harness.Synthetic(2000)))
	must(200, r.Query(ctx, "analyst", "SELECT /*verbatim:bytes=500*/ 'ä', \"<\", '\\n'\n"))
	must(200, post("analyst", api+"/jobs", `{"jobReference":{"projectId":"demo-project","jobId":"mine-1"},"configuration":{"query":{"query":"SELECT 1 /*verbatim:bytes=700*/","useLegacySql":false},"labels":{"team":"x"}}}`))
	must(200, post("analyst", api+"/jobs", `{"configuration":{"query":{"query":"SELECT /*verbatim:run=50ms*/ 2","useLegacySql":false}}}`))
	must(409, post("analyst", api+"/jobs", `{"jobReference":{"projectId":"demo-project","jobId":"mine-1"},"configuration":{"query":{"query":"SELECT 3","useLegacySql":false}}}`))
	// None of these makes a job.
	must(200, post("analyst", api+"/jobs", `{"configuration":{"dryRun":true,"query":{"query":"SELECT 4","useLegacySql":false}}}`))
	must(200, post("agent", api+"/queries", `{"query":"SELECT 5","useLegacySql":false,"dryRun":true}`))
	must(403, r.Query(ctx, "agent", "DELETE FROM a.b WHERE true"))
	must(403, r.Query(ctx, "intruder", "SELECT 6"))
	must(400, r.Query(ctx, "agent", "SELECT /*verbatim:bytes=x*/ 7"))
	must(200, r.Do(ctx, "analyst", http.MethodGet, api+"/jobs/mine-1", nil))
	// A load in pieces.
	start := must(200, post("analyst", "/upload"+api+"/jobs?uploadType=resumable", `{"configuration":{"load":{"sourceFormat":"CSV","destinationTable":{"projectId":"demo-project","datasetId":"verbatim_discard","tableId":"t"}}}}`))
	location, err := url.Parse(start.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	must(200, r.Do(ctx, "analyst", http.MethodPut, location.RequestURI(), strings.NewReader("1\n2\n"), "Content-Range", "bytes 0-3/4"))
	last := must(200, r.Query(ctx, "agent", harness.Synthetic(100)))
	r.Evidence(last.Receipt)

	// The list is the upstream's; that it holds what came shows in its log.
	var jobs []map[string]any
	b, err := json.Marshal(r.Double.Jobs())
	if err == nil {
		err = json.Unmarshal(b, &jobs)
	}
	if err != nil {
		t.Fatal(err)
	}
	posts := 0
	for _, q := range r.Double.Requests() {
		var b struct {
			DryRun        bool
			Configuration struct{ DryRun bool }
		}
		_ = json.Unmarshal(q.Body, &b)
		makes := q.Method == http.MethodPost && (strings.HasSuffix(q.Path, "/queries") || strings.HasSuffix(q.Path, "/jobs") && q.RawQuery == "") || q.Method == http.MethodPut
		if makes && q.Status == 200 && !b.DryRun && !b.Configuration.DryRun {
			posts++
		}
	}
	if len(jobs) != posts || posts != 7 {
		t.Fatalf("the upstream has %d jobs of %d requests", len(jobs), posts)
	}
	for _, j := range jobs {
		j["user_email"] = gatewayAccount
	}
	file := func(name string, jobs []map[string]any) string {
		t.Helper()
		var b bytes.Buffer
		for _, j := range jobs {
			if err := json.NewEncoder(&b).Encode(j); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(list string) (*reconcile.Report, int) {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(harness.Binaries(t), "recorder"), "reconcile", "--vault", r.Vault(), "--keyset", r.Keyset(),
			"--jobs", list, "--gateway-account", gatewayAccount, "--margin", "1ms", "--format", "json")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		var report reconcile.Report
		if err := json.Unmarshal(out, &report); err != nil {
			t.Fatalf("exit code %d: %v\n%s%s", cmd.ProcessState.ExitCode(), err, out, stderr.Bytes())
		}
		return &report, cmd.ProcessState.ExitCode()
	}

	whole, code := run(file("jobs.jsonl", jobs))
	if code != 0 || !whole.Complete || whole.Coverage == nil || *whole.Coverage != 100 || whole.Jobs != 7 || whole.SQLCompared != 6 {
		t.Fatalf("exit code %d, report %+v", code, whole)
	}
	if whole.Vault.DryRuns != 2 || whole.Vault.Denied != 2 {
		t.Errorf("%d dry runs, %d denied", whole.Vault.DryRuns, whole.Vault.Denied)
	}

	// What is changed is a copy of one job.
	find := func(jobs []map[string]any, id string) (int, map[string]any) {
		for i, j := range jobs {
			if j["jobReference"].(map[string]any)["jobId"] == id {
				return i, j
			}
		}
		t.Fatalf("there is no job %s", id)
		return 0, nil
	}
	change := func(id string, do func(map[string]any)) []map[string]any {
		out := slices.Clone(jobs)
		i, j := find(out, id)
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		var c map[string]any
		if err := json.Unmarshal(b, &c); err != nil {
			t.Fatal(err)
		}
		do(c)
		out[i] = c
		return out
	}
	config := func(j map[string]any) map[string]any { return j["configuration"].(map[string]any) }
	mine := r.Search(search.Filter{Job: "mine-1", Method: "jobs.insert", SQL: "SELECT 1 /*"})
	if len(mine) != 1 {
		t.Fatalf("%d exchanges made the job", len(mine))
	}
	foreign := map[string]any{"jobReference": map[string]any{"projectId": harness.Project, "jobId": "bypass", "location": "US"}, "user_email": gatewayAccount,
		"configuration": map[string]any{"jobType": "QUERY", "labels": config(jobs[0])["labels"], "query": map[string]any{"query": "SELECT secret"}}, "statistics": jobs[0]["statistics"]}
	other := maps.Clone(foreign)
	other["user_email"] = "mallory@corp.example"
	i, _ := find(jobs, "mine-1")
	tests := []struct {
		name     string
		jobs     []map[string]any
		code     reconcile.Code
		job      string
		exchange string
		coverage float64
	}{
		{"a bypass with the gateway's account", append(slices.Clone(jobs), foreign), reconcile.NoRecord, "bypass", "", 87.5},
		{"a bypass of another identity", append(slices.Clone(jobs), other), reconcile.OutsideGateway, "bypass", "", 87.5},
		{"a job that is gone", slices.Delete(slices.Clone(jobs), i, i+1), reconcile.NoJob, "mine-1", mine[0].ID, 100},
		{"other SQL", change("mine-1", func(j map[string]any) {
			config(j)["query"] = map[string]any{"query": "SELECT 1 /*verbatim:bytes=700*/ "}
		}), reconcile.SQLDiffers, "mine-1", mine[0].ID, 100},
		{"other labels", change("mine-1", func(j map[string]any) { config(j)["labels"] = map[string]any{"team": "x"} }), reconcile.LabelsDiffer, "mine-1", mine[0].ID, 100},
		{"another account", change("mine-1", func(j map[string]any) { j["user_email"] = "mallory@corp.example" }), reconcile.AccountDiffers, "mine-1", mine[0].ID, 100},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			report, code := run(file("jobs.jsonl", x.jobs))
			if code != 1 || len(report.Findings) != 1 {
				t.Fatalf("exit code %d, findings %+v", code, report.Findings)
			}
			f := report.Findings[0]
			if f.Code != x.code || f.Job != harness.Project+":US."+x.job || f.Exchange != x.exchange {
				t.Errorf("finding %+v, want %s of %s by %s", f, x.code, x.job, x.exchange)
			}
			if report.Coverage == nil || *report.Coverage != x.coverage {
				t.Errorf("coverage %v, want %v", report.Coverage, x.coverage)
			}
		})
	}
}
