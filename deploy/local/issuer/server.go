package issuer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// The names of the issuers that Listen serves, which are their paths as well.
const (
	CI      = "ci"      // profile github: pipelines
	Cluster = "cluster" // profile kubernetes: agents in pods
	Corp    = "corp"    // profile generic, groups in the claim "groups": people
)

// Server serves the three issuers of the local stack on one listener.
type Server struct {
	issuers map[string]*Issuer
	url     string
	http    *http.Server
	done    chan error
}

// Listen serves the issuers CI, Cluster and Corp on addr, a loopback address
// ("127.0.0.1:0" takes a free port; tokens outlive a restart only on the same
// port, for iss holds it). Keys are kept under dir, one folder an issuer; empty:
// in memory.
func Listen(addr, dir string) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		l.Close()
		return nil, fmt.Errorf("issuer: %s is no loopback address: whoever reaches this issuer is trusted", l.Addr())
	}
	s := &Server{url: "http://" + l.Addr().String(), issuers: map[string]*Issuer{}, done: make(chan error, 1)}
	mux := http.NewServeMux()
	for _, name := range []string{CI, Cluster, Corp} {
		cfg := Config{URL: s.url + "/" + name}
		if dir != "" {
			cfg.Dir = filepath.Join(dir, name)
		}
		i, err := New(cfg)
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("issuer %s: %w", name, err)
		}
		s.issuers[name] = i
		mux.Handle("/"+name+"/", i)
	}
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() { s.done <- s.http.Serve(l) }()
	return s, nil
}

// URL is the server's address, http://host:port.
func (s *Server) URL() string { return s.url }

// Issuer returns one of CI, Cluster and Corp, or nil.
func (s *Server) Issuer(name string) *Issuer { return s.issuers[name] }

// Mint makes a token for a ready-made caller.
func (s *Server) Mint(c Caller, ttl time.Duration) (string, error) {
	i := s.issuers[c.Issuer]
	if i == nil {
		return "", fmt.Errorf("caller %s: no issuer %q", c.Name, c.Issuer)
	}
	return i.Mint(c.Claims, Options{TTL: ttl})
}

// Close stops the server and waits for its requests until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	if serr := <-s.done; !errors.Is(serr, http.ErrServerClosed) && err == nil {
		err = serr
	}
	return err
}
