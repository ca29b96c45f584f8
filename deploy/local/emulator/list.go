package emulator

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
)

// list is jobs.list: newest first, in pages. The page token is how many jobs
// had been made when the page before ended.
func (d *Double) list(w http.ResponseWriter, r *http.Request, project string) {
	q := r.URL.Query()
	size, err := strconv.Atoi(q.Get("maxResults"))
	if err != nil || size < 1 {
		size = 50
	}
	before, err := strconv.Atoi(q.Get("pageToken"))
	if q.Get("pageToken") == "" {
		before = 1 << 62
	} else if err != nil {
		writeError(w, http.StatusBadRequest, "invalid", "Invalid page token")
		return
	}
	type entry struct {
		id   string
		made int
	}
	var jobs []entry
	d.mu.Lock()
	for id, j := range d.jobs {
		if j.project == project && j.alias == "" && j.parent == "" && j.made < before {
			jobs = append(jobs, entry{id, j.made})
		}
	}
	d.mu.Unlock()
	slices.SortFunc(jobs, func(a, b entry) int { return b.made - a.made })
	answer := map[string]any{"kind": "bigquery#jobList", "etag": "x"}
	if len(jobs) > size {
		jobs = jobs[:size]
		answer["nextPageToken"] = strconv.Itoa(jobs[size-1].made)
	}
	list := []any{}
	for _, e := range jobs {
		one := r.Clone(r.Context())
		one.URL.Path, one.URL.RawQuery = "/bigquery/v2/projects/"+project+"/jobs/"+e.id, ""
		var res captured
		d.job(&res, one, project, e.id)
		var m map[string]any
		if res.status != http.StatusOK || json.Unmarshal(res.body.Bytes(), &m) != nil {
			continue
		}
		if q.Get("projection") != "full" {
			delete(m, "configuration")
		}
		if status, ok := m["status"].(map[string]any); ok {
			m["state"] = status["state"]
		}
		list = append(list, m)
	}
	answer["jobs"] = list
	writeJSON(w, http.StatusOK, answer)
}

// Jobs returns the jobs of the double's own (synthetic queries and discarded
// loads, and all where there is no emulator behind) as jobs.list of the REST
// API would, in the order of their ids. It is BigQuery's account of what ran,
// to hold the gateway's records against.
func (d *Double) Jobs() []map[string]any {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []map[string]any
	for _, id := range slices.SortedFunc(maps.Keys(d.jobs), cmp.Compare[string]) {
		if j := d.jobs[id]; j.own != nil && j.alias == "" {
			list = append(list, maps.Clone(j.own))
		}
	}
	return list
}

// RunBy makes a job of the double's own one that another account ran.
func (d *Double) RunBy(id, account string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if j := d.jobs[id]; j != nil && j.own != nil {
		j.own = maps.Clone(j.own)
		j.own["user_email"] = account
	}
}
