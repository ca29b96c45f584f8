package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"verbatim.dev/recorder/record"
)

const (
	stateExt      = ".json"
	filesName     = StatePrefix + "files.json"
	erasuresName  = StatePrefix + "erasures.json"
	epochsPrefix  = StatePrefix + "epochs/"
	maxStateBytes = 64 << 20
)

// block is how many sequences of an epoch share a file, as long as what is
// begun in them stays within fileBytes of sealed bodies. Both follow from the
// records alone, so any number of builds makes the same files.
const (
	block     = 1 << 16
	fileBytes = 32 << 20
)

// epochState says what of an epoch is in the index. It is written when all that
// it says is durable.
type epochState struct {
	Version int    `json:"version"`
	Gateway string `json:"gateway"`
	Epoch   string `json:"epoch"`
	// Done are ranges of sequences whose segments were read, in order, that do
	// not touch.
	Done [][2]uint64 `json:"done"`
	// Splits are sequences where a file begins within a block.
	Splits []uint64 `json:"splits,omitempty"`
	// High is the last exchange that was begun, Bytes how much its file's
	// exchanges began with.
	High  uint64 `json:"high,omitempty"`
	Bytes int64  `json:"bytes,omitempty"`
	// Open are the exchanges without an outcome.
	Open []openRow `json:"open,omitempty"`

	epoch   record.Epoch
	version string // of the stored object
	dirty   bool
}

// openRow says in which file the row of an open exchange is.
type openRow struct {
	Sequence uint64 `json:"sequence"`
	Day      string `json:"day"`
}

func stateName(gateway string, e record.Epoch) string {
	return epochsPrefix + gateway + "/" + e.String() + stateExt
}

// covers reports whether the range was read.
func (s *epochState) covers(first, last uint64) bool {
	for _, r := range s.Done {
		if r[0] <= first && last <= r[1] {
			return true
		}
	}
	return false
}

// last is the end of what was read.
func (s *epochState) last() uint64 {
	if len(s.Done) == 0 {
		return 0
	}
	return s.Done[len(s.Done)-1][1]
}

// add notes a range as read.
func (s *epochState) add(first, last uint64) {
	all := append(s.Done, [2]uint64{first, last})
	slices.SortFunc(all, func(a, b [2]uint64) int { return compareUint(a[0], b[0]) })
	s.Done = all[:1]
	for _, r := range all[1:] {
		end := &s.Done[len(s.Done)-1]
		if r[0] <= end[1]+1 {
			end[1] = max(end[1], r[1])
			continue
		}
		s.Done = append(s.Done, r)
	}
	s.dirty = true
}

func compareUint(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// cut forgets that anything from first on was read.
func (s *epochState) cut(first uint64) {
	var left [][2]uint64
	for _, r := range s.Done {
		if r[0] < first {
			left = append(left, [2]uint64{r[0], min(r[1], first-1)})
		}
	}
	s.Done, s.dirty = left, true
}

// file returns where the file begins that holds an exchange.
func (s *epochState) file(seq uint64) uint64 {
	first := (seq-1)/block*block + 1
	if i, ok := slices.BinarySearch(s.Splits, seq); ok {
		return seq
	} else if i > 0 {
		first = max(first, s.Splits[i-1])
	}
	return first
}

// begin notes that an exchange begins, with a body of so many sealed bytes.
func (s *epochState) begin(seq uint64, size int) {
	if seq <= s.High {
		return // read again
	}
	if s.High == 0 || s.file(s.High) != s.file(seq) {
		s.Bytes = 0
	}
	if s.Bytes > 0 && s.Bytes+int64(size) > fileBytes {
		s.Splits, s.Bytes = append(s.Splits, seq), 0
	}
	s.High, s.Bytes, s.dirty = seq, s.Bytes+int64(size), true
}

func parseState(b []byte, name string) (*epochState, error) {
	s := &epochState{}
	if err := decodeJSON(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var err error
	if s.epoch, err = record.ParseEpoch(s.Epoch); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if s.Version != version {
		return nil, fmt.Errorf("%s: version %d, this program builds %d: run recorder index rebuild", name, s.Version, version)
	}
	if stateName(s.Gateway, s.epoch) != name || !slices.IsSorted(s.Splits) {
		return nil, fmt.Errorf("%s: is not what its name says: run recorder index rebuild", name)
	}
	return s, nil
}

func decodeJSON(b []byte, v any) error {
	if len(b) > maxStateBytes {
		return fmt.Errorf("longer than %d bytes", maxStateBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// readState returns an epoch's state, an empty one where there is none.
func readState(ctx context.Context, s Store, gateway string, e record.Epoch) (*epochState, error) {
	name := stateName(gateway, e)
	b, v, err := s.Read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return &epochState{Version: version, Gateway: gateway, Epoch: e.String(), epoch: e}, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := parseState(b, name)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", s, err)
	}
	st.version = v
	return st, nil
}

// gatewayStates returns the states of all epochs of a gateway, by time.
func gatewayStates(ctx context.Context, s Store, gateway string) ([]*epochState, error) {
	var all []*epochState
	prefix := epochsPrefix + gateway + "/"
	for name, err := range s.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		text, ok := strings.CutSuffix(strings.TrimPrefix(name, prefix), stateExt)
		e, err := record.ParseEpoch(text)
		if !ok || err != nil {
			return nil, fmt.Errorf("index %s: %s is nothing of an index's: take it away", s, name)
		}
		st, err := readState(ctx, s, gateway, e)
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b *epochState) int { return bytes.Compare(a.epoch[:], b.epoch[:]) })
	return all, nil
}

// document is a small object of JSON.
type document[T any] struct {
	name    string
	version string
	value   T
}

func readDocument[T any](ctx context.Context, s Store, name string) (*document[T], error) {
	d := &document[T]{name: name}
	b, v, err := s.Read(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	d.version = v
	if err := decodeJSON(b, &d.value); err != nil {
		return nil, fmt.Errorf("index %s: %s: %w: run recorder index rebuild", s, name, err)
	}
	return d, nil
}

func (d *document[T]) write(ctx context.Context, s Store) error {
	b, err := json.Marshal(d.value)
	if err != nil {
		return err
	}
	d.version, err = s.Write(ctx, d.name, d.version, append(b, '\n'))
	return err
}
