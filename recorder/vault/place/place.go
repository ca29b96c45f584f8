// Package place says where a vault rests, and opens it.
//
// The rule of this folder: one text names a vault whatever it is made of, and
// it is the same text for every command. It is
//
//	DIR                 a folder for everything
//	gs://BUCKET[/PREFIX]  a bucket for everything; good for a trial, for a locked
//	                    bucket cannot give up a key that must be erased
//	standard:400d=gs://B,long:2557d=gs://C,keys=gs://K
//	                    a place for each retention class, with its retention,
//	                    and one for what must be erasable
//	FILE.yaml           the same in a file, and what init needs to know
//
// A vault file:
//
//	classes:
//	  standard: {place: "gs://acme-evidence", retention: 400d}
//	  long: {place: "gs://acme-evidence-long", retention: 2557d}
//	keys: gs://acme-keys           # wrapped keys and holds: no retention
//	index: gs://acme-index         # search's index: no retention
//	kms_key: projects/P/locations/L/keyRings/R/cryptoKeys/K
//	location: EU                   # of buckets that init makes
//	project: acme-audit            # likewise
//
// Places in a file that are folders are relative to the file.
package place

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs"
)

// Spec says what a vault is made of.
type Spec struct {
	Text string // as it was given
	// All is the one place for everything; where it is set Classes is empty.
	All      string
	Classes  []Class // in the order of their names
	Keys     string
	Index    string
	KMSKey   string
	Location string
	Project  string
}

// Class is the place of a retention class.
type Class struct {
	Name      string
	Place     string
	Retention time.Duration
}

// keysName is what the key store is called among the classes.
const keysName = "keys"

// IsBucket reports whether a place is in Cloud Storage.
func IsBucket(place string) bool { return strings.HasPrefix(place, gcs.Scheme) }

// Parse reads the text that names a vault, and the vault file where it is one.
func Parse(text string) (Spec, error) {
	s := Spec{Text: text}
	var err error
	switch first, _, ok := strings.Cut(text, "="); {
	case isFile(text):
		err = s.file(text)
	case ok && !strings.Contains(first, "/"):
		err = s.inline(text)
	default:
		s.All = text
		err = checkPlace(text)
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return Spec{}, fmt.Errorf("vault %s: %w", text, err)
	}
	return s, nil
}

func isFile(text string) bool {
	switch filepath.Ext(text) {
	case ".yaml", ".yml", ".json":
		st, err := os.Stat(text)
		return err != nil || st.Mode().IsRegular()
	}
	return false
}

func checkPlace(place string) error {
	if IsBucket(place) {
		_, _, err := gcs.Split(place)
		return err
	}
	if place == "" {
		return errors.New("no place given")
	}
	if scheme, _, ok := strings.Cut(place, "://"); ok {
		return fmt.Errorf("%s:// is no place for a vault: want a folder or gs://BUCKET", scheme)
	}
	return nil
}

func (s *Spec) inline(text string) error {
	for item := range strings.SplitSeq(text, ",") {
		name, at, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok {
			return fmt.Errorf("%q: want CLASS:RETENTION=PLACE or keys=PLACE", item)
		}
		if name == keysName || name == "index" {
			to := &s.Keys
			if name == "index" {
				to = &s.Index
			}
			if *to != "" {
				return fmt.Errorf("%s has two places", name)
			}
			*to = at
			continue
		}
		name, span, ok := strings.Cut(name, ":")
		c := Class{Name: name, Place: at}
		if ok {
			var err error
			if c.Retention, err = ParseRetention(span); err != nil {
				return fmt.Errorf("class %s: %w", name, err)
			}
		}
		s.Classes = append(s.Classes, c)
	}
	return nil
}

// ParseRetention reads a duration: a number with d for days, or as Go writes
// durations.
func ParseRetention(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err == nil && n > 0 && n <= uint64(gcs.MaxRetention/(24*time.Hour)) {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > gcs.MaxRetention || d%time.Second != 0 {
		return 0, fmt.Errorf("retention %q: want whole days like 400d, or a duration of at least 1s like 12h", text)
	}
	return d, nil
}

type file struct {
	Classes map[string]struct {
		Place     string `yaml:"place"`
		Retention string `yaml:"retention"`
	} `yaml:"classes"`
	Keys     string `yaml:"keys"`
	Index    string `yaml:"index"`
	KMSKey   string `yaml:"kms_key"`
	Location string `yaml:"location"`
	Project  string `yaml:"project"`
}

// maxFile is the largest vault file, in bytes.
const maxFile = 64 << 10

func (s *Spec) file(path string) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return err
	}
	if len(b) > maxFile {
		return fmt.Errorf("longer than %d bytes", maxFile)
	}
	var f file
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&f); err != nil {
		return errors.New(yaml.FormatError(err, false, false))
	}
	at := func(p string) string {
		if p == "" || IsBucket(p) || filepath.IsAbs(p) || strings.Contains(p, "://") {
			return p
		}
		return filepath.Join(filepath.Dir(path), p)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Classes)) {
		c := Class{Name: name, Place: at(f.Classes[name].Place)}
		if text := f.Classes[name].Retention; text != "" {
			if c.Retention, err = ParseRetention(text); err != nil {
				return fmt.Errorf("class %s: %w", name, err)
			}
		}
		s.Classes = append(s.Classes, c)
	}
	s.Keys, s.Index, s.KMSKey, s.Location, s.Project = at(f.Keys), at(f.Index), f.KMSKey, f.Location, f.Project
	return nil
}

func (s *Spec) check() error {
	if s.All != "" {
		return nil
	}
	if len(s.Classes) == 0 {
		return errors.New("names no retention class")
	}
	if s.Keys == "" {
		return errors.New("names no place for keys: they must be erasable, so it is one without retention (keys=PLACE)")
	}
	slices.SortFunc(s.Classes, func(a, b Class) int { return strings.Compare(a.Name, b.Name) })
	buckets := map[string]string{}
	for i, c := range s.Classes {
		if err := vault.CheckClass(c.Name); err != nil {
			return err
		}
		switch {
		case c.Name == keysName || c.Name == "index":
			return fmt.Errorf("%q cannot be the name of a class", c.Name)
		case i > 0 && c.Name == s.Classes[i-1].Name:
			return fmt.Errorf("class %s is named twice", c.Name)
		case c.Retention == 0:
			return fmt.Errorf("class %s has no retention: give it one, %s:400d=%s", c.Name, c.Name, c.Place)
		}
		if err := checkPlace(c.Place); err != nil {
			return fmt.Errorf("class %s: %w", c.Name, err)
		}
		if IsBucket(c.Place) {
			b, _, _ := gcs.Split(c.Place)
			if other := buckets[b]; other != "" {
				return fmt.Errorf("classes %s and %s share the bucket %s: a bucket has one retention, so each class needs its own", other, c.Name, b)
			}
			buckets[b] = c.Name
		}
	}
	for what, p := range map[string]string{keysName: s.Keys, "index": s.Index} {
		if p == "" {
			continue
		}
		if err := checkPlace(p); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if IsBucket(p) {
			b, _, _ := gcs.Split(p)
			if class := buckets[b]; class != "" {
				return fmt.Errorf("%s and class %s share the bucket %s: what must be erasable needs a bucket without retention", what, class, b)
			}
		}
	}
	return nil
}

// Folder returns the folder of a vault that is one folder, else "".
func (s Spec) Folder() string {
	if s.All == "" || IsBucket(s.All) {
		return ""
	}
	return s.All
}

// Vault is a vault that was opened.
type Vault struct {
	vault.Vault
	spec   Spec
	opened map[string]opened
}

type opened interface {
	vault.Vault
	io.Closer
}

// Config says how a vault is opened.
type Config struct {
	Spec Spec
	// Write opens the folders among the places for writing, Beside does so
	// beside a sink, see [vault.FolderConfig].
	Write  bool
	Beside bool
	Logger *slog.Logger
}

// Open opens all places of a vault. Close it when done.
func Open(ctx context.Context, c Config) (*Vault, error) {
	v := &Vault{spec: c.Spec, opened: map[string]opened{}}
	open := func(at string) (vault.Vault, error) {
		if o := v.opened[at]; o != nil {
			return o, nil
		}
		var o opened
		var err error
		if IsBucket(at) {
			o, err = gcs.Open(ctx, gcs.Config{Address: at, Logger: c.Logger})
		} else {
			o, err = vault.OpenFolder(vault.FolderConfig{Dir: at, Write: c.Write, Beside: c.Beside, Logger: c.Logger})
		}
		if err != nil {
			return nil, err
		}
		v.opened[at] = o
		return o, nil
	}
	err := func() error {
		if c.Spec.All != "" {
			var err error
			v.Vault, err = open(c.Spec.All)
			return err
		}
		keys, err := open(c.Spec.Keys)
		if err != nil {
			return err
		}
		var members []vault.Member
		for _, class := range c.Spec.Classes {
			m, err := open(class.Place)
			if err != nil {
				return err
			}
			members = append(members, vault.Member{Class: class.Name, Retention: class.Retention, Vault: m})
		}
		v.Vault, err = vault.NewSet(keys, members...)
		return err
	}()
	if err != nil {
		_ = v.Close()
		return nil, err
	}
	return v, nil
}

// Longest returns the class of the segments, empty where places are not told
// apart.
func (v *Vault) Longest() string {
	if s, ok := v.Vault.(*vault.Set); ok {
		return s.Longest()
	}
	return ""
}

// Retention returns the longest retention, 0 where it is not known.
func (v *Vault) Retention() time.Duration {
	if s, ok := v.Vault.(*vault.Set); ok {
		return s.Retention()
	}
	return 0
}

// Expire removes a segment whose retention is over, see [vault.Folder.Expire].
// A bucket does that by its lifecycle, and no identity of the recorder's may.
func (v *Vault) Expire(ctx context.Context, name string) error {
	at := v.Vault
	if s, ok := at.(*vault.Set); ok {
		at = s.Place(name)
	}
	if f, ok := at.(*vault.Folder); ok {
		return f.Expire(ctx, name)
	}
	return fmt.Errorf("%s: %w", name, ErrLifecycle)
}

// EraseKey removes a wrapped data key for good, see [vault.Folder.EraseKey] and
// [gcs.Vault.EraseKey].
func (v *Vault) EraseKey(ctx context.Context, name string) error {
	at := v.Vault
	if s, ok := at.(*vault.Set); ok {
		at = s.Place(name)
	}
	e, ok := at.(interface {
		EraseKey(ctx context.Context, name string) error
	})
	if !ok {
		return fmt.Errorf("%s: the key store erases nothing", name)
	}
	return e.EraseKey(ctx, name)
}

// Hold sets or removes Cloud Storage's own hold on a segment, so that the
// bucket's lifecycle does not delete it. In a folder it does nothing: there
// "recorder expire" reads the holds.
func (v *Vault) Hold(ctx context.Context, name string, on bool) error {
	at := v.Vault
	if s, ok := at.(*vault.Set); ok {
		at = s.Place(name)
	}
	if b, ok := at.(*gcs.Vault); ok {
		return b.Hold(ctx, name, on)
	}
	return nil
}

// Bucket reports whether the name rests in Cloud Storage.
func (v *Vault) Bucket(name string) bool {
	at := v.Vault
	if s, ok := at.(*vault.Set); ok {
		at = s.Place(name)
	}
	_, ok := at.(*gcs.Vault)
	return ok
}

// ErrLifecycle means that a bucket's own lifecycle deletes what expired.
var ErrLifecycle = errors.New("a bucket expires by its lifecycle (\"recorder vault init\" sets it)")

// String returns the text that names the vault; that of a folder is absolute.
func (v *Vault) String() string {
	if f, ok := v.Vault.(*vault.Folder); ok {
		return f.Dir()
	}
	return v.spec.Text
}

// Close closes all places.
func (v *Vault) Close() error {
	var errs []error
	for _, at := range slices.Sorted(maps.Keys(v.opened)) {
		errs = append(errs, v.opened[at].Close())
	}
	return errors.Join(errs...)
}
