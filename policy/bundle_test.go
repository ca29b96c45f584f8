package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/bundle"
)

// pack writes files as a bundle and, with a key, signs it as opa build does.
func pack(t *testing.T, files map[string]string, signer *ecdsa.PrivateKey) []byte {
	t.Helper()
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	add := func(name, content string) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if signer != nil {
		hasher, err := bundle.NewSignatureHasher(bundle.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		var infos []bundle.FileInfo
		for _, name := range names {
			var value any = []byte(files[name])
			if bundle.IsStructuredDoc(name) {
				if err := json.Unmarshal([]byte(files[name]), &value); err != nil {
					t.Fatal(err)
				}
			}
			h, err := hasher.HashFile(value)
			if err != nil {
				t.Fatal(err)
			}
			infos = append(infos, bundle.NewFile(name, hexOf(h), "SHA-256"))
		}
		der, err := x509.MarshalECPrivateKey(signer)
		if err != nil {
			t.Fatal(err)
		}
		key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
		token, err := bundle.GenerateSignedToken(infos, bundle.NewSigningConfig(key, "ES256", ""), "anything")
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(map[string]any{"signatures": []string{token}})
		if err != nil {
			t.Fatal(err)
		}
		add(".signatures.json", string(b))
	}
	for _, name := range names {
		add(name, files[name])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, c := range b {
		s.WriteByte(digits[c>>4])
		s.WriteByte(digits[c&15])
	}
	return s.String()
}

// repack changes the files of a bundle and leaves its signature alone; a nil
// content takes a file away.
func repack(t *testing.T, b []byte, change map[string]*string, extra ...string) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	w := tar.NewWriter(zw)
	write := func(name, content string) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := change[h.Name]; ok {
			if c == nil {
				continue
			}
			content = []byte(*c)
		}
		write(h.Name, string(content))
	}
	for i := 0; i < len(extra); i += 2 {
		write(extra[i], extra[i+1])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key, file
}

func TestBundle(t *testing.T) {
	ctx := context.Background()
	key, public := newKey(t)
	other, _ := newKey(t)
	files := map[string]string{"p.rego": fixed(denyAll)["p.rego"], "data.json": `{"a": 1}`}
	signed := pack(t, files, key)
	text := func(s string) *string { return &s }
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	open := func(b []byte, keyFile string) (*Engine, error) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return New(ctx, Config{Bundle: file, PublicKey: keyFile})
	}

	e, err := open(signed, public)
	if err != nil {
		t.Fatal(err)
	}
	if want := newEngine(t, Config{Dir: dirWith(t, files)}).Digest(); e.Digest() != want {
		t.Errorf("digest %s of the bundle, %s of its folder", e.Digest(), want)
	}
	if d, err := e.Decide(ctx, rowsInput()); err != nil || d.Allow {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := open(pack(t, files, nil), ""); err != nil {
		t.Errorf("an unsigned bundle without a key: %v", err)
	}
	e, err = open(pack(t, map[string]string{"data.json": analystsData}, key), public)
	if err != nil {
		t.Fatalf("a bundle of data only: %v", err)
	}
	if d, err := e.Decide(ctx, rowsInput()); err != nil || !d.Allow {
		t.Errorf("%+v, %v", d, err)
	}

	for _, tt := range []struct {
		name string
		b    []byte
		key  string
		want string
	}{
		{"unsigned", pack(t, files, nil), public, "not signed"},
		{"no key for it", signed, "", "no public key"},
		{"another key", pack(t, files, other), public, "verify"},
		{"changed rule", repack(t, signed, map[string]*string{"p.rego": text(fixed(allowAll)["p.rego"])}), public, "p.rego"},
		{"changed data", repack(t, signed, map[string]*string{"data.json": text(`{"a": 2}`)}), public, "data.json"},
		{"added rule", repack(t, signed, nil, "q.rego", "package q\n"), public, "q.rego"},
		{"rule twice", repack(t, signed, nil, "p.rego", fixed(allowAll)["p.rego"]), public, "p.rego"},
		{"removed data", repack(t, signed, map[string]*string{"data.json": nil}), public, "data.json"},
		{"signatures emptied", repack(t, signed, map[string]*string{".signatures.json": text(`{"signatures": []}`)}), public, "missing JWT"},
		{"signature of nothing", repack(t, signed, map[string]*string{".signatures.json": text(`{"signatures": ["e30.e30.e30"]}`)}), public, "verify"},
		{"not an archive", []byte("hello"), public, "not a .tar.gz"},
		{"cut", signed[:len(signed)/2], public, "not a .tar.gz"},
		{"a bomb", bomb(t), public, "inflates"},
		{"broken rule", pack(t, map[string]string{"p.rego": "package verbatim.policy\n\ndecision := {"}, key), public, "p.rego"},
		{"compiled", pack(t, map[string]string{"p.rego": files["p.rego"], "policy.wasm": "x"}, key), public, "compiled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open(tt.b, tt.key)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}

	// A tampered bundle keeps the old policy.
	e, err = open(signed, public)
	if err != nil {
		t.Fatal(err)
	}
	before := e.Digest()
	if err := os.WriteFile(file, repack(t, signed, map[string]*string{"p.rego": text(fixed(allowAll)["p.rego"])}), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := e.Reload(ctx); changed || err == nil || e.Digest() != before {
		t.Errorf("%v, %v", changed, err)
	}
}

func bomb(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	zero := make([]byte, 1<<20)
	for range maxTotal>>20 + 1 {
		if _, err := z.Write(zero); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestPublicKeyErrors(t *testing.T) {
	key, _ := newKey(t)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	for name, content := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "private": secret, "broken": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte("x")}),
	} {
		file := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readPublicKey(file)
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), string(der)) {
			t.Errorf("%s: the key shows", name)
		}
	}
	if _, err := readPublicKey(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a file that is not there")
	}
}
