package sql

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A case of testdata/facts. Its facts are written by hand from BigQuery's
// reference; nothing here rewrites them.
type factCase struct {
	file, title, sql, want string
	line                   int
	options                Options
}

// readCases reads testdata/facts/*.txt, see its README.
func readCases(t testing.TB) []factCase {
	t.Helper()
	files, err := filepath.Glob("testdata/facts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	var out []factCase
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		line := 1
		for _, block := range strings.Split(string(b), "\n====\n") {
			begin := line
			line += strings.Count(block, "\n") + 2
			if strings.TrimSpace(block) == "" {
				continue
			}
			text, want, ok := strings.Cut(block, "\n----\n")
			if !ok {
				t.Fatalf("%s:%d: no line of four dashes", file, begin)
			}
			c := factCase{file: filepath.Base(file), line: begin, options: Options{Project: "p", Dataset: "d"}, want: strings.TrimSpace(want)}
			head, sql, ok := strings.Cut(text, "\n")
			if !ok || !strings.HasPrefix(head, "// ") {
				t.Fatalf("%s:%d: the first line is no // title", file, begin)
			}
			c.title, c.sql = strings.TrimPrefix(head, "// "), sql
			if title, opts, ok := strings.Cut(c.title, " | "); ok {
				c.title = title
				for _, o := range strings.Fields(opts) {
					switch k, v, _ := strings.Cut(o, "="); k {
					case "nodataset":
						c.options.Dataset = ""
					case "temporary":
						c.options.Temporary = strings.Split(v, ",")
					case "dataset":
						c.options.DatasetProject, c.options.Dataset, _ = strings.Cut(v, ".")
					case "escaped":
						if c.sql, err = strconv.Unquote(`"` + strings.ReplaceAll(sql, "\n", `\n`) + `"`); err != nil {
							t.Fatalf("%s:%d: %v", file, begin, err)
						}
					default:
						t.Fatalf("%s:%d: no such option: %s", file, begin, o)
					}
				}
			}
			out = append(out, c)
		}
	}
	return out
}

// render writes facts as testdata/facts does.
func render(f *Facts) string {
	var b strings.Builder
	put := func(key string, items []string) {
		if len(items) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", key, strings.Join(items, " "))
		}
	}
	if p := f.Problem; p != nil {
		mark := ""
		if p.Fallback {
			mark = "!"
		}
		put("p", []string{fmt.Sprintf("%s%s %d:%d", p.Code, mark, p.Line, p.Column)})
		return strings.TrimSpace(b.String()) // no facts are promised with a problem
	}
	var items []string
	for _, s := range f.Statements {
		items = append(items, s.Kind+strings.Repeat("+", s.Depth))
	}
	put("s", items)
	tables := func(l []Table) (items []string) {
		for _, t := range l {
			name := Name{Project: t.Project, Dataset: t.Dataset, Table: t.Table, InformationSchema: t.InformationSchema, Region: t.Region}.String()
			cols := "(" + strings.Join(t.Columns, ",") + ")"
			if t.AllColumns {
				cols = "(*)"
			}
			if t.As != "from" {
				name = t.As + ":" + name
			}
			if t.Object != "table" {
				cols = "#" + t.Object
			}
			if t.TimeTravel {
				cols += "@"
			}
			items = append(items, name+cols)
		}
		return items
	}
	put("r", tables(f.Reads))
	put("w", tables(f.Writes))
	items = nil
	for _, fn := range f.Functions {
		s := fn.Name
		if fn.Kind != "builtin" {
			s += "/" + fn.Kind
		}
		if fn.Defined {
			s += "/defined/" + fn.Language
		}
		items = append(items, s)
	}
	put("f", items)
	items = nil
	for _, e := range f.Externals {
		items = append(items, e.Access+":"+e.Kind+":"+strings.ReplaceAll(e.Value, " ", "_"))
	}
	put("x", items)
	put("o", f.Opaque)
	put("t", f.Temporary)
	if f.QueryLabel {
		b.WriteString("label\n")
	}
	return strings.TrimSpace(b.String())
}

func TestFacts(t *testing.T) {
	cases := readCases(t)
	if len(cases) < 300 {
		t.Errorf("%d cases, want 300 at least", len(cases))
	}
	seen := map[string]string{}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s:%d %s", c.file, c.line, c.title), func(t *testing.T) {
			key := c.sql + fmt.Sprint(c.options)
			if before, ok := seen[key]; ok {
				t.Errorf("the same text as %s", before)
			}
			seen[key] = c.title
			f := Analyze(context.Background(), c.sql, c.options)
			if got := render(f); got != c.want {
				t.Errorf("%s:%d\n%s\n got:\n%s\nwant:\n%s", c.file, c.line, c.sql, got, c.want)
			}
		})
	}
}
