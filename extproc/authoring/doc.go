// Package authoring helps who writes a policy: it makes the input of a text and
// a caller, repeats recorded decisions under another policy, and drafts grants
// from what was used.
//
// Its rule: what a record does not hold is said to be missing, never guessed. It
// is no part of the way of an exchange; only the policy subcommands use it.
package authoring
