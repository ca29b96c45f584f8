package kms

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Scheme begins the name of a key in Cloud KMS.
const Scheme = "gcpkms://"

// Name names a key in Cloud KMS, or one of its versions.
type Name struct {
	Project, Location, Ring, Key string
	Version                      string // empty: the key
}

// elements are what the parts of a resource name may be
// (https://cloud.google.com/kms/docs/getting-resource-ids).
var elements = []struct {
	collection string
	value      *regexp.Regexp
}{
	{"projects", regexp.MustCompile(`^[a-z0-9][a-z0-9.:-]{0,99}$`)},
	{"locations", regexp.MustCompile(`^[a-z0-9-]{1,63}$`)},
	{"keyRings", regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)},
	{"cryptoKeys", regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)},
	{"cryptoKeyVersions", regexp.MustCompile(`^[1-9][0-9]{0,9}$`)},
}

const wantName = Scheme + "projects/P/locations/L/keyRings/R/cryptoKeys/K"

// ParseName reads gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K, with
// /cryptoKeyVersions/N or without. What is no name is not quoted in errors: it
// may be a key.
func ParseName(text string) (Name, error) {
	rest, ok := strings.CutPrefix(text, Scheme)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 8 && len(parts) != 10 {
		return Name{}, fmt.Errorf("is no name of a key in Cloud KMS: want %s, with /cryptoKeyVersions/N for a version", wantName)
	}
	var values [5]string
	for i := 0; i < len(parts); i += 2 {
		e := elements[i/2]
		if parts[i] != e.collection || !e.value.MatchString(parts[i+1]) {
			return Name{}, fmt.Errorf("is no name of a key in Cloud KMS: %s/... is missing or not well-formed: want %s, with /cryptoKeyVersions/N for a version", e.collection, wantName)
		}
		values[i/2] = parts[i+1]
	}
	return Name{values[0], values[1], values[2], values[3], values[4]}, nil
}

// ParseVersion reads the name of a key's version, as a signing key needs it.
func ParseVersion(text string) (Name, error) {
	n, err := ParseName(text)
	if err == nil && n.Version == "" {
		err = errors.New("names a key, and a signing key is one of its versions: add /cryptoKeyVersions/N")
	}
	return n, err
}

// ParseKey reads the name of a key without a version, as wrapping needs it: Cloud
// KMS encrypts with the primary version, and knows which one decrypts.
func ParseKey(text string) (Name, error) {
	n, err := ParseName(text)
	if err == nil && n.Version != "" {
		err = errors.New("names a version, and what wraps a keyset is the key: leave out /cryptoKeyVersions/N")
	}
	return n, err
}

// Resource is the name as the API has it.
func (n Name) Resource() string {
	s := "projects/" + n.Project + "/locations/" + n.Location + "/keyRings/" + n.Ring + "/cryptoKeys/" + n.Key
	if n.Version != "" {
		s += "/cryptoKeyVersions/" + n.Version
	}
	return s
}

// String is the name with its scheme.
func (n Name) String() string { return Scheme + n.Resource() }

// flags are what gcloud kms keys ... wants beside the key.
func (n Name) flags() string {
	return fmt.Sprintf("--keyring %s --location %s --project %s", n.Ring, n.Location, n.Project)
}
