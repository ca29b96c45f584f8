//go:build conformance

package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	gcp "cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/transport/pubsub"
	"verbatim.dev/recorder/vault"
)

// pubsubNames makes topics and subscriptions for one case, and removes them.
func pubsubNames(t *testing.T) pubsub.Setup {
	t.Helper()
	project := env(t, "CONFORMANCE_PROJECT", "a Google Cloud project")
	env(t, "CONFORMANCE_PUBSUB", "to 1, to let the cases make topics and subscriptions in the project, which they remove again (roles/pubsub.admin)")
	c, err := gcp.NewClient(t.Context(), project)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	id := fmt.Sprintf("verbatim-conformance-%d", rand.Uint32())
	s := pubsub.Setup{
		Project: project, Topic: id, Subscriptions: []string{id + "-sink"}, Shards: 1, AckTopic: id + "-acks", AckSubscription: id + "-acks-gw", Gateway: "gw",
	}
	full := func(kind, name string) string { return "projects/" + project + "/" + kind + "/" + name }
	later := func(what string, f func(ctx context.Context) error) {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := f(ctx); err != nil {
				t.Errorf("remove %s: %v", what, err)
			}
		})
	}
	for _, n := range []string{id, id + "-acks", id + "-dead"} {
		name := full("topics", n)
		if _, err := c.TopicAdminClient.CreateTopic(t.Context(), &pubsubpb.Topic{Name: name}); err != nil {
			t.Fatal(err)
		}
		later(name, func(ctx context.Context) error {
			return c.TopicAdminClient.DeleteTopic(ctx, &pubsubpb.DeleteTopicRequest{Topic: name})
		})
	}
	for _, sub := range []*pubsubpb.Subscription{
		{Name: s.Subscriptions[0], Topic: id, DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: full("topics", id+"-dead"), MaxDeliveryAttempts: 100}},
		{Name: s.AckSubscription, Topic: id + "-acks", Filter: `attributes.gateway = "gw"`},
		{Name: id + "-dead", Topic: id + "-dead"},
	} {
		sub.Name, sub.Topic = full("subscriptions", sub.Name), full("topics", sub.Topic)
		sub.AckDeadlineSeconds, sub.ExpirationPolicy, sub.MessageRetentionDuration = 60, &pubsubpb.ExpirationPolicy{}, durationpb.New(7*24*time.Hour)
		if _, err := c.SubscriptionAdminClient.CreateSubscription(t.Context(), sub); err != nil {
			t.Fatal(err)
		}
		later(sub.Name, func(ctx context.Context) error {
			return c.SubscriptionAdminClient.DeleteSubscription(ctx, &pubsubpb.DeleteSubscriptionRequest{Subscription: sub.Name})
		})
	}
	return s
}

func pubsubSetup(t *testing.T) {
	s := pubsubNames(t)
	if err := pubsub.Check(t.Context(), s); err != nil {
		t.Error(err)
	}
	s.Sink = true
	if err := pubsub.Check(t.Context(), s); err != nil {
		t.Errorf("as the sink: %v", err)
	}
	s.Subscriptions = []string{"verbatim-conformance-absent"}
	var found *pubsub.SetupError
	if err := pubsub.Check(t.Context(), s); !errors.As(err, &found) {
		t.Errorf("a subscription that is not there: %v", err)
	}
}

// pubsubCarry carries a journal of a few MB to a vault, with a sink that stops in
// the middle.
func pubsubCarry(t *testing.T) {
	s := pubsubNames(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	e, err := record.NewEpoch(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	head := record.NewChain(e, "gw")
	var items []transport.Item
	add := func(f record.Frame) {
		if _, err := f.Encode(nil); err != nil {
			t.Fatal(err)
		}
		if f.Kind.Leaf() {
			head = head.Next(f.Leaf())
		}
		items = append(items, transport.Item{Epoch: e, Gateway: "gw", Frame: f})
	}
	const records, perCut = 60, 10
	for n := uint64(1); n <= records; n++ {
		size := 100 << 10
		if n == records/2 {
			size = 3 << 20 // goes in pieces
		}
		now := time.Now().UTC()
		add(record.Frame{Kind: record.KindPayload, Sequence: n, Time: now, Class: "standard", Expiry: now.AddDate(1, 0, 0).Truncate(time.Second), Body: make([]byte, size)})
		add(recordtest.Checkpoint(n, head, now, n%perCut == 0))
	}
	client, err := pubsub.NewClient(ctx, pubsub.ClientConfig{Project: s.Project, Topic: s.Topic, AckSubscription: s.AckSubscription, Gateway: "gw", Message: 900 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	acked := make(chan uint64, 1000)
	shipped := make(chan error, 1)
	go func() {
		shipped <- client.Ship(ctx, transport.Journal{
			Acknowledge: func(_ record.Epoch, n uint64) error { acked <- n; return nil },
			Tail: func() transport.Source {
				at := 0
				return transport.SourceFunc(func(context.Context) (transport.Item, error) {
					if at++; at > len(items) {
						return transport.Item{}, io.EOF
					}
					return items[at-1], nil
				})
			},
		})
	}()
	dir := t.TempDir()
	v, err := vault.OpenFolder(vault.FolderConfig{Dir: filepath.Join(dir, "vault"), Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for round := range 2 {
		k, err := sink.New(sink.Config{Vault: v, Spool: filepath.Join(dir, "spool")})
		if err != nil {
			t.Fatal(err)
		}
		server, err := pubsub.NewServer(ctx, pubsub.ServerConfig{Project: s.Project, Subscriptions: s.Subscriptions, AckTopic: s.AckTopic})
		if err != nil {
			t.Fatal(err)
		}
		serving, stop := context.WithCancel(ctx)
		served := make(chan error, 1)
		go func() { served <- server.Serve(serving, k) }()
		if round == 0 {
			for serving.Err() == nil && k.Stats().Segments < 2 {
				time.Sleep(5 * time.Millisecond)
			}
		} else if err := <-shipped; err != nil {
			t.Error(err)
		}
		stop()
		<-served
		t.Logf("round %d: %+v", round, server.Stats())
		_ = server.Close()
	}
	close(acked)
	var last uint64
	for n := range acked {
		last = max(last, n)
	}
	names := map[string]bool{}
	for n, err := range v.List(ctx, "segments/") {
		if err != nil {
			t.Fatal(err)
		}
		names[n] = true
	}
	if last != records || len(names) != records/perCut {
		t.Errorf("acknowledged %d of %d, segments %v", last, records, slices.Sorted(maps.Keys(names)))
	}
}
