package config

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

type watched struct {
	t     *testing.T
	calls chan []string
}

func watch(t *testing.T, paths ...string) *watched {
	t.Helper()
	w := &watched{t, make(chan []string, 64)}
	ctx, cancel := context.WithCancel(t.Context())
	done := Watch(ctx, paths, 2*time.Millisecond, func(changed []string) { w.calls <- changed })
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("the goroutine did not end")
		}
	})
	return w
}

func (w *watched) expect(paths ...string) {
	w.t.Helper()
	select {
	case got := <-w.calls:
		if !slices.Equal(got, paths) {
			w.t.Fatalf("changed: %q, want %q", got, paths)
		}
	case <-time.After(5 * time.Second):
		w.t.Fatal("no change was seen")
	}
}

func (w *watched) quiet() {
	w.t.Helper()
	select {
	case got := <-w.calls:
		w.t.Fatalf("changed: %q, want nothing", got)
	case <-time.After(40 * time.Millisecond):
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestWatchFiles(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	put(t, a, "one")
	w := watch(t, a, b)
	w.quiet()
	put(t, a, "two")
	w.expect(a)
	w.quiet()
	put(t, a, "two") // another inode, the same content
	w.quiet()
	put(t, b, "came")
	w.expect(b)
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	w.expect(a)
	w.quiet()
}

// The same size and time, in place: only the content tells.
func TestWatchSameSizeAndTime(t *testing.T) {
	a := filepath.Join(t.TempDir(), "a")
	put(t, a, "one")
	at := time.Now()
	if err := os.Chtimes(a, at, at); err != nil {
		t.Fatal(err)
	}
	w := watch(t, a)
	f, err := os.OpenFile(a, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("two"); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	_ = os.Chtimes(a, at, at)
	w.expect(a)
}

// A mounted ConfigMap: file -> ..data/file, ..data -> a folder that is swapped.
func TestWatchConfigMapSwap(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, v, "extproc.yaml"), "gateway: "+v)
		// Old enough that the content need not be read each time.
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(dir, v, "extproc.yaml"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		t.Helper()
		tmp := filepath.Join(dir, "tmp")
		if err := os.Symlink(to, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("v1", "..data")
	link("..data/extproc.yaml", "extproc.yaml")
	file := filepath.Join(dir, "extproc.yaml")
	w := watch(t, file, filepath.Join(dir, "..data"))
	w.quiet()
	link("v2", "..data")
	w.expect(file, filepath.Join(dir, "..data"))
	w.quiet()
	// Another version with the same content.
	if err := os.Mkdir(filepath.Join(dir, "v3"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "v3", "extproc.yaml"), "gateway: v2")
	link("v3", "..data")
	w.quiet()
}

func TestWatchFolder(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "policy", "lib")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy")
	w := watch(t, policy)
	w.quiet()
	if err := os.Mkdir(filepath.Join(policy, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	if err := os.Rename(func() string { put(t, filepath.Join(dir, "x"), "package x"); return filepath.Join(dir, "x") }(), filepath.Join(sub, "x.rego")); err != nil {
		t.Fatal(err)
	}
	w.expect(policy)
	if err := os.Rename(filepath.Join(sub, "x.rego"), filepath.Join(sub, "y.rego")); err != nil {
		t.Fatal(err)
	}
	w.expect(policy)
	w.quiet()
}

// Two files that swap their content are a change, though the contents together are the same.
func TestLookTellsNamesApart(t *testing.T) {
	dir := folder(t, map[string]string{"p/a": "1", "p/b": "2"})
	before := look(filepath.Join(dir, "p"), nil)
	put(t, filepath.Join(dir, "p/a"), "2")
	put(t, filepath.Join(dir, "p/b"), "1")
	if look(filepath.Join(dir, "p"), before).content == before.content {
		t.Error("the same print")
	}
}

// A file that has settled is not read again.
func TestLookReadsOnlyWhatChanged(t *testing.T) {
	dir := folder(t, map[string]string{"a": "one"})
	a := filepath.Join(dir, "a")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(a, old, old); err != nil {
		t.Fatal(err)
	}
	before := look(a, nil)
	if err := os.WriteFile(a, []byte(strings.ToUpper("one")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(a, old, old); err != nil {
		t.Fatal(err)
	}
	if look(a, before).content != before.content {
		t.Error("it was read although size, time and inode were the same")
	}
}

// TestFollowMissesNothing changes a file before the following begins, and another
// while a change is taken.
func TestFollowMissesNothing(t *testing.T) {
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	for _, f := range []string{a, b, c} {
		put(t, f, "1")
	}
	seen := Look(a, b)
	put(t, a, "2")
	calls := make(chan []string, 64)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	n := 0
	paths := []string{a, b}
	go func() {
		defer close(done)
		seen.Follow(ctx, 2*time.Millisecond, func() []string { return paths }, func(changed []string) {
			switch n++; n {
			case 1:
				put(t, b, "2")
			case 2:
				paths = []string{a, b, c} // named from now on
			}
			calls <- changed
		})
	}()
	w := &watched{t, calls}
	w.expect(a)
	w.expect(b)
	w.quiet()
	put(t, c, "2")
	w.expect(c)
	cancel()
	<-done
}
