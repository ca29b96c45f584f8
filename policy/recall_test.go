package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// everything is an input with no field empty.
func everything() *Input {
	in := &Input{}
	fill(reflect.ValueOf(in).Elem())
	in.Time = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	in.SQL.Text = "SELECT `a.b`.c FROM d -- x"
	in.SQL.Parameters = json.RawMessage(`[{"name":"p"}]`)
	return in
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	}
}

// TestLeavesAreTheInput: a field that the digest forgot would let one input have
// another's decision.
func TestLeavesAreTheInput(t *testing.T) {
	in := everything()
	v, err := in.value(in.scan())
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	deeper := []string{"sql.facts", "sql.dry_run"} // each part of these is a leaf
	var walk func(at string, o ast.Object)
	walk = func(at string, o ast.Object) {
		o.Foreach(func(k, v *ast.Term) {
			name := at + string(k.Value.(ast.String))
			if o, ok := v.Value.(ast.Object); ok && (!strings.Contains(name, ".") || slices.Contains(deeper, name)) {
				walk(name+".", o)
				return
			}
			want = append(want, name)
		})
	}
	walk("", v.(ast.Object))
	want = slices.DeleteFunc(want, func(s string) bool { return s == "version" })
	var got []string
	for _, l := range leaves {
		got = append(got, l.path)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("leaves\n%s\nthe input has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestEachFieldCounts changes one field after another: wherever the policy's
// input changes, the digest of everything does.
func TestEachFieldCounts(t *testing.T) {
	r := newRecall(uses{all: true})
	digestOf := func(in *Input) string {
		s, ok := r.digest(in, in.scan())
		if !ok {
			t.Fatal("no digest")
		}
		return fmt.Sprintf("%x", s)
	}
	textOf := func(in *Input) string {
		v, err := in.value(in.scan())
		if err != nil {
			t.Fatal(err)
		}
		return v.String()
	}
	base, baseText := digestOf(everything()), textOf(everything())
	if digestOf(everything()) != base {
		t.Fatal("the same input has two digests")
	}
	changed := 0
	try := func(name string, change func(*Input)) {
		in := everything()
		change(in)
		if textOf(in) == baseText {
			t.Errorf("%s: the policy would not see the change", name)
		}
		if digestOf(in) == base {
			t.Errorf("%s does not count", name)
		}
		changed++
	}
	var walk func(path string, index []int, v reflect.Type)
	walk = func(path string, index []int, typ reflect.Type) {
		for i := range typ.NumField() {
			f, at := typ.Field(i), append(slices.Clone(index), i)
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			field := func(in *Input) reflect.Value {
				v := reflect.ValueOf(in).Elem()
				for _, i := range at {
					v = v.Field(i)
					if v.Kind() == reflect.Pointer {
						v = v.Elem()
					}
				}
				return v
			}
			name := path + f.Name
			switch ft.Kind() {
			case reflect.Struct:
				if ft == reflect.TypeFor[time.Time]() {
					try(name, func(in *Input) { in.Time = in.Time.Add(time.Second) })
					continue
				}
				walk(name+".", at, ft)
			case reflect.String:
				try(name, func(in *Input) { field(in).SetString(field(in).String() + "y") })
				try(name+" empty", func(in *Input) { field(in).SetString("") })
			case reflect.Bool:
				try(name, func(in *Input) { field(in).SetBool(!field(in).Bool()) })
			}
		}
	}
	walk("", nil, reflect.TypeFor[Input]())
	try("groups", func(in *Input) { in.Caller.Groups = []string{"x", "x"} })
	try("groups split otherwise", func(in *Input) { in.Caller.Groups = []string{"xx"} })
	try("actors", func(in *Input) { in.Caller.OnBehalfOf = nil })
	try("actor", func(in *Input) { in.Caller.OnBehalfOf = []Actor{{Issuer: "xx"}} })
	try("labels", func(in *Input) { in.Asserted.Labels = map[string]string{"k": "w"} })
	try("label's key", func(in *Input) { in.Asserted.Labels = map[string]string{"kv": ""} })
	try("parameters", func(in *Input) { in.SQL.Parameters = json.RawMessage(`[{"name":"q"}]`) })
	try("no parameters", func(in *Input) { in.SQL.Parameters = nil })
	try("no SQL", func(in *Input) { in.SQL = nil })
	try("words", func(in *Input) { in.SQL.Text = strings.Replace(in.SQL.Text, "FROM d", "FROM d, d", 1) })
	try("names", func(in *Input) { in.SQL.Text = strings.Replace(in.SQL.Text, "`a.b`", "`a.bb`", 1) })
	try("problem", func(in *Input) { in.SQL.Text += "\n(" })
	table := reflect.TypeFor[Table]()
	for list, of := range map[string]func(*Input) *[]Table{
		"reads":          func(in *Input) *[]Table { return &in.Reads },
		"writes":         func(in *Input) *[]Table { return &in.Writes },
		"dry_run.tables": func(in *Input) *[]Table { return &in.SQL.DryRun.Tables },
	} {
		for i := range table.NumField() {
			name, field := list+"."+table.Field(i).Name, func(in *Input) reflect.Value { return reflect.ValueOf(&(*of(in))[0]).Elem().Field(i) }
			switch table.Field(i).Type.Kind() {
			case reflect.String:
				try(name, func(in *Input) { field(in).SetString("y") })
			case reflect.Bool:
				try(name, func(in *Input) { field(in).SetBool(true) })
			case reflect.Slice:
				try(name, func(in *Input) { field(in).Set(reflect.ValueOf([]string{"y"})) })
			default:
				t.Errorf("%s is of a kind that this test does not know", name)
			}
		}
		try("no "+list, func(in *Input) { *of(in) = nil })
	}
	for name, change := range map[string]func(*Input){
		"window.of":         func(in *Input) { in.Usage.Windows[0].Of = "y" },
		"window.seconds":    func(in *Input) { in.Usage.Windows[0].Seconds++ },
		"window.queries":    func(in *Input) { in.Usage.Windows[0].Queries++ },
		"window.bytes":      func(in *Input) { in.Usage.Windows[0].Bytes++ },
		"window.rows":       func(in *Input) { in.Usage.Windows[0].Rows++ },
		"no windows":        func(in *Input) { in.Usage.Windows = nil },
		"incomplete":        func(in *Input) { in.Incomplete = nil },
		"no facts":          func(in *Input) { in.SQL.Facts = nil },
		"no problem":        func(in *Input) { in.SQL.Facts.Problem = nil },
		"problem.line":      func(in *Input) { in.SQL.Facts.Problem.Line++ },
		"problem.column":    func(in *Input) { in.SQL.Facts.Problem.Column++ },
		"statement.kind":    func(in *Input) { in.SQL.Facts.Statements[0].Kind = "y" },
		"statement.line":    func(in *Input) { in.SQL.Facts.Statements[0].Line++ },
		"statement.column":  func(in *Input) { in.SQL.Facts.Statements[0].Column++ },
		"statement.depth":   func(in *Input) { in.SQL.Facts.Statements[0].Depth++ },
		"function.name":     func(in *Input) { in.SQL.Facts.Functions[0].Name = "y" },
		"function.kind":     func(in *Input) { in.SQL.Facts.Functions[0].Kind = "y" },
		"function.defined":  func(in *Input) { in.SQL.Facts.Functions[0].Defined = true },
		"function.language": func(in *Input) { in.SQL.Facts.Functions[0].Language = "y" },
		"external.kind":     func(in *Input) { in.SQL.Facts.Externals[0].Kind = "y" },
		"external.value":    func(in *Input) { in.SQL.Facts.Externals[0].Value = "y" },
		"external.access":   func(in *Input) { in.SQL.Facts.Externals[0].Access = "y" },
		"opaque":            func(in *Input) { in.SQL.Facts.Opaque = nil },
		"temporary":         func(in *Input) { in.SQL.Facts.Temporary = nil },
		"no dry run":        func(in *Input) { in.SQL.DryRun = nil },
		"dry_run.routines":  func(in *Input) { in.SQL.DryRun.Routines = nil },
		"no target":         func(in *Input) { in.SQL.DryRun.Target = nil },
		"dry_run.bytes":     func(in *Input) { in.SQL.DryRun.BytesProcessed++ },
		"only_parser":       func(in *Input) { in.SQL.DryRun.OnlyParser = nil },
		"only_dry_run":      func(in *Input) { in.SQL.DryRun.OnlyDryRun = nil },
	} {
		try(name, change)
	}
	if changed < 130 {
		t.Errorf("only %d changes were tried", changed)
	}
	if _, ok := r.digest(&Input{SQL: &SQL{Parameters: json.RawMessage(`[`)}}, &words{}); ok {
		t.Error("parameters that are no JSON have a digest")
	}
}

func TestUsesOfTheInput(t *testing.T) {
	e := newEngine(t, Config{})
	seen := map[string]bool{}
	for _, l := range e.Current().recall.leaves {
		seen[l.path] = true
	}
	for path, want := range map[string]bool{
		"time": true, "caller.groups": true, "caller.subject": true, "connection.name": true, "request.method": true, "request.destination": true,
		"sql.words": true, "sql.names": true, "sql.legacy": true, "sql.problem": true,
		"sql.text": false, "sql.parameters": false, "asserted.user_agent": false, "asserted.labels": false, "request.path": false, "request.http_method": false,
	} {
		if seen[path] != want {
			t.Errorf("the default rules refer to %s: %v, want %v", path, seen[path], want)
		}
	}
	for rule, want := range map[string][]string{
		`input.caller.subject == "a"`:                   {"caller.subject"},
		`input.caller.groups[0] == "a"`:                 {"caller.groups"},
		`some g in input.caller.groups; g == "a"`:       {"caller.groups"},
		`input.asserted.labels.team == "a"`:             {"asserted.labels"},
		`field := "table"; input.request[field] == "a"`: {"request.dataset", "request.table"},
		`x := input.request; x.table == "a"`:            {"request.dataset", "request.table"},
		`data.names[input.connection.name]`:             {"connection.name"},
		`not input.sql`:                                 {"sql.text", "sql.words"},
		`part := "connection"; input[part].name == "a"`: {"connection.name", "asserted.model", "time"},
		`whole := input; whole.caller.subject == "a"`:   {"connection.name", "asserted.model", "time"},
		`f(input)`:                      {"connection.name", "asserted.model", "time"},
		`walk(input, [_, v]); v == "a"`: {"connection.name", "asserted.model", "time"},
		`object.get(input, ["caller", "subject"], "") == ""`: {"connection.name", "asserted.model", "time"},
		`g with input.caller.subject as "b"`:                 {"caller.subject", "caller.email"},
		`g with input as {"caller": {"email": "b"}}`:         {"caller.subject", "connection.name", "time"},
		`{x | x := input.caller.groups[_]} == {"a"}`:         {"caller.groups"},
		`input["caller"]["subject"] == "a"`:                  {"caller.subject"},
	} {
		files := fixed(`{"allow": true, "reasons": [], "limits": {"maximum_bytes_billed": 0}, "labels": {}}`)
		files["more.rego"] = "package more\n\nf(x) if x.caller.subject == \"a\"\n\ng if input.caller.email == \"b\"\n\nfound if { " + strings.ReplaceAll(rule, "; ", "\n") + " }\n"
		files["data.json"] = `{"names": {"a": true}}`
		e, err := New(context.Background(), Config{Dir: dirWith(t, files)})
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		seen := map[string]bool{}
		for _, l := range e.Current().recall.leaves {
			seen[l.path] = true
		}
		for _, path := range want {
			if !seen[path] {
				t.Errorf("%s refers to %s", rule, path)
			}
		}
		if all := slices.Contains(want, "time"); all != (len(seen) == len(leaves)) {
			t.Errorf("%s refers to %d of %d parts of the input", rule, len(seen), len(leaves))
		}
	}
}

// ticking is a policy that allows in even seconds, and says who asked.
const ticking = `package verbatim.policy

even if time.clock(time.parse_rfc3339_ns(input.time))[2] % 2 == 0

decision := {"allow": true, "reasons": [{"code": "even", "message": concat("", ["for ", input.caller.subject])}], "limits": {"maximum_bytes_billed": 7}, "labels": {"who": lower(substring(concat("", ["x", input.caller.subject]), 1, 3))}} if even

decision := {"allow": false, "reasons": [{"code": "odd", "message": concat("", ["for ", input.caller.subject])}], "limits": {"maximum_bytes_billed": 0}, "labels": {}} if not even
`

func TestRecalledDecisionsAreThoseOfTheRules(t *testing.T) {
	dir := dirWith(t, map[string]string{"p.rego": ticking})
	e := newEngine(t, Config{Dir: dir})
	ask := func(who string, at time.Time) *Decision {
		t.Helper()
		in := rowsInput()
		in.Time, in.Caller.Subject = at, who
		d, err := e.Decide(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	at := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	first := ask("ada", at)
	first.Allow, first.Reasons[0].Code, first.Labels["who"] = false, "spoilt", "nobody"
	for i := range 20 {
		at := at.Add(time.Duration(i) * 300 * time.Millisecond)
		for _, who := range []string{"ada", "bob"} {
			d := ask(who, at)
			if even := at.Second()%2 == 0; d.Allow != even || d.Reasons[0].Message != "for "+who || even && d.Labels["who"] != who {
				t.Errorf("%s at %s: %+v", who, at, d)
			}
		}
	}
	r := e.Current().recall
	if n := len(r.young); n != 12 { // 6 seconds, two callers
		t.Errorf("%d decisions are remembered, want 12", n)
	}
	writeDir(t, dir, map[string]string{"p.rego": strings.ReplaceAll(ticking, "== 0", "== 1")})
	if changed, err := e.Reload(t.Context()); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if d := ask("ada", at); d.Allow {
		t.Error("the new policy has the old one's decision")
	}
	if e.Current().recall == r {
		t.Error("the new revision has the old one's memory")
	}
}

func TestOnlyDecisionsAreRecalled(t *testing.T) {
	e := newEngine(t, Config{Dir: dirWith(t, map[string]string{"p.rego": `package verbatim.policy

decision := {"allow": true, "reasons": [], "limits": {"maximum_bytes_billed": 0}, "labels": {}} if input.caller.subject != "nobody"
`})})
	in := rowsInput()
	in.Caller.Subject = "nobody"
	for range 3 {
		_, err := e.Decide(t.Context(), in)
		var refused *Error
		if !errors.As(err, &refused) || refused.Code != CodeUndefined {
			t.Errorf("error %v", err)
		}
	}
	if n := len(e.Current().recall.young); n != 0 {
		t.Errorf("%d decisions are remembered", n)
	}
	for n := range 2*maxRecalled + 10 {
		in.Caller.Subject = fmt.Sprint(n % (maxRecalled + 5))
		if _, err := e.Decide(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	if r := e.Current().recall; len(r.young) > maxRecalled || len(r.old) > maxRecalled {
		t.Errorf("%d and %d decisions are remembered", len(r.young), len(r.old))
	}
}

func TestEvaluatorsAreBounded(t *testing.T) {
	e := newEvaluators(2)
	var mu sync.Mutex
	running, most := 0, 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if !e.do(t.Context(), func() {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				running--
				mu.Unlock()
			}) {
				t.Error("not done")
			}
		})
	}
	wg.Wait()
	if most > 2 {
		t.Errorf("%d ran at once", most)
	}
	hold := make(chan struct{})
	for range 2 {
		wg.Go(func() { e.do(t.Context(), func() { <-hold }) })
	}
	for len(e.slots) < 2 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond) // both have begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if e.do(ctx, func() { t.Error("ran after its context ended") }) {
		t.Error("done without a free goroutine")
	}
	close(hold)
	wg.Wait()
	func() {
		defer func() {
			if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "broken") {
				t.Errorf("the panic did not reach the caller: %v", p)
			}
		}()
		e.do(t.Context(), func() { panic("broken") })
	}()
	if !e.do(t.Context(), func() {}) {
		t.Error("a panic took the goroutine with it")
	}
}
