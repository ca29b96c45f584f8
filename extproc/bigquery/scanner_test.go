package bigquery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
)

// reference extracts the same facts from a whole body with encoding/json.
func reference(body []byte) (ResponseFacts, bool) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil || dec.More() {
		return ResponseFacts{}, false
	}
	var f ResponseFacts
	f.Complete = true
	root, _ := v.(map[string]any)
	at := func(path ...string) any {
		var cur any = root
		for _, p := range path {
			m, ok := cur.(map[string]any)
			if !ok {
				return nil
			}
			cur = m[p]
		}
		return cur
	}
	scalar := func(v any) (string, bool) {
		switch v := v.(type) {
		case string:
			return v, true
		case json.Number:
			return string(v), len(v) <= maxNumeral
		case bool:
			return strconv.FormatBool(v), true
		}
		return "", false
	}
	text := func(path ...string) string { s, _ := scalar(at(path...)); return s }
	integer := func(paths ...[]string) *int64 {
		for _, p := range paths {
			if s, ok := scalar(at(p...)); ok {
				if i, err := strconv.ParseInt(s, 10, 64); err == nil {
					return &i
				}
			}
		}
		return nil
	}
	boolean := func(paths ...[]string) *bool {
		for _, p := range paths {
			if s, ok := scalar(at(p...)); ok && (s == "true" || s == "false") {
				b := s == "true"
				return &b
			}
		}
		return nil
	}
	errorsOf := func(v any) []ErrorFact {
		a, ok := v.([]any)
		if !ok {
			return nil
		}
		var out []ErrorFact
		for _, e := range a {
			m, _ := e.(map[string]any)
			reason, _ := scalar(m["reason"])
			message, _ := scalar(m["message"])
			if len(out) < maxErrors {
				out = append(out, ErrorFact{Reason: reason, Message: message})
			}
		}
		return out
	}
	if _, ok := at("jobReference").(map[string]any); ok {
		f.Job = &record.Job{Project: text("jobReference", "projectId"), ID: text("jobReference", "jobId"), Location: text("jobReference", "location")}
	}
	if _, ok := at("configuration", "query", "destinationTable").(map[string]any); ok {
		p := func(k string) string { return text("configuration", "query", "destinationTable", k) }
		f.Destination = &Table{Project: p("projectId"), Dataset: p("datasetId"), Table: p("tableId")}
	}
	if a, ok := at("rows").([]any); ok {
		f.HasRows, f.Rows = true, int64(len(a))
	}
	if a, ok := at("insertErrors").([]any); ok {
		f.InsertErrors = len(a)
	}
	f.TotalRows = integer([]string{"totalRows"})
	f.Processed = integer([]string{"totalBytesProcessed"}, []string{"statistics", "totalBytesProcessed"})
	f.Billed = integer([]string{"totalBytesBilled"}, []string{"statistics", "query", "totalBytesBilled"})
	f.CacheHit = boolean([]string{"cacheHit"}, []string{"statistics", "query", "cacheHit"})
	f.Affected = integer([]string{"numDmlAffectedRows"}, []string{"statistics", "query", "numDmlAffectedRows"})
	f.JobComplete = boolean([]string{"jobComplete"})
	f.PageToken = text("pageToken") != ""
	f.QueryID = text("queryId")
	if f.Statement = text("statementType"); f.Statement == "" {
		f.Statement = text("statistics", "query", "statementType")
	}
	if f.SessionID = text("sessionInfo", "sessionId"); f.SessionID == "" {
		f.SessionID = text("statistics", "sessionInfo", "sessionId")
	}
	f.Arrow = at("arrowSchema") != nil || at("arrowRecordBatch") != nil
	f.State = text("status", "state")
	f.ParentJob = text("statistics", "parentJobId")
	if m, ok := at("status", "errorResult").(map[string]any); ok {
		reason, _ := scalar(m["reason"])
		message, _ := scalar(m["message"])
		f.ErrorResult = &ErrorFact{Reason: reason, Message: message}
	}
	if i := integer([]string{"error", "code"}); i != nil {
		f.ErrorCode = int(*i)
	}
	f.ErrorMessage = text("error", "message")
	for _, p := range [][]string{{"errors"}, {"error", "errors"}, {"status", "errors"}} {
		if e := errorsOf(at(p...)); e != nil {
			f.Errors = e
		}
	}
	return f, true
}

func scan(body []byte, size func() int) ResponseFacts {
	var s Scanner
	for len(body) > 0 {
		n := min(size(), len(body))
		s.Write(body[:n])
		body = body[n:]
	}
	return s.Facts()
}

func equalFacts(t *testing.T, got, want ResponseFacts, body []byte) {
	t.Helper()
	if len(got.Errors) == 0 && len(want.Errors) == 0 {
		got.Errors, want.Errors = nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		t.Fatalf("got\n%s\nwant\n%s\nof %.2000s", g, w, body)
	}
}

// generator makes answers that hold known keys among others, in any order.
type generator struct{ r *rand.Rand }

func (g *generator) text() string {
	pieces := []string{"a", "longer text here", "\"", "\\", "\\\"", "\n", "\u0000", "é", "𝄞", "{", "}", "[", "]", ",", ":", "</", "\u2028", "123", "null", "rows"}
	var b strings.Builder
	for range g.r.IntN(6) {
		b.WriteString(pieces[g.r.IntN(len(pieces))])
	}
	if g.r.IntN(40) == 0 {
		b.WriteString(strings.Repeat("xyz\\", 300))
	}
	return b.String()
}

func (g *generator) any(depth int) any {
	switch n := g.r.IntN(9); {
	case n < 3:
		return g.text()
	case n == 3:
		return g.r.IntN(1000)
	case n == 4:
		return g.r.IntN(2) == 0
	case n == 5:
		return nil
	case n == 6:
		return -1.5e-7
	case depth == 0:
		return []any{}
	case n == 7:
		a := []any{}
		for range g.r.IntN(4) {
			a = append(a, g.any(depth-1))
		}
		return a
	default:
		m := map[string]any{}
		for range g.r.IntN(4) {
			m[g.text()] = g.any(depth - 1)
		}
		return m
	}
}

func (g *generator) fill(n *scanNode, depth int) any {
	if g.r.IntN(12) == 0 {
		return g.any(2)
	}
	switch {
	case n.keys != nil:
		m := map[string]any{}
		for k, sub := range n.keys {
			if g.r.IntN(3) > 0 {
				m[k] = g.fill(sub, depth+1)
			}
		}
		for range g.r.IntN(3) {
			m[g.text()] = g.any(3)
		}
		if depth == 0 { // what stands in two places has no winner in a map
			for _, k := range []string{"totalBytesProcessed", "totalBytesBilled", "cacheHit", "statementType", "sessionInfo", "numDmlAffectedRows", "errors"} {
				if g.r.IntN(2) == 0 || m["statistics"] != nil || m["status"] != nil || m["error"] != nil {
					delete(m, k)
				}
			}
			if m["status"] != nil {
				delete(m, "error")
			}
		}
		return m
	case n.each != nil:
		a := []any{}
		for range g.r.IntN(14) {
			if n.elem != nil {
				a = append(a, g.fill(n.elem, depth+1))
			} else {
				a = append(a, map[string]any{"f": []any{map[string]any{"v": g.any(2)}, map[string]any{"v": g.text()}}})
			}
		}
		return a
	default:
		switch g.r.IntN(5) {
		case 0:
			return g.text()
		case 1:
			return strconv.Itoa(g.r.IntN(1 << 40))
		case 2:
			return g.r.IntN(1 << 40)
		case 3:
			return g.r.IntN(2) == 0
		default:
			return nil
		}
	}
}

func TestScannerAgainstJSON(t *testing.T) {
	for seed := range uint64(3000) {
		g := &generator{rand.New(rand.NewPCG(seed, 1))}
		v := g.fill(answer, 0)
		var body []byte
		if seed%2 == 0 {
			body, _ = json.Marshal(v)
		} else {
			body, _ = json.MarshalIndent(v, "", "  ")
		}
		if _, object := v.(map[string]any); !object {
			continue
		}
		want, ok := reference(body)
		if !ok {
			t.Fatalf("generated no JSON: %s", body)
		}
		one := scan(body, func() int { return 1 })
		equalFacts(t, one, want, body)
		whole := scan(body, func() int { return len(body) })
		equalFacts(t, whole, want, body)
		limit := 1 << g.r.IntN(21)
		random := scan(body, func() int { return 1 + g.r.IntN(limit) })
		equalFacts(t, random, want, body)
	}
}

func TestScannerGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/answers/*.json")
	if len(files) < 6 {
		t.Fatalf("%d answers in testdata", len(files))
	}
	for _, name := range files {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got := scan(body, func() int { return 7 })
		want, ok := reference(body)
		if !ok {
			t.Fatalf("%s is no JSON", name)
		}
		equalFacts(t, got, want, body)
		b, _ := json.MarshalIndent(got, "", "  ")
		b = append(b, '\n')
		golden := strings.TrimSuffix(name, ".json") + ".golden"
		if *update {
			if err := os.WriteFile(golden, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if w, _ := os.ReadFile(golden); !bytes.Equal(b, w) {
			t.Errorf("%s: got\n%s", name, b)
		}
	}
}

func TestScannerEdges(t *testing.T) {
	for _, c := range []struct {
		body  string
		check func(ResponseFacts) bool
	}{
		{``, func(f ResponseFacts) bool { return !f.Complete && !f.Malformed }},
		{`{"rows":[`, func(f ResponseFacts) bool { return f.HasRows && !f.Complete }},
		{`{"rows":[{"f":[]},{"f":`, func(f ResponseFacts) bool { return f.Rows == 2 && !f.Complete }},
		{`{} `, func(f ResponseFacts) bool { return f.Complete }},
		{`{} x`, func(f ResponseFacts) bool { return f.Malformed && !f.Complete }},
		{`{"totalRows":"5"}{"totalRows":"6"}`, func(f ResponseFacts) bool { return f.Malformed && *f.TotalRows == 5 }},
		{`not json`, func(f ResponseFacts) bool { return f.Malformed }},
		{`<html>`, func(f ResponseFacts) bool { return f.Malformed }},
		{`[{"totalRows":"5"}]`, func(f ResponseFacts) bool { return f.Complete && f.TotalRows == nil }},
		{`{"totalRows":1e3,"jobComplete":"x","cacheHit":null}`, func(f ResponseFacts) bool { return f.TotalRows == nil && f.JobComplete == nil && f.CacheHit == nil }},
		{`{"total\u0052ows":"5"}`, func(f ResponseFacts) bool { return *f.TotalRows == 5 }},
		{`{"x":{"totalRows":"5","y":[[["]}\"\\"]]]},"totalRows":"6"}`, func(f ResponseFacts) bool { return *f.TotalRows == 6 }},
		{`{"pageToken":""}`, func(f ResponseFacts) bool { return !f.PageToken }},
		{`{"pageToken":"` + strings.Repeat("A", 100_000) + `","totalRows":"6"}`, func(f ResponseFacts) bool { return f.PageToken && *f.TotalRows == 6 }},
		{`{"` + strings.Repeat("k", 100_000) + `":1,"totalRows":"6"}`, func(f ResponseFacts) bool { return *f.TotalRows == 6 }},
		{`{"error":{"code":403,"message":"` + strings.Repeat("é", 50_000) + `"}}`, func(f ResponseFacts) bool {
			return f.ErrorCode == 403 && len(f.ErrorMessage) > maxText-4 && len(f.ErrorMessage) <= maxText && !strings.Contains(f.ErrorMessage, "\uFFFD")
		}},
		{`{"errors":[` + strings.Repeat(`{"message":"m","reason":"r"},`, 100) + `{"message":"last"}]}`, func(f ResponseFacts) bool {
			return len(f.Errors) == maxErrors && f.Errors[maxErrors-1] == ErrorFact{"r", "m"}
		}},
		{`{"rows":[],"rows":[1]}`, func(f ResponseFacts) bool { return f.Rows == 1 }},
		{`{"totalRows":` + strings.Repeat("9", 100_000) + `}`, func(f ResponseFacts) bool { return f.TotalRows == nil && f.Complete }},
	} {
		for _, size := range []int{1, 2, 3, 1 << 20} {
			if f := scan([]byte(c.body), func() int { return size }); !c.check(f) {
				t.Errorf("%.60s by %d: got %+v", c.body, size, f)
			}
		}
	}
	if f := scan([]byte(`{"status":{"errorResult":{"message":"no"}},"errors":[{"message":"x"}]}`), func() int { return 9 }); f.ErrorText() != "no" {
		t.Errorf("ErrorText is %q", f.ErrorText())
	}
	if size := reflect.TypeFor[Scanner]().Size(); size > 8<<10 {
		t.Errorf("a Scanner takes %d bytes", size)
	}
}

func FuzzScanner(f *testing.F) {
	files, _ := filepath.Glob("testdata/answers/*.json")
	for _, name := range files {
		b, _ := os.ReadFile(name)
		f.Add(b, uint8(3))
	}
	f.Add([]byte(`{"rows":[{"f":[{"v":"a\\\"b"}]}],"error":{"errors":[{"message":"\ud83d\ude00"}]}}`), uint8(1))
	f.Fuzz(func(t *testing.T, body []byte, size uint8) {
		by := scan(body, func() int { return int(size) + 1 })
		whole := scan(body, func() int { return len(body) })
		equalFacts(t, by, whole, body)
		root, _, ref := readJSON(body, anyShape) // strict: no duplicate keys, valid UTF-8, no lone surrogates
		if ref != nil || root.kind != nodeObject {
			return
		}
		want, ok := reference(body)
		if !ok {
			t.Fatalf("read by the strict reader only: %q", body)
		}
		// What stands in two places has no winner in the reference.
		for _, g := range []*ResponseFacts{&whole, &want} {
			g.Errors, g.Processed, g.Billed, g.CacheHit, g.Affected, g.Statement, g.SessionID = nil, nil, nil, nil, nil, "", ""
		}
		if len(body) < maxText { // no text is cut
			equalFacts(t, whole, want, body)
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	var compact bytes.Buffer
	compact.WriteString(`{"kind":"bigquery#getQueryResultsResponse","jobReference":{"projectId":"p","jobId":"j"},"totalRows":"100000","rows":[`)
	for i := range 20_000 {
		if i > 0 {
			compact.WriteByte(',')
		}
		fmt.Fprintf(&compact, `{"f":[{"v":"%d"},{"v":"name of row %d"},{"v":"user%d@example.com"},{"v":null},{"v":"1.7E9"}]}`, i, i, i)
	}
	compact.WriteString(`],"pageToken":"x","jobComplete":true}`)
	var pretty bytes.Buffer
	json.Indent(&pretty, compact.Bytes(), "", "  ")
	wide := []byte(`{"rows":[{"f":[{"v":"` + strings.Repeat("some longer text of a cell, ", 50_000) + `"}]}]}`)
	for name, body := range map[string][]byte{"compact": compact.Bytes(), "pretty": pretty.Bytes(), "wide": wide} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				var s Scanner
				for p := body; len(p) > 0; {
					n := min(64<<10, len(p))
					s.Write(p[:n])
					p = p[n:]
				}
				if f := s.Facts(); !f.Complete {
					b.Fatal("not complete")
				}
			}
		})
	}
}
