package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/recorder/record"
)

func TestKeptForm(t *testing.T) {
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"grant_type=a&audience=b", "grant_type=a&audience=b"},
		{"subject_token=canary&scope=s", "subject_token=[redacted]&scope=s"},
		{"scope=s&subject_token=canary", "scope=s&subject_token=[redacted]"},
		{"subject%5Ftoken=canary", "subject_token=[redacted]"},
		{"audience=" + jwt, "audience=[redacted]"},
		{"options=canary", "options=[redacted]"},
		{"canary", "[redacted]"},
		{"grant_type=a&canary", "grant_type=a&[redacted]"},
		{"canary-name=x", "[redacted]"},
		{"a=%zz", "[redacted]"},
		{`{"subject_token":"canary"}`, "[redacted]"},
		{"a;subject_token=canary", "[redacted]"},
		{strings.Repeat("scope=s&", 20_000), "[redacted]"},
	} {
		if got := string(keptForm([]byte(c.in))); got != c.want {
			t.Errorf("%.60q: kept %.80q, want %q", c.in, got, c.want)
		}
	}
}

// FuzzKeptForm: whatever the form, the value of its token is not kept.
func FuzzKeptForm(f *testing.F) {
	f.Add("grant_type=x&", "&scope=a")
	f.Add("a=b&c", "=&&")
	f.Add("audience=", "")
	f.Fuzz(func(t *testing.T, before, after string) {
		const canary = "canary7d1f"
		if strings.Contains(before+after, canary[:4]) || (before != "" && !strings.HasSuffix(before, "&")) {
			t.Skip()
		}
		if kept := string(keptForm([]byte(before + "subject_token=" + canary + after))); strings.Contains(kept, canary) {
			t.Errorf("kept %q", kept)
		}
	})
}

func TestTokenRequest(t *testing.T) {
	const issuer = "https://gateway.test"
	good := url.Values{"grant_type": {grantExchange}, "subject_token": {"canary"}, "subject_token_type": {typeJWT},
		"requested_token_type": {typeAccess}, "audience": {issuer}, "scope": {"https://www.googleapis.com/auth/bigquery"}}
	with := func(name string, values ...string) string {
		f := url.Values{}
		for k, v := range good {
			f[k] = v
		}
		if f[name] = values; len(values) == 0 {
			delete(f, name)
		}
		return f.Encode()
	}
	form := []record.Header{{Name: "content-type", Value: "application/x-www-form-urlencoded;charset=UTF-8"}}
	for _, c := range []struct {
		name, body  string
		headers     []record.Header
		code, oauth string
	}{
		{"good", good.Encode(), form, "", ""},
		{"no audience", with("audience"), form, "", ""},
		{"audience with a slash", with("audience", issuer+"/"), form, "", ""},
		{"no requested type", with("requested_token_type"), form, "", ""},
		{"an ID token", with("subject_token_type", typeID), form, "", ""},
		{"another grant", with("grant_type", "refresh_token"), form, "token_grant", "unsupported_grant_type"},
		{"no grant", with("grant_type"), form, "token_grant", "unsupported_grant_type"},
		{"no token", with("subject_token"), form, "token_missing", "invalid_request"},
		{"two tokens", with("subject_token", "a", "b"), form, "token_form", "invalid_request"},
		{"SAML", with("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), form, "token_type_refused", "invalid_request"},
		{"a refresh token wanted", with("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), form, "token_type_refused", "invalid_request"},
		{"another audience", with("audience", "//iam.googleapis.com/x"), form, "token_audience", "invalid_target"},
		{"an actor", with("actor_token", "x"), form, "token_actor", "invalid_request"},
		{"JSON", `{"grant_type":"x"}`, []record.Header{{Name: "content-type", Value: "application/json"}}, "token_form", "invalid_request"},
		{"no content type", good.Encode(), nil, "token_form", "invalid_request"},
		{"gzip", good.Encode(), append(form[:1:1], record.Header{Name: "content-encoding", Value: "gzip"}), "token_form", "invalid_request"},
		{"a client's secret", good.Encode(), append(form[:1:1], record.Header{Name: "authorization", Value: "Basic canary"}), "token_client", "invalid_client"},
		{"bad encoding", "grant_type=%zz", form, "token_form", "invalid_request"},
		{"large", strings.Repeat("x", maxForm+1), form, "token_form", "invalid_request"},
	} {
		subject, refused := tokenRequest(&request{headers: c.headers}, []byte(c.body), issuer)
		switch {
		case c.code == "" && (refused != nil || subject != "canary"):
			t.Errorf("%s: %q %+v", c.name, subject, refused)
		case c.code != "" && (refused == nil || refused.code != c.code || refused.oauth != c.oauth || refused.status != 400 || strings.Contains(refused.message, "canary")):
			t.Errorf("%s: %+v, want %s %s", c.name, refused, c.code, c.oauth)
		}
	}
}

// minting is a verifier that gives out tokens.
type minting struct {
	issuer string
	verify func(token string) (*auth.Identity, error)
}

func (m minting) Verify(_ context.Context, token string) (*auth.Identity, error) {
	return m.verify(token)
}
func (m minting) TokenIssuer() string { return m.issuer }
func (m minting) Mint(id *auth.Identity) (string, *auth.Identity, error) {
	minted := *id
	minted.MintedBy, minted.Principal.GatewayToken = m.issuer, "g-1"
	return "canary-minted", &minted, nil
}

func TestTokenAnswers(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	id := &auth.Identity{Principal: record.Principal{Issuer: "corp", URL: "https://idp", Subject: "ada", TokenID: "t-1"}, Expires: now.Add(time.Hour)}
	body := url.Values{"grant_type": {grantExchange}, "subject_token": {"canary-subject"}, "subject_token_type": {typeJWT}}.Encode()
	ok := func(string) (*auth.Identity, error) { return id, nil }
	for _, c := range []struct {
		name     string
		verifier minting
		revoked  string
		code     string
		status   int
	}{
		{"good", minting{"https://gw", ok}, "", "", 200},
		{"off", minting{"", ok}, "", "tokens_off", 403},
		{"revoked", minting{"https://gw", ok}, "it leaked", "revoked", 401},
		{"expired", minting{"https://gw", func(string) (*auth.Identity, error) {
			return nil, &auth.Error{Code: auth.TokenExpired, Message: "the token expired"}
		}}, "", "token_expired", 401},
		{"keys away", minting{"https://gw", func(string) (*auth.Identity, error) {
			return nil, &auth.Error{Code: auth.IssuerUnavailable, Message: "the issuer's keys cannot be had", Unavailable: true}
		}}, "", "issuer_unavailable", 503},
		{"a gateway token", minting{"https://gw", func(string) (*auth.Identity, error) {
			own := *id
			own.MintedBy = "https://gw"
			return &own, nil
		}}, "", "token_not_exchanged", 401},
		{"broken", minting{"https://gw", func(string) (*auth.Identity, error) { return nil, errors.New("canary") }}, "", "authentication_failed", 503},
	} {
		g := &Gate{Verifier: c.verifier, Revoked: func(*auth.Identity) (string, bool) { return c.revoked, c.revoked != "" },
			SessionKey: []byte("k"), Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}
		r := &request{method: "POST", target: "/sts/v1/token", received: now, headers: []record.Header{{Name: "content-type", Value: "application/x-www-form-urlencoded"}}}
		p, refused := g.head(t.Context(), r)
		if refused != nil || p.carries != bigquery.CarriesForm {
			t.Fatalf("%s: head %+v", c.name, refused)
		}
		refused = g.decide(t.Context(), p, []byte(body), nil)
		if c.code != "" {
			if refused == nil || refused.code != c.code || refused.status != c.status || p.answer != nil || strings.Contains(refused.message, "canary") {
				t.Errorf("%s: %+v", c.name, refused)
			}
			continue
		}
		if refused != nil {
			t.Fatalf("%s: %+v", c.name, refused)
		}
		var got map[string]any
		if err := json.Unmarshal(p.answer.body, &got); err != nil || got["access_token"] != "canary-minted" || got["expires_in"] != 3600.0 || got["token_type"] != "Bearer" || got["issued_token_type"] != typeAccess {
			t.Errorf("%s: answer %s", c.name, p.answer.body)
		}
		if strings.Contains(string(p.answer.kept), "canary") || !strings.Contains(string(p.answer.kept), redacted) {
			t.Errorf("%s: kept %s", c.name, p.answer.kept)
		}
		if p.identity.Principal.TokenID != "t-1" || p.identity.Principal.GatewayToken != "g-1" || !p.decision.Allow {
			t.Errorf("%s: on record %+v %+v", c.name, p.identity, p.decision)
		}
	}
}

func TestToldForgetsTheOldestAndTellsTheOwnerAlone(t *testing.T) {
	told := NewTold(2)
	ada, bob := bigquery.Owner{Issuer: "i", Subject: "ada"}, bigquery.Owner{Issuer: "i", Subject: "bob"}
	ids := []record.ID{{Sequence: 1}, {Sequence: 2}, {Sequence: 3}}
	for _, id := range ids {
		told.put(id, ada, Exchange{ID: id.String(), Status: 403})
	}
	told.put(ids[2], ada, Exchange{ID: ids[2].String(), Status: 200}) // again
	if _, ok := told.get(ids[0], ada); ok {
		t.Error("the oldest is still there")
	}
	if e, ok := told.get(ids[1], ada); !ok || e.Status != 403 {
		t.Errorf("the second: %+v %v", e, ok)
	}
	if e, ok := told.get(ids[2], ada); !ok || e.Status != 200 {
		t.Errorf("the third: %+v %v", e, ok)
	}
	if _, ok := told.get(ids[1], bob); ok {
		t.Error("another caller was told")
	}
	if len(told.by) != 2 || len(told.order) != 2 {
		t.Errorf("%d and %d are kept", len(told.by), len(told.order))
	}
}
