package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"verbatim.dev/recorder/record"
)

const (
	protocolVersion = 1
	helloMagic      = "verbatim ship"

	maxGateway = 253
	maxText    = 2048
	headSize   = 5

	bufferSize = 64 << 10
	// growStep bounds what a message costs before its bytes have come.
	growStep = 256 << 10
	// keepBuffer is the largest buffer that is kept for the next message.
	keepBuffer = 1 << 20
)

type messageType uint8

const (
	typeHello   messageType = 1
	typeWelcome messageType = 2
	typeEpoch   messageType = 3
	typeHeld    messageType = 4
	typeRefused messageType = 5
	typeFrame   messageType = 6
	typePing    messageType = 7
	typeError   messageType = 8
)

var epochSize = len(record.Epoch{})

// bounds are the smallest and largest body of each type, in bytes.
var bounds = map[messageType][2]int{
	typeHello:   {len(helloMagic) + 2 + 1, len(helloMagic) + 2 + maxGateway},
	typeWelcome: {2, 2},
	typeEpoch:   {epochSize + 1, epochSize + maxGateway},
	typeHeld:    {epochSize + 8, epochSize + 8},
	typeRefused: {epochSize, epochSize + maxText},
	typeFrame:   {1, record.MaxFrame},
	typePing:    {0, 0},
	typeError:   {0, maxText},
}

// errProtocol is wrapped by errors about what the other side sent.
var errProtocol = errors.New("protocol error")

func protocolErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errProtocol}, args...)...)
}

// messageReader reads messages with memory bounded by the largest of them.
type messageReader struct {
	r   *bufio.Reader
	buf []byte
}

func newMessageReader(r io.Reader) *messageReader {
	return &messageReader{r: bufio.NewReaderSize(r, bufferSize)}
}

// next returns the next message. The body is valid until the following call.
// At the end of the stream between two messages it returns io.EOF.
func (m *messageReader) next() (messageType, []byte, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(m.r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = protocolErrorf("the stream ends within a message's head")
		}
		return 0, nil, err
	}
	kind := messageType(head[4])
	b, ok := bounds[kind]
	if !ok {
		return 0, nil, protocolErrorf("message type %d is not known", kind)
	}
	// As uint64: a length of 0 must not wrap around to a huge one that fits.
	length := uint64(binary.BigEndian.Uint32(head[:4]))
	if length < uint64(b[0])+1 || length > uint64(b[1])+1 {
		return 0, nil, protocolErrorf("message of type %d has length %d, outside %d to %d", kind, length, b[0]+1, b[1]+1)
	}
	n := int(length) - 1
	if cap(m.buf) > keepBuffer && n <= keepBuffer {
		m.buf = nil
	}
	m.buf = m.buf[:0]
	for len(m.buf) < n {
		have := len(m.buf)
		step := min(n-have, growStep)
		if cap(m.buf)-have < step {
			grown := make([]byte, have, min(max(have+step, 2*cap(m.buf)), max(n, bufferSize)))
			copy(grown, m.buf)
			m.buf = grown
		}
		m.buf = m.buf[:have+step]
		if _, err := io.ReadFull(m.r, m.buf[have:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = protocolErrorf("the stream ends within a message of %d bytes", n)
			}
			return 0, nil, err
		}
	}
	return kind, m.buf, nil
}

func appendHead(dst []byte, kind messageType, n int) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(n+1)), byte(kind))
}

func appendHello(dst []byte, gateway string) []byte {
	dst = appendHead(dst, typeHello, len(helloMagic)+2+len(gateway))
	dst = append(dst, helloMagic...)
	dst = binary.BigEndian.AppendUint16(dst, protocolVersion)
	return append(dst, gateway...)
}

func parseHello(b []byte) (version uint16, gateway string, err error) {
	rest, ok := strings.CutPrefix(string(b), helloMagic)
	if !ok || len(rest) < 2 {
		return 0, "", protocolErrorf("the peer does not speak this protocol")
	}
	version = binary.BigEndian.Uint16([]byte(rest))
	gateway, err = parseGateway(rest[2:])
	return version, gateway, err
}

// parseGateway keeps a name out of logs that would garble them; what a name
// must be to enter the vault is the receiver's to say.
func parseGateway(s string) (string, error) {
	if s == "" || len(s) > maxGateway || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", protocolErrorf("the gateway's name %q is not 1 to %d printable bytes", s[:min(len(s), maxGateway)], maxGateway)
	}
	return s, nil
}

func appendWelcome(dst []byte) []byte {
	return binary.BigEndian.AppendUint16(appendHead(dst, typeWelcome, 2), protocolVersion)
}

func appendEpoch(dst []byte, e record.Epoch, gateway string) []byte {
	dst = appendHead(dst, typeEpoch, len(e)+len(gateway))
	return append(append(dst, e[:]...), gateway...)
}

func parseEpoch(b []byte) (record.Epoch, string, error) {
	if len(b) < epochSize {
		return record.Epoch{}, "", protocolErrorf("an epoch message of %d bytes", len(b))
	}
	gateway, err := parseGateway(string(b[epochSize:]))
	return record.Epoch(b[:epochSize]), gateway, err
}

func appendHeld(dst []byte, e record.Epoch, sequence uint64) []byte {
	dst = append(appendHead(dst, typeHeld, len(e)+8), e[:]...)
	return binary.BigEndian.AppendUint64(dst, sequence)
}

func parseHeld(b []byte) (record.Epoch, uint64, error) {
	if len(b) != epochSize+8 {
		return record.Epoch{}, 0, protocolErrorf("a held message of %d bytes", len(b))
	}
	return record.Epoch(b[:epochSize]), binary.BigEndian.Uint64(b[epochSize:]), nil
}

func appendRefused(dst []byte, e record.Epoch, text string) []byte {
	text = cleanText(text)
	dst = append(appendHead(dst, typeRefused, len(e)+len(text)), e[:]...)
	return append(dst, text...)
}

func parseRefused(b []byte) (record.Epoch, string, error) {
	if len(b) < epochSize {
		return record.Epoch{}, "", protocolErrorf("a refused message of %d bytes", len(b))
	}
	return record.Epoch(b[:epochSize]), cleanText(string(b[epochSize:])), nil
}

func appendError(dst []byte, text string) []byte {
	text = cleanText(text)
	return append(appendHead(dst, typeError, len(text)), text...)
}

func appendPing(dst []byte) []byte { return appendHead(dst, typePing, 0) }

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
