// A module of its own: what it needs takes minutes and gigabytes to compile.
module verbatim.dev/test/oracle

go 1.26.0

require (
	github.com/goccy/go-googlesql v0.4.0
	verbatim.dev v0.0.0
)

require (
	github.com/goccy/googlesqlwasm2go v0.2.0 // indirect
	github.com/sqlc-dev/zetajones v0.2.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)

replace verbatim.dev => ../..
