package pubsub

import (
	"context"
	"testing"
	"time"

	"verbatim.dev/recorder/transport"
)

func run(t *testing.T, all []transport.Item, cc ClientConfig, sc ServerConfig) (*Client, *Server, *memoryJournal) {
	t.Helper()
	want := undisturbed(t, all)
	c := newCloud(t)
	cc.Options, sc.Options = append(c.options(nil), cc.Options...), append(c.options(nil), sc.Options...)
	v := openFolder(t, t.TempDir()+"/vault", true)
	server, client, s := newServer(t, sc), newClient(t, cc), newSink(t, v)
	_, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
	j := newJournal(all)
	wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all messages are acknowledged", func() bool { st := server.Stats(); return st.Outstanding == 0 && st.Ahead == 0 })
	stop()
	same(t, snapshot(t, v), want)
	if j.broken != nil {
		t.Error(j.broken)
	}
	if st := s.Stats(); st.Alarms != 0 {
		t.Errorf("%d alarms", st.Alarms)
	}
	t.Logf("client %+v, server %+v", client.Stats(), server.Stats())
	return client, server, j
}

func TestShip(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 60, body: 3000, perCut: 5, recovered: true, large: 6 << 20}, script{epoch: 2, batches: 40, body: 3000, perCut: 7})
	client, _, _ := run(t, all, ClientConfig{}, ServerConfig{})
	if st := client.Stats(); st.Repairs != 0 || st.Failures != 0 || st.Frames != uint64(len(all)) {
		t.Errorf("%+v, %d frames in the journal", st, len(all))
	}
}

// Twice, out of order, and in small messages and pieces.
func TestChaos(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 150, body: 2000, perCut: 20, recovered: true, large: 100 << 10}, script{epoch: 2, batches: 100, body: 2000, perCut: 13, large: 50 << 10})
	up, down := newChaos(1), newChaos(2)
	up.twice, up.shuffle, up.again = 0.2, true, 0.1
	down.twice, down.shuffle, down.again = 0.2, true, 0.1
	client, server, _ := run(t, all, ClientConfig{Message: 3000, Options: optionsFor("unused", up)[3:]}, ServerConfig{Gap: 5 * time.Second, Options: optionsFor("unused", down)[3:]})
	if server.Stats().Duplicates == 0 || up.duplicates.Load() == 0 || down.duplicates.Load() == 0 || down.moved.Load() == 0 {
		t.Errorf("nothing was disturbed: %+v", server.Stats())
	}
	_ = client
}

// Messages that Pub/Sub said it had are gone.
func TestLost(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 150, body: 2000, perCut: 10, recovered: true, large: 30 << 10}, script{epoch: 2, batches: 50, body: 2000, perCut: 10})
	up, down := newChaos(3), newChaos(4)
	up.lost, down.lost = 0.4, 0.3
	client, server, _ := run(t, all, ClientConfig{Message: 12000, Options: optionsFor("unused", up)[3:]}, ServerConfig{Gap: 400 * time.Millisecond, Options: optionsFor("unused", down)[3:]})
	if up.dropped.Load() == 0 || down.dropped.Load() == 0 || client.Stats().Repairs == 0 || client.Stats().Asks < 3 || server.Stats().Gaps == 0 {
		t.Errorf("nothing was lost: %+v, %+v", client.Stats(), server.Stats())
	}
}
