package kms

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
	"unicode"

	kms "cloud.google.com/go/kms/apiv1"
	"google.golang.org/api/option"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Config says how Cloud KMS is reached. The zero value is the identity of
// Application Default Credentials.
type Config struct {
	// Timeout bounds an operation with its retries. Default 20 s.
	Timeout time.Duration
	Options []option.ClientOption
}

const (
	defaultTimeout = 20 * time.Second
	// attempts is how often an answer that is not what was asked for is asked
	// for: Google's guide wants a limited number of retries.
	attempts = 3
	// maxText bounds what is quoted of an answer.
	maxText = 300

	roleSign    = "roles/cloudkms.signerVerifier"
	roleWrap    = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
	roleDecrypt = "roles/cloudkms.cryptoKeyDecrypter"
)

// ErrIntegrity is wrapped by the error about an answer that is not, byte for
// byte, what was asked for, and stayed so when asked anew.
var ErrIntegrity = errors.New("the answer is not whole")

// operation is what is done with a key, for errors.
type operation struct {
	name   Name
	doing  string // "sign"
	role   string // that allows it
	create string // what gcloud kms keys create needs to make such a key
	wrong  string // what an invalid argument means
}

var (
	createSigning = "--purpose asymmetric-signing --default-algorithm ec-sign-ed25519"
	createWrap    = "--purpose encryption"
)

// Error is about an operation that failed. Fix says what to do.
type Error struct {
	Name  Name
	Doing string
	Fix   string
	Err   error
}

func (e *Error) Error() string {
	text := e.Err.Error()
	if s, ok := status.FromError(e.Err); ok {
		text = s.Code().String() + ": " + s.Message()
	}
	text = fmt.Sprintf("cloud kms: cannot %s with %s: %s", e.Doing, e.Name, strings.TrimSuffix(line(text), "."))
	if e.Fix != "" {
		text += "; " + e.Fix
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// line makes one short line of a foreign text.
func line(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}

// do opens a client and calls f until its answer is whole, attempts times at
// most. The client itself retries what Cloud KMS says may be retried.
func (c Config) do(ctx context.Context, op operation, f func(context.Context, *kms.KeyManagementClient) error) (err error) {
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	client, err := kms.NewKeyManagementClient(ctx, c.Options...)
	if err != nil {
		return &Error{op.name, op.doing, "give this process a Google identity: a service account of its workload, or gcloud auth application-default login", err}
	}
	defer func() { _ = client.Close() }() // everything is answered
	for range attempts {
		if err = f(ctx, client); !errors.Is(err, ErrIntegrity) {
			break
		}
	}
	if err == nil {
		return nil
	}
	return &Error{op.name, op.doing, op.fix(err), err}
}

// fix says what repairs an error.
func (op operation) fix(err error) string {
	n := op.name
	key := n.Key + " " + n.flags()
	if errors.Is(err, ErrIntegrity) {
		return "nothing was done with it; if it stays so, ask Google's support, and look for what changes the traffic to cloudkms.googleapis.com"
	}
	switch code(err) {
	case codes.PermissionDenied:
		if disabled(err) {
			return "run: gcloud services enable cloudkms.googleapis.com --project " + n.Project
		}
		return fmt.Sprintf("this identity needs %s on the key; run: gcloud kms keys add-iam-policy-binding %s --member serviceAccount:ACCOUNT --role %s", op.role, key, op.role)
	case codes.Unauthenticated:
		return "give this process a Google identity: a service account of its workload, or gcloud auth application-default login"
	case codes.NotFound:
		if n.Version != "" {
			return fmt.Sprintf("make the key (gcloud kms keys create %s %s) or its version (gcloud kms keys versions create --key %s)", key, op.create, key)
		}
		return fmt.Sprintf("make the key; run: gcloud kms keys create %s %s", key, op.create)
	case codes.FailedPrecondition:
		version := n.Version
		if version == "" {
			version = "VERSION"
		}
		return fmt.Sprintf("is the version disabled, destroyed, or the key of another purpose? run: gcloud kms keys versions list --key %s, and gcloud kms keys versions enable %s --key %s", key, version, key)
	case codes.InvalidArgument:
		return op.wrong
	case codes.Unavailable, codes.DeadlineExceeded:
		return "Cloud KMS does not answer: is cloudkms.googleapis.com reachable from here? Try again, nothing was changed"
	case codes.ResourceExhausted:
		return "the project's quota of Cloud KMS is used up: try again in a minute"
	}
	return ""
}

func code(err error) codes.Code {
	if errors.Is(err, context.DeadlineExceeded) {
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

// disabled reports whether the API is not enabled in the project.
func disabled(err error) bool {
	s, _ := status.FromError(err)
	for _, d := range s.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok && i.GetReason() == "SERVICE_DISABLED" {
			return true
		}
	}
	return false
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, castagnoli)))
}

// whole checks a checksum of an answer's part.
func whole(what string, b []byte, given *wrapperspb.Int64Value) error {
	if given == nil {
		return fmt.Errorf("%w: it has no checksum of the %s", ErrIntegrity, what)
	}
	if given.GetValue() != sum(b).GetValue() {
		return fmt.Errorf("%w: the checksum of the %s is wrong", ErrIntegrity, what)
	}
	return nil
}

// arrived checks that Cloud KMS has compared a checksum that was sent.
func arrived(what string, verified bool) error {
	if !verified {
		return fmt.Errorf("%w: the checksum of the %s did not arrive", ErrIntegrity, what)
	}
	return nil
}

// named checks which resource an answer is from.
func named(got, want string) error {
	if got != want {
		return fmt.Errorf("%w: it is from %s", ErrIntegrity, line(got))
	}
	return nil
}
