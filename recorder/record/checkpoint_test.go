package record

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// The edge gives the same root as tlog's own tree, at every size, and survives
// being written down.
func TestTreeIsTlogs(t *testing.T) {
	var tree Tree
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = stored[n]
		}
		return out, nil
	})
	if tree.Root() != sha256.Sum256(nil) {
		t.Error("root of the empty tree")
	}
	for n := range int64(300) {
		leaf := sha256.Sum256([]byte{byte(n), byte(n >> 8)})
		h, err := tlog.StoredHashes(n, leaf[:], reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, h...)
		tree.Add(leaf)
		want, err := tlog.TreeHash(n+1, reader)
		if err != nil {
			t.Fatal(err)
		}
		if tree.Root() != [32]byte(want) || tree.Size() != uint64(n+1) {
			t.Fatalf("root of %d leaves is wrong", n+1)
		}
		b, err := tree.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var again Tree
		if err := again.UnmarshalText(b); err != nil || again != tree {
			t.Fatalf("%d leaves: %v", n+1, err)
		}
	}
	for _, bad := range []string{"", "x", "1:", "2:zz", "0:aa", "03:", "1:" + strings.Repeat("g", 64), "281474976710656:"} {
		var tr Tree
		if err := tr.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a tree", bad)
		}
	}
}

func testKey(t *testing.T, gateway string, e Epoch) *EpochKey {
	t.Helper()
	k, err := NewEpochKey(gateway, e, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func verifier(t *testing.T, k *EpochKey) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCheckpointIsSigned(t *testing.T) {
	e := Epoch{1, 2, 3}
	k := testKey(t, "gw-1", e)
	s := Statement{Gateway: "gw-1", Epoch: e, Size: 7, Root: [32]byte{1}, Head: ChainHead{2}, Time: testTime}
	f, err := Checkpoint(s, k.Signer(), false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Verify(&f, verifier(t, k)); err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Verify(&f, verifier(t, testKey(t, "gw-1", e))); err == nil {
		t.Error("another key of the same name verifies")
	}
	for i := range f.Body {
		bad := f
		bad.Body = bytes.Clone(f.Body)
		bad.Body[i] ^= 1
		if _, err := Verify(&bad, verifier(t, k)); err == nil {
			t.Errorf("byte %d can be changed", i)
		}
	}
	moved := f
	moved.Sequence++
	if _, err := Verify(&moved, verifier(t, k)); err == nil {
		t.Error("a checkpoint can stand behind another record")
	}
	cut, err := Recut(&f)
	if err != nil || cut.Flags != FlagCut || !bytes.Equal(cut.Body, f.Body) || cut.Sequence != f.Sequence {
		t.Errorf("cut %+v, %v", cut, err)
	}
	if b, err := f.Encode(nil); err != nil || len(b) > 640 {
		t.Errorf("%d bytes, %v: the journal reckons with 640", len(b), err)
	}
}

func TestCertificate(t *testing.T) {
	secret, public, err := note.GenerateKey(nil, "deployment")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	k := testKey(t, "gw-1", Epoch{5})
	c := Certificate{Gateway: "gw-1", Epoch: Epoch{5}, Key: k.Public(), Opened: testTime}
	signed, err := c.Certify(signer)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := VerifyCertificate(signed, c, note.VerifierList(v)); err != nil || name != "deployment" {
		t.Errorf("%s, %v", name, err)
	}
	for name, other := range map[string]Certificate{
		"gateway": {"gw-2", c.Epoch, c.Key, c.Opened}, "epoch": {c.Gateway, Epoch{6}, c.Key, c.Opened},
		"key": {c.Gateway, c.Epoch, testKey(t, "gw-1", Epoch{5}).Public(), c.Opened}, "time": {c.Gateway, c.Epoch, c.Key, c.Opened.Add(time.Second)},
	} {
		if _, err := VerifyCertificate(signed, other, note.VerifierList(v)); err == nil {
			t.Errorf("the certificate holds for another %s", name)
		}
	}
	if _, err := VerifyCertificate(signed, c, note.VerifierList()); err == nil {
		t.Error("the certificate holds without a trusted key")
	}
}

func TestReceipt(t *testing.T) {
	e := Epoch{1, 2, 3}
	k := testKey(t, "gw-1", e)
	r := k.Receipt(ID{e, 42}, [32]byte{9})
	key := k.private.Public().(ed25519.PublicKey)
	got, err := ParseReceipt(r.String())
	if err != nil || got != r || !got.Verify("gw-1", key) {
		t.Fatalf("%v, %v", got, err)
	}
	if id, err := ParseID(r.String()); err != nil || id != r.ID {
		t.Errorf("id of a receipt: %v, %v", id, err)
	}
	if got.Verify("gw-2", key) {
		t.Error("the receipt is another gateway's as well")
	}
	other := r
	other.ID.Sequence++
	if other.Verify("gw-1", key) {
		t.Error("the receipt is another exchange's as well")
	}
	b64 := base64.RawURLEncoding.EncodeToString
	for _, bad := range []string{"", r.ID.String(), r.ID.String() + ".x.y", r.ID.String() + "." + b64(make([]byte, 31)) + "." + b64(make([]byte, 64)), r.String() + "."} {
		if _, err := ParseReceipt(bad); err == nil {
			t.Errorf("%q is a receipt", bad)
		}
	}
}

func FuzzStated(f *testing.F) {
	k, err := NewEpochKey("gw-1", Epoch{}, nil)
	if err != nil {
		f.Fatal(err)
	}
	cp, err := Checkpoint(Statement{Gateway: "gw-1", Size: 7, Time: testTime}, k.Signer(), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cp.Body)
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := Frame{Kind: KindCheckpoint, Sequence: 7, Body: b}
		s, err := Stated(&fr)
		if err == nil && !strings.HasPrefix(string(b), s.text()) {
			t.Errorf("%q is read as %q", b, s.text())
		}
	})
}
