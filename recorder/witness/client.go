package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrFork means that a witness has seen another log, or a longer one: this one
// was forked or rolled back.
var ErrFork = errors.New("the witness has seen another log")

// Client asks one witness. It is not safe for concurrent use.
type Client struct {
	url      string
	verifier *Verifier
	http     *http.Client
	last     int64 // the size that the witness is thought to be at
}

// NewClient returns the client of a witness: its submission prefix and its
// verifier key. With h nil it is the default client without redirects.
func NewClient(prefix, vkey string, h *http.Client) (*Client, error) {
	v, err := NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(prefix)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("witness %.80q: want http://HOST[/PREFIX] or https://", prefix)
	}
	if h == nil {
		h = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &Client{url: strings.TrimSuffix(prefix, "/") + "/add-checkpoint", verifier: v, http: h}, nil
}

// Name returns the witness's name.
func (c *Client) Name() string { return c.verifier.Name() }

// Verifier returns what checks the witness's cosignatures.
func (c *Client) Verifier() *Verifier { return c.verifier }

// attempts are how often the witness may say that it is at another size: once
// when a client does not know it, and again when another client is at work.
const attempts = 3

// Cosign asks for a cosignature of a signed checkpoint and returns its line,
// verified. Prove gives the proof of consistency from an older size to that of
// the checkpoint. The error wraps [ErrFork] where the witness says that the log
// is not the one it knows.
func (c *Client) Cosign(ctx context.Context, signed []byte, size int64, prove func(old int64) (tlog.TreeProof, error)) ([]byte, error) {
	for range attempts {
		old := c.last
		if old > size {
			c.last = 0 // asked anew the next time
			return nil, fmt.Errorf("witness %s: %w: it is at size %d, the log here at %d", c.Name(), ErrFork, old, size)
		}
		proof, err := prove(old)
		if err != nil {
			return nil, fmt.Errorf("witness %s: prove the step from size %d to %d: %w", c.Name(), old, size, err)
		}
		line, at, err := c.post(ctx, signed, Request{Old: old, Proof: proof, Checkpoint: signed})
		if err != nil {
			return nil, fmt.Errorf("witness %s: %w", c.Name(), err)
		}
		if line != nil {
			c.last = size
			return line, nil
		}
		c.last = at
	}
	return nil, fmt.Errorf("witness %s: it changed its size %d times", c.Name(), attempts)
}

// post returns the cosignature, or the size that the witness is at.
func (c *Client) post(ctx context.Context, signed []byte, r Request) (line []byte, at int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(r.Marshal()))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxCheckpoint))
	if err != nil {
		return nil, 0, fmt.Errorf("read the answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		line, err := c.cosignature(signed, body)
		return line, 0, err
	case http.StatusConflict:
		if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == SizeType {
			at, err := parseSize(strings.TrimSuffix(string(body), "\n"))
			return nil, at, err
		}
		return nil, 0, fmt.Errorf("%w: %s", ErrFork, reason(body))
	case http.StatusUnprocessableEntity:
		return nil, 0, fmt.Errorf("%w: %s", ErrFork, reason(body))
	}
	return nil, 0, fmt.Errorf("answers %d: %s", resp.StatusCode, reason(body))
}

// cosignature finds the witness's own line in its answer.
func (c *Client) cosignature(signed, body []byte) ([]byte, error) {
	text, _, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok {
		return nil, errors.New("the checkpoint has no signature")
	}
	whole := append(append(bytes.Clone(text), "\n\n"...), body...)
	n, err := note.Open(whole, note.VerifierList(c.verifier))
	if err != nil {
		return nil, fmt.Errorf("answers with no cosignature of its key: %w", err)
	}
	s := n.Sigs[0]
	return fmt.Appendf(nil, "— %s %s\n", s.Name, s.Base64), nil
}

func reason(body []byte) string {
	line, _, _ := strings.Cut(strings.ToValidUTF8(string(body), "?"), "\n")
	return fmt.Sprintf("%.200q", line)
}
