package journal

import (
	"errors"
	"fmt"
	"math"
	"time"

	"verbatim.dev/recorder/record"
)

// draft is a draft with what only the journal itself may ask for.
type draft struct {
	record.Draft
	alone  bool       // it begins an exchange, though it is not the first
	expiry *time.Time // instead of the class's
}

type appendOptions struct {
	force bool // no limit: the open, its outcomes, and close
	half  bool // half the reserve: heartbeats leave the rest to outcomes
	final bool // nothing comes after it
}

// entry is an append on its way to the disk.
type entry struct {
	ticket  *record.Ticket
	first   uint64
	at      time.Time
	frames  []record.Frame // encoded, once made is closed
	buffers [][]byte       // that hold the frames
	leaves  [][32]byte
	keys    []*record.DataKey
	charged int64 // bytes that the queue's account holds for it
	made    chan struct{}
	cut     bool
	final   bool
}

var errNoDraft = errors.New("append: no draft")

// Append gives the drafts consecutive sequences and one commit. It seals them in
// the caller's goroutine and never waits for the disk: the ticket is settled
// when they are durable, or with an error. The ticket's ID is valid at once.
//
// An append that the journal does not admit has a ticket that is settled already
// and consumes no sequence: a draft that is no record of a gateway, a class
// without retention, a body above [record.MaxBody] (payloads: [record.MaxPiece]),
// [record.ErrFull] over the limit, [record.ErrClosed], or the error that ended
// the journal. Only when all its drafts are reserved may it use the reserve.
// Memory is bounded by limit and reserve alone: the caller bounds what it has in
// flight.
//
// Render runs in the caller's goroutine, after the sequences are given and
// before Append returns. All later records wait for it, so it must not block.
// When it fails, or what it made is too large or over the limit, heartbeats take
// the sequences and the ticket is settled with the error.
//
// Exchange 0 means the exchange of the call's first draft, and for that one a new
// exchange.
func (j *Journal) Append(drafts ...record.Draft) *record.Ticket {
	own := make([]draft, len(drafts))
	for i := range drafts {
		if err := j.check(&drafts[i]); err != nil {
			return refuse(fmt.Errorf("append: draft %d: %w", i, err))
		}
		own[i].Draft, own[i].alone = drafts[i], drafts[i].Kind == record.KindAccess
	}
	return j.append(own, appendOptions{})
}

// check refuses what can never be a record.
func (j *Journal) check(d *record.Draft) error {
	switch d.Kind {
	case record.KindReceived, record.KindProbe, record.KindIntent, record.KindPayload, record.KindOutcome:
		if d.Session == "" {
			return fmt.Errorf("a %s record needs a session: only the gateway's own are stored plain", d.Kind)
		}
	case record.KindAccess:
		if d.Session == "" || d.Exchange != 0 {
			return errors.New("an access record is sealed for a session and belongs to no exchange but its own")
		}
	case record.KindHeartbeat:
		if d.Exchange != 0 || d.Session != "" {
			return errors.New("a heartbeat record belongs to no exchange and no session")
		}
	default:
		return fmt.Errorf("a %s record is the journal's own to write", d.Kind)
	}
	if _, ok := j.cfg.Retention[d.Class]; !ok && d.Class != "" {
		return fmt.Errorf("retention class %q has no retention", d.Class)
	}
	if d.Render == nil {
		return checkBody(d.Kind, len(d.Body))
	}
	return nil
}

func checkBody(k record.Kind, n int) error {
	limit := record.MaxBody
	if k == record.KindPayload {
		limit = record.MaxPiece
	}
	if n > limit {
		return fmt.Errorf("%s record: body of %d bytes is above the limit of %d", k, n, limit)
	}
	return nil
}

func refuse(err error) *record.Ticket {
	t := record.NewTicket(record.ID{})
	t.Settle(err)
	return t
}

func (j *Journal) append(drafts []draft, o appendOptions) *record.Ticket {
	if len(drafts) == 0 {
		return refuse(errNoDraft)
	}
	e := &entry{made: make(chan struct{}), cut: o.final, final: o.final, charged: j.checkpointSize}
	bound := j.bound(drafts, o)
	keys := make([]*record.DataKey, len(drafts))
	for i := range drafts {
		d := &drafts[i]
		switch {
		case d.Class != "":
		case d.Session == "":
			d.Class = j.cfg.own // no draft of an exchange has none, see check
		default:
			d.Class = j.cfg.Class
		}
		n := 0
		if d.Render == nil {
			n = len(d.Body)
		}
		e.charged += int64(record.Size(d.Class, n))
		if d.Session == "" {
			continue
		}
		if i > 0 && d.Session == drafts[i-1].Session {
			keys[i] = keys[i-1]
			continue
		}
		k := j.kept(d.Exchange, d.Session)
		if k == nil {
			var err error
			if k, err = j.sealer.DataKey(d.Session, j.clock()); err != nil {
				return refuse(fmt.Errorf("append: %w", err))
			}
		}
		keys[i], e.keys = k, append(e.keys, k)
	}
	if err := j.admit(e, drafts, keys, bound, o); err != nil {
		return refuse(err)
	}
	j.make(e, drafts, keys, bound)
	return e.ticket
}

// bound returns up to how many bytes held the drafts may go.
func (j *Journal) bound(drafts []draft, o appendOptions) int64 {
	switch {
	case o.force:
		return math.MaxInt64
	case o.half:
		return j.cfg.Limit + j.cfg.Reserve/2
	}
	for i := range drafts {
		if !drafts[i].Reserved {
			return j.cfg.Limit
		}
	}
	return j.cfg.Limit + j.cfg.Reserve
}

// kept returns the data key that an exchange of the session began with, nil where
// none is running.
func (j *Journal) kept(exchange uint64, session string) *record.DataKey {
	if exchange == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if r := j.running[exchange]; r.session == session {
		return r.key
	}
	return nil
}

// admit gives the entry its sequences and its place in the queue.
func (j *Journal) admit(e *entry, drafts []draft, keys []*record.DataKey, bound int64, o appendOptions) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.err != nil:
		return j.err
	case j.stopping:
		return record.ErrClosed
	case j.disk+j.queued+e.charged > bound:
		j.stats.Full++
		return record.ErrFull
	}
	id := record.ID{Epoch: j.epoch, Sequence: j.next}
	for i := range drafts {
		d := &drafts[i]
		if d.Exchange >= j.next {
			return fmt.Errorf("append: draft %d: exchange %d has not begun, the last sequence is %d", i, d.Exchange, j.next-1)
		}
		switch {
		case d.Session == "", d.Exchange != 0:
		case d.alone:
			d.Exchange = j.next + uint64(i)
		case drafts[0].Exchange != 0:
			d.Exchange = drafts[0].Exchange
		default:
			d.Exchange = j.next
		}
	}
	for i := range drafts { // none is refused any more
		switch d := &drafts[i]; {
		case d.Kind == record.KindOutcome:
			delete(j.running, d.Exchange)
		case d.Exchange == j.next+uint64(i) && (d.Kind == record.KindReceived || d.Kind == record.KindIntent):
			j.running[d.Exchange] = running{d.Session, keys[i]}
		}
	}
	if drafts[0].Exchange != 0 {
		id.Sequence = drafts[0].Exchange
	}
	e.ticket = record.NewTicket(id)
	e.first, e.at = j.next, j.clock()
	j.next += uint64(len(drafts))
	e.ticket.Last = j.next - 1
	j.stopping = o.final
	j.queued += e.charged
	j.waiting++
	j.queue = append(j.queue, e)
	j.signal()
	return nil
}

// make renders, seals and encodes the entry's frames. Whatever happens, the
// sequences that it was given get records.
func (j *Journal) make(e *entry, drafts []draft, keys []*record.DataKey, bound int64) {
	defer close(e.made)
	word, err := "making it panicked", error(nil)
	defer func() { // also while a panic of Render passes through
		if word == "" {
			return
		}
		if err == nil {
			err = errors.New("append: " + word)
		}
		j.void(e, len(drafts), word)
		j.mu.Lock()
		delete(j.running, e.first) // it has not begun
		j.mu.Unlock()
		e.ticket.Settle(err)
	}()
	bodies, w, err2 := j.render(e, drafts, bound)
	if err2 != nil {
		word, err = w, err2
		return
	}
	if err = j.seal(e, drafts, keys, bodies); err != nil {
		word = "sealing failed"
		return
	}
	word = ""
}

// render makes the bodies and settles the entry's account.
func (j *Journal) render(e *entry, drafts []draft, bound int64) (bodies [][]byte, word string, err error) {
	bodies = make([][]byte, len(drafts))
	var more int64
	for i := range drafts {
		d := &drafts[i]
		if bodies[i] = d.Body; d.Render == nil {
			continue
		}
		b, err := d.Render(record.ID{Epoch: j.epoch, Sequence: d.Exchange})
		if err != nil {
			return nil, "rendering failed", fmt.Errorf("append: render the %s record: %w", d.Kind, err)
		}
		if err := checkBody(d.Kind, len(b)); err != nil {
			return nil, "too large", fmt.Errorf("append: %w", err)
		}
		bodies[i] = b
		more += int64(len(b))
	}
	if more == 0 {
		return bodies, "", nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return bodies, "", nil // the account is closed, the ticket settled
	}
	if j.disk+j.queued+more > bound {
		j.stats.Full++
		return nil, "journal is full", record.ErrFull
	}
	j.queued += more
	e.charged += more
	return bodies, "", nil
}

// seal makes the frames of the bodies. It changes no body.
func (j *Journal) seal(e *entry, drafts []draft, keys []*record.DataKey, bodies [][]byte) error {
	left := 0
	for i := range drafts {
		left += record.Size(drafts[i].Class, len(bodies[i]))
	}
	e.frames, e.leaves, e.buffers = make([]record.Frame, len(drafts)), make([][32]byte, len(drafts)), e.buffers[:0]
	var buf []byte
	for i := range drafts {
		d, f := &drafts[i], &e.frames[i]
		*f = record.Frame{
			Kind: d.Kind, Direction: d.Direction, Flags: d.Flags, Sequence: e.first + uint64(i), Exchange: d.Exchange,
			Piece: d.Piece, Offset: d.Offset, Time: e.at, Class: d.Class, Expiry: j.cfg.expiry(d.Class, e.at), Body: bodies[i],
		}
		if d.expiry != nil {
			f.Expiry = *d.expiry
		}
		size := record.Size(d.Class, len(bodies[i]))
		if cap(buf)-len(buf) < size {
			// Small frames share a buffer, a large one has its own.
			buf = getBuffer(max(size, min(left, sharedBuffer)))
			e.buffers = append(e.buffers, buf)
		}
		left -= size
		var err error
		if keys[i] != nil {
			buf, err = keys[i].Append(buf, f)
		} else {
			buf, err = f.Encode(buf)
		}
		if err != nil {
			return fmt.Errorf("append: %w", err)
		}
		f.Body = nil // stored; Raw has it
		e.leaves[i] = f.Leaf()
	}
	if f := &e.frames[0]; f.Exchange == f.Sequence && (f.Kind == record.KindIntent || f.Kind == record.KindReceived) {
		e.ticket.Receipt = j.key.Receipt(e.ticket.ID, e.leaves[0]).String()
	}
	return nil
}

// sharedBuffer is the size of the buffer that small frames share.
const sharedBuffer = 16 << 10

// void fills the entry with heartbeats in place of its records.
func (j *Journal) void(e *entry, n int, word string) {
	// Not Config.Open: the caller may hold the lock that it needs.
	body, err := record.Marshal(record.Heartbeat{Open: j.exchanges.Load(), Refused: j.refused.Load(), Void: word})
	if err != nil { // a struct of numbers and a fixed word
		body = nil
	}
	drafts := make([]draft, n)
	bodies := make([][]byte, n)
	for i := range drafts {
		drafts[i] = draft{Draft: record.Draft{Kind: record.KindHeartbeat, Class: j.cfg.own}}
		bodies[i] = body
	}
	if err := j.seal(e, drafts, make([]*record.DataKey, n), bodies); err != nil {
		// The default class is checked and the body is small: no frame fails.
		j.log.Error("heartbeats in place of records were not made", "error", err)
	}
}
