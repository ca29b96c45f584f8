package pubsub

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"verbatim.dev/recorder/record"
)

const (
	protocolVersion = "1"

	typeFrames  = "frames"
	typeAsk     = "ask"
	typeHeld    = "held"
	typeMissing = "missing"
	typeRefused = "refused"

	// maxGateway is as in the local transport.
	maxGateway = 253
	maxText    = 2048
	// maxShards bounds what a configuration can ask for.
	maxShards = 1024
	// maxBody bounds a body in pieces: one frame, and the keys in front of it.
	maxBody = record.MaxFrame + 1<<20
)

// position is a place in an epoch's journal, see the package comment.
type position struct {
	seq uint64
	sub uint32
}

// whole is the sub of a position that stands for everything about its record.
const whole = math.MaxUint32

func (p position) less(q position) bool {
	return p.seq < q.seq || p.seq == q.seq && p.sub < q.sub
}

func (p position) String() string {
	s := strconv.FormatUint(p.seq, 10)
	if p.sub != whole {
		s += "." + strconv.FormatUint(uint64(p.sub), 10)
	}
	return s
}

func parsePosition(s string) (position, error) {
	seq, sub, dotted := strings.Cut(s, ".")
	p := position{sub: whole}
	var err error
	if p.seq, err = strconv.ParseUint(seq, 10, 64); err == nil && dotted {
		var n uint64
		n, err = strconv.ParseUint(sub, 10, 32)
		p.sub = uint32(n)
	}
	if err != nil || p.String() != s {
		return position{}, fmt.Errorf("%q is no position", clip(s))
	}
	return p, nil
}

func clip(s string) string { return s[:min(len(s), 64)] }

// errBody is wrapped by errors about a body that is no frames of a journal.
var errBody = errors.New("not the frames of a journal")

// walk decodes a body that follows on a position. It calls visit, where not nil,
// for each frame that has a position, with the wrapped keys in front of it, and
// returns the last position.
func walk(body []byte, after position, visit func(keys [][]byte, f *record.Frame, at position) error) (position, error) {
	at := after
	var keys [][]byte
	for rest := body; len(rest) > 0; {
		f, n, err := record.Decode(rest)
		if err != nil {
			return at, fmt.Errorf("%w: behind position %s: %w", errBody, at, err)
		}
		rest = rest[n:]
		switch {
		case f.Kind == record.KindKey:
			keys = append(keys, f.Raw())
			continue
		case f.Kind.Leaf():
			if f.Sequence != at.seq+1 {
				return at, fmt.Errorf("%w: record %d stands behind position %s", errBody, f.Sequence, at)
			}
			at = position{seq: f.Sequence}
		case len(keys) > 0 || at.sub >= whole-1 || f.Sequence != at.seq:
			return at, fmt.Errorf("%w: a %s for record %d stands behind position %s, %d keys between", errBody, f.Kind, f.Sequence, at, len(keys))
		default:
			at.sub++
		}
		if visit != nil {
			if err := visit(keys, &f, at); err != nil {
				return at, err
			}
		}
		keys = nil
	}
	if len(keys) > 0 {
		return at, fmt.Errorf("%w: %d keys without a record at its end", errBody, len(keys))
	}
	return at, nil
}

// shardOf is the epoch's shard of n.
func shardOf(e record.Epoch, n int) int {
	h := fnv.New32a()
	h.Write(e[:])
	return int(h.Sum32() % uint32(n))
}

// frames is what a message on the topic says.
type frames struct {
	ask         bool
	gateway     string
	sender      string
	epoch       record.Epoch
	shard       int
	after, upto position
	first, last uint64
	offset      int
	size        int
	index       uint64
}

func (m *frames) attributes() map[string]string {
	a := map[string]string{
		"protocol": protocolVersion, "type": typeFrames, "gateway": m.gateway, "sender": m.sender,
		"epoch": m.epoch.String(), "shard": strconv.Itoa(m.shard), "upto": m.upto.String(),
	}
	if m.ask {
		a["type"] = typeAsk
		return a
	}
	a["after"] = m.after.String()
	a["first"], a["last"] = strconv.FormatUint(m.first, 10), strconv.FormatUint(m.last, 10)
	a["offset"], a["size"] = strconv.Itoa(m.offset), strconv.Itoa(m.size)
	a["index"] = strconv.FormatUint(m.index, 10)
	return a
}

// attrs reads attributes and keeps the first error.
type attrs struct {
	m   map[string]string
	err error
}

func (a *attrs) fail(name string, format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf("attribute %s: "+format, append([]any{name}, args...)...)
	}
}

func (a *attrs) name(key string) string {
	s := a.m[key]
	if s == "" || len(s) > maxGateway || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		a.fail(key, "%q is not 1 to %d printable bytes", clip(s), maxGateway)
	}
	return s
}

func (a *attrs) epoch() record.Epoch {
	e, err := record.ParseEpoch(a.m["epoch"])
	if err != nil {
		a.fail("epoch", "%q is none", clip(a.m["epoch"]))
	}
	return e
}

func (a *attrs) position(key string) position {
	p, err := parsePosition(a.m[key])
	if err != nil {
		a.fail(key, "%w", err)
	}
	return p
}

func (a *attrs) number(key string, limit uint64) uint64 {
	n, err := strconv.ParseUint(a.m[key], 10, 64)
	if err != nil || n > limit {
		a.fail(key, "%q is no number up to %d", clip(a.m[key]), limit)
		return 0
	}
	return n
}

func (a *attrs) protocol() {
	if v := a.m["protocol"]; v != protocolVersion {
		a.fail("protocol", "%q is not %q, which this program speaks", clip(v), protocolVersion)
	}
}

// parseFrames reads a message of the topic, and walks its body where the whole
// of it is there.
func parseFrames(attributes map[string]string, data []byte) (*frames, error) {
	a := &attrs{m: attributes}
	a.protocol()
	m := &frames{gateway: a.name("gateway"), sender: a.name("sender"), epoch: a.epoch(), upto: a.position("upto"), shard: int(a.number("shard", maxShards))}
	switch t := attributes["type"]; t {
	case typeAsk:
		m.ask = true
		return m, a.err
	case typeFrames:
	default:
		a.fail("type", "%q is not known", clip(t))
	}
	m.after = a.position("after")
	m.first, m.last, m.index = a.number("first", math.MaxUint64), a.number("last", math.MaxUint64), a.number("index", math.MaxUint64)
	m.offset, m.size = int(a.number("offset", maxBody)), int(a.number("size", maxBody))
	switch {
	case a.err != nil:
		return nil, a.err
	case len(data) == 0 || m.offset+len(data) > m.size:
		return nil, fmt.Errorf("%d bytes at %d of a body of %d", len(data), m.offset, m.size)
	case !m.after.less(m.upto) || m.upto.sub == whole:
		return nil, fmt.Errorf("a body after %s up to %s", m.after, m.upto)
	case len(data) < m.size:
		return m, nil
	}
	end, err := walk(data, m.after, nil)
	if err == nil && end != m.upto {
		err = fmt.Errorf("the body ends at %s, not at %s", end, m.upto)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// answer is what a message on the acknowledgement topic says.
type answer struct {
	kind        string
	gateway     string
	epoch       record.Epoch
	sequence    uint64
	after, upto position
	text        string
}

func (m *answer) encode() (map[string]string, []byte) {
	a := map[string]string{"protocol": protocolVersion, "type": m.kind, "gateway": m.gateway, "epoch": m.epoch.String()}
	switch m.kind {
	case typeHeld:
		a["sequence"] = strconv.FormatUint(m.sequence, 10)
	case typeMissing:
		a["after"], a["upto"] = m.after.String(), m.upto.String()
	case typeRefused:
		return a, []byte(cleanText(m.text))
	}
	return a, nil
}

func parseAnswer(attributes map[string]string, data []byte) (*answer, error) {
	a := &attrs{m: attributes}
	a.protocol()
	m := &answer{kind: attributes["type"], gateway: a.name("gateway"), epoch: a.epoch()}
	switch m.kind {
	case typeHeld:
		m.sequence = a.number("sequence", math.MaxUint64)
	case typeMissing:
		m.after, m.upto = a.position("after"), a.position("upto")
	case typeRefused:
		m.text = cleanText(string(data[:min(len(data), maxText)]))
	default:
		a.fail("type", "%q is not known", clip(m.kind))
	}
	if a.err != nil {
		return nil, a.err
	}
	return m, nil
}

// cleanText bounds a text and replaces what is not printable.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}
