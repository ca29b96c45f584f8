package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// A decision follows from the input and the policy's files alone: the builtins
// that are offered have no other source. So a revision remembers its decisions
// by a digest of what its rules can see of the input, and asks the rules again
// only for an input that they would see as another. The time is in whole
// seconds, and counts like everything else where the rules refer to it. A new
// revision remembers nothing.

// maxRecalled is how many decisions each of two generations holds.
const maxRecalled = 2048

type sum = [sha256.Size]byte

// recall holds decisions. It is safe for concurrent use.
type recall struct {
	leaves []leaf // of the input, that the rules refer to

	mu         sync.Mutex
	young, old map[sum]*Decision
}

func newRecall(u uses) *recall {
	r := &recall{young: map[sum]*Decision{}}
	for _, l := range leaves {
		if u.see(l.path) {
			r.leaves = append(r.leaves, l)
		}
	}
	return r
}

func (r *recall) get(s sum) *Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.young[s]
	if d == nil {
		if d = r.old[s]; d == nil {
			return nil
		}
		r.add(s, d)
	}
	return d.clone()
}

func (r *recall) put(s sum, d *Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(s, d.clone())
}

// add needs the mutex.
func (r *recall) add(s sum, d *Decision) {
	if len(r.young) >= maxRecalled {
		r.old, r.young = r.young, make(map[sum]*Decision, maxRecalled)
	}
	r.young[s] = d
}

func (d *Decision) clone() *Decision {
	c := *d
	c.Reasons, c.Labels = slices.Clone(d.Reasons), maps.Clone(d.Labels)
	return &c
}

// digest sums up what the rules can see of the input. It reports false for one
// that only an evaluation can say what is wrong with.
func (r *recall) digest(in *Input, w *words) (sum, bool) {
	if in.SQL != nil && len(in.SQL.Parameters) > 0 && !json.Valid(in.SQL.Parameters) {
		return sum{}, false
	}
	d := digests.Get().(*digest)
	defer digests.Put(d)
	d.b = d.b[:0]
	for i := range r.leaves {
		r.leaves[i].put(d, in, w)
	}
	return sha256.Sum256(d.b), true
}

// digest is the text that is summed up: each part with its length in front, so
// that no two inputs give the same.
type digest struct {
	b    []byte
	keys []string
}

var digests = sync.Pool{New: func() any { return &digest{} }}

func (d *digest) count(n int) { d.b = binary.AppendUvarint(d.b, uint64(n)) }

func (d *digest) number(n int64) { d.b = binary.AppendVarint(d.b, n) }

func (d *digest) text(s string) {
	d.count(len(s))
	d.b = append(d.b, s...)
}

func (d *digest) flag(v bool) {
	if v {
		d.b = append(d.b, 1)
	} else {
		d.b = append(d.b, 0)
	}
}

func (d *digest) texts(list []string) {
	d.count(len(list))
	for _, s := range list {
		d.text(s)
	}
}

func (d *digest) counts(m map[string]int) {
	d.sort(len(m), maps.Keys(m))
	for _, k := range d.keys {
		d.text(k)
		d.count(m[k])
	}
}

func (d *digest) sort(n int, keys func(func(string) bool)) {
	d.count(n)
	d.keys = slices.AppendSeq(d.keys[:0], keys)
	slices.Sort(d.keys)
}

// leaf is a part of the input that a policy can refer to.
type leaf struct {
	path string
	put  func(*digest, *Input, *words)
}

func textLeaf(path string, of func(*Input) string) leaf {
	return leaf{path, func(d *digest, in *Input, _ *words) { d.text(of(in)) }}
}

func flagLeaf(path string, of func(*Input) bool) leaf {
	return leaf{path, func(d *digest, in *Input, _ *words) { d.flag(of(in)) }}
}

// sqlLeaf is one that is there only with SQL.
func sqlLeaf(path string, put func(*digest, *SQL, *words)) leaf {
	return leaf{path, func(d *digest, in *Input, w *words) {
		d.flag(in.SQL != nil)
		if in.SQL != nil {
			put(d, in.SQL, w)
		}
	}}
}

// seconds is the time as a policy sees it.
func seconds(t time.Time) string { return t.UTC().Truncate(time.Second).Format(time.RFC3339) }

// leaves are all parts of the input; a test holds them to [Input.value].
var leaves = append([]leaf{
	textLeaf("time", func(in *Input) string { return seconds(in.Time) }),
	textLeaf("caller.issuer", func(in *Input) string { return in.Caller.Issuer }),
	textLeaf("caller.issuer_url", func(in *Input) string { return in.Caller.IssuerURL }),
	textLeaf("caller.subject", func(in *Input) string { return in.Caller.Subject }),
	textLeaf("caller.email", func(in *Input) string { return in.Caller.Email }),
	{"caller.groups", func(d *digest, in *Input, _ *words) { d.texts(in.Caller.Groups) }},
	{"caller.on_behalf_of", func(d *digest, in *Input, _ *words) {
		d.count(len(in.Caller.OnBehalfOf))
		for _, a := range in.Caller.OnBehalfOf {
			d.text(a.Issuer)
			d.text(a.Subject)
		}
	}},
	textLeaf("provenance.profile", func(in *Input) string { return in.Provenance.Profile }),
	textLeaf("provenance.pipeline", func(in *Input) string { return in.Provenance.Pipeline }),
	textLeaf("provenance.repository", func(in *Input) string { return in.Provenance.Repository }),
	textLeaf("provenance.ref", func(in *Input) string { return in.Provenance.Ref }),
	textLeaf("provenance.commit", func(in *Input) string { return in.Provenance.Commit }),
	textLeaf("provenance.workflow", func(in *Input) string { return in.Provenance.Workflow }),
	textLeaf("provenance.run", func(in *Input) string { return in.Provenance.Run }),
	textLeaf("provenance.actor", func(in *Input) string { return in.Provenance.Actor }),
	textLeaf("provenance.environment", func(in *Input) string { return in.Provenance.Environment }),
	textLeaf("provenance.namespace", func(in *Input) string { return in.Provenance.Namespace }),
	textLeaf("provenance.pod", func(in *Input) string { return in.Provenance.Pod }),
	textLeaf("provenance.service_account", func(in *Input) string { return in.Provenance.ServiceAccount }),
	textLeaf("provenance.spiffe_id", func(in *Input) string { return in.Provenance.SPIFFE }),
	textLeaf("asserted.user_agent", func(in *Input) string { return in.Asserted.UserAgent }),
	{"asserted.labels", func(d *digest, in *Input, _ *words) {
		d.sort(len(in.Asserted.Labels), maps.Keys(in.Asserted.Labels))
		for _, k := range d.keys {
			d.text(k)
			d.text(in.Asserted.Labels[k])
		}
	}},
	textLeaf("asserted.request_reason", func(in *Input) string { return in.Asserted.RequestReason }),
	textLeaf("asserted.agent", func(in *Input) string { return in.Asserted.Agent }),
	textLeaf("asserted.model", func(in *Input) string { return in.Asserted.Model }),
	textLeaf("asserted.conversation", func(in *Input) string { return in.Asserted.Conversation }),
	textLeaf("asserted.tool_call", func(in *Input) string { return in.Asserted.ToolCall }),
	textLeaf("connection.name", func(in *Input) string { return in.Connection.Name }),
	textLeaf("connection.location", func(in *Input) string { return in.Connection.Location }),
	textLeaf("connection.recording", func(in *Input) string { return in.Connection.Recording }),
	textLeaf("connection.retention", func(in *Input) string { return in.Connection.Retention }),
	textLeaf("request.method", func(in *Input) string { return in.Request.Method }),
	textLeaf("request.kind", func(in *Input) string { return in.Request.Kind }),
	textLeaf("request.http_method", func(in *Input) string { return in.Request.HTTPMethod }),
	textLeaf("request.path", func(in *Input) string { return in.Request.Path }),
	textLeaf("request.project", func(in *Input) string { return in.Request.Project }),
	textLeaf("request.dataset", func(in *Input) string { return in.Request.Dataset }),
	textLeaf("request.table", func(in *Input) string { return in.Request.Table }),
	textLeaf("request.job", func(in *Input) string { return in.Request.Job }),
	flagLeaf("request.dry_run", func(in *Input) bool { return in.Request.DryRun }),
	textLeaf("request.job_type", func(in *Input) string { return in.Request.JobType }),
	textLeaf("request.destination", func(in *Input) string { return in.Request.Destination }),
	textLeaf("request.default_dataset", func(in *Input) string { return in.Request.DefaultDataset }),
	flagLeaf("request.external_tables", func(in *Input) bool { return in.Request.ExternalTables }),
	sqlLeaf("sql.text", func(d *digest, q *SQL, _ *words) { d.text(q.Text) }),
	sqlLeaf("sql.legacy", func(d *digest, q *SQL, w *words) { d.flag(q.Legacy || w.legacy) }),
	sqlLeaf("sql.parameters", func(d *digest, q *SQL, _ *words) { d.text(string(q.Parameters)) }),
	sqlLeaf("sql.words", func(d *digest, _ *SQL, w *words) { d.counts(w.count) }),
	sqlLeaf("sql.names", func(d *digest, _ *SQL, w *words) { d.counts(w.names) }),
	sqlLeaf("sql.statements", func(d *digest, _ *SQL, w *words) { d.texts(w.statements) }),
	sqlLeaf("sql.problem", func(d *digest, _ *SQL, w *words) { d.text(w.problem) }),
}, factLeaves...)

// uses are the paths under which rules refer to the input; all is for a rule
// that takes the input as a whole, or a part of it that is not known before.
type uses struct {
	paths map[string]bool
	all   bool
}

// usesOf looks at every rule there is: more than the decision depends on, never
// less.
func usesOf(c *ast.Compiler) uses {
	u := uses{paths: map[string]bool{}}
	var look func(x any)
	look = func(x any) {
		ast.WalkTerms(x, func(t *ast.Term) bool {
			switch v := t.Value.(type) {
			case ast.Var:
				u.all = u.all || v.Equal(ast.InputRootDocument.Value)
			case ast.Ref:
				if !v[0].Equal(ast.InputRootDocument) {
					return false
				}
				u.add(v[1:])
				for _, part := range v[1:] { // the head has been dealt with
					look(part)
				}
				return true
			}
			return false
		})
	}
	for _, m := range c.Modules {
		for _, r := range m.Rules {
			look(r)
		}
	}
	return u
}

func (u *uses) add(ref ast.Ref) {
	var parts []string
	for _, t := range ref {
		s, ok := t.Value.(ast.String)
		if !ok || strings.Contains(string(s), ".") {
			break
		}
		parts = append(parts, string(s))
	}
	if len(parts) == 0 {
		u.all = true
		return
	}
	u.paths[strings.Join(parts, ".")] = true
}

// see reports whether a rule refers to the path, to a part of it, or to what it
// is a part of.
func (u *uses) see(path string) bool {
	if u.all {
		return true
	}
	for p := range u.paths {
		if p == path || strings.HasPrefix(p, path+".") || strings.HasPrefix(path, p+".") {
			return true
		}
	}
	return false
}
