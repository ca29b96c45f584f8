package sql

import (
	"sort"
	"strings"

	"github.com/sqlc-dev/zetajones/token"
)

// The parser does not know a few statements of BigQuery. Where their meaning is
// certain by their tokens they are rewritten to one that it knows and that has the
// same facts, with positions mapped back to the caller's text:
//
//	MERGE t USING s AS x ON ...        MERGE t USING (SELECT * FROM s) AS x ON ...
//	CREATE SNAPSHOT TABLE x CLONE y    CREATE TABLE x CLONE y, noted as a snapshot
//	CREATE TABLE x COPY y              CREATE TABLE x CLONE y, noted as a copy
//	UNDROP SCHEMA x                    CREATE SCHEMA x, noted as undrop
//	LOAD DATA INTO t FROM FILES (...)  BREAK, noted with what was read of it
//	CASE [x] WHEN y THEN ... END CASE  IF ... THEN ... ELSEIF ... END IF
//	x: LOOP ... BREAK x; END LOOP x    LOOP ... BREAK; END LOOP
//
// The rewritten text is never sent anywhere.

type edit struct {
	at, del int
	ins     string
}

// note says what a statement of the rewritten text stands for, by the byte of the
// caller's text where it begins.
type note struct {
	kind string // copy, snapshot, undrop, load, case
	load *loadData
}

// loadData is what the tokens of a LOAD DATA statement say.
type loadData struct {
	target     []string
	targetAt   int
	temp       bool
	overwrite  bool
	uris       []string
	unknown    bool // a URI is not a literal
	connection string
}

type rewritten struct {
	text  string
	edits []edit // in order
	ends  []int  // of each edit in the rewritten text
	notes map[int]note
}

// original returns the caller's byte for a byte of the rewritten text.
func (r *rewritten) original(at int) int {
	// The first edit that ends behind it, or where it stands.
	i := sort.Search(len(r.ends), func(i int) bool { return r.ends[i] > at })
	if i < len(r.ends) {
		if e := r.edits[i]; at >= r.ends[i]-len(e.ins) {
			return e.at // inside of what was put in
		}
	}
	if i == 0 {
		return at
	}
	e := r.edits[i-1]
	return at - r.ends[i-1] + e.at + e.del
}

// rewrite finds the statements above.
func rewrite(text string, toks []token.Token) *rewritten {
	r := &rewritten{text: text, notes: map[int]note{}}
	labels := map[string]bool{}
	blank := func(t token.Token) {
		r.edits = append(r.edits, edit{t.Pos, t.End - t.Pos, strings.Repeat(" ", t.End-t.Pos)})
	}
	for i := range toks {
		t := toks[i]
		if len(labels) > 0 && (t.Kind == token.SEMICOLON || t.Kind == token.EOF) && i > 1 && toks[i-1].Kind == token.IDENT && labels[strings.ToLower(toks[i-1].Image)] &&
			(isAny(toks[i-2], "BREAK", "LEAVE", "CONTINUE", "ITERATE") && statementStart(toks, i-2) ||
				isWord(toks[i-2], "END") || isAny(toks[i-2], "LOOP", "WHILE", "REPEAT", "FOR") && i > 2 && isWord(toks[i-3], "END")) {
			blank(toks[i-1])
		}
		if !statementStart(toks, i) {
			continue
		}
		if t.Kind == token.IDENT && at(toks, i+1).Kind == token.COLON && isAny(at(toks, i+2), "BEGIN", "LOOP", "WHILE", "REPEAT", "FOR") {
			labels[strings.ToLower(t.Image)] = true
			blank(t)
			blank(toks[i+1])
			continue
		}
		switch {
		case isWord(t, "MERGE"):
			r.merge(toks, i)
		case isWord(t, "CREATE"):
			r.create(toks, i)
		case isWord(t, "UNDROP") && isWord(at(toks, i+1), "SCHEMA"):
			r.edits = append(r.edits, edit{t.Pos, t.End - t.Pos, "CREATE"})
			r.notes[t.Pos] = note{kind: "undrop"}
		case isWord(t, "LOAD") && isWord(at(toks, i+1), "DATA"):
			r.load(toks, i)
		case isWord(t, "CASE"):
			r.caseStatement(toks, i)
		}
	}
	if len(r.edits) == 0 {
		return r
	}
	sort.SliceStable(r.edits, func(i, j int) bool { return r.edits[i].at < r.edits[j].at })
	var b strings.Builder
	last := 0
	for _, e := range r.edits {
		if e.at < last { // nested in something that was replaced whole
			return &rewritten{text: text, notes: map[int]note{}}
		}
		b.WriteString(text[last:e.at])
		b.WriteString(e.ins)
		r.ends = append(r.ends, b.Len())
		last = e.at + e.del
	}
	b.WriteString(text[last:])
	r.text = b.String()
	return r
}

func at(toks []token.Token, i int) token.Token {
	if i < len(toks) {
		return toks[i]
	}
	return toks[len(toks)-1]
}

// tokenPath reads a path as the parser would: identifiers joined by dots, dashes
// in the first one. It returns the identifiers and the index behind them; no
// identifiers where there is no path.
func tokenPath(text string, toks []token.Token, i int) ([]string, int) {
	var names []string
	t := at(toks, i)
	if t.Kind != token.IDENT && t.Kind != token.QUOTED_IDENT || t.Kind == token.IDENT && token.IsReservedKeyword(t.Image) {
		return nil, i
	}
	for {
		t := at(toks, i)
		switch t.Kind {
		case token.QUOTED_IDENT:
			name := t.Image[1 : len(t.Image)-1]
			if strings.Contains(name, `\`) {
				return nil, i
			}
			names = append(names, name)
			i++
		case token.IDENT:
			start, end := t.Pos, t.End
			i++
			// my-project-1.dataset.table, where the lexer took "1." for a number
			for len(names) == 0 && at(toks, i).Kind == token.MINUS && at(toks, i).Pos == end {
				n := at(toks, i+1)
				if n.Pos != at(toks, i).End || n.Kind != token.IDENT && n.Kind != token.INT && n.Kind != token.FLOAT {
					return nil, i
				}
				end = n.End
				i += 2
				if n.Kind == token.FLOAT {
					if !strings.HasSuffix(n.Image, ".") || at(toks, i).Kind != token.IDENT && at(toks, i).Kind != token.QUOTED_IDENT {
						return nil, i
					}
					names = append(names, text[start:end-1])
					start = -1
					break
				}
			}
			if start < 0 {
				continue
			}
			names = append(names, text[start:end])
		default:
			return nil, i
		}
		if at(toks, i).Kind != token.DOT {
			return names, i
		}
		i++
	}
}

// merge encloses a source that the parser cannot read: a path with an alias or
// FOR SYSTEM_TIME behind it.
func (r *rewritten) merge(toks []token.Token, i int) {
	i++
	if isWord(at(toks, i), "INTO") {
		i++
	}
	names, i := tokenPath(r.text, toks, i)
	if names == nil {
		return
	}
	if isWord(at(toks, i), "AS") {
		i++
	}
	if !isWord(at(toks, i), "USING") {
		i++ // the alias
	}
	if !isWord(at(toks, i), "USING") {
		return
	}
	i++
	start := at(toks, i)
	names, i = tokenPath(r.text, toks, i)
	if names == nil || isWord(at(toks, i), "ON") {
		return
	}
	end := at(toks, i-1).End
	if isWord(at(toks, i), "FOR") {
		// FOR SYSTEM_TIME AS OF <expression> stands before the alias or behind it: up to ON, and the alias is not needed.
		depth := 0
		for ; i < len(toks); i++ {
			switch toks[i].Kind {
			case token.LPAREN:
				depth++
			case token.RPAREN:
				depth--
			}
			if depth == 0 && isWord(toks[i], "ON") || toks[i].Kind == token.SEMICOLON {
				break
			}
		}
		end = at(toks, i-1).End
	}
	r.edits = append(r.edits, edit{start.Pos, 0, "(SELECT * FROM "}, edit{end, 0, ")"})
}

func (r *rewritten) create(toks []token.Token, i int) {
	start := toks[i]
	i++
	if isWord(at(toks, i), "OR") && isWord(at(toks, i+1), "REPLACE") {
		i += 2
	}
	snapshot := isWord(at(toks, i), "SNAPSHOT") && isWord(at(toks, i+1), "TABLE")
	if snapshot {
		s := toks[i]
		r.edits = append(r.edits, edit{s.Pos, s.End - s.Pos, strings.Repeat(" ", s.End-s.Pos)})
		r.notes[start.Pos] = note{kind: "snapshot"}
		return
	}
	if isAny(at(toks, i), "TEMP", "TEMPORARY") {
		i++
	}
	if !isWord(at(toks, i), "TABLE") {
		return
	}
	i++
	if isWord(at(toks, i), "IF") {
		i += 3
	}
	names, i := tokenPath(r.text, toks, i)
	if names == nil || !isWord(at(toks, i), "COPY") {
		return
	}
	c := toks[i]
	r.edits = append(r.edits, edit{c.Pos, c.End - c.Pos, "CLONE"})
	r.notes[start.Pos] = note{kind: "copy"}
}

// load reads LOAD DATA whole
// (https://cloud.google.com/bigquery/docs/reference/standard-sql/load-statements).
// What it does not expect leaves the statement to the parser, which refuses it.
func (r *rewritten) load(toks []token.Token, i int) {
	start := toks[i]
	l := &loadData{}
	i += 2
	switch {
	case isWord(at(toks, i), "OVERWRITE"):
		l.overwrite = true
	case !isWord(at(toks, i), "INTO"):
		return
	}
	i++
	if isAny(at(toks, i), "TEMP", "TEMPORARY") && isWord(at(toks, i+1), "TABLE") {
		l.temp = true
		i += 2
	}
	l.targetAt = at(toks, i).Pos
	if l.target, i = tokenPath(r.text, toks, i); l.target == nil {
		return
	}
	group := func() (from, to int, ok bool) {
		if at(toks, i).Kind != token.LPAREN {
			return 0, 0, false
		}
		from = i
		for depth := 0; i < len(toks); i++ {
			switch toks[i].Kind {
			case token.LPAREN, token.LBRACKET, token.LBRACE:
				depth++
			case token.RPAREN, token.RBRACKET, token.RBRACE:
				if depth--; depth == 0 {
					i++
					return from, i, true
				}
			case token.IDENT:
				// A default or partitioning expression could hold a query; nothing that loads does.
				if isAny(toks[i], "SELECT", "FROM", "TABLE", "WITH", "EXTERNAL_QUERY") {
					return 0, 0, false
				}
			}
		}
		return 0, 0, false
	}
	files := false
	for {
		t := at(toks, i)
		switch {
		case t.Kind == token.EOF || t.Kind == token.SEMICOLON:
			if !files {
				return
			}
			end := toks[i-1].End
			r.edits = append(r.edits, edit{start.Pos, end - start.Pos, "BREAK"})
			r.notes[start.Pos] = note{kind: "load", load: l}
			return
		case t.Kind == token.LPAREN:
			if _, _, ok := group(); !ok {
				return
			}
		case isWord(t, "PARTITIONS"), isWord(t, "OPTIONS"):
			i++
			if _, _, ok := group(); !ok {
				return
			}
		case isAny(t, "PARTITION", "CLUSTER") && isWord(at(toks, i+1), "BY"):
			i += 2
			for { // expressions up to the next clause
				t := at(toks, i)
				if t.Kind == token.EOF || t.Kind == token.SEMICOLON || isAny(t, "CLUSTER", "OPTIONS", "FROM", "PARTITION", "WITH") {
					break
				}
				if t.Kind == token.LPAREN {
					if _, _, ok := group(); !ok {
						return
					}
					continue
				}
				if t.Kind != token.IDENT && t.Kind != token.QUOTED_IDENT && t.Kind != token.COMMA && t.Kind != token.DOT {
					return
				}
				i++
			}
		case isWord(t, "FROM") && isWord(at(toks, i+1), "FILES") && !files:
			i += 2
			from, to, ok := group()
			if !ok {
				return
			}
			files = true
			l.files(toks[from+1 : to-1])
		case isWord(t, "WITH") && isWord(at(toks, i+1), "PARTITION") && isWord(at(toks, i+2), "COLUMNS"):
			i += 3
			if at(toks, i).Kind == token.LPAREN {
				if _, _, ok := group(); !ok {
					return
				}
			}
		case isWord(t, "WITH") && isWord(at(toks, i+1), "CONNECTION"):
			i += 2
			var names []string
			if isWord(at(toks, i), "DEFAULT") {
				names, i = []string{"DEFAULT"}, i+1
			} else if names, i = tokenPath(r.text, toks, i); names == nil {
				return
			}
			l.connection = strings.Join(names, ".")
		default:
			return
		}
	}
}

// files reads the options of FROM FILES: URIs are every literal of uris, and
// whatever else looks like one.
func (l *loadData) files(toks []token.Token) {
	name := ""
	depth := 0
	found := false
	for i, t := range toks {
		switch t.Kind {
		case token.LBRACKET, token.LPAREN:
			depth++
		case token.RBRACKET, token.RPAREN:
			depth--
		case token.IDENT, token.QUOTED_IDENT:
			if depth == 0 && at(toks, i+1).Kind == token.EQ {
				name = strings.ToLower(strings.Trim(t.Image, "`"))
			} else if strings.HasPrefix(name, "uri") {
				l.unknown = true
			}
		case token.STRING:
			v, ok := unquote(t.Image)
			if strings.HasPrefix(name, "uri") || strings.Contains(v, "://") {
				found = true
				if ok {
					l.uris = append(l.uris, v)
				} else {
					l.unknown = true
				}
			}
		case token.PARAM, token.QUESTION, token.ATSIGN, token.SYSTEM_VARIABLE, token.PLUS, token.CONCAT:
			l.unknown = true
		}
	}
	if !found {
		l.unknown = true
	}
}

// caseStatement turns a CASE statement (not an expression) into IF.
func (r *rewritten) caseStatement(toks []token.Token, i int) {
	start := toks[i]
	// A CASE expression may follow THEN or ELSE too: the statement is the one that ends with END CASE.
	type open struct {
		isCase bool
		arms   []int // WHEN and END at this level
	}
	stack := []open{{isCase: true}}
	brackets := 0
	end := -1
	for j := i + 1; j < len(toks) && end < 0; j++ {
		t := toks[j]
		switch t.Kind {
		case token.LPAREN, token.LBRACKET, token.LBRACE:
			brackets++
			continue
		case token.RPAREN, token.RBRACKET, token.RBRACE:
			brackets--
			continue
		}
		if brackets != 0 || j > 0 && toks[j-1].Kind == token.DOT {
			continue
		}
		if brackets < 0 {
			return
		}
		top := &stack[len(stack)-1]
		switch {
		case isWord(t, "CASE") && !isWord(toks[j-1], "END"):
			stack = append(stack, open{isCase: true})
		case isWord(t, "BEGIN") && statementStart(toks, j) && !isWord(at(toks, j+1), "TRANSACTION") && at(toks, j+1).Kind != token.SEMICOLON,
			isAny(t, "LOOP", "WHILE", "REPEAT", "FOR") && statementStart(toks, j) && !isWord(toks[j-1], "END"),
			isWord(t, "IF") && statementStart(toks, j) && !ifCall(toks, j):
			stack = append(stack, open{})
		case isWord(t, "WHEN") && top.isCase, isWord(t, "THEN") && top.isCase:
			if len(stack) == 1 {
				top.arms = append(top.arms, j)
			}
		case isWord(t, "END"):
			if len(stack) == 1 {
				if !isWord(at(toks, j+1), "CASE") {
					return
				}
				end = j
				continue
			}
			stack = stack[:len(stack)-1]
		}
	}
	if end < 0 {
		return
	}
	arms := stack[0].arms
	if len(arms) < 2 || !isWord(toks[arms[0]], "WHEN") {
		return
	}
	first := true
	searched := arms[0] == i+1
	var edits []edit
	if searched {
		edits = append(edits, edit{start.Pos, toks[arms[0]].End - start.Pos, "IF"})
	} else {
		edits = append(edits, edit{start.Pos, start.End - start.Pos, "IF ("}, edit{toks[arms[0]].Pos, 4, ") = ("})
	}
	for _, a := range arms {
		t := toks[a]
		switch {
		case isWord(t, "WHEN") && !first:
			if searched {
				edits = append(edits, edit{t.Pos, 4, "ELSEIF"})
			} else {
				edits = append(edits, edit{t.Pos, 4, "ELSEIF ("})
			}
		case isWord(t, "THEN"):
			first = false
			if !searched {
				edits = append(edits, edit{t.Pos, 4, ") THEN"})
			}
		}
	}
	edits = append(edits, edit{toks[end+1].Pos, 4, "IF"})
	r.edits = append(r.edits, edits...)
	r.notes[start.Pos] = note{kind: "case"}
}

// ifCall reports whether the IF at toks[i] is the function: its bracket is not
// followed by THEN or by more of a condition.
func ifCall(toks []token.Token, i int) bool {
	if at(toks, i+1).Kind != token.LPAREN {
		return false
	}
	depth := 0
	for j := i + 1; j < len(toks); j++ {
		switch toks[j].Kind {
		case token.LPAREN:
			depth++
		case token.RPAREN:
			if depth--; depth == 0 {
				// IF (a) THEN, IF (a) AND (b) THEN: a THEN comes before the statement ends.
				for k := j + 1; k < len(toks); k++ {
					if toks[k].Kind == token.SEMICOLON || isAny(toks[k], "ELSE", "WHEN", "END") {
						return true
					}
					if isWord(toks[k], "THEN") {
						return false
					}
				}
				return true
			}
		}
	}
	return true
}
