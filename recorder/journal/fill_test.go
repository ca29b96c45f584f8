package journal

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"verbatim.dev/recorder/record"
)

// fillFS notes how far each segment was written.
type fillFS struct {
	*memFS
	writes [][2]int64 // offset and length, of segments
	zeros  int64      // bytes of them that were zeros
}

func (f *fillFS) Create(name string, size int64) (File, error) {
	file, err := f.memFS.Create(name, size)
	if err != nil || size == 0 {
		return file, err
	}
	return &fillFile{File: file, fs: f, size: size}, nil
}

type fillFile struct {
	File
	fs   *fillFS
	size int64
}

func (f *fillFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.memFS.mu.Lock()
	f.fs.writes = append(f.fs.writes, [2]int64{off, int64(len(p))})
	if len(p) > 1000 && len(bytes.Trim(p, "\x00")) == 0 {
		f.fs.zeros += int64(len(p))
	}
	if off+int64(len(p)) > f.size {
		panic("a write beyond what is allocated")
	}
	f.fs.memFS.mu.Unlock()
	return f.File.WriteAt(p, off)
}

// TestSmallCommitsFillAhead: one commit in many writes the blocks of those to
// come, large ones none; and what was filled reads as it did before.
func TestSmallCommitsFillAhead(t *testing.T) {
	fs := &fillFS{memFS: newMemFS()}
	c := testConfig("/j", fs)
	c.Limit, c.SegmentSize, c.CutBytes = 32<<20, 4<<20, 1<<20
	j := mustOpen(t, c)
	body := make([]byte, 2900)
	for i := range body {
		body[i] = byte(rand.Int())
	}
	appendOne := func(size int) {
		t.Helper()
		var drafts []record.Draft
		for n := 0; n < size; n += len(body) {
			drafts = append(drafts, record.Draft{Kind: record.KindReceived, Session: "s", Body: body})
		}
		if err := j.Append(drafts...).Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	took := func() (zeros int64) {
		fs.memFS.mu.Lock()
		defer fs.memFS.mu.Unlock()
		zeros, fs.zeros = fs.zeros, 0
		return zeros
	}
	for range 300 {
		appendOne(1)
	}
	if z := took(); z != zeroAhead {
		t.Errorf("300 small commits of 1 MB together filled %d bytes ahead, want %d", z, zeroAhead)
	}
	for range 8 {
		appendOne(200_000)
		appendOne(1)
	}
	if z := took(); z != 0 {
		t.Errorf("small commits between large ones filled %d bytes ahead", z)
	}
	for range 1000 {
		appendOne(1)
	}
	if z := took(); z < 2<<20 || z > 4<<20 {
		t.Errorf("1000 small commits of 3 MB filled %d bytes ahead", z)
	}
	last := j.Stats().Last
	for _, mode := range []crashMode{loseAll, keepAll, keepSome} {
		again := c
		again.FS = fs.crash(mode, rand.New(rand.NewPCG(1, 2)))
		r := mustOpen(t, again)
		if got := r.epochs[0].last; got != last {
			t.Errorf("crash mode %d: recovered up to record %d, want %d", mode, got, last)
		}
		if err := r.Close(testContext(t), "test"); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(testContext(t), "test"); err != nil {
		t.Fatal(err)
	}
}
