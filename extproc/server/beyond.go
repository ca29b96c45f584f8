package server

import (
	"fmt"
	"net/http"
	"strings"

	"verbatim.dev/extproc/bigquery"
)

// harmless are the connection properties that change neither what a query
// reads nor whose rights it has
// (https://cloud.google.com/bigquery/docs/reference/rest/v2/ConnectionProperty).
var harmless = map[string]bool{"time_zone": true, "query_label": true}

// leftovers are options of the Node client's own that it leaves in a job's
// query (createQueryJob in @google-cloud/bigquery 8): BigQuery has no such
// fields and ignores them.
var leftovers = map[string]bool{
	"configuration.query.autoPaginate": true, "configuration.query.formatOptions": true, "configuration.query.jobTimeoutMs": true,
	"configuration.query.maxResults": true, "configuration.query.params": true, "configuration.query.parseJSON": true,
	"configuration.query.skipParsing": true, "configuration.query.timeoutMs": true, "configuration.query.types": true,
	"configuration.query.wrapIntegers": true,
}

// unknown returns the fields that neither BigQuery nor a client is known to
// use.
func unknown(f *bigquery.Facts) []string {
	var out []string
	for _, name := range f.Unknown {
		if !leftovers[name] {
			out = append(out, name)
		}
	}
	return out
}

// beyond refuses what a body asks for that the rules do not see yet, and what
// this gateway does not know at all: it would go upstream unjudged.
func beyond(f *bigquery.Facts) *refusal {
	deny := func(code, message string) *refusal {
		return &refusal{status: http.StatusForbidden, reason: bigquery.ReasonAccessDenied, code: code, by: "body", message: message}
	}
	for _, p := range f.ConnectionProperties {
		// Whose a session is, is checked elsewhere.
		if !harmless[p.Key] && p.Key != "session_id" {
			return deny("connection_property", fmt.Sprintf("The connection property %q is not open through this gateway: it can change what a query reads or as whom it runs. Leave it out.", p.Key))
		}
	}
	switch {
	case f.Continuous:
		return deny("continuous_query", "Continuous queries are not open through this gateway: they write for as long as they run. Use a job that ends.")
	case len(f.FunctionURIs) > 0 || len(f.FunctionCode) > 0:
		return deny("function_resource", "userDefinedFunctionResources are not open through this gateway: they belong to legacy SQL. Declare the function in the SQL.")
	case f.TemplateSuffix != "":
		return deny("template_suffix", "templateSuffix is not open through this gateway: rows would go to another table than the one that was judged. Name the table itself.")
	case len(unknown(f)) > 0:
		return &refusal{status: http.StatusBadRequest, reason: bigquery.ReasonInvalid, code: "field_unknown", by: "body",
			message: fmt.Sprintf("The body has fields that the gateway does not know, and what it cannot understand it does not pass on: %s. Leave them out, or ask for a newer gateway.", strings.Join(unknown(f), ", "))}
	}
	return nil
}
