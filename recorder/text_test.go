package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü 日本":            "plain äöü 日本",
		"a\x1b[2J":                `a\x1b[2J`,
		"a\nb\tc\rd":              `a\nb\tc\rd`,
		"\x7f\u009b":              `\x7f\x9b`,
		"\u202eabc\u2066\ufeff":   `\u{202e}abc\u{2066}\u{feff}`,
		"bad \xff\xfe utf8":       `bad \xff\xfe utf8`,
		"the replacement \ufffd":  "the replacement \ufffd",
		"line\u2028sep\U000e0041": `line\u{2028}sep\u{e0041}`,
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
	if got, want := lines("a\r\nb\x1b\n\tc\n", "  "), "  a\n  b\\x1b\n  \tc"; got != want {
		t.Errorf("lines: %q, want %q", got, want)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("SELECT 1")
	f.Add("\x1b]0;x\x07\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if got := oneLine(s); !utf8.ValidString(got) || strings.ContainsFunc(got, unsafe) {
			t.Errorf("oneLine(%q) = %q", s, got)
		}
		// JSON reads back as the same text, and holds nothing unsafe.
		var b strings.Builder
		if err := writeJSON(&b, s, ""); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(strings.TrimSuffix(b.String(), "\n"), unsafe) {
			t.Errorf("JSON of %q is %q", s, b.String())
		}
		var back string
		if err := json.Unmarshal([]byte(b.String()), &back); err != nil || utf8.ValidString(s) && back != s {
			t.Errorf("%q came back as %q, %v", s, back, err)
		}
	})
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{
		"2026-03-14T09:00:00Z":      "2026-03-14T09:00:00Z",
		"2026-03-14T09:00:00+02:00": "2026-03-14T07:00:00Z",
		"2026-03-14 09:30":          "2026-03-14T09:30:00Z",
		"2026-03-14":                "2026-03-14T00:00:00Z",
		"now":                       "2026-03-14T12:00:00Z",
		"2h":                        "2026-03-14T10:00:00Z",
		"3d ago":                    "2026-03-11T12:00:00Z",
		" 1w ":                      "2026-03-07T12:00:00Z",
		"1h30m":                     "2026-03-14T10:30:00Z",
		"1d 2h ago":                 "2026-03-13T10:00:00Z",
		"0s":                        "2026-03-14T12:00:00Z",
	} {
		if got, err := parseTime(in, now); err != nil || moment(got) != want {
			t.Errorf("%q: %s, %v, want %s", in, moment(got), err, want)
		}
	}
	for _, in := range []string{"", "ago", "h", "2", "2x", "-2h", "2h ago ago", "99999999999999999999h", "999999999w", "yesterday", "2026-13-01", "2026-03-14T25:00:00Z", "1.5h"} {
		if got, err := parseTime(in, now); err == nil {
			t.Errorf("%q: %s, want an error", in, got)
		} else if !strings.Contains(err.Error(), "RFC 3339") {
			t.Errorf("%q: %v does not say what to write", in, err)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	f.Add("2026-03-14T09:00:00Z")
	f.Add("1w2d 3h ago")
	now := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTime(s, now)
		if err == nil && got.Location() != time.UTC {
			t.Errorf("%q: not UTC", s)
		}
		if d, ok := span(s); ok && (d < 0 || d > mostAgo) {
			t.Errorf("span(%q) = %v", s, d)
		}
	})
}

func TestSuggest(t *testing.T) {
	for word, want := range map[string]string{"serch": "search", "verfy": "verify", "princpal": "principal", "since": "since", "prin": "principal", "xyzzy": ""} {
		got := suggest(word, []string{"search", "verify", "principal", "since"}, "--", "else")
		if want == "" && got != "else" || want != "" && !strings.Contains(got, "--"+want+"?") {
			t.Errorf("suggest(%q) = %q", word, got)
		}
	}
}

func TestTableFits(t *testing.T) {
	head := tableHead()
	if at := strings.Index(head, "RESULT"); at+len("interrupted") > 100 {
		t.Errorf("the table is %d wide", at+len("interrupted"))
	}
}
