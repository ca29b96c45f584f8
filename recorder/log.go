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

	"verbatim.dev/recorder/ledger"
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
	delay     time.Duration
	behind    time.Duration
}

func (f *flags) logFlags(o *logFlags) {
	f.StringVar(&o.key, "log-key", "", "the signing key `FILE` of the sink's own log (log.key of \"recorder key new\"); without it there is no log")
	f.Func("witness", "a witness that cosigns the log, `URL=KEY`: where it is and its public key; may be given again", func(s string) error {
		o.witnesses = append(o.witnesses, s)
		return nil
	})
	f.IntVar(&o.quorum, "quorum", 0, "how many of the witnesses must cosign, `N`; else it is an alarm (default 0: all)")
	f.DurationVar(&o.interval, "log-interval", sinklog.DefaultInterval, "how often the log is committed and cosigned, `DURATION`")
	f.DurationVar(&o.delay, "log-delay", 0, "commit and cosign so long after a new entry too, `DURATION`: sooner, at the price of more objects (default 0: at the interval alone)")
	f.DurationVar(&o.timeout, "witness-timeout", sinklog.DefaultTimeout, "how long the witnesses may take, `DURATION`")
	f.DurationVar(&o.behind, "behind", sinklog.DefaultBehind, "how long a record may wait for its cosignature before that is an alarm, `DURATION`")
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
	if o.interval <= 0 || o.timeout <= 0 || o.delay < 0 {
		return nil, wrong("--log-interval and --witness-timeout must be above 0, --log-delay not below")
	}
	if o.quorum < 0 || o.quorum > len(o.witnesses) {
		return nil, wrong("--quorum %d of %d witnesses", o.quorum, len(o.witnesses))
	}
	interval := o.interval
	if o.delay > 0 && o.interval+o.timeout <= o.behind { // also where nothing comes
		interval = min(o.delay, o.interval)
	}
	if err := sinklog.CheckBehind(o.behind, interval, o.timeout); err != nil {
		return nil, &usageError{f.name + ": " + err.Error(), "lower --log-interval or --witness-timeout, or raise --behind and tell those who verify"}
	}
	key, err := readSigningKey(o.key)
	if err != nil {
		return nil, fmt.Errorf("%s: --log-key: %w", f.name, err)
	}
	c := &sinklog.Config{Key: key, Quorum: o.quorum, Interval: o.interval, Timeout: o.timeout, Delay: o.delay, Behind: o.behind}
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
func startLog(ctx context.Context, c *sinklog.Config, v vault.Vault, logger *slog.Logger, to *sink.Config) (l *sinklog.Log, stop func() error, err error) {
	c.Vault, c.Logger = v, logger
	l, err = sinklog.Open(ctx, *c)
	if err != nil {
		return nil, nil, fmt.Errorf("sink: %w", err)
	}
	to.Log = l
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- l.Run(run) }()
	return l, func() error {
		cancel()
		err := <-ended
		s := l.Stats()
		logger.Info("log: stopped", "origin", l.Origin(), "size", s.Size, "pending", s.Pending, "cosigned", s.CosignedSize, "commits", s.Commits,
			"witness_failures", s.WitnessFailures, "quorum_missed", s.QuorumMissed, "forks", s.Forks, "behind", s.Behind.Round(time.Second).String(), "late", s.Late, "alarms", s.Alarms)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}, nil
}

// logAnchors are the flags of what a verifier knows of the sink's log.
type logAnchors struct {
	key                    string
	witnesses, checkpoints texts
	quorum                 int
	behind                 time.Duration
}

func (f *flags) logAnchors(a *logAnchors) {
	f.StringVar(&a.key, "log-key", "", "the public key `FILE` of the sink's own log (log.pub): what it has must be in the vault")
	f.Var(&a.witnesses, "witness", "a witness of the log: its public `KEY`, or a file with it; several allowed")
	f.IntVar(&a.quorum, "quorum", 0, "how many of the witnesses must have cosigned, `N` (default 0: all)")
	f.Var(&a.checkpoints, "log-checkpoint", "a checkpoint of the log, kept elsewhere or from a witness: `FILE`; several allowed")
	f.DurationVar(&a.behind, "behind", 0, "a finding where the last cosigned checkpoint is older than `DURATION` (default 0s: any age)")
}

// given reports whether any of the flags was given.
func (a *logAnchors) given() bool {
	return a.key != "" || len(a.witnesses)+len(a.checkpoints) > 0 || a.quorum != 0 || a.behind != 0
}

func (f *flags) logTrust(a *logAnchors) (*ledger.Log, error) {
	wrong := func(format string, args ...any) error {
		return &usageError{f.name + ": " + fmt.Sprintf(format, args...), f.see()}
	}
	if a.key == "" {
		if a.given() {
			return nil, wrong("--witness, --quorum, --log-checkpoint and --behind are about the sink's log, which needs --log-key")
		}
		return nil, nil
	}
	_, key, err := readLogKey(a.key)
	if err != nil {
		return nil, wrong("--log-key: %v", err)
	}
	o := &ledger.Log{Key: key, Quorum: a.quorum, Behind: a.behind}
	for _, text := range a.witnesses {
		v, err := witness.NewVerifier(text)
		if err != nil {
			b, readErr := readKeyFile(text)
			if readErr != nil {
				return nil, wrong("--witness: %v, and no file of one: %v", err, readErr)
			}
			if v, err = witness.NewVerifier(string(b)); err != nil {
				return nil, wrong("--witness: %s: %v", text, err)
			}
		}
		for _, w := range o.Witnesses {
			if w.String() == v.String() {
				return nil, wrong("--witness: %s is given twice", v.Name())
			}
		}
		o.Witnesses = append(o.Witnesses, v)
	}
	if a.quorum < 0 || a.quorum > len(o.Witnesses) {
		return nil, wrong("--quorum %d of %d witnesses", a.quorum, len(o.Witnesses))
	}
	for _, path := range a.checkpoints {
		b, err := readSmall(path, witness.MaxCheckpoint)
		if err != nil {
			return nil, wrong("--log-checkpoint: %v", err)
		}
		o.Checkpoints = append(o.Checkpoints, b)
	}
	return o, nil
}

// loggedText says that the log has a checkpoint, and who vouches for the log.
func loggedText(l *ledger.Logged) string {
	who := "by the sink itself alone: no --witness was given"
	if !l.Asserted {
		who = "by " + strings.Join(l.Witnesses, ", ")
	}
	return fmt.Sprintf("%s, entry %d of %d, cosigned %s %s", l.Origin, l.Index, l.Size, moment(l.Cosigned), who)
}

// logText is the part of verify's report about the sink's log.
func logText(l *ledger.LogReport) string {
	if l == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-11s %s: %d entries, %d segments matched", "log", oneLine(l.Origin), l.Size, l.Matched)
	if l.Unlogged > 0 {
		fmt.Fprintf(&b, ", %d not in it yet", l.Unlogged)
	}
	if l.Expired > 0 {
		fmt.Fprintf(&b, ", %d entries expired", l.Expired)
	}
	if l.Kept > 0 {
		fmt.Fprintf(&b, ", held against %d checkpoints that were kept elsewhere", l.Kept)
	}
	who := fmt.Sprintf("by %d of %d witnesses", l.Quorum, len(l.Witnesses))
	if l.Asserted {
		who = "by the sink itself alone: no --witness was given"
	}
	if l.Cosigned.IsZero() {
		fmt.Fprintf(&b, "\n%-11s never, %s\n", "cosigned", who)
	} else {
		fmt.Fprintf(&b, "\n%-11s up to %s (entry %d), %s behind, %s\n", "cosigned", moment(l.Cosigned), l.CosignedSize, time.Duration(l.Behind)*time.Second, who)
	}
	for _, w := range l.Witnesses {
		state := "no cosignature"
		if !w.Time.IsZero() {
			state = fmt.Sprintf("%s, entry %d", moment(w.Time), w.Size)
		}
		fmt.Fprintf(&b, "            %s: %s\n", oneLine(w.Name), state)
	}
	return b.String()
}
