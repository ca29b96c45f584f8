package record_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"verbatim.dev/recorder/record"
)

// pair is a deployment key for tests.
type pair struct {
	public string
	signer note.Signer
}

func newPair(t testing.TB, name string) pair {
	t.Helper()
	secret, public, err := note.GenerateKey(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return pair{public, s}
}

var rotated = time.Date(2026, 3, 14, 9, 0, 0, 0, time.UTC)

func rotation(t testing.TB, old, fresh pair, at time.Time) string {
	t.Helper()
	n, err := record.Rotation{Old: old.public, New: fresh.public, Time: at}.Sign(old.signer)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func retirement(t testing.TB, of, by pair, from time.Time) string {
	t.Helper()
	n, err := record.Retirement{Key: of.public, From: from}.Sign(by.signer)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func certificate(t testing.TB, by pair, at time.Time) (record.Certificate, string) {
	t.Helper()
	e, err := record.NewEpoch(at, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := record.NewEpochKey("gw-1", e, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := record.Certificate{Gateway: "gw-1", Epoch: e, Key: k.Public(), Opened: at}
	signed, err := c.Certify(by.signer)
	if err != nil {
		t.Fatal(err)
	}
	return c, signed
}

func TestTrustTimes(t *testing.T) {
	a, b, c, x := newPair(t, "d"), newPair(t, "d"), newPair(t, "d"), newPair(t, "d")
	day := 24 * time.Hour
	file := strings.Join([]string{
		"# the deployment's keys", a.public, "",
		rotation(t, a, b, rotated),
		retirement(t, a, b, rotated.Add(day)),
		rotation(t, b, c, rotated.Add(10*day)),
	}, "\n")
	trust, err := record.ParseTrust(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		by   pair
		at   time.Time
		want string // of the error; empty: it holds
	}{
		{"the first key before the rotation", a, rotated.Add(-100 * day), ""},
		{"the first key until it retires", a, rotated.Add(day - time.Second), ""},
		{"the first key when it is retired", a, rotated.Add(day), "is retired from 2026-03-15T09:00:00Z on"},
		{"the second key long before it was made", b, rotated.Add(-day), "is of 2026-03-14T09:00:00Z"},
		{"the second key, by a clock that is behind", b, rotated.Add(-time.Minute), ""},
		{"the second key", b, rotated.Add(day), ""},
		{"the third key before its rotation", c, rotated.Add(day), "is of 2026-03-24T09:00:00Z"},
		{"the third key", c, rotated.Add(11 * day), ""},
		{"a key that nothing vouches for", x, rotated, "no trusted deployment key signed it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert, signed := certificate(t, tt.by, tt.at)
			by, err := trust.Certified(signed, cert)
			if tt.want == "" {
				if err != nil || !strings.HasPrefix(by, "d+") {
					t.Errorf("signed by %q, %v", by, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	// The certificate must be about that epoch.
	cert, signed := certificate(t, b, rotated)
	cert.Gateway = "gw-2"
	if _, err := trust.Certified(signed, cert); err == nil || !strings.Contains(err.Error(), "about something else") {
		t.Errorf("a certificate of another gateway gave %v", err)
	}
	// What is read is what was written.
	again, err := record.ParseTrust(trust.Text())
	if err != nil || !slices.EqualFunc(again.Keys(), trust.Keys(), func(a, b record.TrustedKey) bool {
		return a.Key == b.Key && a.From.Equal(b.From) && a.Retired.Equal(b.Retired) && a.After == b.After
	}) {
		t.Errorf("read again: %v, %v", again, err)
	}
	if k, ok := trust.Find(record.Fingerprint(c.public)); !ok || k.Key != c.public || k.After != b.public {
		t.Errorf("found %+v", k)
	}
}

func TestTrustRefuses(t *testing.T) {
	a, b, c, x := newPair(t, "d"), newPair(t, "d"), newPair(t, "d"), newPair(t, "d")
	forged, err := record.Rotation{Old: a.public, New: x.public, Time: rotated}.Sign(x.signer)
	if err != nil {
		t.Fatal(err)
	}
	good := rotation(t, a, b, rotated)
	for _, tt := range []struct {
		name string
		file []string
		want string
	}{
		{"nothing", nil, "no deployment key"},
		{"notes alone", []string{good}, "no deployment key"},
		{"no key", []string{"deployment"}, "line 1: is no deployment key"},
		{"a word too much", []string{a.public + " since 2026-03-14T09:00:00Z"}, "want NAME+HASH+KEY [from TIME]"},
		{"no time", []string{a.public + " retired soon"}, "want a time like"},
		{"a time missing", []string{a.public + " retired"}, "want NAME+HASH+KEY"},
		{"another's signature", []string{a.public, forged}, "line 2: not signed with the old key"},
		{"changed text", []string{a.public, strings.Replace(good, "time 2026", "time 2025", 1)}, "not signed with the old key"},
		{"no signature", []string{a.public, strings.Split(good, "\n\n")[0]}, "no signature follows"},
		{"an unknown old key", []string{c.public, good}, "neither a root nor rotated to"},
		{"out of order", []string{a.public, rotation(t, b, c, rotated), good}, "neither a root nor rotated to"},
		{"a fork", []string{a.public, good, rotation(t, a, x, rotated.Add(time.Hour))}, "a second rotation"},
		{"a rotation of a retired key", []string{a.public + " retired 2026-03-01T00:00:00Z", good}, "retired from 2026-03-01"},
		{"a ring", []string{a.public, good, rotation(t, b, a, rotated.Add(time.Hour))}, "which is there already"},
		{"retired by one from before", []string{a.public, good, retirement(t, b, a, rotated.Add(time.Hour))}, "not signed with it or a key that came after"},
		{"retired by a stranger", []string{a.public, retirement(t, a, x, rotated)}, "not signed with it or a key that came after"},
		{"retired, unknown", []string{a.public, retirement(t, x, x, rotated)}, "neither a root nor rotated to"},
		{"another note", []string{a.public, "verbatim.dev/certificate/v1\nx\n\n— d abc"}, "this program reads"},
		{"more in the note", []string{a.public, strings.Replace(good, "\n\n", "\nmore\n\n", 1)}, "canonical form"},
		{"too long", []string{a.public, strings.Repeat("#\n", record.MaxTrust)}, "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := record.ParseTrust(strings.Join(tt.file, "\n"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	// Two files of one deployment, one after the other, are one trust.
	trust, err := record.ParseTrust(a.public + "\n" + a.public + " retired 2026-04-01T00:00:00Z\r\n" + good + "\n" + good + b.public)
	if err != nil {
		t.Fatal(err)
	}
	if k := trust.Keys(); len(k) != 2 || k[0].Retired.IsZero() {
		t.Errorf("keys %+v", k)
	}
}

func TestTrustAccept(t *testing.T) {
	a, b, c, x := newPair(t, "d"), newPair(t, "d"), newPair(t, "d"), newPair(t, "d")
	ab, bc := rotation(t, a, b, rotated), rotation(t, b, c, rotated.Add(time.Hour))
	out := retirement(t, a, c, rotated.Add(2*time.Hour))
	parse := func(text ...string) *record.Trust {
		t.Helper()
		trust, err := record.ParseTrust(strings.Join(text, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return trust
	}
	newer := parse(a.public, x.public, ab, bc, out)
	for _, tt := range []struct {
		name string
		have *record.Trust
		keys int
	}{{"from the first key", parse(a.public), 3}, {"from the second", parse(b.public), 2}, {"from what is known", parse(a.public, ab), 3}, {"nothing new", newer, 4}} {
		got, err := tt.have.Accept(newer)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if k := got.Keys(); len(k) != tt.keys {
			t.Errorf("%s: %d keys, want %d", tt.name, len(k), tt.keys)
		}
		if tt.keys == 3 && got.Keys()[0].Retired.IsZero() {
			t.Errorf("%s: the retirement is not taken over", tt.name)
		}
		if _, ok := got.Find(x.public); ok && tt.keys < 4 {
			t.Errorf("%s: a root of the newer file was taken over", tt.name)
		}
	}
	other := parse(a.public, rotation(t, a, x, rotated))
	if _, err := parse(a.public, ab).Accept(other); err == nil || !strings.Contains(err.Error(), "lacks a note") {
		t.Errorf("another history gave %v", err)
	}
}

// TestTrustKeepsSecrets gives it the wrong file.
func TestTrustKeepsSecrets(t *testing.T) {
	secret, _, err := note.GenerateKey(nil, "d")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{secret, "x" + secret, secret + " from now"} {
		_, err := record.ParseTrust(text)
		if err == nil || strings.Contains(err.Error(), secret[len(secret)-20:]) || strings.Contains(err.Error(), secret[20:40]) {
			t.Errorf("error %v", err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	const key = "deployment+1b5ea4a3+ATBlaYOVzOQPGJGwrcZKbqwwe3WjhTtrVl/MJqJuXrZE"
	if got := record.Fingerprint(key); got != "6gwir-orgz5-564qv-bstrk-xb3g6" {
		t.Errorf("fingerprint %q", got)
	}
}

func FuzzParseTrust(f *testing.F) {
	a, b := newPair(f, "d"), newPair(f, "d")
	good := rotation(f, a, b, rotated)
	f.Add(a.public + "\n\n" + good)
	f.Add(a.public + " from 2026-01-01T00:00:00Z retired 2026-04-01T00:00:00Z\n" + good + retirement(f, a, b, rotated))
	f.Add("verbatim.dev/\n\n— \n")
	f.Add(fmt.Sprint(a.public, "\n", "verbatim.dev/rotation/v1"))
	f.Fuzz(func(t *testing.T, text string) {
		trust, err := record.ParseTrust(text)
		if err != nil {
			return
		}
		again, err := record.ParseTrust(trust.Text())
		if err != nil {
			t.Fatalf("%v, of what was read from %q:\n%s", err, text, trust.Text())
		}
		if got, want := fmt.Sprint(again.Keys()), fmt.Sprint(trust.Keys()); len(again.Keys()) != len(trust.Keys()) {
			t.Errorf("keys %s, want %s", got, want)
		}
		if _, err := trust.Accept(again); err != nil {
			t.Errorf("does not accept itself: %v", err)
		}
	})
}
