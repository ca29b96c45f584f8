package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"verbatim.dev/extproc/config"
	"verbatim.dev/extproc/server"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/transport/pubsub"
)

// setupTime bounds looking at topics, subscriptions and permissions.
const setupTime = 20 * time.Second

// shipper carries the journal to the sink.
type shipper struct {
	client interface {
		Ship(context.Context, transport.Journal) error
	}
	// recorder is what exchanges wait for: the journal, or the journal and
	// Pub/Sub's acknowledgement.
	recorder server.Recorder
	closers  []func() error
}

func newShipper(ctx context.Context, cfg *config.Config, j *journal.Journal, log *slog.Logger) (*shipper, error) {
	s := &shipper{recorder: j}
	p := cfg.Transport.PubSub
	if p == nil {
		client, err := transport.NewClient(transport.ClientConfig{Socket: cfg.Transport.Local, Gateway: cfg.Gateway, Logger: log})
		if err != nil {
			return nil, err
		}
		s.client = client
		return s, nil
	}
	c := pubsub.ClientConfig{Project: p.Project, Topic: p.Topic, AckSubscription: p.AckSubscription, Gateway: cfg.Gateway, Shards: p.Shards, Logger: log}
	if cfg.Transport.Durability == config.DurabilityPublished {
		gate := pubsub.NewGate(j, j.Epoch())
		c.Published, s.recorder = gate.Published, gate
		s.closers = append(s.closers, func() error { gate.Close(); return nil })
	}
	client, err := pubsub.NewClient(ctx, c)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.client = client
	s.closers = append(s.closers, client.Close)
	return s, nil
}

func (s *shipper) close() (err error) {
	for _, c := range s.closers {
		err = errors.Join(err, c())
	}
	return err
}

// ship carries the journal until ctx ends.
func (s *shipper) ship(ctx context.Context, j *journal.Journal, log *slog.Logger) {
	err := s.client.Ship(ctx, transport.Journal{Acknowledge: j.Acknowledge, Tail: func() transport.Source { return transport.NewSource(j.Tail()) }})
	if err != nil && ctx.Err() == nil {
		log.Error("shipping ended", "error", err)
	}
}

// checkTransport looks at what must be there in Pub/Sub.
func checkTransport(ctx context.Context, cfg *config.Config) error {
	p := cfg.Transport.PubSub
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	err := pubsub.Check(ctx, pubsub.Setup{
		Project: p.Project, Topic: p.Topic, Subscriptions: pubsub.Shards(p.Subscription, p.Shards), Shards: p.Shards,
		AckTopic: p.AckTopic, AckSubscription: p.AckSubscription, Gateway: cfg.Gateway,
	})
	if err != nil {
		return fmt.Errorf("transport: %w", err)
	}
	return nil
}

// describeTransport says in a line where records go.
func describeTransport(t config.Transport) string {
	if p := t.PubSub; p != nil {
		return fmt.Sprintf("Pub/Sub, project %s, topic %s, %d shards, answers by %s; durability %s", p.Project, p.Topic, p.Shards, p.AckSubscription, t.Durability)
	}
	return fmt.Sprintf("local, sink at %s; durability %s", t.Local, t.Durability)
}
