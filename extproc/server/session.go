package server

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy/sql"
)

// BigQuery sessions: what a query does there, later queries of the same session
// find: temporary tables and functions, and system variables that change what
// names mean. A session belongs to who began it, see [Gate.ownsSession].

// Sessions remembers the temporary objects of BigQuery sessions, as far as this
// replica saw them made. What it does not know is resolved as any name is, or not
// at all: then the query is refused. It is safe for concurrent use.
type Sessions struct {
	mu sync.Mutex
	recent[bigquery.Key, []string]
}

// maxTemporary is how many temporary objects of one session are remembered.
const maxTemporary = 1000

// NewSessions returns a memory for about limit sessions.
func NewSessions(limit int) *Sessions {
	return &Sessions{recent: newRecent[bigquery.Key, []string](limit)}
}

// Temporary returns the names of a session's temporary objects.
func (s *Sessions) Temporary(key bigquery.Key) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, _ := s.find(key)
	return names
}

// Made adds names to a session's.
func (s *Sessions) Made(key bigquery.Key, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, _ := s.find(key)
	have := slices.Clone(known)
	for _, n := range names {
		if len(have) < maxTemporary && !slices.Contains(have, n) {
			have = append(have, n)
		}
	}
	s.put(key, have)
}

// inSession refuses what would change the meaning of later queries of a session.
func inSession(p *plan, f *sql.Facts) *refusal {
	if f == nil || p.facts.SessionID == "" && !p.facts.CreateSession {
		return nil
	}
	for _, s := range f.Statements {
		if strings.HasPrefix(s.Kind, "SET") && slices.Contains(f.Opaque, "set_system") {
			return &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: "session_variable", by: "body",
				message: "System variables cannot be set in a BigQuery session through this gateway: they would change what the names in later queries mean. Write names in full, and leave SET @@... out."}
		}
	}
	return nil
}
