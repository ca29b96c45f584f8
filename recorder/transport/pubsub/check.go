package pubsub

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"
	gcp "cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Setup is what must be there. Names are full; those that a side does not use
// are empty.
type Setup struct {
	Project         string
	Topic           string
	Subscriptions   []string // the sink's
	AckTopic        string
	AckSubscription string // the gateway's
	Gateway         string // the gateway's name, for the filter of AckSubscription
	// Shards is over how many the gateways spread epochs, where known: then each
	// of Subscriptions must filter for its own, in their order.
	Shards int
	// Sink checks the rights of the sink, not those of a gateway.
	Sink    bool
	Options []option.ClientOption
}

// Problem is one thing that is not as it must be.
type Problem struct {
	Text string
	Fix  string // a command that repairs it
}

// SetupError are all problems that a check found.
type SetupError struct{ Problems []Problem }

func (e *SetupError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "pub/sub: %s; run: %s", p.Text, p.Fix)
	}
	return b.String()
}

// ErrUnreachable is wrapped by a check's error that says nothing of the setup:
// Pub/Sub did not answer.
var ErrUnreachable = errors.New("pub/sub cannot be reached")

const (
	minAttempts  = 20
	minRetention = 24 * time.Hour
)

// Check looks at topics, subscriptions and this identity's rights, and returns
// a [SetupError], or an error that wraps [ErrUnreachable]. An emulator that
// knows no permissions is taken to grant all.
func Check(ctx context.Context, s Setup) error {
	if s.Topic != "" {
		s.Topic = fullName(s.Project, "topics", s.Topic)
	}
	s.AckTopic = fullName(s.Project, "topics", s.AckTopic)
	c, err := connect(ctx, s.Project, s.Options)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer c.Close()
	k := &checker{ctx: ctx, c: c}
	k.setup(s)
	switch {
	case k.failed != nil:
		return fmt.Errorf("%w: %w", ErrUnreachable, k.failed)
	case len(k.problems) > 0:
		return &SetupError{k.problems}
	}
	return nil
}

type checker struct {
	ctx      context.Context
	c        *gcp.Client
	problems []Problem
	failed   error
}

func (k *checker) problem(fix, format string, args ...any) {
	k.problems = append(k.problems, Problem{fmt.Sprintf(format, args...), fix})
}

func (k *checker) setup(s Setup) {
	if !s.Sink {
		k.topic(s.Topic, "the gateways' records")
		k.may(k.c.TopicAdminClient.TestIamPermissions, s.Topic, "pubsub.topics.publish", "roles/pubsub.publisher")
	}
	dead := map[string]bool{}
	for i, name := range s.Subscriptions {
		name = fullName(s.Project, "subscriptions", name)
		filter := ""
		if s.Shards > 1 {
			filter = `attributes.shard = "` + strconv.Itoa(i) + `"`
		}
		sub := k.subscription(name, s.Topic, filter, create{topic: s.Topic, filter: filter, dead: true})
		if sub != nil && sub.DeadLetterPolicy != nil {
			dead[sub.DeadLetterPolicy.DeadLetterTopic] = true
		}
		if s.Sink {
			k.may(k.c.SubscriptionAdminClient.TestIamPermissions, name, "pubsub.subscriptions.consume", "roles/pubsub.subscriber")
		}
	}
	for name := range dead {
		if k.topic(name, "messages that nobody can read") {
			k.watched(name)
		}
	}
	k.topic(s.AckTopic, "the sink's answers")
	if s.Sink {
		k.may(k.c.TopicAdminClient.TestIamPermissions, s.AckTopic, "pubsub.topics.publish", "roles/pubsub.publisher")
		return
	}
	name := fullName(s.Project, "subscriptions", s.AckSubscription)
	filter := `attributes.gateway = "` + s.Gateway + `"`
	k.subscription(name, s.AckTopic, filter, create{topic: s.AckTopic, filter: filter})
	k.may(k.c.SubscriptionAdminClient.TestIamPermissions, name, "pubsub.subscriptions.consume", "roles/pubsub.subscriber")
}

// answer sorts an error of a look-up: nil is true.
func (k *checker) answer(err error, what, name, create string) bool {
	project, id, kind := split(name)
	switch status.Code(err) {
	case codes.OK:
		return true
	case codes.NotFound:
		k.problem(create, "there is no %s %s", what, name)
	case codes.PermissionDenied:
		k.problem(fmt.Sprintf("gcloud pubsub %s add-iam-policy-binding %s --project=%s --member=serviceAccount:EMAIL --role=roles/pubsub.viewer", kind, id, project),
			"this identity may not look at the %s %s (nothing was changed)", what, name)
	case codes.InvalidArgument:
		k.problem(create, "%s is no name of a %s: %s", name, what, status.Convert(err).Message())
	default:
		k.failed = fmt.Errorf("%s %s: %w", what, name, err)
	}
	return false
}

func split(name string) (project, id, kind string) {
	if p := strings.Split(name, "/"); len(p) == 4 {
		return p[1], p[3], p[2]
	}
	return "PROJECT", name, "topics"
}

func (k *checker) topic(name, use string) bool {
	if k.failed != nil {
		return false
	}
	project, id, _ := split(name)
	_, err := k.c.TopicAdminClient.GetTopic(k.ctx, &pubsubpb.GetTopicRequest{Topic: name})
	return k.answer(err, "topic for "+use+",", name, fmt.Sprintf("gcloud pubsub topics create %s --project=%s", id, project))
}

// watched says whether somebody keeps what comes to the dead-letter topic.
func (k *checker) watched(name string) {
	project, id, _ := split(name)
	_, err := k.c.TopicAdminClient.ListTopicSubscriptions(k.ctx, &pubsubpb.ListTopicSubscriptionsRequest{Topic: name, PageSize: 1}).Next()
	if status.Code(err) == codes.OK && err == nil {
		return
	}
	k.problem(fmt.Sprintf("gcloud pubsub subscriptions create %s --project=%s --topic=%s --expiration-period=never --message-retention-duration=31d", id, project, id),
		"the dead-letter topic %s has no subscription that this identity can see: what comes there is lost", name)
}

// create is how a subscription is made.
type create struct {
	topic, filter string
	dead          bool
}

func (c create) command(name string) string {
	project, id, _ := split(name)
	if c.topic == "" {
		c.topic = "TOPIC"
	}
	b := fmt.Sprintf("gcloud pubsub subscriptions create %s --project=%s --topic=%s --ack-deadline=60 --expiration-period=never --message-retention-duration=31d --min-retry-delay=10s --max-retry-delay=600s", id, project, c.topic)
	if c.dead {
		b += fmt.Sprintf(" --dead-letter-topic=projects/%s/topics/%s-dead --max-delivery-attempts=100", project, id)
	}
	if c.filter != "" {
		b += " --message-filter='" + c.filter + "'"
	}
	return b
}

func (k *checker) subscription(name, topic, filter string, c create) *pubsubpb.Subscription {
	if k.failed != nil {
		return nil
	}
	project, id, _ := split(name)
	sub, err := k.c.SubscriptionAdminClient.GetSubscription(k.ctx, &pubsubpb.GetSubscriptionRequest{Subscription: name})
	if !k.answer(err, "subscription", name, c.command(name)) {
		return nil
	}
	update := fmt.Sprintf("gcloud pubsub subscriptions update %s --project=%s ", id, project)
	again := fmt.Sprintf("gcloud pubsub subscriptions delete %s --project=%s && %s", id, project, c.command(name))
	if topic != "" && sub.Topic != topic {
		k.problem(again, "subscription %s is on %s, not on %s", name, sub.Topic, topic)
	}
	// Without a policy a subscription expires after 31 idle days; with one that
	// has no time it never does.
	if sub.ExpirationPolicy == nil || sub.ExpirationPolicy.Ttl != nil {
		k.problem(update+"--expiration-period=never", "subscription %s expires when nobody reads it, and what it holds is lost", name)
	}
	if d := sub.MessageRetentionDuration; d != nil && d.AsDuration() < minRetention {
		k.problem(update+"--message-retention-duration=31d", "subscription %s keeps messages for %s only", name, d.AsDuration())
	}
	have := strings.Join(strings.Fields(strings.ReplaceAll(sub.Filter, "=", " = ")), " ")
	switch {
	case have == filter:
	case have == "" && !c.dead: // each gateway then gets, and drops, the others' answers
	case c.topic == "": // the sink does not know the shards
	default:
		k.problem(again, "subscription %s has the filter %q, not %q", name, sub.Filter, filter)
	}
	switch p := sub.DeadLetterPolicy; {
	case !c.dead:
	case p == nil || p.DeadLetterTopic == "":
		k.problem(update+fmt.Sprintf("--dead-letter-topic=projects/%s/topics/%s-dead --max-delivery-attempts=100", project, id),
			"subscription %s has no dead-letter topic: a message that cannot be read comes again for ever", name)
	case p.MaxDeliveryAttempts < minAttempts:
		k.problem(update+fmt.Sprintf("--dead-letter-topic=%s --max-delivery-attempts=100", p.DeadLetterTopic),
			"subscription %s gives a message up after %d attempts: a vault that cannot be reached for some minutes uses up more", name, p.MaxDeliveryAttempts)
	}
	if sub.Detached || sub.State == pubsubpb.Subscription_RESOURCE_ERROR {
		k.problem(again, "subscription %s is detached or in error", name)
	}
	return sub
}

// tester is TestIamPermissions of either admin client.
type tester = func(context.Context, *iampb.TestIamPermissionsRequest, ...gax.CallOption) (*iampb.TestIamPermissionsResponse, error)

func (k *checker) may(test tester, name, permission, role string) {
	if k.failed != nil {
		return
	}
	project, id, kind := split(name)
	r, err := test(k.ctx, &iampb.TestIamPermissionsRequest{Resource: name, Permissions: []string{permission}})
	switch status.Code(err) {
	case codes.OK:
		if len(r.Permissions) == 0 {
			k.problem(fmt.Sprintf("gcloud pubsub %s add-iam-policy-binding %s --project=%s --member=serviceAccount:EMAIL --role=%s", kind, id, project, role),
				"this identity lacks %s on %s", permission, name)
		}
	case codes.Unimplemented, codes.NotFound, codes.PermissionDenied, codes.InvalidArgument: // an emulator, or reported already
	default:
		k.failed = fmt.Errorf("permissions on %s: %w", name, err)
	}
}
