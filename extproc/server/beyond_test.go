package server

import (
	"testing"

	"verbatim.dev/extproc/bigquery"
)

func TestBeyond(t *testing.T) {
	property := func(key string) bigquery.Facts {
		return bigquery.Facts{ConnectionProperties: []bigquery.Property{{Key: key, Value: "x"}}}
	}
	for _, c := range []struct {
		name  string
		facts bigquery.Facts
		code  string
	}{
		{"a plain query", bigquery.Facts{SQL: "SELECT 1"}, ""},
		{"time zone", property("time_zone"), ""},
		{"label", property("query_label"), ""},
		{"session, refused elsewhere", property("session_id"), ""},
		{"another project's names", property("dataset_project_id"), "connection_property"},
		{"another identity", property("service_account"), "connection_property"},
		{"case", property("Time_Zone"), "connection_property"},
		{"continuous", bigquery.Facts{Continuous: true}, "continuous_query"},
		{"function in Cloud Storage", bigquery.Facts{FunctionURIs: []string{"gs://b/f.js"}}, "function_resource"},
		{"function inline", bigquery.Facts{FunctionCode: []string{"x"}}, "function_resource"},
		{"template", bigquery.Facts{TemplateSuffix: "_x"}, "template_suffix"},
		{"Node's own", bigquery.Facts{Unknown: []string{"configuration.query.types"}}, ""},
		{"unknown beside Node's own", bigquery.Facts{Unknown: []string{"configuration.query.types", "configuration.query.newThing"}}, "field_unknown"},
		{"unknown", bigquery.Facts{Unknown: []string{"configuration.query.newThing"}}, "field_unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			if r := beyond(&c.facts); r != nil {
				got = r.code
			}
			if got != c.code {
				t.Errorf("got %q, want %q", got, c.code)
			}
		})
	}
}
