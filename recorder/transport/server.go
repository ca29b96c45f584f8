package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"verbatim.dev/recorder/record"
)

const (
	defaultMaxPeers = 64
	socketMode      = 0o660
	// maxSocketPath is what sockaddr_un holds (unix(7)), less the final zero.
	maxSocketPath = 107
	// lastWords is how long a peer has to take the error that ends it.
	lastWords = time.Second
)

// ServerConfig configures a [Server]. Zero values have defaults, but for
// Socket.
type ServerConfig struct {
	Socket    string        // path; the folder must exist, the socket gets mode 0660
	Keepalive time.Duration // 10 s; three times as long without a whole message ends a connection
	Handshake time.Duration // 10 s
	MaxPeers  int           // 64 connections; each holds one frame in memory at most
	Logger    *slog.Logger
}

// Server is the sink's end of the local transport.
type Server struct {
	c        ServerConfig
	log      *slog.Logger
	listener *net.UnixListener
	inode    os.FileInfo
	closing  sync.Once
	closed   error
}

// Listen binds the socket. What a dead sink left in its place is replaced; a
// living one is an error. Close or Serve releases it.
func Listen(c ServerConfig) (*Server, error) {
	if c.Socket == "" {
		return nil, errors.New("local transport: no socket given")
	}
	orDefault(&c.Keepalive, defaultKeepalive)
	orDefault(&c.Handshake, defaultHandshake)
	orDefault(&c.MaxPeers, defaultMaxPeers)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{c: c, log: c.Logger.With("socket", c.Socket)}
	if err := s.bind(); err != nil {
		return nil, fmt.Errorf("local transport: socket %s: %w", c.Socket, err)
	}
	return s, nil
}

func (s *Server) bind() error {
	switch st, err := os.Lstat(s.c.Socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return errors.New("the path is taken by something that is no socket")
	default:
		conn, err := net.DialTimeout("unix", s.c.Socket, time.Second)
		if err == nil {
			_ = conn.Close()
			return errors.New("another process serves it")
		}
	}
	// Under a name of its own until the mode is right: no moment in which
	// others could connect.
	temp := filepath.Join(filepath.Dir(s.c.Socket), fmt.Sprintf(".%d.sock", os.Getpid()))
	for _, p := range []string{s.c.Socket, temp} {
		if len(p) > maxSocketPath {
			return fmt.Errorf("%s is longer than the %d bytes that a socket's path may have", p, maxSocketPath)
		}
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, socketMode); err == nil {
		if s.inode, err = os.Lstat(temp); err == nil {
			err = os.Rename(temp, s.c.Socket)
		}
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temp)
		return err
	}
	s.listener = l
	return nil
}

// Close stops listening and removes the socket. Serve ends by it.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.closed = s.listener.Close()
		if st, err := os.Lstat(s.c.Socket); err == nil && os.SameFile(st, s.inode) {
			s.closed = errors.Join(s.closed, os.Remove(s.c.Socket))
		}
	})
	return s.closed
}

// Serve gives the receiver what gateways send, until ctx ends, whose cause it
// then returns, until an error of the receiver that wraps [ErrStop], or until
// Close. It returns when all its connections have ended.
func (s *Server) Serve(ctx context.Context, r Receiver) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer s.Close() // also waits for the one below
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	places := make(chan struct{}, s.c.MaxPeers)
	s.log.Info("transport: listening")
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			s.log.Warn("transport: accept failed", "error", err)
			select { // out of descriptors, most likely
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			s.log.Warn("transport: connection turned away", "connections", s.c.MaxPeers)
			_ = conn.SetWriteDeadline(time.Now().Add(lastWords))
			_, _ = conn.Write(appendError(nil, fmt.Sprintf("the sink serves %d connections already", s.c.MaxPeers)))
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			p := &peer{server: s, conn: conn, r: newMessageReader(conn), receiver: r}
			err := p.serve(ctx)
			switch {
			case errors.Is(err, ErrStop):
				s.log.Error("transport: the sink stops", "gateway", p.gateway, "epoch", p.epoch, "error", err)
				cancel(err)
			case ctx.Err() != nil || errors.Is(err, io.EOF):
				s.log.Info("transport: gateway disconnected", "gateway", p.gateway)
			default:
				s.log.Warn("transport: connection dropped", "gateway", p.gateway, "epoch", p.epoch, "error", err)
			}
		})
	}
}

// peer is one connection of a gateway.
type peer struct {
	server   *Server
	conn     net.Conn
	r        *messageReader
	receiver Receiver

	ctx     context.Context
	writing sync.Mutex

	gateway string
	epoch   record.Epoch
	begun   bool
	stream  Stream // nil also where the epoch is refused
	held    uint64
}

func (p *peer) serve(ctx context.Context) (err error) {
	defer p.conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.ctx = ctx
	defer context.AfterFunc(ctx, func() {
		_ = p.conn.SetReadDeadline(time.Unix(1, 0))
		_ = p.conn.SetWriteDeadline(time.Now().Add(lastWords))
	})()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer func() {
		if p.stream != nil {
			p.stream.End()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			text := err.Error()
			if ctx.Err() != nil {
				text = "the sink is stopping"
			}
			_ = p.write(appendError(nil, text))
		}
	}()
	if err := p.handshake(); err != nil {
		return err
	}
	p.server.log.Info("transport: gateway connected", "gateway", p.gateway)
	wg.Go(func() { p.ping(ctx) })
	for {
		if err := p.conn.SetReadDeadline(time.Now().Add(silence * p.server.c.Keepalive)); err != nil {
			return err
		}
		if ctx.Err() != nil { // the deadline above may have replaced the one that ends reading
			return context.Cause(ctx)
		}
		kind, body, err := p.r.next()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
				err = fmt.Errorf("local transport: no whole message within %s", silence*p.server.c.Keepalive)
			}
			return err
		}
		switch kind {
		case typePing:
		case typeEpoch:
			err = p.onEpoch(ctx, body)
		case typeFrame:
			err = p.onFrame(ctx, body)
		default:
			err = protocolErrorf("the gateway sent a message of type %d after its hello", kind)
		}
		if err != nil {
			return err
		}
	}
}

func (p *peer) handshake() error {
	if err := p.conn.SetReadDeadline(time.Now().Add(p.server.c.Handshake)); err != nil {
		return err
	}
	kind, body, err := p.r.next()
	if err != nil {
		return fmt.Errorf("local transport: handshake: %w", err)
	}
	if kind != typeHello {
		return protocolErrorf("the first message is of type %d, not hello", kind)
	}
	version, gateway, err := parseHello(body)
	if err != nil {
		return err
	}
	p.gateway = gateway
	if version != protocolVersion {
		return protocolErrorf("the gateway speaks version %d, this sink version %d: use programs of one release", version, protocolVersion)
	}
	return p.write(appendWelcome(nil))
}

func (p *peer) write(b []byte) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	limit := silence * p.server.c.Keepalive
	if p.ctx.Err() != nil {
		limit = min(limit, lastWords)
	}
	if err := p.conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := p.conn.Write(b); err != nil {
		return fmt.Errorf("local transport: %w", err)
	}
	return nil
}

// ping shows the gateway that this process lives, also while the vault is slow.
func (p *peer) ping(ctx context.Context) {
	t := time.NewTicker(p.server.c.Keepalive)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := p.write(appendPing(nil)); err != nil {
				_ = p.conn.Close() // the reader says why
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *peer) onEpoch(ctx context.Context, body []byte) error {
	epoch, gateway, err := parseEpoch(body)
	if err != nil {
		return err
	}
	if p.stream != nil {
		p.stream.End()
		p.stream = nil
	}
	p.epoch, p.begun, p.held = epoch, true, 0
	stream, err := p.receiver.Begin(ctx, gateway, epoch)
	if errors.Is(err, ErrRefused) {
		return p.refuse(err)
	}
	if err != nil {
		return err
	}
	p.stream, p.held = stream, stream.Held()
	return p.write(appendHeld(nil, epoch, p.held))
}

func (p *peer) onFrame(ctx context.Context, frame []byte) error {
	if !p.begun {
		return protocolErrorf("a frame came before an epoch")
	}
	if p.stream == nil {
		return nil // refused, and the gateway did not know when it sent this
	}
	held, err := p.stream.Take(ctx, frame)
	if errors.Is(err, ErrRefused) {
		return p.refuse(err)
	}
	if err != nil {
		return err
	}
	if held > p.held {
		p.held = held
		return p.write(appendHeld(nil, p.epoch, held))
	}
	return nil
}

func (p *peer) refuse(err error) error {
	if p.stream != nil {
		p.stream.End()
		p.stream = nil
	}
	p.server.log.Error("transport: epoch refused", "gateway", p.gateway, "epoch", p.epoch, "error", err)
	return p.write(appendRefused(nil, p.epoch, err.Error()))
}
