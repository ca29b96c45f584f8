package authoring

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"verbatim.dev/policy"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// Grant is a draft for the default policy's data. Its fields are those of
// policy/README.md.
type Grant struct {
	Description string            `json:"description"`
	Match       map[string]string `json:"match"`
	Connections []string          `json:"connections,omitempty"`
	Projects    []string          `json:"projects,omitempty"`
	Read        []string          `json:"read,omitempty"`
	Write       []string          `json:"write,omitempty"`
	Scratch     []string          `json:"scratch,omitempty"`
	Admin       []string          `json:"admin,omitempty"`
	Functions   []string          `json:"functions,omitempty"`
	Allow       []string          `json:"allow,omitempty"`
	Limits      map[string]int64  `json:"limits,omitempty"`
}

// Draft is what the records of a time suggest.
type Draft struct {
	Grants map[string]*Grant `json:"grants"`
	// Notes say what the draft leaves out, and why.
	Notes []string `json:"-"`
	Stats Stats    `json:"-"`
}

// wholeDataset is from how many tables of a dataset on the draft lists the
// dataset.
const wholeDataset = 8

// Suggest drafts the least grants that let what was let: a grant for each
// workload or person, with the tables that it used. What was denied is not in it,
// unless the mode observe let it pass.
func Suggest(ctx context.Context, c search.Config, since, until time.Time) (*Draft, error) {
	d := &Draft{Grants: map[string]*Grant{}}
	all := map[string]*seen{}
	var err error
	d.Stats.Unreadable, err = Each(ctx, c, since, until, func(_ record.ID, r Recorded) error {
		d.Stats.Exchanges++
		v := &r.Intent.Verbatim
		if !v.Decision.Allow || v.Decision.By != "policy" {
			d.Stats.Others++
			return nil
		}
		in, err := Input(ctx, r, nil)
		if err != nil {
			d.Stats.Unfit++
			return ctx.Err()
		}
		match := matchOf(in)
		key := fmt.Sprint(match)
		s := all[key]
		if s == nil {
			s = newSeen(match)
			all[key] = s
		}
		s.add(in, r)
		d.Stats.Decided++
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		s := all[key]
		name := s.name()
		for n := 2; d.Grants[name] != nil; n++ {
			name = fmt.Sprintf("%.58s-%d", s.name(), n)
		}
		var notes []string
		d.Grants[name], notes = s.grant()
		for _, note := range notes {
			d.Notes = append(d.Notes, name+": "+note)
		}
	}
	return d, nil
}

// matchOf is the narrowest match that stays the same from run to run.
func matchOf(in *policy.Input) map[string]string {
	m := map[string]string{"issuer": in.Caller.Issuer}
	p := in.Provenance
	switch {
	case p.Repository != "":
		m["repository"] = p.Repository
		if p.Ref != "" {
			m["ref"] = p.Ref
		}
	case p.Namespace != "":
		m["namespace"] = p.Namespace
		if p.ServiceAccount != "" {
			m["service_account"] = p.ServiceAccount
		}
	case p.SPIFFE != "":
		m["spiffe_id"] = p.SPIFFE
	case strings.Contains(p.ServiceAccount, "@"):
		m["service_account"] = p.ServiceAccount
	default:
		m["subject"] = in.Caller.Subject
	}
	return m
}

type seen struct {
	match                     map[string]string
	requests, queries         int64
	callers                   map[string]bool
	first, last               time.Time
	connections, projects     map[string]bool
	read, write, scratch      map[string]int64 // PROJECT.DATASET.TABLE, or a dataset
	admin                     map[string]int64
	functions, allow, unknown map[string]int64
	bytes                     int64
}

func newSeen(match map[string]string) *seen {
	return &seen{
		match: match, callers: map[string]bool{}, connections: map[string]bool{}, projects: map[string]bool{},
		read: map[string]int64{}, write: map[string]int64{}, scratch: map[string]int64{}, admin: map[string]int64{},
		functions: map[string]int64{}, allow: map[string]int64{}, unknown: map[string]int64{},
	}
}

// The kinds of writes that need no more than write.
var plainWrites = map[string]bool{"target": true, "truncate": true, "load": true, "copy": true, "destination": true}

// What a statement or a thing that hides tables needs in allow.
var (
	statementNames = map[string]string{
		"EXPORT_DATA": "EXPORT DATA", "EXPORT_MODEL": "EXPORT DATA", "LOAD_DATA": "LOAD DATA", "EXECUTE_IMMEDIATE": "EXECUTE IMMEDIATE", "CALL": "CALL",
		"CREATE_EXTERNAL_TABLE": "EXTERNAL", "CREATE_MODEL": "MODEL", "GRANT": "GRANT", "REVOKE": "REVOKE",
	}
	opaqueNames = map[string]string{"dynamic_sql": "EXECUTE IMMEDIATE", "call": "CALL", "script_body": "LANGUAGE", "set_system": "SET", "graph": "GRAPH"}
)

func (s *seen) add(in *policy.Input, r Recorded) {
	s.requests++
	s.callers[in.Caller.Issuer+"/"+in.Caller.Subject] = true
	if s.first.IsZero() || in.Time.Before(s.first) {
		s.first = in.Time
	}
	if in.Time.After(s.last) {
		s.last = in.Time
	}
	s.connections[in.Connection.Name] = true
	if in.Request.Project != "" {
		s.projects[in.Request.Project] = true
	}
	if in.Request.JobType == "extract" {
		s.allow["EXPORT DATA"]++
	}
	for _, t := range in.Reads {
		switch {
		case strings.HasPrefix(t.Dataset, "_"):
		case t.InformationSchema != "" && t.Dataset == "":
			s.allow["JOBS"]++
		default:
			s.read[pattern(t)]++
		}
	}
	for _, t := range in.Writes {
		switch {
		case t.Table == "":
			s.admin[pattern(t)]++
		case plainWrites[t.As]:
			s.write[pattern(t)]++
		case in.Request.Method == "bigquery.tabledata.insertAll":
			s.write[pattern(t)]++
		default:
			s.scratch[pattern(t)]++
		}
	}
	if r.Outcome != nil && r.Outcome.Verbatim.Processed != nil {
		s.bytes = max(s.bytes, *r.Outcome.Verbatim.Processed)
	}
	if in.SQL == nil {
		return
	}
	s.queries++
	f := in.SQL.Facts
	if f.Problem != nil && in.SQL.DryRun == nil {
		s.unknown["texts that are not understood"]++
		return
	}
	for _, st := range f.Statements {
		if name := statementNames[st.Kind]; name != "" {
			s.allow[name]++
		}
	}
	for _, o := range f.Opaque {
		if name := opaqueNames[o]; name != "" {
			s.allow[name]++
			if name != "SET" {
				s.unknown["texts with "+name+", which hide tables"]++
			}
		}
	}
	for _, fn := range f.Functions {
		switch {
		case fn.Kind == "external_query":
			s.allow["EXTERNAL_QUERY"]++
		case fn.Kind == "builtin" || fn.Kind == "temporary" || fn.Defined:
		default:
			s.functions[fn.Name]++
		}
	}
	if in.SQL.DryRun != nil {
		for _, name := range in.SQL.DryRun.Routines {
			s.functions[name]++
		}
	}
}

func pattern(t policy.Table) string {
	if t.Table == "" {
		return t.Project + "." + t.Dataset
	}
	return t.Project + "." + t.Dataset + "." + t.Table
}

// name is a grant's name of the match.
func (s *seen) name() string {
	text := cmp.Or(s.match["repository"], s.match["namespace"]+"-"+s.match["service_account"])
	if s.match["repository"] == "" && s.match["namespace"] == "" {
		text = cmp.Or(s.match["spiffe_id"], s.match["service_account"], s.match["subject"])
	}
	text = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(text))
	text = strings.Trim(text, "-")
	if text == "" || text[0] < 'a' || text[0] > 'z' {
		text = "g-" + text
	}
	return strings.TrimRight(fmt.Sprintf("%.60s", text), "-")
}

func (s *seen) grant() (*Grant, []string) {
	g := &Grant{
		Description: fmt.Sprintf("drafted from %d requests (%d with SQL) of %d callers, %s to %s",
			s.requests, s.queries, len(s.callers), s.first.UTC().Format(time.DateOnly), s.last.UTC().Format(time.DateOnly)),
		Match: s.match, Connections: slices.Sorted(maps.Keys(s.connections)), Projects: slices.Sorted(maps.Keys(s.projects)),
		Allow: slices.Sorted(maps.Keys(s.allow)), Functions: slices.Sorted(maps.Keys(s.functions)),
	}
	evidence := func(list map[string]int64) (out []string) {
		short := gather(list)
		out = slices.Sorted(maps.Keys(short))
		for _, p := range out {
			g.Description += fmt.Sprintf("; %s %d", p, short[p])
		}
		return out
	}
	covered := func(list map[string]int64, by ...map[string]int64) map[string]int64 {
		out := maps.Clone(list)
		for _, other := range by {
			maps.DeleteFunc(out, func(p string, _ int64) bool {
				_, whole := other[p]
				_, dataset := other[p[:max(strings.LastIndexByte(p, '.'), 0)]]
				return whole || dataset
			})
		}
		return out
	}
	scratch := datasets(s.scratch)
	g.Scratch = evidence(covered(scratch, s.admin))
	g.Admin = evidence(s.admin)
	g.Read = evidence(covered(s.read, scratch, s.admin))
	g.Write = evidence(covered(s.write, scratch, s.admin))
	if s.bytes > 0 {
		// Twice what was seen, so that tomorrow's larger table passes too.
		g.Limits = map[string]int64{"maximum_bytes_billed": max(2*s.bytes, 1<<30)}
	}
	if len(g.Read)+len(g.Write)+len(g.Scratch)+len(g.Admin) == 0 && len(g.Projects) > 0 {
		g.Read = []string{g.Projects[0] + ".none"}
		return g, []string{"no table was used: read lists a dataset that is not there, so that the grant is sound"}
	}
	var notes []string
	for _, what := range slices.Sorted(maps.Keys(s.unknown)) {
		notes = append(notes, fmt.Sprintf("%d %s: look at them before you grant", s.unknown[what], what))
	}
	return g, notes
}

// datasets are the datasets of tables: scratch is granted over whole ones.
func datasets(list map[string]int64) map[string]int64 {
	out := map[string]int64{}
	for p, n := range list {
		out[p[:strings.LastIndexByte(p, '.')]] += n
	}
	return out
}

// gather lists a dataset in the place of many of its tables.
func gather(list map[string]int64) map[string]int64 {
	out, tables := map[string]int64{}, map[string][]string{}
	for p, n := range list {
		if strings.Count(p, ".") < 2 {
			out[p] += n
			continue
		}
		dataset := p[:strings.LastIndexByte(p, '.')]
		tables[dataset] = append(tables[dataset], p)
	}
	for dataset, names := range tables {
		for _, p := range names {
			if _, whole := list[dataset]; whole || len(names) >= wholeDataset {
				out[dataset] += list[p]
			} else {
				out[p] += list[p]
			}
		}
	}
	return out
}
