package credential

import (
	"container/list"
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// margin is the life that a token must have left to be handed out: the
	// request that it goes with has to reach Google with it.
	margin = 10 * time.Second
	// lead is how long before its expiry a token is replaced. The metadata server
	// gives the same token out until about four minutes before the end.
	lead = 225 * time.Second
	// hold is how long a failed fetch answers for its key, so that a broken source
	// is not asked once per request.
	hold = time.Second
	// maxBackoff bounds the pause between attempts to replace a token that is
	// still good.
	maxBackoff = 30 * time.Second
	// maxFetches bounds the fetches of one source under way at once.
	maxFetches = 32
)

// key is all that a token depends on. The zero key is the one of sources that
// have one token for all.
type key struct {
	session, issuer, url, subject string
}

// cacheConfig describes a cache.
type cacheConfig struct {
	name    string
	fetch   func(context.Context, Caller) (Token, error)
	key     func(Caller) key // nil: one token for all
	entries int
	timeout time.Duration
	logger  *slog.Logger
}

// cache keeps tokens by key, one fetch per key at a time, and replaces them
// before they expire. Its goroutines end with close.
type cache struct {
	cacheConfig
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // capacity 1: the owner has to look again
	slots  chan struct{} // one element for each fetch under way

	mu      sync.Mutex
	closed  bool
	byKey   map[key]*list.Element // of *entry
	recent  *list.List            // front: used last
	flights map[key]*flight
}

// entry is what a key's last fetch gave: a token, or for a moment an error.
type entry struct {
	key     key
	caller  Caller
	token   Token
	born    time.Time // when it was stored, with the monotonic clock
	life    time.Duration
	refresh time.Time
	used    bool // since it was stored
	fails   int

	err   error
	until time.Time
}

// usable holds by both clocks: the wall's (a suspended machine stops the other)
// and the monotonic one (the wall's may be set back).
func (e *entry) usable(now time.Time) bool {
	return e.err == nil && e.token.Value != "" &&
		now.Round(0).Add(margin).Before(e.token.Expires) && now.Sub(e.born)+margin < e.life
}

type flight struct {
	done  chan struct{}
	token Token
	err   error
}

func newCache(c cacheConfig) *cache {
	if c.key == nil {
		c.key = func(Caller) key { return key{} }
		c.entries = 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &cache{
		cacheConfig: c, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), slots: make(chan struct{}, maxFetches),
		byKey: map[key]*list.Element{}, recent: list.New(), flights: map[key]*flight{},
	}
	k.wg.Add(1)
	go k.own()
	return k
}

// get returns a usable token of the caller's key.
func (c *cache) get(ctx context.Context, caller Caller) (Token, error) {
	k := c.key(caller)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Token{}, ErrClosed
	}
	now := time.Now()
	f := c.flights[k]
	if el := c.byKey[k]; el != nil {
		e := el.Value.(*entry)
		if e.usable(now) {
			if !e.used {
				e.used = true
				c.rouse() // it is to be replaced ahead of its expiry now
			}
			c.recent.MoveToFront(el)
			token := e.token
			c.mu.Unlock()
			return token, nil
		}
		if f == nil && e.err != nil && now.Before(e.until) {
			err := e.err
			c.mu.Unlock()
			return Token{}, err
		}
	}
	if f == nil {
		f = c.start(k, caller)
	}
	c.mu.Unlock()

	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return Token{}, cleaned(ctx.Err(), c.name, "waiting for a token")
	}
}

// start begins a fetch. The caller holds c.mu, and c is not closed.
func (c *cache) start(k key, caller Caller) *flight {
	f := &flight{done: make(chan struct{})}
	c.flights[k] = f
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		token, err := c.fetchOnce(c.ctx, caller, c.fetch)
		c.land(k, caller, f, token, err)
	}()
	return f
}

// fetchOnce does one fetch within its deadline, without touching the entries.
func (c *cache) fetchOnce(ctx context.Context, caller Caller, fetch func(context.Context, Caller) (Token, error)) (Token, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Token{}, cleaned(ctx.Err(), c.name, "waiting for other fetches")
	}
	token, err := fetch(ctx, caller)
	if err != nil {
		return Token{}, err
	}
	if !time.Now().Round(0).Add(margin).Before(token.Expires) {
		return Token{}, &Error{Name: c.name, Step: "the source", Reason: "it gave a token that has expired or is about to",
			Hint: "check the clocks of both machines"}
	}
	return token, nil
}

// land stores what a fetch gave and tells those who wait.
func (c *cache) land(k key, caller Caller, f *flight, token Token, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, k)
	f.token, f.err = token, err
	defer close(f.done)
	if c.closed {
		if err != nil {
			f.err = ErrClosed
		}
		return
	}
	now := time.Now()
	el := c.byKey[k]
	if err != nil {
		if el != nil && el.Value.(*entry).usable(now) {
			e := el.Value.(*entry)
			e.fails++
			e.refresh = now.Add(min(maxBackoff, time.Second<<min(e.fails-1, 10)))
			c.logger.Warn("credential refresh failed; the present token still holds", "credential", c.name, "error", err,
				"expires", e.token.Expires)
		} else {
			c.put(el, &entry{key: k, err: err, until: now.Add(hold)})
		}
	} else {
		left := token.Expires.Sub(now.Round(0))
		ahead := min(lead, margin+(left-margin)/4)
		c.put(el, &entry{key: k, caller: caller, token: token, born: now, life: left, refresh: now.Add(left - ahead)})
	}
	c.rouse()
}

func (c *cache) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// put stores e in place of el, or as a new entry, and drops the entry that was
// not used for longest when there are too many.
func (c *cache) put(el *list.Element, e *entry) {
	if el != nil {
		el.Value = e
		c.recent.MoveToFront(el)
		return
	}
	c.byKey[e.key] = c.recent.PushFront(e)
	for c.recent.Len() > c.entries {
		c.drop(c.recent.Back())
	}
}

func (c *cache) drop(el *list.Element) {
	delete(c.byKey, el.Value.(*entry).key)
	c.recent.Remove(el)
}

// own replaces tokens ahead of their expiry and drops what has expired, until
// close.
func (c *cache) own() {
	defer c.wg.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(c.tend())
		select {
		case <-c.ctx.Done():
			return
		case <-timer.C:
		case <-c.wake:
		}
	}
}

// tend does what is due and returns when to look again.
func (c *cache) tend() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return time.Hour
	}
	now := time.Now()
	next := time.Hour
	for el := c.recent.Front(); el != nil; {
		e, after := el.Value.(*entry), el.Next()
		due := e.until
		if e.err == nil {
			due = e.refresh
			// A token for one caller that nobody asked for again is left to expire.
			idle := c.entries > 1 && !e.used
			if idle || !e.usable(now) {
				due = e.born.Add(e.life - margin)
			}
		}
		switch {
		case due.After(now):
			next = min(next, due.Sub(now))
		case e.err != nil || !e.usable(now):
			if c.flights[e.key] == nil {
				c.drop(el)
			}
		case c.flights[e.key] == nil:
			c.start(e.key, e.caller)
		}
		el = after
	}
	return next
}

// check fetches once with fetch, apart from the entries.
func (c *cache) check(ctx context.Context, caller Caller, fetch func(context.Context, Caller) (Token, error)) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	_, err := c.fetchOnce(ctx, caller, fetch)
	if err != nil && c.ctx.Err() != nil {
		return ErrClosed
	}
	return err
}

// close ends all fetches, waits for the goroutines and forgets the tokens.
func (c *cache) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.byKey)
	c.recent.Init()
}
