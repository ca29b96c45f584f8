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
	"allow_statements": ["CALL"],
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
	every field in ["projects", "datasets", "connections"] {
		spoils(changed({field: []}), field)
		spoils(changed({field: "x"}), field)
		spoils(changed({field: [1]}), field)
		spoils(changed({field: [""]}), field)
		spoils(changed({field: null}), field)
	}
	spoils(object.remove(good, ["projects"]), "projects")
	problems(object.remove(good, ["datasets", "connections"])) == set()
}

test_methods if {
	spoils(changed({"methods": ["write", "all"]}), "methods holds all")
	not usable(object.remove(good, ["methods"])) == {"g": good}
}

test_statements if {
	spoils(changed({"allow_statements": ["SELECT"]}), "allow_statements holds SELECT")
	spoils(changed({"methods": ["read"]}), "needs the method write")
	problems(changed({"methods": ["admin"]})) == set()
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
	found == [{"where": "grants.g", "message": "projects has to be a list of strings, with one at least"}]
}

test_prepared if {
	p := prepare.grant with data.grants as {"g": object.remove(good, ["expires"])}
	p.g == {
		"match": {}, "connections": {"main": true}, "projects": {"": true, "acme": true},
		"datasets": {"": true, "*": true}, "level": 2, "maximum_bytes_billed": 1000, "expires_ns": 9223372036854775807, "statements": {"CALL": true},
		"labels": {"team": "x", "verbatim_grant": "g"}, "extra": {"credential": "c", "retention": "r"},
	}
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
