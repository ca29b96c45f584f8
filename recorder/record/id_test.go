package record

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestEpoch(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	e, err := NewEpoch(at, bytes.NewReader(bytes.Repeat([]byte{0xff}, 10)))
	if err != nil || !e.Time().Equal(at) {
		t.Fatalf("%v, %v", e.Time(), err)
	}
	s := e.String()
	if s != "065wzsb8ffzzzzzzzzzzzzzzzw" {
		t.Errorf("epoch reads %s", s)
	}
	for _, in := range []string{s, strings.ToUpper(s)} {
		if got, err := ParseEpoch(in); err != nil || got != e {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	later, err := NewEpoch(at.Add(time.Millisecond), bytes.NewReader(make([]byte, 10)))
	if err != nil || later.String() <= s {
		t.Errorf("%s does not sort behind %s, %v", later, s, err)
	}
	if _, err := NewEpoch(at, iotest.ErrReader(errors.ErrUnsupported)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no randomness: %v", err)
	}
	for _, bad := range []string{"", s[1:], s + "0", s[:25] + "z", s[:25] + "i", "../" + s[3:], s[:25] + "\n"} {
		if _, err := ParseEpoch(bad); err == nil {
			t.Errorf("%q is an epoch", bad)
		}
	}
}

func TestID(t *testing.T) {
	e := Epoch{1, 2, 3}
	id := ID{Epoch: e, Sequence: 18446744073709551615}
	if got, err := ParseID(" " + id.String() + "\n"); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "-", e.String(), e.String() + "-", e.String() + "-0", e.String() + "--1", e.String() + "-1x", "x-1", e.String() + "-18446744073709551616"} {
		if _, err := ParseID(bad); err == nil || !strings.Contains(err.Error(), "exchange") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(ID{Epoch: Epoch{1}, Sequence: 7}.String())
	f.Add("065wzsb8ffzzzzzzzzzzzzzzzw-1")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Fatalf("%q: %v, %v", s, again, err)
		}
	})
}

func TestTicket(t *testing.T) {
	k := NewTicket(ID{Sequence: 3})
	if k.Err() == nil {
		t.Error("a ticket that is not settled has no error")
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.ErrUnsupported)
	if err := k.Wait(ctx); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("wait: %v", err)
	}
	k.Settle(ErrFull)
	k.Settle(nil)
	<-k.Done()
	if err := k.Wait(context.Background()); !errors.Is(err, ErrFull) || !errors.Is(k.Err(), ErrFull) {
		t.Errorf("the second settling counts: %v", err)
	}
}

func TestBodies(t *testing.T) {
	o := Outcome{OCSF: NewOCSF(ClassDatastore, ActivityQuery, testTime, "uid", "session")}
	o.Succeeded(false)
	b, err := Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"class_uid":6005`, `"type_uid":600504`, `"status":"Failure"`, `"time":1700000000123`, `"uid":"uid"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is not in %s", want, b)
		}
	}
	var back Outcome
	if err := Unmarshal(append(b[:len(b)-1:len(b)-1], `,"added_later":{"x":1}}`...), &back); err != nil || back.OCSF != o.OCSF {
		t.Errorf("%+v, %v", back, err)
	}
	if err := Unmarshal([]byte("{"), &back); err == nil {
		t.Error("half a body is read")
	}
	if _, err := Marshal(func() {}); err == nil {
		t.Error("a function is a body")
	}
	if s := (Job{Project: "p", ID: "i"}).String(); s != "p:i" {
		t.Error(s)
	}
	if s := (Job{Project: "p", Location: "EU", ID: "i"}).String(); s != "p:EU.i" {
		t.Error(s)
	}
}
