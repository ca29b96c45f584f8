package search

import (
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// Filter says which exchanges are wanted: those that fit everything that is
// set. Names may hold "*" for any run of characters and are compared without
// regard to case.
type Filter struct {
	// Since and Until bound the time of the request, Until excluded.
	Since, Until time.Time

	Principal  string // subject, e-mail, ISSUER/SUBJECT, or a subject on whose behalf the call was made
	Group      string // as qualified by its issuer, or the part after the slash
	Repository string // of the verified provenance
	Commit     string // or the beginning of it
	Project    string
	// Table is text within the called table's name, the name of a table that was
	// read or written, through a view or as a wildcard's part too, or the SQL.
	Table      string
	SQL        string // text within the SQL
	Decision   string // "allow", "deny" or "would_deny"
	Reason     string // code
	Job        string // ID, or as PROJECT:LOCATION.ID
	Session    string
	Connection string
	Method     string // "bigquery.jobs.query" or "jobs.query"
}

// content reports whether the filter asks for what is sealed.
func (f *Filter) content() bool {
	c := *f
	c.Since, c.Until = time.Time{}, time.Time{}
	return c != Filter{}
}

// inTime compares the time alone.
func (f *Filter) inTime(t time.Time) bool {
	return (f.Since.IsZero() || !t.Before(f.Since)) && (f.Until.IsZero() || t.Before(f.Until))
}

// begun compares what is known with the intent. What it refuses, no outcome
// can make fit.
func (f *Filter) begun(x *Exchange) bool {
	return f.inTime(x.Time) &&
		(f.Principal == "" || principal(f.Principal, x.Principal)) &&
		(f.Group == "" || group(f.Group, x.Principal)) &&
		(f.Repository == "" || x.Provenance != nil && like(f.Repository, x.Provenance.Repository)) &&
		(f.Commit == "" || x.Provenance != nil && hasPrefix(x.Provenance.Commit, f.Commit)) &&
		(f.Project == "" || like(f.Project, x.Project)) &&
		(f.Table == "" || table(f.Table, x) || mayReadMore(x)) &&
		(f.SQL == "" || contains(x.SQL, f.SQL)) &&
		(f.Session == "" || like(f.Session, x.Session)) &&
		(f.Connection == "" || like(f.Connection, x.Connection)) &&
		(f.Method == "" || like(f.Method, x.Method) || like("bigquery."+f.Method, x.Method)) &&
		(f.Decision == "" || x.Decision != nil && decided(f.Decision, x.Decision)) &&
		(f.Reason == "" || reason(f.Reason, x.Decision))
}

// ended compares what only the outcome knows.
func (f *Filter) ended(x *Exchange) bool {
	if f.Table != "" && !table(f.Table, x) {
		return false
	}
	return f.Job == "" || x.Job != nil && (like(f.Job, x.Job.ID) || like(f.Job, x.Job.String()))
}

// Fits reports whether an exchange of which all is known fits.
func (f *Filter) Fits(x *Exchange) bool { return f.begun(x) && f.ended(x) }

// Content reports whether the filter asks for what is sealed, so that nobody
// can say whether an exchange fits that cannot be read.
func (f *Filter) Content() bool { return f.content() }

func principal(want string, p *record.Principal) bool {
	if p == nil {
		return false
	}
	if like(want, p.Subject) || p.Email != "" && like(want, p.Email) || like(want, p.Issuer+"/"+p.Subject) {
		return true
	}
	for _, a := range p.OnBehalfOf {
		if like(want, a.Subject) {
			return true
		}
	}
	return false
}

func group(want string, p *record.Principal) bool {
	if p == nil {
		return false
	}
	for _, g := range p.Groups {
		_, bare, ok := strings.Cut(g, "/")
		if like(want, g) || ok && like(want, bare) {
			return true
		}
	}
	return false
}

func reason(want string, d *Decision) bool {
	if d == nil {
		return false
	}
	for _, r := range d.Reasons {
		if like(want, r.Code) {
			return true
		}
	}
	return false
}

func decided(want string, d *Decision) bool {
	switch want {
	case "allow":
		return d.Allow
	case "would_deny":
		return d.WouldDeny
	}
	return !d.Allow
}

func table(want string, x *Exchange) bool {
	bare := func(s string) string { return strings.ReplaceAll(s, "`", "") }
	want = bare(want)
	if contains(x.Project+"."+x.Dataset+"."+x.Table, want) || contains(bare(x.SQL), want) {
		return true
	}
	return slices.ContainsFunc(x.Reads, func(u record.TableUse) bool { return uses(u.Table, want) }) ||
		slices.ContainsFunc(x.Writes, func(u record.TableUse) bool { return uses(u.Table, want) })
}

// uses reports whether a table that was used is the wanted one: by a part of its
// name, or as one of those that a wildcard stands for.
func uses(used, want string) bool {
	if contains(used, want) {
		return true
	}
	prefix, wild := strings.CutSuffix(used, "*")
	if !wild {
		return false
	}
	// The wanted name may leave the project out, or the dataset too.
	for {
		if len(want) >= len(prefix) && hasPrefix(want, prefix) {
			return prefix != ""
		}
		_, rest, more := strings.Cut(prefix, ".")
		if !more {
			return false
		}
		prefix = rest
	}
}

// mayReadMore reports whether the outcome may name tables that the intent does
// not: the gateway then asks for the finished job's.
func mayReadMore(x *Exchange) bool {
	return slices.ContainsFunc(x.Reads, func(u record.TableUse) bool { return u.Source == "dry_run" }) || strings.HasSuffix(x.Method, ".getQueryResults")
}

func contains(s, part string) bool {
	return strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

func hasPrefix(s, part string) bool {
	return strings.HasPrefix(strings.ToLower(s), strings.ToLower(part))
}

// like compares a name with a pattern in which "*" stands for any characters.
func like(pattern, s string) bool {
	pattern, s = strings.ToLower(pattern), strings.ToLower(s)
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}
