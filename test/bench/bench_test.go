package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAnswersHaveTheirSizeAndAreJSON(t *testing.T) {
	for _, size := range []int64{smallAnswer, 2049, 3000, 100_000, 1_234_567, 3_000_001} {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			if _, err := writeAnswer(there, nil, size); err != nil {
				t.Error(err)
			}
		}()
		r := bufio.NewReader(here)
		m, err := readHead(r, nil)
		if err != nil || m.length != size || !strings.HasPrefix(string(m.first), "HTTP/1.1 200 ") {
			t.Fatalf("%d: head %q of %d bytes, %v", size, m.first, m.length, err)
		}
		var body bytes.Buffer
		if _, err := readBody(r, m.length, func(b []byte) { body.Write(b) }); err != nil {
			t.Fatalf("%d: %v", size, err)
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Errorf("%d: %d bytes behind the answer, %v", size, len(rest), err)
		}
		var v struct {
			TotalRows string `json:"totalRows"`
			Rows      []struct {
				F []struct{ V string }
			}
		}
		if err := json.Unmarshal(body.Bytes(), &v); err != nil {
			t.Errorf("%d: %v", size, err)
		}
		if fmt.Sprint(len(v.Rows)) != v.TotalRows {
			t.Errorf("%d: %d rows, the answer says %s", size, len(v.Rows), v.TotalRows)
		}
	}
}

func TestReadHTTP(t *testing.T) {
	for text, want := range map[string]string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Verbatim-Receipt: a\r\n\r\nhello":                 "hello",
		"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n": "hello world",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":                                               "",
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello":                                          "error",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n":                                              "error",
		"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n":                                                        "error",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n":                                         "error",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n":                                "error",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloworld":                       "error",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n":                        "error",
	} {
		r := bufio.NewReaderSize(strings.NewReader(text), 16<<10)
		m, err := readHead(r, nil)
		var body []byte
		var n int64
		if err == nil {
			n, err = readBody(r, m.length, func(b []byte) { body = append(body, b...) })
		}
		if want == "error" {
			if err == nil {
				t.Errorf("%q was read", text)
			}
			continue
		}
		if err != nil || string(body) != want || n != int64(len(want)) || m.receipt != strings.Contains(text, "Receipt") {
			t.Errorf("%q: %q of %d bytes, receipt %v, %v", text, body, n, m.receipt, err)
		}
	}
}

// The load generator and the upstream, without anything between them.
func TestLoadAgainstTheUpstream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer(c)
			}()
		}
	}()
	for name, args := range map[string][]string{
		"small": {"-clients", "3", "-duration", "100ms"},
		"novel": {"-clients", "2", "-duration", "50ms", "-novel"},
		"large": {"-clients", "2", "-bytes", "3000000", "-count", "2"},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout := os.Stdout
		os.Stdout = w
		err = loadMain(append([]string{"-target", l.Addr().String()}, args...))
		os.Stdout = stdout
		w.Close()
		b, readErr := io.ReadAll(r)
		if err != nil || readErr != nil {
			t.Fatalf("%s: %v, %v", name, err, readErr)
		}
		var res loadResult
		if err := json.Unmarshal(b, &res); err != nil {
			t.Fatalf("%s: %v: %s", name, err, b)
		}
		if res.Failed > 0 || res.Requests == 0 || res.P50 <= 0 || res.P99 < res.P50 || res.Max < res.P99 {
			t.Errorf("%s: %+v", name, res)
		}
		if name == "large" && (res.Requests != 4 || res.Bytes != 12_000_000) {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

func TestEachRequestHasItsNumber(t *testing.T) {
	request := []byte("a " + counter + " b " + counter + counter)
	places := placesOf(request)
	if fmt.Sprint(places) != "[2 13 21]" {
		t.Errorf("places %v", places)
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	r := &report{}
	for round, speed := range []int{1000, 2000, 4000} {
		for row, share := range map[string]float64{rowNoop: 1, rowVerbatim: []float64{.5, .6, .7}[round]} {
			n := int(float64(speed) * share)
			m := &measurement{Round: round, Row: row, Load: "small", Result: loadResult{Requests: n, Elapsed: time.Second, Bytes: int64(n) * 10},
				CPU: map[string]float64{"envoy": float64(n) * 1e-3}, Peak: map[string]int64{"processor": int64(round) << 20}}
			if row == rowVerbatim {
				m.Journal = &journalUse{Commits: uint64(2 * n), Records: uint64(6 * n)}
			}
			r.add(m)
		}
	}
	r.finish([]*row{{name: rowNoop}, {name: rowVerbatim}}, []load{{Name: "small"}})
	v := r.Lines[1]
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	near("least ratio", v.Ratio.Min, .5)
	near("median ratio", v.Ratio.Median, .6)
	near("greatest ratio", v.Ratio.Max, .7)
	near("fsyncs", v.Fsyncs.Median, 2)
	near("records", v.Records.Median, 6)
	near("CPU", v.CPU["envoy"].Median, 1e-3)
	near("peak", float64(v.Peak["processor"]), 2<<20)
	if text := r.table() + r.markdown(); !strings.Contains(text, "0.60 (0.50-0.70)") || !strings.Contains(text, "1000 µs") {
		t.Errorf("the table is\n%s", text)
	}
	near("median of two", spreadOf([]float64{3, 1}).Median, 2)
}

func TestUsage(t *testing.T) {
	began := usageOfPid(os.Getpid())
	for x := 0; time.Duration(x) < 200; x++ {
		for i := range 1_000_000 {
			_ = fmt.Append(nil, i)[0]
			if i > 1000 {
				break
			}
		}
		if usageOfPid(os.Getpid()).cpu-began.cpu > .02 {
			break
		}
	}
	if u := usageOfPid(os.Getpid()); u.cpu <= 0 || u.peak < 1<<20 {
		t.Errorf("usage %+v", u)
	}
	if u := usageOfPid(-1); u != (usage{}) {
		t.Errorf("usage of nobody %+v", u)
	}
}
