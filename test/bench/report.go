package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// measurement is one load on one row in one round.
type measurement struct {
	Round   int                `json:"round"`
	Row     string             `json:"row"`
	Load    string             `json:"load"`
	Result  loadResult         `json:"result"`
	CPU     map[string]float64 `json:"cpu_seconds"` // of each process
	Peak    map[string]int64   `json:"peak_rss_bytes"`
	Journal *journalUse        `json:"journal,omitempty"`
}

// journalUse is what the journal did meanwhile.
type journalUse struct {
	Commits uint64 `json:"commits"` // each with one fdatasync
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"`
	Full    uint64 `json:"full"` // appends refused
}

func (m *measurement) String() string {
	s := fmt.Sprintf("%8.0f req/s %8.1f MB/s  p50 %s  p99 %s", m.Result.rate(), m.Result.mbytes(), short(m.Result.P50), short(m.Result.P99))
	if m.Result.Failed > 0 {
		s += fmt.Sprintf("  %d FAILED: %.300s", m.Result.Failed, strings.Join(m.Result.Errors, "; "))
	}
	return s
}

func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.2fms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.0fms", d.Seconds()*1e3)
}

// spread is the least, the median and the greatest of some values.
type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{}
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return spread{v[0], (v[(n-1)/2] + v[n/2]) / 2, v[n-1]}
}

// line sums up the rounds of one load on one row.
type line struct {
	Load     string            `json:"load"`
	Row      string            `json:"row"`
	Rate     spread            `json:"requests_per_second"`
	MBytes   spread            `json:"megabytes_per_second"`
	P50      spread            `json:"p50_seconds"`
	P99      spread            `json:"p99_seconds"`
	Ratio    *spread           `json:"ratio_to_noop,omitempty"` // of requests, or of bytes where results are large
	CPU      map[string]spread `json:"cpu_seconds_per_unit"`    // a request, or a GB where results are large
	Peak     map[string]int64  `json:"peak_rss_bytes"`          // the greatest
	Fsyncs   *spread           `json:"fsyncs_per_exchange,omitempty"`
	Waiters  *spread           `json:"exchanges_per_fsync,omitempty"`
	Records  *spread           `json:"records_per_exchange,omitempty"`
	Failed   int               `json:"failed"`
	perBytes bool
}

type report struct {
	Begun    time.Time      `json:"begun"`
	Elapsed  time.Duration  `json:"elapsed_ns"`
	Machine  machine        `json:"machine"`
	Rounds   int            `json:"rounds"`
	Duration time.Duration  `json:"duration_ns"`
	Note     string         `json:"note,omitempty"`
	Lines    []line         `json:"lines"`
	All      []*measurement `json:"measurements"`
}

// machine is what the figures depend on.
type machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	LoadAvg  string `json:"load_average"` // before the run: above 0.5 somebody else was at work
	Scratch  string `json:"scratch_file_system"`
	SyncMean string `json:"fdatasync_of_4k"`
}

func newReport(o options) *report {
	return &report{Begun: time.Now().UTC(), Rounds: o.rounds, Duration: o.duration, Note: o.note, Machine: thisMachine()}
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if name, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.LoadAvg = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	if out, err := exec.Command("stat", "-f", "-c", "%T", os.TempDir()).Output(); err == nil {
		m.Scratch = strings.TrimSpace(string(out))
	}
	m.SyncMean = short(syncTime())
	return m
}

func (r *report) add(m *measurement) { r.All = append(r.All, m) }

func (r *report) finish(rows []*row, loads []load) {
	r.Elapsed = time.Since(r.Begun)
	for _, l := range loads {
		base := map[int]float64{}
		for _, m := range r.of(l.Name, baseline) {
			base[m.Round] = speed(m, l.Bytes > 0)
		}
		for _, row := range rows {
			r.Lines = append(r.Lines, sum(r.of(l.Name, row.name), l, base))
		}
	}
}

func (r *report) of(load, row string) (out []*measurement) {
	for _, m := range r.All {
		if m.Load == load && m.Row == row {
			out = append(out, m)
		}
	}
	return out
}

func speed(m *measurement, large bool) float64 {
	if large {
		return m.Result.mbytes()
	}
	return m.Result.rate()
}

func sum(ms []*measurement, l load, base map[int]float64) line {
	large := l.Bytes > 0
	out := line{Load: l.Name, CPU: map[string]spread{}, Peak: map[string]int64{}, perBytes: large}
	var rate, mb, p50, p99, ratio, fsyncs, waiters, records []float64
	cpu := map[string][]float64{}
	for _, m := range ms {
		out.Row = m.Row
		out.Failed += m.Result.Failed
		rate, mb = append(rate, m.Result.rate()), append(mb, m.Result.mbytes())
		p50, p99 = append(p50, m.Result.P50.Seconds()), append(p99, m.Result.P99.Seconds())
		if b := base[m.Round]; b > 0 {
			ratio = append(ratio, speed(m, large)/b)
		}
		n := float64(m.Result.Requests)
		unit := n
		if large {
			unit = float64(m.Result.Bytes) / 1e9
		}
		for name, c := range m.CPU {
			cpu[name] = append(cpu[name], c/unit)
		}
		for name, p := range m.Peak {
			out.Peak[name] = max(out.Peak[name], p)
		}
		if j := m.Journal; j != nil && j.Commits > 0 {
			fsyncs = append(fsyncs, float64(j.Commits)/n)
			waiters = append(waiters, n/float64(j.Commits))
			records = append(records, float64(j.Records)/n)
		}
	}
	out.Rate, out.MBytes, out.P50, out.P99 = spreadOf(rate), spreadOf(mb), spreadOf(p50), spreadOf(p99)
	if len(ratio) > 0 {
		s := spreadOf(ratio)
		out.Ratio = &s
	}
	for name, v := range cpu {
		out.CPU[name] = spreadOf(v)
	}
	if len(fsyncs) > 0 {
		f, w, n := spreadOf(fsyncs), spreadOf(waiters), spreadOf(records)
		out.Fsyncs, out.Waiters, out.Records = &f, &w, &n
	}
	return out
}

// processes in the order of the table.
var processOrder = []string{"load", "upstream", "envoy", "processor", "sink"}

// cells are the table's rows, its head first.
func (r *report) cells() [][]string {
	out := [][]string{{"load", "row", "req/s", "MB/s", "p50", "p99", "of noop (min-max)", "CPU: load", "upstream", "envoy", "processor", "sink", "peak RSS", "fsyncs", "failed"}}
	for _, l := range r.Lines {
		c := []string{l.Load, l.Row, fmt.Sprintf("%.0f", l.Rate.Median), fmt.Sprintf("%.0f", l.MBytes.Median),
			seconds(l.P50.Median), seconds(l.P99.Median), "", "", "", "", "", "", "", "", ""}
		if l.Failed > 0 {
			c[14] = fmt.Sprint(l.Failed)
		}
		if l.perBytes {
			c[2] = ""
		} else {
			c[3] = ""
		}
		if l.Ratio != nil {
			c[6] = fmt.Sprintf("%.2f (%.2f-%.2f)", l.Ratio.Median, l.Ratio.Min, l.Ratio.Max)
		}
		for i, name := range processOrder {
			if s, ok := l.CPU[name]; ok {
				if l.perBytes {
					c[7+i] = fmt.Sprintf("%.2f s/GB", s.Median)
				} else {
					c[7+i] = fmt.Sprintf("%.0f µs", s.Median*1e6)
				}
			}
		}
		if p := l.Peak["processor"]; p > 0 {
			c[12] = fmt.Sprintf("%d MiB", p>>20)
		}
		if l.Fsyncs != nil {
			c[13] = fmt.Sprintf("%.2f", l.Fsyncs.Median)
		}
		out = append(out, c)
	}
	return out
}

func seconds(s float64) string { return short(time.Duration(s * 1e9)) }

func (r *report) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, c := range r.cells() {
		fmt.Fprintln(w, strings.Join(c, "\t"))
	}
	w.Flush()
	return b.String()
}

func (r *report) markdown() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "%s, %d cores, Linux %s, %s, %s with %s for an fdatasync of 4 KiB; load average before the run %s; %d rounds, %s%s.\n\n",
		m.CPU, m.Cores, m.Kernel, m.Go, m.Scratch, m.SyncMean, m.LoadAvg, r.Rounds, r.Begun.Format("2006-01-02 15:04 UTC"), noted(r.Note))
	for i, c := range r.cells() {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(c, " | "))
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(c)) + "|\n")
		}
	}
	return b.String()
}

func noted(s string) string {
	if s == "" {
		return ""
	}
	return ", " + s
}

// write puts the report beside those of earlier runs.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	name := filepath.Join(dir, r.Begun.Format("20060102-150405"))
	for ext, content := range map[string][]byte{".json": append(b, '\n'), ".md": []byte(r.markdown())} {
		if err := os.WriteFile(name+ext, content, 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "written:", name+".json and .md")
	return nil
}

// syncTime is the median time of an append of 4 KiB with its fdatasync.
func syncTime() time.Duration {
	f, err := os.CreateTemp("", "vbench-sync-")
	if err != nil {
		return 0
	}
	defer os.Remove(f.Name())
	defer f.Close()
	b := bytes.Repeat([]byte{1}, 4096)
	var took []time.Duration
	for i := range 100 {
		began := time.Now()
		if _, err := f.WriteAt(b, int64(i)*4096); err != nil || datasync(f) != nil {
			return 0
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return quantile(took, .5)
}
