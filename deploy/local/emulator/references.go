package emulator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"verbatim.dev/policy/sql"
)

// References is what BigQuery's statistics say that a query uses.
type References struct {
	StatementType string
	// Tables and Routines are "PROJECT.DATASET.NAME".
	Tables, Routines []string
	Target           string // ddlTargetTable, or the table that DML writes
	Bytes            int64  // totalBytesProcessed
	// NoTables leaves the list of tables out.
	NoTables bool
}

// SetView tells the double of a view, "PROJECT.DATASET.NAME", beside those that
// the emulator has. It holds for queries from now on; an empty text takes it
// away.
func (d *Double) SetView(name, text string) { d.tell(&d.views, name, text) }

// SetRoutine tells the double of a SQL function, by its body.
func (d *Double) SetRoutine(name, body string) { d.tell(&d.routines, name, body) }

func (d *Double) tell(to *map[string]string, name, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := maps.Clone(*to)
	if next == nil {
		next = map[string]string{}
	}
	if next[name] = text; text == "" {
		delete(next, name)
	}
	*to = next
}

// SetReferences tells the double what a query of this text references: where the
// double's own reading is not what a test is about. Nil takes it away.
func (d *Double) SetReferences(text string, r *References) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.told == nil {
		d.told = map[string]*References{}
	}
	d.told[text] = r
}

// SetBytes tells the double how much reading a table processes.
func (d *Double) SetBytes(table string, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bytes == nil {
		d.bytes = map[string]int64{}
	}
	d.bytes[table] = n
}

// queryConfig is what names in a query are resolved by.
type queryConfig struct {
	Query          string `json:"query"`
	DefaultDataset struct {
		ProjectID string `json:"projectId"`
		DatasetID string `json:"datasetId"`
	} `json:"defaultDataset"`
	DestinationTable tableRef `json:"destinationTable"`
	sessionRequest
}

// refusal is an error of the query's own.
type refusal struct {
	code            int
	reason, message string
}

// maxViews bounds how deep views nest, as BigQuery does
// (https://cloud.google.com/bigquery/docs/views-intro#view_limitations).
const maxViews = 16

// references finds out what a query references, views and functions opened up.
// It reads with the parser that the gateway reads with: it is no second opinion
// of that, and says what BigQuery knows beside it.
func (d *Double) references(ctx context.Context, project string, q queryConfig) (*References, *refusal) {
	d.mu.Lock()
	told := d.told[q.Query]
	d.mu.Unlock()
	if told != nil {
		return told, nil
	}
	o := sql.Options{Project: project, DatasetProject: q.DefaultDataset.ProjectID, Dataset: q.DefaultDataset.DatasetID}
	if o.DatasetProject == "" {
		o.DatasetProject = project
	}
	f := sql.Analyze(ctx, q.Query, o)
	if p := f.Problem; p != nil {
		if p.Code == "syntax" {
			return nil, &refusal{http.StatusBadRequest, "invalidQuery", fmt.Sprintf("Syntax error: %s at [%d:%d]", p.Message, p.Line, p.Column)}
		}
		return nil, &refusal{http.StatusBadRequest, "invalidQuery", "the double does not understand the query: " + p.Message}
	}
	r := &References{StatementType: "SCRIPT"}
	if len(f.Statements) == 1 {
		r.StatementType = f.Statements[0].Kind
		if w := f.Statements[0].Writes; len(w) == 1 && w[0].Table != "" {
			r.Target = spell(w[0])
		}
	}
	if refused := d.open(ctx, r, f, 0); refused != nil {
		return nil, refused
	}
	return r, nil
}

func spell(t sql.Table) string { return t.Project + "." + t.Dataset + "." + t.Table }

// open adds what facts use to what is referenced, and what is behind it.
func (d *Double) open(ctx context.Context, r *References, f *sql.Facts, depth int) *refusal {
	if depth > maxViews {
		return &refusal{http.StatusBadRequest, "invalidQuery", "Too many nested views"}
	}
	for _, t := range f.Reads {
		if t.Table == "" || t.InformationSchema != "" || t.Object != "" && t.Object != "table" || slices.Contains(r.Tables, spell(t)) {
			continue
		}
		r.Tables = append(r.Tables, spell(t))
		if strings.HasSuffix(t.Table, "*") {
			continue
		}
		text, bytes, found := d.table(ctx, t)
		if !found {
			return &refusal{http.StatusNotFound, "notFound", fmt.Sprintf("Not found: Table %s:%s.%s was not found in location US", t.Project, t.Dataset, t.Table)}
		}
		r.Bytes += bytes
		if text == "" {
			continue
		}
		if refused := d.open(ctx, r, sql.AnalyzeView(ctx, text, sql.Options{Project: t.Project}), depth+1); refused != nil {
			return refused
		}
	}
	for _, fn := range f.Functions {
		if fn.Defined || strings.Count(fn.Name, ".") < 2 || slices.Contains(r.Routines, fn.Name) {
			continue
		}
		switch fn.Kind {
		case "udf", "table_function", "aggregate_udf", "procedure":
		default:
			continue
		}
		r.Routines = append(r.Routines, fn.Name)
		d.mu.Lock()
		body := d.routines[fn.Name]
		d.mu.Unlock()
		if body == "" {
			continue
		}
		kind := sql.BodyFunction
		if fn.Kind == "table_function" {
			kind = sql.BodyTableFunction
		}
		project := fn.Name[:strings.IndexByte(fn.Name, '.')]
		if refused := d.open(ctx, r, sql.AnalyzeBody(ctx, sql.Body{Kind: kind}, body, sql.Options{Project: project}), depth+1); refused != nil {
			return refused
		}
	}
	return nil
}

// table looks a table up: a view's text, the bytes of another.
func (d *Double) table(ctx context.Context, t sql.Table) (text string, bytes int64, found bool) {
	d.mu.Lock()
	text, told := d.views[spell(t)]
	bytes, sized := d.bytes[spell(t)]
	d.mu.Unlock()
	if told || sized || d.backend == nil {
		return text, bytes, true
	}
	path := fmt.Sprintf("/bigquery/v2/projects/%s/datasets/%s/tables/%s", url.PathEscape(t.Project), url.PathEscape(t.Dataset), url.PathEscape(t.Table))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.backend.Scheme+"://"+d.backend.Host+path, nil)
	if err != nil {
		return "", 0, true
	}
	res, err := d.client.Do(req)
	if err != nil {
		return "", 0, true
	}
	defer res.Body.Close()
	var table struct {
		NumBytes string `json:"numBytes"`
		View     struct {
			Query string `json:"query"`
		} `json:"view"`
	}
	if res.StatusCode == http.StatusNotFound {
		return "", 0, false
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(&table); err != nil {
		return "", 0, true
	}
	n, _ := strconv.ParseInt(table.NumBytes, 10, 64)
	return table.View.Query, n, true
}

// createView is a CREATE VIEW, as far as the double has to understand it.
var createView = regexp.MustCompile(`(?is)^\s*CREATE\s+(?:OR\s+REPLACE\s+)?VIEW\s+(?:IF\s+NOT\s+EXISTS\s+)?\S+\s+AS\s+(.*)$`)

// created remembers a view that a query made: the emulator does not tell its
// text.
func (d *Double) created(r *References, text string) {
	if r == nil || r.StatementType != "CREATE_VIEW" || r.Target == "" {
		return
	}
	if m := createView.FindStringSubmatch(text); m != nil {
		d.SetView(r.Target, m[1])
	}
}

// insertTable is tables.insert: a view's text is remembered.
func (d *Double) insertTable(w http.ResponseWriter, r *http.Request, project, dataset string) {
	var t struct {
		TableReference struct {
			TableID string `json:"tableId"`
		} `json:"tableReference"`
		View struct {
			Query string `json:"query"`
		} `json:"view"`
	}
	body, err := readJSON(r, &t)
	if err != nil {
		writeError(w, http.StatusBadRequest, "parseError", err.Error())
		return
	}
	replay(r, body)
	res := d.capture(r)
	if res.status == http.StatusOK && t.View.Query != "" {
		d.SetView(project+"."+dataset+"."+t.TableReference.TableID, t.View.Query)
	}
	res.copyTo(w)
}

// put writes the references into a job's statistics.
func (r *References) put(job map[string]any) {
	statistics, _ := job["statistics"].(map[string]any)
	if statistics == nil {
		statistics = map[string]any{}
		job["statistics"] = statistics
	}
	query, _ := statistics["query"].(map[string]any)
	if query == nil {
		query = map[string]any{}
		statistics["query"] = query
	}
	ref := func(name, last string) map[string]any {
		i := strings.LastIndexByte(name, '.')
		j := strings.LastIndexByte(name[:max(i, 0)], '.')
		if j < 0 {
			return map[string]any{last: name}
		}
		return map[string]any{"projectId": name[:j], "datasetId": name[j+1 : i], last: name[i+1:]}
	}
	query["statementType"] = r.StatementType
	query["totalBytesProcessed"] = strconv.FormatInt(r.Bytes, 10)
	statistics["totalBytesProcessed"] = query["totalBytesProcessed"]
	var tables, routines []any
	for _, t := range r.Tables {
		tables = append(tables, ref(t, "tableId"))
	}
	for _, t := range r.Routines {
		routines = append(routines, ref(t, "routineId"))
	}
	if tables != nil && !r.NoTables {
		query["referencedTables"] = tables
	}
	if routines != nil {
		query["referencedRoutines"] = routines
	}
	if r.Target == "" {
		return
	}
	switch r.StatementType {
	case "INSERT", "UPDATE", "DELETE", "MERGE":
		if config, ok := job["configuration"].(map[string]any); ok {
			if q, ok := config["query"].(map[string]any); ok {
				q["destinationTable"] = ref(r.Target, "tableId")
			}
		}
	default:
		query["ddlTargetTable"] = ref(r.Target, "tableId")
	}
}

// refer writes the references into a captured job.
func (c *captured) refer(r *References) {
	v, err := decode(c.body.Bytes())
	m, ok := v.(map[string]any)
	if err != nil || !ok || c.status != http.StatusOK || r == nil {
		return
	}
	r.put(m)
	c.encode(m)
}

// dryRun is jobs.insert with dryRun. The schema is the emulator's, where there
// is one.
func (d *Double) dryRun(w http.ResponseWriter, r *http.Request, project string, c jobConfiguration, body []byte, own bool) {
	refs, refused := d.references(r.Context(), project, *c.Query)
	if refused != nil {
		writeError(w, refused.code, refused.reason, refused.message)
		return
	}
	job := syntheticJob(project, "", c.Query.Query, c.Labels, "")
	job["configuration"].(map[string]any)["dryRun"] = true
	schema := any(syntheticSchema)
	if !own {
		replay(r, body)
		res := d.capture(r)
		var answer struct {
			Status struct {
				ErrorResult *struct{ Reason, Message string } `json:"errorResult"`
			} `json:"status"`
			Statistics struct {
				Query struct {
					Schema json.RawMessage `json:"schema"`
				} `json:"query"`
			} `json:"statistics"`
		}
		if res.status != http.StatusOK || json.Unmarshal(res.body.Bytes(), &answer) != nil {
			res.copyTo(w)
			return
		}
		if e := answer.Status.ErrorResult; e != nil {
			writeError(w, codeOf(e.Reason), e.Reason, e.Message)
			return
		}
		schema = answer.Statistics.Query.Schema
	}
	job["statistics"].(map[string]any)["query"].(map[string]any)["schema"] = schema
	refs.put(job)
	writeJSON(w, http.StatusOK, job)
}
