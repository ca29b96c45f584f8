# METADATA
# title: What a request uses
# description: |
#   Tables with what is done to them, functions, and what needs a name in a grant's allow. From the lists that the gateway
#   makes of the SQL, the body and the route; where those are empty, from the route alone.
package verbatim.uses

import data.verbatim.words

# What each method does to what its route names. What is neither here nor in
# plain_methods is refused.
route_verbs := {
	"bigquery.datasets.delete": "admin",
	"bigquery.datasets.get": "read",
	"bigquery.datasets.insert": "admin",
	"bigquery.datasets.patch": "admin",
	"bigquery.datasets.undelete": "admin",
	"bigquery.datasets.update": "admin",
	"bigquery.models.delete": "admin",
	"bigquery.models.get": "read",
	"bigquery.models.list": "read",
	"bigquery.models.patch": "admin",
	"bigquery.projects.getServiceAccount": "admin",
	"bigquery.routines.delete": "admin",
	"bigquery.routines.get": "read",
	"bigquery.routines.list": "read",
	"bigquery.tabledata.insertAll": "write",
	"bigquery.tabledata.list": "read",
	"bigquery.tables.delete": "scratch",
	"bigquery.tables.get": "read",
	"bigquery.tables.insert": "scratch",
	"bigquery.tables.list": "read",
	"bigquery.tables.patch": "scratch",
	"bigquery.tables.update": "scratch",
	"google.cloud.bigquery.storage.v1.BigQueryRead.CreateReadSession": "read",
	"google.cloud.bigquery.storage.v1.BigQueryRead.ReadRows": "read",
	"google.cloud.bigquery.storage.v1.BigQueryRead.SplitReadStream": "read",
}

# Methods whose route names no dataset.
plain_methods := {
	"bigquery.datasets.list", "bigquery.jobs.cancel", "bigquery.jobs.get", "bigquery.jobs.getQueryResults",
	"bigquery.jobs.insert", "bigquery.jobs.list", "bigquery.jobs.query", "bigquery.projects.list",
}

method := input.request.method

known_method if route_verbs[method]

known_method if method in plain_methods

queries if method == "bigquery.jobs.query"

queries if {
	method == "bigquery.jobs.insert"
	input.request.job_type == "query"
}

# Where the parser read the text, its facts tell; where it did not, a dry run's
# tables and the words do.
parsed if input.sql.facts.source == "parser"

# Nobody read the text: its words alone are known.
unread if {
	queries
	not input.sql.facts.source
}

# Tables, by what is done to them. A name ends with a dot for a whole dataset or
# project.

done.read contains t if {
	some t in input.reads
	t.information_schema == ""
	not startswith(t.dataset, "_") # results of jobs: the gateway knows whose they are
}

done.read contains t if {
	some t in input.reads
	t.information_schema in own_views
}

done.jobs contains named(t.project, "", "") if {
	some t in input.reads
	t.information_schema != ""
	not t.information_schema in own_views
}

done[write_verb(t)] contains t if some t in input.writes

# What BigQuery saw and the text does not name: behind views and routines. What
# is written is no read of a view's.
done.read contains t if {
	some t in input.sql.dry_run.tables
	not t.name in written
	not startswith(t.dataset, "_")
}

done.read contains named(parts[1], parts[2], parts[3]) if {
	some name in input.sql.dry_run.only_dry_run
	not name in written
	parts := split_name(name)
	not startswith(parts[2], "_")
}

# Where the lists are empty, the route alone tells.
done[verb] contains named(input.request.project, input.request.dataset, input.request.table) if {
	count(input.reads) + count(input.writes) == 0
	verb := route_verbs[method]
	not anonymous(verb)
}

done.write contains named(parts[1], parts[2], parts[3]) if {
	input.request.destination != ""
	count(input.writes) == 0
	parts := split_name(input.request.destination)
}

by_verb := {verb: {"tables": tables} | some verb, tables in done}

# The datasets of a request that does no more than read, to look up at once.
only_reads := {t.dataset_name: true | some t in done.read} if object.keys(done) == {"read"}

# All of them, for messages.
all_done := {{"verb": verb, "name": t.name, "project": t.project, "table": t} | some verb, tables in done; some t in tables}

named(project, "", _) := {"name": name, "dataset_name": name, "project": project, "dataset": ""} if name := concat("", [project, "."])

named(project, dataset, table) := {
	"name": concat(".", [project, dataset, table]), "dataset_name": concat(".", [project, dataset]), "project": project,
	"dataset": dataset,
} if {
	dataset != ""
}

written contains t.name if some t in input.writes

written contains input.sql.dry_run.target.name

anonymous("read") if startswith(input.request.dataset, "_")

# A stream of a job's result: the gateway knows whose the job is.
anonymous("read") if {
	method == "google.cloud.bigquery.storage.v1.BigQueryRead.ReadRows"
	input.request.job != ""
}

# The project can hold dots (example.com:project). A name that cannot be taken
# apart is one that no grant has.
split_name(name) := parts if {
	parts := regex.find_all_string_submatch_n(`^([^\s]+)\.([^.\s]+)\.([^.\s]+)$`, name, 1)[0]
} else := [name, name, name, name]

write_verb(t) := "write" if {
	t.as in {"target", "truncate", "load", "copy", "destination"}
	t.table != ""
} else := route_verbs[method] if {
	t.as in {"route", "body"}
} else := "scratch" if {
	t.as in {"create", "replace", "drop", "alter", "snapshot", "restore", "clone", "like", "index"}
	not changes_schema
} else := "scratch" if {
	t.as in {"create", "replace", "drop", "alter"}
	t.table != ""
} else := "admin"

changes_schema if {
	some s in input.sql.facts.statements
	endswith(s.kind, "_SCHEMA")
}

# Views of INFORMATION_SCHEMA that show no more than a dataset's own objects.
# Every other view shows jobs, texts or capacity of others.
own_views := {
	"COLUMNS", "COLUMN_FIELD_PATHS", "CONSTRAINT_COLUMN_USAGE", "KEY_COLUMN_USAGE", "MATERIALIZED_VIEWS", "PARAMETERS",
	"PARTITIONS", "ROUTINES", "ROUTINE_OPTIONS", "SCHEMATA", "SCHEMATA_OPTIONS", "SCHEMATA_REPLICAS", "SEARCH_INDEXES",
	"SEARCH_INDEX_COLUMNS", "SEARCH_INDEX_COLUMN_OPTIONS", "SEARCH_INDEX_OPTIONS", "TABLES", "TABLE_CONSTRAINTS",
	"TABLE_OPTIONS", "TABLE_SNAPSHOTS", "TABLE_STORAGE", "TABLE_STORAGE_TIMELINE", "VECTOR_INDEXES", "VECTOR_INDEX_COLUMNS",
	"VECTOR_INDEX_OPTIONS", "VIEWS",
}

# Statements.

reading_kinds := {
	"ASSERT", "BEGIN", "BEGIN_TRANSACTION", "BREAK", "CASE", "COMMIT_TRANSACTION", "CONTINUE", "DECLARE", "FOR", "IF", "ITERATE",
	"LEAVE", "LOOP", "RAISE", "REPEAT", "RETURN", "ROLLBACK_TRANSACTION", "SCRIPT", "SELECT", "SET", "WHILE",
}

writing_kinds := {"CLONE_DATA", "DELETE", "INSERT", "MERGE", "TRUNCATE_TABLE", "UPDATE"}

ddl_kinds := {
	"ALTER_MATERIALIZED_VIEW", "ALTER_MODEL", "ALTER_SEARCH_INDEX", "ALTER_TABLE", "ALTER_VECTOR_INDEX", "ALTER_VIEW",
	"CREATE_AGGREGATE_FUNCTION", "CREATE_FUNCTION", "CREATE_MATERIALIZED_VIEW", "CREATE_PROCEDURE", "CREATE_SEARCH_INDEX",
	"CREATE_SNAPSHOT_TABLE", "CREATE_TABLE", "CREATE_TABLE_AS_SELECT", "CREATE_TABLE_FUNCTION", "CREATE_VECTOR_INDEX",
	"CREATE_VIEW", "DROP_AGGREGATE_FUNCTION", "DROP_FUNCTION", "DROP_MATERIALIZED_VIEW", "DROP_MODEL", "DROP_PROCEDURE",
	"DROP_SEARCH_INDEX", "DROP_SNAPSHOT_TABLE", "DROP_TABLE", "DROP_TABLE_FUNCTION", "DROP_VECTOR_INDEX", "DROP_VIEW",
	"UNDROP_TABLE",
}

schema_kinds := {"ALTER_SCHEMA", "CREATE_SCHEMA", "DROP_SCHEMA", "UNDROP_SCHEMA"}

# What a grant has to name in allow for a statement.
reaching_kinds := {
	"ALTER_EXTERNAL_TABLE": "EXTERNAL",
	"CALL": "CALL",
	"CREATE_EXTERNAL_SCHEMA": "EXTERNAL",
	"CREATE_EXTERNAL_TABLE": "EXTERNAL",
	"CREATE_MODEL": "MODEL",
	"DROP_EXTERNAL_SCHEMA": "EXTERNAL",
	"DROP_EXTERNAL_TABLE": "EXTERNAL",
	"EXECUTE_IMMEDIATE": "EXECUTE IMMEDIATE",
	"EXPORT_DATA": "EXPORT DATA",
	"EXPORT_MODEL": "EXPORT DATA",
	"GRANT": "GRANT",
	"LOAD_DATA": "LOAD DATA",
	"REVOKE": "REVOKE",
}

known_kind(kind) if kind in reading_kinds

known_kind(kind) if kind in writing_kinds

known_kind(kind) if kind in ddl_kinds

known_kind(kind) if kind in schema_kinds

known_kind(kind) if reaching_kinds[kind]

# Statements that nobody may use: access and capacity, and what is not known.
forbidden contains sprintf("%s at %d:%d", [s.kind, s.line, s.column]) if {
	some s in input.sql.facts.statements
	not known_kind(s.kind)
}

forbidden contains word if {
	not parsed
	some word in words.forbidden
}

# Functions.

# Functions of ML that compute, and need no model.
local_functions := {
	"ML.BUCKETIZE", "ML.DISTANCE", "ML.FEATURE_CROSS", "ML.HASH_BUCKETIZE", "ML.IMPUTER", "ML.LABEL_ENCODER", "ML.LP_NORM",
	"ML.MAX_ABS_SCALER", "ML.MIN_MAX_SCALER", "ML.MULTI_HOT_ENCODER", "ML.NGRAMS", "ML.NORMALIZER", "ML.ONE_HOT_ENCODER",
	"ML.POLYNOMIAL_EXPAND", "ML.QUANTILE_BUCKETIZE", "ML.ROBUST_SCALER", "ML.STANDARD_SCALER",
}

# Built-in functions that reach out of the tables.
reaching_functions := {
	"EXTERNAL_OBJECT_TRANSFORM", "OBJ.FETCH_METADATA", "OBJ.GET_ACCESS_URL", "OBJ.GET_READ_URL", "OBJ.MAKE_REF",
	"ST_REGIONSTATS",
}

# Nearly all functions are built in.
special contains f if {
	some f in input.sql.facts.functions
	f.kind != "builtin"
}

names contains f.name if some f in input.sql.facts.functions

# Functions that a grant has to name: persisted routines, whose bodies are not
# in the text, and what reaches models.
functions contains f.name if {
	some f in special
	f.kind in {"aggregate_udf", "procedure", "remote", "table_function", "udf"}
	not f.defined
}

functions contains f.name if {
	some f in special
	f.kind in {"ai", "ml"}
	not f.name in local_functions
}

functions contains name if some name in (names & reaching_functions)

functions contains name if some name in input.sql.dry_run.routines

# What a grant has to name in allow.

opaque_names := {
	"call": "CALL",
	"dynamic_sql": "EXECUTE IMMEDIATE",
	"graph": "GRAPH",
	"script_body": "LANGUAGE",
	"set_system": "SET",
}

needed contains reaching_kinds[s.kind] if some s in input.sql.facts.statements

needed contains opaque_names[word] if some word in input.sql.facts.opaque

needed contains "SET" if input.sql.facts.query_label

needed contains "EXTERNAL_QUERY" if {
	some f in special
	f.kind == "external_query"
}

needed contains "LANGUAGE" if {
	some f in special
	f.language in {"js", "python"}
}

needed contains "REMOTE" if {
	some f in special
	remote(f)
}

needed contains external_name(e) if some e in input.sql.facts.externals

needed contains name if {
	queries
	not parsed
	some name in words.needs
}

needed contains "JOBS" if {
	done.jobs
}

needed contains "EXPORT DATA" if input.request.job_type == "extract"

remote(f) if f.kind == "remote"

remote(f) if f.language in {"remote", "spark"}

# A URI or connection that is read stands for the statement that uses it.
external_name(e) := "EXPORT DATA" if {
	e.access == "write"
} else := "EXTERNAL_QUERY" if {
	e.kind == "query"
} else := "LOAD DATA" if {
	has_kind("LOAD_DATA")
} else := "EXPORT DATA" if {
	has_kind("EXPORT_DATA")
} else := "MODEL" if {
	has_kind("CREATE_MODEL")
} else := "EXTERNAL_QUERY" if {
	some f in special
	f.kind == "external_query"
} else := "REMOTE" if {
	some f in special
	remote(f)
} else := "EXTERNAL"

has_kind(kind) if {
	some s in input.sql.facts.statements
	s.kind == kind
}

# What a dry run could add.

# Kinds of tables that hold their rows themselves.
plain_tables := {"TABLE", "SNAPSHOT", "CLONE", "EXTERNAL"}

# Reads of which nobody knows whether they are views.
uncertain contains t.name if {
	some t in input.reads
	t.source == "parser"
	t.information_schema == ""
	not t.kind in plain_tables
}

dry_run_known if input.sql.dry_run.statement_type

# Why the lists may lack tables, but for what a grant names in allow.
gaps contains word if {
	some word in input.incomplete
	not opaque_names[word]
}

gaps contains word if {
	some word in input.sql.facts.opaque
	not opaque_names[word]
	word != "unknown_value" # of an external, which is judged whatever its value
}

# BigQuery takes the text for another one than the parser does.
gaps contains "dry_run_differs" if {
	dry_run_known
	parsed
	every s in input.sql.facts.statements {
		s.kind in reading_kinds
	}
	not input.sql.dry_run.statement_type in {"", "SELECT", "SCRIPT"}
}
