package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
)

// FS is what the journal needs of a file system; tests put faults in here.
// Names are paths. Missing files give errors that match [os.ErrNotExist].
type FS interface {
	// Mkdir makes a folder; that it is there already is no error.
	Mkdir(name string) error
	// ReadDir returns the names in a folder, sorted.
	ReadDir(name string) ([]string, error)
	// SyncDir makes what was created, renamed and removed in a folder durable.
	SyncDir(name string) error
	// Create makes a file that must not exist, with size bytes allocated.
	Create(name string, size int64) (File, error)
	Open(name string) (File, error)
	Rename(from, to string) error
	// Remove removes a file or an empty folder.
	Remove(name string) error
	// Lock takes the lock file for this process until it is closed. It fails
	// with [ErrLocked] when another holds it.
	Lock(name string) (io.Closer, error)
}

// File is an open file of an [FS].
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Datasync is fdatasync(2): the bytes and the size are durable.
	Datasync() error
	Truncate(size int64) error
	Size() (int64, error)
}

// ErrLocked means that another process has the journal open.
var ErrLocked = errors.New("in use by another process")

type osFS struct{}

func (osFS) Mkdir(name string) error {
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func (osFS) ReadDir(name string) ([]string, error) {
	d, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	sort.Strings(names)
	return names, err
}

func (osFS) SyncDir(name string) error {
	return syncDir(name)
}

func (osFS) Create(name string, size int64) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		if err := allocate(f, size); err != nil {
			return nil, errors.Join(fmt.Errorf("allocate %d bytes for %s: %w", size, name, err), f.Close())
		}
	}
	return osFile{f}, nil
}

func (osFS) Open(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(name string) error     { return os.Remove(name) }

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f osFile) Datasync() error {
	if err := datasync(f.File); err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
