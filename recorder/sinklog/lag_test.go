package sinklog

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/witness"
)

// The promise is 60 s: the defaults of all that takes its share must keep it.
func TestDefaultsKeepThePromise(t *testing.T) {
	if err := CheckBehind(DefaultBehind, DefaultInterval, DefaultTimeout); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ behind, interval, timeout time.Duration }{
		{DefaultBehind, DefaultInterval + 1, DefaultTimeout}, {DefaultBehind, DefaultInterval, DefaultTimeout + 1}, {DefaultBehind - 1, DefaultInterval, DefaultTimeout},
	} {
		if err := CheckBehind(c.behind, c.interval, c.timeout); err == nil {
			t.Errorf("%+v is let through", c)
		}
	}
}

// Cosigning is late where records wait, and where nothing comes and the witness
// is away; the alarm is raised once each time, and ends.
func TestLate(t *testing.T) {
	m := inMemory()
	g := newGateway(1)
	_, client, server := newWitness(t, "w1", 21)
	now := testTime
	var alarms []string
	l := open(t, m, func(c *Config) {
		c.Witnesses = []*witness.Client{client}
		c.Now = func() time.Time { return now }
		c.Alarm = func(err error) { alarms = append(alarms, err.Error()) }
	})
	step := func(d time.Duration, late bool, times uint64) {
		t.Helper()
		now = now.Add(d)
		l.judge(now)
		if s := l.Stats(); s.IsLate != late || s.Late != times {
			t.Fatalf("at %s: %+v", now.Sub(testTime), s)
		}
	}
	work := func() {
		t.Helper()
		if err := l.work(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	step(59*time.Second, false, 0)
	work()
	step(time.Second, false, 0)
	// A segment that its gateway cut at testTime, a minute ago, comes now.
	c := g.segment(m)
	l.pending = append(l.pending, c)
	l.arrived(c)
	step(0, true, 1)
	step(time.Second, true, 1)
	work()
	if s := l.Stats(); s.Behind != 0 || s.CosignedSize != 1 {
		t.Fatalf("%+v", s)
	}
	step(0, false, 1)
	// The witness is away: the cut is in the log, and not cosigned.
	server.Close()
	step(59*time.Second, false, 1)
	work()
	step(2*time.Second, true, 2)
	if s := l.Stats(); s.Behind != 61*time.Second {
		t.Errorf("behind %s", s.Behind)
	}
	n := 0
	for _, a := range alarms {
		if strings.Contains(a, "wait for their cosignature") {
			n++
		}
	}
	if n != 2 {
		t.Errorf("alarms %q", alarms)
	}
}

// The watch is beside Run, which a vault that does not answer holds up.
func TestLateWhileTheVaultHangs(t *testing.T) {
	m := inMemory()
	g := newGateway(1)
	g.segment(m)
	alarmed := make(chan error, 10)
	hang := &hanging{memory: m}
	l := open(t, hang, func(c *Config) {
		c.Now, c.Behind, c.Interval = time.Now, 80*time.Millisecond, 10*time.Millisecond
		c.Alarm = func(err error) { alarmed <- err }
	})
	hang.on = true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	select {
	case err := <-alarmed:
		if !strings.Contains(err.Error(), "wait for their cosignature") {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("no alarm")
	}
	cancel()
	<-done
}

// hanging is a vault that does not answer a write, once on is set.
type hanging struct {
	*memory
	on bool
}

func (h *hanging) Create(ctx context.Context, name string, r io.Reader) error {
	if h.on {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return h.memory.Create(ctx, name, r)
}
