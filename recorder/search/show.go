package search

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/vault"
)

// ErrNotFound means that the vault does not hold the exchange.
var ErrNotFound = errors.New("exchange is not in the vault")

// ErrAccess means that the id is of an access record, which belongs to no
// exchange.
var ErrAccess = errors.New("it is an access record, not an exchange")

// Detail is everything that the vault holds of one exchange.
type Detail struct {
	Exchange
	Source    string          `json:"source_ip,omitempty"`
	HTTP      string          `json:"http_method,omitempty"`
	Host      string          `json:"host,omitempty"`
	Path      string          `json:"path,omitempty"`
	Query     string          `json:"query_string,omitempty"`
	Headers   []record.Header `json:"request_headers,omitempty"`
	Location  string          `json:"location,omitempty"`
	Retention string          `json:"retention,omitempty"`
	MaxBytes  int64           `json:"maximum_bytes_billed,omitempty"`
	// Labels are those that the gateway wrote on the job.
	Labels     map[string]string `json:"labels,omitempty"`
	Credential string            `json:"credential,omitempty"`
	Probes     []record.Probe    `json:"probes,omitempty"`
	Heads      []Head            `json:"heads,omitempty"`
	Payloads   []Payload         `json:"payloads,omitempty"`
	// Records are the places of all records but the payload's pieces.
	Records []Proof    `json:"records"`
	Class   string     `json:"class"`
	Expires *time.Time `json:"expires,omitempty"`
	// Intent and Outcome are the events as they were recorded.
	Intent  json.RawMessage `json:"intent,omitempty"`
	Outcome json.RawMessage `json:"outcome,omitempty"`
}

// Head is a head of a request or response.
type Head struct {
	Direction string `json:"direction"`
	record.Head
}

// Payload sums up a body.
type Payload struct {
	Direction string `json:"direction"`
	Recorded  bool   `json:"recorded"` // its bytes are in the vault
	Pieces    uint32 `json:"pieces"`
	Bytes     int64  `json:"bytes"`
	// SHA256 is what the outcome says, and where there is none, what the
	// recorded bytes give. Empty where neither can be read.
	SHA256 string `json:"sha256,omitempty"`
	// Intact: the recorded bytes were read and are those of the outcome.
	Intact bool   `json:"intact"`
	First  uint64 `json:"first_sequence,omitempty"`
	Last   uint64 `json:"last_sequence,omitempty"`
}

// Proof is the place of a record.
type Proof struct {
	Kind      string    `json:"kind"`
	Direction string    `json:"direction,omitempty"`
	Sequence  uint64    `json:"sequence"`
	Time      time.Time `json:"time"`
	Segment   string    `json:"segment"`
	Offset    int64     `json:"offset"` // of the frame in the segment's file
	Leaf      string    `json:"leaf"`   // SHA-256 of the stored frame, hex
	Key       string    `json:"key,omitempty"`
}

// Piece takes the bytes of one payload record. It must not keep them.
type Piece func(d record.Direction, b []byte) error

// Find puts one exchange together. Where piece is set it is called for each
// piece of a body, in order. An error of piece ends the reading and is
// returned. Where the vault does not hold the exchange the error wraps
// [ErrNotFound], and [ErrAccess] where the id is of an access record.
func Find(ctx context.Context, c Config, id record.ID, piece Piece) (*Detail, error) {
	l := &look{ctx: ctx, c: c, id: id, piece: piece}
	// The clock of the epoch's name may be off by a little.
	from := vault.Day(id.Epoch.Time().AddDate(0, 0, -1))
	for path, err := range c.Vault.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return nil, fmt.Errorf("show: list the vault's segments: %w", err)
		}
		n, err := ledger.ParseName(path)
		if err != nil || n.Part || n.Day < from {
			continue
		}
		err = l.segment(n)
		if errors.Is(err, errStop) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if l.d == nil {
		return nil, l.notFound()
	}
	l.payloads()
	return l.d, nil
}

type look struct {
	ctx   context.Context
	c     Config
	id    record.ID
	piece Piece

	d      *Detail
	bodies [4]part
	totals []record.Total
	held   uint64 // the last sequence of the epoch that the vault holds
}

type part struct {
	pieces      uint32
	bytes       int64
	sum         hash.Hash
	broken      bool // a piece could not be read
	first, last uint64
}

func (l *look) notFound() error {
	switch {
	case l.held == 0:
		return fmt.Errorf("exchange %s: %w: it holds nothing of this epoch (is it the right vault? is the sink behind?)", l.id, ErrNotFound)
	case l.held < l.id.Sequence:
		return fmt.Errorf("exchange %s: %w: it holds this epoch up to record %d (the sink may be behind)", l.id, ErrNotFound, l.held)
	}
	return fmt.Errorf("exchange %s: %w: no exchange begins with this record", l.id, ErrNotFound)
}

func (l *look) segment(n ledger.Name) error {
	if n.Epoch == l.id.Epoch {
		l.held = max(l.held, n.Last)
		if n.Last < l.id.Sequence || l.d == nil && n.First > l.id.Sequence {
			return nil
		}
		return l.c.frames(l.ctx, n, func(n ledger.Name, f *record.Frame, at int64) error {
			if f.Exchange != l.id.Sequence {
				return nil
			}
			return l.frame(n, f, at)
		})
	}
	if l.d == nil || l.d.Gateway != n.Gateway || slices.Compare(n.Epoch[:], l.id.Epoch[:]) < 0 {
		return nil
	}
	// The epoch is over without an outcome: recovery may have written one.
	return l.c.frames(l.ctx, n, l.recovery)
}

func (l *look) proof(n ledger.Name, f *record.Frame, at int64) {
	leaf := f.Leaf()
	p := Proof{Kind: f.Kind.String(), Sequence: f.Sequence, Time: f.Time, Segment: n.Path, Offset: at, Leaf: hex.EncodeToString(leaf[:])}
	if f.Direction != record.DirectionNone {
		p.Direction = f.Direction.String()
	}
	if f.Key != (record.KeyID{}) {
		p.Key = hex.EncodeToString(f.Key[:])
	}
	l.d.Records = append(l.d.Records, p)
}

func (l *look) frame(n ledger.Name, f *record.Frame, at int64) error {
	if l.d == nil {
		if f.Sequence == l.id.Sequence && f.Kind == record.KindAccess {
			return fmt.Errorf("%s: %w", l.id, ErrAccess)
		}
		if f.Sequence != l.id.Sequence || f.Kind != record.KindReceived && f.Kind != record.KindIntent && f.Kind != record.KindOutcome {
			return nil
		}
		l.d = &Detail{Exchange: Exchange{ID: l.id.String(), Receipt: l.id.String(), Gateway: n.Gateway, Time: f.Time, Result: Pending, Segment: n.Path}, Class: f.Class}
		if !f.Expiry.IsZero() {
			l.d.Expires = utc(&f.Expiry)
		}
	}
	if f.Kind == record.KindPayload && f.Flags&record.FlagHead == 0 {
		return l.payload(f, n)
	}
	l.proof(n, f, at)
	body, why, err := l.c.open(l.ctx, n.Epoch, f)
	if err != nil {
		return err
	}
	if why == nil {
		why = l.body(f, body)
	}
	if why != nil {
		l.d.unread(why)
	}
	if f.Kind == record.KindOutcome {
		if why != nil {
			l.d.Result, l.d.Ended = Unknown, utc(&f.Time)
		}
		return errStop
	}
	return nil
}

func (l *look) body(f *record.Frame, body []byte) error {
	d := l.d
	switch f.Kind {
	case record.KindReceived:
		var r record.Received
		if err := record.Unmarshal(body, &r); err != nil {
			return err
		}
		d.received(&r)
	case record.KindProbe:
		var p record.Probe
		if err := record.Unmarshal(body, &p); err != nil {
			return err
		}
		d.Probes = append(d.Probes, p)
	case record.KindIntent:
		var i record.Intent
		if err := record.Unmarshal(body, &i); err != nil {
			return err
		}
		d.intent(&i)
		d.Intent = body
	case record.KindPayload:
		h := Head{Direction: f.Direction.String()}
		if err := record.Unmarshal(body, &h.Head); err != nil {
			return err
		}
		d.Heads = append(d.Heads, h)
	case record.KindOutcome:
		var o record.Outcome
		if err := record.Unmarshal(body, &o); err != nil {
			return err
		}
		d.outcome(&o, f.Time)
		d.Outcome = body
		l.totals = o.Verbatim.Payloads
	}
	return nil
}

func (d *Detail) intent(i *record.Intent) {
	d.Exchange.intent(i)
	d.Source, d.HTTP, d.Headers = i.Source.IP, i.Request.Method, i.Request.Headers
	d.Host, d.Path, d.Query = i.Request.URL.Hostname, i.Request.URL.Path, i.Request.URL.Query
	if c := i.Verbatim.Connection; c != nil {
		d.Location, d.Retention = c.Location, c.Retention
	}
	x := i.Verbatim.Decision
	d.MaxBytes, d.Labels, d.Credential = x.MaxBytes, x.Labels, x.Credential
}

func (l *look) payload(f *record.Frame, n ledger.Name) error {
	if int(f.Direction) >= len(l.bodies) {
		return nil
	}
	p := &l.bodies[f.Direction]
	p.first, p.last = cmp.Or(p.first, f.Sequence), f.Sequence
	p.pieces++
	body, why, err := l.c.open(l.ctx, n.Epoch, f)
	if err != nil {
		return err
	}
	if why != nil {
		p.broken = true
		p.bytes += int64(max(0, len(f.Body)-ledger.SealCost))
		l.d.unread(why)
		return nil
	}
	if p.sum == nil {
		p.sum = sha256.New()
	}
	p.sum.Write(body)
	p.bytes += int64(len(body))
	if l.piece == nil {
		return nil
	}
	return l.piece(f.Direction, body)
}

// recovery looks for the outcome that closes the exchange in a later epoch.
// Recovery writes before anything else, so the first other record ends it.
func (l *look) recovery(n ledger.Name, f *record.Frame, at int64) error {
	if f.Kind == record.KindOpen {
		return nil
	}
	if f.Kind != record.KindOutcome || f.Exchange != f.Sequence {
		return errStop
	}
	var o record.Outcome
	why, err := l.c.read(l.ctx, n.Epoch, f, &o)
	if err != nil || why != nil || o.Verbatim.Interrupted != l.id.String() {
		return err
	}
	l.proof(n, f, at)
	l.d.interrupted(&o, record.ID{Epoch: n.Epoch, Sequence: f.Exchange}, f.Time)
	return errStop
}

// payloads joins what was read of the bodies with what the outcome says.
func (l *look) payloads() {
	for d := record.DirectionRequest; d <= record.DirectionResponse; d++ {
		b := &l.bodies[d]
		p := Payload{Direction: d.String(), Recorded: b.pieces > 0, Pieces: b.pieces, Bytes: b.bytes, First: b.first, Last: b.last}
		sum := ""
		if b.sum != nil && !b.broken {
			sum = hex.EncodeToString(b.sum.Sum(nil))
		}
		p.SHA256 = sum
		said := false
		for _, t := range l.totals {
			if t.Direction != d.String() {
				continue
			}
			said = true
			p.SHA256 = t.SHA256
			p.Intact = p.Recorded && sum == t.SHA256 && b.bytes == t.Bytes && b.pieces == t.Pieces
			if !p.Recorded {
				p.Bytes = t.Bytes
			}
		}
		if p.Recorded || said {
			l.d.Payloads = append(l.d.Payloads, p)
		}
	}
}

// Payload returns what is known of the body of one direction, and false where
// there was none.
func (d *Detail) Payload(direction record.Direction) (Payload, bool) {
	for _, p := range d.Payloads {
		if p.Direction == direction.String() {
			return p, true
		}
	}
	return Payload{}, false
}

// Body says whether what [Find] gave of a body is what was recorded: err says
// why there is none or it is not right, note what is to be known of one that is.
func (d *Detail) Body(direction record.Direction) (note string, err error) {
	b, ok := d.Payload(direction)
	switch {
	case d.Unreadable != "":
		return "", fmt.Errorf("the %s of %s cannot be read: %s", direction, d.ID, d.Unreadable)
	case ok && !b.Recorded && b.Bytes > 0:
		return "", fmt.Errorf("the %s of %s was not recorded (the connection records %s): %d bytes, SHA-256 %s", direction, d.ID, d.Recording, b.Bytes, b.SHA256)
	case ok && !b.Recorded: // an empty body has no pieces
		return "", nil
	case !ok && direction == record.DirectionUpstream && d.Forwarded != nil:
		return "", fmt.Errorf("%s went upstream as the caller sent it; use --payload request", d.ID)
	case !ok && direction == record.DirectionUpstream:
		return "", fmt.Errorf("nothing of %s went upstream", d.ID)
	case !ok && d.Result == Pending:
		return "", fmt.Errorf("no %s of %s is in the vault yet", direction, d.ID)
	case !ok:
		return "", fmt.Errorf("%s has no %s body", d.ID, direction)
	case d.Result == Pending, d.Result == record.ResultInterrupted:
		return fmt.Sprintf("the exchange is %s: these %d bytes are what was recorded, and no outcome states the total", d.Result, b.Bytes), nil
	case !b.Intact:
		return "", fmt.Errorf("the recorded %s of %s is not what its outcome states; run recorder verify", direction, d.ID)
	}
	return "", nil
}
