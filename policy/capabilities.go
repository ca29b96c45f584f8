package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// offered lists the builtins that a policy may call. It is a list of what is
// offered, not of what is forbidden: a builtin that a later OPA brings is not
// there until somebody has looked at it. Left out are those that reach outside
// (http.send, net.*, opa.runtime), that can load a schema from a URL
// (json.match_schema, json.verify_schema, graphql.*), that give another answer
// each time (time.now_ns, rand.intn, uuid.rfc4122: the time stands in the
// input), that handle keys and tokens (io.jwt.*, crypto.parse_private_keys,
// providers.aws.*; no token is in the input), and those whose cost or memory a
// deadline does not bound (graph.*, bits.lsh, net.cidr_expand).
var offered = []string{
	// operators and what the compiler writes
	"and", "assign", "div", "eq", "equal", "gt", "gte", "internal.member_2", "internal.member_3",
	"internal.print", "internal.template_string", "lt", "lte", "minus", "mul", "neq", "or", "plus", "print", "rem",
	// numbers
	"abs", "ceil", "floor", "numbers.range", "numbers.range_step", "round", "format_int", "to_number",
	"units.parse", "units.parse_bytes",
	// collections
	"all", "any", "array.concat", "array.flatten", "array.reverse", "array.slice", "count", "intersection", "max", "min",
	"object.filter", "object.get", "object.keys", "object.remove", "object.subset", "object.union", "object.union_n",
	"json.filter", "json.patch", "json.remove", "product", "sort", "sum", "union", "walk",
	// strings
	"concat", "contains", "endswith", "indexof", "indexof_n", "lower", "replace", "split", "sprintf", "startswith",
	"strings.any_prefix_match", "strings.any_suffix_match", "strings.count", "strings.replace_n", "strings.reverse",
	"strings.split_n", "substring", "trim", "trim_left", "trim_prefix", "trim_right", "trim_space", "trim_suffix", "upper",
	"glob.match", "glob.quote_meta", "regex.find_all_string_submatch_n", "regex.find_n", "regex.is_valid", "regex.match",
	"regex.replace", "regex.split", "semver.compare", "semver.is_valid",
	// encodings and digests
	"base64.decode", "base64.encode", "base64.is_valid", "base64url.decode", "base64url.encode", "base64url.encode_no_pad",
	"hex.decode", "hex.encode", "json.is_valid", "json.marshal", "json.unmarshal", "urlquery.decode", "urlquery.encode",
	"crypto.sha256", "uuid.parse",
	// types
	"is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string", "type_name",
	// time, of a moment that is given
	"time.add_date", "time.clock", "time.date", "time.diff", "time.format", "time.parse_duration_ns", "time.parse_ns",
	"time.parse_rfc3339_ns", "time.weekday",
	// a rule's own metadata
	"rego.metadata.chain", "rego.metadata.rule",
}

// capabilities returns what policies are compiled with.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool {
		return !slices.Contains(offered, b.Name)
	})
	c.AllowNet = []string{}
	return c
}
