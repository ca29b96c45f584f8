package kms

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"golang.org/x/mod/sumdb/note"
)

// MaxSigned is how many bytes Cloud KMS signs at most with an Ed25519 key, which
// takes the text itself and no digest of it
// (https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1).
const MaxSigned = 64 << 10

// checkHeader begins the text that [Reference.Check] has signed. It is the
// header of nothing else.
const checkHeader = "verbatim.dev/check/v1"

const referenceComment = "# The signing key rests in Cloud KMS. This file says where, and which it is: it is no secret.\n"

// Reference says where a signing key rests, and which key it is. A file of it
// stands where a file of the key itself would:
//
//	# a comment
//	kms gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N
//	key NAME+HASH+KEY
//
// What Cloud KMS signs is checked with that public key. So whoever can change
// the version behind the name, or who answers in its place, certifies nothing.
type Reference struct {
	Name Name
	Key  string // verifier key, as package note writes it
}

// ParseReference reads a reference. It reports false where the text is none at
// all, and something else stands in the file.
func ParseReference(text string) (r Reference, ok bool, err error) {
	var where, key string
	for i, l := range strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n") {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' {
			continue
		}
		word, value, _ := strings.Cut(l, " ")
		to := map[string]*string{"kms": &where, "key": &key}[word]
		if to == nil && !ok {
			return r, false, nil
		}
		ok = true
		if to == nil || *to != "" {
			return r, true, fmt.Errorf("line %d: want one line \"kms %s/cryptoKeyVersions/N\" and one \"key NAME+HASH+KEY\"", i+1, wantName)
		}
		*to = strings.TrimSpace(value)
	}
	if !ok {
		return r, false, nil
	}
	if where == "" || key == "" {
		return r, true, fmt.Errorf("want a line \"kms %s/cryptoKeyVersions/N\" and a line \"key NAME+HASH+KEY\"", wantName)
	}
	if r.Name, err = ParseVersion(where); err != nil {
		return r, true, fmt.Errorf("kms: %w", err)
	}
	if _, err := note.NewVerifier(key); err != nil { // it does not hold the key
		return r, true, fmt.Errorf("key: %w (want the public key, NAME+HASH+KEY)", err)
	}
	r.Key = key
	return r, true, nil
}

// Text is the reference as a file has it.
func (r Reference) Text() string {
	return referenceComment + "kms " + r.Name.String() + "\nkey " + r.Key + "\n"
}

// NewSigner reads what a key file holds: the signing key itself, as package note
// writes it, or a [Reference]. Nothing is asked of Cloud KMS before the signer
// signs; ctx bounds that too. It is safe for concurrent use. Errors do not hold
// the key.
func NewSigner(ctx context.Context, c Config, text string) (note.Signer, error) {
	r, ok, err := ParseReference(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("reference to Cloud KMS: %w", err)
	case ok:
		return r.Signer(ctx, c)
	}
	s, err := note.NewSigner(strings.TrimSpace(text))
	if err != nil { // note's error does not hold the key
		return nil, fmt.Errorf("neither a signing key (PRIVATE+KEY+...) nor a reference to one in Cloud KMS: %w", err)
	}
	return s, nil
}

// Signer signs with the key.
func (r Reference) Signer(ctx context.Context, c Config) (*Signer, error) {
	v, err := note.NewVerifier(r.Key)
	if err != nil {
		return nil, fmt.Errorf("reference to Cloud KMS: %w", err)
	}
	return &Signer{ctx: ctx, c: c, r: r, v: v}, nil
}

// Signer is a [note.Signer] whose key rests in Cloud KMS.
type Signer struct {
	ctx context.Context // bounds each call: note.Signer hands none over
	c   Config
	r   Reference
	v   note.Verifier
}

// Name is the key's name in notes.
func (s *Signer) Name() string { return s.v.Name() }

// KeyHash tells keys of one name apart.
func (s *Signer) KeyHash() uint32 { return s.v.KeyHash() }

// Reference says where the key rests.
func (s *Signer) Reference() Reference { return s.r }

// Sign returns the Ed25519 signature of the text, PureEdDSA of RFC 8032.
func (s *Signer) Sign(text []byte) ([]byte, error) {
	op := signing(s.r.Name, "sign")
	if len(text) > MaxSigned {
		return nil, &Error{s.r.Name, op.doing, "sign less at once, or with a key in a file", fmt.Errorf("%d bytes are to be signed, and Cloud KMS signs %d at most", len(text), MaxSigned)}
	}
	var sig []byte
	err := s.c.do(s.ctx, op, func(ctx context.Context, client *kms.KeyManagementClient) error {
		a, err := client.AsymmetricSign(ctx, &kmspb.AsymmetricSignRequest{Name: s.r.Name.Resource(), Data: text, DataCrc32C: sum(text)})
		if err != nil {
			return err
		}
		err = errors.Join(named(a.GetName(), s.r.Name.Resource()), arrived("text", a.GetVerifiedDataCrc32C()), whole("signature", a.GetSignature(), a.GetSignatureCrc32C()))
		if err != nil {
			return err
		}
		if !s.v.Verify(text, a.GetSignature()) {
			return fmt.Errorf("%w: the signature is not that of %s+%08x, which the reference names", ErrIntegrity, s.v.Name(), s.v.KeyHash())
		}
		sig = a.GetSignature()
		return nil
	})
	return sig, err
}

// Check has a text signed that means nothing, to see whether the key can be used
// and is the one that the reference names.
func (s *Signer) Check() error {
	_, err := s.Sign(fmt.Appendf(nil, "%s\n%s\n", checkHeader, time.Now().UTC().Format(time.RFC3339)))
	return err
}

// Find asks Cloud KMS for the public key of a version, and returns the reference
// that names it. The version must be of the algorithm EC_SIGN_ED25519. The name
// is the key's in notes.
func Find(ctx context.Context, c Config, name string, version Name) (Reference, error) {
	r := Reference{Name: version}
	err := c.do(ctx, signing(version, "get the public key"), func(ctx context.Context, client *kms.KeyManagementClient) error {
		a, err := client.GetPublicKey(ctx, &kmspb.GetPublicKeyRequest{Name: version.Resource()})
		if err != nil {
			return err
		}
		if err := errors.Join(named(a.GetName(), version.Resource()), whole("public key", []byte(a.GetPem()), a.GetPemCrc32C())); err != nil {
			return err
		}
		if a.GetAlgorithm() != kmspb.CryptoKeyVersion_EC_SIGN_ED25519 {
			return fmt.Errorf("the algorithm is %s, want EC_SIGN_ED25519: make another key, gcloud kms keys create KEY %s %s", a.GetAlgorithm(), version.flags(), createSigning)
		}
		public, err := publicKey(a.GetPem())
		if err != nil {
			return err
		}
		r.Key, err = note.NewEd25519VerifierKey(name, public)
		return err
	})
	return r, err
}

func publicKey(text string) (ed25519.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("the public key is no PEM of a PUBLIC KEY")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the public key: %w", err)
	}
	public, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the public key is a %T, want an Ed25519 key", k)
	}
	return public, nil
}

func signing(n Name, doing string) operation {
	return operation{n, doing, roleSign, createSigning, "want a key of the purpose asymmetric-signing and the algorithm EC_SIGN_ED25519; make one: gcloud kms keys create KEY " + n.flags() + " " + createSigning}
}
