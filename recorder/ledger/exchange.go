package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/record"
)

// SealCost is how much longer a sealed body is than its plain one: the nonce
// and the tag of AES-GCM.
const SealCost = 12 + 16

// exchange is what is kept of an exchange until its outcome.
type exchange struct {
	at       place // of its first record
	received bool
	intent   bool
	// unread: a body could not be opened, so that totals cannot be compared.
	unread  bool
	streams [4]stream // by direction
}

// stream sums up the pieces of one direction.
type stream struct {
	pieces uint32
	bytes  uint64
	sum    hash.Hash // nil where bodies are not opened
}

// leaf judges a record by its kind.
func (c *verifier) leaf(e *epoch, f *record.Frame, at place) error {
	switch {
	case e.closed:
		c.find(KindWrong, at, "a %s record follows the epoch's close record", f.Kind)
		return nil
	case (f.Sequence == 1) != (f.Kind == record.KindOpen):
		c.find(KindWrong, at, "a %s record stands here: an epoch has one open record, its first", f.Kind)
	}
	switch f.Kind {
	case record.KindOpen, record.KindHeartbeat, record.KindClose:
		return c.own(e, f, at)
	case record.KindAccess:
		return c.access(e, f, at)
	case record.KindReceived, record.KindProbe, record.KindIntent, record.KindPayload, record.KindOutcome:
		return c.member(e, f, at)
	}
	return nil
}

// own judges a record of the gateway itself.
func (c *verifier) own(e *epoch, f *record.Frame, at place) error {
	if f.Key != (record.KeyID{}) || f.Exchange != 0 {
		c.find(KindWrong, at, "the %s record is sealed or belongs to an exchange, which the gateway's own do not", f.Kind)
		return nil
	}
	var err error
	switch f.Kind {
	case record.KindOpen:
		var open record.Open
		if err = record.Unmarshal(f.Body, &open); err == nil {
			e.opened = &open
			if open.Gateway != e.gateway {
				c.find(KindWrong, at, "the open record is gateway %q's", open.Gateway)
			}
			c.openRecord(e, &open, at)
		}
	case record.KindHeartbeat:
		e.live = true
		err = record.Unmarshal(f.Body, new(record.Heartbeat))
	case record.KindClose:
		e.live, e.closed = true, true
		err = record.Unmarshal(f.Body, new(record.Close))
	}
	if err != nil {
		c.find(BodyWrong, at, "the %s record: %v", f.Kind, err)
	}
	return nil
}

// access judges a record of somebody's reading: one of the recorder's own, but
// sealed, for it names people.
func (c *verifier) access(e *epoch, f *record.Frame, at place) error {
	e.live = true
	c.report.Accesses++
	if f.Exchange != f.Sequence {
		c.find(ExchangeWrong, at, "an access record belongs to exchange %d, it has to stand alone", f.Exchange)
	}
	body, ok, err := c.body(e, f, at)
	if err != nil {
		return err
	}
	c.read(f, body, ok, at, new(record.Access))
	return nil
}

// member judges a record of an exchange.
func (c *verifier) member(e *epoch, f *record.Frame, at place) error {
	// Recovery's outcomes end exchanges of an earlier epoch, and so begin one.
	alone := f.Kind == record.KindOutcome && f.Exchange == f.Sequence
	if !alone {
		e.live = true
		if f.Exchange == f.Sequence {
			c.report.Exchanges.Total++
		}
	}
	body, ok, err := c.body(e, f, at)
	if err != nil {
		return err
	}
	if alone {
		c.alone(e, f, body, ok, at)
		return nil
	}
	if e.damaged {
		return nil
	}
	x := e.open[f.Exchange]
	switch {
	case f.Exchange == f.Sequence && f.Kind != record.KindReceived && f.Kind != record.KindIntent:
		c.find(ExchangeWrong, at, "an exchange cannot begin with a %s record", f.Kind)
		return nil
	case f.Exchange == f.Sequence:
		x = &exchange{at: at}
		e.open[f.Exchange] = x
	case f.Exchange == 0 || f.Exchange > f.Sequence:
		c.find(ExchangeWrong, at, "the %s record belongs to exchange %d, which is none before it", f.Kind, f.Exchange)
		return nil
	case x == nil && e.gone:
		return nil // its begin is not here any more
	case x == nil:
		c.find(ExchangeWrong, at, "the %s record belongs to exchange %d, which ended before or never began", f.Kind, f.Exchange)
		return nil
	}
	x.unread = x.unread || !ok
	switch f.Kind {
	case record.KindReceived:
		if f.Exchange != f.Sequence {
			c.find(ExchangeWrong, at, "a received record stands within exchange %d, not at its begin", f.Exchange)
		}
		x.received = true
		c.read(f, body, ok, at, new(record.Received))
	case record.KindProbe:
		c.read(f, body, ok, at, new(record.Probe))
	case record.KindIntent:
		if x.intent {
			c.find(ExchangeWrong, at, "a second intent record of exchange %d", f.Exchange)
		}
		x.intent = true
		c.read(f, body, ok, at, new(record.Intent))
	case record.KindPayload:
		c.payload(x, f, body, ok, at)
	case record.KindOutcome:
		c.report.Exchanges.Ended++
		delete(e.open, f.Exchange)
		c.outcome(x, f, body, ok, at)
	}
	return nil
}

// body opens the record's body. It returns false where it cannot be read: no
// keys are at hand, the key is missing, or it does not open, which is reported.
func (c *verifier) body(e *epoch, f *record.Frame, at place) ([]byte, bool, error) {
	if f.Key == (record.KeyID{}) {
		c.find(BodyWrong, at, "the %s record is not sealed", f.Kind)
		return nil, false, nil
	}
	if len(f.Body) < SealCost {
		c.find(BodyWrong, at, "the %s record's body of %d bytes is too short to be a sealed one", f.Kind, len(f.Body))
		return nil, false, nil
	}
	if c.options.Keys == nil {
		return nil, false, c.checkKey(e, f, at)
	}
	b, err := c.options.Keys.Open(c.ctx, e.id, f)
	switch {
	case err == nil:
		return b, true, nil
	case errors.Is(err, record.ErrNoKey):
		if c.keys.first(seenKey{e.id, f.Key}) {
			return nil, false, c.missing(e, f, at)
		}
	case errors.Is(err, keyring.ErrWrong):
		if c.keys.first(seenKey{e.id, f.Key}) {
			c.find(KeyWrong, at, "the record's %v", err)
		}
	case errors.Is(err, keyring.ErrBody):
		c.find(BodyWrong, at, "%v", err)
	default:
		return nil, false, err
	}
	return nil, false, nil
}

func (c *verifier) read(f *record.Frame, body []byte, ok bool, at place, into any) bool {
	if !ok {
		return false
	}
	if err := record.Unmarshal(body, into); err != nil {
		c.find(BodyWrong, at, "the %s record: %v", f.Kind, err)
		return false
	}
	return true
}

// alone judges an outcome that begins its exchange: recovery's, for an
// exchange of an earlier epoch.
func (c *verifier) alone(e *epoch, f *record.Frame, body []byte, ok bool, at place) {
	if !ok {
		e.lone++
		return
	}
	var o record.Outcome
	if !c.read(f, body, ok, at, &o) {
		return
	}
	if o.Verbatim.Interrupted == "" {
		c.find(ExchangeWrong, at, "an outcome stands alone and does not say which exchange it closes")
		return
	}
	id, err := record.ParseID(o.Verbatim.Interrupted)
	if err != nil {
		c.find(BodyWrong, at, "the outcome closes: %v", err)
		return
	}
	c.close(id, at, false)
}

// close takes an exchange that a crash cut off as closed by the outcome at the
// place. While the vault is read, what has not come yet is waited for.
func (c *verifier) close(id record.ID, at place, final bool) {
	e := c.epochs[id.Epoch]
	switch {
	case !final && (e == nil || id.Sequence >= e.next):
		c.closers[id] = at
	case e == nil && c.gone[id.Epoch] >= id.Sequence:
	case final && c.waits(at.name.Epoch) && (e == nil || id.Sequence >= e.next):
	case e == nil:
		c.find(ExchangeWrong, at, "the outcome closes exchange %s, whose epoch is not in the vault", id)
	case e.open[id.Sequence] != nil:
		delete(e.open, id.Sequence)
		c.report.Exchanges.Interrupted++
	case !e.damaged && !e.gone:
		c.find(ExchangeWrong, at, "the outcome closes exchange %s, which is not open", id)
	}
}

// waits reports whether what was before the epoch is still to come.
func (c *verifier) waits(id record.Epoch) bool {
	e := c.epochs[id]
	return e != nil && e.waits
}

func (c *verifier) payload(x *exchange, f *record.Frame, body []byte, ok bool, at place) {
	d := f.Direction
	switch {
	case !x.intent:
		c.find(ExchangeWrong, at, "a payload record of exchange %d stands before its intent", f.Exchange)
		return
	case d < record.DirectionRequest || d > record.DirectionResponse:
		c.find(ExchangeWrong, at, "a payload record of %s", d)
		return
	case f.Flags&record.FlagHead != 0:
		c.read(f, body, ok, at, new(record.Head))
		return
	}
	s := &x.streams[d]
	n := len(f.Body) - SealCost
	switch {
	case f.Piece != s.pieces:
		c.find(ExchangeWrong, at, "piece %d of the %s of exchange %d stands where piece %d must", f.Piece, d, f.Exchange, s.pieces)
	case f.Offset != s.bytes:
		c.find(ExchangeWrong, at, "piece %d of the %s of exchange %d has the offset %d, the pieces before it hold %d bytes", f.Piece, d, f.Exchange, f.Offset, s.bytes)
	case n > record.MaxPiece:
		c.find(ExchangeWrong, at, "piece %d of the %s of exchange %d has %d bytes, above the limit of %d", f.Piece, d, f.Exchange, n, record.MaxPiece)
	}
	s.pieces, s.bytes = f.Piece+1, f.Offset+uint64(n)
	if ok {
		if s.sum == nil {
			s.sum = sha256.New()
		}
		s.sum.Write(body)
	}
}

// outcome compares the totals with the payload records.
func (c *verifier) outcome(x *exchange, f *record.Frame, body []byte, ok bool, at place) {
	var o record.Outcome
	if !c.read(f, body, ok, at, &o) {
		return
	}
	if o.Verbatim.Interrupted != "" {
		c.find(ExchangeWrong, at, "the outcome of exchange %d says that it closes %s", f.Exchange, o.Verbatim.Interrupted)
		return
	}
	if c.withheld {
		return
	}
	var said [4]*record.Total
	for i, t := range o.Verbatim.Payloads {
		d := direction(t.Direction)
		if d == record.DirectionNone || said[d] != nil {
			c.find(TotalsWrong, at, "the outcome has totals for the direction %q, which is none or twice there", t.Direction)
			return
		}
		said[d] = &o.Verbatim.Payloads[i]
	}
	for d := record.DirectionRequest; d <= record.DirectionResponse; d++ {
		s, t := x.streams[d], said[d]
		switch {
		case t == nil && s.pieces == 0:
		case t == nil:
			c.find(TotalsWrong, at, "the outcome has no totals for the %s, of which %d pieces are recorded", d, s.pieces)
		case !t.Recorded && s.pieces > 0:
			c.find(TotalsWrong, at, "the outcome says that the %s was not recorded, but %d pieces are there", d, s.pieces)
		case !t.Recorded:
		case t.Pieces != s.pieces || t.Bytes < 0 || uint64(t.Bytes) != s.bytes:
			c.find(TotalsWrong, at, "the outcome says that the %s has %d pieces and %d bytes, recorded are %d and %d", d, t.Pieces, t.Bytes, s.pieces, s.bytes)
		case x.unread:
			// The digest cannot be compared.
		default:
			if sum := s.digest(); sum != t.SHA256 {
				c.find(TotalsWrong, at, "the outcome says that the %s has the SHA-256 %q, the recorded bytes have %s", d, t.SHA256, sum)
			}
		}
	}
}

func (s *stream) digest() string {
	if s.sum == nil {
		s.sum = sha256.New()
	}
	return hex.EncodeToString(s.sum.Sum(nil))
}

func direction(name string) record.Direction {
	for d := record.DirectionRequest; d <= record.DirectionResponse; d++ {
		if d.String() == name {
			return d
		}
	}
	return record.DirectionNone
}
