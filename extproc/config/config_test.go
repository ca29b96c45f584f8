package config

import (
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each file in testdata/bad is refused with exactly the errors beside it.
func TestBadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			_, err := Load(file)
			var all *Errors
			if !errors.As(err, &all) {
				t.Fatalf("Load: %v", err)
			}
			for _, e := range all.List {
				if e.File != file || e.Line < 1 || e.Text == "" || !strings.ContainsAny(e.Text, ":?") {
					t.Errorf("not of the form file:line: what: what to do: %v", e)
				}
			}
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

const minimal = `
gateway: gw-1
listen: {socket: extproc.sock}
sealing: {tenant: tenant.pub.json}
session_key: session.key
transport: {local: /run/verbatim/sink.sock}
issuers: [{name: corp, url: https://idp.example, audiences: [verbatim]}]
connections: [{name: a, projects: [p1, p2], credential: {kind: adc}}]
`

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMinimal(t *testing.T) {
	dir := folder(t, map[string]string{"extproc.yaml": minimal, "tenant.pub.json": "{}", "session.key": strings.Repeat("\x01", 32)})
	c, err := Load(filepath.Join(dir, "extproc.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Sealing.Tenant != filepath.Join(dir, "tenant.pub.json") || c.Listen.Socket != filepath.Join(dir, "extproc.sock") || c.Transport.Local != "/run/verbatim/sink.sock" {
		t.Errorf("paths %q, %q, %q", c.Sealing.Tenant, c.Listen.Socket, c.Transport.Local)
	}
	a := c.Connections[0]
	if a.Recording != "full" || a.Retention != "standard" || a.Upstream.REST != "https://bigquery.googleapis.com" {
		t.Errorf("connection %+v", a)
	}
	if i := c.Issuers[0]; i.Profile != "generic" || i.Leeway != 30*time.Second || len(i.Algorithms) != 2 {
		t.Errorf("issuer %+v", i)
	}
	d := Default()
	if c.Limits != d.Limits || c.Journal != d.Journal || c.Policy != d.Policy || c.Transport.Durability != d.Transport.Durability || !reflect.DeepEqual(c.Retention, d.Retention) {
		t.Errorf("defaults are not those of Default: %+v", c)
	}
	if c.Connection("p2") != &c.Connections[0] || c.Connection("p3") != nil {
		t.Error("Connection does not find p2, or finds p3")
	}
	if key, err := c.SessionSecret(); err != nil || len(key) != 32 {
		t.Errorf("session key: %d bytes, %v", len(key), err)
	}
	if got := c.Files(); len(got) != 3 || got[0] != c.Path {
		t.Errorf("files %q", got)
	}
	if n, a := c.Listen.Network(); n != "unix" || a != c.Listen.Socket {
		t.Errorf("network %s %s", n, a)
	}
}

// A pubsub of its own defaults.
func TestPubSub(t *testing.T) {
	text := strings.Replace(minimal, "transport: {local: /run/verbatim/sink.sock}",
		"transport: {durability: published, pubsub: {project: evidence, topic: records, subscription: sink, ack_topic: acks, ack_subscription: acks-gw-1}}", 1)
	dir := folder(t, map[string]string{"extproc.yaml": text, "tenant.pub.json": "{}", "session.key": strings.Repeat("\x01", 32)})
	c, err := Load(filepath.Join(dir, "extproc.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := PubSub{Project: "evidence", Topic: "records", Subscription: "sink", AckTopic: "acks", AckSubscription: "acks-gw-1", Shards: 1}
	if c.Transport.PubSub == nil || *c.Transport.PubSub != want || c.Transport.Local != "" || c.Transport.Durability != DurabilityPublished {
		t.Errorf("transport %+v, %+v", c.Transport, c.Transport.PubSub)
	}
}

func TestRelativeToFileNotToWorkingDirectory(t *testing.T) {
	dir := folder(t, map[string]string{"sub/extproc.yaml": minimal, "sub/tenant.pub.json": "{}", "sub/session.key": strings.Repeat("\x01", 32)})
	t.Chdir(dir)
	if _, err := Load("sub/extproc.yaml"); err != nil {
		t.Error(err)
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load("testdata/absent.yaml")
	const want = "testdata/absent.yaml:1: cannot be opened (no such file or directory): give the path of the configuration file"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	var one Error
	if !errors.As(err, &one) || one.Line != 1 {
		t.Errorf("errors.As finds no Error in %v", err)
	}
}

func TestSessionSecret(t *testing.T) {
	hex := strings.Repeat("0f", 32)
	raw := strings.Repeat("\xff", 40)
	for name, tc := range map[string]struct {
		text string
		want int
	}{"hex": {hex, 32}, "hex, new line": {hex + "\n", 32}, "raw": {raw, 40}, "raw with space at the end": {raw + " ", 41},
		"short hex": {strings.Repeat("0f", 16), 0}, "short": {"abc", 0}, "long": {strings.Repeat("\xff", maxSecret+1), 0}, "empty": {"", 0}} {
		dir := folder(t, map[string]string{"k": tc.text})
		got, err := readSecret(filepath.Join(dir, "k"))
		if len(got) != tc.want || (err == nil) != (tc.want > 0) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, tc.want)
		}
		if err != nil && len(tc.text) > 3 && strings.Contains(err.Error(), tc.text[:4]) {
			t.Errorf("%s: the error holds the key: %v", name, err)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1": 1, "65536": 65536, "256KiB": 256 << 10, "10GiB": 10 << 30, "1TiB": 1 << 40, "5 MiB": 5 << 20, "1KB": 1000, "2MB": 2e6, "7B": 7} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "+1", "1.5MiB", "1kib", "9223372036854775808", "8388608TiB", "1 0", "0x10", "1_000", " 1", "1MiBMiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
	for s, want := range map[Size]string{0: "0", 1: "1", 1024: "1KiB", 1536: "1536", 640 << 10: "640KiB", 10 << 30: "10GiB"} {
		if got := s.String(); got != want {
			t.Errorf("%d is written %s, want %s", int64(s), got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{"30s": 30 * time.Second, "400d": 400 * 24 * time.Hour, "1h30m": 90 * time.Minute, "50ms": 50 * time.Millisecond, "0s": 0, "0d": 0} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "30", "-1s", "1.5d", "1d12h", "106752d", "s", "d", "1 s"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is taken for %s", text, got)
		}
	}
}

func TestMemory(t *testing.T) {
	l := Limits{Exchanges: 10, Window: 1 << 20, Share: 2 << 20, Budget: 100 << 20}
	if got, want := l.Memory(), Size(10*3<<20)+100<<20+BaseMemory; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	l.Exchanges, l.Window = math.MaxInt32, 1<<40
	if got := l.Memory(); got != math.MaxInt64 {
		t.Errorf("overflow gives %d", got)
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"exchanges", "window", "share", "request_body"}
	for key, want := range map[string]string{"exchangs": "exchanges", "widnow": "window", "requestBody": "request_body", "shares": "share", "Window": "window"} {
		if got := suggest(nearest(key, names), names); got != `did you mean "`+want+`"?` {
			t.Errorf("%s: %s", key, got)
		}
	}
	for _, key := range []string{"colour", "x", strings.Repeat("window", 100)} {
		if got := suggest(nearest(key, names), names); !strings.HasPrefix(got, "use one of exchanges, window") {
			t.Errorf("%s: %s", short(key), got)
		}
	}
}

// The example loads as it stands, once the files that it names are there.
func TestExampleLoads(t *testing.T) {
	data, err := os.ReadFile("../example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	stubs := map[string]string{"extproc.yaml": string(data)}
	for _, m := range regexp.MustCompile(`(?m)[ :{\[]([a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:pem|json|key|yaml|token))\b`).FindAllStringSubmatch(string(data), -1) {
		stubs[m[1]] = "stub"
	}
	stubs["extproc.yaml"], stubs["session.key"] = string(data), strings.Repeat("\x01", 32)
	stubs["policy/grants.rego"] = "package x"
	dir := folder(t, stubs)
	c, err := Load(filepath.Join(dir, "extproc.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if formula := "+ budget + " + BaseMemory.String(); !strings.Contains(string(data), formula) {
		t.Errorf("the example does not say %q", formula)
	}
	d := Default()
	if c.Limits != d.Limits || c.Journal != d.Journal || c.Policy.Timeout != d.Policy.Timeout || c.Transport.Durability != d.Transport.Durability {
		t.Errorf("the example shows other defaults than there are:\n%+v\n%+v", c, d)
	}
}

// alternative is a line of the example that is commented out because it excludes
// another: "#key: value", with no space after the mark. Prose has one.
var alternative = regexp.MustCompile(`(?m)^( *)#(\S)`)

func TestExampleHasEveryKey(t *testing.T) {
	data, err := os.ReadFile("../example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := newDecoder("example.yaml")
	top := d.tree(alternative.ReplaceAll(data, []byte("$1$2")))
	if top == nil {
		t.Fatal(d.err())
	}
	d.value(top, reflect.ValueOf(Default()).Elem(), "", "")
	if err := d.err(); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for path := range d.lines {
		have[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "[]")] = true
	}
	var walk func(v reflect.Type, at string, depth int)
	walk = func(v reflect.Type, at string, depth int) {
		switch v.Kind() {
		case reflect.Pointer:
			walk(v.Elem(), at, depth)
		case reflect.Slice:
			walk(v.Elem(), at+"[]", depth)
		case reflect.Struct:
			for i := range v.NumField() {
				f := v.Field(i)
				name := f.Tag.Get("yaml")
				if name == "" {
					t.Errorf("field %s of %s has no yaml tag", f.Name, v)
				}
				if name == "-" {
					continue
				}
				path := strings.TrimPrefix(at+"."+name, ".")
				if !have[path] {
					t.Errorf("the example lacks %s", path)
				}
				if name != "source" { // a credential within a credential: its keys are shown above it
					walk(f.Type, path, depth+1)
				}
			}
		}
	}
	walk(reflect.TypeFor[Config](), "", 0)
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	for _, file := range append(files, "../example.yaml") {
		if b, err := os.ReadFile(file); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte(minimal))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x/fuzz.yaml", data)
		if (c == nil) == (err == nil) {
			t.Fatalf("configuration %v, error %v", c, err)
		}
		var all *Errors
		if err != nil && (!errors.As(err, &all) || len(all.List) == 0 || len(all.List) > maxErrors) {
			t.Fatalf("not Errors, or none or too many: %v", err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	f.Add("10GiB")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSize(text)
		if err != nil {
			return
		}
		if again, err := ParseSize(s.String()); s < 0 || err != nil || again != s {
			t.Fatalf("%q is %d, written %s, read %d, %v", text, int64(s), s, int64(again), err)
		}
	})
}
