//go:build !unix

package witness

import (
	"errors"
	"os"
)

// flock fails: here cosignatures are checked, not made.
func flock(*os.File) error { return errors.New("a witness runs on Linux or macOS") }
