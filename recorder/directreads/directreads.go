// Package directreads holds Google's own logs of who read a vault's buckets, used
// its keys and read its keyset (Data Access logs) against the access records.
// What recorder serve answers is on record; who has a right on the buckets and
// reads them himself is only in Google's log.
//
// Its rules: a read by anybody who is not named is a finding; nobody is excused
// by what a log entry says of itself but its principal, which Google verified;
// and an entry that is not understood is a finding, not passed over.
//
// It needs no key: when something was read stands outside the seal of the access
// records.
package directreads

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/reconcile"
)

// Code says what is wrong. Codes are stable.
type Code string

// The codes of findings.
const (
	// ReadByOther: somebody who is not named read objects of the vault.
	ReadByOther Code = "read_by_other"
	// ListByOther: somebody who is not named listed a bucket of the vault.
	ListByOther Code = "list_by_other"
	// ReadUnrecorded: the service's identity read objects, and no access record
	// is near: somebody uses its credential beside it, or a record is missing.
	ReadUnrecorded Code = "read_unrecorded"
	// DecryptByOther: somebody else than the service decrypted with a key of the
	// vault.
	DecryptByOther Code = "decrypt_by_other"
	// DecryptUnrecorded: the service's identity did, and neither an access record
	// nor a start of the service is near.
	DecryptUnrecorded Code = "decrypt_unrecorded"
	// KeysetByOther: somebody else than the service read the secret that holds
	// the keyset.
	KeysetByOther Code = "keyset_by_other"
	// Refused: somebody who is not named tried any of this, and was not allowed.
	Refused Code = "refused"
	// LogSilent: there are access records of the time, and the log has no read of
	// the service's: it is another log, or Data Access logs are off.
	LogSilent Code = "log_silent"
	// NotUnderstood: an entry of the log could not be read.
	NotUnderstood Code = "not_understood"
)

// Config says what to compare.
type Config struct {
	// Log is the exported log.
	Log reconcile.Source
	// Accesses are the times of the vault's access records, in any order.
	Accesses []time.Time
	// Starts are when the service started: it may decrypt its keyset then.
	Starts []time.Time
	// Since and Until bound the entries, Until excluded; zero sets no bound.
	Since, Until time.Time
	// Margin, 5 minutes where 0, is how far a read may be from its record: a
	// search reads first and is put on record when it has sorted.
	Margin time.Duration

	// Buckets are those of the vault, by name; Keys those in Cloud KMS that wrap
	// its data keys or encrypt its keyset; Secrets hold the keyset. They are
	// written as in [Entry].
	Buckets, Keys, Secrets []string
	// Service are the identities of recorder serve. Sinks read and list objects,
	// and decrypt nothing; Verifiers likewise: verifying needs no access record.
	Service, Sinks, Verifiers []string

	// Limit is how many findings the report names; 0: all.
	Limit int
}

// Report says how the log and the records stand.
type Report struct {
	Since  *time.Time `json:"since,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Margin string     `json:"margin"`
	// Clean: every read is of somebody who may, and on record where it must be.
	Clean   bool  `json:"clean"`
	Entries int64 `json:"entries"`
	// Twice counts entries that were exported more than once.
	Twice   int64 `json:"exported_twice,omitempty"`
	Outside int64 `json:"outside_window,omitempty"`
	// Elsewhere counts reads of other buckets, keys and secrets, Events entries of
	// other kinds.
	Elsewhere int64            `json:"elsewhere,omitempty"`
	Events    map[string]int64 `json:"other_events,omitempty"`
	// Reads counts what is about the vault, by account, those with findings too.
	Reads    map[string]int64 `json:"reads"`
	Accesses int64            `json:"access_records"`
	Counts   map[Code]int64   `json:"counts,omitempty"` // reads, by finding
	Findings []Finding        `json:"findings,omitempty"`
	More     int64            `json:"more_findings,omitempty"`
}

// Finding is all that is wrong in one way with what one account did from one
// address to one bucket, key or secret.
type Finding struct {
	Code    Code   `json:"code"`
	Account string `json:"account,omitempty"` // empty: Google does not say
	By      string `json:"impersonated_by,omitempty"`
	Caller  string `json:"caller,omitempty"`
	Agent   string `json:"user_agent,omitempty"` // of the first
	Method  string `json:"method,omitempty"`
	// Where is the bucket as gs://NAME, the key or the secret.
	Where string    `json:"where,omitempty"`
	Count int64     `json:"count"`
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// Objects are the first few of them.
	Objects []string `json:"objects,omitempty"`
	Line    int64    `json:"line,omitempty"` // of the first in the log, from 1
	Detail  string   `json:"detail"`
}

const (
	defaultMargin = 5 * time.Minute
	mostObjects   = 5
	// mostGroups bounds findings in memory, mostIDs the entries that are told
	// apart.
	mostGroups = 20_000
	mostIDs    = 2_000_000
)

// ErrTooMany means that a log holds more than is held in memory.
var ErrTooMany = errors.New("the log holds too much: use a narrower time")

type group struct {
	code                               Code
	account, by, caller, where, method string
}

type run struct {
	c        Config
	r        *Report
	times    []time.Time
	starts   []time.Time
	groups   map[group]*Finding
	seen     map[string]bool
	buckets  map[string]bool
	keys     map[string]bool
	secrets  map[string]bool
	service  map[string]bool
	readers  map[string]bool
	answered int64 // reads of the service's
}

func set(lists ...[]string) map[string]bool {
	out := map[string]bool{}
	for _, l := range lists {
		for _, v := range l {
			out[strings.ToLower(v)] = true
		}
	}
	return out
}

// Run compares. An error is about reading the log.
func Run(ctx context.Context, c Config) (*Report, error) {
	if c.Margin <= 0 {
		c.Margin = defaultMargin
	}
	x := &run{
		c: c, groups: map[group]*Finding{}, seen: map[string]bool{},
		buckets: set(c.Buckets), keys: set(c.Keys), secrets: set(c.Secrets), service: set(c.Service), readers: set(c.Sinks, c.Verifiers),
		r: &Report{Margin: c.Margin.String(), Events: map[string]int64{}, Reads: map[string]int64{}, Counts: map[Code]int64{}},
	}
	for _, t := range c.Accesses {
		if x.inside(t) {
			x.r.Accesses++
		}
	}
	x.times, x.starts = slices.Clone(c.Accesses), slices.Clone(c.Starts)
	slices.SortFunc(x.times, time.Time.Compare)
	slices.SortFunc(x.starts, time.Time.Compare)
	if !c.Since.IsZero() {
		x.r.Since = &c.Since
	}
	if !c.Until.IsZero() {
		x.r.Until = &c.Until
	}
	if err := c.Log(ctx, x.entry); err != nil {
		return nil, err
	}
	if x.r.Accesses > 0 && x.answered == 0 {
		if err := x.find(0, Entry{}, LogSilent, "", fmt.Sprintf("there are %d access records of this time, and the log has no read by the service's identity: it is the log of something else, its identity is another, or Data Access logs are off", x.r.Accesses)); err != nil {
			return nil, err
		}
	}
	x.finish()
	return x.r, nil
}

func (x *run) inside(t time.Time) bool {
	return (x.c.Since.IsZero() || !t.Before(x.c.Since)) && (x.c.Until.IsZero() || t.Before(x.c.Until))
}

func (x *run) entry(line int64, b []byte) error {
	x.r.Entries++
	e, err := Parse(b)
	switch {
	case err != nil:
		return x.find(line, Entry{}, NotUnderstood, "", err.Error())
	case !x.inside(e.Time):
		x.r.Outside++
		return nil
	case e.Kind == other:
		if len(x.r.Events) < 1000 {
			x.r.Events[e.Method]++
		}
		return nil
	}
	where, ours := "", false
	switch e.Kind {
	case Read, List:
		where, ours = "gs://"+e.Bucket, x.buckets[strings.ToLower(e.Bucket)]
	case Decrypt:
		where, ours = e.Resource, x.keys[strings.ToLower(e.Resource)]
	case Secret:
		where, ours = e.Resource, x.secrets[strings.ToLower(e.Resource)]
	}
	if !ours {
		x.r.Elsewhere++
		return nil
	}
	if e.ID != "" {
		// An id is unique with its time and log.
		id := e.ID + e.Time.Format(time.RFC3339Nano) + e.Method
		if x.seen[id] {
			x.r.Twice++
			return nil
		}
		if len(x.seen) >= mostIDs {
			return ErrTooMany
		}
		x.seen[id] = true
	}
	if len(x.r.Reads) < mostGroups {
		x.r.Reads[e.Account]++
	}
	account := strings.ToLower(e.Account)
	service, reader := x.service[account], x.readers[account] && (e.Kind == Read || e.Kind == List)
	if service && !e.Refused {
		x.answered++
	}
	code, detail := Code(""), ""
	switch {
	case service && e.Kind == Read && !e.Refused && !x.near(x.times, e.Time):
		code, detail = ReadUnrecorded, "the service's identity read, and no access record is near: its credential is used beside it, or a record is missing"
	case service && e.Kind == Decrypt && !e.Refused && !x.near(x.times, e.Time) && !x.near(x.starts, e.Time):
		code, detail = DecryptUnrecorded, "the service's identity decrypted, and neither an access record nor a start is near: its credential is used beside it"
	case service, reader:
	case e.Refused:
		code, detail = Refused, "somebody who may not tried to"
	case e.Kind == Read:
		code, detail = ReadByOther, "read past the service, with no access record"
	case e.Kind == List:
		code, detail = ListByOther, "listed past the service: names tell gateways, epochs and times"
	case e.Kind == Decrypt:
		code, detail = DecryptByOther, "decrypted past the service: records may have been read"
	case e.Kind == Secret:
		code, detail = KeysetByOther, "read the keyset: whoever has it can read everything"
	}
	if code == "" {
		return nil
	}
	return x.find(line, e, code, where, detail)
}

// near reports whether one of the times, sorted, is within the margin.
func (x *run) near(times []time.Time, t time.Time) bool {
	i, _ := slices.BinarySearchFunc(times, t.Add(-x.c.Margin), time.Time.Compare)
	return i < len(times) && !times[i].After(t.Add(x.c.Margin))
}

func (x *run) find(line int64, e Entry, code Code, where, detail string) error {
	x.r.Counts[code]++
	k := group{code, e.Account, e.By, e.Caller, where, e.Method}
	f := x.groups[k]
	if f == nil {
		if len(x.groups) >= mostGroups {
			return ErrTooMany
		}
		f = &Finding{Code: code, Account: e.Account, By: e.By, Caller: e.Caller, Agent: e.Agent, Method: e.Method, Where: where, First: e.Time, Last: e.Time, Line: line, Detail: detail}
		x.groups[k] = f
	}
	f.Count++
	if e.Time.Before(f.First) {
		f.First = e.Time
	}
	if e.Time.After(f.Last) {
		f.Last = e.Time
	}
	if e.Object != "" && len(f.Objects) < mostObjects && !slices.Contains(f.Objects, e.Object) {
		f.Objects = append(f.Objects, e.Object)
	}
	return nil
}

// grave is the order of findings.
var grave = []Code{KeysetByOther, DecryptByOther, ReadByOther, DecryptUnrecorded, ReadUnrecorded, LogSilent, NotUnderstood, ListByOther, Refused}

func (x *run) finish() {
	list := slices.SortedFunc(maps.Values(x.groups), func(a, b *Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(grave, a.Code), slices.Index(grave, b.Code)), a.First.Compare(b.First), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Account, b.Account))
	})
	x.r.Clean = len(list) == 0
	for i, f := range list {
		if x.c.Limit > 0 && i >= x.c.Limit {
			x.r.More = int64(len(list) - i)
			break
		}
		x.r.Findings = append(x.r.Findings, *f)
	}
}
