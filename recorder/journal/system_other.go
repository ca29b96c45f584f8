//go:build !linux

package journal

import "os"

// Gateways run on Linux. Elsewhere a journal holds what one command reads, with
// the system's plainer means.

func allocate(f *os.File, size int64) error { return f.Truncate(size) }

func datasync(f *os.File) error { return f.Sync() }
