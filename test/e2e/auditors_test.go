package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/test/harness"
)

// reader asks the service as somebody.
func reader(t *testing.T, a *harness.Auditors, token string) *access.Client {
	t.Helper()
	c, err := access.NewClient(access.ClientConfig{Server: a.URL, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refusedWith fails unless the service refused with the code, and gave nothing.
func refusedWith(t *testing.T, what, code string, err error, given int) {
	t.Helper()
	var said *access.Error
	if !errors.As(err, &said) || said.Code != code || given != 0 {
		t.Errorf("%s: %v and %d given out, want %s and nothing", what, err, given, code)
	}
}

// recorderRun runs the recorder's command line on the stack's vault.
func recorderRun(ctx context.Context, t *testing.T, r *harness.Rig, args ...string) (string, error) {
	t.Helper()
	args = append(args, "--vault", r.Vault(), "--keyset", r.Keyset())
	cmd := exec.CommandContext(ctx, filepath.Join(harness.Binaries(t), "recorder"), args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Logf("recorder %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out), err
}

// TestAuditorsAreAudited: what agents did is read by way of the service as far as
// the reader's role goes, each read is on record before, and the whole vault,
// with these records, is proven.
func TestAuditorsAreAudited(t *testing.T) {
	const canary = "canary-auditors-9d2e71"
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const big = 48 << 20
	large := r.Query(ctx, "agent", "SELECT /*verbatim:bytes=50331648*/ '"+canary+"'")
	if large.Status != 200 {
		t.Fatalf("status %d: %s", large.Status, large.Message())
	}
	r.Evidence(large.Receipt)
	id, err := record.ParseID(large.Receipt)
	if err != nil {
		t.Fatal(err)
	}

	a := r.Auditors(nil)
	auditor, viewer, stranger := a.Token("ada", "security"), a.Token("vera", "viewers"), a.Token("mallory", "everyone")
	agent := r.TokenOf("agent")
	find := func(token string, q access.SearchRequest) ([]*search.Exchange, error) {
		var found []*search.Exchange
		_, err := reader(t, a, token).Search(ctx, q, nil, func(x *search.Exchange) error {
			found = append(found, x)
			return nil
		})
		return found, err
	}
	payload := func(token, why string) (int, error) {
		var n counter
		_, err := reader(t, a, token).Payload(ctx, id, record.DirectionResponse, why, &n)
		return int(n), err
	}

	found, err := find(auditor, access.SearchRequest{SQL: canary, Why: "case 7"})
	if err != nil || len(found) != 1 || found[0].ID != id.String() || !strings.Contains(found[0].SQL, canary) {
		t.Errorf("the auditor finds %d exchanges, %v", len(found), err)
	}
	n, err := payload(auditor, "case 7")
	if err != nil || n < big || n != len(large.Body) {
		t.Errorf("the auditor reads %d bytes of %d, %v", n, len(large.Body), err)
	}
	if now, peak := harness.Memory(t, a.Pid()); !harness.Race && peak > 128<<20 {
		t.Errorf("the service takes %d MB, at its peak %d MB, for a payload of %d MB", now>>20, peak>>20, big>>20)
	}
	n, err = payload(auditor, "")
	refusedWith(t, "no reason", access.CodeWhy, err, n)

	found, err = find(viewer, access.SearchRequest{})
	if err != nil || len(found) != 1 || found[0].SQL != "" || found[0].SQLSHA256 == "" {
		t.Errorf("the viewer finds %+v, %v", found, err)
	}
	d, err := reader(t, a, viewer).Show(ctx, access.ShowRequest{Exchange: id.String()}, nil)
	if b, _ := json.Marshal(d); err != nil || bytes.Contains(b, []byte(canary)) || len(d.Records) == 0 {
		t.Errorf("the viewer is shown %.2000s, %v", b, err)
	}
	n, err = payload(viewer, "curious")
	refusedWith(t, "viewer", access.CodeRole, err, n)
	n, err = payload(stranger, "curious")
	refusedWith(t, "stranger", access.CodeNoRole, err, n)
	n, err = payload(agent, "curious") // a token for the gateway is worth nothing here
	refusedWith(t, "agent", "issuer_unknown", err, n)

	// The service dies in the middle of an answer: what it gave is on record.
	slow := &killing{kill: a.Kill}
	if _, err := reader(t, a, auditor).Payload(ctx, id, record.DirectionResponse, "case 8", slow); err == nil {
		t.Error("an answer that was cut off is taken for whole")
	}
	a.Start()
	if _, err := find(auditor, access.SearchRequest{}); err != nil {
		t.Error(err)
	}
	a.Stop() // ships all

	out, err := recorderRun(ctx, t, r, "accesses", "--format", "json")
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		search.Access
	}
	var all []entry
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var e entry
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	var got []string
	for _, e := range all {
		who := "nobody"
		if e.Who != nil {
			who = e.Who.Subject
		}
		result := "given"
		if !e.Allowed {
			result = e.Code
		}
		got = append(got, strings.Join([]string{who, e.What.Action, result, e.Why}, " "))
		if e.Allowed && !slices.Contains(e.Records, id.String()) {
			t.Errorf("%s does not name what was given out: %q", e.ID, e.Records)
		}
	}
	want := []string{
		"ada search given case 7", "ada payload given case 7", "ada payload why_required ", "vera search given ", "vera show given ",
		"vera payload role curious", "mallory payload no_role ", "nobody payload issuer_unknown ", "ada payload given case 8", "ada search given ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("on record are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(all) > 0 {
		if out, err := recorderRun(ctx, t, r, "show", all[0].ID); err != nil || !strings.Contains(out, "filter sql") {
			t.Errorf("an access record is shown as %s", out)
		}
	}
	if out, err := recorderRun(ctx, t, r, "verify", "--trust", r.Trust()); err != nil || !strings.Contains(out, "certified 3 of 3 epochs") || !strings.Contains(out, "auditors-1") {
		t.Errorf("verify says\n%s", out)
	}
	if report := r.Verify(); report.Accesses != int64(len(want)) {
		t.Errorf("verify counts %d accesses", report.Accesses)
	}
	for _, secret := range []string{auditor, viewer, stranger, agent, canary} {
		r.NoCanary(secret)
	}
}

// TestAuditorsReadNothingUnrecorded: the sink is away and the service's journal
// is full. Nothing is given out until reads can be recorded again.
func TestAuditorsReadNothingUnrecorded(t *testing.T) {
	r := harness.Start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	x := r.Query(ctx, "agent", harness.Synthetic(5000))
	r.Evidence(x.Receipt)
	id, err := record.ParseID(x.Receipt)
	if err != nil {
		t.Fatal(err)
	}
	a := r.Auditors(func(c map[string]any) { c["journal"].(map[string]any)["limit"] = "64KiB" })
	auditor := reader(t, a, a.Token("ada", "security"))
	r.Sink.Stop()
	var refused error
	for n := 0; n < 2000 && refused == nil; n++ {
		_, refused = auditor.Show(ctx, access.ShowRequest{Exchange: id.String(), Why: strings.Repeat("w", 900)}, nil)
	}
	refusedWith(t, "show", access.CodeNotRecorded, refused, 0)
	if a.Ready() {
		t.Error("the service says that it can record")
	}
	var n counter
	_, err = auditor.Payload(ctx, id, record.DirectionResponse, strings.Repeat("w", 1000), &n)
	refusedWith(t, "payload", access.CodeNotRecorded, err, int(n))
	given := 0
	_, err = auditor.Search(ctx, access.SearchRequest{Why: strings.Repeat("w", 1000)}, nil, func(*search.Exchange) error { given++; return nil })
	refusedWith(t, "search", access.CodeNotRecorded, err, given)
	// A refusal needs its record too.
	n = 0
	_, err = reader(t, a, a.Token("vera", "viewers")).Payload(ctx, id, record.DirectionResponse, strings.Repeat("w", 1000), &n)
	refusedWith(t, "viewer", access.CodeNotRecorded, err, int(n))

	if err := r.StartSink(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		n = 0
		if _, err = auditor.Payload(ctx, id, record.DirectionResponse, strings.Repeat("w", 1000), &n); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if int(n) != len(x.Body) {
		t.Errorf("%d bytes of %d", n, len(x.Body))
	}
	a.Stop()
	r.Verify()
}

// counter counts bytes.
type counter int

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// killing ends the service at its first byte.
type killing struct {
	kill func()
	done bool
}

func (k *killing) Write(b []byte) (int, error) {
	if !k.done {
		k.done = true
		k.kill()
	}
	return io.Discard.Write(b)
}
