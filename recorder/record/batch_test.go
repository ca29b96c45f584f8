package record

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"
)

func notes(t testing.TB, n int) (*Verifier, *EpochKey, [][]byte) {
	e, err := NewEpoch(time.Unix(1_700_000_000, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewEpochKey("gw", e, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := ParseVerifier(k.Public(), "gw", e)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for i := range n {
		f, err := Checkpoint(Statement{Gateway: "gw", Epoch: e, Size: uint64(i + 1), Time: time.Unix(int64(i), 0)}, k.Signer(), false)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f.Body)
	}
	return v, k, all
}

// TestVerifyAll: many signatures together are right where each is alone, and
// whatever is changed in any of them is seen.
func TestVerifyAll(t *testing.T) {
	for _, n := range []int{0, 1, 3, 4, 5, 64, 300} {
		v, _, all := notes(t, n)
		if !v.VerifyAll(all) {
			t.Fatalf("%d signatures are right, and are called wrong", n)
		}
	}
	v, _, all := notes(t, 16)
	_, _, others := notes(t, 16)
	check := func(what string, i int, b []byte) {
		t.Helper()
		changed := append([][]byte(nil), all...)
		changed[i] = b
		if v.VerifyAll(changed) {
			t.Errorf("%s in note %d: taken for right", what, i)
		}
	}
	for i := range all {
		for at := range all[i] {
			b := bytes.Clone(all[i])
			b[at] ^= 1 << (at % 8)
			check(fmt.Sprintf("bit of byte %d", at), i, b)
		}
		check("another's signature", i, others[i])
		check("more text", i, append([]byte("more\n"), all[i]...))
		check("another signature", i, append(bytes.Clone(all[i]), others[i][bytes.Index(others[i], []byte("\n\n"))+2:]...))
		check("no signature", i, all[i][:bytes.Index(all[i], []byte("\n\n"))+2])
		check("nothing", i, nil)
	}
	swapped := append([][]byte(nil), all...)
	cutAt := func(b []byte) int { return bytes.Index(b, []byte("\n\n")) }
	a, b := all[3], all[4]
	swapped[3] = append(bytes.Clone(a[:cutAt(a)]), b[cutAt(b):]...)
	swapped[4] = append(bytes.Clone(b[:cutAt(b)]), a[cutAt(a):]...)
	if v.VerifyAll(swapped) {
		t.Error("two signatures were swapped, and taken for right")
	}
}

// TestPlainPoints: encodings that a single check refuses are not taken either.
func TestPlainPoints(t *testing.T) {
	point := func(first, rest, last byte) []byte {
		b := bytes.Repeat([]byte{rest}, 32)
		b[0], b[31] = first, last
		return b
	}
	for what, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"p":             {point(0xed, 0xff, 0x7f), false},
		"p, sign":       {point(0xed, 0xff, 0xff), false},
		"2^255-1":       {point(0xff, 0xff, 0x7f), false},
		"-1":            {point(0xec, 0xff, 0x7f), false},
		"-1, sign":      {point(0xec, 0xff, 0xff), false},
		"-2":            {point(0xeb, 0xff, 0x7f), true},
		"1":             {point(1, 0, 0), false},
		"1, sign":       {point(1, 0, 0x80), false},
		"2":             {point(2, 0, 0), true},
		"the generator": {point(0x58, 0x66, 0x66), true},
	} {
		if got := plain(c.b); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
	}
}

func BenchmarkVerifyAll(b *testing.B) {
	v, _, all := notes(b, 64)
	for _, n := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if !v.VerifyAll(all[:n]) {
					b.Fatal("wrong")
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "signatures/s")
		})
	}
	msg, sig, _ := v.split(all[0])
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			ed25519.Verify(v.key, msg, sig)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
	})
}
