package bigquery

import (
	"strings"
	"sync"

	"verbatim.dev/recorder/record"
)

// Owner is a principal, without its run: a later run of the same pipeline owns
// what an earlier one made.
type Owner struct {
	Issuer  string
	Subject string
}

// Key names something that belongs to whoever made it.
type Key struct {
	kind byte
	name string
}

// JobKey names a job. The location is left out: pollers may omit it, and an id
// that one caller uses must not be taken over in another location.
func JobKey(j record.Job) Key { return Key{'j', j.Project + "\x00" + j.ID} }

// UploadKey names a resumable upload.
func UploadKey(id string) Key { return Key{'u', id} }

// SessionKey names a BigQuery session.
func SessionKey(project, id string) Key { return Key{'s', project + "\x00" + id} }

// TableKey names an anonymous table. Its owners are a set: a cache hit gives
// two callers the same one.
func TableKey(t Table) Key {
	return Key{'t', t.Project + "\x00" + strings.ToLower(t.Dataset) + "\x00" + strings.ToLower(t.Table)}
}

// maxOwners of one anonymous table; the oldest is forgotten.
const maxOwners = 64

// Owners remembers on this replica who made a job, an upload, a session or an
// anonymous table. It is bounded: what was not used for longest is forgotten,
// and then nobody owns it as far as this replica knows. It is safe for
// concurrent use.
type Owners struct {
	limit int

	mu sync.Mutex
	// When young is full it becomes old, and what old held is forgotten.
	young, old map[Key][]Owner
}

// NewOwners returns an empty registry for about limit things, 65536 where
// limit is 0.
func NewOwners(limit int) *Owners {
	if limit <= 0 {
		limit = 1 << 16
	}
	return &Owners{limit: (limit + 1) / 2, young: map[Key][]Owner{}, old: map[Key][]Owner{}}
}

// Put says that owner made key. It returns false, and changes nothing, where
// key is a job, upload or session that belongs to somebody else.
func (o *Owners) Put(key Key, owner Owner) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	have := o.find(key)
	for _, h := range have {
		if h == owner {
			return true
		}
	}
	if len(have) > 0 && key.kind != 't' {
		return false
	}
	if len(have) >= maxOwners {
		have = have[1:]
	}
	o.store(key, append(have[:len(have):len(have)], owner))
	return true
}

// Owner returns who made a job, upload or session, or who first came to a
// table.
func (o *Owners) Owner(key Key) (Owner, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if have := o.find(key); len(have) > 0 {
		return have[0], true
	}
	return Owner{}, false
}

// Owns reports whether owner is among those who made key. known is false where
// this replica knows of none.
func (o *Owners) Owns(key Key, owner Owner) (owns, known bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	have := o.find(key)
	for _, h := range have {
		if h == owner {
			return true, true
		}
	}
	return false, len(have) > 0
}

// find looks a key up and keeps it young. The caller holds mu.
func (o *Owners) find(key Key) []Owner {
	if have, ok := o.young[key]; ok {
		return have
	}
	have, ok := o.old[key]
	if ok {
		o.store(key, have)
	}
	return have
}

func (o *Owners) store(key Key, owners []Owner) {
	if _, ok := o.young[key]; !ok && len(o.young) >= o.limit {
		o.old, o.young = o.young, make(map[Key][]Owner, o.limit)
	}
	o.young[key] = owners
}
