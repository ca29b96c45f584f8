package record

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MaxClasses is how many retention classes the records between two cuts can
// have.
const MaxClasses = 64

// CheckClass reports whether a retention class has a name: 1 to [MaxClass] of
// A-Z, a-z, 0-9 and "_ -", beginning with a letter or digit.
func CheckClass(class string) error {
	if class == "" || len(class) > MaxClass {
		return fmt.Errorf("retention class of %d bytes: want 1 to %d", len(class), MaxClass)
	}
	for i := range len(class) {
		c := class[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '_' && c != '-') {
			return fmt.Errorf("retention class %q: %q is not allowed at place %d (want letters, digits, and later also _ -)", class, c, i)
		}
	}
	return nil
}

// Latest is the latest expiry of some records. The zero value is that of none.
// Values can be compared.
type Latest struct {
	some, never bool
	at          int64 // Unix seconds
}

// Add takes a record into account; the zero time never comes.
func (l *Latest) Add(expiry time.Time) {
	l.some = true
	switch {
	case expiry.IsZero():
		l.never, l.at = true, 0
	case !l.never:
		l.at = max(l.at, expiry.Unix())
	}
}

// Merge takes the records of another into account.
func (l *Latest) Merge(m Latest) {
	if m.some {
		l.Add(m.Time())
	}
}

// Passed reports whether all of the records have expired.
func (l Latest) Passed(now time.Time) bool {
	return !l.some || !l.never && !now.Before(l.Time())
}

// Time returns the expiry, zero where one of the records never expires, or
// there are none.
func (l Latest) Time() time.Time {
	if !l.some || l.never {
		return time.Time{}
	}
	return time.Unix(l.at, 0).UTC()
}

// String returns "none", "never", or the time.
func (l Latest) String() string {
	switch {
	case !l.some:
		return "none"
	case l.never:
		return "never"
	}
	return l.Time().Format(time.RFC3339)
}

// ParseLatest reads what String wrote.
func ParseLatest(text string) (Latest, error) {
	switch text {
	case "none":
		return Latest{}, nil
	case "never":
		return Latest{some: true, never: true}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	l := Latest{some: true, at: t.Unix()}
	if err != nil || l.String() != text {
		return Latest{}, fmt.Errorf("expiry %.40q: want a time in UTC to the second, never, or none", text)
	}
	return l, nil
}

// Retained says when records expire: those since the last cut by their class,
// all before them together. A checkpoint states it, so that what is gone can be
// told from what is missing: a class of a segment by the segment's cut
// checkpoint, a segment by any checkpoint that comes later.
type Retained struct {
	Before  Latest
	Classes []ClassRetained // by name, each with records
}

// ClassRetained are the records of one class.
type ClassRetained struct {
	Class   string
	Records uint64
	Expiry  Latest
}

// Add takes a record since the last cut into account.
func (r *Retained) Add(class string, expiry time.Time) {
	i := 0
	for i < len(r.Classes) && r.Classes[i].Class < class {
		i++
	}
	if i == len(r.Classes) || r.Classes[i].Class != class {
		r.Classes = slices.Insert(r.Classes, i, ClassRetained{Class: class})
	}
	c := &r.Classes[i]
	c.Records++
	c.Expiry.Add(expiry)
}

// Merge adds the records of another span. Before stays.
func (r *Retained) Merge(o *Retained) {
	for _, c := range o.Classes {
		i, ok := slices.BinarySearchFunc(r.Classes, c.Class, func(c ClassRetained, name string) int { return strings.Compare(c.Class, name) })
		if !ok {
			r.Classes = slices.Insert(r.Classes, i, c)
			continue
		}
		r.Classes[i].Records += c.Records
		r.Classes[i].Expiry.Merge(c.Expiry)
	}
}

// Cut begins another span.
func (r *Retained) Cut() { *r = Retained{Before: r.Latest(), Classes: r.Classes[:0]} }

// Clone returns a copy that shares nothing.
func (r *Retained) Clone() *Retained {
	return &Retained{r.Before, slices.Clone(r.Classes)}
}

// Latest is the latest expiry of all records.
func (r *Retained) Latest() Latest {
	l := r.Before
	l.Merge(r.Span())
	return l
}

// Span is the latest expiry of the records since the last cut.
func (r *Retained) Span() Latest {
	var l Latest
	for _, c := range r.Classes {
		l.Merge(c.Expiry)
	}
	return l
}

// Records counts those since the last cut.
func (r *Retained) Records() uint64 {
	n := uint64(0)
	for _, c := range r.Classes {
		n += c.Records
	}
	return n
}

// Class returns what is said of a class.
func (r *Retained) Class(name string) (ClassRetained, bool) {
	for _, c := range r.Classes {
		if c.Class == name {
			return c, true
		}
	}
	return ClassRetained{}, false
}

// Equal reports whether both say the same.
func (r *Retained) Equal(o *Retained) bool {
	return r.Before == o.Before && slices.Equal(r.Classes, o.Classes)
}

// check refuses what text could not be read back from.
func (r *Retained) check() error {
	if len(r.Classes) > MaxClasses {
		return fmt.Errorf("%d retention classes since the last cut, at most %d have room", len(r.Classes), MaxClasses)
	}
	for i, c := range r.Classes {
		if err := CheckClass(c.Class); err != nil {
			return err
		}
		if c.Records == 0 || !c.Expiry.some || i > 0 && c.Class <= r.Classes[i-1].Class {
			return fmt.Errorf("retention class %s has no records, or is out of order", c.Class)
		}
	}
	return nil
}

func (r *Retained) append(b []byte) []byte {
	b = append(append(append(b, "before "...), r.Before.String()...), '\n')
	for _, c := range r.Classes {
		b = append(append(b, "class "...), c.Class...)
		b = strconv.AppendUint(append(b, ' '), c.Records, 10)
		b = append(append(append(b, ' '), c.Expiry.String()...), '\n')
	}
	return b
}

// parseRetained reads the lines that append wrote.
func parseRetained(lines []string) (*Retained, error) {
	r := &Retained{}
	before, ok := strings.CutPrefix(lines[0], "before ")
	if !ok {
		return nil, fmt.Errorf("line %.40q: want when the records before expire", lines[0])
	}
	var err error
	if r.Before, err = ParseLatest(before); err != nil {
		return nil, err
	}
	if len(lines)-1 > MaxClasses {
		return nil, fmt.Errorf("%d retention classes, at most %d are read", len(lines)-1, MaxClasses)
	}
	for _, line := range lines[1:] {
		f := strings.Split(line, " ")
		if len(f) != 4 || f[0] != "class" {
			return nil, fmt.Errorf("line %.80q: want a retention class, its records and when they expire", line)
		}
		c := ClassRetained{Class: f[1]}
		if c.Records, err = strconv.ParseUint(f[2], 10, 64); err != nil {
			return nil, fmt.Errorf("class %.40q: %.30q is no number", f[1], f[2])
		}
		if c.Expiry, err = ParseLatest(f[3]); err != nil {
			return nil, err
		}
		r.Classes = append(r.Classes, c)
	}
	return r, r.check()
}
