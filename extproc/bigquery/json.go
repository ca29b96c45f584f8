package bigquery

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of request bodies.
const (
	MaxDepth   = 64     // nested objects and arrays
	MaxMembers = 10_000 // of one object, and elements of an array that is read
)

// A strict reader of JSON that is told the shape of what it reads. It checks
// every byte, but builds nodes only for what the shape names, so that memory
// is bounded by the shape and not by the body. Everything that two JSON readers
// may read differently is an error: duplicate keys at any depth, keys that
// differ from a known one in case or underscores only (encoding/json folds
// case, protobuf's JSON takes both spellings), lone surrogates, bad UTF-8,
// bytes after the end.

type want uint8

const (
	wantAny    want = iota // checked, not read
	wantString             // a JSON string
	wantBool
	wantInteger // a number or a string of digits, as protobuf's JSON has it
	wantObject
	wantArray
	wantMap // an object with keys of the caller's, all values of one shape
)

type shape struct {
	want   want
	fields map[string]*shape // of an object
	folded map[string]string // made by object()
	elem   *shape            // of an array or map; nil: checked, not read
	closed bool              // a key that is not in fields is an error
}

var (
	anyShape     = &shape{want: wantAny}
	stringShape  = &shape{want: wantString}
	boolShape    = &shape{want: wantBool}
	integerShape = &shape{want: wantInteger}
)

func array(elem *shape) *shape { return &shape{want: wantArray, elem: elem} }
func mapOf(elem *shape) *shape { return &shape{want: wantMap, elem: elem} }

// object returns the shape of an object with the given fields, and with the
// names in others, which are known and may hold anything.
func object(fields map[string]*shape, others string) *shape {
	s := &shape{want: wantObject, fields: fields, folded: make(map[string]string)}
	for _, name := range strings.Fields(others) {
		if fields[name] == nil {
			fields[name] = anyShape
		}
	}
	for name := range fields {
		s.folded[foldKey(name)] = name
	}
	return s
}

// foldKey is the form in which two spellings of one field are equal.
func foldKey(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '_' || r == '-':
			return -1
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r == 'ſ': // the two letters beyond ASCII that fold into it
			return 's'
		case r == '\u212a':
			return 'k'
		}
		return r
	}, s)
}

type nodeKind uint8

const (
	nodeNull nodeKind = iota
	nodeString
	nodeBool
	nodeNumber
	nodeObject
	nodeArray
)

type node struct {
	kind       nodeKind
	start, end int // span in the body
	text       string
	bool       bool
	members    []member // of objects with a shape, known and unknown keys
	elems      []*node
	count      int // elements or members
}

type member struct {
	key   string
	start int   // of the key's quote
	value *node // nil where it was only checked
}

// get returns the member's node, nil where it is absent or null.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for i := range n.members {
		if n.members[i].key == key {
			if v := n.members[i].value; v != nil && v.kind != nodeNull {
				return v
			}
			return nil
		}
	}
	return nil
}

// raw returns the member even where it is null.
func (n *node) raw(key string) *node {
	if n == nil {
		return nil
	}
	for i := range n.members {
		if n.members[i].key == key {
			return n.members[i].value
		}
	}
	return nil
}

func (n *node) str(key string) string {
	if v := n.get(key); v != nil {
		return v.text
	}
	return ""
}

func (n *node) boolean(key string) bool {
	v := n.get(key)
	return v != nil && v.bool
}

func (n *node) boolPointer(key string) *bool {
	if v := n.get(key); v != nil {
		b := v.bool
		return &b
	}
	return nil
}

func (n *node) integer(key string) *int64 {
	v := n.get(key)
	if v == nil {
		return nil
	}
	i, err := strconv.ParseInt(v.text, 10, 64)
	if err != nil { // the reader has checked
		return nil
	}
	return &i
}

func (n *node) strings(key string) []string {
	v := n.get(key)
	if v == nil {
		return nil
	}
	out := make([]string, 0, len(v.elems))
	for _, e := range v.elems {
		if e.kind == nodeString {
			out = append(out, e.text)
		}
	}
	return out
}

type reader struct {
	b       []byte
	i       int
	depth   int
	path    []string
	unknown []string // keys that no shape knows
}

// readJSON checks the whole body and returns the nodes that the shape names.
func readJSON(b []byte, s *shape) (*node, []string, *Refusal) {
	if i := invalidUTF8(b); i >= 0 {
		return nil, nil, invalid("json_utf8", fmt.Sprintf("The body is not UTF-8 at byte %d.", i))
	}
	r := &reader{b: b}
	n, ref := r.value(s)
	if ref != nil {
		return nil, nil, ref
	}
	r.space()
	if r.i != len(b) {
		return nil, nil, r.fail("json_syntax", "something follows the JSON value")
	}
	return n, r.unknown, nil
}

func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

func (r *reader) where() string {
	p := strings.Join(r.path, ".")
	if len(p) > 120 {
		p = strings.ToValidUTF8(p[:120], "") + "..."
	}
	return p
}

func (r *reader) fail(code, what string) *Refusal {
	if p := r.where(); p != "" {
		return invalid(code, fmt.Sprintf("The JSON body is refused at byte %d, %s: %s.", r.i, strconv.Quote(p), what))
	}
	return invalid(code, fmt.Sprintf("The JSON body is refused at byte %d: %s.", r.i, what))
}

func (r *reader) space() {
	for r.i < len(r.b) {
		switch r.b[r.i] {
		case ' ', '\t', '\r', '\n':
			r.i++
		default:
			return
		}
	}
}

// skipped stands for values that are checked and not read.
var skipped = &node{}

func (r *reader) value(s *shape) (*node, *Refusal) {
	r.space()
	if r.i >= len(r.b) {
		return nil, r.fail("json_syntax", "it ends where a value is expected")
	}
	start := r.i
	w := wantAny
	if s != nil {
		w = s.want
	}
	switch c := r.b[r.i]; c {
	case '{':
		if w != wantAny && w != wantObject && w != wantMap {
			return nil, r.wrongType(w, "an object")
		}
		return r.object(s)
	case '[':
		if w != wantAny && w != wantArray {
			return nil, r.wrongType(w, "an array")
		}
		return r.array(s)
	case '"':
		keep := w == wantString || w == wantInteger
		if w != wantAny && !keep {
			return nil, r.wrongType(w, "a string")
		}
		text, ref := r.str(keep)
		if ref != nil {
			return nil, ref
		}
		if w == wantInteger {
			if _, err := strconv.ParseInt(text, 10, 64); err != nil || text[0] == '+' || text != canonicalInt(text) {
				return nil, r.wrongType(w, "another text")
			}
		}
		if s == nil {
			return skipped, nil
		}
		return &node{kind: nodeString, start: start, end: r.i, text: text}, nil
	case 't', 'f', 'n':
		word := map[byte]string{'t': "true", 'f': "false", 'n': "null"}[c]
		if !bytes.HasPrefix(r.b[r.i:], []byte(word)) {
			return nil, r.fail("json_syntax", "this is no JSON value")
		}
		r.i += len(word)
		if s == nil {
			return skipped, nil
		}
		if c == 'n' {
			return &node{kind: nodeNull, start: start, end: r.i}, nil
		}
		if w != wantAny && w != wantBool {
			return nil, r.wrongType(w, "a boolean")
		}
		return &node{kind: nodeBool, start: start, end: r.i, bool: c == 't'}, nil
	default:
		if ref := r.number(); ref != nil {
			return nil, ref
		}
		if s == nil {
			return skipped, nil
		}
		text := r.b[start:r.i]
		switch w {
		case wantAny:
			return &node{kind: nodeNumber, start: start, end: r.i}, nil
		case wantInteger:
			t := string(text)
			if _, err := strconv.ParseInt(t, 10, 64); err != nil || t != canonicalInt(t) {
				return nil, r.wrongType(w, "another number")
			}
			return &node{kind: nodeNumber, start: start, end: r.i, text: t}, nil
		}
		return nil, r.wrongType(w, "a number")
	}
}

func canonicalInt(s string) string {
	i, _ := strconv.ParseInt(s, 10, 64)
	return strconv.FormatInt(i, 10)
}

func (r *reader) wrongType(w want, got string) *Refusal {
	name := map[want]string{wantString: "a string", wantBool: "true or false", wantInteger: "a whole number", wantObject: "an object", wantArray: "an array", wantMap: "an object"}[w]
	return r.fail("json_type", fmt.Sprintf("it must be %s, not %s", name, got))
}

func (r *reader) enter() *Refusal {
	if r.depth++; r.depth > MaxDepth {
		return r.fail("json_depth", fmt.Sprintf("it is nested deeper than %d", MaxDepth))
	}
	r.i++
	r.space()
	return nil
}

func (r *reader) object(s *shape) (*node, *Refusal) {
	n := skipped
	if s != nil {
		n = &node{kind: nodeObject, start: r.i}
	}
	end := func(count int) *node {
		r.i++
		r.depth--
		if s != nil {
			n.end, n.count = r.i, count
		}
		return n
	}
	if ref := r.enter(); ref != nil {
		return nil, ref
	}
	known := s != nil && (s.want == wantObject || s.want == wantMap)
	// A few keys are compared one by one, many through a map.
	var keys []string
	var seen map[string]struct{}
	if r.i < len(r.b) && r.b[r.i] == '}' {
		return end(0), nil
	}
	for count := 1; ; count++ {
		r.space()
		if r.i >= len(r.b) || r.b[r.i] != '"' {
			return nil, r.fail("json_syntax", "a key in quotes is expected")
		}
		start := r.i
		key, ref := r.str(true)
		if ref != nil {
			return nil, ref
		}
		r.path = append(r.path, key)
		if seen == nil {
			for _, k := range keys {
				if k == key {
					return nil, r.fail("json_duplicate", "the key is given twice")
				}
			}
			if keys = append(keys, key); len(keys) > 16 {
				seen = make(map[string]struct{}, 64)
				for _, k := range keys {
					seen[k] = struct{}{}
				}
			}
		} else {
			if _, twice := seen[key]; twice {
				return nil, r.fail("json_duplicate", "the key is given twice")
			}
			seen[key] = struct{}{}
		}
		if count > MaxMembers {
			return nil, r.fail("json_members", fmt.Sprintf("an object has more than %d members", MaxMembers))
		}
		var sub *shape
		named := true
		if s != nil && s.want == wantObject {
			if sub = s.fields[key]; sub == nil {
				if real, ok := s.folded[foldKey(key)]; ok {
					return nil, r.fail("json_twin", "the key must be spelled "+strconv.Quote(real))
				}
				if s.closed {
					return nil, r.fail("json_unknown", "the key is not known")
				}
				if len(r.unknown) < 32 {
					r.unknown = append(r.unknown, r.where())
				}
				named = false
			}
		} else if known {
			sub = s.elem
		}
		r.space()
		if r.i >= len(r.b) || r.b[r.i] != ':' {
			return nil, r.fail("json_syntax", "a colon is expected")
		}
		r.i++
		v, ref := r.value(sub)
		if ref != nil {
			return nil, ref
		}
		r.path = r.path[:len(r.path)-1]
		if known && named {
			n.members = append(n.members, member{key: key, start: start, value: v})
		}
		r.space()
		if r.i >= len(r.b) {
			return nil, r.fail("json_syntax", "it ends within an object")
		}
		switch r.b[r.i] {
		case ',':
			r.i++
		case '}':
			return end(count), nil
		default:
			return nil, r.fail("json_syntax", "a comma or a closing brace is expected")
		}
	}
}

func (r *reader) array(s *shape) (*node, *Refusal) {
	n := skipped
	if s != nil {
		n = &node{kind: nodeArray, start: r.i}
	}
	end := func(count int) *node {
		r.i++
		r.depth--
		if s != nil {
			n.end, n.count = r.i, count
		}
		return n
	}
	if ref := r.enter(); ref != nil {
		return nil, ref
	}
	var elem *shape
	if s != nil && s.want == wantArray {
		elem = s.elem
	}
	if r.i < len(r.b) && r.b[r.i] == ']' {
		return end(0), nil
	}
	for count := 1; ; count++ {
		v, ref := r.value(elem)
		if ref != nil {
			return nil, ref
		}
		if elem != nil {
			if v.kind == nodeNull {
				return nil, r.fail("json_type", "null stands among the elements")
			}
			if n.elems = append(n.elems, v); len(n.elems) > MaxMembers {
				return nil, r.fail("json_members", fmt.Sprintf("an array has more than %d elements", MaxMembers))
			}
		}
		r.space()
		if r.i >= len(r.b) {
			return nil, r.fail("json_syntax", "it ends within an array")
		}
		switch r.b[r.i] {
		case ',':
			r.i++
		case ']':
			return end(count), nil
		default:
			return nil, r.fail("json_syntax", "a comma or a closing bracket is expected")
		}
	}
}

func (r *reader) number() *Refusal {
	i, b := r.i, r.b
	digits := func() bool {
		from := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(b) && b[i] == '-' {
		i++
	}
	zero := i < len(b) && b[i] == '0'
	from := i
	if !digits() || zero && i-from > 1 {
		return r.fail("json_syntax", "this is no JSON value")
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return r.fail("json_syntax", "this is no JSON number")
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return r.fail("json_syntax", "this is no JSON number")
		}
	}
	r.i = i
	return nil
}

// str reads a string that begins at r.i; its text is returned where keep says.
func (r *reader) str(keep bool) (string, *Refusal) {
	r.i++
	start := r.i
	var buf []byte // in use from the first escape on
	escaped := false
	from := start
	for r.i < len(r.b) {
		c := r.b[r.i]
		if c != '"' && c != '\\' && c >= ' ' {
			r.i++
			continue
		}
		if c < ' ' {
			return "", r.fail("json_syntax", "a control character stands in a string; escape it")
		}
		if c == '"' {
			r.i++
			if !keep {
				return "", nil
			}
			if !escaped {
				return string(r.b[start : r.i-1]), nil
			}
			return string(append(buf, r.b[from:r.i-1]...)), nil
		}
		if keep {
			buf = append(buf, r.b[from:r.i]...)
		}
		escaped = true
		char, n, ok := unescape(r.b[r.i:])
		if !ok {
			return "", r.fail("json_syntax", "a string holds an escape that is none, or half of a surrogate pair")
		}
		if keep {
			buf = utf8.AppendRune(buf, char)
		}
		r.i += n
		from = r.i
	}
	return "", r.fail("json_syntax", "it ends within a string")
}

// unescape reads one escape at the beginning of b.
func unescape(b []byte) (char rune, n int, ok bool) {
	if len(b) < 2 {
		return 0, 0, false
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2, true
	case 'b':
		return '\b', 2, true
	case 'f':
		return '\f', 2, true
	case 'n':
		return '\n', 2, true
	case 'r':
		return '\r', 2, true
	case 't':
		return '\t', 2, true
	case 'u':
		u, ok := hex4(b[2:])
		if !ok {
			return 0, 0, false
		}
		if !utf16.IsSurrogate(u) {
			return u, 6, true
		}
		if len(b) < 12 || b[6] != '\\' || b[7] != 'u' {
			return 0, 0, false
		}
		low, ok := hex4(b[8:])
		if !ok {
			return 0, 0, false
		}
		c := utf16.DecodeRune(u, low)
		return c, 12, c != utf8.RuneError
	}
	return 0, 0, false
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var v rune
	for _, c := range b[:4] {
		if !isHex(c) {
			return 0, false
		}
		v = v<<4 | rune(unhex(c))
	}
	return v, true
}
