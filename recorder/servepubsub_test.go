package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"

	"verbatim.dev/deploy/local/issuer"
)

// TestServeOverPubSub: what is read is on record in the vault, by way of
// Pub/Sub, and published before it was given out.
func TestServeOverPubSub(t *testing.T) {
	cloud := pstest.NewServer()
	t.Cleanup(func() { _ = cloud.Close() })
	t.Setenv("PUBSUB_EMULATOR_HOST", cloud.Addr)
	t.Setenv("VERBATIM_SERVER", "")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, n := range []string{"records", "acks", "dead"} {
		if _, err := cloud.GServer.CreateTopic(ctx, &pubsubpb.Topic{Name: "projects/p/topics/" + n}); err != nil {
			t.Fatal(err)
		}
	}
	for n, s := range map[string]*pubsubpb.Subscription{
		"sink": {Topic: "records", DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: "projects/p/topics/dead", MaxDeliveryAttempts: 100}},
		"mine": {Topic: "acks", Filter: `attributes.gateway = "auditors-1"`},
		"dead": {Topic: "dead"},
	} {
		s.Name, s.Topic, s.AckDeadlineSeconds, s.ExpirationPolicy = "projects/p/subscriptions/"+n, "projects/p/topics/"+s.Topic, 10, &pubsubpb.ExpirationPolicy{}
		if _, err := cloud.GServer.CreateSubscription(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := sample(dir); err != nil {
		t.Fatal(err)
	}
	idp, err := issuer.Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close(context.Background()) })
	token, err := idp.Mint(issuer.Auditor("auditors"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"token": token, "serve.yaml": `name: auditors-1
listen: ` + addr + `
vault: vault
keyset: tenant.json
journal: {dir: journal, cut_interval: 50ms}
pubsub: {project: p, topic: records, subscription: sink, ack_topic: acks, ack_subscription: mine}
durability: published
retention: {class: standard, keep: 400d}
issuers: [{name: corp, url: "` + idp.Issuer(issuer.Corp).URL() + `", audiences: [auditors], groups_claim: groups}]
roles: {auditor: {groups: [corp/auditors]}}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	begin := func(args ...string) (stop func()) {
		var out, log lockedBuffer
		running, end := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- run(running, args, &out, &log) }()
		return func() {
			end()
			if err := <-done; err != nil {
				t.Errorf("%s: %v\n%s", args[0], err, log.String())
			}
		}
	}
	stopSink := begin("sink", "--vault", dir+"/vault", "--pubsub", "projects/p/subscriptions/sink", "--ack-topic", "projects/p/topics/acks")
	stopServe := begin("serve", "--config", dir+"/serve.yaml")
	for ctx.Err() == nil {
		if res, err := http.Get("http://" + addr + "/healthz"); err == nil {
			res.Body.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	var out, log bytes.Buffer
	if err := run(ctx, []string{"search", "--server", "http://" + addr, "--token-file", dir + "/token", "--why", "case 1"}, &out, &log); err != nil || !strings.Contains(out.String(), "SELECT name") {
		t.Fatalf("%v %s %s", err, out.String(), log.String())
	}
	published := false
	for _, m := range cloud.Messages() {
		published = published || m.Attributes["gateway"] == "auditors-1" && m.Attributes["type"] == "frames"
	}
	if !published {
		t.Error("it was given out, and nothing of it is published")
	}
	stopServe()
	stopSink()
	out.Reset()
	if err := run(ctx, []string{"accesses", "--vault", dir + "/vault", "--keyset", dir + "/tenant.json"}, &out, &log); err != nil || !strings.Contains(out.String(), "grace@corp.example") || !strings.Contains(out.String(), "why: case 1") {
		t.Errorf("%v %s", err, out.String())
	}
	out.Reset()
	if err := run(ctx, []string{"verify", "--vault", dir + "/vault"}, &out, &log); err != nil || !strings.Contains(out.String(), "1 records of reading") {
		t.Errorf("%v %s", err, out.String())
	}
}
