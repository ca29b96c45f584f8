package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
	"verbatim.dev/test/harness"
)

// TestErase sends a canary through the whole stack, in the SQL, a parameter, a
// label and the payload, erases its session, and then tries to get it back from
// every file there is, with the tenant's private keyset at hand.
func TestErase(t *testing.T) {
	r := harness.Start(t, harness.Options{Configure: func(m map[string]any) { m["journal"].(map[string]any)["segment"] = "8MiB" }})
	ctx := t.Context()
	canaries := map[string]string{"sql": "canary-sql-71fe03", "parameter": "canary-par-9c02aa", "label": "canary-label-55d1e0", "payload": "canary-pay-e410bb"}
	body := fmt.Sprintf(`{"jobReference":{"projectId":"demo-project","jobId":%q},"configuration":{"labels":{"team":%q},
		"query":{"query":"SELECT '%s', @p","useLegacySql":false,"parameterMode":"NAMED",
		"queryParameters":[{"name":"p","parameterType":{"type":"STRING"},"parameterValue":{"value":%q}}]}}}`,
		canaries["payload"], canaries["label"], canaries["sql"], canaries["parameter"])
	secret := r.Do(ctx, "analyst", http.MethodPost, "/bigquery/v2/projects/"+harness.Project+"/jobs", strings.NewReader(body))
	if secret.Err != nil || secret.Status != http.StatusOK {
		t.Fatalf("status %d, %v: %s", secret.Status, secret.Err, secret.Message())
	}
	if !bytes.Contains(secret.Body, []byte(canaries["payload"])) {
		t.Errorf("the response's payload does not hold its canary: %s", secret.Body)
	}
	plain := r.Query(ctx, "agent", "SELECT 'stays-2210' AS x")
	if plain.Status != http.StatusOK {
		t.Fatalf("status %d: %s", plain.Status, plain.Message())
	}
	x, _ := r.Evidence(secret.Receipt)
	r.Evidence(plain.Receipt)

	// Before: all of them can be had.
	for name, canary := range canaries {
		if !recoverable(t, r, canary) {
			t.Errorf("the %s is not on record: this test would find nothing", name)
		}
		r.NoCanary(canary) // sealed nevertheless
	}

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
	checks := []string{"--gateway-stats", r.StatsURL(), "--transport-retention", "0", "--by", "dpo", "--key", filepath.Join(filepath.Dir(r.Trust()), "deployment.key")}
	out := run(4, append([]string{"erase", "--session", x.Session, "--reason", "request 4711", "--yes"}, checks...)...)
	if !strings.Contains(out, "pending: journal of gateway") || strings.Contains(out, "transport") {
		t.Errorf("erase says:\n%s", out)
	}
	_, after, _ := strings.Cut(out, "erasure ")
	id, _, _ := strings.Cut(after, "\n")
	// Pending is the truth: the journal's file still has the key.
	if !recoverable(t, r, canaries["sql"]) {
		t.Error("the erasure is pending, but no file has the key any more")
	}
	if out := run(0, "show", secret.Receipt); !strings.Contains(out, "by dpo: request 4711") || strings.Contains(out, "canary") {
		t.Errorf("show says:\n%s", out)
	}

	// The gateway restarts, and its journal frees what was shipped. Nothing of
	// what comes again brings the key back.
	r.Extproc.Stop()
	r.Restart()
	r.Await("the journal to be clear of the key", func() bool {
		_, old := r.Stats().Journal.Files[strings.SplitN(secret.Receipt, "-", 2)[0]]
		return !old
	})
	if out := run(0, append([]string{"erase", "finish", id}, checks...)...); !strings.Contains(out, "Complete") {
		t.Errorf("finish says:\n%s", out)
	}

	for name, canary := range canaries {
		if recoverable(t, r, canary) {
			t.Errorf("the %s can still be had", name)
		}
		r.NoCanary(canary)
	}
	if d, payloads := r.Evidence(plain.Receipt); !strings.Contains(d.SQL, "stays-2210") || len(payloads[record.DirectionResponse]) == 0 {
		t.Errorf("another session's exchange reads %q", d.SQL)
	}
	if out := run(0, "search", "--limit", "0", "--format", "json"); strings.Contains(out, "canary") || !strings.Contains(out, `"erased":"`+id+`"`) || !strings.Contains(out, "stays-2210") {
		t.Errorf("search says:\n%s", out)
	}
	report := r.Verify()
	if report.KeysErased != 1 || report.KeysMissing != 0 || len(report.Erasures) != 1 || report.Erasures[0].Complete == nil {
		t.Errorf("verify: %d erased, %d missing, %+v", report.KeysErased, report.KeysMissing, report.Erasures)
	}
	if out := run(0, "verify", "--trust", r.Trust()); !strings.Contains(out, "1 erased") || !strings.Contains(out, "by dpo, signed by ") || !strings.Contains(out, "Sound") {
		t.Errorf("verify says:\n%s", out)
	}
	// The session goes on after the restart, under another key.
	again := r.Query(ctx, "analyst", "SELECT 'after-3321'")
	if d, _ := r.Evidence(again.Receipt); d.Session != x.Session || !strings.Contains(d.SQL, "after-3321") {
		t.Errorf("the session's next exchange reads %q, of session %s", d.SQL, d.Session)
	}
}

// recoverable reports whether the text can be had from any file of the stack:
// every frame anywhere in it, opened with every wrapped key anywhere in it.
func recoverable(t *testing.T, r *harness.Rig, text string) bool {
	t.Helper()
	b, err := os.ReadFile(r.Keyset())
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := record.ReadTenant(bytes.NewReader(b), true)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := record.NewOpener(tenant)
	if err != nil {
		t.Fatal(err)
	}
	var frames []record.Frame
	epochs := map[record.Epoch]bool{}
	err = filepath.WalkDir(r.Home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // files come and go
		}
		for part := range strings.SplitSeq(path, "/") {
			if e, err := record.ParseEpoch(part); err == nil {
				epochs[e] = true
			}
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for i := 0; i+80 < len(b); i++ {
			if b[i+4] != record.Version || binary.BigEndian.Uint32(b[i:]) > record.MaxFrame {
				continue
			}
			if f, n, err := record.Decode(b[i:]); err == nil {
				frames = append(frames, f)
				i += n - 1
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for e := range epochs {
		for _, f := range frames {
			if f.Kind == record.KindKey {
				_ = opener.Add(e, &f) // that of another epoch
			}
		}
	}
	for e := range epochs {
		for _, f := range frames {
			if b, err := opener.Open(e, &f); err == nil && bytes.Contains(b, []byte(text)) {
				return true
			}
		}
	}
	return false
}
