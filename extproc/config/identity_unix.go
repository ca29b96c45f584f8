//go:build unix

package config

import (
	"os"
	"syscall"
)

// identity tells files of one name apart.
func identity(st os.FileInfo) (dev, inode uint64) {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(sys.Dev), sys.Ino
	}
	return 0, 0
}
