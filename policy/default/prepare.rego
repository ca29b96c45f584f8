# METADATA
# title: What the policy looks up, computed once when the policy is loaded
# description: |
#   The engine evaluates this package when it loads the policy, without an input, and keeps the result as data: a
#   decision looks grants up by what the caller is and does not walk through all of them. Only JSON can be kept, so
#   there are no sets here.
package verbatim.prepare

import data.verbatim.grants

# Each usable grant, with its lists turned into objects.
grant := {name: prepared |
	some name, raw in grants.usable
	prepared := {
		"match": object.remove(grants.conditions(raw), [grants.anchor(raw)]),
		"connections": members(object.get(raw, "connections", ["*"])),
		# "" is what projects.list asks for.
		"projects": members(array.concat([""], projects(raw))),
		"tables": object.union(
			{verb: lookup({p | some v in verbs; some p in grants.patterns(raw, v)}) | some verb, verbs in grants.includes},
			{"jobs": lookup({p | some project in projects(raw); p := all_of(project)})},
		),
		"any_project": "*" in projects(raw),
		"rank": [object.get(raw, ["limits", "maximum_bytes_billed"], grants.default_bytes), name],
		"everything": everything(raw),
		"level": level(raw),
		"trust": trust(raw),
		"functions": lookup({p | some p in raw.functions}),
		"allow": object.union(members(object.get(raw, "allow", [])), jobs(raw)),
		"maximum_bytes_billed": object.get(raw, ["limits", "maximum_bytes_billed"], grants.default_bytes),
		"estimated_bytes": object.get(raw, ["limits", "estimated_bytes"], 0),
		"budgets": [b |
			some budget in object.get(raw, "budgets", [])
			b := object.union({"seconds": grants.seconds(budget.window)}, budget)
		],
		"hours": week(object.get(raw, "hours", [])),
		"expires_ns": grants.expiry(raw),
		"labels": object.union(object.get(raw, "labels", {}), {"verbatim_grant": name}),
		"extra": object.union(object.filter(raw, ["credential", "retention"]), shared(raw)),
	}
}

# What the group makes is the group's.
shared(raw) := {"owner": sprintf("%s/%s", [raw.match.issuer, raw.match.group])} if {
	raw.share
} else := {}

# Of these the ones that say nothing but which tables.
plain_grant := {name: prepared |
	some name, g in grant
	count({"budgets", "connections", "expires", "hours"} & object.keys(grants.usable[name])) == 0
	g.estimated_bytes == 0
	prepared := object.union(
		object.filter(g, ["any_project", "projects", "rank", "tables"]),
		{"read": g.tables.read.exact, "whole": whole(g.tables.read)},
	)
}

# Whole datasets by their names, and nothing else.
whole(patterns) if {
	count(patterns.prefixes) + count(patterns.anywhere) == 0
	every p, _ in patterns.exact {
		strings.count(p, ".") == 1
	}
} else := false

# Where jobs may run.
projects(raw) := raw.projects

projects(raw) := [p | some p in grants.pattern_projects(raw)] if not raw.projects

all_of("*") := "*"

all_of(project) := concat("", [project, ".*"]) if project != "*"

# Patterns to look a name up by: whole names, and what names begin with.
lookup(patterns) := {
	"exact": {p: true | some p in patterns; not ends_in_star(p)},
	"anywhere": {trim_prefix(p, "*."): true | some p in patterns; startswith(p, "*.")},
	"prefixes": [substring(p, 0, count(p) - 1) | some p in patterns; ends_in_star(p)],
}

ends_in_star(p) if endswith(p, "*")

# All datasets, as far as the grant goes: nothing could be hidden from it.
everything(raw) if {
	"*" in grants.patterns(raw, "read")
} else if {
	"*" in raw.datasets
} else := false

# Views need not be looked behind.
trust(raw) if {
	raw.views == "trust"
} else if {
	not raw.views
	everything(raw)
} else := false

# What words alone are judged by, where nobody read a text.
level(raw) := max((({0} | {grants.levels[m] | some m in raw.methods}) | {1 | raw.read}))

# Who administrates by the short form sees jobs.
jobs(raw) := {"JOBS": true} if {
	"admin" in raw.methods
} else := {}

week(list) := [span |
	some s in list
	span := {
		"days": members(object.get(s, "days", grants.days)), "from": grants.minutes(s.from),
		"until": grants.minutes(s.until),
	}
]

# The windows of maintenance. One by the week has no moments, and one of moments
# no week.
maintenance := {name: prepared |
	some name, raw in grants.usable_windows
	prepared := {
		"from_ns": moment(raw, "from"),
		"until_ns": moment(raw, "until"),
		"weekly": week(object.get(raw, "weekly", [])),
		"let": object.get(raw, "let", "nothing"),
		"connections": members(object.get(raw, "connections", ["*"])),
		"tables": lookup({p | some p in object.get(raw, "tables", ["*"])}),
		"anywhere": object.get(raw, "tables", ["*"]) == ["*"],
		"except": members(object.get(raw, "except", [])),
		"message": object.get(raw, "message", "there is maintenance"),
	}
}

moment(raw, field) := time.parse_rfc3339_ns(raw[field]) if raw[field]

moment(raw, field) := 0 if not raw[field]

# The windows of time that the budgets count in: the gateway keeps what was used
# in each.
windows := [{"of": of, "seconds": n} |
	some [of, n] in {[b.of, b.seconds] | some g in grant; some b in g.budgets}
]

# The names of the grants by issuer, fact and value: those that ask for that
# fact alone, and those that ask for more.
plain[issuer][fact][value] := [name | some name in names; grant[name].match == {}] if {
	some value, names in grants.anchored[issuer][fact]
}

narrowed[issuer][fact][value] := [name | some name in names; grant[name].match != {}] if {
	some value, names in grants.anchored[issuer][fact]
}

findings := [{"where": at, "message": message} | some [at, message] in grants.problems]

members(list) := {member: true | some member in list}
