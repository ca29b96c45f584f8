package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/sinklog"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/witness"
)

// logFlags are the flags of the sink's own log.
type logFlags struct {
	key       string
	witnesses []string
	quorum    int
	interval  time.Duration
	timeout   time.Duration
}

func (f *flags) logFlags(o *logFlags) {
	f.StringVar(&o.key, "log-key", "", "the signing key `FILE` of the sink's own log (log.key of \"recorder key new\"); without it there is no log")
	f.Func("witness", "a witness that cosigns the log, `URL=KEY`: where it is and its public key; may be given again", func(s string) error {
		o.witnesses = append(o.witnesses, s)
		return nil
	})
	f.IntVar(&o.quorum, "quorum", 0, "how many of the witnesses must cosign, `N`; else it is an alarm (default 0: all)")
	f.DurationVar(&o.interval, "log-interval", sinklog.DefaultInterval, "how often the log is committed and cosigned, `DURATION`")
	f.DurationVar(&o.timeout, "witness-timeout", sinklog.DefaultTimeout, "how long the witnesses may take, `DURATION`")
}

// logConfig returns nil where no log is wanted.
func (f *flags) logConfig(o *logFlags) (*sinklog.Config, error) {
	wrong := func(format string, args ...any) error {
		return &usageError{f.name + ": " + fmt.Sprintf(format, args...), f.see()}
	}
	if o.key == "" {
		if len(o.witnesses) > 0 || o.quorum != 0 {
			return nil, wrong("--witness and --quorum are about the sink's log, which needs --log-key")
		}
		return nil, nil
	}
	if o.interval <= 0 || o.timeout <= 0 {
		return nil, wrong("--log-interval and --witness-timeout must be above 0")
	}
	if o.quorum < 0 || o.quorum > len(o.witnesses) {
		return nil, wrong("--quorum %d of %d witnesses", o.quorum, len(o.witnesses))
	}
	key, err := readSigningKey(o.key)
	if err != nil {
		return nil, fmt.Errorf("%s: --log-key: %w", f.name, err)
	}
	c := &sinklog.Config{Key: key, Quorum: o.quorum, Interval: o.interval, Timeout: o.timeout}
	seen := map[string]bool{}
	for _, w := range o.witnesses {
		url, vkey, ok := strings.Cut(w, "=")
		if !ok {
			return nil, wrong("--witness %q: want URL=KEY", w)
		}
		client, err := witness.NewClient(url, vkey, nil)
		if err != nil {
			return nil, wrong("--witness: %v", err)
		}
		if seen[vkey] {
			return nil, wrong("--witness: %s is given twice", client.Name())
		}
		seen[vkey] = true
		c.Witnesses = append(c.Witnesses, client)
	}
	return c, nil
}

// maxKeyFile bounds the files of keys.
const maxKeyFile = 4 << 10

func readSigningKey(path string) (*witness.Key, error) {
	b, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	k, err := witness.ParseKey(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func readKeyFile(path string) ([]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxKeyFile))
}

// startLog opens the log, puts it into the sink's configuration and runs it.
// What it returns ends it, once nothing appends any more.
func startLog(ctx context.Context, c *sinklog.Config, v vault.Vault, logger *slog.Logger, to *sink.Config) (stop func() error, err error) {
	c.Vault, c.Logger = v, logger
	l, err := sinklog.Open(ctx, *c)
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	to.Log = l
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- l.Run(run) }()
	return func() error {
		cancel()
		err := <-ended
		s := l.Stats()
		logger.Info("log: stopped", "origin", l.Origin(), "size", s.Size, "pending", s.Pending, "cosigned", s.CosignedSize, "commits", s.Commits,
			"witness_failures", s.WitnessFailures, "quorum_missed", s.QuorumMissed, "forks", s.Forks, "alarms", s.Alarms)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}, nil
}
