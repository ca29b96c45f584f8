package auth_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/recorder/record"
)

func load(t testing.TB, text string) (*auth.Revocations, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "revoked.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := auth.LoadRevocations(file)
	return r, file, err
}

func TestRevocations(t *testing.T) {
	r, _, err := load(t, `# the kill switch
tokens:
  - {issuer: corp, id: "t-1", reason: leaked in a build log}
  - issuer: https://ci.test
    id: "42"
subjects:
  - issuer: https://corp.test
    subject: mallory
  - {issuer: corp, subject: "bot:7"}
`)
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, auth.Config{Issuers: []auth.IssuerConfig{
		{Name: "corp", URL: "https://corp.test", Audiences: []string{audience}},
		{Name: "ci", URL: "https://ci.test", Audiences: []string{audience}},
	}}, nil)
	bound, err := r.For(v)
	if err != nil {
		t.Fatal(err)
	}
	if bound.Len() != 4 {
		t.Errorf("%d entries", bound.Len())
	}
	corp := record.Principal{Issuer: "corp", URL: "https://corp.test", Subject: "ada", TokenID: "x"}
	ci := record.Principal{Issuer: "ci", URL: "https://ci.test", Subject: "ada", TokenID: "x"}
	edit := func(p record.Principal, f func(*record.Principal)) record.Principal { f(&p); return p }
	for _, tt := range []struct {
		name  string
		p     record.Principal
		plain bool // known without For
		bound bool
	}{
		{"nobody", corp, false, false},
		{"token by issuer's name", edit(corp, func(p *record.Principal) { p.TokenID = "t-1" }), true, true},
		{"token by issuer's URL", edit(ci, func(p *record.Principal) { p.TokenID = "42" }), true, true},
		{"same token id of another issuer", edit(ci, func(p *record.Principal) { p.TokenID = "t-1" }), false, false},
		{"subject by URL", edit(corp, func(p *record.Principal) { p.Subject = "mallory" }), true, true},
		{"subject by name", edit(corp, func(p *record.Principal) { p.Subject = "bot:7" }), true, true},
		{"same subject of another issuer", edit(ci, func(p *record.Principal) { p.Subject = "mallory" }), false, false},
		{"subject that has the token's id", edit(corp, func(p *record.Principal) { p.Subject = "t-1" }), false, false},
		{"actor without issuer", edit(corp, func(p *record.Principal) { p.OnBehalfOf = []record.Actor{{Subject: "ok"}, {Subject: "bot:7"}} }), true, true},
		{"actor of the same issuer", edit(corp, func(p *record.Principal) {
			p.OnBehalfOf = []record.Actor{{Issuer: "https://corp.test", Subject: "bot:7"}}
		}), true, true},
		{"actor of another issuer, revoked by that one's name", edit(ci, func(p *record.Principal) {
			p.OnBehalfOf = []record.Actor{{Issuer: "https://corp.test", Subject: "bot:7"}}
		}), false, true},
		{"actor of the token's own issuer by default", edit(ci, func(p *record.Principal) { p.OnBehalfOf = []record.Actor{{Subject: "bot:7"}} }), false, false},
	} {
		id := &auth.Identity{Principal: tt.p}
		if _, ok := r.Revoked(id); ok != tt.plain {
			t.Errorf("%s: revoked %t", tt.name, ok)
		}
		reason, ok := bound.Revoked(id)
		if ok != tt.bound || ok != (reason != "") {
			t.Errorf("%s: bound: revoked %t, %q", tt.name, ok, reason)
		}
		if err := bound.Check(id); tt.bound {
			wantCode(t, err, auth.Revoked)
		} else if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if reason, _ := bound.Revoked(&auth.Identity{Principal: edit(corp, func(p *record.Principal) { p.TokenID = "t-1" })}); !strings.Contains(reason, "leaked") {
		t.Errorf("reason %q", reason)
	}
	var none *auth.Revocations
	if _, ok := none.Revoked(&auth.Identity{Principal: corp}); ok || none.Len() != 0 {
		t.Error("no list revokes somebody")
	}
	r, file, err := load(t, "tokens: []\nsubjects:\n  - {issuer: corp, subject: a}\n  - issuer: crop\n    subject: b\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.For(v); err == nil || !strings.HasPrefix(err.Error(), file+":4: ") || !strings.Contains(err.Error(), `"crop"`) {
		t.Errorf("a misspelt issuer: %v", err)
	}
}

func TestRevocationsThatAreWrong(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", ":1: the file is empty"},
		{"only a comment", "# nothing\n", ":1: the file is empty"},
		{"cut short", "tokens:\n  - {issuer: corp, id:", ":2: "},
		{"a list", "- a\n", ":1: want a mapping"},
		{"unknown section", "tokens: []\nsubject: []\n", ":2: unknown key"},
		{"section twice", "tokens: []\ntokens: []\n", ":2: "},
		{"section a string", "tokens: all\n", ":1: tokens: want a list"},
		{"unknown key", "tokens:\n  - issuer: a\n    jti: b\n", ":3: unknown key; want issuer, id, reason"},
		{"no id", "tokens:\n  - issuer: a\n", ":2: tokens: an entry has no id"},
		{"no issuer", "subjects:\n  - subject: a\n", ":2: subjects: an entry has no issuer"},
		{"number", "tokens:\n  - issuer: a\n    id: 42\n", ":3: tokens: id: want a string"},
		{"empty subject", "subjects:\n  - issuer: a\n    subject: ''\n", ":3: subjects: subject: want a string"},
		{"alias", "tokens:\n  - &x {issuer: a, id: b}\n  - *x\n", ":2: want a mapping"},
		{"two documents", "tokens: []\n---\nsubjects: []\n", ":3: a second document"},
		{"tab", "tokens:\n\t- a\n", ":2: not YAML"},
	} {
		_, file, err := load(t, tt.text)
		if err == nil || !strings.HasPrefix(err.Error(), file+tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %q", tt.name, err)
		}
	}
	for _, text := range []string{"{}", "tokens: []\nsubjects: []\n", "tokens:\nsubjects:\n", "{tokens: [], subjects: []}"} {
		if r, _, err := load(t, text); err != nil || r.Len() != 0 {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := auth.LoadRevocations("/does/not/exist"); err == nil {
		t.Error("a missing file passed")
	}
}

func FuzzRevocations(f *testing.F) {
	f.Add("tokens:\n  - {issuer: corp, id: x}\nsubjects: []\n")
	f.Add("tokens: [}")
	f.Add("- *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, _, err := load(t, text)
		if (r == nil) == (err == nil) {
			t.Fatalf("%v and %v", r, err)
		}
	})
}
