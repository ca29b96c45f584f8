package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"verbatim.dev/extproc/bigquery"
)

// discovery answers with BigQuery's discovery document in which every address
// is the gateway's: a client that builds itself from it (bq) would send its token
// to Google otherwise. Addresses that the gateway does not serve are left out.
func (g *Gate) discovery(ctx context.Context, p *plan, probe prober) *refusal {
	fail := func(status int) *refusal {
		g.Logger.Warn("no discovery document", "status", status)
		return &refusal{status: http.StatusBadGateway, reason: bigquery.ReasonBackendError, code: "discovery_unreadable", by: "upstream",
			message: "BigQuery gave no discovery document that the gateway can read. Try again later."}
	}
	status, body, err := probe(ctx, "discovery document", http.MethodGet, p.path, nil)
	if err != nil || status != http.StatusOK {
		return fail(status)
	}
	var doc map[string]json.RawMessage
	if json.Unmarshal(body, &doc) != nil || doc["resources"] == nil {
		return fail(status)
	}
	base := strings.TrimSuffix(p.request.base(), "/") + "/"
	for key, value := range map[string]string{"rootUrl": base, "baseUrl": base + "bigquery/v2/", "basePath": "/bigquery/v2/", "servicePath": "bigquery/v2/"} {
		if doc[key], err = json.Marshal(value); err != nil {
			return fail(status)
		}
	}
	for _, key := range []string{"mtlsRootUrl", "batchPath", "endpoints"} {
		delete(doc, key)
	}
	if body, err = json.Marshal(doc); err != nil {
		return fail(status)
	}
	p.answer = &answer{body: body}
	return nil
}
