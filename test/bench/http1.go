package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// message is the head of an HTTP/1.1 message, as far as the two ends of the
// bench need it.
type message struct {
	first   []byte // request or status line; valid until the next read
	length  int64  // of the body; -1: chunked
	receipt bool   // it has the gateway's receipt
}

var errHead = errors.New("malformed HTTP head")

// readHead reads a head. It knows the two headers that say how long the body
// is, and nothing else.
func readHead(r *bufio.Reader, line []byte) (message, error) {
	b, err := r.ReadSlice('\n')
	if err != nil {
		return message{}, err
	}
	m := message{first: append(line[:0], bytes.TrimRight(b, "\r\n")...)}
	for {
		b, err := r.ReadSlice('\n')
		if err != nil {
			return m, err
		}
		b = bytes.TrimRight(b, "\r\n")
		if len(b) == 0 {
			return m, nil
		}
		name, value, ok := bytes.Cut(b, []byte(":"))
		if !ok {
			return m, errHead
		}
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if m.length, err = strconv.ParseInt(string(value), 10, 64); err != nil || m.length < 0 {
				return m, errHead
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			if !bytes.EqualFold(value, []byte("chunked")) {
				return m, errHead
			}
			m.length = -1
		case bytes.EqualFold(name, []byte("x-verbatim-receipt")):
			m.receipt = true
		}
	}
}

// readBody gives the body's bytes to take, piece by piece, and returns their
// number.
func readBody(r *bufio.Reader, length int64, take func([]byte)) (int64, error) {
	if length >= 0 {
		return length, readExactly(r, length, take)
	}
	var total int64
	for {
		b, err := r.ReadSlice('\n')
		if err != nil {
			return total, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimRight(b, "\r\n")), 16, 64)
		if err != nil || n < 0 {
			return total, fmt.Errorf("malformed chunk: %q", b)
		}
		if err := readExactly(r, n, take); err != nil {
			return total, err
		}
		total += n
		if b, err = r.ReadSlice('\n'); err != nil {
			return total, err
		}
		if len(bytes.TrimRight(b, "\r\n")) > 0 {
			return total, errors.New("a chunk does not end where it says, or trailers came")
		}
		if n == 0 {
			return total, nil
		}
	}
}

func readExactly(r *bufio.Reader, n int64, take func([]byte)) error {
	for n > 0 {
		if r.Buffered() == 0 {
			if _, err := r.Peek(1); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		b, err := r.Peek(int(min(n, int64(r.Buffered()))))
		if err != nil {
			return err
		}
		if take != nil {
			take(b)
		}
		if _, err := r.Discard(len(b)); err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}
