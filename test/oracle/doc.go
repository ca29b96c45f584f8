// Package oracle holds tests behind the build tag oracle, see oracle_test.go.
package oracle
