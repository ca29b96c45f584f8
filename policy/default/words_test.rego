package verbatim.words_test

import data.verbatim.words

asked(words, statements) := {
	"request": {"destination": "", "default_dataset": ""},
	"sql": {"words": words, "names": {}, "statements": statements},
}

level(asked_input) := l if l := words.level with input as asked_input

why(asked_input) := w if w := words.why with input as asked_input

select := asked({"SELECT": 1}, ["SELECT"])

test_reads if {
	level(select) == 1
	level(asked({"WITH": 1}, ["WITH"])) == 1
	level(asked({"FROM": 1, "|> SET": 1}, ["FROM"])) == 1
}

test_every_changing_word if {
	every word in words.changing {
		level(asked({"SELECT": 1, word: 1}, ["SELECT"])) == 2
		why(asked({"SELECT": 1, word: 1}, ["SELECT"])) == sprintf("it holds %s", [word])
	}
}

test_two_statements if {
	level(asked({"SELECT": 2}, ["SELECT", "SELECT"])) == 2
	contains(why(asked({"SELECT": 2}, ["SELECT", "SELECT"])), "one statement")
}

test_other_beginning if level(asked({"EXPLAIN": 1}, ["EXPLAIN"])) == 2

test_pipe if {
	level(asked({"FROM": 1, "|> INSERT": 1}, ["FROM"])) == 2
	contains(why(asked({"FROM": 1, "|> INSERT": 1}, ["FROM"])), "a pipe")
}

test_destination if {
	to := object.union(select, {"request": {"destination": "p.d.t"}})
	level(to) == 2
	contains(why(to), "destination table")
}

test_needs if {
	every word, name in words.reaching {
		n := words.needs with input as asked({word: 1}, [word])
		n == {name}
		p := words.needs with input as asked({concat("", ["|> ", word]): 1}, ["FROM"])
		p == {name}
	}
}

test_forbidden if {
	every word in words.never {
		f := words.forbidden with input as asked({word: 1}, [word])
		f == {word}
	}
}

test_jobs_views if {
	words := asked({"SELECT": 1, "INFORMATION_SCHEMA": 1, "JOBS_BY_PROJECT": 1}, ["SELECT"])
	level(words) == 3
	contains(why(words), "other callers' jobs")
	quoted := object.union(select, {"sql": {"names": {"INFORMATION_SCHEMA": 1, "JOBS": 1}}})
	level(quoted) == 3
	by_default := object.union(asked({"SELECT": 1, "JOBS": 1}, ["SELECT"]), {"request": {"default_dataset": "p.region-eu.information_schema"}})
	level(by_default) == 3
}

test_other_views if {
	level(asked({"SELECT": 1, "INFORMATION_SCHEMA": 1, "TABLES": 1}, ["SELECT"])) == 1
	level(asked({"SELECT": 1, "JOBS": 1}, ["SELECT"])) == 1
}

test_schema if {
	every word in ["ALTER", "CREATE", "DROP", "UNDROP"] {
		level(asked({word: 1, "SCHEMA": 1}, [word])) == 3
		contains(why(asked({word: 1, "SCHEMA": 1}, [word])), "changes a dataset")
	}
}
