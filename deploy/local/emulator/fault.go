package emulator

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"
)

// FaultKind is a way to misbehave.
type FaultKind int

const (
	// FaultReset resets the connection after AfterBytes bytes of the body, once
	// Duration is over.
	FaultReset FaultKind = iota + 1
	// FaultStall stops after AfterBytes bytes of the body, for Duration or until
	// the client is gone, then goes on.
	FaultStall
	// FaultStatus answers with Status and an error body in place of working.
	FaultStatus
)

// Fault is one way to misbehave for some requests.
type Fault struct {
	Kind FaultKind
	// Method and Path choose the requests: equal to the method, contained in the
	// path. Empty matches all.
	Method, Path string
	// Count is how many matching requests it hits; 0 is all until the next
	// SetFault or Reset.
	Count int
	// AfterBytes is how much of the body passes first. The headers always do,
	// unless it is negative: then not even these.
	AfterBytes int64
	// Duration bounds a stall; 0 stalls until the client is gone. A reset comes
	// so much later.
	Duration time.Duration
	// Status is for FaultStatus, default 500.
	Status int
}

// SetFault makes the double misbehave. A nil fault ends that.
func (d *Double) SetFault(f *Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = nil
	if f != nil {
		c := *f
		if c.Status == 0 {
			c.Status = http.StatusInternalServerError
		}
		if c.Count == 0 {
			c.Count = -1
		}
		d.fault = &c
	}
}

func (d *Double) takeFault(r *http.Request) *Fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.fault
	if f == nil || f.Count == 0 || (f.Method != "" && f.Method != r.Method) || !strings.Contains(r.URL.Path, f.Path) {
		return nil
	}
	f.Count--
	c := *f
	return &c
}

// countingWriter counts the body, tells the status and carries out a fault.
type countingWriter struct {
	http.ResponseWriter
	ctx    context.Context
	status func(int)
	fault  *Fault
	n      int64
	wrote  bool
}

func (w *countingWriter) WriteHeader(code int) {
	if w.wrote {
		return
	}
	w.wrote = code >= 200
	if f := w.fault; f != nil && f.AfterBytes < 0 {
		w.strike()
	}
	w.status(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	written := 0
	if f := w.fault; f != nil && f.AfterBytes >= 0 && w.n+int64(len(b)) >= f.AfterBytes {
		n, err := w.ResponseWriter.Write(b[:f.AfterBytes-w.n])
		w.n += int64(n)
		if err != nil {
			return n, err
		}
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		w.strike()
		written, b = n, b[n:]
	}
	n, err := w.ResponseWriter.Write(b)
	w.n += int64(n)
	return written + n, err
}

// strike carries out the fault. A reset does not return.
func (w *countingWriter) strike() {
	f := w.fault
	w.fault = nil
	switch f.Kind {
	case FaultStall:
		var after <-chan time.Time
		if f.Duration > 0 {
			after = time.After(f.Duration)
		}
		select {
		case <-w.ctx.Done():
		case <-after:
		}
	case FaultReset:
		select {
		case <-w.ctx.Done():
		case <-time.After(f.Duration):
		}
		if c, _, err := http.NewResponseController(w.ResponseWriter).Hijack(); err == nil {
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0)
			}
			_ = c.Close()
		}
		// Ends the handler; on HTTP/2 it resets the stream.
		panic(http.ErrAbortHandler)
	}
}

func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
