package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// Code says in a stable word what a check found.
type Code string

// The codes of findings.
const (
	Differs Code = "row_differs" // the row says other than the records
	Missing Code = "row_missing" // the records have the exchange, the index has not
	Extra   Code = "row_extra"   // the index has a row that no record tells of
	Kept    Code = "row_erased"  // a row whose key was erased
	Broken  Code = "file_broken" // no file of an index, or one that cannot be read
)

// Finding is one thing that is wrong with an index.
type Finding struct {
	Code     Code     `json:"code"`
	Exchange string   `json:"exchange,omitempty"`
	File     string   `json:"file,omitempty"`
	Columns  []string `json:"columns,omitempty"` // that differ
	Message  string   `json:"message"`
}

// Report is what a check found.
type Report struct {
	Stats Stats `json:"-"`
	// Checked are rows that were compared; Behind are exchanges that the next
	// build brings up to date; Expired are rows that it takes away.
	Checked  int64     `json:"checked"`
	Behind   int64     `json:"behind"`
	Expired  int64     `json:"expired"`
	Findings []Finding `json:"findings"`
	// More counts findings beyond those that are listed.
	More int64 `json:"more_findings,omitempty"`
}

// mostFindings is how many findings are listed.
const mostFindings = 1000

func (r *Report) find(f Finding) {
	if len(r.Findings) == mostFindings {
		r.More++
		return
	}
	r.Findings = append(r.Findings, f)
}

// Check makes the rows of all records of the vault anew and compares them with
// those of the index, column by column. It reads what [Build] reads, writes
// nothing, and may run beside a build. The vault's own soundness is for
// [ledger.Verify] to judge: an index can only be held against the segments that
// are there.
//
// Memory: as a build, and one bit a row.
func Check(ctx context.Context, c Config) (*Report, error) {
	b, err := newBuild(ctx, c)
	if err != nil {
		return nil, err
	}
	k := &checker{reader: b.reader, report: &Report{Findings: []Finding{}}, states: map[stateID]*epochState{}, files: map[fileID]*checked{}, seen: map[fileID]map[uint64]uint64{}, last: map[record.Epoch]uint64{}}
	k.begun = func(*draft, int) error { return nil }
	k.done = k.compare
	if err := k.run(); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	k.report.Stats = k.stats
	return k.report, nil
}

type checker struct {
	reader
	report *Report
	states map[stateID]*epochState
	at     map[record.Epoch][]fileID
	files  map[fileID]*checked
	held   int
	clock  int64
	// seen has for each file the rows that records tell of: a bit for each
	// sequence from the file's first on, by words.
	seen map[fileID]map[uint64]uint64
	last map[record.Epoch]uint64 // sequence that was read
}

type checked struct {
	rows map[uint64]*Row
	size int
	used int64
	bad  bool
}

func (k *checker) run() error {
	if err := k.list(); err != nil {
		return err
	}
	for path, err := range k.c.Vault.List(k.ctx, vault.SegmentsPrefix) {
		if err != nil {
			return fmt.Errorf("list the vault's segments: %w", err)
		}
		n, err := ledger.ParseName(path)
		if err != nil {
			k.c.warn(err)
			continue
		}
		if n.Part {
			continue
		}
		if k.ctx.Err() != nil {
			return context.Cause(k.ctx)
		}
		if _, err := k.segment(n); err != nil {
			return err
		}
		k.last[n.Epoch] = max(k.last[n.Epoch], n.Last)
		if err := k.keyset(); err != nil {
			return err
		}
		if k.c.Progress != nil {
			k.c.Progress(k.stats)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(k.open), compareIDs) {
		if err := k.compare(k.open[id]); err != nil {
			return err
		}
	}
	return k.extra()
}

// outcomeColumns are those that an outcome sets.
var outcomeColumns = []string{
	"forwarded", "first_byte", "last_byte", "ended", "latency_us", "result", "status", "cause", "error", "job", "job_project", "job_location",
	"parent_job", "job_state", "row_count", "total_rows", "bytes_in", "bytes_out", "bytes_billed", "bytes_processed", "cache_hit",
	"request_sha256", "upstream_sha256", "response_sha256", "closed_by", "reads", "writes", "functions", "masked", "keys", "unreadable",
}

// older reports whether a row may be what an earlier build knew of an exchange
// that has gone on since: without an outcome, or without a decision.
func older(now, row *Row) bool {
	if row.Result != Pending {
		return false
	}
	return row.Decision == "" || !slices.ContainsFunc(differences(now, row), func(c string) bool { return !slices.Contains(outcomeColumns, c) })
}

func compareIDs(a, b record.ID) int {
	return cmp.Or(slices.Compare(a.Epoch[:], b.Epoch[:]), compareUint(a.Sequence, b.Sequence))
}

// list lists the index's files.
func (k *checker) list() error {
	k.at = map[record.Epoch][]fileID{}
	for name, err := range k.c.Store.List(k.ctx, RowsPrefix) {
		if err != nil {
			return err
		}
		f, err := parseFile(name)
		if err != nil {
			k.report.find(Finding{Code: Broken, File: name, Message: "is no name of an index's file: readers may take its rows for the index's"})
			continue
		}
		k.at[f.Epoch] = append(k.at[f.Epoch], f)
	}
	for _, all := range k.at {
		slices.SortFunc(all, func(a, b fileID) int { return cmp.Or(strings.Compare(a.Day, b.Day), compareUint(a.First, b.First)) })
	}
	return nil
}

// home returns the file where the row of an exchange must be.
func (k *checker) home(d *draft) (fileID, bool) {
	var best fileID
	seq := uint64(d.row.Sequence)
	for _, f := range k.at[d.epoch] {
		if f.Day == d.day && f.First <= seq && (seq-1)/block == (f.First-1)/block {
			best = f
		}
	}
	return best, best.First != 0
}

func (k *checker) compare(d *draft) error {
	s, err := k.state(d.row.Gateway, d.last.Epoch)
	if err != nil {
		return err
	}
	covered := s.covers(d.last.Sequence, d.last.Sequence)
	for fresh := false; ; fresh = true {
		var row *Row
		id, ok := k.home(d)
		if ok {
			f, err := k.file(id, fresh)
			if err != nil {
				return err
			}
			if f.bad {
				return nil // told
			}
			row = f.rows[uint64(d.row.Sequence)]
		}
		var finding *Finding
		switch {
		case d.erased && row != nil:
			finding = &Finding{Code: Kept, Message: "its data key was erased, and the row is there: run recorder index build"}
		case d.erased:
			return nil
		case !covered && (row == nil || older(d.row, row)):
			k.report.Behind++
		case row == nil:
			finding = &Finding{Code: Missing, Message: "is in the vault, and was in what the index was built from: run recorder index rebuild"}
		default:
			if columns := differences(d.row, row); len(columns) > 0 {
				finding = &Finding{Code: Differs, Columns: columns, Message: "is not what the records say: run recorder index rebuild"}
			}
		}
		if finding != nil && ok && !fresh {
			continue // a build may have written the file since
		}
		if row != nil {
			k.see(id, uint64(d.row.Sequence))
		}
		if covered {
			k.report.Checked++
		}
		if finding != nil {
			finding.Exchange = d.row.Exchange
			if ok {
				finding.File = id.name()
			}
			k.report.find(*finding)
		}
		return nil
	}
}

func (k *checker) see(id fileID, seq uint64) {
	if k.seen[id] == nil {
		k.seen[id] = map[uint64]uint64{}
	}
	n := seq - id.First
	k.seen[id][n/64] |= 1 << (n % 64)
}

func (k *checker) saw(id fileID, seq uint64) bool {
	n := seq - id.First
	return seq >= id.First && k.seen[id][n/64]&(1<<(n%64)) != 0
}

func (k *checker) state(gateway string, e record.Epoch) (*epochState, error) {
	id := stateID{gateway, e}
	if s := k.states[id]; s != nil {
		return s, nil
	}
	s, err := readState(k.ctx, k.c.Store, gateway, e)
	if err != nil {
		return nil, err
	}
	if len(k.states) >= 1000 {
		clear(k.states)
	}
	k.states[id] = s
	return s, nil
}

func (k *checker) file(id fileID, fresh bool) (*checked, error) {
	k.clock++
	if f := k.files[id]; f != nil {
		if !fresh || f.bad {
			f.used = k.clock
			return f, nil
		}
		k.drop(id)
	}
	f := &checked{rows: map[uint64]*Row{}, used: k.clock}
	content, _, err := k.c.Store.Read(k.ctx, id.name())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		err := decode(content, func(r *Row) error {
			f.rows[uint64(r.Sequence)] = r
			f.size += r.size()
			return nil
		})
		if err != nil {
			f.bad = true
			k.report.find(Finding{Code: Broken, File: id.name(), Message: err.Error() + ": run recorder index rebuild"})
		}
	}
	k.files[id] = f
	k.held += f.size
	for k.held > k.c.memory && len(k.files) > 1 {
		oldest := id
		for other, o := range k.files {
			if other != id && (oldest == id || o.used < k.files[oldest].used) {
				oldest = other
			}
		}
		k.drop(oldest)
	}
	return f, nil
}

func (k *checker) drop(id fileID) {
	k.held -= k.files[id].size
	delete(k.files, id)
}

// newer reports whether a row is of a segment that came while the check ran.
func (k *checker) newer(r *Row, id fileID, seq uint64) bool {
	n, err := vault.ParseSegmentName(r.Segment)
	if err != nil || n.Epoch != id.Epoch || n.Gateway != r.Gateway || seq < n.First || seq > n.Last {
		return false
	}
	there, err := exists(k.ctx, k.c.Vault, r.Segment)
	return err == nil && there
}

// extra finds rows that no record tells of.
func (k *checker) extra() error {
	now := micros(k.c.now())
	for _, epoch := range slices.SortedFunc(maps.Keys(k.at), func(a, b record.Epoch) int { return slices.Compare(a[:], b[:]) }) {
		for _, id := range k.at[epoch] {
			if f := k.files[id]; f != nil && f.bad {
				continue
			}
			content, _, err := k.c.Store.Read(k.ctx, id.name())
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			told := map[uint64]bool{}
			there := map[string]bool{}
			err = decode(content, func(r *Row) error {
				seq := uint64(r.Sequence)
				own := record.ID{Epoch: id.Epoch, Sequence: seq}.String()
				message := ""
				switch {
				case r.Exchange != own || r.Epoch != id.Epoch.String():
					message = "is not of the epoch that the file's name says"
				case told[seq]:
					message = "is there twice"
				case !k.saw(id, seq):
					message = "no record of the vault tells of it, or not here"
				}
				told[seq] = true
				if message == "" {
					return nil
				}
				if r.Expires != 0 && r.Expires <= now {
					stays, known := there[r.Segment]
					if !known {
						var err error
						if vault.CheckName(r.Segment) == nil {
							if stays, err = exists(k.ctx, k.c.Vault, r.Segment); err != nil {
								return err
							}
						}
						there[r.Segment] = stays
					}
					if !stays {
						k.report.Expired++
						return nil
					}
				}
				if r.Exchange == own && seq > k.last[id.Epoch] && k.newer(r, id, seq) {
					k.report.Behind++
					return nil
				}
				k.report.find(Finding{Code: Extra, Exchange: r.Exchange, File: id.name(), Message: message + ": run recorder index rebuild"})
				return nil
			})
			if err != nil {
				k.report.find(Finding{Code: Broken, File: id.name(), Message: err.Error() + ": run recorder index rebuild"})
			}
		}
	}
	return nil
}
