package pubsub

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
)

// emulator starts Google's own, where the gcloud SDK has it.
func emulator(t *testing.T) (address string) {
	t.Helper()
	gcloud, err := exec.LookPath("gcloud")
	if err == nil {
		gcloud, err = filepath.EvalSymlinks(gcloud)
	}
	if err != nil {
		t.Skip("no gcloud, whose SDK has the emulator")
	}
	jars, _ := filepath.Glob(filepath.Join(filepath.Dir(gcloud), "../platform/pubsub-emulator/lib/cloud-pubsub-emulator-*.jar"))
	if len(jars) == 0 {
		t.Skip("the gcloud SDK has no emulator: gcloud components install pubsub-emulator")
	}
	if _, err := exec.LookPath("java"); err != nil {
		t.Skip("no java, which the emulator needs")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	address = fmt.Sprintf("127.0.0.1:%d", port)
	p := exec.Command("java", "-Xmx256m", "-jar", jars[0], "--host=127.0.0.1", fmt.Sprintf("--port=%d", port))
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	p.Stdout, p.Stderr = log, log
	if err := p.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		_ = log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("emulator: %s", b[max(0, len(b)-4000):])
		}
	})
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			return address
		}
		if time.Now().After(end) {
			t.Fatal("the emulator does not listen")
		}
	}
}

// The way through Google's emulator. No end is started again: version 0.8.20 goes
// on sending to a stream that its client has reset.
func TestEmulator(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Java process")
	}
	address := emulator(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	admin, err := connect(ctx, project, optionsFor(address, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	for _, n := range []string{topic, ackTopic, deadName} {
		if _, err := admin.TopicAdminClient.CreateTopic(ctx, &pubsubpb.Topic{Name: n}); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*pubsubpb.Subscription{
		{Name: subName, Topic: topic, DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: deadName, MaxDeliveryAttempts: 100}},
		{Name: ackSub, Topic: ackTopic, Filter: `attributes.gateway = "gw"`},
		{Name: "projects/p/subscriptions/dead", Topic: deadName},
	} {
		s.AckDeadlineSeconds, s.ExpirationPolicy = 10, &pubsubpb.ExpirationPolicy{}
		if _, err := admin.SubscriptionAdminClient.CreateSubscription(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	setup := Setup{Project: project, Topic: topic, Subscriptions: []string{"sink"}, Shards: 1, AckTopic: ackTopic, AckSubscription: "acks-gw", Gateway: "gw", Options: optionsFor(address, nil)}
	if err := Check(ctx, setup); err != nil {
		t.Log(err) // it keeps less of a subscription than Pub/Sub does
	}
	all := items(t, script{epoch: 1, batches: 400, body: 3000, perCut: 20, recovered: true, large: 3 << 20}, script{epoch: 2, batches: 200, body: 3000, perCut: 20})
	want := undisturbed(t, all)
	v := openFolder(t, t.TempDir()+"/vault", true)
	j := newJournal(all)
	client := newClient(t, ClientConfig{Options: optionsFor(address, nil), Message: 20000})
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	server, s := newServer(t, ServerConfig{Options: optionsFor(address, nil), Gap: 15 * time.Second, Streams: 2}), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	same(t, snapshot(t, v), want)
	t.Logf("client %+v, server %+v", client.Stats(), server.Stats())
}
