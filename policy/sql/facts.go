// Package sql says what a GoogleSQL text does: its statements in order, the
// tables that it reads and writes, the functions that it calls, and what it does
// that no reader of the text can see through.
//
// The rule of this package: what is not understood is a [Problem], never a
// guess. Facts without a problem are complete but for what only BigQuery knows:
// what lies behind a view, a routine or a name that Facts lists as unresolved.
// [Facts.Opaque] says when the text holds such a thing.
package sql

// Options are what a text is read with: what BigQuery would resolve names by.
type Options struct {
	Project string // the job's project: the default of a name that has none
	// The job's defaultDataset; Dataset is empty where it has none, and a name
	// without a dataset is then a problem, unless a CTE or temporary object has it.
	DatasetProject, Dataset string
	// Temporary tables and routines that the caller's BigQuery session holds by
	// earlier queries, in BigQuery's spelling.
	Temporary []string
	// Parameters that the job gives, lower case; nil where they are not known.
	Parameters []string
}

// The sources of facts.
const (
	SourceParser = "parser"  // this package read the text
	SourceDryRun = "dry_run" // BigQuery's dry run told, where the parser could not read the text
)

// Problem says why a text is not understood. A text with a problem must be denied
// unless BigQuery's dry run stands in for the facts.
type Problem struct {
	Code    string // stable: too_large, too_deep, not_utf8, control_character, legacy, syntax, unsupported, ambiguous_name, no_default_dataset, project_number, timeout, ...
	Message string // one sentence without quotes of literals
	Line    int    // from 1
	Column  int    // from 1, in characters
	// Fallback is true where a dry run may tell the rest: the text is lexically
	// sound, and only its grammar is beyond the parser.
	Fallback bool
}

// Facts are what a text does. Slices hold no duplicates, in order of first
// appearance, and are never shared with a cache's other users for writing.
type Facts struct {
	Source     string
	Problem    *Problem
	Statements []Statement // in order; those inside of blocks too, after their block
	Reads      []Table     // of all statements
	Writes     []Table
	Functions  []Function
	// Externals are what the text reaches outside of BigQuery's tables: URIs of EXPORT DATA,
	// LOAD DATA and external tables, connections of EXTERNAL_QUERY and remote functions.
	Externals []External
	// Opaque names what keeps facts from being complete, sorted: dynamic_sql
	// (EXECUTE IMMEDIATE), call (a procedure), script_body (JavaScript, Python, Spark),
	// set_system (SET @@... of another variable than time_zone, query_label, dataset_id and dataset_project_id), graph,
	// unresolved_table_argument, unknown_value (a URI, connection or query that is no literal; its External has no value).
	Opaque []string
	// QueryLabel is true where the text sets @@query_label.
	QueryLabel bool
	// Temporary are the temporary tables and routines that the text creates.
	Temporary []string
}

// Statement is one statement. Kind is BigQuery's statementType
// (https://cloud.google.com/bigquery/docs/reference/rest/v2/Job#JobStatistics2:
// SELECT, INSERT, UPDATE, DELETE, MERGE, CREATE_TABLE_AS_SELECT, ...) where it has one,
// else the statement's own words joined by "_" (DECLARE, SET, IF, LOOP, BEGIN,
// BEGIN_TRANSACTION, EXECUTE_IMMEDIATE, CALL, ...).
type Statement struct {
	Kind         string
	Line, Column int // from 1; Column in characters
	Depth        int // of blocks around it; 0 outside of all
	// Definition is true inside of a body that the text defines and does not run.
	Definition bool
	Reads      []Table
	Writes     []Table
}

// Table is a table, view, routine's dataset or dataset as one statement uses
// it. Project and Dataset are always resolved, spelled as BigQuery compares them
// (see [Canonical]).
type Table struct {
	// Object is what the name names: table (views too), model, routine, dataset, graph, connection, or the
	// upper-case word of what a project holds (RESERVATION, CAPACITY, PROJECT, ...).
	Object                  string
	Project, Dataset, Table string // Table is empty where a whole dataset is meant; it ends with * for a wildcard
	// InformationSchema is the view's name in upper case, for INFORMATION_SCHEMA views; Table is then empty,
	// Dataset may be ("region-eu" stands in Region).
	InformationSchema string
	Region            string
	// As says how: from, table_argument, clone, copy, like, snapshot, restore, load, target (DML), create, replace, drop,
	// alter, truncate, export, index, policy, destination (the job's own), definition (inside of a view's or routine's body), other.
	As         string
	TimeTravel bool     // FOR SYSTEM_TIME AS OF, or a @ decorator
	Columns    []string // read or written, lower case, where the parser can tell; nil where it cannot
	AllColumns bool     // a star over it, or Columns is not known
	Line       int
	Column     int
}

// Function is a function or procedure that is called or created.
type Function struct {
	// Name in upper case for built-in ones ("NET.HOST", "AI.GENERATE"), the resolved
	// "project.dataset.name" for persisted routines, the bare name for temporary ones.
	Name string
	// Kind: builtin, udf (persisted), temporary, table_function, procedure, remote, ml, ai, external_query, aggregate_udf,
	// unknown (no built-in one of that bare name is known, and there is no default dataset that could hold it).
	Kind     string
	Defined  bool   // the text creates it
	Language string // of a body the text creates: sql, js, python, remote, spark
	Line     int
	Column   int
}

// External is something outside of BigQuery's tables.
type External struct {
	Kind   string // uri, connection, query (the text of EXTERNAL_QUERY)
	Value  string
	Access string // read, write
}
