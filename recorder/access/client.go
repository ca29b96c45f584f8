package access

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// maxLine is the longest line that the client takes: an exchange with the
// largest SQL that can be recorded, escaped.
const maxLine = 256 << 20

// ClientConfig configures a [Client].
type ClientConfig struct {
	// Server is the service's URL. Plain http is for loopback only: the token
	// and what is read would go in the clear.
	Server string
	Token  string
	// UserAgent stands in the access records.
	UserAgent string
	HTTP      *http.Client // default: one that follows no redirects
}

// Client asks a [Service]. It is safe for concurrent use.
type Client struct {
	c    ClientConfig
	base string
	http *http.Client
}

// CheckServer refuses a URL that a token must not be sent to.
func CheckServer(server string) error {
	u, err := url.Parse(server)
	switch {
	case err != nil, u.Host == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return fmt.Errorf("server %q: want https://HOST[:PORT]", server)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	case u.Scheme == "http":
		return fmt.Errorf("server %q: plain http is for loopback only, the token would go in the clear: want https", server)
	}
	return fmt.Errorf("server %q: want https://HOST[:PORT]", server)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// NewClient returns a client.
func NewClient(c ClientConfig) (*Client, error) {
	if err := CheckServer(c.Server); err != nil {
		return nil, err
	}
	if c.Token == "" || strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("the token is empty, or holds characters that no token has")
	}
	h := c.HTTP
	if h == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = 10 * time.Minute // a search begins its answer when it has sorted
		h = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &Client{c: c, base: strings.TrimSuffix(c.Server, "/"), http: h}, nil
}

// do sends a request, and returns an answer whose status is 200.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	return c.send(ctx, method, path, r)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.c.Token)
	if c.c.UserAgent != "" {
		req.Header.Set("User-Agent", c.c.UserAgent)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var e errorBody
	if err != nil || json.Unmarshal(b, &e) != nil || e.Error == nil || e.Error.Code == "" {
		return nil, fmt.Errorf("%s answers %s, and not as recorder serve does", c.base, res.Status)
	}
	e.Error.Status = res.StatusCode
	return nil, e.Error
}

// Whoami asks who the token proves.
func (c *Client) Whoami(ctx context.Context) (Whoami, error) {
	var w Whoami
	res, err := c.do(ctx, http.MethodGet, "/v1/whoami", nil)
	if err != nil {
		return w, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&w); err != nil {
		return w, fmt.Errorf("%s: %w", c.base, err)
	}
	return w, nil
}

// Search calls emit for each exchange that is found. What it has given is all
// of it only where it returns nil.
func (c *Client) Search(ctx context.Context, req SearchRequest, warn func(error), emit func(*search.Exchange) error) (End, error) {
	return c.lines(ctx, "/v1/search", req, warn, func(l *line) error {
		if l.Exchange == nil {
			return nil
		}
		return emit(l.Exchange)
	})
}

// Accesses does the same for access records.
func (c *Client) Accesses(ctx context.Context, req AccessesRequest, warn func(error), emit func(*search.Access) error) (End, error) {
	return c.lines(ctx, "/v1/accesses", req, warn, func(l *line) error {
		if l.Entry == nil {
			return nil
		}
		return emit(l.Entry)
	})
}

func (c *Client) lines(ctx context.Context, path string, req any, warn func(error), emit func(*line) error) (End, error) {
	res, err := c.do(ctx, http.MethodPost, path, req)
	if err != nil {
		return End{}, err
	}
	defer res.Body.Close()
	in := bufio.NewScanner(res.Body)
	in.Buffer(make([]byte, 0, 64<<10), maxLine)
	for in.Scan() {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return End{}, fmt.Errorf("%s: a line of its answer: %w", c.base, err)
		}
		switch {
		case l.Error != nil:
			return End{}, l.Error
		case l.End != nil:
			return *l.End, nil
		case l.Warning != "" && warn != nil:
			warn(errors.New(l.Warning))
		}
		if err := emit(&l); err != nil {
			return End{}, err
		}
	}
	return End{}, fmt.Errorf("%s: its answer was cut off: %w", c.base, errors.Join(in.Err(), io.ErrUnexpectedEOF))
}

// Show asks for everything of an exchange. Where the vault does not hold it the
// error wraps [search.ErrNotFound], where it is an access record
// [search.ErrAccess].
func (c *Client) Show(ctx context.Context, req ShowRequest, warn func(error)) (*search.Detail, error) {
	res, err := c.do(ctx, http.MethodPost, "/v1/show", req)
	if err != nil {
		return nil, notFound(err)
	}
	defer res.Body.Close()
	var s shown
	if err := json.NewDecoder(io.LimitReader(res.Body, maxLine)).Decode(&s); err != nil || s.Detail == nil {
		return nil, fmt.Errorf("%s: its answer was cut off or is none: %w", c.base, err)
	}
	for _, w := range s.Warnings {
		if warn != nil {
			warn(errors.New(w))
		}
	}
	return s.Detail, nil
}

func notFound(err error) error {
	var e *Error
	if errors.As(err, &e) {
		switch e.Code {
		case CodeNotFound:
			return &kindError{e, search.ErrNotFound}
		case CodeAccess:
			return &kindError{e, search.ErrAccess}
		}
	}
	return err
}

// kindError is the service's words for an error of search.
type kindError struct{ said, kind error }

func (e *kindError) Error() string   { return e.said.Error() }
func (e *kindError) Unwrap() []error { return []error{e.said, e.kind} }

// Payload writes a body's bytes. What it wrote is right only where it returns
// nil; note is what is to be known of it then.
func (c *Client) Payload(ctx context.Context, id record.ID, direction record.Direction, why string, w io.Writer) (note string, err error) {
	res, err := c.do(ctx, http.MethodPost, "/v1/payload", PayloadRequest{Why: why, Exchange: id.String(), Direction: direction.String()})
	if err != nil {
		return "", notFound(err)
	}
	return c.bytes(res, w)
}

// bytes copies an answer of bytes and reads how it ended.
func (c *Client) bytes(res *http.Response, w io.Writer) (note string, err error) {
	defer res.Body.Close()
	if _, err := io.Copy(w, res.Body); err != nil {
		return "", fmt.Errorf("%s: its answer was cut off: %w", c.base, err)
	}
	end := res.Trailer.Get(trailerEnd)
	switch {
	case end == "":
		return "", fmt.Errorf("%s: its answer was cut off: %w", c.base, io.ErrUnexpectedEOF)
	case end != endWhole:
		if text, err := strconv.Unquote(end); err == nil {
			end = text
		}
		return "", errors.New(end)
	}
	if text, err := strconv.Unquote(res.Trailer.Get(trailerNote)); err == nil {
		note = text
	}
	return note, nil
}
