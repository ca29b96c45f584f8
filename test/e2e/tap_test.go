package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// tap stands between a client and Envoy and keeps the bytes of both directions
// as they passed. It changes none, so a client's host is the tap's.
type tap struct {
	url      string
	listener net.Listener
	to       string
	wait     sync.WaitGroup

	mu    sync.Mutex
	conns []*wire
}

// wire is what passed on one connection.
type wire struct {
	mu       sync.Mutex
	up, down bytes.Buffer
}

// seen is one exchange as it stood on the wire.
type seen struct {
	method, target, host, sentEncoding string
	sent                               []byte
	status                             int
	header                             http.Header
	got                                []byte
}

func newTap(t testing.TB, to string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{url: "http://" + l.Addr().String(), listener: l, to: to}
	p.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w := &wire{}
			p.mu.Lock()
			p.conns = append(p.conns, w)
			p.mu.Unlock()
			p.wait.Go(func() { p.serve(c, w) })
		}
	})
	t.Cleanup(p.close)
	return p
}

// close ends the tap; connections end when the client or Envoy ends them.
func (p *tap) close() { p.listener.Close() }

func (p *tap) serve(client net.Conn, w *wire) {
	defer client.Close()
	gateway, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer gateway.Close()
	var both sync.WaitGroup
	pass := func(from, to net.Conn, keep *bytes.Buffer) {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			w.mu.Lock()
			keep.Write(b[:n])
			w.mu.Unlock()
			if _, werr := to.Write(b[:n]); werr != nil || err != nil {
				break
			}
		}
		if c, ok := to.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	}
	both.Go(func() { pass(client, gateway, &w.up) })
	both.Go(func() { pass(gateway, client, &w.down) })
	both.Wait()
}

// exchanges reads what passed so far. Each exchange must be whole.
func (p *tap) exchanges(t testing.TB) []seen {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []seen
	for _, w := range p.conns {
		w.mu.Lock()
		up, down := bufio.NewReader(bytes.NewReader(w.up.Bytes())), bufio.NewReader(bytes.NewReader(w.down.Bytes()))
		w.mu.Unlock()
		for {
			req, err := http.ReadRequest(up)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Errorf("tap: request: %v", err)
				break
			}
			s := seen{method: req.Method, target: req.RequestURI, host: req.Host, sentEncoding: req.Header.Get("Content-Encoding")}
			if s.sent, err = io.ReadAll(req.Body); err != nil {
				t.Errorf("tap: body of %s %s: %v", s.method, s.target, err)
				break
			}
			res, err := http.ReadResponse(down, req)
			for err == nil && res.StatusCode == http.StatusContinue {
				res, err = http.ReadResponse(down, req)
			}
			if err != nil {
				t.Errorf("tap: response to %s %s: %v", s.method, s.target, err)
				break
			}
			s.status, s.header = res.StatusCode, res.Header
			if s.got, err = io.ReadAll(res.Body); err != nil {
				t.Errorf("tap: response to %s %s broke off after %d bytes: %v", s.method, s.target, len(s.got), err)
				break
			}
			out = append(out, s)
		}
	}
	return out
}
