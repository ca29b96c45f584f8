package policy

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The bounds of a text that is scanned.
const (
	maxSQL        = 1 << 20 // bytes
	maxWords      = 10_000  // different words
	maxStatements = 1000
	maxNesting    = 256 // brackets
)

// words is what a scan of a SQL text found. It is a guard, not a parser: it
// knows which words stand outside of literals and comments, and nothing of what
// they mean. What it is not sure to read as BigQuery does is a problem, and a
// policy denies a text with a problem.
type words struct {
	// count holds how often each unquoted word stands in the text, in upper
	// case. A word right after a pipe is "|> WORD"; a system variable is
	// "@@NAME". The last part of a quoted name before an opening bracket
	// counts as a word too: `EXTERNAL_QUERY`(...) is a call.
	count map[string]int
	// names holds the dot-separated parts of quoted identifiers, in upper case.
	names map[string]int
	// statements holds the first word of each statement, "?" where it begins
	// with something else. Brackets before the word are skipped.
	statements []string
	// legacy is true when a comment asks for the legacy dialect.
	legacy bool
	// problem says in a few words why the text cannot be trusted to be read
	// right; empty when it can. It holds nothing of the text.
	problem string
}

// scanWords scans the text by the lexical rules of GoogleSQL
// (https://cloud.google.com/bigquery/docs/reference/standard-sql/lexical).
// Where two readings of a text are possible it gives none.
func scanWords(text string) words {
	s := scanner{text: text, w: words{count: map[string]int{}, names: map[string]int{}, statements: []string{}}, begin: true}
	switch {
	case len(text) > maxSQL:
		s.w.problem = fmt.Sprintf("it is longer than %d bytes", maxSQL)
	case !utf8.ValidString(text):
		s.w.problem = "it is not valid UTF-8"
	default:
		s.scan()
		if s.w.problem == "" && s.depth != 0 {
			s.w.problem = "a bracket is not closed"
		}
	}
	return s.w
}

type scanner struct {
	text  string
	at    int
	w     words
	begin bool // at the beginning of a statement
	pipe  bool // right after |>
	depth int
	// call is the last part of the quoted name that stands right before, which
	// an opening bracket makes a function's name.
	call string
}

func (s *scanner) fail(format string, args ...any) {
	if s.w.problem == "" {
		s.w.problem = fmt.Sprintf(format, args...)
	}
}

func isLetter(c byte) bool { return c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

func (s *scanner) scan() {
	for s.at < len(s.text) && s.w.problem == "" {
		c := s.text[s.at]
		rest := s.text[s.at:]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			s.at++
		case c == '#' || strings.HasPrefix(rest, "--"):
			s.lineComment()
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				s.fail("a comment is not closed")
				return
			}
			s.at += 2 + end + 2
		case c == '\'' || c == '"':
			s.token("?")
			s.literal(c)
		case c == '`':
			s.token("?")
			s.quotedName()
		case isLetter(c):
			s.word()
		case isDigit(c):
			s.token("?")
			// Letters that follow (1e10, 0xff, 1SELECT) are read as a word:
			// one word too many does no harm, one too few would.
			for s.at < len(s.text) && isDigit(s.text[s.at]) {
				s.at++
			}
		case c == '@':
			s.token("?")
			s.variable()
		case c == ';':
			s.at++
			s.begin, s.pipe, s.call = true, false, ""
			if s.depth != 0 {
				s.fail("a statement ends inside of brackets")
			}
		case c == '(' || c == '[' || c == '{':
			if s.call != "" && c == '(' {
				s.add(s.call)
			}
			s.pipe, s.call = false, ""
			if c != '(' {
				s.token("?")
			}
			s.at++
			if s.depth++; s.depth > maxNesting {
				s.fail("its brackets nest deeper than %d", maxNesting)
			}
		case c == ')' || c == ']' || c == '}':
			s.token("?")
			s.at++
			if s.depth--; s.depth < 0 {
				s.fail("a bracket is closed that was not opened")
			}
		case strings.HasPrefix(rest, "|>"):
			s.token("?")
			s.at += 2
			s.pipe = true
		case strings.IndexByte(",.+-*/%=<>!|&^~:?", c) >= 0:
			s.token("?")
			s.at++
		case c < 0x20 || c == 0x7f:
			s.fail("a control character stands in it")
		case c >= utf8.RuneSelf:
			s.fail("a character that is not ASCII stands outside of quotes and comments")
		default: // $ and backslash
			s.fail("a character that GoogleSQL has no use for stands outside of quotes and comments")
		}
	}
}

// token notes that something other than a comment begins here.
func (s *scanner) token(first string) {
	s.pipe, s.call = false, ""
	if !s.begin {
		return
	}
	s.begin = false
	if len(s.w.statements) == maxStatements {
		s.fail("it has more than %d statements", maxStatements)
		return
	}
	s.w.statements = append(s.w.statements, first)
}

func (s *scanner) add(word string) {
	if _, ok := s.w.count[word]; !ok && len(s.w.count) == maxWords {
		s.fail("it has more than %d different words", maxWords)
		return
	}
	s.w.count[word]++
}

func (s *scanner) lineComment() {
	rest := s.text[s.at:]
	end := strings.IndexByte(rest, '\n')
	if end < 0 {
		end = len(rest)
	}
	comment := rest[:end]
	s.at += end
	// Only a line feed surely ends the comment. With anything else that could,
	// what follows is code to one reader and comment to another.
	if i := strings.IndexAny(comment, "\r\v\f\u0085\u2028\u2029"); i >= 0 && i != len(comment)-1 {
		s.fail("a line comment holds a line break other than a line feed")
	}
	// "#legacySQL" switches the dialect where it stands first; a text that has
	// it anywhere is not worth the difference.
	if strings.HasPrefix(strings.ToLower(strings.TrimLeft(comment, "#- \t")), "legacysql") {
		s.w.legacy = true
	}
}

// literal skips a string or bytes literal. Its prefix (r, b, rb, br) changes
// what a backslash means, but not where the literal ends: in each of them a
// backslash keeps the next character from ending it.
func (s *scanner) literal(quote byte) {
	rest := s.text[s.at:]
	triple := len(rest) >= 3 && rest[1] == quote && rest[2] == quote
	i := 1
	if triple {
		i = 3
	}
	for i < len(rest) {
		switch c := rest[i]; {
		case c == '\\':
			i++
			if i < len(rest) && !triple && (rest[i] == '\n' || rest[i] == '\r') {
				s.fail("a literal is not closed on its line")
				return
			}
			if i < len(rest) && rest[i] == '\r' {
				s.fail("a carriage return is escaped in a literal")
				return
			}
			i++
		case c == 0:
			s.fail("a control character stands in it")
			return
		case c == quote && (!triple || strings.HasPrefix(rest[i:], strings.Repeat(string(quote), 3))):
			if triple {
				i += 2
			}
			s.at += i + 1
			return
		case !triple && (c == '\n' || c == '\r'):
			s.fail("a literal is not closed on its line")
			return
		default:
			i++
		}
	}
	s.fail("a literal is not closed")
}

func (s *scanner) quotedName() {
	rest := s.text[s.at+1:]
	end := strings.IndexByte(rest, '`')
	if end < 0 {
		s.fail("a quoted name is not closed")
		return
	}
	name := rest[:end]
	switch {
	case strings.IndexByte(name, '\\') >= 0:
		s.fail("a quoted name holds an escape")
		return
	case strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		s.fail("a quoted name holds a control character")
		return
	}
	s.at += 1 + end + 1
	last := ""
	for part := range strings.SplitSeq(strings.ToUpper(name), ".") {
		last = strings.TrimSpace(part)
		if _, ok := s.w.names[last]; !ok && len(s.w.names) == maxWords {
			s.fail("it has more than %d different names", maxWords)
			return
		}
		s.w.names[last]++
	}
	s.call = last
}

func (s *scanner) ident() string {
	start := s.at
	for s.at < len(s.text) && (isLetter(s.text[s.at]) || isDigit(s.text[s.at])) {
		s.at++
	}
	return string(bytes.ToUpper([]byte(s.text[start:s.at])))
}

func (s *scanner) word() {
	pipe := s.pipe
	word := s.ident()
	if pipe {
		word = "|> " + word
	}
	s.token(word)
	s.add(word)
}

// variable reads @name and @@name. A query parameter's name is no word.
func (s *scanner) variable() {
	s.at++
	system := s.at < len(s.text) && s.text[s.at] == '@'
	if system {
		s.at++
	}
	if s.at < len(s.text) && isLetter(s.text[s.at]) {
		if name := s.ident(); system {
			s.add("@@" + name)
		}
	}
}
