package sql

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/sqlc-dev/zetajones/lexer"
	"github.com/sqlc-dev/zetajones/token"
)

// What a text may be before the parser sees it. The parser descends
// recursively, cannot be stopped and dies with the process when its stack ends,
// and reads some nestings again for each level around them: so everything that
// makes it deep or slow is measured on the tokens first.
const (
	// DefaultLimit is the size of the largest text, in bytes, where [Config] has none.
	DefaultLimit = 256 << 10
	// MaxLimit is the largest limit that can be set.
	MaxLimit = 1 << 20

	maxDepth   = 256       // brackets, blocks, CASE and types inside of one another, together
	maxPrefix  = 64        // operators in a row before an operand: NOT NOT NOT, - - -
	maxCost    = 1_000_000 // readings of a token, see guardTokens
	maxCTE     = 2000      // names that a statement's WITH clauses hold
	maxColumns = 100_000   // columns of all tables together; beyond, a table counts as read whole
	maxWalk    = 3000      // levels of the tree; a chain of 1,000 operators has as many
)

// checkBytes is the guard's first half: what a text is made of.
func checkBytes(text string, limit int) *Problem {
	if len(text) > limit {
		return &Problem{Code: "too_large", Message: fmt.Sprintf("the text has %d bytes, more than the %d that are read", len(text), limit), Line: 1, Column: 1}
	}
	plain := true
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c >= utf8.RuneSelf:
			plain = false
		case c >= ' ' && c != 0x7f, c == '\n', c == '\t':
		case c == '\r' && i+1 < len(text) && text[i+1] == '\n':
		case c == '\r':
			return problemAt(text, i, "control_character", "a carriage return stands without a line feed")
		default:
			return problemAt(text, i, "control_character", fmt.Sprintf("a control character (U+%04X) stands in the text", c))
		}
	}
	if plain {
		return nil
	}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if r == utf8.RuneError && size == 1 {
			return problemAt(text, i, "not_utf8", "the text is not UTF-8")
		}
		switch {
		case r == 0x2028, r == 0x2029, r >= 0x80 && r < 0xa0:
			// Line ends to some readers, nothing to others.
			return problemAt(text, i, "control_character", fmt.Sprintf("a control character (U+%04X) stands in the text", r))
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c:
			// The text reads otherwise to people than to machines.
			return problemAt(text, i, "control_character", fmt.Sprintf("a character that turns the direction of writing (U+%04X) stands in the text", r))
		}
		i += size
	}
	return nil
}

// legacyPrefix reports whether a line chooses legacy SQL, which BigQuery reads
// although it is a comment. #standardSQL chooses what is read here anyway.
func legacyPrefix(text string) bool {
	t := strings.ToLower(text)
	const prefix = "#legacysql"
	// Anywhere: whether BigQuery looks at the first line only is not documented.
	for i := 0; ; i += len(prefix) {
		j := strings.Index(t[i:], prefix)
		if j < 0 {
			return false
		}
		i += j
		if lineStart := strings.LastIndexByte(t[:i], '\n') + 1; strings.TrimSpace(t[lineStart:i]) == "" {
			return true
		}
	}
}

// lex returns the tokens of a text.
func lex(text string) ([]token.Token, *Problem) {
	toks, err := lexer.Lex(text)
	if err != nil {
		at := 0
		var le *lexer.Error
		if errors.As(err, &le) {
			at = le.Offset
		}
		return nil, problemAt(text, at, "syntax", "the text cannot be split into words: "+lexMessage(err))
	}
	return toks, nil
}

// lexMessage keeps what says no more than the kind of an error: the lexer's
// texts can quote literals.
func lexMessage(err error) string {
	for _, known := range []string{"Unclosed comment", "Unclosed identifier literal", "Unclosed string literal", "Unclosed bytes literal", "Unclosed raw string literal",
		"Unclosed raw bytes literal", "Unclosed triple-quoted string literal", "Illegal escape sequence", "Illegal input character", "Invalid empty identifier"} {
		if strings.Contains(err.Error(), known) {
			return strings.ToLower(known)
		}
	}
	return "a literal is malformed"
}

// openers that take a block's END. A CASE expression is one of them.
type opener uint8

const (
	bracketOpen opener = iota
	caseOpen
	beginOpen
	ifOpen
	loopOpen
	typeOpen
	betweenOpen
)

// guardTokens is the guard's second half. It refuses what is deep, and what the
// parser would read too often: behind the brackets of "((SELECT ..." it tries a
// query first and, where that fails, reads all of it again as something else, for
// each bracket of the run. So a token costs the product of the lengths of the runs
// around it, and a ? costs one step for each token before it.
func guardTokens(text string, toks []token.Token) *Problem {
	type level struct {
		kind   opener
		close  token.Kind
		factor int64 // of the cost, before this bracket
	}
	var stack []level
	base := 0 // the innermost bracket's place in stack, plus one
	var cost, factor int64 = 0, 1
	prefix := 0
	deep := func(t token.Token) *Problem {
		return problemAt(text, t.Pos, "too_deep", fmt.Sprintf("more than %d brackets, blocks or expressions stand inside of one another", maxDepth))
	}
	rebase := func() {
		base = 0
		for i := len(stack) - 1; i >= 0; i-- {
			if stack[i].kind == bracketOpen {
				base = i + 1
				return
			}
		}
	}
	for i, t := range toks {
		cost += factor
		if t.Kind == token.QUESTION {
			cost += int64(i) / 16
		}
		if cost > maxCost {
			return problemAt(text, t.Pos, "too_complex", "the text nests queries in brackets so that reading it would take too long")
		}
		switch t.Kind {
		case token.LPAREN, token.LBRACKET, token.LBRACE:
			l := level{kind: bracketOpen, factor: factor, close: closing(t.Kind)}
			if t.Kind == token.LPAREN {
				// The first bracket of a run carries the whole run's factor.
				if i == 0 || toks[i-1].Kind != token.LPAREN {
					n := 0
					for i+n < len(toks) && toks[i+n].Kind == token.LPAREN {
						n++
					}
					if i+n < len(toks) && n > 1 && isAny(toks[i+n], "SELECT", "WITH", "FROM", "TABLE") {
						factor *= int64(n)
					}
				}
			}
			stack = append(stack, l)
			base = len(stack)
		case token.RPAREN, token.RBRACKET, token.RBRACE:
			if base == 0 || stack[base-1].close != t.Kind {
				return problemAt(text, t.Pos, "syntax", "a bracket is closed that was not opened")
			}
			factor = stack[base-1].factor
			stack = stack[:base-1]
			rebase()
		case token.LT:
			if i > 0 && isAny(toks[i-1], "STRUCT", "ARRAY", "RANGE", "MAP", "TABLE", "FUNCTION", "MULTISET", "ENUM", "PROTO") {
				stack = append(stack, level{kind: typeOpen})
			}
		case token.GT, token.RSHIFT:
			n := 1
			if t.Kind == token.RSHIFT {
				n = 2
			}
			for ; n > 0 && len(stack) > base && stack[len(stack)-1].kind == typeOpen; n-- {
				stack = stack[:len(stack)-1]
			}
		case token.IDENT:
			if i > 0 && toks[i-1].Kind == token.DOT {
				break
			}
			start := statementStart(toks, i)
			switch {
			case isWord(t, "CASE"):
				if i == 0 || !isWord(toks[i-1], "END") {
					stack = append(stack, level{kind: caseOpen})
				}
			case isWord(t, "BEGIN") && !(i+1 < len(toks) && (toks[i+1].Kind == token.SEMICOLON || toks[i+1].Kind == token.EOF || isWord(toks[i+1], "TRANSACTION"))):
				if start || i > 0 && toks[i-1].Kind != token.COMMA {
					stack = append(stack, level{kind: beginOpen})
				}
			case isWord(t, "BETWEEN"):
				stack = append(stack, level{kind: betweenOpen})
			case isWord(t, "AND"):
				if len(stack) > base && stack[len(stack)-1].kind == betweenOpen {
					stack = stack[:len(stack)-1]
				}
			case isWord(t, "IF") && start:
				stack = append(stack, level{kind: ifOpen})
			case start && isAny(t, "LOOP", "WHILE", "REPEAT", "FOR"):
				stack = append(stack, level{kind: loopOpen})
			case isWord(t, "END"):
				// "END IF" and "END LOOP" close theirs, a plain END the nearest CASE or BEGIN.
				want := func(k opener) bool { return k == caseOpen || k == beginOpen }
				if i+1 < len(toks) {
					switch {
					case isWord(toks[i+1], "IF"):
						want = func(k opener) bool { return k == ifOpen }
					case isAny(toks[i+1], "LOOP", "WHILE", "REPEAT", "FOR"):
						want = func(k opener) bool { return k == loopOpen }
					case isWord(toks[i+1], "CASE"):
						want = func(k opener) bool { return k == caseOpen }
					}
				}
				for j := len(stack) - 1; j >= base; j-- {
					if want(stack[j].kind) {
						stack = stack[:j]
						break
					}
				}
			}
		case token.EOF:
			if base > 0 {
				return problemAt(text, t.Pos, "syntax", "a bracket is not closed")
			}
		case token.MACRO_INVOCATION:
			return problemAt(text, t.Pos, "syntax", "a word begins with $")
		}
		if len(stack) > maxDepth {
			return deep(t)
		}
		switch {
		case t.Kind == token.PLUS, t.Kind == token.MINUS, t.Kind == token.TILDE, t.Kind == token.ATSIGN, t.Kind == token.EXCL,
			isAny(t, "NOT", "EXPLAIN", "INTERVAL"):
			if prefix++; prefix > maxPrefix {
				return problemAt(text, t.Pos, "too_deep", fmt.Sprintf("more than %d operators stand in a row", maxPrefix))
			}
		case t.Kind == token.INT && i > 0 && toks[i-1].Kind == token.ATSIGN: // the hint @1
		case t.Kind == token.LBRACE || t.Kind == token.RBRACE || len(stack) > 0 && stack[len(stack)-1].close == token.RBRACE:
			// The hints of a statement: @{a=1} @{b=2} SELECT
		default:
			prefix = 0
		}
	}
	return nil
}

func closing(k token.Kind) token.Kind {
	switch k {
	case token.LPAREN:
		return token.RPAREN
	case token.LBRACKET:
		return token.RBRACKET
	}
	return token.RBRACE
}

// statementStart reports whether a statement may begin at toks[i].
func statementStart(toks []token.Token, i int) bool {
	if i == 0 {
		return true
	}
	p := toks[i-1]
	switch p.Kind {
	case token.SEMICOLON, token.COLON, token.RBRACE:
		return true
	case token.IDENT:
		return isAny(p, "THEN", "ELSE", "BEGIN", "LOOP", "REPEAT", "DO", "EXPLAIN")
	}
	return false
}

// isWord reports whether a token is an unquoted word, in any case.
func isWord(t token.Token, word string) bool {
	return t.Kind == token.IDENT && len(t.Image) == len(word) && strings.EqualFold(t.Image, word)
}

func isAny(t token.Token, words ...string) bool {
	if t.Kind != token.IDENT {
		return false
	}
	for _, w := range words {
		if len(t.Image) == len(w) && strings.EqualFold(t.Image, w) {
			return true
		}
	}
	return false
}

// places finds lines and columns in one text: asked for many, it does not begin anew for each.
type places struct {
	text  string
	lines []int // where each line begins
	runes []int // characters before each 256 bytes; nil where every byte is one
}

func newPlaces(text string) *places {
	p := &places{text: text, lines: []int{0}}
	ascii := true
	for i := 0; i < len(text); i++ {
		if text[i] == '\n' {
			p.lines = append(p.lines, i+1)
		}
		ascii = ascii && text[i] < utf8.RuneSelf
	}
	if !ascii {
		n := 0
		for i := 0; i < len(text); i++ {
			if i%256 == 0 {
				p.runes = append(p.runes, n)
			}
			if utf8.RuneStart(text[i]) {
				n++
			}
		}
	}
	return p
}

func (p *places) characters(at int) int {
	if p.runes == nil {
		return at
	}
	i := min(at/256, len(p.runes)-1)
	n := p.runes[i]
	for j := i * 256; j < at; j++ {
		if utf8.RuneStart(p.text[j]) {
			n++
		}
	}
	return n
}

func (p *places) at(at int) (line, column int) {
	at = max(0, min(at, len(p.text)))
	line = sort.Search(len(p.lines), func(i int) bool { return p.lines[i] > at })
	return line, p.characters(at) - p.characters(p.lines[line-1]) + 1
}

// position returns the line and column of a byte, from 1, the column in
// characters.
func position(text string, at int) (line, column int) {
	at = max(0, min(at, len(text)))
	start := strings.LastIndexByte(text[:at], '\n') + 1
	return strings.Count(text[:start], "\n") + 1, utf8.RuneCountInString(text[start:at]) + 1
}

func problemAt(text string, at int, code, message string) *Problem {
	line, column := position(text, at)
	return &Problem{Code: code, Message: message, Line: line, Column: column}
}
