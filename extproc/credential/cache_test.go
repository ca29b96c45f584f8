package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"verbatim.dev/recorder/record"
)

func caller(subject string) Caller {
	return Caller{Session: "s-" + subject, Principal: record.Principal{Issuer: "corp", URL: "https://idp.example", Subject: subject}}
}

// script is a source whose fetches are counted and can be made to fail.
type script struct {
	mu      sync.Mutex
	fetches map[string]int
	life    time.Duration
	takes   time.Duration
	fail    error
}

func (s *script) fetch(ctx context.Context, c Caller) (Token, error) {
	s.mu.Lock()
	if s.fetches == nil {
		s.fetches = map[string]int{}
	}
	s.fetches[c.Principal.Subject]++
	n, life, takes, fail := s.fetches[c.Principal.Subject], s.life, s.takes, s.fail
	s.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return Token{}, cleaned(ctx.Err(), "script", "fetch")
	}
	if fail != nil {
		return Token{}, fail
	}
	return Token{Value: fmt.Sprintf("%s-%d", c.Principal.Subject, n), Expires: time.Now().Round(0).Add(life)}, nil
}

func (s *script) set(f func(*script)) { s.mu.Lock(); defer s.mu.Unlock(); f(s) }

func (s *script) count(subject string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetches[subject]
}

func newTestCache(t *testing.T, s *script, perCaller bool, entries int) *cache {
	t.Helper()
	c := cacheConfig{name: "script", fetch: s.fetch, timeout: 10 * time.Second, logger: slog.New(slog.DiscardHandler), entries: entries}
	if perCaller {
		c.key = func(c Caller) key { return key{subject: c.Principal.Subject} }
	}
	k := newCache(c)
	t.Cleanup(k.close)
	return k
}

func want(t *testing.T, c *cache, who, value string) {
	t.Helper()
	got, err := c.get(t.Context(), caller(who))
	if err != nil || got.Value != value {
		t.Fatalf("token of %s = %q, %v; want %q", who, got.Value, err, value)
	}
}

func TestCacheRefreshesAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour}
		c := newTestCache(t, s, false, 0)
		want(t, c, "a", "a-1")
		time.Sleep(time.Hour - lead - time.Second)
		synctest.Wait()
		want(t, c, "b", "a-1") // one token for all
		time.Sleep(2 * time.Second)
		synctest.Wait()
		want(t, c, "a", "a-2")
		// It goes on with nobody asking.
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if n := s.count("a"); n < 10 || n > 13 {
			t.Fatalf("%d fetches in ten idle hours", n)
		}
	})
}

func TestCacheKeepsGoodTokenWhileRefreshFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour}
		c := newTestCache(t, s, false, 0)
		want(t, c, "a", "a-1")
		broken := errors.New("broken")
		s.set(func(s *script) { s.fail = broken })
		time.Sleep(time.Hour - margin - time.Second)
		synctest.Wait()
		want(t, c, "a", "a-1")
		if n := s.count("a"); n < 5 || n > 20 {
			t.Fatalf("%d attempts in the last minutes; want some, with growing pauses", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if tok, err := c.get(t.Context(), caller("a")); !errors.Is(err, broken) {
			t.Fatalf("got %q, %v from a source that fails, with an expired token", tok.Value, err)
		}
		s.set(func(s *script) { s.fail = nil })
		time.Sleep(hold + time.Millisecond)
		if tok, err := c.get(t.Context(), caller("a")); err != nil {
			t.Fatalf("after recovery: %q, %v", tok.Value, err)
		}
	})
}

func TestCacheNeverHandsOutExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, life := range []time.Duration{-time.Minute, 0, margin, margin / 2} {
			s := &script{life: life}
			c := newTestCache(t, s, false, 0)
			if tok, err := c.get(t.Context(), caller("a")); err == nil {
				t.Errorf("life %s: token %q was handed out", life, tok.Value)
			}
		}
		// A short-lived token, a source that hangs, and a clock that runs.
		s := &script{life: 30 * time.Second}
		c := newTestCache(t, s, true, 8)
		for range 200 {
			tok, err := c.get(t.Context(), caller("a"))
			if err != nil {
				t.Fatal(err)
			}
			if !time.Now().Before(tok.Expires) {
				t.Fatalf("a token was handed out at %s that expired at %s", time.Now(), tok.Expires)
			}
			time.Sleep(777 * time.Millisecond)
		}
	})
}

func TestEntryUsableByBothClocks(t *testing.T) {
	now := time.Now()
	e := &entry{token: Token{Value: "v", Expires: now.Round(0).Add(time.Hour)}, born: now, life: time.Hour}
	if !e.usable(now) {
		t.Fatal("a fresh token is not usable")
	}
	// The wall clock was set back: only the monotonic clock knows.
	e.token.Expires = now.Round(0).Add(3 * time.Hour)
	if e.usable(now.Add(61 * time.Minute)) {
		t.Fatal("usable after its life by the monotonic clock")
	}
	// The machine slept: only the wall clock knows.
	e.token.Expires = now.Round(0).Add(-time.Minute)
	if e.usable(now) {
		t.Fatal("usable after its expiry by the wall clock")
	}
}

func TestCacheOneFlightPerKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour, takes: 2 * time.Second}
		c := newTestCache(t, s, true, 8)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				who := []string{"a", "b"}[i%2]
				if tok, err := c.get(t.Context(), caller(who)); err != nil || tok.Value != who+"-1" {
					t.Errorf("%s got %q, %v", who, tok.Value, err)
				}
			})
		}
		// A waiter that leaves takes nothing from the others.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.get(ctx, caller("a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the impatient waiter got %v", err)
		}
		wg.Wait()
		if s.count("a") != 1 || s.count("b") != 1 {
			t.Fatalf("fetches: a %d, b %d; want one each", s.count("a"), s.count("b"))
		}
	})
}

func TestCacheFailureIsHeldShortly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour, fail: errors.New("down")}
		c := newTestCache(t, s, true, 8)
		for range 50 {
			if _, err := c.get(t.Context(), caller("a")); err == nil {
				t.Fatal("a failing source gave a token")
			}
		}
		if n := s.count("a"); n != 1 {
			t.Fatalf("%d fetches for 50 requests at once", n)
		}
		if _, err := c.get(t.Context(), caller("b")); err == nil || s.count("b") != 1 {
			t.Fatal("one caller's failure answered for another")
		}
		s.set(func(s *script) { s.fail = nil })
		time.Sleep(hold + time.Millisecond)
		want(t, c, "a", "a-2")
	})
}

func TestCacheIsBoundedAndLetsIdleCallersGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour}
		c := newTestCache(t, s, true, 3)
		for i := range 10 {
			want(t, c, fmt.Sprint("u", i), fmt.Sprintf("u%d-1", i))
		}
		if n := c.recent.Len(); n != 3 || len(c.byKey) != 3 {
			t.Fatalf("%d entries, %d keys; want 3", n, len(c.byKey))
		}
		want(t, c, "u9", "u9-1") // kept, and in use from now on
		want(t, c, "u0", "u0-2") // was dropped
		time.Sleep(time.Hour - lead + time.Second)
		synctest.Wait()
		if s.count("u9") != 2 {
			t.Fatalf("u9 is in use and was fetched %d times; want a refresh ahead", s.count("u9"))
		}
		if s.count("u8") != 1 {
			t.Fatalf("u8 is idle and was fetched %d times", s.count("u8"))
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := c.recent.Len(); n != 0 {
			t.Fatalf("%d entries are left after all expired unused", n)
		}
	})
}

// A caller that asks a second time is in use, with nothing else to wake the owner.
func TestCacheSecondUseBringsARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour}
		c := newTestCache(t, s, true, 3)
		want(t, c, "a", "a-1")
		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, c, "a", "a-1")
		time.Sleep(time.Hour - lead - 30*time.Second)
		synctest.Wait()
		if n := s.count("a"); n != 2 {
			t.Fatalf("%d fetches; want a refresh ahead of the expiry", n)
		}
	})
}

func TestCacheDeadlineAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{life: time.Hour, takes: time.Minute}
		c := newTestCache(t, s, false, 0)
		begun := time.Now()
		if _, err := c.get(t.Context(), caller("a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a source that hangs: %v", err)
		}
		if d := time.Since(begun); d != 10*time.Second {
			t.Fatalf("waited %s; the deadline is 10s", d)
		}
		time.Sleep(2 * hold)
		var got atomic.Value
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := c.get(t.Context(), caller("a"))
			got.Store(err)
		}()
		synctest.Wait()
		c.close() // in mid-flight; the bubble fails if a goroutine is left
		<-done
		if err, _ := got.Load().(error); !errors.Is(err, ErrClosed) {
			t.Fatalf("a waiter at close got %v", err)
		}
		if _, err := c.get(t.Context(), caller("a")); !errors.Is(err, ErrClosed) {
			t.Fatalf("after close: %v", err)
		}
	})
}
