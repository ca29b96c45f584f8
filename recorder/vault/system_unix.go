//go:build unix

package vault

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// notBlocking opens a pipe without a writer at once.
const notBlocking = unix.O_NONBLOCK

// errHeld means that another process has the lock.
var errHeld = errors.New("lock is held")

// lockFolder locks the file until it is closed.
func lockFolder(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %w", errHeld, err)
	}
	return err
}
