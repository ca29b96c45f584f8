package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"verbatim.dev/extproc/auth"
	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/policy"
	"verbatim.dev/recorder/record"
)

// Minter gives out the gateway's own tokens; a [Verifier] that is no Minter has
// none.
type Minter interface {
	Mint(id *auth.Identity) (token string, minted *auth.Identity, err error)
	TokenIssuer() string // empty: no tokens are given out
}

// answer is what the gateway says itself to a call that never goes upstream.
type answer struct {
	status      int    // 200 where 0
	contentType string // application/json where empty
	body        []byte // never empty
	kept        []byte // for the record, where the body holds a credential; nil: the body
}

// localHeaders of an answer: nothing between caller and gateway may keep it
// (RFC 6749, section 5.1).
var localHeaders = []record.Header{{Name: "content-type", Value: "application/json; charset=UTF-8"}, {Name: "cache-control", Value: "no-store"}}

// answer gives the plan's answer out once it is on record.
func (x *exchange) answer(a *answer) {
	x.phase, x.linger = phaseClosing, false
	if x.status = a.status; x.status == 0 {
		x.status = http.StatusOK
	}
	headers := slices.Clone(localHeaders)
	if a.contentType != "" {
		headers[0].Value = a.contentType
	}
	kept := a.kept
	if kept == nil {
		kept = a.body
	}
	body := func(record.ID) []byte { return kept }
	drafts := x.ownDrafts(x.intentDrafts(), record.ResultDelivered, "",
		func(record.ID) record.Head { return record.Head{Status: x.status, Headers: headers} }, body)
	x.commit(drafts, func() {
		x.gate.answered(x.plan, x.id, x.status)
		m := &extproc.HeaderMutation{}
		for _, h := range append(slices.Clone(headers), record.Header{Name: ReceiptHeader, Value: x.receipt}) {
			m.SetHeaders = append(m.SetHeaders, setHeader(h.Name, h.Value))
		}
		x.send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extproc.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(x.status)}, Headers: m, Body: a.body, Details: "verbatim_local",
		}}}, 0)
		x.phase = phaseDone
	})
}

// ownDrafts adds an answer of the gateway's own, and the outcome, to drafts. A
// nil body leaves the answer's body out.
func (x *exchange) ownDrafts(drafts []record.Draft, result record.Result, cause string, head func(record.ID) record.Head, body func(record.ID) []byte) []record.Draft {
	var said []byte
	h := x.draft()
	h.Kind, h.Direction, h.Flags = record.KindPayload, record.DirectionResponse, record.FlagHead
	h.Render = func(id record.ID) ([]byte, error) { return record.Marshal(head(id)) }
	drafts = append(drafts, h)
	if body != nil {
		piece := x.draft()
		piece.Kind, piece.Direction = record.KindPayload, record.DirectionResponse
		piece.Render = func(id record.ID) ([]byte, error) {
			said = body(id)
			return said, nil
		}
		drafts = append(drafts, piece)
	}
	outcome := x.outcomeDraft(result, cause)[0]
	render := outcome.Render
	down := &x.down
	outcome.Render = func(id record.ID) ([]byte, error) {
		// The answer is always kept whole: it is the gateway's own.
		down.full, down.piece, down.offset = true, uint32(min(len(said), 1)), int64(len(said))
		down.sum.Reset()
		down.sum.Write(said)
		return render(id)
	}
	return append(drafts, outcome)
}

// local completes the plan of a call to the gateway itself.
func (g *Gate) local(ctx context.Context, p *plan, body []byte) *refusal {
	var v any
	switch p.call.Method {
	case bigquery.MethodToken:
		return g.token(ctx, p, body)
	case bigquery.MethodStream:
		return &refusal{status: 405, reason: bigquery.ReasonInvalid, code: "mcp_stream", by: "route",
			message: "The gateway keeps no stream of messages of its own; send each message by POST."}
	case bigquery.MethodWhoami:
		v = g.whoami(ctx, p)
	case bigquery.MethodExchange:
		id, err := record.ParseID(p.route.Exchange)
		if err != nil {
			return &refusal{status: 400, reason: bigquery.ReasonInvalid, code: "name_exchange", by: "route",
				message: "The path holds no receipt: it is the value of the header x-verbatim-receipt, or its part before the first dot."}
		}
		told, ok := g.Told.get(id, ownerOf(p.identity))
		if !ok {
			return &refusal{status: 404, reason: "notFound", code: "exchange_unknown", by: "ownership",
				message: "No exchange of the caller's own with this receipt is known here: it is another's, too long ago, or another replica had it. An auditor finds it by the receipt."}
		}
		v = told
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return &refusal{status: 500, reason: bigquery.ReasonBackendError, code: "internal", by: "route", message: "The answer could not be written."}
	}
	p.answer = &answer{body: append(b, '\n')}
	p.decide(true, nil)
	p.decision.By = "identity"
	return nil
}

// granting is a policy that tells callers their rights.
type granting interface {
	Granted(ctx context.Context, in *policy.Input) (json.RawMessage, error)
}

// identity is what whoami tells.
type identity struct {
	Principal  record.Principal  `json:"principal"`
	Provenance record.Provenance `json:"provenance"`
	Session    string            `json:"session"`
	Expires    time.Time         `json:"token_expires"`
	// Token is issuer for a token of the issuer's own, gateway for one of the
	// gateway's.
	Token  string `json:"token"`
	Policy string `json:"policy_digest"`
	// Grants are the policy's for this caller, where it tells them.
	Grants json.RawMessage `json:"grants,omitempty"`
}

func (g *Gate) whoami(ctx context.Context, p *plan) identity {
	who := identity{Principal: p.identity.Principal, Provenance: p.identity.Provenance, Session: p.session,
		Expires: p.identity.Expires.UTC(), Token: "issuer", Policy: g.Policy.Digest()}
	if p.identity.MintedBy != "" {
		who.Token = "gateway"
	}
	if tells, ok := g.Policy.(granting); ok {
		in := &policy.Input{Time: g.Now().UTC()}
		in.Caller, in.Provenance = p.caller()
		var err error
		if who.Grants, err = tells.Granted(ctx, in); err != nil {
			g.Logger.Warn("grants not told", "error", err)
		}
	}
	return who
}

// maxForm is the longest token request, in bytes.
const maxForm = 64 << 10

// The terms of RFC 8693 that are served.
const (
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccess    = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT       = "urn:ietf:params:oauth:token-type:jwt"
	typeID        = "urn:ietf:params:oauth:token-type:id_token"
)

// formPublic are the fields of a token request whose values are kept in the
// record. Any other value may be a credential.
var formPublic = map[string]bool{
	"grant_type": true, "audience": true, "resource": true, "scope": true, "requested_token_type": true, "subject_token_type": true,
}

// keptForm returns a token request for the record: its fields in their order,
// and the values of those alone that hold no credential. A body that is no form is not kept.
func keptForm(body []byte) []byte {
	if len(body) == 0 {
		return nil
	}
	if len(body) > maxForm {
		return []byte(redacted)
	}
	pairs := strings.Split(string(body), "&")
	for i, pair := range pairs {
		rawName, rawValue, ok := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		value, verr := url.QueryUnescape(rawValue)
		switch {
		case !ok || err != nil || verr != nil || len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "":
			pairs[i] = redacted
		case !formPublic[name] || auth.CredentialValue(value):
			pairs[i] = name + "=" + redacted
		}
	}
	return []byte(strings.Join(pairs, "&"))
}

// token exchanges a caller's own token for one of the gateway's (RFC 8693).
func (g *Gate) token(ctx context.Context, p *plan, body []byte) *refusal {
	minter, ok := g.Verifier.(Minter)
	if !ok || minter.TokenIssuer() == "" {
		return &refusal{status: 403, reason: bigquery.ReasonAccessDenied, code: "tokens_off", by: "route", oauth: "invalid_request",
			message: "This gateway gives out no tokens. Give the client its issuer's token itself, or ask the operator to set tokens in the configuration."}
	}
	subject, refused := tokenRequest(p.request, body, minter.TokenIssuer())
	if refused != nil {
		return refused
	}
	id, err := g.Verifier.Verify(ctx, subject)
	if err == nil && id.MintedBy != "" {
		err = &auth.Error{Code: auth.TokenNotExchanged, Message: "the subject token is one of the gateway's own; send the issuer's token"}
	}
	var token string
	var minted *auth.Identity
	if err == nil {
		p.identity, p.session = id, auth.Session(g.SessionKey, id, p.request.received)
		if refused := g.revoked(id); refused != nil {
			return refused
		}
		token, minted, err = minter.Mint(id)
	}
	if err != nil {
		r := unproven(err)
		var e *auth.Error
		if !errors.As(err, &e) {
			g.Logger.Error("token not given out", "error", err)
		}
		return r
	}
	p.identity = minted
	reply := struct {
		Token   string `json:"access_token"`
		Issued  string `json:"issued_token_type"`
		Type    string `json:"token_type"`
		Expires int64  `json:"expires_in"`
	}{token, typeAccess, "Bearer", int64(minted.Expires.Sub(g.Now()) / time.Second)}
	p.answer = &answer{}
	if p.answer.body, err = json.Marshal(reply); err == nil {
		reply.Token = redacted
		p.answer.kept, err = json.Marshal(reply)
	}
	if err != nil {
		return &refusal{status: 500, reason: bigquery.ReasonBackendError, code: "internal", by: "authentication", message: "The answer could not be written."}
	}
	p.decide(true, nil)
	p.decision.By = "authentication"
	return nil
}

// tokenRequest reads a token request and returns its subject token. The
// messages hold no value of the form.
func tokenRequest(r *request, body []byte, issuer string) (subject string, _ *refusal) {
	bad := func(oauth, code, format string, args ...any) (string, *refusal) {
		return "", &refusal{status: 400, reason: bigquery.ReasonInvalid, code: code, by: "body", oauth: oauth, message: fmt.Sprintf(format, args...)}
	}
	if r.header("authorization") != "" {
		return bad("invalid_client", "token_client", "The token endpoint knows no clients: leave out the Authorization header, and client_id and client_secret in the client's file.")
	}
	if media, _, err := mime.ParseMediaType(r.header("content-type")); err != nil || media != "application/x-www-form-urlencoded" {
		return bad("invalid_request", "token_form", "A token request is a form: content-type application/x-www-form-urlencoded.")
	}
	if e := r.header("content-encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return bad("invalid_request", "token_form", "A token request with a content-encoding is not served; send it plain.")
	}
	if len(body) > maxForm {
		return bad("invalid_request", "token_form", "The token request is larger than %d bytes.", maxForm)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return bad("invalid_request", "token_form", "The token request is no form of name=value pairs, each encoded once.")
	}
	for _, name := range []string{"grant_type", "subject_token", "subject_token_type", "requested_token_type", "audience", "scope"} {
		if len(form[name]) > 1 {
			return bad("invalid_request", "token_form", "The token request has %s twice.", name)
		}
	}
	switch {
	case form.Get("grant_type") != grantExchange:
		return bad("unsupported_grant_type", "token_grant", "The token endpoint exchanges tokens: grant_type has to be %s.", grantExchange)
	case form.Has("actor_token"):
		return bad("invalid_request", "token_actor", "An actor_token is not served: on whose behalf a caller acts is for its issuer to say, in the claim act.")
	case form.Get("subject_token") == "":
		return bad("invalid_request", "token_missing", "The token request has no subject_token: the token of the caller's issuer.")
	case !slices.Contains([]string{typeJWT, typeID, typeAccess}, form.Get("subject_token_type")):
		return bad("invalid_request", "token_type_refused", "The subject_token_type has to be %s (or id_token, access_token).", typeJWT)
	case form.Get("requested_token_type") != "" && form.Get("requested_token_type") != typeAccess:
		return bad("invalid_request", "token_type_refused", "The requested_token_type has to be %s, or left out.", typeAccess)
	}
	if a := form.Get("audience"); a != "" && strings.TrimSuffix(a, "/") != strings.TrimSuffix(issuer, "/") {
		return bad("invalid_target", "token_audience", "The audience has to be %s, or left out: this gateway gives out tokens for itself alone.", issuer)
	}
	return form.Get("subject_token"), nil
}

// Told remembers what became of the exchanges of late, for their callers to
// ask. It is safe for concurrent use.
type Told struct {
	limit int

	mu    sync.Mutex
	by    map[record.ID]told
	order []record.ID // a ring once it is full
	next  int
}

type told struct {
	owner bigquery.Owner
	Exchange
}

// Exchange is what a caller is told of an exchange of its own.
type Exchange struct {
	ID       string            `json:"exchange"`
	At       time.Time         `json:"received"`
	Method   string            `json:"method,omitempty"`
	Session  string            `json:"session"`
	Job      *record.Job       `json:"job,omitempty"`
	Status   int               `json:"status"`
	Decision record.Decision   `json:"decision"`
	Reads    []record.TableUse `json:"reads,omitempty"`
	Writes   []record.TableUse `json:"writes,omitempty"`
}

// NewTold returns a memory of the last limit exchanges.
func NewTold(limit int) *Told { return &Told{limit: limit, by: map[record.ID]told{}} }

func (t *Told) put(id record.ID, owner bigquery.Owner, e Exchange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.by[id]; !ok {
		if len(t.order) < t.limit {
			t.order = append(t.order, id)
		} else {
			delete(t.by, t.order[t.next])
			t.order[t.next] = id
			t.next = (t.next + 1) % t.limit
		}
	}
	t.by[id] = told{owner, e}
}

func (t *Told) get(id record.ID, owner bigquery.Owner) (Exchange, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.by[id]
	if !ok || e.owner != owner {
		return Exchange{}, false
	}
	return e.Exchange, true
}

// answered notes what the caller was answered.
func (g *Gate) answered(p *plan, id record.ID, status int) {
	if p.identity == nil || g.Told == nil {
		return
	}
	g.Told.put(id, ownerOf(p.identity), Exchange{
		ID: id.String(), At: p.request.received.UTC(), Method: p.call.Method, Session: p.session, Job: p.call.Job,
		Status: status, Decision: p.decision, Reads: p.call.Reads, Writes: p.call.Writes,
	})
}
