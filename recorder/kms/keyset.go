package kms

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"google.golang.org/protobuf/proto"
)

// wrappedVersion names the form of a wrapped keyset, and is bound to it.
const wrappedVersion = "verbatim.dev/keyset/v1"

// maxWrapped is how many bytes Cloud KMS takes at most, for a key in software
// (https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1#encryptrequest);
// for one in an HSM 8 KiB, which it says itself.
const maxWrapped = 64 << 10

// Wrapped is a private keyset that a key in Cloud KMS encrypts: who has it alone
// can open nothing. A file of it is JSON:
//
//	{"wrapped": "verbatim.dev/keyset/v1", "kms": "gcpkms://...", "keyset": {...}}
//
// with Tink's encrypted keyset. The form and the key's name are its associated
// data.
type Wrapped struct {
	Key    Name
	keyset json.RawMessage
	info   *tinkpb.KeysetInfo
}

type wrappedFile struct {
	Wrapped string          `json:"wrapped"`
	KMS     string          `json:"kms"`
	Keyset  json.RawMessage `json:"keyset"`
}

// ParseWrapped reads a wrapped keyset. It reports false where the text is none,
// such as a keyset in clear. Nothing is asked of Cloud KMS.
func ParseWrapped(text []byte) (w Wrapped, ok bool, err error) {
	var form struct {
		Wrapped *string `json:"wrapped"`
	}
	if json.Unmarshal(text, &form) != nil || form.Wrapped == nil {
		return w, false, nil
	}
	if *form.Wrapped != wrappedVersion {
		return w, true, fmt.Errorf("wrapped keyset of the form %.40q: this program reads %s", *form.Wrapped, wrappedVersion)
	}
	var f wrappedFile
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return w, true, fmt.Errorf("wrapped keyset: %w", err)
	}
	if w.Key, err = ParseKey(f.KMS); err != nil {
		return w, true, fmt.Errorf("wrapped keyset: kms: %w", err)
	}
	w.keyset = f.Keyset
	k, err := w.reader().ReadEncrypted()
	if err != nil {
		return w, true, fmt.Errorf("wrapped keyset: %w", err)
	}
	if w.info = k.GetKeysetInfo(); len(k.GetEncryptedKeyset()) == 0 || len(w.info.GetKeyInfo()) == 0 {
		return w, true, errors.New("wrapped keyset: it holds no keyset")
	}
	return w, true, nil
}

func (w Wrapped) reader() *keyset.JSONReader {
	return keyset.NewJSONReader(bytes.NewReader(w.keyset))
}

// Info says which keys are in it. It is proven only by [Wrapped.Open].
func (w Wrapped) Info() *tinkpb.KeysetInfo { return w.info }

func (w Wrapped) associated() []byte { return []byte(wrappedVersion + "\n" + w.Key.String()) }

// Open has Cloud KMS decrypt the keyset.
func (w Wrapped) Open(ctx context.Context, c Config) (*keyset.Handle, error) {
	a := &aead{c: c, key: w.Key}
	h, err := keyset.ReadWithContext(ctx, w.reader(), a, w.associated())
	if err = cmp.Or(a.err, err); err != nil {
		return nil, fmt.Errorf("wrapped keyset: %w", err)
	}
	if !proto.Equal(h.KeysetInfo(), w.info) {
		return nil, errors.New("wrapped keyset: it says that it holds other keys than it does: the file was changed")
	}
	return h, nil
}

// Wrap has Cloud KMS encrypt a private keyset, with the key's primary version,
// and returns the file. It opens again before it is returned: who relied on one
// that does not could read nothing.
func Wrap(ctx context.Context, c Config, key Name, h *keyset.Handle) ([]byte, error) {
	var b bytes.Buffer
	w := Wrapped{Key: key}
	a := &aead{c: c, key: key}
	err := h.WriteWithContext(ctx, keyset.NewJSONWriter(&b), a, w.associated())
	if err = cmp.Or(a.err, err); err != nil {
		return nil, fmt.Errorf("wrap the keyset: %w", err)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", "  ")
	if err := e.Encode(wrappedFile{wrappedVersion, key.String(), b.Bytes()}); err != nil {
		return nil, fmt.Errorf("wrap the keyset: %w", err)
	}
	again, _, err := ParseWrapped(out.Bytes())
	if err != nil {
		return nil, fmt.Errorf("wrap the keyset: %w", err)
	}
	opened, err := again.Open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("wrap the keyset: it would not open again: %w", err)
	}
	if !slices.Equal(ids(opened), ids(h)) {
		return nil, errors.New("wrap the keyset: another one opens")
	}
	return out.Bytes(), nil
}

func ids(h *keyset.Handle) []uint32 {
	var out []uint32
	for _, k := range h.KeysetInfo().GetKeyInfo() {
		out = append(out, k.GetKeyId())
	}
	return out
}

// aead is Cloud KMS as Tink takes it.
type aead struct {
	c   Config
	key Name
	err error // of Cloud KMS: Tink's own error does not wrap it
}

// EncryptWithContext implements Tink's AEADWithContext.
func (a *aead) EncryptWithContext(ctx context.Context, plain, associated []byte) ([]byte, error) {
	op := operation{a.key, "wrap the keyset", roleWrap, createWrap, "want a key of the purpose encryption; make one: gcloud kms keys create KEY " + a.key.flags() + " " + createWrap}
	if len(plain) > maxWrapped {
		a.err = &Error{a.key, op.doing, "begin a new keyset", fmt.Errorf("the keyset has %d bytes, and Cloud KMS takes %d at most", len(plain), maxWrapped)}
		return nil, a.err
	}
	var out []byte
	a.err = a.c.do(ctx, op, func(ctx context.Context, client *kms.KeyManagementClient) error {
		r, err := client.Encrypt(ctx, &kmspb.EncryptRequest{
			Name: a.key.Resource(), Plaintext: plain, PlaintextCrc32C: sum(plain),
			AdditionalAuthenticatedData: associated, AdditionalAuthenticatedDataCrc32C: sum(associated),
		})
		if err != nil {
			return err
		}
		key, version, _ := strings.Cut(r.GetName(), "/cryptoKeyVersions/")
		if version == "" { // the answer names the version
			key = r.GetName() + " without a version"
		}
		err = errors.Join(named(key, a.key.Resource()), arrived("keyset", r.GetVerifiedPlaintextCrc32C()),
			arrived("associated data", r.GetVerifiedAdditionalAuthenticatedDataCrc32C()), whole("ciphertext", r.GetCiphertext(), r.GetCiphertextCrc32C()))
		if err == nil {
			out = r.GetCiphertext()
		}
		return err
	})
	return out, a.err
}

// DecryptWithContext implements Tink's AEADWithContext.
func (a *aead) DecryptWithContext(ctx context.Context, sealed, associated []byte) ([]byte, error) {
	op := operation{a.key, "open the keyset", roleDecrypt, createWrap, "was the file changed, or wrapped with another key? Take it from the backup"}
	var out []byte
	a.err = a.c.do(ctx, op, func(ctx context.Context, client *kms.KeyManagementClient) error {
		r, err := client.Decrypt(ctx, &kmspb.DecryptRequest{
			Name: a.key.Resource(), Ciphertext: sealed, CiphertextCrc32C: sum(sealed),
			AdditionalAuthenticatedData: associated, AdditionalAuthenticatedDataCrc32C: sum(associated),
		})
		if err != nil {
			return err
		}
		if err := whole("keyset", r.GetPlaintext(), r.GetPlaintextCrc32C()); err != nil {
			return err
		}
		out = r.GetPlaintext()
		return nil
	})
	return out, a.err
}
