package pubsub

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
)

// permissions grants all but what is listed as "NAME PERMISSION".
type permissions struct {
	iampb.UnimplementedIAMPolicyServer
	lacks []string
}

func (p *permissions) TestIamPermissions(_ context.Context, r *iampb.TestIamPermissionsRequest) (*iampb.TestIamPermissionsResponse, error) {
	out := &iampb.TestIamPermissionsResponse{}
	for _, x := range r.Permissions {
		if !slices.Contains(p.lacks, r.Resource+" "+x) {
			out.Permissions = append(out.Permissions, x)
		}
	}
	return out, nil
}

func TestCheck(t *testing.T) {
	never := &pubsubpb.ExpirationPolicy{}
	type subs map[string]*pubsubpb.Subscription
	good := func() subs {
		return subs{
			"sink-0":  {Topic: topic, Filter: `attributes.shard="0"`, ExpirationPolicy: never, DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: deadName, MaxDeliveryAttempts: 100}},
			"sink-1":  {Topic: topic, Filter: `attributes.shard = "1"`, ExpirationPolicy: never, DeadLetterPolicy: &pubsubpb.DeadLetterPolicy{DeadLetterTopic: deadName, MaxDeliveryAttempts: 100}},
			"acks-gw": {Topic: ackTopic, Filter: `attributes.gateway = "gw"`, ExpirationPolicy: never},
			"dead":    {Topic: deadName, ExpirationPolicy: never},
		}
	}
	for name, tc := range map[string]struct {
		change func(s subs)
		lacks  []string
		topics []string
		sink   bool
		want   []string // of the error, each with its command
	}{
		"in order":        {},
		"in order, sink":  {sink: true},
		"no topic":        {topics: []string{ackTopic, deadName}, change: func(s subs) { delete(s, "sink-0"); delete(s, "sink-1") }, want: []string{"there is no topic", "gcloud pubsub topics create records --project=p", "gcloud pubsub subscriptions create sink-1 --project=p --topic=projects/p/topics/records", `--message-filter='attributes.shard = "1"'`}},
		"no subscription": {change: func(s subs) { delete(s, "sink-1") }, want: []string{"there is no subscription", "gcloud pubsub subscriptions create sink-1", "--expiration-period=never", "--max-delivery-attempts=100"}},
		"expires":         {change: func(s subs) { s["sink-0"].ExpirationPolicy = nil }, want: []string{"sink-0 expires", "gcloud pubsub subscriptions update sink-0 --project=p --expiration-period=never"}},
		"answers expire": {change: func(s subs) {
			s["acks-gw"].ExpirationPolicy = &pubsubpb.ExpirationPolicy{Ttl: durationpb.New(31 * 24 * time.Hour)}
		}, want: []string{"acks-gw expires"}},
		"no dead letters":    {change: func(s subs) { s["sink-0"].DeadLetterPolicy = nil }, want: []string{"no dead-letter topic", "update sink-0 --project=p --dead-letter-topic=projects/p/topics/sink-0-dead"}},
		"few attempts":       {change: func(s subs) { s["sink-0"].DeadLetterPolicy.MaxDeliveryAttempts = 5 }, want: []string{"after 5 attempts"}},
		"dead letters lost":  {change: func(s subs) { delete(s, "dead") }, want: []string{"what comes there is lost", "gcloud pubsub subscriptions create dead"}},
		"other topic":        {change: func(s subs) { s["sink-0"].Topic = ackTopic }, want: []string{"is on projects/p/topics/acks, not on"}},
		"no shard filter":    {change: func(s subs) { s["sink-1"].Filter = "" }, want: []string{`has the filter "", not "attributes.shard`}},
		"no answer filter":   {change: func(s subs) { s["acks-gw"].Filter = "" }},
		"other's answers":    {change: func(s subs) { s["acks-gw"].Filter = `attributes.gateway = "other"` }, want: []string{"has the filter"}},
		"short retention":    {change: func(s subs) { s["sink-0"].MessageRetentionDuration = durationpb.New(time.Hour) }, want: []string{"keeps messages for 1h0m0s only"}},
		"may not publish":    {lacks: []string{topic + " pubsub.topics.publish"}, want: []string{"lacks pubsub.topics.publish on projects/p/topics/records", "add-iam-policy-binding records --project=p --member=serviceAccount:EMAIL --role=roles/pubsub.publisher"}},
		"may not get acks":   {lacks: []string{ackSub + " pubsub.subscriptions.consume"}, want: []string{"lacks pubsub.subscriptions.consume on projects/p/subscriptions/acks-gw"}},
		"sink may not read":  {sink: true, lacks: []string{"projects/p/subscriptions/sink-1 pubsub.subscriptions.consume"}, want: []string{"subscriptions add-iam-policy-binding sink-1", "roles/pubsub.subscriber"}},
		"sink may not tell":  {sink: true, lacks: []string{ackTopic + " pubsub.topics.publish"}, want: []string{"topics add-iam-policy-binding acks"}},
		"sink needs no more": {sink: true, lacks: []string{topic + " pubsub.topics.publish", ackSub + " pubsub.subscriptions.consume"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := pstest.NewServerWithCallback(0, func(g *grpc.Server) { iampb.RegisterIAMPolicyServer(g, &permissions{lacks: tc.lacks}) })
			defer c.Close()
			ctx := t.Context()
			if tc.topics == nil {
				tc.topics = []string{topic, ackTopic, deadName}
			}
			for _, n := range tc.topics {
				if _, err := c.GServer.CreateTopic(ctx, &pubsubpb.Topic{Name: n}); err != nil {
					t.Fatal(err)
				}
			}
			all := good()
			if tc.change != nil {
				tc.change(all)
			}
			for n, s := range all {
				s.Name, s.AckDeadlineSeconds = "projects/p/subscriptions/"+n, 10
				if _, err := c.GServer.CreateSubscription(ctx, s); err != nil {
					t.Fatal(err)
				}
			}
			setup := Setup{Project: project, Topic: "records", Subscriptions: Shards("sink", 2), Shards: 2, AckTopic: "acks", AckSubscription: "acks-gw", Gateway: "gw", Options: optionsFor(c.Addr, nil)}
			if tc.sink {
				setup.Sink, setup.Topic, setup.Shards, setup.AckSubscription = true, "", 0, ""
			}
			err := Check(ctx, setup)
			if len(tc.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var s *SetupError
			if !errors.As(err, &s) {
				t.Fatalf("Check: %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in:\n%v", w, err)
				}
			}
			for _, p := range s.Problems {
				if !strings.HasPrefix(p.Fix, "gcloud pubsub ") {
					t.Errorf("no command for %q", p.Text)
				}
			}
		})
	}
}

func TestCheckUnreachable(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := Check(ctx, Setup{Project: project, Topic: "records", AckTopic: "acks", Options: optionsFor("127.0.0.1:1", nil)})
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

// pstest knows no permissions, as Google's emulator.
func TestCheckEmulator(t *testing.T) {
	c := newCloud(t)
	if err := Check(t.Context(), Setup{Project: project, Topic: topic, Subscriptions: []string{"sink"}, Shards: 1, AckTopic: ackTopic, AckSubscription: "acks-gw", Gateway: "gw", Options: c.options(nil)}); err != nil {
		t.Error(err)
	}
}
