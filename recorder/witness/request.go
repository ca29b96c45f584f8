package witness

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// EmptyRoot is the root of a log without entries (RFC 6962, section 2.1).
var EmptyRoot = tlog.Hash(sha256.Sum256(nil))

const (
	maxProof   = 63
	maxRequest = 128 + maxProof*64 + MaxCheckpoint
)

// Request is what add-checkpoint takes.
type Request struct {
	Old        int64 // size of the last checkpoint that the witness cosigned
	Proof      tlog.TreeProof
	Checkpoint []byte // signed
}

// Marshal returns the request's body.
func (r Request) Marshal() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", r.Old)
	for _, h := range r.Proof {
		fmt.Fprintf(&b, "%s\n", h)
	}
	b.WriteByte('\n')
	b.Write(r.Checkpoint)
	return b.Bytes()
}

// ParseRequest reads the body of an add-checkpoint request. The checkpoint in
// it is not looked at.
func ParseRequest(body []byte) (Request, error) {
	if len(body) > maxRequest {
		return Request{}, fmt.Errorf("request of %d bytes, at most %d are read", len(body), maxRequest)
	}
	head, checkpoint, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return Request{}, errors.New("request: want an old size, a proof and an empty line before the checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	size, ok := strings.CutPrefix(lines[0], "old ")
	if !ok {
		return Request{}, fmt.Errorf("request: %.60q: want \"old SIZE\"", lines[0])
	}
	var r Request
	var err error
	if r.Old, err = parseSize(size); err != nil {
		return Request{}, fmt.Errorf("request: old %w", err)
	}
	if len(lines)-1 > maxProof {
		return Request{}, fmt.Errorf("request: a proof of %d hashes, at most %d are read", len(lines)-1, maxProof)
	}
	for _, l := range lines[1:] {
		h, err := parseHash(l)
		if err != nil {
			return Request{}, fmt.Errorf("request: proof: %w", err)
		}
		r.Proof = append(r.Proof, h)
	}
	r.Checkpoint = checkpoint
	return r, nil
}
