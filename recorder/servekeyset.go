package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
)

const (
	// keysetPoll is how often a service looks whether its keyset was rotated.
	keysetPoll = time.Second
	// keysetRetry is how long it waits before it asks again for one that did not
	// open: Cloud KMS counts what is asked.
	keysetRetry = 30 * time.Second
)

// liveKeyset is the tenant's private keyset of a service that runs: after a
// rotation it opens what gateways seal from then on.
type liveKeyset struct {
	path    string
	log     *slog.Logger
	text    []byte // that current was read from; of the goroutine that follows
	current atomic.Pointer[keyset.Handle]
}

func openLiveKeyset(ctx context.Context, path string, log *slog.Logger) (*liveKeyset, error) {
	k := &liveKeyset{path: path, log: log}
	b, err := readSmall(path, maxKeyset)
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	h, err := openKeyset(ctx, path, b)
	if err != nil {
		return nil, err
	}
	if _, err := h.Public(); err != nil {
		return nil, fmt.Errorf("keyset %s: %w (is it tenant.json, not tenant.pub.json?)", path, err)
	}
	k.text = b
	k.current.Store(h)
	return k, nil
}

// public is the public part of the present keyset.
func (k *liveKeyset) public() (*keyset.Handle, error) { return k.current.Load().Public() }

// follow takes a changed keyset over until ctx ends. Seal makes the service's own
// records be sealed to it.
func (k *liveKeyset) follow(ctx context.Context, seal func(public *keyset.Handle) error) {
	var failed []byte
	var again time.Time
	gone := false
	tick := time.NewTicker(keysetPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b, err := readSmall(k.path, maxKeyset)
		if err != nil {
			if !gone {
				k.log.Error("keyset not read, the one before stays", "error", err)
			}
			gone = true
			continue
		}
		gone = false
		if bytes.Equal(b, k.text) || bytes.Equal(b, failed) && time.Now().Before(again) {
			continue
		}
		if err := k.take(ctx, b, seal); err != nil {
			k.log.Error("keyset not loaded, the one before stays", "error", err)
			failed, again = b, time.Now().Add(keysetRetry)
			continue
		}
		failed = nil
		k.log.Info("keyset loaded", "key", k.current.Load().KeysetInfo().GetPrimaryKeyId())
	}
}

// take opens what the file holds now. Readers have it before records are sealed
// to it.
func (k *liveKeyset) take(ctx context.Context, b []byte, seal func(*keyset.Handle) error) error {
	h, err := openKeyset(ctx, k.path, b)
	if err != nil {
		return err
	}
	public, err := h.Public()
	if err != nil {
		return fmt.Errorf("keyset %s: %w (is it tenant.json, not tenant.pub.json?)", k.path, err)
	}
	before := k.current.Swap(h)
	if err := seal(public); err != nil {
		k.current.Store(before)
		return err
	}
	k.text = b
	return nil
}
