package config

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	// maxWatched bounds the files looked at below one folder.
	maxWatched = 4096
	// settled is the age from which a file's times and size tell its content: a
	// younger one may be written again within the resolution of its time.
	settled = 2 * time.Second
)

// Seen is how files were when they were looked at. One goroutine uses it.
type Seen map[string]*fingerprint

// Look looks at paths. What is read of them afterwards is as old as that or newer,
// so that [Seen.Follow] misses no change of it.
func Look(paths ...string) Seen {
	s := Seen{}
	s.Add(paths...)
	return s
}

// Add looks at those of the paths that are not known yet.
func (s Seen) Add(paths ...string) {
	for _, p := range paths {
		if s[p] == nil {
			s[p] = look(p, nil)
		}
	}
}

// Follow looks at paths every poll until ctx ends, and calls change with those
// whose content is another than it was, or that came or went. What a path that
// was not looked at before is compared with is how it is when it is first there.
// A folder counts as all the files in it, at any depth; links are followed, so
// that the swap of a mounted ConfigMap is seen. A touch that leaves the content
// alone is none.
//
// It polls: that works on every file system. Nothing is looked at while change
// runs; what changes meanwhile is seen at the next look. It may find a file
// half-written: it has to keep what it has then, and is called again when the
// rest is there.
func (s Seen) Follow(ctx context.Context, poll time.Duration, paths func() []string, change func(changed []string)) {
	s.Add(paths()...)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var changed []string
		for _, p := range paths() {
			before := s[p]
			now := look(p, before)
			if now.content != before.content {
				changed = append(changed, p)
			}
			s[p] = now
		}
		if len(changed) > 0 && ctx.Err() == nil {
			change(changed)
			s.Add(paths()...) // others may be named now
		}
	}
}

// Watch is Follow on a goroutine of its own, over paths that stay. What they are
// compared with at first is how they are when Watch is called. The goroutine ends
// with ctx; the channel returned is closed when it has.
func Watch(ctx context.Context, paths []string, poll time.Duration, change func(changed []string)) <-chan struct{} {
	seen := Look(paths...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		seen.Follow(ctx, poll, func() []string { return paths }, change)
	}()
	return done
}

// fingerprint is what a path was like when it was looked at.
type fingerprint struct {
	marks   map[string]mark // of each file, by path
	content [sha256.Size]byte
}

// mark tells versions of a file apart without reading it.
type mark struct {
	stat struct {
		dev, inode uint64
		size       int64
		modified   int64
		mode       fs.FileMode
	}
	sure    bool // read when it was settled
	content [sha256.Size]byte
}

// look takes the fingerprint of path. Files that have not changed since before are not
// read again.
func look(path string, before *fingerprint) *fingerprint {
	now := &fingerprint{marks: map[string]mark{}}
	sum := sha256.New()
	// WalkDir does not follow a link at its root.
	root := path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		root = real
	}
	visit := func(file string) {
		m := markOf(file, before)
		now.marks[file] = m
		// Below the root: where links lead to is no part of the content.
		name, err := filepath.Rel(root, file)
		if err != nil {
			name = file
		}
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(name)))
		sum.Write(length[:])
		sum.Write([]byte(name))
		sum.Write(m.content[:])
	}
	if st, err := os.Stat(root); err == nil && st.IsDir() {
		_ = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				fmt.Fprintf(sum, "unreadable %q", file)
				return nil
			case len(now.marks) >= maxWatched:
				return fs.SkipAll
			case d.IsDir():
				return nil
			}
			visit(file)
			return nil
		})
	} else {
		visit(root)
	}
	sum.Sum(now.content[:0])
	return now
}

func markOf(file string, before *fingerprint) mark {
	var m mark
	absent := func(why string) mark { m.content = sha256.Sum256([]byte(why)); return m }
	st, err := os.Stat(file)
	if err != nil {
		return absent("absent")
	}
	m.stat.size, m.stat.modified, m.stat.mode = st.Size(), st.ModTime().UnixNano(), st.Mode()
	m.stat.dev, m.stat.inode = identity(st)
	if !st.Mode().IsRegular() {
		return absent("no file " + st.Mode().Type().String())
	}
	if before != nil {
		if b, ok := before.marks[file]; ok && b.sure && b.stat == m.stat {
			return b
		}
	}
	begun := time.Now()
	f, err := os.Open(file)
	if err != nil {
		return absent("closed")
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return absent("unreadable")
	}
	h.Sum(m.content[:0])
	m.sure = begun.Sub(st.ModTime()) > settled
	return m
}
