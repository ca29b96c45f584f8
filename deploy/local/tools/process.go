package tools

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Command is a program to run in the background.
type Command struct {
	Path string
	Args []string
	// Env is the whole environment; nil means this process's.
	Env []string
	Dir string
	// Log takes standard output and standard error, from one goroutine at a time.
	// Nil discards them.
	Log io.Writer
	// Grace is how long Stop waits between SIGTERM and SIGKILL, default 5 s.
	Grace time.Duration
}

// Process is a program that runs. It is killed when this process dies. Its
// methods are safe for concurrent use.
type Process struct {
	cmd   *exec.Cmd
	grace time.Duration
	done  chan struct{}
	err   error // valid after done

	mu      sync.Mutex
	stopped bool
}

// Start starts a program. The caller must Stop or Kill it.
func Start(c Command) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	cmd.Stdout, cmd.Stderr = c.Log, c.Log
	cmd.WaitDelay = 2 * time.Second
	// A group of its own: Ctrl-C goes to this process alone, which stops its
	// children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{cmd: cmd, grace: c.Grace, done: make(chan struct{})}
	if p.grace == 0 {
		p.grace = 5 * time.Second
	}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the thread that started the
		// child ends, so that thread stays until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return p, nil
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the program ended: nil while it runs, after exit status 0 and
// after Stop or Kill.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil
	}
	return p.err
}

// Signal sends a signal; after the end it does nothing.
func (p *Process) Signal(s syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := syscall.Kill(-p.Pid(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %d: %w", p.Pid(), err)
	}
	return nil
}

// Stop ends the program: SIGTERM, then SIGKILL after the grace time. It waits
// for the end.
func (p *Process) Stop() {
	p.mark()
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(p.grace):
		_ = p.Signal(syscall.SIGKILL)
		<-p.done
	}
}

// Kill ends the program by SIGKILL and waits for the end.
func (p *Process) Kill() {
	p.mark()
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

func (p *Process) mark() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
}
