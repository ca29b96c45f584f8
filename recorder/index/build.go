package index

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

const (
	defaultMemory = 128 << 20
	defaultCommit = 4096
	// A segment that came late makes those behind it be read again, which the
	// listing has passed by then.
	mostPasses  = 4
	rebuildName = StatePrefix + "rebuild.json"
)

// Build brings the index up to what the vault holds. It may be cut off at any
// moment and done again.
func Build(ctx context.Context, c Config) (Stats, error) {
	b, err := newBuild(ctx, c)
	if err != nil {
		return Stats{}, err
	}
	if err := b.run(); err != nil {
		return b.stats, fmt.Errorf("index: %w", err)
	}
	return b.stats, nil
}

// Rebuild removes the index and builds it anew. While it runs the index is not
// whole; where it was cut off the next build goes on.
func Rebuild(ctx context.Context, c Config) (Stats, error) {
	d, err := readDocument[bool](ctx, c.Store, rebuildName)
	if err == nil && d.version == "" {
		d.value = true
		err = d.write(ctx, c.Store)
	}
	if err != nil {
		return Stats{}, fmt.Errorf("index: %w", err)
	}
	return Build(ctx, c)
}

// clear ends what Rebuild began: the state first, so that what a crash leaves
// is never taken for more than it is.
func (b *build) clear() error {
	d, err := readDocument[bool](b.ctx, b.c.Store, rebuildName)
	if err != nil || d.version == "" {
		return err
	}
	for _, prefix := range []string{StatePrefix, RowsPrefix} {
		all, err := names(b.ctx, b.c.Store, prefix)
		if err != nil {
			return err
		}
		for _, name := range all {
			if name == rebuildName {
				continue
			}
			if err := remove(b.ctx, b.c.Store, name); err != nil {
				return err
			}
		}
	}
	return b.c.Store.Remove(b.ctx, rebuildName, d.version)
}

// remove removes whatever version is there.
func remove(ctx context.Context, s Store, name string) error {
	_, v, err := s.Read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.Remove(ctx, name, v)
	}
	return err
}

type stateID struct {
	gateway string
	epoch   record.Epoch
}

// rows is a file in memory.
type rows struct {
	id      fileID
	version string
	rows    map[uint64]*Row
	size    int
	dirty   bool
	used    int64
}

type build struct {
	reader
	files  map[fileID]*rows
	held   int // bytes of the rows of files
	clock  int64
	states map[stateID]*epochState
	known  map[string]record.Epoch // gateways whose states are in states, with the newest epoch
	again  bool
	since  int // segments since the last commit

	// expiries has for each file when the first of its rows expires, 0 for
	// never; applied are the erasures whose rows are gone.
	expiries *document[map[string]int64]
	applied  *document[[]string]
	gone     erased
}

// erased are data keys that were erased, by epoch.
type erased map[string]map[string]bool

func (e erased) add(keys []vault.ErasedKey) {
	for _, k := range keys {
		if e[k.Epoch] == nil {
			e[k.Epoch] = map[string]bool{}
		}
		e[k.Epoch][k.Key] = true
	}
}

// of reports whether a row was sealed with one of them.
func (e erased) of(r *Row) bool {
	keys := e[r.Epoch]
	return keys != nil && slices.ContainsFunc(r.Keys, func(k string) bool { return keys[k] })
}

func newBuild(ctx context.Context, c Config) (*build, error) {
	switch {
	case c.Vault == nil || c.Store == nil:
		return nil, errors.New("index: a vault and a place for the index are needed")
	case c.Keys == nil:
		return nil, errors.New("index: records are sealed: the tenant's keyset is needed")
	}
	c.memory, c.commitEvery = cmp.Or(c.memory, defaultMemory), cmp.Or(c.commitEvery, defaultCommit)
	b := &build{
		reader: reader{ctx: ctx, c: &c, open: map[record.ID]*draft{}},
		files:  map[fileID]*rows{}, states: map[stateID]*epochState{}, known: map[string]record.Epoch{}, gone: erased{},
	}
	b.begun, b.done = b.begin, b.put
	return b, nil
}

func (b *build) run() error {
	if err := b.clear(); err != nil {
		return err
	}
	var err error
	if b.expiries, err = readDocument[map[string]int64](b.ctx, b.c.Store, filesName); err != nil {
		return err
	}
	if b.expiries.value == nil {
		b.expiries.value = map[string]int64{}
	}
	if b.applied, err = readDocument[[]string](b.ctx, b.c.Store, erasuresName); err != nil {
		return err
	}
	if err := b.erasures(); err != nil {
		return err
	}
	for range mostPasses {
		b.again = false
		if err := b.pass(); err != nil {
			return err
		}
		if err := b.commit(); err != nil {
			return err
		}
		if !b.again {
			break
		}
	}
	return b.expire()
}

func (b *build) pass() error {
	from := ""
	if !b.c.Since.IsZero() {
		from = vault.Day(b.c.Since)
	}
	for path, err := range b.c.Vault.List(b.ctx, vault.SegmentsPrefix) {
		if err != nil {
			return fmt.Errorf("list the vault's segments: %w", err)
		}
		n, err := ledger.ParseName(path)
		if err != nil {
			b.c.warn(err)
			continue
		}
		if n.Part || n.Day < from {
			continue
		}
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		if err := b.take(n); err != nil {
			return err
		}
		if b.since >= b.c.commitEvery {
			if err := b.commit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// take indexes a segment that is not in the index.
func (b *build) take(n ledger.Name) error {
	if err := b.gateway(n.Gateway); err != nil {
		return err
	}
	s := b.state(n.Gateway, n.Epoch)
	if s.covers(n.First, n.Last) {
		b.stats.Skipped++
		return nil
	}
	if err := b.late(s, n); err != nil {
		return err
	}
	there, err := b.segment(n)
	if err != nil || !there {
		return err
	}
	s.add(n.First, n.Last)
	b.since++
	if err := b.keyset(); err != nil {
		return err
	}
	if b.c.Progress != nil {
		b.c.Progress(b.stats)
	}
	return nil
}

// late makes what comes after a segment be read again, where the segment came
// after it: outcomes were met whose exchanges were not known.
func (b *build) late(s *epochState, n ledger.Name) error {
	newest := b.known[n.Gateway]
	after := bytes.Compare(newest[:], n.Epoch[:])
	if after < 0 {
		b.known[n.Gateway] = n.Epoch
	}
	if after <= 0 && s.last() <= n.Last {
		return nil
	}
	var later []*epochState
	for _, o := range b.states {
		if o.Gateway == n.Gateway && bytes.Compare(o.epoch[:], n.Epoch[:]) > 0 && len(o.Done) > 0 {
			later = append(later, o)
		}
	}
	if s.last() <= n.Last && len(later) == 0 {
		return nil
	}
	b.again = true
	s.cut(n.First)
	for _, o := range later {
		o.Done, o.dirty = nil, true
	}
	maps.DeleteFunc(b.open, func(id record.ID, d *draft) bool {
		return d.row.Gateway == n.Gateway && (bytes.Compare(id.Epoch[:], n.Epoch[:]) > 0 || id.Epoch == n.Epoch && id.Sequence >= n.First)
	})
	return nil
}

// gateway loads the states of a gateway's epochs, and their open exchanges.
func (b *build) gateway(name string) error {
	if _, ok := b.known[name]; ok {
		return nil
	}
	var newest record.Epoch
	all, err := gatewayStates(b.ctx, b.c.Store, name)
	if err != nil {
		return err
	}
	for _, s := range all {
		b.states[stateID{name, s.epoch}] = s
		newest = s.epoch
		for _, o := range s.Open {
			f, err := b.file(fileID{o.Day, s.epoch, s.file(o.Sequence)})
			if err != nil {
				return err
			}
			row := f.rows[o.Sequence]
			if row == nil {
				continue // it was purged
			}
			copied := *row
			d := &draft{row: &copied, epoch: s.epoch, day: o.Day}
			b.open[d.id()] = d
		}
	}
	b.known[name] = newest
	return nil
}

func (b *build) state(gateway string, e record.Epoch) *epochState {
	s := b.states[stateID{gateway, e}]
	if s == nil {
		s = &epochState{Version: version, Gateway: gateway, Epoch: e.String(), epoch: e}
		b.states[stateID{gateway, e}] = s
	}
	return s
}

func (b *build) begin(d *draft, size int) error {
	b.state(d.row.Gateway, d.epoch).begin(uint64(d.row.Sequence), size)
	return nil
}

// put puts a row into its file, in the place of the one that is there.
func (b *build) put(d *draft) error {
	f, err := b.file(fileID{d.day, d.epoch, b.state(d.row.Gateway, d.epoch).file(uint64(d.row.Sequence))})
	if err != nil {
		return err
	}
	have := f.rows[uint64(d.row.Sequence)]
	if d.erased || b.gone.of(d.row) {
		d.erased = true
		if d.ended {
			b.stats.Erased++
		}
		if have != nil {
			delete(f.rows, uint64(d.row.Sequence))
			f.dirty = true
			b.resize(f, -have.size())
		}
		return nil
	}
	if have != nil && len(differences(have, d.row)) == 0 {
		return nil
	}
	row := *d.row // the draft may go on
	f.rows[uint64(row.Sequence)] = &row
	f.dirty = true
	b.stats.Rows++
	if row.Unreadable != "" && d.ended {
		b.stats.Unreadable++
	}
	n := row.size()
	if have != nil {
		n -= have.size()
	}
	b.resize(f, n)
	return b.evict(f)
}

func (b *build) resize(f *rows, n int) {
	f.size += n
	b.held += n
}

// file returns a file, from memory or from where it rests.
func (b *build) file(id fileID) (*rows, error) {
	b.clock++
	if f := b.files[id]; f != nil {
		f.used = b.clock
		return f, nil
	}
	f := &rows{id: id, rows: map[uint64]*Row{}, used: b.clock}
	content, v, err := b.c.Store.Read(b.ctx, id.name())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		f.version = v
		err := decode(content, func(r *Row) error {
			f.rows[uint64(r.Sequence)] = r
			f.size += r.size()
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w: run recorder index rebuild", id.name(), err)
		}
	}
	b.files[id] = f
	b.held += f.size
	return f, b.evict(f)
}

// evict makes room by writing the files that were not used for longest.
func (b *build) evict(but *rows) error {
	for b.held > b.c.memory && len(b.files) > 1 {
		var oldest *rows
		for _, f := range b.files {
			if f != but && (oldest == nil || f.used < oldest.used) {
				oldest = f
			}
		}
		if err := b.flush(oldest); err != nil {
			return err
		}
		delete(b.files, oldest.id)
		b.held -= oldest.size
	}
	return nil
}

func sorted(m map[uint64]*Row) []*Row {
	all := make([]*Row, 0, len(m))
	for _, seq := range slices.Sorted(maps.Keys(m)) {
		all = append(all, m[seq])
	}
	return all
}

func (b *build) flush(f *rows) error {
	if !f.dirty {
		return nil
	}
	content, v, err := store(b.ctx, b.c, f.id.name(), f.version, sorted(f.rows))
	if err != nil {
		return err
	}
	f.version, f.dirty = v, false
	if v == "" {
		delete(b.expiries.value, f.id.name())
		return nil
	}
	b.stats.Files++
	b.stats.Written += int64(content)
	b.expiries.value[f.id.name()] = earliest(f.rows)
	return nil
}

// store writes a file's rows, or removes it where there are none.
func store(ctx context.Context, c *Config, name, version string, all []*Row) (size int, made string, err error) {
	if len(all) == 0 {
		if version == "" {
			return 0, "", nil
		}
		return 0, "", c.Store.Remove(ctx, name, version)
	}
	codec := packed
	if c.uncompressed {
		codec = plain
	}
	content, err := encode(all, codec)
	if err != nil {
		return 0, "", fmt.Errorf("%s: %w", name, err)
	}
	made, err = c.Store.Write(ctx, name, version, content)
	return len(content), made, err
}

func earliest(m map[uint64]*Row) int64 {
	least := int64(0)
	for _, r := range m {
		if r.Expires != 0 && (least == 0 || r.Expires < least) {
			least = r.Expires
		}
	}
	return least
}

// commit makes everything that was read durable, and then says so. What is in
// memory is let go, but for files that may be needed again.
func (b *build) commit() error {
	open := map[stateID][]openRow{}
	for _, id := range slices.SortedFunc(maps.Keys(b.open), func(x, y record.ID) int {
		return cmp.Or(bytes.Compare(x.Epoch[:], y.Epoch[:]), compareUint(x.Sequence, y.Sequence))
	}) {
		d := b.open[id]
		if err := b.put(d); err != nil {
			return err
		}
		if !d.erased {
			k := stateID{d.row.Gateway, d.epoch}
			open[k] = append(open[k], openRow{id.Sequence, d.day})
		}
	}
	for _, f := range b.byName() {
		if err := b.flush(f); err != nil {
			return err
		}
	}
	if err := b.erasures(); err != nil {
		return err
	}
	if b.since > 0 {
		if err := b.expiries.write(b.ctx, b.c.Store); err != nil {
			return err
		}
	}
	for k, s := range b.states {
		if !slices.Equal(s.Open, open[k]) {
			s.Open, s.dirty = open[k], true
		}
		if !s.dirty {
			continue
		}
		d := document[*epochState]{name: stateName(k.gateway, k.epoch), version: s.version, value: s}
		if err := d.write(b.ctx, b.c.Store); err != nil {
			return err
		}
	}
	clear(b.states)
	clear(b.known)
	clear(b.open)
	b.since = 0
	return nil
}

func (b *build) byName() []*rows {
	return slices.SortedFunc(maps.Values(b.files), func(x, y *rows) int { return cmp.Compare(x.id.name(), y.id.name()) })
}

// erasures purges the rows of erasures that the index has not heard of. It is
// called after each time that files were written: either an erasure's note is
// found now, or whoever wrote it finds the rows.
func (b *build) erasures() error {
	fresh := erased{}
	var ids []string
	for name, err := range b.c.Vault.List(b.ctx, vault.ErasuresPrefix) {
		if err != nil {
			return err
		}
		id, done, err := vault.ParseErasureName(name)
		if err != nil {
			b.c.warn(err)
			continue
		}
		if done || slices.Contains(b.applied.value, id) {
			continue
		}
		x, err := readErasure(b.ctx, b.c.Vault, name)
		if err != nil {
			return err
		}
		// Where a hold came in between, the note stands and the keys do too.
		keys, err := b.destroyed(x.Keys)
		if err != nil {
			return err
		}
		fresh.add(keys)
		b.gone.add(keys)
		if len(keys) == len(x.Keys) {
			ids = append(ids, id)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	for _, f := range b.files {
		for seq, r := range f.rows {
			if fresh.of(r) {
				delete(f.rows, seq)
				b.resize(f, -r.size())
				f.dirty = true
				b.stats.Purged++
			}
		}
	}
	for _, f := range b.byName() {
		if err := b.flush(f); err != nil {
			return err
		}
	}
	clear(b.files)
	b.held = 0
	p, err := purge(b.ctx, b.c, fresh)
	b.stats.Purged += p.Rows
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	b.applied.value = append(b.applied.value, ids...)
	slices.Sort(b.applied.value)
	return b.applied.write(b.ctx, b.c.Store)
}

// destroyed returns those of the keys that have a tombstone.
func (b *build) destroyed(keys []vault.ErasedKey) ([]vault.ErasedKey, error) {
	var all []vault.ErasedKey
	for _, k := range keys {
		epoch, id, err := k.Parse()
		if err != nil {
			return nil, err
		}
		there, err := exists(b.ctx, b.c.Vault, vault.TombstoneName(epoch, id))
		if err != nil {
			return nil, err
		}
		if there {
			all = append(all, k)
		}
	}
	return all, nil
}

// expire takes away rows that are past their retention and whose segment is not
// in the vault any more. Rows of what a hold keeps stay.
func (b *build) expire() error {
	all, err := names(b.ctx, b.c.Store, RowsPrefix)
	if err != nil {
		return err
	}
	now := micros(b.c.now())
	changed := false
	there := map[string]bool{}
	for _, name := range all {
		if _, err := parseFile(name); err != nil {
			b.c.warn(err)
			continue
		}
		if first, ok := b.expiries.value[name]; ok && (first == 0 || first > now) {
			continue
		}
		clear(there)
		var failed error
		left := map[uint64]*Row{}
		n, err := rewrite(b.ctx, b.c, name, func(r *Row) bool {
			if r.Expires != 0 && r.Expires <= now && failed == nil {
				stays, known := there[r.Segment]
				if !known {
					stays, failed = exists(b.ctx, b.c.Vault, r.Segment)
					there[r.Segment] = stays
				}
				if failed == nil && !stays {
					return false
				}
			}
			left[uint64(r.Sequence)] = r
			return true
		})
		if err = cmp.Or(failed, err); err != nil {
			return err
		}
		b.stats.Expired += int64(n)
		changed = true
		if delete(b.expiries.value, name); len(left) > 0 {
			b.expiries.value[name] = earliest(left)
		}
	}
	for name := range b.expiries.value {
		if _, ok := slices.BinarySearch(all, name); !ok {
			delete(b.expiries.value, name)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return b.expiries.write(b.ctx, b.c.Store)
}

func exists(ctx context.Context, v ledger.Vault, name string) (bool, error) {
	r, err := v.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}
