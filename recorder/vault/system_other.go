//go:build !unix

package vault

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

const notBlocking = 0

var errHeld = errors.New("lock is held")

// lockFolder fails: here vaults are read and verified, not written.
func lockFolder(*os.File) error {
	return fmt.Errorf("a folder cannot be locked on %s: write the vault on Linux, and read it here", runtime.GOOS)
}
