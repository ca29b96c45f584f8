//go:build conformance

package conformance

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/record"
)

func kmsReference(t *testing.T) kms.Reference {
	t.Helper()
	version, err := kms.ParseVersion(env(t, "CONFORMANCE_KMS_SIGN", "gcpkms://.../cryptoKeyVersions/N of a key with the algorithm EC_SIGN_ED25519, with roles/cloudkms.signerVerifier on it"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := kms.Find(t.Context(), kms.Config{}, "conformance", version)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func kmsWrapping(t *testing.T) kms.Name {
	t.Helper()
	key, err := kms.ParseKey(env(t, "CONFORMANCE_KMS_WRAP", "gcpkms://.../cryptoKeys/K of a key of the purpose encryption, with roles/cloudkms.cryptoKeyEncrypterDecrypter on it"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func kmsSign(t *testing.T) {
	r := kmsReference(t)
	s, err := r.Signer(t.Context(), kms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: "conformance\n"}, s)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(r.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
		t.Error(err)
	}
}

func kmsSignSize(t *testing.T) {
	s, err := kmsReference(t).Signer(t.Context(), kms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(bytes.Repeat([]byte("x"), kms.MaxSigned)); err != nil {
		t.Error(err)
	}
}

func kmsKeyset(t *testing.T) {
	h, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	text, err := kms.Wrap(t.Context(), kms.Config{}, kmsWrapping(t), h)
	if err != nil {
		t.Fatal(err)
	}
	w, _, err := kms.ParseWrapped(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(t.Context(), kms.Config{}); err != nil {
		t.Error(err)
	}
}

func kmsRefusals(t *testing.T) {
	r := kmsReference(t)
	r.Name.Version = "999999"
	_, err := kms.Find(t.Context(), kms.Config{}, "conformance", r.Name)
	var e *kms.Error
	if !errors.As(err, &e) || status.Code(e.Err) != codes.NotFound || e.Fix == "" {
		t.Errorf("a version that is not there: %v", err)
	}
	h, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	text, err := kms.Wrap(t.Context(), kms.Config{}, kmsWrapping(t), h)
	if err != nil {
		t.Fatal(err)
	}
	// A letter of the ciphertext's base64, far from its ends.
	i := bytes.Index(text, []byte(`"encryptedKeyset"`)) + 120
	if text[i] == 'A' {
		text[i] = 'B'
	} else {
		text[i] = 'A'
	}
	w, _, err := kms.ParseWrapped(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = w.Open(t.Context(), kms.Config{}); !errors.As(err, &e) || status.Code(e.Err) != codes.InvalidArgument {
		t.Errorf("a changed keyset: %v", err)
	}
}
