package ledger_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

func leafOf(i uint64) (h [sha256.Size]byte) {
	binary.BigEndian.PutUint64(h[:], i)
	return sha256.Sum256(h[:])
}

// TestFold holds the gaps and their fold against the tree itself.
func TestFold(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := uint64(1); n < 70; n++ {
		var tree record.Tree
		for i := range n {
			tree.Add(leafOf(i))
		}
		for range 20 {
			var wanted []uint64
			var leaves [][sha256.Size]byte
			for i := range n {
				if r.IntN(6) == 0 {
					wanted, leaves = append(wanted, i), append(leaves, leafOf(i))
				}
			}
			var gaps []tlog.Hash
			for _, s := range ledger.Gaps(n, wanted) {
				var g record.Tree
				for i := s.First; i < s.End; i++ {
					g.Add(leafOf(i))
				}
				gaps = append(gaps, tlog.Hash(g.Root()))
			}
			root, err := ledger.Fold(n, wanted, leaves, gaps)
			if err != nil || root != tlog.Hash(tree.Root()) {
				t.Fatalf("%d entries, %v: %v, %v", n, wanted, root, err)
			}
			if len(leaves) > 0 {
				leaves[0][3] ^= 1
				if root, err := ledger.Fold(n, wanted, leaves, gaps); err == nil && root == tlog.Hash(tree.Root()) {
					t.Fatal("another leaf gives the same root")
				}
			}
			if _, err := ledger.Fold(n, wanted, leaves, append(gaps, tlog.Hash{})); err == nil {
				t.Fatal("a digest too many passes")
			}
		}
	}
}

func TestProve(t *testing.T) {
	v, g, _ := gateways()
	for seq := uint64(1); seq <= 16; seq++ {
		id := record.ID{Epoch: g.Epoch, Sequence: seq}
		p, err := ledger.Prove(t.Context(), v, id)
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		p, err = ledger.ParseProof(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Verify(trust(t, deploymentKey), nil)
		if err != nil || got.ID != id || got.Size != 16 || !got.Anchored {
			t.Fatalf("%+v, %v", got, err)
		}
		if again, _ := p.Marshal(); !bytes.Equal(again, b) {
			t.Error("another spelling")
		}
		if seq == 2 {
			r := g.Receipt(id)
			if err := got.Receipt(r); err != nil {
				t.Error(err)
			}
			r.Leaf[0] ^= 1
			if err := got.Receipt(r); err == nil {
				t.Error("a receipt with another leaf fits")
			}
		}
		_, stranger := ledgertest.Deployment("deployment")
		if _, err := p.Verify(trust(t, stranger), nil); err == nil {
			t.Error("proven to who trusts another deployment")
		}
		if r, err := p.Verify(nil, nil); err != nil || r.Anchored {
			t.Errorf("%+v, %v", r, err)
		}
		for i, change := range []func(p *ledger.Proof){
			func(p *ledger.Proof) { p.Sequence++ },
			func(p *ledger.Proof) { p.Sequence += 100 },
			func(p *ledger.Proof) { p.Hashes[1][4] ^= 1 },
			func(p *ledger.Proof) { p.Hashes = p.Hashes[1:] },
			func(p *ledger.Proof) { p.Hashes = append(p.Hashes, tlog.Hash{}) },
			func(p *ledger.Proof) { p.Extra.Leaf = strings.Repeat("00", 32) },
			func(p *ledger.Proof) { p.Extra.Leaf = "x" },
			func(p *ledger.Proof) { p.Extra.Key = attacker.Public() },
			func(p *ledger.Proof) { p.Extra.Certificate = "" },
			func(p *ledger.Proof) { p.Extra.Opened = p.Extra.Opened.Add(1) },
			func(p *ledger.Proof) {
				p.Checkpoint = bytes.Replace(p.Checkpoint, []byte("\n16\n"), []byte("\n17\n"), 1)
			},
		} {
			c := *p
			c.Hashes = slices.Clone(p.Hashes)
			c.Checkpoint = bytes.Clone(p.Checkpoint)
			change(&c)
			if _, err := c.Verify(trust(t, deploymentKey), nil); err == nil {
				t.Errorf("record %d, change %d: still proven", seq, i)
			}
		}
	}
	if _, err := ledger.Prove(t.Context(), v, record.ID{Epoch: g.Epoch, Sequence: 17}); err == nil || !strings.Contains(err.Error(), "up to record 16") {
		t.Errorf("%v", err)
	}
	name := v.Names(ledgerOf(g))[0]
	delete(v.Files, name)
	if _, err := ledger.Prove(t.Context(), v, record.ID{Epoch: g.Epoch, Sequence: 16}); !errors.Is(err, ledger.ErrUnproven) {
		t.Errorf("%v", err)
	}
}

func FuzzParseProof(f *testing.F) {
	v, g, _ := gateways()
	p, err := ledger.Prove(f.Context(), v, record.ID{Epoch: g.Epoch, Sequence: 3})
	if err != nil {
		f.Fatal(err)
	}
	b, err := p.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	l := trust(f, deploymentKey)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ledger.ParseProof(b)
		if err != nil {
			return
		}
		if r, err := p.Verify(l, nil); err == nil && r.ID.Epoch != g.Epoch {
			t.Errorf("proves %v", r.ID)
		}
	})
}
