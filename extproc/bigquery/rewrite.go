package bigquery

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// MaxLabels is how many labels BigQuery takes on a job.
const MaxLabels = 64

// Changes is what the gateway writes into a job. The zero value changes
// nothing.
type Changes struct {
	// Labels are set over the caller's labels of the same names.
	Labels map[string]string
	// MaximumBytesBilled bounds the caller's own; 0 sets no bound.
	MaximumBytesBilled int64
	// ForceStandardSQL writes useLegacySql false, whatever stood there.
	ForceStandardSQL bool
	// JobCreationMode is written into a jobs.query, where not empty.
	JobCreationMode string
	// RequestID replaces the caller's requestId of a jobs.query, where both
	// are not empty.
	RequestID string
	// SQL replaces the query's text, where not nil.
	SQL *string
	// Project is written into a defaultDataset and a query's destinationTable that
	// name none, where not empty: what was judged is what BigQuery resolves.
	Project string
	// NoCache writes useQueryCache false: a result that BigQuery takes from its
	// cache has no list of the tables behind it.
	NoCache bool
}

type edit struct {
	start, end int
	text       string
}

// Rewrite returns the plain JSON body of jobs.query or jobs.insert with the
// changes made. All other bytes stay as they came; body itself is not
// touched. A *[Refusal] says that the caller's body does not allow a change;
// another error is the gateway's own.
func Rewrite(call Call, body []byte, changes Changes) ([]byte, error) {
	var f Facts
	root, ref := f.read(call, body)
	if ref != nil {
		return nil, ref
	}
	// top holds the query's fields, labels stands in holder.
	top, holder := root, root
	isQuery := call.Method == "bigquery.jobs.query"
	switch {
	case isQuery:
	case call.Method == "bigquery.jobs.insert":
		if holder = root.get("configuration"); holder == nil {
			return nil, invalid("job_type", "The body holds no configuration.")
		}
		top = holder.get("query")
	default:
		return nil, fmt.Errorf("rewrite: a body of %s holds no job", call.Method)
	}
	w := &rewriter{body: body}
	if len(changes.Labels) > 0 {
		if err := w.labels(holder, changes.Labels); err != nil {
			return nil, err
		}
	}
	if top != nil {
		if changes.ForceStandardSQL {
			sql := top.str("query")
			if changes.SQL != nil {
				sql = *changes.SQL
			}
			if legacyPrefix(sql) {
				return nil, denied("legacy_sql", "#legacySQL is refused: only GoogleSQL is served; remove the prefix and write GoogleSQL.")
			}
			if v := top.boolPointer("useLegacySql"); v == nil || *v {
				w.set(top, "useLegacySql", "false")
			}
		}
		if limit := changes.MaximumBytesBilled; limit > 0 {
			own := top.integer("maximumBytesBilled")
			if own == nil || *own <= 0 || *own > limit {
				w.set(top, "maximumBytesBilled", strconv.Quote(strconv.FormatInt(limit, 10)))
			}
		}
		if changes.SQL != nil {
			w.set(top, "query", quote(*changes.SQL))
		}
		if changes.Project != "" {
			for _, key := range []string{"defaultDataset", "destinationTable"} {
				if n := top.get(key); n != nil && n.str("projectId") == "" {
					w.set(n, "projectId", quote(changes.Project))
				}
			}
		}
		if v := top.boolPointer("useQueryCache"); changes.NoCache && (v == nil || *v) {
			w.set(top, "useQueryCache", "false")
		}
		if isQuery && changes.JobCreationMode != "" && top.str("jobCreationMode") != changes.JobCreationMode {
			w.set(top, "jobCreationMode", quote(changes.JobCreationMode))
		}
		if isQuery && changes.RequestID != "" && top.str("requestId") != "" {
			w.set(top, "requestId", quote(changes.RequestID))
		}
	} else if changes.SQL != nil {
		return nil, errors.New("rewrite: the job has no SQL to replace")
	}
	return w.apply(), nil
}

type rewriter struct {
	body  []byte
	edits []edit
	// inserted counts what was put at the beginning of an object, by its start.
	inserted map[int]int
}

// set replaces a member's value, or inserts the member.
func (w *rewriter) set(n *node, key, value string) {
	if v := n.raw(key); v != nil {
		w.edits = append(w.edits, edit{v.start, v.end, value})
		return
	}
	text := quote(key) + ":" + value
	if len(n.members) > 0 || n.count > 0 {
		text += ","
	} else {
		if w.inserted == nil {
			w.inserted = map[int]int{}
		}
		if w.inserted[n.start]++; w.inserted[n.start] > 1 {
			text = "," + text // edits at one place stand in the order of their making
		}
	}
	w.edits = append(w.edits, edit{n.start + 1, n.start + 1, text})
}

func (w *rewriter) labels(holder *node, labels map[string]string) error {
	for k, v := range labels {
		if !validLabel(k) || k == "" || !validLabel(v) {
			return fmt.Errorf("rewrite: label %q is no label that BigQuery takes", k)
		}
	}
	old := holder.get("labels")
	total := len(labels)
	if old != nil {
		for _, m := range old.members {
			if _, ours := labels[m.key]; !ours {
				total++
			}
		}
	}
	if total > MaxLabels {
		return invalid("labels", fmt.Sprintf("The job has too many labels: BigQuery takes %d, and the gateway needs %d of them.", MaxLabels, len(labels)))
	}
	if old == nil {
		var b strings.Builder
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(labels)) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(quote(k) + ":" + quote(labels[k]))
		}
		b.WriteByte('}')
		w.set(holder, "labels", b.String())
		return nil
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		w.set(old, k, quote(labels[k]))
	}
	return nil
}

// validLabel holds the gateway's own labels to what every key and value may
// be: at most 63 lower-case letters, digits, '_' and '-'
// (https://cloud.google.com/bigquery/docs/labels-intro#requirements).
func validLabel(s string) bool {
	if len(s) > 63 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= 0x80 || !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

func (w *rewriter) apply() []byte {
	sort.SliceStable(w.edits, func(i, j int) bool { return w.edits[i].start < w.edits[j].start })
	size := len(w.body)
	for _, e := range w.edits {
		size += len(e.text)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, e := range w.edits {
		out = append(out, w.body[at:e.start]...)
		out = append(out, e.text...)
		at = e.end
	}
	return append(out, w.body[at:]...)
}

// quote returns s as a JSON string. s is UTF-8: it comes from the reader or
// from the gateway.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	return strings.TrimSuffix(b.String(), "\n")
}
