package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The heap of a busy gateway is either small (a few MB of policy, keys and
// caches) and its garbage is what the requests leave, or large with bodies in
// pooled buffers that hold no pointers and are hardly garbage. One percentage
// does not fit both: a high one lets a large heap grow far above the memory
// formula, and a low one collects a small heap many times a second. So a
// collection comes when the heap has grown by about heapStep.
const (
	heapStep    = 32 << 20 // bytes
	leastGrowth = 10       // percent
	mostGrowth  = 400
)

// tuneGC sets GOGC anew after each collection, until stop is called.
func tuneGC() (stop func()) {
	t := &tuner{live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}, done: make(chan struct{})}
	t.percent = debug.SetGCPercent(leastGrowth)
	t.set(leastGrowth)
	t.arm()
	return func() { close(t.done) }
}

type tuner struct {
	live    []metrics.Sample
	percent int
	done    chan struct{}
}

// arm has the next collection call it again.
func (t *tuner) arm() {
	runtime.SetFinalizer(&struct{ _ [16]byte }{}, func(any) {
		select {
		case <-t.done:
			return
		default:
		}
		metrics.Read(t.live)
		t.set(growth(t.live[0].Value.Uint64()))
		t.arm()
	})
}

func (t *tuner) set(percent int) {
	if percent != t.percent { // it stops the world, for a moment
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}

// growth returns the percentage for a heap with live bytes. It moves in steps,
// so that a heap that hardly changes leaves it alone.
func growth(live uint64) int {
	p := 100 * heapStep / max(live, 1)
	p -= p % 10
	return int(min(max(p, leastGrowth), mostGrowth))
}
