package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/test/harness"
)

// job is what a client's script is told.
type job struct {
	URL     string            `json:"url"`
	Project string            `json:"project"`
	Bare    bool              `json:"bare"` // the client writes paths without /bigquery/v2
	ADC     bool              `json:"adc"`  // tokens are files for Application Default Credentials
	Tokens  map[string]string `json:"tokens"`
	Steps   []step            `json:"steps"`
}

// step is one thing to do. Columns are named in the order of the alphabet,
// since some clients return rows as unordered objects.
type step struct {
	Name    string           `json:"name"`
	Do      string           `json:"do"`
	As      string           `json:"as"` // writer, reader or stranger
	SQL     string           `json:"sql,omitempty"`
	Params  []parameter      `json:"params,omitempty"`
	Dataset string           `json:"dataset,omitempty"`
	Table   string           `json:"table,omitempty"`
	File    string           `json:"file,omitempty"`
	Form    string           `json:"form,omitempty"` // multipart or resumable, where the client has both
	Limit   int              `json:"limit,omitempty"`
	Rows    []map[string]any `json:"rows,omitempty"`

	rows  string   // the wanted rows, as JSON
	state string   // the wanted state
	fails []string // texts that the error must have
	deny  string   // the reason code of a denial, whose text must be in the error
	short bool     // done also in a client's second round
	again bool     // the same as another to bq, which is slow
}

type parameter struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value any    `json:"value"` // int64, string or []int64
}

// result is what a client saw, printed in the same way by all of them: values as
// strings, null and lists as in JSON.
type result struct {
	Step  string  `json:"step"`
	Rows  [][]any `json:"rows"`
	State string  `json:"state"`
	Error string  `json:"error"`
}

const (
	smallRows = 200
	largeRows = 1_000_000 // 18 MB: more than Go's client sends at once
)

// files are what the clients upload.
type files struct{ small, large string }

func writeFiles(t testing.TB, dir string) files {
	t.Helper()
	f := files{small: filepath.Join(dir, "small.csv"), large: filepath.Join(dir, "large.csv")}
	for name, n := range map[string]int{f.small: smallRows, f.large: largeRows} {
		var b bytes.Buffer
		for i := range n {
			fmt.Fprintf(&b, "%d,row %06d\n", i, i)
		}
		if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// steps are what every client does, in this order.
func steps(dataset string, f files) []step {
	table := harness.Project + "." + dataset + ".t"
	return []step{
		{Name: "create", Do: "create", Dataset: dataset, Table: table, short: true},
		{Name: "query", Do: "query", short: true,
			SQL:  "SELECT 42 AS a, 0.5 AS b, 'ünï \"quoted\" 日本' AS c, TRUE AS d, CAST(NULL AS STRING) AS e, [1, 2, 3] AS f, DATE '2024-02-29' AS g",
			rows: `[["42","0.5","ünï \"quoted\" 日本","true",null,["1","2","3"],"2024-02-29"]]`},
		{Name: "query as a job", again: true, Do: "job", short: true, SQL: "SELECT x AS a FROM UNNEST([3, 1, 2]) AS x ORDER BY x", rows: `[["1"],["2"],["3"]]`},
		{Name: "named parameters", Do: "query", SQL: "SELECT @n + 1 AS a, CONCAT(@s, '!') AS b", rows: `[["42","it's \"so\"!"]]`,
			Params: []parameter{{"n", "INT64", int64(41)}, {"s", "STRING", `it's "so"`}}},
		{Name: "positional parameters", Do: "job", SQL: "SELECT ? * 2 AS a, ? AS b", rows: `[["42","x"]]`,
			Params: []parameter{{"", "INT64", int64(21)}, {"", "STRING", "x"}}},
		{Name: "array parameter", Do: "query", SQL: "SELECT COUNT(*) AS a, MAX(x) AS b FROM UNNEST(@xs) AS x", rows: `[["3","8"]]`,
			Params: []parameter{{"xs", "INT64", []int64{3, 5, 8}}}},
		{Name: "pages", Do: "sum", SQL: "SELECT x FROM UNNEST(GENERATE_ARRAY(1, 100000)) AS x", rows: `[["100000","5000050000"]]`},
		{Name: "script", Do: "job", SQL: "DECLARE x INT64 DEFAULT 1; SET x = x + 41; SELECT x AS a;", rows: `[["42"]]`},
		{Name: "dry run", Do: "dry", SQL: "SELECT a, b FROM " + dataset + ".t", state: "DONE", short: true},
		{Name: "load small", Do: "load", Table: table, File: f.small, Form: "multipart", state: "DONE", short: true},
		{Name: "load resumable", Do: "load", Table: table, File: f.small, Form: "resumable", state: "DONE", short: true},
		{Name: "load large", Do: "load", Table: harness.Project + "." + emulator.DiscardDataset + "." + dataset, File: f.large, Form: "resumable", state: "DONE"},
		{Name: "insertAll", Do: "insert", Table: table, short: true, Rows: []map[string]any{{"a": 9001, "b": "i"}, {"a": 9002, "b": "ï"}}},
		{Name: "count", Do: "query", short: true, SQL: "SELECT COUNT(*) AS a, MAX(a) AS b, COUNT(DISTINCT b) AS c FROM " + dataset + ".t",
			rows: fmt.Sprintf(`[["%d","9002","%d"]]`, 2*smallRows+2, smallRows+2)},
		{Name: "list", Do: "list", Table: table, Limit: 3, rows: `[["0","row 000000"],["1","row 000001"],["2","row 000002"]]`, short: true},
		{Name: "error of a query", Do: "query", SQL: "SELECT nothing_such FROM " + dataset + ".t", fails: []string{"nothing_such"}, short: true},
		{Name: "error of a job", again: true, Do: "job", SQL: "SELECT * FROM " + dataset + ".no_such_table", fails: []string{"no_such_table"}},
		{Name: "error of a read", Do: "list", Table: harness.Project + "." + dataset + ".no_such_table", Limit: 1, fails: []string{"no_such_table"}},
		{Name: "read by a reader", again: true, Do: "query", As: "reader", SQL: "SELECT MIN(a) AS a FROM " + dataset + ".t", rows: `[["0"]]`},
		{Name: "denied SQL", Do: "query", As: "reader", SQL: "DELETE FROM " + dataset + ".t WHERE TRUE", deny: "sql_denied", short: true},
		{Name: "denied job", again: true, Do: "job", As: "reader", SQL: "CREATE TABLE " + dataset + ".u AS SELECT 1 AS a", deny: "sql_denied"},
		{Name: "denied load", again: true, Do: "load", As: "reader", Table: table, File: f.small, Form: "multipart", deny: "method_denied"},
		{Name: "denied resumable load", Do: "load", As: "reader", Table: table, File: f.small, Form: "resumable", deny: "method_denied", short: true},
		{Name: "denied insertAll", Do: "insert", As: "reader", Table: table, Rows: []map[string]any{{"a": 1, "b": "x"}}, deny: "method_denied"},
		{Name: "a stranger's query", Do: "query", As: "stranger", SQL: "SELECT 1 AS a", deny: "no_grant", short: true},
		{Name: "nothing was changed", Do: "query", SQL: "SELECT COUNT(*) AS a FROM " + dataset + ".t", rows: fmt.Sprintf(`[["%d"]]`, 2*smallRows+2), short: true},
	}
}

// check compares what a client saw with what was wanted, and returns the
// receipts in denials by the step's name.
func check(t *testing.T, want []step, got []result) map[string]string {
	t.Helper()
	receipts := map[string]string{}
	for i, s := range want {
		if i >= len(got) || got[i].Step != s.Name {
			t.Fatalf("the client ended before the step %q", s.Name)
		}
		g := got[i]
		switch {
		case s.deny != "":
			// bq wraps lines.
			m := receiptIn.FindStringSubmatch(strings.Join(strings.Fields(g.Error), " "))
			if !strings.Contains(g.Error, "Verbatim: ") || m == nil || m[1] != s.deny {
				t.Errorf("%s: want a denial with %s and a receipt, the user sees %q", s.Name, s.deny, g.Error)
				continue
			}
			receipts[s.Name] = m[2]
		case s.fails != nil:
			for _, text := range s.fails {
				if !strings.Contains(g.Error, text) {
					t.Errorf("%s: want an error with %q, the user sees %q", s.Name, text, g.Error)
				}
			}
			if strings.Contains(g.Error, "Verbatim") {
				t.Errorf("%s: want BigQuery's own error, the user sees %q", s.Name, g.Error)
			}
		case g.Error != "":
			t.Errorf("%s: %s", s.Name, g.Error)
		case s.rows != "":
			b, err := json.Marshal(g.Rows)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, []byte(s.rows)) {
				t.Errorf("%s: got %s, want %s", s.Name, b, s.rows)
			}
		case g.State != s.state:
			t.Errorf("%s: state %q, want %q", s.Name, g.State, s.state)
		}
	}
	return receipts
}
