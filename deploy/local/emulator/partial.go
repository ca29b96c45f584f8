package emulator

import (
	"maps"
	"net/http"
	"strings"
)

// synthetic reports whether a job is one whose result streams: it is too large
// to be held and filtered.
func (d *Double) synthetic(id string) bool {
	j := d.knownJob(id)
	return j != nil && j.synthetic != nil
}

// filter leaves of a JSON body what the parameter fields asks for: the emulator
// answers whole, BigQuery does not, and leaves out jobReference, schema and
// whatever else was not asked for. The syntax is that of
// https://cloud.google.com/bigquery/docs/api-performance#partial-response.
func (c *captured) filter(fields string) {
	v, err := decode(c.body.Bytes())
	if err != nil || c.status != http.StatusOK {
		return
	}
	want, rest, ok := parseFields(fields)
	if !ok || rest != "" {
		*c = captured{}
		writeError(c, http.StatusBadRequest, "invalidParameter", "Invalid field selection "+fields)
		return
	}
	c.encode(want.of(v))
}

// mask is what is wanted of an object; nil is all of it.
type mask map[string]mask

func (m mask) of(v any) any {
	if _, all := m["*"]; all || m == nil {
		return v
	}
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = m.of(v[i])
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if sub, ok := m[k]; ok {
				out[k] = sub.of(e)
			}
		}
		return out
	}
	return v
}

// parseFields reads "a,b(c,d),e/f" and returns what follows it.
func parseFields(s string) (m mask, rest string, ok bool) {
	m = mask{}
	for {
		name, sub, rest, ok := parseField(s)
		if !ok {
			return nil, rest, false
		}
		if have, twice := m[name]; twice && have != nil && sub != nil { // a/b,a/c
			maps.Copy(have, sub)
			sub = have
		}
		m[name] = sub
		if !strings.HasPrefix(rest, ",") {
			return m, rest, true
		}
		s = rest[1:]
	}
}

func parseField(s string) (name string, sub mask, rest string, ok bool) {
	end := strings.IndexAny(s, ",()/")
	if end < 0 {
		end = len(s)
	}
	name, rest = s[:end], s[end:]
	switch {
	case name == "":
		return "", nil, rest, false
	case strings.HasPrefix(rest, "/"):
		below, sub, rest, ok := parseField(rest[1:])
		return name, mask{below: sub}, rest, ok
	case strings.HasPrefix(rest, "("):
		sub, rest, ok := parseFields(rest[1:])
		rest, closed := strings.CutPrefix(rest, ")")
		return name, sub, rest, ok && closed
	}
	return name, nil, rest, true
}
