package bigquery

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"slices"
	"strings"

	"verbatim.dev/recorder/record"
)

// InflateLimit is how large a gzipped body may become in ParseBody, in bytes.
const InflateLimit = 10 << 20

// JobType is the kind of job that a body asks for.
type JobType string

// The types of jobs.
const (
	JobQuery   JobType = "query"
	JobLoad    JobType = "load"
	JobCopy    JobType = "copy"
	JobExtract JobType = "extract"
)

// Table names a table, a view or the like, with the parts as the caller wrote
// them; a missing project is the call's.
type Table struct {
	Project string `json:"project"`
	Dataset string `json:"dataset"`
	Table   string `json:"table"`
}

// Dataset names a dataset.
type Dataset struct {
	Project string `json:"project"`
	Dataset string `json:"dataset"`
}

// Property is a connection property.
type Property struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Facts is what a request's body says.
type Facts struct {
	// Body is the plain JSON: what came, inflated where it was gzipped.
	Body []byte
	// JobType is set for jobs.query and jobs.insert.
	JobType JobType

	// SQL is the text of a query, view or materialized view, or the body of a
	// routine.
	SQL      string
	Language string // of a routine's body: SQL, JAVASCRIPT, PYTHON, ...
	// View is true where SQL is a logical view's text.
	View bool
	// RoutineType is SCALAR_FUNCTION, TABLE_VALUED_FUNCTION, PROCEDURE or
	// AGGREGATE_FUNCTION, as the caller wrote it.
	RoutineType string
	// Arguments are a routine's, and those of them that are tables.
	Arguments, TableArguments []string
	// Legacy is useLegacySql as the caller sent it; nil where absent or null,
	// which BigQuery takes for true.
	Legacy *bool
	// LegacyPrefix is true where the SQL begins with #legacySQL, which wins
	// over useLegacySql.
	LegacyPrefix  bool
	Parameters    json.RawMessage // queryParameters
	ParameterMode string
	DryRun        bool
	UseCache      *bool

	Labels          map[string]string
	Job             *record.Job // jobReference with a jobId
	Location        string
	RequestID       string
	JobCreationMode string
	ResultsFormat   string
	Reservation     string

	DefaultDataset       *Dataset
	MaximumBytesBilled   *int64
	MaxResults           *int64
	TimeoutMs            *int64 // how long the answer may take
	JobTimeoutMs         *int64 // how long the job may run
	ConnectionProperties []Property
	SessionID            string // connection property session_id
	CreateSession        bool
	Continuous           bool

	// Destination is where the call writes: a job's destinationTable, or the
	// table that tables.insert, update and patch are about.
	Destination       *Table
	WriteDisposition  string
	CreateDisposition string

	Sources         []Table  // of copy and extract
	SourceURIs      []string // of load
	DestinationURIs []string // of extract
	CopyOperation   string   // COPY, SNAPSHOT, RESTORE, CLONE
	External        []string // names in tableDefinitions
	FunctionURIs    []string // userDefinedFunctionResources in Cloud Storage
	FunctionCode    []string // inline code of the same

	Rows           int    // of insertAll
	TemplateSuffix string // of insertAll: rows go to another table

	// Unknown lists keys of the objects that this package reads and does not
	// know, by path, at most 32.
	Unknown []string
}

var (
	tableShape    = object(map[string]*shape{"projectId": stringShape, "datasetId": stringShape, "tableId": stringShape}, "")
	datasetShape  = object(map[string]*shape{"projectId": stringShape, "datasetId": stringShape}, "")
	routineShape  = object(map[string]*shape{"projectId": stringShape, "datasetId": stringShape, "routineId": stringShape}, "")
	modelShape    = object(map[string]*shape{"projectId": stringShape, "datasetId": stringShape, "modelId": stringShape}, "")
	jobShape      = object(map[string]*shape{"projectId": stringShape, "jobId": stringShape, "location": stringShape}, "")
	propertyShape = array(object(map[string]*shape{"key": stringShape, "value": stringShape}, ""))
	functionShape = array(object(map[string]*shape{"inlineCode": stringShape, "resourceUri": stringShape}, ""))

	queryRequestShape = object(map[string]*shape{
		"connectionProperties": propertyShape, "continuous": boolShape, "createSession": boolShape, "defaultDataset": datasetShape,
		"dryRun": boolShape, "jobCreationMode": stringShape, "jobTimeoutMs": integerShape, "labels": mapOf(stringShape),
		"location": stringShape, "maxResults": integerShape, "maximumBytesBilled": integerShape, "parameterMode": stringShape,
		"query": stringShape, "queryParameters": array(nil), "queryResultsFormat": stringShape, "requestId": stringShape,
		"reservation": stringShape, "timeoutMs": integerShape, "useLegacySql": boolShape, "useQueryCache": boolShape,
	}, "arrowSerializationOptions destinationEncryptionConfiguration formatOptions kind maxSlots preserveNulls secureContext writeIncrementalResults")

	queryConfigShape = object(map[string]*shape{
		"connectionProperties": propertyShape, "continuous": boolShape, "createDisposition": stringShape, "createSession": boolShape,
		"defaultDataset": datasetShape, "destinationTable": tableShape, "maximumBytesBilled": integerShape, "parameterMode": stringShape,
		"query": stringShape, "queryParameters": array(nil), "tableDefinitions": mapOf(nil), "useLegacySql": boolShape,
		"useQueryCache": boolShape, "userDefinedFunctionResources": functionShape, "writeDisposition": stringShape,
	}, "allowLargeResults clustering destinationEncryptionConfiguration flattenResults maximumBillingTier preserveNulls priority rangePartitioning schemaUpdateOptions scriptOptions secureContext systemVariables timePartitioning writeIncrementalResults")

	loadConfigShape = object(map[string]*shape{
		"connectionProperties": propertyShape, "createDisposition": stringShape, "createSession": boolShape,
		"destinationTable": tableShape, "sourceUris": array(stringShape), "writeDisposition": stringShape,
		"referenceFileSchemaUri": stringShape,
	}, "allowJaggedRows allowQuotedNewlines autodetect clustering columnNameCharacterMap copyFilesOnly dateFormat datetimeFormat decimalTargetTypes destinationEncryptionConfiguration destinationTableProperties encoding fieldDelimiter fileSetSpecType hivePartitioningOptions ignoreUnknownValues jsonExtension maxBadRecords nullMarker nullMarkers parquetOptions preserveAsciiControlCharacters projectionFields quote rangePartitioning schema schemaInline schemaInlineFormat schemaUpdateOptions skipLeadingRows sourceColumnMatch sourceFormat timeFormat timePartitioning timeZone timestampFormat timestampTargetPrecision useAvroLogicalTypes")

	copyConfigShape = object(map[string]*shape{
		"createDisposition": stringShape, "destinationTable": tableShape, "operationType": stringShape,
		"sourceTable": tableShape, "sourceTables": array(tableShape), "writeDisposition": stringShape,
	}, "destinationEncryptionConfiguration destinationExpirationTime")

	extractConfigShape = object(map[string]*shape{
		"destinationUri": stringShape, "destinationUris": array(stringShape), "sourceTable": tableShape, "sourceModel": modelShape,
	}, "compression destinationFormat fieldDelimiter modelExtractOptions nativeGeographyExportEnabled printHeader secureContext useAvroLogicalTypes")

	configShape = object(map[string]*shape{
		"query": queryConfigShape, "load": loadConfigShape, "copy": copyConfigShape, "extract": extractConfigShape,
		"dryRun": boolShape, "labels": mapOf(stringShape), "jobTimeoutMs": integerShape, "jobType": stringShape, "reservation": stringShape,
	}, "maxSlots")

	jobRequestShape = object(map[string]*shape{"configuration": configShape, "jobReference": jobShape},
		"etag id jobCreationReason kind principal_subject selfLink statistics status user_email")

	viewShape = object(map[string]*shape{"query": stringShape, "useLegacySql": boolShape, "userDefinedFunctionResources": functionShape},
		"foreignDefinitions privacyPolicy useExplicitColumnNames")
	materializedViewShape = object(map[string]*shape{"query": stringShape},
		"allowNonIncrementalDefinition enableRefresh lastRefreshTime maxStaleness refreshIntervalMs")
	tableRequestShape = object(map[string]*shape{"tableReference": tableShape, "view": viewShape, "materializedView": materializedViewShape, "labels": anyShape},
		"biglakeConfiguration cloneDefinition clustering creationTime defaultCollation defaultRoundingMode description encryptionConfiguration etag expirationTime externalCatalogTableOptions externalDataConfiguration friendlyName id kind lastModifiedTime location managedTableType materializedViewStatus maxStaleness model numActiveLogicalBytes numActivePhysicalBytes numBytes numCurrentPhysicalBytes numLongTermBytes numLongTermLogicalBytes numLongTermPhysicalBytes numPartitions numPhysicalBytes numRows numTimeTravelPhysicalBytes numTotalLogicalBytes numTotalPhysicalBytes partitionDefinition rangePartitioning replicas requirePartitionFilter resourceTags restrictions schema selfLink snapshotDefinition streamingBuffer tableConstraints tableReplicationInfo timePartitioning type")

	datasetRequestShape = object(map[string]*shape{"datasetReference": datasetShape, "location": stringShape},
		"access catalogSource creationTime defaultCollation defaultEncryptionConfiguration defaultPartitionExpirationMs defaultRoundingMode defaultTableExpirationMs description etag externalCatalogDatasetOptions externalDatasetReference friendlyName id isCaseInsensitive kind labels lastModifiedTime linkedDatasetMetadata linkedDatasetSource maxTimeTravelHours resourceTags restrictions satisfiesPzi satisfiesPzs selfLink storageBillingModel tags type")

	routineRequestShape = object(map[string]*shape{"routineReference": routineShape, "definitionBody": stringShape, "language": stringShape, "routineType": stringShape, "arguments": array(nil), "importedLibraries": array(stringShape)},
		"buildStatus creationTime dataGovernanceType description determinismLevel etag externalRuntimeOptions lastModifiedTime pythonOptions remoteFunctionOptions returnTableType returnType securityMode sparkOptions strictMode")

	insertAllShape = object(map[string]*shape{"rows": array(nil), "templateSuffix": stringShape},
		"ignoreUnknownValues kind skipInvalidRows traceId")

	modelRequestShape = object(map[string]*shape{"modelReference": modelShape},
		"bestTrialId creationTime defaultTrialId description encryptionConfiguration etag expirationTime featureColumns friendlyName hparamSearchSpaces hparamTrials labelColumns labels lastModifiedTime location modelType optimalTrialIds remoteModelInfo trainingRuns transformColumns")

	emptyShape = object(map[string]*shape{}, "")
)

// ParseBody reads the JSON body of a call. For the first part of an upload,
// contentType is the part's. An error is always a *[Refusal].
func ParseBody(call Call, contentType, contentEncoding string, body []byte) (Facts, error) {
	facts, ref := parseBody(call, contentType, contentEncoding, body)
	if ref != nil {
		return facts, ref
	}
	return facts, nil
}

func parseBody(call Call, contentType, contentEncoding string, body []byte) (Facts, *Refusal) {
	var f Facts
	switch strings.ToLower(strings.TrimSpace(contentEncoding)) {
	case "", "identity":
	case "gzip", "x-gzip":
		plain, err := Inflate(body, InflateLimit)
		if err != nil {
			return f, asRefusal(err)
		}
		body = plain
	default:
		return f, invalid("content_encoding", "The body's content-encoding is not served; use gzip or none.")
	}
	f.Body = body
	blank := len(strings.Trim(string(body[:min(len(body), 64)]), " \t\r\n")) == 0 && len(body) <= 64
	switch call.Carries {
	case CarriesNone:
		// Some clients put {} where a POST has nothing to say.
		if blank || call.HTTP == "POST" && string(body) == "{}" {
			return f, nil
		}
		return f, invalid("body_unexpected", fmt.Sprintf("%s takes no body.", call.Method))
	case CarriesStream, CarriesGRPC:
		return f, nil
	}
	if blank {
		return f, invalid("body_missing", fmt.Sprintf("%s needs a JSON body.", call.Method))
	}
	if ref := checkJSONType(contentType); ref != nil {
		return f, ref
	}
	root, ref := f.read(call, body)
	if ref != nil {
		return f, ref
	}
	switch call.Method {
	case "bigquery.jobs.query":
		ref = f.query(call, root)
	case "bigquery.jobs.insert":
		ref = f.insert(call, root)
	case "bigquery.tables.insert", "bigquery.tables.patch", "bigquery.tables.update":
		ref = f.table(call, root)
	case "bigquery.datasets.insert":
		ref = f.dataset(call, root)
	case "bigquery.routines.insert", "bigquery.routines.update":
		ref = f.routine(call, root)
	case "bigquery.models.patch":
		if r := root.get("modelReference"); r != nil {
			ref = sameNames("modelReference", r, map[string]string{"projectId": call.Project, "datasetId": call.Dataset, "modelId": call.Model})
		}
		if ref == nil && root.get("remoteModelInfo") != nil {
			ref = denied("remote_model", "A remote model sends rows to another service, which is not open through this gateway.")
		}
	case "bigquery.tabledata.insertAll":
		if r := root.get("rows"); r != nil {
			f.Rows = r.count
		}
		f.TemplateSuffix = root.str("templateSuffix")
	}
	return f, ref
}

// shapeOf returns the shape of a call's body.
func shapeOf(call Call) *shape {
	switch call.Method {
	case "bigquery.jobs.query":
		return queryRequestShape
	case "bigquery.jobs.insert":
		return jobRequestShape
	case "bigquery.tables.insert", "bigquery.tables.patch", "bigquery.tables.update":
		return tableRequestShape
	case "bigquery.datasets.insert":
		return datasetRequestShape
	case "bigquery.routines.insert", "bigquery.routines.update":
		return routineRequestShape
	case "bigquery.models.patch":
		return modelRequestShape
	case "bigquery.tabledata.insertAll":
		return insertAllShape
	}
	return emptyShape
}

func (f *Facts) read(call Call, body []byte) (*node, *Refusal) {
	root, unknown, ref := readJSON(body, shapeOf(call))
	if ref != nil {
		return nil, ref
	}
	if root.kind != nodeObject {
		return nil, invalid("json_type", "The JSON body must be an object.")
	}
	f.Unknown = unknown
	return root, nil
}

func checkJSONType(contentType string) *Refusal {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/json" {
		return invalid("content_type", "The body's content-type must be application/json.")
	}
	for k, v := range params {
		if k != "charset" || !strings.EqualFold(v, "utf-8") {
			return invalid("content_type", "The body's content-type must be application/json with no parameter but charset=utf-8.")
		}
	}
	return nil
}

func (f *Facts) query(call Call, n *node) *Refusal {
	f.JobType = JobQuery
	f.Labels = labelsOf(n)
	f.DryRun = n.boolean("dryRun")
	f.Location = n.str("location")
	f.RequestID = n.str("requestId")
	f.JobCreationMode = n.str("jobCreationMode")
	f.ResultsFormat = n.str("queryResultsFormat")
	f.Reservation = n.str("reservation")
	f.MaxResults, f.TimeoutMs, f.JobTimeoutMs = n.integer("maxResults"), n.integer("timeoutMs"), n.integer("jobTimeoutMs")
	switch f.JobCreationMode {
	case "", "JOB_CREATION_MODE_UNSPECIFIED", "JOB_CREATION_REQUIRED", "JOB_CREATION_OPTIONAL":
	default:
		return invalid("job_creation_mode", "jobCreationMode must be JOB_CREATION_REQUIRED or JOB_CREATION_OPTIONAL.")
	}
	switch f.ResultsFormat {
	case "", "QUERY_RESULTS_FORMAT_UNSPECIFIED", "STRUCT_ENCODING":
	case "ARROW":
		return denied("results_format", "queryResultsFormat ARROW is refused: Arrow results in JSON cannot be recorded and masked yet; leave it out to get rows.")
	default:
		return invalid("results_format", "queryResultsFormat must be STRUCT_ENCODING or absent.")
	}
	return f.common(call, n)
}

// common reads what jobs.query and configuration.query share.
func (f *Facts) common(call Call, n *node) *Refusal {
	if n.get("query") == nil || n.str("query") == "" {
		return invalid("query_missing", "The body holds no query.")
	}
	f.SQL = n.str("query")
	f.Legacy = n.boolPointer("useLegacySql")
	f.LegacyPrefix = legacyPrefix(f.SQL)
	f.UseCache = n.boolPointer("useQueryCache")
	if p := n.get("queryParameters"); p != nil {
		f.Parameters = json.RawMessage(f.Body[p.start:p.end:p.end])
	}
	f.ParameterMode = n.str("parameterMode")
	switch f.ParameterMode {
	case "", "NAMED", "POSITIONAL", "named", "positional":
	default:
		return invalid("parameter_mode", "parameterMode must be NAMED or POSITIONAL.")
	}
	f.MaximumBytesBilled = n.integer("maximumBytesBilled")
	f.Continuous = n.boolean("continuous")
	if ref := f.session(n); ref != nil {
		return ref
	}
	if d := n.get("defaultDataset"); d != nil {
		if d.str("datasetId") == "" {
			return invalid("default_dataset", "defaultDataset needs a datasetId.")
		}
		f.DefaultDataset = &Dataset{Project: orDefault(d.str("projectId"), call.Project), Dataset: d.str("datasetId")}
	}
	return nil
}

// ParameterNames returns the names of the query parameters in lower case; nil
// where there are none, or they have no names.
func (f *Facts) ParameterNames() []string {
	var parameters []struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(f.Parameters, &parameters) != nil {
		return nil
	}
	var out []string
	for _, p := range parameters {
		if p.Name != "" {
			out = append(out, strings.ToLower(p.Name))
		}
	}
	return out
}

func (f *Facts) session(n *node) *Refusal {
	f.CreateSession = n.boolean("createSession")
	if p := n.get("connectionProperties"); p != nil {
		for _, e := range p.elems {
			prop := Property{Key: e.str("key"), Value: e.str("value")}
			for _, other := range f.ConnectionProperties {
				if strings.EqualFold(other.Key, prop.Key) {
					return invalid("connection_properties", "A key stands twice in connectionProperties.")
				}
			}
			f.ConnectionProperties = append(f.ConnectionProperties, prop)
			if strings.EqualFold(prop.Key, "session_id") {
				f.SessionID = prop.Value
			}
			if len(f.ConnectionProperties) > 64 {
				return invalid("connection_properties", "connectionProperties holds more than 64 properties.")
			}
		}
	}
	return nil
}

func (f *Facts) insert(call Call, root *node) *Refusal {
	if r := root.get("jobReference"); r != nil {
		if p := r.str("projectId"); p != "" && p != call.Project {
			return invalid("names_differ", "jobReference.projectId differs from the project in the path.")
		}
		f.Location = r.str("location")
		if id := r.str("jobId"); id != "" {
			if !validID(id) {
				return invalid("name_job", "jobReference.jobId holds a character other than a letter, digit or one of -._~.")
			}
			f.Job = &record.Job{Project: call.Project, Location: f.Location, ID: id}
		}
	}
	c := root.get("configuration")
	if c == nil {
		return invalid("job_type", "The body holds no configuration.")
	}
	var kinds []JobType
	for _, k := range []JobType{JobQuery, JobLoad, JobCopy, JobExtract} {
		if c.get(string(k)) != nil {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) != 1 {
		return invalid("job_type", "The configuration must hold exactly one of query, load, copy and extract.")
	}
	f.JobType = kinds[0]
	if t := c.str("jobType"); t != "" && !strings.EqualFold(t, string(f.JobType)) {
		return invalid("job_type", "jobType differs from the configuration that is there.")
	}
	f.Labels = labelsOf(c)
	f.DryRun = c.boolean("dryRun")
	f.JobTimeoutMs = c.integer("jobTimeoutMs")
	f.Reservation = c.str("reservation")
	n := c.get(string(f.JobType))
	if call.Upload != UploadNone && f.JobType != JobLoad {
		return invalid("job_type", "An upload must carry a load job.")
	}
	f.WriteDisposition, f.CreateDisposition = n.str("writeDisposition"), n.str("createDisposition")
	if d := n.get("destinationTable"); d != nil {
		t := tableOf(call, d)
		f.Destination = &t
		if t.Dataset == "" || t.Table == "" {
			return invalid("destination", "destinationTable needs a datasetId and a tableId.")
		}
	}
	switch f.JobType {
	case JobQuery:
		if d := n.get("tableDefinitions"); d != nil {
			for _, m := range d.members {
				f.External = append(f.External, m.key)
			}
		}
		f.functions(n)
		return f.common(call, n)
	case JobLoad:
		f.SourceURIs = n.strings("sourceUris")
		if u := n.str("referenceFileSchemaUri"); u != "" {
			f.SourceURIs = append(f.SourceURIs, u)
		}
		if ref := f.session(n); ref != nil {
			return ref
		}
		if f.Destination == nil {
			return invalid("destination", "A load job needs a destinationTable.")
		}
		if call.Upload != UploadNone && len(f.SourceURIs) > 0 {
			return invalid("source_uris", "An upload cannot name sourceUris as well.")
		}
		if call.Upload == UploadNone && len(f.SourceURIs) == 0 {
			return invalid("source_uris", "A load job with no upload needs sourceUris.")
		}
	case JobCopy:
		f.CopyOperation = orDefault(n.str("operationType"), "COPY")
		switch f.CopyOperation {
		case "OPERATION_TYPE_UNSPECIFIED", "COPY", "SNAPSHOT", "RESTORE", "CLONE":
		default:
			return invalid("copy_operation", "operationType must be COPY, SNAPSHOT, RESTORE or CLONE.")
		}
		if s := n.get("sourceTable"); s != nil {
			f.Sources = append(f.Sources, tableOf(call, s))
		}
		if s := n.get("sourceTables"); s != nil {
			for _, e := range s.elems {
				f.Sources = append(f.Sources, tableOf(call, e))
			}
		}
		if f.Destination == nil || len(f.Sources) == 0 {
			return invalid("destination", "A copy job needs sources and a destinationTable.")
		}
	case JobExtract:
		if s := n.get("sourceTable"); s != nil {
			f.Sources = append(f.Sources, tableOf(call, s))
		}
		f.DestinationURIs = n.strings("destinationUris")
		if u := n.str("destinationUri"); u != "" {
			f.DestinationURIs = append(f.DestinationURIs, u)
		}
		ref := denied("job_extract", "An extract job is refused: the data would leave for Cloud Storage unseen; query the table instead.")
		ref.Stance = true
		return ref
	}
	return nil
}

func (f *Facts) functions(n *node) {
	r := n.get("userDefinedFunctionResources")
	if r == nil {
		return
	}
	for _, e := range r.elems {
		if u := e.str("resourceUri"); u != "" {
			f.FunctionURIs = append(f.FunctionURIs, u)
		}
		if c := e.str("inlineCode"); c != "" {
			f.FunctionCode = append(f.FunctionCode, c)
		}
	}
}

func (f *Facts) table(call Call, n *node) *Refusal {
	names := map[string]string{"projectId": call.Project, "datasetId": call.Dataset}
	if call.Table != "" {
		names["tableId"] = call.Table
	}
	f.Destination = &Table{Project: call.Project, Dataset: call.Dataset, Table: call.Table}
	r := n.get("tableReference")
	if r != nil {
		if ref := sameNames("tableReference", r, names); ref != nil {
			return ref
		}
	}
	if call.Table == "" {
		if f.Destination.Table = r.str("tableId"); !validTableID(f.Destination.Table) {
			return invalid("name_table", "tableReference.tableId is missing or no name of a table.")
		}
	}
	for _, key := range []string{"externalDataConfiguration", "biglakeConfiguration", "externalCatalogTableOptions"} {
		if v := n.get(key); v != nil {
			return denied("external_data", key+" is refused: data outside BigQuery is not open through this gateway.")
		}
	}
	for _, key := range []string{"tableReplicationInfo", "cloneDefinition", "snapshotDefinition"} {
		if n.get(key) != nil && call.Method == "bigquery.tables.insert" {
			return denied("table_copy", key+" is refused: it copies another table unseen; use a copy job.")
		}
	}
	view, materialized := n.get("view"), n.get("materializedView")
	switch {
	case view != nil && materialized != nil:
		return invalid("view", "A table cannot be a view and a materialized view at once.")
	case view != nil:
		f.SQL, f.Legacy, f.View = view.str("query"), view.boolPointer("useLegacySql"), true
		f.functions(view)
		if view.get("foreignDefinitions") != nil {
			return denied("external_data", "foreignDefinitions are refused: they hold SQL that the gateway does not read.")
		}
	case materialized != nil:
		f.SQL = materialized.str("query")
	}
	f.LegacyPrefix = legacyPrefix(f.SQL)
	return nil
}

// validTableID takes what BigQuery takes for a new table's name less the
// decorators: no structure, no control characters.
func validTableID(s string) bool {
	return s != "" && len(s) <= 1024 && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || strings.ContainsRune("$@/\\.:`%\"'*;#?&\u007f", r)
	})
}

func (f *Facts) dataset(call Call, n *node) *Refusal {
	r := n.get("datasetReference")
	if r == nil || !validID(r.str("datasetId")) {
		return invalid("name_dataset", "datasetReference.datasetId is missing or no name of a dataset.")
	}
	if ref := sameNames("datasetReference", r, map[string]string{"projectId": call.Project}); ref != nil {
		return ref
	}
	f.Destination = &Table{Project: call.Project, Dataset: r.str("datasetId")}
	f.Location = n.str("location")
	if a := n.get("access"); a != nil && a.count > 0 {
		return denied("dataset_access", "access is refused: it says who may read, and grants are made by people, outside the gateway; create the dataset with no access list.")
	}
	for _, key := range []string{"externalDatasetReference", "linkedDatasetSource", "externalCatalogDatasetOptions", "catalogSource"} {
		if n.get(key) != nil {
			return denied("external_data", key+" is refused: data outside the project is not open through this gateway.")
		}
	}
	return nil
}

func (f *Facts) routine(call Call, n *node) *Refusal {
	names := map[string]string{"projectId": call.Project, "datasetId": call.Dataset}
	if call.Routine != "" {
		names["routineId"] = call.Routine
	}
	r := n.get("routineReference")
	if r != nil {
		if ref := sameNames("routineReference", r, names); ref != nil {
			return ref
		}
	}
	name := call.Routine
	if name == "" {
		if name = r.str("routineId"); !validID(name) {
			return invalid("name_routine", "routineReference.routineId is missing or no name of a routine.")
		}
	}
	f.Destination = &Table{Project: call.Project, Dataset: call.Dataset, Table: name}
	for _, key := range []string{"remoteFunctionOptions", "sparkOptions", "externalRuntimeOptions", "pythonOptions"} {
		if n.get(key) != nil {
			return denied("remote_routine", key+" is refused: code that runs outside BigQuery can carry rows away.")
		}
	}
	f.SQL, f.Language = n.str("definitionBody"), orDefault(n.str("language"), "SQL")
	f.RoutineType = n.str("routineType")
	if a := n.get("arguments"); a != nil {
		var arguments []struct {
			Name  string          `json:"name"`
			Table json.RawMessage `json:"tableType"`
		}
		if err := json.Unmarshal(f.Body[a.start:a.end:a.end], &arguments); err != nil {
			return invalid("routine_arguments", "arguments must be a list of objects, each with a name.")
		}
		for _, a := range arguments {
			switch {
			case a.Name == "":
			case len(a.Table) > 0 && string(a.Table) != "null":
				f.TableArguments = append(f.TableArguments, a.Name)
			default:
				f.Arguments = append(f.Arguments, a.Name)
			}
		}
	}
	f.FunctionURIs = n.strings("importedLibraries")
	return nil
}

// sameNames refuses a reference in the body that names another thing than the
// path does.
func sameNames(what string, n *node, names map[string]string) *Refusal {
	for _, key := range slices.Sorted(maps.Keys(names)) {
		if v := n.str(key); v != "" && v != names[key] {
			return invalid("names_differ", fmt.Sprintf("%s.%s differs from the name in the path.", what, key))
		}
	}
	return nil
}

func tableOf(call Call, n *node) Table {
	return Table{Project: orDefault(n.str("projectId"), call.Project), Dataset: n.str("datasetId"), Table: n.str("tableId")}
}

func labelsOf(n *node) map[string]string {
	l := n.get("labels")
	if l == nil || len(l.members) == 0 {
		return nil
	}
	out := make(map[string]string, len(l.members))
	for _, m := range l.members {
		if m.value.kind == nodeString {
			out[m.key] = m.value.text
		}
	}
	return out
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// legacyPrefix reports a #legacySQL line among the comments and blanks that
// begin a text. BigQuery wants it first of all; this looks further, so that it
// cannot be hidden.
func legacyPrefix(sql string) bool {
	const blanks = " \t\r\n\v\f\ufeff\u00a0"
	for {
		sql = strings.TrimLeft(sql, blanks)
		switch {
		case strings.HasPrefix(sql, "#"), strings.HasPrefix(sql, "--"):
			line := sql
			if i := strings.IndexAny(sql, "\r\n"); i >= 0 {
				line, sql = sql[:i], sql[i:]
			} else {
				sql = ""
			}
			if strings.HasPrefix(strings.ToLower(strings.TrimLeft(line, "#-"+blanks)), "legacysql") {
				return true
			}
		case strings.HasPrefix(sql, "/*"):
			i := strings.Index(sql[2:], "*/")
			if i < 0 {
				return false
			}
			sql = sql[i+4:]
		default:
			return false
		}
	}
}
