package vault

import (
	"fmt"
	"io"
	"io/fs"
	"os"
)

// fileSystem is what a folder vault needs of the file system; every name is
// relative to the vault's folder.
type fileSystem interface {
	Mkdir(name string) error
	Create(name string) (writeFile, error) // fails where the name is taken
	Open(name string) (readFile, error)    // regular files only
	Link(old, new string) error            // fails where new is taken
	Remove(name string) error
	SyncDir(name string) error
	ReadDir(name string) ([]fs.DirEntry, error)
	Close() error
}

type writeFile interface {
	io.WriteCloser
	Sync() error
}

type readFile interface {
	io.ReadCloser
	Sync() error
}

// osFS is the real file system. The root lets no name and no symbolic link
// lead out of the folder.
type osFS struct{ root *os.Root }

func (o *osFS) Mkdir(name string) error { return o.root.Mkdir(name, 0o700) }

func (o *osFS) Create(name string) (writeFile, error) {
	f, err := o.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (o *osFS) Open(name string) (readFile, error) {
	if st, err := o.root.Lstat(name); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file (%s)", name, st.Mode().Type())
	}
	// Not blocking, should a pipe have taken the file's place by now.
	f, err := o.root.OpenFile(name, os.O_RDONLY|notBlocking, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file (%s)", name, st.Mode().Type())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (o *osFS) Link(old, new string) error { return o.root.Link(old, new) }

func (o *osFS) Remove(name string) error { return o.root.Remove(name) }

func (o *osFS) SyncDir(name string) error {
	d, err := o.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (o *osFS) ReadDir(name string) ([]fs.DirEntry, error) {
	d, err := o.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

func (o *osFS) Close() error { return o.root.Close() }
