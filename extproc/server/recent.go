package server

// recent remembers the values that were used last, about limit times two of
// them: when young is full it becomes old, and what old held is forgotten. It has no
// lock of its own.
type recent[K comparable, V any] struct {
	limit      int
	young, old map[K]V
	forgot     bool // something was
}

func newRecent[K comparable, V any](limit int) recent[K, V] {
	return recent[K, V]{limit: max(limit/2, 1), young: map[K]V{}}
}

func (r *recent[K, V]) find(key K) (V, bool) {
	v, ok := r.young[key]
	if !ok {
		if v, ok = r.old[key]; ok {
			r.put(key, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(key K, v V) {
	if _, ok := r.young[key]; !ok && len(r.young) >= r.limit {
		r.forgot = r.forgot || r.old != nil
		r.old, r.young = r.young, make(map[K]V, r.limit)
	}
	r.young[key] = v
}
