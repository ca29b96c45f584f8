package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"

	"verbatim.dev/extproc/config"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport/pubsub"
)

// With durability published nothing passes before Pub/Sub has it; with local it
// does.
func TestDurability(t *testing.T) {
	cloud := pstest.NewServer()
	t.Cleanup(func() { _ = cloud.Close() })
	t.Setenv("PUBSUB_EMULATOR_HOST", cloud.Addr)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{Gateway: "gw-1", Transport: config.Transport{
		PubSub: &config.PubSub{Project: "evidence", Topic: "records", Subscription: "sink", AckTopic: "acks", AckSubscription: "acks-gw-1", Shards: 1},
	}}
	err = checkTransport(ctx, cfg)
	var setup *pubsub.SetupError
	if !errors.As(err, &setup) || !strings.Contains(err.Error(), "gcloud pubsub topics create records --project=evidence") {
		t.Fatalf("nothing is there, and the check says %v", err)
	}
	for _, n := range []string{"records", "acks", "dead"} {
		if _, err := cloud.GServer.CreateTopic(ctx, &pubsubpb.Topic{Name: "projects/evidence/topics/" + n}); err != nil {
			t.Fatal(err)
		}
	}
	for n, topic := range map[string]string{"sink": "records", "acks-gw-1": "acks", "dead": "dead"} {
		s := &pubsubpb.Subscription{Name: "projects/evidence/subscriptions/" + n, Topic: "projects/evidence/topics/" + topic, AckDeadlineSeconds: 10, ExpirationPolicy: &pubsubpb.ExpirationPolicy{}}
		if n == "sink" {
			s.DeadLetterPolicy = &pubsubpb.DeadLetterPolicy{DeadLetterTopic: "projects/evidence/topics/dead", MaxDeliveryAttempts: 100}
		}
		if _, err := cloud.GServer.CreateSubscription(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkTransport(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	for _, durability := range []string{config.DurabilityLocal, config.DurabilityPublished} {
		cfg.Transport.Durability = durability
		j, err := journal.Open(ctx, journal.Config{
			Dir: t.TempDir() + "/journal", Gateway: "gw-1", Version: "test", Tenant: public, Class: "standard", Retention: map[string]time.Duration{"standard": 24 * time.Hour},
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := newShipper(ctx, cfg, j, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		k := s.recorder.Append(record.Draft{Kind: record.KindReceived, Session: "s", Body: []byte(`{}`)})
		before, end := context.WithTimeout(ctx, 300*time.Millisecond)
		if err := k.Wait(before); (err == nil) != (durability == config.DurabilityLocal) {
			t.Errorf("%s: before anything is shipped: %v", durability, err)
		}
		end()
		shipping, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ship(shipping, j, slog.New(slog.DiscardHandler))
		}()
		if err := k.Wait(ctx); err != nil {
			t.Errorf("%s: %v", durability, err)
		}
		stop()
		<-done
		if err := s.close(); err != nil {
			t.Error(err)
		}
		if err := j.Close(ctx, "test"); err != nil {
			t.Error(err)
		}
		if text := describeTransport(cfg.Transport); !strings.Contains(text, "topic records") || !strings.Contains(text, durability) {
			t.Errorf("described as %q", text)
		}
	}
}
