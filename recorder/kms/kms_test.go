package kms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/kms/kmstest"
	"verbatim.dev/recorder/record"
)

const (
	ring      = "gcpkms://projects/p/locations/europe-west3/keyRings/r/cryptoKeys/"
	signing   = ring + "deployment"
	version1  = signing + "/cryptoKeyVersions/1"
	wrapping  = ring + "tenant"
	shortTime = 2 * time.Second
)

type rig struct {
	*kmstest.Server
	c kms.Config
}

func start(t testing.TB) *rig {
	t.Helper()
	s := kmstest.New(t)
	s.Key(signing, true)
	s.Key(wrapping, false)
	return &rig{s, kms.Config{Options: s.Options(), Timeout: shortTime}}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (r *rig) reference(t testing.TB) kms.Reference {
	t.Helper()
	ref, err := kms.Find(t.Context(), r.c, "acme", must(kms.ParseVersion(version1)))
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func tenant(t testing.TB) *keyset.Handle {
	t.Helper()
	h, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// secrets are the forms in which a tenant's private keyset must be nowhere.
func secrets(t testing.TB, h *keyset.Handle) [][]byte {
	t.Helper()
	m := insecurecleartextkeyset.KeysetMaterial(h)
	var out [][]byte
	for _, k := range m.GetKey() {
		value := k.GetKeyData().GetValue()
		private := value[len(value)-16:] // the end of the private key's bytes
		out = append(out, private, []byte(hex.EncodeToString(private)), []byte(base64.StdEncoding.EncodeToString(value))[:40])
	}
	return out
}

func absent(t *testing.T, where string, text []byte, secrets ...[]byte) {
	t.Helper()
	for _, s := range secrets {
		if bytes.Contains(text, s) {
			t.Errorf("%s holds a key's bytes", where)
		}
	}
}

func TestSign(t *testing.T) {
	r := start(t)
	ref := r.reference(t)
	s, err := kms.NewSigner(t.Context(), r.c, ref.Text())
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: "a text\n"}, s)
	if err != nil {
		t.Fatal(err)
	}
	// Whoever verifies needs no Cloud KMS, and knows nothing of it.
	if _, err := note.Open(signed, note.VerifierList(must(note.NewVerifier(ref.Key)))); err != nil {
		t.Error(err)
	}
	if want := []string{"GetPublicKey", "AsymmetricSign"}; !slices.Equal(r.Calls(), want) {
		t.Errorf("calls %q, want %q", r.Calls(), want)
	}
	if err := s.(*kms.Signer).Check(); err != nil {
		t.Error(err)
	}
	if _, err := s.Sign(make([]byte, kms.MaxSigned)); err != nil {
		t.Error(err)
	}
	if _, err := s.Sign(make([]byte, kms.MaxSigned+1)); err == nil || !strings.Contains(err.Error(), "65537 bytes") {
		t.Errorf("too much: %v", err)
	}
}

// TestSignerOfFile reads a key that is in the file itself.
func TestSignerOfFile(t *testing.T) {
	secret, public, err := note.GenerateKey(nil, "acme")
	if err != nil {
		t.Fatal(err)
	}
	s, err := kms.NewSigner(t.Context(), kms.Config{}, secret+"\n")
	if err != nil {
		t.Fatal(err)
	}
	signed := must(note.Sign(&note.Note{Text: "a text\n"}, s))
	if _, err := note.Open(signed, note.VerifierList(must(note.NewVerifier(public)))); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "rubbish", secret[:len(secret)-3], "kms " + secret, "key " + secret + "\nkms " + version1, "kms " + version1 + "\nkey " + public + "\n" + secret} {
		_, err := kms.NewSigner(t.Context(), kms.Config{}, text)
		if err == nil {
			t.Errorf("%.20q is taken", text)
			continue
		}
		absent(t, "the error", []byte(err.Error()), []byte(secret[len(secret)-20:]))
	}
}

func TestFind(t *testing.T) {
	tests := map[string]struct {
		fault kmstest.Fault
		times int
		want  string // empty: no error
	}{
		"well":                    {},
		"once a bit":              {kmstest.Corrupt, 1, ""},
		"twice no checksum":       {kmstest.NoSum, 2, ""},
		"once unavailable":        {kmstest.Unavailable, 1, ""},
		"always a bit":            {kmstest.Corrupt, -1, "checksum of the public key is wrong"},
		"always a wrong checksum": {kmstest.WrongSum, -1, "checksum of the public key is wrong"},
		"no checksum":             {kmstest.NoSum, -1, "no checksum of the public key"},
		"other name":              {kmstest.OtherName, -1, "it is from projects/p/"},
		"refused":                 {kmstest.Refuse, -1, "gcloud kms keys add-iam-policy-binding deployment --keyring r --location europe-west3 --project p --member serviceAccount:ACCOUNT --role roles/cloudkms.signerVerifier"},
		"api disabled":            {kmstest.APIDisabled, -1, "gcloud services enable cloudkms.googleapis.com --project p"},
		"quota":                   {kmstest.Quota, -1, "quota"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			r.Fail(tt.fault, "GetPublicKey", tt.times)
			_, err := kms.Find(t.Context(), r.c, "acme", must(kms.ParseVersion(version1)))
			check(t, err, tt.want)
		})
	}
	r := start(t)
	find := func(name string) error {
		_, err := kms.Find(t.Context(), r.c, "acme", must(kms.ParseVersion(name)))
		return err
	}
	check(t, find(signing+"/cryptoKeyVersions/2"), "gcloud kms keys versions create --key deployment")
	check(t, find(ring+"none/cryptoKeyVersions/1"), "gcloud kms keys create none --keyring r --location europe-west3 --project p --purpose asymmetric-signing --default-algorithm ec-sign-ed25519")
	check(t, find(wrapping+"/cryptoKeyVersions/1"), "want a key of the purpose asymmetric-signing")
	r.Algorithm(version1, kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256)
	check(t, find(version1), "the algorithm is EC_SIGN_P256_SHA256, want EC_SIGN_ED25519")
	r.Algorithm(version1, kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256)
	check(t, find(version1), "want EC_SIGN_ED25519")
	r.Algorithm(version1, kmspb.CryptoKeyVersion_EC_SIGN_ED25519)
	r.Disable(version1, true)
	check(t, find(version1), "gcloud kms keys versions enable 1 --key deployment")
	if _, err := kms.Find(t.Context(), r.c, "a name", must(kms.ParseVersion(version1))); err == nil {
		t.Error("a name with a space is taken")
	}
}

func check(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want one with %q", err, want)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n\x00") {
		t.Errorf("more than a line: %q", err)
	}
}

func TestSignFaults(t *testing.T) {
	tests := map[string]struct {
		fault kmstest.Fault
		times int
		want  string // empty: no error
		calls int    // 0: any
	}{
		"once a bit":               {kmstest.Corrupt, 1, "", 2},
		"twice another key":        {kmstest.OtherKey, 2, "", 3},
		"once unavailable":         {kmstest.Unavailable, 1, "", 2},
		"a bit":                    {kmstest.Corrupt, -1, "checksum of the signature is wrong", 3},
		"a bit, the checksum fits": {kmstest.CorruptAll, -1, "the signature is not that of acme+", 3},
		"wrong checksum":           {kmstest.WrongSum, -1, "checksum of the signature is wrong", 3},
		"no checksum":              {kmstest.NoSum, -1, "no checksum of the signature", 3},
		"checksum did not arrive":  {kmstest.Unverified, -1, "checksum of the text did not arrive", 3},
		"another key":              {kmstest.OtherKey, -1, "the signature is not that of acme+", 3},
		"another name":             {kmstest.OtherName, -1, "it is from projects/p/", 3},
		"refused":                  {kmstest.Refuse, -1, "needs roles/cloudkms.signerVerifier on the key; run: gcloud kms keys add-iam-policy-binding", 1},
		"api disabled":             {kmstest.APIDisabled, -1, "gcloud services enable cloudkms.googleapis.com --project p", 1},
		"quota":                    {kmstest.Quota, -1, "try again in a minute", 1},
		"unavailable":              {kmstest.Unavailable, -1, "Cloud KMS does not answer", 0},
		"hangs":                    {kmstest.Hang, -1, "Cloud KMS does not answer", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			s, err := r.reference(t).Signer(t.Context(), r.c)
			if err != nil {
				t.Fatal(err)
			}
			r.Fail(tt.fault, "AsymmetricSign", tt.times)
			began := time.Now()
			sig, err := s.Sign([]byte("a text\n"))
			check(t, err, tt.want)
			if err != nil {
				var e *kms.Error
				if !errors.As(err, &e) || e.Fix == "" {
					t.Errorf("the error says no repair: %v", err)
				}
				if sig != nil {
					t.Error("a signature beside the error")
				}
			}
			if took := time.Since(began); took > shortTime+2*time.Second {
				t.Errorf("it took %v", took)
			}
			n := 0
			for _, c := range r.Calls() {
				if c == "AsymmetricSign" {
					n++
				}
			}
			if tt.calls != 0 && n != tt.calls {
				t.Errorf("%d calls, want %d", n, tt.calls)
			}
			if err != nil {
				absent(t, "the error", []byte(err.Error()), r.Secret(version1), []byte(hex.EncodeToString(r.Secret(version1))))
			}
		})
	}
	t.Run("given up", func(t *testing.T) {
		r := start(t)
		ref := r.reference(t)
		ctx, cancel := context.WithCancel(t.Context())
		s, err := ref.Signer(ctx, kms.Config{Options: r.Options()})
		if err != nil {
			t.Fatal(err)
		}
		r.Fail(kmstest.Hang, "", -1)
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := s.Sign([]byte("a text\n")); err == nil {
			t.Error("signed")
		}
	})
	t.Run("rotated behind the name", func(t *testing.T) {
		r := start(t)
		ref := r.reference(t)
		r.Key(signing, true) // somebody has made the key anew
		s, err := ref.Signer(t.Context(), r.c)
		if err != nil {
			t.Fatal(err)
		}
		check(t, s.Check(), "the signature is not that of acme+")
	})
}

func TestKeyset(t *testing.T) {
	r := start(t)
	h := tenant(t)
	key := must(kms.ParseKey(wrapping))
	text, err := kms.Wrap(t.Context(), r.c, key, h)
	if err != nil {
		t.Fatal(err)
	}
	absent(t, "the file", text, secrets(t, h)...)
	if _, err := record.ReadTenant(bytes.NewReader(text), true); err == nil {
		t.Error("the file alone opens")
	}
	w, ok, err := kms.ParseWrapped(text)
	if !ok || err != nil || w.Key != key || w.Info().GetPrimaryKeyId() != h.KeysetInfo().GetPrimaryKeyId() {
		t.Fatalf("%v %v %v", w, ok, err)
	}
	opens := func(text []byte) error {
		w, ok, err := kms.ParseWrapped(text)
		if !ok {
			t.Fatal("no wrapped keyset")
		}
		if err != nil {
			return err
		}
		got, err := w.Open(t.Context(), r.c)
		if err == nil && !bytes.Equal(secrets(t, got)[0], secrets(t, h)[0]) {
			t.Error("another keyset opens")
		}
		return err
	}
	check(t, opens(text), "")

	// What was wrapped with a version before opens while that version is there.
	r.Version(wrapping)
	check(t, opens(text), "")
	again := must(kms.Wrap(t.Context(), r.c, key, h))
	r.Disable(wrapping+"/cryptoKeyVersions/1", true)
	check(t, opens(text), "gcloud kms keys versions enable VERSION --key tenant")
	check(t, opens(again), "")
	r.Disable(wrapping+"/cryptoKeyVersions/1", false)

	// Changed, and moved to another key.
	r.Key(ring+"other", false)
	for name, tt := range map[string]struct{ old, new, want string }{
		"another key":          {"cryptoKeys/tenant", "cryptoKeys/other", "was the file changed, or wrapped with another key?"},
		"no such key":          {"cryptoKeys/tenant", "cryptoKeys/none", "gcloud kms keys create none"},
		"a version":            {"cryptoKeys/tenant", "cryptoKeys/tenant/cryptoKeyVersions/1", "leave out /cryptoKeyVersions/N"},
		"form":                 {"keyset/v1", "keyset/v2", "this program reads verbatim.dev/keyset/v1"},
		"unknown field":        {`"kms"`, `"more": 1, "kms"`, "unknown field"},
		"what it says changed": {`"ENABLED"`, `"DISABLED"`, "the file was changed"},
		"ciphertext":           {`"encryptedKeyset":"A`, `"encryptedKeyset":"B`, "Take it from the backup"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(strings.ReplaceAll(strings.ReplaceAll(string(text), `": `, `":`), "\n", ""), tt.old, tt.new, 1)
			if !strings.Contains(changed, tt.new) {
				t.Fatalf("nothing to change in %s", changed)
			}
			check(t, opens([]byte(changed)), tt.want)
		})
	}
	if _, ok, _ := kms.ParseWrapped(append(slices.Clone(text), '{')); ok {
		t.Error("something behind the keyset is not seen")
	}
}

func TestKeysetFaults(t *testing.T) {
	tests := map[string]struct {
		fault  kmstest.Fault
		method string
		times  int
		want   string // empty: no error
	}{
		"encrypt: once a bit":               {kmstest.Corrupt, "Encrypt", 1, ""},
		"encrypt: a bit":                    {kmstest.Corrupt, "Encrypt", -1, "checksum of the ciphertext is wrong"},
		"encrypt: a bit, the checksum fits": {kmstest.CorruptAll, "Encrypt", -1, "it would not open again"},
		"encrypt: another key":              {kmstest.OtherKey, "Encrypt", -1, "it would not open again"},
		"encrypt: another name":             {kmstest.OtherName, "Encrypt", -1, "it is from projects/p/"},
		"encrypt: did not arrive":           {kmstest.Unverified, "Encrypt", -1, "checksum of the keyset did not arrive"},
		"encrypt: refused":                  {kmstest.Refuse, "Encrypt", -1, "roles/cloudkms.cryptoKeyEncrypterDecrypter"},
		"encrypt: no checksum":              {kmstest.NoSum, "Encrypt", -1, "no checksum of the ciphertext"},
		"encrypt: hangs":                    {kmstest.Hang, "Encrypt", -1, "Cloud KMS does not answer"},
		"decrypt: twice a bit":              {kmstest.Corrupt, "Decrypt", 2, ""},
		"decrypt: a bit":                    {kmstest.Corrupt, "Decrypt", -1, "checksum of the keyset is wrong"},
		"decrypt: wrong checksum":           {kmstest.WrongSum, "Decrypt", -1, "checksum of the keyset is wrong"},
		"decrypt: no checksum":              {kmstest.NoSum, "Decrypt", -1, "no checksum of the keyset"},
		"decrypt: refused":                  {kmstest.Refuse, "Decrypt", -1, "needs roles/cloudkms.cryptoKeyDecrypter on the key"},
		"decrypt: unavailable":              {kmstest.Unavailable, "Decrypt", -1, "Cloud KMS does not answer"},
		"decrypt: hangs":                    {kmstest.Hang, "Decrypt", -1, "Cloud KMS does not answer"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t)
			h := tenant(t)
			key := must(kms.ParseKey(wrapping))
			text := must(kms.Wrap(t.Context(), r.c, key, h))
			w, _, _ := kms.ParseWrapped(text)
			r.Fail(tt.fault, tt.method, tt.times)
			var err error
			if tt.method == "Encrypt" {
				text, err = kms.Wrap(t.Context(), r.c, key, h)
				if err != nil && text != nil {
					t.Error("a file beside the error")
				}
			} else {
				_, err = w.Open(t.Context(), r.c)
			}
			check(t, err, tt.want)
			if err != nil {
				absent(t, "the error", []byte(err.Error()), secrets(t, h)...)
			}
		})
	}
}

// TestNoIdentity tells what to do where there are no credentials.
func TestNoIdentity(t *testing.T) {
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none.json"))
	r := start(t)
	s, err := r.reference(t).Signer(t.Context(), kms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Sign([]byte("x"))
	check(t, err, "gcloud auth application-default login")
}

func TestNames(t *testing.T) {
	for text, ok := range map[string]bool{
		wrapping:                                 true,
		version1:                                 true,
		ring + "k/cryptoKeyVersions/0":           false,
		ring + "k/cryptoKeyVersions/":            false,
		ring + "k/cryptoKeyVersions/one":         false,
		ring + "k/":                              false,
		ring:                                     false,
		ring + "k k":                             false,
		ring + "k\n":                             false,
		ring + "..":                              false,
		strings.TrimPrefix(wrapping, "gcpkms"):   false,
		strings.TrimPrefix(wrapping, kms.Scheme): false,
		"gcpkms://projects/example.com:p/locations/eu/keyRings/r/cryptoKeys/k":          true,
		"gcpkms://locations/eu/projects/p/keyRings/r/cryptoKeys/k":                      false,
		"gcpkms://projects/p/locations/eu/keyRings/r/cryptoKeys/k/versions/1":           false,
		"gcpkms://projects/-evil/locations/eu/keyRings/r/cryptoKeys/k":                  false,
		"gcpkms://projects/p/locations/eu/keyRings/r/cryptoKeys/k;rm":                   false,
		"gcpkms://projects/p/locations/eu/keyRings/r/cryptoKeys/k/cryptoKeyVersions/12": true,
	} {
		n, err := kms.ParseName(text)
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if ok && n.String() != text {
			t.Errorf("%q reads back as %q", text, n)
		}
	}
}

func FuzzFile(f *testing.F) {
	r := start(f)
	f.Add([]byte(r.reference(f).Text()))
	f.Add(must(kms.Wrap(f.Context(), r.c, must(kms.ParseKey(wrapping)), tenant(f))))
	f.Add([]byte(`{"wrapped":"verbatim.dev/keyset/v1","kms":"` + wrapping + `","keyset":{}}`))
	f.Add([]byte("kms x\nkey y"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ref, ok, err := kms.ParseReference(string(b)); ok && err == nil {
			again, ok, err := kms.ParseReference(ref.Text())
			if !ok || err != nil || again != ref {
				t.Errorf("%+v reads back as %+v, %v", ref, again, err)
			}
		}
		if w, ok, err := kms.ParseWrapped(b); ok && err == nil && (w.Key == kms.Name{} || w.Info() == nil) {
			t.Errorf("%q is taken without a key", b)
		}
	})
}

// TestNothingIsWritten looks for a key's bytes in what the process leaves.
func TestNothingIsWritten(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	r := start(t)
	h := tenant(t)
	w, _, err := kms.ParseWrapped(must(kms.Wrap(t.Context(), r.c, must(kms.ParseKey(wrapping)), h)))
	if err != nil {
		t.Fatal(err)
	}
	must(w.Open(t.Context(), r.c))
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files are left: %v %v", left, err)
	}
}
