package ledger_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/ledger"
	"verbatim.dev/recorder/ledger/ledgertest"
	"verbatim.dev/recorder/record"
)

// TestExchangeRules makes vaults as a gateway with a defect would: chained and
// sealed in order, but with records that make no exchange.
func TestExchangeRules(t *testing.T) {
	plain := func(kind record.Kind, exchange uint64) record.Draft {
		return record.Draft{Kind: kind, Exchange: exchange, Session: "s1", Body: []byte(`{}`)}
	}
	piece := func(r *ledgertest.Running, n uint32, offset uint64, b string) {
		r.Piece(record.DirectionResponse, n, offset, []byte(b))
	}
	x := ledgertest.Exchange{Session: "s1", Subject: "u", SQL: "SELECT 1", Request: []byte("{}"), Response: []byte("abcdef"), Piece: 3}
	tests := []struct {
		name  string
		code  ledger.Code
		text  string
		keyed bool
		do    func(g *ledgertest.Gateway)
	}{
		{name: "outcome without an exchange", code: ledger.ExchangeWrong, text: "stands alone", keyed: true, do: func(g *ledgertest.Gateway) {
			g.Append(plain(record.KindOutcome, 0))
		}},
		{name: "payload first", code: ledger.ExchangeWrong, text: "cannot begin with a payload", do: func(g *ledgertest.Gateway) {
			g.Append(plain(record.KindPayload, 0))
		}},
		{name: "probe first", code: ledger.ExchangeWrong, text: "cannot begin with a probe", do: func(g *ledgertest.Gateway) {
			g.Append(plain(record.KindProbe, 0))
		}},
		{name: "payload before the intent", code: ledger.ExchangeWrong, text: "before its intent", do: func(g *ledgertest.Gateway) {
			id := g.Append(plain(record.KindReceived, 0))
			g.Append(record.Draft{Kind: record.KindPayload, Exchange: id.Sequence, Direction: record.DirectionRequest, Session: "s1", Body: []byte("x")})
		}},
		{name: "second intent", code: ledger.ExchangeWrong, text: "second intent", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			g.Append(plain(record.KindIntent, r.ID.Sequence))
		}},
		{name: "received within", code: ledger.ExchangeWrong, text: "not at its begin", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			g.Append(plain(record.KindReceived, r.ID.Sequence))
		}},
		{name: "second outcome", code: ledger.ExchangeWrong, text: "ended before or never began", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			r.Finish()
			r.Outcome(nil)
		}},
		{name: "payload after the outcome", code: ledger.ExchangeWrong, text: "ended before or never began", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			r.Finish()
			piece(r, 2, 6, "ghi")
		}},
		{name: "exchange of the future", code: ledger.ExchangeWrong, text: "none before it", do: func(g *ledgertest.Gateway) {
			g.Append(plain(record.KindPayload, 1000))
		}},
		{name: "exchange that never began", code: ledger.ExchangeWrong, text: "never began", do: func(g *ledgertest.Gateway) {
			g.Append(plain(record.KindPayload, 1))
		}},
		{name: "piece missing", code: ledger.ExchangeWrong, text: "piece 1 of the response of exchange 2 stands where piece 0 must", do: func(g *ledgertest.Gateway) {
			piece(g.Start(x), 1, 3, "def")
		}},
		{name: "piece twice", code: ledger.ExchangeWrong, text: "stands where piece 1 must", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			piece(r, 0, 0, "abc")
			piece(r, 0, 0, "abc")
		}},
		{name: "offset wrong", code: ledger.ExchangeWrong, text: "has the offset 4, the pieces before it hold 3", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			piece(r, 0, 0, "abc")
			piece(r, 1, 4, "def")
		}},
		{name: "piece too large", code: ledger.ExchangeWrong, text: "above the limit", do: func(g *ledgertest.Gateway) {
			piece(g.Start(x), 0, 0, strings.Repeat("x", record.MaxPiece+1))
		}},
		{name: "payload without a direction", code: ledger.ExchangeWrong, text: "a payload record of none", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			g.Append(plain(record.KindPayload, r.ID.Sequence))
		}},
		{name: "totals missing", code: ledger.TotalsWrong, text: "no totals for the request", keyed: true, do: func(g *ledgertest.Gateway) {
			g.Start(x).Outcome(nil)
		}},
		{name: "totals: a piece less recorded", code: ledger.TotalsWrong, text: "has 2 pieces and 6 bytes, recorded are 1 and 3", keyed: true, do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			piece(r, 0, 0, "abc")
			r.Outcome(r.Totals())
		}},
		{name: "totals: other bytes", code: ledger.TotalsWrong, text: "has the SHA-256", keyed: true, do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			piece(r, 0, 0, "abc")
			piece(r, 1, 3, "deX")
			r.Outcome(r.Totals())
		}},
		{name: "totals: not recorded, but there", code: ledger.TotalsWrong, text: "was not recorded, but 1 pieces", keyed: true, do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			piece(r, 0, 0, "abcdef")
			totals := r.Totals()
			for i := range totals {
				totals[i].Recorded = totals[i].Direction != "response"
			}
			r.Outcome(totals)
		}},
		{name: "totals: unknown direction", code: ledger.TotalsWrong, text: "sideways", keyed: true, do: func(g *ledgertest.Gateway) {
			g.Start(x).Outcome([]record.Total{{Direction: "sideways"}})
		}},
		{name: "body that is no JSON", code: ledger.BodyWrong, text: "the intent record", keyed: true, do: func(g *ledgertest.Gateway) {
			g.Append(record.Draft{Kind: record.KindIntent, Session: "s1", Body: []byte("{")})
		}},
		{name: "body not sealed", code: ledger.BodyWrong, text: "not sealed", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			g.Append(record.Draft{Kind: record.KindPayload, Exchange: r.ID.Sequence, Direction: record.DirectionResponse, Body: []byte("clear")})
		}},
		{name: "second open", code: ledger.KindWrong, text: "one open record", do: func(g *ledgertest.Gateway) {
			g.Append(record.Draft{Kind: record.KindOpen, Body: []byte(`{"gateway":"gw-1"}`)})
		}},
		{name: "sealed heartbeat", code: ledger.KindWrong, text: "sealed", do: func(g *ledgertest.Gateway) {
			g.Append(plain(record.KindHeartbeat, 0))
		}},
		{name: "record after close", code: ledger.KindWrong, text: "follows the epoch's close", do: func(g *ledgertest.Gateway) {
			g.Close()
			g.Heartbeat()
		}},
		{name: "stop never closed", code: ledger.ExchangeUnended, text: "does not close it (1 such)", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			g.Close()
			g.Forget(r.ID)
			g.Begin()
			g.Heartbeat()
		}},
		{name: "time goes back", code: ledger.TimeWrong, text: "never goes back", do: func(g *ledgertest.Gateway) {
			g.Now = g.Now.Add(-time.Hour)
			g.Heartbeat()
		}},
		{name: "crash never closed", code: ledger.ExchangeUnended, text: "does not close it (1 such)", do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			g.Crash()
			g.Forget(r.ID)
			g.Begin()
			g.Heartbeat()
		}},
		{name: "recovery closes what was not open", code: ledger.ExchangeWrong, text: "which is not open", keyed: true, do: func(g *ledgertest.Gateway) {
			r := g.Start(x)
			r.Finish()
			g.Crash()
			g.Remember(r.ID)
			g.Begin()
		}},
		{name: "two epochs cite the same", code: ledger.EpochWrong, text: "is cited as the one before by", do: func(g *ledgertest.Gateway) {
			g.Crash()
			twin := *g
			g.Begin()
			g.Cut()
			twin.Begin()
			twin.Cut()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := ledgertest.New()
			g := ledgertest.NewGateway(v, "gw-1", public)
			g.Begin()
			tt.do(g)
			g.Cut()
			if r := verify(t, v, nil); r.Sound != tt.keyed {
				t.Errorf("without keys: findings %v", r.Findings)
			}
			r := verify(t, v, tenant)
			if r.Sound || r.Findings[0].Code != tt.code || !strings.Contains(r.Findings[0].Message, tt.text) {
				t.Errorf("want %s %q first, got %v", tt.code, tt.text, r.Findings)
			}
		})
	}
}

// TestStoppedWithOpenExchanges holds that a gateway may stop with exchanges
// open: the next epoch closes them.
func TestStoppedWithOpenExchanges(t *testing.T) {
	v := ledgertest.New()
	g := ledgertest.NewGateway(v, "gw-1", public)
	g.Begin()
	g.Start(ledgertest.Exchange{Session: "s1", Subject: "u"})
	g.Close()
	for _, keys := range []*keyset.Handle{nil, tenant} {
		if r := verify(t, v, keys); !r.Sound || r.Exchanges.Pending != 1 {
			t.Errorf("stopped: %+v", r)
		}
	}
	g.Begin()
	g.Heartbeat()
	g.Cut()
	for _, keys := range []*keyset.Handle{nil, tenant} {
		if r := verify(t, v, keys); !r.Sound || r.Exchanges.Interrupted != 1 || r.Exchanges.Pending != 0 {
			t.Errorf("started again: %+v", r)
		}
	}
}
