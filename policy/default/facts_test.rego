package verbatim.facts_test

import data.verbatim.policy
import data.verbatim.policy_test as common
import data.verbatim.prepare
import data.verbatim.uses

# What the default policy makes of facts: tables, functions, dry runs, budgets,
# times.

grants := {
	"bot": {
		"match": {"issuer": "corp", "group": "analysts"},
		"read": ["acme.sales", "acme.web.events_*", "acme.hr.offices"],
		"write": ["acme.out.report"],
		"scratch": ["acme.tmp"],
		"limits": {"maximum_bytes_billed": 1000},
	},
	"nobody": {"match": {"issuer": "corp", "group": "others"}, "read": ["acme.x"]},
}

with_grant(changes) := object.union(grants, {"bot": changes})

decide_by(asked, g) := d if {
	p := prepared(g)
	d := policy.decision with input as asked with data.verbatim.prepare as p
}

decide(asked) := decide_by(asked, {})

ready := common.kept(grants, {})

prepared(g) := common.kept(g, {}) if g != {}

prepared({}) := ready

refused_by(asked, g, code, text) if {
	d := decide_by(asked, g)
	d.allow == false
	not d.dry_run
	[r.code | some r in d.reasons] == [code]
	contains(d.reasons[0].message, sprintf("(rule %s", [code]))
	contains(d.reasons[0].message, text)
}

refused(asked, code, text) if refused_by(asked, {}, code, text)

passes_by(asked, g) if {
	d := decide_by(asked, g)
	d.allow == true
	d.reasons == [{"code": "granted", "message": "allowed by the grant bot"}]
}

passes(asked) if passes_by(asked, {})

waits_by(asked, g) if {
	d := decide_by(asked, g)
	d.allow == false
	d.dry_run == true
	d.reasons[0].code == "dry_run_needed"
}

waits(asked) if waits_by(asked, {})

# Inputs.

table(name, how) := {
	"name": name, "dataset_name": concat(".", [parts[0], parts[1]]), "project": parts[0], "dataset": parts[1], "table": parts[2], "as": how, "source": "parser", "kind": "TABLE", "information_schema": "", "columns": [],
	"all_columns": true,
} if {
	parts := split(name, ".")
}

view(name) := object.union(table(name, "from"), {"kind": ""})

no_problem := {"code": "", "message": "", "line": 0, "column": 0, "fallback": false}

facts := {
	"source": "parser", "problem": no_problem, "statements": [{"kind": "SELECT", "line": 1, "column": 1, "depth": 0}], "functions": [],
	"externals": [], "opaque": [], "query_label": false, "temporary": [],
}

sql(changes) := object.union(common.base, {
	"request": {"method": "bigquery.jobs.query", "kind": "query", "dataset": "", "table": ""},
	"sql": object.union(common.select, {"facts": object.union(facts, changes)}),
})

reading(tables) := object.union(sql({}), {"reads": tables})

writing(kind, tables) := object.union(sql({"statements": [{"kind": kind, "line": 2, "column": 3, "depth": 0}]}), {"writes": tables})

dry_run := {
	"statement_type": "SELECT", "tables": [], "routines": [], "target": table("..", ""), "bytes_processed": 10, "complete": true,
	"only_parser": [], "only_dry_run": [], "error": "",
}

ran(asked, changes) := object.union(asked, {"sql": {"dry_run": object.union(dry_run, changes)}})

# Tables.

test_reads if {
	passes(reading([table("acme.sales.t", "from"), table("acme.web.events_2026", "from"), table("acme.hr.offices", "from")]))
	passes(reading([table("acme.web.events_*", "from"), table("acme.tmp.x", "from")]))
	passes(reading([]))
}

test_reads_refused if {
	refused(reading([table("acme.sales.t", "from"), table("acme.hr.salaries", "from")]), "dataset_denied", `read "acme.hr.salaries"`)
	refused(reading([table("acme.web.other", "from")]), "dataset_denied", "acme.web.other")
	refused(reading([table("acme.web.event*", "from")]), "dataset_denied", "acme.web.event*")
	refused(reading([table("other.sales.t", "from")]), "project_denied", `"other" of "other.sales.t"`)
	refused(reading([table("acme.hr.offices2", "from")]), "dataset_denied", "offices2")
	refused(reading([table("acme.sales2.t", "from")]), "dataset_denied", "sales2")
}

test_write_is_not_read if refused(reading([table("acme.out.report", "from")]), "sql_denied", "does not let you read")

test_writes if {
	passes(writing("INSERT", [table("acme.out.report", "target")]))
	passes(writing("MERGE", [table("acme.tmp.t", "target")]))
	passes(writing("CREATE_TABLE_AS_SELECT", [table("acme.tmp.t", "create")]))
	passes(writing("CREATE_FUNCTION", [table("acme.tmp.", "create")]))
	passes(writing("TRUNCATE_TABLE", [table("acme.out.report", "truncate")]))
}

test_writes_refused if {
	refused(writing("DELETE", [table("acme.sales.t", "target")]), "sql_denied", `write "acme.sales.t", which the SQL does (DELETE at 2:3)`)
	refused(writing("DROP_TABLE", [table("acme.out.report", "drop")]), "sql_denied", "create, change or drop")
	refused(writing("CREATE_TABLE", [table("acme.sales.t", "create")]), "sql_denied", "create, change or drop")
	refused(writing("CREATE_SCHEMA", [table("acme.tmp.", "create")]), "sql_denied", `administrate all of "acme.tmp"`)
	refused(writing("CREATE_SCHEMA", [table("acme.new.", "create")]), "dataset_denied", `all of "acme.new"`)
	refused(writing("DROP_SCHEMA", [table("acme.sales.t", "drop"), table("acme.sales.", "drop")]), "sql_denied", "acme.sales")
	refused(writing("ALTER_TABLE", [table("acme.tmp.t", "policy")]), "sql_denied", "administrate")
	refused(writing("INSERT", [table("acme.secret.t", "target")]), "dataset_denied", "acme.secret.t")
}

to(name) := object.union(reading([table("acme.sales.t", "from")]), {"writes": [table(name, "destination")]})

test_destination if {
	passes(to("acme.out.report"))
	refused(to("acme.sales.u"), "sql_denied", `write "acme.sales.u"`)
}

test_route_and_body if {
	rows := object.union(common.base, {"request": {"dataset": "sales"}, "reads": [object.union(table("acme.sales.t", "route"), {"source": "route", "kind": ""})]})
	passes(rows)
	insert := object.union(common.base, {"request": {"method": "bigquery.tabledata.insertAll"}, "writes": [table("acme.out.report", "route")]})
	passes(insert)
	drop := object.union(common.base, {"request": {"method": "bigquery.tables.delete"}, "writes": [table("acme.out.report", "route")]})
	refused(drop, "method_denied", "create, change or drop")
	create := object.union(common.base, {"request": {"method": "bigquery.tables.insert"}, "writes": [table("acme.tmp.t", "body")]})
	passes(create)
}

test_results_of_jobs if {
	passes(reading([table("acme._abc.anon", "from")]))
	passes(object.union(common.base, {"request": {"dataset": "_abc", "table": "anon"}}))
	refused(object.union(common.base, {"request": {"method": "bigquery.tables.delete", "dataset": "_abc", "table": "anon"}}), "dataset_denied", "_abc")
}

job(reads, writes) := object.union(common.base, {
	"request": {"method": "bigquery.jobs.insert", "job_type": "copy", "dataset": "", "table": ""},
	"reads": reads,
	"writes": writes,
})

test_copy if {
	passes(job([table("acme.sales.t", "copy")], [table("acme.tmp.t", "copy")]))
	refused(job([table("acme.hr.salaries", "copy")], [table("acme.tmp.t", "copy")]), "dataset_denied", "salaries")
	refused(job([table("acme.sales.t", "copy")], [table("acme.sales.u", "copy")]), "method_denied", "write")
	refused(job([], [table("acme.tmp.t", "copy")]), "datasets_unknown", "bot")
}

of(dataset, name) := object.union(table(concat("", ["acme.", dataset, "."]), "from"), object.union(
	{"information_schema": name, "kind": ""},
	{k: "acme." | some k in ["name", "dataset_name"]; dataset == ""},
))

test_information_schema if {
	passes(reading([of("sales", "TABLES")]))
	refused(reading([of("web", "TABLES")]), "dataset_denied", `all of "acme.web"`)
	refused(reading([of("", "TABLES")]), "dataset_denied", `all of "acme"`)
	refused(reading([of("", "JOBS_BY_PROJECT")]), "jobs_denied", "JOBS")
	refused(reading([of("", "SOMETHING_NEW")]), "jobs_denied", "JOBS")
	passes_by(reading([of("", "JOBS")]), with_grant({"allow": ["JOBS"]}))
	refused_by(
		reading([object.union(of("", "JOBS"), {"project": "other"})]),
		with_grant({"allow": ["JOBS"]}), "project_denied", "other",
	)
	listing := object.union(common.base, {"request": {"method": "bigquery.jobs.list", "dataset": "", "table": ""}})
	passes_by(listing, with_grant({}))
	passes_by(listing, with_grant({"allow": ["JOBS"]}))
}

# Views.

test_views_are_asked_for if {
	waits(reading([view("acme.sales.v")]))
	every kind in ["VIEW", "MATERIALIZED_VIEW", "SOMETHING_NEW"] {
		waits(reading([object.union(view("acme.sales.v"), {"kind": kind})]))
	}
	every kind in ["TABLE", "SNAPSHOT", "EXTERNAL"] {
		passes(reading([object.union(view("acme.sales.v"), {"kind": kind})]))
	}
	refused(reading([view("acme.hr.v")]), "dataset_denied", "acme.hr.v")
	passes_by(reading([view("acme.sales.v")]), with_grant({"views": "trust"}))
	passes_by(reading([table("any.raw.t", "from")]), with_grant({"projects": ["*"], "datasets": ["raw"], "methods": ["read"]}))
	passes_by(reading([view("acme.sales.v")]), with_grant({"views": "trust", "connections": ["main"]}))
	waits_by(reading([view("acme.sales.v")]), with_grant({"connections": ["main"]}))
	passes_by(reading([view("acme.any.v")]), with_grant({"projects": ["acme"], "datasets": ["*"], "methods": ["read"]}))
	waits_by(reading([view("acme.any.v")]), with_grant({"projects": ["acme"], "datasets": ["*"], "methods": ["read"], "views": "dry_run"}))
}

test_views_are_looked_behind if {
	asked := reading([view("acme.sales.v")])
	passes(ran(asked, {"tables": [table("acme.sales.t", "from")], "only_dry_run": ["acme.sales.t"]}))
	passes(ran(asked, {"tables": [table("acme._r.x", "from")], "only_dry_run": ["acme._r.x"]}))
	refused(ran(asked, {"tables": [table("acme.hr.salaries", "from")]}), "dataset_denied", "salaries")
	refused(ran(asked, {"only_dry_run": ["acme.hr.salaries"]}), "dataset_denied", "salaries")
	refused(ran(asked, {"only_dry_run": ["what"]}), "project_denied", "what")
	refused(object.union(ran(asked, {"complete": false}), {"incomplete": ["dry_run_list"]}), "tables_unknown", "dry_run_list")
	all := with_grant({"projects": ["acme"], "datasets": ["*"], "methods": ["read"]})
	passes_by(object.union(ran(asked, {"complete": false}), {"incomplete": ["dry_run_list"]}), all)
}

test_target_of_a_dry_run_is_no_read if {
	asked := object.union(writing("MERGE", [table("acme.out.report", "target")]), {"reads": [view("acme.sales.v")]})
	waits(asked)
	passes(ran(asked, {"statement_type": "MERGE", "tables": [table("acme.out.report", "from")], "target": table("acme.out.report", "target")}))
	passes(ran(asked, {"statement_type": "MERGE", "only_dry_run": ["acme.out.report"]}))
}

test_dry_run_differs if {
	refused(ran(reading([table("acme.sales.t", "from")]), {"statement_type": "INSERT"}), "tables_unknown", "dry_run_differs")
	passes(ran(reading([table("acme.sales.t", "from")]), {"statement_type": "SCRIPT"}))
}

test_dry_run_refused if refused(ran(reading([view("acme.sales.v")]), {"error": "Unrecognized name: x"}), "dry_run_refused", "Unrecognized name")

# Statements, functions, what hides.

test_kinds if {
	every kind in uses.reading_kinds | {"SELECT"} {
		passes(sql({"statements": [{"kind": kind, "line": 1, "column": 1, "depth": 0}]}))
	}
	every kind in ["CREATE_ROW_ACCESS_POLICY", "CREATE_RESERVATION", "SOMETHING_NEW"] {
		refused(sql({"statements": [{"kind": kind, "line": 1, "column": 5, "depth": 0}]}), "statement_denied", sprintf("%s at 1:5", [kind]))
	}
	every kind, name in uses.reaching_kinds {
		asked := sql({"statements": [{"kind": kind, "line": 1, "column": 1, "depth": 0}]})
		refused(asked, "statement_denied", name)
		passes_by(asked, with_grant({"allow": [name]}))
	}
}

test_opaque if {
	every word, name in uses.opaque_names {
		asked := object.union(sql({"opaque": [word]}), {"incomplete": [word]})
		refused(asked, "statement_denied", name)
		passes_by(asked, with_grant({"allow": [name]}))
	}
	refused(sql({"opaque": ["unresolved_table_argument"]}), "tables_unknown", "unresolved_table_argument")
	refused(object.union(sql({}), {"incomplete": ["unresolved"]}), "tables_unknown", "unresolved")
	passes(sql({"opaque": ["unknown_value"]}))
	refused(sql({"query_label": true}), "statement_denied", "SET")
}

function(name, kind) := {"name": name, "kind": kind, "defined": false, "language": ""}

elsewhere(changes) := {"bot": object.union(object.remove(grants.bot, ["read", "write", "scratch"]), changes)}

test_jobs_in_another_project if {
	asked := reading([table("acme.sales.t", "from"), table("acme.hr.salaries", "from")])
	refused_by(asked, elsewhere({"projects": ["acme"], "read": ["data.sales"]}), "dataset_denied", "acme.hr.salaries")
	there := object.union(asked, {"request": {"project": "jobs"}})
	refused_by(there, elsewhere({"projects": ["jobs"], "read": ["acme.sales"]}), "dataset_denied", "salaries")
	refused_by(there, elsewhere({"projects": ["jobs"], "read": ["acme.sales.*"]}), "dataset_denied", "salaries")
	refused_by(asked, elsewhere({"projects": ["jobs"], "read": ["acme.sales"]}), "project_denied", "acme")
	passes_by(object.union(there, {"reads": [table("acme.sales.t", "from")]}), elsewhere({"projects": ["jobs"], "read": ["acme.sales"]}))
}

test_functions if {
	passes(sql({"functions": [function("COUNT", "builtin"), function("f", "temporary"), function("ML.NGRAMS", "ml")]}))
	every f in [
		["acme.udfs.f", "udf"], ["acme.udfs.g", "table_function"], ["acme.udfs.p", "procedure"], ["acme.udfs.a", "aggregate_udf"],
		["ML.PREDICT", "ml"], ["AI.GENERATE", "ai"], ["OBJ.GET_ACCESS_URL", "builtin"],
	] {
		asked := sql({"functions": [function(f[0], f[1])]})
		refused(asked, "function_denied", f[0])
		waits_by(asked, with_grant({"functions": [f[0]]}))
		passes_by(ran(asked, {"routines": []}), with_grant({"functions": ["acme.udfs.*", "ML.*", "AI.*", "OBJ.GET_ACCESS_URL"]}))
	}
	refused(ran(sql({}), {"routines": ["acme.udfs.f"]}), "function_denied", "acme.udfs.f")
	refused(sql({"functions": [function("EXTERNAL_QUERY", "external_query")]}), "statement_denied", "EXTERNAL_QUERY")
	refused(sql({"functions": [function("acme.udfs.r", "remote")]}), "statement_denied", "REMOTE")
	every language, name in {"js": "LANGUAGE", "python": "LANGUAGE", "remote": "REMOTE", "spark": "REMOTE"} {
		made := {"name": "f", "kind": "temporary", "defined": true, "language": language}
		refused(sql({"functions": [made]}), "statement_denied", name)
	}
}

external(kind, access) := {"kind": kind, "value": "x", "access": access}

kinds(kind) := {"statements": [{"kind": kind, "line": 1, "column": 1, "depth": 0}]}

test_externals if {
	every c in [
		[external("uri", "write"), {}, "EXPORT DATA"],
		[external("query", "read"), {}, "EXTERNAL_QUERY"],
		[external("uri", "read"), {}, "EXTERNAL"],
		[external("uri", "read"), kinds("LOAD_DATA"), "LOAD DATA"],
		[external("connection", "read"), kinds("EXPORT_DATA"), "EXPORT DATA"],
		[external("connection", "read"), kinds("CREATE_MODEL"), "MODEL"],
		[external("connection", "read"), {"functions": [function("EXTERNAL_QUERY", "external_query")]}, "EXTERNAL_QUERY"],
		[external("connection", "read"), {"functions": [object.union(function("f", "temporary"), {"defined": true, "language": "remote"})]}, "REMOTE"],
	] {
		asked := sql(object.union(c[1], {"externals": [c[0]]}))
		n := uses.needed with input as asked
		n == {c[2]}
		refused(asked, "statement_denied", c[2])
		passes_by(asked, with_grant({"allow": [c[2]]}))
	}
}

# Texts that nobody read, and those that a dry run tells.

test_problem if {
	p := {"code": "syntax", "message": "FOO is unexpected", "line": 3, "column": 7, "fallback": false}
	refused(sql({"problem": p}), "sql_unreadable", `"FOO is unexpected", at 3:7`)
	refused(sql({"problem": object.union(p, {"fallback": true})}), "sql_unreadable", "at 3:7")
	soft := sql({"source": "dry_run", "problem": object.union(p, {"fallback": true}), "statements": kinds("MERGE").statements})
	asked := object.union(soft, {"reads": [table("acme.sales.t", "from")], "writes": [table("acme.out.report", "target")]})
	refused(asked, "sql_unreadable", "at 3:7")
	passes(ran(asked, {"statement_type": "MERGE"}))
	refused(ran(asked, {"complete": false}), "sql_unreadable", "at 3:7")
	refused(ran(asked, {"error": "no"}), "sql_unreadable", "at 3:7")
	refused(ran(object.union(asked, {"sql": {"words": {"EXTERNAL_QUERY": 1}}}), {}), "statement_denied", "EXTERNAL_QUERY")
	refused(ran(object.union(asked, {"sql": {"words": {"ML": 1}}}), {}), "statement_denied", "REMOTE")
	refused(ran(object.union(asked, {"sql": {"words": {"RESERVATION": 1}}}), {}), "statement_denied", "RESERVATION")
	refused(ran(object.union(asked, {"sql": {"problem": "a literal is not closed"}}), {}), "sql_unreadable", "a literal")
}

test_unread if {
	asked := common.query({})
	refused(asked, "datasets_unknown", "bot")
	passes_by(asked, with_grant({"projects": ["acme"], "read": ["*"]}))
	refused_by(common.query({"words": {"INSERT": 1}}), with_grant({"projects": ["acme"], "read": ["*"]}), "sql_denied", "INSERT")
}

# Cost.

test_cost if {
	asked := reading([table("acme.sales.t", "from")])
	passes(asked)
	passes(ran(asked, {"bytes_processed": 1000}))
	refused(ran(asked, {"bytes_processed": 1001}), "cost_denied", "1001 bytes, and the grant bot allows 1000")
	low := with_grant({"limits": {"estimated_bytes": 500}})
	waits_by(asked, low)
	passes_by(ran(asked, {"bytes_processed": 500}), low)
	refused_by(ran(asked, {"bytes_processed": 501}), low, "cost_denied", "allows 500")
	waits_by(asked, with_grant({"limits": {"estimated_bytes": 500}, "views": "trust"}))
}

# Budgets.

spent(asked, n) := object.union(asked, {"usage": {"known": true, "windows": [
	{"of": "run", "seconds": 86400, "queries": 99, "bytes": 9999, "rows": 9999},
	{"of": "principal", "seconds": 3600, "queries": 99, "bytes": 9999, "rows": 9999},
	object.union({"of": "principal", "seconds": 86400, "queries": 0, "bytes": 0, "rows": 0}, n),
]}})

test_budgets if {
	g := with_grant({"budgets": [{"of": "principal", "window": "24h", "queries": 5, "bytes": 2000, "rows": 50}]})
	asked := reading([table("acme.sales.t", "from")])
	passes_by(spent(asked, {}), g)
	passes_by(spent(asked, {"queries": 4, "bytes": 1999, "rows": 49}), g)
	refused_by(spent(asked, {"queries": 5}), g, "budget_spent", "the budget of 5 queries in 24h for each principal")
	refused_by(spent(asked, {"bytes": 2000}), g, "budget_spent", "2000 bytes")
	refused_by(spent(asked, {"rows": 50}), g, "budget_spent", "50 rows")
	passes_by(spent(ran(asked, {"bytes_processed": 99}), {"bytes": 1900}), g)
	refused_by(spent(ran(asked, {"bytes_processed": 100}), {"bytes": 1900}), g, "budget_spent", "2000 bytes")
	refused_by(asked, g, "budget_unknown", "bot")
	refused_by(object.union(asked, {"usage": {"known": true}}), g, "budget_unknown", "bot")
	left := decide_by(spent(asked, {"bytes": 1500}), g)
	left.limits.maximum_bytes_billed == 500
	full := decide_by(spent(asked, {"bytes": 100}), g)
	full.limits.maximum_bytes_billed == 1000
}

test_budgets_of_rows if {
	g := with_grant({"budgets": [{"of": "principal", "window": "24h", "queries": 5, "rows": 50}]})
	rows := object.union(common.base, {"request": {"dataset": "sales"}})
	passes_by(spent(rows, {"queries": 5}), g)
	refused_by(spent(rows, {"rows": 50}), g, "budget_spent", "50 rows")
	page := object.union(common.base, {"request": {"method": "bigquery.jobs.getQueryResults", "dataset": "", "table": "", "job": "j"}})
	refused_by(spent(page, {"rows": 50}), g, "budget_spent", "50 rows")
	stream := object.union(common.base, {
		"request": {"method": "google.cloud.bigquery.storage.v1.BigQueryRead.ReadRows", "dataset": "sales", "table": "t"},
		"reads": [object.union(table("acme.sales.t", "storage_read"), {"source": "storage_read"})],
	})
	passes_by(spent(stream, {"rows": 49}), g)
	refused_by(spent(stream, {"rows": 50}), g, "budget_spent", "50 rows")
	metadata := object.union(common.base, {"request": {"method": "bigquery.tables.get", "dataset": "sales"}})
	passes_by(metadata, g)
	try := object.union(reading([]), {"request": {"dry_run": true}})
	passes_by(try, g)
}

test_windows if {
	w := prepare.windows with data.grants as with_grant({"budgets": [{"of": "run", "window": "7d", "rows": 5}, {"of": "principal", "window": "90m", "rows": 5}]})
	{x | some x in w} == {{"of": "run", "seconds": 604800}, {"of": "principal", "seconds": 5400}}
}

test_storage_read if {
	service := "google.cloud.bigquery.storage.v1.BigQueryRead"
	every method in ["CreateReadSession", "ReadRows", "SplitReadStream"] {
		asked := object.union(common.base, {"request": {"method": sprintf("%s.%s", [service, method]), "dataset": "", "table": ""}})
		of := object.union(table("acme.sales.t", "storage_read"), {"source": "storage_read"})
		passes(object.union(asked, {"reads": [of]}))
		refused(object.union(asked, {"reads": [table("acme.hr.pay", "storage_read")]}), "dataset_denied", "acme.hr.pay")
	}

	# Of which nobody says what it reads: the whole project, or a result of one's own.
	nothing := object.union(common.base, {"request": {"method": concat(".", [service, "ReadRows"]), "dataset": "", "table": ""}})
	refused(nothing, "dataset_denied", "acme")
	passes(object.union(nothing, {"request": {"job": "j"}}))
	passes(object.union(nothing, {"request": {"dataset": "_anon", "table": "t"}}))
	session := object.union(nothing, {"request": {"method": concat(".", [service, "CreateReadSession"]), "job": "j"}})
	refused(session, "dataset_denied", "acme")
}

# Times. The base's is Friday, 2026-01-02, 03:04:05.

at(moment) := object.union(reading([table("acme.sales.t", "from")]), {"time": moment})

test_hours if {
	day := with_grant({"hours": [{"days": ["mon", "fri"], "from": "08:00", "until": "18:00"}]})
	passes_by(at("2026-01-02T08:00:00Z"), day)
	passes_by(at("2026-01-02T17:59:59Z"), day)
	refused_by(at("2026-01-02T18:00:00Z"), day, "outside_hours", "mon fri 08:00 to 18:00")
	refused_by(at("2026-01-02T07:59:59Z"), day, "outside_hours", "bot")
	refused_by(at("2026-01-03T12:00:00Z"), day, "outside_hours", "bot")
	night := with_grant({"hours": [{"days": ["fri"], "from": "22:00", "until": "06:00"}]})
	passes_by(at("2026-01-02T22:00:00Z"), night)
	passes_by(at("2026-01-03T05:59:59Z"), night)
	refused_by(at("2026-01-02T05:00:00Z"), night, "outside_hours", "bot")
	refused_by(at("2026-01-03T06:00:00Z"), night, "outside_hours", "bot")
}

in_window(asked, w) := d if {
	p := common.kept(grants, {"freeze": w})
	d := policy.decision with input as asked with data.verbatim.prepare as p
}

code_in_window(asked, w) := in_window(asked, w).reasons[0].code

freeze := {"from": "2026-01-02T00:00:00Z", "until": "2026-01-03T00:00:00Z", "message": "the books are closed"}

test_maintenance if {
	asked := at("2026-01-02T12:00:00Z")
	d := in_window(asked, freeze)
	d.allow == false
	d.reasons == [{"code": "maintenance", "message": concat("", [
		"the request is refused for now (rule maintenance): the books are closed, in the window freeze, which lets nothing pass, ",
		"until 2026-01-03T00:00:00Z; try again after it",
	])}]
	code_in_window(at("2026-01-03T00:00:00Z"), freeze) == "granted"
	code_in_window(at("2026-01-01T23:59:59Z"), freeze) == "granted"
	code_in_window(asked, object.union(freeze, {"except": ["bot"]})) == "granted"
	code_in_window(asked, object.union(freeze, {"connections": ["other"]})) == "granted"
	code_in_window(asked, object.union(freeze, {"tables": ["acme.hr"]})) == "granted"
	code_in_window(asked, object.union(freeze, {"tables": ["acme.sales"]})) == "maintenance"
	weekly := {"weekly": [{"days": ["fri"], "from": "00:00", "until": "00:00"}]}
	code_in_window(asked, weekly) == "maintenance"
	code_in_window(at("2026-01-04T12:00:00Z"), weekly) == "granted"
}

at_noon(asked) := object.union(asked, {"time": "2026-01-02T12:00:00Z"})

test_maintenance_lets_read if {
	reads := object.union(freeze, {"let": "read"})
	code_in_window(at_noon(reading([table("acme.sales.t", "from")])), reads) == "granted"
	code_in_window(at_noon(writing("INSERT", [table("acme.out.report", "target")])), reads) == "maintenance"
	code_in_window(at_noon(sql(kinds("CALL"))), reads) == "maintenance"
	code_in_window(at_noon(common.query({"words": {"INSERT": 1}})), reads) == "maintenance"
	elsewhere := object.union(freeze, {"tables": ["acme.hr"]})
	code_in_window(at_noon(sql(kinds("CALL"))), elsewhere) == "maintenance"
	code_in_window(at_noon(common.query({})), elsewhere) == "maintenance"
	code_in_window(at_noon(object.union(sql({}), {"incomplete": ["unresolved"]})), elsewhere) == "maintenance"
}

# Who.

test_workload_without_groups if {
	g := {"bot": object.union(object.remove(grants.bot, ["match"]), {"match": {"issuer": "cluster", "namespace": "etl", "service_account": "runner"}})}
	asked := common.runner(reading([table("acme.sales.t", "from")]))
	passes_by(asked, g)
	other := object.union(asked, {"provenance": {"service_account": "other"}})
	refused_by(other, g, "no_grant", "cluster")
}

test_second_issuer if {
	asked := reading([table("acme.sales.t", "from")])
	refused(object.union(asked, {"caller": common.caller("evil", ["evil/analysts", "corp/analysts"])}), "no_grant", "evil")
	subject := {"bot": object.union(object.remove(grants.bot, ["match"]), {"match": {"issuer": "corp", "subject": "somebody"}})}
	passes_by(asked, subject)
	refused_by(object.union(asked, {"caller": common.caller("evil", [])}), subject, "no_grant", "evil")
}
