package pubsub

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"

	"verbatim.dev/recorder/record"
)

func TestPosition(t *testing.T) {
	for text, want := range map[string]position{"0": {0, whole}, "0.0": {0, 0}, "12.3": {12, 3}, "18446744073709551615": {math.MaxUint64, whole}} {
		if got, err := parsePosition(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ".", "1.", ".1", "01", "1.00", "-1", "+1", "1.4294967295", "1.4294967296", "18446744073709551616", "1.2.3", " 1", "1e3"} {
		if p, err := parsePosition(text); err == nil {
			t.Errorf("%q is taken: %v", text, p)
		}
	}
	order := []position{{0, whole}, {1, 0}, {1, 1}, {1, whole}, {2, 0}}
	for i, p := range order {
		for k, q := range order {
			if p.less(q) != (i < k) {
				t.Errorf("%s before %s: %t", p, q, p.less(q))
			}
		}
	}
}

// messagesOf are the bodies of an epoch: all frames in one.
func bodyOf(t testing.TB, s script) ([]byte, position) {
	t.Helper()
	var b []byte
	at := position{0, whole}
	for _, i := range s.items(t) {
		b = append(b, i.Frame.Raw()...)
		switch {
		case i.Frame.Kind.Leaf():
			at = position{seq: i.Frame.Sequence}
		case i.Frame.Kind == record.KindCheckpoint:
			at.sub++
		}
	}
	return b, at
}

func TestWalk(t *testing.T) {
	body, end := bodyOf(t, script{epoch: 1, batches: 5, body: 50, perCut: 2, recovered: true})
	var out []byte
	var last position
	got, err := walk(body, position{0, whole}, func(keys [][]byte, f *record.Frame, at position) error {
		for _, k := range keys {
			out = append(out, k...)
		}
		out = append(out, f.Raw()...)
		if !last.less(at) {
			t.Errorf("%s follows on %s", at, last)
		}
		last = at
		return nil
	})
	if err != nil || got != end || last != end || end.sub != 2 || !bytes.Equal(out, body) {
		t.Errorf("ends at %s, want %s, %v", got, end, err)
	}
	frame := func(f record.Frame) []byte {
		b, err := f.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	leaf := func(n uint64) []byte { return frame(record.Frame{Kind: record.KindPayload, Sequence: n}) }
	check := func(n uint64) []byte { return frame(record.Frame{Kind: record.KindCheckpoint, Sequence: n}) }
	key := frame(record.Frame{Kind: record.KindKey, Key: record.KeyID{1}})
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tc := range map[string]struct {
		body  []byte
		after position
		ok    bool
	}{
		"next":                     {join(key, leaf(8), check(8)), position{7, 1}, true},
		"next, all before is held": {join(leaf(8), check(8)), position{7, whole}, true},
		"checkpoint alone":         {check(7), position{7, 0}, true},
		"checkpoint of a held one": {check(7), position{7, whole}, false},
		"gap":                      {leaf(9), position{7, 1}, false},
		"back":                     {leaf(7), position{7, 1}, false},
		"other checkpoint":         {join(leaf(8), check(7)), position{7, 1}, false},
		"key before a checkpoint":  {join(leaf(8), key, check(8)), position{7, 1}, false},
		"key at the end":           {join(leaf(8), key), position{7, 1}, false},
		"torn":                     {leaf(8)[:20], position{7, 1}, false},
		"no sequence":              {leaf(0), position{math.MaxUint64, whole}, true},
	} {
		_, err := walk(tc.body, tc.after, nil)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, errBody) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMessages(t *testing.T) {
	body, end := bodyOf(t, script{epoch: 1, batches: 5, body: 50, perCut: 2})
	good := frames{gateway: "gw", sender: "other", epoch: testEpoch(t, 1), shard: 3, after: position{0, whole}, upto: end, first: 1, last: end.seq, size: len(body), index: 7}
	got, err := parseFrames(good.attributes(), body)
	if err != nil || !reflect.DeepEqual(*got, good) {
		t.Fatalf("%+v, %v", got, err)
	}
	piece := good
	piece.offset = 10
	if got, err := parseFrames(piece.attributes(), body[10:20]); err != nil || got.offset != 10 {
		t.Errorf("piece: %v", err)
	}
	for name, change := range map[string]func(m map[string]string) []byte{
		"protocol":         func(m map[string]string) []byte { m["protocol"] = "0"; return body },
		"type":             func(m map[string]string) []byte { m["type"] = "x"; return body },
		"no gateway":       func(m map[string]string) []byte { delete(m, "gateway"); return body },
		"garbled gateway":  func(m map[string]string) []byte { m["gateway"] = "a\nb"; return body },
		"long sender":      func(m map[string]string) []byte { m["sender"] = strings.Repeat("x", 300); return body },
		"epoch":            func(m map[string]string) []byte { m["epoch"] = "x"; return body },
		"after":            func(m map[string]string) []byte { m["after"] = "1.x"; return body },
		"upto":             func(m map[string]string) []byte { m["upto"] = end.String() + "0"; return body },
		"upto is before":   func(m map[string]string) []byte { m["upto"] = "0"; return body },
		"size":             func(m map[string]string) []byte { m["size"] = "5"; return body },
		"huge size":        func(m map[string]string) []byte { m["size"] = "99999999999"; return body },
		"offset":           func(m map[string]string) []byte { m["offset"] = "1"; return body },
		"no data":          func(m map[string]string) []byte { return nil },
		"cut body":         func(m map[string]string) []byte { m["size"] = "100"; return body[:100] },
		"changed body":     func(m map[string]string) []byte { b := bytes.Clone(body); b[200] ^= 1; return b },
		"negative shard":   func(m map[string]string) []byte { m["shard"] = "-1"; return body },
		"no first":         func(m map[string]string) []byte { delete(m, "first"); return body },
		"ask without upto": func(m map[string]string) []byte { m["type"] = typeAsk; delete(m, "upto"); return nil },
	} {
		m := maps.Clone(good.attributes())
		if got, err := parseFrames(m, change(m)); err == nil {
			t.Errorf("%s is taken: %+v", name, got)
		}
	}
	for _, a := range []answer{
		{kind: typeHeld, gateway: "gw", epoch: testEpoch(t, 1), sequence: 5},
		{kind: typeMissing, gateway: "gw", epoch: testEpoch(t, 1), after: position{1, 1}, upto: position{3, 0}},
		{kind: typeRefused, gateway: "gw", epoch: testEpoch(t, 1), text: "why"},
	} {
		m, data := a.encode()
		if got, err := parseAnswer(m, data); err != nil || *got != a {
			t.Errorf("%+v, %v", got, err)
		}
		m["type"] = "x"
		if _, err := parseAnswer(m, data); err == nil {
			t.Error("an unknown answer is taken")
		}
	}
}

func TestShardOf(t *testing.T) {
	count := make([]int, 8)
	for n := range 800 {
		e := testEpoch(t, byte(n))
		e[15] = byte(n >> 4)
		if a, b := shardOf(e, 8), shardOf(e, 8); a != b || a < 0 || a > 7 {
			t.Fatal(a, b)
		}
		count[shardOf(e, 8)]++
	}
	for s, n := range count {
		if n < 40 {
			t.Errorf("shard %d has %d of 800", s, n)
		}
	}
	if got := Shards("sink", 3); !reflect.DeepEqual(got, []string{"sink-0", "sink-1", "sink-2"}) || Shards("sink", 1)[0] != "sink" {
		t.Errorf("%v", got)
	}
}

func FuzzParseFrames(f *testing.F) {
	body, end := bodyOf(f, script{epoch: 1, batches: 1, body: 8, perCut: 1})
	f.Add("frames", "gw", testEpoch(f, 1).String(), "0", end.String(), "0", "100", body)
	f.Add("ask", "gw", testEpoch(f, 1).String(), "", "5.1", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, kind, gateway, epoch, after, upto, offset, size string, data []byte) {
		if size == "" {
			size = "0"
		}
		m := map[string]string{
			"protocol": protocolVersion, "type": kind, "gateway": gateway, "sender": gateway, "epoch": epoch, "shard": "0",
			"after": after, "upto": upto, "first": "1", "last": "1", "offset": offset, "size": size, "index": "0",
		}
		got, err := parseFrames(m, data)
		if err != nil {
			return
		}
		if !got.ask && (!got.after.less(got.upto) || got.offset+len(data) > got.size) {
			t.Fatalf("%+v of %d bytes", got, len(data))
		}
		again, err := parseFrames(got.attributes(), data)
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Fatalf("%+v, then %+v, %v", got, again, err)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add("held", "gw", testEpoch(f, 1).String(), "5", "1.0", "2.0", []byte("why"))
	f.Fuzz(func(t *testing.T, kind, gateway, epoch, sequence, after, upto string, data []byte) {
		m := map[string]string{"protocol": protocolVersion, "type": kind, "gateway": gateway, "epoch": epoch, "sequence": sequence, "after": after, "upto": upto}
		got, err := parseAnswer(m, data)
		if err != nil {
			return
		}
		m, data = got.encode()
		if again, err := parseAnswer(m, data); err != nil || *again != *got {
			t.Fatalf("%+v, then %+v, %v", got, again, err)
		}
	})
}
