package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// The load generator keeps one connection for each client and one request in
// flight on each. It parses as little HTTP as it can: what it costs is taken
// from what is measured.

// loadResult is what the load generator found.
type loadResult struct {
	Requests int           `json:"requests"`
	Failed   int           `json:"failed"`           // they count in nothing else
	Errors   []string      `json:"errors,omitempty"` // the first few
	Bytes    int64         `json:"bytes"`            // of bodies
	Elapsed  time.Duration `json:"elapsed_ns"`
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
	P999     time.Duration `json:"p999_ns"`
	Max      time.Duration `json:"max_ns"`
}

func (r *loadResult) rate() float64   { return float64(r.Requests) / r.Elapsed.Seconds() }
func (r *loadResult) mbytes() float64 { return float64(r.Bytes) / 1e6 / r.Elapsed.Seconds() }

func loadMain(args []string) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	target := fs.String("target", "", "host:port")
	clients := fs.Int("clients", 1, "")
	size := fs.Int64("bytes", 0, "")
	count := fs.Int("count", 0, "")
	duration := fs.Duration("duration", time.Second, "")
	novel := fs.Bool("novel", false, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	sql := "SELECT name, sum(number) AS n FROM `demo-project.shop.orders` WHERE state = @state AND number > " + counter + " GROUP BY name ORDER BY n DESC LIMIT 10"
	want := int64(smallAnswer)
	if *novel {
		sql = strings.Replace(sql, "AS n ", "AS n"+counter+" ", 1)
	}
	if *size > 0 {
		sql, want = fmt.Sprintf("SELECT /*verbatim:bytes=%d*/ v FROM `demo-project.shop.orders` WHERE number > "+counter, *size), *size
	}
	query := map[string]any{"query": sql, "useLegacySql": false, "location": "US"}
	if *size == 0 {
		query["parameterMode"] = "NAMED"
		query["queryParameters"] = []any{map[string]any{"name": "state", "parameterType": map[string]any{"type": "STRING"}, "parameterValue": map[string]any{"value": "TX"}}}
	}
	body, err := json.Marshal(query)
	if err != nil {
		return err
	}
	request := fmt.Appendf(nil, "POST /bigquery/v2/projects/demo-project/queries HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\n"+
		"Authorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: application/json\r\nContent-Length: %d\r\n\r\n%s",
		*target, os.Getenv("VERBATIM_BENCH_TOKEN"), len(body), body)

	var (
		wg   sync.WaitGroup
		all  = make([]client, *clients)
		stop = make(chan struct{})
	)
	for i := range all {
		all[i].id = i
		if err := all[i].connect(*target); err != nil {
			return err
		}
		defer all[i].conn.Close()
		// Connections and caches are warm before the clock runs.
		warm := request
		if *size > 0 {
			warm = bytes.ReplaceAll(request, fmt.Appendf(nil, "bytes=%d", *size), fmt.Appendf(nil, "bytes=%0*d", len(fmt.Sprint(*size)), 100_000))
		}
		if _, err := all[i].exchange(warm); err != nil {
			return fmt.Errorf("first request: %w", err)
		}
	}
	began := time.Now()
	for i := range all {
		wg.Go(func() { all[i].run(*target, bytes.Clone(request), want, *count, stop) })
	}
	if *count == 0 {
		time.Sleep(*duration)
		close(stop)
	}
	wg.Wait()
	res := loadResult{Elapsed: time.Since(began)}
	var took []time.Duration
	for i := range all {
		c := &all[i]
		res.Requests += len(c.took)
		res.Bytes += c.bytes
		took = append(took, c.took...)
		res.Failed += c.failed
		if c.err != nil && len(res.Errors) < 3 {
			res.Errors = append(res.Errors, c.err.Error())
		}
	}
	slices.Sort(took)
	res.P50, res.P99, res.P999, res.Max = quantile(took, .5), quantile(took, .99), quantile(took, .999), quantile(took, 1)
	return json.NewEncoder(os.Stdout).Encode(res)
}

// quantile of sorted values.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// counter stands in the SQL where each request has a number of its own: agents
// ask the same kinds of questions, never the same one.
const counter = "97531864" // no part of a size

// placesOf returns where the counter stands in a request.
func placesOf(request []byte) (places []int) {
	for at := 0; ; at += len(counter) {
		i := bytes.Index(request[at:], []byte(counter))
		if i < 0 {
			return places
		}
		at += i
		places = append(places, at)
	}
}

// client is one connection.
type client struct {
	id    int
	conn  net.Conn
	r     *bufio.Reader
	line  []byte
	took  []time.Duration
	bytes int64

	failed int
	err    error // the first
}

func (c *client) connect(target string) (err error) {
	if c.conn != nil {
		c.conn.Close()
	}
	if c.conn, err = net.Dial("tcp", target); err != nil {
		return err
	}
	c.r = bufio.NewReaderSize(c.conn, 256<<10)
	if c.took == nil {
		c.took = make([]time.Duration, 0, 1<<14)
	}
	return nil
}

func (c *client) run(target string, request []byte, want int64, count int, stop <-chan struct{}) {
	places := placesOf(request)
	var digits []byte
	for i := 0; count == 0 || i < count; i++ {
		select {
		case <-stop:
			return
		default:
		}
		digits = fmt.Appendf(digits[:0], "%0*d", len(counter), c.id*1_000_000+i)
		for _, at := range places {
			copy(request[at:], digits)
		}
		began := time.Now()
		n, err := c.exchange(request)
		if err == nil && n != want {
			err = fmt.Errorf("the answer has %d bytes, want %d", n, want)
		}
		if err != nil {
			if c.failed++; c.err == nil {
				c.err = err
			}
			if c.connect(target) != nil {
				return
			}
			continue
		}
		c.took = append(c.took, time.Since(began))
		c.bytes += n
	}
}

// exchange sends the request and reads the answer, whose body's length it
// returns.
func (c *client) exchange(request []byte) (int64, error) {
	if _, err := c.conn.Write(request); err != nil {
		return 0, err
	}
	m, err := readHead(c.r, c.line)
	if err != nil {
		return 0, err
	}
	c.line = m.first
	var text []byte
	var keep func([]byte)
	if !bytes.HasPrefix(m.first, []byte("HTTP/1.1 200 ")) {
		keep = func(b []byte) { text = append(text, b[:min(len(b), 300)]...) }
	}
	n, err := readBody(c.r, m.length, keep)
	if err == nil && keep != nil {
		err = fmt.Errorf("%s: %.300s", m.first, text)
	}
	return n, err
}
