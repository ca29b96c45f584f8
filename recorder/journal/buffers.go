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

var (
	pieceSize = record.Size("", record.MaxPiece) + record.MaxClass
	buffers   [len(bufferSizes)]sync.Pool
)

// getBuffer returns an empty buffer with room for n bytes.
func getBuffer(n int) []byte {
	for i, size := range bufferSizes {
		if n > size {
			continue
		}
		if b, ok := buffers[i].Get().(*[]byte); ok {
			return (*b)[:0]
		}
		return make([]byte, 0, size)
	}
	return make([]byte, 0, n)
}

// putBuffer gives a buffer back. Nothing may refer to it any more.
func putBuffer(b []byte) {
	for i, size := range bufferSizes {
		if cap(b) == size {
			buffers[i].Put(&b)
			return
		}
	}
}
