package emulator

import (
	"bytes"
	"encoding/json"
	"testing"
)

func FuzzSynthetic(f *testing.F) {
	f.Add("SELECT /*verbatim:bytes=2048*/ 1")
	f.Add("/*verbatim:bytes=9223372036854775807,delay=1ms*/")
	f.Add("/*verbatim:bytes=*/")
	f.Add("/*verbatim:,=,*/")
	f.Fuzz(func(t *testing.T, sql string) {
		s, ok, err := parseSynthetic(sql)
		if err != nil || !ok {
			return
		}
		doc := plan(s.bytes, queryResponse, "p", "j")
		if doc.last < 0 || doc.rows < 0 || doc.total < s.bytes {
			t.Fatalf("%d bytes: %+v", s.bytes, doc)
		}
		if s.bytes < 1<<20 {
			var b bytes.Buffer
			if err := doc.write(&b); err != nil || int64(b.Len()) != doc.total || !json.Valid(b.Bytes()) {
				t.Fatalf("%d bytes: wrote %d of %d, %v", s.bytes, b.Len(), doc.total, err)
			}
		}
	})
}
