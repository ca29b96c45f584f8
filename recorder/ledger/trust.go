package ledger

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/record"
)

// Trust are the deployment keys that a verifier takes for true, see
// [record.Trust]. They come from whoever verifies, never from the vault.
type Trust = record.Trust

// ParseTrust reads a trust file, deployment.pub, or the key in it.
func ParseTrust(text string) (*Trust, error) { return record.ParseTrust(text) }

// Head is an epoch at one of its checkpoints: what to keep elsewhere, to hold a
// later verification against.
type Head struct {
	Gateway string    `json:"gateway"`
	Epoch   string    `json:"epoch"`
	Size    uint64    `json:"size"` // records, which is the last one's sequence
	Root    string    `json:"root"` // hex, of the Merkle tree
	Time    time.Time `json:"time"`
	// Checkpoint is the signed note.
	Checkpoint string `json:"checkpoint,omitempty"`

	epoch record.Epoch
	// signed: the head was read from a note alone, whose signature is to be
	// checked with the epoch's key.
	signed bool
}

func headOf(s record.Statement, signed []byte) Head {
	return Head{
		Gateway: s.Gateway, Epoch: s.Epoch.String(), Size: s.Size, Root: hex.EncodeToString(s.Root[:]), Time: s.Time,
		Checkpoint: string(signed), epoch: s.Epoch,
	}
}

// ParseHeads reads what was kept elsewhere: a checkpoint's signed note, or what
// an earlier verification printed as JSON: the whole report, or its heads.
func ParseHeads(b []byte) ([]Head, error) {
	b = bytes.TrimLeft(b, " \t\r\n")
	if len(b) == 0 {
		return nil, errors.New("no checkpoint: the file is empty")
	}
	var heads []Head
	switch b[0] {
	case '{':
		var r Report
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("report: %w", err)
		}
		heads = r.Heads
	case '[':
		if err := json.Unmarshal(b, &heads); err != nil {
			return nil, fmt.Errorf("list of heads: %w", err)
		}
	default:
		s, err := record.ParseStatement(b)
		if err != nil {
			return nil, err
		}
		h := headOf(s, b)
		h.signed = true
		return []Head{h}, nil
	}
	if len(heads) == 0 {
		return nil, errors.New("no heads in it: it must come from verify --format json of a vault with records")
	}
	for i := range heads {
		h := &heads[i]
		var err error
		if h.epoch, err = record.ParseEpoch(h.Epoch); err != nil {
			return nil, fmt.Errorf("head %d: %w", i+1, err)
		}
		if root, err := hex.DecodeString(h.Root); err != nil || len(root) != 32 || h.Size == 0 || h.Root != hex.EncodeToString(root) {
			return nil, fmt.Errorf("head %d, of epoch %s: want a size above 0 and a root of 64 hex digits", i+1, h.Epoch)
		}
	}
	return heads, nil
}

// anchor is a kept head while the vault is read.
type anchor struct {
	Head
	met bool
}

func (c *verifier) anchors(heads []Head) {
	c.kept = map[record.Epoch][]*anchor{}
	for _, h := range heads {
		c.kept[h.epoch] = append(c.kept[h.epoch], &anchor{Head: h})
	}
	for _, list := range c.kept {
		slices.SortStableFunc(list, func(a, b *anchor) int { return cmp.Compare(a.Size, b.Size) })
	}
}

// hash adds a record to what the epoch's records give.
func (c *verifier) hash(e *epoch, f *record.Frame, leaf [sha256.Size]byte, at place) {
	e.head = e.head.Next(leaf)
	if e.whole {
		e.tree.Add(leaf)
		if len(e.kept) > 0 && e.kept[0].Size <= f.Sequence {
			c.extends(e, f.Sequence, e.tree.Root(), at)
		}
	}
	for _, w := range e.wanted {
		if w.receipt.ID.Sequence == f.Sequence {
			w.found, w.same, w.at = true, leaf == w.receipt.Leaf, at
		}
	}
}

// extends compares the epoch's root at its present size with the kept heads.
func (c *verifier) extends(e *epoch, size uint64, root [sha256.Size]byte, at place) {
	for len(e.kept) > 0 && e.kept[0].Size <= size {
		a := e.kept[0]
		e.kept = e.kept[1:]
		if a.Size < size {
			continue // records before it are missing, which was found, or have expired
		}
		a.met = true
		if a.Root != hex.EncodeToString(root[:]) {
			c.find(Forked, at, "the records up to this one give the root %x, the checkpoint that was kept states %s: they are not the ones that were there then", root, a.Root)
		}
	}
}

// finishAnchors judges the kept heads that the vault does not reach.
func (c *verifier) finishAnchors() {
	for _, id := range sortedEpochs(c.kept) {
		e := c.epochs[id]
		for _, a := range c.kept[id] {
			c.report.Kept++
			aged := c.aged(&a.Head)
			switch {
			case e == nil && (aged || c.gone[id] >= a.Size):
				continue // expired
			case e == nil:
				c.find(RolledBack, place{name: Name{Segment: segmentOf(a.Gateway, id)}}, "the epoch is not in the vault; the checkpoint that was kept has %d records of it, up to %s", a.Size, a.Time.UTC().Format(time.RFC3339))
				continue
			case a.Gateway != e.gateway:
				c.find(Forked, place{name: e.first}, "the epoch is gateway %s's, the checkpoint that was kept says %s's", e.gateway, a.Gateway)
			case !a.met && e.next-1 < a.Size && !aged:
				c.find(RolledBack, place{name: e.last, seq: e.next - 1}, "the epoch ends here in the vault; the checkpoint that was kept has %d records, up to %s: records %d to %d are missing", a.Size, a.Time.UTC().Format(time.RFC3339), e.next, a.Size)
			}
			if a.signed && e.verifier != nil {
				if _, err := note.Open([]byte(a.Checkpoint), note.VerifierList(e.verifier)); err != nil {
					c.find(Forked, place{name: e.first}, "the checkpoint that was kept is not signed with the key that the vault has for the epoch: one of the two was made by somebody else (%v)", err)
				}
			}
		}
	}
}

// aged reports whether everything up to a kept head has expired.
func (c *verifier) aged(h *Head) bool {
	if s, err := record.ParseStatement([]byte(h.Checkpoint)); err == nil && s.Retained != nil {
		return c.lapsed(&s)
	}
	return c.old(h.Time)
}

// lapsed reports whether everything up to a checkpoint has expired, which came
// from elsewhere or the sink's log.
func (c *verifier) lapsed(s *record.Statement) bool {
	if s.Retained == nil {
		return c.old(s.Time)
	}
	return s.Retained.Latest().Passed(c.now)
}

// ReceiptResult says how a receipt stands.
type ReceiptResult struct {
	Receipt string `json:"receipt"` // its id
	Gateway string `json:"gateway,omitempty"`
	// State is "recorded", "expired", "omitted", "replaced", "forged" (its
	// signature is not the epoch's), or "unproven" (nothing here can tell).
	State   string `json:"state"`
	Segment string `json:"segment,omitempty"`
	Message string `json:"message,omitempty"`
}

// wanted is a receipt while the vault is read.
type wanted struct {
	receipt record.Receipt
	found   bool // a record is there
	same    bool // with the receipt's leaf
	at      place
}

func (c *verifier) receipts(list []record.Receipt) {
	c.wanted = map[record.Epoch][]*wanted{}
	for _, r := range list {
		c.wanted[r.ID.Epoch] = append(c.wanted[r.ID.Epoch], &wanted{receipt: r})
	}
}

func (c *verifier) finishReceipts() {
	for _, r := range c.options.Receipts {
		e := c.epochs[r.ID.Epoch]
		var w *wanted
		for _, x := range c.wanted[r.ID.Epoch] {
			if x.receipt == r {
				w = x
			}
		}
		res := ReceiptResult{Receipt: r.ID.String()}
		var code Code
		at := place{name: Name{Segment: segmentOf("", r.ID.Epoch)}, seq: r.ID.Sequence}
		if e != nil {
			res.Gateway = e.gateway
			at.name = Name{Segment: segmentOf(e.gateway, e.id)}
		}
		switch {
		case e == nil && c.gone[r.ID.Epoch] >= r.ID.Sequence, e != nil && e.verifier == nil && e.expired(1):
			res.State = "expired"
			res.Message = "the epoch's first record, with the key that would prove the receipt, has expired"
		case e == nil:
			code, res.State = ReceiptUnproven, "unproven"
			res.Message = "the vault holds nothing of the receipt's epoch, and so not the key that would prove it: the whole epoch was left out, or has not arrived, or the receipt is false"
		case e.verifier == nil:
			code, res.State = ReceiptUnproven, "unproven"
			res.Message = "the epoch's first record is missing, and with it the key that would prove the receipt"
		case !e.verifier.Receipt(e.gateway, r):
			code, res.State = ReceiptForged, "forged"
			res.Message = "the receipt is not signed with the epoch's key: it is false, or the vault's epoch is"
		case w.same:
			res.State, res.Segment = "recorded", w.at.name.Path
		case w.found:
			code, res.State, at = Replaced, "replaced", w.at
			res.Message = "the record has another digest than the receipt, which is signed with the epoch's key, says: the caller's record was replaced"
		case e.expired(r.ID.Sequence):
			res.State, res.Message = "expired", "the record's retention is over"
		default:
			code, res.State = Omitted, "omitted"
			res.Message = fmt.Sprintf("the receipt is signed with the epoch's key, and its record is not in the vault, which holds the epoch up to record %d", e.next-1)
			if !e.closed && r.ID.Sequence >= e.next && !c.cited[e.id] {
				res.Message += ": the tail was cut off, or its sink is behind and the record is yet to come"
			}
		}
		if code != "" {
			c.find(code, at, "%s", res.Message)
		}
		c.report.Receipts = append(c.report.Receipts, res)
	}
}

// Expected is a gateway of the register.
type Expected struct {
	Name string
	// Silence is how long it may record nothing; 0: it is not judged.
	Silence time.Duration
}

// ParseRegister reads a register of gateways, one a line: the name and how long
// it may be silent ("gw-1 15m"), or a dash where it may be silent for good.
// Empty lines and those that begin with # are skipped.
func ParseRegister(text string) ([]Expected, error) {
	out := []Expected{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 2 {
			return nil, fmt.Errorf("line %d: %.80q: want a gateway's name and how long it may be silent, as in: gw-1 15m", n, line)
		}
		x := Expected{Name: f[0]}
		if f[1] != "-" {
			d, err := time.ParseDuration(f[1])
			if err != nil || d <= 0 {
				return nil, fmt.Errorf("line %d: %q is no silence: want a time above 0 such as 90s or 15m, or -", n, f[1])
			}
			x.Silence = d
		}
		if slices.ContainsFunc(out, func(o Expected) bool { return o.Name == x.Name }) {
			return nil, fmt.Errorf("line %d: gateway %s is there twice", n, x.Name)
		}
		out = append(out, x)
	}
	return out, nil
}

// register compares the gateways with those that are expected.
func (c *verifier) register(gateways map[string][]*epoch) {
	if c.options.Gateways == nil {
		return
	}
	for _, x := range c.options.Gateways {
		epochs := gateways[x.Name]
		if len(epochs) == 0 {
			c.find(GatewaySilent, place{name: Name{Segment: segmentOf(x.Name, record.Epoch{})}}, "gateway %s is in the register and the vault has no record of it", x.Name)
			continue
		}
		end := epochs[len(epochs)-1]
		if x.Silence > 0 && !end.complete.IsZero() && c.now.Sub(end.complete) > x.Silence {
			how := "is cut off or cannot reach its sink"
			if end.closed {
				how = "was closed in order"
			}
			c.find(GatewaySilent, place{name: end.last, seq: end.next - 1}, "gateway %s, which may be silent for %s, has recorded nothing since %s: it %s", x.Name, x.Silence, end.complete.UTC().Format(time.RFC3339), how)
		}
	}
	for _, g := range c.report.Gateways {
		if !slices.ContainsFunc(c.options.Gateways, func(x Expected) bool { return x.Name == g.Name }) {
			c.find(GatewayUnknown, place{name: gateways[g.Name][0].first}, "gateway %s is not in the register", g.Name)
		}
	}
}

// silence notes a gap between two records that is longer than the register
// allows. Nothing is missing in it: sequences are dense.
func (c *verifier) silence(e *epoch, f *record.Frame, at place) {
	if e.quiet > 0 && !e.time.IsZero() && f.Time.Sub(e.time) > e.quiet {
		c.notice(GatewaySilent, at, "nothing was recorded for %s before this record, the register allows %s", f.Time.Sub(e.time).Round(time.Second), e.quiet)
	}
}

// signatureBatch is how many signatures are checked together.
const signatureBatch = 64

// flush hands over the signatures that wait.
func (c *verifier) flush() {
	if len(c.batch) > 0 {
		c.signatures.work <- c.batch
		c.batch = nil
	}
}

// signatures checks checkpoints' signatures beside the reading: many together,
// and where one of them is wrong each alone.
type signatures struct {
	work chan []signature // each of one epoch
	done sync.WaitGroup

	mu    sync.Mutex
	wrong map[string]ordered // the first of each segment
	most  int
	more  int64
}

type signature struct {
	body     []byte
	verifier *record.Verifier
	at       place
	order    int64
}

// ordered is a finding with its place among the others.
type ordered struct {
	Finding
	order int64
}

// newSignatures starts workers, which close ends.
func newSignatures(most int, finding func(Code, place, string, ...any) Finding) *signatures {
	s := &signatures{work: make(chan []signature, 16), wrong: map[string]ordered{}, most: most}
	for range runtime.GOMAXPROCS(0) {
		s.done.Go(func() {
			for batch := range s.work {
				s.check(batch, finding)
			}
		})
	}
	return s
}

func (s *signatures) check(batch []signature, finding func(Code, place, string, ...any) Finding) {
	bodies := make([][]byte, len(batch))
	for i := range batch {
		bodies[i] = batch[i].body
	}
	if batch[0].verifier.VerifyAll(bodies) {
		return
	}
	for i := range batch {
		w := &batch[i]
		_, err := record.Verify(&record.Frame{Kind: record.KindCheckpoint, Sequence: w.at.seq, Body: w.body}, w.verifier)
		if err != nil {
			s.keep(ordered{finding(SignatureWrong, w.at, "the checkpoint is not signed with the epoch's key, which its first record names: %v", err), w.order})
		}
	}
}

// keep keeps the first finding of each segment: all that follows it there is
// wrong as well.
func (s *signatures) keep(f ordered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, ok := s.wrong[f.Segment]
	switch {
	case ok && before.order < f.order:
	case !ok && len(s.wrong) >= s.most:
		s.more++
	default:
		s.wrong[f.Segment] = f
	}
}

// close waits for what was handed in.
func (s *signatures) close() {
	close(s.work)
	s.done.Wait()
}

// expired reports whether the record has gone with a segment that expired.
func (e *epoch) expired(seq uint64) bool {
	return slices.ContainsFunc(e.passed, func(s span) bool { return s.first <= seq && seq <= s.last })
}

// checkpoint judges what a checkpoint states, whose place, sequence and chain
// are right.
func (c *verifier) checkpoint(e *epoch, f *record.Frame, s record.Statement, at place) {
	if s.Gateway != e.gateway || s.Epoch != e.id {
		c.find(OriginWrong, at, "the checkpoint is about %s, and stands in %s", record.Origin(s.Gateway, s.Epoch), record.Origin(e.gateway, e.id))
		return
	}
	root := e.tree.Root()
	if e.whole && s.Root != root && !e.rootless {
		e.rootless = true // the roots that follow are wrong as well
		c.find(RootWrong, at, "the checkpoint states the root %x, the records up to here give %x", s.Root, root)
	}
	switch {
	case s.Time.Before(e.stated):
		c.notice(ClockStep, at, "the checkpoint is of %s, the one before of %s: the gateway's clock went back", s.Time.Format(time.RFC3339Nano), e.stated.Format(time.RFC3339Nano))
	case s.Time.Before(e.time):
		c.notice(ClockStep, at, "the checkpoint is of %s, its last record of %s: the gateway's clock went back", s.Time.Format(time.RFC3339Nano), e.time.Format(time.RFC3339Nano))
	}
	e.stated = s.Time
	if !e.whole {
		c.extends(e, s.Size, s.Root, at)
	}
	switch {
	case e.verifier != nil || e.keyless || !e.expired(1):
	case s.Retained != nil:
		c.noKey(e, at)
	default:
		e.keyless = true
		c.notice(KeyExpired, at, "the epoch's first record, which names its key, has expired: from here on its checkpoints hold by the chain alone, and by what later epochs cite")
	}
	if e.verifier != nil && !bytes.Equal(e.signed, f.Body) { // recovery states the last one again
		c.report.Checkpoints++
		c.order++
		if n := len(c.batch); n > 0 && c.batch[n-1].verifier != e.verifier {
			c.flush()
		}
		c.batch = append(c.batch, signature{body: f.Body, verifier: e.verifier, at: at, order: c.order})
		if len(c.batch) == signatureBatch {
			c.flush()
		}
	}
	e.signed, e.statement = f.Body, s
}

// openRecord takes the epoch's key from its first record.
func (c *verifier) openRecord(e *epoch, o *record.Open, at place) {
	v, err := record.ParseVerifier(o.Key, e.gateway, e.id)
	if err != nil {
		c.find(SignerWrong, at, "the open record names no key for the epoch's checkpoints: %v", err)
	} else {
		e.verifier = v
	}
	switch {
	case c.options.Trust == nil:
	case o.Certificate == "":
		c.find(CertificateMissing, at, "the epoch's key has no certificate: nothing shows that it is a gateway of the deployment")
	default:
		if _, err := c.options.Trust.Certified(o.Certificate, record.Certificate{Gateway: e.gateway, Epoch: e.id, Key: o.Key, Opened: o.Opened}); err != nil {
			c.find(CertificateWrong, at, "%v", err)
		} else {
			c.report.Certified++
		}
	}
}

// clocks notes where a gateway's time goes back from one epoch to the next.
func (c *verifier) clocks(epochs []*epoch, next map[record.Epoch]*epoch) {
	for i, e := range epochs[1:] {
		before := epochs[i]
		if next[before.id] == e && e.opened != nil && !before.time.IsZero() && e.opened.Opened.Before(before.time) {
			c.notice(ClockStep, place{name: e.first, seq: 1}, "the epoch was opened at %s, the last record of the epoch before, %s, is of %s: the gateway's clock was set back", e.opened.Opened.UTC().Format(time.RFC3339Nano), before.id, before.time.Format(time.RFC3339Nano))
		}
	}
}
