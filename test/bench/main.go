// Command bench measures Verbatim beside what it is made of, in one run on one
// machine: the upstream directly, Envoy alone, Envoy with a processor that does
// nothing, the same processor with the disk writes that any recording gate
// needs, and Verbatim whole. Figures of other machines and other hours mislead;
// ratios within a round do not.
//
// Rule of the folder: every part is a process of its own, so that its CPU time
// and memory can be told apart; rounds are interleaved; what is reported is the
// spread over rounds, never the best of them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags of a run.
type options struct {
	quick    bool
	rounds   int
	duration time.Duration
	rows     string
	loads    string
	bin      string
	out      string
	profile  bool
	keep     bool
	note     string
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "-role" {
		if err := role(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[2], err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds (7, with -quick 3)")
	flag.DurationVar(&o.duration, "duration", 0, "of one measurement of a small load (3s, with -quick 1.5s)")
	flag.StringVar(&o.rows, "rows", ".", "regular `expression` of the rows to measure")
	flag.StringVar(&o.loads, "loads", ".", "regular `expression` of the loads to measure")
	flag.StringVar(&o.bin, "bin", "bin", "`folder` with extproc and recorder; another build's, to compare")
	flag.StringVar(&o.out, "out", "test/bench/out", "`folder` for the results")
	flag.BoolVar(&o.profile, "profile", false, "write profiles of extproc for each load (its own rows are slower then)")
	flag.BoolVar(&o.keep, "keep", false, "keep the scratch folder with configurations and logs")
	flag.StringVar(&o.note, "note", "", "text for the report, such as a commit")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "Usage: go run ./test/bench [flags]\n\nSee test/bench/README.md for what the figures mean.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// role runs the part of this program that is a process of its own.
func role(name string, args []string) error {
	switch name {
	case "upstream":
		return upstreamMain(args)
	case "load":
		return loadMain(args)
	case "noop":
		return noopMain(args)
	}
	return fmt.Errorf("unknown role")
}

// load is what is asked of a row.
type load struct {
	Name    string
	Clients int
	Bytes   int64 // of the result; 0: the small answer
	Count   int   // requests of each client; 0: as many as fit into the duration
	Novel   bool  // no query has the words of another, so that nothing known of one serves the next
}

func loads(quick bool) []load {
	large := load{Name: "large-200MB", Clients: 1, Bytes: 200_000_000, Count: 2}
	all := []load{
		{Name: "small-1", Clients: 1},
		{Name: "small-16", Clients: 16},
		{Name: "small-64", Clients: 64},
		{Name: "novel-16", Clients: 16, Novel: true},
	}
	if quick {
		large.Count = 1
		return append(all, large)
	}
	return append(all, large, load{Name: "large-64x50MB", Clients: 64, Bytes: 50_000_000, Count: 1})
}

func bench(ctx context.Context, o options) error {
	if o.rounds == 0 {
		o.rounds = 7
		if o.quick {
			o.rounds = 3
		}
	}
	if o.duration == 0 {
		o.duration = 3 * time.Second
		if o.quick {
			o.duration = 1500 * time.Millisecond
		}
	}
	wantRow, err := regexp.Compile(o.rows)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	wantLoad, err := regexp.Compile(o.loads)
	if err != nil {
		return fmt.Errorf("-loads: %w", err)
	}
	var chosen []load
	for _, l := range loads(o.quick) {
		if wantLoad.MatchString(l.Name) {
			chosen = append(chosen, l)
		}
	}
	if len(chosen) == 0 {
		return errors.New("-loads matches none")
	}
	r, err := startRig(ctx, o, wantRow)
	if err != nil {
		return err
	}
	defer r.stop()
	rep := newReport(o)
	for round := range o.rounds {
		for _, l := range chosen {
			// Another row begins each round: none has the quiet moments to itself.
			order := slices.Concat(r.rows[round%len(r.rows):], r.rows[:round%len(r.rows)])
			for _, row := range order {
				m, err := r.measure(ctx, row, l, o, round)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", row.name, l.Name, err)
				}
				rep.add(m)
				fmt.Fprintf(os.Stderr, "round %d/%d  %-12s %-9s %s\n", round+1, o.rounds, l.Name, row.name, m)
			}
		}
	}
	rep.finish(r.rows, chosen)
	fmt.Print(rep.table())
	return rep.write(o.out)
}

// measure puts one load on one row.
func (r *rig) measure(ctx context.Context, row *row, l load, o options, round int) (*measurement, error) {
	procs := row.processes()
	for _, p := range procs {
		resetPeak(p.pid())
	}
	before := usageOf(procs)
	j0, err := row.journal(ctx)
	if err != nil {
		return nil, err
	}
	stopProfile := func() {}
	if o.profile && row.profile != "" {
		stopProfile = row.startProfile(o.out, o, l)
	}
	result, loadCPU, err := runLoad(ctx, row.target, row.token(), l, o.duration)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, r.log.tail())
	}
	busy := usageOf(procs)
	stopProfile()
	if err := row.settle(ctx); err != nil {
		return nil, err
	}
	j1, err := row.journal(ctx)
	if err != nil {
		return nil, err
	}
	after := usageOf(procs)
	m := &measurement{Round: round, Row: row.name, Load: l.Name, Result: *result, CPU: map[string]float64{"load": loadCPU}, Peak: map[string]int64{}}
	for name, u := range after {
		m.CPU[name] = u.cpu - before[name].cpu
		m.Peak[name] = busy[name].peak
	}
	if j1 != nil {
		m.Journal = &journalUse{
			Commits: j1.Commits - j0.Commits, Records: j1.Records - j0.Records, Bytes: j1.Bytes - j0.Bytes, Full: j1.Full - j0.Full,
		}
	}
	return m, nil
}

// runLoad runs the load generator as a process of its own.
func runLoad(ctx context.Context, target, token string, l load, d time.Duration) (*loadResult, float64, error) {
	args := []string{"-role", "load", "-target", target, "-clients", fmt.Sprint(l.Clients), "-bytes", fmt.Sprint(l.Bytes),
		"-count", fmt.Sprint(l.Count), "-duration", d.String(), fmt.Sprintf("-novel=%t", l.Novel)}
	out, state, err := self(ctx, "VERBATIM_BENCH_TOKEN="+token, args...)
	if err != nil {
		return nil, 0, fmt.Errorf("load: %w", err)
	}
	var res loadResult
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, 0, fmt.Errorf("load: %w: %.200s", err, out)
	}
	if res.Requests == 0 {
		return nil, 0, fmt.Errorf("load: all %d requests failed: %s", res.Failed, strings.Join(res.Errors, "; "))
	}
	return &res, (state.SystemTime() + state.UserTime()).Seconds(), nil
}
