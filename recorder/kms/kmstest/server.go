// Package kmstest is a double of Cloud KMS for tests: it signs and encrypts with
// keys of its own behind the real gRPC interface, which Google's client speaks to
// over loopback, and errs as it is told. What only the real service can prove is
// in test/conformance.
package kmstest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/api/option"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A Fault is a way to err.
type Fault string

// The faults. Those of an answer change it after the true one was made.
const (
	Refuse      Fault = "refuse"       // PERMISSION_DENIED
	APIDisabled Fault = "api-disabled" // PERMISSION_DENIED, SERVICE_DISABLED
	Unavailable Fault = "unavailable"
	Quota       Fault = "quota"
	Hang        Fault = "hang"       // no answer until the caller gives up
	Corrupt     Fault = "corrupt"    // a bit of the answer, its checksum is of the true one
	CorruptAll  Fault = "all"        // a bit of the answer, with a checksum that fits
	WrongSum    Fault = "wrong-sum"  // the answer is right, its checksum is not
	NoSum       Fault = "no-sum"     // the answer has no checksum
	Unverified  Fault = "unverified" // the request's checksum did not arrive
	OtherKey    Fault = "other-key"  // what another key signs or encrypts, with a checksum that fits
	OtherName   Fault = "other-name" // the answer names another key
)

// Server is the double. It is safe for concurrent use.
type Server struct {
	kmspb.UnimplementedKeyManagementServiceServer
	Address string

	mu    sync.Mutex
	keys  map[string]*key // by their resource names
	fault Fault
	on    string // the method, empty: all
	left  int    // how often it errs still, below 0: always
	calls []string
	plain [][]byte
}

type key struct {
	signing  bool
	versions []*version
	primary  int
}

type version struct {
	algorithm kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm
	private   ed25519.PrivateKey
	aead      cipher.AEAD
	disabled  bool
}

// New starts a double, which ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Address: l.Addr().String(), keys: map[string]*key{}}
	g := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(g, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l) // ends with Stop
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
	})
	return s
}

// Options make Google's client speak to the double at the address.
func Options(address string) []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(address), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

// Options make Google's client speak to this double.
func (s *Server) Options() []option.ClientOption { return Options(s.Address) }

const scheme = "gcpkms://"

// Key makes a key, signing or encrypting, with its first version. The name is
// that of the key, without a version. It returns the name.
func (s *Server) Key(name string, signing bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[strings.TrimPrefix(name, scheme)] = &key{signing: signing}
	s.version(name)
	return name
}

// Version adds a version to a key: for a signing key it returns its name; an
// encrypting key has it as its primary version.
func (s *Server) Version(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version(name)
}

func (s *Server) version(name string) string {
	k := s.keys[strings.TrimPrefix(name, scheme)]
	v := &version{}
	if k.signing {
		v.algorithm = kmspb.CryptoKeyVersion_EC_SIGN_ED25519
		_, v.private, _ = ed25519.GenerateKey(nil) // never fails
	} else {
		v.aead = newAEAD()
	}
	k.versions = append(k.versions, v)
	k.primary = len(k.versions)
	return fmt.Sprintf("%s/cryptoKeyVersions/%d", name, k.primary)
}

func newAEAD() cipher.AEAD {
	secret := make([]byte, 32)
	rand.Read(secret)
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // the size is right
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return a
}

// Secret returns what must be nowhere: the seed of a signing version.
func (s *Server) Secret(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(strings.TrimPrefix(name, scheme))
	if err != nil {
		panic(err)
	}
	return v.private.Seed()
}

// Algorithm makes a version say that it is of that algorithm; for one of NIST
// P-256 it also gives out such a public key.
func (s *Server) Algorithm(name string, a kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(strings.TrimPrefix(name, scheme))
	if err != nil {
		panic(err)
	}
	v.algorithm = a
}

// Disable disables a version, or enables it.
func (s *Server) Disable(name string, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, n, _ := strings.Cut(strings.TrimPrefix(name, scheme), "/cryptoKeyVersions/")
	for i, v := range s.keys[key].versions {
		if fmt.Sprint(i+1) == n {
			v.disabled = yes
		}
	}
}

// Fail makes the next calls of a method (Encrypt, Decrypt, AsymmetricSign,
// GetPublicKey; empty: all) err, times of them; below 0: all from now on.
func (s *Server) Fail(f Fault, method string, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.on, s.left = f, method, times
}

// Calls returns the methods that were called so far.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Plaintexts returns what was encrypted so far: what must be nowhere else.
func (s *Server) Plaintexts() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.plain)
}

// call notes a call, and returns what to do wrong with it.
func (s *Server) call(ctx context.Context, method, name string) (Fault, error) {
	s.mu.Lock()
	s.calls = append(s.calls, method)
	f := s.fault
	if f == "" || s.left == 0 || s.on != "" && s.on != method {
		f = ""
	} else if s.left > 0 {
		s.left--
	}
	s.mu.Unlock()
	switch f {
	case Refuse:
		return f, status.Errorf(codes.PermissionDenied, "Permission 'cloudkms.%s' denied on resource '%s' (or it may not exist).", method, name)
	case APIDisabled:
		st, err := status.New(codes.PermissionDenied, "Cloud Key Management Service (KMS) API has not been used in project p before or it is disabled.").
			WithDetails(&errdetails.ErrorInfo{Reason: "SERVICE_DISABLED", Domain: "googleapis.com"})
		if err != nil {
			return f, err
		}
		return f, st.Err()
	case Unavailable:
		return f, status.Error(codes.Unavailable, "The service is currently unavailable.")
	case Quota:
		return f, status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Cryptographic requests'.")
	case Hang:
		<-ctx.Done()
		return f, status.FromContextError(ctx.Err()).Err()
	}
	return f, nil
}

// find returns a version by its resource name, or a key's primary one.
func (s *Server) find(name string) (*version, error) {
	name, n, versioned := strings.Cut(name, "/cryptoKeyVersions/")
	k := s.keys[name]
	if k == nil {
		return nil, status.Errorf(codes.NotFound, "CryptoKey %s not found.", name)
	}
	i := k.primary
	if versioned {
		if _, err := fmt.Sscanf(n, "%d", &i); err != nil || i < 1 || i > len(k.versions) {
			return nil, status.Errorf(codes.NotFound, "CryptoKeyVersion %s/cryptoKeyVersions/%s not found.", name, n)
		}
	}
	v := k.versions[i-1]
	if v.disabled {
		return nil, status.Errorf(codes.FailedPrecondition, "%s/cryptoKeyVersions/%d is not enabled, current state is: DISABLED.", name, i)
	}
	return v, nil
}

// GetPublicKey gives out a signing version's public key.
func (s *Server) GetPublicKey(ctx context.Context, r *kmspb.GetPublicKeyRequest) (*kmspb.PublicKey, error) {
	f, err := s.call(ctx, "GetPublicKey", r.GetName())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(r.GetName())
	if err != nil {
		return nil, err
	}
	if v.private == nil {
		return nil, status.Error(codes.InvalidArgument, "GetPublicKey is not supported for keys with purpose: ENCRYPT_DECRYPT.")
	}
	var public any = v.private.Public()
	if f == OtherKey {
		public, _, _ = ed25519.GenerateKey(nil)
	}
	if v.algorithm == kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256 {
		p, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		public = p.Public()
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	a := &kmspb.PublicKey{Name: r.GetName(), Algorithm: v.algorithm}
	var text []byte
	text, a.PemCrc32C = spoil(f, b)
	a.Pem = string(text)
	if f == OtherName {
		a.Name += "1"
	}
	return a, nil
}

// AsymmetricSign signs the data.
func (s *Server) AsymmetricSign(ctx context.Context, r *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	f, err := s.call(ctx, "AsymmetricSign", r.GetName())
	if err != nil {
		return nil, err
	}
	if err := check("data", r.GetData(), r.GetDataCrc32C()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(r.GetName())
	switch {
	case err != nil:
		return nil, err
	case v.private == nil || v.algorithm != kmspb.CryptoKeyVersion_EC_SIGN_ED25519 || r.GetDigest() != nil:
		return nil, status.Error(codes.InvalidArgument, "AsymmetricSign with data is not supported for this key.")
	case len(r.GetData()) > 64<<10:
		return nil, status.Error(codes.InvalidArgument, "data is too large.")
	}
	private := v.private
	if f == OtherKey {
		_, private, _ = ed25519.GenerateKey(nil)
	}
	a := &kmspb.AsymmetricSignResponse{Name: r.GetName(), VerifiedDataCrc32C: r.GetDataCrc32C() != nil && f != Unverified}
	a.Signature, a.SignatureCrc32C = spoil(f, ed25519.Sign(private, r.GetData()))
	if f == OtherName {
		a.Name += "1"
	}
	return a, nil
}

// Encrypt encrypts with the key's primary version. The first byte of what it
// returns is the version.
func (s *Server) Encrypt(ctx context.Context, r *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	f, err := s.call(ctx, "Encrypt", r.GetName())
	if err != nil {
		return nil, err
	}
	if err := check("plaintext", r.GetPlaintext(), r.GetPlaintextCrc32C()); err != nil {
		return nil, err
	}
	if err := check("additional_authenticated_data", r.GetAdditionalAuthenticatedData(), r.GetAdditionalAuthenticatedDataCrc32C()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(r.GetName())
	if err != nil {
		return nil, err
	}
	if v.aead == nil {
		return nil, status.Error(codes.InvalidArgument, "Encrypt is not supported for keys with purpose: ASYMMETRIC_SIGN.")
	}
	aead := v.aead
	if f == OtherKey {
		aead = newAEAD()
	}
	s.plain = append(s.plain, r.GetPlaintext())
	n := s.keys[r.GetName()].primary
	a := &kmspb.EncryptResponse{
		Name: fmt.Sprintf("%s/cryptoKeyVersions/%d", r.GetName(), n), VerifiedPlaintextCrc32C: r.GetPlaintextCrc32C() != nil && f != Unverified,
		VerifiedAdditionalAuthenticatedDataCrc32C: r.GetAdditionalAuthenticatedDataCrc32C() != nil && f != Unverified,
	}
	a.Ciphertext, a.CiphertextCrc32C = spoil(f, aead.Seal([]byte{byte(n)}, nil, r.GetPlaintext(), r.GetAdditionalAuthenticatedData()))
	if f == OtherName {
		a.Name = strings.Replace(a.Name, "/cryptoKeyVersions/", "1/cryptoKeyVersions/", 1)
	}
	return a, nil
}

// Decrypt decrypts with the version that encrypted.
func (s *Server) Decrypt(ctx context.Context, r *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	f, err := s.call(ctx, "Decrypt", r.GetName())
	if err != nil {
		return nil, err
	}
	if err := check("ciphertext", r.GetCiphertext(), r.GetCiphertextCrc32C()); err != nil {
		return nil, err
	}
	if err := check("additional_authenticated_data", r.GetAdditionalAuthenticatedData(), r.GetAdditionalAuthenticatedDataCrc32C()); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := status.Error(codes.InvalidArgument, "Decryption failed: verify that 'name' refers to the correct CryptoKey.")
	if len(r.GetCiphertext()) == 0 {
		return nil, failed
	}
	v, err := s.find(fmt.Sprintf("%s/cryptoKeyVersions/%d", r.GetName(), r.GetCiphertext()[0]))
	if status.Code(err) == codes.FailedPrecondition {
		return nil, err
	}
	if _, none := s.keys[r.GetName()]; !none {
		return nil, err
	}
	if err != nil || v.aead == nil {
		return nil, failed
	}
	plain, err := v.aead.Open(nil, nil, r.GetCiphertext()[1:], r.GetAdditionalAuthenticatedData())
	if err != nil {
		return nil, failed
	}
	a := &kmspb.DecryptResponse{UsedPrimary: int(r.GetCiphertext()[0]) == s.keys[r.GetName()].primary}
	a.Plaintext, a.PlaintextCrc32C = spoil(f, plain)
	return a, nil
}

// spoil returns an answer's part and its checksum, as the fault has them.
func spoil(f Fault, b []byte) ([]byte, *wrapperspb.Int64Value) {
	right := sum(b)
	b = slices.Clone(b)
	switch f {
	case Corrupt:
		b[len(b)/2] ^= 1
	case CorruptAll:
		b[len(b)/2] ^= 1
		right = sum(b)
	case WrongSum:
		right = wrapperspb.Int64(right.GetValue() ^ 1)
	case NoSum:
		right = nil
	}
	return b, right
}

func sum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

// check is what Cloud KMS does with a checksum that it is given.
func check(what string, b []byte, given *wrapperspb.Int64Value) error {
	if given != nil && given.GetValue() != sum(b).GetValue() {
		return status.Errorf(codes.InvalidArgument, "The checksum in field %s_crc32c did not match the data in field %s.", what, what)
	}
	return nil
}
