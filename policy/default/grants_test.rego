package verbatim.grants_test

import data.verbatim.grants
import data.verbatim.prepare

good := {
	"description": "for the tests",
	"match": {"issuer": "corp", "group": "analysts"},
	"projects": ["acme"],
	"datasets": ["*"],
	"connections": ["main"],
	"methods": ["read", "write"],
	"limits": {"maximum_bytes_billed": 1000},
	"expires": "2026-06-01T00:00:00Z",
	"allow": ["CALL"],
	"labels": {"team": "x"},
	"credential": "c",
	"retention": "r",
}

problems(grant) := {message | some [_, message] in found} if {
	found := grants.problems with data.grants as {"g": grant}
}

usable(grant) := u if u := grants.usable with data.grants as {"g": grant}

# One change makes the grant unusable, with one finding that holds the text.
spoils(grant, text) if {
	found := problems(grant)
	count(found) == 1
	some message in found
	contains(message, text)
	usable(grant) == {}
}

changed(changes) := object.union(good, changes)

matching(match) := object.union(object.remove(good, ["match"]), {"match": match})

test_good if {
	problems(good) == set()
	usable(good) == {"g": good}
}

test_name if {
	every name in ["", "A", "1a", "a b", "a.b"] {
		found := grants.problems with data.grants as {name: good}
		count(found) == 1
		u := grants.usable with data.grants as {name: good}
		u == {}
	}
}

test_not_an_object if spoils("x", "has to be an object")

test_unknown_field if spoils(changed({"expiers": "x"}), "expiers")

test_no_match if spoils(object.remove(good, ["match"]), "match has to be an object")

test_match_unknown_field if spoils(changed({"match": {"grup": "x"}}), "grup")

test_match_empty_value if spoils(changed({"match": {"subject": ""}}), "match.subject")

test_match_number if spoils(changed({"match": {"ref": 7}}), "match.ref")

test_empty_issuer if spoils(changed({"match": {"issuer": ""}}), "match.issuer")

test_no_issuer if spoils(matching({"group": "x"}), "no issuer")

test_empty_match if count(problems(matching({}))) == 2

test_no_anchor if spoils(matching({"issuer": "github", "ref": "refs/heads/main"}), "says nobody")

test_qualified_group if spoils(changed({"match": {"group": "corp/analysts"}}), "without its issuer")

test_service_account_alone if spoils(matching({"issuer": "k", "service_account": "default"}), "namespace")

test_service_account_with_namespace if {
	problems(matching({"issuer": "k", "service_account": "default", "namespace": "n"})) == set()
}

test_service_account_address if problems(matching({"issuer": "g", "service_account": "a@b.example"})) == set()

test_lists if {
	every field in ["projects", "datasets", "connections", "allow", "functions", "read", "write", "scratch", "admin"] {
		spoils(changed({field: []}), field)
		spoils(changed({field: "x"}), field)
		spoils(changed({field: [1]}), field)
		spoils(changed({field: null}), field)
	}
	spoils(object.remove(good, ["projects"]), "projects is missing")
	problems(object.remove(good, ["datasets", "connections"])) == set()
}

test_empty_names if {
	every field in ["connections", "functions"] {
		spoils(changed({field: [""]}), field)
	}
}

test_methods if {
	spoils(changed({"methods": ["write", "all"]}), "methods holds all")
	spoils(object.union(object.remove(good, ["methods"]), {"read": ["acme.x"]}), "datasets needs methods")
	spoils(object.remove(good, ["methods", "datasets"]), "it allows nothing")
}

test_allow if spoils(changed({"allow": ["SELECT"]}), "allow holds SELECT")

test_views if {
	spoils(changed({"views": "yes"}), "views has to be")
	problems(changed({"views": "trust"})) == set()
}

test_names_of_projects_and_datasets if {
	spoils(changed({"projects": ["acme.raw"]}), "ids of projects")
	every bad in ["acme.raw.t", "raw.", "a b", "r*w"] {
		spoils(changed({"datasets": [bad]}), "tables stand in read and write")
	}
}

long := object.union(object.remove(good, ["projects", "datasets", "methods"]), {"read": ["acme.sales"]})

test_long_form if {
	problems(long) == set()
	spoils(object.union(long, {"read": ["*"]}), "projects is missing")
	problems(object.union(long, {"read": ["*"], "projects": ["acme"]})) == set()
}

test_patterns if {
	sound := [
		"*", "acme.*", "acme.raw", "acme.raw*", "acme.raw.t", "acme.raw.t*", "acme.raw.*", "*.raw", "example.com:acme.raw.t",
		"acme.raw.Größe",
	]
	every p in sound {
		problems(object.union(long, {"read": [p, "acme.x"]})) == set()
	}
	every p in ["acme", "acme*", "acme.r*w", "acme.raw.t.u", "*.*", "*.raw.t", "*.raw*", "acme..t", "a*.raw", ".raw"] {
		spoils(object.union(long, {"read": [p, "acme.x"]}), "it takes project.dataset")
	}
}

test_budgets if {
	b := {"of": "principal", "window": "24h", "queries": 5}
	problems(changed({"budgets": [b, {"of": "run", "window": "31d", "bytes": 1, "rows": 2}]})) == set()
	some_bad := [
		[], [{"of": "principal", "window": "24h"}], 7, [b, b, b, b, b, b, b, b, b], [object.union(b, {"of": "team"})],
		[object.union(b, {"window": "32d"})], [object.union(b, {"window": "0h"})], [object.union(b, {"window": "1w"})],
		[object.union(b, {"queries": 0})], [object.union(b, {"cost": 1})],
	]
	every bad in some_bad {
		spoils(changed({"budgets": bad}), "budgets has to be")
	}
	w := prepare.windows with data.grants as {"g": changed({"budgets": [b, object.union(b, {"bytes": 9})]})}
	w == [{"of": "principal", "seconds": 86400}]
}

test_hours if {
	span := {"from": "22:00", "until": "06:00"}
	problems(changed({"hours": [span, object.union(span, {"days": ["mon"]})]})) == set()
	some_bad := [
		[], {}, [{"from": "22:00"}], [object.union(span, {"until": "24:00"})], [object.union(span, {"days": []})],
		[object.union(span, {"days": "mon"})], [object.union(span, {"days": ["monday"]})], [object.union(span, {"zone": "UTC"})],
	]
	every bad in some_bad {
		spoils(changed({"hours": bad}), "hours has to be")
	}
}

window := {"from": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}

window_problems(w) := {message | some ["maintenance.w", message] in found} if {
	found := grants.problems with data.grants as {} with data.maintenance as {"w": w}
}

test_windows if {
	window_problems(window) == set()
	weekly := {"weekly": [{"from": "22:00", "until": "06:00"}], "let": "read", "connections": ["main"], "tables": ["acme.*"]}
	window_problems(weekly) == set()
	window_problems(7) == {"it has to be an object"}
	some_bad := [
		[object.union(window, {"form": 1}), "not known"], [object.union(window, {"let": "all"}), "let has to be"],
		[object.union(window, {"message": "a\nb"}), "message has to be"], [object.remove(window, ["until"]), "it needs from and until"],
		[object.union(window, {"until": "2025-01-01T00:00:00Z"}), "it needs from and until"],
		[object.union(weekly, {"weekly": []}), "weekly has to be"], [object.union(weekly, window), "in the place of"],
		[object.union(window, {"except": []}), "except has to be"], [object.union(window, {"tables": ["acme"]}), "tables holds"],
	]
	every pair in some_bad {
		[bad, text] := pair
		found := window_problems(bad)
		some message in found
		contains(message, text)
		u := grants.usable_windows with data.maintenance as {"w": bad}
		u == {}
	}
}

test_grant_limits if {
	every bad in [0, -1, 1.5, "1", 9223372036854775808] {
		spoils(changed({"limits": {"maximum_bytes_billed": bad}}), "limits")
	}
	spoils(changed({"limits": {"rows": 1}}), "limits")
	spoils(changed({"limits": 7}), "limits")
}

test_expires if {
	every bad in ["soon", "2026-13-01T00:00:00Z", 7, null] {
		spoils(changed({"expires": bad}), "expires")
	}
}

test_labels if {
	every bad in [[], {"A": "x"}, {"a": "X"}, {"verbatim_grant": "x"}, {"a": 1}] {
		spoils(object.union(object.remove(good, ["labels"]), {"labels": bad}), "labels")
	}
}

test_share if {
	problems(changed({"share": true})) == set()
	prepared(changed({"share": true})).extra.owner == "corp/analysts"
	problems(changed({"share": false})) == set()
	not prepared(changed({"share": false})).extra.owner
	spoils(changed({"share": "yes"}), "share")
	spoils(object.union(matching({"issuer": "corp", "subject": "ada"}), {"share": true}), "share")
}

test_names if {
	spoils(changed({"credential": "a b"}), "credential")
	spoils(changed({"retention": 7}), "retention")
}

test_limits if {
	found := grants.problems with data.grants as {} with data.limits as {"maximum_bytes_billed": "x", "rows": 1}
	count(found) == 2
	used := grants.default_bytes with data.limits as {"maximum_bytes_billed": "x"}
	used == 107374182400
}

test_findings if {
	found := prepare.findings with data.grants as {"g": object.remove(good, ["projects"])}
	found == [{"where": "grants.g", "message": "projects is missing, and no pattern names one: it says where jobs may run"}]
}

prepared(grant) := p.g if p := prepare.grant with data.grants as {"g": grant}

test_prepared if {
	p := prepared(object.remove(good, ["expires"]))
	some_tables := {"exact": {}, "anywhere": {}, "prefixes": ["acme."]}
	p == {
		"match": {}, "connections": {"main": true}, "projects": {"": true, "acme": true}, "tables": {
			"read": some_tables, "write": some_tables, "scratch": some_tables, "admin": {"exact": {}, "anywhere": {}, "prefixes": []},
			"jobs": some_tables,
		},
		"any_project": false, "rank": [1000, "g"], "everything": true, "trust": true, "functions": {"exact": {}, "anywhere": {}, "prefixes": []}, "allow": {"CALL": true}, "estimated_bytes": 0,
		"budgets": [], "hours": [], "level": 2, "maximum_bytes_billed": 1000, "expires_ns": 9223372036854775807,
		"labels": {"team": "x", "verbatim_grant": "g"}, "extra": {"credential": "c", "retention": "r"},
	}
}

test_prepared_long_form if {
	p := prepared(object.union(object.remove(long, ["limits"]), {
		"write": ["acme.out.t*"], "scratch": ["acme.tmp"], "admin": ["acme.own"], "functions": ["acme.udfs.*", "AI.EMBED"],
		"hours": [{"from": "22:30", "until": "06:00", "days": ["fri"]}], "limits": {"estimated_bytes": 7},
	}))
	p.tables.read == {"exact": {"acme.sales": true, "acme.tmp": true, "acme.own": true}, "anywhere": {}, "prefixes": []}
	p.tables.write == {"exact": {"acme.tmp": true, "acme.own": true}, "anywhere": {}, "prefixes": ["acme.out.t"]}
	p.tables.scratch.exact == {"acme.tmp": true, "acme.own": true}
	p.tables.admin.exact == {"acme.own": true}
	p.projects == {"": true, "acme": true}
	p.functions == {"exact": {"AI.EMBED": true}, "anywhere": {}, "prefixes": ["acme.udfs."]}
	p.hours == [{"days": {"fri": true}, "from": 1350, "until": 360}]
	p.everything == false
	p.trust == false
	p.estimated_bytes == 7
	p.maximum_bytes_billed == 107374182400
}

test_prepared_short_form if {
	all := prepared(changed({"projects": ["*"], "datasets": ["*", "raw", "acme.raw"], "methods": ["admin"]}))
	all.tables.admin == {"exact": {"*.raw": true, "acme.raw": true}, "anywhere": {"raw": true}, "prefixes": [""]}
	all.tables.jobs.prefixes == [""]
	all.allow == {"CALL": true, "JOBS": true}
	some_of := prepared(changed({"datasets": ["raw", "other.raw", "acme.staging"], "methods": ["read"]}))
	some_of.tables.read == {"exact": {"acme.raw": true, "acme.staging": true}, "anywhere": {}, "prefixes": []}
	some_of.tables.write == {"exact": {}, "anywhere": {}, "prefixes": []}
	none := prepared(object.remove(good, ["datasets"]))
	none.tables.read == {"exact": {}, "anywhere": {}, "prefixes": []}
}

test_trust if {
	prepared(changed({"views": "trust", "datasets": ["raw"]})).trust
	not prepared(changed({"views": "dry_run"})).trust
	prepared(object.union(long, {"read": ["*"], "projects": ["acme"]})).trust
}

test_index if {
	narrower := {"g": changed({"match": {"namespace": "n"}}), "h": good}
	plain := prepare.plain with data.grants as narrower
	plain == {"corp": {"group": {"corp/analysts": ["h"]}}}
	narrowed := prepare.narrowed with data.grants as narrower
	narrowed == {"corp": {"group": {"corp/analysts": ["g"]}}}
	p := prepare.grant with data.grants as narrower
	p.g.match == {"namespace": "n"}
}
