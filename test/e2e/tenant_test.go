package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/test/harness"
)

// TestRotateTenantUnderLoad rotates the tenant's key while the gateway serves,
// with a response that streams across it: no exchange fails, everything reads with
// the rotated keyset and verifies, what began before the rotation opens with the
// keyset of before, and what began after it does not.
func TestRotateTenantUnderLoad(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx := t.Context()
	keys := filepath.Dir(r.Trust())
	recorder := func(want int, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(harness.Binaries(t), "recorder"), args...)
		cmd.Env = append(os.Environ(), "VERBATIM_VAULT="+r.Vault(), "VERBATIM_READS="+r.Path("reads"))
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Fatalf("recorder %s: exit code %d, %v\n%s", strings.Join(args, " "), code, err, out)
		}
		return string(out)
	}
	old, err := os.ReadFile(r.Keyset())
	if err != nil {
		t.Fatal(err)
	}
	r.Write("old.json", string(old))

	type asked struct {
		sql, receipt string
		rotated      bool // begun after the gateway had the new key
	}
	var (
		mu      sync.Mutex
		all     []asked
		work    sync.WaitGroup
		rotated atomic.Bool
		stop    = make(chan struct{})
	)
	var streamed harness.Answer
	work.Go(func() {
		long := r.OpenQuery(ctx, "analyst", harness.Synthetic(64<<20))
		for long.Err == nil && !rotated.Load() {
			long.ReadTo(len(long.Body) + 128<<10)
			time.Sleep(20 * time.Millisecond)
		}
		if n := len(long.Body); n >= 48<<20 {
			t.Errorf("%d bytes streamed before the rotation: it is not across", n)
		}
		streamed = long.Rest()
	})
	for i := range 4 {
		caller := []string{"analyst", "agent"}[i%2]
		work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				a := asked{sql: fmt.Sprintf("SELECT 'load-%d-%d'", i, n), rotated: rotated.Load()}
				answer := r.Query(ctx, caller, a.sql)
				if answer.Status != http.StatusOK {
					t.Errorf("%s: status %d: %s", a.sql, answer.Status, answer.Message())
					return
				}
				a.receipt = answer.Receipt
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
			}
		})
	}
	count := func() (before, after int) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range all {
			if a.rotated {
				after++
			} else {
				before++
			}
		}
		return before, after
	}
	eventually(t, "load before the rotation", func() bool { n, _ := count(); return n >= 40 })
	recorder(0, "key", "rotate", "--dir", keys, "--tenant")
	eventually(t, "the gateway takes the new key", func() bool { return strings.Contains(r.Log(), "sealing to another tenant key") })
	rotated.Store(true)
	eventually(t, "load after the rotation", func() bool { _, n := count(); return n >= 40 })
	close(stop)
	work.Wait()
	if streamed.Status != http.StatusOK || streamed.Err != nil {
		t.Errorf("the response that streams across the rotation: status %d, %v", streamed.Status, streamed.Err)
	}
	if n := strings.Count(r.Log(), "sealing to another tenant key"); n != 1 {
		t.Errorf("the new key was taken %d times", n)
	}

	settled := r.Settled()
	for _, a := range all {
		if x := settled[a.receipt]; x == nil || x.SQL != a.sql {
			t.Errorf("%s reads as %+v", a.sql, x)
		}
	}
	if x, _ := r.Evidence(streamed.Receipt); !strings.Contains(x.SQL, "verbatim:bytes") {
		t.Errorf("what streamed across the rotation reads %q", x.SQL)
	}
	r.Verify()
	if out := recorder(0, "verify", "--trust", r.Trust(), "--keyset", r.Keyset()); !strings.Contains(out, "Sound") {
		t.Errorf("verify: %s", out)
	}

	// The keyset of before opens what began before, and nothing that began later.
	primary := func(file string) uint32 {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		h, err := record.ReadTenant(bytes.NewReader(b), true)
		if err != nil {
			t.Fatal(err)
		}
		return h.KeysetInfo().GetPrimaryKeyId()
	}
	first, second := primary(r.Path("old.json")), primary(r.Keyset())
	wrapped := map[uint32]int{}
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: r.Vault()})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for name, err := range v.List(ctx, vault.KeysPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		f, err := v.Open(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		// Tink's prefix of the body names the key that opens: 1, then its id.
		for id := range map[uint32]bool{first: true, second: true} {
			if bytes.Contains(b, binary.BigEndian.AppendUint32([]byte{1}, id)) {
				wrapped[id]++
			}
		}
	}
	if wrapped[first] == 0 || wrapped[second] == 0 || first == second {
		t.Errorf("data keys are wrapped to %v, want some to %d and some to %d", wrapped, first, second)
	}
	for _, a := range all[:1] {
		if out := recorder(0, "show", a.receipt, "--keyset", r.Path("old.json")); !strings.Contains(out, a.sql) {
			t.Errorf("the keyset of before does not show %s: %s", a.sql, out)
		}
	}
	last := all[len(all)-1]
	cmd := exec.Command(filepath.Join(harness.Binaries(t), "recorder"), "show", last.receipt, "--vault", r.Vault(), "--keyset", r.Path("old.json"), "--reads", r.Path("reads2"))
	if out, _ := cmd.CombinedOutput(); strings.Contains(string(out), last.sql) {
		t.Errorf("the keyset of before shows what began after the rotation: %s", out)
	}
}
