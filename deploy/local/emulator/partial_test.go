package emulator

import (
	"net/http"
	"testing"
)

func TestFields(t *testing.T) {
	const whole = `{"a":1,"b":{"c":[{"d":12345678901234567890,"e":"x"},{"d":2}],"f":null},"g":"h"}`
	for _, c := range []struct{ fields, want string }{
		{"a", `{"a":1}`},
		{"a,g", `{"a":1,"g":"h"}`},
		{"b/c/d", `{"b":{"c":[{"d":12345678901234567890},{"d":2}]}}`},
		{"b(c(e),f)", `{"b":{"c":[{"e":"x"},{}],"f":null}}`},
		{"b/f,b/c(d)", `{"b":{"c":[{"d":12345678901234567890},{"d":2}],"f":null}}`},
		{"b", `{"b":{"c":[{"d":12345678901234567890,"e":"x"},{"d":2}],"f":null}}`},
		{"b(*)", `{"b":{"c":[{"d":12345678901234567890,"e":"x"},{"d":2}],"f":null}}`},
		{"nothing", `{}`},
	} {
		r := captured{status: http.StatusOK}
		r.body.WriteString(whole)
		r.filter(c.fields)
		if got := r.body.String(); got != c.want || r.status != http.StatusOK {
			t.Errorf("%s: %d %s, want %s", c.fields, r.status, got, c.want)
		}
	}
	for _, fields := range []string{",", "a,", "a(", "a)", "a(b", "a/", "a(b))", "a()"} {
		r := captured{status: http.StatusOK}
		r.body.WriteString(whole)
		if r.filter(fields); r.status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", fields, r.status, r.body.String())
		}
	}
}
