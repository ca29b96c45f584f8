package policy

import (
	"encoding/json"
	"time"
)

// InputVersion is the version of the input that this package builds.
const InputVersion = 1

// Input is what a policy decides over. Every field is described in README.md
// and in input.schema.json. The policy sees empty fields as empty strings,
// arrays and objects; only SQL is left out where there is none.
type Input struct {
	Time       time.Time
	Caller     Caller
	Provenance Provenance
	Asserted   Asserted
	Connection Connection
	Request    Request
	SQL        *SQL
}

// Caller is the verified identity.
type Caller struct {
	Issuer     string // the issuer's name in the gateway's configuration
	IssuerURL  string
	Subject    string
	Email      string
	Groups     []string // qualified by the issuer's name, "corp/security"
	OnBehalfOf []Actor  // verified act chain, outermost first
}

// Actor is one member of an act chain (RFC 8693, section 4.1).
type Actor struct {
	Issuer  string
	Subject string
}

// Provenance is what verified claims prove of where the call comes from.
type Provenance struct {
	Profile        string
	Pipeline       string
	Repository     string
	Ref            string
	Commit         string
	Workflow       string
	Run            string
	Actor          string
	Environment    string
	Namespace      string
	Pod            string
	ServiceAccount string
	SPIFFE         string // spiffe_id
}

// Asserted is what the client says of itself. Nobody verified it: a policy
// must not allow by it.
type Asserted struct {
	UserAgent     string
	Labels        map[string]string
	RequestReason string
	Agent         string
	Model         string
	Conversation  string
	ToolCall      string
}

// Connection is the BigQuery that the request is for.
type Connection struct {
	Name      string
	Location  string
	Recording string // full or metadata
	Retention string // retention class
}

// The kinds of a request.
const (
	KindQuery    = "query"
	KindRead     = "read"
	KindWrite    = "write"
	KindMetadata = "metadata"
	KindJob      = "job"
	KindUpload   = "upload"
	KindOther    = "other"
)

// Request is what the call means.
type Request struct {
	Method     string // as Google documents it, "bigquery.jobs.query"; empty for an unknown route
	Kind       string // one of the Kind constants
	HTTPMethod string
	Path       string // without the query string
	Project    string
	Dataset    string
	Table      string
	Job        string
	DryRun     bool
	JobType    string // query, load, copy, extract or empty
	// Destination is the table that a query, load or copy job writes as its
	// body says (destinationTable), "PROJECT.DATASET.TABLE"; empty for none.
	// A SELECT with a destination is a write.
	Destination string
	// DefaultDataset is the body's defaultDataset, "PROJECT.DATASET" or "DATASET".
	DefaultDataset string
	// ExternalTables is true when the body defines external tables of its own
	// (tableDefinitions).
	ExternalTables bool
}

// SQL is the statement text of a query.
type SQL struct {
	Text       string
	Legacy     bool            // useLegacySql is true, or the caller left it to its default of true
	Parameters json.RawMessage // the request's queryParameters as they came; nil for none
}
