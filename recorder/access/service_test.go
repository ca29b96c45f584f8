package access

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// Canaries stand where a viewer must not see them.
const (
	inSQL      = "canary-sql-51c7"
	inParam    = "canary-parameter-8e02"
	inRequest  = "canary-request-77ab"
	inResponse = "canary-response-19d4"
	inReason   = "canary-reason-3f3f"
	inLabel    = "canary-label-6a10"
	inHeader   = "canary-header-c0de"
)

var canaries = []string{inSQL, inParam, inRequest, inResponse, inReason, inLabel, inHeader}

// taker records in memory, or fails.
type taker struct {
	mu    sync.Mutex
	taken []record.Access
	drawn int  // appends
	left  int  // appends that work; below 0: all
	hang  bool // those that do not are never durable
	next  uint64
}

func (t *taker) Append(drafts ...record.Draft) *record.Ticket {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drawn++
	t.next++
	ticket := record.NewTicket(record.ID{Sequence: t.next})
	if t.left == 0 {
		if !t.hang {
			ticket.Settle(record.ErrFull)
		}
		return ticket
	}
	t.left--
	for _, d := range drafts {
		var a record.Access
		if err := json.Unmarshal(d.Body, &a); err != nil || d.Kind != record.KindAccess || d.Session == "" || d.Session != a.Session {
			ticket.Settle(fmt.Errorf("the draft is no access record: %v %s", err, d.Kind))
			return ticket
		}
		t.taken = append(t.taken, a)
	}
	ticket.Settle(nil)
	return ticket
}

func (t *taker) all() []record.Access {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.taken)
}

type rig struct {
	t       *testing.T
	vault   *ledgertest.Vault
	taker   *taker
	refused int
	server  *httptest.Server
	first   record.ID // allowed, with everything
	denied  record.ID
	now     time.Time
}

func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, vault: ledgertest.New(), taker: &taker{left: -1}, now: time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)}
	g := ledgertest.NewGateway(r.vault, "gw-1", public)
	g.Begin()
	r.first = g.Run(ledgertest.Exchange{
		Session: "s1", Subject: "alice", Email: "alice@corp.example", SQL: "SELECT '" + inSQL + "'", Parameters: json.RawMessage(`["` + inParam + `"]`),
		Request: []byte(inRequest), Upstream: []byte(inRequest + "2"), Response: bytes.Repeat([]byte(inResponse+","), 20000), Rows: 5,
		Asserted: record.Asserted{UserAgent: "py", RequestReason: inLabel, Labels: map[string]string{"l": inLabel}},
		Headers:  []record.Header{{Name: "x", Value: inHeader}},
	})
	r.denied = g.Run(ledgertest.Exchange{Session: "s2", Subject: "bob", SQL: "DROP " + inSQL, Deny: []record.Reason{{Code: "read_only", Message: inReason}}, Response: []byte(inResponse)})
	g.Cut()
	c := Config{
		Name: "auditors-1", Vault: r.vault, Recorder: r.taker, Refused: func() { r.refused++ }, Durable: 50 * time.Millisecond,
		Tenant: func() *keyset.Handle { return tenant },
		Keys:   func() (ledger.Opener, error) { return keyring.New(keyring.Config{Source: r.vault, Tenant: tenant}) },
		Now:    func() time.Time { return r.now },
		Authenticate: func(req *http.Request) (*Reader, error) {
			switch token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "); token {
			case "auditor", "viewer", "norole":
				role := Role(token)
				if token == "norole" {
					role = ""
				}
				return &Reader{Principal: record.Principal{Issuer: "corp", Subject: token, Email: token + "@corp.example"}, Role: role, Session: "session-of-" + token}, nil
			case "down":
				return nil, &Refusal{Code: "issuer_unavailable", Message: "the issuer is down", Unavailable: true}
			case "broken":
				return nil, errors.New("the list of revocations cannot be read")
			}
			return nil, &Refusal{Code: "signature_invalid", Message: "the signature is wrong"}
		},
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.server = httptest.NewServer(s)
	t.Cleanup(r.server.Close)
	return r
}

func (r *rig) post(token, path, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodPost, r.server.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func (r *rig) client(token string) *Client {
	r.t.Helper()
	c, err := NewClient(ClientConfig{Server: r.server.URL, Token: token, UserAgent: "test"})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func show(id record.ID, more string) string { return `{"exchange":"` + id.String() + `"` + more + `}` }

// TestReads: each request is answered as its reader's role allows, and leaves
// the record that says so, before anything is given out.
func TestReads(t *testing.T) {
	r := start(t, nil)
	x := r.first.String()
	for name, test := range map[string]struct {
		token, path, body string
		status            int
		code              string // in the answer and on record
		action            string // on record; empty: none is made
		holds, not        []string
		records           []string
	}{
		"auditor searches":         {token: "auditor", path: "/v1/search", body: `{}`, status: 200, action: "search", holds: []string{inSQL, inParam, inReason, `"end"`}, records: []string{x, r.denied.String()}},
		"auditor filters":          {token: "auditor", path: "/v1/search", body: `{"sql":"canary-sql","principal":"alice","why":"case 7"}`, status: 200, action: "search", holds: []string{inSQL}, not: []string{inReason}, records: []string{x}},
		"nothing is found":         {token: "auditor", path: "/v1/search", body: `{"principal":"nobody"}`, status: 200, action: "search", holds: []string{`"end"`}},
		"viewer searches":          {token: "viewer", path: "/v1/search", body: `{}`, status: 200, action: "search", holds: []string{"sql_sha256", "alice@corp.example", "read_only"}, not: canaries, records: []string{x, r.denied.String()}},
		"viewer searches in SQL":   {token: "viewer", path: "/v1/search", body: `{"sql":"canary"}`, status: 403, code: CodeRole, action: "search"},
		"viewer searches by table": {token: "viewer", path: "/v1/search", body: `{"table":"canary"}`, status: 403, code: CodeRole, action: "search"},
		"auditor is shown":         {token: "auditor", path: "/v1/show", body: show(r.first, ""), status: 200, action: "show", holds: []string{inSQL, inHeader, inLabel}, records: []string{x}},
		"viewer is shown":          {token: "viewer", path: "/v1/show", body: show(r.first, ""), status: 200, action: "show", holds: []string{"sql_sha256", "leaf"}, not: canaries, records: []string{x}},
		"viewer is shown a denial": {token: "viewer", path: "/v1/show", body: show(r.denied, ""), status: 200, action: "show", holds: []string{"read_only"}, not: canaries, records: []string{r.denied.String()}},
		"not there":                {token: "auditor", path: "/v1/show", body: show(record.ID{Epoch: r.first.Epoch, Sequence: 999}, ""), status: 404, code: CodeNotFound, action: "show"},
		"auditor reads a payload":  {token: "auditor", path: "/v1/payload", body: show(r.first, `,"direction":"response","why":"case 7"`), status: 200, action: "payload", holds: []string{inResponse}, records: []string{x}},
		"no reason":                {token: "auditor", path: "/v1/payload", body: show(r.first, `,"direction":"response","why":" "`), status: 403, code: CodeWhy, action: "payload"},
		"viewer reads a payload":   {token: "viewer", path: "/v1/payload", body: show(r.first, `,"direction":"response","why":"case 7"`), status: 403, code: CodeRole, action: "payload"},
		"no such payload":          {token: "auditor", path: "/v1/payload", body: show(r.denied, `,"direction":"upstream","why":"case 7"`), status: 404, code: CodeNoBody, action: "payload"},
		"viewer reads accesses":    {token: "viewer", path: "/v1/accesses", body: `{}`, status: 403, code: CodeRole, action: "accesses"},
		"auditor reads accesses":   {token: "auditor", path: "/v1/accesses", body: `{}`, status: 200, action: "accesses", holds: []string{`"end"`}},
		"auditor exports":          {token: "auditor", path: "/v1/export", body: show(r.first, `,"why":"case 7"`), status: 200, action: "export", holds: []string{"PK"}, records: []string{x}},
		"exports for no reason":    {token: "auditor", path: "/v1/export", body: show(r.first, ""), status: 403, code: CodeWhy, action: "export"},
		"exports nothing":          {token: "auditor", path: "/v1/export", body: `{"session":"nobody","why":"w"}`, status: 404, code: CodeNotFound, action: "export"},
		"exports anything":         {token: "auditor", path: "/v1/export", body: `{"why":"w"}`, status: 400, code: CodeBad},
		"viewer exports":           {token: "viewer", path: "/v1/export", body: show(r.first, `,"why":"w"`), status: 403, code: CodeRole, action: "export"},
		"auditor reconciles":       {token: "auditor", path: "/v1/reconcile", body: `{"limit":10}` + "\n{}\n", status: 200, action: "reconcile", holds: []string{"not_understood", `"line":1`}},
		"no list":                  {token: "auditor", path: "/v1/reconcile", body: `{}`, status: 400, code: CodeBad},
		"viewer reconciles":        {token: "viewer", path: "/v1/reconcile", body: "{}\n", status: 403, code: CodeRole, action: "reconcile"},
		"stranger":                 {token: "x", path: "/v1/search", body: `{}`, status: 401, code: "signature_invalid", action: "search"},
		"no role":                  {token: "norole", path: "/v1/payload", body: show(r.first, `,"direction":"response","why":"w"`), status: 403, code: CodeNoRole, action: "payload"},
		"the issuer is down":       {token: "down", path: "/v1/search", body: `{}`, status: 503, code: "issuer_unavailable", action: "search"},
		"no proof is possible":     {token: "broken", path: "/v1/search", body: `{}`, status: 503, code: CodeFailed},
		"unknown field":            {token: "auditor", path: "/v1/search", body: `{"principle":"alice"}`, status: 400, code: CodeBad},
		"two objects":              {token: "auditor", path: "/v1/search", body: `{} {}`, status: 400, code: CodeBad},
		"no id":                    {token: "auditor", path: "/v1/show", body: `{"exchange":"x"}`, status: 400, code: CodeBad},
		"a long reason":            {token: "auditor", path: "/v1/search", body: `{"why":"` + strings.Repeat("x", 1001) + `"}`, status: 400, code: CodeBad},
		"a huge body":              {token: "auditor", path: "/v1/search", body: `{"why":"` + strings.Repeat("x", maxRequest) + `"}`, status: 400, code: CodeBad},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.taker.all())
			status, body := r.post(test.token, test.path, test.body)
			if status != test.status || test.code != "" && !strings.Contains(body, `"code":"`+test.code+`"`) {
				t.Fatalf("status %d, want %d %s: %.300s", status, test.status, test.code, body)
			}
			for _, s := range test.holds {
				if !strings.Contains(body, s) {
					t.Errorf("the answer does not hold %q: %.2000s", s, body)
				}
			}
			not := test.not
			if status != 200 {
				not = canaries
			}
			for _, s := range not {
				if strings.Contains(body, s) {
					t.Errorf("the answer holds %q", s)
				}
			}
			made := r.taker.all()[before:]
			if test.action == "" {
				if len(made) != 0 {
					t.Errorf("made %d records, want none", len(made))
				}
				return
			}
			if len(made) != 1 {
				t.Fatalf("made %d records, want 1", len(made))
			}
			a := made[0]
			// What is not in the vault was asked for, and looking is allowed.
			allowed := status == 200 || status == 404
			if a.What.Action != test.action || a.Allowed != allowed || !allowed && a.Code != test.code || a.From == "" {
				t.Errorf("recorded %+v", a)
			}
			if status == 200 && !slices.Equal(a.Records, test.records) {
				t.Errorf("recorded that %q are given out, want %q", a.Records, test.records)
			}
			proven := test.token == "auditor" || test.token == "viewer" || test.token == "norole"
			if (a.Who != nil) != proven || proven && a.Who.Subject != test.token {
				t.Errorf("recorded as %+v", a.Who)
			}
			if strings.Contains(test.body, "case 7") && a.Why != "case 7" {
				t.Errorf("recorded the reason %q", a.Why)
			}
		})
	}
	made := r.taker.all()
	i := slices.IndexFunc(made, func(a record.Access) bool { return a.What.Filter["sql"] == "canary-sql" })
	if i < 0 || !reflect.DeepEqual(made[i].What.Filter, map[string]string{"sql": "canary-sql", "principal": "alice"}) {
		t.Errorf("the filter is not on record: %+v", made)
	}
}

// TestNotRecorded: what cannot be recorded is not given out, and no more is
// said than that.
func TestNotRecorded(t *testing.T) {
	for _, hang := range []bool{false, true} {
		r := start(t, nil)
		r.taker.left, r.taker.hang = 0, hang
		asked := 0
		for path, body := range map[string]string{
			"/v1/search": `{}`, "/v1/accesses": `{}`, "/v1/show": show(r.first, ""), "/v1/payload": show(r.first, `,"direction":"response","why":"w"`),
			"/v1/export": show(r.first, `,"why":"w"`), "/v1/reconcile": "{}\n{}\n",
		} {
			for _, token := range []string{"auditor", "viewer", "norole", "x"} {
				asked++
				status, answer := r.post(token, path, body)
				if status != 503 || !strings.Contains(answer, CodeNotRecorded) || len(answer) > 200 {
					t.Errorf("%s %s, hang %v: status %d: %.300s", token, path, hang, status, answer)
				}
				for _, s := range append(canaries, r.first.String(), "alice") {
					if strings.Contains(answer, s) {
						t.Errorf("%s %s: gives out %q", token, path, s)
					}
				}
			}
		}
		if r.refused != asked {
			t.Errorf("counted %d of %d refusals", r.refused, asked)
		}
	}
}

// TestLaterPartNotRecorded: a long answer stops at the part that cannot be
// recorded, and the client does not take it for whole.
func TestLaterPartNotRecorded(t *testing.T) {
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	for n := range 6 {
		g.Run(ledgertest.Exchange{Session: "s", Subject: "alice", SQL: fmt.Sprintf("SELECT %d -- %s", n, strings.Repeat("x", 600<<10))})
	}
	g.Cut()
	for _, left := range []int{-1, 1} {
		r := start(t, func(c *Config) {
			c.Vault = v
			c.Keys = func() (ledger.Opener, error) { return keyring.New(keyring.Config{Source: v, Tenant: tenant}) }
		})
		r.taker.left = left
		var got []string
		_, err := r.client("auditor").Search(t.Context(), SearchRequest{}, nil, func(x *search.Exchange) error {
			got = append(got, x.ID)
			return nil
		})
		var recorded []string
		for _, a := range r.taker.all() {
			recorded = append(recorded, a.Records...)
		}
		if !slices.Equal(got, recorded) {
			t.Errorf("given out are %q, on record %q", got, recorded)
		}
		var said *Error
		switch {
		case left < 0 && (err != nil || len(got) != 6):
			t.Errorf("%d exchanges, %v", len(got), err)
		case left == 1 && (!errors.As(err, &said) || said.Code != CodeNotRecorded || len(got) != 2):
			t.Errorf("%d exchanges, %v", len(got), err)
		}
		if left < 0 {
			all := r.taker.all()
			if len(all) != 3 || all[0].Of != "" || all[2].Part != 2 || all[2].Of == "" {
				t.Errorf("parts are not tied together: %+v", all)
			}
		}
	}
}

// TestStrangers: a flood of refusals cannot fill the journal, and is on record
// as a number.
func TestStrangers(t *testing.T) {
	r := start(t, nil)
	slow := 0
	for range refusalBurst + 30 {
		if status, _ := r.post("x", "/v1/search", "{}"); status == 429 {
			slow++
		}
	}
	if slow != 30 || len(r.taker.all()) != refusalBurst {
		t.Errorf("%d slowed down, %d records", slow, len(r.taker.all()))
	}
	if status, _ := r.post("auditor", "/v1/search", "{}"); status != 200 {
		t.Errorf("an auditor is locked out by strangers: %d", status)
	}
	r.now = r.now.Add(2 * time.Second)
	if status, _ := r.post("x", "/v1/search", "{}"); status != 401 {
		t.Errorf("status %d, want 401 again", status)
	}
	all := r.taker.all()
	if n := all[len(all)-1].Unrecorded; n != 30 {
		t.Errorf("%d refusals are told of, want 30", n)
	}
}

// TestPayload: the bytes are those recorded, and what is damaged or erased is
// not taken for right.
func TestPayload(t *testing.T) {
	r := start(t, nil)
	c := r.client("auditor")
	var b bytes.Buffer
	note, err := c.Payload(t.Context(), r.first, record.DirectionResponse, "case 7", &b)
	if err != nil || note != "" || b.Len() != 20000*(len(inResponse)+1) || strings.ReplaceAll(b.String(), inResponse+",", "") != "" {
		t.Fatalf("%d bytes, note %q, %v", b.Len(), note, err)
	}
	// A bit of a later piece.
	segment := r.vault.Names("segments/")[0]
	whole := bytes.Clone(r.vault.Files[segment])
	r.vault.Files[segment][len(whole)/2] ^= 1
	b.Reset()
	if _, err = c.Payload(t.Context(), r.first, record.DirectionResponse, "case 7", &b); err == nil {
		t.Error("a damaged payload is taken for whole")
	}
	r.vault.Files[segment] = whole
	// Erased while the service runs: no cache has the key.
	for _, k := range r.vault.Names("keys/") {
		delete(r.vault.Files, k)
	}
	b.Reset()
	if _, err = c.Payload(t.Context(), r.first, record.DirectionResponse, "case 7", &b); err == nil || b.Len() != 0 || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("an erased payload: %d bytes, %v", b.Len(), err)
	}
}

// TestBusy: more than so many at once are sent away.
func TestBusy(t *testing.T) {
	hold, release := make(chan struct{}), make(chan struct{})
	r := start(t, func(c *Config) {
		c.Requests = 1
		keys := c.Keys
		c.Keys = func() (ledger.Opener, error) {
			close(hold)
			<-release
			return keys()
		}
	})
	done := make(chan int)
	go func() {
		status, _ := r.post("auditor", "/v1/search", "{}")
		done <- status
	}()
	<-hold
	if status, body := r.post("auditor", "/v1/search", "{}"); status != 503 || !strings.Contains(body, CodeBusy) {
		t.Errorf("status %d: %s", status, body)
	}
	close(release)
	if status := <-done; status != 200 {
		t.Errorf("status %d", status)
	}
}

// TestClient: an answer that is cut off, or is not the service's, is an error;
// a token goes to nobody in the clear.
func TestClient(t *testing.T) {
	for server, ok := range map[string]bool{
		"https://auditors.corp.example": true, "http://127.0.0.1:1": true, "http://[::1]:1": true, "http://localhost:1": true,
		"http://auditors.corp.example": false, "http://127.0.0.1.evil.example": false, "https://u:p@h": false, "https://h?x": false, "h": false, "": false, "ftp://h": false,
	} {
		if err := CheckServer(server); (err == nil) != ok {
			t.Errorf("CheckServer(%q) = %v", server, err)
		}
	}
	if _, err := NewClient(ClientConfig{Server: "https://h", Token: "canary token"}); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("a broken token: %v", err)
	}
	for name, answer := range map[string]http.HandlerFunc{
		"cut off": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `{"access":"x"}`) },
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `<html>`) },
		"another": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "proxy", http.StatusBadGateway) },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example/", http.StatusTemporaryRedirect)
		},
		"error": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, `{"error":{"code":"failed","message":"m"}}`)
		},
		"no trailer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(headerAccess, "x")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(answer)
			defer s.Close()
			c, err := NewClient(ClientConfig{Server: s.URL, Token: "t"})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if _, err := c.Search(ctx, SearchRequest{}, nil, func(*search.Exchange) error { return nil }); err == nil {
				t.Error("search takes it for whole")
			}
			if _, err := c.Show(ctx, ShowRequest{}, nil); err == nil {
				t.Error("show takes it for whole")
			}
			if _, err := c.Payload(ctx, record.ID{}, record.DirectionRequest, "w", io.Discard); err == nil {
				t.Error("payload takes it for whole")
			}
		})
	}
}
