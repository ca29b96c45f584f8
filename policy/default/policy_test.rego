package verbatim.policy_test

import data.verbatim.policy
import data.verbatim.prepare

grants := {
	"analysts": {
		"match": {"issuer": "corp", "group": "analysts"},
		"projects": ["acme"],
		"datasets": ["*"],
		"methods": ["read"],
		"limits": {"maximum_bytes_billed": 1000},
	},
	"ingest": {
		"match": {"issuer": "github", "repository": "acme/etl", "ref": "refs/heads/main"},
		"connections": ["main"],
		"projects": ["acme"],
		"datasets": ["raw", "acme.staging"],
		"methods": ["write"],
		"expires": "2026-06-01T00:00:00Z",
		"labels": {"team": "etl"},
		"credential": "writer",
		"retention": "long",
	},
	"pipelines": {
		"match": {"issuer": "cluster", "namespace": "etl", "service_account": "runner"},
		"projects": ["acme"],
		"datasets": ["*"],
		"methods": ["write"],
		"allow": ["EXPORT DATA"],
	},
	"owners": {
		"match": {"issuer": "corp", "group": "owners"},
		"projects": ["*"],
		"datasets": ["*"],
		"methods": ["admin"],
		"limits": {"maximum_bytes_billed": 5000},
	},
}

request := {
	"method": "bigquery.tabledata.list", "kind": "read", "http_method": "GET", "path": "/", "project": "acme", "dataset": "raw",
	"table": "t", "job": "", "dry_run": false, "job_type": "", "destination": "", "default_dataset": "", "external_tables": false,
}

provenance := {
	"profile": "generic", "pipeline": "", "repository": "", "ref": "", "commit": "", "workflow": "", "run": "", "actor": "",
	"environment": "", "namespace": "", "pod": "", "service_account": "", "spiffe_id": "",
}

caller(issuer, groups) := {
	"issuer": issuer, "issuer_url": "https://issuer.example", "subject": "somebody", "email": "", "groups": groups,
	"on_behalf_of": [],
}

base := {
	"version": 1, "time": "2026-01-02T03:04:05Z", "caller": caller("corp", ["corp/analysts"]), "provenance": provenance,
	"asserted": {}, "connection": {"name": "main", "location": "EU", "recording": "full", "retention": "default"},
	"request": request,
	"reads": [],
	"writes": [],
	"incomplete": [],
	"usage": {"known": false, "windows": []},
}

table(name, how) := {
	"name": name, "dataset_name": concat(".", [parts[0], parts[1]]), "project": parts[0], "dataset": parts[1], "table": parts[2], "as": how, "source": "body", "kind": "", "information_schema": "", "columns": [],
	"all_columns": true,
} if {
	parts := split(name, ".")
}

asks(changes) := object.union(base, {"request": changes})

select := {
	"text": "", "legacy": false, "parameters": null, "words": {"SELECT": 1, "FROM": 1}, "names": {}, "statements": ["SELECT"],
	"problem": "",
}

query(changes) := object.union(base, {
	"request": {"method": "bigquery.jobs.query", "dataset": "", "table": ""},
	"sql": object.union(select, changes),
})

job(kind, changes) := asks(object.union(
	{"method": "bigquery.jobs.insert", "job_type": kind, "dataset": "", "table": ""},
	changes,
))

script := {"words": {"INSERT": 1, "INTO": 1, "SELECT": 1}, "statements": ["INSERT", "SELECT"]}

repository := object.union(base, {
	"caller": caller("github", []),
	"provenance": {"repository": "acme/etl", "ref": "refs/heads/main"},
	"request": {"method": "bigquery.tabledata.insertAll"},
})

runner(request_input) := object.union(request_input, {
	"caller": caller("cluster", []),
	"provenance": {"namespace": "etl", "service_account": "runner"},
})

as_owner(request_input) := object.union(request_input, {"caller": caller("corp", ["corp/analysts", "corp/owners"])})

# What the engine keeps of the grants, as it keeps it: as data.
kept(some_grants, windows) := p if p := prepare with data.grants as some_grants with data.maintenance as windows

ready := kept(grants, {})

decide(asked) := d if {
	p := ready
	d := policy.decision with input as asked with data.verbatim.prepare as p
}

codes(asked) := [r.code | some r in decide(asked).reasons]

denied(asked, code) if {
	d := decide(asked)
	d.allow == false
	d.labels == {}
	d.limits == {"maximum_bytes_billed": 0}
	[r.code | some r in d.reasons] == [code]
	every r in d.reasons {
		contains(r.message, sprintf("(rule %s)", [code]))
	}
}

allowed(asked, grant) if {
	d := decide(asked)
	d.allow == true
	d.reasons == [{"code": "granted", "message": sprintf("allowed by the grant %s", [grant])}]
	d.labels.verbatim_grant == grant
}

test_rows if allowed(base, "analysts")

test_limit if decide(base).limits == {"maximum_bytes_billed": 1000}

test_default_limit if decide(repository).limits == {"maximum_bytes_billed": 107374182400}

test_configured_limit if {
	d := policy.decision with input as repository with data.grants as grants with data.limits as {"maximum_bytes_billed": 7}
	d.limits == {"maximum_bytes_billed": 7}
}

test_granted if {
	told := policy.granted with input as repository with data.grants as grants
	told == {"ingest": grants.ingest}
}

test_extras if {
	d := decide(repository)
	d.credential == "writer"
	d.retention == "long"
	d.labels == {"team": "etl", "verbatim_grant": "ingest"}
}

test_highest_limit_is_chosen if allowed(as_owner(base), "owners")

test_nothing_without_grants if {
	d := policy.decision with input as base with data.grants as {}
	d.allow == false
	d.reasons[0].code == "no_grant"
}

# Who.

test_stranger if denied(object.union(base, {"caller": caller("corp", ["corp/others"])}), "no_grant")

test_no_groups if denied(object.union(base, {"caller": caller("corp", [])}), "no_grant")

test_group_of_another_issuer if denied(object.union(base, {"caller": caller("evil", ["corp/analysts", "evil/analysts"])}), "no_grant")

test_repository if allowed(repository, "ingest")

test_another_ref if denied(object.union(repository, {"provenance": {"ref": "refs/heads/x"}}), "no_grant")

test_another_repository if denied(object.union(repository, {"provenance": {"repository": "evil/etl"}}), "no_grant")

test_repository_of_another_issuer if denied(object.union(repository, {"caller": caller("gitlab", [])}), "no_grant")

test_service_account if allowed(runner(base), "pipelines")

test_another_namespace if {
	denied(object.union(runner(base), {"provenance": {"namespace": "x"}}), "no_grant")
}

test_subject_and_group if {
	g := {"both": object.union(grants.analysts, {"match": {"issuer": "corp", "subject": "somebody", "group": "analysts"}})}
	d := policy.decision with input as base with data.grants as g
	d.allow == true
	not_member := object.union(base, {"caller": caller("corp", [])})
	e := policy.decision with input as not_member with data.grants as g
	e.allow == false
}

test_group_and_more if {
	g := {"main": object.union(grants.analysts, {"match": {"ref": "refs/heads/main"}})}
	here := object.union(base, {"provenance": {"ref": "refs/heads/main"}})
	d := policy.decision with input as here with data.grants as g
	d.allow == true
	elsewhere := policy.decision with input as base with data.grants as g
	elsewhere.allow == false
}

test_subject if {
	g := {"ann": object.union(object.remove(grants.analysts, ["match"]), {"match": {"issuer": "corp", "subject": "somebody"}})}
	d := policy.decision with input as base with data.grants as g
	d.allow == true
	other := object.union(base, {"caller": {"subject": "other"}})
	e := policy.decision with input as other with data.grants as g
	e.allow == false
}

test_message_is_one_line if {
	d := decide(object.union(base, {"caller": object.union(caller("corp", []), {"subject": "a\nb"})}))
	not contains(d.reasons[0].message, "\n")
}

# What.

test_unknown_method if denied(asks({"method": ""}), "method_unknown")

test_iam if denied(as_owner(asks({"method": "bigquery.tables.setIamPolicy"})), "iam_denied")

test_row_access_policies if denied(as_owner(asks({"method": "bigquery.rowAccessPolicies.list"})), "row_access_policy_denied")

test_job_delete if denied(as_owner(asks({"method": "bigquery.jobs.delete"})), "job_delete_denied")

test_routine if denied(as_owner(asks({"method": "bigquery.routines.insert"})), "routine_denied")

test_extract if denied(as_owner_only(job("extract", {})), "extract_denied")

test_extract_granted if allowed(runner(object.union(job("extract", {}), {"reads": [table("acme.raw.t", "extract")]})), "pipelines")

test_job_type if denied(as_owner(job("", {})), "job_type_unknown")

test_external_tables if denied(as_owner(object.union(job("query", {"external_tables": true}), {"sql": select})), "external_tables_denied")

test_destination_unreadable if denied(runner(job("load", {"destination": "raw.t"})), "destination_unreadable")

test_method_level if denied(asks({"method": "bigquery.tables.delete"}), "method_denied")

test_reader_lists_its_own_jobs if allowed(asks({"method": "bigquery.jobs.list", "dataset": "", "table": ""}), "analysts")

test_reader_lists_the_jobs_of_a_script if allowed(asks({"method": "bigquery.jobs.list", "dataset": "", "job": "j"}), "analysts")

test_owner_lists_jobs if allowed(as_owner(asks({"method": "bigquery.jobs.list", "dataset": ""})), "owners")

# Where.

test_connection if denied(object.union(repository, {"connection": {"name": "other"}}), "connection_denied")

test_project if denied(asks({"project": "other"}), "project_denied")

test_projects_list if allowed(asks({"method": "bigquery.projects.list", "project": "", "dataset": ""}), "analysts")

test_no_project if denied(asks({"project": ""}), "project_denied")

test_dataset if denied(object.union(repository, {"request": {"dataset": "secret"}}), "dataset_denied")

test_qualified_dataset if allowed(object.union(repository, {"request": {"dataset": "staging"}}), "ingest")

test_no_dataset_in_route if {
	allowed(object.union(repository, {"request": {"method": "bigquery.datasets.list", "dataset": "", "table": ""}}), "ingest")
}

test_expired if denied(object.union(repository, {"time": "2026-06-01T00:00:00Z"}), "grant_expired")

test_not_expired if allowed(object.union(repository, {"time": "2026-05-31T23:59:59.999Z"}), "ingest")

test_closest_refusal_speaks if {
	asked := object.union(base, {"caller": caller("corp", ["corp/analysts", "corp/owners"]), "request": {
		"method": "bigquery.tables.delete",
		"project": "other",
	}})
	g := object.union(grants, {"owners": {"methods": ["read"]}})
	d := policy.decision with input as asked with data.grants as g
	[r.code | some r in d.reasons] == ["method_denied"]
}

# Jobs.

load(destination) := object.union(repository, {"request": object.union(
	job("load", {}).request,
	{"destination": destination},
)})

test_load if allowed(load("acme.raw.t"), "ingest")

test_load_elsewhere if denied(load("acme.secret.t"), "dataset_denied")

test_load_into_another_project if denied(load("other.raw.t"), "project_denied")

test_load_into_a_project_with_a_domain if denied(load("example.com:acme.raw.t"), "project_denied")

test_load_to_nowhere if denied(load(""), "datasets_unknown")

test_load_by_a_reader if denied(job("load", {"destination": "acme.raw.t"}), "method_denied")

test_copy if allowed(runner(job("copy", {"destination": "acme.raw.t"})), "pipelines")

test_copy_by_single_datasets if {
	denied(object.union(repository, {"request": job("copy", {"destination": "acme.raw.t"}).request}), "datasets_unknown")
}

# SQL.

test_select if allowed(query({}), "analysts")

test_select_by_job if allowed(object.union(job("query", {}), {"sql": select}), "analysts")

test_sql_absent if denied(asks({"method": "bigquery.jobs.query"}), "sql_missing")

test_sql_empty if denied(query({"words": {}, "statements": []}), "sql_missing")

test_legacy if denied(query({"legacy": true}), "legacy_sql_denied")

test_unreadable if {
	denied(query({"problem": "a literal is not closed"}), "sql_unreadable")
	contains(decide(query({"problem": "a literal is not closed"})).reasons[0].message, "a literal is not closed")
}

test_sql_with_single_datasets if {
	denied(object.union(query({}), {"caller": repository.caller, "provenance": repository.provenance}), "datasets_unknown")
}

test_script_by_a_reader if {
	denied(query(script), "sql_denied")
	contains(decide(query(script)).reasons[0].message, "it holds INSERT")
}

test_script_by_a_writer if allowed(runner(query(script)), "pipelines")

test_destination_by_a_reader if {
	denied(object.union(job("query", {"destination": "acme.raw.t"}), {"sql": select}), "sql_denied")
}

test_destination_in_another_project if {
	denied(runner(object.union(job("query", {"destination": "other.raw.t"}), {"sql": select})), "project_denied")
}

test_named_statement if allowed(runner(query({"words": {"EXPORT": 1, "DATA": 1}, "statements": ["EXPORT"]})), "pipelines")

test_statement_not_named if {
	denied(runner(query({"words": {"EXECUTE": 1, "IMMEDIATE": 1}, "statements": ["EXECUTE"]})), "statement_denied")
}

test_admin_needs_names_too if {
	denied(as_owner_only(query({"words": {"CALL": 1}, "statements": ["CALL"]})), "statement_denied")
}

as_owner_only(request_input) := object.union(request_input, {"caller": caller("corp", ["corp/owners"])})

test_forbidden_words if denied(as_owner(query({"words": {"DROP": 1, "ROW": 1, "ACCESS": 1, "POLICY": 1}, "statements": ["DROP"]})), "statement_denied")

test_jobs_view if denied(query({"words": {"SELECT": 1, "INFORMATION_SCHEMA": 1, "JOBS_BY_USER": 1}}), "sql_denied")

test_jobs_view_by_a_writer if denied(runner(query({"words": {"INFORMATION_SCHEMA": 1, "JOBS": 1}})), "sql_denied")

test_jobs_view_by_an_owner if allowed(as_owner(query({"words": {"INFORMATION_SCHEMA": 1, "JOBS": 1}})), "owners")

test_description_for_every_caller if {
	d := decide(object.union(base, {
		"caller": caller("corp", []),
		"request": {"method": "discovery", "kind": "other", "project": "", "dataset": "", "table": ""},
	}))
	d.allow
	d.reasons[0].code == "public"
	d.limits.maximum_bytes_billed == 0
}
