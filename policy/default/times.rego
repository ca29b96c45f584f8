# METADATA
# title: Times of the week, and maintenance
# description: |
#   All in UTC. A time of the week is {days, from, until} with minutes since midnight; one whose end is not after its
#   beginning goes over midnight.
package verbatim.times

import data.verbatim.prepare

now := time.parse_rfc3339_ns(input.time)

minute := (clock[0] * 60) + clock[1] if clock := time.clock(now)

today := lower(substring(time.weekday(now), 0, 3))

yesterday := lower(substring(time.weekday(now - 86400000000000), 0, 3))

in_week(span) if {
	span.from < span.until
	span.days[today]
	minute >= span.from
	minute < span.until
}

in_week(span) if {
	span.from >= span.until
	span.days[today]
	minute >= span.from
}

in_week(span) if {
	span.from >= span.until
	span.days[yesterday]
	minute < span.until
}

# The windows of maintenance that are on now.

open_windows contains name if {
	some name, w in prepare.maintenance
	w.from_ns <= now
	now < w.until_ns
}

open_windows contains name if {
	some name, w in prepare.maintenance
	some span in w.weekly
	in_week(span)
}
