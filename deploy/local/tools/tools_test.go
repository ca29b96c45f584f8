package tools

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestEnsure(t *testing.T) {
	if testing.Short() {
		t.Skip("installs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	got, err := Ensure(ctx, "", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if v, err := envoyVersion(ctx, got.Envoy); err != nil || v == "" {
		t.Errorf("envoy: %q, %v", v, err)
	}
	if out, err := run(ctx, got.Python, "-c", "import google.cloud.bigquery as b; print(b.__version__)"); err != nil || strings.TrimSpace(out) != "3.47.0" {
		t.Errorf("python client: %q, %v", out, err)
	}
	if out, err := run(ctx, got.Python, "-m", "pip", "check"); err != nil {
		t.Errorf("pip check: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(got.Home, ".duckdb", "extensions", duckdbVersion, "linux_amd64", "spatial.duckdb_extension")); err != nil {
		t.Error(err)
	}
	var said bytes.Buffer
	start := time.Now()
	again, err := Ensure(ctx, "", &said)
	if err != nil || again != got || said.Len() > 0 {
		t.Errorf("again: %+v, %v, said %q", again, err, said.String())
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("again took %s", d)
	}
}

// fakePython makes a python3 that answers as a CPython, makes venvs that hold
// itself, and has a pip that does what the environment variable PIP says.
func fakePython(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
case "$1 $2" in
"-c "*) echo "cpython 3.12" ;;
"-m venv") mkdir -p "$3/bin" "$3/lib/python3.12/site-packages" && cp "$0" "$3/bin/python" ;;
"-m pip")
  echo run >> "$PIP_RUNS"
  case "$PIP" in
  mismatch) echo "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE" >&2; exit 1 ;;
  none) echo "ERROR: No matching distribution found for x" >&2; exit 1 ;;
  slow) sleep 60 ;;
  esac ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "python3"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	t.Setenv("PYTHON", "")
	t.Setenv("PIP_RUNS", filepath.Join(dir, "runs"))
}

func runs(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(os.Getenv("PIP_RUNS"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

func nothing(environment) error { return nil }

func TestEnsureOnceForAll(t *testing.T) {
	fakePython(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := ensure(t.Context(), dir, nil, "x", []byte("a"), nothing); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := runs(t); n != 1 {
		t.Errorf("pip ran %d times", n)
	}
	// Other requirements replace it, and what lay there goes.
	left := filepath.Join(dir, "x", "left")
	if err := os.WriteFile(left, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ensure(t.Context(), dir, nil, "x", []byte("b"), nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) || runs(t) != 2 {
		t.Errorf("%v, pip ran %d times", err, runs(t))
	}
}

func TestEnsureIsNotDoneHalfway(t *testing.T) {
	fakePython(t)
	dir := t.TempDir()
	boom := errors.New("boom")
	if _, err := ensure(t.Context(), dir, nil, "x", []byte("a"), func(environment) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if _, err := ensure(t.Context(), dir, nil, "x", []byte("a"), nothing); err != nil || runs(t) != 2 {
		t.Errorf("%v, pip ran %d times", err, runs(t))
	}
}

func TestEnsureTellsWhatToDo(t *testing.T) {
	for pip, want := range map[string]string{"mismatch": "not the file that was pinned", "none": "glibc 2.31"} {
		t.Run(pip, func(t *testing.T) {
			fakePython(t)
			t.Setenv("PIP", pip)
			if _, err := ensure(t.Context(), t.TempDir(), nil, "x", []byte("a"), nothing); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("time is over", func(t *testing.T) {
		fakePython(t)
		t.Setenv("PIP", "slow")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := ensure(ctx, t.TempDir(), nil, "x", []byte("a"), nothing); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no python", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		t.Setenv("PYTHON", "")
		if _, err := ensure(t.Context(), t.TempDir(), nil, "x", []byte("a"), nothing); err == nil || !strings.Contains(err.Error(), "$PYTHON") {
			t.Errorf("got %v", err)
		}
	})
	if err := platform("envoy", "darwin", "arm64"); err == nil || !strings.Contains(err.Error(), "darwin/arm64") || !strings.Contains(err.Error(), "$ENVOY") {
		t.Errorf("got %v", err)
	}
	t.Run("waiting for another", func(t *testing.T) {
		dir := t.TempDir()
		unlock, err := lock(t.Context(), filepath.Join(dir, "x.lock"), func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var said bytes.Buffer
		if _, err := ensure(ctx, dir, &said, "x", []byte("a"), nothing); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(said.String(), "another process") {
			t.Errorf("got %v, said %q", err, said.String())
		}
	})
}

func TestOwnEnvoyComesFirst(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "envoy")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho envoy  version: 0123abc/1.41.2/Clean/RELEASE/BoringSSL\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("ENVOY", "")
	if got, err := EnsureEnvoy(t.Context(), t.TempDir(), nil); err != nil || got != fake {
		t.Errorf("PATH: %q, %v", got, err)
	}
	t.Setenv("ENVOY", fake)
	if got, err := EnsureEnvoy(t.Context(), t.TempDir(), nil); err != nil || got != fake {
		t.Errorf("$ENVOY: %q, %v", got, err)
	}
	t.Setenv("ENVOY", "/bin/true")
	if _, err := EnsureEnvoy(t.Context(), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "is not Envoy") {
		t.Errorf("not Envoy: %v", err)
	}
}

func TestDir(t *testing.T) {
	t.Setenv("VERBATIM_TOOLS", "/some/where")
	if d := Dir(); d != "/some/where" {
		t.Error(d)
	}
	t.Setenv("VERBATIM_TOOLS", "")
	if d := Dir(); filepath.Base(d) != ".tools" {
		t.Error(d)
	} else if _, err := os.Stat(filepath.Join(filepath.Dir(d), "go.mod")); err != nil {
		t.Error(err)
	}
	t.Chdir(t.TempDir())
	t.Setenv("VERBATIM_HOME", "/home")
	if d := Dir(); d != "/home/tools" {
		t.Error(d)
	}
}

func TestRequirementsArePinned(t *testing.T) {
	for name, text := range map[string][]byte{"envoy": envoyRequirements, "emulator": emulatorRequirements} {
		all := regexp.MustCompile(`\\\n\s*`).ReplaceAllString(string(text), "")
		for line := range strings.Lines(all) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if !regexp.MustCompile(`^[a-z0-9-]+==[0-9a-z.]+( --hash=sha256:[0-9a-f]{64})+$`).MatchString(strings.ReplaceAll(line, "  ", " ")) {
				t.Errorf("%s: %q", name, line)
			}
		}
		if bytes.Contains(text, []byte("://")) {
			t.Errorf("%s names a host", name)
		}
	}
}

func TestProcess(t *testing.T) {
	t.Run("output and status", func(t *testing.T) {
		var out Tail
		p, err := Start(Command{Path: "/bin/sh", Args: []string{"-c", "echo hello; echo oops >&2; exit 3"}, Log: &out})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		var e *exec.ExitError
		if !errors.As(p.Err(), &e) || e.ExitCode() != 3 || !strings.Contains(out.String(), "oops") {
			t.Errorf("%v, %q", p.Err(), out.String())
		}
		p.Stop() // after the end it does nothing
	})
	t.Run("stop", func(t *testing.T) {
		p, err := Start(Command{Path: "/bin/sleep", Args: []string{"60"}})
		if err != nil {
			t.Fatal(err)
		}
		if p.Err() != nil {
			t.Error(p.Err())
		}
		p.Stop()
		if p.Err() != nil {
			t.Error(p.Err())
		}
	})
	t.Run("stubborn, with a child that holds the output", func(t *testing.T) {
		out := &Tail{}
		p, err := Start(Command{Path: "/bin/sh", Args: []string{"-c", `trap "" TERM; echo ready; sleep 60 & wait; sleep 60`}, Log: out, Grace: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(out.String(), "ready") {
			time.Sleep(5 * time.Millisecond)
		}
		start := time.Now()
		p.Stop()
		if d := time.Since(start); d < 200*time.Millisecond || d > 10*time.Second {
			t.Errorf("took %s", d)
		}
	})
	t.Run("missing program", func(t *testing.T) {
		if _, err := Start(Command{Path: "/none"}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("it dies with us", func(t *testing.T) {
		// This test binary, as a parent, starts a sleep and is killed.
		parent := exec.Command(os.Args[0], "-test.run", "^TestParent$")
		parent.Env = append(os.Environ(), "TOOLS_TEST_PARENT=1")
		out, err := parent.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := parent.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		n, err := io.ReadAtLeast(out, buf, 1)
		if err != nil {
			t.Fatal(err)
		}
		pid := 0
		for _, c := range bytes.TrimSpace(buf[:n]) {
			pid = pid*10 + int(c-'0')
		}
		_ = parent.Process.Kill()
		_ = parent.Wait()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			// Gone, or a zombie that nobody reaps.
			stat, err := os.ReadFile("/proc/" + string(bytes.TrimSpace(buf[:n])) + "/stat")
			if err != nil || bytes.Contains(stat, []byte(") Z ")) {
				break
			}
			if time.Now().After(end) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				t.Fatal("the child outlived its parent")
			}
		}
	})
}

// TestParent is the parent in "it dies with us".
func TestParent(t *testing.T) {
	if os.Getenv("TOOLS_TEST_PARENT") == "" {
		t.Skip("only as a child of another test")
	}
	p, err := Start(Command{Path: "/bin/sleep", Args: []string{"60"}})
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString(strconv.Itoa(p.Pid()) + "\n")
	select {}
}

func TestStartEnvoyTellsWhy(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "envoy")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho the reason >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := StartEnvoy(t.Context(), EnvoyConfig{Binary: fake, Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := StartEnvoy(ctx, EnvoyConfig{Binary: fake, Dir: dir}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
