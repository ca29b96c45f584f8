package config

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	maxFile   = 128 << 10
	maxDepth  = 32  // of brackets, and of list items begun in one line
	maxIndent = 128 // columns; a level takes one at least
	maxErrors = 20
)

// Error is one thing wrong with a file.
type Error struct {
	File string
	Line int
	Text string // what is wrong, and what to do
}

func (e Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// Errors are all that was found wrong, in the order of lines; at most 20.
type Errors struct {
	List []Error
	More int // found beyond those
}

func (e *Errors) Error() string {
	var b strings.Builder
	for i, one := range e.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\nand %d more", e.More)
	}
	return b.String()
}

// Unwrap gives the single errors.
func (e *Errors) Unwrap() []error {
	all := make([]error, len(e.List))
	for i := range e.List {
		all[i] = e.List[i]
	}
	return all
}

// decoder walks the tree of a file beside the type of what is to be filled.
type decoder struct {
	file  string
	dir   string
	errs  []Error
	lines map[string]int // of each key and list item, by path ("connections[0].name")
	paths []pathUse
	// broken are paths whose value could not be read at all, and keys that a
	// misspelt one stands for: nothing more is said of what they lack.
	broken map[string]bool
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, dir: filepath.Dir(file), lines: map[string]int{}, broken: map[string]bool{}}
}

// pathUse is a path that the file names.
type pathUse struct {
	at, kind, path string
}

func (d *decoder) errorf(line int, format string, args ...any) {
	d.errs = append(d.errs, Error{d.file, max(line, 1), fmt.Sprintf(format, args...)})
}

// at reports about the key at path, or the nearest one above that is in the file.
func (d *decoder) at(path, format string, args ...any) {
	d.errorf(d.line(path), format, args...)
}

func (d *decoder) line(path string) int {
	for {
		if l, ok := d.lines[path]; ok {
			return l
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 1
		}
		path = path[:i]
	}
}

func (d *decoder) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(d.errs, func(a, b Error) int { return a.Line - b.Line })
	d.errs = slices.Compact(d.errs)
	e := &Errors{List: d.errs}
	if len(e.List) > maxErrors {
		e.List, e.More = e.List[:maxErrors], len(e.List)-maxErrors
	}
	return e
}

// tree parses data into the mapping at its top; nil after an error.
func (d *decoder) tree(data []byte) (top ast.Node) {
	if len(data) > maxFile {
		d.errorf(1, "the file is longer than %s: it is no configuration of this program", Size(maxFile))
		return nil
	}
	// The parser is another's, and has panicked on odd input before.
	defer func() {
		if r := recover(); r != nil {
			d.errorf(1, "the file cannot be read as YAML: check its indentation and quotes")
			top = nil
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if !d.plain(tokens) {
		return nil
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, message := 1, "check the indentation and quotes"
		var y yaml.Error
		if errors.As(err, &y) {
			message = y.GetMessage()
			if t := y.GetToken(); t != nil && t.Position != nil {
				line = t.Position.Line
			}
		}
		d.errorf(line, "not YAML: %s", clip(strings.ReplaceAll(message, "\t", "a tab"), 200))
		return nil
	}
	var bodies []ast.Node
	for _, doc := range f.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	switch len(bodies) {
	case 0:
		d.errorf(1, "the file is empty: start from the annotated example (example.yaml)")
		return nil
	case 1:
		return bodies[0]
	}
	d.errorf(lineOf(bodies[1]), "a second document begins: keep one, and remove the --- between")
	return nil
}

// plain refuses what a configuration has no use for and what could make the
// parser go deep: anchors, tags, complex keys and steep nesting.
func (d *decoder) plain(tokens token.Tokens) bool {
	depth, items, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, items = t.Position.Line, 0
		}
		what := ""
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			what = "anchors and aliases are not used here: write the value out"
		case token.TagType:
			what = "tags are not used here: write the plain value"
		case token.DirectiveType:
			what = "directives are not used here: remove the line"
		case token.MappingKeyType:
			what = "keys are written \"key: value\", without a question mark"
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType:
			items++
		}
		if what == "" && (depth > maxDepth || items > maxDepth || t.Position.IndentNum > maxIndent) {
			what = "this is nested too deep: no key is"
		}
		if what != "" {
			d.errorf(line, "%s", what)
			return false
		}
	}
	return true
}

func lineOf(n ast.Node) int {
	// The token of a mapping is its colon or brace; that of its first key comes first.
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		return lineOf(m.Values[0].Key)
	}
	if m, ok := n.(*ast.MappingValueNode); ok {
		return lineOf(m.Key)
	}
	if n == nil {
		return 1
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

var (
	sizeType     = reflect.TypeFor[Size]()
	durationType = reflect.TypeFor[time.Duration]()
)

// value fills v from n. at is the path of the key, kind the field's path tag.
func (d *decoder) value(n ast.Node, v reflect.Value, at, kind string) {
	if n == nil || n.Type() == ast.NullType {
		d.broken[at] = true
		d.at(at, "%s has no value: give it one, or remove the key", last(at))
		return
	}
	wrong := func(want string) {
		d.errorf(lineOf(n), "%s is %s: it has to be %s", last(at), describe(n), want)
	}
	switch v.Type() {
	case sizeType:
		text, ok := scalar(n, ast.StringType, ast.IntegerType)
		if !ok {
			wrong("a size such as 256KiB, 10GiB or a number of bytes")
			return
		}
		s, err := ParseSize(text)
		if err != nil {
			d.errorf(lineOf(n), "%s: %v", last(at), err)
			return
		}
		v.SetInt(int64(s))
		return
	case durationType:
		text, ok := scalar(n, ast.StringType, ast.IntegerType)
		if !ok {
			wrong("a duration such as 30s or 400d")
			return
		}
		t, err := ParseDuration(text)
		if err != nil {
			d.errorf(lineOf(n), "%s: %v", last(at), err)
			return
		}
		v.SetInt(int64(t))
		return
	}
	switch v.Kind() {
	case reflect.String:
		text, ok := scalar(n, ast.StringType, ast.LiteralType)
		if !ok {
			want := "text"
			if _, isScalar := n.(ast.ScalarNode); isScalar {
				want = "text (put it in quotes)"
			}
			wrong(want)
			return
		}
		if text == "" {
			d.errorf(lineOf(n), "%s is empty: give it a value, or remove the key", last(at))
			return
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '�' }) {
			d.errorf(lineOf(n), "%s has a control character or broken UTF-8 in it: write one line of plain text", last(at))
			return
		}
		if kind != "" {
			text = d.path(text, at, kind)
		}
		v.SetString(text)
	case reflect.Int:
		text, ok := scalar(n, ast.IntegerType)
		i, err := parseDigits(text)
		if !ok || err != nil || i > 1<<31-1 {
			wrong("a whole number")
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		text, ok := scalar(n, ast.IntegerType, ast.FloatType)
		f, err := strconv.ParseFloat(text, 64)
		if !ok || err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			wrong("a number such as 0.5")
			return
		}
		v.SetFloat(f)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			wrong("true or false")
			return
		}
		v.SetBool(b.Value)
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), at, kind)
		v.Set(p)
	case reflect.Slice:
		s, ok := n.(*ast.SequenceNode)
		if !ok {
			wrong("a list: [a, b], or lines that begin with -")
			return
		}
		if len(s.Values) == 0 {
			d.errorf(lineOf(n), "%s is an empty list: give it entries, or remove the key", last(at))
			return
		}
		list := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
		for i, item := range s.Values {
			path := fmt.Sprintf("%s[%d]", at, i)
			d.lines[path] = d.line(at)
			if item != nil {
				d.lines[path] = lineOf(item)
			}
			preset(list.Index(i))
			d.value(item, list.Index(i), path, kind)
		}
		v.Set(list)
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		d.mapping(n, at, "keys and values", func(key string, value ast.Node) {
			e := reflect.New(v.Type().Elem()).Elem()
			d.value(value, e, at+"."+key, kind)
			m.SetMapIndex(reflect.ValueOf(key), e)
		})
		v.Set(m)
	case reflect.Struct:
		fields := map[string]int{}
		var names []string
		for i := range v.NumField() {
			if name := v.Type().Field(i).Tag.Get("yaml"); name != "-" {
				fields[name] = i
				names = append(names, name)
			}
		}
		d.mapping(n, at, "keys and values ("+strings.Join(names, ", ")+")", func(key string, value ast.Node) {
			path := key
			if at != "" {
				path = at + "." + key
			}
			i, ok := fields[key]
			if !ok {
				near := nearest(key, names)
				if near != "" {
					d.broken[strings.TrimPrefix(at+"."+near, ".")] = true
				}
				d.at(path, "unknown key %q%s: %s", short(key), in(at), suggest(near, names))
				return
			}
			d.value(value, v.Field(i), path, v.Type().Field(i).Tag.Get("path"))
		})
	default:
		panic("config: a field of type " + v.Type().String()) // a mistake in the struct, found by any test
	}
}

// preset gives list items their defaults.
func preset(v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *Issuer:
		*p = newIssuer()
	case *Connection:
		*p = newConnection()
	}
}

// mapping calls each for the entries of n, once per key.
func (d *decoder) mapping(n ast.Node, at, want string, each func(key string, value ast.Node)) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		d.broken[at] = true
		d.errorf(lineOf(n), "%s is %s: it has to be %s", last(at), describe(n), want)
		return
	}
	seen := map[string]int{}
	for _, v := range values {
		line := lineOf(v.Key)
		text, ok := scalar(v.Key, ast.StringType)
		if !ok || text == "" {
			d.errorf(line, "a key%s is %s: it has to be a name", in(at), describe(v.Key))
			continue
		}
		if first, dup := seen[text]; dup {
			d.errorf(line, "key %q%s is there twice (first in line %d): remove one", short(text), in(at), first)
			continue
		}
		seen[text] = line
		path := text
		if at != "" {
			path = at + "." + text
		}
		d.lines[path] = line
		each(text, v.Value)
	}
}

// path resolves a path that is relative to the file's folder and notes it.
func (d *decoder) path(text, at, kind string) string {
	if !filepath.IsAbs(text) {
		text = filepath.Join(d.dir, text)
	}
	d.paths = append(d.paths, pathUse{at, kind, text})
	return text
}

// scalar returns the text of n when it is of one of the types.
func scalar(n ast.Node, types ...ast.NodeType) (string, bool) {
	if n == nil || !slices.Contains(types, n.Type()) {
		return "", false
	}
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		return strings.TrimSuffix(s.Value.Value, "\n"), true
	case *ast.IntegerNode:
		return s.Token.Value, true
	case *ast.FloatNode:
		return s.Token.Value, true
	}
	return "", false
}

func describe(n ast.Node) string {
	if n == nil {
		return "nothing"
	}
	switch n.Type() {
	case ast.NullType:
		return "nothing"
	case ast.BoolType:
		return "true or false"
	case ast.IntegerType, ast.FloatType, ast.InfinityType, ast.NanType:
		return "a number"
	case ast.StringType, ast.LiteralType:
		return "text"
	case ast.SequenceType:
		return "a list"
	case ast.MappingType, ast.MappingValueType:
		return "a group of keys"
	}
	return "something else"
}

// last names the key at a path, without the way to it when that is short enough to see.
func last(at string) string {
	if at == "" {
		return "the file"
	}
	return short(at)
}

func in(at string) string {
	if at == "" {
		return ""
	}
	return " in " + short(at)
}

// short keeps foreign text in an error to a line's length.
func short(s string) string { return clip(s, 80) }

func clip(s string, n int) string {
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s), "?")
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}

// nearest returns the name that key was probably meant to be, or "".
func nearest(key string, names []string) string {
	best, distance := "", 1+max(1, len(key)/3)
	if len(key) > 64 {
		return ""
	}
	for _, n := range names {
		if e := edits(key, n); e < distance {
			best, distance = n, e
		}
	}
	return best
}

// suggest says what to do about an unknown key: take the nearest name, or one of all.
func suggest(near string, names []string) string {
	if near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "use one of " + strings.Join(names, ", ") + ", or remove it"
}

// edits counts the insertions, deletions, replacements and swaps of neighbours
// that turn a into b.
func edits(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
