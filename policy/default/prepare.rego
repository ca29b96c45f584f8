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
		# "" is what a request asks for that names no project, or no dataset.
		"projects": members(array.concat([""], raw.projects)),
		"datasets": members(array.concat([""], object.get(raw, "datasets", []))),
		"level": max([grants.levels[method] | some method in raw.methods]),
		"maximum_bytes_billed": object.get(raw, ["limits", "maximum_bytes_billed"], grants.default_bytes),
		"expires_ns": grants.expiry(raw),
		"statements": members(object.get(raw, "allow_statements", [])),
		"labels": object.union(object.get(raw, "labels", {}), {"verbatim_grant": name}),
		"extra": object.filter(raw, ["credential", "retention"]),
	}
}

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
