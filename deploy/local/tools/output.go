package tools

import (
	"io"
	"sync"
)

// lastOutput passes a program's output on and keeps its end for an error text.
type lastOutput struct {
	mu   sync.Mutex
	next io.Writer
	kept []byte
}

func (l *lastOutput) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, b...)
	if len(l.kept) > 16<<10 {
		l.kept = append([]byte(nil), l.kept[len(l.kept)-8<<10:]...)
	}
	if l.next != nil {
		// A full or closed log must not stop the program.
		_, _ = l.next.Write(b)
	}
	return len(b), nil
}

func (l *lastOutput) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tail(string(l.kept))
}
