package policy

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/open-policy-agent/opa/v1/bundle"
)

//go:embed default/*.rego default/data.json
var defaults embed.FS

// Bounds of a policy's source.
const (
	maxFile  = 16 << 20 // bytes of one file
	maxTotal = 64 << 20 // bytes of all files
	maxFiles = 1000
	maxDepth = 64 // levels of a data document
)

const testSuffix = "_test.rego"

// source is a policy as it was read: its files by slash-separated name.
type source struct {
	name  string
	files map[string][]byte
	// defaultRules is true when the rules are the embedded ones.
	defaultRules bool
}

// digest returns the digest over the sorted files, each as its name and its
// content with their lengths before them.
func (s *source) digest() string {
	h := sha256.New()
	part := func(b []byte) {
		io.WriteString(h, strconv.Itoa(len(b))+":")
		h.Write(b)
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		part([]byte(name))
		part(s.files[name])
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// withDefaultRules adds the embedded rules where the source has none of its own.
func (s *source) withDefaultRules() error {
	for name := range s.files {
		if strings.HasSuffix(name, ".rego") {
			return nil
		}
	}
	s.defaultRules = true
	names, err := fs.Glob(defaults, "default/*.rego")
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, testSuffix) {
			continue
		}
		if s.files[name], err = defaults.ReadFile(name); err != nil {
			return err
		}
	}
	return nil
}

// relevant reports whether a file of this name takes part in the policy.
// Tests decide nothing: they are left out.
func relevant(name string) (bool, error) {
	base := path.Base(name)
	switch path.Ext(base) {
	case ".rego":
		return !strings.HasSuffix(base, testSuffix), nil
	case ".json", ".yaml", ".yml":
		switch {
		case base == "data.json", base == "data.yaml", base == "data.yml":
			return true, nil
		case strings.HasSuffix(base, ".schema.json"):
			return false, nil
		}
		return false, fmt.Errorf("%s: data is read from files named data.json or data.yaml only: rename the file, put it in a folder of its own as data.json, or take it away", name)
	}
	return false, nil
}

// read returns the source that the configuration names.
func (e *Engine) read(ctx context.Context) (*source, error) {
	var s *source
	var err error
	switch {
	case e.config.Dir != "":
		s, err = readStable(ctx, e.config.Dir)
	case e.config.Bundle != "":
		s, err = readBundle(e.config.Bundle, e.config.PublicKey)
	default:
		s = &source{name: "embedded default", files: map[string][]byte{}}
		s.files["data.json"], err = defaults.ReadFile("default/data.json")
	}
	if err != nil {
		return nil, err
	}
	if len(s.files) == 0 {
		return nil, fmt.Errorf("%s: no .rego, data.json or data.yaml there", s.name)
	}
	return s, s.withDefaultRules()
}

// readStable reads the folder until two readings agree: half of a change must
// not become a policy.
func readStable(ctx context.Context, dir string) (*source, error) {
	last, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	for range 5 {
		s, err := readDir(dir)
		if err != nil {
			return nil, err
		}
		if maps.EqualFunc(s.files, last.files, bytes.Equal) {
			return s, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		last = s
	}
	return nil, fmt.Errorf("%s: its files keep changing while they are read", dir)
}

// readDir reads the folder and the folders in it. Names that begin with a dot
// are left out (a Kubernetes volume keeps its versions there); links to files
// are followed, links to folders are not.
func readDir(dir string) (*source, error) {
	s := &source{name: dir, files: map[string][]byte{}}
	total := 0
	var walk func(sub string) error
	walk = func(sub string) error {
		entries, err := os.ReadDir(filepath.Join(dir, filepath.FromSlash(sub)))
		if err != nil {
			return err
		}
		for _, entry := range entries {
			name := path.Join(sub, entry.Name())
			if strings.HasPrefix(entry.Name(), ".") {
				continue
			}
			if entry.IsDir() {
				if strings.Count(name, "/") >= maxDepth {
					return fmt.Errorf("%s: folders nest deeper than %d", name, maxDepth)
				}
				if err := walk(name); err != nil {
					return err
				}
				continue
			}
			ok, err := relevant(name)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			full := filepath.Join(dir, filepath.FromSlash(name))
			info, err := os.Stat(full)
			if err != nil {
				return err
			}
			if !info.Mode().IsRegular() {
				return fmt.Errorf("%s: not a regular file", full)
			}
			b, err := readLimited(full, maxFile)
			if err != nil {
				return err
			}
			if total += len(b); total > maxTotal || len(s.files) == maxFiles {
				return fmt.Errorf("%s: more than %d files or %d bytes", dir, maxFiles, maxTotal)
			}
			s.files[name] = b
		}
		return nil
	}
	if err := walk(""); err != nil {
		return nil, err
	}
	return s, nil
}

func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return b, nil
}

// readBundle reads an OPA bundle (a .tar.gz file) and, with a key, verifies its
// signature (https://www.openpolicyagent.org/docs/latest/management-bundles/#signing).
func readBundle(file, keyFile string) (*source, error) {
	b, err := readLimited(file, maxTotal)
	if err != nil {
		return nil, err
	}
	if err := checkInflated(b); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	// Lazy: the raw files are wanted, and this package parses them itself.
	r := bundle.NewReader(bytes.NewReader(b)).WithLazyLoadingMode(true).WithSizeLimitBytes(maxFile)
	if keyFile != "" {
		key, err := readPublicKey(keyFile)
		if err != nil {
			return nil, err
		}
		const id = "verbatim"
		r = r.WithBundleVerificationConfig(bundle.NewVerificationConfig(map[string]*bundle.KeyConfig{id: key}, id, "", nil))
	}
	loaded, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", file, bundleError(err, keyFile))
	}
	if loaded.Type() != bundle.SnapshotBundleType {
		return nil, fmt.Errorf("bundle %s: a delta bundle: build a whole one", file)
	}
	if len(loaded.WasmModules)+len(loaded.PlanModules) > 0 {
		return nil, fmt.Errorf("bundle %s: compiled policies are not run: build it with the target rego", file)
	}
	s := &source{name: file, files: map[string][]byte{}}
	for _, raw := range loaded.Raw {
		name := strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(raw.Path)), "/")
		ok, err := relevant(name)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: %w", file, err)
		}
		if !ok {
			continue
		}
		if _, twice := s.files[name]; twice {
			return nil, fmt.Errorf("bundle %s: %s stands in it twice", file, name)
		}
		if len(s.files) == maxFiles {
			return nil, fmt.Errorf("bundle %s: more than %d files", file, maxFiles)
		}
		s.files[name] = raw.Value
	}
	return s, nil
}

func bundleError(err error, keyFile string) error {
	switch {
	case keyFile == "" && strings.Contains(err.Error(), "verification key"):
		return errors.New("it is signed, but no public key is configured: set the key that verifies it")
	case keyFile != "" && strings.Contains(err.Error(), "missing .signatures.json"):
		return errors.New("it is not signed, but a public key is configured: sign it (opa build --signing-key)")
	}
	return err
}

// checkInflated refuses an archive that grows beyond the bounds.
func checkInflated(b []byte) error {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("not a .tar.gz file: %w", err)
	}
	n, err := io.Copy(io.Discard, io.LimitReader(z, maxTotal+1))
	if err != nil {
		return fmt.Errorf("not a .tar.gz file: %w", err)
	}
	if n > maxTotal {
		return fmt.Errorf("inflates to more than %d bytes", maxTotal)
	}
	return nil
}

// readPublicKey reads a PEM file. The key fixes the algorithm, not the bundle.
func readPublicKey(file string) (*bundle.KeyConfig, error) {
	b, err := readLimited(file, 1<<20)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block in it", file)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s: more than one PEM block in it", file)
	}
	var key any
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		var c *x509.Certificate
		if c, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = c.PublicKey
		}
	default:
		return nil, fmt.Errorf("%s: holds a %s: want a PUBLIC KEY", file, block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	alg := ""
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("%s: RSA key of %d bits: want 2048 or more", file, k.N.BitLen())
		}
		alg = "RS256"
	case *ecdsa.PublicKey:
		alg = map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return nil, fmt.Errorf("%s: Ed25519 keys cannot sign OPA bundles: use RSA or ECDSA", file)
	}
	if alg == "" {
		return nil, fmt.Errorf("%s: a %T cannot sign OPA bundles: use RSA or ECDSA", file, key)
	}
	pkix, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})
	return &bundle.KeyConfig{Key: string(text), Algorithm: alg}, nil
}

// data returns the data documents merged: a/b/data.json stands at data.a.b.
func (s *source) data() (map[string]any, error) {
	root := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		var doc map[string]any
		var err error
		switch path.Ext(name) {
		case ".json":
			doc, err = parseJSON(name, s.files[name])
		case ".yaml", ".yml":
			doc, err = parseYAML(name, s.files[name])
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		if dir := path.Dir(name); dir != "." {
			parts := strings.Split(dir, "/")
			for _, part := range slices.Backward(parts) {
				doc = map[string]any{part: doc}
			}
		}
		if err := merge(name, "", root, doc); err != nil {
			return nil, err
		}
	}
	if _, ok := root["verbatim"]; ok {
		return nil, errors.New("data: the key verbatim is kept for the rules: give the data another name")
	}
	return root, nil
}

func merge(name, at string, into, from map[string]any) error {
	for k, v := range from {
		old, ok := into[k]
		if !ok {
			into[k] = v
			continue
		}
		a, okA := old.(map[string]any)
		b, okB := v.(map[string]any)
		if !okA || !okB {
			return fmt.Errorf("%s: the key %s stands in another file too", name, at+k)
		}
		if err := merge(name, at+k+".", a, b); err != nil {
			return err
		}
	}
	return nil
}

// parseJSON reads one JSON object. A key that stands twice is an error: of two
// grants of one name, one would be lost without a word.
func parseJSON(name string, b []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	fail := func(err error) error {
		at := int(d.InputOffset())
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			at = int(syntax.Offset)
		}
		at = min(at, len(b))
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s:%d: %w", name, 1+bytes.Count(b[:at], []byte("\n")), err)
	}
	v, err := jsonValue(d, 0)
	if err != nil {
		return nil, fail(err)
	}
	doc, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s:1: want one JSON object", name)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fail(errors.New("more after the JSON object"))
	}
	return doc, nil
}

func jsonValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		m := map[string]any{}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			key, _ := k.(string)
			if _, twice := m[key]; twice {
				return nil, fmt.Errorf("the key %q stands twice in one object", key)
			}
			if m[key], err = jsonValue(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err = d.Token()
		return m, err
	case json.Delim('['):
		a := []any{}
		for d.More() {
			v, err := jsonValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		_, err = d.Token()
		return a, err
	}
	return t, nil
}

func parseYAML(name string, b []byte) (map[string]any, error) {
	var v any
	if err := yaml.UnmarshalWithOptions(b, &v, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, yamlError(err))
	}
	if v == nil {
		return map[string]any{}, nil
	}
	j, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%s: no JSON for it: %w", name, err)
	}
	doc, err := parseJSON(name, j)
	if err != nil {
		return nil, fmt.Errorf("%s: want one mapping with string keys", name)
	}
	return doc, nil
}

// yamlError keeps the message's first line: the rest is a drawing of the source.
func yamlError(err error) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(line)
}
