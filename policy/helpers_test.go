package policy

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// writeDir writes files into dir, and makes the folders that they need.
func writeDir(tb testing.TB, dir string, files map[string]string) {
	tb.Helper()
	for name, content := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(full+".tmp", []byte(content), 0o600); err != nil {
			tb.Fatal(err)
		}
		if err := os.Rename(full+".tmp", full); err != nil {
			tb.Fatal(err)
		}
	}
}

func dirWith(tb testing.TB, files map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	writeDir(tb, dir, files)
	return dir
}

func newEngine(tb testing.TB, c Config) *Engine {
	tb.Helper()
	e, err := New(context.Background(), c)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func copyOf(m map[string]string, changes map[string]string) map[string]string {
	out := maps.Clone(m)
	maps.Copy(out, changes)
	return out
}

// log is a buffer that a logger and a test may use at once.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *log) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

var at = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func rowsInput() *Input {
	return &Input{
		Time: at, Caller: Caller{Issuer: "corp", Subject: "ann", Groups: []string{"corp/analysts"}},
		Connection: Connection{Name: "main", Recording: "full", Retention: "default"},
		Request:    Request{Method: "bigquery.tabledata.list", Kind: KindRead, HTTPMethod: "GET", Project: "acme", Dataset: "sales", Table: "t"},
	}
}

func queryInput(sql string) *Input {
	in := rowsInput()
	in.Request = Request{Method: "bigquery.jobs.query", Kind: KindQuery, HTTPMethod: "POST", Project: "acme"}
	in.SQL = &SQL{Text: sql}
	return in
}

// fixed is a policy that decides the same for every input.
func fixed(decision string) map[string]string {
	return map[string]string{"p.rego": "package verbatim.policy\n\ndecision := " + decision + "\n"}
}

const (
	allowAll = `{"allow": true, "reasons": [], "limits": {"maximum_bytes_billed": 0}, "labels": {}}`
	denyAll  = `{"allow": false, "reasons": [{"code": "no", "message": "no"}], "limits": {"maximum_bytes_billed": 0}, "labels": {}}`
)
