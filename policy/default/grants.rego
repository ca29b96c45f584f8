# METADATA
# title: Reading the grants
# description: |
#   Which grants are sound, and what is wrong with the others. A grant with anything wrong matches nobody.
package verbatim.grants

levels := {"read": 1, "write": 2, "admin": 3}

# Facts that say who is calling. A grant needs one of them.
anchors := ["subject", "group", "service_account", "spiffe_id", "repository", "namespace"]

# Facts that narrow a grant, and alone would let in strangers: anybody's
# repository at a public issuer has a branch named main.
narrowing := ["ref", "workflow", "environment", "pipeline"]

facts := array.concat(anchors, narrowing)

# What a grant may name in allow_statements.
extra_statements := {
	"CALL", "EXECUTE IMMEDIATE", "EXPORT DATA", "EXTERNAL", "EXTERNAL_QUERY", "GRANT", "LANGUAGE", "REMOTE", "REVOKE",
}

known_fields := {
	"match", "connections", "projects", "datasets", "methods", "limits", "expires", "allow_statements", "labels",
	"credential", "retention", "description",
}

# 100 GiB.
default default_bytes := 107374182400

default_bytes := data.limits.maximum_bytes_billed if bytes(data.limits.maximum_bytes_billed)

usable := {name: grant |
	some name, grant in data.grants
	not name in broken
}

broken := {name |
	some [at, _] in problems
	startswith(at, "grants.")
	name := substring(at, count("grants."), -1)
}

# What the caller's facts have to be. Groups come qualified by their issuer.
conditions(grant) := {fact: value |
	some fact in facts
	raw := grant.match[fact]
	value := qualified(grant.match.issuer, fact, raw)
}

qualified(issuer, "group", value) := concat("/", [issuer, value])

qualified(_, fact, value) := value if fact != "group"

# The names of the usable grants by issuer, and by the first of the anchors that
# each asks for.
anchored[grant.match.issuer][fact][conditions(grant)[fact]] contains name if {
	some name, grant in usable
	fact := anchor(grant)
}

anchor(grant) := [fact | some fact in anchors; grant.match[fact]][0]

# Nanoseconds since 1970; never is as late as the number can be.
expiry(grant) := time.parse_rfc3339_ns(grant.expires) if grant.expires

expiry(grant) := 9223372036854775807 if not grant.expires

problems contains ["limits", message] if {
	some field, _ in data.limits
	field != "maximum_bytes_billed"
	message := sprintf("%q is not known: the only limit is maximum_bytes_billed", [field])
}

problems contains ["limits", message] if {
	value := data.limits.maximum_bytes_billed
	not bytes(value)
	message := sprintf("maximum_bytes_billed has to be a whole number of bytes above 0; %d is used", [default_bytes])
}

problems contains [at(name), message] if {
	some name, grant in data.grants
	some message in wrong(name, grant)
}

at(name) := concat(".", ["grants", name])

wrong(_, grant) := {"it has to be an object"} if not is_object(grant)

wrong(name, grant) := union({wrong_name(name), wrong_fields(grant), wrong_match(grant), wrong_scope(grant), wrong_extras(grant)}) if {
	is_object(grant)
}

wrong_name(name) := {message |
	not regex.match(`^[a-z][a-z0-9_-]{0,62}$`, name)
	message := "its name has to be 1 to 63 of a-z, 0-9, _ and -, a letter first: it becomes the label verbatim_grant"
}

wrong_fields(grant) := {message |
	some field, _ in grant
	not field in known_fields
	message := sprintf("the field %q is not known", [field])
}

wrong_match(grant) := {"match has to be an object: it says whom the grant is for"} if {
	not is_object(object.get(grant, "match", null))
}

wrong_match(grant) := union({match_fields(grant.match), match_issuer(grant.match), match_anchor(grant.match)}) if {
	is_object(grant.match)
}

match_fields(match) := {message |
	some field, value in match
	some message in match_field(match, field, value)
}

match_field(_, field, _) := {sprintf("match asks for %q, which is not known", [field])} if {
	not field in array.concat(["issuer"], facts)
}

match_field(_, field, value) := {sprintf("match.%s has to be a string that is not empty", [field])} if {
	field in array.concat(["issuer"], facts)
	not text(value)
}

match_field(match, "group", value) := {"match.group has to be written without its issuer: the issuer stands beside it"} if {
	text(value)
	startswith(value, concat("", [match.issuer, "/"]))
}

match_issuer(match) := {message |
	not match.issuer
	message := "match has no issuer: any issuer could claim the rest"
}

match_anchor(match) := {message |
	count([fact | some fact in anchors; match[fact]]) == 0
	message := sprintf("match says nobody: it needs one of %s", [concat(", ", anchors)])
} | {message |
	text(match.service_account)
	not match.namespace
	not contains(match.service_account, "@")
	message := "match.service_account needs the namespace beside it: other namespaces have accounts of that name"
}

wrong_scope(grant) := union({
	list_problem(grant, "projects", true),
	list_problem(grant, "methods", true),
	list_problem(grant, "datasets", false),
	list_problem(grant, "connections", false),
	list_problem(grant, "allow_statements", false),
	method_problem(grant),
	statement_problem(grant),
})

list_problem(grant, field, required) := {message |
	not sound_list(grant, field, required)
	message := sprintf("%s has to be a list of strings, with one at least", [field])
}

sound_list(grant, field, false) if not field in object.keys(grant)

sound_list(grant, field, _) if {
	list := grant[field]
	is_array(list)
	count(list) > 0
	every member in list {
		text(member)
	}
}

method_problem(grant) := {message |
	some method in grant.methods
	not levels[method]
	message := sprintf("methods holds %v: it takes read, write and admin", [method])
}

statement_problem(grant) := {message |
	some statement in grant.allow_statements
	not statement in extra_statements
	message := sprintf("allow_statements holds %v: it takes %s", [statement, concat(", ", extra_statements)])
} | {message |
	grant.allow_statements
	not "write" in grant.methods
	not "admin" in grant.methods
	message := "allow_statements needs the method write"
}

wrong_extras(grant) := union({wrong_limits(grant), wrong_expiry(grant), wrong_labels(grant), wrong_names(grant)})

wrong_limits(grant) := {message |
	"limits" in object.keys(grant)
	not sound_limits(grant.limits)
	message := "limits has to be an object with maximum_bytes_billed, a whole number of bytes above 0, and nothing else"
}

sound_limits(limits) if {
	object.keys(limits) == {"maximum_bytes_billed"}
	bytes(limits.maximum_bytes_billed)
}

wrong_expiry(grant) := {message |
	"expires" in object.keys(grant)
	not time.parse_rfc3339_ns(grant.expires)
	message := "expires has to be a time of RFC 3339, 2026-12-31T00:00:00Z"
}

wrong_labels(grant) := {message |
	"labels" in object.keys(grant)
	not sound_labels(grant.labels)
	message := "labels has to be an object of at most 32 labels as BigQuery takes them (lower-case letters, digits, _ and -), none of which begins with verbatim"
}

sound_labels(labels) if {
	is_object(labels)
	count(labels) <= 32
	every key, value in labels {
		regex.match(`^[a-z][a-z0-9_-]{0,62}$`, key)
		not startswith(key, "verbatim")
		regex.match(`^[a-z0-9_-]{0,63}$`, value)
	}
}

wrong_names(grant) := {message |
	some field in ["credential", "retention"]
	field in object.keys(grant)
	not regex.match(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`, grant[field])
	message := sprintf("%s has to be a name of at most 32 letters, digits, _, . and -", [field])
}

text(value) if {
	is_string(value)
	value != ""
}

bytes(value) if {
	is_number(value)
	value > 0
	value <= 9223372036854775807
	floor(value) == value
}
