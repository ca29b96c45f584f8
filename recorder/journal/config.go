package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/mod/sumdb/note"
	"verbatim.dev/recorder/record"
)

// Config configures a [Journal]. Sizes are in bytes.
type Config struct {
	// Dir is the journal's folder. Its parent must exist.
	Dir string
	// Gateway names this gateway. The chain of an epoch binds it.
	Gateway string
	// Version of the gateway, for the open record.
	Version string
	// Tenant is the tenant's public keyset, to which data keys are wrapped.
	Tenant *keyset.Handle
	// Deployment signs each epoch's certificate. Nil: the epochs' keys are
	// nobody's, and a verifier can say no more than that each epoch is one piece.
	Deployment note.Signer

	// Class is the retention class of records that name none. Retention says how
	// long each class is kept, 0 for ever; a record of a class that is not in it
	// is refused. The gateway's own records are of the class that is kept longest,
	// and of several such the first by name: they tie one epoch to the next.
	Class     string
	Retention map[string]time.Duration

	// Limit bounds what the journal holds: segments that are not freed and
	// records that wait. Default 1 GiB. Records beyond it get
	// [record.ErrFull], but for reserved ones, which may use Reserve bytes more
	// (default Limit/16). The disk needs room for Limit, Reserve and two
	// segments.
	Limit, Reserve int64
	// SegmentSize is the size to which files are preallocated. Default 64 MiB,
	// at most a quarter of Limit, for space is freed by whole files.
	SegmentSize int64
	// A checkpoint is a cut when CutBytes (default 8 MiB) or CutInterval
	// (default 5 s) have passed since the last cut.
	CutBytes    int64
	CutInterval time.Duration
	// Heartbeat is the time between heartbeats. Default 20 s; below 0: none.
	Heartbeat time.Duration
	// Open returns how many exchanges are open, for heartbeats. Default: those
	// with a durable received or intent and no durable outcome.
	Open func() uint64
	// Sessions is how many data keys are kept, see [record.SealerConfig].
	Sessions int

	Logger *slog.Logger     // default: none
	Now    func() time.Time // default: time.Now
	FS     FS               // default: the system's

	own string // class of the gateway's own records
}

const (
	// minSegment leaves room for the open record and what a test needs.
	minSegment = 4 << 10
	// batchBytes is when a commit stops taking more records: larger writes are
	// no cheaper a byte, and everybody in them waits.
	batchBytes = 4 << 20
)

func (c Config) withDefaults() (Config, error) {
	c.own = ""
	if c.Dir == "" {
		return c, errors.New("journal: no folder is configured")
	}
	if c.Gateway == "" {
		return c, errors.New("journal: the gateway has no name")
	}
	if c.Limit == 0 {
		c.Limit = 1 << 30
	}
	if c.Reserve == 0 {
		c.Reserve = c.Limit / 16
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = min(64<<20, c.Limit/4)
	}
	if c.CutBytes == 0 {
		c.CutBytes = 8 << 20
	}
	if c.CutInterval == 0 {
		c.CutInterval = 5 * time.Second
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 20 * time.Second
	}
	if c.SegmentSize < minSegment {
		return c, fmt.Errorf("journal: segment size %d is below %d bytes; raise it, or the limit (%d)", c.SegmentSize, minSegment, c.Limit)
	}
	if c.SegmentSize > c.Limit/4 {
		return c, fmt.Errorf("journal: segment size %d is above a quarter of the limit %d: a full journal could not free space", c.SegmentSize, c.Limit)
	}
	if c.Reserve < 0 || c.CutBytes < 0 || c.CutInterval < 0 {
		return c, errors.New("journal: reserve, cut bytes and cut interval must not be negative")
	}
	if _, ok := c.Retention[c.Class]; !ok {
		return c, fmt.Errorf("journal: the default retention class %q has no retention", c.Class)
	}
	for class, keep := range c.Retention {
		if err := record.CheckClass(class); err != nil {
			return c, fmt.Errorf("journal: %w", err)
		}
		if keep < 0 {
			return c, fmt.Errorf("journal: retention class %q: %v is negative", class, keep)
		}
		if c.own == "" || longer(keep, class, c.Retention[c.own], c.own) {
			c.own = class
		}
	}
	if n := len(c.Retention); n > record.MaxClasses {
		return c, fmt.Errorf("journal: %d retention classes: at most %d have room in a checkpoint", n, record.MaxClasses)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.FS == nil {
		c.FS = osFS{}
	}
	return c, nil
}

// longer reports whether the first class is kept longer, 0 being for ever, or as
// long and comes first.
func longer(keep time.Duration, class string, than time.Duration, other string) bool {
	if keep == than {
		return class < other
	}
	return keep == 0 || than != 0 && keep > than
}

// expiry returns when a record of the class, made at the time, may go.
func (c *Config) expiry(class string, at time.Time) time.Time {
	keep := c.Retention[class]
	if keep == 0 {
		return time.Time{}
	}
	// Rounded up: a record is never kept shorter than its class says.
	return at.Add(keep + time.Second - time.Nanosecond).Truncate(time.Second).UTC()
}
