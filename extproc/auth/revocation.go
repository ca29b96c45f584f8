package auth

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

const (
	maxRevocations = 16 << 20 // bytes of the file
)

// Revocations is a deny list of tokens, by issuer and jti, and of subjects. It is
// immutable and safe for concurrent use.
type Revocations struct {
	file     string
	entries  []entry
	tokens   map[[2]string]string // issuer (name or URL) and jti to the reason
	subjects map[[2]string]string
}

type entry struct {
	line      int
	token     bool
	issuer    string
	id        string
	reasonTxt string
}

// LoadRevocations reads the list from a YAML file:
//
//	tokens:
//	  - {issuer: corp, id: "4f1c...", reason: "leaked in a build log"}
//	subjects:
//	  - {issuer: https://token.example.com, subject: mallory}
//
// issuer is a configured name or a URL; reason is optional. Errors have the form
// file:line: what and what to do. An empty file is an error: a list cut short by a
// failing write would set everybody free.
func LoadRevocations(file string) (*Revocations, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRevocations+1))
	if err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	if len(b) > maxRevocations {
		return nil, fmt.Errorf("%s:1: larger than %d bytes; take out tokens that have expired", file, maxRevocations)
	}
	return parseRevocations(file, b)
}

func parseRevocations(file string, b []byte) (*Revocations, error) {
	r := &Revocations{file: file}
	at := func(n ast.Node, format string, args ...any) error {
		line := 1
		if n != nil && n.GetToken() != nil && n.GetToken().Position != nil {
			line = n.GetToken().Position.Line
		}
		return fmt.Errorf("%s:%d: %s", file, line, fmt.Sprintf(format, args...))
	}
	doc, err := parser.ParseBytes(b, 0)
	if err != nil {
		line := 1
		what := "not YAML"
		var ye yaml.Error
		if errors.As(err, &ye) {
			what += ": " + ye.GetMessage()
			if t := ye.GetToken(); t != nil && t.Position != nil {
				line = t.Position.Line
			}
		}
		return nil, fmt.Errorf("%s:%d: %s", file, line, what)
	}
	if len(doc.Docs) > 1 {
		return nil, at(doc.Docs[1].Body, "a second document; want one")
	}
	if len(doc.Docs) == 0 || doc.Docs[0].Body == nil {
		return nil, fmt.Errorf("%s:1: the file is empty; write {tokens: [], subjects: []} to revoke nothing", file)
	}
	top, err := members(doc.Docs[0].Body, at, "tokens", "subjects")
	if err != nil {
		return nil, err
	}
	for _, section := range []string{"tokens", "subjects"} {
		node, ok := top[section]
		if !ok || node.Type() == ast.NullType {
			continue
		}
		list, ok := node.(*ast.SequenceNode)
		if !ok {
			return nil, at(node, "%s: want a list", section)
		}
		what := "id"
		if section == "subjects" {
			what = "subject"
		}
		for _, n := range list.Values {
			m, err := members(n, at, "issuer", what, "reason")
			if err != nil {
				return nil, err
			}
			e := entry{line: n.GetToken().Position.Line, token: section == "tokens"}
			for name, to := range map[string]*string{"issuer": &e.issuer, what: &e.id, "reason": &e.reasonTxt} {
				v, ok := m[name]
				if !ok {
					if name == "reason" {
						continue
					}
					return nil, at(n, "%s: an entry has no %s", section, name)
				}
				s, ok := scalar(v)
				if !ok || s == "" {
					return nil, at(v, "%s: %s: want a string that is not empty (quote numbers)", section, name)
				}
				*to = s
			}
			e.line = lineOf(m["issuer"], e.line)
			r.entries = append(r.entries, e)
		}
	}
	r.index(nil)
	return r, nil
}

func lineOf(n ast.Node, def int) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return def
	}
	return n.GetToken().Position.Line
}

func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	}
	return "", false
}

// members returns the values of a mapping that has only the given keys, each once.
func members(n ast.Node, at func(ast.Node, string, ...any) error, keys ...string) (map[string]ast.Node, error) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return nil, at(n, "want a mapping with %s", strings.Join(keys, ", "))
	}
	m := map[string]ast.Node{}
	for _, v := range values {
		key, ok := scalar(v.Key)
		if !ok || !slices.Contains(keys, key) {
			return nil, at(v.Key, "unknown key; want %s", strings.Join(keys, ", "))
		}
		if _, ok := m[key]; ok {
			return nil, at(v.Key, "%s occurs twice", key)
		}
		m[key] = v.Value
	}
	return m, nil
}

func (r *Revocations) index(urls map[string]string) {
	r.tokens, r.subjects = map[[2]string]string{}, map[[2]string]string{}
	for _, e := range r.entries {
		to, what := r.subjects, "the subject is revoked"
		if e.token {
			to, what = r.tokens, "the token is revoked"
		}
		if e.reasonTxt != "" {
			what += ": " + e.reasonTxt
		}
		to[[2]string{e.issuer, e.id}] = what
		if u, ok := urls[e.issuer]; ok {
			to[[2]string{u, e.id}] = what
		}
	}
}

// For resolves the names of issuers against those of v, so that a subject revoked
// by its issuer's name is found in act chains too, where issuers are URLs. An entry
// whose issuer v does not know is an error: it would revoke nothing.
func (r *Revocations) For(v *Verifier) (*Revocations, error) {
	names := v.Issuers()
	for _, e := range r.entries {
		if v.tokens != nil && e.token && e.issuer == v.tokens.issuer {
			continue
		}
		if _, ok := names[e.issuer]; !ok && v.byURL[e.issuer] == nil {
			return nil, fmt.Errorf("%s:%d: no issuer with the name or URL %q is configured; correct it, for this entry revokes nothing", r.file, e.line, e.issuer)
		}
	}
	bound := &Revocations{file: r.file, entries: r.entries}
	bound.index(names)
	return bound, nil
}

// Len is the number of entries.
func (r *Revocations) Len() int {
	if r == nil {
		return 0
	}
	return len(r.entries)
}

// Revoked reports whether id is on the list, and why: its token, its subject, or a
// subject of its act chain. An actor without an issuer is one of the token's issuer.
// A nil list revokes nobody.
func (r *Revocations) Revoked(id *Identity) (reason string, ok bool) {
	if r == nil {
		return "", false
	}
	p := &id.Principal
	if id.MintedBy != "" {
		if reason, ok := r.tokens[[2]string{id.MintedBy, p.GatewayToken}]; ok {
			return reason, true
		}
	}
	for _, issuer := range []string{p.Issuer, p.URL} {
		if p.TokenID != "" {
			if reason, ok := r.tokens[[2]string{issuer, p.TokenID}]; ok {
				return reason, true
			}
		}
		if reason, ok := r.subjects[[2]string{issuer, p.Subject}]; ok {
			return reason, true
		}
	}
	for _, a := range p.OnBehalfOf {
		issuers := []string{a.Issuer}
		if a.Issuer == "" || a.Issuer == p.URL {
			issuers = []string{p.Issuer, p.URL}
		}
		for _, issuer := range issuers {
			if reason, ok := r.subjects[[2]string{issuer, a.Subject}]; ok {
				return "an actor of the token: " + reason, true
			}
		}
	}
	return "", false
}

// Check is Revoked as an *Error with the code Revoked, or nil.
func (r *Revocations) Check(id *Identity) error {
	if reason, ok := r.Revoked(id); ok {
		return refuse(Revoked, reason)
	}
	return nil
}
