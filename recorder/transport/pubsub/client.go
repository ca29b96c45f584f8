package pubsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	gcp "cloud.google.com/go/pubsub/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// maxReconnect keeps gRPC from waiting up to its own two minutes when Pub/Sub is
// back.
const maxReconnect = 5 * time.Second

// connect makes a client of Google's. With PUBSUB_EMULATOR_HOST set it speaks to
// an emulator, without TLS and credentials.
func connect(ctx context.Context, project string, options []option.ClientOption) (*gcp.Client, error) {
	b := backoff.DefaultConfig
	b.BaseDelay, b.MaxDelay = 200*time.Millisecond, maxReconnect
	o := []option.ClientOption{option.WithGRPCDialOption(grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: 5 * time.Second}))}
	c, err := gcp.NewClient(ctx, project, append(o, options...)...)
	if err != nil {
		return nil, fmt.Errorf("pub/sub: %w", err)
	}
	return c, nil
}

// fullName returns projects/PROJECT/KIND/NAME of a name that may be full already.
func fullName(project, kind, name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return "projects/" + project + "/" + kind + "/" + name
}

// ParseName takes projects/PROJECT/KIND/ID apart; kind is "topics" or
// "subscriptions".
func ParseName(name, kind string) (project, id string, err error) {
	p := strings.Split(name, "/")
	if len(p) != 4 || p[0] != "projects" || p[2] != kind || p[1] == "" || p[3] == "" {
		return "", "", fmt.Errorf("%q: want projects/PROJECT/%s/ID", name, kind)
	}
	return p[1], p[3], nil
}

// Shards returns the subscriptions of n shards: the name itself for one, else
// NAME-0 to NAME-(n-1).
func Shards(name string, n int) []string {
	if n <= 1 {
		return []string{name}
	}
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", name, i)
	}
	return all
}

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// sleep waits and reports whether ctx is still on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

var errNoName = errors.New("pub/sub: project, topic and acknowledgement names must be given")
