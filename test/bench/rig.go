package main

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
	"regexp"
	"strings"
	"time"

	"verbatim.dev/deploy/local/stack"
	"verbatim.dev/deploy/local/tools"
	"verbatim.dev/envoy"
	"verbatim.dev/recorder/journal"
)

// grants let the bench's caller, the ready-made agent, read.
const grants = `{"grants": {"agents": {"match": {"issuer": "cluster", "namespace": "agents"}, "projects": ["demo-project"], "datasets": ["*"], "methods": ["read"]}}}`

// row is one way from the load generator to the upstream.
type row struct {
	name    string
	about   string
	target  string // host:port
	token   func() string
	parts   []part
	stats   func(ctx context.Context) (*journal.Stats, error) // nil: no journal
	profile string                                            // URL of its pprof
}

// The rows of a run, in the order of the table.
const (
	rowUpstream = "upstream"
	rowEnvoy    = "envoy"
	rowNoop     = "noop"
	rowFloor    = "floor"
	rowVerbatim = "verbatim"
)

// baseline is what ratios are of.
const baseline = rowNoop

func (r *row) processes() []part { return r.parts }

func (r *row) journal(ctx context.Context) (*journal.Stats, error) {
	if r.stats == nil {
		return nil, nil
	}
	return r.stats(ctx)
}

// settle waits until the sink has what the measurement made: its CPU time
// belongs to it, and the next row must not pay for it.
func (r *row) settle(ctx context.Context) error {
	if r.name != rowVerbatim {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s, err := r.stats(ctx)
	if err != nil {
		return err
	}
	for last := s.Last; s.Acked < last; {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the sink holds %d of %d records", s.Acked, last)
		}
		if s, err = r.stats(ctx); err != nil {
			return err
		}
	}
	return nil
}

// startProfile takes a CPU profile in the background, and the allocations since
// the process's begin at the end.
func (r *row) startProfile(dir string, o options, l load) (wait func()) {
	file := func(what string) string {
		return filepath.Join(dir, fmt.Sprintf("%s-%s-%s.pprof", what, r.name, l.Name))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		download(fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", r.profile, max(int(o.duration.Seconds()), 1)), file("cpu"))
	}()
	return func() {
		<-done
		download(r.profile+"/debug/pprof/allocs", file("allocs"))
	}
}

// download is for profiles: one that fails is not there, and the figures are.
func download(url, file string) {
	res, err := http.Get(url)
	if err != nil {
		return
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && os.MkdirAll(filepath.Dir(file), 0o755) == nil {
		_ = os.WriteFile(file, b, 0o644)
	}
}

// rig is everything that runs.
type rig struct {
	dir   string
	keep  bool
	log   *logs
	rows  []*row
	stops []func()
}

func startRig(ctx context.Context, o options, want *regexp.Regexp) (_ *rig, err error) {
	r := &rig{log: &logs{}, keep: o.keep}
	if r.dir, err = os.MkdirTemp("", "vbench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, r.log.tail())
			r.stop()
		}
	}()
	setup, cancel := context.WithTimeout(ctx, 5*time.Minute) // the first run installs Envoy
	defer cancel()
	binary, err := tools.EnsureEnvoy(setup, "", os.Stderr)
	if err != nil {
		return nil, err
	}
	up, address, err := r.upstream(setup)
	if err != nil {
		return nil, err
	}
	upstreamPart := part{"upstream", up.Pid}
	// Nobody looks at it, but it has the length of a token: all rows carry the same.
	none := func() string { return strings.Repeat("t", 1092) }
	add := func(row *row) {
		row.parts = append(row.parts, upstreamPart)
		r.rows = append(r.rows, row)
	}
	if want.MatchString(rowUpstream) {
		add(&row{name: rowUpstream, about: "the upstream directly", target: address, token: none})
	}
	if want.MatchString(rowEnvoy) {
		e, err := r.envoy(setup, binary, rowEnvoy, envoy.Params{Bare: true}, address)
		if err != nil {
			return nil, err
		}
		add(&row{name: rowEnvoy, about: "Envoy alone", target: e.Listener, token: none, parts: []part{{"envoy", e.Pid}}})
	}
	for _, name := range []string{rowNoop, rowFloor} {
		if !want.MatchString(name) {
			continue
		}
		row, err := r.noop(setup, binary, name, address)
		if err != nil {
			return nil, err
		}
		row.token = none
		add(row)
	}
	if want.MatchString(rowVerbatim) {
		row, err := r.verbatim(setup, binary, o, address)
		if err != nil {
			return nil, err
		}
		add(row)
	}
	if len(r.rows) == 0 {
		return nil, errors.New("-rows matches none")
	}
	return r, nil
}

func (r *rig) stop() {
	for i := len(r.stops) - 1; i >= 0; i-- {
		r.stops[i]()
	}
	if r.keep {
		fmt.Fprintln(os.Stderr, "kept", r.dir)
		return
	}
	os.RemoveAll(r.dir)
}

func (r *rig) upstream(ctx context.Context) (*tools.Process, string, error) {
	ready := filepath.Join(r.dir, "upstream")
	p, err := start(r.log, "-role", "upstream", "-ready", ready)
	if err != nil {
		return nil, "", err
	}
	r.stops = append(r.stops, p.Stop)
	for {
		if b, err := os.ReadFile(ready); err == nil {
			return p, string(b), nil
		}
		select {
		case <-p.Done():
			return nil, "", errors.New("the upstream ended")
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (r *rig) envoy(ctx context.Context, binary, name string, p envoy.Params, upstream string) (*tools.Envoy, error) {
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p.Listen, p.Admin = "127.0.0.1:0", "127.0.0.1:0"
	p.Connections = []envoy.Connection{{Name: "local", REST: "http://" + upstream}}
	b, err := envoy.Render(p)
	if err != nil {
		return nil, err
	}
	e, err := tools.StartEnvoy(ctx, tools.EnvoyConfig{Binary: binary, Bootstrap: b, Dir: dir, Log: r.log})
	if err != nil {
		return nil, err
	}
	r.stops = append(r.stops, e.Stop)
	return e, nil
}

func (r *rig) noop(ctx context.Context, binary, name, upstream string) (*row, error) {
	socket, stats := filepath.Join(r.dir, name+".sock"), filepath.Join(r.dir, name+".stats")
	args := []string{"-role", "noop", "-socket", socket}
	out := &row{name: name, about: "Envoy with a processor that does nothing"}
	if name == rowFloor {
		args = append(args, "-stats", stats, "-journal", filepath.Join(r.dir, "floor-journal"))
		out.about = "the same, with two group commits for each exchange"
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", stats)
		}}}
		out.stats = func(ctx context.Context) (*journal.Stats, error) {
			return journalStats(ctx, client, "http://floor/stats")
		}
	}
	p, err := start(r.log, args...)
	if err != nil {
		return nil, err
	}
	r.stops = append(r.stops, p.Stop)
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		select {
		case <-p.Done():
			return nil, fmt.Errorf("%s ended", name)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	e, err := r.envoy(ctx, binary, name, envoy.Params{Processor: envoy.Processor{Socket: socket}}, upstream)
	if err != nil {
		return nil, err
	}
	out.target, out.parts = e.Listener, []part{{"envoy", e.Pid}, {"processor", p.Pid}}
	return out, nil
}

func (r *rig) verbatim(ctx context.Context, binary string, o options, upstream string) (*row, error) {
	home := filepath.Join(r.dir, "v")
	for name, text := range map[string]string{"policy/data.json": grants, "upstream.token": "canary"} {
		name = filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return nil, err
		}
		if err := stack.WriteFile(name, []byte(text)); err != nil {
			return nil, err
		}
	}
	metrics, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s, err := stack.Start(ctx, stack.Config{
		Home: home, Extproc: filepath.Join(o.bin, "extproc"), Recorder: filepath.Join(o.bin, "recorder"), Envoy: binary,
		Project: "demo-project", Upstream: "http://" + upstream, Policy: filepath.Join(home, "policy"), Log: r.log,
		Credential: map[string]any{"kind": "token_file", "file": filepath.Join(home, "upstream.token")},
		Configure: func(m map[string]any) {
			m["metrics"] = map[string]any{"address": metrics}
			delete(m, "limits") // the defaults
		},
		Bootstrap: func(p *envoy.Params) { p.AccessLog = "" }, // no row has one
	})
	if err != nil {
		return nil, err
	}
	r.stops = append(r.stops, s.Stop)
	token, err := s.Token("agent", 12*time.Hour)
	if err != nil {
		return nil, err
	}
	url := "http://" + metrics
	return &row{
		name: rowVerbatim, about: "Verbatim with everything on, and its sink", target: s.Envoy.Listener, token: func() string { return token },
		parts: []part{{"envoy", s.Envoy.Pid}, {"processor", s.Extproc.Pid}, {"sink", s.Sink.Pid}},
		stats: func(ctx context.Context) (*journal.Stats, error) {
			return journalStats(ctx, http.DefaultClient, url+"/stats")
		},
		profile: url,
	}, nil
}

func journalStats(ctx context.Context, c *http.Client, url string) (*journal.Stats, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var s struct {
		Journal journal.Stats `json:"journal"`
	}
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return &s.Journal, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strings.Replace(l.Addr().String(), "[::1]", "127.0.0.1", 1), nil
}
