package server

import (
	"slices"

	"verbatim.dev/extproc/bigquery"
	"verbatim.dev/extproc/usage"
	"verbatim.dev/policy"
)

// Observed names callers whose denials by the policy are let through and put on
// record as such: every field that is not empty has to match.
type Observed struct {
	Issuer         string // the issuer's name in the configuration
	Subject        string
	Group          string // without its issuer
	Repository     string
	Namespace      string
	ServiceAccount string
}

// observes reports whether the policy only looks on. Who is calling, what
// belongs to whom, routes, SQL that is not understood and a policy that fails
// are no matter of the policy's: they deny as ever.
func (g *Gate) observes(p *plan) bool {
	if p.conn.Observe {
		return true
	}
	id := p.identity
	return slices.ContainsFunc(g.Observed, func(o Observed) bool {
		is := func(want, got string) bool { return want == "" || want == got }
		return o.Issuer == id.Principal.Issuer && is(o.Subject, id.Principal.Subject) &&
			(o.Group == "" || slices.Contains(id.Principal.Groups, o.Issuer+"/"+o.Group)) &&
			is(o.Repository, id.Provenance.Repository) && is(o.Namespace, id.Provenance.Namespace) &&
			is(o.ServiceAccount, id.Provenance.ServiceAccount)
	})
}

// Usage counts what principals and their runs use up, over time. Its methods
// may be called concurrently; they do not block on a disk.
type Usage interface {
	// Of returns what was used within each of the windows, never less than it
	// was. The ids are opaque.
	Of(principal, run string, windows []policy.Window) policy.Usage
	// Add counts what is used.
	Add(principal, run string, u usage.Use)
}

// windowed is a policy that has budgets.
type windowed interface{ Windows() []policy.Window }

// usage tells the rules what the caller has used up in the windows that they
// name.
func (g *Gate) usage(p *plan, in *policy.Input) {
	w, ok := g.Policy.(windowed)
	if !ok || g.Usage == nil {
		return
	}
	principal, run := g.spender(p)
	in.Usage = g.Usage.Of(principal, run, w.Windows())
}

// spender is under which names use is counted: of the principal, wherever it
// goes, and of its run.
func (g *Gate) spender(p *plan) (principal, run string) {
	return g.mac("verbatim/usage/1", p.identity.Principal.URL, p.identity.Principal.Subject), p.session
}

// spend counts a query before it runs.
func (g *Gate) spend(p *plan) {
	if g.Usage == nil || p.identity == nil || !p.queries() || p.facts.DryRun {
		return
	}
	principal, run := g.spender(p)
	g.Usage.Add(principal, run, usage.Use{Queries: 1})
}

// spent counts what an answer says that was used: rows that it brings, and what
// its job has processed so far.
func (g *Gate) spent(p *plan, f bigquery.ResponseFacts) {
	if g.Usage == nil {
		return
	}
	u := usage.Use{}
	if f.HasRows {
		u.Rows = f.Rows
	}
	job := f.Job
	if job == nil {
		job = p.call.Job
	}
	if !p.facts.DryRun && job != nil {
		for _, n := range []*int64{f.Processed, f.Billed} {
			if n != nil {
				u.Bytes = max(u.Bytes, *n)
			}
		}
		if f.CacheHit != nil && *f.CacheHit {
			u.Bytes = 0
		}
		u.Job = job.String()
	}
	if u.Rows == 0 && u.Bytes == 0 {
		return
	}
	principal, run := g.spender(p)
	g.Usage.Add(principal, run, u)
}
