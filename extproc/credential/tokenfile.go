package credential

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// tokenFile hands out the token that a file holds: either the bare token, or
// {"access_token": "...", "expiry": "RFC 3339"} as a broker writes it. Without an
// expiry Token.Expires is zero: nobody knows it. A broker has to replace the file
// by rename.
type tokenFile struct {
	path, name string

	mu     sync.Mutex
	closed bool
	seen   stamp
	token  Token
	err    error
}

// stamp tells versions of a file apart.
type stamp struct {
	dev, inode uint64
	size       int64
	modified   time.Time
}

func stampOf(path string) (stamp, error) {
	st, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{size: st.Size(), modified: st.ModTime()}
	s.dev, s.inode = identity(st)
	return s, nil
}

func newTokenFile(c Config) (Source, error) {
	return &tokenFile{path: c.File, name: c.Kind + ":" + filepath.Base(c.File)}, nil
}

func (f *tokenFile) Token(ctx context.Context, _ Caller) (Token, error) {
	if err := ctx.Err(); err != nil {
		return Token{}, cleaned(err, f.name, stepFile)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return Token{}, ErrClosed
	}
	now, err := stampOf(f.path)
	if err != nil {
		f.seen, f.token = stamp{}, Token{}
		return Token{}, cleaned(err, f.name, stepFile)
	}
	// A file that was written a moment ago may change again within the resolution
	// of its time.
	if now != f.seen || time.Since(now.modified) < 2*time.Second {
		f.token, f.err = f.read()
		f.seen = now
	}
	if f.err != nil {
		return Token{}, f.err
	}
	if !f.token.Expires.IsZero() && !time.Now().Round(0).Add(margin).Before(f.token.Expires) {
		return Token{}, &Error{Name: f.name, Step: stepFile, Reason: "the token in it has expired or is about to",
			Hint: "let the broker write a new one"}
	}
	return f.token, nil
}

func (f *tokenFile) read() (Token, error) {
	b, err := readFile(f.path, maxAnswer)
	if err != nil {
		return Token{}, cleaned(err, f.name, stepFile)
	}
	fail := func(reason string) (Token, error) {
		return Token{}, &Error{Name: f.name, Step: stepFile, Reason: reason,
			Hint: fmt.Sprintf("write the bare token into %s, or {\"access_token\": ..., \"expiry\": ...}", f.path)}
	}
	b = bytes.TrimSpace(b)
	t := Token{Value: string(b), Name: f.name}
	if bytes.HasPrefix(b, []byte("{")) {
		var j struct {
			AccessToken string    `json:"access_token"`
			Expiry      time.Time `json:"expiry"`
		}
		if json.Unmarshal(b, &j) != nil {
			return fail("its JSON cannot be read")
		}
		t.Value, t.Expires = j.AccessToken, j.Expiry
	}
	if err := checkToken(t.Value); err != nil {
		return fail(err.Error())
	}
	return t, nil
}

func (f *tokenFile) Check(ctx context.Context) error {
	_, err := f.Token(ctx, Caller{})
	return err
}

func (f *tokenFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed, f.token = true, Token{}
	return nil
}
