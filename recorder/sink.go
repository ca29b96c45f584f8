package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/vault/place"
)

const sinkHelp = `
Usage: recorder sink --vault VAULT --listen unix:PATH
       recorder sink --vault VAULT --pubsub projects/P/subscriptions/S,... --ack-topic projects/P/topics/T
                     [--log-key FILE [--witness URL=KEY]... [--quorum N]]

Takes the records of gateways on this machine over a UNIX socket (mode 0660), or
those of Google Cloud Pub/Sub, and writes them into the vault; a folder it makes
where there is none. A gateway's journal frees what is durable in the vault, and
nothing before. One sink writes a vault that is a folder. In Cloud Storage it needs to
create, get and list objects, and no right beyond that.

With --pubsub it reads the subscriptions as the identity of Application Default
Credentials, and acknowledges a message when the vault holds what it carries. At the
start it checks subscriptions, dead-letter topics, the answers' topic and its
permissions, and says with which command to repair what is wrong. Run one sink for a
subscription: two get in each other's way, though what they write is right.

A gateway whose disk is lost leaves records in Pub/Sub that it will never cut. Once a later
epoch of that gateway shows it, or "recorder salvage" says so, and nothing new has come
for --salvage-after, they come into the vault up to their last signed checkpoint. What
cannot be chained, because records before it have not come, is kept aside, under salvage/.

With --log-key it keeps a log of its own in the vault, under log/: the checkpoint that
each stored segment ends with, in a Merkle tree that is signed with that key. Every
--log-interval it is committed, and the witnesses are asked for cosignatures, also when
nothing came. It shows a vault that is rolled back, and an end that is cut off: see
"recorder verify --log-key". A witness that is down, or too few for the quorum, is an
alarm in the logs and stops nothing. So is a record that waits for its cosignature for longer
than --behind; the flags must leave 15 s of that to the gateways' cut, 5 s to the way here.

With --status it writes what it counts into a file every 5 s, and with --healthy another run
tells a probe or a monitor what that says: exit code 1 where the sink has stopped, is stuck, or
cosigning is late.

Runs until SIGTERM or SIGINT. Prints one line when it listens; logs are JSON on
standard error.

Examples:
  recorder sink --vault /var/lib/verbatim/vault --listen unix:/run/verbatim/sink.sock
  recorder sink --vault vault.yaml --spool /var/spool/verbatim --listen unix:/run/verbatim/sink.sock
  recorder sink --vault vault.yaml --spool /var/spool/verbatim --ack-topic projects/evidence/topics/acks \\
    --pubsub projects/evidence/subscriptions/verbatim-sink-0,projects/evidence/subscriptions/verbatim-sink-1
  recorder sink --vault /var/lib/verbatim/vault --listen unix:/run/verbatim/sink.sock \
    --log-key log.key --witness https://witness.example="$(cat witness.pub)" --status /run/verbatim/sink.json
  recorder sink --healthy /run/verbatim/sink.json
`

func sinkCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var p where
	f := newFlags("sink", sinkHelp)
	f.vaultFlag(&p)
	listen := f.String("listen", "", "where gateways connect: `unix:PATH`")
	subscriptions := f.String("pubsub", "", "instead of --listen: `SUBSCRIPTIONS` to read, projects/PROJECT/subscriptions/ID, with commas between")
	ackTopic := f.String("ack-topic", "", "with --pubsub: the `TOPIC` for answers to gateways, projects/PROJECT/topics/ID")
	outstanding := f.Int("outstanding", 256, "with --pubsub: `MIB` of messages to hold without acknowledgement, for each subscription: more than all gateways' unfinished segments")
	salvage := f.Duration("salvage-after", 10*time.Minute, "with --pubsub: how long nothing of an epoch must have come before a lost tail is salvaged, `DURATION`; 0: never")
	spool := f.String("spool", "", "folder `DIR` for segments that are not whole yet, best on the vault's disk (default: .spool in a vault that is a folder)")
	status := f.String("status", "", "write the sink's status to this `FILE` every 5 s, as JSON")
	healthy := f.String("healthy", "", "run no sink: exit with 0 where the status in this `FILE` says that its sink is healthy, else with 1")
	var o logFlags
	f.logFlags(&o)
	if _, err := f.parse(args, stdout); err != nil {
		return err
	}
	if *healthy != "" {
		return checkStatus(*healthy, time.Now())
	}
	if err := f.resolve(&p); err != nil {
		return err
	}
	source, err := sinkSource(*listen, *subscriptions, *ackTopic, *outstanding)
	if err != nil {
		return err
	}
	if *salvage < 0 {
		return &usageError{"sink: --salvage-after must not be below 0", f.see()}
	}
	source.salvage = *salvage
	logConfig, err := f.logConfig(&o)
	if err != nil {
		return err
	}
	if *spool == "" {
		if p.spec.Folder() == "" {
			return &usageError{"sink: where to? a vault that is no folder needs --spool DIR", "a folder of this machine, for some MB a gateway"}
		}
		*spool = filepath.Join(p.spec.Folder(), ".spool")
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	v, err := place.Open(ctx, place.Config{Spec: p.spec, Write: true, Logger: log})
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	c := sink.Config{Vault: v, Class: v.Longest(), Spool: *spool, Logger: log}
	var kept *sinklog.Log
	if logConfig != nil {
		l, stop, e := startLog(ctx, logConfig, v, log, &c)
		kept = l
		if e != nil {
			return e
		}
		defer func() { err = errors.Join(err, stop()) }() // after the server has ended
	}
	s, err := sink.New(c)
	if err != nil {
		return err
	}
	server, err := source.open(ctx, log)
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if _, err := fmt.Fprintf(stdout, "recorder sink: ready, vault %s, %s\n", v, source); err != nil {
		return err
	}
	if *status != "" {
		defer tellStatus(*status, s, kept, log)()
	}
	err = server.Serve(ctx, s)
	stats := s.Stats()
	log.Info("sink: stopped", "segments", stats.Segments, "records", stats.Records, "bytes", stats.Bytes, "alarms", stats.Alarms)
	if ctx.Err() != nil && s.Err() == nil {
		return nil // asked to stop
	}
	return err
}
