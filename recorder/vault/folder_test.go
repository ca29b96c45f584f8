package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func openTest(t testing.TB, dir string, write bool) *Folder {
	t.Helper()
	f, err := OpenFolder(FolderConfig{Dir: dir, Write: write})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func names(t testing.TB, v Vault, prefix string) []string {
	t.Helper()
	var all []string
	for n, err := range v.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

func content(t testing.TB, v Vault, name string) string {
	t.Helper()
	r, err := v.Open(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFolderCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "vault")
	v := openTest(t, dir, true)
	ctx := context.Background()
	big := strings.Repeat("0123456789", 100_000)
	for name, c := range map[string]string{"a": "", "s/x/1": "one", "s/x/2": big} {
		if err := v.Create(ctx, name, strings.NewReader(c)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, v, name); got != c {
			t.Errorf("%s: %d bytes came back of %d", name, len(got), len(c))
		}
		if err := v.Create(ctx, name, strings.NewReader(c)); err != nil {
			t.Errorf("%s: again with the same content: %v", name, err)
		}
		others := []string{c + "x", "x" + c}
		if c != "" {
			others = append(others, c[:len(c)-1], c[:len(c)-1]+"x", "")
		}
		for _, o := range others {
			if err := v.Create(ctx, name, strings.NewReader(o)); !errors.Is(err, ErrConflict) {
				t.Errorf("%s: other content of %d bytes: %v", name, len(o), err)
			}
		}
		if got := content(t, v, name); got != c {
			t.Errorf("%s was changed", name)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, tempDir)); err != nil || len(left) != 0 {
		t.Errorf("temporary files %v, %v", left, err)
	}
	for _, p := range []struct {
		path string
		mode fs.FileMode
	}{{"", 0o700}, {"s", 0o700}, {"s/x", 0o700}, {".tmp", 0o700}, {"s/x/1", 0o600}, {".lock", 0o600}} {
		if st, err := os.Stat(filepath.Join(dir, p.path)); err != nil || st.Mode().Perm() != p.mode {
			t.Errorf("%q: mode %v, %v; want %v", p.path, st.Mode(), err, p.mode)
		}
	}
}

func TestFolderNamesDoNotEscape(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	v := openTest(t, dir, true)
	ctx := context.Background()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "/x", "a/../../x", ".lock", ".tmp/x", "link/x", "link/secret"} {
		if err := v.Create(ctx, name, strings.NewReader("x")); err == nil {
			t.Errorf("Create(%q) succeeds", name)
		}
	}
	for _, name := range []string{"../x", "link/secret", "file", "/etc/passwd", ".lock"} {
		if r, err := v.Open(ctx, name); err == nil {
			r.Close()
			t.Errorf("Open(%q) succeeds", name)
		}
	}
	for _, prefix := range []string{"../", "/", "link/", "a//"} {
		for n, err := range v.List(ctx, prefix) {
			if err == nil {
				t.Errorf("List(%q) gives %q", prefix, n)
			}
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestFolderOpen(t *testing.T) {
	dir := t.TempDir()
	v := openTest(t, dir, true)
	ctx := context.Background()
	if _, err := v.Open(ctx, "a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an object that is not there: %v", err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open(ctx, "pipe"); err == nil {
		t.Error("a pipe opens")
	}
	if err := v.Create(ctx, "d/x", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open(ctx, "d"); err == nil {
		t.Error("a folder opens")
	}
}

func TestFolderList(t *testing.T) {
	dir := t.TempDir()
	v := openTest(t, dir, true)
	ctx := context.Background()
	all := []string{"a-b", "a/b", "a0", "s/dt=1/x/1", "s/dt=1/x/2", "s/dt=10/x/1", "s/dt=2/y/1", "s2"} // byte order: - before / before 0
	for _, n := range all {
		if err := v.Create(ctx, n, strings.NewReader(n)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{
		"": all, "s": all[3:], "s/": all[3:7], "s/dt=1": all[3:6], "s/dt=1/": all[3:5], "s/dt=1/x/1": all[3:4], "s/dt=1/x/1/": nil, "x": nil, "x/": nil, "a/b": all[1:2],
	} {
		if got := names(t, v, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q) = %q, want %q", prefix, got, want)
		}
	}
	for n, err := range v.List(ctx, "s/") { // the listing can be left
		if err != nil || n != all[3] {
			t.Errorf("%q, %v", n, err)
		}
		break
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	for n, err := range v.List(stopped, "") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended context: %q, %v", n, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "s", "not ours"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range v.List(ctx, "s/") {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), "not ours") {
		t.Errorf("a foreign file: %v", last)
	}
}

func TestFolderOneWriter(t *testing.T) {
	dir := t.TempDir()
	v := openTest(t, dir, true)
	if err := v.Create(context.Background(), "x", strings.NewReader("1")); err != nil {
		t.Fatal(err)
	}
	_, err := OpenFolder(FolderConfig{Dir: dir, Write: true})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second writer: %v", err)
	}
	r := openTest(t, dir, false)
	if got := content(t, r, "x"); got != "1" {
		t.Errorf("a reader sees %q", got)
	}
	if err := r.Create(context.Background(), "y", strings.NewReader("")); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a reader writes: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	openTest(t, dir, true)
	if _, err := OpenFolder(FolderConfig{Dir: filepath.Join(dir, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there, for reading: %v", err)
	}
}

func TestFolderCleansUp(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, tempDir), 0o700); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, tempDir, "left")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	openTest(t, dir, false)
	if _, err := os.Stat(left); err != nil {
		t.Errorf("a reader removed a writer's file: %v", err)
	}
	openTest(t, dir, true)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestFolderCreateRace(t *testing.T) {
	v := openTest(t, t.TempDir(), true)
	var wg sync.WaitGroup
	errs := make([]error, 24)
	for i := range errs {
		wg.Go(func() { errs[i] = v.Create(context.Background(), "d/x", strings.NewReader(fmt.Sprint(i))) })
	}
	wg.Wait()
	won := 0
	for i, err := range errs {
		switch {
		case err == nil:
			won++
			if got := content(t, v, "d/x"); got != fmt.Sprint(i) {
				t.Errorf("%d won, the content is %s", i, got)
			}
		case !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d winners", won)
	}
}

// faultFS counts the steps that can fail, and fails one: before it is done, or
// after.
type faultFS struct {
	fileSystem
	failAt    int // 1 is the first step, 0 none
	persisted bool
	steps     []string
}

var errFault = errors.New("injected fault")

func (f *faultFS) step(what string, do func() error) error {
	f.steps = append(f.steps, what)
	if len(f.steps) != f.failAt {
		return do()
	}
	if f.persisted {
		_ = do()
	}
	return fmt.Errorf("%s: %w", what, errFault)
}

func (f *faultFS) Mkdir(name string) error {
	return f.step("mkdir "+name, func() error { return f.fileSystem.Mkdir(name) })
}

func (f *faultFS) Create(name string) (w writeFile, err error) {
	err = f.step("create", func() error { w, err = f.fileSystem.Create(name); return err })
	if err != nil {
		return nil, err
	}
	return &faultFile{w, f}, nil
}

func (f *faultFS) Link(old, new string) error {
	return f.step("link "+new, func() error { return f.fileSystem.Link(old, new) })
}

func (f *faultFS) Remove(name string) error {
	return f.step("remove", func() error { return f.fileSystem.Remove(name) })
}

func (f *faultFS) SyncDir(name string) error {
	return f.step("syncdir "+name, func() error { return f.fileSystem.SyncDir(name) })
}

type faultFile struct {
	writeFile
	f *faultFS
}

func (w *faultFile) Write(p []byte) (n int, err error) {
	err = w.f.step("write", func() error { n, err = w.writeFile.Write(p); return err })
	if err != nil {
		return n / 2, err
	}
	return n, nil
}

func (w *faultFile) Sync() error  { return w.f.step("sync", w.writeFile.Sync) }
func (w *faultFile) Close() error { return w.f.step("close", w.writeFile.Close) }

// openFault opens a vault whose steps are counted from after its opening.
func openFault(t *testing.T, dir string, failAt int, persisted bool) (*Folder, *faultFS) {
	t.Helper()
	v := openTest(t, dir, true)
	f := &faultFS{fileSystem: v.fs, failAt: failAt, persisted: persisted}
	v.fs = f
	return v, f
}

// Everything that an acknowledged object needs is durable, in the right order.
func TestFolderSteps(t *testing.T) {
	v, f := openFault(t, t.TempDir(), 0, false)
	ctx := context.Background()
	for _, c := range []struct {
		name string
		want []string
	}{
		{"a/b/x", []string{"create", "write", "sync", "close", "mkdir a", "syncdir .", "mkdir a/b", "syncdir a", "link a/b/x", "syncdir a/b", "remove"}},
		{"a/b/y", []string{"create", "write", "sync", "close", "link a/b/y", "syncdir a/b", "remove"}},
		// One that was there: its folder is synced all the same, for who wrote
		// it may have died before.
		{"a/b/x", []string{"create", "write", "sync", "close", "link a/b/x", "syncdir a/b", "remove"}},
	} {
		f.steps = nil
		if err := v.Create(ctx, c.name, strings.NewReader("content")); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.steps, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, f.steps, c.want)
		}
	}
	// A new process does not know what the last one made durable.
	dir := v.Dir()
	_ = v.Close()
	v, f = openFault(t, dir, 0, false)
	if err := v.Create(ctx, "a/b/z", strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(f.steps, "syncdir .") || !slices.Contains(f.steps, "syncdir a") {
		t.Errorf("folders of an earlier run stay unsynced: %q", f.steps)
	}
}

// Each step fails, and fails although it was done; then the same is tried again
// by the same process and by a new one.
func TestFolderFaults(t *testing.T) {
	ctx := context.Background()
	const name = "s/g/x"
	data := bytes.Repeat([]byte("data"), 100_000) // more than one write
	probe, counted := openFault(t, t.TempDir(), 0, false)
	if err := probe.Create(ctx, name, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	steps := len(counted.steps)
	for at := 1; at <= steps; at++ {
		for _, persisted := range []bool{false, true} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %s persisted=%t restart=%t", at, strings.ReplaceAll(counted.steps[at-1], "/", "_"), persisted, restart), func(t *testing.T) {
					dir := t.TempDir()
					v, _ := openFault(t, dir, at, persisted)
					err := v.Create(ctx, name, bytes.NewReader(data))
					if at < steps && !errors.Is(err, errFault) { // the last step is the removal of the temporary file
						t.Fatalf("the fault is hidden: %v", err)
					}
					if at == steps && err != nil {
						t.Fatal(err)
					}
					for _, n := range names(t, v, "") {
						if content(t, v, n) != string(data) {
							t.Fatalf("%s is there and not whole", n)
						}
					}
					if restart {
						_ = v.Close()
						v = openTest(t, dir, true)
					}
					if err := v.Create(ctx, name, bytes.NewReader(data)); err != nil {
						t.Fatal(err)
					}
					if got := names(t, v, ""); !slices.Equal(got, []string{name}) || content(t, v, name) != string(data) {
						t.Errorf("the vault holds %q", got)
					}
					if err := v.Create(ctx, name, strings.NewReader("other")); !errors.Is(err, ErrConflict) {
						t.Errorf("other content: %v", err)
					}
				})
			}
		}
	}
}

type brokenReader struct{ n int }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.n--; b.n < 0 {
		return 0, errFault
	}
	return len(p), nil
}

func TestFolderCreateEnds(t *testing.T) {
	v := openTest(t, t.TempDir(), true)
	if err := v.Create(context.Background(), "x", &brokenReader{3}); !errors.Is(err, errFault) {
		t.Errorf("a broken source: %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errFault)
	if err := v.Create(ctx, "x", &repeat{b: []byte("x"), n: 1 << 40}); !errors.Is(err, errFault) {
		t.Errorf("an ended context: %v", err)
	}
	if got := names(t, v, ""); got != nil {
		t.Errorf("the vault holds %q", got)
	}
	if left, _ := os.ReadDir(filepath.Join(v.Dir(), tempDir)); len(left) != 0 {
		t.Errorf("temporary files stay: %v", left)
	}
}
