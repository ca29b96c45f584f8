package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	for live, want := range map[uint64]int{0: 400, 1 << 20: 400, 10 << 20: 320, 16 << 20: 200, 20 << 20: 160, 64 << 20: 50, 100 << 20: 30, 160 << 20: 20, 1 << 30: 10} {
		if got := growth(live); got != want {
			t.Errorf("a heap of %d MiB may grow by %d%%, want %d%%", live>>20, got, want)
		}
	}
}

func TestTuneGCFollowsTheHeap(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	stop := tuneGC()
	defer stop()
	await := func(what string, ok func(percent int) bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			p := debug.SetGCPercent(100)
			debug.SetGCPercent(p)
			if ok(p) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the percentage is %d", what, p)
			}
		}
	}
	await("a small heap", func(p int) bool { return p > leastGrowth })
	big := make([][]byte, 300)
	for i := range big {
		big[i] = make([]byte, 1<<20)
	}
	await("a large heap", func(p int) bool { return p == leastGrowth })
	runtime.KeepAlive(big)
}
