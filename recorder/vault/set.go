package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"
)

// Member is the place of a retention class.
type Member struct {
	Class     string
	Retention time.Duration
	Vault     Vault
}

// Set is one vault in several places: each retention class in its own, for a
// bucket has one retention policy, and what must be erasable apart. Whatever is
// neither rests with the class of the longest retention.
//
//	segments/….CLASS.seg, .part    the class's place
//	keys/, holds/                  the key store
//	everything else                the place of the longest class
type Set struct {
	classes map[string]Vault
	longest Member
	keys    Vault
	members []Vault // each once
}

// NewSet puts a vault together. The members and keys must be comparable; a
// place that serves for two things is given as the same value.
func NewSet(keys Vault, members ...Member) (*Set, error) {
	if keys == nil || len(members) == 0 {
		return nil, errors.New("vault: a set needs a place for keys and one for each retention class")
	}
	s := &Set{classes: map[string]Vault{}, keys: keys}
	for _, m := range members {
		if err := CheckClass(m.Class); err != nil {
			return nil, fmt.Errorf("vault: %w", err)
		}
		if s.classes[m.Class] != nil {
			return nil, fmt.Errorf("vault: class %s has two places", m.Class)
		}
		if m.Retention <= 0 && len(members) > 1 {
			return nil, fmt.Errorf("vault: class %s has no retention: which class is the longest?", m.Class)
		}
		s.classes[m.Class] = m.Vault
		if s.longest.Vault == nil || m.Retention > s.longest.Retention || m.Retention == s.longest.Retention && m.Class < s.longest.Class {
			s.longest = m
		}
		s.add(m.Vault)
	}
	s.add(keys)
	return s, nil
}

func (s *Set) add(v Vault) {
	for _, m := range s.members {
		if m == v {
			return
		}
	}
	s.members = append(s.members, v)
}

// Longest returns the class with the longest retention: that of the segments,
// see [Segment].
func (s *Set) Longest() string { return s.longest.Class }

// Retention returns the retention of the longest class.
func (s *Set) Retention() time.Duration { return s.longest.Retention }

// Place returns where the name rests, nil for a segment of a class that has no
// place.
func (s *Set) Place(name string) Vault { return s.place(name) }

// place returns where the name rests, nil for a segment of a class that has no
// place.
func (s *Set) place(name string) Vault {
	switch {
	case strings.HasPrefix(name, KeysPrefix), strings.HasPrefix(name, HoldsPrefix):
		return s.keys
	case strings.HasPrefix(name, SegmentsPrefix):
		id, err := ParseSegmentName(name)
		if err != nil {
			return nil
		}
		return s.classes[id.Class]
	}
	return s.longest.Vault
}

// Create implements [Vault].
func (s *Set) Create(ctx context.Context, name string, r io.Reader) error {
	v := s.place(name)
	if v == nil {
		if id, err := ParseSegmentName(name); err == nil {
			return fmt.Errorf("vault: create %s: the retention class %s has no place: add it to the vault file", name, id.Class)
		}
		return fmt.Errorf("vault: create %s: no segment's name", name)
	}
	return v.Create(ctx, name, r)
}

// Open implements [Vault]. A segment of a class that has no place any more is
// looked for in all.
func (s *Set) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if v := s.place(name); v != nil {
		return v.Open(ctx, name)
	}
	for _, v := range s.members {
		r, err := v.Open(ctx, name)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
	}
	return nil, fmt.Errorf("vault: open %s: %w", name, fs.ErrNotExist)
}

// List implements [Vault]. An object that lies in another place than its name
// says is not there.
func (s *Set) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		type listing struct {
			of   Vault
			next func() (string, error, bool)
			name string
		}
		var all []*listing
		advance := func(l *listing) (more bool, err error) {
			for {
				name, err, ok := l.next()
				if !ok || err != nil {
					return false, err
				}
				if p := s.place(name); p == nil || p == l.of {
					l.name = name
					return true, nil
				}
			}
		}
		for _, v := range s.members {
			next, stop := iter.Pull2(v.List(ctx, prefix))
			defer stop()
			l := &listing{of: v, next: next}
			more, err := advance(l)
			if err != nil {
				yield("", err)
				return
			}
			if more {
				all = append(all, l)
			}
		}
		last := ""
		for len(all) > 0 {
			least := 0
			for i, l := range all {
				if l.name < all[least].name {
					least = i
				}
			}
			l := all[least]
			if l.name != last || last == "" {
				last = l.name
				if !yield(l.name, nil) {
					return
				}
			}
			more, err := advance(l)
			if err != nil {
				yield("", err)
				return
			}
			if !more {
				all = append(all[:least], all[least+1:]...)
			}
		}
	}
}
