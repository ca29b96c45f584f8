package bigquery

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"verbatim.dev/recorder/record"
)

// Bounds of what a Scanner keeps: together far below 64 KiB.
const (
	maxKey     = 160 // raw bytes of a key; the longest known key is 20, six times that when escaped
	maxText    = 4 << 10
	maxErrors  = 8
	maxFrames  = 8
	maxNumeral = 32
)

// ErrorFact is one error in an answer.
type ErrorFact struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message"`
}

// ResponseFacts is what a response body says. A nil pointer means that the
// body did not say: with fields= nearly everything may be missing.
type ResponseFacts struct {
	Job         *record.Job
	ParentJob   string
	State       string // status.state: PENDING, RUNNING, DONE
	JobComplete *bool
	QueryID     string // of a query without a job
	SessionID   string
	Statement   string // statementType
	Destination *Table // configuration.query.destinationTable

	Rows      int64 // elements of rows in this body
	HasRows   bool  // rows was there
	TotalRows *int64
	Processed *int64 // totalBytesProcessed
	Billed    *int64 // totalBytesBilled
	CacheHit  *bool
	Affected  *int64 // numDmlAffectedRows
	PageToken bool   // there are more pages
	Arrow     bool   // Arrow stands in the place of rows

	// Errors is errors[] of a job or an answer, or of the error envelope.
	Errors []ErrorFact
	// ErrorResult is status.errorResult: the job failed.
	ErrorResult *ErrorFact
	// ErrorCode and ErrorMessage are the envelope's: the call failed.
	ErrorCode    int
	ErrorMessage string
	InsertErrors int // rows that insertAll refused

	// Complete is true once the body's one value has ended.
	Complete bool
	// Malformed is true where the body is not JSON; the facts before that
	// point stand.
	Malformed bool
}

// ErrorText returns BigQuery's own error text, empty where there is none.
func (f *ResponseFacts) ErrorText() string {
	switch {
	case f.ErrorMessage != "":
		return f.ErrorMessage
	case f.ErrorResult != nil:
		return f.ErrorResult.Message
	case len(f.Errors) > 0:
		return f.Errors[0].Message
	}
	return ""
}

// scanNode is a place in the answer that is of interest.
type scanNode struct {
	keys map[string]*scanNode
	elem *scanNode
	open func(*ResponseFacts)         // an object or array begins
	each func(*ResponseFacts)         // an element begins
	set  func(*ResponseFacts, string) // a scalar, but null
	some func(*ResponseFacts)         // any value, but null
}

func setInt(field func(*ResponseFacts) **int64) *scanNode {
	return &scanNode{set: func(f *ResponseFacts, v string) {
		if i, err := strconv.ParseInt(v, 10, 64); err == nil {
			*field(f) = &i
		}
	}}
}

func setBool(field func(*ResponseFacts) **bool) *scanNode {
	return &scanNode{set: func(f *ResponseFacts, v string) {
		if v == "true" || v == "false" {
			b := v == "true"
			*field(f) = &b
		}
	}}
}

func setText(field func(*ResponseFacts) *string) *scanNode {
	return &scanNode{set: func(f *ResponseFacts, v string) { *field(f) = v }}
}

// errorList collects an array of ErrorProto.
func errorList() *scanNode {
	last := func(set func(*ErrorFact, string)) *scanNode {
		return &scanNode{set: func(f *ResponseFacts, v string) {
			if n := len(f.Errors); n > 0 && n <= maxErrors {
				set(&f.Errors[n-1], v)
			}
		}}
	}
	return &scanNode{
		open: func(f *ResponseFacts) { f.Errors = nil },
		each: func(f *ResponseFacts) {
			if len(f.Errors) <= maxErrors { // one more than is kept: what comes after has no place to go
				f.Errors = append(f.Errors, ErrorFact{})
			}
		},
		elem: &scanNode{keys: map[string]*scanNode{
			"reason":  last(func(e *ErrorFact, v string) { e.Reason = v }),
			"message": last(func(e *ErrorFact, v string) { e.Message = v }),
		}},
	}
}

var (
	processed = setInt(func(f *ResponseFacts) **int64 { return &f.Processed })
	billed    = setInt(func(f *ResponseFacts) **int64 { return &f.Billed })
	cacheHit  = setBool(func(f *ResponseFacts) **bool { return &f.CacheHit })
	statement = setText(func(f *ResponseFacts) *string { return &f.Statement })
	session   = &scanNode{keys: map[string]*scanNode{"sessionId": setText(func(f *ResponseFacts) *string { return &f.SessionID })}}
	arrow     = &scanNode{some: func(f *ResponseFacts) { f.Arrow = true }}

	answer = &scanNode{keys: map[string]*scanNode{
		"jobReference": {
			open: func(f *ResponseFacts) { f.Job = &record.Job{} },
			keys: map[string]*scanNode{
				"projectId": {set: func(f *ResponseFacts, v string) { f.Job.Project = v }},
				"jobId":     {set: func(f *ResponseFacts, v string) { f.Job.ID = v }},
				"location":  {set: func(f *ResponseFacts, v string) { f.Job.Location = v }},
			},
		},
		"rows": {
			open: func(f *ResponseFacts) { f.HasRows, f.Rows = true, 0 },
			each: func(f *ResponseFacts) { f.Rows++ },
		},
		"insertErrors": {
			open: func(f *ResponseFacts) { f.InsertErrors = 0 },
			each: func(f *ResponseFacts) { f.InsertErrors++ },
		},
		"totalRows":           setInt(func(f *ResponseFacts) **int64 { return &f.TotalRows }),
		"totalBytesProcessed": processed,
		"totalBytesBilled":    billed,
		"cacheHit":            cacheHit,
		"statementType":       statement,
		"sessionInfo":         session,
		"numDmlAffectedRows":  setInt(func(f *ResponseFacts) **int64 { return &f.Affected }),
		"jobComplete":         setBool(func(f *ResponseFacts) **bool { return &f.JobComplete }),
		"pageToken":           {set: func(f *ResponseFacts, v string) { f.PageToken = v != "" }},
		"queryId":             setText(func(f *ResponseFacts) *string { return &f.QueryID }),
		"arrowRecordBatch":    arrow,
		"arrowSchema":         arrow,
		"errors":              errorList(),
		"error": {keys: map[string]*scanNode{
			"code": {set: func(f *ResponseFacts, v string) {
				if i, err := strconv.Atoi(v); err == nil {
					f.ErrorCode = i
				}
			}},
			"message": setText(func(f *ResponseFacts) *string { return &f.ErrorMessage }),
			"errors":  errorList(),
		}},
		"status": {keys: map[string]*scanNode{
			"state": setText(func(f *ResponseFacts) *string { return &f.State }),
			"errorResult": {
				open: func(f *ResponseFacts) { f.ErrorResult = &ErrorFact{} },
				keys: map[string]*scanNode{
					"reason":  {set: func(f *ResponseFacts, v string) { f.ErrorResult.Reason = v }},
					"message": {set: func(f *ResponseFacts, v string) { f.ErrorResult.Message = v }},
				},
			},
			"errors": errorList(),
		}},
		"statistics": {keys: map[string]*scanNode{
			"totalBytesProcessed": processed,
			"parentJobId":         setText(func(f *ResponseFacts) *string { return &f.ParentJob }),
			"sessionInfo":         session,
			"query": {keys: map[string]*scanNode{
				"totalBytesBilled":   billed,
				"cacheHit":           cacheHit,
				"statementType":      statement,
				"numDmlAffectedRows": setInt(func(f *ResponseFacts) **int64 { return &f.Affected }),
			}},
		}},
		"configuration": {keys: map[string]*scanNode{
			"query": {keys: map[string]*scanNode{
				"destinationTable": {
					open: func(f *ResponseFacts) { f.Destination = &Table{} },
					keys: map[string]*scanNode{
						"projectId": {set: func(f *ResponseFacts, v string) { f.Destination.Project = v }},
						"datasetId": {set: func(f *ResponseFacts, v string) { f.Destination.Dataset = v }},
						"tableId":   {set: func(f *ResponseFacts, v string) { f.Destination.Table = v }},
					},
				},
			}},
		}},
	}}
)

type scanMode uint8

const (
	scanValue   scanMode = iota // a value, or the end of an array
	scanNext                    // a comma, or the end of an object or array
	scanKey                     // a key, or the end of an object
	scanColon                   // the colon behind a key
	scanKeyText                 // within a key
	scanText                    // within a string that is kept
	scanSkip                    // within a string or container that is not
	scanWord                    // within a number, true, false or null
	scanDone                    // behind the value
	scanBad
)

type scanFrame struct {
	node  *scanNode
	array bool
}

// Scanner picks facts out of an answer of jobs, queries and tabledata as its
// bytes pass, in pieces of any size, compact or indented. It never fails and
// keeps a bounded amount of memory whatever the body's size; it is no
// validator. It belongs to one goroutine. The zero value is ready.
type Scanner struct {
	facts  ResponseFacts
	mode   scanMode
	frames [maxFrames]scanFrame
	top    int       // frames in use
	node   *scanNode // of the value to come, nil for one of no interest
	begun  bool

	buf       [maxText]byte
	n         int
	truncated bool
	escape    bool // the byte before was a backslash that escapes
	inString  bool // in scanSkip
	depth     int  // containers open in scanSkip
}

// Facts returns what was found so far. It is final when Complete is true or
// the body has ended.
func (s *Scanner) Facts() ResponseFacts {
	f := s.facts
	if len(f.Errors) > maxErrors {
		f.Errors = f.Errors[:maxErrors:maxErrors]
	}
	return f
}

// Write takes the next bytes of the body. It always takes all of them.
func (s *Scanner) Write(p []byte) (int, error) {
	if !s.begun {
		s.begun, s.node = true, answer
	}
	for i := 0; i < len(p); {
		switch s.mode {
		case scanSkip:
			i = s.skip(p, i)
		case scanKeyText, scanText:
			i = s.text(p, i)
		case scanWord:
			i = s.word(p, i)
		case scanBad:
			return len(p), nil
		default:
			c := p[i]
			i++
			if c == ' ' || c == '\n' || c == '\t' || c == '\r' {
				continue
			}
			s.token(c)
		}
	}
	return len(p), nil
}

func (s *Scanner) bad() {
	s.mode, s.facts.Malformed = scanBad, true
}

// ended goes on behind a value.
func (s *Scanner) ended() {
	if s.top == 0 {
		s.mode, s.facts.Complete = scanDone, true
		return
	}
	s.mode = scanNext
}

func (s *Scanner) pop(array bool) {
	if s.top == 0 || s.frames[s.top-1].array != array {
		s.bad()
		return
	}
	s.top--
	s.ended()
}

// token takes a byte of structure.
func (s *Scanner) token(c byte) {
	switch s.mode {
	case scanValue:
		if c == ']' {
			s.pop(true)
			return
		}
		s.value(c)
	case scanNext:
		array := s.frames[s.top-1].array
		switch {
		case c == ',' && array:
			s.mode, s.node = scanValue, s.frames[s.top-1].node.elem
		case c == ',':
			s.mode = scanKey
		case c == ']' || c == '}':
			s.pop(c == ']')
		default:
			s.bad()
		}
	case scanKey:
		switch c {
		case '"':
			s.mode, s.n, s.truncated, s.escape = scanKeyText, 0, false, false
		case '}':
			s.pop(false)
		default:
			s.bad()
		}
	case scanColon:
		if c != ':' {
			s.bad()
			return
		}
		s.mode = scanValue
	default: // behind the end
		s.facts.Complete = false
		s.bad()
	}
}

// value begins a value with its first byte.
func (s *Scanner) value(c byte) {
	if s.top > 0 && s.frames[s.top-1].array {
		if each := s.frames[s.top-1].node.each; each != nil {
			each(&s.facts)
		}
	}
	n := s.node
	if n != nil && n.some != nil && c != 'n' {
		n.some(&s.facts)
	}
	switch {
	case c == '{' && n != nil && n.keys != nil && s.top < maxFrames:
		if n.open != nil {
			n.open(&s.facts)
		}
		s.frames[s.top] = scanFrame{node: n}
		s.top++
		s.mode = scanKey
	case c == '[' && n != nil && (n.elem != nil || n.each != nil) && s.top < maxFrames:
		if n.open != nil {
			n.open(&s.facts)
		}
		s.frames[s.top] = scanFrame{node: n, array: true}
		s.top++
		s.mode, s.node = scanValue, n.elem
	case c == '{' || c == '[':
		s.mode, s.depth, s.inString, s.escape = scanSkip, 1, false, false
	case c == '"' && n != nil && n.set != nil:
		s.mode, s.n, s.truncated, s.escape = scanText, 0, false, false
	case c == '"':
		s.mode, s.depth, s.inString, s.escape = scanSkip, 0, true, false
	case c == '-' || c >= '0' && c <= '9' || c == 't' || c == 'f' || c == 'n':
		s.mode, s.buf[0], s.n = scanWord, c, 1
	default:
		s.bad()
	}
}

// skipClass marks the bytes that end or open something outside of strings.
var skipClass = [256]int8{'"': 2, '{': 1, '[': 1, '}': -1, ']': -1}

// skip passes over a string or container that is not read.
func (s *Scanner) skip(p []byte, i int) int {
	depth, inString := s.depth, s.inString
	for i < len(p) {
		if inString {
			if s.escape {
				s.escape = false
				i++
				continue
			}
			// Cells are short: look at some bytes before calling for a search.
			end := min(i+24, len(p))
			for i < end && p[i] != '"' && p[i] != '\\' {
				i++
			}
			if i == end {
				i += quoteOrEscape(p[i:])
				if i == len(p) {
					break
				}
			}
			c := p[i]
			i++
			if c == '\\' {
				s.escape = true
				continue
			}
			if inString = false; depth == 0 {
				s.ended()
				break
			}
			continue
		}
		class := int8(0)
		for i < len(p) {
			class = skipClass[p[i]]
			i++
			if class != 0 {
				break
			}
		}
		switch class {
		case 2:
			inString = true
		case 1:
			depth++
		case -1:
			if depth--; depth == 0 {
				s.ended()
				s.depth, s.inString = 0, false
				return i
			}
		}
	}
	s.depth, s.inString = depth, inString
	return i
}

// quoteOrEscape returns the index of the first quote or backslash, len(p)
// where there is none.
func quoteOrEscape(p []byte) int {
	q := bytes.IndexByte(p, '"')
	if q < 0 {
		q = len(p)
	}
	if e := bytes.IndexByte(p[:q], '\\'); e >= 0 {
		return e
	}
	return q
}

// text keeps a key or a string up to its limit.
func (s *Scanner) text(p []byte, i int) int {
	limit := maxText
	if s.mode == scanKeyText {
		limit = maxKey
	}
	for i < len(p) {
		c := p[i]
		i++
		if !s.escape && c == '"' {
			s.endText()
			return i
		}
		s.escape = !s.escape && c == '\\'
		if s.n < limit {
			s.buf[s.n] = c
			s.n++
		} else {
			s.truncated = true
		}
	}
	return i
}

func (s *Scanner) endText() {
	raw := s.buf[:s.n]
	if s.mode == scanKeyText {
		s.mode, s.node = scanColon, nil
		if s.truncated {
			return
		}
		keys := s.frames[s.top-1].node.keys
		if bytes.IndexByte(raw, '\\') < 0 {
			s.node = keys[string(raw)]
		} else {
			s.node = keys[plainText(raw)]
		}
		return
	}
	s.node.set(&s.facts, plainText(raw))
	s.ended()
}

// plainText undoes escapes as encoding/json does: what is broken becomes
// U+FFFD. A text that was cut loses the character it was cut in.
func plainText(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return strings.ToValidUTF8(trimCut(raw), "\uFFFD")
	}
	out := make([]byte, 0, len(raw))
	for len(raw) > 0 {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			out = append(out, trimCut(raw)...)
			break
		}
		out = append(out, raw[:i]...)
		raw = raw[i:]
		c, n, ok := unescape(raw)
		if !ok {
			if len(raw) < 6 { // cut within the escape
				break
			}
			if c, n = utf8.RuneError, 6; raw[1] != 'u' {
				n = 2
			}
		}
		out = utf8.AppendRune(out, c)
		raw = raw[n:]
	}
	return strings.ToValidUTF8(string(out), "\uFFFD")
}

func trimCut(raw []byte) string {
	if len(raw) < maxText-12 {
		return string(raw)
	}
	for i := 1; i <= utf8.UTFMax && i <= len(raw); i++ {
		if b := raw[len(raw)-i:]; utf8.RuneStart(b[0]) {
			if !utf8.FullRune(b) {
				return string(raw[:len(raw)-i])
			}
			break
		}
	}
	return string(raw)
}

// word takes a number, true, false or null; the byte behind it is not taken.
func (s *Scanner) word(p []byte, i int) int {
	for i < len(p) {
		c := p[i]
		if c == '-' || c == '+' || c == '.' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' {
			if s.n <= maxNumeral { // one more than a numeral of use has
				s.buf[s.n] = c
				s.n++
			}
			i++
			continue
		}
		word := string(s.buf[:s.n])
		if n := s.node; n != nil && n.set != nil && word != "null" && len(word) <= maxNumeral {
			n.set(&s.facts, word)
		}
		s.ended()
		return i
	}
	return i
}
