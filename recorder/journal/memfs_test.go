package journal

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"sync"
)

// memFS is a file system that knows what is durable: file contents after
// Datasync, names after SyncDir. It can fail at any step that writes.
type memFS struct {
	mu     sync.Mutex
	names  map[string]*inode // as processes see them
	synced map[string]*inode // as they stand after a crash
	locked bool

	step   int       // steps that wrote so far
	failAt int       // the step that fails, 0 for none
	mode   faultMode // how it fails
	hit    string    // the step that failed
	err    error     // what it failed with
	trace  []string
}

type inode struct {
	dir          bool
	data, synced []byte
}

type faultMode int

const (
	failed          faultMode = iota // nothing was done
	failedPersisted                  // it was done and is durable, but the answer is an error
	failedTorn                       // a write: half of it was done
)

var errInjected = errors.New("injected fault")

func newMemFS() *memFS {
	root := &inode{dir: true}
	return &memFS{names: map[string]*inode{"/": root}, synced: map[string]*inode{"/": root}, err: errInjected}
}

// crashMode says what a crash leaves of what was not synced.
type crashMode int

const (
	loseAll crashMode = iota
	keepAll
	keepSome
)

// crash returns the file system after a crash of the machine.
func (m *memFS) crash(mode crashMode, rnd *rand.Rand) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newMemFS()
	all := map[string]bool{}
	for n := range m.names {
		all[n] = true
	}
	for n := range m.synced {
		all[n] = true
	}
	sorted := make([]string, 0, len(all))
	for n := range all {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, n := range sorted {
		from := m.synced
		if mode == keepAll || mode == keepSome && rnd.IntN(2) == 0 {
			from = m.names
		}
		i := from[n]
		if i == nil || c.names[filepath.Dir(n)] == nil {
			continue
		}
		var data []byte
		switch mode {
		case loseAll:
			data = append(data, i.synced...)
		case keepAll:
			data = append(data, i.data...)
		case keepSome: // by sectors, in any order
			long, short := i.data, i.synced
			if rnd.IntN(2) == 0 {
				data = make([]byte, len(short))
			} else {
				data = make([]byte, len(long))
			}
			for at := 0; at < len(data); at += 512 {
				src := long
				if rnd.IntN(2) == 0 {
					src = short
				}
				if at < len(src) {
					copy(data[at:min(at+512, len(data))], src[at:])
				}
			}
		}
		k := &inode{dir: i.dir, data: data, synced: append([]byte(nil), data...)}
		c.names[n], c.synced[n] = k, k
	}
	return c
}

// do runs a step that writes; persist makes its effect durable. The mutex must
// be held.
func (m *memFS) do(what string, apply, persist, tear func()) error {
	m.step++
	m.trace = append(m.trace, what)
	if m.step != m.failAt {
		apply()
		return nil
	}
	m.hit = what
	switch {
	case m.mode == failedPersisted:
		apply()
		persist()
	case m.mode == failedTorn && tear != nil:
		tear()
	}
	return fmt.Errorf("%s: %w", what, m.err)
}

func (m *memFS) link(name string) { m.synced[name] = m.names[name] }

func (m *memFS) Mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] != nil {
		return nil
	}
	return m.do("mkdir", func() { m.names[name] = &inode{dir: true} }, func() { m.link(name) }, nil)
}

func (m *memFS) ReadDir(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return nil, &os.PathError{Op: "readdir", Path: name, Err: os.ErrNotExist}
	}
	var names []string
	for n := range m.names {
		if n != "/" && filepath.Dir(n) == name {
			names = append(names, filepath.Base(n))
		}
	}
	sort.Strings(names)
	return names, nil
}

func (m *memFS) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	sync := func() {
		for n := range m.synced {
			if n != "/" && filepath.Dir(n) == name && m.names[n] == nil {
				delete(m.synced, n)
			}
		}
		for n := range m.names {
			if n != "/" && filepath.Dir(n) == name {
				m.link(n)
			}
		}
	}
	return m.do("syncdir", sync, func() {}, nil)
}

func (m *memFS) Create(name string, size int64) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: os.ErrExist}
	}
	i := &inode{data: make([]byte, size)}
	err := m.do("create "+filepath.Ext(name), func() { m.names[name] = i }, func() { m.link(name); i.synced = append([]byte(nil), i.data...) }, nil)
	if err != nil {
		return nil, err
	}
	return &memFile{m, i}, nil
}

func (m *memFS) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.names[name]
	if i == nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	}
	return &memFile{m, i}, nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.names[from]
	if i == nil {
		return &os.PathError{Op: "rename", Path: from, Err: os.ErrNotExist}
	}
	return m.do("rename", func() { delete(m.names, from); m.names[to] = i }, func() { delete(m.synced, from); m.link(to) }, nil)
}

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.names[name]
	if i == nil {
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrNotExist}
	}
	if i.dir {
		for n := range m.names {
			if n != name && filepath.Dir(n) == name {
				return &os.PathError{Op: "remove", Path: name, Err: errors.New("folder is not empty")}
			}
		}
	}
	return m.do("remove", func() { delete(m.names, name) }, func() { delete(m.synced, name) }, nil)
}

func (m *memFS) Lock(string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locked {
		return nil, ErrLocked
	}
	m.locked = true
	return memLock{m}, nil
}

type memLock struct{ m *memFS }

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.locked = false
	return nil
}

type memFile struct {
	m *memFS
	i *inode
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if off >= int64(len(f.i.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.i.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	write := func(p []byte) {
		if need := int(off) + len(p); need > len(f.i.data) {
			f.i.data = append(f.i.data, make([]byte, need-len(f.i.data))...)
		}
		copy(f.i.data[off:], p)
	}
	err := f.m.do("write", func() { write(p) }, f.persist, func() { write(p[:len(p)/2]) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *memFile) persist() { f.i.synced = append([]byte(nil), f.i.data...) }

func (f *memFile) Datasync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.m.do("datasync", f.persist, func() {}, nil)
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.m.do("truncate", func() {
		if size <= int64(len(f.i.data)) {
			f.i.data = f.i.data[:size:size]
			return
		}
		f.i.data = append(f.i.data, make([]byte, size-int64(len(f.i.data)))...)
	}, f.persist, nil)
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.i.data)), nil
}

func (f *memFile) Close() error { return nil }
