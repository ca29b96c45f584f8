package main

import (
	"log/slog"
	"testing"
	"time"

	"verbatim.dev/extproc/config"
	"verbatim.dev/extproc/server"
	"verbatim.dev/recorder/record"
)

type noRecorder struct{}

func (noRecorder) Append(...record.Draft) *record.Ticket { return record.NewTicket(record.ID{}) }

// The smallest limits that the configuration takes, and its defaults, are limits
// that the server can work with.
func TestLimitsFitTheServer(t *testing.T) {
	if config.LeastShare != server.LeastShare {
		t.Errorf("the configuration's least share is %s, the server's %d bytes", config.LeastShare, server.LeastShare)
	}
	least := config.Default().Limits
	least.Exchanges, least.Window, least.Share, least.Budget = 1, 64<<10, config.LeastShare, 0
	for name, l := range map[string]config.Limits{"least": least, "default": config.Default().Limits} {
		_, err := server.New(server.Config{
			Recorder: noRecorder{}, Refused: func() {}, Gate: func() *server.Gate { return nil }, Logger: slog.New(slog.DiscardHandler), Now: time.Now,
			Limits: serverLimits(l),
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
