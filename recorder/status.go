package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"verbatim.dev/recorder/sink"
	"verbatim.dev/recorder/sinklog"
)

const (
	// statusEvery is how often a sink writes its status.
	statusEvery = 5 * time.Second
	// statusOld is when a status says that its sink is stuck or gone.
	statusOld = 6 * statusEvery
	maxStatus = 64 << 10
)

// sinkStatus is what a sink says of itself. Counts are since it started.
type sinkStatus struct {
	Time    time.Time `json:"time"`
	Healthy bool      `json:"healthy"`
	// Why is what is wrong, where it is not healthy.
	Why      []string   `json:"why,omitempty"`
	Segments uint64     `json:"segments"`
	Records  uint64     `json:"records"`
	Bytes    uint64     `json:"bytes"`
	Salvaged uint64     `json:"salvaged_segments"`
	Aside    uint64     `json:"records_kept_aside"`
	Alarms   uint64     `json:"alarms"`
	Log      *logStatus `json:"log,omitempty"`
}

// logStatus is how the sink's own log stands.
type logStatus struct {
	Size            int64     `json:"size"`
	Pending         int       `json:"pending"`
	CosignedSize    int64     `json:"cosigned_size"`
	CosignedTime    time.Time `json:"cosigned_time,omitzero"`
	BehindSeconds   float64   `json:"behind_seconds"`
	Late            bool      `json:"late"`
	LateTimes       uint64    `json:"late_total"`
	QuorumMissed    uint64    `json:"quorum_missed_total"`
	WitnessFailures uint64    `json:"witness_failures_total"`
	Forks           uint64    `json:"forks_total"`
	Alarms          uint64    `json:"alarms_total"`
}

func statusOf(s *sink.Sink, l *sinklog.Log, now time.Time) sinkStatus {
	c := s.Stats()
	out := sinkStatus{Time: now.UTC(), Segments: c.Segments, Records: c.Records, Bytes: c.Bytes, Salvaged: c.Salvaged, Aside: c.Aside, Alarms: c.Alarms}
	if err := s.Err(); err != nil {
		out.Why = append(out.Why, err.Error())
	}
	if l != nil {
		x := l.Stats()
		out.Log = &logStatus{
			Size: x.Size, Pending: x.Pending, CosignedSize: x.CosignedSize, CosignedTime: x.CosignedTime.UTC(), BehindSeconds: x.Behind.Seconds(), Late: x.IsLate,
			LateTimes: x.Late, QuorumMissed: x.QuorumMissed, WitnessFailures: x.WitnessFailures, Forks: x.Forks, Alarms: x.Alarms,
		}
		if err := l.Err(); err != nil {
			out.Why = append(out.Why, err.Error())
		}
		if x.IsLate {
			out.Why = append(out.Why, fmt.Sprintf("cosigning is late: records have waited for it for %s", x.Behind.Round(time.Second)))
		}
	}
	out.Healthy = len(out.Why) == 0
	return out
}

// writeStatus replaces the file as a whole: who reads it sees one status.
func writeStatus(path string, s sinkStatus) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// checkStatus says whether the sink that writes the file is healthy.
func checkStatus(path string, now time.Time) error {
	b, err := readSmall(path, maxStatus)
	if err != nil {
		return &exitError{1, fmt.Errorf("sink: no status: %w", err)}
	}
	var s sinkStatus
	if err := json.Unmarshal(b, &s); err != nil {
		return &exitError{1, fmt.Errorf("sink: %s is no status: %w", path, err)}
	}
	switch age := now.Sub(s.Time); {
	case age > statusOld:
		return &exitError{1, fmt.Errorf("sink: the status in %s is %s old: the sink is stuck or gone", path, age.Round(time.Second))}
	case !s.Healthy && len(s.Why) > 0:
		return &exitError{1, fmt.Errorf("sink: %s", s.Why[0])}
	case !s.Healthy:
		return &exitError{1, errors.New("sink: it is not healthy")}
	}
	return nil
}

// tellStatus writes the status now and then, until what it returns is called,
// which writes it once more.
func tellStatus(path string, s *sink.Sink, l *sinklog.Log, log *slog.Logger) (stop func()) {
	write := func() {
		if err := writeStatus(path, statusOf(s, l, time.Now())); err != nil {
			log.Error("sink: the status was not written", "file", path, "error", err)
		}
	}
	write()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(statusEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				write()
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
		write()
	}
}
