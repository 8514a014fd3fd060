//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/machine"
)

// network is a bridge in a namespace of its own, hosts on it that are
// namespaces, too, and one cable to this process. Paths between them can be cut
// such that packets vanish, which no closing of sockets imitates: nobody is
// told, and established connections stand still.
type network struct {
	t      *testing.T
	prefix string // of all its names
	bridge string // namespace
	subnet string // 10.77.x
	spaces []string
	hosts  []*host
	me     *host // this process, for cuts between it and a host
}

// host is a namespace with one address.
type host struct {
	n     *network
	name  string
	space string // namespace; empty: the one of this process
	ip    string
	relay string // address of its relay, once there is one
}

// netName is what names of namespaces and interfaces look like: drt, the pid of
// the test process, a number. An interface's name has at most 15 bytes, a pid
// up to 7 digits.
var netName = regexp.MustCompile(`^drt(\d+)-`)

var netCount = struct {
	sync.Mutex
	n int
}{}

// netReady removes what crashed runs left and tries all that a network needs.
var netReady = sync.OnceValue(func() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("install iproute2 and nftables: %w", err)
		}
	}
	// What has our own pid is another's as well: we have made nothing yet.
	sweep(func(pid int) bool { return pid == os.Getpid() || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	space := fmt.Sprintf("drt%d-try", os.Getpid())
	if err := tool("", "ip", "netns", "add", space); err != nil {
		return err
	}
	return errors.Join(
		tool("", "ip", "-n", space, "link", "add", "br0", "type", "bridge"),
		tool("", "ip", "-n", space, "link", "add", "v0", "type", "veth", "peer", "name", "v1"),
		tool(cutTable, "ip", "netns", "exec", space, "nft", "-f", "-"),
		tool("", "ip", "netns", "del", space))
})

// requireNet skips the test where no network can be made, and fails it where
// everything has to be tested.
func requireNet(t *testing.T) {
	t.Helper()
	if err := netReady(); err != nil {
		machine.Lacks(t, "networks of namespaces cannot be made: %v", err)
	}
}

// tool runs a program with this input.
func tool(in, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(in)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// sweep removes interfaces and namespaces of processes that are dead. Another
// process may be at the same, so what fails is not told; it is tried again.
func sweep(dead func(pid int) bool) {
	for dir, del := range map[string][]string{"/sys/class/net": {"link"}, "/run/netns": {"netns"}} {
		entries, _ := os.ReadDir(dir) // it may not exist
		for _, e := range entries {
			if m := netName.FindStringSubmatch(e.Name()); m != nil {
				if pid, err := strconv.Atoi(m[1]); err == nil && dead(pid) {
					_ = tool("", "ip", append(del, "del", e.Name())...)
				}
			}
		}
	}
}

// newNet makes a network without hosts. It is removed when the test ends.
func newNet(t *testing.T) *network {
	t.Helper()
	requireNet(t)
	netCount.Lock()
	netCount.n++
	prefix := fmt.Sprintf("drt%d-%d", os.Getpid(), netCount.n)
	netCount.Unlock()
	n := &network{t: t, prefix: prefix, bridge: prefix + "-bridge"}
	n.claim()
	t.Cleanup(n.remove)
	n.space(n.bridge)
	n.ip("-n", n.bridge, "link", "add", "br0", "type", "bridge")
	n.ip("-n", n.bridge, "link", "set", "br0", "up")
	n.me = &host{n: n, name: "test", ip: n.subnet + ".1"}
	// Only this interface is in our own namespace.
	n.ip("link", "add", prefix, "type", "veth", "peer", "name", "p1", "netns", n.bridge)
	n.ip("-n", n.bridge, "link", "set", "p1", "master", "br0", "up")
	n.ip("addr", "add", n.me.ip+"/24", "dev", prefix)
	n.ip("link", "set", prefix, "up")
	return n
}

// claim takes a subnet that no other test process of this host uses: an abstract
// socket is one of a kind in a namespace, and gone with its process.
func (n *network) claim() {
	n.t.Helper()
	for x := range 256 {
		l, err := net.Listen("unix", fmt.Sprintf("@dialring-e2e-10.77.%d", x))
		if err == nil {
			n.subnet = fmt.Sprintf("10.77.%d", x)
			n.t.Cleanup(func() { l.Close() })
			return
		}
	}
	n.t.Fatal("all of 10.77.x is in use")
}

func (n *network) ip(args ...string) {
	n.t.Helper()
	if err := tool("", "ip", args...); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) space(name string) {
	n.t.Helper()
	n.ip("netns", "add", name)
	n.spaces = append(n.spaces, name)
}

func (n *network) remove() {
	if _, err := os.Stat("/sys/class/net/" + n.prefix); err == nil {
		if err := tool("", "ip", "link", "del", n.prefix); err != nil {
			n.t.Error(err)
		}
	}
	for _, s := range slices.Backward(n.spaces) {
		if err := tool("", "ip", "netns", "del", s); err != nil {
			n.t.Error(err)
		}
	}
}

// host adds a host. What it runs uses fixed ports: at most one node, one
// locator and one NATS server each.
func (n *network) host(t *testing.T, name string) *host {
	t.Helper()
	i := len(n.hosts) + 2
	h := &host{n: n, name: name, space: n.prefix + "-" + name, ip: fmt.Sprintf("%s.%d", n.subnet, i)}
	port := fmt.Sprintf("p%d", i)
	n.space(h.space)
	n.ip("link", "add", "eth0", "netns", h.space, "type", "veth", "peer", "name", port, "netns", n.bridge)
	n.ip("-n", n.bridge, "link", "set", port, "master", "br0", "up")
	n.ip("-n", h.space, "addr", "add", h.ip+"/24", "dev", "eth0")
	n.ip("-n", h.space, "link", "set", "eth0", "up")
	n.ip("-n", h.space, "link", "set", "lo", "up")
	n.hosts = append(n.hosts, h)
	return h
}

// cutTable makes the chains of the cuts; where they exist, it changes nothing.
// They come before connection tracking, which would let established ones pass.
const cutTable = `add table inet cut
add chain inet cut in { type filter hook input priority raw; }
add chain inet cut out { type filter hook output priority raw; }
`

// cut lets nothing through between two hosts.
func (n *network) cut(a, b *host) {
	n.t.Helper()
	n.drop(a, b, "")
	n.drop(b, a, "")
}

// cutOneWay lets nothing through in one direction.
func (n *network) cutOneWay(from, to *host) {
	n.t.Helper()
	n.drop(from, to, "")
}

// cutPort lets no TCP through between two hosts that has this port at either end.
func (n *network) cutPort(a, b *host, port int) {
	n.t.Helper()
	for _, end := range []string{"dport", "sport"} {
		match := fmt.Sprintf("tcp %s %d", end, port)
		n.drop(a, b, match)
		n.drop(b, a, match)
	}
}

// drop is where packets from one host to another vanish: at the receiver, since
// the sender's own output hook would tell it (EPERM) what no dead path tells. Our
// own namespace gets no rules, so what goes to this process is dropped at the
// sender all the same; TCP takes that for a loss.
func (n *network) drop(from, to *host, match string) {
	n.t.Helper()
	at, rule := to, "in ip saddr "+from.ip
	if to.space == "" {
		at, rule = from, "out ip daddr "+to.ip
	}
	n.nft(at, cutTable+"add rule inet cut "+rule+" "+match+" drop\n")
}

// heal ends all cuts.
func (n *network) heal() {
	n.t.Helper()
	for _, h := range n.hosts {
		n.nft(h, "flush ruleset\n")
	}
}

func (n *network) nft(h *host, script string) {
	n.t.Helper()
	if err := tool(script, "ip", "netns", "exec", h.space, "nft", "-f", "-"); err != nil {
		n.t.Fatalf("%v\n%s", err, script)
	}
}

// start runs a program in the host and returns once the process is that program:
// ip replaces itself by it, which keeps the pid and the signal that ends it with us.
func (h *host) start(t *testing.T, name, path string, env ...string) *process {
	t.Helper()
	p := start(t, name, "ip", env, "netns", "exec", h.space, path)
	want, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, name+" runs", func() bool {
		select {
		case <-p.done:
			t.Fatalf("%s ended at its start:\n%s", name, p.text())
		default:
		}
		is, err := os.Stat(fmt.Sprintf("/proc/%d/exe", p.cmd.Process.Pid))
		return err == nil && os.SameFile(is, want)
	})
	return p
}

// locator runs a locator, at port 8080.
func (h *host) locator(t *testing.T, nats string, env ...string) *locatorProc {
	t.Helper()
	base := []string{"DIALRING_DEV=insecure", "DIALRING_LOG_FORMAT=json", "DIALRING_NATS_URL=" + nats,
		"DIALRING_LISTEN=0.0.0.0:8080", "DIALRING_ADMIN_LISTEN=127.0.0.1:8081"}
	l := &locatorProc{process: h.start(t, h.name, filepath.Join(bin, "locator"), append(base, env...)...), addr: h.ip + ":8080", nats: nats}
	l.event(t, "listening")
	return l
}

// node runs a node whose id is the host's name, at ports 8090 and 8092.
func (h *host) node(t *testing.T, nats string, env ...string) *nodeProc {
	t.Helper()
	n := &nodeProc{id: h.name, addr: h.ip + ":8090", peer: h.ip + ":8092", settings: env}
	base := []string{"DIALRING_DEV=insecure", "DIALRING_LOG_FORMAT=json", "DIALRING_NATS_URL=" + nats, "DIALRING_NODE_ID=" + n.id,
		"DIALRING_NODE_URL=ws://" + n.addr, "DIALRING_PEER_URL=http://" + n.peer,
		"DIALRING_LISTEN=0.0.0.0:8090", "DIALRING_PEER_LISTEN=0.0.0.0:8092", "DIALRING_ADMIN_LISTEN=127.0.0.1:8091"}
	n.process = h.start(t, n.id, filepath.Join(bin, "wsnode"), append(base, env...)...)
	n.event(t, "listening")
	return n
}

// nats runs a NATS server, at port 4222, and waits until it takes connections.
func (h *host) nats(t *testing.T, dir string) (p *process, url string) {
	t.Helper()
	p = h.start(t, h.name, os.Args[0], roleEnv+"=nats", "DR_E2E_NATS=4222,"+dir, "DR_E2E_NATS_HOST="+h.ip)
	waitTCP(t, h.ip+":4222")
	return p, "nats://" + h.ip + ":4222"
}

// dial connects from the host, not from this process, through a relay that runs
// there. It waits this long at most.
func (h *host) dial(t *testing.T, addr string, wait time.Duration) (net.Conn, error) {
	t.Helper()
	if h.relay == "" {
		h.relay = h.ip + ":7777"
		h.start(t, "relay of "+h.name, os.Args[0], roleEnv+"=relay", "DR_E2E_RELAY="+h.relay)
		waitTCP(t, h.relay)
	}
	c, err := net.Dial("tcp", h.relay)
	if err != nil {
		t.Fatal(err) // the path to the relay is not what is tested
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "%s\n", addr)
	_ = c.SetReadDeadline(time.Now().Add(wait))
	answer := make([]byte, 1)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err // os.ErrDeadlineExceeded, or EOF for a refusal
	}
	return c, c.SetReadDeadline(time.Time{})
}

func init() { roles["relay"] = relayMain }

// relayMain connects whoever connects to the address that its first line names,
// and says so with one byte.
func relayMain() int {
	l, err := net.Listen("tcp", os.Getenv("DR_E2E_RELAY"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		in, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer in.Close()
			br := bufio.NewReader(in)
			addr, err := br.ReadString('\n')
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimSpace(addr))
			if err != nil {
				return
			}
			defer out.Close()
			_, _ = in.Write([]byte("+"))
			go func() { _, _ = io.Copy(out, br); out.Close() }()
			_, _ = io.Copy(in, out)
		}()
	}
}
