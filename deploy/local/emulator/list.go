package emulator

import (
	"cmp"
	"maps"
	"slices"
)

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
