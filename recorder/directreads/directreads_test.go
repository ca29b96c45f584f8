package directreads

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/reconcile"
)

const (
	theService  = "auditors@acme-audit.iam.gserviceaccount.com"
	theSink     = "sink@acme-audit.iam.gserviceaccount.com"
	theVerifier = "verifier@acme-audit.iam.gserviceaccount.com"
	theKey      = "projects/acme-audit/locations/europe/keyRings/verbatim/cryptoKeys/tenant"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func sampleConfig(t testing.TB) Config {
	t.Helper()
	b, err := os.ReadFile("testdata/sample.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Log: reconcile.Lines(bytes.NewReader(b)), Accesses: []time.Time{at("2026-03-14T10:00:03Z")}, Until: at("2026-03-15T00:00:00Z"),
		Buckets: []string{"acme-evidence", "acme-keys"}, Keys: []string{theKey}, Secrets: []string{"projects/410/secrets/verbatim-tenant"},
		Service: []string{theService}, Sinks: []string{theSink}, Verifiers: []string{theVerifier},
	}
}

func run1(t testing.TB, c Config) *Report {
	t.Helper()
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// said is a report's findings, in short.
func said(r *Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s %s by=%s %s %s x%d line %d\n", f.Code, f.Account, f.By, f.Caller, f.Where, f.Count, f.Line)
	}
	return b.String()
}

// TestSample: each read of the sample that nobody may make is named, and no
// other.
func TestSample(t *testing.T) {
	r := run1(t, sampleConfig(t))
	want := `keyset_by_other mallory@acme.example by= 203.0.113.7 projects/410/secrets/verbatim-tenant x1 line 12
decrypt_by_other sink@acme-audit.iam.gserviceaccount.com by= 203.0.113.7 ` + theKey + ` x1 line 14
read_by_other eve@acme.example by= 198.51.100.9 gs://acme-evidence x1 line 9
read_by_other eve@acme.example by= 198.51.100.9 gs://acme-keys x1 line 10
read_by_other  by= 192.0.2.1 gs://acme-evidence x1 line 16
read_unrecorded auditors@acme-audit.iam.gserviceaccount.com by=mallory@acme.example 198.51.100.77 gs://acme-evidence x1 line 13
not_understood  by=   x1 line 18
list_by_other eve@acme.example by= 198.51.100.9 gs://acme-evidence x1 line 8
refused eve@acme.example by= 198.51.100.9 ` + theKey + ` x1 line 11
`
	if got := said(r); got != want {
		t.Errorf("found\n%s\nwant\n%s", got, want)
	}
	if r.Clean || r.Entries != 18 || r.Twice != 1 || r.Outside != 1 || r.Elsewhere != 1 || r.Events["storage.objects.create"] != 1 || r.Accesses != 1 || r.Reads["eve@acme.example"] != 4 {
		t.Errorf("%+v", r)
	}
	c := sampleConfig(t)
	c.Limit = 2
	if r := run1(t, c); len(r.Findings) != 2 || r.More != 7 || r.Counts[ReadByOther] != 3 {
		t.Errorf("limited: %+v", r)
	}
}

// entry is a read of an object.
func entry(account, method, name, when string, more string) string {
	service := "storage.googleapis.com"
	if strings.Contains(method, "crypt") {
		service = "cloudkms.googleapis.com"
	}
	return fmt.Sprintf(`{"protoPayload":{"serviceName":%q,"methodName":%q,"resourceName":%q,"authenticationInfo":{"principalEmail":%q}%s},"timestamp":%q}`, service, method, name, account, more, when) + "\n"
}

func TestCases(t *testing.T) {
	const object, get = "projects/_/buckets/b/objects/segments/x", "storage.objects.get"
	for name, test := range map[string]struct {
		log      string
		accesses []string
		want     string // codes
	}{
		"nothing at all":              {},
		"on record, before":           {log: entry("Serve@x", get, object, "2026-03-14T10:00:00Z", ""), accesses: []string{"2026-03-14T10:05:00Z"}},
		"on record, after":            {log: entry("serve@x", get, object, "2026-03-14T10:05:00Z", ""), accesses: []string{"2026-03-14T10:00:00Z"}},
		"too far after":               {log: entry("serve@x", get, object, "2026-03-14T10:05:01Z", ""), accesses: []string{"2026-03-14T10:00:00Z"}, want: "read_unrecorded"},
		"no record":                   {log: entry("serve@x", get, object, "2026-03-14T10:00:00Z", ""), want: "read_unrecorded"},
		"a list alone":                {log: entry("serve@x", "storage.objects.list", "projects/_/buckets/b", "2026-03-14T10:00:00Z", "")},
		"decrypts on record":          {log: entry("serve@x", "Decrypt", "projects/p/k", "2026-03-14T10:00:00Z", ""), accesses: []string{"2026-03-14T10:00:00Z"}},
		"decrypts unrecorded":         {log: entry("serve@x", "Decrypt", "projects/p/k/cryptoKeyVersions/7", "2026-03-14T10:00:00Z", ""), want: "decrypt_unrecorded"},
		"decrypts at its start":       {log: entry("serve@x", "Decrypt", "projects/p/k", "2026-03-14T10:00:00Z", ""), accesses: []string{"start 2026-03-14T10:00:03Z"}},
		"reads at its start":          {log: entry("serve@x", get, object, "2026-03-14T10:00:00Z", ""), accesses: []string{"start 2026-03-14T10:00:03Z"}, want: "read_unrecorded"},
		"encrypts":                    {log: entry("gw@x", "Encrypt", "projects/p/k", "2026-03-14T10:00:00Z", "")},
		"another's key":               {log: entry("eve@x", "Decrypt", "projects/p/k2", "2026-03-14T10:00:00Z", "")},
		"a verifier decrypts":         {log: entry("v@x", "Decrypt", "projects/p/k", "2026-03-14T10:00:00Z", ""), want: "decrypt_by_other"},
		"a verifier reads":            {log: entry("v@x", get, object, "2026-03-14T10:00:00Z", "")},
		"a name that looks alike":     {log: entry("serve@x.evil", get, object, "2026-03-14T10:00:00Z", ""), want: "read_by_other"},
		"a bucket that begins alike":  {log: entry("eve@x", get, "projects/_/buckets/b2/objects/x", "2026-03-14T10:00:00Z", "")},
		"refused":                     {log: entry("eve@x", get, object, "2026-03-14T10:00:00Z", `,"status":{"code":7}`), want: "refused"},
		"the service was refused":     {log: entry("serve@x", get, object, "2026-03-14T10:00:00Z", `,"status":{"code":7}`), accesses: []string{"2026-03-14T10:00:00Z"}, want: "log_silent"},
		"records, and no read":        {log: entry("v@x", get, object, "2026-03-14T10:00:00Z", ""), accesses: []string{"2026-03-14T10:00:00Z"}, want: "log_silent"},
		"records of another time":     {accesses: []string{"2026-03-15T10:00:00Z"}},
		"not JSON":                    {log: "{\n", want: "not_understood"},
		"a number":                    {log: "7\n", want: "not_understood"},
		"no time":                     {log: `{"protoPayload":{"serviceName":"storage.googleapis.com","methodName":"storage.objects.get"}}` + "\n", want: "not_understood"},
		"the name is said by a field": {log: entry("eve@x", get, object, "2026-03-14T10:00:00Z", `,"request":{"principalEmail":"serve@x"},"requestMetadata":{"callerSuppliedUserAgent":"serve@x"}`), want: "read_by_other"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{
				Log: reconcile.Lines(strings.NewReader(test.log)), Since: at("2026-03-14T00:00:00Z"), Until: at("2026-03-15T00:00:00Z"),
				Buckets: []string{"b"}, Keys: []string{"projects/p/k"}, Service: []string{"serve@x"}, Verifiers: []string{"v@x"},
			}
			for _, s := range test.accesses {
				if start, ok := strings.CutPrefix(s, "start "); ok {
					c.Starts = append(c.Starts, at(start))
					continue
				}
				c.Accesses = append(c.Accesses, at(s))
			}
			r := run1(t, c)
			var codes []string
			for _, f := range r.Findings {
				codes = append(codes, string(f.Code))
			}
			if got := strings.Join(codes, " "); got != test.want || r.Clean != (test.want == "") {
				t.Errorf("found %q, want %q: %+v", got, test.want, r)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile("testdata/sample.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if err == nil && (e.Time.IsZero() || e.Method == "" || !json.Valid(b)) {
			t.Errorf("%q was read as %+v", b, e)
		}
	})
}
