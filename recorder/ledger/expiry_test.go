package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/retention"
	"verbatim.dev/recorder/vault"
)

// keeper is a vault in memory from which what has expired can be removed.
type keeper struct{ *ledgertest.Vault }

func (k keeper) Create(_ context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if have, ok := k.Files[name]; err == nil && ok && !bytes.Equal(have, b) {
		return fmt.Errorf("%s: %w", name, vault.ErrConflict)
	}
	k.Files[name] = b
	return err
}

func (k keeper) Expire(_ context.Context, name string) error {
	delete(k.Files, name)
	return nil
}

func expireAt(t testing.TB, v *ledgertest.Vault, now time.Time) *retention.Report {
	t.Helper()
	holds, err := retention.Holds(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	r, err := retention.Expire(t.Context(), keeper{v}, retention.Options{Holds: holds, By: "test", Remove: keeper{v}, Now: clock(now)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// aging is a vault whose records are of classes kept for one, two and three
// years: gw-1 crashes, comes back, crashes in the new year and comes back;
// segments are of one class, of several, and of heartbeats alone.
func aging() (v *ledgertest.Vault, epochs []string, last *record.EpochKey) {
	v = ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Deployment, g.Years = deployment, map[string]int{"short": 1, "standard": 2, "long": 3}
	g.Class = "short"
	for epoch := range 3 {
		g.Longest = []string{"long", "", "long"}[epoch]
		g.Begin()
		epochs = append(epochs, g.Epoch.String())
		for i := range 6 {
			g.Class = []string{"short", "standard", "short", "long", "short", "short"}[(i+epoch)%6]
			g.Run(ledgertest.Exchange{Session: fmt.Sprint("s", i%2), Subject: "u", SQL: "SELECT 1", Response: []byte("row")})
			g.Class = "short"
			if i != 1 {
				g.Cut()
			}
			g.Heartbeat()
		}
		if epoch < 2 {
			g.Crash()
			g.Now = g.Now.AddDate(0, 3, 0)
		}
	}
	g.Cut()
	return v, epochs, g.Key()
}

// expiryTamperer is in a vault of which some has expired.
type expiryTamperer struct {
	tamperer
	epochs []string
	key    *record.EpochKey // of the last
}

// of names the files of the nth epoch's segments.
func (x expiryTamperer) of(epoch int) []string {
	ids := x.epochs
	return slices.DeleteFunc(x.v.Names(vault.SegmentsPrefix), func(n string) bool { return !strings.Contains(n, ids[epoch]) })
}

// main is an epoch's nth segment.
func (x expiryTamperer) main(epoch, n int) string {
	names := slices.DeleteFunc(x.of(epoch), func(n string) bool { return !strings.HasSuffix(n, ".seg") })
	if n < 0 {
		n += len(names)
	}
	return names[n]
}

// remove takes the segment with its parts away, and returns its last checkpoint.
func (x expiryTamperer) remove(name string) record.Frame {
	last := x.last(name)
	id, err := vault.ParseSegmentName(name)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, n := range x.v.Names(vault.SegmentPrefix(id.Day, id.Gateway, id.Epoch)) {
		if o, err := vault.ParseSegmentName(n); err == nil && o.First == id.First {
			delete(x.v.Files, n)
		}
	}
	return last
}

func (x expiryTamperer) last(name string) (last record.Frame) {
	r, err := vault.ReadSegment(name, bytes.NewReader(x.v.Files[name]))
	if err != nil {
		x.t.Fatal(err)
	}
	for {
		f, err := r.Next()
		if err != nil {
			return last
		}
		last = f
	}
}

// note makes what an expiry of the segment would have left, but for the change,
// and takes the segment away.
func (x expiryTamperer) note(name string, change func(*vault.Expiry)) {
	id, err := vault.ParseSegmentName(name)
	if err != nil {
		x.t.Fatal(err)
	}
	h := header(x.t, x.v.Files[name])
	last := x.remove(name)
	s, err := record.Stated(&last)
	if err != nil {
		x.t.Fatal(err)
	}
	n := &vault.Expiry{
		Version: 2, Gateway: id.Gateway, Epoch: id.Epoch.String(), Written: now2, By: "somebody", Head: vault.Hex(s.Head),
		Entries: []vault.ExpiryEntry{{Name: name, First: id.First, Last: id.Last, Class: id.Class, Head: vault.Hex(h.Head), Expires: s.Retained.Span().Time(), Records: h.Records, Checkpoint: string(last.Body)}},
	}
	change(n)
	path, err := n.Name()
	if err != nil {
		x.t.Fatal(err)
	}
	b, err := n.Marshal()
	if err != nil {
		x.t.Fatal(err)
	}
	x.v.Files[path] = b
}

// renote changes the first note that is there.
func (x expiryTamperer) renote(kind string, change func(*vault.Expiry)) {
	for _, path := range x.v.Names(vault.ExpiryPrefix) {
		if !strings.Contains(path, "."+kind+"-") {
			continue
		}
		n, err := vault.ParseExpiry(x.v.Files[path])
		if err != nil {
			x.t.Fatal(err)
		}
		change(n)
		if x.v.Files[path], err = n.Marshal(); err != nil {
			x.t.Fatal(err)
		}
		return
	}
	x.t.Fatal("there is no such note")
}

// restate states something else in a note's checkpoint, with a key of the
// attacker's own or, where signed is false, with the signature as it was.
func restate(t testing.TB, body string, signed bool, change func(*record.Statement)) string {
	s, err := record.ParseStatement([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	s.Retained = s.Retained.Clone()
	change(&s)
	f, err := record.Checkpoint(s, attacker.Signer(), true)
	if err != nil {
		t.Fatal(err)
	}
	if signed {
		return string(f.Body)
	}
	text, _, _ := strings.Cut(string(f.Body), "\n\n")
	_, signature, _ := strings.Cut(body, "\n\n")
	return text + "\n\n" + signature
}

// now1 is when the first year's short records have expired, and of the first
// epoch's segments some as a whole; now2 is when some of the second's have.
var (
	now1 = ledgertest.Start.AddDate(1, 1, 0)
	now2 = ledgertest.Start.AddDate(1, 4, 0)
)

// expire1 makes everything in a statement expire in the first year.
func expire1(s *record.Statement) {
	past := record.Retained{}
	past.Add("x", ledgertest.Start.AddDate(1, 0, 0))
	l := past.Classes[0].Expiry
	if s.Retained.Before != (record.Latest{}) {
		s.Retained.Before = l
	}
	for i := range s.Retained.Classes {
		s.Retained.Classes[i].Expiry = l
	}
}

// TestExpiryTampered: what has not expired is not called so by any note, name,
// class or checkpoint that somebody makes who may write the vault, and each
// attempt is named. Until now1 the vault was expired as it should be.
func TestExpiryTampered(t *testing.T) {
	expired := func(n *vault.Expiry) {
		n.Entries[0].Expires = ledgertest.Start.AddDate(1, 0, 0)
		n.Entries[0].Checkpoint = ""
	}
	hold := func(x expiryTamperer, h retention.Hold) {
		h.Reason, h.By = "case", "legal"
		if err := retention.Add(x.t.Context(), keeper{x.v}, &h); err != nil {
			x.t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		now  time.Time // now1 where zero
		code ledger.Code
		text string
		age  time.Duration // the longest retention, as the verifier takes it to be
		do   func(x expiryTamperer)
	}{
		{name: "unexpired segment called expired, without a proof", code: ledger.ExpiryWrong, text: "has no checkpoint", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), expired)
		}},
		{name: "the same by a note of the earlier version", code: ledger.ExpiryWrong, text: "has no checkpoint", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), func(n *vault.Expiry) { expired(n); n.Version = 1 })
		}},
		{name: "unexpired segment called expired, with its own checkpoint", code: ledger.ExpiryWrong, text: "signed that they must be kept until", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), func(n *vault.Expiry) { n.Entries[0].Expires = ledgertest.Start.AddDate(1, 0, 0) })
		}},
		{name: "the date as it was signed, to come", code: ledger.ExpiryWrong, text: "must be kept until", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), func(*vault.Expiry) {})
		}},
		{name: "the checkpoint's expiry changed, signature left", code: ledger.ExpiryWrong, text: "the note is forged", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), func(n *vault.Expiry) {
				expired := &n.Entries[0]
				expired.Checkpoint = restate(x.t, expired.Checkpoint, false, expire1)
				expired.Expires = ledgertest.Start.AddDate(1, 0, 0)
			})
		}},
		{name: "the checkpoint's expiry changed, signed with another key", code: ledger.ExpiryWrong, text: "the note is forged", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), func(n *vault.Expiry) {
				expired := &n.Entries[0]
				expired.Checkpoint = restate(x.t, expired.Checkpoint, true, expire1)
				expired.Expires = ledgertest.Start.AddDate(1, 0, 0)
			})
		}},
		{name: "another segment's checkpoint, which has expired", code: ledger.ExpiryWrong, text: "", do: func(x expiryTamperer) {
			var other string
			for _, path := range x.v.Names(vault.ExpiryPrefix) {
				if n, err := vault.ParseExpiry(x.v.Files[path]); err == nil && !n.Entries[0].Part {
					other = n.Entries[0].Checkpoint
				}
			}
			x.note(x.main(1, 1), func(n *vault.Expiry) {
				n.Entries[0].Checkpoint, n.Entries[0].Expires = other, ledgertest.Start.AddDate(1, 0, 0)
			})
		}},
		{name: "a range that is longer than the checkpoint's", code: ledger.ExpiryWrong, text: "forged", do: func(x expiryTamperer) {
			x.note(x.main(1, 1), func(n *vault.Expiry) {
				n.Entries[0].Last, n.Entries[0].Expires = n.Entries[0].Last+5, ledgertest.Start.AddDate(1, 0, 0)
			})
		}},
		{name: "note's date moved to later", code: ledger.ExpiryWrong, text: "the epoch signed", do: func(x expiryTamperer) {
			x.renote("segments", func(n *vault.Expiry) { n.Entries[0].Expires = n.Entries[0].Expires.Add(time.Hour) })
		}},
		{name: "note's date moved to earlier", code: ledger.ExpiryWrong, text: "the epoch signed", do: func(x expiryTamperer) {
			x.renote("segments", func(n *vault.Expiry) { n.Entries[0].Expires = n.Entries[0].Expires.AddDate(0, -6, 0) })
		}},
		{name: "parts' note: date moved", code: ledger.ExpiryWrong, text: "the epoch signed", do: func(x expiryTamperer) {
			x.renote("parts", func(n *vault.Expiry) { n.Entries[0].Expires = n.Entries[0].Expires.Add(-time.Second) })
		}},
		{name: "parts' note: class moved", code: ledger.ExpiryWrong, text: "records of class long", do: func(x expiryTamperer) {
			x.renote("parts", func(n *vault.Expiry) { n.Entries[0].Class = "long" })
		}},
		{name: "parts' note: no proof", code: ledger.ExpiryWrong, text: "has no checkpoint", do: func(x expiryTamperer) {
			x.renote("parts", func(n *vault.Expiry) { n.Entries[0].Checkpoint = "" })
		}},
		{name: "note under another epoch's name", code: ledger.ExpiryWrong, text: "not what its name says", do: func(x expiryTamperer) {
			path := x.v.Names(vault.ExpiryPrefix)[0]
			id, _ := vault.ParseSegmentName(x.main(2, 0))
			x.v.Files[vault.ExpiryFolder("gw-1", id.Epoch)+path[strings.LastIndexByte(path, '/')+1:]] = x.v.Files[path]
		}},
		{name: "file that is no note", code: ledger.ExpiryWrong, text: "is no expiry note", do: func(x expiryTamperer) {
			x.v.Files[x.v.Names(vault.ExpiryPrefix)[0]] = []byte("{}")
		}},
		{name: "dropped tail called expired", code: ledger.ExpiryWrong, text: "has no checkpoint", do: func(x expiryTamperer) {
			x.note(x.main(2, -1), expired)
		}},
		{name: "dropped tail called expired, with another's key", code: ledger.ExpiryWrong, text: "forged", do: func(x expiryTamperer) {
			x.note(x.main(2, -1), func(n *vault.Expiry) {
				n.Entries[0].Checkpoint = restate(x.t, n.Entries[0].Checkpoint, true, expire1)
				n.Entries[0].Expires = ledgertest.Start.AddDate(1, 0, 0)
			})
		}},
		{name: "dropped epoch called expired, its key too", code: ledger.ExpiryWrong, text: "the epoch's key is not in the vault", do: func(x expiryTamperer) {
			id, _ := vault.ParseSegmentName(x.main(2, 0))
			names := x.of(2)
			x.note(x.main(2, 0), func(n *vault.Expiry) {
				n.Entries[0].Checkpoint = restate(x.t, n.Entries[0].Checkpoint, true, expire1)
				n.Entries[0].Expires = ledgertest.Start.AddDate(1, 0, 0)
			})
			for _, n := range names {
				delete(x.v.Files, n)
			}
			delete(x.v.Files, vault.EpochName("gw-1", id.Epoch))
		}},
		{name: "dropped epoch called expired, with a key that nobody certified", code: ledger.CertificateWrong, do: func(x expiryTamperer) {
			id, _ := vault.ParseSegmentName(x.main(2, 0))
			names := x.of(2)
			key, err := record.NewEpochKey("gw-1", id.Epoch, nil)
			if err != nil {
				x.t.Fatal(err)
			}
			x.v.Files[vault.EpochName("gw-1", id.Epoch)] = reopened(x, id.Epoch, key)
			x.note(x.main(2, 0), func(n *vault.Expiry) {
				s, err := record.ParseStatement([]byte(n.Entries[0].Checkpoint))
				if err != nil {
					x.t.Fatal(err)
				}
				expire1(&s)
				f, err := record.Checkpoint(s, key.Signer(), true)
				if err != nil {
					x.t.Fatal(err)
				}
				n.Entries[0].Checkpoint = string(f.Body)
				n.Entries[0].Expires = ledgertest.Start.AddDate(1, 0, 0)
			})
			for _, n := range names {
				delete(x.v.Files, n)
			}
		}},
		{name: "segment gone with no note, before its time", code: ledger.SegmentMissing, text: "are missing", do: func(x expiryTamperer) {
			x.remove(x.main(1, 1))
		}},
		{name: "tail of a cited epoch gone with no note, before its time", code: ledger.SegmentMissing, text: "are missing", do: func(x expiryTamperer) {
			x.remove(x.main(1, -1))
		}},
		{name: "cited epoch gone with no note, before its time", code: ledger.EpochWrong, text: "is not in the vault", do: func(x expiryTamperer) {
			for _, n := range x.of(1) {
				delete(x.v.Files, n)
			}
		}},
		{name: "part gone before its time", code: ledger.SegmentMissing, text: "must be kept until", do: func(x expiryTamperer) {
			for _, n := range x.of(1) {
				if strings.HasSuffix(n, ".short.part") {
					delete(x.v.Files, n)
					return
				}
			}
			x.t.Fatal("no part")
		}},
		{name: "part gone before its time, its absences' expiry changed", code: ledger.ExpiryWrong, text: "a record's class or expiry was changed", do: func(x expiryTamperer) {
			x.absences(1, func(f *record.Frame, _ []string, _ *int) { f.Expiry = f.Expiry.AddDate(0, -6, 0) })
		}},
		{name: "class moved: unexpired absences called by another class", code: ledger.ExpiryWrong, text: "a record's class or expiry was changed", do: func(x expiryTamperer) {
			x.relabel()
		}},
		{name: "the same, with a checkpoint that fits", code: ledger.SignatureWrong, do: func(x expiryTamperer) {
			x.absences(1, func(f *record.Frame, _ []string, _ *int) { f.Expiry = f.Expiry.AddDate(0, -6, 0) })
			x.refit(1)
		}},
		{name: "key's copy changed", code: ledger.SignerWrong, text: "is not the open record", do: func(x expiryTamperer) {
			id, _ := vault.ParseSegmentName(x.main(2, 0))
			key, err := record.NewEpochKey("gw-1", id.Epoch, nil)
			if err != nil {
				x.t.Fatal(err)
			}
			x.v.Files[vault.EpochName("gw-1", id.Epoch)] = reopened(x, id.Epoch, key)
		}},
		{name: "key's copy is none", code: ledger.SignerWrong, text: "is no copy of an open record", do: func(x expiryTamperer) {
			x.v.Files[x.v.Names(vault.EpochsPrefix)[0]] = []byte("key")
		}},
		{name: "key's copy gone after the record expired", now: now2.AddDate(3, 0, 0), code: ledger.SignerWrong, text: "must be kept, is missing", do: func(x expiryTamperer) {
			x.remove(x.main(2, 0))
			id, _ := vault.ParseSegmentName(x.main(2, 0))
			delete(x.v.Files, vault.EpochName("gw-1", id.Epoch))
		}},
		{name: "key's copy gone, checkpoints made anew with none of the dates", now: now2.AddDate(3, 0, 0), age: 3 * 366 * 24 * time.Hour, code: ledger.CertificateMissing, text: "neither the epoch's key is here", do: func(x expiryTamperer) {
			x.remove(x.main(2, 0))
			id, _ := vault.ParseSegmentName(x.main(2, 0))
			delete(x.v.Files, vault.EpochName("gw-1", id.Epoch))
			for _, n := range x.of(2) {
				if strings.HasSuffix(n, ".seg") {
					x.strip(n)
				}
			}
		}},
		{name: "dates changed in all checkpoints after a gap", code: ledger.SegmentMissing, text: "are missing", do: func(x expiryTamperer) {
			x.remove(x.main(1, 0))
			for i, n := range x.of(1) {
				if strings.HasSuffix(n, ".seg") && i > 0 {
					x.edit2(n, func(f *record.Frame) {
						f.Body = []byte(restate(x.t, string(f.Body), true, func(s *record.Statement) {
							past := record.Retained{}
							past.Add("x", ledgertest.Start.AddDate(1, 0, 0))
							s.Retained.Before = past.Classes[0].Expiry
						}))
					})
				}
			}
		}},
		{name: "gateway errs in when the records before expire", code: ledger.ExpiryWrong, text: "the last record before the segment", do: func(x expiryTamperer) {
			x.edit2(x.main(2, -1), func(f *record.Frame) {
				s, err := record.Stated(f)
				if err != nil {
					x.t.Fatal(err)
				}
				s.Retained.Before.Add(time.Time{})
				c, err := record.Checkpoint(s, x.key.Signer(), true)
				if err != nil {
					x.t.Fatal(err)
				}
				f.Body = c.Body
			})
		}},
		{name: "hold on an exchange ignored", now: now2, code: ledger.HoldIgnored, text: "keeps it beyond its retention", do: func(x expiryTamperer) {
			id, _ := vault.ParseSegmentName(x.main(1, 3))
			hold(x, retention.Hold{Exchange: record.ID{Epoch: id.Epoch, Sequence: x.firstAbsent(1)}.String(), Created: now1})
			x.expire(1)
		}},
		{name: "hold on a time ignored", now: now2, code: ledger.HoldIgnored, do: func(x expiryTamperer) {
			hold(x, retention.Hold{From: ledgertest.Start.AddDate(0, 2, 0), Until: ledgertest.Start.AddDate(0, 4, 0), Created: now1})
			x.expire(1)
		}},
		{name: "hold that cannot be read", code: ledger.HoldIgnored, text: "cannot be read", do: func(x expiryTamperer) {
			x.v.Files[vault.HoldsPrefix+"a.json"] = []byte("{}")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, epochs, key := aging()
			expireAt(t, v, now1)
			o := ledger.Options{Trust: trust(t, deploymentKey), Retention: tt.age}
			now := tt.now
			if now.IsZero() {
				now = now1
			}
			if len(v.Names(vault.ExpiryPrefix)) < 2 {
				t.Fatalf("only %v were written", v.Names(vault.ExpiryPrefix))
			}
			sound(t, verifyAt(t, v, nil, o, now1))
			tt.do(expiryTamperer{tamperer{t, v}, epochs, key})
			r := verifyAt(t, v, nil, o, now)
			for _, f := range r.Findings {
				if f.Code == tt.code && strings.Contains(f.Message, tt.text) {
					return
				}
			}
			t.Errorf("want %s %q; found:", tt.code, tt.text)
			for _, f := range r.Findings {
				t.Errorf("  %s: %s", f.Code, f)
			}
		})
	}
}

// reopened is an epoch's open record with another key.
func reopened(x expiryTamperer, e record.Epoch, key *record.EpochKey) []byte {
	f, _, err := record.Decode(bytes.Clone(x.v.Files[vault.EpochName("gw-1", e)]))
	if err != nil {
		x.t.Fatal(err)
	}
	var o record.Open
	if err := record.Unmarshal(f.Body, &o); err != nil {
		x.t.Fatal(err)
	}
	o.Key = key.Public()
	if f.Body, err = record.Marshal(o); err != nil {
		x.t.Fatal(err)
	}
	b, err := f.Encode(nil)
	if err != nil {
		x.t.Fatal(err)
	}
	return b
}

// rewrite rewrites a segment's file frame by frame, absences too.
func (x expiryTamperer) rewrite(name string, change func(f *record.Frame, classes []string, class *int)) {
	h := header(x.t, x.v.Files[name])
	r, err := vault.ReadSegment(name, bytes.NewReader(x.v.Files[name]))
	if err != nil {
		x.t.Fatal(err)
	}
	b, err := h.Append(nil)
	if err != nil {
		x.t.Fatal(err)
	}
	for {
		f, err := r.Next()
		if err != nil {
			break
		}
		if f.Kind != vault.KindAbsent {
			change(&f, h.Classes, nil)
			if b, err = f.Encode(b); err != nil {
				x.t.Fatal(err)
			}
			continue
		}
		class, leaf := slices.Index(h.Classes, f.Class), bytes.Clone(f.Body)
		change(&f, h.Classes, &class)
		// The digest stays; the form is made with that of something else.
		any := record.Frame{Kind: record.KindHeartbeat, Sequence: f.Sequence, Time: f.Time, Expiry: f.Expiry, Class: f.Class}
		if _, err := any.Encode(nil); err != nil {
			x.t.Fatal(err)
		}
		at := len(b)
		b = vault.AppendAbsence(b, &any, class)
		copy(b[at+29:], leaf)
		fixCRC(b[at:])
	}
	x.v.Files[name] = b
}

// edit2 changes a segment's checkpoints.
func (x expiryTamperer) edit2(name string, change func(*record.Frame)) {
	x.rewrite(name, func(f *record.Frame, _ []string, _ *int) {
		if f.Kind == record.KindCheckpoint {
			change(f)
		}
	})
}

// mixed is an epoch's first segment that has a part.
func (x expiryTamperer) mixed(epoch int) (main string, parts []string) {
	for _, n := range x.of(epoch) {
		if strings.HasSuffix(n, ".part") && main == "" {
			id, _ := vault.ParseSegmentName(n)
			for _, m := range x.of(epoch) {
				if o, _ := vault.ParseSegmentName(m); o.First == id.First {
					if o.Part {
						parts = append(parts, m)
					} else {
						main = m
					}
				}
			}
		}
	}
	if main == "" {
		x.t.Fatal("no segment has a part")
	}
	return main, parts
}

// absences takes a segment's parts away and changes what stands for them.
func (x expiryTamperer) absences(epoch int, change func(*record.Frame, []string, *int)) {
	main, parts := x.mixed(epoch)
	for _, n := range parts {
		delete(x.v.Files, n)
	}
	x.rewrite(main, func(f *record.Frame, classes []string, class *int) {
		if class != nil {
			change(f, classes, class)
		}
	})
}

// refit makes a segment's checkpoints fit its absences, under another key.
func (x expiryTamperer) refit(epoch int) {
	main, _ := x.mixedMain(epoch)
	x.edit2(main, func(f *record.Frame) {
		f.Body = []byte(restate(x.t, string(f.Body), true, func(s *record.Statement) {
			span := record.Retained{}
			r, err := vault.ReadSegment(main, bytes.NewReader(x.v.Files[main]))
			if err != nil {
				x.t.Fatal(err)
			}
			for {
				g, err := r.Next()
				if err != nil || g.Kind.Leaf() && g.Sequence > s.Size || g.Kind == vault.KindAbsent && g.Sequence > s.Size {
					break
				}
				if g.Kind != record.KindCheckpoint {
					span.Add(g.Class, g.Expiry)
				}
			}
			s.Retained.Classes = span.Classes
		}))
	})
}

// mixedMain is an epoch's first segment with absences.
func (x expiryTamperer) mixedMain(epoch int) (string, []string) {
	for _, n := range x.of(epoch) {
		if strings.HasSuffix(n, ".seg") && len(header(x.t, x.v.Files[n]).Classes) > 0 {
			return n, header(x.t, x.v.Files[n]).Classes
		}
	}
	x.t.Fatal("no segment has absences")
	return "", nil
}

// relabel gives absences whose class has not expired the class and the date of
// others of their segment, whose part has, and takes their part away.
func (x expiryTamperer) relabel() {
	for _, n := range x.of(0) {
		if !strings.HasSuffix(n, ".seg") || len(header(x.t, x.v.Files[n]).Classes) < 2 {
			continue
		}
		var short time.Time
		moved := 0
		for range 2 { // the date is known in the second round
			x.rewrite(n, func(f *record.Frame, classes []string, class *int) {
				switch {
				case class == nil:
				case f.Class == "short":
					short = f.Expiry
				case !short.IsZero():
					f.Expiry, *class = short, slices.Index(classes, "short")
					moved++
				}
			})
		}
		if moved == 0 {
			x.t.Fatal("no absence was moved")
		}
		delete(x.v.Files, strings.Replace(n, ".long.seg", ".standard.part", 1))
		return
	}
	x.t.Fatal("no segment has absences of two classes")
}

// firstAbsent is the sequence of the first record that lies in a part.
func (x expiryTamperer) firstAbsent(epoch int) uint64 {
	main, _ := x.mixedMain(epoch)
	r, err := vault.ReadSegment(main, bytes.NewReader(x.v.Files[main]))
	if err != nil {
		x.t.Fatal(err)
	}
	for {
		f, err := r.Next()
		if err != nil {
			x.t.Fatal(err)
		}
		if f.Kind == vault.KindAbsent {
			return f.Sequence
		}
	}
}

// expire takes an epoch's parts away, as an expiry would that knows no holds.
func (x expiryTamperer) expire(epoch int) {
	_, parts := x.mixed(epoch)
	for _, n := range parts {
		delete(x.v.Files, n)
	}
}

// strip makes checkpoints of the earlier form, under a key of somebody's own.
func (x expiryTamperer) strip(name string) {
	x.edit2(name, func(f *record.Frame) {
		s, err := record.Stated(f)
		if err != nil {
			x.t.Fatal(err)
		}
		s.Retained = nil
		c, err := record.Checkpoint(s, attacker.Signer(), false)
		if err != nil {
			x.t.Fatal(err)
		}
		f.Body = c.Body
	})
}

// TestExpiresByItself: the same vault as recorder expire leaves it, with notes,
// and as a bucket's lifecycle does, without, holds at any time, and what went
// is known; a day before it is missing.
func TestExpiresByItself(t *testing.T) {
	full, _, _ := aging()
	total := verifyAt(t, full, nil, ledger.Options{}, ledgertest.Start.AddDate(0, 7, 0)).Records
	for months := 6; months < 60; months += 3 {
		now := ledgertest.Start.AddDate(0, months, 1)
		v := full.Clone()
		expireAt(t, v, now)
		o := ledger.Options{Trust: trust(t, deploymentKey), Checkpoints: kept(t, full)}
		r := verifyAt(t, v, tenant, o, now)
		sound(t, r)
		if r.Records+r.Expired.Records != total {
			t.Errorf("month %d: %d records, %d expired, of %d", months, r.Records, r.Expired.Records, total)
		}
	}
}

// TestExpiryProperty: a vault of gateways that crash at random, with classes of
// several retentions, that is expired at random times, cut off in the middle of
// it or not, is never called tampered with; and a file that is taken away from
// it that has not expired always is, but for a gateway's tail.
func TestExpiryProperty(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 4))
		v := ledgertest.New()
		years := map[string]int{"short": 1, "standard": 2, "long": 3}
		classes := slices.Sorted(maps.Keys(years))
		old := rng.IntN(6) == 0
		for n := range 1 + rng.IntN(2) {
			g := ledgertest.NewGateway(v, fmt.Sprint("gw-", n), public)
			g.Deployment, g.Years, g.Old = deployment, years, old
			if rng.IntN(2) == 0 {
				g.Longest = "long"
			}
			for range 1 + rng.IntN(4) {
				g.Begin()
				for range rng.IntN(8) {
					g.Class = classes[rng.IntN(3)]
					if rng.IntN(5) == 0 {
						g.Start(ledgertest.Exchange{Session: "s", Subject: "u", SQL: "SELECT 1"})
					} else {
						g.Run(ledgertest.Exchange{Session: "s", Subject: "u", SQL: "SELECT 1", Response: []byte("x")})
					}
					g.Class = "long"
					if rng.IntN(2) == 0 {
						g.Cut()
					}
					g.Now = g.Now.AddDate(0, 0, rng.IntN(60))
				}
				g.Class = "long"
				if rng.IntN(3) == 0 {
					g.Close()
				} else {
					g.Crash()
				}
				g.Now = g.Now.AddDate(0, rng.IntN(8), 0)
			}
		}
		now := ledgertest.Start.AddDate(1, 0, 0)
		o := ledger.Options{Trust: trust(t, deploymentKey)}
		for range 6 {
			now = now.AddDate(0, rng.IntN(9), rng.IntN(28))
			left := rng.IntN(6)
			_, err := retention.Expire(t.Context(), keeper{v}, retention.Options{By: "test", Now: clock(now), Remove: remover(func(name string) error {
				if left--; left == 0 {
					return fmt.Errorf("cut off")
				}
				delete(v.Files, name)
				return nil
			})})
			if err != nil && !strings.Contains(err.Error(), "cut off") {
				t.Fatal(err)
			}
			r := verifyAt(t, v, nil, o, now)
			if !r.Sound {
				t.Fatalf("seed %d, %s: %s: %s", seed, now, r.Findings[0].Code, r.Findings[0])
			}
			if old {
				continue
			}
			// What is there and has not expired must not go.
			names := v.Names(vault.SegmentsPrefix)
			if len(names) == 0 {
				continue
			}
			name := names[rng.IntN(len(names))]
			h := header(t, v.Files[name])
			if h.Records == 0 || !h.Expires.After(now) || tail(v, name) {
				continue
			}
			w := v.Clone()
			delete(w.Files, name)
			if r := verifyAt(t, w, nil, o, now); r.Sound {
				t.Fatalf("seed %d, %s: %s was dropped, to be kept until %s, and nothing was found", seed, now, name, h.Expires)
			}
		}
	}
}

type remover func(name string) error

func (r remover) Expire(_ context.Context, name string) error { return r(name) }

// tail reports whether the segment is the last of its gateway: that it is gone
// shows by heads kept elsewhere alone.
func tail(v *ledgertest.Vault, name string) bool {
	id, _ := vault.ParseSegmentName(name)
	for _, n := range v.Names(vault.SegmentsPrefix) {
		if o, err := vault.ParseSegmentName(n); err == nil && o.Gateway == id.Gateway && (bytes.Compare(o.Epoch[:], id.Epoch[:]) > 0 || o.Epoch == id.Epoch && (o.First > id.First || o.First == id.First && id.Part)) {
			return false
		}
	}
	return true
}

// TestOrder: however many segments are read at one time, and whichever comes
// first, the report is the same.
func TestOrder(t *testing.T) {
	v, epochs, key := aging()
	expireAt(t, v, now1)
	x := expiryTamperer{tamperer{t, v}, epochs, key}
	x.remove(x.main(1, 1))
	for i, n := range x.of(2) {
		x.v.Files[n] = bytes.Clone(x.v.Files[n])
		if i%2 == 0 {
			x.v.Files[n][len(x.v.Files[n])/2] ^= 1
		}
	}
	slow := &slowVault{Vault: v}
	var want string
	for _, cores := range []int{1, 2, 16} {
		old := runtime.GOMAXPROCS(cores)
		r := verifyAt(t, slow, nil, ledger.Options{Trust: trust(t, deploymentKey)}, now1)
		runtime.GOMAXPROCS(old)
		if len(r.Findings) < 3 {
			t.Fatalf("only %v", r.Findings)
		}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = string(b)
		}
		if string(b) != want {
			t.Errorf("with %d cores:\n%s\nwith one:\n%s", cores, b, want)
		}
	}
}

// slowVault opens every other file late.
type slowVault struct {
	*ledgertest.Vault
	n atomic.Int64
}

func (v *slowVault) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if v.n.Add(1)%2 == 0 {
		time.Sleep(2 * time.Millisecond)
	}
	return v.Vault.Open(ctx, name)
}
