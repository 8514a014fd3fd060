package e2e

import (
	"bufio"
	"crypto/ed25519"
	"fmt"
	"testing"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

func inprocEd25519() (ed25519.PublicKey, ed25519.PrivateKey, error) { return ed25519.GenerateKey(nil) }

func TestTooManySessions(t *testing.T) {
	for name, config := range map[string]wsnode.Config{
		"DevicePolicy reject":   {DevicePolicy: "reject"},
		"SessionPolicy newest":  {SessionPolicy: "newest", DevicePolicy: "allow", MaxSessionsPerUser: 1},
		"newest, other devices": {SessionPolicy: "newest", MaxSessionsPerUser: 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := processes(t, locator.Config{}, config)
			second := "web"
			if config.DevicePolicy == "" {
				second = "phone"
			}
			first := c.connect("alice", "web")
			c.connect("bob", "web").alive() // another user is not concerned
			try := func() inprocAnswer {
				a, conn := inprocRaw(t, c.nodes[0].at.Listen, newInprocDial(c.locate("alice", second).Ticket).String())
				_ = conn.Close()
				return a
			}
			inprocProblem(t, try(), 409, wire.CodeTooManySessions)
			first.alive()
			if r := c.push("alice", `1`, ""); r.Delivered != 1 {
				t.Errorf("delivered %d, want 1", r.Delivered)
			}
			first.expect("1")
			_ = first.Close() // then there is room
			inprocEventually(t, "the other one is let in", func() bool { return try().status == 101 })
		})
	}
}

// Dials and locates of one address are limited, by whatever it says that it is.
func TestRate(t *testing.T) {
	c := processes(t, locator.Config{RatePerAddress: 1}, wsnode.Config{RatePerAddress: 1})
	la, na := c.at, c.nodes[0].at
	// The locator, which asked the node before it let it in, has another address.
	dial := func(t *testing.T, d *inprocDial) inprocAnswer {
		conn := connectFrom(t, na.Listen, "127.0.0.5")
		x := &inprocConn{t: t, Conn: conn, br: bufio.NewReader(conn)}
		x.send(d.String())
		return x.answer()
	}
	// A burst is four; the machine would have to take a second for each of the
	// requests to let all of them pass.
	flood := func(t *testing.T, request func(i int) inprocAnswer) (limited int) {
		for i := range 40 {
			if a := request(i); a.status == 429 {
				inprocProblem(t, a, 429, wire.CodeRateLimited)
				limited++
			}
		}
		return limited
	}
	t.Run("dials", func(t *testing.T) {
		got := flood(t, func(i int) inprocAnswer {
			return dial(t, newInprocDial("x"))
		})
		if got == 0 || got > 36 { // four at once are always good
			t.Errorf("%d of 40 dials were refused with 429", got)
		}
	})
	t.Run("forwarded addresses do not count", func(t *testing.T) {
		got := flood(t, func(i int) inprocAnswer {
			d, ip := newInprocDial("x"), fmt.Sprintf("192.0.2.%d", i+1)
			d.set("X-Forwarded-For", ip)
			d.set("X-Real-IP", ip)
			d.set("Forwarded", "for="+ip)
			return dial(t, d)
		})
		if got == 0 {
			t.Error("40 dials under other forwarded addresses were not limited")
		}
	})
	t.Run("locates", func(t *testing.T) {
		got := flood(t, func(i int) inprocAnswer { return inprocDo(t, "POST", "http://"+la.Listen+"/v1/locate", nil) })
		if got == 0 || got > 36 { // four at once are always good
			t.Errorf("%d of 40 locates were refused with 429", got)
		}
	})
	t.Run("calls with an api key are not counted", func(t *testing.T) {
		got := flood(t, func(i int) inprocAnswer {
			return inprocDo(t, "GET", "http://"+la.Listen+"/v1/ring", nil, "Authorization", "Bearer key")
		})
		if got != 0 {
			t.Errorf("%d of 40 calls were refused with 429", got)
		}
	})
}

func TestInprocDraining(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{}, wsnode.Config{}, wsnode.Config{})
	n := c.nodes[0]
	user := c.userOf(n.id)
	w := c.connect(user, "web")
	// The end of this handshake comes when the node has begun to drain. A second
	// connection tells that the first one has been accepted.
	d := newInprocDial(c.locate(user, "phone").Ticket).String()
	late := inprocConnect(t, n.at.Listen)
	late.send(d[:len(d)-2])
	if a := inprocDo(t, "GET", "http://"+n.at.Listen+"/readyz", nil); a.status != 200 {
		t.Fatalf("readyz: %d %s", a.status, a.body)
	}
	n.stop()
	c.log.await(t, "event=draining", "node="+n.id)
	if a := inprocDo(t, "GET", "http://"+n.at.Listen+"/readyz", nil); a.status != 503 {
		t.Errorf("readyz of a draining node: %d %s", a.status, a.body)
	}
	// As long as it is in the ring it is the owner: it accepts, and moves the
	// session with the others.
	late.send("\r\n")
	moving := []*inprocWS{w}
	if a := late.answer(); a.status == 101 {
		moving = append(moving, inprocOpened(t, a, late))
	} else {
		inprocProblem(t, a, 421, wire.CodeMisdirected)
	}
	for _, w := range moving {
		var m wire.Move
		for m.Type != wire.TypeMove {
			inprocDecode(t, w.text(), &m)
		}
		if m.Node != "ws-2" || m.Reason != "drain" {
			t.Errorf("told to move: %+v", m)
		}
		_ = w.Close()
	}
	<-n.done // its last session has gone
	if l := c.locate(user, "web"); l.Node != "ws-2" {
		t.Errorf("the user was sent to %s, which is gone", l.Node)
	}
	c.connect(user, "web").alive()
}
