package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/search"
)

// Stream is a response that a test reads step by step.
type Stream struct {
	Answer // Body is what was read so far
	res    *http.Response
}

// slow takes little from the network ahead of its reader, so that a reader
// that stops is felt at the other end.
var slow = &http.Client{
	Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true, ReadBufferSize: 4 << 10, DialContext: (&net.Dialer{
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) }), err)
		},
	}).DialContext},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Open sends a request as Do does and returns with the response's head. The
// stream must be closed, or read to its end.
func (r *Rig) Open(ctx context.Context, caller, method, path string, body io.Reader, header ...string) *Stream {
	r.t.Helper()
	res, err := slow.Do(r.request(ctx, caller, method, path, body, header...))
	if err != nil {
		return &Stream{Answer: Answer{Err: err}}
	}
	s := &Stream{res: res, Answer: Answer{Status: res.StatusCode, Header: res.Header, Receipt: idIn(res.Header), Signed: res.Header.Get(Receipt)}}
	r.seen.add(s.Receipt)
	return s
}

// OpenQuery is Open for SQL by jobs.query.
func (r *Rig) OpenQuery(ctx context.Context, caller, sql string) *Stream {
	r.t.Helper()
	return r.Open(ctx, caller, http.MethodPost, queries, bytes.NewReader(QueryBody(sql)))
}

// ReadTo reads until Body has n bytes, or the response ends.
func (s *Stream) ReadTo(n int) {
	for s.Err == nil && len(s.Body) < n {
		b := make([]byte, min(n-len(s.Body), 64<<10))
		var got int
		got, s.Err = s.res.Body.Read(b)
		s.Body = append(s.Body, b[:got]...)
	}
}

// Rest reads the response to its end and closes it. A clean end has no error.
func (s *Stream) Rest() Answer {
	if s.res == nil {
		return s.Answer
	}
	defer s.res.Body.Close()
	if s.Err == nil {
		var rest []byte
		rest, s.Err = io.ReadAll(s.res.Body)
		s.Body = append(s.Body, rest...)
	} else if errors.Is(s.Err, io.EOF) {
		s.Err = nil
	}
	return s.Answer
}

// Close leaves without reading the rest.
func (s *Stream) Close() {
	if s.res != nil {
		s.res.Body.Close()
	}
}

// receipts are those that clients got.
type receipts struct {
	mu  sync.Mutex
	all []string
}

func (r *receipts) add(receipt string) {
	if receipt == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, receipt)
}

func (r *receipts) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// Settled waits until the vault holds each exchange that a client of Do, Query
// or Open ever got a receipt of, and no exchange that is open. It returns all
// that the vault holds, by receipt.
func (r *Rig) Settled() map[string]*search.Exchange {
	r.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		all := map[string]*search.Exchange{}
		why := ""
		for _, x := range r.Search(search.Filter{}) {
			if all[x.ID] != nil {
				r.t.Errorf("exchange %s is in the vault twice", x.ID)
			}
			all[x.ID] = x
			if x.Ended == nil {
				why = fmt.Sprintf("exchange %s has not ended", x.ID)
			}
		}
		for _, id := range r.seen.list() {
			if all[id] == nil {
				why = fmt.Sprintf("exchange %s, whose receipt a client has, is not there", id)
			}
		}
		if why == "" {
			return all
		}
		if time.Now().After(deadline) {
			r.t.Errorf("the vault is not whole: %s", why)
			return all
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// AwaitGateway waits until requests get through Envoy to the gateway: Envoy
// takes a moment to see that a gateway is back.
func (r *Rig) AwaitGateway() {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		a := r.Do(context.Background(), "", http.MethodGet, "/bigquery/v2/projects/"+Project+"/datasets", nil)
		if a.Receipt != "" && a.Status == http.StatusUnauthorized {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the gateway does not answer: status %d, %v: %s", a.Status, a.Err, a.Body)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Restart starts the gateway again after it ended.
func (r *Rig) Restart() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := r.StartExtproc(ctx); err != nil {
		r.t.Fatalf("%v\n%s", err, r.log.tail())
	}
	r.AwaitGateway()
}

// Stats is what the gateway says of itself.
type Stats struct {
	Open    uint64        `json:"open"` // exchanges
	Budget  int64         `json:"budget"`
	Journal journal.Stats `json:"journal"`
}

// StatsURL is where the gateway says its figures.
func (r *Rig) StatsURL() string { return "http://" + r.stats }

// Stats asks the gateway.
func (r *Rig) Stats() Stats {
	r.t.Helper()
	var s Stats
	res, err := client.Get("http://" + r.stats + "/stats")
	if err == nil {
		defer res.Body.Close()
		err = json.NewDecoder(res.Body).Decode(&s)
	}
	if err != nil {
		r.t.Fatalf("the gateway's figures: %v", err)
	}
	return s
}

// Await polls until cond holds, and fails the test when it does not in time.
func (r *Rig) Await(what string, cond func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freePort names a loopback address that nobody listens on now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
