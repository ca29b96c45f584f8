//go:build !unix

package index

import (
	"fmt"
	"os"
	"runtime"
)

// tryLock fails: here an index is read, not written.
func tryLock(*os.File) (held bool, err error) {
	return false, fmt.Errorf("a folder cannot be locked on %s: write the index on Linux, and read it here", runtime.GOOS)
}
