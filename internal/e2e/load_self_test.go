package e2e

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/dialring/dialring/client"
)

// A cluster that nothing happens to: everything comes, once, and nobody is
// disconnected.
func TestLoad(t *testing.T) {
	locator := startLocator(t)
	for i := 1; i <= 3; i++ {
		startNode(t, fmt.Sprintf("ws-%d", i), locator.nats)
	}
	locator.waitMembers(t, "ws-1", "ws-2", "ws-3")
	l := startLoad(t, loadConfig{Locators: []*locatorProc{locator}, Users: 100, Devices: 2, Rate: 200})
	l.ordered = true // by one link to each node, and nothing moves
	at := map[string]int{}
	for _, u := range l.users {
		d0, d1 := l.nodeOf(u, "d0"), l.nodeOf(u, "d1")
		if d0 == "" || d0 != d1 {
			t.Errorf("%s is connected at %q and %q", u, d0, d1)
		}
		at[d0]++
	}
	if len(at) != 3 {
		t.Errorf("users by node: %v", at)
	}
	eventually(t, "two seconds' pushes are answered", func() bool { return l.answered() >= 2*l.cfg.Rate })
	r := l.stop(t)
	t.Logf("sent at most %s late\n%s", l.lag(), r)
	if r.bad() || r.accepted != r.pushes {
		t.Error("not everything came")
	}
	if want := 2 * r.pushes; r.pushes < 2*l.cfg.Rate || r.deliveries != want || len(r.latency) != want {
		t.Errorf("%d deliveries, %d latencies, want %d", r.deliveries, len(r.latency), want)
	}
	if n := l.disconnects(); len(n) != 0 || l.moves() != 0 {
		t.Errorf("disconnects %v, %d moves", n, l.moves())
	}
	if e := l.events("load-99", "d1"); len(e) < 4 || e[len(e)-1].State != client.Stopped || l.nodeOf("load-99", "d1") != "" {
		t.Errorf("events of a client that has ended: %v", e)
	}
}

// What is told of clients' connections, by made-up events.
func TestLoadEvents(t *testing.T) {
	l := newLoad(loadConfig{Users: 2, Devices: 2})
	tell := func(i int, s client.State, node string) { l.event(l.devs[i], client.Event{State: s, Node: node}) }
	for i := range l.devs {
		tell(i, client.Locating, "")
		tell(i, client.Dialing, "a")
		if waiting, _, _ := l.unconnected(func(string) bool { return true }); len(waiting) != len(l.devs)-i {
			t.Errorf("%d wait: %v", len(waiting), waiting)
		}
		tell(i, client.Connected, "a")
	}
	l.waitConnected(t, func(n string) bool { return n == "a" })
	if len(l.disconnects()) != 0 || l.moves() != 0 {
		t.Errorf("at first: disconnects %v, %d moves", l.disconnects(), l.moves())
	}

	tell(0, client.Connected, "b") // moved without a gap
	tell(1, client.Connected, "a") // replaced where it was
	tell(2, client.Waiting, "")    // an outage
	tell(2, client.Locating, "")
	if n := l.nodeOf("load-1", "d0"); n != "" {
		t.Errorf("connected at %s while locating", n)
	}
	tell(2, client.Connected, "b")
	tell(3, client.Connected, "b") // moved twice
	tell(3, client.Connected, "a")
	if n := l.disconnects(); !maps.Equal(n, map[string]int{"load-1": 2}) {
		t.Errorf("disconnects %v", n)
	}
	if n := l.moves(); n != 3 {
		t.Errorf("%d moves", n)
	}
	if n := l.nodeOf("load-0", "d0"); n != "b" {
		t.Errorf("moved to %q", n)
	}

	moved := make(chan struct{})
	go func() {
		defer close(moved)
		for i := range l.devs {
			tell(i, client.Connected, "c")
		}
	}()
	l.waitConnected(t, func(n string) bool { return n == "c" })
	<-moved
	tell(0, client.Stopped, "")
	if _, stopped, _ := l.unconnected(func(string) bool { return true }); len(stopped) != 1 {
		t.Errorf("stopped: %v", stopped)
	}
	if n := l.disconnects(); !maps.Equal(n, map[string]int{"load-1": 2}) {
		t.Errorf("disconnects after a stop: %v", n)
	}
}

// What an answer means, and when a push goes to another locator.
func TestLoadAnswers(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   answer
	}{
		{200, `{"delivered":2,"node":"a","stored":true}`, answer{kind: accepted, status: 200, delivered: 2, node: "a", stored: true}},
		{200, `not JSON`, answer{kind: unknown, status: 200}},
		{400, `{}`, answer{kind: refused, status: 400}},
		{429, `{}`, answer{kind: refused, status: 429}},
		{500, `{}`, answer{kind: unknown, status: 500}},
		{503, `{"code":"no_nodes","detail":"none"}`, answer{kind: unavailable, status: 503, why: "no_nodes none"}},
		{504, `{}`, answer{kind: unknown, status: 504}},
	} {
		if got := judge(c.status, []byte(c.body), nil); got != c.want {
			t.Errorf("%d %s: %+v", c.status, c.body, got)
		}
	}

	status := http.StatusOK
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status == 0 {
			panic(http.ErrAbortHandler) // breaks the connection
		}
		w.WriteHeader(status)
		fmt.Fprint(w, `{"delivered":1}`)
	}))
	defer s.Close()
	dead := net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	live := s.Listener.Addr().String()
	l := newLoad(loadConfig{Locators: []*locatorProc{{addr: dead}, {addr: live}}, Users: 1})
	defer l.close(t)
	for _, c := range []struct {
		status int
		want   outcome
	}{{200, accepted}, {503, unavailable}, {0, unknown}} {
		status = c.status
		for num := range uint64(2) { // the dead one is asked first, or never
			if a := l.send(num, "u"); a.kind != c.want || a.status != c.status {
				t.Errorf("push %d, answered with %d: %+v", num, c.status, a)
			}
		}
	}
	l.locators = l.locators[:1]
	if a := l.send(0, "u"); a.kind != unavailable || a.status != 0 || a.why == "" {
		t.Errorf("no locator: %+v", a)
	}
}
