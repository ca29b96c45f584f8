package pubsub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// calls counts the calls of one method that a client makes, and fails one of
// them: before it is done, or after.
type calls struct {
	method    string // how its name ends
	failAt    int
	persisted bool
	code      codes.Code

	mu sync.Mutex
	n  int
}

func (c *calls) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	if !strings.HasSuffix(method, c.method) {
		return invoke(ctx, method, req, reply, cc, o...)
	}
	c.mu.Lock()
	c.n++
	fail := c.n == c.failAt
	c.mu.Unlock()
	if !fail {
		return invoke(ctx, method, req, reply, cc, o...)
	}
	if c.persisted {
		_ = invoke(ctx, method, req, reply, cc, o...)
		if p, ok := reply.(*pubsubpb.PublishResponse); ok {
			p.Reset()
		}
	}
	return status.Error(c.code, "injected fault")
}

// Each call that writes at Pub/Sub fails, and fails although it was done, with an
// error that Google's client tries again and with one that it gives up on: the
// gateway's publishing, the sink's answers, its acknowledgements. The vault ends
// up the same, and the journal is told that all is held.
func TestCallFaults(t *testing.T) {
	all := items(t, script{epoch: 1, batches: 9, body: 900, perCut: 3, large: 9 << 10})
	want := undisturbed(t, all)
	for _, side := range []string{"gateway Publish", "sink Publish", "sink Acknowledge"} {
		failed := 0
		for at := 1; at <= 6; at++ {
			for _, persisted := range []bool{false, true} {
				for _, code := range []codes.Code{codes.Unavailable, codes.PermissionDenied} {
					who, method, _ := strings.Cut(side, " ")
					x := &calls{method: "/" + method, failAt: at, persisted: persisted, code: code}
					name := fmt.Sprintf("%s %d persisted=%t %s", side, at, persisted, code)
					if !callFault(t, name, who, x, want) {
						t.Fatal(name)
					}
					x.mu.Lock()
					if x.n >= at {
						failed++
					}
					x.mu.Unlock()
				}
			}
		}
		if failed < 4 { // each batches as it likes
			t.Errorf("%s: %d calls failed", side, failed)
		}
		t.Logf("%s: %d calls failed", side, failed)
	}
}

func callFault(t *testing.T, name, who string, x *calls, want map[string]string) bool {
	return t.Run(name, func(t *testing.T) {
		c := newCloud(t)
		faulty := append(c.options(nil), option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(x.unary)))
		config := ClientConfig{Options: c.options(nil), Message: 2 << 10}
		serving := ServerConfig{Options: c.options(nil), Gap: 100e6}
		if who == "gateway" {
			config.Options = faulty
		} else {
			serving.Options = faulty
		}
		v := openFolder(t, filepath.Join(t.TempDir(), "vault"), true)
		s := newSink(t, v)
		server := newServer(t, serving)
		ended, stop := start(t, func(ctx context.Context) error { return server.Serve(ctx, s) })
		j := newJournal(items(t, script{epoch: 1, batches: 9, body: 900, perCut: 3, large: 9 << 10}))
		client := newClient(t, config)
		wait, _ := start(t, func(ctx context.Context) error { return client.Ship(ctx, j.journal()) })
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := ended(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if !maps.Equal(snapshot(t, v), want) || s.Stats().Alarms != 0 || j.broken != nil {
			t.Errorf("the vault is another one: %+v, %v", s.Stats(), j.broken)
		}
	})
}
