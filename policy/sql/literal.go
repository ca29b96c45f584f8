package sql

import (
	"strconv"
	"strings"

	"github.com/sqlc-dev/zetajones/ast"
)

// unquote returns the value of one string or bytes literal as the lexer
// accepted it (https://cloud.google.com/bigquery/docs/reference/standard-sql/lexical#string_and_bytes_literals).
func unquote(image string) (string, bool) {
	raw := false
	i := 0
	for i < len(image) && image[i] != '\'' && image[i] != '"' {
		switch image[i] {
		case 'r', 'R':
			raw = true
		case 'b', 'B':
		default:
			return "", false
		}
		i++
	}
	s := image[i:]
	q := 1
	if len(s) >= 6 && s[0] == s[1] && s[0] == s[2] {
		q = 3
	}
	if len(s) < 2*q {
		return "", false
	}
	s = s[q : len(s)-q]
	if q == 3 { // line ends in triple quotes are \n
		s = strings.ReplaceAll(s, "\r\n", "\n")
	}
	if raw || !strings.Contains(s, `\`) {
		return s, true
	}
	return unescape(s)
}

// unescape decodes the escape sequences of a literal or quoted identifier.
func unescape(s string) (string, bool) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i >= len(s) {
			return "", false
		}
		num := func(digits, base int) bool {
			if i+digits > len(s) {
				return false
			}
			v, err := strconv.ParseUint(s[i:i+digits], base, 32)
			if err != nil {
				return false
			}
			i += digits - 1
			if digits > 3 {
				b.WriteRune(rune(v))
			} else {
				b.WriteByte(byte(v))
			}
			return true
		}
		ok := true
		switch c := s[i]; c {
		case 'a':
			b.WriteByte('\a')
		case 'b':
			b.WriteByte('\b')
		case 'f':
			b.WriteByte('\f')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		case 'v':
			b.WriteByte('\v')
		case '\\', '?', '\'', '"', '`':
			b.WriteByte(c)
		case 'x', 'X':
			i++
			ok = num(2, 16)
		case 'u':
			i++
			ok = num(4, 16)
		case 'U':
			i++
			ok = num(8, 16)
		case '0', '1', '2', '3':
			ok = num(3, 8)
		default:
			ok = false
		}
		if !ok {
			return "", false
		}
	}
	return b.String(), true
}

// literal returns the value of a string literal of one or more pieces.
func literal(n ast.Node) (string, bool) {
	s, ok := n.(*ast.StringLiteral)
	if !ok || s == nil {
		return "", false
	}
	var b strings.Builder
	for _, c := range s.Components {
		v, ok := unquote(c.Image)
		if !ok {
			return "", false
		}
		b.WriteString(v)
	}
	return b.String(), true
}

// literals returns the values of a string literal or an array of them.
func literals(n ast.Node) ([]string, bool) {
	if a, ok := n.(*ast.ArrayConstructor); ok {
		var out []string
		for _, e := range a.Elements {
			v, ok := literal(e)
			if !ok {
				return nil, false
			}
			out = append(out, v)
		}
		return out, true
	}
	v, ok := literal(n)
	return []string{v}, ok
}
