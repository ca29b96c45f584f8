package tools

import (
	"io"
	"sync"
)

// Tail passes a program's output on and keeps its end for an error text. It is
// safe for concurrent use.
type Tail struct {
	// Next gets all output; nil discards it.
	Next io.Writer

	mu   sync.Mutex
	kept []byte
}

// Write implements [io.Writer]. It never fails: a full or closed log must not
// stop the program.
func (t *Tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, b...)
	if len(t.kept) > 16<<10 {
		t.kept = append([]byte(nil), t.kept[len(t.kept)-8<<10:]...)
	}
	if t.Next != nil {
		_, _ = t.Next.Write(b)
	}
	return len(b), nil
}

// String returns the end of the output.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return tail(string(t.kept))
}
