package emulator

import (
	_ "embed"
	"net/http"
	"strings"
)

// discoveryText is the shape of the REST API without its prose: methods,
// paths and parameters, as the bq program needs them. A test makes it from the
// document in the Go module google.golang.org/api (-update) and holds it to
// that.
//
//go:embed discovery.json
var discoveryText string

// discoveryHost stands for the host in discoveryText.
const discoveryHost = "https://bigquery.invalid"

func (d *Double) discovery(w http.ResponseWriter, r *http.Request) {
	writeBody(w, http.StatusOK, []byte(strings.ReplaceAll(discoveryText, discoveryHost, d.publicURL(r))))
}
