package emulator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"verbatim.dev/deploy/local/tools"
)

// RunConfig says how to run the emulator.
type RunConfig struct {
	// Tools names the program; without BQEmulator only the double runs.
	Tools tools.Tools
	// Double is the double in front; its Backend is filled in.
	Double Config
	// Listen is the double's address, default 127.0.0.1:0.
	Listen string
	// DataDir keeps the emulator's tables in a file there; empty keeps them in
	// memory.
	DataDir string
	// Project is the default project, default test-project.
	Project string
	// Log takes the emulator's log; nil discards it.
	Log io.Writer
	// Grace is the time between SIGTERM and SIGKILL, default 2 s: the emulator
	// may ignore SIGTERM while connections are open.
	Grace time.Duration
}

// Emulator is a running emulator with its double.
type Emulator struct {
	// URL is the double's, GRPC the host:port of the emulator's Storage API
	// (past the double, with no credential check).
	URL, GRPC string
	Double    *Double

	process *tools.Process
	server  *http.Server
	served  chan struct{}
	scratch string
}

// Start runs the emulator and the double and waits until both answer, at most
// until ctx ends.
func Start(ctx context.Context, c RunConfig) (_ *Emulator, err error) {
	e := &Emulator{}
	defer func() {
		if err != nil {
			_ = e.Close()
			err = fmt.Errorf("start emulator: %w", err)
		}
	}()
	if c.Tools.BQEmulator != "" {
		if err := e.startProcess(ctx, &c); err != nil {
			return nil, err
		}
	}
	if e.Double, err = NewDouble(c.Double); err != nil {
		return nil, err
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, err
	}
	e.URL = "http://" + l.Addr().String()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	e.server = &http.Server{Handler: e.Double, ReadHeaderTimeout: 30 * time.Second, Protocols: &protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	e.served = make(chan struct{})
	go func() {
		defer close(e.served)
		_ = e.server.Serve(l)
	}()
	return e, nil
}

// startProcess runs bqemulator on free ports. A port can be taken by another
// between the choice and the start; then it is tried again.
func (e *Emulator) startProcess(ctx context.Context, c *RunConfig) error {
	if c.Project == "" {
		c.Project = "test-project"
	}
	if c.Grace == 0 {
		c.Grace = 2 * time.Second
	}
	scratch, err := os.MkdirTemp("", "verbatim-emulator-")
	if err != nil {
		return err
	}
	e.scratch = scratch
	for try := 0; ; try++ {
		rest, grpc, err := freePorts()
		if err != nil {
			return err
		}
		args := []string{"start", "--rest-host", "127.0.0.1", "--rest-port", strconv.Itoa(rest), "--grpc-host", "127.0.0.1", "--grpc-port", strconv.Itoa(grpc),
			"--project", c.Project, "--log-level", "warning", "--log-format", "console"}
		if c.DataDir != "" {
			dir, err := filepath.Abs(c.DataDir)
			if err != nil {
				return err
			}
			args = append(args, "--persistent", "--data-dir", dir)
		} else {
			args = append(args, "--ephemeral")
		}
		out := &tools.Tail{Next: c.Log}
		e.process, err = tools.Start(tools.Command{Path: c.Tools.BQEmulator, Args: args, Dir: scratch, Log: out, Grace: c.Grace,
			Env: append(os.Environ(), "HOME="+c.Tools.Home, "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1",
				"BQEMU_UPLOAD_STAGING_DIR="+filepath.Join(scratch, "uploads"), "BQEMU_UPLOAD_MAX_BYTES=10737418240", "BQEMU_ENABLE_FORMAT_EXTENSIONS=false")})
		if err != nil {
			return err
		}
		base := "http://127.0.0.1:" + strconv.Itoa(rest)
		err = e.ready(ctx, base)
		if err == nil {
			c.Double.Backend, e.GRPC = base, "127.0.0.1:"+strconv.Itoa(grpc)
			return nil
		}
		ended := false
		select {
		case <-e.process.Done():
			ended = true
		default:
		}
		e.process.Kill()
		if !ended || try == 2 {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
}

func (e *Emulator) ready(ctx context.Context, base string) error {
	client := &http.Client{Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	var why error
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(r); err != nil {
			why = err
		} else {
			_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			why = fmt.Errorf("/readyz: %s", res.Status)
		}
		select {
		case <-e.process.Done():
			return errors.New("bqemulator ended before it was ready")
		case <-ctx.Done():
			return fmt.Errorf("bqemulator is not ready: %w (%w)", why, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func freePorts() (a, b int, err error) {
	l1, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer l1.Close()
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer l2.Close()
	return l1.Addr().(*net.TCPAddr).Port, l2.Addr().(*net.TCPAddr).Port, nil
}

// Done is closed when the emulator's process has ended; nil without one.
func (e *Emulator) Done() <-chan struct{} {
	if e.process == nil {
		return nil
	}
	return e.process.Done()
}

// Close ends the double and the emulator.
func (e *Emulator) Close() error {
	var err error
	if e.server != nil {
		err = e.server.Close()
		<-e.served
	}
	if e.Double != nil {
		e.Double.Close()
	}
	if e.process != nil {
		e.process.Stop()
	}
	if e.scratch != "" {
		err = errors.Join(err, os.RemoveAll(e.scratch))
	}
	return err
}
