package policy

import (
	"slices"
	"strings"
	"testing"

	"verbatim.dev/policy/sql"
)

// TestNobodyAllowsWhatIsNotUnderstood: a policy that allows all is held to what
// the analysis says.
func TestNobodyAllowsWhatIsNotUnderstood(t *testing.T) {
	hard := &sql.Problem{Code: "syntax", Message: "the word\nFOO is unexpected", Line: 3, Column: 7}
	soft := &sql.Problem{Code: "unsupported", Message: "CREATE SNAPSHOT is beyond the parser", Line: 1, Column: 1, Fallback: true}
	whole := &DryRun{Complete: true, Tables: []Table{{Project: "p", Dataset: "d", Table: "t"}}}
	always := newEngine(t, Config{Dir: dirWith(t, fixed(allowAll))})
	never := newEngine(t, Config{Dir: dirWith(t, fixed(denyAll))})
	asking := newEngine(t, Config{Dir: dirWith(t, map[string]string{"p.rego": `package verbatim.policy

decision := {"allow": false, "dry_run": true, "reasons": [{"code": "no", "message": "no"}], "limits": {"maximum_bytes_billed": 0}, "labels": {}} if {
	input.sql
	not input.sql.dry_run
} else := {"allow": true, "reasons": [], "limits": {"maximum_bytes_billed": 0}, "labels": {}}
`})})
	for _, c := range []struct {
		name    string
		engine  *Engine
		problem *sql.Problem
		run     *DryRun
		allow   bool
		ask     bool
		code    string
	}{
		{"no problem", always, nil, nil, true, false, ""},
		{"a problem", always, hard, nil, false, false, CodeUnreadable},
		{"a problem with a dry run", always, hard, whole, false, false, CodeUnreadable},
		{"a problem, and the rules ask", asking, hard, nil, false, false, CodeUnreadable},
		{"a problem that a dry run may solve", always, soft, nil, false, true, CodeUnreadable},
		{"the same, and the rules ask", asking, soft, nil, false, true, "no"},
		{"the same with a dry run", always, soft, whole, true, false, ""},
		{"the same with half a dry run", always, soft, &DryRun{}, false, false, CodeUnreadable},
		{"the same with a refusal", always, soft, &DryRun{Complete: true, Error: "no"}, false, false, CodeUnreadable},
		{"the rules deny", never, hard, nil, false, false, "no"},
		{"the rules deny what a dry run may solve", never, soft, nil, false, false, "no"},
	} {
		for _, again := range []bool{false, true} { // from memory the second time
			in := queryInput("SELECT 1")
			in.SQL.Facts, in.SQL.DryRun = &sql.Facts{Source: sql.SourceParser, Problem: c.problem}, c.run
			d, err := c.engine.Decide(t.Context(), in)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			code := ""
			if len(d.Reasons) > 0 {
				code = d.Reasons[0].Code
			}
			if d.Allow != c.allow || d.DryRun != c.ask || code != c.code {
				t.Errorf("%s (again: %v): %+v", c.name, again, d)
			}
			if !d.Allow && c.engine == always && c.problem == hard && !strings.Contains(d.Reasons[0].Message, "the word FOO is unexpected, at 3:7") {
				t.Errorf("%s: %q does not name the place", c.name, d.Reasons[0].Message)
			}
		}
	}
}

func TestDryRunIsAskedForOnce(t *testing.T) {
	files := map[string]string{"p.rego": `package verbatim.policy

# The samples get no: a policy that asked twice would not load.
decision := {"allow": false, "dry_run": ask, "reasons": [{"code": "no", "message": "no"}], "limits": {"maximum_bytes_billed": 0}, "labels": {}}

default ask := false

ask if input.caller.subject == "ann"
`}
	e := newEngine(t, Config{Dir: dirWith(t, files)})
	in := queryInput("SELECT 1")
	if d, err := e.Decide(t.Context(), in); err != nil || !d.DryRun {
		t.Errorf("%+v, %v", d, err)
	}
	in.SQL.DryRun = &DryRun{}
	if _, err := e.Decide(t.Context(), in); err == nil || !strings.Contains(err.Error(), "there is one already") {
		t.Errorf("a second dry run: %v", err)
	}
	if _, err := e.Decide(t.Context(), rowsInput()); err == nil || !strings.Contains(err.Error(), "there is no SQL") {
		t.Errorf("a dry run of nothing: %v", err)
	}
	files["p.rego"] = strings.Replace(files["p.rego"], `"ann"`, `"sample"`, 1)
	if _, err := New(t.Context(), Config{Dir: dirWith(t, files)}); err == nil || !strings.Contains(err.Error(), "dry_run") {
		t.Errorf("a policy that asks always: %v", err)
	}
}

func TestWindows(t *testing.T) {
	files := fixed(denyAll)
	for windows, want := range map[string]string{
		`[{"of": "run", "seconds": 60}, {"of": "principal", "seconds": 3600}, {"of": "run", "seconds": 60}]`: "",
		`[]`:                              "",
		`{}`:                              "not an array",
		`[{"of": "team", "seconds": 60}]`: "principal",
		`[{"of": "run", "seconds": 0}]`:   "above 0",
		`[{"of": "run", "seconds": 1.5}]`: "whole number",
		`[{"of": "run"}]`:                 "seconds",
		`[w | some i in numbers.range(1, 65); w := {"of": "run", "seconds": i}]`: "more than 64",
	} {
		files["prepare.rego"] = "package verbatim.prepare\n\nwindows := " + windows + "\n"
		e, err := New(t.Context(), Config{Dir: dirWith(t, files)})
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", windows, err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Current().Windows(); windows != "[]" && !slices.Equal(got, []Window{{"principal", 3600}, {"run", 60}}) {
			t.Errorf("windows %v", got)
		}
	}
}
