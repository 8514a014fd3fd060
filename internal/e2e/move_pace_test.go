package e2e

import (
	"slices"
	"testing"
	"time"
)

// pacedRate is what each node of these tests advertises to accept in a second.
const pacedRate = 40

const paced = "DIALRING_ACCEPT_RATE=40"

// paceDevices is how many devices each user has.
const paceDevices = 2

// arrivalOf is a move frame as it came to one device.
type arrivalOf struct {
	user, from, to string
	at             time.Time
}

// collectMoves waits for the move frame of each client, none of which follows.
func collectMoves(t *testing.T, clients []*ear) []arrivalOf {
	t.Helper()
	var out []arrivalOf
	for _, c := range clients {
		m := c.told(t)
		out = append(out, arrivalOf{c.user, c.Node, m.Node, m.at})
	}
	slices.SortFunc(out, func(a, b arrivalOf) int { return a.at.Compare(b.at) })
	return out
}

// checkPace fails if in any second more came than rate, and the devices of one
// user: they go together, so the last user of a second may begin within it. The
// times are the kernel's, of the arrival at the client's socket; 5 % are for
// what lies between a node's clock and that: a node that is held up between its
// look at the clock and its write sends late, and the next one in time.
func checkPace(t *testing.T, what string, list []arrivalOf, rate int) {
	t.Helper()
	most, at := 0, time.Duration(0)
	for i, first := range list {
		n := 0
		for _, a := range list[i:] {
			if a.at.Sub(first.at) >= time.Second {
				break
			}
			n++
		}
		if n > most {
			most, at = n, first.at.Sub(list[0].at)
		}
	}
	t.Logf("%s: %d moves over %v, at most %d in a second", what, len(list), list[len(list)-1].at.Sub(list[0].at), most)
	if limit := float64(rate+paceDevices) * 1.05; float64(most) > limit {
		t.Errorf("%s: %d moves in the second from %v on, want at most %.0f", what, most, at, limit)
	}
}

// checkTogether fails if between the devices of one user another user was told
// by the same node.
func checkTogether(t *testing.T, list []arrivalOf) {
	t.Helper()
	last := map[string]string{} // by node: the user it told last
	seen := map[string]int{}
	for _, a := range list {
		if l := last[a.from]; l != a.user && l != "" && seen[l] != paceDevices {
			t.Errorf("%s told %s after %d of %d devices of %s", a.from, a.user, seen[l], paceDevices, l)
		}
		last[a.from] = a.user
		seen[a.user]++
	}
}

// dialEars connects all devices of these users.
func dialEars(t *testing.T, l *locatorProc, users []string) []*ear {
	t.Helper()
	var out []*ear
	for _, u := range users {
		for _, d := range []string{"d0", "d1"} {
			out = append(out, dialEar(t, l, u, d))
		}
	}
	return out
}

// Two nodes hand over to one that joins: together they do not send it more than
// it accepts.
func TestMovePaceJoin(t *testing.T) {
	l := startLocator(t)
	startNode(t, "a", l.nats, paced)
	startNode(t, "b", l.nats, paced)
	l.waitMembers(t, "a", "b")
	before, after := equal("a", "b"), equal("a", "b", "c")
	leave := dialEars(t, l, append(movers(before, after, "a", "c", 40), movers(before, after, "b", "c", 40)...))
	stay := dialEars(t, l, append(movers(before, after, "a", "a", 35), movers(before, after, "b", "b", 35)...))
	startNode(t, "c", l.nats, paced)
	list := collectMoves(t, leave)
	checkPace(t, "to c", list, pacedRate)
	checkTogether(t, list)
	for _, c := range stay {
		select {
		case m := <-c.moves:
			t.Errorf("%s stays at %s and was told to go to %s", c.user, c.Node, m.Node)
		default:
		}
	}
}

// A node that drains hands over to two: each gets no more than it accepts, and
// both are used.
func TestMovePaceDrain(t *testing.T) {
	l := startLocator(t)
	a := startNode(t, "a", l.nats, paced)
	startNode(t, "b", l.nats, paced)
	startNode(t, "c", l.nats, paced)
	l.waitMembers(t, "a", "b", "c")
	l.settled(t)
	before, after := equal("a", "b", "c"), equal("b", "c")
	users := append(movers(before, after, "a", "b", 75), movers(before, after, "a", "c", 75)...)
	clients := dialEars(t, l, users)
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/nodes/a/drain", ""); status != 202 {
		t.Fatalf("drain: %d %s", status, b)
	}
	list := collectMoves(t, clients)
	checkTogether(t, list)
	checkPace(t, "to both", list, 2*pacedRate)
	for _, to := range []string{"b", "c"} {
		checkPace(t, "to "+to, slices.DeleteFunc(slices.Clone(list), func(x arrivalOf) bool { return x.to != to }), pacedRate)
	}
	for _, c := range clients {
		c.Close()
	}
	await(t, "a ends", a.done)
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("a ended with %d", code)
	}
}
