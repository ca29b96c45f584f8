package pubsub

import (
	"context"
	"testing"
	"time"

	gcp "cloud.google.com/go/pubsub/v2"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/record/recordtest"
)

// BenchmarkTake gives the sink's end messages of 512 KiB with records of 1 KB,
// each second pair in the wrong order, into a folder: what it does beside
// Google's client.
func BenchmarkTake(b *testing.B) {
	e := testEpoch(b, 1)
	head := record.NewChain(e, "gw")
	const batch, perCut = 16, 8192
	var messages []*gcp.Message
	m := frames{gateway: "gw", sender: "gw", epoch: e, after: position{0, whole}}
	var data []byte
	at := m.after
	flush := func() {
		if len(data) == 0 {
			return
		}
		m.upto, m.size = at, len(data)
		messages = append(messages, &gcp.Message{Attributes: m.attributes(), Data: data})
		m.after, data = at, nil
	}
	add := func(f record.Frame, next position) []byte {
		raw, err := f.Encode(nil)
		if err != nil {
			b.Fatal(err)
		}
		if len(data)+len(raw) > defaultMessage {
			flush()
		}
		data, at = append(data, raw...), next
		return raw
	}
	body := make([]byte, 1024-81)
	for n := uint64(1); n <= uint64(b.N); n++ {
		f := record.Frame{Kind: record.KindPayload, Sequence: n, Time: testTime, Class: "standard", Expiry: testTime.AddDate(1, 0, 0).Truncate(time.Second), Body: body}
		raw := add(f, position{seq: n})
		d, _, err := record.Decode(raw)
		if err != nil {
			b.Fatal(err)
		}
		head = head.Next(d.Leaf())
		if n%batch == 0 || n == uint64(b.N) {
			add(recordtest.Checkpoint(n, head, testTime, n%perCut == 0 || n == uint64(b.N)), position{seq: n, sub: 1})
		}
	}
	flush()
	for i := 3; i < len(messages); i += 4 {
		messages[i-1], messages[i] = messages[i], messages[i-1]
	}
	c := newCloud(b)
	s := newServer(b, ServerConfig{Options: c.options(nil)})
	s.receiver = newSink(b, openFolder(b, b.TempDir()+"/vault", true))
	s.acks = s.sub.Publisher(ackTopic)
	go s.report()
	b.Cleanup(func() { s.acks.Stop(); close(s.results) })
	b.SetBytes(1024)
	b.ReportAllocs()
	b.ResetTimer()
	for _, m := range messages {
		s.take(context.Background(), m)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	if st := s.Stats(); st.Outstanding != 0 {
		b.Fatalf("%+v", st)
	}
}
