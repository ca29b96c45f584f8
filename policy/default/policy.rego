# METADATA
# title: The default policy
# description: |
#   Grants decide. data.grants says who (match) may do what (methods) where (connections, projects, datasets). Nothing is
#   allowed without a grant, and some things are not allowed at all. Every reason has a code of the list in README.md.
package verbatim.policy

import data.verbatim.prepare
import data.verbatim.sql

# The level that each method needs. What is not here is refused.
levels := {
	"bigquery.datasets.delete": 3,
	"bigquery.datasets.get": 1,
	"bigquery.datasets.insert": 3,
	"bigquery.datasets.list": 1,
	"bigquery.datasets.patch": 3,
	"bigquery.datasets.undelete": 3,
	"bigquery.datasets.update": 3,
	"bigquery.jobs.cancel": 1,
	"bigquery.jobs.get": 1,
	"bigquery.jobs.getQueryResults": 1,
	"bigquery.jobs.insert": 1,
	"bigquery.jobs.list": 3,
	"bigquery.jobs.query": 1,
	"bigquery.models.delete": 3,
	"bigquery.models.get": 1,
	"bigquery.models.list": 1,
	"bigquery.models.patch": 3,
	"bigquery.projects.getServiceAccount": 3,
	"bigquery.projects.list": 1,
	"bigquery.routines.delete": 3,
	"bigquery.routines.get": 1,
	"bigquery.routines.list": 1,
	"bigquery.tabledata.insertAll": 2,
	"bigquery.tabledata.list": 1,
	"bigquery.tables.delete": 2,
	"bigquery.tables.get": 1,
	"bigquery.tables.insert": 2,
	"bigquery.tables.list": 1,
	"bigquery.tables.patch": 2,
	"bigquery.tables.update": 2,
}

level_names := ["", "read", "write", "admin"]

decision := object.union(
	{"allow": true, "reasons": [{"code": "granted", "message": sprintf("allowed by the grant %s", [chosen])}]},
	terms(prepare.grant[chosen]),
)

decision := {"allow": false, "reasons": reasons, "limits": {"maximum_bytes_billed": 0}, "labels": {}} if {
	not chosen
	not public
}

# The description of the API is public and the same for everybody. The bq
# program reads it before anything else, and would hide the text of a denial.
decision := {
	"allow": true,
	"reasons": [reason("public", "the description of the API is for every caller")],
	"limits": {"maximum_bytes_billed": 0},
	"labels": {},
} if public

public if method == "discovery"

# What an allowed request goes out with.
terms(grant) := object.union(
	{"limits": {"maximum_bytes_billed": grant.maximum_bytes_billed}, "labels": grant.labels},
	grant.extra,
)

# Of the grants that allow the request, the one with the highest limit; of
# these the last by name.
chosen := max({[prepare.grant[name].maximum_bytes_billed, name] | some name in allowing})[1]

allowing := covering if count(needed_statements) == 0

allowing := {name | some name in covering; count(missing(prepare.grant[name])) == 0} if count(needed_statements) > 0

# A grant covers the request, said in its own words and not as the lack of a
# refusal: something undefined must not allow.
covering contains name if {
	not barred
	sound
	all_grants := prepare.grant
	some name in candidates
	grant := all_grants[name]
	some d in wanted_datasets
	grant.datasets[d]
	grant.level >= needed
	now < grant.expires_ns
	some c in wanted_connections
	grant.connections[c]
	some p in wanted_projects
	grant.projects[p]
	some q in wanted_destinations
	grant.projects[q]
}

reasons := [barred]

reasons := [no_grant] if {
	not barred
	count(candidates) == 0
}

# The refusals of the grants that came closest.
reasons := array.slice([refusals[name].reason | some name in candidates; refusals[name].step == furthest], 0, 8) if {
	not barred
	count(candidates) > 0
}

refusals[name] := refusal(name) if some name in candidates

furthest := max({r.step | some r in refusals})

no_grant := reason("no_grant", sprintf(
	"no grant matches the caller %s of issuer %s (rule no_grant): ask who runs the gateway for a grant",
	[quoted(input.caller.subject), quoted(input.caller.issuer)],
))

# Who: grants that are for this caller.

plain := prepare.plain[input.caller.issuer]

narrowed := prepare.narrowed[input.caller.issuer]

candidates contains name if {
	some fact, by_value in plain
	some name in by_value[facts[fact]]
}

candidates contains name if {
	by_group := plain.group
	some group in input.caller.groups
	some name in by_group[group]
}

candidates contains name if {
	some fact, by_value in narrowed
	some name in by_value[facts[fact]]
	matches(prepare.grant[name].match)
}

candidates contains name if {
	by_group := narrowed.group
	some group in input.caller.groups
	some name in by_group[group]
	matches(prepare.grant[name].match)
}

matches(match) if {
	every fact, value in match {
		holds(fact, value)
	}
}

holds(fact, value) if facts[fact] == value

holds("group", value) if value in groups

groups := {group | some group in input.caller.groups}

facts := {
	"subject": input.caller.subject,
	"repository": input.provenance.repository,
	"ref": input.provenance.ref,
	"workflow": input.provenance.workflow,
	"environment": input.provenance.environment,
	"pipeline": input.provenance.pipeline,
	"namespace": input.provenance.namespace,
	"service_account": input.provenance.service_account,
	"spiffe_id": input.provenance.spiffe_id,
}

# What nobody may do.

method := input.request.method

barred := reason("iam_denied", sprintf(
	"%s is refused (rule iam_denied): access is not read or changed through the gateway; ask the project's owner",
	[method],
)) if {
	regex.match(`\.(getIamPolicy|setIamPolicy|testIamPermissions)$`, method)
} else := reason("row_access_policy_denied", sprintf(
	"%s is refused (rule row_access_policy_denied): row access policies are not touched through the gateway; ask the project's owner",
	[method],
)) if {
	startswith(method, "bigquery.rowAccessPolicies.")
} else := reason(
	"job_delete_denied",
	"bigquery.jobs.delete is refused (rule job_delete_denied): a job's metadata is evidence and stays; leave it to expire",
) if {
	method == "bigquery.jobs.delete"
} else := reason("routine_denied", sprintf(
	"%s is refused (rule routine_denied): a routine can call out of BigQuery; ask the project's owner to create it, or use a temporary SQL function",
	[method],
)) if {
	method in ["bigquery.routines.insert", "bigquery.routines.update"]
} else := reason(
	"method_unknown",
	"the request is refused (rule method_unknown): the policy does not know its method; use a method that README.md of the policy lists",
) if {
	not levels[method]
} else := reason(
	"extract_denied",
	"the extract job is refused (rule extract_denied): data does not leave BigQuery for files; query the rows instead",
) if {
	input.request.job_type == "extract"
} else := reason(
	"job_type_unknown",
	"the job is refused (rule job_type_unknown): it is of no type that the policy knows; send a query, load or copy job",
) if {
	method == "bigquery.jobs.insert"
	not input.request.job_type in ["query", "load", "copy"]
} else := reason(
	"external_tables_denied",
	"the job is refused (rule external_tables_denied): it defines external tables of its own; load the data into a table first",
) if {
	input.request.external_tables
} else := reason(
	"destination_unreadable",
	"the job is refused (rule destination_unreadable): its destination is no PROJECT.DATASET.TABLE; name the table in full",
) if {
	not destination
} else := barred_sql

barred_sql := reason(
	"sql_missing",
	"the query is refused (rule sql_missing): the request holds no SQL; send the text as query",
) if {
	queries
	not input.sql.statements # the whole of input.sql would tie remembered decisions to the text
} else := reason(
	"legacy_sql_denied",
	"the query is refused (rule legacy_sql_denied): legacy SQL is not understood; set useLegacySql to false and write GoogleSQL",
) if {
	queries
	input.sql.legacy
} else := reason("sql_unreadable", sprintf(
	"the SQL is refused (rule sql_unreadable): %s; write it so that it can be read in one way only",
	[input.sql.problem],
)) if {
	queries
	input.sql.problem != ""
} else := reason(
	"sql_missing",
	"the query is refused (rule sql_missing): the text holds no statement; send one",
) if {
	queries
	count(input.sql.statements) == 0
} else := reason("statement_denied", sprintf(
	"the SQL is refused (rule statement_denied): it holds %s, and access and capacity are not changed through the gateway; put the word in backticks if it is a name",
	[concat(", ", sql.forbidden)],
)) if {
	queries
	count(sql.forbidden) > 0
}

queries if method == "bigquery.jobs.query"

queries if {
	method == "bigquery.jobs.insert"
	input.request.job_type == "query"
}

# What the request needs.

needed := sql.level if queries

needed := 2 if input.request.job_type in ["load", "copy"]

needed := levels[method] if {
	not queries
	not input.request.job_type in ["load", "copy"]
	not own_children
}

needed := 1 if own_children

# The jobs of one script, which the gateway lists to the script's owner only.
own_children if {
	method == "bigquery.jobs.list"
	input.request.job != ""
}

# Requests that can reach any dataset, because which ones they reach is not
# known from the route.
any_dataset if queries

any_dataset if input.request.job_type == "copy"

any_dataset if {
	input.request.job_type == "load"
	destination == ["", ""]
}

# [project, dataset] of the dataset that the request names; empty where it
# names none.
dataset := destination if {
	input.request.job_type == "load"
} else := [input.request.project, input.request.dataset]

destination := array.slice(destination_parts, 1, 3)

# The project can hold dots (example.com:project).
destination_parts := regex.find_all_string_submatch_n(`^([^\s]+)\.([^.\s]+)\.[^.\s]+$`, input.request.destination, 1)[0]

destination := ["", ""] if input.request.destination == ""

# The request itself is nothing that is barred, said so too.
sound if {
	levels[method]
	destination
	not queries
	input.request.external_tables == false
	input.request.job_type in ["", "load", "copy"]
}

sound if {
	queries
	destination
	input.request.external_tables == false
	input.sql.legacy == false
	input.sql.problem == ""
	count(input.sql.statements) > 0
	count(sql.forbidden) == 0
}

# Why a grant refuses the request: the first reason, with how far it got.

refusal(name) := {"step": 1, "reason": reason("grant_expired", sprintf(
	"the grant %s has expired (rule grant_expired): ask who runs the gateway to renew it",
	[name],
))} if {
	now >= prepare.grant[name].expires_ns
} else := {"step": 2, "reason": reason("connection_denied", sprintf(
	"the grant %s does not reach the connection %s (rule connection_denied): use a connection that it lists",
	[name, quoted(input.connection.name)],
))} if {
	not connection_listed(prepare.grant[name])
} else := {"step": 3, "reason": reason("project_denied", sprintf(
	"the grant %s does not reach the project %s (rule project_denied): use a project that it lists",
	[name, quoted(input.request.project)],
))} if {
	not projects_listed(prepare.grant[name])
} else := {"step": 4, "reason": reason("dataset_denied", sprintf(
	"the grant %s does not reach the dataset %s (rule dataset_denied): use a dataset that it lists",
	[name, quoted(dataset[1])],
))} if {
	not any_dataset
	not datasets_listed(prepare.grant[name])
} else := {"step": 5, "reason": reason("datasets_unknown", sprintf(
	"the grant %s lists single datasets (rule datasets_unknown), and which datasets this request reaches is not known before it runs: read tables by tabledata.list, or ask for a grant over all datasets",
	[name],
))} if {
	any_dataset
	not datasets_listed(prepare.grant[name])
} else := {"step": 6, "reason": reason("method_denied", sprintf(
	"the grant %s allows %s, and %s needs %s (rule method_denied): ask for a grant that allows it",
	[name, level_names[prepare.grant[name].level], method, level_names[needed]],
))} if {
	not queries
	prepare.grant[name].level < needed
} else := {"step": 6, "reason": reason("sql_denied", sprintf(
	"the grant %s allows %s, and the SQL needs %s, for %s (rule sql_denied): change the SQL, and put a word in backticks where it is a name, or ask for a grant that allows it",
	[name, level_names[prepare.grant[name].level], level_names[needed], sql.why],
))} if {
	queries
	prepare.grant[name].level < needed
} else := {"step": 7, "reason": reason("statement_denied", sprintf(
	"the grant %s does not name %s in allow_statements (rule statement_denied): leave it out, put the word in backticks if it is a name, or ask for a grant that names it",
	[name, concat(", ", missing(prepare.grant[name]))],
))} if {
	count(missing(prepare.grant[name])) > 0
}

now := time.parse_rfc3339_ns(input.time)

# What the SQL does that the grant does not name.
missing(grant) := needed_statements - object.keys(grant.statements)

needed_statements := sql.needs if queries

needed_statements := set() if not queries

# Any of these in a grant's list will do.
wanted_connections := ["*", input.connection.name]

connection_listed(grant) if {
	some name in wanted_connections
	grant.connections[name]
}

wanted_datasets := ["*"] if any_dataset

wanted_datasets := ["*", dataset[1], concat(".", dataset)] if {
	not any_dataset
	dataset[1] != ""
}

wanted_datasets := [""] if {
	not any_dataset
	dataset[1] == ""
}

datasets_listed(grant) if {
	some name in wanted_datasets
	grant.datasets[name]
}

wanted_projects := ["*", input.request.project] if input.request.project != ""

# projects.list names no project: it is the connection's to answer.
wanted_projects := [""] if {
	method == "bigquery.projects.list"
	input.request.project == ""
}

# The project of the destination, which may be another.
wanted_destinations := ["*", destination[0]]

projects_listed(grant) if {
	some p in wanted_projects
	grant.projects[p]
	some q in wanted_destinations
	grant.projects[q]
}

reason(code, message) := {"code": code, "message": message}

# A name in a message: short, and without anything that breaks the line.
quoted(name) := sprintf("%q", [substring(name, 0, 128)])
