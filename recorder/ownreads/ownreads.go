// Package ownreads puts on record what somebody reads with a keyset of his own,
// with no service between him and the vault.
//
// The rule of this folder is that of package access: nothing of a record leaves
// before the record of the reading is durable, and what cannot be recorded is
// not read. But nobody proved who reads: the records say who the machine says
// it is, apart from what a token proves, and whoever holds the keyset and this
// folder could read without them. They are for those who mean to account for
// what they do; recorder serve is for the others.
//
// The folder is a vault of its own, which lies beside the one that is read, so
// that the evidence stays what gateways wrote:
//
//	DIR/segments, DIR/keys   the access records, sealed to the tenant as ever
//	DIR/.journal/N           journals, each of one process at a time
//	DIR/.journal/N.open      it holds, or may hold, what is not in the vault yet
//
// Each process has an epoch of its own, of the gateway local-N, which cites the
// one before. A process that is killed leaves its records durable in its
// journal; the next one brings them into the vault.
package ownreads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
)

const (
	// Class is the retention class of the records. They are kept for ever.
	Class = "reads"

	slots       = 64
	journalSize = 256 << 20
	segmentSize = 1 << 20

	shipWait = 5 * time.Second
	shipTime = 30 * time.Second // for the shipping itself
	shipStep = 20 * time.Millisecond
)

// Config configures a [Log].
type Config struct {
	// Dir is the folder. It is made where there is none.
	Dir string
	// Tenant is the tenant's keyset, to which the records are sealed.
	Tenant *keyset.Handle
	// Reader is who reads, as the machine has it.
	Reader record.LocalUser
	// UserAgent stands in the records.
	UserAgent string
	Now       func() time.Time // nil: time.Now
	// Wait is how long Close waits for another process that writes the folder;
	// default 5 s.
	Wait time.Duration
}

// Log takes the records of one process. It is not safe for concurrent use.
type Log struct {
	c       Config
	journal *journal.Journal
	mark    string
	session string
}

// Open begins an epoch. Close it when done.
func Open(ctx context.Context, c Config) (*Log, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Wait <= 0 {
		c.Wait = shipWait
	}
	public, err := c.Tenant.Public()
	if err != nil {
		return nil, fmt.Errorf("reads: the tenant's keyset: %w", err)
	}
	l := &Log{c: c, session: "local:" + c.Reader.User + "@" + c.Reader.Host}
	if err := os.MkdirAll(filepath.Join(c.Dir, ".journal"), 0o700); err != nil {
		return nil, fmt.Errorf("reads: %w", err)
	}
	for _, n := range l.order() {
		l.mark = l.slot(n) + ".open"
		l.journal, err = journal.Open(ctx, journal.Config{
			Dir: l.slot(n), Gateway: "local-" + strconv.Itoa(n), Version: record.Build, Tenant: public, Class: Class, Retention: map[string]time.Duration{Class: 0},
			Limit: journalSize, SegmentSize: segmentSize, CutInterval: time.Hour, Heartbeat: -1, Now: c.Now,
		})
		if errors.Is(err, journal.ErrLocked) {
			continue
		}
		if err == nil {
			err = l.touch()
		}
		if err != nil {
			return nil, fmt.Errorf("reads: %w", errors.Join(err, l.abandon()))
		}
		return l, nil
	}
	return nil, fmt.Errorf("reads: %d processes read with %s now: try again", slots, c.Dir)
}

func (l *Log) slot(n int) string { return filepath.Join(l.c.Dir, ".journal", strconv.Itoa(n)) }

// order is that in which journals are tried: those first that a process left,
// so that what they hold comes into the vault.
func (l *Log) order() []int {
	var left, others []int
	for n := range slots {
		if _, err := os.Stat(l.slot(n) + ".open"); err == nil {
			left = append(left, n)
		} else {
			others = append(others, n)
		}
	}
	return append(left, others...)
}

// touch marks the journal before anything is recorded. The mark need not be
// durable: without it the journal's turn comes later.
func (l *Log) touch() error { return os.WriteFile(l.mark, nil, 0o600) }

func (l *Log) abandon() error {
	if l.journal == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), shipWait)
	defer cancel()
	return l.journal.Close(ctx, "failed")
}

// Record makes a record durable: that somebody is given these records. Where it
// returns an error nothing may be given out.
func (l *Log) Record(ctx context.Context, a record.Access) (record.ID, error) {
	a.Session, a.At, a.From, a.UserAgent, a.Allowed = l.session, l.c.Now().UTC(), "local", l.c.UserAgent, true
	reader := l.c.Reader
	a.Asserted = &reader
	body, err := record.Marshal(&a)
	if err != nil {
		return record.ID{}, fmt.Errorf("reads: %w", err)
	}
	t := l.journal.Append(record.Draft{Kind: record.KindAccess, Session: a.Session, Body: body})
	if err := t.Wait(ctx); err != nil {
		return record.ID{}, fmt.Errorf("reads: %w", err)
	}
	return t.ID, nil
}

// Close ends the epoch and brings its records into the folder's vault. An error
// that wraps [ErrBehind] says that they are durable, and not there yet.
func (l *Log) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.c.Wait+shipTime)
	defer cancel()
	err := l.journal.Finish(ctx, "read")
	if err == nil {
		if err = l.ship(ctx); err != nil {
			err = fmt.Errorf("%w: %w", ErrBehind, err)
		} else {
			_ = os.Remove(l.mark) // before the journal is free for another; its turn comes sooner with it, no more
		}
	}
	if err = errors.Join(err, l.journal.Close(ctx, "read")); err != nil {
		return fmt.Errorf("reads: %w", err)
	}
	return nil
}

// ErrBehind says that records are durable in the journal, and that the next
// process brings them into the vault.
var ErrBehind = errors.New("the records are durable, and not in their vault yet")

// ship carries what the journal holds into the vault. It is the sink and the
// transport in one: one process, one writer.
func (l *Log) ship(ctx context.Context) (err error) {
	v, err := l.vault(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	s, err := sink.New(sink.Config{Vault: v, Spool: filepath.Join(l.c.Dir, ".spool"), Class: Class})
	if err != nil {
		return err
	}
	tail := l.journal.Tail()
	defer func() { err = errors.Join(err, tail.Close()) }()
	var stream transport.Stream
	var epoch record.Epoch
	defer func() {
		if stream != nil {
			stream.End()
		}
	}()
	for {
		item, err := tail.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if stream == nil || item.Epoch != epoch {
			if stream != nil {
				stream.End()
			}
			if stream, err = s.Begin(ctx, item.Gateway, item.Epoch); err != nil {
				return err
			}
			epoch = item.Epoch
			if held := stream.Held(); held > 0 { // stored before a crash
				if err := l.journal.Acknowledge(epoch, held); err != nil {
					return err
				}
			}
		}
		if item.Frame.Sequence != 0 && item.Frame.Sequence <= stream.Held() {
			continue
		}
		held, err := stream.Take(ctx, item.Frame.Raw())
		if err != nil {
			return err
		}
		if held > 0 {
			if err := l.journal.Acknowledge(epoch, held); err != nil {
				return err
			}
		}
	}
}

// vault waits for the folder's lock.
func (l *Log) vault(ctx context.Context) (*vault.Folder, error) {
	for end := time.Now().Add(l.c.Wait); ; {
		v, err := vault.OpenFolder(vault.FolderConfig{Dir: l.c.Dir, Write: true})
		if err == nil || !errors.Is(err, vault.ErrLocked) || time.Now().After(end) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(shipStep):
		}
	}
}
