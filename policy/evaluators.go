package policy

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
)

// An evaluation calls itself deeply, and each goroutine that is new to it copies
// its stack several times while that grows: as much work again as the
// evaluation. So evaluations run on goroutines that stay for a while, no more
// of them than there are processors: more would only make each slower, and its
// deadline is in wall time.

// evaluators is a bounded set of goroutines. Each ends by itself when it had
// nothing to do for idleEvaluator.
type evaluators struct {
	work  chan func() // to one that waits
	slots chan struct{}
}

const idleEvaluator = 10 * time.Second

var shared = newEvaluators(max(runtime.GOMAXPROCS(0), 2))

func newEvaluators(n int) *evaluators {
	return &evaluators{work: make(chan func()), slots: make(chan struct{}, n)}
}

// do runs f on one of the goroutines and waits for its end, or returns false
// when ctx ended before one was free. A panic of f becomes the caller's.
func (e *evaluators) do(ctx context.Context, f func()) bool {
	done := make(chan any, 1)
	job := func() {
		defer func() {
			p := recover()
			if p != nil {
				p = fmt.Sprintf("%v\n%s", p, debug.Stack())
			}
			done <- p
		}()
		f()
	}
	select {
	case e.work <- job:
	default:
		select {
		case e.work <- job:
		case e.slots <- struct{}{}:
			go e.run(job)
		case <-ctx.Done():
			return false
		}
	}
	if p := <-done; p != nil {
		panic(p)
	}
	return true
}

func (e *evaluators) run(job func()) {
	defer func() { <-e.slots }()
	idle := time.NewTimer(idleEvaluator)
	defer idle.Stop()
	for {
		job()
		idle.Reset(idleEvaluator)
		select {
		case job = <-e.work:
		case <-idle.C:
			return
		}
	}
}
