# METADATA
# title: What a SQL text may do, as far as its words tell
# description: |
#   For texts that the parser did not read: those for which a dry run stands in, which tells tables and routines and not
#   what is built in. The engine says which words stand outside of literals and comments (input.sql). A word that could be a
#   statement counts as one, wherever it stands: a column of that name has to be written in backticks.
package verbatim.words

# Beginnings of a statement that only reads.
reading := {"SELECT", "WITH", "FROM"}

# Words that a text which only reads cannot hold.
changing := {
	"ALTER", "ASSERT", "BEGIN", "CALL", "COMMIT", "CREATE", "DECLARE", "DELETE", "DROP", "EXECUTE", "EXPORT", "GRANT",
	"IMMEDIATE", "INSERT", "LOAD", "MERGE", "REVOKE", "ROLLBACK", "SET", "TRUNCATE", "UNDROP", "UPDATE",
}

# Words that reach out of the tables: what a grant has to name in allow for
# them.
reaching := {
	"CALL": "CALL",
	"EXECUTE": "EXECUTE IMMEDIATE",
	"EXPORT": "EXPORT DATA",
	"EXTERNAL": "EXTERNAL",
	"EXTERNAL_OBJECT_TRANSFORM": "EXTERNAL_QUERY",
	"EXTERNAL_QUERY": "EXTERNAL_QUERY",
	"GRANT": "GRANT",
	"AI": "REMOTE",
	"LANGUAGE": "LANGUAGE",
	"LOAD": "LOAD DATA",
	"ML": "REMOTE",
	"MODEL": "MODEL",
	"OBJ": "REMOTE",
	"REMOTE": "REMOTE",
	"REVOKE": "REVOKE",
}

# Words of statements about access and capacity, which no grant allows.
never := {"ASSIGNMENT", "BI_CAPACITY", "CAPACITY", "ORGANIZATION", "POLICIES", "POLICY", "RESERVATION"}

# What may follow a pipe in a text that only reads.
pipes := {
	"AGGREGATE", "AS", "CROSS", "DISTINCT", "DROP", "EXCEPT", "EXTEND", "FULL", "INNER", "INTERSECT", "JOIN", "LEFT",
	"LIMIT", "ORDER", "PIVOT", "RENAME", "RIGHT", "SELECT", "SET", "TABLESAMPLE", "UNION", "UNPIVOT", "WHERE", "WINDOW",
	"WITH",
}

# Views of INFORMATION_SCHEMA that show what others asked.
job_views := ["JOBS", "SESSIONS", "STREAMING_TIMELINE", "WRITE_API_TIMELINE"]

reads if {
	count(input.sql.statements) == 1
	input.sql.statements[0] in reading
	count(changes) == 0
	count(bad_pipes) == 0
}

changes contains word if {
	some word in changing
	input.sql.words[word]
}

bad_pipes contains word if {
	some word, _ in input.sql.words
	startswith(word, "|> ")
	not substring(word, 3, -1) in pipes
}

# What the text needs allow to name.
needs contains name if {
	some word, name in reaching
	input.sql.words[word]
}

# EXPORT, GRANT and the like after a pipe.
needs contains name if {
	some word, name in reaching
	input.sql.words[concat("", ["|> ", word])]
}

forbidden contains word if {
	some word in never
	input.sql.words[word]
}

# Looks at other callers' jobs.
looks_at_jobs if {
	information_schema
	some word, _ in object.union(input.sql.words, input.sql.names)
	strings.any_prefix_match(word, job_views)
}

information_schema if input.sql.words.INFORMATION_SCHEMA

information_schema if input.sql.names.INFORMATION_SCHEMA

information_schema if contains(upper(input.request.default_dataset), "INFORMATION_SCHEMA")

# Creates, changes or drops a dataset.
changes_schema if {
	input.sql.words.SCHEMA
	some word in ["ALTER", "CREATE", "DROP", "UNDROP"]
	input.sql.words[word]
}

# The level of a grant that the text needs.
default level := 2

level := 3 if looks_at_jobs

level := 3 if changes_schema

level := 1 if {
	reads
	not looks_at_jobs
	input.request.destination == ""
}

# Why the text needs more than read, for a message.
why := "it looks at other callers' jobs" if {
	looks_at_jobs
} else := "it changes a dataset" if {
	changes_schema
} else := "its result goes to a destination table" if {
	reads
} else := sprintf("it holds %s", [concat(", ", changes)]) if {
	count(changes) > 0
} else := "it is not one statement that begins with SELECT, WITH or FROM" if {
	count(bad_pipes) == 0
} else := "a pipe in it leads to something else than reading"
