package sinklog

import (
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/vault/gcs"
	"verbatim.dev/recorder/vault/gcs/gcstest"
	"verbatim.dev/recorder/witness"
)

// The log lies in a locked bucket: nothing of it is ever written twice, over a
// restart that finishes a step as well.
func TestLockedBucket(t *testing.T) {
	s := gcstest.New(t)
	s.Bucket(t, "evidence", 24*time.Hour, true)
	v, err := gcs.Open(t.Context(), gcs.Config{Address: "gs://evidence/a", Client: s.Client(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	g := newGateway(1)
	l := open(t, v)
	var cuts []cut
	for range 270 {
		cuts = append(cuts, g.segment(v))
	}
	if err := commit(t.Context(), l, cuts...); err != nil {
		t.Fatal(err)
	}
	l.cosign(t.Context())
	// It dies once the stage is there.
	st, err := l.build(t.Context(), [][]byte{g.segment(v).Note})
	if err != nil {
		t.Fatal(err)
	}
	if st.signed, err = note.Sign(&note.Note{Text: witness.Checkpoint{Origin: l.Origin(), Tree: st.to}.Text()}, l.c.Key.Signer()); err != nil {
		t.Fatal(err)
	}
	if err := l.create(t.Context(), stageName(270), st.marshal()); err != nil {
		t.Fatal(err)
	}
	other := open(t, v)
	if err := other.begin2(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := other.commitAll(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if other.tree != st.to || other.Stats().Size != 271 {
		t.Fatalf("%+v, want %+v", other.tree, st.to)
	}
	if err := commit(t.Context(), l, g.segment(v)); err != nil {
		t.Fatal(err)
	}
	if l.tree.N != 272 {
		t.Fatalf("size %d", l.tree.N)
	}
}

func BenchmarkCommit(b *testing.B) {
	m := inMemory()
	g := newGateway(1)
	l := open(b, m)
	var cuts []cut
	for b.Loop() {
		b.StopTimer()
		cuts = cuts[:0]
		for range TileWidth {
			cuts = append(cuts, g.segment(m))
		}
		b.StartTimer()
		if err := commit(b.Context(), l, cuts...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*TileWidth/b.Elapsed().Seconds(), "entries/s")
}
