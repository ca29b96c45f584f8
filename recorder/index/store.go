package index

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/vault"
)

// Store is where an index rests: objects that may be replaced and removed, each
// step whole or not done. It is safe for concurrent use, also by several
// processes: who changes an object says which version of it he read.
type Store interface {
	// List gives the names that begin with prefix, in byte order.
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
	// Read returns an object and its version. It wraps [fs.ErrNotExist] where
	// there is none.
	Read(ctx context.Context, name string) (b []byte, version string, err error)
	// Write puts the object in the place of that version, "" for none, and
	// returns the new version when it is durable. It wraps [ErrChanged] where
	// another version is there.
	Write(ctx context.Context, name, version string, b []byte) (string, error)
	// Remove takes away that version. That there is none is no error.
	Remove(ctx context.Context, name, version string) error
	// Forget takes away all that is kept of what was replaced or removed, and
	// returns an error that wraps [ErrKept] where some of it stays.
	Forget(ctx context.Context) error
	// String names the place.
	String() string
	io.Closer
}

// ErrChanged means that another process changed the object.
var ErrChanged = errors.New("changed by another process meanwhile")

// ErrKept means that the place keeps what was replaced or removed.
var ErrKept = errors.New("the place keeps what was removed")

const (
	tempDir  = ".tmp"
	lockFile = ".lock"
	lockPoll = 20 * time.Millisecond
	// maxObject bounds what is read into memory as one object.
	maxObject = 1 << 30
)

// Folder is a [Store] in a folder. A file is written beside its place, synced
// and renamed, under a lock of the whole folder that is held for no longer.
// Folders have mode 0700, files 0600.
type Folder struct {
	dir  string
	root *os.Root
}

// OpenFolder opens an index in a folder, and makes it where write is set. It
// refuses the folder of a vault.
func OpenFolder(dir string, write bool) (*Folder, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	for _, name := range []string{vault.SegmentsPrefix, vault.KeysPrefix} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return nil, fmt.Errorf("index %s: holds %s: that is a vault, and an index lies apart from it, where it can be erased", dir, name)
		}
	}
	if write {
		if err := os.MkdirAll(filepath.Join(dir, tempDir), 0o700); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("index: %w (\"recorder index build\" makes it)", err)
	}
	return &Folder{dir: dir, root: root}, nil
}

// String returns the folder.
func (f *Folder) String() string { return f.dir }

// Close closes the folder.
func (f *Folder) Close() error { return f.root.Close() }

// List implements [Store].
func (f *Folder) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		start := "."
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			start = prefix[:i]
		}
		if _, err := f.root.Stat(start); errors.Is(err, fs.ErrNotExist) {
			return
		}
		err := fs.WalkDir(f.root.FS(), start, func(name string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // removed meanwhile
			case err != nil:
				return err
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case name != "." && strings.HasPrefix(d.Name(), "."):
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case d.IsDir() || !strings.HasPrefix(name, prefix):
				return nil
			}
			if !yield(name, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield("", fmt.Errorf("index %s: list: %w", f.dir, err))
		}
	}
}

// Read implements [Store]. The version is the digest of the content.
func (f *Folder) Read(ctx context.Context, name string) ([]byte, string, error) {
	if err := check(ctx, name); err != nil {
		return nil, "", err
	}
	r, err := f.root.Open(name)
	if err != nil {
		return nil, "", fmt.Errorf("index: %w", err)
	}
	defer r.Close()
	if st, err := r.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxObject {
		return nil, "", fmt.Errorf("index: %s is no file of an index", filepath.Join(f.dir, name))
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, "", fmt.Errorf("index: %w", err)
	}
	return b, digest(b), nil
}

func check(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := vault.CheckName(name); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Write implements [Store].
func (f *Folder) Write(ctx context.Context, name, version string, b []byte) (string, error) {
	err := f.change(ctx, name, version, func() error {
		for i := range len(name) {
			if name[i] == '/' {
				if err := f.folder(name[:i]); err != nil {
					return err
				}
			}
		}
		var random [8]byte
		if _, err := rand.Read(random[:]); err != nil {
			return err
		}
		temp := tempDir + "/" + hex.EncodeToString(random[:])
		if err := f.temp(temp, b); err != nil {
			_ = f.root.Remove(temp)
			return err
		}
		if err := f.root.Rename(temp, name); err != nil {
			_ = f.root.Remove(temp)
			return err
		}
		return f.sync(path.Dir(name))
	})
	if err != nil {
		return "", fmt.Errorf("index %s: write %s: %w", f.dir, name, err)
	}
	return digest(b), nil
}

func (f *Folder) temp(name string, b []byte) error {
	w, err := f.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil {
		err = w.Sync()
	}
	if e := w.Close(); err == nil {
		err = e
	}
	return err
}

func (f *Folder) folder(name string) error {
	switch err := f.root.Mkdir(name, 0o700); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return f.sync(path.Dir(name))
}

func (f *Folder) sync(dir string) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Remove implements [Store].
func (f *Folder) Remove(ctx context.Context, name, version string) error {
	err := f.change(ctx, name, version, func() error {
		if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return f.sync(path.Dir(name))
	})
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("index %s: remove %s: %w", f.dir, name, err)
	}
	return nil
}

// errGone is of an object that is not there any more.
var errGone = fmt.Errorf("%w: it is not there", ErrChanged)

// change does something to a version of an object, under the lock.
func (f *Folder) change(ctx context.Context, name, version string, do func() error) error {
	if err := check(ctx, name); err != nil {
		return err
	}
	return f.locked(ctx, func() error {
		_, have, err := f.Read(ctx, name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && version != "":
			return errGone
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		case have != version:
			return ErrChanged
		}
		return do()
	})
}

// locked waits for the lock and takes away what a crash left half written:
// under the lock nobody writes.
func (f *Folder) locked(ctx context.Context, do func() error) error {
	lock, err := f.root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for {
		held, err := tryLock(lock)
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if !held {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
	if err := f.sweep(); err != nil {
		return err
	}
	return do()
}

func (f *Folder) sweep() error {
	if err := f.root.Mkdir(tempDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	left, err := fs.ReadDir(f.root.FS(), tempDir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := f.root.Remove(tempDir + "/" + e.Name()); err != nil {
			return fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	return nil
}

// Forget implements [Store]. The file system may keep bytes in blocks that are
// free until they are used again.
func (f *Folder) Forget(ctx context.Context) error {
	if err := f.locked(ctx, func() error { return nil }); err != nil {
		return fmt.Errorf("index %s: %w", f.dir, err)
	}
	return nil
}

// names lists a prefix.
func names(ctx context.Context, s Store, prefix string) ([]string, error) {
	var all []string
	for name, err := range s.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all, nil
}
