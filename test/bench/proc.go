package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"verbatim.dev/deploy/local/tools"
)

// usage is what a process has used.
type usage struct {
	cpu  float64 // seconds, user and system
	peak int64   // resident bytes, since the last resetPeak
}

// part is a process whose use is measured.
type part struct {
	name string
	pid  func() int
}

// ticks are the units of /proc's times: USER_HZ is 100 on every Linux.
const ticks = 100

func usageOf(parts []part) map[string]usage {
	m := map[string]usage{}
	for _, p := range parts {
		m[p.name] = usageOfPid(p.pid())
	}
	return m
}

func usageOfPid(pid int) (u usage) {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		// The name, in parentheses, may hold spaces.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 12 {
			user, _ := strconv.ParseFloat(f[11], 64)
			system, _ := strconv.ParseFloat(f[12], 64)
			u.cpu = (user + system) / ticks
		}
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
				u.peak = n << 10
			}
		}
	}
	return u
}

// resetPeak begins a new peak (proc(5), clear_refs). Where it may not, the peak
// is that of the process's life.
func resetPeak(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// self runs this program in another role, to its end, and returns its output.
func self(ctx context.Context, env string, args ...string) ([]byte, *os.ProcessState, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, cmd.ProcessState, fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), cmd.ProcessState, nil
}

// start runs this program in another role until the rig ends.
func start(log *logs, args ...string) (*tools.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return tools.Start(tools.Command{Path: exe, Args: args, Log: log})
}

// logs keeps the end of what the processes wrote.
type logs struct {
	mu  sync.Mutex
	buf []byte
}

const keptLog = 64 << 10

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf = append(l.buf, b...); len(l.buf) > 2*keptLog {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-keptLog:]...)
	}
	return len(b), nil
}

func (l *logs) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf[max(0, len(l.buf)-4<<10):])
}

func datasync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
