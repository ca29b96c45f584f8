package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/record"
)

// nextFile holds a fresh deployment key until deployment.pub vouches for it.
const nextFile = signingFile + ".next"

// replace writes a file anew, in one step and durably.
func replace(path string, b []byte, mode fs.FileMode) error {
	w, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil {
		err = w.Chmod(mode)
	}
	if err == nil {
		err = w.Sync()
	}
	err = errors.Join(err, w.Close())
	if err == nil {
		err = os.Rename(w.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(w.Name()))
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func readTrustFile(path string) (*record.Trust, []byte, error) {
	b, err := readSmall(path, record.MaxTrust)
	if err != nil {
		return nil, nil, err
	}
	t, err := record.ParseTrust(string(b))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, b, nil
}

// readSigner reads a deployment's signing key, or the reference to one in Cloud
// KMS, which is asked when it signs.
func readSigner(ctx context.Context, path string) (note.Signer, error) {
	b, err := readSmall(path, 64<<10)
	if err != nil {
		return nil, err
	}
	s, err := kms.NewSigner(ctx, kmsConfig, string(b))
	if err != nil { // it does not hold the key
		return nil, fmt.Errorf("%s holds no key: %w; \"recorder key new\" makes one", path, err)
	}
	return s, nil
}

// inKMS returns where a signer's key rests in Cloud KMS, nil for one in a file.
func inKMS(s note.Signer) *kms.Name {
	if k, ok := s.(*kms.Signer); ok {
		n := k.Reference().Name
		return &n
	}
	return nil
}

func signerID(s note.Signer) string { return fmt.Sprintf("%s+%08x", s.Name(), s.KeyHash()) }

// rotateDeployment makes a fresh deployment key that the old one signs for.
// First the fresh key rests beside the old one, then deployment.pub vouches for
// it, then it takes the old one's place; after a crash the next run goes on.
func rotateDeployment(ctx context.Context, dir string, to places, stdout io.Writer) error {
	signing, trusted, next := filepath.Join(dir, signingFile), filepath.Join(dir, trustFile), filepath.Join(dir, nextFile)
	trust, text, err := readTrustFile(trusted)
	if err != nil {
		return err
	}
	if waiting, err := readSigner(ctx, next); err == nil {
		if k, ok := trust.Find(signerID(waiting)); ok {
			return finishRotation(dir, k, inKMS(waiting), "finished the rotation that was cut off", stdout)
		}
	}
	old, err := readSigner(ctx, signing)
	if err != nil {
		return err
	}
	k, ok := trust.Find(signerID(old))
	if !ok {
		return fmt.Errorf("%s does not hold the key %s of %s, so nobody would trust what it signs for", trusted, signerID(old), signing)
	}
	if n := inKMS(old); n != nil && to.deployment == nil && !to.local {
		return &usageError{
			"key rotate: the deployment's key is in Cloud KMS, and Cloud KMS makes its next version",
			fmt.Sprintf("run: gcloud kms keys versions create --key %s --keyring %s --location %s --project %s; then give it as --deployment-kms (or --local for a key in a file)", n.Key, n.Ring, n.Location, n.Project),
		}
	}
	key, err := makeDeployment(ctx, old.Name(), to.deployment)
	if err != nil {
		return err
	}
	signed, err := record.Rotation{Old: k.Key, New: key.public, Time: time.Now().UTC().Truncate(time.Second)}.Sign(old)
	if err != nil {
		return err
	}
	fresh := strings.TrimRight(string(text), "\n") + "\n\n" + signed
	if trust, err = record.ParseTrust(fresh); err != nil { // a retired key cannot rotate
		return err
	}
	if err := replace(next, key.file, 0o600); err != nil {
		return err
	}
	if err := replace(trusted, []byte(fresh), 0o644); err != nil {
		return err
	}
	k, ok = trust.Find(key.public)
	if !ok {
		return fmt.Errorf("%s does not hold the new key", trusted)
	}
	return finishRotation(dir, k, key.kms, "rotated", stdout)
}

func finishRotation(dir string, k record.TrustedKey, in *kms.Name, what string, stdout io.Writer) error {
	if err := errors.Join(os.Rename(filepath.Join(dir, nextFile), filepath.Join(dir, signingFile)), syncFolder(dir)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, `%s: the deployment signs with %s
  fingerprint  %s
  %s (%s)
  %s (public, for auditors: who trusts the old key can take it over with "recorder key accept")
Restart the gateways with the new key. When the last one has, retire the old one:
  recorder key retire --dir %s %s
`, what, k.ID(), record.Fingerprint(k.Key), filepath.Join(dir, signingFile), (&signingKey{kms: in}).word(), filepath.Join(dir, trustFile), dir, record.Fingerprint(k.After))
	return err
}

// retireKey ends a deployment key with a note that the present one signs.
func retireKey(ctx context.Context, dir, which string, from time.Time, stdout io.Writer) error {
	trusted := filepath.Join(dir, trustFile)
	trust, text, err := readTrustFile(trusted)
	if err != nil {
		return err
	}
	k, ok := trust.Find(which)
	if !ok {
		return &usageError{fmt.Sprintf("key retire: %s holds no key %q", trusted, which), "recorder key show lists them"}
	}
	by, err := readSigner(ctx, filepath.Join(dir, signingFile))
	if err != nil {
		return err
	}
	from = from.UTC().Truncate(time.Second)
	if !k.Retired.IsZero() && !from.Before(k.Retired) {
		return fmt.Errorf("%s is retired from %s on already", k.ID(), moment(k.Retired))
	}
	signed, err := record.Retirement{Key: k.Key, From: from}.Sign(by)
	if err != nil {
		return err
	}
	fresh := strings.TrimRight(string(text), "\n") + "\n\n" + signed
	if _, err := record.ParseTrust(fresh); err != nil {
		return err
	}
	if err := replace(trusted, []byte(fresh), 0o644); err != nil {
		return err
	}
	after := ""
	if k.ID() == signerID(by) {
		after = "It is the key in " + signingFile + ": nothing that gateways record from then on is certified until \"recorder key new\" makes another.\n"
	}
	_, err = fmt.Fprintf(stdout, "retired: what %s certified before %s holds, what it certifies later does not\n%sHand %s out to the auditors.\n", k.ID(), moment(from), after, trusted)
	return err
}

// rotateTenant adds a fresh primary key to the tenant's keyset. The private
// part is durable before a gateway can wrap to it.
func rotateTenant(ctx context.Context, dir string, to places, stdout io.Writer) error {
	private, public := filepath.Join(dir, privateFile), filepath.Join(dir, publicFile)
	text, err := readSmall(private, maxKeyset)
	if err != nil {
		return fmt.Errorf("keyset: %w", err)
	}
	h, err := openKeyset(ctx, private, text)
	if err != nil {
		return err
	}
	var in *kms.Name // the key that the file is wrapped with
	if w, ok, _ := kms.ParseWrapped(text); ok {
		in = &w.Key
	}
	given, err := readPublic(public)
	if err != nil {
		return err
	}
	what := "finished the rotation that was cut off"
	warning := ""
	if given.KeysetInfo().GetPrimaryKeyId() == h.KeysetInfo().GetPrimaryKeyId() {
		what = "rotated"
		if in == nil && to.tenant != nil {
			warning = fmt.Sprintf("Copies of %s from before are in clear, and open what was sealed before: destroy them.\n", privateFile)
		}
		if to.tenant != nil || to.local {
			in = to.tenant
		}
		if h, err = record.RotateTenant(h); err != nil {
			return err
		}
		b, err := marshalPrivate(ctx, h, in)
		if err != nil {
			return err
		}
		if err := replace(private, b, 0o600); err != nil {
			return err
		}
	}
	b, err := record.MarshalTenant(h, false)
	if err != nil {
		return err
	}
	if err := replace(public, b, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, `%s: the tenant's primary key is %d, of %d
  %s (%s)
  %s (public, for the gateways: they wrap to it as soon as they see it)
What was sealed before opens with the same %s.
%s`, what, h.KeysetInfo().GetPrimaryKeyId(), len(h.KeysetInfo().GetKeyInfo()), private, privateWord(in, "keep it secret and make a new backup"), public, privateFile, warning)
	return err
}

func readPublic(path string) (*keyset.Handle, error) {
	b, err := readSmall(path, 1<<20)
	if err != nil {
		return nil, err
	}
	h, err := record.ReadTenant(strings.NewReader(string(b)), false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

// showKeys prints what a folder's keys are. Nothing secret is printed.
func showKeys(ctx context.Context, dir string, stdout io.Writer) error {
	var b strings.Builder
	trusted := filepath.Join(dir, trustFile)
	trust, _, err := readTrustFile(trusted)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		signs, in := "", ""
		if s, err := readSigner(ctx, filepath.Join(dir, signingFile)); err == nil {
			signs = signerID(s)
			if n := inKMS(s); n != nil {
				in = ", as " + n.String()
			}
		}
		fmt.Fprintf(&b, "Deployment keys in %s\n", oneLine(trusted))
		for _, k := range trust.Keys() {
			fmt.Fprintf(&b, "  %s  %s  %s\n", record.Fingerprint(k.Key), oneLine(k.ID()), keyState(k, signs, in))
		}
	}
	for _, name := range []string{privateFile, publicFile} {
		path := filepath.Join(dir, name)
		info, wrapped, err := keysetInfo(path, name == privateFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "Tenant's keys in %s%s\n", oneLine(path), wrapped)
		for _, k := range info.GetKeyInfo() {
			state := strings.ToLower(k.GetStatus().String())
			if k.GetKeyId() == info.GetPrimaryKeyId() {
				state += ", gateways wrap to it"
			}
			fmt.Fprintf(&b, "  %-10d  %s\n", k.GetKeyId(), state)
		}
	}
	if b.Len() == 0 {
		return fmt.Errorf("%s holds no keys; \"recorder key new --out %s\" makes them", dir, dir)
	}
	_, err = io.WriteString(stdout, b.String())
	return err
}

// keysetInfo says which keys are in a keyset. Nothing is asked of Cloud KMS: of a
// wrapped one it is what its file says.
func keysetInfo(path string, private bool) (info *tinkpb.KeysetInfo, wrapped string, err error) {
	if !private {
		h, err := readPublic(path)
		if err != nil {
			return nil, "", err
		}
		return h.KeysetInfo(), "", nil
	}
	b, err := readSmall(path, maxKeyset)
	if err != nil {
		return nil, "", fmt.Errorf("keyset: %w", err)
	}
	w, ok, err := kms.ParseWrapped(b)
	if err != nil {
		return nil, "", fmt.Errorf("keyset %s: %w", path, err)
	}
	if ok {
		return w.Info(), ", wrapped with " + w.Key.String(), nil
	}
	h, err := record.ReadTenant(bytes.NewReader(b), true)
	if err != nil {
		return nil, "", fmt.Errorf("keyset %s: %w (\"recorder key new\" makes one)", path, err)
	}
	return h.KeysetInfo(), "", nil
}

func keyState(k record.TrustedKey, signs, in string) string {
	var parts []string
	if !k.From.IsZero() {
		parts = append(parts, "from "+moment(k.From))
	}
	if !k.Retired.IsZero() {
		parts = append(parts, "retired from "+moment(k.Retired))
	}
	if k.ID() == signs {
		parts = append(parts, "signs now"+in)
	}
	if len(parts) == 0 {
		return "trusted"
	}
	return strings.Join(parts, ", ")
}

// fingerprints prints the keys of a trust file, or one key.
func fingerprints(what string, stdout io.Writer) error {
	var trust *record.Trust
	if t, err := record.ParseTrust(what); err == nil {
		trust = t
	} else if trust, _, err = readTrustFile(what); err != nil {
		return err
	}
	for _, k := range trust.Keys() {
		if _, err := fmt.Fprintf(stdout, "%s  %s\n", record.Fingerprint(k.Key), oneLine(k.ID())); err != nil {
			return err
		}
	}
	return nil
}

// acceptKeys adds to a trust file what a newer one has signed by its keys.
func acceptKeys(path, newer string, stdout io.Writer) error {
	have, _, err := readTrustFile(path)
	if err != nil {
		return err
	}
	fresh, _, err := readTrustFile(newer)
	if err != nil {
		return err
	}
	out, err := have.Accept(fresh)
	if err != nil {
		return err
	}
	if out.Text() == have.Text() {
		_, err := fmt.Fprintf(stdout, "nothing new in %s that the keys of %s have signed for\n", newer, path)
		return err
	}
	if err := replace(path, []byte(out.Text()), 0o644); err != nil {
		return err
	}
	for _, k := range out.Keys() {
		before, ok := have.Find(k.Key)
		switch {
		case !ok:
			fmt.Fprintf(stdout, "added %s, fingerprint %s, from %s\n", oneLine(k.ID()), record.Fingerprint(k.Key), moment(k.From))
		case !k.Retired.Equal(before.Retired):
			fmt.Fprintf(stdout, "retired %s from %s on\n", oneLine(k.ID()), moment(k.Retired))
		}
	}
	return nil
}
