package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// adminOf returns where a node's admin listener is, as it logged it.
func (p *process) adminOf(t *testing.T) string {
	t.Helper()
	for line := range strings.SplitSeq(p.text(), "\n") {
		var m struct{ Event, Admin string }
		if json.Unmarshal([]byte(line), &m) == nil && m.Event == "listening" {
			return "http://" + m.Admin
		}
	}
	t.Fatalf("%s never said where its admin listener is", p.name)
	return ""
}

// ends waits until a program has ended and fails unless that was with 0.
func (p *process) ends(t *testing.T) {
	t.Helper()
	await(t, p.name+" ends", p.done)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ended with %d", p.name, code)
	}
}

// drainByAPI asks for a drain.
func (l *locatorProc) drainByAPI(t *testing.T, node string) {
	t.Helper()
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/nodes/"+node+"/drain", ""); status != 202 {
		t.Fatalf("drain of %s: %d %s", node, status, b)
	}
}

// A node drains, by a signal or by the API, and its clients ignore what they are
// told: not ready at once, serving until its time is over, and then gone.
func TestMoveDrainTimeout(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"SIGTERM", "API"} {
		t.Run(how, func(t *testing.T) {
			l := startLocator(t)
			bound := 3 * time.Second
			a := startNode(t, "a", l.nats, "DIALRING_DRAIN_TIMEOUT="+bound.String())
			startNode(t, "b", l.nats)
			l.waitMembers(t, "a", "b")
			l.settled(t)
			admin := a.adminOf(t)
			eventually(t, "a is ready", func() bool { status, _ := call(t, "GET", admin+"/readyz", ""); return status == 200 })
			var deaf []*ear
			for _, u := range movers(equal("a", "b"), equal("b"), "a", "b", 3) {
				deaf = append(deaf, dialEar(t, l, u, "d"))
			}
			begin := time.Now()
			if how == "API" {
				l.drainByAPI(t, "a")
			} else if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			a.event(t, "draining")
			if status, _ := call(t, "GET", admin+"/readyz", ""); status != 503 {
				t.Errorf("readyz while it drains: %d", status)
			}
			for _, e := range deaf {
				if m := e.told(t); m.Node != "b" || m.Reason != "drain" {
					t.Errorf("told to move: %+v", m.Move)
				}
			}
			l.waitMembers(t, "b")
			if n := l.node(t, "a"); n.State != wire.StateDraining || n.Share != 0 {
				t.Errorf("a is shown as %+v while it drains", n)
			}
			for _, e := range deaf {
				l.delivers(t, e, "until the end")
			}
			if status, _ := call(t, "GET", "http://"+a.addr+"/healthz", ""); status != 200 {
				t.Errorf("healthz while it drains: %d", status)
			}
			for _, e := range deaf {
				e.closes(t, wire.CloseDraining)
				if after := e.endedAt.Sub(begin); after < bound {
					t.Errorf("%s was closed after %v, the bound is %v", e.user, after, bound)
				}
			}
			a.event(t, "drain_timeout")
			a.ends(t)
			l.waitMembers(t, "b")
			l.settled(t)
			eventually(t, "the locator forgets the node", func() bool { return l.node(t, "a").ID == "" })
			back := dialEar(t, l, deaf[0].user, "d")
			l.delivers(t, back, "at b")
		})
	}
}

// Who may ask for a drain, and of which node.
func TestMoveDrainRefused(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	for _, id := range []string{"nobody", "A", "a-b"} {
		status, b := call(t, "POST", "http://"+l.addr+"/v1/nodes/"+id+"/drain", "")
		var p wire.Problem
		if err := json.Unmarshal(b, &p); status != 404 || err != nil || p.Code != wire.CodeNotFound {
			t.Errorf("drain of %q: %d %s", id, status, b)
		}
	}
	for _, key := range []string{"", "Bearer wrong", "Basic ZGV2OmRldg=="} {
		req, err := http.NewRequest("POST", "http://"+l.addr+"/v1/nodes/a/drain", nil)
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			req.Header.Set("Authorization", key)
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("drain with the key %q: %d, want 401", key, resp.StatusCode)
		}
	}
	if status, b := call(t, "GET", "http://"+l.addr+"/v1/nodes/a/drain", ""); status != 405 && status != 404 {
		t.Errorf("GET drain: %d %s", status, b)
	}
	if n := l.node(t, "a"); n.State != wire.StateActive {
		t.Errorf("a is %q", n.State)
	}
}

// The last node drains: there is nobody to move to.
func TestMoveDrainLast(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	var all []*ear
	for i := range 3 {
		all = append(all, dialEar(t, l, fmt.Sprintf("last-%d", i), "d"))
	}
	l.drainByAPI(t, "a")
	for _, e := range all {
		e.closes(t, wire.CloseDraining)
	}
	a.ends(t)
	l.waitMembers(t)
	l.settled(t)
	status, b := call(t, "POST", "http://"+l.addr+"/v1/locate?user=x", "")
	var p wire.Problem
	if err := json.Unmarshal(b, &p); status != 503 || err != nil || p.Code != wire.CodeNoNodes {
		t.Errorf("locate without any node: %d %s", status, b)
	}
	startNode(t, "b", l.nats) // and the cluster goes on
	l.waitMembers(t, "b")
	l.delivers(t, dialEar(t, l, "last-0", "d"), "again")
}

// No locator is there to take a node out of the ring: it ends all the same.
func TestMoveDrainAlone(t *testing.T) {
	t.Parallel()
	port := quietPort(t)
	startNATS(t, port, t.TempDir())
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	l := startLocator(t, "DIALRING_NATS_URL="+url)
	a := startNode(t, "a", url)
	startNode(t, "b", url)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	e := dialEar(t, l, movers(equal("a", "b"), equal("a", "b"), "a", "a", 1)[0], "d")
	l.kill()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.event(t, "drain_alone")
	e.closes(t, wire.CloseDraining)
	a.ends(t)
}
