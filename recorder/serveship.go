package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"verbatim.dev/recorder/access"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/transport/pubsub"
)

// serveShipper carries the service's journal to the sink.
type serveShipper struct {
	client interface {
		Ship(context.Context, transport.Journal) error
	}
	// recorder is what readers wait for: the journal, or the journal and
	// Pub/Sub's acknowledgement.
	recorder access.Recorder
	closers  []func() error
}

func (c *serveConfig) shipper(ctx context.Context, j *journal.Journal, log *slog.Logger) (*serveShipper, error) {
	s := &serveShipper{recorder: j}
	if c.PubSub == nil {
		client, err := transport.NewClient(transport.ClientConfig{Socket: c.Sink, Gateway: c.Name, Logger: log})
		s.client = client
		return s, err
	}
	p := pubsub.ClientConfig{Project: c.PubSub.Project, Topic: c.PubSub.Topic, AckSubscription: c.PubSub.AckSubscription, Gateway: c.Name, Shards: c.PubSub.Shards, Logger: log}
	if c.Durability == durabilityPublished {
		gate := pubsub.NewGate(j, j.Epoch())
		p.Published, s.recorder = gate.Published, gate
		s.closers = append(s.closers, func() error { gate.Close(); return nil })
	}
	// It outlives ctx: a stop still ships what the journal holds.
	client, err := pubsub.NewClient(context.WithoutCancel(ctx), p)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.client = client
	s.closers = append(s.closers, client.Close)
	return s, nil
}

func (s *serveShipper) close() (err error) {
	for _, c := range s.closers {
		err = errors.Join(err, c())
	}
	return err
}

// checkPubSub looks at what must be there in Pub/Sub.
func (c *serveConfig) checkPubSub(ctx context.Context, log *slog.Logger) error {
	p := c.PubSub
	if p == nil {
		return nil
	}
	look, cancel := context.WithTimeout(ctx, sinkSetupTime)
	defer cancel()
	err := pubsub.Check(look, pubsub.Setup{
		Project: p.Project, Topic: p.Topic, Subscriptions: pubsub.Shards(p.Subscription, p.Shards), Shards: p.Shards,
		AckTopic: p.AckTopic, AckSubscription: p.AckSubscription, Gateway: c.Name,
	})
	switch {
	case errors.Is(err, pubsub.ErrUnreachable):
		log.Warn("serve: Pub/Sub was not checked", "error", err)
	case err != nil:
		return fmt.Errorf("pubsub: %w", err)
	}
	return nil
}
