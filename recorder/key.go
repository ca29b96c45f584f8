package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/kms"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/witness"
)

const keyHelp = `
Usage: recorder key new --out DIR [--name NAME] [--deployment-kms VERSION] [--tenant-kms KEY]
       recorder key show --dir DIR
       recorder key rotate --dir DIR [--deployment-kms VERSION | --local]
       recorder key rotate --dir DIR --tenant [--tenant-kms KEY | --local]
       recorder key retire --dir DIR KEY [--at TIME]
       recorder key fingerprint FILE|KEY
       recorder key accept --trust FILE NEWER

new makes a tenant's keyset. A gateway seals what it records with data keys, and
wraps these to the tenant's public key; the private one opens them. X25519 and
AES-256-GCM (HPKE, RFC 9180). It writes what a gateway needs to seal and sign, and
what auditors need to read and verify. The tenant's keyset, to which the records are
sealed to:

  DIR/tenant.json      the private keyset: who has it can read everything recorded.
                       Keep it like a password, away from gateway and vault, with a
                       backup: without it the records can be proven, but never read.
  DIR/tenant.pub.json  the public part: for the gateways' configuration.

The deployment's key (Ed25519), which certifies the key of each gateway's epoch:

  DIR/deployment.key   the signing key: for the gateways, as sealing.key.
  DIR/deployment.pub   the trust file: what auditors trust (recorder verify --trust).

The log's key (Ed25519), which signs the sink's own log of what is in the vault:

  DIR/log.key          the signing key: for the sink (recorder sink --log-key). The log is
                       named verbatim.dev/log/NAME by it, so NAME should be yours alone.
  DIR/log.pub          the public part: for witnesses and auditors (--log-key).

Files that are there already are never replaced by new.

rotate makes a new deployment key. The old one signs for it in deployment.pub, and is
then gone from deployment.key: hand both files out, restart the gateways, and retire
the old key when the last gateway has restarted. With --tenant it adds a new key to
the tenant's keyset, to which gateways wrap as soon as they see the new tenant.pub.json;
the older keys stay in tenant.json and open what they have sealed.

In Cloud KMS. With --deployment-kms the signing key is a version of a key there, of the
purpose asymmetric-signing and the algorithm EC_SIGN_ED25519; deployment.key then says
which, is no secret, and is given to all that take the key. Who signs (gateways at their
start, retire, erase --key) needs roles/cloudkms.signerVerifier. With --tenant-kms the
tenant's private keyset is encrypted with a key of the purpose encryption: tenant.json
alone opens nothing, and who reads needs roles/cloudkms.cryptoKeyDecrypter (who makes or
rotates it, roles/cloudkms.cryptoKeyEncrypterDecrypter). VERSION is
gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N, KEY the same
without /cryptoKeyVersions/N. The identity is that of Application Default Credentials.
Given to rotate, they move a key to Cloud KMS; once there, the deployment's key is rotated
by naming its next version, the tenant's stays wrapped, now with the primary version.
--local moves one back into a file. Schedule no version for destruction that signs, or
that tenant.json or a backup of it is wrapped with.

retire ends a deployment key: what it certified before TIME (default: now) verifies,
what it certifies afterwards does not. KEY is its fingerprint, name or hash, as show
prints it. The note is signed with deployment.key.

fingerprint prints a short form of each key, to compare over the telephone.

accept takes over what a newer deployment.pub adds to a trust file: only what keys that
are trusted already have signed for.

Examples:
  recorder key new --out ./keys
  recorder key new --out ./keys --name acme \
      --deployment-kms gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/deployment/cryptoKeyVersions/1 \
      --tenant-kms gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/tenant
  recorder key rotate --dir ./keys
  recorder key retire --dir ./keys deployment+1b5ea4a3
  recorder key fingerprint ./keys/deployment.pub
  recorder key accept --trust my-deployment.pub downloaded/deployment.pub
`

const (
	privateFile = "tenant.json"
	publicFile  = "tenant.pub.json"
	signingFile = "deployment.key"
	trustFile   = "deployment.pub"
	logKeyFile  = "log.key"
	logPubFile  = "log.pub"

	// logPrefix begins the name of a deployment's log.
	logPrefix = "verbatim.dev/log/"
)

func keyCommand(ctx context.Context, args []string, stdout, _ io.Writer) error {
	f := newFlags("key", keyHelp)
	out := f.String("out", "", "new: the folder `DIR` for the files; made where it is missing")
	name := f.String("name", "deployment", "new: the `NAME` of the deployment's key, as verify shows it")
	dir := f.String("dir", "", "show, rotate, retire: the folder `DIR` with the files that new made")
	tenant := f.Bool("tenant", false, "rotate: the tenant's keyset instead of the deployment's key")
	deploymentKMS := f.String("deployment-kms", "", "new, rotate: the deployment's key is this `VERSION` in Cloud KMS")
	tenantKMS := f.String("tenant-kms", "", "new, rotate --tenant: this `KEY` in Cloud KMS encrypts the tenant's private keyset")
	local := f.Bool("local", false, "rotate: to a key in a file, where it was in Cloud KMS")
	at := f.String("at", "", "retire: from this `TIME` on (default: now)")
	trust := f.String("trust", "", "accept: the trust `FILE` to add to")
	verbs := map[string][]string{"new": nil, "show": nil, "rotate": nil, "retire": {"the KEY"}, "fingerprint": {"FILE or KEY"}, "accept": {"the NEWER file"}}
	verb, rest := "", args
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, rest = args[0], args[1:]
	}
	names, known := verbs[verb]
	if !known {
		if verb == "" {
			names = []string{"the action (new, show, rotate, retire, fingerprint or accept)"}
		}
		if _, err := f.parse(rest, stdout, names...); errors.Is(err, errHelp) || verb == "" {
			return err
		}
		return &usageError{fmt.Sprintf("key: unknown action %q", verb), suggest(verb, slices.Sorted(maps.Keys(verbs)), "recorder key ", f.see())}
	}
	rest, err := f.parse(rest, stdout, names...)
	if err != nil {
		return err
	}
	need := func(flag, value string) error {
		if value == "" {
			return &usageError{fmt.Sprintf("key %s: where?", verb), "give --" + flag}
		}
		return nil
	}
	to, err := keyPlaces(verb, *deploymentKMS, *tenantKMS, *local, *tenant)
	if err != nil {
		return err
	}
	switch verb {
	case "new":
		if *out == "" {
			return &usageError{"key new: where to?", "give --out DIR"}
		}
		err = newKeys(ctx, *out, *name, to, stdout)
	case "show":
		if err = need("dir DIR", *dir); err == nil {
			err = showKeys(ctx, *dir, stdout)
		}
	case "rotate":
		rotate := rotateDeployment
		if *tenant {
			rotate = rotateTenant
		}
		if err = need("dir DIR", *dir); err == nil {
			err = rotate(ctx, *dir, to, stdout)
		}
	case "retire":
		from := time.Now()
		if *at != "" {
			if from, err = parseTime(*at, from); err != nil {
				return &usageError{fmt.Sprintf("key retire: --at: %v", err), f.see()}
			}
		}
		if err = need("dir DIR", *dir); err == nil {
			err = retireKey(ctx, *dir, rest[0], from, stdout)
		}
	case "fingerprint":
		err = fingerprints(rest[0], stdout)
	case "accept":
		if err = need("trust FILE", *trust); err == nil {
			err = acceptKeys(*trust, rest[0], stdout)
		}
	}
	var usage *usageError
	if err != nil && !errors.As(err, &usage) {
		err = fmt.Errorf("key %s: %w", verb, err)
	}
	return err
}

// places says where keys are to rest.
type places struct {
	deployment, tenant *kms.Name // in Cloud KMS; nil: where they were, new ones in a file
	local              bool      // in a file
}

func keyPlaces(verb, deployment, tenant string, local, tenantToo bool) (p places, err error) {
	wrong := func(text, hint string) (places, error) { return p, &usageError{"key " + verb + ": " + text, hint} }
	const see = "recorder key --help tells which goes with which"
	switch {
	case verb != "new" && verb != "rotate" && (deployment != "" || tenant != ""):
		return wrong("--deployment-kms and --tenant-kms go with new and rotate", see)
	case verb != "rotate" && local, local && (deployment != "" || tenant != ""):
		return wrong("--local goes with rotate, and without a key in Cloud KMS", see)
	case verb == "rotate" && tenant != "" && !tenantToo:
		return wrong("--tenant-kms is about the tenant's keyset", "add --tenant")
	case verb == "rotate" && deployment != "" && tenantToo:
		return wrong("--tenant and --deployment-kms are about two keys", "rotate one after the other")
	}
	p.local = local
	if deployment != "" {
		n, err := kms.ParseVersion(deployment)
		if err != nil {
			return wrong("--deployment-kms "+err.Error(), see)
		}
		p.deployment = &n
	}
	if tenant != "" {
		n, err := kms.ParseKey(tenant)
		if err != nil {
			return wrong("--tenant-kms "+err.Error(), see)
		}
		p.tenant = &n
	}
	return p, nil
}

func newKeys(ctx context.Context, dir, name string, to places, stdout io.Writer) error {
	private, public := filepath.Join(dir, privateFile), filepath.Join(dir, publicFile)
	signing, trust := filepath.Join(dir, signingFile), filepath.Join(dir, trustFile)
	logKey, logPub := filepath.Join(dir, logKeyFile), filepath.Join(dir, logPubFile)
	for _, path := range []string{private, public, signing, trust, logKey, logPub} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is there already and is not replaced; choose another folder", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if _, _, err := note.GenerateKey(nil, name); err != nil { // before Cloud KMS is asked
		return fmt.Errorf("--name %q: %w: no spaces and no plus signs", name, err)
	}
	key, err := makeDeployment(ctx, name, to.deployment)
	if err != nil {
		return err
	}
	log, err := witness.NewKey(logPrefix+name, nil)
	if err != nil {
		return err
	}
	h, err := record.NewTenant()
	if err != nil {
		return err
	}
	secret, err := marshalPrivate(ctx, h, to.tenant)
	if err != nil {
		return err
	}
	open, err := record.MarshalTenant(h, false)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := create(private, secret, 0o600); err != nil {
		return err
	}
	err = errors.Join(create(public, open, 0o644), create(signing, key.file, 0o600), create(trust, []byte(key.public+"\n"), 0o644),
		create(logKey, []byte(log.Private()+"\n"), 0o600), create(logPub, []byte(log.LogKey()+"\n"), 0o644))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s (%s)\n%s (public, for the gateways)\n%s (%s)\n%s (public, for auditors)\n%s (secret, for the sink)\n%s (public, for witnesses and auditors)\n",
		private, privateWord(to.tenant, "keep it secret and keep a backup"), public, signing, key.word(), trust, logKey, logPub)
	return err
}

// privateWord says of what kind the file of the private keyset is.
func privateWord(key *kms.Name, otherwise string) string {
	if key == nil {
		return "private, " + otherwise
	}
	return "private, opens with " + key.String() + " alone; keep a backup"
}

// signingKey is a deployment's key as its file has it.
type signingKey struct {
	file   []byte // the key, or the reference to it
	public string
	kms    *kms.Name
}

func (k *signingKey) word() string {
	if k.kms == nil {
		return "secret, for the gateways"
	}
	return "for the gateways; no secret, the key is " + k.kms.String()
}

// makeDeployment makes a deployment's key, or takes that version in Cloud KMS
// once it has signed.
func makeDeployment(ctx context.Context, name string, version *kms.Name) (*signingKey, error) {
	if version == nil {
		sign, verify, err := note.GenerateKey(nil, name)
		if err != nil {
			return nil, err
		}
		return &signingKey{file: []byte(sign + "\n"), public: verify}, nil
	}
	r, err := kms.Find(ctx, kmsConfig, name, *version)
	if err != nil {
		return nil, err
	}
	s, err := r.Signer(ctx, kmsConfig)
	if err == nil {
		err = s.Check()
	}
	if err != nil {
		return nil, err
	}
	return &signingKey{file: []byte(r.Text()), public: r.Key, kms: version}, nil
}

// marshalPrivate returns the file of the tenant's private keyset: in clear, or
// wrapped with a key in Cloud KMS.
func marshalPrivate(ctx context.Context, h *keyset.Handle, key *kms.Name) ([]byte, error) {
	if key == nil {
		return record.MarshalTenant(h, true)
	}
	return kms.Wrap(ctx, kmsConfig, *key, h)
}

// create writes a file that must not exist, durably.
func create(path string, b []byte, mode fs.FileMode) error {
	w, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err == nil {
		err = w.Sync()
	}
	return errors.Join(err, w.Close())
}
