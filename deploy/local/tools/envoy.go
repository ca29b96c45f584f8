package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// EnvoyConfig says how to run Envoy.
type EnvoyConfig struct {
	// Binary is [Tools.Envoy].
	Binary string
	// Bootstrap is the rendered bootstrap. It needs an admin endpoint (port 0
	// will do), which tells when Envoy is ready and where it listens.
	Bootstrap []byte
	// Dir holds the bootstrap and Envoy's address file; it must exist.
	Dir string
	// Concurrency is the number of worker threads, default 1.
	Concurrency int
	// LogLevel is Envoy's, default warning.
	LogLevel string
	// Log takes Envoy's log; nil discards it.
	Log io.Writer
	// Grace is the time between SIGTERM and SIGKILL, default 5 s.
	Grace time.Duration
}

// Envoy is a running Envoy.
type Envoy struct {
	*Process
	// Admin is the host:port of the admin endpoint.
	Admin string
	// Listener is the host:port of the first listener.
	Listener string
}

// StartEnvoy runs Envoy and waits until it serves, at most until ctx ends.
func StartEnvoy(ctx context.Context, c EnvoyConfig) (*Envoy, error) {
	name := filepath.Join(c.Dir, "envoy.yaml")
	if err := os.WriteFile(name, c.Bootstrap, 0o600); err != nil {
		return nil, fmt.Errorf("start envoy: %w", err)
	}
	addressFile := filepath.Join(c.Dir, "envoy.admin")
	if err := os.Remove(addressFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start envoy: %w", err)
	}
	if c.Concurrency == 0 {
		c.Concurrency = 1
	}
	if c.LogLevel == "" {
		c.LogLevel = "warning"
	}
	last := &Tail{Next: c.Log}
	p, err := Start(Command{
		Path: c.Binary, Dir: c.Dir, Log: last, Grace: c.Grace,
		Args: []string{"-c", name, "--disable-hot-restart", "--concurrency", strconv.Itoa(c.Concurrency),
			"--log-level", c.LogLevel, "--admin-address-path", addressFile, "--drain-time-s", "1"},
	})
	if err != nil {
		return nil, err
	}
	e := &Envoy{Process: p}
	if err := e.wait(ctx, addressFile); err != nil {
		p.Kill()
		return nil, fmt.Errorf("start envoy: %w\n%s", err, last)
	}
	return e, nil
}

// wait polls until Envoy is live and its listener's address is known.
func (e *Envoy) wait(ctx context.Context, addressFile string) error {
	client := &http.Client{Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	why := errors.New("no admin address yet")
	for {
		if b, err := os.ReadFile(addressFile); err == nil && len(b) > 0 {
			e.Admin = strings.TrimSpace(string(b))
			if why = e.probe(ctx, client); why == nil {
				return nil
			}
		}
		select {
		case <-e.Done():
			return fmt.Errorf("envoy ended: %w", e.err)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (%w)", why, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (e *Envoy) probe(ctx context.Context, client *http.Client) error {
	if _, err := get(ctx, client, "http://"+e.Admin+"/ready"); err != nil {
		return err
	}
	body, err := get(ctx, client, "http://"+e.Admin+"/listeners?format=json")
	if err != nil {
		return err
	}
	var list struct {
		Listeners []struct {
			Local struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return fmt.Errorf("admin /listeners: %w", err)
	}
	if len(list.Listeners) == 0 || list.Listeners[0].Local.Socket.Port == 0 {
		return errors.New("no listener yet")
	}
	s := list.Listeners[0].Local.Socket
	e.Listener = net.JoinHostPort(s.Address, strconv.Itoa(s.Port))
	return nil
}

// Stats returns Envoy's counters and gauges whose names match the regular
// expression.
func (e *Envoy) Stats(ctx context.Context, filter string) (map[string]int64, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	body, err := get(ctx, client, "http://"+e.Admin+"/stats?filter="+filter)
	if err != nil {
		return nil, err
	}
	stats := map[string]int64{}
	for line := range strings.Lines(string(body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if n, err := strconv.ParseInt(value, 10, 64); ok && err == nil {
			stats[name] = n
		}
	}
	return stats, nil
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	return body, nil
}

// ValidateEnvoy has Envoy check a bootstrap and returns what it has against it.
func ValidateEnvoy(ctx context.Context, binary string, bootstrap []byte) error {
	dir, err := os.MkdirTemp("", "verbatim-envoy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(name, bootstrap, 0o600); err != nil {
		return err
	}
	if out, err := run(ctx, binary, "--mode", "validate", "--log-level", "warning", "-c", name); err != nil {
		return fmt.Errorf("envoy --mode validate: %w\n%s", err, tail(out))
	}
	return nil
}
