package bundle

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
)

// Options of a verification.
type Options struct {
	// Trust, where set, are the deployment keys that must have certified each
	// epoch's key. Without it the bundle vouches for itself.
	Trust *record.Trust
	// Receipts must be of records in the bundle.
	Receipts []record.Receipt
	// Log, where set, is the sink's own log, which must have each epoch's
	// checkpoint, with its witnesses; see [ledger.Log.Included].
	Log *ledger.Log
}

// Report is the result of a verification.
type Report struct {
	Sound    bool `json:"sound"`
	Anchored bool `json:"anchored"`
	// Opened is true where the bundle has data keys.
	Opened    bool             `json:"opened"`
	Payload   bool             `json:"payload"`
	Made      time.Time        `json:"made"`
	Selection Selection        `json:"selection"`
	Listed    []string         `json:"exchange_ids"`
	Exchanges ledger.Exchanges `json:"exchanges"`
	Epochs    []Epoch          `json:"epochs"`
	Records   int              `json:"records"`
	// Digests counts records that are there as digests only.
	Digests int `json:"digests_only"`
	Erased  int `json:"erased_keys"`
	// Page says how report.html stands: "as the records say", or what else.
	Page     string           `json:"report"`
	Findings []ledger.Finding `json:"findings,omitempty"`
}

// Epoch is an epoch that the bundle's records are of.
type Epoch struct {
	Epoch   string    `json:"epoch"`
	Gateway string    `json:"gateway"`
	Size    uint64    `json:"size"`
	Time    time.Time `json:"checkpoint_time"`
	// InLog is true where the bundle speaks of the sink's own log, Logged what of
	// it was checked.
	InLog  bool           `json:"in_log,omitempty"`
	Logged *ledger.Logged `json:"logged,omitempty"`
}

// Verify checks a bundle. The error is about the reading alone: a file that is
// no bundle, or cannot be read.
func Verify(ctx context.Context, file io.ReaderAt, size int64, o Options) (*Report, error) {
	z, err := zip.NewReader(file, size)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	c := &checker{ctx: ctx, o: o, files: map[string]*zip.File{}, leaves: map[record.ID][sha256.Size]byte{}, verifiers: map[record.Epoch]*record.Verifier{}, gateways: map[record.Epoch]string{}}
	for _, f := range z.File {
		if c.files[f.Name] != nil {
			return nil, fmt.Errorf("bundle: the file %.100q is there twice", f.Name)
		}
		c.files[f.Name] = f
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	c.report.Sound = len(c.report.Findings) == 0
	return &c.report, nil
}

type checker struct {
	ctx       context.Context
	o         Options
	files     map[string]*zip.File
	manifest  manifest
	keys      *record.Opener
	report    Report
	page      report
	judge     *ledger.Judge
	leaves    map[record.ID][sha256.Size]byte // of receipts
	verifiers map[record.Epoch]*record.Verifier
	gateways  map[record.Epoch]string
}

func (c *checker) find(code ledger.Code, e *epoch, seq uint64, format string, args ...any) {
	f := ledger.Finding{Code: code, Sequence: seq, Message: fmt.Sprintf(format, args...)}
	if e != nil {
		f.Epoch, f.Gateway = e.Epoch, e.Gateway
	}
	c.report.Findings = append(c.report.Findings, f)
}

func (c *checker) read(name string) ([]byte, error) {
	f := c.files[name]
	if f == nil {
		return nil, fmt.Errorf("no file %s in it: is it a bundle of recorder export?", name)
	}
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxManifest)
	}
	return b, nil
}

func (c *checker) check() error {
	b, err := c.read(manifestFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &c.manifest); err != nil {
		return fmt.Errorf("%s: %w", manifestFile, err)
	}
	m := &c.manifest
	if m.Version != version {
		return fmt.Errorf("%s: version %d, this program reads %d", manifestFile, m.Version, version)
	}
	keys, err := c.readKeys()
	if err != nil {
		return err
	}
	c.report.Anchored, c.report.Payload, c.report.Made, c.report.Selection = c.o.Trust != nil, m.Payload, m.Made, m.Selection
	c.report.Listed, c.report.Erased, c.report.Opened = m.Exchanges, len(m.Erased), keys > 0
	var open ledger.Opener
	if keys > 0 {
		open = opens{c.keys}
	}
	c.judge = ledger.NewJudge(c.ctx, open, !m.Payload)
	for i := range m.Epochs {
		if err := c.epoch(&m.Epochs[i]); err != nil {
			return err
		}
	}
	found, exchanges := c.judge.Finish()
	c.report.Findings, c.report.Exchanges = append(c.report.Findings, found...), exchanges
	c.selection()
	c.receipts()
	return c.pageIs()
}

// opens fits an opener to the ledger's interface.
type opens struct{ o *record.Opener }

func (o opens) Open(_ context.Context, e record.Epoch, f *record.Frame) ([]byte, error) {
	b, err := o.o.Open(e, f)
	if err != nil && !errors.Is(err, record.ErrNoKey) {
		return nil, fmt.Errorf("%w: %w", keyring.ErrBody, err)
	}
	return b, err
}

func (c *checker) readKeys() (int, error) {
	b, err := c.read(keysFile)
	if err != nil {
		return 0, err
	}
	var keys map[string][]byte
	if err := json.Unmarshal(b, &keys); err != nil {
		return 0, fmt.Errorf("%s: %w", keysFile, err)
	}
	c.keys = new(record.Opener)
	for name, raw := range keys {
		epoch, id, _ := strings.Cut(name, "/")
		e, err := record.ParseEpoch(epoch)
		k, hexErr := hex.DecodeString(id)
		if err != nil || hexErr != nil || len(k) != len(record.KeyID{}) {
			return 0, fmt.Errorf("%s: %.100q names no key", keysFile, name)
		}
		if err := c.keys.AddKey(e, record.KeyID(k), raw); err != nil {
			return 0, fmt.Errorf("%s: %w", keysFile, err)
		}
	}
	return len(keys), nil
}

// epoch checks the records of one epoch. Frames are read one at a time.
func (c *checker) epoch(m *epoch) error {
	s, err := record.ParseStatement([]byte(m.Checkpoint))
	if err != nil {
		c.find(ledger.SignatureWrong, m, 0, "%v", err)
		return nil
	}
	if s.Gateway != m.Gateway || s.Epoch.String() != m.Epoch {
		c.find(ledger.OriginWrong, m, 0, "the checkpoint is about %s", record.Origin(s.Gateway, s.Epoch))
		return nil
	}
	if c.gateways[s.Epoch] != "" {
		c.find(ledger.EpochWrong, m, 0, "the epoch is there twice")
		return nil
	}
	c.gateways[s.Epoch] = s.Gateway
	c.judge.Epoch(s.Gateway, s.Epoch, s.Size)
	c.report.Epochs = append(c.report.Epochs, Epoch{Epoch: m.Epoch, Gateway: m.Gateway, Size: s.Size, Time: s.Time, InLog: m.Log != nil, Logged: c.logged(m)})
	file := c.files[framesFile(m.Epoch)]
	if file == nil {
		c.find(ledger.SegmentMissing, m, 0, "its file of records is not in the bundle")
		return nil
	}
	r, err := file.Open()
	if err != nil {
		return fmt.Errorf("%s: %w", file.Name, err)
	}
	defer r.Close()
	in := bufio.NewReaderSize(r, 64<<10)
	var wanted []uint64
	var leaves [][sha256.Size]byte
	for i, want := range m.Records {
		if want.Sequence == 0 || i > 0 && want.Sequence <= m.Records[i-1].Sequence {
			c.find(ledger.SequenceWrong, m, want.Sequence, "the manifest lists it out of order")
			return nil
		}
		leaf, err := c.record(m, &s, want, in)
		if err != nil {
			c.find(ledger.FrameWrong, m, want.Sequence, "%v", err)
			return nil
		}
		wanted, leaves = append(wanted, want.Sequence-1), append(leaves, leaf)
		c.leaves[record.ID{Epoch: s.Epoch, Sequence: want.Sequence}] = leaf
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		c.find(ledger.FrameWrong, m, 0, "more follows its last record")
	}
	c.report.Records += len(wanted)
	var gaps []tlog.Hash
	for _, text := range m.Gaps {
		h, err := hex.DecodeString(text)
		if err != nil || len(h) != tlog.HashSize {
			c.find(ledger.RootWrong, m, 0, "%.80q is no digest", text)
			return nil
		}
		gaps = append(gaps, tlog.Hash(h))
	}
	root, err := ledger.Fold(s.Size, wanted, leaves, gaps)
	if err != nil {
		c.find(ledger.RootWrong, m, 0, "%v", err)
	} else if root != tlog.Hash(s.Root) {
		c.find(ledger.RootWrong, m, 0, "the checkpoint states the root %x, the records and the digests of the rest give %x", s.Root, root[:])
	}
	v := c.verifiers[s.Epoch]
	if v == nil {
		c.find(ledger.SignerWrong, m, 1, "the epoch's open record, which names its key, is not in the bundle")
		return nil
	}
	if _, err := note.Open([]byte(m.Checkpoint), note.VerifierList(v)); err != nil {
		c.find(ledger.SignatureWrong, m, 0, "the checkpoint is not signed with the epoch's key: %v", err)
	}
	return nil
}

// logged holds the epoch's checkpoint against the sink's own log.
func (c *checker) logged(m *epoch) *ledger.Logged {
	switch {
	case c.o.Log == nil:
		return nil
	case m.Log == nil:
		c.find(ledger.LogMissing, m, 0, "the bundle does not show that the sink's log has the checkpoint: when the bundle was made the log had not come so far, or there was none. Export it anew")
		return nil
	}
	l, code, err := c.o.Log.Included([]byte(m.Checkpoint), m.Log)
	if err != nil {
		c.find(code, m, 0, "%v", err)
	}
	return l
}

// record reads one record, or takes its digest.
func (c *checker) record(m *epoch, s *record.Statement, want entry, in io.Reader) (leaf [sha256.Size]byte, err error) {
	if want.Leaf != "" {
		b, err := hex.DecodeString(want.Leaf)
		if err != nil || len(b) != len(leaf) {
			return leaf, fmt.Errorf("%.80q is no digest", want.Leaf)
		}
		c.report.Digests++
		return [sha256.Size]byte(b), nil
	}
	f, err := record.ReadFrame(in)
	if errors.Is(err, io.EOF) {
		err = record.ErrTorn
	}
	if err != nil {
		return leaf, err
	}
	if f.Sequence != want.Sequence || !f.Kind.Leaf() {
		return leaf, fmt.Errorf("a %s frame of sequence %d stands in its place", f.Kind, f.Sequence)
	}
	if f.Sequence == 1 {
		c.opened(m, s, &f)
	}
	if err := c.judge.Frame(&f); err != nil {
		return leaf, err
	}
	if err := c.page.add(c.ctx, s.Epoch, &f, func(_ context.Context, e record.Epoch, f *record.Frame) ([]byte, error) { return c.keys.Open(e, f) }); err != nil {
		return leaf, err
	}
	return f.Leaf(), nil
}

// opened takes the epoch's key from its open record.
func (c *checker) opened(m *epoch, s *record.Statement, f *record.Frame) {
	var o record.Open
	if err := record.Unmarshal(f.Body, &o); err != nil || f.Kind != record.KindOpen {
		c.find(ledger.SignerWrong, m, 1, "is no open record")
		return
	}
	v, err := record.ParseVerifier(o.Key, s.Gateway, s.Epoch)
	if err != nil {
		c.find(ledger.SignerWrong, m, 1, "%v", err)
		return
	}
	c.verifiers[s.Epoch] = v
	if c.o.Trust != nil {
		if _, err := c.o.Trust.Certified(o.Certificate, record.Certificate{Gateway: s.Gateway, Epoch: s.Epoch, Key: o.Key, Opened: o.Opened}); err != nil {
			c.find(ledger.CertificateWrong, m, 1, "%v", err)
		}
	}
}

// selection checks that the exchanges that the manifest lists are there.
func (c *checker) selection() {
	for _, text := range c.manifest.Exchanges {
		id, err := record.ParseID(text)
		if err != nil {
			c.find(ledger.ExchangeWrong, nil, 0, "the manifest: %v", err)
			continue
		}
		if _, ok := c.leaves[id]; !ok {
			c.find(ledger.ExchangeWrong, &epoch{Epoch: id.Epoch.String(), Gateway: c.gateways[id.Epoch]}, id.Sequence, "the manifest lists the exchange, the bundle does not hold it")
		}
	}
}

func (c *checker) receipts() {
	for _, r := range c.o.Receipts {
		e := &epoch{Epoch: r.ID.Epoch.String(), Gateway: c.gateways[r.ID.Epoch]}
		leaf, ok := c.leaves[r.ID]
		v := c.verifiers[r.ID.Epoch]
		switch {
		case !ok || v == nil:
			c.find(ledger.ReceiptUnproven, e, r.ID.Sequence, "the receipt's record is not in the bundle")
		case !v.Receipt(c.gateways[r.ID.Epoch], r):
			c.find(ledger.ReceiptForged, e, r.ID.Sequence, "the receipt is not signed with the epoch's key")
		case leaf != r.Leaf:
			c.find(ledger.Replaced, e, r.ID.Sequence, "the record has another digest than the receipt says")
		}
	}
}

// pageIs compares report.html with what the records say.
func (c *checker) pageIs() error {
	have, err := c.read(reportFile)
	if err != nil {
		c.report.Page = "is not there"
		return nil
	}
	want, err := c.page.render(&c.manifest)
	if err != nil {
		return err
	}
	c.report.Page = "as the records say"
	if !bytes.Equal(have, want) {
		c.report.Page = "is not what this program (" + record.Build + ") makes of the records; it was made by " + c.manifest.By + ": do not rely on it"
	}
	return nil
}
