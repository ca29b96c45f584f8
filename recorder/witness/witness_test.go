package witness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var testTime = time.Unix(1772366400, 0).UTC()

type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	logKey     = must(NewKey("log.example/a", constant(1)))
	otherKey   = must(NewKey("log.example/a", constant(2)))
	witnessKey = must(NewKey("witness.example/w", constant(3)))
)

// tree is a log in memory; entries differ from a seed on.
type tree struct {
	hashes []tlog.Hash
	roots  []tlog.Hash
}

func newTree(n, forkAt int) *tree {
	t := &tree{roots: []tlog.Hash{EmptyRoot}}
	for i := range n {
		e := fmt.Sprint("entry ", i)
		if i >= forkAt {
			e = fmt.Sprint("other ", i)
		}
		t.hashes = append(t.hashes, must(tlog.StoredHashes(int64(i), []byte(e), t))...)
		t.roots = append(t.roots, must(tlog.TreeHash(int64(i)+1, t)))
	}
	return t
}

func (t *tree) ReadHashes(x []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(x))
	for i := range x {
		out[i] = t.hashes[x[i]]
	}
	return out, nil
}

func (t *tree) at(n int, extension ...string) Checkpoint {
	return Checkpoint{Origin: logKey.Name(), Tree: tlog.Tree{N: int64(n), Hash: t.roots[n]}}
}

func sign(c Checkpoint, keys ...*Key) []byte {
	n := &note.Note{Text: c.Text()}
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k.Signer())
	}
	return must(note.Sign(n, signers...))
}

func (t *tree) prove(old, new int) tlog.TreeProof {
	if old == 0 || old == new {
		return nil
	}
	return must(tlog.ProveTree(int64(new), int64(old), t))
}

func (t *tree) request(old, new int) []byte {
	return Request{Old: int64(old), Proof: t.prove(old, new), Checkpoint: sign(t.at(new), logKey)}.Marshal()
}

func newState(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	if err := CreateState(path, witnessKey); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string, more ...func(*Config)) *Witness {
	t.Helper()
	c := Config{Key: witnessKey, Logs: []note.Verifier{must(note.NewVerifier(logKey.LogKey()))}, State: path, Now: func() time.Time { return testTime }}
	for _, f := range more {
		f(&c)
	}
	w, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func post(w http.Handler, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRecorder()
	w.ServeHTTP(r, httptest.NewRequest(http.MethodPost, "/add-checkpoint", bytes.NewReader(body)))
	return r
}

// The protocol, answer by answer. Each case begins where the log has size 7.
func TestProtocol(t *testing.T) {
	a, fork := newTree(20, 99), newTree(20, 3)
	for _, tc := range []struct {
		name   string
		body   []byte
		status int
		want   string // begins the answer
	}{
		{"grows", a.request(7, 12), 200, "— witness.example/w "},
		{"the same again", a.request(7, 7), 200, "— witness.example/w "},
		{"from the start", a.request(0, 12), 409, "7\n"},
		{"shrinks", a.request(5, 5), 409, "7\n"},
		{"skips", a.request(8, 12), 409, "7\n"},
		{"fork, same size", fork.request(7, 7), 409, "fork of log.example/a at size 7"},
		{"fork, larger", fork.request(7, 12), 422, "the checkpoint of size 12 does not go on from size 7"},
		{"no proof", Request{Old: 7, Checkpoint: sign(a.at(12), logKey)}.Marshal(), 422, "the checkpoint of size 12"},
		{"a proof for the same size", Request{Old: 7, Proof: a.prove(3, 7), Checkpoint: sign(a.at(7), logKey)}.Marshal(), 422, "the checkpoint"},
		{"another proof", Request{Old: 7, Proof: a.prove(6, 12), Checkpoint: sign(a.at(12), logKey)}.Marshal(), 422, "the checkpoint"},
		{"old above new", Request{Old: 13, Checkpoint: sign(a.at(12), logKey)}.Marshal(), 400, "the old size 13"},
		{"unknown log", Request{Old: 7, Checkpoint: sign(Checkpoint{Origin: "other", Tree: a.at(7).Tree}, must(NewKey("other", constant(1))))}.Marshal(), 404, `the log "other"`},
		{"another key", Request{Old: 7, Checkpoint: sign(a.at(7), otherKey)}.Marshal(), 403, "the checkpoint is not signed"},
		{"signature changed", bytes.Replace(a.request(7, 7), []byte("\n7\n"), []byte("\n8\n"), 1), 403, "the checkpoint is not signed"},
		{"a cosignature is none of the log's", Request{Old: 7, Checkpoint: must(note.Sign(&note.Note{Text: a.at(7).Text()}, logKey.Cosigner(testTime)))}.Marshal(), 403, ""},
		{"more signatures", Request{Old: 7, Checkpoint: sign(a.at(7), otherKey, logKey)}.Marshal(), 200, "— witness.example/w "},
		{"extension lines", Request{Old: 7, Checkpoint: must(note.Sign(&note.Note{Text: a.at(7).Text() + "more\n"}, logKey.Signer()))}.Marshal(), 200, "— witness.example/w "},
		{"an empty extension line", Request{Old: 7, Checkpoint: must(note.Sign(&note.Note{Text: a.at(7).Text() + "\nmore\n"}, logKey.Signer()))}.Marshal(), 400, ""},
		{"no size", Request{Old: 7, Checkpoint: must(note.Sign(&note.Note{Text: "log.example/a\nx\n" + a.roots[7].String() + "\n"}, logKey.Signer()))}.Marshal(), 400, "checkpoint: size"},
		{"zeroes before the size", Request{Old: 7, Checkpoint: must(note.Sign(&note.Note{Text: "log.example/a\n07\n" + a.roots[7].String() + "\n"}, logKey.Signer()))}.Marshal(), 400, "checkpoint: size"},
		{"no root", Request{Old: 7, Checkpoint: must(note.Sign(&note.Note{Text: "log.example/a\n7\nAAAA\n"}, logKey.Signer()))}.Marshal(), 400, "checkpoint: root"},
		{"empty", nil, 400, "request"},
		{"no old size", bytes.TrimPrefix(a.request(7, 7), []byte("old ")), 400, "request"},
		{"zeroes before the old size", bytes.Replace(a.request(7, 7), []byte("old 7"), []byte("old 07"), 1), 400, "request"},
		{"negative", bytes.Replace(a.request(7, 7), []byte("old 7"), []byte("old -7"), 1), 400, "request"},
		{"a hash that is none", bytes.Replace(a.request(7, 12), []byte("old 7\n"), []byte("old 7\nAAAA\n"), 1), 400, "request"},
		{"64 hashes", bytes.Replace(a.request(7, 12), []byte("old 7\n"), []byte("old 7\n"+strings.Repeat(EmptyRoot.String()+"\n", 64)), 1), 400, "request"},
		{"too long", append(a.request(7, 12), bytes.Repeat([]byte("x"), maxRequest)...), 413, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newState(t)
			w := open(t, path)
			if r := post(w, a.request(0, 7)); r.Code != 200 {
				t.Fatalf("%d %s", r.Code, r.Body)
			}
			before := must(os.ReadFile(path))
			r := post(w, tc.body)
			if r.Code != tc.status || !strings.HasPrefix(r.Body.String(), tc.want) {
				t.Fatalf("got %d %q, want %d %q", r.Code, r.Body, tc.status, tc.want)
			}
			if got := r.Header().Get("Content-Type") == SizeType; got != (tc.status == 409 && !strings.HasPrefix(tc.want, "fork")) {
				t.Errorf("content type %s", r.Header().Get("Content-Type"))
			}
			if r.Code != 200 {
				if !bytes.Equal(before, must(os.ReadFile(path))) {
					t.Error("a refusal changed the state")
				}
				return
			}
			// The cosignature verifies, over what was sent.
			req := must(ParseRequest(tc.body))
			text, _, _ := bytes.Cut(req.Checkpoint, []byte("\n\n— "))
			v := must(NewVerifier(witnessKey.WitnessKey()))
			n, err := note.Open([]byte(string(text)+"\n\n"+r.Body.String()), note.VerifierList(v))
			if err != nil {
				t.Fatal(err)
			}
			if at, ok := v.Time(n.Sigs[0]); !ok || !at.Equal(testTime) {
				t.Errorf("cosigned at %s", at)
			}
		})
	}
}

// The bytes that are signed are those of the specification.
func TestCosignatureFormat(t *testing.T) {
	text := "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	sig := must(witnessKey.Cosigner(time.Unix(1679315147, 0)).Sign([]byte(text)))
	if got := fmt.Sprintf("%x", sig[:8]); got != "00000000641850cb" {
		t.Errorf("time %s", got)
	}
	want := must(witnessKey.Signer().Sign([]byte("cosignature/v1\ntime 1679315147\n" + text)))
	if !bytes.Equal(sig[8:], want) {
		t.Error("the signature is over something else")
	}
	id := sha256.Sum256(append([]byte("witness.example/w\n\x04"), witnessKey.public()...))
	if got := witnessKey.Cosigner(testTime).KeyHash(); fmt.Sprintf("%08x", got) != fmt.Sprintf("%x", id[:4]) {
		t.Errorf("key id %08x", got)
	}
	// The log's keys are those of package note.
	if v := must(note.NewVerifier(logKey.LogKey())); v.Name() != logKey.Name() || v.KeyHash() != logKey.Signer().KeyHash() {
		t.Error("another key")
	}
	if s := must(note.NewSigner(logKey.Private())); s.KeyHash() != logKey.Signer().KeyHash() {
		t.Error("another key")
	}
}

func TestKeys(t *testing.T) {
	k := must(ParseKey(logKey.Private() + "\n"))
	if k.LogKey() != logKey.LogKey() || k.WitnessKey() != logKey.WitnessKey() {
		t.Error("not the same key again")
	}
	if _, err := NewVerifier(logKey.LogKey()); err == nil {
		t.Error("the key of a log is taken for a witness's")
	}
	if _, err := NewTimes(logKey.WitnessKey()); err == nil {
		t.Error("the key of a witness is taken for a log's")
	}
	secret := logKey.Private()
	for _, bad := range []string{"", "x", secret[:len(secret)-4], strings.Replace(secret, "log.example/a", "log.example/b", 1), logKey.LogKey(), secret + "+A"} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is taken for a key", bad)
		} else if len(bad) > 20 && strings.Contains(err.Error(), secret[len(secret)-20:len(secret)-5]) {
			t.Errorf("the error tells the key: %v", err)
		}
	}
	for _, name := range []string{"", "a b", "a+b", strings.Repeat("x", 256)} {
		if _, err := NewKey(name, nil); err == nil {
			t.Errorf("name %q", name)
		}
	}
	v := must(NewVerifier(witnessKey.WitnessKey()))
	text := []byte("x\n")
	sig := must(witnessKey.Cosigner(testTime).Sign(text))
	for i := range sig {
		bad := bytes.Clone(sig)
		bad[i] ^= 1
		if v.Verify(text, bad) {
			t.Fatalf("byte %d can be changed", i)
		}
	}
	if !v.Verify(text, sig) || v.Verify(text, sig[1:]) || v.Verify([]byte("y\n"), sig) {
		t.Error("verifies what it must not, or not what it must")
	}
}

// A witness that starts again knows what it signed, and keeps the proof of a
// fork.
func TestState(t *testing.T) {
	a, fork := newTree(20, 99), newTree(20, 3)
	path := newState(t)
	w := open(t, path)
	if r := post(w, a.request(0, 7)); r.Code != 200 {
		t.Fatal(r.Body)
	}
	if _, err := Open(w.c); err == nil || !strings.Contains(err.Error(), "in use by another witness") {
		t.Fatalf("a second witness: %v", err)
	}
	_ = w.Close()
	w = open(t, path, func(c *Config) { c.Now = func() time.Time { return testTime.Add(-time.Hour) } })
	if r := post(w, fork.request(7, 7)); r.Code != 409 {
		t.Fatal(r.Code)
	}
	both := string(must(os.ReadFile(path + ".fork-7")))
	for _, root := range []tlog.Hash{a.roots[7], fork.roots[7]} {
		if !strings.Contains(both, root.String()) {
			t.Errorf("the proof lacks the root %s", root)
		}
	}
	r := post(w, a.request(7, 9))
	v := must(NewVerifier(witnessKey.WitnessKey()))
	n := must(note.Open([]byte(a.at(9).Text()+"\n"+r.Body.String()), note.VerifierList(v)))
	if at, _ := v.Time(n.Sigs[0]); !at.Equal(testTime) {
		t.Errorf("a clock that was set back made a time of %s", at)
	}
	get := httptest.NewRecorder()
	w.ServeHTTP(get, httptest.NewRequest(http.MethodGet, "/checkpoint", nil))
	c, n, err := OpenCheckpoint(get.Body.Bytes(), must(note.NewVerifier(logKey.LogKey())), v)
	if err != nil || c.N != 9 || len(n.Sigs) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := CreateState(path, witnessKey); err == nil {
		t.Error("the state was replaced")
	}
	_ = w.Close()
	for name, c := range map[string]Config{
		"another witness": {Key: otherKey, Logs: w.c.Logs, State: path},
		"another log key": {Key: witnessKey, Logs: []note.Verifier{must(note.NewVerifier(otherKey.LogKey()))}, State: path},
		"no state":        {Key: witnessKey, Logs: w.c.Logs, State: path + "x"},
		"two keys":        {Key: witnessKey, Logs: append(w.c.Logs, w.c.Logs...), State: path},
		"no log":          {Key: witnessKey, State: path},
	} {
		if w, err := Open(c); err == nil {
			_ = w.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

type faultFiles struct {
	osFiles
	persisted bool
}

func (f faultFiles) write(path string, b []byte) error {
	if f.persisted {
		_ = f.osFiles.write(path, b)
	}
	return errors.New("disk full")
}

// Where the state cannot be kept nothing is signed, not then and not later.
func TestStateFails(t *testing.T) {
	a := newTree(20, 99)
	for _, persisted := range []bool{false, true} {
		path := newState(t)
		w := open(t, path)
		post(w, a.request(0, 7))
		w.c.files = faultFiles{persisted: persisted}
		if r := post(w, a.request(7, 9)); r.Code != 500 || strings.Contains(r.Body.String(), "—") {
			t.Fatalf("%d %s", r.Code, r.Body)
		}
		w.c.files = osFiles{}
		if r := post(w, a.request(7, 9)); r.Code != 500 {
			t.Fatalf("signs after its state failed: %d", r.Code)
		}
		_ = w.Close()
		w = open(t, path)
		from := 7
		if persisted {
			from = 9
		}
		if r := post(w, a.request(from, 12)); r.Code != 200 {
			t.Fatalf("persisted %t: %d %s", persisted, r.Code, r.Body)
		}
	}
}

// Many ask at once: of two branches one wins, and sizes never go back.
func TestRace(t *testing.T) {
	a, fork := newTree(40, 99), newTree(40, 0)
	w := open(t, newState(t))
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[tlog.Hash]bool{}
	for i := range 16 {
		wg.Go(func() {
			tr := []*tree{a, fork}[i%2]
			at := 0
			for n := 1; n < 40; n += 1 + i%3 {
				r := post(w, tr.request(at, n))
				switch {
				case r.Code == 200:
					mu.Lock()
					won[tr.roots[1]] = true
					mu.Unlock()
					at = n
				case r.Code == 409 && r.Header().Get("Content-Type") == SizeType:
					_, _ = fmt.Sscan(r.Body.String(), &at)
					n = max(n, at)
				}
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d branches were cosigned", len(won))
	}
}

func TestClient(t *testing.T) {
	a, fork := newTree(20, 99), newTree(20, 3)
	w := open(t, newState(t))
	s := httptest.NewServer(http.StripPrefix("/prefix", w))
	defer s.Close()
	client := func() *Client { return must(NewClient(s.URL+"/prefix/", witnessKey.WitnessKey(), nil)) }
	ask := func(c *Client, tr *tree, n int) error {
		_, err := c.Cosign(t.Context(), sign(tr.at(n), logKey), int64(n), func(old int64) (tlog.TreeProof, error) { return tr.prove(int(old), n), nil })
		return err
	}
	c := client()
	for _, n := range []int{0, 3, 3, 9} {
		if err := ask(c, a, n); err != nil {
			t.Fatalf("size %d: %v", n, err)
		}
	}
	if err := ask(client(), a, 12); err != nil { // one that knows nothing
		t.Fatal(err)
	}
	if err := ask(c, a, 15); err != nil { // one that knows an old size
		t.Fatal(err)
	}
	for n := 10; n < 20; n++ {
		if err := ask(c, fork, n); !errors.Is(err, ErrFork) {
			t.Fatalf("fork at %d: %v", n, err)
		}
	}
	if err := ask(c, a, 16); err != nil {
		t.Fatal(err)
	}
	if err := ask(must(NewClient(s.URL+"/prefix", otherKey.WitnessKey(), nil)), a, 16); err == nil || errors.Is(err, ErrFork) {
		t.Fatalf("a cosignature of another key: %v", err)
	}
	// Answers that are none.
	for name, h := range map[string]http.HandlerFunc{
		"error":    func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", 500) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) },
		"empty":    func(http.ResponseWriter, *http.Request) {},
		"noise":    func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "— \x00\n\n") },
		"long":     func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) },
		"no size": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", SizeType)
			w.WriteHeader(409)
		},
		"moving": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", SizeType)
			w.WriteHeader(409)
			_, _ = io.WriteString(w, "5\n")
		},
	} {
		s := httptest.NewServer(h)
		c := must(NewClient(s.URL, witnessKey.WitnessKey(), nil))
		if err := ask(c, a, 9); err == nil || errors.Is(err, ErrFork) {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer slow.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := must(NewClient(slow.URL, witnessKey.WitnessKey(), nil)).Cosign(ctx, sign(a.at(1), logKey), 1, func(int64) (tlog.TreeProof, error) { return nil, nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v", err)
	}
	for _, bad := range []string{"", "witness", "ftp://x", "http://", "http://x?q", "http://u:p@x"} {
		if _, err := NewClient(bad, witnessKey.WitnessKey(), nil); err == nil {
			t.Errorf("%q is taken for an address", bad)
		}
	}
}

func FuzzRequest(f *testing.F) {
	a := newTree(20, 99)
	f.Add(a.request(7, 12))
	f.Add(a.request(0, 1))
	f.Add([]byte("old 1\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Marshal(), b) {
			t.Fatalf("%q is read as %q", b, r.Marshal())
		}
		_, _ = ParseCheckpoint(string(r.Checkpoint))
	})
}

func FuzzCheckpoint(f *testing.F) {
	a := newTree(3, 99)
	f.Add(a.at(2).Text())
	f.Add(a.at(0).Text() + "more\n")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCheckpoint(s)
		if err == nil && !strings.HasPrefix(s, c.Text()) {
			t.Fatalf("%q is read as %q", s, c.Text())
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add(witnessKey.WitnessKey())
	f.Add(logKey.LogKey())
	f.Add(logKey.Private())
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := NewVerifier(s); err == nil && v.String() != strings.TrimSpace(s) {
			t.Fatal("another text")
		}
		_, _ = ParseKey(s)
	})
}
