// Package recordtest makes records for the tests of packages that carry them.
package recordtest

import (
	"crypto/rand"
	"sync"
	"time"

	"verbatim.dev/recorder/record"
)

var key = sync.OnceValue(func() *record.EpochKey {
	k, err := record.NewEpochKey("gw", record.Epoch{}, rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
})

// Checkpoint returns a checkpoint with the chain's head, signed by some key and
// with no root: for readers that look at the chain alone.
func Checkpoint(sequence uint64, head record.ChainHead, at time.Time, cut bool) record.Frame {
	f, err := record.Checkpoint(record.Statement{Gateway: "gw", Size: sequence, Head: head, Time: at}, key().Signer(), cut)
	if err != nil {
		panic(err)
	}
	return f
}
