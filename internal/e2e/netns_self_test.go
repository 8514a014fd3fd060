//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tap speaks the NATS protocol by hand: what one says, the others get.
type tap struct {
	net.Conn
	br *bufio.Reader
}

func newTap(t *testing.T, c net.Conn, err error) *tap {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	p := &tap{Conn: c, br: bufio.NewReader(c)}
	fmt.Fprintf(p, "CONNECT {\"verbose\":false,\"echo\":false}\r\nSUB x 1\r\n")
	p.pings(t)
	return p
}

func (p *tap) say(s string) { fmt.Fprintf(p, "PUB x %d\r\n%s\r\n", len(s), s) }

func (p *tap) until(line string, wait time.Duration) error {
	_ = p.SetReadDeadline(time.Now().Add(wait))
	for {
		s, err := p.br.ReadString('\n')
		if err != nil || strings.TrimSpace(s) == line {
			return err
		}
	}
}

func (p *tap) gets(t *testing.T, s string) {
	t.Helper()
	if err := p.until(s, patience); err != nil {
		t.Fatalf("waiting for %s: %v", s, err)
	}
}

func (p *tap) pings(t *testing.T) {
	t.Helper()
	fmt.Fprint(p, "PING\r\n")
	p.gets(t, "PONG")
}

// misses waits long enough for what is not cut, and not for the connection to end:
// a dead path tells nobody.
func (p *tap) misses(t *testing.T, s string) {
	t.Helper()
	if err := p.until(s, 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s over a cut path: %v", s, err)
	}
}

// Each cut cuts what it says, established connections too, and nothing else.
func TestNetCut(t *testing.T) {
	n := newNet(t)
	a, b := n.host(t, "a"), n.host(t, "b")
	b.nats(t, t.TempDir())
	server := b.ip + ":4222"
	for _, h := range n.hosts { // their relays are there before anything is cut
		if _, err := h.dial(t, server, patience); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.dial(t, b.ip+":1", patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a port where nobody listens: %v", err)
	}

	// Each with connections of its own, from a to b and from here to b: what TCP
	// has not had acknowledged from before would hold up what a one-way cut lets
	// through. After a PONG, all that the tap sent is acknowledged.
	for _, c := range []struct {
		name string
		do   func(t *testing.T, there, here *tap)
	}{
		{"both ways", func(t *testing.T, there, here *tap) {
			n.cut(a, b)
			there.say("from there")
			here.misses(t, "from there")
			here.say("from here")
			here.pings(t)
			there.misses(t, "from here")
			if _, err := a.dial(t, server, 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a new connection: %v", err)
			}
			n.heal()
			here.gets(t, "from there")
			there.gets(t, "from here")
		}},
		{"back", func(t *testing.T, there, here *tap) {
			n.cutOneWay(b, a)
			there.say("forth")
			here.gets(t, "forth")
			here.say("back")
			there.misses(t, "back")
			n.heal()
			there.gets(t, "back")
		}},
		{"forth", func(t *testing.T, there, here *tap) {
			there.say("the PONG is acknowledged")
			here.gets(t, "the PONG is acknowledged")
			n.cutOneWay(a, b)
			here.say("back")
			there.gets(t, "back")
			there.say("forth")
			here.misses(t, "forth")
			n.heal()
			here.gets(t, "forth")
		}},
		{"port", func(t *testing.T, there, here *tap) {
			n.cutPort(a, b, 4222)
			there.say("forth")
			here.misses(t, "forth")
			here.say("back")
			there.misses(t, "back")
			if _, err := a.dial(t, b.relay, patience); err != nil {
				t.Errorf("another port: %v", err)
			}
			n.heal()
			here.gets(t, "forth")
			there.gets(t, "back")
		}},
		{"to this process", func(t *testing.T, there, here *tap) {
			n.cutOneWay(b, n.me)
			here.say("forth")
			there.gets(t, "forth")
			there.say("back")
			here.misses(t, "back")
			n.heal()
			here.gets(t, "back")
		}},
		{"this process", func(t *testing.T, there, here *tap) {
			n.cut(n.me, b)
			here.say("forth")
			there.misses(t, "forth")
			there.pings(t)
			n.heal()
			there.gets(t, "forth")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer n.heal() // for those after one that failed
			there, err := a.dial(t, server, patience)
			at := newTap(t, there, err)
			here, err := net.Dial("tcp", server)
			c.do(t, at, newTap(t, here, err))
		})
	}
}

// onDyingThread runs f on a thread that ends after it. A goroutine that ends while
// it is locked takes its thread with it, but never the main one.
func onDyingThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			onDyingThread(f) // on another one, since this one is taken
			return
		}
		f()
	}()
	<-done
}

// The kernel ends the program itself when the thread that started it is gone, as
// it does when this process crashes.
func TestNetProgramDiesWithUs(t *testing.T) {
	n := newNet(t)
	a := n.host(t, "a")
	var p *process
	onDyingThread(func() {
		p = a.start(t, "relay", os.Args[0], roleEnv+"=relay", "DR_E2E_RELAY="+a.ip+":7777")
	})
	if p == nil {
		t.Fatal("it did not start")
	}
	_ = await(t, "the program ends", p.done)
	if s := p.cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v", p.cmd.ProcessState)
	}
}

// A network leaves nothing, and what a crashed run left is removed, but nothing
// of a run that is under way.
func TestNetLeavesNothing(t *testing.T) {
	requireNet(t)
	var prefix string
	t.Run("net", func(t *testing.T) {
		n := newNet(t)
		prefix = n.prefix
		h := n.host(t, "a")
		if _, err := h.dial(t, h.ip+":7777", patience); err != nil {
			t.Error(err)
		}
	})
	crashed := exec.Command("true")
	if err := crashed.Run(); err != nil {
		t.Fatal(err)
	}
	dead := fmt.Sprintf("drt%d-9", crashed.Process.Pid)
	live := "drt1-9"
	for _, name := range []string{dead, live} {
		if err := errors.Join(tool("", "ip", "netns", "add", name), tool("", "ip", "link", "add", name, "type", "bridge")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = tool("", "ip", "netns", "del", name), tool("", "ip", "link", "del", name) })
	}
	sweep(func(pid int) bool { return pid == crashed.Process.Pid })
	for _, dir := range []string{"/sys/class/net", "/run/netns"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		kept := false
		for _, e := range entries {
			if e.Name() == prefix || strings.HasPrefix(e.Name(), prefix+"-") || e.Name() == dead {
				t.Errorf("%s/%s is left", dir, e.Name())
			}
			kept = kept || e.Name() == live
		}
		if !kept {
			t.Errorf("%s of a live process was removed from %s", live, dir)
		}
	}
}
