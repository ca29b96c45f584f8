package place

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs/gcstest"
)

func TestParse(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "vault.yaml")
	text := "classes:\n  standard: {place: \"gs://acme-evidence/a\", retention: 400d}\n  long: {place: long, retention: 61368h}\nkeys: keys\nindex: gs://acme-index\nkms_key: k\nlocation: EU\nproject: p\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Classes) != 2 || s.Classes[0] != (Class{"long", filepath.Join(dir, "long"), 2557 * 24 * time.Hour}) ||
		s.Classes[1] != (Class{"standard", "gs://acme-evidence/a", 400 * 24 * time.Hour}) ||
		s.Keys != filepath.Join(dir, "keys") || s.Index != "gs://acme-index" || s.KMSKey != "k" || s.Location != "EU" || s.Project != "p" {
		t.Errorf("read %+v", s)
	}
	if s, err := Parse("b:12h=gs://bbb/x, a:2d=/srv/a,keys=gs://kkk,index=/srv/i"); err != nil || len(s.Classes) != 2 || s.Classes[0].Name != "a" || s.Keys != "gs://kkk" || s.Index != "/srv/i" || s.Folder() != "" {
		t.Errorf("read %+v, %v", s, err)
	}
	for _, at := range []string{"/var/lib/vault", "vault", "a=b/c", "./x=y", dir} {
		if at == "a=b/c" {
			continue
		}
		if s, err := Parse(at); err != nil || s.Folder() != at {
			t.Errorf("%s: %+v, %v", at, s, err)
		}
	}
	if s, err := Parse("gs://bucket/x"); err != nil || s.All != "gs://bucket/x" || s.Folder() != "" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "no place",
		"s3://x":                      "no place for a vault",
		"gs://XYZ":                    "lower-case",
		"a:1d=gs://aaa":               "no place for keys",
		"a=gs://aaa,keys=gs://kkk":    "no retention",
		"keys=gs://kkk":               "no retention class",
		"a:1d=gs://aaa,keys=gs://aaa": "without retention",
		"a:1d=gs://aaa,b:2d=gs://aaa/b,keys=gs://kkk": "its own",
		"a:1d=gs://aaa,a:2d=gs://bbb,keys=gs://kkk":   "named twice",
		"a:1d=gs://aaa,keys=gs://kkk,keys=gs://lll":   "two places",
		"a:0d=gs://aaa,keys=gs://kkk":                 "retention",
		"a:1.5s=gs://aaa,keys=gs://kkk":               "retention",
		"a:99999999d=gs://aaa,keys=gs://kkk":          "retention",
		"a:1d=gs://aaa,nothing":                       "want CLASS",
		"a b:1d=gs://aaa,keys=gs://kkk":               "class",
		"index:1d=gs://aaa,keys=gs://kkk":             "cannot be the name",
		"a:1d=ftp://x,keys=gs://kkk":                  "no place for a vault",
		"none.yaml":                                   "no such file",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"classes: [": "",
		"clases: {}": "unknown field",
		"classes: {a: {place: x, retention: 1d, more: 1}}\nkeys: k": "unknown field",
		strings.Repeat("#", 70<<10):                                 "longer",
	} {
		file := filepath.Join(t.TempDir(), "v.yml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a:1d=gs://aaa,keys=gs://kkk")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err == nil && s.All == "" && (len(s.Classes) == 0 || s.Keys == "") {
			t.Fatalf("%q: %+v", text, s)
		}
	})
}

// A vault of a bucket, a folder and a key store is one vault.
func TestOpen(t *testing.T) {
	server := gcstest.New(t)
	server.Bucket(t, "evidence", time.Hour, true)
	t.Setenv("STORAGE_EMULATOR_HOST", server.URL)
	dir := t.TempDir()
	spec, err := Parse("standard:1h=gs://evidence/v,short:30m=" + dir + "/short,keys=" + dir + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(t.Context(), Config{Spec: spec, Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if v.Longest() != "standard" || v.Retention() != time.Hour {
		t.Errorf("longest %s, %s", v.Longest(), v.Retention())
	}
	e, err := record.NewEpoch(time.Now(), strings.NewReader(strings.Repeat("x", 64)))
	if err != nil {
		t.Fatal(err)
	}
	id := vault.Segment{Day: "2026-03-01", Gateway: "gw", Epoch: e, First: 1, Last: 1, Class: "standard"}
	in := func(class string) string {
		id.Class, id.Part = class, class != "standard"
		n, err := vault.SegmentName(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Create(t.Context(), n, strings.NewReader(class)); err != nil {
			t.Fatal(err)
		}
		return n
	}
	bucket, folder := in("standard"), in("short")
	if err := v.Create(t.Context(), "holds/x.json", strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if got := server.Objects(t, "evidence"); len(got) != 1 || got[0] != "v/"+bucket {
		t.Errorf("the bucket holds %v", got)
	}
	for _, f := range []string{"short/" + folder, "keys/holds/x.json"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	if !v.Bucket(bucket) || v.Bucket(folder) {
		t.Error("buckets and folders are mixed up")
	}
	if err := v.Expire(t.Context(), bucket); !errors.Is(err, ErrLifecycle) {
		t.Errorf("expire in a bucket: %v", err)
	}
	if err := v.Expire(t.Context(), folder); err != nil {
		t.Error(err)
	}
	// A hold outlasts the retention; in a folder there is nothing to set.
	c := server.Client(t, "")
	if err := v.Hold(t.Context(), bucket, true); err != nil {
		t.Fatal(err)
	}
	if err := v.Hold(t.Context(), folder, true); err != nil {
		t.Error(err)
	}
	server.Advance(2 * time.Hour)
	if err := c.Bucket("evidence").Object("v/" + bucket).Delete(t.Context()); err == nil {
		t.Error("deleted under a hold")
	}
	if err := v.Hold(t.Context(), bucket, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Bucket("evidence").Object("v/" + bucket).Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), Config{Spec: Spec{All: "gs://nowhere"}}); err == nil || !strings.Contains(err.Error(), "vault init") {
		t.Errorf("no bucket: %v", err)
	}
}
