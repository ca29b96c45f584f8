package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

const (
	tempDir  = ".tmp"
	lockFile = ".lock"

	copyBuffer  = 256 << 10
	maxSyncedIn = 4096
)

// FolderConfig configures a [Folder].
type FolderConfig struct {
	Dir string
	// Write opens the vault for writing: it makes the folder where there is
	// none, locks it against other writers and removes what a crash left half
	// written.
	Write bool
	// Beside opens it for writing without the lock, beside a sink that has it:
	// for names that no sink writes. A sink that starts meanwhile may take a
	// temporary file away; the write then fails and can be tried again.
	Beside bool
	Logger *slog.Logger // nil: none

	fs fileSystem // nil: the real one; tests put faults here
}

// Folder is a vault in a folder of a file system with hard links. An object is
// written to a temporary file in the same folder, synced, linked to its name
// (which fails where the name is taken) and the folders' entries are synced
// up to the vault's own. Folders have mode 0700, files 0600. Several readers
// and one writer may use the folder at once.
type Folder struct {
	dir   string
	fs    fileSystem
	log   *slog.Logger
	write bool
	lock  *os.File

	mu     sync.Mutex
	synced map[string]bool // folders whose own entry this process made durable
}

// OpenFolder opens a vault. Close it when done.
func OpenFolder(c FolderConfig) (*Folder, error) {
	if c.Dir == "" {
		return nil, errors.New("vault: no folder given")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	f := &Folder{dir: dir, fs: c.fs, log: c.Logger, write: c.Write || c.Beside, synced: map[string]bool{}}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if c.Write {
		if err := makeFolder(dir); err != nil {
			return nil, fmt.Errorf("vault %s: %w", dir, err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("vault: %w (is this the vault's folder?)", err)
	}
	if f.fs == nil {
		f.fs = &osFS{root: root}
	} else {
		defer root.Close()
	}
	if c.Write {
		if err := f.prepare(root); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("vault %s: %w", dir, err)
		}
	}
	if c.Beside && !c.Write {
		if err := f.fs.Mkdir(tempDir); err != nil && !errors.Is(err, fs.ErrExist) {
			_ = f.Close()
			return nil, fmt.Errorf("vault %s: %w", dir, err)
		}
	}
	return f, nil
}

// makeFolder makes the vault's folder, with every new entry above it durable.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (f *Folder) prepare(root *os.Root) error {
	lock, err := root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if err := lockFolder(lock); err != nil {
		_ = lock.Close()
		if errors.Is(err, errHeld) {
			return fmt.Errorf("%w: %s is locked; stop the other sink, or give this one a vault of its own",
				ErrLocked, filepath.Join(f.dir, lockFile))
		}
		return fmt.Errorf("lock: %w", err)
	}
	f.lock = lock
	if err := f.fs.Mkdir(tempDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	left, err := f.fs.ReadDir(tempDir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := f.fs.Remove(tempDir + "/" + e.Name()); err != nil {
			return fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	if len(left) > 0 {
		f.log.Info("vault: removed temporary files of an earlier run", "vault", f.dir, "files", len(left))
	}
	return nil
}

// Close releases the folder and its lock.
func (f *Folder) Close() error {
	err := f.fs.Close()
	if f.lock != nil {
		err = errors.Join(err, f.lock.Close())
		f.lock = nil
	}
	return err
}

// Dir returns the vault's folder.
func (f *Folder) Dir() string { return f.dir }

// String returns the vault's folder.
func (f *Folder) String() string { return f.dir }

// Create implements [Vault].
func (f *Folder) Create(ctx context.Context, name string, r io.Reader) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if !f.write {
		return fmt.Errorf("vault: create %s: %w", name, ErrReadOnly)
	}
	if err := f.create(ctx, name, r); err != nil {
		return fmt.Errorf("vault: create %s: %w", name, err)
	}
	return nil
}

func (f *Folder) create(ctx context.Context, name string, r io.Reader) error {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	temp := tempDir + "/" + hex.EncodeToString(random[:])
	if err := f.writeTemp(ctx, temp, r); err != nil {
		return err
	}
	defer func() {
		// The object does not depend on it, and the next start cleans up.
		if err := f.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.log.Warn("vault: temporary file stays", "vault", f.dir, "file", temp, "error", err)
		}
	}()
	if err := f.makeParents(name); err != nil {
		return err
	}
	switch err := f.fs.Link(temp, name); {
	case errors.Is(err, fs.ErrExist):
		if err := f.same(ctx, temp, name); err != nil {
			return err
		}
	case err != nil:
		f.forget() // a folder may be gone: look again the next time
		return err
	}
	return f.fs.SyncDir(path.Dir(name))
}

func (f *Folder) writeTemp(ctx context.Context, temp string, r io.Reader) error {
	w, err := f.fs.Create(temp)
	if err != nil {
		return err
	}
	// The wrapper hides ReadFrom: between two pieces the context is looked at.
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, &contextReader{ctx, r}, make([]byte, copyBuffer))
	if err == nil {
		err = w.Sync()
	}
	if e := w.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = f.fs.Remove(temp)
	}
	return err
}

// makeParents makes the folders of the name. A folder that an earlier process
// made may not be durable yet, so the first use in this process syncs it too.
func (f *Folder) makeParents(name string) error {
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		dir := name[:i]
		f.mu.Lock()
		done := f.synced[dir]
		f.mu.Unlock()
		if done {
			continue
		}
		if err := f.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := f.fs.SyncDir(path.Dir(dir)); err != nil {
			return err
		}
		f.mu.Lock()
		if len(f.synced) >= maxSyncedIn {
			clear(f.synced)
		}
		f.synced[dir] = true
		f.mu.Unlock()
	}
	return nil
}

func (f *Folder) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.synced)
}

// same compares the two files and makes the one that was there durable, in
// case its writer did not come so far.
func (f *Folder) same(ctx context.Context, temp, name string) error {
	a, err := f.fs.Open(temp)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := f.fs.Open(name)
	if err != nil {
		return err
	}
	defer b.Close()
	x, y := make([]byte, copyBuffer), make([]byte, copyBuffer)
	var at int64
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return err
			}
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return fmt.Errorf("%w (they part within the %d bytes from byte %d)", ErrConflict, copyBuffer, at)
		}
		if errA != nil || errB != nil {
			return b.Sync()
		}
		at += int64(n)
	}
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Expire removes a segment, or a part of one, whose retention is over. Whether
// it is, and whether a hold stands against it, the caller has judged. It is
// durable when it returns; to remove what is not there is no error.
func (f *Folder) Expire(ctx context.Context, name string) error {
	if _, err := ParseSegmentName(name); err != nil {
		return fmt.Errorf("vault: expire: %w", err)
	}
	return f.remove(ctx, "expire", name)
}

func (f *Folder) remove(ctx context.Context, what, name string) error {
	if !f.write {
		return fmt.Errorf("vault: %s %s: %w", what, name, ErrReadOnly)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := f.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("vault: %s %s: %w", what, name, err)
	}
	if err := f.fs.SyncDir(path.Dir(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("vault: %s %s: %w", what, name, err)
	}
	return nil
}

// EraseKey removes a wrapped data key, and nothing else: see [Tombstone]. It is
// durable when it returns; to remove what is not there is no error. The file
// system may keep the bytes in blocks that are free until they are used again.
func (f *Folder) EraseKey(ctx context.Context, name string) error {
	if _, _, err := ParseKeyName(name); err != nil {
		return fmt.Errorf("vault: erase: %w", err)
	}
	return f.remove(ctx, "erase", name)
}

// Open implements [Vault].
func (f *Folder) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := CheckName(name); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	r, err := f.fs.Open(name)
	if err != nil {
		return nil, fmt.Errorf("vault: open %s: %w", name, err)
	}
	return r, nil
}

// List implements [Vault]. Names with a leading dot are the folder's own and
// are left out; anything else that is neither folder nor regular file, or that
// no vault could have written, is an error.
func (f *Folder) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		start := "."
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			start = prefix[:i]
			if err := CheckName(start); err != nil {
				yield("", fmt.Errorf("vault: list: %w", err))
				return
			}
		}
		f.list(ctx, start, prefix, yield)
	}
}

func (f *Folder) list(ctx context.Context, dir, prefix string, yield func(string, error) bool) bool {
	if ctx.Err() != nil {
		return yield("", context.Cause(ctx)) && false
	}
	entries, err := f.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return true
	}
	if err != nil {
		return yield("", fmt.Errorf("vault: list: %w", err)) && false
	}
	// Byte order of the whole names: a folder sorts as its name with a slash.
	key := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(key(a), key(b)) })
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			if n := name + "/"; !strings.HasPrefix(n, prefix) && !strings.HasPrefix(prefix, n) {
				continue
			}
			if !f.list(ctx, name, prefix, yield) {
				return false
			}
			continue
		}
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		err := checkElement(e.Name())
		if err == nil && !e.Type().IsRegular() {
			err = fmt.Errorf("%s is no regular file (%s)", name, e.Type())
		}
		if err != nil {
			return yield("", fmt.Errorf("vault: list: %w: nothing of the vault's, take it away", err)) && false
		}
		if !yield(name, nil) {
			return false
		}
	}
	return true
}
