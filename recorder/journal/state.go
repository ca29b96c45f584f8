package journal

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"verbatim.dev/recorder/record"
)

// stateVersion is the version of the state files that this package writes.
const stateVersion = 1

// maxState bounds what is read of a state file: 100,000 open exchanges and more.
const maxState = 16 << 20

// state is what a state file holds: what was true before the first sequence of
// its segment.
type state struct {
	Version int         `json:"version"`
	Epoch   string      `json:"epoch"`
	Gateway string      `json:"gateway"`
	First   uint64      `json:"first"`
	Head    string      `json:"head"`
	Tree    record.Tree `json:"tree"`
	Open    []openState `json:"open,omitempty"`
	Until   string      `json:"until,omitempty"` // see position; absent: not stated
}

type openState struct {
	Exchange uint64 `json:"exchange"`
	Class    string `json:"class"`
	Expiry   int64  `json:"expiry,omitempty"` // Unix seconds
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeState returns a state file: the CRC32C of what follows in hex, a
// newline, JSON.
func encodeState(e record.Epoch, gateway string, p position) ([]byte, error) {
	s := state{Version: stateVersion, Epoch: e.String(), Gateway: gateway, First: p.sequence + 1, Head: hex.EncodeToString(p.head[:]), Tree: p.tree}
	if p.stated {
		s.Until = p.until.String()
	}
	for _, id := range sortedKeys(p.open) {
		o := openState{Exchange: id, Class: p.open[id].class}
		if x := p.open[id].expiry; !x.IsZero() {
			o.Expiry = x.Unix()
		}
		s.Open = append(s.Open, o)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	return append(fmt.Appendf(nil, "%08x\n", crc32.Checksum(b, castagnoli)), b...), nil
}

// decodeState reads a state file of the epoch and first sequence.
func decodeState(b []byte, e record.Epoch, first uint64) (gateway string, p position, err error) {
	sum, body, ok := strings.Cut(string(b), "\n")
	if !ok || sum != fmt.Sprintf("%08x", crc32.Checksum([]byte(body), castagnoli)) {
		return "", position{}, errors.New("its checksum is wrong")
	}
	var s state
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		return "", position{}, err
	}
	if s.Version != stateVersion {
		return "", position{}, fmt.Errorf("version %d is not known, this program reads version %d", s.Version, stateVersion)
	}
	if s.Epoch != e.String() || s.First != first || first == 0 {
		return "", position{}, fmt.Errorf("it is for sequence %d of epoch %s", s.First, s.Epoch)
	}
	head, err := hex.DecodeString(s.Head)
	if err != nil || len(head) != len(p.head) {
		return "", position{}, fmt.Errorf("head %q is no digest", s.Head)
	}
	if s.Tree.Size() != first-1 {
		return "", position{}, fmt.Errorf("its tree has %d leaves, want %d", s.Tree.Size(), first-1)
	}
	if s.Until != "" {
		if p.until, err = record.ParseLatest(s.Until); err != nil {
			return "", position{}, err
		}
		p.stated = true
	}
	p.tree = s.Tree
	p.head, p.sequence, p.open = record.ChainHead(head), first-1, make(map[uint64]exchange, len(s.Open))
	for _, o := range s.Open {
		x := exchange{class: o.Class}
		if o.Expiry != 0 {
			x.expiry = time.Unix(o.Expiry, 0).UTC()
		}
		p.open[o.Exchange] = x
	}
	return s.Gateway, p, nil
}

func sortedKeys(m map[uint64]exchange) []uint64 {
	ids := make([]uint64, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
