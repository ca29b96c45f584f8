package bigquery

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
)

func callOf(t testing.TB, method, target string) Call {
	t.Helper()
	call, ref := Classify(Request{Method: method, Target: target})
	if ref != nil {
		t.Fatalf("%s %s: %s", method, target, ref.Message)
	}
	return call
}

func queryCall(t testing.TB) Call  { return callOf(t, "POST", "/bigquery/v2/projects/p/queries") }
func insertCall(t testing.TB) Call { return callOf(t, "POST", "/bigquery/v2/projects/p/jobs") }

func refusalOf(t *testing.T, err error) *Refusal {
	t.Helper()
	var r *Refusal
	if err != nil && !errors.As(err, &r) {
		t.Fatalf("error %v is no refusal", err)
	}
	return r
}

// TestParseBodyGolden reads bodies as clients send them. A file's first line
// is the request line.
func TestParseBodyGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/bodies/*.txt")
	if len(files) < 8 {
		t.Fatalf("%d bodies in testdata", len(files))
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		line, body, _ := bytes.Cut(b, []byte("\n"))
		method, target, _ := strings.Cut(string(line), " ")
		f, err := ParseBody(callOf(t, method, target), "application/json; charset=UTF-8", "", body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(f.Body, body) {
			t.Errorf("%s: Body is not the body", name)
		}
		f.Body = nil
		got, _ := json.MarshalIndent(f, "", "  ")
		got = append(got, '\n')
		golden := strings.TrimSuffix(name, ".txt") + ".golden"
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, _ := os.ReadFile(golden); !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s", name, got)
		}
	}
}

func TestParseBodyRefuses(t *testing.T) {
	const (
		q  = "POST /bigquery/v2/projects/p/queries"
		j  = "POST /bigquery/v2/projects/p/jobs"
		up = "POST /upload/bigquery/v2/projects/p/jobs?uploadType=multipart"
	)
	for _, c := range []struct{ request, body, code string }{
		{q, ``, "body_missing"},
		{q, `   `, "body_missing"},
		{q, `null`, "json_type"},
		{q, `[]`, "json_type"},
		{q, `"SELECT 1"`, "json_type"},
		{q, `{}`, "query_missing"},
		{q, `{"query":null}`, "query_missing"},
		{q, `{"query":""}`, "query_missing"},
		{q, `{"query":1}`, "json_type"},
		{q, `{"query":["SELECT 1"]}`, "json_type"},
		{q, `{"query":"SELECT 1"`, "json_syntax"},
		{q, `{"query":"SELECT 1"} {}`, "json_syntax"},
		{q, `{"query":"SELECT 1"}x`, "json_syntax"},
		{q, `{"query":"SELECT 1",}`, "json_syntax"},
		{q, `{"query":'SELECT 1'}`, "json_syntax"},
		{q, `{query:"SELECT 1"}`, "json_syntax"},
		{q, "{\"query\":\"SELECT\n1\"}", "json_syntax"},
		{q, "\ufeff{\"query\":\"SELECT 1\"}", "json_syntax"},
		{q, "{\"query\":\"\xff\"}", "json_utf8"},
		{q, `{"query":"\ud800"}`, "json_syntax"},
		{q, `{"query":"\udc00\ud800"}`, "json_syntax"},
		{q, `{"query":"\x41"}`, "json_syntax"},
		{q, `{"query":"a","query":"b"}`, "json_duplicate"},
		{q, `{"query":"a","qu\u0065ry":"b"}`, "json_duplicate"},
		{q, `{"query":"a","x":{"y":[{"z":1,"z":2}]}}`, "json_duplicate"},
		{q, `{"query":"a","x":{"":1,"":2}}`, "json_duplicate"},
		{q, `{"query":"a","Query":"b"}`, "json_twin"},
		{q, `{"Query":"b"}`, "json_twin"},
		{q, `{"query":"a","use_legacy_sql":true}`, "json_twin"},
		{q, `{"query":"a","uselegacysql":true}`, "json_twin"},
		{q, `{"query":"a","u\u017feLegacySql":true}`, "json_twin"},
		{q, `{"query":"a","useLegacySql":"false"}`, "json_type"},
		{q, `{"query":"a","useLegacySql":0}`, "json_type"},
		{q, `{"query":"a","dryRun":1}`, "json_type"},
		{q, `{"query":"a","maximumBytesBilled":1.5}`, "json_type"},
		{q, `{"query":"a","maximumBytesBilled":"1e3"}`, "json_type"},
		{q, `{"query":"a","maximumBytesBilled":"+5"}`, "json_type"},
		{q, `{"query":"a","maximumBytesBilled":" 5"}`, "json_type"},
		{q, `{"query":"a","maximumBytesBilled":99999999999999999999}`, "json_type"},
		{q, `{"query":"a","labels":[]}`, "json_type"},
		{q, `{"query":"a","labels":{"a":1}}`, "json_type"},
		{q, `{"query":"a","labels":{"a":"1","a":"2"}}`, "json_duplicate"},
		{q, `{"query":"a","connectionProperties":[null]}`, "json_type"},
		{q, `{"query":"a","connectionProperties":{"key":"x"}}`, "json_type"},
		{q, `{"query":"a","connectionProperties":[{"key":"x","Key":"y"}]}`, "json_twin"},
		{q, `{"query":"a","connectionProperties":[{"key":"session_id","value":"1"},{"key":"Session_ID","value":"2"}]}`, "connection_properties"},
		{q, `{"query":"a","queryParameters":{}}`, "json_type"},
		{q, `{"query":"a","defaultDataset":{}}`, "default_dataset"},
		{q, `{"query":"a","queryResultsFormat":"ARROW"}`, "results_format"},
		{q, `{"query":"a","queryResultsFormat":"arrow"}`, "results_format"},
		{q, `{"query":"a","jobCreationMode":"NEVER"}`, "job_creation_mode"},
		{q, `{"query":"a","parameterMode":"x"}`, "parameter_mode"},
		{q, `{"query":"a","x":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, "json_depth"},
		{q, `{"query":"a","x":` + strings.Repeat(`{"a":`, 100_000), "json_depth"},
		{q, `{"query":"a","x":01}`, "json_syntax"},
		{q, `{"query":"a","x":-}`, "json_syntax"},
		{q, `{"query":"a","x":1.}`, "json_syntax"},
		{q, `{"query":"a","x":1e}`, "json_syntax"},
		{q, `{"query":"a","x":NaN}`, "json_syntax"},
		{q, `{"query":"a","x":True}`, "json_syntax"},
		{q, `{"query":"a","x":{` + manyKeys(40) + `,"k39":1}}`, "json_duplicate"},
		{q, `{"query":"a","x":{` + manyKeys(40) + `,"k3":1}}`, "json_duplicate"},
		{q, `{"query":"a","x":{` + manyKeys(MaxMembers+1) + `}}`, "json_members"},
		{j, `{}`, "job_type"},
		{j, `{"configuration":{}}`, "job_type"},
		{j, `{"configuration":{"query":null}}`, "job_type"},
		{j, `{"configuration":{"query":{"query":"a"},"load":{}}}`, "job_type"},
		{j, `{"configuration":{"query":{"query":"a"},"extract":{}}}`, "job_type"},
		{j, `{"configuration":{"jobType":"LOAD","query":{"query":"a"}}}`, "job_type"},
		{j, `{"Configuration":{"query":{"query":"a"}}}`, "json_twin"},
		{j, `{"configuration":{"Query":{"query":"a"}}}`, "json_twin"},
		{j, `{"configuration":{"query":{"query":"a","destination_table":{}}}}`, "json_twin"},
		{j, `{"configuration":{"query":{"query":"a","destinationTable":{"tableId":"t"}}}}`, "destination"},
		{j, `{"configuration":{"query":{}}}`, "query_missing"},
		{j, `{"configuration":{"query":{"query":"a"}},"jobReference":{"projectId":"other"}}`, "names_differ"},
		{j, `{"configuration":{"query":{"query":"a"}},"jobReference":{"jobId":"a/b"}}`, "name_job"},
		{j, `{"configuration":{"load":{"sourceUris":["gs://b/o"]}}}`, "destination"},
		{j, `{"configuration":{"load":{"destinationTable":{"datasetId":"d","tableId":"t"}}}}`, "source_uris"},
		{j, `{"configuration":{"copy":{"sourceTable":{"datasetId":"d","tableId":"t"}}}}`, "destination"},
		{j, `{"configuration":{"copy":{"operationType":"MOVE"}}}`, "copy_operation"},
		{j, `{"configuration":{"extract":{"sourceTable":{"datasetId":"d","tableId":"t"},"destinationUris":["gs://b/o"]}}}`, "job_extract"},
		{up, `{"configuration":{"query":{"query":"a"}}}`, "job_type"},
		{up, `{"configuration":{"load":{"sourceUris":["gs://b/o"],"destinationTable":{"datasetId":"d","tableId":"t"}}}}`, "source_uris"},
		{"POST /bigquery/v2/projects/p/datasets", `{"datasetReference":{"datasetId":"d"},"access":[{"role":"READER"}]}`, "dataset_access"},
		{"POST /bigquery/v2/projects/p/datasets", `{"datasetReference":{"datasetId":"d","projectId":"q"}}`, "names_differ"},
		{"POST /bigquery/v2/projects/p/datasets", `{"datasetReference":{"datasetId":"d"},"externalDatasetReference":{}}`, "external_data"},
		{"POST /bigquery/v2/projects/p/datasets", `{}`, "name_dataset"},
		{"POST /bigquery/v2/projects/p/datasets/d/tables", `{"tableReference":{"datasetId":"e","tableId":"t"}}`, "names_differ"},
		{"POST /bigquery/v2/projects/p/datasets/d/tables", `{}`, "name_table"},
		{"POST /bigquery/v2/projects/p/datasets/d/tables", `{"tableReference":{"tableId":"t$1"}}`, "name_table"},
		{"POST /bigquery/v2/projects/p/datasets/d/tables", `{"tableReference":{"tableId":"t"},"externalDataConfiguration":{}}`, "external_data"},
		{"POST /bigquery/v2/projects/p/datasets/d/tables", `{"tableReference":{"tableId":"t"},"cloneDefinition":{}}`, "table_copy"},
		{"PATCH /bigquery/v2/projects/p/datasets/d/tables/t", `{"external_data_configuration":{}}`, "json_twin"},
		{"PATCH /bigquery/v2/projects/p/datasets/d/tables/t", `{"tableReference":{"tableId":"u"}}`, "names_differ"},
		{"PATCH /bigquery/v2/projects/p/datasets/d/tables/t", `{"view":{"query":"a"},"materializedView":{"query":"b"}}`, "view"},
		{"POST /bigquery/v2/projects/p/datasets/d/routines", `{"routineReference":{"routineId":"r"},"remoteFunctionOptions":{"endpoint":"https://x"}}`, "remote_routine"},
		{"POST /bigquery/v2/projects/p/datasets/d/routines", `{}`, "name_routine"},
		{"PATCH /bigquery/v2/projects/p/datasets/d/models/m", `{"remoteModelInfo":{}}`, "remote_model"},
		{"GET /bigquery/v2/projects/p/jobs/j", `{}`, "body_unexpected"},
		{"POST /bigquery/v2/projects/p/jobs/j/cancel", `{"a":1}`, "body_unexpected"},
	} {
		method, target, _ := strings.Cut(c.request, " ")
		_, err := ParseBody(callOf(t, method, target), "application/json", "", []byte(c.body))
		if r := refusalOf(t, err); r == nil || r.Code != c.code || r.Status < 400 {
			t.Errorf("%s %.100s: got %v (%+v), want %s", c.request, c.body, err, r, c.code)
		}
	}
	for contentType, ok := range map[string]bool{
		"application/json": true, "application/json; charset=utf-8": true, "Application/JSON;charset=\"UTF-8\"": true,
		"": false, "text/plain": false, "application/json; charset=utf-16": false, "application/x-protobuf": false,
		"application/json, text/plain": false, "application/json; boundary=x": false, "application/x-www-form-urlencoded": false,
	} {
		_, err := ParseBody(queryCall(t), contentType, "", []byte(`{"query":"SELECT 1"}`))
		if (err == nil) != ok {
			t.Errorf("content-type %q: %v", contentType, err)
		}
	}
	for _, encoding := range []string{"br", "deflate", "gzip, gzip", "zstd"} {
		if _, err := ParseBody(queryCall(t), "application/json", encoding, []byte(`{"query":"SELECT 1"}`)); err == nil {
			t.Errorf("content-encoding %q passed", encoding)
		}
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"k%d":0`, i)
	}
	return b.String()
}

func TestParseBodyReads(t *testing.T) {
	f, err := ParseBody(queryCall(t), "application/json", "", []byte(`{"query":"a","useLegacySql":null,"labels":null,"nöw":1,"maximumBytesBilled":"7","x":`+strings.Repeat("[", 63)+strings.Repeat("]", 63)+`}`))
	if err != nil {
		t.Fatal(err)
	}
	if f.Legacy != nil || f.Labels != nil || *f.MaximumBytesBilled != 7 || !reflect.DeepEqual(f.Unknown, []string{"nöw", "x"}) {
		t.Errorf("got %+v", f)
	}
	if _, err := ParseBody(callOf(t, "POST", "/projects/p/jobs/j/cancel"), "", "", []byte("{}")); err != nil {
		t.Error(err)
	}
	if _, err := ParseBody(callOf(t, "GET", "/projects/p/jobs/j"), "", "", nil); err != nil {
		t.Error(err)
	}
	if _, err := ParseBody(callOf(t, "POST", "/projects/p/datasets/d/tables/t:testIamPermissions"), "application/json", "", []byte(`{"permissions":["x"]}`)); err != nil {
		t.Error(err)
	}
}

func TestLegacyPrefix(t *testing.T) {
	for sql, want := range map[string]bool{
		"#legacySQL\nSELECT 1": true, "#LEGACYSQL\r\nSELECT 1": true, "  \n# legacySQL\nSELECT 1": true, "-- x\n#legacySQL": true,
		"/* a */ #legacySQL\n": true, "\ufeff#legacysql": true, "##legacySQL": true, "--legacySQL": true,
		"#standardSQL\nSELECT 1": false, "SELECT 1 #legacySQL": false, "": false, "/* #legacySQL": false, "#x\rlegacySQL": false,
		"#standardSQL\n#legacySQL\nSELECT 1": true,
	} {
		if got := legacyPrefix(sql); got != want {
			t.Errorf("%q: got %v", sql, got)
		}
	}
}

func gz(parts ...string) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		w := gzip.NewWriter(&b)
		w.Write([]byte(p))
		w.Close()
	}
	return b.Bytes()
}

func TestInflate(t *testing.T) {
	body := `{"query":"SELECT 1"}`
	f, err := ParseBody(queryCall(t), "application/json", "gzip", gz(body))
	if err != nil || f.SQL != "SELECT 1" || string(f.Body) != body {
		t.Fatalf("got %+v, %v", f, err)
	}
	if b, err := Inflate(gz(body), len(body)); err != nil || string(b) != body {
		t.Errorf("at the limit: %q, %v", b, err)
	}
	whole := gz(body)
	bomb := gz(strings.Repeat("\x00", 64<<20))
	for name, c := range map[string]struct {
		b    []byte
		code string
	}{
		"over the limit": {gz(body + " "), "body_large"},
		"bomb":           {bomb, "body_large"},
		"two members":    {gz(`{"query":`, `"SELECT 1"}`), "gzip"},
		"trailing":       {append(append([]byte{}, whole...), 0), "gzip"},
		"cut":            {whole[:len(whole)-3], "gzip"},
		"damaged":        {append(append([]byte{}, whole[:15]...), whole[16:]...), "gzip"},
		"none":           {[]byte(body), "gzip"},
		"empty":          {nil, "gzip"},
	} {
		_, err := Inflate(c.b, len(body))
		if r := refusalOf(t, err); r == nil || r.Code != c.code {
			t.Errorf("%s: got %v, want %s", name, err, c.code)
		}
	}
	if n := testing.AllocsPerRun(1, func() { Inflate(bomb, 1<<10) }); n > 200 {
		t.Errorf("a bomb makes %v allocations", n)
	}
}

func TestRewrite(t *testing.T) {
	sql := "SELECT \"x\" < 'é'\n"
	for _, c := range []struct {
		name       string
		call       Call
		body, want string
		changes    Changes
	}{
		{"nothing", queryCall(t), `{ "query" : "a" }`, `{ "query" : "a" }`, Changes{}},
		{"absent", queryCall(t), `{"query":"a"}`, `{"labels":{"a":"1","b":"2"},"useLegacySql":false,"maximumBytesBilled":"10","jobCreationMode":"JOB_CREATION_REQUIRED","query":"a"}`,
			Changes{Labels: map[string]string{"b": "2", "a": "1"}, ForceStandardSQL: true, MaximumBytesBilled: 10, JobCreationMode: "JOB_CREATION_REQUIRED"}},
		{"null", queryCall(t), `{"labels":null, "useLegacySql":null,"maximumBytesBilled":null,"query":"a"}`, `{"labels":{"a":"1"}, "useLegacySql":false,"maximumBytesBilled":"10","query":"a"}`,
			Changes{Labels: map[string]string{"a": "1"}, ForceStandardSQL: true, MaximumBytesBilled: 10}},
		{"over", queryCall(t), `{"labels":{"a":"old","z":"9"},"useLegacySql":true,"maximumBytesBilled":11,"query":"a","requestId":"r"}`,
			`{"labels":{"b":"2","a":"1","z":"9"},"useLegacySql":false,"maximumBytesBilled":"10","query":"a","requestId":"R"}`,
			Changes{Labels: map[string]string{"a": "1", "b": "2"}, ForceStandardSQL: true, MaximumBytesBilled: 10, RequestID: "R"}},
		{"lower stays", queryCall(t), `{"useLegacySql":false,"maximumBytesBilled":9,"query":"a"}`, `{"useLegacySql":false,"maximumBytesBilled":9,"query":"a"}`, Changes{ForceStandardSQL: true, MaximumBytesBilled: 10}},
		{"zero is none", queryCall(t), `{"maximumBytesBilled":"0","query":"a"}`, `{"maximumBytesBilled":"10","query":"a"}`, Changes{MaximumBytesBilled: 10}},
		{"empty labels", queryCall(t), `{"labels":{ },"query":"a"}`, `{"labels":{"a":"1","b":"2","c":"3" },"query":"a"}`, Changes{Labels: map[string]string{"a": "1", "b": "2", "c": "3"}}},
		{"sql", queryCall(t), `{"query" : "a\u0062","x":"\u00e9"}`, `{"query" : "SELECT \"x\" < 'é'\n","x":"\u00e9"}`, Changes{SQL: &sql}},
		{"insert", insertCall(t), "{\"jobReference\": {},\n \"configuration\": {\"query\": {\"query\": \"a\"}}}",
			"{\"jobReference\": {},\n \"configuration\": {\"labels\":{\"a\":\"1\"},\"query\": {\"useLegacySql\":false,\"maximumBytesBilled\":\"10\",\"query\": \"a\"}}}",
			Changes{Labels: map[string]string{"a": "1"}, ForceStandardSQL: true, MaximumBytesBilled: 10, JobCreationMode: "JOB_CREATION_REQUIRED"}},
		{"unknown member", queryCall(t), `{"labels":{"x":"y"},"query":"a","new":1}`, `{"maximumBytesBilled":"10","labels":{"x":"y"},"query":"a","new":1}`, Changes{MaximumBytesBilled: 10}},
		{"load", insertCall(t), `{"configuration":{"load":{"sourceUris":["gs://b/o"]}}}`, `{"configuration":{"labels":{"a":"1"},"load":{"sourceUris":["gs://b/o"]}}}`,
			Changes{Labels: map[string]string{"a": "1"}, ForceStandardSQL: true, MaximumBytesBilled: 10}},
	} {
		body := []byte(c.body)
		got, err := Rewrite(c.call, body, c.changes)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %s, %v\nwant %s", c.name, got, err, c.want)
		}
		if string(body) != c.body {
			t.Errorf("%s: the body given was changed", c.name)
		}
	}
	many := map[string]string{}
	for i := range MaxLabels {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	labels, _ := json.Marshal(many)
	for name, c := range map[string]struct {
		call    Call
		body    string
		changes Changes
		code    string
	}{
		"legacy prefix":   {queryCall(t), `{"query":"#legacySQL\nSELECT 1"}`, Changes{ForceStandardSQL: true}, "legacy_sql"},
		"too many labels": {queryCall(t), `{"query":"a","labels":` + string(labels) + `}`, Changes{Labels: map[string]string{"ours": "1"}}, "labels"},
		"twin":            {queryCall(t), `{"query":"a","Labels":{}}`, Changes{}, "json_twin"},
		"bad label":       {queryCall(t), `{"query":"a"}`, Changes{Labels: map[string]string{"A": "1"}}, ""},
		"bad value":       {queryCall(t), `{"query":"a"}`, Changes{Labels: map[string]string{"a": strings.Repeat("x", 64)}}, ""},
		"no job":          {callOf(t, "POST", "/projects/p/datasets"), `{}`, Changes{}, ""},
		"no sql":          {insertCall(t), `{"configuration":{"load":{}}}`, Changes{SQL: &sql}, ""},
	} {
		_, err := Rewrite(c.call, []byte(c.body), c.changes)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		var r *Refusal
		if errors.As(err, &r) != (c.code != "") || r != nil && r.Code != c.code {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// FuzzBody checks that what is read agrees with encoding/json, and that a
// rewritten body says what the changes said and nothing else anew.
func FuzzBody(f *testing.F) {
	files, _ := filepath.Glob("testdata/bodies/*.txt")
	for _, name := range files {
		b, _ := os.ReadFile(name)
		line, body, _ := bytes.Cut(b, []byte("\n"))
		f.Add(body, bytes.Contains(line, []byte("queries")))
	}
	f.Add([]byte(`{"labels":{},"query":"\ud83d\ude00\u0000"}`), true)
	f.Add([]byte(`{"configuration":{"query":{"query":"a","useLegacySql":true},"labels":{"verbatim_session":null}}}`), false)
	changes := Changes{Labels: map[string]string{"verbatim_session": "s1", "verbatim_x": ""}, MaximumBytesBilled: 1000, ForceStandardSQL: true, JobCreationMode: "JOB_CREATION_REQUIRED"}
	query, insert := queryCall(f), insertCall(f)
	f.Fuzz(func(t *testing.T, body []byte, isQuery bool) {
		call := insert
		if isQuery {
			call = query
		}
		facts, err := ParseBody(call, "application/json", "", body)
		if err != nil {
			refusalOf(t, err)
			return
		}
		var std struct {
			Query         string
			Configuration struct{ Query struct{ Query string } }
		}
		if err := json.Unmarshal(body, &std); err != nil {
			t.Fatalf("accepted what encoding/json does not take: %v", err)
		}
		sql := std.Configuration.Query.Query
		if isQuery {
			sql = std.Query
		}
		if facts.JobType == JobQuery && sql != facts.SQL {
			t.Fatalf("SQL is %q here, %q for encoding/json", facts.SQL, sql)
		}
		out, err := Rewrite(call, body, changes)
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) || r.Code != "legacy_sql" && r.Code != "labels" {
				t.Fatalf("rewrite: %v", err)
			}
			return
		}
		after, err := ParseBody(call, "application/json", "", out)
		if err != nil {
			t.Fatalf("rewritten to %s: %v", out, err)
		}
		want := facts
		want.Labels = map[string]string{"verbatim_session": "s1", "verbatim_x": ""}
		for k, v := range facts.Labels {
			if _, ours := changes.Labels[k]; !ours {
				want.Labels[k] = v
			}
		}
		if facts.JobType == JobQuery {
			no := false
			want.Legacy = &no
			if m := facts.MaximumBytesBilled; m == nil || *m <= 0 || *m > 1000 {
				limit := int64(1000)
				want.MaximumBytesBilled = &limit
			}
			if isQuery {
				want.JobCreationMode = "JOB_CREATION_REQUIRED"
			}
		}
		want.Body, after.Body = nil, nil
		if !reflect.DeepEqual(after, want) {
			t.Fatalf("rewritten to %s\ngot  %+v\nwant %+v", out, after, want)
		}
		if again, err := Rewrite(call, out, changes); err != nil || len(again) != len(out) {
			t.Fatalf("a second rewrite changes %s to %s", out, again)
		}
	})
}

func BenchmarkParseAndRewrite(b *testing.B) {
	body := []byte(`{"query":"` + strings.Repeat("SELECT a, b FROM t WHERE x = 1 ", 80) + `","useLegacySql":false,"labels":{"a":"b"},"queryParameters":[{"name":"x","parameterType":{"type":"INT64"},"parameterValue":{"value":"1"}}],"requestId":"abc"}`)
	call := queryCall(b)
	changes := Changes{Labels: map[string]string{"verbatim_session": "s1"}, MaximumBytesBilled: 1000, ForceStandardSQL: true}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseBody(call, "application/json", "", body); err != nil {
			b.Fatal(err)
		}
		if _, err := Rewrite(call, body, changes); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCallRecord(t *testing.T) {
	c := callOf(t, "GET", "/projects/p/jobs/j?location=EU")
	if got := c.Record(); got.Method != "bigquery.jobs.get" || *got.Job != (record.Job{Project: "p", Location: "EU", ID: "j"}) {
		t.Errorf("got %+v", got)
	}
}
