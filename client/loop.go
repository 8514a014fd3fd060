package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

const (
	// settled is how long a connection must have lasted for the back-off to
	// start anew.
	settled = 10 * time.Second
	// shortJitter is the wait after a close code that asks to come back at once.
	shortJitter = 100 * time.Millisecond
	// failedFor is how long a node that could not be reached is reported.
	failedFor = time.Minute
	// maxWait bounds what a server may ask a client to wait.
	maxWait = time.Hour
	// leastMost is how far least goes.
	leastMost = 5 * time.Second
	// recheckAfter is how long a client trusts that the node would tell it to
	// move; then, and up to as long again, it asks a locator.
	recheckAfter = 5 * time.Minute
)

// ended is how one attempt, or one connection, ended.
type ended struct {
	err   error
	code  int           // close code, 0: none
	text  string        // the close frame's reason
	after time.Duration // Retry-After
	stop  *StoppedError
	node  string // whose connection ended
}

// loop is the life of a Client: see State for the picture. Every locate, dial
// or connection that ends counts as an attempt of the back-off.
func (c *Client) loop(ctx context.Context, queue chan<- queued) error {
	c.attempt, c.refusals = 0, 0
	wait := time.Duration(0)
	var last error
	for {
		if wait > 0 {
			c.tell(Event{State: Waiting, Wait: wait, Err: last})
			if !sleep(ctx, wait) {
				return nil
			}
		}
		e := c.once(ctx, queue, last)
		if ctx.Err() != nil {
			return nil
		}
		if e.stop != nil {
			return e.stop
		}
		last = e.err
		wait = max(c.backoff(e.code), min(e.after, maxWait))
	}
}

// backoff returns the wait before the next attempt: a uniform random time, so
// that clients that failed together do not come back together ("full jitter",
// AWS Architecture Blog, 2015).
func (c *Client) backoff(code int) time.Duration {
	n := c.attempt
	c.attempt++
	if n == 0 && wire.ActionFor(code) == wire.RetryNow {
		return rand.N(shortJitter) // #nosec G404 -- jitter
	}
	return c.jitter(n)
}

// least is what bounds a random wait at least, the n-th in a row: 1 ms, twice that, and so
// on, up to 5 s. Whatever back-off servers ask for, and however often they send a client
// on, it does not spin.
func least(n int) time.Duration { return min(time.Millisecond<<min(n, 30), leastMost) }

// jitter is the wait after n failed attempts.
func (c *Client) jitter(n int) time.Duration {
	most := millis(c.retry.MaxMS)
	ceiling := min(millis(c.retry.BaseMS), most)
	for ; n > 0 && ceiling < most; n-- {
		ceiling = min(2*ceiling, most)
	}
	return rand.N(max(ceiling, least(n)) + 1) // #nosec G404 -- jitter
}

// millis turns what a server says into a wait of at most maxWait.
func millis(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), maxWait.Milliseconds())) * time.Millisecond
}

// once locates, dials and, if that went well, receives until the connection ends.
func (c *Client) once(ctx context.Context, queue chan<- queued, last error) ended {
	c.tell(Event{State: Locating, Err: last})
	loc, e := c.locate(ctx)
	if e != nil {
		return *e
	}
	if loc.Retry.BaseMS > 0 && loc.Retry.MaxMS >= loc.Retry.BaseMS {
		c.retry = loc.Retry
	}
	if d := millis(loc.DialAfterMS); d > 0 {
		c.tell(Event{State: Waiting, Node: loc.Node, Wait: d, Err: last})
		if !sleep(ctx, d) {
			return ended{err: ctx.Err()}
		}
	}
	c.tell(Event{State: Dialing, Node: loc.Node, Err: last})
	conn, e := c.dial(ctx, loc)
	if e != nil {
		return *e
	}
	start := time.Now()
	end := c.receive(ctx, conn, queue)
	if time.Since(start) >= settled {
		c.attempt = 0
	}
	switch {
	case ctx.Err() != nil: // it was the client that left
	case wire.ActionFor(end.code) == wire.Stop:
		end.stop = &StoppedError{Code: end.code, Reason: end.text}
	case end.code == 0:
		c.noteFailed(end.node)
	}
	return end
}

// maxFailed is how many nodes are reported in one locate: locators look at no more.
const maxFailed = 16

// noteFailed remembers that a node could not be reached, or was lost.
func (c *Client) noteFailed(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wire.CheckNode(node) == nil { // else a locator would refuse all of the locate
		c.failed[node] = time.Now()
	}
}

// failedNodes lists the nodes to report to the locator.
func (c *Client) failedNodes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for id, at := range c.failed {
		if time.Since(at) > failedFor {
			delete(c.failed, id)
			continue
		}
		if len(out) < maxFailed {
			out = append(out, id)
		}
	}
	return out
}

// sleep waits; false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

var errNoAnswer = errors.New("no locator answered")
