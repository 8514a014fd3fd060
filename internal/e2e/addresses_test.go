package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// normalEnv are the settings of programs that run outside development mode in a host.
func (h *host) normalEnv(env ...string) []string {
	return append([]string{"DIALRING_LOG_FORMAT=json", "DIALRING_NATS_TOKEN=" + normalNATSToken}, env...)
}

// inside does f with the network of the host, for connections that f opens itself.
func (h *host) inside(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		fd, err := os.Open("/run/netns/" + h.space)
		if err != nil {
			done <- err
			return
		}
		defer fd.Close()
		if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := await(t, "what is done in the host "+h.name, done); err != nil {
		t.Fatal(err)
	}
}

// askFrom sends a request from an address of the network that this thread is in.
func askFrom(from, to, request string) (status int, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	return resp.StatusCode, nil
}

// An IPv6 network of 64 bits is one address for the limits, and the next network is another.
func TestIPv6Networks(t *testing.T) {
	h := newNet(t).host(t, "all")
	const to = "2001:db8:0:1::1"
	one := func(i int) string { return fmt.Sprintf("2001:db8:0:2::%x:1", i+1) }
	other := func(i int) string { return fmt.Sprintf("2001:db8:0:%x::1", i+0x100) }
	add := []string{to}
	for i := range 40 {
		add = append(add, one(i), other(i))
	}
	batch := "link set lo up\n"
	for _, a := range add {
		batch += "addr add " + a + "/128 dev lo nodad\n"
	}
	if err := tool(batch, "ip", "-n", h.space, "-batch", "-"); err != nil {
		t.Fatal(err)
	}
	l := &locatorProc{process: h.start(t, "locator", filepath.Join(bin, "locator"), h.normalEnv("DIALRING_API_KEYS=dev", "DIALRING_USER_JWT_SECRET="+inprocSecret, "DIALRING_RATE_PER_ADDRESS=1")...), addr: h.ip + ":8080"}
	n := h.start(t, "ws-1", filepath.Join(bin, "wsnode"), h.normalEnv("DIALRING_NODE_ID=ws-1", "DIALRING_RATE_PER_ADDRESS=1", "DIALRING_NODE_URL=ws://"+h.ip+":8090", "DIALRING_PEER_URL=http://"+h.ip+":8092")...)
	l.event(t, "listening")
	n.event(t, "listening")
	l.waitMembers(t, "ws-1")
	l.waitReady(t)
	for what, x := range map[string]struct{ port, request string }{
		"locates": {"8080", "POST /v1/locate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"},
		"dials":   {"8090", newInprocDial("x").String()},
	} {
		to := net.JoinHostPort(to, x.port)
		h.inside(t, func() error {
			got, others := map[int]int{}, map[int]int{}
			for i := range 40 {
				for _, a := range []struct {
					from  string
					count map[int]int
				}{{one(i), got}, {other(i), others}} {
					status, err := askFrom(a.from, to, x.request)
					if err != nil {
						return fmt.Errorf("%s from %s: %w", what, a.from, err)
					}
					a.count[status]++
				}
			}
			// A burst is four; all would pass if each took a second.
			if got[429] == 0 || got[401] < 4 || got[401]+got[429] != 40 {
				t.Errorf("%s of 40 addresses of one network were answered %v", what, got)
			}
			if others[401] != 40 {
				t.Errorf("%s of 40 networks were answered %v, want 401 for each", what, others)
			}
			return nil
		})
	}
}

// A node whose addresses are names that lead to a locator's own host, or to a link-local
// address, does not get in: a probe would be a request of somebody else's to what listens
// there. The same names with another address are fine.
func TestNamesOfThisMachine(t *testing.T) {
	net := newNet(t)
	h := net.host(t, "all")
	// What ip netns puts in the place of the files of /etc.
	dir := filepath.Join("/etc/netns", h.space)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.RemoveAll(dir)
		_ = os.Remove("/etc/netns") // unless others use it
	})
	writeFile(t, filepath.Join(dir, "hosts"), fmt.Sprintf("127.0.0.1 localhost inner.example.test\n::1 inner6.example.test\n169.254.169.254 metadata.example.test\n%s outer.example.test\n", h.ip))
	l := &locatorProc{process: h.start(t, "locator", filepath.Join(bin, "locator"), h.normalEnv("DIALRING_LISTEN="+h.ip+":8080", "DIALRING_API_KEYS=dev", "DIALRING_USER_JWT_SECRET="+inprocSecret)...), addr: h.ip + ":8080"}
	l.event(t, "listening")
	port := 9000
	for _, name := range []string{"outer", "inner", "inner6", "metadata"} {
		host := name + ".example.test"
		for setting, hosts := range map[string][2]string{"public": {host, "outer.example.test"}, "peer": {"outer.example.test", host}} {
			public, peer := port, port+1
			port += 2
			p := h.start(t, name, filepath.Join(bin, "wsnode"), h.normalEnv("DIALRING_NODE_ID="+name+"-"+setting, fmt.Sprintf("DIALRING_LISTEN=:%d", public), fmt.Sprintf("DIALRING_PEER_LISTEN=:%d", peer),
				"DIALRING_ADMIN_LISTEN=127.0.0.1:0", fmt.Sprintf("DIALRING_NODE_URL=ws://%s:%d", hosts[0], public), fmt.Sprintf("DIALRING_PEER_URL=http://%s:%d", hosts[1], peer))...)
			p.event(t, "listening")
		}
	}
	l.waitMembers(t, "outer-peer", "outer-public")
	for name, setting := range map[string]string{"inner-public": "NODE_URL", "inner6-public": "NODE_URL", "metadata-public": "NODE_URL", "inner-peer": "PEER_URL", "inner6-peer": "PEER_URL", "metadata-peer": "PEER_URL"} {
		eventually(t, "the log says why "+name+" does not join", func() bool {
			return slices.ContainsFunc(strings.Split(l.text(), "\n"), func(line string) bool {
				return strings.Contains(line, `"event":"join_waits"`) && strings.Contains(line, `"node":"`+name+`"`) && strings.Contains(line, "DIALRING_"+setting) && strings.Contains(line, "of this machine only")
			})
		})
	}
	l.waitMembers(t, "outer-peer", "outer-public")
}
