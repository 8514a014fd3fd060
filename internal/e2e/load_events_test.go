package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
)

// device is a client of the SDK under a load.
type device struct {
	handlerID
	events []timedEvent       // guarded by load.mu
	cancel context.CancelFunc // nil: it was never started
	ended  chan error         // of Run
}

// timedEvent is an event, and when it came on the checker's clock.
type timedEvent struct {
	client.Event
	at time.Duration
}

// event notes what a client tells.
func (l *load) event(d *device, e client.Event) {
	at := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	d.events = append(d.events, timedEvent{e, at})
	close(l.changed)
	l.changed = make(chan struct{})
}

// node is the one that d is connected to now, if any. It is called with the
// load's lock held.
func (d *device) node() string {
	if n := len(d.events); n > 0 && d.events[n-1].State == client.Connected {
		return d.events[n-1].Node
	}
	return ""
}

// afterConnected are the events from the first Connected on. It is called with
// the load's lock held.
func (d *device) afterConnected() []timedEvent {
	i := slices.IndexFunc(d.events, func(e timedEvent) bool { return e.State == client.Connected })
	if i < 0 {
		return nil
	}
	return d.events[i:]
}

// events are all events of a device so far.
func (l *load) events(user, device string) []timedEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.byID[handlerID{user, device}].events)
}

// nodeOf is the node that a device is connected to now; empty: none.
func (l *load) nodeOf(user, device string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byID[handlerID{user, device}].node()
}

// disconnects counts, for each user that has any, the events by which an
// application notices that it is not connected any more: those after the first
// Connected that are neither Connected nor Stopped. One outage has several.
func (l *load) disconnects() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for _, d := range l.devs {
		for _, e := range d.afterConnected() {
			if e.State != client.Connected && e.State != client.Stopped {
				n[d.user]++
			}
		}
	}
	return n
}

// moves counts how often a device was connected to one node and then, with no
// other event in between, to another.
func (l *load) moves() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, d := range l.devs {
		var before timedEvent
		for i, e := range d.afterConnected() {
			if i > 0 && before.State == client.Connected && e.State == client.Connected && before.Node != e.Node {
				n++
			}
			before = e
		}
	}
	return n
}

// lag is the most that a push was sent after its time: large if this machine
// cannot keep the rate, and then the load was not what it says.
func (l *load) lag() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.behind
}

// waitConnected waits until every client is connected to a node that cond
// accepts, and returns how long that took.
func (l *load) waitConnected(t *testing.T, cond func(node string) bool) time.Duration {
	t.Helper()
	began := l.now()
	late := time.After(patience)
	for {
		waiting, stopped, changed := l.unconnected(cond)
		switch {
		case len(stopped) > 0:
			t.Fatalf("stopped for good: %v", stopped)
		case len(waiting) == 0:
			return l.now() - began
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("after %s %d clients are not connected where they should be, such as %s", patience, len(waiting), waiting[0])
		}
	}
}

// unconnected tells who is not connected to a node that cond accepts, who will
// never be, and what is closed when that may have changed.
func (l *load) unconnected(cond func(node string) bool) (waiting, stopped []string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.devs {
		if n := d.node(); n != "" && cond(n) {
			continue
		}
		what := d.user + "/" + d.device + " without any event"
		if n := len(d.events); n > 0 {
			e := d.events[n-1]
			what = fmt.Sprintf("%s/%s, %s at %q: %v", d.user, d.device, e.State, e.Node, e.Err)
			if e.State == client.Stopped {
				stopped = append(stopped, what)
			}
		}
		waiting = append(waiting, what)
	}
	return waiting, stopped, l.changed
}
