# METADATA
# title: The default policy
# description: |
#   Grants decide. data.grants says who (match) may read, write and create what, and what else (allow, functions, limits,
#   budgets, hours). Nothing is allowed without a grant, one grant has to cover the whole request, and some things are not
#   allowed at all. Every reason has a code of the list in README.md.
package verbatim.policy

import data.verbatim.prepare
import data.verbatim.times
import data.verbatim.uses
import data.verbatim.words

level_names := ["", "read", "write", "admin"]

# How a message says what is done to a table.
verb_names := {"read": "read", "write": "write", "scratch": "create, change or drop", "admin": "administrate", "jobs": "see the jobs of"}

decision := object.union(
	{"allow": true, "reasons": [{"code": "granted", "message": sprintf("allowed by the grant %s", [chosen])}]},
	terms(prepare.grant[chosen]),
)

decision := {"allow": false, "reasons": reasons, "limits": {"maximum_bytes_billed": 0}, "labels": {}} if {
	not chosen
	not public
	count(waiting) == 0
}

# A grant covers all that the text names; what views, routines and the cost
# come to only BigQuery knows.
decision := {
	"allow": false,
	"dry_run": true,
	"reasons": [reason("dry_run_needed", sprintf(
		"the grant %s lists tables (rule dry_run_needed), and what this request reaches through views and routines, or what it costs, has to be asked of BigQuery first: let the gateway make dry runs, or ask for a grant that trusts views",
		[concat(", ", waiting)],
	))],
	"limits": {"maximum_bytes_billed": 0},
	"labels": {},
} if {
	not chosen
	count(waiting) > 0
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
	{"limits": {"maximum_bytes_billed": affordable(grant)}, "labels": grant.labels},
	grant.extra,
)

# The grant's limit, or what is left of a budget where that is less.
# 0 would be no limit.
affordable(grant) := max({1, min({grant.maximum_bytes_billed} | {left | some b in grant.budgets; left := b.bytes - used(b).bytes})})

# Of the grants that allow the request, the one with the highest limit; of
# these the last by name.
chosen := max(ranks)[1]

# A grant covers the request, said in its own words and not as the lack of a
# refusal: something undefined must not allow.

# Most requests use nothing but tables that are known, and most grants say no
# more than which: whole datasets at that.
quick contains name if {
	plain_request
	not barred
	sound
	plain_grants := prepare.plain_grant
	datasets := uses.only_reads
	some name in candidates
	grant := plain_grants[name]
	object.subset(grant.read, datasets)
	on_project(grant)
	estimate <= grant.rank[0]
}

thorough contains name if {
	plain_request
	not barred
	sound
	quick != candidates
	plain_grants := prepare.plain_grant
	some name in candidates
	not name in quick
	grant := plain_grants[name]
	grant.whole in open_after_quick
	on_project(grant)
	estimate <= grant.rank[0]
	every verb, done in uses.by_verb {
		covers_all(grant.tables[verb], done)
	}
}

# Of a request that only reads the quick way has judged grants of whole datasets
# for good.
open_after_quick := {false} if uses.only_reads

open_after_quick := {false, true} if not uses.only_reads

ranks contains prepare.plain_grant[name].rank if {
	settled
	some name in (quick | thorough)
}

ranks contains prepare.plain_grant[name].rank if {
	not settled
	some name in (quick | thorough)
	prepare.grant[name].trust
}

ranks contains grant.rank if {
	some name in covering
	grant := prepare.grant[name]
	sure(grant)
}

# Grants that would do, but for what only a dry run tells.
waiting := (quick | thorough) | covering

covering contains name if {
	not barred
	sound
	all_grants := prepare.grant
	some name in hard_candidates
	grant := all_grants[name]
	times.now < grant.expires_ns
	connection_listed(grant)
	on_project(grant)
	every verb, done in uses.by_verb {
		covers_all(grant.tables[verb], done)
	}
	on_hours(grant)
	not stopped(name)
	every need in uses.needed {
		grant.allow[need]
	}
	every f in uses.functions {
		named(grant.functions, f)
	}
	known(grant)
	cheap(grant)
	every b in grant.budgets {
		within(b)
	}
}

# Grants that the quick way does not judge.
hard_candidates := candidates if not plain_request

hard_candidates := {name | some name in candidates; not prepare.plain_grant[name]} if {
	plain_request
	quick != candidates
}

plain_request if {
	count(uses.needed) == 0
	count(uses.functions) == 0
	count(uses.gaps) == 0
	count(stopping) == 0
	not reaches_any
}

# Nothing in the text is left for a dry run to tell.
settled if {
	uses.dry_run_known
} else if {
	not asks_behind
}

covers_all(patterns, done) if {
	every t in done.tables {
		covers(patterns, t)
	}
}

covers(patterns, t) if {
	patterns.exact[t.dataset_name]
} else if {
	strings.any_prefix_match(t.name, patterns.prefixes)
} else if {
	patterns.exact[t.name]
} else if {
	patterns.anywhere[t.dataset]
}

named(patterns, name) if {
	patterns.exact[name]
} else if {
	strings.any_prefix_match(name, patterns.prefixes)
}

# The tables are known as well as the grant needs it.
known(_) if {
	count(uses.gaps) == 0
	not reaches_any
}

known(grant) if {
	grant.everything
	count(uses.gaps - {"dry_run_list"}) == 0
	not uses.unread
}

known(grant) if {
	grant.everything
	count(uses.gaps) == 0
	uses.unread
	grant.level >= words.level
}

# Requests of which nobody knows the tables: text that nobody read, and jobs
# whose body names none.
reaches_any if uses.unread

reaches_any if {
	input.request.job_type == "copy"
	count(input.reads) == 0
}

reaches_any if {
	input.request.job_type in {"copy", "load"}
	count(input.writes) == 0
	input.request.destination == ""
}

# Nothing is left to ask a dry run.
sure(grant) if {
	uses.dry_run_known
} else if {
	not has_sql
} else if {
	settled
	grant.estimated_bytes == 0
} else if {
	grant.trust
	grant.estimated_bytes == 0
}

asks_behind if count(uses.uncertain) > 0

asks_behind if count(uses.functions) > 0

# The whole of input.sql would tie remembered decisions to the text.
has_sql if input.sql.statements

# Cost.

cheap(_) if not uses.dry_run_known

cheap(grant) if {
	input.sql.dry_run.bytes_processed <= grant.maximum_bytes_billed
	grant.estimated_bytes == 0
}

cheap(grant) if {
	input.sql.dry_run.bytes_processed <= grant.maximum_bytes_billed
	input.sql.dry_run.bytes_processed <= grant.estimated_bytes
}

# Budgets.

# What the gateway counted in the window of a budget. A window that it does not
# keep is undefined.
used(b) := w if {
	input.usage.known
	some w in input.usage.windows
	w.of == b.of
	w.seconds == b.seconds
}

within(_) if not spends

within(b) if {
	u := used(b)
	count(overdrawn(b, u)) == 0
}

# What of a budget this request would overdraw.
overdrawn(b, u) := ({what |
	begins
	b.queries <= u.queries
	what := "queries"
} | {what |
	begins
	b.bytes <= u.bytes + estimate
	what := "bytes"
}) | {what |
	b.rows <= u.rows
	what := "rows"
}

default estimate := 0

estimate := input.sql.dry_run.bytes_processed

# Requests that cost: queries, and whatever delivers rows.
begins if {
	uses.queries
	not input.request.dry_run
}

spends if begins

spends if method in {
	"bigquery.jobs.getQueryResults", "bigquery.tabledata.list", "google.cloud.bigquery.storage.v1.BigQueryRead.ReadRows",
}

# Time.

on_hours(grant) if count(grant.hours) == 0

on_hours(grant) if {
	some span in grant.hours
	times.in_week(span)
}

# Maintenance that is in the way of the grant.
stopped(grant) if {
	some name in stopping
	not prepare.maintenance[name].except[grant]
}

stopping contains name if {
	some name in times.open_windows
	window := prepare.maintenance[name]
	some c in wanted_connections
	window.connections[c]
	stops(window)
	concerns(window)
}

stops(window) if window.let == "nothing"

stops(window) if {
	window.let == "read"
	changes
}

changes if {
	some verb, _ in uses.by_verb
	not verb in {"read", "jobs"}
}

changes if count(uses.needed) > 0

changes if {
	uses.unread
	words.level > 1
}

concerns(window) if window.anywhere

concerns(window) if {
	some u in uses.all_done
	covers(window.tables, u.table)
}

concerns(_) if count(uses.needed) > 0

concerns(_) if reaches_any

concerns(_) if count(uses.gaps) > 0

# Why not.

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

# What a caller is told of its own rights: the grants that match it.
granted := {name: data.grants[name] | some name in candidates}

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

barred := unknown_method if {
	not uses.known_method
} else := reason(
	"job_type_unknown",
	"the job is refused (rule job_type_unknown): it is of no type that the policy knows; send a query, load, copy or extract job",
) if {
	method == "bigquery.jobs.insert"
	not input.request.job_type in ["query", "load", "copy", "extract"]
} else := reason(
	"external_tables_denied",
	"the job is refused (rule external_tables_denied): it defines external tables of its own; load the data into a table first",
) if {
	input.request.external_tables
} else := reason(
	"destination_unreadable",
	"the job is refused (rule destination_unreadable): its destination is no PROJECT.DATASET.TABLE; name the table in full",
) if {
	not destination_readable
} else := barred_sql

# A method that the policy does not know, or knows better than to allow.
unknown_method := reason("iam_denied", sprintf(
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
)

barred_sql := reason(
	"sql_missing",
	"the query is refused (rule sql_missing): the request holds no SQL; send the text as query",
) if {
	uses.queries
	not input.sql.statements # the whole of input.sql would tie remembered decisions to the text
} else := reason(
	"legacy_sql_denied",
	"the query is refused (rule legacy_sql_denied): legacy SQL is not understood; set useLegacySql to false and write GoogleSQL",
) if {
	uses.queries
	input.sql.legacy
} else := reason("sql_unreadable", sprintf(
	"the SQL is refused (rule sql_unreadable): %s; write it so that it can be read in one way only",
	[unreadable],
)) if {
	unreadable
} else := reason(
	"sql_missing",
	"the query is refused (rule sql_missing): the text holds no statement; send one",
) if {
	uses.queries
	count(input.sql.statements) == 0
} else := reason("dry_run_refused", sprintf(
	"the SQL is refused (rule dry_run_refused): BigQuery's dry run does not take it: %s; correct it",
	[quoted(input.sql.dry_run.error)],
)) if {
	input.sql.dry_run.error != ""
} else := reason("statement_denied", sprintf(
	"the SQL is refused (rule statement_denied): it holds %s, which nobody may use: access and capacity are not changed through the gateway, and what the policy does not know is not run; leave it out",
	[concat(", ", uses.forbidden)],
)) if {
	count(uses.forbidden) > 0
}

# Why the SQL is not understood: the parser's own words, where a dry run does
# not stand in.
unreadable := sprintf("%s, at %d:%d", [quoted(problem.message), problem.line, problem.column]) if {
	problem := input.sql.facts.problem
	problem.code != ""
	not stands_in(problem)
}

unreadable := input.sql.problem if {
	uses.unread
	input.sql.problem != ""
}

# Words are judged where a dry run stands in.
unreadable := input.sql.problem if {
	stands_in(input.sql.facts.problem)
	input.sql.problem != ""
}

stands_in(problem) if {
	problem.fallback
	input.sql.facts.source == "dry_run"
	input.sql.dry_run.complete
	input.sql.dry_run.error == ""
}

destination_readable if input.request.destination == ""

destination_readable if regex.match(`^[^\s]+\.[^.\s]+\.[^.\s]+$`, input.request.destination)

# The request itself is nothing that is barred, said so too.
sound if {
	uses.known_method
	not uses.queries
	readable
}

sound if {
	uses.queries
	readable
	input.sql.legacy == false
	count(input.sql.statements) > 0
}

readable if {
	destination_readable
	input.request.external_tables == false
	count(uses.forbidden) == 0
	input.request.job_type in {"", "query", "load", "copy", "extract"}
	not unreadable
}

# Why a grant refuses the request: the first reason, with how far it got.

refusal(name) := {"step": 1, "reason": reason("grant_expired", sprintf(
	"the grant %s has expired (rule grant_expired): ask who runs the gateway to renew it",
	[name],
))} if {
	times.now >= prepare.grant[name].expires_ns
} else := {"step": 2, "reason": reason("connection_denied", sprintf(
	"the grant %s does not reach the connection %s (rule connection_denied): use a connection that it lists",
	[name, quoted(input.connection.name)],
))} if {
	not connection_listed(prepare.grant[name])
} else := {"step": 3, "reason": reason("outside_hours", sprintf(
	"the grant %s does not hold at this time of the week (rule outside_hours): come back in its hours, %s UTC",
	[name, concat(", ", [h | some span in prepare.grant[name].hours; h := span_text(span)])],
))} if {
	not on_hours(prepare.grant[name])
} else := {"step": 3, "reason": reason("maintenance", sprintf(
	"the request is refused for now (rule maintenance): %s, in the window %s, which lets %s pass%s; try again after it",
	[window.message, blocking[0], window.let, window_end(window)],
))} if {
	blocking := [w | some w in stopping; not prepare.maintenance[w].except[name]]
	window := prepare.maintenance[blocking[0]]
} else := {"step": 4, "reason": reason("project_denied", sprintf(
	"the grant %s does not reach the project %s (rule project_denied): use a project that it lists",
	[name, quoted(input.request.project)],
))} if {
	not on_project(prepare.grant[name])
} else := {"step": 5, "reason": reason("project_denied", sprintf(
	"the grant %s does not reach the project %s of %s (rule project_denied): use a project that it lists, or ask for a grant that does",
	[name, quoted(strange[0].project), quoted(strange[0].name)],
))} if {
	strange := [u | some u in unreached(prepare.grant[name]); not within_projects(prepare.grant[name], u)]
	count(strange) > 0
} else := {"step": 6, "reason": reason("dataset_denied", sprintf(
	"the grant %s does not let you %s %s (rule dataset_denied): leave it out, or ask for a grant that lists it",
	[name, verb_names[missed[0].verb], shown(missed[0].name)],
))} if {
	missed := [u | some u in unreached(prepare.grant[name])]
	count(missed) > 0
} else := {"step": 7, "reason": reason("datasets_unknown", sprintf(
	"the grant %s lists single datasets (rule datasets_unknown), and which datasets this request reaches is not known before it runs: name the tables in it, or ask for a grant over all datasets",
	[name],
))} if {
	reaches_any
	not prepare.grant[name].everything
} else := {"step": 8, "reason": reason("method_denied", sprintf(
	"the grant %s does not let you %s %s, which %s does (rule method_denied): ask for a grant that allows it",
	[name, verb_names[low[0].verb], shown(low[0].name), method],
))} if {
	not has_sql
	low := [u | some u in unheld(prepare.grant[name])]
	count(low) > 0
} else := {"step": 8, "reason": reason("sql_denied", sprintf(
	"the grant %s does not let you %s %s, which the SQL does%s (rule sql_denied): change the SQL, or ask for a grant that allows it",
	[name, verb_names[low[0].verb], shown(low[0].name), kinds_text],
))} if {
	low := [u | some u in unheld(prepare.grant[name])]
	count(low) > 0
} else := {"step": 8, "reason": reason("sql_denied", sprintf(
	"the grant %s allows %s, and the SQL needs %s, for %s (rule sql_denied): change the SQL, and put a word in backticks where it is a name, or ask for a grant that allows it",
	[name, level_names[prepare.grant[name].level], level_names[words.level], words.why],
))} if {
	uses.unread
	prepare.grant[name].level < words.level
} else := {"step": 9, "reason": reason("jobs_denied", sprintf(
	"the grant %s does not let you see other callers' jobs and their SQL (rule jobs_denied): list your own with jobs.list, or ask for a grant with JOBS in allow",
	[name],
))} if {
	uses.done.jobs
	not prepare.grant[name].allow.JOBS
} else := {"step": 9, "reason": reason("statement_denied", sprintf(
	"the grant %s does not name %s in allow (rule statement_denied): leave it out, or ask for a grant that names it",
	[name, concat(", ", missing(prepare.grant[name]))],
))} if {
	count(missing(prepare.grant[name]) - {"EXPORT DATA"}) > 0
} else := {"step": 9, "reason": reason("extract_denied", sprintf(
	"the extract job is refused (rule extract_denied): data does not leave BigQuery for files unless the grant %s names EXPORT DATA in allow; query the rows instead",
	[name],
))} if {
	input.request.job_type == "extract"
	count(missing(prepare.grant[name])) > 0
} else := {"step": 9, "reason": reason("statement_denied", sprintf(
	"the grant %s does not name EXPORT DATA in allow (rule statement_denied): data does not leave BigQuery for files; query the rows, or ask for a grant that names it",
	[name],
))} if {
	count(missing(prepare.grant[name])) > 0
} else := {"step": 10, "reason": reason("function_denied", sprintf(
	"the grant %s does not name the function %s (rule function_denied): it can read tables or call out of BigQuery where the text does not show it; leave it out, write it as a temporary SQL function, or ask for a grant that names it in functions",
	[name, quoted(unnamed[0])],
))} if {
	unnamed := [f | some f in uses.functions; not named(prepare.grant[name].functions, f)]
	count(unnamed) > 0
} else := {"step": 11, "reason": reason("tables_unknown", sprintf(
	"which tables the request reaches is not known for sure (rule tables_unknown, %s), and the grant %s lists tables: name them in the text, reach for fewer than 50, or ask for a grant over all datasets",
	[concat(", ", uses.gaps), name],
))} if {
	not known(prepare.grant[name])
} else := {"step": 12, "reason": reason("cost_denied", sprintf(
	"the query would process %d bytes, and the grant %s allows %d (rule cost_denied): read fewer columns or partitions, or ask for a higher limit",
	[input.sql.dry_run.bytes_processed, name, cost_limit(prepare.grant[name])],
))} if {
	not cheap(prepare.grant[name])
} else := {"step": 13, "reason": reason("budget_unknown", sprintf(
	"the grant %s has a budget (rule budget_unknown), and the gateway does not know now what of it is used: try again later, and tell who runs the gateway",
	[name],
))} if {
	some b in prepare.grant[name].budgets
	not used(b)
} else := {"step": 13, "reason": reason("budget_spent", sprintf(
	"the budget of %s %s in %s for each %s is used up or would be (rule budget_spent): wait until earlier use leaves the window, ask for less, or for a higher budget in the grant %s",
	[format_int(spent[0].limit, 10), spent[0].what, spent[0].window, spent[0].of, name],
))} if {
	spent := [{"what": what, "limit": b[what], "window": b.window, "of": b.of} |
		some b in prepare.grant[name].budgets
		some what in overdrawn(b, used(b))
	]
}

# What the grant lets nobody do at all, and what it lets only in part.
unreached(grant) := {u |
	some u in unheld(grant)
	not reached(grant, u)
}

reached(grant, u) if {
	some verb in ["read", "write"]
	covers(grant.tables[verb], u.table)
}

unheld(grant) := {u | some u in uses.all_done; not covers(grant.tables[u.verb], u.table)}

within_projects(grant, u) if {
	some p in ["*", u.project]
	grant.projects[p]
}

within_projects(grant, u) if {
	some verb in ["read", "write"]
	some p in grant.tables[verb].prefixes
	startswith(p, concat("", [u.project, "."]))
}

within_projects(grant, u) if {
	some verb in ["read", "write"]
	some p, _ in grant.tables[verb].exact
	startswith(p, concat("", [u.project, "."]))
}

# A name in a message, and what it is where it is no table.
shown(key) := quoted(key) if not endswith(key, ".")

shown(key) := concat("", ["all of ", quoted(trim_suffix(key, "."))]) if endswith(key, ".")

# Statements that do more than read, with their places.
kinds_text := concat("", [" (", concat(", ", places), ")"]) if {
	count(places) > 0
} else := ""

places := [sprintf("%s at %d:%d", [s.kind, s.line, s.column]) |
	some s in input.sql.facts.statements
	not s.kind in uses.reading_kinds
]

cost_limit(grant) := min({grant.maximum_bytes_billed} | {grant.estimated_bytes | grant.estimated_bytes > 0})

window_end(window) := sprintf(", until %s", [time.format(window.until_ns)]) if window.until_ns > 0

window_end(window) := "" if window.until_ns == 0

span_text(span) := sprintf("%s %02d:%02d to %02d:%02d", [
	concat(" ", [d | some d in ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]; span.days[d]]),
	floor(span.from / 60), span.from % 60, floor(span.until / 60), span.until % 60,
])

# What the request does that the grant does not name.
missing(grant) := uses.needed - object.keys(grant.allow)

# Any of these in a grant's list will do.
wanted_connections := ["*", input.connection.name]

connection_listed(grant) if {
	some name in wanted_connections
	grant.connections[name]
}

# projects.list names no project, "": it is the connection's to answer.
default names_project := false

names_project if input.request.project != ""

names_project if method == "bigquery.projects.list"

# What a grant's list has to hold, by whether it lists all projects. It stands in
# the list of a grant for any.
project_for := {true: "*", false: input.request.project} if names_project

on_project(grant) if grant.projects[project_for[grant.any_project]]

reason(code, message) := {"code": code, "message": message}

# A name in a message: short, and without anything that breaks the line.
quoted(name) := sprintf("%q", [substring(name, 0, 256)])
