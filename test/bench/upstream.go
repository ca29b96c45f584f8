package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// The upstream answers like BigQuery's jobs.query, as cheaply as a process can:
// it must never be what is measured. SQL with the comment
// /*verbatim:bytes=N*/ gets a result of N bytes, other SQL one of 2 KB.

const (
	smallAnswer = 2048
	answerHead  = `{"kind":"bigquery#queryResponse","schema":{"fields":[{"name":"v","type":"STRING","mode":"NULLABLE"}]},` +
		`"jobReference":{"projectId":"demo-project","jobId":"job_%016x","location":"US"},"totalRows":"%d","jobComplete":true,` +
		`"cacheHit":false,"totalBytesProcessed":"1048576","rows":[`
	answerTail = `]}`
)

var (
	benchRow   = []byte(`{"f":[{"v":"` + strings.Repeat("The quick brown fox jumps over it. 0123456789 ABCD", 4) + `"}]}`)
	benchRows  = bytes.Repeat(append(bytes.Clone(benchRow), ','), 5000)
	jobCounter atomic.Uint64
)

func upstreamMain(args []string) error {
	fs := flag.NewFlagSet("upstream", flag.ContinueOnError)
	ready := fs.String("ready", "", "`file` that gets the address")
	if err := fs.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(*ready+".tmp", []byte(l.Addr().String()), 0o600); err != nil {
		return err
	}
	if err := os.Rename(*ready+".tmp", *ready); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = answer(c) // the peer left
		}()
	}
}

// answer serves one connection.
func answer(c net.Conn) error {
	r := bufio.NewReaderSize(c, 64<<10)
	var line, body, out []byte
	for {
		m, err := readHead(r, line)
		if err != nil {
			return err
		}
		line, body = m.first, body[:0]
		if _, err := readBody(r, m.length, func(b []byte) {
			if len(body) < 64<<10 { // the SQL stands in front; an upload is only counted
				body = append(body, b...)
			}
		}); err != nil {
			return err
		}
		size := int64(smallAnswer)
		if _, rest, ok := bytes.Cut(body, []byte("verbatim:bytes=")); ok {
			digits, _, _ := bytes.Cut(rest, []byte("*"))
			if size, err = strconv.ParseInt(string(digits), 10, 64); err != nil {
				return err
			}
		}
		if out, err = writeAnswer(c, out, size); err != nil {
			return err
		}
	}
}

// writeAnswer writes a result of exactly size bytes, padded in its last row.
func writeAnswer(c net.Conn, out []byte, size int64) ([]byte, error) {
	rows := max((size-400)/int64(len(benchRow)+1), 1)
	head := fmt.Appendf(nil, answerHead, jobCounter.Add(1), rows)
	row := int64(len(benchRow))
	last := size - int64(len(head)) - (rows-1)*(row+1) - int64(len(answerTail))
	if last < 13 {
		rows--
		last += row + 1
	}
	out = fmt.Appendf(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: %d\r\n\r\n", size)
	out = append(out, head...)
	full := rows - 1
	per := int64(len(benchRows)) / (row + 1)
	if full <= 64 {
		out = append(out, benchRows[:full*(row+1)]...)
		full = 0
	}
	for full > 0 {
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return out, err
			}
			out = out[:0]
		}
		n := min(full, per)
		if _, err := c.Write(benchRows[:n*(row+1)]); err != nil {
			return out, err
		}
		full -= n
	}
	out = append(out, `{"f":[{"v":"`...)
	out = append(out, bytes.Repeat([]byte{'x'}, int(last)-len(`{"f":[{"v":""}]}`))...)
	out = append(out, `"}]}`...)
	out = append(out, answerTail...)
	_, err := c.Write(out)
	return out, err
}
