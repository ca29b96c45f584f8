package bundle

import (
	"archive/zip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/keyring"
	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
	"verbatim.dev/recorder/sinklog"
)

// Config configures the making of a bundle.
type Config struct {
	Vault ledger.Vault
	// Tenant is the tenant's private keyset; nil: no keys go into the bundle,
	// and only a single exchange can be selected.
	Tenant    *keyset.Handle
	Selection Selection
	// NoPayload leaves payload records out but for their digests.
	NoPayload bool
	Now       time.Time
	// Chosen, where set, is called with the exchanges that fit the selection,
	// before anything of them is written. Its error ends the writing.
	Chosen func(ctx context.Context, exchanges []string) error
}

// Stats say what went into a bundle.
type Stats struct {
	Exchanges, Records, Withheld, Keys, Erased int
	// Epochs counts the epochs, Logged those that the sink's own log vouches for.
	Epochs, Logged int
	// DataKeys names the data keys, EPOCH/KEYID, sorted.
	DataKeys []string
}

// ErrNothing means that nothing fits the selection.
var ErrNothing = errors.New("nothing in the vault fits the selection")

// Write makes a bundle. What was written is of use only where it returns nil.
func Write(ctx context.Context, c Config, w io.Writer) (Stats, error) {
	b := &writer{c: c, keys: map[string][]byte{}, erased: map[string]bool{}, wanted: map[record.Epoch]map[uint64]bool{}}
	if c.Tenant != nil {
		var err error
		if b.ring, err = keyring.New(keyring.Config{Source: c.Vault, Tenant: c.Tenant}); err != nil {
			return b.stats, fmt.Errorf("export: %w", err)
		}
	}
	if err := b.write(ctx, w); err != nil {
		return b.stats, fmt.Errorf("export: %w", err)
	}
	return b.stats, nil
}

type writer struct {
	c        Config
	ring     *keyring.Keyring
	manifest manifest
	stats    Stats
	keys     map[string][]byte
	erased   map[string]bool
	wanted   map[record.Epoch]map[uint64]bool // exchanges, and recovery's outcomes
	report   report
	log      *sinklog.Prover // nil: the vault has none
}

func (b *writer) write(ctx context.Context, w io.Writer) error {
	if err := b.choose(ctx); err != nil {
		return err
	}
	if b.c.Chosen != nil {
		if err := b.c.Chosen(ctx, b.manifest.Exchanges); err != nil {
			return err
		}
	}
	b.manifest.Version, b.manifest.Made, b.manifest.By = version, b.c.Now.UTC(), record.Build
	b.manifest.Selection, b.manifest.Payload = b.c.Selection, !b.c.NoPayload
	z := zip.NewWriter(w)
	var err error
	if b.log, err = sinklog.NewProver(ctx, b.c.Vault); err != nil {
		return err
	}
	for _, e := range sortedEpochs(b.wanted) {
		if err := b.epoch(ctx, z, e); err != nil {
			return err
		}
	}
	b.manifest.Erased = slices.Sorted(maps.Keys(b.erased))
	b.stats.Exchanges, b.stats.Keys, b.stats.Erased = len(b.manifest.Exchanges), len(b.keys), len(b.erased)
	b.stats.DataKeys = slices.Sorted(maps.Keys(b.keys))
	page, err := b.report.render(&b.manifest)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		v    any
	}{{keysFile, b.keys}, {manifestFile, b.manifest}, {reportFile, page}, {readmeFile, []byte(readme(&b.manifest, len(b.keys)))}} {
		out, ok := f.v.([]byte)
		if !ok {
			if out, err = json.MarshalIndent(f.v, "", " "); err != nil {
				return err
			}
		}
		o, err := b.create(z, f.name, zip.Deflate)
		if err != nil {
			return err
		}
		if _, err := o.Write(out); err != nil {
			return err
		}
	}
	return z.Close()
}

func (b *writer) create(z *zip.Writer, name string, method uint16) (io.Writer, error) {
	return z.CreateHeader(&zip.FileHeader{Name: name, Method: method, Modified: b.c.Now.UTC()})
}

// choose finds the exchanges that are asked for.
func (b *writer) choose(ctx context.Context) error {
	s := b.c.Selection
	config := search.Config{Vault: b.c.Vault}
	if b.ring != nil {
		config.Keys = b.ring
	}
	take := func(x *search.Exchange) error {
		id, err := record.ParseID(x.ID)
		if err != nil {
			return err
		}
		b.want(id)
		b.manifest.Exchanges = append(b.manifest.Exchanges, x.ID)
		if x.ClosedBy != "" {
			if id, err = record.ParseID(x.ClosedBy); err != nil {
				return err
			}
			b.want(id)
		}
		return nil
	}
	if s.Exchange != "" {
		id, err := record.ParseID(s.Exchange)
		if err != nil {
			return err
		}
		d, err := search.Find(ctx, config, id, nil)
		if err != nil {
			return err
		}
		return take(&d.Exchange)
	}
	q := search.Query{Filter: search.Filter{Session: s.Session, Since: s.Since, Until: s.Until}}
	if _, err := search.Run(ctx, config, q, take); err != nil {
		return err
	}
	if len(b.manifest.Exchanges) == 0 {
		return ErrNothing
	}
	return nil
}

func (b *writer) want(id record.ID) {
	if b.wanted[id.Epoch] == nil {
		b.wanted[id.Epoch] = map[uint64]bool{}
	}
	b.wanted[id.Epoch][id.Sequence] = true
}

func (b *writer) epoch(ctx context.Context, z *zip.Writer, e record.Epoch) error {
	members, err := ledger.Members(ctx, b.c.Vault, e, b.wanted[e])
	if err != nil {
		return err
	}
	out, err := b.create(z, framesFile(e.String()), zip.Store)
	if err != nil {
		return err
	}
	held := map[uint64]bool{}
	withheld := map[uint64]bool{}
	p, logged, err := ledger.PickLogged(ctx, b.c.Vault, b.log, e, members, func(f *record.Frame) error {
		if b.c.NoPayload && f.Kind == record.KindPayload && f.Flags&record.FlagHead == 0 {
			withheld[f.Sequence] = true
			return nil
		}
		held[f.Sequence] = true
		if err := b.key(ctx, e, f); err != nil {
			return err
		}
		if _, err := out.Write(f.Raw()); err != nil {
			return err
		}
		return b.report.add(ctx, e, f, b.open)
	})
	if err != nil {
		return err
	}
	m := epoch{Epoch: e.String(), Gateway: p.Gateway, Checkpoint: string(p.Signed), Log: logged}
	if logged != nil {
		b.stats.Logged++
	}
	b.stats.Epochs++
	for i, seq := range p.Wanted {
		r := entry{Sequence: seq}
		if !held[seq] {
			r.Leaf, r.Why = hexText(p.Leaves[i][:]), "expired"
		}
		if withheld[seq] {
			r.Why = "withheld"
			b.stats.Withheld++
		}
		m.Records = append(m.Records, r)
	}
	b.stats.Records += len(m.Records)
	for _, h := range p.Gaps {
		m.Gaps = append(m.Gaps, hexText(h[:]))
	}
	b.manifest.Epochs = append(b.manifest.Epochs, m)
	return nil
}

func (b *writer) open(ctx context.Context, e record.Epoch, f *record.Frame) ([]byte, error) {
	if b.ring == nil {
		return nil, record.ErrNoKey
	}
	return b.ring.Open(ctx, e, f)
}

// key takes the frame's data key into the bundle.
func (b *writer) key(ctx context.Context, e record.Epoch, f *record.Frame) error {
	name := keyName(e, f.Key)
	if b.c.Tenant == nil || f.Key == (record.KeyID{}) || b.keys[name] != nil || b.erased[name] {
		return nil
	}
	wrapped, err := keyring.Read(ctx, b.c.Vault, e, f.Key)
	if errors.Is(err, record.ErrNoKey) {
		b.erased[name] = true
		return nil
	}
	if err != nil {
		return err
	}
	b.keys[name], err = record.Unwrap(b.c.Tenant, e, &wrapped)
	return err
}

func sortedEpochs[T any](m map[record.Epoch]T) []record.Epoch {
	return slices.SortedFunc(maps.Keys(m), func(a, b record.Epoch) int { return slices.Compare(a[:], b[:]) })
}

func hexText(b []byte) string { return hex.EncodeToString(b) }
