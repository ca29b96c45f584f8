// Package kms uses keys that rest in Google Cloud KMS: a deployment's signing
// key, and the key that a tenant's private keyset is wrapped with.
//
// The rule of this folder: nothing that Cloud KMS answers is taken on trust. The
// checksums that Google's guide on data integrity asks for are sent and checked
// (https://cloud.google.com/kms/docs/data-integrity-guidelines), the answer names
// the key that was asked for, and a signature is checked with the public key that
// the deployment's auditors trust, not with one that was asked for just now. What
// fails is tried anew a few times, and is then an error that says what to do. No
// key's bytes are in it.
//
// Clients are opened for a call and closed after it: a process signs when it
// starts, and opens its keyset when it starts or the keyset changes.
package kms
