package bigquery

// Kind says what a call does, coarsely, for policy.
type Kind string

// The kinds of calls.
const (
	KindQuery    Kind = "query"    // runs SQL, or returns its rows
	KindRead     Kind = "read"     // returns rows of a table
	KindWrite    Kind = "write"    // changes data, schema or code
	KindMetadata Kind = "metadata" // returns names, schemas, texts
	KindJob      Kind = "job"      // makes or handles a job; its body says which
	KindUpload   Kind = "upload"   // brings rows in
	KindOther    Kind = "other"
)

// Carries says what the request's body holds.
type Carries string

// The forms of bodies.
const (
	CarriesNone      Carries = "none"
	CarriesJSON      Carries = "json"
	CarriesMultipart Carries = "multipart" // first part JSON, the rest streams
	CarriesStream    Carries = "stream"    // bytes of an upload
	CarriesForm      Carries = "form"      // a form with a credential in it
	CarriesGRPC      Carries = "grpc"      // one message of the Storage Read API
)

// Stance says what happens to a call before any policy is asked.
type Stance string

// The stances.
const (
	// Allow leaves the call to policy.
	Allow Stance = "allow"
	// Deny refuses the call, whatever policy says.
	Deny Stance = "deny"
	// Local is a call to the gateway itself, which it answers.
	Local Stance = "local"
)

// The methods of the gateway's own.
const (
	MethodToken    = "verbatim.token"         // exchanges a token (RFC 8693)
	MethodStream   = "mcp.stream"             // a client of the Model Context Protocol wants a stream, or ends one
	MethodWhoami   = "verbatim.whoami"        // tells a caller who it is
	MethodExchange = "verbatim.exchanges.get" // tells a caller what became of a request of its own
)

// Route is one row of the table.
type Route struct {
	ID      string // as Google's discovery document names the method
	HTTP    string // method, "*" for every one
	Path    string // template of the canonical path; {rest...} stands for any rest
	Kind    Kind
	Carries Carries
	Stance  Stance
	Reason  string   // of a Deny, the end of a sentence that begins with the ID
	Params  []string // query parameters, beside the common ones
}

const (
	apiPrefix       = "/bigquery/v2"
	uploadPrefix    = "/upload/bigquery/v2"
	resumablePrefix = "/resumable/upload/bigquery/v2"

	pathProject  = apiPrefix + "/projects/{project}"
	pathDatasets = pathProject + "/datasets"
	pathDataset  = pathDatasets + "/{dataset}"
	pathModels   = pathDataset + "/models"
	pathModel    = pathModels + "/{model}"
	pathRoutines = pathDataset + "/routines"
	pathRoutine  = pathRoutines + "/{routine}"
	pathTables   = pathDataset + "/tables"
	pathTable    = pathTables + "/{table}"
	pathRows     = pathTable + "/rowAccessPolicies"
	pathRow      = pathRows + "/{policy}"
	pathJobs     = pathProject + "/jobs"
	pathJob      = pathJobs + "/{job}"
)

const (
	denyGrants       = "changes who may read; grants are made by people, outside the gateway"
	denyGrantsShown  = "shows or filters by grants, which agents do not need"
	denyStorageRead  = "the gateway does not know this method of the Storage Read API"
	denyStorageWrite = "the Storage Write API carries rows that the gateway cannot record yet; use a load job or insertAll"
	denyGRPC         = "the gRPC form of the v2 API is not served; use the REST form"
	denyPreview      = "preview versions of the Storage API are not served"
	denyToken        = "the token endpoint of this gateway is /sts/v1/token"
	denyNeighbour    = "a neighbour of BigQuery, which can run SQL later or elsewhere; only BigQuery v2 is served"
)

// Parameters that many methods share.
var (
	paramsPaging  = []string{"maxResults", "pageToken"}
	paramsLocated = []string{"location", "projection"} // Python's client sends projection=full here too
	paramsUpload  = []string{"uploadType", "upload_id", UploadProofParam}
	paramsResults = []string{"formatOptions.timestampOutputFormat", "formatOptions.useInt64Timestamp", "maxResults", "pageToken", "startIndex"}
)

// UploadProofParam is the gateway's own parameter in the address of an upload:
// whose it is and where it goes. It never goes upstream.
const UploadProofParam = "verbatim_upload"

// commonParams go with every call.
var commonParams = []string{"$.xgafv", "alt", "fields", "prettyPrint", "quotaUser"}

// droppedParams are taken and never go upstream: who pays and whose quota
// counts is the gateway's, and Node's client lets two options of its paginator
// slip into the query.
var droppedParams = map[string]bool{"quotaUser": true, "autoPaginate": true, "maxApiCalls": true}

// table of the whole surface. A test walks BigQuery's discovery document and
// fails on a method or an upload path that has no row here.
var routeTable = []Route{
	{"bigquery.jobs.query", "POST", pathProject + "/queries", KindQuery, CarriesJSON, Allow, "", nil},
	{"bigquery.jobs.getQueryResults", "GET", pathProject + "/queries/{job}", KindQuery, CarriesNone, Allow, "", append([]string{"location", "timeoutMs"}, paramsResults...)},
	{"bigquery.jobs.insert", "POST", pathJobs, KindJob, CarriesJSON, Allow, "", nil},
	{"bigquery.jobs.insert", "POST", uploadPrefix + "/projects/{project}/jobs", KindUpload, CarriesMultipart, Allow, "", paramsUpload},
	{"bigquery.jobs.insert", "PUT", uploadPrefix + "/projects/{project}/jobs", KindUpload, CarriesStream, Allow, "", paramsUpload},
	{"bigquery.jobs.insert", "POST", resumablePrefix + "/projects/{project}/jobs", KindUpload, CarriesJSON, Allow, "", paramsUpload},
	{"bigquery.jobs.insert", "PUT", resumablePrefix + "/projects/{project}/jobs", KindUpload, CarriesStream, Allow, "", paramsUpload},
	{"bigquery.jobs.get", "GET", pathJob, KindJob, CarriesNone, Allow, "", paramsLocated},
	{"bigquery.jobs.list", "GET", pathJobs, KindMetadata, CarriesNone, Allow, "", append([]string{"allUsers", "maxCreationTime", "minCreationTime", "parentJobId", "projection", "stateFilter"}, paramsPaging...)},
	{"bigquery.jobs.cancel", "POST", pathJob + "/cancel", KindJob, CarriesNone, Allow, "", paramsLocated},
	{"bigquery.jobs.delete", "DELETE", pathJob + "/delete", KindJob, CarriesNone, Deny, "destroys the evidence of a job", []string{"location"}},

	{"bigquery.tabledata.list", "GET", pathTable + "/data", KindRead, CarriesNone, Allow, "", append([]string{"selectedFields"}, paramsResults...)},
	{"bigquery.tabledata.insertAll", "POST", pathTable + "/insertAll", KindWrite, CarriesJSON, Allow, "", nil},

	{"bigquery.tables.delete", "DELETE", pathTable, KindWrite, CarriesNone, Allow, "", nil},
	{"bigquery.tables.get", "GET", pathTable, KindMetadata, CarriesNone, Allow, "", []string{"selectedFields", "view"}},
	{"bigquery.tables.getIamPolicy", "POST", pathTable + ":getIamPolicy", KindMetadata, CarriesJSON, Allow, "", nil},
	{"bigquery.tables.insert", "POST", pathTables, KindWrite, CarriesJSON, Allow, "", nil},
	{"bigquery.tables.list", "GET", pathTables, KindMetadata, CarriesNone, Allow, "", paramsPaging},
	{"bigquery.tables.patch", "PATCH", pathTable, KindWrite, CarriesJSON, Allow, "", []string{"autodetect_schema"}},
	{"bigquery.tables.setIamPolicy", "POST", pathTable + ":setIamPolicy", KindOther, CarriesJSON, Deny, denyGrants, nil},
	{"bigquery.tables.testIamPermissions", "POST", pathTable + ":testIamPermissions", KindMetadata, CarriesJSON, Allow, "", nil},
	{"bigquery.tables.update", "PUT", pathTable, KindWrite, CarriesJSON, Allow, "", []string{"autodetect_schema"}},

	{"bigquery.datasets.delete", "DELETE", pathDataset, KindWrite, CarriesNone, Allow, "", []string{"deleteContents"}},
	{"bigquery.datasets.get", "GET", pathDataset, KindMetadata, CarriesNone, Allow, "", []string{"accessPolicyVersion", "datasetView"}},
	{"bigquery.datasets.insert", "POST", pathDatasets, KindWrite, CarriesJSON, Allow, "", []string{"accessPolicyVersion"}},
	{"bigquery.datasets.list", "GET", pathDatasets, KindMetadata, CarriesNone, Allow, "", append([]string{"all", "filter"}, paramsPaging...)},
	{"bigquery.datasets.patch", "PATCH", pathDataset, KindOther, CarriesJSON, Deny, denyGrants, []string{"accessPolicyVersion", "updateMode"}},
	{"bigquery.datasets.undelete", "POST", pathDataset + ":undelete", KindOther, CarriesJSON, Deny, "brings back data that somebody deleted, with its old grants", nil},
	{"bigquery.datasets.update", "PUT", pathDataset, KindOther, CarriesJSON, Deny, denyGrants, []string{"accessPolicyVersion", "updateMode"}},

	{"bigquery.routines.delete", "DELETE", pathRoutine, KindWrite, CarriesNone, Allow, "", nil},
	{"bigquery.routines.get", "GET", pathRoutine, KindMetadata, CarriesNone, Allow, "", []string{"readMask"}},
	{"bigquery.routines.getIamPolicy", "POST", pathRoutine + ":getIamPolicy", KindMetadata, CarriesJSON, Allow, "", nil},
	{"bigquery.routines.insert", "POST", pathRoutines, KindWrite, CarriesJSON, Allow, "", nil},
	{"bigquery.routines.list", "GET", pathRoutines, KindMetadata, CarriesNone, Allow, "", append([]string{"filter", "readMask"}, paramsPaging...)},
	{"bigquery.routines.setIamPolicy", "POST", pathRoutine + ":setIamPolicy", KindOther, CarriesJSON, Deny, denyGrants, nil},
	{"bigquery.routines.testIamPermissions", "POST", pathRoutine + ":testIamPermissions", KindMetadata, CarriesJSON, Allow, "", nil},
	{"bigquery.routines.update", "PUT", pathRoutine, KindWrite, CarriesJSON, Allow, "", nil},

	{"bigquery.rowAccessPolicies.batchDelete", "POST", pathRows + ":batchDelete", KindOther, CarriesJSON, Deny, denyGrants, nil},
	{"bigquery.rowAccessPolicies.delete", "DELETE", pathRow, KindOther, CarriesNone, Deny, denyGrants, []string{"force"}},
	{"bigquery.rowAccessPolicies.get", "GET", pathRow, KindMetadata, CarriesNone, Deny, denyGrantsShown, nil},
	{"bigquery.rowAccessPolicies.getIamPolicy", "POST", pathRow + ":getIamPolicy", KindMetadata, CarriesJSON, Deny, denyGrantsShown, nil},
	{"bigquery.rowAccessPolicies.insert", "POST", pathRows, KindOther, CarriesJSON, Deny, denyGrants, nil},
	{"bigquery.rowAccessPolicies.list", "GET", pathRows, KindMetadata, CarriesNone, Deny, denyGrantsShown, []string{"pageSize", "pageToken"}},
	{"bigquery.rowAccessPolicies.testIamPermissions", "POST", pathRow + ":testIamPermissions", KindMetadata, CarriesJSON, Deny, denyGrantsShown, nil},
	{"bigquery.rowAccessPolicies.update", "PUT", pathRow, KindOther, CarriesJSON, Deny, denyGrants, nil},

	{"bigquery.models.delete", "DELETE", pathModel, KindWrite, CarriesNone, Allow, "", nil},
	{"bigquery.models.get", "GET", pathModel, KindMetadata, CarriesNone, Allow, "", nil},
	{"bigquery.models.list", "GET", pathModels, KindMetadata, CarriesNone, Allow, "", paramsPaging},
	{"bigquery.models.patch", "PATCH", pathModel, KindWrite, CarriesJSON, Allow, "", nil},

	{"bigquery.projects.getServiceAccount", "GET", pathProject + "/serviceAccount", KindMetadata, CarriesNone, Allow, "", nil},
	{"bigquery.projects.list", "GET", apiPrefix + "/projects", KindMetadata, CarriesNone, Allow, "", paramsPaging},

	{"discovery", "GET", "/$discovery/rest", KindOther, CarriesNone, Allow, "", []string{"version"}},
	{"discovery", "GET", "/discovery/v1/apis/bigquery/v2/rest", KindOther, CarriesNone, Allow, "", []string{"version"}},

	{"batch", "*", "/batch/{rest...}", KindOther, CarriesStream, Deny, "hides several calls in one; send them one by one", nil},
	{MethodMCP, "POST", "/mcp", KindOther, CarriesJSON, Local, "", nil},
	{MethodStream, "GET", "/mcp", KindOther, CarriesNone, Local, "", nil},
	{MethodStream, "DELETE", "/mcp", KindOther, CarriesNone, Local, "", nil},
	{MethodToken, "POST", "/sts/v1/token", KindOther, CarriesForm, Local, "", nil},
	{MethodWhoami, "GET", "/verbatim/whoami", KindOther, CarriesNone, Local, "", nil},
	{MethodExchange, "GET", "/verbatim/exchanges/{exchange}", KindOther, CarriesNone, Local, "", nil},
	{"sts.token", "*", "/v1/token", KindOther, CarriesForm, Deny, denyToken, nil},
	{"oauth2.token", "*", "/token", KindOther, CarriesForm, Deny, denyToken, nil},

	{MethodCreateReadSession, "POST", "/google.cloud.bigquery.storage.v1.BigQueryRead/CreateReadSession", KindRead, CarriesGRPC, Allow, "", nil},
	{MethodReadRows, "POST", "/google.cloud.bigquery.storage.v1.BigQueryRead/ReadRows", KindRead, CarriesGRPC, Allow, "", nil},
	{MethodSplitReadStream, "POST", "/google.cloud.bigquery.storage.v1.BigQueryRead/SplitReadStream", KindRead, CarriesGRPC, Allow, "", nil},
	{storageService, "*", "/google.cloud.bigquery.storage.v1.BigQueryRead/{rest...}", KindRead, CarriesStream, Deny, denyStorageRead, nil},
	{"google.cloud.bigquery.storage.v1.BigQueryWrite", "*", "/google.cloud.bigquery.storage.v1.BigQueryWrite/{rest...}", KindWrite, CarriesStream, Deny, denyStorageWrite, nil},
	{"google.cloud.bigquery.storage.v1beta1.BigQueryStorage", "*", "/google.cloud.bigquery.storage.v1beta1.BigQueryStorage/{rest...}", KindRead, CarriesStream, Deny, denyPreview, nil},
	{"google.cloud.bigquery.storage.v1beta2.BigQueryRead", "*", "/google.cloud.bigquery.storage.v1beta2.BigQueryRead/{rest...}", KindRead, CarriesStream, Deny, denyPreview, nil},
	{"google.cloud.bigquery.storage.v1beta2.BigQueryWrite", "*", "/google.cloud.bigquery.storage.v1beta2.BigQueryWrite/{rest...}", KindWrite, CarriesStream, Deny, denyPreview, nil},
	{"google.cloud.bigquery.storage.v1alpha.MetastorePartitionService", "*", "/google.cloud.bigquery.storage.v1alpha.MetastorePartitionService/{rest...}", KindOther, CarriesStream, Deny, denyPreview, nil},
	{"google.cloud.bigquery.storage.v1beta.MetastorePartitionService", "*", "/google.cloud.bigquery.storage.v1beta.MetastorePartitionService/{rest...}", KindOther, CarriesStream, Deny, denyPreview, nil},
	{"google.cloud.bigquery.v2.DatasetService", "*", "/google.cloud.bigquery.v2.DatasetService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"google.cloud.bigquery.v2.JobService", "*", "/google.cloud.bigquery.v2.JobService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"google.cloud.bigquery.v2.ModelService", "*", "/google.cloud.bigquery.v2.ModelService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"google.cloud.bigquery.v2.ProjectService", "*", "/google.cloud.bigquery.v2.ProjectService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"google.cloud.bigquery.v2.RoutineService", "*", "/google.cloud.bigquery.v2.RoutineService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"google.cloud.bigquery.v2.RowAccessPolicyService", "*", "/google.cloud.bigquery.v2.RowAccessPolicyService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"google.cloud.bigquery.v2.TableService", "*", "/google.cloud.bigquery.v2.TableService/{rest...}", KindOther, CarriesStream, Deny, denyGRPC, nil},
	{"another Google API", "*", "/v1/{rest...}", KindOther, CarriesStream, Deny, denyNeighbour, nil},
	{"another Google API", "*", "/v1alpha/{rest...}", KindOther, CarriesStream, Deny, denyNeighbour, nil},
	{"another Google API", "*", "/v1beta/{rest...}", KindOther, CarriesStream, Deny, denyNeighbour, nil},
	{"another Google API", "*", "/v1beta1/{rest...}", KindOther, CarriesStream, Deny, denyNeighbour, nil},
}

// Routes returns a copy of the route table.
func Routes() []Route { return append([]Route(nil), routeTable...) }
