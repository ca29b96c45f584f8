package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"

	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/transport/pubsub"
)

func TestSinkSource(t *testing.T) {
	const sub, topic = "projects/p/subscriptions/s", "projects/p/topics/a"
	for name, tc := range map[string]struct {
		listen, pubsub, ack string
		outstanding         int
		want                string
	}{
		"socket":        {listen: "unix:s.sock", outstanding: 256},
		"pubsub":        {pubsub: sub + ",projects/p/subscriptions/t", ack: topic, outstanding: 256},
		"both":          {listen: "unix:s.sock", pubsub: sub, ack: topic, outstanding: 256, want: "exclude each other"},
		"neither":       {outstanding: 256, want: "want unix:PATH, or --pubsub"},
		"no answers":    {pubsub: sub, outstanding: 256, want: "without --ack-topic"},
		"answers alone": {listen: "unix:s.sock", ack: topic, outstanding: 256, want: "goes with --pubsub"},
		"short name":    {pubsub: "s", ack: topic, outstanding: 256, want: "want projects/PROJECT/subscriptions/ID"},
		"a topic":       {pubsub: topic, ack: topic, outstanding: 256, want: "want projects/PROJECT/subscriptions/ID"},
		"not a topic":   {pubsub: sub, ack: sub, outstanding: 256, want: "want projects/PROJECT/topics/ID"},
		"outstanding":   {pubsub: sub, ack: topic, outstanding: 1, want: "want 16 to"},
	} {
		s, err := sinkSource(tc.listen, tc.pubsub, tc.ack, tc.outstanding)
		var usage *usageError
		switch {
		case tc.want == "" && (err != nil || s.String() == ""):
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (!errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// lockedBuffer is written by a command while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The command reads a subscription, with a real journal at the other end, and
// verify finds nothing wrong with what it wrote.
func TestSinkOverPubSub(t *testing.T) {
	cloud := pstest.NewServer()
	t.Cleanup(func() { _ = cloud.Close() })
	t.Setenv("PUBSUB_EMULATOR_HOST", cloud.Addr)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	args := []string{"sink", "--vault", dir + "/vault", "--pubsub", "projects/p/subscriptions/sink", "--ack-topic", "projects/p/topics/acks"}
	var out, log lockedBuffer
	if err := run(ctx, args, &out, &log); err == nil || !strings.Contains(err.Error(), "gcloud pubsub topics create acks --project=p") {
		t.Fatalf("without topics: %v", err)
	}
	for _, n := range []string{"records", "acks", "dead"} {
		if _, err := cloud.GServer.CreateTopic(ctx, &pubsubpb.Topic{Name: "projects/p/topics/" + n}); err != nil {
			t.Fatal(err)
		}
	}
	for n, s := range map[string]*pubsubpb.Subscription{
		"sink": {Topic: "records", DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: "projects/p/topics/dead", MaxDeliveryAttempts: 100}},
		"acks": {Topic: "acks"},
		"dead": {Topic: "dead"},
	} {
		s.Name, s.Topic, s.AckDeadlineSeconds, s.ExpirationPolicy = "projects/p/subscriptions/"+n, "projects/p/topics/"+s.Topic, 10, &pubsubpb.ExpirationPolicy{}
		if _, err := cloud.GServer.CreateSubscription(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- run(serving, args, &out, &log) }()

	tenant, err := record.NewTenant()
	if err != nil {
		t.Fatal(err)
	}
	public, err := tenant.Public()
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(ctx, journal.Config{
		Dir: dir + "/journal", Gateway: "gw", Version: "test", Tenant: public, Class: "standard",
		Retention: map[string]time.Duration{"standard": 24 * time.Hour}, CutInterval: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	gate := pubsub.NewGate(j, j.Epoch())
	defer gate.Close()
	client, err := pubsub.NewClient(ctx, pubsub.ClientConfig{Project: "p", Topic: "records", AckSubscription: "acks", Gateway: "gw", Published: gate.Published})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	shipped := make(chan error, 1)
	go func() {
		shipped <- client.Ship(ctx, transport.Journal{Acknowledge: j.Acknowledge, Tail: func() transport.Source { return transport.NewSource(j.Tail()) }})
	}()
	for range 50 {
		k := gate.Append(record.Draft{Kind: record.KindReceived, Session: "s", Body: []byte(`{}`)})
		if err := k.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := client.Stats().Messages; n == 0 {
		t.Error("tickets were settled with nothing published")
	}
	if err := j.Finish(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	if err := <-shipped; err != nil {
		t.Fatal(err)
	}
	if err := j.Close(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("sink: %v\n%s", err, log.String())
	}
	if !strings.Contains(out.String(), "ready, vault") || !strings.Contains(out.String(), "Pub/Sub projects/p/subscriptions/sink") {
		t.Errorf("it says %q", out.String())
	}
	var report bytes.Buffer
	err = run(t.Context(), []string{"verify", "--vault", dir + "/vault"}, &report, &report)
	if err != nil || !strings.Contains(report.String(), "exchanges   50") {
		t.Errorf("verify: %v\n%s", err, report.String())
	}
}
