package journal

import (
	"sync"

	"verbatim.dev/recorder/record"
)

// Frames wait for their commit in buffers that are used again: the garbage of
// a busy gateway would be as large as its traffic. A buffer belongs to one
// entry from its sealing until its commit is durable, then to the pool. Whatever
// keeps an entry from that (an error ends the journal) leaves the buffers to the
// garbage collector.

// bufferSizes are the capacities that are kept, close enough that not much of
// them stays empty. The largest holds a whole payload record.
var bufferSizes = [...]int{4 << 10, 16 << 10, 32 << 10, 48 << 10, 64 << 10, 96 << 10, 128 << 10, 192 << 10, pieceSize}

var pieceSize = record.Size("", record.MaxPiece) + record.MaxClass

// idleBuffers is the most that buffers hold which no entry uses, in bytes: about
// two commits of the largest size. A sync.Pool would keep what a burst needed
// until the next garbage collections, and they come the later the less garbage
// there is.
const idleBuffers = 8 << 20

var buffers struct {
	sync.Mutex
	free [len(bufferSizes)][][]byte
	idle int
}

// getBuffer returns an empty buffer with room for n bytes.
func getBuffer(n int) []byte {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		var b []byte
		buffers.Lock()
		if free := buffers.free[i]; len(free) > 0 {
			b, free[len(free)-1] = free[len(free)-1], nil
			buffers.free[i] = free[:len(free)-1]
			buffers.idle -= size
		}
		buffers.Unlock()
		if b == nil {
			b = make([]byte, 0, size)
		}
		return b[:0]
	}
	return make([]byte, 0, n)
}

// putBuffer gives a buffer back. Nothing may refer to it any more.
func putBuffer(b []byte) {
	for i, size := range bufferSizes {
		if cap(b) != size {
			continue
		}
		buffers.Lock()
		defer buffers.Unlock()
		if buffers.idle+size <= idleBuffers {
			buffers.free[i] = append(buffers.free[i], b)
			buffers.idle += size
		}
		return
	}
}
