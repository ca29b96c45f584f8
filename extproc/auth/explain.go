package auth

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Explanation says step by step what Verify makes of a token. Of a token that was
// refused it quotes iss, aud, alg and kid at most, never the token itself.
type Explanation struct {
	Steps    []Step
	Identity *Identity // nil where the token was refused
	Err      error     // the *Error of the refusal, or nil
}

// Step is one check. Detail is for a human.
type Step struct {
	Name   string
	OK     bool
	Detail string
}

// Explain is Verify with its steps. It stops at the first check that fails.
func (v *Verifier) Explain(ctx context.Context, token string) Explanation {
	tr := &trace{}
	id, err := v.verify(ctx, token, tr, nil)
	e := Explanation{Steps: tr.steps, Identity: id}
	if err != nil {
		e.Err = err
		if err.Code == IssuerUnknown {
			for _, is := range v.issuers {
				e.Steps = append(e.Steps, Step{Name: "configured", OK: true, Detail: fmt.Sprintf("%q, %s", is.Name, is.URL)})
			}
		}
	}
	return e
}

// WriteTo prints the explanation as lines of text.
func (e Explanation) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	for _, s := range e.Steps {
		mark := "ok  "
		if !s.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(&b, "%s  %-10s %s\n", mark, s.Name, s.Detail)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, "refused: %v\n", e.Err)
	}
	if id := e.Identity; id != nil {
		p, f := id.Principal, id.Provenance
		lines := [][2]string{
			{"issuer", p.Issuer + " " + p.URL}, {"subject", p.Subject}, {"email", p.Email}, {"token id", p.TokenID},
			{"profile", f.Profile}, {"pipeline", f.Pipeline}, {"repository", f.Repository}, {"ref", f.Ref}, {"commit", f.Commit},
			{"workflow", f.Workflow}, {"run", f.Run}, {"actor", f.Actor}, {"environment", f.Environment}, {"namespace", f.Namespace},
			{"pod", f.Pod}, {"account", f.ServiceAccount}, {"node", f.Node}, {"spiffe id", f.SPIFFE},
		}
		for _, g := range p.Groups {
			lines = append(lines, [2]string{"group", g})
		}
		for _, a := range p.OnBehalfOf {
			lines = append(lines, [2]string{"actor in act", strings.TrimSpace(a.Subject + " " + a.Issuer)})
		}
		lines = append(lines, [2]string{"session by", sessionBy(id)}, [2]string{"expires", id.Expires.UTC().Format(time.RFC3339)})
		b.WriteString("accepted as\n")
		for _, l := range lines {
			if l[1] != "" {
				fmt.Fprintf(&b, "      %-12s %s\n", l[0], l[1])
			}
		}
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func sessionBy(id *Identity) string {
	if id.Run == "" {
		return "UTC day: the token proves no run"
	}
	return "run " + id.Run
}

// trace collects steps. A nil trace collects none.
type trace struct{ steps []Step }

// step notes a check and says whether it failed. detail is not called without a
// trace, nor, but for the checks that compare with the configuration, on failure.
func (t *trace) step(name string, err *Error, detail func() string) (failed bool) {
	if t == nil {
		return err != nil
	}
	s := Step{Name: name, OK: err == nil}
	if err != nil {
		s.Detail = err.Message
	}
	if err == nil || slices.Contains([]string{"issuer", "audience", "algorithm"}, name) && err.Code != TokenMalformed {
		if s.Detail != "" {
			s.Detail += "; "
		}
		s.Detail += detail()
	}
	t.steps = append(t.steps, s)
	return err != nil
}

// show prints a claim of an unverified token: short, quoted, and no token itself.
func show(v any) string {
	switch v := v.(type) {
	case nil:
		return "not there"
	case string:
		return quote(v)
	case []any:
		var s []string
		for _, e := range v[:min(len(v), 8)] {
			s = append(s, show(e))
		}
		if len(v) > 8 {
			s = append(s, "...")
		}
		return "[" + strings.Join(s, " ") + "]"
	}
	return "no string"
}

func quote(s string) string {
	switch {
	case CredentialValue(s):
		return "(not shown: it holds a credential)"
	case len(s) > 200:
		return fmt.Sprintf("%q...", strings.ToValidUTF8(s[:200], ""))
	}
	return fmt.Sprintf("%q", s)
}
