package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/vault"
)

// Proof shows with no vault at hand that a record is in its epoch's log. It is
// written as C2SP tlog-proof (https://c2sp.org/tlog-proof), whose extra data
// is JSON: what a verifier needs beside a deployment's public key.
type Proof struct {
	Sequence   uint64 // the entry's index is one less
	Hashes     []tlog.Hash
	Checkpoint []byte // signed note
	Extra      ProofExtra
}

// ProofExtra is not authenticated by itself: the certificate vouches for the
// key, the key for the checkpoint, and the checkpoint's root for the leaf.
type ProofExtra struct {
	Leaf        string    `json:"leaf"` // hex
	Key         string    `json:"key"`  // the epoch's verifier key
	Opened      time.Time `json:"opened"`
	Certificate string    `json:"certificate,omitempty"`
	// Log, where set, shows that the sink's own log has the checkpoint.
	Log *sinklog.Inclusion `json:"log,omitempty"`
}

const proofHeader = "c2sp.org/tlog-proof@v1"

// MaxProof is the largest proof file that is read, in bytes.
const MaxProof = 64 << 10

// Marshal returns the proof file.
func (p *Proof) Marshal() ([]byte, error) {
	extra, err := json.Marshal(p.Extra)
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofHeader, base64.StdEncoding.EncodeToString(extra), p.Sequence-1)
	for _, h := range p.Hashes {
		fmt.Fprintf(&b, "%s\n", base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes(), nil
}

// ParseProof reads a proof file.
func ParseProof(b []byte) (*Proof, error) {
	if len(b) > MaxProof {
		return nil, fmt.Errorf("proof of %d bytes, at most %d are read", len(b), MaxProof)
	}
	head, checkpoint, ok := strings.Cut(string(b), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || lines[0] != proofHeader {
		return nil, fmt.Errorf("proof: want a file that begins with the line %s", proofHeader)
	}
	if len(lines) < 3 {
		return nil, errors.New("proof: want an extra line, which names the epoch's key, and an index line")
	}
	p := &Proof{Checkpoint: []byte(checkpoint)}
	text, ok := strings.CutPrefix(lines[1], "extra ")
	extra, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil {
		return nil, errors.New("proof: the second line is not the word extra and base64")
	}
	if err := json.Unmarshal(extra, &p.Extra); err != nil {
		return nil, fmt.Errorf("proof: extra data: %w", err)
	}
	text, ok = strings.CutPrefix(lines[2], "index ")
	index, err := strconv.ParseUint(text, 10, 62)
	if !ok || err != nil || strconv.FormatUint(index, 10) != text {
		return nil, fmt.Errorf("proof: %.40q is not the word index and a number", lines[2])
	}
	p.Sequence = index + 1
	if len(lines)-3 > 64 {
		return nil, errors.New("proof: more than 64 hashes")
	}
	for i, line := range lines[3:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize {
			return nil, fmt.Errorf("proof: hash %d is not 32 bytes in base64", i+1)
		}
		p.Hashes = append(p.Hashes, tlog.Hash(h))
	}
	return p, nil
}

// Proven is what a proof proves.
type Proven struct {
	Exchange string    `json:"record"` // EPOCH-SEQUENCE
	Gateway  string    `json:"gateway"`
	Leaf     string    `json:"leaf"` // hex
	Size     uint64    `json:"size"` // of the log at the checkpoint
	Time     time.Time `json:"checkpoint_time"`
	// Anchored is true where a trusted deployment certified the epoch's key.
	Anchored bool `json:"anchored"`
	// InLog is true where the proof speaks of the sink's own log, Logged what of
	// it was checked.
	InLog  bool    `json:"in_log,omitempty"`
	Logged *Logged `json:"logged,omitempty"`

	ID       record.ID        `json:"-"`
	Verifier *record.Verifier `json:"-"`
}

// Verify checks the proof; with trust also that the epoch is one of a trusted
// deployment, with log that the log and its witnesses vouch for the checkpoint.
func (p *Proof) Verify(trust *record.Trust, log *Log) (*Proven, error) {
	s, v, err := checked(p.Checkpoint, p.Extra.Key)
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	leaf, err := hex.DecodeString(p.Extra.Leaf)
	if err != nil || len(leaf) != sha256.Size {
		return nil, errors.New("proof: the leaf is no digest of 64 hex digits")
	}
	if trust != nil {
		if _, err := trust.Certified(p.Extra.Certificate, record.Certificate{Gateway: s.Gateway, Epoch: s.Epoch, Key: p.Extra.Key, Opened: p.Extra.Opened}); err != nil {
			return nil, fmt.Errorf("proof: %w", err)
		}
	}
	if p.Sequence > s.Size || s.Size > 1<<62 {
		return nil, fmt.Errorf("proof: record %d in a log of %d", p.Sequence, s.Size)
	}
	if err := tlog.CheckRecord(p.Hashes, int64(s.Size), tlog.Hash(s.Root), int64(p.Sequence-1), tlog.RecordHash(leaf)); err != nil {
		return nil, fmt.Errorf("proof: the hashes do not lead from the leaf of record %d to the checkpoint's root: %w", p.Sequence, err)
	}
	id := record.ID{Epoch: s.Epoch, Sequence: p.Sequence}
	out := &Proven{Exchange: id.String(), Gateway: s.Gateway, Leaf: p.Extra.Leaf, Size: s.Size, Time: s.Time, Anchored: trust != nil, InLog: p.Extra.Log != nil, ID: id, Verifier: v}
	switch {
	case log == nil:
	case p.Extra.Log == nil:
		return nil, errors.New("proof: it does not say that the sink's log has the checkpoint: the log had not yet when it was made, or there was none")
	default:
		if out.Logged, _, err = log.Included(p.Checkpoint, p.Extra.Log); err != nil {
			return nil, fmt.Errorf("proof: the sink's log: %w", err)
		}
	}
	return out, nil
}

// Receipt reports whether the proof is about the receipt's record.
func (p *Proven) Receipt(r record.Receipt) error {
	switch {
	case r.ID != p.ID:
		return fmt.Errorf("the receipt is of record %s, the proof of %s", r.ID, p.ID)
	case !p.Verifier.Receipt(p.Gateway, r):
		return errors.New("the receipt is not signed with the epoch's key")
	case hex.EncodeToString(r.Leaf[:]) != p.Leaf:
		return fmt.Errorf("the receipt's leaf is %x, the log has %s", r.Leaf, p.Leaf)
	}
	return nil
}

// checked returns what a checkpoint's note states once the key signed it.
func checked(signed []byte, key string) (record.Statement, *record.Verifier, error) {
	s, err := record.ParseStatement(signed)
	if err != nil {
		return s, nil, err
	}
	v, err := record.ParseVerifier(key, s.Gateway, s.Epoch)
	if err != nil {
		return s, nil, err
	}
	if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
		return s, nil, fmt.Errorf("the checkpoint is not signed with the epoch's key: %w", err)
	}
	return s, v, nil
}

// Span is a range of a log's entries, by index: from First to before End.
type Span struct{ First, End uint64 }

// Gaps are the largest subtrees of a log of n entries that hold none of the
// wanted entries, in order. wanted are indexes, sorted and without doubles.
func Gaps(n uint64, wanted []uint64) []Span {
	var out []Span
	var walk func(s Span, wanted []uint64)
	walk = func(s Span, wanted []uint64) {
		switch {
		case len(wanted) == 0:
			out = append(out, s)
		case s.End-s.First > 1:
			mid := split(s)
			i, _ := slices.BinarySearch(wanted, mid)
			walk(Span{s.First, mid}, wanted[:i])
			walk(Span{mid, s.End}, wanted[i:])
		}
	}
	if n > 0 {
		walk(Span{0, n}, wanted)
	}
	return out
}

// split returns where RFC 6962, section 2.1, divides a tree of two or more.
func split(s Span) uint64 { return s.First + 1<<(bits.Len64(s.End-s.First-1)-1) }

// Fold returns the root of a log of n entries from the leaves of the wanted
// entries and the hashes of the gaps between, in order.
func Fold(n uint64, wanted []uint64, leaves [][sha256.Size]byte, gaps []tlog.Hash) (root tlog.Hash, err error) {
	if len(wanted) != len(leaves) || len(wanted) > 0 && wanted[len(wanted)-1] >= n || n == 0 {
		return root, errors.New("the records do not fit the log's size")
	}
	if want := len(Gaps(n, wanted)); want != len(gaps) {
		return root, fmt.Errorf("%d digests of what is left out, want %d", len(gaps), want)
	}
	var walk func(s Span, i, j int) tlog.Hash
	walk = func(s Span, i, j int) tlog.Hash {
		switch {
		case i == j:
			h := gaps[0]
			gaps = gaps[1:]
			return h
		case s.End-s.First == 1:
			return tlog.RecordHash(leaves[i][:])
		}
		mid := split(s)
		k, _ := slices.BinarySearch(wanted[i:j], mid)
		left := walk(Span{s.First, mid}, i, i+k)
		return tlog.NodeHash(left, walk(Span{mid, s.End}, i+k, j))
	}
	return walk(Span{0, n}, 0, len(wanted)), nil
}

// Picked are records of one epoch with what proves them.
type Picked struct {
	Gateway   string
	Epoch     record.Epoch
	Open      *record.Open
	Signed    []byte // the last checkpoint's note
	Statement record.Statement
	// Leaves are those of the wanted records, Gaps the hashes of what lies
	// between, see [Gaps].
	Wanted []uint64 // sequences
	Leaves [][sha256.Size]byte
	Gaps   []tlog.Hash
}

// ErrUnproven means that a vault cannot prove its own records.
var ErrUnproven = errors.New("the vault does not prove it; recorder verify says what is wrong")

// Pick reads an epoch and returns what proves the wanted records, which are
// sequences. It calls do, where set, for each of them that is there: a record
// past its retention is not, its leaf is.
func Pick(ctx context.Context, v Vault, e record.Epoch, wanted []uint64, do func(f *record.Frame) error) (*Picked, error) {
	return PickAt(ctx, v, e, 0, wanted, do)
}

// PickAt does what [Pick] does, with the epoch as it was at this size, where a
// segment must end; 0 is as it is now.
func PickAt(ctx context.Context, v Vault, e record.Epoch, at uint64, wanted []uint64, do func(f *record.Frame) error) (*Picked, error) {
	p := &Picked{Epoch: e, Wanted: wanted}
	segments, err := segmentsOf(ctx, v, e)
	if err != nil {
		return nil, err
	}
	if at > 0 {
		i := slices.IndexFunc(segments, func(n Name) bool { return n.Last == at })
		if i < 0 {
			return nil, fmt.Errorf("epoch %s: no segment ends with record %d: %w", e, at, ErrUnproven)
		}
		segments = segments[:i+1]
	}
	if len(segments) == 0 || segments[0].First != 1 {
		return nil, fmt.Errorf("epoch %s: its first records are not in the vault: %w", e, ErrUnproven)
	}
	p.Gateway = segments[0].Gateway
	size := segments[len(segments)-1].Last
	var indexes []uint64
	for _, seq := range wanted {
		if seq == 0 || seq > size {
			return nil, fmt.Errorf("record %s is not in the vault, which holds the epoch up to record %d", record.ID{Epoch: e, Sequence: seq}, size)
		}
		indexes = append(indexes, seq-1)
	}
	w := &picking{Picked: p, do: do, spans: Gaps(size, indexes), wanted: wanted}
	for _, n := range segments {
		if n.First != w.all.Size()+1 {
			return nil, fmt.Errorf("epoch %s: records %d to %d are not in the vault: %w", e, w.all.Size()+1, n.First-1, ErrUnproven)
		}
		if err := w.segment(ctx, v, n); err != nil {
			return nil, err
		}
	}
	if p.Open == nil || p.Signed == nil || p.Statement.Size != size || w.all.Size() != size || p.Statement.Root != w.all.Root() {
		return nil, fmt.Errorf("epoch %s: its last checkpoint does not fit its records: %w", e, ErrUnproven)
	}
	if _, _, err := checked(p.Signed, p.Open.Key); err != nil {
		return nil, fmt.Errorf("epoch %s: %w: %w", e, err, ErrUnproven)
	}
	return p, nil
}

// segmentsOf lists an epoch's segments by sequence.
func segmentsOf(ctx context.Context, v Vault, e record.Epoch) ([]Name, error) {
	var out []Name
	from := vault.Day(e.Time().AddDate(0, 0, -1)) // the clock may be off by a little
	for path, err := range v.List(ctx, vault.SegmentsPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the vault's segments: %w", err)
		}
		if n, err := ParseName(path); err == nil && n.Epoch == e && !n.Part && n.Day >= from {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b Name) int { return int(min(1, max(-1, int64(a.First-b.First)))) })
	return out, nil
}

// Members lists the sequences of all records of the given exchanges of an epoch,
// and of its open record.
func Members(ctx context.Context, v Vault, e record.Epoch, exchanges map[uint64]bool) ([]uint64, error) {
	segments, err := segmentsOf(ctx, v, e)
	if err != nil {
		return nil, err
	}
	out := []uint64{1}
	open := len(exchanges)
	for _, n := range segments {
		if open == 0 {
			break
		}
		if err := each(ctx, v, n, func(f *record.Frame) error {
			if exchanges[f.Exchange] && f.Kind.Leaf() && f.Sequence > 1 {
				out = append(out, f.Sequence)
				if f.Kind == record.KindOutcome {
					open--
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// each reads a segment.
func each(ctx context.Context, v Vault, n Name, do func(f *record.Frame) error) error {
	s, err := OpenSegment(ctx, v, n.Path)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		f, _, err := s.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := do(&f); err != nil {
			return err
		}
	}
}

// picking is the state of [Pick].
type picking struct {
	*Picked
	do     func(f *record.Frame) error
	spans  []Span // not reached yet
	gap    record.Tree
	wanted []uint64 // not reached yet
	all    record.Tree
}

func (w *picking) segment(ctx context.Context, v Vault, n Name) error {
	return each(ctx, v, n, func(f *record.Frame) (err error) {
		switch {
		case f.Kind == record.KindCheckpoint:
			w.Signed = f.Body
			if w.Statement, err = record.Stated(f); err != nil {
				return fmt.Errorf("segment %s: %w: %w", n.Path, err, ErrUnproven)
			}
			return nil
		case f.Sequence != w.all.Size()+1:
			return fmt.Errorf("segment %s: record %d stands where record %d must: %w", n.Path, f.Sequence, w.all.Size()+1, ErrUnproven)
		}
		return w.record(f)
	})
}

func (w *picking) record(f *record.Frame) error {
	absent := f.Kind == vault.KindAbsent
	var leaf [sha256.Size]byte
	if absent {
		leaf = [sha256.Size]byte(f.Body)
	} else {
		leaf = f.Leaf()
	}
	w.all.Add(leaf)
	if f.Kind == record.KindOpen {
		w.Open = new(record.Open)
		if err := record.Unmarshal(f.Body, w.Open); err != nil {
			return fmt.Errorf("open record of epoch %s: %w", w.Epoch, err)
		}
	}
	index := f.Sequence - 1
	if len(w.spans) > 0 && index >= w.spans[0].First {
		w.gap.Add(leaf)
		if f.Sequence == w.spans[0].End {
			w.Gaps = append(w.Gaps, tlog.Hash(w.gap.Root()))
			w.gap, w.spans = record.Tree{}, w.spans[1:]
		}
		return nil
	}
	if len(w.wanted) == 0 || w.wanted[0] != f.Sequence {
		return fmt.Errorf("record %d lies behind the epoch's end", f.Sequence)
	}
	w.wanted = w.wanted[1:]
	w.Leaves = append(w.Leaves, leaf)
	if absent || w.do == nil {
		return nil
	}
	return w.do(f)
}

// PickLogged does what [Pick] does, with the epoch as the sink's log has it, and
// what proves that, where the log holds all that is wanted. The prover may be
// nil.
func PickLogged(ctx context.Context, v Vault, log *sinklog.Prover, e record.Epoch, wanted []uint64, do func(f *record.Frame) error) (*Picked, *sinklog.Inclusion, error) {
	at := uint64(0)
	if log != nil && len(wanted) > 0 {
		size, ok, err := log.Newest(e, wanted[len(wanted)-1])
		if err != nil {
			return nil, nil, err
		}
		if ok {
			at = size
		}
	}
	p, err := PickAt(ctx, v, e, at, wanted, do)
	if err != nil || at == 0 {
		return p, nil, err
	}
	i, err := log.Prove(e, p.Signed)
	return p, i, err
}

// Prove returns the proof of one record, with that of the sink's log where the
// vault has one that holds the record.
func Prove(ctx context.Context, v Vault, id record.ID) (*Proof, error) {
	log, err := sinklog.NewProver(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("prove: %w", err)
	}
	p, logged, err := PickLogged(ctx, v, log, id.Epoch, []uint64{id.Sequence}, nil)
	if err != nil {
		return nil, fmt.Errorf("prove: %w", err)
	}
	out := &Proof{Sequence: id.Sequence, Checkpoint: p.Signed, Extra: ProofExtra{
		Leaf: hex.EncodeToString(p.Leaves[0][:]), Key: p.Open.Key, Opened: p.Open.Opened, Certificate: p.Open.Certificate, Log: logged,
	}}
	// From the leaf's sibling up to the root's child (RFC 6962, section 2.1.1):
	// the smaller a sibling, the nearer it lies.
	spans := Gaps(p.Statement.Size, []uint64{id.Sequence - 1})
	var walk func(s Span)
	walk = func(s Span) {
		if s.End-s.First == 1 {
			return
		}
		mid := split(s)
		near, far := Span{s.First, mid}, Span{mid, s.End}
		if id.Sequence-1 >= mid {
			near, far = far, near
		}
		walk(near)
		out.Hashes = append(out.Hashes, p.Gaps[slices.Index(spans, far)])
	}
	walk(Span{0, p.Statement.Size})
	return out, nil
}
