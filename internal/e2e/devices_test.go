package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// handset is one device of a user, through the SDK: it may be told to stop, and what it
// was told the test looks at.
type handset struct {
	*client.Client
	user string
	got  chan string
	stop context.CancelFunc

	ended chan struct{}
	err   error // of Run; once ended is closed

	mu    sync.Mutex
	nodes []string // where it was connected, in turn
	lost  []error  // why it was without a connection, each time that it was
}

// pickUp starts a device and waits for nothing.
func pickUp(t *testing.T, user, device string, l *locatorProc) *handset {
	t.Helper()
	h := &handset{user: user, got: make(chan string, 64), ended: make(chan struct{})}
	c, err := client.New(client.Config{Locators: []string{"http://" + l.addr}, User: user, Device: device,
		HTTP:      &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		OnMessage: func(_ context.Context, m client.Message) { h.got <- string(m.Data) },
		OnEvent: func(e client.Event) {
			h.mu.Lock()
			defer h.mu.Unlock()
			switch e.State {
			case client.Connected:
				h.nodes = append(h.nodes, e.Node)
			case client.Locating:
				if len(h.nodes) > 0 {
					h.lost = append(h.lost, e.Err)
				}
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	h.Client = c
	var ctx context.Context
	ctx, h.stop = context.WithCancel(context.Background())
	go func() {
		defer close(h.ended)
		h.err = c.Run(ctx)
	}()
	t.Cleanup(func() { h.stop(); <-h.ended })
	return h
}

func (h *handset) connected() bool { return h.State().State == client.Connected }

// been tells where it was connected, in turn, and why it had to come back.
func (h *handset) been() (nodes []string, lost []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.nodes), slices.Clone(h.lost)
}

// stopped fails unless it has been told to stop, with this code.
func (h *handset) stopped(t *testing.T, code int) {
	t.Helper()
	await(t, h.Device()+" of "+h.user+" is told to stop", h.ended)
	if e := (*client.StoppedError)(nil); !errors.As(h.err, &e) || e.Code != code {
		t.Errorf("%s of %s ended with %v, want the code %d", h.Device(), h.user, h.err, code)
	}
}

// tryDial dials what a locate named, from any goroutine; the connection is nil if the
// node refused it, and then there is what it said.
func tryDial(loc wire.LocateResponse) (*bare, int, wire.Problem, error) {
	var p wire.Problem
	u, err := url.Parse(loc.URL)
	if err != nil {
		return nil, 0, p, err
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, 0, p, err
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.%s\r\n\r\n", u.RequestURI(), u.Host, loc.Ticket)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := &bare{Conn: c, br: bufio.NewReader(c), Node: loc.Node, user: loc.User}
	resp, err := http.ReadResponse(b.br, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = json.NewDecoder(resp.Body).Decode(&p)
		c.Close()
		return nil, resp.StatusCode, p, err
	}
	if err != nil {
		c.Close()
		return nil, 0, p, err
	}
	return b, resp.StatusCode, p, nil
}

const (
	crowd    = 200 // devices of one user
	maxCrowd = 16  // that may stay, unless set
)

// crowdStays fails unless exactly maxCrowd of the user's devices are connected by every
// way to look at them, and the push reaches each of them once. It wants all others stopped.
func crowdStays(t *testing.T, l *locatorProc, user string, all []*handset, nodes ...*nodeProc) {
	t.Helper()
	ends := make(chan *handset, len(all))
	for _, h := range all {
		go func() { <-h.ended; ends <- h }()
	}
	for range len(all) - maxCrowd {
		await(t, "one more of those beyond the limit is stopped", ends).stopped(t, wire.CloseTooManySessions)
	}
	var stay []*handset
	for _, h := range all {
		select {
		case <-h.ended:
			h.stopped(t, wire.CloseTooManySessions)
		default:
			stay = append(stay, h)
		}
	}
	eventually(t, "the others are connected", func() bool {
		return !slices.ContainsFunc(stay, func(h *handset) bool { return !h.connected() })
	})
	var open, listed []string
	for _, h := range stay {
		open = append(open, h.Device())
	}
	for _, s := range l.getUser(t, user).Sessions {
		listed = append(listed, s.Device)
	}
	slices.Sort(open)
	slices.Sort(listed)
	if len(open) != maxCrowd || !slices.Equal(open, listed) {
		t.Fatalf("%d are connected: %v\n%d are listed: %v", len(open), open, len(listed), listed)
	}
	if n := l.presence(t, user)[user]; n != maxCrowd {
		t.Errorf("presence counts %d", n)
	}
	for i, how := range []string{"?durable=false", ""} {
		body := fmt.Sprint(i)
		if status, r, p := l.store(t, user, body, how, ""); status != 200 || r.Delivered != maxCrowd {
			t.Fatalf("push %q: %d %+v %+v", how, status, r, p)
		}
		for _, h := range stay {
			if got := await(t, h.Device()+" gets "+body, h.got); got != body {
				t.Errorf("%s got %s, want %s", h.Device(), got, body)
			}
		}
	}
	// What the nodes hold, and not only what they tell of this user.
	eventually(t, "the nodes hold no other session", func() bool {
		sum := 0.0
		for _, n := range nodes {
			sum += n.metric(t, "dialring_sessions")
		}
		return sum == maxCrowd
	})
	for _, h := range stay {
		if !h.connected() {
			t.Errorf("%s did not stay", h.Device())
		}
	}
}

// 200 devices of one user log in at once: the last 16 stay, whatever the order, and all
// others are told to stop.
func TestCrowdOldestGoes(t *testing.T) {
	l, nodes := threeNodes(t)
	var all []*handset
	for i := range crowd {
		all = append(all, pickUp(t, "alice", fmt.Sprint("d", i), l))
	}
	crowdStays(t, l, "alice", all, nodes...)
}

// The same while the user is being moved: the user's node begins to drain when the first
// ones are connected. Of the others some are on their way by then, the rest come when the
// locator has the ring, so that logins at both nodes and sessions that move meet.
func TestCrowdMoves(t *testing.T) {
	for _, early := range []int{0, crowd / 8, crowd / 2} {
		t.Run(fmt.Sprint(early), func(t *testing.T) {
			l, nodes := threeNodes(t)
			l.settled(t)
			user := userOf(t, l, "ws-1")
			var all []*handset
			more := func(n int) {
				for range n {
					all = append(all, pickUp(t, user, fmt.Sprint("d", len(all)), l))
				}
			}
			more(crowd / 4)
			eventually(t, "the first devices are connected", func() bool {
				return nodes[0].metric(t, "dialring_sessions") >= maxCrowd/2
			})
			l.drainByAPI(t, "ws-1")
			more(early)
			l.waitMembers(t, "ws-2", "ws-3")
			more(crowd - len(all))
			nodes[0].ends(t)
			crowdStays(t, l, user, all, nodes[1:]...)
			moved, late := 0, 0
			for _, h := range all {
				if at, _ := h.been(); len(at) > 0 && at[0] != "ws-1" {
					late++
				} else if len(at) > 1 {
					moved++
				}
			}
			t.Logf("%d devices moved, %d came later", moved, late)
			if late == crowd || late == 0 {
				t.Errorf("%d of %d devices came to the new owner: the drain was not in the middle of the logins", late, crowd)
			}
		})
	}
}

// The same where the newest are refused: the first 16 stay, and there is room again when
// one of them leaves.
func TestCrowdNewestRefused(t *testing.T) {
	l, _ := threeNodes(t, "DIALRING_SESSION_POLICY=newest")
	type dialed struct {
		*bare
		status  int
		problem wire.Problem
		err     error
	}
	var tickets []wire.LocateResponse
	for i := range crowd {
		tickets = append(tickets, l.locate(t, "alice", fmt.Sprintf(`{"device":"d%d"}`, i)))
	}
	out := make(chan dialed, crowd)
	for _, loc := range tickets {
		go func() {
			var d dialed
			d.bare, d.status, d.problem, d.err = tryDial(loc)
			out <- d
		}()
	}
	var stay []*ear
	var open, listed []string
	for range crowd {
		switch d := await(t, "a dial is answered", out); {
		case d.err != nil:
			t.Fatal(d.err)
		case d.status == 101:
			t.Cleanup(func() { d.Close() })
			d.expectType(t, wire.TypeWelcome, &d.welcome)
			stay = append(stay, hear(t, d.bare))
			open = append(open, d.welcome.Device)
		case d.status != 409 || d.problem.Code != wire.CodeTooManySessions || d.problem.Detail == "":
			t.Errorf("refused with %d %+v", d.status, d.problem)
		}
	}
	for _, s := range l.getUser(t, "alice").Sessions {
		listed = append(listed, s.Device)
	}
	slices.Sort(open)
	slices.Sort(listed)
	if len(open) != maxCrowd || !slices.Equal(open, listed) {
		t.Fatalf("%d are welcomed: %v\n%d are listed: %v", len(open), open, len(listed), listed)
	}
	if r := l.push(t, "alice", `"all"`); r.Delivered != maxCrowd {
		t.Errorf("%+v", r)
	}
	for _, e := range stay {
		e.expect(t, `"all"`)
	}
	refused := tickets[slices.IndexFunc(tickets, func(loc wire.LocateResponse) bool { return !slices.Contains(open, loc.Device) })].Device
	stay[0].leave(t)
	stay[0] = dialEar(t, l, "alice", refused)
	if r := l.push(t, "alice", `"again"`); r.Delivered != maxCrowd {
		t.Errorf("%+v", r)
	}
	for _, e := range stay {
		e.expect(t, `"again"`)
		if !e.open() {
			t.Errorf("one that was welcomed was closed with %d", e.code)
		}
	}
}

// A second connection of a device, by each policy.
func TestDevicePolicy(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"replace", "allow", "reject"} {
		t.Run(policy, func(t *testing.T) {
			l := startLocator(t)
			n := startNode(t, "ws-1", l.nats, "DIALRING_DEVICE_POLICY="+policy)
			l.waitMembers(t, "ws-1")
			other := dialEar(t, l, "alice", "tv") // another device: not concerned
			first := dialEar(t, l, "alice", "d")
			var second *ear
			stay := []*ear{other}
			switch b, status, p, err := tryDial(l.locate(t, "alice", `{"device":"d"}`)); {
			case err != nil:
				t.Fatal(err)
			case policy == "reject":
				if status != 409 || p.Code != wire.CodeTooManySessions || p.Detail == "" {
					t.Fatalf("a second connection is answered %d %+v", status, p)
				}
				stay = append(stay, first)
			case status != 101:
				t.Fatalf("a second connection is refused with %d %+v", status, p)
			default:
				t.Cleanup(func() { b.Close() })
				b.expectType(t, wire.TypeWelcome, &b.welcome)
				second = hear(t, b)
				stay = append(stay, second)
			}
			switch policy {
			case "replace":
				first.closes(t, wire.CloseReplaced) // and its end takes nothing from the second
			case "allow":
				stay = append(stay, first)
			}
			all := func(what string) {
				t.Helper()
				for _, to := range []string{"", "device=d"} {
					body, want := fmt.Sprintf(`"%s %s"`, what, to), len(stay)
					if to != "" {
						want--
					}
					if status, r, p := l.store(t, "alice", body, "?durable=false&"+to, ""); status != 200 || r.Delivered != want {
						t.Errorf("%s: %d %+v %+v, want %d", body, status, r, p, want)
					}
					for _, e := range stay {
						if to == "" || e != other {
							e.expect(t, body)
						}
					}
				}
				r := l.keep(t, "alice", `"`+what+`, stored"`)
				if r.Delivered != len(stay) {
					t.Errorf("%s, stored: %+v", what, r)
				}
				for _, e := range stay {
					e.expect(t, `"`+what+`, stored"`)
				}
				if u := l.getUser(t, "alice"); len(u.Sessions) != len(stay) {
					t.Errorf("%s: %+v", what, u.Sessions)
				}
			}
			all("together")
			if policy == "allow" {
				first.leave(t)
				stay = stay[:2]
				eventually(t, "the node has seen it leave", func() bool { return n.metric(t, "dialring_sessions") == 2 })
				all("the first has left")
			}
			if policy == "reject" {
				first.leave(t)
				eventually(t, "the node has seen it leave", func() bool { return n.metric(t, "dialring_sessions") == 1 })
				stay = []*ear{other, dialEar(t, l, "alice", "d")}
				all("another in its place")
			}
			for _, e := range stay {
				if len(e.got) > 0 || !e.open() {
					t.Errorf("one that stayed is closed (%d), or got more: %d", e.code, len(e.got))
				}
			}
		})
	}
}

// Two connections of one device follow each other many times: each ends the one before,
// and what the node does for the end of those takes nothing from the last.
func TestDeviceReplacedAgain(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	n := startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	last := dialEar(t, l, "alice", "d")
	for i := range 30 {
		next := dialEar(t, l, "alice", "d")
		l.delivers(t, next, fmt.Sprint("while the one before ends ", i))
		last.closes(t, wire.CloseReplaced)
		l.delivers(t, next, fmt.Sprint("after that ", i))
		last = next
	}
	eventually(t, "the node holds one session", func() bool { return n.metric(t, "dialring_sessions") == 1 })
	l.delivers(t, last, "in the end")
}

// The device logs in at the new owner while its session is told to move and has not yet.
// By the policy it is replaced there (with 4201 for its old connection: it may be its own
// client, whose dial failed), goes on beside the login, or has the login refused.
func TestDevicePolicyWhileMoving(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"replace", "allow", "reject"} {
		t.Run(policy, func(t *testing.T) {
			l := startLocator(t)
			nodes := nodesOf(t, l, l.nats, "DIALRING_DEVICE_POLICY="+policy, "DIALRING_MOVE_DEADLINE=120s", "DIALRING_DRAIN_TIMEOUT=120s")
			l.settled(t)
			user := userOf(t, l, "ws-1")
			old, keep := dialEar(t, l, user, "d"), dialEar(t, l, user, "keep") // keep holds the drain up
			l.drainByAPI(t, "ws-1")
			move, moveKeep := old.told(t), keep.told(t)
			l.waitMembers(t, "ws-2", "ws-3") // ws-1 may have the ring before the locator goes by it
			both := func(what string, stay ...*ear) {
				t.Helper()
				if r := l.push(t, user, `"`+what+`"`); r.Delivered != len(stay) {
					t.Errorf("%s: delivered %d, want %d", what, r.Delivered, len(stay))
				}
				for _, e := range stay {
					e.expect(t, `"`+what+`"`)
				}
				if u := l.getUser(t, user); len(u.Sessions) != len(stay) {
					t.Errorf("%s: %+v", what, u.Sessions)
				}
			}
			b, status, p, err := tryDial(l.locate(t, user, `{"device":"d"}`))
			if err != nil {
				t.Fatal(err)
			}
			var login *ear
			if policy != "reject" {
				if status != 101 || b.Node == "ws-1" {
					t.Fatalf("the login at the new owner: %d %+v", status, p)
				}
				t.Cleanup(func() { b.Close() })
				b.expectType(t, wire.TypeWelcome, &b.welcome)
				login = hear(t, b)
			}
			switch policy {
			case "replace":
				old.closes(t, wire.CloseMoved)
				// The session that was replaced does not come back with what it was told.
				if status := dialStatus(t, move.URL, move.Ticket); status != 401 {
					t.Errorf("a replaced session arrives at the new owner: %d, want 401", status)
				}
				both("replaced", login, keep)
			case "allow":
				both("beside each other", login, old, keep)
				next := old.follows(t, move)
				old.leave(t)
				both("moved", login, next, keep)
				old = next
			case "reject":
				if status != 409 || p.Code != wire.CodeTooManySessions {
					t.Fatalf("the login of a device that has not moved yet: %d %+v", status, p)
				}
				both("refused", old, keep)
				next := old.follows(t, move) // no login
				old.leave(t)
				both("moved", next, keep)
				login = next
			}
			kept := keep.follows(t, moveKeep)
			keep.leave(t)
			nodes[0].ends(t)
			stay := []*ear{login, kept}
			if policy == "allow" {
				stay = append(stay, old)
			}
			both("after the drain", stay...)
		})
	}
}

// Two clients of the SDK run as one device: the second ends the first for good, and they
// do not drive each other out by turns.
func TestDeviceOfTwoClients(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	first := pickUp(t, "alice", "d", l)
	eventually(t, "the first is connected", first.connected)
	second := pickUp(t, "alice", "d", l)
	first.stopped(t, wire.CloseReplaced)
	eventually(t, "the second is connected", second.connected)
	if r := l.push(t, "alice", `"one"`); r.Delivered != 1 {
		t.Errorf("%+v", r)
	}
	if got := await(t, "the second gets it", second.got); got != `"one"` {
		t.Errorf("it got %s", got)
	}
	// Had the first come back, the second would have been stopped, or have connected anew.
	if at, lost := second.been(); len(at) != 1 || len(lost) != 0 || !second.connected() {
		t.Errorf("the second was at %v and lost its connection by %v", at, lost)
	}
	if at, _ := first.been(); len(at) != 1 || len(first.got) != 0 {
		t.Errorf("the first was at %v, and got %d messages", at, len(first.got))
	}
	if s := first.State(); s.State != client.Stopped || !strings.Contains(s.Err.Error(), "4003") {
		t.Errorf("the first says %+v", s)
	}
}

// The same many times at once, while their node drains: of each two clients one is
// stopped, with 4003, and the other stays.
func TestDeviceOfTwoClientsMoves(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	var pairs [][2]*handset
	for i := 0; len(pairs) < 20; i++ {
		if u := fmt.Sprint("twin-", i); l.locate(t, u, "").Node == "ws-1" {
			pairs = append(pairs, [2]*handset{pickUp(t, u, "d", l)})
		}
	}
	for _, p := range pairs {
		eventually(t, "the first is connected", p[0].connected)
	}
	l.drainByAPI(t, "ws-1")
	for i := range pairs {
		pairs[i][1] = pickUp(t, pairs[i][0].user, "d", l)
	}
	nodes[0].ends(t)
	for _, p := range pairs {
		select {
		case <-p[0].ended:
		case <-p[1].ended:
			p[0], p[1] = p[1], p[0]
		case <-time.After(patience):
			t.Fatalf("two clients of %s with one device go on: %+v, %+v", p[0].user, p[0].State(), p[1].State())
		}
		p[0].stopped(t, wire.CloseReplaced)
		eventually(t, "the other one is connected", p[1].connected)
		if r := l.push(t, p[1].user, `"one"`); r.Delivered != 1 {
			t.Errorf("%+v", r)
		}
		if got := await(t, "it gets the push", p[1].got); got != `"one"` {
			t.Errorf("it got %s", got)
		}
		if len(p[0].got) != 0 {
			t.Errorf("a client of %s that was stopped got %s", p[0].user, <-p[0].got)
		}
	}
}
