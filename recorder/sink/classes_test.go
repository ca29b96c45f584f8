package sink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/transport"
	"verbatim.dev/recorder/vault"
	"verbatim.dev/recorder/vault/gcs"
	"verbatim.dev/recorder/vault/gcs/gcstest"
)

// A segment holds one class; the others lie in parts, and it has their digests.
func TestClasses(t *testing.T) {
	for _, longest := range [][]string{nil, {"standard"}, {"ledger"}} {
		sc := script{seed: 31, epoch: testEpoch(t, 1), batches: 60, body: 500, perCut: 3, classes: []string{"standard", "long", "x-1_Y"}}
		frames := sc.frames(t)
		want := reference(t, sc.epoch, frames, longest...)
		v := inMemory()
		s := newSink(t, Config{Vault: v, Class: strings.Join(longest, "")})
		if held, err := feed(s, sc.epoch, frames); err != nil || held != frames[len(frames)-1].Sequence {
			t.Fatalf("held %d, %v", held, err)
		}
		same(t, snapshot(t, v), want)
		parts := 0
		for name := range want {
			if id, err := vault.ParseSegmentName(name); err == nil && id.Part {
				parts++
			}
		}
		if parts == 0 {
			t.Error("no parts")
		}
		if got := s.Stats().Records; got != frames[len(frames)-1].Sequence {
			t.Errorf("counted %d records", got)
		}
	}
}

// Classes that cannot be named, or too many, end the epoch.
func TestClassesRefused(t *testing.T) {
	for what, class := range map[string]func(n int) string{
		"none":     func(int) string { return "" },
		"a path":   func(int) string { return "../x" },
		"too many": func(n int) string { return fmt.Sprintf("c%d", n) },
	} {
		e := testEpoch(t, 1)
		s := newSink(t, Config{Vault: inMemory()})
		st, err := s.Begin(t.Context(), "gw", e)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; err == nil && n <= vault.MaxClasses+1; n++ {
			f := record.Frame{Kind: record.KindHeartbeat, Sequence: uint64(n), Time: testTime, Class: class(n)}
			b, encodeErr := f.Encode(nil)
			if encodeErr != nil {
				t.Fatal(encodeErr)
			}
			_, err = st.Take(t.Context(), b)
		}
		if !errors.Is(err, transport.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
		st.End()
	}
	if _, err := New(Config{Vault: inMemory(), Spool: t.TempDir(), Class: "a/b"}); err == nil {
		t.Error("a class that is none was taken")
	}
}

// The vault is a bucket whose answers get lost, and the sink has no right but
// to create, get and list. It dies and begins again at each fault. The bucket
// ends up the same, and nothing was ever replaced.
func TestBucketFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for some seconds")
	}
	sc := script{seed: 33, epoch: testEpoch(t, 1), batches: 6, body: 300, perCut: 3, classes: []string{"short", "standard"}}
	frames := sc.frames(t)
	want := reference(t, sc.epoch, frames)
	for _, fault := range []gcstest.Fault{gcstest.Lost, gcstest.Refused, gcstest.Dropped} {
		for at := 1; ; at++ {
			server := gcstest.New(t)
			server.Roles = map[string][]string{"sink": gcs.Permissions}
			server.Bucket(t, "evidence", time.Hour, true)
			v, err := gcs.Open(t.Context(), gcs.Config{Address: "gs://evidence", Client: server.Client(t, "sink"), Timeout: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			server.Fault = func(*http.Request) gcstest.Fault {
				if n++; n == at {
					return fault
				}
				return gcstest.None
			}
			for tries := 0; ; tries++ {
				held, err := feed(newSink(t, Config{Vault: v}), sc.epoch, frames)
				if err == nil && held == frames[len(frames)-1].Sequence {
					break
				}
				if errors.Is(err, transport.ErrStop) || errors.Is(err, transport.ErrRefused) || tries > 3 {
					t.Fatalf("fault %d at request %d: %v", fault, at, err)
				}
			}
			server.Fault = nil
			same(t, snapshot(t, v), want)
			if server.Count("storage.objects.delete") != 0 || server.Count("storage.objects.update") != 0 {
				t.Error("an object was replaced or changed")
			}
			if n < at || t.Failed() {
				break
			}
		}
	}
}

// A bucket that holds something else under the name stops the sink.
func TestBucketConflict(t *testing.T) {
	sc := script{seed: 34, epoch: testEpoch(t, 1), batches: 6, body: 300, perCut: 3}
	frames := sc.frames(t)
	for name := range reference(t, sc.epoch, frames) {
		server := gcstest.New(t)
		server.Bucket(t, "evidence", time.Hour, true)
		v, err := gcs.Open(context.Background(), gcs.Config{Address: "gs://evidence/vault", Client: server.Client(t, "")})
		if err != nil {
			t.Fatal(err)
		}
		server.Put("evidence", "vault/"+name, []byte("something else"))
		s := newSink(t, Config{Vault: v})
		_, err = feed(s, sc.epoch, frames)
		// The last segment is read before anything is put behind it.
		if !errors.Is(err, transport.ErrStop) && !errors.Is(err, transport.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
