# METADATA
# title: Reading the grants
# description: |
#   Which grants are sound, and what is wrong with the others. A grant with anything wrong matches nobody.
package verbatim.grants

levels := {"read": 1, "write": 2, "admin": 3}

# What a grant lets do to a table or dataset, and which of the others each
# includes: who may write need not be able to read.
includes := {
	"read": ["read", "scratch", "admin"],
	"write": ["write", "scratch", "admin"],
	"scratch": ["scratch", "admin"],
	"admin": ["admin"],
}

# The level of the short form that each needs.
short_levels := {"read": 1, "write": 2, "scratch": 2, "admin": 3}

# Facts that say who is calling. A grant needs one of them.
anchors := ["subject", "group", "service_account", "spiffe_id", "repository", "namespace"]

# Facts that narrow a grant, and alone would let in strangers: anybody's
# repository at a public issuer has a branch named main.
narrowing := ["ref", "workflow", "environment", "pipeline"]

facts := array.concat(anchors, narrowing)

# What a grant may name in allow: what reaches out of its tables, or hides which
# it reaches.
allowable := {
	"CALL", "EXECUTE IMMEDIATE", "EXPORT DATA", "EXTERNAL", "EXTERNAL_QUERY", "GRANT", "GRAPH", "JOBS", "LANGUAGE",
	"LOAD DATA", "MODEL", "REMOTE", "REVOKE", "SET",
}

known_fields := {
	"match", "connections", "projects", "read", "write", "scratch", "admin", "datasets", "methods", "views", "functions",
	"allow", "limits", "budgets", "hours", "expires", "labels", "credential", "retention", "share", "description",
}

days := ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

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

# The patterns of a grant for a verb, its short form included.
patterns(grant, verb) := {p | some p in grant[verb]} | short(grant, verb)

short(grant, verb) := set() if not short_form(grant, verb)

short(grant, verb) := {p |
	some project in grant.projects
	some dataset in grant.datasets
	p := short_pattern(project, dataset)
} if {
	short_form(grant, verb)
}

short_form(grant, verb) if {
	grant.datasets
	some method in grant.methods
	levels[method] >= short_levels[verb]
}

short_pattern("*", "*") := "*"

short_pattern(project, "*") := concat("", [project, ".*"]) if project != "*"

short_pattern(project, dataset) := concat(".", [project, dataset]) if {
	dataset != "*"
	not contains(dataset, ".")
}

short_pattern(project, dataset) := dataset if {
	contains(dataset, ".")
	project in ["*", regex.replace(dataset, `\.[^.]*$`, "")]
}

# The projects that a grant's patterns name.
pattern_projects(grant) := {project |
	some verb, _ in includes
	some p in grant[verb]
	project := split_pattern(p)
	project != "*"
}

split_pattern(p) := regex.find_all_string_submatch_n(pattern_form, p, 1)[0][1]

# A project, with its domain where it has one, a dataset, a table; a star ends it.
pattern_form := `^(\*|(?:[a-z0-9.-]+:)?[a-zA-Z0-9-]+)(?:\.(?:\*|[A-Za-z0-9_]+\*?|[A-Za-z0-9_]+\.(?:\*|[^.*\s"$@]+\*?)))?$`

sound_pattern("*")

sound_pattern(p) if {
	p != "*"
	regex.match(pattern_form, p)
	contains(p, ".")
	not regex.match(`^\*\..*[.*]`, p) # any project's, but for one whole dataset
}

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

problems contains [concat(".", ["maintenance", name]), message] if {
	some name, window in data.maintenance
	some message in wrong_window(window)
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
	{m | some field in ["read", "write", "scratch", "admin"]; some m in pattern_problem(grant, field)},
	{m | some field in ["projects", "methods", "datasets", "connections", "allow", "functions"]; some m in list_problem(grant, field, false)},
	scope_problem(grant),
	method_problem(grant),
	allow_problem(grant),
	views_problem(grant),
})

pattern_problem(grant, field) := list_problem(grant, field, false) | {message |
	some p in grant[field]
	is_string(p)
	not sound_pattern(p)
	message := sprintf("%s holds %q: it takes project.dataset, project.dataset.table, either with a * at its end, project.*, *.dataset and *", [field, p])
}

scope_problem(grant) := union({
	{"datasets needs methods beside it: read, write or admin" |
		grant.datasets
		not grant.methods
	},
	{"it allows nothing: it needs read, write, scratch or admin, or methods" |
		not grant.methods
		count([verb | some verb, _ in includes; grant[verb]]) == 0
	},
	{"projects is missing, and no pattern names one: it says where jobs may run" |
		not "projects" in object.keys(grant)
		count(pattern_projects(grant)) == 0
	},
	{message |
		some p in grant.projects
		text(p)
		not regex.match(`^(\*|([a-z0-9.-]+:)?[a-zA-Z0-9-]+)$`, p)
		message := sprintf("projects holds %q: it takes ids of projects, and * for all", [p])
	},
	{message |
		some d in grant.datasets
		text(d)
		not regex.match(`^(\*|(([a-z0-9.-]+:)?[a-zA-Z0-9-]+\.)?[A-Za-z0-9_]+\*?)$`, d)
		message := sprintf("datasets holds %q: it takes NAME, PROJECT.NAME and *; tables stand in read and write", [d])
	},
})

views_problem(grant) := {"views has to be \"trust\" or \"dry_run\""} if {
	"views" in object.keys(grant)
	not grant.views in {"trust", "dry_run"}
} else := set()

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

allow_problem(grant) := {message |
	some name in grant.allow
	text(name)
	not name in allowable
	message := sprintf("allow holds %v: it takes %s", [name, concat(", ", allowable)])
}

wrong_extras(grant) := union({
	wrong_limits(grant), wrong_expiry(grant), wrong_labels(grant), wrong_names(grant), wrong_share(grant), wrong_budgets(grant),
	wrong_hours(grant),
})

wrong_limits(grant) := {message |
	"limits" in object.keys(grant)
	not sound_limits(grant.limits)
	message := "limits has to be an object with maximum_bytes_billed, estimated_bytes or both, whole numbers of bytes above 0, and nothing else"
}

sound_limits(limits) if {
	is_object(limits)
	count(limits) > 0
	every field, value in limits {
		field in {"maximum_bytes_billed", "estimated_bytes"}
		bytes(value)
	}
}

wrong_budgets(grant) := {message |
	"budgets" in object.keys(grant)
	not sound_budgets(grant.budgets)
	message := "budgets has to be a list of at most 8 objects with of (principal or run), window (30m, 24h, 7d; at most 31d) and one at least of queries, bytes and rows, whole numbers above 0"
}

sound_budgets(budgets) if {
	is_array(budgets)
	count(budgets) > 0
	count(budgets) <= 8
	every b in budgets {
		b.of in {"principal", "run"}
		seconds(b.window)
		count(object.remove(b, ["of", "window"])) > 0
		every field, value in object.remove(b, ["of", "window"]) {
			field in {"queries", "bytes", "rows"}
			bytes(value)
		}
	}
}

# The length of a budget's window.
seconds(window) := n if {
	regex.match(`^[1-9][0-9]{0,6}[smhd]$`, window)
	size := count(window) - 1
	n := to_number(substring(window, 0, size)) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[substring(window, size, 1)]
	n <= 2678400
}

wrong_hours(grant) := {message |
	"hours" in object.keys(grant)
	not sound_week(grant.hours)
	message := concat("", ["hours ", week_form])
}

week_form := `has to be a list of objects with from and until ("22:00", "06:00", in UTC) and, where it is not every day, days (["mon", "fri"])`

sound_week(list) if {
	is_array(list)
	count(list) > 0
	every span in list {
		minutes(span.from)
		minutes(span.until)
		object.keys(span) - {"from", "until", "days"} == set()
		sound_days(object.get(span, "days", days))
	}
}

sound_days(list) if {
	is_array(list)
	count(list) > 0
	every day in list {
		day in days
	}
}

# Minutes since midnight.
minutes(clock) := (to_number(substring(clock, 0, 2)) * 60) + to_number(substring(clock, 3, 2)) if {
	regex.match(`^([01][0-9]|2[0-3]):[0-5][0-9]$`, clock)
}

# A window of maintenance with anything wrong is no window, and a finding.
usable_windows := {name: window |
	some name, window in data.maintenance
	count(wrong_window(window)) == 0
}

wrong_window(window) := {"it has to be an object"} if not is_object(window)

wrong_window(window) := union({window_fields(window), window_times(window), window_lists(window)}) if is_object(window)

window_fields(window) := ({message |
	some field, _ in window
	not field in {"from", "until", "weekly", "let", "connections", "tables", "except", "message"}
	message := sprintf("the field %q is not known", [field])
} | {"let has to be \"nothing\" or \"read\"" |
	not object.get(window, "let", "nothing") in {"nothing", "read"}
}) | {"message has to be a text of one line, of at most 300 characters" |
	message := object.get(window, "message", "x")
	not regex.match(`^[^\x00-\x1f\x7f]{1,300}$`, message)
}

window_times(window) := ({"it needs from and until (times of RFC 3339, in this order), or weekly" |
	not window.weekly
	not moments(window)
} | {concat("", ["weekly ", week_form]) |
	"weekly" in object.keys(window)
	not sound_week(window.weekly)
}) | {"weekly stands in the place of from and until: make two windows" |
	window.weekly
	some field in ["from", "until"]
	field in object.keys(window)
}

moments(window) if time.parse_rfc3339_ns(window.from) < time.parse_rfc3339_ns(window.until)

window_lists(window) := {m |
	some field in ["connections", "tables", "except"]
	some m in list_problem(window, field, false)
} | {message |
	some p in window.tables
	not sound_pattern(p)
	message := sprintf("tables holds %v: it takes patterns as a grant's read does", [p])
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

wrong_share(grant) := {message |
	"share" in object.keys(grant)
	not sound_share(grant)
	message := "share has to be true or false, and true needs match.group: the jobs are then that group's"
}

sound_share(grant) if grant.share == false

sound_share(grant) if {
	grant.share == true
	text(grant.match.group)
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
