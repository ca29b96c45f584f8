package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/transport/pubsub"
)

// sinkSetupTime bounds looking at topics, subscriptions and permissions.
const sinkSetupTime = 20 * time.Second

// source is where a sink's records come from: a socket, or subscriptions.
type source struct {
	socket        string
	project       string
	subscriptions []string
	ackTopic      string
	outstanding   int // bytes
	// salvage is how long nothing of an epoch must have come before it is asked
	// whether its journal is lost; 0: never.
	salvage time.Duration
}

// sinkServer is the sink's end of a transport.
type sinkServer interface {
	Serve(context.Context, transport.Receiver) error
	Close() error
}

func sinkSource(listen, subscriptions, ackTopic string, outstanding int) (source, error) {
	const see = "see recorder sink --help"
	switch {
	case listen != "" && subscriptions != "":
		return source{}, &usageError{"sink: --listen and --pubsub exclude each other", "keep one"}
	case subscriptions == "" && ackTopic != "":
		return source{}, &usageError{"sink: --ack-topic goes with --pubsub", see}
	case subscriptions == "":
		socket, ok := strings.CutPrefix(listen, "unix:")
		if !ok || socket == "" {
			return source{}, &usageError{fmt.Sprintf("sink: --listen %q: want unix:PATH, or --pubsub", listen), "for example --listen unix:/run/verbatim/sink.sock"}
		}
		return source{socket: socket}, nil
	case ackTopic == "":
		return source{}, &usageError{"sink: --pubsub without --ack-topic: gateways would free nothing", "add --ack-topic projects/PROJECT/topics/ID"}
	case outstanding < 16 || outstanding > 1<<20:
		return source{}, &usageError{fmt.Sprintf("sink: --outstanding %d: want 16 to 1048576 MiB", outstanding), see}
	}
	s := source{ackTopic: ackTopic, outstanding: outstanding << 20, subscriptions: strings.Split(subscriptions, ",")}
	for i, name := range s.subscriptions {
		project, _, err := pubsub.ParseName(name, "subscriptions")
		if err != nil {
			return source{}, &usageError{fmt.Sprintf("sink: --pubsub: %v", err), see}
		}
		if i == 0 {
			s.project = project
		}
	}
	if _, _, err := pubsub.ParseName(ackTopic, "topics"); err != nil {
		return source{}, &usageError{fmt.Sprintf("sink: --ack-topic: %v", err), see}
	}
	return s, nil
}

// String says it for the line that tells the sink is ready.
func (s source) String() string {
	if s.socket != "" {
		return "socket " + s.socket
	}
	return "Pub/Sub " + strings.Join(s.subscriptions, " ")
}

// open checks what must be there, and makes the server.
func (s source) open(ctx context.Context, log *slog.Logger) (sinkServer, error) {
	if s.socket != "" {
		return transport.Listen(transport.ServerConfig{Socket: s.socket, Logger: log})
	}
	look, cancel := context.WithTimeout(ctx, sinkSetupTime)
	defer cancel()
	err := pubsub.Check(look, pubsub.Setup{Project: s.project, Subscriptions: s.subscriptions, AckTopic: s.ackTopic, Sink: true})
	switch {
	case errors.Is(err, pubsub.ErrUnreachable):
		log.Warn("sink: Pub/Sub was not checked", "error", err)
	case err != nil:
		return nil, err
	}
	salvage := s.salvage
	if salvage == 0 {
		salvage = -1
	}
	return pubsub.NewServer(ctx, pubsub.ServerConfig{
		Project: s.project, Subscriptions: s.subscriptions, AckTopic: s.ackTopic, Outstanding: s.outstanding, Salvage: salvage, Logger: log,
	})
}
