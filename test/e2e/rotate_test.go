package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"verbatim.dev/test/harness"
)

// TestRotateKeys rotates each key of a deployment while it is in use: what was
// recorded before reads and verifies as what comes after.
func TestRotateKeys(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := t.Context()
	keys := filepath.Dir(r.Trust())
	run := func(want int, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(harness.Binaries(t), "recorder"), args...)
		cmd.Env = append(os.Environ(), "VERBATIM_VAULT="+r.Vault(), "VERBATIM_KEYSET="+r.Keyset())
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Fatalf("recorder %s: exit code %d, %v\n%s", strings.Join(args, " "), code, err, out)
		}
		return string(out)
	}
	has := func(out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in:\n%s", w, out)
			}
		}
	}
	restart := func() {
		t.Helper()
		r.Extproc.Stop()
		r.Restart()
	}
	const job = "/bigquery/v2/projects/" + harness.Project + "/jobs"
	first := r.Do(ctx, "analyst", http.MethodPost, job, strings.NewReader(`{"jobReference":{"projectId":"demo-project","jobId":"mine-1"},"configuration":{"query":{"query":"SELECT 'before'","useLegacySql":false}}}`))
	if first.Status != http.StatusOK {
		t.Fatalf("status %d: %s", first.Status, first.Message())
	}
	before, _ := r.Evidence(first.Receipt)

	// The auditor's copy of the trust file, from before.
	mine := r.Path("mine.pub")
	old, err := os.ReadFile(r.Trust())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, old, 0o600); err != nil {
		t.Fatal(err)
	}
	has(run(0, "verify", "--trust", mine), "certified 1 of 1 epochs")

	run(0, "key", "rotate", "--dir", keys)
	run(0, "key", "rotate", "--dir", keys, "--tenant")
	restart()
	second := r.Query(ctx, "analyst", "SELECT 'after'")
	after, _ := r.Evidence(second.Receipt)
	if after.Session != before.Session || !strings.Contains(after.SQL, "after") {
		t.Errorf("the next exchange reads %q, of session %s, want %s", after.SQL, after.Session, before.Session)
	}
	if x, _ := r.Evidence(first.Receipt); !strings.Contains(x.SQL, "before") {
		t.Errorf("what was sealed before reads %q", x.SQL)
	}
	// The job from before is still its caller's.
	if a := r.Do(ctx, "analyst", http.MethodGet, job+"/mine-1", nil); a.Status != http.StatusOK {
		t.Errorf("the job from before: %d %s", a.Status, a.Message())
	}
	r.Verify()
	has(run(0, "verify", "--trust", r.Trust()), "certified 2 of 2 epochs", "Sound")
	// Who trusts the old key alone sees that the new one is none of his, and
	// takes it over from what the old one signed.
	has(run(1, "verify", "--trust", mine), "certified 1 of 2 epochs", "no trusted deployment key signed it")
	has(run(0, "key", "accept", "--trust", mine, r.Trust()), "added ")
	has(run(0, "verify", "--trust", mine), "certified 2 of 2 epochs")

	// Retired from now on, the old key verifies what it certified; retired from
	// before that, it does not.
	fingerprint, _, _ := strings.Cut(run(0, "key", "fingerprint", string(bytes.TrimSpace(old))), " ")
	run(0, "key", "retire", "--dir", keys, fingerprint)
	has(run(0, "verify", "--trust", r.Trust()), "certified 2 of 2 epochs", "Sound")
	run(0, "key", "retire", "--dir", keys, fingerprint, "--at", "2020-01-01")
	has(run(1, "verify", "--trust", r.Trust()), "certified 1 of 2 epochs", "is retired from 2020-01-01T00:00:00Z on")

	// Another session key makes other sessions, and jobs from before are
	// nobody's: README says so. What is on record stays as it is.
	fresh := make([]byte, 32)
	if _, err := rand.Read(fresh); err != nil {
		t.Fatal(err)
	}
	r.Write("keys/session.key", fmt.Sprintf("%x", fresh))
	restart()
	third := r.Query(ctx, "analyst", "SELECT 'later'")
	if x, _ := r.Evidence(third.Receipt); x.Session == before.Session || x.Principal.Subject != before.Principal.Subject {
		t.Errorf("session %s of %v after a new session key, before %s", x.Session, x.Principal, before.Session)
	}
	if a := r.Do(ctx, "analyst", http.MethodGet, job+"/mine-1", nil); a.Status != http.StatusForbidden && a.Status != http.StatusNotFound {
		t.Errorf("a job that the old session key has labelled: %d %s", a.Status, a.Message())
	}
	if x, _ := r.Evidence(first.Receipt); x.Session != before.Session {
		t.Errorf("the session on record changed to %s", x.Session)
	}
	r.Verify()
}
