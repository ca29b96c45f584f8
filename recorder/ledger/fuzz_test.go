package ledger_test

import (
	"bytes"
	"context"
	"testing"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
)

// FuzzAltered holds that no alteration of a segment's bytes passes, and that
// none makes the verifier panic or fail.
func FuzzAltered(f *testing.F) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	g.Run(ledgertest.Exchange{Session: "s1", Subject: "u", SQL: "SELECT 1", Request: []byte("{}"), Response: []byte("0123456789")})
	g.Cut()
	name := v.Names("segments/")[0]
	whole := v.Files[name]
	f.Add(uint16(30), byte(1), []byte(nil), uint16(0))
	f.Add(uint16(len(whole)), byte(0), []byte("more"), uint16(0))
	f.Add(uint16(0), byte(0), []byte(nil), uint16(100))
	f.Fuzz(func(t *testing.T, at uint16, flip byte, insert []byte, drop uint16) {
		b := bytes.Clone(whole)
		i := int(at) % (len(b) + 1)
		if i < len(b) {
			b[i] ^= flip
		}
		tail := b[min(len(b), i+int(drop)):]
		b = append(append(bytes.Clone(b[:i]), insert...), tail...)
		c := v.Clone()
		c.Files[name] = b
		r, err := ledger.Verify(context.Background(), c, ledger.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Sound != bytes.Equal(b, whole) {
			t.Errorf("sound %v for bytes that are the same: %v", r.Sound, bytes.Equal(b, whole))
		}
	})
}
