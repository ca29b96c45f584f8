package policy

import (
	"reflect"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

func TestReadDecision(t *testing.T) {
	d, err := readDecision(ast.MustParseTerm(`{"allow": true, "reasons": {{"code": "b", "message": "B"}, {"code": "a", "message": "A"}},
		"limits": {"maximum_bytes_billed": 9223372036854775807}, "labels": {"a_b-1": "", "über": "x-1"}, "credential": "c.d", "retention": "r"}`).Value)
	want := &Decision{
		Allow: true, Reasons: []Reason{{"a", "A"}, {"b", "B"}}, Limits: Limits{MaximumBytesBilled: 9223372036854775807},
		Labels: map[string]string{"a_b-1": "", "über": "x-1"}, Credential: "c.d", Retention: "r",
	}
	if err != nil || !reflect.DeepEqual(d, want) {
		t.Fatalf("%+v, %v", d, err)
	}

	sound := map[string]string{"allow": "true", "reasons": "[]", "limits": `{"maximum_bytes_billed": 0}`, "labels": "{}"}
	text := func(m map[string]string) string {
		var parts []string
		for k, v := range m {
			parts = append(parts, `"`+k+`": `+v)
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	bytes := func(n string) map[string]string {
		return map[string]string{"limits": `{"maximum_bytes_billed": ` + n + `}`}
	}
	for _, ok := range []map[string]string{
		bytes("1e10"), bytes("10.0"), bytes("9007199254740993"),
		{"credential": `""`}, {"reasons": `[{"code": "a1_b", "message": "é"}]`},
	} {
		if _, err := readDecision(ast.MustParseTerm(text(copyOf(sound, ok))).Value); err != nil {
			t.Errorf("%v: %v", ok, err)
		}
	}
	long := strings.Repeat("a", 64)
	for _, bad := range []map[string]string{
		{"allow": "1"}, {"allow": `"true"`}, {"allow": "null"}, {"allow": "false"}, {"other": "1"}, {"Allow": "true"},
		{"reasons": `"x"`}, {"reasons": "{}"}, {"reasons": `["x"]`}, {"reasons": `[{"code": "a"}]`}, {"reasons": `[{"message": "a"}]`},
		{"reasons": `[{"code": "a", "message": "b", "more": 1}]`}, {"reasons": `[{"code": "A", "message": "b"}]`}, {"reasons": `[{"code": "", "message": "b"}]`},
		{"reasons": `[{"code": "a", "message": ""}]`}, {"reasons": `[{"code": "a", "message": 1}]`}, {"reasons": `[{"code": "a", "message": "x\ny"}]`},
		{"reasons": `[{"code": "a", "message": "` + strings.Repeat("x", maxMessage+1) + `"}]`},
		{"reasons": "[" + strings.TrimSuffix(strings.Repeat(`{"code": "a", "message": "b"},`, maxReasons+1), ",") + "]"},
		{"limits": "{}"}, {"limits": "7"}, {"limits": `{"maximum_bytes_billed": 0, "rows": 1}`},
		bytes("-1"), bytes("1.5"), bytes("0.5"), bytes(`"1"`), bytes("9223372036854775808"), bytes("1e19"), bytes("null"),
		{"labels": "[]"}, {"labels": `{"A": "x"}`}, {"labels": `{"": "x"}`}, {"labels": `{"1a": "x"}`}, {"labels": `{"a": "X"}`}, {"labels": `{"a": 1}`},
		{"labels": `{"a": "x y"}`}, {"labels": `{"` + long + `": "x"}`}, {"labels": `{"a": "` + long + `"}`}, {"labels": `{1: "x"}`},
		{"credential": "1"}, {"credential": `"a b"`}, {"credential": `"` + long + `a"`}, {"retention": `"` + long + `"`}, {"retention": "null"}, {"owner": "7"}, {"owner": `""`}, {"owner": `"a\nb"`}, {"credential": `"../x"`},
	} {
		if d, err := readDecision(ast.MustParseTerm(text(copyOf(sound, bad))).Value); err == nil {
			t.Errorf("%v: no error: %+v", bad, d)
		}
	}
	for field := range sound {
		m := copyOf(sound, nil)
		delete(m, field)
		if _, err := readDecision(ast.MustParseTerm(text(m)).Value); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("without %s: %v", field, err)
		}
	}
	for _, v := range []string{"true", "null", `"x"`, "[]"} {
		if _, err := readDecision(ast.MustParseTerm(v).Value); err == nil {
			t.Errorf("%s: no error", v)
		}
	}
	// The parser takes no such numbers; data and builtins may hold them.
	for _, n := range []ast.Number{"1e999999999", "1e-999999999", "NaN", "", "0x1p4"} {
		if i, err := readInteger("n", n); err == nil && i != 0 {
			t.Errorf("%q gives %d", n, i)
		}
	}
}
